//! Directory notification by fcntl(2) `F_NOTIFY`. A mark is attached to the directory's inode. It ends with its file
//! description, or with the first event unless it has `DN_MULTISHOT`. Marks are charged to their user like watches of
//! inotify(7).
//!
//! Closing a description removes its mark ([`release`]) under the lock of the marks. So this module drops a reference
//! to a description only when that lock is not held: it may be the last one.

use super::{inotify, File};
use crate::error::{Errno, Result};
use crate::kernel::users::{self, Charge, Resource, MAX_INOTIFY_WATCHES};
use crate::kernel::Task;
use parking_lot::Mutex;
use platform::executor::Rounds;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

const DN_ACCESS: u32 = 1;
const DN_MODIFY: u32 = 2;
const DN_CREATE: u32 = 4;
const DN_DELETE: u32 = 8;
const DN_RENAME: u32 = 16;
const DN_ATTRIB: u32 = 32;
/// `DN_MULTISHOT`.
const MULTISHOT: u32 = 1 << 31;

/// A name was changed within the directory; inotify(7) has no such event.
const RENAMED: u32 = 1 << 20;

/// The inotify(7) events of each kind of notification.
const KINDS: [(u32, u32); 6] = [
    (DN_ACCESS, libc::IN_ACCESS),
    (DN_MODIFY, libc::IN_MODIFY),
    (DN_CREATE, libc::IN_CREATE | libc::IN_MOVED_TO),
    (DN_DELETE, libc::IN_DELETE | libc::IN_MOVED_FROM),
    (DN_RENAME, RENAMED),
    (DN_ATTRIB, libc::IN_ATTRIB),
];

struct Mark {
    file: Weak<File>,
    fd: i32,
    mask: u32,
    _live: inotify::Live,
    _charge: Charge,
}

/// The marks of one directory.
#[derive(Default)]
pub struct Marks {
    /// Keyed by the address of the description.
    list: Mutex<BTreeMap<usize, Mark>>,
    /// The `DN_*` kinds that some mark asks for, or asked for recently.
    asked: AtomicU32,
}

fn key(file: &File) -> usize {
    std::ptr::from_ref(file) as usize
}

/// `F_NOTIFY`: adds to the kinds that the description asks for; 0 removes its mark.
pub fn set(task: &Task, file: &Arc<File>, fd: i32, mask: u32) -> Result<()> {
    let dir = file.path.as_ref().filter(|p| p.is_dir()).ok_or(Errno::ENOTDIR)?;
    let extra = dir.inode().extra().ok_or(Errno::EINVAL)?;
    if mask & !MULTISHOT == 0 {
        release(file);
        return Ok(());
    }
    file.owner.lock().claim(task);
    let marks = extra.get_or_insert(Marks::default);
    let mut m = marks.list.lock();
    match m.get_mut(&key(file)) {
        Some(x) => {
            x.mask |= mask;
            x.fd = fd;
        }
        None => {
            let limit = MAX_INOTIFY_WATCHES.load(Ordering::Relaxed);
            let charge = users::of(task.cred().uid).charge(Resource::InotifyWatches, limit).ok_or(Errno::ENOMEM)?;
            let mark = Mark { file: Arc::downgrade(file), fd, mask, _live: inotify::Live::begin(), _charge: charge };
            m.insert(key(file), mark);
            file.has_locks.store(true, Ordering::Relaxed);
        }
    }
    marks.asked.fetch_or(mask, Ordering::Relaxed);
    Ok(())
}

/// Removes the mark of a description: it is closed, or asks for no kinds.
pub fn release(file: &File) {
    let marks = file.path.as_ref().and_then(|p| p.inode().extra()?.get::<Marks>());
    if let Some(marks) = marks {
        marks.list.lock().remove(&key(file));
    }
}

/// Reports that an entry of the directory was renamed within it.
pub fn renamed(dir: &Arc<dyn super::Inode>) {
    if let Some(marks) = dir.extra().and_then(|e| e.get::<Marks>()) {
        marks.event(RENAMED);
    }
}

impl Marks {
    /// Reports the `IN_*` events that happened in the directory.
    pub fn event(&self, events: u32) {
        let kinds = KINDS.iter().filter(|(_, ev)| events & ev != 0).fold(0, |all, (dn, _)| all | dn);
        if self.asked.load(Ordering::Relaxed) & kinds == 0 {
            return;
        }
        let mut told = Vec::new();
        let mut asked = 0;
        let mut m = self.list.lock();
        let mut rounds = Rounds::new();
        m.retain(|_, x| {
            rounds.next();
            if x.mask & kinds != 0 {
                told.extend(x.file.upgrade().map(|f| (f, x.fd)));
                if x.mask & MULTISHOT == 0 {
                    return false;
                }
            }
            asked |= x.mask;
            true
        });
        self.asked.store(asked, Ordering::Relaxed);
        drop(m);
        for (file, fd) in told {
            rounds.next();
            let owner = file.owner.lock().clone();
            owner.notify(fd);
        }
    }
}
