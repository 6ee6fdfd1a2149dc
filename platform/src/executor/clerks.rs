//! A thread of the Sentry on each core, for gaits in which the leader sleeps between calls. A stub rings the bell of the core that it is
//! on; the clerk there goes before the guest, answers the call and sleeps again, and the guest goes on: two switches, and no other
//! core is woken or interrupted for it (on the machine of `pace.rs` 3.5 µs where the wake-up of an idle core takes 35–50).
//!
//! A clerk does what the leader does, but looks after no timers and no host descriptors. When the gait changes it leaves the work to the leader.
//!
//! There are at most [`BELLS`] clerks, however many cores the host has, and each is started when a call of a guest has come from
//! one of its cores ([`Executor::start_clerks_for`]).
//!
//! # Bells
//! A clerk sleeps in `read` of an eventfd. So that this can be, a write that would overflow it waits, too: until the clerk has read, for
//! which that very counter has woken it.

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd;

use super::*;

thread_local! {
    /// This clerk is at something long ([`Executor::deaf_clerk`]).
    static DEAF: StdCell<bool> = const { StdCell::new(false) };
}

/// Cores with the same number modulo [`BELLS`] share one.
struct Clerk {
    which: u32,
    bell: EventFd,
}

/// Bits of clerks.
#[derive(Default)]
pub(super) struct Shown {
    /// The gait has work for them.
    pub(super) wanted: u32,
    /// They are at something long, and do not hear their bells.
    deaf: u32,
}

pub(super) struct Clerks {
    /// Those of cores that this process may use; none if there is one core only.
    clerks: Vec<Clerk>,
    /// Which of them have a thread ([`crate::systrap::abi::Global::clerks`]).
    started: AtomicU32,
    /// Which of them nothing has been tried for yet.
    missing: AtomicU32,
    /// They are not bound to cores ([`crate::systrap::abi::Global::any_bell`]).
    unbound: bool,
    shown: Mutex<Shown>,
    /// How many are deaf.
    deaf: AtomicU32,
}

impl Clerks {
    /// `forced`: so many, whatever cores there are.
    pub(super) fn new(cores: &Cores, forced: Option<u32>) -> io::Result<Self> {
        let wanted = |which: &u32| match forced {
            Some(n) => *which < n,
            None => cores.count() > 1 && cores.any_of(*which, BELLS),
        };
        let mut clerks = Vec::new();
        for which in (0..BELLS).filter(wanted) {
            clerks.push(Clerk { which, bell: EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)? });
        }
        let missing = clerks.iter().fold(0, |mask, c| mask | 1 << c.which);
        Ok(Clerks {
            clerks,
            started: AtomicU32::new(0),
            missing: AtomicU32::new(missing),
            unbound: forced.is_some(),
            shown: Mutex::default(),
            deaf: AtomicU32::new(0),
        })
    }

    /// Which have a thread.
    pub(super) fn started(&self) -> u32 {
        self.started.load(Relaxed)
    }

    /// A stub that was just about to ring may ring the bell of a deaf clerk: somebody must look at the cells now and then.
    pub(super) fn some_deaf(&self) -> bool {
        self.deaf.load(SeqCst) != 0
    }

    pub(super) fn ring_all(&self) {
        let started = self.started();
        for clerk in self.clerks.iter().filter(|c| started >> c.which & 1 != 0) {
            // One that a stub has filled wakes its clerk without this, and would keep us waiting if the clerk has gone.
            let mut room = [PollFd::new(clerk.bell.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut room, PollTimeout::ZERO).is_ok_and(|n| n > 0) {
                let _ = clerk.bell.write(1);
            }
        }
    }
}

impl Executor {
    /// What stubs ring on cores with this number.
    pub(crate) fn bell_of(&self, which: u32) -> &EventFd {
        self.clerks.clerks.iter().find(|c| c.which == which).map_or(&*self.bell, |c| &c.bell)
    }

    /// Starts the clerks of these cores (a bit for each number modulo [`BELLS`]), as far as they are missing.
    pub(super) fn start_clerks_for(&self, cores: u32) {
        let clerks = &self.clerks;
        if cores & clerks.missing.load(Relaxed) == 0 {
            return;
        }
        let mine = clerks.missing.fetch_and(!cores, Relaxed) & cores;
        for which in (0..BELLS).filter(|which| mine >> which & 1 != 0) {
            let Some(executor) = self.me.upgrade() else { return };
            let thread = std::thread::Builder::new().name(format!("clerk {which}"));
            match thread.spawn(move || executor.clerk(which)) {
                Ok(_) => drop(clerks.started.fetch_or(1 << which, Relaxed)),
                Err(e) => log::warn!("no clerk for core {which}: {e}"),
            }
        }
        // Another thread may change the gait meanwhile: it then shows what it wants after this.
        self.show_clerks(|shown| {
            if !self.narrow.load(Relaxed) {
                shown.wanted = clerks.started();
            }
        });
    }

    fn clerk(&self, which: u32) {
        CLERK.set(Some(which));
        self.here();
        if !self.clerks.unbound {
            self.cores.stay(which, BELLS);
        }
        while !self.exit.load(SeqCst) {
            self.listens(which);
            if self.bell_of(which).read().is_err() {
                continue;
            }
            if self.set_about() {
                self.pace.lock().woke(now_ns());
                self.work_here();
            }
        }
    }

    /// Answers what there is to answer.
    fn work_here(&self) {
        LINGERS.set(0);
        ALONE.set(false);
        loop {
            if self.exit.load(Relaxed) {
                return self.hand_to_leader();
            }
            let ran = self.run_ready();
            if !AT_WORK.get() {
                return;
            }
            let look = Look { ran, ..self.scan() };
            let gait = {
                let mut pace = self.pace.lock();
                pace.look(now_ns(), look);
                pace.gait()
            };
            if gait != Gait::Wide {
                return self.hand_to_leader();
            }
            if ran || look.found > 0 || self.ready_len.load(Acquire) > 0 {
                continue;
            }
            let job = self.later.lock().pop_front();
            if let Some(job) = job {
                job();
                continue;
            }
            let goes_on = handoff::rest(&self.at_work, self.global.polling(), || self.found());
            AT_WORK.set(goes_on);
            if !goes_on {
                return;
            }
        }
    }

    /// Changes which clerks stubs may ring; they ring the leader's bell on the cores of others.
    pub(super) fn show_clerks(&self, change: impl FnOnce(&mut Shown)) {
        let mut shown = self.clerks.shown.lock();
        change(&mut shown);
        self.global.set_clerks(shown.wanted & !shown.deaf);
    }

    /// [`Executor::block_in_place`] for a clerk. It stays deaf until it sleeps again: what its task does afterwards may take long, too,
    /// and nobody else hears its bell.
    pub(super) fn deaf_clerk<R>(&self, which: u32, f: impl FnOnce() -> R) -> R {
        DEAF.set(true);
        self.clerks.deaf.fetch_add(1, SeqCst);
        self.show_clerks(|clerks| clerks.deaf |= 1 << which);
        self.counters.handovers.fetch_add(1, Relaxed);
        self.hand_to_leader();
        f()
    }

    fn listens(&self, which: u32) {
        if DEAF.replace(false) {
            self.show_clerks(|clerks| clerks.deaf &= !(1 << which));
            self.clerks.deaf.fetch_sub(1, SeqCst);
        }
    }

    /// A clerk leaves the work undone: the leader goes on with it.
    pub(super) fn hand_to_leader(&self) {
        AT_WORK.set(false);
        self.at_work.swap(0, SeqCst);
        self.kick();
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

    /// A cell, and a task that does `then` when something is posted there.
    fn cell(executor: &Arc<Executor>, then: impl FnOnce() + Send + 'static) -> Arc<Watched> {
        let watched = Watched::new(Area::new().unwrap().0, 0, 0, Place::Anywhere, false);
        let (cell, there, mut then) = (watched.clone(), executor.clone(), Some(then));
        executor.spawn(Box::pin(std::future::poll_fn(move |cx| {
            cell.set_waker(cx.waker());
            there.arm(&cell);
            if !cell.posted() {
                return Poll::Pending;
            }
            then.take().into_iter().for_each(|then| then());
            Poll::Ready(())
        })));
        eventually("the cell is not looked at", || watched.listed.load(SeqCst));
        eventually("there is no rest", || executor.asleep.load(SeqCst) && executor.global.polling().load(SeqCst) == 0);
        std::thread::sleep(Duration::from_millis(20));
        watched
    }

    /// What the stub does.
    fn post(executor: &Executor, cell: &Watched) {
        handoff::post(cell.area.state(cell.slot), executor.global.polling(), || {
            let shown = executor.clerks.shown.lock();
            let own = shown.wanted & !shown.deaf & 1 != 0;
            drop(shown);
            let bell = if own { executor.bell_of(0) } else { executor.bell() };
            bell.write(1).unwrap();
        });
    }

    /// A clerk that has given the work away and goes on with its task does not hear its bell.
    #[test]
    fn a_call_beside_a_long_one_is_heard() {
        let executor = Executor::new(HandOff::Sleep, Some(1)).unwrap();
        let leader = executor.clone();
        let leader = std::thread::spawn(move || leader.run());
        let by_clerk = (0..20).any(|_| {
            let state = Arc::new([const { AtomicBool::new(false) }; 4]);
            let seen = state.clone();
            let long = cell(&executor, move || {
                let [begun, by_clerk, heard, ended] = &*seen;
                aside(|| ());
                by_clerk.store(CLERK.get().is_some(), SeqCst);
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
            eventually("there is no rest", || executor.global.polling().load(SeqCst) == 0);
            std::thread::sleep(Duration::from_millis(20));
            post(&executor, &short);
            eventually("the short call is not answered", || state[2].load(SeqCst) || state[3].load(SeqCst));
            assert!(state[2].load(SeqCst), "a call waited for the end of a long one");
            state[1].load(SeqCst)
        });
        assert!(by_clerk, "no clerk had the long call");
        executor.shutdown(0);
        leader.join().unwrap();
    }
}
