//! In-memory files that have been mapped: each has a memfd with up to three descriptors. When descriptors run short,
//! files that are not mapped any more release theirs.

use super::TmpInode;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::Weak;

/// The files, oldest first.
static FILES: Mutex<VecDeque<Weak<TmpInode>>> = Mutex::new(VecDeque::new());

/// Files examined, and files unmapped, at most, to make room for one mapping.
const LOOK_AT: usize = 256;
const GIVE_UP: usize = 4;

/// Records that the file is being mapped.
pub fn note(inode: &TmpInode) {
    if inode.was_mapped.swap(true, Ordering::Relaxed) {
        return;
    }
    let mut files = FILES.lock();
    files.push_back(inode.me.clone());
    // Two entries are checked for each one added, so dead entries do not accumulate.
    for _ in 0..2 {
        match files.pop_front() {
            Some(f) if f.strong_count() > 0 => files.push_back(f),
            _ => {}
        }
    }
}

/// Releases a few descriptors; true if there were any.
pub fn make_room() -> bool {
    let mut given_up = 0;
    for _ in 0..LOOK_AT {
        let Some(next) = FILES.lock().pop_front() else { break };
        // The list is not locked here: this may drop the last reference to the file.
        let Some(file) = next.upgrade() else { continue };
        if !file.unmap() {
            FILES.lock().push_back(next);
            continue;
        }
        file.was_mapped.store(false, Ordering::Relaxed);
        given_up += 1;
        if given_up == GIVE_UP {
            break;
        }
    }
    given_up > 0
}
