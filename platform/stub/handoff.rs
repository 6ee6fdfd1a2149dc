//! State machine of the hand-off: every step of either side on the shared words. Compiled into the stub and into the
//! Sentry; generic over the words, so that `tests/handoff_model.rs` can run it under loom, which tries all
//! interleavings and all reorderings that the memory model allows.
//!
//! - The stub calls [`post`], then [`wait`].
//! - The Sentry calls [`is_posted`], then [`reply`]; before that [`park`] if no answer will come soon. One thread of
//!   the Sentry at a time is active, from [`acquire`] until [`release`].
//! - A new thread or process begins in [`wait`], with PARKED as its state, since its first answer may arrive before
//!   it does.
//!
//! Invariants, given an honest stub (a hostile one can only keep itself waiting, or cause useless scans):
//!
//! 1. No post is missed. The stub posts, then reads the polling flag and notifies the doorbell if it is clear. The
//!    active thread releases the work, clears the flag, scans the cells, then sleeps. Both pairs are separated by a
//!    full barrier, so at least one side sees the other. A worker woken while another thread is active goes back to
//!    sleep: the active thread scans once more after its release.
//! 2. No answer is missed. The stub sleeps only on a state that it has read and that an answer changes. A writer that
//!    overwrites a sleeping state wakes the stub.
//! 3. Writes before a post (an answer) are visible after it is found (received).
#![allow(dead_code)]

use super::abi::state;

/// A word in memory shared by both sides.
pub trait Word {
    fn load_acquire(&self) -> u32;
    fn load_seq_cst(&self) -> u32;
    fn store_seq_cst(&self, v: u32);
    fn swap_seq_cst(&self, v: u32) -> u32;
    /// Compare-and-exchange (acquire, release); returns whether it succeeded.
    fn change(&self, from: u32, to: u32) -> bool;
    /// A full barrier.
    fn fence();
    /// A full barrier after a swap: on x86 the swap itself is one.
    fn fence_after_swap() {}
}

/// Publishes a post that the stub has filled in. `notify` wakes the poller.
#[inline(always)]
pub fn post<W: Word>(word: &W, polling: &W, notify: impl FnOnce()) {
    word.swap_seq_cst(state::POSTED);
    W::fence_after_swap();
    if polling.load_seq_cst() == 0 {
        notify();
    }
}

/// Waits for the answer, polling the word `spins` times before sleeping. `sleep` is FUTEX_WAIT: it may return at any
/// time, and does not sleep if the word differs from its argument.
#[inline(always)]
pub fn wait<W: Word>(word: &W, mut spins: u32, relax: impl Fn(), sleep: impl Fn(u32)) {
    loop {
        let s = word.load_acquire();
        if s == state::REPLY {
            break;
        }
        if s == state::POSTED {
            if spins > 0 {
                spins -= 1;
                relax();
                continue;
            }
            if word.change(state::POSTED, state::ASLEEP) {
                sleep(state::ASLEEP);
            }
        } else {
            sleep(s);
        }
    }
    // REPLY stays: that saves a store, and the cache line remains shared.
}

/// Whether the cell holds a post.
#[inline(always)]
pub fn is_posted(state: u32) -> bool {
    matches!(state, state::POSTED | state::ASLEEP)
}

/// Publishes an answer that the Sentry has filled in. `wake` is FUTEX_WAKE.
#[inline(always)]
pub fn reply<W: Word>(word: &W, wake: impl FnOnce()) {
    match word.swap_seq_cst(state::REPLY) {
        state::POSTED | state::RUNNING | state::REPLY => {}
        _ => wake(),
    }
}

/// Lets the stub stop spinning for its answer.
#[inline(always)]
pub fn park<W: Word>(word: &W) {
    let _ = word.change(state::POSTED, state::PARKED);
}

/// Makes the calling thread of the Sentry the active one, unless another one is active.
#[inline(always)]
pub fn acquire<W: Word>(at_work: &W, polling: &W) -> bool {
    let free = at_work.swap_seq_cst(1) == 0;
    if free {
        polling.store_seq_cst(1);
    }
    free
}

/// Ends the activity of the calling thread, which is about to sleep until its doorbell is notified. If `found` (one
/// more scan) reports work and no other thread has become active, the caller stays active; returns whether it does.
#[inline(always)]
pub fn release<W: Word>(at_work: &W, polling: &W, found: impl FnOnce() -> bool) -> bool {
    // A swap: writes of a thread that found this one active until now are visible after it.
    at_work.swap_seq_cst(0);
    polling.store_seq_cst(0);
    W::fence();
    found() && acquire(at_work, polling)
}

impl Word for core::sync::atomic::AtomicU32 {
    #[inline(always)]
    fn load_acquire(&self) -> u32 {
        self.load(core::sync::atomic::Ordering::Acquire)
    }
    #[inline(always)]
    fn load_seq_cst(&self) -> u32 {
        self.load(core::sync::atomic::Ordering::SeqCst)
    }
    #[inline(always)]
    fn store_seq_cst(&self, v: u32) {
        self.store(v, core::sync::atomic::Ordering::SeqCst)
    }
    #[inline(always)]
    fn swap_seq_cst(&self, v: u32) -> u32 {
        self.swap(v, core::sync::atomic::Ordering::SeqCst)
    }
    #[inline(always)]
    fn change(&self, from: u32, to: u32) -> bool {
        use core::sync::atomic::Ordering::{AcqRel, Relaxed};
        self.compare_exchange(from, to, AcqRel, Relaxed).is_ok()
    }
    #[inline(always)]
    fn fence() {
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst)
    }
}
