//! Process groups: their members, and orphaned process groups (setpgid(2), "orphaned process group").

use super::signal::SigInfo;
use super::{send, Kernel, ThreadGroup};
use std::sync::Arc;

pub fn members(kernel: &Kernel, pgid: i32) -> Vec<Arc<ThreadGroup>> {
    kernel.tree.lock().groups.values().filter(|g| g.links.lock().pgid == pgid).cloned().collect()
}

/// True if no member has a parent in another group of the same session, which could continue it. Zombies do
/// not count.
pub fn orphaned(kernel: &Kernel, pgid: i32) -> bool {
    !members(kernel, pgid).iter().any(|g| {
        let (sid, parent) = {
            let r = g.links.lock();
            if r.exit_status.is_some() {
                return false;
            }
            (r.sid, r.parent.upgrade())
        };
        // The parent of the first process is the command outside, which the caller's shell stops and
        // continues with it.
        if g.pid == kernel.first_pid() && !kernel.options.init {
            return true;
        }
        parent.is_some_and(|p| {
            let r = p.links.lock();
            r.pgid != pgid && r.sid == sid
        })
    })
}

fn ids(group: &ThreadGroup) -> (i32, i32) {
    let r = group.links.lock();
    (r.pgid, r.sid)
}

/// `group` has lost `parent`, by its exit or by reparenting. If its process group is now orphaned and has a
/// stopped member, the whole group gets SIGHUP and SIGCONT.
pub fn lost_parent(kernel: &Kernel, group: &ThreadGroup, parent: &ThreadGroup) {
    let ((pgid, sid), (parent_pgid, parent_sid)) = (ids(group), ids(parent));
    if pgid == parent_pgid || sid != parent_sid {
        return;
    }
    if orphaned(kernel, pgid) && members(kernel, pgid).iter().any(|g| g.links.lock().stopped.is_some()) {
        let _ = send::to_pgrp(kernel, pgid, SigInfo::kernel(libc::SIGHUP));
        let _ = send::to_pgrp(kernel, pgid, SigInfo::kernel(libc::SIGCONT));
    }
}
