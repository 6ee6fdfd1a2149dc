//! A queue of bytes or messages between two sockets.
//!
//! The bytes lie in a [`Ring`]; a [`Record`] marks a stretch of them. In a framed queue (datagrams, seqpacket) every
//! message is a record and is read as one. In a stream only stretches with descriptors or credentials are marked: one
//! `recv` never joins them with their neighbours (unix(7)).
//!
//! Memory: a queue grows up to its own limit as it fills, and all queues of the sandbox together up to [`pool_max`].
//! Beyond that each may still hold a page, so that every connection makes progress, until the total reaches
//! [`pool_end`]. From there on a send to an empty queue fails with `ENOBUFS`.

use super::scm::{InFlight, Scm};
use super::socket::RecvMsg;
use crate::error::{Errno, Result};
use crate::fs::ring::Ring;
use crate::fs::File;
use crate::mm::io::{Dst, Src};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

/// Memory limit of all queues together.
fn pool_max() -> usize {
    static MAX: LazyLock<usize> = LazyLock::new(|| platform::budget::of_heap(512 << 20, 10) as usize);
    *MAX
}
/// `pool_max` and the reserve for queues that hold at most a page.
fn pool_end() -> usize {
    pool_max() + pool_max() / 8
}
static POOL: AtomicUsize = AtomicUsize::new(0);
/// Capacity of a queue when the pool is used up.
const POOR: usize = 4096;

/// Charge for a message in addition to its bytes.
const RECORD_COST: usize = 256;

struct Record {
    /// Position of the first byte in the stream.
    start: u64,
    len: usize,
    scm: Option<Box<Scm>>,
    /// Sender's address.
    from: Option<Arc<[u8]>>,
}

struct State {
    ring: Ring,
    /// Position of the ring's first byte in the stream.
    pos: u64,
    records: VecDeque<Record>,
    cap: usize,
    /// Nothing more is added; the contents can still be read.
    closed: bool,
    /// The reader is gone.
    deserted: bool,
    /// This queue's charge to the pool: the ring and the records.
    pooled: usize,
    urgent: Option<Urgent>,
}

/// The last byte sent with `MSG_OOB` (tcp(7)).
struct Urgent {
    /// Position in the stream.
    pos: u64,
    /// The byte, until `MSG_OOB` receives it.
    byte: Option<u8>,
}

impl State {
    /// Free capacity when `used` bytes are taken.
    fn free(&self, used: usize) -> usize {
        let cap = match POOL.load(Ordering::Relaxed) {
            p if p <= pool_max() => self.cap,
            p if p <= pool_end() => self.cap.min(POOR),
            _ => 0,
        };
        cap.saturating_sub(used)
    }
    /// Fails with `ENOBUFS` if the queue is empty and the pool is exhausted: waiting would not help, since no reader of
    /// this queue frees memory.
    fn admit(&self) -> Result<()> {
        let idle = self.ring.is_empty() && self.records.is_empty();
        match idle && POOL.load(Ordering::Relaxed) > pool_end() {
            true => Err(Errno::ENOBUFS),
            false => Ok(()),
        }
    }
    /// Updates this queue's charge to the pool.
    fn account(&mut self) {
        let now = self.ring.capacity() + self.records.capacity() * size_of::<Record>();
        if now > self.pooled {
            POOL.fetch_add(now - self.pooled, Ordering::Relaxed);
        } else if now < self.pooled {
            POOL.fetch_sub(self.pooled - now, Ordering::Relaxed);
        }
        self.pooled = now;
    }
    /// After a read: frees an empty ring's memory when memory is short.
    fn settle(&mut self) {
        let idle = self.ring.is_empty() && self.records.is_empty();
        if idle && self.pooled > POOR && POOL.load(Ordering::Relaxed) > pool_max() / 2 {
            self.ring.clear();
            self.records = VecDeque::new();
            self.account();
        }
    }
    /// Whether the next byte is urgent and must not be read in line.
    fn at_urgent(&self, inline: bool) -> bool {
        !inline && self.urgent.as_ref().is_some_and(|u| u.pos == self.pos) && !self.ring.is_empty()
    }
    fn used(&self, framed: bool) -> usize {
        self.ring.len() + if framed { self.records.len() * RECORD_COST } else { 0 }
    }
}

pub struct Queue {
    framed: bool,
    state: Mutex<State>,
}

impl Drop for State {
    fn drop(&mut self) {
        self.ring.clear();
        self.records = VecDeque::new();
        self.account();
    }
}

/// The result of a read.
pub struct Taken {
    pub n: usize,
    /// Waiting writers may have become ready.
    pub room: bool,
}

impl Queue {
    pub fn new(framed: bool, cap: usize) -> Self {
        Queue {
            framed,
            state: Mutex::new(State {
                ring: Ring::default(),
                pos: 0,
                records: VecDeque::new(),
                cap,
                closed: false,
                deserted: false,
                pooled: 0,
                urgent: None,
            }),
        }
    }
    pub fn set_cap(&self, cap: usize) {
        self.state.lock().cap = cap;
    }
    /// Marks the end of the data.
    pub fn close(&self) {
        self.state.lock().closed = true;
    }
    pub fn closed(&self) -> bool {
        self.state.lock().closed
    }
    /// Marks the reader as gone and drops the unread data; true if there was any.
    pub fn desert(&self) -> bool {
        let (ring, records);
        {
            let mut s = self.state.lock();
            s.deserted = true;
            ring = std::mem::take(&mut s.ring);
            // Dropping them closes descriptors, which must happen outside the lock.
            records = std::mem::take(&mut s.records);
            s.account();
            s.pos = 0;
            s.urgent = None;
        }
        !ring.is_empty() || !records.is_empty()
    }
    /// Calls `look` for each file in a queued message.
    pub fn each_file(&self, look: &mut dyn FnMut(&Arc<File>)) {
        let s = self.state.lock();
        let files = s.records.iter().filter_map(|r| r.scm.as_ref()).flat_map(|scm| &scm.files);
        files.filter_map(|f| f.file()).for_each(look);
    }
    /// Moves the files out of the queued messages; bytes and credentials stay.
    pub fn take_files(&self, to: &mut Vec<InFlight>) {
        let mut s = self.state.lock();
        for scm in s.records.iter_mut().filter_map(|r| r.scm.as_mut()) {
            to.append(&mut scm.files);
        }
    }
    pub fn deserted(&self) -> bool {
        self.state.lock().deserted
    }
    /// Bytes queued.
    pub fn len(&self) -> usize {
        self.state.lock().ring.len()
    }
    pub fn is_empty(&self) -> bool {
        let s = self.state.lock();
        s.ring.is_empty() && s.records.is_empty()
    }
    /// Bytes that a stream read could return now.
    pub fn readable(&self, inline: bool) -> usize {
        let s = self.state.lock();
        s.ring.len() - usize::from(s.at_urgent(inline))
    }
    /// Whether an urgent byte waits for `MSG_OOB`.
    pub fn urgent(&self) -> bool {
        self.state.lock().urgent.as_ref().is_some_and(|u| u.byte.is_some())
    }
    /// Whether the next byte is the urgent one (`SIOCATMARK`).
    pub fn at_mark(&self) -> bool {
        let s = self.state.lock();
        s.urgent.as_ref().is_some_and(|u| u.pos == s.pos)
    }
    /// Receives the urgent byte; `EINVAL` if there is none or it was received before.
    pub fn recv_urgent(&self, dst: &mut Dst<'_>, peek: bool) -> Result<usize> {
        let mut s = self.state.lock();
        let u = s.urgent.as_mut().ok_or(Errno::EINVAL)?;
        let byte = u.byte.ok_or(Errno::EINVAL)?;
        if !peek {
            u.byte = None;
        }
        dst.put(&[byte])
    }
    /// Bytes that one read would return (`FIONREAD`).
    pub fn next_len(&self) -> usize {
        let s = self.state.lock();
        match s.records.front() {
            Some(r) if self.framed => r.len,
            _ => s.ring.len(),
        }
    }
    /// Readable, closed, writable, as one consistent snapshot for poll(2).
    pub fn status(&self) -> (bool, bool, bool) {
        let s = self.state.lock();
        (!s.ring.is_empty() || !s.records.is_empty(), s.closed, s.used(self.framed) * 2 <= s.cap)
    }

    /// Appends as many bytes to a stream as fit. `EAGAIN` when full, `EPIPE` when closed. Takes `scm` if at least one
    /// byte was queued.
    pub fn send_bytes(&self, src: &mut Src<'_>, scm: &mut Option<Box<Scm>>) -> Result<usize> {
        let mut s = self.state.lock();
        if s.closed || s.deserted {
            return Err(Errno::EPIPE);
        }
        if src.remaining() == 0 {
            return Ok(0);
        }
        s.admit()?;
        let free = s.free(s.ring.len());
        if free == 0 || (scm.is_some() && s.records.len() >= (s.cap / RECORD_COST).max(16)) {
            return Err(Errno::EAGAIN);
        }
        let start = s.pos + s.ring.len() as u64;
        let n = s.ring.push(src, free)?;
        if let Some(mut scm) = scm.take() {
            scm.queued();
            s.records.push_back(Record { start, len: n, scm: Some(scm), from: None });
        }
        s.account();
        Ok(n)
    }

    /// Like [`Queue::send_bytes`]; marks the last byte as urgent if it was queued.
    pub fn send_urgent(&self, src: &mut Src<'_>) -> Result<usize> {
        let n = self.send_bytes(src, &mut None)?;
        let mut s = self.state.lock();
        let last = s.ring.len().checked_sub(1);
        if let (true, Some(last)) = (src.remaining() == 0, last) {
            let byte = s.ring.get(last);
            s.urgent = Some(Urgent { pos: s.pos + last as u64, byte });
        }
        Ok(n)
    }

    /// Appends one whole message. `EMSGSIZE` if it can never fit.
    pub fn send_record(&self, src: &mut Src<'_>, scm: &mut Option<Box<Scm>>, from: Option<Arc<[u8]>>) -> Result<usize> {
        let len = src.remaining();
        let mut s = self.state.lock();
        if s.closed || s.deserted {
            return Err(Errno::EPIPE);
        }
        if len > s.cap {
            return Err(Errno::EMSGSIZE);
        }
        s.admit()?;
        // An empty queue takes any message that is not too long.
        if !s.records.is_empty() && s.free(s.used(true)) < len + RECORD_COST {
            return Err(Errno::EAGAIN);
        }
        let start = s.pos + s.ring.len() as u64;
        let n = if len == 0 { 0 } else { s.ring.push(src, len)? };
        s.account();
        if n < len {
            s.ring.truncate(n);
            return Err(Errno::EFAULT);
        }
        if let Some(scm) = scm {
            scm.queued();
        }
        s.records.push_back(Record { start, len, scm: scm.take(), from });
        s.account();
        Ok(len)
    }

    /// Reads bytes or one message. `EAGAIN` when empty; 0 at the end of file. `MSG_PEEK` leaves the data queued.
    pub fn recv(&self, dst: &mut Dst<'_>, msg: &mut RecvMsg) -> Result<Taken> {
        let peek = msg.flags & libc::MSG_PEEK != 0;
        // Dropped after the lock is released: dropping closes descriptors.
        let mut leftover = None;
        let mut s = self.state.lock();
        if s.ring.is_empty() && s.records.is_empty() {
            return if s.closed { Ok(Taken { n: 0, room: false }) } else { Err(Errno::EAGAIN) };
        }
        if s.at_urgent(msg.inline) {
            // The urgent byte is not part of the stream: a read skips it, a peek looks past it.
            if s.ring.len() == 1 && !s.closed {
                return Err(Errno::EAGAIN);
            }
            if !peek {
                s.ring.consume(1);
                s.pos += 1;
            }
            if s.ring.is_empty() {
                return Ok(Taken { n: 0, room: false });
            }
        }
        let was = s.used(false) * 2 <= s.cap;
        let n;
        if self.framed {
            let Some(r) = s.records.front() else { return Err(Errno::EAGAIN) };
            let len = r.len;
            n = s.ring.peek(dst, 0, len)?;
            msg.real_len = len;
            if n < len {
                msg.out_flags |= libc::MSG_TRUNC;
            }
            msg.from = r.from.clone();
            if peek {
                msg.scm = r.scm.as_ref().map(|x| x.peek());
            } else {
                s.ring.consume(len);
                s.pos += len as u64;
                leftover = s.records.pop_front();
                if let Some(r) = &mut leftover {
                    msg.scm = r.scm.take();
                }
            }
        } else {
            let pos = s.pos;
            let mut max = usize::MAX;
            let mut marked = false;
            if let Some(r) = s.records.front() {
                if r.start > pos {
                    max = (r.start - pos) as usize;
                } else {
                    max = r.len.saturating_sub((pos - r.start) as usize);
                    marked = true;
                }
            }
            let skip = usize::from(s.at_urgent(msg.inline));
            if let Some(u) = &s.urgent {
                // A read stops before the urgent byte.
                if u.pos > pos {
                    max = max.min((u.pos - pos) as usize);
                }
            }
            n = match msg.discard {
                true => max.min(s.ring.len() - skip).min(dst.remaining()),
                false => s.ring.peek(dst, skip, max)?,
            };
            msg.real_len = n;
            if marked {
                msg.marked = true;
                if let Some(r) = s.records.front_mut() {
                    msg.scm = if peek {
                        r.scm.as_ref().map(|x| x.peek())
                    } else {
                        // The rest of the stretch keeps the credentials but not the descriptors.
                        let rest = r.scm.as_ref().and_then(|x| x.rest());
                        std::mem::replace(&mut r.scm, rest)
                    };
                }
            }
            if !peek {
                s.ring.consume(n);
                s.pos += n as u64;
                if marked && n == max {
                    leftover = s.records.pop_front();
                }
            }
        }
        if let (false, Some(scm)) = (peek, &mut msg.scm) {
            scm.unqueued();
        }
        // When memory is short, a writer may be waiting although the queue is less than half full.
        let was = was && POOL.load(Ordering::Relaxed) <= pool_max();
        let room = !peek && (self.framed || (!was && s.used(false) * 2 <= s.cap));
        s.settle();
        drop(s);
        drop(leftover);
        Ok(Taken { n, room })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::scm::Ucred;

    fn get(q: &Queue, n: usize, flags: i32) -> (Result<Vec<u8>>, RecvMsg) {
        let mut b = vec![0; n];
        let mut m = RecvMsg::new(flags);
        let r = q.recv(&mut Dst::kernel(&mut b), &mut m);
        (r.map(|t| b[..t.n].to_vec()), m)
    }

    #[test]
    fn memory_is_bounded() {
        let send = |q: &Queue, n: usize| match q.framed {
            true => q.send_record(&mut Src::kernel(&vec![1; n]), &mut None, None),
            false => q.send_bytes(&mut Src::kernel(&vec![1; n]), &mut None),
        };
        for framed in [true, false] {
            let (idle, full) = (Queue::new(framed, 10_000), Queue::new(framed, 10_000));
            assert_eq!(send(&full, 5000), Ok(5000));
            // Simulates other queues using the whole pool.
            POOL.fetch_add(pool_end(), Ordering::Relaxed);
            assert_eq!((send(&idle, 1), send(&full, 1)), (Err(Errno::ENOBUFS), Err(Errno::EAGAIN)));
            // Reading frees the queue's memory.
            assert!(full.recv(&mut Dst::kernel(&mut [0; 5000]), &mut RecvMsg::new(0)).unwrap().room);
            assert_eq!(full.state.lock().pooled, 0);
            POOL.fetch_sub(pool_end(), Ordering::Relaxed);
            assert_eq!(send(&idle, 1), Ok(1));
        }
    }

    #[test]
    fn messages_stay_apart() {
        let q = Queue::new(true, 10_000);
        for m in [&b"one"[..], b"", b"three"] {
            assert_eq!(q.send_record(&mut Src::kernel(m), &mut None, None), Ok(m.len()));
        }
        assert_eq!(q.next_len(), 3);
        let (r, m) = get(&q, 2, libc::MSG_PEEK);
        assert_eq!((r, m.out_flags, m.real_len), (Ok(b"on".to_vec()), libc::MSG_TRUNC, 3));
        assert_eq!(get(&q, 9, 0).0, Ok(b"one".to_vec()));
        assert_eq!(get(&q, 9, 0).0, Ok(vec![]));
        assert_eq!(get(&q, 2, 0).0, Ok(b"th".to_vec()));
        assert_eq!(get(&q, 2, 0).0, Err(Errno::EAGAIN));
        assert_eq!(q.send_record(&mut Src::kernel(&[0; 10_001]), &mut None, None), Err(Errno::EMSGSIZE));
        q.close();
        assert_eq!(get(&q, 2, 0).0, Ok(vec![]));
    }

    #[test]
    fn marked_stretches_do_not_mix() {
        let q = Queue::new(false, 100);
        let cred = |pid: i32| {
            let cred = Some(Ucred { pid: pid.into(), ..Ucred::default() });
            Some(Box::new(Scm { cred, ..Scm::default() }))
        };
        let send = |b: &[u8], mut scm| q.send_bytes(&mut Src::kernel(b), &mut scm).unwrap();
        send(b"aa", None);
        send(b"bb", cred(1));
        send(b"cc", cred(2));
        send(b"dd", None);
        let (r, m) = get(&q, 9, 0);
        assert_eq!((r, m.scm.is_none()), (Ok(b"aa".to_vec()), true));
        let (r, m) = get(&q, 1, 0);
        assert_eq!((r, m.scm.unwrap().cred.unwrap().pid.global()), (Ok(b"b".to_vec()), 1));
        let (r, m) = get(&q, 9, 0);
        assert_eq!((r, m.scm.unwrap().cred.unwrap().pid.global()), (Ok(b"b".to_vec()), 1));
        let (r, m) = get(&q, 9, libc::MSG_PEEK);
        assert_eq!((r, m.scm.unwrap().cred.unwrap().pid.global()), (Ok(b"cc".to_vec()), 2));
        assert_eq!(get(&q, 9, 0).0, Ok(b"cc".to_vec()));
        assert_eq!(get(&q, 9, 0).0, Ok(b"dd".to_vec()));
        assert_eq!(q.send_bytes(&mut Src::kernel(&[0; 200]), &mut None), Ok(100));
        assert_eq!(q.send_bytes(&mut Src::kernel(&[0; 200]), &mut None), Err(Errno::EAGAIN));
        assert!(q.desert());
        assert_eq!(q.send_bytes(&mut Src::kernel(&[0; 200]), &mut None), Err(Errno::EPIPE));
    }

    #[test]
    fn urgent_bytes_stay_apart() {
        let q = Queue::new(false, 100);
        q.send_bytes(&mut Src::kernel(b"ab"), &mut None).unwrap();
        q.send_urgent(&mut Src::kernel(b"c!")).unwrap();
        q.send_bytes(&mut Src::kernel(b"de"), &mut None).unwrap();
        assert!(q.urgent() && !q.at_mark());
        assert_eq!(get(&q, 9, libc::MSG_PEEK).0, Ok(b"abc".to_vec()));
        assert_eq!(get(&q, 9, 0).0, Ok(b"abc".to_vec()));
        assert!(q.at_mark());
        assert_eq!((q.readable(false), q.readable(true)), (2, 3));
        assert_eq!(get(&q, 9, libc::MSG_PEEK).0, Ok(b"de".to_vec()));
        assert_eq!(get(&q, 1, 0).0, Ok(b"d".to_vec()));
        let mut b = [0];
        assert_eq!(q.recv_urgent(&mut Dst::kernel(&mut b), true), Ok(1));
        assert_eq!((q.recv_urgent(&mut Dst::kernel(&mut b), false), b), (Ok(1), *b"!"));
        assert_eq!(q.recv_urgent(&mut Dst::kernel(&mut b), false), Err(Errno::EINVAL));
        assert_eq!(get(&q, 9, 0).0, Ok(b"e".to_vec()));
        q.send_urgent(&mut Src::kernel(b"!")).unwrap();
        assert_eq!(get(&q, 9, 0).0, Err(Errno::EAGAIN));
    }
}
