//! The end of a guest thread: what its stub does when the Sentry drops it.

use super::*;

/// Takes the place of a dropped thread whose stub still runs guest code: answers its next post with "exit".
struct Orphan {
    area: Arc<Area>,
    slot: usize,
    tid_word: u64,
    last: Option<OpSlot>,
    done: AtomicBool,
}

impl Wake for Orphan {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        let posted = crate::systrap::handoff::is_posted(self.area.state(self.slot).load(Acquire));
        if posted && !self.done.swap(true, AcqRel) {
            self.end();
        }
    }
}

impl Orphan {
    fn end(&self) {
        if let Some(op) = self.last {
            self.area.write_op(self.slot, 0, op);
        }
        self.area.write_answer(self.slot, mode::EXIT, self.last.is_some().into(), 0, 0, None, self.tid_word);
        self.area.reply(self.slot, || ());
    }
}

impl Thread {
    /// Adds the stub's own counts to the counters.
    fn count(&mut self) {
        let (answered, native) = self.area().counts(self.slot);
        let counters = &self.space.inner.counters;
        counters.answered.fetch_add(answered.wrapping_sub(self.counted.0), Relaxed);
        counters.native.fetch_add(native.wrapping_sub(self.counted.1), Relaxed);
        self.counted = (answered, native);
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.count();
        if self.space.exit_state.dead().is_some() {
            return;
        }
        if self.expect == Expect::Held {
            // The stub waits for its answer.
            self.expect = Expect::Stopped;
        }
        if self.slot == self.space.first {
            // The first thread stays, asleep: the host identifies the process by it.
            if self.expect != Expect::Stopped {
                self.space.interrupt(&self.watched);
            } else if self.space.has_one_guest() {
                // A lone stopped stub exits by its answer: to be killed, it would have to be woken, too.
                self.area().write_answer(self.slot, mode::EXIT_GROUP, 0, 0, 0, None, 0);
                self.area().reply(self.slot, || ());
            } else {
                self.area().park(self.slot);
            }
            return;
        }
        let (area, tid_word, last) = (self.space.area.clone(), self.tid_word, self.last);
        let orphan = Arc::new(Orphan { area, slot: self.slot, tid_word, last, done: AtomicBool::new(false) });
        if self.tid_word != 0 {
            self.space.inner.executor.ending();
        }
        if self.expect == Expect::Stopped {
            orphan.end();
        } else {
            self.watched.set_waker(&Waker::from(orphan));
            self.space.inner.executor.arm(&self.watched);
            self.space.interrupt(&self.watched);
        }
        self.space.give_slot(self.slot, false);
    }
}
