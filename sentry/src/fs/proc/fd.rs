//! `/proc/[pid]/{fd,fdinfo}` and the links that are places: cwd, root, exe.

use super::pid::{LiveTask, TaskRef};
use crate::error::{Errno, Result};
use crate::fs::file::FileOps;
use crate::fs::pseudo::{open_dir, Content, List, OpenText, Put, Super, FIRST};
use crate::fs::types::*;
use crate::fs::vfs::{anon_path, Path};
use crate::kernel::fdtable::FdEntry;
use crate::kernel::{current, pidfd, Cred, ThreadGroup};
use std::any::Any;
use std::sync::Arc;

/// The name of a place as the caller would write it, ` (deleted)` when it has none any more.
pub(super) fn place_name(path: &Path) -> Result<Vec<u8>> {
    let root = match current::get() {
        Some(t) => t.fs().lock().root.clone(),
        None => path.mount().root(),
    };
    path.display(&root)
}

pub(super) fn cwd(live: &LiveTask) -> Result<Path> {
    Ok(live.live()?.fs().lock().cwd.clone())
}

pub(super) fn root(live: &LiveTask) -> Result<Path> {
    Ok(live.live()?.fs().lock().root.clone())
}

pub(super) fn exe(live: &LiveTask) -> Result<Path> {
    live.live()?.mm().map().exe.clone().ok_or(Errno::ENOENT)
}

/// Inode number of a descriptor's entry.
fn fd_ino(id: i32, fd: i32, info: bool) -> u64 {
    1 << 62 | u64::from(info) << 61 | (id as u64) << 32 | fd as u64
}

/// `fd` and `fdinfo`.
struct FdDir {
    target: TaskRef,
    index: usize,
    info: bool,
}

pub(super) fn fd_dir(target: TaskRef, index: usize) -> Arc<dyn Inode> {
    Arc::new(FdDir { target, index, info: false })
}

pub(super) fn fdinfo_dir(target: TaskRef, index: usize) -> Arc<dyn Inode> {
    Arc::new(FdDir { target, index, info: true })
}

impl Inode for FdDir {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let mode = if self.info { 0o555 } else { 0o500 };
        let mut a = self.target.attr(self.index, libc::S_IFDIR | mode, 2)?;
        if !self.info {
            // Since Linux 6.2 the size is the number of descriptors.
            let live = self.target.exists()?;
            a.size = live.task.map_or(0, |t| t.files().count() as u64);
        }
        Ok(a)
    }
    /// A process may look into its own whatever user it has become.
    fn perm(&self) -> Result<Perm> {
        let a = self.attr()?;
        let own = self.target.exists()?.task.zip(current::get()).is_some_and(|(t, c)| Arc::ptr_eq(&t.group, &c.group));
        Ok(Perm { mode: if own && !self.info { a.mode | 0o777 } else { a.mode }, uid: a.uid, gid: a.gid })
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let fd = match name {
            b"0" => 0,
            _ => super::parse_pid(name).ok_or(Errno::ENOENT)?,
        };
        let live = self.target.exists()?;
        if !live.may_access() {
            return Err(Errno::EACCES);
        }
        live.live()?.files().entry(fd).map_err(|_| Errno::ENOENT)?;
        let target = self.target.clone();
        Ok(if self.info { Arc::new(FdInfo { target, fd }) } else { Arc::new(FdLink { target, fd }) })
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        if !self.target.exists()?.may_access() {
            return Err(Errno::EACCES);
        }
        Ok(open_dir(self))
    }
    of_process!();
}

impl List for FdDir {
    fn list(&self, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let live = self.target.exists()?;
        let Some(task) = &live.task else { return Ok(()) };
        // Another program may run by now than the one that was there when this was opened.
        if !live.may_access() {
            return Err(Errno::EACCES);
        }
        let mut from = usize::try_from(pos - FIRST).unwrap_or(usize::MAX);
        let kind = if self.info { libc::DT_REG } else { libc::DT_LNK };
        while let Some(fd) = task.files().next(from) {
            from = fd as usize + 1;
            let next = fd as u64 + FIRST + 1;
            let ino = fd_ino(live.id, fd, self.info);
            if !sink(DirEntry { name: fd.to_string().as_bytes(), ino, kind, next }) {
                break;
            }
        }
        Ok(())
    }
}

fn entry(target: &TaskRef, fd: i32) -> Result<FdEntry> {
    target.exists()?.live()?.files().entry(fd).map_err(|_| Errno::ENOENT)
}

/// `fd/N`.
struct FdLink {
    target: TaskRef,
    fd: i32,
}

impl Inode for FdLink {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let f = entry(&self.target, self.fd)?.file;
        // The permissions tell how the file is open.
        let mode = 0o100 | if f.readable() { 0o400 } else { 0 } | if f.writable() { 0o200 } else { 0 };
        let a = self.target.attr(0, libc::S_IFLNK | mode, 1)?;
        Ok(Attr { ino: fd_ino(self.target.id, self.fd, false), size: 64, ..a })
    }
    fn readlink(&self) -> Result<Vec<u8>> {
        if !self.target.exists()?.may_access() {
            return Err(Errno::EACCES);
        }
        let file = entry(&self.target, self.fd)?.file;
        match &file.path {
            Some(p) => place_name(p),
            None => Ok(file.ops.anon_name().into_bytes()),
        }
    }
    fn follow_magic(&self, _cred: &Cred) -> Option<Result<Path>> {
        let place = || {
            if !self.target.exists()?.may_access() {
                return Err(Errno::EACCES);
            }
            let file = entry(&self.target, self.fd)?.file;
            anon_path(&file)
        };
        Some(place())
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        Err(Errno::ELOOP)
    }
    of_process!();
}

/// `fdinfo/N`.
struct FdInfo {
    target: TaskRef,
    fd: i32,
}

impl Content for FdInfo {
    fn generate(&self, out: &mut Vec<u8>) -> Result<()> {
        if !self.target.exists()?.may_access() {
            return Err(Errno::EACCES);
        }
        let e = entry(&self.target, self.fd)?;
        // A reader of its own fdinfo may hold that very offset.
        let pos = e.file.offset.try_lock().map_or(0, |o| *o);
        let cloexec = if e.cloexec { libc::O_CLOEXEC } else { 0 };
        // The kernel's own O_LARGEFILE is set on every file of a 64-bit process.
        let flags = (e.file.flags() | cloexec | 0o100000) as u32;
        out.s("pos:\t").d(pos).s("\nflags:\t0").s(&format!("{flags:o}"));
        let (mnt, ino) = match &e.file.path {
            Some(p) => (p.mount().id, p.inode().attr().map_or(0, |a| a.ino)),
            None => (0, e.file.ops.attr().map_or(0, |a| a.ino)),
        };
        out.s("\nmnt_id:\t").d(mnt).s("\nino:\t").d(ino).s("\n");
        e.file.ops.fdinfo(out);
        if let Some(g) = pidfd::group(&e.file) {
            pidfd_info(&self.target.sup, &g, out);
        }
        Ok(())
    }
}

/// The process of a pidfd: its number here, then in the namespaces below; -1 once it has been reaped.
fn pidfd_info(sup: &Super, group: &Arc<ThreadGroup>, out: &mut Vec<u8>) {
    let there = sup.kernel.group(group.pid).is_some_and(|g| Arc::ptr_eq(&g, group));
    if !there {
        out.s("Pid:\t-1\nNSpid:\t-1\n");
        return;
    }
    let nr = group.id.nr_in(&sup.pid_ns);
    out.s("Pid:\t").i(nr.into()).s("\nNSpid:\t").i(nr.into());
    let below = group.id.numbers(sup.pid_ns.level() + 1);
    for (_, nr) in below.filter(|_| nr > 0) {
        out.s("\t").i(nr.into());
    }
    out.s("\n");
}

impl Inode for FdInfo {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let a = self.target.attr(0, libc::S_IFREG | 0o444, 1)?;
        Ok(Attr { ino: fd_ino(self.target.id, self.fd, true), ..a })
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        Ok(OpenText::open(self))
    }
    of_process!();
}
