//! The cached access control list of a host file.
//!
//! In trees whose permissions the Sentry checks from the start, the Gofer's attributes say whether a list exists, so
//! that most files cost no extra request. Otherwise the list is fetched when it is first needed. A cached list is valid
//! as long as the file's ctime stays the same.

use super::super::acl::Acl;
use crate::error::{Errno, Result};
use parking_lot::Mutex;
use protocol::AclState;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

#[derive(Debug)]
pub struct AclCache {
    /// The file has no list.
    absent: AtomicBool,
    /// The list, once fetched.
    list: Mutex<Option<Arc<Acl>>>,
}

impl AclCache {
    pub fn new(state: AclState) -> AclCache {
        AclCache { absent: AtomicBool::new(state == AclState::Absent), list: Mutex::default() }
    }

    /// Updates the cache from new attributes; `changed`: the ctime differs.
    pub fn reported(&self, state: AclState, changed: bool) {
        match state {
            AclState::Absent => self.absent.store(true, Ordering::Release),
            AclState::Present => self.absent.store(false, Ordering::Release),
            AclState::Unknown => {}
        }
        if changed {
            if state == AclState::Unknown {
                self.absent.store(false, Ordering::Release);
            }
            self.list.lock().take();
        }
    }

    /// Invalidates the cache.
    pub fn forget(&self) {
        self.list.lock().take();
        self.absent.store(false, Ordering::Release);
    }

    pub fn absent(&self) -> bool {
        self.absent.load(Ordering::Acquire)
    }

    /// The list; `fetch` reads the attribute.
    pub fn get(&self, fetch: impl FnOnce() -> Result<Vec<u8>>) -> Result<Option<Arc<Acl>>> {
        if let Some(list) = self.list.lock().as_ref() {
            return Ok(Some(list.clone()));
        }
        let list = match fetch() {
            Ok(bytes) => Acl::parse_of_host(&bytes).map_err(|_| Errno::EACCES)?,
            // The host enforces the list of a file that the Gofer may not open.
            Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EACCES | Errno::EPERM) => None,
            Err(e) => return Err(e),
        };
        match list {
            Some(list) => {
                let list = Arc::new(list);
                *self.list.lock() = Some(list.clone());
                Ok(Some(list))
            }
            None => {
                self.absent.store(true, Ordering::Release);
                Ok(None)
            }
        }
    }
}
