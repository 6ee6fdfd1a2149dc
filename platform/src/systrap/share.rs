//! How descriptors in flight ([`super::inflight`]) are shared out among processes when there are many.
//!
//! Each process has an account, and counts for those of its ancestors as well. A process with its descendants may
//! have seven eighths of what the sandbox (or its parent's part of it) has left. So what all of them leave untaken is
//! less than half, and what is left is for others: however many processes one makes, they are one account among its
//! siblings. Deeper than [`DEPTH`] processes share their ancestor's.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::inflight::{CALM, LIMIT};

/// Most accounts above each other. With all ancestors' parts taken off, one so deep can still send what a round
/// needs.
const DEPTH: usize = 8;
/// Most waiting ones that are looked at each time.
const SERVED: usize = 1024;

#[derive(Default)]
struct Account {
    used: AtomicUsize,
    depth: usize,
    above: Option<Arc<Account>>,
}

/// Whose descendant a process is, as far as what it is sent counts for others.
#[derive(Clone, Default)]
pub struct Lineage(Arc<Account>);

impl PartialEq for Lineage {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Lineage {
    /// That of a child.
    pub fn child(&self) -> Lineage {
        if self.0.depth == DEPTH {
            return self.clone();
        }
        let account = Account { used: AtomicUsize::new(0), depth: self.0.depth + 1, above: Some(self.0.clone()) };
        Lineage(Arc::new(account))
    }

    fn chain(&self) -> impl Iterator<Item = &Account> {
        std::iter::successors(Some(&*self.0), |a| a.above.as_deref())
    }

    /// Whether there is a share of `n` more for it. The lock of [`Shares`] is held, or the answer is out of date.
    fn fits(&self, n: usize) -> bool {
        let mut all = [0; DEPTH + 1];
        for (slot, account) in all.iter_mut().zip(self.chain()) {
            *slot = account.used.load(Relaxed);
        }
        let used = &all[..=self.0.depth];
        let mut room = LIMIT.saturating_sub(used[self.0.depth]);
        for used in used.iter().rev().skip(1) {
            room = (room - room / 8).saturating_sub(*used);
        }
        n <= room
    }

    fn add(&self, n: usize) {
        self.chain().for_each(|a| {
            a.used.fetch_add(n, Relaxed);
        });
    }
    pub(super) fn give_back(&self, n: usize) {
        self.chain().for_each(|a| {
            a.used.fetch_sub(n, Relaxed);
        });
    }
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.0.used.load(Relaxed)
    }
}

struct Waiter {
    lineage: Lineage,
    n: usize,
    /// They are counted.
    served: AtomicBool,
}

/// All accounts of a sandbox.
#[derive(Default)]
pub(super) struct Shares {
    root: Arc<Account>,
    /// In the order in which they came. Held while anything is counted beyond [`CALM`].
    waiting: Mutex<VecDeque<Arc<Waiter>>>,
}

/// A place among those that wait.
pub(super) struct Ticket {
    shares: Weak<Shares>,
    waiter: Arc<Waiter>,
}

impl Shares {
    pub(super) fn root(&self) -> Lineage {
        Lineage(self.root.clone())
    }

    /// Counts `n` for it if it may have so many.
    pub(super) fn take(&self, lineage: &Lineage, n: usize) -> bool {
        if self.root.used.load(Relaxed) + n > CALM {
            let waiting = self.waiting.lock();
            let fits = lineage.fits(n);
            if fits {
                lineage.add(n);
            }
            drop(waiting);
            return fits;
        }
        // Some threads may do this at once: a round of each too many, which is within the limit.
        lineage.add(n);
        true
    }

    pub(super) fn calm(&self) -> bool {
        self.root.used.load(Relaxed) < CALM
    }

    pub(super) fn wait(self: &Arc<Self>, lineage: &Lineage, n: usize) -> Ticket {
        let waiter = Arc::new(Waiter { lineage: lineage.clone(), n, served: AtomicBool::new(false) });
        self.waiting.lock().push_back(waiter.clone());
        Ticket { shares: Arc::downgrade(self), waiter }
    }

    /// Something may have been given back: counts it for those that have waited longest.
    pub(super) fn serve(&self) {
        let mut waiting = self.waiting.lock();
        let mut looked = 0;
        waiting.retain(|w| {
            looked += 1;
            let fits = looked <= SERVED && w.lineage.fits(w.n);
            if fits {
                w.lineage.add(w.n);
                w.served.store(true, Release);
            }
            !fits
        });
    }
}

impl Ticket {
    pub(super) fn is_for(&self, lineage: &Lineage, n: usize) -> bool {
        self.waiter.n == n && self.waiter.lineage == *lineage
    }

    /// Whether it has been served; then it has no more to give.
    pub(super) fn redeem(&mut self, lineage: &Lineage, n: usize) -> bool {
        self.is_for(lineage, n) && self.waiter.served.swap(false, AcqRel)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(shares) = self.shares.upgrade() {
            shares.waiting.lock().retain(|w| !Arc::ptr_eq(w, &self.waiter));
        }
        // It is in no list any more.
        if self.waiter.served.swap(false, AcqRel) {
            self.waiter.lineage.give_back(self.waiter.n);
        }
    }
}
