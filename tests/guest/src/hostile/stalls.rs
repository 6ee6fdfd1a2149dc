//! Calls that keep the Sentry busy for long, and timers that expire all the time. Another process makes calls
//! meanwhile, and must get answers before the long call ends.

use super::got;
use crate::t::*;
use libc::*;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::SeqCst};

/// The minimum of answers for the other process. If it had to wait for the long call it would get one or two.
const ANSWERS: u64 = 6;
const MIB: usize = 1 << 20;

pub unsafe fn stalls() {
    submitted();
    resident();
    random();
    given_back();
    framed();
    expiring(false);
    expiring(true);
    many_texts();
}

/// How often a call is repeated until the other process has had its answers: on a busy machine it may get no core in
/// one attempt.
const TRIES: usize = 10;

/// Runs `long` after `prepare`, several times, beside a process that makes calls.
unsafe fn beside(what: &str, needed: u64, prepare: impl Fn(), long: impl Fn()) {
    beside_until(what, needed, prepare, |answers| {
        long();
        answers.load(SeqCst)
    });
}

/// Like `beside`; `long` returns the number of answers at the time when its own work was almost done.
unsafe fn beside_until(what: &str, needed: u64, prepare: impl Fn(), long: impl Fn(&'static AtomicU64) -> u64) {
    let words: &'static [AtomicU64; 2] = &*shared(4096).cast();
    let other = spawn(|| {
        while words[1].load(SeqCst) == 0 {
            // A call without a local answer.
            syscall(SYS_umask, 0o22);
            words[0].fetch_add(1, SeqCst);
        }
        0
    });
    eventually("the other process's first calls", || words[0].load(SeqCst) > 100);
    let mut answers = 0;
    for _ in 0..TRIES {
        prepare();
        let before = words[0].load(SeqCst);
        answers = answers.max(long(&words[0]) - before);
        if answers >= needed {
            break;
        }
    }
    words[1].store(1, SeqCst);
    exits(other, 0);
    if answers < needed {
        got(&format!("the Sentry for itself by {what}: another process got {answers} answers meanwhile"));
    }
}

/// More processes that make a long call at once than the Sentry has threads to hand work over to: before the first of
/// them ends, another process gets as many answers as without them.
unsafe fn many_texts() {
    const READERS: u64 = 12;
    const MAPPINGS: usize = 40_000;
    const ENOUGH: u64 = 300;
    // The other process's calls; the end flag; readers that have begun and that have ended; calls when all had begun
    // and when the first had ended.
    let words = &*shared(4096).cast::<[AtomicU64; 6]>();
    let mapped = spawn(|| {
        let place = anon(MAPPINGS * 4096, RW);
        for i in (0..MAPPINGS).step_by(2) {
            if mprotect(place.add(i * 4096).cast(), 4096, PROT_READ) != 0 {
                break;
            }
        }
        words[2].store(1, SeqCst);
        loop {
            pause();
        }
    });
    while words[2].load(SeqCst) == 0 {
        usleep(1000);
    }
    let other = spawn(|| {
        while words[1].load(SeqCst) == 0 {
            syscall(SYS_umask, 0o22);
            words[0].fetch_add(1, SeqCst);
        }
        0
    });
    let name = c(&format!("/proc/{mapped}/smaps"));
    let mut answers = 0;
    for _ in 0..TRIES {
        words[2..].iter().for_each(|w| w.store(0, SeqCst));
        let readers: Vec<pid_t> = (0..READERS)
            .map(|_| {
                spawn(|| {
                    let file = ok(open(name.as_ptr(), O_RDONLY));
                    if words[2].fetch_add(1, SeqCst) + 1 == READERS {
                        words[4].store(words[0].load(SeqCst), SeqCst);
                    }
                    while words[2].load(SeqCst) < READERS {
                        usleep(1000);
                    }
                    get(file, 1000);
                    if words[3].fetch_add(1, SeqCst) == 0 {
                        words[5].store(words[0].load(SeqCst), SeqCst);
                    }
                    0
                })
            })
            .collect();
        readers.into_iter().for_each(|r| exits(r, 0));
        answers = answers.max(words[5].load(SeqCst).saturating_sub(words[4].load(SeqCst)));
        if answers >= ENOUGH {
            break;
        }
    }
    words[1].store(1, SeqCst);
    exits(other, 0);
    super::end(mapped);
    if answers < ENOUGH {
        got(&format!("all threads of the Sentry by smaps: another process got {answers} answers meanwhile"));
    }
}

/// io_submit(2) of many requests, each as large as one request may be.
unsafe fn submitted() {
    const SIZE: usize = 4 * MIB;
    const REQUESTS: usize = 100;
    let (file, buffer) = (ok(memfd_create(c"x".as_ptr(), 0)), anon(SIZE, RW));
    std::slice::from_raw_parts_mut(buffer, SIZE).fill(1);
    is(pwrite(file, buffer.cast(), SIZE, 0), SIZE as i64);
    let mut context = 0u64;
    zero(syscall(SYS_io_setup, REQUESTS, &raw mut context) as i32);
    // data, key and flags, opcode and descriptor, buffer, length, offset, two reserved fields.
    let request = [0, 0, (file as u64) << 32, buffer as u64, SIZE as u64, 0, 0, 0];
    let requests = [&raw const request; REQUESTS];
    beside(
        "io_submit",
        ANSWERS,
        || (),
        || is(syscall(SYS_io_submit, context, REQUESTS, requests.as_ptr()), REQUESTS as i64),
    );
    zero(syscall(SYS_io_destroy, context) as i32);
    zero(munmap(buffer.cast(), SIZE));
    zero(close(file));
}

/// mincore(2) of 64 GiB.
unsafe fn resident() {
    const LENGTH: usize = 64 << 30;
    let place = mmap(null_mut(), LENGTH, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_ne!(place, MAP_FAILED);
    let pages = anon(LENGTH / 4096, RW);
    beside("mincore", ANSWERS, || (), || zero(mincore(place, LENGTH, pages)));
    zero(munmap(pages.cast(), LENGTH / 4096));
    zero(munmap(place, LENGTH));
}

/// Reads from the slowest device, and getrandom(2).
unsafe fn random() {
    const SIZE: usize = 32 * MIB;
    let (file, buffer) = (ok(open(c"/dev/urandom".as_ptr(), O_RDONLY)), anon(SIZE, RW));
    beside("a read of /dev/urandom", ANSWERS, || (), || is(read(file, buffer.cast(), SIZE), SIZE as i64));
    beside("getrandom", ANSWERS, || (), || is(syscall(SYS_getrandom, buffer, SIZE, 0), SIZE as i64));
    zero(munmap(buffer.cast(), SIZE));
    zero(close(file));
}

/// One call allocates a file's memory, another frees it.
unsafe fn given_back() {
    const SIZE: i64 = 192 * MIB as i64;
    let file = ok(memfd_create(c"x".as_ptr(), 0));
    let (take, empty) = (|| zero(fallocate(file, 0, 0, SIZE)), || zero(ftruncate(file, 0)));
    beside("fallocate", ANSWERS, empty, take);
    let hole = || zero(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE));
    beside("a punched hole", ANSWERS, take, hole);
    beside("ftruncate", ANSWERS, take, empty);
    zero(close(file));
}

/// Many queued signals, unblocked at once.
unsafe fn framed() {
    const SIGNALS: usize = 10_000;
    const ROOM: usize = SIGNALS * 16384;
    static HANDLED: AtomicU64 = AtomicU64::new(0);
    /// The other process's answers, and their count when the first handler began.
    static ANSWERS_AT: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());
    static AT_FIRST: AtomicU64 = AtomicU64::new(0);
    extern "C" fn handled(_: i32) {
        if HANDLED.fetch_add(1, SeqCst) == 0 {
            AT_FIRST.store(unsafe { (*ANSWERS_AT.load(SeqCst)).load(SeqCst) }, SeqCst);
        }
    }
    let place = mmap(null_mut(), ROOM, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_ne!(place, MAP_FAILED);
    let stack = stack_t { ss_sp: place, ss_flags: 0, ss_size: ROOM };
    zero(sigaltstack(&stack, null_mut()));
    on(SIGRTMIN(), handled as *const () as usize, SA_NODEFER | SA_ONSTACK);
    let mut set: sigset_t = zeroed();
    sigemptyset(&mut set);
    sigaddset(&mut set, SIGRTMIN());
    let queue = || {
        HANDLED.store(0, SeqCst);
        sigprocmask(SIG_BLOCK, &set, null_mut());
        for _ in 0..SIGNALS {
            sigqueue(getpid(), SIGRTMIN(), sigval { sival_ptr: null_mut() });
        }
    };
    beside_until("frames of signals", ANSWERS, queue, |answers| {
        ANSWERS_AT.store(std::ptr::from_ref(answers).cast_mut(), SeqCst);
        sigprocmask(SIG_UNBLOCK, &set, null_mut());
        assert!(HANDLED.load(SeqCst) > 1000);
        AT_FIRST.load(SeqCst)
    });
    zero(munmap(place, ROOM));
}

/// As many timers as possible, which expire every nanosecond: their signal is ignored, or blocked.
unsafe fn expiring(blocked: bool) {
    const TIMERS: usize = 40_000;
    let attacker = spawn(|| {
        if blocked {
            block(&[SIGUSR1]);
        } else {
            on(SIGUSR1, SIG_IGN, 0);
        }
        let mut event: sigevent = zeroed();
        event.sigev_notify = SIGEV_SIGNAL;
        event.sigev_signo = SIGUSR1;
        let often = itimerspec {
            it_interval: timespec { tv_sec: 0, tv_nsec: 1 },
            it_value: timespec { tv_sec: 0, tv_nsec: 1 },
        };
        let mut timer = null_mut();
        for _ in 0..TIMERS {
            if timer_create(CLOCK_MONOTONIC, &mut event, &mut timer) != 0 {
                break;
            }
            zero(timer_settime(timer, 0, &often, null_mut()));
        }
        loop {
            pause();
        }
    });
    usleep(300_000);
    let a_while = || {
        for _ in 0..20 {
            usleep(10_000);
        }
    };
    beside("timers", 100, || (), a_while);
    super::end(attacker);
}
