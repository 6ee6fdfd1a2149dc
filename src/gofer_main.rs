//! The Gofer's process: takes up its configuration, locks itself in, serves until the Sentry is gone.

use crate::config::{fd, from_memfd, GoferConfig};
use crate::{confine, logging, sys};
use anyhow::{Context, Result};

pub fn main() -> Result<()> {
    let config = sys::inherited_fd(fd::CONFIG).context("this is an internal subcommand: `runsc-rs run` starts it")?;
    let config: GoferConfig = from_memfd(config)?;
    logging::init(sys::inherited_fd(fd::LOG)?, "gofer", config.debug);
    confine::die_with_parent()?;
    let connection = sys::inherited_fd(fd::GOFER)?;
    drop(connection);
    Ok(())
}
