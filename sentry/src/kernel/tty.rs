//! Job control: which terminal controls which session, who is in its foreground, and the signals that come from it
//! (credentials(7), tty_ioctl(4)).

use super::signal::{SigInfo, SIG_IGN};
use super::{current, Kernel, Task, ThreadGroup};
use crate::error::{Errno, Result, SysError, SysResult};
use parking_lot::Mutex;
use std::sync::Arc;

/// The session that a terminal controls and the process group in its foreground (0: none).
#[derive(Debug, Default)]
pub struct Job {
    pub session: i32,
    pub pgrp: i32,
}

/// What a terminal of any kind has for job control.
pub struct Line {
    pub rdev: u64,
    pub job: Mutex<Job>,
}

impl Line {
    pub fn new(rdev: u64) -> Arc<Line> {
        Arc::new(Line { rdev, job: Mutex::default() })
    }
}

/// Device number of the controlling terminal (0: none) and its foreground process group (-1: none), for /proc/pid/stat.
pub fn stat_of(kernel: &Kernel, group: &ThreadGroup) -> (u64, i32) {
    let sid = group.links.lock().sid;
    match kernel.ttys.of_session(sid) {
        Some(l) => (l.rdev, l.job.lock().pgrp),
        None => (0, -1),
    }
}

/// Sends a signal of the terminal's to a process group.
pub fn to_pgrp(kernel: &Kernel, pgrp: i32, sig: i32) {
    let _ = super::send::to_pgrp(kernel, pgrp, SigInfo::kernel(sig));
}

/// Sends a signal to the process group in the foreground of a terminal.
pub fn to_foreground(kernel: &Kernel, line: &Line, sig: i32) {
    let pgrp = line.job.lock().pgrp;
    if pgrp > 0 {
        to_pgrp(kernel, pgrp, sig);
    }
}

/// A signal that the host's terminal gave (^C and the like): to the foreground of the guest's terminal if it has that one, else to init.
pub fn signal_foreground(kernel: &Kernel, sig: i32) {
    match kernel.ttys.console() {
        Some(c) if c.line.job.lock().pgrp > 0 => to_foreground(kernel, &c.line, sig),
        _ => super::init::signal(kernel, sig),
    }
}

/// The requests of tty_ioctl(4) that concern sessions, made at a terminal that may be the caller's; `None`: another request.
pub fn ioctl(line: &Line, task: &Task, cmd: u32, arg: u64) -> Option<SysResult<u64>> {
    let owner = || if controls(line, task) { Ok(()) } else { Err(Errno::ENOTTY) };
    let answer = |r: Result<()>| Some(r.map(|()| 0).map_err(SysError::from));
    match u64::from(cmd) {
        libc::TIOCSCTTY => answer(acquire(line, task, true)),
        libc::TIOCNOTTY => answer(release(line, task)),
        libc::TIOCGPGRP => {
            let pgrp = line.job.lock().pgrp;
            answer(owner().and_then(|()| task.mem().write(arg, &pgrp)))
        }
        libc::TIOCGSID => {
            let sid = line.job.lock().session;
            answer(owner().and_then(|()| task.mem().write(arg, &sid)))
        }
        libc::TIOCSPGRP => {
            if let Err(e) = owner() {
                return Some(Err(e.into()));
            }
            if let Err(e) = check(line, libc::SIGTTOU) {
                return Some(Err(e));
            }
            answer(task.mem().read(arg).and_then(|pgrp| set_foreground(line, task, pgrp)))
        }
        _ => None,
    }
}

/// Is this the controlling terminal of the task?
pub fn controls(line: &Line, task: &Task) -> bool {
    let sid = task.group.links.lock().sid;
    sid != 0 && line.job.lock().session == sid
}

/// Makes it the controlling terminal of the task's session; `EPERM` if the task does not lead it, has a terminal already, or
/// another session has this one.
pub fn acquire(line: &Line, task: &Task, by_request: bool) -> Result<()> {
    let (sid, pgid) = {
        let r = task.group.links.lock();
        (r.sid, r.pgid)
    };
    let held = task.kernel.ttys.of_session(sid).is_some();
    let mut job = line.job.lock();
    if by_request && job.session == sid && sid == task.group.pid {
        return Ok(());
    }
    if sid != task.group.pid || held || job.session != 0 {
        return Err(Errno::EPERM);
    }
    job.session = sid;
    job.pgrp = pgid;
    Ok(())
}

/// `TIOCNOTTY`: a leader gives its session's terminal up.
pub fn release(line: &Line, task: &Task) -> Result<()> {
    if !controls(line, task) {
        return Err(Errno::ENOTTY);
    }
    if task.group.links.lock().sid == task.group.pid {
        disassociate(&task.kernel, line);
    }
    Ok(())
}

fn disassociate(kernel: &Kernel, line: &Line) {
    let pgrp = {
        let mut job = line.job.lock();
        job.session = 0;
        std::mem::take(&mut job.pgrp)
    };
    if pgrp > 0 {
        to_pgrp(kernel, pgrp, libc::SIGHUP);
        to_pgrp(kernel, pgrp, libc::SIGCONT);
    }
}

/// The master is gone: the session's leader is told, then the foreground.
pub fn hang_up(kernel: &Kernel, line: &Line) {
    let sid = line.job.lock().session;
    if let Some(leader) = kernel.group(sid).filter(|_| sid > 0) {
        let _ = super::send::to_group(&leader, SigInfo::kernel(libc::SIGHUP));
        let _ = super::send::to_group(&leader, SigInfo::kernel(libc::SIGCONT));
    }
    disassociate(kernel, line);
}

/// A process has ended: if it led a session, the session loses its terminal.
pub fn process_exit(kernel: &Arc<Kernel>, group: &Arc<ThreadGroup>) {
    let sid = group.links.lock().sid;
    if sid == group.pid {
        if let Some(line) = kernel.ttys.of_session(sid) {
            disassociate(kernel, &line);
        }
    }
}

/// `TIOCSPGRP`.
pub fn set_foreground(line: &Line, task: &Task, pgrp: i32) -> Result<()> {
    if pgrp < 0 {
        return Err(Errno::EINVAL);
    }
    let members = super::pgrp::members(&task.kernel, pgrp);
    let first = members.first().ok_or(Errno::ESRCH)?;
    let sid = first.links.lock().sid;
    let mut job = line.job.lock();
    if sid != job.session {
        return Err(Errno::EPERM);
    }
    job.pgrp = pgrp;
    Ok(())
}

/// May the calling task use its terminal (`sig`: SIGTTIN to read, SIGTTOU to write or change it)? From the background it is
/// stopped and the call made again; who ignores or blocks SIGTTOU may go on.
pub fn check(line: &Line, sig: i32) -> SysResult<()> {
    let Some(task) = current::get() else { return Ok(()) };
    let (sid, pgid) = {
        let r = task.group.links.lock();
        (r.sid, r.pgid)
    };
    {
        let job = line.job.lock();
        if job.session != sid || sid == 0 || job.pgrp == pgid || job.pgrp == 0 {
            return Ok(());
        }
    }
    let blocked = task.signals.lock().mask.has(sig);
    let actions = task.group.actions.read().clone();
    let ignored = actions.lock().get(sig).handler == SIG_IGN;
    if blocked || ignored {
        return if sig == libc::SIGTTOU { Ok(()) } else { Err(Errno::EIO.into()) };
    }
    if super::pgrp::orphaned(&task.kernel, pgid) {
        return Err(Errno::EIO.into());
    }
    to_pgrp(&task.kernel, pgid, sig);
    Err(SysError::INTR)
}
