//! epoll(7).
//!
//! An [`Item`] is registered on the wait queue of the file it watches. A wake puts it on the ready list of its epoll
//! (once) and wakes that epoll's own queue. [`Epoll::harvest`] takes items from the ready list, asks each file what is
//! ready, and puts level-triggered ones back: nothing ever goes through all items. Files know their items
//! (`File::watchers`) and take them along when they are gone.
//!
//! Locks: `items`, `ready`, `above` and `conf` are leaves; no file is asked and no queue is woken while one is held.

use super::anon::anon_attr;
use super::types::Attr;
use super::{File, FileOps};
use crate::error::{Errno, Result};
use crate::kernel::users::{self, Charge, Resource, User, MAX_EPOLL_WATCHES};
use crate::kernel::wait::{WaitQueue, Waiter};
use parking_lot::Mutex;
use platform::executor::Rounds;
use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

const IN: u32 = (libc::EPOLLIN | libc::EPOLLRDNORM) as u32;
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
const ET: u32 = libc::EPOLLET as u32;
const ONESHOT: u32 = libc::EPOLLONESHOT as u32;
const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;
const WAKEUP: u32 = libc::EPOLLWAKEUP as u32;
/// Bits that are not events.
const PRIVATE: u32 = ET | ONESHOT | EXCLUSIVE | WAKEUP;
/// What may stand beside `EPOLLEXCLUSIVE`.
const EXCLUSIVE_OK: u32 = (libc::EPOLLIN | libc::EPOLLOUT) as u32 | ALWAYS | WAKEUP | ET | EXCLUSIVE;
/// Longest chain of epolls that watch each other (`EP_MAX_NESTS`).
const MAX_NESTS: usize = 4;
/// Most chains of each length that lead from one file upwards (`path_limits`).
const PATHS: [u32; MAX_NESTS + 1] = [1000, 500, 100, 50, 10];

/// An event as the guest gets it: events and user data.
pub type Event = (u32, u64);

/// A file that an epoll watches under one descriptor number.
pub struct Item {
    me: Weak<Item>,
    epoll: Weak<Shared>,
    file: Weak<File>,
    fd: i32,
    conf: Mutex<Event>,
    /// Events of `conf` that count now; 0 once a one-shot item has fired.
    mask: AtomicU32,
    queued: AtomicBool,
    gone: AtomicBool,
    /// Registration on the file's queue.
    reg: Mutex<Option<u64>>,
    /// None: there was no room for it.
    charge: Option<Charge>,
}

impl Waiter for Item {
    fn wake(&self, events: u32) {
        if events & self.mask.load(Ordering::SeqCst) == 0 {
            return;
        }
        if let Some(ep) = self.epoll.upgrade() {
            self.queue(&ep);
            ep.queue.wake(IN);
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
    /// What of the wanted is ready now.
    fn ready(&self, file: &File) -> u32 {
        let mask = self.mask.load(Ordering::SeqCst);
        if mask == 0 {
            return 0;
        }
        file.poll() & mask
    }
    fn key(&self) -> (i32, usize) {
        (self.fd, self.file.as_ptr() as usize)
    }
    /// The file's last descriptor was closed.
    pub fn file_gone(&self, ops: &dyn FileOps) {
        self.leave_queue(ops);
        if let Some(ep) = self.epoll.upgrade() {
            ep.items.lock().remove(&self.key());
            ep.forget(self);
        }
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
    /// Entries of the list that are gone; it is swept when they are many.
    dead: usize,
}

#[derive(Default)]
struct Shared {
    items: Mutex<BTreeMap<(i32, usize), Arc<Item>>>,
    ready: Mutex<Ready>,
    queue: WaitQueue,
    /// Items of epolls that watch this one. Here and not at an open file, so that no second one could hide a part of a chain.
    above: Mutex<Vec<Weak<Item>>>,
}

impl Shared {
    fn key(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self) as usize
    }
    /// Marks an item that has been taken out of `items`.
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
    /// The next item; it may be one that is gone.
    fn pop(&self) -> Option<Arc<Item>> {
        let mut r = self.ready.lock();
        let item = r.list.pop_front()?;
        // Before its file is asked: a wake from here on queues it again.
        item.queued.store(false, Ordering::SeqCst);
        if item.gone.load(Ordering::SeqCst) {
            r.dead = r.dead.saturating_sub(1);
        }
        Some(item)
    }
}

/// What is found on a walk over epolls that watch each other. Each is looked at once, however many ways lead to it.
#[derive(Default)]
struct Walk {
    /// Longest chain from it on.
    known: HashMap<usize, usize>,
    /// Files that are no epolls.
    leaves: Vec<Arc<File>>,
    rounds: Rounds,
}

pub struct Epoll {
    shared: Arc<Shared>,
    /// Who made it, whom its items are counted for.
    user: Arc<User>,
}

/// Serializes changes that could build a cycle of epolls.
static NESTING: Mutex<()> = Mutex::new(());

/// The epoll behind an open file.
pub fn of(file: &File) -> Option<&Epoll> {
    file.ops.as_any().downcast_ref()
}

pub fn new() -> Arc<File> {
    File::new(Box::new(Epoll { shared: Arc::default(), user: users::current() }), libc::O_RDWR, None)
}

impl Epoll {
    /// Length of the longest chain of epolls from this one down, itself included; `None` if `target` is on one, or if it is too long.
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
        // What is alone, and watches no other, needs no look at the others.
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
        let item = Arc::new_cyclic(|w| Item {
            me: w.clone(),
            epoll: Arc::downgrade(&self.shared),
            file: Arc::downgrade(file),
            fd,
            conf: Mutex::new(event),
            mask: AtomicU32::new((event.0 & !PRIVATE) | ALWAYS),
            queued: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            reg: Mutex::new(None),
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
        file.watchers.lock().push(item.clone());
        if walk.leaves.iter().any(|f| !few_paths(f, &mut walk.rounds)) {
            self.delete(file, fd)?;
            return Err(Errno::EINVAL);
        }
        *item.reg.lock() = Some(q.add(u32::MAX, item.clone()));
        self.look(&item, file);
        Ok(())
    }

    /// Queues an item whose file is ready already.
    fn look(&self, item: &Item, file: &File) {
        if item.ready(file) != 0 {
            item.queue(&self.shared);
            self.shared.queue.wake(IN);
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
            item.mask.store((event.0 & !PRIVATE) | ALWAYS, Ordering::SeqCst);
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
        file.watchers.lock().retain(|i| !Arc::ptr_eq(i, &item));
        item.leave_queue(&*file.ops);
        self.shared.forget(&item);
        Ok(())
    }

    /// Up to `max` events that are ready now.
    pub fn harvest(&self, max: usize) -> Vec<Event> {
        let mut out = Vec::new();
        // Level-triggered items come back at the end: one round only.
        let round = self.shared.ready.lock().list.len();
        let mut rounds = Rounds::new();
        for _ in 0..round {
            rounds.next();
            if out.len() >= max {
                break;
            }
            let Some(item) = self.shared.pop() else { break };
            let Some(file) = item.file.upgrade() else { continue };
            let got = item.ready(&file);
            if got == 0 {
                continue;
            }
            let (flags, data) = {
                let conf = item.conf.lock();
                if conf.0 & ONESHOT != 0 && item.mask.swap(0, Ordering::SeqCst) == 0 {
                    continue;
                }
                *conf
            };
            out.push((got, data));
            if flags & (ONESHOT | ET) == 0 {
                item.queue(&self.shared);
            }
        }
        if !out.is_empty() && self.shared.queue.has_waiters() && !self.shared.ready.lock().list.is_empty() {
            self.shared.queue.wake(IN);
        }
        out
    }

    pub fn queue(&self) -> &WaitQueue {
        &self.shared.queue
    }
}

/// Length of the longest chain of epolls that watch `epoll`, itself included.
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

/// Whether no more chains of epolls lead from a file upwards than Linux allows (`reverse_path_check`): a wake-up follows each.
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
        // As many epolls as there may be at all watch a file directly.
        _ if nests == 0 => true,
        Some(n) if *n > 0 => {
            *n -= 1;
            true
        }
        _ => false,
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        let items = std::mem::take(&mut *self.shared.items.lock());
        self.shared.ready.lock().list.clear();
        let mut rounds = Rounds::new();
        for item in items.into_values() {
            rounds.next();
            item.gone.store(true, Ordering::SeqCst);
            item.mask.store(0, Ordering::SeqCst);
            if let Some(file) = item.file.upgrade() {
                item.leave_queue(&*file.ops);
                file.watchers.lock().retain(|i| !Arc::ptr_eq(i, &item));
            }
        }
    }
}

impl FileOps for Epoll {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn poll(&self, _file: &File) -> u32 {
        // Drops what is not ready any more, keeps what is.
        let round = self.shared.ready.lock().list.len();
        let mut rounds = Rounds::new();
        for _ in 0..round {
            rounds.next();
            let Some(item) = self.shared.pop() else { break };
            let Some(file) = item.file.upgrade() else { continue };
            if item.ready(&file) != 0 {
                item.queue(&self.shared);
                return IN;
            }
        }
        0
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

    const LIN: u32 = libc::EPOLLIN as u32;
    const LOUT: u32 = libc::EPOLLOUT as u32;

    fn write(f: &File, n: usize) {
        assert_eq!(f.ops.write(f, &mut Src::kernel(&vec![0; n]), 0).unwrap().0, n);
    }
    fn read(f: &File, n: usize) {
        assert_eq!(f.ops.read(f, &mut Dst::kernel(&mut vec![0; n]), 0).unwrap(), n);
    }

    #[test]
    fn level_edge_oneshot() {
        let epf = new();
        let ep = of(&epf).unwrap();
        let (r, w) = pipe::new_pipe(None, 0).unwrap();
        ep.add(&r, 3, (LIN, 33)).unwrap();
        assert_eq!(ep.add(&r, 3, (LIN, 33)), Err(Errno::EEXIST));
        assert_eq!(epf.poll(), 0);
        write(&w, 2);
        assert_eq!(epf.poll(), IN);
        assert_eq!(ep.harvest(9), [(LIN, 33)]);
        assert_eq!(ep.harvest(9), [(LIN, 33)]);
        read(&r, 2);
        assert_eq!(ep.harvest(9), []);
        ep.modify(&r, 3, (LIN | ET, 34)).unwrap();
        write(&w, 1);
        assert_eq!(ep.harvest(9), [(LIN, 34)]);
        assert_eq!(ep.harvest(9), []);
        write(&w, 1);
        assert_eq!(ep.harvest(9), [(LIN, 34)]);
        ep.modify(&r, 3, (LIN | ONESHOT, 35)).unwrap();
        assert_eq!(ep.harvest(9), [(LIN, 35)]);
        write(&w, 1);
        drop(w);
        assert_eq!(ep.harvest(9), []);
        ep.modify(&r, 3, (LIN | ONESHOT, 36)).unwrap();
        assert_eq!(ep.harvest(9), [(LIN | libc::EPOLLHUP as u32, 36)]);
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
            assert_eq!(ep.harvest(9).len(), 1);
        }
        assert!(ep.shared.items.lock().is_empty());
        assert!(ep.shared.ready.lock().list.len() <= 2);
        let f = eventfd::new(1, false, 0);
        ep.add(&f, 7, (LIN, 1)).unwrap();
        drop(epf);
        assert!(f.watchers.lock().is_empty());
        assert!(!f.ops.wait_queue().unwrap().has_waiters());
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
        // Chains of two: 500.
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
        // What was refused is not there, nor does it keep others from being added.
        let other = eventfd::new(0, false, 0);
        add(&low[0], &other).unwrap();
        f.ops.write(&f, &mut Src::kernel(&1u64.to_ne_bytes()), 0).unwrap();
        assert_eq!(of(&high[15]).unwrap().harvest(99).len(), 30);
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
        assert_eq!(e[0].poll(), 0);
        f.ops.write(&f, &mut Src::kernel(&1u64.to_ne_bytes()), 0).unwrap();
        assert_eq!(of(&e[0]).unwrap().harvest(4), [(LIN, 1)]);
    }
}
