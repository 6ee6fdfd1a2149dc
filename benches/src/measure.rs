//! Runs one workload once in one sandbox, and records the result.

use crate::inputs::Inputs;
use crate::sandboxes::Sandbox;
use crate::workloads::Workload;
use nix::sys::signal::{kill, killpg, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Times in ns by workload (in the order of first appearance), then by sandbox.
#[derive(Default)]
pub struct Results {
    pub rows: Vec<Row>,
}

pub struct Row {
    pub name: String,
    /// A whole program: its wall-clock time. Otherwise one operation of the micro-benchmark.
    pub whole: bool,
    pub times: BTreeMap<String, Vec<f64>>,
    /// Why a run gave no time; only the last reason is kept.
    pub failures: BTreeMap<String, String>,
}

impl Results {
    fn row(&mut self, name: &str, whole: bool) -> &mut Row {
        if let Some(i) = self.rows.iter().position(|r| r.name == name && r.whole == whole) {
            return &mut self.rows[i];
        }
        self.rows.push(Row { name: name.into(), whole, times: BTreeMap::new(), failures: BTreeMap::new() });
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }
}

/// Wall-clock time of a whole program, with the sandbox's start and end.
pub fn whole(results: &mut Results, workload: &Workload, sandbox: &Sandbox, inputs: &Inputs, timeout: Duration) {
    let row = results.row(workload.name, true);
    match run(sandbox.command(&workload.argv(inputs, sandbox.scratch)), timeout) {
        Ok((time, _)) => row.times.entry(sandbox.name.clone()).or_default().push(time.as_nanos() as f64),
        Err((why, _)) => drop(row.failures.insert(sandbox.name.clone(), why)),
    }
}

/// The micro-benchmark, which reports the time of each operation itself.
pub fn micro(results: &mut Results, micro: &Path, filter: Option<&str>, sandbox: &Sandbox, timeout: Duration) {
    const SCRIPT: &str = "d=$(mktemp -d -p \"$1\"); shift; \"$0\" \"$d\" \"$@\"; rm -rf \"$d\"";
    let mut argv: Vec<OsString> = ["/bin/sh", "-c", SCRIPT].map(OsString::from).into();
    argv.extend([micro.into(), sandbox.scratch.into()]);
    argv.extend(filter.map(OsString::from));
    let (text, trouble) = match run(sandbox.command(&argv), timeout) {
        Ok((_, text)) => (text, None),
        // The operations reported before the failure count.
        Err(why) => (why.1, Some(why.0)),
    };
    for line in text.lines() {
        let Some((name, value)) = line.split_once('\t') else { continue };
        let row = results.row(name, false);
        match value.parse::<f64>() {
            Ok(ns) => row.times.entry(sandbox.name.clone()).or_default().push(ns),
            Err(_) => drop(row.failures.insert(sandbox.name.clone(), value.into())),
        }
    }
    if let Some(why) = trouble {
        results.row("micro", false).failures.insert(sandbox.name.clone(), why);
    }
}

/// Makes this process a subreaper, so that [`clear`] finds the processes that a sandbox leaves behind.
pub fn adopt_orphans() {
    // On failure, only the remains of a killed sandbox are missed.
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

/// Kills every descendant of this process. Call only between runs.
fn clear() {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let mut children = Vec::new();
        for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            children.extend(list.split_whitespace().filter_map(|p| p.parse().ok()).map(Pid::from_raw));
        }
        if children.is_empty() || Instant::now() > end {
            return;
        }
        for pid in children {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a command to its end; returns its time and output, or the reason of a failure and the output so far. None of
/// its processes is left afterwards.
pub fn run(mut command: Command, timeout: Duration) -> Result<(Duration, String), (String, String)> {
    let fail = |e: std::io::Error| (e.to_string(), String::new());
    // To files, since a process that keeps the other end of a pipe open could block this one.
    let (mut out, mut err) = (scratch_file().map_err(fail)?, scratch_file().map_err(fail)?);
    command.stdin(Stdio::null()).process_group(0);
    command.stdout(out.try_clone().map_err(fail)?).stderr(err.try_clone().map_err(fail)?);
    let start = Instant::now();
    let mut child = command.spawn().map_err(fail)?;
    drop(command);
    let group = Pid::from_raw(child.id() as i32);
    // A thread that waits for the child, so that the time is taken at its end and not at the next poll.
    let (tell, told) = std::sync::mpsc::channel();
    let waiter = thread::spawn(move || {
        let status = child.wait();
        let _ = tell.send(start.elapsed());
        status
    });
    let time = told.recv_timeout(timeout);
    if time.is_err() {
        let _ = killpg(group, Signal::SIGKILL);
    }
    let status = waiter.join();
    clear();
    let (out, err) = (contents(&mut out), contents(&mut err));
    match (time, status) {
        (Err(_), _) => Err((format!("no end within {} s", timeout.as_secs()), out)),
        (Ok(time), Ok(Ok(status))) if status.success() => Ok((time, out)),
        (_, Ok(Ok(status))) => Err((format!("{status}: {}", err.lines().next().unwrap_or("no message")), out)),
        (_, Ok(Err(e))) => Err((e.to_string(), out)),
        (_, Err(_)) => Err(("lost".into(), out)),
    }
}

fn scratch_file() -> std::io::Result<File> {
    let fd = nix::sys::memfd::memfd_create(c"output", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    Ok(File::from(fd))
}

fn contents(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let _ = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}
