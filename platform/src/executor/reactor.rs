//! Timers, and the readiness of host descriptors: what the poller waits for besides the cells of guests.
//!
//! Callbacks and wakers are called with no lock held.

use super::*;

impl Executor {
    /// Wakes `waker` at `deadline_ns` (host `CLOCK_MONOTONIC`, ns). Dropping the handle cancels.
    pub fn timer(self: &Arc<Self>, deadline_ns: u64, waker: Waker) -> TimerHandle {
        let key = (deadline_ns, self.next_id.fetch_add(1, Relaxed));
        let mut timers = self.timers.lock();
        timers.insert(key, waker);
        let first = timers.keys().next() == Some(&key);
        if first {
            self.next_deadline.store(deadline_ns, SeqCst);
        }
        drop(timers);
        // The poller keeps the time, also while a worker is at work.
        if first && (WORKER.get().is_some() || !AT_WORK.get()) {
            self.wake_if_asleep();
        }
        TimerHandle { executor: self.me.clone(), key }
    }

    /// Calls `on_ready` with the ready `EPOLL*` bits each time the host descriptor becomes ready (edge-triggered), until the
    /// handle is dropped. A descriptor that epoll refuses (a regular file) is reported ready at once, forever.
    /// The callback runs on a thread inside `run`, with no lock held; it must not block.
    pub fn watch(self: &Arc<Self>, fd: Arc<OwnedFd>, events: u32, on_ready: OnReady) -> WatchHandle {
        let id = self.next_id.fetch_add(1, Relaxed);
        let event = EpollEvent::new(EpollFlags::from_bits_truncate(events as i32) | EpollFlags::EPOLLET, id);
        self.watches.lock().insert(id, on_ready.clone());
        let mut kept = fd;
        let mut added = self.epoll.add(&kept, event);
        if added == Err(nix::Error::EEXIST) {
            // Watched already under this number; epoll wants another one.
            match kept.try_clone() {
                Ok(copy) => {
                    kept = Arc::new(copy);
                    added = self.epoll.add(&kept, event);
                }
                Err(e) => log::warn!("watch: {e}"),
            }
        }
        if added.is_err() {
            self.watches.lock().remove(&id);
            on_ready(events & !(libc::EPOLLET as u32));
        }
        WatchHandle { executor: self.me.clone(), fd: added.is_ok().then_some(kept), id }
    }

    /// Asks epoll, for at most `wait_ns`, and runs the callbacks; tells how many events there were.
    pub(super) fn events(&self, wait_ns: i64) -> usize {
        let mut events = [EpollEvent::empty(); 64];
        let n = crate::host::epoll_wait_ns(&self.epoll, &mut events, wait_ns);
        if wait_ns > 0 {
            self.asleep.store(false, SeqCst);
            self.acquire();
        }
        for event in &events[..n] {
            if event.data() == DOORBELL {
                let _ = self.doorbell.read();
                continue;
            }
            let callback = self.watches.lock().get(&event.data()).cloned();
            if let Some(callback) = callback {
                callback(event.events().bits() as u32);
            }
        }
        n
    }

    pub(super) fn fire_timers(&self) {
        if self.next_deadline.load(Relaxed) == u64::MAX {
            return;
        }
        let now = now_ns();
        let mut due = Vec::new();
        {
            let mut timers = self.timers.lock();
            // What is due beyond these is still due afterwards.
            while let Some(entry) = timers.first_entry().filter(|_| due.len() < FIRED_AT_ONCE) {
                if entry.key().0 > now {
                    break;
                }
                due.push(entry.remove());
            }
            self.next_deadline.store(timers.keys().next().map_or(u64::MAX, |k| k.0), SeqCst);
        }
        for waker in due {
            waker.wake();
        }
    }
}

/// Cancels its timer when dropped.
pub struct TimerHandle {
    executor: Weak<Executor>,
    key: (u64, u64),
}

impl Drop for TimerHandle {
    fn drop(&mut self) {
        if let Some(executor) = self.executor.upgrade() {
            // The first deadline may then be too early; the poller finds nothing due and sets it right.
            let waker = executor.timers.lock().remove(&self.key);
            drop(waker);
        }
    }
}

/// Ends its watch when dropped. A callback that runs already on another thread may still finish.
pub struct WatchHandle {
    executor: Weak<Executor>,
    fd: Option<Arc<OwnedFd>>,
    id: u64,
}

impl Drop for WatchHandle {
    fn drop(&mut self) {
        let (Some(executor), Some(fd)) = (self.executor.upgrade(), self.fd.take()) else {
            return;
        };
        if let Err(e) = executor.epoll.delete(fd.as_fd()) {
            log::warn!("watch of {}: {e}", fd.as_raw_fd());
        }
        let callback = executor.watches.lock().remove(&self.id);
        drop(callback);
    }
}
