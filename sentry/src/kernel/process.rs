//! Thread groups: what Linux calls a process (`signal_struct`), with its place among the others.

use super::limits::Limits;
use super::signal::{Pending, SigActions, SigSet};
use super::wait::WaitQueue;
use super::Task;
use parking_lot::{Mutex, RwLock};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Links and life cycle; changes under `Kernel::tree` as well.
#[derive(Default)]
pub struct Links {
    pub parent: Weak<ThreadGroup>,
    /// The thread that made it (for `PR_SET_PDEATHSIG`) and that `__WNOTHREAD` looks at.
    pub parent_tid: i32,
    pub children: Vec<Arc<ThreadGroup>>,
    pub pgid: i32,
    pub sid: i32,
    /// Live threads. Empty: a zombie (or gone).
    pub threads: Vec<Arc<Task>>,
    /// Set when the last thread has gone: status as `wait4` tells it.
    pub exit_status: Option<i32>,
    /// `exit_group` or a fatal signal has begun; the status everyone will end with.
    pub exiting: Option<i32>,
    /// Signal to the parent at exit (`CLONE` low byte), normally SIGCHLD.
    pub exit_signal: i32,
    /// How often it has called `execve`, and how often its parent had when it was made: another program than the one that asked
    /// for `exit_signal` gets SIGCHLD.
    pub execs: u64,
    pub parent_execs: u64,
    pub subreaper: bool,
    /// It has called `execve` (setpgid by the parent answers EACCES).
    pub did_exec: bool,
    /// Job control: stopped by this signal; whether a wait has reported it; a pending "continued" report.
    pub stopped: Option<i32>,
    pub stop_reported: bool,
    pub continued: bool,
    /// Accumulated times of waited-for children (user, system; ns) and of threads that have gone.
    pub child_utime: u64,
    pub child_stime: u64,
    pub dead_utime: u64,
    pub dead_stime: u64,
    /// Ends with the session leader's terminal: the controlling terminal, as an opaque id (0: none).
    pub tty: u64,
}

pub struct ThreadGroup {
    pub pid: i32,
    pub links: Mutex<Links>,
    pub actions: RwLock<Arc<Mutex<SigActions>>>,
    /// Signals for the whole process.
    pub pending: Mutex<Pending>,
    pub limits: RwLock<Limits>,
    /// `wait*` of this process's threads sleep here: a child changed state.
    pub child_wait: WaitQueue,
    /// Announces this process's own end (pidfd, and the sandbox's init).
    pub exit_wait: WaitQueue,
    pub oom_score_adj: AtomicI32,
    /// Host monotonic ns at the start, for /proc.
    pub start_ns: AtomicU64,
    /// Threads of a stopped process sleep here until it goes on.
    pub stop_wait: WaitQueue,
    /// A signal was queued: `sigwait`, signalfd.
    pub signal_wait: WaitQueue,
    /// `ITIMER_REAL` and POSIX timers (module `time`), keyed by type.
    pub timers: crate::fs::file::InodeExtra,
    /// It has had a second thread: what one thread has used is not what the process has used.
    pub threaded: AtomicBool,
    /// `PR_SET_DUMPABLE`.
    pub dumpable: AtomicI32,
    /// The sandbox's init: no signal from inside ends it by default (pid_namespaces(7)).
    pub init: bool,
    /// Of init: signals that end it by default, for they are faults of its own or come from outside the sandbox.
    forced_fatal: AtomicU64,
    pub exec_guard: super::exec_guard::ExecGuard,
    /// What a zombie still shows in /proc.
    pub remains: Mutex<Option<ZombieInfo>>,
}

/// Of the last thread that has gone.
pub struct ZombieInfo {
    pub comm: Vec<u8>,
    pub cred: Arc<super::Cred>,
    pub attrs: Arc<super::attrs::TaskAttrs>,
}

impl ThreadGroup {
    pub fn new(pid: i32, actions: Arc<Mutex<SigActions>>, limits: Limits) -> Self {
        ThreadGroup {
            pid,
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
            threaded: AtomicBool::new(false),
            dumpable: AtomicI32::new(1),
            init: false,
            forced_fatal: AtomicU64::new(0),
            exec_guard: Default::default(),
            remains: Mutex::new(None),
        }
    }
    /// The default action of a signal that was sent now is to be taken even if this is init.
    pub fn force_fatal(&self, sig: i32) {
        self.forced_fatal.fetch_or(SigSet::of(sig).0, Ordering::SeqCst);
    }
    /// Whether it is; asked once for each signal that is taken.
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
    /// What getppid(2) tells: for nobody's children 1, who would adopt them on a host.
    pub fn parent_pid(&self) -> i32 {
        self.parent_pid_in(&self.links.lock())
    }
    pub fn parent_pid_in(&self, r: &Links) -> i32 {
        r.parent.upgrade().map_or(i32::from(!self.init), |p| p.pid)
    }
    /// Any live thread (the leader if it lives).
    pub fn any_thread(&self) -> Option<Arc<Task>> {
        let r = self.links.lock();
        r.threads.iter().find(|t| t.tid() == self.pid).or(r.threads.first()).cloned()
    }
}
