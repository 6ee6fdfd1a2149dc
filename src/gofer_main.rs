//! The Gofer's process: takes up its configuration, locks itself in, serves until the Sentry is gone.

use crate::config::{fd, from_memfd, GoferConfig, IdRange};
use crate::{confine, logging, sys};
use anyhow::{Context, Result};
use gofer::{Config, Tree};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

pub fn main() -> Result<()> {
    let config = sys::inherited_fd(fd::CONFIG).context("this is an internal subcommand: `runsc-rs run` starts it")?;
    let config: GoferConfig = from_memfd(config)?;
    logging::init("gofer", config.verbosity);
    sys::report_panics("the Gofer");
    confine::die_with_parent()?;
    confine::raise_limits()?;
    let connection = sys::inherited_fd(fd::GOFER)?;
    let trees = config.trees.into_iter().map(|t| Tree {
        name: t.name,
        host_path: OsString::from_vec(t.source).into(),
        read_only: t.read_only,
    });
    // With the ids that it was started with, it would own files of users that the guest does not have.
    let become_ids = match (first(&config.ids.uids), first(&config.ids.gids)) {
        (Some(uid), Some(gid)) => Some((uid, gid)),
        _ => None,
    };
    let config = Config { tell_acls: config.tell_acls, become_ids, ..Config::new(trees.collect()) };
    let gofer = gofer::confine(&config).context("the Gofer cannot lock itself in")?;
    gofer.serve(connection).context("the Gofer gives up")?;
    // No destructors: they would only make the end longer.
    sys::exit_now(0)
}

/// The guest's root, or if it has none the first that it has.
fn first(map: &[IdRange]) -> Option<u32> {
    map.iter().map(|range| range.inside).min()
}
