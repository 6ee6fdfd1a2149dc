//! What a process may be configured with that is the host kernel's, and means nothing to the guest kernel. A sandbox
//! confines its processes more tightly than these would; so a host that has them is no reason to refuse, and a host
//! that lacks them refuses as with runc.

use anyhow::{bail, Result};
use oci_spec::runtime::Process;
use std::path::Path;

pub fn check(process: &Process) -> Result<()> {
    let given = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    if given(process.apparmor_profile()) {
        if !apparmor() {
            bail!("apparmor: config provided but apparmor not supported");
        }
        log::warn!("apparmorProfile has no effect: the guest kernel has no AppArmor");
    }
    if given(process.selinux_label()) {
        if !selinux() {
            bail!("selinux label is specified in config, but selinux is disabled or not supported");
        }
        log::warn!("selinuxLabel has no effect: the guest kernel has no SELinux");
    }
    if process.io_priority().is_some() {
        log::warn!("ioPriority has no effect: the guest kernel does not schedule I/O");
    }
    if process.exec_cpu_affinity().is_some() {
        log::warn!("execCPUAffinity has no effect: guest processes have no processors of their own before they run");
    }
    if process.scheduler().is_some() {
        log::warn!("scheduler: only the nice value has an effect");
    }
    Ok(())
}

fn apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

pub fn selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}
