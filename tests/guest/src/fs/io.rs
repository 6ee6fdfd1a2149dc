//! read(2), write(2) and related calls on regular files; lseek, truncate, fallocate, sendfile, copy_file_range.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    read_write_roundtrip,
    rw_errors,
    bad_buffers,
    positioned,
    vectors,
    vector_errors,
    preadv2_flags,
    seeking,
    seek_hole_data,
    holes_read_zero,
    truncation,
    truncate_errors,
    allocate,
    punch_hole,
    syncs,
    send_file,
    copy_range,
    copy_range_errors,
    large_transfer,
    very_large_transfers,
    file_size_limit,
    advice,
    fionread,
    offset_shared_over_fork,
    read_at_end,
    write_past_end,
    partly_bad_buffer,
    large_vectors,
    large_bad_buffers,
    one_file_after_the_other,
];

fn iov(b: &mut [u8]) -> iovec {
    iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() }
}

unsafe fn read_write_roundtrip() {
    let t = Tmp::new();
    let fd = t.open("f");
    // Sizes around the limits where an implementation switches its method of copying.
    for n in [0usize, 1, 7, 8, 4095, 4096, 4097, 65535, 65536, 65537, 300_000] {
        let data: Vec<u8> = (0..n).map(|i| (i * 7 + n) as u8).collect();
        ok(ftruncate(fd, 0));
        ok(lseek(fd, 0, SEEK_SET));
        is(write(fd, data.as_ptr().cast(), n), n as i64);
        assert_eq!(fstat_of(fd).st_size as usize, n);
        ok(lseek(fd, 0, SEEK_SET));
        assert_eq!(get(fd, n + 10), data);
    }
}

unsafe fn rw_errors() {
    let mut b = [0u8; 4];
    fails(read(-1, b.as_mut_ptr().cast(), 4), EBADF);
    fails(write(500, b.as_ptr().cast(), 4), EBADF);
    let t = Tmp::new();
    let fd = t.open("f");
    is(read(fd, BAD, 0), 0);
    is(write(fd, BAD, 0), 0);
    is(read(fd, b.as_mut_ptr().cast(), 4), 0);
    // The descriptor is checked before the buffer.
    fails(read(-1, BAD, 4), EBADF);
}

unsafe fn bad_buffers() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"0123456789");
    ok(lseek(fd, 0, SEEK_SET));
    fails(read(fd, BAD, 4), EFAULT);
    fails(write(fd, BAD, 4), EFAULT);
    fails(pread(fd, -4096isize as *mut c_void, 4, 0), EFAULT);
    fails(read(fd, (usize::MAX - 2) as *mut c_void, 100), EFAULT);
    let ro = anon(PAGE, PROT_READ);
    fails(read(fd, ro.cast(), 4), EFAULT);
    is(lseek(fd, 0, SEEK_CUR), 0);
    is(write(fd, ro.cast(), 4), 4);
}

unsafe fn positioned() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"0123456789");
    let mut b = [0u8; 4];
    is(pread(fd, b.as_mut_ptr().cast(), 4, 3), 4);
    assert_eq!(&b, b"3456");
    is(pwrite(fd, b"XY".as_ptr().cast(), 2, 5), 2);
    is(lseek(fd, 0, SEEK_CUR), 10);
    is(pread(fd, b.as_mut_ptr().cast(), 4, 8), 2);
    is(pread(fd, b.as_mut_ptr().cast(), 4, 100), 0);
    fails(pread(fd, b.as_mut_ptr().cast(), 4, -1), EINVAL);
    fails(pwrite(fd, b.as_ptr().cast(), 4, -1), EINVAL);
    let (r, w) = pipe_pair();
    fails(pread(r, b.as_mut_ptr().cast(), 4, 0), ESPIPE);
    fails(pwrite(w, b.as_ptr().cast(), 4, 0), ESPIPE);
    assert_eq!(std::fs::read(t.s("f")).unwrap(), b"01234XY789");
}

unsafe fn vectors() {
    let t = Tmp::new();
    let fd = t.open("f");
    let (mut a, mut b, mut e) = (*b"abc", *b"defgh", *b"");
    let v = [iov(&mut a), iov(&mut e), iov(&mut b)];
    is(writev(fd, v.as_ptr(), 3), 8);
    is(pwritev(fd, v.as_ptr(), 1, 6), 3);
    let (mut x, mut y) = ([0u8; 2], [0u8; 20]);
    let v = [iov(&mut x), iov(&mut y)];
    is(preadv(fd, v.as_ptr(), 2, 1), 8);
    assert_eq!((&x, &y[..6]), (b"bc", &b"defabc"[..]));
    ok(lseek(fd, 0, SEEK_SET));
    is(readv(fd, v.as_ptr(), 2), 9);
    assert_eq!(&x, b"ab");
    is(readv(fd, v.as_ptr(), 0), 0);
}

unsafe fn vector_errors() {
    let t = Tmp::new();
    let fd = t.open("f");
    let mut a = *b"abc";
    let v = vec![iov(&mut a); 1025];
    fails(writev(fd, v.as_ptr(), 1025), EINVAL);
    is(writev(fd, v.as_ptr(), 1024), 3072);
    fails(writev(fd, v.as_ptr(), -1), EINVAL);
    fails(writev(fd, BAD.cast(), 2), EFAULT);
    fails(writev(-1, v.as_ptr(), 1), EBADF);
    let huge = [iovec { iov_base: a.as_mut_ptr().cast(), iov_len: usize::MAX }];
    fails(writev(fd, huge.as_ptr(), 1), EINVAL);
    // A bad second buffer: the first one is still written.
    let v = [iov(&mut a), iovec { iov_base: BAD, iov_len: 5 }];
    is(pwritev(fd, v.as_ptr(), 2, 0), 3);
    let v = [iovec { iov_base: BAD, iov_len: 5 }, iov(&mut a)];
    fails(pwritev(fd, v.as_ptr(), 2, 0), EFAULT);
}

unsafe fn preadv2_flags() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"base");
    let mut a = *b"abc";
    let v = [iov(&mut a)];
    is(pwritev2(fd, v.as_ptr(), 1, 0, RWF_APPEND), 3);
    is(pwritev2(fd, v.as_ptr(), 1, 0, RWF_DSYNC | RWF_SYNC), 3);
    ok(lseek(fd, 1, SEEK_SET));
    is(preadv2(fd, v.as_ptr(), 1, -1, 0), 3); // -1: at the file's own offset
    assert_eq!(&a, b"bce");
    is(lseek(fd, 0, SEEK_CUR), 4);
    fails(preadv2(fd, v.as_ptr(), 1, 0, 1 << 20), EOPNOTSUPP);
    assert_eq!(std::fs::read(t.s("f")).unwrap(), b"abceabc");
}

unsafe fn seeking() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"0123456789");
    is(lseek(fd, 4, SEEK_SET), 4);
    is(lseek(fd, 2, SEEK_CUR), 6);
    is(lseek(fd, -1, SEEK_END), 9);
    is(lseek(fd, 100, SEEK_END), 110);
    fails(lseek(fd, -1, SEEK_SET), EINVAL);
    fails(lseek(fd, -200, SEEK_CUR), EINVAL);
    fails(lseek(fd, 0, 99), EINVAL);
    is(lseek(fd, 0, SEEK_CUR), 110);
    assert_eq!(get(fd, 4), b"");
    fails(lseek(-1, 0, SEEK_SET), EBADF);
    let (r, _w) = pipe_pair();
    fails(lseek(r, 0, SEEK_SET), ESPIPE);
}

unsafe fn seek_hole_data() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, &[1; 100]);
    is(lseek(fd, 0, SEEK_DATA), 0);
    is(lseek(fd, 50, SEEK_DATA), 50);
    is(lseek(fd, 0, SEEK_HOLE), 100); // the end counts as a hole
    fails(lseek(fd, 100, SEEK_DATA), ENXIO);
    fails(lseek(fd, 100, SEEK_HOLE), ENXIO);
    fails(lseek(fd, -1, SEEK_DATA), ENXIO);
    // Reading a hole does not fill it.
    const BLOCK: i64 = 1 << 16;
    let fd = t.open("sparse");
    for at in [0, 10, 20] {
        is(pwrite(fd, [7u8; 512].as_ptr().cast(), 512, at * BLOCK), 512);
    }
    let blocks = fstat_of(fd).st_blocks;
    let mut b = vec![1u8; BLOCK as usize];
    for at in 1..10 {
        is(pread(fd, b.as_mut_ptr().cast(), b.len(), at * BLOCK), BLOCK);
        assert!(b.iter().all(|&x| x == 0));
    }
    is(pread(fd, b.as_mut_ptr().cast(), b.len(), 10 * BLOCK), BLOCK);
    assert_eq!((b[511], b[512]), (7, 0));
    assert_eq!(fstat_of(fd).st_blocks, blocks);
    is(lseek(fd, BLOCK, SEEK_DATA), 10 * BLOCK);
    is(lseek(fd, 11 * BLOCK, SEEK_DATA), 20 * BLOCK);
    assert!((10 * BLOCK + 512..=11 * BLOCK).contains(&lseek(fd, 10 * BLOCK, SEEK_HOLE)));
}

unsafe fn holes_read_zero() {
    let t = Tmp::new();
    let fd = t.open("f");
    is(pwrite(fd, b"end".as_ptr().cast(), 3, 1 << 32), 3);
    assert_eq!(fstat_of(fd).st_size, (1 << 32) + 3);
    assert!(fstat_of(fd).st_blocks < 1 << 16, "sparse");
    let mut b = [9u8; 100];
    is(pread(fd, b.as_mut_ptr().cast(), 100, 1 << 20), 100);
    assert_eq!(b, [0; 100]);
    is(pread(fd, b.as_mut_ptr().cast(), 100, (1 << 32) - 1), 4);
    assert_eq!(&b[..4], b"\0end");
}

unsafe fn truncation() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"0123456789");
    ok(ftruncate(fd, 4));
    is(lseek(fd, 0, SEEK_CUR), 10);
    ok(truncate(t.p("f").as_ptr(), 8));
    assert_eq!(std::fs::read(t.s("f")).unwrap(), b"0123\0\0\0\0");
    ok(truncate(t.p("f").as_ptr(), 0));
    assert_eq!(fstat_of(fd).st_size, 0);
    // Truncated data does not reappear.
    ok(ftruncate(fd, 10_000));
    let mut b = [1u8; 16];
    is(pread(fd, b.as_mut_ptr().cast(), 16, 0), 16);
    assert_eq!(b, [0; 16]);
}

unsafe fn truncate_errors() {
    let t = Tmp::new();
    let f = t.file("f", b"x");
    fails(truncate(t.p("none").as_ptr(), 0), ENOENT);
    fails(truncate(t.p("").as_ptr(), 0), EISDIR);
    fails(truncate(f.as_ptr(), -1), EINVAL);
    fails(truncate(BAD.cast(), 0), EFAULT);
    let rd = ok(open(f.as_ptr(), O_RDONLY));
    fails(ftruncate(rd, 0), EINVAL);
    fails(ftruncate(-1, 0), EBADF);
    let fd = ok(open(f.as_ptr(), O_RDWR));
    fails(ftruncate(fd, -1), EINVAL);
    let (_r, w) = pipe_pair();
    fails(ftruncate(w, 0), EINVAL);
    fails(truncate(c("/dev/null").as_ptr(), 0), EINVAL);
}

unsafe fn allocate() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"abc");
    ok(fallocate(fd, 0, 0, 10_000));
    assert_eq!(fstat_of(fd).st_size, 10_000);
    let r = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 50_000);
    if r == -1 {
        assert_eq!(errno(), EOPNOTSUPP);
    }
    assert_eq!(fstat_of(fd).st_size, 10_000);
    fails(fallocate(fd, 0, -1, 10), EINVAL);
    fails(fallocate(fd, 0, 0, 0), EINVAL);
    let (_r, w) = pipe_pair();
    fails(fallocate(w, 0, 0, 10), ESPIPE);
    let rd = ok(open(t.p("f").as_ptr(), O_RDONLY));
    fails(fallocate(rd, 0, 0, 10), EBADF);
    assert_eq!(&std::fs::read(t.s("f")).unwrap()[..4], b"abc\0");
    zero(posix_fallocate(fd, 0, 20_000));
    assert_eq!(fstat_of(fd).st_size, 20_000);
}

unsafe fn punch_hole() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, &[7; 3 * PAGE]);
    let r = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE as i64, PAGE as i64);
    if r == -1 && errno() == EOPNOTSUPP {
        return;
    }
    ok(r);
    let d = std::fs::read(t.s("f")).unwrap();
    assert_eq!(d.len(), 3 * PAGE);
    assert!(d[..PAGE].iter().chain(&d[2 * PAGE..]).all(|&x| x == 7) && d[PAGE..2 * PAGE].iter().all(|&x| x == 0));
    fails(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 10), EOPNOTSUPP);
}

unsafe fn syncs() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"x");
    ok(fsync(fd));
    ok(fdatasync(fd));
    ok(syncfs(fd));
    ok(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE));
    fails(fsync(-1), EBADF);
    let (r, _w) = pipe_pair();
    fails(fsync(r), EINVAL);
    fails(fdatasync(r), EINVAL);
}

unsafe fn send_file() {
    let t = Tmp::new();
    let a = t.open("a");
    let b = t.open("b");
    put(a, b"0123456789");
    let mut off: off_t = 2;
    is(sendfile(b, a, &mut off, 5), 5);
    assert_eq!(off, 7);
    is(lseek(a, 0, SEEK_CUR), 10);
    ok(lseek(a, 8, SEEK_SET));
    is(sendfile(b, a, std::ptr::null_mut(), 100), 2);
    is(sendfile(b, a, std::ptr::null_mut(), 100), 0);
    assert_eq!(std::fs::read(t.s("b")).unwrap(), b"2345689");
    let (r, w) = pipe_pair();
    off = 0;
    is(sendfile(w, a, &mut off, 4), 4);
    assert_eq!(get(r, 10), b"0123");
    let mut sv = [0; 2];
    ok(socketpair(AF_UNIX, SOCK_STREAM, 0, sv.as_mut_ptr()));
    is(sendfile(sv[0], a, &mut off, 4), 4);
    assert_eq!(get(sv[1], 10), b"4567");
    fails(sendfile(-1, a, &mut off, 4), EBADF);
    fails(sendfile(a, -1, &mut off, 4), EBADF);
    off = -1;
    fails(sendfile(b, a, &mut off, 4), EINVAL);
    fails(sendfile(b, a, BAD.cast(), 4), EFAULT);
}

unsafe fn copy_range() {
    let t = Tmp::new();
    let a = t.open("a");
    let b = t.open("b");
    put(a, &[b'q'; 10_000]);
    let (mut i, mut o) = (100i64, 5i64);
    is(copy_file_range(a, &mut i, b, &mut o, 5000, 0), 5000);
    assert_eq!((i, o), (5100, 5005));
    assert_eq!(fstat_of(b).st_size, 5005);
    ok(lseek(a, 9_999, SEEK_SET));
    is(copy_file_range(a, std::ptr::null_mut(), b, &mut o, 100, 0), 1);
    is(copy_file_range(a, std::ptr::null_mut(), b, &mut o, 100, 0), 0);
    let d = std::fs::read(t.s("b")).unwrap();
    assert!(d[..5] == [0; 5] && d[5..].iter().all(|&x| x == b'q'));
}

unsafe fn copy_range_errors() {
    let t = Tmp::new();
    let a = t.open("a");
    put(a, b"0123456789");
    let n = std::ptr::null_mut();
    let rd = ok(open(t.p("a").as_ptr(), O_RDONLY));
    fails(copy_file_range(a, n, rd, n, 4, 0), EBADF);
    fails(copy_file_range(a, n, a, n, 4, 1), EINVAL);
    let (mut i, mut o) = (0i64, 2i64);
    fails(copy_file_range(a, &mut i, a, &mut o, 8, 0), EINVAL); // overlap
    let (r, _w) = pipe_pair();
    fails(copy_file_range(r, n, a, n, 4, 0), EINVAL);
    let d = ok(open(t.p("").as_ptr(), O_RDONLY));
    fails(copy_file_range(d, n, a, n, 4, 0), EISDIR);
}

unsafe fn large_transfer() {
    let t = Tmp::new();
    let fd = t.open("f");
    let n = 8 << 20;
    let data: Vec<u8> = (0..n).map(|i: u32| (i ^ (i >> 11)) as u8).collect();
    put(fd, &data);
    ok(lseek(fd, 0, SEEK_SET));
    assert!(get_all(fd, n as usize) == data);
}

extern "C" fn note(_: i32) {
    HITS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
}
static HITS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// More than a kernel moves in one call.
unsafe fn very_large_transfers() {
    const N: usize = (20 << 20) + 5;
    let mut data: Vec<u8> =
        (0..N as u64 / 8).flat_map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    data.resize(N, 7);
    let t = Tmp::new();
    let fd = t.open("f");
    is(write(fd, data.as_ptr().cast(), N), N as i64);
    is(lseek(fd, 0, SEEK_CUR), N as i64);
    ok(lseek(fd, 0, SEEK_SET));
    let mut parts = [vec![1u8; (1 << 20) + 1], vec![1; 12 << 20], vec![1; 8 << 20]];
    let vectors: Vec<iovec> = parts.iter_mut().map(|p| iov(p)).collect();
    is(readv(fd, vectors.as_ptr(), 3), N as i64);
    assert!(parts.concat()[..N] == data);
    let mut back = vec![1u8; N];
    is(pread(fd, back.as_mut_ptr().cast(), N, 3), N as i64 - 3);
    assert!(back[..N - 3] == data[3..]);
    is(pwrite(fd, data.as_ptr().cast(), N, 1), N as i64);
    is(fstat_of(fd).st_size, N as i64 + 1);

    let tail = ok(open(t.file("a", b"first").as_ptr(), O_RDWR | O_APPEND));
    is(write(tail, data.as_ptr().cast(), N), N as i64);
    let mut end = [0u8; 8];
    is(pread(tail, end.as_mut_ptr().cast(), 8, N as i64 - 3), 8);
    assert_eq!(end, data[N - 8..]);

    let zeros = ok(open(c("/dev/zero").as_ptr(), O_RDONLY));
    is(read(zeros, back.as_mut_ptr().cast(), N), N as i64);
    assert!(back.iter().all(|b| *b == 0));

    for send in [false, true] {
        let to = t.open(if send { "s" } else { "c" });
        ok(lseek(fd, 1, SEEK_SET));
        let mut done = 0;
        while done < N as i64 {
            let n = match send {
                true => sendfile(to, fd, std::ptr::null_mut(), N - done as usize),
                false => copy_file_range(fd, std::ptr::null_mut(), to, std::ptr::null_mut(), N - done as usize, 0),
            };
            assert!(ok(n) > 0);
            done += n as i64;
        }
        is(pread(to, back.as_mut_ptr().cast(), N, 0), N as i64);
        assert!(back == data);
    }

    // A write up to the limit is short; only the next one fails.
    let cut = t.open("l");
    in_child(|| {
        ok(setrlimit(RLIMIT_FSIZE, &rlimit { rlim_cur: 16 << 20, rlim_max: 16 << 20 }));
        is(write(cut, data.as_ptr().cast(), N), 16 << 20);
        on(SIGXFSZ, SIG_IGN, 0);
        fails(write(cut, data.as_ptr().cast(), N), EFBIG);
    });
}

unsafe fn file_size_limit() {
    let t = Tmp::new();
    let fd = t.open("f");
    ok(setrlimit(RLIMIT_FSIZE, &rlimit { rlim_cur: 1000, rlim_max: 1000 }));
    on(SIGXFSZ, note as *const () as usize, 0);
    is(write(fd, [1u8; 2000].as_ptr().cast(), 2000), 1000);
    assert_eq!(HITS.load(std::sync::atomic::Ordering::SeqCst), 0);
    fails(write(fd, [1u8; 2000].as_ptr().cast(), 2000), EFBIG);
    fails(ftruncate(fd, 5000), EFBIG);
    assert_eq!(HITS.load(std::sync::atomic::Ordering::SeqCst), 2);
    let pid = spawn(|| {
        signal(SIGXFSZ, SIG_DFL);
        pwrite(fd, [1u8; 1].as_ptr().cast(), 1, 1000);
        0
    });
    dies(pid, SIGXFSZ);
}

unsafe fn advice() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, &[0; 8192]);
    for a in [POSIX_FADV_NORMAL, POSIX_FADV_SEQUENTIAL, POSIX_FADV_RANDOM, POSIX_FADV_WILLNEED, POSIX_FADV_DONTNEED] {
        zero(posix_fadvise(fd, 0, 0, a));
    }
    assert_eq!(posix_fadvise(fd, 0, 0, 77), EINVAL);
    assert_eq!(posix_fadvise(-1, 0, 0, 0), EBADF);
    let (r, _w) = pipe_pair();
    assert_eq!(posix_fadvise(r, 0, 0, 0), ESPIPE);
    ok(readahead(fd, 0, 4096));
    fails(readahead(-1, 0, 4096), EBADF);
}

unsafe fn fionread() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"0123456789");
    ok(lseek(fd, 3, SEEK_SET));
    let mut n = 0;
    ok(ioctl(fd, FIONREAD, &mut n));
    assert_eq!(n, 7);
    fails(ioctl(fd, 0xdead_u64 as _, &mut n), ENOTTY);
    fails(ioctl(fd, TCGETS, &mut n), ENOTTY);
    fails(ioctl(-1, FIONREAD, &mut n), EBADF);
}

unsafe fn offset_shared_over_fork() {
    let t = Tmp::new();
    let fd = t.open("f");
    for i in 0..5 {
        let pid = spawn(|| {
            put(fd, format!("line {i}\n").as_bytes());
            0
        });
        exits(pid, 0);
    }
    is(lseek(fd, 0, SEEK_CUR), 35);
    assert_eq!(std::fs::read(t.s("f")).unwrap(), b"line 0\nline 1\nline 2\nline 3\nline 4\n");
}

unsafe fn read_at_end() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"ab");
    assert_eq!(get(fd, 10), b"");
    let w = ok(open(t.p("f").as_ptr(), O_WRONLY | O_APPEND));
    put(w, b"cd");
    assert_eq!(get(fd, 10), b"cd");
    ok(ftruncate(fd, 1));
    assert_eq!(get(fd, 10), b"");
    is(lseek(fd, 0, SEEK_CUR), 4);
}

unsafe fn write_past_end() {
    let t = Tmp::new();
    let fd = t.open("f");
    ok(lseek(fd, 10, SEEK_SET));
    put(fd, b"x");
    assert_eq!(std::fs::read(t.s("f")).unwrap(), b"\0\0\0\0\0\0\0\0\0\0x");
}

/// A buffer whose second page is missing: the call transfers what it can or fails with EFAULT, and never transfers
/// more.
unsafe fn partly_bad_buffer() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, &[5; 2 * PAGE]);
    let p = anon(2 * PAGE, RW);
    ok(mprotect(p.add(PAGE).cast(), PAGE, PROT_NONE));
    ok(lseek(fd, 0, SEEK_SET));
    let n = read(fd, p.add(PAGE - 100).cast(), 200);
    assert!(n == 100 || (n == -1 && errno() == EFAULT), "{n}");
    if n == 100 {
        is(lseek(fd, 0, SEEK_CUR), 100);
        assert!((0..100).all(|i| *p.add(PAGE - 100 + i) == 5));
    }
    let n = pwrite(fd, p.add(PAGE - 100).cast(), 200, 0);
    assert!(n == 100 || (n == -1 && errno() == EFAULT), "{n}");
}

fn pattern(n: usize) -> Vec<u8> {
    (0..n as u32).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8).collect()
}

unsafe fn large_vectors() {
    let t = Tmp::new();
    let fd = t.open("f");
    let data = pattern((1 << 20) + 123);
    let (a, b) = data.split_at(300_001);
    let (mut a, mut b) = (a.to_vec(), b.to_vec());
    let v = [iov(&mut a), iov(&mut b)];
    is(writev(fd, v.as_ptr(), 2), data.len() as i64);
    is(fstat_of(fd).st_size, data.len() as i64);
    let mut parts = [vec![0u8; 5], vec![0u8; 70_000], vec![0u8; 0], vec![0u8; 2_000_000]];
    let v: Vec<_> = parts.iter_mut().map(|p| iov(p)).collect();
    is(preadv(fd, v.as_ptr(), 4, 17), data.len() as i64 - 17);
    let got: Vec<u8> = parts.concat();
    assert!(got[..data.len() - 17] == data[17..]);
    assert!(got[data.len() - 17..].iter().all(|b| *b == 0));
    // Over existing data, and beyond it.
    is(pwrite(fd, data.as_ptr().cast(), data.len(), 500_000), data.len() as i64);
    let all = std::fs::read(t.s("f")).unwrap();
    assert!(all[..500_000] == data[..500_000] && all[500_000..] == data[..]);
}

unsafe fn large_bad_buffers() {
    let t = Tmp::new();
    let fd = t.open("f");
    let len = 64 * PAGE;
    let data = pattern(len);
    put(fd, &data);
    let p = anon(len, RW);
    // The last page is not writable: everything before it is read, and the position matches.
    ok(mprotect(p.add(len - PAGE).cast(), PAGE, PROT_READ));
    ok(lseek(fd, 0, SEEK_SET));
    is(read(fd, p.cast(), len), (len - PAGE) as i64);
    is(lseek(fd, 0, SEEK_CUR), (len - PAGE) as i64);
    assert!(std::slice::from_raw_parts(p, len - PAGE) == &data[..len - PAGE]);
    assert_eq!(*p.add(len - 1), 0);
    // The first page is not writable: nothing is read.
    ok(mprotect(p.cast(), PAGE, PROT_READ));
    ok(lseek(fd, 0, SEEK_SET));
    fails(read(fd, p.cast(), len), EFAULT);
    is(lseek(fd, 0, SEEK_CUR), 0);
    // Writes from a partly readable buffer.
    ok(mprotect(p.cast(), len, RW));
    p.copy_from(data.as_ptr(), len);
    ok(mprotect(p.add(len - PAGE).cast(), PAGE, PROT_NONE));
    let out = t.open("g");
    is(write(out, p.cast(), len), (len - PAGE) as i64);
    is(fstat_of(out).st_size, (len - PAGE) as i64);
    fails(write(out, p.add(len - PAGE).cast(), PAGE), EFAULT);
    is(fstat_of(out).st_size, (len - PAGE) as i64);
    assert!(std::fs::read(t.s("g")).unwrap() == data[..len - PAGE]);
}

/// System files in the order of their listing: every way of fetching their content gives the same bytes.
unsafe fn one_file_after_the_other() {
    let mut seen = 0;
    for dir in ["/etc", "/usr/share/common-licenses", "/usr/lib/os-release/..", "/usr/share/perl5", "/usr/include"] {
        let Ok(list) = std::fs::read_dir(dir) else { continue };
        for entry in list.flatten().take(200) {
            if !entry.file_type().is_ok_and(|k| k.is_file()) {
                continue;
            }
            let path = c(entry.path().to_str().unwrap_or("/"));
            let fd = open(path.as_ptr(), O_RDONLY | O_CLOEXEC);
            if fd < 0 {
                assert!(errno() == EACCES && !root());
                continue;
            }
            let size = fstat_of(fd).st_size as usize;
            is(lseek(fd, 0, SEEK_END), size as i64);
            is(lseek(fd, 0, SEEK_SET), 0);
            let read = get_all(fd, size);
            assert_eq!(get(fd, 10), b"");
            if size > 0 {
                let p = mmap(std::ptr::null_mut(), size, PROT_READ, MAP_PRIVATE, fd, 0);
                ok(p);
                assert!(std::slice::from_raw_parts(p.cast::<u8>(), size) == &read[..], "{path:?}");
                assert_eq!(
                    *p.cast::<u8>().add(size.next_multiple_of(4096) - 1),
                    if size % 4096 == 0 { read[size - 1] } else { 0 }
                );
                // Changes are private, and MADV_DONTNEED discards them.
                ok(mprotect(p, size, PROT_READ | PROT_WRITE));
                *p.cast::<u8>() = !read[0];
                is(pread(fd, [0u8; 1].as_mut_ptr().cast(), 1, 0), 1);
                ok(madvise(p, size, MADV_DONTNEED));
                assert!(std::slice::from_raw_parts(p.cast::<u8>(), size) == &read[..], "{path:?}");
                ok(mprotect(p, size, PROT_READ));
                ok(madvise(p, size, MADV_DONTNEED));
                assert_eq!(*p.cast::<u8>(), read[0]);
                ok(munmap(p, size));
                let mut last = [0u8; 10];
                is(pread(fd, last.as_mut_ptr().cast(), 10, size as i64 - 1), 1);
                assert_eq!(last[0], read[size - 1]);
                is(lseek(fd, 0, SEEK_DATA), 0);
            }
            is(pread(fd, [0u8; 4].as_mut_ptr().cast(), 4, size as i64 + 5), 0);
            fails(write(fd, b"x".as_ptr().cast(), 1), EBADF);
            let again = open(path.as_ptr(), O_RDONLY | O_CLOEXEC);
            ok(again);
            assert!(get_all(again, size) == read, "{path:?}");
            ok(close(again));
            ok(close(fd));
            seen += 1;
        }
    }
    assert!(seen > 0);
}
