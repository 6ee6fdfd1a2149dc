//! Plain types of the VFS, and the [`Inode`] trait.

use super::acl::Acl;
use super::file::FileOps;
use crate::error::{Errno, Result};
use crate::kernel::Cred;
use std::any::Any;
use std::sync::Arc;

/// Seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timespec {
    pub sec: i64,
    pub nsec: u32,
}

impl Timespec {
    /// The host's `CLOCK_REALTIME`.
    pub fn now() -> Self {
        let t =
            nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME).unwrap_or(nix::sys::time::TimeSpec::new(0, 0));
        Timespec { sec: t.tv_sec(), nsec: t.tv_nsec() as u32 }
    }
}

/// Attributes of an inode, as statx(2) reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    pub dev: u64,
    pub ino: u64,
    /// File type (`S_IFMT`) and permission bits.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    pub blksize: u32,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub atime: Timespec,
    pub mtime: Timespec,
    pub ctime: Timespec,
    pub btime: Timespec,
}

impl Attr {
    pub fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
    pub fn is_dir(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }
    pub fn is_file(&self) -> bool {
        self.file_type() == libc::S_IFREG
    }
    pub fn is_symlink(&self) -> bool {
        self.file_type() == libc::S_IFLNK
    }
}

/// The attributes that permission checks use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Perm {
    /// File type and permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Attributes to change; `None` leaves one as it is. The VFS has checked permissions and cleared set-id bits.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits only (07777).
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<Timespec>,
    pub mtime: Option<Timespec>,
}

/// The offset passed to `read` and `write` of files that have none, or have their own ([`FileOps::own_offset`]).
pub const NO_OFFSET: u64 = u64::MAX;

/// The kind of object for `create`. The umask has been applied to `mode`.
#[derive(Clone, Debug)]
pub enum NewNode<'a> {
    File,
    Dir,
    Symlink(&'a [u8]),
    Fifo,
    Socket,
    Char(u64),
    Block(u64),
}

/// One directory entry given to a [`DirSink`].
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    pub name: &'a [u8],
    pub ino: u64,
    /// `DT_*`.
    pub kind: u8,
    /// Directory offset of the *next* entry (`d_off`, accepted by `lseek`).
    pub next: u64,
}

/// Receives directory entries; returns false when full (that entry was not taken).
pub type DirSink<'a> = dyn FnMut(DirEntry<'_>) -> bool + 'a;

/// `statfs` numbers, as the Gofer reports them. `frsize` 0 means the same as `bsize`; the mount adds `flags`.
pub use protocol::StatFs;

bitflags::bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RenameFlags: u32 {
        const NOREPLACE = 1;
        const EXCHANGE = 2;
        const WHITEOUT = 4;
    }
}

/// The destination of a rename.
pub struct RenameTarget<'a> {
    pub dir: &'a Arc<dyn Inode>,
    pub name: &'a [u8],
    /// The object that has the name now.
    pub replaced: Option<&'a Arc<dyn Inode>>,
}

/// A file-system object. Names are single components, never empty, `.` or `..`. Permission checks, mount crossing,
/// read-only mounts and the directory tree are the VFS's task. Implementations have their own locks (leaf level). Each
/// default returns the errno that Linux gives when a file system lacks the operation.
pub trait Inode: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn attr(&self) -> Result<Attr>;
    /// Mode and owner, which every step of a walk needs: overridden where that is cheaper than `attr`.
    fn perm(&self) -> Result<Perm> {
        self.attr().map(|a| Perm { mode: a.mode, uid: a.uid, gid: a.gid })
    }
    /// The access control list. Checks for all but the owner ask for it, so the answer "none" must be cheap.
    fn acl(&self) -> Result<Option<Arc<Acl>>> {
        Ok(None)
    }
    /// The initial list of objects created in this directory. `None` where the host applies it.
    fn default_acl(&self) -> Result<Option<Acl>> {
        Ok(None)
    }
    fn set_attr(&self, _set: &SetAttr) -> Result<()> {
        Err(Errno::EPERM)
    }
    /// Announces lookups of `names`, one below the other, starting here; with `open`, a regular file at the end will be
    /// opened for reading. A file system with slow lookups may fetch them all at once and cache the results for the
    /// lookups to come.
    fn prefetch(&self, _names: &[&[u8]], _open: bool) {}
    fn lookup(&self, _name: &[u8]) -> Result<Arc<dyn Inode>> {
        Err(Errno::ENOTDIR)
    }
    fn create(&self, _name: &[u8], _node: NewNode<'_>, _mode: u32, _uid: u32, _gid: u32) -> Result<Arc<dyn Inode>> {
        Err(Errno::EPERM)
    }
    /// A regular file without a name (`O_TMPFILE`).
    fn tmpfile(&self, _mode: u32, _uid: u32, _gid: u32, _linkable: bool) -> Result<Arc<dyn Inode>> {
        Err(Errno::EOPNOTSUPP)
    }
    fn link(&self, _name: &[u8], _target: &Arc<dyn Inode>) -> Result<()> {
        Err(Errno::EPERM)
    }
    fn unlink(&self, _name: &[u8], _child: &Arc<dyn Inode>) -> Result<()> {
        Err(Errno::EPERM)
    }
    fn rmdir(&self, _name: &[u8], _child: &Arc<dyn Inode>) -> Result<()> {
        Err(Errno::EPERM)
    }
    /// `moved` is the object named `name`; [`RenameTarget`] names the destination.
    fn rename(&self, _name: &[u8], _moved: &Arc<dyn Inode>, _to: &RenameTarget<'_>, _flags: RenameFlags) -> Result<()> {
        Err(Errno::EPERM)
    }
    /// The target of a symbolic link.
    fn readlink(&self) -> Result<Vec<u8>> {
        Err(Errno::EINVAL)
    }
    /// The target of a "magic" link of procfs (`/proc/self/fd/N`, `exe`, `cwd`), which is a path object rather than a
    /// text.
    fn follow_magic(&self, _cred: &Cred) -> Option<Result<super::vfs::Path>> {
        None
    }
    /// The text shown in place of a path for an object of a kind with names of its own (`pipe:[123]`,
    /// `net:[4026531840]`).
    fn own_name(&self) -> Option<Vec<u8>> {
        None
    }
    /// Opens the object; `flags` are `O_*` without creation flags. The VFS truncates through `set_attr`.
    fn open(self: Arc<Self>, flags: i32) -> Result<Box<dyn FileOps>>;
    fn statfs(&self) -> Result<StatFs>;
    fn get_xattr(&self, _name: &[u8]) -> Result<Vec<u8>> {
        Err(Errno::ENOTSUP)
    }
    /// `flags`: `XATTR_CREATE`, `XATTR_REPLACE`.
    fn set_xattr(&self, _name: &[u8], _value: &[u8], _flags: i32) -> Result<()> {
        Err(Errno::ENOTSUP)
    }
    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }
    fn remove_xattr(&self, _name: &[u8]) -> Result<()> {
        Err(Errno::ENOTSUP)
    }
    /// Removes `security.capability` after a change of content or owner. It is called for each change, so it must be
    /// cheap when there is nothing to remove. Where the host makes the change, the host removes it.
    fn drop_caps(&self) {}
    /// True if names and attributes can change without the VFS (procfs, shared Gofer trees): the dentry cache calls
    /// `lookup` every time.
    fn volatile(&self) -> bool {
        false
    }
    /// `NOSUID` and `NOEXEC` restrictions of the host mount that the file is on, in addition to the guest mount's.
    fn limits(&self) -> super::vfs::MountFlags {
        super::vfs::MountFlags::empty()
    }
    /// True once the name has come to stand for another object without the VFS: the name is looked up again. Called
    /// only after `dentry::something_is_gone`.
    fn gone(&self) -> bool {
        false
    }
    /// State of other subsystems attached to this inode (bound AF_UNIX socket, FIFO, file locks, inotify).
    fn extra(&self) -> Option<&super::file::InodeExtra> {
        None
    }
}
