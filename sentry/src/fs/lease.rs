//! Leases: fcntl(2) `F_SETLEASE`. When another process opens or truncates the file, the holder gets a signal and a
//! limited time to give the lease up; the other process waits meanwhile.
//!
//! Leases are attached to the inode. Without any lease in the sandbox an open costs one load.

use super::{File, Inode};
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysError, SysResult};
use crate::kernel::cred::CAP_LEASE;
use crate::kernel::wait::{WaitError, WaitQueue};
use crate::kernel::Task;
use parking_lot::Mutex;
use platform::executor::now_ns;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Leases in the sandbox.
static LIVE: AtomicUsize = AtomicUsize::new(0);
/// `/proc/sys/fs/lease-break-time`, seconds.
pub static BREAK_TIME: AtomicU32 = AtomicU32::new(45);

struct Lease {
    file: Weak<File>,
    fd: i32,
    kind: i32,
    /// The kind that it is being lowered to, and the time when that is forced (host monotonic ns).
    breaking: Option<(i32, u64)>,
}

impl Lease {
    fn of(&self, file: &File) -> bool {
        std::ptr::eq(self.file.as_ptr(), file)
    }
    fn stops(&self, write: bool) -> bool {
        write || self.kind == libc::F_WRLCK
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The leases of one inode.
#[derive(Default)]
pub struct Leases {
    list: Mutex<Vec<Lease>>,
    queue: WaitQueue,
}

fn of(inode: &Arc<dyn Inode>) -> Option<Arc<Leases>> {
    if LIVE.load(Ordering::Relaxed) == 0 {
        return None;
    }
    inode.extra()?.get()
}

/// `F_SETLEASE`.
pub fn set(task: &Task, file: &Arc<File>, fd: i32, kind: i32) -> Result<()> {
    let place = file.path.as_ref().ok_or(Errno::EINVAL)?;
    let cred = task.cred();
    if cred.fsuid != place.inode().perm()?.uid && !cred.has(CAP_LEASE) {
        return Err(Errno::EACCES);
    }
    if place.kind() != libc::S_IFREG {
        return Err(Errno::EINVAL);
    }
    if kind == libc::F_UNLCK {
        let leases = of(place.inode()).ok_or(Errno::EAGAIN)?;
        let mut l = leases.list.lock();
        let i = l.iter().position(|x| x.of(file)).ok_or(Errno::EAGAIN)?;
        l.remove(i);
        drop(l);
        leases.queue.wake_all();
        return Ok(());
    }
    if kind != libc::F_RDLCK && kind != libc::F_WRLCK {
        return Err(Errno::EINVAL);
    }
    let write = kind == libc::F_WRLCK;
    let extra = place.inode().extra().ok_or(Errno::EINVAL)?;
    let (opens, writers) = extra.opens();
    // A write lease requires that this description is the only one, a read lease that the file is not open for writing.
    if if write { opens > 1 } else { writers > 0 } {
        return Err(Errno::EAGAIN);
    }
    let leases = extra.get_or_insert(Leases::default);
    let mut l = leases.list.lock();
    for x in l.iter() {
        let ends = x.breaking.is_some_and(|b| b.0 == libc::F_UNLCK);
        if ends || (!x.of(file) && write) || (x.of(file) && write && x.breaking.is_some()) {
            return Err(Errno::EAGAIN);
        }
    }
    file.owner.lock().claim(task);
    match l.iter_mut().find(|x| x.of(file)) {
        Some(mine) => {
            mine.kind = kind;
            mine.fd = fd;
            mine.breaking = None;
        }
        None => {
            LIVE.fetch_add(1, Ordering::Relaxed);
            l.push(Lease { file: Arc::downgrade(file), fd, kind, breaking: None });
            file.has_locks.store(true, Ordering::Relaxed);
        }
    }
    drop(l);
    leases.queue.wake_all();
    Ok(())
}

/// `F_GETLEASE`: a lease being broken reports the kind it is lowered to.
pub fn get(file: &File) -> i32 {
    let Some(leases) = file.path.as_ref().and_then(|p| of(p.inode())) else { return libc::F_UNLCK };
    let l = leases.list.lock();
    l.iter().find(|x| x.of(file)).map_or(libc::F_UNLCK, |x| x.breaking.map_or(x.kind, |b| b.0))
}

/// Drops the leases of a description that is closed.
pub fn release(file: &File) {
    if let Some(leases) = file.path.as_ref().and_then(|p| of(p.inode())) {
        leases.list.lock().retain(|x| !x.of(file));
        leases.queue.wake_all();
    }
}

/// Breaks the leases that conflict with an open (for writing if `write`): signals their holders, and returns the leases
/// to wait for.
pub fn stop(inode: &Arc<dyn Inode>, write: bool) -> Option<Arc<Leases>> {
    let leases = of(inode)?;
    leases.expire();
    let mut any = false;
    // Dropped without the lock: the end of a description takes it.
    let mut told = Vec::new();
    for x in leases.list.lock().iter_mut().filter(|x| x.stops(write)) {
        any = true;
        let to = if write { libc::F_UNLCK } else { libc::F_RDLCK };
        if x.breaking.is_none_or(|b| write && b.0 != libc::F_UNLCK) {
            let grace = u64::from(BREAK_TIME.load(Ordering::Relaxed)).saturating_mul(1_000_000_000);
            x.breaking = Some((to, now_ns().saturating_add(grace)));
            told.extend(x.file.upgrade().map(|f| (f, x.fd)));
        }
    }
    for (f, fd) in told {
        f.owner.lock().notify(fd);
    }
    any.then_some(leases)
}

impl Leases {
    /// Forces the leases whose time has passed; returns the next such time.
    fn expire(&self) -> Option<u64> {
        let now = now_ns();
        let mut next = None;
        self.list.lock().retain_mut(|x| match x.breaking {
            Some((to, at)) if at <= now => {
                x.kind = to;
                x.breaking = None;
                to != libc::F_UNLCK
            }
            Some((_, at)) => {
                next = Some(next.map_or(at, |n: u64| n.min(at)));
                true
            }
            None => true,
        });
        next
    }
    /// Waits until no lease conflicts with the open.
    pub async fn wait(&self, task: &Task, write: bool) -> SysResult<()> {
        loop {
            let until = self.expire();
            let free = || !self.list.lock().iter().any(|x| x.stops(write));
            match task.wait(&[(&self.queue, PollEvents::all())], until, || free().then_some(())).await {
                Ok(()) => return Ok(()),
                Err(WaitError::TimedOut) => {}
                Err(WaitError::Interrupted) => return Err(SysError::INTR),
            }
        }
    }
}
