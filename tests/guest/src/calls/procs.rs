//! Processes, scheduling, system names, and privileged calls.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    ids,
    priorities,
    policies,
    affinity,
    affinity_holds,
    scheduling_of_zombies,
    io_priorities,
    names,
    for_root_only,
    signals_with_data,
    memory,
    filters,
    filters_see_yields,
    misc
];

unsafe fn ids() {
    let (mut a, mut b, mut c) = (0u32, 0u32, 0u32);
    zero(syscall(SYS_getresuid, &mut a, &mut b, &mut c) as i32);
    zero(syscall(SYS_getresgid, &mut a, &mut b, &mut c) as i32);
    fails(syscall(SYS_getresuid, BAD, &mut b, &mut c), EFAULT);
    fails(syscall(SYS_getresgid, &mut a, &mut b, BAD), EFAULT);
    if root() {
        in_child(|| {
            become_nobody();
            fails(setregid(0, 0), EPERM);
            fails(setresgid(0, 0, 0), EPERM);
            fails(setresuid(0, 0, 0), EPERM);
            zero(setregid(65534, 65534));
        });
    }
}

unsafe fn priorities() {
    in_child(|| {
        // The system call returns 20 minus the nice value.
        is(syscall(SYS_getpriority, PRIO_PROCESS, 0), 20);
        zero(syscall(SYS_setpriority, PRIO_PROCESS, 0, 5) as i32);
        is(syscall(SYS_getpriority, PRIO_PROCESS, 0), 15);
        fails(syscall(SYS_getpriority, 9, 0), EINVAL);
        fails(syscall(SYS_setpriority, 9, 0, 0), EINVAL);
        fails(syscall(SYS_getpriority, PRIO_PROCESS, 0x3fff_ffff), ESRCH);
        fails(syscall(SYS_setpriority, PRIO_PROCESS, 0x3fff_ffff, 1), ESRCH);
    });
}

unsafe fn policies() {
    in_child(|| {
        let mut p: sched_param = zeroed();
        let nobody = 0x3fff_ffff;
        is(syscall(SYS_sched_getscheduler, 0), SCHED_OTHER as i64);
        zero(syscall(SYS_sched_getparam, 0, &mut p) as i32);
        zero(syscall(SYS_sched_setparam, 0, &p) as i32);
        zero(syscall(SYS_sched_setscheduler, 0, SCHED_BATCH, &p) as i32);
        is(syscall(SYS_sched_getscheduler, 0), SCHED_BATCH as i64);
        fails(syscall(SYS_sched_getscheduler, nobody), ESRCH);
        fails(syscall(SYS_sched_getscheduler, -1), EINVAL);
        fails(syscall(SYS_sched_getparam, 0, 0), EINVAL);
        fails(syscall(SYS_sched_setparam, nobody, &p), ESRCH);
        fails(syscall(SYS_sched_setscheduler, 0, 99, &p), EINVAL);
        p.sched_priority = 5;
        fails(syscall(SYS_sched_setparam, 0, &p), EINVAL);
        fails(syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, &p), EINVAL);
        for (policy, least, most) in [(SCHED_OTHER, 0, 0), (SCHED_FIFO, 1, 99), (SCHED_RR, 1, 99)] {
            is(syscall(SYS_sched_get_priority_min, policy), least);
            is(syscall(SYS_sched_get_priority_max, policy), most);
        }
        fails(syscall(SYS_sched_get_priority_min, 99), EINVAL);
        fails(syscall(SYS_sched_get_priority_max, 99), EINVAL);
        let mut t: timespec = zeroed();
        zero(syscall(SYS_sched_rr_get_interval, 0, &mut t) as i32);
        fails(syscall(SYS_sched_rr_get_interval, nobody, &mut t), ESRCH);
        fails(syscall(SYS_sched_rr_get_interval, -1, &mut t), EINVAL);
        // size, policy, flags, nice, priority, runtime, deadline, period
        let mut attr = [0u32; 12];
        zero(syscall(SYS_sched_getattr, 0, attr.as_mut_ptr(), 48, 0) as i32);
        assert_eq!((attr[0], attr[1]), (48, SCHED_BATCH as u32));
        attr[4] = 3;
        zero(syscall(SYS_sched_setattr, 0, attr.as_mut_ptr(), 0) as i32);
        is(syscall(SYS_getpriority, PRIO_PROCESS, 0), 17);
        fails(syscall(SYS_sched_getattr, 0, attr.as_mut_ptr(), 8, 0), EINVAL);
        fails(syscall(SYS_sched_setattr, 0, attr.as_mut_ptr(), 1), EINVAL);
        attr[1] = 99;
        fails(syscall(SYS_sched_setattr, 0, attr.as_mut_ptr(), 0), EINVAL);
    });
}

unsafe fn affinity() {
    in_child(|| {
        let mut set = [0u64; 16];
        let n = ok(syscall(SYS_sched_getaffinity, 0, 128, set.as_mut_ptr()));
        assert!(n >= 8 && set[0] != 0);
        zero(syscall(SYS_sched_setaffinity, 0, n, set.as_ptr()) as i32);
        fails(syscall(SYS_sched_getaffinity, 0, 1, set.as_mut_ptr()), EINVAL);
        fails(syscall(SYS_sched_getaffinity, 0x3fff_ffff, 128, set.as_mut_ptr()), ESRCH);
        fails(syscall(SYS_sched_setaffinity, 0, 128, [0u64; 16].as_ptr()), EINVAL);
        fails(syscall(SYS_sched_setaffinity, 0x3fff_ffff, 128, set.as_ptr()), ESRCH);
    });
}

unsafe fn cpu() -> u32 {
    let mut cpu = 0u32;
    zero(syscall(SYS_getcpu, &mut cpu, 0, 0) as i32);
    cpu
}

/// A thread runs on the CPUs of its mask, and so do its children, through fork and execve.
unsafe fn affinity_holds() {
    let mut all = [0u64; 16];
    ok(syscall(SYS_sched_getaffinity, 0, 128, all.as_mut_ptr()));
    for one in (0..1024).filter(|c| all[c / 64] >> (c % 64) & 1 != 0).take(4) {
        in_child(|| {
            let mut set = [0u64; 16];
            set[one / 64] |= 1 << (one % 64);
            zero(syscall(SYS_sched_setaffinity, 0, 128, set.as_ptr()) as i32);
            for _ in 0..50 {
                assert_eq!(cpu(), one as u32);
                sched_yield();
            }
            in_child(|| {
                assert_eq!(cpu(), one as u32);
                std::thread::spawn(move || unsafe { assert_eq!(cpu(), one as u32) }).join().unwrap();
            });
            let shown = std::process::Command::new("/bin/sh")
                .args(["-c", "cut -d' ' -f39 /proc/self/stat; grep Cpus_allowed_list /proc/self/status"])
                .output()
                .unwrap();
            assert!(String::from_utf8(shown.stdout).unwrap().ends_with(&format!("list:\t{one}\n")));
            // The mask of another thread is set while it runs.
            let (r, w) = pipe_pair();
            let pid = spawn(|| {
                put(w, b"x");
                loop {
                    if cpu() != one as u32 {
                        return 7;
                    }
                }
            });
            get(r, 1);
            let other = (0..1024).find(|c| *c != one && all[c / 64] >> (c % 64) & 1 != 0);
            let mut set = [0u64; 16];
            if let Some(other) = other {
                set[other / 64] |= 1 << (other % 64);
                zero(syscall(SYS_sched_setaffinity, pid, 128, set.as_ptr()) as i32);
                exits(pid, 7);
            } else {
                ok(kill(pid, SIGKILL));
                dies(pid, SIGKILL);
            }
        });
    }
}

/// The scheduling of a zombie can be queried.
unsafe fn scheduling_of_zombies() {
    let pid = spawn(|| {
        setpriority(PRIO_PROCESS as _, 0, 3);
        0
    });
    eventually("it is a zombie", || state_of(pid) == 'Z');
    let mut p: sched_param = zeroed();
    p.sched_priority = 9;
    is(syscall(SYS_sched_getscheduler, pid), SCHED_OTHER as i64);
    zero(syscall(SYS_sched_getparam, pid, &mut p) as i32);
    assert_eq!(p.sched_priority, 0);
    is(syscall(SYS_getpriority, PRIO_PROCESS, pid), 17);
    ok(syscall(SYS_sched_getaffinity, pid, 128, [0u64; 16].as_mut_ptr()));
    let mut limit: rlimit = zeroed();
    zero(prlimit(pid, RLIMIT_NOFILE, std::ptr::null(), &mut limit));
    assert_ne!(limit.rlim_max, 0);
    exits(pid, 0);
    fails(syscall(SYS_sched_getscheduler, pid), ESRCH);
}

unsafe fn io_priorities() {
    in_child(|| {
        ok(syscall(SYS_ioprio_get, 1, 0));
        zero(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6) as i32);
        is(syscall(SYS_ioprio_get, 1, 0), 2 << 13 | 6);
        fails(syscall(SYS_ioprio_get, 9, 0), EINVAL);
        fails(syscall(SYS_ioprio_set, 1, 0, 7 << 13), EINVAL);
    });
}

unsafe fn names() {
    let mut u: utsname = zeroed();
    zero(uname(&mut u));
    fails(syscall(SYS_uname, BAD), EFAULT);
    if !root() {
        return;
    }
    in_child(|| {
        // On bare Linux only in a UTS namespace of its own.
        if unshare(CLONE_NEWUTS) == -1 && std::path::Path::new("/proc/1/stat").exists() {
            return;
        }
        zero(sethostname(c"other".as_ptr(), 5));
        zero(setdomainname(c"domain".as_ptr(), 6));
        zero(uname(&mut u));
        assert_eq!(std::ffi::CStr::from_ptr(u.nodename.as_ptr()).to_bytes(), b"other");
        assert_eq!(std::ffi::CStr::from_ptr(u.domainname.as_ptr()).to_bytes(), b"domain");
        fails(sethostname(c"x".as_ptr(), 65), EINVAL);
        fails(setdomainname(c"x".as_ptr(), 65), EINVAL);
        become_nobody();
        fails(sethostname(c"x".as_ptr(), 1), EPERM);
        fails(setdomainname(c"x".as_ptr(), 1), EPERM);
    });
}

unsafe fn for_root_only() {
    if !root() {
        return;
    }
    in_child(|| {
        become_nobody();
        fails(syscall(SYS_vhangup), EPERM);
        fails(syscall(SYS_reboot, 0, 0, 0, 0), EPERM);
        fails(syscall(SYS_syslog, 5, 0, 0), EPERM);
        fails(syscall(SYS_mlockall, 0), EINVAL);
    });
    let mut b = [0u8; 64];
    let r = syscall(SYS_syslog, 10, 0, 0);
    assert!(r >= 0 || errno() == EPERM, "size of the log: {}", name_of(errno()));
    fails(syscall(SYS_syslog, 99, b.as_mut_ptr(), 64), EINVAL);
    in_child(|| {
        zero(syscall(SYS_mlockall, MCL_FUTURE) as i32);
        zero(syscall(SYS_munlockall) as i32);
    });
}

unsafe fn signals_with_data() {
    on(SIGUSR1, nothing as *const () as usize, 0);
    let mut info: siginfo_t = zeroed();
    info.si_code = -1;
    zero(syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGUSR1, &info) as i32);
    fails(syscall(SYS_rt_tgsigqueueinfo, getpid(), 0x3fff_ffff, SIGUSR1, &info), ESRCH);
    fails(syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), 99, &info), EINVAL);
    fails(syscall(SYS_rt_tgsigqueueinfo, -1, gettid(), SIGUSR1, &info), EINVAL);
}

unsafe fn memory() {
    let mut b = [1u8; 8];
    let here = iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 8 };
    let bad = iovec { iov_base: BAD, iov_len: 8 };
    is(process_vm_writev(getpid(), &here, 1, &here, 1, 0), 8);
    fails(process_vm_writev(getpid(), &here, 1, &bad, 1, 0), EFAULT);
    fails(process_vm_writev(0x3fff_ffff, &here, 1, &here, 1, 0), ESRCH);
    fails(process_vm_writev(getpid(), &here, 1, &here, 1, 1), EINVAL);
    is(syscall(SYS_getrandom, b.as_mut_ptr(), 8, 0), 8);
    fails(syscall(SYS_getrandom, b.as_mut_ptr(), 8, 0x100), EINVAL);
    fails(syscall(SYS_getrandom, BAD, 8, 0), EFAULT);
    let mut fs = 0u64;
    zero(syscall(SYS_arch_prctl, 0x1003, &mut fs) as i32);
    assert_ne!(fs, 0);
    fails(syscall(SYS_arch_prctl, 0x7fff, &mut fs), EINVAL);
    fails(syscall(SYS_arch_prctl, 0x1003, BAD), EFAULT);
    fails(syscall(SYS_arch_prctl, 0x1002, u64::MAX), EPERM);
}

unsafe fn filters() {
    // SECCOMP_GET_ACTION_AVAIL: whether an action is known.
    let mut action = 0x7fff_0000u32;
    zero(syscall(SYS_seccomp, 2, 0, &mut action) as i32);
    action = 0x1234_5678;
    fails(syscall(SYS_seccomp, 2, 0, &mut action), EOPNOTSUPP);
    fails(syscall(SYS_seccomp, 99, 0, &mut action), EINVAL);
    in_child(|| {
        let code = [sock_filter { code: 6, jt: 0, jf: 0, k: 0x7fff_0000 }];
        let prog = sock_fprog { len: 1, filter: code.as_ptr().cast_mut() };
        zero(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        zero(syscall(SYS_seccomp, 1, 0, &prog) as i32);
        is(prctl(PR_GET_SECCOMP), 2);
    });
}

/// Sets a filter that allows all calls but `sched_yield`, which gets `action`.
unsafe fn refuse_yield(action: u32, flags: u32) {
    let code = [
        sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
        sock_filter { code: 0x15, jt: 0, jf: 1, k: SYS_sched_yield as u32 },
        sock_filter { code: 6, jt: 0, jf: 0, k: action },
        sock_filter { code: 6, jt: 0, jf: 0, k: 0x7fff_0000 },
    ];
    let prog = sock_fprog { len: 4, filter: code.as_ptr().cast_mut() };
    zero(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    zero(syscall(SYS_seccomp, 1, flags, &prog) as i32);
}

/// A filter sees calls that the platform answers locally, too: in the thread that set it and its children.
unsafe fn filters_see_yields() {
    const ERRNO: u32 = 0x0005_0000 | EXDEV as u32;
    const TRAP: u32 = 0x0003_0000;
    const KILL: u32 = 0x8000_0000;
    is(sched_yield(), 0);
    in_child(|| {
        refuse_yield(ERRNO, 0);
        fails(sched_yield(), EXDEV);
        in_child(|| fails(sched_yield(), EXDEV));
        let t = std::thread::spawn(|| unsafe { fails(sched_yield(), EXDEV) });
        t.join().unwrap();
        let pid = spawn(|| {
            let (me, args) = (c("/proc/self/exe"), [c("guest-tests"), c("helper"), c("yield")]);
            let args = [args[0].as_ptr(), args[1].as_ptr(), args[2].as_ptr(), std::ptr::null()];
            execv(me.as_ptr(), args.as_ptr());
            99
        });
        exits(pid, EXDEV);
        fails(sched_yield(), EXDEV);
    });
    // With TSYNC in all threads at once, including existing ones.
    in_child(|| {
        let (told, tell) = std::sync::mpsc::channel();
        let t = std::thread::spawn(move || unsafe {
            tell.recv().unwrap();
            fails(sched_yield(), EXDEV);
        });
        refuse_yield(ERRNO, 1);
        told.send(()).unwrap();
        t.join().unwrap();
        fails(sched_yield(), EXDEV);
    });
    // In one thread only: the others are unaffected.
    in_child(|| {
        let t = std::thread::spawn(|| unsafe {
            refuse_yield(ERRNO, 0);
            fails(sched_yield(), EXDEV);
        });
        t.join().unwrap();
        is(sched_yield(), 0);
    });
    let pid = spawn(|| {
        refuse_yield(KILL, 0);
        sched_yield();
        0
    });
    dies(pid, SIGSYS);
    let pid = spawn(|| {
        extern "C" fn on_sys(_: i32) {
            unsafe { _exit(5) }
        }
        on(SIGSYS, on_sys as *const () as usize, 0);
        refuse_yield(TRAP, 0);
        sched_yield();
        0
    });
    exits(pid, 5);
}

unsafe fn misc() {
    let t = Tmp::new();
    let fd = t.open("f");
    fails(syscall(SYS_setns, -1, 0), EBADF);
    fails(syscall(SYS_setns, fd, 0), EINVAL);
    let l = rlimit { rlim_cur: 2, rlim_max: 1 };
    fails(syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, &l, 0), EINVAL);
    fails(syscall(SYS_prlimit64, 0x3fff_ffff, RLIMIT_NOFILE, 0, 0), ESRCH);
    fails(syscall(SYS_prlimit64, 0, 99, 0, 0), EINVAL);
}
