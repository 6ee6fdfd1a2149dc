//! A task: one guest thread (Linux's `task_struct`), and how it waits.

use super::signal::{AltStack, Pending, SigAction, SigInfo, SigSet};
use super::wait::{WaitError, WaitQueue};
use super::{Cred, FdTable, Kernel, ThreadGroup};
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
    /// Mask to put back after the next delivery (`sigsuspend`, `ppoll`, `epoll_pwait`).
    pub saved_mask: Option<SigSet>,
    pub pending: Pending,
    pub alt: AltStack,
    /// How the thread was before the frames that the stub is about to store.
    pub before: Option<Box<Before>>,
}

/// What a thread goes back to if the frame of a signal cannot be stored.
#[derive(Clone, Debug)]
pub struct Before {
    pub regs: platform::Regs,
    pub mask: SigSet,
    pub saved_mask: Option<SigSet>,
    pub alt: AltStack,
    /// The frames, the first being the outermost.
    pub frames: Vec<Delivered>,
}

/// A signal on its way to its handler.
#[derive(Clone, Copy, Debug)]
pub struct Delivered {
    pub info: SigInfo,
    pub action: SigAction,
    pub fault: Option<platform::Fault>,
    /// Number of the first of the operations that store its frame.
    pub op: usize,
}

pub struct Task {
    pub kernel: Arc<Kernel>,
    /// Thread id; see [`Task::tid`].
    pub id: AtomicI32,
    pub group: Arc<ThreadGroup>,
    pub cred: RwLock<Arc<Cred>>,
    /// Shared by `CLONE_FILES`.
    pub files: RwLock<Arc<FdTable>>,
    /// Root, working directory, umask; shared by `CLONE_FS`.
    pub fs: RwLock<Arc<Mutex<FsContext>>>,
    pub mm: RwLock<Arc<Mm>>,
    pub signals: Mutex<TaskSignals>,
    /// `comm`, at most 15 bytes.
    pub comm: Mutex<Vec<u8>>,
    pub clear_child_tid: AtomicU64,
    pub robust_list: AtomicU64,
    pub rseq: Mutex<Rseq>,
    /// Deadline etc. of a call that `restart_syscall` goes on with.
    pub restart_block: Mutex<Option<RestartBlock>>,
    pub pdeathsig: AtomicI32,
    /// Set while a signal may be deliverable, so that the fast path reads one flag. Conservative.
    pub signal_flag: AtomicBool,
    /// The task must die with its group (exit_group, exec of another thread, SIGKILL).
    pub killed: AtomicBool,
    /// Wakes the task's future.
    pub waker: Mutex<Option<Waker>>,
    /// Stops the guest when it runs.
    pub interrupter: RwLock<Option<Arc<dyn Interrupter>>>,
    /// What its stub answers by itself.
    pub service: Mutex<Option<Arc<dyn platform::LocalAnswers>>>,
    /// Number of the call that it is in, or -1 (for /proc/pid/stat, wchan and strace).
    pub in_call: AtomicI32,
    /// `signals.before` is there.
    pub framed: AtomicBool,
    /// True while its future waits in [`Task::wait`].
    pub sleeping: AtomicBool,
    /// A child starts with [`TaskAttrs::for_child`](super::attrs::TaskAttrs::for_child).
    pub attrs: Arc<super::attrs::TaskAttrs>,
    /// vfork: told when the child has exec'd or gone.
    pub vfork_done: Mutex<Option<Arc<VforkDone>>>,
    /// Set when another thread's execve ends this one: the status it ends with (nobody sees it).
    pub exec_kill: Mutex<Option<i32>>,
    pub start_ns: u64,
}

/// Where a parent in `vfork` waits.
#[derive(Default)]
pub struct VforkDone {
    pub done: AtomicBool,
    pub queue: WaitQueue,
}

impl VforkDone {
    pub fn complete(&self) {
        self.done.store(true, Ordering::SeqCst);
        self.queue.wake_all();
    }
}

/// The area that rseq(2) has registered with the host, and what was before the last call, should the host refuse that.
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
    /// What takes the registration back.
    pub fn undo(&mut self) -> Option<platform::Op> {
        let RseqArea { addr, len, signature } = std::mem::take(self).now?;
        Some(platform::Op::Rseq { addr, len, flags: RSEQ_FLAG_UNREGISTER, signature })
    }
}

pub const RSEQ_FLAG_UNREGISTER: i32 = 1;

/// What an interrupted sleeping call needs to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartBlock {
    /// `nanosleep`: deadline (host monotonic ns) and where to store the rest.
    Nanosleep { deadline_ns: u64, clock: i32, remain: u64 },
    /// `poll`: the arguments and the deadline.
    Poll { fds: u64, nfds: u64, deadline_ns: Option<u64> },
}

impl Task {
    /// Thread id. It changes once at most: when a thread other than the leader execs, it becomes the leader.
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
    /// May `by` look into this task as a debugger could (ptrace(2), "Ptrace access mode checking")?
    pub fn inspectable_by(&self, by: &Task) -> bool {
        let cred = by.cred();
        by.may_access(self, cred.uid, cred.gid)
    }
    pub fn limit(&self, which: u32) -> u64 {
        self.group.limit(which)
    }
    /// Installs an open file at the lowest free descriptor. `ENFILE` if the sandbox has too many open.
    pub fn install_fd(&self, file: Arc<crate::fs::File>, cloexec: bool) -> crate::error::Result<i32> {
        crate::fs::file::admit(self)?;
        self.files().install(file, cloexec, 0, self.limit(libc::RLIMIT_NOFILE))
    }

    /// Makes the task look at its signals soon, wherever it is: waiting, or in guest code.
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

    /// Changes the signal mask (and what else of the signal state goes with it). What the task has been chosen for, and now blocks, is offered
    /// to the other threads.
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

    /// Puts back the mask that a call has taken away for its own time, if one has.
    pub fn restore_mask(&self) {
        let saved = self.signals.lock().saved_mask.take();
        if let Some(mask) = saved {
            self.change_mask(|s| s.mask = mask);
        }
    }

    pub fn is_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    /// True if a signal that is not blocked is pending, or the task must die.
    pub fn signal_pending(&self) -> bool {
        if !self.signal_flag.load(Ordering::SeqCst) {
            return false;
        }
        if self.must_look() {
            return true;
        }
        // Whatever makes it look again raises the flag; what came since the look above must not be lost.
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
        !self.group.pending.lock().set.minus(blocked).is_empty() || self.group.links.lock().stopped.is_some()
    }

    /// Whether it sleeps, for /proc: in a call of ours, or in a futex call of its stub's.
    pub fn asleep(&self) -> bool {
        // Who has been sent a signal runs from then on, as others see it.
        let woken = self.signal_flag.load(Ordering::SeqCst);
        let waits =
            || self.sleeping.load(Ordering::Relaxed) || self.interrupter.read().as_ref().is_some_and(|i| i.sleeps());
        !woken && waits()
    }

    /// Whether this task may look into another as a debugger could (`ptrace_may_access`, ptrace(2)), with the user and group
    /// that the call goes by: those of file access for /proc, the real ones for calls.
    pub fn may_access(&self, other: &Task, uid: u32, gid: u32) -> bool {
        if Arc::ptr_eq(&self.group, &other.group) {
            return true;
        }
        let (mine, its) = (self.cred(), other.cred());
        if mine.has(super::cred::CAP_SYS_PTRACE) {
            return true;
        }
        let same = [its.uid, its.euid, its.suid].iter().all(|&u| u == uid)
            && [its.gid, its.egid, its.sgid].iter().all(|&g| g == gid);
        same && other.group.dumpable.load(Ordering::Relaxed) == 1 && its.permitted & !mine.permitted == 0
    }

    /// Waits until `cond` gives something, a signal is pending, or the deadline (host monotonic ns) has passed.
    /// `cond` is tested after registration on all `queues` (each with its event mask), so no wake is lost.
    pub async fn wait<T>(
        &self,
        queues: &[(&WaitQueue, u32)],
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

    /// As [`Task::wait`] on one queue, of whose exclusive waiters a wake reaches one (`accept`, `epoll_wait`).
    pub async fn wait_exclusive<T>(
        &self,
        queue: &WaitQueue,
        mask: u32,
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

    /// The waiting itself: `register` is called before each test of `cond`, so no wake is lost.
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

    /// As [`Task::wait`], deaf to signals other than a kill (vfork).
    pub async fn wait_killable<T>(
        &self,
        queue: &WaitQueue,
        mut cond: impl FnMut() -> Option<T> + Send,
    ) -> Result<T, WaitError> {
        let mut reg = Registrations::default();
        poll_fn(|cx| {
            if reg.is_empty() {
                reg.push(queue, queue.add_waker(u32::MAX, cx.waker().clone()));
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

    /// The call waits: the host thread need not look out for its answer.
    fn park(&self) {
        if let Some(i) = &*self.interrupter.read() {
            i.park();
        }
    }

    /// Queues a signal for this thread; process-wide ones go through [`super::send::to_group`].
    pub fn queue_signal(&self, info: SigInfo) {
        let _ = super::send::to_task(self, info);
    }

    /// Processor time of this thread (user, system; ns).
    pub fn cpu_time(&self) -> (u64, u64) {
        crate::time::cpu::task_time(self)
    }
}

/// Queue registrations that end with the wait. Most waits have one.
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

/// An exclusive registration: passes the wake on if the wait ends without having used it.
struct Exclusive<'a> {
    queue: &'a WaitQueue,
    mask: u32,
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
