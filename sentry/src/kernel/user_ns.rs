//! User namespaces (user_namespaces(7)).

use super::ns::change::NsSet;
use super::ns::{NsCommon, NsKind};
use super::{Cred, Task};
use crate::error::{Errno, Result};
use std::sync::{Arc, LazyLock};

#[derive(Debug)]
pub struct UserNs {
    pub common: NsCommon,
    /// The user who made it.
    owner_uid: u32,
}

impl UserNs {
    pub fn first() -> Arc<UserNs> {
        static FIRST: LazyLock<Arc<UserNs>> =
            LazyLock::new(|| Arc::new(UserNs { common: NsCommon::first(NsKind::User), owner_uid: 0 }));
        FIRST.clone()
    }
    /// Its parent, if a task with `cred` may know it; `EPERM` otherwise.
    pub fn parent_for(&self, _cred: &Cred) -> Result<Arc<UserNs>> {
        Err(Errno::EPERM)
    }
    /// Whether it is the namespace of `cred` or below it (`NS_GET_USERNS`).
    pub fn visible_to(&self, _cred: &Cred) -> bool {
        true
    }
    pub fn is_initial(&self) -> bool {
        true
    }
    /// Whether `other` is this one or below it.
    pub fn contains(&self, _other: &UserNs) -> bool {
        true
    }
    /// The owner's id as `cred` sees it.
    pub fn owner_uid_for(&self, _cred: &Cred) -> u32 {
        self.owner_uid
    }
}

impl Cred {
    pub fn user_ns(&self) -> Arc<UserNs> {
        UserNs::first()
    }
    /// Whether the capability counts for what belongs to `ns` (Linux's `ns_capable`).
    pub fn capable_in(&self, _ns: &UserNs, cap: u64) -> bool {
        self.has(cap)
    }
}

/// `CLONE_NEWUSER`: the credentials in a new user namespace.
pub fn create(_task: &Task, _cred: &Cred) -> Result<Cred> {
    Err(Errno::EINVAL)
}

/// `setns`: enters `ns`.
pub fn enter(_task: &Task, _set: &mut NsSet, _ns: &Arc<UserNs>) -> Result<()> {
    Err(Errno::EINVAL)
}
