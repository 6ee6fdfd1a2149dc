//! Datagram sockets. Each has one queue that every socket may send to; `connect` fixes a destination and restricts the
//! senders to the peer.

use super::conn::finish_scm;
use super::gc;
use super::names::{unnamed, Bound, Name};
use crate::abi::PollEvents;
use crate::error::{Errno, Result};
use crate::fs::vfs::Path;
use crate::kernel::current;
use crate::kernel::wait::WaitQueue;
use crate::kernel::Task;
use crate::mm::io::{Dst, Src};
use crate::net::queue::Queue;
use crate::net::scm::Ucred;
use crate::net::socket::*;
use crate::net::NetNs;
use parking_lot::Mutex;
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// Limit of the senders that one full queue remembers; further ones are not woken when it drains.
const MAX_BLOCKED: usize = 1 << 16;

struct Inner {
    ns: Arc<NetNs>,
    wake: Arc<WaitQueue>,
    queue: Queue,
    name: Mutex<Option<Name>>,
    /// The path that the socket is bound to, if any.
    place: OnceLock<Path>,
    /// The socket's name as `sockaddr`, attached to each message as the sender's address.
    from: Mutex<Option<Arc<[u8]>>>,
    peer: Mutex<Option<Weak<Inner>>>,
    cred: Mutex<Ucred>,
    error: AtomicI32,
    pass_cred: AtomicBool,
    snd_buf: AtomicUsize,
    closed: AtomicBool,
    /// `shutdown(2)`: bit 0 receive, bit 1 send.
    shut: AtomicI32,
    /// Senders to wake when the queue drains.
    blocked: Mutex<Vec<Weak<WaitQueue>>>,
}

impl Inner {
    fn peer(&self) -> Option<Arc<Inner>> {
        self.peer.lock().as_ref().and_then(Weak::upgrade)
    }
    /// Registers a sender that found the queue full.
    fn block(&self, wake: &Arc<WaitQueue>) {
        let mut b = self.blocked.lock();
        let weak = Arc::downgrade(wake);
        if b.len() < MAX_BLOCKED && !b.iter().any(|w| Weak::ptr_eq(w, &weak)) {
            b.push(weak);
        }
    }
    fn unblock(&self) {
        let list = {
            let mut b = self.blocked.lock();
            if b.is_empty() {
                return;
            }
            std::mem::take(&mut *b)
        };
        for w in list.iter().filter_map(Weak::upgrade) {
            w.wake(PollEvents::SOCKET_WRITABLE);
        }
    }
}

pub struct Dgram {
    inner: Arc<Inner>,
}

impl Dgram {
    pub fn new(ns: &Arc<NetNs>) -> Self {
        Dgram {
            inner: Arc::new(Inner {
                ns: ns.clone(),
                wake: Arc::default(),
                queue: Queue::new(true, BUF_DEFAULT),
                name: Mutex::new(None),
                place: OnceLock::new(),
                from: Mutex::new(None),
                peer: Mutex::new(None),
                cred: Mutex::new(Ucred::none()),
                error: AtomicI32::new(0),
                pass_cred: AtomicBool::new(false),
                snd_buf: AtomicUsize::new(BUF_DEFAULT),
                closed: AtomicBool::new(false),
                shut: AtomicI32::new(0),
                blocked: Mutex::default(),
            }),
        }
    }

    /// socketpair(2).
    pub fn pair(ns: &Arc<NetNs>, cred: Ucred) -> (Self, Self) {
        let (a, b) = (Dgram::new(ns), Dgram::new(ns));
        for (x, y) in [(&a, &b), (&b, &a)] {
            *x.inner.peer.lock() = Some(Arc::downgrade(&y.inner));
            *x.inner.cred.lock() = cred.clone();
        }
        (a, b)
    }

    pub fn queue(&self) -> &Queue {
        &self.inner.queue
    }

    fn bound(&self) -> Bound {
        let weak: Weak<Inner> = Arc::downgrade(&self.inner);
        weak
    }

    fn bind_name(&self, task: &Task, name: Name, mode: u32) -> Result<()> {
        let mut own = self.inner.name.lock();
        if own.is_some() {
            return if name == Name::Auto { Ok(()) } else { Err(Errno::EINVAL) };
        }
        let (got, place) = self.inner.ns.unix.bind(task, name, self.bound(), mode)?;
        if let Some(place) = place {
            let _ = self.inner.place.set(place);
        }
        *self.inner.from.lock() = Some(got.sockaddr());
        *own = Some(got);
        Ok(())
    }

    fn find(&self, task: &Task, name: &Name) -> Result<Arc<Inner>> {
        let found = self.inner.ns.unix.find(task, name)?;
        let other = found.downcast::<Inner>().map_err(|_| Errno::EPROTOTYPE)?;
        // A connected socket takes messages from its peer only.
        let taken = other.peer.lock().clone();
        if taken.is_some_and(|p| !std::ptr::eq(p.as_ptr(), Arc::as_ptr(&self.inner))) {
            return Err(Errno::EPERM);
        }
        Ok(other)
    }
}

impl Drop for Dgram {
    fn drop(&mut self) {
        let i = &self.inner;
        i.closed.store(true, Ordering::SeqCst);
        if let Some(name) = i.name.lock().as_ref() {
            i.ns.unix.release(name, &self.bound());
        }
        i.queue.close();
        i.queue.desert();
        i.unblock();
        if let Some(p) = i.peer() {
            // A peer that is connected to this socket gets an error.
            if p.peer.lock().as_ref().is_some_and(|w| std::ptr::eq(w.as_ptr(), Arc::as_ptr(i))) {
                p.error.store(libc::ECONNRESET, Ordering::SeqCst);
                p.wake.wake_all();
            }
        }
        gc::ask();
    }
}

impl Proto for Dgram {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn queue(&self) -> &Arc<WaitQueue> {
        &self.inner.wake
    }

    fn poll(&self) -> PollEvents {
        let i = &self.inner;
        let shut = i.shut.load(Ordering::SeqCst);
        let mut ev = PollEvents::empty();
        if i.error.load(Ordering::SeqCst) != 0 {
            ev |= PollEvents::ERR;
        }
        if shut & 1 != 0 {
            ev |= PollEvents::RDHUP | PollEvents::READABLE;
            if shut == 3 {
                ev |= PollEvents::HUP;
            }
        }
        if !i.queue.is_empty() {
            ev |= PollEvents::READABLE;
        }
        match i.peer() {
            Some(p) if !p.queue.status().2 => {
                p.block(&i.wake);
                // The queue may have drained since the check.
                if p.queue.status().2 {
                    ev |= PollEvents::SOCKET_WRITABLE;
                }
            }
            _ => ev |= PollEvents::SOCKET_WRITABLE,
        }
        ev
    }

    fn bind(&self, s: &Socket, task: &Task, addr: &[u8]) -> Result<()> {
        self.bind_name(task, Name::parse(addr)?, s.mode())
    }

    fn connect(&self, s: &Socket, task: &Task, addr: &[u8], _nonblock: bool, _again: bool) -> Result<Connect> {
        if addr.len() >= 2 && u16::from_ne_bytes([addr[0], addr[1]]) == libc::AF_UNSPEC as u16 {
            *self.inner.peer.lock() = None;
            return Ok(Connect::Done);
        }
        let name = Name::parse(addr)?;
        if s.pass_cred() {
            self.bind_name(task, Name::Auto, 0)?;
        }
        let other = self.find(task, &name)?;
        // `other` may be this socket itself.
        let cred = other.cred.lock().clone();
        *self.inner.cred.lock() = cred;
        *self.inner.peer.lock() = Some(Arc::downgrade(&other));
        self.inner.wake.wake(PollEvents::SOCKET_WRITABLE);
        Ok(Connect::Done)
    }

    fn local(&self) -> Vec<u8> {
        self.inner.from.lock().as_ref().map_or_else(unnamed, |n| n.to_vec())
    }

    fn peer(&self) -> Result<Vec<u8>> {
        let p = self.inner.peer().ok_or(Errno::ENOTCONN)?;
        let name = p.from.lock().clone();
        Ok(name.map_or_else(unnamed, |n| n.to_vec()))
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        let i = &self.inner;
        let peer = i.peer();
        if how != libc::SHUT_WR {
            i.shut.fetch_or(1, Ordering::SeqCst);
            i.queue.close();
        }
        if how != libc::SHUT_RD {
            i.shut.fetch_or(2, Ordering::SeqCst);
        }
        i.wake.wake_all();
        if let Some(p) = peer {
            p.wake.wake_all();
        }
        Ok(())
    }

    fn send(&self, s: &Socket, src: &mut Src<'_>, msg: &mut SendMsg) -> Result<usize> {
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let i = &self.inner;
        let target = match &msg.addr {
            Some(a) => {
                let name = Name::parse(a)?;
                let task = current::get().ok_or(Errno::EINVAL)?;
                if s.pass_cred() {
                    self.bind_name(&task, Name::Auto, 0)?;
                }
                self.find(&task, &name)?
            }
            None => {
                let set = i.peer.lock().clone().ok_or(Errno::ENOTCONN)?;
                match set.upgrade() {
                    Some(p) => p,
                    None => {
                        *i.peer.lock() = None;
                        i.error.store(0, Ordering::SeqCst);
                        return Err(Errno::ECONNREFUSED);
                    }
                }
            }
        };
        if src.remaining() > i.snd_buf.load(Ordering::Relaxed).saturating_sub(32) {
            return Err(Errno::EMSGSIZE);
        }
        let e = i.error.swap(0, Ordering::SeqCst);
        if e != 0 {
            return Err(Errno::from_raw(e));
        }
        if i.shut.load(Ordering::SeqCst) & 2 != 0 {
            return Err(Errno::EPIPE);
        }
        if target.closed.load(Ordering::SeqCst) {
            return Err(Errno::ECONNREFUSED);
        }
        if s.pass_cred() || target.pass_cred.load(Ordering::Relaxed) {
            if let Some(task) = current::get() {
                msg.scm.get_or_insert_default().cred.get_or_insert_with(|| Ucred::real(&task));
            }
        }
        let from = i.from.lock().clone();
        let n = match target.queue.send_record(src, &mut msg.scm, from.clone()) {
            Err(Errno::EAGAIN) => {
                target.block(&i.wake);
                // The queue may have drained since the check.
                target.queue.send_record(src, &mut msg.scm, from)?
            }
            r => r?,
        };
        target.wake.wake(PollEvents::READABLE);
        Ok(n)
    }

    fn recv(&self, s: &Socket, dst: &mut Dst<'_>, msg: &mut RecvMsg) -> Result<usize> {
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let i = &self.inner;
        if i.error.load(Ordering::Relaxed) != 0 && i.queue.is_empty() {
            let e = i.error.swap(0, Ordering::SeqCst);
            if e != 0 {
                return Err(Errno::from_raw(e));
            }
        }
        let t = i.queue.recv(dst, msg)?;
        if t.room {
            i.unblock();
        }
        finish_scm(s, msg);
        Ok(t.n)
    }

    fn take_error(&self) -> i32 {
        self.inner.error.swap(0, Ordering::SeqCst)
    }
    fn peer_cred(&self) -> Option<Ucred> {
        Some(self.inner.cred.lock().clone())
    }
    fn opts_changed(&self, s: &Socket) {
        self.inner.pass_cred.store(s.pass_cred(), Ordering::Relaxed);
        self.inner.snd_buf.store(s.opts.snd_buf.load(Ordering::Relaxed) as usize, Ordering::Relaxed);
    }
    fn pending(&self) -> (usize, usize) {
        (self.inner.queue.next_len(), 0)
    }
}
