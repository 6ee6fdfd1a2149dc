//! The cases of `guest-tests` in each of the other modes (calls not patched, hand-off by sleeping, by spinning), all in
//! one sandbox per mode. A sandbox for each case, as in `tests/syscalls.rs`, would take three times as long, and cases
//! that share a sandbox find other defects.
//!
//! The run without patching writes a trace. The trace shows whether each row of the table of system calls was
//! exercised: that it succeeded, that it failed, and, if it can wait, that its wait was interrupted.

mod common;

use common::{run_within, RUNSC};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Runs every case in one sandbox, each in a process of its own.
fn all_cases(options: &[&str]) {
    let mut boxed = Command::new(RUNSC);
    boxed.stdin(Stdio::null()).arg("run").args(options).arg("--").arg(common::guest_tests()).arg("all");
    if let Ok(only) = std::env::var("GUEST_TESTS_ONLY") {
        boxed.arg(only);
    }
    let ended = run_within(&mut boxed, Duration::from_secs(300));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&ended.out), text(&ended.err));
    assert!(ended.status.success(), "with {options:?}: {}\n{out}\n{err}", ended.status);
}

#[test]
fn hand_off_by_sleeping() {
    all_cases(&["--hand-off", "sleep"]);
}

#[test]
fn hand_off_by_spinning() {
    all_cases(&["--hand-off", "spin"]);
}

/// How often one call succeeded, failed and was interrupted.
#[derive(Default)]
struct Seen {
    succeeded: usize,
    failed: usize,
    interrupted: usize,
}

/// Counts the results in a trace.
fn counts(trace: &Path) -> BTreeMap<String, Seen> {
    let mut all: BTreeMap<String, Seen> = BTreeMap::new();
    let text = std::fs::read(trace).expect("the trace");
    for line in String::from_utf8_lossy(&text).lines() {
        // Lines look like `[pid] time name(arguments) = result` or `[pid] time <... name resumed>arguments) = result`.
        let Some(rest) = line.splitn(3, ' ').nth(2) else { continue };
        let name = rest.strip_prefix("<... ").unwrap_or(rest).split(['(', ' ']).next().unwrap_or("");
        let Some((_, result)) = rest.rsplit_once(" = ") else { continue };
        let seen = all.entry(name.to_owned()).or_default();
        if result.contains("interrupted by a signal") || result.starts_with("-1 EINTR") {
            seen.interrupted += 1;
        } else if result.starts_with("-1 ") {
            seen.failed += 1;
        } else {
            seen.succeeded += 1;
        }
    }
    all
}

/// Names and notes of the rows in the table.
fn table() -> Vec<(String, String)> {
    let ended = run_within(Command::new(RUNSC).args(["syscalls", "--json"]), Duration::from_secs(20));
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&ended.out).expect("the table");
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().expect("a string").to_owned();
    rows.iter().map(|r| (text(r, "name"), text(r, "note"))).collect()
}

/// Calls that cannot fail. (A row for a call that always fails says so in its note.)
const NEVER_FAIL: &[&str] = &[
    // Fails only when interrupted.
    "pause",
    "restart_syscall",
    "alarm",
    "exit",
    "exit_group",
    "getegid",
    "geteuid",
    "getgid",
    "getpgrp",
    "getpid",
    "getppid",
    "gettid",
    "getuid",
    "munlockall",
    "personality",
    "sched_yield",
    "set_tid_address",
    "setfsgid",
    "setfsuid",
    "sync",
    "umask",
    // Refuses an address without an error.
    "brk",
];

/// Calls that only wait for a signal.
const ONLY_INTERRUPTED: &[&str] = &["pause", "rt_sigsuspend"];

/// Rows that wait only while another thread of the process is in execve(2); no case can rely on hitting that.
const WAIT_FOR_EXECVE: [&str; 3] = ["execve", "execveat", "seccomp"];
/// Rows that can wait for another process, a signal, or time.
const CAN_BE_INTERRUPTED: &[&str] = &[
    "read",
    "write",
    "readv",
    "writev",
    "preadv2",
    "pwritev2",
    "sendfile",
    "open",
    "openat",
    "openat2",
    "creat",
    "fcntl",
    "ioctl",
    "flock",
    "poll",
    "select",
    "pselect6",
    "ppoll",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "pause",
    "wait4",
    "waitid",
    "rt_sigtimedwait",
    "rt_sigsuspend",
    "futex",
    "futex_waitv",
    "io_getevents",
    "io_pgetevents",
    "nanosleep",
    "clock_nanosleep",
    "semop",
    "semtimedop",
    "msgsnd",
    "msgrcv",
    "splice",
    "tee",
    "vmsplice",
    "connect",
    "accept",
    "accept4",
    "sendto",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "recvmmsg",
    "sendmmsg",
    "mq_timedsend",
    "mq_timedreceive",
    "truncate",
    "restart_syscall",
];

#[test]
fn every_row_of_the_table_without_patching() {
    let dir = std::env::temp_dir().join(format!("runsc-rs-coverage-{}", std::process::id()));
    std::fs::create_dir(&dir).expect("scratch");
    let trace = dir.join("trace");
    let strace = format!("--strace={}", trace.display());
    let done = std::panic::catch_unwind(|| {
        all_cases(&["--patch", "off", &strace]);
        counts(&trace)
    });
    let _ = std::fs::remove_dir_all(&dir);
    let seen = done.unwrap_or_else(|e| std::panic::resume_unwind(e));
    let mut wrong = Vec::new();
    let rows = table();
    for (name, note) in &rows {
        let (name, none) = (name.as_str(), Seen::default());
        let s = seen.get(name).unwrap_or(&none);
        let mut need = |holds: bool, what: &str| {
            if !holds {
                wrong.push(format!("{} {what}", name));
            }
        };
        need(s.succeeded + s.failed + s.interrupted > 0, "is never called");
        match note.starts_with("always ") || ONLY_INTERRUPTED.contains(&name) {
            false => need(s.succeeded > 0, "is never seen to succeed"),
            true => need(s.succeeded == 0, "succeeds, and is said never to"),
        }
        match NEVER_FAIL.contains(&name) {
            false => need(s.failed > 0, "is never seen to fail"),
            true => need(s.failed == 0, "is seen to fail, and is said never to"),
        }
        match CAN_BE_INTERRUPTED.contains(&name) {
            true => need(s.interrupted > 0, "is never seen to be interrupted"),
            false if WAIT_FOR_EXECVE.contains(&name) => {}
            false => need(s.interrupted == 0, "is interrupted, and is said not to wait"),
        }
    }
    for name in [NEVER_FAIL, ONLY_INTERRUPTED, CAN_BE_INTERRUPTED].concat() {
        assert!(rows.iter().any(|r| r.0 == name), "{name} is not in the table");
    }
    assert!(wrong.is_empty(), "{} rows are not exercised enough:\n{}", wrong.len(), wrong.join("\n"));
}
