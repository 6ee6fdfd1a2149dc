//! Runs one workload in one sandbox, once, and keeps what came out.

use crate::inputs::Inputs;
use crate::sandboxes::Sandbox;
use crate::workloads::Workload;
use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
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
    /// Why a run gave no time; the last reason counts.
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

/// Wall-clock time of a whole program, the sandbox's start and end included.
pub fn whole(results: &mut Results, workload: &Workload, sandbox: &Sandbox, inputs: &Inputs, timeout: Duration) {
    let row = results.row(workload.name, true);
    match run(sandbox.command(&workload.argv(inputs)), timeout) {
        Ok((time, _)) => row.times.entry(sandbox.name.clone()).or_default().push(time.as_nanos() as f64),
        Err(why) => drop(row.failures.insert(sandbox.name.clone(), why)),
    }
}

/// The micro-benchmark: it tells the time of each operation itself.
pub fn micro(results: &mut Results, micro: &Path, filter: Option<&str>, sandbox: &Sandbox, timeout: Duration) {
    // Where it makes its files: in the sandbox's own /tmp.
    let mut argv: Vec<OsString> =
        ["/bin/sh", "-c", "d=$(mktemp -d); \"$0\" \"$d\" \"$@\"; rm -rf \"$d\""].map(OsString::from).into();
    argv.push(micro.into());
    argv.extend(filter.map(OsString::from));
    let text = match run(sandbox.command(&argv), timeout) {
        Ok((_, text)) => text,
        Err(why) => {
            results.row("micro", false).failures.insert(sandbox.name.clone(), why);
            return;
        }
    };
    for line in text.lines() {
        let Some((name, value)) = line.split_once('\t') else { continue };
        let row = results.row(name, false);
        match value.parse::<f64>() {
            Ok(ns) => row.times.entry(sandbox.name.clone()).or_default().push(ns),
            Err(_) => drop(row.failures.insert(sandbox.name.clone(), value.into())),
        }
    }
}

/// Runs a command to its end; its time and output, or why not.
fn run(mut command: Command, timeout: Duration) -> Result<(Duration, String), String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let start = Instant::now();
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let group = Pid::from_raw(i32::try_from(child.id()).map_err(|e| e.to_string())?);
    let read = |stream: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stream.map(|mut s| s.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>));
    let stderr = read(child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>));
    // A waiting thread of its own, so that the time is taken when the child ends and not at the next look.
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
    let status = waiter.join().map_err(|_| "lost")?.map_err(|e| e.to_string())?;
    let (out, err) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    match time {
        Err(_) => Err(format!("no end within {} s", timeout.as_secs())),
        Ok(time) if status.success() => Ok((time, out)),
        Ok(_) => Err(format!("{status}: {}", err.lines().next().unwrap_or("no message"))),
    }
}
