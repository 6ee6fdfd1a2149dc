//! Process groups: their members, and orphaned process groups (setpgid(2), "orphaned process group").

use super::signal::SigInfo;
use super::{send, Kernel, ThreadGroup};
use platform::executor::Rounds;
use std::collections::BTreeSet;
use std::sync::Arc;

pub fn members(kernel: &Kernel, pgid: i32) -> Vec<Arc<ThreadGroup>> {
    kernel.tree.lock().members(pgid).cloned().collect()
}

/// True if no member has a parent in another group of the same session, which could continue it. Zombies do
/// not count.
pub fn orphaned(kernel: &Kernel, pgid: i32) -> bool {
    !members(kernel, pgid).iter().any(|g| connects(kernel, pgid, g))
}

/// Whether this member keeps its process group from being orphaned.
fn connects(kernel: &Kernel, pgid: i32, member: &ThreadGroup) -> bool {
    let (sid, parent) = {
        let r = member.links.lock();
        if r.exit_status.is_some() {
            return false;
        }
        (r.sid, r.parent.upgrade())
    };
    // The first process's parent is the command outside, whom the caller's shell stops and continues with it.
    if member.pid == kernel.first_pid() && !kernel.options.init {
        return true;
    }
    parent.is_some_and(|p| {
        let r = p.links.lock();
        r.pgid != pgid && r.sid == sid
    })
}

/// The process groups of these children that may be orphaned now that they have lost `parent`.
fn affected(children: &[Arc<ThreadGroup>], parent: &ThreadGroup) -> BTreeSet<i32> {
    let (parent_pgid, parent_sid) = parent.ids();
    let ids = children.iter().map(|c| c.ids());
    ids.filter(|(pgid, sid)| *pgid != parent_pgid && *sid == parent_sid).map(|(pgid, _)| pgid).collect()
}

/// These processes have lost `parent` (which has ended, or had them as its children until now): each of their process groups that is
/// orphaned by that and has a stopped member gets SIGHUP and SIGCONT.
pub fn lost_parent(kernel: &Kernel, children: &[Arc<ThreadGroup>], parent: &ThreadGroup) {
    let mut rounds = Rounds::new();
    for pgid in affected(children, parent) {
        let (mut connected, mut stopped) = (false, false);
        for g in members(kernel, pgid) {
            rounds.next();
            connected |= connects(kernel, pgid, &g);
            stopped |= g.links.lock().stopped.is_some();
        }
        if stopped && !connected {
            let _ = send::to_pgrp(kernel, pgid, SigInfo::kernel(libc::SIGHUP));
            let _ = send::to_pgrp(kernel, pgid, SigInfo::kernel(libc::SIGCONT));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_group_is_looked_at_once() {
        let process = |pid: i32, pgid: i32, sid: i32| {
            let g = ThreadGroup::new(pid, Arc::default(), Default::default());
            {
                let mut r = g.links.lock();
                (r.pgid, r.sid) = (pgid, sid);
            }
            Arc::new(g)
        };
        let parent = process(10, 10, 1);
        let mut children: Vec<_> = (100..1100).map(|pid| process(pid, 100, 1)).collect();
        children.push(process(1100, 1100, 1));
        // In its parent's group, and in another session.
        children.extend([process(1101, 10, 1), process(1102, 1102, 1102)]);
        assert_eq!(affected(&children, &parent), BTreeSet::from([100, 1100]));
    }
}
