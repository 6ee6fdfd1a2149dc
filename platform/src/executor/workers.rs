//! Workers: one thread of the Sentry per core, for modes in which the poller sleeps between calls. A stub notifies the
//! doorbell of the core it runs on. The worker there preempts the guest, answers the call and sleeps again; then the
//! guest continues. That takes two switches, and no other core is woken or interrupted (3.5 µs on the machine of
//! `policy.rs`, where the wake-up of an idle core takes 35–50).
//!
//! A worker does the same work as the poller, except for timers and host descriptors. When the mode changes it leaves
//! the work to the poller.
//!
//! There are at most [`DOORBELLS`] workers, however many cores the host has. Each starts when a call of a guest has
//! come from one of its cores ([`Executor::start_workers_for`]).
//!
//! # Doorbells
//! A worker sleeps in `read` of an eventfd. The eventfd is therefore blocking, for writers, too: a write that would
//! overflow the counter waits until the worker has read. The full counter has woken that worker already.

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd;

use super::*;

thread_local! {
    /// This worker runs a long operation ([`Executor::deaf_worker`]).
    static DEAF: StdCell<bool> = const { StdCell::new(false) };
}

/// The worker for all cores with the same number modulo [`DOORBELLS`].
struct Worker {
    which: u32,
    doorbell: EventFd,
}

/// Bit masks of workers; stubs may notify those that are wanted and not deaf.
#[derive(Default)]
pub(super) struct Shown {
    /// Workers that the mode has work for.
    pub(super) wanted: u32,
    /// Workers that run a long operation and do not read their doorbells.
    deaf: u32,
}

pub(super) struct Workers {
    /// Workers for the cores that this process may use; none if there is only one core.
    workers: Vec<Worker>,
    /// Workers with a thread ([`crate::systrap::abi::Global::workers`]).
    started: AtomicU32,
    /// Workers whose thread has not been started, nor failed to start.
    missing: AtomicU32,
    /// Workers are not bound to cores ([`crate::systrap::abi::Global::any_doorbell`]).
    unbound: bool,
    shown: Mutex<Shown>,
    /// Number of deaf workers.
    deaf: AtomicU32,
}

impl Workers {
    /// `forced`: this number of workers, regardless of the cores.
    pub(super) fn new(cores: &Cores, forced: Option<u32>) -> io::Result<Self> {
        let wanted = |which: &u32| match forced {
            Some(n) => *which < n,
            None => cores.count() > 1 && cores.any_of(*which, DOORBELLS),
        };
        let mut workers = Vec::new();
        for which in (0..DOORBELLS).filter(wanted) {
            workers.push(Worker { which, doorbell: EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)? });
        }
        let missing = workers.iter().fold(0, |mask, c| mask | 1 << c.which);
        Ok(Workers {
            workers,
            started: AtomicU32::new(0),
            missing: AtomicU32::new(missing),
            unbound: forced.is_some(),
            shown: Mutex::default(),
            deaf: AtomicU32::new(0),
        })
    }

    /// Mask of the workers with a thread.
    pub(super) fn started(&self) -> u32 {
        self.started.load(Relaxed)
    }

    /// Whether any worker is deaf. A stub that has already chosen a doorbell may notify a deaf worker, so the poller
    /// has to scan the cells at intervals.
    pub(super) fn some_deaf(&self) -> bool {
        self.deaf.load(SeqCst) != 0
    }

    pub(super) fn notify_all(&self) {
        let started = self.started();
        for worker in self.workers.iter().filter(|c| started >> c.which & 1 != 0) {
            // A doorbell that stubs have filled wakes its worker without this write, which would block if the worker
            // has exited.
            let mut room = [PollFd::new(worker.doorbell.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut room, PollTimeout::ZERO).is_ok_and(|n| n > 0) {
                let _ = worker.doorbell.write(1);
            }
        }
    }
}

impl Executor {
    /// The doorbell that stubs notify on cores with this number.
    pub(crate) fn doorbell_of(&self, which: u32) -> &EventFd {
        self.workers.workers.iter().find(|c| c.which == which).map_or(&*self.doorbell, |c| &c.doorbell)
    }

    /// Starts the missing workers of these cores (one bit for each number modulo [`DOORBELLS`]).
    pub(super) fn start_workers_for(&self, cores: u32) {
        let workers = &self.workers;
        if cores & workers.missing.load(Relaxed) == 0 {
            return;
        }
        let mine = workers.missing.fetch_and(!cores, Relaxed) & cores;
        for which in (0..DOORBELLS).filter(|which| mine >> which & 1 != 0) {
            let Some(executor) = self.me.upgrade() else { return };
            let thread = std::thread::Builder::new().name(format!("worker {which}"));
            match thread.spawn(move || executor.worker(which)) {
                Ok(_) => drop(workers.started.fetch_or(1 << which, Relaxed)),
                Err(e) => log::warn!("no worker for core {which}: {e}"),
            }
        }
        // If another thread changes the mode meanwhile, it publishes its mask after this one.
        self.show_workers(|shown| {
            if !self.narrow.load(Relaxed) {
                shown.wanted = workers.started();
            }
        });
    }

    fn worker(&self, which: u32) {
        WORKER.set(Some(which));
        self.here();
        if !self.workers.unbound {
            self.cores.stay(which, DOORBELLS);
        }
        while !self.exit.load(SeqCst) {
            self.clear_deaf(which);
            if self.doorbell_of(which).read().is_err() {
                continue;
            }
            if self.acquire() {
                self.policy.lock().woke(now_ns());
                self.answer_calls();
            }
        }
    }

    /// Answers calls until there are none left, or until the mode changes.
    fn answer_calls(&self) {
        SPIN_ONS_LEFT.set(0);
        ALONE.set(false);
        loop {
            if self.exit.load(Relaxed) {
                return self.hand_to_poller();
            }
            let ran = self.run_ready();
            if !AT_WORK.get() {
                return;
            }
            let scan = Scan { ran, ..self.scan() };
            let mode = {
                let mut policy = self.policy.lock();
                policy.observe(now_ns(), scan);
                policy.mode()
            };
            if mode != SchedMode::SleepAll {
                return self.hand_to_poller();
            }
            if ran || scan.found > 0 || self.ready_len.load(Acquire) > 0 {
                continue;
            }
            let job = self.later.lock().pop_front();
            if let Some(job) = job {
                job();
                continue;
            }
            let stays_active = handoff::release(&self.at_work, self.global.polling(), || self.found());
            AT_WORK.set(stays_active);
            if !stays_active {
                return;
            }
        }
    }

    /// Changes the set of workers that stubs may notify. On the cores of other workers stubs notify the poller's
    /// doorbell.
    pub(super) fn show_workers(&self, change: impl FnOnce(&mut Shown)) {
        let mut shown = self.workers.shown.lock();
        change(&mut shown);
        self.global.set_workers(shown.wanted & !shown.deaf);
    }

    /// [`Executor::block_in_place`] for a worker. The worker stays deaf until it sleeps again: the rest of its task
    /// may take long, too, and no other thread reads its doorbell.
    pub(super) fn deaf_worker<R>(&self, which: u32, f: impl FnOnce() -> R) -> R {
        self.make_deaf(which);
        self.is_deaf();
        self.counters.handovers.fetch_add(1, Relaxed);
        self.hand_to_poller();
        f()
    }

    pub(super) fn make_deaf(&self, which: u32) {
        self.workers.deaf.fetch_add(1, SeqCst);
        self.show_workers(|workers| workers.deaf |= 1 << which);
    }

    pub(super) fn is_deaf(&self) {
        DEAF.set(true);
    }

    fn clear_deaf(&self, which: u32) {
        if DEAF.replace(false) {
            self.show_workers(|workers| workers.deaf &= !(1 << which));
            self.workers.deaf.fetch_sub(1, SeqCst);
        }
    }

    /// Hands the remaining work over to the poller.
    pub(super) fn hand_to_poller(&self) {
        AT_WORK.set(false);
        self.at_work.swap(0, SeqCst);
        self.wake_poller();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::systrap::watched::Area;
    use std::time::Duration;

    fn eventually(what: &str, done: impl Fn() -> bool) {
        let until = now_ns() + 10_000_000_000;
        while !done() {
            assert!(now_ns() < until, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A cell, and a task that runs `then` when something is posted in the cell.
    fn cell(executor: &Arc<Executor>, then: impl FnOnce() + Send + 'static) -> Arc<Watched> {
        let watched = Watched::new(Area::new().unwrap().0, 0, 0, CoreSet::Anywhere, false);
        let (cell, task_executor, mut then) = (watched.clone(), executor.clone(), Some(then));
        executor.spawn(Box::pin(std::future::poll_fn(move |cx| {
            cell.set_waker(cx.waker());
            task_executor.arm(&cell);
            if !cell.posted() {
                return Poll::Pending;
            }
            then.take().into_iter().for_each(|then| then());
            Poll::Ready(())
        })));
        eventually("the cell is not listed", || watched.listed.load(SeqCst));
        eventually("the executor does not sleep", || {
            executor.asleep.load(SeqCst) && executor.global.polling().load(SeqCst) == 0
        });
        std::thread::sleep(Duration::from_millis(20));
        watched
    }

    /// Posts as the stub does.
    fn post(executor: &Executor, cell: &Watched) {
        handoff::post(cell.area.state(cell.slot), executor.global.polling(), || {
            let shown = executor.workers.shown.lock();
            let own = shown.wanted & !shown.deaf & 1 != 0;
            drop(shown);
            let doorbell = if own { executor.doorbell_of(0) } else { executor.doorbell() };
            doorbell.write(1).unwrap();
        });
    }

    /// A worker that has handed over its work and continues its task does not read its doorbell.
    #[test]
    fn a_call_beside_a_long_one_is_answered() {
        let executor = Executor::new(HandOff::Sleep, Some(1)).unwrap();
        let poller = executor.clone();
        let poller = std::thread::spawn(move || poller.run());
        let by_worker = (0..20).any(|_| {
            let state = Arc::new([const { AtomicBool::new(false) }; 4]);
            let seen = state.clone();
            let long = cell(&executor, move || {
                let [begun, by_worker, heard, ended] = &*seen;
                aside(|| ());
                by_worker.store(WORKER.get().is_some(), SeqCst);
                begun.store(true, SeqCst);
                let until = now_ns() + 5_000_000_000;
                while !heard.load(SeqCst) && now_ns() < until {
                    std::thread::sleep(Duration::from_millis(1));
                }
                ended.store(true, SeqCst);
            });
            let seen = state.clone();
            let short = cell(&executor, move || seen[2].store(!seen[3].load(SeqCst), SeqCst));
            post(&executor, &long);
            eventually("the long call does not begin", || state[0].load(SeqCst));
            eventually("the executor does not sleep", || executor.global.polling().load(SeqCst) == 0);
            std::thread::sleep(Duration::from_millis(20));
            post(&executor, &short);
            eventually("the short call is not answered", || state[2].load(SeqCst) || state[3].load(SeqCst));
            assert!(state[2].load(SeqCst), "a call waited for the end of a long one");
            state[1].load(SeqCst)
        });
        assert!(by_worker, "no worker had the long call");
        executor.shutdown(0);
        poller.join().unwrap();
    }
}
