//! From a bundle's seccomp profile to classic BPF.

use crate::config::SeccompFilter;
use anyhow::Result;
use oci_spec::runtime::LinuxSeccomp;

/// Compiles a profile; the filters are to be put in force in their order. Empty: the profile allows everything.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<SeccompFilter>> {
    let _ = profile;
    todo!()
}
