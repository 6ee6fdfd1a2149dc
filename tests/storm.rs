//! Random system calls with nearly right arguments, from many processes and threads: the Sentry must outlive them all, and say
//! nothing. `guest-tests storm` makes them; `STORM="SEED ROUNDS"` looks for more than the few that are made here each time.

mod common;

use common::{guest_tests, run_within, RUNSC};
use std::process::{Command, Stdio};
use std::time::Duration;

fn storm(options: &[&str]) {
    let chosen = std::env::var("STORM").unwrap_or_else(|_| "100 25".into());
    let (seed, rounds) = chosen.split_once(' ').expect("STORM=\"SEED ROUNDS\"");
    let mut command = Command::new(RUNSC);
    command.arg("run").args(options).arg("--").arg(guest_tests()).args(["storm", seed, rounds]).stdin(Stdio::null());
    let ended = run_within(&mut command, Duration::from_secs(600));
    let (out, err) = (String::from_utf8_lossy(&ended.out), String::from_utf8_lossy(&ended.err));
    assert_eq!(ended.status.to_string(), "exit status: 0", "{err}");
    assert_eq!((&*out, &*err), (&*format!("{rounds} rounds\n"), ""));
}

#[test]
fn survived() {
    storm(&[]);
}

#[test]
fn survived_without_patching() {
    storm(&["--patch", "off", "--hand-off", "sleep"]);
}
