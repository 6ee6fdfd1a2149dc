//! Threads: ids, exit, masks, thread-local storage.

use crate::t::*;
use libc::*;
use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Condvar, Mutex, RwLock};
use std::thread;

pub const CASES: &[crate::Case] = cases![
    ids,
    many_threads,
    thousands_of_threads,
    threads_one_after_the_other,
    thread_local_storage,
    own_signal_mask,
    directed_signal,
    leader_leaves_first,
    exit_group_ends_all,
    thread_exit_keeps_process,
    mutex_contention,
    condition_variables,
    barriers,
    rwlocks,
    channels,
    parallel_syscalls,
    parallel_mappings,
    shared_descriptors,
    fork_while_threads_run,
    blocked_thread_does_not_block_others,
    task_directory,
    tid_address,
    robust_list_calls,
    exit_clears_the_tid_word,
    the_first_threads_end_too,
    stacks_unmapped_at_once,
    yield_call,
    thread_names,
    join_after_signal_storm,
    one_thread_faults,
    spin_until_other_runs,
];

unsafe fn ids() {
    let pid = getpid();
    assert_eq!(gettid(), pid);
    thread::spawn(move || unsafe {
        assert_eq!(getpid(), pid);
        assert_ne!(gettid(), pid);
    })
    .join()
    .unwrap();
}

unsafe fn many_threads() {
    let n = 100;
    let b = Arc::new(Barrier::new(n + 1));
    let hs: Vec<_> = (0..n)
        .map(|i| {
            let b = b.clone();
            thread::Builder::new().stack_size(64 * 1024).spawn(move || {
                b.wait();
                i
            })
        })
        .collect();
    b.wait(); // all alive at once
    for (i, h) in hs.into_iter().enumerate() {
        assert_eq!(h.unwrap().join().unwrap(), i);
    }
}

/// Enough threads to need several segments of a hand-off area; the last one forks.
unsafe fn thousands_of_threads() {
    const N: usize = 4000;
    let mut limit: rlimit = zeroed();
    zero(getrlimit(RLIMIT_NPROC, &mut limit));
    if limit.rlim_cur < 3 * N as u64 {
        return eprintln!("left out: needs {N} threads");
    }
    static THERE: AtomicUsize = AtomicUsize::new(0);
    static GO: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
    extern "C" fn wait(_: *mut c_void) -> *mut c_void {
        THERE.fetch_add(1, SeqCst);
        let mut go = GO.0.lock().unwrap();
        while !*go {
            go = GO.1.wait(go).unwrap();
        }
        drop(go);
        unsafe { syscall(SYS_gettid) as *mut c_void }
    }
    // With preallocated stacks, each thread costs few calls.
    const STACK: usize = 32 * 1024;
    let stacks = anon(N * STACK, RW);
    let threads: Vec<pthread_t> = (0..N)
        .map(|i| {
            let (mut attr, mut thread): (pthread_attr_t, pthread_t) = (zeroed(), 0);
            zero(pthread_attr_init(&mut attr));
            zero(pthread_attr_setstack(&mut attr, stacks.add(i * STACK).cast(), STACK));
            zero(pthread_create(&mut thread, &attr, wait, null_mut()));
            thread
        })
        .collect();
    while THERE.load(SeqCst) < N {
        usleep(1000);
    }
    thread::spawn(|| in_child(|| assert_eq!(getpid() as i64, ok(syscall(SYS_gettid))))).join().unwrap();
    *GO.0.lock().unwrap() = true;
    GO.1.notify_all();
    let ended = |t: pthread_t| {
        let mut id = null_mut();
        zero(pthread_join(t, &mut id));
        id as usize
    };
    let mut ids: Vec<usize> = threads.into_iter().map(ended).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), N);
}

unsafe fn threads_one_after_the_other() {
    for i in 0..300 {
        assert_eq!(thread::spawn(move || i * 2).join().unwrap(), i * 2);
    }
    eventually("only this thread is left", || std::fs::read_dir("/proc/self/task").unwrap().count() == 1);
}

thread_local!(static OWN: Cell<usize> = const { Cell::new(5) });

unsafe fn thread_local_storage() {
    OWN.set(1);
    let hs: Vec<_> = (0..8)
        .map(|i| {
            thread::spawn(move || {
                assert_eq!(OWN.get(), 5);
                for k in 0..200 {
                    OWN.set(i * 1000 + k);
                    thread::yield_now();
                    assert_eq!(OWN.get(), i * 1000 + k);
                }
                unsafe { *__errno_location() = i as i32 };
                thread::yield_now();
                assert_eq!(errno(), i as i32);
            })
        })
        .collect();
    hs.into_iter().for_each(|h| h.join().unwrap());
    assert_eq!(OWN.get(), 1);
}

unsafe fn own_signal_mask() {
    block(&[SIGUSR1]);
    thread::spawn(|| unsafe {
        let mut m = zeroed();
        zero(pthread_sigmask(SIG_BLOCK, std::ptr::null(), &mut m));
        assert_eq!(sigismember(&m, SIGUSR1), 1); // inherited
        zero(pthread_sigmask(SIG_SETMASK, &set_of(&[SIGUSR2]), std::ptr::null_mut()));
    })
    .join()
    .unwrap();
    let mut m = zeroed();
    zero(pthread_sigmask(SIG_BLOCK, std::ptr::null(), &mut m));
    assert_eq!((sigismember(&m, SIGUSR1), sigismember(&m, SIGUSR2)), (1, 0));
}

static TID: AtomicU32 = AtomicU32::new(0);

extern "C" fn who(_: i32) {
    TID.store(unsafe { gettid() } as u32, SeqCst);
}

unsafe fn directed_signal() {
    on(SIGUSR1, who as *const () as usize, 0);
    let (tx, rx) = std::sync::mpsc::channel();
    let h = thread::spawn(move || {
        tx.send(unsafe { gettid() }).unwrap();
        let me = unsafe { gettid() } as u32;
        eventually("handler in this thread", || TID.load(SeqCst) == me);
    });
    let tid = rx.recv().unwrap();
    ok(syscall(SYS_tgkill, getpid(), tid, SIGUSR1));
    h.join().unwrap();
    eventually("the thread is gone", || syscall(SYS_tgkill, getpid(), tid, 0) == -1);
    assert_eq!(errno(), ESRCH);
}

unsafe fn leader_leaves_first() {
    let pid = spawn(|| {
        thread::spawn(|| unsafe {
            eventually("the leader is a zombie", || state_of(getpid()) == 'Z');
            // The process still exists.
            ok(kill(getpid(), 0));
            let t = Tmp::new();
            put(t.open("f"), b"x");
            drop(t);
            _exit(14);
        });
        syscall(SYS_exit, 3);
        unreachable!()
    });
    let mut st = 0;
    is(waitpid(pid, &mut st, WNOHANG), 0);
    exits(pid, 14);
    // Whether the leader's or the last thread's status counts differs between versions of Linux.
    let pid = spawn(|| {
        thread::spawn(|| unsafe {
            eventually("the leader is a zombie", || state_of(getpid()) == 'Z');
            syscall(SYS_exit, 9);
        });
        syscall(SYS_exit, 3);
        unreachable!()
    });
    let st = reap(pid);
    assert!(WIFEXITED(st) && [3, 9].contains(&WEXITSTATUS(st)), "{st:#x}");
}

unsafe fn exit_group_ends_all() {
    let pid = spawn(|| {
        for i in 0..10 {
            thread::spawn(move || loop {
                if i % 2 == 0 {
                    thread::park();
                }
            });
        }
        thread::spawn(|| unsafe { _exit(23) });
        loop {
            pause();
        }
    });
    exits(pid, 23);
}

unsafe fn thread_exit_keeps_process() {
    let h = thread::spawn(|| 4);
    assert_eq!(h.join().unwrap(), 4);
    let stack = anon(65536, RW);
    extern "C" fn f(_: *mut c_void) -> i32 {
        0
    }
    let fl = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    let tid = ok(clone(f, stack.add(65536).cast(), fl, std::ptr::null_mut()));
    eventually("raw thread ends", || syscall(SYS_tgkill, getpid(), tid, 0) == -1);
    fails(waitpid(tid, std::ptr::null_mut(), __WALL), ECHILD);
}

unsafe fn mutex_contention() {
    let m = Arc::new(Mutex::new(0u64));
    let hs: Vec<_> = (0..8)
        .map(|_| {
            let m = m.clone();
            thread::spawn(move || {
                for _ in 0..5000 {
                    let mut g = m.lock().unwrap();
                    let v = *g;
                    std::hint::black_box(v);
                    *g = v + 1;
                }
            })
        })
        .collect();
    hs.into_iter().for_each(|h| h.join().unwrap());
    assert_eq!(*m.lock().unwrap(), 40_000);
}

unsafe fn condition_variables() {
    // Two threads pass a token to and fro.
    let s = Arc::new((Mutex::new(0u32), Condvar::new()));
    let t = s.clone();
    let h = thread::spawn(move || {
        let (m, c) = &*t;
        for _ in 0..500 {
            let mut g = m.lock().unwrap();
            while *g % 2 == 0 {
                g = c.wait(g).unwrap();
            }
            *g += 1;
            c.notify_one();
        }
    });
    let (m, c) = &*s;
    for _ in 0..500 {
        let mut g = m.lock().unwrap();
        while *g % 2 == 1 {
            g = c.wait(g).unwrap();
        }
        *g += 1;
        c.notify_one();
    }
    h.join().unwrap();
    assert_eq!(*m.lock().unwrap(), 1000);
}

unsafe fn barriers() {
    let b = Arc::new(Barrier::new(6));
    let n = Arc::new(AtomicUsize::new(0));
    let hs: Vec<_> = (0..6)
        .map(|_| {
            let (b, n) = (b.clone(), n.clone());
            thread::spawn(move || {
                for round in 1..=30 {
                    n.fetch_add(1, SeqCst);
                    b.wait();
                    assert_eq!(n.load(SeqCst), round * 6);
                    b.wait();
                }
            })
        })
        .collect();
    hs.into_iter().for_each(|h| h.join().unwrap());
}

unsafe fn rwlocks() {
    let l = Arc::new(RwLock::new((0u64, 0u64)));
    let hs: Vec<_> = (0..6)
        .map(|i| {
            let l = l.clone();
            thread::spawn(move || {
                for _ in 0..500 {
                    if i < 2 {
                        let mut g = l.write().unwrap();
                        g.0 += 1;
                        thread::yield_now();
                        g.1 += 1;
                    } else {
                        let g = l.read().unwrap();
                        assert_eq!(g.0, g.1);
                    }
                }
            })
        })
        .collect();
    hs.into_iter().for_each(|h| h.join().unwrap());
    assert_eq!(l.read().unwrap().0, 1000);
}

unsafe fn channels() {
    let (tx, rx) = std::sync::mpsc::sync_channel(4);
    for i in 0..4u64 {
        let tx = tx.clone();
        thread::spawn(move || (0..500).for_each(|k| tx.send(i * 1000 + k).unwrap()));
    }
    drop(tx);
    assert_eq!(rx.iter().sum::<u64>(), (0..4).map(|i| 500 * i * 1000 + 499 * 250).sum());
}

unsafe fn parallel_syscalls() {
    let t = Tmp::new();
    let dir = t.s("");
    let hs: Vec<_> = (0..6)
        .map(|i| {
            let dir = dir.clone();
            thread::spawn(move || unsafe {
                for k in 0..60u8 {
                    let p = c(&format!("{dir}t{i}-{k}"));
                    let fd = ok(open(p.as_ptr(), O_CREAT | O_RDWR | O_EXCL, 0o600));
                    put(fd, &[k; 100]);
                    let mut b = [0u8; 100];
                    is(pread(fd, b.as_mut_ptr().cast(), 100, 0), 100);
                    assert_eq!(b, [k; 100]);
                    assert_eq!(stat_of(&p).st_size, 100);
                    ok(close(fd));
                    ok(unlink(p.as_ptr()));
                }
            })
        })
        .collect();
    hs.into_iter().for_each(|h| h.join().unwrap());
    assert_eq!(std::fs::read_dir(&t.0).unwrap().count(), 0);
}

unsafe fn parallel_mappings() {
    let hs: Vec<_> = (0..6usize)
        .map(|i| {
            thread::spawn(move || unsafe {
                for k in 0..100usize {
                    let n = (k % 7 + 1) * PAGE;
                    let p = anon(n, RW);
                    assert_eq!(*p.add(n - 1), 0);
                    p.write_bytes(i as u8 + 1, n);
                    ok(mprotect(p.cast(), PAGE, PROT_READ));
                    assert_eq!((*p, *p.add(n - 1)), (i as u8 + 1, i as u8 + 1));
                    ok(munmap(p.cast(), n));
                }
            })
        })
        .collect();
    hs.into_iter().for_each(|h| h.join().unwrap());
}

unsafe fn shared_descriptors() {
    let fd = thread::spawn(|| unsafe {
        let (r, w) = pipe_pair();
        put(w, b"from thread");
        r
    })
    .join()
    .unwrap();
    assert_eq!(get(fd, 20), b"from thread");
}

unsafe fn fork_while_threads_run() {
    let stop = Arc::new(AtomicBool::new(false));
    let hs: Vec<_> = (0..3)
        .map(|_| {
            let stop = stop.clone();
            thread::spawn(move || unsafe {
                while !stop.load(SeqCst) {
                    let p = anon(PAGE, RW);
                    *p = 1;
                    ok(munmap(p.cast(), PAGE));
                    getppid();
                }
            })
        })
        .collect();
    for i in 0..30 {
        let pid = spawn(|| i);
        exits(pid, i);
    }
    stop.store(true, SeqCst);
    hs.into_iter().for_each(|h| h.join().unwrap());
}

unsafe fn blocked_thread_does_not_block_others() {
    let (r, w) = pipe_pair();
    let h = thread::spawn(move || unsafe { get(r, 5) });
    for _ in 0..100 {
        getppid();
        thread::yield_now();
    }
    put(w, b"now");
    assert_eq!(h.join().unwrap(), b"now");
}

unsafe fn task_directory() {
    let b = Arc::new(Barrier::new(2));
    let c2 = b.clone();
    let h = thread::spawn(move || {
        c2.wait();
        c2.wait();
    });
    b.wait();
    let mut v: Vec<i32> = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    v.sort();
    assert_eq!(v.len(), 2);
    assert!(v.contains(&getpid()));
    let st = std::fs::read_to_string("/proc/self/status").unwrap();
    assert!(st.contains("\nThreads:\t2\n"));
    b.wait();
    h.join().unwrap();
}

unsafe fn tid_address() {
    let mut word = 99u32;
    let p = &raw mut word as usize;
    let h = thread::spawn(move || unsafe {
        is(syscall(SYS_set_tid_address, p), gettid().into());
        syscall(SYS_exit, 0);
    });
    // The kernel clears the word and wakes it; libc's bookkeeping is bypassed, so the thread is not joined.
    eventually("the word is cleared", || (p as *const u32).read_volatile() == 0);
    std::mem::forget(h);
}

/// Creates a thread with clone(2), with the tid word `word`; it runs `f` on a new stack.
unsafe fn bare_thread(
    f: extern "C" fn(*mut c_void) -> i32,
    arg: *mut c_void,
    stack: *mut u8,
    len: usize,
    word: *mut i32,
) {
    let flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_CHILD_CLEARTID;
    let none = std::ptr::null_mut::<c_void>();
    // syscall(3) reads arguments above its frame.
    ok(clone(f, stack.add(len - 64).cast(), flags, arg, none, none, word));
}

extern "C" fn leave(_: *mut c_void) -> i32 {
    // SAFETY: ends only this thread.
    unsafe { syscall(SYS_exit, 0) as i32 }
}

/// Waits like pthread_join(3): without FUTEX_PRIVATE_FLAG.
unsafe fn wait_zero(word: *mut i32) {
    loop {
        let v = word.read_volatile();
        if v == 0 {
            return;
        }
        let r = syscall(SYS_futex, word, FUTEX_WAIT, v, std::ptr::null::<timespec>());
        assert!(r == 0 || matches!(errno(), EAGAIN | EINTR), "{}", errno());
    }
}

unsafe fn exit_clears_the_tid_word() {
    let len = 64 * 1024;
    // In private memory, and in memory that could be shared.
    for place in [anon(PAGE, RW), shared(PAGE)] {
        let word = place.cast::<i32>();
        for _ in 0..50 {
            *word = -1;
            let stack = anon(len, RW);
            bare_thread(leave, std::ptr::null_mut(), stack, len, word);
            wait_zero(word);
            zero(munmap(stack.cast(), len));
        }
    }
}

unsafe fn the_first_threads_end_too() {
    let pid = spawn(|| {
        let word = anon(PAGE, RW).cast::<i32>();
        *word = -1;
        ok(syscall(SYS_set_tid_address, word));
        let p = word as usize;
        thread::spawn(move || unsafe {
            wait_zero(p as *mut i32);
            syscall(SYS_exit_group, 17);
        });
        syscall(SYS_exit, 3);
        1
    });
    exits(pid, 17);
}

unsafe fn stacks_unmapped_at_once() {
    // Many at once, each stack unmapped as soon as the thread has ended.
    let hs: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(|| unsafe {
                let word = anon(PAGE, RW).cast::<i32>();
                for _ in 0..100 {
                    *word = -1;
                    let stack = anon(16 * 1024, RW);
                    bare_thread(leave, std::ptr::null_mut(), stack, 16 * 1024, word);
                    wait_zero(word);
                    zero(munmap(stack.cast(), 16 * 1024));
                }
            })
        })
        .collect();
    for h in hs {
        h.join().unwrap();
    }
}

unsafe fn robust_list_calls() {
    let (mut head, mut len) = (0usize, 0usize);
    ok(syscall(SYS_get_robust_list, 0, &raw mut head, &raw mut len));
    assert_eq!(len, 24);
    assert_ne!(head, 0); // libc has registered one
    fails(syscall(SYS_set_robust_list, head, 23), EINVAL);
    ok(syscall(SYS_set_robust_list, head, 24));
    fails(syscall(SYS_get_robust_list, 0x3fff_ffff, &raw mut head, &raw mut len), ESRCH);
    fails(syscall(SYS_get_robust_list, 0, BAD, &raw mut len), EFAULT);
}

unsafe fn yield_call() {
    for _ in 0..1000 {
        is(sched_yield(), 0);
    }
}

unsafe fn thread_names() {
    let name = |tid: i32| std::fs::read_to_string(format!("/proc/self/task/{tid}/comm")).unwrap();
    let main = name(gettid());
    thread::Builder::new()
        .name("worker-one".into())
        .spawn(move || unsafe {
            assert_eq!(name(gettid()), "worker-one\n");
            assert_eq!(name(getpid()), main);
        })
        .unwrap()
        .join()
        .unwrap();
}

unsafe fn join_after_signal_storm() {
    on(SIGUSR1, nothing as *const () as usize, SA_RESTART);
    let stop = Arc::new(AtomicBool::new(false));
    let (tx, rx) = std::sync::mpsc::channel();
    let hs: Vec<_> = (0..4)
        .map(|_| {
            let (stop, tx) = (stop.clone(), tx.clone());
            thread::spawn(move || {
                tx.send(unsafe { gettid() }).unwrap();
                let m = Mutex::new(0u32);
                while !stop.load(SeqCst) {
                    *m.lock().unwrap() += 1;
                    thread::sleep(std::time::Duration::from_micros(50));
                }
            })
        })
        .collect();
    let tids: Vec<i32> = (0..4).map(|_| rx.recv().unwrap()).collect();
    for _ in 0..100 {
        tids.iter().for_each(|&t| drop(ok(syscall(SYS_tgkill, getpid(), t, SIGUSR1))));
        thread::yield_now();
    }
    stop.store(true, SeqCst);
    hs.into_iter().for_each(|h| h.join().unwrap());
}

unsafe fn one_thread_faults() {
    let pid = spawn(|| {
        ok(setrlimit(RLIMIT_CORE, &rlimit { rlim_cur: 0, rlim_max: 0 }));
        thread::spawn(|| unsafe { BAD.cast::<u8>().write_volatile(1) });
        loop {
            pause();
        }
    });
    dies(pid, SIGSEGV);
}

unsafe fn spin_until_other_runs() {
    // One thread spins without a system call; the other must still get to run.
    let go = Arc::new(AtomicBool::new(false));
    let g = go.clone();
    let h = thread::spawn(move || {
        for _ in 0..50 {
            unsafe { getppid() };
        }
        g.store(true, SeqCst);
    });
    while !go.load(SeqCst) {
        std::hint::spin_loop();
    }
    h.join().unwrap();
}
