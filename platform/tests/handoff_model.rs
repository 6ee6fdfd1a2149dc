//! The hand-off's state machine (`stub/handoff.rs`) under loom: all interleavings of a stub and the Sentry's poller, and all
//! that the memory model allows them to see. A lost wake-up shows as a deadlock, unordered data as a concurrent access.

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

/// A cell, the page of all stubs, the futex of the cell, and the doorbell with the word by which the Sentry's threads take turns.
struct Model {
    state: ModelWord,
    polling: ModelWord,
    at_work: ModelWord,
    post: UnsafeCell<u32>,
    answer: UnsafeCell<u32>,
    futex: (Mutex<()>, Condvar),
    doorbell: (Mutex<bool>, Condvar),
}

// SAFETY: the plain cells are what the model is to check: loom reports any access that is not ordered.
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

    /// What the stub does for one call.
    fn call(&self, n: u32) {
        // SAFETY: ours until it is posted.
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
        // SAFETY: ours again once the answer is there.
        self.answer.with(|a| assert_eq!(unsafe { *a }, n));
    }

    fn posted(&self) -> bool {
        handoff::is_posted(self.state.load_acquire())
    }
    fn reply(&self, n: u32) {
        // SAFETY: ours until the reply.
        self.answer.with_mut(|a| unsafe { *a = n });
        handoff::reply(&self.state, || {
            let _lock = self.futex.0.lock().unwrap();
            self.futex.1.notify_one();
        });
    }
    fn sleep(&self) {
        let mut rung = self.doorbell.0.lock().unwrap();
        while !*rung {
            rung = self.doorbell.1.wait(rung).unwrap();
        }
        *rung = false;
    }
    fn notify(&self) {
        *self.doorbell.0.lock().unwrap() = true;
        self.doorbell.1.notify_one();
    }
    /// What a poller that is at work does until it has found a post.
    fn look_out(&self) {
        while !self.posted() {
            if !handoff::release(&self.at_work, &self.polling, || self.posted()) {
                self.sleep();
                while !handoff::acquire(&self.at_work, &self.polling) {
                    self.sleep();
                }
            }
        }
    }
    /// A worker that is rung answers what it finds if nobody else is at work, and rests.
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
    /// One call, found and answered; if it waits first, the stub is told.
    fn serve(&self, n: u32, parks: bool) {
        self.look_out();
        // SAFETY: ours since it was found.
        self.post.with(|p| assert_eq!(unsafe { *p }, n));
        if parks {
            handoff::park(&self.state);
        }
        self.reply(n);
    }
}

#[test]
fn no_post_and_no_answer_is_slept_through() {
    loom::model(|| {
        let m = Model::new(RUNNING);
        let stub = m.clone();
        let stub = thread::spawn(move || stub.call(7));
        m.serve(7, false);
        stub.join().unwrap();
    });
}

#[test]
fn a_stub_may_be_told_to_sleep_at_any_moment() {
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

/// Whoever is rung, and whoever else is woken at the same time: one of them answers.
#[test]
fn several_may_be_woken_for_one_post() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let m = Model::new(RUNNING);
        // Nobody is at work.
        assert!(!handoff::release(&m.at_work, &m.polling, || false));
        let other = m.clone();
        let other = thread::spawn(move || other.worker(5));
        let worker = m.clone();
        let worker = thread::spawn(move || {
            worker.sleep();
            worker.worker(5);
        });
        m.call(5);
        // So that it ends: the other one may have answered unrung.
        m.notify();
        worker.join().unwrap();
        other.join().unwrap();
    });
}
