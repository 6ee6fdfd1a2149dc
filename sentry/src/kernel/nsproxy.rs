//! The namespaces that a task is in (namespaces(7)), as Linux's `nsproxy`: shared by tasks, never changed; a task that changes a
//! namespace gets another [`NsProxy`]. The user namespace is in the credentials instead.

use super::{current, Kernel, Task};
use crate::fs::vfs::MountNamespace;
use crate::ipc::IpcNamespace;
use crate::net::NetNs;
use parking_lot::RwLock;
use std::sync::Arc;

/// A UTS namespace: the `uname` names that can change.
#[derive(Debug)]
pub struct UtsNs {
    pub names: RwLock<UtsNames>,
}

#[derive(Clone, Debug)]
pub struct UtsNames {
    pub hostname: String,
    pub domainname: String,
}

impl UtsNs {
    pub fn new(hostname: String, domainname: String) -> Arc<UtsNs> {
        Arc::new(UtsNs { names: RwLock::new(UtsNames { hostname, domainname }) })
    }
}

#[derive(Clone)]
pub struct NsProxy {
    pub uts: Arc<UtsNs>,
    pub ipc: Arc<IpcNamespace>,
    pub net: Arc<NetNs>,
    pub mnt: Arc<MountNamespace>,
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
