//! The root file system of a container, which the shim mounts when containerd's snapshotter says how.

use anyhow::{anyhow, bail, Context, Result};
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sched::{unshare, CloneFlags};
use std::path::{Component, Path, PathBuf};

/// The kernel takes options of one page.
const MAX_DATA: usize = 4095;
/// Mounts on top of one another that are taken away.
const MAX_STACK: usize = 64;

/// One mount, as containerd describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    pub kind: String,
    pub source: String,
    /// Below the target.
    pub target: String,
    pub options: Vec<String>,
}

/// Mounts all in their order. If one fails, none stays.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for m in mounts {
        if let Err(e) = m.mount(target) {
            unmount_all(target);
            return Err(e).with_context(|| format!("mounting {} at {}", m.kind, target.display()));
        }
    }
    Ok(())
}

/// Takes away all mounts at `target`.
pub fn unmount_all(target: &Path) {
    for _ in 0..MAX_STACK {
        if umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_err() {
            return;
        }
    }
}

impl Mount {
    fn mount(&self, target: &Path) -> Result<()> {
        let at = match self.target.is_empty() {
            true => target.to_owned(),
            false => beneath(target, &self.target)?,
        };
        let (flags, data) = parse(&self.options)?;
        if data.len() > MAX_DATA {
            return self.mount_from_common_directory(&at, flags, &data);
        }
        self.call(&at, flags, &data)
    }

    fn call(&self, at: &Path, flags: MsFlags, data: &str) -> Result<()> {
        let propagation = MsFlags::MS_SHARED | MsFlags::MS_PRIVATE | MsFlags::MS_SLAVE | MsFlags::MS_UNBINDABLE;
        let (first, propagation) = (flags - propagation, flags & propagation);
        let none: Option<&str> = None;
        mount(Some(self.source.as_str()), at, Some(self.kind.as_str()), first, Some(data))?;
        let bind_flags = first - MsFlags::MS_REC;
        // The kernel does not look at other flags when it binds.
        if first.contains(MsFlags::MS_BIND) && bind_flags != MsFlags::MS_BIND {
            mount(none, at, none, first | MsFlags::MS_REMOUNT, none)?;
        }
        if !propagation.is_empty() {
            mount(none, at, none, propagation | (flags & MsFlags::MS_REC), none)?;
        }
        Ok(())
    }

    /// An overlay of many layers whose paths are too long together: they are given from a directory that has all of
    /// them.
    fn mount_from_common_directory(&self, at: &Path, flags: MsFlags, data: &str) -> Result<()> {
        let lower = self.options.iter().find_map(|o| o.strip_prefix("lowerdir="));
        let layers: Vec<&Path> = lower.into_iter().flat_map(|l| l.split(':')).map(Path::new).collect();
        let common = common_directory(&layers).ok_or_else(|| anyhow!("options of {} bytes", data.len()))?;
        let shorter: Vec<String> =
            layers.iter().filter_map(|l| Some(l.strip_prefix(&common).ok()?.to_str()?.to_owned())).collect();
        let data = data.replace(lower.unwrap_or_default(), &shorter.join(":"));
        if data.len() > MAX_DATA {
            bail!("options of {} bytes", data.len());
        }
        let (mount, at) = (self.clone(), at.to_owned());
        // The working directory of a thread of its own.
        let of_thread = move || -> Result<()> {
            unshare(CloneFlags::CLONE_FS)?;
            nix::unistd::chdir(&common)?;
            mount.call(&at, flags, &data)
        };
        let thread = std::thread::Builder::new().name("mount".into()).spawn(of_thread)?;
        thread.join().unwrap_or_else(|_| Err(anyhow!("the thread that mounts has ended")))
    }
}

/// The directory that all layers are in, if none of them is it.
fn common_directory(layers: &[&Path]) -> Option<PathBuf> {
    let mut common = layers.first()?.parent()?.to_owned();
    while !layers.iter().all(|l| l.starts_with(&common) && *l != common) {
        common = common.parent()?.to_owned();
    }
    Some(common)
}

/// A path below `target`, without links or `..`.
fn beneath(target: &Path, path: &str) -> Result<PathBuf> {
    let mut at = target.to_owned();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => at.push(name),
            Component::RootDir | Component::CurDir => {}
            _ => bail!("mount target {path:?}"),
        }
        if at.is_symlink() {
            bail!("mount target {path:?} is a symbolic link");
        }
    }
    Ok(at)
}

/// Flags, and the options that are the file system's own.
fn parse(options: &[String]) -> Result<(MsFlags, String)> {
    let mut flags = MsFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        match flag(option) {
            Some((flag, true)) => flags |= flag,
            Some((flag, false)) => flags -= flag,
            None if option == "loop" => bail!("option `loop` is not supported: mount the image, and give the mount"),
            None => data.push(option),
        }
    }
    Ok((flags, data.join(",")))
}

fn flag(option: &str) -> Option<(MsFlags, bool)> {
    Some(match option {
        "defaults" => (MsFlags::empty(), true),
        "ro" => (MsFlags::MS_RDONLY, true),
        "rw" => (MsFlags::MS_RDONLY, false),
        "bind" => (MsFlags::MS_BIND, true),
        "rbind" => (MsFlags::MS_BIND | MsFlags::MS_REC, true),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "suid" => (MsFlags::MS_NOSUID, false),
        "nodev" => (MsFlags::MS_NODEV, true),
        "dev" => (MsFlags::MS_NODEV, false),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        "async" => (MsFlags::MS_SYNCHRONOUS, false),
        "dirsync" => (MsFlags::MS_DIRSYNC, true),
        "remount" => (MsFlags::MS_REMOUNT, true),
        "mand" => (MsFlags::MS_MANDLOCK, true),
        "nomand" => (MsFlags::MS_MANDLOCK, false),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "atime" => (MsFlags::MS_NOATIME, false),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "diratime" => (MsFlags::MS_NODIRATIME, false),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "norelatime" => (MsFlags::MS_RELATIME, false),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        "nostrictatime" => (MsFlags::MS_STRICTATIME, false),
        "private" => (MsFlags::MS_PRIVATE, true),
        "rprivate" => (MsFlags::MS_PRIVATE | MsFlags::MS_REC, true),
        "slave" => (MsFlags::MS_SLAVE, true),
        "rslave" => (MsFlags::MS_SLAVE | MsFlags::MS_REC, true),
        "shared" => (MsFlags::MS_SHARED, true),
        "rshared" => (MsFlags::MS_SHARED | MsFlags::MS_REC, true),
        "unbindable" => (MsFlags::MS_UNBINDABLE, true),
        "runbindable" => (MsFlags::MS_UNBINDABLE | MsFlags::MS_REC, true),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[&str]) -> Vec<String> {
        list.iter().map(|o| o.to_string()).collect()
    }

    #[test]
    fn options_are_flags_or_data() {
        let (flags, data) = parse(&options(&["rbind", "ro", "index=off", "lowerdir=/a:/b"])).unwrap();
        assert_eq!(flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY);
        assert_eq!(data, "index=off,lowerdir=/a:/b");
        assert_eq!(parse(&options(&["ro", "rw"])).unwrap().0, MsFlags::empty());
        assert!(parse(&options(&["loop"])).is_err());
    }

    #[test]
    fn common_directories() {
        let of = |paths: &[&str]| common_directory(&paths.iter().map(Path::new).collect::<Vec<_>>());
        assert_eq!(of(&["/s/1/fs", "/s/2/fs"]), Some("/s".into()));
        assert_eq!(of(&["/s/1/fs"]), Some("/s/1".into()));
        assert_eq!(of(&["/s", "/s/2"]), Some("/".into()));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn targets_stay_below() {
        assert_eq!(beneath(Path::new("/t"), "/a/./b").unwrap(), Path::new("/t/a/b"));
        assert!(beneath(Path::new("/t"), "../a").is_err());
    }
}
