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
    /// Sentry: the guest's standard streams.
    pub const STDIO: [RawFd; 3] = [6, 7, 8];
    /// Sentry: where `--strace` lines go, if wanted.
    pub const STRACE: RawFd = 9;
}

/// A tree of host files that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// The Sentry attaches to it by this name.
    pub name: String,
    /// On the host; absolute.
    pub source: Vec<u8>,
    /// In the guest; absolute.
    pub target: Vec<u8>,
    pub read_only: bool,
}

/// Identity of the guest's first process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
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

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentryConfig {
    pub argv: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>,
    pub cwd: Vec<u8>,
    pub user: Identity,
    pub umask: u32,
    pub nice: i32,
    /// Soft and hard limit of each resource.
    pub limits: Vec<(u64, u64)>,
    pub hostname: String,
    /// The first is the root.
    pub trees: Vec<Tree>,
    /// Writes to the root stay in memory.
    pub overlay: bool,
    /// Most processes and threads.
    pub max_tasks: usize,
    /// The command is process 1.
    pub init: bool,
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

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoferConfig {
    /// The first is the root.
    pub trees: Vec<Tree>,
    /// The guest begins as somebody whose permissions have to be checked.
    pub tell_acls: bool,
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
            trees: vec![Tree {
                name: "root".into(),
                source: b"/\xff".to_vec(),
                target: b"/".to_vec(),
                read_only: true,
            }],
            tell_acls: true,
            verbosity: Verbosity::News,
        };
        let fd = to_memfd(&config).unwrap();
        assert!(File::from(fd.try_clone().unwrap()).write_all(b"x").is_err(), "the memfd is sealed");
        assert_eq!(from_memfd::<GoferConfig>(fd).unwrap(), config);
    }
}
