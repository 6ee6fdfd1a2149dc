//! Clocks and sleeping: clock_gettime(2), nanosleep(2), gettimeofday(2), adjtimex(2).

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, Restart, Result, SysError, SysResult};
use crate::kernel::task::RestartBlock;
use crate::kernel::wait::WaitError;
use crate::kernel::{Task, ThreadGroup};
use crate::time::clock::{Clock, UserTimespec, UserTimeval, NSEC_PER_SEC};
use crate::time::cpu::{group_time, task_time, Part};
use platform::executor::now_ns;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// The clock of a clock id.
pub enum ClockTarget {
    Clock(Clock),
    Group(Arc<ThreadGroup>, Part),
    Thread(Arc<Task>, Part),
}

impl ClockTarget {
    pub fn now(&self) -> u64 {
        match self {
            ClockTarget::Clock(c) => c.now(),
            ClockTarget::Group(g, part) => part.of(group_time(g)),
            ClockTarget::Thread(t, part) => part.of(task_time(t)),
        }
    }
    fn resolution(&self) -> u64 {
        match self {
            ClockTarget::Clock(c) => c.resolution(),
            _ => 1,
        }
    }
}

/// Decodes a clock id; `EINVAL` if invalid.
pub fn which(cx: &Ctx<'_>, id: i32) -> Result<ClockTarget> {
    if let Some(c) = Clock::from_id(id) {
        return Ok(ClockTarget::Clock(c));
    }
    match id {
        libc::CLOCK_PROCESS_CPUTIME_ID => Ok(ClockTarget::Group(cx.task.group.clone(), Part::All)),
        libc::CLOCK_THREAD_CPUTIME_ID => Ok(ClockTarget::Thread(cx.task.clone(), Part::All)),
        i32::MIN..=-1 => {
            // Process or thread clocks, encoded as by clock_getcpuclockid(3): ~pid << 3 | per-thread << 2 |
            // part. Part 3 would be a clock device given by descriptor.
            let part = match id & 3 {
                0 | 2 => Part::All,
                1 => Part::User,
                _ => return Err(Errno::EINVAL),
            };
            let pid = !(id >> 3);
            if id & 4 != 0 {
                let t = if pid == 0 { Some(cx.task.clone()) } else { cx.task.find_task(pid) };
                let t = t.filter(|t| Arc::ptr_eq(&t.group, &cx.task.group)).ok_or(Errno::EINVAL)?;
                Ok(ClockTarget::Thread(t, part))
            } else {
                let g = if pid == 0 { Some(cx.task.group.clone()) } else { cx.task.find_group(pid) };
                Ok(ClockTarget::Group(g.ok_or(Errno::EINVAL)?, part))
            }
        }
        _ => Err(Errno::EINVAL),
    }
}

pub fn clock_gettime(cx: &mut Ctx<'_>, clock: i32, tp: Addr) -> SysResult {
    let now = match Clock::from_id(clock) {
        Some(c) => c.now(),
        None => match which(cx, clock)? {
            // The host counts per thread, but reports the time only to the thread itself. In a process that
            // has never had a second thread, the time of the process applies, which includes earlier
            // programs.
            ClockTarget::Thread(t, Part::All)
                if Arc::ptr_eq(&t, cx.task) && t.group.threaded.load(Ordering::SeqCst) =>
            {
                if tp.0 > platform::GUEST_MAX - size_of::<UserTimespec>() as u64 {
                    return Err(Errno::EFAULT.into());
                }
                cx.thread.queue(platform::Op::ThreadTime { addr: tp.0 });
                return Ok(0);
            }
            other => other.now(),
        },
    };
    cx.write(tp.0, &UserTimespec::from_ns(now))?;
    Ok(0)
}

pub fn clock_getres(cx: &mut Ctx<'_>, clock: i32, res: Addr) -> SysResult {
    let r = which(cx, clock)?.resolution();
    if !res.is_null() {
        cx.write(res.0, &UserTimespec::from_ns(r))?;
    }
    Ok(0)
}

pub fn clock_settime(cx: &mut Ctx<'_>, clock: i32, tp: Addr) -> SysResult {
    if !matches!(clock, libc::CLOCK_REALTIME) {
        return Err(Errno::EINVAL.into());
    }
    let t: UserTimespec = cx.read(tp.0)?;
    t.to_ns()?;
    // The clock belongs to the host.
    Err(Errno::EPERM.into())
}

pub fn gettimeofday(cx: &mut Ctx<'_>, tv: Addr, tz: Addr) -> SysResult {
    if !tv.is_null() {
        cx.write(tv.0, &UserTimeval::from_ns(Clock::Realtime.now()))?;
    }
    if !tz.is_null() {
        cx.write(tz.0, &[0i32; 2])?;
    }
    Ok(0)
}

pub fn settimeofday(cx: &mut Ctx<'_>, tv: Addr, tz: Addr) -> SysResult {
    if !tv.is_null() {
        let t: UserTimeval = cx.read(tv.0)?;
        t.to_ns()?;
    }
    if !tz.is_null() {
        let _: [i32; 2] = cx.read(tz.0)?;
    }
    Err(Errno::EPERM.into())
}

pub fn time(cx: &mut Ctx<'_>, tloc: Addr) -> SysResult {
    let now = Clock::RealtimeCoarse.now() / NSEC_PER_SEC;
    if !tloc.is_null() {
        cx.write(tloc.0, &now)?;
    }
    Ok(now)
}

/// `struct timex`: no time source adjusts the clock inside, so it reads as unsynchronised.
fn timex(cx: &mut Ctx<'_>, buf: Addr) -> SysResult {
    const TIME_ERROR: u64 = 5;
    const STA_UNSYNC: i32 = 0x40;
    const MAX_ERROR_US: i64 = 16_000_000;
    let mut raw = [0u8; 208];
    cx.read_bytes(buf.0, &mut raw)?;
    let mut modes = [0u8; 4];
    modes.copy_from_slice(&raw[..4]);
    let modes = u32::from_le_bytes(modes);
    // ADJ_OFFSET_SS_READ only reads too.
    if modes != 0 && modes != 0xa001 {
        // The clock belongs to the host.
        return Err(Errno::EPERM.into());
    }
    let now = UserTimeval::from_ns(Clock::Realtime.now());
    let mut put = |at: usize, v: i64| raw[at..at + 8].copy_from_slice(&v.to_le_bytes());
    put(8, 0); // offset
    put(16, 0); // freq
    put(24, MAX_ERROR_US);
    put(32, MAX_ERROR_US);
    put(40, i64::from(STA_UNSYNC)); // status and padding
    put(48, 2); // constant
    put(56, 1); // precision
    put(64, 32_768_000); // tolerance
    put(72, now.sec);
    put(80, now.usec);
    put(88, 10_000); // tick
    raw[96..].fill(0);
    cx.write_bytes(buf.0, &raw)?;
    Ok(TIME_ERROR)
}

pub fn adjtimex(cx: &mut Ctx<'_>, buf: Addr) -> SysResult {
    timex(cx, buf)
}

pub fn clock_adjtime(cx: &mut Ctx<'_>, clock: i32, buf: Addr) -> SysResult {
    match which(cx, clock)? {
        ClockTarget::Clock(Clock::Realtime) => timex(cx, buf),
        _ => Err(Errno::EOPNOTSUPP.into()),
    }
}

/// Sleeps until the host monotonic time `deadline_ns`. If a signal interrupts it, stores the remaining time
/// and prepares `restart_syscall`.
async fn sleep_until(cx: &mut Ctx<'_>, deadline_ns: u64, clock: i32, remain: u64) -> SysResult {
    let task = cx.task.clone();
    match task.wait::<()>(&[], Some(deadline_ns), || None).await {
        Ok(()) | Err(WaitError::TimedOut) => Ok(0),
        Err(WaitError::Interrupted) => {
            if remain != 0 {
                let left = deadline_ns.saturating_sub(now_ns());
                if left == 0 {
                    return Ok(0);
                }
                cx.write_now(remain, &UserTimespec::from_ns(left))?;
            }
            *task.restart_block.lock() = Some(RestartBlock::Nanosleep { deadline_ns, clock, remain });
            Err(SysError::Restart(Restart::Block))
        }
    }
}

/// `restart_syscall` of an interrupted sleep.
pub async fn nanosleep_restart(cx: &mut Ctx<'_>, deadline_ns: u64, clock: i32, remain: u64) -> SysResult {
    sleep_until(cx, deadline_ns, clock, remain).await
}

pub async fn nanosleep(cx: &mut Ctx<'_>, req: Addr, rem: Addr) -> SysResult {
    let t: UserTimespec = cx.read(req.0)?;
    let deadline = now_ns().saturating_add(t.to_ns()?);
    sleep_until(cx, deadline, libc::CLOCK_MONOTONIC, rem.0).await
}

pub async fn clock_nanosleep(cx: &mut Ctx<'_>, clock: i32, flags: i32, req: Addr, rem: Addr) -> SysResult {
    let c = match which(cx, clock)? {
        _ if clock == libc::CLOCK_THREAD_CPUTIME_ID => return Err(Errno::EOPNOTSUPP.into()),
        ClockTarget::Clock(c) if c.has_timers() => c,
        ClockTarget::Thread(t, _) if t.tid() == cx.task.tid() => return Err(Errno::EINVAL.into()),
        _ => return Err(Errno::EOPNOTSUPP.into()),
    };
    let t: UserTimespec = cx.read(req.0)?;
    let ns = t.to_ns()?;
    if flags & libc::TIMER_ABSTIME == 0 {
        return sleep_until(cx, now_ns().saturating_add(ns), clock, rem.0).await;
    }
    let task = cx.task.clone();
    // The host's clock may be set meanwhile, so it is read again.
    while c.now() < ns {
        match task.wait::<()>(&[], Some(c.deadline(ns)), || None).await {
            Ok(()) | Err(WaitError::TimedOut) => {}
            Err(WaitError::Interrupted) => return Err(SysError::Restart(Restart::NoHand)),
        }
    }
    Ok(0)
}
