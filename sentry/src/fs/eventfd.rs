//! eventfd(2): a counter with a wait queue.

use super::anon::anon_attr;
use super::types::Attr;
use super::{File, FileOps};
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::wait::WaitQueue;
use crate::mm::io::{Dst, Src};
use parking_lot::Mutex;
use std::any::Any;
use std::sync::Arc;

pub struct EventFd {
    count: Mutex<u64>,
    semaphore: bool,
    queue: WaitQueue,
}

/// Creates an eventfd with status flags `flags`.
pub fn new(initial: u32, semaphore: bool, flags: i32) -> Arc<File> {
    let ops = EventFd { count: Mutex::new(initial.into()), semaphore, queue: WaitQueue::new() };
    File::new(Box::new(ops), libc::O_RDWR | flags, None)
}

impl EventFd {
    /// Adds one on behalf of the kernel; unlike a write this can overflow.
    pub fn signal(&self) {
        let full = {
            let mut c = self.count.lock();
            *c = c.saturating_add(1);
            *c == u64::MAX
        };
        self.queue.wake(if full { PollEvents::IN | PollEvents::ERR } else { PollEvents::IN });
    }
}

impl FileOps for EventFd {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _file: &File, dst: &mut Dst<'_>, _offset: u64) -> SysResult<usize> {
        if dst.remaining() < 8 {
            return Err(Errno::EINVAL.into());
        }
        let value = {
            let mut c = self.count.lock();
            if *c == 0 {
                return Err(Errno::EAGAIN.into());
            }
            let v = if self.semaphore { 1 } else { *c };
            *c -= v;
            v
        };
        self.queue.wake(PollEvents::OUT);
        Ok(dst.put(&value.to_ne_bytes())?)
    }
    fn write(&self, _file: &File, src: &mut Src<'_>, _offset: u64) -> SysResult<(usize, u64)> {
        if src.remaining() < 8 {
            return Err(Errno::EINVAL.into());
        }
        let mut raw = [0u8; 8];
        if src.take(&mut raw)? < 8 {
            return Err(Errno::EFAULT.into());
        }
        let add = u64::from_ne_bytes(raw);
        if add == u64::MAX {
            return Err(Errno::EINVAL.into());
        }
        {
            let mut c = self.count.lock();
            if add > (u64::MAX - 1).saturating_sub(*c) {
                return Err(Errno::EAGAIN.into());
            }
            *c += add;
        }
        if add != 0 {
            self.queue.wake(PollEvents::IN);
        }
        Ok((8, 0))
    }
    fn poll(&self, _file: &File) -> PollEvents {
        let c = *self.count.lock();
        let mut ev = PollEvents::empty();
        if c > 0 {
            ev |= PollEvents::IN;
        }
        if c == u64::MAX {
            ev |= PollEvents::ERR;
        }
        if c < u64::MAX - 1 {
            ev |= PollEvents::OUT;
        }
        ev
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(anon_attr())
    }
    fn anon_name(&self) -> String {
        "anon_inode:[eventfd]".into()
    }
    fn fdinfo(&self, out: &mut Vec<u8>) {
        let (count, semaphore) = (*self.count.lock(), i32::from(self.semaphore));
        out.extend_from_slice(format!("eventfd-count: {count:16x}\neventfd-semaphore: {semaphore}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SysError;

    fn add(f: &File, v: u64) -> SysResult<usize> {
        f.ops.write(f, &mut Src::kernel(&v.to_ne_bytes()), 0).map(|r| r.0)
    }
    fn take(f: &File) -> SysResult<u64> {
        let mut b = [0; 8];
        f.ops.read(f, &mut Dst::kernel(&mut b), 0)?;
        Ok(u64::from_ne_bytes(b))
    }

    #[test]
    fn counts() {
        const AGAIN: SysError = SysError::Errno(Errno::EAGAIN);
        let f = new(3, false, 0);
        assert_eq!(take(&f), Ok(3));
        assert_eq!(take(&f), Err(AGAIN));
        assert_eq!(f.poll(), PollEvents::OUT);
        assert_eq!(add(&f, u64::MAX), Err(Errno::EINVAL.into()));
        assert_eq!(add(&f, u64::MAX - 1), Ok(8));
        assert_eq!(f.poll(), PollEvents::IN);
        assert_eq!(add(&f, 1), Err(AGAIN));
        let s = new(2, true, 0);
        assert_eq!((take(&s), take(&s), take(&s)), (Ok(1), Ok(1), Err(AGAIN)));
    }
}
