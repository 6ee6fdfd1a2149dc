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
    pub(super) turns: Option<Arc<Turns>>,
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

/// The ready tasks of one process. Each queue of [`Ready`] holds one of them at a time, so that a process with thousands
/// of ready tasks delays another process no longer than a process with a few does.
#[derive(Debug, Default)]
pub struct Turns([Line; 2]);

#[derive(Default)]
struct Line {
    /// One of the tasks is in the queue.
    queued: AtomicBool,
    /// The tasks that follow it.
    rest: Mutex<VecDeque<Arc<Task>>>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("queued", &self.queued).finish_non_exhaustive()
    }
}

/// Ready tasks. Tasks of guests whose call has just been found have a queue of their own. The two queues alternate,
/// so that neither kind waits for thousands of the other that one call has woken.
#[derive(Default)]
pub(super) struct Ready {
    queues: [VecDeque<Arc<Task>>; 2],
    len: usize,
    turn: usize,
}

impl Ready {
    pub(super) fn len(&self) -> usize {
        self.len
    }
    pub(super) fn push(&mut self, task: Arc<Task>, found: bool) {
        self.len += 1;
        let which = usize::from(found);
        if let Some(line) = task.turns.as_ref().map(|turns| &turns.0[which]) {
            // A line is only looked at with this queue locked.
            if line.queued.load(Relaxed) {
                line.rest.lock().push_back(task.clone());
                return;
            }
            line.queued.store(true, Relaxed);
        }
        self.queues[which].push_back(task);
    }
    pub(super) fn pop(&mut self) -> Option<Arc<Task>> {
        self.turn ^= 1;
        let which = if self.queues[self.turn].is_empty() { self.turn ^ 1 } else { self.turn };
        let task = self.queues[which].pop_front()?;
        self.len -= 1;
        if let Some(line) = task.turns.as_ref().map(|turns| &turns.0[which]) {
            match line.rest.lock().pop_front() {
                Some(next) => self.queues[which].push_back(next),
                None => line.queued.store(false, Relaxed),
            }
        }
        Some(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_many_has_each_second_turn() {
        let (many, few) = (Arc::new(Turns::default()), Arc::new(Turns::default()));
        let task = |turns: Option<&Arc<Turns>>| {
            Arc::new(Task {
                future: Mutex::default(),
                state: AtomicU8::new(QUEUED),
                turns: turns.cloned(),
                executor: Weak::new(),
            })
        };
        let mut ready = Ready::default();
        let mut queued = Vec::new();
        let mut push = |ready: &mut Ready, turns: Option<&Arc<Turns>>, found: bool| {
            let t = task(turns);
            ready.push(t.clone(), found);
            queued.push(t);
        };
        (0..1000).for_each(|_| push(&mut ready, Some(&many), false));
        (0..1000).for_each(|_| push(&mut ready, Some(&many), true));
        push(&mut ready, Some(&few), true);
        push(&mut ready, None, false);
        push(&mut ready, Some(&few), false);
        let first: Vec<Arc<Task>> = (0..6).filter_map(|_| ready.pop()).collect();
        for late in &queued[2000..] {
            assert!(first.iter().any(|t| Arc::ptr_eq(t, late)));
        }
        assert_eq!(ready.len(), 2003 - 6);
        let rest: Vec<Arc<Task>> = std::iter::from_fn(|| ready.pop()).collect();
        assert_eq!((rest.len(), ready.len()), (2003 - 6, 0));
    }
}
