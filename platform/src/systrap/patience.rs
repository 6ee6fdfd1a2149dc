//! How long the Sentry may wait for stubs while others want its attention: a moment at a time, and a small part of all time, however many
//! stubs do not do what they are waited for.

use parking_lot::Mutex;

use crate::executor::now_ns;

/// For one wait.
const ONCE_NS: u64 = 10_000_000;
/// What can be saved up; of the time that passes one part in [`PART`] is.
const MOST_NS: u64 = 50_000_000;
const PART: u64 = 20;

pub(super) struct Patience(Mutex<Left>);

struct Left {
    ns: u64,
    at: u64,
}

impl Patience {
    pub(super) fn new() -> Self {
        Patience(Mutex::new(Left { ns: MOST_NS, at: now_ns() }))
    }

    /// Calls `wait` with the time that it may take (ns), unless there is none to spare.
    pub(super) fn spend(&self, wait: impl FnOnce(u64)) {
        let begun = now_ns();
        let granted = {
            let mut left = self.0.lock();
            let saved = begun.saturating_sub(left.at) / PART;
            *left = Left { ns: left.ns.saturating_add(saved).min(MOST_NS), at: begun };
            let granted = left.ns.min(ONCE_NS);
            left.ns -= granted;
            granted
        };
        // Less is not worth going to sleep.
        if granted >= ONCE_NS / 10 {
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
                assert!(ns <= ONCE_NS);
                let since = now_ns();
                while now_ns() - since < ns {
                    std::hint::spin_loop();
                }
                waited += ns;
                waits += 1;
            });
        }
        let all = now_ns() - begun;
        assert!(waits >= 5 && waited <= MOST_NS + all / PART, "{waits} waits, {waited} of {all}");
        // What is not used is there again.
        std::thread::sleep(std::time::Duration::from_millis(300));
        for _ in 0..1000 {
            let mut granted = false;
            patience.spend(|_| granted = true);
            assert!(granted);
        }
    }
}
