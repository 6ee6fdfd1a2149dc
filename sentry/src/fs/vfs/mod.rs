//! Mounts, dentries, path resolution: the tree of names that the guest sees.
//!
//! * [`Path`]: a place: a mount and a dentry in it. [`FsContext`]: a task's root, working directory and umask.
//! * [`resolve`] and [`Resolver`] turn a path name into a [`Path`]; [`open`] into an open file; [`ops`] has what changes the tree.
//! * [`perm`]: who may do what.

pub mod anon;
pub mod dentry;
pub mod mount;
pub mod mount_ns;
pub mod open;
pub mod ops;
pub mod perm;
pub mod propagation;
#[cfg(test)]
mod tests;
pub mod walk;

pub use anon::anon_path;
pub use dentry::{Dentry, SuperBlock};
pub use mount::{anonymous_dev, Mount, MountFlags, MountLocks};
pub use mount_ns::{DetachedTree, MountNamespace};
pub use open::{open, open_place};
pub use propagation::PropagationType;
pub use walk::{resolve, resolve_parent, LookupFlags, Parent, Resolver, RootRef};

use super::Inode;
use crate::error::{Errno, Result};
use crate::mm::user::PATH_MAX;
use std::sync::Arc;

/// The names from a place up to where its name begins.
#[derive(Default)]
pub(in crate::fs) struct Names {
    parts: Vec<Arc<[u8]>>,
    len: usize,
}

impl Names {
    /// The next one further up. `ENAMETOOLONG` when no path can be as long as all of them: trees are as deep as guests make them.
    pub(in crate::fs) fn push(&mut self, name: Arc<[u8]>) -> Result<()> {
        self.len += name.len() + 1;
        if self.len >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        self.parts.push(name);
        Ok(())
    }

    /// Bytes that they take, each with its slash.
    pub(in crate::fs) fn len(&self) -> usize {
        self.len
    }

    /// All of them behind `start`, each with a slash before it.
    pub(in crate::fs) fn below(&self, start: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(start.len() + self.len);
        out.extend_from_slice(start);
        for part in self.parts.iter().rev() {
            out.push(b'/');
            out.extend_from_slice(part);
        }
        out
    }
}

/// A place in the tree of names: a mount and a dentry in it.
#[derive(Clone)]
pub struct Path {
    mount: Arc<Mount>,
    dentry: Arc<Dentry>,
}

impl std::fmt::Debug for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Path({})", String::from_utf8_lossy(&self.dentry.name()))
    }
}

impl PartialEq for Path {
    fn eq(&self, other: &Path) -> bool {
        Arc::ptr_eq(&self.dentry, &other.dentry) && Arc::ptr_eq(&self.mount, &other.mount)
    }
}

impl Path {
    /// Whether `flag` (`NOSUID` or `NOEXEC`) is set of the mount, or of the host's that the file is on.
    pub fn forbids(&self, flag: MountFlags) -> bool {
        (self.mount.flags() | self.inode().limits()).contains(flag)
    }
    pub fn new(mount: Arc<Mount>, dentry: Arc<Dentry>) -> Path {
        Path { mount, dentry }
    }
    pub fn inode(&self) -> &Arc<dyn Inode> {
        self.dentry.inode()
    }
    pub fn dentry(&self) -> &Arc<Dentry> {
        &self.dentry
    }
    pub fn mount(&self) -> &Arc<Mount> {
        &self.mount
    }
    pub fn is_dir(&self) -> bool {
        self.dentry.is_dir()
    }
    /// `S_IFMT` bits.
    pub fn kind(&self) -> u32 {
        self.dentry.kind()
    }

    /// The absolute name as seen from `root`, or from the top of what it can reach if `root` is not above it (second value false). A
    /// removed name is given without a mark. `ENAMETOOLONG` for one that no path can be: trees are as deep as guests make them.
    fn names(&self, root: Option<&Path>) -> Result<(Vec<u8>, bool)> {
        let mut names = Names::default();
        let mut at = self.clone();
        let reached = loop {
            if root.is_some_and(|r| *r == at) {
                break true;
            }
            if Arc::ptr_eq(&at.dentry, at.mount.root_dentry()) {
                match at.mount.mountpoint() {
                    Some(p) => at = p,
                    None => break root.is_none(),
                }
                continue;
            }
            names.push(at.dentry.name())?;
            match at.dentry.parent() {
                Some(p) => at.dentry = p,
                None => break false,
            }
        };
        let mut out = names.below(&[]);
        if out.is_empty() {
            out.push(b'/');
        }
        Ok((out, reached))
    }

    /// The name that /proc/pid/{exe,cwd,root,fd/N,maps} show (Linux's d_path): " (deleted)" behind one that was removed.
    pub fn display(&self, root: &Path) -> Result<Vec<u8>> {
        if let Some(name) = self.inode().own_name().filter(|_| self.mount.mountpoint().is_none()) {
            return Ok(name);
        }
        let _stable = self.dentry.sb().rename.read();
        let (mut name, _) = self.names(Some(root))?;
        if self.dentry.is_deleted() {
            name.extend_from_slice(b" (deleted)");
        }
        Ok(name)
    }

    /// What getcwd(2) says: `ENOENT` for a removed directory, "(unreachable)" in front when outside of `root`.
    pub fn cwd_name(&self, root: &Path) -> Result<Vec<u8>> {
        if self.dentry.is_deleted() {
            return Err(Errno::ENOENT);
        }
        let _stable = self.dentry.sb().rename.read();
        let (name, reached) = self.names(Some(root))?;
        if reached {
            return Ok(name);
        }
        let mut out = b"(unreachable)".to_vec();
        out.extend_from_slice(&name);
        Ok(out)
    }
}

/// Root, working directory and umask of a task (`CLONE_FS`).
#[derive(Clone)]
pub struct FsContext {
    pub root: Path,
    pub cwd: Path,
    pub umask: u32,
}

impl FsContext {
    pub fn new(root: Path) -> Self {
        FsContext { cwd: root.clone(), root, umask: 0o022 }
    }
}
