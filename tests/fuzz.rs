//! Fuzzers: random hostile input (`guest-tests fuzz …`) in a sandbox, which must survive without complaints.
//!
//! Each runs for `FUZZ_SECONDS` (5 by default; CI sets 60) with the seed `FUZZ_SEED` (by default from the clock). A
//! failure prints the seed. `gofer/tests/fuzz.rs` fuzzes the Gofer's protocol.

mod common;

use common::{guest_tests, run_within, RUNSC};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn fuzz(name: &str, options: &[&str]) {
    let seconds = setting("FUZZ_SECONDS").unwrap_or(5);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = setting("FUZZ_SEED").unwrap_or(now.as_secs());
    let mut command = Command::new(RUNSC);
    command.arg("run").args(options).arg("--").arg(guest_tests());
    command.args(["fuzz", name, &seed.to_string(), &seconds.to_string()]).stdin(Stdio::null());
    let ended = run_within(&mut command, Duration::from_secs(2 * seconds + 60));
    let (out, err) = (String::from_utf8_lossy(&ended.out), String::from_utf8_lossy(&ended.err));
    assert_eq!(ended.status.to_string(), "exit status: 0", "seed {seed}: {err}");
    assert!(out.ends_with(" rounds\n") && out != "0 rounds\n", "seed {seed}: {out}");
    // Stubs that break the rules are killed with a warning; any other message is a defect.
    let expected = |l: &str| l.contains("; killed") || l.contains("lines like the next were suppressed");
    let odd: Vec<_> = err.lines().filter(|l| !expected(l)).collect();
    assert!(odd.is_empty(), "seed {seed}: {odd:?}");
    println!("{name}: seed {seed}, {out}");
}

#[test]
fn calls() {
    fuzz("calls", &[]);
}

#[test]
fn calls_without_patching() {
    fuzz("calls", &["--patch", "off", "--hand-off", "sleep"]);
}

#[test]
fn calls_with_many_workers() {
    fuzz("calls", &["--hand-off", "sleep", "--workers", "8"]);
}

#[test]
fn hand_off_area() {
    fuzz("cells", &[]);
}

#[test]
fn programs() {
    fuzz("programs", &[]);
}

#[test]
fn sockets() {
    fuzz("sockets", &[]);
}

#[test]
fn terminals() {
    fuzz("terminals", &[]);
}
