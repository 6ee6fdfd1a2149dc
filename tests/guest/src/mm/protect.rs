//! mprotect(2), madvise, msync, mincore, mlock, code made at run time.

use crate::t::*;
use libc::*;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

pub const CASES: &[crate::Case] = cases![
    takes_and_gives,
    fault_details,
    errors,
    splits_and_merges,
    kernel_respects_protection,
    run_made_code,
    not_executable,
    code_changed_in_place,
    syscall_in_made_code,
    dontneed,
    advice_kinds,
    advice_errors,
    msync_errors,
    mincore_call,
    locking,
    fork_flags,
    handler_repairs_fault,
];

static ADDR: AtomicUsize = AtomicUsize::new(0);
static CODE: AtomicUsize = AtomicUsize::new(0);

extern "C" fn caught(_: i32, i: *mut siginfo_t, _: *mut c_void) {
    unsafe {
        ADDR.store((*i).si_addr() as usize, SeqCst);
        CODE.store((*i).si_code as usize, SeqCst);
        _exit(if (*i).si_signo == SIGSEGV { 42 } else { 43 });
    }
}

unsafe fn dies_of(p: *mut u8, how: unsafe fn(*mut u8), code: i32) {
    let pid = spawn(|| {
        on(SIGSEGV, caught as *const () as usize, SA_SIGINFO);
        how(p);
        0
    });
    exits(pid, code);
}

unsafe fn store(p: *mut u8) {
    p.write_volatile(9)
}
unsafe fn load(p: *mut u8) {
    p.read_volatile();
}
unsafe fn call(p: *mut u8) {
    std::mem::transmute::<*mut u8, extern "C" fn()>(p)()
}

unsafe fn takes_and_gives() {
    let p = anon(PAGE, RW);
    *p = 5;
    ok(mprotect(p.cast(), PAGE, PROT_READ));
    assert_eq!(*p, 5);
    dies_of(p, store, 42);
    ok(mprotect(p.cast(), PAGE, PROT_NONE));
    dies_of(p, load, 42);
    ok(mprotect(p.cast(), PAGE, RW));
    assert_eq!(*p, 5);
    store(p);
}

unsafe fn fault_details() {
    let m = shared(PAGE).cast::<usize>();
    static mut OUT: *mut usize = std::ptr::null_mut();
    OUT = m;
    extern "C" fn h(s: i32, i: *mut siginfo_t, ctx: *mut c_void) {
        unsafe {
            let u = &*ctx.cast::<ucontext_t>();
            *OUT = (*i).si_addr() as usize;
            *OUT.add(1) = (*i).si_code as usize;
            *OUT.add(2) = u.uc_mcontext.gregs[REG_ERR as usize] as usize;
            *OUT.add(3) = u.uc_mcontext.gregs[REG_CR2 as usize] as usize;
            *OUT.add(4) = u.uc_mcontext.gregs[REG_TRAPNO as usize] as usize;
            _exit(s);
        }
    }
    let ro = anon(PAGE, PROT_READ);
    let gone = anon(PAGE, RW);
    ok(munmap(gone.cast(), PAGE));
    for (p, how, code, err_bit) in [
        (ro.add(123), store as unsafe fn(*mut u8), 2, 2), // SEGV_ACCERR, a write
        (gone.add(5), load, 1, 0),                        // SEGV_MAPERR, a read
        (gone.add(5), store, 1, 2),
    ] {
        let pid = spawn(|| {
            on(SIGSEGV, h as *const () as usize, SA_SIGINFO);
            how(p);
            0
        });
        exits(pid, SIGSEGV);
        assert_eq!((*m, *m.add(1)), (p as usize, code));
        assert_eq!(*m.add(2) & 2, err_bit);
        assert_eq!((*m.add(3), *m.add(4)), (p as usize, 14));
    }
}

unsafe fn errors() {
    let p = anon(3 * PAGE, RW);
    fails(mprotect(p.add(1).cast(), PAGE, PROT_READ), EINVAL);
    fails(mprotect(p.cast(), PAGE, 0x70), EINVAL);
    ok(mprotect(p.cast(), 0, PROT_READ));
    ok(munmap(p.add(PAGE).cast(), PAGE));
    // It takes effect up to the hole, then fails.
    fails(mprotect(p.cast(), 3 * PAGE, PROT_READ), ENOMEM);
    dies_of(p, store, 42);
    fails(mprotect(p.add(PAGE).cast(), PAGE, PROT_READ), ENOMEM);
    fails(mprotect(p.cast(), usize::MAX - PAGE, PROT_READ), ENOMEM);
}

unsafe fn splits_and_merges() {
    let p = anon(5 * PAGE, RW);
    ok(mprotect(p.add(2 * PAGE).cast(), PAGE, PROT_READ));
    store(p.add(PAGE));
    store(p.add(3 * PAGE));
    dies_of(p.add(2 * PAGE), store, 42);
    ok(mprotect(p.cast(), 5 * PAGE, PROT_READ));
    dies_of(p.add(4 * PAGE), store, 42);
    ok(mprotect(p.cast(), 5 * PAGE, RW));
    (0..5).for_each(|i| store(p.add(i * PAGE)));
}

unsafe fn kernel_respects_protection() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"data");
    let p = anon(PAGE, PROT_READ);
    fails(pread(fd, p.cast(), 4, 0), EFAULT);
    ok(mprotect(p.cast(), PAGE, PROT_NONE));
    fails(write(fd, p.cast(), 4), EFAULT);
    fails(stat(p.cast(), &mut zeroed()), EFAULT);
    fails(syscall(SYS_pipe2, p, 0), EFAULT);
    fails(syscall(SYS_uname, p), EFAULT);
    fails(syscall(SYS_clock_gettime, 0, p), EFAULT);
    ok(mprotect(p.cast(), PAGE, RW));
    is(pread(fd, p.cast(), 4, 0), 4);
}

const RETURNS_7: [u8; 6] = [0xb8, 7, 0, 0, 0, 0xc3]; // mov $7,%eax; ret

unsafe fn run(p: *mut u8) -> i32 {
    std::mem::transmute::<*mut u8, extern "C" fn() -> i32>(p)()
}

unsafe fn run_made_code() {
    let p = anon(PAGE, RW);
    std::ptr::copy_nonoverlapping(RETURNS_7.as_ptr(), p, 6);
    ok(mprotect(p.cast(), PAGE, PROT_READ | PROT_EXEC));
    assert_eq!(run(p), 7);
    dies_of(p, store, 42);
}

unsafe fn not_executable() {
    let p = anon(PAGE, RW);
    std::ptr::copy_nonoverlapping(RETURNS_7.as_ptr(), p, 6);
    dies_of(p, call, 42);
}

unsafe fn code_changed_in_place() {
    let p = anon(PAGE, RW | PROT_EXEC);
    for n in 0..50u8 {
        std::ptr::copy_nonoverlapping(RETURNS_7.as_ptr(), p, 6);
        *p.add(1) = n;
        assert_eq!(run(p), n.into());
    }
}

/// `syscall` instructions in code written at run time, each followed by different bytes.
unsafe fn syscall_in_made_code() {
    let p = anon(2 * PAGE, RW | PROT_EXEC);
    let nr = (SYS_getppid as u32).to_le_bytes();
    let variants: [&[u8]; 4] = [
        &[0x0f, 0x05, 0xc3],                                     // syscall; ret
        &[0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0xc3], // syscall; cmp $-4095,%rax; ret
        &[0x0f, 0x05, 0x90, 0x90, 0x90, 0x90, 0xc3],
        &[0x0f, 0x05, 0x89, 0xc0, 0xc3], // syscall; mov %eax,%eax; ret
    ];
    for v in variants {
        let code = [&[0xb8, nr[0], nr[1], nr[2], nr[3]], v].concat();
        // Once in the middle of a page, once with the instruction across two pages.
        for at in [100, PAGE - 6] {
            std::ptr::copy_nonoverlapping(code.as_ptr(), p.add(at), code.len());
            for _ in 0..5 {
                assert_eq!(run(p.add(at)), getppid());
            }
            // The number is set elsewhere, then a jump leads directly to the instruction.
            let r: i64;
            std::arch::asm!("call {0}", in(reg) p.add(at + 5), inlateout("rax") SYS_getpid => r,
                out("rcx") _, out("r11") _);
            assert_eq!(r, getpid().into());
        }
    }
}

unsafe fn dontneed() {
    let p = anon(3 * PAGE, RW);
    (0..3).for_each(|i| store(p.add(i * PAGE)));
    ok(madvise(p.add(PAGE).cast(), PAGE, MADV_DONTNEED));
    assert_eq!((*p, *p.add(PAGE), *p.add(2 * PAGE)), (9, 0, 9));
    // MADV_DONTNEED makes a private file mapping show the file again.
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"file");
    let q = ok(mmap(std::ptr::null_mut(), PAGE, RW, MAP_PRIVATE, fd, 0)).cast::<u8>();
    store(q);
    ok(madvise(q.cast(), PAGE, MADV_DONTNEED));
    assert_eq!(*q, b'f');
}

unsafe fn advice_kinds() {
    let p = anon(8 * PAGE, RW);
    for a in [
        MADV_NORMAL,
        MADV_RANDOM,
        MADV_SEQUENTIAL,
        MADV_WILLNEED,
        MADV_DONTFORK,
        MADV_DOFORK,
        MADV_DONTDUMP,
        MADV_DODUMP,
    ] {
        ok(madvise(p.cast(), PAGE, a));
    }
    store(p);
    ok(madvise(p.cast(), 8 * PAGE, MADV_FREE));
    store(p);
    assert_eq!(*p, 9);
    ok(madvise(p.cast(), 8 * PAGE, MADV_POPULATE_WRITE));
    let _ = madvise(p.cast(), 8 * PAGE, MADV_HUGEPAGE);
    let _ = madvise(p.cast(), 8 * PAGE, MADV_NOHUGEPAGE);
}

unsafe fn advice_errors() {
    let p = anon(3 * PAGE, RW);
    fails(madvise(p.add(1).cast(), PAGE, MADV_NORMAL), EINVAL);
    fails(madvise(p.cast(), PAGE, 1234), EINVAL);
    ok(madvise(p.cast(), 0, MADV_NORMAL));
    ok(munmap(p.add(PAGE).cast(), PAGE));
    fails(madvise(p.cast(), 3 * PAGE, MADV_DONTNEED), ENOMEM);
    ok(munmap(p.cast(), 3 * PAGE));
    fails(madvise(p.cast(), PAGE, MADV_DONTNEED), ENOMEM);
}

unsafe fn msync_errors() {
    let p = anon(2 * PAGE, RW);
    ok(msync(p.cast(), PAGE, MS_ASYNC));
    ok(msync(p.cast(), PAGE, MS_SYNC | MS_INVALIDATE));
    fails(msync(p.cast(), PAGE, MS_SYNC | MS_ASYNC), EINVAL);
    fails(msync(p.cast(), PAGE, 0x100), EINVAL);
    fails(msync(p.add(3).cast(), PAGE, MS_SYNC), EINVAL);
    ok(munmap(p.cast(), 2 * PAGE));
    fails(msync(p.cast(), PAGE, MS_SYNC), ENOMEM);
}

unsafe fn mincore_call() {
    let p = anon(4 * PAGE, RW);
    store(p.add(PAGE));
    let mut v = [9u8; 4];
    ok(mincore(p.cast(), 4 * PAGE, v.as_mut_ptr()));
    assert_eq!(v[1] & 1, 1);
    fails(mincore(p.add(1).cast(), PAGE, v.as_mut_ptr()), EINVAL);
    fails(mincore(p.cast(), PAGE, BAD.cast()), EFAULT);
    ok(munmap(p.cast(), 4 * PAGE));
    fails(mincore(p.cast(), PAGE, v.as_mut_ptr()), ENOMEM);
}

unsafe fn locking() {
    let p = anon(4 * PAGE, RW);
    ok(mlock(p.cast(), PAGE));
    ok(munlock(p.cast(), PAGE));
    ok(mlock2(p.cast(), PAGE, MLOCK_ONFAULT as _));
    fails(mlock2(p.cast(), PAGE, 8), EINVAL);
    ok(munmap(p.add(PAGE).cast(), PAGE));
    fails(mlock(p.cast(), 3 * PAGE), ENOMEM);
    fails(munlock(p.cast(), 3 * PAGE), ENOMEM);
    fails(mlockall(0), EINVAL);
    fails(mlockall(0x100), EINVAL);
    ok(munlockall());
    in_child(|| {
        if geteuid() == 0 {
            become_nobody();
        }
        ok(setrlimit(RLIMIT_MEMLOCK, &rlimit { rlim_cur: 0, rlim_max: 0 }));
        fails(mlock(p.cast(), PAGE), EPERM);
    });
}

unsafe fn fork_flags() {
    let p = anon(3 * PAGE, RW);
    (0..3).for_each(|i| store(p.add(i * PAGE)));
    ok(madvise(p.add(PAGE).cast(), PAGE, MADV_DONTFORK));
    ok(madvise(p.add(2 * PAGE).cast(), PAGE, MADV_WIPEONFORK));
    in_child(|| assert_eq!((*p, *p.add(2 * PAGE)), (9, 0)));
    dies_of(p.add(PAGE), load, 42);
    assert_eq!((*p.add(PAGE), *p.add(2 * PAGE)), (9, 9));
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"x");
    let q = ok(mmap(std::ptr::null_mut(), PAGE, RW, MAP_SHARED, fd, 0));
    fails(madvise(q, PAGE, MADV_WIPEONFORK), EINVAL);
}

/// The technique of garbage collectors: the handler makes the page writable and the store is repeated.
unsafe fn handler_repairs_fault() {
    static FAULTS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn h(_: i32, i: *mut siginfo_t, _: *mut c_void) {
        FAULTS.fetch_add(1, SeqCst);
        unsafe {
            let page = (*i).si_addr() as usize & !(PAGE - 1);
            ok(mprotect(page as *mut c_void, PAGE, RW));
        }
    }
    let p = anon(100 * PAGE, PROT_READ);
    on(SIGSEGV, h as *const () as usize, SA_SIGINFO);
    for i in 0..100 {
        let at = p.add(i * PAGE + i);
        at.write_volatile(i as u8);
        at.write_volatile(at.read_volatile() + 1);
    }
    assert_eq!(FAULTS.load(SeqCst), 100);
    assert!((0..100).all(|i| *p.add(i * PAGE + i) == i as u8 + 1));
}
