//! `/dev`, and what character devices do when they are opened.
//!
//! [`open_char`] is the one place that knows device numbers: a device node of any file system (`mknod`, tmpfs) comes here.

mod mem;

use super::file::FileOps;
use super::pseudo::{StaticDir, Super, Symlink};
use super::types::*;
use crate::error::{Errno, Result};
use crate::kernel::Kernel;
use std::any::Any;
use std::sync::Arc;

const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Opens the character device `rdev` for the calling task.
pub fn open_char(kernel: &Arc<Kernel>, rdev: u64, flags: i32) -> Result<Box<dyn FileOps>> {
    match (libc::major(rdev), libc::minor(rdev)) {
        (1, 3) => Ok(Box::new(mem::Null)),
        (1, 5) => Ok(Box::new(mem::Zero)),
        (1, 7) => Ok(Box::new(mem::Full)),
        (1, 8 | 9) => Ok(Box::new(mem::Random)),
        (4 | 5 | 128..=143, _) => super::tty::open_char(kernel, rdev, flags),
        _ => Err(Errno::ENXIO),
    }
}

/// A device node of this tree.
struct CharDev {
    sup: Arc<Super>,
    ino: u64,
    mode: u32,
    gid: u32,
    rdev: u64,
}

impl Inode for CharDev {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let a = self.sup.attr(self.ino, libc::S_IFCHR | self.mode, 1);
        Ok(Attr { rdev: self.rdev, gid: self.gid, ..a })
    }
    fn open(self: Arc<Self>, flags: i32) -> Result<Box<dyn FileOps>> {
        open_char(&self.sup.kernel, self.rdev, flags)
    }
    fn set_attr(&self, _set: &SetAttr) -> Result<()> {
        Ok(())
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.sup.statfs())
    }
}

/// Name, permissions, group, major, minor.
pub const NODES: &[(&str, u32, u32, u32, u32)] = &[
    ("null", 0o666, 0, 1, 3),
    ("zero", 0o666, 0, 1, 5),
    ("full", 0o666, 0, 1, 7),
    ("random", 0o666, 0, 1, 8),
    ("urandom", 0o666, 0, 1, 9),
    ("tty", 0o666, 5, 5, 0),
    ("console", 0o620, 5, 5, 1),
];

pub const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The tree of `/dev`; `pts` and `shm` are there to mount on.
pub fn new(kernel: &Arc<Kernel>) -> Arc<dyn Inode> {
    let sup = Super::new(kernel, TMPFS_MAGIC, 4096, 2);
    let mut entries: Vec<(Vec<u8>, Arc<dyn Inode>)> = Vec::new();
    for &(name, mode, gid, major, minor) in NODES {
        let rdev = libc::makedev(major, minor);
        entries.push((name.into(), Arc::new(CharDev { sup: sup.clone(), ino: sup.ino(), mode, gid, rdev })));
    }
    for &(name, target) in LINKS {
        entries.push((name.into(), Symlink::make(&sup, target)));
    }
    for name in ["pts", "shm", "mqueue"] {
        entries.push((name.into(), StaticDir::with_mode(&sup, 0o755, Vec::new())));
    }
    StaticDir::with_mode(&sup, 0o755, entries)
}
