//! Core sets of the poller and of the guests' threads. Affinity is a hint to the host's scheduler, never a promise: a
//! refusal (a container that forbids it, a core taken offline) is no error, everything works without it, only slower.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::systrap::watched::Watched;

/// The cores that this process was started on, and the core on which the poller spins.
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
    /// The poller core.
    Poller,
    /// All cores but the poller core.
    Guests,
}

/// The affinity mask that the guest has set for one of its threads.
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

/// The intersection of both sets; `a` if that is empty.
fn intersect_or_first(a: &libc::cpu_set_t, b: &libc::cpu_set_t) -> libc::cpu_set_t {
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
        // Random, so that several sandboxes do not all choose the same core.
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

    /// Whether the process may use a core with this number modulo `n`.
    pub(crate) fn any_of(&self, which: u32, n: u32) -> bool {
        all_numbers().any(|c| c as u32 % n == which && has(&self.all, c))
    }

    /// Binds the calling thread to those cores for good.
    pub(crate) fn stay(&self, which: u32, n: u32) {
        let set = set_of(|c| c as u32 % n == which && has(&self.all, c));
        // SAFETY: the kernel reads the set.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    }

    /// Moves the calling thread to `place`.
    pub(crate) fn go(&self, place: CoreSet) {
        if self.count > 1 && MINE.replace(place) != place {
            // SAFETY: the kernel reads the set.
            unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.set(place)) };
        }
    }

    /// If the poller core is the only one that `pinned` allows, moves the poller core elsewhere, if there is another
    /// one. Returns whether it moved.
    pub(crate) fn make_room(&self, pinned: &Pinned) -> bool {
        let poller_core = self.poller_core.load(Relaxed);
        let others = |c: &usize| *c != poller_core && has(&self.all, *c);
        if !has(&pinned.0, poller_core) || all_numbers().filter(others).any(|c| has(&pinned.0, c)) {
            return false;
        }
        let Some(new) = all_numbers().find(others) else { return false };
        self.poller_core.store(new, Relaxed);
        // If the caller is the poller, it moves at once.
        if MINE.get() != CoreSet::Anywhere {
            let mine = MINE.replace(CoreSet::Anywhere);
            self.go(mine);
        }
        true
    }

    /// Moves a thread of a stub to the core of the calling thread, unless the guest's affinity mask excludes that.
    pub(crate) fn migrate(&self, watched: &Watched) {
        let here = here() as usize;
        if watched.pinned.lock().as_ref().is_none_or(|p| has(&p.0, here)) {
            move_to(watched, &set_of(|c| c == here));
        }
    }

    /// Moves a thread of a stub to `place`, within the guest's affinity mask.
    pub(crate) fn put(&self, watched: &Watched, place: CoreSet) {
        if self.count > 1 {
            let set = match watched.pinned.lock().as_ref() {
                Some(p) => intersect_or_first(&intersect_or_first(&p.0, &self.all), &self.set(place)),
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

/// The core that the calling thread runs on.
pub(crate) fn here() -> u32 {
    // SAFETY: the call takes no arguments and touches no memory. An error becomes a number that no core has.
    unsafe { libc::sched_getcpu() as u32 }
}

/// Gives the calling thread a short time slice, so that on wake-up it precedes threads with long ones (Linux 6.12 and
/// later; older hosts ignore it).
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
