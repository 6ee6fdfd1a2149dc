//! Scheduling: sched_setscheduler(2), sched_setaffinity(2), setpriority(2), ioprio_set(2); rseq(2) and
//! membarrier(2).
//!
//! The host schedules threads and applies the affinity. Hints (nice, batch, idle, I/O priority) are stored
//! and reported. Real-time and deadline policies, which give guarantees, fail with `EPERM`, as for an
//! unprivileged process.

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::cred::{CAP_SYS_ADMIN, CAP_SYS_NICE};
use crate::kernel::sched::{cpus, select, PrioWhich, SchedTarget};
use crate::kernel::task::{RseqArea, RSEQ_FLAG_UNREGISTER};
use crate::kernel::wait::yield_now;
use crate::time::clock::UserTimespec;
use platform::Op;
use std::sync::atomic::Ordering::Relaxed;

const RESET_ON_FORK: i32 = 0x4000_0000;
const SCHED_ATTR_V0: usize = 48;
const SCHED_ATTR_V1: usize = 56;
const FLAG_RESET_ON_FORK: u64 = 1;
const FLAG_KEEP_POLICY: u64 = 8;
const FLAG_KEEP_PARAMS: u64 = 16;

/// The task of a pid argument; 0 is the caller.
pub fn target(cx: &Ctx<'_>, pid: i32) -> Result<SchedTarget> {
    if pid == 0 || pid == cx.task.number().own() {
        return Ok(cx.task.into());
    }
    let global = cx.task.global_of(pid).ok_or(Errno::ESRCH)?;
    SchedTarget::find(cx.kernel(), global).ok_or(Errno::ESRCH)
}

/// As [`target`], for calls that refuse negative numbers with `EINVAL`.
fn checked_target(cx: &Ctx<'_>, pid: i32) -> Result<SchedTarget> {
    if pid < 0 {
        return Err(Errno::EINVAL);
    }
    target(cx, pid)
}

pub async fn sched_yield(_cx: &mut Ctx<'_>) -> SysResult {
    yield_now().await;
    Ok(0)
}

pub fn sched_getscheduler(cx: &mut Ctx<'_>, pid: i32) -> SysResult {
    let t = checked_target(cx, pid)?;
    let reset = if t.attrs.reset_on_fork.load(Relaxed) { RESET_ON_FORK } else { 0 };
    Ok((t.attrs.policy.load(Relaxed) | reset) as u64)
}

pub fn sched_getparam(cx: &mut Ctx<'_>, pid: i32, param: Addr) -> SysResult {
    if param.is_null() {
        return Err(Errno::EINVAL.into());
    }
    let t = checked_target(cx, pid)?;
    cx.write(param.0, &t.attrs.rt_priority.load(Relaxed))?;
    Ok(0)
}

/// The requested scheduling.
struct AttrChange {
    policy: i32,
    priority: i32,
    nice: i32,
    reset_on_fork: bool,
}

fn set_scheduler(cx: &Ctx<'_>, t: &SchedTarget, want: &AttrChange) -> Result<()> {
    let real_time = matches!(want.policy, libc::SCHED_FIFO | libc::SCHED_RR);
    if !real_time && !matches!(want.policy, libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE) {
        // Linux checks the parameters of SCHED_DEADLINE before the privilege.
        return Err(if want.policy == libc::SCHED_DEADLINE { Errno::EPERM } else { Errno::EINVAL });
    }
    if !(0..=99).contains(&want.priority) || real_time != (want.priority != 0) {
        return Err(Errno::EINVAL);
    }
    if real_time {
        return Err(Errno::EPERM);
    }
    let caller = cx.task.cred();
    let a = &t.attrs;
    if !caller.has(CAP_SYS_NICE) {
        let leaves_idle = a.policy.load(Relaxed) == libc::SCHED_IDLE && want.policy != libc::SCHED_IDLE;
        if (want.nice < t.nice() && !t.can_nice(cx.task, want.nice))
            || (leaves_idle && !t.can_nice(cx.task, t.nice()))
            || !caller.may_set_scheduling(&t.cred)
            || (a.reset_on_fork.load(Relaxed) && !want.reset_on_fork)
        {
            return Err(Errno::EPERM);
        }
    }
    a.policy.store(want.policy, Relaxed);
    a.reset_on_fork.store(want.reset_on_fork, Relaxed);
    a.rt_priority.store(0, Relaxed);
    a.nice.store(want.nice, Relaxed);
    Ok(())
}

pub fn sched_setscheduler(cx: &mut Ctx<'_>, pid: i32, policy: i32, param: Addr) -> SysResult {
    if policy < 0 || param.is_null() || pid < 0 {
        return Err(Errno::EINVAL.into());
    }
    let priority: i32 = cx.read(param.0)?;
    let t = target(cx, pid)?;
    let want = AttrChange {
        policy: policy & !RESET_ON_FORK,
        priority,
        nice: t.nice(),
        reset_on_fork: policy & RESET_ON_FORK != 0,
    };
    if want.policy == libc::SCHED_DEADLINE {
        return Err(Errno::EINVAL.into());
    }
    set_scheduler(cx, &t, &want)?;
    Ok(0)
}

pub fn sched_setparam(cx: &mut Ctx<'_>, pid: i32, param: Addr) -> SysResult {
    if param.is_null() || pid < 0 {
        return Err(Errno::EINVAL.into());
    }
    let priority: i32 = cx.read(param.0)?;
    let t = target(cx, pid)?;
    let want = AttrChange {
        policy: t.attrs.policy.load(Relaxed),
        priority,
        nice: t.nice(),
        reset_on_fork: t.attrs.reset_on_fork.load(Relaxed),
    };
    set_scheduler(cx, &t, &want)?;
    Ok(0)
}

/// Reads a structure whose size the caller passes: bytes beyond the known part must be zero, else `E2BIG`
/// (`copy_struct_from_user`).
pub fn read_sized(cx: &Ctx<'_>, addr: u64, size: usize, known: &mut [u8]) -> Result<()> {
    let n = size.min(known.len());
    cx.read_bytes(addr, &mut known[..n])?;
    if size > n {
        let mut rest = vec![0u8; size - n];
        cx.read_bytes(addr.checked_add(n as u64).ok_or(Errno::EFAULT)?, &mut rest)?;
        if rest.iter().any(|b| *b != 0) {
            return Err(Errno::E2BIG);
        }
    }
    Ok(())
}

fn word<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&raw[at..at + N]);
    out
}

pub fn sched_setattr(cx: &mut Ctx<'_>, pid: i32, attr: Addr, flags: Flags) -> SysResult {
    if attr.is_null() || pid < 0 || flags.0 != 0 {
        return Err(Errno::EINVAL.into());
    }
    let size: u32 = cx.read(attr.0)?;
    let size = if size == 0 { SCHED_ATTR_V0 } else { size as usize };
    let mut raw = [0u8; SCHED_ATTR_V1];
    let bad_size = !(SCHED_ATTR_V0..=4096).contains(&size);
    match if bad_size { Err(Errno::E2BIG) } else { read_sized(cx, attr.0, size, &mut raw) } {
        Err(Errno::E2BIG) => {
            // Reports the known size to the caller.
            cx.write_now(attr.0, &(SCHED_ATTR_V1 as u32))?;
            return Err(Errno::E2BIG.into());
        }
        r => r?,
    }
    let mut policy = u32::from_le_bytes(word(&raw, 4)) as i32;
    let attr_flags = u64::from_le_bytes(word(&raw, 8));
    let nice = i32::from_le_bytes(word(&raw, 16)).clamp(-20, 19);
    let priority = u32::from_le_bytes(word(&raw, 20));
    if policy < 0 || attr_flags & !(FLAG_RESET_ON_FORK | FLAG_KEEP_POLICY | FLAG_KEEP_PARAMS) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let t = target(cx, pid)?;
    if attr_flags & FLAG_KEEP_POLICY != 0 {
        policy = t.attrs.policy.load(Relaxed);
    }
    let keep = attr_flags & FLAG_KEEP_PARAMS != 0;
    let want = AttrChange {
        policy,
        priority: if keep { 0 } else { i32::try_from(priority).map_err(|_| Errno::EINVAL)? },
        nice: if keep || policy == libc::SCHED_IDLE { t.nice() } else { nice },
        reset_on_fork: attr_flags & FLAG_RESET_ON_FORK != 0,
    };
    set_scheduler(cx, &t, &want)?;
    Ok(0)
}

pub fn sched_getattr(cx: &mut Ctx<'_>, pid: i32, attr: Addr, size: u32, flags: Flags) -> SysResult {
    if attr.is_null() || pid < 0 || !(SCHED_ATTR_V0..=4096).contains(&(size as usize)) || flags.0 != 0 {
        return Err(Errno::EINVAL.into());
    }
    let t = target(cx, pid)?;
    let n = (size as usize).min(SCHED_ATTR_V1);
    let mut raw = [0u8; SCHED_ATTR_V1];
    raw[0..4].copy_from_slice(&(n as u32).to_le_bytes());
    raw[4..8].copy_from_slice(&t.attrs.policy.load(Relaxed).to_le_bytes());
    raw[8..16].copy_from_slice(&u64::from(t.attrs.reset_on_fork.load(Relaxed)).to_le_bytes());
    raw[16..20].copy_from_slice(&t.nice().to_le_bytes());
    raw[20..24].copy_from_slice(&t.attrs.rt_priority.load(Relaxed).to_le_bytes());
    if n == SCHED_ATTR_V1 {
        // sched_util_max: no clamp.
        raw[52..56].copy_from_slice(&1024u32.to_le_bytes());
    }
    cx.write_bytes(attr.0, &raw[..n])?;
    Ok(0)
}

pub fn sched_get_priority_max(_cx: &mut Ctx<'_>, policy: i32) -> SysResult {
    match policy {
        libc::SCHED_FIFO | libc::SCHED_RR => Ok(99),
        libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE | libc::SCHED_DEADLINE => Ok(0),
        _ => Err(Errno::EINVAL.into()),
    }
}

pub fn sched_get_priority_min(_cx: &mut Ctx<'_>, policy: i32) -> SysResult {
    match policy {
        libc::SCHED_FIFO | libc::SCHED_RR => Ok(1),
        libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE | libc::SCHED_DEADLINE => Ok(0),
        _ => Err(Errno::EINVAL.into()),
    }
}

pub fn sched_rr_get_interval(cx: &mut Ctx<'_>, pid: i32, interval: Addr) -> SysResult {
    checked_target(cx, pid)?;
    // The time slice of a fair task on a small machine.
    cx.write(interval.0, &UserTimespec { sec: 0, nsec: 4_000_000 })?;
    Ok(0)
}

pub fn sched_setaffinity(cx: &mut Ctx<'_>, pid: i32, len: u32, mask: Addr) -> SysResult {
    let online = cpus();
    let mut raw = vec![0u8; (len as usize).min(online.len() * 8)];
    cx.read_bytes(mask.0, &mut raw)?;
    let t = target(cx, pid)?;
    if !cx.task.cred().may_set_scheduling(&t.cred) {
        return Err(Errno::EPERM.into());
    }
    raw.resize(online.len() * 8, 0);
    let set: Vec<u64> = raw.chunks_exact(8).zip(online).map(|(b, on)| u64::from_le_bytes(word(b, 0)) & on).collect();
    if set.iter().all(|w| *w == 0) {
        return Err(Errno::EINVAL.into());
    }
    t.set_affinity(set);
    Ok(0)
}

pub fn sched_getaffinity(cx: &mut Ctx<'_>, pid: i32, len: u32, mask: Addr) -> SysResult {
    let size = cpus().len() * 8;
    if len % 8 != 0 || (len as usize) < size {
        return Err(Errno::EINVAL.into());
    }
    let t = target(cx, pid)?;
    let raw: Vec<u8> = t.attrs.affinity().iter().flat_map(|w| w.to_le_bytes()).collect();
    cx.write_bytes(mask.0, &raw)?;
    Ok(raw.len() as u64)
}

fn prio_which(which: i32, who: i32, first: i32) -> Result<PrioWhich> {
    match which - first {
        0 => Ok(PrioWhich::Thread(who)),
        1 => Ok(PrioWhich::Group(who)),
        2 => Ok(PrioWhich::User(who as u32)),
        _ => Err(Errno::EINVAL),
    }
}

fn check_which(which: i32) -> Result<()> {
    if (0..=3).contains(&which) {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

pub fn getpriority(cx: &mut Ctx<'_>, which: i32, id: i32) -> SysResult {
    check_which(which)?;
    let tasks = select(cx.task, prio_which(which, id, 0)?);
    // The raw call returns 1..=40, so that no value looks like an error.
    let best = tasks.iter().map(|t| 20 - t.nice()).max().ok_or(Errno::ESRCH)?;
    Ok(best as u64)
}

pub fn setpriority(cx: &mut Ctx<'_>, which: i32, id: i32, nice: i32) -> SysResult {
    check_which(which)?;
    let tasks = select(cx.task, prio_which(which, id, 0)?);
    let nice = nice.clamp(-20, 19);
    let caller = cx.task.cred();
    let mut r = Err(Errno::ESRCH);
    for t in tasks {
        let one = if !caller.may_set_scheduling(&t.cred) {
            Err(Errno::EPERM)
        } else if nice < t.nice() && !t.can_nice(cx.task, nice) {
            Err(Errno::EACCES)
        } else {
            t.attrs.nice.store(nice, Relaxed);
            Ok(())
        };
        // The last error is kept; success only replaces "none found".
        if one.is_err() || r == Err(Errno::ESRCH) {
            r = one;
        }
    }
    r?;
    Ok(0)
}

const IOPRIO_CLASS_SHIFT: u32 = 13;

pub fn ioprio_get(cx: &mut Ctx<'_>, which: i32, id: i32) -> SysResult {
    check_which(which)?;
    let tasks = select(cx.task, prio_which(which, id, 1)?);
    // Lower numbers are better, but 0 (none) ranks as best effort, level 4.
    let rank = |v: u32| if v == 0 { (2 << IOPRIO_CLASS_SHIFT) | 4 } else { v };
    let best = tasks.iter().map(|t| t.attrs.ioprio.load(Relaxed)).min_by_key(|v| rank(*v)).ok_or(Errno::ESRCH)?;
    Ok(u64::from(best))
}

pub fn ioprio_set(cx: &mut Ctx<'_>, which: i32, id: i32, ioprio: u32) -> SysResult {
    let caller = cx.task.cred();
    let level = ioprio & 7;
    match (ioprio & 0xffff) >> IOPRIO_CLASS_SHIFT {
        0 if level != 0 => return Err(Errno::EINVAL.into()),
        1 if !caller.has(CAP_SYS_ADMIN) && !caller.has(CAP_SYS_NICE) => return Err(Errno::EPERM.into()),
        0..=3 => {}
        _ => return Err(Errno::EINVAL.into()),
    }
    check_which(which)?;
    let tasks = select(cx.task, prio_which(which, id, 1)?);
    if tasks.is_empty() {
        return Err(Errno::ESRCH.into());
    }
    for t in tasks {
        let owner = &t.cred;
        let same_user = owner.uid == caller.euid || owner.uid == caller.uid;
        if !(caller.capable_in(&owner.user_ns, CAP_SYS_NICE) || (same_user && caller.has_all_of(owner))) {
            return Err(Errno::EPERM.into());
        }
        t.attrs.ioprio.store(ioprio & 0xffff, Relaxed);
    }
    Ok(0)
}

/// rseq(2): the host, which runs the thread, registers the area and detects a double registration.
pub fn rseq(cx: &mut Ctx<'_>, rseq: Addr, len: u32, flags: i32, signature: u32) -> SysResult {
    if rseq.0 > platform::GUEST_MAX - u64::from(len) {
        // The order of Linux's checks: `access_ok` comes after these.
        let fits = rseq.0 % 32 == 0 && len >= 32 && flags == 0;
        return Err(if fits { Errno::EFAULT } else { Errno::EINVAL }.into());
    }
    let area = RseqArea { addr: rseq.0, len, signature };
    cx.task.rseq.lock().becomes((flags & RSEQ_FLAG_UNREGISTER == 0).then_some(area));
    cx.thread.queue(Op::Rseq { addr: rseq.0, len, flags, signature });
    Ok(0)
}

/// membarrier(2): made by the host, for the threads of the stub. The registration belongs to the host's
/// address space, which follows the guest's: kept by `fork`, dropped by `execve`.
pub fn membarrier(cx: &mut Ctx<'_>, cmd: i32, flags: u32, _cpu: i32) -> SysResult {
    const QUERY: i32 = 0;
    const GLOBAL: i32 = 1;
    const PRIVATE_EXPEDITED: i32 = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: i32 = 1 << 4;
    if flags != 0 {
        return Err(Errno::EINVAL.into());
    }
    match cmd {
        QUERY => Ok((GLOBAL | PRIVATE_EXPEDITED | REGISTER_PRIVATE_EXPEDITED) as u64),
        GLOBAL | PRIVATE_EXPEDITED | REGISTER_PRIVATE_EXPEDITED => {
            cx.thread.queue(Op::Barrier { command: cmd });
            Ok(0)
        }
        _ => Err(Errno::EINVAL.into()),
    }
}
