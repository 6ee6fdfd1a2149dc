//! pidfd_open(2), pidfd_send_signal(2), pidfd_getfd(2).

use super::arg::*;
use super::{signal, Ctx};
use crate::error::{Errno, Result, SysResult};
use crate::fs::proc::process_of;
use crate::kernel::signal::NSIG;
use crate::kernel::{pidfd, send, ThreadGroup};
use std::sync::Arc;

pub fn pidfd_open(cx: &mut Ctx<'_>, pid: i32, flags: i32) -> SysResult {
    if flags & !libc::O_NONBLOCK != 0 || pid <= 0 {
        return Err(Errno::EINVAL.into());
    }
    let group = match cx.task.find_group(pid) {
        Some(g) => g,
        // A thread that is not a thread group leader.
        None if cx.task.find_task(pid).is_some() => return Err(Errno::EINVAL.into()),
        None => return Err(Errno::ESRCH.into()),
    };
    Ok(cx.task.install_fd(pidfd::open(group, flags), true)? as u64)
}

/// The process of a pidfd argument.
fn group(cx: &Ctx<'_>, fd: i32) -> Result<Arc<ThreadGroup>> {
    pidfd::group(&*cx.io_file(fd)?).ok_or(Errno::EBADF)
}

/// Whether the process still exists, at least as a zombie.
fn present(cx: &Ctx<'_>, group: &Arc<ThreadGroup>) -> Result<()> {
    match cx.kernel().group(group.pid) {
        Some(g) if Arc::ptr_eq(&g, group) => Ok(()),
        _ => Err(Errno::ESRCH),
    }
}

pub fn pidfd_send_signal(cx: &mut Ctx<'_>, fd: Fd, sig: Sig, info: Addr, flags: u32) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL.into());
    }
    let file = cx.io_file(fd.0)?;
    let group = pidfd::group(&file).map(Ok).or_else(|| process_of(&file)).ok_or(Errno::EBADF)??;
    // Only those that the caller has a number for.
    if cx.task.nr_of(&group.id) == 0 {
        return Err(Errno::EINVAL.into());
    }
    let sig = sig.0;
    let what = if info.is_null() {
        signal::own_info(cx, sig)
    } else {
        let i = signal::read_info(cx, info.0, None)?;
        if i.signo != sig {
            return Err(Errno::EINVAL.into());
        }
        if !Arc::ptr_eq(&group, &cx.task.group) && (i.code >= 0 || i.code == libc::SI_TKILL) {
            return Err(Errno::EPERM.into());
        }
        i
    };
    present(cx, &group)?;
    if !(0..=NSIG).contains(&sig) {
        return Err(Errno::EINVAL.into());
    }
    if !signal::may_signal(cx, &group, sig) {
        return Err(Errno::EPERM.into());
    }
    if sig != 0 {
        send::to_group(&group, what)?;
    }
    Ok(0)
}

pub fn pidfd_getfd(cx: &mut Ctx<'_>, fd: Fd, target: Fd, flags: u32) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL.into());
    }
    let group = group(cx, fd.0)?;
    present(cx, &group)?;
    let task = group.any_thread().ok_or(Errno::ESRCH)?;
    // Before it is asked whose it is: what a program that it execs meanwhile opens is not what the answer is about.
    let file = task.files().get(target.0);
    if !task.inspectable_by(cx.task) {
        return Err(Errno::EPERM.into());
    }
    Ok(cx.task.install_fd(file?, true)? as u64)
}
