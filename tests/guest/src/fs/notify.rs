//! inotify(7).

use crate::t::*;
use libc::*;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

pub const CASES: &[crate::Case] = cases![
    file_events,
    directory_events,
    moves_have_cookies,
    removal,
    oneshot_and_errors,
    poll_and_blocking,
    instances_of_a_user,
    in_an_epoll_of_several_threads
];

/// Some threads add an instance to an epoll and remove it, while others wait there and events arrive.
unsafe fn in_an_epoll_of_several_threads() {
    const ROUNDS: usize = 500;
    let dir = Tmp::new();
    let (fd, ep) = (start(), ok(epoll_create1(0)));
    ok(inotify_add_watch(fd, dir.p("").as_ptr(), IN_ALL_EVENTS));
    let left = AtomicUsize::new(4);
    std::thread::scope(|s| {
        for n in 0..2 {
            let (dir, left) = (&dir, &left);
            s.spawn(move || {
                let mut event = epoll_event { events: EPOLLIN as u32, u64: 0 };
                for _ in 0..ROUNDS {
                    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &mut event);
                    epoll_ctl(ep, EPOLL_CTL_DEL, fd, std::ptr::null_mut());
                }
                left.fetch_sub(1, SeqCst);
            });
            s.spawn(move || {
                let name = dir.p(&format!("file{n}"));
                for _ in 0..ROUNDS {
                    ok(close(ok(open(name.as_ptr(), O_CREAT | O_RDWR, 0o600))));
                    ok(unlink(name.as_ptr()));
                }
                left.fetch_sub(1, SeqCst);
            });
            s.spawn(move || {
                let mut got: [epoll_event; 4] = zeroed();
                while left.load(SeqCst) > 0 {
                    if ok(epoll_wait(ep, got.as_mut_ptr(), 4, 10)) > 0 {
                        let mut b = [0u8; 4096];
                        let n = read(fd, b.as_mut_ptr().cast(), b.len());
                        assert!(n > 0 || errno() == EAGAIN);
                    }
                }
            });
        }
    });
    // No event was lost: new ones are reported.
    while !events(fd).is_empty() {}
    let mut event = epoll_event { events: EPOLLIN as u32, u64: 7 };
    zero(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &mut event));
    ok(close(ok(open(dir.p("last").as_ptr(), O_CREAT | O_RDWR, 0o600))));
    is(epoll_wait(ep, &mut event, 1, 5000), 1);
    assert!(!events(fd).is_empty());
}

unsafe fn events(fd: i32) -> Vec<(i32, u32, u32, String)> {
    let mut b = [0u8; 8192];
    let n = read(fd, b.as_mut_ptr().cast(), b.len());
    if n == -1 && errno() == EAGAIN {
        return Vec::new();
    }
    let n = ok(n) as usize;
    let (mut at, mut v) = (0, Vec::new());
    while at < n {
        let w = |o: usize| u32::from_ne_bytes(b[at + o..at + o + 4].try_into().unwrap());
        let len = w(12) as usize;
        let name = &b[at + 16..at + 16 + len];
        let name = name.split(|&c| c == 0).next().unwrap_or(b"");
        v.push((w(0) as i32, w(4), w(8), String::from_utf8(name.to_vec()).unwrap()));
        at += 16 + len;
    }
    v
}

unsafe fn start() -> i32 {
    ok(inotify_init1(IN_NONBLOCK | IN_CLOEXEC))
}

fn masks(v: &[(i32, u32, u32, String)]) -> Vec<u32> {
    v.iter().map(|e| e.1).collect()
}

unsafe fn file_events() {
    let t = Tmp::new();
    let f = t.file("f", b"abc");
    let i = start();
    let w = ok(inotify_add_watch(i, f.as_ptr(), IN_ALL_EVENTS));
    let fd = ok(open(f.as_ptr(), O_RDWR));
    get(fd, 1);
    put(fd, b"x");
    ok(fchmod(fd, 0o600));
    ok(close(fd));
    let v = events(i);
    assert_eq!(masks(&v), [IN_OPEN, IN_ACCESS, IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE]);
    assert!(v.iter().all(|e| e.0 == w && e.3.is_empty()));
    ok(close(ok(open(f.as_ptr(), O_RDONLY))));
    assert_eq!(masks(&events(i)), [IN_OPEN, IN_CLOSE_NOWRITE]);
}

unsafe fn directory_events() {
    let t = Tmp::new();
    let i = start();
    ok(inotify_add_watch(i, t.p("").as_ptr(), IN_CREATE | IN_DELETE | IN_MODIFY));
    t.file("a", b"x");
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    ok(unlink(t.p("a").as_ptr()));
    ok(rmdir(t.p("d").as_ptr()));
    let v: Vec<_> = events(i).into_iter().map(|e| (e.1, e.3)).collect();
    let a = "a".to_string();
    let d = "d".to_string();
    assert_eq!(
        v,
        [
            (IN_CREATE, a.clone()),
            (IN_MODIFY, a.clone()),
            (IN_CREATE | IN_ISDIR, d.clone()),
            (IN_DELETE, a),
            (IN_DELETE | IN_ISDIR, d)
        ]
    );
}

unsafe fn moves_have_cookies() {
    let t = Tmp::new();
    t.file("a", b"x");
    let i = start();
    ok(inotify_add_watch(i, t.p("").as_ptr(), IN_MOVE));
    ok(rename(t.p("a").as_ptr(), t.p("b").as_ptr()));
    let v = events(i);
    assert_eq!(masks(&v), [IN_MOVED_FROM, IN_MOVED_TO]);
    assert!(v[0].2 != 0 && v[0].2 == v[1].2);
    assert_eq!((v[0].3.as_str(), v[1].3.as_str()), ("a", "b"));
}

unsafe fn removal() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    let i = start();
    let w = ok(inotify_add_watch(i, f.as_ptr(), IN_DELETE_SELF | IN_ATTRIB));
    ok(unlink(f.as_ptr()));
    assert_eq!(masks(&events(i)), [IN_ATTRIB, IN_DELETE_SELF, IN_IGNORED]);
    fails(inotify_rm_watch(i, w), EINVAL);
    let w = ok(inotify_add_watch(i, t.p("").as_ptr(), IN_CREATE));
    ok(inotify_rm_watch(i, w));
    assert_eq!(masks(&events(i)), [IN_IGNORED]);
    t.file("g", b"");
    assert!(events(i).is_empty());
}

unsafe fn oneshot_and_errors() {
    let t = Tmp::new();
    let i = start();
    ok(inotify_add_watch(i, t.p("").as_ptr(), IN_CREATE | IN_ONESHOT));
    t.file("a", b"");
    t.file("b", b"");
    assert_eq!(masks(&events(i)), [IN_CREATE, IN_IGNORED]);
    fails(inotify_add_watch(i, t.p("none").as_ptr(), IN_CREATE), ENOENT);
    fails(inotify_add_watch(i, t.p("").as_ptr(), 0), EINVAL);
    fails(inotify_add_watch(i, t.p("a").as_ptr(), IN_CREATE | IN_ONLYDIR), ENOTDIR);
    fails(inotify_add_watch(0, t.p("").as_ptr(), IN_CREATE), EINVAL);
    fails(inotify_add_watch(-1, t.p("").as_ptr(), IN_CREATE), EBADF);
    fails(inotify_init1(0x1), EINVAL);
    // The same file gives the same watch.
    let a = ok(inotify_add_watch(i, t.p("a").as_ptr(), IN_OPEN));
    is(inotify_add_watch(i, t.p("a").as_ptr(), IN_CLOSE), a.into());
}

unsafe fn poll_and_blocking() {
    let t = Tmp::new();
    let i = ok(inotify_init1(0));
    ok(inotify_add_watch(i, t.p("").as_ptr(), IN_CREATE));
    let mut p = pollfd { fd: i, events: POLLIN, revents: 0 };
    is(poll(&mut p, 1, 0), 0);
    let me = getpid();
    let pid = spawn(|| {
        asleep(me);
        t.file("x", b"");
        0
    });
    assert_eq!(events(i).len(), 1);
    exits(pid, 0);
    t.file("longer-name", b"");
    is(poll(&mut p, 1, 0), 1);
    let mut n = 0;
    ok(ioctl(i, FIONREAD, &mut n));
    assert_eq!(n, 32);
    fails(read(i, [0u8; 16].as_mut_ptr().cast(), 16), EINVAL); // too small for the event
}

/// The limit of instances holds for a user, across all processes.
unsafe fn instances_of_a_user() {
    if !root() {
        return;
    }
    let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap();
    let most: usize = most.trim().parse().unwrap();
    if most > 500 {
        eprintln!("left out: too many");
        return;
    }
    in_child(|| {
        // A user id that no other process has.
        let uid = 100_000 + getpid() as u32;
        ok(setresuid(uid, uid, uid));
        let first = start();
        let mut mine = Vec::new();
        in_child(|| {
            for _ in 1..most {
                mine.push(start());
            }
            fails(inotify_init1(0), EMFILE);
            ok(close(mine[0]));
            ok(inotify_init1(0));
        });
        ok(close(start()));
        ok(close(first));
    });
}
