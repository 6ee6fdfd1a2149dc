//! Signal delivery: stops, default actions, entering handlers and rt_sigreturn(2).

use super::exit::{self, signaled};
use super::signal::{default_action, AltStack, Default_, SigAction, SigInfo, SigSet, SIG_DFL, SIG_IGN};
use super::task::{Before, Delivered};
use super::Task;
use crate::arch::frame::{self, Delivery};
use crate::error::{Errno, Restart, SysError, SysResult};
use crate::syscalls::Ctx;
use platform::{Enter, Fault, GuestThread, Op, Trap};
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::Arc;

const SS_ONSTACK: i32 = 1;
const SS_DISABLE: i32 = 2;
const SS_AUTODISARM: i32 = 1 << 31;

/// What the run loop does after signal delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// No handler was set up. An interrupted call with a restart is made again.
    Resume,
    /// A handler was set up: enter the guest with all registers.
    Handler,
    /// The task ends with this `wait4` status.
    Exit(i32),
}

/// Delivers the pending signals of a stopped thread until none is left. `restart` is the restart rule of an
/// interrupted call; `fault` goes into the signal frame.
pub async fn signals(
    task: &Arc<Task>,
    thread: &mut dyn GuestThread,
    restart: Option<Restart>,
    fault: Option<Fault>,
) -> Flow {
    let mut flow = Flow::Resume;
    let mut restart = restart;
    let mut taken = 0u32;
    loop {
        taken += 1;
        if taken % AT_ONCE == 0 {
            // There may be as many as are queued.
            if let Some(status) = store_frames(task, thread).await {
                return Flow::Exit(status);
            }
            crate::kernel::wait::yield_now().await;
        }
        if task.killed.load(Ordering::SeqCst) {
            let st = task.group.links.lock().exiting;
            return Flow::Exit(st.or(*task.exec_kill.lock()).unwrap_or(0));
        }
        if task.group.links.lock().stopped.is_some() {
            let _ = task
                .wait_killable(&task.group.stop_wait, || task.group.links.lock().stopped.is_none().then_some(()))
                .await;
            continue;
        }
        if let Some(holder) = task.group.cgroup.held_by() {
            task.parked.store(true, Ordering::SeqCst);
            let _ = task.wait_killable(holder.thaw_wait(), || (!holder.is_held()).then_some(())).await;
            task.parked.store(false, Ordering::SeqCst);
            continue;
        }
        // Cleared before the check: a signal sent meanwhile sets it again.
        task.signal_flag.store(false, Ordering::SeqCst);
        let Some((info, action)) = take(task) else { break };
        crate::syscalls::strace::signal(task, &info);
        if action.handler == SIG_IGN {
            continue;
        }
        if action.handler == SIG_DFL {
            // A signal that was blocked when it was sent is dropped here.
            if task.group.init && !task.group.take_forced_fatal(info.signo) {
                continue;
            }
            match default_action(info.signo) {
                Default_::Ignore | Default_::Continue => continue,
                Default_::Stop => {
                    if info.signo != libc::SIGSTOP && super::pgrp::orphaned(&task.kernel, task.group.pgid()) {
                        continue;
                    }
                    stop(task, info.signo);
                    continue;
                }
                Default_::Terminate | Default_::Core => {
                    let status = signaled(info.signo, false);
                    exit::start_group_exit(&task.group, status, Some(task.tid()));
                    let st = task.group.links.lock().exiting.unwrap_or(status);
                    return Flow::Exit(st);
                }
            }
        }
        // The first handler decides how the interrupted call ends.
        if let Some(kind) = restart.take() {
            let again = match kind {
                Restart::NoIntr => true,
                Restart::Sys => action.flags & libc::SA_RESTART as u64 != 0,
                Restart::NoHand | Restart::Block => false,
            };
            let r = thread.regs_mut();
            if again {
                r.rax = r.orig_rax;
                r.rip = r.rip.wrapping_sub(2);
            } else {
                r.rax = (-(libc::EINTR as i64)) as u64;
            }
        }
        let d = Delivered { info, action, fault: fault.filter(|f| f.signal == info.signo), op: 0 };
        let mut stored = enter_handler(task, thread, &d);
        if let Err(Some(addr)) = stored {
            // The stack may be a mapping that grows down.
            let below = Fault { signal: libc::SIGSEGV, code: crate::mm::stack::MAPERR, addr, ..Fault::default() };
            if crate::mm::stack::grows(task, thread, below).await {
                stored = enter_handler(task, thread, &d);
            }
        }
        if stored.is_err() {
            match no_frame(task, &d) {
                Some(status) => return Flow::Exit(status),
                None => continue,
            }
        }
        flow = Flow::Handler;
    }
    if flow == Flow::Resume {
        task.restore_mask();
    }
    flow
}

/// Signals that are taken before others go first, and their frames stored: as many as the stub stores in one round.
const AT_ONCE: u32 = 16;

/// Has the stub store the frames that are queued; tells the status that the task ends with, if it does.
async fn store_frames(task: &Arc<Task>, thread: &mut dyn GuestThread) -> Option<i32> {
    if !task.framed.swap(false, Ordering::Relaxed) {
        return None;
    }
    let before = task.signals.lock().before.take();
    thread.enter(Enter::Stay);
    match poll_fn(|cx| thread.poll_trap(cx)).await {
        Trap::OpFailed { errno: Errno::EFAULT, index } => before.and_then(|b| unframed(task, thread, &b, index)),
        Trap::Dead { signal } => {
            let status = task.group.links.lock().exiting;
            Some(status.unwrap_or(signaled(if signal == 0 { libc::SIGKILL } else { signal }, false)))
        }
        _ => None,
    }
}

/// Takes the next pending signal of `allowed`; signals of the thread come before signals of the process.
/// Delivery, `sigwait` and signalfd all take signals here, since taking a timer's signal lets the timer
/// continue.
pub fn dequeue(task: &Task, allowed: SigSet) -> Option<SigInfo> {
    let own = task.signals.lock().pending.take(allowed);
    let mut info = match own {
        Some(i) => i,
        None => task.group.pending.lock().take(allowed)?,
    };
    crate::time::signal_taken(&task.group, &mut info);
    Some(info)
}

/// Takes the next deliverable signal and its action (applying `SA_RESETHAND`).
fn take(task: &Arc<Task>) -> Option<(SigInfo, SigAction)> {
    let allowed = SigSet(!task.signals.lock().mask.0);
    let info = dequeue(task, allowed)?;
    let actions = task.group.actions.read().clone();
    let mut a = actions.lock();
    let action = a.get(info.signo);
    if action.flags & libc::SA_RESETHAND as u64 != 0 && action.handler > SIG_IGN {
        a.set(info.signo, SigAction { handler: SIG_DFL, ..action });
    }
    Some((info, action))
}

/// Stops the whole process (job control).
fn stop(task: &Arc<Task>, sig: i32) {
    let threads = {
        let mut r = task.group.links.lock();
        if r.exiting.is_some() {
            return;
        }
        r.stopped = Some(sig);
        r.stop_reported = false;
        r.continued = false;
        r.threads.clone()
    };
    for t in threads.iter().filter(|t| t.tid() != task.tid()) {
        t.notify();
    }
    super::send::notify_parent_of_stop(&task.group, libc::CLD_STOPPED, sig);
}

fn on_altstack(alt: &AltStack, sp: u64) -> bool {
    alt.flags & SS_DISABLE == 0 && alt.size > 0 && sp > alt.sp && sp - alt.sp <= alt.size
}

/// Queues the frame and points the registers at the handler. Changes nothing if the frame does not fit. If
/// memory is not mapped there, the error holds the start address of the frame.
fn enter_handler(
    task: &Arc<Task>,
    thread: &mut dyn GuestThread,
    delivered: &Delivered,
) -> std::result::Result<(), Option<u64>> {
    let Delivered { info, action, fault, .. } = *delivered;
    let regs = *thread.regs();
    let s = task.signals.lock();
    let (mask, saved_mask) = (s.mask, s.saved_mask);
    let alt = s.alt;
    drop(s);
    let mut stack = regs.rsp.wrapping_sub(128);
    let on_alt = on_altstack(&alt, regs.rsp) && alt.flags & SS_AUTODISARM == 0;
    let enters_alt =
        action.flags & libc::SA_ONSTACK as u64 != 0 && alt.size > 0 && alt.flags & SS_DISABLE == 0 && !on_alt;
    if enters_alt {
        stack = alt.sp.wrapping_add(alt.size);
    }
    let d = Delivery {
        info: &info,
        handler: action.handler,
        restorer: action.restorer,
        mask: saved_mask.unwrap_or(mask),
        alt,
        stack,
        fault,
        fp_size: task.kernel.platform.fp_state_size(),
    };
    let f = frame::build(&regs, &d).ok_or(None)?;
    if stack > platform::GUEST_MAX || f.addr < platform::GUEST_MIN {
        return Err(None);
    }
    // Overflow of the alternate stack is fatal.
    if (on_alt || enters_alt) && !on_altstack(&alt, f.addr) {
        return Err(None);
    }
    // A frame outside mapped, writable memory must be detected here, not in the stub.
    {
        let mm = task.mm();
        let m = mm.map();
        let end = f.fp_addr + d.fp_size as u64;
        if !m.vmas.covers(f.addr & !(platform::PAGE_SIZE - 1), end) {
            return Err(Some(f.addr));
        }
        if m.vmas.range(f.addr, end).any(|v| v.prot & libc::PROT_WRITE == 0) {
            return Err(None);
        }
    }
    task.change_mask(|s| {
        let before = Before { regs, mask, saved_mask, alt, frames: Vec::new() };
        let before = s.before.get_or_insert_with(|| Box::new(before));
        before.frames.push(Delivered { op: thread.queued(), ..*delivered });
        s.saved_mask = None;
        s.mask = s.mask.union(action.mask).minus(SigSet::UNBLOCKABLE);
        if action.flags & libc::SA_NODEFER as u64 == 0 {
            s.mask.add(info.signo);
        }
        if alt.flags & SS_AUTODISARM != 0 && !on_alt {
            s.alt = AltStack { sp: 0, size: 0, flags: SS_DISABLE };
        }
    });
    thread.queue(Op::CopyOut { addr: f.addr, data: f.bytes });
    thread.queue(Op::SaveFp { addr: f.fp_addr });
    *thread.regs_mut() = f.regs;
    task.framed.store(true, Ordering::Relaxed);
    Ok(())
}

/// Operations that store one frame.
const FRAME_OPS: usize = 2;

/// Memory operation `index` failed because the mapping has changed meanwhile. If it was to store the call's
/// result, the call fails with `EFAULT` and the signals are delivered again. If it was part of a frame, the
/// thread returns to its state before that signal, which a SIGSEGV replaces. Returns the exit status if that
/// signal was a SIGSEGV already.
pub fn unframed(task: &Arc<Task>, thread: &mut dyn GuestThread, before: &Before, index: usize) -> Option<i32> {
    *thread.regs_mut() = before.regs;
    if before.frames.first().is_some_and(|f| index < f.op) {
        thread.regs_mut().rax = (-(libc::EFAULT as i64)) as u64;
    }
    task.change_mask(|s| {
        s.mask = before.mask;
        s.saved_mask = before.saved_mask;
        s.alt = before.alt;
    });
    let mut frames = before.frames.iter();
    let failed = frames.find(|f| {
        let failed = (f.op..f.op + FRAME_OPS).contains(&index);
        failed || enter_handler(task, thread, f).is_err()
    })?;
    put_back(task, frames.as_slice());
    no_frame(task, failed)
}

/// Makes these signals pending again, first in line.
fn put_back(task: &Task, delivered: &[Delivered]) {
    let actions = task.group.actions.read().clone();
    let mut actions = actions.lock();
    let mut s = task.signals.lock();
    for d in delivered.iter().rev() {
        s.pending.put_back(d.info);
        let reset = d.action.flags & libc::SA_RESETHAND as u64 != 0;
        if reset && actions.get(d.info.signo).handler == SIG_DFL {
            actions.set(d.info.signo, d.action);
        }
    }
}

/// A frame does not fit: forces SIGSEGV. If the signal was SIGSEGV, the process is killed; returns that
/// status.
fn no_frame(task: &Arc<Task>, of: &Delivered) -> Option<i32> {
    if of.info.signo != libc::SIGSEGV {
        super::send::force(task, SigInfo::kernel(libc::SIGSEGV));
        return None;
    }
    let status = signaled(libc::SIGSEGV, false);
    exit::start_group_exit(&task.group, status, Some(task.tid()));
    Some(status)
}

/// rt_sigreturn(2): restores the state in the frame at the stack pointer.
pub fn sigreturn(cx: &mut Ctx<'_>) -> SysResult {
    let sp = cx.thread.regs().rsp;
    let mut b = [0u8; frame::RESTORE_SIZE];
    if cx.read_bytes(sp, &mut b).is_err() {
        super::send::force(cx.task, SigInfo::kernel(libc::SIGSEGV));
        return Err(SysError::Errno(Errno::EFAULT));
    }
    let r = frame::restore(&b, cx.thread.regs());
    cx.task.change_mask(|s| {
        s.mask = r.mask.minus(SigSet::UNBLOCKABLE);
        let mut alt = r.alt;
        alt.flags &= !SS_ONSTACK;
        // As by sigaltstack(2); invalid values leave the alternate stack unchanged.
        if alt.flags & !(SS_DISABLE | SS_AUTODISARM) == 0 {
            s.alt = alt;
        }
    });
    // After a handler returns, restart_syscall(2) must not resume the call that it interrupted.
    *cx.task.restart_block.lock() = None;
    cx.thread.queue(Op::RestoreFp { addr: r.fp_addr });
    *cx.thread.regs_mut() = r.regs;
    cx.full = true;
    Ok(r.regs.rax)
}
