//! `/proc/[pid]/{stat,status,statm}`.

use super::pid::LiveTask;
use crate::error::Result;
use crate::fs::pseudo::{Put, Super};
use crate::kernel::signal::{SigSet, NSIG, SIG_DFL, SIG_IGN};
use crate::kernel::user_ns::UserNs;
use crate::kernel::users;
use crate::kernel::{current, Task};
use crate::mm::usage::sizes;
use crate::time::cpu::group_time;
use std::sync::atomic::Ordering;

/// Clock ticks of user space (`USER_HZ`), in ns.
pub(super) const TICK: u64 = 10_000_000;

/// Letter and word of a task's state.
fn state(live: &LiveTask) -> (u8, &'static str) {
    let Some(task) = &live.task else { return (b'Z', "zombie") };
    if live.group.links.lock().stopped.is_some() {
        (b'T', "stopped")
    } else if live.id != task.tid() {
        // The leader has gone before the others.
        (b'Z', "zombie")
    } else if task.asleep() {
        (b'S', "sleeping")
    } else {
        (b'R', "running")
    }
}

/// The name; a zombie keeps the one that it had.
pub(super) fn comm(live: &LiveTask) -> Vec<u8> {
    match &live.task {
        Some(t) => t.comm.lock().clone(),
        None => live.group.remains.lock().as_ref().map_or_else(Vec::new, |r| r.comm.clone()),
    }
}

/// Times of the process (user, system; ns), then those of the children it has waited for.
pub(super) fn times(live: &LiveTask) -> [u64; 4] {
    let (u, s) = match &live.task {
        Some(t) if live.thread => t.cpu_time(),
        _ => group_time(&live.group),
    };
    let r = live.group.links.lock();
    [u, s, r.child_utime, r.child_stime]
}

/// Pending, blocked, ignored and caught signals: of the thread, of the process, mask, ignored, caught.
fn signals(live: &LiveTask) -> [SigSet; 5] {
    let mut out = [SigSet::default(); 5];
    if let Some(t) = &live.task {
        let s = t.signals.lock();
        out[0] = s.pending.set;
        out[2] = s.mask;
    }
    out[1] = live.group.pending.lock().set;
    if live.task.is_some() {
        let actions = live.group.actions.read().clone();
        let actions = actions.lock();
        for sig in 1..=NSIG {
            match actions.get(sig).handler {
                SIG_DFL => {}
                SIG_IGN => out[3].add(sig),
                _ => out[4].add(sig),
            }
        }
    }
    out
}

pub(super) fn status(live: &LiveTask, sup: &Super, out: &mut Vec<u8>) -> Result<()> {
    let (letter, word) = state(live);
    let (pgid, sid, ppid, threads) = {
        let r = live.group.links.lock();
        (r.pgid, r.sid, live.group.parent_pid_in(&r, &sup.pid_ns), r.threads.len())
    };
    let pid = live.group.id.nr_in(&sup.pid_ns) as u64;
    out.s("Name:\t").esc(&comm(live), b"\n");
    if let Some(t) = &live.task {
        let umask = t.fs().lock().umask;
        out.s("\nUmask:\t0");
        for shift in [6, 3, 0] {
            out.push(b'0' + (umask >> shift & 7) as u8);
        }
    }
    out.s("\nState:\t")
        .b(&[letter])
        .s(" (")
        .s(word)
        .s(")\nTgid:\t")
        .d(pid)
        .s("\nNgid:\t0\nPid:\t")
        .d(live.nr(sup) as u64);
    out.s("\nPPid:\t").d(ppid as u64).s("\nTracerPid:\t0\nUid:");
    let cred = live.cred();
    let viewer = current::get().map_or_else(UserNs::first, |t| t.cred().user_ns.clone());
    if let Some(c) = &cred {
        for id in [c.uid, c.euid, c.suid, c.fsuid] {
            out.s("\t").d(u64::from(viewer.uid_out(id)));
        }
        out.s("\nGid:");
        for id in [c.gid, c.egid, c.sgid, c.fsgid] {
            out.s("\t").d(u64::from(viewer.gid_out(id)));
        }
    }
    out.s("\nFDSize:\t").d(live.task.as_ref().map_or(0, |t| fd_size(t))).s("\nGroups:\t");
    if let Some(c) = &cred {
        for g in &c.groups {
            out.d(u64::from(viewer.gid_out(*g))).s(" ");
        }
        if c.groups.is_empty() {
            out.s(" ");
        }
    }
    for (name, global) in [("NStgid", live.group.pid), ("NSpid", live.id), ("NSpgid", pgid), ("NSsid", sid)] {
        out.s("\n").s(name).s(":");
        for (ns, _) in live.group.id.numbers(sup.pid_ns.level()) {
            out.s("\t").d(ns.nr_of(global) as u64);
        }
    }
    out.s("\n");
    if let Some(t) = &live.task {
        let z = sizes(&t.mm());
        let kb = |out: &mut Vec<u8>, name: &str, bytes: u64| {
            out.s(name).s(":\t").dw(bytes >> 10, 8).s(" kB\n");
        };
        kb(out, "VmPeak", z.total);
        kb(out, "VmSize", z.total);
        kb(out, "VmLck", z.locked);
        kb(out, "VmPin", 0);
        kb(out, "VmHWM", z.rss());
        kb(out, "VmRSS", z.rss());
        kb(out, "RssAnon", z.rss_anon);
        kb(out, "RssFile", z.rss_file);
        kb(out, "RssShmem", z.rss_shmem);
        kb(out, "VmData", z.data);
        kb(out, "VmStk", z.stack);
        kb(out, "VmExe", z.text);
        kb(out, "VmLib", z.exec.saturating_sub(z.text));
        kb(out, "VmPTE", (z.count * 4 + 28) << 10);
        kb(out, "VmSwap", 0);
        kb(out, "HugetlbPages", 0);
        out.s("CoreDumping:\t0\nTHP_enabled:\t1\nuntag_mask:\t0xffffffffffffffff\n");
    }
    let queued = cred.as_ref().map_or(0, |c| users::count(c.uid, users::Resource::Signals));
    out.s("Threads:\t")
        .d(threads.max(1) as u64)
        .s("\nSigQ:\t")
        .d(queued)
        .s("/")
        .d(live.group.limit(libc::RLIMIT_SIGPENDING));
    for (name, set) in ["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"].iter().zip(signals(live)) {
        out.s("\n").s(name).s(":\t").x(set.0, 16);
    }
    if let Some(c) = &cred {
        let caps = [
            ("CapInh", c.inheritable),
            ("CapPrm", c.permitted),
            ("CapEff", c.effective),
            ("CapBnd", c.bounding),
            ("CapAmb", c.ambient),
        ];
        for (name, set) in caps {
            out.s("\n").s(name).s(":\t").x(set, 16);
        }
        out.s("\nNoNewPrivs:\t").d(u64::from(c.no_new_privs));
    }
    let filtered = live.task.as_ref().is_some_and(|t| t.attrs.filtered.load(Ordering::SeqCst));
    let strict = live.task.as_ref().is_some_and(|t| t.attrs.strict.load(Ordering::SeqCst));
    let mode = if strict { 1 } else { 2 * u64::from(filtered) };
    out.s("\nSeccomp:\t").d(mode).s("\nSeccomp_filters:\t").d(u64::from(mode == 2));
    out.s("\nSpeculation_Store_Bypass:\tvulnerable\n");
    out.s("SpeculationIndirectBranch:\talways enabled\nCpus_allowed:\t");
    let cpus = super::cpu::count(&sup.kernel);
    let mask = match &live.task {
        Some(t) => affinity(t, cpus),
        None => all_cpus(cpus),
    };
    cpu_mask(out, &mask, cpus);
    out.s("\nCpus_allowed_list:\t");
    cpu_list(out, &mask);
    out.s("\nMems_allowed:\t00000000,00000001\nMems_allowed_list:\t0\n");
    out.s("voluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n");
    Ok(())
}

fn fd_size(task: &Task) -> u64 {
    let top = task.files().top() as u64;
    top.max(64).next_power_of_two()
}

fn all_cpus(n: usize) -> Vec<u64> {
    (0..n.div_ceil(64)).map(|w| if n >= (w + 1) * 64 { u64::MAX } else { (1 << (n % 64)) - 1 }).collect()
}

fn affinity(task: &Task, cpus: usize) -> Vec<u64> {
    let set = task.attrs.affinity.lock();
    let all = all_cpus(cpus);
    if set.iter().all(|w| *w == 0) {
        return all;
    }
    all.iter().enumerate().map(|(i, w)| w & set.get(i).copied().unwrap_or(0)).collect()
}

/// A bit mask as `%*pb` prints it: 32-bit words in hexadecimal, the highest first.
fn cpu_mask(out: &mut Vec<u8>, mask: &[u64], cpus: usize) {
    let words = cpus.div_ceil(32).max(1);
    for i in (0..words).rev() {
        let w = mask.get(i / 2).copied().unwrap_or(0) >> (32 * (i % 2)) & 0xffff_ffff;
        // The top word has as many digits as it has processors' bits.
        let digits = if i == words - 1 { (cpus - i * 32).div_ceil(4).max(1) } else { 8 };
        out.x(w, digits);
        if i > 0 {
            out.s(",");
        }
    }
}

/// A bit mask as `%*pbl` prints it: `0-3,5`.
pub(super) fn cpu_list(out: &mut Vec<u8>, mask: &[u64]) {
    let has = |n: usize| mask.get(n / 64).is_some_and(|w| w >> (n % 64) & 1 != 0);
    let end = mask.len() * 64;
    let mut at = 0;
    let mut first = true;
    while at < end {
        if !has(at) {
            at += 1;
            continue;
        }
        let from = at;
        while at < end && has(at) {
            at += 1;
        }
        if !std::mem::take(&mut first) {
            out.s(",");
        }
        out.d(from as u64);
        if at - from > 1 {
            out.s("-").d(at as u64 - 1);
        }
    }
}

pub(super) fn stat(live: &LiveTask, sup: &Super, out: &mut Vec<u8>) -> Result<()> {
    let kernel = &sup.kernel;
    let (letter, _) = state(live);
    let (pgid, sid, ppid, threads, exit_status, exit_signal) = {
        let r = live.group.links.lock();
        let status = r.exit_status.unwrap_or(0);
        (r.pgid, r.sid, live.group.parent_pid_in(&r, &sup.pid_ns), r.threads.len(), status, r.exit_signal)
    };
    let (tty, tpgid) = crate::kernel::tty::stat_of(kernel, &live.group);
    let [ut, st, cut, cst] = times(live);
    let nice = live.task.as_ref().map_or(0, |t| i64::from(t.nice()));
    let start_ns = match (&live.task, live.thread) {
        (Some(t), true) => t.start_ns,
        _ => live.group.start_ns.load(Ordering::Relaxed),
    };
    let start = start_ns.saturating_sub(kernel.boot_monotonic_ns) / TICK;
    let (pgid, sid, tpgid) =
        (sup.pid_ns.nr_of(pgid), sup.pid_ns.nr_of(sid), if tpgid > 0 { sup.pid_ns.nr_of(tpgid) } else { tpgid });
    out.d(live.nr(sup) as u64).s(" (").esc(&comm(live), b"\n").s(") ").b(&[letter, b' ']);
    out.d(ppid as u64).s(" ").d(pgid as u64).s(" ").d(sid as u64).s(" ").d(tty).s(" ").i(i64::from(tpgid));
    // Flags, minor and major faults (own, children's).
    out.s(" 4194304 0 0 0 0 ");
    for t in [ut, st, cut, cst] {
        out.d(t / TICK).s(" ");
    }
    let (policy, rt) = live.task.as_ref().map_or((0, 0), |t| {
        (t.attrs.policy.load(Ordering::Relaxed) as u64, u64::from(t.attrs.rt_priority.load(Ordering::Relaxed)))
    });
    let real_time = matches!(policy as i32, libc::SCHED_FIFO | libc::SCHED_RR);
    out.i(if real_time { -1 - rt as i64 } else { 20 + nice })
        .s(" ")
        .i(nice)
        .s(" ")
        .d(threads.max(1) as u64)
        .s(" 0 ")
        .d(start)
        .s(" ");
    // Addresses are for those who may look.
    let shown = live.may_access();
    let mut places = [0u64; 11];
    let (mut vsize, mut rss) = (0, 0);
    if let Some(t) = &live.task {
        let z = sizes(&t.mm());
        (vsize, rss) = (z.total, z.rss() >> 12);
        if shown {
            let mm = t.mm();
            let m = mm.map();
            places = [
                m.code.0,
                m.code.1,
                m.start_stack,
                m.data.0,
                m.data.1,
                m.brk_start,
                m.args.0,
                m.args.1,
                m.env.0,
                m.env.1,
                0,
            ];
        } else {
            (places[0], places[1]) = (1, 1);
        }
    }
    let rss_limit = live.group.limit(libc::RLIMIT_RSS);
    out.d(vsize).s(" ").d(rss).s(" ").d(rss_limit).s(" ");
    out.d(places[0]).s(" ").d(places[1]).s(" ").d(places[2]).s(" 0 0 ");
    for set in signals(live).iter().enumerate().filter(|(i, _)| *i != 1).map(|(_, s)| s) {
        // Only the low 31 signals fit into this old format.
        out.d(set.0 & 0x7fff_ffff).s(" ");
    }
    let wchan = u64::from(letter == b'S');
    let exit_signal = if live.thread && live.id != live.group.pid { -1 } else { i64::from(exit_signal) };
    out.d(wchan).s(" 0 0 ").i(exit_signal).s(" 0 ").d(rt).s(" ").d(policy).s(" 0 0 0 ");
    for p in &places[3..10] {
        out.d(*p).s(" ");
    }
    out.i(i64::from(if shown { exit_status } else { 0 })).s("\n");
    Ok(())
}

pub(super) fn statm(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    let z = live.task.as_ref().map(|t| sizes(&t.mm())).unwrap_or_default();
    let file = z.rss_file + z.rss_shmem;
    for n in [z.total, z.rss(), file, z.text, 0, z.data + z.stack] {
        out.d(n.div_ceil(4096)).s(" ");
    }
    out.pop();
    // Sixth is data and stack, the seventh is always 0.
    out.s(" 0\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_sets_look_as_linux_prints_them() {
        let text = |n: usize| {
            let (mut m, mut l) = (Vec::new(), Vec::new());
            cpu_mask(&mut m, &all_cpus(n), n);
            cpu_list(&mut l, &all_cpus(n));
            (String::from_utf8(m).unwrap(), String::from_utf8(l).unwrap())
        };
        assert_eq!(text(2), ("3".into(), "0-1".into()));
        assert_eq!(text(1), ("1".into(), "0".into()));
        assert_eq!(text(64), ("ffffffff,ffffffff".into(), "0-63".into()));
        assert_eq!(text(36), ("f,ffffffff".into(), "0-35".into()));
        let mut l = Vec::new();
        cpu_list(&mut l, &[0b101101]);
        assert_eq!(l, b"0,2-3,5");
    }
}
