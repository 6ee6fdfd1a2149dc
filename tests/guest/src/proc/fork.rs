//! fork(2), vfork, exit.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    killed_right_after_fork,
    child_sees_zero,
    memory_is_private,
    descriptors_are_shared,
    close_is_not_shared,
    signal_state_is_inherited,
    pending_and_timers_are_not,
    vfork_waits,
    vfork_shares_memory,
    exit_codes,
    hundred_children,
    chain_of_descendants,
    orphan_gets_new_parent,
    orphans_leave_no_zombie,
    subreaper,
    zombies_change_parents,
    parent_death_signal,
    process_limit,
    fork_from_thread,
    children_in_parallel,
];

unsafe fn child_sees_zero() {
    let me = getpid();
    let s = shared(PAGE).cast::<pid_t>();
    let pid = spawn(|| {
        assert_eq!(getppid(), me);
        assert_eq!(gettid(), getpid());
        *s = getpid();
        0
    });
    exits(pid, 0);
    assert_eq!(*s, pid);
    assert_ne!(pid, me);
}

unsafe fn memory_is_private() {
    let mut on_stack = 1;
    let p = &raw mut on_stack;
    let mut heap = vec![1u8; 100_000];
    in_child(|| {
        p.write_volatile(2);
        heap.fill(2);
    });
    assert_eq!(p.read_volatile(), 1);
    assert!(heap.iter().all(|&x| x == 1));
}

unsafe fn descriptors_are_shared() {
    let t = Tmp::new();
    let fd = t.open("f");
    in_child(|| {
        put(fd, b"child");
        ok(fcntl(fd, F_SETFL, O_APPEND));
    });
    is(lseek(fd, 0, SEEK_CUR), 5);
    assert_ne!(ok(fcntl(fd, F_GETFL)) & O_APPEND, 0);
}

unsafe fn close_is_not_shared() {
    let (r, w) = pipe_pair();
    in_child(|| {
        ok(close(r));
        put(w, b"x");
        ok(dup2(w, 200));
    });
    assert_eq!(get(r, 5), b"x");
    fails(fcntl(200, F_GETFD), EBADF);
}

unsafe fn signal_state_is_inherited() {
    // Taken once, because a function may have several addresses.
    let handler = nothing as *const () as usize;
    on(SIGUSR1, handler, 0);
    signal(SIGUSR2, SIG_IGN);
    block(&[SIGTERM]);
    in_child(|| {
        let mut a: sigaction = zeroed();
        ok(sigaction(SIGUSR1, std::ptr::null(), &mut a));
        assert_eq!(a.sa_sigaction, handler);
        ok(sigaction(SIGUSR2, std::ptr::null(), &mut a));
        assert_eq!(a.sa_sigaction, SIG_IGN);
        let mut m = zeroed();
        ok(sigprocmask(SIG_BLOCK, std::ptr::null(), &mut m));
        assert_eq!(sigismember(&m, SIGTERM), 1);
        ok(kill(getpid(), SIGUSR1));
        ok(kill(getpid(), SIGUSR2));
    });
}

unsafe fn pending_and_timers_are_not() {
    block(&[SIGUSR1, SIGALRM]);
    ok(kill(getpid(), SIGUSR1));
    alarm(1000);
    in_child(|| {
        let mut s = zeroed();
        ok(sigpending(&mut s));
        assert_eq!(sigismember(&s, SIGUSR1), 0);
        assert_eq!(alarm(0), 0);
        let mut tm: tms = zeroed();
        ok(times(&mut tm));
        assert_eq!((tm.tms_cutime, tm.tms_cstime), (0, 0));
    });
    assert!(alarm(0) > 900);
}

unsafe fn vfork_waits() {
    let (r, w) = pipe_pair();
    ok(fcntl(r, F_SETFL, O_NONBLOCK));
    for _ in 0..20 {
        let pid = vfork_and_write(w);
        // The child ended before vfork returned here.
        assert_eq!(get(r, 5), b"v");
        exits(pid, 0);
    }
}

/// `vfork` whose child runs assembly on the shared stack: writes "v" to `w`, exits 0.
unsafe fn vfork_and_write(w: i32) -> pid_t {
    let pid: i64;
    let msg = b"v";
    std::arch::asm!(
        "syscall",
        "test rax, rax",
        "jnz 2f",
        "mov eax, 1",      // write
        "mov edi, r8d",
        "mov rsi, r9",
        "mov edx, 1",
        "syscall",
        "mov eax, 60",     // exit
        "xor edi, edi",
        "syscall",
        "2:",
        inlateout("rax") SYS_vfork => pid,
        in("r8") w,
        in("r9") msg.as_ptr(),
        out("rcx") _, out("r11") _, out("rdi") _, out("rsi") _, out("rdx") _,
    );
    ok(pid) as pid_t
}

unsafe fn vfork_shares_memory() {
    let cell = 1u64;
    let p = &raw const cell;
    let pid: i64;
    std::arch::asm!(
        "syscall",
        "test rax, rax",
        "jnz 2f",
        "mov qword ptr [r8], 42",
        "mov eax, 60",
        "mov edi, 3",
        "syscall",
        "2:",
        inlateout("rax") SYS_vfork => pid,
        in("r8") p,
        out("rcx") _, out("r11") _, out("rdi") _,
    );
    exits(ok(pid) as i32, 3);
    assert_eq!(p.read_volatile(), 42);
}

unsafe fn exit_codes() {
    for (code, want) in [(0, 0), (1, 1), (255, 255), (256, 0), (-1, 255), (0x1234, 0x34)] {
        let pid = spawn(|| code);
        exits(pid, want);
    }
}

unsafe fn hundred_children() {
    let pids: Vec<pid_t> = (0..100).map(|i| spawn(move || i)).collect();
    let mut seen = std::collections::BTreeSet::new();
    for (i, &p) in pids.iter().enumerate() {
        assert!(seen.insert(p));
        exits(p, i as i32);
    }
    fails(wait(std::ptr::null_mut()), ECHILD);
}

unsafe fn chain_of_descendants() {
    unsafe fn down(n: i32) -> i32 {
        if n == 0 {
            return 0;
        }
        let pid = spawn(|| down(n - 1));
        let st = reap(pid);
        assert!(WIFEXITED(st));
        WEXITSTATUS(st) + 1
    }
    assert_eq!(down(20), 20);
}

unsafe fn orphan_gets_new_parent() {
    let s = shared(PAGE).cast::<pid_t>();
    let (r, w) = pipe_pair();
    in_child(|| {
        let mid = getpid();
        if ok(fork()) == 0 {
            eventually("a new parent", || getppid() != mid);
            *s = getppid();
            *s.add(1) = mid;
            put(w, b"x");
            _exit(0);
        }
    });
    get(r, 1);
    // The reaper may be this process.
    assert!(*s > 0 && *s != *s.add(1));
}

unsafe fn orphans_leave_no_zombie() {
    let s = shared(PAGE).cast::<pid_t>();
    in_child(|| {
        // One child ends before its parent, one after.
        let parent = getpid();
        for i in 0..2 {
            let pid = ok(fork());
            if pid == 0 {
                eventually("its parent has gone", || i == 0 || getppid() != parent);
                _exit(0);
            }
            *s.add(i) = pid;
        }
        eventually("a zombie", || state_of(*s) == 'Z');
    });
    for i in 0..2 {
        eventually("it is gone", || kill(*s.add(i), 0) == -1 && errno() == ESRCH);
    }
}

unsafe fn subreaper() {
    ok(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
    let mut v = 0;
    ok(prctl(PR_GET_CHILD_SUBREAPER, &raw mut v, 0, 0, 0));
    assert_eq!(v, 1);
    let me = getpid();
    let s = shared(PAGE).cast::<pid_t>();
    in_child(|| {
        let pid = ok(fork());
        if pid == 0 {
            eventually("the reaper is the parent", || getppid() == me);
            _exit(9);
        }
        *s = pid;
    });
    exits(*s, 9);
}

unsafe fn zombies_change_parents() {
    const ZOMBIES: usize = 40;
    unsafe fn leave() -> pid_t {
        spawn(|| {
            on(SIGCHLD, SIG_DFL, 0);
            let dead: Vec<_> = (0..ZOMBIES).map(|n| spawn(|| n as i32)).collect();
            for pid in dead {
                let mut info: siginfo_t = zeroed();
                ok(waitid(P_PID, pid as id_t, &mut info, WEXITED | WNOWAIT));
            }
            100
        })
    }
    in_child(|| {
        ok(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
        exits(leave(), 100);
        let mut codes: Vec<_> = (0..ZOMBIES)
            .map(|_| {
                let mut st = 0;
                ok(wait(&mut st));
                WEXITSTATUS(st)
            })
            .collect();
        codes.sort_unstable();
        assert!(codes.into_iter().eq(0..ZOMBIES as i32));
        fails(wait(std::ptr::null_mut()), ECHILD);
        // A parent that ignores SIGCHLD has no zombies.
        on(SIGCHLD, SIG_IGN, 0);
        leave();
        fails(wait(std::ptr::null_mut()), ECHILD);
    });
}

unsafe fn parent_death_signal() {
    let (r, w) = pipe_pair();
    let (r2, w2) = pipe_pair();
    let pid = spawn(|| {
        if ok(fork()) == 0 {
            ok(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0));
            ok(close(r));
            ok(close(r2));
            put(w2, b"x");
            pause(); // holds the write end of the pipe
        }
        get(r2, 1);
        0
    });
    ok(close(w2));
    ok(close(w));
    exits(pid, 0);
    assert_eq!(get(r, 1), b""); // ends when the grandchild is gone
}

unsafe fn process_limit() {
    if !root() {
        return;
    }
    in_child(|| {
        // A user without other processes.
        ok(setrlimit(RLIMIT_NPROC, &rlimit { rlim_cur: 1, rlim_max: 1 }));
        ok(setresgid(54321, 54321, 54321));
        ok(setresuid(54321, 54321, 54321));
        fails(fork(), EAGAIN);
    });
    // A zombie counts until it is reaped.
    in_child(|| {
        ok(setrlimit(RLIMIT_NPROC, &rlimit { rlim_cur: 4, rlim_max: 4 }));
        ok(setresgid(54322, 54322, 54322));
        ok(setresuid(54322, 54322, 54322));
        let dead = [(); 3].map(|()| spawn(|| 0));
        let mut info: siginfo_t = zeroed();
        for pid in dead {
            ok(waitid(P_PID, pid as id_t, &mut info, WEXITED | WNOWAIT));
        }
        fails(fork(), EAGAIN);
        exits(dead[0], 0);
        let last = spawn(|| 0);
        fails(fork(), EAGAIN);
        for pid in [dead[1], dead[2], last] {
            exits(pid, 0);
        }
    });
}

unsafe fn fork_from_thread() {
    let h = std::thread::spawn(|| unsafe {
        assert_ne!(gettid(), getpid());
        let pid = spawn(|| {
            assert_eq!(gettid(), getpid()); // the only thread, and the leader
            assert_eq!(std::fs::read_dir("/proc/self/task").unwrap().count(), 1);
            5
        });
        exits(pid, 5);
    });
    h.join().unwrap();
}

unsafe fn children_in_parallel() {
    let hs: Vec<_> = (0..4)
        .map(|n| {
            std::thread::spawn(move || unsafe {
                for i in 0..20 {
                    let pid = spawn(|| n * 20 + i);
                    exits(pid, n * 20 + i);
                }
            })
        })
        .collect();
    hs.into_iter().for_each(|h| h.join().unwrap());
}

/// The signal hits a child that has just been created, by a call site that has run often.
unsafe fn killed_right_after_fork() {
    for i in 0..300 {
        let child = spawn(|| loop {
            pause();
        });
        let sig = if i % 2 == 0 { SIGTERM } else { SIGKILL };
        ok(kill(child, sig));
        dies(child, sig);
    }
}
