//! Access of users to other users' processes, terminals and unnamed files.

use super::rights::{exec, set_user_id};
use crate::t::*;
use libc::*;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

pub const CASES: &[crate::Case] = cases![
    filter_for_all_threads_during_execve,
    filters_of_several_threads,
    attributes_of_nameless_files,
    mq_notify_before_execve,
    scheduling_of_privileged_processes,
    personality_of_other_programs,
    signals_to_threads_of_other_users,
    signals_to_zombies,
    own_descriptors_as_another_user,
    write_only_terminal,
    foreground_set_at_the_master,
    console_of_others,
];

unsafe fn become_user(id: u32) {
    ok(setgroups(0, null()));
    ok(setresgid(id, id, id));
    ok(setresuid(id, id, id));
}

/// Runs `f` as a user without privileges, in a child; assertions in it count.
#[track_caller]
unsafe fn as_user(id: u32, f: impl FnOnce()) {
    in_child(|| {
        become_user(id);
        f();
    });
}

/// Sets a filter that allows every call.
unsafe fn filter(flags: u64) -> i64 {
    let mut f = [sock_filter { code: 6, jt: 0, jf: 0, k: SECCOMP_RET_ALLOW }];
    let prog = sock_fprog { len: 1, filter: f.as_mut_ptr() };
    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &prog)
}

unsafe fn filter_for_all_threads_during_execve() {
    let t = Tmp::new();
    let Some(p) = set_user_id(&t) else { return };
    for round in 0..60 {
        let pid = spawn(|| {
            become_nobody();
            let (go, ready) = (&*Box::leak(Box::new(AtomicI32::new(0))), &*Box::leak(Box::new(AtomicI32::new(0))));
            std::thread::spawn(move || {
                ok(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
                ready.store(1, SeqCst);
                while go.load(SeqCst) == 0 {
                    std::hint::spin_loop();
                }
                for i in 0..round * 6000 {
                    std::hint::black_box(i);
                }
                filter(SECCOMP_FILTER_FLAG_TSYNC);
                loop {
                    pause();
                }
            });
            while ready.load(SeqCst) == 0 {
                sched_yield();
            }
            go.store(1, SeqCst);
            exec(&p, &["confined"])
        });
        let st = reap(pid);
        assert!(WIFEXITED(st) && WEXITSTATUS(st) < 3, "another user's rights with its caller's filter: {st:#x}");
    }
}

/// A filter for all threads while other threads create threads: the new threads have it too.
unsafe fn filters_of_several_threads() {
    in_child(|| {
        ok(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        let made: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    for _ in 0..20 {
                        std::thread::spawn(|| ()).join().unwrap();
                    }
                    std::thread::spawn(|| loop {
                        if prctl(PR_GET_SECCOMP) == 2 && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 {
                            return;
                        }
                        sched_yield();
                    })
                    .join()
                    .unwrap();
                })
            })
            .collect();
        for _ in 0..20 {
            is(filter(SECCOMP_FILTER_FLAG_TSYNC), 0);
        }
        made.into_iter().for_each(|t| t.join().unwrap());
    });
}

unsafe fn attributes_of_nameless_files() {
    if !root() {
        return;
    }
    let (r, w) = pipe_pair();
    let mut s = [0; 2];
    ok(socketpair(AF_UNIX, SOCK_STREAM, 0, s.as_mut_ptr()));
    let netlink = ok(socket(AF_NETLINK, SOCK_RAW, 0));
    let inet = ok(socket(AF_INET, SOCK_DGRAM, 0));
    let name = c(&format!("/guest-tests-{}", getpid()));
    let q = ok(mq_open(name.as_ptr(), O_CREAT | O_RDWR, 0o600, null_mut::<c_void>()));
    ok(mq_unlink(name.as_ptr()));
    let owned = [r, w, s[0], netlink, inet, q];
    let shared = [ok(eventfd(0, 0)), ok(epoll_create1(0)), ok(timerfd_create(CLOCK_MONOTONIC, 0)), ok(inotify_init())];
    let times = [timespec { tv_sec: 1, tv_nsec: 0 }; 2];
    as_user(1000, || {
        for fd in owned {
            fails(fchmod(fd, 0o777), EPERM);
            fails(fchown(fd, 1000, u32::MAX), EPERM);
            fails(fchown(fd, u32::MAX, 1000), EPERM);
            fails(futimens(fd, times.as_ptr()), EPERM);
        }
        for fd in shared {
            fails(fchmod(fd, 0o777), EOPNOTSUPP);
            fails(fchown(fd, 1000, u32::MAX), EOPNOTSUPP);
            fails(futimens(fd, times.as_ptr()), EOPNOTSUPP);
        }
        for fd in [r, q, shared[0]] {
            fails(futimens(fd, null()), EACCES);
        }
        ok(futimens(s[0], null()));
        // A user may change the mode and group of a pipe that it created.
        let (r, _w) = pipe_pair();
        ok(fchmod(r, 0o640));
        assert_eq!(fstat_of(r).st_mode & 0o7777, 0o640);
        fails(fchown(r, 0, u32::MAX), EPERM);
        ok(fchown(r, 1000, 1000));
    });
    for fd in owned {
        ok(fchown(fd, 1000, 1000));
        ok(fchmod(fd, 0o604));
        let st = fstat_of(fd);
        assert_eq!((st.st_uid, st.st_gid, st.st_mode & 0o7777), (1000, 1000, 0o604));
    }
    fails(fchmod(shared[0], 0o777), EOPNOTSUPP);
}

/// The signal of mq_notify(3) goes to the program that asked for it, not to the one that the process executed later.
unsafe fn mq_notify_before_execve() {
    let t = Tmp::new();
    let Some(p) = set_user_id(&t) else { return };
    let name = c(&format!("/guest-tests-{}", getpid()));
    for (path, ends) in [(p.as_str(), false), ("", true)] {
        let ((r, w), (tell, told)) = (pipe_pair(), pipe_pair());
        let q = ok(mq_open(name.as_ptr(), O_CREAT | O_RDWR, 0o666, null_mut::<c_void>()));
        ok(mq_unlink(name.as_ptr()));
        let pid = spawn(|| {
            become_nobody();
            ok(close(told));
            ok(dup2(tell, 0));
            let mut e: sigevent = zeroed();
            (e.sigev_notify, e.sigev_signo) = (SIGEV_SIGNAL, SIGUSR1);
            ok(mq_notify(q, &e));
            ok(fcntl(q, F_SETFD, 0));
            ok(dup2(w, 1));
            if path.is_empty() {
                println!("ready");
                loop {
                    pause();
                }
            }
            exec(path, &["ready"])
        });
        assert_eq!(get(r, 99), b"ready\n");
        ok(mq_send(q, c"x".as_ptr(), 1, 0));
        ok(close(told));
        if ends {
            dies(pid, SIGUSR1);
        } else {
            exits(pid, 0);
        }
    }
}

unsafe fn scheduling_of_privileged_processes() {
    if !root() {
        return;
    }
    let (r, w) = pipe_pair();
    let able = spawn(|| {
        ok(setgroups(0, null()));
        ok(setresgid(1000, 1000, 1000));
        ok(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
        ok(setresuid(1000, 1000, 1000));
        put(w, b"x");
        loop {
            pause();
        }
    });
    get(r, 1);
    let plain = spawn(|| {
        become_user(1000);
        put(w, b"x");
        loop {
            pause();
        }
    });
    get(r, 1);
    as_user(1000, || {
        let mut set: cpu_set_t = zeroed();
        ok(sched_getaffinity(0, size_of::<cpu_set_t>(), &mut set));
        let param = sched_param { sched_priority: 0 };
        let calls = |pid: pid_t| {
            [
                sched_setaffinity(pid, size_of::<cpu_set_t>(), &set) as i64,
                sched_setscheduler(pid, SCHED_BATCH, &param) as i64,
                setpriority(PRIO_PROCESS, pid as u32, 5) as i64,
                syscall(SYS_ioprio_set, 1, pid, 2 << 13 | 5),
            ]
        };
        for r in calls(plain) {
            ok(r);
        }
        assert_eq!(calls(able), [-1; 4]);
        fails(sched_setaffinity(able, size_of::<cpu_set_t>(), &set), EPERM);
        fails(setpriority(PRIO_PROCESS, able as u32, 5), EPERM);
        fails(syscall(SYS_ioprio_set, 1, able, 2 << 13 | 5), EPERM);
    });
    for pid in [able, plain] {
        ok(kill(pid, SIGKILL));
        reap(pid);
    }
}

unsafe fn personality_of_other_programs() {
    let t = Tmp::new();
    let bits = ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT | MMAP_PAGE_ZERO;
    const READ_IMPLIES_EXEC: i32 = 0x40_0000;
    let keeps = |path: &str| -> i32 {
        let (r, w) = pipe_pair();
        let pid = spawn(|| {
            if geteuid() == 0 {
                become_nobody();
            }
            ok(personality((bits | READ_IMPLIES_EXEC) as c_ulong));
            ok(dup2(w, 1));
            exec(path, &["personality"])
        });
        exits(pid, 0);
        String::from_utf8(get(r, 99)).unwrap().trim().parse().unwrap()
    };
    let plain = t.s("plain");
    std::fs::copy("/proc/self/exe", &plain).unwrap();
    ok(chmod(t.p("").as_ptr(), 0o755));
    ok(chmod(c(&plain).as_ptr(), 0o755));
    assert_eq!(keeps(&plain), bits);
    if let Some(p) = set_user_id(&t) {
        assert_eq!(keeps(&p), 0);
    }
}

static THREAD: AtomicI32 = AtomicI32::new(0);

/// A process whose first thread has one user and whose second has another; signals of number 0 test the permission.
unsafe fn signals_to_threads_of_other_users() {
    if !root() {
        return;
    }
    for first_is_ours in [false, true] {
        let (r, w) = pipe_pair();
        let pid = spawn(|| {
            THREAD.store(0, SeqCst);
            std::thread::spawn(move || {
                if !first_is_ours {
                    ok(syscall(SYS_setresuid, 1000, 1000, 1000));
                }
                THREAD.store(gettid(), SeqCst);
                loop {
                    pause();
                }
            });
            eventually("the thread runs", || THREAD.load(SeqCst) != 0);
            if first_is_ours {
                ok(syscall(SYS_setresuid, 1000, 1000, 1000));
            }
            put(w, &THREAD.load(SeqCst).to_ne_bytes());
            loop {
                pause();
            }
        });
        let second = i32::from_ne_bytes(get_all(r, 4).try_into().unwrap());
        as_user(1000, || {
            let may = |r: i64, yes: bool| if yes { is(r, 0) } else { fails(r, EPERM) };
            may(kill(pid, 0).into(), first_is_ours);
            may(kill(second, 0).into(), !first_is_ours);
            may(syscall(SYS_tkill, pid, 0), first_is_ours);
            may(syscall(SYS_tkill, second, 0), !first_is_ours);
            may(syscall(SYS_tgkill, pid, second, 0), !first_is_ours);
        });
        ok(kill(pid, SIGKILL));
        reap(pid);
    }
}

unsafe fn signals_to_zombies() {
    if !root() {
        return;
    }
    let pid = spawn(|| 0);
    eventually("it ends", || state_of(pid) == 'Z');
    let fd = ok(syscall(SYS_pidfd_open, pid, 0));
    as_user(1000, || {
        let mut info: siginfo_t = zeroed();
        info.si_code = SI_QUEUE;
        fails(kill(pid, 0), EPERM);
        fails(kill(pid, SIGTERM), EPERM);
        fails(syscall(SYS_rt_sigqueueinfo, pid, 0, &info), EPERM);
        fails(syscall(SYS_pidfd_send_signal, fd, 0, 0, 0), EPERM);
    });
    ok(kill(pid, 0));
    exits(pid, 0);
}

unsafe fn own_descriptors_as_another_user() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let (open_to_all, closed) = (t.open("all"), t.open("closed"));
    ok(fchmod(open_to_all, 0o666));
    ok(fchmod(closed, 0o600));
    as_user(1000, || {
        let own = |fd: i32| open(c(&format!("/proc/self/fd/{fd}")).as_ptr(), O_RDWR);
        ok(own(open_to_all));
        fails(own(closed), EACCES);
        let dir = ok(open(c"/proc/self/fd".as_ptr(), O_RDONLY | O_DIRECTORY));
        ok(close(dir));
        // Another process's descriptors are not accessible.
        fails(open(c(&format!("/proc/{}/fd/{open_to_all}", getppid())).as_ptr(), O_RDWR), EACCES);
    });
}

/// The master of a new pseudo terminal, and the name of the slave.
unsafe fn terminal() -> (i32, std::ffi::CString) {
    let m = ok(posix_openpt(O_RDWR | O_NOCTTY));
    ok(grantpt(m));
    ok(unlockpt(m));
    let mut n = [0; 64];
    zero(ptsname_r(m, n.as_mut_ptr(), 64));
    (m, std::ffi::CStr::from_ptr(n.as_ptr()).to_owned())
}

unsafe fn write_only_terminal() {
    if !root() {
        return;
    }
    let (m, name) = terminal();
    ok(chmod(name.as_ptr(), 0o622));
    as_user(1000, || {
        ok(setsid());
        fails(open(name.as_ptr(), O_RDONLY), EACCES);
        let w = ok(open(name.as_ptr(), O_WRONLY));
        fails(open(c"/dev/tty".as_ptr(), O_RDWR), ENXIO);
        fails(ioctl(w, TIOCSCTTY, 0), EPERM);
        fails(open(c"/dev/tty".as_ptr(), O_RDWR), ENXIO);
    });
    // Root's TIOCSCTTY takes a terminal that is open write-only; opening it write-only does not.
    in_child(|| {
        ok(setsid());
        let w = ok(open(name.as_ptr(), O_WRONLY));
        fails(open(c"/dev/tty".as_ptr(), O_RDWR), ENXIO);
        ok(ioctl(w, TIOCSCTTY, 0));
        ok(open(c"/dev/tty".as_ptr(), O_RDWR));
    });
    ok(close(m));
}

unsafe fn foreground_set_at_the_master() {
    let (m, name) = terminal();
    let (r, w) = pipe_pair();
    let leader = spawn(|| {
        ok(setsid());
        let s = ok(open(name.as_ptr(), O_RDWR));
        let member = spawn(|| {
            ok(setpgid(0, 0));
            loop {
                pause();
            }
        });
        eventually("it has a group", || getpgid(member) == member);
        // A group of the same session.
        ok(tcsetpgrp(m, member));
        on(SIGTTOU, SIG_IGN, 0);
        ok(tcsetpgrp(s, getpgrp()));
        put(w, &member.to_ne_bytes());
        loop {
            pause();
        }
    });
    let member = i32::from_ne_bytes(get_all(r, 4).try_into().unwrap());
    fails(ioctl(m, TIOCSPGRP, &member), ENOTTY);
    is(tcgetpgrp(m), leader.into());
    for pid in [member, leader] {
        ok(kill(pid, SIGKILL));
    }
    reap(leader);
    ok(close(m));
}

unsafe fn console_of_others() {
    let mut st: stat = zeroed();
    if stat(c"/dev/console".as_ptr(), &mut st) == 0 {
        assert_eq!(st.st_mode & 0o057, 0, "{:o}", st.st_mode);
    }
}
