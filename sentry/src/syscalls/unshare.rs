//! unshare(2), setns(2).

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::fs::nsfs;
use crate::kernel::ns::change::{NsSet, ALL, IN_PROXY, NEWUSER};
use crate::kernel::ns::{Namespace, KINDS};
use crate::kernel::pidfd;
use std::sync::Arc;

const THREAD: u64 = libc::CLONE_THREAD as u64;
const SIGHAND: u64 = libc::CLONE_SIGHAND as u64;
const VM: u64 = libc::CLONE_VM as u64;
const FS: u64 = libc::CLONE_FS as u64;
const FILES: u64 = libc::CLONE_FILES as u64;
const SYSVSEM: u64 = libc::CLONE_SYSVSEM as u64;
const NEWNS: u64 = libc::CLONE_NEWNS as u64;
const NEWIPC: u64 = libc::CLONE_NEWIPC as u64;
const KNOWN: u64 = THREAD | SIGHAND | VM | FS | FILES | SYSVSEM | ALL;

pub fn unshare(cx: &mut Ctx<'_>, flags: u64) -> SysResult {
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL.into());
    }
    let has = |b: u64| flags & b != 0;
    let task = cx.task;
    let threads = task.group.links.lock().threads.len();
    if has(THREAD | SIGHAND | VM | NEWUSER) && threads > 1 {
        return Err(Errno::EINVAL.into());
    }
    let shared_actions = Arc::strong_count(&*task.group.actions.read()) > 1;
    if (has(SIGHAND | VM) && shared_actions) || (has(VM) && task.mm().user_count() > 1) {
        return Err(Errno::EINVAL.into());
    }
    let mut set = NsSet::of(task);
    set.new_fs = has(FS | NEWNS | NEWUSER) && Arc::strong_count(&*task.fs.read()) > 1;
    set.create(task, flags & ALL)?;
    if has(FILES) {
        // An unshared table stays the one that owns its record locks.
        super::fs_open::own_files(task)?;
    }
    if has(SYSVSEM | NEWIPC) && threads == 1 {
        crate::ipc::sem::process_gone(&task.ns().ipc, task.group.pid);
    }
    set.commit(task);
    Ok(0)
}

pub fn setns(cx: &mut Ctx<'_>, fd: Fd, flags: i32) -> SysResult {
    let file = cx.io_file(fd.0)?;
    let flags = u64::from(flags as u32);
    let wanted = match file.path.as_ref().and_then(nsfs::of) {
        Some(ns) if flags == 0 || flags == ns.kind().flag() => vec![ns.clone()],
        Some(_) => return Err(Errno::EINVAL.into()),
        None => of_process(cx, &file, flags)?,
    };
    let mut set = NsSet::of(cx.task);
    for ns in &wanted {
        set.enter(cx.task, ns)?;
    }
    set.commit(cx.task);
    Ok(0)
}

/// The namespaces of the kinds in `flags` of the process that a pidfd refers to.
fn of_process(cx: &Ctx<'_>, file: &crate::fs::File, flags: u64) -> Result<Vec<Namespace>> {
    let group = pidfd::group(file).ok_or(Errno::EINVAL)?;
    if flags == 0 || flags & !(IN_PROXY | NEWUSER) != 0 {
        return Err(Errno::EINVAL);
    }
    let task = group.any_thread().ok_or(Errno::ESRCH)?;
    if !task.inspectable_by(cx.task) {
        return Err(Errno::EPERM);
    }
    Ok(KINDS.iter().filter(|k| flags & k.flag() != 0).map(|k| Namespace::of(&task, *k)).collect())
}
