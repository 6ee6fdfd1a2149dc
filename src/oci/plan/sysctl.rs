//! Kernel parameters: those that belong to a namespace of the container.

use anyhow::{bail, Result};
use oci_spec::runtime::{Linux, LinuxNamespaceType as Kind};

/// Parameters of the IPC namespace, beside `fs.mqueue.*`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// The parameters with their values, by name. Those of no namespace are the whole sandbox's, and refused as runc
/// refuses those of the host.
pub fn plan(linux: &Linux) -> Result<Vec<(String, String)>> {
    let has = |kind| linux.namespaces().iter().flatten().any(|n| n.typ() == kind);
    let mut all = Vec::new();
    for (given, value) in linux.sysctl().iter().flatten() {
        let name = dotted(given);
        if name.split('.').any(str::is_empty) || name.contains(['/', '\0']) || value.contains('\0') {
            bail!("sysctl {given:?} = {value:?}: not a parameter");
        }
        let needed = match name.as_str() {
            "kernel.domainname" => Kind::Uts,
            "kernel.hostname" => {
                bail!("sysctl {given:?} is not allowed as it conflicts with the OCI {:?} field", "hostname")
            }
            name if IPC.contains(&name) || name.starts_with("fs.mqueue.") => Kind::Ipc,
            name if name.starts_with("net.") => Kind::Network,
            _ => bail!("sysctl {given:?} is not in a separate kernel namespace"),
        };
        if !has(needed) {
            match needed {
                Kind::Network => bail!("sysctl {given:?} not allowed in host network namespace"),
                _ => bail!("sysctl {given:?} is not allowed in the hosts ipc or uts namespace"),
            }
        }
        all.push((name, value.clone()));
    }
    all.sort();
    Ok(all)
}

/// With slashes a name may have dots in its parts, as names of interfaces do; these stay, as slashes between dots
/// (sysctl(8)).
fn dotted(name: &str) -> String {
    match name.find(['.', '/']).and_then(|at| name.get(at..at + 1)) {
        Some("/") => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(name: &str, namespaces: &[&str]) -> Result<Vec<(String, String)>> {
        let namespaces: Vec<_> = namespaces.iter().map(|n| json!({ "type": n })).collect();
        plan(&serde_json::from_value(json!({ "sysctl": { name: "1" }, "namespaces": namespaces })).unwrap())
    }

    #[test]
    fn only_those_of_namespaces() {
        let all = ["ipc", "network", "uts"];
        for good in
            ["net.ipv4.ip_forward", "net/ipv4/ip_forward", "kernel.sem", "fs.mqueue.msg_max", "kernel.domainname"]
        {
            assert_eq!(of(good, &all).unwrap(), vec![(good.replace('/', "."), "1".to_string())]);
            assert!(of(good, &[]).is_err(), "{good}");
        }
        for bad in [
            "kernel.hostname",
            "vm.swappiness",
            "kernel.pid_max",
            "fs.file-max",
            "",
            "net..x",
            "net",
            "net.a/b",
            "net./../x",
        ] {
            assert!(of(bad, &all).is_err(), "{bad}");
        }
    }
}
