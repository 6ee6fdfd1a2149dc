//! Containers that join a running sandbox.

use crate::common::{alive, eventually, kill};
use crate::{exit, pid_in, reaped, Host, LIMIT};
use serde_json::{json, Value};
use std::fs;
use std::path::PathBuf;

/// A sandbox `pod` that runs, in a bundle of its own.
fn with_pod(name: &str) -> Host {
    let host = Host::new(name);
    let bundle = host.bundle("pod-bundle", &["sleep", "1000"], |spec| spec["hostname"] = json!("the-pod"));
    host.good(&["run", "--detach", "--bundle", bundle.to_str().unwrap(), "pod"]);
    host
}

/// A bundle of a container of the pod's, as containerd's CRI says it.
fn member(host: &Host, name: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> PathBuf {
    host.bundle(name, args, |spec| {
        spec["annotations"] =
            json!({ "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod" });
        let of_host = spec["linux"]["cgroupsPath"].as_str().unwrap().to_owned();
        spec["linux"]["cgroupsPath"] = json!(format!("{of_host}-{name}"));
        change(spec);
    })
}

fn state_file(host: &Host, id: &str) -> Value {
    serde_json::from_slice(&fs::read(host.state_of(id).join("state.json")).unwrap()).unwrap()
}

#[test]
fn a_member_lives_in_the_sandbox_and_ends_alone() {
    let host = with_pod("member");
    let bundle = member(&host, "one", &["sleep", "1000"], |_| ());
    let (bundle, pid_file) = (bundle.to_str().unwrap(), host.path("state/pid"));
    host.good(&["create", "--bundle", bundle, "--pid-file", pid_file.to_str().unwrap(), "one"]);
    let pid = pid_in(&pid_file);
    fs::remove_file(&pid_file).unwrap();
    assert_eq!(host.status("one"), "created");
    // A Gofer, and no Sentry.
    let state = state_file(&host, "one");
    assert_eq!((state["sandbox"].as_array().unwrap().len(), state["memberOf"].as_str()), (1, Some("pod")));
    host.good(&["start", "one"]);
    assert_eq!(host.good(&["list", "-q"]), "one\npod\n");
    assert_eq!(host.good(&["exec", "one", "echo", "inside"]), "inside\n");
    assert_eq!(host.json(&["ps", "-f", "json", "one"]).as_array().unwrap().len(), 1);
    assert_eq!(host.json(&["events", "--stats", "one"])["data"]["pids"]["current"], 1);

    host.good(&["pause", "one"]);
    assert_eq!((host.status("one").as_str(), host.status("pod").as_str()), ("paused", "running"));
    host.good(&["exec", "pod", "true"]);
    host.good(&["resume", "one"]);

    host.good(&["kill", "one", "KILL"]);
    assert_eq!(reaped(pid), libc::SIGKILL);
    host.good(&["delete", "one"]);
    assert_eq!(host.status("pod"), "running");

    // The same name again, at once.
    let script = member(&host, "two", &["sh", "-c", "exit 3"], |_| ());
    assert_eq!(host.run(&["run", "--bundle", script.to_str().unwrap(), "one"]).status.code(), Some(3));
    host.good(&["run", "--detach", "--bundle", bundle, "one"]);
    host.good(&["delete", "--force", "one"]);
    host.good(&["run", "--detach", "--bundle", bundle, "one"]);
    assert_eq!(host.status("one"), "running");
}

#[test]
fn members_do_not_see_each_other() {
    let host = with_pod("apart");
    for name in ["one", "two"] {
        let bundle = member(&host, name, &["sleep", "1000"], |spec| {
            spec["process"]["env"].as_array_mut().unwrap().push(json!(format!("SECRET={name}")));
        });
        host.good(&["run", "--detach", "--bundle", bundle.to_str().unwrap(), name]);
    }
    for (name, other) in [("one", "two"), ("two", "one")] {
        // Of all processes that it sees: its first one, and these.
        let script =
            "cd /proc; for p in [0-9]*; do tr '\\0' '\\n' < $p/environ; done | grep ^SECRET= | sort -u; echo $$";
        let said = host.good(&["exec", "--env", "SECRET=mine", name, "sh", "-c", script]);
        assert!(said.contains(&format!("SECRET={name}\n")) && said.contains("SECRET=mine\n"), "{said}");
        assert!(!said.contains(other), "{said}");
        // Numbers begin anew in it.
        assert!(said.lines().last().unwrap().parse::<i32>().unwrap() < 10, "{said}");
    }
}

#[test]
fn members_end_with_the_sandbox() {
    let host = with_pod("pod-ends");
    let bundle = member(&host, "one", &["sleep", "1000"], |_| ());
    let pid_file = host.path("state/pid");
    let pid_option = pid_file.to_str().unwrap();
    host.good(&["run", "--detach", "--bundle", bundle.to_str().unwrap(), "--pid-file", pid_option, "one"]);
    let pid = pid_in(&pid_file);
    fs::remove_file(&pid_file).unwrap();
    let gofer = state_file(&host, "one")["sandbox"][0]["pid"].as_i64().unwrap() as i32;
    host.good(&["kill", "pod", "KILL"]);
    assert_eq!(reaped(pid), libc::SIGKILL);
    host.until("one", "stopped");
    eventually("the Gofer ends", LIMIT, || Ok(!alive(gofer)));
    host.bad(&["create", "--bundle", bundle.to_str().unwrap(), "two"], 1, "is not running");
    host.good(&["delete", "one"]);
    host.good(&["delete", "pod"]);
    host.bad(&["create", "--bundle", bundle.to_str().unwrap(), "one"], 1, "container does not exist");
    assert!(!host.state_of("one").exists());
}

#[test]
fn a_member_whose_monitor_dies_is_gone() {
    let host = with_pod("monitor-dies");
    let bundle = member(&host, "one", &["sleep", "1000"], |_| ());
    host.good(&["run", "--detach", "--bundle", bundle.to_str().unwrap(), "one"]);
    let monitor = host.json(&["state", "one"])["pid"].as_i64().unwrap() as i32;
    kill(monitor, libc::SIGKILL);
    reaped(monitor);
    host.until("one", "stopped");
    eventually("the process ends", LIMIT, || Ok(!host.good(&["exec", "pod", "ls", "/proc"]).is_empty()));
    host.good(&["delete", "one"]);
    assert_eq!(host.status("pod"), "running");
}

#[test]
fn namespaces_by_path_are_the_sandboxes() {
    let host = with_pod("shares");
    let says = |name: &str, namespaces: Value| {
        let args = ["cat", "/proc/sys/kernel/hostname"];
        let bundle = member(&host, name, &args, |spec| {
            spec["hostname"] = json!("its-own");
            spec["linux"]["namespaces"] = namespaces;
        });
        let done = host.run(&["run", "--bundle", bundle.to_str().unwrap(), name]);
        assert!(done.status.success(), "{}", done.err);
        done.out
    };
    let own = json!([{ "type": "pid" }, { "type": "mount" }, { "type": "uts" }, { "type": "ipc" }]);
    assert_eq!(says("a", own), "its-own\n");
    let shared = json!([{ "type": "mount" }, { "type": "uts", "path": "/proc/1/ns/uts" }]);
    assert_eq!(says("b", shared), "the-pod\n");
}

#[test]
fn a_member_that_cannot_be_started() {
    let host = with_pod("no-start");
    let bundle = member(&host, "one", &["/nothing"], |_| ());
    host.bad(&["create", "--bundle", bundle.to_str().unwrap(), "one"], 1, "stat /nothing: no such file or directory");
    assert!(!host.state_of("one").exists());
    assert_eq!(host.status("pod"), "running");
}

#[test]
fn an_agent_that_is_killed_takes_its_process_along() {
    let host = with_pod("agent");
    let pid_file = host.path("state/pid");
    host.good(&["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), "pod", "sleep", "999"]);
    let agent = pid_in(&pid_file);
    fs::remove_file(&pid_file).unwrap();
    assert!(host.good(&["ps", "pod"]).contains("sleep 999"));
    kill(agent, libc::SIGKILL);
    assert_eq!(reaped(agent), libc::SIGKILL);
    eventually("the process ends", LIMIT, || Ok(!host.good(&["ps", "pod"]).contains("sleep 999")));
    // One that ends by itself is reported as ever.
    host.good(&["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), "pod", "sh", "-c", "exit 4"]);
    assert_eq!(reaped(pid_in(&pid_file)), exit(4));
    fs::remove_file(&pid_file).unwrap();
}
