//! From a validated bundle to what the Sentry and the Gofer are told.

use super::bundle::Bundle;
use crate::config::{ContainerConfig, ProcessConfig, Tree};
use crate::control::protocol::Limits;
use anyhow::Result;
use oci_spec::runtime::{LinuxResources, Process};

/// What the bundle does not say.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The container's id.
    pub id: String,
    /// Descriptors from 3 on that the container's process gets (`--preserve-fds`).
    pub preserve_fds: u8,
    /// Writes to the root stay in memory.
    pub overlay: bool,
    /// No other process changes the root while the container runs.
    pub exclusive: bool,
    /// Binds that the runtime adds (the directory of `NOTIFY_SOCKET`), after the bundle's mounts: source on the host, target in the container.
    pub extra_binds: Vec<(std::path::PathBuf, std::path::PathBuf)>,
    /// Variables that the runtime adds (`LISTEN_FDS`, `NOTIFY_SOCKET`).
    pub extra_env: Vec<String>,
}

/// What starts a container.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub container: ContainerConfig,
    /// What the Gofer serves; the first is the root.
    pub trees: Vec<Tree>,
}

/// Plans the container of a bundle. `wait_for_start` and `init` are set. What is accepted but has no meaning in a sandbox is logged.
pub fn container(bundle: &Bundle, options: &Options) -> Result<Plan> {
    let _ = (bundle, options);
    todo!()
}

/// Plans a process: the container's first one, or one more (`exec`). Descriptors 0, 1 and 2 are those that come along as such.
pub fn process(process: &Process) -> Result<ProcessConfig> {
    let _ = process;
    todo!()
}

/// Plans the seccomp filters of the bundle: for the first process, and for `exec` as well.
/// ([`process`] knows the process only; [`container`] puts them into its own.)
pub fn seccomp(bundle: &Bundle) -> Result<Vec<crate::config::SeccompFilter>> {
    match bundle.spec.linux().as_ref().and_then(|l| l.seccomp().as_ref()) {
        Some(profile) => super::seccomp::compile(profile),
        None => Ok(Vec::new()),
    }
}

/// The limits that the Sentry enforces of a bundle's or an update's resources.
pub fn limits(resources: &LinuxResources) -> Result<Limits> {
    let _ = resources;
    todo!()
}
