//! Open files inherited from the host: the guest's standard streams.
//!
//! A regular file is read and written at the *host's* offset, which other descriptors of the guest (`2>&1`) and host
//! programs share. Anything else (pipe, socket, terminal, device) is accessed only when `poll` reports that the access
//! will not block, in pieces that a pipe takes at once (`PIPE_BUF`). The descriptor may be in blocking mode, and the
//! Sentry must not change that for the other holders; the command opens terminals anew in non-blocking mode instead.

use super::file::{File, FileOps, MapSource};
use super::types::*;
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::wait::WaitQueue;
use crate::mm::io::{Dst, Src};
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use parking_lot::Mutex;
use platform::executor::{aside, WatchHandle};
use platform::Executor;
use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Largest write that does not block after `poll` has reported POLLOUT.
const PIPE_BUF: usize = 4096;
const CHUNK: usize = 64 * 1024;

pub struct HostFile {
    fd: Arc<OwnedFd>,
    /// `S_IFMT` bits.
    kind: u32,
    /// Writes never block: a regular file, or `O_NONBLOCK`, which the command sets on the terminals it opens.
    never_waits: bool,
    /// The guest opened it again: it has an offset of its own instead of the host's.
    again: bool,
    queue: Arc<WaitQueue>,
    _watch: Option<WatchHandle>,
    /// Held from `poll` to the end of the access, so that the result of `poll` stays valid.
    reading: Mutex<()>,
    writing: Mutex<()>,
}

fn attr_of(fd: &OwnedFd) -> Result<Attr> {
    let s = nix::sys::stat::fstat(fd)?;
    let t = |sec: i64, nsec: i64| Timespec { sec, nsec: nsec as u32 };
    Ok(Attr {
        dev: s.st_dev,
        ino: s.st_ino,
        mode: s.st_mode,
        nlink: s.st_nlink as u32,
        uid: s.st_uid,
        gid: s.st_gid,
        rdev: s.st_rdev,
        size: s.st_size as u64,
        blksize: s.st_blksize as u32,
        blocks: s.st_blocks as u64,
        atime: t(s.st_atime, s.st_atime_nsec),
        mtime: t(s.st_mtime, s.st_mtime_nsec),
        ctime: t(s.st_ctime, s.st_ctime_nsec),
        btime: Timespec::default(),
    })
}

impl HostFile {
    pub fn new(executor: &Arc<Executor>, fd: OwnedFd) -> Result<HostFile> {
        let kind = attr_of(&fd)?.file_type();
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
        let never_waits = kind == libc::S_IFREG || flags.contains(OFlag::O_NONBLOCK);
        let fd = Arc::new(fd);
        let queue = Arc::new(WaitQueue::new());
        let watch = (kind != libc::S_IFREG).then(|| {
            let q = queue.clone();
            let events = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP) as u32;
            executor.watch(fd.clone(), events, Arc::new(move |ready| q.wake(PollEvents::from_raw(ready))))
        });
        let (reading, writing) = (Mutex::new(()), Mutex::new(()));
        Ok(HostFile { fd, kind, never_waits, again: false, queue, _watch: watch, reading, writing })
    }

    /// Creates the guest's description, with the access mode of the host's.
    pub fn open(executor: &Arc<Executor>, fd: OwnedFd) -> Result<Arc<File>> {
        let flags = fcntl(&fd, FcntlArg::F_GETFL)? & (libc::O_ACCMODE | libc::O_APPEND);
        Ok(File::new(Box::new(HostFile::new(executor, fd)?), flags, None))
    }

    /// The same regular file with an offset of its own, for an open of `/dev/stdin`.
    pub fn reopened(&self) -> Option<HostFile> {
        self.regular().then(|| HostFile {
            fd: self.fd.clone(),
            kind: self.kind,
            never_waits: true,
            again: true,
            queue: Arc::default(),
            _watch: None,
            reading: Mutex::new(()),
            writing: Mutex::new(()),
        })
    }

    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }
    /// `S_IFMT` bits.
    pub fn kind(&self) -> u32 {
        self.kind
    }
    pub fn queue(&self) -> &WaitQueue {
        &self.queue
    }
    pub fn ready(&self) -> PollEvents {
        let all = libc::POLLIN | libc::POLLOUT | libc::POLLPRI | libc::POLLRDHUP;
        let mut ready = PollEvents::from_raw(platform::host::poll_now(self.fd.as_fd(), all) as u32 & 0xffff);
        // epoll and select use these synonyms.
        ready.set(PollEvents::RDNORM, ready.contains(PollEvents::IN));
        ready.set(PollEvents::WRNORM, ready.contains(PollEvents::OUT));
        ready
    }
    /// True for a terminal that the command could not open anew. A write to it may block although `poll` reported
    /// POLLOUT: a host program may write to it too, and the terminal may take less than it is given.
    fn may_block(&self) -> bool {
        self.kind == libc::S_IFCHR && !self.never_waits
    }
    fn write_locked(&self, file: &File, src: &mut Src<'_>, offset: u64) -> SysResult<(usize, u64)> {
        let append = src.append == Some(true) || (self.again && src.appends(file.flags()));
        if self.regular() && append {
            // The host's descriptor need not be in append mode. Writes by host programs are not excluded.
            let end = attr_of(&self.fd)?.size;
            let n = super::gofer::write_fd(&self.fd, src, end)?;
            return Ok((n, end.saturating_add(n as u64)));
        }
        if self.regular() && offset != NO_OFFSET {
            let n = super::gofer::write_fd(&self.fd, src, offset)?;
            return Ok((n, offset.saturating_add(n as u64)));
        }
        let max = if self.regular() { CHUNK } else { PIPE_BUF };
        let mut buf = vec![0u8; src.remaining().min(max)];
        let mut done = 0usize;
        while src.remaining() > 0 {
            if !self.regular() && !self.ready().intersects(PollEvents::WRITE_WAIT) {
                break;
            }
            let n = match src.take(&mut buf) {
                Ok(n) => n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e.into()),
            };
            let written = match self.never_waits {
                true => retry(|| nix::unistd::write(&*self.fd, &buf[..n])),
                false => retry(|| platform::host::write_nowait(self.fd.as_fd(), &buf[..n])),
            };
            match written {
                Ok(k) => {
                    done += k;
                    if k < n {
                        src.give_back(n - k);
                        break;
                    }
                }
                Err(e) => {
                    src.give_back(n);
                    if done > 0 {
                        break;
                    }
                    return Err(e.into());
                }
            }
        }
        if done == 0 && !buf.is_empty() {
            return Err(Errno::EAGAIN.into());
        }
        Ok((done, NO_OFFSET))
    }
    fn regular(&self) -> bool {
        self.kind == libc::S_IFREG
    }
}

fn retry<T>(mut f: impl FnMut() -> nix::Result<T>) -> Result<T> {
    loop {
        match f() {
            Err(Errno::EINTR) => {}
            r => return r,
        }
    }
}

impl FileOps for HostFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _file: &File, dst: &mut Dst<'_>, offset: u64) -> SysResult<usize> {
        let _turn = self.reading.lock();
        if dst.remaining() == 0 {
            return Ok(0);
        }
        if self.regular() && offset != NO_OFFSET {
            return Ok(super::gofer::read_fd(&self.fd, dst, offset)?);
        }
        if !self.regular() && !self.ready().intersects(PollEvents::READ_WAIT) {
            return Err(Errno::EAGAIN.into());
        }
        Ok(dst.fill(CHUNK, &mut |buf| retry(|| nix::unistd::read(&*self.fd, buf)))?)
    }
    fn write(&self, file: &File, src: &mut Src<'_>, offset: u64) -> SysResult<(usize, u64)> {
        if !self.may_block() {
            let _turn = self.writing.lock();
            return self.write_locked(file, src, offset);
        }
        let Some(turn) = self.writing.try_lock() else { return Err(Errno::EAGAIN.into()) };
        let r = aside(|| self.write_locked(file, src, offset));
        drop(turn);
        self.queue.wake(PollEvents::WRITE_WAIT);
        r
    }
    fn seekable(&self) -> bool {
        self.regular()
    }
    fn own_offset(&self) -> bool {
        !self.again
    }
    fn seek(&self, file: &File, offset: i64, whence: i32, current: u64) -> Result<u64> {
        use nix::unistd::{lseek, Whence};
        if self.again && !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return file.default_seek(offset, whence, current);
        }
        let how = match whence {
            libc::SEEK_SET => Whence::SeekSet,
            libc::SEEK_CUR => Whence::SeekCur,
            libc::SEEK_END => Whence::SeekEnd,
            libc::SEEK_DATA => Whence::SeekData,
            libc::SEEK_HOLE => Whence::SeekHole,
            _ => return Err(Errno::EINVAL),
        };
        if !self.again {
            return Ok(lseek(&*self.fd, offset, how)? as u64);
        }
        // The guest has its own offset here, so the host's is restored.
        let before = lseek(&*self.fd, 0, Whence::SeekCur)?;
        let found = lseek(&*self.fd, offset, how);
        lseek(&*self.fd, before, Whence::SeekSet)?;
        Ok(found? as u64)
    }
    fn poll(&self, _file: &File) -> PollEvents {
        if self.regular() {
            return PollEvents::READABLE | PollEvents::WRITABLE;
        }
        self.ready()
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        (!self.regular()).then_some(&*self.queue)
    }
    fn map(&self, file: &File, write_shared: bool) -> Result<MapSource> {
        if !self.regular() || (write_shared && !file.writable()) {
            return Err(Errno::ENODEV);
        }
        Ok(MapSource::Host(self.fd.clone()))
    }
    fn fsync(&self, data_only: bool) -> Result<()> {
        if !self.regular() {
            return Err(Errno::EINVAL);
        }
        retry(|| if data_only { nix::unistd::fdatasync(&*self.fd) } else { nix::unistd::fsync(&*self.fd) })
    }
    fn attr(&self) -> Result<Attr> {
        attr_of(&self.fd)
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        match set.size {
            Some(size) if self.regular() => {
                let size = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
                retry(|| nix::unistd::ftruncate(&*self.fd, size))
            }
            Some(_) => Err(Errno::EINVAL),
            None => Err(Errno::EPERM),
        }
    }
    fn reopens(&self) -> bool {
        self.kind != libc::S_IFSOCK
    }
    fn anon_name(&self) -> String {
        let ino = attr_of(&self.fd).map_or(0, |a| a.ino);
        match self.kind {
            libc::S_IFIFO => format!("pipe:[{ino}]"),
            libc::S_IFSOCK => format!("socket:[{ino}]"),
            libc::S_IFCHR if attr_of(&self.fd).is_ok_and(|a| a.rdev == libc::makedev(1, 3)) => "/dev/null".into(),
            _ => format!("host:[{ino}]"),
        }
    }
}
