//! mkdir(2), unlink(2), link(2), symlink(2), rename(2), mknod(2); getcwd(2), chdir(2), chroot(2).

use super::arg::*;
use super::fs_stat::at;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::fs::vfs::ops::{self, Remove};
use crate::fs::vfs::perm::{permission, MAY_EXEC};
use crate::fs::vfs::walk::Parent;
use crate::fs::vfs::{resolve, resolve_parent, LookupFlags};
use crate::fs::{NewNode, RenameFlags};
use crate::kernel::cred::{CAP_DAC_READ_SEARCH, CAP_SYS_CHROOT};

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
    if !cred.has_own(CAP_SYS_CHROOT) {
        return Err(Errno::EPERM.into());
    }
    let old = std::mem::replace(&mut cx.task.fs().lock().root, p);
    drop(old);
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
