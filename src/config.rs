//! What the command tells its two processes: plain data, as JSON in a sealed memfd that they inherit.
//!
//! Only settings travel here; open files are inherited at the fixed descriptors of [`fd`].

use anyhow::{Context, Result};
use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::memfd::{memfd_create, MFdFlags};
use serde::{de::DeserializeOwned, Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

/// Descriptors that both processes find open. Their standard input and output are /dev/null, standard error is the log.
pub mod fd {
    use std::os::fd::RawFd;
    /// The configuration.
    pub const CONFIG: RawFd = 3;
    /// The Gofer's end or the Sentry's end of their connection.
    pub const GOFER: RawFd = 4;
    /// Sentry: the control socket to the command ([`crate::control`]).
    pub const CONTROL: RawFd = 5;
    /// Sentry: where `--strace` lines go, if wanted.
    pub const STRACE: RawFd = 6;
    /// Sentry: the first of those that the guest's first process gets; [`super::ProcessConfig::files`] counts from
    /// here.
    pub const FILES: RawFd = 16;
}

/// A tree of host files that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// The Sentry attaches to it by this name.
    pub name: String,
    /// On the host; absolute.
    pub source: Vec<u8>,
    pub read_only: bool,
}

/// Identity of a guest process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// The capability sets of a guest process, a bit for each capability (`1 << CAP_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// A classic BPF program (`struct sock_filter`): operation, jump if true, jump if false, operand.
pub type BpfProgram = Vec<(u16, u8, u8, u32)>;

/// A seccomp filter that a guest process starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompFilter {
    pub program: BpfProgram,
    /// `SECCOMP_FILTER_FLAG_*` of seccomp(2).
    pub flags: u32,
}

/// A guest process to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessConfig {
    pub argv: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>,
    pub cwd: Vec<u8>,
    pub user: Identity,
    pub umask: u32,
    pub nice: i32,
    /// Soft and hard limit of each resource, by the numbers of getrlimit(2); those that are missing have the Sentry's
    /// defaults.
    pub limits: Vec<(u64, u64)>,
    /// `None`: all for root and none for others.
    pub capabilities: Option<Capabilities>,
    pub no_new_privs: bool,
    /// Put in force in this order, last of all before the program begins.
    pub seccomp: Vec<SeccompFilter>,
    pub oom_score_adj: i32,
    /// The process's descriptors 0, 1, 2, …: each the index of a descriptor that came along, or `None` for a closed
    /// one.
    pub files: Vec<Option<u8>>,
    /// Descriptor 0 is a terminal, which becomes the controlling terminal of the process.
    pub terminal: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A tree of the Gofer's, by its name.
    Tree(String),
    Tmpfs,
    Proc,
    Sysfs,
    Devpts,
    Mqueue,
    Cgroup,
    /// A small tmpfs with the device nodes that every container has.
    Dev,
    /// Another place in the guest that is mounted already (a bind mount inside).
    Bind(Vec<u8>),
}

/// A mount of the guest's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMount {
    /// Absolute; made if it is missing.
    pub target: Vec<u8>,
    pub kind: MountKind,
    /// Shown as its source; no more than a name.
    pub source: Vec<u8>,
    /// `MS_*` flags of mount(2), propagation included; `MS_REC` for a recursive bind.
    pub flags: u64,
    /// Options of the file system, as mount(2) takes them (`size=64m,mode=755`).
    pub data: Vec<u8>,
    /// A failure ends the start; otherwise it is logged, and the container goes without.
    pub required: bool,
}

/// A device node of the guest's. Only devices that the Sentry implements can be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    pub path: Vec<u8>,
    /// Type and permissions (`S_IFCHR | 0o666`).
    pub mode: u32,
    pub major: u32,
    pub minor: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A container of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Empty for the one of `run`.
    pub id: String,
    pub process: ProcessConfig,
    pub hostname: String,
    pub domainname: String,
    /// The Gofer's tree that is the root.
    pub root: String,
    pub root_read_only: bool,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`, perhaps with `MS_REC`; 0: private.
    pub root_propagation: u64,
    /// Writes to the root stay in memory.
    pub overlay: bool,
    /// No other process changes the root while the sandbox runs: names and attributes may be cached.
    pub exclusive: bool,
    /// In this order.
    pub mounts: Vec<GuestMount>,
    pub devices: Vec<DeviceNode>,
    /// Covered, after all mounts: files by an empty one, directories by an empty directory. What is missing is skipped.
    pub masked_paths: Vec<Vec<u8>>,
    /// Made read-only after all mounts.
    pub read_only_paths: Vec<Vec<u8>>,
    /// Names with dots (`net.ipv4.ip_forward`) and values.
    pub sysctls: Vec<(String, String)>,
    /// The first process is process 1.
    pub init: bool,
    /// The first process waits for [`Request::Start`](crate::control::protocol::Request::Start).
    pub wait_for_start: bool,
    pub limits: crate::control::protocol::Limits,
    /// Namespaces that it shares with the sandbox's first container.
    pub share: Share,
}

/// Which namespaces a container shares with the sandbox's first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub pid: bool,
    pub ipc: bool,
    pub net: bool,
    pub uts: bool,
}

/// User and group that a process takes on the host once it is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostIds {
    pub uid: u32,
    pub gid: u32,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verbosity {
    /// What the caller must know: the log may be where the command's own messages go.
    Warnings,
    /// What may explain a command's failure too, such as calls that are not supported.
    News,
    /// What the runtime does.
    Everything,
}

/// The sandbox and its first container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentryConfig {
    pub container: ContainerConfig,
    /// Most processes and threads.
    pub max_tasks: usize,
    pub strace: bool,
    pub verbosity: Verbosity,
    pub hand_off: crate::cli::HandOff,
    /// Workers to start whatever the machine has; see [`crate::cli::RunArgs::workers`].
    pub workers: Option<u32>,
    /// Patch call sites.
    pub patch: bool,
    pub stats: bool,
    /// Ids to change to, when the caller may give its processes others.
    pub become_ids: Option<HostIds>,
}

/// Ids of the guest's that follow each other, and those of the host that they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

/// The Gofer has a user namespace with these maps, so that the host's kernel translates owners, in both directions, and
/// gives the Gofer no rights over files of other users.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    /// Empty, both: users and groups are themselves.
    pub uids: Vec<IdRange>,
    pub gids: Vec<IdRange>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoferConfig {
    /// The first is the root.
    pub trees: Vec<Tree>,
    /// The guest begins as somebody whose permissions have to be checked.
    pub tell_acls: bool,
    /// Which users and groups of the host those of the guest are.
    pub ids: IdMaps,
    pub verbosity: Verbosity,
}

/// Writes `config` to a memfd that can no longer change.
pub fn to_memfd<T: Serialize>(config: &T) -> Result<OwnedFd> {
    let fd = memfd_create(c"runsc-rs-config", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .context("memfd_create failed: the host's memory or descriptors are short")?;
    let mut file = File::from(fd);
    file.write_all(&serde_json::to_vec(config)?).context("writing the configuration to memory")?;
    file.seek(SeekFrom::Start(0))?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).context("sealing the configuration")?;
    Ok(file.into())
}

/// Reads it back.
pub fn from_memfd<T: DeserializeOwned>(fd: OwnedFd) -> Result<T> {
    let mut text = Vec::new();
    File::from(fd).read_to_end(&mut text).context("reading the configuration")?;
    serde_json::from_slice(&text).context("this is an internal subcommand: `runsc-rs run` starts it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_survives_the_memfd() {
        let config = GoferConfig {
            trees: vec![Tree { name: "root".into(), source: b"/\xff".to_vec(), read_only: true }],
            tell_acls: true,
            ids: IdMaps { uids: vec![IdRange { inside: 0, outside: 1000, count: 1 }], gids: Vec::new() },
            verbosity: Verbosity::News,
        };
        let fd = to_memfd(&config).unwrap();
        assert!(File::from(fd.try_clone().unwrap()).write_all(b"x").is_err(), "the memfd is sealed");
        assert_eq!(from_memfd::<GoferConfig>(fd).unwrap(), config);
    }
}
