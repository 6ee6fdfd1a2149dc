//! The command while the sandbox runs: one loop over the control socket, the two processes and the signals.

use super::spawn::{Process, Sandbox};
use super::terminal::Saved;
use crate::control::{FromSentry, ToSentry};
use crate::sys::{self, Cloned};
use anyhow::{bail, Context, Result};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{kill, raise, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{waitid, waitpid, Id, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Passed on to the guest by `run`.
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

/// Those that ask for an end. As a rule a program that does not want to end may go on, as outside of a sandbox; but if
/// it is the Sentry that does not listen, the second one means the sandbox.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

fn asks_for_an_end(signal: i32) -> bool {
    ENDING.iter().any(|s| *s as i32 == signal)
}
/// How long a Sentry may take to take up a signal. It needs far less than a millisecond, unless the machine is short of
/// processors.
const PATIENCE: Duration = Duration::from_millis(500);

/// The signals that have been passed on and that the Sentry has not taken up yet.
#[derive(Default)]
struct Passed(VecDeque<(i32, Instant)>);

impl Passed {
    /// More than these are not remembered.
    const MOST: usize = 256;

    /// Passes a signal on.
    fn pass(&mut self, sandbox: &Sandbox, signal: i32, terminal: bool) {
        // If the Sentry is gone, its pidfd tells; if it takes up nothing, a signal less is no loss.
        let _ = ToSentry::Signal { signal, terminal }.send(&sandbox.control);
        if self.0.len() < Self::MOST {
            self.0.push_back((signal, Instant::now()));
        }
    }

    fn taken(&mut self) {
        self.0.pop_front();
    }

    /// Whether several of those wait that ask for an end.
    fn insisting(&self) -> Option<Insisting> {
        let mut ending = self.0.iter().filter(|(s, _)| asks_for_an_end(*s));
        let (first, last) = (ending.next()?, ending.next_back()?);
        Some(Insisting { first: first.0, since: first.1, last: last.0 })
    }
}

/// Somebody wants an end, more than once, and the Sentry does not listen.
struct Insisting {
    first: i32,
    since: Instant,
    last: i32,
}

impl Insisting {
    /// What is left of it.
    fn patience(&self) -> Duration {
        (self.since + PATIENCE).saturating_duration_since(Instant::now())
    }
}

/// The signals, taken as messages instead of interruptions.
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    pub fn take_over() -> Result<Signals> {
        let mut mask: SigSet = PASSED.into_iter().collect();
        // Not passed on: a closed pipe or a file too large is seen as an error, and restoring the terminal must not
        // stop us.
        mask.add(Signal::SIGXFSZ);
        mask.add(Signal::SIGTTOU);
        mask.add(Signal::SIGPIPE);
        mask.thread_block().context("blocking signals")?;
        Signals::of(&PASSED.into_iter().collect())
    }

    /// All that can be passed on, for a process that stands for one in the container; real-time signals as well. Others
    /// are blocked that would be in its way.
    pub fn take_over_all() -> Result<Signals> {
        let mut mask = SigSet::all();
        // These are the process's own: its children end, it errs, or it is debugged.
        for own in [Signal::SIGCHLD, Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP] {
            mask.remove(own);
        }
        mask.thread_block().context("blocking signals")?;
        for blocked in [Signal::SIGPIPE, Signal::SIGXFSZ, Signal::SIGTTOU, Signal::SIGTTIN, Signal::SIGSYS] {
            mask.remove(blocked);
        }
        Signals::of(&mask)
    }

    fn of(set: &SigSet) -> Result<Signals> {
        let fd = SignalFd::with_flags(set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")?;
        Ok(Signals { fd })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next one that has come: its number, and whether the terminal made it.
    pub fn next(&self) -> Option<(i32, bool)> {
        let info = self.fd.read_signal().ok()??;
        Some((i32::try_from(info.ssi_signo).ok()?, info.ssi_code == libc::SI_KERNEL))
    }
}

/// What is special about the process that supervises a sandbox.
pub trait Supervisor {
    /// The terminal whose foreground the sandbox is told of.
    fn terminal(&self) -> &Saved;

    /// The first process runs, or waits to be started.
    fn started(&mut self) -> Result<()> {
        Ok(())
    }

    /// Job control: when the first process stops, this one does.
    fn stops(&self) -> bool {
        true
    }

    /// Something more to poll for input.
    fn listener(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// There is input on [`Supervisor::listener`].
    fn ready(&mut self, _control: BorrowedFd<'_>) {}
}

/// How a sandbox ended.
pub enum End {
    /// With its first process; the wait(2) status.
    Exited(i32),
    /// It could not be run: the exit status and what to say. The sandbox is gone, so that nothing in it can have a part
    /// in how this is said.
    Failed { status: u8, text: String },
}

/// Passes signals on and waits until the sandbox has ended; returns the status to exit with. Whatever happens, both
/// processes are gone then.
pub fn until_end(sandbox: Sandbox, signals: &Signals, supervisor: &mut impl Supervisor) -> Result<End> {
    let mut status = None;
    let mut passed = Passed::default();
    let mut woken_by = None;
    loop {
        let also = supervisor.listener();
        let mut fds = [
            PollFd::new(sandbox.control.as_fd(), PollFlags::POLLIN),
            PollFd::new(sandbox.sentry.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(sandbox.gofer.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.fd.as_fd(), PollFlags::POLLIN),
            // Without one, what is there already: its events are asked for anyway.
            PollFd::new(also.unwrap_or(signals.fd.as_fd()), PollFlags::POLLIN),
        ];
        // Rounded up, or it would be asked for again and again.
        let timeout = passed.insisting().and_then(|i| PollTimeout::try_from(i.patience().as_millis() + 1).ok());
        match poll(&mut fds, timeout.unwrap_or(PollTimeout::NONE)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("poll"),
        }
        let [control, sentry_ended, gofer_ended, signal, ready] = fds.map(|f| f.any().unwrap_or(false));
        // What the Sentry has said counts before how it ended.
        while control && status.is_none() {
            match FromSentry::receive(&sandbox.control) {
                Ok(Some(FromSentry::Started)) => supervisor.started()?,
                Ok(Some(FromSentry::Stopped)) if supervisor.stops() => {
                    woken_by = stop_ourselves(&sandbox, supervisor.terminal(), &mut passed);
                }
                Ok(Some(FromSentry::Stopped | FromSentry::Continued)) => {}
                Ok(Some(FromSentry::Taken)) => passed.taken(),
                Ok(Some(FromSentry::AskForeground)) => {
                    // If the Sentry takes nothing, it asks again.
                    let _ = ToSentry::Foreground(supervisor.terminal().in_foreground()).send(&sandbox.control);
                }
                Ok(Some(FromSentry::Exited(n))) => status = Some(n),
                Ok(Some(FromSentry::LostGofer)) => return Err(gofer_trouble(&sandbox)),
                // Without its Gofer a Sentry can fail in many ways; the cause is what counts.
                Ok(Some(FromSentry::Failed { .. })) if wait_for_end(&sandbox.gofer) && died(&sandbox.gofer) => {
                    return Err(gofer_trouble(&sandbox))
                }
                Ok(Some(FromSentry::Failed { status: n, text })) => {
                    drop(sandbox);
                    return Ok(End::Failed { status: n, text: printable(&text) });
                }
                Ok(None) | Err(Errno::EAGAIN) => break,
                Err(e) => bail!("the control socket to the Sentry failed: {e}"),
            }
        }
        if let Some(status) = status {
            // It is about to end; no need to wait for that to take its own time.
            drop(sandbox);
            return Ok(End::Exited(status));
        }
        if sentry_ended {
            return Err(sentry_trouble(&sandbox));
        }
        // Not before it is known what has been taken up: it may be we who were stopped.
        if let Some(insisting) = passed.insisting().filter(|i| i.patience().is_zero()) {
            let Insisting { first, last, .. } = insisting;
            let name = |n: i32| Signal::try_from(n).map_or_else(|_| n.to_string(), |s| s.to_string());
            let (first, number) = (name(first), last);
            let last = name(last);
            let text =
                format!("the Sentry is stuck: it has taken up neither {first} nor {last}; the sandbox has been ended");
            drop(sandbox);
            return Ok(End::Failed { status: u8::try_from(128 + number).unwrap_or(crate::OWN_FAILURE), text });
        }
        if gofer_ended {
            // A Gofer ends by itself when the Sentry's end of the connection is closed, which a dying Sentry does first
            // of all.
            if !died(&sandbox.gofer) && wait_for_end(&sandbox.sentry) {
                continue;
            }
            return Err(gofer_trouble(&sandbox));
        }
        if signal {
            while let Ok(Some(info)) = signals.fd.read_signal() {
                if woken_by.is_some_and(|p: Pid| i64::from(p.as_raw()) == i64::from(info.ssi_pid)) {
                    continue;
                }
                // The terminal's own signals come from the kernel, others from a process.
                let terminal = info.ssi_code == libc::SI_KERNEL;
                if let Ok(number) = i32::try_from(info.ssi_signo) {
                    passed.pass(&sandbox, number, terminal);
                }
            }
        }
        if ready {
            supervisor.ready(sandbox.control.as_fd());
        }
    }
}

/// From now on signals that ask for an end are not taken as messages any more. Those that have come already are
/// forgotten.
pub fn let_signals_end_us() {
    let set: SigSet = ENDING.into_iter().collect();
    if let Ok(fd) = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) {
        while let Ok(Some(_)) = fd.read_signal() {}
    }
    let _ = set.thread_unblock();
}

/// The guest's first process has stopped: so do we, that the shell we were started from takes over, and both go on
/// together. Tells who has continued us, if it was a [`Watcher`].
fn stop_ourselves(sandbox: &Sandbox, terminal: &Saved, passed: &mut Passed) -> Option<Pid> {
    let settings = terminal.current();
    terminal.restore();
    // The host ignores this one if nobody could continue us; SIGSTOP would be for good then.
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTSTP);
    let _ = raise(Signal::SIGTSTP);
    // It is pending until it is let in: a SIGCONT that comes first takes it away. What we wait to hear from the Sentry
    // would wake us at once.
    let watcher = if passed.0.is_empty() { Watcher::start(sandbox) } else { None };
    let _ = stop.thread_unblock();
    // Here we have been continued, or were not stopped at all. The SIGCONT of the former waits in the signalfd.
    let _ = stop.thread_block();
    let woken_by = watcher.and_then(Watcher::end);
    if woken_by.is_none() {
        passed.pass(sandbox, libc::SIGCONT, false);
    }
    if let Some(settings) = settings.filter(|_| terminal.in_foreground()) {
        terminal.set(&settings);
    }
    passed.pass(sandbox, libc::SIGWINCH, true);
    woken_by
}

/// A process that continues us when the Sentry has something to say while we are stopped: that another process of the
/// sandbox has continued the first one, or that it has ended.
struct Watcher(Pid);

impl Watcher {
    fn start(sandbox: &Sandbox) -> Option<Watcher> {
        let us = Pid::this();
        match sys::clone_process(0) {
            Ok(Cloned::Parent { pid, .. }) => Some(Watcher(pid)),
            Ok(Cloned::Child) => {
                let _ = set_pdeathsig(Signal::SIGKILL);
                let mut control = [PollFd::new(sandbox.control.as_fd(), PollFlags::POLLIN)];
                let heard = loop {
                    match poll(&mut control, PollTimeout::NONE) {
                        Err(Errno::EINTR) => {}
                        r => break r.is_ok(),
                    }
                };
                if heard && Pid::parent() == us {
                    let _ = kill(us, Signal::SIGCONT);
                }
                sys::exit_now(i32::from(!heard))
            }
            Err(_) => None,
        }
    }

    /// Ends it; tells its number if it has continued us.
    fn end(self) -> Option<Pid> {
        let _ = kill(self.0, Signal::SIGKILL);
        match waitpid(self.0, None) {
            Ok(WaitStatus::Exited(_, 0)) => Some(self.0),
            _ => None,
        }
    }
}

fn sentry_trouble(sandbox: &Sandbox) -> anyhow::Error {
    let how = ending(&sandbox.sentry);
    if matches!(wait_status(&sandbox.sentry), Some(WaitStatus::Exited(_, sys::SIGSYS_STATUS))) {
        return anyhow::anyhow!(
            "the Sentry ended itself: it was about to make a host call that it may not make (see the line above)"
        );
    }
    if matches!(wait_status(&sandbox.sentry), Some(WaitStatus::Exited(_, sys::ABORT_STATUS))) {
        return anyhow::anyhow!("the Sentry ended: it could not get memory (see the line above, and `ulimit -v`)");
    }
    if matches!(wait_status(&sandbox.sentry), Some(WaitStatus::Exited(_, sys::PANIC_STATUS))) {
        return anyhow::anyhow!("the Sentry ended itself because of an error of its own (see the line above)");
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
