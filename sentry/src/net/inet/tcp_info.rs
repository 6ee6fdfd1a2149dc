//! Options of `IPPROTO_TCP` that are not integers (tcp(7)).

use super::conn::state;
use super::opts::IpOpts;
use crate::error::{Errno, Result};

const TCP_REPAIR: i32 = 19;
/// The congestion control that the option names; loopback has no congestion to control.
const CONGESTION: &[u8] = b"cubic\0\0\0\0\0\0\0\0\0\0\0";
const ALGORITHMS: [&[u8]; 2] = [b"cubic", b"reno"];
/// Maximum segment size on `lo`, and of a socket that is not connected.
const MSS_LO: i32 = 65483;
const MSS_DEFAULT: i32 = 536;
/// `sizeof(struct tcp_info)` of Linux 6.6.
const INFO_LEN: usize = 240;
const MTU: u32 = 65535;

/// The value of a non-integer option. `None`: the option is an integer.
pub fn get(name: i32, st: u8, opts: &IpOpts) -> Option<Result<Vec<u8>>> {
    let open = !matches!(st, state::CLOSE | state::LISTEN | state::SYN_SENT);
    Some(Ok(match name {
        libc::TCP_INFO => info(st, open),
        libc::TCP_CONGESTION => CONGESTION.to_vec(),
        libc::TCP_MAXSEG => {
            let asked = opts.get(libc::IPPROTO_TCP, libc::TCP_MAXSEG).unwrap_or(0);
            let v = if open { MSS_LO } else { MSS_DEFAULT };
            (if asked > 0 { asked.min(v) } else { v }).to_ne_bytes().to_vec()
        }
        libc::TCP_FASTOPEN => 0i32.to_ne_bytes().to_vec(),
        // No upper-layer protocol is attached.
        libc::TCP_ULP => Vec::new(),
        TCP_REPAIR => return Some(Err(Errno::EPERM)),
        _ => return None,
    }))
}

pub fn set(name: i32, value: &[u8]) -> Option<Result<()>> {
    match name {
        libc::TCP_CONGESTION => {
            let name = value.split(|&b| b == 0).next().unwrap_or(value);
            Some(match name {
                [] => Err(Errno::EINVAL),
                n if ALGORITHMS.contains(&n) => Ok(()),
                _ => Err(Errno::ENOENT),
            })
        }
        libc::TCP_ULP => Some(Err(Errno::ENOENT)),
        TCP_REPAIR => Some(Err(Errno::EPERM)),
        libc::TCP_INFO => Some(Err(Errno::ENOPROTOOPT)),
        _ => None,
    }
}

fn info(st: u8, open: bool) -> Vec<u8> {
    let mut v = vec![0; INFO_LEN];
    let mut put = |at: usize, n: u32| v[at..at + 4].copy_from_slice(&n.to_ne_bytes());
    let mss = if open { MSS_LO as u32 } else { MSS_DEFAULT as u32 };
    // Offsets of `struct tcp_info`; times are in microseconds.
    put(8, if open { 200_000 } else { 1_000_000 });
    put(16, mss);
    put(20, mss);
    put(60, if open { MTU } else { 0 });
    put(68, if open { 20 } else { 0 });
    put(72, if open { 10 } else { 250_000 });
    put(76, i32::MAX as u32);
    put(80, 10);
    put(84, mss);
    put(88, 3);
    v[0] = st;
    v
}
