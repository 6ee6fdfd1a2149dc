//! A signal to a process stays pending until any of its threads takes it, whichever thread seemed likely when it came.

use crate::t::*;
use libc::*;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};

pub const CASES: &[crate::Case] =
    cases![handed_on_by_a_handler, handed_on_by_a_mask, handed_on_by_a_waiting_mask, handed_on_at_exit];

static TAKEN: AtomicU32 = AtomicU32::new(0);
static READY: AtomicI32 = AtomicI32::new(0);

extern "C" fn take(_: i32) {
    TAKEN.fetch_add(1, SeqCst);
}

/// A thread that waits for these signals.
unsafe fn taker(what: &'static [i32]) {
    std::thread::spawn(|| unsafe {
        sigprocmask_of(SIG_UNBLOCK, what);
        READY.store(gettid(), SeqCst);
        loop {
            pause();
        }
    });
    eventually("a thread that waits", || READY.load(SeqCst) != 0);
    asleep(READY.load(SeqCst));
}

unsafe fn sigprocmask_of(how: i32, sigs: &[i32]) {
    is(pthread_sigmask(how, &set_of(sigs), null_mut()), 0);
}

/// A child sends `n` signals to this process, each after the previous one was taken; while one is on its way this
/// thread runs `moment`, in which it could take it.
unsafe fn sent(n: u32, moment: impl Fn(u32)) {
    let (r, w) = pipe_pair();
    let me = getpid();
    let child = spawn(|| {
        for _ in 0..n {
            ok(kill(me, SIGUSR1));
            get(r, 1);
        }
        0
    });
    for i in 0..n {
        moment(i % 50);
        eventually("the other thread takes it", || TAKEN.load(SeqCst) > i);
        put(w, b"x");
    }
    exits(child, 0);
    assert_eq!(TAKEN.load(SeqCst), n);
}

/// Two signals arrive while the first thread cannot take any, because it waits for its vfork(2) child. The first
/// signal's handler blocks the second and waits for it.
unsafe fn handed_on_by_a_handler() {
    extern "C" fn wait(_: i32) {
        eventually("another thread takes the second one", || TAKEN.load(SeqCst) == 1);
        READY.store(0, SeqCst);
    }
    on(SIGUSR2, take as *const () as usize, 0);
    let mut a: sigaction = zeroed();
    a.sa_sigaction = wait as *const () as usize;
    a.sa_mask = set_of(&[SIGUSR2]);
    ok(sigaction(SIGUSR1, &a, null_mut()));
    sigprocmask_of(SIG_BLOCK, &[SIGUSR1]);
    taker(&[SIGUSR2]);
    sigprocmask_of(SIG_UNBLOCK, &[SIGUSR1]);
    let pid = getpid();
    #[allow(deprecated)]
    let child = ok(vfork());
    if child == 0 {
        kill(pid, SIGUSR1);
        kill(pid, SIGUSR2);
        _exit(0);
    }
    exits(child, 0);
    assert_eq!(READY.load(SeqCst), 0);
}

unsafe fn handed_on_by_a_mask() {
    on(SIGUSR1, take as *const () as usize, 0);
    sigprocmask_of(SIG_BLOCK, &[SIGUSR1]);
    taker(&[SIGUSR1]);
    sent(300, |spin| {
        sigprocmask_of(SIG_UNBLOCK, &[SIGUSR1]);
        for _ in 0..spin {
            getppid();
        }
        sigprocmask_of(SIG_BLOCK, &[SIGUSR1]);
    });
}

/// Calls that wait with a mask of their own.
unsafe fn handed_on_by_a_waiting_mask() {
    on(SIGUSR1, take as *const () as usize, 0);
    sigprocmask_of(SIG_BLOCK, &[SIGUSR1]);
    taker(&[SIGUSR1]);
    let none = set_of(&[]);
    sent(300, |spin| {
        ppoll(null_mut(), 0, &timespec { tv_sec: 0, tv_nsec: i64::from(spin) * 4000 }, &none);
    });
}

/// Threads end while the signal is meant for them.
unsafe fn handed_on_at_exit() {
    on(SIGUSR1, take as *const () as usize, 0);
    sigprocmask_of(SIG_BLOCK, &[SIGUSR1]);
    taker(&[SIGUSR1]);
    sent(150, |_| {
        let open = || std::thread::spawn(|| unsafe { sigprocmask_of(SIG_UNBLOCK, &[SIGUSR1]) });
        for t in [open(), open()] {
            t.join().unwrap();
        }
    });
}
