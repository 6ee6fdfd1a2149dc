//! Memory over fork, memory of other processes, barriers.

use crate::t::*;
use libc::*;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

pub const CASES: &[crate::Case] = cases![
    copy_on_write,
    shared_anonymous,
    shared_file_between_processes,
    cow_both_ways,
    fork_many_pages,
    vm_readv,
    vm_readv_errors,
    membarrier_call,
    grandchild_keeps_memory,
    big_shared_region,
    memfd_passed_on,
];

unsafe fn copy_on_write() {
    let p = anon(PAGE, RW);
    *p = 1;
    in_child(|| {
        assert_eq!(*p, 1);
        *p = 2;
        assert_eq!(*p, 2);
    });
    assert_eq!(*p, 1);
}

unsafe fn shared_anonymous() {
    let p = shared(4 * PAGE);
    in_child(|| {
        *p = 7;
        *p.add(3 * PAGE) = 8;
    });
    assert_eq!((*p, *p.add(3 * PAGE)), (7, 8));
    // Created after a first fork as well, and used in both directions.
    let a = &*p.add(PAGE).cast::<AtomicU32>();
    let pid = spawn(|| {
        eventually("parent writes", || a.load(SeqCst) == 1);
        a.store(2, SeqCst);
        0
    });
    a.store(1, SeqCst);
    eventually("child writes", || a.load(SeqCst) == 2);
    exits(pid, 0);
}

unsafe fn shared_file_between_processes() {
    let t = Tmp::new();
    let fd = t.open("f");
    ok(ftruncate(fd, PAGE as i64));
    in_child(|| {
        let g = ok(open(t.p("f").as_ptr(), O_RDWR));
        let q = ok(mmap(std::ptr::null_mut(), PAGE, RW, MAP_SHARED, g, 0)).cast::<u8>();
        *q.add(5) = 55;
    });
    let p = ok(mmap(std::ptr::null_mut(), PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    assert_eq!(*p.add(5), 55);
    in_child(|| {
        assert_eq!(*p.add(5), 55);
        *p.add(6) = 66;
    });
    assert_eq!(*p.add(6), 66);
}

unsafe fn cow_both_ways() {
    let (r, w) = pipe_pair();
    let (r2, w2) = pipe_pair();
    let p = anon(2 * PAGE, RW);
    *p = 1;
    let pid = spawn(|| {
        get(r, 1); // the parent has written by now
        assert_eq!(*p, 1);
        *p.add(PAGE) = 4;
        put(w2, b"x");
        0
    });
    *p = 3;
    put(w, b"x");
    get(r2, 1);
    assert_eq!((*p, *p.add(PAGE)), (3, 0));
    exits(pid, 0);
}

unsafe fn fork_many_pages() {
    let n = 4000;
    let p = anon(n * PAGE, RW);
    (0..n).for_each(|i| *p.add(i * PAGE).cast::<usize>() = i);
    in_child(|| {
        assert!((0..n).all(|i| *p.add(i * PAGE).cast::<usize>() == i));
        (0..n).for_each(|i| *p.add(i * PAGE).cast::<usize>() = 0);
    });
    assert!((0..n).all(|i| *p.add(i * PAGE).cast::<usize>() == i));
}

unsafe fn vm_readv() {
    let p = anon(PAGE, RW);
    let (r, w) = pipe_pair();
    let (r2, w2) = pipe_pair();
    let pid = spawn(|| {
        *p = 77;
        put(w, b"x");
        get(r2, 1);
        assert_eq!(*p, 78);
        0
    });
    get(r, 1);
    let mut b = 0u8;
    let l = iovec { iov_base: (&raw mut b).cast(), iov_len: 1 };
    let rem = iovec { iov_base: p.cast(), iov_len: 1 };
    is(process_vm_readv(pid, &l, 1, &rem, 1, 0), 1);
    assert_eq!((b, *p), (77, 0));
    (&raw mut b).write_volatile(78);
    is(process_vm_writev(pid, &l, 1, &rem, 1, 0), 1);
    put(w2, b"x");
    exits(pid, 0);
}

unsafe fn vm_readv_errors() {
    let mut b = 0u8;
    let l = iovec { iov_base: (&raw mut b).cast(), iov_len: 1 };
    let bad = iovec { iov_base: BAD, iov_len: 1 };
    let me = getpid();
    is(process_vm_readv(me, &l, 1, &l, 1, 0), 1);
    fails(process_vm_readv(me, &l, 1, &bad, 1, 0), EFAULT);
    fails(process_vm_readv(me, &l, 1, &l, 1, 1), EINVAL);
    fails(process_vm_readv(0x3fff_ffff, &l, 1, &l, 1, 0), ESRCH);
    let pid = spawn(|| 0);
    exits(pid, 0);
    fails(process_vm_readv(pid, &l, 1, &l, 1, 0), ESRCH);
    if geteuid() == 0 {
        in_child(|| {
            become_nobody();
            fails(process_vm_readv(me, &l, 1, &l, 1, 0), EPERM);
        });
    }
}

unsafe fn membarrier_call() {
    let q = ok(syscall(SYS_membarrier, 0, 0, 0));
    assert!(q & 1 != 0);
    ok(syscall(SYS_membarrier, 1, 0, 0));
    fails(syscall(SYS_membarrier, 1 << 20, 0, 0), EINVAL);
    if q & (1 << 3) != 0 {
        fails(syscall(SYS_membarrier, 1 << 3, 0, 0), EPERM); // not registered yet
        ok(syscall(SYS_membarrier, 1 << 4, 0, 0));
        ok(syscall(SYS_membarrier, 1 << 3, 0, 0));
    }
}

unsafe fn grandchild_keeps_memory() {
    let s = shared(PAGE);
    let p = anon(PAGE, RW);
    *p = 5;
    let a = &*s.cast::<AtomicU32>();
    in_child(|| {
        *p = 6;
        if ok(fork()) == 0 {
            eventually("parent gone", || a.load(SeqCst) == 1);
            a.store(u32::from(*p) + 10, SeqCst);
            _exit(0);
        }
    });
    a.store(1, SeqCst);
    eventually("grandchild answers", || a.load(SeqCst) == 16);
    assert_eq!(*p, 5);
}

unsafe fn big_shared_region() {
    let len = 64 << 20;
    let p = shared(len);
    in_child(|| (0..len).step_by(1 << 20).for_each(|i| *p.add(i) = 3));
    assert!((0..len).step_by(1 << 20).all(|i| *p.add(i) == 3));
    ok(munmap(p.cast(), len));
}

unsafe fn memfd_passed_on() {
    let fd = ok(memfd_create(c("m").as_ptr(), 0));
    ok(ftruncate(fd, PAGE as i64));
    let p = ok(mmap(std::ptr::null_mut(), PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    in_child(|| {
        ok(munmap(p.cast(), PAGE));
        let q = ok(mmap(std::ptr::null_mut(), PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
        *q = 9;
    });
    assert_eq!(*p, 9);
}
