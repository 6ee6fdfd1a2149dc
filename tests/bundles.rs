//! What a bundle says is what its container gets: each field of `config.json` that has an effect, seen from inside or
//! on the host.

mod common;

use common::{left_out, run_within, Ended, Scratch, RUNSC};
use serde_json::{json, Value};
use std::fs;
use std::os::unix::fs::{chown, symlink, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A bundle whose root has the host's programs.
struct Bundle {
    dir: Scratch,
    config: Value,
}

impl Bundle {
    fn new(name: &str) -> Bundle {
        let dir = Scratch::new(name);
        let root = dir.0.join("rootfs");
        fs::create_dir(&root).unwrap();
        for part in ["bin", "lib", "lib64", "sbin"] {
            symlink(format!("usr/{part}"), root.join(part)).unwrap();
        }
        let mount = |target: &str, kind: &str| json!({ "destination": target, "type": kind, "source": kind });
        let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 }, "args": ["true"], "env": ["PATH=/usr/bin:/usr/sbin"], "cwd": "/",
            },
            "root": { "path": "rootfs" },
            "mounts": [
                mount("/proc", "proc"), mount("/dev", "tmpfs"), mount("/dev/pts", "devpts"), mount("/sys", "sysfs"),
                mount("/dev/mqueue", "mqueue"), mount("/sys/fs/cgroup", "cgroup"),
                { "destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"] },
            ],
            "linux": { "namespaces": namespaces },
        });
        Bundle { dir, config }
    }

    /// The command of the container is a script.
    fn script(&mut self, script: &str) -> &mut Bundle {
        self.set("/process/args", json!(["sh", "-c", script]))
    }

    fn set(&mut self, pointer: &str, value: Value) -> &mut Bundle {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        self.config.pointer_mut(parent).unwrap()[field] = value;
        self
    }

    fn mount(&mut self, mount: Value) -> &mut Bundle {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    fn root(&self) -> PathBuf {
        self.dir.0.join("rootfs")
    }

    fn command(&self) -> Command {
        fs::write(self.dir.0.join("config.json"), self.config.to_string()).unwrap();
        let mut command = Command::new(RUNSC);
        command.arg("--root").arg(self.dir.0.join("state")).args(["run", "--bundle"]).arg(&self.dir.0);
        // Cgroups have the container's name.
        command.arg(self.dir.0.file_name().unwrap()).stdin(Stdio::null());
        command
    }

    fn run(&self) -> Ended {
        run_within(&mut self.command(), LIMIT)
    }

    /// What it says, when all goes well.
    fn out(&self) -> String {
        let ended = self.run();
        let (out, err) = (text(&ended.out), text(&ended.err));
        assert!(ended.status.success(), "{}: {out}{err}", ended.status);
        out
    }

    /// Why it is not started.
    fn error(&self) -> String {
        let ended = self.run();
        assert!(!ended.status.success(), "{}", text(&ended.out));
        text(&ended.err)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

/// Whether this is root; what is left out otherwise.
fn root(what: &str) -> bool {
    let is = nix::unistd::geteuid().is_root();
    if !is {
        left_out(&format!("bundles: {what}"));
    }
    is
}

#[test]
fn process() {
    let mut b = Bundle::new("process");
    b.set("/process/user", json!({ "uid": 5, "gid": 6, "additionalGids": [7, 8], "umask": 0o27 }));
    b.set("/process/rlimits", json!([{ "type": "RLIMIT_NOFILE", "soft": 10, "hard": 20 }]));
    b.set("/process/oomScoreAdj", json!(100)).set("/process/noNewPrivileges", json!(true));
    b.set("/process/cwd", json!("/usr/bin")).set("/hostname", json!("inside")).set("/domainname", json!("example"));
    b.set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1", "kernel.msgmax": "4096" }));
    b.script(
        "id -u; id -G; umask; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; pwd; hostname; echo $$
         cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax
         grep NoNewPrivs /proc/self/status",
    );
    let want =
        ["5", "6 7 8", "0027", "10", "20", "100", "/usr/bin", "inside", "1", "example", "1", "4096", "NoNewPrivs:\t1"];
    assert_eq!(lines(&b.out()), want);
}

#[test]
fn capabilities() {
    let mut b = Bundle::new("capabilities");
    let some = json!(["CAP_CHOWN", "CAP_KILL", "CAP_OF_TOMORROW"]);
    b.set("/process/capabilities", json!({ "bounding": some, "permitted": some, "effective": some }));
    b.script("grep ^Cap /proc/self/status | cut -f2");
    let (none, two) = ("0000000000000000", "0000000000000021");
    assert_eq!(lines(&b.out()), [none, two, two, two, none]);
    // None are given: there are none.
    b.set("/process/capabilities", Value::Null);
    assert_eq!(lines(&b.out()), [none; 5]);
}

#[test]
fn mounts() {
    let mut b = Bundle::new("mounts");
    fs::create_dir(b.dir.0.join("data")).unwrap();
    fs::write(b.dir.0.join("data/file"), "data").unwrap();
    fs::write(b.dir.0.join("single"), "single").unwrap();
    b.mount(json!({ "destination": "/data", "type": "bind", "source": "data", "options": ["rbind", "ro"] }));
    b.mount(json!({ "destination": "/a/b/single", "source": "single", "options": ["bind", "nosuid"] }));
    b.mount(
        json!({ "destination": "/t", "type": "tmpfs", "source": "t", "options": ["noexec", "size=1m", "mode=1777"] }),
    );
    fs::create_dir_all(b.root().join("filled/below")).unwrap();
    fs::write(b.root().join("filled/below/file"), "copied").unwrap();
    b.mount(json!({ "destination": "/filled", "type": "tmpfs", "source": "t", "options": ["tmpcopyup", "size=1m"] }));
    b.mount(json!({ "destination": "/null", "source": "/dev/null", "options": ["bind"] }));
    b.script(
        "cat /data/file; echo; echo x 2>&1 >/data/new; echo more >>/a/b/single; echo y >/null; cat /null
         cat /filled/below/file; echo; echo changed >/filled/below/file; cat /filled/below/file
         stat -c '%a %F' /t /null; grep -e ' /data ' -e ' /t ' /proc/mounts | cut -d' ' -f4",
    );
    let out = b.out();
    let out = lines(&out);
    assert_eq!((out[0], out[4], out[5]), ("data", "1777 directory", "666 character special file"), "{out:?}");
    assert!(out[1].contains("Read-only file system"), "{out:?}");
    assert_eq!((out[2], out[3]), ("copied", "changed"));
    assert_eq!(fs::read_to_string(b.root().join("filled/below/file")).unwrap(), "copied");
    assert_eq!((out[6], out[7]), ("ro,relatime", "rw,noexec,relatime,size=1024k,mode=1777"));
    assert_eq!(fs::read_to_string(b.dir.0.join("single")).unwrap(), "singlemore\n");
}

#[test]
fn propagation() {
    let mut b = Bundle::new("propagation");
    let tmpfs = |target: &str, option: &str| {
        let options = [option];
        json!({ "destination": target, "type": "tmpfs", "source": "mine", "options": options })
    };
    b.mount(tmpfs("/s", "shared")).mount(tmpfs("/u", "unbindable")).mount(tmpfs("/p", "rprivate"));
    b.script("cut -d' ' -f5,7- /proc/self/mountinfo | grep -e '^/ ' -e '^/[sup] ' | sed 's/ - .*mine/ - mine/'");
    let want = |root: &str| {
        let of = |kind: &str| if kind.is_empty() { String::new() } else { format!("{kind} ") };
        [format!("/ {}- ", of(root)), "/s shared:N - mine".into(), "/u unbindable - mine".into(), "/p - mine".into()]
    };
    for (given, seen) in [(Value::Null, ""), (json!("shared"), "shared:N"), (json!("private"), "")] {
        let out = b.set("/linux/rootfsPropagation", given).out();
        let digits = |c: char| c.is_ascii_digit();
        let numbered = |line: &str| match line.split_once("shared:") {
            Some((before, after)) => format!("{before}shared:N{}", after.trim_start_matches(digits)),
            None => line.to_string(),
        };
        let seen = want(seen);
        assert!(out.lines().zip(&seen).all(|(line, want)| numbered(line).starts_with(want.as_str())), "{out}");
        assert_eq!(out.lines().count(), seen.len());
    }
}

#[test]
fn read_only_root_and_paths() {
    let mut b = Bundle::new("paths");
    fs::write(b.root().join("secret"), "secret").unwrap();
    fs::create_dir(b.root().join("hidden")).unwrap();
    fs::write(b.root().join("hidden/file"), "hidden").unwrap();
    b.set("/root/readonly", json!(true));
    b.set("/linux/maskedPaths", json!(["/secret", "/hidden", "/missing"]));
    b.set("/linux/readonlyPaths", json!(["/proc/sys", "/missing"]));
    b.script("cat /secret; ls /hidden; echo 1 2>&1 >/proc/sys/kernel/shmmni; mkdir /x 2>&1");
    let out = b.out_of_failure();
    assert_eq!(out.matches("Read-only file system").count(), 2, "{out}");
    assert!(!out.contains("secret") && !out.contains("file\n"), "{out}");
    // Mount points were made all the same.
    assert!(b.root().join("proc").is_dir());
}

#[test]
fn seccomp() {
    let mut b = Bundle::new("seccomp");
    b.set(
        "/linux/seccomp",
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
            { "names": ["symlink", "symlinkat"], "action": "SCMP_ACT_KILL_PROCESS" },
            { "names": ["personality"], "action": "SCMP_ACT_ERRNO",
                "args": [{ "index": 0, "value": 4294967295u32, "op": "SCMP_CMP_NE" }] },
        ]}),
    );
    b.script("grep ^Seccomp: /proc/self/status; mkdir /x 2>&1; ln -s a /b; echo $?; setarch -R true 2>&1");
    let out = b.out_of_failure();
    assert!(out.starts_with("Seccomp:\t2\n"), "{out}");
    assert!(out.contains("Function not implemented") && out.contains("\n159\n"), "{out}");
    assert!(out.contains("Operation not permitted"), "{out}");
}

#[test]
fn hooks() {
    let mut b = Bundle::new("hooks");
    let log = b.dir.0.join("log");
    let hook = |name: &str| {
        let script = format!("echo {name} $A; cat >{}/{name}.json", b.dir.path());
        let script = format!("{{ {script}; }} >>{}", log.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"] }])
    };
    let kinds = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    let hooks: serde_json::Map<String, Value> = kinds.iter().map(|kind| ((*kind).to_string(), hook(kind))).collect();
    b.set("/hooks", hooks.into());
    b.set("/annotations", json!({ "key": "value" }));
    b.out();
    assert_eq!(fs::read_to_string(&log).unwrap(), kinds.map(|kind| format!("{kind} b\n")).concat());
    let state: Value = serde_json::from_str(&fs::read_to_string(b.dir.0.join("prestart.json")).unwrap()).unwrap();
    assert_eq!((&state["annotations"]["key"], &state["bundle"]), (&json!("value"), &json!(b.dir.path())));
    // One that fails ends the start, and nothing is left.
    let bad = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo bad >&2; exit 7"] }]);
    b.set("/hooks", json!({ "createRuntime": bad }));
    let error = b.error();
    assert!(
        error.contains("error running hook #0: error running hook: exit status 7, stdout: , stderr: bad"),
        "{error}"
    );
    assert_eq!(fs::read_dir(b.dir.0.join("state")).unwrap().count(), 0);
}

#[test]
fn ids_of_a_user_namespace() {
    if !root("ids of a user namespace") {
        return;
    }
    let mut b = Bundle::new("ids");
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
    b.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map);
    b.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    let all = json!(["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"]);
    b.set("/process/capabilities", json!({ "bounding": all, "permitted": all, "effective": all }));
    chown(b.root(), Some(100_000), Some(100_000)).unwrap();
    fs::write(b.root().join("roots"), "of the host's root").unwrap();
    fs::set_permissions(b.root().join("roots"), fs::Permissions::from_mode(0o600)).unwrap();
    b.script("touch /new; chown 5:6 /new; stat -c '%u %g' / /new /roots; cat /roots 2>&1; chown 2000 /new 2>&1");
    let out = b.out_of_failure();
    assert_eq!(lines(&out)[..3], ["0 0", "5 6", "65534 65534"], "{out}");
    assert!(out.contains("Permission denied") && out.contains("Invalid argument"), "{out}");
    let made = fs::metadata(b.root().join("new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (100_005, 100_006));
}

#[test]
fn as_an_ordinary_user() {
    if !root("bundles of ordinary users") {
        return;
    }
    const USER: u32 = 65_534;
    let mut b = Bundle::new("user");
    let map = json!([{ "containerID": 0, "hostID": USER, "size": 1 }]);
    b.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map);
    b.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    for dir in [b.dir.0.clone(), b.root()] {
        chown(dir, Some(USER), Some(USER)).unwrap();
    }
    b.script("id -u; touch /new; stat -c %u /new");
    let run = b.command();
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".into()]);
    command.arg(run.get_program()).args(run.get_args()).stdin(Stdio::null());
    let ended = run_within(&mut command, LIMIT);
    assert_eq!(text(&ended.out), "0\n0\n", "{}", text(&ended.err));
    assert_eq!(fs::metadata(b.root().join("new")).unwrap().uid(), USER);
    // Limits need a cgroup, and this user has none to give.
    b.set("/linux/resources", json!({ "memory": { "limit": 1 << 30 } }));
    b.command();
    let ended = run_within(&mut command, LIMIT);
    assert!(text(&ended.err).contains("resources have limits"), "{}", text(&ended.err));
}

/// The files of this name below the cgroup file systems, in directories of the container's name.
fn cgroup_files(id: &str, file: &str) -> Vec<PathBuf> {
    let out = Command::new("find").args(["/sys/fs/cgroup", "-path", &format!("*/{id}/{file}")]).output().unwrap();
    text(&out.stdout).lines().map(PathBuf::from).collect()
}

#[test]
fn limits_of_the_cgroup() {
    if !root("cgroups") {
        return;
    }
    let mut b = Bundle::new("limits");
    let id = b.dir.0.file_name().unwrap().to_str().unwrap().to_string();
    b.set(
        "/linux/resources",
        json!({ "memory": { "limit": 512 << 20 }, "pids": { "limit": 600 }, "cpu": { "shares": 512 } }),
    );
    // A hook sees the cgroup; the container does not run yet.
    let hook = format!(
        "find /sys/fs/cgroup -path '*/{id}/*' >{0}/files
         cat $(grep -e limit_in_bytes$ -e /memory.max$ -e pids.max {0}/files) >{0}/values",
        b.dir.path()
    );
    b.set(
        "/hooks",
        json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", hook], "env": ["PATH=/usr/bin:/bin"] }] }),
    );
    let ended = b.run();
    let error = text(&ended.err);
    if error.contains("cgroup controller") || error.contains("resources have limits") {
        // A machine whose cgroups this root may not change.
        return left_out("bundles: cgroups");
    }
    assert!(ended.status.success(), "{error}");
    let values = fs::read_to_string(b.dir.0.join("values")).unwrap();
    assert!(lines(&values).contains(&"536870912") && lines(&values).contains(&"600"), "{values}");
    assert_eq!(cgroup_files(&id, "cgroup.procs"), Vec::<PathBuf>::new());
    // A cgroup with processes of others is not taken over.
    b.set("/linux/cgroupsPath", json!("/")).set("/hooks", Value::Null);
    assert!(b.error().contains("not empty"));
}

#[test]
fn hostile_mount_targets() {
    let outside = Scratch::new("outside");
    fs::write(outside.0.join("file"), "untouched").unwrap();
    // Links in the root that lead out, for each kind of mount, and for what is masked.
    for (target, kind) in
        [("/link/new", "tmpfs"), ("/link/new", "bind"), ("/link", "bind"), ("/up/new", "tmpfs"), ("/filelink", "file")]
    {
        let mut b = Bundle::new("hostile");
        symlink(&outside.0, b.root().join("link")).unwrap();
        symlink("../../../../../../../..".to_string() + outside.path(), b.root().join("up")).unwrap();
        symlink(outside.0.join("file"), b.root().join("filelink")).unwrap();
        fs::create_dir(b.dir.0.join("source")).unwrap();
        fs::write(b.dir.0.join("single"), "single").unwrap();
        b.mount(match kind {
            "tmpfs" => json!({ "destination": target, "type": "tmpfs", "source": "t" }),
            "bind" => json!({ "destination": target, "type": "bind", "source": "source", "options": ["rbind"] }),
            _ => json!({ "destination": target, "type": "bind", "source": "single", "options": ["bind"] }),
        });
        let dots = format!("/../../../..{}/dots", outside.path());
        b.mount(json!({ "destination": dots, "type": "tmpfs", "source": "t" }));
        b.set("/linux/maskedPaths", json!(["/filelink"])).set("/linux/readonlyPaths", json!(["/link"]));
        b.script("echo changed >/link/file; echo changed >/filelink; true");
        // Whether such a container starts is one question; that nothing outside changes is the other.
        b.run();
        assert_eq!(fs::read_to_string(outside.0.join("file")).unwrap(), "untouched");
        assert_eq!(fs::read_dir(&outside.0).unwrap().count(), 1, "{target} {kind}");
    }
}

#[test]
fn hostile_bundles() {
    let mut b = Bundle::new("bad");
    for (pointer, value, words) in [
        ("/process/args", json!([]), "args must not be empty"),
        ("/process/cwd", json!("usr"), "Cwd must be an absolute path"),
        ("/root/path", json!("missing"), "invalid rootfs"),
        ("/root/path", json!("/proc"), "interface of the host's kernel"),
        ("/linux/namespaces", json!([{ "type": "pid", "path": "/proc/1/ns/pid" }]), "cannot join"),
        ("/linux/sysctl", json!({ "vm.overcommit_memory": "1" }), "not in a separate kernel namespace"),
        (
            "/mounts",
            json!([{ "destination": "/s", "source": "/proc/self/fd", "options": ["rbind"] }]),
            "interface of the host's kernel",
        ),
        ("/mounts", json!([{ "destination": "/d", "source": "/dev/ptmx", "options": ["bind"] }]), "/dev"),
    ] {
        let before = b.config.pointer(pointer).cloned().unwrap_or(Value::Null);
        let error = b.set(pointer, value).error();
        assert!(error.contains(words), "{pointer}: {error}");
        b.set(pointer, before);
    }
    for config in ["[".repeat(1 << 20), format!("{{\"process\":{}", "{\"user\":".repeat(1 << 18)), " ".repeat(17 << 20)]
    {
        b.command();
        fs::write(b.dir.0.join("config.json"), config).unwrap();
        let mut command = Command::new(RUNSC);
        command
            .arg("--root")
            .arg(b.dir.0.join("state"))
            .args(["run", "--bundle"])
            .arg(&b.dir.0)
            .arg("bad")
            .stdin(Stdio::null());
        let ended = run_within(&mut command, LIMIT);
        assert_eq!(ended.status.code(), Some(1), "{}", text(&ended.err));
    }
}

impl Bundle {
    /// What it says, when its last command may fail.
    fn out_of_failure(&self) -> String {
        let ended = self.run();
        text(&ended.out) + &text(&ended.err)
    }
}
