//! Timers: alarm(2), setitimer(2), timer_create(2), timer_settime(2). The implementation is in
//! `time::{itimer,posix}`.

use super::arg::*;
use super::time::{which, ClockTarget};
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::cred::CAP_WAKE_ALARM;
use crate::kernel::signal::NSIG;
use crate::time::clock::{UserItimerspec, UserTimespec, UserTimeval, NSEC_PER_SEC};
use crate::time::itimer;
use crate::time::posix::{Notify, PosixTimers, Source};
use crate::time::timer::Left;
use std::sync::Arc;

fn itimer_kind(kind: i32) -> Result<itimer::ItimerKind> {
    match kind {
        0 => Ok(itimer::ItimerKind::Real),
        1 => Ok(itimer::ItimerKind::Virtual),
        2 => Ok(itimer::ItimerKind::Prof),
        _ => Err(Errno::EINVAL),
    }
}

/// `struct itimerval`.
fn itimerval(left: Left) -> [i64; 4] {
    let (i, v) = (UserTimeval::from_ns(left.interval_ns), UserTimeval::from_ns(left.value_ns));
    // Rounding must not make a running timer look disarmed.
    let usec = if left.value_ns > 0 && v.sec == 0 && v.usec == 0 { 1 } else { v.usec };
    [i.sec, i.usec, v.sec, usec]
}

fn itimerspec(left: Left) -> UserItimerspec {
    UserItimerspec { interval: UserTimespec::from_ns(left.interval_ns), value: UserTimespec::from_ns(left.value_ns) }
}

pub fn alarm(cx: &mut Ctx<'_>, seconds: u32) -> SysResult {
    let value = u64::from(seconds) * NSEC_PER_SEC;
    let left = itimer::set(cx.kernel(), &cx.task.group, itimer::ItimerKind::Real, value, 0).value_ns;
    // Rounded to the nearest second, but not to 0 while armed.
    let rounded = (left + NSEC_PER_SEC / 2) / NSEC_PER_SEC;
    Ok(if left > 0 { rounded.max(1) } else { 0 })
}

pub fn getitimer(cx: &mut Ctx<'_>, kind: i32, value: Addr) -> SysResult {
    let left = itimer::get(&cx.task.group, itimer_kind(kind)?);
    cx.write(value.0, &itimerval(left))?;
    Ok(0)
}

pub fn setitimer(cx: &mut Ctx<'_>, kind: i32, new: Addr, old: Addr) -> SysResult {
    // A null pointer disarms the timer (Linux accepts this from old programs).
    let [isec, iusec, vsec, vusec]: [i64; 4] = if new.is_null() { [0; 4] } else { cx.read(new.0)? };
    let value = UserTimeval { sec: vsec, usec: vusec }.to_ns()?;
    let interval = UserTimeval { sec: isec, usec: iusec }.to_ns()?;
    let left = itimer::set(cx.kernel(), &cx.task.group, itimer_kind(kind)?, value, interval);
    if !old.is_null() {
        cx.write(old.0, &itimerval(left))?;
    }
    Ok(0)
}

/// `struct sigevent`.
struct SigEvent {
    value: u64,
    signo: i32,
    notify: i32,
    tid: i32,
}

fn read_sigevent(cx: &Ctx<'_>, addr: Addr) -> Result<SigEvent> {
    let raw: [u64; 8] = cx.read(addr.0)?;
    Ok(SigEvent { value: raw[0], signo: raw[1] as i32, notify: (raw[1] >> 32) as i32, tid: raw[2] as i32 })
}

fn timers(cx: &Ctx<'_>) -> Arc<PosixTimers> {
    cx.task.group.timers.get_or_insert(PosixTimers::default)
}

pub fn timer_create(cx: &mut Ctx<'_>, clock: i32, event: Addr, id: Addr) -> SysResult {
    const THREAD: i32 = libc::SIGEV_THREAD;
    let source = match which(cx, clock)? {
        ClockTarget::Clock(c) if c.has_timers() => Source::Clock(c),
        ClockTarget::Group(g, part) if Arc::ptr_eq(&g, &cx.task.group) => Source::Cpu(part),
        ClockTarget::Thread(_, part) => Source::Cpu(part),
        _ => return Err(Errno::EOPNOTSUPP.into()),
    };
    let alarm = matches!(clock, libc::CLOCK_REALTIME_ALARM | libc::CLOCK_BOOTTIME_ALARM);
    if alarm && !cx.task.cred.read().has(CAP_WAKE_ALARM) {
        return Err(Errno::EPERM.into());
    }
    let event = if event.is_null() { None } else { Some(read_sigevent(cx, event)?) };
    let notify: Box<dyn FnOnce(i32) -> Notify> = match event {
        None => Box::new(|id| Notify::Group { sig: libc::SIGALRM, value: id as u64 }),
        Some(e) if e.notify == libc::SIGEV_NONE => Box::new(|_| Notify::None),
        Some(e) => {
            if !(1..=NSIG).contains(&e.signo) {
                return Err(Errno::EINVAL.into());
            }
            let (sig, value) = (e.signo, e.value);
            match e.notify {
                libc::SIGEV_SIGNAL | THREAD => Box::new(move |_| Notify::Group { sig, value }),
                libc::SIGEV_THREAD_ID => {
                    let t = cx.task.find_task(e.tid).filter(|t| Arc::ptr_eq(&t.group, &cx.task.group));
                    let task = Arc::downgrade(&t.ok_or(Errno::EINVAL)?);
                    Box::new(move |_| Notify::Thread { sig, value, task })
                }
                _ => return Err(Errno::EINVAL.into()),
            }
        }
    };
    let all = timers(cx);
    let limit = cx.task.limit(libc::RLIMIT_SIGPENDING);
    let new = all.create(cx.kernel(), &cx.task.group, source, limit, notify)?;
    if let Err(e) = cx.write_now(id.0, &new) {
        all.delete(new)?;
        return Err(e.into());
    }
    Ok(0)
}

pub fn timer_settime(cx: &mut Ctx<'_>, id: i32, flags: i32, new: Addr, old: Addr) -> SysResult {
    if new.is_null() {
        return Err(Errno::EINVAL.into());
    }
    let spec: UserItimerspec = cx.read(new.0)?;
    let (value, interval) = (spec.value.to_ns()?, spec.interval.to_ns()?);
    let timer = timers(cx).get(id)?;
    let left = timer.set(value, interval, flags & libc::TIMER_ABSTIME != 0);
    if !old.is_null() {
        cx.write(old.0, &itimerspec(left))?;
    }
    Ok(0)
}

pub fn timer_gettime(cx: &mut Ctx<'_>, id: i32, cur: Addr) -> SysResult {
    let left = timers(cx).get(id)?.left();
    cx.write(cur.0, &itimerspec(left))?;
    Ok(0)
}

pub fn timer_getoverrun(cx: &mut Ctx<'_>, id: i32) -> SysResult {
    Ok(timers(cx).get(id)?.overrun() as u64)
}

pub fn timer_delete(cx: &mut Ctx<'_>, id: i32) -> SysResult {
    timers(cx).delete(id)?;
    Ok(0)
}
