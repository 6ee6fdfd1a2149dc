//! Directory notification of old: fcntl(2) `F_NOTIFY`. A mark hangs on the directory's inode and ends with its file description, or, unless it
//! says otherwise, with the first event.

use super::{inotify, File};
use crate::error::{Errno, Result};
use crate::kernel::Task;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

const DN_ACCESS: u32 = 1;
const DN_MODIFY: u32 = 2;
const DN_CREATE: u32 = 4;
const DN_DELETE: u32 = 8;
const DN_RENAME: u32 = 16;
const DN_ATTRIB: u32 = 32;
/// `DN_MULTISHOT`.
const MULTISHOT: u32 = 1 << 31;

/// No event of inotify(7): a name was changed within the directory.
const RENAMED: u32 = 1 << 20;

/// What each kind of notification means in events of inotify(7).
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
}

/// The marks of one directory.
#[derive(Default)]
pub struct Marks(Mutex<Vec<Mark>>);

/// `F_NOTIFY`: what to tell about is added to what it was; nothing ends it.
pub fn set(task: &Task, file: &Arc<File>, fd: i32, mask: u32) -> Result<()> {
    let dir = file.path.as_ref().filter(|p| p.is_dir()).ok_or(Errno::ENOTDIR)?;
    let extra = dir.inode().extra().ok_or(Errno::EINVAL)?;
    let marks = extra.get_or_insert(Marks::default);
    let mut m = marks.0.lock();
    m.retain(|x| x.file.strong_count() > 0);
    if mask & !MULTISHOT == 0 {
        m.retain(|x| !std::ptr::eq(x.file.as_ptr(), &**file));
        return Ok(());
    }
    file.owner.lock().claim(task);
    match m.iter_mut().find(|x| std::ptr::eq(x.file.as_ptr(), &**file)) {
        Some(x) => {
            x.mask |= mask;
            x.fd = fd;
        }
        None => m.push(Mark { file: Arc::downgrade(file), fd, mask, _live: inotify::Live::begin() }),
    }
    Ok(())
}

/// A name in the directory has become another one there.
pub fn renamed(dir: &Arc<dyn super::Inode>) {
    if let Some(marks) = dir.extra().and_then(|e| e.get::<Marks>()) {
        marks.event(RENAMED);
    }
}

impl Marks {
    /// Something (a set of `IN_*`) happened in the directory.
    pub fn event(&self, events: u32) {
        self.0.lock().retain(|x| {
            let Some(file) = x.file.upgrade() else { return false };
            if KINDS.iter().any(|(dn, ev)| x.mask & dn != 0 && events & ev != 0) {
                file.owner.lock().tell(x.fd);
                return x.mask & MULTISHOT != 0;
            }
            true
        });
    }
}
