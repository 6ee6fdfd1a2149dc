//! futex(2), all operations.

use crate::t::*;
use libc::*;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;

pub const CASES: &[crate::Case] = cases![
    wait_wrong_value,
    wait_timeout,
    wait_wake,
    wake_counts,
    errors,
    bitset,
    absolute_timeout,
    requeue,
    cmp_requeue,
    wake_op,
    shared_between_processes,
    shared_file_mapping,
    private_is_private,
    interrupted_wait,
    robust_mutex_thread,
    robust_mutex_process,
    robust_long_list,
    waitv_equal_words,
    pi_mutex,
    pi_errors,
    pi_owner_of_many_ends,
    process_shared_mutex,
    wake_before_wait,
    waitv,
    waitv_errors,
    waitv_interrupted,
];

unsafe fn ftx(a: *const AtomicU32, op: i32, val: u32, t: *const timespec, b: *const AtomicU32, v3: u32) -> i64 {
    syscall(SYS_futex, a, op, val, t, b, v3)
}
const P: i32 = FUTEX_PRIVATE_FLAG;
const NO_T: *const timespec = std::ptr::null();
const NO_F: *const AtomicU32 = std::ptr::null();

fn ms(n: i64) -> timespec {
    timespec { tv_sec: n / 1000, tv_nsec: n % 1000 * 1_000_000 }
}

unsafe fn wait_wrong_value() {
    let f = AtomicU32::new(5);
    fails(ftx(&f, FUTEX_WAIT | P, 4, NO_T, NO_F, 0), EAGAIN);
    fails(ftx(&f, FUTEX_WAIT, 4, NO_T, NO_F, 0), EAGAIN);
}

unsafe fn wait_timeout() {
    let f = AtomicU32::new(5);
    let start = std::time::Instant::now();
    fails(ftx(&f, FUTEX_WAIT | P, 5, &ms(10), NO_F, 0), ETIMEDOUT);
    fails(ftx(&f, FUTEX_WAIT, 5, &ms(10), NO_F, 0), ETIMEDOUT);
    assert!(start.elapsed().as_millis() >= 20);
    fails(ftx(&f, FUTEX_WAIT | P, 5, &ms(0), NO_F, 0), ETIMEDOUT);
}

/// A thread that sleeps on `f` and increments `up` when it returns.
unsafe fn sleeper(f: &'static AtomicU32, up: &'static AtomicU32, flag: i32) -> thread::JoinHandle<()> {
    let (tx, rx) = std::sync::mpsc::channel();
    let h = thread::spawn(move || unsafe {
        tx.send(gettid()).unwrap();
        ok(ftx(f, FUTEX_WAIT | flag, 0, NO_T, NO_F, 0));
        up.fetch_add(1, SeqCst);
    });
    asleep_thread(rx.recv().unwrap());
    h
}

fn asleep_thread(tid: i32) {
    eventually("thread sleeps", || {
        let s = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
        s.rsplit_once(") ").unwrap().1.starts_with('S')
    });
    // /proc may show the sleep slightly before the wait is complete.
    thread::sleep(std::time::Duration::from_millis(5));
}

unsafe fn wait_wake() {
    static F: AtomicU32 = AtomicU32::new(0);
    static UP: AtomicU32 = AtomicU32::new(0);
    for flag in [0, P] {
        let h = sleeper(&F, &UP, flag);
        is(ftx(&F, FUTEX_WAKE | flag, 1, NO_T, NO_F, 0), 1);
        h.join().unwrap();
        is(ftx(&F, FUTEX_WAKE | flag, 1, NO_T, NO_F, 0), 0);
    }
}

unsafe fn wake_counts() {
    static F: AtomicU32 = AtomicU32::new(0);
    static UP: AtomicU32 = AtomicU32::new(0);
    let hs: Vec<_> = (0..5).map(|_| sleeper(&F, &UP, P)).collect();
    is(ftx(&F, FUTEX_WAKE | P, 2, NO_T, NO_F, 0), 2);
    eventually("two are up", || UP.load(SeqCst) == 2);
    is(ftx(&F, FUTEX_WAKE | P, i32::MAX as u32, NO_T, NO_F, 0), 3);
    hs.into_iter().for_each(|h| h.join().unwrap());
}

unsafe fn errors() {
    let f = AtomicU32::new(5);
    let odd = (&raw const f).cast::<u8>().add(1).cast();
    fails(ftx(odd, FUTEX_WAIT | P, 5, NO_T, NO_F, 0), EINVAL);
    fails(ftx(odd, FUTEX_WAKE | P, 5, NO_T, NO_F, 0), EINVAL);
    fails(ftx(0x1000 as *const _, FUTEX_WAIT | P, 5, NO_T, NO_F, 0), EFAULT);
    fails(ftx(&f, 99, 5, NO_T, NO_F, 0), ENOSYS);
    fails(ftx(&f, FUTEX_WAIT | P, 5, &timespec { tv_sec: 0, tv_nsec: 1_000_000_000 }, NO_F, 0), EINVAL);
    fails(ftx(&f, FUTEX_WAIT | P, 5, &timespec { tv_sec: -1, tv_nsec: 0 }, NO_F, 0), EINVAL);
    fails(ftx(&f, FUTEX_WAIT | P, 5, BAD.cast(), NO_F, 0), EFAULT);
    fails(ftx(&f, FUTEX_WAIT_BITSET | P, 5, NO_T, NO_F, 0), EINVAL);
    fails(ftx(&f, FUTEX_WAKE_BITSET | P, 5, NO_T, NO_F, 0), EINVAL);
    fails(ftx(&f, FUTEX_WAKE | FUTEX_CLOCK_REALTIME | P, 1, NO_T, NO_F, 0), ENOSYS);
}

unsafe fn bitset() {
    static F: AtomicU32 = AtomicU32::new(0);
    let (tx, rx) = std::sync::mpsc::channel();
    let h = thread::spawn(move || unsafe {
        tx.send(gettid()).unwrap();
        ok(ftx(&F, FUTEX_WAIT_BITSET | P, 0, NO_T, NO_F, 0b0110));
    });
    asleep_thread(rx.recv().unwrap());
    is(ftx(&F, FUTEX_WAKE_BITSET | P, 9, NO_T, NO_F, 0b1001), 0);
    is(ftx(&F, FUTEX_WAKE_BITSET | P, 9, NO_T, NO_F, 0b1100), 1);
    h.join().unwrap();
}

unsafe fn absolute_timeout() {
    let f = AtomicU32::new(0);
    for (clock, flag) in [(CLOCK_MONOTONIC, 0), (CLOCK_REALTIME, FUTEX_CLOCK_REALTIME)] {
        let mut t: timespec = zeroed();
        ok(clock_gettime(clock, &mut t));
        fails(ftx(&f, FUTEX_WAIT_BITSET | flag | P, 0, &t, NO_F, u32::MAX), ETIMEDOUT);
        t.tv_nsec += 5_000_000;
        if t.tv_nsec >= 1_000_000_000 {
            t.tv_nsec -= 1_000_000_000;
            t.tv_sec += 1;
        }
        fails(ftx(&f, FUTEX_WAIT_BITSET | flag | P, 0, &t, NO_F, u32::MAX), ETIMEDOUT);
        let mut now: timespec = zeroed();
        ok(clock_gettime(clock, &mut now));
        assert!((now.tv_sec, now.tv_nsec) >= (t.tv_sec, t.tv_nsec));
    }
}

unsafe fn requeue() {
    static F: AtomicU32 = AtomicU32::new(0);
    static G: AtomicU32 = AtomicU32::new(0);
    static UP: AtomicU32 = AtomicU32::new(0);
    let hs: Vec<_> = (0..4).map(|_| sleeper(&F, &UP, P)).collect();
    // One is woken, at most two are requeued.
    is(ftx(&F, FUTEX_REQUEUE | P, 1, 2 as *const timespec, &G, 0), 3);
    eventually("one is up", || UP.load(SeqCst) == 1);
    is(ftx(&G, FUTEX_WAKE | P, 9, NO_T, NO_F, 0), 2);
    is(ftx(&F, FUTEX_WAKE | P, 9, NO_T, NO_F, 0), 1);
    hs.into_iter().for_each(|h| h.join().unwrap());
}

unsafe fn cmp_requeue() {
    static F: AtomicU32 = AtomicU32::new(0);
    static G: AtomicU32 = AtomicU32::new(0);
    static UP: AtomicU32 = AtomicU32::new(0);
    fails(ftx(&F, FUTEX_CMP_REQUEUE | P, 1, 1 as *const timespec, &G, 7), EAGAIN);
    let hs: Vec<_> = (0..3).map(|_| sleeper(&F, &UP, P)).collect();
    is(ftx(&F, FUTEX_CMP_REQUEUE | P, 0, i32::MAX as usize as *const timespec, &G, 0), 3);
    is(ftx(&F, FUTEX_WAKE | P, 9, NO_T, NO_F, 0), 0);
    is(ftx(&G, FUTEX_WAKE | P, 9, NO_T, NO_F, 0), 3);
    hs.into_iter().for_each(|h| h.join().unwrap());
}

unsafe fn wake_op() {
    let f = AtomicU32::new(0);
    let g = AtomicU32::new(10);
    // *g += 5, and wakes on g if the old value was greater than 3: there are no waiters, only the sum counts.
    let op = |o: u32, cmp: u32, a: u32, ca: u32| (o << 28) | (cmp << 24) | (a << 12) | ca;
    is(ftx(&f, FUTEX_WAKE_OP | P, 1, 1 as *const timespec, &g, op(1, 4, 5, 3)), 0);
    assert_eq!(g.load(SeqCst), 15);
    is(ftx(&f, FUTEX_WAKE_OP | P, 1, 1 as *const timespec, &g, op(0, 0, 77, 0)), 0);
    assert_eq!(g.load(SeqCst), 77);
    is(ftx(&f, FUTEX_WAKE_OP | P, 1, 1 as *const timespec, &g, op(2, 0, 0x700, 0)), 0);
    assert_eq!(g.load(SeqCst), 77 | 0x700);
    is(ftx(&f, FUTEX_WAKE_OP | P, 1, 1 as *const timespec, &g, op(4, 0, 0x701, 0)), 0);
    assert_eq!(g.load(SeqCst), (77 | 0x700) ^ 0x701);
    static G: AtomicU32 = AtomicU32::new(0);
    static UP: AtomicU32 = AtomicU32::new(0);
    let h = sleeper(&G, &UP, P);
    is(ftx(&f, FUTEX_WAKE_OP | P, 1, 1 as *const timespec, &G, op(1, 0, 1, 1)), 0); // the old value is not 1
    is(ftx(&f, FUTEX_WAKE_OP | P, 1, 1 as *const timespec, &G, op(1, 0, 1, 1)), 1);
    h.join().unwrap();
    fails(ftx(&f, FUTEX_WAKE_OP | P, 1, 1 as *const timespec, 0x1000 as *const _, op(1, 0, 1, 1)), EFAULT);
}

unsafe fn shared_between_processes() {
    let f = &*shared(PAGE).cast::<AtomicU32>();
    let pid = spawn(|| {
        ok(ftx(f, FUTEX_WAIT, 0, NO_T, NO_F, 0));
        0
    });
    asleep(pid);
    eventually("woken", || ftx(f, FUTEX_WAKE, 1, NO_T, NO_F, 0) == 1);
    exits(pid, 0);
}

unsafe fn shared_file_mapping() {
    // The same page of a file at two addresses is the same futex.
    let t = Tmp::new();
    let fd = t.open("f");
    ok(ftruncate(fd, PAGE as i64));
    let map = || ok(mmap(std::ptr::null_mut(), PAGE, RW, MAP_SHARED, fd, 0)).cast::<AtomicU32>().add(3);
    let (a, b) = (map(), map());
    assert_ne!(a, b);
    let pid = spawn(|| {
        let own = map();
        ok(ftx(own, FUTEX_WAIT, 0, NO_T, NO_F, 0));
        0
    });
    asleep(pid);
    eventually("woken", || ftx(b, FUTEX_WAKE, 1, NO_T, NO_F, 0) == 1);
    exits(pid, 0);
}

unsafe fn private_is_private() {
    let f = AtomicU32::new(0);
    let p = &raw const f;
    let pid = spawn(|| {
        let r = ftx(p, FUTEX_WAIT | P, 0, &ms(100), NO_F, 0);
        i32::from(!(r == -1 && errno() == ETIMEDOUT))
    });
    asleep(pid);
    is(ftx(p, FUTEX_WAKE | P, 9, NO_T, NO_F, 0), 0); // the child's memory is private
    is(ftx(p, FUTEX_WAKE, 9, NO_T, NO_F, 0), 0);
    exits(pid, 0);
}

unsafe fn interrupted_wait() {
    let f = AtomicU32::new(0);
    on(SIGUSR1, nothing as *const () as usize, 0);
    let k = interrupt_me(SIGUSR1);
    fails(ftx(&f, FUTEX_WAIT | P, 0, NO_T, NO_F, 0), EINTR);
    exits(k, 0);
    // With a timeout it is not restarted, not even with SA_RESTART.
    on(SIGUSR1, nothing as *const () as usize, SA_RESTART);
    let k = interrupt_me(SIGUSR1);
    fails(ftx(&f, FUTEX_WAIT | P, 0, &ms(3000), NO_F, 0), EINTR);
    exits(k, 0);
    // An ignored signal does not interrupt.
    signal(SIGUSR1, SIG_IGN);
    let k = interrupt_me(SIGUSR1);
    fails(ftx(&f, FUTEX_WAIT | P, 0, &ms(50), NO_F, 0), ETIMEDOUT);
    ok(kill(k, SIGKILL));
    reap(k);
}

unsafe fn robust_mutex(m: *mut pthread_mutex_t) {
    let mut a: pthread_mutexattr_t = zeroed();
    zero(pthread_mutexattr_init(&mut a));
    zero(pthread_mutexattr_setrobust(&mut a, PTHREAD_MUTEX_ROBUST));
    zero(pthread_mutexattr_setpshared(&mut a, PTHREAD_PROCESS_SHARED));
    zero(pthread_mutex_init(m, &a));
}

unsafe fn robust_mutex_thread() {
    let m = shared(PAGE).cast::<pthread_mutex_t>();
    robust_mutex(m);
    let p = m as usize;
    thread::spawn(move || unsafe { zero(pthread_mutex_lock(p as *mut pthread_mutex_t)) }).join().unwrap();
    eventually("the owner is dead", || match pthread_mutex_trylock(m) {
        EOWNERDEAD => true,
        r => {
            assert_eq!(r, EBUSY);
            false
        }
    });
    zero(pthread_mutex_consistent(m));
    zero(pthread_mutex_unlock(m));
    zero(pthread_mutex_lock(m));
}

unsafe fn robust_mutex_process() {
    let m = shared(PAGE).cast::<pthread_mutex_t>();
    robust_mutex(m);
    let (r, w) = pipe_pair();
    for how in 0..2 {
        let pid = spawn(|| {
            zero(pthread_mutex_lock(m));
            put(w, b"x");
            if how == 0 {
                return 0;
            }
            loop {
                pause();
            }
        });
        get(r, 1);
        if how == 1 {
            asleep(pid);
            ok(kill(pid, SIGKILL));
        }
        // The owner's death wakes the waiter.
        assert_eq!(pthread_mutex_lock(m), EOWNERDEAD);
        zero(pthread_mutex_consistent(m));
        zero(pthread_mutex_unlock(m));
        reap(pid);
    }
}

/// A thread ends that holds 2000 robust words, while another sets their waiters bits: each word gets
/// `FUTEX_OWNER_DIED`, and a bit set before that is kept.
unsafe fn robust_long_list() {
    #[repr(C)]
    struct Entry {
        next: u64,
        word: AtomicU32,
        pad: u32,
    }
    #[repr(C)]
    struct List {
        head: [u64; 3],
        entries: [Entry; 2000],
    }
    for memory in [shared(0x10000), anon(0x10000, PROT_READ | PROT_WRITE)] {
        let list: &'static mut List = &mut *memory.cast();
        let at = &raw const list.head as u64;
        let (seen, go) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|s| {
            let (list, seen, go) = (&*list, &seen, &go);
            s.spawn(move || unsafe {
                let entries = &raw const list.entries as *mut Entry;
                for i in 0..2000 {
                    let e = &mut *entries.add(i);
                    e.next = if i == 1999 { at } else { entries.add(i + 1) as u64 };
                    e.word.store(gettid() as u32, SeqCst);
                }
                *(at as *mut [u64; 3]) = [entries as u64, 8, 0];
                ok(syscall(SYS_set_robust_list, at, 24));
                go.store(1, SeqCst);
            });
            while go.load(SeqCst) == 0 {
                sched_yield();
            }
            // In reverse order, against the thread that ends.
            for e in list.entries.iter().rev() {
                let v = e.word.load(SeqCst);
                if v & 0x4000_0000 == 0 && e.word.compare_exchange(v, v | 0x8000_0000, SeqCst, SeqCst).is_ok() {
                    seen.fetch_add(1, SeqCst);
                }
            }
        });
        eventually("all are handed on", || {
            list.entries.iter().all(|e| e.word.load(SeqCst) & 0x7fff_ffff == 0x4000_0000)
        });
        let marked = list.entries.iter().filter(|e| e.word.load(SeqCst) & 0x8000_0000 != 0).count();
        assert_eq!(marked as u32, seen.load(SeqCst));
    }
}

unsafe fn pi_mutex() {
    let m = shared(PAGE).cast::<pthread_mutex_t>();
    let mut a: pthread_mutexattr_t = zeroed();
    zero(pthread_mutexattr_init(&mut a));
    zero(pthread_mutexattr_setprotocol(&mut a, PTHREAD_PRIO_INHERIT));
    zero(pthread_mutex_init(m, &a));
    let n = shared(PAGE).cast::<u64>() as usize;
    let p = m as usize;
    let hs: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(move || unsafe {
                for _ in 0..200 {
                    zero(pthread_mutex_lock(p as *mut pthread_mutex_t));
                    let c = n as *mut u64;
                    let v = c.read_volatile();
                    sched_yield();
                    c.write_volatile(v + 1);
                    zero(pthread_mutex_unlock(p as *mut pthread_mutex_t));
                }
            })
        })
        .collect();
    hs.into_iter().for_each(|h| h.join().unwrap());
    assert_eq!(*(n as *const u64), 800);
}

unsafe fn pi_errors() {
    let f = AtomicU32::new(0);
    fails(ftx(&f, FUTEX_UNLOCK_PI | P, 0, NO_T, NO_F, 0), EPERM);
    ok(ftx(&f, FUTEX_LOCK_PI | P, 0, NO_T, NO_F, 0));
    assert_eq!(f.load(SeqCst), gettid() as u32);
    fails(ftx(&f, FUTEX_LOCK_PI | P, 0, NO_T, NO_F, 0), EDEADLK);
    ok(ftx(&f, FUTEX_UNLOCK_PI | P, 0, NO_T, NO_F, 0));
    assert_eq!(f.load(SeqCst), 0);
    let dead = spawn(|| 0);
    exits(dead, 0);
    f.store(dead as u32, SeqCst);
    fails(ftx(&f, FUTEX_LOCK_PI | P, 0, NO_T, NO_F, 0), ESRCH);
}

/// A thread ends that owns many locks, each with two waiters: the first waiter gets the lock and EOWNERDEAD, then the
/// other.
unsafe fn pi_owner_of_many_ends() {
    static LOCKS: [AtomicU32; 60] = [const { AtomicU32::new(0) }; 60];
    static TOLD: AtomicU32 = AtomicU32::new(0);
    let (owns, ends) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    thread::scope(|s| {
        s.spawn(|| unsafe {
            LOCKS.iter().for_each(|l| zero(ftx(l, FUTEX_LOCK_PI | P, 0, NO_T, NO_F, 0) as i32));
            owns.wait();
            ends.wait();
        });
        owns.wait();
        for l in LOCKS.iter().chain(&LOCKS) {
            let (tx, rx) = std::sync::mpsc::channel();
            s.spawn(move || unsafe {
                tx.send(gettid()).unwrap();
                ok(ftx(l, FUTEX_LOCK_PI | P, 0, NO_T, NO_F, 0));
                assert_eq!(l.load(SeqCst) & 0x3fff_ffff, gettid() as u32);
                TOLD.fetch_add(l.load(SeqCst) >> 30 & 1, SeqCst);
                ok(ftx(l, FUTEX_UNLOCK_PI | P, 0, NO_T, NO_F, 0));
            });
            asleep_thread(rx.recv().unwrap());
        }
        ends.wait();
    });
    assert_eq!(TOLD.load(SeqCst), 60);
    assert!(LOCKS.iter().all(|l| l.load(SeqCst) == 0));
}

unsafe fn process_shared_mutex() {
    let base = shared(PAGE);
    let m = base.cast::<pthread_mutex_t>();
    let n = base.add(1024).cast::<u64>();
    let mut a: pthread_mutexattr_t = zeroed();
    zero(pthread_mutexattr_init(&mut a));
    zero(pthread_mutexattr_setpshared(&mut a, PTHREAD_PROCESS_SHARED));
    zero(pthread_mutex_init(m, &a));
    let pids: Vec<_> = (0..4)
        .map(|_| {
            spawn(|| {
                for _ in 0..300 {
                    zero(pthread_mutex_lock(m));
                    let v = n.read_volatile();
                    sched_yield();
                    n.write_volatile(v + 1);
                    zero(pthread_mutex_unlock(m));
                }
                0
            })
        })
        .collect();
    pids.into_iter().for_each(|p| exits(p, 0));
    assert_eq!(*n, 1200);
}

/// No wake-up is lost between the check of the word and the sleep.
unsafe fn wake_before_wait() {
    static F: AtomicU32 = AtomicU32::new(0);
    let h = thread::spawn(|| unsafe {
        for i in 1..=500 {
            F.store(i, SeqCst);
            ftx(&F, FUTEX_WAKE | P, 1, NO_T, NO_F, 0);
            if i % 50 == 0 {
                thread::yield_now();
            }
        }
    });
    loop {
        let v = F.load(SeqCst);
        if v == 500 {
            break;
        }
        let r = ftx(&F, FUTEX_WAIT | P, v, &ms(4000), NO_F, 0);
        assert!(r == 0 || errno() == EAGAIN, "a wake-up was lost: {}", name_of(errno()));
    }
    h.join().unwrap();
}

/// `struct futex_waitv`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Wait {
    val: u64,
    addr: u64,
    flags: u32,
    reserved: u32,
}
const U32: u32 = 2;

fn waits(words: &[&AtomicU32], flags: u32) -> Vec<Wait> {
    let one = |w: &&AtomicU32| Wait { val: 0, addr: *w as *const AtomicU32 as u64, flags, reserved: 0 };
    words.iter().map(one).collect()
}

unsafe fn ftx_v(list: &[Wait], timeout: *const timespec) -> i64 {
    syscall(SYS_futex_waitv, list.as_ptr(), list.len(), 0, timeout, CLOCK_MONOTONIC)
}

unsafe fn soon(n: i64) -> timespec {
    let mut now = zeroed();
    zero(clock_gettime(CLOCK_MONOTONIC, &mut now));
    timespec { tv_sec: now.tv_sec + n, tv_nsec: now.tv_nsec }
}

unsafe fn waitv() {
    // Private words; then words shared with another process.
    static OWN: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];
    let common = std::slice::from_raw_parts(shared(4096).cast::<AtomicU32>(), 3);
    for (words, flag) in [(&OWN[..], P), (common, 0)] {
        let refs: Vec<&AtomicU32> = words.iter().collect();
        let list = waits(&refs, U32 | flag as u32);
        for which in [2usize, 0, 1] {
            let waker = |word: &AtomicU32| loop {
                if ok(ftx(word, FUTEX_WAKE | flag, 1, NO_T, NO_F, 0)) == 1 {
                    return;
                }
                sched_yield();
            };
            if flag == 0 {
                let pid = spawn(|| {
                    waker(&words[which]);
                    0
                });
                is(ftx_v(&list, &soon(20)), which as i64);
                exits(pid, 0);
            } else {
                thread::scope(|s| {
                    s.spawn(|| waker(&words[which]));
                    is(ftx_v(&list, &soon(20)), which as i64);
                });
            }
        }
        fails(ftx_v(&list, &soon(0)), ETIMEDOUT);
        // No waiter is left in the queues.
        refs.iter().for_each(|w| is(ftx(*w, FUTEX_WAKE | flag, 9, NO_T, NO_F, 0), 0));
        let mut wrong = list.clone();
        wrong[1].val = 1;
        fails(ftx_v(&wrong, &soon(20)), EAGAIN);
    }
}

/// Each place in the list counts, even if several name one word; the last one woken is returned.
unsafe fn waitv_equal_words() {
    let words = std::slice::from_raw_parts(shared(PAGE).cast::<AtomicU32>(), 3);
    let list = waits(&[&words[0], &words[1], &words[0], &words[0]], U32);
    for (n, woken, told) in [(1, 1, 0), (2, 2, 2), (9, 3, 3)] {
        let pid = spawn(|| {
            is(ftx_v(&list, NO_T), told);
            0
        });
        asleep(pid);
        is(ftx(&words[0], FUTEX_WAKE, n, NO_T, NO_F, 0), woken);
        exits(pid, 0);
    }
    let pid = spawn(|| {
        is(ftx_v(&list, NO_T), 3);
        0
    });
    asleep(pid);
    // After a requeue they are woken on the other word.
    is(ftx(&words[0], FUTEX_REQUEUE, 0, 9 as *const timespec, &words[2], 0), 3);
    is(ftx(&words[0], FUTEX_WAKE, 9, NO_T, NO_F, 0), 0);
    is(ftx(&words[2], FUTEX_WAKE, 9, NO_T, NO_F, 0), 3);
    exits(pid, 0);
}

unsafe fn waitv_errors() {
    let word = AtomicU32::new(0);
    let good = waits(&[&word], U32 | P as u32);
    let call = |list: *const Wait, n: u64, flags: u32, t: *const timespec, clock: i32| {
        syscall(SYS_futex_waitv, list, n, flags, t, clock)
    };
    fails(call(good.as_ptr(), 1, 1, NO_T, CLOCK_MONOTONIC), EINVAL);
    fails(call(good.as_ptr(), 0, 0, NO_T, CLOCK_MONOTONIC), EINVAL);
    fails(call(good.as_ptr(), 129, 0, NO_T, CLOCK_MONOTONIC), EINVAL);
    fails(call(std::ptr::null(), 1, 0, NO_T, CLOCK_MONOTONIC), EINVAL);
    fails(call(8 as _, 1, 0, NO_T, CLOCK_MONOTONIC), EFAULT);
    fails(call(good.as_ptr(), 1, 0, &soon(1), CLOCK_BOOTTIME), EINVAL);
    fails(call(good.as_ptr(), 1, 0, 8 as _, CLOCK_MONOTONIC), EFAULT);
    let bad = timespec { tv_sec: 0, tv_nsec: -1 };
    fails(call(good.as_ptr(), 1, 0, &bad, CLOCK_MONOTONIC), EINVAL);
    for (flags, reserved, addr, want) in [
        (P as u32, 0, good[0].addr, EINVAL),
        (U32 | 0x100, 0, good[0].addr, EINVAL),
        (U32, 1, good[0].addr, EINVAL),
        (U32 | P as u32, 0, good[0].addr + 1, EINVAL),
        (U32 | P as u32, 0, 0, EFAULT),
        (U32, 0, 0, EFAULT),
    ] {
        fails(ftx_v(&[Wait { val: 0, addr, flags, reserved }], &soon(20)), want);
    }
}

/// A handler without `SA_RESTART` ends the wait; after one with it the wait continues.
unsafe fn waitv_interrupted() {
    static WORD: AtomicU32 = AtomicU32::new(0);
    extern "C" fn nothing(_: i32) {}
    for flag in [P as u32, 0] {
        let list = waits(&[&WORD], U32 | flag);
        on(SIGUSR1, nothing as *const () as usize, 0);
        let pid = interrupt_me(SIGUSR1);
        fails(ftx_v(&list, NO_T), EINTR);
        exits(pid, 0);
        on(SIGUSR1, nothing as *const () as usize, SA_RESTART);
        let pid = interrupt_me(SIGUSR1);
        let mut end = soon(0);
        end.tv_nsec += 300_000_000;
        end = timespec { tv_sec: end.tv_sec + end.tv_nsec / 1_000_000_000, tv_nsec: end.tv_nsec % 1_000_000_000 };
        fails(ftx_v(&list, &end), ETIMEDOUT);
        exits(pid, 0);
    }
}
