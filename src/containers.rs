//! From configurations to the containers and processes of the guest kernel, in the Sentry.

use crate::config::{ContainerConfig, DeviceNode, MountKind, ProcessConfig};
use crate::control::protocol;
use ::protocol::Client;
use anyhow::{anyhow, Result};
use sentry::container::process::ProcessSpec;
use sentry::container::Container;
use sentry::fs::setup::{build_root, DeviceSpec, MountSpec, RootOptions, Source};
use sentry::kernel::cgroup::{Cgroup, CpuMax, CPU_PERIOD_RANGE, CPU_QUOTA_MIN};
use sentry::kernel::limits::{Limits, Rlimit};
use sentry::kernel::ns::Maker;
use sentry::kernel::nsproxy::{NsProxy, UtsNs};
use sentry::kernel::pid_ns::PidNs;
use sentry::kernel::{cred, seccomp, Cred, Kernel};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Makes a container without processes. `first`: the sandbox's first container, whose namespaces it shares as
/// configured.
pub fn make(
    kernel: &Arc<Kernel>,
    client: &Client,
    c: &ContainerConfig,
    first: Option<&Container>,
) -> Result<Arc<Container>> {
    let shared = |wanted: bool| first.filter(|_| wanted).map(|f| f.ns.clone());
    let uts = match shared(c.share.uts) {
        Some(ns) => ns.uts.clone(),
        None => UtsNs::first(c.hostname.clone(), c.domainname.clone()),
    };
    let ipc = shared(c.share.ipc).map_or_else(Arc::default, |ns| ns.ipc.clone());
    let net = shared(c.share.net).map_or_else(Arc::default, |ns| ns.net.clone());
    // Before the file systems: a procfs shows the processes of this namespace, and no others.
    let pids = match first.is_some() && !c.share.pid {
        true => {
            let maker = Maker::of(&Cred::user(0, 0, Vec::new(), cred::CAP_ALL));
            PidNs::first().below(&maker).map_err(|e| anyhow!("making a pid namespace: {}", e.desc()))?
        }
        false => PidNs::first(),
    };
    let mnt = build_root(kernel, client, &root_options(c), &ipc, &pids)
        .map_err(|e| anyhow!("setting up the file systems: {e}"))?;
    let mut ns = NsProxy::of_container(uts, ipc, net, mnt);
    ns.pid_for_children = pids;
    if first.is_none() {
        let _ = kernel.first_ns.set(Arc::new(ns.clone()));
    }
    let container = Container::new(c.id.clone(), ns, Cgroup::new(None));
    set_limits(kernel, &container, &c.limits);
    Ok(container)
}

/// Sets the limits that the Sentry enforces; the host's cgroup has the others.
pub fn set_limits(kernel: &Arc<Kernel>, container: &Container, limits: &protocol::Limits) {
    if let Some(pids) = limits.pids {
        container.cgroup.set_pids_max(u64::try_from(pids).ok());
    }
    if limits.cpu_quota.is_none() && limits.cpu_period.is_none() {
        return;
    }
    let old = container.cgroup.cpu_max();
    let quota = match limits.cpu_quota {
        Some(new) => u64::try_from(new).ok().filter(|q| *q > 0),
        None => old.map(|o| o.quota),
    };
    let period = limits.cpu_period.filter(|p| *p > 0).or(old.map(|o| o.period)).unwrap_or(CPU_PERIOD);
    let period = period.clamp(*CPU_PERIOD_RANGE.start(), *CPU_PERIOD_RANGE.end());
    container.set_cpu_max(kernel, quota.map(|quota| CpuMax { quota: quota.max(CPU_QUOTA_MIN), period }));
}

/// Period of a quota that comes without one, in microseconds, as in cgroups.
const CPU_PERIOD: u64 = 100_000;

/// Where the file systems of a container come from.
fn root_options(c: &ContainerConfig) -> RootOptions {
    let mounts = c.mounts.iter().map(|m| MountSpec {
        target: m.target.clone(),
        source: match &m.kind {
            MountKind::Tree(name) => Source::Tree(name.clone()),
            MountKind::Tmpfs => Source::Type("tmpfs"),
            MountKind::Proc => Source::Type("proc"),
            MountKind::Sysfs => Source::Type("sysfs"),
            MountKind::Devpts => Source::Type("devpts"),
            MountKind::Mqueue => Source::Type("mqueue"),
            MountKind::Cgroup => Source::Type("cgroup2"),
            MountKind::Dev => Source::Dev,
            MountKind::Bind(from) => Source::Bind(from.clone()),
        },
        name: m.source.clone(),
        flags: m.flags,
        data: m.data.clone(),
        required: m.required,
    });
    RootOptions {
        tree: c.root.clone(),
        read_only: c.root_read_only,
        propagation: c.root_propagation,
        overlay: c.overlay,
        exclusive: c.exclusive,
        mounts: mounts.collect(),
        devices: c.devices.iter().map(device).collect(),
        masked_paths: c.masked_paths.clone(),
        read_only_paths: c.read_only_paths.clone(),
        sysctls: c.sysctls.iter().map(|(name, value)| (name.replace('.', "/").into(), value.clone().into())).collect(),
        user: c.process.user.uid,
    }
}

fn device(d: &DeviceNode) -> DeviceSpec {
    DeviceSpec { path: d.path.clone(), mode: d.mode, rdev: libc::makedev(d.major, d.minor), uid: d.uid, gid: d.gid }
}

/// What the kernel is to start. `descriptors` are those that `files` counts.
pub fn process_spec(p: ProcessConfig, descriptors: Vec<Option<OwnedFd>>) -> nix::Result<ProcessSpec> {
    let (uid, gid) = (p.user.uid, p.user.gid);
    let mut cred = Cred::user(uid, gid, p.user.groups, cred::CAP_ALL);
    if let Some(c) = p.capabilities {
        let all = cred::CAP_ALL;
        (cred.bounding, cred.inheritable) = (c.bounding & all, c.inheritable & all);
        cred.permitted = c.permitted & all;
        cred.effective = c.effective & cred.permitted;
        cred.ambient = c.ambient & cred.permitted & cred.inheritable;
    }
    cred.no_new_privs = p.no_new_privs;
    let mut descriptors = descriptors;
    let mut files = Vec::new();
    for at in p.files {
        files.push(match at {
            None => None,
            // Each is used once.
            Some(at) => descriptors.get_mut(usize::from(at)).and_then(Option::take),
        });
    }
    let mut seccomp = Vec::new();
    for filter in p.seccomp {
        let insns = filter.program.into_iter().map(|(code, jt, jf, k)| seccomp::Insn { code, jt, jf, k });
        seccomp.push(seccomp::Program::check(insns.collect())?);
    }
    Ok(ProcessSpec {
        argv: p.argv,
        env: p.env,
        cwd: p.cwd,
        cred,
        files,
        terminal: p.terminal,
        umask: p.umask & 0o777,
        nice: p.nice,
        limits: limits(&p.limits),
        oom_score_adj: p.oom_score_adj,
        seccomp,
    })
}

/// The caller's limits, for the guest's first process.
fn limits(callers: &[(u64, u64)]) -> Limits {
    let mut limits = Limits::default();
    for (limit, &(cur, max)) in limits.0.iter_mut().zip(callers) {
        *limit = Rlimit { cur, max };
    }
    limits
}
