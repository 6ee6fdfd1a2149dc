//! unshare(2), setns(2). A sandbox has one namespace of each kind, as a kernel built without them.

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, SysResult};
use crate::kernel::cred::CAP_SYS_ADMIN;
use parking_lot::Mutex;
use std::sync::Arc;

const THREAD: i32 = libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM;
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWCGROUP
    | 0x80; // CLONE_NEWTIME
const KNOWN: i32 = THREAD | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SYSVSEM | NAMESPACES | libc::CLONE_NEWUSER;

pub fn unshare(cx: &mut Ctx<'_>, flags: u64) -> SysResult {
    if flags & !(KNOWN as u64) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let flags = flags as i32;
    let task = cx.task;
    let threads = task.group.links.lock().threads.len();
    if flags & (THREAD | libc::CLONE_NEWUSER) != 0 && threads > 1 {
        return Err(Errno::EINVAL.into());
    }
    let shared_actions = Arc::strong_count(&*task.group.actions.read()) > 1;
    if (flags & (libc::CLONE_SIGHAND | libc::CLONE_VM) != 0 && shared_actions)
        || (flags & libc::CLONE_VM != 0 && task.mm().user_count() > 1)
        || flags & libc::CLONE_NEWUSER != 0
    {
        return Err(Errno::EINVAL.into());
    }
    if flags & NAMESPACES != 0 {
        let allowed = task.cred().has(CAP_SYS_ADMIN);
        return Err(if allowed { Errno::EINVAL } else { Errno::EPERM }.into());
    }
    if flags & libc::CLONE_FS != 0 {
        let mut fs = task.fs.write();
        let own = fs.lock().clone();
        *fs = Arc::new(Mutex::new(own));
    }
    if flags & libc::CLONE_FILES != 0 {
        // An unshared table stays the one that owns its record locks.
        super::fs_open::own_files(task)?;
    }
    if flags & libc::CLONE_SYSVSEM != 0 && threads == 1 {
        crate::ipc::sem::process_gone(&task.ns().ipc, task.group.pid);
    }
    Ok(0)
}

/// There are no descriptors of namespaces.
pub fn setns(cx: &mut Ctx<'_>, fd: Fd, _kind: i32) -> SysResult {
    cx.io_file(fd.0)?;
    Err(Errno::EINVAL.into())
}
