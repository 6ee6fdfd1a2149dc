//! What the kernel keeps for a user (getrlimit(2), inotify(7), epoll(7)): Linux counts some of it per user, whichever process has it. Here
//! all users together have a bound too, since it is the Sentry's memory and root can have as many users as it likes.

use super::current;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    InotifyInstances,
    InotifyWatches,
    EpollWatches,
    /// Queued signals and POSIX timers (`RLIMIT_SIGPENDING`).
    Signals,
    /// Pages that pipes may fill.
    PipePages,
    /// Open files in messages of sockets that are under way.
    InFlight,
    /// Bytes that POSIX message queues are declared for (`RLIMIT_MSGQUEUE`).
    QueueBytes,
}
const KINDS: usize = 7;

/// Most files under way in the whole sandbox.
pub const MAX_IN_FLIGHT: u64 = 1 << 16;

/// Most bytes of POSIX message queues in the whole sandbox.
pub const MAX_QUEUE_BYTES: u64 = 64 << 20;

/// What all users together may have.
const ALL_MAX: [u64; KINDS] = [1 << 16, 1 << 18, 1 << 20, 1 << 18, 1 << 17, MAX_IN_FLIGHT, MAX_QUEUE_BYTES];
static ALL: [AtomicU64; KINDS] = [const { AtomicU64::new(0) }; KINDS];

/// `/proc/sys/fs/{inotify,epoll}/max_user_*`: what one user may have.
pub static MAX_INOTIFY_INSTANCES: AtomicU64 = AtomicU64::new(128);
pub static MAX_INOTIFY_WATCHES: AtomicU64 = AtomicU64::new(1 << 17);
pub static MAX_EPOLL_WATCHES: AtomicU64 = AtomicU64::new(1 << 20);

/// `/proc/sys/fs/pipe-user-pages-soft`: with this many pages a user's new pipes are small.
pub static PIPE_USER_PAGES: AtomicU64 = AtomicU64::new(16384);

static USERS: Mutex<BTreeMap<u32, Weak<User>>> = Mutex::new(BTreeMap::new());

/// What one user has.
#[derive(Debug, Default)]
pub struct User([AtomicU64; KINDS]);

/// Some counted things, until it is dropped.
#[derive(Debug)]
pub struct Charge {
    user: Arc<User>,
    resource: Resource,
    amount: u64,
}

impl Charge {
    /// Makes it `amount` if that leaves the user with `limit` at most; changes nothing if not. To become less always works.
    pub fn set(&mut self, amount: u64, limit: u64) -> bool {
        let (mine, all) = (&self.user.0[self.resource as usize], &ALL[self.resource as usize]);
        if let Some(more) = amount.checked_sub(self.amount) {
            // Taken back below if it was too much.
            let had = mine.fetch_add(more, Ordering::Relaxed);
            let had_all = all.fetch_add(more, Ordering::Relaxed);
            let fits = |had: u64, limit: u64| had.checked_add(more).is_some_and(|n| n <= limit);
            if !fits(had, limit) || !fits(had_all, ALL_MAX[self.resource as usize]) {
                mine.fetch_sub(more, Ordering::Relaxed);
                all.fetch_sub(more, Ordering::Relaxed);
                return false;
            }
        } else {
            mine.fetch_sub(self.amount - amount, Ordering::Relaxed);
            all.fetch_sub(self.amount - amount, Ordering::Relaxed);
        }
        self.amount = amount;
        true
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0, u64::MAX);
    }
}

/// The user with this (real) id.
pub fn of(uid: u32) -> Arc<User> {
    let mut users = USERS.lock();
    if let Some(u) = users.get(&uid).and_then(Weak::upgrade) {
        return u;
    }
    if users.len() >= 64 && users.len().is_power_of_two() {
        users.retain(|_, u| u.strong_count() > 0);
    }
    let user = Arc::<User>::default();
    users.insert(uid, Arc::downgrade(&user));
    user
}

/// The user of the current task.
pub fn current() -> Arc<User> {
    of(current::get().map_or(0, |t| t.cred().uid))
}

/// How many of these a user has.
pub fn count(uid: u32, resource: Resource) -> u64 {
    let user = USERS.lock().get(&uid).and_then(Weak::upgrade);
    user.map_or(0, |u| u.0[resource as usize].load(Ordering::Relaxed))
}

impl User {
    /// One more, if the user has less than `limit`.
    pub fn charge(self: &Arc<Self>, resource: Resource, limit: u64) -> Option<Charge> {
        self.charge_many(resource, 1, limit)
    }
    /// `amount` more, if the user has no more than `limit` then.
    pub fn charge_many(self: &Arc<Self>, resource: Resource, amount: u64, limit: u64) -> Option<Charge> {
        let mut charge = Charge { user: self.clone(), resource, amount: 0 };
        charge.set(amount, limit).then_some(charge)
    }
}

/// How many of these all users together may still have.
pub fn left(resource: Resource) -> u64 {
    ALL_MAX[resource as usize].saturating_sub(ALL[resource as usize].load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_counted_apart_and_together() {
        let (a, b) = (of(70_001), of(70_002));
        let held: Vec<_> = (0..3).map(|_| a.charge(Resource::EpollWatches, 3).unwrap()).collect();
        assert!(a.charge(Resource::EpollWatches, 3).is_none());
        assert!(a.charge(Resource::InotifyWatches, 1).is_some());
        assert!(of(70_001).charge(Resource::EpollWatches, 3).is_none());
        assert_eq!((count(70_001, Resource::EpollWatches), count(70_003, Resource::EpollWatches)), (3, 0));
        assert!(b.charge(Resource::EpollWatches, 3).is_some());
        drop(held);
        assert!(a.charge(Resource::EpollWatches, 3).is_some());
        let all: Vec<_> = (0..ALL_MAX[0]).map_while(|_| a.charge(Resource::InotifyInstances, u64::MAX)).collect();
        assert!(b.charge(Resource::InotifyInstances, u64::MAX).is_none());
        drop(all);
        assert!(b.charge(Resource::InotifyInstances, 1).is_some());
    }
}
