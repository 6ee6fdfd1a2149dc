//! Time that the Sentry may wait for stubs while other work is pending: a moment at a time, and a small share of all
//! time, however many stubs do not respond.

use parking_lot::Mutex;

use crate::executor::now_ns;

/// Most time for one wait.
const MAX_WAIT_NS: u64 = 10_000_000;
/// Most time that can be saved up. One part in [`PART`] of the time that passes is saved.
const MAX_SAVED_NS: u64 = 50_000_000;
const PART: u64 = 20;

pub(super) struct Patience(Mutex<Left>);

struct Left {
    ns: u64,
    at: u64,
}

impl Patience {
    pub(super) fn new() -> Self {
        Patience(Mutex::new(Left { ns: MAX_SAVED_NS, at: now_ns() }))
    }

    /// Calls `wait` with the time that it may take (ns), unless no time is left.
    pub(super) fn spend(&self, wait: impl FnOnce(u64)) {
        let begun = now_ns();
        let granted = {
            let mut left = self.0.lock();
            let saved = begun.saturating_sub(left.at) / PART;
            *left = Left { ns: left.ns.saturating_add(saved).min(MAX_SAVED_NS), at: begun };
            let granted = left.ns.min(MAX_WAIT_NS);
            left.ns -= granted;
            granted
        };
        // Sleeping for less is not worthwhile.
        if granted >= MAX_WAIT_NS / 10 {
            wait(granted);
        }
        let rest = granted.saturating_sub(now_ns().saturating_sub(begun));
        self.0.lock().ns += rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_short_and_rare() {
        let patience = Patience::new();
        let (begun, mut waited, mut waits) = (now_ns(), 0, 0);
        for _ in 0..100 {
            patience.spend(|ns| {
                assert!(ns <= MAX_WAIT_NS);
                let since = now_ns();
                while now_ns() - since < ns {
                    std::hint::spin_loop();
                }
                waited += ns;
                waits += 1;
            });
        }
        let all = now_ns() - begun;
        assert!(waits >= 5 && waited <= MAX_SAVED_NS + all / PART, "{waits} waits, {waited} of {all}");
        // Unused time is credited again.
        std::thread::sleep(std::time::Duration::from_millis(300));
        for _ in 0..1000 {
            let mut granted = false;
            patience.spend(|_| granted = true);
            assert!(granted);
        }
    }
}
