//! Sending, blocking, waiting for signals.

use crate::t::*;
use libc::*;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};

pub const CASES: &[crate::Case] = cases![
    handler_runs,
    siginfo_of_kill,
    sigqueue_value,
    tgkill_info,
    default_actions,
    ignored,
    blocked_and_pending,
    standard_signals_merge,
    realtime_signals_queue,
    delivery_order,
    mask_in_handler,
    nodefer,
    resethand,
    sigaction_errors,
    cannot_block_kill,
    sigsuspend_call,
    sigtimedwait_call,
    sigwait_errors,
    pause_call,
    read_interrupted,
    read_restarted,
    write_interrupted,
    kill_targets,
    kill_errors,
    kill_permission,
    stop_and_continue,
    cont_discards_stop,
    sigkill_ends_all_threads,
    fatal_in_blocked_wait,
    raise_in_handler,
    queue_limit,
    sigprocmask_errors,
    rt_sigqueueinfo_rules,
    ignore_discards_pending,
    signal_to_init_of_group,
    restart_after_stop,
    many_signals,
    queue_of_a_user,
];

static HITS: AtomicU32 = AtomicU32::new(0);
static LAST: AtomicI32 = AtomicI32::new(0);

extern "C" fn count(s: i32) {
    HITS.fetch_add(1, SeqCst);
    LAST.store(s, SeqCst);
}

fn counter() -> usize {
    count as *const () as usize
}

unsafe fn me(sig: i32) {
    ok(kill(getpid(), sig));
}

unsafe fn handler_runs() {
    for s in [SIGUSR1, SIGTERM, SIGHUP, SIGCHLD, SIGURG, SIGWINCH, 34, 50, 64] {
        on(s, counter(), 0);
        let before = HITS.load(SeqCst);
        me(s);
        assert_eq!((HITS.load(SeqCst), LAST.load(SeqCst)), (before + 1, s));
    }
}

static INFO: AtomicI32 = AtomicI32::new(0);
static PID: AtomicI32 = AtomicI32::new(0);
static UID: AtomicI32 = AtomicI32::new(0);
static VAL: AtomicI32 = AtomicI32::new(0);

extern "C" fn info(s: i32, i: *mut siginfo_t, _: *mut c_void) {
    unsafe {
        assert_eq!((*i).si_signo, s);
        INFO.store((*i).si_code, SeqCst);
        PID.store((*i).si_pid(), SeqCst);
        UID.store((*i).si_uid() as i32, SeqCst);
        VAL.store((*i).si_value().sival_ptr as i32, SeqCst);
    }
    HITS.fetch_add(1, SeqCst);
}

unsafe fn siginfo_of_kill() {
    on(SIGUSR1, info as *const () as usize, SA_SIGINFO);
    me(SIGUSR1);
    assert_eq!((INFO.load(SeqCst), PID.load(SeqCst), UID.load(SeqCst)), (SI_USER, getpid(), getuid() as i32));
    let parent = getpid();
    let pid = spawn(|| {
        ok(kill(parent, SIGUSR1));
        0
    });
    eventually("signal of the child", || HITS.load(SeqCst) == 2);
    assert_eq!(PID.load(SeqCst), pid);
    exits(pid, 0);
}

unsafe fn sigqueue_value() {
    on(SIGUSR1, info as *const () as usize, SA_SIGINFO);
    ok(sigqueue(getpid(), SIGUSR1, sigval { sival_ptr: 4711 as *mut c_void }));
    assert_eq!((INFO.load(SeqCst), PID.load(SeqCst), VAL.load(SeqCst)), (SI_QUEUE, getpid(), 4711));
}

unsafe fn tgkill_info() {
    on(SIGUSR1, info as *const () as usize, SA_SIGINFO);
    ok(syscall(SYS_tgkill, getpid(), gettid(), SIGUSR1));
    assert_eq!((INFO.load(SeqCst), PID.load(SeqCst)), (SI_TKILL, getpid()));
    ok(syscall(SYS_tkill, gettid(), SIGUSR1));
    ok(raise(SIGUSR1));
    assert_eq!(HITS.load(SeqCst), 3);
    fails(syscall(SYS_tgkill, getpid(), -1, SIGUSR1), EINVAL);
    fails(syscall(SYS_tgkill, 0, gettid(), SIGUSR1), EINVAL);
    let me = getpid();
    in_child(|| fails(syscall(SYS_tgkill, me, gettid(), SIGUSR1), ESRCH)); // a thread of another process
    fails(syscall(SYS_tgkill, getpid(), gettid(), 65), EINVAL);
    fails(syscall(SYS_tkill, 0, SIGUSR1), EINVAL);
    ok(syscall(SYS_tgkill, getpid(), gettid(), 0));
}

unsafe fn default_actions() {
    for s in 1..=64 {
        // libc uses 32 and 33.
        if [SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, 32, 33].contains(&s) {
            continue;
        }
        let quiet = [SIGCHLD, SIGURG, SIGWINCH, SIGCONT].contains(&s);
        let pid = spawn(|| {
            ok(setrlimit(RLIMIT_CORE, &rlimit { rlim_cur: 0, rlim_max: 0 }));
            me(s);
            77
        });
        if quiet {
            exits(pid, 77);
        } else {
            dies(pid, s);
        }
    }
}

unsafe fn ignored() {
    for s in [SIGUSR1, SIGTERM, SIGPIPE, SIGSEGV, SIGTSTP, 40] {
        signal(s, SIG_IGN);
        me(s);
    }
    // A fault is delivered although the signal is ignored.
    let pid = spawn(|| {
        signal(SIGSEGV, SIG_IGN);
        BAD.cast::<u8>().write_volatile(1);
        0
    });
    dies(pid, SIGSEGV);
    let pid = spawn(|| {
        block(&[SIGSEGV]);
        on(SIGSEGV, counter(), 0);
        BAD.cast::<u8>().write_volatile(1);
        0
    });
    dies(pid, SIGSEGV);
}

unsafe fn pending() -> Vec<i32> {
    let mut s = zeroed();
    ok(sigpending(&mut s));
    (1..=64).filter(|&g| sigismember(&s, g) == 1).collect()
}

unsafe fn blocked_and_pending() {
    on(SIGUSR1, counter(), 0);
    block(&[SIGUSR1]);
    me(SIGUSR1);
    assert_eq!((HITS.load(SeqCst), pending()), (0, vec![SIGUSR1]));
    ok(sigprocmask(SIG_UNBLOCK, &set_of(&[SIGUSR1]), null_mut()));
    assert_eq!((HITS.load(SeqCst), pending()), (1, vec![]));
    let mut old = zeroed();
    ok(sigprocmask(SIG_SETMASK, &set_of(&[SIGINT, SIGUSR2]), &mut old));
    assert_eq!(sigismember(&old, SIGUSR1), 0);
    ok(sigprocmask(SIG_BLOCK, &set_of(&[SIGHUP]), &mut old));
    assert_eq!((sigismember(&old, SIGINT), sigismember(&old, SIGHUP)), (1, 0));
}

unsafe fn standard_signals_merge() {
    on(SIGUSR1, counter(), 0);
    block(&[SIGUSR1]);
    (0..10).for_each(|_| me(SIGUSR1));
    ok(sigprocmask(SIG_UNBLOCK, &set_of(&[SIGUSR1]), null_mut()));
    assert_eq!(HITS.load(SeqCst), 1);
}

static ORDER: [AtomicI32; 64] = [const { AtomicI32::new(0) }; 64];

extern "C" fn order(s: i32, i: *mut siginfo_t, _: *mut c_void) {
    let n = HITS.fetch_add(1, SeqCst) as usize;
    let v = unsafe { (*i).si_value().sival_ptr as i32 };
    ORDER[n].store(s * 1000 + v, SeqCst);
}

unsafe fn realtime_signals_queue() {
    on(40, order as *const () as usize, SA_SIGINFO);
    block(&[40]);
    for v in 1..=10 {
        ok(sigqueue(getpid(), 40, sigval { sival_ptr: v as *mut c_void }));
    }
    ok(sigprocmask(SIG_UNBLOCK, &set_of(&[40]), null_mut()));
    assert_eq!(HITS.load(SeqCst), 10);
    for v in 1..=10 {
        assert_eq!(ORDER[v - 1].load(SeqCst), 40_000 + v as i32);
    }
}

/// Dequeued one by one, the lowest numbers come first.
unsafe fn delivery_order() {
    let all = [50, 34, SIGUSR2, SIGUSR1, SIGTERM];
    block(&all);
    all.iter().for_each(|&s| me(s));
    let mut got = Vec::new();
    let zero = timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        let s = sigtimedwait(&set_of(&all), null_mut(), &zero);
        if s == -1 {
            break;
        }
        got.push(s);
    }
    assert_eq!(got, [SIGUSR1, SIGUSR2, SIGTERM, 34, 50]);
}

unsafe fn mask_in_handler() {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    extern "C" fn h(_: i32) {
        unsafe {
            let mut m = zeroed();
            ok(sigprocmask(SIG_BLOCK, null(), &mut m));
            let bits = [SIGUSR1, SIGUSR2, SIGTERM, SIGINT].map(|s| sigismember(&m, s) as u32);
            SEEN.store(bits.iter().fold(0, |a, b| a * 2 + b), SeqCst);
        }
    }
    let mut a: sigaction = zeroed();
    a.sa_sigaction = h as *const () as usize;
    a.sa_mask = set_of(&[SIGTERM]);
    ok(sigaction(SIGUSR1, &a, null_mut()));
    block(&[SIGUSR2]);
    me(SIGUSR1);
    assert_eq!(SEEN.load(SeqCst), 0b1110);
    let mut m = zeroed();
    ok(sigprocmask(SIG_BLOCK, null(), &mut m));
    assert_eq!((sigismember(&m, SIGUSR1), sigismember(&m, SIGUSR2), sigismember(&m, SIGTERM)), (0, 1, 0));
}

unsafe fn nodefer() {
    static DEPTH: AtomicU32 = AtomicU32::new(0);
    extern "C" fn h(_: i32) {
        if DEPTH.fetch_add(1, SeqCst) < 3 {
            unsafe { me(SIGUSR1) }
        }
    }
    on(SIGUSR1, h as *const () as usize, SA_NODEFER);
    me(SIGUSR1);
    assert_eq!(DEPTH.load(SeqCst), 4);
}

unsafe fn resethand() {
    on(SIGUSR1, counter(), SA_RESETHAND);
    me(SIGUSR1);
    assert_eq!(HITS.load(SeqCst), 1);
    let mut a: sigaction = zeroed();
    ok(sigaction(SIGUSR1, null(), &mut a));
    assert_eq!(a.sa_sigaction, SIG_DFL);
    let pid = spawn(|| {
        me(SIGUSR1);
        0
    });
    dies(pid, SIGUSR1);
}

unsafe fn sigaction_errors() {
    let a: sigaction = zeroed();
    for s in [SIGKILL, SIGSTOP] {
        fails(sigaction(s, &a, null_mut()), EINVAL);
        let mut old: sigaction = zeroed();
        ok(sigaction(s, null(), &mut old));
    }
    let k = [0u64; 4];
    fails(syscall(SYS_rt_sigaction, 0, k.as_ptr(), 0, 8), EINVAL);
    fails(syscall(SYS_rt_sigaction, 65, k.as_ptr(), 0, 8), EINVAL);
    fails(syscall(SYS_rt_sigaction, SIGUSR1, k.as_ptr(), 0, 4), EINVAL);
    fails(syscall(SYS_rt_sigaction, SIGUSR1, BAD, 0, 8), EFAULT);
    fails(syscall(SYS_rt_sigaction, SIGUSR1, 0, BAD, 8), EFAULT);
}

unsafe fn cannot_block_kill() {
    let mut all = zeroed();
    sigfillset(&mut all);
    ok(sigprocmask(SIG_SETMASK, &all, null_mut()));
    let mut m = zeroed();
    ok(sigprocmask(SIG_BLOCK, null(), &mut m));
    assert_eq!((sigismember(&m, SIGKILL), sigismember(&m, SIGSTOP), sigismember(&m, SIGTERM)), (0, 0, 1));
    let pid = spawn(|| loop {
        pause();
    });
    ok(kill(pid, SIGTERM));
    ok(kill(pid, SIGKILL));
    dies(pid, SIGKILL);
}

unsafe fn sigsuspend_call() {
    on(SIGUSR1, counter(), 0);
    block(&[SIGUSR1]);
    me(SIGUSR1);
    fails(sigsuspend(&set_of(&[])), EINTR); // pending already
    assert_eq!(HITS.load(SeqCst), 1);
    let mut m = zeroed();
    ok(sigprocmask(SIG_BLOCK, null(), &mut m));
    assert_eq!(sigismember(&m, SIGUSR1), 1);
    let k = interrupt_me(SIGUSR1);
    fails(sigsuspend(&set_of(&[])), EINTR);
    exits(k, 0);
    assert_eq!(HITS.load(SeqCst), 2);
    // A signal that stays blocked does not end the wait.
    on(SIGUSR2, counter(), 0);
    block(&[SIGUSR2]);
    me(SIGUSR2);
    let k = interrupt_me(SIGUSR1);
    fails(sigsuspend(&set_of(&[SIGUSR2])), EINTR);
    exits(k, 0);
    assert_eq!((HITS.load(SeqCst), LAST.load(SeqCst)), (3, SIGUSR1));
}

unsafe fn sigtimedwait_call() {
    block(&[SIGUSR1, SIGUSR2]);
    let set = set_of(&[SIGUSR1]);
    let t = |ms: i64| timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 };
    let mut i: siginfo_t = zeroed();
    fails(sigtimedwait(&set, &mut i, &t(0)), EAGAIN);
    fails(sigtimedwait(&set, &mut i, &t(5)), EAGAIN);
    me(SIGUSR2);
    fails(sigtimedwait(&set, &mut i, &t(5)), EAGAIN);
    me(SIGUSR1);
    is(sigtimedwait(&set, &mut i, &t(0)), SIGUSR1.into());
    assert_eq!((i.si_signo, i.si_code, i.si_pid()), (SIGUSR1, SI_USER, getpid()));
    let k = interrupt_me(SIGUSR1);
    is(sigwaitinfo(&set, null_mut()), SIGUSR1.into());
    exits(k, 0);
    on(SIGTERM, counter(), 0);
    let k = interrupt_me(SIGTERM);
    fails(sigwaitinfo(&set, null_mut()), EINTR);
    exits(k, 0);
}

unsafe fn sigwait_errors() {
    let set = set_of(&[SIGUSR1]);
    let bad = timespec { tv_sec: 0, tv_nsec: 2_000_000_000 };
    fails(sigtimedwait(&set, null_mut(), &bad), EINVAL);
    fails(syscall(SYS_rt_sigtimedwait, BAD, 0, 0, 8), EFAULT);
    fails(syscall(SYS_rt_sigtimedwait, &set, 0, 0, 4), EINVAL);
}

unsafe fn pause_call() {
    on(SIGUSR1, counter(), SA_RESTART);
    signal(SIGUSR2, SIG_IGN);
    let parent = getpid();
    let pid = spawn(|| {
        asleep(parent);
        ok(kill(parent, SIGUSR2)); // ignored: pause continues
        ok(kill(parent, SIGWINCH)); // ignored by default: the same
        ok(kill(parent, SIGUSR1));
        0
    });
    fails(pause(), EINTR);
    assert_eq!(HITS.load(SeqCst), 1);
    exits(pid, 0);
}

unsafe fn read_interrupted() {
    let (r, _w) = pipe_pair();
    on(SIGUSR1, counter(), 0);
    let k = interrupt_me(SIGUSR1);
    let mut b = 0u8;
    fails(read(r, (&raw mut b).cast(), 1), EINTR);
    assert_eq!(HITS.load(SeqCst), 1);
    exits(k, 0);
}

unsafe fn read_restarted() {
    let (r, w) = pipe_pair();
    on(SIGUSR1, counter(), SA_RESTART);
    let parent = getpid();
    let pid = spawn(|| {
        for _ in 0..3 {
            asleep(parent);
            ok(kill(parent, SIGUSR1));
        }
        asleep(parent);
        put(w, b"done");
        0
    });
    assert_eq!(get(r, 9), b"done");
    assert!(HITS.load(SeqCst) >= 1);
    exits(pid, 0);
}

unsafe fn write_interrupted() {
    let (r, w) = pipe_pair();
    on(SIGUSR1, counter(), 0);
    let k = interrupt_me(SIGUSR1);
    // More than fits: the partial count is returned, not EINTR.
    let n = ok(write(w, vec![0u8; 1 << 20].as_ptr().cast(), 1 << 20));
    assert!(n > 0 && n < 1 << 20, "{n}");
    exits(k, 0);
    let k = interrupt_me(SIGUSR1);
    fails(write(w, b"x".as_ptr().cast(), 1), EINTR);
    exits(k, 0);
    let _ = r;
}

unsafe fn kill_targets() {
    // A group with two members.
    let pid = spawn(|| {
        ok(setpgid(0, 0));
        let other = spawn(|| loop {
            pause();
        });
        ok(kill(0, SIGUSR1)); // to the whole group, including the sender
        let _ = other;
        loop {
            pause();
        }
    });
    dies(pid, SIGUSR1);
    eventually("the group is empty", || {
        waitpid(-pid, null_mut(), WNOHANG); // for the case that this process is init
        kill(-pid, 0) == -1 && errno() == ESRCH
    });
    let a = spawn(|| {
        ok(setpgid(0, 0));
        loop {
            pause();
        }
    });
    let _ = setpgid(a, a);
    ok(kill(-a, SIGTERM));
    dies(a, SIGTERM);
    // To the sender's own group, including the sender.
    in_child(|| {
        ok(setpgid(0, 0));
        on(SIGUSR2, counter(), 0);
        ok(kill(0, SIGUSR2));
        assert_eq!(HITS.load(SeqCst), 1);
    });
}

unsafe fn kill_errors() {
    fails(kill(getpid(), 65), EINVAL);
    fails(kill(getpid(), -1), EINVAL);
    ok(kill(getpid(), 0));
    fails(kill(0x3fff_ffff, SIGTERM), ESRCH);
    fails(kill(-0x3fff_ffff, SIGTERM), ESRCH);
    let pid = spawn(|| 0);
    exits(pid, 0);
    fails(kill(pid, 0), ESRCH);
}

unsafe fn kill_permission() {
    if !root() {
        return;
    }
    let parent = getpid();
    in_child(|| {
        become_nobody();
        fails(kill(parent, SIGTERM), EPERM);
        fails(kill(parent, 0), EPERM);
        fails(syscall(SYS_tkill, parent, SIGTERM), EPERM);
        let pid = spawn(|| loop {
            pause();
        });
        ok(kill(pid, SIGKILL));
        dies(pid, SIGKILL);
    });
}

unsafe fn stop_and_continue() {
    let s = shared(PAGE).cast::<AtomicU32>();
    let pid = spawn(|| loop {
        (*s).fetch_add(1, SeqCst);
        sched_yield();
    });
    eventually("it runs", || (*s).load(SeqCst) > 10);
    ok(kill(pid, SIGSTOP));
    let mut st = 0;
    ok(waitpid(pid, &mut st, WUNTRACED));
    let at = (*s).load(SeqCst);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!((*s).load(SeqCst), at);
    ok(kill(pid, SIGCONT));
    eventually("it runs again", || (*s).load(SeqCst) > at);
    ok(kill(pid, SIGKILL));
    dies(pid, SIGKILL);
}

unsafe fn cont_discards_stop() {
    block(&[SIGTSTP, SIGCONT]);
    me(SIGTSTP);
    assert_eq!(pending(), [SIGTSTP]);
    me(SIGCONT);
    assert_eq!(pending(), [SIGCONT]);
    me(SIGTSTP);
    assert_eq!(pending(), [SIGTSTP]);
}

unsafe fn sigkill_ends_all_threads() {
    let (r, w) = pipe_pair();
    let pid = spawn(|| {
        ok(close(r));
        for i in 0..10 {
            std::thread::spawn(move || unsafe {
                if i % 2 == 0 {
                    pause();
                }
                loop {
                    std::hint::spin_loop();
                }
            });
        }
        put(w, b"x");
        pause();
        0
    });
    ok(close(w));
    get(r, 1);
    ok(kill(pid, SIGKILL));
    dies(pid, SIGKILL);
    assert_eq!(get(r, 1), b"");
}

unsafe fn fatal_in_blocked_wait() {
    // A fatal signal ends the process in every kind of wait.
    type Wait = unsafe fn();
    let waits: [Wait; 6] = [
        || unsafe { drop(get(pipe_pair().0, 1)) },
        || unsafe { drop(poll(null_mut(), 0, -1)) },
        || unsafe { drop(sleep(1000)) },
        || unsafe { drop(flock(0, 0) + pause()) },
        || unsafe {
            let x = 0u32;
            drop(syscall(SYS_futex, &x, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, 0));
        },
        || unsafe { drop(epoll_wait(epoll_create1(0), [zeroed()].as_mut_ptr(), 1, -1)) },
    ];
    for w in waits {
        let pid = spawn(|| {
            w();
            0
        });
        asleep(pid);
        ok(kill(pid, SIGTERM));
        dies(pid, SIGTERM);
    }
}

unsafe fn raise_in_handler() {
    extern "C" fn outer(_: i32) {
        unsafe {
            let before = HITS.load(SeqCst);
            me(SIGUSR2);
            assert_eq!(HITS.load(SeqCst), before + 1); // runs at once, inside this one
            HITS.fetch_add(10, SeqCst);
        }
    }
    on(SIGUSR1, outer as *const () as usize, 0);
    on(SIGUSR2, counter(), 0);
    me(SIGUSR1);
    assert_eq!(HITS.load(SeqCst), 11);
}

unsafe fn queue_limit() {
    ok(setrlimit(RLIMIT_SIGPENDING, &rlimit { rlim_cur: 5, rlim_max: 5 }));
    block(&[40, SIGUSR1]);
    let mut n = 0;
    while sigqueue(getpid(), 40, sigval { sival_ptr: null_mut() }) == 0 {
        n += 1;
        assert!(n <= 5);
    }
    assert_eq!(errno(), EAGAIN);
    me(SIGUSR1); // si_code of kill() is allowed towards oneself
    assert!(pending().contains(&SIGUSR1));
}

unsafe fn sigprocmask_errors() {
    let m = [0u64];
    fails(syscall(SYS_rt_sigprocmask, 9, m.as_ptr(), 0, 8), EINVAL);
    ok(syscall(SYS_rt_sigprocmask, 9, 0, 0, 8)); // without a new set `how` is not checked
    fails(syscall(SYS_rt_sigprocmask, SIG_BLOCK, m.as_ptr(), 0, 16), EINVAL);
    fails(syscall(SYS_rt_sigprocmask, SIG_BLOCK, BAD, 0, 8), EFAULT);
    fails(syscall(SYS_rt_sigprocmask, SIG_BLOCK, 0, BAD, 8), EFAULT);
    fails(syscall(SYS_rt_sigpending, m.as_ptr(), 16), EINVAL);
    fails(syscall(SYS_rt_sigsuspend, m.as_ptr(), 4), EINVAL);
}

unsafe fn rt_sigqueueinfo_rules() {
    block(&[40]);
    let mut i = [0i32; 32];
    i[0] = 40;
    i[2] = SI_QUEUE;
    i[6] = 99;
    ok(syscall(SYS_rt_sigqueueinfo, getpid(), 40, i.as_ptr()));
    ok(syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), 40, i.as_ptr()));
    let mut got: siginfo_t = zeroed();
    for _ in 0..2 {
        is(sigwaitinfo(&set_of(&[40]), &mut got), 40);
        assert_eq!((got.si_code, got.si_value().sival_ptr as i32), (SI_QUEUE, 99));
    }
    // The id of a thread stands for its process.
    std::thread::spawn(move || ok(syscall(SYS_rt_sigqueueinfo, gettid(), 40, i.as_ptr()))).join().unwrap();
    is(sigwaitinfo(&set_of(&[40]), &mut got), 40);
    // The si_code of kill() is refused towards other processes.
    let pid = spawn(|| loop {
        pause();
    });
    i[2] = SI_USER;
    fails(syscall(SYS_rt_sigqueueinfo, pid, 40, i.as_ptr()), EPERM);
    fails(syscall(SYS_rt_sigqueueinfo, pid, 40, BAD), EFAULT);
    ok(kill(pid, SIGKILL));
    dies(pid, SIGKILL);
}

unsafe fn ignore_discards_pending() {
    block(&[SIGUSR1, SIGCHLD]);
    me(SIGUSR1);
    signal(SIGUSR1, SIG_IGN);
    assert_eq!(pending(), []);
    on(SIGCHLD, counter(), 0);
    me(SIGCHLD);
    signal(SIGCHLD, SIG_DFL); // its default is to be ignored
    assert_eq!(pending(), []);
}

unsafe fn signal_to_init_of_group() {
    // A signal to a process is delivered to a thread that does not block it.
    on(SIGUSR1, counter(), 0);
    let h = std::thread::spawn(|| {
        eventually("delivered to this thread", || HITS.load(SeqCst) == 1);
    });
    block(&[SIGUSR1]);
    me(SIGUSR1);
    h.join().unwrap();
    assert_eq!(pending(), []);
}

unsafe fn restart_after_stop() {
    // Stopping and continuing does not interrupt a read.
    let (r, w) = pipe_pair();
    let pid = spawn(|| i32::from(get(r, 9) != b"late"));
    asleep(pid);
    ok(kill(pid, SIGSTOP));
    let mut st = 0;
    ok(waitpid(pid, &mut st, WUNTRACED));
    ok(kill(pid, SIGCONT));
    ok(waitpid(pid, &mut st, WCONTINUED));
    put(w, b"late");
    exits(pid, 0);
    // poll is restarted too
    let pid = spawn(|| {
        let mut p = pollfd { fd: r, events: POLLIN, revents: 0 };
        i32::from(poll(&mut p, 1, -1) != 1)
    });
    asleep(pid);
    ok(kill(pid, SIGSTOP));
    ok(waitpid(pid, &mut st, WUNTRACED));
    ok(kill(pid, SIGCONT));
    put(w, b"x");
    exits(pid, 0);
}

unsafe fn many_signals() {
    // Ping-pong between two processes, and a busy program that gets many signals.
    on(SIGUSR1, counter(), 0);
    let parent = getpid();
    let pid = spawn(|| {
        for i in 0..200 {
            let _ = i;
            ok(kill(parent, SIGUSR1));
            sched_yield();
        }
        0
    });
    let mut x = 0u64;
    while waitpid(pid, null_mut(), WNOHANG) == 0 {
        x = std::hint::black_box(x.wrapping_mul(3) + 1);
    }
    assert!(HITS.load(SeqCst) > 0);
}

/// Queued signals are charged to the receiving user, whichever process they are pending for (getrlimit(2)).
unsafe fn queue_of_a_user() {
    if !root() {
        return;
    }
    in_child(|| {
        // A user id that no other process has.
        let uid = 100_000 + getpid() as u32;
        ok(setresuid(uid, uid, uid));
        let few = rlimit { rlim_cur: 4, rlim_max: 4 };
        ok(setrlimit(RLIMIT_SIGPENDING, &few));
        let sig = SIGRTMIN() + 3;
        let mut set: sigset_t = zeroed();
        sigemptyset(&mut set);
        sigaddset(&mut set, sig);
        ok(sigprocmask(SIG_BLOCK, &set, std::ptr::null_mut()));
        let value = sigval { sival_ptr: std::ptr::null_mut() };
        for _ in 0..4 {
            ok(sigqueue(getpid(), sig, value));
        }
        fails(sigqueue(getpid(), sig, value), EAGAIN);
        in_child(|| fails(sigqueue(getpid(), sig, value), EAGAIN));
        is(sigwaitinfo(&set, std::ptr::null_mut()), sig as i64);
        in_child(|| {
            ok(sigqueue(getpid(), sig, value));
            fails(sigqueue(getpid(), sig, value), EAGAIN);
        });
        // The child's pending signals are gone with it.
        ok(sigqueue(getpid(), sig, value));
        fails(sigqueue(getpid(), sig, value), EAGAIN);
    });
}
