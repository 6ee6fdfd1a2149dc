//! The containerd shim, under a containerd of the test's own: what `ctr` does with a container, pods, restarts and
//! deaths.

mod common;

use common::{command_line, eventually, left_out, run_within, Scratch, RUNSC};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Far more than anything should take.
const LIMIT: Duration = Duration::from_secs(60);
const IMAGE: &str = "docker.io/library/busybox:latest";
const RUNTIME: &str = "io.containerd.runsc-rs.v1";

/// A containerd with a directory of its own, and an image with a busybox.
struct Daemon {
    dir: Scratch,
    process: Option<Child>,
}

/// How `ctr` ended.
struct Done {
    status: Option<i32>,
    out: String,
    err: String,
}

impl Daemon {
    /// `None` where it cannot be: that is said.
    fn start(name: &str) -> Option<Daemon> {
        let found = |program: &str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
        };
        if !nix::unistd::geteuid().is_root() || !found("containerd") || !found("ctr") {
            left_out(&format!("shim: {name} (needs root, and containerd with ctr)"));
            return None;
        }
        let dir = Scratch::new(&format!("shim-{name}"));
        fs::create_dir(dir.0.join("bin")).unwrap();
        fs::create_dir(dir.0.join("oci")).unwrap();
        symlink(RUNSC, dir.0.join("bin/containerd-shim-runsc-rs-v1")).unwrap();
        let at = dir.path();
        let config = format!(
            "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\n  address = \"{at}/c.sock\"\n[debug]\n  level = \"debug\"\n"
        );
        fs::write(dir.0.join("config.toml"), config).unwrap();
        fs::write(dir.0.join("runtime.toml"), format!("root = \"{at}/oci\"\n")).unwrap();
        let mut daemon = Daemon { dir, process: None };
        daemon.begin();
        let image = daemon.image();
        daemon.good(&["image", "import", image.to_str().unwrap()]);
        Some(daemon)
    }

    /// One of its own: a container's cgroup is named by that and the container.
    fn namespace(&self) -> &str {
        self.dir.0.file_name().unwrap().to_str().unwrap()
    }

    /// The runtime's state of its containers.
    fn oci(&self) -> PathBuf {
        self.path("oci").join(self.namespace())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.0.join(name)
    }

    /// Starts it, or once more, and waits until it answers.
    fn begin(&mut self) {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let path = std::env::join_paths(
            std::iter::once(self.path("bin"))
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        );
        // Its mounts are not the host's.
        let process = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "containerd", "--config"])
            .arg(self.path("config.toml"))
            .env("PATH", path.unwrap())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.process = Some(process.unwrap());
        eventually("containerd answers", LIMIT, || Ok(self.ctr(&["version"]).status == Some(0)));
    }

    /// Ends it; its containers go on.
    fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// An archive as `docker save` writes it.
    fn image(&self) -> PathBuf {
        let work = self.path("image");
        let bin = work.join("layer/bin");
        fs::create_dir_all(&bin).unwrap();
        for dir in ["dev", "proc", "sys", "tmp"] {
            fs::create_dir(work.join("layer").join(dir)).unwrap();
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|p| Path::new(p).exists());
        fs::copy(busybox.expect("busybox-static"), bin.join("busybox")).unwrap();
        for name in ["sh", "cat", "echo", "hostname", "ps", "sleep", "stty", "true", "tty"] {
            symlink("busybox", bin.join(name)).unwrap();
        }
        let tar = |from: &str, to: &str, what: &[&str]| {
            let mut command = Command::new("tar");
            command.arg("-C").arg(work.join(from)).arg("-cf").arg(work.join(to)).args(what);
            assert!(command.status().unwrap().success());
        };
        tar("layer", "layer.tar", &["."]);
        let sum = Command::new("sha256sum").arg(work.join("layer.tar")).output().unwrap().stdout;
        let sum = String::from_utf8(sum).unwrap().split(' ').next().unwrap().to_owned();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{sum}")] },
        });
        fs::write(work.join("config.json"), config.to_string()).unwrap();
        let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
        fs::write(work.join("manifest.json"), manifest.to_string()).unwrap();
        tar(".", "image.tar", &["manifest.json", "config.json", "layer.tar"]);
        work.join("image.tar")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.path("c.sock")).args(["--namespace", self.namespace()]);
        command.args(args).stdin(Stdio::null());
        command
    }

    fn ctr(&self, args: &[&str]) -> Done {
        self.finish(&mut self.command(args))
    }

    fn finish(&self, command: &mut Command) -> Done {
        let ended = run_within(command, LIMIT);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Done { status: ended.status.code(), out: text(&ended.out), err: text(&ended.err) }
    }

    fn good(&self, args: &[&str]) -> String {
        let done = self.ctr(args);
        assert_eq!(done.status, Some(0), "{args:?}: {} {}\n{}", done.out, done.err, self.log());
        done.out
    }

    /// `ctr run`, with the runtime's options.
    fn run_args(&self, options: &[&str], id: &str, args: &[&str]) -> Vec<String> {
        let config = self.path("runtime.toml");
        let fixed = ["run", "--runtime", RUNTIME, "--runtime-config-path", config.to_str().unwrap()];
        let all = [&fixed, options, &[IMAGE, id], args].concat();
        all.into_iter().map(str::to_owned).collect()
    }

    fn run(&self, options: &[&str], id: &str, args: &[&str]) -> Done {
        let words = self.run_args(options, id, args);
        self.ctr(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn begin_container(&self, options: &[&str], id: &str, args: &[&str]) {
        let options: Vec<&str> = ["--detach"].iter().chain(options).copied().collect();
        // A pipe would stay open as long as the container runs.
        let words = self.run_args(&options, id, args);
        let mut command = self.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{id}: {}", self.log());
    }

    /// The word of `ctr task ls` for a container; `None` without a task.
    fn status(&self, id: &str) -> Option<String> {
        let list = self.good(&["task", "ls"]);
        let line = list.lines().find(|l| l.split_whitespace().next() == Some(id))?;
        line.split_whitespace().nth(2).map(str::to_owned)
    }

    fn until(&self, id: &str, status: Option<&str>) {
        eventually(&format!("{id} is {status:?}"), LIMIT, || Ok(self.status(id).as_deref() == status));
    }

    /// Ends a container and takes it away.
    fn remove(&self, id: &str) {
        if self.status(id).is_some_and(|s| s != "STOPPED") {
            self.good(&["task", "kill", "-s", "KILL", id]);
            self.until(id, Some("STOPPED"));
        }
        if self.status(id).is_some() {
            self.ctr(&["task", "rm", id]);
            self.until(id, None);
        }
        self.good(&["container", "rm", id]);
    }

    /// The shims of this containerd.
    fn shims(&self) -> Vec<i32> {
        let socket = format!("{}/c.sock", self.dir.path());
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|e| e.file_name().to_str()?.parse().ok());
        let is_ours = |pid: &i32| {
            let line = command_line(*pid);
            line.contains("containerd-shim-runsc-rs-v1") && line.contains(&socket)
        };
        pids.filter(is_ours).collect()
    }

    /// Names of the containers that the runtime knows.
    fn containers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.oci()).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect()
    }

    fn nothing_is_left(&self) {
        eventually("the shims end", LIMIT, || Ok(self.shims().is_empty()));
        assert_eq!(self.containers(), Vec::<String>::new());
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A test that failed may leave containers.
        for id in self.containers() {
            let root = self.oci();
            let mut delete = Command::new(RUNSC);
            let _ = delete.arg("--root").arg(root).args(["delete", "--force", &id]).stderr(Stdio::null()).status();
        }
        for shim in self.shims() {
            common::kill(shim, libc::SIGKILL);
        }
        self.end();
        // The namespace's cgroups, which are empty by now, or stay.
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(hierarchy.path().join(self.namespace()));
        }
        let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(self.namespace()));
    }
}

#[test]
fn output_status_and_errors() {
    let Some(d) = Daemon::start("run") else { return };
    let done = d.run(&["--rm"], "a", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((done.status, done.out.as_str(), done.err.as_str()), (Some(7), "out\n", "err\n"), "{}", d.log());
    let words = d.run_args(&["--rm"], "b", &["cat"]);
    let mut child = d.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&[b'x'; 300_000]).unwrap();
    let ended = common::end_within(child, LIMIT);
    assert_eq!((ended.status.code(), ended.out.len()), (Some(0), 300_000));
    let done = d.run(&["--rm"], "c", &["/nothing"]);
    assert_eq!(done.status, Some(1));
    let words =
        "OCI runtime create failed: runsc-rs create failed: unable to start container process: exec: \"/nothing\"";
    assert!(done.err.contains(words), "{}", done.err);
    let done = d.run(&["--rm"], "d", &["sh", "-c", "(sleep 1000 &); exit 0"]);
    assert_eq!(done.status, Some(0), "{}", done.err);
    d.nothing_is_left();
}

#[test]
fn what_can_be_done_with_a_task() {
    let Some(d) = Daemon::start("task") else { return };
    let events = File::create(d.path("events")).unwrap();
    let mut listener = d.command(&["events"]).stdout(events).stderr(Stdio::null()).spawn().unwrap();
    // Once it hears of one, it hears of all.
    eventually("events come", LIMIT, || {
        d.good(&["namespace", "label", d.namespace(), "a=b"]);
        Ok(fs::metadata(d.path("events"))?.len() > 0)
    });
    d.begin_container(&[], "box", &["sleep", "1000"]);
    assert_eq!(d.status("box").as_deref(), Some("RUNNING"));
    let exec = |id: &str, args: &[&str]| {
        let words = [&["task", "exec", "--exec-id", id, "box"], args].concat();
        d.ctr(&words)
    };
    let done = exec("e1", &["sh", "-c", "echo inside; exit 3"]);
    assert_eq!((done.status, done.out.as_str()), (Some(3), "inside\n"), "{}", done.err);
    let done = exec("e1", &["nothing"]);
    assert!(done.status == Some(1) && done.err.contains("executable file not found"), "{}", done.err);
    assert!(d.good(&["task", "metrics", "box"]).contains("pids.current"));
    assert!(d.good(&["task", "ps", "box"]).lines().count() == 2);

    let mut child = d.command(&["task", "exec", "--exec-id", "e2", "box", "sleep", "999"]).spawn().unwrap();
    let lines = || d.good(&["task", "ps", "box"]).lines().count();
    eventually("the process runs", LIMIT, || Ok(lines() == 3));
    d.good(&["task", "kill", "--exec-id", "e2", "-s", "KILL", "box"]);
    assert_eq!(child.wait().unwrap().code(), Some(137));
    eventually("the process ends", LIMIT, || Ok(lines() == 2));

    d.good(&["task", "pause", "box"]);
    assert_eq!(d.status("box").as_deref(), Some("PAUSED"));
    d.good(&["task", "resume", "box"]);
    assert_eq!(d.status("box").as_deref(), Some("RUNNING"));
    let done = d.ctr(&["task", "checkpoint", "box"]);
    assert!(done.status != Some(0) && done.err.contains("not there yet"), "{}", done.err);
    d.remove("box");
    d.nothing_is_left();

    let topics = ["create", "start", "exec-added", "exec-started", "paused", "resumed", "exit", "delete"];
    eventually("all events come", LIMIT, || {
        let text = fs::read_to_string(d.path("events"))?;
        Ok(topics.iter().all(|t| text.contains(&format!("/tasks/{t} "))))
    });
    listener.kill().unwrap();
    listener.wait().unwrap();
}

#[test]
fn a_terminal() {
    let Some(d) = Daemon::start("terminal") else { return };
    let words = d.run_args(&["--rm", "--tty"], "box", &["sh", "-c", "tty; read line; echo got $line; exit 5"]);
    let line = format!("ctr --address {} --namespace {} {}", d.path("c.sock").display(), d.namespace(), quoted(&words));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"words\n").unwrap();
    let ended = common::end_within(child, LIMIT);
    let out = String::from_utf8_lossy(&ended.out);
    assert!(out.contains("/dev/pts/0") && out.contains("got words"), "{out} {}", d.log());
    assert_eq!(ended.status.code(), Some(5));
    d.nothing_is_left();
}

fn quoted(words: &[String]) -> String {
    words.iter().map(|w| format!("'{w}'")).collect::<Vec<_>>().join(" ")
}

#[test]
fn containerd_is_restarted() {
    let Some(mut d) = Daemon::start("restart") else { return };
    d.begin_container(&[], "box", &["sleep", "1000"]);
    d.end();
    d.begin();
    assert_eq!(d.status("box").as_deref(), Some("RUNNING"));
    assert_eq!(d.good(&["task", "exec", "--exec-id", "e", "box", "echo", "still"]), "still\n");
    d.remove("box");
    d.nothing_is_left();
}

#[test]
fn a_shim_that_is_killed_leaves_nothing() {
    let Some(mut d) = Daemon::start("killed") else { return };
    d.begin_container(&[], "box", &["sleep", "1000"]);
    for shim in d.shims() {
        common::kill(shim, libc::SIGKILL);
    }
    d.until("box", None);
    d.nothing_is_left();
    d.good(&["container", "rm", "box"]);
    // Nor does one that dies while containerd is away.
    d.begin_container(&[], "box", &["sleep", "1000"]);
    d.end();
    for shim in d.shims() {
        common::kill(shim, libc::SIGKILL);
    }
    d.begin();
    d.until("box", None);
    d.nothing_is_left();
}

#[test]
fn a_pod_has_one_shim_and_one_sentry() {
    let Some(d) = Daemon::start("pod") else { return };
    let id = "io.kubernetes.cri.sandbox-id=pod";
    let kind = |kind: &str| format!("io.kubernetes.cri.container-type={kind}");
    let (sandbox, container) = (kind("sandbox"), kind("container"));
    let of_sandbox = ["--annotation", id, "--annotation", &sandbox];
    let of_member = ["--annotation", id, "--annotation", &container];
    d.begin_container(&of_sandbox, "pod", &["sleep", "1000"]);
    d.begin_container(&of_member, "one", &["sleep", "1000"]);
    let rm: Vec<&str> = ["--rm"].iter().chain(&of_member).copied().collect();
    let done = d.run(&rm, "two", &["sh", "-c", "echo two; exit 6"]);
    assert_eq!((done.status, done.out.as_str()), (Some(6), "two\n"), "{}", done.err);
    assert_eq!(d.shims().len(), 1);
    let sandbox_processes = |id: &str| {
        let state = fs::read(d.oci().join(id).join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        state["sandbox"].as_array().unwrap().len()
    };
    assert_eq!((sandbox_processes("pod"), sandbox_processes("one")), (2, 1));
    // One restarts alone.
    d.remove("one");
    d.begin_container(&of_member, "one", &["sleep", "1000"]);
    assert_eq!(d.good(&["task", "exec", "--exec-id", "e", "one", "echo", "again"]), "again\n");
    // All end with the sandbox.
    d.good(&["task", "kill", "-s", "KILL", "pod"]);
    d.until("one", Some("STOPPED"));
    d.remove("one");
    d.remove("pod");
    d.nothing_is_left();
}
