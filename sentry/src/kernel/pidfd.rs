//! Process file descriptors (pidfd_open(2)).

use super::process::ThreadGroup;
use super::wait::WaitQueue;
use crate::abi::PollEvents;
use crate::error::Result;
use crate::fs::anon::anon_attr;
use crate::fs::{Attr, File, FileOps};
use std::any::Any;
use std::sync::Arc;

/// A descriptor that refers to a process; readable once the process has ended.
pub struct PidFd {
    group: Arc<ThreadGroup>,
}

impl FileOps for PidFd {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn poll(&self, _file: &File) -> PollEvents {
        if self.group.links.lock().exit_status.is_some() {
            PollEvents::READABLE
        } else {
            PollEvents::empty()
        }
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.group.exit_wait)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr { mode: 0o700, ..anon_attr() })
    }
    fn reopens(&self) -> bool {
        true
    }
    fn anon_name(&self) -> String {
        "anon_inode:[pidfd]".into()
    }
}

/// Makes an open file description for `group`; `flags` may hold `O_NONBLOCK`.
pub fn open(group: Arc<ThreadGroup>, flags: i32) -> Arc<File> {
    File::new(Box::new(PidFd { group }), libc::O_RDWR | flags, None)
}

/// The process behind a descriptor, if it is a pidfd.
pub fn group(file: &File) -> Option<Arc<ThreadGroup>> {
    file.ops.as_any().downcast_ref::<PidFd>().map(|p| p.group.clone())
}
