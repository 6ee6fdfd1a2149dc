//! The hand-off's state machine (`stub/handoff.rs`) under loom: all interleavings of a stub and the Sentry's poller,
//! and all values that the memory model allows them to see. A lost wake-up shows as a deadlock, unordered data as a
//! concurrent access.

#[path = "../stub/abi.rs"]
mod abi;
#[path = "../stub/handoff.rs"]
mod handoff;

use abi::state::{PARKED, RUNNING};
use handoff::Word;
use loom::cell::UnsafeCell;
use loom::sync::atomic::{fence, AtomicU32, Ordering::*};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

struct ModelWord(AtomicU32);

impl Word for ModelWord {
    fn load_acquire(&self) -> u32 {
        self.0.load(Acquire)
    }
    fn load_seq_cst(&self) -> u32 {
        self.0.load(SeqCst)
    }
    fn store_seq_cst(&self, v: u32) {
        self.0.store(v, SeqCst)
    }
    fn swap_seq_cst(&self, v: u32) -> u32 {
        self.0.swap(v, SeqCst)
    }
    fn change(&self, from: u32, to: u32) -> bool {
        self.0.compare_exchange(from, to, AcqRel, Relaxed).is_ok()
    }
    fn fence() {
        fence(SeqCst)
    }
    fn fence_after_swap() {
        fence(SeqCst)
    }
}

/// A cell, the page of all stubs, the futex of the cell, and the doorbell, with the word that makes one thread of the
/// Sentry active at a time.
struct Model {
    state: ModelWord,
    polling: ModelWord,
    at_work: ModelWord,
    post: UnsafeCell<u32>,
    answer: UnsafeCell<u32>,
    futex: (Mutex<()>, Condvar),
    doorbell: (Mutex<bool>, Condvar),
}

// SAFETY: the plain cells are the subject of the model: loom reports any access that is not ordered.
unsafe impl Sync for Model {}

impl Model {
    fn new(state: u32) -> Arc<Self> {
        Arc::new(Model {
            state: ModelWord(AtomicU32::new(state)),
            polling: ModelWord(AtomicU32::new(1)),
            at_work: ModelWord(AtomicU32::new(1)),
            post: UnsafeCell::new(0),
            answer: UnsafeCell::new(0),
            futex: (Mutex::new(()), Condvar::new()),
            doorbell: (Mutex::new(false), Condvar::new()),
        })
    }

    /// The stub's part of one call.
    fn call(&self, n: u32) {
        // SAFETY: the stub owns it until the post; loom checks that.
        self.post.with_mut(|p| unsafe { *p = n });
        handoff::post(&self.state, &self.polling, || self.notify());
        self.receive(n);
    }
    fn receive(&self, n: u32) {
        let sleep = |expected| {
            let lock = self.futex.0.lock().unwrap();
            if self.state.0.load(SeqCst) == expected {
                drop(self.futex.1.wait(lock).unwrap());
            }
        };
        handoff::wait(&self.state, 1, thread::yield_now, sleep);
        // SAFETY: the stub owns it again once the answer has come; loom checks that.
        self.answer.with(|a| assert_eq!(unsafe { *a }, n));
    }

    fn posted(&self) -> bool {
        handoff::is_posted(self.state.load_acquire())
    }
    fn reply(&self, n: u32) {
        // SAFETY: the Sentry owns it until the reply; loom checks that.
        self.answer.with_mut(|a| unsafe { *a = n });
        handoff::reply(&self.state, || {
            let _lock = self.futex.0.lock().unwrap();
            self.futex.1.notify_one();
        });
    }
    fn sleep(&self) {
        let mut notified = self.doorbell.0.lock().unwrap();
        while !*notified {
            notified = self.doorbell.1.wait(notified).unwrap();
        }
        *notified = false;
    }
    fn notify(&self) {
        *self.doorbell.0.lock().unwrap() = true;
        self.doorbell.1.notify_one();
    }
    /// The active poller's loop until it has found a post.
    fn wait_for_post(&self) {
        while !self.posted() {
            if !handoff::release(&self.at_work, &self.polling, || self.posted()) {
                self.sleep();
                while !handoff::acquire(&self.at_work, &self.polling) {
                    self.sleep();
                }
            }
        }
    }
    /// A notified worker answers any post it finds, unless another thread is active, then releases the work.
    fn worker(&self, n: u32) {
        if handoff::acquire(&self.at_work, &self.polling) {
            loop {
                if self.posted() {
                    self.reply(n);
                }
                if !handoff::release(&self.at_work, &self.polling, || self.posted()) {
                    return;
                }
            }
        }
    }
    /// One call, found and answered; with `parks`, the stub is parked before.
    fn serve(&self, n: u32, parks: bool) {
        self.wait_for_post();
        // SAFETY: the Sentry owns it since the post was found; loom checks that.
        self.post.with(|p| assert_eq!(unsafe { *p }, n));
        if parks {
            handoff::park(&self.state);
        }
        self.reply(n);
    }
}

#[test]
fn no_post_and_no_answer_is_missed() {
    loom::model(|| {
        let m = Model::new(RUNNING);
        let stub = m.clone();
        let stub = thread::spawn(move || stub.call(7));
        m.serve(7, false);
        stub.join().unwrap();
    });
}

#[test]
fn a_stub_may_be_parked_at_any_moment() {
    loom::model(|| {
        let m = Model::new(RUNNING);
        let stub = m.clone();
        let stub = thread::spawn(move || stub.call(7));
        m.serve(7, true);
        stub.join().unwrap();
    });
}

#[test]
fn one_call_after_another() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let m = Model::new(RUNNING);
        let stub = m.clone();
        let stub = thread::spawn(move || {
            stub.call(1);
            stub.call(2);
        });
        m.serve(1, true);
        m.serve(2, false);
        stub.join().unwrap();
    });
}

#[test]
fn a_first_answer_may_come_before_its_stub() {
    loom::model(|| {
        let m = Model::new(PARKED);
        let stub = m.clone();
        let stub = thread::spawn(move || stub.receive(3));
        m.reply(3);
        stub.join().unwrap();
    });
}

/// A notified worker, and another one that wakes at the same time: one of them answers.
#[test]
fn several_may_be_woken_for_one_post() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let m = Model::new(RUNNING);
        // No thread is active.
        assert!(!handoff::release(&m.at_work, &m.polling, || false));
        let other = m.clone();
        let other = thread::spawn(move || other.worker(5));
        let worker = m.clone();
        let worker = thread::spawn(move || {
            worker.sleep();
            worker.worker(5);
        });
        m.call(5);
        // Lets the worker end: the other one may have answered without the doorbell.
        m.notify();
        worker.join().unwrap();
        other.join().unwrap();
    });
}
