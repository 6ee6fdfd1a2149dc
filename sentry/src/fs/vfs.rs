//! Mounts, dentries, path resolution. (First types; the VFS work fills them.)

use super::Inode;
use std::sync::Arc;

/// A place in the tree of names: a mount and a dentry in it.
#[derive(Clone)]
pub struct Path {
    inode: Arc<dyn Inode>,
}

impl Path {
    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }
}

/// The mounts of a container.
pub struct MountNamespace {}

/// Root, working directory and umask of a task (`CLONE_FS`).
#[derive(Clone)]
pub struct FsContext {
    pub root: Path,
    pub cwd: Path,
    pub umask: u32,
}
