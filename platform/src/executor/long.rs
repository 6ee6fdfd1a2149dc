//! Work that takes long without waiting: the thread that does it gives everything else away, to another thread.
//!
//! This may happen while the caller holds locks. Whoever else wants those waits for the caller, as it would have without this.
//!
//! Only so many threads can be given everything to. So what answers a call that can be made again from its beginning asks first
//! ([`Rounds::step`], [`ask_room`]): if the answer is [`NoRoom`] it undoes what it has done, and its caller ([`may_ask`]) waits for
//! [`Executor::calm`] and makes the call again.

use super::*;
use std::cell::RefCell;

thread_local! {
    /// The executor that this thread works for.
    static HERE: RefCell<Weak<Executor>> = const { RefCell::new(Weak::new()) };
    /// What it does now is counted in [`Executor::computing`].
    static COMPUTES: StdCell<bool> = const { StdCell::new(false) };
    /// Whether what this thread does now is to ask before it takes long.
    static ASKS: StdCell<Asks> = const { StdCell::new(Asks::No) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// Nobody would make it again.
    No,
    Yes,
    /// It has asked, and was refused.
    Refused,
}

/// The call takes long, and is to be made again once there is a thread for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// What follows in this poll of a future asks before it takes long (`on`), and its caller makes it again when it was refused; or it
/// does not ask.
#[inline]
pub fn may_ask(on: bool) {
    ASKS.set(if on { Asks::Yes } else { Asks::No });
}

/// Whether what ended last was refused to take long.
pub fn was_refused() -> bool {
    ASKS.get() == Asks::Refused
}

/// Before something that is known to take long.
pub fn ask_room() -> Result<(), NoRoom> {
    if ASKS.get() == Asks::No || !AT_WORK.get() {
        return Ok(());
    }
    ASKS.set(Asks::Refused);
    Err(NoRoom)
}

/// For how long one call may keep all others waiting before another thread takes over.
const TURN_NS: u64 = 2_000_000;
/// How often a call that waits for a thread looks for one.
const ROOM_NS: u64 = 1_000_000;
/// The clock is asked so seldom.
const CLOCK_EACH: u32 = 64;

impl Executor {
    /// This thread works for it from now on.
    pub(super) fn here(&self) {
        HERE.set(self.me.clone());
    }

    /// Waits until there is a thread to give everything else to: for what may wait before [`Executor::block_in_place`], so that many at
    /// once do not take all threads.
    pub async fn room(self: &Arc<Self>) {
        let mut timer = None;
        std::future::poll_fn(|cx| {
            if self.poller.lock().waiting > 0 || self.standbys.load(Relaxed) < STANDBY_THREADS {
                return Poll::Ready(());
            }
            timer = Some(self.timer(now_ns() + ROOM_NS, cx.waker().clone()));
            Poll::Pending
        })
        .await;
        drop(timer);
    }

    /// As [`Executor::room`], for what computes meanwhile: not more of these at once than leave a core to everything else. It counts until
    /// this poll of the future ends.
    pub async fn calm(self: &Arc<Self>) {
        let most = (self.cores.count() / 2).max(1);
        loop {
            self.room().await;
            let begun = self.computing.fetch_update(SeqCst, Relaxed, |n| (n < most).then_some(n + 1)).is_ok();
            if begun {
                COMPUTES.set(true);
                return;
            }
            let mut timer = None;
            std::future::poll_fn(|cx| match timer {
                Some(_) => Poll::Ready(()),
                None => {
                    timer = Some(self.timer(now_ns() + ROOM_NS, cx.waker().clone()));
                    Poll::Pending
                }
            })
            .await;
        }
    }

    /// A poll of a future begins or has ended.
    #[inline]
    pub(super) fn fresh(&self) {
        may_ask(false);
        if COMPUTES.replace(false) {
            self.computing.fetch_sub(1, SeqCst);
        }
    }
}

fn here() -> Option<Arc<Executor>> {
    HERE.with_borrow(Weak::upgrade)
}

/// [`Executor::spawn`] of the executor that this thread works for; gives the future back if it works for none.
pub fn spawn_here(future: impl Future<Output = ()> + Send + 'static) -> Result<(), BoxFuture> {
    let future: BoxFuture = Box::pin(future);
    match here() {
        Some(executor) => {
            executor.spawn(future);
            Ok(())
        }
        None => Err(future),
    }
}

/// [`Executor::block_in_place`] of the executor that this thread works for, if it works for one.
pub fn aside<R>(f: impl FnOnce() -> R) -> R {
    match here() {
        Some(executor) => executor.block_in_place(f),
        None => f(),
    }
}

/// Drops what takes long to drop, later and with no lock held.
pub fn drop_aside<T: Send + 'static>(value: T) {
    if let Some(executor) = here() {
        let there = executor.clone();
        executor.spawn(Box::pin(async move {
            there.calm().await;
            aside(move || drop(value));
        }));
    }
}

/// To be told of each round of a loop whose length a guest chooses, and which cannot be left in between.
#[derive(Debug, Default)]
pub struct Rounds {
    count: u32,
    since: u64,
}

impl Rounds {
    pub fn new() -> Rounds {
        Rounds::default()
    }

    /// A round that takes less than some 10 µs.
    #[inline]
    pub fn next(&mut self) {
        self.count += 1;
        if self.count % CLOCK_EACH == 0 {
            self.look();
        }
    }

    /// As `next`, in what can be made again from its beginning.
    #[inline]
    pub fn step(&mut self) -> Result<(), NoRoom> {
        self.count += 1;
        if self.count % CLOCK_EACH == 0 && self.is_long() {
            ask_room()?;
            aside(|| ());
        }
        Ok(())
    }

    /// A round that may take longer.
    #[cold]
    pub fn look(&mut self) {
        if self.is_long() {
            aside(|| ());
        }
    }

    /// Whether it is time to give everything else away.
    #[cold]
    fn is_long(&mut self) -> bool {
        let now = now_ns();
        if self.since == 0 {
            self.since = now;
        }
        let long = now - self.since > TURN_NS && AT_WORK.get();
        if long {
            self.since = now;
        }
        long
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Wake;
    use std::time::Duration;

    #[test]
    fn a_long_loop_lets_others_go_on() {
        let executor = Executor::new(HandOff::Sleep, None).unwrap();
        let (other, runner) = (executor.clone(), executor.clone());
        let done = Arc::new(AtomicBool::new(false));
        let seen = done.clone();
        executor.spawn(Box::pin(async move {
            let at_last = other.clone();
            other.spawn(Box::pin(async move { done.store(true, SeqCst) }));
            let (mut rounds, until) = (Rounds::new(), now_ns() + 20_000_000_000);
            while !seen.load(SeqCst) && now_ns() < until {
                rounds.next();
            }
            at_last.shutdown(i32::from(!seen.load(SeqCst)));
        }));
        assert_eq!(runner.run(), 0);
    }

    /// More long calls at once than there are threads.
    #[test]
    fn many_that_wait_for_room_leave_a_thread_to_others() {
        let executor = Executor::new(HandOff::Sleep, None).unwrap();
        let (begun, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        for _ in 0..2 * STANDBY_THREADS {
            let (there, begun, done) = (executor.clone(), begun.clone(), done.clone());
            executor.spawn(Box::pin(async move {
                there.room().await;
                begun.fetch_add(1, SeqCst);
                let until = now_ns() + 20_000_000_000;
                there.block_in_place(|| {
                    while !done.load(SeqCst) && now_ns() < until {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            }));
        }
        let (other, runner) = (executor.clone(), executor.clone());
        executor.spawn(Box::pin(std::future::poll_fn(move |cx| {
            if begun.load(SeqCst) < STANDBY_THREADS {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            other.shutdown(i32::from(begun.load(SeqCst) > STANDBY_THREADS));
            done.store(true, SeqCst);
            Poll::Ready(())
        })));
        assert_eq!(runner.run(), 0);
    }

    /// A long loop is refused as long as it may ask, and does not ask in another poll.
    #[test]
    fn who_asks_is_refused_until_it_need_not_ask() {
        let executor = Executor::new(HandOff::Sleep, None).unwrap();
        let (there, runner) = (executor.clone(), executor.clone());
        executor.spawn(Box::pin(async move {
            let long = || {
                let mut rounds = Rounds::new();
                (0..200 * CLOCK_EACH).try_for_each(|_| {
                    std::thread::sleep(Duration::from_micros(1));
                    rounds.step()
                })
            };
            may_ask(true);
            assert_eq!((long(), was_refused()), (Err(NoRoom), true));
            may_ask(true);
            let mut again = false;
            std::future::poll_fn(|cx| {
                if std::mem::replace(&mut again, true) {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            assert_eq!((long(), was_refused()), (Ok(()), false));
            there.shutdown(0);
        }));
        assert_eq!(runner.run(), 0);
    }

    #[test]
    fn who_lets_others_go_first_is_behind_them() {
        let executor = Executor::new(HandOff::Sleep, None).unwrap();
        let (other, runner) = (executor.clone(), executor.clone());
        let fired = Arc::new(AtomicBool::new(false));
        executor.spawn(Box::pin(async move {
            let seen = fired.clone();
            struct Fire(Arc<AtomicBool>);
            impl Wake for Fire {
                fn wake(self: Arc<Self>) {
                    self.0.store(true, SeqCst);
                }
            }
            let _timer = other.timer(now_ns(), Waker::from(Arc::new(Fire(fired))));
            let mut left = 3;
            std::future::poll_fn(|cx| {
                std::thread::sleep(Duration::from_millis(1));
                if left == 0 || seen.load(SeqCst) {
                    return Poll::Ready(());
                }
                left -= 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            other.shutdown(i32::from(!seen.load(SeqCst)));
        }));
        assert_eq!(runner.run(), 0);
    }
}
