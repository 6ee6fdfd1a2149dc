//! Who is told by a signal that something happened to an open file: fcntl(2) `F_SETOWN`, `F_SETSIG`, `O_ASYNC`.
//!
//! Signals are sent a little later: what happens to a file is announced under the locks of whoever made it happen, and those come after the locks
//! of tasks. They are sent at the end of the system call during which it happened ([`send_late`]), so that they are there when it returns,
//! and at the latest by a future of their own.

use super::File;
use crate::error::{Errno, Result};
use crate::kernel::signal::{SigFields, SigInfo, NSIG};
use crate::kernel::wait::Waiter;
use crate::kernel::{pgrp, send, Cred, Kernel, Task};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Weak};

const IN: u32 = (libc::POLLIN | libc::POLLRDNORM) as u32;
const OUT: u32 = (libc::POLLOUT | libc::POLLWRNORM) as u32;
const PRI: u32 = (libc::POLLPRI | libc::POLLRDBAND) as u32;
const ERR: u32 = libc::POLLERR as u32;
const HUP: u32 = libc::POLLHUP as u32;

/// `si_code` with the `si_band` that goes with it, and the events that mean it.
const REASONS: [(u32, i32, i64); 5] = [
    (IN, 1, IN as i64),
    (OUT, 2, (OUT | libc::POLLWRBAND as u32) as i64),
    (ERR, 4, ERR as i64),
    (PRI, 5, PRI as i64),
    (HUP, 6, (HUP | ERR) as i64),
];
/// `POLL_MSG`: leases and directory notification.
const MSG: (i32, i64) = (3, (IN | 0x400) as i64);

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
    /// `F_SETSIG`; 0: plain `SIGIO`.
    signal: i32,
    /// Of whoever set it: the signal is sent in its name.
    uid: u32,
    euid: u32,
    kernel: Weak<Kernel>,
}

impl Owner {
    /// Whom signals go to; nobody if it is gone.
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
    /// `F_SETOWN`; `ESRCH` if there is no such one.
    pub fn set(&mut self, task: &Task, who: Recipient) -> Result<()> {
        if !who.exists(&task.kernel) {
            return Err(Errno::ESRCH);
        }
        let cred = task.cred();
        let signal = self.signal;
        *self = Owner { who, signal, uid: cred.uid, euid: cred.euid, kernel: Arc::downgrade(&task.kernel) };
        Ok(())
    }
    /// The caller becomes the owner of a file that has none.
    pub fn claim(&mut self, task: &Task) {
        if self.who() == Recipient::Nobody {
            // The caller exists.
            let _ = self.set(task, Recipient::Process(task.group.pid));
        }
    }
    fn may(&self, to: &Cred) -> bool {
        self.euid == 0 || [self.uid, self.euid].iter().any(|u| *u == to.suid || *u == to.uid)
    }
    fn deliver(&self, kernel: &Kernel, fd: i32, (code, band): (i32, i64)) {
        let info = match self.signal {
            0 => SigInfo::kernel(libc::SIGIO),
            signo => SigInfo { signo, errno: 0, code, fields: SigFields::Poll { band, fd } },
        };
        let groups = match self.who {
            Recipient::Nobody => return,
            Recipient::Thread(t) => {
                if let Some(t) = kernel.task(t).filter(|t| self.may(&t.cred())) {
                    t.queue_signal(info);
                }
                return;
            }
            Recipient::Process(p) => kernel.group(p).into_iter().collect(),
            Recipient::Group(g) => pgrp::members(kernel, g),
        };
        for g in groups {
            if g.any_thread().is_some_and(|t| self.may(&t.cred())) {
                // A full queue loses it, as on Linux.
                let _ = send::to_group(&g, info);
            }
        }
    }
    /// Tells the owner that something other than readiness happened to what it has open as `fd`.
    pub fn notify(&self, fd: i32) {
        let Some(k) = self.kernel.upgrade().filter(|_| self.who != Recipient::Nobody) else { return };
        // Plain SIGIO does not say which descriptor it is about.
        let key = (self.who, self.signal, self.uid, self.euid, if self.signal == 0 { -1 } else { fd });
        let mut late = LATE.lock();
        if late.keys.insert(key) {
            late.told.push((self.clone(), fd));
            drop(late);
            soon(&k);
        }
    }
}

type Late = Box<dyn FnOnce() + Send>;

/// What is to be sent as soon as no lock is held.
#[derive(Default)]
struct Pending {
    /// From [`Owner::tell`]: each signal to one and about one descriptor is there once, however often it is asked for.
    told: Vec<(Owner, i32)>,
    keys: HashSet<(Recipient, i32, u32, u32, i32)>,
    sends: Vec<Late>,
}
static LATE: LazyLock<Mutex<Pending>> = LazyLock::new(Default::default);
/// There is something.
static ANY: AtomicBool = AtomicBool::new(false);
/// A future is about to look; one is enough.
static SPAWNED: AtomicBool = AtomicBool::new(false);

fn later(kernel: &Kernel, send: Late) {
    LATE.lock().sends.push(send);
    soon(kernel);
}

fn soon(kernel: &Kernel) {
    ANY.store(true, Ordering::Release);
    if !SPAWNED.swap(true, Ordering::AcqRel) {
        kernel.executor.spawn(Box::pin(async {
            // First, so that what comes from here on has a future of its own.
            SPAWNED.swap(false, Ordering::AcqRel);
            send_late()
        }));
    }
}

/// Sends the signals that have been put off. Called with nothing locked.
pub fn send_late() {
    if !ANY.load(Ordering::Acquire) {
        return;
    }
    let late = {
        let mut l = LATE.lock();
        ANY.store(false, Ordering::Release);
        std::mem::take(&mut *l)
    };
    for (owner, fd) in late.told {
        if let Some(kernel) = owner.kernel.upgrade() {
            owner.deliver(&kernel, fd, MSG);
        }
    }
    for send in late.sends {
        send();
    }
}

/// Turns the wakes of a file with `O_ASYNC` into signals.
pub struct AsyncWatch {
    file: Weak<File>,
    fd: i32,
    kernel: Weak<Kernel>,
    /// Events not told yet; someone is about to when it is not zero.
    events: AtomicU32,
    /// The registration.
    id: std::sync::OnceLock<u64>,
}

impl Waiter for AsyncNotifier {
    fn wake(&self, events: u32) {
        let w = &self.0;
        if events == 0 || w.events.fetch_or(events, Ordering::AcqRel) != 0 {
            return;
        }
        let Some(k) = w.kernel.upgrade() else { return };
        let (w, kernel) = (w.clone(), k.clone());
        later(
            &k,
            Box::new(move || {
                let events = w.events.swap(0, Ordering::AcqRel);
                let Some(file) = w.file.upgrade() else { return };
                let ready = if events == u32::MAX { file.poll() } else { events };
                let owner = file.owner.lock().clone();
                let ours = |bits: u32| match bits {
                    IN => file.readable(),
                    OUT => file.writable(),
                    _ => true,
                };
                for (bits, code, band) in REASONS {
                    if ready & bits != 0 && ours(bits) {
                        owner.deliver(&kernel, w.fd, (code, band));
                    }
                }
            }),
        );
    }
}

struct AsyncNotifier(Arc<AsyncWatch>);

/// `O_ASYNC` was set or cleared through descriptor `fd`.
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
        let id = queue.add(IN | OUT | PRI | ERR | HUP, Arc::new(AsyncNotifier(watch.clone())));
        let _ = watch.id.set(id);
        *slot = Some(watch);
    }
}

/// The description goes.
pub fn release(file: &mut File) {
    if let Some(w) = file.async_watch.get_mut().take() {
        if let (Some(id), Some(q)) = (w.id.get(), file.ops.wait_queue()) {
            q.remove(*id);
        }
    }
}
