//! `features`: what of the runtime-spec there is.

use super::bundle::HookKind;
use super::ordered::Json;
use super::plan;

/// Range of the runtime-spec's versions that bundles may have.
pub const VERSION_MIN: &str = "1.0.0";
pub const VERSION_MAX: &str = "1.2.0";

/// The text that `features` prints (features.md of the runtime-spec).
pub fn json() -> String {
    let options = plan::mount_options();
    let version = env!("CARGO_PKG_VERSION");
    let features = Json::object([
        ("ociVersionMin", VERSION_MIN.into()),
        ("ociVersionMax", VERSION_MAX.into()),
        ("hooks", Json::texts(HookKind::ALL.map(HookKind::name))),
        ("mountOptions", Json::texts(options.iter().map(String::as_str))),
        ("linux", linux()),
        (
            "annotations",
            Json::object([
                ("io.github.runsc-rs.checkpoint.enabled", "false".into()),
                ("io.github.runsc-rs.version", version.into()),
            ]),
        ),
    ]);
    serde_json::to_string_pretty(&features).unwrap_or_default()
}

fn linux() -> Json {
    let enabled = |yes: bool| Json::object([("enabled", yes.into())]);
    let capabilities: Vec<String> = plan::CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect();
    // The sandbox's own: each is a namespace of the guest kernel's.
    let namespaces = ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"];
    let cgroup = Json::object([
        ("v1", true.into()),
        ("v2", true.into()),
        ("systemd", true.into()),
        ("systemdUser", true.into()),
        ("rdma", false.into()),
    ]);
    let names = |prefix: &str, names: &[&str]| {
        let full: Vec<String> = names.iter().map(|name| format!("{prefix}{name}")).collect();
        Json::texts(full.iter().map(String::as_str))
    };
    let actions = ["ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "NOTIFY", "TRACE", "TRAP"];
    let flags = ["LOG", "SPEC_ALLOW", "TSYNC", "WAIT_KILLABLE_RECV"];
    let seccomp = Json::object([
        ("enabled", true.into()),
        ("actions", names("SCMP_ACT_", &actions)),
        ("operators", names("SCMP_CMP_", &["EQ", "GE", "GT", "LE", "LT", "MASKED_EQ", "NE"])),
        ("archs", names("SCMP_ARCH_", &["X86_64"])),
        ("knownFlags", names("SECCOMP_FILTER_FLAG_", &flags)),
        ("supportedFlags", names("SECCOMP_FILTER_FLAG_", &flags)),
    ]);
    let idmap = Json::object([("idmap", enabled(false))]);
    Json::object([
        ("namespaces", Json::texts(namespaces)),
        ("capabilities", Json::texts(capabilities.iter().map(String::as_str))),
        ("cgroup", cgroup),
        ("seccomp", seccomp),
        ("apparmor", enabled(false)),
        ("selinux", enabled(false)),
        ("intelRdt", enabled(false)),
        ("mountExtensions", idmap),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_in_the_specs_form() {
        let features: oci_spec::runtime::Features = serde_json::from_str(&json()).unwrap();
        assert_eq!(features.oci_version_min(), VERSION_MIN);
        let hooks = features.hooks().clone().unwrap();
        assert_eq!((hooks.len(), hooks[0].as_str()), (6, "prestart"));
        let linux = features.linux().as_ref().unwrap();
        assert_eq!(linux.capabilities().as_ref().map(Vec::len), Some(41));
        assert_eq!(linux.apparmor().as_ref().and_then(|a| *a.enabled()), Some(false));
    }
}
