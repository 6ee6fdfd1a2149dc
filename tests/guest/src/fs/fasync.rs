//! Signals about files: owners, O_ASYNC, leases, directory notification (fcntl(2)); /proc's information on special
//! descriptors.

use crate::t::*;
use libc::*;
use std::sync::atomic::{AtomicI32, Ordering};

pub const CASES: &[crate::Case] = cases![
    leases_and_other_descriptions,
    owners,
    async_pipe,
    async_of_many,
    lease_broken_by_open,
    lease_conflicts,
    lease_and_nonblocking_open,
    directory_signals,
    directory_marks_of_many,
    fdinfo_of_special_files,
    epoll_no_event_twice,
    many_at_once,
    namespaces_are_files,
    events_of_an_unlinked_file,
];

const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;

/// Waits for the blocked `sig`; returns `si_code` and `si_fd`.
unsafe fn next(sig: i32) -> (i32, i32) {
    let mut info: siginfo_t = zeroed();
    let t = timespec { tv_sec: 20, tv_nsec: 0 };
    ok(sigtimedwait(&set_of(&[sig]), &mut info, &t));
    let fd = *std::ptr::addr_of!(info).cast::<u8>().add(24).cast::<i32>();
    (info.si_code, fd)
}

unsafe fn none(sig: i32) {
    let t = timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    fails(sigtimedwait(&set_of(&[sig]), std::ptr::null_mut(), &t), EAGAIN);
}

unsafe fn owners() {
    let (r, _w) = pipe_pair();
    is(fcntl(r, F_GETOWN), 0);
    ok(fcntl(r, F_SETOWN, getpid()));
    is(fcntl(r, F_GETOWN), getpid().into());
    let mut o = [9i32; 2];
    ok(fcntl(r, F_GETOWN_EX, o.as_mut_ptr()));
    assert_eq!(o, [1, getpid()]);
    ok(fcntl(r, F_SETOWN_EX, [0, gettid()].as_ptr()));
    ok(fcntl(r, F_GETOWN_EX, o.as_mut_ptr()));
    assert_eq!(o, [0, gettid()]);
    ok(fcntl(r, F_SETOWN, -getpgrp()));
    ok(fcntl(r, F_GETOWN_EX, o.as_mut_ptr()));
    assert_eq!(o, [2, getpgrp()]);
    fails(fcntl(r, F_SETOWN_EX, [3, 1].as_ptr()), EINVAL);
    fails(fcntl(r, F_SETOWN_EX, BAD), EFAULT);
    fails(fcntl(r, F_SETOWN, 0x3fff_ffff), ESRCH);
    fails(fcntl(r, F_SETOWN, i32::MIN), EINVAL);
    is(fcntl(r, F_GETSIG), 0);
    ok(fcntl(r, F_SETSIG, SIGRTMIN()));
    is(fcntl(r, F_GETSIG), SIGRTMIN().into());
    fails(fcntl(r, F_SETSIG, 65), EINVAL);
}

unsafe fn async_pipe() {
    let (r, w) = pipe_pair();
    let sig = SIGRTMIN() + 1;
    block(&[sig, SIGIO]);
    ok(fcntl(r, F_SETOWN, getpid()));
    ok(fcntl(r, F_SETSIG, sig));
    ok(fcntl(r, F_SETFL, O_ASYNC));
    put(w, b"x");
    assert_eq!(next(sig), (1, r)); // POLL_IN
    get(r, 1);
    ok(fcntl(r, F_SETSIG, 0));
    put(w, b"x");
    next(SIGIO);
    ok(fcntl(r, F_SETFL, 0));
    put(w, b"x");
    none(SIGIO);
}

unsafe fn async_of_many() {
    const FILES: usize = 100;
    const MEMBERS: usize = 5;
    let t = Tmp::new();
    let fifo = t.p("f");
    ok(mkfifo(fifo.as_ptr(), 0o600));
    let w = ok(open(fifo.as_ptr(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
    let sig = SIGRTMIN() + 1;
    block(&[sig, SIGIO]);
    let files: Vec<_> = (0..FILES).map(|_| ok(open(fifo.as_ptr(), O_RDONLY | O_NONBLOCK | O_CLOEXEC))).collect();
    let all = |who: i32, signal: i32| {
        for f in &files {
            ok(fcntl(*f, F_SETOWN, who));
            ok(fcntl(*f, F_SETSIG, signal));
            ok(fcntl(*f, F_SETFL, O_ASYNC | O_NONBLOCK));
        }
    };
    // Each process of a group gets one signal for all files.
    let mut first = 0;
    let members = [(); MEMBERS].map(|()| {
        let pid = spawn(|| {
            next(SIGIO);
            0
        });
        first = if first == 0 { pid } else { first };
        ok(setpgid(pid, first));
        pid
    });
    all(-first, 0);
    put(w, b"x");
    for pid in members {
        exits(pid, 0);
    }
    // Queueing signals are sent for each file.
    get(w, 1);
    all(getpid(), sig);
    put(w, b"x");
    let mut told: Vec<_> = (0..FILES).map(|_| next(sig)).collect();
    told.sort_unstable();
    assert!(told.into_iter().eq(files.iter().map(|f| (1, *f))));
    none(sig);
    get(w, 1);
    put(w, b"x");
    next(sig);
}

unsafe fn lease_broken_by_open() {
    let t = Tmp::new();
    let f = t.file("f", b"abc");
    block(&[SIGIO]);
    let fd = ok(open(f.as_ptr(), O_RDONLY | O_CLOEXEC));
    is(fcntl(fd, F_GETLEASE), F_UNLCK.into());
    ok(fcntl(fd, F_SETLEASE, F_RDLCK));
    is(fcntl(fd, F_GETLEASE), F_RDLCK.into());
    // Another reader does not break a read lease.
    ok(close(ok(open(f.as_ptr(), O_RDONLY))));
    let pid = spawn(|| {
        let fd = ok(open(f.as_ptr(), O_WRONLY));
        put(fd, b"xyz");
        0
    });
    next(SIGIO);
    asleep(pid);
    is(fcntl(fd, F_GETLEASE), F_UNLCK.into());
    assert_eq!(get(fd, 10), b"abc");
    ok(fcntl(fd, F_SETLEASE, F_UNLCK));
    exits(pid, 0);
    // A reader lowers a write lease, and truncation ends it.
    ok(fcntl(fd, F_SETLEASE, F_WRLCK));
    let pid = spawn(|| {
        ok(close(ok(open(f.as_ptr(), O_RDONLY))));
        0
    });
    next(SIGIO);
    is(fcntl(fd, F_GETLEASE), F_RDLCK.into());
    ok(fcntl(fd, F_SETLEASE, F_RDLCK));
    exits(pid, 0);
    let pid = spawn(|| {
        ok(close(fd));
        ok(truncate(f.as_ptr(), 1));
        0
    });
    next(SIGIO);
    asleep(pid);
    ok(close(fd)); // ends it as well
    exits(pid, 0);
    assert_eq!(stat_of(&f).st_size, 1);
}

unsafe fn lease_conflicts() {
    let t = Tmp::new();
    let f = t.file("f", b"abc");
    let rw = ok(open(f.as_ptr(), O_RDWR));
    fails(fcntl(rw, F_SETLEASE, F_RDLCK), EAGAIN); // open for writing
    ok(fcntl(rw, F_SETLEASE, F_WRLCK));
    ok(fcntl(rw, F_SETLEASE, F_UNLCK));
    fails(fcntl(rw, F_SETLEASE, F_UNLCK), EAGAIN);
    fails(fcntl(rw, F_SETLEASE, 77), EINVAL);
    let rd = ok(open(f.as_ptr(), O_RDONLY));
    fails(fcntl(rw, F_SETLEASE, F_WRLCK), EAGAIN); // open elsewhere
    fails(fcntl(rd, F_SETLEASE, F_RDLCK), EAGAIN);
    ok(close(rw));
    ok(fcntl(rd, F_SETLEASE, F_RDLCK));
    let (r, _w) = pipe_pair();
    fails(fcntl(r, F_SETLEASE, F_RDLCK), EINVAL);
    if root() {
        let g = ok(open(t.file("g", b"").as_ptr(), O_RDONLY));
        in_child(|| {
            become_nobody();
            fails(fcntl(g, F_SETLEASE, F_RDLCK), EACCES);
        });
    }
}

unsafe fn lease_and_nonblocking_open() {
    let t = Tmp::new();
    let f = t.file("f", b"abc");
    block(&[SIGIO]);
    let fd = ok(open(f.as_ptr(), O_RDONLY));
    ok(fcntl(fd, F_SETLEASE, F_RDLCK));
    fails(open(f.as_ptr(), O_WRONLY | O_NONBLOCK), EWOULDBLOCK);
    next(SIGIO);
    fails(open(f.as_ptr(), O_WRONLY | O_NONBLOCK), EWOULDBLOCK);
    none(SIGIO); // it has been signalled already
    ok(fcntl(fd, F_SETLEASE, F_UNLCK));
    ok(open(f.as_ptr(), O_WRONLY | O_NONBLOCK));
}

unsafe fn directory_signals() {
    const F_NOTIFY: i32 = 1026;
    const DN_CREATE: u32 = 4;
    const DN_DELETE: u32 = 8;
    const DN_MULTISHOT: u32 = 1 << 31;
    let t = Tmp::new();
    let sig = SIGRTMIN() + 2;
    block(&[sig]);
    let d = ok(open(t.p("").as_ptr(), O_RDONLY));
    ok(fcntl(d, F_SETSIG, sig));
    ok(fcntl(d, F_NOTIFY, DN_CREATE));
    t.file("a", b"");
    assert_eq!(next(sig).1, d);
    t.file("b", b"");
    none(sig); // once only
    ok(fcntl(d, F_NOTIFY, DN_CREATE | DN_DELETE | DN_MULTISHOT));
    ok(unlink(t.p("a").as_ptr()));
    assert_eq!(next(sig).1, d);
    t.file("c", b"");
    assert_eq!(next(sig).1, d);
    ok(fcntl(d, F_NOTIFY, 0));
    t.file("d", b"");
    none(sig);
    let f = ok(open(t.p("b").as_ptr(), O_RDONLY));
    fails(fcntl(f, F_NOTIFY, DN_CREATE), ENOTDIR);
    // DN_RENAME: a rename within the directory, not to another one.
    ok(mkdir(t.p("sub").as_ptr(), 0o700));
    ok(fcntl(d, F_NOTIFY, 16 | DN_MULTISHOT));
    ok(rename(t.p("c").as_ptr(), t.p("sub/c").as_ptr()));
    none(sig);
    ok(rename(t.p("sub").as_ptr(), t.p("sub2").as_ptr()));
    assert_eq!(next(sig).1, d);
    ok(fcntl(d, F_NOTIFY, 0));
    // The signal is pending when the call that caused it returns.
    static TOLD: AtomicI32 = AtomicI32::new(0);
    extern "C" fn told(_: i32) {
        TOLD.fetch_add(1, Ordering::SeqCst);
    }
    ok(fcntl(d, F_SETSIG, SIGUSR1));
    on(SIGUSR1, told as extern "C" fn(i32) as usize, 0);
    ok(fcntl(d, F_NOTIFY, DN_CREATE | DN_MULTISHOT));
    for i in 0..50 {
        ok(mkdir(t.p(&format!("now{i}")).as_ptr(), 0o700));
        assert_eq!(TOLD.load(Ordering::SeqCst), i + 1);
    }
}

/// Each description has its own mark, which ends with it.
unsafe fn directory_marks_of_many() {
    const F_NOTIFY: i32 = 1026;
    const DN_CREATE_ALWAYS: u32 = 4 | 1 << 31;
    let t = Tmp::new();
    let sig = SIGRTMIN() + 2;
    block(&[sig]);
    let open_dir = || {
        let d = ok(open(t.p("").as_ptr(), O_RDONLY));
        ok(fcntl(d, F_SETSIG, sig));
        ok(fcntl(d, F_NOTIFY, DN_CREATE_ALWAYS));
        d
    };
    let mut dirs: Vec<i32> = (0..100).map(|_| open_dir()).collect();
    for name in ["a", "b"] {
        t.file(name, b"");
        let mut told: Vec<i32> = dirs.iter().map(|_| next(sig).1).collect();
        none(sig);
        told.sort();
        dirs.sort();
        assert_eq!(told, dirs);
        for d in dirs.split_off(1) {
            ok(close(d));
        }
    }
    // No signal is lost or duplicated when events and ends of marks coincide.
    let other = std::thread::scope(|s| {
        let h = s.spawn(|| unsafe { (0..300).for_each(|_| drop(close(open_dir()))) });
        for i in 0..300 {
            t.file(&format!("c{i}"), b"");
        }
        h.join().is_ok()
    });
    assert!(other);
}

unsafe fn info(fd: i32) -> String {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap()
}

unsafe fn fdinfo_of_special_files() {
    let t = Tmp::new();
    let i = ok(inotify_init1(0));
    let wd = ok(inotify_add_watch(i, t.p("").as_ptr(), IN_CREATE | IN_DELETE));
    let want = format!("inotify wd:{wd:x} ino:{:x} ", stat_of(&t.p("")).st_ino);
    let text = info(i);
    assert!(text.contains(&want) && text.contains(" mask:300 "), "{text}");
    let e = ok(eventfd(0x1f, 0));
    assert!(info(e).contains("eventfd-count:               1f"), "{}", info(e));
    let s = ok(signalfd(-1, &set_of(&[SIGHUP, SIGKILL]), 0));
    assert!(info(s).contains("sigmask:\t0000000000000001"), "{}", info(s));
}

/// More descriptors than one step of a call visits.
unsafe fn many_at_once() {
    let mut limit: rlimit = zeroed();
    zero(getrlimit(RLIMIT_NOFILE, &mut limit));
    limit.rlim_cur = limit.rlim_max;
    zero(setrlimit(RLIMIT_NOFILE, &limit));
    // Above the descriptors that are open already.
    const LOW: i32 = 1000;
    let many = (limit.rlim_cur.min(12_000) as usize).saturating_sub(LOW as usize + 100);
    let (r, w) = pipe_pair();
    let (r2, w2) = pipe_pair();
    let first = ok(fcntl(r, F_DUPFD, LOW));
    for i in 1..many {
        is(fcntl(r, F_DUPFD, LOW), i64::from(first) + i as i64);
    }
    let last = first + many as i32 - 1;
    let mut asked: Vec<pollfd> =
        (first..=last).chain([-1, r2, last + 1]).map(|fd| pollfd { fd, events: POLLIN, revents: 9 }).collect();
    asked[many + 2].fd = -1;
    let all = asked.len() as nfds_t;
    is(poll(asked.as_mut_ptr(), all, 0), 0);
    is(poll(asked.as_mut_ptr(), all, 20), 0);
    let child = spawn(|| {
        usleep(20_000);
        put(w2, b"x");
        0
    });
    is(poll(asked.as_mut_ptr(), all, 20_000), 1);
    assert_eq!((asked[0].revents, asked[many].revents, asked[many + 1].revents), (0, 0, POLLIN));
    exits(child, 0);
    let child = spawn(|| {
        usleep(20_000);
        put(w, b"x");
        0
    });
    is(poll(asked.as_mut_ptr(), many as nfds_t, 20_000), many as i64);
    exits(child, 0);
    // A closed descriptor; and a signal.
    zero(close(last));
    is(poll(asked.as_mut_ptr(), all, -1), many as i64 + 1);
    assert_eq!((asked[many - 1].revents, asked[many - 2].revents), (POLLNVAL, POLLIN));
    get(r, 1);
    get(r2, 1);
    asked[many - 1].fd = -1;
    extern "C" fn nothing(_: i32) {}
    on(SIGUSR1, nothing as *const () as usize, 0);
    let child = interrupt_me(SIGUSR1);
    fails(poll(asked.as_mut_ptr(), all, -1), EINTR);
    reap(child);
    // select(2) takes any descriptor number, regardless of FD_SETSIZE.
    let mut set = vec![u64::MAX; (last as usize).div_ceil(64)];
    let top = set.len() * 64;
    (0..top).filter(|fd| *fd < first as usize || *fd >= last as usize).for_each(|fd| set[fd / 64] &= !(1 << (fd % 64)));
    let want = set.clone();
    put(w, b"x");
    let none = timeval { tv_sec: 0, tv_usec: 0 };
    is(syscall(SYS_select, top, set.as_mut_ptr(), 0, 0, &none), many as i64 - 1);
    assert_eq!(set, want);
    // All in one epoll, ready at once; then a range of them is marked close-on-exec, and all are closed.
    let ep = ok(epoll_create1(0));
    for fd in first..last {
        let mut ev = epoll_event { events: EPOLLIN as u32, u64: fd as u64 };
        zero(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &mut ev));
    }
    let mut got = vec![epoll_event { events: 0, u64: 0 }; many];
    for _ in 0..2 {
        is(epoll_wait(ep, got.as_mut_ptr(), many as i32, 0), many as i64 - 1);
    }
    get(r, 1);
    is(epoll_wait(ep, got.as_mut_ptr(), many as i32, 0), 0);
    is(epoll_wait(ep, got.as_mut_ptr(), many as i32, 10), 0);
    put(w, b"x");
    is(epoll_wait(ep, got.as_mut_ptr(), many as i32, 1000), many as i64 - 1);
    const CLOEXEC: i32 = 4;
    zero(syscall(SYS_close_range, first + 1, last - 2, CLOEXEC) as i32);
    let marks = |fd| ok(fcntl(fd, F_GETFD));
    assert_eq!([first, first + 1, last - 2, last - 1].map(marks), [0, FD_CLOEXEC, FD_CLOEXEC, 0]);
    zero(syscall(SYS_close_range, first, last - 2, 0) as i32);
    for fd in [first, last - 2] {
        fails(fcntl(fd, F_GETFD), EBADF);
    }
    // A file that stays open under another number is still watched by its other items.
    is(epoll_wait(ep, got.as_mut_ptr(), many as i32, 1000), many as i64 - 1);
}

unsafe fn epoll_no_event_twice() {
    let (r, w) = pipe_pair();
    let ep = ok(epoll_create1(0));
    let mut ev = epoll_event { events: EPOLLIN as u32, u64: 1 };
    ok(epoll_ctl(ep, EPOLL_CTL_ADD, r, &mut ev));
    let mut out = epoll_event { events: EPOLLOUT as u32, u64: 2 };
    ok(epoll_ctl(ep, EPOLL_CTL_ADD, w, &mut out));
    put(w, b"x");
    let mut got: [epoll_event; 4] = zeroed();
    is(epoll_wait(ep, got.as_mut_ptr(), 4, -1), 2);
    ok(epoll_ctl(ep, EPOLL_CTL_DEL, w, &mut out));
    is(epoll_wait(ep, got.as_mut_ptr(), 4, -1), 1);
    assert_eq!({ got[0].u64 }, 1);
}

unsafe fn namespaces_are_files() {
    let net = c("/proc/self/ns/net");
    let fd = ok(open(net.as_ptr(), O_RDONLY));
    let text = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert_eq!(text, format!("net:[{}]", fstat_of(fd).st_ino));
    assert_eq!(stat_of(&net).st_ino, fstat_of(fd).st_ino);
    is(ioctl(fd, 0xb703), CLONE_NEWNET.into()); // NS_GET_NSTYPE
    fails(ioctl(fd, 0xb702), EINVAL); // NS_GET_PARENT
    fails(read(fd, [0u8; 1].as_mut_ptr().cast(), 1), EINVAL);
}

unsafe fn events_of_an_unlinked_file() {
    let t = Tmp::new();
    for (mask, count) in [(IN_MODIFY, 2), (IN_MODIFY | IN_EXCL_UNLINK, 1)] {
        let i = ok(inotify_init1(IN_NONBLOCK));
        let fd = t.open("f");
        ok(inotify_add_watch(i, t.p("").as_ptr(), mask));
        put(fd, b"a");
        assert!(!get(i, 4096).is_empty());
        ok(unlink(t.p("f").as_ptr()));
        put(fd, b"b");
        let n = read(i, [0u8; 4096].as_mut_ptr().cast(), 4096);
        assert_eq!(n > 0, count == 2);
        ok(close(i));
        ok(close(fd));
    }
}

unsafe fn leases_and_other_descriptions() {
    let t = Tmp::new();
    let f = t.file("f", b"x");
    ok(link(f.as_ptr(), t.p("g").as_ptr()));
    let fd = ok(open(f.as_ptr(), O_RDONLY));
    let lease = |kind: i32| fcntl(fd, F_SETLEASE, kind);
    // The same description in another process, or an O_PATH description, does not conflict.
    let path = ok(open(f.as_ptr(), O_PATH));
    let child = spawn(|| {
        pause();
        0
    });
    ok(lease(F_WRLCK));
    ok(lease(F_UNLCK));
    // Another description does, under whatever name it was opened.
    let other = ok(open(t.p("g").as_ptr(), O_RDONLY));
    fails(lease(F_WRLCK), EAGAIN);
    ok(lease(F_RDLCK));
    ok(lease(F_UNLCK));
    let (a, b) = pipe_pair();
    let reader = spawn(|| {
        put(b, b"r");
        pause();
        0
    });
    get_all(a, 1);
    ok(close(other));
    fails(lease(F_WRLCK), EAGAIN);
    kill(reader, SIGKILL);
    reap(reader);
    ok(lease(F_WRLCK));
    ok(lease(F_UNLCK));
    let writer = ok(open(t.p("g").as_ptr(), O_WRONLY));
    fails(lease(F_RDLCK), EAGAIN);
    ok(close(writer));
    ok(lease(F_RDLCK));
    ok(lease(F_UNLCK));
    kill(child, SIGKILL);
    reap(child);
    ok(close(path));
}
