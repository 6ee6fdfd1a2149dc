//! splice(2), tee(2), vmsplice(2), sendfile(2).

use super::*;
use std::ptr::null_mut;

pub const CASES: &[crate::Case] = cases![
    file_to_pipe,
    pipe_to_file,
    pipe_to_pipe,
    sockets,
    tee_copies,
    vmsplice_both_ways,
    errors,
    full_and_empty,
    waits,
    broken_pipe,
    sendfile_to_socket,
    sendfile_errors,
];

unsafe fn move_bytes(a: i32, b: i32, n: usize) -> isize {
    splice(a, null_mut(), b, null_mut(), n, 0)
}

unsafe fn file_to_pipe() {
    let t = Tmp::new();
    let f = t.open("f");
    put(f, b"0123456789");
    let (r, w) = pipe_pair();
    let mut at = 2i64;
    is(splice(f, &mut at, w, null_mut(), 4, 0), 4);
    assert_eq!((at, get(r, 99)), (6, b"2345".to_vec()));
    ok(lseek(f, 7, SEEK_SET));
    is(move_bytes(f, w, 99), 3);
    assert_eq!(get(r, 99), b"789");
    is(move_bytes(f, w, 99), 0);
    is(lseek(f, 0, SEEK_CUR), 10);
}

unsafe fn pipe_to_file() {
    let t = Tmp::new();
    let f = t.open("f");
    let (r, w) = pipe_pair();
    put(w, b"hello world");
    let mut at = 3i64;
    is(splice(r, null_mut(), f, &mut at, 5, 0), 5);
    assert_eq!(at, 8);
    is(move_bytes(r, f, 99), 6);
    assert_eq!(std::fs::read(t.s("f")).unwrap(), b" worldlo");
    close(w);
    is(move_bytes(r, f, 99), 0);
    let a = ok(open(t.p("f").as_ptr(), O_WRONLY | O_APPEND));
    fails(move_bytes(r, a, 9), EINVAL);
}

unsafe fn pipe_to_pipe() {
    let (r, w) = pipe_pair();
    let (s, x) = pipe_pair();
    put(w, b"abcdef");
    is(move_bytes(r, x, 4), 4);
    assert_eq!(get(s, 99), b"abcd");
    is(move_bytes(r, x, 4), 2);
    assert_eq!(get(s, 99), b"ef");
    fails(move_bytes(r, w, 4), EINVAL);
}

unsafe fn sockets() {
    let (c, s) = pair();
    let (r, w) = pipe_pair();
    put(w, b"through");
    is(move_bytes(r, c, 99), 7);
    assert_eq!(get(s, 99), b"through");
    put(c, b"and back");
    is(move_bytes(s, w, 99), 8);
    assert_eq!(get(r, 99), b"and back");
    close(c);
    is(move_bytes(s, w, 99), 0);
}

unsafe fn tee_copies() {
    let (r, w) = pipe_pair();
    let (s, x) = pipe_pair();
    put(w, b"twice");
    is(tee(r, x, 3, 0), 3);
    assert_eq!((get(s, 99), get(r, 99)), (b"twi".to_vec(), b"twice".to_vec()));
    fails(tee(r, w, 3, 0), EINVAL);
    fails(tee(r, x, 3, SPLICE_F_NONBLOCK), EAGAIN);
    close(w);
    is(tee(r, x, 3, 0), 0);
    let t = Tmp::new();
    fails(tee(t.open("f"), x, 3, 0), EINVAL);
}

unsafe fn vmsplice_both_ways() {
    let (r, w) = pipe_pair();
    let mut a = *b"one";
    let mut b = *b"two!";
    let mut v =
        [iovec { iov_base: a.as_mut_ptr().cast(), iov_len: 3 }, iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 4 }];
    is(vmsplice(w, v.as_mut_ptr(), 2, 0), 7);
    // The pipe may refer to the very pages, so they must not change.
    let (mut c, mut d) = ([0; 3], [0; 4]);
    let mut to =
        [iovec { iov_base: c.as_mut_ptr().cast(), iov_len: 3 }, iovec { iov_base: d.as_mut_ptr().cast(), iov_len: 4 }];
    is(vmsplice(r, to.as_mut_ptr(), 2, 0), 7);
    assert_eq!((c, d), (a, b));
    fails(vmsplice(tcp(), v.as_mut_ptr(), 2, 0), EBADF);
    fails(vmsplice(w, v.as_mut_ptr(), 2, 0x100), EINVAL);
    fails(vmsplice(w, BAD.cast(), 2, 0), EFAULT);
    is(vmsplice(w, v.as_mut_ptr(), 0, 0), 0);
}

unsafe fn errors() {
    let t = Tmp::new();
    let f = t.open("f");
    let g = t.open("g");
    let (r, w) = pipe_pair();
    let mut at = 0i64;
    fails(move_bytes(f, g, 9), EINVAL);
    fails(move_bytes(f, r, 9), EBADF);
    fails(move_bytes(w, f, 9), EBADF);
    fails(move_bytes(99, w, 9), EBADF);
    fails(splice(f, null_mut(), w, &mut at, 9, 0), ESPIPE);
    fails(splice(r, &mut at, f, null_mut(), 9, 0), ESPIPE);
    fails(splice(f, null_mut(), w, null_mut(), 9, 0x100), EINVAL);
    is(splice(f, null_mut(), w, null_mut(), 0, 0), 0);
    let d = ok(open(t.p("").as_ptr(), O_RDONLY));
    fails(move_bytes(d, w, 9), EINVAL);
}

unsafe fn full_and_empty() {
    let t = Tmp::new();
    let f = t.file("f", &[7; 200_000]);
    let f = ok(open(f.as_ptr(), O_RDONLY));
    let (r, w) = pipe_pair();
    is(splice(f, null_mut(), w, null_mut(), 200_000, SPLICE_F_NONBLOCK), 65536);
    fails(splice(f, null_mut(), w, null_mut(), 9, SPLICE_F_NONBLOCK), EAGAIN);
    is(lseek(f, 0, SEEK_CUR), 65536);
    let o = t.open("o");
    is(splice(r, null_mut(), o, null_mut(), 200_000, SPLICE_F_NONBLOCK), 65536);
    fails(splice(r, null_mut(), o, null_mut(), 9, SPLICE_F_NONBLOCK), EAGAIN);
}

unsafe fn waits() {
    let t = Tmp::new();
    let o = t.open("o");
    let (r, w) = pipe_pair();
    let me = getpid();
    let pid = spawn(|| {
        asleep(me);
        put(w, b"late");
        0
    });
    is(move_bytes(r, o, 99), 4);
    exits(pid, 0);
    on(SIGUSR1, nothing as *const () as usize, 0);
    let pid = interrupt_me(SIGUSR1);
    fails(move_bytes(r, o, 99), EINTR);
    exits(pid, 0);
}

unsafe fn broken_pipe() {
    let t = Tmp::new();
    let f = t.open("f");
    put(f, b"x");
    ok(lseek(f, 0, SEEK_SET));
    let (r, w) = pipe_pair();
    close(r);
    let pid = spawn(|| {
        move_bytes(f, w, 9);
        0
    });
    dies(pid, SIGPIPE);
    signal(SIGPIPE, SIG_IGN);
    fails(move_bytes(f, w, 9), EPIPE);
}

unsafe fn sendfile_to_socket() {
    let t = Tmp::new();
    let data: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let f = t.file("f", &data);
    let f = ok(open(f.as_ptr(), O_RDONLY));
    let (c, s) = pair();
    let pid = spawn(|| {
        close(s);
        let mut at = 0;
        while at < 300_000 {
            let mut off = at;
            let n = ok(sendfile(c, f, &mut off, 300_000 - at as usize));
            assert_eq!(off, at + n as i64);
            at = off;
        }
        0
    });
    assert!(get_all(s, 300_000) == data);
    exits(pid, 0);
}

unsafe fn sendfile_errors() {
    let t = Tmp::new();
    let f = t.open("f");
    let (r, w) = pipe_pair();
    let (c, _s) = pair();
    fails(sendfile(c, r, null_mut(), 9), EINVAL);
    fails(sendfile(c, 99, null_mut(), 9), EBADF);
    fails(sendfile(r, f, null_mut(), 9), EBADF);
    fails(sendfile(f, w, null_mut(), 9), EBADF);
    let mut off = -1;
    fails(sendfile(c, f, &mut off, 9), EINVAL);
    let a = ok(open(t.p("f").as_ptr(), O_WRONLY | O_APPEND));
    fails(sendfile(a, f, null_mut(), 9), EINVAL);
    is(sendfile(c, f, null_mut(), 9), 0);
}
