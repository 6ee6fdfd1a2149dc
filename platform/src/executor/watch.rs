//! Looks into guest memory that take long: the host makes them wait while a thread of that process holds its address space (`mprotect` over
//! many pages). This is not known before, so they are made by the thread that is at work, and a watchdog gives everything else to another
//! one when it sees one twice. The thread learns that when it comes back.
//!
//! One thread at a time is at work, so there is one mark. It is unlike each earlier one: who finds another one than its own has lost the work.

use super::*;
use std::time::Duration;

/// How often the watchdog looks, while there is something to be seen.
const LOOKS: Duration = Duration::from_millis(2);
/// It sleeps if it has seen nothing new so many times.
const IDLE_LOOKS: u32 = 25;
/// The mark of the poller; workers have theirs from 1 on.
const POLLER: u64 = 0;
const BITS: u32 = 8;

#[derive(Default)]
pub(super) struct Watch {
    /// How many looks there were; written by who is at work.
    count: AtomicU64,
    /// 0, or the number of the look that is being made and who makes it.
    mark: AtomicU64,
    started: AtomicBool,
    asleep: AtomicBool,
    sleeper: Mutex<()>,
    wakes: Condvar,
}

thread_local! {
    /// A task is polled here, so that this thread may find itself without the work.
    static POLLS: StdCell<bool> = const { StdCell::new(false) };
}

impl Executor {
    #[inline]
    pub(super) fn polls(&self, on: bool) {
        POLLS.set(on);
    }

    /// A host call on the memory of a guest.
    #[inline]
    pub(crate) fn look<R>(&self, f: impl FnOnce() -> R) -> R {
        if !AT_WORK.get() || !POLLS.get() {
            return f();
        }
        let count = self.watch.count.load(Relaxed) + 1;
        let mark = count << BITS | WORKER.get().map_or(POLLER, |which| 1 + u64::from(which));
        self.watch.mark.store(mark, Relaxed);
        self.watch.count.store(count, Relaxed);
        if self.watch.asleep.load(Relaxed) {
            self.wake_watchdog();
        }
        let done = f();
        if self.watch.mark.compare_exchange(mark, 0, AcqRel, Relaxed).is_err() {
            self.lost_work();
        }
        done
    }

    #[cold]
    fn wake_watchdog(&self) {
        if !self.watch.started.swap(true, SeqCst) {
            let Some(executor) = self.me.upgrade() else { return };
            if let Err(e) = std::thread::Builder::new().name("watchdog".into()).spawn(move || executor.watchdog()) {
                log::warn!("no watchdog: {e}");
            }
        }
        let _sleeper = self.watch.sleeper.lock();
        self.watch.asleep.store(false, SeqCst);
        self.watch.wakes.notify_all();
    }

    /// Until the first look there is no watchdog.
    pub(super) fn unwatched() -> Watch {
        Watch { asleep: AtomicBool::new(true), ..Watch::default() }
    }

    pub(super) fn end_watchdog(&self) {
        let _sleeper = self.watch.sleeper.lock();
        self.watch.wakes.notify_all();
    }

    fn watchdog(&self) {
        let (mut seen, mut counted, mut idle) = (0, 0, 0);
        while !self.exit.load(SeqCst) {
            let (mark, count) = (self.watch.mark.load(Acquire), self.watch.count.load(Relaxed));
            if mark != 0 && mark == seen && self.watch.mark.compare_exchange(mark, 0, AcqRel, Relaxed).is_ok() {
                self.take_work_from(mark & ((1 << BITS) - 1));
            }
            idle = if mark != 0 || count != counted { 0 } else { idle + 1 };
            (seen, counted) = (mark, count);
            if idle == IDLE_LOOKS {
                self.watch.asleep.store(true, SeqCst);
            } else if idle > IDLE_LOOKS {
                // Who has not seen it asleep has begun before, and would have been seen by now.
                let mut sleeper = self.watch.sleeper.lock();
                while self.watch.asleep.load(SeqCst) && !self.exit.load(SeqCst) {
                    self.watch.wakes.wait(&mut sleeper);
                }
                idle = 0;
                continue;
            }
            std::thread::sleep(LOOKS);
        }
    }

    /// What [`Executor::block_in_place`] would have done there.
    fn take_work_from(&self, who: u64) {
        self.counters.handovers.fetch_add(1, Relaxed);
        if who != POLLER {
            self.make_deaf(who as u32 - 1);
            self.at_work.swap(0, SeqCst);
            return self.wake_poller();
        }
        if self.poller.lock().waiting == 0 {
            self.start_standby();
        }
        self.at_work.swap(0, SeqCst);
        self.poller.lock().held = false;
        self.poller_free.notify_one();
    }

    #[cold]
    fn lost_work(&self) {
        AT_WORK.set(false);
        match WORKER.get() {
            Some(_) => self.is_deaf(),
            None => self.cores.go(CoreSet::Anywhere),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than there are threads at first, each until all others have begun.
    #[test]
    fn slow_looks_let_others_go_on() {
        let executor = Executor::new(HandOff::Sleep, None).unwrap();
        let begun = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 {
            let (there, begun) = (executor.clone(), begun.clone());
            executor.spawn(Box::pin(async move {
                begun.fetch_add(1, SeqCst);
                let until = now_ns() + 20_000_000_000;
                there.look(|| {
                    while begun.load(SeqCst) < 4 && now_ns() < until {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
                assert!(!AT_WORK.get());
            }));
        }
        let (other, runner) = (executor.clone(), executor.clone());
        executor.spawn(Box::pin(async move {
            other.look(|| ());
            let all = begun.fetch_add(1, SeqCst) == 3;
            other.shutdown(i32::from(!all));
        }));
        assert_eq!(runner.run(), 0);
    }
}
