//! A round or a fork whose descriptors cannot be sent yet ([`super::super::inflight`]): it is retried for some time.

use super::super::inflight::{PATIENCE_NS, RETRY_NS};
use super::*;
use crate::executor::{now_ns, TimerHandle};

/// Start of the delay, and the timer of the next attempt.
pub(super) struct Held {
    since: u64,
    _timer: Option<TimerHandle>,
}

impl Thread {
    /// Delays an operation that cannot be sent now; `false` if it has been delayed for long enough.
    pub(super) fn hold(&mut self) -> bool {
        let now = now_ns();
        let since = self.held.as_ref().map_or(now, |h| h.since);
        let patient = now.saturating_sub(since) < PATIENCE_NS;
        self.held = patient.then_some(Held { since, _timer: None });
        if !patient {
            self.ticket = None;
        }
        patient
    }

    /// Wakes the task of `cx` for another attempt.
    fn try_again(&mut self, cx: &mut Context<'_>) {
        let timer = self.space.inner.executor.timer(now_ns() + RETRY_NS, cx.waker().clone());
        if let Some(held) = &mut self.held {
            held._timer = Some(timer);
        }
    }

    /// Delays the round in the cell, which began with operation `first` and has had no effect. Returns whether it
    /// will be retried.
    pub(super) fn hold_round(&mut self, first: usize, copied: usize) -> bool {
        if !self.hold() {
            return false;
        }
        self.sent = first;
        self.copied = copied;
        self.round.clear();
        // Waiters must not take the delayed operations for carried out.
        self.shared.seq.store(self.shared.seq.load(Relaxed).wrapping_add(1), Relaxed);
        self.expect = Expect::Held;
        true
    }

    /// Retries a delayed round; `Pending`: it is still delayed.
    pub(super) fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.expect != Expect::Held || self.dead().is_some() {
            return Poll::Ready(());
        }
        self.post_round();
        if self.expect != Expect::Held {
            return Poll::Ready(());
        }
        self.watched.set_waker(cx.waker());
        self.try_again(cx);
        Poll::Pending
    }

    /// Retries a delayed fork; `Pending`: it is still delayed.
    pub(super) fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<Result<Forking, Errno>> {
        let begun = match self.forking.take() {
            None => Err(Errno::EINVAL),
            Some(Err(Errno::ETOOMANYREFS)) => self.begin_fork(),
            Some(begun) => begun,
        };
        match begun {
            Err(Errno::ETOOMANYREFS) if self.dead().is_none() && self.hold() => {
                self.try_again(cx);
                self.forking = Some(Err(Errno::ETOOMANYREFS));
                Poll::Pending
            }
            // Linux's error if a process cannot be created.
            Err(Errno::ETOOMANYREFS | Errno::EMFILE | Errno::ENFILE) => Poll::Ready(Err(Errno::EAGAIN)),
            begun => Poll::Ready(begun),
        }
    }
}
