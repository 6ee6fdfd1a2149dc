//! `runsc-rs run`: from options to an exit status. This process stays outside, trusted and idle, until the sandbox has ended.
//!
//! [`options`] checks the command line and makes the configurations, [`spawn`] starts the Gofer and the Sentry side by side,
//! [`supervise`] passes signals on and waits for the end, [`terminal`] keeps the terminal's settings.

mod options;
mod spawn;
mod supervise;
mod terminal;

use crate::cli::RunArgs;
use anyhow::Result;
use std::io::Write;

/// Runs the command line's sandbox; returns the status to exit with.
pub fn run(args: RunArgs) -> Result<u8> {
    let plan = options::plan(args)?;
    // Before anything is started: from here on no signal is lost.
    let signals = supervise::Signals::take_over()?;
    let terminal = terminal::Saved::take();
    let sandbox = spawn::start(plan)?;
    supervise::until_end(sandbox, &signals, &terminal)
}

/// What the process has to say before it ends: as other programs do, it waits for a reader that takes nothing, and Ctrl-C ends it then.
pub fn say_last(text: &str) {
    supervise::let_signals_end_us();
    // There is nobody to tell if this fails.
    let _ = writeln!(std::io::stderr(), "runsc-rs: {text}");
}
