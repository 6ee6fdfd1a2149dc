//! clone(2) and clone3 with their flags, unshare.

use crate::t::*;
use libc::*;
use std::ffi::c_void;

pub const CASES: &[crate::Case] = cases![
    vm_and_files,
    files_flag_off,
    fs_flag,
    sighand_flag,
    parent_flag,
    tids_are_stored,
    exit_signal,
    no_exit_signal,
    flag_errors,
    clone3_fork,
    clone3_errors,
    pidfd_flag,
    clear_sighand,
    unshare_files,
    unshare_fs,
    unshare_errors,
    settls,
];

const STACK: usize = 64 * 1024;

unsafe fn start(f: extern "C" fn(*mut c_void) -> i32, flags: i32, arg: *mut c_void) -> pid_t {
    let stack = anon(STACK, RW);
    clone(f, stack.add(STACK).cast(), flags, arg)
}

unsafe fn vm_and_files() {
    extern "C" fn f(p: *mut c_void) -> i32 {
        unsafe {
            let p = p.cast::<i32>();
            close(*p);
            *p.add(1) = 77;
            chdir(c("/proc").as_ptr());
        }
        4
    }
    let (r, w) = pipe_pair();
    let _ = r;
    let mut m = [w, 0];
    ok(chdir(c("/").as_ptr()));
    let pid = ok(start(f, CLONE_VM | CLONE_FILES | SIGCHLD, m.as_mut_ptr().cast()));
    exits(pid, 4);
    assert_eq!((&raw const m[1]).read_volatile(), 77);
    fails(fcntl(w, F_GETFD), EBADF);
    assert_eq!(std::env::current_dir().unwrap().to_str(), Some("/")); // no CLONE_FS
}

unsafe fn files_flag_off() {
    extern "C" fn f(p: *mut c_void) -> i32 {
        unsafe { close(*p.cast::<i32>()) };
        0
    }
    let (_r, mut w) = pipe_pair();
    exits(ok(start(f, CLONE_VM | SIGCHLD, (&raw mut w).cast())), 0);
    ok(fcntl(w, F_GETFD));
}

unsafe fn fs_flag() {
    extern "C" fn f(_: *mut c_void) -> i32 {
        unsafe {
            chdir(c("/proc").as_ptr());
            umask(0o123);
        }
        0
    }
    ok(chdir(c("/").as_ptr()));
    exits(ok(start(f, CLONE_FS | SIGCHLD, std::ptr::null_mut())), 0);
    assert_eq!(std::env::current_dir().unwrap().to_str(), Some("/proc"));
    assert_eq!(umask(0), 0o123);
}

unsafe fn sighand_flag() {
    extern "C" fn f(_: *mut c_void) -> i32 {
        unsafe { signal(SIGUSR1, SIG_IGN) };
        0
    }
    exits(ok(start(f, CLONE_VM | CLONE_SIGHAND | SIGCHLD, std::ptr::null_mut())), 0);
    let mut a: sigaction = zeroed();
    ok(sigaction(SIGUSR1, std::ptr::null(), &mut a));
    assert_eq!(a.sa_sigaction, SIG_IGN);
}

unsafe fn parent_flag() {
    // A grandchild made with CLONE_PARENT is a child of this process.
    let s = shared(PAGE).cast::<pid_t>();
    let me = getpid();
    in_child(|| {
        let pid = ok(syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0)) as pid_t;
        if pid == 0 {
            _exit(i32::from(getppid() != me));
        }
        *s = pid;
        fails(waitpid(pid, std::ptr::null_mut(), WNOHANG), ECHILD);
    });
    exits(*s, 0);
}

unsafe fn tids_are_stored() {
    let s = shared(PAGE).cast::<pid_t>();
    let p = s.add(1);
    let pid = ok(syscall(SYS_clone, CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | SIGCHLD, 0, s, p, 0)) as pid_t;
    if pid == 0 {
        _exit(i32::from(*p != getpid()));
    }
    assert_eq!(*s, pid);
    exits(pid, 0);
    assert_eq!(*p, pid);
    // CLONE_CHILD_CLEARTID zeroes and wakes when memory is shared.
    extern "C" fn f(_: *mut c_void) -> i32 {
        0
    }
    let mut tid: pid_t = -1;
    let stack = anon(STACK, RW);
    let pid = ok(clone(
        f,
        stack.add(STACK).cast(),
        CLONE_VM | CLONE_CHILD_CLEARTID | SIGCHLD,
        std::ptr::null_mut(),
        std::ptr::null_mut::<c_void>(),
        std::ptr::null_mut::<c_void>(),
        &raw mut tid,
    ));
    exits(pid, 0);
    assert_eq!((&raw const tid).read_volatile(), 0);
}

unsafe fn exit_signal() {
    block(&[SIGUSR1, SIGCHLD]);
    let pid = ok(syscall(SYS_clone, SIGUSR1, 0, 0, 0, 0)) as pid_t;
    if pid == 0 {
        _exit(3);
    }
    let mut i: siginfo_t = zeroed();
    is(sigwaitinfo(&set_of(&[SIGUSR1, SIGCHLD]), &mut i), SIGUSR1.into());
    assert_eq!((i.si_code, i.si_pid(), i.si_status()), (CLD_EXITED, pid, 3));
    // Such a child is found only with __WCLONE or __WALL.
    let mut st = 0;
    fails(waitpid(pid, &mut st, 0), ECHILD);
    is(waitpid(pid, &mut st, __WALL), pid.into());
    assert_eq!(WEXITSTATUS(st), 3);
}

unsafe fn no_exit_signal() {
    let pid = ok(syscall(SYS_clone, 0, 0, 0, 0, 0)) as pid_t;
    if pid == 0 {
        _exit(3);
    }
    let mut st = 0;
    is(waitpid(pid, &mut st, __WCLONE), pid.into());
    assert_eq!(WEXITSTATUS(st), 3);
}

unsafe fn flag_errors() {
    for f in [
        CLONE_SIGHAND,
        CLONE_THREAD,
        CLONE_THREAD | CLONE_SIGHAND,
        CLONE_FS | CLONE_NEWNS,
        CLONE_NEWPID | CLONE_THREAD | CLONE_SIGHAND | CLONE_VM,
        CLONE_PIDFD | CLONE_DETACHED,
    ] {
        let r = syscall(SYS_clone, f | SIGCHLD, 0, 0, 0, 0);
        if r == 0 {
            _exit(0);
        }
        fails(r, EINVAL);
    }
}

#[repr(C)]
#[derive(Default)]
struct Args {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

unsafe fn clone3(a: &Args) -> i64 {
    syscall(SYS_clone3, a, std::mem::size_of::<Args>())
}

unsafe fn clone3_fork() {
    let r = ok(clone3(&Args { exit_signal: SIGCHLD as u64, ..Default::default() }));
    if r == 0 {
        _exit(12);
    }
    exits(r as i32, 12);
    // The first version of the structure is accepted.
    let a = Args { exit_signal: SIGCHLD as u64, ..Default::default() };
    let r = ok(syscall(SYS_clone3, &a, 64usize));
    if r == 0 {
        _exit(13);
    }
    exits(r as i32, 13);
}

unsafe fn clone3_errors() {
    let d = Args::default;
    let sig = SIGCHLD as u64;
    fails(syscall(SYS_clone3, &d(), 8usize), EINVAL);
    fails(syscall(SYS_clone3, &d(), 5000usize), E2BIG);
    fails(syscall(SYS_clone3, BAD, 88usize), EFAULT);
    fails(clone3(&Args { exit_signal: 1000, ..d() }), EINVAL);
    fails(clone3(&Args { flags: CLONE_THREAD as u64, ..d() }), EINVAL);
    fails(clone3(&Args { flags: 1 << 50, exit_signal: sig, ..d() }), EINVAL);
    fails(clone3(&Args { flags: SIGCHLD as u64, ..d() }), EINVAL);
    fails(clone3(&Args { stack: 4096, exit_signal: sig, ..d() }), EINVAL); // no size
    fails(clone3(&Args { stack_size: 4096, exit_signal: sig, ..d() }), EINVAL);
    let big = [0u64, 0, 0, 0, sig, 0, 0, 0, 0, 0, 0, 0, 1];
    fails(syscall(SYS_clone3, big.as_ptr(), 104usize), E2BIG);
}

unsafe fn pidfd_flag() {
    let mut fd = -1;
    let a = Args {
        flags: CLONE_PIDFD as u64,
        pidfd: (&raw mut fd) as u64,
        exit_signal: SIGCHLD as u64,
        ..Default::default()
    };
    let r = ok(clone3(&a));
    if r == 0 {
        _exit(5);
    }
    assert!(fd >= 0);
    is(fcntl(fd, F_GETFD), FD_CLOEXEC.into());
    let mut p = pollfd { fd, events: POLLIN, revents: 0 };
    is(poll(&mut p, 1, 5000), 1);
    exits(r as i32, 5);
}

unsafe fn clear_sighand() {
    on(SIGUSR1, nothing as *const () as usize, 0);
    signal(SIGUSR2, SIG_IGN);
    let a = Args { flags: 0x1_0000_0000, exit_signal: SIGCHLD as u64, ..Default::default() };
    let r = ok(clone3(&a));
    if r == 0 {
        let mut a: sigaction = zeroed();
        ok(sigaction(SIGUSR1, std::ptr::null(), &mut a));
        assert_eq!(a.sa_sigaction, SIG_DFL);
        ok(sigaction(SIGUSR2, std::ptr::null(), &mut a));
        assert_eq!(a.sa_sigaction, SIG_IGN);
        _exit(0);
    }
    exits(r as i32, 0);
}

unsafe fn unshare_files() {
    let (_r, w) = pipe_pair();
    std::thread::spawn(move || unsafe {
        ok(unshare(CLONE_FILES));
        ok(close(w));
        fails(fcntl(w, F_GETFD), EBADF);
    })
    .join()
    .unwrap();
    ok(fcntl(w, F_GETFD));
}

unsafe fn unshare_fs() {
    ok(chdir(c("/").as_ptr()));
    std::thread::spawn(|| unsafe {
        ok(unshare(CLONE_FS));
        ok(chdir(c("/proc").as_ptr()));
    })
    .join()
    .unwrap();
    assert_eq!(std::env::current_dir().unwrap().to_str(), Some("/"));
}

unsafe fn unshare_errors() {
    ok(unshare(0));
    fails(unshare(1), EINVAL);
    std::thread::spawn(|| unsafe { fails(unshare(CLONE_VM), EINVAL) }).join().unwrap();
    in_child(|| {
        if geteuid() == 0 {
            become_nobody();
        }
        fails(unshare(CLONE_NEWNS), EPERM);
        fails(unshare(CLONE_NEWUTS), EPERM);
    });
}

unsafe fn settls() {
    let block = anon(PAGE, RW).cast::<u64>();
    *block = block as u64; // required by the x86-64 ABI
    *block.add(3) = 0xfeed;
    extern "C" fn f(_: *mut c_void) -> i32 {
        let v: u64;
        unsafe {
            std::arch::asm!("mov {}, fs:[24]", out(reg) v);
            // No libc call may be made here: the thread-local storage is not libc's.
            std::arch::asm!("syscall", in("rax") SYS_exit, in("rdi") u64::from(v != 0xfeed), options(noreturn))
        }
    }
    let stack = anon(STACK, RW);
    let none = std::ptr::null_mut::<c_void>();
    let fl = CLONE_VM | CLONE_SETTLS | SIGCHLD;
    let pid = ok(clone(f, stack.add(STACK).cast(), fl, none, none, block, none));
    exits(pid, 0);
}
