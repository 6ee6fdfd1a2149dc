//! A sandbox that the host gives little of what it counts for a process. Its programs see calls that fail; the sandbox lives.

mod common;

use common::{guest_tests, run_within, RUNSC};
use std::process::Command;
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

#[test]
fn little_address_space_is_enough() {
    // Kilobytes: 8 GiB.
    case("-v 8388608", "shortage/sparse_files");
}
