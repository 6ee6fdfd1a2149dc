//! What is known of a host file's access control list.
//!
//! Where permissions have to be checked from the start, the Gofer's attributes tell whether there is one, so that most files cost nothing more. Otherwise
//! it is asked for when it first matters. A list is kept for as long as the file's ctime stays.

use super::super::acl::Acl;
use crate::error::{Errno, Result};
use parking_lot::Mutex;
use protocol::AclState;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

#[derive(Debug)]
pub struct AclCache {
    /// There is none.
    absent: AtomicBool,
    /// The list, once it has been fetched.
    list: Mutex<Option<Arc<Acl>>>,
}

impl AclCache {
    pub fn new(state: AclState) -> AclCache {
        AclCache { absent: AtomicBool::new(state == AclState::Absent), list: Mutex::default() }
    }

    /// Attributes have come, which are `changed`.
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

    /// It may have another one now.
    pub fn forget(&self) {
        self.list.lock().take();
        self.absent.store(false, Ordering::Release);
    }

    pub fn absent(&self) -> bool {
        self.absent.load(Ordering::Acquire)
    }

    /// The list; `fetch` gets the attribute.
    pub fn get(&self, fetch: impl FnOnce() -> Result<Vec<u8>>) -> Result<Option<Arc<Acl>>> {
        if let Some(list) = self.list.lock().as_ref() {
            return Ok(Some(list.clone()));
        }
        let list = match fetch() {
            Ok(bytes) => Acl::parse_of_host(&bytes).map_err(|_| Errno::EACCES)?,
            // Of a file that the Gofer may not open, the host sees to it that its list counts.
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
