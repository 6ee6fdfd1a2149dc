//! `/proc/[pid]/{mounts,mountinfo,mountstats}`.

use super::pid::Who;
use crate::error::{Errno, Result};
use crate::fs::pseudo::{Put, Super};
use crate::fs::vfs::{Mount, MountFlags, Path};
use std::sync::Arc;

/// Characters that would break the columns.
const BAD: &[u8] = b" \t\n#";

/// The mounts that the task can reach, with their places as it sees them.
fn reachable(who: &Who, sup: &Super) -> Result<Vec<(Arc<Mount>, Vec<u8>)>> {
    let root = who.task.as_ref().ok_or(Errno::EINVAL)?.fs().lock().root.clone();
    let ns = sup.kernel.mounts.read().clone().ok_or(Errno::EINVAL)?;
    let mut out = Vec::new();
    for m in ns.list() {
        let place = m.root();
        if m.mountpoint().is_none() && !Arc::ptr_eq(&m, root.mount()) && !Arc::ptr_eq(&m, ns.root().mount()) {
            continue;
        }
        match place.cwd_name(&root) {
            Ok(name) if name.starts_with(b"/") => out.push((m, name)),
            _ => {}
        }
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

pub(super) fn mounts(who: &Who, sup: &Super, out: &mut Vec<u8>) -> Result<()> {
    for (m, place) in reachable(who, sup)? {
        out.esc(&m.sb().source, BAD).s(" ").esc(&place, BAD).s(" ").s(m.sb().fstype).s(" ");
        flags(out, m.flags());
        options(out, &m);
        out.s(" 0 0\n");
    }
    Ok(())
}

/// The part of the file system that a mount shows.
fn root_in_fs(m: &Arc<Mount>) -> Vec<u8> {
    let mut parts = Vec::new();
    let mut d = m.root_dentry().clone();
    while let Some(up) = d.parent() {
        parts.push(d.name());
        d = up;
    }
    if parts.is_empty() {
        return b"/".to_vec();
    }
    let mut out = Vec::new();
    for p in parts.iter().rev() {
        out.push(b'/');
        out.extend_from_slice(p);
    }
    out
}

pub(super) fn mountinfo(who: &Who, sup: &Super, out: &mut Vec<u8>) -> Result<()> {
    for (m, place) in reachable(who, sup)? {
        let parent = m.mountpoint().map_or(m.id, |p: Path| p.mount().id);
        let dev = m.root_dentry().inode().attr().map_or(0, |a| a.dev);
        out.d(m.id).s(" ").d(parent).s(" ");
        out.d(u64::from(libc::major(dev))).s(":").d(u64::from(libc::minor(dev))).s(" ");
        out.esc(&root_in_fs(&m), BAD).s(" ").esc(&place, BAD).s(" ");
        flags(out, m.flags());
        out.s(" - ").s(m.sb().fstype).s(" ").esc(&m.sb().source, BAD);
        out.s(if m.read_only() { " ro" } else { " rw" });
        options(out, &m);
        out.s("\n");
    }
    Ok(())
}

pub(super) fn mountstats(who: &Who, sup: &Super, out: &mut Vec<u8>) -> Result<()> {
    for (m, place) in reachable(who, sup)? {
        out.s("device ").esc(&m.sb().source, BAD).s(" mounted on ").esc(&place, BAD);
        out.s(" with fstype ").s(m.sb().fstype).s("\n");
    }
    Ok(())
}
