//! The mounts of a bundle: which become file systems of the guest kernel's, and which trees of the Gofer's.

use super::options::{self, Parsed};
use crate::config::{GuestMount, MountKind, Tree};
use anyhow::{bail, Context, Result};
use oci_spec::runtime::Mount;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// Most mounts of a bundle. Each tree holds a descriptor of the Gofer's.
const MAX_MOUNTS: usize = 4096;

/// Mounts, and the trees that they show.
#[derive(Debug, Default)]
pub struct Mounts {
    pub mounts: Vec<GuestMount>,
    pub trees: Vec<Tree>,
}

/// Plans the mounts of the bundle in `dir`, in their order.
pub fn plan(dir: &Path, mounts: &[Mount]) -> Result<Mounts> {
    if mounts.len() > MAX_MOUNTS {
        bail!("{} mounts: at most {MAX_MOUNTS} are possible", mounts.len());
    }
    let mut all = Mounts::default();
    for mount in mounts {
        all.add(dir, mount)?;
    }
    // A container has the devices that the specification lists, whether or not the bundle mounts a /dev for them.
    if !all.mounts.iter().any(|m| m.target == b"/dev") {
        all.mounts.insert(0, standard_dev());
    }
    Ok(all)
}

fn standard_dev() -> GuestMount {
    GuestMount {
        target: b"/dev".to_vec(),
        kind: MountKind::Dev,
        source: b"tmpfs".to_vec(),
        flags: libc::MS_NOSUID | libc::MS_STRICTATIME,
        data: b"mode=755,size=65536k".to_vec(),
        required: true,
    }
}

impl Mounts {
    fn add(&mut self, dir: &Path, mount: &Mount) -> Result<()> {
        let target = target(mount.destination())?;
        let shown = target.to_string_lossy().into_owned();
        let mapped = |map: &Option<Vec<_>>| map.as_ref().is_some_and(|m: &Vec<_>| !m.is_empty());
        if mapped(mount.uid_mappings()) || mapped(mount.gid_mappings()) {
            bail!("mount {shown}: id-mapped mounts are not supported");
        }
        let parsed = options::parse(&shown, mount.options().as_deref().unwrap_or_default())?;
        let kind = mount.typ().as_deref().unwrap_or_default();
        if parsed.bind.is_some() || kind == "bind" {
            let Some(source) = mount.source().as_ref().filter(|s| !s.as_os_str().is_empty()) else {
                bail!("mount {shown}: a bind mount needs a source");
            };
            return self.bind(dir, source, &target, parsed);
        }
        let kind = match kind {
            "tmpfs" if target == Path::new("/dev") => MountKind::Dev,
            "tmpfs" => MountKind::Tmpfs,
            "proc" => MountKind::Proc,
            "sysfs" => MountKind::Sysfs,
            "devpts" => MountKind::Devpts,
            "mqueue" => MountKind::Mqueue,
            "cgroup" | "cgroup2" => MountKind::Cgroup,
            "" | "none" => bail!("mount {shown}: neither a type of file system nor a bind mount is given"),
            other => bail!("mount {shown}: no file system {other:?} in a sandbox; mount it on the host, and bind it"),
        };
        if parsed.copy_up && kind != MountKind::Tmpfs {
            bail!("mount {shown}: tmpcopyup is for tmpfs");
        }
        let source = mount.source().as_ref().map_or(b"none".as_slice(), |s| s.as_os_str().as_bytes());
        self.push(&target, kind, source, parsed);
        Ok(())
    }

    /// A mount that shows `source`, a path of the host's, relative ones below the bundle.
    pub fn bind(&mut self, dir: &Path, source: &Path, target: &Path, parsed: Parsed) -> Result<()> {
        let shown = source.display();
        let context =
            || format!("error mounting {:?} to rootfs at {:?}", shown.to_string(), target.display().to_string());
        let source = dir.join(source).canonicalize().with_context(context)?;
        let meta = source.metadata().with_context(context)?;
        let kind = match self.instead(&source, &meta).with_context(context)? {
            Some(kind) => kind,
            None => {
                let name = format!("mount{}", self.trees.len());
                let read_only = parsed.flags & libc::MS_RDONLY != 0;
                let source = source.as_os_str().as_bytes().to_vec();
                self.trees.push(Tree { name: name.clone(), source, read_only });
                MountKind::Tree(name)
            }
        };
        // A device that is there already.
        if kind == MountKind::Bind(target.as_os_str().as_bytes().to_vec()) {
            return Ok(());
        }
        let recursive = if parsed.bind == Some(true) { libc::MS_REC } else { 0 };
        // File system options have no meaning for a bind; the kernel ignores them.
        let parsed = Parsed { flags: parsed.flags | recursive, data: Vec::new(), ..parsed };
        self.push(target, kind, source.as_os_str().as_bytes(), parsed);
        Ok(())
    }

    /// What the guest gets in place of an interface of the host's kernel: its own, where that is meant, or an error.
    fn instead(&self, source: &Path, meta: &Metadata) -> Result<Option<MountKind>> {
        let kind = meta.file_type();
        if kind.is_socket() {
            bail!("{} is a socket of the host: processes of a sandbox cannot connect to it", source.display());
        }
        if kind.is_fifo() {
            bail!("{} is a pipe of the host, which no sandbox gets", source.display());
        }
        if kind.is_block_device() || kind.is_char_device() {
            return device(source, meta).map(Some);
        }
        let own = match source.as_os_str().as_bytes() {
            b"/proc" => Some(MountKind::Proc),
            b"/sys" => Some(MountKind::Sysfs),
            b"/sys/fs/cgroup" => Some(MountKind::Cgroup),
            b"/dev" => Some(MountKind::Dev),
            b"/dev/pts" => Some(MountKind::Devpts),
            b"/dev/mqueue" => Some(MountKind::Mqueue),
            _ => None,
        };
        if own.is_some() {
            log::info!("{}: the container gets the sandbox's own, not the host's", source.display());
            return Ok(own);
        }
        match gofer::kernel_file_system(source)? {
            Some(kind) => bail!(
                "{} is an interface of the host's kernel ({kind}), which no sandbox gets; it has a /proc, /sys \
                 and /dev of its own",
                source.display()
            ),
            None => Ok(None),
        }
    }

    fn push(&mut self, target: &Path, kind: MountKind, source: &[u8], parsed: Parsed) {
        let mut data = parsed.data;
        if parsed.copy_up {
            data.push("tmpcopyup".into());
        }
        // As mount(2) does it.
        let explicit = parsed.flags & (libc::MS_NOATIME | libc::MS_STRICTATIME) != 0;
        let atime = if explicit { 0 } else { libc::MS_RELATIME };
        self.mounts.push(GuestMount {
            target: target.as_os_str().as_bytes().to_vec(),
            kind,
            source: source.to_vec(),
            flags: parsed.flags | parsed.propagation | atime,
            data: data.join(",").into_bytes(),
            required: true,
        });
    }
}

/// The guest's device that a device of the host stands for.
fn device(source: &Path, meta: &Metadata) -> Result<MountKind> {
    let number = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    let known = sentry::fs::dev::NODES.iter().find(|node| (node.3, node.4) == number);
    match known.filter(|_| meta.file_type().is_char_device()) {
        Some((name, ..)) => Ok(MountKind::Bind(format!("/dev/{name}").into_bytes())),
        None => bail!(
            "{} is device {}:{} of the host, which no sandbox gets; it has the devices null, zero, full, \
             random, urandom and tty",
            source.display(),
            number.0,
            number.1
        ),
    }
}

/// The mount point, from the container's root: `..` does not lead above it. Links in it are the Sentry's to follow,
/// inside.
fn target(destination: &Path) -> Result<PathBuf> {
    if !destination.is_absolute() {
        log::warn!("mount destination {} is not absolute: it is taken from the root", destination.display());
    }
    let mut clean = PathBuf::from("/");
    for part in destination.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if clean == Path::new("/") {
        bail!("mount destination {}: nothing can be mounted over the root", destination.display());
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(mounts: serde_json::Value) -> Result<Mounts> {
        plan(Path::new("/etc"), &serde_json::from_value::<Vec<Mount>>(mounts).unwrap())
    }

    fn one(target: &str, kind: &str, source: &str, options: &[&str]) -> Result<(GuestMount, Vec<Tree>)> {
        let mount = json!({ "destination": target, "type": kind, "source": source, "options": options });
        let mut all = of(json!([{ "destination": "/dev", "type": "tmpfs" }, mount]))?;
        assert_eq!(all.mounts[0].kind, MountKind::Dev);
        Ok((all.mounts.pop().unwrap(), all.trees))
    }

    #[test]
    fn file_systems() {
        let kinds = [
            ("tmpfs", MountKind::Tmpfs),
            ("proc", MountKind::Proc),
            ("sysfs", MountKind::Sysfs),
            ("devpts", MountKind::Devpts),
            ("mqueue", MountKind::Mqueue),
            ("cgroup", MountKind::Cgroup),
            ("cgroup2", MountKind::Cgroup),
        ];
        for (name, kind) in kinds {
            assert_eq!(one("/x", name, name, &[]).unwrap().0.kind, kind);
        }
        let (tmpfs, _) = one("/t", "tmpfs", "t", &["nosuid", "mode=755", "size=64k", "tmpcopyup", "rslave"]).unwrap();
        assert_eq!((tmpfs.data, tmpfs.target), (b"mode=755,size=64k,tmpcopyup".to_vec(), b"/t".to_vec()));
        assert_eq!(tmpfs.flags, libc::MS_NOSUID | libc::MS_SLAVE | libc::MS_REC | libc::MS_RELATIME);
        assert_eq!(one("/t", "tmpfs", "t", &["strictatime"]).unwrap().0.flags, libc::MS_STRICTATIME);
        for wrong in ["", "none", "ext4", "overlay", "nfs"] {
            assert!(one("/x", wrong, "x", &[]).is_err(), "{wrong}");
        }
        assert!(one("/x", "proc", "x", &["tmpcopyup"]).is_err());
        // Devices are there without a mount for them.
        assert_eq!(of(json!([])).unwrap().mounts[0].kind, MountKind::Dev);
        assert_eq!(
            of(json!([{ "destination": "/dev", "source": "/tmp", "options": ["bind"] }])).unwrap().mounts.len(),
            1
        );
    }

    #[test]
    fn binds() {
        let (mount, trees) = one("/x/../../y/./z", "none", "/usr/share", &["rbind", "ro", "size=5"]).unwrap();
        assert_eq!((mount.target, mount.data), (b"/y/z".to_vec(), vec![]));
        assert_eq!(mount.flags, libc::MS_RDONLY | libc::MS_REC | libc::MS_RELATIME);
        assert_eq!(mount.kind, MountKind::Tree(trees[0].name.clone()));
        assert_eq!((trees[0].source.clone(), trees[0].read_only), (b"/usr/share".to_vec(), true));
        // A file, relative to the bundle.
        let (mount, trees) = one("etc/passwd", "bind", "passwd", &[]).unwrap();
        assert_eq!((mount.target, mount.flags), (b"/etc/passwd".to_vec(), libc::MS_RELATIME));
        assert_eq!((trees[0].source.clone(), trees[0].read_only), (b"/etc/passwd".to_vec(), false));
        for wrong in ["/no/such/file", ""] {
            assert!(one("/x", "bind", wrong, &[]).is_err(), "{wrong}");
        }
        for wrong in ["/", "/..", "a/..", "."] {
            assert!(one(wrong, "bind", "/usr/share", &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn kernel_interfaces_are_the_sandboxs_own() {
        let kind = |source| one("/x", "bind", source, &["rbind"]).map(|m| (m.0.kind, m.1.len()));
        assert_eq!(kind("/proc").unwrap(), (MountKind::Proc, 0));
        assert_eq!(kind("/sys").unwrap(), (MountKind::Sysfs, 0));
        assert_eq!(kind("/dev/null").unwrap(), (MountKind::Bind(b"/dev/null".to_vec()), 0));
        for wrong in ["/proc/self/fd", "/proc/sys", "/proc/1/root", "/sys/kernel", "/proc/kmsg"] {
            assert!(kind(wrong).is_err() || !Path::new(wrong).exists() || wrong.ends_with("root"), "{wrong}");
        }
        // The same device in its place is no mount.
        let all = of(json!([{ "destination": "/dev", "type": "tmpfs" },
            { "destination": "/dev/null", "source": "/dev/null", "options": ["bind"] }]));
        assert_eq!(all.unwrap().mounts.len(), 1);
    }

    #[test]
    fn sockets_pipes_and_devices() {
        let dir = std::env::temp_dir().join(format!("runsc-rs-mounts-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
        nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        for name in ["socket", "pipe"] {
            let error = one("/x", "bind", dir.join(name).to_str().unwrap(), &[]).unwrap_err();
            assert!(format!("{error:#}").contains(&format!("is a {name} of the host")), "{error:#}");
        }
        drop(socket);
        std::fs::remove_dir_all(&dir).unwrap();
        if Path::new("/dev/ptmx").metadata().is_ok_and(|m| m.file_type().is_char_device()) {
            let error = one("/x", "bind", "/dev/ptmx", &[]).unwrap_err();
            assert!(format!("{error:#}").contains("is device 5:2 of the host"), "{error:#}");
        }
    }
}
