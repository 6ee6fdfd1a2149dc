//! mmap(2), munmap, brk, and the memory behind them.

use crate::t::*;
use libc::*;
use std::ptr::null_mut;

pub const CASES: &[crate::Case] = cases![
    anonymous,
    errors,
    file_private,
    file_shared,
    file_access_rights,
    file_offset,
    beyond_end_of_file,
    partial_last_page,
    truncated_under_mapping,
    grown_under_mapping,
    fixed_replaces,
    fixed_noreplace,
    hint,
    unmap_hole,
    unmap_errors,
    closed_file_stays_mapped,
    unlinked_file_stays_mapped,
    dev_zero,
    many_mappings,
    big_reservation,
    address_space_limit,
    break_grows,
    break_errors,
    stack_grows,
    null_page,
    populate,
    data_survives_write,
    read_into_mapping_of_same_file,
    mmap_not_mappable,
    low,
    grows_down,
];

/// Runs `f` in a child that must end by `sig`.
#[track_caller]
unsafe fn faults(sig: i32, f: impl FnOnce()) {
    let pid = spawn(|| {
        f();
        0
    });
    dies(pid, sig);
}

unsafe fn poke(p: *mut u8) {
    p.write_volatile(1);
}
unsafe fn peek(p: *mut u8) -> u8 {
    p.read_volatile()
}

unsafe fn anonymous() {
    let p = anon(16 * PAGE, RW);
    assert_eq!(p as usize % PAGE, 0);
    for i in 0..16 * PAGE {
        assert_eq!(*p.add(i), 0);
    }
    for i in 0..16 {
        *p.add(i * PAGE + 7) = i as u8;
    }
    assert!((0..16).all(|i| *p.add(i * PAGE + 7) == i as u8));
    ok(munmap(p.cast(), 16 * PAGE));
    faults(SIGSEGV, || poke(p));
    let q = anon(100, RW); // rounded up to a page
    poke(q.add(PAGE - 1));
}

unsafe fn errors() {
    let n = null_mut();
    let (pa, a) = (MAP_PRIVATE, MAP_PRIVATE | MAP_ANONYMOUS);
    fails(mmap(n, 0, RW, a, -1, 0), EINVAL);
    fails(mmap(n, PAGE, RW, MAP_ANONYMOUS, -1, 0), EINVAL);
    fails(mmap(n, usize::MAX - PAGE, RW, a, -1, 0), ENOMEM);
    fails(mmap(n, PAGE, RW, pa, -1, 0), EBADF);
    fails(mmap(n, PAGE, RW, pa, 999, 0), EBADF);
    let t = Tmp::new();
    let fd = t.open("f");
    fails(syscall(SYS_mmap, 0, PAGE, RW, pa, fd, 5), EINVAL);
    fails(mmap(17 as *mut c_void, PAGE, RW, a | MAP_FIXED, -1, 0), EINVAL);
    fails(mmap(0x7fff_ffff_f000 as *mut c_void, 16 * PAGE, RW, a | MAP_FIXED, -1, 0), ENOMEM);
    fails(syscall(SYS_mmap, 0, PAGE, RW, pa, fd, -4096i64), EOVERFLOW);
}

unsafe fn file_private() {
    let t = Tmp::new();
    t.file("f", &[b'a'; 2 * PAGE]);
    let fd = ok(open(t.p("f").as_ptr(), O_RDONLY));
    let p = ok(mmap(null_mut(), 2 * PAGE, RW, MAP_PRIVATE, fd, 0)).cast::<u8>();
    assert_eq!(*p, b'a');
    *p = b'b'; // copied on write
    assert_eq!(std::fs::read(t.s("f")).unwrap()[0], b'a');
    // A page that has not been written to still shows the file.
    let w = ok(open(t.p("f").as_ptr(), O_WRONLY));
    is(pwrite(w, b"z".as_ptr().cast(), 1, PAGE as i64), 1);
    assert_eq!(peek(p.add(PAGE)), b'z');
    is(pwrite(w, b"z".as_ptr().cast(), 1, 0), 1);
    assert_eq!(peek(p), b'b');
}

unsafe fn file_shared() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, &[b'a'; PAGE]);
    let p = ok(mmap(null_mut(), PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    let q = ok(mmap(null_mut(), PAGE, PROT_READ, MAP_SHARED, fd, 0)).cast::<u8>();
    *p.add(10) = b'X';
    assert_eq!(peek(q.add(10)), b'X');
    let mut b = [0u8; 1];
    is(pread(fd, b.as_mut_ptr().cast(), 1, 10), 1);
    assert_eq!(b[0], b'X');
    is(pwrite(fd, b"Y".as_ptr().cast(), 1, 11), 1);
    assert_eq!(peek(p.add(11)), b'Y');
    ok(msync(p.cast(), PAGE, MS_SYNC));
    ok(munmap(p.cast(), PAGE));
    assert_eq!(&std::fs::read(t.s("f")).unwrap()[9..13], b"aXYa");
}

unsafe fn file_access_rights() {
    let t = Tmp::new();
    t.file("f", &[b'a'; PAGE]);
    let rd = ok(open(t.p("f").as_ptr(), O_RDONLY));
    let wr = ok(open(t.p("f").as_ptr(), O_WRONLY));
    fails(mmap(null_mut(), PAGE, RW, MAP_SHARED, rd, 0), EACCES);
    fails(mmap(null_mut(), PAGE, PROT_READ, MAP_SHARED, wr, 0), EACCES);
    fails(mmap(null_mut(), PAGE, PROT_READ, MAP_PRIVATE, wr, 0), EACCES);
    let p = ok(mmap(null_mut(), PAGE, PROT_READ, MAP_SHARED, rd, 0));
    fails(mprotect(p, PAGE, RW), EACCES);
    let q = ok(mmap(null_mut(), PAGE, PROT_READ, MAP_PRIVATE, rd, 0));
    ok(mprotect(q, PAGE, RW));
    poke(q.cast());
}

unsafe fn file_offset() {
    let t = Tmp::new();
    let fd = t.open("f");
    for i in 0..8u8 {
        put(fd, &[i; PAGE]);
    }
    let p = ok(mmap(null_mut(), 2 * PAGE, PROT_READ, MAP_SHARED, fd, 5 * PAGE as i64)).cast::<u8>();
    assert_eq!((peek(p), peek(p.add(PAGE))), (5, 6));
    // Unmapping the front does not move the rest.
    ok(munmap(p.cast(), PAGE));
    assert_eq!(peek(p.add(PAGE)), 6);
}

unsafe fn beyond_end_of_file() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"x");
    let p = ok(mmap(null_mut(), 3 * PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    faults(SIGBUS, || poke(p.add(PAGE)));
    faults(SIGBUS, || {
        peek(p.add(2 * PAGE));
    });
    let e = t.open("empty");
    let q = ok(mmap(null_mut(), PAGE, PROT_READ, MAP_PRIVATE, e, 0)).cast::<u8>();
    faults(SIGBUS, || {
        peek(q);
    });
}

unsafe fn partial_last_page() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"abc");
    let p = ok(mmap(null_mut(), PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    assert!((3..PAGE).all(|i| *p.add(i) == 0));
    *p.add(100) = 1; // discarded
    assert_eq!(fstat_of(fd).st_size, 3);
    assert_eq!(std::fs::read(t.s("f")).unwrap(), b"abc");
}

unsafe fn truncated_under_mapping() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, &[9; 2 * PAGE]);
    let p = ok(mmap(null_mut(), 2 * PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    assert_eq!(peek(p.add(PAGE)), 9);
    ok(ftruncate(fd, 100));
    faults(SIGBUS, || {
        peek(p.add(PAGE));
    });
    assert_eq!((peek(p.add(99)), peek(p.add(100))), (9, 0));
    ok(ftruncate(fd, 2 * PAGE as i64));
    assert_eq!(peek(p.add(PAGE)), 0);
}

unsafe fn grown_under_mapping() {
    let t = Tmp::new();
    let fd = t.open("f");
    let p = ok(mmap(null_mut(), 2 * PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    ok(ftruncate(fd, 2 * PAGE as i64));
    *p.add(PAGE) = 3;
    assert_eq!(std::fs::read(t.s("f")).unwrap()[PAGE], 3);
}

unsafe fn fixed_replaces() {
    let p = anon(4 * PAGE, RW);
    for i in 0..4 {
        *p.add(i * PAGE) = 7;
    }
    let at = p.add(PAGE).cast();
    is(mmap(at, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), at as i64);
    assert_eq!((peek(p), peek(p.add(PAGE)), peek(p.add(2 * PAGE))), (7, 0, 7));
    faults(SIGSEGV, || poke(p.add(PAGE)));
    poke(p.add(2 * PAGE));
}

unsafe fn fixed_noreplace() {
    let p = anon(4 * PAGE, RW);
    let fl = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    fails(mmap(p.cast(), PAGE, RW, fl, -1, 0), EEXIST);
    fails(mmap(p.sub(0).cast(), 8 * PAGE, RW, fl, -1, 0), EEXIST);
    ok(munmap(p.add(PAGE).cast(), PAGE));
    is(mmap(p.add(PAGE).cast(), PAGE, RW, fl, -1, 0), p.add(PAGE) as i64);
}

unsafe fn hint() {
    let p = anon(8 * PAGE, RW);
    ok(munmap(p.cast(), 8 * PAGE));
    let fl = MAP_PRIVATE | MAP_ANONYMOUS;
    is(mmap(p.cast(), PAGE, RW, fl, -1, 0), p as i64); // free: taken
    let q = ok(mmap(p.cast(), PAGE, RW, fl, -1, 0)); // occupied: elsewhere
    assert_ne!(q, p.cast());
    let q = ok(mmap(p.add(2 * PAGE + 5).cast(), PAGE, RW, fl, -1, 0)); // need not be aligned
    assert_eq!(q as usize % PAGE, 0);
}

unsafe fn unmap_hole() {
    let p = anon(6 * PAGE, RW);
    ok(munmap(p.add(2 * PAGE).cast(), 2 * PAGE));
    poke(p.add(PAGE));
    poke(p.add(4 * PAGE));
    faults(SIGSEGV, || poke(p.add(2 * PAGE)));
    ok(munmap(p.cast(), 6 * PAGE)); // including the hole
    ok(munmap(p.cast(), 6 * PAGE)); // already unmapped
}

unsafe fn unmap_errors() {
    let p = anon(PAGE, RW);
    fails(munmap(p.add(1).cast(), PAGE), EINVAL);
    fails(munmap(p.cast(), 0), EINVAL);
    fails(munmap((-4096isize) as *mut c_void, 2 * PAGE), EINVAL);
    ok(munmap(p.cast(), 1));
}

unsafe fn closed_file_stays_mapped() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, &[5; PAGE]);
    let p = ok(mmap(null_mut(), PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    ok(close(fd));
    assert_eq!(peek(p), 5);
    poke(p);
    assert_eq!(std::fs::read(t.s("f")).unwrap()[0], 1);
}

unsafe fn unlinked_file_stays_mapped() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, &[5; PAGE]);
    let p = ok(mmap(null_mut(), PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    ok(unlink(t.p("f").as_ptr()));
    ok(close(fd));
    assert_eq!(peek(p), 5);
    poke(p);
    assert_eq!(peek(p), 1);
}

unsafe fn dev_zero() {
    let fd = ok(open(c("/dev/zero").as_ptr(), O_RDWR));
    let p = ok(mmap(null_mut(), 2 * PAGE, RW, MAP_PRIVATE, fd, 0)).cast::<u8>();
    assert_eq!(peek(p), 0);
    poke(p);
    let q = ok(mmap(null_mut(), PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    in_child(|| poke(q));
    assert_eq!(peek(q), 1);
}

unsafe fn many_mappings() {
    // Alternating protection prevents merging.
    let n = 1000;
    let p = anon(n * PAGE, RW);
    for i in (0..n).step_by(2) {
        ok(mprotect(p.add(i * PAGE).cast(), PAGE, PROT_READ));
    }
    for i in (1..n).step_by(2) {
        poke(p.add(i * PAGE));
    }
    ok(munmap(p.cast(), n * PAGE));
}

unsafe fn big_reservation() {
    let len = 64usize << 30;
    let p = ok(mmap(null_mut(), len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)).cast::<u8>();
    let mid = p.add(len / 2);
    ok(mprotect(mid.cast(), PAGE, RW));
    poke(mid);
    in_child(|| assert_eq!(peek(mid), 1));
    ok(munmap(p.cast(), len));
}

unsafe fn address_space_limit() {
    ok(setrlimit(RLIMIT_AS, &rlimit { rlim_cur: 1 << 30, rlim_max: RLIM_INFINITY }));
    fails(mmap(null_mut(), 2 << 30, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), ENOMEM);
    anon(1 << 20, RW);
    let p = anon(PAGE, RW);
    fails(mremap(p.cast(), PAGE, 2 << 30, MREMAP_MAYMOVE), ENOMEM);
}

unsafe fn brk_to(a: usize) -> usize {
    syscall(SYS_brk, a) as usize
}

unsafe fn break_grows() {
    let start = brk_to(0);
    assert!(start > 0);
    assert_eq!(brk_to(start + 5 * PAGE), start + 5 * PAGE);
    let p = start as *mut u8;
    for i in 0..5 {
        assert_eq!(peek(p.add(i * PAGE)), 0);
        poke(p.add(i * PAGE));
    }
    in_child(|| {
        assert_eq!(brk_to(0), start + 5 * PAGE);
        assert_eq!(peek(p), 1);
    });
    assert_eq!(brk_to(start + PAGE), start + PAGE);
    let edge = (start + PAGE).next_multiple_of(PAGE) as *mut u8;
    faults(SIGSEGV, || poke(edge));
    // Grown again, the memory is fresh.
    assert_eq!(brk_to(start + 5 * PAGE), start + 5 * PAGE);
    assert_eq!(peek(edge), 0);
    brk_to(start);
}

unsafe fn break_errors() {
    let start = brk_to(0);
    assert_eq!(brk_to(1), start);
    assert_eq!(brk_to(usize::MAX), start);
    ok(setrlimit(RLIMIT_DATA, &rlimit { rlim_cur: 1 << 20, rlim_max: RLIM_INFINITY }));
    assert_eq!(brk_to(start + (1 << 26)), start);
}

#[inline(never)]
fn recurse(n: usize) -> usize {
    let pad = std::hint::black_box([n; 128]);
    if n == 0 {
        0
    } else {
        recurse(n - 1) + pad[5] - pad[6] + 1
    }
}

unsafe fn stack_grows() {
    // 4 MiB of stack, within the usual limit of 8.
    assert_eq!(recurse(3500), 3500);
    faults(SIGSEGV, || {
        ok(setrlimit(RLIMIT_STACK, &rlimit { rlim_cur: 8 << 20, rlim_max: 8 << 20 }));
        recurse(100_000_000);
    });
}

unsafe fn null_page() {
    faults(SIGSEGV, || {
        peek(null_mut::<u8>().wrapping_add(8));
    });
    if geteuid() != 0 {
        let fl = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        fails(mmap(null_mut(), PAGE, RW, fl, -1, 0), EPERM);
    }
}

unsafe fn populate() {
    let p = ok(mmap(null_mut(), 8 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0)).cast::<u8>();
    let mut v = [0u8; 8];
    ok(mincore(p.cast(), 8 * PAGE, v.as_mut_ptr()));
    assert!(v.iter().all(|x| x & 1 == 1));
}

unsafe fn data_survives_write() {
    let t = Tmp::new();
    let fd = t.open("f");
    let p = anon(64 * PAGE, RW);
    for i in 0..64 * PAGE {
        *p.add(i) = (i * 31) as u8;
    }
    is(write(fd, p.cast(), 64 * PAGE), 64 * PAGE as i64);
    ok(munmap(p.cast(), 64 * PAGE));
    let q = ok(mmap(null_mut(), 64 * PAGE, PROT_READ, MAP_PRIVATE, fd, 0)).cast::<u8>();
    assert!((0..64 * PAGE).all(|i| *q.add(i) == (i * 31) as u8));
}

unsafe fn read_into_mapping_of_same_file() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, &[1; PAGE]);
    put(fd, &[2; PAGE]);
    let p = ok(mmap(null_mut(), 2 * PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    is(pread(fd, p.cast(), PAGE, PAGE as i64), PAGE as i64);
    assert_eq!(std::fs::read(t.s("f")).unwrap(), vec![2; 2 * PAGE]);
    is(pwrite(fd, p.cast(), 10, 2 * PAGE as i64), 10);
    assert_eq!(fstat_of(fd).st_size, 2 * PAGE as i64 + 10);
}

unsafe fn mmap_not_mappable() {
    let (r, _w) = pipe_pair();
    fails(mmap(null_mut(), PAGE, PROT_READ, MAP_PRIVATE, r, 0), ENODEV);
    let t = Tmp::new();
    let d = ok(open(t.p("").as_ptr(), O_RDONLY));
    fails(mmap(null_mut(), PAGE, PROT_READ, MAP_PRIVATE, d, 0), ENODEV);
    let s = ok(socket(AF_UNIX, SOCK_STREAM, 0));
    fails(mmap(null_mut(), PAGE, RW, MAP_SHARED, s, 0), ENODEV);
}

/// MAP_32BIT: in the first 2 GiB, in free places, until there is no more room.
unsafe fn low() {
    let map = |addr: usize, len, flags| {
        mmap(addr as *mut c_void, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0)
    };
    let low = |p: *mut c_void, len| (p as usize) < (1 << 31) && p as usize + len <= 1 << 31;
    let a = ok(map(0, PAGE, MAP_32BIT));
    let b = ok(map(0, PAGE, MAP_32BIT));
    assert!(low(a, PAGE) && low(b, PAGE) && a != b, "{a:?} {b:?}");
    *a.cast::<u64>() = 1;
    // A hint is used if it is low enough.
    let c = ok(map(0x6000_0000, PAGE, MAP_32BIT));
    let d = ok(map(0x7_0000_0000, PAGE, MAP_32BIT));
    assert!(c as usize == 0x6000_0000 && low(d, PAGE), "{c:?} {d:?}");
    let mut n = 0;
    while map(0, 64 << 20, MAP_32BIT) != MAP_FAILED {
        n += 1;
        assert!(n <= 32);
    }
    assert!(errno() == ENOMEM && n > 4, "{n}");
    ok(map(0, 64 << 20, 0));
}

/// A mapping with `MAP_GROWSDOWN` grows as it is used, but not up to a neighbour.
unsafe fn grows_down() {
    let (gap, room) = (256, 64);
    let all = anon((gap + room + 1) * PAGE, RW);
    ok(munmap(all.cast(), (gap + room + 1) * PAGE));
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    let top = all.add((gap + room) * PAGE);
    ok(mmap(top.cast(), PAGE, RW, flags | MAP_GROWSDOWN, -1, 0));
    for i in 1..=room / 2 {
        *top.sub(i * PAGE - 1) = i as u8;
    }
    // Several pages at once; a system call sees them too.
    *top.sub((room - 2) * PAGE) = 7;
    let (r, w) = pipe_pair();
    is(write(w, top.sub((room - 2) * PAGE).cast(), 1), 1);
    assert_eq!((get(r, 1), *top.sub(PAGE - 1), *top), (vec![7], 1, 0));
    let near = top.sub((room + 10) * PAGE);
    ok(mmap(near.cast(), PAGE, PROT_READ, flags, -1, 0));
    faults(SIGSEGV, || *top.sub((room - 1) * PAGE) = 1);
    // A mapping without `MAP_GROWSDOWN` does not grow.
    let plain = anon(2 * PAGE, RW);
    ok(munmap(plain.cast(), PAGE));
    faults(SIGSEGV, || *plain.add(PAGE - 1) = 1);
}
