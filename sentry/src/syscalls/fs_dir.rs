//! mkdir(2), unlink(2), link(2), symlink(2), rename(2), mknod(2); getcwd(2), chdir(2), chroot(2); mount(2).

use super::arg::*;
use super::fs_stat::at;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::fs::vfs::ops::{self, Remove};
use crate::fs::vfs::perm::{permission, MAY_EXEC};
use crate::fs::vfs::walk::Parent;
use crate::fs::vfs::{resolve, resolve_parent, LookupFlags, MountFlags, Path};
use crate::fs::{NewNode, RenameFlags};
use crate::kernel::cred::{CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN, CAP_SYS_CHROOT};
use std::sync::Arc;

fn parent(cx: &Ctx<'_>, dirfd: i32, path: u64) -> Result<Parent> {
    let path = cx.read_path(path)?;
    resolve_parent(cx.task, dirfd, &path, LookupFlags::empty())
}

fn make(cx: &Ctx<'_>, dirfd: i32, path: u64, node: NewNode<'_>, mode: u32) -> SysResult {
    let p = parent(cx, dirfd, path)?;
    let name = p.name(Errno::EEXIST)?;
    let mode = ops::NewMode { mode, umask: cx.task.fs().lock().umask };
    ops::create(&p.dir, name, node, mode, &cx.task.cred(), p.slash)?;
    Ok(0)
}

pub fn mkdir(cx: &mut Ctx<'_>, path: PathPtr, mode: Mode) -> SysResult {
    make(cx, libc::AT_FDCWD, path.0, NewNode::Dir, mode.0 & 0o1777)
}

pub fn mkdirat(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, mode: Mode) -> SysResult {
    make(cx, dirfd.0, path.0, NewNode::Dir, mode.0 & 0o1777)
}

pub fn mknod(cx: &mut Ctx<'_>, path: PathPtr, mode: Mode, dev: u32) -> SysResult {
    mknodat(cx, Fd(libc::AT_FDCWD), path, mode, dev)
}

pub fn mknodat(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, mode: Mode, dev: u32) -> SysResult {
    // The 32-bit device number of the call: 12 bits of major, 20 bits of minor in two parts.
    let rdev = libc::makedev((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xfff00));
    let node = match mode.0 & libc::S_IFMT {
        0 | libc::S_IFREG => NewNode::File,
        libc::S_IFIFO => NewNode::Fifo,
        libc::S_IFSOCK => NewNode::Socket,
        libc::S_IFCHR => NewNode::Char(rdev),
        libc::S_IFBLK => NewNode::Block(rdev),
        libc::S_IFDIR => return Err(Errno::EPERM.into()),
        _ => return Err(Errno::EINVAL.into()),
    };
    make(cx, dirfd.0, path.0, node, mode.0 & 0o7777)
}

fn remove(cx: &Ctx<'_>, dirfd: i32, path: u64, how: Remove) -> SysResult {
    let p = parent(cx, dirfd, path)?;
    ops::remove(&p, how, &cx.task.cred())?;
    Ok(0)
}

pub fn rmdir(cx: &mut Ctx<'_>, path: PathPtr) -> SysResult {
    remove(cx, libc::AT_FDCWD, path.0, Remove::Dir)
}

pub fn unlink(cx: &mut Ctx<'_>, path: PathPtr) -> SysResult {
    remove(cx, libc::AT_FDCWD, path.0, Remove::File)
}

pub fn unlinkat(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, flags: i32) -> SysResult {
    if flags & !libc::AT_REMOVEDIR != 0 {
        return Err(Errno::EINVAL.into());
    }
    remove(cx, dirfd.0, path.0, if flags != 0 { Remove::Dir } else { Remove::File })
}

pub fn symlink(cx: &mut Ctx<'_>, target: PathPtr, path: PathPtr) -> SysResult {
    symlinkat(cx, target, Fd(libc::AT_FDCWD), path)
}

pub fn symlinkat(cx: &mut Ctx<'_>, target: PathPtr, dirfd: Fd, path: PathPtr) -> SysResult {
    let text = cx.read_path(target.0)?;
    if text.is_empty() {
        return Err(Errno::ENOENT.into());
    }
    let p = parent(cx, dirfd.0, path.0)?;
    let name = p.name(Errno::EEXIST)?;
    ops::create(&p.dir, name, NewNode::Symlink(&text), 0o777, &cx.task.cred(), p.slash)?;
    Ok(0)
}

pub fn link(cx: &mut Ctx<'_>, old: PathPtr, new: PathPtr) -> SysResult {
    linkat(cx, Fd(libc::AT_FDCWD), old, Fd(libc::AT_FDCWD), new, 0)
}

pub fn linkat(cx: &mut Ctx<'_>, old_fd: Fd, old: PathPtr, new_fd: Fd, new: PathPtr, flags: i32) -> SysResult {
    if flags & !(libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let cred = cx.task.cred();
    let empty = flags & libc::AT_EMPTY_PATH != 0;
    if empty && !cred.has(CAP_DAC_READ_SEARCH) {
        return Err(Errno::ENOENT.into());
    }
    let target = at(cx, old_fd.0, old.0, flags & libc::AT_SYMLINK_FOLLOW != 0, empty)?;
    let p = parent(cx, new_fd.0, new.0)?;
    ops::link(&target, &p, &cred)?;
    Ok(0)
}

pub fn rename(cx: &mut Ctx<'_>, old: PathPtr, new: PathPtr) -> SysResult {
    renameat2(cx, Fd(libc::AT_FDCWD), old, Fd(libc::AT_FDCWD), new, 0)
}

pub fn renameat(cx: &mut Ctx<'_>, old_fd: Fd, old: PathPtr, new_fd: Fd, new: PathPtr) -> SysResult {
    renameat2(cx, old_fd, old, new_fd, new, 0)
}

pub fn renameat2(cx: &mut Ctx<'_>, old_fd: Fd, old: PathPtr, new_fd: Fd, new: PathPtr, flags: u32) -> SysResult {
    let f = RenameFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
    // EXCHANGE and NOREPLACE exclude each other; whiteouts are reserved to the overlay.
    if f.contains(RenameFlags::WHITEOUT) || f.contains(RenameFlags::EXCHANGE | RenameFlags::NOREPLACE) {
        return Err(Errno::EINVAL.into());
    }
    let from = parent(cx, old_fd.0, old.0)?;
    let to = parent(cx, new_fd.0, new.0)?;
    ops::rename(&from, &to, f, &cx.task.cred())?;
    Ok(0)
}

pub fn getcwd(cx: &mut Ctx<'_>, buf: Addr, size: usize) -> SysResult {
    let fs = cx.task.fs();
    let (cwd, root) = {
        let fs = fs.lock();
        (fs.cwd.clone(), fs.root.clone())
    };
    let mut name = cwd.cwd_name(&root)?;
    name.push(0);
    if name.len() > crate::mm::user::PATH_MAX {
        return Err(Errno::ENAMETOOLONG.into());
    }
    if name.len() > size {
        return Err(Errno::ERANGE.into());
    }
    cx.write_bytes(buf.0, &name)?;
    Ok(name.len() as u64)
}

pub fn chdir(cx: &mut Ctx<'_>, path: PathPtr) -> SysResult {
    let path = cx.read_path(path.0)?;
    let p = resolve(cx.task, libc::AT_FDCWD, &path, LookupFlags::FOLLOW | LookupFlags::DIRECTORY)?;
    permission(&p, &cx.task.cred(), MAY_EXEC)?;
    let old = std::mem::replace(&mut cx.task.fs().lock().cwd, p);
    drop(old);
    Ok(0)
}

pub fn fchdir(cx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    let f = cx.file(fd.0)?;
    let p = f.path.as_ref().filter(|p| p.is_dir()).ok_or(Errno::ENOTDIR)?;
    permission(p, &cx.task.cred(), MAY_EXEC)?;
    let old = std::mem::replace(&mut cx.task.fs().lock().cwd, p.clone());
    drop(old);
    Ok(0)
}

pub fn chroot(cx: &mut Ctx<'_>, path: PathPtr) -> SysResult {
    let path = cx.read_path(path.0)?;
    let p = resolve(cx.task, libc::AT_FDCWD, &path, LookupFlags::FOLLOW | LookupFlags::DIRECTORY)?;
    let cred = cx.task.cred();
    permission(&p, &cred, MAY_EXEC)?;
    if !cred.has(CAP_SYS_CHROOT) {
        return Err(Errno::EPERM.into());
    }
    let old = std::mem::replace(&mut cx.task.fs().lock().root, p);
    drop(old);
    Ok(0)
}

pub fn mount(cx: &mut Ctx<'_>, source: Addr, target: PathPtr, kind: Addr, flags: u64, data: Addr) -> SysResult {
    const KIND_MAX: usize = 4096;
    let text = |cx: &Ctx<'_>, a: Addr| -> Result<Vec<u8>> {
        if a.is_null() {
            Ok(Vec::new())
        } else {
            cx.read_cstr(a.0, KIND_MAX, Errno::EINVAL)
        }
    };
    let kind = text(cx, kind)?;
    let source = text(cx, source)?;
    let data = text(cx, data)?;
    let place = at(cx, libc::AT_FDCWD, target.0, true, false)?;
    if !cx.task.cred().has(CAP_SYS_ADMIN) {
        return Err(Errno::EPERM.into());
    }
    let ns = cx.task.ns().mnt.clone();
    let mut own = MountFlags::from_bits_truncate(flags as u32);
    if flags & libc::MS_NOATIME == 0 {
        own |= MountFlags::RELATIME;
    }
    let is_root = |p: &Path| Arc::ptr_eq(p.dentry(), p.mount().root_dentry());
    if flags & libc::MS_REMOUNT != 0 {
        if !is_root(&place) {
            return Err(Errno::EINVAL.into());
        }
        place.mount().set_flags(own);
        return Ok(0);
    }
    if flags & libc::MS_BIND != 0 {
        let from = resolve(cx.task, libc::AT_FDCWD, &source, LookupFlags::FOLLOW)?;
        if place.kind() == libc::S_IFLNK {
            // procfs symlinks disappear with their targets.
            return Err(Errno::ENOENT.into());
        }
        ns.bind(&from, &place, flags & libc::MS_REC != 0)?;
        return Ok(0);
    }
    let propagation = libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_UNBINDABLE | libc::MS_SHARED;
    if flags & propagation != 0 {
        // With a single namespace nothing propagates, as private, slave and unbindable request.
        if !is_root(&place) || flags & libc::MS_SHARED != 0 {
            return Err(Errno::EINVAL.into());
        }
        return Ok(0);
    }
    if flags & libc::MS_MOVE != 0 {
        let from = resolve(cx.task, libc::AT_FDCWD, &source, LookupFlags::FOLLOW)?;
        ns.move_mount(&from, &place)?;
        return Ok(0);
    }
    if !place.is_dir() {
        return Err(Errno::ENOTDIR.into());
    }
    let m = crate::fs::fstype::mount(cx.kernel(), &kind, &source, own, &data)?;
    ns.mount(&m, &place)?;
    Ok(0)
}

pub fn umount2(cx: &mut Ctx<'_>, target: PathPtr, flags: i32) -> SysResult {
    const UMOUNT_NOFOLLOW: i32 = 8;
    if flags & !(libc::MNT_FORCE | libc::MNT_DETACH | libc::MNT_EXPIRE | UMOUNT_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let place = at(cx, libc::AT_FDCWD, target.0, flags & UMOUNT_NOFOLLOW == 0, false)?;
    if !cx.task.cred().has(CAP_SYS_ADMIN) {
        return Err(Errno::EPERM.into());
    }
    if flags & libc::MNT_EXPIRE != 0 {
        return Err(Errno::EINVAL.into());
    }
    // Mounts may be stacked, and the working directory may be in a lower one.
    let place = crate::fs::vfs::walk::uppermost(place);
    cx.task.ns().mnt.umount(&place, flags & libc::MNT_DETACH != 0)?;
    Ok(0)
}

/// Largest file handle (`MAX_HANDLE_SZ`).
const HANDLE_MAX: u32 = 128;

/// As on an overlay without `nfs_export`: arguments are checked, but there are no handles.
pub fn name_to_handle_at(
    cx: &mut Ctx<'_>,
    dirfd: Fd,
    path: PathPtr,
    handle: Addr,
    _mount: Addr,
    flags: i32,
) -> SysResult {
    const HANDLE_FID: i32 = 0x200;
    if flags & !(libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH | HANDLE_FID) != 0 {
        return Err(Errno::EINVAL.into());
    }
    at(cx, dirfd.0, path.0, flags & libc::AT_SYMLINK_FOLLOW != 0, flags & libc::AT_EMPTY_PATH != 0)?;
    let room: u32 = cx.read(handle.0)?;
    if room > HANDLE_MAX {
        return Err(Errno::EINVAL.into());
    }
    Err(Errno::EOPNOTSUPP.into())
}

pub fn open_by_handle_at(cx: &mut Ctx<'_>, mountfd: Fd, handle: Addr, _flags: i32) -> SysResult {
    if !cx.task.cred().has(CAP_DAC_READ_SEARCH) {
        return Err(Errno::EPERM.into());
    }
    if mountfd.0 != libc::AT_FDCWD {
        cx.file(mountfd.0)?;
    }
    let size: u32 = cx.read(handle.0)?;
    if size == 0 || size > HANDLE_MAX {
        return Err(Errno::EINVAL.into());
    }
    Err(Errno::ESTALE.into())
}
