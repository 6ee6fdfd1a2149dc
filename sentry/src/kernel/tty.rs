//! Job control: the session and foreground process group of a terminal, and the signals it sends
//! (credentials(7), tty_ioctl(4)).

use super::signal::{SigInfo, SIG_IGN};
use super::{current, Kernel, Task, ThreadGroup};
use crate::error::{Errno, Result, SysError, SysResult};
use parking_lot::Mutex;
use std::sync::Arc;

/// The session that a terminal controls and its foreground process group (0: none).
#[derive(Debug, Default)]
pub struct Job {
    pub session: i32,
    pub pgrp: i32,
}

/// Job-control state of a terminal of any kind.
pub struct Line {
    pub rdev: u64,
    pub job: Mutex<Job>,
}

impl Line {
    pub fn new(rdev: u64) -> Arc<Line> {
        Arc::new(Line { rdev, job: Mutex::default() })
    }
    /// Its name below `/dev`.
    pub fn name(&self) -> String {
        let (major, minor) = (libc::major(self.rdev), libc::minor(self.rdev));
        match major {
            136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
            _ => "console".into(),
        }
    }
}

/// Device number of the controlling terminal (0: none) and its foreground process group (-1: none), for
/// /proc/pid/stat.
pub fn stat_of(kernel: &Kernel, group: &ThreadGroup) -> (u64, i32) {
    let sid = group.links.lock().sid;
    match kernel.ttys.of_session(sid) {
        Some(l) => (l.rdev, l.job.lock().pgrp),
        None => (0, -1),
    }
}

/// Sends a signal of the terminal to a process group.
pub fn to_pgrp(kernel: &Kernel, pgrp: i32, sig: i32) {
    let _ = super::send::to_pgrp(kernel, pgrp, SigInfo::kernel(sig));
}

/// Sends a signal to the foreground process group of a terminal.
pub fn to_foreground(kernel: &Kernel, line: &Line, sig: i32) {
    let pgrp = line.job.lock().pgrp;
    if pgrp > 0 {
        to_pgrp(kernel, pgrp, sig);
    }
}

/// A signal from the host's terminal (such as ^C): goes to the foreground of the terminal that the first process was
/// given, or else of the guest's console; without one to init.
pub fn signal_foreground(kernel: &Kernel, sig: i32) {
    let own = kernel.group(kernel.first_pid()).and_then(|g| kernel.ttys.of_session(g.sid()));
    if let Some(line) = own.filter(|line| line.job.lock().pgrp > 0) {
        return to_foreground(kernel, &line, sig);
    }
    match kernel.ttys.console() {
        Some(c) if c.line.job.lock().pgrp > 0 => to_foreground(kernel, &c.line, sig),
        _ => super::init::signal(kernel, sig),
    }
}

/// A signal that the terminal of a process's session makes: goes to its foreground process group, or without one to the
/// process.
pub fn signal_session(kernel: &Kernel, group: &Arc<ThreadGroup>, sig: i32) {
    match kernel.ttys.of_session(group.sid()) {
        Some(line) if line.job.lock().pgrp > 0 => to_foreground(kernel, &line, sig),
        _ => {
            let _ = super::send::from_outside(group, SigInfo::kernel(sig));
        }
    }
}

/// The session requests of tty_ioctl(4) on a terminal that may be the caller's; `None`: another request.
pub fn ioctl(line: &Line, task: &Task, cmd: u32, arg: u64) -> Option<SysResult<u64>> {
    let owner = || if controls(line, task) { Ok(()) } else { Err(Errno::ENOTTY) };
    let answer = |r: Result<()>| Some(r.map(|()| 0).map_err(SysError::from));
    match u64::from(cmd) {
        libc::TIOCSCTTY => answer(acquire(line, task, true)),
        libc::TIOCNOTTY => answer(release(line, task)),
        libc::TIOCGPGRP => {
            let pgrp = line.job.lock().pgrp;
            answer(owner().and_then(|()| task.mem().write(arg, &task.sees(pgrp))))
        }
        libc::TIOCGSID => {
            let sid = line.job.lock().session;
            answer(owner().and_then(|()| task.mem().write(arg, &task.sees(sid))))
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

/// Whether this is the controlling terminal of the task.
pub fn controls(line: &Line, task: &Task) -> bool {
    let sid = task.group.links.lock().sid;
    sid != 0 && line.job.lock().session == sid
}

/// Makes it the controlling terminal of the task's session. `EPERM`: the task is not the session leader, has
/// a terminal already, or another session has this one.
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

/// `TIOCNOTTY`: a session leader gives up its session's terminal.
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

/// Hangup by the master side: signals the session leader, then the foreground process group.
pub fn hang_up(kernel: &Kernel, line: &Line) {
    let sid = line.job.lock().session;
    if let Some(leader) = kernel.group(sid).filter(|_| sid > 0) {
        let _ = super::send::to_group(&leader, SigInfo::kernel(libc::SIGHUP));
        let _ = super::send::to_group(&leader, SigInfo::kernel(libc::SIGCONT));
    }
    disassociate(kernel, line);
}

/// Exit of a process: a session leader's session loses its terminal.
pub fn process_exit(kernel: &Arc<Kernel>, group: &Arc<ThreadGroup>) {
    let sid = group.links.lock().sid;
    if sid == group.pid {
        if let Some(line) = kernel.ttys.of_session(sid) {
            disassociate(kernel, &line);
        }
    }
}

/// `TIOCSPGRP`; `pgrp` is the task's number for the process group.
pub fn set_foreground(line: &Line, task: &Task, pgrp: i32) -> Result<()> {
    if pgrp < 0 {
        return Err(Errno::EINVAL);
    }
    let pgrp = task.global_of(pgrp).ok_or(Errno::ESRCH)?;
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

/// Whether the calling task may use its terminal (`sig`: SIGTTIN to read, SIGTTOU to write or change it). A
/// background process is stopped and the call restarted; a task that ignores or blocks SIGTTOU may continue.
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
    if sig == libc::SIGTTOU && refuses(&task, sig) {
        return Ok(());
    }
    Err(stop_background(&task, pgid, sig))
}

/// Whether the task blocks or ignores a signal.
fn refuses(task: &Task, sig: i32) -> bool {
    let actions = task.group.actions.read().clone();
    let handler = actions.lock().get(sig).handler;
    handler == SIG_IGN || task.signals.lock().mask.has(sig)
}

/// Stops a background process group by SIGTTIN or SIGTTOU, after which its call is made again; `EIO` if nothing would
/// stop or continue it.
fn stop_background(task: &Task, pgid: i32, sig: i32) -> SysError {
    if refuses(task, sig) || super::pgrp::orphaned(&task.kernel, pgid) {
        return Errno::EIO.into();
    }
    to_pgrp(&task.kernel, pgid, sig);
    SysError::INTR
}

/// As [`check`], of a terminal whose foreground the whole sandbox does not have. A task that refuses the signal, or
/// whose session the terminal does not control, gets `EIO`: what is typed there is for another program of the caller's.
pub fn check_outside(line: &Line, sig: i32) -> SysError {
    match current::get().filter(|t| controls(line, t)) {
        Some(task) => {
            let pgid = task.group.links.lock().pgid;
            stop_background(&task, pgid, sig)
        }
        None => Errno::EIO.into(),
    }
}
