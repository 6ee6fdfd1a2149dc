//! The hand-off's state machine: every step that either side makes on the words both can see. Compiled into the stub and
//! into the Sentry; generic over the words, so that `tests/handoff_model.rs` can run it under loom, which tries all
//! interleavings and all that weak memory allows.
//!
//! * The stub: [`post`], then [`wait`].
//! * The Sentry: [`is_posted`], then [`reply`]; before it, when no answer will come soon, [`park`]. One thread of it is at work at a time:
//!   from [`acquire`] until [`release`].
//! * A new thread or process begins in [`wait`], with PARKED as its state: so its first answer may come before it does.
//!
//! What holds, if the stub is ours (a hostile one can only keep itself waiting, or have the Sentry look in vain):
//!
//! 1. No post is slept through: the stub posts, then looks whether somebody polls, and rings if not; who rests leaves the work to
//!    others, says that nobody polls, then looks at the cells, then sleeps. A full barrier stands between both pairs, so one sees the other.
//!    Who is rung and finds another one at work sleeps again: that one will look once more after it has left the work.
//! 2. No answer is slept through: the stub sleeps only on a state that it has seen, and which an answer changes; whoever
//!    overwrites a state that tells of sleep wakes.
//! 3. What was written before a post (an answer) is seen after it was found (received).
#![allow(dead_code)]

use super::abi::state;

/// A word that both sides can see.
pub trait Word {
    fn load_acquire(&self) -> u32;
    fn load_seq_cst(&self) -> u32;
    fn store_seq_cst(&self, v: u32);
    fn swap_seq_cst(&self, v: u32) -> u32;
    /// Compare and exchange (acquire, release); whether it succeeded.
    fn change(&self, from: u32, to: u32) -> bool;
    /// A full barrier.
    fn fence();
    /// A full barrier after a swap: on x86 the swap is one itself.
    fn fence_after_swap() {}
}

/// The stub has filled in its post. `ring` wakes the poller.
#[inline(always)]
pub fn post<W: Word>(word: &W, polling: &W, notify: impl FnOnce()) {
    word.swap_seq_cst(state::POSTED);
    W::fence_after_swap();
    if polling.load_seq_cst() == 0 {
        notify();
    }
}

/// The stub waits for its answer, looking for it `spins` times before it sleeps. `sleep` is FUTEX_WAIT: it may return at
/// any time, and does not sleep if the word is not the one given.
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
    // REPLY stays: one store less, and the line stays where both can read it.
}

/// Whether there is a post in the cell.
#[inline(always)]
pub fn is_posted(state: u32) -> bool {
    matches!(state, state::POSTED | state::ASLEEP)
}

/// The Sentry has filled in the answer. `wake` is FUTEX_WAKE.
#[inline(always)]
pub fn reply<W: Word>(word: &W, wake: impl FnOnce()) {
    match word.swap_seq_cst(state::REPLY) {
        state::POSTED | state::RUNNING | state::REPLY => {}
        _ => wake(),
    }
}

/// The Sentry tells the stub that it need not look out for its answer.
#[inline(always)]
pub fn park<W: Word>(word: &W) {
    let _ = word.change(state::POSTED, state::PARKED);
}

/// A thread of the Sentry that has been woken sets about looking at the cells, unless another one is at work.
#[inline(always)]
pub fn acquire<W: Word>(at_work: &W, polling: &W) -> bool {
    let free = at_work.swap_seq_cst(1) == 0;
    if free {
        polling.store_seq_cst(1);
    }
    free
}

/// Who is at work leaves it, to sleep until a doorbell rings, unless `found` (one more look) says that there is something to do and nobody
/// else has set about it: then it goes on.
#[inline(always)]
pub fn release<W: Word>(at_work: &W, polling: &W, found: impl FnOnce() -> bool) -> bool {
    // A swap: what one saw who found us at work until now is seen here.
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
