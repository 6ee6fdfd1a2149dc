//! What is wrong with a configuration can be said before anything is started: one clear error for each mistake, in runc's words where it has some.

use anyhow::{bail, Result};
use oci_spec::runtime::{Process, Spec};

pub fn spec(spec: &Spec) -> Result<()> {
    let _ = spec;
    todo!()
}

pub fn process(process: &Process) -> Result<()> {
    if process.args().as_deref().unwrap_or_default().is_empty() {
        bail!("args must not be empty");
    }
    todo!()
}
