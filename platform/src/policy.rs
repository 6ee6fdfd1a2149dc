//! Scheduling policy: when the poller spins, when it sleeps, and on which cores it and the guests run.
//!
//! Cost of a hand-off (2-core cloud machine): 0.1 µs between two running cores, 4 µs if both sides alternate on one
//! core, 25 µs and more for each wake-up of an idle core. Hence three modes:
//!
//! - [`SchedMode::Spin`]: the poller spins on a core of its own (the poller core); guests run on all others. For
//!   frequent calls, or spare cores.
//! - [`SchedMode::SleepNear`]: the poller sleeps between calls, on the guests' cores; guests run on all cores but the
//!   poller core. For one guest that rarely calls: its core is awake anyway.
//! - [`SchedMode::SleepAll`]: the poller sleeps; a worker on each core sleeps between the calls of the guests there
//!   (`executor/workers.rs`); guests run on any core. For short cores: guests compute, or other processes use the
//!   machine.
//!
//! Only `SleepAll` lets guests use all cores. `Tally` weighs over some milliseconds whether that outweighs the cost
//! of a sleeping poller: the time in which more guests ran than a spinning poller leaves cores for, against the calls
//! made, each of which costs a sleeping poller some switches or the wake-up of an idle core. The number of runnable
//! guests at one moment is no measure: a shell that starts programs has three for a moment each time (the shell, its
//! child, and the zygote that makes the next address space).
//!
//! A repeated long gap between two scans means that the poller lost its core: there is load from outside. With half a
//! core each, a spinning hand-off still beats a sleeping one if calls follow each other within some microseconds;
//! then the poller keeps spinning. Otherwise it sleeps (in `SleepNear` if one guest runs alone), for a time that
//! doubles with each failed retry of spinning.
//!
//! `SleepNear` keeps guests together on fewer cores while no scan takes place. It is therefore not used for programs
//! whose threads may wake each other without the Sentry (futex calls that the stub makes itself).
//!
//! This module only decides: callers pass the time in, and it makes no host call.

/// How the two sides of a hand-off wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HandOff {
    /// Chosen by measurement.
    #[default]
    Adaptive,
    /// Both sides sleep immediately.
    Sleep,
    /// Both sides spin while a guest runs.
    Spin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SchedMode {
    Spin,
    SleepNear,
    SleepAll,
}

impl SchedMode {
    /// Guests keep off the poller core.
    pub(crate) fn narrow(self) -> bool {
        self != SchedMode::SleepAll
    }
}

/// Result of one scan of the cells.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scan {
    /// Posts found.
    pub(crate) found: usize,
    /// Running guests.
    pub(crate) running: usize,
    /// Guests in a futex call of their own, which may be woken without the Sentry.
    pub(crate) waiting: usize,
    /// Tasks ran since the last scan.
    pub(crate) ran: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Again,
    Sleep,
}

const US: u64 = 1000;
/// Idle time after which a spinning poller sleeps, if the guest has the other cores to itself.
const SPIN_TIMEOUT: u64 = 500 * US;
/// Interval over which calls are counted.
const WINDOW: u64 = 400 * US;
/// With cores short, spinning pays off from one call per this interval on (a sleeping hand-off costs about 5 µs).
const SPIN_CALL_INTERVAL: u64 = 8 * US;
/// Extra cost of a call with a sleeping poller if cores are short: two switches on a busy core.
const SWITCH_COST: u64 = 4 * US;
/// The same if cores are not short: sometimes an idle core has to wake up.
const WAKE_UP_COST: u64 = 24 * US;
/// Like `SPIN_TIMEOUT`, if more guests run than the poller leaves cores for.
const SPIN_TIMEOUT_CROWDED: u64 = 1_500 * US;
/// Minimum stay in [`SchedMode::SleepAll`] for guests that may wake each other.
const MIN_SLEEP_ALL: u64 = 2_000 * US;
/// Minimum observed time for a decision by [`Tally`], and the time after which its values are halved.
const TALLY_MIN: u64 = 4_000 * US;
const TALLY_MAX: u64 = 8_000 * US;
/// Calls closer together than this count as a burst.
const BURST_GAP: u64 = 60 * US;
/// Burst calls in a row after which a sleeping poller considers spinning.
const BURST_CALLS: u32 = 3;
/// A gap of this length between two scans means that another process took the core.
const LOST_CORE_GAP: u64 = 1_000 * US;
/// A second such gap within this time means that the load from outside lasts.
const LOST_CORE_REPEAT: u64 = 20_000 * US;
const HOLD_MIN: u64 = 5_000 * US;
const HOLD_MAX: u64 = 200_000 * US;

/// Cost and benefit of spinning: the time in which more guests ran than a spinning poller leaves cores for, and the
/// calls made. Halved regularly, so that older values lose weight.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    total: u64,
    crowded: u64,
    calls_crowded: u64,
    /// Calls made while cores were not short.
    calls: u64,
}

impl Tally {
    fn add(&mut self, elapsed: u64, crowded: bool, calls: usize) {
        let elapsed = elapsed.min(TALLY_MAX);
        self.total += elapsed;
        if crowded {
            self.crowded += elapsed;
            self.calls_crowded += calls as u64;
        } else {
            self.calls += calls as u64;
        }
        if self.total > TALLY_MAX {
            for v in [&mut self.crowded, &mut self.total, &mut self.calls_crowded, &mut self.calls] {
                *v /= 2;
            }
        }
    }

    /// Cost of the calls with a sleeping poller, actual or hypothetical.
    fn sleeping_costs(&self) -> u64 {
        self.calls_crowded * SWITCH_COST + self.calls * WAKE_UP_COST
    }

    /// While spinning: whether all cores for the guests would be worth more.
    fn wants_cores(&self, cores: u64) -> bool {
        self.total >= TALLY_MIN && self.crowded / cores > self.sleeping_costs() * 5 / 4
    }

    /// While sleeping: whether the guests lose more by it than by leaving a core to the poller. A guest with an
    /// unseen call was counted as running, so the cost of its calls is subtracted.
    fn wants_spinning(&self, cores: u64) -> bool {
        let ran = self.crowded.saturating_sub(self.calls_crowded * SWITCH_COST);
        self.total >= TALLY_MIN && self.sleeping_costs() > ran / (cores - 1) * 5 / 4
    }
}

pub(crate) struct SchedPolicy {
    hand_off: HandOff,
    cores: usize,
    mode: SchedMode,
    since: u64,
    last_found: u64,
    last_scan: u64,
    window: u64,
    calls: usize,
    /// Calls were frequent in the last full window of spinning.
    was_often: bool,
    /// At the last scan more guests ran than a spinning poller leaves cores for.
    crowded: bool,
    tally: Tally,
    close: u32,
    /// When the poller last lost its core.
    lost_core: Option<u64>,
    hold: u64,
    hold_until: u64,
}

impl SchedPolicy {
    pub(crate) fn new(hand_off: HandOff, cores: usize, now: u64) -> Self {
        let mode = match hand_off {
            HandOff::Sleep => SchedMode::SleepAll,
            _ if cores < 2 => SchedMode::SleepAll,
            _ => SchedMode::Spin,
        };
        SchedPolicy {
            hand_off,
            cores,
            mode,
            since: now,
            last_found: now,
            last_scan: now,
            window: now,
            calls: 0,
            was_often: false,
            crowded: false,
            tally: Tally::default(),
            close: 0,
            lost_core: None,
            hold: HOLD_MIN,
            hold_until: 0,
        }
    }

    pub(crate) fn mode(&self) -> SchedMode {
        self.mode
    }

    fn switch_mode(&mut self, mode: SchedMode, now: u64) {
        if self.mode.narrow() != mode.narrow() {
            self.tally = Tally::default();
        }
        self.mode = mode;
        self.since = now;
        self.window = now;
        (self.calls, self.close) = (0, 0);
        self.was_often = false;
    }

    /// Reports that the poller has slept.
    pub(crate) fn woke(&mut self, now: u64) {
        // Another thread may have looked at the clock later, and come here first.
        let now = now.max(self.last_scan);
        let slept = now - self.last_scan;
        self.tally.add(slept, self.crowded, 0);
        self.last_scan = now;
    }

    /// Evaluates a scan: whether to scan again or to sleep. May change the mode.
    pub(crate) fn observe(&mut self, now: u64, scan: Scan) -> Next {
        // Another thread may have looked at the clock later, and come here first.
        let now = now.max(self.last_scan);
        let gap = now - self.last_scan;
        self.last_scan = now;
        if gap > LOST_CORE_GAP {
            // No scan could take place during the gap.
            self.window += gap;
            self.last_found += gap;
        }
        if gap <= LOST_CORE_GAP {
            self.tally.add(gap, self.crowded, scan.found);
        }
        self.crowded = scan.running >= self.cores;
        let apart = now - self.last_found;
        if scan.found > 0 || scan.ran {
            // The Sentry's own time on a call does not count: a guest with large reads calls frequently, too.
            self.last_found = now;
        }
        self.calls += scan.found;
        let go_on = match self.hand_off {
            HandOff::Spin => Some(scan.running + scan.found > 0 || scan.ran),
            HandOff::Adaptive if self.cores > 1 => None,
            _ => Some(scan.found > 0 || scan.ran),
        };
        if let Some(go_on) = go_on {
            return if go_on { Next::Again } else { Next::Sleep };
        }
        let (was, since, calls, tally) = (self.mode, self.since, self.calls, self.tally);
        let next = match self.mode {
            SchedMode::Spin => self.observe_spinning(now, scan, gap, apart),
            SchedMode::SleepNear | SchedMode::SleepAll => self.observe_sleeping(now, scan, apart),
        };
        if self.mode != was {
            log::debug!(
                "poller mode {was:?} to {:?} after {} us: {calls} calls, last {} us ago, {scan:?}, {tally:?}",
                self.mode,
                (now - since) / US,
                apart / US
            );
        }
        next
    }

    /// Whether calls are frequent enough for spinning to be worth half a core.
    fn often(&self, now: u64) -> bool {
        let elapsed = now - self.window;
        self.was_often || elapsed >= WINDOW / 8 && self.calls as u64 * SPIN_CALL_INTERVAL >= elapsed
    }

    fn observe_spinning(&mut self, now: u64, scan: Scan, gap: u64, apart: u64) -> Next {
        let lost_core = gap > LOST_CORE_GAP && !scan.ran;
        // Spinning was given up for this reason not long ago.
        let recent = self.hold_until > 0 && now - self.since <= 8 * self.hold;
        let again = recent || self.lost_core.is_some_and(|then| now - gap - then < LOST_CORE_REPEAT);
        if lost_core {
            self.lost_core = Some(now);
        }
        if lost_core && again && !self.often(now) {
            // Another process wants this core, and calls are too rare to justify the rest of it.
            log::debug!("the poller lost its core for {} us", gap / US);
            if !recent {
                self.hold = HOLD_MIN;
            }
            self.hold_until = now + self.hold;
            self.hold = (self.hold * 2).min(HOLD_MAX);
            let alone = scan.running + scan.found + scan.waiting < self.cores;
            self.switch_mode(if alone { SchedMode::SleepNear } else { SchedMode::SleepAll }, now);
            return Next::Again;
        }
        if now - self.window >= WINDOW {
            self.was_often = self.calls as u64 * SPIN_CALL_INTERVAL >= now - self.window;
            (self.window, self.calls) = (now, 0);
        }
        if self.tally.wants_cores(self.cores as u64) {
            self.switch_mode(SchedMode::SleepAll, now);
            return Next::Again;
        }
        if scan.found > 0 || scan.ran {
            return Next::Again;
        }
        if scan.running == 0 {
            if scan.waiting > 1 {
                // The guests may wake each other without a scan.
                self.switch_mode(SchedMode::SleepAll, now);
            }
            return Next::Sleep;
        }
        if apart <= if self.crowded { SPIN_TIMEOUT_CROWDED } else { SPIN_TIMEOUT } {
            return Next::Again;
        }
        let alone = scan.running + scan.waiting < self.cores;
        self.switch_mode(if alone { SchedMode::SleepNear } else { SchedMode::SleepAll }, now);
        Next::Sleep
    }

    fn observe_sleeping(&mut self, now: u64, scan: Scan, apart: u64) -> Next {
        if scan.found > 0 {
            let busy = scan.running + scan.found;
            self.close = if apart < BURST_GAP { self.close + 1 } else { 0 };
            let elapsed = now - self.window;
            let often = elapsed >= WINDOW / 2 && self.calls as u64 * SPIN_CALL_INTERVAL >= elapsed;
            let room = busy < self.cores && self.close >= BURST_CALLS;
            let spin = match self.mode {
                SchedMode::SleepAll if scan.waiting > 0 && now - self.since < MIN_SLEEP_ALL => false,
                SchedMode::SleepAll => self.tally.wants_spinning(self.cores as u64),
                _ => often || room,
            };
            if spin && (often || now >= self.hold_until) {
                self.switch_mode(SchedMode::Spin, now);
                return Next::Again;
            }
            if self.mode == SchedMode::SleepNear && busy + scan.waiting >= self.cores {
                self.leave_sleep_near(now, scan);
            } else if elapsed >= WINDOW {
                (self.window, self.calls) = (now, 0);
            }
            return Next::Again;
        }
        if scan.ran {
            return Next::Again;
        }
        if self.mode == SchedMode::SleepNear && scan.running + scan.waiting >= self.cores {
            self.leave_sleep_near(now, scan);
            return if self.mode == SchedMode::Spin { Next::Again } else { Next::Sleep };
        }
        Next::Sleep
    }

    /// The guest no longer runs alone.
    fn leave_sleep_near(&mut self, now: u64, scan: Scan) {
        let spin = scan.waiting == 0 && now >= self.hold_until;
        self.switch_mode(if spin { SchedMode::Spin } else { SchedMode::SleepAll }, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: Scan = Scan { found: 0, running: 1, waiting: 0, ran: false };

    /// Scans every microsecond, with a call each `every` (0: never), until the poller sleeps or the time is over.
    fn scan_each_us(p: &mut SchedPolicy, from: u64, to: u64, every: u64, running: usize) -> u64 {
        let mut now = from;
        while now < to {
            now += US;
            let found = usize::from(every > 0 && (now / US).is_multiple_of(every / US));
            let scan = Scan { found, running: running - found, ran: false, waiting: 0 };
            if p.observe(now, scan) == Next::Sleep && every == 0 {
                break;
            }
        }
        now
    }

    #[test]
    fn the_poller_spins_for_one_guest_then_sleeps_near_it() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let t = scan_each_us(&mut p, 0, 10_000 * US, 10 * US, 1);
        assert_eq!(p.mode(), SchedMode::Spin);
        let slept = scan_each_us(&mut p, t, 2 * t, 0, 1);
        assert!(slept - t <= SPIN_TIMEOUT + 2 * US);
        assert_eq!(p.mode(), SchedMode::SleepNear);
        // Rare calls do not restore spinning; a burst does.
        let t = scan_each_us(&mut p, slept, slept + 50_000 * US, 500 * US, 1);
        assert_eq!(p.mode(), SchedMode::SleepNear);
        scan_each_us(&mut p, t, t + 200 * US, 20 * US, 1);
        assert_eq!(p.mode(), SchedMode::Spin);
    }

    #[test]
    fn computing_guests_get_all_cores() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        scan_each_us(&mut p, 0, 10_000 * US, 0, 2);
        assert_eq!(p.mode(), SchedMode::SleepAll);
        let t = scan_each_us(&mut p, 20_000 * US, 60_000 * US, 100 * US, 2);
        assert_eq!(p.mode(), SchedMode::SleepAll);
        // Frequent calls are worth a core.
        scan_each_us(&mut p, t, t + 20_000 * US, 4 * US, 2);
        assert_eq!(p.mode(), SchedMode::Spin);
    }

    #[test]
    fn computing_guests_with_few_calls_get_all_cores() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let t = scan_each_us(&mut p, 0, 20_000 * US, 40 * US, 2);
        assert_eq!(p.mode(), SchedMode::SleepAll);
        scan_each_us(&mut p, t, t + 100_000 * US, 40 * US, 2);
        assert_eq!(p.mode(), SchedMode::SleepAll);
    }

    /// A shell that starts programs: three guests run for a third of the time (itself, the child, the zygote), else
    /// one.
    #[test]
    fn briefly_short_cores_do_not_end_spinning() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let mut now = 0;
        for _ in 0..100 {
            now = scan_each_us(&mut p, now, now + 300 * US, 50 * US, 3);
            assert_eq!(p.mode(), SchedMode::Spin);
            now = scan_each_us(&mut p, now, now + 600 * US, 30 * US, 1);
            assert_eq!(p.mode(), SchedMode::Spin);
        }
    }

    #[test]
    fn spinning_resumes_when_cores_are_no_longer_short() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let t = scan_each_us(&mut p, 0, 50_000 * US, 0, 2);
        assert_eq!(p.mode(), SchedMode::SleepAll);
        p.woke(t + 50_000 * US);
        let t = t + 50_000 * US;
        scan_each_us(&mut p, t, t + 20_000 * US, 100 * US, 1);
        assert_eq!(p.mode(), SchedMode::Spin);
    }

    #[test]
    fn load_from_outside_ends_spinning_for_a_growing_time() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let mut now = 0;
        let mut holds = Vec::new();
        for round in 0..4 {
            if round == 0 {
                // A single gap may be chance.
                now = scan_each_us(&mut p, now, now + 100 * US, 10 * US, 1) + 3000 * US;
                p.observe(now, RUNNING);
                assert_eq!(p.mode(), SchedMode::Spin);
            }
            scan_each_us(&mut p, now, now + 100 * US, 10 * US, 1);
            now += 3000 * US;
            p.observe(now, RUNNING);
            assert_eq!(p.mode(), SchedMode::SleepNear);
            let began = now;
            while p.mode() != SchedMode::Spin {
                now = scan_each_us(&mut p, now, now + 20 * US, 10 * US, 1);
            }
            holds.push(now - began);
        }
        assert!(holds.windows(2).all(|w| w[1] > w[0]), "{holds:?}");
    }

    #[test]
    fn frequent_calls_are_worth_half_a_core() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let mut now = 0;
        for _ in 0..4 {
            now = scan_each_us(&mut p, now, now + 2000 * US, 2 * US, 1) + 3000 * US;
            p.observe(now, RUNNING);
            assert_eq!(p.mode(), SchedMode::Spin);
        }
    }

    #[test]
    fn threads_that_wake_each_other_do_not_share_cores() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let scan = Scan { waiting: 3, ..RUNNING };
        let mut now = 0;
        while p.observe(now, scan) == Next::Again {
            now += US;
        }
        assert_eq!(p.mode(), SchedMode::SleepAll);
    }

    #[test]
    fn forced_hand_offs() {
        let mut p = SchedPolicy::new(HandOff::Sleep, 2, 0);
        assert_eq!(p.observe(US, RUNNING), Next::Sleep);
        let mut p = SchedPolicy::new(HandOff::Spin, 2, 0);
        assert_eq!(p.observe(1 << 40, RUNNING), Next::Again);
        assert_eq!(p.observe(1 << 41, Scan::default()), Next::Sleep);
    }
}
