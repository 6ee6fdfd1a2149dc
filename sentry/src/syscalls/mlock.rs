//! mlock(2), mlock2(2), munlock(2), mlockall(2), munlockall(2), mincore(2). The host pages memory, so locks
//! are only accounted, for limits and /proc.

use super::arg::*;
use super::memory::range_arg;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::wait::yield_now;
use crate::mm::vma::{page_aligned, page_up};
use platform::{GUEST_MAX, GUEST_MIN, PAGE_SIZE};

/// Pages reported before other tasks run.
const MINCORE_CHUNK: u64 = 128 * 1024;

/// mincore(2): the host pages guest memory; mapped pages count as resident.
pub async fn mincore(cx: &mut Ctx<'_>, addr: Addr, len: u64, vec: Addr) -> SysResult {
    if !page_aligned(addr.0) {
        return Err(Errno::EINVAL.into());
    }
    if len == 0 {
        return Ok(0);
    }
    let (start, end) = range_arg(addr.0, len, Errno::ENOMEM)?;
    if !cx.task.mm().map().vmas.covers(start, end) {
        return Err(Errno::ENOMEM.into());
    }
    let mem = cx.mem();
    let mut left = (end - start) / PAGE_SIZE;
    let mut at = vec.0;
    let ones = vec![1u8; left.min(MINCORE_CHUNK) as usize];
    while left > 0 {
        let n = left.min(MINCORE_CHUNK) as usize;
        mem.write_bytes(at, &ones[..n])?;
        at += n as u64;
        left -= n as u64;
        yield_now().await;
    }
    Ok(0)
}

fn lock_range(cx: &mut Ctx<'_>, addr: u64, len: u64, on: bool) -> SysResult {
    let start = addr & !(PAGE_SIZE - 1);
    let len = len.checked_add(addr - start).and_then(page_up).ok_or(Errno::EINVAL)?;
    if len == 0 {
        return Ok(0);
    }
    let end = start.checked_add(len).filter(|&e| e <= GUEST_MAX).ok_or(Errno::ENOMEM)?;
    super::memory::ask_for(cx, start, end)?;
    let mm = cx.task.mm();
    let mut map = mm.map();
    if on {
        let held: u64 = map.vmas.iter().filter(|v| v.locked).map(|v| v.len()).sum();
        check_memlock(cx, held.saturating_add(len))?;
    }
    if !map.vmas.covers(start, end) {
        return Err(Errno::ENOMEM.into());
    }
    map.vmas.update(start, end, |v| v.locked = on);
    Ok(0)
}

fn check_memlock(cx: &Ctx<'_>, bytes: u64) -> Result<()> {
    if cx.task.cred().has(crate::kernel::cred::CAP_IPC_LOCK) {
        return Ok(());
    }
    let limit = cx.task.limit(libc::RLIMIT_MEMLOCK);
    if limit == 0 {
        return Err(Errno::EPERM);
    }
    if bytes > limit {
        return Err(Errno::ENOMEM);
    }
    Ok(())
}

pub fn mlock(cx: &mut Ctx<'_>, addr: Addr, len: u64) -> SysResult {
    lock_range(cx, addr.0, len, true)
}

pub fn mlock2(cx: &mut Ctx<'_>, addr: Addr, len: u64, flags: u32) -> SysResult {
    if flags & !1 != 0 {
        return Err(Errno::EINVAL.into());
    }
    lock_range(cx, addr.0, len, true)
}

pub fn munlock(cx: &mut Ctx<'_>, addr: Addr, len: u64) -> SysResult {
    lock_range(cx, addr.0, len, false)
}

pub fn mlockall(cx: &mut Ctx<'_>, flags: i32) -> SysResult {
    let (current, future, onfault) = (1, 2, 4);
    if flags == 0 || flags & !(current | future | onfault) != 0 || flags == onfault {
        return Err(Errno::EINVAL.into());
    }
    super::memory::ask_for(cx, GUEST_MIN, GUEST_MAX)?;
    let mm = cx.task.mm();
    let mut map = mm.map();
    check_memlock(cx, if flags & current != 0 { map.vmas.total } else { 0 })?;
    if flags & current != 0 {
        map.vmas.update(GUEST_MIN, GUEST_MAX, |v| v.locked = true);
    }
    map.locked_future = flags & future != 0;
    Ok(0)
}

pub fn munlockall(cx: &mut Ctx<'_>) -> SysResult {
    super::memory::ask_for(cx, GUEST_MIN, GUEST_MAX)?;
    let mm = cx.task.mm();
    let mut map = mm.map();
    map.vmas.update(GUEST_MIN, GUEST_MAX, |v| v.locked = false);
    map.locked_future = false;
    Ok(0)
}
