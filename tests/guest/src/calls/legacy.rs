//! Calls that the current C library no longer makes.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] =
    cases![opens, stats, pipes, forks, nodes, directories, descriptors, clocks, limits, file_systems];

unsafe fn opens() {
    let t = Tmp::new();
    let (p, q) = (t.p("f"), t.p("none"));
    let fd = ok(syscall(SYS_open, p.as_ptr(), O_RDWR | O_CREAT, 0o640)) as i32;
    assert_eq!(fstat_of(fd).st_mode & 0o777, 0o640);
    fails(syscall(SYS_open, p.as_ptr(), O_RDWR | O_CREAT | O_EXCL, 0o640), EEXIST);
    fails(syscall(SYS_open, q.as_ptr(), O_RDONLY), ENOENT);
    fails(syscall(SYS_open, BAD, O_RDONLY), EFAULT);
    put(fd, b"abc");
    let again = ok(syscall(SYS_creat, p.as_ptr(), 0o600)) as i32;
    assert_eq!((fstat_of(again).st_size, fstat_of(again).st_mode & 0o777), (0, 0o640));
    fails(syscall(SYS_creat, t.p("none/f").as_ptr(), 0o600), ENOENT);
    fails(syscall(SYS_creat, c("/").as_ptr(), 0o600), EISDIR);
}

unsafe fn stats() {
    let t = Tmp::new();
    t.file("f", b"12345");
    ok(symlink(c("f").as_ptr(), t.p("l").as_ptr()));
    let mut st: stat = zeroed();
    zero(syscall(SYS_stat, t.p("l").as_ptr(), &mut st) as i32);
    assert_eq!((st.st_mode & S_IFMT, st.st_size), (S_IFREG, 5));
    zero(syscall(SYS_lstat, t.p("l").as_ptr(), &mut st) as i32);
    assert_eq!((st.st_mode & S_IFMT, st.st_size), (S_IFLNK, 1));
    fails(syscall(SYS_lstat, t.p("none").as_ptr(), &mut st), ENOENT);
    fails(syscall(SYS_lstat, t.p("l").as_ptr(), BAD), EFAULT);
    let fd = ok(open(t.p("f").as_ptr(), O_RDONLY));
    zero(syscall(SYS_fstat, fd, &mut st) as i32);
    assert_eq!(st.st_size, 5);
    fails(syscall(SYS_fstat, -1, &mut st), EBADF);
    fails(syscall(SYS_fstat, fd, BAD), EFAULT);
}

unsafe fn pipes() {
    let mut p = [0i32; 2];
    zero(syscall(SYS_pipe, p.as_mut_ptr()) as i32);
    put(p[1], b"x");
    assert_eq!(get(p[0], 2), b"x");
    is(fcntl(p[0], F_GETFD), 0);
    fails(syscall(SYS_pipe, BAD), EFAULT);
    // The failed call leaves no descriptors behind.
    is(dup(0), p[1] as i64 + 1);
}

unsafe fn forks() {
    let pid = ok(syscall(SYS_fork)) as pid_t;
    if pid == 0 {
        _exit(9);
    }
    exits(pid, 9);
    if !root() {
        return;
    }
    // The user's limit of processes is reached.
    in_child(|| {
        let none = rlimit { rlim_cur: 0, rlim_max: 0 };
        ok(setrlimit(RLIMIT_NPROC, &none));
        become_nobody();
        let r = syscall(SYS_fork);
        if r == 0 {
            _exit(0);
        }
        fails(r, EAGAIN);
        #[allow(deprecated)]
        let r = vfork();
        if r == 0 {
            _exit(0);
        }
        fails(r, EAGAIN);
    });
}

unsafe fn nodes() {
    let t = Tmp::new();
    let p = t.p("fifo");
    zero(syscall(SYS_mknod, p.as_ptr(), S_IFIFO | 0o600, 0) as i32);
    assert_eq!(stat_of(&p).st_mode, S_IFIFO | 0o600);
    fails(syscall(SYS_mknod, p.as_ptr(), S_IFREG | 0o600, 0), EEXIST);
    fails(syscall(SYS_mknod, t.p("d").as_ptr(), S_IFDIR | 0o600, 0), EPERM);
    ok(symlink(p.as_ptr(), t.p("l").as_ptr()));
    zero(syscall(SYS_lchown, t.p("l").as_ptr(), getuid(), getgid()) as i32);
    fails(syscall(SYS_lchown, t.p("none").as_ptr(), getuid(), getgid()), ENOENT);
    let times = [1i64, 2];
    zero(syscall(SYS_utime, p.as_ptr(), times.as_ptr()) as i32);
    assert_eq!((stat_of(&p).st_atime, stat_of(&p).st_mtime), (1, 2));
    fails(syscall(SYS_utime, t.p("none").as_ptr(), times.as_ptr()), ENOENT);
    let times = [timeval { tv_sec: 3, tv_usec: 4 }, timeval { tv_sec: 5, tv_usec: 6 }];
    zero(syscall(SYS_futimesat, AT_FDCWD, p.as_ptr(), times.as_ptr()) as i32);
    assert_eq!((stat_of(&p).st_mtime, stat_of(&p).st_mtime_nsec), (5, 6000));
    let wrong = [timeval { tv_sec: 3, tv_usec: 1_000_000 }; 2];
    fails(syscall(SYS_futimesat, AT_FDCWD, p.as_ptr(), wrong.as_ptr()), EINVAL);
    fails(syscall(SYS_futimesat, -1, c("x").as_ptr(), times.as_ptr()), EBADF);
}

unsafe fn directories() {
    let t = Tmp::new();
    t.file("one", b"");
    let fd = ok(open(c(t.0.to_str().unwrap()).as_ptr(), O_RDONLY | O_DIRECTORY));
    let mut buf = [0u8; 1024];
    let n = ok(syscall(SYS_getdents, fd, buf.as_mut_ptr(), 1024)) as usize;
    assert!(buf[..n].windows(4).any(|w| w == b"one\0"));
    fails(syscall(SYS_getdents, -1, buf.as_mut_ptr(), 1024), EBADF);
    ok(lseek(fd, 0, SEEK_SET));
    fails(syscall(SYS_getdents, fd, buf.as_mut_ptr(), 8), EINVAL);
    zero(syscall(SYS_faccessat, fd, c("one").as_ptr(), R_OK) as i32);
    fails(syscall(SYS_faccessat, fd, c("two").as_ptr(), R_OK), ENOENT);
    fails(syscall(SYS_faccessat, fd, c("one").as_ptr(), 8), EINVAL);
}

unsafe fn descriptors() {
    let fd = ok(syscall(SYS_inotify_init)) as i32;
    is(fcntl(fd, F_GETFD), 0);
    let fd = ok(syscall(SYS_eventfd, 5)) as i32;
    assert_eq!(get(fd, 8), 5u64.to_ne_bytes());
    let fd = ok(syscall(SYS_epoll_create, 1)) as i32;
    is(fcntl(fd, F_GETFD), 0);
    fails(syscall(SYS_epoll_create, 0), EINVAL);
    fails(syscall(SYS_epoll_create1, 1), EINVAL);
    fails(syscall(SYS_eventfd2, 0, 2), EINVAL);
    fails(syscall(SYS_inotify_init1, 1), EINVAL);
    let set = set_of(&[SIGUSR2]);
    block(&[SIGUSR2]);
    let fd = ok(syscall(SYS_signalfd, -1, &set, 8)) as i32;
    ok(raise(SIGUSR2));
    assert_eq!(get(fd, 128)[..4], (SIGUSR2 as u32).to_ne_bytes());
    fails(syscall(SYS_signalfd, -1, &set, 4), EINVAL);
    fails(syscall(SYS_signalfd4, -1, &set, 8, 1), EINVAL);
    fails(syscall(SYS_signalfd4, 1 << 20, &set, 8, 0), EBADF);
    // The limit of descriptors is reached.
    let few = rlimit { rlim_cur: 0, rlim_max: 4096 };
    in_child(|| {
        ok(setrlimit(RLIMIT_NOFILE, &few));
        fails(syscall(SYS_inotify_init), EMFILE);
        fails(syscall(SYS_eventfd, 0), EMFILE);
        fails(syscall(SYS_memfd_create, c("x").as_ptr(), 0), EMFILE);
    });
}

unsafe fn clocks() {
    let mut now = 0i64;
    let r = ok(syscall(SYS_time, &mut now));
    assert_eq!(r, now);
    assert!((now - syscall(SYS_time, 0)).abs() <= 1);
    fails(syscall(SYS_time, BAD), EFAULT);
    let mut tv: timeval = zeroed();
    let mut tz = [0i32; 2];
    zero(syscall(SYS_gettimeofday, &mut tv, &mut tz) as i32);
    assert!((tv.tv_sec - now).abs() <= 1);
    fails(syscall(SYS_gettimeofday, BAD, 0), EFAULT);
    fails(syscall(SYS_gettimeofday, 0, BAD), EFAULT);
}

unsafe fn limits() {
    let mut l: rlimit = zeroed();
    zero(syscall(SYS_getrlimit, RLIMIT_NOFILE, &mut l) as i32);
    fails(syscall(SYS_getrlimit, 99, &mut l), EINVAL);
    fails(syscall(SYS_getrlimit, RLIMIT_NOFILE, BAD), EFAULT);
    in_child(|| {
        l.rlim_cur = 100;
        zero(syscall(SYS_setrlimit, RLIMIT_NOFILE, &l) as i32);
        let mut m: rlimit = zeroed();
        zero(syscall(SYS_getrlimit, RLIMIT_NOFILE, &mut m) as i32);
        assert_eq!((m.rlim_cur, m.rlim_max), (100, l.rlim_max));
        m.rlim_cur = m.rlim_max.wrapping_add(1).max(1);
        m.rlim_max = 0;
        fails(syscall(SYS_setrlimit, RLIMIT_NOFILE, &m), EINVAL);
    });
    fails(syscall(SYS_setrlimit, 99, &l), EINVAL);
}

/// File system types by number, and one found by its device.
unsafe fn file_systems() {
    let n = ok(syscall(SYS_sysfs, 3));
    assert!(n > 3);
    let mut name = [0u8; 64];
    for i in 0..n {
        zero(syscall(SYS_sysfs, 2, i, name.as_mut_ptr()) as i32);
        is(syscall(SYS_sysfs, 1, name.as_ptr()), i);
    }
    fails(syscall(SYS_sysfs, 2, 10_000, name.as_mut_ptr()), EINVAL);
    fails(syscall(SYS_sysfs, 2, 0, BAD), EFAULT);
    fails(syscall(SYS_sysfs, 1, c("nofs").as_ptr()), EINVAL);
    fails(syscall(SYS_sysfs, 1, BAD), EFAULT);
    fails(syscall(SYS_sysfs, 9), EINVAL);
    let dev = stat_of(&c("/proc")).st_dev as u32;
    let mut raw = [0xffu8; 32];
    zero(syscall(SYS_ustat, dev, raw.as_mut_ptr()) as i32);
    assert_eq!(&raw[..4], [0; 4]);
    fails(syscall(SYS_ustat, dev, BAD), EFAULT);
    fails(syscall(SYS_ustat, u32::MAX, raw.as_mut_ptr()), EINVAL);
}
