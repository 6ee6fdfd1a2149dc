//! When the poller spins, when it sleeps, and on which cores it and the guests run.
//!
//! What a hand-off costs (2-core cloud machine): 0.1 µs between two running cores, 4 µs when both sides take turns on one
//! core, 25 µs and more for each wake-up of a core that had gone idle. So there are three modes:
//!
//! | mode | poller | guests | for |
//! |---|---|---|---|
//! | [`SchedMode::Spin`] | spins on a core of its own (`home`) | on all others | calls come often, or a core is to spare |
//! | [`SchedMode::SleepNear`] | sleeps between calls, on the guests' cores | on all but `home` | one guest that calls rarely: its core is awake anyway |
//! | [`SchedMode::SleepAll`] | sleeps; a worker of its on each core sleeps between the calls of the guests there (`executor/workers.rs`) | anywhere | cores are short: guests compute, or others use the machine |
//!
//! Only the third uses all cores for guests. Whether that is worth what a sleeping poller costs is weighed over some milliseconds
//! (`Tally`): how long more guests ran than a spinning poller leaves cores for, against the calls that came, each of which costs a
//! sleeping poller some switches, or the wake-up of an idle core. Looking at the guests that run in one moment would not do: in a shell that
//! starts programs there are always three for a moment (the shell, its child, and the zygote that makes the next address space).
//!
//! When the poller finds again and again that it had been put off its core (a gap between two looks), there is load from outside. With half
//! a core each, a spinning hand-off still beats a sleeping one where calls follow each other within some microseconds, so then it goes on.
//! Otherwise it sleeps (near a guest that is alone), for a time that doubles each time spinning is tried again in vain.
//!
//! `Near` keeps guests together while nobody looks at them, so it is not for programs whose threads could wake each other
//! without asking (futex calls that the stub makes itself).
//!
//! This file only decides; it is told the time and makes no host call.

/// How the hand-off waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HandOff {
    /// By measurement.
    #[default]
    Adaptive,
    /// Both sides sleep at once.
    Sleep,
    /// Both sides spin as long as a guest runs.
    Spin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SchedMode {
    Spin,
    SleepNear,
    SleepAll,
}

impl SchedMode {
    /// Guests leave the poller's core to it.
    pub(crate) fn narrow(self) -> bool {
        self != SchedMode::SleepAll
    }
}

/// What the poller saw in one look at the cells.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scan {
    /// Posts that were found.
    pub(crate) found: usize,
    /// Guests that run.
    pub(crate) running: usize,
    /// Guests in a futex call of their own, who may be woken without the Sentry.
    pub(crate) waiting: usize,
    /// Tasks were run since the last look.
    pub(crate) ran: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Again,
    Sleep,
}

const US: u64 = 1000;
/// How long a spinning poller waits for the next call of a guest that has the other cores to itself, before it sleeps.
const PATIENCE: u64 = 500 * US;
/// Calls are counted over this time.
const WINDOW: u64 = 400 * US;
/// With cores short, spinning pays from one call in so much time on (a sleeping hand-off costs some 5 µs).
const PAYS: u64 = 8 * US;
/// What a call costs with a sleeping poller, more than with a spinning one, when cores are short: two switches on a busy core.
const SWITCHES: u64 = 4 * US;
/// And when they are not: now and then it is the wake-up of an idle core.
const WAKE_UP: u64 = 24 * US;
/// And how long when more guests run than it leaves cores for.
const QUICK: u64 = 1_500 * US;
/// Shortest stay in [`SchedMode::SleepAll`] of guests that may wake each other.
const STAY: u64 = 2_000 * US;
/// From how much time on the two are weighed against what a core more is worth to the guests, and what counts of the last time at most.
const WEIGHED: u64 = 4_000 * US;
const MEMORY: u64 = 8_000 * US;
/// Calls closer together than this make a sleeping poller think of spinning.
const CLOSE: u64 = 60 * US;
/// So many of them in a row.
const CLOSE_CALLS: u32 = 3;
/// A look that took so long was interrupted by somebody else who wants the core.
const GAP: u64 = 1_000 * US;
/// And so soon after another one that somebody goes on wanting it.
const AGAIN: u64 = 20_000 * US;
const HOLD_MIN: u64 = 5_000 * US;
const HOLD_MAX: u64 = 200_000 * US;

/// What spinning costs and saves: how long more guests ran than it leaves cores for, and the calls that came. Halved now and then, so that
/// the past counts less and less.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    total: u64,
    crowded: u64,
    calls_crowded: u64,
    /// Those that came when cores were not short.
    calls: u64,
}

impl Tally {
    fn add(&mut self, elapsed: u64, crowded: bool, calls: usize) {
        let elapsed = elapsed.min(MEMORY);
        self.total += elapsed;
        if crowded {
            self.crowded += elapsed;
            self.calls_crowded += calls as u64;
        } else {
            self.calls += calls as u64;
        }
        if self.total > MEMORY {
            for v in [&mut self.crowded, &mut self.total, &mut self.calls_crowded, &mut self.calls] {
                *v /= 2;
            }
        }
    }

    /// What the calls cost (would cost) with a sleeping poller.
    fn sleeping_costs(&self) -> u64 {
        self.calls_crowded * SWITCHES + self.calls * WAKE_UP
    }

    /// Spinning: whether all cores for the guests would be worth more.
    fn wants_cores(&self, cores: u64) -> bool {
        self.total >= WEIGHED && self.crowded / cores > self.sleeping_costs() * 5 / 4
    }

    /// Sleeping: whether the guests lose more by that than they would by leaving a core to the poller. A guest whose call nobody has seen
    /// yet was taken for one that runs.
    fn wants_spinning(&self, cores: u64) -> bool {
        let ran = self.crowded.saturating_sub(self.calls_crowded * SWITCHES);
        self.total >= WEIGHED && self.sleeping_costs() > ran / (cores - 1) * 5 / 4
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
    /// Calls came often in the last full window of spinning.
    was_often: bool,
    /// More guests ran at the last look than a spinning poller leaves cores for.
    crowded: bool,
    tally: Tally,
    close: u32,
    /// When the poller last had no core.
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

    /// The poller has slept.
    pub(crate) fn woke(&mut self, now: u64) {
        let slept = now - self.last_scan;
        self.tally.add(slept, self.crowded, 0);
        self.last_scan = now;
    }

    /// What to do after a look. The mode may have changed then.
    pub(crate) fn observe(&mut self, now: u64, scan: Scan) -> Next {
        let gap = now - self.last_scan;
        self.last_scan = now;
        if gap > GAP {
            // Nothing could be seen meanwhile.
            self.window += gap;
            self.last_found += gap;
        }
        if gap <= GAP {
            self.tally.add(gap, self.crowded, scan.found);
        }
        self.crowded = scan.running >= self.cores;
        let apart = now - self.last_found;
        if scan.found > 0 || scan.ran {
            // The Sentry's own time on a call does not count: a guest that reads much at once calls often, too.
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
                "the poller turns from {was:?} to {:?} after {} us: {calls} calls, last {} us ago, {scan:?}, {tally:?}",
                self.mode,
                (now - since) / US,
                apart / US
            );
        }
        next
    }

    /// Whether calls come so often that spinning is worth half a core's loss.
    fn often(&self, now: u64) -> bool {
        let elapsed = now - self.window;
        self.was_often || elapsed >= WINDOW / 8 && self.calls as u64 * PAYS >= elapsed
    }

    fn observe_spinning(&mut self, now: u64, scan: Scan, gap: u64, apart: u64) -> Next {
        let lost_core = gap > GAP && !scan.ran;
        // Spinning was given up for that reason not long ago.
        let known = self.hold_until > 0 && now - self.since <= 8 * self.hold;
        let again = known || self.lost_core.is_some_and(|then| now - gap - then < AGAIN);
        if lost_core {
            self.lost_core = Some(now);
        }
        if lost_core && again && !self.often(now) {
            // Somebody else wants this core, and calls are too rare to be worth what is left of it.
            log::debug!("the poller had no core for {} us", gap / US);
            if !known {
                self.hold = HOLD_MIN;
            }
            self.hold_until = now + self.hold;
            self.hold = (self.hold * 2).min(HOLD_MAX);
            let alone = scan.running + scan.found + scan.waiting < self.cores;
            self.switch_mode(if alone { SchedMode::SleepNear } else { SchedMode::SleepAll }, now);
            return Next::Again;
        }
        if now - self.window >= WINDOW {
            self.was_often = self.calls as u64 * PAYS >= now - self.window;
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
                // They may wake each other while nobody looks.
                self.switch_mode(SchedMode::SleepAll, now);
            }
            return Next::Sleep;
        }
        if apart <= if self.crowded { QUICK } else { PATIENCE } {
            return Next::Again;
        }
        let alone = scan.running + scan.waiting < self.cores;
        self.switch_mode(if alone { SchedMode::SleepNear } else { SchedMode::SleepAll }, now);
        Next::Sleep
    }

    fn observe_sleeping(&mut self, now: u64, scan: Scan, apart: u64) -> Next {
        if scan.found > 0 {
            let busy = scan.running + scan.found;
            self.close = if apart < CLOSE { self.close + 1 } else { 0 };
            let elapsed = now - self.window;
            let often = elapsed >= WINDOW / 2 && self.calls as u64 * PAYS >= elapsed;
            let room = busy < self.cores && self.close >= CLOSE_CALLS;
            let spin = match self.mode {
                SchedMode::SleepAll if scan.waiting > 0 && now - self.since < STAY => false,
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

    /// The guest is not alone any more.
    fn leave_sleep_near(&mut self, now: u64, scan: Scan) {
        let spin = scan.waiting == 0 && now >= self.hold_until;
        self.switch_mode(if spin { SchedMode::Spin } else { SchedMode::SleepAll }, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: Scan = Scan { found: 0, running: 1, waiting: 0, ran: false };

    /// Looks every microsecond, with a call each `every` (0: never), until the poller sleeps or the time is over.
    fn go(p: &mut SchedPolicy, from: u64, to: u64, every: u64, running: usize) -> u64 {
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
    fn one_guest_is_waited_for_and_then_kept_near() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let t = go(&mut p, 0, 10_000 * US, 10 * US, 1);
        assert_eq!(p.mode(), SchedMode::Spin);
        let slept = go(&mut p, t, 2 * t, 0, 1);
        assert!(slept - t <= PATIENCE + 2 * US);
        assert_eq!(p.mode(), SchedMode::SleepNear);
        // Rare calls do not bring it back; a burst does.
        let t = go(&mut p, slept, slept + 50_000 * US, 500 * US, 1);
        assert_eq!(p.mode(), SchedMode::SleepNear);
        go(&mut p, t, t + 200 * US, 20 * US, 1);
        assert_eq!(p.mode(), SchedMode::Spin);
    }

    #[test]
    fn computing_guests_get_all_cores() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        go(&mut p, 0, 10_000 * US, 0, 2);
        assert_eq!(p.mode(), SchedMode::SleepAll);
        let t = go(&mut p, 20_000 * US, 60_000 * US, 100 * US, 2);
        assert_eq!(p.mode(), SchedMode::SleepAll);
        // So many calls pay for a core.
        go(&mut p, t, t + 20_000 * US, 4 * US, 2);
        assert_eq!(p.mode(), SchedMode::Spin);
    }

    #[test]
    fn computing_guests_with_few_calls_get_all_cores() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let t = go(&mut p, 0, 20_000 * US, 40 * US, 2);
        assert_eq!(p.mode(), SchedMode::SleepAll);
        go(&mut p, t, t + 100_000 * US, 40 * US, 2);
        assert_eq!(p.mode(), SchedMode::SleepAll);
    }

    /// A shell that starts programs: for a third of the time three run (itself, the child, the zygote), else one.
    #[test]
    fn short_crowds_do_not_end_spinning() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let mut now = 0;
        for _ in 0..100 {
            now = go(&mut p, now, now + 300 * US, 50 * US, 3);
            assert_eq!(p.mode(), SchedMode::Spin);
            now = go(&mut p, now, now + 600 * US, 30 * US, 1);
            assert_eq!(p.mode(), SchedMode::Spin);
        }
    }

    #[test]
    fn spinning_comes_back_when_cores_are_not_short_any_more() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let t = go(&mut p, 0, 50_000 * US, 0, 2);
        assert_eq!(p.mode(), SchedMode::SleepAll);
        p.woke(t + 50_000 * US);
        let t = t + 50_000 * US;
        go(&mut p, t, t + 20_000 * US, 100 * US, 1);
        assert_eq!(p.mode(), SchedMode::Spin);
    }

    #[test]
    fn load_from_outside_ends_spinning_for_a_growing_time() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let mut now = 0;
        let mut holds = Vec::new();
        for round in 0..4 {
            if round == 0 {
                // Once may be chance.
                now = go(&mut p, now, now + 100 * US, 10 * US, 1) + 3000 * US;
                p.observe(now, RUNNING);
                assert_eq!(p.mode(), SchedMode::Spin);
            }
            go(&mut p, now, now + 100 * US, 10 * US, 1);
            now += 3000 * US;
            p.observe(now, RUNNING);
            assert_eq!(p.mode(), SchedMode::SleepNear);
            let began = now;
            while p.mode() != SchedMode::Spin {
                now = go(&mut p, now, now + 20 * US, 10 * US, 1);
            }
            holds.push(now - began);
        }
        assert!(holds.windows(2).all(|w| w[1] > w[0]), "{holds:?}");
    }

    #[test]
    fn calls_that_follow_each_other_are_worth_half_a_core() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let mut now = 0;
        for _ in 0..4 {
            now = go(&mut p, now, now + 2000 * US, 2 * US, 1) + 3000 * US;
            p.observe(now, RUNNING);
            assert_eq!(p.mode(), SchedMode::Spin);
        }
    }

    #[test]
    fn threads_that_wake_each_other_are_not_kept_together() {
        let mut p = SchedPolicy::new(HandOff::Adaptive, 2, 0);
        let scan = Scan { waiting: 3, ..RUNNING };
        let mut now = 0;
        while p.observe(now, scan) == Next::Again {
            now += US;
        }
        assert_eq!(p.mode(), SchedMode::SleepAll);
    }

    #[test]
    fn forced() {
        let mut p = SchedPolicy::new(HandOff::Sleep, 2, 0);
        assert_eq!(p.observe(US, RUNNING), Next::Sleep);
        let mut p = SchedPolicy::new(HandOff::Spin, 2, 0);
        assert_eq!(p.observe(1 << 40, RUNNING), Next::Again);
        assert_eq!(p.observe(1 << 41, Scan::default()), Next::Sleep);
    }
}
