//! Tasks (futures that the executor runs), their states, and the queue of ready ones.
//!
//! ```text
//!   IDLE --wake--> QUEUED --taken by a worker--> RUNNING --pending--> IDLE
//!                    ^                             | wake
//!                    +---------- pending ---- NOTIFIED           RUNNING --ready--> DONE
//! ```

use super::*;
use std::task::Wake;

pub(super) const IDLE: u8 = 0;
pub(super) const QUEUED: u8 = 1;
pub(super) const RUNNING: u8 = 2;
const NOTIFIED: u8 = 3;
pub(super) const DONE: u8 = 4;

pub(super) struct Task {
    pub(super) future: Mutex<Option<BoxFuture>>,
    pub(super) state: AtomicU8,
    pub(super) executor: Weak<Executor>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        loop {
            match self.state.load(Acquire) {
                IDLE => {
                    if self.state.compare_exchange(IDLE, QUEUED, AcqRel, Relaxed).is_ok() {
                        if let Some(executor) = self.executor.upgrade() {
                            executor.push(self.clone());
                        }
                        return;
                    }
                }
                RUNNING => {
                    if self.state.compare_exchange(RUNNING, NOTIFIED, AcqRel, Relaxed).is_ok() {
                        return;
                    }
                }
                _ => return,
            }
        }
    }
}

/// Ready tasks. Tasks of guests whose call has just been found have a queue of their own. The two queues alternate,
/// so that neither kind waits for thousands of the other that one call has woken.
#[derive(Default)]
pub(super) struct Ready {
    queues: [VecDeque<Arc<Task>>; 2],
    turn: usize,
}

impl Ready {
    pub(super) fn len(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }
    pub(super) fn push(&mut self, task: Arc<Task>, found: bool) {
        self.queues[usize::from(found)].push_back(task);
    }
    pub(super) fn pop(&mut self) -> Option<Arc<Task>> {
        self.turn ^= 1;
        let [a, b] = &mut self.queues;
        let (first, second) = if self.turn == 0 { (a, b) } else { (b, a) };
        first.pop_front().or_else(|| second.pop_front())
    }
}
