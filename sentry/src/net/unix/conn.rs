//! Stream and seqpacket sockets.
//!
//! A connection is a [`Pair`] of queues. An end that goes closes both queues. A closed queue gives its reader the
//! remaining data and then the end of file, and its writer EPIPE; so `shutdown` of either direction closes one queue.

use super::gc;
use super::names::{unnamed, Bound, Name};
use crate::abi::PollEvents;
use crate::error::{Errno, Result};
use crate::fs::file::Unaccepted;
use crate::fs::vfs::Path;
use crate::kernel::current;
use crate::kernel::wait::WaitQueue;
use crate::kernel::Task;
use crate::mm::io::{Dst, Src};
use crate::net::queue::Queue;
use crate::net::scm::{Scm, Ucred};
use crate::net::socket::*;
use crate::net::NetNs;
use parking_lot::Mutex;
use platform::executor::aside;
use std::any::Any;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// Upper limit of the backlog (`net.core.somaxconn`).
const SOMAXCONN: i32 = 4096;
/// Above this many pending connections, dropping them is deferred to a background worker.
const MANY_PENDING: usize = 64;

/// The part of an end that the other end uses too.
struct End {
    wake: Arc<WaitQueue>,
    name: Mutex<Option<Arc<[u8]>>>,
    cred: Ucred,
    error: AtomicI32,
    /// `SO_PASSCRED`: the peer attaches its credentials to what it sends.
    pass_cred: AtomicBool,
}

struct Pair {
    ends: [End; 2],
    /// `queues[i]` is read by end `i`.
    queues: [Queue; 2],
}

struct Link {
    pair: Arc<Pair>,
    side: usize,
}

impl Link {
    fn rx(&self) -> &Queue {
        &self.pair.queues[self.side]
    }
    fn tx(&self) -> &Queue {
        &self.pair.queues[1 - self.side]
    }
    fn own(&self) -> &End {
        &self.pair.ends[self.side]
    }
    fn other(&self) -> &End {
        &self.pair.ends[1 - self.side]
    }
}

struct Listening {
    backlog: usize,
    pending: VecDeque<Conn>,
    cred: Ucred,
}

struct Inner {
    ns: Arc<NetNs>,
    kind: i32,
    wake: Arc<WaitQueue>,
    name: Mutex<Option<Name>>,
    /// The path that the socket is bound to, if any.
    place: OnceLock<Path>,
    link: OnceLock<Link>,
    listening: Mutex<Option<Listening>>,
    is_listening: AtomicBool,
}

/// The handle that the open file holds; dropping it closes the socket.
pub struct Conn {
    inner: Arc<Inner>,
    /// Not accepted yet.
    embryo: AtomicBool,
    /// Its charge in the count of unaccepted connections, until accept(2).
    unaccepted: Mutex<Option<Unaccepted>>,
}

impl Conn {
    pub fn new(ns: &Arc<NetNs>, kind: i32) -> Self {
        Conn {
            inner: Arc::new(Inner {
                ns: ns.clone(),
                kind,
                wake: Arc::default(),
                name: Mutex::new(None),
                place: OnceLock::new(),
                link: OnceLock::new(),
                listening: Mutex::new(None),
                is_listening: AtomicBool::new(false),
            }),
            embryo: AtomicBool::new(false),
            unaccepted: Mutex::default(),
        }
    }

    fn join(&self, other: &Conn, creds: [Ucred; 2]) {
        let end = |c: &Conn, cred| End {
            wake: c.inner.wake.clone(),
            name: Mutex::new(c.inner.name.lock().as_ref().map(|n| n.sockaddr())),
            cred,
            error: AtomicI32::new(0),
            pass_cred: AtomicBool::new(false),
        };
        let framed = self.inner.kind == libc::SOCK_SEQPACKET;
        let [own, others] = creds;
        let pair = Arc::new(Pair {
            ends: [end(self, own), end(other, others)],
            queues: [Queue::new(framed, BUF_DEFAULT), Queue::new(framed, BUF_DEFAULT)],
        });
        let _ = other.inner.link.set(Link { pair: pair.clone(), side: 1 });
        let _ = self.inner.link.set(Link { pair, side: 0 });
    }

    /// socketpair(2).
    pub fn pair(ns: &Arc<NetNs>, kind: i32, cred: Ucred) -> (Self, Self) {
        let (a, b) = (Conn::new(ns, kind), Conn::new(ns, kind));
        a.join(&b, [cred.clone(), cred]);
        (a, b)
    }

    fn link(&self) -> Option<&Link> {
        self.inner.link.get()
    }

    fn bound(&self) -> Bound {
        let weak: Weak<Inner> = Arc::downgrade(&self.inner);
        weak
    }

    /// The queues reachable through this socket: its own, or those of connections not accepted yet.
    pub fn queues(&self, look: &mut dyn FnMut(&Queue)) {
        if let Some(l) = self.link() {
            look(l.rx());
        }
        if let Some(listening) = self.inner.listening.lock().as_ref() {
            listening.pending.iter().filter_map(Conn::link).for_each(|l| look(l.rx()));
        }
    }

    fn framed(&self) -> bool {
        self.inner.kind == libc::SOCK_SEQPACKET
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if let Some(name) = self.inner.name.lock().as_ref() {
            // An accepted socket reports its listener's name but does not own it.
            self.inner.ns.unix.release(name, &self.bound());
        }
        self.inner.is_listening.store(false, Ordering::SeqCst);
        let waiting = self.inner.listening.lock().take();
        if waiting.is_some() {
            // Connecting tasks wake, try again and are refused.
            self.inner.wake.wake_all();
        }
        match waiting {
            // Each pending connection may hold a full queue.
            Some(l) if l.pending.len() > MANY_PENDING => aside(|| drop(l)),
            l => drop(l),
        }
        if let Some(l) = self.link() {
            l.rx().close();
            l.tx().close();
            if l.rx().desert() || self.embryo.load(Ordering::Relaxed) {
                l.other().error.store(libc::ECONNRESET, Ordering::SeqCst);
            }
            l.other().wake.wake_all();
        }
        gc::ask();
    }
}

impl Proto for Conn {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn queue(&self) -> &Arc<WaitQueue> {
        &self.inner.wake
    }

    fn poll(&self) -> PollEvents {
        let Some(l) = self.link() else {
            if !self.inner.is_listening.load(Ordering::SeqCst) {
                return PollEvents::SOCKET_WRITABLE | PollEvents::HUP;
            }
            let some = self.inner.listening.lock().as_ref().is_some_and(|l| !l.pending.is_empty());
            return if some { PollEvents::READABLE } else { PollEvents::empty() };
        };
        let (readable, rx_closed, _) = l.rx().status();
        let (_, tx_closed, writable) = l.tx().status();
        let mut ev = PollEvents::empty();
        if l.own().error.load(Ordering::SeqCst) != 0 {
            ev |= PollEvents::ERR;
        }
        if rx_closed {
            ev |= PollEvents::RDHUP | PollEvents::READABLE;
            if tx_closed {
                ev |= PollEvents::HUP;
            }
        }
        if readable {
            ev |= PollEvents::READABLE;
        }
        if writable || tx_closed {
            ev |= PollEvents::SOCKET_WRITABLE;
        }
        ev
    }

    fn bind(&self, s: &Socket, task: &Task, addr: &[u8]) -> Result<()> {
        let name = Name::parse(addr)?;
        let mut own = self.inner.name.lock();
        if own.is_some() {
            return if name == Name::Auto { Ok(()) } else { Err(Errno::EINVAL) };
        }
        let (got, place) = self.inner.ns.unix.bind(task, name, self.bound(), s.mode())?;
        if let Some(place) = place {
            let _ = self.inner.place.set(place);
        }
        if let Some(l) = self.link() {
            *l.own().name.lock() = Some(got.sockaddr());
        }
        *own = Some(got);
        Ok(())
    }

    fn listen(&self, _s: &Socket, task: &Task, backlog: i32) -> Result<()> {
        if self.inner.name.lock().is_none() || self.link().is_some() {
            return Err(Errno::EINVAL);
        }
        let backlog = if (0..=SOMAXCONN).contains(&backlog) { backlog } else { SOMAXCONN } as usize;
        let cred = Ucred::effective(task);
        {
            let mut l = self.inner.listening.lock();
            match &mut *l {
                Some(l) => {
                    l.backlog = backlog;
                    l.cred = cred;
                }
                none => *none = Some(Listening { backlog, pending: VecDeque::new(), cred }),
            }
            self.inner.is_listening.store(true, Ordering::SeqCst);
        }
        self.inner.wake.wake(PollEvents::SOCKET_WRITABLE);
        Ok(())
    }

    fn accept(&self, _s: &Socket) -> Result<Box<dyn Proto>> {
        let got = {
            let mut l = self.inner.listening.lock();
            l.as_mut().ok_or(Errno::EINVAL)?.pending.pop_front().ok_or(Errno::EAGAIN)?
        };
        got.embryo.store(false, Ordering::Relaxed);
        got.unaccepted.lock().take();
        self.inner.wake.wake(PollEvents::SOCKET_WRITABLE);
        Ok(Box::new(got))
    }

    fn connect(&self, s: &Socket, task: &Task, addr: &[u8], _nonblock: bool, _again: bool) -> Result<Connect> {
        let name = Name::parse(addr)?;
        if self.link().is_some() {
            return Err(Errno::EISCONN);
        }
        if self.inner.is_listening.load(Ordering::SeqCst) {
            return Err(Errno::EINVAL);
        }
        let found = self.inner.ns.unix.find(task, &name)?;
        let Ok(server) = found.downcast::<Inner>() else { return Err(Errno::EPROTOTYPE) };
        if server.kind != self.inner.kind {
            return Err(Errno::EPROTOTYPE);
        }
        let child = Conn::new(&self.inner.ns, self.inner.kind);
        *child.inner.name.lock() = server.name.lock().clone();
        child.embryo.store(true, Ordering::Relaxed);
        {
            let mut l = server.listening.lock();
            let l = l.as_mut().ok_or(Errno::ECONNREFUSED)?;
            if l.pending.len() > l.backlog {
                return Ok(Connect::Wait(server.wake.clone()));
            }
            *child.unaccepted.lock() = Some(Unaccepted::new().ok_or(Errno::ENFILE)?);
            self.join(&child, [Ucred::effective(task), l.cred.clone()]);
            if let Some(link) = child.link() {
                // Until accept(2) the receiver's option is not known, so credentials are kept.
                link.own().pass_cred.store(true, Ordering::Relaxed);
            }
            l.pending.push_back(child);
        }
        server.wake.wake(PollEvents::READABLE);
        self.opts_changed(s);
        self.inner.wake.wake(PollEvents::SOCKET_WRITABLE);
        Ok(Connect::Done)
    }

    fn local(&self) -> Vec<u8> {
        self.inner.name.lock().as_ref().map_or_else(unnamed, |n| n.sockaddr().to_vec())
    }

    fn peer(&self) -> Result<Vec<u8>> {
        let l = self.link().ok_or(Errno::ENOTCONN)?;
        let name = l.other().name.lock().clone();
        Ok(name.map_or_else(unnamed, |n| n.to_vec()))
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        let Some(l) = self.link() else { return Err(Errno::ENOTCONN) };
        if how != libc::SHUT_WR {
            l.rx().close();
        }
        if how != libc::SHUT_RD {
            l.tx().close();
        }
        l.own().wake.wake_all();
        l.other().wake.wake_all();
        Ok(())
    }

    fn send(&self, s: &Socket, src: &mut Src<'_>, msg: &mut SendMsg) -> Result<usize> {
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let Some(l) = self.link() else {
            let stream_to = msg.addr.is_some() && !self.framed();
            return Err(if stream_to { Errno::EOPNOTSUPP } else { Errno::ENOTCONN });
        };
        if msg.addr.is_some() && !self.framed() {
            return Err(Errno::EISCONN);
        }
        if s.pass_cred() || l.other().pass_cred.load(Ordering::Relaxed) {
            if let Some(task) = current::get() {
                msg.scm.get_or_insert_default().cred.get_or_insert_with(|| Ucred::real(&task));
            }
        }
        let n = if self.framed() {
            let e = l.own().error.swap(0, Ordering::SeqCst);
            if e != 0 && !l.tx().closed() {
                return Err(Errno::from_raw(e));
            }
            l.tx().send_record(src, &mut msg.scm, None)?
        } else {
            l.tx().send_bytes(src, &mut msg.scm)?
        };
        l.other().wake.wake(PollEvents::READABLE);
        Ok(n)
    }

    fn recv(&self, s: &Socket, dst: &mut Dst<'_>, msg: &mut RecvMsg) -> Result<usize> {
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(if self.framed() { Errno::EOPNOTSUPP } else { Errno::EINVAL });
        }
        let Some(l) = self.link() else {
            return Err(if self.framed() { Errno::ENOTCONN } else { Errno::EINVAL });
        };
        if l.own().error.load(Ordering::Relaxed) != 0 && l.rx().is_empty() {
            let e = l.own().error.swap(0, Ordering::SeqCst);
            if e != 0 {
                return Err(Errno::from_raw(e));
            }
        }
        let t = l.rx().recv(dst, msg)?;
        if t.room {
            l.other().wake.wake(PollEvents::SOCKET_WRITABLE);
        }
        finish_scm(s, msg);
        Ok(t.n)
    }

    fn take_error(&self) -> i32 {
        self.link().map_or(0, |l| l.own().error.swap(0, Ordering::SeqCst))
    }
    fn listening(&self) -> bool {
        self.inner.is_listening.load(Ordering::SeqCst)
    }
    fn peer_cred(&self) -> Option<Ucred> {
        match self.link() {
            Some(l) => Some(l.other().cred.clone()),
            None => self.inner.listening.lock().as_ref().map(|l| l.cred.clone()),
        }
    }
    fn opts_changed(&self, s: &Socket) {
        if let Some(l) = self.link() {
            l.own().pass_cred.store(s.pass_cred(), Ordering::Relaxed);
            if s.opts.snd_buf_set.load(Ordering::Relaxed) {
                l.tx().set_cap(s.opts.snd_buf.load(Ordering::Relaxed) as usize);
            }
        }
    }
    fn pending(&self) -> (usize, usize) {
        self.link().map_or((0, 0), |l| (l.rx().next_len(), l.tx().len()))
    }
}

/// Drops credentials that the receiver did not ask for; with `SO_PASSCRED` adds unknown ones if there are none.
pub(super) fn finish_scm(s: &Socket, msg: &mut RecvMsg) {
    if s.pass_cred() {
        let scm = msg.scm.get_or_insert_with(|| Box::new(Scm::default()));
        scm.cred.get_or_insert_with(Ucred::none);
    } else if let Some(scm) = &mut msg.scm {
        scm.cred = None;
    }
}
