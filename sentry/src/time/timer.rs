//! Timers of the guest kernel: a callback at each expiration, once or periodically.
//!
//! Built on [`Executor::timer`]. Deadlines are host `CLOCK_MONOTONIC` nanoseconds. The callback runs on an
//! executor thread without a lock of the timer, so it may set the timer again, send signals and wake queues.
//! Its result says whether a periodic timer continues by itself ([`Next::Rearm`]) or stays expired
//! ([`Next::Hold`]) until [`Timer::take`]. Linux holds timerfd and POSIX timers in the same way; an
//! inattentive guest then costs nothing. However short the period, a timer sets at most one host timer per
//! [`MIN_PERIOD_NS`]; the expirations in between are counted.
//!
//! Dropping the `Timer` cancels it. A callback that has begun may still run to its end.

use parking_lot::Mutex;
use platform::executor::{now_ns, TimerHandle};
use platform::Executor;
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};

/// Shortest time between two wakes by one periodic timer.
pub const MIN_PERIOD_NS: u64 = 50_000;

/// Action of a periodic timer after the callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Rearm,
    /// Stays expired until [`Timer::take`].
    Hold,
}

/// When a timer expires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// The next expiration, host monotonic ns; `None` disarms.
    pub deadline_ns: Option<u64>,
    /// Period; 0 for one shot.
    pub interval_ns: u64,
}

/// `struct itimerspec` in ns: remaining time (0: disarmed) and period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    pub value_ns: u64,
    pub interval_ns: u64,
}

#[derive(Default)]
struct State {
    setting: Setting,
    /// Expirations since the last `take`.
    ticks: u64,
    held: bool,
    /// Distinguishes this setting from earlier ones.
    generation: u64,
    handle: Option<TimerHandle>,
}

struct Inner {
    executor: Arc<Executor>,
    state: Mutex<State>,
    expire: Box<dyn Fn(u64) -> Next + Send + Sync>,
}

/// The waker that the executor calls. It runs the expiration as a future of its own, since a waker must
/// return at once.
struct Alarm {
    inner: Weak<Inner>,
    generation: u64,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        if let Some(inner) = self.inner.upgrade() {
            let generation = self.generation;
            inner.executor.clone().spawn(Box::pin(async move { inner.expired(generation) }));
        }
    }
}

/// Moves a periodic deadline past `now` and returns the number of expirations.
fn forward(setting: &mut Setting, now: u64) -> u64 {
    let Some(d) = setting.deadline_ns else { return 0 };
    if d > now {
        return 0;
    }
    if setting.interval_ns == 0 {
        setting.deadline_ns = None;
        return 1;
    }
    let n = (now - d) / setting.interval_ns + 1;
    setting.deadline_ns = d.checked_add(n.saturating_mul(setting.interval_ns));
    n
}

impl Inner {
    /// Sets the executor's timer for the next expiration.
    fn arm(self: &Arc<Self>, s: &mut State, earliest: u64) {
        s.generation += 1;
        s.handle = s.setting.deadline_ns.map(|d| {
            let alarm = Arc::new(Alarm { inner: Arc::downgrade(self), generation: s.generation });
            self.executor.timer(d.max(earliest), Waker::from(alarm))
        });
    }

    fn expired(self: &Arc<Self>, generation: u64) {
        let now = now_ns();
        let n = {
            let mut s = self.state.lock();
            if s.generation != generation {
                return;
            }
            let n = forward(&mut s.setting, now);
            s.ticks = s.ticks.saturating_add(n);
            if n == 0 {
                // Woken early.
                self.arm(&mut s, 0);
                return;
            }
            s.handle = None;
            // Set before the callback: a task woken by it may call `take` before it returns.
            s.held = true;
            n
        };
        let next = (self.expire)(n);
        let mut s = self.state.lock();
        if s.generation != generation {
            return;
        }
        match next {
            Next::Hold => {}
            Next::Rearm => {
                s.held = false;
                s.ticks = 0;
                self.arm(&mut s, now + MIN_PERIOD_NS);
            }
        }
    }
}

/// A timer; see the module documentation.
pub struct Timer {
    inner: Arc<Inner>,
}

impl Timer {
    /// A disarmed timer. `expire` is called with the number of expirations since the last call.
    pub fn new(executor: &Arc<Executor>, expire: impl Fn(u64) -> Next + Send + Sync + 'static) -> Self {
        Timer {
            inner: Arc::new(Inner { executor: executor.clone(), state: Mutex::default(), expire: Box::new(expire) }),
        }
    }

    /// Arms the timer, or disarms it without a deadline, and drops untaken expirations. Returns the previous
    /// remaining time. A deadline in the past expires at once, but not before this returns.
    pub fn set(&self, setting: Setting) -> Left {
        let mut s = self.inner.state.lock();
        let left = left(&s, now_ns());
        s.setting = setting;
        s.ticks = 0;
        s.held = false;
        self.inner.arm(&mut s, 0);
        left
    }

    /// Time until the next expiration.
    pub fn get(&self) -> Left {
        left(&self.inner.state.lock(), now_ns())
    }

    /// Takes the expirations so far (up to now for a held periodic timer); a held timer continues.
    pub fn take(&self) -> u64 {
        let mut s = self.inner.state.lock();
        if s.held {
            s.held = false;
            let now = now_ns();
            let n = forward(&mut s.setting, now);
            s.ticks = s.ticks.saturating_add(n);
            self.inner.arm(&mut s, now);
        }
        std::mem::take(&mut s.ticks)
    }

    /// Expirations that `take` returns at least.
    pub fn ticks(&self) -> u64 {
        self.inner.state.lock().ticks
    }
}

fn left(s: &State, now: u64) -> Left {
    let mut setting = s.setting;
    if setting.interval_ns != 0 {
        // As if the expirations up to now had been handled.
        forward(&mut setting, now);
    }
    // An armed timer never shows 0, which would mean disarmed.
    Left { value_ns: setting.deadline_ns.map_or(0, |d| d.saturating_sub(now).max(1)), interval_ns: setting.interval_ns }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut s = self.inner.state.lock();
        s.generation += 1;
        s.handle = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_counts_periods() {
        let mut s = Setting { deadline_ns: Some(100), interval_ns: 10 };
        assert_eq!(forward(&mut s, 99), 0);
        assert_eq!(forward(&mut s, 100), 1);
        assert_eq!(s.deadline_ns, Some(110));
        assert_eq!(forward(&mut s, 139), 3);
        assert_eq!(s.deadline_ns, Some(140));
    }

    #[test]
    fn one_shot_disarms() {
        let mut s = Setting { deadline_ns: Some(5), interval_ns: 0 };
        assert_eq!(forward(&mut s, 1000), 1);
        assert_eq!(s.deadline_ns, None);
        assert_eq!(forward(&mut s, 2000), 0);
    }

    #[test]
    fn extreme_periods_do_not_overflow() {
        let mut s = Setting { deadline_ns: Some(1), interval_ns: u64::MAX };
        assert_eq!(forward(&mut s, 2), 1);
        assert_eq!(s.deadline_ns, None);
        let mut s = Setting { deadline_ns: Some(0), interval_ns: 1 };
        assert_eq!(forward(&mut s, u64::MAX - 1), u64::MAX);
        assert_eq!(s.deadline_ns, Some(u64::MAX));
    }
}
