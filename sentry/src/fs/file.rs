//! Open file descriptions.

use super::types::*;
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::wait::WaitQueue;
use crate::kernel::Task;
use crate::mm::io::{Dst, Src};
use parking_lot::Mutex;
use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

/// State attached to an inode of any file system, keyed by type: a bound AF_UNIX socket, the pipe of a FIFO, file
/// locks.
#[derive(Default)]
pub struct InodeExtra {
    slots: Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
    /// Open descriptions, and those open for writing.
    opens: AtomicU32,
    writers: AtomicU32,
}

impl std::fmt::Debug for InodeExtra {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InodeExtra")
    }
}

impl InodeExtra {
    pub fn get<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.slots.lock().iter().find_map(|s| s.clone().downcast::<T>().ok())
    }
    pub fn get_or_insert<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut slots = self.slots.lock();
        if let Some(t) = slots.iter().find_map(|s| s.clone().downcast::<T>().ok()) {
            return t;
        }
        let t = Arc::new(make());
        slots.push(t.clone());
        t
    }
    /// The number of open descriptions, and of those open for writing.
    pub fn opens(&self) -> (u32, u32) {
        (self.opens.load(Ordering::Relaxed), self.writers.load(Ordering::Relaxed))
    }
    pub fn clear(&self) {
        // The values are dropped without the lock, since that may take long.
        let old = std::mem::take(&mut *self.slots.lock());
        drop(old);
    }
    pub fn remove<T: Any + Send + Sync>(&self) {
        let mut gone = Vec::new();
        self.slots.lock().retain(|s| {
            let goes = s.is::<T>();
            gone.extend(goes.then(|| s.clone()));
            !goes
        });
        drop(gone);
    }
}

/// The backing of a file mapping.
#[derive(Clone, Debug)]
pub enum MapSource {
    /// Anonymous memory (`/dev/zero`).
    Anon,
    /// A host descriptor; offsets are the same as in the file. Its access mode is at most that of the open file.
    Host(Arc<OwnedFd>),
}

/// The operations of an open object. None blocks: `EAGAIN` means "wait on `wait_queue` for POLLIN or POLLOUT". `offset`
/// is meaningful only for seekable files.
pub trait FileOps: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    /// Reads at `offset` into `dst`; returns the count (0: end of file).
    fn read(&self, _file: &File, _dst: &mut Dst<'_>, _offset: u64) -> SysResult<usize> {
        Err(Errno::EINVAL.into())
    }
    /// Writes at `offset`. With `O_APPEND` the implementation writes at the end under its own lock. Returns the count
    /// and the position after the write.
    fn write(&self, _file: &File, _src: &mut Src<'_>, _offset: u64) -> SysResult<(usize, u64)> {
        Err(Errno::EINVAL.into())
    }
    /// True for files with an offset (`lseek`, `pread`); others return `ESPIPE`.
    fn seekable(&self) -> bool {
        false
    }
    /// True if `read` and `write` use an offset of the object's own; they are passed [`NO_OFFSET`].
    fn own_offset(&self) -> bool {
        false
    }
    /// `lseek`: the new offset. Default: a file of `attr().size` bytes without holes.
    fn seek(&self, file: &File, offset: i64, whence: i32, current: u64) -> Result<u64> {
        file.default_seek(offset, whence, current)
    }
    /// The `POLL*` bits that are ready now. Default: always readable and writable.
    fn poll(&self, _file: &File) -> PollEvents {
        PollEvents::READABLE | PollEvents::WRITABLE
    }
    /// True if a write that fails with `EPIPE` raises SIGPIPE (pipes, stream sockets).
    fn sigpipe(&self) -> bool {
        true
    }
    /// The timeout of a blocking read or write, in ns (`SO_RCVTIMEO`, `SO_SNDTIMEO`).
    fn timeout(&self, _write: bool) -> Option<u64> {
        None
    }
    /// The queue that is woken when readiness changes, if it can change.
    fn wait_queue(&self) -> Option<&WaitQueue> {
        None
    }
    fn ioctl(&self, _file: &File, _task: &Task, _cmd: u32, _arg: u64) -> SysResult<u64> {
        Err(Errno::ENOTTY.into())
    }
    /// Whether requests may take long: `EAGAIN` means "wait on `wait_queue`", and [`FileOps::ioctl`] may block the host
    /// thread.
    fn ioctl_waits(&self) -> bool {
        false
    }
    fn map(&self, _file: &File, _write_shared: bool) -> Result<MapSource> {
        Err(Errno::ENODEV)
    }
    /// The leading bytes of a private mapping of `len` bytes at `offset`, for a small file of an exclusive tree whose
    /// content is cached: copying them is cheaper than passing a descriptor. `None` if a part of the mapping lies
    /// beyond the file's last page.
    fn copied(&self, _offset: u64, _len: u64) -> Option<Vec<u8>> {
        None
    }
    /// Directory entries from offset `pos`.
    fn readdir(&self, _file: &File, _pos: u64, _sink: &mut DirSink<'_>) -> Result<()> {
        Err(Errno::ENOTDIR)
    }
    fn fsync(&self, _data_only: bool) -> Result<()> {
        Err(Errno::EINVAL)
    }
    fn fallocate(&self, _file: &File, _mode: i32, _offset: u64, _len: u64) -> Result<()> {
        Err(Errno::ENODEV)
    }
    /// Attributes of an object without an inode in a mounted file system (pipe, socket, anon_inode).
    fn attr(&self) -> Result<Attr> {
        Err(Errno::EBADF)
    }
    fn set_attr(&self, _set: &SetAttr) -> Result<()> {
        Err(Errno::EINVAL)
    }
    /// The link text in `/proc/self/fd` of an object without a path, such as `pipe:[123]`.
    fn anon_name(&self) -> String {
        String::from("anon_inode:[unknown]")
    }
    /// Whether an object without a path can be reopened through its link in `/proc`. Linux refuses that for sockets and
    /// for objects in anon_inodefs (`ENXIO`).
    fn reopens(&self) -> bool {
        false
    }
    /// Appends the lines in `/proc/pid/fdinfo/N` for this kind of object.
    fn fdinfo(&self, _out: &mut Vec<u8>) {}
    /// Called when a descriptor table closes a descriptor (Linux's `flush`), before the last reference goes.
    fn on_close(&self, _file: &File, _task: &Task) {}
    /// Called when `fcntl(F_SETFL)` changes the status flags.
    fn set_flags(&self, _flags: i32) -> Result<()> {
        Ok(())
    }
}

/// An `O_PATH` description: it only refers to a path.
pub struct Noop;
impl FileOps for Noop {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _: &File, _: &mut Dst<'_>, _: u64) -> SysResult<usize> {
        Err(Errno::EBADF.into())
    }
}

/// An open file description (open(2)): shared by duplicated descriptors and by `fork`.
pub struct File {
    pub ops: Box<dyn FileOps>,
    flags: AtomicI32,
    /// The file offset. A `read` or `write` that uses it holds the lock throughout, like Linux's `f_pos_lock`.
    pub offset: Mutex<u64>,
    /// The path of the open, for files with a name.
    pub path: Option<super::vfs::Path>,
    /// The recipient of signals about the file.
    pub owner: Mutex<super::fasync::Owner>,
    /// Set with `O_ASYNC`.
    pub async_watch: Mutex<Option<Arc<super::fasync::AsyncWatch>>>,
    /// It may hold file locks, a lease or a directory mark; all end with the description.
    pub has_locks: std::sync::atomic::AtomicBool,
    /// The epoll items that watch it; they end with the description.
    pub watchers: Mutex<Vec<Arc<super::epoll::Item>>>,
    /// Excludes execution of the file while it is open for writing.
    _writer: Option<super::deny::WriteAccess>,
}

/// Open file descriptions of the sandbox, and their limit (`/proc/sys/fs/file-max`): each takes memory of the Sentry.
static COUNT: AtomicU64 = AtomicU64::new(0);
pub const FILE_MAX: u64 = 256 << 10;

/// The number of open descriptions.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Checks that another description may get a descriptor. A reserve is left for `CAP_SYS_ADMIN`.
pub fn admit(task: &Task) -> Result<()> {
    let spare = || if task.cred().has(crate::kernel::cred::CAP_SYS_ADMIN) { FILE_MAX / 16 } else { 0 };
    match count() > FILE_MAX && count() > FILE_MAX + spare() {
        true => Err(Errno::ENFILE),
        false => Ok(()),
    }
}

/// Charge for a connection that has not been accepted: it counts as a description until accept(2) makes it one.
pub struct Unaccepted(());

impl Unaccepted {
    /// Charges one more, within the limit.
    pub fn new() -> Option<Unaccepted> {
        let fits = |n: u64| (n < FILE_MAX).then_some(n + 1);
        COUNT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok().map(|_| Unaccepted(()))
    }
}

impl Drop for Unaccepted {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for File {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
        super::inotify::closed(self);
        super::fasync::release(self);
        if let Some(extra) = self.counted() {
            extra.opens.fetch_sub(1, Ordering::Relaxed);
            extra.writers.fetch_sub(u32::from(self.writable()), Ordering::Relaxed);
        }
        if *self.has_locks.get_mut() {
            super::lock::release_file(self);
            super::lease::release(self);
            super::dnotify::release(self);
        }
        for item in std::mem::take(self.watchers.get_mut()) {
            item.file_gone(&*self.ops);
        }
    }
}

impl File {
    pub fn new(ops: Box<dyn FileOps>, flags: i32, path: Option<super::vfs::Path>) -> Arc<File> {
        Self::with_writer(ops, flags, path, None)
    }
    /// Like [`File::new`]; `_writer` counts the file as being written to.
    pub fn with_writer(
        ops: Box<dyn FileOps>,
        flags: i32,
        path: Option<super::vfs::Path>,
        _writer: Option<super::deny::WriteAccess>,
    ) -> Arc<File> {
        COUNT.fetch_add(1, Ordering::Relaxed);
        let file = File {
            ops,
            flags: AtomicI32::new(flags),
            offset: Mutex::new(0),
            path,
            owner: Mutex::default(),
            async_watch: Mutex::default(),
            has_locks: Default::default(),
            watchers: Mutex::default(),
            _writer,
        };
        if let Some(extra) = file.counted() {
            extra.opens.fetch_add(1, Ordering::Relaxed);
            extra.writers.fetch_add(u32::from(file.writable()), Ordering::Relaxed);
        }
        Arc::new(file)
    }
    /// The inode state that counts this description.
    fn counted(&self) -> Option<&InodeExtra> {
        self.path.as_ref().filter(|_| self.flags() & libc::O_PATH == 0)?.inode().extra()
    }
    /// `O_*` access mode and status flags, without creation flags and `O_CLOEXEC`.
    pub fn flags(&self) -> i32 {
        self.flags.load(Ordering::Relaxed)
    }
    pub fn set_flags(&self, flags: i32) {
        self.flags.store(flags, Ordering::Relaxed);
    }
    pub fn nonblocking(&self) -> bool {
        self.flags() & libc::O_NONBLOCK != 0
    }
    pub fn readable(&self) -> bool {
        let f = self.flags();
        f & libc::O_PATH == 0 && matches!(f & libc::O_ACCMODE, libc::O_RDONLY | libc::O_RDWR)
    }
    pub fn writable(&self) -> bool {
        let f = self.flags();
        f & libc::O_PATH == 0 && matches!(f & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR)
    }
    pub fn poll(&self) -> PollEvents {
        self.ops.poll(self)
    }
    pub fn attr(&self) -> Result<Attr> {
        match &self.path {
            Some(p) => p.inode().attr(),
            None => self.ops.attr(),
        }
    }
    /// The inode, for a file of a tmpfs.
    pub fn tmp(&self) -> Option<&super::tmpfs::TmpInode> {
        self.path.as_ref()?.inode().as_any().downcast_ref()
    }
    /// Whether reading updates `atime`: not with `O_NOATIME` or on a `noatime` mount.
    pub fn updates_atime(&self) -> bool {
        use super::vfs::MountFlags;
        self.flags() & libc::O_NOATIME == 0
            && self
                .path
                .as_ref()
                .is_none_or(|p| !p.mount().flags().intersects(MountFlags::NOATIME | MountFlags::RDONLY))
    }
    /// lseek(2) on a file of `attr().size` bytes.
    pub fn default_seek(&self, offset: i64, whence: i32, current: u64) -> Result<u64> {
        let size = || -> Result<i64> { i64::try_from(self.attr()?.size).map_err(|_| Errno::EOVERFLOW) };
        let base = match whence {
            libc::SEEK_SET => 0,
            libc::SEEK_CUR => current as i64,
            libc::SEEK_END => size()?,
            libc::SEEK_DATA => {
                let s = size()?;
                return if offset < 0 || offset >= s { Err(Errno::ENXIO) } else { Ok(offset as u64) };
            }
            libc::SEEK_HOLE => {
                let s = size()?;
                return if offset < 0 || offset >= s { Err(Errno::ENXIO) } else { Ok(s as u64) };
            }
            _ => return Err(Errno::EINVAL),
        };
        let at = base.checked_add(offset).ok_or(Errno::EOVERFLOW)?;
        u64::try_from(at).map_err(|_| Errno::EINVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unaccepted_connections_count_as_descriptions() {
        let waiting: Vec<_> = (0..=FILE_MAX).map_while(|_| Unaccepted::new()).collect();
        assert!(waiting.len() as u64 <= FILE_MAX && count() >= FILE_MAX);
        assert!(Unaccepted::new().is_none());
        drop(waiting);
        assert!(Unaccepted::new().is_some());
    }
}
