//! Where cgroups are mounted, and where the caller is in them.

use super::Dir;
use anyhow::{anyhow, Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// No cgroup file system is mounted.
#[derive(Debug)]
pub struct NotMounted;

impl std::fmt::Display for NotMounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no cgroup file system is mounted")
    }
}

impl std::error::Error for NotMounted {}

/// A hierarchy that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Empty for version 2.
    pub controllers: Vec<String>,
    pub mount: PathBuf,
    /// The caller's cgroup, from the mount point.
    pub own: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Hierarchies of version 1. One of version 2 beside them has no controllers and is left alone: to enter it costs
    /// more than all others.
    V1(Vec<Hierarchy>),
    V2 {
        mount: PathBuf,
        own: PathBuf,
    },
    None,
}

impl Layout {
    pub fn of_caller() -> Result<Layout> {
        let read = |file: &str| fs::read_to_string(file).with_context(|| file.to_string());
        Ok(Layout::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?))
    }

    /// From the two files of /proc. The first mount of each hierarchy is used, if no later one covers it.
    fn parse(mountinfo: &str, cgroup: &str) -> Layout {
        let mut all: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some(mount) = Mount::parse(line) else { continue };
            all.retain(|h| !h.mount.starts_with(&mount.point));
            let Some((controllers, own)) = membership(cgroup, &mount) else { continue };
            if all.iter().any(|h| h.controllers == controllers) {
                continue;
            }
            // A mount may show a part of the hierarchy only, in a container for instance.
            let own = Path::new(own).strip_prefix(&mount.root).unwrap_or(Path::new("")).to_path_buf();
            all.push(Hierarchy { controllers, mount: mount.point, own });
        }
        let (v2, v1): (Vec<_>, Vec<_>) = all.into_iter().partition(|h| h.controllers.is_empty());
        match v2.into_iter().next() {
            Some(v2) if v1.is_empty() => Layout::V2 { mount: v2.mount, own: v2.own },
            None if v1.is_empty() => Layout::None,
            _ => Layout::V1(v1),
        }
    }

    /// The directories for `path`: from the root of each hierarchy, or a relative one below the caller's cgroup.
    pub fn dirs(&self, path: &Path) -> Result<Vec<Dir>> {
        let below = |mount: &Path, own: &Path| match path.strip_prefix("/") {
            Ok(path) => mount.join(path),
            Err(_) => mount.join(own).join(path),
        };
        match self {
            Layout::V1(all) => Ok(all
                .iter()
                .map(|h| Dir { controllers: h.controllers.clone(), path: below(&h.mount, &h.own) })
                .collect()),
            Layout::V2 { mount, own } => Ok(vec![Dir { controllers: Vec::new(), path: below(mount, own) }]),
            Layout::None => Err(NotMounted.into()),
        }
    }

    /// Whether the directory is the caller's cgroup, or one above it.
    pub fn is_callers(&self, dir: &Path) -> bool {
        let is = |mount: &Path, own: &Path| mount.join(own).starts_with(dir);
        match self {
            Layout::V1(all) => all.iter().any(|h| is(&h.mount, &h.own)),
            Layout::V2 { mount, own } => is(mount, own),
            Layout::None => false,
        }
    }
}

/// A line of mountinfo.
struct Mount {
    /// What of the file system is mounted.
    root: PathBuf,
    point: PathBuf,
    kind: String,
    options: Vec<String>,
}

impl Mount {
    fn parse(line: &str) -> Option<Mount> {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        Some(Mount {
            root: unescape(left.get(3)?).into(),
            point: unescape(left.get(4)?).into(),
            kind: (*right.first()?).to_string(),
            options: right.get(2)?.split(',').map(str::to_string).collect(),
        })
    }
}

/// The line of /proc/self/cgroup that a mount belongs to: its controllers, and the caller's cgroup.
fn membership<'a>(cgroup: &'a str, mount: &Mount) -> Option<(Vec<String>, &'a str)> {
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, own) = (fields.next()?, fields.next()?, fields.next()?);
        let names: Vec<String> = controllers.split(',').filter(|c| !c.is_empty()).map(str::to_string).collect();
        let same = match mount.kind.as_str() {
            "cgroup2" => names.is_empty(),
            "cgroup" => !names.is_empty() && names.iter().all(|name| mount.options.contains(name)),
            _ => false,
        };
        if same {
            return Some((names, own));
        }
    }
    None
}

/// mountinfo writes spaces, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

/// Lets the cgroups on the way to `dir` hand their controllers down. A cgroup with processes of its own cannot; a limit
/// that needs the controller fails when it is set.
pub fn enable_controllers(mount: &Path, dir: &Path) {
    let Ok(path) = dir.strip_prefix(mount) else { return };
    let mut at = mount.to_path_buf();
    for part in path.components() {
        let there = fs::read_to_string(at.join("cgroup.controllers")).unwrap_or_default();
        for controller in there.split_whitespace() {
            let _ = fs::write(at.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        at.push(part);
        if !at.exists() && fs::create_dir(&at).is_err() {
            return;
        }
    }
}

/// The cgroup of the user's own systemd, below which it makes scopes.
pub fn user_service() -> Result<PathBuf> {
    let uid = nix::unistd::geteuid();
    let text = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
    let own =
        text.lines().find_map(|line| line.strip_prefix("0::")).ok_or_else(|| anyhow!("no cgroup of version 2"))?;
    let service = format!("user@{uid}.service");
    let mut dir = PathBuf::new();
    for part in Path::new(own).components() {
        dir.push(part);
        if dir.ends_with(&service) {
            return Ok(dir);
        }
    }
    Ok(PathBuf::from(format!("/user.slice/user-{uid}.slice/{service}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEGACY: &str = "\
30 1 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/my\\040own rw - cgroup cgroup rw,pids
35 30 0:31 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw
";
    const OWN: &str = "5:pids:/a\n4:name=systemd:/\n3:memory:/docker/x/y\n2:cpu,cpuacct:/b\n0::/u\n";

    fn paths(layout: &Layout, path: &str) -> Vec<String> {
        layout.dirs(Path::new(path)).unwrap().iter().map(|d| d.path.display().to_string()).collect()
    }

    #[test]
    fn hybrid() {
        let layout = Layout::parse(LEGACY, OWN);
        let base = |dirs: [&str; 4]| dirs.map(|dir| format!("/sys/fs/cgroup/{dir}")).to_vec();
        assert_eq!(paths(&layout, "/p/q"), base(["cpu,cpuacct/p/q", "memory/p/q", "systemd/p/q", "my own/p/q"]));
        assert_eq!(paths(&layout, "c"), base(["cpu,cpuacct/b/c", "memory/y/c", "systemd/c", "my own/a/c"]));
        assert!(layout.is_callers(Path::new("/sys/fs/cgroup/memory")));
        assert!(layout.is_callers(Path::new("/sys/fs/cgroup/memory/y")));
        assert!(!layout.is_callers(Path::new("/sys/fs/cgroup/memory/y/c")));
    }

    #[test]
    fn unified_and_none() {
        let layout = Layout::parse("9 1 0:5 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/user.slice/a\n");
        assert_eq!(paths(&layout, "c"), ["/sys/fs/cgroup/user.slice/a/c"]);
        assert_eq!(paths(&layout, "/c"), ["/sys/fs/cgroup/c"]);
        assert_eq!(Layout::parse("", OWN), Layout::None);
        assert!(Layout::None.dirs(Path::new("/c")).is_err());
        // Mounted over version 1.
        let over = format!("{LEGACY}40 30 0:5 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!(paths(&Layout::parse(&over, OWN), "/c"), ["/sys/fs/cgroup/c"]);
        for odd in ["x", "a b c - cgroup", "1 2 3 / /x rw - cgroup2 cgroup2"] {
            assert_eq!(Layout::parse(odd, OWN), Layout::None);
        }
    }
}
