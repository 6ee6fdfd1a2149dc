//! `/proc/[pid]/{mounts,mountinfo,mountstats}`.

use super::pid::LiveTask;
use crate::error::{later, Errno, Result};
use crate::fs::pseudo::{check_length, Put, Super};
use crate::fs::vfs::mount_ns::describe_sharing;
use crate::fs::vfs::{Mount, MountFlags, Names, Path};
use crate::mm::user::PATH_MAX;
use platform::executor::Rounds;
use std::collections::HashMap;
use std::sync::Arc;

/// Characters that would break the columns.
const BAD: &[u8] = b" \t\n#";

/// Where mounts are as seen from a root; `None`: not below it, or with a name that no path can be.
struct Places {
    root: Path,
    known: HashMap<u64, Option<Arc<[u8]>>>,
}

impl Places {
    /// The place of a mount. Those of the mounts above it are found first and kept: however deep they nest, each name is made once.
    fn of(&mut self, mount: &Arc<Mount>) -> Option<Arc<[u8]>> {
        let mut above = vec![mount.clone()];
        while let Some(m) = above.last().cloned() {
            if self.known.contains_key(&m.id) {
                above.pop();
                continue;
            }
            let parent = m.mountpoint();
            if let Some(p) = parent.as_ref().map(Path::mount).filter(|p| !self.known.contains_key(&p.id)) {
                if self.root != m.root() {
                    above.push(p.clone());
                    continue;
                }
            }
            let place = self.find(&m, parent);
            self.known.insert(m.id, place);
            above.pop();
        }
        self.known.get(&mount.id).cloned().flatten()
    }

    fn find(&self, m: &Arc<Mount>, mountpoint: Option<Path>) -> Option<Arc<[u8]>> {
        if self.root == m.root() {
            return Some(Arc::from(&b""[..]));
        }
        let at = mountpoint?;
        let _stable = at.dentry().sb().rename.read();
        let above = self.known.get(&at.mount().id).cloned().flatten();
        let mut d = at.dentry().clone();
        if d.is_deleted() {
            return None;
        }
        let mut names = Names::default();
        let start = loop {
            if Arc::ptr_eq(&d, self.root.dentry()) && Arc::ptr_eq(at.mount(), self.root.mount()) {
                break Arc::from(&b""[..]);
            }
            if Arc::ptr_eq(&d, at.mount().root_dentry()) {
                break above?;
            }
            names.push(d.name()).ok()?;
            d = d.parent()?;
        };
        (start.len() + names.len() < PATH_MAX).then(|| names.below(&start).into())
    }
}

type Placed = (Arc<Mount>, Arc<[u8]>);

/// The mounts that the task can reach, with their places as it sees them.
fn reachable(live: &LiveTask) -> Result<Vec<Placed>> {
    let task = live.task.as_ref().ok_or(Errno::EINVAL)?;
    let root = task.fs().lock().root.clone();
    let ns = task.ns().mnt.clone();
    let mut out = Vec::new();
    let mut places = Places { root: root.clone(), known: HashMap::new() };
    let mut rounds = Rounds::new();
    for m in ns.list() {
        rounds.step().map_err(later)?;
        if m.mountpoint().is_none() && !Arc::ptr_eq(&m, root.mount()) && !Arc::ptr_eq(&m, ns.root().mount()) {
            continue;
        }
        let Some(place) = places.of(&m) else { continue };
        out.push((m, if place.is_empty() { Arc::from(&b"/"[..]) } else { place }));
    }
    Ok(out)
}

fn flags(out: &mut Vec<u8>, f: MountFlags) {
    out.s(if f.contains(MountFlags::RDONLY) { "ro" } else { "rw" });
    let names = [
        (MountFlags::NOSUID, ",nosuid"),
        (MountFlags::NODEV, ",nodev"),
        (MountFlags::NOEXEC, ",noexec"),
        (MountFlags::NOATIME, ",noatime"),
        (MountFlags::NODIRATIME, ",nodiratime"),
        (MountFlags::RELATIME, ",relatime"),
        (MountFlags::NOSYMFOLLOW, ",nosymfollow"),
    ];
    for (_, name) in names.iter().filter(|(bit, _)| f.contains(*bit)) {
        out.s(name);
    }
}

fn options(out: &mut Vec<u8>, m: &Mount) {
    if !m.sb().options.is_empty() {
        out.s(",").s(&m.sb().options);
    }
}

pub(super) fn mounts(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    let mut rounds = Rounds::new();
    for (m, place) in reachable(live)? {
        check_length(out, &mut rounds)?;
        out.esc(&m.sb().source, BAD).s(" ").esc(&place, BAD).s(" ").s(m.sb().fstype).s(" ");
        let ro = if m.read_only() { MountFlags::RDONLY } else { MountFlags::empty() };
        flags(out, m.flags() | ro);
        options(out, &m);
        out.s(" 0 0\n");
    }
    Ok(())
}

/// The part of the file system that a mount shows; `None` when that is longer than a path can be.
fn root_in_fs(m: &Arc<Mount>) -> Option<Vec<u8>> {
    if let Some(name) = m.root_dentry().inode().own_name() {
        return Some(name);
    }
    let mut names = Names::default();
    let mut d = m.root_dentry().clone();
    while let Some(up) = d.parent() {
        names.push(d.name()).ok()?;
        d = up;
    }
    Some(if names.len() == 0 { b"/".to_vec() } else { names.below(&[]) })
}

pub(super) fn mountinfo(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    let ns = live.task.as_ref().ok_or(Errno::EINVAL)?.ns().mnt.clone();
    let (mut rounds, mut known) = (Rounds::new(), Default::default());
    for (m, place) in reachable(live)? {
        let Some(shown) = root_in_fs(&m) else { continue };
        check_length(out, &mut rounds)?;
        let parent = m.mountpoint().map_or(m.id, |p: Path| p.mount().id);
        let dev = m.root_dentry().inode().attr().map_or(0, |a| a.dev);
        out.d(m.id).s(" ").d(parent).s(" ");
        out.d(u64::from(libc::major(dev))).s(":").d(u64::from(libc::minor(dev))).s(" ");
        out.esc(&shown, BAD).s(" ").esc(&place, BAD).s(" ");
        flags(out, m.flags());
        out.s(&describe_sharing(&ns, &m, &mut known)?).s(" - ").s(m.sb().fstype).s(" ").esc(&m.sb().source, BAD);
        out.s(if m.sb().read_only() { " ro" } else { " rw" });
        options(out, &m);
        out.s("\n");
    }
    Ok(())
}

pub(super) fn mountstats(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    let mut rounds = Rounds::new();
    for (m, place) in reachable(live)? {
        check_length(out, &mut rounds)?;
        out.s("device ").esc(&m.sb().source, BAD).s(" mounted on ").esc(&place, BAD);
        out.s(" with fstype ").s(m.sb().fstype).s("\n");
    }
    Ok(())
}
