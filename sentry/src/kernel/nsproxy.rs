//! The namespaces that a task is in (namespaces(7)), as Linux's `nsproxy`: shared by tasks, never changed; a task that changes a
//! namespace gets another [`NsProxy`]. The user namespace is in the credentials instead, the pid namespace goes with the task's numbers.

use super::ns::{CgroupNs, TimeNs};
pub use super::ns::{UtsNames, UtsNs};
use super::pid_ns::PidNs;
use super::{current, Kernel, Task};
use crate::fs::vfs::MountNamespace;
use crate::ipc::IpcNamespace;
use crate::net::NetNs;
use std::sync::Arc;

#[derive(Clone)]
pub struct NsProxy {
    pub uts: Arc<UtsNs>,
    pub ipc: Arc<IpcNamespace>,
    pub net: Arc<NetNs>,
    pub mnt: Arc<MountNamespace>,
    pub cgroup: Arc<CgroupNs>,
    pub time: Arc<TimeNs>,
    /// The namespaces that children will be in.
    pub pid_for_children: Arc<PidNs>,
    pub time_for_children: Arc<TimeNs>,
}

impl NsProxy {
    /// Those of a container. All containers are in the first cgroup, time and pid namespaces.
    pub fn of_container(uts: Arc<UtsNs>, ipc: Arc<IpcNamespace>, net: Arc<NetNs>, mnt: Arc<MountNamespace>) -> NsProxy {
        NsProxy {
            uts,
            ipc,
            net,
            mnt,
            cgroup: CgroupNs::first(),
            time: TimeNs::first(),
            pid_for_children: PidNs::first(),
            time_for_children: TimeNs::first(),
        }
    }
}

impl Task {
    pub fn ns(&self) -> Arc<NsProxy> {
        self.nsproxy.read().clone()
    }
}

impl Kernel {
    /// The namespaces of the calling task; outside of one, those of the first container. `None` before there is a container.
    pub fn current_ns(&self) -> Option<Arc<NsProxy>> {
        current::get().map(|t| t.ns()).or_else(|| self.first_ns.get().cloned())
    }
}
