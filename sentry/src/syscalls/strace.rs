//! `--strace`: one line per call, in the format of strace(1): task, time, name, arguments, result, duration.
//!
//! ```text
//! [1] 0.003206 openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3 <0.000038>
//! ```
//!
//! A call that waits is printed at once as `name(… <unfinished ...>`, and again when it ends. Signals and
//! exits of tasks have lines of their own. [`calls`] lists the kinds of the arguments, [`structs`] and
//! [`sockets`] print the data that they point to, [`flags`] holds the names, [`show`] formats each kind.
//!
//! Memory that a call fills is read after the call has ended; another guest thread may have changed it since.

mod calls;
mod flags;
mod show;
mod sockets;
mod structs;

use super::{arg, dispatch, Ctx};
use crate::error::{Errno, SysError, SysResult};
use crate::kernel::signal::{SigFields, SigInfo};
use crate::kernel::Task;
pub use calls::name;
use show::{put, Kind, View};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::future::{poll_fn, Future as _};
use std::pin::pin;
use std::sync::atomic::Ordering;

/// A call being traced.
struct Line {
    name: Cow<'static, str>,
    args: [u64; 6],
    kinds: Option<&'static [Kind]>,
    /// The text of the arguments printed before the call was made.
    known: String,
    /// Number of those arguments.
    known_args: usize,
    started_ns: u64,
}

/// As [`dispatch`], and prints a line for the call.
pub async fn traced(cx: &mut Ctx<'_>) -> SysResult {
    let task = cx.task.clone();
    let line = Line::begin(cx);
    // These calls do not return.
    if [libc::SYS_exit, libc::SYS_exit_group].contains(&(cx.nr as i64)) {
        print(&task, line.started_ns, &format!("{}({}) = ?", line.name, line.known));
        return dispatch(cx).await;
    }
    let mut unfinished = false;
    let result = {
        let mut call = pin!(dispatch(cx));
        poll_fn(|cx| {
            let poll = call.as_mut().poll(cx);
            // Only a wait for other tasks is printed as unfinished, not one for an operation of the stub.
            if poll.is_pending() && !unfinished && task.sleeping.load(Ordering::Relaxed) {
                unfinished = true;
                print(&task, line.started_ns, &format!("{}({} <unfinished ...>", line.name, line.known));
            }
            poll
        })
        .await
    };
    line.end(cx, &task, &result, unfinished);
    result
}

impl Line {
    fn begin(cx: &Ctx<'_>) -> Line {
        let name = calls::name(cx.nr);
        let mut line = Line {
            args: cx.args,
            kinds: calls::arguments(&name),
            name,
            known: String::new(),
            known_args: 0,
            started_ns: platform::executor::now_ns(),
        };
        let view = View { mem: cx.mem(), args: cx.args, result: 0, staged: None };
        let mut known = String::new();
        match line.kinds {
            Some(kinds) => {
                line.known_args = kinds.iter().position(|k| k.is_out(&view)).unwrap_or(kinds.len());
                line.write(&view, 0..line.known_args, false, &mut known);
            }
            None => {
                let shown: Vec<String> = match super::entry(cx.nr) {
                    Some(e) => e.args.iter().zip(cx.args).map(|((_, how), v)| arg::show(*how, v, &view.mem)).collect(),
                    None => cx.args.iter().map(|v| format!("{v:#x}")).collect(),
                };
                known = shown.join(", ");
            }
        }
        line.known = known;
        line
    }

    /// Writes the present arguments of `range`, with commas between them and before all but the first
    /// argument.
    fn write(&self, view: &View<'_>, range: std::ops::Range<usize>, done: bool, out: &mut String) {
        for (i, kind) in self.kinds.unwrap_or(&[]).iter().enumerate() {
            if range.contains(&i) && kind.is_there(view) {
                if i > 0 {
                    out.push_str(", ");
                }
                kind.write(view, view.arg(i), done, out);
            }
        }
    }

    fn end(self, cx: &Ctx<'_>, task: &Task, result: &SysResult, unfinished: bool) {
        // A result that the stub will not be able to store makes the call fail.
        let fault = Err(SysError::Errno(Errno::EFAULT));
        let result = if result.is_ok() && !cx.can_store(&cx.staged.ranges()) { &fault } else { result };
        let value = result.as_ref().ok().copied();
        let view = View { mem: cx.mem(), args: self.args, result: value.unwrap_or(0), staged: Some(&cx.staged) };
        let name = &self.name;
        let mut text = if unfinished { format!("<... {name} resumed>") } else { format!("{name}({}", self.known) };
        self.write(&view, self.known_args..usize::MAX, value.is_some(), &mut text);
        text.push_str(") = ");
        match result {
            Ok(_) => calls::result(name, &view, &mut text),
            Err(SysError::Errno(e)) => put!(text, "-1 {e:?} ({})", message(*e)),
            Err(SysError::Restart(k)) => {
                put!(
                    text,
                    "? {} (interrupted by a signal)",
                    match k {
                        crate::error::Restart::Sys => "ERESTARTSYS",
                        crate::error::Restart::NoIntr => "ERESTARTNOINTR",
                        crate::error::Restart::NoHand => "ERESTARTNOHAND",
                        crate::error::Restart::Block => "ERESTART_RESTARTBLOCK",
                    }
                );
            }
        }
        let now = platform::executor::now_ns();
        let took = now.saturating_sub(self.started_ns) / 1000;
        put!(text, " <{}.{:06}>", took / 1_000_000, took % 1_000_000);
        print(task, if unfinished { now } else { self.started_ns }, &text);
    }
}

/// The C library's text for an error.
fn message(e: Errno) -> String {
    let text = std::io::Error::from(e).to_string();
    text.split(" (os error").next().unwrap_or(&text).to_string()
}

/// Prints a signal that the task takes.
pub fn signal(task: &Task, info: &SigInfo) {
    if !task.kernel.options.strace {
        return;
    }
    let name = flags::signal(info.signo as u64);
    let mut text = format!("--- {name} {{si_signo={name}, si_code={}", flags::si_code(info.signo, info.code));
    match info.fields {
        SigFields::Kill { pid, uid } => put!(text, ", si_pid={pid}, si_uid={uid}"),
        SigFields::Queue { pid, uid, value } => put!(text, ", si_pid={pid}, si_uid={uid}, si_value={value:#x}"),
        SigFields::Timer { id, overrun, value } => {
            put!(text, ", si_timerid={id:#x}, si_overrun={overrun}, si_value={value:#x}")
        }
        SigFields::Child { pid, uid, status, .. } => {
            put!(text, ", si_pid={pid}, si_uid={uid}, si_status=");
            text.push_str(&if info.code == 1 { status.to_string() } else { flags::signal(status as u64) });
        }
        SigFields::Fault { addr } => put!(text, ", si_addr={addr:#x}"),
        _ => {}
    }
    text.push_str("} ---");
    print(task, platform::executor::now_ns(), &text);
}

/// Prints the exit of a task, with its `wait4` status.
pub fn ended(task: &Task, status: i32) {
    if !task.kernel.options.strace {
        return;
    }
    let text = if libc::WIFSIGNALED(status) {
        format!("+++ killed by {} +++", flags::signal(libc::WTERMSIG(status) as u64))
    } else {
        format!("+++ exited with {} +++", libc::WEXITSTATUS(status))
    };
    print(task, platform::executor::now_ns(), &text);
}

fn print(task: &Task, at_ns: u64, text: &str) {
    let t = at_ns.saturating_sub(task.kernel.boot_monotonic_ns) / 1000;
    let line = format!("[{}] {}.{:06} {text}\n", task.tid(), t / 1_000_000, t % 1_000_000);
    let mut out = task.kernel.strace_out.lock();
    // A failure to write the trace must not stop the guest.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}
