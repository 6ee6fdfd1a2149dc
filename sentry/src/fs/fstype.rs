//! The types of file systems that can be mounted (filesystems(5)), and their options.
//!
//! A file system is described by a [`Config`], option after option, from the text of mount(2) or by fsconfig(2), and then made.

use super::tmpfs::{TmpFs, TmpOptions};
use super::vfs::{Dentry, Mount, MountFlags, MountNamespace, Path, SuperBlock};
use super::{cgroupfs, mqueuefs, overlay, proc, sys, tty, Inode};
use crate::error::{Errno, Result};
use crate::ipc::IpcNamespace;
use crate::kernel::cred::CAP_SYS_ADMIN;
use crate::kernel::ns::NsCommon;
use crate::kernel::nsproxy::NsProxy;
use crate::kernel::pid_ns::PidNs;
use crate::kernel::user_ns::Id;
use crate::kernel::{current, Cred, Kernel};
use std::sync::Arc;

/// What mounts a file system.
pub struct Mounter<'a> {
    pub kernel: &'a Arc<Kernel>,
    pub cred: &'a Cred,
    pub ipc: &'a Arc<IpcNamespace>,
    /// The pid namespace of a container that is set up.
    pub pids: Option<&'a Arc<PidNs>>,
    /// Its namespaces; none while a container is set up.
    pub ns: Option<&'a NsProxy>,
    /// Looks a path up that is the value of an option.
    pub find: &'a dyn Fn(&[u8]) -> Result<Path>,
}

impl Mounter<'_> {
    /// The pid namespace that a procfs shows: that of the task that mounts it, or of the processes of the container that is set up.
    fn pid_ns(&self) -> Arc<PidNs> {
        let of_container = self.pids.cloned();
        of_container.or_else(|| current::get().map(|t| t.pid_ns())).unwrap_or_else(PidNs::first)
    }
}

/// A type of file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    Tmpfs,
    Ramfs,
    Proc,
    Sysfs,
    Devpts,
    Mqueue,
    Cgroup2,
    Overlay,
}

const TYPES: [(&str, Type); 8] = [
    ("tmpfs", Type::Tmpfs),
    ("ramfs", Type::Ramfs),
    ("proc", Type::Proc),
    ("sysfs", Type::Sysfs),
    ("devpts", Type::Devpts),
    ("mqueue", Type::Mqueue),
    ("cgroup2", Type::Cgroup2),
    ("overlay", Type::Overlay),
];

impl Type {
    /// `ENODEV` if there is no such type.
    pub fn find(name: &[u8]) -> Result<Type> {
        TYPES.iter().find(|(n, _)| n.as_bytes() == name).map(|(_, t)| *t).ok_or(Errno::ENODEV)
    }
    pub fn name(self) -> &'static str {
        TYPES.iter().find(|(_, t)| *t == self).map_or("none", |(n, _)| n)
    }
    /// Shows what the kernel knows: a user namespace may mount it only where it can be seen in full already.
    fn reveals(self) -> bool {
        matches!(self, Type::Proc | Type::Sysfs)
    }
}

/// Options that any file system may be given, which are flags of the superblock.
const COMMON: [&[u8]; 9] =
    [b"ro", b"rw", b"sync", b"async", b"dirsync", b"lazytime", b"nolazytime", b"mand", b"nomand"];

/// A file system to be made.
#[derive(Clone, Debug)]
pub struct Config {
    pub kind: Type,
    pub source: Vec<u8>,
    pub read_only: bool,
    options: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    bytes: usize,
}

/// What the options of one file system may take.
const OPTIONS_MAX: usize = 64 << 10;

impl Config {
    pub fn new(kind: Type) -> Config {
        Config { kind, source: Vec::new(), read_only: false, options: Vec::new(), bytes: 0 }
    }

    /// Adds an option; `EINVAL` for one that the type does not have.
    pub fn set(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        if COMMON.contains(&key) {
            if value.is_some() {
                return Err(Errno::EINVAL);
            }
            match key {
                b"ro" => self.read_only = true,
                b"rw" => self.read_only = false,
                _ => {}
            }
            return Ok(());
        }
        if key == b"source" {
            self.source = value.ok_or(Errno::EINVAL)?.to_vec();
            return Ok(());
        }
        self.check(key, value)?;
        self.bytes = self.bytes.saturating_add(key.len() + value.map_or(0, <[u8]>::len) + 64);
        if self.bytes > OPTIONS_MAX {
            return Err(Errno::ENOMEM);
        }
        self.options.push((key.to_vec(), value.map(<[u8]>::to_vec)));
        Ok(())
    }

    /// Options as mount(2) has them, between commas.
    pub fn set_all(&mut self, text: &[u8]) -> Result<()> {
        for option in text.split(|&b| b == b',').filter(|o| !o.is_empty()) {
            match option.iter().position(|&b| b == b'=') {
                Some(i) => self.set(&option[..i], option.get(i + 1..))?,
                None => self.set(option, None)?,
            }
        }
        Ok(())
    }

    fn check(&self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        match self.kind {
            Type::Tmpfs => tmpfs_option(&mut TmpOptions::default(), key, value),
            Type::Ramfs => match key {
                b"mode" => number(value.unwrap_or(b""), 8).map(|_| ()),
                // As on Linux, which has always taken the options of tmpfs here.
                _ => Ok(()),
            },
            Type::Proc => proc_option(key, value),
            Type::Devpts => tty::devpts::Options::default().set(key, value),
            Type::Cgroup2 => match key {
                b"nsdelegate" | b"favordynmods" | b"memory_localevents" | b"memory_recursiveprot" => Ok(()),
                _ => Err(Errno::EINVAL),
            },
            Type::Overlay => overlay::mount::check_option(key, value),
            Type::Sysfs | Type::Mqueue => Err(Errno::EINVAL),
        }
    }

    /// Whether `m` may mount it; `EPERM` if not.
    pub fn permit(&self, m: &Mounter<'_>) -> Result<()> {
        if !m.cred.capable_in(&m.cred.user_ns(), CAP_SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        let owner_of = |common: &NsCommon| common.owner();
        let owner = match (self.kind, m.ns) {
            (Type::Mqueue, Some(ns)) => owner_of(&ns.ipc.common),
            (Type::Sysfs, Some(ns)) => owner_of(&ns.net.common),
            // It will show the numbers of the task's own namespace.
            (Type::Proc, Some(_)) => m.pid_ns().owner(),
            (Type::Cgroup2, Some(ns)) => owner_of(&ns.cgroup.common),
            _ => m.cred.user_ns(),
        };
        if !m.cred.capable_in(&owner, CAP_SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        Ok(())
    }

    /// The mount of a new file system (whose root this is) with these flags; `EPERM` if it would show the users of
    /// `ns` what is hidden from them.
    pub fn mount(&self, root: Arc<Dentry>, own: MountFlags, ns: &MountNamespace) -> Result<Arc<Mount>> {
        let m = Mount::new(root, own);
        if self.kind.reveals() && !ns.is_first_users() {
            m.set_locks(ns.shows_all_of(self.kind.name(), own).ok_or(Errno::EPERM)?);
        }
        Ok(m)
    }

    /// Makes the file system: the dentry of its root.
    pub fn create(&self, m: &Mounter<'_>) -> Result<Arc<Dentry>> {
        let mut stacked = 0;
        let (root, shown): (Arc<dyn Inode>, String) = match self.kind {
            Type::Tmpfs | Type::Ramfs => {
                let mut o = TmpOptions { uid: m.cred.fsuid, gid: m.cred.fsgid, ..TmpOptions::default() };
                if self.kind == Type::Ramfs {
                    o.mode = 0o755;
                }
                for (k, v) in &self.options {
                    if self.kind == Type::Tmpfs || k == b"mode" {
                        tmpfs_option(&mut o, k, v.as_deref())?;
                    }
                }
                let shown = format!("size={}k,mode={:o}", o.size / 1024, o.mode);
                (TmpFs::root(&o, m.kernel.reopen.get().cloned()), shown)
            }
            Type::Proc => (proc::new(m.kernel, m.pid_ns()), self.shown()),
            Type::Sysfs => (sys::new(m.kernel), String::new()),
            Type::Devpts => {
                let mut o = tty::devpts::Options::default();
                for (k, v) in &self.options {
                    o.set(k, v.as_deref())?;
                }
                let shown = o.shown();
                (tty::devpts::new(m.kernel, o), shown)
            }
            Type::Mqueue => (mqueuefs::new(m.kernel, m.ipc.clone()), String::new()),
            Type::Cgroup2 => (cgroupfs::new(m.kernel), self.shown()),
            Type::Overlay => {
                let (root, depth) = overlay::mount::make(&self.options, m)?;
                stacked = depth;
                (root, self.shown())
            }
        };
        let source: &[u8] = if self.source.is_empty() { b"none" } else { &self.source };
        let sb = SuperBlock::new(self.kind.name(), source, shown);
        sb.set_read_only(self.read_only)?;
        sb.set_owner(m.cred.user_ns());
        sb.set_stacked(stacked);
        if self.kind == Type::Overlay && !overlay::mount::is_writable(&self.options) {
            sb.never_writable();
        }
        Dentry::root(root, &sb)
    }

    /// The options as `/proc/mounts` shows them.
    fn shown(&self) -> String {
        let one = |(k, v): &(Vec<u8>, Option<Vec<u8>>)| {
            let key = String::from_utf8_lossy(k).into_owned();
            match v {
                Some(v) => format!("{key}={}", String::from_utf8_lossy(v)),
                None => key,
            }
        };
        self.options.iter().map(one).collect::<Vec<_>>().join(",")
    }
}

pub(in crate::fs) fn number(text: &[u8], radix: u32) -> Result<u64> {
    let text = std::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    u64::from_str_radix(text, radix).map_err(|_| Errno::EINVAL)
}

/// The kernel id of a user or group id that is the value of an option.
pub(in crate::fs) fn id(kind: Id, text: &[u8]) -> Result<u32> {
    let id = u32::try_from(number(text, 10)?).map_err(|_| Errno::EINVAL)?;
    match current::get() {
        Some(t) => t.cred().user_ns.id_in(kind, id).ok_or(Errno::EINVAL),
        None => Ok(id),
    }
}

/// The options of a tmpfs, from the text of mount(2).
pub(super) fn tmpfs(data: &[u8]) -> Result<TmpOptions> {
    let mut config = Config::new(Type::Tmpfs);
    config.set_all(data)?;
    let mut o = TmpOptions::default();
    for (key, value) in &config.options {
        tmpfs_option(&mut o, key, value.as_deref())?;
    }
    Ok(o)
}

/// `size=`, `nr_inodes=`, `mode=`, `uid=`, `gid=` of tmpfs(5).
fn tmpfs_option(o: &mut TmpOptions, key: &[u8], value: Option<&[u8]>) -> Result<()> {
    let most = TmpOptions::default();
    let scaled = || -> Result<u64> {
        let value = value.ok_or(Errno::EINVAL)?;
        let (digits, unit) = match value.split_last() {
            Some((b'k' | b'K', d)) => (d, 1 << 10),
            Some((b'm' | b'M', d)) => (d, 1 << 20),
            Some((b'g' | b'G', d)) => (d, 1 << 30),
            Some((b'%', d)) => (d, (most.size / 50).max(1)),
            _ => (value, 1),
        };
        number(digits, 10)?.checked_mul(unit).ok_or(Errno::EINVAL)
    };
    let text = value.ok_or(Errno::EINVAL);
    match key {
        // 0 means "no limit" on Linux; here the host's share remains the limit.
        b"size" => o.size = Some(scaled()?).filter(|s| *s > 0).unwrap_or(most.size).min(most.size),
        b"nr_inodes" => o.inodes = Some(scaled()?).filter(|n| *n > 0).unwrap_or(most.inodes).min(most.inodes),
        b"nr_blocks" => o.size = scaled()?.saturating_mul(4096).min(most.size),
        b"mode" => o.mode = number(text?, 8)? as u32 & 0o7777,
        b"uid" => o.uid = id(Id::User, text?)?,
        b"gid" => o.gid = id(Id::Group, text?)?,
        b"huge" | b"mpol" | b"inode64" | b"inode32" | b"noswap" => {}
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// `hidepid=`, `gid=`, `subset=` of proc(5): only the values that hide nothing are in force here.
fn proc_option(key: &[u8], value: Option<&[u8]>) -> Result<()> {
    match (key, value.ok_or(Errno::EINVAL)?) {
        (b"hidepid", b"0" | b"off") => Ok(()),
        (b"gid", v) => id(Id::Group, v).map(|_| ()),
        _ => Err(Errno::EINVAL),
    }
}
