//! getrlimit(2), prlimit64(2), getrusage(2), times(2).

use super::arg::*;
use super::sched::target;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::cred::CAP_SYS_RESOURCE;
use crate::kernel::fdtable::NR_OPEN;
use crate::kernel::limits::{Rlimit, RLIMIT_COUNT};
use crate::kernel::ThreadGroup;
use crate::time::clock::UserTimeval;
use crate::time::cpu;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// `struct rlimit64` is two words.
type UserLimit = [u64; 2];

fn checked(resource: u32) -> Result<usize> {
    Some(resource as usize).filter(|r| *r < RLIMIT_COUNT).ok_or(Errno::EINVAL)
}

fn get(group: &ThreadGroup, resource: usize) -> UserLimit {
    let l = group.limits.read().0[resource];
    [l.cur, l.max]
}

fn set(cx: &Ctx<'_>, group: &Arc<ThreadGroup>, resource: usize, new: UserLimit) -> Result<()> {
    let new = Rlimit { cur: new[0], max: new[1] };
    if new.cur > new.max {
        return Err(Errno::EINVAL);
    }
    if resource == libc::RLIMIT_NOFILE as usize && new.max > NR_OPEN as u64 {
        return Err(Errno::EPERM);
    }
    let privileged = cx.task.cred.read().has(CAP_SYS_RESOURCE);
    {
        let mut limits = group.limits.write();
        if new.max > limits.0[resource].max && !privileged {
            return Err(Errno::EPERM);
        }
        limits.0[resource] = new;
    }
    if resource == libc::RLIMIT_CPU as usize {
        cpu::limit_changed(cx.kernel(), group);
    }
    Ok(())
}

pub fn getrlimit(cx: &mut Ctx<'_>, resource: u32, rlim: Addr) -> SysResult {
    let l = get(&cx.task.group, checked(resource)?);
    cx.write(rlim.0, &l)?;
    Ok(0)
}

pub fn setrlimit(cx: &mut Ctx<'_>, resource: u32, rlim: Addr) -> SysResult {
    let new: UserLimit = cx.read(rlim.0)?;
    set(cx, &cx.task.group, checked(resource)?, new)?;
    Ok(0)
}

pub fn prlimit64(cx: &mut Ctx<'_>, pid: i32, resource: u32, new: Addr, old: Addr) -> SysResult {
    let new: Option<UserLimit> = if new.is_null() { None } else { Some(cx.read(new.0)?) };
    let t = target(cx, pid)?;
    if !t.task.as_ref().is_some_and(|t| std::sync::Arc::ptr_eq(t, cx.task)) {
        let (me, it) = (cx.task.cred(), &t.cred);
        let same = [it.uid, it.euid, it.suid].iter().all(|u| *u == me.uid)
            && [it.gid, it.egid, it.sgid].iter().all(|g| *g == me.gid);
        if !same && !me.capable_in(&it.user_ns, CAP_SYS_RESOURCE) {
            return Err(Errno::EPERM.into());
        }
    }
    let resource = checked(resource)?;
    let before = get(&t.group, resource);
    if let Some(new) = new {
        set(cx, &t.group, resource, new)?;
    }
    if !old.is_null() {
        cx.write(old.0, &before)?;
    }
    Ok(0)
}

pub fn getrusage(cx: &mut Ctx<'_>, who: i32, usage: Addr) -> SysResult {
    let (user, system) = match who {
        libc::RUSAGE_THREAD if cx.task.group.threaded.load(Ordering::SeqCst) => {
            host_usage(cx, true, usage)?;
            return Ok(0);
        }
        libc::RUSAGE_SELF | libc::RUSAGE_THREAD => cpu::group_time(&cx.task.group),
        libc::RUSAGE_CHILDREN => {
            let r = cx.task.group.links.lock();
            (r.child_utime, r.child_stime)
        }
        _ => return Err(Errno::EINVAL.into()),
    };
    let ours = rusage(user, system);
    if who != libc::RUSAGE_CHILDREN {
        // Only the host counts memory, faults and switches.
        host_usage(cx, false, usage)?;
        cx.write_bytes(usage.0, &ours[..TIMES])?;
    } else {
        cx.write_bytes(usage.0, &ours)?;
    }
    Ok(0)
}

/// Bytes of the times in `struct rusage`.
const TIMES: usize = 32;

/// Lets the host fill in a `struct rusage`.
fn host_usage(cx: &mut Ctx<'_>, thread: bool, usage: Addr) -> Result<()> {
    if usage.0 > platform::GUEST_MAX - size_of::<libc::rusage>() as u64 {
        return Err(Errno::EFAULT);
    }
    cx.thread.queue(platform::Op::Usage { thread, addr: usage.0 });
    Ok(())
}

/// `struct rusage` with the times filled in; counters that are not kept are 0, as in Linux.
pub fn rusage(user_ns: u64, system_ns: u64) -> [u8; 144] {
    let mut raw = [0u8; 144];
    for (at, ns) in [(0, user_ns), (16, system_ns)] {
        let t = UserTimeval::from_ns(ns);
        raw[at..at + 8].copy_from_slice(&t.sec.to_le_bytes());
        raw[at + 8..at + 16].copy_from_slice(&t.usec.to_le_bytes());
    }
    raw
}

pub fn times(cx: &mut Ctx<'_>, buf: Addr) -> SysResult {
    const TICK_NS: u64 = 10_000_000;
    if !buf.is_null() {
        let (user, system) = cpu::group_time(&cx.task.group);
        let (cuser, csystem) = {
            let r = cx.task.group.links.lock();
            (r.child_utime, r.child_stime)
        };
        cx.write(buf.0, &[user, system, cuser, csystem].map(|ns| ns / TICK_NS))?;
    }
    Ok(platform::executor::now_ns() / TICK_NS)
}
