//! AF_NETLINK (netlink(7)): `NETLINK_ROUTE` only, for programs that list interfaces, addresses and routes, and set `lo`
//! up or down.
//!
//! A request is answered while it is sent: the answers are in the socket's queue when `send` returns. Multicast groups
//! never receive a message; changes of `lo` are not announced.

pub mod msg;
mod route;

use super::queue::Queue;
use super::scm::{Scm, Ucred};
use super::socket::*;
use super::NetNs;
use crate::abi::PollEvents;
use crate::error::{Errno, Result};
use crate::kernel::cred::CAP_NET_ADMIN;
use crate::kernel::wait::WaitQueue;
use crate::kernel::{current, Cred, Task};
use crate::mm::io::{Dst, Src};
use msg::{Reply, NLM_F_ACK, NLM_F_REQUEST};
use parking_lot::Mutex;
use std::any::Any;
use std::collections::HashSet;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::Arc;

const SOL_NETLINK: i32 = 270;
/// `sizeof(struct sockaddr_nl)`.
const NL_LEN: usize = 12;
/// Longest request: more than any request of `NETLINK_ROUTE` needs.
const REQUEST_MAX: usize = 64 << 10;
const GROUPS: u32 = 32;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_DROP_MEMBERSHIP: i32 = 2;
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
const NETLINK_CAP_ACK: i32 = 10;
/// Boolean options: packet info, broadcast errors, no ENOBUFS, short and extended acknowledgements, strict checks.
const SWITCHES: [i32; 6] = [3, 4, 5, NETLINK_CAP_ACK, 11, 12];

/// Port numbers in use.
#[derive(Default)]
pub struct Ports {
    taken: Mutex<HashSet<u32>>,
    next: AtomicU32,
}

impl Ports {
    /// Picks a port number for a socket of process `pid`.
    fn pick(&self, pid: i32) -> u32 {
        let mut t = self.taken.lock();
        let mut port = pid as u32;
        // The first socket of a process gets its pid; further ones get a number that is no pid.
        while !t.insert(port) {
            port = 0x8000_0000 | self.next.fetch_add(1, Ordering::Relaxed);
        }
        port
    }
}

pub struct Netlink {
    ns: Arc<NetNs>,
    wake: Arc<WaitQueue>,
    queue: Queue,
    error: AtomicI32,
    port: AtomicU32,
    groups: AtomicU32,
    switches: AtomicU32,
    peer: AtomicU32,
}

pub fn create(task: &Task, kind: i32, protocol: i32) -> Result<Netlink> {
    if kind != libc::SOCK_RAW && kind != libc::SOCK_DGRAM {
        return Err(Errno::ESOCKTNOSUPPORT);
    }
    if protocol != libc::NETLINK_ROUTE {
        return Err(Errno::EPROTONOSUPPORT);
    }
    Ok(Netlink {
        ns: task.ns().net.clone(),
        wake: Arc::default(),
        queue: Queue::new(true, BUF_DEFAULT),
        error: AtomicI32::new(0),
        port: AtomicU32::new(0),
        groups: AtomicU32::new(0),
        switches: AtomicU32::new(0),
        peer: AtomicU32::new(0),
    })
}

/// Queues an unsolicited message from the kernel at the socket behind an open file.
pub fn notify(file: &crate::fs::File, data: &[u8]) {
    if let Some(n) = super::socket::of(file).ok().and_then(|s| s.proto.as_any().downcast_ref::<Netlink>()) {
        n.push(data);
    }
}

/// Parses port and groups of a `sockaddr_nl`.
fn parse(addr: &[u8]) -> Result<(u32, u32)> {
    let word = |at: usize| addr.get(at..).and_then(|b| b.first_chunk()).map(|c| u32::from_ne_bytes(*c));
    match (addr, word(4), word(8)) {
        ([a, b, ..], Some(port), Some(groups)) if u16::from_ne_bytes([*a, *b]) == libc::AF_NETLINK as u16 => {
            Ok((port, groups))
        }
        _ => Err(Errno::EINVAL),
    }
}

fn sockaddr(port: u32, groups: u32) -> Vec<u8> {
    let mut v = Vec::with_capacity(NL_LEN);
    v.extend_from_slice(&(libc::AF_NETLINK as u16).to_ne_bytes());
    v.extend_from_slice(&[0; 2]);
    v.extend_from_slice(&port.to_ne_bytes());
    v.extend_from_slice(&groups.to_ne_bytes());
    v
}

impl Netlink {
    fn autobind(&self, task: &Task) {
        if self.port.load(Ordering::Relaxed) == 0 {
            let port = self.ns.netlink.pick(task.group.id.own());
            if self.port.compare_exchange(0, port, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                self.ns.netlink.taken.lock().remove(&port);
            }
        }
    }
    fn on(&self, name: i32) -> bool {
        self.switches.load(Ordering::Relaxed) & (1 << name) != 0
    }
    /// Queues a datagram of answers; false if it does not fit. It is lost then, and the reader gets `ENOBUFS`.
    fn push(&self, data: &[u8]) -> bool {
        let from: Arc<[u8]> = sockaddr(0, 0).into();
        let fits = self.queue.send_record(&mut Src::kernel(data), &mut None, Some(from)).is_ok();
        if !fits {
            self.error.store(libc::ENOBUFS, Ordering::SeqCst);
        }
        self.wake.wake(PollEvents::READABLE);
        fits
    }
    fn handle(&self, cred: &Cred, data: &[u8]) {
        let port = self.port.load(Ordering::Relaxed);
        for (h, body, whole) in msg::messages(data) {
            if h.flags & NLM_F_REQUEST == 0 {
                continue;
            }
            let mut out = Reply::new(h.seq, port);
            let r = route::answer(&self.ns, cred, &h, body, &mut out);
            // Answers to the remaining requests would be lost too.
            if !out.data.is_empty() && !self.push(&out.data) {
                return;
            }
            let mut end = Reply::new(h.seq, port);
            match r {
                Ok(true) => end.done(),
                Ok(false) if h.flags & NLM_F_ACK != 0 => end.error(None, whole, true),
                Ok(false) => continue,
                Err(e) => end.error(Some(e), whole, self.on(NETLINK_CAP_ACK)),
            }
            if !self.push(&end.data) {
                return;
            }
        }
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.ns.netlink.taken.lock().remove(&self.port.load(Ordering::Relaxed));
    }
}

impl Proto for Netlink {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn queue(&self) -> &Arc<WaitQueue> {
        &self.wake
    }
    fn poll(&self) -> PollEvents {
        let e = if self.error.load(Ordering::SeqCst) != 0 { PollEvents::ERR } else { PollEvents::empty() };
        e | PollEvents::SOCKET_WRITABLE | if self.queue.is_empty() { PollEvents::empty() } else { PollEvents::READABLE }
    }
    fn bind(&self, _s: &Socket, task: &Task, addr: &[u8]) -> Result<()> {
        let (port, groups) = parse(addr)?;
        let own = self.port.load(Ordering::Relaxed);
        if own != 0 && port != 0 && port != own {
            return Err(Errno::EINVAL);
        }
        if own == 0 && port != 0 {
            if !self.ns.netlink.taken.lock().insert(port) {
                return Err(Errno::EADDRINUSE);
            }
            self.port.store(port, Ordering::Relaxed);
        }
        self.autobind(task);
        self.groups.store(groups, Ordering::Relaxed);
        Ok(())
    }
    fn connect(&self, _s: &Socket, task: &Task, addr: &[u8], _nonblock: bool, _again: bool) -> Result<Connect> {
        if addr.len() >= 2 && addr[..2] == [0, 0] {
            self.peer.store(0, Ordering::Relaxed);
            return Ok(Connect::Done);
        }
        let (port, groups) = parse(addr)?;
        if groups != 0 && !task.cred().capable_in(&self.ns.common.owner(), CAP_NET_ADMIN) {
            return Err(Errno::EPERM);
        }
        self.autobind(task);
        self.peer.store(port, Ordering::Relaxed);
        Ok(Connect::Done)
    }
    fn local(&self) -> Vec<u8> {
        sockaddr(self.port.load(Ordering::Relaxed), self.groups.load(Ordering::Relaxed))
    }
    fn peer(&self) -> Result<Vec<u8>> {
        Ok(sockaddr(self.peer.load(Ordering::Relaxed), 0))
    }

    fn send(&self, _s: &Socket, src: &mut Src<'_>, msg: &mut SendMsg) -> Result<usize> {
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let task = current::get().ok_or(Errno::EINVAL)?;
        let (port, groups) = match &msg.addr {
            Some(a) => parse(a)?,
            None => (self.peer.load(Ordering::Relaxed), 0),
        };
        let cred = task.cred();
        if groups != 0 && !cred.capable_in(&self.ns.common.owner(), CAP_NET_ADMIN) {
            return Err(Errno::EPERM);
        }
        if src.remaining() > REQUEST_MAX {
            return Err(Errno::EMSGSIZE);
        }
        self.autobind(&task);
        let data = src.take_vec(REQUEST_MAX)?;
        if port != 0 {
            // Messages between user sockets are not supported.
            return Err(Errno::ECONNREFUSED);
        }
        self.handle(&cred, &data);
        Ok(data.len())
    }

    fn recv(&self, s: &Socket, dst: &mut Dst<'_>, msg: &mut RecvMsg) -> Result<usize> {
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let e = self.take_error();
        if e != 0 {
            return Err(Errno::from_raw(e));
        }
        let t = self.queue.recv(dst, msg)?;
        if s.pass_cred() {
            let cred = Some(Ucred::default());
            msg.scm = Some(Box::new(Scm { cred, ..Scm::default() }));
        }
        Ok(t.n)
    }
    fn take_error(&self) -> i32 {
        self.error.swap(0, Ordering::SeqCst)
    }

    fn get_opt(&self, _s: &Socket, level: i32, name: i32) -> Result<Vec<u8>> {
        match name {
            _ if level != SOL_NETLINK => Err(Errno::ENOPROTOOPT),
            NETLINK_LIST_MEMBERSHIPS => Ok(self.groups.load(Ordering::Relaxed).to_ne_bytes().to_vec()),
            n if SWITCHES.contains(&n) => Ok(i32::from(self.on(n)).to_ne_bytes().to_vec()),
            _ => Err(Errno::ENOPROTOOPT),
        }
    }
    fn set_opt(&self, _s: &Socket, _task: &Task, level: i32, name: i32, value: &[u8]) -> Result<()> {
        if level != SOL_NETLINK {
            return Err(Errno::ENOPROTOOPT);
        }
        let v = value.first_chunk().map(|c| u32::from_ne_bytes(*c)).ok_or(Errno::EINVAL)?;
        match name {
            NETLINK_ADD_MEMBERSHIP | NETLINK_DROP_MEMBERSHIP => {
                // Groups beyond the first 32 exist in Linux; here they are accepted and never receive a message.
                let bit = v.checked_sub(1).ok_or(Errno::EINVAL)?;
                if bit < GROUPS {
                    if name == NETLINK_ADD_MEMBERSHIP {
                        self.groups.fetch_or(1 << bit, Ordering::Relaxed);
                    } else {
                        self.groups.fetch_and(!(1 << bit), Ordering::Relaxed);
                    }
                }
            }
            n if SWITCHES.contains(&n) => {
                if v != 0 {
                    self.switches.fetch_or(1 << n, Ordering::Relaxed);
                } else {
                    self.switches.fetch_and(!(1 << n), Ordering::Relaxed);
                }
            }
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }
    fn pending(&self) -> (usize, usize) {
        (self.queue.next_len(), 0)
    }
}
