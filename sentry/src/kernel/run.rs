//! Run loop of a guest thread: run it until it traps, handle the trap, deliver signals, repeat.

use super::deliver::{self, Flow};
use super::signal::{SigFields, SigInfo};
use super::task::{Completion, RestartBlock};
use super::{exit, Task};
use crate::error::{Errno, Restart, SysError, SysResult};
use crate::syscalls::{self, Ctx};
use platform::{Enter, Fault, GuestThread, Trap};
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::task::Poll;

/// Starts the future of a task. Its thread is stopped, with its first registers set.
pub fn start(task: Arc<Task>, thread: Box<dyn GuestThread>) {
    start_after(task, thread, None);
}

/// As [`start`]; the guest begins to run when `gate` is completed. Until then only SIGKILL ends it.
pub fn start_after(task: Arc<Task>, thread: Box<dyn GuestThread>, gate: Option<Arc<Completion>>) {
    let executor = task.kernel.executor.clone();
    let (turns, current_task) = (task.group.turns.clone(), task.clone());
    let future = async move {
        if let Some(gate) = gate {
            let _ = task.wait_killable(&gate.queue, || gate.is_done().then_some(())).await;
        }
        run(task, thread).await;
    };
    executor.spawn_of(Some(turns), Box::pin(super::current::scope(current_task, future)));
}

async fn run(task: Arc<Task>, mut thread: Box<dyn GuestThread>) {
    poll_fn(|cx| {
        *task.waker.lock() = Some(cx.waker().clone());
        Poll::Ready(())
    })
    .await;
    *task.interrupter.write() = Some(thread.interrupter());
    task.pin();
    task.set_service(thread.local_answers());
    let mut enter = Enter::Full;
    // The last call's mapping, which the host may still refuse.
    let mut undo = None;
    // True while the stub carries out the operations of execve(2) that load the program.
    let mut loading = false;
    let mut old_thread = None;
    let mut dead = false;
    let status = loop {
        if task.signal_pending() {
            let restart = (enter == Enter::Native).then(|| futex_restart(&*thread));
            match deliver::signals(&task, &mut *thread, restart, None).await {
                Flow::Resume => {}
                Flow::Handler => enter = Enter::Full,
                Flow::Exit(st) => break st,
            }
        }
        thread.enter(enter);
        if task.signal_pending() {
            // The signal was sent by another thread of the Sentry after the check above, before there was a
            // guest to interrupt.
            thread.interrupter().interrupt();
        }
        if loading {
            task.mm.read().loads(&*thread);
            drop(old_thread.take());
        }
        let trap = poll_fn(|cx| thread.poll_trap(cx)).await;
        enter = Enter::Full;
        let loads = std::mem::take(&mut loading);
        let framed = task.framed.load(Ordering::Relaxed) && task.framed.swap(false, Ordering::Relaxed);
        let before = if framed { task.signals.lock().before.take() } else { None };
        match trap {
            Trap::Syscall => {
                if thread.trapped() {
                    crate::mm::text::trapped(&task, &mut thread).await;
                }
                match syscall(&task, &mut thread, &mut undo).await {
                    Next::Enter(e) => enter = e,
                    Next::Load(old) => {
                        old_thread = old;
                        loading = true;
                    }
                    Next::Exit(st) => break st,
                }
            }
            Trap::Fault(f) => {
                let flow = fault(&task, &mut *thread, f).await;
                if let Flow::Exit(st) = flow {
                    break st;
                }
            }
            // A futex wait made by the stub was interrupted: it ends or restarts like a call of the Sentry.
            Trap::Interrupted if is_native_wait(thread.regs().orig_rax) => {
                let restart = futex_restart(&*thread);
                match deliver::signals(&task, &mut *thread, Some(restart), None).await {
                    Flow::Exit(st) => break st,
                    Flow::Handler => {}
                    Flow::Resume => {
                        let r = thread.regs_mut();
                        r.rax = r.orig_rax;
                        r.rip = r.rip.wrapping_sub(2);
                    }
                }
            }
            Trap::Interrupted | Trap::OpsDone => {}
            Trap::OpFailed { errno, .. } if loads => {
                log::debug!("[{}] a program could not be loaded: {errno}", task.tid());
                exit::start_group_exit(&task.group, exit::signaled(libc::SIGKILL, false), Some(task.tid()));
                break exit::signaled(libc::SIGKILL, false);
            }
            Trap::OpFailed { errno: Errno::EFAULT, index } if before.is_some() => {
                let status = before.and_then(|b| deliver::unframed(&task, &mut *thread, &b, index));
                if let Some(st) = status {
                    break st;
                }
            }
            Trap::OpFailed { index, errno } => {
                log::debug!("[{}] memory operation {index} failed: {errno}", task.tid());
                // The operations of a call are checked before they are queued, so the remaining cause is a
                // host short of memory.
                if thread.regs().orig_rax == libc::SYS_rseq as u64 {
                    task.rseq.lock().refused();
                }
                let mut answer = (-(errno as i32 as i64)) as u64;
                if let Some(u) = undo.take() {
                    let mm = task.mm();
                    let mut map = mm.map();
                    map.vmas.remove(u.start, u.end);
                    if let Some(old) = u.brk {
                        map.brk = old;
                        answer = old;
                    }
                }
                thread.regs_mut().rax = answer;
            }
            Trap::Dead { signal } => {
                dead = true;
                let st = task.group.links.lock().exiting;
                break st.unwrap_or(exit::signaled(if signal == 0 { libc::SIGKILL } else { signal }, false));
            }
        }
    };
    exit::leave_memory(&task, &mut *thread, !dead).await;
    exit::exit_task(&task, status).await;
    drop(thread);
    // Its thread is gone by now, with what it has counted added up.
    report_exit(&task);
}

/// The last step of a task: if it was its process's last, reports the end to the runtime if that has asked for it.
fn report_exit(task: &Task) {
    let status = task.group.links.lock().exit_status;
    if let Some(status) = status {
        task.group.report_exit(status);
    }
}

/// Whether a stub makes this call itself.
fn is_native_wait(nr: u64) -> bool {
    nr == libc::SYS_futex as u64 || nr == libc::SYS_futex_waitv as u64
}

/// Restart rule of a futex wait that a signal has interrupted.
fn futex_restart(thread: &dyn GuestThread) -> Restart {
    // The timeout of futex_waitv(2) is absolute.
    if thread.regs().orig_rax == libc::SYS_futex as u64 && thread.regs().r10 != 0 {
        Restart::NoHand
    } else {
        Restart::Sys
    }
}

/// The next step after a call.
enum Next {
    Enter(Enter),
    /// Enter a new program. If the old program's thread remains, it is dropped after that.
    Load(Option<Box<dyn GuestThread>>),
    Exit(i32),
}

async fn syscall(task: &Arc<Task>, thread: &mut Box<dyn GuestThread>, undo: &mut Option<syscalls::Undo>) -> Next {
    let mut nr = thread.regs().orig_rax;
    if task.kernel.stats.is_some() {
        task.kernel.calls.fetch_add(1, Ordering::Relaxed);
    }
    loop {
        task.in_call.store(nr as i32, Ordering::Relaxed);
        let r = *thread.regs();
        let mut cx = Ctx {
            task,
            nr,
            args: [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9],
            staged: Default::default(),
            full: false,
            exit: None,
            undo: None,
            replace: None,
            reloads: false,
            native: false,
            thread: &mut **thread,
        };
        let began = task.kernel.stats.as_ref().map(|s| (s, platform::executor::now_ns()));
        let result = if task.kernel.options.strace {
            syscalls::strace::traced(&mut cx).await
        } else {
            syscalls::dispatch(&mut cx).await
        };
        if let Some((stats, at)) = began {
            stats.record(nr, at, &result);
        }
        crate::fs::fasync::send_late();
        cx.flush();
        let native = cx.native;
        let (full, leave, replace, reloads) = (cx.full, cx.exit, cx.replace.take(), cx.reloads);
        *undo = cx.undo;
        if let Some(new) = replace {
            *task.interrupter.write() = Some(new.interrupter());
            task.pin();
            task.set_service(new.local_answers());
            task.in_call.store(-1, Ordering::Relaxed);
            return Next::Load(Some(std::mem::replace(thread, new)));
        }
        task.in_call.store(-1, Ordering::Relaxed);
        if reloads {
            return Next::Load(None);
        }
        if let Some(st) = leave {
            return Next::Exit(st);
        }
        if native {
            return Next::Enter(Enter::Native);
        }
        if full {
            return Next::Enter(Enter::Full);
        }
        let restart = match set_result(&mut **thread, result) {
            None if !task.signal_pending() => return Next::Enter(Enter::Return),
            r => r,
        };
        match deliver::signals(task, &mut **thread, restart, None).await {
            Flow::Exit(st) => return Next::Exit(st),
            Flow::Handler => return Next::Enter(Enter::Full),
            Flow::Resume => match restart {
                None => return Next::Enter(Enter::Return),
                // Nothing ran in the guest: the call is made again.
                Some(Restart::Block) => nr = libc::SYS_restart_syscall as u64,
                Some(_) => {}
            },
        }
    }
}

/// Stores a result in `rax`; returns the restart rule of an interrupted call.
fn set_result(thread: &mut dyn GuestThread, result: SysResult) -> Option<Restart> {
    let (rax, restart) = match result {
        Ok(v) => (v, None),
        Err(SysError::Errno(e)) => ((-(e as i32 as i64)) as u64, None),
        Err(SysError::Restart(r)) => ((-(Errno::EINTR as i32 as i64)) as u64, Some(r)),
    };
    thread.regs_mut().rax = rax;
    restart
}

/// Turns a processor exception into a signal.
async fn fault(task: &Arc<Task>, thread: &mut dyn GuestThread, f: Fault) -> Flow {
    if crate::mm::stack::grows(task, thread, f).await {
        return Flow::Resume;
    }
    // Code 128 (SI_KERNEL) carries no address.
    let info = SigInfo { signo: f.signal, errno: 0, code: f.code, fields: SigFields::Fault { addr: f.addr } };
    log::debug!("[{}] signal {} at {:#x}, address {:#x}", task.tid(), f.signal, thread.regs().rip, f.addr);
    super::send::force(task, info);
    thread.regs_mut().orig_rax = u64::MAX;
    deliver::signals(task, thread, None, Some(f)).await
}

/// restart_syscall(2): resumes the interrupted wait of the task.
pub async fn restart_syscall(cx: &mut Ctx<'_>) -> SysResult {
    let block = *cx.task.restart_block.lock();
    match block {
        Some(RestartBlock::Nanosleep { deadline_ns, clock, remain }) => {
            crate::syscalls::time::nanosleep_restart(cx, deadline_ns, clock, remain).await
        }
        Some(RestartBlock::Poll { fds, nfds, deadline_ns }) => {
            crate::syscalls::poll::do_poll(cx, fds, nfds, deadline_ns).await
        }
        None => Err(Errno::EINTR.into()),
    }
}
