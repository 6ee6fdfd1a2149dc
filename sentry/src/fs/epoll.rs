//! epoll(7).
//!
//! An [`Item`] is registered on the wait queue of the file it watches. A wake puts it on the ready list of its epoll
//! (once) and wakes that epoll's own queue. [`Epoll::harvest`] takes items from the ready list, polls each file, and
//! puts level-triggered items back: no operation visits all items. Files know their items (`File::watchers`) and remove
//! them when they are closed.
//!
//! Locks: `items`, `ready`, `above` and `conf` are leaves; no file is polled and no queue is woken while one is held.

use super::anon::anon_attr;
use super::types::Attr;
use super::{File, FileOps};
use crate::abi::PollEvents;
use crate::error::{Errno, Result};
use crate::kernel::users::{self, Charge, Resource, User, MAX_EPOLL_WATCHES};
use crate::kernel::wait::{WaitQueue, Waiter};
use parking_lot::Mutex;
use platform::executor::{drop_aside, Rounds};
use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

const ET: u32 = libc::EPOLLET as u32;
const ONESHOT: u32 = libc::EPOLLONESHOT as u32;
const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;
const WAKEUP: u32 = libc::EPOLLWAKEUP as u32;
/// Bits that are not events.
const PRIVATE: u32 = ET | ONESHOT | EXCLUSIVE | WAKEUP;
/// The bits allowed together with `EPOLLEXCLUSIVE`.
const EXCLUSIVE_OK: u32 =
    PollEvents::IN.union(PollEvents::OUT).union(PollEvents::ALWAYS).bits() | WAKEUP | ET | EXCLUSIVE;
/// Longest chain of epolls that watch one another (`EP_MAX_NESTS`).
const MAX_NESTS: usize = 4;
/// Limit of the items that watch one file: one event wakes them all.
const MAX_WATCHERS: usize = 1 << 17;
/// Limit of the chains of each length that lead upwards from one file (`path_limits`).
const PATHS: [u32; MAX_NESTS + 1] = [1000, 500, 100, 50, 10];

/// An event as returned to the guest: events and user data.
pub type Event = (u32, u64);

/// The events that an item with this configuration reports.
fn mask_of(event: Event) -> PollEvents {
    PollEvents::from_raw(event.0 & !PRIVATE) | PollEvents::ALWAYS
}

/// A file that an epoll watches under one descriptor number.
pub struct Item {
    me: Weak<Item>,
    epoll: Weak<Shared>,
    file: Weak<File>,
    fd: i32,
    conf: Mutex<Event>,
    /// The events reported now: those of `conf`, or 0 once a one-shot item has fired.
    mask: AtomicU32,
    queued: AtomicBool,
    gone: AtomicBool,
    /// Registration on the file's queue.
    reg: Mutex<Option<u64>>,
    /// Index in the file's `watchers`; changes under their lock.
    place: AtomicUsize,
    /// `None` if the user's limit was reached: the item is not added.
    charge: Option<Charge>,
}

impl Waiter for Item {
    fn wake(&self, events: PollEvents) {
        if !events.intersects(self.mask()) {
            return;
        }
        if let Some(ep) = self.epoll.upgrade() {
            self.queue(&ep);
            ep.queue.wake(PollEvents::READABLE);
        }
    }
}

impl Item {
    fn queue(&self, ep: &Shared) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            if let Some(me) = self.me.upgrade() {
                ep.ready.lock().list.push_back(me);
            }
        }
    }
    /// The wanted events that are ready now.
    fn ready(&self, file: &File) -> PollEvents {
        let mask = self.mask();
        if mask.is_empty() {
            return mask;
        }
        file.poll() & mask
    }
    fn mask(&self) -> PollEvents {
        PollEvents::from_raw(self.mask.load(Ordering::SeqCst))
    }
    fn key(&self) -> (i32, usize) {
        (self.fd, self.file.as_ptr() as usize)
    }
    /// Called when the last reference to the file goes.
    pub fn file_gone(&self, ops: &dyn FileOps) {
        self.leave_queue(ops);
        if let Some(ep) = self.epoll.upgrade() {
            ep.items.lock().remove(&self.key());
            ep.forget(self);
        }
    }
    fn watch(&self, file: &File) {
        let Some(me) = self.me.upgrade() else { return };
        let mut list = file.watchers.lock();
        self.place.store(list.len(), Ordering::Relaxed);
        list.push(me);
    }
    /// Takes constant time however many items watch the file.
    fn unwatch(&self, file: &File) {
        let mut list = file.watchers.lock();
        let at = self.place.load(Ordering::Relaxed);
        if list.get(at).is_none_or(|i| !std::ptr::eq(&**i, self)) {
            return;
        }
        let gone = list.swap_remove(at);
        if let Some(moved) = list.get(at) {
            moved.place.store(at, Ordering::Relaxed);
        }
        drop(list);
        drop(gone);
    }
    fn leave_queue(&self, ops: &dyn FileOps) {
        if let Some(inner) = ops.as_any().downcast_ref::<Epoll>() {
            inner.shared.above.lock().retain(|i| !std::ptr::eq(i.as_ptr(), self));
        }
        if let (Some(id), Some(q)) = (self.reg.lock().take(), ops.wait_queue()) {
            q.remove(id);
        }
    }
}

#[derive(Default)]
struct Ready {
    list: VecDeque<Arc<Item>>,
    /// The number of entries whose items are gone; the list is swept when they are the majority.
    dead: usize,
}

#[derive(Default)]
struct Shared {
    items: Mutex<BTreeMap<(i32, usize), Arc<Item>>>,
    ready: Mutex<Ready>,
    queue: WaitQueue,
    /// Items of epolls that watch this one. They are kept here rather than at the open file, so that a second
    /// description cannot hide a part of a chain.
    above: Mutex<Vec<Weak<Item>>>,
}

impl Shared {
    fn key(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self) as usize
    }
    /// Disables an item that has been removed from `items`.
    fn forget(&self, item: &Item) {
        item.gone.store(true, Ordering::SeqCst);
        item.mask.store(0, Ordering::SeqCst);
        if item.queued.load(Ordering::SeqCst) {
            let mut r = self.ready.lock();
            r.dead += 1;
            if r.dead * 2 > r.list.len() {
                r.list.retain(|i| !i.gone.load(Ordering::SeqCst));
                r.dead = 0;
            }
        }
    }
    /// Takes the next item, which may be gone.
    fn pop(&self) -> Option<Arc<Item>> {
        let mut r = self.ready.lock();
        let item = r.list.pop_front()?;
        // Cleared before the file is polled: a wake from here on queues the item again.
        item.queued.store(false, Ordering::SeqCst);
        if item.gone.load(Ordering::SeqCst) {
            r.dead = r.dead.saturating_sub(1);
        }
        Some(item)
    }
}

/// The state of a walk over nested epolls. Each is visited once, however many paths lead to it.
#[derive(Default)]
struct Walk {
    /// Length of the longest chain that starts at an epoll, by its address.
    known: HashMap<usize, usize>,
    /// Watched files that are not epolls.
    leaves: Vec<Arc<File>>,
    rounds: Rounds,
}

/// One round through the ready list. Level-triggered items return to its end, so a round visits as many items as the
/// list had at the start.
pub struct Round {
    left: usize,
    max: usize,
    pub events: Vec<Event>,
}

/// Items polled before other tasks get to run.
const HARVESTED_AT_ONCE: usize = 1024;
/// Above this many items, a background worker removes them from their files.
const ENDED_AT_ONCE: usize = 1024;

pub struct Epoll {
    shared: Arc<Shared>,
    /// The user that created it; the items are charged to it.
    user: Arc<User>,
}

/// Serializes changes that could close a cycle of epolls.
static NESTING: Mutex<()> = Mutex::new(());

/// The epoll behind an open file.
pub fn of(file: &File) -> Option<&Epoll> {
    file.ops.as_any().downcast_ref()
}

pub fn new() -> Arc<File> {
    File::new(Box::new(Epoll { shared: Arc::default(), user: users::current() }), libc::O_RDWR, None)
}

impl Epoll {
    /// Length of the longest chain downwards from this epoll, itself included; `None` if `target` is on a chain or a
    /// chain is too long.
    fn depth(&self, target: &Epoll, level: usize, walk: &mut Walk) -> Option<usize> {
        if Arc::ptr_eq(&self.shared, &target.shared) || level > MAX_NESTS + 1 {
            return None;
        }
        if let Some(known) = walk.known.get(&self.shared.key()) {
            return Some(*known).filter(|d| level + d - 1 <= MAX_NESTS + 1);
        }
        let items: Vec<Arc<Item>> = self.shared.items.lock().values().cloned().collect();
        let mut deepest = 0;
        for item in items {
            walk.rounds.next();
            let Some(f) = item.file.upgrade() else { continue };
            match of(&f) {
                Some(e) => deepest = deepest.max(e.depth(target, level + 1, walk)?),
                None => walk.leaves.push(f),
            }
        }
        walk.known.insert(self.shared.key(), deepest + 1);
        Some(deepest + 1)
    }

    /// `EPOLL_CTL_ADD`.
    pub fn add(&self, file: &Arc<File>, fd: i32, event: Event) -> Result<()> {
        let Some(q) = file.ops.wait_queue() else { return Err(Errno::EPERM) };
        let nested = of(file);
        if event.0 & EXCLUSIVE != 0 && (nested.is_some() || event.0 & !EXCLUSIVE_OK != 0) {
            return Err(Errno::EINVAL);
        }
        // The walk is needed only if this epoll watches another one or is watched.
        let watched = !self.shared.above.lock().is_empty();
        let _nesting = (nested.is_some() || watched).then(|| NESTING.lock());
        let mut walk = Walk::default();
        if let Some(inner) = nested {
            let below = inner.depth(self, 1, &mut walk).ok_or(Errno::ELOOP)?;
            walk.known.clear();
            if below + height(&self.shared, 1, &mut walk)? > MAX_NESTS + 1 {
                return Err(Errno::ELOOP);
            }
        } else if watched {
            walk.leaves.push(file.clone());
        }
        if file.watchers.lock().len() >= MAX_WATCHERS {
            return Err(Errno::ENOSPC);
        }
        let item = Arc::new_cyclic(|w| Item {
            me: w.clone(),
            epoll: Arc::downgrade(&self.shared),
            file: Arc::downgrade(file),
            fd,
            conf: Mutex::new(event),
            mask: AtomicU32::new(mask_of(event).bits()),
            queued: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            reg: Mutex::new(None),
            place: AtomicUsize::new(0),
            charge: self.user.charge(Resource::EpollWatches, MAX_EPOLL_WATCHES.load(Ordering::Relaxed)),
        });
        {
            let mut items = self.shared.items.lock();
            if items.contains_key(&item.key()) {
                return Err(Errno::EEXIST);
            }
            if item.charge.is_none() {
                return Err(Errno::ENOSPC);
            }
            items.insert(item.key(), item.clone());
        }
        if let Some(inner) = nested {
            inner.shared.above.lock().push(Arc::downgrade(&item));
        }
        item.watch(file);
        if walk.leaves.iter().any(|f| !few_paths(f, &mut walk.rounds)) {
            self.delete(file, fd)?;
            return Err(Errno::EINVAL);
        }
        *item.reg.lock() = Some(q.add(PollEvents::all(), item.clone()));
        self.look(&item, file);
        Ok(())
    }

    /// Queues an item whose file is ready already.
    fn look(&self, item: &Item, file: &File) {
        if !item.ready(file).is_empty() {
            item.queue(&self.shared);
            self.shared.queue.wake(PollEvents::READABLE);
        }
    }

    fn find(&self, file: &Arc<File>, fd: i32) -> Result<Arc<Item>> {
        self.shared.items.lock().get(&(fd, Arc::as_ptr(file) as usize)).cloned().ok_or(Errno::ENOENT)
    }

    /// `EPOLL_CTL_MOD`.
    pub fn modify(&self, file: &Arc<File>, fd: i32, event: Event) -> Result<()> {
        let item = self.find(file, fd)?;
        {
            let mut c = item.conf.lock();
            if (c.0 | event.0) & EXCLUSIVE != 0 {
                return Err(Errno::EINVAL);
            }
            *c = event;
            item.mask.store(mask_of(event).bits(), Ordering::SeqCst);
        }
        self.look(&item, file);
        Ok(())
    }

    /// `EPOLL_CTL_DEL`.
    pub fn delete(&self, file: &Arc<File>, fd: i32) -> Result<()> {
        let item = {
            let key = (fd, Arc::as_ptr(file) as usize);
            self.shared.items.lock().remove(&key).ok_or(Errno::ENOENT)?
        };
        item.unwatch(file);
        item.leave_queue(&*file.ops);
        self.shared.forget(&item);
        Ok(())
    }

    /// Starts a round through the ready list, for up to `max` events.
    pub fn begin(&self, max: usize) -> Round {
        Round { left: self.shared.ready.lock().list.len(), max, events: Vec::new() }
    }

    /// Continues a round for a bounded time; true when it is done.
    pub fn harvest(&self, round: &mut Round) -> bool {
        let out = &mut round.events;
        for _ in 0..HARVESTED_AT_ONCE {
            if round.left == 0 || out.len() >= round.max {
                round.left = 0;
                break;
            }
            round.left -= 1;
            let Some(item) = self.shared.pop() else {
                round.left = 0;
                break;
            };
            let Some(file) = item.file.upgrade() else { continue };
            let got = item.ready(&file);
            if got.is_empty() {
                continue;
            }
            let (flags, data) = {
                let conf = item.conf.lock();
                if conf.0 & ONESHOT != 0 && item.mask.swap(0, Ordering::SeqCst) == 0 {
                    continue;
                }
                *conf
            };
            out.push((got.bits(), data));
            if flags & (ONESHOT | ET) == 0 {
                item.queue(&self.shared);
            }
        }
        if round.left > 0 {
            return false;
        }
        if !out.is_empty() && self.shared.queue.has_waiters() && !self.shared.ready.lock().list.is_empty() {
            self.shared.queue.wake(PollEvents::READABLE);
        }
        true
    }

    pub fn queue(&self) -> &WaitQueue {
        &self.shared.queue
    }
}

/// Length of the longest chain upwards from `epoll`, itself included.
fn height(epoll: &Arc<Shared>, level: usize, walk: &mut Walk) -> Result<usize> {
    if level > MAX_NESTS + 1 {
        return Err(Errno::ELOOP);
    }
    if let Some(known) = walk.known.get(&epoll.key()) {
        return if level + known - 1 > MAX_NESTS + 1 { Err(Errno::ELOOP) } else { Ok(*known) };
    }
    let above: Vec<Arc<Item>> = epoll.above.lock().iter().filter_map(Weak::upgrade).collect();
    let mut most = 0;
    for ep in above.iter().filter_map(|i| i.epoll.upgrade()) {
        walk.rounds.next();
        most = most.max(height(&ep, level + 1, walk)?);
    }
    walk.known.insert(epoll.key(), most + 1);
    Ok(most + 1)
}

/// Whether the chains of epolls above a file are within Linux's limits (`reverse_path_check`): a wake follows each
/// chain.
fn few_paths(file: &File, rounds: &mut Rounds) -> bool {
    let mut left = PATHS;
    let items = file.watchers.lock().clone();
    items.iter().all(|i| paths(i, 0, &mut left, rounds))
}

fn paths(item: &Item, nests: usize, left: &mut [u32; MAX_NESTS + 1], rounds: &mut Rounds) -> bool {
    rounds.next();
    let Some(ep) = item.epoll.upgrade() else { return true };
    let above: Vec<Arc<Item>> = ep.above.lock().iter().filter_map(Weak::upgrade).collect();
    if !above.is_empty() {
        return nests < MAX_NESTS && above.iter().all(|i| paths(i, nests + 1, left, rounds));
    }
    match left.get_mut(nests) {
        // Epolls that watch the file directly are limited by [`MAX_WATCHERS`] only.
        _ if nests == 0 => true,
        Some(n) if *n > 0 => {
            *n -= 1;
            true
        }
        _ => false,
    }
}

/// The remaining items of a dropped epoll.
struct Left(BTreeMap<(i32, usize), Arc<Item>>);

impl Drop for Epoll {
    fn drop(&mut self) {
        let left = Left(std::mem::take(&mut *self.shared.items.lock()));
        if left.0.len() > ENDED_AT_ONCE {
            drop_aside((left, std::mem::take(&mut *self.shared.ready.lock())));
        }
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        for item in std::mem::take(&mut self.0).into_values() {
            item.gone.store(true, Ordering::SeqCst);
            item.mask.store(0, Ordering::SeqCst);
            if let Some(file) = item.file.upgrade() {
                item.leave_queue(&*file.ops);
                item.unwatch(&file);
            }
        }
    }
}

impl FileOps for Epoll {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn poll(&self, _file: &File) -> PollEvents {
        // Drops items that are not ready any more, until one is.
        let round = self.shared.ready.lock().list.len();
        let mut rounds = Rounds::new();
        for _ in 0..round {
            rounds.next();
            let Some(item) = self.shared.pop() else { break };
            let Some(file) = item.file.upgrade() else { continue };
            if !item.ready(&file).is_empty() {
                item.queue(&self.shared);
                return PollEvents::READABLE;
            }
        }
        PollEvents::empty()
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.shared.queue)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(anon_attr())
    }
    fn anon_name(&self) -> String {
        "anon_inode:[eventpoll]".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{eventfd, pipe};
    use crate::mm::io::{Dst, Src};

    const LIN: u32 = PollEvents::IN.bits();
    const LOUT: u32 = PollEvents::OUT.bits();

    fn write(f: &File, n: usize) {
        assert_eq!(f.ops.write(f, &mut Src::kernel(&vec![0; n]), 0).unwrap().0, n);
    }
    fn read(f: &File, n: usize) {
        assert_eq!(f.ops.read(f, &mut Dst::kernel(&mut vec![0; n]), 0).unwrap(), n);
    }

    fn ready(ep: &Epoll, max: usize) -> Vec<Event> {
        let mut round = ep.begin(max);
        while !ep.harvest(&mut round) {}
        round.events
    }

    #[test]
    fn level_edge_oneshot() {
        let epf = new();
        let ep = of(&epf).unwrap();
        let (r, w) = pipe::new_pipe(None, 0).unwrap();
        ep.add(&r, 3, (LIN, 33)).unwrap();
        assert_eq!(ep.add(&r, 3, (LIN, 33)), Err(Errno::EEXIST));
        assert!(epf.poll().is_empty());
        write(&w, 2);
        assert_eq!(epf.poll(), PollEvents::READABLE);
        assert_eq!(ready(ep, 9), [(LIN, 33)]);
        assert_eq!(ready(ep, 9), [(LIN, 33)]);
        read(&r, 2);
        assert_eq!(ready(ep, 9), []);
        ep.modify(&r, 3, (LIN | ET, 34)).unwrap();
        write(&w, 1);
        assert_eq!(ready(ep, 9), [(LIN, 34)]);
        assert_eq!(ready(ep, 9), []);
        write(&w, 1);
        assert_eq!(ready(ep, 9), [(LIN, 34)]);
        ep.modify(&r, 3, (LIN | ONESHOT, 35)).unwrap();
        assert_eq!(ready(ep, 9), [(LIN, 35)]);
        write(&w, 1);
        drop(w);
        assert_eq!(ready(ep, 9), []);
        ep.modify(&r, 3, (LIN | ONESHOT, 36)).unwrap();
        assert_eq!(ready(ep, 9), [(LIN | PollEvents::HUP.bits(), 36)]);
        ep.delete(&r, 3).unwrap();
        assert_eq!(ep.delete(&r, 3), Err(Errno::ENOENT));
    }

    #[test]
    fn items_die_with_files() {
        let epf = new();
        let ep = of(&epf).unwrap();
        for i in 0..100 {
            let f = eventfd::new(1, false, 0);
            ep.add(&f, 7, (LIN | LOUT, i)).unwrap();
            assert_eq!(ready(ep, 9).len(), 1);
        }
        assert!(ep.shared.items.lock().is_empty());
        assert!(ep.shared.ready.lock().list.len() <= 2);
        let f = eventfd::new(1, false, 0);
        ep.add(&f, 7, (LIN, 1)).unwrap();
        drop(epf);
        assert!(f.watchers.lock().is_empty());
        assert!(!f.ops.wait_queue().unwrap().has_waiters());
    }

    /// More items than one step of a round visits, all for one file; they are removed from it out of order.
    #[test]
    fn a_round_in_parts() {
        const N: usize = 3 * HARVESTED_AT_ONCE;
        let epf = new();
        let ep = of(&epf).unwrap();
        let f = eventfd::new(0, false, 0);
        for i in 0..N {
            ep.add(&f, i as i32, (LIN, i as u64)).unwrap();
        }
        f.ops.write(&f, &mut Src::kernel(&1u64.to_ne_bytes()), 0).unwrap();
        let mut round = ep.begin(N);
        assert!(!ep.harvest(&mut round));
        assert_eq!((ready(ep, N).len(), ready(ep, 5).len()), (N, 5));
        // 7 and N are coprime, so every index occurs once.
        for i in 0..N - 10 {
            ep.delete(&f, (i * 7 % N) as i32).unwrap();
        }
        assert_eq!((f.watchers.lock().len(), ready(ep, N).len()), (10, 10));
        drop(epf);
        assert!(f.watchers.lock().is_empty());
    }

    #[test]
    fn chains_from_one_file_are_bounded() {
        let add = |a: &Arc<File>, b: &Arc<File>| of(a).unwrap().add(b, 9, (LIN, 0));
        let f = eventfd::new(0, false, 0);
        let low: Vec<Arc<File>> = (0..30).map(|_| new()).collect();
        for e in &low {
            add(e, &f).unwrap();
        }
        let mut high = Vec::new();
        // The limit for chains of two is 500.
        let refused = 'more: loop {
            let e = new();
            for l in &low {
                if let Err(e) = add(&e, l) {
                    break 'more e;
                }
            }
            high.push(e);
        };
        assert_eq!((refused, high.len()), (Errno::EINVAL, 16));
        // The refused item is not registered and does not count.
        let other = eventfd::new(0, false, 0);
        add(&low[0], &other).unwrap();
        f.ops.write(&f, &mut Src::kernel(&1u64.to_ne_bytes()), 0).unwrap();
        assert_eq!(ready(of(&high[15]).unwrap(), 99).len(), 30);
    }

    #[test]
    fn nesting_is_bounded() {
        let e: Vec<Arc<File>> = (0..7).map(|_| new()).collect();
        let add = |a: usize, b: usize| of(&e[a]).unwrap().add(&e[b], b as i32, (LIN, b as u64));
        assert_eq!(add(0, 0), Err(Errno::ELOOP));
        for i in 0..4 {
            assert_eq!(add(i, i + 1), Ok(()), "{i}");
        }
        assert_eq!(add(4, 5), Err(Errno::ELOOP));
        assert_eq!(add(4, 0), Err(Errno::ELOOP));
        assert_eq!(add(5, 0), Err(Errno::ELOOP));
        let f = eventfd::new(0, false, 0);
        of(&e[4]).unwrap().add(&f, 9, (LIN, 9)).unwrap();
        assert!(e[0].poll().is_empty());
        f.ops.write(&f, &mut Src::kernel(&1u64.to_ne_bytes()), 0).unwrap();
        assert_eq!(ready(of(&e[0]).unwrap(), 4), [(LIN, 1)]);
    }
}
