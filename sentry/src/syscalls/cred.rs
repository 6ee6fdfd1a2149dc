//! Capabilities: capget(2), capset(2). The rules are in `kernel::cred`.

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};

const VERSION_1: u32 = 0x1998_0330;
const VERSION_2: u32 = 0x2007_1026;
const VERSION_3: u32 = 0x2008_0522;

/// Reads the header: the number of 32-bit parts of each set, and the pid. For an unknown version, stores the
/// supported one and fails with `EINVAL`.
fn header(cx: &mut Ctx<'_>, addr: Addr) -> Result<(usize, i32)> {
    let [version, pid]: [u32; 2] = cx.read(addr.0)?;
    match version {
        VERSION_1 => Ok((1, pid as i32)),
        VERSION_2 | VERSION_3 => Ok((2, pid as i32)),
        _ => {
            cx.write_now(addr.0, &VERSION_3)?;
            Err(Errno::EINVAL)
        }
    }
}

pub fn capget(cx: &mut Ctx<'_>, hdr: Addr, data: Addr) -> SysResult {
    let (parts, pid) = match header(cx, hdr) {
        // Without data this call queries the version.
        Err(Errno::EINVAL) if data.is_null() => return Ok(0),
        r => r?,
    };
    if data.is_null() {
        return Ok(0);
    }
    if pid < 0 {
        return Err(Errno::EINVAL.into());
    }
    let c = if pid == 0 || pid == cx.task.number().own() {
        cx.task.cred()
    } else {
        cx.task.find_task(pid).ok_or(Errno::ESRCH)?.cred()
    };
    let mut raw = Vec::with_capacity(24);
    for part in 0..parts {
        for set in [c.effective, c.permitted, c.inheritable] {
            raw.extend_from_slice(&((set >> (32 * part)) as u32).to_le_bytes());
        }
    }
    cx.write_bytes(data.0, &raw)?;
    Ok(0)
}

pub fn capset(cx: &mut Ctx<'_>, hdr: Addr, data: Addr) -> SysResult {
    let (parts, pid) = header(cx, hdr)?;
    if pid != 0 && pid != cx.task.number().own() {
        return Err(Errno::EPERM.into());
    }
    let raw: Vec<[u32; 3]> = cx.mem().read_vec(data.0, parts)?;
    let mut sets = [0u64; 3];
    for (part, words) in raw.iter().enumerate() {
        for (set, word) in sets.iter_mut().zip(words) {
            *set |= u64::from(*word) << (32 * part);
        }
    }
    cx.task.change_cred(|c| c.capset(sets[0], sets[1], sets[2]))?;
    Ok(0)
}
