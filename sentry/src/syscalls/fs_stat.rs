//! stat(2), statx(2), access(2), readlink(2), statfs(2).

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::fs::vfs::perm::{self, MAY_EXEC};
use crate::fs::vfs::{resolve, LookupFlags, MountFlags, Path};
use crate::fs::{Attr, File, StatFs, Timespec};
use crate::kernel::user_ns::UserNs;
use crate::kernel::Cred;
use std::sync::Arc;
use zerocopy::{Immutable, IntoBytes};

#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct KStat {
    dev: u64,
    ino: u64,
    nlink: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    pad: u32,
    rdev: u64,
    size: u64,
    blksize: u64,
    blocks: u64,
    times: [i64; 6],
    unused: [i64; 3],
}

impl KStat {
    /// As a task in user namespace `ns` sees it.
    fn new(a: &Attr, ns: &UserNs) -> Self {
        let t = |t: Timespec| [t.sec, i64::from(t.nsec)];
        let ([a0, a1], [m0, m1], [c0, c1]) = (t(a.atime), t(a.mtime), t(a.ctime));
        KStat {
            dev: a.dev,
            ino: a.ino,
            nlink: u64::from(a.nlink),
            mode: a.mode,
            uid: ns.uid_out(a.uid),
            gid: ns.gid_out(a.gid),
            pad: 0,
            rdev: a.rdev,
            size: a.size,
            blksize: u64::from(a.blksize),
            blocks: a.blocks,
            times: [a0, a1, m0, m1, c0, c1],
            unused: [0; 3],
        }
    }
}

/// The path that a `*at` call refers to.
pub(super) fn at(cx: &Ctx<'_>, dirfd: i32, path: u64, follow: bool, empty: bool) -> Result<Path> {
    let mut flags = LookupFlags::empty();
    flags.set(LookupFlags::FOLLOW, follow);
    flags.set(LookupFlags::EMPTY_PATH, empty);
    // With AT_EMPTY_PATH, a null pointer is an empty path too.
    let path = if empty && path == 0 { Vec::new() } else { cx.read_path(path)? };
    resolve(cx.task, dirfd, &path, flags)
}

fn put_stat(cx: &mut Ctx<'_>, buf: Addr, a: &Attr) -> SysResult {
    cx.write(buf.0, &KStat::new(a, &cx.task.cred.read().user_ns))?;
    Ok(0)
}

pub fn stat(cx: &mut Ctx<'_>, path: PathPtr, buf: Addr) -> SysResult {
    let a = at(cx, libc::AT_FDCWD, path.0, true, false)?.inode().attr()?;
    put_stat(cx, buf, &a)
}

pub fn lstat(cx: &mut Ctx<'_>, path: PathPtr, buf: Addr) -> SysResult {
    let a = at(cx, libc::AT_FDCWD, path.0, false, false)?.inode().attr()?;
    put_stat(cx, buf, &a)
}

pub fn fstat(cx: &mut Ctx<'_>, fd: Fd, buf: Addr) -> SysResult {
    let a = cx.file(fd.0)?.attr()?;
    put_stat(cx, buf, &a)
}

const AT_STATX: i32 = libc::AT_STATX_FORCE_SYNC | libc::AT_STATX_DONT_SYNC;

/// Attributes for newfstatat and statx.
fn attr_at(cx: &Ctx<'_>, dirfd: Fd, path: PathPtr, flags: i32) -> Result<(Attr, Option<Path>)> {
    let empty = flags & libc::AT_EMPTY_PATH != 0;
    if empty && dirfd.0 >= 0 && (path.0 == 0 || cx.read_path(path.0)?.is_empty()) {
        let f = cx.file(dirfd.0)?;
        return Ok((f.attr()?, f.path.clone()));
    }
    let p = at(cx, dirfd.0, path.0, flags & libc::AT_SYMLINK_NOFOLLOW == 0, empty)?;
    Ok((p.inode().attr()?, Some(p)))
}

pub fn newfstatat(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, buf: Addr, flags: i32) -> SysResult {
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT | AT_STATX) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let (a, _) = attr_at(cx, dirfd, path, flags)?;
    put_stat(cx, buf, &a)
}

#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct XTime {
    sec: i64,
    nsec: u32,
    pad: i32,
}

impl From<Timespec> for XTime {
    fn from(t: Timespec) -> Self {
        XTime { sec: t.sec, nsec: t.nsec, pad: 0 }
    }
}

#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct Statx {
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    pad1: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    atime: XTime,
    btime: XTime,
    ctime: XTime,
    mtime: XTime,
    rdev_major: u32,
    rdev_minor: u32,
    dev_major: u32,
    dev_minor: u32,
    mnt_id: u64,
    spare: [u64; 13],
}

const STATX_MNT_ID: u32 = 0x1000;
const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;

pub fn statx(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, flags: i32, mask: u32, buf: Addr) -> SysResult {
    let known = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT | AT_STATX;
    if flags & !known != 0 || flags & AT_STATX == AT_STATX || mask & 0x8000_0000 != 0 {
        return Err(Errno::EINVAL.into());
    }
    let (a, p) = attr_at(cx, dirfd, path, flags)?;
    let mut have = libc::STATX_BASIC_STATS;
    if a.btime != Timespec::default() {
        have |= libc::STATX_BTIME;
    }
    let ns = cx.task.cred().user_ns.clone();
    let mut s = Statx {
        blksize: a.blksize,
        nlink: a.nlink,
        uid: ns.uid_out(a.uid),
        gid: ns.gid_out(a.gid),
        mode: a.mode as u16,
        ino: a.ino,
        size: a.size,
        blocks: a.blocks,
        atime: a.atime.into(),
        btime: a.btime.into(),
        ctime: a.ctime.into(),
        mtime: a.mtime.into(),
        rdev_major: libc::major(a.rdev),
        rdev_minor: libc::minor(a.rdev),
        dev_major: libc::major(a.dev),
        dev_minor: libc::minor(a.dev),
        ..Statx::default()
    };
    if let Some(p) = p {
        have |= STATX_MNT_ID;
        s.mnt_id = p.mount().id;
        s.attributes_mask = STATX_ATTR_MOUNT_ROOT;
        if Arc::ptr_eq(p.dentry(), p.mount().root_dentry()) {
            s.attributes = STATX_ATTR_MOUNT_ROOT;
        }
    }
    s.mask = have;
    cx.write(buf.0, &s)?;
    Ok(0)
}

/// Credentials that access(2) checks: the real ids.
fn real(cred: &Cred) -> Cred {
    let mut c = cred.clone();
    (c.fsuid, c.fsgid) = (c.uid, c.gid);
    const SECBIT_NO_SETUID_FIXUP: u32 = 1 << 2;
    if c.securebits & SECBIT_NO_SETUID_FIXUP == 0 {
        c.effective = if c.uid == c.user_ns.root() { c.permitted } else { 0 };
    }
    c
}

fn do_access(cx: &Ctx<'_>, dirfd: i32, path: u64, mode: i32, flags: i32) -> SysResult {
    if mode & !7 != 0 || flags & !(libc::AT_EACCESS | libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let mut look = LookupFlags::empty();
    look.set(LookupFlags::FOLLOW, flags & libc::AT_SYMLINK_NOFOLLOW == 0);
    look.set(LookupFlags::EMPTY_PATH, flags & libc::AT_EMPTY_PATH != 0);
    let path = cx.read_path(path)?;
    let mine = cx.task.cred();
    let same =
        mine.uid == mine.fsuid && mine.gid == mine.fsgid && (mine.uid == mine.user_ns.root()) == (mine.effective != 0);
    let cred = if flags & libc::AT_EACCESS != 0 || same { mine } else { Arc::new(real(&mine)) };
    let from = crate::fs::vfs::walk::start(cx.task, dirfd, &path, look)?;
    let fs = cx.task.fs();
    let root = crate::fs::vfs::RootRef::Task(&fs);
    let p = crate::fs::vfs::Resolver::new(&cred, root, look).resolve(from, &path)?;
    let mask = mode as u32;
    if mask == 0 {
        return Ok(0);
    }
    if mask & MAY_EXEC != 0 && p.kind() == libc::S_IFREG && p.forbids(MountFlags::NOEXEC) {
        return Err(Errno::EACCES.into());
    }
    perm::check_inode(p.inode(), &cred, mask)?;
    perm::permission(&p, &cred, mask)?;
    Ok(0)
}

pub fn access(cx: &mut Ctx<'_>, path: PathPtr, mode: i32) -> SysResult {
    do_access(cx, libc::AT_FDCWD, path.0, mode, 0)
}

pub fn faccessat(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, mode: i32) -> SysResult {
    do_access(cx, dirfd.0, path.0, mode, 0)
}

pub fn faccessat2(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, mode: i32, flags: i32) -> SysResult {
    do_access(cx, dirfd.0, path.0, mode, flags)
}

fn do_readlink(cx: &mut Ctx<'_>, dirfd: i32, path: u64, buf: Addr, size: i32) -> SysResult {
    if size <= 0 {
        return Err(Errno::EINVAL.into());
    }
    let path = cx.read_path(path)?;
    let empty = path.is_empty();
    let p = resolve(cx.task, dirfd, &path, LookupFlags::EMPTY_PATH)?;
    if empty && (dirfd == libc::AT_FDCWD || p.kind() != libc::S_IFLNK) {
        return Err(Errno::ENOENT.into());
    }
    if p.kind() != libc::S_IFLNK {
        return Err(Errno::EINVAL.into());
    }
    let mut text = p.inode().readlink()?;
    text.truncate(size as usize);
    cx.write_bytes(buf.0, &text)?;
    Ok(text.len() as u64)
}

pub fn readlink(cx: &mut Ctx<'_>, path: PathPtr, buf: Addr, size: i32) -> SysResult {
    do_readlink(cx, libc::AT_FDCWD, path.0, buf, size)
}

pub fn readlinkat(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, buf: Addr, size: i32) -> SysResult {
    do_readlink(cx, dirfd.0, path.0, buf, size)
}

#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct KStatFs {
    kind: u64,
    bsize: u64,
    blocks: u64,
    bfree: u64,
    bavail: u64,
    files: u64,
    ffree: u64,
    fsid: [u32; 2],
    namelen: u64,
    frsize: u64,
    flags: u64,
    spare: [u64; 4],
}

fn put_statfs(cx: &mut Ctx<'_>, buf: Addr, s: &StatFs, dev: u64, mount: MountFlags) -> SysResult {
    const ST_VALID: u64 = 0x20;
    let mut flags = ST_VALID | u64::from(mount.bits() & 0xf);
    for (m, st) in [
        (MountFlags::NOATIME, libc::ST_NOATIME),
        (MountFlags::NODIRATIME, libc::ST_NODIRATIME),
        (MountFlags::RELATIME, libc::ST_RELATIME),
    ] {
        if mount.contains(m) {
            flags |= st;
        }
    }
    let k = KStatFs {
        kind: s.kind,
        bsize: s.bsize,
        blocks: s.blocks,
        bfree: s.bfree,
        bavail: s.bavail,
        files: s.files,
        ffree: s.ffree,
        fsid: [dev as u32, (dev >> 32) as u32],
        namelen: s.namelen,
        frsize: if s.frsize == 0 { s.bsize } else { s.frsize },
        flags,
        spare: [0; 4],
    };
    cx.write(buf.0, &k)?;
    Ok(0)
}

fn statfs_of(cx: &mut Ctx<'_>, p: &Path, buf: Addr) -> SysResult {
    let s = p.inode().statfs()?;
    let dev = p.inode().attr()?.dev;
    put_statfs(cx, buf, &s, dev, p.mount().flags())
}

pub fn statfs(cx: &mut Ctx<'_>, path: PathPtr, buf: Addr) -> SysResult {
    let p = at(cx, libc::AT_FDCWD, path.0, true, false)?;
    statfs_of(cx, &p, buf)
}

pub fn fstatfs(cx: &mut Ctx<'_>, fd: Fd, buf: Addr) -> SysResult {
    let f: Arc<File> = cx.file(fd.0)?;
    let p = crate::fs::vfs::anon_path(&f)?;
    statfs_of(cx, &p, buf)
}

/// ustat(2): statistics of a file system by its device number.
pub fn ustat(cx: &mut Ctx<'_>, dev: u32, buf: Addr) -> SysResult {
    let ns = cx.task.ns().mnt.clone();
    let of =
        |m: Arc<crate::fs::vfs::Mount>| Some(m.root()).filter(|p| p.inode().attr().is_ok_and(|a| a.dev as u32 == dev));
    let s = ns.list().into_iter().find_map(of).ok_or(Errno::EINVAL)?.inode().statfs()?;
    let mut raw = [0u8; 32];
    raw[..4].copy_from_slice(&(s.bfree as u32).to_le_bytes());
    raw[8..16].copy_from_slice(&s.ffree.to_le_bytes());
    cx.write_bytes(buf.0, &raw)?;
    Ok(0)
}

/// sysfs(2): file system types by number.
pub fn sysfs(cx: &mut Ctx<'_>, option: i32, a: u64, buf: Addr) -> SysResult {
    let all = crate::fs::proc::FILESYSTEMS;
    match option {
        1 => {
            let name = cx.read_path(a)?;
            if name.is_empty() {
                return Err(Errno::ENOENT.into());
            }
            Ok(all.iter().position(|n| n.as_bytes() == name).ok_or(Errno::EINVAL)? as u64)
        }
        2 => {
            let name = all.get(a as u32 as usize).ok_or(Errno::EINVAL)?;
            cx.write_bytes(buf.0, &[name.as_bytes(), b"\0"].concat())?;
            Ok(0)
        }
        3 => Ok(all.len() as u64),
        _ => Err(Errno::EINVAL.into()),
    }
}
