//! Two sandboxes of one caller side by side: what one does with resources that the host counts for a user or a process
//! must not affect the other. One runs attacks, one after the other; the other's programs must all succeed.

mod common;

use common::{guest_tests, left_out, run_within, Scratch, RUNSC};
use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(180);

/// The attacks: forged posts, words and clones; very long calls; every bounded resource taken to its limit.
const ATTACKS: &[&[&str]] = &[
    &["hostile", "lies"],
    &["hostile", "litter"],
    &["hostile", "descriptors"],
    &["hostile", "cells"],
    &["hostile", "stalls"],
    &["run", "shortage/host_files"],
    &["run", "shortage/processes"],
    &["run", "shortage/mapped_files"],
    &["run", "shortage/sparse_files"],
    &["run", "shortage/pipes_of_a_user"],
    &["run", "inotify/instances_of_a_user"],
    &["fuzz", "calls", "1", "3"],
    &["fuzz", "sockets", "1", "3"],
    &["fuzz", "terminals", "1", "3"],
];

/// Starts programs, maps files, creates processes and threads, writes files.
const WORK: &str = "set -e
for i in 1 2 3 4 5 6; do
    /bin/true
    ls -l /usr/bin > /tmp/list
    (sort /tmp/list | tail -n 1 > /tmp/last) &
    wait $!
    test -s /tmp/last
    echo $i | cat | grep -q $i
done
mkdir /tmp/many
for i in 0 1 2 3 4 5 6 7 8 9; do head -c 200000 /dev/zero > /tmp/many/$i; done
test $(cat /tmp/many/* | wc -c) = 2000000
echo fine";

/// `runsc-rs run -- COMMAND…`, by this user, or as the caller.
fn sandbox(user: Option<&str>, program: &OsStr, args: &[&str]) -> Command {
    let mut command = match user {
        Some(id) => {
            let mut c = Command::new("setpriv");
            c.args(["--reuid", id, "--regid", id, "--clear-groups", RUNSC]);
            c
        }
        None => Command::new(RUNSC),
    };
    command.args(["run", "--"]).arg(program).args(args).stdin(Stdio::null()).current_dir("/");
    command
}

fn beside(user: Option<&str>) {
    let dir = Scratch::new("neighbours");
    let attacker = dir.0.join("guest-tests");
    std::fs::copy(guest_tests(), &attacker).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let mut runs = 0;
            while !over.load(SeqCst) || runs == 0 {
                let ended = run_within(&mut sandbox(user, OsStr::new("sh"), &["-c", WORK]), LIMIT);
                let (out, err) = (String::from_utf8_lossy(&ended.out), String::from_utf8_lossy(&ended.err));
                assert!(ended.status.success() && out == "fine\n" && err.is_empty(), "run {runs}: {out}{err}");
                runs += 1;
            }
            runs
        });
        for attack in ATTACKS {
            // Other tests check how an attack ends; here it only has to end.
            run_within(&mut sandbox(user, attacker.as_os_str(), attack), LIMIT);
            if neighbour.is_finished() {
                break;
            }
        }
        over.store(true, SeqCst);
        let runs = neighbour.join().unwrap();
        println!("{runs} runs beside {} attacks", ATTACKS.len());
    });
}

#[test]
fn of_this_caller() {
    beside(None);
}

#[test]
fn of_one_ordinary_user() {
    if !nix::unistd::geteuid().is_root() {
        return left_out("neighbours: of another user");
    }
    beside(Some("65534"));
}
