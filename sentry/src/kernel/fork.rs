//! clone(2), fork(2), vfork(2).

use super::cgroup::PidCharge;
use super::cred::{CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN};
use super::ns::change::{self, NsSet};
use super::pid_ns::{Pid, PidNs};
use super::process::ThreadGroup;
use super::task::{Completion, NewTask, Rseq, TaskSignals};
use super::{run, Kernel, Task};
use crate::error::{Errno, Result, SysResult};
use crate::mm::vma::{Backing, Vma};
use crate::mm::Mm;
use crate::syscalls::Ctx;
use parking_lot::Mutex;
use platform::GuestThread;
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Upper bound of tasks in one sandbox, whatever the limits say: each task is a host thread. The host may
/// allow fewer ([`super::kernel::Options::max_tasks`]).
pub const MAX_TASKS: usize = 16384;

/// Checked arguments of clone(2)/clone3(2).
#[derive(Clone, Debug, Default)]
pub struct CloneArgs {
    pub flags: u64,
    pub exit_signal: i32,
    /// Top of the child's stack; 0: the parent's stack pointer.
    pub stack: u64,
    pub parent_tid: u64,
    pub child_tid: u64,
    pub tls: u64,
    pub pidfd: u64,
    /// Numbers asked for (`set_tid`), the innermost namespace first.
    pub set_tid: Vec<i32>,
}

const CLONE_VM: u64 = libc::CLONE_VM as u64;
const CLONE_FS: u64 = libc::CLONE_FS as u64;
const CLONE_FILES: u64 = libc::CLONE_FILES as u64;
const CLONE_SIGHAND: u64 = libc::CLONE_SIGHAND as u64;
const CLONE_PIDFD: u64 = libc::CLONE_PIDFD as u64;
const CLONE_VFORK: u64 = libc::CLONE_VFORK as u64;
const CLONE_PARENT: u64 = libc::CLONE_PARENT as u64;
const CLONE_THREAD: u64 = libc::CLONE_THREAD as u64;
const CLONE_SETTLS: u64 = libc::CLONE_SETTLS as u64;
const CLONE_PARENT_SETTID: u64 = libc::CLONE_PARENT_SETTID as u64;
const CLONE_CHILD_CLEARTID: u64 = libc::CLONE_CHILD_CLEARTID as u64;
const CLONE_CHILD_SETTID: u64 = libc::CLONE_CHILD_SETTID as u64;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// Accepted without effect: PTRACE, UNTRACED, DETACHED, SYSVSEM, IO.
const CLONE_NOOP: u64 = (libc::CLONE_PTRACE | libc::CLONE_UNTRACED | libc::CLONE_DETACHED | libc::CLONE_SYSVSEM) as u64
    | libc::CLONE_IO as u32 as u64;
const KNOWN: u64 = CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SIGHAND
    | CLONE_PIDFD
    | CLONE_VFORK
    | CLONE_PARENT
    | CLONE_THREAD
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID
    | CLONE_CHILD_SETTID
    | CLONE_CLEAR_SIGHAND
    | CLONE_NOOP;

fn check(a: &CloneArgs) -> Result<()> {
    let f = a.flags;
    let has = |b| f & b != 0;
    let (user, fs) = (libc::CLONE_NEWUSER as u64, libc::CLONE_NEWNS as u64);
    if f & !(KNOWN | change::ALL) != 0
        || (has(user | fs) && has(CLONE_FS))
        || (has(user | libc::CLONE_NEWPID as u64) && has(CLONE_THREAD | CLONE_PARENT))
        || (has(libc::CLONE_NEWIPC as u64) && has(libc::CLONE_SYSVSEM as u64))
        || (has(CLONE_SIGHAND) && !has(CLONE_VM))
        || (has(CLONE_THREAD) && !has(CLONE_SIGHAND))
        || (has(CLONE_CLEAR_SIGHAND) && has(CLONE_SIGHAND))
        || (has(CLONE_PIDFD) && (has(libc::CLONE_DETACHED as u64) || has(CLONE_THREAD)))
    {
        return Err(Errno::EINVAL);
    }
    if has(CLONE_SETTLS) && a.tls > platform::GUEST_MAX {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// Makes a task and returns its id to the caller. The child starts when its future is first polled.
pub async fn clone(cx: &mut Ctx<'_>, a: CloneArgs) -> SysResult {
    check(&a)?;
    let parent = cx.task.clone();
    let has = |b| a.flags & b != 0;
    if parent.kernel.ending.load(Ordering::SeqCst) {
        return Err(Errno::EAGAIN.into());
    }
    // init may not use CLONE_PARENT: no process could wait for the child.
    if has(CLONE_PARENT) && parent.group.init {
        return Err(Errno::EINVAL.into());
    }
    let spaces = match a.flags & change::ALL {
        0 => None,
        flags => {
            let mut set = NsSet::of(&parent);
            set.create(&parent, flags)?;
            Some(set)
        }
    };
    let ns = spaces.as_ref().map_or_else(|| parent.ns().pid_for_children.clone(), |s| s.proxy.pid_for_children.clone());
    if has(CLONE_THREAD) && ns != parent.pid_ns() {
        return Err(Errno::EINVAL.into());
    }
    let (id, charge) = alloc(&parent, &ns, &a.set_tid)?;
    let pid = id.global();
    let mm = parent.mm();
    mm.begin(&parent).await;
    // Parent and child may be in different namespaces.
    let (seen, own) = (parent.nr_of(&id), id.own());
    // Queued before the child exists, which may read the word.
    let parent_tid_queued = has(CLONE_VM) && has(CLONE_PARENT_SETTID) && surely_writable(&mm, a.parent_tid);
    if parent_tid_queued {
        cx.thread.queue(platform::Op::CopyOut { addr: a.parent_tid, data: seen.to_le_bytes().to_vec() });
    }
    let thread = if has(CLONE_VM) {
        cx.thread.start_thread(has(CLONE_SETTLS).then_some(a.tls));
        let thread = &mut *cx.thread;
        poll_fn(|c| thread.poll_thread(c)).await
    } else {
        cx.thread.start_fork();
        let thread = &mut *cx.thread;
        poll_fn(|c| thread.poll_fork(c)).await
    };
    let mut thread = match thread {
        Ok(t) => t,
        Err(e) => {
            parent.kernel.tree.lock().unreserve(pid);
            return Err(e.into());
        }
    };
    {
        let r = thread.regs_mut();
        r.rax = 0;
        r.orig_rax = u64::MAX;
        if a.stack != 0 {
            r.rsp = a.stack;
        }
    }
    if has(CLONE_SETTLS) && !has(CLONE_VM) {
        thread.queue(platform::Op::SetFs(a.tls));
    }
    let files = match has(CLONE_FILES) {
        true => parent.files(),
        false if parent.files().is_large() => {
            parent.kernel.executor.room().await;
            parent.files().duplicate()
        }
        false => parent.files().duplicate(),
    };
    let child_mm = if has(CLONE_VM) {
        mm.user_added();
        mm.clone()
    } else {
        let mut map = mm.map().clone();
        let gone: Vec<(u64, u64)> = map.vmas.iter().filter(|v| v.dont_fork).map(|v| (v.start, v.end)).collect();
        for (s, e) in gone {
            map.vmas.remove(s, e);
        }
        let mm = Mm::new(thread.address_space(), map);
        mm.end_with_space(&parent.kernel);
        mm
    };
    let child = build(&parent, &a, id, child_mm, files, &*thread, (charge, spaces));
    let vfork = has(CLONE_VFORK).then(|| {
        let v = Arc::new(Completion::default());
        *child.vfork_done.lock() = Some(v.clone());
        v
    });
    if has(CLONE_PARENT_SETTID) && !parent_tid_queued {
        let _ = parent.mem().write(a.parent_tid, &seen);
    }
    if has(CLONE_CHILD_SETTID) {
        // The child's first operation where it cannot fail: a write from here would have to wait for the
        // process.
        if surely_writable(&child.mm(), a.child_tid) {
            thread.queue(platform::Op::CopyOut { addr: a.child_tid, data: own.to_le_bytes().to_vec() });
        } else {
            let _ = child.mem().write(a.child_tid, &own);
        }
    }
    if has(CLONE_PIDFD) {
        let file = crate::kernel::pidfd::open(child.group.clone(), 0);
        let installed = parent.install_fd(file, true).and_then(|fd| {
            let done = cx.write_now(a.pidfd, &fd);
            if done.is_err() {
                let _ = parent.files().remove(fd);
            }
            done
        });
        if let Err(e) = installed {
            parent.kernel.tree.lock().unreserve(pid);
            child.mm().user_gone();
            return Err(e.into());
        }
    }
    link(&parent, &a, &child);
    if !has(CLONE_THREAD) {
        crate::time::cpu::limit_changed(&child.kernel, &child.group);
    }
    run::start(child, thread);
    if let Some(v) = vfork {
        let _ = parent.wait_killable(&v.queue, || v.done.load(Ordering::SeqCst).then_some(())).await;
    }
    Ok(seen as u64)
}

/// Whether a store of the stub to this word cannot fail.
fn surely_writable(mm: &Mm, addr: u64) -> bool {
    let writable = |v: &Vma| v.prot & libc::PROT_WRITE != 0 && matches!(v.backing, Backing::Anon);
    mm.map().vmas.find(addr).is_some_and(|v| writable(v) && addr.saturating_add(4) <= v.end)
}

/// Reserves free numbers in `ns`, within the limits of all, of the user and of the cgroup.
fn alloc(parent: &Arc<Task>, ns: &Arc<PidNs>, want: &[i32]) -> Result<(Pid, PidCharge)> {
    may_set_tid(parent, ns, want)?;
    let charge = parent.group.cgroup.charge_pid().ok_or(Errno::EAGAIN)?;
    let mut tree = parent.kernel.tree.lock();
    if tree.count() >= parent.kernel.options.max_tasks.unwrap_or(MAX_TASKS) {
        return Err(Errno::EAGAIN);
    }
    let limit = parent.limit(libc::RLIMIT_NPROC);
    if tree.count() as u64 >= limit {
        let cred = parent.cred();
        let alive = tree.tasks.values().filter(|t| t.cred.read().uid == cred.uid).count();
        let dead = |g: &&Arc<ThreadGroup>| g.remains.lock().as_ref().is_some_and(|z| z.cred.uid == cred.uid);
        let mine = (alive + tree.groups.values().filter(dead).count()) as u64;
        if mine >= limit && cred.uid != 0 && !cred.has(super::cred::CAP_SYS_RESOURCE | super::cred::CAP_SYS_ADMIN) {
            return Err(Errno::EAGAIN);
        }
    }
    Ok((tree.reserve(ns, want)?, charge))
}

/// Reserves free numbers in `ns` for a process that comes from outside; `global`: its number in the initial namespace,
/// if it has one.
pub fn reserve_pid(kernel: &Kernel, ns: &Arc<PidNs>, global: Option<i32>) -> Result<Pid> {
    let mut tree = kernel.tree.lock();
    if let Some(global) = global {
        return tree.reserve_as(global, ns, &[]);
    }
    if tree.count() >= kernel.options.max_tasks.unwrap_or(MAX_TASKS) {
        return Err(Errno::EAGAIN);
    }
    tree.reserve(ns, &[])
}

/// The rules of `set_tid` (clone3(2)): for each namespace a number that may be asked for by a caller with rights there.
fn may_set_tid(parent: &Task, ns: &Arc<PidNs>, want: &[i32]) -> Result<()> {
    if want.len() > ns.level() as usize + 1 {
        return Err(Errno::EINVAL);
    }
    let cred = parent.cred();
    let mut at = Some(ns);
    for nr in want {
        let Some(ns) = at else { return Err(Errno::EINVAL) };
        if !(1..super::kernel::PID_MAX).contains(nr) || (*nr != 1 && !ns.has_init()) {
            return Err(Errno::EINVAL);
        }
        let owner = ns.owner();
        if !cred.capable_in(&owner, CAP_SYS_ADMIN) && !cred.capable_in(&owner, CAP_CHECKPOINT_RESTORE) {
            return Err(Errno::EPERM);
        }
        at = ns.parent();
    }
    Ok(())
}

fn build(
    parent: &Arc<Task>,
    a: &CloneArgs,
    id: Pid,
    mm: Arc<Mm>,
    files: Arc<super::FdTable>,
    thread: &dyn GuestThread,
    (charge, spaces): (PidCharge, Option<NsSet>),
) -> Arc<Task> {
    let has = |b| a.flags & b != 0;
    let in_user_ns = spaces.as_ref().is_some_and(|s| !s.cred.user_ns.is_initial());
    let group = if has(CLONE_THREAD) {
        parent.kernel.texts.threaded();
        parent.group.clone()
    } else {
        let actions = parent.group.actions.read().clone();
        let actions = if has(CLONE_SIGHAND) {
            actions
        } else {
            let mut copy = actions.lock().clone();
            if has(CLONE_CLEAR_SIGHAND) {
                copy.reset_for_exec();
            }
            Arc::new(Mutex::new(copy))
        };
        let mut g = ThreadGroup::new(id.clone(), actions, parent.group.limits.read().clone());
        g.cgroup = parent.group.cgroup.clone();
        g.init = id.is_nested() && id.own() == 1;
        g.oom_score_adj.store(parent.group.oom_score_adj.load(Ordering::Relaxed), Ordering::Relaxed);
        g.dumpable.store(parent.group.dumpable.load(Ordering::Relaxed), Ordering::Relaxed);
        *g.dump_ns.write() = parent.group.dump_ns.read().clone();
        g.maps_ids.store(in_user_ns || parent.group.maps_ids.load(Ordering::Relaxed), Ordering::Relaxed);
        Arc::new(g)
    };
    let attrs = Arc::new(parent.attrs.for_child());
    let ps = parent.signals.lock();
    let signals = TaskSignals {
        mask: ps.saved_mask.unwrap_or(ps.mask),
        // A thread in the same memory starts without an alternate stack, unless the parent waits (vfork).
        alt: if has(CLONE_VM) && !has(CLONE_VFORK) {
            super::signal::AltStack { sp: 0, size: 0, flags: libc::SS_DISABLE }
        } else {
            ps.alt
        },
        ..TaskSignals::default()
    };
    drop(ps);
    let (cred, nsproxy, fs) = match spaces {
        Some(set) if has(CLONE_FS) => (set.cred, Arc::new(set.proxy), parent.fs()),
        Some(set) => (set.cred, Arc::new(set.proxy), Arc::new(Mutex::new(set.fs))),
        None if has(CLONE_FS) => (parent.cred(), parent.ns(), parent.fs()),
        None => (parent.cred(), parent.ns(), Arc::new(Mutex::new(parent.fs().lock().clone()))),
    };
    let mut task = Task::new(NewTask {
        kernel: parent.kernel.clone(),
        id,
        group,
        cred,
        files,
        fs,
        mm,
        nsproxy,
        comm: parent.comm.lock().clone(),
        attrs,
    });
    *task.signals.get_mut() = signals;
    *task.clear_child_tid.get_mut() = if has(CLONE_CHILD_CLEARTID) { a.child_tid } else { 0 };
    // As on the host: a copy of the memory keeps the registration, a thread in the same memory starts without one.
    *task.rseq.get_mut() = if has(CLONE_VM) { Rseq::default() } else { *parent.rseq.lock() };
    *task.interrupter.get_mut() = Some(thread.interrupter());
    match has(CLONE_THREAD) {
        true => task.pid_charge = Some(charge),
        false => *task.group.pid_charge.lock() = Some(charge),
    }
    Arc::new(task)
}

/// Adds the new task to the process tree.
fn link(parent: &Arc<Task>, a: &CloneArgs, child: &Arc<Task>) {
    let has = |b| a.flags & b != 0;
    let mut tree = parent.kernel.tree.lock();
    tree.tasks.insert(child.tid(), child.clone());
    tree.unreserve(child.tid());
    if has(CLONE_THREAD) {
        child.group.threaded.store(true, Ordering::SeqCst);
        let mut r = child.group.links.lock();
        super::seccomp::inherit(parent, child);
        r.threads.push(child.clone());
        // Also if another thread's execve has ended the parent meanwhile.
        *child.exec_kill.lock() = *parent.exec_kill.lock();
        if r.exiting.is_some() || parent.is_killed() {
            child.killed.store(true, Ordering::SeqCst);
        }
        if child.is_killed() || child.group.cgroup.is_held() {
            child.signal_flag.store(true, Ordering::SeqCst);
        }
        return;
    }
    let pr = parent.group.links.lock();
    let (pgid, sid) = (pr.pgid, pr.sid);
    super::seccomp::inherit(parent, child);
    let (real_parent, exit_signal, parent_execs) = if has(CLONE_PARENT) {
        (pr.parent.clone(), pr.exit_signal, pr.parent_execs)
    } else {
        (Arc::downgrade(&parent.group), a.exit_signal, pr.execs)
    };
    drop(pr);
    {
        let mut r = child.group.links.lock();
        r.parent = real_parent.clone();
        r.parent_tid = parent.tid();
        r.pgid = pgid;
        r.sid = sid;
        r.exit_signal = exit_signal;
        r.parent_execs = parent_execs;
        r.threads.push(child.clone());
    }
    if child.group.init {
        child.pid_ns().set_init(&child.group);
    } else if child.group.id.is_nested() && child.pid_ns().is_closed() {
        // Process 1 has ended meanwhile, and has not seen this one.
        child.group.links.lock().exiting = Some(super::exit::signaled(libc::SIGKILL, false));
        child.killed.store(true, Ordering::SeqCst);
        child.signal_flag.store(true, Ordering::SeqCst);
    }
    tree.insert_group(&child.group);
    if child.group.cgroup.is_held() {
        child.signal_flag.store(true, Ordering::SeqCst);
    }
    if let Some(p) = real_parent.upgrade() {
        p.links.lock().children.push(child.group.clone());
    }
}
