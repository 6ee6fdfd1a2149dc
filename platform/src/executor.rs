//! Runs the guest kernel's futures and waits for whatever comes next: a trap of a guest thread, a timer, a host
//! descriptor, the death of a stub.
//!
//! # Poller and standbys
//! Any number of threads may be inside [`Executor::run`]. One of them, the poller, runs ready tasks, looks at the
//! hand-off cells of running guests, and sleeps in `epoll_wait`. The others wait until the poller hands over
//! ([`Executor::block_in_place`]). In a mode in which the poller sleeps between calls, a thread of each core does the same
//! work for the guests there (`workers.rs`). One of all of these is at work at a time.
//!
//! # Sleeping without losing a wake-up
//! Who is at work leaves it, says "not polling" (in the page that all stubs read, and the poller in `asleep` for the Sentry's own
//! threads), then looks at every cell and queue once more, then sleeps. A poster first posts, then reads the flag and rings a doorbell if
//! it is clear. Both sides have a full barrier in between, so one of them sees the other. Who is woken while another one is at work
//! sleeps again: that one will look once more.
//!
//! When it sleeps at all, and on which cores everyone runs, is decided in `policy.rs`.
//!
//! # Lock order
//! `policy` before `active` before a `Watched::waker`; `ready`, `timers`, `watches` are leaves. No lock is held while a task or a callback runs.

use std::cell::Cell as StdCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{fence, AtomicBool, AtomicU32, AtomicU64, AtomicU8, AtomicUsize, Ordering::*};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::{Condvar, Mutex};

use crate::cores::{self, CoreSet, Cores, Pinned};
use crate::policy::{HandOff, Next, Scan, SchedMode, SchedPolicy};
use crate::systrap::abi::{state::WAITING, DOORBELLS};
use crate::systrap::handoff::{self, is_posted};
use crate::systrap::watched::{GlobalPage, Watched};
use task::{Ready, Task, DONE, IDLE, QUEUED, RUNNING};
use workers::Workers;

mod long;
mod placing;
mod reactor;
mod task;
mod watch;
mod workers;

pub use long::{aside, ask_room, drop_aside, may_ask, spawn_here, was_refused, NoRoom, Rounds};
pub use reactor::{TimerHandle, WatchHandle};
pub use task::Turns;

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See [`Executor::later`].
pub(crate) type Job = Box<dyn FnOnce() + Send>;

type OnReady = Arc<dyn Fn(u32) + Send + Sync>;

#[derive(Default)]
struct PollerSlot {
    held: bool,
    waiting: usize,
}

/// Counters for `--stats`.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) polls: AtomicU64,
    pub(crate) found: AtomicU64,
    pub(crate) spins: AtomicU64,
    pub(crate) sleeps: AtomicU64,
    pub(crate) wakes: AtomicU64,
    pub(crate) handovers: AtomicU64,
    pub(crate) mode_switches: AtomicU64,
    pub(crate) moves: AtomicU64,
}

/// One per Sentry.
pub struct Executor {
    me: Weak<Executor>,
    ready: Mutex<Ready>,
    /// Mirrors `ready.len()`, to be looked at without the lock.
    ready_len: AtomicUsize,
    active: Mutex<Vec<Arc<Watched>>>,
    timers: Mutex<BTreeMap<(u64, u64), Waker>>,
    /// Deadline of the first timer, `u64::MAX` if none.
    next_deadline: AtomicU64,
    watches: Mutex<HashMap<u64, OnReady>>,
    next_id: AtomicU64,
    epoll: Epoll,
    doorbell: Arc<EventFd>,
    pub(crate) global: Arc<GlobalPage>,
    /// The poller is in `epoll_wait` or about to be.
    asleep: AtomicBool,
    /// Not 0: a thread runs tasks and looks at the cells.
    at_work: AtomicU32,
    workers: Workers,
    poller: Mutex<PollerSlot>,
    poller_free: Condvar,
    /// Threads that were started when all others were busy.
    standbys: AtomicUsize,
    /// How many threads do what takes long without waiting ([`Executor::calm`]).
    computing: AtomicUsize,
    watch: watch::Watch,
    exit: AtomicBool,
    exit_code: AtomicU32,
    cores: Cores,
    policy: Mutex<SchedPolicy>,
    /// Guests are to leave the poller's core to it ([`SchedMode::narrow`]).
    narrow: AtomicBool,
    /// What is to be done when there is nothing better to do.
    later: Mutex<VecDeque<Job>>,
    /// Guests that ran at the last look.
    running: AtomicUsize,
    /// Until then a thread that was told to end may wake another one.
    ending: AtomicU64,
    /// Until then the poller's core is lent ([`Executor::yield_core`]).
    yielded_until: AtomicU64,
    /// When [`Executor::rebalance`] may move a guest again.
    rebalance_at: AtomicU64,
    /// Those that it has moved, and that the host may not move meanwhile; some may have ended.
    migrated: Mutex<Vec<Weak<Watched>>>,
    hand_off: HandOff,
    pub(crate) counters: Counters,
}

thread_local! {
    /// This thread is at work: it will look at the queues before it sleeps, and need not be rung.
    static AT_WORK: StdCell<bool> = const { StdCell::new(false) };
    /// It is the worker of cores with this number.
    static WORKER: StdCell<Option<u32>> = const { StdCell::new(None) };
    /// It wakes the tasks of cells that have been posted.
    static SCANS: StdCell<bool> = const { StdCell::new(false) };
    /// How often the poller may still wait in [`Executor::spin_on`] before it looks around.
    static SPIN_ONS_LEFT: StdCell<u32> = const { StdCell::new(0) };
    /// Calls found there since then.
    static SPIN_ON_FOUND: StdCell<usize> = const { StdCell::new(0) };
    /// The poller spins, and only the guest whose task it runs is about.
    static ALONE: StdCell<bool> = const { StdCell::new(false) };
    /// When the poller is to ask epoll and the timers again.
    static NEXT_POLL_AT: StdCell<u64> = const { StdCell::new(0) };
}

/// `data` of the doorbell in the epoll set; ids of watches start above.
const DOORBELL: u64 = 0;
/// How often a spinning poller asks epoll.
const POLL_INTERVAL_NS: u64 = 25_000;
/// How long a thread takes to end.
const ENDING_NS: u64 = 20_000;
/// How often a stub looks for its answer, while somebody looks at its cell.
const STUB_SPINS: u32 = 1000;
/// Calls of one guest that the poller answers without looking around, and how often it looks for the next one.
const MAX_SPIN_ONS: u32 = 32;
const SPIN_ON_POLLS: u32 = 60;
/// How long no call may come until the host may move them again.
const MIGRATED_NS: i64 = 10_000_000;
/// Most threads that are started to lead while others are busy.
const STANDBY_THREADS: usize = 6;
/// How long [`Executor::settle`] waits.
const SETTLES_NS: u64 = 200_000_000;
/// How often the poller looks around while a doorbell may ring unheard.
const DEAF_SCAN_NS: i64 = 1_000_000;
/// Most timers that fire before somebody else is looked after.
const FIRED_AT_ONCE: usize = 64;
/// Most jobs that wait for a quiet moment.
const JOBS: usize = 64;

impl Executor {
    /// `workers`: so many threads that answer guests beside the poller are started at once, and guests wake any of them, as if
    /// there were so many cores; for tests.
    pub fn new(hand_off: HandOff, workers: Option<u32>) -> io::Result<Arc<Self>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let doorbell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&doorbell, EpollEvent::new(EpollFlags::EPOLLIN, DOORBELL))?;
        let global = Arc::new(GlobalPage::new()?);
        let cores = Cores::new();
        let policy = SchedPolicy::new(hand_off, cores.count(), now_ns());
        global.set_spin(match hand_off {
            HandOff::Spin => STUB_SPINS,
            HandOff::Adaptive if cores.count() > 1 => STUB_SPINS,
            _ => 0,
        });
        let narrow = policy.mode().narrow();
        let workers = workers.map(|n| n.clamp(1, DOORBELLS));
        let core_workers = Workers::new(&cores, workers)?;
        global.set_any_doorbell(workers.unwrap_or(0));
        let executor = Arc::new_cyclic(|me| Executor {
            me: me.clone(),
            ready: Mutex::default(),
            ready_len: AtomicUsize::new(0),
            active: Mutex::default(),
            timers: Mutex::default(),
            next_deadline: AtomicU64::new(u64::MAX),
            watches: Mutex::default(),
            next_id: AtomicU64::new(DOORBELL + 1),
            epoll,
            doorbell: Arc::new(doorbell),
            global,
            asleep: AtomicBool::new(false),
            at_work: AtomicU32::new(0),
            workers: core_workers,
            poller: Mutex::default(),
            poller_free: Condvar::new(),
            standbys: AtomicUsize::new(0),
            computing: AtomicUsize::new(0),
            watch: Executor::unwatched(),
            exit: AtomicBool::new(false),
            exit_code: AtomicU32::new(0),
            cores,
            policy: Mutex::new(policy),
            narrow: AtomicBool::new(narrow),
            later: Mutex::default(),
            running: AtomicUsize::new(0),
            ending: AtomicU64::new(0),
            yielded_until: AtomicU64::new(0),
            rebalance_at: AtomicU64::new(0),
            migrated: Mutex::default(),
            hand_off,
            counters: Counters::default(),
        });
        if let Some(n) = workers {
            executor.start_workers_for((1 << n) - 1);
        }
        Ok(executor)
    }

    pub(crate) fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    /// Starts a future; it is polled soon, by a thread inside [`Executor::run`].
    pub fn spawn(&self, future: BoxFuture) {
        self.spawn_of(None, future);
    }

    /// As `spawn`; those with the same `turns` have one turn together where there are others.
    pub fn spawn_of(&self, turns: Option<Arc<Turns>>, future: BoxFuture) {
        let task = Arc::new(Task {
            future: Mutex::new(Some(future)),
            turns,
            state: AtomicU8::new(QUEUED),
            executor: self.me.clone(),
        });
        self.push(task);
    }

    /// Polls, spins and sleeps until [`Executor::shutdown`]; returns the code given there.
    pub fn run(&self) -> i32 {
        self.here();
        loop {
            if self.exit.load(Acquire) || !self.take_polling() {
                return self.exit_code.load(Acquire) as i32;
            }
            let handed_over = self.poll_cells();
            if !handed_over {
                self.give_polling();
            }
        }
    }

    pub fn shutdown(&self, code: i32) {
        if !self.exit.load(Acquire) {
            self.exit_code.store(code as u32, Release);
            self.exit.store(true, SeqCst);
        }
        self.wake_poller();
        self.workers.notify_all();
        self.end_watchdog();
        let _slot = self.poller.lock();
        self.poller_free.notify_all();
    }

    /// After [`Executor::run`]: waits until the thread that is still at work, perhaps in the task that ended all, has left it; for a
    /// moment at most.
    pub fn settle(&self) {
        let deadline = now_ns() + SETTLES_NS;
        while self.at_work.load(Acquire) != 0 && now_ns() < deadline {
            std::thread::yield_now();
        }
    }

    /// Runs `f`, which may block in the host for long (cold file, slow device); another thread takes over the polling.
    pub fn block_in_place<R>(&self, f: impl FnOnce() -> R) -> R {
        if AT_WORK.get() {
            if let Some(which) = WORKER.get() {
                return self.deaf_worker(which, f);
            }
            if self.poller.lock().waiting == 0 {
                self.start_standby();
            }
            // If no thread is free, the first one to be leads.
            self.counters.handovers.fetch_add(1, Relaxed);
            self.give_polling();
        }
        f()
    }

    /// All threads that could lead are busy: there is one more now, unless there are enough.
    fn start_standby(&self) {
        let Some(executor) = self.me.upgrade() else { return };
        if self.standbys.fetch_update(Relaxed, Relaxed, |n| (n < STANDBY_THREADS).then_some(n + 1)).is_err() {
            return;
        }
        let started = std::thread::Builder::new().name("executor".into()).spawn(move || executor.run());
        if let Err(e) = started {
            self.standbys.fetch_sub(1, Relaxed);
            log::warn!("no further thread of the executor: {e}");
        }
    }

    /// The poller stays with the one guest that runs, whose call it has just answered: whether the next one has come soon. In a
    /// guest that makes one call after the other each is then found by a load and answered without a turn of the executor.
    pub(crate) fn spin_on(&self, watched: &Watched) -> bool {
        let left = SPIN_ONS_LEFT.get();
        if left == 0 || !AT_WORK.get() {
            return false;
        }
        // Slow calls must not keep it from timers and events: the clock is asked now and then.
        if left & 3 == 0 && now_ns() >= NEXT_POLL_AT.get() {
            SPIN_ONS_LEFT.set(0);
            return false;
        }
        for _ in 0..SPIN_ON_POLLS {
            if watched.posted() {
                SPIN_ONS_LEFT.set(left - 1);
                SPIN_ON_FOUND.set(SPIN_ON_FOUND.get() + 1);
                // Written by pollers only.
                self.counters.found.store(self.counters.found.load(Relaxed) + 1, Relaxed);
                return true;
            }
            if self.ready_len.load(Relaxed) > 0 {
                break;
            }
            std::hint::spin_loop();
        }
        SPIN_ONS_LEFT.set(0);
        false
    }

    /// Whether the guest whose task runs here is the only one, and both it and this thread have a core: then a round
    /// through its cell costs less than a microsecond.
    pub(crate) fn alone(&self) -> bool {
        AT_WORK.get() && ALONE.get()
    }

    /// Has the cell looked at; when something is posted there, `watched`'s waker is called once.
    pub(crate) fn arm(&self, watched: &Arc<Watched>) {
        watched.armed.store(true, SeqCst);
        if !watched.listed.load(SeqCst) {
            let mut active = self.active.lock();
            if !watched.listed.swap(true, SeqCst) {
                active.push(watched.clone());
            }
        }
        if !AT_WORK.get() {
            // Who is at work may have counted its running guests without this one.
            self.wake_if_missed(watched);
        }
    }

    /// Armed from a thread that is not at work, while the poller sleeps: the stub saw "not polling" or will, and rings, unless
    /// it posted before; so look here.
    fn wake_if_missed(&self, watched: &Watched) {
        if watched.posted() {
            self.wake_if_asleep();
        }
    }

    fn push(&self, task: Arc<Task>) {
        let mut ready = self.ready.lock();
        ready.push(task, SCANS.get());
        self.ready_len.store(ready.len(), SeqCst);
        drop(ready);
        if !AT_WORK.get() {
            self.wake_if_asleep();
        }
    }

    fn wake_if_asleep(&self) {
        fence(SeqCst);
        if self.asleep.load(SeqCst) && self.asleep.swap(false, SeqCst) {
            self.wake_poller();
        }
    }

    fn wake_poller(&self) {
        self.counters.wakes.fetch_add(1, Relaxed);
        // Full means rung already.
        let _ = self.doorbell.write(1);
    }

    fn take_polling(&self) -> bool {
        let mut slot = self.poller.lock();
        while slot.held {
            if self.exit.load(Acquire) {
                return false;
            }
            slot.waiting += 1;
            self.poller_free.wait(&mut slot);
            slot.waiting -= 1;
        }
        slot.held = true;
        true
    }

    fn give_polling(&self) {
        self.cores.go(CoreSet::Anywhere);
        if AT_WORK.replace(false) {
            self.at_work.swap(0, SeqCst);
        }
        self.poller.lock().held = false;
        self.poller_free.notify_one();
    }

    fn acquire(&self) -> bool {
        let mine = handoff::acquire(&self.at_work, self.global.polling());
        AT_WORK.set(mine);
        mine
    }

    /// Leads until shutdown, or until a task handed the polling over; tells whether one did.
    fn poll_cells(&self) -> bool {
        let mut mode = self.policy.lock().mode();
        if self.narrow.load(Relaxed) == mode.narrow() {
            self.enter_mode(mode);
        } else {
            // A worker has seen the change.
            self.switch_mode(mode);
        }
        if !self.acquire() {
            self.sleep();
        }
        let mut next_poll_at = now_ns() + POLL_INTERVAL_NS;
        let mut spin_ons = 0;
        ALONE.set(false);
        loop {
            if self.exit.load(Relaxed) {
                return false;
            }
            SPIN_ONS_LEFT.set(spin_ons);
            SPIN_ON_FOUND.set(0);
            NEXT_POLL_AT.set(next_poll_at);
            let ran = self.run_ready();
            if !AT_WORK.get() {
                return true;
            }
            let mut scan = self.scan();
            let alone = mode == SchedMode::Spin && scan.found + scan.running == 1;
            ALONE.set(alone);
            spin_ons = if alone { MAX_SPIN_ONS } else { 0 };
            scan.ran = ran;
            scan.found += SPIN_ON_FOUND.get();
            let now = now_ns();
            if scan.running == 0 && scan.waiting > 0 && now < self.ending.load(Relaxed) {
                scan.running = 1;
            }
            if now >= next_poll_at {
                self.events(0);
                self.fire_timers();
                next_poll_at = now + POLL_INTERVAL_NS;
            }
            let (next, new_mode) = {
                let mut policy = self.policy.lock();
                (policy.observe(now, scan), policy.mode())
            };
            if new_mode != mode {
                mode = new_mode;
                self.switch_mode(mode);
            }
            if ran || scan.found > 0 || self.ready_len.load(Acquire) > 0 {
                continue;
            }
            let deadline = self.next_deadline.load(Relaxed);
            if now >= deadline {
                self.fire_timers();
                continue;
            }
            let job = self.later.lock().pop_front();
            if let Some(job) = job {
                job();
                continue;
            }
            if next == Next::Again && now >= self.yielded_until.load(Relaxed) {
                // Written by pollers only, who are one at a time.
                let spins = self.counters.spins.load(Relaxed);
                self.counters.spins.store(spins + 1, Relaxed);
                for _ in 0..8 {
                    std::hint::spin_loop();
                }
                continue;
            }
            self.sleep();
            let now = now_ns();
            self.policy.lock().woke(now);
            next_poll_at = now + POLL_INTERVAL_NS;
        }
    }

    /// A thread ends whose end the host tells to another one, which then runs without the Sentry's doing.
    pub(crate) fn ending(&self) {
        self.ending.store(now_ns() + ENDING_NS, Relaxed);
    }

    /// Whether a stub whose call waits should give its core away at once, rather than spin for a while: it should, unless
    /// there are cores enough for all who run and the poller.
    pub(crate) fn parks(&self) -> bool {
        match self.hand_off {
            HandOff::Adaptive | HandOff::Spin => self.running.load(Relaxed) + 2 >= self.cores.count(),
            HandOff::Sleep => true,
        }
    }

    /// Does something small that nobody waits for, once nothing else is to be done.
    pub(crate) fn later(&self, job: Job) {
        let mut later = self.later.lock();
        if later.len() >= JOBS {
            drop(later);
            return job();
        }
        later.push_back(job);
        drop(later);
        if !AT_WORK.get() {
            self.wake_if_asleep();
        }
    }

    /// Does something small in so many nanoseconds.
    pub(crate) fn after(&self, ns: u64, job: Job) {
        let (me, deadline, mut job) = (self.me.clone(), now_ns() + ns, Some(job));
        let mut timer = None;
        self.spawn(Box::pin(std::future::poll_fn(move |cx| {
            let Some(executor) = me.upgrade().filter(|_| now_ns() < deadline) else {
                drop(timer.take());
                if let Some(job) = job.take() {
                    job();
                }
                return Poll::Ready(());
            };
            timer = Some(executor.timer(deadline, cx.waker().clone()));
            Poll::Pending
        })));
    }

    fn run_ready(&self) -> bool {
        let mut ran = false;
        // Bounded, so that tasks that keep waking each other do not hide the cells.
        for _ in 0..32 {
            if self.ready_len.load(Acquire) == 0 {
                break;
            }
            let task = {
                let mut ready = self.ready.lock();
                let task = ready.pop();
                self.ready_len.store(ready.len(), SeqCst);
                task
            };
            let Some(task) = task else { break };
            ran = true;
            // One that lets others go first is not polled again before it is known who they are.
            let again = self.poll(task);
            if again || !AT_WORK.get() {
                break;
            }
        }
        ran
    }

    /// Tells whether it was woken meanwhile, and is ready again.
    fn poll(&self, task: Arc<Task>) -> bool {
        self.counters.polls.fetch_add(1, Relaxed);
        task.state.store(RUNNING, SeqCst);
        let waker = Waker::from(task.clone());
        let mut slot = task.future.lock();
        let Some(future) = slot.as_mut() else { return false };
        self.fresh();
        self.polls(true);
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        self.polls(false);
        self.fresh();
        match polled {
            Poll::Ready(()) => {
                let done = slot.take();
                task.state.store(DONE, Release);
                drop(slot);
                drop(done);
                false
            }
            Poll::Pending => {
                drop(slot);
                let again = task.state.compare_exchange(RUNNING, IDLE, AcqRel, Relaxed).is_err();
                if again {
                    task.state.store(QUEUED, Release);
                    self.push(task);
                }
                again
            }
        }
    }

    /// Wakes the tasks of cells that have been posted.
    fn scan(&self) -> Scan {
        let mut active = self.active.lock();
        let mut scan = Scan::default();
        let narrow = self.narrow.load(Relaxed);
        let mut cores = 0;
        let mut i = 0;
        while i < active.len() {
            let w = &active[i];
            if w.armed.load(Relaxed) {
                let state = w.state();
                if is_posted(state) {
                    w.armed.store(false, SeqCst);
                    scan.found += 1;
                    if !narrow {
                        cores |= 1 << (w.core() % DOORBELLS);
                    }
                    if let Some(waker) = w.waker.lock().as_ref() {
                        SCANS.set(true);
                        waker.wake_by_ref();
                        SCANS.set(false);
                    }
                } else if state == WAITING {
                    scan.waiting += 1;
                } else {
                    scan.running += 1;
                }
                i += 1;
                continue;
            }
            w.listed.store(false, SeqCst);
            if w.armed.load(SeqCst) {
                w.listed.store(true, SeqCst);
                i += 1;
            } else {
                active.swap_remove(i);
            }
        }
        drop(active);
        self.running.store(scan.running, Relaxed);
        if scan.found > 0 {
            self.counters.found.fetch_add(scan.found as u64, Relaxed);
            self.start_workers_for(cores);
        }
        scan
    }

    /// Something waits to be done by whoever is at work.
    fn found(&self) -> bool {
        self.scan().found > 0
            || self.ready_len.load(SeqCst) > 0
            || !self.later.lock().is_empty()
            || self.exit.load(SeqCst)
    }

    /// The poller sleeps until there is something to do and nobody else at work.
    fn sleep(&self) {
        loop {
            self.asleep.store(true, SeqCst);
            let goes_on = if AT_WORK.get() {
                handoff::release(&self.at_work, self.global.polling(), || self.found())
            } else {
                fence(SeqCst);
                self.found() && self.acquire()
            };
            AT_WORK.set(goes_on);
            if !goes_on {
                self.wait_for_events();
            }
            self.asleep.store(false, SeqCst);
            self.fire_timers();
            if AT_WORK.get() || self.acquire() {
                return;
            }
        }
    }

    fn wait_for_events(&self) {
        self.rebalance();
        let deadline = self.next_deadline.load(SeqCst);
        let (now, yielded_until) = (now_ns(), self.yielded_until.load(Relaxed));
        let deadline = if yielded_until > now { deadline.min(yielded_until) } else { deadline };
        let wait = if deadline == u64::MAX { i64::MAX } else { deadline.saturating_sub(now).min(1 << 50) as i64 };
        let wait = if self.workers.some_deaf() { wait.min(DEAF_SCAN_NS) } else { wait };
        let migrated = !self.migrated.lock().is_empty();
        let wait = if migrated { wait.min(MIGRATED_NS) } else { wait };
        if wait > 0 {
            self.counters.sleeps.fetch_add(1, Relaxed);
            if self.events(wait) == 0 && migrated {
                self.unpin_migrated();
            }
        }
    }
}

/// Host `CLOCK_MONOTONIC` in ns.
pub fn now_ns() -> u64 {
    crate::host::clock_ns(libc::CLOCK_MONOTONIC)
}
