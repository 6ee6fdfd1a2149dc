//! The cgroup around a sandbox, on the host: version 1, version 2, both side by side, or systemd's.
//!
//! It bounds the whole sandbox: the monitor, the Gofer, the Sentry and all stubs. The limits of a container among
//! others in its sandbox are the Sentry's to enforce ([`crate::oci::plan::limits`]).
//!
//! Version 2 and systemd are managed with `libcgroups`. Version 1 has writers of our own ([`v1`]): `libcgroups` takes
//! one path for all hierarchies, whereas the caller's own cgroup, below which a container's belongs, is another one in
//! each.

mod layout;
mod processes;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use anyhow::{anyhow, bail, Context, Result};
use layout::Layout;
use libcgroups::common::{AnyCgroupManager, CgroupConfig, CgroupManager, ControllerOpt, FreezerState};
use libcgroups::stats::Stats;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxMemory, LinuxPids, LinuxResources};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

/// Below these limits the sandbox's own processes and memory count: so much more is allowed outside, and the Sentry
/// alone keeps a container to its limit. Above, the limit outside is the very one that was asked for.
const FEW_PIDS: i64 = 512;
const OWN_PIDS: i64 = 64;
const LITTLE_MEMORY: i64 = 32 << 20;
const OWN_MEMORY: i64 = 32 << 20;

/// A cgroup that was made for a sandbox. It is plain data, which the container's state file keeps; dropping it does
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    kind: Kind,
    /// Its directories with the controllers of each: one for each hierarchy of version 1, or one of version 2 (with the
    /// empty name).
    dirs: Vec<Dir>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    V1,
    /// Below the mount point `root`.
    V2 {
        root: PathBuf,
        path: PathBuf,
    },
    /// A scope of version 2: `slice:prefix:name`, and the container's id.
    Systemd {
        unit: PathBuf,
        id: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dir {
    /// `memory`, `cpu`, `name=systemd`, … of version 1; empty for version 2.
    pub controllers: Vec<String>,
    pub path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup of the container `id`: at `path` (`linux.cgroupsPath`), or without one below the caller's own.
    ///
    /// `Ok(None)`: the caller has no right to make one, and no limits were asked for, so the container runs in the
    /// caller's cgroup. With limits this is an error.
    ///
    /// `planned` is told of the directories before they are made, so that they can be found by those who clean up after
    /// a crash: by [`Cgroup::remove`] alone, since they may turn out to be those of others.
    pub fn create(
        id: &str,
        path: Option<&Path>,
        systemd: bool,
        resources: Option<&LinuxResources>,
        planned: impl FnOnce(&Cgroup) -> Result<()>,
    ) -> Result<Option<Cgroup>> {
        let layout = Layout::of_caller()?;
        let path = path.filter(|p| !p.as_os_str().is_empty());
        let made = match systemd {
            true => Cgroup::create_systemd(&layout, id, path, planned),
            false => Cgroup::create_at(&layout, path.unwrap_or(Path::new(id)), planned),
        };
        match made {
            Ok(cgroup) => Ok(Some(cgroup)),
            Err(e) if !is_lack_of_rights(&e) => Err(e.context("making the container's cgroup")),
            Err(e) if resources.is_some_and(has_limits) => Err(e.context(
                "the container's cgroup cannot be made, and its resources have limits: delegate a cgroup to this \
                 user, or leave them out",
            )),
            Err(e) => {
                log::warn!("the container has no cgroup of its own: {e:#}");
                Ok(None)
            }
        }
    }

    fn create_at(layout: &Layout, path: &Path, planned: impl FnOnce(&Cgroup) -> Result<()>) -> Result<Cgroup> {
        let dirs = layout.dirs(&beneath_root(path))?;
        let kind = match layout {
            Layout::V1(_) => Kind::V1,
            Layout::V2 { mount, .. } => {
                let dir = dirs.first().ok_or_else(|| anyhow!("no cgroup"))?;
                Kind::V2 { root: mount.clone(), path: dir.path.strip_prefix(mount)?.to_path_buf() }
            }
            Layout::None => bail!("no cgroup file system is mounted"),
        };
        let cgroup = Cgroup { kind, dirs };
        planned(&cgroup)?;
        for (i, dir) in cgroup.dirs.iter().enumerate() {
            if let Err(e) = make(layout, dir) {
                // Those that were made must not stay.
                for dir in cgroup.dirs.iter().take(i) {
                    let _ = fs::remove_dir(&dir.path);
                }
                return Err(e);
            }
        }
        Ok(cgroup)
    }

    /// With version 1 systemd's scope is a directory in each hierarchy, without a unit of systemd's.
    fn create_systemd(
        layout: &Layout,
        id: &str,
        path: Option<&Path>,
        planned: impl FnOnce(&Cgroup) -> Result<()>,
    ) -> Result<Cgroup> {
        if !Path::new("/run/systemd/system").is_dir() {
            bail!("systemd cgroup flag passed, but systemd support for managing cgroups is not available");
        }
        let unit = path.map_or_else(|| PathBuf::from(format!(":runsc-rs:{id}")), Path::to_path_buf);
        let scope = scope(&unit)?;
        match layout {
            Layout::V2 { .. } => {
                let mut cgroup = Cgroup { kind: Kind::Systemd { unit, id: id.to_string() }, dirs: Vec::new() };
                cgroup.dirs = vec![Dir { controllers: Vec::new(), path: cgroup.systemd_dir()? }];
                Ok(cgroup)
            }
            _ => Cgroup::create_at(layout, &scope, planned),
        }
    }

    /// Moves a process into the cgroup; the processes that it starts are born there. With systemd this makes the scope.
    pub fn add(&self, pid: Pid) -> Result<()> {
        if let Kind::Systemd { .. } = self.kind {
            let pid = nix_of_libcgroups::unistd::Pid::from_raw(pid.as_raw());
            return self.manager()?.add_task(pid).context("starting the container's scope");
        }
        for dir in &self.dirs {
            let file = dir.path.join("cgroup.procs");
            fs::write(&file, pid.to_string()).with_context(|| format!("{}", file.display()))?;
        }
        Ok(())
    }

    /// Moves the calling process, which has one thread. With version 1 this takes a fraction of a millisecond, and
    /// [`Cgroup::add`] some ten: to move the threads of a process together the kernel stops all forks and exits first,
    /// and waits for a grace period; a thread that moves itself does not need that. With systemd this makes the scope.
    pub fn join(&self) -> Result<()> {
        if self.kind != Kind::V1 {
            return self.add(nix::unistd::getpid());
        }
        for dir in &self.dirs {
            let file = dir.path.join("tasks");
            fs::write(&file, "0").with_context(|| format!("{}", file.display()))?;
        }
        Ok(())
    }

    /// Puts limits in force; those that are not given stay. After [`Cgroup::add`] of the first process.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        let resources = with_own_needs(resources);
        if let Kind::V1 = self.kind {
            return v1::apply(&self.dirs, &resources);
        }
        let disable_oom_killer = resources.memory().as_ref().and_then(|m| m.disable_oom_killer()).unwrap_or(false);
        let options =
            ControllerOpt { resources: &resources, disable_oom_killer, oom_score_adj: None, freezer_state: None };
        self.manager()?.apply(&options).context("setting the limits of the container's cgroup")
    }

    /// What the whole sandbox uses.
    pub fn stats(&self) -> Result<Stats> {
        match self.kind {
            Kind::V1 => v1::stats(&self.dirs),
            _ => self.dirs.first().map(|dir| v2::stats(&dir.path)).context("no cgroup"),
        }
    }

    /// Stops or continues all host processes of the sandbox. (`pause` is the Sentry's; this is for a Sentry that does
    /// not answer.)
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        match self.kind {
            Kind::V1 => v1::freeze(&self.dirs, frozen),
            _ => {
                let state = if frozen { FreezerState::Frozen } else { FreezerState::Thawed };
                self.manager()?.freeze(state).context("freezing the container's cgroup")
            }
        }
    }

    /// The processes in it and below it.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        processes::list(&self.dirs)
    }

    /// Kills all processes in it and below it but the caller, and waits until they are gone, for a bounded time. A
    /// frozen one is thawed.
    pub fn kill(&self) -> Result<()> {
        processes::kill(&self.dirs, || {
            let _ = self.freeze(false);
        })
    }

    /// Removes it with all below it, after [`Cgroup::kill`]. It is no error if it is gone already.
    pub fn remove(&self) -> Result<()> {
        if let Kind::Systemd { .. } = self.kind {
            // The scope ends with its last process; what remains of it, after a failure for instance, is stopped.
            if self.dirs.iter().any(|dir| dir.path.exists()) {
                self.manager()?.remove().context("stopping the container's scope")?;
            }
        }
        self.dirs.iter().try_for_each(|dir| processes::remove(&dir.path))
    }

    /// Its directories, as in `cgroup_paths` of runc's `state.json`.
    pub fn dirs(&self) -> &[Dir] {
        &self.dirs
    }

    fn manager(&self) -> Result<AnyCgroupManager> {
        let (root, config) = match &self.kind {
            Kind::V1 => bail!("version 1 is managed by directories"),
            Kind::V2 { root, path } => {
                // Absolute, so that it is taken from the root.
                let path = Path::new("/").join(path);
                (Some(root), CgroupConfig { cgroup_path: path, systemd_cgroup: false, container_name: String::new() })
            }
            Kind::Systemd { unit, id } => {
                (None, CgroupConfig { cgroup_path: unit.clone(), systemd_cgroup: true, container_name: id.clone() })
            }
        };
        let root = root.map(PathBuf::as_path);
        libcgroups::common::create_cgroup_manager_with_root(root, config).context("the container's cgroup")
    }

    /// Where systemd makes the scope. A user's own instance has it below its own service.
    fn systemd_dir(&self) -> Result<PathBuf> {
        let Kind::Systemd { unit, .. } = &self.kind else { bail!("no scope") };
        let below = match nix::unistd::geteuid().is_root() {
            true => PathBuf::from("/"),
            false => layout::user_service()?,
        };
        Ok(Path::new("/sys/fs/cgroup").join(below.strip_prefix("/").unwrap_or(&below)).join(scope(unit)?))
    }
}

/// The directory of a scope, relative to the manager's own: `a-b.slice:docker:x` is `a.slice/a-b.slice/docker-x.scope`.
fn scope(unit: &Path) -> Result<PathBuf> {
    let text = unit.to_string_lossy();
    let mistake = || {
        anyhow!("expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {text:?} instead")
    };
    let parts: Vec<&str> = text.split(':').collect();
    let [slice, prefix, name] = parts[..] else { return Err(mistake()) };
    if name.is_empty() || [slice, prefix, name].iter().any(|part| part.contains(['/', '\0'])) {
        return Err(mistake());
    }
    let user = !nix::unistd::geteuid().is_root();
    let slice = if slice.is_empty() {
        if user {
            "user.slice"
        } else {
            "system.slice"
        }
    } else {
        slice
    };
    let base = slice.strip_suffix(".slice").filter(|base| !base.is_empty()).ok_or_else(mistake)?;
    let mut dir = PathBuf::new();
    // `-.slice` is the root.
    if base != "-" {
        let words: Vec<&str> = base.split('-').collect();
        if words.iter().any(|word| word.is_empty()) {
            return Err(mistake());
        }
        for n in 1..=words.len() {
            dir.push(format!("{}.slice", words.get(..n).unwrap_or_default().join("-")));
        }
    }
    dir.push(match name.ends_with(".slice") || prefix.is_empty() {
        true => name.to_string(),
        false => format!("{prefix}-{name}.scope"),
    });
    Ok(dir)
}

/// The path with `.` and `..` resolved as words: it does not lead above the root. Absolute ones stay so.
fn beneath_root(path: &Path) -> PathBuf {
    let mut clean = if path.is_absolute() { PathBuf::from("/") } else { PathBuf::new() };
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

/// Makes a directory of a cgroup with those above it. One that exists and has processes is not the container's: its end
/// is to be theirs alone.
fn make(layout: &Layout, dir: &Dir) -> Result<()> {
    let shown = || format!("{}", dir.path.display());
    if let Layout::V2 { mount, .. } = layout {
        layout::enable_controllers(mount, &dir.path);
    }
    fs::create_dir_all(&dir.path).with_context(shown)?;
    if layout.is_callers(&dir.path) || !processes::list(std::slice::from_ref(dir)).with_context(shown)?.is_empty() {
        bail!("container's cgroup is not empty: {} has processes of others", dir.path.display());
    }
    v1::prepare(dir).with_context(shown)
}

/// Whether there is something to enforce. Rules for devices are not: a guest has none of the host's.
fn has_limits(resources: &LinuxResources) -> bool {
    let mut rest = resources.clone();
    rest.set_devices(None);
    rest != LinuxResources::default()
}

fn is_lack_of_rights(e: &anyhow::Error) -> bool {
    let kinds = [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem];
    e.chain().filter_map(|e| e.downcast_ref::<std::io::Error>()).any(|e| kinds.contains(&e.kind()))
        || e.chain().any(|e| e.is::<layout::NotMounted>())
}

/// The limits for the whole sandbox: those of the container, with room for the sandbox's own processes where the limit
/// is so low that these would not leave enough of it.
fn with_own_needs(resources: &LinuxResources) -> LinuxResources {
    let mut all = resources.clone();
    if let Some(pids) = resources.pids() {
        if (1..FEW_PIDS).contains(&pids.limit()) {
            let mut more = LinuxPids::default();
            more.set_limit(pids.limit() + OWN_PIDS);
            all.set_pids(Some(more));
        }
    }
    if let Some(memory) = resources.memory() {
        all.set_memory(Some(with_own_memory(memory)));
    }
    all
}

fn with_own_memory(memory: &LinuxMemory) -> LinuxMemory {
    let mut more = *memory;
    if memory.limit().is_some_and(|limit| (1..LITTLE_MEMORY).contains(&limit)) {
        more.set_limit(memory.limit().map(|limit| limit + OWN_MEMORY));
        more.set_swap(memory.swap().map(|swap| if swap > 0 { swap.saturating_add(OWN_MEMORY) } else { swap }));
    }
    more
}
