//! Which cores the Sentry's leader and the guests' threads may use: a hint to the host's scheduler, never a promise.
//!
//! A refusal (a container that forbids it, a core that went away) is no error: everything works, only slower.

use std::cell::Cell;

/// The cores that this process was started on, and the one that the leader takes when it spins.
pub(crate) struct Cores {
    all: libc::cpu_set_t,
    home: libc::cpu_set_t,
    guests: libc::cpu_set_t,
    count: usize,
}

/// Where a thread may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Anywhere,
    /// The leader's own core.
    Home,
    /// All cores but that.
    Guests,
}

thread_local! {
    static MINE: Cell<Place> = const { Cell::new(Place::Anywhere) };
}

impl Cores {
    pub(crate) fn new() -> Self {
        // SAFETY: all zeroes is an empty set, and the kernel writes at most the size given.
        let all = unsafe {
            let mut all: libc::cpu_set_t = std::mem::zeroed();
            libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut all);
            all
        };
        // SAFETY: the number is below CPU_SETSIZE.
        let has = |i: usize| unsafe { libc::CPU_ISSET(i, &all) };
        let list: Vec<usize> = (0..libc::CPU_SETSIZE as usize).filter(|i| has(*i)).collect();
        // Several sandboxes should not all choose the same one.
        let pick = list.get(crate::host::random_u64() as usize % list.len().max(1)).copied().unwrap_or(0);
        // SAFETY: as above.
        let mut home: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        let mut guests = all;
        // SAFETY: the number is below CPU_SETSIZE.
        unsafe {
            libc::CPU_SET(pick, &mut home);
            libc::CPU_CLR(pick, &mut guests);
        }
        Cores { all, home, guests, count: list.len().max(1) }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    fn set(&self, place: Place) -> &libc::cpu_set_t {
        match place {
            Place::Anywhere => &self.all,
            Place::Home => &self.home,
            Place::Guests => &self.guests,
        }
    }

    /// Moves the calling thread.
    pub(crate) fn go(&self, place: Place) {
        if self.count > 1 && MINE.replace(place) != place {
            // SAFETY: the kernel reads the set.
            unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), self.set(place)) };
        }
    }

    /// Moves a thread of a stub. The stub may have made the number up; at worst it names a thread of another stub, and
    /// that one's cores are what they would not have been.
    pub(crate) fn put(&self, tid: i32, place: Place) {
        if self.count > 1 && tid > 1 {
            // SAFETY: the kernel reads the set.
            unsafe { libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), self.set(place)) };
        }
    }
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
