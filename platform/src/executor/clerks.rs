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

    /// [`Executor::block_in_place`] for a clerk.
    pub(super) fn deaf_clerk<R>(&self, which: u32, f: impl FnOnce() -> R) -> R {
        self.clerks.deaf.fetch_add(1, SeqCst);
        self.show_clerks(|clerks| clerks.deaf |= 1 << which);
        self.counters.handovers.fetch_add(1, Relaxed);
        self.hand_to_leader();
        let r = f();
        self.show_clerks(|clerks| clerks.deaf &= !(1 << which));
        self.clerks.deaf.fetch_sub(1, SeqCst);
        r
    }

    /// A clerk leaves the work undone: the leader goes on with it.
    pub(super) fn hand_to_leader(&self) {
        AT_WORK.set(false);
        self.at_work.swap(0, SeqCst);
        self.kick();
    }
}
