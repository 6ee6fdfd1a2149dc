//! inotify(7).
//!
//! A watch is attached to an inode ([`InodeExtra`](super::InodeExtra)) and belongs to an instance, which queues events
//! until they are read. File operations call [`event`] or [`entry`]; without any watch in the sandbox that costs one
//! load.
//!
//! Locks: an instance's state, then an inode's list. An event is queued without holding the list.

use super::anon::anon_attr;
use super::file::{File, FileOps};
use super::types::*;
use super::vfs::Path;
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::users::{self, Charge, Resource, User, MAX_INOTIFY_INSTANCES, MAX_INOTIFY_WATCHES};
use crate::kernel::wait::WaitQueue;
use crate::kernel::Task;
use crate::mm::io::Dst;
use parking_lot::Mutex;
use platform::budget::{self, of_heap, Budget};
use platform::executor::Rounds;
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};

/// Limit of the events queued in one instance (the default of `/proc/sys/fs/inotify/max_queued_events`).
const QUEUE_MAX: usize = 16384;
/// Memory budget of the queued events of all instances.
static QUEUED: LazyLock<Budget> = LazyLock::new(|| Budget::new(of_heap(64 << 20, 2)));
/// The bits of a mask that stand for events.
pub const EVENTS: u32 = libc::IN_ALL_EVENTS;

/// Watches and marks in the whole sandbox.
static LIVE: AtomicUsize = AtomicUsize::new(0);
/// Counts a mark of dnotify, which [`event`] and [`entry`] report to as well.
pub struct Live(());

impl Live {
    pub fn begin() -> Live {
        LIVE.fetch_add(1, Ordering::Relaxed);
        Live(())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

static COOKIE: AtomicU32 = AtomicU32::new(1);

struct Watch {
    owner: Weak<Shared>,
    wd: i32,
    mask: AtomicU32,
    gone: AtomicBool,
    _charge: Charge,
}

#[derive(Default)]
struct Watches(Mutex<Vec<Arc<Watch>>>);

#[derive(PartialEq, Eq)]
struct Event {
    wd: i32,
    mask: u32,
    cookie: u32,
    name: Vec<u8>,
}

impl Event {
    /// The memory charged for it. `IN_Q_OVERFLOW` is free: a queue ends with at most one, and it must always fit.
    fn cost(&self) -> usize {
        match self.mask {
            libc::IN_Q_OVERFLOW => 0,
            _ => std::mem::size_of::<Event>() + self.name.len(),
        }
    }
    /// Its size in a read: the name is padded with at least one NUL to a multiple of the header size.
    fn size(&self) -> usize {
        16 + if self.name.is_empty() { 0 } else { (self.name.len() + 1).next_multiple_of(16) }
    }
}

struct State {
    last_wd: i32,
    watches: BTreeMap<i32, (Arc<Watch>, Path)>,
    queue: VecDeque<Event>,
    /// The charge for the queued events.
    room: budget::Charge,
}

impl State {
    fn new() -> State {
        State { last_wd: 0, watches: BTreeMap::new(), queue: VecDeque::new(), room: QUEUED.nothing() }
    }
    /// Queues an event; false if there is no room.
    fn queue(&mut self, e: Event) -> bool {
        let fits = self.queue.len() < QUEUE_MAX && self.room.set(self.room.amount() + e.cost() as u64);
        if fits {
            self.queue.push_back(e);
        }
        fits
    }
    /// Removes the first `n` events.
    fn taken(&mut self, n: usize) {
        let cost: usize = self.queue.drain(..n).map(|e| e.cost()).sum();
        self.room.set(self.room.amount().saturating_sub(cost as u64));
        if self.queue.capacity() > 64 && self.queue.len() * 4 < self.queue.capacity() {
            self.queue.shrink_to(self.queue.len() * 2);
        }
    }
}

struct Shared {
    state: Mutex<State>,
    wait: WaitQueue,
    /// The user that created it; its watches are charged to it.
    user: Arc<User>,
    _charge: Charge,
}

/// An open inotify instance.
pub struct Inotify(Arc<Shared>);

impl Shared {
    fn push(&self, e: Event) {
        let mut s = self.state.lock();
        if s.queue.back() == Some(&e) {
            return;
        }
        if !s.queue(e) {
            let over = Event { wd: -1, mask: libc::IN_Q_OVERFLOW, cookie: 0, name: Vec::new() };
            if s.queue.back() != Some(&over) {
                s.queue.push_back(over);
            }
        }
        drop(s);
        self.wait.wake(PollEvents::READABLE);
    }
    /// Removes a watch and queues `IN_IGNORED`.
    fn end(&self, w: &Watch) {
        if w.gone.swap(true, Ordering::AcqRel) {
            return;
        }
        LIVE.fetch_sub(1, Ordering::Relaxed);
        let place = self.state.lock().watches.remove(&w.wd);
        if let Some((watch, path)) = place {
            detach(&watch, &path);
        }
        self.push(Event { wd: w.wd, mask: libc::IN_IGNORED, cookie: 0, name: Vec::new() });
    }
}

fn detach(w: &Arc<Watch>, path: &Path) {
    if let Some(list) = path.inode().extra().and_then(|e| e.get::<Watches>()) {
        list.0.lock().retain(|x| !Arc::ptr_eq(x, w));
    }
}

/// Reports events to the watches of `inode`. `gone`: the object concerned has no name any more.
fn report(inode: &Arc<dyn Inode>, mask: u32, cookie: u32, name: &[u8], gone: bool) {
    let Some(extra) = inode.extra() else { return };
    if let Some(marks) = extra.get::<super::dnotify::Marks>() {
        marks.event(mask);
    }
    let Some(list) = extra.get::<Watches>() else { return };
    let watches = list.0.lock().clone();
    for w in watches {
        let wanted = w.mask.load(Ordering::Relaxed);
        let deaf = gone && wanted & libc::IN_EXCL_UNLINK != 0;
        if wanted & mask & EVENTS == 0 || deaf || w.gone.load(Ordering::Acquire) {
            continue;
        }
        let Some(owner) = w.owner.upgrade() else { continue };
        owner.push(Event { wd: w.wd, mask, cookie, name: name.to_vec() });
        if wanted & libc::IN_ONESHOT != 0 {
            owner.end(&w);
        }
    }
}

/// Reports an event on the object at `path` to its own watches and to its directory's.
#[inline]
pub fn event(path: &Path, mask: u32) {
    if LIVE.load(Ordering::Relaxed) != 0 {
        event_slow(path, mask);
    }
}

fn event_slow(path: &Path, mask: u32) {
    let dir = if path.is_dir() { libc::IN_ISDIR } else { 0 };
    if let Some(p) = path.dentry().parent() {
        report(p.inode(), mask | dir, 0, &path.dentry().name(), path.dentry().is_deleted());
    }
    report(path.inode(), mask | dir, 0, &[], false);
}

/// Reports that an entry of a directory was added or removed.
#[inline]
pub fn entry(dir: &Arc<dyn Inode>, name: &[u8], is_dir: bool, mask: u32, cookie: u32) {
    if LIVE.load(Ordering::Relaxed) != 0 {
        report(dir, mask | if is_dir { libc::IN_ISDIR } else { 0 }, cookie, name, false);
    }
}

/// A number that connects the two events of a rename.
pub fn cookie() -> u32 {
    COOKIE.fetch_add(1, Ordering::Relaxed)
}

/// Reports an event to the object's own watches only.
pub fn itself(inode: &Arc<dyn Inode>, mask: u32) {
    if LIVE.load(Ordering::Relaxed) != 0 {
        report(inode, mask, 0, &[], false);
    }
}

/// Reports that a name of the object was removed; removing the last one ends its watches.
pub fn removed(inode: &Arc<dyn Inode>, is_dir: bool) {
    if LIVE.load(Ordering::Relaxed) == 0 {
        return;
    }
    if !is_dir && inode.attr().is_ok_and(|a| a.nlink > 0) {
        return report(inode, libc::IN_ATTRIB, 0, &[], false);
    }
    if !is_dir {
        report(inode, libc::IN_ATTRIB, 0, &[], false);
    }
    report(inode, libc::IN_DELETE_SELF, 0, &[], false);
    let Some(list) = inode.extra().and_then(|e| e.get::<Watches>()) else { return };
    let watches = list.0.lock().clone();
    for w in watches {
        if let Some(owner) = w.owner.upgrade() {
            owner.end(&w);
        }
    }
}

/// Reports that the last reference to an open file was closed.
pub fn closed(file: &File) {
    if LIVE.load(Ordering::Relaxed) == 0 || file.flags() & libc::O_PATH != 0 {
        return;
    }
    if let Some(p) = &file.path {
        event_slow(p, if file.writable() { libc::IN_CLOSE_WRITE } else { libc::IN_CLOSE_NOWRITE });
    }
}

impl Inotify {
    /// Creates an instance. `EMFILE`: the user's limit is reached.
    pub fn open(flags: i32) -> Result<Arc<File>> {
        let user = users::current();
        let limit = MAX_INOTIFY_INSTANCES.load(Ordering::Relaxed);
        let charge = user.charge(Resource::InotifyInstances, limit).ok_or(Errno::EMFILE)?;
        let shared = Shared { state: Mutex::new(State::new()), wait: WaitQueue::new(), user, _charge: charge };
        Ok(File::new(Box::new(Inotify(Arc::new(shared))), libc::O_RDONLY | flags, None))
    }

    /// inotify_add_watch(2); the caller has resolved the path and checked read permission.
    pub fn add(&self, path: Path, mask: u32) -> Result<i32> {
        let list = path.inode().extra().ok_or(Errno::EOPNOTSUPP)?.get_or_insert(Watches::default);
        let mut s = self.0.state.lock();
        let mine = list.0.lock().iter().find(|w| std::ptr::eq(w.owner.as_ptr(), &*self.0)).cloned();
        if let Some(w) = mine {
            if mask & libc::IN_MASK_CREATE != 0 {
                return Err(Errno::EEXIST);
            }
            let keep = if mask & libc::IN_MASK_ADD != 0 { w.mask.load(Ordering::Relaxed) } else { 0 };
            w.mask.store(keep | mask, Ordering::Relaxed);
            return Ok(w.wd);
        }
        let limit = MAX_INOTIFY_WATCHES.load(Ordering::Relaxed);
        let charge = self.0.user.charge(Resource::InotifyWatches, limit).ok_or(Errno::ENOSPC)?;
        let wd = s.last_wd.checked_add(1).ok_or(Errno::ENOSPC)?;
        s.last_wd = wd;
        let w = Arc::new(Watch {
            owner: Arc::downgrade(&self.0),
            wd,
            mask: AtomicU32::new(mask),
            gone: AtomicBool::new(false),
            _charge: charge,
        });
        LIVE.fetch_add(1, Ordering::Relaxed);
        list.0.lock().push(w.clone());
        s.watches.insert(wd, (w, path));
        Ok(wd)
    }

    /// inotify_rm_watch(2).
    pub fn remove(&self, wd: i32) -> Result<()> {
        let w = self.0.state.lock().watches.get(&wd).map(|(w, _)| w.clone()).ok_or(Errno::EINVAL)?;
        self.0.end(&w);
        Ok(())
    }
}

impl Drop for Inotify {
    fn drop(&mut self) {
        let watches = std::mem::take(&mut self.0.state.lock().watches);
        let mut rounds = Rounds::new();
        for (w, path) in watches.into_values() {
            rounds.next();
            if !w.gone.swap(true, Ordering::AcqRel) {
                LIVE.fetch_sub(1, Ordering::Relaxed);
            }
            detach(&w, &path);
        }
    }
}

impl FileOps for Inotify {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _file: &File, dst: &mut Dst<'_>, _offset: u64) -> SysResult<usize> {
        let mut s = self.0.state.lock();
        let mut out = Vec::new();
        let mut taken = 0;
        for e in &s.queue {
            let size = e.size();
            if out.len() + size > dst.remaining() {
                if taken == 0 {
                    return Err(Errno::EINVAL.into());
                }
                break;
            }
            let end = out.len() + size;
            out.extend_from_slice(&e.wd.to_ne_bytes());
            out.extend_from_slice(&e.mask.to_ne_bytes());
            out.extend_from_slice(&e.cookie.to_ne_bytes());
            out.extend_from_slice(&((size - 16) as u32).to_ne_bytes());
            out.extend_from_slice(&e.name);
            out.resize(end, 0);
            taken += 1;
        }
        if taken == 0 {
            return Err(Errno::EAGAIN.into());
        }
        let n = dst.put(&out)?;
        s.taken(taken);
        Ok(n)
    }
    fn poll(&self, _file: &File) -> PollEvents {
        if self.0.state.lock().queue.is_empty() {
            PollEvents::empty()
        } else {
            PollEvents::READABLE
        }
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.0.wait)
    }
    fn ioctl(&self, _file: &File, task: &Task, cmd: u32, arg: u64) -> SysResult<u64> {
        const FIONREAD: u32 = 0x541b;
        if cmd != FIONREAD {
            return Err(Errno::ENOTTY.into());
        }
        let n: usize = self.0.state.lock().queue.iter().map(Event::size).sum();
        task.mem().write(arg, &(n as i32))?;
        Ok(0)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(anon_attr())
    }
    fn anon_name(&self) -> String {
        "anon_inode:inotify".into()
    }
    fn fdinfo(&self, out: &mut Vec<u8>) {
        let watches: Vec<_> = self
            .0
            .state
            .lock()
            .watches
            .values()
            .map(|(w, p)| (w.wd, w.mask.load(Ordering::Relaxed), p.clone()))
            .collect();
        let mut rounds = Rounds::new();
        for (wd, mask, path) in watches {
            rounds.next();
            let Ok(a) = path.inode().attr() else { continue };
            let mask = mask & (EVENTS | libc::IN_UNMOUNT | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT);
            let line = format!("inotify wd:{wd:x} ino:{:x} sdev:{:x} mask:{mask:x} ignored_mask:0\n", a.ino, a.dev);
            out.extend_from_slice(line.as_bytes());
        }
    }
}
