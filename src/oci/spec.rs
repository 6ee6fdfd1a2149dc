//! `spec`: a bundle's configuration to start from. It has runc's form and values, so that what is known about runc's
//! goes for it.

use super::ordered::Json;
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

/// The text of the `config.json` that `spec` writes. `rootless`: the caller's user and group, for a container of an
/// ordinary user.
pub fn default(rootless: Option<(u32, u32)>) -> String {
    let version = Json::from(super::features::VERSION_MAX);
    let root = Json::object([("path", "rootfs".into()), ("readonly", true.into())]);
    let spec = Json::object([
        ("ociVersion", version),
        ("process", process()),
        ("root", root),
        ("hostname", "runsc-rs".into()),
        ("mounts", mounts(rootless.is_some())),
        ("linux", linux(rootless)),
    ]);
    pretty(&spec)
}

/// JSON with tabs, as runc writes configurations.
pub fn pretty(value: &Json) -> String {
    let mut text = Vec::new();
    let mut to = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"\t"));
    // Neither the values nor the memory that they are written to can fail.
    let _ = value.serialize(&mut to);
    String::from_utf8_lossy(&text).into_owned()
}

fn process() -> Json {
    let sets = ["bounding", "effective", "permitted", "ambient"];
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let limit = [("type", "RLIMIT_NOFILE".into()), ("hard", 1024.into()), ("soft", 1024.into())];
    Json::object([
        ("terminal", true.into()),
        ("user", Json::object([("uid", 0.into()), ("gid", 0.into())])),
        ("args", Json::texts(["sh"])),
        ("env", Json::texts(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"])),
        ("cwd", "/".into()),
        ("capabilities", Json::object(sets.map(|set| (set, Json::texts(capabilities))))),
        ("rlimits", Json::Array(vec![Json::object(limit)])),
        ("noNewPrivileges", true.into()),
    ])
}

fn mounts(rootless: bool) -> Json {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        let mut fields = vec![
            ("destination".to_string(), destination.into()),
            ("type".to_string(), kind.into()),
            ("source".to_string(), source.into()),
        ];
        if !options.is_empty() {
            fields.push(("options".to_string(), Json::texts(options.iter().copied())));
        }
        Json::Object(fields)
    };
    // An ordinary user has no group 5 to give terminals, and sysfs is the network namespace owner's to mount.
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    let (sys_kind, sys_source, mut sys) = match rootless {
        true => ("none", "/sys", vec!["rbind"]),
        false => ("sysfs", "sysfs", vec![]),
    };
    if !rootless {
        pts.push("gid=5");
    }
    sys.extend(["nosuid", "noexec", "nodev", "ro"]);
    Json::Array(vec![
        mount("/proc", "proc", "proc", &[]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", sys_kind, sys_source, &sys),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ])
}

fn linux(rootless: Option<(u32, u32)>) -> Json {
    let mut fields: Vec<(&str, Json)> = Vec::new();
    let namespaces: &[&str] = match rootless {
        Some((uid, gid)) => {
            let map = |id: u32| {
                let one = [("containerID", 0.into()), ("hostID", id.into()), ("size", 1.into())];
                Json::Array(vec![Json::object(one)])
            };
            fields.extend([("uidMappings", map(uid)), ("gidMappings", map(gid))]);
            &["pid", "ipc", "uts", "mount", "user"]
        }
        None => {
            let none = Json::object([("allow", false.into()), ("access", "rwm".into())]);
            fields.push(("resources", Json::object([("devices", Json::Array(vec![none]))])));
            &["pid", "network", "ipc", "uts", "mount"]
        }
    };
    let namespaces = namespaces.iter().map(|kind| Json::object([("type", (*kind).into())]));
    fields.push(("namespaces", Json::Array(namespaces.collect())));
    let masked = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/sys/firmware",
        "/proc/scsi",
    ];
    let read_only = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
    fields.extend([("maskedPaths", Json::texts(masked)), ("readonlyPaths", Json::texts(read_only))]);
    Json::Object(fields.into_iter().map(|(k, v)| (k.to_string(), v)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Spec;
    use serde_json::Value;

    #[test]
    fn it_is_a_bundle() {
        for rootless in [None, Some((1000, 1001))] {
            let text = default(rootless);
            let spec: Spec = serde_json::from_str(&text).unwrap();
            super::super::bundle::check_spec(&spec).unwrap();
            let linux = spec.linux().as_ref().unwrap();
            assert_eq!(linux.uid_mappings().as_ref().map(|m| m[0].host_id()), rootless.map(|r| r.0));
            assert_eq!(linux.gid_mappings().as_ref().map(|m| m[0].host_id()), rootless.map(|r| r.1));
        }
    }

    /// The real thing, where there is one: the same but for the host's name and the version.
    #[test]
    fn it_is_runcs() {
        let dir = std::env::temp_dir().join(format!("runsc-rs-spec-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for rootless in [None, Some((0, 0))] {
            let mut runc = std::process::Command::new("runc");
            runc.arg("spec").args(rootless.map(|_| "--rootless")).current_dir(&dir);
            match runc.output() {
                Ok(output) if output.status.success() => {}
                _ => break,
            }
            let read = std::fs::read_to_string(dir.join("config.json")).unwrap();
            std::fs::remove_file(dir.join("config.json")).unwrap();
            let mut theirs: Value = serde_json::from_str(&read).unwrap();
            let ours = default(rootless);
            theirs["hostname"] = "runsc-rs".into();
            let ids = nix::unistd::geteuid().as_raw();
            if theirs["process"]["capabilities"]["inheritable"].is_array() || ids != 0 {
                // Another version of runc, or another user: its values differ.
                continue;
            }
            let mut value: Value = serde_json::from_str(&ours).unwrap();
            value["ociVersion"] = theirs["ociVersion"].clone();
            assert_eq!(value, theirs);
        }
        let _ = std::fs::remove_dir_all(&dir);
    }
}
