//! Thread groups: processes (Linux's `signal_struct`) and their links to each other.

use super::cgroup::{Cgroup, PidCharge};
use super::limits::Limits;
use super::pid_ns::{Pid, PidNs};
use super::signal::{Pending, SigActions, SigSet};
use super::wait::WaitQueue;
use super::Task;
use parking_lot::{Mutex, RwLock};
use platform::executor::Turns;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Links and life cycle. Changes also need the lock `Kernel::tree`.
#[derive(Default)]
pub struct Links {
    pub parent: Weak<ThreadGroup>,
    /// The thread that made this process: for `PR_SET_PDEATHSIG` and `__WNOTHREAD`.
    pub parent_tid: i32,
    pub children: Vec<Arc<ThreadGroup>>,
    pub pgid: i32,
    pub sid: i32,
    /// Live threads. Empty: a zombie or reaped.
    pub threads: Vec<Arc<Task>>,
    /// `wait4` status; set when the last thread has exited.
    pub exit_status: Option<i32>,
    /// Status of a group exit; set once `exit_group` or a fatal signal has begun one.
    pub exiting: Option<i32>,
    /// Signal to the parent at exit (low byte of the clone flags), normally SIGCHLD.
    pub exit_signal: i32,
    /// Number of `execve` calls of this process, and of its parent at the time of the fork. If the parent has
    /// called `execve` since, the exit signal is SIGCHLD.
    pub execs: u64,
    pub parent_execs: u64,
    pub subreaper: bool,
    /// The process has called `execve` (setpgid(2) by the parent fails with EACCES).
    pub did_exec: bool,
    /// Job control: the signal that stopped the process; whether a wait has reported the stop; an unreported
    /// "continued" event.
    pub stopped: Option<i32>,
    pub stop_reported: bool,
    pub continued: bool,
    /// Accumulated times of waited-for children (user, system; ns) and of exited threads.
    pub child_utime: u64,
    pub child_stime: u64,
    pub dead_utime: u64,
    pub dead_stime: u64,
}

pub struct ThreadGroup {
    /// Its global number (see [`pid_ns`](super::pid_ns)), as are those in [`Links`].
    pub pid: i32,
    /// The same with the numbers in its namespaces.
    pub id: Pid,
    pub links: Mutex<Links>,
    pub actions: RwLock<Arc<Mutex<SigActions>>>,
    /// Signals pending for the whole process.
    pub pending: Mutex<Pending>,
    pub limits: RwLock<Limits>,
    /// Waiters in `wait*`: woken when a child changes state.
    pub child_wait: WaitQueue,
    /// Woken at this process's exit (pidfd, and the sandbox's init).
    pub exit_wait: WaitQueue,
    pub oom_score_adj: AtomicI32,
    /// Start time (host monotonic ns), for /proc.
    pub start_ns: AtomicU64,
    /// Threads of a stopped process wait here until SIGCONT.
    pub stop_wait: WaitQueue,
    /// Woken when a signal is queued: `sigwait`, signalfd.
    pub signal_wait: WaitQueue,
    /// `ITIMER_REAL` and POSIX timers (module `time`), keyed by type.
    pub timers: crate::fs::file::InodeExtra,
    /// The process has had a second thread: the times of one thread are not those of the process.
    pub threaded: AtomicBool,
    /// `PR_SET_DUMPABLE`.
    pub dumpable: AtomicI32,
    /// The user namespace in which the program was executed: `CAP_SYS_PTRACE` there is needed to look into it if it is
    /// not dumpable.
    pub dump_ns: RwLock<Arc<super::user_ns::UserNs>>,
    /// A thread is, or was, in a user namespace that is not the initial one.
    pub maps_ids: AtomicBool,
    /// Its end has begun, and the task that enforces it runs.
    pub ending: AtomicBool,
    /// Process 1 of the sandbox or of a pid namespace: no signal from inside terminates it by default
    /// (pid_namespaces(7)).
    pub init: bool,
    /// For init: signals whose default action applies because they are faults of its own or come from outside
    /// the sandbox.
    forced_fatal: AtomicU64,
    pub exec_guard: super::exec_guard::ExecGuard,
    /// The share of its tasks in the queues of ready tasks.
    pub turns: Arc<Turns>,
    /// State of a zombie that /proc still shows.
    pub remains: Mutex<Option<ZombieInfo>>,
    pub cgroup: Arc<Cgroup>,
    /// Its count in the cgroup, given back when it is reaped.
    pub pid_charge: Mutex<Option<PidCharge>>,
    on_exit: Mutex<Option<ExitHook>>,
}

/// Called once with the wait(2) status of a process.
type ExitHook = Box<dyn FnOnce(i32) + Send>;

/// State of the last thread to exit.
pub struct ZombieInfo {
    pub comm: Vec<u8>,
    pub cred: Arc<super::Cred>,
    pub attrs: Arc<super::attrs::TaskAttrs>,
}

impl ThreadGroup {
    pub fn new(id: impl Into<Pid>, actions: Arc<Mutex<SigActions>>, limits: Limits) -> Self {
        let id = id.into();
        ThreadGroup {
            pid: id.global(),
            id,
            links: Mutex::default(),
            actions: RwLock::new(actions),
            pending: Mutex::default(),
            limits: RwLock::new(limits),
            child_wait: WaitQueue::new(),
            exit_wait: WaitQueue::new(),
            stop_wait: WaitQueue::new(),
            signal_wait: WaitQueue::new(),
            oom_score_adj: AtomicI32::new(0),
            start_ns: AtomicU64::new(platform::executor::now_ns()),
            timers: Default::default(),
            turns: Arc::default(),
            threaded: AtomicBool::new(false),
            dumpable: AtomicI32::new(1),
            dump_ns: RwLock::new(super::user_ns::UserNs::first()),
            maps_ids: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            init: false,
            forced_fatal: AtomicU64::new(0),
            exec_guard: Default::default(),
            remains: Mutex::new(None),
            cgroup: Arc::default(),
            pid_charge: Mutex::new(None),
            on_exit: Mutex::new(None),
        }
    }
    /// Has `hook` called when the process has ended and its memory is gone.
    pub fn on_exit(&self, hook: impl FnOnce(i32) + Send + 'static) {
        *self.on_exit.lock() = Some(Box::new(hook));
    }
    /// Calls the hook of [`ThreadGroup::on_exit`], once.
    pub fn report_exit(&self, status: i32) {
        let hook = self.on_exit.lock().take();
        if let Some(hook) = hook {
            hook(status);
        }
    }
    /// Lets the default action of this signal apply even to init.
    pub fn force_fatal(&self, sig: i32) {
        self.forced_fatal.fetch_or(SigSet::of(sig).0, Ordering::SeqCst);
    }
    /// Clears and returns that mark; called once for each signal taken.
    pub fn take_forced_fatal(&self, sig: i32) -> bool {
        self.forced_fatal.fetch_and(!SigSet::of(sig).0, Ordering::SeqCst) & SigSet::of(sig).0 != 0
    }
    pub fn limit(&self, which: u32) -> u64 {
        self.limits.read().cur(which)
    }
    pub fn pgid(&self) -> i32 {
        self.links.lock().pgid
    }
    pub fn sid(&self) -> i32 {
        self.links.lock().sid
    }
    /// Process group and session.
    pub fn ids(&self) -> (i32, i32) {
        let r = self.links.lock();
        (r.pgid, r.sid)
    }
    /// The result of getppid(2).
    pub fn parent_pid(&self) -> i32 {
        self.parent_pid_in(&self.links.lock(), &self.id.ns())
    }
    /// The parent's number in `ns`: 1 for orphans of the initial namespace without a parent, as on a host where init
    /// adopts them; 0 if it has none there.
    pub fn parent_pid_in(&self, r: &Links, ns: &PidNs) -> i32 {
        match r.parent.upgrade() {
            Some(p) => p.id.nr_in(ns),
            None => i32::from(!self.init && ns.is_initial()),
        }
    }
    /// A live thread; the group leader if it lives.
    pub fn any_thread(&self) -> Option<Arc<Task>> {
        let r = self.links.lock();
        r.threads.iter().find(|t| t.tid() == self.pid).or(r.threads.first()).cloned()
    }
}
