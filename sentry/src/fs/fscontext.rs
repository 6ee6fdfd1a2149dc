//! Descriptors of file systems that are being made or changed (fsopen(2), fspick(2)), and of detached trees of mounts.

use super::fstype::Config;
use super::vfs::{Dentry, DetachedTree, SuperBlock};
use super::{File, FileOps};
use crate::error::{Errno, Result, SysResult};
use crate::mm::io::{Dst, Src};
use parking_lot::Mutex;
use std::any::Any;
use std::sync::Arc;

/// What is to happen next with a file system.
pub enum Phase {
    /// Its options are given.
    Options,
    /// It has been made, and is to be mounted.
    Made(Arc<Dentry>),
    /// It has been mounted, or was picked: options for a change are given.
    Change(Arc<SuperBlock>),
    Failed,
}

pub struct State {
    pub config: Config,
    pub phase: Phase,
}

/// An open `fscontext`.
pub struct FsContextFile {
    pub state: Mutex<State>,
}

impl FsContextFile {
    pub fn open(config: Config, phase: Phase) -> Arc<File> {
        let ops = FsContextFile { state: Mutex::new(State { config, phase }) };
        File::new(Box::new(ops), libc::O_RDWR, None)
    }
    /// `EINVAL` for a file of another kind.
    pub fn of(file: &File) -> Result<&FsContextFile> {
        file.ops.as_any().downcast_ref().ok_or(Errno::EINVAL)
    }
}

impl FileOps for FsContextFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    /// Messages about what was wrong: there are none.
    fn read(&self, _: &File, _: &mut Dst<'_>, _: u64) -> SysResult<usize> {
        Err(Errno::ENODATA.into())
    }
    fn write(&self, _: &File, _: &mut Src<'_>, _: u64) -> SysResult<(usize, u64)> {
        Err(Errno::EINVAL.into())
    }
    fn attr(&self) -> Result<super::Attr> {
        Ok(super::anon::anon_attr())
    }
    fn anon_name(&self) -> String {
        "anon_inode:[fscontext]".into()
    }
}

/// An `O_PATH` description of a detached tree, which goes with it.
pub struct DetachedFile {
    _tree: Arc<DetachedTree>,
}

impl DetachedFile {
    pub fn open(tree: Arc<DetachedTree>) -> Arc<File> {
        let root = tree.root();
        File::new(Box::new(DetachedFile { _tree: tree }), libc::O_PATH, Some(root))
    }
}

impl FileOps for DetachedFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _: &File, _: &mut Dst<'_>, _: u64) -> SysResult<usize> {
        Err(Errno::EBADF.into())
    }
}
