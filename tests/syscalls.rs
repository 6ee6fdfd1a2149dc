//! The cases of `guest-tests`, one test per group: each case first on the host (if bare Linux fails it, the case is
//! wrong), then in a sandbox. `GUEST_TESTS_HOST_ONLY=1` leaves the sandbox out, `GUEST_TESTS_ONLY=group/case` picks some.

mod common;

use common::guest_tests;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs a command to its end, at most `limit` long; gives what it said, or what went wrong.
fn run(mut c: Command, limit: Duration) -> Result<String, String> {
    let mut child =
        c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(|e| e.to_string())?;
    let mut err = child.stderr.take().expect("piped");
    let reader = std::thread::spawn(move || {
        let mut s = Vec::new();
        let _ = err.read_to_end(&mut s);
        String::from_utf8_lossy(&s).into_owned()
    });
    let start = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(s) => break s.to_string(),
            None if start.elapsed() > limit => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no end after {limit:?}"));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let said = reader.join().unwrap_or_default();
    if status == "exit status: 0" {
        return Ok(said);
    }
    Err(format!("{status}: {}", said.trim_end()))
}

fn group(name: &str) {
    let guest = guest_tests();
    let list = Command::new(&guest).arg("list").output().expect("guest-tests list");
    let list = String::from_utf8(list.stdout).expect("names");
    let only = std::env::var("GUEST_TESTS_ONLY").unwrap_or_default();
    let host_only = std::env::var_os("GUEST_TESTS_HOST_ONLY").is_some();
    let prefix = format!("{name}/");
    let mut failed = Vec::new();
    let mut ran = 0;
    for case in list.lines().filter(|c| c.starts_with(&prefix) && c.starts_with(&only)) {
        ran += 1;
        let mut host = Command::new(&guest);
        host.args(["run", case]);
        match run(host, Duration::from_secs(20)) {
            Ok(said) if said.contains("left out: needs root") => common::left_out(&format!("system calls: {case}")),
            Ok(_) => {}
            Err(e) => {
                failed.push(format!("{case} is wrong, bare Linux fails it: {e}"));
                continue;
            }
        }
        if host_only {
            continue;
        }
        let mut boxed = Command::new(env!("CARGO_BIN_EXE_runsc-rs"));
        boxed.args(["run", "--"]).arg(&guest).args(["run", case]);
        if let Err(e) = run(boxed, Duration::from_secs(20)) {
            failed.push(format!("{case} fails in the sandbox: {e}"));
        }
    }
    assert!(ran > 0 || !only.is_empty(), "no cases in group {name}");
    assert!(failed.is_empty(), "{} of {ran} failed:\n{}", failed.len(), failed.join("\n"));
}

macro_rules! groups {
    ($($name:ident)*) => {
        $(#[test] fn $name() { group(stringify!($name)) })*

        #[test]
        fn no_group_is_left_out() {
            let list = Command::new(guest_tests()).arg("list").output().expect("guest-tests list");
            let mut there: Vec<_> = String::from_utf8(list.stdout).expect("names").lines().map(group_of).collect();
            there.dedup();
            there.sort();
            let mut run = vec![$(stringify!($name).to_owned()),*];
            run.sort();
            assert_eq!(there, run);
        }
    };
}

fn group_of(case: &str) -> String {
    case.split('/').next().unwrap_or_default().to_owned()
}

groups! {
    files fileio fileattr dirs links rename perms mounts xattr acl locks inotify fasync aio
    mmap mprotect mremap memshare
    fork wait clone exec signals signals_extra sigframe_fault sigproc threads rights privilege rseq futex pidfd
    pidns userns jobs pty ids
    patched sysv mqueue system shortage
    inet tcp udp unix netlink splice
    namespaces propagation pivot newmounts overlays
    legacy filecalls proccalls timecalls ipccalls polls interrupts
}
