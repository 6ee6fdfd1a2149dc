//! POSIX timers of a process (timer_create(2)).
//!
//! A timer has at most one queued signal. When that is taken ([`signal_taken`]), the expirations since it was
//! queued become its overrun count, and a periodic timer continues. A timer whose signal is ignored stops
//! until it is no longer ignored, so an inattentive guest costs nothing.

use super::clock::Clock;
use super::cpu::{group_clock, CpuTimer, Part};
use super::timer::{Left, Next, Setting, Timer};
use crate::error::{Errno, Result};
use crate::kernel::signal::{SigFields, SigInfo};
use crate::kernel::users::{self, Charge, Resource};
use crate::kernel::{Kernel, Task, ThreadGroup};
use parking_lot::Mutex;
use platform::executor::{drop_aside, Rounds};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Weak};

/// `si_code` of timers.
pub const SI_TIMER: i32 = -2;
/// `DELAYTIMER_MAX`.
const OVERRUN_MAX: u64 = i32::MAX as u64;

/// The time that a timer measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Clock(Clock),
    /// The processor time of the process that creates the timer.
    Cpu(Part),
}

/// Notification at an expiration (`sigev_notify`).
#[derive(Clone)]
pub enum Notify {
    None,
    Group { sig: i32, value: u64 },
    Thread { sig: i32, value: u64, task: Weak<Task> },
}

enum Kind {
    Wall(Clock, Timer),
    Cpu(CpuTimer),
}

/// State shared by the timer and its expiration callback.
struct Shared {
    id: i32,
    notify: Notify,
    group: Weak<ThreadGroup>,
    /// A signal of this timer is queued.
    queued: AtomicBool,
    /// The timer has expired and its signal is ignored; it continues at [`unignored`].
    parked: AtomicBool,
}

pub struct PosixTimer {
    shared: Arc<Shared>,
    kind: Kind,
    overrun: AtomicI32,
    _charge: Charge,
}

/// The timers of a process, in `ThreadGroup::timers`.
#[derive(Default)]
pub struct PosixTimers {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: i32,
    timers: BTreeMap<i32, Arc<PosixTimer>>,
}

impl Shared {
    /// Whether a signal of that number is pending in the queue that this timer uses.
    fn waits(&self, sig: i32) -> bool {
        match &self.notify {
            Notify::Thread { task, .. } => task.upgrade().is_some_and(|t| t.signals.lock().pending.set.has(sig)),
            _ => self.group.upgrade().is_some_and(|g| g.pending.lock().set.has(sig)),
        }
    }

    fn expired(&self) -> Next {
        let Some(group) = self.group.upgrade() else { return Next::Hold };
        let (sig, value) = match self.notify {
            Notify::None => return Next::Hold,
            Notify::Group { sig, value } | Notify::Thread { sig, value, .. } => (sig, value),
        };
        if self.queued.swap(true, Ordering::SeqCst) {
            return Next::Hold;
        }
        let fields = SigFields::Timer { id: self.id, overrun: 0, value };
        let info = SigInfo { signo: sig, errno: 0, code: SI_TIMER, fields };
        match &self.notify {
            Notify::Thread { task, .. } => {
                let Some(task) = task.upgrade() else { return Next::Hold };
                super::signal_task(&task, info);
            }
            _ => super::signal_group(&group, info),
        }
        if self.waits(sig) {
            Next::Hold
        } else {
            // The signal is ignored or already taken.
            self.queued.store(false, Ordering::SeqCst);
            if !super::ignores(&group, sig) {
                return Next::Rearm;
            }
            self.parked.store(true, Ordering::SeqCst);
            // Checked again: the signal may have been unignored since the check above.
            if super::ignores(&group, sig) || !self.parked.swap(false, Ordering::SeqCst) {
                return Next::Hold;
            }
            Next::Rearm
        }
    }
}

/// Going through more timers takes milliseconds.
const MANY: usize = 4096;

impl Drop for PosixTimers {
    fn drop(&mut self) {
        let timers = std::mem::take(&mut self.table.get_mut().timers);
        if timers.len() > MANY {
            drop_aside(timers);
        }
    }
}

impl PosixTimers {
    /// Creates a disarmed timer. `limit` bounds the user's timers and queued signals. `notify` gets the new
    /// timer's id.
    pub fn create(
        &self,
        kernel: &Arc<Kernel>,
        group: &Arc<ThreadGroup>,
        source: Source,
        limit: u64,
        notify: impl FnOnce(i32) -> Notify,
    ) -> Result<i32> {
        let charge = users::current().charge(Resource::Signals, limit).ok_or(Errno::EAGAIN)?;
        let mut t = self.table.lock();
        let mut id = t.next;
        while t.timers.contains_key(&id) {
            id = id.checked_add(1).unwrap_or(0);
        }
        t.next = id.checked_add(1).unwrap_or(0);
        let (queued, parked) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { id, notify: notify(id), group: Arc::downgrade(group), queued, parked });
        let s = shared.clone();
        let expire = move |_| s.expired();
        let kind = match source {
            Source::Clock(c) => Kind::Wall(c, Timer::new(&kernel.executor, expire)),
            Source::Cpu(part) => Kind::Cpu(CpuTimer::new(&kernel.executor, group_clock(group, part), expire)),
        };
        t.timers.insert(id, Arc::new(PosixTimer { shared, kind, overrun: AtomicI32::new(0), _charge: charge }));
        Ok(id)
    }

    pub fn get(&self, id: i32) -> Result<Arc<PosixTimer>> {
        self.table.lock().timers.get(&id).cloned().ok_or(Errno::EINVAL)
    }

    /// A signal is no longer ignored: its timers continue.
    fn unignored(&self, sig: i32) {
        let all: Vec<_> = self.table.lock().timers.values().cloned().collect();
        let mut rounds = Rounds::new();
        for timer in all {
            rounds.next();
            let timer_sig = match timer.shared.notify {
                Notify::Group { sig, .. } | Notify::Thread { sig, .. } => sig,
                Notify::None => continue,
            };
            // Marked as queued but not pending: the signal was dropped when it became ignored.
            let dropped = timer_sig == sig && timer.shared.queued.load(Ordering::SeqCst) && !timer.shared.waits(sig);
            if dropped {
                timer.shared.queued.store(false, Ordering::SeqCst);
            }
            if dropped || (timer_sig == sig && timer.shared.parked.swap(false, Ordering::SeqCst)) {
                timer.take();
            }
        }
    }

    pub fn delete(&self, id: i32) -> Result<()> {
        // Dropped outside the lock.
        let gone = self.table.lock().timers.remove(&id);
        gone.map(drop).ok_or(Errno::EINVAL)
    }
}

impl PosixTimer {
    /// Arms for `value` ns from now, or for that time of the timer's clock; 0 disarms. Returns the previous
    /// remaining time.
    pub fn set(&self, value: u64, interval: u64, absolute: bool) -> Left {
        let setting = |deadline: u64| Setting {
            deadline_ns: (value != 0).then_some(deadline),
            interval_ns: if value == 0 { 0 } else { interval },
        };
        self.overrun.store(0, Ordering::SeqCst);
        self.shared.parked.store(false, Ordering::SeqCst);
        match &self.kind {
            Kind::Wall(clock, t) => {
                let at = if absolute { clock.deadline(value) } else { Clock::Monotonic.now().saturating_add(value) };
                t.set(setting(at))
            }
            Kind::Cpu(t) => t.set(setting(if absolute { value } else { t.now().saturating_add(value) })),
        }
    }

    pub fn left(&self) -> Left {
        match &self.kind {
            Kind::Wall(_, t) => t.get(),
            Kind::Cpu(t) => t.get(),
        }
    }

    /// `timer_getoverrun`: overruns of the last signal taken.
    pub fn overrun(&self) -> i32 {
        self.overrun.load(Ordering::SeqCst)
    }

    fn take(&self) -> u64 {
        match &self.kind {
            Kind::Wall(_, t) => t.take(),
            Kind::Cpu(t) => t.take(),
        }
    }
}

/// Whether a process has so many timers that going through them takes long.
pub fn has_many(group: &ThreadGroup) -> bool {
    group.timers.get::<PosixTimers>().is_some_and(|timers| timers.table.lock().timers.len() > MANY)
}

/// To be called when a signal that a process ignored is not ignored any more.
pub fn unignored(group: &ThreadGroup, sig: i32) {
    if let Some(timers) = group.timers.get::<PosixTimers>() {
        timers.unignored(sig);
    }
}

/// To be called with every signal taken from a queue: fills in a timer's overrun count and lets the timer
/// continue.
pub fn signal_taken(group: &ThreadGroup, info: &mut SigInfo) {
    if info.code != SI_TIMER {
        return;
    }
    let SigFields::Timer { id, overrun, .. } = &mut info.fields else { return };
    let Some(timer) = group.timers.get::<PosixTimers>().and_then(|t| t.get(*id).ok()) else { return };
    timer.shared.queued.store(false, Ordering::SeqCst);
    let n = timer.take().saturating_sub(1).min(OVERRUN_MAX) as i32;
    timer.overrun.store(n, Ordering::SeqCst);
    *overrun = n;
}
