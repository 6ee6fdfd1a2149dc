//! A sandbox that the host gives little of what it counts for a process. Its programs see calls that fail; the sandbox lives.

mod common;

use common::{command_line, descendants, end_within, guest_tests, run_within, Scratch, RUNSC};
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Runs a case of `guest-tests` in a sandbox below a limit, given as ulimit(1) has it.
fn case(limit: &str, name: &str) {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("ulimit {limit} && exec \"$0\" run -- \"$1\" run {name}"), RUNSC]);
    let ended = run_within(command.arg(guest_tests()), LIMIT);
    let said = String::from_utf8_lossy(&ended.err);
    assert!(ended.status.success(), "{name} with {limit}: {}\n{said}", ended.status);
}

#[test]
fn files_in_memory_do_without_descriptors() {
    for name in ["cold_files", "mapped_files", "file_against_model", "sparse_files"] {
        case("-n 256", &format!("shortage/{name}"));
    }
}

#[test]
fn no_number_of_host_files_or_processes_ends_the_sandbox() {
    for few in ["-n 256", "-n 1024"] {
        case(few, "shortage/host_files");
        case(few, "shortage/processes");
    }
}

/// A guest's processes are the host user's: half of what that may have is left to others.
#[test]
fn processes_are_left_for_others() {
    let script = "i=0; while [ $i -lt 400 ]; do sleep 20 & i=$((i + 1)); echo $i; done";
    let mut command = Command::new("/bin/bash");
    command.args(["-c", "ulimit -u 300 && exec \"$0\" run -- /bin/sh -c \"$1\"", RUNSC, script]);
    let ended = run_within(&mut command, LIMIT);
    let out = String::from_utf8_lossy(&ended.out);
    let most: u32 = out.lines().last().unwrap_or_default().parse().unwrap();
    assert!((50..150).contains(&most), "{most} processes");
    assert!(String::from_utf8_lossy(&ended.err).contains("fork"), "{:?}", ended.err);
}

#[test]
fn little_address_space_is_enough() {
    // Kilobytes: 8 GiB.
    case("-v 8388608", "shortage/sparse_files");
}

/// What a guest has in the Sentry's heap is bounded by what the Sentry can have.
#[test]
fn a_guest_does_not_use_up_the_address_space() {
    for kib in ["-v 1600000", "-v 2000000"] {
        case(kib, "shortage/kernel_memory");
    }
}

/// Most memory, in MiB, that the Sentry had while a case ran.
fn memory_of_sentry(name: &str) -> u64 {
    let mut command = Command::new(RUNSC);
    command.args(["run", "--"]).arg(guest_tests()).args(["run", name]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        for pid in descendants(child.id() as i32) {
            if command_line(pid).contains("sentry") {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
                let kib = peak.and_then(|p| p.trim().trim_end_matches(" kB").parse::<u64>().ok());
                most = most.max(kib.unwrap_or(0) / 1024);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = end_within(child, LIMIT);
    assert!(ended.status.success(), "{name}: {}", String::from_utf8_lossy(&ended.err));
    assert!(most > 0, "the Sentry was not seen");
    most
}

#[test]
fn reads_with_a_time_limit_leave_nothing_behind() {
    let mib = memory_of_sentry("shortage/timed_reads");
    assert!(mib < 20, "the Sentry took {mib} MiB");
}

#[test]
fn a_guest_does_not_fill_the_log() {
    let dir = Scratch::new("log");
    let log = format!("{}/log", dir.path());
    let mut command = Command::new(RUNSC);
    command.args(["run", "--log", &log, "--"]).arg(guest_tests()).args(["run", "shortage/logged_calls"]);
    assert!(run_within(&mut command, LIMIT).status.success());
    let text = std::fs::read_to_string(&log).unwrap();
    let lines = text.lines().filter(|l| l.contains("seccomp filter logs")).count();
    assert!((100..1000).contains(&lines), "{lines} lines");
    assert!(text.contains("more such lines are left out"), "{text}");
}
