//! POSIX message queues (mq_overview(7)).

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    priorities,
    attributes,
    waiting_and_timeouts,
    notification,
    notification_on_a_socket,
    names_and_errors,
    permissions,
    bytes_of_each_user,
    poll_and_close_on_exec,
];

/// A new queue, unlinked unless `keep`.
struct Mq(mqd_t, std::ffi::CString);

unsafe fn attr(maxmsg: i64, msgsize: i64) -> mq_attr {
    let mut a: mq_attr = zeroed();
    a.mq_maxmsg = maxmsg;
    a.mq_msgsize = msgsize;
    a
}

unsafe fn queue(what: &str, maxmsg: i64, msgsize: i64) -> Mq {
    let name = c(&format!("/guest-tests.{what}.{}", getpid()));
    mq_unlink(name.as_ptr());
    let a = attr(maxmsg, msgsize);
    Mq(ok(mq_open(name.as_ptr(), O_RDWR | O_CREAT | O_EXCL, 0o600 as mode_t, &a)), name)
}

impl Drop for Mq {
    fn drop(&mut self) {
        unsafe { mq_unlink(self.1.as_ptr()) };
    }
}

unsafe fn send(q: mqd_t, text: &[u8], prio: u32) -> i32 {
    mq_send(q, text.as_ptr().cast(), text.len(), prio)
}

unsafe fn receive(q: mqd_t, room: usize) -> (Vec<u8>, u32) {
    let (mut b, mut prio) = (vec![0u8; room], 77);
    let n = ok(mq_receive(q, b.as_mut_ptr().cast(), room, &mut prio));
    b.truncate(n as usize);
    (b, prio)
}

unsafe fn priorities() {
    let q = queue("prio", 4, 16);
    for (text, prio) in [(b"low", 1), (b"one", 5), (b"two", 5), (b"top", 9)] {
        ok(send(q.0, text, prio));
    }
    let got: Vec<_> = (0..4).map(|_| receive(q.0, 16)).collect();
    let want = [(b"top", 9), (b"one", 5), (b"two", 5), (b"low", 1)];
    assert!(got.iter().zip(want).all(|(g, w)| g.0 == w.0 && g.1 == w.1), "{got:?}");
    ok(send(q.0, b"", 0));
    assert_eq!(receive(q.0, 16), (Vec::new(), 0));
    fails(send(q.0, b"x", 32768), EINVAL);
    fails(send(q.0, &[0; 17], 0), EMSGSIZE);
    fails(mq_receive(q.0, [0u8; 15].as_mut_ptr().cast(), 15, std::ptr::null_mut()), EMSGSIZE);
    fails(mq_send(q.0, BAD.cast(), 4, 0), EFAULT);
}

unsafe fn attributes() {
    let q = queue("attr", 3, 100);
    let mut a = attr(0, 0);
    ok(send(q.0, b"x", 0));
    ok(mq_getattr(q.0, &mut a));
    assert_eq!((a.mq_flags, a.mq_maxmsg, a.mq_msgsize, a.mq_curmsgs), (0, 3, 100, 1));
    a.mq_flags = O_NONBLOCK.into();
    a.mq_maxmsg = 99; // only the flags are set
    let mut old = attr(0, 0);
    ok(mq_setattr(q.0, &a, &mut old));
    assert_eq!((old.mq_flags, old.mq_maxmsg), (0, 3));
    ok(mq_getattr(q.0, &mut a));
    assert_eq!((a.mq_flags, a.mq_maxmsg), (O_NONBLOCK.into(), 3));
    a.mq_flags = 1;
    fails(mq_setattr(q.0, &a, std::ptr::null_mut()), EINVAL);
    receive(q.0, 100);
    fails(mq_receive(q.0, [0u8; 100].as_mut_ptr().cast(), 100, std::ptr::null_mut()), EAGAIN);
    let n = c("/guest-tests.bad");
    for (m, s) in [(0, 1), (1, 0), (-1, 1), (65537, 1), (1, (16 << 20) + 1)] {
        fails(mq_open(n.as_ptr(), O_RDWR | O_CREAT, 0o600 as mode_t, &attr(m, s)), EINVAL);
    }
}

unsafe fn waiting_and_timeouts() {
    let q = queue("wait", 1, 8);
    let pid = spawn(|| i32::from(receive(q.0, 8) != (b"hello".to_vec(), 3)));
    asleep(pid);
    ok(send(q.0, b"hello", 3));
    exits(pid, 0);
    ok(send(q.0, b"full", 0));
    let pid = spawn(|| {
        ok(send(q.0, b"next", 0));
        0
    });
    asleep(pid);
    assert_eq!(receive(q.0, 8).0, b"full");
    exits(pid, 0);
    let past = timespec { tv_sec: 1, tv_nsec: 0 };
    fails(mq_timedsend(q.0, b"x".as_ptr().cast(), 1, 0, &past), ETIMEDOUT);
    assert_eq!(receive(q.0, 8).0, b"next");
    fails(mq_timedreceive(q.0, [0u8; 8].as_mut_ptr().cast(), 8, std::ptr::null_mut(), &past), ETIMEDOUT);
    let bad = timespec { tv_sec: 1, tv_nsec: 1_000_000_000 };
    fails(mq_timedsend(q.0, b"x".as_ptr().cast(), 1, 0, &bad), EINVAL);
    on(SIGUSR1, nothing as *const () as usize, 0);
    let k = interrupt_me(SIGUSR1);
    fails(mq_receive(q.0, [0u8; 8].as_mut_ptr().cast(), 8, std::ptr::null_mut()), EINTR);
    exits(k, 0);
}

unsafe fn notification() {
    let q = queue("notify", 4, 8);
    let sig = SIGRTMIN() + 3;
    block(&[sig]);
    let mut ev: sigevent = zeroed();
    ev.sigev_notify = SIGEV_SIGNAL;
    ev.sigev_signo = sig;
    ev.sigev_value.sival_ptr = 0x1234 as *mut c_void;
    ok(mq_notify(q.0, &ev));
    in_child(|| fails(mq_notify(q.0, &ev), EBUSY));
    ok(send(q.0, b"a", 0));
    let mut info: siginfo_t = zeroed();
    let t = timespec { tv_sec: 20, tv_nsec: 0 };
    is(sigtimedwait(&set_of(&[sig]), &mut info, &t), sig.into());
    assert_eq!((info.si_code, info.si_pid(), info.si_value().sival_ptr as u64), (SI_MESGQ, getpid(), 0x1234));
    // Sent once, and only if the queue was empty.
    ok(mq_notify(q.0, &ev));
    ok(send(q.0, b"b", 0));
    let none = timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    fails(sigtimedwait(&set_of(&[sig]), &mut info, &none), EAGAIN);
    ok(mq_notify(q.0, std::ptr::null()));
    ev.sigev_signo = 65;
    fails(mq_notify(q.0, &ev), EINVAL);
    ev.sigev_notify = 99;
    fails(mq_notify(q.0, &ev), EINVAL);
    fails(mq_notify(99, std::ptr::null()), EBADF);
}

/// `SIGEV_THREAD`: the kernel returns 32 bytes of the caller on a netlink socket, the last one with the reason. The C
/// library starts a thread for it.
unsafe fn notification_on_a_socket() {
    let q = queue("cookies", 4, 8);
    let s = ok(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
    let mut cookie = [7u8; 32];
    let mut ev: sigevent = zeroed();
    ev.sigev_notify = SIGEV_THREAD;
    ev.sigev_signo = s;
    ev.sigev_value.sival_ptr = cookie.as_mut_ptr().cast();
    // Not through the C library, which has its own socket.
    let notify = |e: *const sigevent| syscall(SYS_mq_notify, q.0, e);
    let told = || {
        let mut b = [0u8; 64];
        is(recv(s, b.as_mut_ptr().cast(), 64, 0), 32);
        assert_eq!(b[..31], [7; 31]);
        b[31]
    };
    ok(notify(&ev));
    fails(notify(&ev), EBUSY);
    ok(send(q.0, b"a", 0));
    assert_eq!(told(), 1); // NOTIFY_WOKENUP
    ok(notify(&ev));
    ok(notify(std::ptr::null()));
    assert_eq!(told(), 2); // NOTIFY_REMOVED
    ok(notify(&ev));
    in_child(|| {
        close(q.0);
    });
    fails(recv(s, cookie.as_mut_ptr().cast(), 32, MSG_DONTWAIT), EAGAIN);
    close(ok(dup(q.0)));
    assert_eq!(told(), 2);
    let (r, _w) = pipe_pair();
    ev.sigev_signo = r;
    fails(notify(&ev), ENOTSOCK);
    ev.sigev_signo = ok(socket(AF_UNIX, SOCK_STREAM, 0));
    fails(notify(&ev), EINVAL);
    ev.sigev_signo = -1;
    fails(notify(&ev), EBADF);
    ev.sigev_value.sival_ptr = BAD;
    fails(notify(&ev), EFAULT);
}

unsafe fn names_and_errors() {
    let q = queue("names", 1, 8);
    let no = std::ptr::null::<mq_attr>();
    fails(mq_open(q.1.as_ptr(), O_RDWR | O_CREAT | O_EXCL, 0o600 as mode_t, no), EEXIST);
    let again = ok(mq_open(q.1.as_ptr(), O_RDONLY));
    fails(send(again, b"x", 0), EBADF);
    ok(send(q.0, b"x", 0));
    assert_eq!(receive(again, 8).0, b"x");
    ok(mq_unlink(q.1.as_ptr()));
    fails(mq_unlink(q.1.as_ptr()), ENOENT);
    fails(mq_open(q.1.as_ptr(), O_RDWR), ENOENT);
    ok(send(q.0, b"y", 0)); // exists without a name
    fails(mq_open(c("/a/b").as_ptr(), O_RDWR | O_CREAT, 0o600 as mode_t, no), EACCES);
    fails(mq_open(c(&format!("/{}", "n".repeat(256))).as_ptr(), O_RDWR), ENAMETOOLONG);
    let (r, _w) = pipe_pair();
    fails(send(r, b"x", 0), EBADF);
}

unsafe fn permissions() {
    if !root() {
        return;
    }
    let q = queue("perm", 1, 8);
    in_child(|| {
        become_nobody();
        fails(mq_open(q.1.as_ptr(), O_RDONLY), EACCES);
        fails(mq_unlink(q.1.as_ptr()), EACCES);
    });
    assert_eq!(fstat_of(q.0).st_mode & S_IFMT, S_IFREG);
}

unsafe fn poll_and_close_on_exec() {
    let q = queue("poll", 1, 8);
    is(fcntl(q.0, F_GETFD), FD_CLOEXEC.into());
    let mut p = pollfd { fd: q.0, events: POLLIN | POLLOUT, revents: 0 };
    is(poll(&mut p, 1, 0), 1);
    assert_eq!(p.revents, POLLOUT);
    ok(send(q.0, b"abc", 0));
    is(poll(&mut p, 1, 0), 1);
    assert_eq!(p.revents, POLLIN);
    assert!(get(q.0, 100).starts_with(b"QSIZE:3 "));
}

/// Queues are charged to the user that created them (`RLIMIT_MSGQUEUE`), also when unlinked, and to no other.
unsafe fn bytes_of_each_user() {
    if !root() {
        return;
    }
    let become_user = |n: u32| {
        // A user id that no other process has.
        let uid = 200_000 + 2 * getpid() as u32 + n;
        ok(setrlimit(RLIMIT_MSGQUEUE, &rlimit { rlim_cur: 819_200, rlim_max: 819_200 }));
        ok(setresuid(uid, uid, uid));
    };
    let default = std::ptr::null::<mq_attr>();
    let make = |n: usize| {
        let name = c(&format!("/guest-tests-{}-{n}", getpid()));
        let q = mq_open(name.as_ptr(), O_RDWR | O_CREAT, 0o600 as mode_t, default);
        if q >= 0 {
            ok(mq_unlink(name.as_ptr()));
        }
        q
    };
    let (r, w) = pipe_pair();
    let full = spawn(|| {
        become_user(0);
        assert_eq!((0..100).take_while(|n| make(*n) >= 0).count(), 9);
        fails(make(0), EMFILE);
        put(w, b"x");
        loop {
            pause();
        }
    });
    get(r, 1);
    in_child(|| {
        become_user(1);
        ok(make(0));
    });
    ok(make(0));
    ok(kill(full, SIGKILL));
    reap(full);
}
