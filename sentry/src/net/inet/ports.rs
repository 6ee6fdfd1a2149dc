//! The port tables: one [`Table`] for each protocol.
//!
//! A [`PortBinding`] holds a port at an address, or at the wildcard, for a socket. The bindings of a port share a
//! bucket. Those of accepted connections, of which a server has many, are kept apart from the few bound ones, because
//! every lookup walks the latter.
//!
//! Locks: a table's lock is a leaf; no other lock is taken and no socket is dropped while it is held.

use super::addr;
use crate::error::{Errno, Result};
use crate::kernel::cred::CAP_NET_BIND_SERVICE;
use crate::kernel::Task;
use crate::net::NetNs;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// `net.ipv4.ip_local_port_range`.
pub const EPHEMERAL: (u16, u16) = (32768, 60999);
/// The first port that needs no capability to bind.
const PRIVILEGED: u16 = 1024;

/// Holds a port for a socket.
pub struct PortBinding<S> {
    pub ip: IpAddr,
    pub port: u16,
    /// An IPv6 wildcard with `IPV6_V6ONLY`: IPv4 packets do not match.
    v6_only: bool,
    uid: u32,
    /// The current values of `SO_REUSEADDR` and `SO_REUSEPORT`.
    pub reuse: AtomicBool,
    pub reuse_port: AtomicBool,
    pub listening: AtomicBool,
    /// The address of the other end, once connected.
    pub remote: OnceLock<SocketAddr>,
    sock: Weak<S>,
    accepted: bool,
}

/// The parameters of a new binding.
pub struct BindRequest<'a, S> {
    pub ip: IpAddr,
    pub v6_only: bool,
    pub uid: u32,
    pub reuse: bool,
    pub reuse_port: bool,
    pub sock: &'a Arc<S>,
}

impl<S> BindRequest<'_, S> {
    fn claim(&self, port: u16, accepted: bool) -> Arc<PortBinding<S>> {
        Arc::new(PortBinding {
            ip: self.ip,
            port,
            v6_only: self.v6_only,
            uid: self.uid,
            reuse: AtomicBool::new(self.reuse),
            reuse_port: AtomicBool::new(self.reuse_port),
            listening: AtomicBool::new(false),
            remote: OnceLock::new(),
            sock: Arc::downgrade(self.sock),
            accepted,
        })
    }
}

impl<S> PortBinding<S> {
    fn covers_family(&self, v4: bool) -> bool {
        match self.ip {
            IpAddr::V4(_) => v4,
            IpAddr::V6(a) => !v4 || (a.is_unspecified() && !self.v6_only),
        }
    }
    fn overlaps(&self, other: &Self) -> bool {
        let family = [true, false].into_iter().any(|v4| self.covers_family(v4) && other.covers_family(v4));
        family && (self.ip.is_unspecified() || other.ip.is_unspecified() || self.ip == other.ip)
    }
    /// How closely the binding matches packets to `ip`: `None` for no match, otherwise higher is closer.
    fn score(&self, ip: IpAddr) -> Option<u32> {
        if self.ip == ip {
            return Some(4);
        }
        (self.ip.is_unspecified() && self.covers_family(ip.is_ipv4())).then_some(if self.ip.is_ipv4() == ip.is_ipv4() {
            2
        } else {
            1
        })
    }
    fn conflicts(&self, other: &Self) -> bool {
        let both = |f: fn(&Self) -> &AtomicBool| f(self).load(Ordering::Relaxed) && f(other).load(Ordering::Relaxed);
        if both(|c| &c.reuse) && !other.listening.load(Ordering::Relaxed) {
            return false;
        }
        if both(|c| &c.reuse_port) && self.uid == other.uid {
            return false;
        }
        self.overlaps(other)
    }
    pub fn socket(&self) -> Option<Arc<S>> {
        self.sock.upgrade()
    }
}

struct Bucket<S> {
    bound: Vec<Arc<PortBinding<S>>>,
    accepted: HashMap<usize, Arc<PortBinding<S>>>,
}

impl<S> Bucket<S> {
    fn all(&self) -> impl Iterator<Item = &Arc<PortBinding<S>>> {
        self.bound.iter().chain(self.accepted.values())
    }
}

struct Ports<S> {
    buckets: HashMap<u16, Bucket<S>>,
    /// Where the next search for a free port starts.
    next: u16,
}

pub struct Table<S> {
    ports: Mutex<Ports<S>>,
}

impl<S> Default for Table<S> {
    fn default() -> Self {
        let mut seed = [0; 2];
        platform::host::getrandom(&mut seed);
        let next = EPHEMERAL.0 + u16::from_ne_bytes(seed) % (EPHEMERAL.1 - EPHEMERAL.0);
        Table { ports: Mutex::new(Ports { buckets: HashMap::new(), next }) }
    }
}

impl<S> Ports<S> {
    fn insert(&mut self, claim: &Arc<PortBinding<S>>) {
        let b = self
            .buckets
            .entry(claim.port)
            .or_insert_with(|| Bucket { bound: Vec::with_capacity(1), accepted: HashMap::new() });
        if claim.accepted {
            b.accepted.insert(Arc::as_ptr(claim) as usize, claim.clone());
        } else {
            b.bound.push(claim.clone());
        }
    }
    /// A port without bindings.
    fn free(&mut self) -> Option<u16> {
        let (low, high) = EPHEMERAL;
        for _ in low..=high {
            let port = self.next;
            self.next = if port >= high { low } else { port + 1 };
            if !self.buckets.contains_key(&port) {
                return Some(port);
            }
        }
        None
    }
}

impl<S> Table<S> {
    /// bind(2): binds `port`, or a free one if it is 0.
    pub fn bind(&self, want: &BindRequest<'_, S>, port: u16) -> Result<Arc<PortBinding<S>>> {
        let mut t = self.ports.lock();
        let port = if port == 0 { t.free().ok_or(Errno::EADDRINUSE)? } else { port };
        let claim = want.claim(port, false);
        if let Some(b) = t.buckets.get(&port) {
            if b.all().any(|c| claim.conflicts(c)) {
                return Err(Errno::EADDRINUSE);
            }
        }
        t.insert(&claim);
        Ok(claim)
    }

    /// The binding of a connection accepted at `port`.
    pub fn accepted(&self, want: &BindRequest<'_, S>, port: u16, remote: SocketAddr) -> Arc<PortBinding<S>> {
        let claim = want.claim(port, true);
        let _ = claim.remote.set(remote);
        self.ports.lock().insert(&claim);
        claim
    }

    /// Replaces a binding by one with another address or peer: the source address is chosen at connect(2). With
    /// `unique`, fails if another binding has the same two addresses.
    pub fn moved(
        &self,
        old: &Arc<PortBinding<S>>,
        want: &BindRequest<'_, S>,
        remote: Option<SocketAddr>,
        unique: bool,
    ) -> Result<Arc<PortBinding<S>>> {
        let claim = want.claim(old.port, false);
        if let Some(r) = remote {
            let _ = claim.remote.set(r);
        }
        let mut t = self.ports.lock();
        let Some(b) = t.buckets.get_mut(&old.port) else { return Err(Errno::EADDRNOTAVAIL) };
        let same = |c: &Arc<PortBinding<S>>| c.ip == claim.ip && c.remote.get() == remote.as_ref();
        if unique && b.all().any(|c| !Arc::ptr_eq(c, old) && same(c)) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        if let Some(at) = b.bound.iter_mut().find(|c| Arc::ptr_eq(c, old)) {
            *at = claim.clone();
        }
        Ok(claim)
    }

    pub fn release(&self, claim: &Arc<PortBinding<S>>) {
        let mut gone = None;
        let mut t = self.ports.lock();
        let Some(b) = t.buckets.get_mut(&claim.port) else { return };
        if claim.accepted {
            gone = b.accepted.remove(&(Arc::as_ptr(claim) as usize));
        } else if let Some(i) = b.bound.iter().position(|c| Arc::ptr_eq(c, claim)) {
            gone = Some(b.bound.swap_remove(i));
        }
        if b.bound.is_empty() && b.accepted.is_empty() {
            t.buckets.remove(&claim.port);
        }
        drop(t);
        drop(gone);
    }

    /// listen(2): marks a binding as listening; fails if another socket already listens there.
    pub fn listen(&self, claim: &Arc<PortBinding<S>>) -> Result<()> {
        let t = self.ports.lock();
        if let Some(b) = t.buckets.get(&claim.port) {
            if b.bound.iter().any(|c| !Arc::ptr_eq(c, claim) && claim.conflicts(c)) {
                return Err(Errno::EADDRINUSE);
            }
        }
        claim.listening.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The listener for connections from `src` to `dst`.
    pub fn listener(&self, src: SocketAddr, dst: SocketAddr) -> Option<Arc<S>> {
        self.best(src, dst, |c| if c.listening.load(Ordering::Relaxed) { c.score(dst.ip()) } else { None })
    }

    /// The receiver of a datagram from `src` to `dst`. A socket connected to the sender takes precedence.
    pub fn receiver(&self, src: SocketAddr, dst: SocketAddr) -> Option<Arc<S>> {
        self.best(src, dst, |c| match c.remote.get() {
            Some(r) if *r != src => None,
            Some(_) => c.score(dst.ip()).map(|s| s + 8),
            None => c.score(dst.ip()),
        })
    }

    fn best(&self, src: SocketAddr, dst: SocketAddr, score: impl Fn(&PortBinding<S>) -> Option<u32>) -> Option<Arc<S>> {
        let t = self.ports.lock();
        let b = t.buckets.get(&dst.port())?;
        let top = b.bound.iter().filter_map(|c| score(c)).max()?;
        let mut fit = b.bound.iter().filter(|c| score(c) == Some(top));
        let last = b.bound.iter().rev().find(|c| score(c) == Some(top))?;
        // Sockets with `SO_REUSEPORT` share the traffic by sender; otherwise the latest binding wins.
        if last.reuse_port.load(Ordering::Relaxed) {
            let n = fit.clone().count();
            return fit.nth(usize::from(src.port()).wrapping_mul(0x9e37) / 7 % n.max(1))?.socket();
        }
        last.socket()
    }

    /// All sockets bound to `port` that receive wildcard packets (multicast).
    pub fn all_at(&self, port: u16) -> Vec<Arc<S>> {
        let t = self.ports.lock();
        t.buckets.get(&port).map_or_else(Vec::new, |b| b.bound.iter().filter_map(|c| c.socket()).collect())
    }

    /// Calls `see` for each binding, in no particular order.
    pub fn each(&self, mut see: impl FnMut(&PortBinding<S>)) {
        let all: Vec<_> = self.ports.lock().buckets.values().flat_map(|b| b.all().cloned()).collect();
        all.iter().for_each(|c| see(c));
    }

    /// All bindings, for `/proc/net`.
    pub fn list(&self) -> Vec<Arc<PortBinding<S>>> {
        let t = self.ports.lock();
        let mut v: Vec<_> = t.buckets.values().flat_map(|b| b.all().cloned()).collect();
        drop(t);
        v.sort_by_key(|c| c.port);
        v
    }
}

/// Parses the address of a bind(2) and checks that `task` may bind it. `stream`: the socket is TCP.
pub fn to_bind(net: &NetNs, task: &Task, v6: bool, v6_only: bool, sockaddr: &[u8], stream: bool) -> Result<SocketAddr> {
    let a = addr::parse_bind(v6, sockaddr)?;
    if v6_only && a.is_ipv4() {
        return Err(Errno::EINVAL);
    }
    match addr::kind(a.ip()) {
        addr::Kind::Elsewhere => return Err(Errno::EADDRNOTAVAIL),
        addr::Kind::Local if a.is_ipv6() && !net.is_up() => return Err(Errno::EADDRNOTAVAIL),
        addr::Kind::Multicast if stream && a.is_ipv6() => return Err(Errno::EINVAL),
        _ => {}
    }
    if a.port() != 0 && a.port() < PRIVILEGED && !task.cred().capable_in(&net.common.owner(), CAP_NET_BIND_SERVICE) {
        return Err(Errno::EACCES);
    }
    Ok(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want<'a>(ip: &str, flags: &str, sock: &'a Arc<u8>) -> BindRequest<'a, u8> {
        BindRequest {
            ip: ip.parse().unwrap(),
            v6_only: flags.contains('6'),
            uid: 0,
            reuse: flags.contains('a'),
            reuse_port: flags.contains('p'),
            sock,
        }
    }

    #[test]
    fn conflicts() {
        let s = Arc::new(0);
        for (one, two, ok) in [
            (("127.0.0.1", ""), ("127.0.0.2", ""), true),
            (("127.0.0.1", ""), ("0.0.0.0", ""), false),
            (("127.0.0.1", "a"), ("0.0.0.0", "a"), true),
            (("127.0.0.1", "p"), ("127.0.0.1", "p"), true),
            (("127.0.0.1", "p"), ("127.0.0.1", "a"), false),
            (("::", ""), ("127.0.0.1", ""), false),
            (("::", "6"), ("0.0.0.0", ""), true),
            (("::1", ""), ("0.0.0.0", ""), true),
        ] {
            let t = Table::default();
            t.bind(&want(one.0, one.1, &s), 80).unwrap();
            assert_eq!(t.bind(&want(two.0, two.1, &s), 80).is_ok(), ok, "{one:?} {two:?}");
        }
        let t = Table::default();
        let a = t.bind(&want("127.0.0.1", "a", &s), 80).unwrap();
        let b = t.bind(&want("127.0.0.1", "a", &s), 80).unwrap();
        t.listen(&a).unwrap();
        assert_eq!(t.listen(&b), Err(Errno::EADDRINUSE));
        assert!(t.bind(&want("127.0.0.1", "a", &s), 80).is_err());
        t.release(&a);
        t.listen(&b).unwrap();
    }

    #[test]
    fn every_port_once() {
        let s = Arc::new(0);
        let t = Table::default();
        let all: Vec<_> = (EPHEMERAL.0..=EPHEMERAL.1).map(|_| t.bind(&want("::1", "", &s), 0).unwrap()).collect();
        assert!(t.bind(&want("::1", "", &s), 0).is_err());
        t.release(&all[7]);
        assert_eq!(t.bind(&want("::1", "", &s), 0).unwrap().port, all[7].port);
    }

    #[test]
    fn best_match() {
        let (any, one, peer) = (Arc::new(0), Arc::new(1), Arc::new(2));
        let t = Table::default();
        t.bind(&want("0.0.0.0", "a", &any), 53).unwrap();
        t.bind(&want("127.0.0.1", "a", &one), 53).unwrap();
        let c = t.bind(&want("127.0.0.1", "a", &peer), 53).unwrap();
        let (src, other) = ("127.0.0.1:9".parse().unwrap(), "127.0.0.1:8".parse().unwrap());
        c.remote.set(src).unwrap();
        let find = |src, dst: &str| t.receiver(src, dst.parse().unwrap()).map(|s| *s);
        assert_eq!(find(src, "127.0.0.1:53"), Some(2));
        assert_eq!(find(other, "127.0.0.1:53"), Some(1));
        assert_eq!(find(other, "127.0.0.2:53"), Some(0));
        assert_eq!(find(other, "[::1]:53"), None);
    }
}
