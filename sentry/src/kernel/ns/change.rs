//! New namespaces and others' namespaces: unshare(2), clone(2), setns(2).
//!
//! A change is prepared as a whole in an [`NsSet`] and comes into force at once, or not at all.

use super::*;
use crate::fs::vfs::FsContext;
use crate::kernel::cred::{CAP_SYS_ADMIN, CAP_SYS_CHROOT};
use crate::kernel::nsproxy::NsProxy;
use crate::kernel::{pid_ns, user_ns};
use parking_lot::Mutex;

/// The flags of all kinds in `nsproxy`.
pub const IN_PROXY: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWCGROUP) as u64
    | CLONE_NEWTIME;
pub const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
pub const ALL: u64 = IN_PROXY | NEWUSER;

/// What a task will have.
pub struct NsSet {
    pub cred: Arc<Cred>,
    pub proxy: NsProxy,
    /// Root and working directory.
    pub fs: FsContext,
    /// The credentials, the proxy, and root and working directory, differ from the task's.
    pub new_cred: bool,
    pub new_proxy: bool,
    pub new_fs: bool,
}

impl NsSet {
    pub fn of(task: &Task) -> NsSet {
        let fs = task.fs().lock().clone();
        NsSet { cred: task.cred(), proxy: (*task.ns()).clone(), fs, new_cred: false, new_proxy: false, new_fs: false }
    }

    /// New namespaces of the kinds in `flags`, for `task` or its child; the user namespace first, which the others then
    /// belong to.
    pub fn create(&mut self, task: &Task, flags: u64) -> Result<()> {
        if flags & NEWUSER != 0 {
            self.cred = Arc::new(user_ns::create(task, &self.cred)?);
            self.new_cred = true;
        }
        if flags & IN_PROXY == 0 {
            return Ok(());
        }
        let maker = Maker::of(&self.cred);
        if !self.cred.capable_in(&maker.owner, CAP_SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        let wants = |kind: NsKind| flags & kind.flag() != 0;
        // Before anything is made.
        if wants(Time) {
            return Err(Errno::EINVAL);
        }
        if wants(Mnt) {
            self.proxy.mnt = self.proxy.mnt.copy(&maker, &mut [&mut self.fs.root, &mut self.fs.cwd])?;
            self.new_fs = true;
        }
        if wants(Uts) {
            self.proxy.uts = self.proxy.uts.copy(&maker)?;
        }
        if wants(Ipc) {
            self.proxy.ipc = IpcNamespace::new(&maker)?;
        }
        if wants(Pid) {
            self.proxy.pid_for_children = self.proxy.pid_for_children.create(task, &maker)?;
        }
        if wants(Cgroup) {
            self.proxy.cgroup = CgroupNs::new(&maker)?;
        }
        if wants(Net) {
            self.proxy.net = NetNs::new(&maker)?;
        }
        self.new_proxy = true;
        Ok(())
    }

    /// Enters `ns` as far as the caller may (setns(2)).
    pub fn enter(&mut self, task: &Task, ns: &Namespace) -> Result<()> {
        let cred = self.cred.clone();
        let may = |c: &NsCommon| {
            let both = cred.capable_in(&c.owner(), CAP_SYS_ADMIN) && cred.capable_in(&cred.user_ns(), CAP_SYS_ADMIN);
            both.then_some(()).ok_or(Errno::EPERM)
        };
        match ns {
            Namespace::User(n) => return user_ns::enter(task, self, n),
            Namespace::Pid(n) => return pid_ns::enter(task, self, n),
            Namespace::Mnt(n) => return self.enter_mnt(task, n),
            Namespace::Time(_) => return Err(Errno::EINVAL),
            Namespace::Uts(n) => {
                may(&n.common)?;
                self.proxy.uts = n.clone();
            }
            Namespace::Ipc(n) => {
                may(&n.common)?;
                self.proxy.ipc = n.clone();
            }
            Namespace::Net(n) => {
                may(&n.common)?;
                self.proxy.net = n.clone();
            }
            Namespace::Cgroup(n) => {
                may(&n.common)?;
                self.proxy.cgroup = n.clone();
            }
        }
        self.new_proxy = true;
        Ok(())
    }

    fn enter_mnt(&mut self, task: &Task, ns: &Arc<MountNamespace>) -> Result<()> {
        let own = self.cred.user_ns();
        if !self.cred.capable_in(&ns.common().owner(), CAP_SYS_ADMIN)
            || !self.cred.capable_in(&own, CAP_SYS_CHROOT | CAP_SYS_ADMIN)
        {
            return Err(Errno::EPERM);
        }
        // The task's own reference, and the one here.
        let fs = task.fs();
        if Arc::strong_count(&fs) > 2 {
            return Err(Errno::EINVAL);
        }
        let root = crate::fs::vfs::walk::uppermost(ns.root());
        self.fs.root = root.clone();
        self.fs.cwd = root;
        self.proxy.mnt = ns.clone();
        self.new_proxy = true;
        self.new_fs = true;
        Ok(())
    }

    /// Puts it into force for `task`, which calls.
    pub fn commit(self, task: &Task) {
        let NsSet { cred, proxy, fs, new_cred, new_proxy, new_fs } = self;
        let mut gone: Vec<Box<dyn Send>> = Vec::new();
        if new_proxy {
            let old = std::mem::replace(&mut *task.nsproxy.write(), Arc::new(proxy.clone()));
            if !Arc::ptr_eq(&old.ipc, &proxy.ipc) {
                // Adjustments of semaphores are made in the namespace of the semaphores.
                crate::ipc::sem::process_gone(&old.ipc, task.group.pid);
            }
            gone.push(Box::new(old));
        }
        if new_fs {
            let mut slot = task.fs.write();
            // A task that shares them with others gets its own.
            let old = std::mem::replace(&mut *slot, Arc::new(Mutex::new(fs)));
            gone.push(Box::new(old));
        }
        if new_cred {
            let _ = task.change_cred(|_| Ok((*cred).clone()));
        }
        // Namespaces and mounts may go with the last reference, which takes locks.
        drop(gone);
    }
}
