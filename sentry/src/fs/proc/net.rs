//! `/proc/[pid]/net`: the network namespace of a process, with the loopback device only.

use super::inet;
use super::pid::TaskRef;
use crate::error::{Errno, Result};
use crate::fs::file::FileOps;
use crate::fs::pseudo::{open_dir, Content, List, OpenText, Put, Super, FIRST};
use crate::fs::types::*;
use crate::kernel::Kernel;
use crate::net::NetNs;
use std::any::Any;
use std::sync::Arc;

type Generate = fn(&Kernel, &NetNs, &mut Vec<u8>);

const FILES: &[(&str, Generate)] = &[
    ("arp", |_, _, o| {
        o.s("IP address       HW type     Flags       HW address            Mask     Device\n");
    }),
    ("dev", dev),
    ("dev_mcast", |_, _, _| {}),
    ("if_inet6", |_, net, o| {
        let up = net.is_up();
        o.s(if !up { "" } else { "00000000000000000000000000000001 01 80 10 80       lo\n" });
    }),
    ("igmp", |_, net, o| {
        o.s("Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n");
        o.s(if !net.is_up() { "" } else { "1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n" });
    }),
    ("ipv6_route", ipv6_route),
    ("netlink", |_, _, o| {
        o.s("sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n");
    }),
    ("netstat", |_, _, o| {
        o.s("TcpExt: SyncookiesSent SyncookiesRecv SyncookiesFailed\nTcpExt: 0 0 0\n");
        o.s("IpExt: InNoRoutes InTruncatedPkts InMcastPkts\nIpExt: 0 0 0\n");
    }),
    ("packet", |_, _, o| {
        o.s("sk       RefCnt Type Proto  Iface R Rmem   User   Inode\n");
    }),
    ("protocols", |_, _, o| {
        o.s("protocol  size sockets  memory press maxhdr  slab module     cl co di ac io in de sh ss gs se re sp bi br ha uh gp em\n");
    }),
    ("psched", |_, _, o| {
        o.s("000003e8 00000040 000f4240 3b9aca00\n");
    }),
    ("ptype", |_, _, o| {
        o.s("Type Device      Function\n");
    }),
    ("raw", inet::raw),
    ("raw6", inet::raw6),
    ("route", |_, _, o| {
        padded(o, "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT", 127)
    }),
    ("rt_cache", |_, _, o| {
        o.s("Iface\tDestination\tGateway \tFlags\t\tRefCnt\tUse\tMetric\tSource\t\tMTU\tWindow\tIRTT\tTOS\tHHRef\tHHUptod\tSpecDst\n");
    }),
    ("snmp", snmp),
    ("snmp6", |_, _, _| {}),
    ("sockstat", inet::sockstat),
    ("sockstat6", inet::sockstat6),
    ("softnet_stat", softnet),
    ("tcp", inet::tcp),
    ("tcp6", inet::tcp6),
    ("udp", inet::udp),
    ("udp6", inet::udp6),
    ("unix", unix),
];

/// A line as `seq_setwidth` fills it.
fn padded(out: &mut Vec<u8>, line: &str, width: usize) {
    out.s(line).sp(width.saturating_sub(line.len())).s("\n");
}

fn dev(_: &Kernel, _: &NetNs, out: &mut Vec<u8>) {
    out.s("Inter-|   Receive                                                |  Transmit\n");
    out.s(" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n");
    out.s("    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n");
}

fn ipv6_route(_: &Kernel, net: &NetNs, out: &mut Vec<u8>) {
    const ZERO: &str = "00000000000000000000000000000000";
    if net.is_up() {
        out.s("00000000000000000000000000000001 80 ")
            .s(ZERO)
            .s(" 00 ")
            .s(ZERO)
            .s(" 00000000 00000002 00000000 80200001       lo\n");
    }
    out.s(ZERO).s(" 00 ").s(ZERO).s(" 00 ").s(ZERO).s(" ffffffff 00000001 00000000 00200200       lo\n");
}

fn snmp(_: &Kernel, _: &NetNs, out: &mut Vec<u8>) {
    out.s("Ip: Forwarding DefaultTTL InReceives InHdrErrors InAddrErrors ForwDatagrams InUnknownProtos InDiscards InDelivers OutRequests OutDiscards OutNoRoutes ReasmTimeout ReasmReqds ReasmOKs ReasmFails FragOKs FragFails FragCreates\n");
    out.s("Ip: 2 64 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n");
    out.s("Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors\n");
    out.s("Tcp: 1 200 120000 -1 0 0 0 0 0 0 0 0 0 0 0\n");
    out.s("Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors\n");
    out.s("Udp: 0 0 0 0 0 0 0 0 0\n");
}

fn softnet(kernel: &Kernel, _: &NetNs, out: &mut Vec<u8>) {
    for n in 0..super::cpu::count(kernel) as u64 {
        for i in 0..15 {
            out.x(if i == 12 { n } else { 0 }, 8).s(if i == 14 { "\n" } else { " " });
        }
    }
}

fn unix(_: &Kernel, _: &NetNs, out: &mut Vec<u8>) {
    out.s("Num       RefCount Protocol Flags    Type St Inode Path\n");
}

/// Inode numbers of this directory and its files.
const INO: u64 = 0xe000_0000;

struct NetDir {
    target: TaskRef,
}

pub(super) fn dir(target: TaskRef, _index: usize) -> Arc<dyn Inode> {
    Arc::new(NetDir { target })
}

impl Inode for NetDir {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        self.target.exists()?;
        Ok(self.target.sup.attr(INO, libc::S_IFDIR | 0o555, 2))
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let index = FILES.iter().position(|(n, _)| n.as_bytes() == name).ok_or(Errno::ENOENT)?;
        let net = self.target.exists()?.live()?.ns().net.clone();
        Ok(Arc::new(NetFile { sup: self.target.sup.clone(), index, net }))
    }
    open_list!();
    of_process!();
}

impl List for NetDir {
    fn list(&self, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        for (i, (name, _)) in FILES.iter().enumerate().skip((pos - FIRST) as usize) {
            let (ino, next) = (INO + 1 + i as u64, i as u64 + FIRST + 1);
            if !sink(DirEntry { name: name.as_bytes(), ino, kind: libc::DT_REG, next }) {
                break;
            }
        }
        Ok(())
    }
}

struct NetFile {
    sup: Arc<Super>,
    index: usize,
    net: Arc<NetNs>,
}

impl Content for NetFile {
    fn generate(&self, out: &mut Vec<u8>) -> Result<()> {
        let (_, generate) = FILES.get(self.index).ok_or(Errno::ENOENT)?;
        generate(&self.sup.kernel, &self.net, out);
        Ok(())
    }
}

impl Inode for NetFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        Ok(self.sup.attr(INO + 1 + self.index as u64, libc::S_IFREG | 0o444, 1))
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        Ok(OpenText::open(self))
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.sup.statfs())
    }
}
