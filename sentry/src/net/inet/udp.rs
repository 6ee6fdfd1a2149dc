//! UDP sockets (udp(7)).
//!
//! Each socket has one queue; the sender puts a datagram straight into the queue of the socket that the port table
//! names. A datagram that does not fit is dropped. One without a receiver gives a connected sender `ECONNREFUSED`.
//!
//! Locks: `st`, then the port table; the queue and the wait queue are leaves.

use super::addr::{self, Kind};
use super::mcast::Multicast;
use super::opts::{IpOpts, Shape};
use super::ports::{self, BindRequest, PortBinding};
use crate::abi::PollEvents;
use crate::error::{Errno, Result};
use crate::kernel::wait::WaitQueue;
use crate::kernel::Task;
use crate::mm::io::{Dst, Src};
use crate::net::queue::Queue;
use crate::net::scm::{Header, Scm};
use crate::net::socket::*;
use crate::net::{device, NetNs};
use parking_lot::Mutex;
use platform::executor::Rounds;
use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;

/// Longest payload that the length fields of IPv4 and IPv6 allow.
const MAX_V4: usize = 65_507;
const MAX_V6: usize = 65_527;
const SHUT_RCV: u8 = 1;
const SHUT_SND: u8 = 2;

struct St {
    claim: Option<Arc<PortBinding<Inner>>>,
    local: SocketAddr,
    remote: Option<SocketAddr>,
    bound_addr: bool,
    bound_port: bool,
}

/// The part of a corked datagram sent so far.
struct Corked {
    to: SocketAddr,
    header: Header,
    data: Vec<u8>,
}

pub struct Inner {
    ns: Arc<NetNs>,
    pub v6: bool,
    /// The socket is UDP-Lite, which has its own port table.
    lite: bool,
    pub uid: u32,
    pub ino: AtomicU64,
    wake: Arc<WaitQueue>,
    queue: Queue,
    error: AtomicI32,
    opts: IpOpts,
    groups: Multicast,
    reuse: AtomicBool,
    reuse_port: AtomicBool,
    broadcast: AtomicBool,
    /// One of [`HEADER_OPTS`] is on.
    wants_header: AtomicBool,
    shut: AtomicU8,
    /// The datagram being assembled from several sends (`MSG_MORE`).
    cork: Mutex<Option<Corked>>,
    /// Datagrams dropped because the queue was full.
    pub drops: AtomicU64,
    st: Mutex<St>,
}

impl Inner {
    fn shape(&self) -> Shape {
        Shape { v6: self.v6, tcp: false, lite: self.lite }
    }
    fn v6_only(&self) -> bool {
        self.v6 && self.opts.on(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)
    }
    fn want<'a>(self: &'a Arc<Self>, ip: IpAddr) -> BindRequest<'a, Inner> {
        BindRequest {
            ip,
            v6_only: self.v6_only(),
            uid: self.uid,
            reuse: self.reuse.load(Ordering::Relaxed),
            reuse_port: self.reuse_port.load(Ordering::Relaxed),
            sock: self,
        }
    }
    /// Local and remote address, bytes queued: for `/proc/net/udp`.
    pub fn summary(&self) -> (SocketAddr, Option<SocketAddr>, usize) {
        let st = self.st.lock();
        (st.local, st.remote, self.queue.len())
    }
    fn table(&self) -> &ports::Table<Inner> {
        if self.lite {
            &self.ns.inet.udplite
        } else {
            &self.ns.inet.udp
        }
    }

    /// Queues a datagram, or drops it if the queue is full.
    fn deliver(&self, src: &mut Src<'_>, from: SocketAddr, header: Header) -> Result<()> {
        if self.shut.load(Ordering::Relaxed) & SHUT_RCV != 0 {
            return Ok(());
        }
        let wants = self.wants_header.load(Ordering::Relaxed);
        let mut scm = wants.then(|| Box::new(Scm { header: Some(header), ..Scm::default() }));
        let name = addr::sockaddr(self.v6, from).into();
        match self.queue.send_record(src, &mut scm, Some(name)) {
            Ok(_) => self.wake.wake(PollEvents::READABLE),
            Err(Errno::EFAULT) => return Err(Errno::EFAULT),
            Err(_) => {
                self.drops.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

pub struct Udp {
    inner: Arc<Inner>,
}

impl Udp {
    pub fn new(task: &Task, v6: bool, lite: bool) -> Self {
        Udp {
            inner: Arc::new(Inner {
                ns: task.ns().net.clone(),
                v6,
                lite,
                uid: task.cred().fsuid,
                ino: AtomicU64::new(0),
                wake: Arc::default(),
                queue: Queue::new(true, BUF_DEFAULT),
                error: AtomicI32::new(0),
                opts: IpOpts::default(),
                groups: Multicast::default(),
                reuse: AtomicBool::new(false),
                reuse_port: AtomicBool::new(false),
                broadcast: AtomicBool::new(false),
                wants_header: AtomicBool::new(false),
                shut: AtomicU8::new(0),
                cork: Mutex::new(None),
                drops: AtomicU64::new(0),
                st: Mutex::new(St {
                    claim: None,
                    local: SocketAddr::new(addr::any(v6), 0),
                    remote: None,
                    bound_addr: false,
                    bound_port: false,
                }),
            }),
        }
    }

    fn autobind(&self, st: &mut St) -> Result<()> {
        if st.claim.is_none() {
            let claim = self.inner.table().bind(&self.inner.want(st.local.ip()), 0).map_err(|_| Errno::EAGAIN)?;
            st.local.set_port(claim.port);
            st.claim = Some(claim);
        }
        Ok(())
    }

    /// The destination of packets to `to`, if this socket may send there.
    fn route(&self, to: SocketAddr) -> Result<SocketAddr> {
        let i = &self.inner;
        if i.v6_only() && to.is_ipv4() {
            return Err(Errno::ENETUNREACH);
        }
        addr::reachable(&i.ns, to.ip())?;
        match addr::kind(to.ip()) {
            Kind::Any => Ok(SocketAddr::new(addr::source_for(to.ip()), to.port())),
            Kind::Local => Ok(to),
            Kind::Broadcast if to.ip() == IpAddr::from([255; 4]) => Err(Errno::ENETUNREACH),
            Kind::Broadcast if !i.broadcast.load(Ordering::Relaxed) => Err(Errno::EACCES),
            Kind::Broadcast => Ok(to),
            Kind::Multicast if i.groups.routed(to.ip()) => Ok(to),
            _ => Err(Errno::ENETUNREACH),
        }
    }

    /// Parses the destination of a sendto(2).
    fn target(&self, sockaddr: &[u8]) -> Result<Option<SocketAddr>> {
        let fam = addr::family(sockaddr)?;
        let to = if self.inner.v6 {
            match fam {
                libc::AF_INET6 => addr::parse_v6(sockaddr)?,
                libc::AF_INET => addr::parse_v4(sockaddr)?,
                libc::AF_UNSPEC => return Ok(None),
                _ => return Err(Errno::EINVAL),
            }
        } else {
            let to = addr::parse_v4(sockaddr)?;
            if fam != libc::AF_INET && fam != libc::AF_UNSPEC {
                return Err(Errno::EAFNOSUPPORT);
            }
            to
        };
        if to.port() == 0 {
            return Err(Errno::EINVAL);
        }
        Ok(Some(to))
    }

    fn disconnect(&self) {
        let i = &self.inner;
        let mut st = i.st.lock();
        if !st.bound_addr {
            let port = st.local.port();
            st.local = SocketAddr::new(addr::any(i.v6), port);
        }
        let Some(old) = st.claim.take() else { return };
        if st.bound_port {
            let again = i.table().moved(&old, &i.want(st.local.ip()), None, false);
            st.claim = again.ok().or(Some(old));
        } else {
            st.local.set_port(0);
            i.table().release(&old);
        }
        st.remote = None;
    }

    /// Delivers to every socket at the port: broadcast and multicast.
    fn spread(&self, src: &mut Src<'_>, from: SocketAddr, to: SocketAddr, header: Header) -> Result<usize> {
        let i = &self.inner;
        let data = src.take_vec(MAX_V6)?;
        let group = to.ip().is_multicast();
        let (level, name) = match to.is_ipv4() {
            true => (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
            false => (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
        };
        if group && !i.opts.on(level, name) {
            return Ok(data.len());
        }
        // Each delivery copies the datagram, and thousands of sockets may share a port.
        let mut rounds = Rounds::new();
        for sock in i.table().all_at(to.port()) {
            rounds.look();
            let (ip, remote, v6_only) = {
                let st = sock.st.lock();
                (st.local.ip(), st.remote, sock.v6_only())
            };
            let family = if to.is_ipv4() { ip.is_ipv4() || !v6_only } else { ip.is_ipv6() };
            let here = family && (ip.is_unspecified() || ip == to.ip()) && remote.is_none_or(|r| r == from);
            if here && (!group || sock.groups.joined(to.ip())) {
                sock.deliver(&mut Src::kernel(&data), from, header)?;
            }
        }
        Ok(data.len())
    }

    /// Sends one datagram.
    fn transmit(
        &self,
        src: &mut Src<'_>,
        from: SocketAddr,
        to: SocketAddr,
        header: Header,
        connected: bool,
    ) -> Result<usize> {
        let i = &self.inner;
        let len = src.remaining();
        if addr::kind(to.ip()) != Kind::Local {
            return self.spread(src, from, to, header);
        }
        match i.table().receiver(from, to) {
            Some(sock) => sock.deliver(src, from, header)?,
            None => {
                if src.take_vec(len)?.len() < len {
                    return Err(Errno::EFAULT);
                }
                // The answer would be an ICMP message, which only a connected socket receives.
                let hears = connected
                    || i.opts.on(libc::IPPROTO_IP, libc::IP_RECVERR)
                    || i.opts.on(libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
                if hears {
                    i.error.store(libc::ECONNREFUSED, Ordering::SeqCst);
                    i.wake.wake_all();
                }
            }
        }
        Ok(len)
    }

    fn take_err(&self) -> Result<()> {
        match self.take_error() {
            0 => Ok(()),
            e => Err(Errno::from_raw(e)),
        }
    }

    pub fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Drop for Udp {
    fn drop(&mut self) {
        let claim = self.inner.st.lock().claim.take();
        if let Some(c) = claim {
            self.inner.table().release(&c);
        }
        self.inner.queue.close();
        self.inner.queue.desert();
    }
}

impl Proto for Udp {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn queue(&self) -> &Arc<WaitQueue> {
        &self.inner.wake
    }

    fn poll(&self) -> PollEvents {
        let i = &self.inner;
        let mut ev = PollEvents::SOCKET_WRITABLE;
        if i.error.load(Ordering::SeqCst) != 0 {
            ev |= PollEvents::ERR;
        }
        let shut = i.shut.load(Ordering::SeqCst);
        if shut & SHUT_RCV != 0 {
            ev |= PollEvents::RDHUP | PollEvents::READABLE;
        }
        if shut == SHUT_RCV | SHUT_SND {
            ev |= PollEvents::HUP;
        }
        if !i.queue.is_empty() {
            ev |= PollEvents::READABLE;
        }
        ev
    }

    fn bind(&self, _s: &Socket, task: &Task, sockaddr: &[u8]) -> Result<()> {
        let i = &self.inner;
        let a = ports::to_bind(&i.ns, task, i.v6, i.v6_only(), sockaddr, false)?;
        let mut st = i.st.lock();
        if st.claim.is_some() {
            return Err(Errno::EINVAL);
        }
        let claim = i.table().bind(&i.want(a.ip()), a.port())?;
        st.local = SocketAddr::new(a.ip(), claim.port);
        st.claim = Some(claim);
        st.bound_addr = !a.ip().is_unspecified();
        st.bound_port = true;
        Ok(())
    }

    fn connect(&self, _s: &Socket, _task: &Task, sockaddr: &[u8], _nonblock: bool, _again: bool) -> Result<Connect> {
        if addr::family(sockaddr)? == libc::AF_UNSPEC {
            self.disconnect();
            return Ok(Connect::Done);
        }
        let i = &self.inner;
        let to = match addr::family(sockaddr)? {
            libc::AF_INET if i.v6 => addr::parse_v4(sockaddr)?,
            _ => addr::parse(i.v6, sockaddr)?,
        };
        let to = self.route(to)?;
        let mut st = i.st.lock();
        let source = if st.bound_addr { st.local.ip() } else { addr::source_for(to.ip()) };
        if source.is_ipv4() != to.is_ipv4() {
            return Err(Errno::EINVAL);
        }
        self.autobind(&mut st)?;
        if let Some(old) = &st.claim {
            let claim = i.table().moved(old, &i.want(source), Some(to), false)?;
            st.claim = Some(claim);
        }
        st.local.set_ip(source);
        st.remote = Some(to);
        i.error.store(0, Ordering::SeqCst);
        Ok(Connect::Done)
    }

    fn local(&self) -> Vec<u8> {
        addr::sockaddr(self.inner.v6, self.inner.st.lock().local)
    }

    fn peer(&self) -> Result<Vec<u8>> {
        let r = self.inner.st.lock().remote.ok_or(Errno::ENOTCONN)?;
        Ok(addr::sockaddr(self.inner.v6, r))
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        let i = &self.inner;
        let bits = match how {
            libc::SHUT_RD => SHUT_RCV,
            libc::SHUT_WR => SHUT_SND,
            _ => SHUT_RCV | SHUT_SND,
        };
        i.shut.fetch_or(bits, Ordering::SeqCst);
        i.wake.wake_all();
        if i.st.lock().remote.is_none() {
            return Err(Errno::ENOTCONN);
        }
        Ok(())
    }

    fn send(&self, _s: &Socket, src: &mut Src<'_>, msg: &mut SendMsg) -> Result<usize> {
        let i = &self.inner;
        let len = src.remaining();
        if len > if i.v6 { MAX_V6 } else { MAX_V4 } {
            return Err(Errno::EMSGSIZE);
        }
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let named = match &msg.addr {
            Some(a) => self.target(a)?,
            None => None,
        };
        let (from, to, connected) = {
            let mut st = i.st.lock();
            let to = match named {
                Some(t) => self.route(t)?,
                None => st.remote.ok_or(Errno::EDESTADDRREQ)?,
            };
            if to.is_ipv4() && len > MAX_V4 {
                return Err(Errno::EMSGSIZE);
            }
            self.take_err()?;
            if i.shut.load(Ordering::SeqCst) & SHUT_SND != 0 {
                return Err(Errno::EPIPE);
            }
            self.autobind(&mut st)?;
            let mut ip = st.local.ip();
            if ip.is_unspecified() || ip.is_multicast() {
                ip = addr::source_for(to.ip());
            }
            if ip.is_ipv4() != to.is_ipv4() {
                return Err(Errno::ENETUNREACH);
            }
            (SocketAddr::new(ip, st.local.port()), to, st.remote.is_some())
        };
        let header = self.header(to.ip(), &msg.control)?;
        let more = msg.flags & libc::MSG_MORE != 0;
        {
            let mut cork = i.cork.lock();
            if more || cork.is_some() {
                let piece = src.take_vec(len)?;
                if piece.len() < len {
                    return Err(Errno::EFAULT);
                }
                let c = cork.get_or_insert_with(|| Corked { to, header, data: Vec::new() });
                if c.data.len() + len > MAX_V4 {
                    *cork = None;
                    return Err(Errno::EMSGSIZE);
                }
                c.data.extend_from_slice(&piece);
                if more {
                    return Ok(len);
                }
            }
            if let Some(c) = cork.take() {
                drop(cork);
                self.transmit(&mut Src::kernel(&c.data), from, c.to, c.header, connected)?;
                return Ok(len);
            }
        }
        self.transmit(src, from, to, header, connected)
    }

    fn recv(&self, _s: &Socket, dst: &mut Dst<'_>, msg: &mut RecvMsg) -> Result<usize> {
        let i = &self.inner;
        if msg.flags & libc::MSG_ERRQUEUE != 0 {
            return Err(Errno::EAGAIN);
        }
        self.take_err()?;
        let t = match i.queue.recv(dst, msg) {
            Err(Errno::EAGAIN) if i.shut.load(Ordering::SeqCst) & SHUT_RCV != 0 => return Ok(0),
            r => r?,
        };
        if let Some(h) = msg.scm.take().and_then(|s| s.header) {
            self.report(h, msg);
        }
        Ok(t.n)
    }

    fn take_error(&self) -> i32 {
        self.inner.error.swap(0, Ordering::SeqCst)
    }

    fn get_opt(&self, s: &Socket, level: i32, name: i32) -> Result<Vec<u8>> {
        let i = &self.inner;
        if let Some(v) = i.groups.get(i.v6, level, name) {
            return Ok(v);
        }
        super::get_opt(&i.opts, i.shape(), s, i.st.lock().remote.is_some(), level, name)
    }

    fn set_opt(&self, _s: &Socket, task: &Task, level: i32, name: i32, value: &[u8]) -> Result<()> {
        let i = &self.inner;
        if (level, name) == (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) && i.st.lock().claim.is_some() {
            return Err(Errno::EINVAL);
        }
        if let Some(r) = i.groups.set(i.v6, level, name, value) {
            return r;
        }
        i.opts.set(i.shape(), task, level, name, value)?;
        let wants = HEADER_OPTS.iter().any(|(l, n)| i.opts.on(*l, *n));
        i.wants_header.store(wants, Ordering::Relaxed);
        Ok(())
    }

    fn opts_changed(&self, s: &Socket) {
        let (i, o) = (&self.inner, &s.opts);
        i.ino.store(s.ino(), Ordering::Relaxed);
        i.reuse.store(o.reuse_addr.load(Ordering::Relaxed), Ordering::Relaxed);
        i.reuse_port.store(o.reuse_port.load(Ordering::Relaxed), Ordering::Relaxed);
        i.broadcast.store(o.broadcast.load(Ordering::Relaxed), Ordering::Relaxed);
        i.queue.set_cap(o.rcv_buf.load(Ordering::Relaxed) as usize);
        if let Some(c) = &i.st.lock().claim {
            c.reuse.store(o.reuse_addr.load(Ordering::Relaxed), Ordering::Relaxed);
            c.reuse_port.store(o.reuse_port.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn pending(&self) -> (usize, usize) {
        (self.inner.queue.next_len(), 0)
    }
}

/// Options that ask for header fields of a received datagram.
const HEADER_OPTS: [(i32, i32); 6] = [
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_RECVTTL),
    (libc::IPPROTO_IP, libc::IP_RECVTOS),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
];

impl Udp {
    /// The header of a datagram to `to`: from the socket's options, overridden by the control messages.
    fn header(&self, to: IpAddr, control: &[(i32, i32, Vec<u8>)]) -> Result<Header> {
        let i = &self.inner;
        let v4 = to.is_ipv4();
        let (level, hops, many, class) = match v4 {
            true => (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_MULTICAST_TTL, libc::IP_TOS),
            false => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, libc::IPV6_MULTICAST_HOPS, libc::IPV6_TCLASS),
        };
        let byte = |name| i.opts.get(level, name).and_then(|v| u8::try_from(v).ok()).unwrap_or(0);
        let hops = if to.is_multicast() { many } else { hops };
        let mut h = Header { to, hops: byte(hops), class: byte(class) };
        for (l, kind, data) in control {
            let own = *l == libc::IPPROTO_IP || (*l == libc::IPPROTO_IPV6 && i.v6);
            if !own {
                continue;
            }
            let int = || {
                let v = <[u8; 4]>::try_from(&data[..]).map(i32::from_ne_bytes).map_err(|_| Errno::EINVAL)?;
                if (-1..=255).contains(&v) {
                    Ok(v)
                } else {
                    Err(Errno::EINVAL)
                }
            };
            match (*l, *kind) {
                (libc::IPPROTO_IP, libc::IP_TTL) => h.hops = u8::try_from(int()?).map_err(|_| Errno::EINVAL)?.max(1),
                (libc::IPPROTO_IP, libc::IP_TOS) => {
                    let v = if let [one] = data[..] { i32::from(one) } else { int()? };
                    h.class = v as u8;
                }
                (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => h.hops = u8::try_from(int()?).unwrap_or(h.hops),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => h.class = u8::try_from(int()?).unwrap_or(0),
                // The destination decides the source address, and there is one interface: nothing to choose.
                (libc::IPPROTO_IP, libc::IP_PKTINFO) | (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(h)
    }

    /// Adds the control messages that report header fields.
    fn report(&self, h: Header, msg: &mut RecvMsg) {
        let i = &self.inner;
        let index = device::LO_INDEX.to_ne_bytes();
        let class = i32::from(h.class).to_ne_bytes().to_vec();
        let hops = i32::from(h.hops).to_ne_bytes().to_vec();
        for (level, name) in HEADER_OPTS {
            if !i.opts.on(level, name) {
                continue;
            }
            let (kind, v) = match (name, h.to) {
                _ if level == libc::IPPROTO_IP => {
                    let IpAddr::V4(a) = h.to else { continue };
                    match name {
                        libc::IP_PKTINFO => (libc::IP_PKTINFO, [index, a.octets(), a.octets()].concat()),
                        libc::IP_RECVTTL => (libc::IP_TTL, hops.clone()),
                        _ => (libc::IP_TOS, vec![h.class]),
                    }
                }
                (libc::IPV6_RECVPKTINFO, to) => {
                    let ip = match to {
                        IpAddr::V4(a) => a.to_ipv6_mapped(),
                        IpAddr::V6(a) => a,
                    };
                    (libc::IPV6_PKTINFO, [&ip.octets()[..], &index].concat())
                }
                (_, IpAddr::V4(_)) => continue,
                (libc::IPV6_RECVHOPLIMIT, _) => (libc::IPV6_HOPLIMIT, hops.clone()),
                _ => (libc::IPV6_TCLASS, class.clone()),
            };
            msg.control.push((level, kind, v));
        }
    }
}
