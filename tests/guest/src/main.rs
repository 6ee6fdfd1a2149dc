//! Tests of the promises that a Linux kernel makes to programs. The same binary runs on the host and inside the
//! sandbox: a case that fails on bare Linux is wrong, a case that fails only in the sandbox is a defect of the sandbox.
//!
//! `guest-tests list` prints one case a line as `group/name`; `guest-tests run group/name` runs one in this process
//! (exit 0: passed; otherwise a message is on stderr); `guest-tests all [PREFIX…]` runs each matching case in a process
//! of its own and prints a tally. `guest-tests helper …` is executed by the cases themselves. `guest-tests fuzz NAME
//! SEED SECONDS` generates random hostile input (sandbox only); `guest-tests hostile NAME …` are the attacks of the
//! escape suite.
//!
//! # `unsafe`
//! The purpose of this crate is to make raw system calls, wrong ones included: bad pointers, racing memory, hand-made
//! stacks. Marking each of them would carry no information, so cases are `unsafe fn` and their bodies are one unsafe
//! context. None of this code is part of the runtime.
#![allow(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
// Some cases need endless recursion, invalid pointers and ignored results.
#![allow(unconditional_recursion, dropping_copy_types, clippy::manual_dangling_ptr)]

/// Pairs each function of a list with its name.
macro_rules! cases {
    ($($f:ident),* $(,)?) => { &[$((stringify!($f), $f as unsafe fn())),*] };
}

mod calls;
mod fs;
mod fuzz;
mod helper;
mod hostile;
mod ipc;
mod mm;
mod net;
mod ns;
mod proc;
mod sys;
mod t;

use std::io::Write;
use std::process::exit;

/// A case: a function that returns on success and panics on failure.
pub type Case = (&'static str, unsafe fn());

fn groups() -> Vec<(&'static str, &'static [Case])> {
    [calls::GROUPS, fs::GROUPS, mm::GROUPS, proc::GROUPS, ipc::GROUPS, net::GROUPS, ns::GROUPS, sys::GROUPS].concat()
}

fn find(name: &str) -> Option<unsafe fn()> {
    let (group, case) = name.split_once('/')?;
    let (_, cases) = groups().into_iter().find(|(g, _)| *g == group)?;
    cases.iter().find(|(n, _)| *n == case).map(|(_, f)| *f)
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("list") => {
            for (g, cases) in groups() {
                for (n, _) in cases {
                    println!("{g}/{n}");
                }
            }
        }
        Some("run") => {
            let Some(f) = args.get(2).and_then(|n| find(n)) else {
                eprintln!("no such case: {:?}", args.get(2));
                exit(2)
            };
            t::prepare();
            // SAFETY: see the crate's note.
            unsafe { f() }
        }
        Some("all") => exit(all(&args[2..])),
        Some("fuzz") => exit(fuzz::main(&args[2..])),
        Some("helper") => exit(helper::main(&args[2..])),
        Some("hostile") => exit(hostile::main(&args[2..])),
        _ => {
            eprintln!(
                "usage: guest-tests list | run GROUP/CASE | all [PREFIX…] | fuzz NAME SEED SECONDS | helper … \
                 | hostile NAME"
            );
            exit(2)
        }
    }
}

/// Runs every case whose name starts with one of `prefixes`, each in its own process, and prints the results.
fn all(prefixes: &[String]) -> i32 {
    let exe = std::env::current_exe().unwrap();
    let (mut passed, mut failed) = (0, Vec::new());
    for (g, cases) in groups() {
        for (n, _) in cases {
            let name = format!("{g}/{n}");
            if !prefixes.is_empty() && !prefixes.iter().any(|p| name.starts_with(p.as_str())) {
                continue;
            }
            let mut child = match std::process::Command::new(&exe).args(["run", &name]).spawn() {
                Ok(c) => c,
                Err(e) => {
                    println!("FAIL {name}: cannot start: {e}");
                    failed.push(name);
                    continue;
                }
            };
            let start = std::time::Instant::now();
            let status = loop {
                match child.try_wait() {
                    Ok(Some(s)) => break s.to_string(),
                    Ok(None) if start.elapsed().as_secs() >= 10 => {
                        let _ = child.kill();
                        let _ = child.wait();
                        break "timed out".into();
                    }
                    Ok(None) => std::thread::sleep(std::time::Duration::from_millis(2)),
                    Err(e) => break format!("wait: {e}"),
                }
            };
            if status == "exit status: 0" {
                passed += 1;
            } else {
                println!("FAIL {name}: {status}");
                failed.push(name);
            }
            let _ = std::io::stdout().flush();
        }
    }
    println!("{passed} passed, {} failed", failed.len());
    i32::from(!failed.is_empty())
}
