//! The cgroup around a sandbox, on the host: version 1, version 2, both side by side, or systemd's.
//!
//! It bounds the whole sandbox: the monitor, the Gofer, the Sentry and all stubs. The limits of a container among others in its sandbox are
//! the Sentry's to enforce ([`crate::oci::plan::limits`]).

use anyhow::Result;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A cgroup that was made for a sandbox. It is plain data, which the container's state file keeps; dropping it does nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// As the manager takes it: below each hierarchy's root, or systemd's `slice:prefix:name`.
    path: PathBuf,
    systemd: bool,
    id: String,
    /// Its directories: one, or one for each hierarchy of version 1.
    dirs: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes the cgroup of the container `id`: at `path` (`linux.cgroupsPath`), or without one below the caller's own.
    ///
    /// `Ok(None)`: the caller has no right to make one, and no resources were asked for, so the container runs in the caller's cgroup.
    /// With resources this is an error.
    pub fn create(
        id: &str,
        path: Option<&Path>,
        systemd: bool,
        resources: Option<&LinuxResources>,
    ) -> Result<Option<Cgroup>> {
        let _ = (id, path, systemd, resources);
        todo!()
    }

    /// Moves a process into the cgroup; the processes that it starts are born there. With systemd this makes the scope.
    pub fn add(&self, pid: Pid) -> Result<()> {
        let _ = pid;
        todo!()
    }

    /// Puts limits in force; those that are not given stay. After [`Cgroup::add`] of the first process.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        let _ = resources;
        todo!()
    }

    /// What the whole sandbox uses.
    pub fn stats(&self) -> Result<libcgroups::stats::Stats> {
        todo!()
    }

    /// Stops or continues all host processes of the sandbox. (`pause` is the Sentry's; this is for a Sentry that does not answer.)
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let _ = frozen;
        todo!()
    }

    /// The processes in it and below it.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        todo!()
    }

    /// Kills all processes in it and below it, and waits until they are gone (for a bounded time).
    pub fn kill(&self) -> Result<()> {
        todo!()
    }

    /// Removes it with all below it, after [`Cgroup::kill`]. It is no error if it is gone already.
    pub fn remove(&self) -> Result<()> {
        todo!()
    }

    /// Directory of each controller, as in `state.json` of runc (`cgroup_paths`).
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }
}
