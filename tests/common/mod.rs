//! What several suites need: scratch directories, commands with a time limit, and a look at processes from outside.

#![allow(dead_code)] // each suite uses a part

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The command under test.
pub const RUNSC: &str = env!("CARGO_BIN_EXE_runsc-rs");

/// A directory of the test's own, removed at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        // Tests may be threads of one process, and a run that was cut short may have left its own.
        let name = |n: u32| std::env::temp_dir().join(format!("runsc-rs-{name}-{}-{n}", std::process::id()));
        let dir = (0..1000).map(name).find(|d| fs::create_dir(d).is_ok()).expect("no directory can be made");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        Scratch(dir)
    }
    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Has `./test` say that something was not tested, because only root can.
pub fn left_out(what: &str) {
    if let Some(list) = std::env::var_os("RUNSC_RS_LEFT_OUT") {
        let list = fs::OpenOptions::new().append(true).open(list);
        let _ = list.and_then(|mut f| io::Write::write_all(&mut f, format!("{what}\n").as_bytes()));
    }
}

/// The program of `tests/guest`, built on demand: it is another package's binary, so cargo does not tell where it is.
pub fn guest_tests() -> PathBuf {
    let done = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "guest-tests"])
        .args((!cfg!(debug_assertions)).then_some("--release"))
        .status()
        .expect("cargo");
    assert!(done.success(), "guest-tests does not build");
    PathBuf::from(RUNSC).with_file_name("guest-tests")
}

/// How a command ended and what it said.
pub struct Ended {
    pub status: ExitStatus,
    pub out: Vec<u8>,
    pub err: Vec<u8>,
}

/// Runs a command to its end; after `limit` it is killed, and the test fails.
pub fn run_within(command: &mut Command, limit: Duration) -> Ended {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    end_within(child, limit)
}

/// The same for one that was started with pipes.
pub fn end_within(mut child: Child, limit: Duration) -> Ended {
    let out = reader(child.stdout.take());
    let err = reader(child.stderr.take());
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            let show = |bytes: Vec<u8>| {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                text.lines().rev().take(10).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
            };
            panic!("no end after {limit:?}; it said:\n{}\n{}", show(out.join().unwrap()), show(err.join().unwrap()));
        }
        sleep(Duration::from_millis(2));
    };
    Ended { status, out: out.join().unwrap(), err: err.join().unwrap() }
}

fn reader(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut all);
        }
        all
    })
}

/// Sends a signal; whether there was such a process.
pub fn kill(pid: i32, signal: i32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::try_from(signal).unwrap()).is_ok()
}

/// The children of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let mut all = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|c| c.parse::<i32>().ok()));
    }
    all
}

/// Every descendant of a process, nearest first.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut all = children(pid);
    let mut next = 0;
    while next < all.len() {
        all.extend(children(all[next]));
        next += 1;
    }
    all
}

pub fn command_line(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ")
}

/// Whether it runs: zombies do not.
pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

/// Waits until something holds.
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> io::Result<bool>) {
    let end = Instant::now() + limit;
    while !holds().unwrap_or(false) {
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(2));
    }
}
