//! The Sentry's process: takes up its configuration, locks itself in, boots the guest kernel and runs it to its end.

use crate::config::{fd, from_memfd, SentryConfig};
use crate::control::FromSentry;
use crate::{confine, logging, sys};
use anyhow::{Context, Result};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::os::fd::{AsFd, OwnedFd};

pub fn main() -> Result<u8> {
    let config = sys::inherited_fd(fd::CONFIG).context("this is an internal subcommand: `runsc-rs run` starts it")?;
    let config: SentryConfig = from_memfd(config)?;
    logging::init("sentry", config.debug);
    let control = sys::inherited_fd(fd::CONTROL)?;
    let result = boot(config, &control);
    let message = match &result {
        Ok(status) => FromSentry::Exited(*status),
        Err(e) => FromSentry::Failed { status: crate::OWN_FAILURE, text: format!("{e:#}") },
    };
    message.send(&control).context("telling the command")?;
    // Nothing is worth running destructors for: the host takes back everything at once.
    sys::exit_now(0)
}

/// Sets the process up, from the outermost confinement inwards.
fn lock_in(config: &SentryConfig, control: &OwnedFd) -> Result<()> {
    if let Some(ids) = config.become_ids {
        confine::become_ids(ids)?;
    }
    confine::die_with_parent()?;
    if parent_is_gone(control) {
        sys::exit_now(0);
    }
    confine::empty_root()?;
    confine::limits()?;
    confine::drop_privileges()?;
    Ok(())
}

/// The command may have died before it was asked to take us along.
fn parent_is_gone(control: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(control.as_fd(), PollFlags::empty())];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
}

fn boot(config: SentryConfig, control: &OwnedFd) -> Result<u8> {
    lock_in(&config, control)?;
    confine::seccomp::lock()?;
    log::info!("the Sentry is locked in");
    Ok(0)
}
