//! Systrap: seccomp `RET_TRAP` + SIGSYS, shared-memory hand-off.
//!
//! * [`abi`]: addresses, cell layout and states shared by the Sentry and the stub (`stub/abi.rs`).
//! * [`handoff`]: the state machine of the hand-off (`stub/handoff.rs`, model-checked).
//! * [`filter`]: the stubs' seccomp filter, with the argument for its safety.
//! * [`launch`]: the zygote's start.
//! * [`fork_broker`]: how a forked stub gets its descriptors.
//! * [`patience`]: how long the Sentry waits for stubs.
//! * [`strays`], [`rogues`]: processes and threads cloned without a request.
//! * [`inflight`]: the limit of descriptors in flight; [`share`]: the part of each process.
//! * [`space`], [`thread`]: [`crate::AddressSpace`] and [`crate::GuestThread`].
//! * [`watched`]: shared memory, and the executor's record of a cell.
//!
//! # Lock order
//! `Pool::state`, then `ForkBroker::pending`, then `Space::slots`, then `Watched::waker`; `Space::life` is a leaf. No
//! lock is held while a waker or a hook is called, except `Watched::waker` (whose wakers only queue a task).

#[path = "../stub/abi.rs"]
pub(crate) mod abi;
mod filter;
mod fork_broker;
#[path = "../stub/handoff.rs"]
pub(crate) mod handoff;
mod inflight;
mod launch;
mod patience;
mod rogues;
mod share;
mod space;
mod strays;
mod thread;
pub(crate) mod watched;

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::cores::CoreSet;
use crate::executor::{now_ns, Executor, WatchHandle};
#[allow(unused_imports, reason = "for the documentation")]
use crate::Enter;
use crate::{Errno, GuestThread, Platform};
use fork_broker::ForkBroker;
use inflight::{Control, Flights};
pub use share::Lineage;
use space::Space;
use thread::Thread;

/// Arguments of [`Systrap::new`].
pub struct Config {
    pub executor: Arc<Executor>,
    /// Number of fresh address spaces kept ready.
    pub pool: usize,
    /// Every call of the guest traps, even `sched_yield`, which the host answers by itself otherwise (except in
    /// processes that have a thread with [`crate::LocalAnswers::filtered`]).
    pub see_all: bool,
    /// Most processes and threads that the stubs and the Sentry may have together, by the host's count (`RLIMIT_NPROC`
    /// of the stubs); `None`: as many as the Sentry's own limit allows.
    pub max_host_tasks: Option<u64>,
    /// Called with a message if the sandbox cannot continue (the zygote is dead).
    pub on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
    /// A stub that a process outside has killed, such as the OOM killer, costs its guest process alone. Otherwise it
    /// is fatal.
    pub survives_kills: bool,
}

/// The host calls that the platform (executor included) makes after [`Systrap::new`], with the reason for each. Those
/// of [`crate::host`] are additional.
pub const HOST_CALLS: &[(libc::c_long, &str)] = &[
    (libc::SYS_futex, "wake a stub that sleeps; locks between the Sentry's threads"),
    (libc::SYS_epoll_pwait2, "the executor sleeps"),
    (libc::SYS_epoll_ctl, "watch pidfds of stubs and host descriptors"),
    (libc::SYS_read, "doorbell eventfd"),
    (libc::SYS_write, "doorbell eventfd"),
    (libc::SYS_clock_gettime, "time (vDSO as a rule), and processor time of stubs"),
    (libc::SYS_sched_setaffinity, "which cores guests and the spinning executor run on"),
    (libc::SYS_memfd_create, "hand-off area of a new process"),
    (libc::SYS_ftruncate, "its size"),
    (libc::SYS_fcntl, "its seals (F_ADD_SEALS); F_DUPFD_CLOEXEC for a descriptor watched twice"),
    (libc::SYS_mmap, "map it (shared, never executable)"),
    (libc::SYS_munmap, "unmap it"),
    (libc::SYS_mremap, "memory allocation"),
    (libc::SYS_madvise, "memory allocation"),
    (libc::SYS_brk, "memory allocation"),
    (libc::SYS_socketpair, "control socket of a new process (AF_UNIX, SOCK_SEQPACKET)"),
    (libc::SYS_sendmsg, "hand descriptors to a stub for one round of mappings"),
    (libc::SYS_close, "all of these"),
    (libc::SYS_poll, "whether a fork handshake waits on the seccomp listener"),
    (
        libc::SYS_ioctl,
        "seccomp listener: NOTIF_RECV, NOTIF_SEND, NOTIF_ADDFD, NOTIF_ID_VALID; unread bytes of a control socket",
    ),
    (libc::SYS_getrandom, "tokens of forks"),
    (libc::SYS_pidfd_open, "watch a new stub"),
    (libc::SYS_pidfd_send_signal, "kill a stub"),
    (libc::SYS_wait4, "reap a stub"),
    (libc::SYS_waitid, "find children that are no stubs"),
    (libc::SYS_tgkill, "interrupt a guest thread (SIGUSR1); check that it belongs to a stub (0)"),
    (libc::SYS_kill, "check whether a number is a thread's (0)"),
    (libc::SYS_process_vm_readv, "guest memory, if not copied through the hand-off area"),
    (libc::SYS_process_vm_writev, "the same"),
];

/// State shared by all address spaces and threads.
pub(crate) struct Inner {
    pub(crate) me: Weak<Inner>,
    pub(crate) executor: Arc<Executor>,
    fork_broker: ForkBroker,
    flights: Arc<Flights>,
    patience: patience::Patience,
    strays: strays::Strays,
    rogues: rogues::Rogues,
    on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
    survives_kills: bool,
    zygote_pid: i32,
    vdso: Option<(u64, u64)>,
    /// The processor time after which the host may end a stub (`RLIMIT_CPU`).
    cpu_limit_ns: u64,
    fp_size: usize,
    see_all: bool,
    /// All stubs that have not been reaped.
    pub(crate) stubs: Mutex<HashMap<i32, Stub>>,
    pool: Mutex<Pool>,
    pub(crate) counters: Counters,
}

/// A stub that has not been reaped.
pub(crate) struct Stub {
    space: Weak<Space>,
    exit_state: Arc<space::ExitState>,
    watch: Option<WatchHandle>,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) syscalls: AtomicU64,
    pub(crate) patched: AtomicU64,
    pub(crate) answered: AtomicU64,
    pub(crate) native: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) interrupts: AtomicU64,
    pub(crate) forks: AtomicU64,
    pub(crate) threads: AtomicU64,
    pub(crate) rounds: AtomicU64,
    pub(crate) woken: AtomicU64,
    pub(crate) vm_reads: AtomicU64,
    pub(crate) vm_writes: AtomicU64,
    pub(crate) killed: AtomicU64,
}

#[derive(Default)]
struct Pool {
    ready: Vec<Thread>,
    target: usize,
    /// Until this time ([`now_ns`]) one fresh address space is enough: the first program has just taken its own, and
    /// may not need another.
    calm_until: u64,
    /// Tasks waiting for a fresh address space.
    waiters: Vec<Waker>,
    /// The task that refills the pool, while idle.
    keeper: Option<Waker>,
    /// Error of the last attempt, reported to one of the waiters.
    error: Option<Errno>,
}

/// The default platform.
pub struct Systrap {
    inner: Arc<Inner>,
}

impl Systrap {
    /// Starts the zygote and the task that refills the pool. Call in the Sentry's process once it has its final ids
    /// and namespaces, and before its seccomp filter; on a thread that lives as long as the sandbox, since stubs die
    /// with it.
    ///
    /// Errors with `Unsupported` where this platform cannot work.
    pub fn new(config: Config) -> io::Result<Arc<Systrap>> {
        let launched = launch::launch(&config.executor, !config.see_all, config.max_host_tasks)?;
        // After the launch: the zygote would inherit it.
        crate::cores::short_slice();
        let fp_size = launch::fp_state_size();
        let inner = Arc::new_cyclic(|me| Inner {
            me: me.clone(),
            executor: config.executor.clone(),
            fork_broker: ForkBroker::new(launched.listener),
            flights: Arc::default(),
            patience: patience::Patience::new(),
            strays: strays::Strays::default(),
            rogues: rogues::Rogues::default(),
            on_fatal: config.on_fatal,
            survives_kills: config.survives_kills,
            zygote_pid: launched.pid,
            vdso: launched.vdso,
            cpu_limit_ns: cpu_limit_ns(),
            fp_size,
            see_all: config.see_all,
            stubs: Mutex::default(),
            pool: Mutex::new(Pool { target: config.pool.max(1), calm_until: u64::MAX, ..Pool::default() }),
            counters: Counters::default(),
        });
        fork_broker::start(inner.me.clone(), inner.fork_broker.listener())?;
        let control = Control::new(launched.control, inner.flights.clone());
        let space = Space::pending(inner.clone(), launched.area, control, 0, 0);
        inner.register(&space, launched.pid, launch::pidfd_open(launched.pid)?);
        let mut zygote = Thread::waiting(space, 0, launched.pid, CoreSet::Anywhere, false);
        zygote.close_in_stub(launched.listener_number)?;
        let weak = inner.me.clone();
        inner.executor.spawn(Box::pin(refill_pool(weak, zygote)));
        Ok(Arc::new(Systrap { inner }))
    }
}

impl Systrap {
    /// Lets stubs make the guest's private futex calls themselves, without the Sentry. Initially off. Set it before
    /// the first guest runs, and never afterwards: a waiter in the stub and a waker in the Sentry would miss each
    /// other.
    ///
    /// The guest kernel then gets `futex` traps only for operations without `FUTEX_PRIVATE_FLAG`, and for those with
    /// it other than WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET. A wait cut short by an
    /// [`crate::Interrupter`] is reported as [`crate::Trap::Interrupted`] with `orig_rax` = the number of `futex` and
    /// the registers of a `Trap::Syscall`: the call had no effect, and the kernel continues as after a call of its
    /// own that a signal has cut short (`ERESTARTSYS`). All other interrupts have `orig_rax` = -1.
    ///
    /// A thread under [`crate::LocalAnswers::filtered`] traps for these calls, too; [`Enter::Native`] then makes the
    /// stub execute them. The same switch lets stubs make `sched_yield` themselves. With `reported`, some of the calls
    /// that arrive by a signal are reported in the same way, so that the kernel learns which sites are worth
    /// patching.
    pub fn set_native_futex(&self, on: bool, reported: bool) {
        self.inner.executor.global.set_native_futex(if reported { 2 * u32::from(on) } else { on.into() });
    }
}

/// How long the first program runs before the pool is filled, unless another address space is requested.
const POOL_DELAY_NS: u64 = 8_000_000;

impl Pool {
    /// Whether to make another address space now; if it is too early for that, when to check again.
    fn wanted(&self, now: u64) -> (bool, Option<u64>) {
        if self.error.is_some() || self.ready.len() >= self.target {
            return (false, None);
        }
        match self.calm_until {
            // No address space has been taken yet.
            u64::MAX => (self.ready.is_empty(), None),
            until => (now >= until || !self.waiters.is_empty(), Some(until)),
        }
    }
}

/// Usual upper bound of the zygote's fork, and of its child's work after the fork handshake.
const FORK_NS: u64 = 250_000;
const GROWS_UP_NS: u64 = 40_000;

/// Forks the zygote whenever fresh address spaces are wanted.
async fn refill_pool(inner: Weak<Inner>, mut zygote: Thread) {
    loop {
        // Waits until the pool wants one.
        let mut timer = None;
        let wanted = poll_fn(|cx| {
            let Some(inner) = inner.upgrade() else {
                return Poll::Ready(false);
            };
            let mut pool = inner.pool.lock();
            let (now, later) = pool.wanted(now_ns());
            if now {
                return Poll::Ready(true);
            }
            pool.keeper = Some(cx.waker().clone());
            drop(pool);
            timer = later.map(|at| inner.executor.timer(at, cx.waker().clone()));
            Poll::Pending
        })
        .await;
        drop(timer);
        if !wanted {
            return;
        }
        if let Some(inner) = inner.upgrade() {
            let ahead = {
                let pool = inner.pool.lock();
                pool.waiters.is_empty() && pool.calm_until != u64::MAX
            };
            zygote.set_background(ahead);
            if ahead {
                inner.executor.yield_core(FORK_NS);
            }
        }
        zygote.start_fork();
        let result = poll_fn(|cx| zygote.poll_fork_typed(cx)).await;
        let Some(inner) = inner.upgrade() else { return };
        let waiters = {
            let mut pool = inner.pool.lock();
            match result {
                Ok(thread) => pool.ready.push(*thread),
                Err(e) => {
                    log::warn!("no fresh address space: {e}");
                    pool.error = Some(e);
                }
            }
            std::mem::take(&mut pool.waiters)
        };
        for waker in waiters {
            waker.wake();
        }
    }
}

/// The host counts whole ticks where it enforces the limit, and exactly where it tells what was used: of 2 s, 1.91 have been
/// seen.
fn cpu_limit_ns() -> u64 {
    const SLACK_NS: u64 = 100_000_000;
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CPU);
    match limit {
        Ok((_, hard)) if hard != libc::RLIM_INFINITY => {
            let ns = hard.saturating_mul(1_000_000_000);
            (ns - ns / 8).saturating_sub(SLACK_NS)
        }
        _ => u64::MAX,
    }
}

impl Inner {
    /// Registers a stub and watches for its death.
    fn register(&self, space: &Arc<Space>, pid: i32, pidfd: OwnedFd) {
        let pidfd = Arc::new(pidfd);
        self.strays.add(pid);
        self.stubs
            .lock()
            .insert(pid, Stub { space: Arc::downgrade(space), exit_state: space.exit_state.clone(), watch: None });
        space.born(pid, pidfd.clone());
        self.watch_death(pid, pidfd);
    }

    /// Kills a process without an owner and has it reaped. `false`: not possible now.
    fn end_orphan(&self, pid: i32) -> bool {
        let Ok(pidfd) = launch::pidfd_open(pid) else { return false };
        let exit_state = space::ExitState::alive();
        // Set even if it is dead already: nothing of the guest's was lost.
        exit_state.ours.store(true, SeqCst);
        exit_state.kill(&pidfd);
        self.stubs.lock().insert(pid, Stub { space: Weak::new(), exit_state, watch: None });
        self.watch_death(pid, Arc::new(pidfd));
        true
    }

    fn kill_known(&self, pid: i32) {
        let space = self.stubs.lock().get(&pid).and_then(|s| s.space.upgrade());
        if let Some(space) = space {
            crate::AddressSpace::kill(&*space);
        }
    }

    fn watch_death(&self, pid: i32, pidfd: Arc<OwnedFd>) {
        let weak = self.me.clone();
        let watch = self.executor.watch(
            pidfd,
            libc::EPOLLIN as u32,
            Arc::new(move |_| {
                if let Some(inner) = weak.upgrade() {
                    inner.reap(pid);
                }
            }),
        );
        if let Some(stub) = self.stubs.lock().get_mut(&pid) {
            stub.watch = Some(watch);
        }
    }

    /// Reaps a dead stub. If a process outside has killed it, the sandbox ends, too, whatever the guest was about to
    /// do with the stub: the host is short of memory, or its user wants to end the sandbox. With
    /// [`Config::survives_kills`] only the guest process ends.
    fn reap(&self, pid: i32) {
        let stub = {
            let mut stubs = self.stubs.lock();
            // Reaped under the lock: a pid in the table cannot be reused.
            let Some(stub) = stubs.get(&pid) else { return };
            let space = stub.space.upgrade();
            let Some((signal, used_ns)) = space::wait_for(pid, space.as_deref()) else {
                return;
            };
            // It has used up the processor time that the host gives each process: the guest's own end.
            let spent = signal == libc::SIGKILL && used_ns >= self.cpu_limit_ns;
            let ours = stub.exit_state.ours.load(SeqCst) || spent;
            (stubs.remove(&pid), space, signal, ours)
        };
        // The stub may have left strays.
        self.fork_broker.watch(self);
        let (stub, space, exit_state, ours) = stub;
        if ours || exit_state == 0 {
            self.counters.killed.fetch_add(1, Relaxed);
        }
        // Before any other step: once tasks that wait for it are notified, the sandbox may exit by itself without
        // reporting the cause.
        if pid == self.zygote_pid {
            (self.on_fatal)(&format!(
                "the zygote (the stub that all others are made from) {}",
                space::describe(exit_state)
            ));
        } else if exit_state == libc::SIGKILL && !ours {
            let text = "a process of the sandbox was killed from outside (by hand, or for want of memory)";
            match self.survives_kills {
                true => log::warn!("{text}"),
                false => (self.on_fatal)(text),
            }
        }
        if let Some(space) = &space {
            space.died(exit_state);
        }
        drop(stub.and_then(|s| s.watch));
    }
}

impl Platform for Systrap {
    fn name(&self) -> &'static str {
        "systrap"
    }
    fn poll_new(&self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn GuestThread>, Errno>> {
        let (result, keeper) = {
            let mut pool = self.inner.pool.lock();
            let result = match (pool.ready.pop(), pool.error.take()) {
                (Some(thread), _) => {
                    // The second address space ends the calm.
                    thread.set_background(false);
                    pool.calm_until = if pool.calm_until == u64::MAX { now_ns() + POOL_DELAY_NS } else { 0 };
                    Poll::Ready(Ok(Box::new(thread) as Box<dyn GuestThread>))
                }
                (None, Some(e)) => Poll::Ready(Err(e)),
                (None, None) => {
                    pool.waiters.push(cx.waker().clone());
                    Poll::Pending
                }
            };
            (result, pool.keeper.take())
        };
        if let Some(keeper) = keeper {
            keeper.wake();
        }
        result
    }
    fn fp_state_size(&self) -> usize {
        self.inner.fp_size
    }
    fn stats(&self) -> Vec<(&'static str, u64)> {
        let c = &self.inner.counters;
        let e = &self.inner.executor.counters;
        [
            ("calls trapped", &c.syscalls),
            ("calls from patched sites", &c.patched),
            ("calls answered by stubs", &c.answered),
            ("calls made by stubs", &c.native),
            ("faults", &c.faults),
            ("interrupts", &c.interrupts),
            ("forks", &c.forks),
            ("threads", &c.threads),
            ("memory-op rounds", &c.rounds),
            ("process_vm_readv", &c.vm_reads),
            ("process_vm_writev", &c.vm_writes),
            ("stubs killed", &c.killed),
            ("task polls", &e.polls),
            ("posts found by looking", &e.found),
            ("looks in vain", &e.spins),
            ("sleeps", &e.sleeps),
            ("stubs woken", &c.woken),
            ("wakes", &e.wakes),
            ("handovers", &e.handovers),
            ("mode switches", &e.mode_switches),
            ("threads moved to other cores", &e.moves),
        ]
        .into_iter()
        .map(|(name, v)| (name, v.load(Relaxed)))
        .collect()
    }
}

impl Drop for Systrap {
    fn drop(&mut self) {
        // Ends the refilling task, which holds the zygote; the pool's address spaces end with their threads.
        let mut pool = self.inner.pool.lock();
        pool.target = 0;
        let ready = std::mem::take(&mut pool.ready);
        let keeper = pool.keeper.take();
        drop(pool);
        drop(ready);
        if let Some(keeper) = keeper {
            keeper.wake();
        }
    }
}
