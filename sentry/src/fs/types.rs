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
    /// Host `CLOCK_REALTIME`.
    pub fn now() -> Self {
        let t =
            nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME).unwrap_or(nix::sys::time::TimeSpec::new(0, 0));
        Timespec { sec: t.tv_sec(), nsec: t.tv_nsec() as u32 }
    }
}

/// Attributes of an inode, as `statx` gives them.
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

/// What permission checks look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Perm {
    /// File type and permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What `set_attr` changes; `None` leaves as it is. The VFS has checked permissions and cleared set-id bits.
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

/// Offset given to `read` and `write` of files that have none, or keep their own ([`FileOps::own_offset`]).
pub const NO_OFFSET: u64 = u64::MAX;

/// What `create` makes in a directory. `mode` has the umask applied already.
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
    /// Directory offset of the *next* entry (what `d_off` says and `lseek` accepts).
    pub next: u64,
}

/// Takes directory entries; returns false when full (that entry was not taken).
pub type DirSink<'a> = dyn FnMut(DirEntry<'_>) -> bool + 'a;

/// `statfs` numbers, as the Gofer tells them. A file system that says no `frsize` means that it is its `bsize`; `flags` are the mount's to tell.
pub use protocol::StatFs;

bitflags::bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RenameFlags: u32 {
        const NOREPLACE = 1;
        const EXCHANGE = 2;
        const WHITEOUT = 4;
    }
}

/// Where a rename leads.
pub struct RenameTarget<'a> {
    pub dir: &'a Arc<dyn Inode>,
    pub name: &'a [u8],
    /// What has the name now.
    pub replaced: Option<&'a Arc<dyn Inode>>,
}

/// A file-system object. Names are single components, never empty, `.` or `..`; permission checks, mount crossing,
/// read-only mounts and the directory tree are the VFS's. Implementations keep their own locks (leaf level).
/// Every default answers with the errno that Linux gives when a file system lacks the operation.
pub trait Inode: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn attr(&self) -> Result<Attr>;
    /// Mode and owner, which every walk asks for: to be overridden where that is cheaper than `attr`.
    fn perm(&self) -> Result<Perm> {
        self.attr().map(|a| Perm { mode: a.mode, uid: a.uid, gid: a.gid })
    }
    /// The access control list, which every check asks for that the owner does not make: it must be cheap to tell that there is none.
    fn acl(&self) -> Result<Option<Arc<Acl>>> {
        Ok(None)
    }
    /// The list that what is made in this directory starts with. Where the host makes it, the host sees to that.
    fn default_acl(&self) -> Result<Option<Acl>> {
        Ok(None)
    }
    fn set_attr(&self, _set: &SetAttr) -> Result<()> {
        Err(Errno::EPERM)
    }
    /// A walk is about to look up `names`, one below the other, starting here; with `open`, a regular file at the end will be opened for
    /// reading. A file system with slow lookups may fetch them all at once and keep what it got for the lookups to come.
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
    /// `moved` is what `name` stands for, `replaced` what `new_name` does.
    fn rename(&self, _name: &[u8], _moved: &Arc<dyn Inode>, _to: &RenameTarget<'_>, _flags: RenameFlags) -> Result<()> {
        Err(Errno::EPERM)
    }
    /// Target of a symbolic link.
    fn readlink(&self) -> Result<Vec<u8>> {
        Err(Errno::EINVAL)
    }
    /// A "magic" link of procfs (`/proc/self/fd/N`, `exe`, `cwd`): resolves to a place instead of a text.
    fn follow_magic(&self, _cred: &Cred) -> Option<Result<super::vfs::Path>> {
        None
    }
    /// What stands for the path of an object that has a name of its own kind instead (`pipe:[123]`, `net:[4026531840]`).
    fn own_name(&self) -> Option<Vec<u8>> {
        None
    }
    /// Opens the object; `flags` are `O_*` as given (creation flags removed; truncation is done by the VFS through `set_attr`).
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
    /// Takes `security.capability` away, as whoever changes a file's content or owner does; this happens after that change, for
    /// each of them, so it costs next to nothing where there is none. Where the host makes the change, the host does it.
    fn drop_caps(&self) {}
    /// True when names and attributes can change without the VFS's doing (procfs, shared gofer trees): the dentry
    /// cache asks `lookup` again.
    fn volatile(&self) -> bool {
        false
    }
    /// What is forbidden of `NOSUID` and `NOEXEC` beside what the mount says: the file is on a mount of the host's that does.
    fn limits(&self) -> super::vfs::MountFlags {
        super::vfs::MountFlags::empty()
    }
    /// True once its name stands for something else, without the VFS's doing: the name is looked up anew. Asked only after
    /// `dentry::something_is_gone`.
    fn gone(&self) -> bool {
        false
    }
    /// State of other parts of the kernel that hangs on this inode (AF_UNIX socket bound here, FIFO, file locks, inotify).
    fn extra(&self) -> Option<&super::file::InodeExtra> {
        None
    }
}
