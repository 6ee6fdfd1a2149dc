//! mount(2), umount2(2), pivot_root(2).

use super::arg::*;
use super::fs_stat::at;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::fs::fstype::{Config, Mounter, Type};
use crate::fs::vfs::{resolve, LookupFlags, MountFlags, MountNamespace, Path, PropagationType};
use crate::kernel::cred::CAP_SYS_ADMIN;
use platform::executor::Rounds;
use std::sync::Arc;

/// `EPERM` unless the caller may change the mounts of its namespace.
pub(super) fn may_mount(cx: &Ctx<'_>) -> Result<Arc<MountNamespace>> {
    let ns = cx.task.ns().mnt.clone();
    let may = cx.task.cred().capable_in(&ns.common().owner(), CAP_SYS_ADMIN);
    may.then_some(ns).ok_or(Errno::EPERM)
}

pub(super) fn is_root(p: &Path) -> bool {
    Arc::ptr_eq(p.dentry(), p.mount().root_dentry())
}

/// Runs `f` with what makes file systems for the caller.
pub(super) fn with_mounter<R>(cx: &Ctx<'_>, f: impl FnOnce(&Mounter<'_>) -> R) -> R {
    let (cred, ns) = (cx.task.cred(), cx.task.ns());
    let find = |path: &[u8]| resolve(cx.task, libc::AT_FDCWD, path, LookupFlags::FOLLOW);
    f(&Mounter { kernel: cx.kernel(), cred: &cred, ipc: &ns.ipc, pids: None, ns: Some(&ns), find: &find })
}

/// Flags of a mount for `MS_*`.
fn own_flags(flags: u64) -> MountFlags {
    let mut own = MountFlags::from_bits_truncate(flags as u32) - MountFlags::RELATIME;
    if flags & (libc::MS_NOATIME | libc::MS_STRICTATIME) == 0 {
        own |= MountFlags::RELATIME;
    }
    if flags & libc::MS_STRICTATIME != 0 {
        own -= MountFlags::NOATIME;
    }
    own
}

/// The propagation type that flags of mount(2) ask for, with `MS_REC`.
fn propagation(flags: u64) -> Result<(PropagationType, bool)> {
    const KINDS: u64 = libc::MS_SHARED | libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_UNBINDABLE;
    if flags & !(KINDS | libc::MS_REC | libc::MS_SILENT) != 0 {
        return Err(Errno::EINVAL);
    }
    Ok((PropagationType::of_flag(flags & KINDS)?, flags & libc::MS_REC != 0))
}

pub fn mount(cx: &mut Ctx<'_>, source: Addr, target: PathPtr, kind: Addr, flags: u64, data: Addr) -> SysResult {
    const KIND_MAX: usize = 4096;
    /// A magic number of old programs.
    const MGC: u64 = 0xc0ed_0000;
    let text = |cx: &Ctx<'_>, a: Addr| -> Result<Option<Vec<u8>>> {
        (!a.is_null()).then(|| cx.read_cstr(a.0, KIND_MAX, Errno::EINVAL)).transpose()
    };
    let kind = text(cx, kind)?;
    let source = text(cx, source)?.unwrap_or_default();
    let data = text(cx, data)?.unwrap_or_default();
    let place = at(cx, libc::AT_FDCWD, target.0, true, false)?;
    let flags = if flags & 0xffff_0000 == MGC { flags & 0xffff } else { flags };
    if flags & (1 << 31) != 0 {
        // MS_NOUSER.
        return Err(Errno::EINVAL.into());
    }
    let ns = may_mount(cx)?;
    if flags & libc::MS_REMOUNT != 0 {
        remount(cx, &ns, &place, flags, &data)?;
    } else if flags & libc::MS_BIND != 0 {
        let from = bind_source(cx, &source)?;
        ns.bind(&from, &place, flags & libc::MS_REC != 0)?;
    } else if flags & (libc::MS_SHARED | libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_UNBINDABLE) != 0 {
        let (to, recursive) = propagation(flags)?;
        ns.change_type(&place, to, recursive)?;
    } else if flags & libc::MS_MOVE != 0 {
        let from = bind_source(cx, &source)?;
        ns.move_mount(&from, &place)?;
    } else {
        let kind = kind.ok_or(Errno::EINVAL)?;
        new_mount(cx, &ns, &place, &kind, &source, flags, &data)?;
    }
    Ok(0)
}

fn bind_source(cx: &Ctx<'_>, source: &[u8]) -> Result<Path> {
    if source.is_empty() {
        return Err(Errno::EINVAL);
    }
    resolve(cx.task, libc::AT_FDCWD, source, LookupFlags::FOLLOW)
}

fn new_mount(
    cx: &Ctx<'_>,
    ns: &MountNamespace,
    place: &Path,
    kind: &[u8],
    source: &[u8],
    flags: u64,
    data: &[u8],
) -> Result<()> {
    let mut config = Config::new(Type::find(kind)?);
    config.source = source.to_vec();
    config.read_only = flags & libc::MS_RDONLY != 0;
    config.set_all(data)?;
    let root = with_mounter(cx, |m| {
        config.permit(m)?;
        config.create(m)
    })?;
    ns.mount(&config.mount(root, own_flags(flags), ns)?, place)
}

fn remount(cx: &Ctx<'_>, ns: &MountNamespace, place: &Path, flags: u64, data: &[u8]) -> Result<()> {
    let m = place.mount();
    if !is_root(place) || !ns.has(m) {
        return Err(Errno::EINVAL);
    }
    let mut own = own_flags(flags);
    const TIMES: u64 = libc::MS_NOATIME | libc::MS_NODIRATIME | libc::MS_RELATIME | libc::MS_STRICTATIME;
    if flags & TIMES == 0 {
        own = (own - MountFlags::ATIME) | (m.flags() & MountFlags::ATIME);
    }
    if !m.may_become(own) {
        return Err(Errno::EPERM);
    }
    if flags & libc::MS_BIND == 0 {
        if !cx.task.cred().capable_in(&m.sb().owner(), CAP_SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        if let Ok(kind) = Type::find(m.sb().fstype.as_bytes()) {
            let mut config = Config::new(kind);
            config.read_only = flags & libc::MS_RDONLY != 0;
            config.set_all(data)?;
            m.sb().set_read_only(config.read_only)?;
        } else {
            m.sb().set_read_only(flags & libc::MS_RDONLY != 0)?;
        }
    }
    m.set_flags(own);
    Ok(())
}

pub fn umount2(cx: &mut Ctx<'_>, target: PathPtr, flags: i32) -> SysResult {
    const UMOUNT_NOFOLLOW: i32 = 8;
    if flags & !(libc::MNT_FORCE | libc::MNT_DETACH | libc::MNT_EXPIRE | UMOUNT_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let path = cx.read_path(target.0)?;
    let follow = if flags & UMOUNT_NOFOLLOW == 0 { LookupFlags::FOLLOW } else { LookupFlags::empty() };
    let place = resolve(cx.task, libc::AT_FDCWD, &path, follow | LookupFlags::KEEP_MARK)?;
    let ns = may_mount(cx)?;
    // Mounts may be stacked, and the working directory may be in a lower one.
    let place = crate::fs::vfs::walk::uppermost(place);
    if flags & libc::MNT_FORCE != 0 && !cx.task.cred().has(CAP_SYS_ADMIN) {
        return Err(Errno::EPERM.into());
    }
    if !is_root(&place) || !ns.has(place.mount()) {
        return Err(Errno::EINVAL.into());
    }
    let of_root = Arc::ptr_eq(cx.task.fs().lock().root.mount(), place.mount());
    if flags & libc::MNT_EXPIRE != 0 {
        if of_root || flags & (libc::MNT_FORCE | libc::MNT_DETACH) != 0 {
            return Err(Errno::EINVAL.into());
        }
        if !place.mount().mark_expiring() {
            return Err(Errno::EAGAIN.into());
        }
    }
    if of_root && flags & libc::MNT_DETACH == 0 {
        // Linux makes it read-only instead, which it is too busy for.
        return Err(Errno::EBUSY.into());
    }
    ns.umount(place, flags & libc::MNT_DETACH != 0)?;
    Ok(0)
}

pub fn pivot_root(cx: &mut Ctx<'_>, new: PathPtr, put_old: PathPtr) -> SysResult {
    let ns = may_mount(cx)?;
    let find = |cx: &Ctx<'_>, p: PathPtr| -> Result<Path> {
        let path = cx.read_path(p.0)?;
        resolve(cx.task, libc::AT_FDCWD, &path, LookupFlags::FOLLOW | LookupFlags::DIRECTORY)
    };
    let new = find(cx, new)?;
    let put_old = find(cx, put_old)?;
    let root = cx.task.fs().lock().root.clone();
    ns.pivot_root(&new, &put_old, &root)?;
    // Tasks at the old root come along.
    let tasks: Vec<_> = cx.kernel().tree.lock().tasks.values().cloned().collect();
    let mut rounds = Rounds::new();
    let mut gone = Vec::new();
    for t in tasks {
        rounds.next();
        let fs = t.fs();
        let mut fs = fs.lock();
        if fs.root == root {
            gone.push(std::mem::replace(&mut fs.root, new.clone()));
        }
        if fs.cwd == root {
            gone.push(std::mem::replace(&mut fs.cwd, new.clone()));
        }
    }
    drop(gone);
    Ok(0)
}
