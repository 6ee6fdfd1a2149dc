//! signalfd(2): reads take pending signals of the calling task. Only signals to the creating process wake a waiter.

use super::anon::anon_attr;
use super::types::Attr;
use super::{File, FileOps};
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::signal::{SigInfo, SigSet};
use crate::kernel::wait::WaitQueue;
use crate::kernel::{current, deliver, Task, ThreadGroup};
use crate::mm::io::Dst;
use parking_lot::Mutex;
use std::any::Any;
use std::sync::Arc;

/// `struct signalfd_siginfo`.
const SIZE: usize = 128;

pub struct SignalFd {
    pub mask: Mutex<SigSet>,
    group: Arc<ThreadGroup>,
}

pub fn new(task: &Task, mask: SigSet, flags: i32) -> Arc<File> {
    let ops = SignalFd { mask: Mutex::new(mask), group: task.group.clone() };
    File::new(Box::new(ops), libc::O_RDWR | flags, None)
}

pub fn of(file: &File) -> Option<&SignalFd> {
    file.ops.as_any().downcast_ref()
}

impl SignalFd {
    /// Wakes waiters after a change of the mask, which may include pending signals.
    pub fn announce(&self) {
        self.group.signal_wait.wake_all();
    }
    fn take(&self, task: &Task) -> Option<SigInfo> {
        let mask = *self.mask.lock();
        deliver::dequeue(task, mask)
    }
}

/// Converts the `siginfo_t` that a handler would get into `signalfd_siginfo`.
fn layout(info: &SigInfo) -> [u8; SIZE] {
    let s = info.to_bytes();
    let mut b = [0u8; SIZE];
    b[0..4].copy_from_slice(&s[0..4]);
    b[4..8].copy_from_slice(&s[4..8]);
    b[8..12].copy_from_slice(&s[8..12]);
    b[12..20].copy_from_slice(&s[16..24]);
    if info.signo == libc::SIGCHLD && info.code > 0 {
        b[40..44].copy_from_slice(&s[24..28]);
        b[56..72].copy_from_slice(&s[32..48]);
    } else if info.code < 0 {
        b[44..48].copy_from_slice(&s[24..28]);
        b[48..56].copy_from_slice(&s[24..32]);
    }
    b
}

impl FileOps for SignalFd {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _file: &File, dst: &mut Dst<'_>, _offset: u64) -> SysResult<usize> {
        if dst.remaining() < SIZE {
            return Err(Errno::EINVAL.into());
        }
        let task = current::get().ok_or(Errno::EAGAIN)?;
        let mut n = 0;
        while dst.remaining() >= SIZE {
            let Some(info) = self.take(&task) else { break };
            n += dst.put(&layout(&info))?;
        }
        if n == 0 {
            return Err(Errno::EAGAIN.into());
        }
        Ok(n)
    }
    fn poll(&self, _file: &File) -> PollEvents {
        let mask = *self.mask.lock();
        let Some(task) = current::get() else { return PollEvents::empty() };
        let own = task.signals.lock().pending.set;
        let all = own.union(task.group.pending.lock().set);
        if all.0 & mask.0 != 0 {
            PollEvents::IN
        } else {
            PollEvents::empty()
        }
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.group.signal_wait)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(anon_attr())
    }
    fn anon_name(&self) -> String {
        "anon_inode:[signalfd]".into()
    }
    fn fdinfo(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("sigmask:\t{:016x}\n", self.mask.lock().0).as_bytes());
    }
}
