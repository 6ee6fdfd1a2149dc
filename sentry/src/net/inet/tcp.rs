//! TCP sockets (tcp(7)).
//!
//! A connection within the sandbox is a [`Link`]. It is complete as soon as the listener has room for it. Until then
//! the connecting socket waits in the listener's queue ([`Listening::waiting`]), which accept(2) advances.
//!
//! Locks: `listen` of a listener before `st` of any socket; the port table and the wait queues last. `link` is a leaf.

use super::addr::{self, Kind};
use super::conn::{state, Link, Shared};
use super::mcast::Multicast;
use super::opts::{IpOpts, Shape};
use super::ports::{self, BindRequest, PortBinding};
use super::tcp_info;
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysResult};
use crate::fs::file::Unaccepted;
use crate::kernel::wait::WaitQueue;
use crate::kernel::Task;
use crate::mm::io::{Dst, Src};
use crate::net::socket::*;
use crate::net::NetNs;
use parking_lot::{Mutex, RwLock};
use platform::executor::Rounds;
use std::any::Any;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, Weak};

/// Upper limit of the backlog (`net.core.somaxconn`).
const SOMAXCONN: i32 = 4096;
/// An end's contribution to a queue's capacity unless the program sets a buffer size: about the size that Linux's
/// autotuning reaches.
const AUTO_BUF: usize = 128 << 10;
/// `net.ipv4.tcp_wmem` and `tcp_rmem`: the initial values of the options.
pub const SND_DEFAULT: u64 = 16384;
pub const RCV_DEFAULT: u64 = 131_072;

const SHUT_RCV: u8 = 1;
const SHUT_SND: u8 = 2;

/// Linux's `socket_state`, from which connect(2) derives its result.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Unconnected,
    Connecting,
    Connected,
}

struct St {
    phase: Phase,
    syn_sent: bool,
    /// The listener in whose `waiting` queue this socket is, or was.
    line: Weak<Inner>,
    /// The open file has been closed.
    closed: bool,
    claim: Option<Arc<PortBinding<Inner>>>,
    local: SocketAddr,
    remote: Option<SocketAddr>,
    /// The address and the port were set by bind(2): they survive a disconnect.
    bound_addr: bool,
    bound_port: bool,
}

struct Listening {
    backlog: usize,
    pending: VecDeque<Tcp>,
    /// Connecting sockets that wait for room in `pending`.
    waiting: VecDeque<Weak<Inner>>,
}

pub struct Inner {
    ns: Arc<NetNs>,
    pub v6: bool,
    pub uid: u32,
    pub ino: AtomicU64,
    shared: Arc<Shared>,
    opts: IpOpts,
    /// Multicast memberships; a stream receives nothing from a group. Accepted sockets do not inherit them.
    groups: Multicast,
    reuse: AtomicBool,
    reuse_port: AtomicBool,
    inline: AtomicBool,
    linger: AtomicI32,
    lowat: AtomicI32,
    shut: AtomicU8,
    listening: AtomicBool,
    listen: Mutex<Option<Listening>>,
    st: Mutex<St>,
    link: RwLock<Option<Link>>,
}

impl Inner {
    fn link(&self) -> Option<Link> {
        self.link.read().clone()
    }
    fn shape(&self) -> Shape {
        Shape { v6: self.v6, tcp: true, lite: false }
    }
    fn v6_only(&self) -> bool {
        self.v6 && self.opts.on(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)
    }
    fn shut(&self) -> u8 {
        self.shut.load(Ordering::SeqCst)
    }
    /// The state by Linux's number.
    pub fn state(&self) -> u8 {
        if self.listening.load(Ordering::SeqCst) {
            return state::LISTEN;
        }
        match self.link() {
            Some(l) => l.state(),
            None if self.st.lock().syn_sent => state::SYN_SENT,
            None => state::CLOSE,
        }
    }
    /// Local and remote address, bytes in the send and receive queues: for `/proc/net/tcp`.
    pub fn summary(&self) -> (SocketAddr, Option<SocketAddr>, usize, usize) {
        let (tx, rx) = match self.link() {
            Some(l) => (0, l.rx().len()),
            None => (0, self.listen.lock().as_ref().map_or(0, |l| l.pending.len())),
        };
        let st = self.st.lock();
        (st.local, st.remote, tx, rx)
    }
    fn want<'a>(self: &'a Arc<Self>, ip: std::net::IpAddr) -> BindRequest<'a, Inner> {
        BindRequest {
            ip,
            v6_only: self.v6_only(),
            uid: self.uid,
            reuse: self.reuse.load(Ordering::Relaxed),
            reuse_port: self.reuse_port.load(Ordering::Relaxed),
            sock: self,
        }
    }
    fn make(ns: &Arc<NetNs>, v6: bool, uid: u32, opts: IpOpts) -> Self {
        let shared = Shared::default();
        shared.snd.store(AUTO_BUF, Ordering::Relaxed);
        shared.rcv.store(AUTO_BUF, Ordering::Relaxed);
        Inner {
            ns: ns.clone(),
            v6,
            uid,
            ino: AtomicU64::new(0),
            shared: Arc::new(shared),
            opts,
            groups: Multicast::default(),
            reuse: AtomicBool::new(false),
            reuse_port: AtomicBool::new(false),
            inline: AtomicBool::new(false),
            linger: AtomicI32::new(-1),
            lowat: AtomicI32::new(1),
            shut: AtomicU8::new(0),
            listening: AtomicBool::new(false),
            listen: Mutex::new(None),
            st: Mutex::new(St {
                phase: Phase::Unconnected,
                syn_sent: false,
                line: Weak::new(),
                closed: false,
                claim: None,
                local: SocketAddr::new(addr::any(v6), 0),
                remote: None,
                bound_addr: false,
                bound_port: false,
            }),
            link: RwLock::new(None),
        }
    }

    /// Fails a connection attempt with `error`.
    fn refuse(&self, error: i32) {
        {
            let mut st = self.st.lock();
            if !st.syn_sent {
                return;
            }
            st.syn_sent = false;
            self.shared.error.store(error, Ordering::SeqCst);
            self.shut.store(SHUT_RCV | SHUT_SND, Ordering::SeqCst);
        }
        self.shared.wake.wake_all();
    }

    /// Completes the connection of `client`. The caller holds the lock of `self.listen`.
    fn admit(self: &Arc<Self>, listening: &mut Listening, client: &Arc<Inner>) {
        let Some(counts) = Unaccepted::new() else { return client.refuse(libc::ECONNREFUSED) };
        let child = Arc::new(Inner::make(&self.ns, self.v6, self.uid, self.opts.inherit()));
        {
            let mut st = client.st.lock();
            let Some(dst) = st.remote.filter(|_| st.syn_sent && !st.closed) else { return };
            child.shared.snd.store(self.shared.snd.load(Ordering::Relaxed), Ordering::Relaxed);
            child.shared.rcv.store(self.shared.rcv.load(Ordering::Relaxed), Ordering::Relaxed);
            child.reuse.store(self.reuse.load(Ordering::Relaxed), Ordering::Relaxed);
            child.reuse_port.store(self.reuse_port.load(Ordering::Relaxed), Ordering::Relaxed);
            let (a, b) = Link::pair(&client.shared, &child.shared);
            {
                let mut c = child.st.lock();
                c.phase = Phase::Connected;
                c.local = dst;
                c.remote = Some(st.local);
                c.claim = Some(self.ns.inet.tcp.accepted(&child.want(dst.ip()), dst.port(), st.local));
            }
            *child.link.write() = Some(b);
            *client.link.write() = Some(a);
            st.syn_sent = false;
        }
        listening.pending.push_back(Tcp {
            inner: child,
            embryo: AtomicBool::new(true),
            unaccepted: Mutex::new(Some(counts)),
        });
        client.shared.wake.wake(PollEvents::SOCKET_WRITABLE);
    }

    /// Admits waiting connections while the backlog has room; true if any was admitted. The caller wakes the listener.
    fn serve_line(self: &Arc<Self>, listening: &mut Listening) -> bool {
        let mut any = false;
        while listening.pending.len() <= listening.backlog {
            let Some(next) = listening.waiting.pop_front() else { break };
            if let Some(client) = next.upgrade() {
                self.admit(listening, &client);
                any = true;
            }
        }
        any
    }
}

/// The handle that the open file holds; dropping it closes the socket.
pub struct Tcp {
    inner: Arc<Inner>,
    /// Not accepted yet.
    embryo: AtomicBool,
    /// Its charge in the count of unaccepted connections, until accept(2).
    unaccepted: Mutex<Option<Unaccepted>>,
}

impl Tcp {
    pub fn new(task: &Task, v6: bool) -> Self {
        let inner = Inner::make(&task.ns().net, v6, task.cred().fsuid, IpOpts::default());
        Tcp { inner: Arc::new(inner), embryo: AtomicBool::new(false), unaccepted: Mutex::default() }
    }

    /// Binds a free port unless one is bound.
    fn autobind(&self, st: &mut St) -> Result<()> {
        if st.claim.is_none() {
            let claim = self.inner.ns.inet.tcp.bind(&self.inner.want(st.local.ip()), 0)?;
            st.local.set_port(claim.port);
            st.claim = Some(claim);
        }
        Ok(())
    }

    /// Stops listening: waiting connections are refused, unaccepted ones are reset.
    fn stop_listening(&self) {
        self.inner.listening.store(false, Ordering::SeqCst);
        let Some(l) = self.inner.listen.lock().take() else { return };
        if let Some(c) = &self.inner.st.lock().claim {
            c.listening.store(false, Ordering::Relaxed);
        }
        for w in l.waiting.iter().filter_map(Weak::upgrade) {
            w.refuse(libc::ECONNREFUSED);
        }
        let mut rounds = Rounds::new();
        for embryo in l.pending {
            rounds.next();
            drop(embryo);
        }
        self.inner.shared.wake.wake_all();
    }

    /// Removes this socket from its listener's `waiting` queue.
    fn leave_line(&self) {
        let line = std::mem::take(&mut self.inner.st.lock().line);
        if let Some(server) = line.upgrade() {
            if let Some(l) = server.listen.lock().as_mut() {
                l.waiting.retain(|w| !std::ptr::eq(w.as_ptr(), &*self.inner));
            }
        }
    }

    /// Returns to the unconnected state; only the address and port set by bind(2) remain.
    fn disconnect(&self) {
        self.stop_listening();
        self.leave_line();
        let link = self.inner.link.write().take();
        let mut st = self.inner.st.lock();
        st.phase = Phase::Unconnected;
        st.syn_sent = false;
        st.remote = None;
        if !st.bound_addr {
            let port = if st.bound_port { st.local.port() } else { 0 };
            st.local = SocketAddr::new(addr::any(self.inner.v6), port);
        }
        let mut gone = None;
        if !st.bound_port {
            gone = st.claim.take();
            st.local.set_port(0);
        } else if let Some(old) = st.claim.take() {
            let again = self.inner.ns.inet.tcp.moved(&old, &self.inner.want(st.local.ip()), None, false);
            st.claim = again.ok().or(Some(old));
        }
        self.inner.shut.store(0, Ordering::SeqCst);
        drop(st);
        if let Some(c) = gone {
            self.inner.ns.inet.tcp.release(&c);
        }
        if let Some(l) = link {
            l.close(true);
        }
    }

    /// Begins a connection attempt: chooses the source address, binds it and enters SYN_SENT.
    fn start(&self, st: &mut St, to: SocketAddr) -> Result<()> {
        let ip = match addr::kind(to.ip()) {
            Kind::Any => addr::source_for(to.ip()),
            Kind::Local => to.ip(),
            _ => return Err(Errno::ENETUNREACH),
        };
        addr::reachable(&self.inner.ns, ip)?;
        if self.inner.v6_only() && ip.is_ipv4() {
            return Err(Errno::ENETUNREACH);
        }
        if !self.inner.v6 && ip.is_ipv6() {
            return Err(Errno::EAFNOSUPPORT);
        }
        let dst = SocketAddr::new(ip, to.port());
        let src_ip = if st.local.ip().is_unspecified() { addr::source_for(ip) } else { st.local.ip() };
        if src_ip.is_ipv4() != ip.is_ipv4() {
            return Err(Errno::EINVAL);
        }
        let table = &self.inner.ns.inet.tcp;
        if let Some(old) = &st.claim {
            let new = table.moved(old, &self.inner.want(src_ip), Some(dst), true)?;
            st.claim = Some(new);
        } else {
            let claim = table.bind(&self.inner.want(src_ip), 0).map_err(|_| Errno::EADDRNOTAVAIL)?;
            let _ = claim.remote.set(dst);
            st.local.set_port(claim.port);
            st.claim = Some(claim);
        }
        st.local.set_ip(src_ip);
        st.remote = Some(dst);
        st.phase = Phase::Connecting;
        st.syn_sent = true;
        Ok(())
    }

    /// Finds the listener and connects, or joins its `waiting` queue.
    fn knock(&self, src: SocketAddr, dst: SocketAddr) {
        let inner = &self.inner;
        if src == dst {
            return self.meet_itself();
        }
        let Some(server) = inner.ns.inet.tcp.listener(src, dst) else { return inner.refuse(libc::ECONNREFUSED) };
        {
            let mut l = server.listen.lock();
            let Some(l) = l.as_mut() else { return inner.refuse(libc::ECONNREFUSED) };
            if l.pending.len() > l.backlog {
                // Entries of sockets that gave up are removed when the queue doubles.
                if l.waiting.len() > 64 && l.waiting.len().is_power_of_two() {
                    l.waiting.retain(|w| w.strong_count() > 0);
                }
                l.waiting.push_back(Arc::downgrade(inner));
                inner.st.lock().line = Arc::downgrade(&server);
                return;
            }
            server.admit(l, inner);
        }
        server.shared.wake.wake(PollEvents::READABLE);
    }

    /// Handles a connect(2) to the socket's own address (simultaneous open).
    fn meet_itself(&self) {
        // Linux connects the socket to itself. Programs that poll a local port hit this by accident and expect a
        // refusal.
        self.inner.refuse(libc::ECONNREFUSED);
    }

    /// The result of connect(2) if the attempt is over, else the queue to wait on.
    fn settle(&self) -> Result<Connect> {
        let dead = {
            let mut st = self.inner.st.lock();
            if st.syn_sent {
                return Ok(Connect::Wait(self.inner.shared.wake.clone()));
            }
            let dead = self.inner.link.read().as_ref().is_none_or(|l| l.state() == state::CLOSE);
            if !dead {
                st.phase = Phase::Connected;
            }
            dead
        };
        if !dead {
            return Ok(Connect::Done);
        }
        let e = self.inner.shared.take_error();
        self.disconnect();
        Err(if e != 0 { Errno::from_raw(e) } else { Errno::ECONNABORTED })
    }

    pub fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.stop_listening();
        let claim = {
            let mut st = self.inner.st.lock();
            st.closed = true;
            st.syn_sent = false;
            st.claim.take()
        };
        if let Some(c) = claim {
            self.inner.ns.inet.tcp.release(&c);
        }
        if let Some(l) = self.inner.link.write().take() {
            let abort = self.embryo.load(Ordering::Relaxed) || self.inner.linger.load(Ordering::Relaxed) == 0;
            l.close(abort);
        }
    }
}

impl Proto for Tcp {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn queue(&self) -> &Arc<WaitQueue> {
        &self.inner.shared.wake
    }

    fn poll(&self) -> PollEvents {
        let i = &self.inner;
        if i.listening.load(Ordering::SeqCst) {
            let some = i.listen.lock().as_ref().is_some_and(|l| !l.pending.is_empty());
            return if some { PollEvents::READABLE } else { PollEvents::empty() };
        }
        let shut = i.shut();
        let mut ev = if i.shared.error.load(Ordering::SeqCst) != 0 { PollEvents::ERR } else { PollEvents::empty() };
        let Some(l) = i.link() else {
            if i.st.lock().syn_sent {
                return ev;
            }
            ev |= PollEvents::SOCKET_WRITABLE | PollEvents::HUP;
            if shut & SHUT_RCV != 0 {
                ev |= PollEvents::READABLE | PollEvents::RDHUP;
            }
            return ev;
        };
        let s = l.status(i.inline.load(Ordering::Relaxed));
        if s.ended || shut & SHUT_RCV != 0 {
            ev |= PollEvents::RDHUP | PollEvents::READABLE;
            if s.shut {
                ev |= PollEvents::HUP;
            }
        }
        if s.readable >= (i.lowat.load(Ordering::Relaxed).max(1) as usize) {
            ev |= PollEvents::READABLE;
        }
        if s.urgent {
            ev |= PollEvents::PRI;
        }
        if s.writable || s.shut {
            ev |= PollEvents::SOCKET_WRITABLE;
        }
        ev & !(PollEvents::WRBAND)
    }

    fn bind(&self, _s: &Socket, task: &Task, sockaddr: &[u8]) -> Result<()> {
        let i = &self.inner;
        let a = ports::to_bind(&i.ns, task, i.v6, i.v6_only(), sockaddr, true)?;
        let mut st = i.st.lock();
        if st.claim.is_some() || st.phase != Phase::Unconnected {
            return Err(Errno::EINVAL);
        }
        let claim = i.ns.inet.tcp.bind(&i.want(a.ip()), a.port())?;
        st.local = SocketAddr::new(a.ip(), claim.port);
        st.claim = Some(claim);
        st.bound_addr = !a.ip().is_unspecified();
        st.bound_port = a.port() != 0;
        Ok(())
    }

    fn listen(&self, _s: &Socket, _task: &Task, backlog: i32) -> Result<()> {
        let i = &self.inner;
        let backlog = if (0..=SOMAXCONN).contains(&backlog) { backlog } else { SOMAXCONN } as usize;
        let mut listen = i.listen.lock();
        let mut st = i.st.lock();
        if st.phase != Phase::Unconnected {
            return Err(Errno::EINVAL);
        }
        if let Some(l) = &mut *listen {
            drop(st);
            l.backlog = backlog;
            if i.serve_line(l) {
                drop(listen);
                i.shared.wake.wake(PollEvents::READABLE);
            }
            return Ok(());
        }
        self.autobind(&mut st)?;
        if let Some(c) = &st.claim {
            i.ns.inet.tcp.listen(c)?;
        }
        drop(st);
        *listen = Some(Listening { backlog, pending: VecDeque::new(), waiting: VecDeque::new() });
        i.shut.store(0, Ordering::SeqCst);
        i.listening.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn accept(&self, _s: &Socket) -> Result<Box<dyn Proto>> {
        let i = &self.inner;
        let (got, more) = {
            let mut l = i.listen.lock();
            let l = l.as_mut().ok_or(Errno::EINVAL)?;
            let got = l.pending.pop_front().ok_or(Errno::EAGAIN)?;
            (got, !l.waiting.is_empty() && i.serve_line(l))
        };
        if more {
            i.shared.wake.wake(PollEvents::READABLE);
        }
        got.embryo.store(false, Ordering::Relaxed);
        got.unaccepted.lock().take();
        Ok(Box::new(got))
    }

    fn connect(&self, _s: &Socket, _task: &Task, sockaddr: &[u8], nonblock: bool, again: bool) -> Result<Connect> {
        if addr::family(sockaddr)? == libc::AF_UNSPEC {
            self.disconnect();
            return Ok(Connect::Done);
        }
        if self.inner.listening.load(Ordering::SeqCst) {
            return Err(Errno::EISCONN);
        }
        let (src, dst) = {
            let mut st = self.inner.st.lock();
            match st.phase {
                Phase::Connected => return Err(Errno::EISCONN),
                Phase::Connecting if nonblock && st.syn_sent => return Err(Errno::EALREADY),
                Phase::Connecting => {
                    drop(st);
                    return self.settle();
                }
                Phase::Unconnected if again => return Err(Errno::ECONNABORTED),
                Phase::Unconnected => {
                    let to = addr::parse(self.inner.v6, sockaddr)?;
                    self.start(&mut st, to)?;
                    (st.local, st.remote.unwrap_or(to))
                }
            }
        };
        self.knock(src, dst);
        if nonblock {
            return Err(Errno::EINPROGRESS);
        }
        self.settle()
    }

    fn local(&self) -> Vec<u8> {
        addr::sockaddr(self.inner.v6, self.inner.st.lock().local)
    }

    fn peer(&self) -> Result<Vec<u8>> {
        if !matches!(self.inner.state(), state::CLOSE | state::LISTEN) {
            let st = self.inner.st.lock();
            if let Some(r) = st.remote.filter(|_| !st.syn_sent) {
                return Ok(addr::sockaddr(self.inner.v6, r));
            }
        }
        Err(Errno::ENOTCONN)
    }

    fn accepted_from(&self) -> Option<Vec<u8>> {
        // The address is reported even if the connection has been reset since.
        self.inner.st.lock().remote.map(|r| addr::sockaddr(self.inner.v6, r))
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        let i = &self.inner;
        let bits = match how {
            libc::SHUT_RD => SHUT_RCV,
            libc::SHUT_WR => SHUT_SND,
            _ => SHUT_RCV | SHUT_SND,
        };
        if i.listening.load(Ordering::SeqCst) {
            if bits & SHUT_RCV != 0 {
                self.disconnect();
            }
            return Ok(());
        }
        let link = i.link();
        let was = i.state();
        if link.is_none() && was == state::SYN_SENT {
            self.disconnect();
            i.shared.wake.wake_all();
            return Ok(());
        }
        i.shut.fetch_or(bits, Ordering::SeqCst);
        if let Some(l) = &link {
            if bits & SHUT_SND != 0 {
                l.shut_send();
            }
        }
        i.shared.wake.wake_all();
        if was == state::CLOSE {
            return Err(Errno::ENOTCONN);
        }
        Ok(())
    }

    fn send(&self, _s: &Socket, src: &mut Src<'_>, msg: &mut SendMsg) -> Result<usize> {
        if msg.flags & libc::MSG_FASTOPEN != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let Some(l) = self.inner.link() else {
            let e = self.inner.shared.take_error();
            if e != 0 {
                return Err(Errno::from_raw(e));
            }
            return Err(if self.inner.st.lock().syn_sent { Errno::EAGAIN } else { Errno::EPIPE });
        };
        l.send(src, msg.flags & libc::MSG_OOB != 0)
    }

    fn recv(&self, _s: &Socket, dst: &mut Dst<'_>, msg: &mut RecvMsg) -> Result<usize> {
        let i = &self.inner;
        if i.listening.load(Ordering::SeqCst) {
            return Err(Errno::ENOTCONN);
        }
        if msg.flags & libc::MSG_ERRQUEUE != 0 {
            return Err(Errno::EAGAIN);
        }
        let inline = i.inline.load(Ordering::Relaxed);
        let Some(l) = i.link() else {
            let e = i.shared.take_error();
            if e != 0 {
                return Err(Errno::from_raw(e));
            }
            if i.shut() & SHUT_RCV != 0 {
                return Ok(0);
            }
            return Err(if i.st.lock().syn_sent { Errno::EAGAIN } else { Errno::ENOTCONN });
        };
        if msg.flags & libc::MSG_OOB != 0 {
            if inline {
                return Err(Errno::EINVAL);
            }
            let n = l.rx().recv_urgent(dst, msg.flags & libc::MSG_PEEK != 0)?;
            msg.out_flags |= libc::MSG_OOB;
            return Ok(n);
        }
        msg.inline = inline;
        l.recv(dst, msg, i.shut() & SHUT_RCV != 0)
    }

    fn take_error(&self) -> i32 {
        self.inner.shared.take_error()
    }
    fn listening(&self) -> bool {
        self.inner.listening.load(Ordering::SeqCst)
    }

    fn get_opt(&self, s: &Socket, level: i32, name: i32) -> Result<Vec<u8>> {
        if level == libc::IPPROTO_TCP {
            let state = self.inner.state();
            if let Some(v) = tcp_info::get(name, state, &self.inner.opts) {
                return v;
            }
        }
        if let Some(v) = self.inner.groups.get(self.inner.v6, level, name) {
            return Ok(v);
        }
        super::get_opt(&self.inner.opts, self.inner.shape(), s, self.inner.st.lock().remote.is_some(), level, name)
    }

    fn set_opt(&self, _s: &Socket, task: &Task, level: i32, name: i32, value: &[u8]) -> Result<()> {
        let i = &self.inner;
        if (level, name) == (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) && i.st.lock().claim.is_some() {
            return Err(Errno::EINVAL);
        }
        if level == libc::IPPROTO_TCP {
            if let Some(r) = tcp_info::set(name, value) {
                return r;
            }
        }
        if let Some(r) = i.groups.set(i.v6, level, name, value) {
            return r;
        }
        i.opts.set(i.shape(), task, level, name, value)
    }

    fn opts_changed(&self, s: &Socket) {
        let (i, o) = (&self.inner, &s.opts);
        i.ino.store(s.ino(), Ordering::Relaxed);
        i.reuse.store(o.reuse_addr.load(Ordering::Relaxed), Ordering::Relaxed);
        i.reuse_port.store(o.reuse_port.load(Ordering::Relaxed), Ordering::Relaxed);
        i.inline.store(o.oob_inline.load(Ordering::Relaxed), Ordering::Relaxed);
        i.linger.store(o.linger.load(Ordering::Relaxed), Ordering::Relaxed);
        i.lowat.store(o.rcv_lowat.load(Ordering::Relaxed), Ordering::Relaxed);
        let size = |set: &AtomicBool, v: &AtomicU64| match set.load(Ordering::Relaxed) {
            // The option value is twice the size that the program asked for.
            true => v.load(Ordering::Relaxed) as usize / 2,
            false => AUTO_BUF,
        };
        i.shared.snd.store(size(&o.snd_buf_set, &o.snd_buf), Ordering::Relaxed);
        i.shared.rcv.store(size(&o.rcv_buf_set, &o.rcv_buf), Ordering::Relaxed);
        if let Some(c) = &i.st.lock().claim {
            c.reuse.store(o.reuse_addr.load(Ordering::Relaxed), Ordering::Relaxed);
            c.reuse_port.store(o.reuse_port.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        if let Some(l) = i.link() {
            l.resize();
        }
    }

    fn pending(&self) -> (usize, usize) {
        self.inner.link().map_or((0, 0), |l| (l.rx().readable(self.inner.inline.load(Ordering::Relaxed)), 0))
    }

    fn ioctl(&self, task: &Task, cmd: u32, arg: u64) -> SysResult {
        if cmd == super::SIOCATMARK {
            let at = self.inner.link().is_some_and(|l| l.rx().at_mark());
            task.mem().write(arg, &i32::from(at))?;
            return Ok(0);
        }
        Err(Errno::ENOTTY.into())
    }
}
