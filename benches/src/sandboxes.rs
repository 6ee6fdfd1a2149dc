//! How to run a command in each sandbox: with the host's root visible, no network, the scratch directory readable.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

/// A way to run a command.
pub struct Sandbox {
    pub name: String,
    /// What stands in front of the command.
    prefix: Vec<OsString>,
    /// An OCI bundle instead, with this runtime in it.
    bundle: Option<std::path::PathBuf>,
}

/// The environment's PATH for workloads: without anybody's shims.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Native first, then what is installed and works here.
pub fn find(runsc_rs: &Path, runsc: Option<&Path>, dir: &Path) -> Vec<Sandbox> {
    let words = |line: &str| line.split_whitespace().map(OsString::from).collect::<Vec<_>>();
    let mut all = vec![
        Sandbox { name: "native".into(), prefix: vec![], bundle: None },
        Sandbox {
            name: "runsc-rs".into(),
            prefix: [vec![runsc_rs.into()], words("run --cwd / --")].concat(),
            bundle: None,
        },
    ];
    let (runsc, platform) = match runsc {
        Some(path) => (path.as_os_str().to_owned(), "systrap"),
        None => ("runsc".into(), "ptrace"),
    };
    // systemd's cgroups and such are not wanted: `do` is gVisor's own way to run one command.
    let flags = words(&format!("--platform={platform} --network=none --ignore-cgroups do"));
    let older = words(&format!("--platform={platform} --network=none do"));
    for flags in [flags, older] {
        let candidate = Sandbox { name: "runsc".into(), prefix: [vec![runsc.clone()], flags].concat(), bundle: None };
        if candidate.works() {
            all.push(candidate);
            break;
        }
    }
    let bwrap = Sandbox {
        name: "bwrap".into(),
        prefix: words("bwrap --bind / / --dev /dev --proc /proc --unshare-all --chdir / --"),
        bundle: None,
    };
    let crun = Sandbox { name: "crun".into(), prefix: vec![], bundle: Some(dir.with_extension("bundle")) };
    all.extend([bwrap, crun].into_iter().filter(Sandbox::works));
    all
}

impl Sandbox {
    /// Runs `/bin/true`, to see.
    fn works(&self) -> bool {
        let mut command = self.command(&["/bin/true".into()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|s| s.success())
    }

    /// The command line that runs `argv`.
    pub fn command(&self, argv: &[OsString]) -> Command {
        let mut command = match &self.bundle {
            Some(bundle) => {
                // A failure shows when it is run.
                let _ = write_bundle(bundle, argv);
                let mut c = Command::new("crun");
                c.args(["--cgroup-manager=disabled", "run", "--bundle"])
                    .arg(bundle)
                    .arg(format!("compare-{}", std::process::id()));
                c
            }
            None => {
                let mut words = self.prefix.iter().chain(argv);
                let mut c = Command::new(words.next().map_or("true".as_ref(), |w| w.as_os_str()));
                c.args(words);
                c
            }
        };
        command.env_clear().env("PATH", PATH).env("HOME", "/root").env("LC_ALL", "C.UTF-8").current_dir("/");
        command
    }
}

/// An OCI bundle that shows the host's top-level directories and runs `argv`.
fn write_bundle(bundle: &Path, argv: &[OsString]) -> std::io::Result<()> {
    let root = bundle.join("root");
    std::fs::create_dir_all(&root)?;
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "mode=1777"]}),
    ];
    for entry in std::fs::read_dir("/")? {
        let entry = entry?;
        let path = entry.path();
        if matches!(path.to_str(), Some("/proc" | "/sys" | "/dev") | None) {
            continue;
        }
        let target = root.join(entry.file_name());
        if entry.file_type()?.is_symlink() {
            let _ = std::os::unix::fs::symlink(std::fs::read_link(&path)?, &target);
        } else if entry.file_type()?.is_dir() {
            mounts.push(json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", "rw"]}));
        }
    }
    let args: Vec<String> = argv.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let caps = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"];
    let namespaces: Vec<_> =
        ["pid", "ipc", "uts", "mount", "network"].iter().map(|kind| json!({ "type": kind })).collect();
    let config = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "root"},
        "process": {
            "terminal": false, "cwd": "/", "args": args, "user": {"uid": 0, "gid": 0},
            "env": [format!("PATH={PATH}"), "HOME=/root", "LC_ALL=C.UTF-8"],
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        },
        "mounts": mounts,
        "linux": {"namespaces": namespaces},
    });
    std::fs::write(bundle.join("config.json"), config.to_string())
}
