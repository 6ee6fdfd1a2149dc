//! A task: one guest thread (Linux's `task_struct`), and how it waits.

use super::signal::{AltStack, Pending, SigAction, SigInfo, SigSet};
use super::wait::{WaitError, WaitQueue};
use super::{Cred, FdTable, Kernel, ThreadGroup};
use crate::abi::PollEvents;
use crate::fs::vfs::FsContext;
use crate::mm::{Mm, UserMem};
use parking_lot::{Mutex, RwLock};
use platform::Interrupter;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::Arc;
use std::task::{Poll, Waker};

/// Signal state of one thread.
#[derive(Debug, Default)]
pub struct TaskSignals {
    pub mask: SigSet,
    /// Mask to restore after the next delivery (`sigsuspend`, `ppoll`, `epoll_pwait`).
    pub saved_mask: Option<SigSet>,
    pub pending: Pending,
    pub alt: AltStack,
    /// The thread's state before the frames that the stub is about to store.
    pub before: Option<Box<Before>>,
}

/// State that a thread returns to if a signal frame cannot be stored.
#[derive(Clone, Debug)]
pub struct Before {
    pub regs: platform::Regs,
    pub mask: SigSet,
    pub saved_mask: Option<SigSet>,
    pub alt: AltStack,
    /// The frames, outermost first.
    pub frames: Vec<Delivered>,
}

/// A signal with its handler's frame on the way to guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Delivered {
    pub info: SigInfo,
    pub action: SigAction,
    pub fault: Option<platform::Fault>,
    /// Index of the first operation that stores its frame.
    pub op: usize,
}

pub struct Task {
    pub kernel: Arc<Kernel>,
    /// Thread id (global); see [`Task::tid`].
    pub id: AtomicI32,
    /// The numbers that it was made with.
    pub own_id: super::pid_ns::Pid,
    pub group: Arc<ThreadGroup>,
    pub cred: RwLock<Arc<Cred>>,
    /// Shared by `CLONE_FILES`.
    pub files: RwLock<Arc<FdTable>>,
    /// Root, working directory, umask; shared by `CLONE_FS`.
    pub fs: RwLock<Arc<Mutex<FsContext>>>,
    pub mm: RwLock<Arc<Mm>>,
    /// The namespaces that it is in.
    pub nsproxy: RwLock<Arc<super::nsproxy::NsProxy>>,
    pub signals: Mutex<TaskSignals>,
    /// `comm`, at most 15 bytes.
    pub comm: Mutex<Vec<u8>>,
    pub clear_child_tid: AtomicU64,
    pub robust_list: AtomicU64,
    /// Whether the task still owns locks that others wait for (`futex_pi.rs`).
    pub pi: super::futex_pi::Owning,
    pub rseq: Mutex<Rseq>,
    /// Deadline and arguments of a call that `restart_syscall` resumes.
    pub restart_block: Mutex<Option<RestartBlock>>,
    pub pdeathsig: AtomicI32,
    /// Set while a signal may be deliverable: the fast path reads one flag. May be set without one.
    pub signal_flag: AtomicBool,
    /// The task must exit (exit_group, exec of another thread, SIGKILL).
    pub killed: AtomicBool,
    /// Wakes the task's future.
    pub waker: Mutex<Option<Waker>>,
    /// Interrupts the running guest.
    pub interrupter: RwLock<Option<Arc<dyn Interrupter>>>,
    /// Calls that the stub answers locally.
    pub service: Mutex<Option<Arc<dyn platform::LocalAnswers>>>,
    /// Number of the current call, or -1 (for /proc/pid/stat, wchan and strace).
    pub in_call: AtomicI32,
    /// `signals.before` is set.
    pub framed: AtomicBool,
    /// True while its future waits in [`Task::wait`].
    pub sleeping: AtomicBool,
    /// True while the cgroup is frozen and the task waits for its thaw.
    pub parked: AtomicBool,
    /// A child gets [`TaskAttrs::for_child`](super::attrs::TaskAttrs::for_child).
    pub attrs: Arc<super::attrs::TaskAttrs>,
    /// vfork: completed when this child has called execve or exited.
    pub vfork_done: Mutex<Option<Arc<Completion>>>,
    /// Exit status if another thread's execve ends this thread; reported to no process.
    pub exec_kill: Mutex<Option<i32>>,
    pub start_ns: u64,
    /// Its count in the cgroup; that of a process's first thread is the process's, which outlives it.
    pub pid_charge: Option<super::cgroup::PidCharge>,
}

/// An event that happens once (Linux's `completion`).
#[derive(Default)]
pub struct Completion {
    pub done: AtomicBool,
    pub queue: WaitQueue,
}

impl Completion {
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }
    pub fn complete(&self) {
        self.done.store(true, Ordering::SeqCst);
        self.queue.wake_all();
    }
}

/// What distinguishes a new task; the rest of it begins empty.
pub struct NewTask {
    pub kernel: Arc<Kernel>,
    pub id: super::pid_ns::Pid,
    pub group: Arc<ThreadGroup>,
    pub cred: Arc<Cred>,
    pub files: Arc<FdTable>,
    pub fs: Arc<Mutex<FsContext>>,
    pub mm: Arc<Mm>,
    pub nsproxy: Arc<super::nsproxy::NsProxy>,
    pub comm: Vec<u8>,
    pub attrs: Arc<super::attrs::TaskAttrs>,
}

/// The rseq(2) area registered with the host, and the one before the last call in case the host refuses that
/// call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rseq {
    pub now: Option<RseqArea>,
    before: Option<RseqArea>,
}

#[derive(Clone, Copy, Debug)]
pub struct RseqArea {
    pub addr: u64,
    pub len: u32,
    pub signature: u32,
}

impl Rseq {
    pub fn becomes(&mut self, area: Option<RseqArea>) {
        self.before = std::mem::replace(&mut self.now, area);
    }
    pub fn refused(&mut self) {
        self.now = self.before;
    }
    /// The operation that undoes the registration.
    pub fn undo(&mut self) -> Option<platform::Op> {
        let RseqArea { addr, len, signature } = std::mem::take(self).now?;
        Some(platform::Op::Rseq { addr, len, flags: RSEQ_FLAG_UNREGISTER, signature })
    }
}

pub const RSEQ_FLAG_UNREGISTER: i32 = 1;

/// State that an interrupted sleeping call needs to continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartBlock {
    /// `nanosleep`: deadline (host monotonic ns) and the address for the remaining time.
    Nanosleep { deadline_ns: u64, clock: i32, remain: u64 },
    /// `poll`: the arguments and the deadline.
    Poll { fds: u64, nfds: u64, deadline_ns: Option<u64> },
}

impl Task {
    /// A task that is in no list yet, with no signals pending and nothing registered.
    pub fn new(t: NewTask) -> Task {
        Task {
            kernel: t.kernel,
            id: AtomicI32::new(t.id.global()),
            own_id: t.id,
            group: t.group,
            cred: RwLock::new(t.cred),
            files: RwLock::new(t.files),
            fs: RwLock::new(t.fs),
            mm: RwLock::new(t.mm),
            nsproxy: RwLock::new(t.nsproxy),
            signals: Mutex::new(TaskSignals::default()),
            comm: Mutex::new(t.comm),
            clear_child_tid: AtomicU64::new(0),
            robust_list: AtomicU64::new(0),
            pi: Default::default(),
            rseq: Default::default(),
            restart_block: Mutex::new(None),
            pdeathsig: AtomicI32::new(0),
            signal_flag: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            waker: Mutex::new(None),
            interrupter: RwLock::new(None),
            service: Mutex::new(None),
            in_call: AtomicI32::new(-1),
            framed: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            vfork_done: Mutex::new(None),
            exec_kill: Mutex::new(None),
            start_ns: platform::executor::now_ns(),
            attrs: t.attrs,
            pid_charge: None,
        }
    }

    /// Thread id. It changes at most once: a thread that execs takes over the group leader's id.
    pub fn tid(&self) -> i32 {
        self.id.load(Ordering::Relaxed)
    }
    pub fn take_over_tid(&self, pid: i32) {
        self.id.store(pid, Ordering::SeqCst);
    }
    pub fn mem(&self) -> UserMem {
        UserMem { space: self.mm.read().space() }
    }
    pub fn cred(&self) -> Arc<Cred> {
        self.cred.read().clone()
    }
    pub fn files(&self) -> Arc<FdTable> {
        self.files.read().clone()
    }
    pub fn fs(&self) -> Arc<Mutex<FsContext>> {
        self.fs.read().clone()
    }
    pub fn mm(&self) -> Arc<Mm> {
        self.mm.read().clone()
    }
    /// Whether `by` may inspect this task as a debugger could (ptrace(2), "Ptrace access mode checking").
    pub fn inspectable_by(&self, by: &Task) -> bool {
        let cred = by.cred();
        by.may_access(self, cred.uid, cred.gid)
    }
    pub fn limit(&self, which: u32) -> u64 {
        self.group.limit(which)
    }
    /// Installs an open file at the lowest free descriptor. `ENFILE`: the sandbox has too many open files.
    pub fn install_fd(&self, file: Arc<crate::fs::File>, cloexec: bool) -> crate::error::Result<i32> {
        crate::fs::file::admit(self)?;
        self.files().install(file, cloexec, 0, self.limit(libc::RLIMIT_NOFILE))
    }

    /// Makes the task check its signals soon, whether it waits or runs guest code.
    pub fn notify(&self) {
        self.signal_flag.store(true, Ordering::SeqCst);
        let waker = self.waker.lock().clone();
        if let Some(w) = waker {
            w.wake();
        }
        let i = self.interrupter.read().clone();
        if let Some(i) = i {
            i.interrupt();
        }
    }

    /// Changes the signal mask and other signal state. Signals that the task was chosen for and now blocks
    /// are offered to the other threads.
    pub fn change_mask<R>(&self, change: impl FnOnce(&mut TaskSignals) -> R) -> R {
        let (r, refused) = {
            let mut s = self.signals.lock();
            let before = s.mask;
            let r = change(&mut s);
            (r, s.mask.minus(before))
        };
        self.signal_flag.store(true, Ordering::SeqCst);
        if !refused.is_empty() {
            super::send::retarget(self, refused);
        }
        r
    }

    /// Restores the signal mask that a call has replaced temporarily.
    pub fn restore_mask(&self) {
        let saved = self.signals.lock().saved_mask.take();
        if let Some(mask) = saved {
            self.change_mask(|s| s.mask = mask);
        }
    }

    pub fn is_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    /// True if an unblocked signal is pending or the task must exit.
    pub fn signal_pending(&self) -> bool {
        if !self.signal_flag.load(Ordering::SeqCst) {
            return false;
        }
        if self.must_look() {
            return true;
        }
        // Each event that requires a new check raises the flag; one since the check above must not be lost.
        self.signal_flag.store(false, Ordering::SeqCst);
        let late = self.must_look();
        if late {
            self.signal_flag.store(true, Ordering::SeqCst);
        }
        late
    }

    fn must_look(&self) -> bool {
        if self.killed.load(Ordering::SeqCst) {
            return true;
        }
        let s = self.signals.lock();
        let blocked = s.mask;
        if !s.pending.set.minus(blocked).is_empty() {
            return true;
        }
        drop(s);
        !self.group.pending.lock().set.minus(blocked).is_empty()
            || self.group.links.lock().stopped.is_some()
            || self.group.cgroup.is_held()
    }

    /// Whether the task sleeps, for /proc: in a call of the Sentry, or in a futex call of its stub.
    pub fn asleep(&self) -> bool {
        // A task that was sent a signal counts as running from then on.
        let woken = self.signal_flag.load(Ordering::SeqCst);
        let waits =
            || self.sleeping.load(Ordering::Relaxed) || self.interrupter.read().as_ref().is_some_and(|i| i.sleeps());
        !woken && waits()
    }

    /// Whether this task may inspect another as a debugger could (`ptrace_may_access`, ptrace(2)), with the
    /// user and group id that apply: the file-system ids for /proc, the real ids for calls.
    pub fn may_access(&self, other: &Task, uid: u32, gid: u32) -> bool {
        if Arc::ptr_eq(&self.group, &other.group) {
            return true;
        }
        let (mine, its) = (self.cred(), other.cred());
        let capable = mine.capable_in(&its.user_ns, super::cred::CAP_SYS_PTRACE);
        let same = [its.uid, its.euid, its.suid].iter().all(|&u| u == uid)
            && [its.gid, its.egid, its.sgid].iter().all(|&g| g == gid)
            && mine.user_ns == its.user_ns
            && its.permitted & !mine.permitted == 0;
        let dumpable = || {
            other.group.dumpable.load(Ordering::Relaxed) == 1
                || mine.capable_in(&other.group.dump_ns.read(), super::cred::CAP_SYS_PTRACE)
        };
        (same || capable) && dumpable()
    }

    /// Waits until `cond` returns a value, a signal is pending, or the deadline (host monotonic ns) has
    /// passed. `cond` is tested after registration on all `queues` (each with its event mask), so no wake is
    /// lost.
    pub async fn wait<T>(
        &self,
        queues: &[(&WaitQueue, PollEvents)],
        deadline_ns: Option<u64>,
        mut cond: impl FnMut() -> Option<T> + Send,
    ) -> Result<T, WaitError> {
        if let Some(v) = cond() {
            return Ok(v);
        }
        let mut reg = Registrations::default();
        let register = |waker: &Waker| {
            if reg.is_empty() {
                for (q, mask) in queues {
                    reg.push(q, q.add_waker(*mask, waker.clone()));
                }
            }
        };
        self.sleep(deadline_ns, register, cond).await
    }

    /// As [`Task::wait`] on one queue, as an exclusive waiter: a wake reaches only one of them (`accept`,
    /// `epoll_wait`).
    pub async fn wait_exclusive<T>(
        &self,
        queue: &WaitQueue,
        mask: PollEvents,
        deadline_ns: Option<u64>,
        mut cond: impl FnMut() -> Option<T> + Send,
    ) -> Result<T, WaitError> {
        if let Some(v) = cond() {
            return Ok(v);
        }
        let mut reg = Exclusive { queue, mask, id: None, used: false };
        let register = |waker: &Waker| match reg.id {
            Some(id) => queue.rearm(id),
            None => reg.id = Some(queue.add_exclusive(mask, waker.clone())),
        };
        let r = self.sleep(deadline_ns, register, cond).await;
        reg.used = r.is_ok();
        r
    }

    /// Common part of the waits. `register` is called before each test of `cond`, so no wake is lost.
    async fn sleep<T>(
        &self,
        deadline_ns: Option<u64>,
        mut register: impl FnMut(&Waker) + Send,
        mut cond: impl FnMut() -> Option<T> + Send,
    ) -> Result<T, WaitError> {
        let mut timer = None;
        self.sleeping.store(true, Ordering::Relaxed);
        let r = poll_fn(|cx| {
            register(cx.waker());
            if let (None, Some(d)) = (&timer, deadline_ns) {
                timer = Some(self.kernel.executor.timer(d, cx.waker().clone()));
            }
            if let Some(v) = cond() {
                return Poll::Ready(Ok(v));
            }
            if self.signal_pending() {
                return Poll::Ready(Err(WaitError::Interrupted));
            }
            if deadline_ns.is_some_and(|d| platform::executor::now_ns() >= d) {
                return Poll::Ready(Err(WaitError::TimedOut));
            }
            self.park();
            Poll::Pending
        })
        .await;
        self.sleeping.store(false, Ordering::Relaxed);
        r
    }

    /// As [`Task::wait`], but only a kill interrupts it (vfork).
    pub async fn wait_killable<T>(
        &self,
        queue: &WaitQueue,
        mut cond: impl FnMut() -> Option<T> + Send,
    ) -> Result<T, WaitError> {
        let mut reg = Registrations::default();
        poll_fn(|cx| {
            if reg.is_empty() {
                reg.push(queue, queue.add_waker(PollEvents::all(), cx.waker().clone()));
            }
            if let Some(v) = cond() {
                return Poll::Ready(Ok(v));
            }
            if self.killed.load(Ordering::SeqCst) {
                return Poll::Ready(Err(WaitError::Interrupted));
            }
            self.park();
            Poll::Pending
        })
        .await
    }

    /// As [`Task::wait_killable`], but nothing ends it: for what process 1 of a namespace waits for before it ends.
    pub async fn wait_for_good<const N: usize>(
        &self,
        queues: [&WaitQueue; N],
        mut cond: impl FnMut() -> Option<()> + Send,
    ) {
        let mut reg = Registrations::default();
        self.sleeping.store(true, Ordering::Relaxed);
        poll_fn(|cx| {
            if reg.is_empty() {
                for q in queues {
                    reg.push(q, q.add_waker(PollEvents::all(), cx.waker().clone()));
                }
            }
            match cond() {
                Some(()) => Poll::Ready(()),
                None => Poll::Pending,
            }
        })
        .await;
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// The call waits: the host thread need not spin on its answer.
    fn park(&self) {
        if let Some(i) = &*self.interrupter.read() {
            i.park();
        }
    }

    /// Queues a signal for this thread; [`super::send::to_group`] queues process-wide signals.
    pub fn queue_signal(&self, info: SigInfo) {
        let _ = super::send::to_task(self, info);
    }

    /// Processor time of this thread (user, system; ns).
    pub fn cpu_time(&self) -> (u64, u64) {
        crate::time::cpu::task_time(self)
    }
}

/// Registrations on wait queues, removed when the wait ends. Most waits have one.
#[derive(Default)]
struct Registrations<'a> {
    first: Option<(&'a WaitQueue, u64)>,
    more: Vec<(&'a WaitQueue, u64)>,
}

impl<'a> Registrations<'a> {
    fn is_empty(&self) -> bool {
        self.first.is_none()
    }
    fn push(&mut self, q: &'a WaitQueue, id: u64) {
        if self.first.is_none() {
            self.first = Some((q, id));
        } else {
            self.more.push((q, id));
        }
    }
}

impl Drop for Registrations<'_> {
    fn drop(&mut self) {
        for (q, id) in self.first.iter().chain(&self.more) {
            q.remove(*id);
        }
    }
}

/// An exclusive registration: passes an unused wake on when the wait ends.
struct Exclusive<'a> {
    queue: &'a WaitQueue,
    mask: PollEvents,
    id: Option<u64>,
    used: bool,
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        if self.id.is_some_and(|id| self.queue.remove(id)) && !self.used {
            self.queue.wake(self.mask);
        }
    }
}
