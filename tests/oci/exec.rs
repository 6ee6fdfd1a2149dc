//! `exec`: streams, identities, statuses, agents.

use crate::common::kill;
use crate::{exit, pid_in, reaped, Host};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;

/// A host with a container that does nothing.
fn with_box(name: &str) -> Host {
    let host = Host::new(name);
    let bundle = host.bundle("bundle", &["sleep", "1000"], |_| ());
    host.good(&["run", "-d", "--bundle", bundle.to_str().unwrap(), "box"]);
    host
}

#[test]
fn it_exits_with_the_status_of_the_process() {
    let host = with_box("exec");
    for (script, status) in [("exit 6", 6), ("kill -9 $$", 137), ("true", 0)] {
        assert_eq!(host.run(&["exec", "box", "sh", "-c", script]).status.code(), Some(status), "{script}");
    }
    host.bad(&["exec", "box", "nothing"], 255, "exec: \\\"nothing\\\": executable file not found in $PATH");
    host.bad(&["exec", "box", "/nothing"], 255, "no such file or directory");
    host.bad(&["exec", "box", "/dir"], 255, "permission denied");
    host.bad(&["exec", "-d", "box", "nothing"], 255, "executable file not found");
    host.bad(&["exec", "box"], 255, "process args cannot be empty");
    host.bad(&["exec", "--user", "root", "box", "true"], 255, "UID");
    host.bad(&["exec", "--cwd", "relative", "box", "true"], 255, "absolute");
}

#[test]
fn options_change_the_containers_own_process() {
    let host = with_box("options");
    let script = "id; echo $A$B; pwd; grep -E 'CapEff|NoNewPrivs' /proc/self/status";
    let out = host.good(&[
        "exec",
        "-u",
        "5:6",
        "-g",
        "7",
        "-e",
        "A=1",
        "--env",
        "B=2",
        "--cwd",
        "/bin",
        "--no-new-privs",
        "box",
        "/bin/busybox",
        "sh",
        "-c",
        script,
    ]);
    assert!(out.starts_with("uid=5 gid=6 groups=7\n12\n/bin\n"), "{out}");
    let process = host.path("process.json");
    let mut value = json!({ "args": ["sh", "-c", "id; echo $A"], "cwd": "/", "env": ["PATH=/bin", "A=x"] });
    value["user"] = json!({ "uid": 3, "gid": 4 });
    fs::write(&process, value.to_string()).unwrap();
    assert_eq!(host.good(&["exec", "--process", process.to_str().unwrap(), "box"]), "uid=3 gid=4\nx\n");
    let caps = |args: &[&str]| {
        let out = host.good(&[&["exec"], args, &["box", "cat", "/proc/self/status"]].concat());
        let line = out.lines().find(|l| l.starts_with("CapEff:")).unwrap().to_owned();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    // CAP_SYS_NICE.
    assert_eq!((caps(&[]) >> 23 & 1, caps(&["--cap", "CAP_SYS_NICE"]) >> 23 & 1), (0, 1));
}

#[test]
fn home_is_that_of_the_images_user() {
    let host = Host::new("home");
    fs::create_dir(host.path("rootfs/etc")).unwrap();
    fs::write(host.path("rootfs/etc/passwd"), "root:x:0:0::/the/root:/bin/sh\nu:x:5:5::/home/u:/bin/sh\n").unwrap();
    let bundle = host.bundle("bundle", &["sh", "-c", "echo $HOME; sleep 1000"], |_| ());
    host.good(&["run", "-d", "--bundle", bundle.to_str().unwrap(), "box"]);
    crate::common::eventually(
        "it says so",
        crate::LIMIT,
        || Ok(fs::read_to_string(host.path("out"))? == "/the/root\n"),
    );
    let home = |args: &[&str]| host.good(&[&["exec"], args, &["box", "sh", "-c", "echo $HOME"]].concat());
    assert_eq!(home(&["-u", "5"]), "/home/u\n");
    assert_eq!(home(&["-u", "6"]), "/\n");
    assert_eq!(home(&["-e", "HOME=/x"]), "/x\n");
}

#[test]
fn streams_and_descriptors_are_passed_on() {
    let host = with_box("streams");
    let mut child = host
        .command(&["exec", "box", "sh", "-c", "cat; echo e >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello").unwrap();
    let ended = crate::common::end_within(child, crate::LIMIT);
    assert_eq!((&ended.out[..], &ended.err[..]), (&b"hello"[..], &b"e\n"[..]));

    let file = host.path("file");
    fs::write(&file, "from the host").unwrap();
    let line = format!("exec \"$0\" --root \"$1\" exec --preserve-fds 1 box sh -c 'cat <&3' 3<{}", file.display());
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &line, crate::common::RUNSC]).arg(host.path("state"));
    assert_eq!(host.finish(shell, "preserve").out, "from the host");
    host.bad(&["exec", "--preserve-fds", "20", "box", "true"], 255, "unable to pass on descriptor");
}

#[test]
fn an_agent_stands_for_a_detached_process() {
    let host = with_box("agent");
    let pid_file = host.path("pid");
    // Without the line of titles.
    let processes = || host.good(&["ps", "box"]).lines().count() - 1;
    let detached = |script: &str| {
        host.good(&["exec", "-d", "--pid-file", pid_file.to_str().unwrap(), "box", "sh", "-c", script]);
        pid_in(&pid_file)
    };
    let pid = detached("exit 4");
    assert_eq!(reaped(pid), exit(4));
    let pid = detached("exec sleep 1000");
    assert_eq!(processes(), 2);
    assert!(kill(pid, libc::SIGTERM));
    assert_eq!(reaped(pid), libc::SIGTERM);
    // An agent that is killed takes the process with it.
    let pid = detached("exec sleep 1000");
    assert!(kill(pid, libc::SIGKILL));
    assert_eq!(reaped(pid), libc::SIGKILL);
    crate::common::eventually("the process is gone", crate::LIMIT, || Ok(processes() == 1));
    let pid = detached("exec sleep 1000");
    host.good(&["delete", "--force", "box"]);
    assert_eq!(reaped(pid), libc::SIGKILL);
}

#[test]
fn the_foreground_passes_signals_on() {
    let host = with_box("foreground");
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let mut child = host.command(&["exec", "box", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0u8; 6]).unwrap();
    assert!(kill(child.id() as i32, libc::SIGTERM));
    assert_eq!(crate::common::end_within(child, crate::LIMIT).status.code(), Some(3));
}
