//! Exit of tasks and processes: zombies, reparenting, reaping.

use super::process::ThreadGroup;
use super::signal::{SigFields, SigInfo, SigSet};
use super::wait::Turn;
use super::{Kernel, Task};
use platform::executor::{now_ns, Rounds};
use platform::GuestThread;
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Poll;

/// `wait4` status of a normal exit.
pub fn exited(code: i32) -> i32 {
    (code & 0xff) << 8
}

/// `wait4` status of a death by signal.
pub fn signaled(sig: i32, core: bool) -> i32 {
    sig | if core { 0x80 } else { 0 }
}

/// Begins the exit of a process by a signal.
pub fn kill_group(group: &Arc<ThreadGroup>, sig: i32) {
    start_group_exit(group, signaled(sig, false), None);
}

/// Begins a group exit with a `wait4` status; the first caller decides the status. Threads other than
/// `except` are notified; each ends when its future runs.
pub fn start_group_exit(group: &Arc<ThreadGroup>, status: i32, except: Option<i32>) {
    let threads = {
        let mut r = group.links.lock();
        r.exiting.get_or_insert(status);
        r.stopped = None;
        r.threads.clone()
    };
    group.stop_wait.wake_all();
    let mut notified = None;
    for t in threads {
        t.killed.store(true, Ordering::SeqCst);
        if Some(t.tid()) != except {
            t.notify();
            notified = Some(t);
        }
    }
    // Once, however often the group is told to end.
    if let Some(task) = notified.filter(|_| !group.ending.swap(true, Ordering::SeqCst)) {
        kill_after_timeout(&task);
    }
}

/// Time the threads of a process have to exit; the second value holds if surviving processes share its
/// memory.
const NOTICE_NS: u64 = 500_000_000;
const NOTICE_SHARED_NS: u64 = 10_000_000_000;

/// Kills the host process of a group whose threads do not exit, such as a thread that blocks interrupts on
/// purpose.
fn kill_after_timeout(task: &Arc<Task>) {
    let executor = task.kernel.executor.clone();
    let group = Arc::downgrade(&task.group);
    let began = now_ns();
    let on = executor.clone();
    executor.spawn(Box::pin(async move {
        let mut deadline = began + NOTICE_NS;
        loop {
            let mut timer = None;
            poll_fn(|cx| {
                if now_ns() >= deadline {
                    return Poll::Ready(());
                }
                timer = Some(on.timer(deadline, cx.waker().clone()));
                Poll::Pending
            })
            .await;
            drop(timer);
            let Some(group) = group.upgrade() else { return };
            let left = group.links.lock().threads.clone();
            let Some(one) = left.first() else { return };
            let mm = one.mm();
            if mm.user_count() > left.len() && now_ns() < began + NOTICE_SHARED_NS {
                deadline = began + NOTICE_SHARED_NS;
                continue;
            }
            log::debug!("[{}] does not exit: killing its host process", group.pid);
            mm.space().kill();
            return;
        }
    }));
}

/// Before a task ends: releases the futex words and the tid word that other tasks wait on. `alive`: the
/// thread is stopped, not dead.
pub async fn leave_memory(task: &Arc<Task>, thread: &mut dyn GuestThread, alive: bool) {
    let mm = task.mm();
    let mut wakes = super::robust::exit(task, thread, alive).await;
    super::futex_pi::exit(task).await;
    // Other tasks in the same memory may wait for this word to become 0 (set_tid_address(2)).
    let ctid = task.clear_child_tid.swap(0, Ordering::SeqCst);
    let (others, last) = {
        let r = task.group.links.lock();
        let mates = r.threads.len();
        (mm.user_count() > if r.exiting.is_some() { mates } else { 1 }, mates == 1)
    };
    // A waiter that sees the word cleared may unmap all memory that the thread used; where possible, the host
    // clears it when the thread is gone. For the last thread it is cleared here, before the exit of the
    // process is reported.
    let hosts = ctid != 0 && others && !last && super::futex::at_host(task, ctid) && thread.clear_at_end(ctid);
    let rseq = task.rseq.lock().undo();
    if let Some(op) = rseq.filter(|_| others && alive) {
        // The host must not access the rseq area once other tasks may have unmapped it.
        if hosts {
            thread.do_at_end(op);
        } else {
            thread.queue(op);
            thread.enter(platform::Enter::Stay);
            poll_fn(|cx| thread.poll_trap(cx)).await;
        }
    }
    if ctid != 0 && others && !hosts && task.mem().write(ctid, &0u32).is_ok() {
        wakes.push(ctid);
    }
    wakes.retain(|addr| super::futex::wake_at_exit(task, *addr));
    if alive && !wakes.is_empty() {
        for addr in wakes {
            thread.queue(platform::Op::Wake { addr });
        }
        thread.enter(platform::Enter::Stay);
        poll_fn(|cx| thread.poll_trap(cx)).await;
    }
}

/// Ends one task; called once, by its own future. `status` counts if it is the last thread and no group exit
/// has begun.
pub async fn exit_task(task: &Arc<Task>, status: i32) {
    let kernel = &task.kernel;
    let mm = task.mm();
    crate::syscalls::strace::ended(task, status);
    if let Some(v) = task.vfork_done.lock().take() {
        v.complete();
    }
    // Descriptors are closed with the last task of the table.
    close_files(task).await;
    if mm.user_count() == 1 {
        crate::time::cpu::settle(task);
    }
    let group = &task.group;
    let last = match remove_thread(task, status, group.init && group.id.is_nested()) {
        Some(last) => last,
        None => {
            super::pid_ns::end_with_init(task).await;
            remove_thread(task, status, false).unwrap_or(true)
        }
    };
    if !last {
        super::send::retarget(task, SigSet(!task.signals.lock().mask.0));
    }
    mm.settled(task.tid());
    mm.user_gone();
    *task.waker.lock() = None;
    *task.interrupter.write() = None;
    if last {
        exit_group(kernel, group, task);
    } else {
        // A thread in execve waits for the others to end.
        group.exit_wait.wake_all();
    }
}

/// Takes an ending task out of its process and the table; true if it was the last thread. `None`, with nothing done: it
/// is the last one, and `unless_last` is set.
fn remove_thread(task: &Arc<Task>, status: i32, unless_last: bool) -> Option<bool> {
    let group = &task.group;
    let mut tree = task.kernel.tree.lock();
    let mut r = group.links.lock();
    if unless_last && r.threads.len() == 1 {
        return None;
    }
    r.threads.retain(|t| t.tid() != task.tid());
    let last = r.threads.is_empty();
    if last {
        let st = r.exiting.unwrap_or(status);
        r.exiting = Some(st);
        r.exit_status = Some(st);
        tree.zombies += 1;
        let (comm, cred) = (task.comm.lock().clone(), task.cred());
        *group.remains.lock() = Some(super::process::ZombieInfo { comm, cred, attrs: task.attrs.clone() });
    }
    drop(r);
    tree.remove_task(task.tid());
    Some(last)
}

/// With all others in between, if there are many.
async fn close_files(task: &Arc<Task>) {
    let files = std::mem::replace(&mut *task.files.write(), super::FdTable::new());
    let Ok(table) = Arc::try_unwrap(files) else { return };
    let (mut from, mut turn) = (Some(0), Turn::new());
    while let Some(at) = from {
        let (gone, next) = table.remove_some(at, |_, _| true);
        for f in gone {
            crate::fs::lock::release_table(table.id(), &f);
            f.ops.on_close(&f, task);
            drop(f);
            turn.next().await;
        }
        turn.look().await;
        from = next;
    }
}

/// After the last thread has ended: makes the process a zombie and reparents its children.
fn exit_group(kernel: &Arc<Kernel>, group: &Arc<ThreadGroup>, task: &Arc<Task>) {
    if group.pid == kernel.first_pid() {
        super::init::kill_others(kernel);
        return;
    }
    let parent = leave_children(kernel, group);
    if let Some(p) = &parent {
        super::pgrp::lost_parent(kernel, std::slice::from_ref(group), p);
    }
    super::tty::process_exit(kernel, group);
    let uid = task.cred().uid;
    if let Some(p) = parent {
        report_death(kernel, &p, group, uid);
    } else {
        reap(kernel, group);
    }
    group.exit_wait.wake_all();
    crate::ipc::sem::process_gone(&task.ns().ipc, group.pid);
    group.timers.clear();
}

/// Gives the children of a process that ends to their next parent; returns its own parent.
fn leave_children(kernel: &Arc<Kernel>, group: &Arc<ThreadGroup>) -> Option<Arc<ThreadGroup>> {
    let (parent, orphans, reaper) = {
        let tree = kernel.tree.lock();
        let reaper = find_reaper(&tree, group);
        let orphans = std::mem::take(&mut group.links.lock().children);
        // Zombies that a parent does not want are reaped below: none of its waits may find them meanwhile.
        let unwanted = reaper.as_ref().is_some_and(ignores_children);
        let mut adopted = Vec::with_capacity(orphans.len());
        for o in &orphans {
            let mut r = o.links.lock();
            let parent = reaper.as_ref().filter(|_| !unwanted || r.exit_status.is_none());
            r.parent = parent.map_or_else(Weak::new, Arc::downgrade);
            r.parent_tid = parent.map_or(0, |h| h.pid);
            // After reparenting the exit signal is always SIGCHLD.
            r.exit_signal = libc::SIGCHLD;
            adopted.extend(parent.map(|_| o.clone()));
        }
        if let Some(h) = &reaper {
            h.links.lock().children.extend(adopted);
        }
        let parent = group.links.lock().parent.upgrade();
        (parent, orphans, reaper)
    };
    if orphans.is_empty() {
        return parent;
    }
    let (zombies, alive): (Vec<_>, Vec<_>) = orphans.into_iter().partition(|o| o.links.lock().exit_status.is_some());
    let mut rounds = Rounds::new();
    for o in &alive {
        rounds.next();
        super::cached_ids::parent_changed(o);
        orphaned(kernel, o);
    }
    report_zombies(kernel, reaper.as_ref(), &zombies);
    if let Some(h) = reaper {
        h.child_wait.wake_all();
    }
    super::pgrp::lost_parent(kernel, &alive, group);
    parent
}

/// The nearest living subreaper among the ancestors in the same pid namespace, or process 1 of it if there is one.
fn find_reaper(tree: &super::kernel::Tree, group: &Arc<ThreadGroup>) -> Option<Arc<ThreadGroup>> {
    let ns = group.id.ns();
    let mut at = group.links.lock().parent.upgrade();
    while let Some(g) = at.filter(|g| g.id.ns() == ns) {
        let r = g.links.lock();
        if r.subreaper && !r.threads.is_empty() {
            drop(r);
            return Some(g);
        }
        at = r.parent.upgrade();
    }
    if ns.is_initial() {
        tree.groups.get(&1).filter(|g| g.init).cloned()
    } else {
        ns.init().filter(|g| !Arc::ptr_eq(g, group))
    }
}

/// Sends PR_SET_PDEATHSIG signals to a child whose parent has died.
fn orphaned(_kernel: &Arc<Kernel>, child: &Arc<ThreadGroup>) {
    let threads = child.links.lock().threads.clone();
    for t in threads {
        let sig = t.pdeathsig.load(Ordering::SeqCst);
        if sig != 0 {
            let _ = super::send::to_task(&t, SigInfo::user(sig, 0, 0));
        }
    }
}

/// `si_code` and `si_status` for SIGCHLD and waitid(2).
pub fn child_code(status: i32) -> (i32, i32) {
    if status & 0x7f == 0 {
        (libc::CLD_EXITED, (status >> 8) & 0xff)
    } else if status & 0x80 != 0 {
        (libc::CLD_DUMPED, status & 0x7f)
    } else {
        (libc::CLD_KILLED, status & 0x7f)
    }
}

/// Reports a death to the parent; if the parent ignores it (SIGCHLD ignored, SA_NOCLDWAIT), reaps the zombie
/// at once.
fn report_death(kernel: &Arc<Kernel>, parent: &Arc<ThreadGroup>, child: &Arc<ThreadGroup>, uid: u32) {
    if tell_of_death(parent, child, uid) {
        reap(kernel, child);
    }
    parent.child_wait.wake_all();
}

/// Zombies that have got another parent are reported to it, by one signal, of which no second one would be queued; without a parent they
/// are gone.
fn report_zombies(kernel: &Kernel, parent: Option<&Arc<ThreadGroup>>, zombies: &[Arc<ThreadGroup>]) {
    let Some(first) = zombies.first() else { return };
    if parent.is_none_or(|p| tell_of_death(p, first, 0)) {
        reap_all(kernel, zombies);
    }
}

/// Sends the signal of a death; true if the parent does not care for zombies.
/// Whether a process wants no zombies: it ignores SIGCHLD, or has set SA_NOCLDWAIT.
fn ignores_children(parent: &Arc<ThreadGroup>) -> bool {
    let actions = parent.actions.read().clone();
    let a = actions.lock().get(libc::SIGCHLD);
    a.handler == super::signal::SIG_IGN || a.flags & libc::SA_NOCLDWAIT as u64 != 0
}

fn tell_of_death(parent: &Arc<ThreadGroup>, child: &Arc<ThreadGroup>, uid: u32) -> bool {
    let execs = parent.links.lock().execs;
    let (status, signal, utime, stime) = {
        let r = child.links.lock();
        let signal = if r.parent_execs == execs { r.exit_signal } else { libc::SIGCHLD };
        (r.exit_status.unwrap_or(0), signal, r.dead_utime, r.dead_stime)
    };
    let (code, st) = child_code(status);
    let mut auto_reap = false;
    if signal == libc::SIGCHLD {
        auto_reap = ignores_children(parent);
    }
    if signal != 0 {
        let tick = |ns: u64| (ns / 10_000_000) as i64;
        let info = SigInfo {
            signo: signal,
            errno: 0,
            code,
            fields: SigFields::Child { pid: child.pid, uid, status: st, utime: tick(utime), stime: tick(stime) },
        };
        let _ = super::send::to_group(parent, info);
    }
    auto_reap
}

/// Removes a zombie for good; false if it was gone already.
pub fn reap(kernel: &Kernel, child: &Arc<ThreadGroup>) -> bool {
    reap_all(kernel, std::slice::from_ref(child)) == 1
}

/// Removes zombies of one parent for good; gives how many of them have not been gone already.
fn reap_all(kernel: &Kernel, zombies: &[Arc<ThreadGroup>]) -> usize {
    let (parent, ours) = {
        let _tree = kernel.tree.lock();
        let parent = zombies.first().and_then(|z| z.links.lock().parent.upgrade());
        let ours = match &parent {
            Some(p) => take_children(&mut p.links.lock().children, zombies),
            None => zombies.to_vec(),
        };
        (parent, ours)
    };
    let (mut user, mut system) = (0, 0);
    let mut rounds = Rounds::new();
    for z in &ours {
        rounds.next();
        kernel.tree.lock().remove_group(z);
        let charge = z.pid_charge.lock().take();
        let r = z.links.lock();
        // Once: a zombie without a parent may be reaped by its own end as well.
        if charge.is_some() {
            z.cgroup.add_dead_time(r.dead_utime, r.dead_stime);
        }
        user += r.dead_utime + r.child_utime;
        system += r.dead_stime + r.child_stime;
    }
    if let Some(p) = parent {
        let mut r = p.links.lock();
        r.child_utime += user;
        r.child_stime += system;
    }
    ours.len()
}

/// Reaps the children of `parent` that are zombies now.
pub fn reap_zombies_of(kernel: &Kernel, parent: &ThreadGroup) {
    let children = parent.links.lock().children.clone();
    let zombies: Vec<_> = children.into_iter().filter(|c| c.links.lock().exit_status.is_some()).collect();
    reap_all(kernel, &zombies);
}

/// Takes these out of a list of children, in one pass; gives those that were in it.
fn take_children(children: &mut Vec<Arc<ThreadGroup>>, doomed: &[Arc<ThreadGroup>]) -> Vec<Arc<ThreadGroup>> {
    let mut known: Vec<_> = doomed.iter().map(Arc::as_ptr).collect();
    known.sort_unstable();
    let mut taken = Vec::new();
    children.retain(|c| {
        let goes = known.binary_search(&Arc::as_ptr(c)).is_ok();
        if goes {
            taken.push(c.clone());
        }
        !goes
    });
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_child_is_taken_once() {
        let all: Vec<_> =
            (1..=6).map(|pid| Arc::new(ThreadGroup::new(pid, Arc::default(), Default::default()))).collect();
        let pids = |list: &[Arc<ThreadGroup>]| list.iter().map(|g| g.pid).collect::<Vec<_>>();
        let mut children = all.clone();
        let odd: Vec<_> = all.iter().filter(|g| g.pid % 2 == 1).cloned().collect();
        assert_eq!(pids(&take_children(&mut children, &odd)), [1, 3, 5]);
        assert_eq!(pids(&children), [2, 4, 6]);
        assert_eq!(pids(&take_children(&mut children, &all[..3])), [2]);
        assert_eq!(pids(&children), [4, 6]);
    }
}
