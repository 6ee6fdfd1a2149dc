//! mremap(2).

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    grows_and_moves,
    grows_in_place,
    shrinks,
    fixed,
    errors,
    file_mapping,
    shared_copy,
    dontunmap,
    keeps_protection,
    grown_behind_a_file,
    file_pages_in_another_order,
];

unsafe fn fill(p: *mut u8, pages: usize) {
    (0..pages).for_each(|i| *p.add(i * PAGE) = i as u8 + 1);
}

unsafe fn gone(p: *mut u8) -> bool {
    mincore(p.cast(), PAGE, [0u8; 1].as_mut_ptr()) == -1 && errno() == ENOMEM
}

unsafe fn grows_and_moves() {
    let p = anon(4 * PAGE, RW);
    fill(p, 4);
    // A mapping behind it forces it to move.
    ok(mmap(p.add(2 * PAGE).cast(), PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    let q = ok(mremap(p.cast(), 2 * PAGE, 64 * PAGE, MREMAP_MAYMOVE)).cast::<u8>();
    assert_ne!(p, q);
    assert_eq!((*q, *q.add(PAGE), *q.add(2 * PAGE), *q.add(63 * PAGE)), (1, 2, 0, 0));
    assert!(gone(p) && gone(p.add(PAGE)));
    assert_eq!(*p.add(3 * PAGE), 4);
    *q.add(64 * PAGE - 1) = 1;
}

unsafe fn grows_in_place() {
    let p = anon(8 * PAGE, RW);
    fill(p, 8);
    fails(mremap(p.cast(), 4 * PAGE, 6 * PAGE, 0), ENOMEM); // occupied
    ok(munmap(p.add(4 * PAGE).cast(), 4 * PAGE));
    is(mremap(p.cast(), 4 * PAGE, 6 * PAGE, 0), p as i64);
    assert_eq!((*p.add(3 * PAGE), *p.add(5 * PAGE)), (4, 0));
}

unsafe fn shrinks() {
    let p = anon(8 * PAGE, RW);
    fill(p, 8);
    is(mremap(p.cast(), 8 * PAGE, 3 * PAGE, 0), p as i64);
    assert_eq!(*p.add(2 * PAGE), 3);
    assert!(gone(p.add(3 * PAGE)));
    is(mremap(p.cast(), 3 * PAGE, 3 * PAGE, 0), p as i64);
}

unsafe fn fixed() {
    let p = anon(2 * PAGE, RW);
    let q = anon(8 * PAGE, RW);
    fill(p, 2);
    fill(q, 8);
    let to = q.add(4 * PAGE);
    is(mremap(p.cast(), 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to), to as i64);
    assert_eq!((*q.add(3 * PAGE), *to, *to.add(PAGE), *q.add(6 * PAGE)), (4, 1, 2, 7));
    assert!(gone(p));
    fails(mremap(to.cast(), PAGE, PAGE, MREMAP_FIXED, q), EINVAL); // needs MAYMOVE
    fails(mremap(to.cast(), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, q.add(1)), EINVAL);
    fails(mremap(q.cast(), 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, q.add(PAGE)), EINVAL);
    // overlap
}

unsafe fn errors() {
    let p = anon(4 * PAGE, RW);
    fails(mremap(p.add(1).cast(), PAGE, 2 * PAGE, MREMAP_MAYMOVE), EINVAL);
    fails(mremap(p.cast(), PAGE, 0, MREMAP_MAYMOVE), EINVAL);
    fails(mremap(p.cast(), PAGE, 2 * PAGE, 0x80), EINVAL);
    fails(mremap(p.cast(), PAGE, usize::MAX - PAGE, MREMAP_MAYMOVE), EINVAL);
    ok(munmap(p.add(PAGE).cast(), PAGE));
    fails(mremap(p.add(PAGE).cast(), PAGE, 2 * PAGE, MREMAP_MAYMOVE), EFAULT);
    fails(mremap(p.cast(), 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE), EFAULT); // over a hole
}

unsafe fn file_mapping() {
    let t = Tmp::new();
    let fd = t.open("f");
    (0..8u8).for_each(|i| put(fd, &[i; PAGE]));
    let p = ok(mmap(std::ptr::null_mut(), 2 * PAGE, RW, MAP_SHARED, fd, 2 * PAGE as i64)).cast::<u8>();
    let q = ok(mremap(p.cast(), 2 * PAGE, 5 * PAGE, MREMAP_MAYMOVE)).cast::<u8>();
    assert!((0..5).all(|i| *q.add(i * PAGE) == i as u8 + 2));
    *q = 99;
    assert_eq!(std::fs::read(t.s("f")).unwrap()[2 * PAGE], 99);
}

/// An old size of 0 makes a second mapping of shared memory.
unsafe fn shared_copy() {
    let p = shared(2 * PAGE);
    *p = 5;
    let q = ok(mremap(p.cast(), 0, 2 * PAGE, MREMAP_MAYMOVE)).cast::<u8>();
    assert_ne!(p, q);
    *q.add(PAGE) = 6;
    assert_eq!((*q, *p.add(PAGE)), (5, 6));
    let a = anon(PAGE, RW);
    fails(mremap(a.cast(), 0, PAGE, MREMAP_MAYMOVE), EINVAL);
}

unsafe fn dontunmap() {
    let p = anon(2 * PAGE, RW);
    fill(p, 2);
    let q = ok(mremap(p.cast(), 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0)).cast::<u8>();
    assert_ne!(p, q);
    assert_eq!((*q, *q.add(PAGE)), (1, 2));
    assert_eq!((*p, *p.add(PAGE)), (0, 0)); // still mapped, empty
    *p = 3;
    fails(mremap(p.cast(), 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0), EINVAL);
}

unsafe fn keeps_protection() {
    let p = anon(PAGE, RW);
    *p = 5;
    ok(mprotect(p.cast(), PAGE, PROT_READ));
    let q = ok(mremap(p.cast(), PAGE, 50 * PAGE, MREMAP_MAYMOVE)).cast::<u8>();
    assert_eq!(*q, 5);
    let pid = spawn(|| {
        q.add(40 * PAGE).write_volatile(1);
        0
    });
    dies(pid, SIGSEGV);
}

/// The part by which a private file mapping grows maps the file too, or faults beyond its end.
unsafe fn grown_behind_a_file() {
    let fd = ok(open(c("/etc/passwd").as_ptr(), O_RDONLY));
    let want = std::fs::read("/etc/passwd").unwrap();
    let len = want.len().next_multiple_of(PAGE);
    for (at, moves) in [(len, false), (len, true)] {
        let p = ok(mmap(std::ptr::null_mut(), len, PROT_READ, MAP_PRIVATE, fd, 0)).cast::<u8>();
        if moves {
            let behind = p.add(len).cast();
            let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
            mmap(behind, PAGE, PROT_NONE, flags, -1, 0);
        }
        let q = ok(mremap(p.cast(), len, len + 2 * PAGE, MREMAP_MAYMOVE)).cast::<u8>();
        assert_eq!(std::slice::from_raw_parts(q, want.len()), want);
        dies(spawn(|| q.add(at).read_volatile().into()), SIGBUS);
        ok(munmap(q.cast(), len + 2 * PAGE));
    }
}

unsafe fn file_pages_in_another_order() {
    let t = Tmp::new();
    let data: Vec<u8> = (0..4u8).flat_map(|i| vec![i + 1; PAGE]).collect();
    t.file("f", &data);
    let fd = t.open("f");
    let p = ok(mmap(std::ptr::null_mut(), 4 * PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    let remap = |i: usize, n: usize, prot: i32, page: usize| {
        syscall(SYS_remap_file_pages, p.add(i * PAGE), n * PAGE, prot, page, 0)
    };
    for i in 0..4 {
        zero(remap(i, 1, 0, 3 - i) as i32);
    }
    assert_eq!([0, 1, 2, 3].map(|i| *p.add(i * PAGE)), [4, 3, 2, 1]);
    p.write(9);
    let mut b = [0u8];
    is(pread(fd, b.as_mut_ptr().cast(), 1, 3 * PAGE as i64), 1);
    assert_eq!(b, [9]);
    zero(remap(0, 4, 0, 0) as i32);
    assert_eq!([0, 1, 2, 3].map(|i| *p.add(i * PAGE)), [1, 2, 3, 9]);
    fails(remap(0, 1, PROT_READ, 0), EINVAL);
    fails(remap(0, 0, 0, 0), EINVAL);
    let own = anon(PAGE, RW);
    fails(syscall(SYS_remap_file_pages, own, PAGE, 0, 0, 0), EINVAL);
}
