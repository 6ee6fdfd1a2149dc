//! A container that joins a running sandbox instead of having one of its own, as the containers of a pod do.
//!
//! Its bundle's annotations name the sandbox, a container of the same `--root`. It has a Gofer, whose connection its
//! monitor gives to the sandbox's Sentry with the container's configuration. The connection over which it does so
//! stands for the container there: if it ends, so does the container, and it ends with the sandbox. The control socket
//! of the container is that of the sandbox, by a link.

use super::bundle::Bundle;
use super::client::{Client, Refused, SOCKET};
use super::exec;
use super::state::{Container, Root, Status};
use crate::config::ContainerConfig;
use crate::control::protocol::{Reply, Request};
use crate::launch::supervise::{End, Signals};
use anyhow::{anyhow, bail, Context, Result};
use oci_spec::runtime::LinuxResources;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

/// The annotation of our own.
const OWN: &str = "dev.runsc-rs.sandbox";
/// Annotations that name the sandbox of a container, or of the sandbox's own: of containerd, of CRI-O, and ours.
pub const SANDBOX_IDS: [&str; 3] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID", OWN];
/// Those that tell the two apart: `sandbox` or `container`.
const KINDS: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];

/// How long the Sentry may still know a former container by the same name.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// The sandbox that a bundle's container joins.
pub fn sandbox_of(bundle: &Bundle, root: &Root, id: &str) -> Result<Option<Container>> {
    let none = HashMap::new();
    let Some(name) = sandbox_name(bundle.spec.annotations().as_ref().unwrap_or(&none), id) else { return Ok(None) };
    let open = |name: &str| {
        let sandbox = root.open(name).with_context(|| format!("sandbox {name:?}"))?;
        let state = sandbox.load().with_context(|| format!("sandbox {name:?}"))?;
        Ok::<_, anyhow::Error>((sandbox, state))
    };
    let (mut sandbox, mut state) = open(name)?;
    if let Some(of) = &state.member_of {
        (sandbox, state) = open(&of.clone())?;
    }
    match sandbox.status(&state) {
        Status::Created | Status::Running | Status::Paused => Ok(Some(sandbox)),
        Status::Creating => bail!("sandbox {name:?} is being created"),
        Status::Stopped => bail!("sandbox {name:?} is not running"),
    }
}

fn sandbox_name<'a>(annotations: &'a HashMap<String, String>, id: &str) -> Option<&'a str> {
    let text = |name: &&str| annotations.get(*name).map(String::as_str).filter(|t| !t.is_empty());
    let member = KINDS.iter().find_map(text) == Some("container");
    let name = match text(&OWN) {
        Some(name) => Some(name),
        None if member => SANDBOX_IDS.iter().find_map(text),
        None => None,
    };
    name.filter(|name| *name != id)
}

/// The limits of the cgroup of a bundle's container. That of a pod's sandbox has the processes of all containers of the
/// pod in it, so the smallest share of processor time, which Kubernetes has for the sandbox's own process, is not meant
/// for it.
pub fn cgroup_resources(bundle: &Bundle) -> Option<LinuxResources> {
    let mut resources = bundle.spec.linux().as_ref()?.resources().clone()?;
    let annotations = bundle.spec.annotations().as_ref();
    let kind = annotations.and_then(|a| KINDS.iter().find_map(|k| a.get(*k)));
    if kind.is_some_and(|k| k == "sandbox") {
        let mut cpu = resources.cpu().clone();
        if let Some(cpu) = &mut cpu {
            cpu.set_shares(None);
        }
        resources.set_cpu(cpu);
    }
    Some(resources)
}

/// Makes the control socket of a member.
pub fn link_socket(container: &Container, sandbox: &Container) -> Result<()> {
    let target = Path::new("..").join(&sandbox.id).join(SOCKET);
    symlink(target, container.path.join(SOCKET)).context("making the link to the sandbox's control socket")
}

/// Has the Sentry of the sandbox make the container. `gofer`: the connection to its Gofer.
pub fn join(
    container: &Container,
    config: ContainerConfig,
    gofer: &OwnedFd,
    files: &[OwnedFd],
) -> Result<Result<Client, End>> {
    let mut client = Client::connect(container, None)?;
    let request = Request::Create { container: Box::new(config) };
    let mut descriptors = vec![gofer.as_fd()];
    descriptors.extend(files.iter().map(|f| f.as_fd()));
    let until = Instant::now() + PATIENCE;
    loop {
        match client.call(&request, &descriptors) {
            Ok(Reply::Done) => return Ok(Ok(client)),
            Ok(other) => bail!("the Sentry answers {other:?} to a new container"),
            Err(e) => match e.downcast_ref::<Refused>() {
                // A container of this name was deleted just now, and the Sentry is about to hear of it.
                Some(r) if r.errno == libc::EEXIST && Instant::now() < until => std::thread::sleep(PAUSE),
                Some(Refused { exit: Some(status), text, .. }) => {
                    return Ok(Err(End::Failed { status: *status, text: text.clone() }))
                }
                Some(_) => return Err(anyhow!("the sandbox does not take the container: {e:#}")),
                None => return Err(e),
            },
        }
    }
}

/// Passes signals on until the container's first process has ended.
pub fn wait(mut client: Client, container: &Container, signals: &Signals) -> End {
    End::Exited(exec::serve(&mut client, container, signals))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_name_the_sandbox() {
        let name = |list: &[(&str, &str)]| {
            let map = list.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            sandbox_name(&map, "me").map(str::to_owned)
        };
        let (kind, id) = (("io.kubernetes.cri.container-type", "container"), ("io.kubernetes.cri.sandbox-id", "pod"));
        assert_eq!(name(&[kind, id]).as_deref(), Some("pod"));
        assert_eq!(name(&[("io.kubernetes.cri.container-type", "sandbox"), id]), None);
        assert_eq!(name(&[id]), None);
        assert_eq!(name(&[kind, ("io.kubernetes.cri.sandbox-id", "me")]), None);
        assert_eq!(name(&[(OWN, "pod")]).as_deref(), Some("pod"));
        assert_eq!(name(&[(OWN, "")]), None);
        let of_crio = [("io.kubernetes.cri-o.ContainerType", "container"), ("io.kubernetes.cri-o.SandboxID", "pod")];
        assert_eq!(name(&of_crio).as_deref(), Some("pod"));
    }
}
