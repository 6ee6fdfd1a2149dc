//! From a validated bundle to what the Sentry and the Gofer are told.
//!
//! What the guest kernel has is passed on; what belongs to the host kernel and means nothing inside is accepted with a
//! line in the log; what the bundle relies on and a sandbox does not have is refused before anything is started.

mod devices;
mod labels;
mod mounts;
mod namespaces;
mod options;
mod process;
mod resources;
mod sysctl;
#[cfg(test)]
mod tests;

pub use options::names as mount_options;
pub use process::{process, CAPABILITIES};
pub use resources::limits;

use super::bundle::Bundle;
use crate::config::{ContainerConfig, IdMaps, ProcessConfig, SeccompFilter, Share, Tree};
use crate::control::protocol::Limits;
use anyhow::{bail, Context, Result};
use oci_spec::runtime::{Linux, LinuxIntelRdt, LinuxPersonalityDomain};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Name of the Gofer's tree that is the root.
const ROOT: &str = "root";
/// What `uname` shows on a system without a domain name.
const NO_DOMAIN: &str = "(none)";

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
    /// The container joins a sandbox.
    pub member: bool,
    /// Binds that the runtime adds (the directory of `NOTIFY_SOCKET`), after the bundle's mounts: source on the host,
    /// target in the container.
    pub extra_binds: Vec<(PathBuf, PathBuf)>,
    /// Variables that the runtime adds (`LISTEN_FDS`, `NOTIFY_SOCKET`).
    pub extra_env: Vec<String>,
}

/// What starts a container.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub container: ContainerConfig,
    /// What the Gofer serves; the first is the root.
    pub trees: Vec<Tree>,
    /// The bundle's user namespace, for [`crate::config::GoferConfig::ids`].
    pub ids: IdMaps,
}

/// Plans the container of a bundle, whose process waits to be started and is process 1. What is accepted but has no
/// meaning in a sandbox is logged.
pub fn container(bundle: &Bundle, options: &Options) -> Result<Plan> {
    let spec = &bundle.spec;
    let linux = spec.linux().clone().unwrap_or_default();
    check_linux(&linux, options.member)?;
    check_root(&bundle.rootfs)?;
    let mut process = process(bundle.process()?)?;
    process.env.extend(options.extra_env.iter().map(|line| line.clone().into_bytes()));
    process.files = files(options.preserve_fds)?;
    process.seccomp = seccomp(bundle)?;
    let mounts = mounts(bundle, options)?;
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let paths = |paths: &Option<Vec<String>>| paths.iter().flatten().map(|p| p.clone().into_bytes()).collect();
    let container = ContainerConfig {
        id: options.id.clone(),
        process,
        hostname: spec.hostname().clone().filter(|name| !name.is_empty()).unwrap_or_else(host_name),
        domainname: spec.domainname().clone().filter(|name| !name.is_empty()).unwrap_or_else(|| NO_DOMAIN.into()),
        root: ROOT.into(),
        root_read_only: read_only,
        root_propagation: root_propagation(&linux)?,
        overlay: options.overlay,
        exclusive: options.exclusive,
        mounts: mounts.mounts,
        devices: devices::plan(&linux)?,
        masked_paths: paths(linux.masked_paths()),
        read_only_paths: paths(linux.readonly_paths()),
        sysctls: sysctl::plan(&linux)?,
        init: true,
        wait_for_start: true,
        limits: linux.resources().as_ref().map_or(Ok(Limits::default()), limits)?,
        share: if options.member { namespaces::share(&linux) } else { Share::default() },
    };
    // Mount points that are missing are made in it, so that a root that is read-only for the guest is not so for the
    // Sentry.
    let source = bundle.rootfs.as_os_str().as_bytes().to_vec();
    let mut trees = vec![Tree { name: ROOT.into(), source, read_only: options.overlay }];
    trees.extend(mounts.trees);
    Ok(Plan { container, trees, ids: namespaces::ids(&linux)? })
}

fn check_root(rootfs: &Path) -> Result<()> {
    match gofer::kernel_file_system(rootfs).with_context(|| format!("rootfs {}", rootfs.display()))? {
        Some(kind) => bail!("rootfs {} is an interface of the host's kernel ({kind})", rootfs.display()),
        None => Ok(()),
    }
}

/// Plans a process for `exec`, with the container's seccomp filters.
pub fn exec(bundle: &Bundle, process: &oci_spec::runtime::Process, preserve_fds: u8) -> Result<ProcessConfig> {
    let mut process = self::process(process)?;
    process.files = files(preserve_fds)?;
    process.seccomp = seccomp(bundle)?;
    Ok(process)
}

/// The seccomp filters of the bundle.
pub fn seccomp(bundle: &Bundle) -> Result<Vec<SeccompFilter>> {
    let Some(profile) = bundle.spec.linux().as_ref().and_then(|l| l.seccomp().as_ref()) else { return Ok(Vec::new()) };
    let filters = super::seccomp::compile(profile)?;
    if filters.iter().any(|filter| filter.flags & super::seccomp::NEW_LISTENER != 0) {
        bail!(
            "seccomp: SCMP_ACT_NOTIFY: notifications of the guest kernel's cannot be given to a listener on the host"
        );
    }
    Ok(filters)
}

/// The first three descriptors and those to preserve.
fn files(preserve: u8) -> Result<Vec<Option<u8>>> {
    let most = crate::control::protocol::MAX_DESCRIPTORS;
    let count = usize::from(preserve) + 3;
    if count > most {
        bail!("--preserve-fds {preserve}: at most {} are possible", most - 3);
    }
    Ok((0..preserve + 3).map(Some).collect())
}

fn mounts(bundle: &Bundle, options: &Options) -> Result<mounts::Mounts> {
    let mut mounts = mounts::plan(&bundle.dir, bundle.spec.mounts().as_deref().unwrap_or_default())?;
    for (source, target) in &options.extra_binds {
        mounts.bind(&bundle.dir, source, target, options::Parsed { bind: Some(false), ..Default::default() })?;
    }
    Ok(mounts)
}

fn root_propagation(linux: &Linux) -> Result<u64> {
    match linux.rootfs_propagation().as_deref().unwrap_or_default() {
        "" => Ok(0),
        name => match options::propagation(name) {
            Some(flags) => Ok(flags),
            None => bail!("rootfsPropagation={name} is not supported"),
        },
    }
}

/// Refuses what the guest kernel does not have and a container would miss.
fn check_linux(linux: &Linux, member: bool) -> Result<()> {
    namespaces::check(linux, member)?;
    if linux.intel_rdt().as_ref().is_some_and(|rdt| *rdt != LinuxIntelRdt::default()) {
        bail!("intelRdt is specified in config, but Intel RDT is not supported or enabled");
    }
    if linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()) {
        if !labels::selinux() {
            bail!("selinux label is specified in config, but selinux is disabled or not supported");
        }
        log::warn!("mountLabel has no effect: the guest kernel has no SELinux");
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        bail!("netDevices: a sandbox cannot take over interfaces of the host");
    }
    if linux.memory_policy().is_some() {
        bail!("memoryPolicy: the guest kernel has one memory node");
    }
    if let Some(personality) = linux.personality() {
        if personality.domain() != LinuxPersonalityDomain::PerLinux {
            bail!("personality {}: only LINUX is supported", personality.domain());
        }
        if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
            bail!("personality flags are not supported yet");
        }
    }
    Ok(())
}

/// A new UTS namespace begins with the caller's names.
fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "sandbox".into())
}
