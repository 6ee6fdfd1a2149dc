//! Places for objects without a name (pipes, sockets, eventfds…): what `/proc/self/fd/N` leads to when the descriptor has no path.

use super::{Dentry, Mount, MountFlags, Path, SuperBlock};
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysResult};
use crate::fs::*;
use crate::kernel::wait::WaitQueue;
use crate::kernel::Task;
use crate::mm::io::{Dst, Src};
use std::any::Any;
use std::sync::Arc;

/// Inode of an open file that has no path.
pub struct AnonInode {
    file: Arc<File>,
}

impl AnonInode {
    /// What a link to it shows.
    pub fn name(&self) -> Vec<u8> {
        self.file.ops.anon_name().into_bytes()
    }
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }
}

/// The place of `file`: its own if it has one, else one made for the object.
pub fn anon_path(file: &Arc<File>) -> Result<Path> {
    if let Some(p) = &file.path {
        return Ok(p.clone());
    }
    let sb = SuperBlock::new("anon_inodefs", b"none", String::new());
    let root = Dentry::root(Arc::new(AnonInode { file: file.clone() }), &sb)?;
    Ok(Path::new(Mount::new(root.clone(), MountFlags::empty()), root))
}

impl Inode for AnonInode {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn own_name(&self) -> Option<Vec<u8>> {
        Some(self.name())
    }
    fn attr(&self) -> Result<Attr> {
        self.file.ops.attr()
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        self.file.ops.set_attr(set)
    }
    fn open(self: Arc<Self>, flags: i32) -> Result<Box<dyn FileOps>> {
        let host = self.file.ops.as_any().downcast_ref::<hostfile::HostFile>();
        if let Some(again) = host.and_then(hostfile::HostFile::reopened) {
            // What the host has not opened for it cannot be had.
            let access = flags & libc::O_ACCMODE;
            let may = (access == libc::O_WRONLY || self.file.readable())
                && (access == libc::O_RDONLY || self.file.writable());
            return if may { Ok(Box::new(again)) } else { Err(Errno::EACCES) };
        }
        if !self.file.ops.reopens() {
            return Err(Errno::ENXIO);
        }
        Ok(Box::new(Again(self.file.clone())))
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { kind: 0x0904_1934, bsize: 4096, namelen: 255, ..StatFs::default() })
    }
}

/// A second description of the same object.
struct Again(Arc<File>);

impl FileOps for Again {
    fn as_any(&self) -> &dyn Any {
        self.0.ops.as_any()
    }
    fn read(&self, file: &File, dst: &mut Dst<'_>, offset: u64) -> SysResult<usize> {
        self.0.ops.read(file, dst, offset)
    }
    fn write(&self, file: &File, src: &mut Src<'_>, offset: u64) -> SysResult<(usize, u64)> {
        self.0.ops.write(file, src, offset)
    }
    fn seekable(&self) -> bool {
        self.0.ops.seekable()
    }
    fn seek(&self, file: &File, offset: i64, whence: i32, current: u64) -> Result<u64> {
        self.0.ops.seek(file, offset, whence, current)
    }
    fn poll(&self, file: &File) -> PollEvents {
        self.0.ops.poll(file)
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        self.0.ops.wait_queue()
    }
    fn ioctl(&self, file: &File, task: &Task, cmd: u32, arg: u64) -> SysResult<u64> {
        self.0.ops.ioctl(file, task, cmd, arg)
    }
    fn map(&self, file: &File, write_shared: bool) -> Result<MapSource> {
        self.0.ops.map(file, write_shared)
    }
    fn readdir(&self, file: &File, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        self.0.ops.readdir(file, pos, sink)
    }
    fn fsync(&self, data_only: bool) -> Result<()> {
        self.0.ops.fsync(data_only)
    }
    fn fallocate(&self, file: &File, mode: i32, offset: u64, len: u64) -> Result<()> {
        self.0.ops.fallocate(file, mode, offset, len)
    }
    fn attr(&self) -> Result<Attr> {
        self.0.ops.attr()
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        self.0.ops.set_attr(set)
    }
    fn anon_name(&self) -> String {
        self.0.ops.anon_name()
    }
    fn reopens(&self) -> bool {
        self.0.ops.reopens()
    }
    fn set_flags(&self, flags: i32) -> Result<()> {
        self.0.ops.set_flags(flags)
    }
}
