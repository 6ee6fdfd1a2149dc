//! `runsc-rs run`: from options to an exit status. This process stays outside, trusted and idle, until the sandbox has
//! ended.
//!
//! [`options`] checks the command line and makes the configurations, [`spawn`] starts the Gofer and the Sentry side by
//! side, [`supervise`] passes signals on and waits for the end, [`terminal`] keeps the terminal's settings.

pub mod options;
pub mod spawn;
pub mod supervise;
pub mod terminal;

use crate::cli::RunArgs;
use anyhow::Result;
use std::io::Write;
use supervise::{End, Supervisor};
use terminal::Saved;

/// Runs the command line's sandbox; returns the status to exit with.
pub fn run(args: RunArgs) -> Result<u8> {
    let plan = options::plan(args)?;
    // Before anything is started: from here on no signal is lost.
    let signals = supervise::Signals::take_over()?;
    let mut command = Command(Saved::take());
    let sandbox = spawn::start(plan)?;
    match supervise::until_end(sandbox, &signals, &mut command)? {
        End::Exited(status) => Ok(crate::sys::shell_code(status)),
        End::Failed { status, text } => {
            command.0.restore();
            say_last(&text);
            Ok(status)
        }
    }
}

/// The command, in the foreground or the background of its terminal.
struct Command(Saved);

impl Supervisor for Command {
    fn terminal(&self) -> &Saved {
        &self.0
    }
}

/// What the process has to say before it ends: as other programs do, it waits for a reader that takes nothing, and
/// Ctrl-C ends it then.
pub fn say_last(text: &str) {
    supervise::let_signals_end_us();
    // There is nobody to tell if this fails.
    let _ = writeln!(std::io::stderr(), "runsc-rs: {text}");
}
