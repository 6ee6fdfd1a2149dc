//! What namespaces of all kinds have in common (namespaces(7)): kind, number, owner, count.
//!
//! * [`NsCommon`] is a part of each namespace, whatever its kind; [`Namespace`] is a reference to one of any kind.
//! * [`change`]: `unshare`, `clone` and `setns`. [`crate::fs::nsfs`] has the files (`/proc/PID/ns/*`).
//!
//! A namespace lives as long as a task, an open file or a mount refers to it.

pub mod change;

use super::pid_ns::PidNs;
use super::user_ns::UserNs;
use super::users::{self, Charge, Resource};
use super::{Cred, Task};
use crate::error::{Errno, Result};
use crate::fs::vfs::MountNamespace;
use crate::ipc::IpcNamespace;
use crate::net::NetNs;
use parking_lot::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

pub const CLONE_NEWTIME: u64 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NsKind {
    Cgroup,
    Ipc,
    Mnt,
    Net,
    Pid,
    Time,
    User,
    Uts,
}

use NsKind::*;

/// In the order in which `setns` enters them.
pub const KINDS: [NsKind; 8] = [User, Mnt, Uts, Ipc, Pid, Cgroup, Net, Time];

/// The lowest number of a namespace that is not one of the first ones.
const FIRST_INUM: u64 = 0xf800_0000;
/// Above those of the first namespaces, one for each kind.
static NEXT_INUM: AtomicU64 = AtomicU64::new(FIRST_INUM + 16);

/// `/proc/sys/user/max_*_namespaces`, by [`NsKind`].
pub static MAX_NAMESPACES: [AtomicU64; 8] = [const { AtomicU64::new(15_000) }; 8];

impl NsKind {
    /// `CLONE_NEW*`.
    pub fn flag(self) -> u64 {
        (match self {
            Cgroup => libc::CLONE_NEWCGROUP,
            Ipc => libc::CLONE_NEWIPC,
            Mnt => libc::CLONE_NEWNS,
            Net => libc::CLONE_NEWNET,
            Pid => libc::CLONE_NEWPID,
            Time => return CLONE_NEWTIME,
            User => libc::CLONE_NEWUSER,
            Uts => libc::CLONE_NEWUTS,
        }) as u64
    }
    /// As in the text of the links in `/proc/PID/ns`.
    pub fn name(self) -> &'static str {
        match self {
            Cgroup => "cgroup",
            Ipc => "ipc",
            Mnt => "mnt",
            Net => "net",
            Pid => "pid",
            Time => "time",
            User => "user",
            Uts => "uts",
        }
    }
    /// The number of the first namespace of the kind. User and time namespaces of a container are the kernel's first
    /// ones, and have Linux's numbers for them; the others are a container's own, with numbers that no first one of
    /// Linux has.
    fn first_inum(self) -> u64 {
        match self {
            Time => 0xefff_fffa,
            User => 0xefff_fffd,
            kind => FIRST_INUM + kind as u64,
        }
    }
    fn resource(self) -> Resource {
        match self {
            Cgroup => Resource::CgroupNamespaces,
            Ipc => Resource::IpcNamespaces,
            Mnt => Resource::MntNamespaces,
            Net => Resource::NetNamespaces,
            Pid => Resource::PidNamespaces,
            Time => Resource::TimeNamespaces,
            User => Resource::UserNamespaces,
            Uts => Resource::UtsNamespaces,
        }
    }
    pub const fn limit(self) -> &'static AtomicU64 {
        &MAX_NAMESPACES[self as usize]
    }
}

/// The part that namespaces of all kinds have.
#[derive(Debug)]
pub struct NsCommon {
    pub kind: NsKind,
    /// The inode number of its file.
    pub inum: u64,
    /// The user namespace that it belongs to; of a user namespace, its parent. `None`: the first user namespace.
    owner: Option<Arc<UserNs>>,
    _counted: Option<Charge>,
}

impl NsCommon {
    /// Of a container's namespace, which no user made. The first one of a kind has the number that it has on Linux.
    pub fn first(kind: NsKind) -> NsCommon {
        static GIVEN: [AtomicBool; 8] = [const { AtomicBool::new(false) }; 8];
        let given = GIVEN[kind as usize].swap(true, Ordering::Relaxed);
        let inum = if given { NEXT_INUM.fetch_add(1, Ordering::Relaxed) } else { kind.first_inum() };
        let owner = (kind != User).then(UserNs::first);
        NsCommon { kind, inum, owner, _counted: None }
    }
    /// Of another one, which belongs to `owner` and is counted for the user `uid`, who makes it. `ENOSPC` beyond the
    /// limits.
    pub fn new(kind: NsKind, owner: Arc<UserNs>, uid: u32) -> Result<NsCommon> {
        let limit = kind.limit().load(Ordering::Relaxed);
        let counted = users::of(uid).charge(kind.resource(), limit).ok_or(Errno::ENOSPC)?;
        let inum = NEXT_INUM.fetch_add(1, Ordering::Relaxed);
        Ok(NsCommon { kind, inum, owner: Some(owner), _counted: Some(counted) })
    }
    /// The user namespace whose capabilities count for it.
    pub fn owner(&self) -> Arc<UserNs> {
        self.owner.clone().unwrap_or_else(UserNs::first)
    }
    /// The parent of a user namespace.
    pub fn parent(&self) -> Option<&Arc<UserNs>> {
        self.owner.as_ref()
    }
}

/// The namespace of the user whom `cred` shows, with which its namespaces are made.
#[derive(Clone)]
pub struct Maker {
    pub owner: Arc<UserNs>,
    pub uid: u32,
}

impl Maker {
    pub fn of(cred: &Cred) -> Maker {
        Maker { owner: cred.user_ns(), uid: cred.euid }
    }
    pub fn common(&self, kind: NsKind) -> Result<NsCommon> {
        NsCommon::new(kind, self.owner.clone(), self.uid)
    }
}

/// A namespace of any kind.
#[derive(Clone)]
pub enum Namespace {
    Cgroup(Arc<CgroupNs>),
    Ipc(Arc<IpcNamespace>),
    Mnt(Arc<MountNamespace>),
    Net(Arc<NetNs>),
    Pid(Arc<PidNs>),
    Time(Arc<TimeNs>),
    User(Arc<UserNs>),
    Uts(Arc<UtsNs>),
}

impl Namespace {
    pub fn common(&self) -> &NsCommon {
        match self {
            Namespace::Cgroup(n) => &n.common,
            Namespace::Ipc(n) => &n.common,
            Namespace::Mnt(n) => n.common(),
            Namespace::Net(n) => &n.common,
            Namespace::Pid(n) => &n.common,
            Namespace::Time(n) => &n.common,
            Namespace::User(n) => &n.common,
            Namespace::Uts(n) => &n.common,
        }
    }
    pub fn kind(&self) -> NsKind {
        self.common().kind
    }
    /// `kind:[number]`.
    pub fn name(&self) -> String {
        let c = self.common();
        format!("{}:[{}]", c.kind.name(), c.inum)
    }
    /// That of `task`; `None` for one that has ended.
    pub fn of(task: &Task, kind: NsKind) -> Namespace {
        let ns = task.ns();
        match kind {
            Cgroup => Namespace::Cgroup(ns.cgroup.clone()),
            Ipc => Namespace::Ipc(ns.ipc.clone()),
            Mnt => Namespace::Mnt(ns.mnt.clone()),
            Net => Namespace::Net(ns.net.clone()),
            Pid => Namespace::Pid(PidNs::of(task)),
            Time => Namespace::Time(ns.time.clone()),
            User => Namespace::User(task.cred().user_ns()),
            Uts => Namespace::Uts(ns.uts.clone()),
        }
    }
    /// That of the children that `task` makes, which can be another one for the kinds pid and time.
    pub fn for_children(task: &Task, kind: NsKind) -> Namespace {
        let ns = task.ns();
        match kind {
            Pid => Namespace::Pid(ns.pid_for_children.clone()),
            Time => Namespace::Time(ns.time_for_children.clone()),
            _ => Namespace::of(task, kind),
        }
    }
    /// Its parent, where namespaces of the kind nest and `cred` may know it (`NS_GET_PARENT`).
    pub fn parent(&self, task: &Task) -> Result<Namespace> {
        match self {
            Namespace::User(n) => n.parent_for(&task.cred()).map(Namespace::User),
            Namespace::Pid(n) => n.parent_for(task).map(Namespace::Pid),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// A UTS namespace: the `uname` names that can change.
#[derive(Debug)]
pub struct UtsNs {
    pub common: NsCommon,
    pub names: RwLock<UtsNames>,
}

#[derive(Clone, Debug)]
pub struct UtsNames {
    pub hostname: String,
    pub domainname: String,
}

impl UtsNs {
    pub fn first(hostname: String, domainname: String) -> Arc<UtsNs> {
        let names = RwLock::new(UtsNames { hostname, domainname });
        Arc::new(UtsNs { common: NsCommon::first(Uts), names })
    }
    fn copy(&self, maker: &Maker) -> Result<Arc<UtsNs>> {
        let names = RwLock::new(self.names.read().clone());
        Ok(Arc::new(UtsNs { common: maker.common(Uts)?, names }))
    }
}

/// A cgroup namespace. There is one cgroup, the root, and so one view of it.
#[derive(Debug)]
pub struct CgroupNs {
    pub common: NsCommon,
}

impl CgroupNs {
    pub fn first() -> Arc<CgroupNs> {
        static FIRST: LazyLock<Arc<CgroupNs>> =
            LazyLock::new(|| Arc::new(CgroupNs { common: NsCommon::first(Cgroup) }));
        FIRST.clone()
    }
    fn new(maker: &Maker) -> Result<Arc<CgroupNs>> {
        Ok(Arc::new(CgroupNs { common: maker.common(Cgroup)? }))
    }
}

/// A time namespace. The first one is the only one: guests read the host's clocks in the vDSO without a call, so
/// offsets could not be added.
#[derive(Debug)]
pub struct TimeNs {
    pub common: NsCommon,
}

impl TimeNs {
    pub fn first() -> Arc<TimeNs> {
        static FIRST: LazyLock<Arc<TimeNs>> = LazyLock::new(|| Arc::new(TimeNs { common: NsCommon::first(Time) }));
        FIRST.clone()
    }
}
