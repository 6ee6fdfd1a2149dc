//! On the host's own cgroups, where this process may make some.

use super::*;
use oci_spec::runtime::LinuxResources;
use serde_json::json;
use std::process::{Child, Command};

fn resources(value: serde_json::Value) -> LinuxResources {
    serde_json::from_value(value).unwrap()
}

/// A cgroup with an idle process.
struct Made {
    cgroup: Cgroup,
    child: Child,
}

impl Made {
    /// `None`: this process may not make cgroups here.
    fn new(name: &str, path: Option<&str>) -> Option<Made> {
        let id = format!("runsc-rs-test-{name}-{}", std::process::id());
        let path = path.map(|parent| Path::new(parent).join(&id));
        let cgroup = Cgroup::create(&id, path.as_deref(), false, None, |_| Ok(())).unwrap()?;
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        cgroup.add(Pid::from_raw(child.id() as i32)).unwrap();
        Some(Made { cgroup, child })
    }

    fn read(&self, controller: &str, file: &str) -> Option<String> {
        let dir = self.cgroup.dirs.iter().find(|d| d.controllers.iter().any(|c| c == controller))?;
        fs::read_to_string(dir.path.join(file)).ok().map(|text| text.trim().to_string())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.cgroup.kill();
        let _ = self.cgroup.remove();
    }
}

#[test]
fn life_of_a_cgroup() {
    for path in [None, Some("/runsc-rs-test"), Some("/../runsc-rs-test")] {
        let Some(mut made) = Made::new("life", path) else { return };
        let pid = Pid::from_raw(made.child.id() as i32);
        let cgroup = made.cgroup.clone();
        assert_eq!(cgroup.processes().unwrap(), vec![pid]);
        // It is kept as text.
        let text = serde_json::to_string(&cgroup).unwrap();
        assert_eq!(serde_json::from_str::<Cgroup>(&text).unwrap(), cgroup);
        let stats = cgroup.stats().unwrap();
        assert!(stats.pids.current <= 1);
        // A second container cannot have it.
        let id = cgroup.dirs[0].path.file_name().unwrap().to_str().unwrap();
        let again = path.map(|parent| Path::new(parent).join(id));
        assert!(Cgroup::create(id, again.as_deref(), false, None, |_| Ok(())).is_err());
        cgroup.freeze(true).unwrap();
        cgroup.kill().unwrap();
        made.child.wait().unwrap();
        cgroup.remove().unwrap();
        assert!(cgroup.dirs.iter().all(|dir| !dir.path.exists()));
        cgroup.remove().unwrap();
        cgroup.kill().unwrap();
    }
    let parent = Layout::of_caller().unwrap().dirs(Path::new("/runsc-rs-test")).unwrap();
    parent.iter().for_each(|dir| drop(processes::remove(&dir.path)));
}

#[test]
fn a_process_that_joins() {
    let id = format!("runsc-rs-test-join-{}", std::process::id());
    let Some(cgroup) = Cgroup::create(&id, None, false, None, |_| Ok(())).unwrap() else { return };
    if cgroup.kind == Kind::V1 {
        // Of a process with threads it moves the one that calls.
        let joining = cgroup.clone();
        let joined = std::thread::spawn(move || {
            joining.join().unwrap();
            fs::read_to_string("/proc/thread-self/cgroup").unwrap()
        });
        let lines = joined.join().unwrap();
        assert_eq!(lines.lines().filter(|line| line.ends_with(&id)).count(), cgroup.dirs.len(), "{lines}");
    }
    cgroup.remove().unwrap();
}

#[test]
fn limits_of_version_1() {
    let Some(made) = Made::new("limits", None) else { return };
    if made.cgroup.kind != Kind::V1 {
        return;
    }
    let all = json!({
        "memory": { "limit": 100 << 20, "swap": 200 << 20, "reservation": 50 << 20 },
        "cpu": { "shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0" }, "pids": { "limit": 1000 },
        "devices": [{ "allow": false, "access": "rwm" }],
    });
    made.cgroup.apply(&resources(all)).unwrap();
    let expect = |controller, file, value: &str| {
        if let Some(read) = made.read(controller, file) {
            assert_eq!(read, value, "{file}");
        }
    };
    expect("memory", "memory.limit_in_bytes", "104857600");
    expect("memory", "memory.soft_limit_in_bytes", "52428800");
    expect("cpu", "cpu.shares", "512");
    expect("cpu", "cpu.cfs_quota_us", "50000");
    expect("cpuset", "cpuset.cpus", "0");
    expect("pids", "pids.max", "1000");
    // Larger, smaller, and none, in one go each.
    made.cgroup.apply(&resources(json!({ "memory": { "limit": 300 << 20, "swap": 400 << 20 } }))).unwrap();
    expect("memory", "memory.limit_in_bytes", "314572800");
    made.cgroup.apply(&resources(json!({ "memory": { "limit": 50 << 20, "swap": 60 << 20 } }))).unwrap();
    expect("memory", "memory.limit_in_bytes", "52428800");
    made.cgroup.apply(&resources(json!({ "memory": { "limit": -1 }, "pids": { "limit": -1 } }))).unwrap();
    expect("memory", "memory.limit_in_bytes", "9223372036854771712");
    expect("pids", "pids.max", "max");
    made.cgroup.apply(&resources(json!({ "pids": { "limit": 10 } }))).unwrap();
    expect("pids", "pids.max", &(10 + OWN_PIDS).to_string());
    for wrong in [json!({ "cpu": { "cpus": "9999" } }), json!({ "memory": { "swappiness": 200 } })] {
        assert!(made.cgroup.apply(&resources(wrong)).is_err());
    }
}

#[test]
fn others_processes_are_not_touched() {
    let own = Layout::of_caller().unwrap();
    if own == Layout::None {
        return;
    }
    // The root, and the caller's own: their processes would be killed with the container.
    for path in ["/", "/..", "."] {
        assert!(Cgroup::create("x", Some(Path::new(path)), false, None, |_| Ok(())).is_err(), "{path}");
    }
    // Not a cgroup.
    assert!(processes::remove(Path::new("/tmp")).is_err());
}

#[test]
fn names_of_scopes() {
    let scope = |text: &str| scope(Path::new(text)).map(|p| p.display().to_string());
    assert_eq!(scope("a-b.slice:docker:x").unwrap(), "a.slice/a-b.slice/docker-x.scope");
    assert_eq!(scope("-.slice:p:x").unwrap(), "p-x.scope");
    assert_eq!(scope("m.slice::x.slice").unwrap(), "m.slice/x.slice");
    for wrong in ["/a/b", "a:b", "a:b:c", "a.slice:b:", "a--b.slice:c:d", "a.slice:b:../x", ".slice:a:b"] {
        assert!(scope(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_counts_as_a_limit() {
    assert!(!has_limits(&resources(json!({ "devices": [{ "allow": false }] }))));
    assert!(!has_limits(&resources(json!({}))));
    assert!(has_limits(&resources(json!({ "pids": { "limit": 1 } }))));
}

#[test]
fn own_needs() {
    let needs = |value| with_own_needs(&resources(value));
    let pids = |limit: i64| needs(json!({ "pids": { "limit": limit } })).pids().as_ref().unwrap().limit();
    assert_eq!((pids(1), pids(511), pids(512), pids(-1), pids(0)), (1 + OWN_PIDS, 511 + OWN_PIDS, 512, -1, 0));
    let memory = |limit: i64, swap: i64| {
        let all = needs(json!({ "memory": { "limit": limit, "swap": swap } }));
        let memory = all.memory().unwrap();
        (memory.limit().unwrap(), memory.swap().unwrap())
    };
    assert_eq!(memory(1 << 20, 2 << 20), ((1 << 20) + OWN_MEMORY, (2 << 20) + OWN_MEMORY));
    assert_eq!(memory(1 << 20, -1), ((1 << 20) + OWN_MEMORY, -1));
    assert_eq!(memory(LITTLE_MEMORY, i64::MAX), (LITTLE_MEMORY, i64::MAX));
}
