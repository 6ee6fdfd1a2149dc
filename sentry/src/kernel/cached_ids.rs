//! Calls that stubs answer locally: their result depends only on the task and changes only when the Sentry
//! changes it. The values are in memory that the guest process can write; a forged value deceives only that
//! process.
//!
//! Off with `--strace`, which shows all calls, and for tasks with a seccomp filter, which must see all calls.
//! A change of a process's parent updates `getppid` under the lock of its `links`.

use super::process::ThreadGroup;
use super::user_ns::Id;
use super::Task;
use platform::LocalAnswers;
use std::sync::atomic::Ordering;
use std::sync::Arc;

const GETPPID: u64 = libc::SYS_getppid as u64;

/// Calls whose result depends only on credentials or ids.
const FIXED: [i64; 7] = [
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
];

impl Task {
    /// The stub that the task runs on from now on.
    pub fn set_service(&self, service: Arc<dyn LocalAnswers>) {
        *self.service.lock() = Some(service);
        self.refresh_answers();
    }

    /// Updates the stub's answers after a change of ids, credentials or filters.
    pub fn refresh_answers(&self) {
        let r = self.group.links.lock();
        let slot = self.service.lock();
        let Some(service) = slot.as_ref() else { return };
        let filtered = self.attrs.filtered.load(Ordering::SeqCst);
        service.filtered(filtered);
        if filtered || !self.kernel.options.local_answers {
            for nr in FIXED {
                service.answer(nr as u64, None);
            }
            return;
        }
        let cred = self.cred();
        // An id without a number may get one when the maps are written; one with a number keeps it.
        let ns = &cred.user_ns;
        service.answer(libc::SYS_getpid as u64, Some(self.group.id.own() as u32));
        service.answer(libc::SYS_gettid as u64, Some(self.number().own() as u32));
        service.answer(libc::SYS_getuid as u64, ns.id_out(Id::User, cred.uid));
        service.answer(libc::SYS_geteuid as u64, ns.id_out(Id::User, cred.euid));
        service.answer(libc::SYS_getgid as u64, ns.id_out(Id::Group, cred.gid));
        service.answer(libc::SYS_getegid as u64, ns.id_out(Id::Group, cred.egid));
        let parent = self.group.parent_pid_in(&r, &self.pid_ns());
        service.answer(GETPPID, Some(parent as u32));
    }
}

/// Updates the answers after a process got another parent.
pub fn parent_changed(group: &ThreadGroup) {
    let threads = group.links.lock().threads.clone();
    for t in threads {
        t.refresh_answers();
    }
}
