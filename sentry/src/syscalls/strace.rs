//! `--strace`: one line a call, as strace(1) prints them: pid, time, name, arguments, result.

use super::arg;
use crate::error::{SysError, SysResult};
use crate::kernel::Task;
use platform::Regs;
use std::io::Write;

/// The part of a line that is known when the call is made.
pub struct Line {
    text: String,
    started_ns: u64,
}

/// Describes a call that is about to be handled.
pub fn enter(task: &Task, nr: u64, r: &Regs) -> Line {
    let args = [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9];
    let mem = task.mem();
    let text = match super::entry(nr) {
        Some(e) => {
            let list: Vec<String> = e.args.iter().zip(args).map(|((_, how), v)| arg::show(*how, v, &mem)).collect();
            format!("{}({})", e.name, list.join(", "))
        }
        None => format!("syscall_{nr}({:#x}, {:#x}, {:#x})", args[0], args[1], args[2]),
    };
    let line = Line { text, started_ns: platform::executor::now_ns() };
    // Calls from which nothing returns are shown at once.
    if nr == libc::SYS_exit as u64 || nr == libc::SYS_exit_group as u64 {
        print(task, &line, "?");
    }
    line
}

/// Completes the line with the result.
pub fn leave(task: &Task, line: Line, result: &SysResult) {
    if line.text.starts_with("exit") {
        return;
    }
    let r = match result {
        Ok(v) if *v > 0xffff_ffff => format!("{v:#x}"),
        Ok(v) => (*v as i64).to_string(),
        Err(SysError::Errno(e)) => format!("-1 {e:?} ({})", e.desc()),
        Err(SysError::Restart(k)) => format!("? ERESTART{}", format!("{k:?}").to_uppercase()),
    };
    print(task, &line, &r);
}

fn print(task: &Task, line: &Line, result: &str) {
    let t = line.started_ns.saturating_sub(task.kernel.boot_monotonic_ns);
    let took = platform::executor::now_ns().saturating_sub(line.started_ns);
    let mut out = task.kernel.strace_out.lock();
    // A trace that cannot be written must not stop the guest.
    let _ = writeln!(
        out,
        "[{}] {}.{:06} {} = {result} <{}.{:06}>",
        task.tid(),
        t / 1_000_000_000,
        t / 1000 % 1_000_000,
        line.text,
        took / 1_000_000_000,
        took / 1000 % 1_000_000
    );
    let _ = out.flush();
}
