//! The commands that manage containers, with bundles of their own: the life cycle, `exec`, hooks, terminals, deaths. A
//! busybox is the root file system.

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod death;
mod exec;
mod hooks;
mod life;
mod pods;
mod terminals;
mod view;

use common::{alive, Scratch, RUNSC};
use serde_json::{json, Value};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{chown, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Far more than anything should take.
const LIMIT: Duration = Duration::from_secs(30);

/// A state directory, bundles, and a user who runs the commands.
struct Host {
    dir: Scratch,
    user: Option<u32>,
}

/// How a command ended.
struct Done {
    status: ExitStatus,
    out: String,
    err: String,
}

impl Host {
    /// As the caller.
    fn new(name: &str) -> Host {
        Host::of(name, None)
    }

    /// As an ordinary user; `None` if the caller cannot be one: it is not root, and [`Host::new`] tests it.
    fn ordinary(name: &str) -> Option<Host> {
        nix::unistd::geteuid().is_root().then(|| Host::of(name, Some(65534)))
    }

    fn of(name: &str, user: Option<u32>) -> Host {
        // What is left behind becomes a child of the test.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let host = Host { dir: Scratch::new(&format!("oci-{name}")), user };
        let bin = host.dir.0.join("rootfs/bin");
        for dir in ["rootfs/bin", "rootfs/tmp", "rootfs/dir", "state"] {
            fs::create_dir_all(host.dir.0.join(dir)).unwrap();
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|p| Path::new(p).exists());
        fs::copy(busybox.expect("busybox-static"), bin.join("busybox")).unwrap();
        for name in ["sh", "cat", "echo", "id", "kill", "ls", "pwd", "sleep", "stty", "true", "tty", "env"] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        if user.is_some() {
            // Mount points are made in the root.
            for dir in ["state", "rootfs"] {
                chown(host.dir.0.join(dir), user, user).unwrap();
            }
        }
        fs::set_permissions(host.dir.0.join("rootfs/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.0.join(name)
    }

    fn state_of(&self, id: &str) -> PathBuf {
        self.path("state").join(id)
    }

    /// A bundle whose process is this; `change` has the last word.
    fn bundle(&self, name: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> PathBuf {
        let bundle = self.path(name);
        fs::create_dir_all(&bundle).unwrap();
        let config = bundle.join("config.json");
        let _ = fs::remove_file(&config);
        let written = Command::new(RUNSC).args(["spec", "--bundle"]).arg(&bundle).status().unwrap();
        assert!(written.success());
        let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        spec["process"]["args"] = json!(args);
        spec["process"]["terminal"] = json!(false);
        spec["root"]["path"] = json!(self.path("rootfs"));
        // Tests run side by side.
        let own = self.dir.0.file_name().unwrap().to_str().unwrap();
        spec["linux"]["cgroupsPath"] = json!(format!("/{own}"));
        let kept = |mount: &Value| !["mqueue", "cgroup"].iter().any(|t| mount["type"] == *t);
        let mounts = spec["mounts"].as_array().unwrap().iter().filter(|m| kept(m)).cloned().collect();
        spec["mounts"] = Value::Array(mounts);
        change(&mut spec);
        fs::write(&config, spec.to_string()).unwrap();
        bundle
    }

    /// A command, with nothing to read.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(RUNSC);
        command.arg("--root").arg(self.path("state")).args(args).stdin(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Runs a command to its end. What a container writes to is a file: a pipe would stay open as long as the container
    /// runs.
    fn run(&self, args: &[&str]) -> Done {
        self.finish(self.command(args), &format!("{args:?}"))
    }

    fn finish(&self, mut command: Command, what: &str) -> Done {
        let open = |name: &str| {
            let path = self.path(name);
            let _ = fs::remove_file(&path);
            (File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap(), path)
        };
        let ((out, out_path), (err, err_path)) = (open("out"), open("err"));
        let mut child = command.stdout(out).stderr(err).spawn().unwrap();
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > end {
                let _ = child.kill();
                panic!("{what}: no end; it said {:?}", fs::read_to_string(err_path));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let text = |path| {
            let mut bytes = Vec::new();
            File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Done { status, out: text(out_path), err: text(err_path) }
    }

    /// Runs a command that succeeds; what it printed.
    fn good(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert!(done.status.success(), "{args:?}: {:?} {}", done.status, done.err);
        done.out
    }

    /// Runs a command that fails with this exit status and these words.
    fn bad(&self, args: &[&str], status: i32, words: &str) {
        let done = self.run(args);
        assert_eq!(done.status.code(), Some(status), "{args:?}: {} {}", done.out, done.err);
        assert!(done.err.contains(words), "{args:?}: {}", done.err);
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.good(args)).unwrap()
    }

    fn status(&self, id: &str) -> String {
        self.json(&["state", id])["status"].as_str().unwrap().to_owned()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A test that failed may leave containers.
        for entry in fs::read_dir(self.path("state")).into_iter().flatten().flatten() {
            let id = entry.file_name().into_string().unwrap_or_default();
            let _ = self.command(&["delete", "--force", &id]).stderr(Stdio::null()).status();
        }
    }
}

impl Host {
    /// Waits until it is so.
    fn until(&self, id: &str, status: &str) {
        common::eventually(&format!("{id} is {status}"), LIMIT, || Ok(self.status(id) == status));
    }
}

/// The number in a pid file.
fn pid_in(path: &Path) -> i32 {
    fs::read_to_string(path).unwrap().parse().unwrap()
}

/// The wait(2) status of a process that was left to the test.
fn reaped(pid: i32) -> i32 {
    let mut status = 0;
    common::eventually(&format!("process {pid} ends"), LIMIT, || {
        // SAFETY: the kernel writes one int.
        Ok(unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } == pid)
    });
    assert!(!alive(pid));
    status
}

/// The wait(2) status of an exit.
fn exit(code: i32) -> i32 {
    code << 8
}
