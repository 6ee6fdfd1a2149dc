//! pipe(2), eventfd(2), timerfd_create(2).

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::fs::{anon::AnonInode, eventfd, pipe, signalfd, timerfd, File};
use crate::kernel::signal::SigSet;
use crate::time::clock::{UserItimerspec, UserTimespec};
use crate::time::Clock;
use std::sync::Arc;

/// Installs two files: both or none.
pub fn install_pair(cx: &Ctx<'_>, a: Arc<File>, b: Arc<File>, cloexec: bool) -> Result<[i32; 2]> {
    let first = cx.task.install_fd(a, cloexec)?;
    match cx.task.install_fd(b, cloexec) {
        Ok(second) => Ok([first, second]),
        Err(e) => {
            let _ = cx.task.files().remove(first);
            Err(e)
        }
    }
}

/// Stores a pair of descriptors in guest memory, or closes them if that fails.
pub fn give_pair(cx: &Ctx<'_>, at: Addr, fds: [i32; 2]) -> SysResult {
    if let Err(e) = cx.write_now(at.0, &fds) {
        let files = cx.task.files();
        let _ = (files.remove(fds[0]), files.remove(fds[1]));
        return Err(e.into());
    }
    Ok(0)
}

pub fn pipe(cx: &mut Ctx<'_>, fds: Addr) -> SysResult {
    pipe2(cx, fds, 0)
}

pub fn pipe2(cx: &mut Ctx<'_>, fds: Addr, flags: i32) -> SysResult {
    const STATUS: i32 = libc::O_NONBLOCK | libc::O_DIRECT;
    if flags & libc::O_EXCL != 0 {
        // O_NOTIFICATION_PIPE
        return Err(Errno::ENOPKG.into());
    }
    if flags & !(STATUS | libc::O_CLOEXEC) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let (r, w) = pipe::new_pipe(Some(AnonInode::pipe(cx.task)), flags & STATUS)?;
    let pair = install_pair(cx, r, w, flags & libc::O_CLOEXEC != 0)?;
    give_pair(cx, fds, pair)
}

pub fn eventfd(cx: &mut Ctx<'_>, initial: u32) -> SysResult {
    eventfd2(cx, initial, 0)
}

pub fn eventfd2(cx: &mut Ctx<'_>, initial: u32, flags: i32) -> SysResult {
    if flags & !(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK | libc::EFD_SEMAPHORE) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let file = eventfd::new(initial, flags & libc::EFD_SEMAPHORE != 0, flags & libc::EFD_NONBLOCK);
    Ok(cx.task.install_fd(file, flags & libc::EFD_CLOEXEC != 0)? as u64)
}

pub fn timerfd_create(cx: &mut Ctx<'_>, clock: i32, flags: i32) -> SysResult {
    const CAP_WAKE_ALARM: u64 = 1 << 35;
    if flags & !(libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let c = Clock::from_id(clock).ok_or(Errno::EINVAL)?;
    if !matches!(c, Clock::Realtime | Clock::Monotonic | Clock::Boottime) {
        return Err(Errno::EINVAL.into());
    }
    if matches!(clock, libc::CLOCK_REALTIME_ALARM | libc::CLOCK_BOOTTIME_ALARM) && !cx.task.cred().has(CAP_WAKE_ALARM) {
        return Err(Errno::EPERM.into());
    }
    let file = timerfd::new(&cx.kernel().executor, c, flags & libc::TFD_NONBLOCK);
    Ok(cx.task.install_fd(file, flags & libc::TFD_CLOEXEC != 0)? as u64)
}

fn to_user(left: crate::time::timer::Left) -> UserItimerspec {
    UserItimerspec { interval: UserTimespec::from_ns(left.interval_ns), value: UserTimespec::from_ns(left.value_ns) }
}

pub fn timerfd_settime(cx: &mut Ctx<'_>, fd: Fd, flags: i32, new: Addr, old: Addr) -> SysResult {
    let spec: UserItimerspec = cx.read(new.0)?;
    if flags & !(libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let (value, interval) = (spec.value.to_ns()?, spec.interval.to_ns()?);
    let file = cx.io_file(fd.0)?;
    let t = timerfd::of(&file).ok_or(Errno::EINVAL)?;
    let left = t.set(value, interval, flags & libc::TFD_TIMER_ABSTIME != 0);
    if !old.is_null() {
        cx.write(old.0, &to_user(left))?;
    }
    Ok(0)
}

pub fn timerfd_gettime(cx: &mut Ctx<'_>, fd: Fd, cur: Addr) -> SysResult {
    let file = cx.io_file(fd.0)?;
    let left = timerfd::of(&file).ok_or(Errno::EINVAL)?.get();
    cx.write(cur.0, &to_user(left))?;
    Ok(0)
}

pub fn signalfd(cx: &mut Ctx<'_>, fd: i32, mask: Addr, size: usize) -> SysResult {
    signalfd4(cx, fd, mask, size, 0)
}

pub fn signalfd4(cx: &mut Ctx<'_>, fd: i32, mask: Addr, size: usize, flags: i32) -> SysResult {
    if flags & !(libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) != 0 || size != 8 {
        return Err(Errno::EINVAL.into());
    }
    let set = SigSet(cx.read::<u64>(mask.0)?).minus(SigSet::UNBLOCKABLE);
    if fd == -1 {
        let file = signalfd::new(cx.task, set, flags & libc::SFD_NONBLOCK);
        return Ok(cx.task.install_fd(file, flags & libc::SFD_CLOEXEC != 0)? as u64);
    }
    let file = cx.io_file(fd)?;
    let s = signalfd::of(&file).ok_or(Errno::EINVAL)?;
    *s.mask.lock() = set;
    s.announce();
    Ok(fd as u64)
}
