//! `/proc/net/tcp`, `udp` and their IPv6 forms: the internet sockets of the sandbox.

use crate::fs::pseudo::Put;
use crate::kernel::Kernel;
use crate::net::inet::conn::state;
use crate::net::NetNs;
use platform::executor::Rounds;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

/// As the reader sees it.
fn shown_uid(uid: u32) -> u32 {
    crate::kernel::current::get().map_or(uid, |t| t.cred().user_ns.uid_out(uid))
}

const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
const TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
const UDP: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops";
const UDP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n";
/// Width of the lines of `tcp` and `udp`, line end apart.
const TCP_WIDTH: usize = 149;
const UDP_WIDTH: usize = 127;

/// Pads what was appended since `start` as `seq_pad` does.
fn pad(out: &mut Vec<u8>, start: usize, width: usize) {
    let len = out.len() - start;
    out.sp(width.saturating_sub(len)).s("\n");
}

/// Upper-case hexadecimal.
fn hex(out: &mut Vec<u8>, n: u64, digits: usize) {
    out.s(&format!("{n:0digits$X}"));
}

/// Words in memory order, read as numbers; the port as a number.
fn address(out: &mut Vec<u8>, v6: bool, a: SocketAddr) {
    let words = |out: &mut Vec<u8>, b: &[u8]| {
        for w in b.chunks_exact(4) {
            let w = w.first_chunk().map_or(0, |w| u32::from_ne_bytes(*w));
            hex(out, w.into(), 8);
        }
    };
    match a.ip() {
        IpAddr::V4(ip) if !v6 => words(out, &ip.octets()),
        IpAddr::V4(ip) => words(out, &ip.to_ipv6_mapped().octets()),
        IpAddr::V6(ip) => words(out, &ip.octets()),
    }
    out.s(":");
    hex(out, a.port().into(), 4);
}

struct Row {
    v6: bool,
    local: SocketAddr,
    remote: Option<SocketAddr>,
    state: u8,
    tx: usize,
    rx: usize,
    uid: u32,
    ino: u64,
}

/// The part that all tables have.
fn row(out: &mut Vec<u8>, n: usize, width: usize, r: &Row) {
    let none = SocketAddr::new(crate::net::inet::addr::any(r.v6), 0);
    out.dw(n as u64, width).s(": ");
    address(out, r.v6, r.local);
    out.s(" ");
    address(out, r.v6, r.remote.unwrap_or(none));
    out.s(" ");
    hex(out, r.state.into(), 2);
    out.s(" ");
    hex(out, r.tx as u64, 8);
    out.s(":");
    hex(out, r.rx as u64, 8);
    out.s(" 00:00000000 00000000 ").dw(shown_uid(r.uid).into(), 5).s(" ").dw(0, 8).s(" ").d(r.ino);
}

fn tcp_table(net: &NetNs, v6: bool, out: &mut Vec<u8>) {
    if v6 {
        out.s(TCP6);
    } else {
        let start = out.len();
        out.s(TCP);
        pad(out, start, TCP_WIDTH);
    }
    let socks: Vec<_> = net.inet.tcp.list().iter().filter_map(|c| c.socket()).collect();
    // Only those that listen or are connected are shown, listeners first.
    let shown = socks.iter().filter(|s| s.v6 == v6).map(|s| (s, s.state())).filter(|(_, st)| *st != state::CLOSE);
    let mut shown: Vec<_> = shown.collect();
    shown.sort_by_key(|(_, st)| *st != state::LISTEN);
    let mut rounds = Rounds::new();
    for (n, (s, st)) in shown.into_iter().enumerate() {
        rounds.next();
        let (local, remote, tx, rx) = s.summary();
        let start = out.len();
        let ino = s.ino.load(Ordering::Relaxed);
        row(out, n, 4, &Row { v6, local, remote, state: st, tx, rx, uid: s.uid, ino });
        let listens = st == state::LISTEN;
        out.s(" 1 0000000000000000 ").s(if listens { "100 0 0 10 0" } else { "20 0 0 10 -1" });
        if v6 {
            out.s("\n");
        } else {
            pad(out, start, TCP_WIDTH);
        }
    }
}

fn udp_table(net: &NetNs, v6: bool, out: &mut Vec<u8>) {
    if v6 {
        out.s(UDP6);
    } else {
        let start = out.len();
        out.s(UDP);
        pad(out, start, UDP_WIDTH);
    }
    let socks: Vec<_> = net.inet.udp.list().iter().filter_map(|c| c.socket()).collect();
    let mut rounds = Rounds::new();
    for (n, s) in socks.iter().filter(|s| s.v6 == v6).enumerate() {
        rounds.next();
        let (local, remote, rx) = s.summary();
        let start = out.len();
        let state = if remote.is_some() { state::ESTABLISHED } else { state::CLOSE };
        let ino = s.ino.load(Ordering::Relaxed);
        row(out, n, 5, &Row { v6, local, remote, state, tx: 0, rx, uid: s.uid, ino });
        out.s(" 2 0000000000000000 ").d(s.drops.load(Ordering::Relaxed));
        if v6 {
            out.s("\n");
        } else {
            pad(out, start, UDP_WIDTH);
        }
    }
}

pub(super) fn tcp(_: &Kernel, net: &NetNs, out: &mut Vec<u8>) {
    tcp_table(net, false, out);
}
pub(super) fn tcp6(_: &Kernel, net: &NetNs, out: &mut Vec<u8>) {
    tcp_table(net, true, out);
}
pub(super) fn udp(_: &Kernel, net: &NetNs, out: &mut Vec<u8>) {
    udp_table(net, false, out);
}
pub(super) fn udp6(_: &Kernel, net: &NetNs, out: &mut Vec<u8>) {
    udp_table(net, true, out);
}

/// Raw sockets do not exist: their tables are headers.
pub(super) fn raw(_: &Kernel, _: &NetNs, out: &mut Vec<u8>) {
    let start = out.len();
    out.s("  ").s(UDP.trim_start());
    pad(out, start, UDP_WIDTH);
}
pub(super) fn raw6(_: &Kernel, _: &NetNs, out: &mut Vec<u8>) {
    out.s(UDP6);
}

/// Sockets of TCP and UDP: of IPv4, of IPv6.
fn count(net: &NetNs) -> [(u64, u64); 2] {
    let inet = &net.inet;
    let mut rounds = Rounds::new();
    let mut tally = |v6: Option<bool>, counts: &mut [u64; 2]| {
        rounds.next();
        if let Some(v6) = v6 {
            counts[usize::from(v6)] += 1;
        }
    };
    let (mut tcp, mut udp) = ([0; 2], [0; 2]);
    inet.tcp.each(|c| tally(c.socket().map(|s| s.v6), &mut tcp));
    inet.udp.each(|c| tally(c.socket().map(|s| s.v6), &mut udp));
    [(tcp[0], udp[0]), (tcp[1], udp[1])]
}

pub(super) fn sockstat(_: &Kernel, net: &NetNs, out: &mut Vec<u8>) {
    let [(tcp, udp), (tcp6, udp6)] = count(net);
    out.s("sockets: used ").d(tcp + udp + tcp6 + udp6).s("\nTCP: inuse ").d(tcp);
    out.s(" orphan 0 tw 0 alloc ").d(tcp + tcp6).s(" mem 0\nUDP: inuse ").d(udp);
    out.s(" mem 0\nUDPLITE: inuse 0\nRAW: inuse 0\nFRAG: inuse 0 memory 0\n");
}

pub(super) fn sockstat6(_: &Kernel, net: &NetNs, out: &mut Vec<u8>) {
    let [_, (tcp, udp)] = count(net);
    out.s("TCP6: inuse ").d(tcp).s("\nUDP6: inuse ").d(udp);
    out.s("\nUDPLITE6: inuse 0\nRAW6: inuse 0\nFRAG6: inuse 0 memory 0\n");
}
