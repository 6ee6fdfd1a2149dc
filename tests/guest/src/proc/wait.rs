//! wait4(2), waitid, zombies.

use crate::t::*;
use libc::*;
use std::ptr::null_mut;

pub const CASES: &[crate::Case] = cases![
    no_children,
    no_hang,
    any_child,
    by_group,
    signalled,
    stopped_and_continued,
    waitid_info,
    waitid_nowait,
    waitid_stopped,
    errors,
    resource_usage,
    ignored_children_vanish,
    nocldwait,
    sigchld_is_sent,
    sigchld_details,
    interrupted,
    restarted,
    zombie_state,
    other_threads_children,
    nothread_flag,
    core_flag_absent,
    nocldstop,
];

unsafe fn no_children() {
    fails(wait(null_mut()), ECHILD);
    fails(waitpid(-1, null_mut(), WNOHANG), ECHILD);
    fails(waitpid(1, null_mut(), 0), ECHILD);
    fails(waitpid(getpid(), null_mut(), 0), ECHILD);
    let mut i: siginfo_t = zeroed();
    fails(waitid(P_ALL, 0, &mut i, WEXITED), ECHILD);
}

unsafe fn no_hang() {
    let (r, w) = pipe_pair();
    let pid = spawn(|| {
        get(r, 1);
        7
    });
    is(waitpid(pid, null_mut(), WNOHANG), 0);
    let mut i: siginfo_t = zeroed();
    i.si_signo = 99;
    is(waitid(P_PID, pid as u32, &mut i, WEXITED | WNOHANG), 0);
    assert_eq!((i.si_signo, i.si_pid()), (0, 0));
    put(w, b"x");
    exits(pid, 7);
}

unsafe fn any_child() {
    let a = spawn(|| 1);
    let b = spawn(|| 2);
    let mut got = Vec::new();
    for _ in 0..2 {
        let mut st = 0;
        let p = ok(waitpid(-1, &mut st, 0));
        got.push((p, WEXITSTATUS(st)));
    }
    got.sort();
    let mut want = vec![(a, 1), (b, 2)];
    want.sort();
    assert_eq!(got, want);
    fails(wait(null_mut()), ECHILD);
}

unsafe fn by_group() {
    let a = spawn(|| {
        ok(setpgid(0, 0));
        3
    });
    let b = spawn(|| 4);
    ok(setpgid(b, 0).max(0));
    let _ = setpgid(a, a);
    let mut st = 0;
    is(waitpid(-a, &mut st, 0), a.into());
    assert_eq!(WEXITSTATUS(st), 3);
    fails(waitpid(0, &mut st, 0), ECHILD); // no child left in this group
    exits(b, 4);
}

unsafe fn signalled() {
    for s in [SIGKILL, SIGTERM, SIGUSR1, SIGHUP, SIGPIPE, SIGALRM] {
        let pid = spawn(|| loop {
            pause();
        });
        ok(kill(pid, s));
        dies(pid, s);
    }
}

unsafe fn stopped_and_continued() {
    let pid = spawn(|| loop {
        pause();
    });
    ok(kill(pid, SIGSTOP));
    let mut st = 0;
    is(waitpid(pid, &mut st, WUNTRACED), pid.into());
    assert!(WIFSTOPPED(st) && WSTOPSIG(st) == SIGSTOP);
    is(waitpid(pid, &mut st, WUNTRACED | WNOHANG), 0); // reported once
    assert_eq!(state_of(pid), 'T');
    ok(kill(pid, SIGCONT));
    is(waitpid(pid, &mut st, WCONTINUED), pid.into());
    assert!(WIFCONTINUED(st));
    is(waitpid(pid, &mut st, WCONTINUED | WNOHANG), 0);
    ok(kill(pid, SIGSTOP));
    ok(kill(pid, SIGKILL)); // kills a stopped process too
    dies(pid, SIGKILL);
}

unsafe fn waitid_info() {
    let uid = getuid();
    let pid = spawn(|| 33);
    let mut i: siginfo_t = zeroed();
    is(waitid(P_PID, pid as u32, &mut i, WEXITED), 0);
    assert_eq!((i.si_signo, i.si_code, i.si_errno), (SIGCHLD, CLD_EXITED, 0));
    assert_eq!((i.si_pid(), i.si_uid(), i.si_status()), (pid, uid, 33));
    let pid = spawn(|| loop {
        pause();
    });
    ok(kill(pid, SIGTERM));
    is(waitid(P_ALL, 0, &mut i, WEXITED), 0);
    assert_eq!((i.si_code, i.si_pid(), i.si_status()), (CLD_KILLED, pid, SIGTERM));
}

unsafe fn waitid_nowait() {
    let pid = spawn(|| 4);
    let mut i: siginfo_t = zeroed();
    for _ in 0..3 {
        is(waitid(P_PID, pid as u32, &mut i, WEXITED | WNOWAIT), 0);
        assert_eq!(i.si_status(), 4);
    }
    exits(pid, 4);
}

unsafe fn waitid_stopped() {
    let pid = spawn(|| loop {
        pause();
    });
    let mut i: siginfo_t = zeroed();
    ok(kill(pid, SIGSTOP));
    is(waitid(P_PID, pid as u32, &mut i, WSTOPPED), 0);
    assert_eq!((i.si_code, i.si_status()), (CLD_STOPPED, SIGSTOP));
    ok(kill(pid, SIGCONT));
    is(waitid(P_PID, pid as u32, &mut i, WCONTINUED), 0);
    assert_eq!((i.si_code, i.si_status()), (CLD_CONTINUED, SIGCONT));
    ok(kill(pid, SIGKILL));
    dies(pid, SIGKILL);
}

unsafe fn errors() {
    let mut i: siginfo_t = zeroed();
    fails(waitpid(-1, null_mut(), 0x100), EINVAL);
    fails(waitid(P_ALL, 0, &mut i, 0), EINVAL);
    fails(waitid(P_ALL, 0, &mut i, WEXITED | 0x100), EINVAL);
    fails(waitid(77, 0, &mut i, WEXITED), EINVAL);
    fails(waitpid(i32::MIN, null_mut(), 0), ESRCH);
    let pid = spawn(|| 0);
    fails(syscall(SYS_wait4, pid, BAD, 0, 0), EFAULT);
}

unsafe fn resource_usage() {
    let pid = spawn(|| {
        let mut r: rusage = zeroed();
        eventually("uses processor time", || {
            (0..100_000u64).fold(0, |a, b| std::hint::black_box(a ^ b));
            getrusage(RUSAGE_SELF, &mut r);
            r.ru_utime.tv_sec * 1_000_000 + r.ru_utime.tv_usec + r.ru_stime.tv_usec > 20_000
        });
        0
    });
    let mut r: rusage = zeroed();
    let mut st = 0;
    is(wait4(pid, &mut st, 0, &mut r), pid.into());
    assert!(r.ru_utime.tv_sec * 1_000_000 + r.ru_utime.tv_usec + r.ru_stime.tv_usec >= 20_000);
    let mut c: rusage = zeroed();
    ok(getrusage(RUSAGE_CHILDREN, &mut c));
    assert!(c.ru_utime.tv_sec * 1_000_000 + c.ru_utime.tv_usec + c.ru_stime.tv_usec >= 20_000);
}

unsafe fn ignored_children_vanish() {
    signal(SIGCHLD, SIG_IGN);
    let pid = spawn(|| 3);
    fails(waitpid(pid, null_mut(), 0), ECHILD); // waits for the end, then finds nothing
    fails(kill(pid, 0), ESRCH);
}

unsafe fn nocldwait() {
    on(SIGCHLD, SIG_DFL, SA_NOCLDWAIT);
    let pid = spawn(|| 3);
    fails(waitpid(pid, null_mut(), 0), ECHILD);
}

unsafe fn sigchld_is_sent() {
    block(&[SIGCHLD]);
    let pid = spawn(|| 3);
    let mut i: siginfo_t = zeroed();
    is(sigwaitinfo(&set_of(&[SIGCHLD]), &mut i), SIGCHLD.into());
    assert_eq!((i.si_code, i.si_pid(), i.si_status()), (CLD_EXITED, pid, 3));
    exits(pid, 3);
}

unsafe fn sigchld_details() {
    block(&[SIGCHLD]);
    let pid = spawn(|| loop {
        pause();
    });
    let mut i: siginfo_t = zeroed();
    let mut next = || {
        is(sigwaitinfo(&set_of(&[SIGCHLD]), &mut i), SIGCHLD.into());
        (i.si_code, i.si_pid(), i.si_status())
    };
    ok(kill(pid, SIGSTOP));
    assert_eq!(next(), (CLD_STOPPED, pid, SIGSTOP));
    ok(kill(pid, SIGCONT));
    assert_eq!(next(), (CLD_CONTINUED, pid, SIGCONT));
    ok(kill(pid, SIGKILL));
    assert_eq!(next(), (CLD_KILLED, pid, SIGKILL));
    dies(pid, SIGKILL);
}

unsafe fn interrupted() {
    on(SIGUSR1, nothing as *const () as usize, 0);
    let long = spawn(|| loop {
        pause();
    });
    let k = interrupt_me(SIGUSR1);
    fails(waitpid(long, null_mut(), 0), EINTR);
    exits(k, 0);
    let k = interrupt_me(SIGUSR1);
    let mut i: siginfo_t = zeroed();
    fails(waitid(P_PID, long as u32, &mut i, WEXITED), EINTR);
    exits(k, 0);
    ok(kill(long, SIGKILL));
    dies(long, SIGKILL);
}

unsafe fn restarted() {
    static HITS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    extern "C" fn h(_: i32) {
        HITS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
    on(SIGUSR1, h as *const () as usize, SA_RESTART);
    let me = getpid();
    let pid = spawn(|| {
        asleep(me);
        ok(kill(me, SIGUSR1));
        std::thread::sleep(std::time::Duration::from_millis(30));
        5
    });
    let mut st = 0;
    is(waitpid(pid, &mut st, 0), pid.into());
    assert_eq!((WEXITSTATUS(st), HITS.load(std::sync::atomic::Ordering::SeqCst)), (5, 1));
}

unsafe fn zombie_state() {
    let pid = spawn(|| 0);
    eventually("a zombie", || state_of(pid) == 'Z');
    ok(kill(pid, 0));
    ok(kill(pid, SIGKILL));
    exits(pid, 0);
    fails(kill(pid, 0), ESRCH);
    assert_eq!(state_of(pid), '-');
}

unsafe fn other_threads_children() {
    let pid = std::thread::spawn(|| unsafe { spawn(|| 6) }).join().unwrap();
    exits(pid, 6); // any thread may wait for it, although the forking thread is gone
}

unsafe fn nothread_flag() {
    let (tx, rx) = std::sync::mpsc::channel();
    let (tx2, rx2) = std::sync::mpsc::channel::<()>();
    let h = std::thread::spawn(move || unsafe {
        tx.send(spawn(|| 6)).unwrap();
        rx2.recv().unwrap();
    });
    let pid = rx.recv().unwrap();
    fails(waitpid(pid, null_mut(), __WNOTHREAD), ECHILD);
    exits(pid, 6);
    tx2.send(()).unwrap();
    h.join().unwrap();
}

unsafe fn core_flag_absent() {
    let pid = spawn(|| {
        ok(setrlimit(RLIMIT_CORE, &rlimit { rlim_cur: 0, rlim_max: 0 }));
        abort()
    });
    let st = reap(pid);
    assert!(WIFSIGNALED(st) && WTERMSIG(st) == SIGABRT && !WCOREDUMP(st));
}

unsafe fn nocldstop() {
    on(SIGCHLD, SIG_DFL, SA_NOCLDSTOP);
    block(&[SIGCHLD]);
    let pid = spawn(|| loop {
        pause();
    });
    ok(kill(pid, SIGSTOP));
    let mut st = 0;
    is(waitpid(pid, &mut st, WUNTRACED), pid.into());
    let mut s = zeroed();
    ok(sigpending(&mut s));
    assert_eq!(sigismember(&s, SIGCHLD), 0);
    ok(kill(pid, SIGKILL));
    dies(pid, SIGKILL);
}
