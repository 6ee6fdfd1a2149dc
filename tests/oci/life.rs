//! Create, start, state, list, ps, pause, resume, kill, wait, delete, run.

use crate::common::{kill, left_out, RUNSC};
use crate::{exit, pid_in, reaped, Host};
use std::fs;
use std::process::{Command, Stdio};

fn whole_life(host: &Host) {
    let bundle = host.bundle("bundle", &["sleep", "1000"], |_| ());
    let (bundle, pid_file) = (bundle.to_str().unwrap(), host.path("state/pid"));
    host.good(&["create", "--bundle", bundle, "--pid-file", pid_file.to_str().unwrap(), "box"]);
    let state = host.json(&["state", "box"]);
    let pid = pid_in(&pid_file);
    fs::remove_file(&pid_file).unwrap();
    assert_eq!((state["id"].as_str(), state["status"].as_str()), (Some("box"), Some("created")));
    assert_eq!((state["pid"].as_i64(), state["bundle"].as_str()), (Some(pid.into()), Some(bundle)));
    host.bad(&["create", "--bundle", bundle, "box"], 1, "container with given ID already exists");
    host.bad(&["resume", "box"], 1, "container not paused");
    host.good(&["start", "box"]);
    host.bad(&["start", "box"], 1, "cannot start an already running container");
    assert_eq!(host.status("box"), "running");
    assert_eq!(host.json(&["ps", "-f", "json", "box"]).as_array().unwrap().len(), 1);
    assert!(host.good(&["ps", "box"]).contains("sleep 1000"));
    let list = host.good(&["list"]);
    assert!(list.starts_with("ID ") && list.contains("running"), "{list}");
    assert_eq!(host.good(&["list", "-q"]), "box\n");
    assert_eq!(host.json(&["list", "-f", "json"])[0]["pid"], pid);

    host.good(&["pause", "box"]);
    assert_eq!(host.status("box"), "paused");
    host.bad(&["pause", "box"], 1, "container not running");
    host.bad(&["exec", "box", "true"], 255, "cannot exec in a paused container");
    host.good(&["resume", "box"]);
    host.good(&["exec", "box", "true"]);

    host.bad(&["delete", "box"], 1, "cannot delete container box that is not stopped: running");
    host.bad(&["kill", "box", "NOTHING"], 1, "unknown signal");
    host.bad(&["kill", "box", "99"], 1, "unable to signal init: invalid argument");
    host.good(&["kill", "box", "KILL"]);
    assert_eq!(reaped(pid), libc::SIGKILL);
    assert_eq!(host.status("box"), "stopped");
    assert_eq!(host.good(&["wait", "box"]), "137\n");
    assert_eq!(host.json(&["state", "box"])["pid"], 0);
    host.bad(&["kill", "box"], 1, "container not running");
    host.good(&["kill", "--all", "box", "9"]);
    host.bad(&["exec", "box", "true"], 255, "cannot exec in a stopped container");
    host.bad(&["start", "box"], 1, "cannot start a container that has stopped");
    host.bad(&["pause", "box"], 1, "container not running");
    host.bad(&["update", "--pids-limit", "5", "box"], 1, "container not running");
    host.bad(&["events", "--stats", "box"], 1, "container with id box is not running");
    host.good(&["delete", "box"]);
    host.bad(&["state", "box"], 1, "container does not exist");
    assert!(!host.state_of("box").exists());
}

#[test]
fn a_whole_life() {
    whole_life(&Host::new("life"));
}

#[test]
fn a_whole_life_of_an_ordinary_user() {
    match Host::ordinary("user") {
        Some(host) => whole_life(&host),
        None => left_out("oci::life::a_whole_life_of_an_ordinary_user: a change of users"),
    }
}

#[test]
fn what_is_not_there() {
    let host = Host::new("nothing");
    for command in ["state", "start", "kill", "delete", "ps", "pause", "resume", "update", "wait"] {
        host.bad(&[command, "box"], 1, "container does not exist");
    }
    host.bad(&["exec", "box", "true"], 255, "exec failed: container does not exist");
    host.good(&["delete", "--force", "box"]);
    for id in ["..", "a/b", "a b", ""] {
        host.bad(&["state", id], 1, if id.is_empty() { "cannot be empty" } else { "invalid container ID format" });
    }
    assert_eq!(host.good(&["list", "-f", "json"]), "null");
    assert!(host.good(&["list"]).starts_with("ID "));
    host.bad(&["create", "--bundle", "/no/such", "box"], 1, "/no/such");
    host.bad(&["checkpoint", "box"], 1, "not there yet");
    host.bad(&["create", "--no-such-option", "box"], 1, "no-such-option");
    host.bad(&["state"], 1, "ID");
}

#[test]
fn errors_are_logged_as_engines_read_them() {
    let host = Host::new("log");
    let log = host.path("log");
    let log = log.to_str().unwrap();
    host.bad(&["--log", log, "--log-format", "json", "state", "box"], 1, "runsc-rs: container does not exist");
    let line: serde_json::Value = serde_json::from_str(&fs::read_to_string(log).unwrap()).unwrap();
    assert_eq!((line["level"].as_str(), line["msg"].as_str()), (Some("error"), Some("container does not exist")));
    host.bad(&["state", "box"], 1, "level=error msg=\"container does not exist\"");
    host.bad(&["--log", "/no/such/log", "list"], 1, "/no/such/log");
}

#[test]
fn the_monitor_ends_as_the_process_does_and_passes_signals_on() {
    let host = Host::new("monitor");
    let script = "trap 'exit 9' TERM; trap 'exit 8' USR1; echo ready; while :; do sleep 0.1; done";
    let bundle = host.bundle("bundle", &["sh", "-c", script], |_| ());
    let pid_file = host.path("pid");
    for (signal, status) in [(libc::SIGTERM, exit(9)), (libc::SIGUSR1, exit(8)), (libc::SIGKILL, libc::SIGKILL)] {
        let args = ["run", "-d", "--bundle", bundle.to_str().unwrap(), "--pid-file", pid_file.to_str().unwrap(), "box"];
        host.good(&args);
        crate::common::eventually("the traps are set", crate::LIMIT, || {
            Ok(fs::read_to_string(host.path("out"))?.contains("ready"))
        });
        let pid = pid_in(&pid_file);
        assert!(kill(pid, signal));
        assert_eq!(reaped(pid), status);
        assert_eq!(host.status("box"), "stopped");
        host.good(&["delete", "box"]);
    }
}

#[test]
fn run_exits_with_the_status_of_the_process() {
    let host = Host::new("run");
    for (script, status) in [("exit 7", 7), ("true", 0), ("sh -c 'kill -9 $$'; exit $?", 137)] {
        let bundle = host.bundle("bundle", &["sh", "-c", script], |_| ());
        let done = host.run(&["run", "--bundle", bundle.to_str().unwrap(), "box"]);
        assert_eq!(done.status.code(), Some(status), "{script}: {}", done.err);
        assert!(!host.state_of("box").exists());
    }
    let bundle = host.bundle("bundle", &["nothing-such"], |_| ());
    let text = "exec: \\\"nothing-such\\\": executable file not found in $PATH";
    host.bad(&["run", "--bundle", bundle.to_str().unwrap(), "box"], 1, text);
    host.bad(&["create", "--bundle", bundle.to_str().unwrap(), "box"], 1, text);
    assert!(!host.state_of("box").exists());
    let bundle = host.bundle("bundle", &["true"], |_| ());
    host.good(&["run", "--keep", "--bundle", bundle.to_str().unwrap(), "box"]);
    assert_eq!(host.status("box"), "stopped");
    host.good(&["delete", "box"]);
}

#[test]
fn run_has_the_callers_streams() {
    let host = Host::new("streams");
    let bundle = host.bundle("bundle", &["sh", "-c", "cat; echo out; echo err >&2"], |_| ());
    // In the directory of a bundle its name is enough.
    let mut command = host.command(&["run", "box"]);
    let mut child = command
        .current_dir(bundle)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"in\n").unwrap();
    let ended = crate::common::end_within(child, crate::LIMIT);
    assert!(ended.status.success());
    assert_eq!((&ended.out[..], &ended.err[..]), (&b"in\nout\n"[..], &b"err\n"[..]));
}

#[test]
fn run_passes_signals_on() {
    let host = Host::new("signals");
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let bundle = host.bundle("bundle", &["sh", "-c", script], |_| ());
    let mut command = host.command(&["run", "--bundle", bundle.to_str().unwrap(), "box"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0u8; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    assert!(kill(child.id() as i32, libc::SIGTERM));
    assert_eq!(crate::common::end_within(child, crate::LIMIT).status.code(), Some(3));
    assert!(!host.state_of("box").exists());
}

#[test]
fn spec_and_features_print() {
    let host = Host::new("spec");
    let again = || Command::new(RUNSC).arg("spec").current_dir(host.dir.path()).output().unwrap();
    assert!(again().status.success());
    let second = again();
    assert!(!second.status.success() && String::from_utf8_lossy(&second.stderr).contains("exists"));
    assert!(host.json(&["features"])["hooks"].is_array());
}

#[test]
fn update_and_events() {
    let host = Host::new("update");
    let bundle = host.bundle("bundle", &["sleep", "1000"], |_| ());
    host.good(&["run", "-d", "--bundle", bundle.to_str().unwrap(), "box"]);
    host.good(&["update", "--pids-limit", "20", "box"]);
    let stats = host.json(&["events", "--stats", "box"]);
    assert_eq!((stats["type"].as_str(), stats["id"].as_str()), (Some("stats"), Some("box")));
    assert_eq!(stats["data"]["pids"]["current"], 1);
    assert_eq!(stats["data"]["pids"]["limit"], 20);
    host.bad(&["update", "--memory", "lots", "box"], 1, "memory");
    host.good(&["delete", "--force", "box"]);
}
