//! From the command line to the configurations of the two processes. Every mistake is found here, with a line that says
//! what to do.

use crate::cli::{HandOff, Network, Overlay, PlatformKind, RunArgs, Switch};
use crate::config::{
    ContainerConfig, GoferConfig, GuestMount, HostIds, IdMaps, Identity, MountKind, ProcessConfig, SentryConfig, Share,
    Tree, Verbosity,
};
use crate::control::protocol::Limits;
use anyhow::{anyhow, bail, Context, Result};
use nix::unistd::{getegid, geteuid, getgroups};
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What to start.
pub struct Plan {
    pub sentry: SentryConfig,
    pub gofer: GoferConfig,
    pub log: OwnedFd,
    pub strace: Option<OwnedFd>,
    /// What the first process may have open, in the order that [`ProcessConfig::files`] counts in; `None`: the standard
    /// streams.
    pub files: Option<Vec<OwnedFd>>,
}

/// How a sandbox is run, whatever is in it.
pub struct Manner {
    pub log: OwnedFd,
    pub verbosity: Verbosity,
    pub strace: Option<OwnedFd>,
    pub hand_off: HandOff,
    pub workers: Option<u32>,
    pub patch: bool,
    pub stats: bool,
}

impl Manner {
    /// That of a container whose bundle is all that is said.
    pub fn plain(log: OwnedFd, verbosity: Verbosity) -> Manner {
        Manner { log, verbosity, strace: None, hand_off: HandOff::Adaptive, workers: None, patch: true, stats: false }
    }

    /// The plan of a sandbox with this container, and these trees for its Gofer.
    pub fn plan(
        self,
        container: ContainerConfig,
        trees: Vec<Tree>,
        ids: IdMaps,
        files: Option<Vec<OwnedFd>>,
    ) -> Result<Plan> {
        let max_tasks = max_tasks(&crate::sys::limits());
        crate::confine::raise_limits()?;
        let tell_acls = container.process.user.uid != 0;
        let gofer = GoferConfig { trees, tell_acls, ids, verbosity: self.verbosity };
        let sentry = SentryConfig {
            container,
            max_tasks,
            strace: self.strace.is_some(),
            verbosity: self.verbosity,
            hand_off: self.hand_off,
            workers: self.workers,
            patch: self.patch,
            stats: self.stats,
            become_ids: Standing::now()?.own_ids(platform::host::random_u64()),
        };
        Ok(Plan { sentry, gofer, log: self.log, strace: self.strace, files })
    }
}

/// "nobody" on every Linux.
const NOBODY: HostIds = HostIds { uid: 65534, gid: 65534 };
/// Ids that nothing else uses: above those that systemd gives to containers, below its foreign ones.
const OWN_IDS: std::ops::Range<u32> = 0x7000_0000..0x7ff0_0000;

/// What decides under which ids a process of the caller's can run.
struct Standing {
    /// Effective, in the caller's user namespace.
    capabilities: u64,
    uid_map: String,
    gid_map: String,
    /// The namespace lets groups be given up.
    setgroups: bool,
}

impl Standing {
    fn now() -> Result<Standing> {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
        Ok(Standing {
            capabilities: crate::sys::effective_caps().context("capget")?,
            uid_map: read("uid_map"),
            gid_map: read("gid_map"),
            setgroups: read("setgroups").trim() == "allow",
        })
    }

    /// The ids that the Sentry runs under. What the host counts for each user (descriptors in flight, processes,
    /// queued signals, …) is not to be shared with other sandboxes, so they are `chance` out of [`OWN_IDS`]; two
    /// sandboxes that hit on the same ones share those counts, and nothing else. Where the caller's user namespace
    /// does not have them, "nobody". `None`, the caller's own, if the caller may not give others (being root in a
    /// user namespace does not mean that: it may have one id), or has no others.
    fn own_ids(&self, chance: u64) -> Option<HostIds> {
        // CAP_SETGID and CAP_SETUID.
        let needed = 1 << 6 | 1 << 7;
        let count = OWN_IDS.end - OWN_IDS.start;
        let id = OWN_IDS.start + (chance % u64::from(count)) as u32;
        let able = self.capabilities & needed == needed && self.setgroups;
        let mapped = |ids: &HostIds| is_mapped(&self.uid_map, ids.uid) && is_mapped(&self.gid_map, ids.gid);
        [HostIds { uid: id, gid: id }, NOBODY].into_iter().find(|ids| able && mapped(ids))
    }
}

/// Whether a user namespace with this `uid_map` or `gid_map` has the id.
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let words: Vec<u64> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        matches!(words[..], [first, _, count] if (first..first.saturating_add(count)).contains(&u64::from(id)))
    })
}

pub fn plan(args: RunArgs) -> Result<Plan> {
    match args.network {
        Network::None => {}
        Network::Sandbox => bail!("--network sandbox is not there yet; use --network none"),
        Network::Host => bail!("--network host is not there yet; use --network none"),
    }
    match args.platform {
        PlatformKind::Systrap => {}
        PlatformKind::Ptrace => bail!("--platform ptrace is not there yet; use --platform systrap"),
    }
    let manner = manner(&args)?;
    let (trees, binds) = trees(&args)?;
    let cwd = match &args.cwd {
        Some(dir) if dir.is_absolute() => dir.clone(),
        Some(dir) => bail!("--cwd {}: give an absolute path inside the sandbox", dir.display()),
        None if args.rootfs.is_some() => PathBuf::from("/"),
        None => std::env::current_dir().context("the current directory is gone; use --cwd")?,
    };
    let hostname = match args.hostname {
        Some(name) if name.is_empty() || name.len() > 64 => bail!("--hostname: 1 to 64 bytes are allowed"),
        Some(name) => name,
        None => nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_else(|| "sandbox".into()),
    };
    let limits = crate::sys::limits();
    let process = ProcessConfig {
        argv: args.command.into_iter().map(OsString::into_vec).collect(),
        env: environment(&args.env, args.clear_env)?,
        cwd: cwd.into_os_string().into_vec(),
        user: identity(args.user.as_deref())?,
        umask: umask(),
        nice: crate::sys::nice(),
        limits,
        capabilities: None,
        no_new_privs: false,
        seccomp: Vec::new(),
        oom_score_adj: 0,
        files: (0..3u8).map(|i| crate::sys::was_open(usize::from(i)).then_some(i)).collect(),
        terminal: false,
    };
    let overlay = args.overlay == Overlay::Memory;
    let container = ContainerConfig {
        id: String::new(),
        process,
        hostname,
        domainname: "(none)".into(),
        root: ROOT.into(),
        root_read_only: false,
        root_propagation: 0,
        overlay,
        exclusive: overlay,
        mounts: standard_mounts().into_iter().chain(binds).collect(),
        devices: Vec::new(),
        masked_paths: Vec::new(),
        read_only_paths: Vec::new(),
        sysctls: Vec::new(),
        init: args.init,
        wait_for_start: false,
        limits: Limits::default(),
        share: Share::default(),
    };
    manner.plan(container, trees, IdMaps::default(), None)
}

/// What the options of `run` say about the sandbox.
pub fn manner(args: &RunArgs) -> Result<Manner> {
    let log = match &args.log {
        Some(path) => open_to_write(path, true).context("--log")?,
        None => std::io::stderr().as_fd().try_clone_to_owned()?,
    };
    let strace = match &args.strace {
        Some(Some(path)) => Some(open_to_write(path, false).context("--strace")?),
        Some(None) => Some(std::io::stderr().as_fd().try_clone_to_owned()?),
        None => None,
    };
    let verbosity = match (&args.log, args.debug) {
        (_, true) => Verbosity::Everything,
        (Some(_), false) => Verbosity::News,
        (None, false) => Verbosity::Warnings,
    };
    let patch = args.patch == Switch::On;
    Ok(Manner { log, verbosity, strace, hand_off: args.hand_off, workers: args.workers, patch, stats: args.stats })
}

/// Most processes and threads of a guest's: each is one of the host's, of which others need some as well. Half of what
/// the user may have, a quarter of what there are.
fn max_tasks(limits: &[(u64, u64)]) -> usize {
    let setting = |file: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{file}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let nproc = limits.get(libc::RLIMIT_NPROC as usize).map_or(u64::MAX, |l| l.1);
    let whole = [setting("pid_max"), setting("threads-max")].into_iter().flatten().min().unwrap_or(u64::MAX);
    let most = (nproc / 2).min(whole / 4).max(16);
    usize::try_from(most).unwrap_or(usize::MAX).min(sentry::kernel::fork::MAX_TASKS)
}

/// The caller's umask, which can only be learnt by setting another.
fn umask() -> u32 {
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    nix::sys::stat::umask(mask);
    mask.bits()
}

fn open_to_write(path: &Path, append: bool) -> Result<OwnedFd> {
    let file = OpenOptions::new().create(true).write(true).append(append).truncate(!append).open(path);
    Ok(File::into(file.with_context(|| format!("{}", path.display()))?))
}

/// Name of the Gofer's tree that is the root.
const ROOT: &str = "root";

/// What is mounted in every sandbox of `run`.
fn standard_mounts() -> Vec<GuestMount> {
    let guarded = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RELATIME;
    let mount = |target: &str, kind, source: &str, flags: u64, data: &str| GuestMount {
        target: target.into(),
        kind,
        source: source.into(),
        flags,
        data: data.into(),
        required: false,
    };
    vec![
        mount("/proc", MountKind::Proc, "proc", guarded, ""),
        mount("/sys", MountKind::Sysfs, "sysfs", guarded | libc::MS_RDONLY, ""),
        mount("/dev", MountKind::Dev, "tmpfs", libc::MS_NOSUID | libc::MS_RELATIME, ""),
        mount(
            "/dev/pts",
            MountKind::Devpts,
            "devpts",
            libc::MS_NOSUID | libc::MS_NOEXEC,
            "gid=5,mode=620,ptmxmode=666",
        ),
        mount("/dev/shm", MountKind::Tmpfs, "tmpfs", guarded & !libc::MS_NOEXEC, "mode=1777"),
    ]
}

/// The trees that the Gofer serves, and the mounts of those that are not the root.
fn trees(args: &RunArgs) -> Result<(Vec<Tree>, Vec<GuestMount>)> {
    let root = args.rootfs.as_deref().unwrap_or(Path::new("/"));
    let root = root.canonicalize().with_context(|| format!("--rootfs {}", root.display()))?;
    if !root.is_dir() {
        bail!("--rootfs {}: not a directory", root.display());
    }
    check_served("--rootfs", &root)?;
    let mut trees = vec![Tree {
        name: ROOT.into(),
        source: root.into_os_string().into_vec(),
        read_only: args.overlay == Overlay::Memory,
    }];
    let mut mounts = Vec::new();
    for (i, bind) in args.bind.iter().enumerate() {
        let (tree, target) = parse_bind(bind, format!("bind{i}"))?;
        mounts.push(GuestMount {
            target,
            kind: MountKind::Tree(tree.name.clone()),
            source: tree.name.clone().into(),
            flags: libc::MS_RELATIME | if tree.read_only { libc::MS_RDONLY } else { 0 },
            data: Vec::new(),
            required: false,
        });
        trees.push(tree);
    }
    Ok((trees, mounts))
}

/// Refuses what shows the host's kernel.
fn check_served(option: &str, source: &Path) -> Result<()> {
    match gofer::kernel_file_system(source).with_context(|| format!("{option}: {}", source.display()))? {
        Some(kind) => bail!(
            "{option}: {} is an interface of the host's kernel ({kind}), which no sandbox gets; it has a /proc, /sys and /dev of its own",
            source.display()
        ),
        None => Ok(()),
    }
}

/// The tree of a `--bind`, and where it goes.
fn parse_bind(text: &OsStr, name: String) -> Result<(Tree, Vec<u8>)> {
    let shown = text.to_string_lossy();
    let mistake = || {
        anyhow!("--bind {shown}: write SRC:DST, SRC:DST:ro or SRC:DST:rw, with DST an absolute path inside the sandbox")
    };
    let parts: Vec<&[u8]> = text.as_bytes().split(|&b| b == b':').collect();
    let (source, target, read_only) = match parts[..] {
        [source, target] | [source, target, b"rw"] => (source, target, false),
        [source, target, b"ro"] => (source, target, true),
        _ => return Err(mistake()),
    };
    if source.is_empty() || !target.starts_with(b"/") {
        return Err(mistake());
    }
    let source = Path::new(OsStr::from_bytes(source));
    let source = source.canonicalize().with_context(|| format!("--bind {shown}: {}", source.display()))?;
    check_served(&format!("--bind {shown}"), &source)?;
    Ok((Tree { name, source: source.into_os_string().into_vec(), read_only }, target.to_vec()))
}

fn environment(extra: &[OsString], clear: bool) -> Result<Vec<Vec<u8>>> {
    let inherited: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let mut all = if clear { Vec::new() } else { inherited.clone() };
    for given in extra {
        let (key, value) = match given.as_bytes().iter().position(|&b| b == b'=') {
            Some(0) => bail!("--env {}: the name is missing", given.to_string_lossy()),
            Some(at) => {
                let (k, v) = given.as_bytes().split_at(at);
                (OsStr::from_bytes(k).to_owned(), Some(OsStr::from_bytes(&v[1..]).to_owned()))
            }
            None => (given.clone(), inherited.iter().find(|(k, _)| k == given).map(|(_, v)| v.clone())),
        };
        all.retain(|(k, _)| *k != key);
        // As with docker: passing on what is not set sets nothing.
        if let Some(value) = value {
            all.push((key, value));
        }
    }
    Ok(all
        .into_iter()
        .map(|(k, v)| {
            let mut line = k.into_vec();
            line.push(b'=');
            line.extend_from_slice(v.as_bytes());
            line
        })
        .collect())
}

fn identity(user: Option<&str>) -> Result<Identity> {
    let Some(user) = user else {
        let groups = getgroups().context("getgroups")?.into_iter().map(|g| g.as_raw()).collect();
        return Ok(Identity { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups });
    };
    let number = |text: &str| -> Result<u32> {
        match text.parse() {
            Ok(n) if n != u32::MAX => Ok(n),
            _ => bail!("--user {user}: write UID or UID:GID, as numbers"),
        }
    };
    let (uid, gid) = match user.split_once(':') {
        Some((uid, gid)) => (number(uid)?, number(gid)?),
        None => (number(user)?, number(user)?),
    };
    Ok(Identity { uid, gid, groups: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(text: &str) -> Result<(Tree, Vec<u8>)> {
        parse_bind(OsStr::new(text), "b".into())
    }

    #[test]
    fn binds() {
        let (tree, target) = bind("/etc:/data:ro").unwrap();
        assert_eq!((tree.source, target, tree.read_only), (b"/etc".to_vec(), b"/data".to_vec(), true));
        assert!(!bind("/etc:/data").unwrap().0.read_only);
        assert!(!bind("/etc:/data:rw").unwrap().0.read_only);
        for wrong in ["", "/etc", "/etc:data", ":/data", "/etc:/data:x", "/etc:/a:ro:ro", "/no/such/thing:/data"] {
            assert!(bind(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ids_are_given_only_by_those_that_may() {
        let standing = |capabilities: u64, map: &str, setgroups| Standing {
            capabilities,
            uid_map: map.into(),
            gid_map: map.into(),
            setgroups,
        };
        let whole = "         0          0 4294967295\n";
        let id = OWN_IDS.start + 5;
        let own = Some(HostIds { uid: id, gid: id });
        assert_eq!(standing(u64::MAX, whole, true).own_ids(5), own);
        assert_eq!(standing(1 << 6 | 1 << 7, whole, true).own_ids(5), own);
        assert_eq!(standing(u64::MAX, "0 100000 65536\n", true).own_ids(5), Some(NOBODY));
        // `unshare -Ur`: one id, and groups stay.
        assert_eq!(standing(u64::MAX, "0 1000 1\n", false).own_ids(5), None);
        assert_eq!(standing(u64::MAX, "0 1000 1\n", true).own_ids(5), None);
        assert_eq!(standing(u64::MAX, whole, false).own_ids(5), None);
        // Root without capabilities.
        for less in [0, 1 << 6, 1 << 7, !(1 << 7)] {
            assert_eq!(standing(less, whole, true).own_ids(5), None);
        }
        let mut mixed = standing(u64::MAX, whole, true);
        mixed.gid_map = "0 1000 1\n".into();
        assert_eq!(mixed.own_ids(5), None);
    }

    #[test]
    fn users() {
        assert_eq!(identity(Some("7:8")).unwrap(), Identity { uid: 7, gid: 8, groups: vec![] });
        assert_eq!(identity(Some("7")).unwrap().gid, 7);
        for wrong in ["", "root", "1:", ":1", "-1", "4294967295"] {
            assert!(identity(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn environments() {
        let set = |extra: &[&str]| environment(&extra.iter().map(OsString::from).collect::<Vec<_>>(), true).unwrap();
        assert_eq!(set(&["A=1", "B=x=y", "A=2", "NOT_SET_ANYWHERE"]), vec![b"B=x=y".to_vec(), b"A=2".to_vec()]);
        assert!(environment(&["=1".into()], true).is_err());
        assert!(set(&["PATH"])[0].starts_with(b"PATH="));
    }
}
