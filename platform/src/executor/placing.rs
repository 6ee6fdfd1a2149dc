//! On which cores the leader and the guests' threads run: the gait's wish, what the guest has chosen, and what the host's scheduler
//! does not see by itself.

use super::*;

/// Guests are fetched to an idle core at most once in so much time.
const SPREAD_NS: u64 = 300_000;
/// Nor so many be kept from it.
const FETCHED_AT_ONCE: usize = 64;
/// Most threads that are moved when the gait changes; the others follow as they are woken.
const MOVED_AT_ONCE: usize = 128;

impl Executor {
    /// Puts the leader and the guests that may run where the gait wants them. Those that sleep follow when they are woken.
    pub(super) fn turn(&self, gait: Gait) {
        self.counters.turns.fetch_add(1, Relaxed);
        self.narrow.store(gait.narrow(), Relaxed);
        self.enter_gait(gait);
        for watched in self.active.lock().iter().filter(|w| w.armed.load(Relaxed)).take(MOVED_AT_ONCE) {
            self.place(watched);
        }
    }

    /// The leader goes where the gait wants it, and has clerks at the cores if it will sleep between calls.
    pub(super) fn enter_gait(&self, gait: Gait) {
        self.cores.go(place_of(gait));
        let mask = if gait == Gait::Wide { self.clerks.started() } else { 0 };
        self.show_clerks(|clerks| clerks.wanted = mask);
    }

    /// Has the thread of a cell run where guests are to run now.
    pub(crate) fn place(&self, watched: &Watched) {
        // One that is being born is put where it belongs when its number is known.
        let known = watched.tid.load(SeqCst) != 0 && watched.pid.load(SeqCst) != 0;
        if known && watched.placed() != self.place_for(watched) {
            self.counters.moves.fetch_add(1, Relaxed);
            self.put(watched);
        }
    }

    fn place_for(&self, watched: &Watched) -> Place {
        match (self.narrow.load(Relaxed), watched.aside.load(SeqCst)) {
            (false, _) => Place::Anywhere,
            (true, false) => Place::Guests,
            (true, true) => Place::Home,
        }
    }

    fn put(&self, watched: &Watched) {
        let place = self.place_for(watched);
        watched.set_placed(place);
        self.cores.put(watched, place);
    }

    /// Something begins that nobody waits for, on the leader's core: the leader sleeps instead of spinning for so long.
    pub(crate) fn lend(&self, ns: u64) {
        self.lent.store(now_ns() + ns, Relaxed);
    }

    /// From now on the thread of a cell runs on these cores only (a mask of 64-bit words); `None`: on any.
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

    /// The leader is about to leave its core: if that would be idle while two guests share another, one of them is fetched. The
    /// host does not do that by itself, since it believes a core that sleeps for some microseconds at a time to be busy.
    pub(super) fn spread(&self) {
        let now = now_ns();
        if self.narrow.load(Relaxed) || self.cores.count() < 2 || now < self.spread_at.load(Relaxed) {
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
            self.spread_at.store(now + SPREAD_NS, Relaxed);
            self.counters.moves.fetch_add(1, Relaxed);
            if self.fetched.lock().len() >= FETCHED_AT_ONCE {
                self.release();
            }
            self.cores.fetch(&w);
            let mut fetched = self.fetched.lock();
            if !fetched.iter().any(|f| f.as_ptr() == Arc::as_ptr(&w)) {
                fetched.push(Arc::downgrade(&w));
            }
        }
    }

    /// Lets the host move again the guests that were fetched.
    pub(super) fn release(&self) {
        for w in self.fetched.lock().drain(..).filter_map(|w| w.upgrade()) {
            self.put(&w);
        }
    }
}

fn place_of(gait: Gait) -> Place {
    match gait {
        Gait::Spin => Place::Home,
        Gait::Near => Place::Guests,
        Gait::Wide => Place::Anywhere,
    }
}
