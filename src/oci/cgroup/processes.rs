//! The processes of cgroups' directories, and the end of both.

use super::Dir;
use anyhow::{bail, Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{kill as send, Signal};
use nix::sys::statfs::{statfs, CGROUP2_SUPER_MAGIC, CGROUP_SUPER_MAGIC};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Error, ErrorKind};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a killed process may take to go. One that the host's kernel holds, in a call that does not end, goes later.
const PATIENCE: Duration = Duration::from_secs(10);
/// Deepest nesting of cgroups that is looked into. A guest cannot make any on the host.
const DEPTH: usize = 16;

/// The processes in the directories and below them.
pub fn list(dirs: &[Dir]) -> Result<Vec<Pid>> {
    let mut all = BTreeSet::new();
    for dir in dirs {
        collect(&dir.path, DEPTH, &mut all).with_context(|| dir.path.display().to_string())?;
    }
    Ok(all.into_iter().map(Pid::from_raw).collect())
}

fn collect(dir: &Path, depth: usize, all: &mut BTreeSet<i32>) -> std::io::Result<()> {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => all.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0)),
        Err(e) if is_gone(&e) => return Ok(()),
        // Threaded cgroups of version 2 do not list processes; the one at their top does.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(e) => return Err(e),
    }
    if depth > 0 {
        for child in children(dir)? {
            collect(&child, depth - 1, all)?;
        }
    }
    Ok(())
}

fn children(dir: &Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if is_gone(&e) => return Ok(Vec::new()),
        entries => entries?,
    };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(dirs.map(|entry| entry.path()).collect())
}

/// The directory was removed meanwhile.
fn is_gone(e: &Error) -> bool {
    e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV)
}

/// Kills the processes until none is left but the caller. `thaw` lets frozen ones die.
pub fn kill(dirs: &[Dir], thaw: impl Fn()) -> Result<()> {
    let start = Instant::now();
    let own = nix::unistd::getpid();
    let mut pause = Duration::from_millis(1);
    loop {
        let all: Vec<Pid> = list(dirs)?.into_iter().filter(|pid| *pid != own).collect();
        if all.is_empty() {
            return Ok(());
        }
        for pid in &all {
            match send(*pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => bail!("killing process {pid} of the container's cgroup: {e}"),
            }
        }
        thaw();
        if start.elapsed() > PATIENCE {
            bail!("{} processes of the container's cgroup do not end, process {:?} among them", all.len(), all.first());
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Removes a directory with those below it. The kernel may need a moment after the last process has ended.
pub fn remove(dir: &Path) -> Result<()> {
    let Ok(fs) = statfs(dir) else { return Ok(()) };
    // The path comes from a file.
    if ![CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&fs.filesystem_type()) {
        bail!("{} is no cgroup", dir.display());
    }
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match remove_tree(dir, DEPTH) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && start.elapsed() < Duration::from_secs(2) => {
                sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            r => return r.with_context(|| format!("removing the cgroup {}", dir.display())),
        }
    }
}

fn remove_tree(dir: &Path, depth: usize) -> std::io::Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if is_gone(&e) => return Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) && depth > 0 => {}
        r => return r,
    }
    for child in children(dir)? {
        remove_tree(&child, depth - 1)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if is_gone(&e) => Ok(()),
        r => r,
    }
}
