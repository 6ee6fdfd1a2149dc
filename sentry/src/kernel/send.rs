//! Sending signals to a thread, a process or a process group; the rules of kill(2) and signal(7).
//!
//! Nothing here waits. A signal is queued and the chosen thread notified ([`Task::notify`]); the effect of
//! the signal is decided when that thread takes it (`deliver`).

use super::cred::NO_ID;
use super::signal::{Quota, SigFields, SigInfo, SigSet, NSIG, SIGRTMIN};
use super::user_ns::{Id, OVERFLOW_ID};
use super::{cred, current, Cred, Kernel, Task, ThreadGroup};
use crate::error::{Errno, Result};
use std::sync::atomic::Ordering;
use std::sync::Arc;

const STOPS: SigSet = SigSet(
    SigSet::of(libc::SIGSTOP).0
        | SigSet::of(libc::SIGTSTP).0
        | SigSet::of(libc::SIGTTIN).0
        | SigSet::of(libc::SIGTTOU).0,
);

/// Forces a signal caused by the thread itself: it cannot be ignored or blocked.
pub fn force(task: &Task, info: SigInfo) {
    task.group.force_fatal(info.signo);
    {
        let actions = task.group.actions.read().clone();
        let mut a = actions.lock();
        let mut s = task.signals.lock();
        if s.mask.has(info.signo) || a.get(info.signo).handler == super::signal::SIG_IGN {
            a.set(info.signo, Default::default());
            s.mask.remove(info.signo);
        }
        s.pending.push(info, None);
    }
    task.notify();
}

/// Immediate effects of sending: stop and continue signals cancel each other.
fn prepare(group: &Arc<ThreadGroup>, sig: i32) {
    if STOPS.has(sig) {
        discard(group, SigSet::of(libc::SIGCONT));
    } else if sig == libc::SIGCONT {
        discard(group, STOPS);
        resume(group);
    }
}

fn discard(group: &ThreadGroup, doomed: SigSet) {
    group.pending.lock().discard(doomed);
    let threads = group.links.lock().threads.clone();
    for t in threads {
        t.signals.lock().pending.discard(doomed);
    }
}

/// Ends a job-control stop.
fn resume(group: &Arc<ThreadGroup>) {
    let was = {
        let mut r = group.links.lock();
        let was = r.stopped.take();
        if was.is_some() {
            r.continued = true;
            r.stop_reported = false;
        }
        was
    };
    if was.is_some() {
        group.stop_wait.wake_all();
        notify_parent_of_stop(group, libc::CLD_CONTINUED, libc::SIGCONT);
    }
}

/// Reports to the parent that a child stopped or continued (SIGCHLD unless SA_NOCLDSTOP).
pub fn notify_parent_of_stop(group: &Arc<ThreadGroup>, code: i32, status: i32) {
    let Some(parent) = group.links.lock().parent.upgrade() else {
        if let Some(task) = group.any_thread() {
            if let Some(report) = task.kernel.on_first_stopped.get().filter(|_| group.pid == task.kernel.first_pid()) {
                task.kernel.ttys.forget_foreground();
                report(code == libc::CLD_STOPPED);
            }
        }
        return;
    };
    let uid = group.any_thread().map_or(0, |t| t.cred().uid);
    let quiet = {
        let actions = parent.actions.read().clone();
        let a = actions.lock().get(libc::SIGCHLD);
        a.flags & libc::SA_NOCLDSTOP as u64 != 0
    };
    if !quiet {
        let info = SigInfo {
            signo: libc::SIGCHLD,
            errno: 0,
            code,
            fields: SigFields::Child { pid: group.pid, uid, status, utime: 0, stime: 0 },
        };
        let _ = to_group(&parent, info);
    }
    parent.child_wait.wake_all();
}

fn ignored(group: &ThreadGroup, sig: i32, blocked: bool) -> bool {
    if blocked || sig == libc::SIGKILL || sig == libc::SIGSTOP {
        return false;
    }
    let actions = group.actions.read().clone();
    let r = actions.lock().ignored(sig);
    r
}

/// True if the signal has no effect on process 1 of the sandbox or of a pid namespace, which takes only signals with a
/// handler (pid_namespaces(7)). From outside, any signal reaches the one of the sandbox; SIGKILL and SIGSTOP the one of
/// a namespace.
fn init_immune(group: &ThreadGroup, sig: i32, from_inside: bool) -> bool {
    if !group.init {
        return false;
    }
    let unconditional = sig == libc::SIGKILL || sig == libc::SIGSTOP;
    if !from_inside && (unconditional || !group.id.is_nested()) {
        return false;
    }
    if unconditional {
        return true;
    }
    let actions = group.actions.read().clone();
    let h = actions.lock().get(sig).handler;
    h == super::signal::SIG_DFL
}

/// Whether the calling task has a number in the pid namespace of the receiver.
fn sender_is_inside(group: &ThreadGroup) -> bool {
    !group.id.is_nested() || current::get().is_none_or(|t| t.group.id.nr_in(&group.id.ns()) != 0)
}

/// The signal's ids as the receiver sees them. `cred`: those of the receiver.
fn translate(group: &ThreadGroup, info: &mut SigInfo, cred: impl FnOnce() -> Option<Arc<Cred>>) {
    let mapped = |g: &ThreadGroup| g.maps_ids.load(Ordering::Relaxed) || g.id.is_nested();
    let raw = matches!(info.fields, SigFields::Raw(_));
    let concerned = mapped(group) || (raw && current::get().is_some_and(|t| mapped(&t.group)));
    if !concerned {
        return;
    }
    let Some(to) = cred().map(|c| c.user_ns.clone()) else { return };
    match &mut info.fields {
        SigFields::Kill { pid, uid } | SigFields::Queue { pid, uid, .. } | SigFields::Child { pid, uid, .. } => {
            *pid = if *pid > 0 { group.id.ns().nr_of(*pid) } else { *pid };
            *uid = to.uid_out(*uid);
        }
        // The bytes of rt_sigqueueinfo(2), as far as they are of a kind with ids.
        SigFields::Raw(bytes) if info.code < 0 && !matches!(info.code, libc::SI_TIMER | libc::SI_SIGIO) => {
            let Some(from) = current::get() else { return };
            let sender = from.cred().user_ns.clone();
            if sender != to {
                if let Some(word) = bytes.get_mut(4..8).and_then(|b| b.first_chunk_mut::<4>()) {
                    let uid = sender.id_in(Id::User, u32::from_le_bytes(*word)).unwrap_or(NO_ID);
                    *word = to.id_out(Id::User, uid).unwrap_or(OVERFLOW_ID).to_le_bytes();
                }
            }
            if !sender_is_inside(group) {
                bytes[..4].fill(0);
            }
        }
        _ => {}
    }
}

/// Only real-time signals need a quota: a standard signal is queued at most once.
fn quota(sig: i32, group: &ThreadGroup, uid: impl FnOnce() -> u32) -> Option<Quota> {
    (sig >= SIGRTMIN).then(|| Quota { uid: uid(), limit: group.limit(libc::RLIMIT_SIGPENDING) })
}

/// Queues a signal for one thread.
pub fn to_task(task: &Task, mut info: SigInfo) -> Result<()> {
    let sig = info.signo;
    if !(1..=NSIG).contains(&sig) {
        return Ok(());
    }
    let inside = !task.group.init || sender_is_inside(&task.group);
    // Also by a signal that is dropped then: SIGCONT continues any process.
    prepare(&task.group, sig);
    // A blocked signal is queued: `sigwait` may wait for it.
    if init_immune(&task.group, sig, inside) && !task.signals.lock().mask.has(sig) {
        return Ok(());
    }
    if task.group.init && !inside && sig == libc::SIGSTOP {
        task.group.force_fatal(sig);
    }
    translate(&task.group, &mut info, || Some(task.cred()));
    if sig == libc::SIGKILL {
        super::exit::kill_group(&task.group, sig);
        return Ok(());
    }
    let quota = quota(sig, &task.group, || task.cred().uid);
    {
        let mut s = task.signals.lock();
        if ignored(&task.group, sig, s.mask.has(sig)) {
            return Ok(());
        }
        if !s.pending.push(info, quota) && info.code < 0 {
            return Err(Errno::EAGAIN);
        }
    }
    task.notify();
    task.group.signal_wait.wake_all();
    Ok(())
}

/// Queues a signal for a process: any thread that does not block it may take it.
pub fn to_group(group: &Arc<ThreadGroup>, info: SigInfo) -> Result<()> {
    to_group_from(group, info, true, None)
}

/// As [`to_group`], for signals from outside the sandbox (forwarded by the command): they affect init too.
pub fn from_outside(group: &Arc<ThreadGroup>, info: SigInfo) -> Result<()> {
    to_group_from(group, info, false, None)
}

/// As [`from_outside`], but the running threads of the process take the signals in turn; this one goes to the
/// `nth`.
pub fn to_busy(group: &Arc<ThreadGroup>, info: SigInfo, nth: usize) -> Result<()> {
    to_group_from(group, info, false, Some(nth))
}

fn to_group_from(group: &Arc<ThreadGroup>, mut info: SigInfo, inside: bool, nth: Option<usize>) -> Result<()> {
    let sig = info.signo;
    let inside = inside && (!group.init || sender_is_inside(group));
    let blocked = || group.links.lock().threads.clone().iter().all(|t| t.signals.lock().mask.has(sig));
    if !(1..=NSIG).contains(&sig) {
        return Ok(());
    }
    prepare(group, sig);
    if init_immune(group, sig, inside) && !blocked() {
        return Ok(());
    }
    if !inside && (!group.id.is_nested() || sig == libc::SIGSTOP) {
        group.force_fatal(sig);
    }
    translate(group, &mut info, || group.any_thread().map(|t| t.cred()));
    if sig == libc::SIGKILL {
        super::exit::kill_group(group, sig);
        return Ok(());
    }
    if ignored(group, sig, blocked()) {
        return Ok(());
    }
    let quota = quota(sig, group, || group.links.lock().threads.first().map_or(0, |t| t.cred().uid));
    if !group.pending.lock().push(info, quota) && info.code < 0 {
        return Err(Errno::EAGAIN);
    }
    // Chosen once the signal is queued: a thread that blocks it or exits meanwhile passes it on (`retarget`).
    let threads = group.links.lock().threads.clone();
    let takes = |t: &&Arc<Task>| !t.signals.lock().mask.has(sig) && !t.killed.load(Ordering::SeqCst);
    // Prefer the main thread, then any that does not block the signal.
    let main = threads.iter().find(|t| t.tid() == group.pid).filter(takes);
    let busy = nth.and_then(|n| {
        let busy: Vec<_> = threads.iter().filter(takes).filter(|t| !t.asleep()).collect();
        busy.get(n.checked_rem(busy.len())?).copied()
    });
    match busy.or(main).or_else(|| threads.iter().find(takes)) {
        Some(t) => t.notify(),
        // All threads block it: notify all, for `sigwait` and signalfd.
        None => {
            for t in &threads {
                t.notify();
            }
        }
    }
    group.signal_wait.wake_all();
    Ok(())
}

/// A thread will not take these signals, since it now blocks them or exits: notifies other threads that may
/// take those pending for the process.
pub fn retarget(task: &Task, refused: SigSet) {
    let mut left = SigSet(task.group.pending.lock().set.0 & refused.0);
    if left.is_empty() {
        return;
    }
    let threads = task.group.links.lock().threads.clone();
    for t in threads.iter().filter(|t| !std::ptr::eq(&***t, task) && !t.killed.load(Ordering::SeqCst)) {
        let blocked = t.signals.lock().mask;
        if !left.minus(blocked).is_empty() {
            t.notify();
            left = SigSet(left.0 & blocked.0);
        }
    }
}

/// Queues a signal for every process of a group; `ESRCH` if there is none.
pub fn to_pgrp(kernel: &Kernel, pgid: i32, info: SigInfo) -> Result<()> {
    let members = super::pgrp::members(kernel, pgid);
    if members.is_empty() {
        return Err(Errno::ESRCH);
    }
    let mut rounds = platform::executor::Rounds::new();
    for g in members {
        rounds.next();
        let _ = from_outside(&g, info);
    }
    Ok(())
}

/// Whether `from` may signal `to` (kill(2)).
pub fn permitted(from: &Cred, to: &Cred) -> bool {
    from.capable_in(&to.user_ns, cred::CAP_KILL)
        || from.euid == to.suid
        || from.euid == to.uid
        || from.uid == to.suid
        || from.uid == to.uid
}
