//! How to run a command in each sandbox: with the host's root visible, no network, the scratch directory readable.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

/// A way to run a command.
pub struct Sandbox {
    pub name: String,
    /// Words in front of the command.
    prefix: Vec<OsString>,
    /// For an OCI runtime: the bundle to run instead.
    bundle: Option<PathBuf>,
    /// A directory inside the sandbox with files in memory: a tmpfs, or the sandbox's overlay.
    pub scratch: &'static str,
    /// Its version, as it reports itself.
    pub version: String,
}

/// For sandboxes without an overlay.
const TMPFS: &str = "/dev/shm";
/// Time limit of the check that a sandbox works.
const TRIAL: Duration = Duration::from_secs(20);

/// The PATH of workloads: system directories only.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Native first, then all sandboxes that are installed and work here.
pub fn find(runsc_rs: &Path, runsc: Option<&Path>, dir: &Path) -> Vec<Sandbox> {
    let sandbox = |name: &str, program: &OsStr, flags: &str, scratch| {
        let mut prefix: Vec<OsString> = flags.split_whitespace().map(OsString::from).collect();
        if !program.is_empty() {
            prefix.insert(0, program.into());
        }
        Sandbox { name: name.into(), prefix, bundle: None, scratch, version: version(program) }
    };
    let mut all = vec![
        Sandbox { version: kernel(), ..sandbox("native", "".as_ref(), "", TMPFS) },
        sandbox("runsc-rs", runsc_rs.as_os_str(), "run --cwd / --", "/tmp"),
    ];
    let (runsc, platform) = match runsc {
        Some(path) => (path.as_os_str(), "systrap"),
        None => ("runsc".as_ref(), "ptrace"),
    };
    // `do` is gVisor's own way to run one command, without systemd's cgroups.
    let flags = format!("--platform={platform} --network=none --ignore-cgroups do");
    let older = format!("--platform={platform} --network=none do");
    for flags in [flags, older] {
        let candidate = sandbox("runsc", runsc, &flags, "/tmp");
        if candidate.works() {
            all.push(candidate);
            break;
        }
    }
    let bwrap = "--bind / / --dev /dev --proc /proc --unshare-all --chdir / --";
    let bwrap = sandbox("bwrap", "bwrap".as_ref(), bwrap, TMPFS);
    let crun = Sandbox {
        prefix: vec![],
        bundle: Some(dir.with_extension("bundle")),
        ..sandbox("crun", "crun".as_ref(), "", TMPFS)
    };
    all.extend([bwrap, crun].into_iter().filter(Sandbox::works));
    all
}

/// The first line that `--version` prints.
fn version(program: &OsStr) -> String {
    if program.is_empty() {
        return String::new();
    }
    let out = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let text = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("").into()
}

fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux {}", release.trim())
}

impl Sandbox {
    /// Checks it by running `/bin/true`.
    fn works(&self) -> bool {
        crate::measure::run(self.command(&["/bin/true".into()]), TRIAL).is_ok()
    }

    /// The command line that runs `argv`.
    pub fn command(&self, argv: &[OsString]) -> Command {
        let mut command = match &self.bundle {
            Some(bundle) => {
                // A failure shows when the command runs.
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
