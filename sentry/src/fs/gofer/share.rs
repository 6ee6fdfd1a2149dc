//! Fair shares of the files that the Gofer can hold open.
//!
//! In a shared tree each inode in use holds one file, and a guest decides how many inodes it uses. So one user gets at
//! most half, all users without privileges three quarters; an eighth is reserved for exclusive trees, which need few.

use crate::error::{Errno, Result};
use crate::kernel::{cred::CAP_SYS_ADMIN, current};
use parking_lot::Mutex;
use std::collections::BTreeMap;

#[derive(Default)]
struct Given {
    all: u32,
    users: BTreeMap<u32, u32>,
}

static GIVEN: Mutex<Given> = Mutex::new(Given { all: 0, users: BTreeMap::new() });

/// One open file, charged to a user.
#[derive(Debug)]
pub(super) struct Share(u32);

impl Share {
    /// Charges one file of `most` to the calling task. `ENFILE` above its share.
    pub(super) fn take(most: u32) -> Result<Share> {
        let (user, privileged) = match current::get() {
            Some(t) => (t.cred().uid, t.cred().has(CAP_SYS_ADMIN)),
            None => (0, true),
        };
        Share::of(user, privileged, most)
    }

    fn of(user: u32, privileged: bool, most: u32) -> Result<Share> {
        let mut given = GIVEN.lock();
        let own = given.users.get(&user).copied().unwrap_or(0);
        let eighths = if privileged { 7 } else { 6 };
        if given.all >= most / 8 * eighths || (!privileged && own >= most / 2) {
            return Err(Errno::ENFILE);
        }
        given.all += 1;
        given.users.insert(user, own + 1);
        Ok(Share(user))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut given = GIVEN.lock();
        given.all = given.all.saturating_sub(1);
        if let Some(own) = given.users.get_mut(&self.0) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                given.users.remove(&self.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_gets_all() {
        let take = |user, privileged| std::iter::from_fn(move || Share::of(user, privileged, 80).ok());
        let first: Vec<_> = take(1000, false).collect();
        let second: Vec<_> = take(1001, false).collect();
        let root: Vec<_> = take(0, true).collect();
        assert_eq!((first.len(), second.len(), root.len()), (40, 20, 10));
        drop(first);
        let third: Vec<_> = take(1001, false).collect();
        assert_eq!(third.len(), 20);
        drop((second, root, third));
        assert!(GIVEN.lock().users.is_empty());
    }
}
