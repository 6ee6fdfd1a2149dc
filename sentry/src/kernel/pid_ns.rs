//! Pid namespaces (pid_namespaces(7)).

use super::ns::change::NsSet;
use super::ns::{Maker, NsCommon, NsKind};
use super::Task;
use crate::error::{Errno, Result};
use std::sync::{Arc, LazyLock};

#[derive(Debug)]
pub struct PidNs {
    pub common: NsCommon,
}

impl PidNs {
    pub fn first() -> Arc<PidNs> {
        static FIRST: LazyLock<Arc<PidNs>> = LazyLock::new(|| Arc::new(PidNs { common: NsCommon::first(NsKind::Pid) }));
        FIRST.clone()
    }
    /// The namespace that `task` has its number in.
    pub fn of(_task: &Task) -> Arc<PidNs> {
        PidNs::first()
    }
    /// Its parent, if `task` may know it; `EPERM` otherwise.
    pub fn parent_for(&self, _task: &Task) -> Result<Arc<PidNs>> {
        Err(Errno::EPERM)
    }
    /// `CLONE_NEWPID`: a namespace below this one.
    pub fn create(self: &Arc<PidNs>, _maker: &Maker) -> Result<Arc<PidNs>> {
        Err(Errno::EINVAL)
    }
}

/// `setns`: children will be in `ns`.
pub fn enter(_task: &Task, _set: &mut NsSet, _ns: &Arc<PidNs>) -> Result<()> {
    Err(Errno::EINVAL)
}
