//! Pipes and FIFOs (pipe(7), fifo(7)).
//!
//! One [`Pipe`] is a bounded ring of bytes with counts of its readers and writers; a [`PipeEnd`] is an open end of it.
//! Both ends share one wait queue: readers wait for POLLIN, writers for POLLOUT. A pipe counts as writable when
//! `PIPE_BUF` bytes fit, so that an atomic write is never woken in vain. Packets (`O_DIRECT`) are marks over the ring
//! with the start and the length of each packet.
//!
//! The capacity of open pipes is charged as on Linux: in pages, to the user that created them. A user above the limit
//! gets small pipes.

use super::anon::AnonInode;
use super::file::InodeExtra;
use super::ring::Ring;
use super::types::{Attr, SetAttr};
use super::{File, FileOps};
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysError, SysResult};
use crate::kernel::cred::{CAP_SYS_ADMIN, CAP_SYS_RESOURCE};
use crate::kernel::users::{self, Charge, Resource, PIPE_USER_PAGES};
use crate::kernel::wait::{WaitError, WaitQueue};
use crate::kernel::{current, Task};
use crate::mm::io::{Dst, Src};
use parking_lot::{Mutex, MutexGuard};
use std::any::Any;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::Arc;

pub const PIPE_BUF: usize = 4096;
const PAGE: usize = 4096;
/// Capacity of a new pipe, and the largest that an unprivileged user may set (`fs.pipe-max-size`).
pub const PIPE_DEFAULT: usize = 16 * PAGE;
pub const PIPE_MAX: usize = 1 << 20;
/// Capacity of a new pipe of a user above the limit.
const PIPE_SMALL: usize = 2 * PAGE;

pub struct State {
    ring: Ring,
    cap: usize,
    /// The charge for `cap`, while the pipe is open.
    charge: Option<Charge>,
    /// Position of the ring's first byte in the stream.
    pos: u64,
    /// Packets: start in the stream, and length.
    packets: VecDeque<(u64, usize)>,
    readers: usize,
    writers: usize,
    /// The number of opens of each end, so that a blocking open notices a peer that came and went.
    reader_opens: u64,
    writer_opens: u64,
    /// Room promised to [`Reserved`] writes.
    reserved: usize,
}

impl State {
    fn free(&self) -> usize {
        self.cap.saturating_sub(self.ring.len()).saturating_sub(self.reserved)
    }
    fn writable(&self) -> bool {
        self.free() >= PIPE_BUF && self.packets.len() < self.cap / PAGE
    }
    /// Takes the bytes for one `read`; 0 if empty.
    fn pop(&mut self, dst: &mut Dst<'_>) -> Result<usize> {
        match self.packets.front().copied() {
            None => {
                let n = self.ring.pop(dst, usize::MAX)?;
                self.pos += n as u64;
                Ok(n)
            }
            Some((start, len)) if start == self.pos => {
                // The part of a packet that does not fit is lost.
                let n = self.ring.peek(dst, 0, len)?;
                self.ring.consume(len);
                self.pos += len as u64;
                self.packets.pop_front();
                Ok(n)
            }
            Some((start, _)) => {
                let n = self.ring.pop(dst, (start - self.pos) as usize)?;
                self.pos += n as u64;
                Ok(n)
            }
        }
    }
}

pub struct Pipe {
    state: Mutex<State>,
    pub queue: WaitQueue,
}

impl Default for Pipe {
    fn default() -> Self {
        Pipe {
            state: Mutex::new(State {
                ring: Ring::default(),
                cap: PIPE_DEFAULT,
                charge: None,
                pos: 0,
                packets: VecDeque::new(),
                readers: 0,
                writers: 0,
                reader_opens: 0,
                writer_opens: 0,
                reserved: 0,
            }),
            queue: WaitQueue::new(),
        }
    }
}

impl Pipe {
    fn read(&self, dst: &mut Dst<'_>) -> SysResult<usize> {
        if dst.remaining() == 0 {
            return Ok(0);
        }
        let mut s = self.state.lock();
        if s.ring.is_empty() {
            return if s.writers == 0 { Ok(0) } else { Err(Errno::EAGAIN.into()) };
        }
        let was = s.writable();
        let n = s.pop(dst)?;
        self.announce_room(s, was);
        Ok(n)
    }

    fn announce_room(&self, s: MutexGuard<'_, State>, was_writable: bool) {
        let wake = !was_writable && s.writable();
        drop(s);
        if wake {
            self.queue.wake(PollEvents::WRITABLE);
        }
    }

    fn write(&self, src: &mut Src<'_>, packet: bool) -> SysResult<usize> {
        let total = src.remaining();
        if total == 0 {
            return Ok(0);
        }
        let mut s = self.state.lock();
        if s.readers == 0 {
            return Err(Errno::EPIPE.into());
        }
        let free = s.free();
        if free == 0 || (total <= PIPE_BUF && free < total) {
            return Err(Errno::EAGAIN.into());
        }
        let mut done = 0;
        if packet {
            while src.remaining() > 0 && s.writable() {
                let start = s.pos + s.ring.len() as u64;
                match s.ring.push(src, PAGE) {
                    Ok(0) => break,
                    Ok(n) => {
                        s.packets.push_back((start, n));
                        done += n;
                    }
                    Err(_) if done > 0 => break,
                    Err(e) => return Err(e.into()),
                }
            }
            if done == 0 {
                return Err(Errno::EAGAIN.into());
            }
        } else {
            done = s.ring.push(src, free)?;
        }
        drop(s);
        self.queue.wake(PollEvents::READABLE);
        Ok(done)
    }

    /// Moves bytes from this pipe to `sink`, which returns how many of the offered bytes it took; `EAGAIN` if empty
    /// with writers. With `keep`, the bytes stay (tee). The pipe is locked meanwhile, so `sink` must not use it.
    pub fn drain(&self, max: usize, keep: bool, sink: &mut dyn FnMut(&[u8]) -> SysResult<usize>) -> SysResult<usize> {
        let mut s = self.state.lock();
        if s.ring.is_empty() {
            return if s.writers == 0 { Ok(0) } else { Err(Errno::EAGAIN.into()) };
        }
        let was = s.writable();
        let mut want = max.min(s.ring.len());
        let packet = match s.packets.front().copied() {
            Some((start, len)) if start == s.pos => {
                want = want.min(len);
                Some(len)
            }
            Some((start, _)) => {
                want = want.min((start - s.pos) as usize);
                None
            }
            None => None,
        };
        let mut buf = vec![0u8; want];
        let n = s.ring.peek(&mut Dst::kernel(&mut buf), 0, want)?;
        let taken = sink(&buf[..n])?.min(n);
        if keep {
            return Ok(taken);
        }
        if packet.is_some() {
            if let Some(p) = s.packets.front_mut() {
                p.0 += taken as u64;
                p.1 -= taken;
                if p.1 == 0 {
                    s.packets.pop_front();
                }
            }
        }
        s.ring.consume(taken);
        s.pos += taken as u64;
        self.announce_room(s, was);
        Ok(taken)
    }

    /// Reserves room for at most `max` bytes that are yet to be fetched, so that none of them is lost. `EAGAIN` when
    /// full, `EPIPE` without readers.
    pub fn reserve(&self, max: usize) -> Result<Reserved<'_>> {
        let mut s = self.state.lock();
        if s.readers == 0 {
            return Err(Errno::EPIPE);
        }
        if !s.writable() {
            return Err(Errno::EAGAIN);
        }
        let room = s.free().min(max);
        s.reserved += room;
        Ok(Reserved { pipe: self, room })
    }

    /// Bytes that a write could add now; `EPIPE` without readers.
    pub fn room(&self) -> Result<usize> {
        let s = self.state.lock();
        if s.readers == 0 {
            return Err(Errno::EPIPE);
        }
        Ok(s.free())
    }

    /// Bytes queued (`FIONREAD`).
    pub fn available(&self) -> usize {
        self.state.lock().ring.len()
    }

    pub fn capacity(&self) -> usize {
        self.state.lock().cap
    }

    /// `F_SETPIPE_SZ`.
    pub fn set_capacity(&self, want: u64) -> Result<usize> {
        if want > 1 << 31 {
            return Err(Errno::EINVAL);
        }
        let cap = (want as usize).max(PAGE).next_power_of_two();
        let mut s = self.state.lock();
        // This limit holds for a privileged guest too: the memory is the Sentry's.
        if cap > s.cap && cap > if has(&[CAP_SYS_RESOURCE]) { PIPE_MAX * 16 } else { PIPE_MAX } {
            return Err(Errno::EPERM);
        }
        if cap < s.ring.len() || cap / PAGE < s.packets.len() {
            return Err(Errno::EBUSY);
        }
        // A reserve is kept for small pipes.
        let too_much = cap > s.cap && users::scarce(Resource::PipePages, ((cap - s.cap) / PAGE) as u64);
        if too_much || s.charge.as_mut().is_some_and(|c| !c.set((cap / PAGE) as u64, user_pages())) {
            return Err(Errno::EPERM);
        }
        let was = s.writable();
        s.cap = cap;
        self.announce_room(s, was);
        Ok(cap)
    }
}

/// Whether the current task has one of these capabilities. Without a current task the caller is the kernel.
fn has(caps: &[u64]) -> bool {
    current::get().is_none_or(|t| caps.iter().any(|c| t.cred().has(*c)))
}

/// The limit of the current user's pipes, in pages.
fn user_pages() -> u64 {
    match PIPE_USER_PAGES.load(Ordering::Relaxed) {
        limit if limit == 0 || has(&[CAP_SYS_RESOURCE, CAP_SYS_ADMIN]) => u64::MAX,
        limit => limit,
    }
}

/// Charges a pipe on its first open; returns its capacity. `ENFILE` if the pages of all pipes are used up.
fn first_charge() -> Result<(usize, Charge)> {
    let user = users::current();
    // When few pages are left, new pipes are small for every user.
    let usual = if !users::scarce(Resource::PipePages, 1) {
        user.charge_many(Resource::PipePages, (PIPE_DEFAULT / PAGE) as u64, user_pages())
    } else {
        None
    };
    match usual {
        Some(charge) => Ok((PIPE_DEFAULT, charge)),
        None => {
            let charge = user.charge_many(Resource::PipePages, (PIPE_SMALL / PAGE) as u64, u64::MAX);
            Ok((PIPE_SMALL, charge.ok_or(Errno::ENFILE)?))
        }
    }
}

/// Reserved room in a pipe; the unused part is returned when dropped.
pub struct Reserved<'a> {
    pipe: &'a Pipe,
    pub room: usize,
}

impl Reserved<'_> {
    /// Appends `data`, limited to the reserved room.
    pub fn put(&mut self, data: &[u8]) -> Result<usize> {
        let n = {
            let mut s = self.pipe.state.lock();
            let n = s.ring.push(&mut Src::kernel(data), self.room)?;
            s.reserved -= n;
            n
        };
        self.room -= n;
        if n > 0 {
            self.pipe.queue.wake(PollEvents::READABLE);
        }
        Ok(n)
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.room == 0 {
            return;
        }
        let mut s = self.pipe.state.lock();
        let was = s.writable();
        s.reserved -= self.room;
        self.pipe.announce_room(s, was);
    }
}

/// An open end (or, for a FIFO opened `O_RDWR`, both).
pub struct PipeEnd {
    pub pipe: Arc<Pipe>,
    read: bool,
    write: bool,
    /// A FIFO opened for reading without blocking: no POLLHUP while the count of writer opens is still this.
    quiet_until: Option<u64>,
    anon: Option<Arc<AnonInode>>,
}

impl PipeEnd {
    fn open(pipe: Arc<Pipe>, read: bool, write: bool, anon: Option<Arc<AnonInode>>) -> Result<Self> {
        let mut s = pipe.state.lock();
        if s.charge.is_none() {
            let (cap, charge) = first_charge()?;
            (s.cap, s.charge) = (cap, Some(charge));
        }
        if read {
            s.readers += 1;
            s.reader_opens += 1;
        }
        if write {
            s.writers += 1;
            s.writer_opens += 1;
        }
        drop(s);
        Ok(PipeEnd { pipe, read, write, quiet_until: None, anon })
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        let mut s = self.pipe.state.lock();
        s.readers -= usize::from(self.read);
        s.writers -= usize::from(self.write);
        let (r, w) = (s.readers, s.writers);
        if r == 0 && w == 0 {
            s.pos = 0;
            s.packets.clear();
            s.ring.clear();
            s.charge = None;
        }
        drop(s);
        let mut events = PollEvents::empty();
        if self.read && r == 0 {
            events |= PollEvents::WRITABLE | PollEvents::ERR;
        }
        if self.write && w == 0 {
            events |= PollEvents::READABLE | PollEvents::HUP;
        }
        if !events.is_empty() {
            self.pipe.queue.wake(events);
        }
    }
}

impl FileOps for PipeEnd {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _file: &File, dst: &mut Dst<'_>, _offset: u64) -> SysResult<usize> {
        self.pipe.read(dst)
    }
    fn write(&self, file: &File, src: &mut Src<'_>, _offset: u64) -> SysResult<(usize, u64)> {
        let n = self.pipe.write(src, file.flags() & libc::O_DIRECT != 0)?;
        Ok((n, 0))
    }
    fn poll(&self, _file: &File) -> PollEvents {
        let s = self.pipe.state.lock();
        let mut ev = PollEvents::empty();
        if self.read {
            if !s.ring.is_empty() {
                ev |= PollEvents::READABLE;
            }
            if s.writers == 0 && self.quiet_until != Some(s.writer_opens) {
                ev |= PollEvents::HUP;
            }
        }
        if self.write {
            if s.writable() {
                ev |= PollEvents::WRITABLE;
            }
            if s.readers == 0 {
                ev |= PollEvents::ERR;
            }
        }
        ev
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.pipe.queue)
    }
    fn ioctl(&self, _file: &File, task: &Task, cmd: u32, arg: u64) -> SysResult<u64> {
        if u64::from(cmd) == libc::FIONREAD {
            let n = self.pipe.available() as i32;
            task.mem().write(arg, &n)?;
            return Ok(0);
        }
        Err(Errno::ENOTTY.into())
    }
    fn attr(&self) -> Result<Attr> {
        self.anon.as_ref().map(|a| a.attr()).ok_or(Errno::EBADF)
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        self.anon.as_ref().ok_or(Errno::EBADF)?.set_attr(set)
    }
    fn anon_name(&self) -> String {
        format!("pipe:[{}]", self.anon.as_ref().map_or(0, |a| a.ino()))
    }
}

/// Creates a pipe: its read and its write end, with status flags `flags` (`O_NONBLOCK`, `O_DIRECT`).
pub fn new_pipe(anon: Option<AnonInode>, flags: i32) -> Result<(Arc<File>, Arc<File>)> {
    let anon = anon.map(Arc::new);
    let pipe = Arc::new(Pipe::default());
    let r = PipeEnd::open(pipe.clone(), true, false, anon.clone())?;
    let w = PipeEnd::open(pipe, false, true, anon)?;
    Ok((File::new(Box::new(r), libc::O_RDONLY | flags, None), File::new(Box::new(w), libc::O_WRONLY | flags, None)))
}

/// The pipe behind an open file, if it is one.
pub fn of(file: &File) -> Option<&Arc<Pipe>> {
    end_of(file).map(|e| &e.pipe)
}

pub fn end_of(file: &File) -> Option<&PipeEnd> {
    file.ops.as_any().downcast_ref::<PipeEnd>()
}

impl PipeEnd {
    /// Opens the same pipe again, like a FIFO (`/proc/self/fd/N`).
    pub async fn again(&self, task: &Task, flags: i32) -> SysResult<Box<dyn FileOps>> {
        open_end(task, self.pipe.clone(), self.anon.clone(), flags).await
    }
}

/// `fcntl(F_SETPIPE_SZ)` and `fcntl(F_GETPIPE_SZ)`; `EBADF` when the file is no pipe.
pub fn fcntl_size(file: &File, set: Option<u64>) -> SysResult {
    let pipe = of(file).ok_or(Errno::EBADF)?;
    let size = match set {
        Some(want) => pipe.set_capacity(want)?,
        None => pipe.capacity(),
    };
    Ok(size as u64)
}

/// The pipe of a FIFO: it stays attached to the inode, and is emptied when the last end is closed.
struct Fifo(Arc<Pipe>);

/// Opens a FIFO (fifo(7)): waits for the other end unless `O_NONBLOCK` or `O_RDWR`. The VFS has checked permissions.
pub async fn open_fifo(task: &Task, extra: &InodeExtra, flags: i32) -> SysResult<Box<dyn FileOps>> {
    open_end(task, extra.get_or_insert(|| Fifo(Arc::default())).0.clone(), None, flags).await
}

async fn open_end(
    task: &Task,
    pipe: Arc<Pipe>,
    anon: Option<Arc<AnonInode>>,
    flags: i32,
) -> SysResult<Box<dyn FileOps>> {
    let nonblock = flags & libc::O_NONBLOCK != 0;
    let mode = flags & libc::O_ACCMODE;
    if mode == libc::O_RDWR {
        let end = PipeEnd::open(pipe.clone(), true, true, anon)?;
        pipe.queue.wake_all();
        return Ok(Box::new(end));
    }
    let reading = mode == libc::O_RDONLY;
    if anon.is_some() {
        // An open of an unnamed pipe does not wait for the other end.
        let end = PipeEnd::open(pipe.clone(), reading, !reading, anon)?;
        pipe.queue.wake_all();
        return Ok(Box::new(end));
    }
    if !reading && nonblock && pipe.state.lock().readers == 0 {
        return Err(Errno::ENXIO.into());
    }
    let mut end = PipeEnd::open(pipe.clone(), reading, !reading, None)?;
    let seen = {
        let s = pipe.state.lock();
        let (here, opens) = if reading { (s.writers, s.writer_opens) } else { (s.readers, s.reader_opens) };
        (here == 0).then_some(opens)
    };
    pipe.queue.wake_all();
    let Some(seen) = seen else { return Ok(Box::new(end)) };
    if nonblock {
        end.quiet_until = Some(seen);
        return Ok(Box::new(end));
    }
    let met = task
        .wait(&[(&pipe.queue, PollEvents::all())], None, || {
            let s = pipe.state.lock();
            let opens = if reading { s.writer_opens } else { s.reader_opens };
            (opens != seen).then_some(())
        })
        .await;
    match met {
        Ok(()) => Ok(Box::new(end)),
        Err(WaitError::Interrupted | WaitError::TimedOut) => Err(SysError::INTR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(f: &File, data: &[u8]) -> SysResult<usize> {
        f.ops.write(f, &mut Src::kernel(data), 0).map(|r| r.0)
    }
    fn read(f: &File, n: usize) -> SysResult<Vec<u8>> {
        let mut buf = vec![0; n];
        let k = f.ops.read(f, &mut Dst::kernel(&mut buf), 0)?;
        buf.truncate(k);
        Ok(buf)
    }
    const AGAIN: SysError = SysError::Errno(Errno::EAGAIN);

    #[test]
    fn bytes_and_ends() {
        let (r, w) = new_pipe(None, 0).unwrap();
        assert_eq!(read(&r, 1), Err(AGAIN));
        assert!(r.poll().is_empty());
        assert_eq!(write(&w, b"hello"), Ok(5));
        assert_eq!(r.poll(), PollEvents::READABLE);
        assert_eq!(read(&r, 3), Ok(b"hel".to_vec()));
        assert_eq!(of(&r).unwrap().available(), 2);
        drop(w);
        assert_eq!(r.poll(), PollEvents::READABLE | PollEvents::HUP);
        assert_eq!(read(&r, 9), Ok(b"lo".to_vec()));
        assert_eq!(read(&r, 9), Ok(vec![]));
        let (r, w) = new_pipe(None, 0).unwrap();
        drop(r);
        assert_eq!(write(&w, b"x"), Err(Errno::EPIPE.into()));
        assert_eq!(w.poll(), PollEvents::WRITABLE | PollEvents::ERR);
    }

    #[test]
    fn small_writes_are_atomic() {
        let (r, w) = new_pipe(None, 0).unwrap();
        assert_eq!(write(&w, &[1; 65000]), Ok(65000));
        assert!(w.poll().is_empty());
        assert_eq!(write(&w, &[2; 4096]), Err(AGAIN));
        assert_eq!(write(&w, &[2; 5000]), Ok(536));
        assert_eq!(write(&w, &[2; 1]), Err(AGAIN));
        assert_eq!(read(&r, 4096).unwrap().len(), 4096);
        assert_eq!(w.poll(), PollEvents::WRITABLE);
        assert_eq!(write(&w, &[2; 4096]), Ok(4096));
    }

    #[test]
    fn packets_keep_their_bounds() {
        let (r, w) = new_pipe(None, libc::O_DIRECT).unwrap();
        assert_eq!(write(&w, b"abc"), Ok(3));
        assert_eq!(write(&w, &[7; 5000]), Ok(5000));
        w.set_flags(libc::O_WRONLY);
        assert_eq!(write(&w, b"tail"), Ok(4));
        assert_eq!(read(&r, 2), Ok(b"ab".to_vec()));
        assert_eq!(read(&r, 9999).unwrap().len(), 4096);
        assert_eq!(read(&r, 9999).unwrap().len(), 904);
        assert_eq!(read(&r, 2), Ok(b"ta".to_vec()));
        assert_eq!(read(&r, 9), Ok(b"il".to_vec()));
        let mut n = 0;
        w.set_flags(libc::O_WRONLY | libc::O_DIRECT);
        while write(&w, b"x").is_ok() {
            n += 1;
        }
        assert_eq!(n, 16);
    }

    #[test]
    fn reservations() {
        let (r, w) = new_pipe(None, 0).unwrap();
        let p = of(&w).unwrap();
        let mut a = p.reserve(60_000).unwrap();
        assert_eq!(write(&w, &[1; 9000]), Ok(5536));
        assert!(p.reserve(1).is_err());
        assert_eq!(a.put(b"abc"), Ok(3));
        drop(a);
        assert_eq!(p.room(), Ok(65536 - 5539));
        assert_eq!(read(&r, 9999).unwrap()[5536..], *b"abc");
        drop(r);
        assert_eq!(p.reserve(1).err(), Some(Errno::EPIPE));
    }

    /// The capacity of all pipes is bounded, and small pipes still get room after large ones have taken most of it.
    #[test]
    fn all_pipes_together_have_a_bound() {
        let large = || {
            let (r, w) = new_pipe(None, 0).ok()?;
            of(&w)?.set_capacity(PIPE_MAX as u64 * 16).ok().map(|_| (r, w))
        };
        let held: Vec<_> = (0..1000).map_while(|_| large()).collect();
        assert!((16..=32).contains(&held.len()), "{} of 16 MiB", held.len());
        let (_r, w) = new_pipe(None, 0).unwrap();
        assert_eq!(of(&w).unwrap().capacity(), PIPE_SMALL);
        assert_eq!(of(&w).unwrap().set_capacity(PIPE_MAX as u64 * 16), Err(Errno::EPERM));
        drop(held);
        assert_eq!(of(&w).unwrap().set_capacity(PIPE_MAX as u64 * 16), Ok(PIPE_MAX * 16));
        drop((_r, w));
        let (_r, w) = new_pipe(None, 0).unwrap();
        assert_eq!(of(&w).unwrap().capacity(), PIPE_DEFAULT);
    }

    #[test]
    fn size_changes() {
        let (_r, w) = new_pipe(None, 0).unwrap();
        let p = of(&w).unwrap();
        assert_eq!(p.capacity(), 65536);
        assert_eq!(p.set_capacity(5000), Ok(8192));
        assert_eq!(write(&w, &[0; 9000]), Ok(8192));
        assert_eq!(p.set_capacity(4096), Err(Errno::EBUSY));
        assert_eq!(p.set_capacity(PIPE_MAX as u64 * 16 + 1), Err(Errno::EPERM));
    }
}
