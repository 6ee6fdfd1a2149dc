//! The guest kernel: the process table and state that the whole sandbox shares.

use super::{Task, ThreadGroup};
use parking_lot::{Mutex, RwLock};
use platform::{Executor, Platform};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

/// The `uname` names that can change.
#[derive(Clone, Debug)]
pub struct Uts {
    pub hostname: String,
    pub domainname: String,
}

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
    /// Thread groups by process id, including zombies.
    pub groups: BTreeMap<i32, Arc<ThreadGroup>>,
    pub last_pid: i32,
    /// Ids have wrapped around: old process groups and sessions may use any of them.
    wrapped: bool,
    /// Ids reserved for tasks being created.
    pub reserved: std::collections::BTreeSet<i32>,
}

impl Tree {
    /// A process id that no task, group, process group or session uses.
    pub fn alloc_pid(&mut self) -> Option<i32> {
        let mut group_ids = None;
        for _ in 0..PID_MAX {
            if self.last_pid >= PID_MAX - 1 {
                (self.last_pid, self.wrapped) = (299, true);
            }
            self.last_pid += 1;
            let pid = self.last_pid;
            if self.tasks.contains_key(&pid) || self.groups.contains_key(&pid) || self.reserved.contains(&pid) {
                continue;
            }
            if !self.wrapped || !group_ids.get_or_insert_with(|| self.group_ids()).contains(&pid) {
                return Some(pid);
            }
        }
        None
    }

    /// The ids of all process groups and sessions.
    fn group_ids(&self) -> HashSet<i32> {
        let both = |g: &Arc<ThreadGroup>| {
            let r = g.links.lock();
            [r.pgid, r.sid]
        };
        self.groups.values().flat_map(both).collect()
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
    pub uts: RwLock<Uts>,
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
    /// Sockets of the sandbox.
    pub net: Arc<crate::net::NetNs>,
    /// Called when job control stops the first process (`true`) and when it continues (`false`).
    pub on_first_stopped: std::sync::OnceLock<Box<dyn Fn(bool) + Send + Sync>>,
    /// Asks the command whether it is in the foreground of the host's terminal; [`Table::set_foreground`](crate::fs::tty::Table) gets the answer.
    pub ask_foreground: std::sync::OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// The root mount namespace of the container.
    pub mounts: RwLock<Option<Arc<crate::fs::vfs::MountNamespace>>>,
    /// Root of the tmpfs that memfds live in.
    pub shm: std::sync::OnceLock<crate::fs::vfs::Path>,
    /// Gives tmpfs read-only descriptors of its memory.
    pub reopen: std::sync::OnceLock<Arc<crate::fs::tmpfs::Reopen>>,
    /// Waiters for record locks.
    pub lock_waits: crate::fs::lock::Waits,
    /// Sum of requests reserved by asynchronous I/O contexts (`fs.aio-nr`).
    pub aio_nr: Arc<std::sync::atomic::AtomicUsize>,
    /// System V IPC.
    pub ipc: crate::ipc::IpcNamespace,
    /// Patched code mappings.
    pub texts: crate::mm::text::Texts,
    /// Numbers of unknown calls that are already logged.
    pub logged_unknown: Mutex<std::collections::BTreeSet<u64>>,
}

impl Kernel {
    pub fn new(platform: Arc<dyn Platform>, executor: Arc<Executor>, options: Options, hostname: String) -> Arc<Self> {
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
            uts: RwLock::new(Uts { hostname, domainname: "(none)".into() }),
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
            net: Arc::default(),
            on_first_stopped: Default::default(),
            ask_foreground: Default::default(),
            mounts: RwLock::new(None),
            shm: Default::default(),
            reopen: Default::default(),
            lock_waits: Default::default(),
            aio_nr: Default::default(),
            ipc: Default::default(),
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
