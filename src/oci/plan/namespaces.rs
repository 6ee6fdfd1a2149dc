//! Namespaces. A container has some of each kind, all of the guest kernel's: those of the host have no meaning to it.

use crate::config::{IdMaps, IdRange, Share};
use anyhow::{bail, Result};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType as Kind};

/// An id mapping must leave room for what it maps.
const MAX_MAPPINGS: usize = 340;

/// Refuses what a sandbox cannot honour. A container that joins one may have namespaces by path: those of the sandbox.
pub fn check(linux: &Linux, member: bool) -> Result<()> {
    for namespace in linux.namespaces().iter().flatten() {
        let Some(path) = namespace.path().as_ref().filter(|p| !p.as_os_str().is_empty()) else { continue };
        match namespace.typ() {
            Kind::Network | Kind::Ipc | Kind::Uts | Kind::Pid if member => {}
            // Pods and engines always give one. The container has an interface of its own, `lo`, and no packet goes
            // out.
            Kind::Network => log::warn!(
                "network namespace {} is not used: the container has a loopback interface and no other",
                path.display()
            ),
            kind => {
                bail!("namespace {kind}: cannot join {}: a sandbox has namespaces of its own kernel", path.display())
            }
        }
    }
    for (name, mappings) in [("uidMappings", linux.uid_mappings()), ("gidMappings", linux.gid_mappings())] {
        check_mappings(name, mappings.as_deref().unwrap_or_default())?;
    }
    if linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) {
        bail!("timeOffsets: a container's clocks are the sandbox's");
    }
    Ok(())
}

/// What a container that joins a sandbox shares with it: those that it is given by path, or that would be the host's.
pub fn share(linux: &Linux) -> Share {
    let own = |kind: Kind| {
        let of_kind = linux.namespaces().iter().flatten().find(|n| n.typ() == kind);
        of_kind.is_some_and(|n| n.path().as_ref().is_none_or(|p| p.as_os_str().is_empty()))
    };
    Share { pid: !own(Kind::Pid), ipc: !own(Kind::Ipc), net: !own(Kind::Network), uts: !own(Kind::Uts) }
}

/// The ids of the container's user namespace. Mappings without such a namespace have no meaning, and runc does not look
/// at them.
pub fn ids(linux: &Linux) -> Result<IdMaps> {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    if !namespaces.iter().any(|n| n.typ() == Kind::User) {
        return Ok(IdMaps::default());
    }
    let ranges = |mappings: &Option<Vec<LinuxIdMapping>>| -> Vec<IdRange> {
        let range = |m: &LinuxIdMapping| IdRange { inside: m.container_id(), outside: m.host_id(), count: m.size() };
        mappings.iter().flatten().map(range).collect()
    };
    let ids = IdMaps { uids: ranges(linux.uid_mappings()), gids: ranges(linux.gid_mappings()) };
    if ids.uids.is_empty() != ids.gids.is_empty() {
        bail!("a user namespace needs uidMappings and gidMappings, or neither");
    }
    Ok(ids)
}

/// As the kernel takes them: not empty, within the ids that there are, and without overlap.
fn check_mappings(name: &str, mappings: &[LinuxIdMapping]) -> Result<()> {
    if mappings.len() > MAX_MAPPINGS {
        bail!("{name}: {} mappings: at most {MAX_MAPPINGS} are possible", mappings.len());
    }
    let range = |first: u32, size: u32| (u64::from(first), u64::from(first) + u64::from(size));
    let overlap = |a: (u64, u64), b: (u64, u64)| a.0 < b.1 && b.0 < a.1;
    for (i, map) in mappings.iter().enumerate() {
        let (inside, outside) = (range(map.container_id(), map.size()), range(map.host_id(), map.size()));
        if map.size() == 0 || inside.1.max(outside.1) > u64::from(u32::MAX) {
            bail!("{name}: mapping #{i} has no ids, or ids that there are not");
        }
        for other in mappings.iter().take(i) {
            if overlap(inside, range(other.container_id(), other.size()))
                || overlap(outside, range(other.host_id(), other.size()))
            {
                bail!("{name}: mapping #{i} overlaps another");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(linux: serde_json::Value) -> Result<()> {
        check(&serde_json::from_value(linux).unwrap(), false)
    }

    #[test]
    fn paths() {
        let with = |kind: &str, path: &str| of(json!({ "namespaces": [{ "type": kind, "path": path }] }));
        for kind in ["pid", "ipc", "uts", "mount", "user", "cgroup", "time"] {
            assert!(with(kind, "/proc/1/ns/x").is_err(), "{kind}");
            assert!(with(kind, "").is_ok(), "{kind}");
        }
        assert!(with("network", "/proc/1/ns/net").is_ok());
        assert!(of(json!({ "timeOffsets": { "boottime": { "secs": 1 } } })).is_err());
    }

    #[test]
    fn a_member_shares_what_it_has_by_path() {
        let linux: Linux = serde_json::from_value(json!({ "namespaces": [
            { "type": "pid" }, { "type": "ipc", "path": "/proc/7/ns/ipc" }, { "type": "uts", "path": "/proc/7/ns/uts" },
            { "type": "mount" },
        ]}))
        .unwrap();
        assert!(check(&linux, true).is_ok() && check(&linux, false).is_err());
        assert_eq!(share(&linux), Share { pid: false, ipc: true, net: true, uts: true });
        let mount: Linux =
            serde_json::from_value(json!({ "namespaces": [{ "type": "mount", "path": "/x" }] })).unwrap();
        assert!(check(&mount, true).is_err());
    }

    #[test]
    fn mappings() {
        let map = |maps: &[(u32, u32, u32)]| {
            let maps: Vec<_> = maps.iter().map(|m| json!({ "containerID": m.0, "hostID": m.1, "size": m.2 })).collect();
            of(json!({ "uidMappings": maps }))
        };
        assert!(map(&[(0, 1000, 1), (1, 100_000, 65_536)]).is_ok());
        assert!(map(&[(0, 0, u32::MAX)]).is_ok());
        for wrong in [&[(0, 0, 0)][..], &[(1, 0, u32::MAX)], &[(0, 5, 10), (9, 50, 1)], &[(0, 5, 10), (20, 14, 1)]] {
            assert!(map(wrong).is_err(), "{wrong:?}");
        }
    }
}
