//! Code that makes many system calls, and other uses of code. In a sandbox its call sites may have been patched
//! meanwhile, which the program must not notice.

use crate::t::*;
use libc::*;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

pub const CASES: &[crate::Case] = cases![
    calls_are_right,
    made_writable,
    unmapped_and_mapped_again,
    room_below_is_taken,
    file_changes,
    file_grows,
    forked,
    threads,
    jumped_to_the_call,
    interrupted,
    own_gs,
    filtered,
    parent_changes,
];

/// Enough calls to trigger patching.
const MANY: usize = 400;
/// The function's offset in the file.
const AT: usize = ELF_CODE;
/// mov eax, 111 (getpgrp); syscall; cmp rax, -4095; ret
const CODE: [u8; 14] = [0xb8, 111, 0, 0, 0, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0xc3];
/// mov eax, edi; jmp to the `syscall` above
const JUMP: [u8; 4] = [0x89, 0xf8, 0xeb, (5 - 14 - 4i8) as u8];
const RX: i32 = PROT_READ | PROT_EXEC;
const LEN: usize = 0x2000;

/// A file with `code`, which its symbol marks as a function.
unsafe fn file(t: &Tmp, name: &str, code: &[u8]) -> i32 {
    let path = t.file(name, &elf(LEN, code));
    ok(open(path.as_ptr(), O_RDONLY))
}

unsafe fn map(fd: i32) -> *mut u8 {
    let p = mmap(std::ptr::null_mut(), LEN, RX, MAP_PRIVATE, fd, 0);
    assert_ne!(p, MAP_FAILED);
    p.cast()
}

unsafe fn call(p: *const u8) -> i64 {
    let f: extern "C" fn() -> i64 = std::mem::transmute(p.add(AT));
    f()
}

unsafe fn heat(p: *const u8) {
    for _ in 0..MANY {
        assert_eq!(call(p), getpgrp() as i64);
    }
}

unsafe fn calls_are_right() {
    let t = Tmp::new();
    let p = map(file(&t, "f", &CODE));
    heat(p);
    let (mut pid, mut uid) = (0, 0);
    for _ in 0..MANY {
        pid |= syscall(SYS_getpid) ^ getpid() as i64;
        uid |= syscall(SYS_geteuid) ^ geteuid() as i64;
        is(syscall(SYS_gettid), getpid() as i64);
    }
    assert_eq!((pid, uid), (0, 0));
}

unsafe fn made_writable() {
    let t = Tmp::new();
    let p = map(file(&t, "f", &CODE));
    for round in 0..3 {
        heat(p);
        zero(mprotect(p.cast(), LEN, RX | PROT_WRITE));
        let code = std::slice::from_raw_parts_mut(p.add(AT), CODE.len());
        assert_eq!(code, CODE, "{round}");
        code[1] = SYS_getpid as u8;
        assert_eq!(call(p), getpid() as i64);
        zero(mprotect(p.cast(), LEN, RX));
        for _ in 0..MANY {
            assert_eq!(call(p), getpid() as i64);
        }
        zero(mprotect(p.cast(), LEN, RX | PROT_WRITE));
        p.add(AT + 1).write_volatile(111);
        zero(mprotect(p.cast(), LEN, RX));
    }
}

unsafe fn unmapped_and_mapped_again() {
    let t = Tmp::new();
    let fd = file(&t, "f", &CODE);
    for _ in 0..20 {
        let p = map(fd);
        heat(p);
        zero(munmap(p.cast(), LEN));
        let mut vec = [0u8; 2];
        fails(mincore(p.cast(), LEN, vec.as_mut_ptr()), ENOMEM);
    }
    // One half is unmapped, the other stays; then another mapping takes its place.
    let p = map(fd);
    heat(p);
    zero(munmap(p.add(0x1000).cast(), 0x1000));
    heat(p);
    let q = mmap(p.cast(), LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    assert_eq!(q, p.cast());
    assert_eq!(*p.add(AT), 0);
}

unsafe fn room_below_is_taken() {
    let t = Tmp::new();
    let p = map(file(&t, "f", &CODE));
    heat(p);
    for n in [1usize, 16, 32] {
        let below = p.sub(n * 0x1000);
        // Unless the program has a mapping of its own there.
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
        let q = mmap(below.cast(), 0x1000, PROT_READ | PROT_WRITE, flags, -1, 0);
        if q == MAP_FAILED {
            assert_eq!(errno(), EEXIST);
            continue;
        }
        for i in 0..0x1000 {
            assert_eq!(*below.add(i), 0);
            *below.add(i) = 0xcc;
        }
        heat(p);
        assert!((0..0x1000).all(|i| *below.add(i) == 0xcc));
    }
}

unsafe fn file_changes() {
    let t = Tmp::new();
    let fd = file(&t, "f", &CODE);
    heat(map(fd));
    let mut other = CODE;
    other[1] = SYS_getpid as u8;
    // Another file of the same name, then other contents of the same file.
    std::fs::remove_file(t.s("f")).unwrap();
    let fd = file(&t, "f", &other);
    let p = map(fd);
    for _ in 0..MANY {
        assert_eq!(call(p), getpid() as i64);
    }
    zero(munmap(p.cast(), LEN));
    let w = ok(open(t.p("f").as_ptr(), O_WRONLY));
    is(pwrite(w, CODE.as_ptr().cast(), CODE.len(), AT as off_t), CODE.len() as i64);
    ok(close(w));
    heat(map(fd));
}

/// Code is mapped beyond the end of the file, which grows afterwards.
unsafe fn file_grows() {
    const MIB: usize = 1 << 20;
    const ALL: usize = 16 * MIB;
    // mov eax, edi; syscall; ret
    let code = [0x89u8, 0xf8, 0x0f, 0x05, 0xc3];
    let t = Tmp::new();
    let fd = t.open("f");
    zero(ftruncate(fd, 4096));
    let p: *mut u8 = ok(mmap(std::ptr::null_mut(), ALL, RX, MAP_PRIVATE, fd, 0)).cast();
    zero(ftruncate(fd, ALL as i64));
    for i in 0..16 {
        is(pwrite(fd, code.as_ptr().cast(), code.len(), (i * MIB) as i64), code.len() as i64);
    }
    for i in [4usize, 9, 0, 15] {
        let f: extern "C" fn(i64) -> i64 = std::mem::transmute(p.add(i * MIB));
        for _ in 0..4000 {
            assert_eq!(f(SYS_getppid), getppid() as i64);
        }
    }
}

unsafe fn forked() {
    let t = Tmp::new();
    let p = map(file(&t, "f", &CODE));
    heat(p);
    for _ in 0..5 {
        let parent = getpid();
        in_child(|| {
            zero(setpgid(0, 0));
            heat(p);
            assert_eq!(getpgrp(), getpid());
            is(syscall(SYS_getpid), getpid() as i64);
            is(syscall(SYS_getppid), parent as i64);
            assert_ne!(getpid(), parent);
        });
    }
    heat(p);
}

unsafe fn threads() {
    let t = Tmp::new();
    let p = map(file(&t, "f", &CODE)) as usize;
    let all: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                for _ in 0..10 * MANY {
                    assert_eq!(call(p as *const u8), getpgrp() as i64);
                }
                let tid = syscall(SYS_gettid);
                for _ in 0..MANY {
                    is(syscall(SYS_gettid), tid);
                }
                tid
            })
        })
        .collect();
    let mut tids: Vec<_> = all.into_iter().map(|h| h.join().unwrap()).collect();
    tids.sort_unstable();
    tids.dedup();
    assert_eq!(tids.len(), 8);
}

unsafe fn jumped_to_the_call() {
    let t = Tmp::new();
    let code: Vec<u8> = CODE.iter().chain(&JUMP).copied().collect();
    let p = map(file(&t, "f", &code));
    let f: extern "C" fn(i64) -> i64 = std::mem::transmute(p.add(AT + CODE.len()));
    for _ in 0..MANY {
        assert_eq!(call(p), getpgrp() as i64);
        assert_eq!(f(SYS_getpid), getpid() as i64);
        assert_eq!(f(9999), -(ENOSYS as i64));
    }
}

static TICKS: AtomicU64 = AtomicU64::new(0);
extern "C" fn tick(_: i32) {
    TICKS.fetch_add(1, SeqCst);
}

unsafe fn interrupted() {
    let t = Tmp::new();
    let p = map(file(&t, "f", &CODE));
    on(SIGALRM, tick as *const () as usize, SA_RESTART);
    let every = timeval { tv_sec: 0, tv_usec: 500 };
    zero(setitimer(ITIMER_REAL, &itimerval { it_interval: every, it_value: every }, std::ptr::null_mut()));
    let group = getpgrp() as i64;
    let pid = getpid() as i64;
    let mut n = 0u64;
    while TICKS.load(SeqCst) < 300 {
        assert_eq!(call(p), group);
        is(syscall(SYS_getpid), pid);
        n += 1;
    }
    // Interrupted calls are restarted.
    let (r, w) = pipe_pair();
    let child = spawn(|| {
        usleep(100_000);
        put(w, b"x");
        0
    });
    let before = TICKS.load(SeqCst);
    assert_eq!(get(r, 1), b"x");
    assert!(TICKS.load(SeqCst) > before && n > 0);
    zero(setitimer(ITIMER_REAL, &zeroed(), std::ptr::null_mut()));
    exits(child, 0);
}

unsafe fn own_gs() {
    const ARCH_SET_GS: i32 = 0x1001;
    const ARCH_GET_GS: i32 = 0x1004;
    let t = Tmp::new();
    let p = map(file(&t, "f", &CODE));
    heat(p);
    let area = [0x1122_3344_5566_7788u64; 512];
    let mut gs = 1u64;
    zero(syscall(SYS_arch_prctl, ARCH_GET_GS, &mut gs) as i32);
    assert_eq!(gs, 0);
    zero(syscall(SYS_arch_prctl, ARCH_SET_GS, area.as_ptr()) as i32);
    for _ in 0..MANY {
        assert_eq!(call(p), getpgrp() as i64);
        is(syscall(SYS_getpid), getpid() as i64);
    }
    let v: u64;
    std::arch::asm!("mov {}, gs:[64]", out(reg) v);
    assert_eq!(v, area[8]);
    zero(syscall(SYS_arch_prctl, ARCH_GET_GS, &mut gs) as i32);
    assert_eq!(gs, area.as_ptr() as u64);
    assert!(area.iter().all(|a| *a == area[0]));
}

unsafe fn filtered() {
    in_child(|| {
        for _ in 0..MANY {
            is(syscall(SYS_getppid), getppid() as i64);
            is(syscall(SYS_gettid), getpid() as i64);
        }
        // Loads the number; with it, getppid fails with E2BIG.
        let code = [
            sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
            sock_filter { code: 0x15, jt: 0, jf: 1, k: SYS_getppid as u32 },
            sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x0005_0000 | E2BIG as u32 },
            sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 },
        ];
        let prog = sock_fprog { len: 4, filter: code.as_ptr().cast_mut() };
        zero(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        zero(prctl(PR_SET_SECCOMP, 2, &prog));
        for _ in 0..MANY {
            fails(syscall(SYS_getppid), E2BIG);
            is(syscall(SYS_gettid), getpid() as i64);
        }
        // Private futexes still work, also in threads that have the filter.
        let lock = std::sync::Arc::new((std::sync::Mutex::new(0), std::sync::Condvar::new()));
        let l = lock.clone();
        let h = std::thread::spawn(move || {
            fails(syscall(SYS_getppid), E2BIG);
            for i in 1..100 {
                let mut n = l.0.lock().unwrap();
                while *n < 2 * i - 1 {
                    n = l.1.wait(n).unwrap();
                }
                *n += 1;
                l.1.notify_all();
            }
        });
        for i in 1..100 {
            let mut n = lock.0.lock().unwrap();
            *n += 1;
            lock.1.notify_all();
            while *n < 2 * i {
                n = lock.1.wait(n).unwrap();
            }
        }
        h.join().unwrap();
    });
}

unsafe fn parent_changes() {
    let (r, w) = pipe_pair();
    let middle = spawn(|| {
        let me = getpid();
        spawn(|| {
            for _ in 0..MANY {
                is(syscall(SYS_getppid), me as i64);
            }
            put(w, b"1");
            eventually("another parent", || syscall(SYS_getppid) != me as i64);
            put(w, b"2");
            0
        });
        assert_eq!(get(r, 1), b"1");
        0
    });
    exits(middle, 0);
    assert_eq!(get(r, 1), b"2");
}
