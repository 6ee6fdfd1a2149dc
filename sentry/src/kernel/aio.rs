//! Contexts of asynchronous I/O (io_setup(2)): completed events and polls in progress.
//!
//! Reads, writes and syncs run at submission, as in Linux for files that are not opened for direct I/O. Only
//! polls stay pending afterwards: each is a future of its own, which its context can end.

use super::wait::{in_parts, WaitQueue};
use super::Kernel;
use crate::abi::PollEvents;
use crate::error::{Errno, Result};
use crate::fs::{eventfd::EventFd, File};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};

/// `fs.aio-max-nr`.
pub const MAX_NR: usize = 65536;
/// Events that fit into the smallest ring: Linux rounds a ring up to whole pages.
const ROOM_MIN: usize = 126;

/// Contexts of an address space, by the address of their ring.
pub type Contexts = Mutex<BTreeMap<u64, Arc<Context>>>;

/// `struct io_event`, without the second result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub data: u64,
    pub obj: u64,
    pub res: i64,
}

#[derive(Default)]
struct State {
    done: VecDeque<Event>,
    /// Requests in progress, including reserved ones.
    busy: usize,
    /// By the request's `obj` and a number of ours.
    polls: BTreeMap<(u64, u64), Arc<PollRequest>>,
    next: u64,
    gone: bool,
}

/// A context made by io_setup(2).
pub struct Context {
    room: usize,
    /// The share of `total` that this context accounts for.
    requested: usize,
    total: Arc<AtomicUsize>,
    state: Mutex<State>,
    pub queue: WaitQueue,
}

impl Context {
    pub fn new(kernel: &Kernel, requested: usize) -> Result<Arc<Self>> {
        let total = kernel.aio_nr.clone();
        if total.fetch_add(requested, Ordering::SeqCst).saturating_add(requested) > MAX_NR {
            total.fetch_sub(requested, Ordering::SeqCst);
            return Err(Errno::EAGAIN);
        }
        let room = (requested * 2).max(ROOM_MIN);
        Ok(Arc::new(Context { room, requested, total, state: Mutex::default(), queue: WaitQueue::new() }))
    }

    /// Reserves room for one more event; `EAGAIN` if there is none.
    pub fn reserve(&self) -> Result<()> {
        let mut s = self.state.lock();
        if s.gone {
            return Err(Errno::EINVAL);
        }
        if s.done.len() + s.busy >= self.room {
            return Err(Errno::EAGAIN);
        }
        s.busy += 1;
        Ok(())
    }

    /// Gives back the room of a request that was not submitted.
    pub fn release(&self) {
        self.state.lock().busy -= 1;
    }

    /// Completes a request.
    pub fn complete(&self, event: Event, eventfd: Option<&File>) {
        {
            let mut s = self.state.lock();
            s.busy -= 1;
            if !s.gone {
                s.done.push_back(event);
            }
        }
        self.queue.wake_all();
        if let Some(e) = eventfd.and_then(|f| f.ops.as_any().downcast_ref::<EventFd>()) {
            e.signal();
        }
    }

    /// True if `min` events are ready or the context is destroyed.
    pub fn has(&self, min: usize) -> bool {
        let s = self.state.lock();
        s.gone || s.done.len() >= min
    }

    pub fn take(&self, max: usize) -> Vec<Event> {
        let mut s = self.state.lock();
        let n = s.done.len().min(max);
        s.done.drain(..n).collect()
    }

    /// Puts back events that could not be stored in guest memory.
    pub fn put_back(&self, events: Vec<Event>) {
        let mut s = self.state.lock();
        events.into_iter().rev().for_each(|e| s.done.push_front(e));
    }

    /// Polls `file` for `events`; the caller has reserved room for the completion.
    pub fn poll(
        self: &Arc<Self>,
        kernel: &Kernel,
        file: Arc<File>,
        events: PollEvents,
        event: Event,
        fd: Option<Arc<File>>,
    ) {
        let request = Arc::new(PollRequest::default());
        let id = {
            let mut s = self.state.lock();
            s.next += 1;
            let id = (event.obj, s.next);
            s.polls.insert(id, request.clone());
            id
        };
        let context = Arc::downgrade(self);
        let wanted = events | PollEvents::ALWAYS;
        kernel.executor.spawn(Box::pin(async move {
            let mut entry = None;
            let got = poll_fn(|cx| {
                let queue = file.ops.wait_queue();
                if let (Some(q), Some(id)) = (queue, entry.take()) {
                    q.remove(id);
                }
                if request.is_over(cx.waker()) {
                    return Poll::Ready(PollEvents::empty());
                }
                entry = queue.map(|q| q.add_waker(wanted, cx.waker().clone()));
                let got = file.poll() & wanted;
                if got.is_empty() {
                    return Poll::Pending;
                }
                Poll::Ready(got)
            })
            .await;
            if let (Some(q), Some(id)) = (file.ops.wait_queue(), entry) {
                q.remove(id);
            }
            if let Some(context) = Weak::upgrade(&context) {
                context.state.lock().polls.remove(&id);
                context.complete(Event { res: got.bits().into(), ..event }, fd.as_deref());
            }
        }));
    }

    /// Ends the poll submitted as `obj`; it completes with result 0.
    pub fn cancel(&self, obj: u64) -> bool {
        let found = self.state.lock().polls.range((obj, 0)..=(obj, u64::MAX)).next().map(|(_, p)| p.clone());
        found.inspect(|p| p.end()).is_some()
    }

    /// io_destroy(2): wakes the waiters in io_getevents(2) and ends all polls.
    pub fn destroy(&self) {
        let polls = {
            let mut s = self.state.lock();
            s.gone = true;
            s.done.clear();
            std::mem::take(&mut s.polls)
        };
        in_parts(polls.into_values().collect(), |p: Arc<PollRequest>| p.end());
        self.queue.wake_all();
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.destroy();
        self.total.fetch_sub(self.requested, Ordering::SeqCst);
    }
}

/// A poll in progress: whether it is to end, and the waker of its future.
#[derive(Default)]
struct PollRequest {
    over: Mutex<(bool, Option<Waker>)>,
}

impl PollRequest {
    fn is_over(&self, waker: &Waker) -> bool {
        let mut over = self.over.lock();
        over.1 = Some(waker.clone());
        over.0
    }
    fn end(&self) {
        let waker = {
            let mut over = self.over.lock();
            over.0 = true;
            over.1.take()
        };
        if let Some(w) = waker {
            w.wake();
        }
    }
}
