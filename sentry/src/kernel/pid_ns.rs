//! Pid namespaces (pid_namespaces(7)): the numbers by which a task sees others.
//!
//! Inside the kernel a task, process group or session goes by its number in the initial namespace ("global number"), by
//! which [`Tree`](super::kernel::Tree) finds it. A task of a child namespace has a further number in each namespace
//! from that one up, kept in its [`Pid`]; each namespace has the table of its numbers, for what is named by a number
//! alone. Numbers are mapped where they enter or leave by a call, a structure or a file of /proc.
//!
//! The numbers of the initial namespace (level 0) are the global ones; neither its table nor its lock is used.

use super::cred::CAP_SYS_ADMIN;
use super::exit::kill_group;
use super::kernel::PID_MAX;
use super::ns::change::NsSet;
use super::ns::{Maker, NsCommon, NsKind};
use super::signal::{SigAction, SIG_IGN};
use super::user_ns::UserNs;
use super::wait::WaitQueue;
use super::{Kernel, Task, ThreadGroup};
use crate::error::{Errno, Result};
use parking_lot::Mutex;
use platform::executor::Rounds;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Weak};

/// Deepest level.
pub const MAX_LEVEL: u32 = 32;
/// Numbers below this one are not given again after a wrap.
const RESERVED: i32 = 300;

#[derive(Debug, Default)]
struct State {
    /// Global numbers by those of this namespace, and the reverse.
    global: BTreeMap<i32, i32>,
    local: BTreeMap<i32, i32>,
    last: i32,
    /// Process 1.
    init: Weak<ThreadGroup>,
    /// Process 1 has ended, or is about to: no process can be made any more.
    closed: bool,
    /// `wait4` status of process 1 after reboot(2).
    reboot: Option<i32>,
}

/// A pid namespace.
pub struct PidNs {
    pub common: NsCommon,
    level: u32,
    parent: Option<Arc<PidNs>>,
    state: Mutex<State>,
    /// Woken when one or two numbers are left.
    emptied: WaitQueue,
}

impl std::fmt::Debug for PidNs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PidNs").field("inum", &self.common.inum).field("level", &self.level).finish_non_exhaustive()
    }
}

impl PartialEq for PidNs {
    fn eq(&self, other: &PidNs) -> bool {
        std::ptr::eq(self, other)
    }
}
impl Eq for PidNs {}

impl PidNs {
    fn make(common: NsCommon, parent: Option<Arc<PidNs>>) -> Arc<PidNs> {
        let level = parent.as_ref().map_or(0, |p| p.level + 1);
        Arc::new(PidNs { common, level, parent, state: Mutex::default(), emptied: WaitQueue::new() })
    }

    /// The initial namespace.
    pub fn first() -> Arc<PidNs> {
        static FIRST: LazyLock<Arc<PidNs>> = LazyLock::new(|| PidNs::make(NsCommon::first(NsKind::Pid), None));
        FIRST.clone()
    }
    /// The namespace that `task` has its number in.
    pub fn of(task: &Task) -> Arc<PidNs> {
        task.pid_ns()
    }

    /// `CLONE_NEWPID`: a namespace below this one, in which children would be made now.
    pub fn create(self: &Arc<PidNs>, task: &Task, maker: &Maker) -> Result<Arc<PidNs>> {
        if *self != task.pid_ns() {
            return Err(Errno::EINVAL);
        }
        self.below(maker)
    }
    /// A namespace below this one, for a container that is made from outside.
    pub fn below(self: &Arc<PidNs>, maker: &Maker) -> Result<Arc<PidNs>> {
        if !self.owner().contains(&maker.owner) {
            return Err(Errno::EINVAL);
        }
        if self.level >= MAX_LEVEL {
            return Err(Errno::ENOSPC);
        }
        Ok(PidNs::make(maker.common(NsKind::Pid)?, Some(self.clone())))
    }

    pub fn is_initial(&self) -> bool {
        self.level == 0
    }
    pub fn level(&self) -> u32 {
        self.level
    }
    /// `None` for the initial namespace.
    pub fn parent(&self) -> Option<&Arc<PidNs>> {
        self.parent.as_ref()
    }
    /// Its parent, if `task` may know it; `EPERM` otherwise (`NS_GET_PARENT`).
    pub fn parent_for(&self, task: &Task) -> Result<Arc<PidNs>> {
        self.parent().filter(|p| task.pid_ns().contains(p)).cloned().ok_or(Errno::EPERM)
    }
    /// The user namespace that it belongs to.
    pub fn owner(&self) -> Arc<UserNs> {
        self.common.owner()
    }
    /// Whether `other` is this namespace or a descendant of it.
    pub fn contains(&self, other: &PidNs) -> bool {
        let mut at = other;
        while at.level() > self.level() {
            match at.parent() {
                Some(p) => at = p,
                None => return false,
            }
        }
        at == self
    }
    /// Whether it has, or had, a process 1; the initial one counts as if.
    pub fn has_init(&self) -> bool {
        self.level == 0 || self.state.lock().init.strong_count() > 0
    }
    /// Process 1 of a namespace that is not the initial one.
    pub fn init(&self) -> Option<Arc<ThreadGroup>> {
        self.state.lock().init.upgrade()
    }

    /// The global number of number `nr` of this namespace.
    pub fn global(&self, nr: i32) -> Option<i32> {
        if self.level == 0 {
            return Some(nr);
        }
        self.state.lock().global.get(&nr).copied()
    }
    /// The number here of a task, process group or session; 0 if it has none.
    pub fn nr_of(&self, global: i32) -> i32 {
        if self.level == 0 {
            return global;
        }
        self.state.lock().local.get(&global).copied().unwrap_or(0)
    }
    /// Numbers from `from` on, with their global ones. Not of the initial namespace, whose numbers `Tree` has.
    pub fn numbers(&self, from: i32) -> Vec<(i32, i32)> {
        let state = self.state.lock();
        state.global.range(from..).map(|(nr, global)| (*nr, *global)).collect()
    }
    /// The number given last (`/proc/sys/kernel/ns_last_pid`); not of the initial namespace.
    pub fn last(&self) -> i32 {
        self.state.lock().last
    }
    pub fn set_last(&self, nr: i32) {
        self.state.lock().last = nr;
    }

    /// The first process has been made: it is process 1.
    pub fn set_init(&self, group: &Arc<ThreadGroup>) {
        self.state.lock().init = Arc::downgrade(group);
    }
    /// Whether process 1 has ended: what is still being made must end at once.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }
    /// reboot(2) by a process in it: process 1 will be reported to have died of `sig`.
    pub fn reboot(&self, sig: i32) {
        let init = {
            let mut state = self.state.lock();
            state.reboot = Some(sig);
            state.init.upgrade()
        };
        if let Some(init) = init {
            kill_group(&init, libc::SIGKILL);
        }
    }
    /// How many numbers are in use.
    fn count(&self) -> usize {
        self.state.lock().global.len()
    }

    /// Takes number `want`, or a free one, for a global number.
    fn take(&self, global: i32, want: Option<i32>) -> Result<i32> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Errno::ENOMEM);
        }
        let nr = match want {
            Some(nr) if state.global.contains_key(&nr) => return Err(Errno::EEXIST),
            // The first process of a namespace is process 1.
            Some(nr) if nr != 1 && state.init.strong_count() == 0 => return Err(Errno::EINVAL),
            Some(nr) => nr,
            None => {
                let mut nr = state.last;
                loop {
                    nr = if nr >= PID_MAX - 1 { RESERVED } else { nr + 1 };
                    if !state.global.contains_key(&nr) {
                        break nr;
                    }
                }
            }
        };
        if want.is_none() {
            state.last = nr;
        }
        state.global.insert(nr, global);
        state.local.insert(global, nr);
        Ok(nr)
    }

    fn give_back(&self, global: i32) {
        let left = {
            let mut state = self.state.lock();
            if let Some(nr) = state.local.remove(&global) {
                state.global.remove(&nr);
            }
            if state.global.is_empty() && state.init.strong_count() == 0 && !state.closed {
                // The first process could not be made.
                state.last = 0;
            }
            state.global.len()
        };
        if left <= 2 {
            self.emptied.wake_all();
        }
    }
}

/// One of the numbers of a [`Pid`].
#[derive(Clone, Debug)]
struct Level {
    ns: Arc<PidNs>,
    nr: i32,
}

/// The numbers of a task or process. The default is none's.
#[derive(Clone, Debug, Default)]
pub struct Pid {
    global: i32,
    /// In the namespaces from level 1 down to its own; `None` if its own is the initial one.
    levels: Option<Arc<[Level]>>,
}

impl PartialEq for Pid {
    fn eq(&self, other: &Pid) -> bool {
        self.global == other.global
    }
}
impl Eq for Pid {}

impl From<i32> for Pid {
    fn from(global: i32) -> Self {
        Pid { global, levels: None }
    }
}

impl Pid {
    /// Takes numbers for `global` in `ns` and those above it. `want`: numbers asked for, the innermost first, without
    /// that of the initial namespace.
    pub fn take(global: i32, ns: &Arc<PidNs>, want: &[i32]) -> Result<Pid> {
        let mut levels = Vec::new();
        let mut at = ns;
        while let Some(parent) = at.parent() {
            match at.take(global, want.get(levels.len()).copied()) {
                Ok(nr) => levels.push(Level { ns: at.clone(), nr }),
                Err(e) => {
                    levels.iter().for_each(|l: &Level| l.ns.give_back(global));
                    return Err(e);
                }
            }
            at = parent;
        }
        levels.reverse();
        Ok(Pid { global, levels: (!levels.is_empty()).then(|| levels.into()) })
    }
    /// The numbers are free again.
    pub fn give_back(&self) {
        self.levels.iter().flat_map(|l| l.iter()).for_each(|l| l.ns.give_back(self.global));
    }

    pub fn global(&self) -> i32 {
        self.global
    }
    /// It has a namespace that is not the initial one.
    pub fn is_nested(&self) -> bool {
        self.levels.is_some()
    }
    /// The namespace that it was made in.
    pub fn ns(&self) -> Arc<PidNs> {
        self.innermost().map_or_else(PidNs::first, |l| l.ns.clone())
    }
    fn innermost(&self) -> Option<&Level> {
        self.levels.as_ref().and_then(|l| l.last())
    }
    /// The number that it has for itself.
    pub fn own(&self) -> i32 {
        self.innermost().map_or(self.global, |l| l.nr)
    }
    /// The number in `ns`; 0 if it has none there.
    pub fn nr_in(&self, ns: &PidNs) -> i32 {
        match ns.level().checked_sub(1) {
            None => self.global,
            Some(i) => {
                self.levels.as_ref().and_then(|l| l.get(i as usize)).filter(|l| *l.ns == *ns).map_or(0, |l| l.nr)
            }
        }
    }
    /// The namespaces in which it has a number, from that of level `from` on, with its number in each.
    pub fn numbers(&self, from: u32) -> impl Iterator<Item = (Arc<PidNs>, i32)> + '_ {
        let first = std::iter::once((PidNs::first(), self.global));
        let more = self.levels.iter().flat_map(|l| l.iter()).map(|l| (l.ns.clone(), l.nr));
        first.chain(more).skip(from as usize)
    }
}

impl Task {
    /// Its numbers as a thread.
    pub fn number(&self) -> &Pid {
        if self.tid() == self.group.pid {
            &self.group.id
        } else {
            &self.own_id
        }
    }
    /// The pid namespace that it is in (Linux's "active" one). Its children may be made in another.
    pub fn pid_ns(&self) -> Arc<PidNs> {
        self.group.id.ns()
    }
    /// The number by which this task sees a process, thread, group or session; 0: it does not see it.
    pub fn sees(&self, global: i32) -> i32 {
        if self.group.id.is_nested() {
            self.pid_ns().nr_of(global)
        } else {
            global
        }
    }
    /// As [`Task::sees`], for a process or thread at hand.
    pub fn nr_of(&self, of: &Pid) -> i32 {
        if self.group.id.is_nested() {
            of.nr_in(&self.pid_ns())
        } else {
            of.global
        }
    }
    /// The global number of what this task calls `nr`.
    pub fn global_of(&self, nr: i32) -> Option<i32> {
        if self.group.id.is_nested() {
            self.pid_ns().global(nr)
        } else {
            Some(nr)
        }
    }
    /// The thread that this task calls `nr`.
    pub fn find_task(&self, nr: i32) -> Option<Arc<Task>> {
        self.kernel.task(self.global_of(nr)?)
    }
    /// The process that this task calls `nr`.
    pub fn find_group(&self, nr: i32) -> Option<Arc<ThreadGroup>> {
        self.kernel.group(self.global_of(nr)?)
    }
}

/// Process 1 of a namespace ends (`zap_pid_ns_processes`): no process can be made there any more, all others are killed
/// and waited for, also those that a process outside has to reap. `task` is its last thread.
pub async fn end_with_init(task: &Arc<Task>) {
    let ns = task.pid_ns();
    let reboot = {
        let mut state = ns.state.lock();
        state.closed = true;
        state.reboot
    };
    if let Some(sig) = reboot {
        task.group.links.lock().exiting = Some(sig);
    }
    ignore_children(&task.group);
    kill_members(&task.kernel, &ns, &task.group);
    // Its own numbers are left: that of the process, and of this thread if it is not the leader.
    let own = if task.tid() == task.group.pid { 1 } else { 2 };
    let queues = [&ns.emptied, &task.group.child_wait];
    task.wait_for_good(queues, || {
        // Those whose exit signal is not SIGCHLD do not go by themselves.
        super::exit::reap_zombies_of(&task.kernel, &task.group);
        (ns.count() <= own).then_some(())
    })
    .await;
}

/// Children that die need no wait from now on.
fn ignore_children(group: &ThreadGroup) {
    let mut own = group.actions.read().lock().clone();
    own.set(libc::SIGCHLD, SigAction { handler: SIG_IGN, ..SigAction::default() });
    *group.actions.write() = Arc::new(Mutex::new(own));
}

fn kill_members(kernel: &Kernel, ns: &PidNs, except: &Arc<ThreadGroup>) {
    let mut rounds = Rounds::new();
    for (_, global) in ns.numbers(0) {
        rounds.next();
        if let Some(g) = kernel.group(global).filter(|g| !Arc::ptr_eq(g, except)) {
            kill_group(&g, libc::SIGKILL);
        }
    }
}

/// `setns`: children will be in `ns`, that of the task or one below it.
pub fn enter(task: &Task, set: &mut NsSet, ns: &Arc<PidNs>) -> Result<()> {
    let cred = &set.cred;
    if !cred.capable_in(&ns.owner(), CAP_SYS_ADMIN) || !cred.capable_in(&cred.user_ns, CAP_SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    if !task.pid_ns().contains(ns) {
        return Err(Errno::EINVAL);
    }
    set.proxy.pid_for_children = ns.clone();
    set.new_proxy = true;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_has_a_number_in_each_namespace_above_it() {
        let (first, maker) = (PidNs::first(), Maker { owner: UserNs::first(), uid: 77_000 });
        let a = first.below(&maker).unwrap();
        let b = a.below(&maker).unwrap();
        let in_a = Pid::take(100, &a, &[]).unwrap();
        let in_b = Pid::take(101, &b, &[]).unwrap();
        assert_eq!((in_a.own(), in_b.own(), in_b.nr_in(&a), in_b.nr_in(&first)), (1, 1, 2, 101));
        assert_eq!((in_a.nr_in(&b), a.global(2), b.global(2), a.nr_of(101)), (0, Some(101), None, 2));
        assert_eq!(in_b.numbers(1).map(|(_, nr)| nr).collect::<Vec<_>>(), [2, 1]);
        assert!(a.contains(&b) && first.contains(&b) && !b.contains(&a));
        in_b.give_back();
        assert_eq!((a.global(2), b.global(1)), (None, None));
        // A namespace whose first process could not be made begins with 1 again.
        assert_eq!(Pid::take(102, &b, &[]).unwrap().own(), 1);
        assert_eq!(Pid::take(103, &a, &[1]).unwrap_err(), Errno::EEXIST);
    }

    #[test]
    fn levels_are_bounded() {
        let maker = Maker { owner: UserNs::first(), uid: 77_001 };
        let mut at = PidNs::first();
        while let Ok(ns) = at.below(&maker) {
            at = ns;
        }
        assert_eq!(at.level(), MAX_LEVEL);
        assert_eq!(Pid::take(5, &at, &[]).unwrap().numbers(0).count(), 33);
    }
}
