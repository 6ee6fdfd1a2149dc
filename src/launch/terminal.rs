//! The caller's terminal: its settings are saved while the command is in the foreground, and restored when the sandbox
//! stops or ends, however it ends. A command in the background leaves the terminal alone: it belongs to another job
//! then.

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::sys::stat::fstat;
use nix::sys::termios::{tcflow, tcgetattr, tcsetattr, FlowArg, SetArg, Termios};
use nix::unistd::{getpgrp, tcgetpgrp};
use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// A terminal among the standard streams.
pub struct Saved(Option<Terminal>);

struct Terminal {
    fd: OwnedFd,
    /// As found when the command was first in the foreground.
    settings: RefCell<Option<Termios>>,
}

impl Saved {
    pub fn take() -> Saved {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let terminal = if stdin.is_terminal() {
            Some(stdin.as_fd())
        } else if stdout.is_terminal() {
            Some(stdout.as_fd())
        } else if stderr.is_terminal() {
            Some(stderr.as_fd())
        } else {
            None
        };
        Saved::of(terminal)
    }

    /// That of a given terminal, if there is one.
    pub fn of(terminal: Option<BorrowedFd<'_>>) -> Saved {
        let owned = terminal.and_then(|fd| fd.try_clone_to_owned().ok());
        let saved = Saved(owned.map(|fd| Terminal { fd, settings: RefCell::default() }));
        saved.in_foreground();
        saved
    }

    /// Whether the command's process group is in the foreground of the terminal; true for one that is not its
    /// controlling terminal, which has no job control for it. Saves the settings when they have not been saved yet.
    pub fn in_foreground(&self) -> bool {
        let Some(Terminal { fd, settings }) = &self.0 else { return true };
        let foreground = match tcgetpgrp(fd) {
            Ok(pgrp) => pgrp == getpgrp(),
            Err(Errno::ENOTTY) => true,
            Err(_) => false,
        };
        if foreground && settings.borrow().is_none() {
            *settings.borrow_mut() = tcgetattr(fd).ok();
        }
        foreground
    }

    /// The settings now.
    pub fn current(&self) -> Option<Termios> {
        tcgetattr(&self.0.as_ref()?.fd).ok()
    }

    /// In the foreground: restores the saved settings and restarts output.
    pub fn restore(&self) {
        if !self.in_foreground() {
            return;
        }
        if let Some(Terminal { fd, settings }) = &self.0 {
            let _ = tcflow(fd, FlowArg::TCOON);
            if let Some(settings) = &*settings.borrow() {
                self.set(settings);
            }
        }
    }

    /// Sets them, if they differ. From a background process group this would stop us, but for SIGTTOU being blocked.
    pub fn set(&self, settings: &Termios) {
        if let Some(Terminal { fd, .. }) = &self.0 {
            if tcgetattr(fd).is_ok_and(|now| now != *settings) {
                // Not after a drain: that may take for ever.
                let _ = tcsetattr(fd, SetArg::TCSANOW, settings);
            }
        }
    }
}

/// The terminal that `fd` is, opened anew with `O_NONBLOCK`: the flags of `fd` itself are shared with the shell. `None`
/// if it is no terminal, or may not be opened (it belongs to another user, say): then `fd` must do.
pub fn opened_anew(fd: BorrowedFd<'_>) -> Option<OwnedFd> {
    // A master would become another one.
    const PTMX: u64 = libc::makedev(5, 2);
    let rdev = |fd: BorrowedFd<'_>| fstat(fd).ok().map(|s| s.st_rdev);
    if !fd.is_terminal() || rdev(fd) == Some(PTMX) {
        return None;
    }
    let mode = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL).ok()?) & OFlag::O_ACCMODE;
    let anew = OpenOptions::new()
        .read(mode != OFlag::O_WRONLY)
        .write(mode != OFlag::O_RDONLY)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .ok()?;
    (anew.is_terminal() && rdev(anew.as_fd()) == rdev(fd)).then(|| anew.into())
}

impl Drop for Saved {
    fn drop(&mut self) {
        self.restore();
    }
}
