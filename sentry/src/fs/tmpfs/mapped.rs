//! Files in memory that have been mapped, and so have a memfd with up to three descriptors. Where these run short, files
//! that are not mapped any more give theirs back.

use super::TmpInode;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::Weak;

/// Those that were mapped, oldest first.
static FILES: Mutex<VecDeque<Weak<TmpInode>>> = Mutex::new(VecDeque::new());

/// How many files are looked at, and given up at most, for one that wants to be mapped.
const LOOK_AT: usize = 256;
const GIVE_UP: usize = 4;

/// The file is being mapped.
pub fn note(inode: &TmpInode) {
    if inode.was_mapped.swap(true, Ordering::Relaxed) {
        return;
    }
    let mut files = FILES.lock();
    files.push_back(inode.me.clone());
    // More than one comes in, so those that are gone do not pile up.
    for _ in 0..2 {
        match files.pop_front() {
            Some(f) if f.strong_count() > 0 => files.push_back(f),
            _ => {}
        }
    }
}

/// Has a few descriptors given back. Says whether there are any.
pub fn make_room() -> bool {
    let mut given_up = 0;
    for _ in 0..LOOK_AT {
        let Some(next) = FILES.lock().pop_front() else { break };
        // Not locked any more: the last reference to the file may go here.
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
