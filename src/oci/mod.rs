//! The OCI runtime: bundles in, containers of a sandbox out.
//!
//! A bundle goes through [`bundle`] (read and validated), [`plan`] (what the Sentry and the Gofer are told; [`seccomp`] makes the filters),
//! [`cgroup`] (limits around the whole sandbox, on the host) and [`hooks`]. [`spec`] writes a bundle to start from, [`features`] says what
//! there is, [`events`] what a container uses.

// Until the commands are there.
#![allow(dead_code)]

pub mod bundle;
pub mod cgroup;
pub mod events;
pub mod features;
pub mod hooks;
mod ordered;
pub mod plan;
pub mod seccomp;
pub mod spec;
