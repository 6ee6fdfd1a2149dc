//! Resources that Linux counts per user, across processes (getrlimit(2), inotify(7), epoll(7)). All users
//! together are bounded too, since the Sentry's memory holds these objects and root can use any number of
//! user ids.

use super::current;
use parking_lot::Mutex;
use platform::budget::of_heap;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};

/// The counted resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    InotifyInstances,
    InotifyWatches,
    EpollWatches,
    /// Queued signals and POSIX timers (`RLIMIT_SIGPENDING`).
    Signals,
    /// Pages that pipes may fill.
    PipePages,
    /// Open files in undelivered socket messages.
    InFlight,
    /// Bytes that POSIX message queues are declared for (`RLIMIT_MSGQUEUE`).
    QueueBytes,
    CgroupNamespaces,
    IpcNamespaces,
    MntNamespaces,
    NetNamespaces,
    PidNamespaces,
    TimeNamespaces,
    UserNamespaces,
    UtsNamespaces,
    /// Bytes of the maps of user namespaces.
    IdMaps,
}
const KINDS: usize = 16;

/// Namespaces of one kind in the sandbox, and what one takes.
const MAX_NAMESPACES: u64 = 1 << 14;
const NAMESPACE_BYTES: u64 = 4096;

/// Upper bound of the bytes of all maps of user namespaces.
const MAX_ID_MAPS: u64 = 32 << 20;

/// Upper bound of in-flight files in the sandbox.
pub const MAX_IN_FLIGHT: u64 = 1 << 16;

/// Upper bound of the declared bytes of POSIX message queues in the sandbox.
const MAX_QUEUE_BYTES: u64 = 64 << 20;

/// What all users together may have: less where the Sentry has little address space, of which each takes so much.
pub fn all_max(resource: Resource) -> u64 {
    static ALL_MAX: LazyLock<[u64; KINDS]> = LazyLock::new(|| {
        let of = |most: u64, bytes: u64, part: u64| of_heap(most * bytes, part) / bytes;
        let namespaces = of(MAX_NAMESPACES, NAMESPACE_BYTES, 2);
        [
            of(1 << 16, 1024, 2),
            of(1 << 18, 256, 2),
            of(1 << 20, 256, 4),
            of(1 << 18, 256, 2),
            of(1 << 17, 4096, 8),
            MAX_IN_FLIGHT,
            of(MAX_QUEUE_BYTES, 1, 2),
            namespaces,
            namespaces,
            namespaces,
            namespaces,
            namespaces,
            namespaces,
            namespaces,
            namespaces,
            of(MAX_ID_MAPS, 1, 8),
        ]
    });
    ALL_MAX[resource as usize]
}
static ALL: [AtomicU64; KINDS] = [const { AtomicU64::new(0) }; KINDS];

/// `/proc/sys/fs/{inotify,epoll}/max_user_*`: limits of one user.
pub static MAX_INOTIFY_INSTANCES: AtomicU64 = AtomicU64::new(128);
pub static MAX_INOTIFY_WATCHES: AtomicU64 = AtomicU64::new(1 << 17);
pub static MAX_EPOLL_WATCHES: AtomicU64 = AtomicU64::new(1 << 20);

/// `/proc/sys/fs/pipe-user-pages-soft`: a user with this many pages gets small pipes.
pub static PIPE_USER_PAGES: AtomicU64 = AtomicU64::new(16384);

static USERS: Mutex<BTreeMap<u32, Weak<User>>> = Mutex::new(BTreeMap::new());

/// Counts of one user.
#[derive(Debug, Default)]
pub struct User([AtomicU64; KINDS]);

/// A charged amount, released when dropped.
#[derive(Debug)]
pub struct Charge {
    user: Arc<User>,
    resource: Resource,
    amount: u64,
}

impl Charge {
    /// Changes the charge to `amount` if the user then has at most `limit`; changes nothing otherwise. A
    /// decrease always succeeds.
    pub fn set(&mut self, amount: u64, limit: u64) -> bool {
        let (mine, all) = (&self.user.0[self.resource as usize], &ALL[self.resource as usize]);
        if let Some(more) = amount.checked_sub(self.amount) {
            // Reverted below if it exceeds a limit.
            let had = mine.fetch_add(more, Ordering::Relaxed);
            let had_all = all.fetch_add(more, Ordering::Relaxed);
            let fits = |had: u64, limit: u64| had.checked_add(more).is_some_and(|n| n <= limit);
            if !fits(had, limit) || !fits(had_all, all_max(self.resource)) {
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

/// The user with this real id.
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

/// The real user of the current task.
pub fn current() -> Arc<User> {
    of(current::get().map_or(0, |t| t.cred().uid))
}

/// Amount of a resource that a user has.
pub fn count(uid: u32, resource: Resource) -> u64 {
    let user = USERS.lock().get(&uid).and_then(Weak::upgrade);
    user.map_or(0, |u| u.0[resource as usize].load(Ordering::Relaxed))
}

impl User {
    /// Charges one, if the user has less than `limit`.
    pub fn charge(self: &Arc<Self>, resource: Resource, limit: u64) -> Option<Charge> {
        self.charge_many(resource, 1, limit)
    }
    /// Charges `amount`, if the user then has at most `limit`.
    pub fn charge_many(self: &Arc<Self>, resource: Resource, amount: u64, limit: u64) -> Option<Charge> {
        let mut charge = Charge { user: self.clone(), resource, amount: 0 };
        charge.set(amount, limit).then_some(charge)
    }
}

/// Whether all users together have so many of these that new objects should be small: less than a quarter and `more`
/// is left.
pub fn scarce(resource: Resource, more: u64) -> bool {
    left(resource) < (all_max(resource) / 4).saturating_add(more)
}

/// How many of these all users together may still have.
fn left(resource: Resource) -> u64 {
    all_max(resource).saturating_sub(ALL[resource as usize].load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_limited_per_user_and_in_total() {
        let (a, b) = (of(70_001), of(70_002));
        let held: Vec<_> = (0..3).map(|_| a.charge(Resource::EpollWatches, 3).unwrap()).collect();
        assert!(a.charge(Resource::EpollWatches, 3).is_none());
        assert!(a.charge(Resource::InotifyWatches, 1).is_some());
        assert!(of(70_001).charge(Resource::EpollWatches, 3).is_none());
        assert_eq!((count(70_001, Resource::EpollWatches), count(70_003, Resource::EpollWatches)), (3, 0));
        assert!(b.charge(Resource::EpollWatches, 3).is_some());
        drop(held);
        assert!(a.charge(Resource::EpollWatches, 3).is_some());
        let all: Vec<_> = (0..all_max(Resource::InotifyInstances))
            .map_while(|_| a.charge(Resource::InotifyInstances, u64::MAX))
            .collect();
        assert!(b.charge(Resource::InotifyInstances, u64::MAX).is_none());
        drop(all);
        assert!(b.charge(Resource::InotifyInstances, 1).is_some());
    }
}
