//! Small entries of `/proc/[pid]`.

use super::pid::LiveTask;
use super::status;
use crate::error::{Errno, Result};
use crate::fs::pseudo::{parse_int, Put, Super};
use crate::kernel::cred::{CAP_SYS_NICE, CAP_SYS_RESOURCE};
use crate::kernel::current;
use crate::kernel::limits::RLIM_INFINITY;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Takes what is written and does nothing, where Linux would only change a diagnosis.
pub(super) fn ignore(_: &LiveTask, _: &Super, _: &[u8]) -> Result<()> {
    Ok(())
}

/// Where a second setting is refused (`uid_map` of the first user namespace, `loginuid`).
pub(super) fn refuse(_: &LiveTask, _: &Super, _: &[u8]) -> Result<()> {
    Err(Errno::EPERM)
}

pub(super) fn nothing(_: &LiveTask, _: &Super, _: &mut Vec<u8>) -> Result<()> {
    Ok(())
}

pub(super) fn comm(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    out.b(&status::comm(live)).s("\n");
    Ok(())
}

pub(super) fn set_comm(live: &LiveTask, _: &Super, text: &[u8]) -> Result<()> {
    // Threads may name each other within one process only.
    let task = live.task.as_ref().ok_or(Errno::ESRCH)?;
    if current::get().is_some_and(|me| me.group.pid != live.group.pid) {
        return Err(Errno::EINVAL);
    }
    let end = text.iter().position(|&c| c == 0).unwrap_or(text.len()).min(15);
    *task.comm.lock() = text[..end].to_vec();
    Ok(())
}

pub(super) fn personality(_: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    out.s("00000000\n");
    Ok(())
}

pub(super) fn limits(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    const ROWS: [(u32, &str, &str); 16] = [
        (libc::RLIMIT_CPU, "Max cpu time", "seconds"),
        (libc::RLIMIT_FSIZE, "Max file size", "bytes"),
        (libc::RLIMIT_DATA, "Max data size", "bytes"),
        (libc::RLIMIT_STACK, "Max stack size", "bytes"),
        (libc::RLIMIT_CORE, "Max core file size", "bytes"),
        (libc::RLIMIT_RSS, "Max resident set", "bytes"),
        (libc::RLIMIT_NPROC, "Max processes", "processes"),
        (libc::RLIMIT_NOFILE, "Max open files", "files"),
        (libc::RLIMIT_MEMLOCK, "Max locked memory", "bytes"),
        (libc::RLIMIT_AS, "Max address space", "bytes"),
        (libc::RLIMIT_LOCKS, "Max file locks", "locks"),
        (libc::RLIMIT_SIGPENDING, "Max pending signals", "signals"),
        (libc::RLIMIT_MSGQUEUE, "Max msgqueue size", "bytes"),
        (libc::RLIMIT_NICE, "Max nice priority", ""),
        (libc::RLIMIT_RTPRIO, "Max realtime priority", ""),
        (libc::RLIMIT_RTTIME, "Max realtime timeout", "us"),
    ];
    let column = |out: &mut Vec<u8>, width: usize, value: &dyn Fn(&mut Vec<u8>)| {
        let at = out.len();
        value(out);
        let n = width.saturating_sub(out.len() - at);
        out.sp(n).s(" ");
    };
    out.s("Limit                     Soft Limit           Hard Limit           Units     \n");
    let limits = live.group.limits.read().clone();
    for (which, name, unit) in ROWS {
        let Some(l) = limits.0.get(which as usize) else { continue };
        column(out, 25, &|out| {
            out.s(name);
        });
        for v in [l.cur, l.max] {
            column(out, 20, &|out| {
                if v == RLIM_INFINITY {
                    out.s("unlimited");
                } else {
                    out.d(v);
                }
            });
        }
        if !unit.is_empty() {
            let at = out.len();
            out.s(unit);
            let n = 10usize.saturating_sub(out.len() - at);
            out.sp(n);
        }
        out.s("\n");
    }
    Ok(())
}

pub(super) fn sched(live: &LiveTask, sup: &Super, out: &mut Vec<u8>) -> Result<()> {
    let [u, s, _, _] = status::times(live);
    let ms = (u + s) / 1_000_000;
    out.b(&status::comm(live)).s(" (").d(live.nr(sup) as u64).s(", #threads: ");
    out.d(live.group.links.lock().threads.len().max(1) as u64).s(")\n");
    out.s("-------------------------------------------------------------------\n");
    out.s("se.sum_exec_runtime                          :").dw(ms, 14).s(".").s("000000\n");
    let nice = live.task.as_ref().map_or(0, |t| t.nice());
    out.s("policy                                       :").dw(0, 21).s("\n");
    out.s("prio                                         :").dw((120 + i64::from(nice)) as u64, 21).s("\n");
    Ok(())
}

pub(super) fn schedstat(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    let [u, s, _, _] = status::times(live);
    out.d(u + s).s(" 0 0\n");
    Ok(())
}

pub(super) fn syscall(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    let task = live.task.as_ref().ok_or(Errno::ESRCH)?;
    if task.asleep() {
        let nr = match task.in_call.load(Ordering::Relaxed) {
            -1 => libc::SYS_futex,
            nr => i64::from(nr),
        };
        out.i(nr).s(" 0x0 0x0 0x0 0x0 0x0 0x0 0x0 0x0\n");
    } else {
        out.s("running\n");
    }
    Ok(())
}

pub(super) fn wchan(_: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    out.s("0");
    Ok(())
}

pub(super) fn stack(_: &LiveTask, _: &Super, _: &mut Vec<u8>) -> Result<()> {
    // There is no kernel stack to show; only root may look on Linux.
    match current::get() {
        Some(t) if !t.cred().has(crate::kernel::cred::CAP_SYS_ADMIN) => Err(Errno::EACCES),
        _ => Ok(()),
    }
}

pub(super) fn cgroup(_: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    out.s("0::/\n");
    Ok(())
}

pub(super) fn cpuset(_: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    out.s("/\n");
    Ok(())
}

pub(super) fn oom_score(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    // 1000 is "all of memory"; a process starts at two thirds, moved by its adjustment.
    let adj = i64::from(live.group.oom_score_adj.load(Ordering::Relaxed));
    out.i(((1000 + adj) * 2 / 3).max(0)).s("\n");
    Ok(())
}

pub(super) fn oom_score_adj(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    out.i(i64::from(live.group.oom_score_adj.load(Ordering::Relaxed))).s("\n");
    Ok(())
}

pub(super) fn set_oom_score_adj(live: &LiveTask, _: &Super, text: &[u8]) -> Result<()> {
    let v = parse_int(text)?;
    if !(-1000..=1000).contains(&v) {
        return Err(Errno::EINVAL);
    }
    let v = v as i32;
    let old = live.group.oom_score_adj.load(Ordering::Relaxed);
    if v < old && current::get().is_some_and(|t| !t.cred().has(CAP_SYS_RESOURCE)) {
        return Err(Errno::EACCES);
    }
    live.group.oom_score_adj.store(v, Ordering::Relaxed);
    Ok(())
}

/// The old scale: -17 to 15.
pub(super) fn oom_adj(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    let v = i64::from(live.group.oom_score_adj.load(Ordering::Relaxed));
    out.i(if v == 1000 { 15 } else { v * 17 / 1000 }).s("\n");
    Ok(())
}

pub(super) fn set_oom_adj(live: &LiveTask, sup: &Super, text: &[u8]) -> Result<()> {
    let v = parse_int(text)?;
    if !(-17..=15).contains(&v) {
        return Err(Errno::EINVAL);
    }
    let v = if v == 15 { 1000 } else { v * 1000 / 17 };
    set_oom_score_adj(live, sup, v.to_string().as_bytes())
}

pub(super) fn loginuid(_: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    out.s("4294967295");
    Ok(())
}

pub(super) fn sessionid(_: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    out.s("4294967295");
    Ok(())
}

pub(super) fn io(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    if !live.may_access() {
        return Err(Errno::EACCES);
    }
    for name in ["rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes", "cancelled_write_bytes"] {
        out.s(name).s(": 0\n");
    }
    Ok(())
}

pub(super) fn autogroup(live: &LiveTask, sup: &Super, out: &mut Vec<u8>) -> Result<()> {
    out.s("/autogroup-").d(sup.pid_ns.nr_of(live.group.sid()) as u64).s(" nice 0\n");
    Ok(())
}

pub(super) fn coredump_filter(_: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    out.s("00000033\n");
    Ok(())
}

/// The timer slack of others is for those to see and set who may change their scheduling.
fn may_timerslack(live: &LiveTask) -> Result<()> {
    match current::get() {
        Some(me)
            if !live.task.as_ref().is_some_and(|t| Arc::ptr_eq(t, &me))
                && !live.cred().is_some_and(|c| me.cred().capable_in(&c.user_ns, CAP_SYS_NICE)) =>
        {
            Err(Errno::EPERM)
        }
        _ => Ok(()),
    }
}

pub(super) fn timerslack(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    may_timerslack(live)?;
    if let Some(t) = &live.task {
        out.d(t.attrs.timer_slack_ns.load(Ordering::Relaxed)).s("\n");
    }
    Ok(())
}

pub(super) fn set_timerslack(live: &LiveTask, _: &Super, text: &[u8]) -> Result<()> {
    let v = u64::try_from(parse_int(text)?).map_err(|_| Errno::EINVAL)?;
    may_timerslack(live)?;
    let a = &live.task.as_ref().ok_or(Errno::ESRCH)?.attrs;
    // 0 means the default.
    let v = if v == 0 { a.default_timer_slack_ns.load(Ordering::Relaxed) } else { v };
    a.timer_slack_ns.store(v, Ordering::Relaxed);
    Ok(())
}

pub(super) fn children(live: &LiveTask, sup: &Super, out: &mut Vec<u8>) -> Result<()> {
    let children: Vec<_> = live.group.links.lock().children.clone();
    for c in children.iter().filter(|c| c.links.lock().parent_tid == live.id) {
        out.d(sup.pid_ns.nr_of(c.pid) as u64).s(" ");
    }
    Ok(())
}
