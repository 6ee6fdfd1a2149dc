//! The OCI commands, run by the shim for the containers of one bundle.

use super::options::Options;
use super::reaper::{Moment, Reaper};
use anyhow::{anyhow, bail, Context, Result};
use nix::fcntl::OFlag;
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Longest part of a log, and of a command's output, that is read.
const MAX_TEXT: u64 = 4 << 20;
/// The runtime's log in a bundle, where engines look for it.
const LOG: &str = "log.json";
const CREATE_FAILED: &str = "OCI runtime create failed: ";
const EXEC_FAILED: &str = "OCI runtime exec failed: ";

/// How the runtime is called.
pub struct Runtime {
    options: Options,
    namespace: String,
    bundle: PathBuf,
    reaper: Arc<Reaper>,
}

/// The standard streams of a command that becomes a container's process.
pub type Streams = [Stdio; 3];

/// A process that a command has left behind, and since when it can have ended.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    pub pid: Pid,
    pub since: Moment,
}

impl Runtime {
    pub fn new(options: Options, namespace: &str, bundle: &Path, reaper: &Arc<Reaper>) -> Runtime {
        Runtime { options, namespace: namespace.into(), bundle: bundle.into(), reaper: reaper.clone() }
    }

    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    pub fn reaper(&self) -> &Arc<Reaper> {
        &self.reaper
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = match &self.options.binary_name {
            Some(path) => Command::new(path),
            None => {
                let mut command = Command::new("/proc/self/exe");
                // By this name it is not the shim.
                command.arg0("runsc-rs");
                command
            }
        };
        command.arg("--root").arg(self.options.root(&self.namespace));
        command.arg("--log").arg(self.bundle.join(LOG)).args(["--log-format", "json"]);
        if self.options.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        if self.options.debug {
            command.arg("--debug");
        }
        command.arg(subcommand).current_dir("/");
        // They are meant for the shim.
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Runs a command to its end.
    fn finish(&self, command: &mut Command) -> Result<()> {
        let log = LogEnd::of(&self.bundle.join(LOG));
        let since = self.reaper.now();
        let pid = self.reaper.spawn(command).context("running the runtime")?;
        match self.reaper.wait(pid, since).status {
            0 => Ok(()),
            status => Err(log.last_error().unwrap_or_else(|| anyhow!("the runtime ended with status {status}"))),
        }
    }

    fn simple(&self, words: &[&str]) -> Result<()> {
        let Some((first, rest)) = words.split_first() else { bail!("no command") };
        self.finish(self.command(first).args(rest))
    }

    /// Runs a command for what it prints.
    fn output(&self, words: &[&str]) -> Result<String> {
        let Some((first, rest)) = words.split_first() else { bail!("no command") };
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let mut command = self.command(first);
        command.args(rest).stdout(write);
        let log = LogEnd::of(&self.bundle.join(LOG));
        let since = self.reaper.now();
        let pid = self.reaper.spawn(&mut command).context("running the runtime")?;
        // It holds the pipe's other end.
        drop(command);
        let mut text = String::new();
        File::from(read).take(MAX_TEXT).read_to_string(&mut text)?;
        match self.reaper.wait(pid, since).status {
            0 => Ok(text),
            status => Err(log.last_error().unwrap_or_else(|| anyhow!("the runtime ended with status {status}"))),
        }
    }

    /// Runs a command that leaves a process behind, whose number it writes to a file. The id comes last: a command may
    /// follow it.
    fn leave_behind(&self, command: &mut Command, name: &str, id: &str, streams: Streams) -> Result<Started> {
        let pid_file = self.bundle.join(format!("{name}.pid"));
        let _ = fs::remove_file(&pid_file);
        let [stdin, stdout, stderr] = streams;
        command.arg("--pid-file").arg(&pid_file).arg(id).stdin(stdin).stdout(stdout).stderr(stderr);
        let since = self.reaper.now();
        self.finish(command)?;
        let text = fs::read_to_string(&pid_file).context("the runtime has written no pid file")?;
        let pid = text.trim().parse().context("the runtime's pid file")?;
        Ok(Started { pid: Pid::from_raw(pid), since })
    }

    /// Creates the container of the bundle.
    pub fn create(&self, id: &str, console: Option<&Path>, streams: Streams) -> Result<Started> {
        let mut command = self.command("create");
        command.arg("--bundle").arg(&self.bundle);
        if let Some(console) = console {
            command.arg("--console-socket").arg(console);
        }
        self.leave_behind(&mut command, "init", id, streams).map_err(|e| anyhow!("{CREATE_FAILED}{e:#}"))
    }

    pub fn start(&self, id: &str) -> Result<()> {
        self.simple(&["start", id])
    }

    /// Starts one more process, which `process` (a file) describes. `name` is unique in the bundle.
    pub fn exec(&self, id: &str, name: &str, process: &Path, console: Option<&Path>, io: Streams) -> Result<Started> {
        let mut command = self.command("exec");
        command.arg("--detach").arg("--process").arg(process);
        if let Some(console) = console {
            command.arg("--console-socket").arg(console);
        }
        self.leave_behind(&mut command, name, id, io).map_err(|e| anyhow!("{EXEC_FAILED}{e:#}"))
    }

    pub fn kill(&self, id: &str, signal: u32, all: bool) -> Result<()> {
        let signal = signal.to_string();
        match all {
            true => self.simple(&["kill", "--all", id, &signal]),
            false => self.simple(&["kill", id, &signal]),
        }
    }

    pub fn delete(&self, id: &str, force: bool) -> Result<()> {
        match force {
            true => self.simple(&["delete", "--force", id]),
            false => self.simple(&["delete", id]),
        }
    }

    pub fn pause(&self, id: &str) -> Result<()> {
        self.simple(&["pause", id])
    }

    pub fn resume(&self, id: &str) -> Result<()> {
        self.simple(&["resume", id])
    }

    /// `resources`: a file in the form of `linux.resources`.
    pub fn update(&self, id: &str, resources: &Path) -> Result<()> {
        self.finish(self.command("update").arg("--resources").arg(resources).arg(id))
    }

    /// The line of `events --stats`.
    pub fn stats(&self, id: &str) -> Result<serde_json::Value> {
        serde_json::from_str(&self.output(&["events", "--stats", id])?).context("what `events` prints")
    }
}

/// The runtime's log, from where it ended.
struct LogEnd {
    path: PathBuf,
    at: u64,
}

impl LogEnd {
    fn of(path: &Path) -> LogEnd {
        LogEnd { path: path.into(), at: fs::metadata(path).map_or(0, |m| m.len()) }
    }

    /// The last error that has been logged since.
    fn last_error(&self) -> Option<anyhow::Error> {
        let mut file = File::open(&self.path).ok()?;
        file.seek(SeekFrom::Start(self.at)).ok()?;
        let mut text = Vec::new();
        file.take(MAX_TEXT).read_to_end(&mut text).ok()?;
        last_error(&text).map(|text| anyhow!(text))
    }
}

fn last_error(log: &[u8]) -> Option<String> {
    let error = |line: &[u8]| -> Option<String> {
        let line: serde_json::Value = serde_json::from_slice(line).ok()?;
        (line["level"] == "error").then(|| line["msg"].as_str().unwrap_or_default().trim().to_owned())
    };
    log.rsplit(|b| *b == b'\n').find_map(error)
}

/// A name that is one component of a path.
pub fn is_plain(name: &str) -> bool {
    Path::new(name).file_name() == Some(OsStr::new(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log() {
        let log =
            b"{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"error\",\"msg\":\"b \"}\n{\"level\":\"warning\"}\nx\n";
        assert_eq!(last_error(log).as_deref(), Some("b"));
        assert_eq!(last_error(b""), None);
    }

    #[test]
    fn names() {
        assert!(is_plain("a") && is_plain("a.b"));
        for wrong in ["", ".", "..", "a/b", "/a", "a/"] {
            assert!(!is_plain(wrong), "{wrong}");
        }
    }
}
