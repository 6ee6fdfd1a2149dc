//! The settings of the caller's terminal: remembered at the start, put back when the sandbox stops or ends, however it ends.

use nix::sys::termios::{tcgetattr, tcsetattr, SetArg, Termios};
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};

/// A terminal among the standard streams, with its settings as we found them.
pub struct Saved(Option<(OwnedFd, Termios)>);

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
        Saved(terminal.and_then(|fd| Some((fd.try_clone_to_owned().ok()?, tcgetattr(fd).ok()?))))
    }

    /// The settings now.
    pub fn current(&self) -> Option<Termios> {
        tcgetattr(&self.0.as_ref()?.0).ok()
    }

    /// Puts back the settings found at the start.
    pub fn restore(&self) {
        if let Some((_, settings)) = &self.0 {
            self.set(settings);
        }
    }

    /// Sets them, if they differ. From a background process group this would stop us, but for SIGTTOU being blocked.
    pub fn set(&self, settings: &Termios) {
        if let Some((fd, _)) = &self.0 {
            if tcgetattr(fd).is_ok_and(|now| now != *settings) {
                let _ = tcsetattr(fd, SetArg::TCSADRAIN, settings);
            }
        }
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        self.restore();
    }
}
