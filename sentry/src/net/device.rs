//! The one network device, `lo`, as the `SIOC…` requests show it (netdevice(7)).

use super::NetNs;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::cred::CAP_NET_ADMIN;
use crate::kernel::Task;

pub const LO_INDEX: i32 = 1;
pub const LO_NAME: &[u8] = b"lo";
pub const LO_MTU: i32 = 65536;
pub const LO_TXQLEN: i32 = 1000;
/// The interface flags: `IFF_LOOPBACK`, and while it is up `IFF_UP` and `IFF_RUNNING`; netlink adds `IFF_LOWER_UP`.
pub fn lo_flags(net: &NetNs) -> u32 {
    let up = if net.is_up() { libc::IFF_UP | libc::IFF_RUNNING } else { 0 };
    (libc::IFF_LOOPBACK | up) as u32
}

const IFNAMSIZ: usize = 16;
/// `sizeof(struct ifreq)`.
const IFREQ: usize = 40;

const SIOCGSTAMP: u32 = 0x8906;
const SIOCGSTAMPNS: u32 = 0x8907;
const SIOCGIFNAME: u32 = 0x8910;
const SIOCGIFCONF: u32 = 0x8912;
const SIOCGIFFLAGS: u32 = 0x8913;
const SIOCSIFFLAGS: u32 = 0x8914;
const SIOCGIFADDR: u32 = 0x8915;
const SIOCGIFDSTADDR: u32 = 0x8917;
const SIOCGIFBRDADDR: u32 = 0x8919;
const SIOCGIFNETMASK: u32 = 0x891b;
const SIOCGIFMETRIC: u32 = 0x891d;
const SIOCGIFMTU: u32 = 0x8921;
const SIOCGIFHWADDR: u32 = 0x8927;
const SIOCGIFINDEX: u32 = 0x8933;
const SIOCGIFTXQLEN: u32 = 0x8942;
const SIOCGIFMAP: u32 = 0x8970;
/// Requests that change a device; each needs `CAP_NET_ADMIN`.
const CHANGES: &[u32] =
    &[SIOCSIFFLAGS, 0x8916, 0x8918, 0x891a, 0x891c, 0x891e, 0x8922, 0x8923, 0x8924, 0x8943, 0x890b, 0x890c];

fn is_lo(req: &[u8; IFREQ]) -> bool {
    let name = req[..IFNAMSIZ].split(|&b| b == 0).next().unwrap_or(&[]);
    // `lo:0` would name an alias of `lo`; there are no aliases.
    name == LO_NAME
}

fn inet(addr: [u8; 4]) -> [u8; 16] {
    let mut v = [0; 16];
    v[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    v[4..8].copy_from_slice(&addr);
    v
}

/// An ioctl(2) that every internet socket accepts.
pub fn ioctl(net: &NetNs, task: &Task, cmd: u32, arg: u64) -> SysResult {
    let mem = task.mem();
    match cmd {
        SIOCGIFCONF => return conf(net, task, arg),
        SIOCGSTAMP | SIOCGSTAMPNS => return Err(Errno::ENOENT.into()),
        c if CHANGES.contains(&c) => {
            let mut req = [0u8; IFREQ];
            mem.read_bytes(arg, &mut req)?;
            return change(net, task, c, &req);
        }
        SIOCGIFNAME | SIOCGIFFLAGS | SIOCGIFADDR | SIOCGIFDSTADDR | SIOCGIFBRDADDR | SIOCGIFNETMASK | SIOCGIFMETRIC
        | SIOCGIFMTU | SIOCGIFHWADDR | SIOCGIFINDEX | SIOCGIFTXQLEN | SIOCGIFMAP => {}
        _ => return Err(Errno::ENOTTY.into()),
    }
    let mut req = [0u8; IFREQ];
    mem.read_bytes(arg, &mut req)?;
    if cmd == SIOCGIFNAME {
        if req.get(16..20).is_none_or(|i| i != LO_INDEX.to_ne_bytes()) {
            return Err(Errno::ENODEV.into());
        }
        let mut name = [0; IFNAMSIZ];
        name[..LO_NAME.len()].copy_from_slice(LO_NAME);
        mem.write_bytes(arg, &name)?;
        return Ok(0);
    }
    if !is_lo(&req) {
        return Err(Errno::ENODEV.into());
    }
    let of_address = matches!(cmd, SIOCGIFADDR | SIOCGIFDSTADDR | SIOCGIFBRDADDR | SIOCGIFNETMASK);
    if of_address && !net.has_address() {
        return Err(Errno::EADDRNOTAVAIL.into());
    }
    let int = |v: i32| v.to_ne_bytes().to_vec();
    let value: Vec<u8> = match cmd {
        SIOCGIFFLAGS => (lo_flags(net) as u16).to_ne_bytes().to_vec(),
        SIOCGIFADDR | SIOCGIFDSTADDR => inet([127, 0, 0, 1]).to_vec(),
        SIOCGIFBRDADDR => inet([0; 4]).to_vec(),
        SIOCGIFNETMASK => inet([255, 0, 0, 0]).to_vec(),
        SIOCGIFMTU => int(LO_MTU),
        SIOCGIFINDEX => int(LO_INDEX),
        SIOCGIFTXQLEN => int(LO_TXQLEN),
        SIOCGIFHWADDR => {
            let mut v = vec![0; 16];
            v[..2].copy_from_slice(&libc::ARPHRD_LOOPBACK.to_ne_bytes());
            v
        }
        SIOCGIFMAP => vec![0; 24],
        _ => int(0),
    };
    mem.write_bytes(arg + IFNAMSIZ as u64, &value)?;
    Ok(0)
}

/// Changes the interface: the only change supported is setting it up or down.
fn change(net: &NetNs, task: &Task, cmd: u32, req: &[u8; IFREQ]) -> SysResult {
    let cred = task.cred();
    if !cred.capable_in(&net.common.owner(), CAP_NET_ADMIN) {
        return Err(Errno::EPERM.into());
    }
    if cmd != SIOCSIFFLAGS {
        return Err(Errno::EOPNOTSUPP.into());
    }
    if !is_lo(req) {
        return Err(Errno::ENODEV.into());
    }
    let flags = req.get(IFNAMSIZ..).and_then(|r| r.first_chunk()).map_or(0, |c| u16::from_ne_bytes(*c));
    net.set_up(&cred, flags & libc::IFF_UP as u16 != 0)?;
    Ok(0)
}

/// `SIOCGIFCONF`: fills `struct ifconf` with as many `struct ifreq` as its buffer holds.
fn conf(net: &NetNs, task: &Task, arg: u64) -> SysResult {
    let mem = task.mem();
    let [len, buf]: [u64; 2] = mem.read(arg)?;
    let room = len as u32 as i32;
    let n = if net.has_address() { entries(room, buf)? } else { entries(room, buf).map(|_| 0)? };
    if n > 0 && buf != 0 {
        let mut req = [0u8; IFREQ];
        req[..LO_NAME.len()].copy_from_slice(LO_NAME);
        req[IFNAMSIZ..IFNAMSIZ + 16].copy_from_slice(&inet([127, 0, 0, 1]));
        mem.write_bytes(buf, &req)?;
    }
    mem.write(arg, &(n * IFREQ as i32))?;
    Ok(0)
}

/// The number of entries written; without a buffer, the number that exist.
fn entries(room: i32, buf: u64) -> Result<i32> {
    if room < 0 {
        return Err(Errno::EINVAL);
    }
    Ok(i32::from(buf == 0 || room >= IFREQ as i32))
}
