//! timerfd_create(2): a timer that is read from a descriptor.

use super::anon::anon_attr;
use super::types::Attr;
use super::{File, FileOps};
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::wait::WaitQueue;
use crate::mm::io::Dst;
use crate::time::timer::{Left, Next, Setting};
use crate::time::{Clock, Timer};
use platform::executor::now_ns;
use platform::Executor;
use std::any::Any;
use std::sync::Arc;

pub struct TimerFd {
    clock: Clock,
    timer: Timer,
    queue: Arc<WaitQueue>,
}

/// Creates a timerfd with status flags `flags`.
pub fn new(executor: &Arc<Executor>, clock: Clock, flags: i32) -> Arc<File> {
    let queue = Arc::new(WaitQueue::new());
    let announce = queue.clone();
    let timer = Timer::new(executor, move |_| {
        announce.wake(PollEvents::READABLE);
        Next::Hold
    });
    File::new(Box::new(TimerFd { clock, timer, queue }), libc::O_RDWR | flags, None)
}

/// The timer behind an open file.
pub fn of(file: &File) -> Option<&TimerFd> {
    file.ops.as_any().downcast_ref()
}

impl TimerFd {
    /// Arms the timer (`value_ns` 0 disarms it), at a time of its clock or after a delay; returns the previous setting.
    pub fn set(&self, value_ns: u64, interval_ns: u64, absolute: bool) -> Left {
        let deadline_ns = match (value_ns, absolute) {
            (0, _) => None,
            (v, true) => Some(self.clock.deadline(v)),
            (v, false) => Some(now_ns().saturating_add(v)),
        };
        self.timer.set(Setting { deadline_ns, interval_ns })
    }
    pub fn get(&self) -> Left {
        self.timer.get()
    }
}

impl FileOps for TimerFd {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _file: &File, dst: &mut Dst<'_>, _offset: u64) -> SysResult<usize> {
        if dst.remaining() < 8 {
            return Err(Errno::EINVAL.into());
        }
        match self.timer.take() {
            0 => Err(Errno::EAGAIN.into()),
            n => Ok(dst.put(&n.to_ne_bytes())?),
        }
    }
    fn poll(&self, _file: &File) -> PollEvents {
        if self.timer.ticks() > 0 {
            PollEvents::READABLE
        } else {
            PollEvents::empty()
        }
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(anon_attr())
    }
    fn anon_name(&self) -> String {
        "anon_inode:[timerfd]".into()
    }
    fn fdinfo(&self, out: &mut Vec<u8>) {
        let (left, ticks) = (self.get(), self.timer.ticks());
        let pair = |ns: u64| format!("({}, {})", ns / 1_000_000_000, ns % 1_000_000_000);
        let (value, interval) = (pair(left.value_ns), pair(left.interval_ns));
        out.extend_from_slice(format!("ticks: {ticks}\nit_value: {value}\nit_interval: {interval}\n").as_bytes());
    }
}
