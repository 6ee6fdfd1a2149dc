//! chmod(2), chown(2), utimensat(2), truncate(2), setxattr(2), getxattr(2), listxattr(2), removexattr(2).

use super::arg::*;
use super::fs_stat::at;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::fs::vfs::ops::{self, SetTime};
use crate::fs::vfs::perm::{self, owner_or_capable, permission, MAY_READ, MAY_WRITE};
use crate::fs::vfs::Path;
use crate::fs::{acl, deny, SetAttr, Timespec};
use crate::kernel::cred::{self, CAP_SETFCAP, CAP_SYS_ADMIN, NO_ID};
use crate::kernel::wait::yield_now;

fn do_chmod(cx: &Ctx<'_>, p: &Path, mode: Mode) -> SysResult {
    if p.kind() == libc::S_IFLNK {
        return Err(Errno::EOPNOTSUPP.into());
    }
    ops::chmod(p, mode.0, &cx.task.cred())?;
    Ok(0)
}

pub fn chmod(cx: &mut Ctx<'_>, path: PathPtr, mode: Mode) -> SysResult {
    let p = at(cx, libc::AT_FDCWD, path.0, true, false)?;
    do_chmod(cx, &p, mode)
}

pub fn fchmodat(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, mode: Mode) -> SysResult {
    let p = at(cx, dirfd.0, path.0, true, false)?;
    do_chmod(cx, &p, mode)
}

pub fn fchmodat2(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, mode: Mode, flags: i32) -> SysResult {
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let p = at(cx, dirfd.0, path.0, flags & libc::AT_SYMLINK_NOFOLLOW == 0, flags & libc::AT_EMPTY_PATH != 0)?;
    do_chmod(cx, &p, mode)
}

pub fn fchmod(cx: &mut Ctx<'_>, fd: Fd, mode: Mode) -> SysResult {
    do_chmod(cx, &opened(cx, fd)?, mode)
}

/// Changes the owner to ids of the caller's user namespace; -1 leaves one as it is.
fn change_owner(cx: &Ctx<'_>, p: &Path, uid: u32, gid: u32) -> Result<()> {
    let cred = cx.task.cred();
    let kept = |id: u32| (id != NO_ID).then_some(id);
    let (uid, gid) = (cred.user_ns.uid_or_none_in(uid)?, cred.user_ns.gid_or_none_in(gid)?);
    ops::chown(p, kept(uid), kept(gid), &cred)
}

pub fn chown(cx: &mut Ctx<'_>, path: PathPtr, uid: u32, gid: u32) -> SysResult {
    let p = at(cx, libc::AT_FDCWD, path.0, true, false)?;
    change_owner(cx, &p, uid, gid)?;
    Ok(0)
}

pub fn lchown(cx: &mut Ctx<'_>, path: PathPtr, uid: u32, gid: u32) -> SysResult {
    let p = at(cx, libc::AT_FDCWD, path.0, false, false)?;
    change_owner(cx, &p, uid, gid)?;
    Ok(0)
}

pub fn fchownat(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, uid: u32, gid: u32, flags: i32) -> SysResult {
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let p = at(cx, dirfd.0, path.0, flags & libc::AT_SYMLINK_NOFOLLOW == 0, flags & libc::AT_EMPTY_PATH != 0)?;
    change_owner(cx, &p, uid, gid)?;
    Ok(0)
}

pub fn fchown(cx: &mut Ctx<'_>, fd: Fd, uid: u32, gid: u32) -> SysResult {
    change_owner(cx, &opened(cx, fd)?, uid, gid)?;
    Ok(0)
}

const UTIME_NOW: i64 = 0x3fff_ffff;
const UTIME_OMIT: i64 = 0x3fff_fffe;

fn set_time([sec, nsec]: [i64; 2]) -> Result<SetTime> {
    match nsec {
        UTIME_NOW => Ok(SetTime::Now),
        UTIME_OMIT => Ok(SetTime::Omit),
        0..1_000_000_000 => Ok(SetTime::At(Timespec { sec, nsec: nsec as u32 })),
        _ => Err(Errno::EINVAL),
    }
}

fn do_utimes(cx: &Ctx<'_>, dirfd: i32, path: u64, times: [SetTime; 2], flags: i32) -> SysResult {
    let cred = cx.task.cred();
    if path == 0 && dirfd != libc::AT_FDCWD && flags == 0 {
        ops::utimes(&opened(cx, Fd(dirfd))?, times[0], times[1], &cred)?;
        return Ok(0);
    }
    let p = at(cx, dirfd, path, flags & libc::AT_SYMLINK_NOFOLLOW == 0, flags & libc::AT_EMPTY_PATH != 0)?;
    ops::utimes(&p, times[0], times[1], &cred)?;
    Ok(0)
}

pub fn utimensat(cx: &mut Ctx<'_>, dirfd: Fd, path: Addr, times: Addr, flags: i32) -> SysResult {
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let t = if times.is_null() {
        [SetTime::Now; 2]
    } else {
        let [a, b, c, d]: [i64; 4] = cx.read(times.0)?;
        [set_time([a, b])?, set_time([c, d])?]
    };
    do_utimes(cx, dirfd.0, path.0, t, flags)
}

pub fn utime(cx: &mut Ctx<'_>, path: PathPtr, times: Addr) -> SysResult {
    let t = if times.is_null() {
        [SetTime::Now; 2]
    } else {
        let [a, m]: [i64; 2] = cx.read(times.0)?;
        [a, m].map(|sec| SetTime::At(Timespec { sec, nsec: 0 }))
    };
    do_utimes(cx, libc::AT_FDCWD, path.0, t, 0)
}

fn from_micros(cx: &Ctx<'_>, times: Addr) -> Result<[SetTime; 2]> {
    if times.is_null() {
        return Ok([SetTime::Now; 2]);
    }
    let [a, b, c, d]: [i64; 4] = cx.read(times.0)?;
    let one = |sec, us: i64| match us {
        0..1_000_000 => Ok(SetTime::At(Timespec { sec, nsec: us as u32 * 1000 })),
        _ => Err(Errno::EINVAL),
    };
    Ok([one(a, b)?, one(c, d)?])
}

pub fn utimes(cx: &mut Ctx<'_>, path: PathPtr, times: Addr) -> SysResult {
    let t = from_micros(cx, times)?;
    do_utimes(cx, libc::AT_FDCWD, path.0, t, 0)
}

pub fn futimesat(cx: &mut Ctx<'_>, dirfd: Fd, path: Addr, times: Addr) -> SysResult {
    let t = from_micros(cx, times)?;
    do_utimes(cx, dirfd.0, path.0, t, 0)
}

fn new_size(cx: &Ctx<'_>, size: i64) -> SysResult<u64> {
    let size = u64::try_from(size).map_err(|_| Errno::EINVAL)?;
    if size > cx.task.limit(libc::RLIMIT_FSIZE) {
        return Err(super::io::too_big(cx));
    }
    Ok(size)
}

pub async fn truncate(cx: &mut Ctx<'_>, path: PathPtr, size: i64) -> SysResult {
    let size = new_size(cx, size)?;
    let p = at(cx, libc::AT_FDCWD, path.0, true, false)?;
    if let Some(leases) = crate::fs::lease::stop(p.inode(), true) {
        permission(&p, &cx.task.cred(), MAY_WRITE)?;
        leases.wait(cx.task, true).await?;
    }
    if p.kind() == libc::S_IFREG {
        permission(&p, &cx.task.cred(), MAY_WRITE)?;
        // Not that of a running program.
        let _writer = deny::write_access(&p)?;
        shorten(&p, size).await;
    }
    ops::truncate(&p, size, &cx.task.cred())?;
    Ok(0)
}

/// Shortens a long file in steps that let other tasks run in between; otherwise the host frees all its blocks
/// at once. An error here ends the steps; the caller's own truncation then reports it.
async fn shorten(p: &Path, size: u64) {
    const STEP: u64 = 4 << 20;
    let Ok(attr) = p.inode().attr() else { return };
    if attr.blocks.saturating_mul(512) <= 2 * STEP {
        return;
    }
    // In a file with holes most steps free nothing.
    let step = STEP.max(attr.size / 8192);
    let mut len = attr.size;
    while len.saturating_sub(size) > step {
        len -= step;
        if p.inode().set_attr(&SetAttr { size: Some(len), ..SetAttr::default() }).is_err() {
            return;
        }
        yield_now().await;
    }
}

pub async fn ftruncate(cx: &mut Ctx<'_>, fd: Fd, size: i64) -> SysResult {
    if size < 0 {
        return Err(Errno::EINVAL.into());
    }
    let f = cx.io_file(fd.0)?;
    if !f.writable() {
        return Err(Errno::EINVAL.into());
    }
    match &f.path {
        Some(p) if p.kind() != libc::S_IFREG => Err(Errno::EINVAL.into()),
        Some(p) => {
            let size = new_size(cx, size)?;
            shorten(p, size).await;
            ops::resize(p, size, &cx.task.cred())?;
            Ok(0)
        }
        None => {
            f.ops.set_attr(&SetAttr { size: Some(size as u64), ..SetAttr::default() })?;
            Ok(0)
        }
    }
}

const CAPABILITY: &[u8] = b"security.capability";
const XATTR_NAME_MAX: usize = 255;
const XATTR_SIZE_MAX: usize = 65536;

fn xattr_name(cx: &Ctx<'_>, addr: u64) -> Result<Vec<u8>> {
    let n = cx.read_cstr(addr, XATTR_NAME_MAX + 1, Errno::ERANGE)?;
    if n.is_empty() {
        return Err(Errno::ERANGE);
    }
    Ok(n)
}

/// Permission rules of xattr(7) for the attribute `name`.
fn may_xattr(cx: &Ctx<'_>, p: &Path, name: &[u8], write: bool) -> Result<()> {
    let cred = cx.task.cred();
    if write {
        perm::want_write(p)?;
    }
    if name.starts_with(b"user.") {
        if !matches!(p.kind(), libc::S_IFREG | libc::S_IFDIR) {
            return Err(if write { Errno::EPERM } else { Errno::ENODATA });
        }
        let at = p.inode().perm()?;
        if write && p.is_dir() && at.mode & libc::S_ISVTX != 0 && !owner_or_capable(at, &cred) {
            return Err(Errno::EPERM);
        }
        return perm::permission(p, &cred, if write { MAY_WRITE } else { MAY_READ });
    }
    if name.starts_with(b"trusted.") {
        return match (cred.has(CAP_SYS_ADMIN), write) {
            (true, _) => Ok(()),
            (false, true) => Err(Errno::EPERM),
            (false, false) => Err(Errno::ENODATA),
        };
    }
    if name.starts_with(b"security.") {
        let allowed = || -> Result<bool> {
            if name != CAPABILITY {
                return Ok(cred.has(CAP_SYS_ADMIN));
            }
            let at = p.inode().perm()?;
            Ok(cred.capable_over(at.uid, at.gid, CAP_SETFCAP))
        };
        return if !write || allowed()? { Ok(()) } else { Err(Errno::EPERM) };
    }
    if matches!(name, acl::ACCESS | acl::DEFAULT) && p.kind() != libc::S_IFLNK {
        return Ok(());
    }
    Err(Errno::EOPNOTSUPP)
}

/// The place of an open file, or one made for an object without.
fn opened(cx: &Ctx<'_>, fd: Fd) -> Result<Path> {
    crate::fs::vfs::anon_path(&cx.io_file(fd.0)?)
}

fn set(cx: &Ctx<'_>, p: &Path, name: Addr, value: Addr, size: usize, flags: i32) -> SysResult {
    if flags & !(libc::XATTR_CREATE | libc::XATTR_REPLACE) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let name = xattr_name(cx, name.0)?;
    if size > XATTR_SIZE_MAX {
        return Err(Errno::E2BIG.into());
    }
    let mut v = vec![0u8; size];
    cx.mem().read_bytes(value.0, &mut v)?;
    if matches!(&*name, acl::ACCESS | acl::DEFAULT) {
        let cred = cx.task.cred();
        acl::map_ids(&mut v, |kind, id| cred.user_ns.id_in(kind, id).ok_or(Errno::EINVAL))?;
        ops::set_acl(p, &name, Some(&v), &cred)?;
        return Ok(0);
    }
    if name == CAPABILITY {
        let at = p.inode().perm()?;
        v = cred::caps_to_store(&cx.task.cred(), &v, at.uid, at.gid)?;
    }
    may_xattr(cx, p, &name, true)?;
    p.inode().set_xattr(&name, &v, flags)?;
    Ok(0)
}

pub fn setxattr(cx: &mut Ctx<'_>, path: PathPtr, name: Addr, value: Addr, size: usize, flags: i32) -> SysResult {
    let p = at(cx, libc::AT_FDCWD, path.0, true, false)?;
    set(cx, &p, name, value, size, flags)
}

pub fn lsetxattr(cx: &mut Ctx<'_>, path: PathPtr, name: Addr, value: Addr, size: usize, flags: i32) -> SysResult {
    let p = at(cx, libc::AT_FDCWD, path.0, false, false)?;
    set(cx, &p, name, value, size, flags)
}

pub fn fsetxattr(cx: &mut Ctx<'_>, fd: Fd, name: Addr, value: Addr, size: usize, flags: i32) -> SysResult {
    let p = opened(cx, fd)?;
    set(cx, &p, name, value, size, flags)
}

/// Stores `data` in a buffer of `size` bytes; size 0 only queries the length.
fn answer(cx: &mut Ctx<'_>, buf: Addr, size: usize, data: &[u8]) -> SysResult {
    if size != 0 {
        if data.len() > size {
            return Err(Errno::ERANGE.into());
        }
        cx.write_bytes(buf.0, data)?;
    }
    Ok(data.len() as u64)
}

fn get(cx: &mut Ctx<'_>, p: &Path, name: Addr, buf: Addr, size: usize) -> SysResult {
    let name = xattr_name(cx, name.0)?;
    may_xattr(cx, p, &name, false)?;
    let mut v = p.inode().get_xattr(&name)?;
    let cred = cx.task.cred();
    if name == CAPABILITY {
        v = cred::caps_to_show(&cred.user_ns, v)?;
    } else if matches!(&*name, acl::ACCESS | acl::DEFAULT) && !cred.user_ns.is_initial() {
        acl::map_ids(&mut v, |kind, id| Ok(cred.user_ns.id_out(kind, id).unwrap_or(NO_ID)))?;
    }
    answer(cx, buf, size, &v)
}

pub fn getxattr(cx: &mut Ctx<'_>, path: PathPtr, name: Addr, buf: Addr, size: usize) -> SysResult {
    let p = at(cx, libc::AT_FDCWD, path.0, true, false)?;
    get(cx, &p, name, buf, size)
}

pub fn lgetxattr(cx: &mut Ctx<'_>, path: PathPtr, name: Addr, buf: Addr, size: usize) -> SysResult {
    let p = at(cx, libc::AT_FDCWD, path.0, false, false)?;
    get(cx, &p, name, buf, size)
}

pub fn fgetxattr(cx: &mut Ctx<'_>, fd: Fd, name: Addr, buf: Addr, size: usize) -> SysResult {
    let p = opened(cx, fd)?;
    get(cx, &p, name, buf, size)
}

fn list(cx: &mut Ctx<'_>, p: &Path, buf: Addr, size: usize) -> SysResult {
    let trusted = cx.task.cred().has(CAP_SYS_ADMIN);
    let mut out = Vec::new();
    for n in p.inode().list_xattr()? {
        if trusted || !n.starts_with(b"trusted.") {
            out.extend_from_slice(&n);
            out.push(0);
        }
    }
    answer(cx, buf, size, &out)
}

pub fn listxattr(cx: &mut Ctx<'_>, path: PathPtr, buf: Addr, size: usize) -> SysResult {
    let p = at(cx, libc::AT_FDCWD, path.0, true, false)?;
    list(cx, &p, buf, size)
}

pub fn llistxattr(cx: &mut Ctx<'_>, path: PathPtr, buf: Addr, size: usize) -> SysResult {
    let p = at(cx, libc::AT_FDCWD, path.0, false, false)?;
    list(cx, &p, buf, size)
}

pub fn flistxattr(cx: &mut Ctx<'_>, fd: Fd, buf: Addr, size: usize) -> SysResult {
    let p = opened(cx, fd)?;
    list(cx, &p, buf, size)
}

fn remove(cx: &Ctx<'_>, p: &Path, name: Addr) -> SysResult {
    let name = xattr_name(cx, name.0)?;
    if matches!(&*name, acl::ACCESS | acl::DEFAULT) {
        ops::set_acl(p, &name, None, &cx.task.cred())?;
        return Ok(0);
    }
    may_xattr(cx, p, &name, true)?;
    p.inode().remove_xattr(&name)?;
    Ok(0)
}

pub fn removexattr(cx: &mut Ctx<'_>, path: PathPtr, name: Addr) -> SysResult {
    let p = at(cx, libc::AT_FDCWD, path.0, true, false)?;
    remove(cx, &p, name)
}

pub fn lremovexattr(cx: &mut Ctx<'_>, path: PathPtr, name: Addr) -> SysResult {
    let p = at(cx, libc::AT_FDCWD, path.0, false, false)?;
    remove(cx, &p, name)
}

pub fn fremovexattr(cx: &mut Ctx<'_>, fd: Fd, name: Addr) -> SysResult {
    let p = opened(cx, fd)?;
    remove(cx, &p, name)
}
