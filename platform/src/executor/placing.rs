//! Cores of the poller and of the guests' threads: the wish of the mode, the guest's own choice, and corrections
//! where the host's scheduler cannot know better.

use super::*;

/// Minimum time between two migrations of guests to an idle core.
const REBALANCE_NS: u64 = 300_000;
/// Most guests that stay bound to a core after a migration.
const MAX_MIGRATED: usize = 64;
/// Most threads that are moved when the mode changes; the others follow when they are woken.
const MOVED_AT_ONCE: usize = 128;

impl Executor {
    /// Moves the poller, and the guests that may run, to the cores of the mode. Sleeping guests follow when they are
    /// woken.
    pub(super) fn switch_mode(&self, mode: SchedMode) {
        self.counters.mode_switches.fetch_add(1, Relaxed);
        self.narrow.store(mode.narrow(), Relaxed);
        self.enter_mode(mode);
        for watched in self.active.lock().iter().filter(|w| w.armed.load(Relaxed)).take(MOVED_AT_ONCE) {
            self.place(watched);
        }
    }

    /// Moves the poller to the cores of the mode, and enables the workers if the poller will sleep between calls.
    pub(super) fn enter_mode(&self, mode: SchedMode) {
        self.cores.go(place_of(mode));
        let mask = if mode == SchedMode::SleepAll { self.workers.started() } else { 0 };
        self.show_workers(|workers| workers.wanted = mask);
    }

    /// Moves the thread of a cell to the cores where guests run now.
    pub(crate) fn place(&self, watched: &Watched) {
        // A thread that is being created is placed once its tid is known.
        let known = watched.tid.load(SeqCst) != 0 && watched.pid.load(SeqCst) != 0;
        if known && watched.placed() != self.place_for(watched) {
            self.counters.moves.fetch_add(1, Relaxed);
            self.put(watched);
        }
    }

    fn place_for(&self, watched: &Watched) -> CoreSet {
        match (self.narrow.load(Relaxed), watched.background.load(SeqCst)) {
            (false, _) => CoreSet::Anywhere,
            (true, false) => CoreSet::Guests,
            (true, true) => CoreSet::Poller,
        }
    }

    fn put(&self, watched: &Watched) {
        let place = self.place_for(watched);
        watched.set_placed(place);
        self.cores.put(watched, place);
    }

    /// Background work begins on the poller's core: the poller sleeps instead of spinning for this time.
    pub(crate) fn yield_core(&self, ns: u64) {
        self.yielded_until.store(now_ns() + ns, Relaxed);
    }

    /// Restricts the thread of a cell to these cores (a mask of 64-bit words); `None`: no restriction.
    pub(crate) fn pin(&self, watched: &Watched, cores: Option<&[u64]>) {
        let pinned = cores.map(Pinned::new);
        let moved = pinned.as_ref().is_some_and(|p| self.cores.make_room(p));
        *watched.pinned.lock() = pinned;
        self.put(watched);
        if moved && self.narrow.load(Relaxed) {
            for other in self.active.lock().iter().filter(|w| w.armed.load(Relaxed)).take(MOVED_AT_ONCE) {
                self.put(other);
            }
        }
    }

    /// The poller is about to leave its core. If that core would be idle while two guests share another, one of them
    /// is migrated. The host does not do so: to its scheduler a core that sleeps for some microseconds at a time is
    /// busy.
    pub(super) fn rebalance(&self) {
        let now = now_ns();
        if self.narrow.load(Relaxed) || self.cores.count() < 2 || now < self.rebalance_at.load(Relaxed) {
            return;
        }
        let here = cores::here();
        let mut seen = 0u64;
        let mut found = None;
        for w in self.active.lock().iter().filter(|w| w.armed.load(Relaxed)).take(MOVED_AT_ONCE) {
            if is_posted(w.state()) || w.state() == WAITING {
                continue;
            }
            let core = w.core();
            if core == here {
                return;
            }
            let bit = 1u64.checked_shl(core).unwrap_or(0);
            if seen & bit != 0 {
                found = Some(w.clone());
            }
            seen |= bit;
        }
        if let Some(w) = found {
            self.rebalance_at.store(now + REBALANCE_NS, Relaxed);
            self.counters.moves.fetch_add(1, Relaxed);
            if self.migrated.lock().len() >= MAX_MIGRATED {
                self.unpin_migrated();
            }
            self.cores.migrate(&w);
            let mut migrated = self.migrated.lock();
            if !migrated.iter().any(|f| f.as_ptr() == Arc::as_ptr(&w)) {
                migrated.push(Arc::downgrade(&w));
            }
        }
    }

    /// Gives migrated guests back to the host's scheduler.
    pub(super) fn unpin_migrated(&self) {
        for w in self.migrated.lock().drain(..).filter_map(|w| w.upgrade()) {
            self.put(&w);
        }
    }
}

fn place_of(mode: SchedMode) -> CoreSet {
    match mode {
        SchedMode::Spin => CoreSet::Poller,
        SchedMode::SleepNear => CoreSet::Guests,
        SchedMode::SleepAll => CoreSet::Anywhere,
    }
}
