//! io_setup(2), io_submit(2), io_getevents(2), io_cancel(2), io_destroy(2).

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    reads_and_writes,
    vectors_and_syncs,
    setup_errors,
    submit_errors,
    waiting,
    polls,
    many_polls,
    cancelled,
    completion_on_eventfd,
    not_inherited
];

#[allow(non_upper_case_globals)]
const SYS_io_pgetevents: c_long = 333;
const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const FSYNC: u16 = 2;
const FDSYNC: u16 = 3;
const POLL: u16 = 5;
const PREADV: u16 = 7;
const PWRITEV: u16 = 8;

/// `struct iocb`.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    prio: i16,
    fd: i32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: i32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

unsafe fn setup(n: u32) -> u64 {
    let mut id = 0u64;
    zero(syscall(SYS_io_setup, n, &mut id) as i32);
    assert_ne!(id, 0);
    id
}

fn cb(data: u64, opcode: u16, fd: i32, buf: u64, nbytes: u64, offset: i64) -> Iocb {
    Iocb { data, key: 77, opcode, fd, buf, nbytes, offset, ..Iocb::default() }
}

unsafe fn submit(id: u64, list: &mut [Iocb]) -> i64 {
    let all: Vec<*mut Iocb> = list.iter_mut().map(|c| c as *mut Iocb).collect();
    syscall(SYS_io_submit, id, all.len(), all.as_ptr())
}

unsafe fn events(id: u64, min: i64, max: usize, ms: Option<i64>) -> Vec<Event> {
    let mut list = vec![Event::default(); max];
    let t = ms.map(|m| timespec { tv_sec: m / 1000, tv_nsec: m % 1000 * 1_000_000 });
    let t = t.as_ref().map_or(std::ptr::null(), |t| t as *const timespec);
    let n = ok(syscall(SYS_io_getevents, id, min, max, list.as_mut_ptr(), t));
    list.truncate(n as usize);
    list
}

unsafe fn reads_and_writes() {
    let t = Tmp::new();
    t.file("f", b"0123456789");
    let fd = t.open("f");
    let id = setup(8);
    let mut buf = [0u8; 16];
    let at = buf.as_mut_ptr() as u64;
    let mut list = [
        cb(1, PWRITE, fd, b"abc".as_ptr() as u64, 3, 4),
        cb(2, PREAD, fd, at, 16, 2),
        cb(3, PREAD, fd, at, 16, 100),
        cb(4, PREAD, fd, 8, 16, 0),
    ];
    is(submit(id, &mut list), 4);
    assert!(list.iter().all(|c| c.key == 0));
    let got = events(id, 4, 9, None);
    let want = [(1, 3), (2, 8), (3, 0), (4, -i64::from(EFAULT))];
    for (i, (data, res)) in want.into_iter().enumerate() {
        assert_eq!(got[i], Event { data, obj: &list[i] as *const Iocb as u64, res, res2: 0 });
    }
    assert_eq!(&buf[..8], b"23abc789");
    // The file's own offset does not change.
    is(lseek(fd, 0, SEEK_CUR), 0);
    assert_eq!(events(id, 0, 4, None), []);
    zero(syscall(SYS_io_destroy, id) as i32);
    fails(syscall(SYS_io_destroy, id), EINVAL);
    fails(submit(id, &mut list), EINVAL);
}

unsafe fn vectors_and_syncs() {
    let t = Tmp::new();
    t.file("f", b"");
    let fd = t.open("f");
    let id = setup(4);
    let out =
        [iovec { iov_base: b"ab".as_ptr() as _, iov_len: 2 }, iovec { iov_base: b"cde".as_ptr() as _, iov_len: 3 }];
    let (mut x, mut y) = ([0u8; 1], [0u8; 9]);
    let into =
        [iovec { iov_base: x.as_mut_ptr() as _, iov_len: 1 }, iovec { iov_base: y.as_mut_ptr() as _, iov_len: 9 }];
    let mut list = [
        cb(0, PWRITEV, fd, out.as_ptr() as u64, 2, 0),
        cb(0, FSYNC, fd, 0, 0, 0),
        cb(0, FDSYNC, fd, 0, 0, 0),
        cb(0, PREADV, fd, into.as_ptr() as u64, 2, 0),
    ];
    is(submit(id, &mut list), 4);
    let mut got: Vec<_> = events(id, 4, 4, None).iter().map(|e| (e.obj, e.res)).collect();
    got.sort();
    assert_eq!(got.iter().map(|e| e.1).collect::<Vec<_>>(), [5, 0, 0, 5]);
    assert_eq!((x[0], &y[..4]), (b'a', &b"bcde"[..]));
    zero(syscall(SYS_io_destroy, id) as i32);
}

unsafe fn setup_errors() {
    let mut id = 0u64;
    fails(syscall(SYS_io_setup, 1, 0), EFAULT);
    fails(syscall(SYS_io_setup, 0, &mut id), EINVAL);
    fails(syscall(SYS_io_setup, -1, &mut id), EINVAL);
    id = 1;
    fails(syscall(SYS_io_setup, 1, &mut id), EINVAL);
    let max: u64 = std::fs::read_to_string("/proc/sys/fs/aio-max-nr").unwrap().trim().parse().unwrap();
    if max < 1 << 22 {
        id = 0;
        fails(syscall(SYS_io_setup, max + 1, &mut id), EAGAIN);
    }
    fails(syscall(SYS_io_destroy, 0), EINVAL);
    fails(syscall(SYS_io_destroy, u64::MAX), EINVAL);
    let mut e = Event::default();
    fails(syscall(SYS_io_getevents, 0, 0, 1, &mut e, 0), EINVAL);
    let id = setup(1);
    fails(syscall(SYS_io_getevents, id, -1i64, 1, &mut e, 0), EINVAL);
    fails(syscall(SYS_io_getevents, id, 2, 1, &mut e, 0), EINVAL);
    fails(syscall(SYS_io_getevents, id, 0, 1, &mut e, 8), EFAULT);
    zero(syscall(SYS_io_destroy, id) as i32);
}

unsafe fn submit_errors() {
    let t = Tmp::new();
    t.file("f", b"x");
    let (rd, wr) = (ok(open(t.p("f").as_ptr(), O_RDONLY)), ok(open(t.p("f").as_ptr(), O_WRONLY)));
    let id = setup(1);
    let mut byte = [0u8];
    let at = byte.as_mut_ptr() as u64;
    let good = cb(0, PREAD, rd, at, 1, 0);
    fails(syscall(SYS_io_submit, id, -1i64, 0), EINVAL);
    is(syscall(SYS_io_submit, id, 0, 0), 0);
    fails(syscall(SYS_io_submit, id, 1, 8), EFAULT);
    fails(syscall(SYS_io_submit, id, 1, [0u64].as_ptr()), EFAULT);
    fails(syscall(SYS_io_submit, 0, 1, [0u64].as_ptr()), EINVAL);
    for (c, e) in [
        (Iocb { fd: -1, ..good }, EBADF),
        (Iocb { fd: wr, ..good }, EBADF),
        (Iocb { opcode: PWRITE, ..good }, EBADF),
        (Iocb { opcode: 99, ..good }, EINVAL),
        (Iocb { reserved: 1, ..good }, EINVAL),
        (Iocb { nbytes: u64::MAX, ..good }, EINVAL),
        (Iocb { flags: 1, resfd: -1, ..good }, EBADF),
        (Iocb { flags: 1, resfd: rd, ..good }, EINVAL),
        (Iocb { opcode: FSYNC, ..good }, EINVAL),
        (Iocb { rw_flags: 0x4000_0000, ..good }, EOPNOTSUPP),
        (Iocb { opcode: POLL, buf: 1 << 20, nbytes: 0, ..good }, EINVAL),
    ] {
        fails(submit(id, &mut [c]), e);
    }
    // The requests before the bad one are done.
    is(submit(id, &mut [good, Iocb { fd: -1, ..good }, good]), 1);
    assert_eq!(events(id, 1, 5, None).len(), 1);
    assert_eq!(byte, *b"x");
    zero(syscall(SYS_io_destroy, id) as i32);
}

unsafe fn waiting() {
    let id = setup(2);
    let began = std::time::Instant::now();
    assert_eq!(events(id, 1, 2, Some(30)), []);
    assert!(began.elapsed().as_millis() >= 30);
    assert_eq!(events(id, 1, 2, Some(0)), []);
    extern "C" fn nothing(_: i32) {}
    on(SIGUSR1, nothing as *const () as usize, 0);
    let pid = interrupt_me(SIGUSR1);
    let mut e = Event::default();
    fails(syscall(SYS_io_getevents, id, 1, 1, &mut e, 0), EINTR);
    exits(pid, 0);
    // io_pgetevents(2): a signal unblocked for the wait ends it, and is blocked again afterwards.
    block(&[SIGUSR1]);
    ok(raise(SIGUSR1));
    let (none, all) = (0u64, u64::MAX);
    let sig = |mask: &u64, size: u64| [mask as *const u64 as u64, size];
    let now = timespec { tv_sec: 0, tv_nsec: 0 };
    is(syscall(SYS_io_pgetevents, id, 1, 1, &mut e, &now, sig(&all, 8).as_ptr()), 0);
    fails(syscall(SYS_io_pgetevents, id, 1, 1, &mut e, 0, sig(&none, 8).as_ptr()), EINTR);
    fails(syscall(SYS_io_pgetevents, id, 1, 1, &mut e, &now, sig(&none, 4).as_ptr()), EINVAL);
    fails(syscall(SYS_io_pgetevents, id, 1, 1, &mut e, &now, 8), EFAULT);
    let mut now_blocked: sigset_t = zeroed();
    zero(sigprocmask(SIG_BLOCK, std::ptr::null(), &mut now_blocked));
    is(sigismember(&now_blocked, SIGUSR1), 1);
    zero(syscall(SYS_io_destroy, id) as i32);
}

/// One write completes thousands of polls; each is reported once, also one cancelled before.
unsafe fn many_polls() {
    const N: usize = 20_000;
    let id = setup(N as u32);
    let (r, w) = pipe_pair();
    let mut list: Vec<Iocb> = (0..N as u64).map(|i| cb(i, POLL, r, POLLIN as u64, 0, 0)).collect();
    for part in list.chunks_mut(1000) {
        is(submit(id, part), 1000);
    }
    fails(syscall(SYS_io_cancel, id, &list[N / 2], [0u64; 4].as_mut_ptr()), EINPROGRESS);
    put(w, b"x");
    let mut told = vec![0; N];
    while told.contains(&0) {
        events(id, 1, 4096, None).iter().for_each(|e| told[e.data as usize] += 1);
    }
    assert!(told.iter().all(|n| *n == 1) && events(id, 0, 9, None).is_empty());
    zero(syscall(SYS_io_destroy, id) as i32);
}

unsafe fn polls() {
    let id = setup(4);
    let (r, w) = pipe_pair();
    let mut list = [cb(5, POLL, r, POLLIN as u64, 0, 0), cb(6, POLL, w, POLLOUT as u64, 0, 0)];
    is(submit(id, &mut list), 2);
    let got = events(id, 1, 4, None);
    assert_eq!(got.iter().map(|e| (e.data, e.res)).collect::<Vec<_>>(), [(6, POLLOUT.into())]);
    let pid = spawn(|| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        put(w, b"x");
        0
    });
    let got = events(id, 1, 4, None);
    // Other events that are ready may be reported too.
    assert_eq!(got.iter().map(|e| (e.data, e.res & i64::from(POLLIN))).collect::<Vec<_>>(), [(5, POLLIN.into())]);
    exits(pid, 0);
    get(r, 1);
    // A request in progress ends with its context.
    is(submit(id, &mut list[..1]), 1);
    zero(syscall(SYS_io_destroy, id) as i32);
    put(w, b"y");
    assert_eq!(get(r, 9), b"y");
}

unsafe fn cancelled() {
    let id = setup(4);
    let (r, _w) = pipe_pair();
    let mut list = [cb(5, POLL, r, POLLIN as u64, 0, 0)];
    let mut e = Event::default();
    fails(syscall(SYS_io_cancel, id, 0, &mut e), EFAULT);
    fails(syscall(SYS_io_cancel, id, &list[0], &mut e), EINVAL);
    is(submit(id, &mut list), 1);
    fails(syscall(SYS_io_cancel, 0, &list[0], &mut e), EINVAL);
    fails(syscall(SYS_io_cancel, id, &list[0], &mut e), EINPROGRESS);
    let got = events(id, 1, 4, None);
    assert_eq!(got.iter().map(|e| (e.data, e.res)).collect::<Vec<_>>(), [(5, 0)]);
    fails(syscall(SYS_io_cancel, id, &list[0], &mut e), EINVAL);
    zero(syscall(SYS_io_destroy, id) as i32);
}

unsafe fn completion_on_eventfd() {
    let t = Tmp::new();
    t.file("f", b"0123456789");
    let fd = t.open("f");
    let tell = ok(eventfd(0, EFD_NONBLOCK));
    let id = setup(4);
    let mut buf = [0u8; 16];
    let one = Iocb { flags: 1, resfd: tell, ..cb(9, PREAD, fd, buf.as_mut_ptr() as u64, 4, 0) };
    is(submit(id, &mut [one, one]), 2);
    let mut p = pollfd { fd: tell, events: POLLIN, revents: 0 };
    let mut told = 0;
    while told < 2 {
        is(poll(&mut p, 1, 5000), 1);
        let mut n = 0u64;
        is(read(tell, (&mut n as *mut u64).cast(), 8), 8);
        told += n;
    }
    assert_eq!(events(id, 2, 2, Some(0)).len(), 2);
    assert_eq!(&buf[..4], b"0123");
    // The counter can overflow.
    put(tell, &(u64::MAX - 1).to_ne_bytes());
    is(submit(id, &mut [one]), 1);
    is(poll(&mut p, 1, 5000), 1);
    assert_ne!(p.revents & POLLERR, 0);
    assert_eq!(get(tell, 8), u64::MAX.to_ne_bytes());
    zero(syscall(SYS_io_destroy, id) as i32);
}

/// A context belongs to its address space: threads share it, a child has none.
unsafe fn not_inherited() {
    let t = Tmp::new();
    t.file("f", b"0");
    let fd = t.open("f");
    let id = setup(4);
    let mut b = [0u8];
    let one = cb(9, PREAD, fd, b.as_mut_ptr() as u64, 1, 0);
    in_child(|| fails(submit(id, &mut [one]), EINVAL));
    std::thread::scope(|s| {
        s.spawn(|| unsafe { is(submit(id, &mut [one]), 1) });
    });
    assert_eq!(events(id, 1, 1, None)[0].data, 9);
    zero(syscall(SYS_io_destroy, id) as i32);
}
