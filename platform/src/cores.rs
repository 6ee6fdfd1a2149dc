//! Which cores the Sentry's poller and the guests' threads may use: a hint to the host's scheduler, never a promise.
//!
//! A refusal (a container that forbids it, a core that went away) is no error: everything works, only slower.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::systrap::watched::Watched;

/// The cores that this process was started on, and the one that the poller takes when it spins.
pub(crate) struct Cores {
    all: libc::cpu_set_t,
    poller_core: AtomicUsize,
    count: usize,
}

/// Where a thread may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum CoreSet {
    Anywhere,
    /// The poller's own core.
    Poller,
    /// All cores but that.
    Guests,
}

/// The cores that the guest itself has chosen for a thread of its own.
#[derive(Clone, Copy)]
pub(crate) struct Pinned(libc::cpu_set_t);

impl Pinned {
    /// From a mask of 64-bit words.
    pub(crate) fn new(words: &[u64]) -> Self {
        Pinned(set_of(|cpu| words.get(cpu / 64).is_some_and(|w| w >> (cpu % 64) & 1 != 0)))
    }
}

thread_local! {
    static MINE: Cell<CoreSet> = const { Cell::new(CoreSet::Anywhere) };
}

fn all_numbers() -> std::ops::Range<usize> {
    0..libc::CPU_SETSIZE as usize
}

fn has(set: &libc::cpu_set_t, cpu: usize) -> bool {
    // SAFETY: the number is below CPU_SETSIZE.
    unsafe { libc::CPU_ISSET(cpu, set) }
}

fn set_of(wanted: impl Fn(usize) -> bool) -> libc::cpu_set_t {
    // SAFETY: all zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in all_numbers().filter(|c| wanted(*c)) {
        // SAFETY: the number is below CPU_SETSIZE.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    set
}

/// `a` without what is not in `b`; `a` itself if nothing is in both.
fn narrowed(a: &libc::cpu_set_t, b: &libc::cpu_set_t) -> libc::cpu_set_t {
    let both = set_of(|c| has(a, c) && has(b, c));
    if all_numbers().any(|c| has(&both, c)) {
        both
    } else {
        *a
    }
}

impl Cores {
    pub(crate) fn new() -> Self {
        let mut all = set_of(|_| false);
        // SAFETY: the kernel writes at most the size given.
        unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut all) };
        let list: Vec<usize> = all_numbers().filter(|i| has(&all, *i)).collect();
        // Several sandboxes should not all choose the same one.
        let pick = list.get(crate::host::random_u64() as usize % list.len().max(1)).copied().unwrap_or(0);
        Cores { all, poller_core: AtomicUsize::new(pick), count: list.len().max(1) }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    fn set(&self, place: CoreSet) -> libc::cpu_set_t {
        let poller_core = self.poller_core.load(Relaxed);
        match place {
            CoreSet::Anywhere => self.all,
            CoreSet::Poller => set_of(|c| c == poller_core),
            CoreSet::Guests => set_of(|c| c != poller_core && has(&self.all, c)),
        }
    }

    /// Whether there is one with this number modulo `n`.
    pub(crate) fn any_of(&self, which: u32, n: u32) -> bool {
        all_numbers().any(|c| c as u32 % n == which && has(&self.all, c))
    }

    /// The calling thread stays on those for good.
    pub(crate) fn stay(&self, which: u32, n: u32) {
        let set = set_of(|c| c as u32 % n == which && has(&self.all, c));
        // SAFETY: the kernel reads the set.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    }

    /// Moves the calling thread.
    pub(crate) fn go(&self, place: CoreSet) {
        if self.count > 1 && MINE.replace(place) != place {
            // SAFETY: the kernel reads the set.
            unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.set(place)) };
        }
    }

    /// Leaves a thread that may only run on the poller's core that core: the poller moves to another one, if there is one.
    /// Tells whether it does.
    pub(crate) fn make_room(&self, pinned: &Pinned) -> bool {
        let poller_core = self.poller_core.load(Relaxed);
        let others = |c: &usize| *c != poller_core && has(&self.all, *c);
        if !has(&pinned.0, poller_core) || all_numbers().filter(others).any(|c| has(&pinned.0, c)) {
            return false;
        }
        let Some(new) = all_numbers().find(others) else { return false };
        self.poller_core.store(new, Relaxed);
        // The caller, if it leads, goes there at once.
        if MINE.get() != CoreSet::Anywhere {
            let mine = MINE.replace(CoreSet::Anywhere);
            self.go(mine);
        }
        true
    }

    /// Moves a thread of a stub to the core of the calling thread, if that is one of those that the guest has chosen.
    pub(crate) fn migrate(&self, watched: &Watched) {
        let here = here() as usize;
        if watched.pinned.lock().as_ref().is_none_or(|p| has(&p.0, here)) {
            move_to(watched, &set_of(|c| c == here));
        }
    }

    /// Moves a thread of a stub.
    pub(crate) fn put(&self, watched: &Watched, place: CoreSet) {
        if self.count > 1 {
            let set = match watched.pinned.lock().as_ref() {
                Some(p) => narrowed(&narrowed(&p.0, &self.all), &self.set(place)),
                None => self.set(place),
            };
            move_to(watched, &set);
        }
    }
}

fn move_to(watched: &Watched, set: &libc::cpu_set_t) {
    if let Some(tid) = watched.own_tid() {
        // SAFETY: the kernel reads the set.
        unsafe { libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), set) };
    }
}

/// The core that the calling thread is on.
pub(crate) fn here() -> u32 {
    // SAFETY: no arguments. An error is no core's number.
    unsafe { libc::sched_getcpu() as u32 }
}

/// Lets the calling thread, when it is woken, go before threads that have long slices (Linux 6.12 and later; older hosts
/// do not mind).
pub(crate) fn short_slice() {
    #[repr(C)]
    struct Attr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    const SLICE_NS: u64 = 100_000;
    let attr = Attr {
        size: size_of::<Attr>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice: 0,
        priority: 0,
        runtime: SLICE_NS,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the kernel reads `attr`.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &attr, 0) };
}
