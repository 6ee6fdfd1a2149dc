//! Safe wrappers around the host calls of the Sentry that `nix` does not offer safely.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::epoll::{Epoll, EpollEvent};
use nix::sys::memfd::{memfd_create, MFdFlags};
use parking_lot::RwLock;

use crate::budget::{self, FileRoom, Use};

/// A host clock, in ns; 0 if the host has no such clock. `id` may be a per-process clock id.
pub fn clock_ns(id: libc::clockid_t) -> u64 {
    clock_gettime(id).map_or(0, |(s, ns)| (s as u64).saturating_mul(1_000_000_000).saturating_add(ns as u64))
}

/// A host clock: seconds and nanoseconds.
pub fn clock_gettime(id: libc::clockid_t) -> Result<(i64, i64), Errno> {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is a live `timespec`, which the call fills in.
    Errno::result(unsafe { libc::clock_gettime(id, &mut ts) })?;
    Ok((ts.tv_sec, ts.tv_nsec))
}

/// Resolution of a host clock: seconds and nanoseconds.
pub fn clock_getres(id: libc::clockid_t) -> Result<(i64, i64), Errno> {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is a live `timespec`, which the call fills in.
    Errno::result(unsafe { libc::clock_getres(id, &mut ts) })?;
    Ok((ts.tv_sec, ts.tv_nsec))
}

/// Fills `buf` with random bytes from the host.
pub fn getrandom(buf: &mut [u8]) {
    let mut done = 0;
    while done < buf.len() {
        let rest = &mut buf[done..];
        // SAFETY: `rest` is writable memory of that length.
        let n = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match n {
            n if n > 0 => done += n as usize,
            _ if Errno::last() == Errno::EINTR => {}
            _ => {
                // All supported hosts have getrandom(2).
                log::error!("getrandom: {}", Errno::last());
                return;
            }
        }
    }
}

/// A random number from the host.
pub fn random_u64() -> u64 {
    let mut b = [0; 8];
    getrandom(&mut b);
    u64::from_ne_bytes(b)
}

/// Waits at most `wait_ns` (`i64::MAX`: without limit). Returns the number of events stored.
pub(crate) fn epoll_wait_ns(epoll: &Epoll, events: &mut [EpollEvent], wait_ns: i64) -> usize {
    let ts = libc::timespec { tv_sec: wait_ns / 1_000_000_000, tv_nsec: wait_ns % 1_000_000_000 };
    let ts_ptr = if wait_ns == i64::MAX { std::ptr::null() } else { &raw const ts };
    // SAFETY: `EpollEvent` is `repr(transparent)` over `epoll_event`, and `events` has room for `len` of them;
    // `ts_ptr` is null or points to `ts`.
    let n = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            epoll.0.as_raw_fd(),
            events.as_mut_ptr(),
            events.len() as libc::c_int,
            ts_ptr,
            std::ptr::null::<libc::sigset_t>(),
            8usize,
        )
    };
    usize::try_from(n).unwrap_or(0)
}

/// `poll` for reading, without waiting.
pub fn readable_now(fd: BorrowedFd<'_>) -> bool {
    let mut p = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `p` is one live `pollfd`.
    unsafe { libc::poll(&mut p, 1, 0) > 0 && p.revents & libc::POLLIN != 0 }
}

/// `poll` for reading, for `timeout_ms` at most.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout_ms: i32) {
    let mut p = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `p` is one live `pollfd`.
    unsafe { libc::poll(&mut p, 1, timeout_ms) };
}

/// Current poll bits (`POLL*`) of a host descriptor, out of `events`.
pub fn poll_now(fd: BorrowedFd<'_>, events: i16) -> i16 {
    let mut p = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: `p` is one live `pollfd`.
    if unsafe { libc::poll(&mut p, 1, 0) } > 0 {
        p.revents
    } else {
        0
    }
}

/// Reads at `offset` into several buffers; with `nowait` (`RWF_NOWAIT`) returns `EAGAIN` instead of waiting for a
/// device.
pub fn preadv2(fd: BorrowedFd<'_>, bufs: &mut [io::IoSliceMut<'_>], offset: i64, nowait: bool) -> Result<usize, Errno> {
    let flags = if nowait { libc::RWF_NOWAIT } else { 0 };
    // SAFETY: `IoSliceMut` has the layout of `iovec`, and its buffers are live exclusive borrows.
    let n =
        unsafe { libc::preadv2(fd.as_raw_fd(), bufs.as_mut_ptr().cast(), bufs.len() as libc::c_int, offset, flags) };
    Errno::result(n).map(|n| n as usize)
}

/// Writes as many bytes as the file takes without blocking; `EAGAIN` if none. A file without `RWF_NOWAIT` (a
/// terminal, a pipe of an older kernel) is checked by `poll`, which for a terminal is right unless it is nearly full.
/// Not for regular files: those may return `EAGAIN` forever.
pub fn write_nowait(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    /// A writable pipe takes this many bytes at once.
    const PIPE_BUF: usize = 4096;
    let iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: `iov` describes one live buffer, which is only read.
    let n = unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const iov, 1, -1, libc::RWF_NOWAIT) };
    match Errno::result(n) {
        Err(Errno::EOPNOTSUPP) => {}
        r => return r.map(|n| n as usize),
    }
    if poll_now(fd, libc::POLLOUT) == 0 {
        return Err(Errno::EAGAIN);
    }
    nix::unistd::write(fd, &bytes[..bytes.len().min(PIPE_BUF)])
}

/// Writes at the end of the file, wherever that is by then, and leaves the descriptor's position behind what was written.
pub fn append(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    let iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: one vector of readable bytes, which the kernel only reads, and which live over the call.
    let n = unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const iov, 1, -1, libc::RWF_APPEND) };
    Errno::result(n).map(|n| n as usize)
}

/// `fallocate` with raw mode bits (`FALLOC_FL_*`).
pub fn fallocate(fd: BorrowedFd<'_>, mode: i32, offset: i64, len: i64) -> Result<(), Errno> {
    // SAFETY: the call takes no pointer.
    Errno::result(unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset, len) }).map(drop)
}

/// User and system processor time of this process (`RUSAGE_SELF`) in ns, and its maximum resident set in KiB.
pub fn rusage_self() -> (u64, u64, u64) {
    let mut r = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `r` is a live `rusage`; all zeroes is a valid value, should the call fail.
    let r = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, r.as_mut_ptr());
        r.assume_init()
    };
    let ns = |t: libc::timeval| t.tv_sec as u64 * 1_000_000_000 + t.tv_usec as u64 * 1000;
    (ns(r.ru_utime), ns(r.ru_stime), r.ru_maxrss as u64)
}

/// Requests that [`ioctl`] passes on, with the size of the memory that they access at the pointer.
const IOCTLS: &[(u64, usize)] = &[
    (libc::TCGETS, 36),
    (libc::TCSETS, 36),
    (libc::TCSETSW, 36),
    (libc::TCSETSF, 36),
    (libc::TIOCGWINSZ, 8),
    (libc::TIOCSWINSZ, 8),
    (libc::FIONREAD, 4),
    (libc::TIOCOUTQ, 4),
    (libc::TIOCGPGRP, 4),
    (libc::TIOCGSID, 4),
];
/// Requests that take a number as argument.
const IOCTLS_BY_VALUE: &[u64] = &[libc::TCFLSH, libc::TCSBRK];

/// Passes on one of a short list of terminal requests by raw number. `buf` is the memory that the pointer refers to.
pub fn ioctl(fd: BorrowedFd<'_>, request: u64, buf: &mut [u8]) -> Result<i32, Errno> {
    let &(_, size) = IOCTLS.iter().find(|(r, _)| *r == request).ok_or(Errno::ENOTTY)?;
    if buf.len() < size {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the kernel accesses at most `size` bytes, and `buf` has them.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, buf.as_mut_ptr()) })
}

/// Passes on one of a short list of terminal requests that take a number as argument.
pub fn ioctl_value(fd: BorrowedFd<'_>, request: u64, value: i32) -> Result<i32, Errno> {
    if !IOCTLS_BY_VALUE.contains(&request) {
        return Err(Errno::ENOTTY);
    }
    // SAFETY: these requests take no pointer.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, value as libc::c_long) })
}

/// Bytes (with the host's overhead) that were sent on a Unix socket and have not been received.
pub fn unread(socket: BorrowedFd<'_>) -> i32 {
    let mut n: libc::c_int = 0;
    // SAFETY: the kernel writes one number. An error counts as 0: that socket no longer exists.
    unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut n) };
    n
}

/// Whether `tid` is a thread of process `pid`.
pub fn is_thread_of(tid: i32, pid: i32) -> bool {
    // SAFETY: the call takes no pointer; signal 0 only checks.
    pid > 0 && tid > 0 && unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, 0) } == 0
}

/// Sends bytes with up to 32 descriptors on a Unix socket.
pub fn send_with_fds(
    socket: BorrowedFd<'_>,
    bufs: &[io::IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
    flags: i32,
) -> Result<usize, Errno> {
    let raw: Vec<i32> = fds.iter().map(|f| f.as_raw_fd()).collect();
    let cmsg = [nix::sys::socket::ControlMessage::ScmRights(&raw)];
    let cmsg = if raw.is_empty() { &cmsg[..0] } else { &cmsg[..] };
    let flags = nix::sys::socket::MsgFlags::from_bits_truncate(flags | libc::MSG_NOSIGNAL);
    nix::sys::socket::sendmsg::<()>(socket.as_raw_fd(), bufs, cmsg, flags, None)
}

/// Receives bytes and descriptors (close-on-exec) from a Unix socket. 0 bytes: the peer has closed.
pub fn recv_with_fds(
    socket: BorrowedFd<'_>,
    bufs: &mut [io::IoSliceMut<'_>],
    flags: i32,
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = nix::cmsg_space!([i32; 32]);
    let flags = nix::sys::socket::MsgFlags::from_bits_truncate(flags | libc::MSG_CMSG_CLOEXEC);
    let msg = nix::sys::socket::recvmsg::<()>(socket.as_raw_fd(), bufs, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for c in msg.cmsgs()? {
        if let nix::sys::socket::ControlMessageOwned::ScmRights(list) = c {
            // SAFETY: the kernel has just created these descriptors for this call; nothing else owns them.
            fds.extend(list.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((msg.bytes, fds))
}

/// A memfd that the Sentry has mapped, too: contents of an in-memory file, which guests may map (`Op::MapFile` with
/// [`SharedFile::fd`]) and change at any moment. Reads and writes are plain copies, without a host call; they may see
/// a guest's change half done, as on Linux. A file that no room is left to map (see [`crate::budget`]) is accessed
/// through its descriptor.
pub struct SharedFile {
    fd: Arc<OwnedFd>,
    /// It may have holes. Those must not be read through the mapping, which would fill them with pages.
    sparse: AtomicBool,
    inner: RwLock<View>,
}

struct View {
    /// Address of the mapping, if any.
    base: Option<NonNull<u8>>,
    /// Bytes mapped (whole pages).
    mapped: usize,
    room: Option<FileRoom>,
    /// Size of the file.
    len: u64,
}

// SAFETY: the pointer is used only under the lock, for raw copies within the mapping, which belongs to no thread.
unsafe impl Send for SharedFile {}
// SAFETY: all access through `&SharedFile` takes the lock, and copies by raw pointers, which tolerate concurrent
// writers.
unsafe impl Sync for SharedFile {}

/// Largest [`SharedFile`].
pub const SHARED_FILE_MAX: u64 = 1 << 40;

impl std::fmt::Debug for SharedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SharedFile").field(&self.fd).finish()
    }
}

impl SharedFile {
    /// Creates an empty file; `ENFILE` if there are too many descriptors for that use.
    pub fn new(what: Use) -> Result<Self, Errno> {
        let fd = memfd_create(c"runsc-file", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let fd = budget::admit(fd, what)?;
        // Prevents further seals. (A guest that maps the file has its descriptor only for a moment.) Only the Sentry
        // shrinks the file: a stub's descriptor would permit it, but a stub's filter does not allow `ftruncate`.
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SEAL))?;
        Ok(SharedFile {
            fd: Arc::new(fd),
            sparse: AtomicBool::new(false),
            inner: RwLock::new(View { base: None, mapped: 0, room: None, len: 0 }),
        })
    }
    /// The descriptor, for `Op::MapFile`.
    pub fn fd(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }
    /// Whether a descriptor from [`Self::fd`] is still in use.
    pub fn fd_is_used(&self) -> bool {
        Arc::strong_count(&self.fd) > 1
    }
    pub fn len(&self) -> u64 {
        self.inner.read().len
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Grows the file (with zeroes) or shrinks it.
    pub fn set_len(&self, len: u64) -> Result<(), Errno> {
        if len > SHARED_FILE_MAX {
            return Err(Errno::EFBIG);
        }
        let mut view = self.inner.write();
        if len > view.len && view.len % crate::PAGE_SIZE != 0 {
            // A guest's mapping may have written beyond the end, in the last page: those bytes must read as zeroes
            // now.
            let (from, end) = (view.len, len.min(view.len.next_multiple_of(crate::PAGE_SIZE)));
            view.zero(&self.fd, from, end)?;
        }
        nix::unistd::ftruncate(&*self.fd, len as i64)?;
        if len > view.len.next_multiple_of(crate::PAGE_SIZE) {
            self.sparse.store(true, Ordering::Relaxed);
        }
        view.len = len;
        view.map(&self.fd, len);
        Ok(())
    }
    /// Copies from `offset`; returns the number of bytes before the end of the file.
    pub fn copy_out(&self, offset: u64, buf: &mut [u8]) -> usize {
        let view = self.inner.read();
        let n = buf.len().min(usize::try_from(view.len.saturating_sub(offset)).unwrap_or(usize::MAX));
        let buf = &mut buf[..n];
        match view.base.filter(|_| !self.sparse.load(Ordering::Relaxed)) {
            // SAFETY: offset + n <= len <= mapped, and the file has that length; raw pointers, since a guest may
            // write meanwhile.
            Some(base) => unsafe {
                std::ptr::copy_nonoverlapping(base.as_ptr().add(offset as usize), buf.as_mut_ptr(), n)
            },
            None => return self.pread(buf, offset),
        }
        n
    }
    /// Reads until `buf` is full or the file ends.
    fn pread(&self, buf: &mut [u8], offset: u64) -> usize {
        let mut done = 0;
        while done < buf.len() {
            match nix::sys::uio::pread(&*self.fd, &mut buf[done..], (offset + done as u64) as i64) {
                Ok(0) => break,
                Ok(k) => done += k,
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        done
    }
    /// Calls `f` with a pointer to the bytes at `offset` and their number: `len` at most, perhaps less if the file is
    /// not mapped. Not called at the end of the file.
    pub(crate) fn with_bytes<R>(&self, offset: u64, len: usize, f: impl FnOnce(*mut u8, usize) -> R) -> Option<R> {
        let view = self.inner.read();
        let n = len.min(usize::try_from(view.len.saturating_sub(offset)).unwrap_or(usize::MAX));
        if n == 0 {
            return None;
        }
        if let Some(base) = view.base {
            // SAFETY: offset + n <= len <= mapped, so the pointer is in bounds. The lock is held while `f` uses it.
            return Some(f(unsafe { base.as_ptr().add(offset as usize) }, n));
        }
        let mut buf = vec![0; n.min(UNMAPPED_CHUNK)];
        let n = self.pread(&mut buf, offset);
        (n > 0).then(|| f(buf.as_mut_ptr(), n))
    }
    /// Lets `f` write bytes at `offset`, as in [`Self::with_bytes`]; `f` returns the number of bytes written.
    pub(crate) fn fill_bytes(
        &self,
        offset: u64,
        len: usize,
        f: impl FnOnce(*mut u8, usize) -> Result<usize, Errno>,
    ) -> Option<Result<usize, Errno>> {
        let view = self.inner.read();
        if view.base.is_some() {
            drop(view);
            return self.with_bytes(offset, len, f);
        }
        let n = len.min(usize::try_from(view.len.saturating_sub(offset)).unwrap_or(usize::MAX)).min(UNMAPPED_CHUNK);
        let mut buf = vec![0; n];
        (n > 0).then(|| {
            let n = f(buf.as_mut_ptr(), n)?;
            pwrite_all(&self.fd, buf.get(..n).unwrap_or(&buf), offset)
        })
    }
    /// Copies to `offset`, and grows the file if needed.
    pub fn copy_in(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::EFBIG)?;
        if data.is_empty() {
            return Ok(0);
        }
        let len = self.len();
        if end > len {
            let was = self.sparse.load(Ordering::Relaxed);
            self.set_len_at_least(end)?;
            if offset <= len.next_multiple_of(crate::PAGE_SIZE) {
                // The copy below fills the new part.
                self.sparse.store(was, Ordering::Relaxed);
            }
        }
        let view = self.inner.read();
        if end > view.len {
            // Shrunk meanwhile by another thread of the Sentry.
            return Err(Errno::EAGAIN);
        }
        let Some(base) = view.base else {
            return pwrite_all(&self.fd, data, offset);
        };
        // SAFETY: end <= len <= mapped; raw pointers, since a guest may read or write meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), base.as_ptr().add(offset as usize), data.len()) };
        Ok(data.len())
    }
    fn set_len_at_least(&self, end: u64) -> Result<(), Errno> {
        if end > self.len() {
            self.set_len(end)?;
        }
        Ok(())
    }
    /// Frees the pages of a range, which then read as zeroes.
    pub fn punch_hole(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.sparse.store(true, Ordering::Relaxed);
        fallocate(self.fd.as_fd(), libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset as i64, len as i64)
    }
    /// Number of 512-byte blocks in use, as reported by the host.
    pub fn blocks(&self) -> u64 {
        nix::sys::stat::fstat(&*self.fd).map_or(0, |s| s.st_blocks as u64)
    }
}

/// Buffer size for access to a file that is not mapped.
const UNMAPPED_CHUNK: usize = 256 << 10;

/// Writes until the host takes no more.
fn pwrite_all(fd: &OwnedFd, data: &[u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < data.len() {
        match nix::sys::uio::pwrite(fd, &data[done..], (offset + done as u64) as i64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::EINTR) => {}
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

impl View {
    fn zero(&self, fd: &OwnedFd, from: u64, to: u64) -> Result<(), Errno> {
        match self.base {
            Some(base) if to <= self.mapped as u64 && from < to => {
                // SAFETY: the range lies in the mapping, in the page of the file's last byte, so the page exists.
                unsafe { std::ptr::write_bytes(base.as_ptr().add(from as usize), 0, (to - from) as usize) };
                Ok(())
            }
            Some(_) => Ok(()),
            // Truncated to `from`, the file is zero beyond it when it grows again.
            None => nix::unistd::ftruncate(fd, from as i64),
        }
    }
    /// Maps at least `len` bytes, if there is room; more than needed, so that a growing file is not remapped each
    /// time.
    fn map(&mut self, fd: &OwnedFd, len: u64) {
        if len <= self.mapped as u64 {
            return;
        }
        let want = len.next_power_of_two().max(1 << 16);
        let fits = match &mut self.room {
            Some(room) => room.resize(want),
            none => {
                *none = FileRoom::new(want);
                none.is_some()
            }
        };
        if !fits {
            return self.unmap();
        }
        // SAFETY: a new mapping, or the old one moved; the caller holds the lock exclusively, and the only pointer to
        // the old address is replaced below.
        let p = unsafe {
            match self.base {
                Some(base) => libc::mremap(base.as_ptr().cast(), self.mapped, want as usize, libc::MREMAP_MAYMOVE),
                None => libc::mmap(
                    std::ptr::null_mut(),
                    want as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_NORESERVE,
                    fd.as_raw_fd(),
                    0,
                ),
            }
        };
        match NonNull::new(p.cast()).filter(|_| p != libc::MAP_FAILED) {
            Some(base) => (self.base, self.mapped) = (Some(base), want as usize),
            None => self.unmap(),
        }
    }
    fn unmap(&mut self) {
        if let Some(base) = self.base.take() {
            // SAFETY: the mapping belongs to this value. No copy is in progress: each holds the lock, and `&mut self`
            // excludes them.
            unsafe { libc::munmap(base.as_ptr().cast(), self.mapped) };
        }
        (self.mapped, self.room) = (0, None);
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.unmap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_file_grows_and_shrinks() {
        let f = SharedFile::new(Use::File).unwrap();
        assert_eq!(f.copy_out(0, &mut [0; 4]), 0);
        assert_eq!(f.copy_in(100_000, b"hello"), Ok(5));
        assert_eq!(f.len(), 100_005);
        let mut b = [1; 8];
        assert_eq!(f.copy_out(99_998, &mut b), 7);
        assert_eq!(&b, b"\0\0hello\x01");
        f.set_len(100_002).unwrap();
        f.set_len(5_000_000).unwrap();
        assert_eq!(f.copy_out(100_000, &mut b), 8);
        assert_eq!(&b, b"he\0\0\0\0\0\0");
        assert_eq!(f.set_len(u64::MAX), Err(Errno::EFBIG));
        assert_eq!(f.copy_in(u64::MAX, b"x"), Err(Errno::EFBIG));
    }

    /// Two files that undergo the same operations; one of them is too long at first to be mapped.
    #[test]
    fn a_file_without_a_mapping_reads_as_one_with() {
        let (mapped, plain) = (SharedFile::new(Use::File).unwrap(), SharedFile::new(Use::File).unwrap());
        let long = SHARED_FILE_MAX;
        let fillers: Vec<_> = (0..400).map_while(|_| SharedFile::new(Use::File).ok()).collect();
        for f in &fillers {
            f.set_len(long).unwrap();
        }
        plain.set_len(long).unwrap();
        assert!(plain.inner.read().base.is_none(), "there is no room for it");
        assert_eq!(plain.copy_in(long - 3, b"end"), Ok(3));
        plain.set_len(10).unwrap();
        mapped.set_len(10).unwrap();
        // It stays unmapped: reads and writes now go through the descriptor.
        let both = [&mapped, &plain];
        for f in both {
            assert_eq!(f.copy_in(8, &[7; 5000]), Ok(5000));
            let part = f.with_bytes(8, 100, |p, n| {
                // SAFETY: `p` points to `n` live bytes, which no other thread accesses.
                unsafe { std::slice::from_raw_parts(p, n) }.to_vec()
            });
            assert_eq!(part, Some(vec![7; 100]));
            let filled = f.fill_bytes(4000, 5, |p, n| {
                // SAFETY: `p` points to `n` live bytes, which no other thread accesses.
                unsafe { std::ptr::write_bytes(p, 9, n) };
                Ok(n)
            });
            assert_eq!(filled, Some(Ok(5)));
            f.set_len(4002).unwrap();
            f.set_len(9000).unwrap();
            assert_eq!(f.with_bytes(9000, 1, |_, _| ()), None);
        }
        let all = both.map(|f| {
            let mut b = vec![1; 10_000];
            let n = f.copy_out(0, &mut b);
            b.truncate(n);
            b
        });
        assert!(all[0] == all[1] && all[0].len() == 9000 && all[0][4001] == 9 && all[0][4002] == 0);
    }

    #[test]
    fn clocks_and_randomness() {
        assert!(clock_ns(libc::CLOCK_MONOTONIC) > 0);
        assert_eq!(clock_ns(12345), 0);
        assert_ne!(random_u64(), random_u64());
    }
}
