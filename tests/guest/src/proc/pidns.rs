//! Pid namespaces (pid_namespaces(7)): numbers at each level, process 1, the end of a namespace.

use crate::t::*;
use libc::*;
use std::sync::atomic::{AtomicI32, Ordering};

pub const CASES: &[crate::Case] = cases![
    numbers,
    numbers_of_groups_and_sessions,
    three_levels,
    levels_are_bounded,
    process_1_is_protected,
    process_1_takes_what_it_handles,
    a_signal_from_outside,
    its_end_ends_all,
    its_end_waits_for_those_of_others,
    orphans_become_its_children,
    subreapers_stop_at_the_namespace,
    kill_all_reaches_inside_only,
    unshare_is_for_children,
    no_fork_after_its_end,
    setns_is_for_children,
    siginfo_has_the_receivers_numbers,
    messages_have_the_receivers_numbers,
    pidfds_tell_all_numbers,
    locks_and_owners,
    sysv_numbers,
    numbers_that_are_asked_for,
    last_number,
    threads_and_robust_futexes,
    exec_of_a_thread,
    proc_shows_the_mounts_namespace,
    death_signals_cross,
    reboot_ends_it,
    many_namespaces,
    waits_by_number,
    terminals,
    its_end_reaps_clones,
    its_last_thread,
    storm,
];

const NEWPID: i32 = CLONE_NEWPID;

/// As fork(2), with namespaces of the child's own.
unsafe fn fork_into(flags: i32) -> pid_t {
    ok(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0)) as pid_t
}

/// Runs `f` as a child with namespaces of its own.
unsafe fn spawn_into(flags: i32, f: impl FnOnce() -> i32) -> pid_t {
    let pid = fork_into(flags);
    if pid == 0 {
        let r = f();
        _exit(r);
    }
    pid
}

/// Runs `f` as process 1 of a new namespace; assertions in it count.
#[track_caller]
unsafe fn as_init(f: impl FnOnce()) {
    exits(
        spawn_into(NEWPID, || {
            f();
            0
        }),
        0,
    );
}

unsafe fn gettid_now() -> pid_t {
    syscall(SYS_gettid) as pid_t
}

unsafe fn numbers() {
    if !root() {
        return;
    }
    let pid = spawn_into(NEWPID, || {
        assert_eq!((getpid(), gettid_now(), getppid()), (1, 1, 0));
        is(syscall(SYS_set_tid_address, 0), 1);
        let (r, w) = pipe_pair();
        let child = spawn(|| {
            assert_eq!((getpid(), gettid_now(), getppid()), (2, 2, 1));
            put(w, b"x");
            0
        });
        assert_eq!(child, 2);
        get_all(r, 1);
        exits(child, 0);
        let next = spawn(|| getpid());
        assert_eq!(next, 3);
        exits(next, 3);
        // The numbers of outside are not those of anybody here.
        fails(kill(4, 0), ESRCH);
        0
    });
    assert!(pid > 1);
    exits(pid, 0);
}

unsafe fn numbers_of_groups_and_sessions() {
    if !root() {
        return;
    }
    let outer = (getpgrp(), getsid(0));
    let (r, w) = pipe_pair();
    let (go, gone) = pipe_pair();
    let pid = spawn_into(NEWPID, || {
        // The group and the session of outside have no number here.
        assert_eq!((getpgrp(), getsid(0)), (0, 0));
        fails(setpgid(0, 77), EPERM);
        assert_eq!(ok(setsid()), 1);
        assert_eq!((getpgrp(), getsid(0), getpgid(1), getsid(1)), (1, 1, 1, 1));
        let member = spawn(|| {
            assert_eq!((getpgrp(), getsid(0)), (1, 1));
            ok(setpgid(0, 0));
            assert_eq!(getpgrp(), 2);
            0
        });
        exits(member, 0);
        let idle = spawn(|| loop {
            pause();
        });
        ok(setpgid(idle, idle));
        fails(waitpid(-99, std::ptr::null_mut(), WNOHANG), ECHILD);
        is(waitpid(-idle, std::ptr::null_mut(), WNOHANG), 0);
        ok(kill(-idle, SIGTERM));
        dies(idle, SIGTERM);
        put(w, b"x");
        get_all(go, 1);
        0
    });
    get_all(r, 1);
    assert_eq!((getpgid(pid), getsid(pid)), (pid, pid));
    assert_ne!((pid, pid), outer);
    put(gone, b"x");
    exits(pid, 0);
}

/// The numbers in a line of /proc/PID/status.
fn status_line(pid: &str, name: &str) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_whitespace().map(|n| n.parse().unwrap()).collect()
}

unsafe fn three_levels() {
    if !root() {
        return;
    }
    let (r, w) = pipe_pair();
    let (go, gone) = pipe_pair();
    let pid = spawn_into(NEWPID, || {
        let pad = spawn(|| 0);
        exits(pad, 0);
        let inner = spawn_into(NEWPID, || {
            assert_eq!((getpid(), getppid()), (1, 0));
            setsid();
            put(w, b"x");
            get_all(go, 1);
            0
        });
        assert_eq!(inner, 3);
        exits(inner, 0);
        0
    });
    get_all(r, 1);
    // Found by its parent, from here.
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let inner: i32 = children.trim().parse().unwrap();
    let name = inner.to_string();
    assert_eq!(status_line(&name, "NSpid"), [inner, 3, 1]);
    assert_eq!(status_line(&name, "NStgid"), [inner, 3, 1]);
    assert_eq!(status_line(&name, "NSsid"), [inner, 3, 1]);
    assert_eq!(status_line(&name, "NSpgid"), [inner, 3, 1]);
    assert_eq!((status_line(&name, "Pid"), status_line(&name, "PPid")), (vec![inner], vec![pid]));
    assert_eq!(status_line(&pid.to_string(), "NSpid"), [pid, 1]);
    put(gone, b"x");
    exits(pid, 0);
}

unsafe fn levels_are_bounded() {
    if !root() {
        return;
    }
    // Each level makes the next one, and tells how many there were below it.
    unsafe fn deeper() -> i32 {
        let pid = syscall(SYS_clone, NEWPID | SIGCHLD, 0, 0, 0, 0) as pid_t;
        match pid {
            -1 => {
                assert_eq!(errno(), ENOSPC);
                0
            }
            0 => _exit(1 + deeper()),
            _ => WEXITSTATUS(reap(pid)),
        }
    }
    let levels = deeper();
    // The namespace that this runs in may be one itself.
    assert!((28..=32).contains(&levels), "{levels}");
}

unsafe fn process_1_is_protected() {
    if !root() {
        return;
    }
    as_init(|| {
        let child = spawn(|| {
            for sig in [SIGTERM, SIGKILL, SIGSTOP, SIGUSR1, SIGSEGV, SIGTSTP] {
                ok(kill(1, sig));
            }
            ok(syscall(SYS_tgkill, 1, 1, SIGKILL));
            ok(syscall(SYS_tgkill, 1, 1, SIGTERM));
            0
        });
        exits(child, 0);
        ok(kill(1, SIGKILL));
        ok(kill(1, SIGINT));
        // One that was sent while it was blocked is dropped when it is let through.
        block(&[SIGUSR2]);
        ok(kill(1, SIGUSR2));
        ok(sigprocmask(SIG_UNBLOCK, &set_of(&[SIGUSR2]), std::ptr::null_mut()));
    });
    // A fault of its own ends it.
    let pid = spawn_into(NEWPID, || {
        std::ptr::write_volatile(8 as *mut u8, 1);
        0
    });
    dies(pid, SIGSEGV);
}

static GOT: AtomicI32 = AtomicI32::new(0);
extern "C" fn note(sig: i32) {
    GOT.store(sig, Ordering::SeqCst);
}

unsafe fn process_1_takes_what_it_handles() {
    if !root() {
        return;
    }
    as_init(|| {
        on(SIGTERM, note as *const () as usize, 0);
        exits(spawn(|| ok(kill(1, SIGTERM))), 0);
        eventually("handled", || GOT.load(Ordering::SeqCst) == SIGTERM);
    });
}

unsafe fn a_signal_from_outside() {
    if !root() {
        return;
    }
    let idle = || {
        spawn_into(NEWPID, || loop {
            pause();
        })
    };
    let pid = idle();
    // Those that it does not handle are dropped, whoever sends them.
    for sig in [SIGTERM, SIGINT, SIGUSR1] {
        ok(kill(pid, sig));
    }
    ok(kill(pid, SIGSTOP));
    let mut st = 0;
    is(waitpid(pid, &mut st, WUNTRACED), pid.into());
    assert!(WIFSTOPPED(st) && WSTOPSIG(st) == SIGSTOP, "{st:#x}");
    ok(kill(pid, SIGCONT));
    is(waitpid(pid, &mut st, WCONTINUED), pid.into());
    assert!(WIFCONTINUED(st));
    ok(kill(pid, SIGKILL));
    dies(pid, SIGKILL);
    let pid = idle();
    ok(syscall(SYS_tgkill, pid, pid, SIGKILL));
    dies(pid, SIGKILL);
}

unsafe fn its_end_ends_all() {
    if !root() {
        return;
    }
    let (r, w) = pipe_pair();
    let pid = spawn_into(NEWPID, || {
        for _ in 0..3 {
            spawn(|| {
                // Blocked or ignored signals do not help.
                block(&[SIGTERM, SIGHUP]);
                spawn(|| {
                    put(w, b"x");
                    loop {
                        pause();
                    }
                });
                loop {
                    pause();
                }
            });
        }
        spawn_into(NEWPID, || {
            put(w, b"x");
            loop {
                pause();
            }
        });
        get_all(r, 4);
        7
    });
    close(w);
    exits(pid, 7);
    // All of them have gone by then: the last writer of the pipe too.
    let mut b = 0u8;
    is(read(r, (&raw mut b).cast(), 1), 0);
}

unsafe fn its_end_waits_for_those_of_others() {
    if !root() {
        return;
    }
    let (r, w) = pipe_pair();
    in_child(|| {
        let init = spawn_into(NEWPID, || {
            get_all(r, 1);
            0
        });
        let ns = ok(open(c(&format!("/proc/{init}/ns/pid")).as_ptr(), O_RDONLY | O_CLOEXEC));
        ok(setns(ns, NEWPID));
        let guest = spawn(|| loop {
            pause();
        });
        put(w, b"x");
        // It has been killed, and process 1 waits until it is reaped.
        eventually("killed", || state_of(guest) == 'Z');
        assert_eq!(waitpid(init, std::ptr::null_mut(), WNOHANG), 0);
        dies(guest, SIGKILL);
        exits(init, 0);
    });
}

unsafe fn orphans_become_its_children() {
    if !root() {
        return;
    }
    as_init(|| {
        let (r, w) = pipe_pair();
        let parent = spawn(|| {
            spawn(|| {
                eventually("orphaned", || getppid() == 1);
                put(w, b"x");
                5
            });
            0
        });
        exits(parent, 0);
        get_all(r, 1);
        let mut st = 0;
        let orphan = ok(waitpid(-1, &mut st, 0));
        assert_eq!((orphan, WEXITSTATUS(st)), (3, 5));
    });
}

unsafe fn subreapers_stop_at_the_namespace() {
    if !root() {
        return;
    }
    in_child(|| {
        ok(prctl(PR_SET_CHILD_SUBREAPER, 1));
        // Not this one, which is outside, but process 1.
        as_init(|| {
            exits(
                spawn(|| {
                    spawn(|| {
                        eventually("adopted", || getppid() == 1);
                        0
                    });
                    0
                }),
                0,
            );
            exits(3, 0);
        });
        // Within a namespace there may be one.
        as_init(|| {
            let reaper = spawn(|| {
                ok(prctl(PR_SET_CHILD_SUBREAPER, 1));
                let me = getpid();
                exits(
                    spawn(|| {
                        spawn(|| {
                            eventually("adopted", || getppid() == me);
                            0
                        });
                        0
                    }),
                    0,
                );
                exits(4, 0);
                0
            });
            exits(reaper, 0);
        });
        // Process 1 of a namespace ends with all in it; nothing is left for the subreaper outside.
        fails(waitpid(-1, std::ptr::null_mut(), WNOHANG), ECHILD);
    });
}

unsafe fn kill_all_reaches_inside_only() {
    if !root() {
        return;
    }
    let outside = spawn(|| loop {
        pause();
    });
    as_init(|| {
        let a = spawn(|| loop {
            pause();
        });
        let b = spawn(|| loop {
            pause();
        });
        ok(kill(-1, SIGTERM));
        dies(a, SIGTERM);
        dies(b, SIGTERM);
        fails(kill(-1, SIGTERM), ESRCH);
    });
    assert_ne!(state_of(outside), 'Z');
    ok(kill(outside, SIGKILL));
    dies(outside, SIGKILL);
}

unsafe fn inode_of(path: &str) -> u64 {
    stat_of(&c(path)).st_ino
}

unsafe fn unshare_is_for_children() {
    if !root() {
        return;
    }
    in_child(|| {
        let before = (getpid(), inode_of("/proc/self/ns/pid"));
        ok(unshare(NEWPID));
        assert_eq!((getpid(), inode_of("/proc/self/ns/pid")), before);
        // There is no namespace to show before the first child.
        fails(open(c("/proc/self/ns/pid_for_children").as_ptr(), O_RDONLY), ENOENT);
        // Not once more, and no thread, which would be in another namespace than its process.
        fails(unshare(NEWPID), EINVAL);
        let flags = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD;
        fails(syscall(SYS_clone, flags, anon(4096, RW).add(4096), 0, 0, 0), EINVAL);
        let (r, w) = pipe_pair();
        let init = spawn(|| {
            assert_eq!((getpid(), getppid()), (1, 0));
            get_all(r, 1);
            0
        });
        assert_ne!(inode_of("/proc/self/ns/pid_for_children"), before.1);
        assert_eq!(inode_of("/proc/self/ns/pid_for_children"), inode_of(&format!("/proc/{init}/ns/pid")));
        // The second child is an ordinary process of the same namespace, whose parent is outside.
        let second = spawn(|| {
            assert_eq!((getpid(), getppid()), (2, 0));
            ok(kill(1, SIGKILL));
            0
        });
        exits(second, 0);
        put(w, b"x");
        exits(init, 0);
    });
}

unsafe fn no_fork_after_its_end() {
    if !root() {
        return;
    }
    in_child(|| {
        ok(unshare(NEWPID));
        exits(spawn(|| 0), 0);
        fails(fork(), ENOMEM);
        fails(fork(), ENOMEM);
    });
}

unsafe fn setns_is_for_children() {
    if !root() {
        return;
    }
    in_child(|| {
        let (r, w) = pipe_pair();
        let own = ok(open(c("/proc/self/ns/pid").as_ptr(), O_RDONLY | O_CLOEXEC));
        let init = spawn_into(NEWPID, || {
            get_all(r, 1);
            0
        });
        let ns = ok(open(c(&format!("/proc/{init}/ns/pid")).as_ptr(), O_RDONLY | O_CLOEXEC));
        fails(setns(ns, CLONE_NEWNET), EINVAL);
        ok(setns(ns, NEWPID));
        let pid = spawn(|| {
            assert_eq!((getpid(), getppid()), (2, 0));
            // Not out of it again.
            fails(setns(own, NEWPID), EINVAL);
            0
        });
        exits(pid, 0);
        // The caller itself is where it was.
        ok(setns(own, 0));
        let pid = spawn(|| i32::from(getppid() == 0));
        exits(pid, 0);
        let fd = ok(syscall(SYS_pidfd_open, init, 0)) as i32;
        ok(setns(fd, NEWPID));
        exits(spawn(|| getpid()), 3);
        put(w, b"x");
        exits(init, 0);
    });
}

unsafe fn wait_info(sig: i32) -> siginfo_t {
    let mut info: siginfo_t = zeroed();
    let t = timespec { tv_sec: 5, tv_nsec: 0 };
    is(sigtimedwait(&set_of(&[sig]), &mut info, &t), sig.into());
    info
}

unsafe fn siginfo_has_the_receivers_numbers() {
    if !root() {
        return;
    }
    block(&[SIGUSR1, SIGUSR2, SIGCHLD]);
    let me = getpid();
    let (r, w) = pipe_pair();
    let pid = spawn_into(NEWPID, || {
        put(w, b"x");
        // From outside: a sender without a number.
        assert_eq!(wait_info(SIGUSR1).si_pid(), 0);
        let queued = wait_info(SIGUSR2);
        assert_eq!((queued.si_pid(), queued.si_code, queued.si_value().sival_ptr as i32), (0, SI_QUEUE, 9));
        let inner = spawn(|| {
            ok(kill(1, SIGUSR1));
            3
        });
        assert_eq!(wait_info(SIGUSR1).si_pid(), inner);
        let died = wait_info(SIGCHLD);
        assert_eq!((died.si_pid(), died.si_status()), (inner, 3));
        let mut info: siginfo_t = zeroed();
        ok(waitid(P_ALL, 0, &mut info, WEXITED));
        assert_eq!(info.si_pid(), inner);
        0
    });
    get_all(r, 1);
    ok(kill(pid, SIGUSR1));
    ok(sigqueue(pid, SIGUSR2, sigval { sival_ptr: 9 as *mut c_void }));
    assert_eq!(wait_info(SIGCHLD).si_pid(), pid);
    exits(pid, 0);
    // A process outside is out of reach, whoever has given its descriptor.
    let fd = ok(syscall(SYS_pidfd_open, me, 0)) as i32;
    as_init(|| fails(syscall(SYS_pidfd_send_signal, fd, SIGUSR1, 0, 0), EINVAL));
}

unsafe fn cred_of_message(fd: i32) -> (Vec<u8>, ucred) {
    let (mut b, mut control) = ([0u8; 16], [0u64; 16]);
    let mut iov = iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() };
    let mut m: msghdr = zeroed();
    (m.msg_iov, m.msg_iovlen) = (&mut iov, 1);
    (m.msg_control, m.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    let n = ok(recvmsg(fd, &mut m, 0));
    let h = CMSG_FIRSTHDR(&m);
    assert!(!h.is_null() && (*h).cmsg_type == SCM_CREDENTIALS);
    (b[..n as usize].to_vec(), std::ptr::read_unaligned(CMSG_DATA(h).cast()))
}

unsafe fn send_as(fd: i32, who: ucred) -> isize {
    let (mut b, mut control) = ([b'm'], [0u64; 8]);
    let mut iov = iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 1 };
    let mut m: msghdr = zeroed();
    (m.msg_iov, m.msg_iovlen) = (&mut iov, 1);
    m.msg_control = control.as_mut_ptr().cast();
    m.msg_controllen = CMSG_SPACE(size_of::<ucred>() as u32) as usize;
    let h = CMSG_FIRSTHDR(&m);
    ((*h).cmsg_level, (*h).cmsg_type) = (SOL_SOCKET, SCM_CREDENTIALS);
    (*h).cmsg_len = CMSG_LEN(size_of::<ucred>() as u32) as usize;
    std::ptr::write_unaligned(CMSG_DATA(h).cast(), who);
    sendmsg(fd, &m, 0)
}

unsafe fn messages_have_the_receivers_numbers() {
    if !root() {
        return;
    }
    let on = 1i32;
    let mut s = [0; 2];
    ok(socketpair(AF_UNIX, SOCK_DGRAM, 0, s.as_mut_ptr()));
    for fd in s {
        ok(setsockopt(fd, SOL_SOCKET, SO_PASSCRED, (&raw const on).cast(), 4));
    }
    let me = getpid();
    put(s[0], b"out");
    let pid = spawn_into(NEWPID, || {
        // The sender outside has no number here.
        assert_eq!(cred_of_message(s[1]).1.pid, 0);
        put(s[1], b"in");
        ok(send_as(s[1], ucred { pid: 1, uid: 0, gid: 0 }));
        fails(send_as(s[1], ucred { pid: 55, uid: 0, gid: 0 }), ESRCH);
        let child = spawn(|| {
            put(s[1], b"child");
            0
        });
        exits(child, 0);
        child
    });
    for want in [pid, pid] {
        assert_eq!(cred_of_message(s[0]).1.pid, want);
    }
    // One that has gone meanwhile still has its number.
    let inner = cred_of_message(s[0]).1.pid;
    assert!(inner > pid && inner != me, "{inner}");
    exits(pid, 2);
    let mut s = [0; 2];
    ok(socketpair(AF_UNIX, SOCK_STREAM, 0, s.as_mut_ptr()));
    as_init(|| {
        let mut u: ucred = zeroed();
        let mut len = size_of::<ucred>() as u32;
        ok(getsockopt(s[0], SOL_SOCKET, SO_PEERCRED, (&raw mut u).cast(), &mut len));
        assert_eq!((u.pid, u.uid), (0, geteuid()));
    });
}

unsafe fn fdinfo_of(fd: i32, name: &str) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_whitespace().map(|n| n.parse().unwrap()).collect()
}

unsafe fn pidfds_tell_all_numbers() {
    if !root() {
        return;
    }
    let (r, w) = pipe_pair();
    let pid = spawn_into(NEWPID, || {
        get_all(r, 1);
        let own = ok(syscall(SYS_pidfd_open, 1, 0)) as i32;
        ok(syscall(SYS_pidfd_send_signal, own, 0, 0, 0));
        fails(syscall(SYS_pidfd_open, 12345, 0), ESRCH);
        0
    });
    let fd = ok(syscall(SYS_pidfd_open, pid, 0)) as i32;
    assert_eq!((fdinfo_of(fd, "Pid"), fdinfo_of(fd, "NSpid")), (vec![pid], vec![pid, 1]));
    put(w, b"x");
    exits(pid, 0);
    assert_eq!(fdinfo_of(fd, "Pid"), [-1]);
}

unsafe fn locks_and_owners() {
    if !root() {
        return;
    }
    let tmp = Tmp::new();
    let fd = tmp.open("f");
    let mut l: flock = zeroed();
    l.l_type = F_WRLCK as i16;
    l.l_len = 1;
    ok(fcntl(fd, F_SETLK, &l));
    let (r, w) = pipe_pair();
    let (go, gone) = pipe_pair();
    let pid = spawn_into(NEWPID, || {
        let mut q: flock = zeroed();
        (q.l_type, q.l_len) = (F_WRLCK as i16, 1);
        ok(fcntl(fd, F_GETLK, &mut q));
        assert_eq!((i32::from(q.l_type), q.l_pid), (F_WRLCK, 0));
        (q.l_start, q.l_len) = (10, 1);
        q.l_type = F_WRLCK as i16;
        ok(fcntl(fd, F_SETLK, &q));
        let child = spawn(|| {
            let mut q: flock = zeroed();
            (q.l_type, q.l_start, q.l_len) = (F_WRLCK as i16, 10, 1);
            ok(fcntl(fd, F_GETLK, &mut q));
            q.l_pid
        });
        exits(child, 1);
        ok(fcntl(fd, F_SETOWN, 1));
        is(fcntl(fd, F_GETOWN), 1);
        fails(fcntl(fd, F_SETOWN, 4444), ESRCH);
        put(w, b"x");
        get_all(go, 1);
        0
    });
    get_all(r, 1);
    let mut q: flock = zeroed();
    (q.l_type, q.l_start, q.l_len) = (F_WRLCK as i16, 10, 1);
    ok(fcntl(fd, F_GETLK, &mut q));
    assert_eq!(q.l_pid, pid);
    is(fcntl(fd, F_GETOWN), pid.into());
    put(gone, b"x");
    exits(pid, 0);
}

unsafe fn sysv_numbers() {
    if !root() {
        return;
    }
    let id = ok(msgget(IPC_PRIVATE, 0o600));
    let sem = ok(semget(IPC_PRIVATE, 1, 0o600));
    let (r, w) = pipe_pair();
    let (go, gone) = pipe_pair();
    let pid = spawn_into(NEWPID, || {
        let m = [1u64, 2];
        ok(msgsnd(id, m.as_ptr().cast(), 8, 0));
        let mut q: msqid_ds = zeroed();
        ok(msgctl(id, IPC_STAT, &mut q));
        assert_eq!(q.msg_lspid, 1);
        let mut op = sembuf { sem_num: 0, sem_op: 1, sem_flg: 0 };
        ok(semop(sem, &mut op, 1));
        is(semctl(sem, 0, GETPID), 1);
        put(w, b"x");
        get_all(go, 1);
        0
    });
    get_all(r, 1);
    let mut q: msqid_ds = zeroed();
    ok(msgctl(id, IPC_STAT, &mut q));
    assert_eq!(q.msg_lspid, pid);
    is(semctl(sem, 0, GETPID), pid.into());
    put(gone, b"x");
    exits(pid, 0);
    ok(msgctl(id, IPC_RMID, std::ptr::null_mut()));
    ok(semctl(sem, 0, IPC_RMID));
}

/// clone3(2) with `set_tid`.
unsafe fn clone_as(flags: i32, tids: &[i32]) -> i64 {
    let mut a = [0u64; 11];
    a[0] = flags as u32 as u64;
    a[4] = SIGCHLD as u64;
    (a[8], a[9]) = (tids.as_ptr() as u64, tids.len() as u64);
    let r = syscall(SYS_clone3, a.as_ptr(), 88);
    if r == 0 {
        _exit(if tids.first().is_some_and(|t| *t == getpid()) { 0 } else { 1 });
    }
    r
}

unsafe fn numbers_that_are_asked_for() {
    if !root() {
        return;
    }
    as_init(|| {
        let pid = ok(clone_as(0, &[4321]));
        assert_eq!(pid, 4321);
        exits(pid as i32, 0);
        fails(clone_as(0, &[1]), EEXIST);
        fails(clone_as(0, &[0]), EINVAL);
        fails(clone_as(0, &[1 << 23]), EINVAL);
        let many = [1; 40];
        fails(clone_as(0, &many), EINVAL);
        // The first process of a namespace is process 1.
        fails(clone_as(NEWPID, &[2]), EINVAL);
        let pid = ok(clone_as(NEWPID, &[1, 77]));
        assert_eq!(pid, 77);
        exits(77, 0);
        become_nobody();
        fails(clone_as(0, &[99]), EPERM);
    });
}

unsafe fn last_number() {
    if !root() {
        return;
    }
    as_init(|| {
        let file = "/proc/sys/kernel/ns_last_pid";
        assert_eq!(std::fs::read_to_string(file).unwrap(), "1\n");
        std::fs::write(file, "500").unwrap();
        assert_eq!(spawn(|| 0), 501);
        exits(501, 0);
        assert_eq!(std::fs::read_to_string(file).unwrap(), "501\n");
    });
}

unsafe fn threads_and_robust_futexes() {
    if !root() {
        return;
    }
    as_init(|| {
        // In a process whose library knows its number.
        let pid = spawn(|| {
            let main = gettid_now();
            assert_eq!(main, 2);
            let t = std::thread::spawn(|| (gettid_now(), getpid()));
            assert_eq!(t.join().unwrap(), (3, 2));
            let mut attr: pthread_mutexattr_t = zeroed();
            pthread_mutexattr_init(&mut attr);
            zero(pthread_mutexattr_setrobust(&mut attr, PTHREAD_MUTEX_ROBUST));
            zero(pthread_mutexattr_setprotocol(&mut attr, PTHREAD_PRIO_INHERIT));
            let m: *mut pthread_mutex_t = anon(4096, RW).cast();
            zero(pthread_mutex_init(m, &attr));
            let at = m as usize;
            std::thread::spawn(move || zero(pthread_mutex_lock(at as *mut pthread_mutex_t))).join().unwrap();
            assert_eq!(pthread_mutex_lock(m), EOWNERDEAD);
            zero(pthread_mutex_consistent(m));
            let waiter = std::thread::spawn(move || {
                let m = at as *mut pthread_mutex_t;
                zero(pthread_mutex_lock(m));
                zero(pthread_mutex_unlock(m));
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            zero(pthread_mutex_unlock(m));
            waiter.join().unwrap();
            0
        });
        exits(pid, 0);
    });
}

unsafe fn exec_of_a_thread() {
    if !root() {
        return;
    }
    let exe = std::env::current_exe().unwrap();
    let (r, w) = pipe_pair();
    as_init(|| {
        let pid = spawn(|| {
            dup2(w, 1);
            let exe = c(&exe.display().to_string());
            std::thread::spawn(move || {
                let args = [exe.clone(), c("helper"), c("ids")];
                let args: Vec<_> = args.iter().map(|a| a.as_ptr()).chain([std::ptr::null()]).collect();
                execv(exe.as_ptr(), args.as_ptr());
            });
            loop {
                pause();
            }
        });
        exits(pid, 0);
    });
    assert_eq!(String::from_utf8(get(r, 100)).unwrap(), "0 0 0 pid 2 tid 2\n");
}

unsafe fn proc_shows_the_mounts_namespace() {
    if !root() {
        return;
    }
    let outer = getpid();
    let (r, w) = pipe_pair();
    let pid = spawn_into(NEWPID | CLONE_NEWNS, || {
        ok(mount(c("none").as_ptr(), c("/").as_ptr(), std::ptr::null(), MS_REC | MS_PRIVATE, std::ptr::null()));
        // The old mount shows the numbers of outside, and nothing as "self" that is not there.
        assert!(std::fs::metadata(format!("/proc/{outer}")).is_ok());
        assert_eq!(status_line("self", "NSpid").last(), Some(&1));
        ok(mount(c("proc").as_ptr(), c("/proc").as_ptr(), c("proc").as_ptr(), 0, std::ptr::null()));
        assert_eq!(std::fs::read_link("/proc/self").unwrap().to_str(), Some("1"));
        assert_eq!(std::fs::read_link("/proc/thread-self").unwrap().to_str(), Some("1/task/1"));
        let child = spawn(|| {
            get_all(r, 1);
            0
        });
        let mut list: Vec<i32> = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|e| e.unwrap().file_name().to_str().unwrap().parse().ok())
            .collect();
        list.sort();
        assert_eq!(list, [1, child]);
        assert_eq!((status_line("2", "NSpid"), status_line("2", "PPid")), (vec![2], vec![1]));
        assert_eq!((status_line("1", "Pid"), status_line("1", "PPid")), (vec![1], vec![0]));
        let stat = std::fs::read_to_string("/proc/2/stat").unwrap();
        let words: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        assert!(stat.starts_with("2 (") && words[1] == "1", "{stat}");
        put(w, b"x");
        exits(child, 0);
        assert!(std::fs::metadata("/proc/2").is_err());
        // In the namespace below there is no such process.
        let inner = spawn_into(NEWPID, || i32::from(std::fs::read_link("/proc/self").unwrap().to_str() == Some("3")));
        assert_eq!(inner, 3);
        exits(inner, 1);
        0
    });
    exits(pid, 0);
}

unsafe fn death_signals_cross() {
    if !root() {
        return;
    }
    let (r, w) = pipe_pair();
    let (up, ready) = pipe_pair();
    let parent = spawn(|| {
        spawn_into(NEWPID, || {
            ok(prctl(PR_SET_PDEATHSIG, SIGKILL));
            put(ready, b"x");
            loop {
                pause();
            }
        });
        get_all(up, 1);
        0
    });
    close(w);
    exits(parent, 0);
    let mut b = 0u8;
    is(read(r, (&raw mut b).cast(), 1), 0);
}

unsafe fn reboot_ends_it() {
    if !root() {
        return;
    }
    for (cmd, sig) in [(RB_AUTOBOOT, SIGHUP), (RB_POWER_OFF, SIGINT)] {
        let pid = spawn_into(NEWPID, || {
            let child = spawn(|| {
                // Certainly in a namespace of its own: nothing else is to be restarted.
                if getpid() != 2 || getppid() != 1 || status_line("self", "NSpid").len() < 2 {
                    return 1;
                }
                syscall(SYS_reboot, 0xfee1_deadu32, 672_274_793, cmd as u32, 0);
                1
            });
            exits(child, 0);
            loop {
                pause();
            }
        });
        dies(pid, sig);
    }
}

unsafe fn many_namespaces() {
    if !root() {
        return;
    }
    for _ in 0..50 {
        exits(spawn_into(NEWPID, || getpid()), 1);
    }
}

unsafe fn waits_by_number() {
    if !root() {
        return;
    }
    as_init(|| {
        let a = spawn(|| 1);
        let b = spawn_into(NEWPID, || 2);
        assert_eq!((a, b), (2, 3));
        let mut info: siginfo_t = zeroed();
        ok(waitid(P_PID, b as u32, &mut info, WEXITED));
        assert_eq!((info.si_pid(), info.si_status()), (b, 2));
        fails(waitpid(1, std::ptr::null_mut(), 0), ECHILD);
        fails(waitpid(999, std::ptr::null_mut(), 0), ECHILD);
        exits(a, 1);
        // A number of outside is not one of here.
        fails(syscall(SYS_sched_getscheduler, 999), ESRCH);
        is(syscall(SYS_sched_getscheduler, 1), 0);
        fails(getpgid(999), ESRCH);
        let mut l: rlimit = zeroed();
        ok(prlimit(1, RLIMIT_NOFILE, std::ptr::null(), &mut l));
        fails(prlimit(999, RLIMIT_NOFILE, std::ptr::null(), &mut l), ESRCH);
        ok(getpriority(PRIO_PROCESS, 1));
    });
}

unsafe fn terminals() {
    if !root() {
        return;
    }
    as_init(|| {
        ok(setsid());
        let m = ok(posix_openpt(O_RDWR | O_NOCTTY));
        ok(grantpt(m));
        ok(unlockpt(m));
        let s = ok(open(ptsname(m), O_RDWR));
        let mut v = 0i32;
        ok(ioctl(s, TIOCGSID, &mut v));
        assert_eq!(v, 1);
        ok(ioctl(s, TIOCGPGRP, &mut v));
        assert_eq!(v, 1);
        let child = spawn(|| loop {
            pause();
        });
        ok(setpgid(child, child));
        signal(SIGTTOU, SIG_IGN);
        fails(ioctl(s, TIOCSPGRP, &777), ESRCH);
        ok(ioctl(s, TIOCSPGRP, &child));
        is(tcgetpgrp(s), child.into());
        put(m, b"\x03");
        dies(child, SIGINT);
    });
}

unsafe fn its_end_reaps_clones() {
    if !root() {
        return;
    }
    // A child that sends another signal, or none, when it ends.
    let pid = spawn_into(NEWPID, || {
        for sig in [0, SIGUSR1] {
            if ok(syscall(SYS_clone, sig, 0, 0, 0, 0)) == 0 {
                loop {
                    pause();
                }
            }
        }
        signal(SIGUSR1, SIG_IGN);
        4
    });
    exits(pid, 4);
}

unsafe fn its_last_thread() {
    if !root() {
        return;
    }
    // Process 1 lives as long as one of its threads, and ends all with the last.
    let (r, w) = pipe_pair();
    let pid = spawn_into(NEWPID, || {
        let pid = spawn_into(NEWPID, || {
            spawn(|| loop {
                pause();
            });
            std::thread::spawn(move || {
                // After the leader.
                std::thread::sleep(std::time::Duration::from_millis(50));
                assert_eq!(getpid(), 1);
                ok(kill(2, 0));
                put(w, b"x");
                syscall(SYS_exit, 0);
            });
            syscall(SYS_exit, 0);
            1
        });
        exits(pid, 0);
        0
    });
    get_all(r, 1);
    exits(pid, 0);
}

unsafe fn storm() {
    if !root() {
        return;
    }
    // Namespaces end while processes and threads are made in them.
    for round in 0..12u64 {
        let (r, w) = pipe_pair();
        let pid = spawn_into(NEWPID, || {
            for _ in 0..4 {
                spawn(|| loop {
                    let inner = syscall(SYS_clone, if round % 2 == 0 { NEWPID } else { 0 } | SIGCHLD, 0, 0, 0, 0);
                    match inner {
                        0 => {
                            syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
                            let t = std::thread::Builder::new().spawn(|| ());
                            t.map(|t| t.join()).ok();
                            _exit(0)
                        }
                        -1 => _exit(1),
                        _ => {
                            waitpid(inner as pid_t, std::ptr::null_mut(), WNOHANG);
                        }
                    }
                });
            }
            put(w, b"x");
            loop {
                pause();
            }
        });
        close(w);
        get_all(r, 1);
        std::thread::sleep(std::time::Duration::from_millis(5 + round));
        ok(kill(pid, SIGKILL));
        dies(pid, SIGKILL);
        // Nothing is left that has the pipe.
        let mut b = 0u8;
        is(read(r, (&raw mut b).cast(), 1), 0);
    }
}
