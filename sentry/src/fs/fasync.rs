//! Signal-driven I/O: the owner of an open file and the signals that it gets, fcntl(2) `F_SETOWN`, `F_SETSIG`,
//! `O_ASYNC`.
//!
//! Signals are deferred: file events are reported under locks of the subsystem that causes them, and these come after
//! the locks of tasks. The signals are sent at the end of the system call that caused the event ([`send_late`]), so
//! that they are pending when it returns. A background future sends those that remain: events outside of a system call,
//! and the rest of a very large batch, as thousands of descriptions may be owned by a large process group.

use super::File;
use crate::abi::PollEvents;
use crate::error::{Errno, Result};
use crate::kernel::signal::{SigFields, SigInfo, NSIG, SIGRTMIN};
use crate::kernel::wait::{yield_now, Waiter};
use crate::kernel::{pgrp, send, Cred, Kernel, Task, ThreadGroup};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Weak};

/// The events of each reason, its `si_code` and its `si_band`.
const REASONS: [(PollEvents, i32, PollEvents); 5] = [
    (PollEvents::READABLE, 1, PollEvents::READABLE),
    (PollEvents::WRITABLE, 2, PollEvents::SOCKET_WRITABLE),
    (PollEvents::ERR, 4, PollEvents::ERR),
    (PRIORITY, 5, PRIORITY),
    (PollEvents::HUP, 6, PollEvents::ALWAYS),
];
const PRIORITY: PollEvents = PollEvents::PRI.union(PollEvents::RDBAND);
/// `POLL_MSG`: `si_code` and `si_band` for leases and directory notification.
const MSG: (i32, PollEvents) = (3, PollEvents::READABLE.union(PollEvents::MSG));

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Recipient {
    #[default]
    Nobody,
    Thread(i32),
    Process(i32),
    Group(i32),
}

impl Recipient {
    fn exists(self, kernel: &Kernel) -> bool {
        match self {
            Recipient::Nobody => true,
            Recipient::Thread(t) => kernel.task(t).is_some(),
            Recipient::Process(p) => kernel.group(p).is_some(),
            Recipient::Group(g) => !pgrp::members(kernel, g).is_empty(),
        }
    }
}

/// The owner of an open file description.
#[derive(Clone, Default)]
pub struct Owner {
    who: Recipient,
    /// `F_SETSIG`; 0 stands for plain `SIGIO`.
    signal: i32,
    /// The ids of the process that set the owner; they decide which processes may be signalled.
    uid: u32,
    euid: u32,
    kernel: Weak<Kernel>,
}

impl Owner {
    /// The recipient of the signals; `Nobody` if it does not exist any more.
    pub fn who(&self) -> Recipient {
        match self.kernel.upgrade() {
            Some(k) if self.who.exists(&k) => self.who,
            _ => Recipient::Nobody,
        }
    }
    pub fn signal(&self) -> i32 {
        self.signal
    }
    pub fn set_signal(&mut self, signal: u64) -> Result<()> {
        self.signal = i32::try_from(signal).ok().filter(|s| *s <= NSIG).ok_or(Errno::EINVAL)?;
        Ok(())
    }
    /// `F_SETOWN`; `ESRCH` if the recipient does not exist.
    pub fn set(&mut self, task: &Task, who: Recipient) -> Result<()> {
        if !who.exists(&task.kernel) {
            return Err(Errno::ESRCH);
        }
        let cred = task.cred();
        let signal = self.signal;
        *self = Owner { who, signal, uid: cred.uid, euid: cred.euid, kernel: Arc::downgrade(&task.kernel) };
        Ok(())
    }
    /// Makes the caller the owner if the file has none.
    pub fn claim(&mut self, task: &Task) {
        if self.who() == Recipient::Nobody {
            // The caller exists, so this cannot fail.
            let _ = self.set(task, Recipient::Process(task.group.pid));
        }
    }
    fn may(&self, to: &Cred) -> bool {
        self.euid == 0 || [self.uid, self.euid].iter().any(|u| *u == to.suid || *u == to.uid)
    }
    /// The signal for an event.
    fn signal_for(&self, fd: i32, (code, band): (i32, PollEvents)) -> SigInfo {
        match self.signal {
            0 => SigInfo::kernel(libc::SIGIO),
            signo => SigInfo { signo, errno: 0, code, fields: SigFields::Poll { band: band.bits().into(), fd } },
        }
    }
    /// Sends a signal to an owner that is one thread or process; for a process group returns the members.
    fn deliver(&self, kernel: &Kernel, info: SigInfo) -> Vec<Arc<ThreadGroup>> {
        match self.who {
            Recipient::Nobody => {}
            Recipient::Thread(t) => {
                if let Some(t) = kernel.task(t).filter(|t| self.may(&t.cred())) {
                    t.queue_signal(info);
                }
            }
            Recipient::Process(p) => kernel.group(p).iter().for_each(|g| self.deliver_to(g, info)),
            Recipient::Group(g) => return pgrp::members(kernel, g),
        }
        Vec::new()
    }
    fn deliver_to(&self, group: &Arc<ThreadGroup>, info: SigInfo) {
        if group.any_thread().is_some_and(|t| self.may(&t.cred())) {
            // If the queue of signals is full the signal is lost, as on Linux.
            let _ = send::to_group(group, info);
        }
    }
    /// The key of a signal: a process can have at most one pending signal per key.
    fn key(&self, fd: i32, code: i32) -> Key {
        // Plain SIGIO carries no descriptor, and a pending non-queueing signal absorbs later ones.
        let about = if self.signal < SIGRTMIN { (-1, 0) } else { (fd, code) };
        (self.who, self.signal, self.uid, self.euid, about)
    }
    /// Signals the owner for an event other than readiness on the descriptor `fd`.
    pub fn notify(&self, fd: i32) {
        let Some(k) = self.kernel.upgrade().filter(|_| self.who != Recipient::Nobody) else { return };
        later(&k, |late| {
            if late.told.insert(self.key(fd, MSG.0)) {
                late.push(Late::Told(self.clone(), fd));
            }
        });
    }
}

/// Recipient, signal, sender's uid and euid; descriptor and code, if the signal carries them.
type Key = (Recipient, i32, u32, u32, (i32, i32));

/// A deferred signal.
enum Late {
    /// From [`Owner::notify`].
    Told(Owner, i32),
    Watch(Arc<AsyncWatch>),
    /// The rest of a process group, in reverse order.
    Rest(Owner, SigInfo, Vec<Arc<ThreadGroup>>),
}

#[derive(Default)]
struct Pending {
    queue: VecDeque<(u64, Late)>,
    /// The number of the next entry.
    next: u64,
    /// The keys of the queued [`Late::Told`] entries: each is queued once.
    told: HashSet<Key>,
    /// For each key the number below which all entries are covered by a signal already sent. Cleared when the queue is
    /// empty.
    sent: HashMap<Key, u64>,
    /// The background future is running.
    running: bool,
}
static LATE: LazyLock<Mutex<Pending>> = LazyLock::new(Default::default);
/// The queue is not empty.
static ANY: AtomicBool = AtomicBool::new(false);

/// Signals sent before other tasks get to run; a signal to a process with many threads counts more than once.
const AT_ONCE: usize = 256;
/// Limit of the remembered sent signals.
const SENT_MAX: usize = 1 << 16;

impl Pending {
    fn push(&mut self, late: Late) {
        self.queue.push_back((self.next, late));
        self.next += 1;
    }
    /// Whether entry number `n` needs a signal of this key: not if one was sent after `n` was queued.
    fn is_news(&mut self, key: Key, n: u64) -> bool {
        if self.sent.get(&key).is_some_and(|before| n < *before) {
            return false;
        }
        if self.sent.len() >= SENT_MAX {
            self.sent.clear();
        }
        self.sent.insert(key, self.next);
        true
    }
}

/// Queues deferred signals by `put`, and starts the background future if it is not running.
fn later(kernel: &Kernel, put: impl FnOnce(&mut Pending)) {
    let begin = {
        let mut late = LATE.lock();
        put(&mut late);
        ANY.store(true, Ordering::Release);
        !std::mem::replace(&mut late.running, true)
    };
    if begin {
        kernel.executor.spawn(Box::pin(async {
            while !send_some(true) {
                yield_now().await;
            }
        }));
    }
}

/// Sends the deferred signals, or the first of a very large batch. The caller holds no lock.
pub fn send_late() {
    if ANY.load(Ordering::Acquire) {
        send_some(false);
    }
}

/// Sends some of the signals; true if none remain. `last`: the caller is the background future, which ends then.
fn send_some(last: bool) -> bool {
    let mut left = AT_ONCE;
    while left > 0 {
        let (n, late) = {
            let mut p = LATE.lock();
            let Some((n, late)) = p.queue.pop_front() else {
                p.sent = HashMap::new();
                p.running &= !last;
                ANY.store(false, Ordering::Release);
                return true;
            };
            if let Late::Told(owner, fd) = &late {
                p.told.remove(&owner.key(*fd, MSG.0));
            }
            (n, late)
        };
        left = left.saturating_sub(1);
        match late {
            Late::Told(owner, fd) => send_one(n, &owner, fd, MSG, &mut left),
            Late::Watch(watch) => watch.send(n, &mut left),
            Late::Rest(owner, info, members) => send_rest(n, owner, info, members, &mut left),
        }
    }
    false
}

fn send_one(n: u64, owner: &Owner, fd: i32, reason: (i32, PollEvents), left: &mut usize) {
    let Some(kernel) = owner.kernel.upgrade() else { return };
    if owner.who == Recipient::Nobody || !LATE.lock().is_news(owner.key(fd, reason.0), n) {
        return;
    }
    let info = owner.signal_for(fd, reason);
    let mut members = owner.deliver(&kernel, info);
    members.reverse();
    send_rest(n, owner.clone(), info, members, left);
}

fn send_rest(n: u64, owner: Owner, info: SigInfo, mut members: Vec<Arc<ThreadGroup>>, left: &mut usize) {
    while *left > 0 {
        let Some(g) = members.pop() else { return };
        *left = left.saturating_sub(1 + g.links.lock().threads.len() / 8);
        owner.deliver_to(&g, info);
    }
    if !members.is_empty() {
        LATE.lock().queue.push_front((n, Late::Rest(owner, info, members)));
    }
}

/// Turns wakes of a file with `O_ASYNC` into signals.
pub struct AsyncWatch {
    file: Weak<File>,
    fd: i32,
    kernel: Weak<Kernel>,
    /// Events not reported yet; nonzero while the watch is queued.
    events: AtomicU32,
    /// Its registration on the file's wait queue.
    id: std::sync::OnceLock<u64>,
}

impl Waiter for AsyncNotifier {
    fn wake(&self, events: PollEvents) {
        let w = &self.0;
        if events.is_empty() || w.events.fetch_or(events.bits(), Ordering::AcqRel) != 0 {
            return;
        }
        if let Some(k) = w.kernel.upgrade() {
            later(&k, |late| late.push(Late::Watch(w.clone())));
        }
    }
}

impl AsyncWatch {
    /// Reports the events since the last call.
    fn send(&self, n: u64, left: &mut usize) {
        let events = PollEvents::from_raw(self.events.swap(0, Ordering::AcqRel));
        let Some(file) = self.file.upgrade() else { return };
        let ready = if events.is_all() { file.poll() } else { events };
        let owner = file.owner.lock().clone();
        let ours = |bits: PollEvents| match bits {
            PollEvents::READABLE => file.readable(),
            PollEvents::WRITABLE => file.writable(),
            _ => true,
        };
        for (bits, code, band) in REASONS {
            if ready.intersects(bits) && ours(bits) {
                send_one(n, &owner, self.fd, (code, band), left);
            }
        }
    }
}

struct AsyncNotifier(Arc<AsyncWatch>);

/// Sets or clears `O_ASYNC` through descriptor `fd`.
pub fn set_async(task: &Task, file: &Arc<File>, fd: i32, on: bool) {
    let mut slot = file.async_watch.lock();
    let Some(queue) = file.ops.wait_queue() else { return };
    if let Some(old) = slot.take() {
        if let Some(id) = old.id.get() {
            queue.remove(*id);
        }
    }
    if on {
        let watch = Arc::new(AsyncWatch {
            file: Arc::downgrade(file),
            fd,
            kernel: Arc::downgrade(&task.kernel),
            events: AtomicU32::new(0),
            id: Default::default(),
        });
        let id = queue.add(
            PollEvents::READABLE | PollEvents::WRITABLE | PRIORITY | PollEvents::ALWAYS,
            Arc::new(AsyncNotifier(watch.clone())),
        );
        let _ = watch.id.set(id);
        *slot = Some(watch);
    }
}

/// Removes the registration of a description that is closed.
pub fn release(file: &mut File) {
    if let Some(w) = file.async_watch.get_mut().take() {
        if let (Some(id), Some(q)) = (w.id.get(), file.ops.wait_queue()) {
            q.remove(*id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_signal_covers_all_earlier_events() {
        let key = |signal: i32, fd| Owner { who: Recipient::Group(7), signal, ..Owner::default() }.key(fd, 1);
        let mut p = Pending { next: 10_000, ..Pending::default() };
        assert_eq!((0..10_000).filter(|n| p.is_news(key(0, *n as i32), *n)).count(), 1);
        assert_eq!((0..10_000).filter(|n| p.is_news(key(libc::SIGUSR1, *n as i32), *n)).count(), 1);
        // Later events need a new signal, and queueing signals are sent for each descriptor.
        assert!(p.is_news(key(0, 5), 10_000));
        assert!((0..100).all(|fd| p.is_news(key(SIGRTMIN, fd), 3)));
    }
}
