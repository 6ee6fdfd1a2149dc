//! The state directory: what is known of each container, across crashes of any process.
//!
//! `<root>/<id>/` holds `state.json`, replaced by rename; `lock`, which the commands that change a container's life
//! take; `control.sock`, which the monitor listens on; `sandbox.log`, the log of Sentry and Gofer; `exit`, the wait(2)
//! status of the first process once it has ended. Whether a container runs is never read from a file: its monitor lives
//! or not, and the Sentry says what it does.

use super::cgroup::Cgroup;
use super::client::Client;
use crate::config::SeccompFilter;
use crate::control::protocol::{Reply, Request, Status as Told};
use anyhow::{bail, Context, Result};
use nix::errno::Errno;
use nix::fcntl::FlockArg;
use nix::unistd::Pid;
use oci_spec::runtime::{Hook, Process};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest id: it is the name of a directory.
const MAX_ID: usize = 255;
/// How long a Sentry may take to say what its container does.
const PATIENCE: Duration = Duration::from_secs(2);

/// What runc says in such a case; engines look for the text.
pub const NOT_THERE: &str = "container does not exist";

/// A process, told from a later one with the same number by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`.
    pub started: u64,
}

impl ProcessId {
    pub fn of(pid: Pid) -> Result<ProcessId> {
        let (_, started) = stat(pid.as_raw()).context("/proc/PID/stat: is /proc mounted?")?;
        Ok(ProcessId { pid: pid.as_raw(), started })
    }

    pub fn me() -> Result<ProcessId> {
        ProcessId::of(Pid::this())
    }

    /// Whether it runs: a zombie does not.
    pub fn alive(&self) -> bool {
        matches!(stat(self.pid), Some((state, started)) if started == self.started && !matches!(state, 'Z' | 'X'))
    }

    /// To signal it and to wait for it, if it runs.
    pub fn open(&self) -> Option<OwnedFd> {
        let fd = crate::sys::pidfd(self.pid).ok()?;
        // After it is open the number cannot become another's.
        self.alive().then_some(fd)
    }
}

/// State and start time of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub oci_version: String,
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    pub owner: u32,
    pub annotations: BTreeMap<String, String>,
    /// `create` has not come to its end.
    pub creating: bool,
    /// `start` has been called.
    pub started: bool,
    /// `create` until there is a monitor.
    pub monitor: ProcessId,
    /// The Gofer and the Sentry.
    pub sandbox: Vec<ProcessId>,
    pub cgroup: Option<Cgroup>,
    /// While it is made; it may turn out to be that of others.
    pub planned_cgroup: Option<Cgroup>,
    /// The container whose sandbox this one has joined.
    #[serde(default)]
    pub member_of: Option<String>,
    /// What `exec` starts from.
    pub process: Process,
    pub seccomp: Vec<SeccompFilter>,
    pub start_hooks: Vec<Hook>,
    pub poststart_hooks: Vec<Hook>,
    pub poststop_hooks: Vec<Hook>,
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// The directory of all state.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The one given, or the user's.
    pub fn new(given: Option<&Path>) -> Result<Root> {
        let path = match given {
            Some(path) => std::path::absolute(path).context("--root")?,
            None if nix::unistd::geteuid().is_root() => PathBuf::from("/run/runsc-rs"),
            None => match std::env::var_os("XDG_RUNTIME_DIR").filter(|d| Path::new(d).is_absolute()) {
                Some(dir) => Path::new(&dir).join("runsc-rs"),
                None => {
                    bail!("no directory for the state: set XDG_RUNTIME_DIR, or give one of your own with --root DIR")
                }
            },
        };
        Ok(Root(path))
    }

    /// The containers, by name.
    pub fn containers(&self) -> Result<Vec<Container>> {
        let entries = match fs::read_dir(&self.0) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(|| format!("{}", self.0.display()))?,
        };
        let mut all = Vec::new();
        for entry in entries.flatten() {
            let id = entry.file_name().into_string().ok();
            if let Some(id) = id.filter(|id| check_id(id).is_ok() && entry.path().is_dir()) {
                all.push(Container { path: entry.path(), id });
            }
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// One that exists.
    pub fn open(&self, id: &str) -> Result<Container> {
        check_id(id)?;
        let path = self.0.join(id);
        if !path.is_dir() {
            bail!(NOT_THERE);
        }
        Ok(Container { path, id: id.into() })
    }

    /// A new one, locked.
    pub fn create(&self, id: &str) -> Result<(Container, Lock)> {
        check_id(id)?;
        let root = DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        root.with_context(|| format!("making the directory for the state, {}", self.0.display()))?;
        let path = self.0.join(id);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => bail!("container with given ID already exists"),
            other => other.with_context(|| format!("making {}", path.display()))?,
        }
        let container = Container { path, id: id.into() };
        let lock = container.lock()?;
        Ok((container, lock))
    }
}

/// Letters, digits and `_`, `+`, `-`, `.`, but neither `.` nor `..`.
fn check_id(id: &str) -> Result<()> {
    if id.is_empty() {
        bail!("container ID cannot be empty");
    }
    let good = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if !id.chars().all(good) || id == "." || id == ".." || id.len() > MAX_ID {
        bail!("invalid container ID format");
    }
    Ok(())
}

/// A container's directory.
#[derive(Clone, Debug)]
pub struct Container {
    pub path: PathBuf,
    pub id: String,
}

/// Held by the command that changes a container's life, until its descriptor is closed. (nix's `Flock` unlocks when it
/// is dropped, which in a clone of the command would take the lock from the command.)
pub struct Lock(#[allow(dead_code)] File);

impl Container {
    /// Waits until no other command changes the container.
    pub fn lock(&self) -> Result<Lock> {
        let open = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(self.path.join("lock"));
        let file = match open {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => bail!(NOT_THERE),
            other => other.context("opening the container's lock")?,
        };
        loop {
            #[allow(deprecated)]
            match nix::fcntl::flock(file.as_raw_fd(), FlockArg::LockExclusive) {
                Ok(()) => break,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e).context("locking the container"),
            }
        }
        // The one that had it may have deleted the container.
        if file.metadata()?.nlink() == 0 {
            bail!(NOT_THERE);
        }
        Ok(Lock(file))
    }

    pub fn load(&self) -> Result<State> {
        let text = match fs::read(self.path.join("state.json")) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => bail!(NOT_THERE),
            other => other.context("reading the container's state")?,
        };
        serde_json::from_slice(&text).context("the container's state.json is damaged; `delete --force` removes it")
    }

    /// For a process that holds the lock.
    pub fn save(&self, state: &State) -> Result<()> {
        self.replace("state.json", &serde_json::to_vec(state)?)
    }

    /// Puts a file in place of a former one.
    pub fn replace(&self, name: &str, contents: &[u8]) -> Result<()> {
        let new = self.path.join(format!(".{name}.new"));
        let write = || {
            let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(contents)?;
            fs::rename(&new, self.path.join(name))
        };
        write().with_context(|| format!("writing {name} of the container"))
    }

    /// Status of wait(2) of the first process, if it has ended and the monitor could say so.
    pub fn exit_status(&self) -> Option<i32> {
        fs::read_to_string(self.path.join("exit")).ok()?.trim().parse().ok()
    }

    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context("removing the container's state"),
            _ => Ok(()),
        }
    }

    /// What the container does now.
    pub fn status(&self, state: &State) -> Status {
        if !state.monitor.alive() {
            return Status::Stopped;
        }
        if state.creating {
            return Status::Creating;
        }
        let told = Client::connect(self, Some(PATIENCE))
            .and_then(|mut client| client.call(&Request::State { container: self.id.clone() }, &[]));
        match told {
            Ok(Reply::State { status: Told::Created, .. }) => Status::Created,
            Ok(Reply::State { status: Told::Running, .. }) => Status::Running,
            Ok(Reply::State { status: Told::Paused, .. }) => Status::Paused,
            Ok(Reply::State { status: Told::Stopped, .. }) => Status::Stopped,
            // It has ended meanwhile, or says nothing.
            _ if !state.monitor.alive() => Status::Stopped,
            _ if state.started => Status::Running,
            _ => Status::Created,
        }
    }

    /// The state as hooks are told it.
    pub fn for_hooks(&self, state: &State, status: Status) -> String {
        let pid = if status == Status::Stopped { 0 } else { state.monitor.pid };
        let mut text = serde_json::json!({
            "ociVersion": state.oci_version,
            "id": state.id,
            "status": status.name(),
            "pid": pid,
            "bundle": state.bundle,
        });
        if !state.annotations.is_empty() {
            text["annotations"] = serde_json::json!(state.annotations);
        }
        text.to_string()
    }

    /// The state as `state` and `list` print it.
    pub fn describe(&self, state: &State, status: Status) -> OciState {
        OciState {
            oci_version: state.oci_version.clone(),
            id: state.id.clone(),
            pid: if status == Status::Stopped { 0 } else { state.monitor.pid },
            status: status.name(),
            bundle: state.bundle.clone(),
            rootfs: state.rootfs.clone(),
            created: state.created.clone(),
            owner: String::new(),
            annotations: state.annotations.clone(),
        }
    }
}

/// What `state` and `list` print.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OciState {
    pub oci_version: String,
    pub id: String,
    pub pid: i32,
    pub status: &'static str,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    pub owner: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for good in ["a", "A_9+.-x", "...", &"x".repeat(255)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for wrong in ["", ".", "..", "a/b", "a b", "ä", "a\n", "$x", &"x".repeat(256)] {
            assert!(check_id(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn processes_are_told_apart() {
        let me = ProcessId::me().unwrap();
        assert!(me.alive() && me.open().is_some());
        let earlier = ProcessId { started: me.started - 1, ..me };
        assert!(!earlier.alive() && earlier.open().is_none());
    }

    #[test]
    fn a_new_container_is_alone_and_a_deleted_one_is_not_locked() {
        let dir = std::env::temp_dir().join(format!("runsc-rs-state-{}", std::process::id()));
        let root = Root::new(Some(&dir)).unwrap();
        assert!(root.containers().unwrap().is_empty());
        let (container, lock) = root.create("x").unwrap();
        assert!(root.create("x").is_err());
        assert!(container.load().unwrap_err().to_string().contains(NOT_THERE));
        assert_eq!(root.containers().unwrap().len(), 1);
        let waiting = std::thread::spawn({
            let container = container.clone();
            move || container.lock().map(drop).map_err(|e| e.to_string())
        });
        std::thread::sleep(Duration::from_millis(50));
        container.remove().unwrap();
        drop(lock);
        assert_eq!(waiting.join().unwrap(), Err(NOT_THERE.into()));
        assert!(root.open("x").is_err());
        fs::remove_dir(dir).unwrap();
    }
}
