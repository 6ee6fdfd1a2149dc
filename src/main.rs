//! `runsc-rs`: the command, and the entry points of its internal processes.
//!
//! `run` stays outside as the trusted parent ([`launch`]) and re-executes this binary twice: as the Gofer ([`gofer_main`]) and as the
//! Sentry ([`sentry_main`], locked in by [`confine`]). [`config`] is what they are told, [`control`] what the Sentry and the
//! command say to each other afterwards.

mod cli;
mod config;
mod confine;
mod containers;
mod control;
mod gofer_main;
mod launch;
mod logging;
mod oci;
mod outlet;
mod sentry_main;
mod shim;
mod stats;
mod support;
mod sys;

use clap::Parser;
use std::process::ExitCode;

/// Exit status for runsc-rs's own failures where there is a command, as of `env`, `timeout`, `docker run`.
const OWN_FAILURE: u8 = 125;

fn main() -> ExitCode {
    if shim::is_called() {
        return ExitCode::from(shim::main());
    }
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { cli::usage_failure() } else { 0 });
        }
    };
    let result = match cli.command {
        cli::Command::Run(args) if !oci::is_bundle_run(&args) => launch::run(*args),
        cli::Command::Syscalls(args) => support::print(&args).map(|()| 0),
        cli::Command::InternalGofer => gofer_main::main().map(|()| 0),
        cli::Command::InternalSentry => sentry_main::main(),
        managing => return ExitCode::from(oci::main(&cli.globals, &managing)),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(e) => {
            launch::say_last(&format!("{e:#}"));
            ExitCode::from(OWN_FAILURE)
        }
    }
}
