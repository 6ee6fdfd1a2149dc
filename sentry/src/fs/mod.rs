//! Files: the VFS and the file systems under it.
//!
//! * [`Inode`]: a file-system object. Each file system implements it (tmpfs, gofer, overlay, proc, dev…).
//! * [`FileOps`]: what an *open* object can do; made by [`Inode::open`], or by a system call (pipe, socket, eventfd…).
//! * [`File`]: the open file description: a `FileOps` with its status flags, offset and path.
//! * [`vfs`]: mounts, dentries, path resolution. `fdtable` (in `kernel`) holds `File`s.
//!
//! All of it is synchronous. An operation that cannot go on answers `EAGAIN`; the caller ([`crate::syscalls::io`])
//! waits on [`FileOps::wait_queue`] when the file is in blocking mode, so no file system ever waits by itself.

pub mod acl;
pub mod anon;
pub mod cgroupfs;
pub mod deny;
pub mod dev;
pub mod dir;
pub mod dnotify;
pub mod epoll;
pub mod eventfd;
pub mod fasync;
pub mod file;
pub mod fscontext;
pub mod fstype;
pub mod gofer;
pub mod hostfile;
pub mod inotify;
pub mod lease;
pub mod lock;
pub mod mqueuefs;
pub mod nsfs;
pub mod overlay;
pub mod pipe;
pub mod proc;
pub mod pseudo;
pub mod ring;
pub mod setup;
pub mod signalfd;
pub mod sys;
pub mod timerfd;
pub mod tmpfs;
pub mod tty;
pub mod types;
pub mod vfs;

pub use dir::DirFile;
pub use file::{File, FileOps, InodeExtra, MapSource, Noop};
pub use types::*;
