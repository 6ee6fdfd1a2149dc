//! Sandboxes under low host limits: their programs see calls fail, and the sandbox continues.

mod common;

use common::{command_line, descendants, end_within, guest_tests, run_within, Scratch, RUNSC};
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Runs a case of `guest-tests` in a sandbox under a limit in the form of ulimit(1).
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

/// Guest processes count for the host user; half of the user's limit is left to others.
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
    // In kilobytes: 8 GiB.
    case("-v 8388608", "shortage/sparse_files");
}

/// A guest's use of the Sentry's heap stays below the Sentry's limit.
#[test]
fn a_guest_does_not_use_up_the_address_space() {
    for kib in ["-v 1600000", "-v 2000000"] {
        case(kib, "shortage/kernel_memory");
    }
}

/// A process that has used up the caller's limit of processor time is killed, and the sandbox continues.
#[test]
fn processor_time_is_limited_per_process() {
    let script = "/bin/sh -c 'while :; do :; done'; echo $?; /bin/sh -c 'while :; do :; done'; echo $?";
    let root = nix::unistd::geteuid().is_root();
    let all = [&[][..], &["--reuid", "54321", "--regid", "54321", "--clear-groups"]];
    for ids in all.iter().take(1 + usize::from(root)) {
        let mut command = Command::new("/bin/bash");
        command.args(["-c", "ulimit -t 2 && exec \"$@\"", "bash"]);
        if !ids.is_empty() {
            command.arg("setpriv").args(*ids);
        }
        let ended = run_within(command.args([RUNSC, "run", "--", "/bin/sh", "-c", script]), LIMIT);
        let (out, err) = (String::from_utf8_lossy(&ended.out), String::from_utf8_lossy(&ended.err));
        assert_eq!(out, "137\n137\n", "{ids:?}: {err}");
    }
}

/// The Sentry's peak memory in MiB while a case runs.
fn memory_of_sentry(name: &str) -> u64 {
    most_memory(&["run", name], "VmHWM:")
}

/// The maximum, in MiB, of a field of the Sentry's status while a command of `guest-tests` runs.
fn most_memory(args: &[&str], field: &str) -> u64 {
    let mut command = Command::new(RUNSC);
    command.args(["run", "--"]).arg(guest_tests()).args(args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        for pid in descendants(child.id() as i32) {
            if command_line(pid).contains("sentry") {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let peak = status.lines().find_map(|l| l.strip_prefix(field));
                let kib = peak.and_then(|p| p.trim().trim_end_matches(" kB").parse::<u64>().ok());
                most = most.max(kib.unwrap_or(0) / 1024);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = end_within(child, LIMIT);
    assert!(ended.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ended.err));
    assert!(most > 0, "the Sentry was not seen");
    most
}

#[test]
fn reads_with_a_time_limit_leave_nothing_behind() {
    let mib = memory_of_sentry("shortage/timed_reads");
    assert!(mib < 20, "the Sentry took {mib} MiB");
}

#[test]
fn kills_of_a_process_that_does_not_end_leave_nothing_behind() {
    let mib = most_memory(&["hostile", "insistent"], "RssAnon:");
    assert!(mib < 20, "the Sentry took {mib} MiB");
}

#[test]
fn answers_that_are_never_taken_are_not_kept_twice() {
    let mib = most_memory(&["hostile", "untaken"], "RssAnon:");
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
    assert!(text.contains("similar lines are suppressed"), "{text}");
}
