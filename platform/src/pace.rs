//! When the leader spins, when it sleeps, and on which cores it and the guests run.
//!
//! What a hand-off costs (2-core cloud machine): 0.1 µs between two running cores, 4 µs when both sides take turns on one
//! core, 25 µs and more for each wake-up of a core that had gone idle. So there are three gaits:
//!
//! | gait | leader | guests | for |
//! |---|---|---|---|
//! | [`Gait::Spin`] | spins on a core of its own (`home`) | on all others | calls come often, or a core is to spare |
//! | [`Gait::Near`] | sleeps between calls, on the guests' cores | on all but `home` | one guest that calls rarely: its core is awake anyway |
//! | [`Gait::Wide`] | sleeps between calls, anywhere | anywhere | cores are short: guests compute, or others use the machine |
//!
//! Only the third uses all cores for guests, so it is taken as soon as more guests want to run than there are cores for
//! them and their calls do not pay for the core that spinning takes.
//!
//! When the leader finds that it had been put off its core (a gap between two looks), there is load from outside. With half a core each,
//! a spinning hand-off still beats a sleeping one where calls follow each other within some microseconds, so then it goes on. Otherwise
//! it sleeps (near a guest that is alone), for a time that doubles each time spinning is tried again in vain.
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
pub(crate) enum Gait {
    Spin,
    Near,
    Wide,
}

impl Gait {
    /// Guests leave the leader's core to it.
    pub(crate) fn narrow(self) -> bool {
        self != Gait::Wide
    }
}

/// What the leader saw in one look at the cells.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Look {
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
/// How long a spinning leader waits for the next call, before it sleeps.
const PATIENCE: u64 = 150 * US;
/// The same when more guests run than there are cores for.
const SHORT: u64 = 150 * US;
/// Calls are counted over this time.
const WINDOW: u64 = 400 * US;
/// With cores short, spinning pays from one call in so much time on (a sleeping hand-off costs some 5 µs).
const PAYS: u64 = 8 * US;
/// And does not pay any more from one call in so much time on.
const PAYS_NOT: u64 = 20 * US;
/// Calls closer together than this make a sleeping leader think of spinning.
const CLOSE: u64 = 60 * US;
/// So many of them in a row.
const CLOSE_CALLS: u32 = 3;
/// A look that took so long was interrupted by somebody else who wants the core.
const GAP: u64 = 1_000 * US;
const HOLD_MIN: u64 = 5_000 * US;
const HOLD_MAX: u64 = 200_000 * US;
/// Shortest stay in [`Gait::Wide`].
const STAY: u64 = 2_000 * US;

pub(crate) struct Pace {
    hand_off: HandOff,
    cores: usize,
    gait: Gait,
    since: u64,
    last_found: u64,
    last_look: u64,
    window: u64,
    calls: usize,
    /// Calls came often in the last full window of spinning.
    was_often: bool,
    looks: u32,
    crowded: u32,
    close: u32,
    hold: u64,
    hold_until: u64,
}

impl Pace {
    pub(crate) fn new(hand_off: HandOff, cores: usize, now: u64) -> Self {
        let gait = match hand_off {
            HandOff::Sleep => Gait::Wide,
            _ if cores < 2 => Gait::Wide,
            _ => Gait::Spin,
        };
        Pace {
            hand_off,
            cores,
            gait,
            since: now,
            last_found: now,
            last_look: now,
            window: now,
            calls: 0,
            was_often: false,
            looks: 0,
            crowded: 0,
            close: 0,
            hold: HOLD_MIN,
            hold_until: 0,
        }
    }

    pub(crate) fn gait(&self) -> Gait {
        self.gait
    }

    fn turn(&mut self, gait: Gait, now: u64) {
        self.gait = gait;
        self.since = now;
        self.window = now;
        (self.calls, self.looks, self.crowded, self.close) = (0, 0, 0, 0);
        self.was_often = false;
    }

    /// The leader has slept.
    pub(crate) fn woke(&mut self, now: u64) {
        self.last_look = now;
    }

    /// What to do after a look. The gait may have changed then.
    pub(crate) fn look(&mut self, now: u64, look: Look) -> Next {
        let gap = now - self.last_look;
        self.last_look = now;
        if gap > GAP {
            // Nothing could be seen meanwhile.
            self.window += gap;
            self.last_found += gap;
        }
        let apart = now - self.last_found;
        if look.found > 0 {
            self.last_found = now;
            self.calls += look.found;
        }
        let go_on = match self.hand_off {
            HandOff::Spin => Some(look.running + look.found > 0 || look.ran),
            HandOff::Adaptive if self.cores > 1 => None,
            _ => Some(look.found > 0 || look.ran),
        };
        if let Some(go_on) = go_on {
            return if go_on { Next::Again } else { Next::Sleep };
        }
        let (was, since, calls) = (self.gait, self.since, self.calls);
        let next = match self.gait {
            Gait::Spin => self.look_spinning(now, look, gap, apart),
            Gait::Near | Gait::Wide => self.look_sleeping(now, look, apart),
        };
        if self.gait != was {
            log::debug!(
                "the leader turns from {was:?} to {:?} after {} us: {calls} calls, last {} us ago, {look:?}",
                self.gait,
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

    fn look_spinning(&mut self, now: u64, look: Look, gap: u64, apart: u64) -> Next {
        if gap > GAP && !look.ran && !self.often(now) {
            // Somebody else had this core, and calls are too rare to be worth what is left of it.
            log::debug!("the leader had no core for {} us", gap / US);
            if now - self.since > 8 * self.hold {
                self.hold = HOLD_MIN;
            }
            self.hold_until = now + self.hold;
            self.hold = (self.hold * 2).min(HOLD_MAX);
            let alone = look.running + look.found + look.waiting < self.cores;
            self.turn(if alone { Gait::Near } else { Gait::Wide }, now);
            return Next::Again;
        }
        self.looks += 1;
        let crowded = look.running >= self.cores;
        self.crowded += u32::from(crowded);
        if now - self.window >= WINDOW {
            let mostly = self.crowded * 5 >= self.looks * 4;
            if mostly && self.calls as u64 * PAYS_NOT < now - self.window {
                self.turn(Gait::Wide, now);
                return Next::Again;
            }
            self.was_often = self.calls as u64 * PAYS >= now - self.window;
            (self.window, self.calls, self.looks, self.crowded) = (now, 0, 0, 0);
        }
        if look.found > 0 || look.ran {
            return Next::Again;
        }
        if look.running == 0 {
            if look.waiting > 1 {
                // They may wake each other while nobody looks.
                self.turn(Gait::Wide, now);
            }
            return Next::Sleep;
        }
        if crowded && apart > SHORT {
            self.turn(Gait::Wide, now);
        } else if apart > PATIENCE {
            let alone = look.running + look.waiting < self.cores;
            self.turn(if alone { Gait::Near } else { Gait::Wide }, now);
        } else {
            return Next::Again;
        }
        Next::Sleep
    }

    fn look_sleeping(&mut self, now: u64, look: Look, apart: u64) -> Next {
        if look.found > 0 {
            let busy = look.running + look.found;
            self.close = if apart < CLOSE { self.close + 1 } else { 0 };
            let elapsed = now - self.window;
            let often = elapsed >= WINDOW / 2 && self.calls as u64 * PAYS >= elapsed;
            let room = busy < self.cores && self.close >= CLOSE_CALLS;
            let stayed = self.gait == Gait::Near || now - self.since >= STAY;
            if stayed && (often || room && now >= self.hold_until) {
                self.turn(Gait::Spin, now);
                return Next::Again;
            }
            if self.gait == Gait::Near && busy + look.waiting >= self.cores {
                self.turn(Gait::Wide, now);
            } else if elapsed >= WINDOW {
                let alone = busy + look.waiting < self.cores;
                if self.gait == Gait::Wide && alone && stayed && now >= self.hold_until {
                    self.turn(Gait::Near, now);
                } else {
                    (self.window, self.calls) = (now, 0);
                }
            }
            return Next::Again;
        }
        if look.ran {
            return Next::Again;
        }
        if self.gait == Gait::Near && look.running + look.waiting >= self.cores {
            self.turn(Gait::Wide, now);
        }
        Next::Sleep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: Look = Look { found: 0, running: 1, waiting: 0, ran: false };

    /// Looks every microsecond, with a call each `every` (0: never), until the leader sleeps or the time is over.
    fn go(p: &mut Pace, from: u64, to: u64, every: u64, running: usize) -> u64 {
        let mut now = from;
        while now < to {
            now += US;
            let found = usize::from(every > 0 && (now / US).is_multiple_of(every / US));
            let look = Look { found, running: running - found, ran: false, waiting: 0 };
            if p.look(now, look) == Next::Sleep && every == 0 {
                break;
            }
        }
        now
    }

    #[test]
    fn one_guest_is_waited_for_and_then_kept_near() {
        let mut p = Pace::new(HandOff::Adaptive, 2, 0);
        let t = go(&mut p, 0, 10_000 * US, 10 * US, 1);
        assert_eq!(p.gait(), Gait::Spin);
        let slept = go(&mut p, t, 2 * t, 0, 1);
        assert!(slept - t <= PATIENCE + 2 * US);
        assert_eq!(p.gait(), Gait::Near);
        // Rare calls do not bring it back; a burst does.
        let t = go(&mut p, slept, slept + 50_000 * US, 500 * US, 1);
        assert_eq!(p.gait(), Gait::Near);
        go(&mut p, t, t + 200 * US, 20 * US, 1);
        assert_eq!(p.gait(), Gait::Spin);
    }

    #[test]
    fn computing_guests_get_all_cores() {
        let mut p = Pace::new(HandOff::Adaptive, 2, 0);
        go(&mut p, 0, 10_000 * US, 0, 2);
        assert_eq!(p.gait(), Gait::Wide);
        let t = go(&mut p, 20_000 * US, 60_000 * US, 100 * US, 2);
        assert_eq!(p.gait(), Gait::Wide);
        // So many calls pay for a core.
        go(&mut p, t, t + 10_000 * US, 4 * US, 2);
        assert_eq!(p.gait(), Gait::Spin);
    }

    #[test]
    fn load_from_outside_ends_spinning_for_a_growing_time() {
        let mut p = Pace::new(HandOff::Adaptive, 2, 0);
        let mut now = 1000 * US;
        let mut holds = Vec::new();
        for _ in 0..4 {
            go(&mut p, now, now + 100 * US, 10 * US, 1);
            now += 3000 * US;
            p.look(now, RUNNING);
            assert_eq!(p.gait(), Gait::Near);
            let began = now;
            while p.gait() != Gait::Spin {
                now = go(&mut p, now, now + 20 * US, 10 * US, 1);
            }
            holds.push(now - began);
        }
        assert!(holds.windows(2).all(|w| w[1] > w[0]), "{holds:?}");
    }

    #[test]
    fn calls_that_follow_each_other_are_worth_half_a_core() {
        let mut p = Pace::new(HandOff::Adaptive, 2, 0);
        let mut now = 0;
        for _ in 0..4 {
            now = go(&mut p, now, now + 2000 * US, 2 * US, 1) + 3000 * US;
            p.look(now, RUNNING);
            assert_eq!(p.gait(), Gait::Spin);
        }
    }

    #[test]
    fn threads_that_wake_each_other_are_not_kept_together() {
        let mut p = Pace::new(HandOff::Adaptive, 2, 0);
        let look = Look { waiting: 3, ..RUNNING };
        let mut now = 0;
        while p.look(now, look) == Next::Again {
            now += US;
        }
        assert_eq!(p.gait(), Gait::Wide);
    }

    #[test]
    fn forced() {
        let mut p = Pace::new(HandOff::Sleep, 2, 0);
        assert_eq!(p.look(US, RUNNING), Next::Sleep);
        let mut p = Pace::new(HandOff::Spin, 2, 0);
        assert_eq!(p.look(1 << 40, RUNNING), Next::Again);
        assert_eq!(p.look(1 << 41, Look::default()), Next::Sleep);
    }
}
