//! The guest kernel: the process table and state that the whole sandbox shares.

use super::pid_ns::{Pid, PidNs};
use super::{Task, ThreadGroup};
use crate::error::{Errno, Result};
use parking_lot::Mutex;
use platform::{Executor, Platform};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

/// Kernel release that uname(2) reports.
pub const RELEASE: &str = "6.6.0-runsc-rs";
pub const VERSION: &str = "#1 SMP runsc-rs";

/// Highest process id, as in `/proc/sys/kernel/pid_max`.
pub const PID_MAX: i32 = 1 << 22;

/// All tasks and processes. One lock for the whole forest, like Linux's `tasklist_lock`, covers changes of
/// parents, children, groups and sessions.
#[derive(Default)]
pub struct Tree {
    pub tasks: BTreeMap<i32, Arc<Task>>,
    /// Thread groups by process id, including zombies. Changed by the methods below only, which keep the next two.
    pub groups: BTreeMap<i32, Arc<ThreadGroup>>,
    /// The same by process group and process id.
    members: BTreeMap<(i32, i32), Arc<ThreadGroup>>,
    /// How many of them each session has.
    sessions: BTreeMap<i32, usize>,
    /// Those without threads.
    pub zombies: usize,
    pub last_pid: i32,
    /// Ids reserved for tasks being created.
    reserved: std::collections::BTreeSet<i32>,
    /// Numbers of what is in a child pid namespace, while any use of the global number is left.
    nested: BTreeMap<i32, Pid>,
}

impl Tree {
    /// Reserves numbers for a task in `ns`: free ones, or those of `want` (`set_tid` of clone3(2), the innermost
    /// namespace first).
    pub fn reserve(&mut self, ns: &Arc<PidNs>, want: &[i32]) -> Result<Pid> {
        let depth = ns.level() as usize;
        let global = match want.get(depth) {
            Some(nr) if self.uses(*nr) => return Err(Errno::EEXIST),
            Some(nr) => *nr,
            None => self.alloc_pid().ok_or(Errno::EAGAIN)?,
        };
        self.reserve_as(global, ns, want)
    }

    /// As [`Tree::reserve`], with a global number that is free.
    pub fn reserve_as(&mut self, global: i32, ns: &Arc<PidNs>, want: &[i32]) -> Result<Pid> {
        let depth = ns.level() as usize;
        if ns.is_initial() {
            self.reserved.insert(global);
            return Ok(global.into());
        }
        let pid = Pid::take(global, ns, want.get(..depth).unwrap_or(want))?;
        self.reserved.insert(global);
        self.nested.insert(global, pid.clone());
        Ok(pid)
    }

    /// The task for which a number was reserved has been made, or cannot be.
    pub fn unreserve(&mut self, id: i32) {
        self.reserved.remove(&id);
        self.unused(id);
    }

    /// A task has gone, or has taken over another number.
    pub fn remove_task(&mut self, id: i32) {
        self.tasks.remove(&id);
        self.unused(id);
    }

    /// One use of a number less: after the last one its numbers in namespaces are free.
    fn unused(&mut self, id: i32) {
        if !self.nested.is_empty() && !self.uses(id) {
            if let Some(pid) = self.nested.remove(&id) {
                pid.give_back();
            }
        }
    }

    /// A process id that no task, group, process group or session uses: the next one after the last, so that the search
    /// passes numbers in use only. Each process uses three at most and each thread one.
    pub fn alloc_pid(&mut self) -> Option<i32> {
        for _ in 0..PID_MAX {
            if self.last_pid >= PID_MAX - 1 {
                self.last_pid = 299;
            }
            self.last_pid += 1;
            if !self.uses(self.last_pid) {
                return Some(self.last_pid);
            }
        }
        None
    }

    fn uses(&self, id: i32) -> bool {
        self.tasks.contains_key(&id)
            || self.groups.contains_key(&id)
            || self.members(id).next().is_some()
            || self.sessions.contains_key(&id)
            || self.reserved.contains(&id)
    }

    /// Tasks, zombies and what is being made: all that Linux counts as processes.
    pub fn count(&self) -> usize {
        self.tasks.len() + self.zombies + self.reserved.len()
    }

    /// The processes of a process group, by their ids.
    pub fn members(&self, pgid: i32) -> impl Iterator<Item = &Arc<ThreadGroup>> {
        self.members.range((pgid, i32::MIN)..=(pgid, i32::MAX)).map(|(_, g)| g)
    }

    /// A new process, which knows its process group and session.
    pub fn insert_group(&mut self, group: &Arc<ThreadGroup>) {
        let (pgid, sid) = group.ids();
        self.groups.insert(group.pid, group.clone());
        self.members.insert((pgid, group.pid), group.clone());
        *self.sessions.entry(sid).or_default() += 1;
    }

    /// A zombie goes for good.
    pub fn remove_group(&mut self, group: &ThreadGroup) {
        let (pgid, sid) = group.ids();
        // Its number may be another one's by now, if it has gone before.
        let there = self.groups.get(&group.pid).is_some_and(|g| std::ptr::eq(&**g, group));
        if there && self.groups.remove(&group.pid).is_some() {
            self.members.remove(&(pgid, group.pid));
            self.leave_session(sid);
            self.zombies = self.zombies.saturating_sub(1);
            for id in [group.pid, pgid, sid] {
                self.unused(id);
            }
        }
    }

    fn leave_session(&mut self, sid: i32) {
        if let std::collections::btree_map::Entry::Occupied(mut e) = self.sessions.entry(sid) {
            *e.get_mut() -= 1;
            if *e.get() == 0 {
                e.remove();
            }
        }
    }

    /// A process changes its process group and session.
    pub fn move_group(&mut self, group: &Arc<ThreadGroup>, pgid: i32, sid: i32) {
        let (old_pgid, old_sid) = group.ids();
        self.members.remove(&(old_pgid, group.pid));
        self.members.insert((pgid, group.pid), group.clone());
        *self.sessions.entry(sid).or_default() += 1;
        self.leave_session(old_sid);
        {
            let mut r = group.links.lock();
            (r.pgid, r.sid) = (pgid, sid);
        }
        self.unused(old_pgid);
        self.unused(old_sid);
    }
}

/// Settings passed by the command.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Upper bound of tasks, each of which is a host thread; default [`super::fork::MAX_TASKS`].
    pub max_tasks: Option<usize>,
    /// Print decoded system calls.
    pub strace: bool,
    pub debug: bool,
    /// The first process is init (pid 1), with an init's rights and duties. Otherwise it is an ordinary
    /// process, and orphans have no parent.
    pub init: bool,
    /// Count calls, for `--stats`.
    pub stats: bool,
    /// Patch call sites.
    pub patch: bool,
    /// Let stubs answer or make calls locally where they can.
    pub local_answers: bool,
}

pub struct Kernel {
    pub platform: Arc<dyn Platform>,
    pub executor: Arc<Executor>,
    pub tree: Mutex<Tree>,
    pub options: Options,
    /// Host `CLOCK_MONOTONIC` and `CLOCK_REALTIME` (ns) when the sandbox started.
    pub boot_monotonic_ns: u64,
    pub boot_realtime_ns: u64,
    next_ino: AtomicU64,
    /// Terminals.
    pub ttys: crate::fs::tty::Table,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: [u8; 16],
    /// Set when the sandbox begins to end.
    pub ending: AtomicBool,
    /// System calls made, for `--stats`.
    pub calls: AtomicU64,
    pub stats: Option<super::stats::CallStats>,
    /// Output of `--strace`.
    pub strace_out: Mutex<Box<dyn std::io::Write + Send>>,
    /// Called when job control stops the first process (`true`) and when it continues (`false`).
    pub on_first_stopped: std::sync::OnceLock<Box<dyn Fn(bool) + Send + Sync>>,
    /// Asks the command whether it is in the foreground of the host's terminal; [`Table::set_foreground`](crate::fs::tty::Table) gets the answer.
    pub ask_foreground: std::sync::OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// The namespaces of the first container.
    pub first_ns: std::sync::OnceLock<Arc<super::nsproxy::NsProxy>>,
    /// Root of the tmpfs that memfds live in.
    pub shm: std::sync::OnceLock<crate::fs::vfs::Path>,
    /// Gives tmpfs read-only descriptors of its memory.
    pub reopen: std::sync::OnceLock<Arc<crate::fs::tmpfs::Reopen>>,
    /// Waiters for record locks.
    pub lock_waits: crate::fs::lock::Waits,
    /// Sum of requests reserved by asynchronous I/O contexts (`fs.aio-nr`).
    pub aio_nr: Arc<std::sync::atomic::AtomicUsize>,
    /// Patched code mappings.
    pub texts: crate::mm::text::Texts,
    /// Numbers of unknown calls that are already logged.
    pub logged_unknown: Mutex<std::collections::BTreeSet<u64>>,
}

impl Kernel {
    pub fn new(platform: Arc<dyn Platform>, executor: Arc<Executor>, options: Options) -> Arc<Self> {
        let now = crate::fs::Timespec::now();
        let mut boot_id = [0; 16];
        platform::host::getrandom(&mut boot_id);
        // Read now: the poller of the executor is later bound to some of the processors.
        super::sched::cpus();
        let texts = crate::mm::text::Texts::new(options.patch);
        Arc::new(Kernel {
            texts,
            platform,
            executor,
            tree: Mutex::default(),
            stats: options.stats.then(Default::default),
            options,
            boot_monotonic_ns: platform::executor::now_ns(),
            boot_realtime_ns: (now.sec as u64) * 1_000_000_000 + u64::from(now.nsec),
            next_ino: AtomicU64::new(1),
            ttys: Default::default(),
            boot_id,
            ending: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            strace_out: Mutex::new(Box::new(std::io::stderr())),
            on_first_stopped: Default::default(),
            ask_foreground: Default::default(),
            first_ns: Default::default(),
            shm: Default::default(),
            reopen: Default::default(),
            lock_waits: Default::default(),
            aio_nr: Default::default(),
            logged_unknown: Mutex::default(),
        })
    }
    /// Allocates an inode number for objects without a file system (pipes, sockets, anon inodes).
    pub fn next_ino(&self) -> u64 {
        self.next_ino.fetch_add(1, Ordering::Relaxed)
    }
    /// Process id of the command, whose exit ends the sandbox.
    pub fn first_pid(&self) -> i32 {
        if self.options.init {
            1
        } else {
            2
        }
    }
    pub fn task(&self, tid: i32) -> Option<Arc<Task>> {
        self.tree.lock().tasks.get(&tid).cloned()
    }
    pub fn group(&self, pid: i32) -> Option<Arc<ThreadGroup>> {
        self.tree.lock().groups.get(&pid).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(tree: &mut Tree, pgid: i32, sid: i32) -> Arc<ThreadGroup> {
        let pid = tree.alloc_pid().unwrap();
        let group = Arc::new(ThreadGroup::new(pid, Arc::default(), Default::default()));
        {
            let mut r = group.links.lock();
            (r.pgid, r.sid) = (if pgid == 0 { pid } else { pgid }, if sid == 0 { pid } else { sid });
        }
        tree.insert_group(&group);
        group
    }

    fn pids(tree: &Tree, pgid: i32) -> Vec<i32> {
        tree.members(pgid).map(|g| g.pid).collect()
    }

    #[test]
    fn process_groups_and_sessions_are_found_by_number() {
        let mut tree = Tree::default();
        let a = process(&mut tree, 0, 0);
        let b = process(&mut tree, a.pid, a.pid);
        let c = process(&mut tree, a.pid, a.pid);
        assert_eq!(pids(&tree, a.pid), [a.pid, b.pid, c.pid]);
        tree.move_group(&b, b.pid, a.pid);
        tree.move_group(&c, c.pid, c.pid);
        assert_eq!(
            (pids(&tree, a.pid), pids(&tree, b.pid), pids(&tree, c.pid)),
            (vec![a.pid], vec![b.pid], vec![c.pid])
        );
        assert_eq!((c.pgid(), c.sid()), (c.pid, c.pid));
        assert_eq!(tree.sessions, BTreeMap::from([(a.pid, 2), (c.pid, 1)]));
        for g in [&a, &b, &c] {
            tree.remove_group(g);
        }
        assert!(tree.members.is_empty() && tree.sessions.is_empty() && tree.groups.is_empty());
    }

    #[test]
    fn a_number_in_use_as_any_id_is_not_given_again() {
        let mut tree = Tree::default();
        let leader = process(&mut tree, 0, 0);
        let member = process(&mut tree, leader.pid, leader.pid);
        tree.remove_group(&leader);
        tree.reserved.insert(5);
        let given = |tree: &mut Tree, last| {
            tree.last_pid = last;
            tree.alloc_pid().unwrap()
        };
        // Its leader is gone, its name is not.
        assert_eq!(given(&mut tree, leader.pid - 1), member.pid + 1);
        assert_eq!(given(&mut tree, 4), 6);
        assert_eq!(given(&mut tree, PID_MAX - 1), 300);
        tree.move_group(&member, member.pid, leader.pid);
        assert_eq!(given(&mut tree, leader.pid - 1), member.pid + 1);
        tree.move_group(&member, member.pid, member.pid);
        assert_eq!(given(&mut tree, leader.pid - 1), leader.pid);
    }
}
