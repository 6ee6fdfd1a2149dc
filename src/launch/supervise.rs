//! The command while the sandbox runs: one loop over the control socket, the two processes and the signals.

use super::spawn::{Process, Sandbox};
use super::terminal::Saved;
use crate::control::{FromSentry, ToSentry};
use crate::sys;
use anyhow::{bail, Context, Result};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{raise, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{waitid, Id, WaitPidFlag, WaitStatus};
use std::os::fd::AsFd;

/// Passed on to the guest.
const PASSED: [Signal; 9] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

/// The signals, taken as messages instead of interruptions.
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    pub fn take_over() -> Result<Signals> {
        let mut mask: SigSet = PASSED.into_iter().collect();
        // Not passed on: a closed pipe or a file too large is seen as an error, and restoring the terminal must not stop us.
        mask.add(Signal::SIGXFSZ);
        mask.add(Signal::SIGTTOU);
        mask.add(Signal::SIGPIPE);
        mask.thread_block().context("blocking signals")?;
        let passed: SigSet = PASSED.into_iter().collect();
        let fd = SignalFd::with_flags(&passed, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")?;
        Ok(Signals { fd })
    }
}

/// Passes signals on and waits until the sandbox has ended; returns the status to exit with. Whatever happens, both processes are gone then.
pub fn until_end(sandbox: Sandbox, signals: &Signals, terminal: &Saved) -> Result<u8> {
    let mut status = None;
    loop {
        let mut fds = [
            PollFd::new(sandbox.control.as_fd(), PollFlags::POLLIN),
            PollFd::new(sandbox.sentry.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(sandbox.gofer.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.fd.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("poll"),
        }
        let [control, sentry_ended, gofer_ended, signal] = fds.map(|f| f.any().unwrap_or(false));
        // What the Sentry has said counts before how it ended.
        while control && status.is_none() {
            match FromSentry::receive(&sandbox.control) {
                Ok(Some(FromSentry::Started)) => {}
                Ok(Some(FromSentry::Stopped)) => stop_ourselves(&sandbox, terminal),
                Ok(Some(FromSentry::Exited(n))) => status = Some(n),
                Ok(Some(FromSentry::LostGofer)) => return Err(gofer_trouble(&sandbox)),
                // Without its Gofer a Sentry can fail in many ways; the cause is what counts.
                Ok(Some(FromSentry::Failed { .. })) if wait_for_end(&sandbox.gofer) && died(&sandbox.gofer) => {
                    return Err(gofer_trouble(&sandbox))
                }
                Ok(Some(FromSentry::Failed { status: n, text })) => {
                    eprintln!("runsc-rs: {}", printable(&text));
                    status = Some(n);
                }
                Ok(None) | Err(Errno::EAGAIN) => break,
                Err(e) => bail!("the control socket to the Sentry failed: {e}"),
            }
        }
        if let Some(status) = status {
            // It is about to end; no need to wait for that to take its own time.
            drop(sandbox);
            return Ok(status);
        }
        if sentry_ended {
            return Err(sentry_trouble(&sandbox));
        }
        if gofer_ended {
            // A Gofer ends by itself when the Sentry's end of the connection is closed, which a dying Sentry does first of all.
            if !died(&sandbox.gofer) && wait_for_end(&sandbox.sentry) {
                continue;
            }
            return Err(gofer_trouble(&sandbox));
        }
        if signal {
            while let Ok(Some(info)) = signals.fd.read_signal() {
                let Ok(signal) = i32::try_from(info.ssi_signo) else { continue };
                // The terminal's own signals come from the kernel, others from a process.
                let terminal = info.ssi_code == libc::SI_KERNEL;
                // If the Sentry is gone, its pidfd tells.
                let _ = ToSentry::Signal { signal, terminal }.send(&sandbox.control);
            }
        }
    }
}

/// The guest's first process has stopped: so do we, that the shell we were started from takes over, and both go on together.
fn stop_ourselves(sandbox: &Sandbox, terminal: &Saved) {
    let settings = terminal.current();
    terminal.restore();
    // The host ignores this one if nobody could continue us; SIGSTOP would be for good then.
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTSTP);
    let _ = raise(Signal::SIGTSTP);
    let _ = stop.thread_unblock();
    // Here we have been continued, or were not stopped at all. The SIGCONT of the former waits in the signalfd.
    let _ = stop.thread_block();
    let _ = ToSentry::Signal { signal: libc::SIGCONT, terminal: false }.send(&sandbox.control);
    if let Some(settings) = settings {
        terminal.set(&settings);
    }
    let _ = ToSentry::Signal { signal: libc::SIGWINCH, terminal: true }.send(&sandbox.control);
}

fn sentry_trouble(sandbox: &Sandbox) -> anyhow::Error {
    let how = ending(&sandbox.sentry);
    if matches!(wait_status(&sandbox.sentry), Some(WaitStatus::Exited(_, sys::SIGSYS_STATUS))) {
        return anyhow::anyhow!(
            "the Sentry ended itself: it was about to make a host call that it may not make (see the line above)"
        );
    }
    anyhow::anyhow!("the Sentry {how} before the command had ended; the sandbox is gone")
}

fn gofer_trouble(sandbox: &Sandbox) -> anyhow::Error {
    // Its connection ends a moment before the process does.
    wait_for_end(&sandbox.gofer);
    anyhow::anyhow!("the Gofer {}; the sandbox has been ended", ending(&sandbox.gofer))
}

/// Whether the process has ended, and not as it should.
fn died(process: &Process) -> bool {
    matches!(wait_status(process), Some(WaitStatus::Signaled(..) | WaitStatus::Exited(_, 1..)))
}

/// Waits a little for a process that is known to be ending; tells whether it has.
fn wait_for_end(process: &Process) -> bool {
    let mut fds = [PollFd::new(process.pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(500u16)).is_ok_and(|n| n > 0)
}

fn wait_status(process: &Process) -> Option<WaitStatus> {
    waitid(Id::Pid(process.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT).ok()
}

fn ending(process: &Process) -> String {
    match wait_status(process) {
        Some(WaitStatus::Exited(_, status)) => format!("exited with status {status}"),
        Some(WaitStatus::Signaled(_, signal, _)) => format!("was killed by {signal}"),
        _ => "is gone".into(),
    }
}

/// A guest in control of the Sentry may not send escape sequences to the terminal through us.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
