//! Runs the guest kernel's futures and waits for whatever comes next: a trap of a guest thread, a timer, a host
//! descriptor, the death of a stub.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// One per Sentry.
pub struct Executor {}

impl Executor {
    /// Starts a future; it is polled soon, by a thread inside [`Executor::run`].
    pub fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let _ = future;
        todo!()
    }
    /// Polls, spins and sleeps until [`Executor::shutdown`]; returns the code given there.
    pub fn run(&self) -> i32 {
        todo!()
    }
    pub fn shutdown(&self, code: i32) {
        let _ = code;
        todo!()
    }
    /// Wakes `waker` at `deadline_ns` (host `CLOCK_MONOTONIC`, ns). Dropping the handle cancels.
    pub fn timer(self: &Arc<Self>, deadline_ns: u64, waker: Waker) -> TimerHandle {
        let _ = (deadline_ns, waker);
        todo!()
    }
    /// Calls `on_ready` with the ready `EPOLL*` bits each time the host descriptor becomes ready (edge-triggered), until the
    /// handle is dropped. A descriptor that epoll refuses (a regular file) is reported ready at once, forever.
    pub fn watch(
        self: &Arc<Self>,
        fd: Arc<OwnedFd>,
        events: u32,
        on_ready: Arc<dyn Fn(u32) + Send + Sync>,
    ) -> WatchHandle {
        let _ = (fd, events, on_ready);
        todo!()
    }
    /// Runs `f`, which may block in the host for long (cold file, slow device); another thread takes over the polling if it does.
    pub fn block_in_place<R>(&self, f: impl FnOnce() -> R) -> R {
        f()
    }
}

pub struct TimerHandle {}
pub struct WatchHandle {}

/// Host `CLOCK_MONOTONIC` in ns.
pub fn now_ns() -> u64 {
    0
}

#[allow(unused)]
fn _unused(_: Poll<()>) {}
