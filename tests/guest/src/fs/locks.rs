//! File locks: fcntl(2) record locks, open-file-description locks, flock(2).

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    posix_conflict,
    posix_getlk,
    posix_ranges,
    posix_released_on_close,
    posix_released_on_exit,
    posix_not_inherited,
    posix_wait,
    posix_wait_interrupted,
    posix_deadlock,
    posix_errors,
    posix_many,
    ofd_locks,
    flock_conflict,
    flock_shared_over_dup_and_fork,
    flock_wait,
    flock_interrupted,
    flock_errors,
];

fn lk(kind: i32, start: i64, len: i64) -> flock {
    flock { l_type: kind as i16, l_whence: SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

unsafe fn set(fd: i32, kind: i32, start: i64, len: i64) -> i32 {
    fcntl(fd, F_SETLK, &lk(kind, start, len))
}

unsafe fn query(fd: i32, kind: i32, start: i64, len: i64) -> flock {
    let mut l = lk(kind, start, len);
    ok(fcntl(fd, F_GETLK, &mut l));
    l
}

unsafe fn posix_conflict() {
    let t = Tmp::new();
    let fd = t.open("f");
    ok(set(fd, F_WRLCK, 0, 10));
    ok(set(fd, F_WRLCK, 5, 10)); // locks of one owner never conflict
    in_child(|| {
        fails(set(fd, F_WRLCK, 0, 1), EAGAIN);
        fails(set(fd, F_RDLCK, 14, 1), EAGAIN);
        ok(set(fd, F_WRLCK, 15, 1));
    });
    ok(set(fd, F_RDLCK, 0, 0));
    in_child(|| {
        ok(set(fd, F_RDLCK, 0, 0));
        fails(set(fd, F_WRLCK, 100, 1), EAGAIN);
    });
    ok(set(fd, F_UNLCK, 0, 0));
    in_child(|| {
        ok(set(fd, F_WRLCK, 0, 0));
    });
}

/// Thousands of locks on one file. (More take minutes on Linux itself.)
unsafe fn posix_many() {
    const N: i64 = 3000;
    let t = Tmp::new();
    let (fd, other) = (t.open("f"), t.open("g"));
    for i in (0..N).rev() {
        ok(set(fd, F_WRLCK, 3 * i, 1));
    }
    let middle = 3 * (N / 2);
    in_child(|| {
        fails(set(fd, F_RDLCK, 0, 0), EAGAIN);
        fails(set(fd, F_WRLCK, middle, 1), EAGAIN);
        let held = query(fd, F_WRLCK, middle + 1, 9);
        assert_eq!((held.l_start, held.l_len), (middle + 3, 1));
        ok(set(fd, F_WRLCK, middle + 1, 2));
        ok(set(other, F_WRLCK, 0, 0));
    });
    // Two locks in the middle are merged with the gap between them, and split again.
    ok(set(fd, F_WRLCK, middle, 7));
    ok(set(fd, F_UNLCK, middle + 2, 1));
    in_child(|| {
        let held = query(fd, F_WRLCK, middle + 1, 0);
        assert_eq!((held.l_start, held.l_len), (middle, 2));
        let held = query(fd, F_WRLCK, middle + 2, 0);
        assert_eq!((held.l_start, held.l_len), (middle + 3, 4));
    });
    ok(set(fd, F_UNLCK, 0, 0));
    in_child(|| {
        ok(set(fd, F_WRLCK, 0, 0));
    });
}

unsafe fn posix_getlk() {
    let t = Tmp::new();
    let fd = t.open("f");
    assert_eq!(query(fd, F_WRLCK, 0, 0).l_type, F_UNLCK as i16);
    ok(set(fd, F_WRLCK, 10, 5));
    assert_eq!(query(fd, F_WRLCK, 0, 0).l_type, F_UNLCK as i16);
    let me = getpid();
    in_child(|| {
        let l = query(fd, F_RDLCK, 0, 0);
        assert_eq!((l.l_type, l.l_whence, l.l_start, l.l_len, l.l_pid), (F_WRLCK as i16, 0, 10, 5, me));
        assert_eq!(query(fd, F_RDLCK, 0, 10).l_type, F_UNLCK as i16);
    });
}

unsafe fn posix_ranges() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, &[0; 100]);
    ok(set(fd, F_WRLCK, 0, 100));
    ok(set(fd, F_UNLCK, 40, 20)); // splits it
    ok(set(fd, F_RDLCK, 70, 10)); // changes a piece
    in_child(|| {
        let has = |s, l, k| set(fd, k, s, l) == 0 && set(fd, F_UNLCK, s, l) == 0;
        assert!(has(40, 20, F_WRLCK));
        assert!(!has(39, 1, F_RDLCK) && !has(60, 1, F_RDLCK));
        assert!(has(70, 10, F_RDLCK) && !has(70, 1, F_WRLCK) && !has(80, 1, F_RDLCK));
    });
    // Relative to the position and to the end; a negative length extends backwards.
    ok(set(fd, F_UNLCK, 0, 0));
    let mut l = lk(F_WRLCK, -10, 5);
    l.l_whence = SEEK_END as i16;
    ok(fcntl(fd, F_SETLK, &l));
    ok(lseek(fd, 50, SEEK_SET));
    l = lk(F_WRLCK, 0, -5);
    l.l_whence = SEEK_CUR as i16;
    ok(fcntl(fd, F_SETLK, &l));
    in_child(|| {
        let g = query(fd, F_RDLCK, 60, 0);
        assert_eq!((g.l_start, g.l_len), (90, 5));
        let g = query(fd, F_RDLCK, 0, 0);
        assert_eq!((g.l_start, g.l_len), (45, 5));
    });
}

unsafe fn posix_released_on_close() {
    let t = Tmp::new();
    let fd = t.open("f");
    let other = t.open("f");
    ok(set(fd, F_WRLCK, 0, 0));
    ok(close(other)); // any descriptor of the file
    in_child(|| {
        ok(set(fd, F_WRLCK, 0, 0));
    });
}

unsafe fn posix_released_on_exit() {
    let t = Tmp::new();
    let fd = t.open("f");
    in_child(|| {
        ok(set(fd, F_WRLCK, 0, 0));
    });
    ok(set(fd, F_WRLCK, 0, 0));
}

unsafe fn posix_not_inherited() {
    let t = Tmp::new();
    let fd = t.open("f");
    ok(set(fd, F_WRLCK, 0, 0));
    in_child(|| {
        fails(set(fd, F_WRLCK, 0, 0), EAGAIN);
        ok(set(fd, F_UNLCK, 0, 0)); // the parent's locks: no effect
    });
    in_child(|| fails(set(fd, F_RDLCK, 0, 0), EAGAIN));
}

unsafe fn posix_wait() {
    let t = Tmp::new();
    let fd = t.open("f");
    let (r, w) = pipe_pair();
    ok(set(fd, F_WRLCK, 0, 0));
    let pid = spawn(|| {
        ok(fcntl(fd, F_SETLKW, &lk(F_WRLCK, 0, 0)));
        put(w, b"got it");
        0
    });
    asleep(pid);
    ok(fcntl(r, F_SETFL, O_NONBLOCK));
    fails(read(r, [0u8; 1].as_mut_ptr().cast(), 1), EAGAIN);
    ok(set(fd, F_UNLCK, 0, 0));
    exits(pid, 0);
    assert_eq!(get(r, 9), b"got it");
}

unsafe fn posix_wait_interrupted() {
    let t = Tmp::new();
    let fd = t.open("f");
    let (r, w) = pipe_pair();
    let holder = spawn(|| {
        ok(set(fd, F_WRLCK, 0, 0));
        put(w, b"x");
        pause();
        0
    });
    get(r, 1);
    on(SIGUSR1, nothing as *const () as usize, 0);
    let k = interrupt_me(SIGUSR1);
    fails(fcntl(fd, F_SETLKW, &lk(F_WRLCK, 0, 0)), EINTR);
    exits(k, 0);
    ok(kill(holder, SIGKILL));
    ok(fcntl(fd, F_SETLKW, &lk(F_WRLCK, 0, 0)));
    dies(holder, SIGKILL);
}

unsafe fn posix_deadlock() {
    let t = Tmp::new();
    let fd = t.open("f");
    let (r, w) = pipe_pair();
    ok(set(fd, F_WRLCK, 0, 1));
    let pid = spawn(|| {
        ok(set(fd, F_WRLCK, 1, 1));
        put(w, b"x");
        ok(fcntl(fd, F_SETLKW, &lk(F_WRLCK, 0, 1)));
        0
    });
    get(r, 1);
    asleep(pid);
    fails(fcntl(fd, F_SETLKW, &lk(F_WRLCK, 1, 1)), EDEADLK);
    ok(set(fd, F_UNLCK, 0, 1));
    exits(pid, 0);
}

unsafe fn posix_errors() {
    let t = Tmp::new();
    t.file("f", b"");
    let rd = ok(open(t.p("f").as_ptr(), O_RDONLY));
    let wr = ok(open(t.p("f").as_ptr(), O_WRONLY));
    fails(set(rd, F_WRLCK, 0, 0), EBADF);
    fails(set(wr, F_RDLCK, 0, 0), EBADF);
    fails(set(wr, 77, 0, 0), EINVAL);
    fails(set(wr, F_WRLCK, -1, 0), EINVAL);
    let mut l = lk(F_WRLCK, 0, 0);
    l.l_whence = 9;
    fails(fcntl(wr, F_SETLK, &l), EINVAL);
    fails(fcntl(wr, F_SETLK, BAD), EFAULT);
}

unsafe fn ofd_locks() {
    let t = Tmp::new();
    let a = t.open("f");
    let b = t.open("f");
    ok(fcntl(a, F_OFD_SETLK, &lk(F_WRLCK, 0, 10)));
    // Two descriptions in one process conflict; a duplicate does not.
    fails(fcntl(b, F_OFD_SETLK, &lk(F_WRLCK, 5, 1)), EAGAIN);
    let d = ok(dup(a));
    ok(fcntl(d, F_OFD_SETLK, &lk(F_WRLCK, 5, 1)));
    let mut l = lk(F_WRLCK, 0, 0);
    ok(fcntl(b, F_OFD_GETLK, &mut l));
    assert_eq!((l.l_type, l.l_pid), (F_WRLCK as i16, -1));
    // Record locks conflict with them too.
    fails(set(b, F_WRLCK, 0, 1), EAGAIN);
    ok(close(a));
    fails(fcntl(b, F_OFD_SETLK, &lk(F_WRLCK, 5, 1)), EAGAIN);
    ok(close(d));
    ok(fcntl(b, F_OFD_SETLK, &lk(F_WRLCK, 5, 1)));
    l.l_pid = 1;
    fails(fcntl(b, F_OFD_SETLK, &l), EINVAL);
}

unsafe fn flock_conflict() {
    let t = Tmp::new();
    let (a, b) = (t.open("f"), t.open("f"));
    ok(flock(a, LOCK_EX));
    fails(flock(b, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    fails(flock(b, LOCK_SH | LOCK_NB), EWOULDBLOCK);
    ok(flock(a, LOCK_SH)); // converts
    ok(flock(b, LOCK_SH | LOCK_NB));
    fails(flock(a, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    ok(flock(b, LOCK_UN));
    ok(flock(b, LOCK_UN));
    ok(close(a));
    ok(flock(b, LOCK_EX | LOCK_NB));
}

unsafe fn flock_shared_over_dup_and_fork() {
    let t = Tmp::new();
    let (a, b) = (t.open("f"), t.open("f"));
    ok(flock(a, LOCK_EX));
    let d = ok(dup(a));
    ok(close(a));
    fails(flock(b, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    in_child(|| {
        ok(flock(d, LOCK_EX | LOCK_NB)); // the child shares the open file
        ok(flock(d, LOCK_UN));
    });
    ok(flock(b, LOCK_EX | LOCK_NB));
}

unsafe fn flock_wait() {
    let t = Tmp::new();
    let a = t.open("f");
    ok(flock(a, LOCK_EX));
    let pid = spawn(|| {
        let b = t.open("f");
        ok(flock(b, LOCK_EX));
        0
    });
    asleep(pid);
    ok(flock(a, LOCK_UN));
    exits(pid, 0);
}

unsafe fn flock_interrupted() {
    let t = Tmp::new();
    let (a, b) = (t.open("f"), t.open("f"));
    ok(flock(a, LOCK_EX));
    on(SIGUSR1, nothing as *const () as usize, 0);
    let k = interrupt_me(SIGUSR1);
    fails(flock(b, LOCK_EX), EINTR);
    exits(k, 0);
}

unsafe fn flock_errors() {
    let t = Tmp::new();
    let a = t.open("f");
    fails(flock(a, 0), EINVAL);
    fails(flock(a, 0x1000), EINVAL);
    fails(flock(-1, LOCK_EX), EBADF);
    // A read-only descriptor may take an exclusive lock.
    let rd = ok(open(t.p("f").as_ptr(), O_RDONLY));
    ok(flock(rd, LOCK_EX));
}
