//! Whether the host's kernel has killed processes of a container for want of memory: its cgroup counts them.

use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};

const CGROUPS: &str = "/sys/fs/cgroup";

/// The count of a cgroup, and what it was.
pub struct OomKills {
    file: PathBuf,
    before: u64,
}

impl OomKills {
    /// For the cgroup that a process is in.
    pub fn of(pid: Pid) -> Option<OomKills> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let file = counter(&text, Path::new(CGROUPS))?;
        let before = count(&fs::read_to_string(&file).ok()?);
        Some(OomKills { file, before })
    }

    /// Whether there were kills since.
    pub fn happened(&self) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|text| count(&text) > self.before)
    }
}

/// The file with the count: of the memory controller of version 1, or else of version 2. `text`: `/proc/PID/cgroup`.
fn counter(text: &str, cgroups: &Path) -> Option<PathBuf> {
    let mut found = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        let of = |dir: &Path, file: &str| Some(dir.join(path).join(file)).filter(|f| f.is_file());
        if controllers.split(',').any(|c| c == "memory") {
            return of(&cgroups.join("memory"), "memory.oom_control");
        }
        if controllers.is_empty() {
            let unified = cgroups.join("unified");
            found = of(cgroups, "memory.events").or_else(|| of(&unified, "memory.events"));
        }
    }
    found
}

fn count(text: &str) -> u64 {
    let number = |line: &str| line.strip_prefix("oom_kill ")?.trim().parse().ok();
    text.lines().find_map(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters() {
        let dir = std::env::temp_dir().join(format!("runsc-rs-oom-{}", std::process::id()));
        fs::create_dir_all(dir.join("memory/a/b")).unwrap();
        fs::create_dir_all(dir.join("c")).unwrap();
        fs::write(dir.join("memory/a/b/memory.oom_control"), "").unwrap();
        fs::write(dir.join("c/memory.events"), "").unwrap();
        let v1 = counter("9:memory:/a/b\n0::/c\n", &dir);
        assert_eq!(v1, Some(dir.join("memory/a/b/memory.oom_control")));
        assert_eq!(counter("0::/c\n", &dir), Some(dir.join("c/memory.events")));
        assert_eq!(counter("0::/d\n", &dir), None);
        assert_eq!(counter("nonsense", &dir), None);
        fs::remove_dir_all(dir).unwrap();
        assert_eq!(count("under_oom 0\noom_kill 3\n"), 3);
        assert_eq!(count("oom 5\n"), 0);
    }
}
