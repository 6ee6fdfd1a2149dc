//! Whole bundles, from the file to the plan.

use super::*;
use crate::config::{IdRange, MountKind};
use crate::oci::{bundle, spec};
use proptest::prelude::*;
use serde_json::{json, Value};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// A bundle in a directory that goes away with it.
struct Dir(PathBuf);

impl Dir {
    fn new(config: &str) -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("runsc-rs-bundle-{}-{number}", std::process::id()));
        std::fs::create_dir_all(dir.join("rootfs")).unwrap();
        std::fs::write(dir.join(bundle::CONFIG), config).unwrap();
        Dir(dir)
    }

    fn plan(&self) -> Result<Plan> {
        container(&Bundle::load(&self.0)?, &Options { id: "c".into(), ..Options::default() })
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn default() -> Value {
    serde_json::from_str(&spec::default(None)).unwrap()
}

/// The plan of the default bundle with one field changed.
fn with(pointer: &str, value: Value) -> Result<Plan> {
    let mut config = default();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    config.pointer_mut(parent).unwrap()[field] = value;
    Dir::new(&config.to_string()).plan()
}

fn error(pointer: &str, value: Value) -> String {
    format!("{:#}", with(pointer, value).map(|_| ()).unwrap_err())
}

#[test]
fn the_default_bundle() {
    let dir = Dir::new(&spec::default(None));
    let plan = dir.plan().unwrap();
    let c = plan.container;
    assert_eq!((c.id.as_str(), c.hostname.as_str(), c.domainname.as_str()), ("c", "runsc-rs", "(none)"));
    assert!(c.init && c.wait_for_start && c.root_read_only && c.process.terminal && c.process.no_new_privs);
    assert_eq!((c.process.argv, c.process.limits[7]), (vec![b"sh".to_vec()], (1024, 1024)));
    let kinds: Vec<_> = c.mounts.iter().map(|m| (String::from_utf8_lossy(&m.target).into_owned(), &m.kind)).collect();
    let want = [
        ("/proc", MountKind::Proc),
        ("/dev", MountKind::Dev),
        ("/dev/pts", MountKind::Devpts),
        ("/dev/shm", MountKind::Tmpfs),
        ("/dev/mqueue", MountKind::Mqueue),
        ("/sys", MountKind::Sysfs),
        ("/sys/fs/cgroup", MountKind::Cgroup),
    ];
    assert_eq!(kinds, want.iter().map(|(t, k)| ((*t).to_string(), k)).collect::<Vec<_>>());
    assert_eq!((c.masked_paths.len(), c.read_only_paths.len(), plan.trees.len()), (10, 5, 1));
    let source = Path::new(std::ffi::OsStr::from_bytes(&plan.trees[0].source)).to_path_buf();
    assert_eq!(source, dir.0.canonicalize().unwrap().join("rootfs"));
}

#[test]
fn rootless_default() {
    let plan = Dir::new(&spec::default(Some((1000, 1000)))).plan().unwrap();
    assert!(plan.container.mounts.iter().any(|m| m.target == b"/sys" && m.kind == MountKind::Sysfs));
    let one = IdRange { inside: 0, outside: 1000, count: 1 };
    assert_eq!(plan.ids, IdMaps { uids: vec![one], gids: vec![one] });
    // Without a user namespace they have no meaning.
    let mapping = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
    assert_eq!(with("/linux/uidMappings", mapping).unwrap().ids, IdMaps::default());
}

#[test]
fn mistakes_have_their_own_words() {
    let words = |pointer, value, words: &str| {
        let text = error(pointer, value);
        assert!(text.contains(words), "{text}");
    };
    words("/process/args", json!([]), "args must not be empty");
    words("/process", json!(null), "process property must not be empty");
    words("/process/cwd", json!("x"), "Cwd must be an absolute path");
    words("/process/cwd", json!(""), "Cwd property must not be empty");
    words("/process/env", json!(["X"]), "invalid environment variable");
    words("/process/args", json!(["a\0b"]), "NUL");
    words("/process/oomScoreAdj", json!(2000), "oomScoreAdj");
    let twice = json!([{ "type": "RLIMIT_CPU", "soft": 1, "hard": 1 }, { "type": "RLIMIT_CPU", "soft": 1, "hard": 1 }]);
    words("/process/rlimits", twice, "RLIMIT_CPU is there twice");
    words("/process/rlimits", json!([{ "type": "RLIMIT_CPU", "soft": 2, "hard": 1 }]), "above the hard");
    words("/process/rlimits", json!([{ "type": "RLIMIT_X", "soft": 2, "hard": 1 }]), "RLIMIT_X");
    words("/ociVersion", json!("2.0.0"), "unsupported ociVersion");
    words("/ociVersion", json!("1.0"), "not a version");
    words("/root", json!(null), "root must be specified");
    words("/root/path", json!("nowhere"), "invalid rootfs: ");
    words("/root/path", json!("config.json"), "is not a directory");
    words("/root/path", json!("/proc"), "rootfs");
    words("/hostname", json!("h".repeat(65)), "longer than 64");
    words("/hooks", json!({ "prestart": [{ "path": "x" }] }), "prestart hook #0: path \"x\" must be absolute");
    words("/hooks", json!({ "poststop": [{ "path": "/x", "timeout": 0 }] }), "greater than zero");
    words("/mounts", json!([{ "destination": "" }]), "destination must not be empty");
    words("/linux/namespaces", json!([{ "type": "pid" }, { "type": "pid" }]), "duplicated ns pid");
    words("/linux/namespaces", json!([{ "type": "mount" }]), "hostname without a private UTS");
    words("/linux/namespaces", json!([{ "type": "uts" }]), "without a private MNT");
    words("/linux/maskedPaths", json!(["x"]), "must be absolute");
    words("/linux/rootfsPropagation", json!("odd"), "rootfsPropagation=odd is not supported");
    words("/linux/sysctl", json!({ "vm.swappiness": "1" }), "not in a separate kernel namespace");
    words("/linux/intelRdt", json!({ "closID": "x" }), "Intel RDT");
    words("/linux/personality", json!({ "domain": "LINUX32" }), "LINUX32");
}

#[test]
fn fields_that_have_an_effect() {
    let c = |pointer, value| with(pointer, value).unwrap().container;
    assert_eq!(c("/linux/rootfsPropagation", json!("rslave")).root_propagation, libc::MS_SLAVE | libc::MS_REC);
    assert_eq!(c("/linux/resources", json!({ "pids": { "limit": 7 } })).limits.pids, Some(7));
    let sysctl = c("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1", "kernel.sem": "1 2 3 4" })).sysctls;
    assert_eq!(sysctl.len(), 2);
    let filter =
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["chmod"], "action": "SCMP_ACT_ERRNO" }] });
    assert_eq!(c("/linux/seccomp", filter).process.seccomp.len(), 1);
    assert_eq!(c("/domainname", json!("example.org")).domainname, "example.org");
    let notify = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/l",
        "syscalls": [{ "names": ["chmod"], "action": "SCMP_ACT_NOTIFY" }] });
    assert!(error("/linux/seccomp", notify).contains("listener on the host"));
    let unknown = json!({ "bounding": ["CAP_CHOWN", "CAP_WHATEVER"], "ambient": null });
    assert_eq!(c("/process/capabilities", unknown).process.capabilities.unwrap().bounding, 1);
}

#[test]
fn descriptors() {
    let bundle = Bundle::load(&Dir::new(&spec::default(None)).0).map(|_| ());
    assert!(bundle.is_ok());
    let dir = Dir::new(&spec::default(None));
    let with =
        |preserve_fds| container(&Bundle::load(&dir.0).unwrap(), &Options { preserve_fds, ..Options::default() });
    assert_eq!(with(2).unwrap().container.process.files.len(), 5);
    assert!(with(30).is_err());
    assert!(with(255).is_err());
}

#[test]
fn hostile_files() {
    let text = |config: &str| format!("{:#}", Dir::new(config).plan().map(|_| ()).unwrap_err());
    assert!(!text(&"[".repeat(100_000)).is_empty());
    assert!(text(&"{\"linux\":".repeat(100_000)).contains("config.json"));
    assert!(!text(&format!("{{\"a\":{}1{}}}", "[".repeat(5000), "]".repeat(5000))).is_empty());
    assert!(text(&" ".repeat((16 << 20) + 1)).contains("more than 16 MiB"));
    assert!(text("").contains("EOF"));
    let missing = Dir::new("{}");
    std::fs::remove_file(missing.0.join(bundle::CONFIG)).unwrap();
    assert!(format!("{:#}", missing.plan().unwrap_err()).contains("config.json not found"));
    nix::unistd::mkfifo(&missing.0.join(bundle::CONFIG), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(missing.plan().is_err());
    std::fs::remove_file(missing.0.join(bundle::CONFIG)).unwrap();
    std::os::unix::fs::symlink("/dev/zero", missing.0.join(bundle::CONFIG)).unwrap();
    assert!(format!("{:#}", missing.plan().unwrap_err()).contains("more than 16 MiB"));
    // A root that leads out is the bundle's to name, and resolved once.
    let outside = Dir::new(&spec::default(None));
    std::fs::remove_dir(outside.0.join("rootfs")).unwrap();
    std::os::unix::fs::symlink("/usr", outside.0.join("rootfs")).unwrap();
    assert_eq!(outside.plan().unwrap().trees[0].source, b"/usr");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~\\x00]{0,12}".prop_map(Value::from),
        prop::sample::select(vec!["/", "..", "bind", "rbind", "ro", "tmpfs", "/usr", "1.0.2", "pid", "CAP_KILL", "c"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z]{1,12}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

/// All places in a value, as pointers.
fn places(value: &Value, at: String, all: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, v)| places(v, format!("{at}/{key}"), all)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| places(v, format!("{at}/{i}"), all)),
        _ => {}
    }
    all.push(at);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bundle_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4)) {
        let mut config = default();
        for (place, value) in changes {
            let mut all = Vec::new();
            places(&config, String::new(), &mut all);
            let pointer = place.get(&all).clone();
            *config.pointer_mut(&pointer).unwrap() = value;
        }
        let _ = Dir::new(&config.to_string()).plan();
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = Dir::new(&text).plan();
    }
}
