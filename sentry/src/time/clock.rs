//! Clocks (clock_gettime(2)) and the times that guests pass in.
//!
//! The guest's clocks are the host's: the vDSO reads those directly, so the values here must agree with them.

use crate::error::{Errno, Result};
use platform::executor::now_ns;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const NSEC_PER_SEC: u64 = 1_000_000_000;

/// `struct __kernel_timespec`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UserTimespec {
    pub sec: i64,
    pub nsec: i64,
}

impl UserTimespec {
    pub fn from_ns(ns: u64) -> Self {
        UserTimespec { sec: (ns / NSEC_PER_SEC) as i64, nsec: (ns % NSEC_PER_SEC) as i64 }
    }
    /// Nanoseconds, saturated; `EINVAL` for a negative or denormal time (`timespec64_valid`).
    pub fn to_ns(self) -> Result<u64> {
        let sec = u64::try_from(self.sec).map_err(|_| Errno::EINVAL)?;
        let nsec = u64::try_from(self.nsec).map_err(|_| Errno::EINVAL)?;
        if nsec >= NSEC_PER_SEC {
            return Err(Errno::EINVAL);
        }
        // Linux's ktime saturates at i64::MAX.
        Ok(sec.saturating_mul(NSEC_PER_SEC).saturating_add(nsec).min(i64::MAX as u64))
    }
}

/// `struct __kernel_itimerspec`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UserItimerspec {
    pub interval: UserTimespec,
    pub value: UserTimespec,
}

/// `struct timeval`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UserTimeval {
    pub sec: i64,
    pub usec: i64,
}

impl UserTimeval {
    pub fn from_ns(ns: u64) -> Self {
        UserTimeval { sec: (ns / NSEC_PER_SEC) as i64, usec: (ns % NSEC_PER_SEC / 1000) as i64 }
    }
    /// Nanoseconds, saturated; `EINVAL` for a negative or denormal time.
    pub fn to_ns(self) -> Result<u64> {
        if !(0..1_000_000).contains(&self.usec) {
            return Err(Errno::EINVAL);
        }
        UserTimespec { sec: self.sec, nsec: self.usec * 1000 }.to_ns()
    }
}

/// A clock that runs by itself, unlike processor-time clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    Realtime,
    Monotonic,
    MonotonicRaw,
    RealtimeCoarse,
    MonotonicCoarse,
    Boottime,
    Tai,
}

impl Clock {
    /// By `CLOCK_*` number. The alarm clocks equal their plain ones, since a sandbox does not suspend.
    pub fn from_id(id: i32) -> Option<Clock> {
        Some(match id {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM => Clock::Realtime,
            libc::CLOCK_MONOTONIC => Clock::Monotonic,
            libc::CLOCK_MONOTONIC_RAW => Clock::MonotonicRaw,
            libc::CLOCK_REALTIME_COARSE => Clock::RealtimeCoarse,
            libc::CLOCK_MONOTONIC_COARSE => Clock::MonotonicCoarse,
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => Clock::Boottime,
            libc::CLOCK_TAI => Clock::Tai,
            _ => return None,
        })
    }

    fn host(self) -> nix::time::ClockId {
        use nix::time::ClockId;
        match self {
            Clock::Realtime => ClockId::CLOCK_REALTIME,
            Clock::Monotonic => ClockId::CLOCK_MONOTONIC,
            Clock::MonotonicRaw => ClockId::CLOCK_MONOTONIC_RAW,
            Clock::RealtimeCoarse => ClockId::CLOCK_REALTIME_COARSE,
            Clock::MonotonicCoarse => ClockId::CLOCK_MONOTONIC_COARSE,
            Clock::Boottime => ClockId::CLOCK_BOOTTIME,
            Clock::Tai => ClockId::CLOCK_TAI,
        }
    }

    /// The current time in ns.
    pub fn now(self) -> u64 {
        nix::time::clock_gettime(self.host()).map_or(0, |t| t.tv_sec() as u64 * NSEC_PER_SEC + t.tv_nsec() as u64)
    }

    pub fn resolution(self) -> u64 {
        nix::time::clock_getres(self.host()).map_or(1, |t| t.tv_sec() as u64 * NSEC_PER_SEC + t.tv_nsec() as u64)
    }

    /// Whether sleeps and timers can use this clock.
    pub fn has_timers(self) -> bool {
        matches!(self, Clock::Realtime | Clock::Monotonic | Clock::Boottime | Clock::Tai)
    }

    /// The host monotonic time at which this clock reaches `at_ns`, by its current offset.
    pub fn deadline(self, at_ns: u64) -> u64 {
        if self == Clock::Monotonic {
            return at_ns;
        }
        let left = i128::from(at_ns) - i128::from(self.now());
        u64::try_from((i128::from(now_ns()) + left).max(0)).unwrap_or(u64::MAX)
    }
}

/// Host monotonic deadline of an optional relative timeout (`None`: no timeout).
pub fn timeout(t: Option<UserTimespec>) -> Result<Option<u64>> {
    t.map(|t| Ok(now_ns().saturating_add(t.to_ns()?))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_checked() {
        assert_eq!(UserTimespec { sec: -1, nsec: 0 }.to_ns(), Err(Errno::EINVAL));
        assert_eq!(UserTimespec { sec: 0, nsec: -1 }.to_ns(), Err(Errno::EINVAL));
        assert_eq!(UserTimespec { sec: 0, nsec: 1_000_000_000 }.to_ns(), Err(Errno::EINVAL));
        assert_eq!(UserTimespec { sec: i64::MAX, nsec: 999_999_999 }.to_ns(), Ok(i64::MAX as u64));
        assert_eq!(UserTimeval { sec: 1, usec: 1_000_000 }.to_ns(), Err(Errno::EINVAL));
        assert_eq!(UserTimeval { sec: 1, usec: 5 }.to_ns(), Ok(1_000_005_000));
    }

    #[test]
    fn deadlines_follow_the_clock() {
        let far = Clock::Realtime.now() + 10 * NSEC_PER_SEC;
        let d = Clock::Realtime.deadline(far);
        assert!(d > now_ns());
        assert_eq!(Clock::Monotonic.deadline(17), 17);
        assert_eq!(Clock::Realtime.deadline(0), 0);
    }
}
