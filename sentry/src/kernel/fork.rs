//! clone(2), fork(2), vfork(2).

use super::cgroup::PidCharge;
use super::ns::change::{self, NsSet};
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
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    pub flags: u64,
    pub exit_signal: i32,
    /// Top of the child's stack; 0: the parent's stack pointer.
    pub stack: u64,
    pub parent_tid: u64,
    pub child_tid: u64,
    pub tls: u64,
    pub pidfd: u64,
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
    let (pid, charge) = alloc(&parent)?;
    let mm = parent.mm();
    mm.begin(&parent).await;
    let tid_bytes = || pid.to_le_bytes().to_vec();
    // Queued before the child exists, which may read the word.
    let parent_tid_queued = has(CLONE_VM) && has(CLONE_PARENT_SETTID) && surely_writable(&mm, a.parent_tid);
    if parent_tid_queued {
        cx.thread.queue(platform::Op::CopyOut { addr: a.parent_tid, data: tid_bytes() });
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
            parent.kernel.tree.lock().reserved.remove(&pid);
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
    let child = build(&parent, &a, pid, child_mm, files, &*thread, (charge, spaces));
    let vfork = has(CLONE_VFORK).then(|| {
        let v = Arc::new(Completion::default());
        *child.vfork_done.lock() = Some(v.clone());
        v
    });
    if has(CLONE_PARENT_SETTID) && !parent_tid_queued {
        let _ = parent.mem().write(a.parent_tid, &pid);
    }
    if has(CLONE_CHILD_SETTID) {
        // The child's first operation where it cannot fail: a write from here would have to wait for the
        // process.
        if surely_writable(&child.mm(), a.child_tid) {
            thread.queue(platform::Op::CopyOut { addr: a.child_tid, data: tid_bytes() });
        } else {
            let _ = child.mem().write(a.child_tid, &pid);
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
            parent.kernel.tree.lock().reserved.remove(&pid);
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
    Ok(pid as u64)
}

/// Whether a store of the stub to this word cannot fail.
fn surely_writable(mm: &Mm, addr: u64) -> bool {
    let writable = |v: &Vma| v.prot & libc::PROT_WRITE != 0 && matches!(v.backing, Backing::Anon);
    mm.map().vmas.find(addr).is_some_and(|v| writable(v) && addr.saturating_add(4) <= v.end)
}

/// Reserves a free process id, within the limits of all, of the user and of the cgroup.
fn alloc(parent: &Arc<Task>) -> Result<(i32, PidCharge)> {
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
    let pid = tree.alloc_pid().ok_or(Errno::EAGAIN)?;
    tree.reserved.insert(pid);
    Ok((pid, charge))
}

/// Reserves a free process id for a process that comes from outside.
pub fn reserve_pid(kernel: &Kernel) -> Result<i32> {
    let mut tree = kernel.tree.lock();
    if tree.count() >= kernel.options.max_tasks.unwrap_or(MAX_TASKS) {
        return Err(Errno::EAGAIN);
    }
    let pid = tree.alloc_pid().ok_or(Errno::EAGAIN)?;
    tree.reserved.insert(pid);
    Ok(pid)
}

fn build(
    parent: &Arc<Task>,
    a: &CloneArgs,
    tid: i32,
    mm: Arc<Mm>,
    files: Arc<super::FdTable>,
    thread: &dyn GuestThread,
    (charge, spaces): (PidCharge, Option<NsSet>),
) -> Arc<Task> {
    let has = |b| a.flags & b != 0;
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
        let mut g = ThreadGroup::new(tid, actions, parent.group.limits.read().clone());
        g.cgroup = parent.group.cgroup.clone();
        g.oom_score_adj.store(parent.group.oom_score_adj.load(Ordering::Relaxed), Ordering::Relaxed);
        g.dumpable.store(parent.group.dumpable.load(Ordering::Relaxed), Ordering::Relaxed);
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
        id: tid,
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
    tree.reserved.remove(&child.tid());
    tree.tasks.insert(child.tid(), child.clone());
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
    tree.insert_group(&child.group);
    if child.group.cgroup.is_held() {
        child.signal_flag.store(true, Ordering::SeqCst);
    }
    if let Some(p) = real_parent.upgrade() {
        p.links.lock().children.push(child.group.clone());
    }
}
