//! inotify_init(2), inotify_add_watch(2), inotify_rm_watch(2).

use super::arg::*;
use super::fs_stat::at;
use super::Ctx;
use crate::error::{Errno, SysResult};
use crate::fs::inotify::{Inotify, EVENTS};
use crate::fs::vfs::perm::{permission, MAY_READ};

pub fn inotify_init(cx: &mut Ctx<'_>) -> SysResult {
    inotify_init1(cx, 0)
}

pub fn inotify_init1(cx: &mut Ctx<'_>, flags: i32) -> SysResult {
    if flags & !(libc::IN_CLOEXEC | libc::IN_NONBLOCK) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let file = Inotify::open(flags & libc::IN_NONBLOCK)?;
    Ok(cx.task.install_fd(file, flags & libc::IN_CLOEXEC != 0)? as u64)
}

pub fn inotify_add_watch(cx: &mut Ctx<'_>, fd: Fd, path: PathPtr, mask: u32) -> SysResult {
    let flags = libc::IN_ONLYDIR
        | libc::IN_DONT_FOLLOW
        | libc::IN_EXCL_UNLINK
        | libc::IN_MASK_CREATE
        | libc::IN_MASK_ADD
        | libc::IN_ONESHOT;
    if mask & EVENTS == 0 || mask & !(EVENTS | flags) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let file = cx.file(fd.0)?;
    let both = libc::IN_MASK_ADD | libc::IN_MASK_CREATE;
    let inotify: &Inotify = file.ops.as_any().downcast_ref().filter(|_| mask & both != both).ok_or(Errno::EINVAL)?;
    let place = at(cx, libc::AT_FDCWD, path.0, mask & libc::IN_DONT_FOLLOW == 0, false)?;
    if mask & libc::IN_ONLYDIR != 0 && !place.is_dir() {
        return Err(Errno::ENOTDIR.into());
    }
    permission(&place, &cx.task.cred(), MAY_READ)?;
    Ok(inotify.add(place, mask)? as u64)
}

pub fn inotify_rm_watch(cx: &mut Ctx<'_>, fd: Fd, wd: i32) -> SysResult {
    let file = cx.file(fd.0)?;
    file.ops.as_any().downcast_ref::<Inotify>().ok_or(Errno::EINVAL)?.remove(wd)?;
    Ok(0)
}
