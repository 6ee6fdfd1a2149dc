//! futex(2), get_robust_list(2), set_tid_address(2).

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, SysResult};
use crate::kernel::futex as f;
use crate::kernel::futex_pi as pi;
use std::sync::atomic::Ordering;

/// `FUTEX_LOCK_PI2` of <linux/futex.h>.
const LOCK_PI2: i32 = 13;
const PRIVATE: i32 = 128;
const CLOCK_REALTIME: i32 = 256;

/// Reads a `timespec` argument in ns; `EINVAL` if it is invalid.
pub fn read_timespec(cx: &Ctx<'_>, addr: u64) -> crate::error::Result<u64> {
    let [sec, nsec]: [i64; 2] = cx.read(addr)?;
    if sec < 0 || !(0..1_000_000_000).contains(&nsec) {
        return Err(Errno::EINVAL);
    }
    Ok((sec as u64).saturating_mul(1_000_000_000).saturating_add(nsec as u64))
}

/// Converts a host `CLOCK_REALTIME` deadline to host monotonic time.
pub fn realtime_to_monotonic(deadline: u64) -> u64 {
    let now = crate::fs::Timespec::now();
    let now_rt = (now.sec as u64).saturating_mul(1_000_000_000) + u64::from(now.nsec);
    platform::executor::now_ns().saturating_add(deadline.saturating_sub(now_rt))
}

pub async fn futex(
    cx: &mut Ctx<'_>,
    addr: Addr,
    op: i32,
    val: u32,
    timeout: Addr,
    addr2: Addr,
    val3: u32,
) -> SysResult {
    let private = op & PRIVATE != 0;
    let cmd = op & !(PRIVATE | CLOCK_REALTIME);
    if op & CLOCK_REALTIME != 0 && !matches!(cmd, libc::FUTEX_WAIT_BITSET | LOCK_PI2) {
        return Err(Errno::ENOSYS.into());
    }
    // Stubs make these calls themselves and pass one on only for a task with a seccomp filter, which has
    // allowed the call by now. Waiters and wakers must use the same queue, so these calls go to the host too.
    let native = matches!(cmd, 0 | 1 | 3 | 4 | 5 | 9 | 10) && op & !(PRIVATE | CLOCK_REALTIME | 0xf) == 0;
    let task = cx.task.clone();
    // The host wakes the waiters for a thread's exit (pthread_join(3) waits without the private flag), so
    // such waits go to the host too.
    let own = |addr: Addr| private && !task.kernel.options.strace || f::at_host(&task, addr.0);
    if native && own(addr) && (!matches!(cmd, 3..=5) || own(addr2)) {
        cx.native = true;
        return Ok(0);
    }
    let limit = val;
    match cmd {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            let deadline = if timeout.is_null() {
                None
            } else {
                let t = read_timespec(cx, timeout.0)?;
                Some(if cmd == libc::FUTEX_WAIT {
                    platform::executor::now_ns().saturating_add(t)
                } else if op & CLOCK_REALTIME != 0 {
                    realtime_to_monotonic(t)
                } else {
                    t
                })
            };
            let bits = if cmd == libc::FUTEX_WAIT { u32::MAX } else { val3 };
            f::wait(&task, addr.0, private, val, bits, deadline).await
        }
        libc::FUTEX_WAKE => f::wake(&task, addr.0, private, limit, u32::MAX),
        libc::FUTEX_WAKE_BITSET => f::wake(&task, addr.0, private, limit, val3),
        libc::FUTEX_REQUEUE | libc::FUTEX_CMP_REQUEUE => {
            let n2 = timeout.0 as u32;
            if (val as i32) < 0 || (n2 as i32) < 0 {
                return Err(Errno::EINVAL.into());
            }
            let cmp = (cmd == libc::FUTEX_CMP_REQUEUE).then_some(val3);
            f::requeue(&task, addr.0, addr2.0, private, val, n2, cmp)
        }
        libc::FUTEX_WAKE_OP => f::wake_op(cx, addr.0, addr2.0, private, val, timeout.0 as u32, val3).await,
        libc::FUTEX_LOCK_PI | LOCK_PI2 => {
            let deadline = if timeout.is_null() {
                None
            } else {
                let t = read_timespec(cx, timeout.0)?;
                let realtime = cmd == libc::FUTEX_LOCK_PI || op & CLOCK_REALTIME != 0;
                Some(if realtime { realtime_to_monotonic(t) } else { t })
            };
            pi::lock(cx, addr.0, private, deadline, false).await
        }
        libc::FUTEX_TRYLOCK_PI => pi::lock(cx, addr.0, private, None, true).await,
        libc::FUTEX_UNLOCK_PI => pi::unlock(cx, addr.0, private).await,
        _ => Err(Errno::ENOSYS.into()),
    }
}

/// `FUTEX_WAITV_MAX`.
const WAITV_MAX: u32 = 128;
/// `FUTEX2_SIZE_U32`.
const SIZE_U32: u32 = 2;

pub async fn futex_waitv(cx: &mut Ctx<'_>, waiters: Addr, n: u32, flags: u32, timeout: Addr, clock: i32) -> SysResult {
    if flags != 0 || n == 0 || n > WAITV_MAX || waiters.is_null() {
        return Err(Errno::EINVAL.into());
    }
    let deadline = if timeout.is_null() {
        None
    } else {
        if !matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC) {
            return Err(Errno::EINVAL.into());
        }
        let t = read_timespec(cx, timeout.0)?;
        Some(if clock == libc::CLOCK_REALTIME { realtime_to_monotonic(t) } else { t })
    };
    let mut list = Vec::with_capacity(n as usize);
    for i in 0..u64::from(n) {
        let at = waiters.0.checked_add(i * 24).ok_or(Errno::EFAULT)?;
        let [val, addr, rest]: [u64; 3] = cx.read(at)?;
        let (flags, reserved) = (rest as u32, rest >> 32);
        // Other word sizes are reserved.
        if flags & !PRIVATE as u32 != SIZE_U32 || reserved != 0 || val > u64::from(u32::MAX) {
            return Err(Errno::EINVAL.into());
        }
        list.push(f::WaitFor { addr, private: flags & PRIVATE as u32 != 0, expected: val as u32 });
    }
    let task = cx.task.clone();
    if !task.kernel.options.strace {
        // As in `futex`: waiters on words of this process must be in the host's queue, where their wakers
        // look.
        let own = |w: &f::WaitFor| w.private || f::at_host(&task, w.addr);
        if list.iter().all(own) {
            cx.native = true;
            return Ok(0);
        }
        if list.iter().any(own) {
            return Err(Errno::ENOSYS.into());
        }
    }
    f::wait_any(&task, &list, deadline).await
}

pub fn set_tid_address(cx: &mut Ctx<'_>, addr: Addr) -> SysResult {
    cx.task.clear_child_tid.store(addr.0, Ordering::SeqCst);
    Ok(cx.task.number().own() as u64)
}

pub fn set_robust_list(cx: &mut Ctx<'_>, head: Addr, len: usize) -> SysResult {
    if len != 24 {
        return Err(Errno::EINVAL.into());
    }
    cx.task.robust_list.store(head.0, Ordering::SeqCst);
    Ok(0)
}

pub fn get_robust_list(cx: &mut Ctx<'_>, pid: i32, head: Addr, len: Addr) -> SysResult {
    let t = if pid == 0 { cx.task.clone() } else { cx.task.find_task(pid).ok_or(Errno::ESRCH)? };
    if !t.inspectable_by(cx.task) {
        return Err(Errno::EPERM.into());
    }
    let v = t.robust_list.load(Ordering::SeqCst);
    cx.write(len.0, &24u64)?;
    cx.write(head.0, &v)?;
    Ok(0)
}
