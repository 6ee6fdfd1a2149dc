//! What the host counts for this process as a whole, and how much of it guests' objects may take: descriptors, mappings, address space.
//! At each bound the object is not made (or not mapped); the rest is the Sentry's own, whose allocator and threads must not go short.
//!
//! Descriptors are counted by their numbers: the host gives out the lowest free one, so a new descriptor with number N says
//! that N others are in use. There is nothing to give back and nothing to forget.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::resource::{getrlimit, Resource};

/// An amount that is bounded for the whole process.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    most: u64,
}

/// A part of a budget, given back when dropped.
#[derive(Debug)]
pub struct Charge {
    budget: &'static Budget,
    amount: u64,
}

impl Budget {
    pub const fn new(most: u64) -> Self {
        Budget { used: AtomicU64::new(0), most }
    }
    /// `amount` of it, if there is as much left.
    pub fn take(&'static self, amount: u64) -> Option<Charge> {
        let mut charge = self.nothing();
        charge.set(amount).then_some(charge)
    }
    /// A part that is to grow.
    pub fn nothing(&'static self) -> Charge {
        Charge { budget: self, amount: 0 }
    }
    pub fn left(&self) -> u64 {
        self.most.saturating_sub(self.used.load(Relaxed))
    }
    /// All of it.
    pub fn most(&self) -> u64 {
        self.most
    }
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }
    /// As [`Budget::take`], for an owner that gives it back by itself.
    pub fn add(&self, amount: u64) -> bool {
        self.used.fetch_update(Relaxed, Relaxed, |u| u.checked_add(amount).filter(|n| *n <= self.most)).is_ok()
    }
    /// Counts what is there already.
    pub fn add_anyway(&self, amount: u64) {
        self.used.fetch_add(amount, Relaxed);
    }
    pub fn give_back(&self, amount: u64) {
        self.used.fetch_sub(amount, Relaxed);
    }
}

impl Charge {
    /// Makes it `amount`; says whether there is as much left, and changes nothing if not. To become less always works.
    pub fn set(&mut self, amount: u64) -> bool {
        if amount == self.amount {
            return true;
        }
        let fits = match amount.checked_sub(self.amount) {
            Some(more) => self.budget.add(more),
            None => {
                self.budget.give_back(self.amount - amount);
                true
            }
        };
        if fits {
            self.amount = amount;
        }
        fits
    }
    pub fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What a descriptor is for. Each may take less of the table than the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Content in memory that could be kept without one: a quarter of the table.
    Content,
    /// Memory that a guest maps, or may: half.
    Mapped,
    /// A host file that a guest has open: three quarters.
    File,
    /// What each process needs: all but a reserve.
    Process,
}

/// First number that each [`Use`] may not have.
fn bounds() -> &'static [u64; 4] {
    static BOUNDS: OnceLock<[u64; 4]> = OnceLock::new();
    BOUNDS.get_or_init(|| {
        let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        [most / 4, most / 2, most / 4 * 3, most - (most / 8).min(64)]
    })
}

/// Asks the host for its limits; to be called while that may still be asked.
pub fn prepare() {
    let (_, _, _) = (bounds(), address_space(), heap());
}

/// First number that a descriptor for this may not have.
pub fn descriptor_bound(what: Use) -> u64 {
    bounds()[what as usize]
}

/// Keeps a new descriptor, or closes it if there are too many for what it is to be used for.
pub fn admit(fd: OwnedFd, what: Use) -> Result<OwnedFd, Errno> {
    if (fd.as_raw_fd() as u64) < descriptor_bound(what) {
        Ok(fd)
    } else {
        Err(Errno::ENFILE)
    }
}

/// Mappings of hand-off areas, and of files in memory: together well below the host's `vm.max_map_count` (65530).
static AREAS: Budget = Budget::new(32 << 10);
static FILES: Budget = Budget::new(16 << 10);

/// Address space for mappings of files in memory, and for areas: an eighth and a quarter of what a process has, a quarter
/// and a half of `RLIMIT_AS` if that is less.
fn address_space() -> &'static [Budget; 2] {
    static SPACE: OnceLock<[Budget; 2]> = OnceLock::new();
    SPACE.get_or_init(|| {
        let most = getrlimit(Resource::RLIMIT_AS).map_or(u64::MAX, |(soft, _)| soft);
        [Budget::new((most / 4).min(1 << 44)), Budget::new((most / 2).min(1 << 45))]
    })
}

/// How much of the heap guests' objects may take. What is mapped has three quarters of `RLIMIT_AS`; an eighth is for
/// the rest.
fn heap() -> u64 {
    static HEAP: OnceLock<u64> = OnceLock::new();
    *HEAP.get_or_init(|| {
        let limit = |r| getrlimit(r).map_or(u64::MAX, |(soft, _)| soft);
        (limit(Resource::RLIMIT_AS) / 8).min(limit(Resource::RLIMIT_DATA) / 2)
    })
}

/// What of the heap one kind of objects may take: `most` bytes, less if `part` 64ths of what all may have are less.
pub fn of_heap(most: u64, part: u64) -> u64 {
    most.min((heap() / 64).saturating_mul(part))
}

fn file_space() -> &'static Budget {
    &address_space()[0]
}

/// Room for one hand-off area.
#[derive(Debug)]
pub(crate) struct AreaRoom {
    _one: Charge,
    _bytes: Charge,
}

impl AreaRoom {
    pub(crate) fn new(len: u64) -> Option<AreaRoom> {
        Some(AreaRoom { _one: AREAS.take(1)?, _bytes: address_space()[1].take(len)? })
    }
}

/// Room for the mapping of a file in memory.
#[derive(Debug)]
pub(crate) struct FileRoom {
    bytes: Charge,
    _one: Charge,
}

impl FileRoom {
    /// For `len` bytes. No file may take more than an eighth of what is left, so that some is left for others.
    pub(crate) fn new(len: u64) -> Option<FileRoom> {
        let mut room = FileRoom { bytes: file_space().take(0)?, _one: FILES.take(1)? };
        room.resize(len).then_some(room)
    }
    pub(crate) fn resize(&mut self, len: u64) -> bool {
        len.saturating_sub(self.bytes.amount()) <= file_space().left() / 8 && self.bytes.set(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_exceeded_and_comes_back() {
        static B: Budget = Budget::new(10);
        let mut a = B.take(6).unwrap();
        assert!(B.take(5).is_none());
        assert!(!a.set(11) && a.set(10) && a.amount() == 10 && B.left() == 0);
        assert!(a.set(3));
        let b = B.take(7).unwrap();
        assert!(!a.set(u64::MAX));
        drop((a, b));
        assert_eq!(B.left(), 10);
    }

    #[test]
    fn descriptors_leave_a_reserve() {
        let most = getrlimit(Resource::RLIMIT_NOFILE).unwrap().0;
        let of = descriptor_bound;
        assert!(
            of(Use::Content) < of(Use::Mapped)
                && of(Use::Mapped) < of(Use::File)
                && of(Use::File) < of(Use::Process)
                && of(Use::Process) < most
        );
    }
}
