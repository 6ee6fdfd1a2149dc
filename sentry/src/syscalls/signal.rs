//! kill(2), tgkill(2), sigaction(2), sigprocmask(2), sigsuspend(2), sigtimedwait(2), sigqueue(3),
//! sigaltstack(2).

use super::arg::*;
use super::futex::read_timespec;
use super::Ctx;
use crate::abi::PollEvents;
use crate::error::{Errno, Restart, Result, SysError, SysResult};
use crate::kernel::signal::*;
use crate::kernel::wait::WaitError;
use crate::kernel::{pgrp, send, Cred, Task, ThreadGroup};
use platform::executor::{ask_room, Rounds};
use std::sync::Arc;

fn check_size(size: usize) -> Result<()> {
    if size == 8 {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

pub fn rt_sigaction(cx: &mut Ctx<'_>, sig: Sig, act: Addr, old: Addr, size: usize) -> SysResult {
    check_size(size)?;
    let sig = sig.0;
    if !(1..=NSIG).contains(&sig) || (!act.is_null() && SigSet::UNBLOCKABLE.has(sig)) {
        return Err(Errno::EINVAL.into());
    }
    let new = if act.is_null() {
        None
    } else {
        let [handler, flags, restorer, mask]: [u64; 4] = cx.read(act.0)?;
        Some(SigAction { handler, flags, restorer, mask: SigSet(mask).minus(SigSet::UNBLOCKABLE) })
    };
    let actions = cx.task.group.actions.read().clone();
    if new.is_some() && crate::time::has_many(&cx.task.group) {
        ask_room()?;
    }
    let prev = {
        let mut a = actions.lock();
        let prev = a.get(sig);
        if let Some(n) = new {
            let before = a.ignored(sig);
            a.set(sig, n);
            if before && !a.ignored(sig) {
                drop(a);
                crate::time::unignored(&cx.task.group, sig);
            } else if a.ignored(sig) {
                drop(a);
                // Pending signals that are now ignored are discarded.
                let doomed = SigSet::of(sig);
                cx.task.group.pending.lock().discard(doomed);
                let threads = cx.task.group.links.lock().threads.clone();
                for t in threads {
                    t.signals.lock().pending.discard(doomed);
                }
            }
        }
        prev
    };
    if !old.is_null() {
        cx.write(old.0, &[prev.handler, prev.flags, prev.restorer, prev.mask.0])?;
    }
    Ok(0)
}

pub fn rt_sigprocmask(cx: &mut Ctx<'_>, how: i32, set: Addr, old: Addr, size: usize) -> SysResult {
    check_size(size)?;
    let new = if set.is_null() { None } else { Some(SigSet(cx.read::<u64>(set.0)?)) };
    let prev = match new {
        None => cx.task.signals.lock().mask,
        Some(n) => {
            let n = n.minus(SigSet::UNBLOCKABLE);
            let becomes: fn(SigSet, SigSet) -> SigSet = match how {
                libc::SIG_BLOCK => SigSet::union,
                libc::SIG_UNBLOCK => SigSet::minus,
                libc::SIG_SETMASK => |_, n| n,
                _ => return Err(Errno::EINVAL.into()),
            };
            cx.task.change_mask(|s| {
                let new = becomes(s.mask, n);
                std::mem::replace(&mut s.mask, new)
            })
        }
    };
    if !old.is_null() {
        cx.write(old.0, &prev.0)?;
    }
    Ok(0)
}

pub fn rt_sigpending(cx: &mut Ctx<'_>, set: Addr, size: usize) -> SysResult {
    if size > 8 {
        return Err(Errno::EINVAL.into());
    }
    let v = {
        let s = cx.task.signals.lock();
        let all = s.pending.set.union(cx.task.group.pending.lock().set);
        SigSet(all.0 & s.mask.0)
    };
    cx.write_bytes(set.0, &v.0.to_le_bytes()[..size])?;
    Ok(0)
}

pub async fn rt_sigsuspend(cx: &mut Ctx<'_>, set: Addr, size: usize) -> SysResult {
    check_size(size)?;
    let new = SigSet(cx.read::<u64>(set.0)?).minus(SigSet::UNBLOCKABLE);
    let task = cx.task.clone();
    task.change_mask(|s| {
        let old = std::mem::replace(&mut s.mask, new);
        s.saved_mask.get_or_insert(old);
    });
    let _ = task.wait::<()>(&[], None, || None).await;
    Err(SysError::Restart(Restart::NoHand))
}

pub async fn pause(cx: &mut Ctx<'_>) -> SysResult {
    let task = cx.task.clone();
    let _ = task.wait::<()>(&[], None, || None).await;
    Err(SysError::Restart(Restart::NoHand))
}

pub async fn rt_sigtimedwait(cx: &mut Ctx<'_>, set: Addr, info: Addr, timeout: Addr, size: usize) -> SysResult {
    check_size(size)?;
    let want = SigSet(cx.read::<u64>(set.0)?).minus(SigSet::UNBLOCKABLE);
    let deadline = if timeout.is_null() {
        None
    } else {
        Some(platform::executor::now_ns().saturating_add(read_timespec(cx, timeout.0)?))
    };
    let task = cx.task.clone();
    let take = || crate::kernel::deliver::dequeue(&task, want);
    let got = task.wait(&[(&task.group.signal_wait, PollEvents::all())], deadline, take).await;
    match got {
        Ok(i) => {
            if !info.is_null() {
                cx.write_bytes(info.0, &i.to_bytes())?;
            }
            Ok(i.signo as u64)
        }
        Err(WaitError::TimedOut) => Err(Errno::EAGAIN.into()),
        Err(WaitError::Interrupted) => match take() {
            Some(i) => {
                if !info.is_null() {
                    cx.write_bytes(info.0, &i.to_bytes())?;
                }
                Ok(i.signo as u64)
            }
            None => Err(Errno::EINTR.into()),
        },
    }
}

/// May the caller send `sig` to a process, which its leader stands for (or what is left of it)?
pub(super) fn may_signal(cx: &Ctx<'_>, target: &Arc<ThreadGroup>, sig: i32) -> bool {
    let remains = || target.remains.lock().as_ref().map(|z| z.cred.clone());
    match target.any_thread().map(|t| t.cred()).or_else(remains) {
        Some(cred) => may_signal_as(cx, target, &cred, sig),
        None => true,
    }
}

fn may_signal_as(cx: &Ctx<'_>, target: &Arc<ThreadGroup>, cred: &Cred, sig: i32) -> bool {
    if send::permitted(&cx.task.cred(), cred) {
        return true;
    }
    // SIGCONT may be sent to any process of the same session.
    sig == libc::SIGCONT && target.sid() == cx.task.group.sid()
}

pub(super) fn own_info(cx: &Ctx<'_>, sig: i32) -> SigInfo {
    SigInfo::user(sig, cx.task.group.pid, cx.task.cred().uid)
}

/// The process with this id, or with a thread of this id, if the caller may send it `sig`. The credentials of the
/// named thread count.
fn process(cx: &Ctx<'_>, pid: i32, sig: i32) -> Result<Arc<ThreadGroup>> {
    let (group, allowed) = match cx.task.find_group(pid) {
        Some(g) => {
            let allowed = may_signal(cx, &g, sig);
            (g, allowed)
        }
        None => {
            let t = cx.task.find_task(pid).ok_or(Errno::ESRCH)?;
            (t.group.clone(), may_signal_as(cx, &t.group, &t.cred(), sig))
        }
    };
    if allowed {
        Ok(group)
    } else {
        Err(Errno::EPERM)
    }
}

pub fn kill(cx: &mut Ctx<'_>, pid: i32, sig: Sig) -> SysResult {
    let sig = sig.0;
    if !(0..=NSIG).contains(&sig) {
        return Err(Errno::EINVAL.into());
    }
    let kernel = cx.kernel().clone();
    let info = own_info(cx, sig);
    if pid > 0 {
        let g = process(cx, pid, sig)?;
        if sig != 0 {
            send::to_group(&g, info)?;
        }
        return Ok(0);
    }
    if pid == i32::MIN {
        return Err(Errno::ESRCH.into());
    }
    let targets: Vec<Arc<ThreadGroup>> = match pid {
        0 => pgrp::members(&kernel, cx.task.group.pgid()),
        -1 => all_seen(cx),
        p => cx.task.global_of(-p).map_or_else(Vec::new, |p| pgrp::members(&kernel, p)),
    };
    if targets.is_empty() {
        return Err(Errno::ESRCH.into());
    }
    let mut allowed = false;
    let mut rounds = Rounds::new();
    for g in &targets {
        rounds.next();
        if may_signal(cx, g, sig) {
            allowed = true;
            if sig != 0 {
                let _ = send::to_group(g, info);
            }
        }
    }
    if allowed {
        Ok(0)
    } else {
        Err(Errno::EPERM.into())
    }
}

/// The processes that the caller sees, but for itself and process 1.
fn all_seen(cx: &Ctx<'_>) -> Vec<Arc<ThreadGroup>> {
    let me = &cx.task.group;
    let ns = cx.task.pid_ns();
    let tree = cx.kernel().tree.lock();
    if ns.is_initial() {
        return tree.groups.values().filter(|g| g.pid != 1 && g.pid != me.pid).cloned().collect();
    }
    let seen = ns.numbers(2).into_iter().filter_map(|(_, global)| tree.groups.get(&global).cloned());
    seen.filter(|g| g.pid != me.pid).collect()
}

fn thread_target(cx: &Ctx<'_>, tgid: Option<i32>, tid: i32, sig: i32) -> Result<Arc<Task>> {
    if tid <= 0 || tgid.is_some_and(|g| g <= 0) || !(0..=NSIG).contains(&sig) {
        return Err(Errno::EINVAL);
    }
    let t = cx.task.find_task(tid).ok_or(Errno::ESRCH)?;
    if tgid.is_some_and(|g| g != cx.task.nr_of(&t.group.id)) {
        return Err(Errno::ESRCH);
    }
    if !may_signal_as(cx, &t.group, &t.cred(), sig) {
        return Err(Errno::EPERM);
    }
    Ok(t)
}

fn to_thread(cx: &Ctx<'_>, tgid: Option<i32>, tid: i32, sig: i32) -> SysResult {
    let t = thread_target(cx, tgid, tid, sig)?;
    if sig != 0 {
        let info = SigInfo { code: libc::SI_TKILL, ..own_info(cx, sig) };
        send::to_task(&t, info)?;
    }
    Ok(0)
}

pub fn tkill(cx: &mut Ctx<'_>, tid: i32, sig: Sig) -> SysResult {
    to_thread(cx, None, tid, sig.0)
}

pub fn tgkill(cx: &mut Ctx<'_>, tgid: i32, tid: i32, sig: Sig) -> SysResult {
    to_thread(cx, Some(tgid), tid, sig.0)
}

/// A `siginfo_t` argument; `sig`, if given, replaces its signal number.
pub(super) fn read_info(cx: &Ctx<'_>, addr: u64, sig: Option<i32>) -> Result<SigInfo> {
    let mut b = [0u8; 128];
    cx.read_bytes(addr, &mut b)?;
    let mut i = SigInfo::from_bytes(&b);
    i.signo = sig.unwrap_or(i.signo);
    Ok(i)
}

pub fn rt_sigqueueinfo(cx: &mut Ctx<'_>, pid: i32, sig: Sig, info: Addr) -> SysResult {
    let i = read_info(cx, info.0, Some(sig.0))?;
    if !(0..=NSIG).contains(&sig.0) {
        return Err(Errno::EINVAL.into());
    }
    // A sender must not pose as the kernel or as kill(2).
    if (i.code >= 0 || i.code == libc::SI_TKILL) && pid != cx.task.group.id.own() {
        return Err(Errno::EPERM.into());
    }
    let g = process(cx, pid, sig.0)?;
    if sig.0 != 0 {
        send::to_group(&g, i)?;
    }
    Ok(0)
}

pub fn rt_tgsigqueueinfo(cx: &mut Ctx<'_>, tgid: i32, tid: i32, sig: Sig, info: Addr) -> SysResult {
    let i = read_info(cx, info.0, Some(sig.0))?;
    let t = thread_target(cx, Some(tgid), tid, sig.0)?;
    if (i.code >= 0 || i.code == libc::SI_TKILL) && tgid != cx.task.group.id.own() {
        return Err(Errno::EPERM.into());
    }
    if sig.0 != 0 {
        send::to_task(&t, i)?;
    }
    Ok(0)
}

const SS_ONSTACK: i32 = 1;
const SS_DISABLE: i32 = 2;
const SS_AUTODISARM: i32 = 1 << 31;
const MINSIGSTKSZ: u64 = 2048;

pub fn sigaltstack(cx: &mut Ctx<'_>, new: Addr, old: Addr) -> SysResult {
    let sp = cx.thread.regs().rsp;
    let now = cx.task.signals.lock().alt;
    let on = now.flags & SS_DISABLE == 0 && now.size > 0 && sp > now.sp && sp - now.sp <= now.size;
    if !new.is_null() {
        let [base, flags, size]: [u64; 3] = cx.read(new.0)?;
        let flags = flags as u32 as i32;
        if on && now.flags & SS_AUTODISARM == 0 {
            return Err(Errno::EPERM.into());
        }
        let mode = flags & !SS_AUTODISARM;
        let alt = match mode {
            SS_DISABLE => AltStack { sp: 0, size: 0, flags },
            0 | SS_ONSTACK if size < MINSIGSTKSZ => return Err(Errno::ENOMEM.into()),
            0 | SS_ONSTACK => AltStack { sp: base, size, flags: flags & SS_AUTODISARM },
            _ => return Err(Errno::EINVAL.into()),
        };
        cx.task.signals.lock().alt = alt;
    }
    if !old.is_null() {
        let flags =
            if now.size == 0 { SS_DISABLE } else { (now.flags & SS_AUTODISARM) | if on { SS_ONSTACK } else { 0 } };
        cx.write(old.0, &[now.sp, flags as u32 as u64, now.size])?;
    }
    Ok(0)
}
