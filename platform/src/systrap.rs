//! Systrap: seccomp `RET_TRAP` + SIGSYS, shared-memory hand-off.
//!
//! * [`abi`]: what the Sentry and the stub agree on (`stub/abi.rs`).
//! * [`handoff`]: the state machine of the hand-off (`stub/handoff.rs`, model-checked).
//! * [`filter`]: the stubs' seccomp filter, where their harmlessness is argued.
//! * [`launch`]: the zygote's start.
//! * [`births`]: how a fork gets its descriptors.
//! * [`patience`]: how long it waits for stubs.
//! * [`strays`], [`rogues`]: processes and threads that nobody asked for.
//! * [`inflight`]: how many descriptors may wait to be taken.
//! * [`space`], [`thread`]: [`crate::AddressSpace`] and [`crate::GuestThread`].
//! * [`watched`]: shared memory and the executor's view of it.
//!
//! # Lock order
//! `Pool::state`, then `ForkBroker::pending`, then `Space::slots`, then `Watched::waker`; `Space::life` is a leaf. None is held
//! while a waker or a hook is called, but `Watched::waker` (whose wakers only queue a task).

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
use space::Space;
use thread::Thread;

/// What [`Systrap::new`] needs.
pub struct Config {
    pub executor: Arc<Executor>,
    /// How many fresh address spaces are kept ready.
    pub pool: usize,
    /// Each call of the guest's is to trap: also `sched_yield`, which the host answers by itself otherwise
    /// (but in processes that have a thread with [`crate::LocalAnswers::filtered`]).
    pub see_all: bool,
    /// Most processes and threads that the stubs and the Sentry may have together, by the host's count (`RLIMIT_NPROC`
    /// of the stubs); `None`: as many as the Sentry's own limit allows.
    pub max_host_tasks: Option<u64>,
    /// Called with a message when the sandbox cannot go on (the zygote is gone).
    pub on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

/// The host calls that the platform (executor included) makes after [`Systrap::new`], with the reason for each. Those of
/// [`crate::host`] come on top.
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
    (libc::SYS_poll, "is a birth waiting on the seccomp listener"),
    (
        libc::SYS_ioctl,
        "seccomp listener: NOTIF_RECV, NOTIF_SEND, NOTIF_ADDFD, NOTIF_ID_VALID; what a stub has not taken from its control socket",
    ),
    (libc::SYS_getrandom, "tokens of births"),
    (libc::SYS_pidfd_open, "watch a new stub"),
    (libc::SYS_pidfd_send_signal, "kill a stub"),
    (libc::SYS_wait4, "reap a stub"),
    (libc::SYS_waitid, "look for children that are no stubs"),
    (libc::SYS_tgkill, "interrupt a guest thread (SIGUSR1); whether it is one of a stub's (0)"),
    (libc::SYS_kill, "whether a number is a thread's (0)"),
    (libc::SYS_process_vm_readv, "guest memory, when it did not come through the hand-off area"),
    (libc::SYS_process_vm_writev, "the same"),
];

/// Everything that address spaces and threads share.
pub(crate) struct Inner {
    pub(crate) me: Weak<Inner>,
    pub(crate) executor: Arc<Executor>,
    fork_broker: ForkBroker,
    flights: Arc<Flights>,
    patience: patience::Patience,
    strays: strays::Strays,
    rogues: rogues::Rogues,
    on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
    zygote_pid: i32,
    vdso: Option<(u64, u64)>,
    /// The processor time after which the host may end a stub (`RLIMIT_CPU`).
    cpu_limit_ns: u64,
    fp_size: usize,
    see_all: bool,
    /// Every stub that has not been reaped.
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
    /// Until then (a time of [`now_ns`]) one is enough: the first program has just taken its own, and is spared what it may not need.
    calm_until: u64,
    /// Those who wait for a fresh address space.
    waiters: Vec<Waker>,
    /// The keeper, when it has nothing to do.
    keeper: Option<Waker>,
    /// The last try failed; told to one of the waiters.
    error: Option<Errno>,
}

/// The default platform.
pub struct Systrap {
    inner: Arc<Inner>,
}

impl Systrap {
    /// Starts the zygote and the keeper of the pool. To be called in the Sentry's process once it has its final ids and
    /// namespaces, and before its seccomp filter; on a thread that lives as long as the sandbox (stubs die with it).
    ///
    /// Errors with `Unsupported` where this platform cannot work.
    pub fn new(config: Config) -> io::Result<Arc<Systrap>> {
        let launched = launch::launch(&config.executor, !config.see_all, config.max_host_tasks)?;
        // Not before: it is inherited.
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
            zygote_pid: launched.pid,
            vdso: launched.vdso,
            cpu_limit_ns: cpu_limit_ns(),
            fp_size,
            see_all: config.see_all,
            stubs: Mutex::default(),
            pool: Mutex::new(Pool { target: config.pool.max(1), calm_until: u64::MAX, ..Pool::default() }),
            counters: Counters::default(),
        });
        fork_broker::attend(inner.me.clone(), inner.fork_broker.listener())?;
        let control = Control::new(launched.control, inner.flights.clone());
        let space = Space::pending(inner.clone(), launched.area, control, 0, 0);
        inner.register(&space, launched.pid, launch::pidfd_open(launched.pid)?);
        let mut zygote = Thread::waiting(space, 0, launched.pid, CoreSet::Anywhere, false);
        zygote.close_in_stub(launched.listener_number)?;
        let weak = inner.me.clone();
        inner.executor.spawn(Box::pin(keep_pool(weak, zygote)));
        Ok(Arc::new(Systrap { inner }))
    }
}

impl Systrap {
    /// Has stubs make the guest's private futex calls themselves, without asking the Sentry. Off at first; to be set before
    /// the first guest runs, and not changed after (a waiter here and a waker there would miss each other).
    ///
    /// The guest kernel then sees `futex` traps only for operations without `FUTEX_PRIVATE_FLAG` and for those with it that
    /// are not WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET. A wait that an [`crate::Interrupter`] cut
    /// short is reported as [`crate::Trap::Interrupted`] with `orig_rax` = the number of `futex` and the registers as they
    /// are for a `Trap::Syscall`: nothing has been done, and the kernel goes on as after a call of its own that a signal cut
    /// short (`ERESTARTSYS`). All other interrupts have `orig_rax` = -1.
    ///
    /// A thread under [`crate::LocalAnswers::filtered`] asks for these calls, too; [`Enter::Native`] then says "do it". The
    /// same switch has stubs make `sched_yield` themselves. So it is, with `told`, for some of those that come by a signal, in order
    /// that the kernel may learn which sites are worth patching.
    pub fn set_native_futex(&self, on: bool, told: bool) {
        self.inner.executor.global.set_native_futex(if told { 2 * u32::from(on) } else { on.into() });
    }
}

/// How long the first program runs before the pool is filled, unless it wants another address space.
const CALM_NS: u64 = 8_000_000;

impl Pool {
    /// How many more are to be made now, and if none because it is too early, when to ask again.
    fn wanted(&self, now: u64) -> (bool, Option<u64>) {
        if self.error.is_some() || self.ready.len() >= self.target {
            return (false, None);
        }
        match self.calm_until {
            // Nobody has taken one yet.
            u64::MAX => (self.ready.is_empty(), None),
            until => (now >= until || !self.waiters.is_empty(), Some(until)),
        }
    }
}

/// How long a fork of the zygote takes at most, as a rule, and what its child has to do after its birth call.
const FORK_NS: u64 = 250_000;
const GROWS_UP_NS: u64 = 40_000;

/// Forks the zygote as often as fresh address spaces are wanted.
async fn keep_pool(inner: Weak<Inner>, mut zygote: Thread) {
    loop {
        // Waits until there is something to do.
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
    /// Takes charge of a stub: has its death watched.
    fn register(&self, space: &Arc<Space>, pid: i32, pidfd: OwnedFd) {
        let pidfd = Arc::new(pidfd);
        self.strays.born(pid);
        self.stubs
            .lock()
            .insert(pid, Stub { space: Arc::downgrade(space), exit_state: space.exit_state.clone(), watch: None });
        space.born(pid, pidfd.clone());
        self.watch_death(pid, pidfd);
    }

    /// Ends a process that nobody wants, and sees to it that it is reaped. `false`: it cannot now.
    fn end_orphan(&self, pid: i32) -> bool {
        let Ok(pidfd) = launch::pidfd_open(pid) else { return false };
        let exit_state = space::ExitState::alive();
        // Also if it is dead by itself: nothing of the guest's was lost.
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

    /// Reaps a stub that is dead. One that was killed by somebody else takes the sandbox along, whatever the guest was about to
    /// do with it: the host is short of memory, or somebody wants an end.
    fn reap(&self, pid: i32) {
        let stub = {
            let mut stubs = self.stubs.lock();
            // Reaped under the lock: as long as a pid is in the table, nobody else can have it.
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
        // Somebody may have left strays behind.
        self.fork_broker.watch(self);
        let (stub, space, exit_state, ours) = stub;
        if ours || exit_state == 0 {
            self.counters.killed.fetch_add(1, Relaxed);
        }
        // First of all: once those who wait for it know, the sandbox may end by itself, without a word about the cause.
        if pid == self.zygote_pid {
            (self.on_fatal)(&format!(
                "the zygote (the stub that all others are made from) {}",
                space::describe(exit_state)
            ));
        } else if exit_state == libc::SIGKILL && !ours {
            (self.on_fatal)("a process of the sandbox was killed from outside (by hand, or for want of memory)");
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
                    // The second one ends the calm.
                    thread.set_background(false);
                    pool.calm_until = if pool.calm_until == u64::MAX { now_ns() + CALM_NS } else { 0 };
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
        // Ends the keeper, which holds the zygote; the pool's address spaces end with their threads.
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
