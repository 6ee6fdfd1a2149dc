//! Processor time of a container (`cpu.max` of cgroups v2): what it has used is looked at often enough, and when the
//! quota of a period is used up, its tasks stop until the period ends. What was used beyond the quota counts in the
//! next period.

use crate::kernel::cgroup::{Cgroup, CpuMax};
use crate::kernel::Kernel;
use platform::executor::now_ns;
use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::Poll;

/// Shortest time between two looks, in nanoseconds.
const SHORTEST_NS: u64 = 1_000_000;

/// Waits until `until`, a time of the host's `CLOCK_MONOTONIC` in nanoseconds.
pub(super) async fn sleep_until(kernel: &Arc<Kernel>, until: u64) {
    let mut timer = None;
    poll_fn(|cx| {
        if now_ns() >= until {
            return Poll::Ready(());
        }
        timer.get_or_insert_with(|| kernel.executor.timer(until, cx.waker().clone()));
        Poll::Pending
    })
    .await
}

/// Where a period stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Period {
    begun: u64,
    /// Processor time that was used before.
    used_before: u64,
    /// What the last periods have used too much.
    debt: u64,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    LookAt(u64),
    StopUntil(u64),
}

impl Period {
    fn end(&self, max: CpuMax) -> u64 {
        self.begun.saturating_add(max.period.saturating_mul(1000))
    }

    /// `used`: processor time so far, `cpus`: how many processors can use it at a time. All times in nanoseconds.
    fn judge(&self, max: CpuMax, now: u64, used: u64, cpus: u64) -> Next {
        let quota = max.quota.saturating_mul(1000);
        let spent = used.saturating_sub(self.used_before).saturating_add(self.debt);
        match quota.checked_sub(spent).filter(|left| *left > 0) {
            // It cannot be used up earlier than by all processors together.
            Some(left) => Next::LookAt((now + (left / cpus.max(1)).max(SHORTEST_NS)).min(self.end(max))),
            None => Next::StopUntil(self.end(max)),
        }
    }

    fn next(&self, max: CpuMax, now: u64, used: u64) -> Period {
        let spent = used.saturating_sub(self.used_before).saturating_add(self.debt);
        let debt = spent.saturating_sub(max.quota.saturating_mul(1000));
        Period { begun: now, used_before: used, debt }
    }
}

/// Enforces the quota of a cgroup for as long as it has one and the cgroup exists.
pub(super) async fn enforce(kernel: Arc<Kernel>, cgroup: Weak<Cgroup>) {
    let cpus = crate::kernel::sched::cpus().iter().map(|word| u64::from(word.count_ones())).sum();
    let used = |c: &Arc<Cgroup>| {
        let (user, system) = c.cpu_time(&kernel);
        user.saturating_add(system)
    };
    let Some(mut period) = cgroup.upgrade().map(|c| Period { begun: now_ns(), used_before: used(&c), debt: 0 }) else {
        return;
    };
    loop {
        let Some(c) = cgroup.upgrade() else { return };
        let Some(max) = c.cpu_max() else {
            c.end_enforcement();
            // A limit that was set just before saw that there was enforcement.
            match c.cpu_max().is_some() && c.begin_enforcement() {
                true => continue,
                false => return,
            }
        };
        let (now, so_far) = (now_ns(), used(&c));
        if now >= period.end(max) {
            period = period.next(max, now, so_far);
        }
        match period.judge(max, now, so_far, cpus) {
            Next::LookAt(at) => {
                drop(c);
                sleep_until(&kernel, at).await;
            }
            Next::StopUntil(end) => {
                c.throttle(&kernel);
                sleep_until(&kernel, end).await;
                c.unthrottle(now_ns().saturating_sub(now));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: CpuMax = CpuMax { quota: 20_000, period: 100_000 };
    const MS: u64 = 1_000_000;

    #[test]
    fn a_quota_is_looked_at_before_it_can_be_used_up() {
        let p = Period { begun: 0, used_before: 7 * MS, debt: 0 };
        assert_eq!(p.judge(MAX, 0, 7 * MS, 4), Next::LookAt(5 * MS));
        assert_eq!(p.judge(MAX, 10 * MS, 26 * MS, 4), Next::LookAt(11 * MS));
        assert_eq!(p.judge(MAX, 99 * MS, 8 * MS, 1), Next::LookAt(100 * MS));
        assert_eq!(p.judge(MAX, 30 * MS, 27 * MS, 4), Next::StopUntil(100 * MS));
    }

    #[test]
    fn what_is_used_too_much_counts_later() {
        let p = Period { begun: 0, used_before: 0, debt: 0 };
        let next = p.next(MAX, 100 * MS, 50 * MS);
        assert_eq!(next, Period { begun: 100 * MS, used_before: 50 * MS, debt: 30 * MS });
        assert_eq!(next.judge(MAX, 100 * MS, 50 * MS, 4), Next::StopUntil(200 * MS));
        let after = next.next(MAX, 200 * MS, 50 * MS);
        assert_eq!(after.debt, 10 * MS);
    }
}
