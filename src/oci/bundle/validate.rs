//! What can be said to be wrong with a configuration before anything is started: one clear error for each mistake, in
//! runc's words where it has some.

use anyhow::{anyhow, bail, Context, Result};
use oci_spec::runtime::{Hook, Hooks, Linux, LinuxNamespaceType as Kind, PosixRlimit, Process, Spec};
use std::path::Path;

/// As `sethostname` takes it.
const MAX_HOSTNAME: usize = 64;

pub fn spec(spec: &Spec) -> Result<()> {
    version(spec.version())?;
    process(spec.process().as_ref().ok_or_else(|| anyhow!("process property must not be empty"))?)?;
    if spec.root().is_none() {
        bail!("root must be specified");
    }
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        host_name(field, name.as_deref().unwrap_or_default())?;
    }
    if let Some(hooks) = spec.hooks() {
        hooks_of(hooks)?;
    }
    for mount in spec.mounts().iter().flatten() {
        no_nul("mount destination", &mount.destination().to_string_lossy())?;
        if mount.destination().as_os_str().is_empty() {
            bail!("mount destination must not be empty");
        }
    }
    if let Some(key) = spec.annotations().iter().flatten().map(|a| a.0).find(|key| key.is_empty()) {
        bail!("annotations: {key:?}: a key must not be empty");
    }
    match spec.linux() {
        Some(linux) => linux_of(spec, linux),
        None => Ok(()),
    }
}

/// Version 1 of the specification: a semantic version, of which the minor one and what follows may be anything.
fn version(text: &str) -> Result<()> {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<&str> = core.split('.').collect();
    let well_formed = numbers.len() == 3
        && numbers.iter().all(|n| {
            !n.is_empty() && n.len() < 10 && n.bytes().all(|b| b.is_ascii_digit()) && (*n == "0" || !n.starts_with('0'))
        });
    match (well_formed, numbers.first()) {
        (true, Some(&"1")) => Ok(()),
        (true, _) => bail!("unsupported ociVersion {text:?}: this runtime knows version 1 of the specification"),
        _ => bail!("ociVersion {text:?}: not a version (1.0.2, for instance)"),
    }
}

pub fn process(process: &Process) -> Result<()> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        bail!("args must not be empty");
    }
    let cwd = process.cwd();
    if cwd.as_os_str().is_empty() {
        bail!("Cwd property must not be empty");
    }
    if !cwd.is_absolute() {
        bail!("Cwd must be an absolute path");
    }
    no_nul("Cwd", &cwd.to_string_lossy())?;
    args.iter().try_for_each(|arg| no_nul("args", arg))?;
    for line in process.env().iter().flatten() {
        no_nul("env", line)?;
        if !line.contains('=') || line.starts_with('=') {
            bail!("invalid environment variable {line:?}: NAME=VALUE is needed");
        }
    }
    if let Some(adj) = process.oom_score_adj().filter(|adj| !(-1000..=1000).contains(adj)) {
        bail!("oomScoreAdj {adj}: -1000 to 1000 are possible");
    }
    if let Some(umask) = process.user().umask().filter(|umask| *umask > 0o777) {
        bail!("umask {umask:#o}: 0 to 0777 are possible");
    }
    rlimits(process.rlimits().as_deref().unwrap_or_default())
}

fn rlimits(limits: &[PosixRlimit]) -> Result<()> {
    for (i, limit) in limits.iter().enumerate() {
        if limits.iter().take(i).any(|other| other.typ() == limit.typ()) {
            bail!("rlimits: {} is there twice", limit.typ());
        }
        if limit.soft() > limit.hard() {
            bail!("rlimits: {}: the soft limit {} is above the hard one {}", limit.typ(), limit.soft(), limit.hard());
        }
    }
    Ok(())
}

fn host_name(field: &str, name: &str) -> Result<()> {
    no_nul(field, name)?;
    if name.len() > MAX_HOSTNAME {
        bail!("{field} {name:?} is longer than {MAX_HOSTNAME} bytes");
    }
    Ok(())
}

fn hooks_of(hooks: &Hooks) -> Result<()> {
    #[allow(deprecated)]
    let lists = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, list) in lists {
        for (i, hook) in list.iter().flatten().enumerate() {
            self::hook(hook).with_context(|| format!("{kind} hook #{i}"))?;
        }
    }
    Ok(())
}

fn hook(hook: &Hook) -> Result<()> {
    if !hook.path().is_absolute() {
        bail!("path {:?} must be absolute", hook.path());
    }
    no_nul("path", &hook.path().to_string_lossy())?;
    let (args, env) = (hook.args().iter().flatten(), hook.env().iter().flatten());
    args.chain(env).try_for_each(|text| no_nul("args and env", text))?;
    match hook.timeout() {
        Some(seconds) if seconds <= 0 => bail!("timeout must be greater than zero"),
        _ => Ok(()),
    }
}

fn linux_of(spec: &Spec, linux: &Linux) -> Result<()> {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    for (i, namespace) in namespaces.iter().enumerate() {
        if namespaces.iter().take(i).any(|other| other.typ() == namespace.typ()) {
            bail!("malformed spec file: duplicated ns {}", word(namespace.typ()));
        }
    }
    let has = |kind| namespaces.iter().any(|n| n.typ() == kind);
    if !has(Kind::Uts) {
        if spec.hostname().as_ref().is_some_and(|name| !name.is_empty()) {
            bail!("unable to set hostname without a private UTS namespace");
        }
        if spec.domainname().as_ref().is_some_and(|name| !name.is_empty()) {
            bail!("unable to set domainname without a private UTS namespace");
        }
    }
    let lists = [linux.masked_paths(), linux.readonly_paths()];
    if !has(Kind::Mount) && lists.iter().any(|list| list.as_ref().is_some_and(|paths| !paths.is_empty())) {
        bail!("unable to restrict sys entries without a private MNT namespace");
    }
    for path in lists.into_iter().flatten().flatten() {
        no_nul("maskedPaths and readonlyPaths", path)?;
        if !Path::new(path).is_absolute() {
            bail!("maskedPaths and readonlyPaths: {path:?} must be absolute");
        }
    }
    Ok(())
}

/// The name of a kind of namespace in a configuration.
fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Mount => "mount",
        Kind::Cgroup => "cgroup",
        Kind::Uts => "uts",
        Kind::Ipc => "ipc",
        Kind::User => "user",
        Kind::Pid => "pid",
        Kind::Network => "network",
        Kind::Time => "time",
    }
}

/// JSON can say what no string of the kernel's can.
fn no_nul(field: &str, text: &str) -> Result<()> {
    if text.contains('\0') {
        bail!("{field}: {text:?} has a NUL byte");
    }
    Ok(())
}
