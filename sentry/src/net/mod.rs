//! Sockets.
//!
//! * [`socket`]: [`Socket`], the open socket ([`FileOps`](crate::fs::FileOps)) with the options that all families
//!   share, and [`Proto`], the interface of a family.
//! * [`queue`]: the receive queue of every family.
//! * [`scm`]: descriptors and credentials in control messages (`SOL_SOCKET`).
//! * [`unix`]: local sockets (AF_UNIX).
//! * [`inet`]: TCP and UDP over loopback (AF_INET, AF_INET6); [`device`]: the network device.
//! * [`netlink`]: listing interfaces and routes (AF_NETLINK).
//!
//! Everything here is synchronous: an operation that would block returns `EAGAIN`, and `syscalls::socket` waits.

pub mod device;
pub mod inet;
pub mod netlink;
pub mod queue;
pub mod scm;
pub mod socket;
pub mod unix;

pub use socket::{Connect, Proto, RecvMsg, SendMsg, Socket};

/// A network namespace: the state that its sockets share.
pub struct NetNs {
    pub common: NsCommon,
    /// Whether `lo` is up. In a new namespace it is down until a process with `CAP_NET_ADMIN` sets it up.
    lo_up: AtomicBool,
    /// Whether `lo` has its address 127.0.0.1/8. It gets it when it is first set up, or by a request for it.
    lo_address: AtomicBool,
    pub unix: unix::Names,
    pub inet: inet::InetNs,
    pub netlink: netlink::Ports,
}

use crate::error::{Errno, Result};
use crate::kernel::cred::CAP_NET_ADMIN;
use crate::kernel::ns::{Maker, NsCommon, NsKind};
use crate::kernel::{Cred, Task};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

impl Default for NetNs {
    /// The initial namespace.
    fn default() -> Self {
        Self::with(NsCommon::first(NsKind::Net), true)
    }
}

impl NetNs {
    /// A new namespace, in which `lo` is down.
    pub fn new(maker: &Maker) -> Result<Arc<Self>> {
        Ok(Arc::new(Self::with(maker.common(NsKind::Net)?, false)))
    }
    /// Sets `lo` up or down; `EPERM` without `CAP_NET_ADMIN` in the namespace's owner.
    pub fn set_up(&self, cred: &Cred, up: bool) -> Result<()> {
        if !cred.capable_in(&self.common.owner(), CAP_NET_ADMIN) {
            return Err(Errno::EPERM);
        }
        self.lo_up.store(up, Ordering::Relaxed);
        self.lo_address.fetch_or(up, Ordering::Relaxed);
        Ok(())
    }
    /// Whether `lo` has its IPv4 address. It has its IPv6 address while it is up.
    pub fn has_address(&self) -> bool {
        self.lo_address.load(Ordering::Relaxed)
    }
    /// Adds the IPv4 address of `lo`; `EEXIST` if it is there.
    pub fn add_address(&self) -> Result<()> {
        if self.lo_address.swap(true, Ordering::Relaxed) {
            return Err(Errno::EEXIST);
        }
        Ok(())
    }
    pub fn is_up(&self) -> bool {
        self.lo_up.load(Ordering::Relaxed)
    }
    fn with(common: NsCommon, lo_up: bool) -> Self {
        NetNs {
            common,
            lo_up: AtomicBool::new(lo_up),
            lo_address: AtomicBool::new(lo_up),
            unix: Default::default(),
            inet: Default::default(),
            netlink: Default::default(),
        }
    }
}

const AF_MAX: i32 = 46;
const SOCK_MAX: i32 = 11;
const PF_UNIX: i32 = libc::AF_UNIX;

fn check_domain(domain: i32, kind: i32) -> Result<()> {
    if !(0..AF_MAX).contains(&domain) {
        return Err(Errno::EAFNOSUPPORT);
    }
    if !(0..SOCK_MAX).contains(&kind) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// socket(2).
pub fn create(task: &Task, domain: i32, kind: i32, protocol: i32) -> Result<Socket> {
    check_domain(domain, kind)?;
    let ns = &task.ns().net;
    match domain {
        libc::AF_UNIX => {
            if protocol != 0 && protocol != PF_UNIX {
                return Err(Errno::EPROTONOSUPPORT);
            }
            // Linux treats SOCK_RAW as SOCK_DGRAM here.
            let kind = if kind == libc::SOCK_RAW { libc::SOCK_DGRAM } else { kind };
            Ok(Socket::new(task, domain, kind, 0, unix::new(ns, kind)?))
        }
        libc::AF_INET | libc::AF_INET6 => {
            let (protocol, proto) = inet::create(task, domain == libc::AF_INET6, kind, protocol)?;
            let s = Socket::new(task, domain, kind, protocol, proto);
            if kind == libc::SOCK_STREAM {
                s.opts.snd_buf.store(inet::tcp::SND_DEFAULT, Ordering::Relaxed);
                s.opts.rcv_buf.store(inet::tcp::RCV_DEFAULT, Ordering::Relaxed);
            }
            Ok(s)
        }
        libc::AF_NETLINK => {
            let proto = netlink::create(task, kind, protocol)?;
            Ok(Socket::new(task, domain, kind, protocol, Box::new(proto)))
        }
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

/// socketpair(2).
pub fn create_pair(task: &Task, domain: i32, kind: i32, protocol: i32) -> Result<(Socket, Socket)> {
    check_domain(domain, kind)?;
    if domain != libc::AF_UNIX {
        // The family has no pairs. Creating a socket first gives the error of an unknown family precedence.
        create(task, domain, kind, protocol)?;
        return Err(Errno::EOPNOTSUPP);
    }
    if protocol != 0 && protocol != PF_UNIX {
        return Err(Errno::EPROTONOSUPPORT);
    }
    let ns = &task.ns().net;
    let cred = scm::Ucred::effective(task);
    let boxed = |kind, proto| Socket::new(task, domain, kind, 0, proto);
    match kind {
        libc::SOCK_STREAM | libc::SOCK_SEQPACKET => {
            let (a, b) = unix::conn::Conn::pair(ns, kind, cred);
            Ok((boxed(kind, Box::new(a)), boxed(kind, Box::new(b))))
        }
        libc::SOCK_DGRAM | libc::SOCK_RAW => {
            let (a, b) = unix::dgram::Dgram::pair(ns, cred);
            Ok((boxed(libc::SOCK_DGRAM, Box::new(a)), boxed(libc::SOCK_DGRAM, Box::new(b))))
        }
        _ => Err(Errno::ESOCKTNOSUPPORT),
    }
}
