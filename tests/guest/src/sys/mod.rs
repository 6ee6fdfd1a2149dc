//! Cases about the system as a whole, or about no other group.

use crate::t::*;
use libc::*;
use std::ptr::null_mut;

mod shortage;

pub const GROUPS: &[(&str, &[crate::Case])] = &[
    (
        "system",
        cases![
            processor_of_thread,
            strict_seccomp,
            break_that_cannot_grow,
            advice_on_paging,
            personality_bits,
            kcmp_kinds,
            validated_map_flags,
            no_cpuid_faulting,
        ],
    ),
    ("shortage", shortage::CASES),
];

unsafe fn strict_seccomp() {
    let (r, w) = pipe_pair();
    let pid = spawn(|| {
        ok(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0));
        put(w, b"x");
        syscall(SYS_exit, 7);
        0
    });
    exits(pid, 7);
    assert_eq!(get(r, 1), b"x");
    let pid = spawn(|| {
        ok(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0));
        syscall(SYS_getpid);
        0
    });
    dies(pid, SIGKILL);
}

unsafe fn break_that_cannot_grow() {
    let at = |v: u64| syscall(SYS_brk, v) as u64;
    let now = at(0);
    // More than any machine has.
    assert_eq!(at(now + (1 << 45)), now);
    assert_eq!(at(0), now);
    assert_eq!(at(now + 4096), now + 4096);
    *((now + 64) as *mut u8) = 1;
    assert_eq!(at(now), now);
}

unsafe fn advice_on_paging() {
    let p = anon(4 * PAGE, RW);
    *p = 5;
    for advice in [MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_SEQUENTIAL, MADV_NORMAL] {
        ok(madvise(p.cast(), 4 * PAGE, advice));
        assert_eq!(*p, 5);
    }
    fails(madvise(p.cast(), PAGE, 999), EINVAL);
    if mlock(p.cast(), PAGE) == 0 {
        fails(madvise(p.cast(), PAGE, MADV_DONTNEED), EINVAL);
        ok(munlock(p.cast(), PAGE));
    }
    // A bad descriptor takes precedence over a bad length.
    fails(mmap(null_mut(), 0, RW, MAP_PRIVATE, -1, 0), EBADF);
    ok(munmap(p.cast(), 4 * PAGE));
    fails(madvise(p.cast(), PAGE, MADV_COLD), ENOMEM);
}

unsafe fn personality_bits() {
    let old = ok(personality(0xffff_ffff));
    for bit in [0x008_0000, 0x010_0000, 0x020_0000, 0x400_0000, 0x800_0000, 0x004_0000] {
        ok(personality((old | bit) as c_ulong));
        is(personality(0xffff_ffff), i64::from(old | bit));
    }
    ok(personality(0x400_0000));
    let mut t = timeval { tv_sec: 0, tv_usec: 2000 };
    is(select(0, null_mut(), null_mut(), null_mut(), &mut t), 0);
    assert_eq!(t.tv_usec, 2000);
    ok(personality(0x002_0000));
    let mut u: utsname = zeroed();
    ok(uname(&mut u));
    assert_eq!((u.release[0], u.release[2]), (b'2' as i8, b'6' as i8));
    // READ_IMPLIES_EXEC: readable memory is executable.
    ok(personality(0x040_0000));
    let p = anon(PAGE, PROT_READ);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let covers = |l: &&str| {
        let (s, e) = l.split_once(' ').unwrap().0.split_once('-').unwrap();
        let at = |h| usize::from_str_radix(h, 16).unwrap();
        (at(s)..at(e)).contains(&(p as usize))
    };
    assert!(maps.lines().find(covers).unwrap().contains(" r-xp "));
    ok(personality(old as c_ulong));
}

unsafe fn kcmp_kinds() {
    let me = getpid();
    let pid = spawn(|| loop {
        pause();
    });
    let cmp = |kind: i32, a: i32, b: i32| syscall(SYS_kcmp, me, pid, kind, a, b);
    is(cmp(0, 2, 2), 0);
    for kind in 1..=4 {
        assert_ne!(ok(cmp(kind, 0, 0)), 0, "kind {kind}");
    }
    is(cmp(5, 0, 0), 0);
    is(cmp(6, 0, 0), 0);
    fails(cmp(99, 0, 0), EINVAL);
    fails(cmp(0, 2, 999), EBADF);
    fails(syscall(SYS_kcmp, me, 0x3fff_ffff, 1, 0, 0), ESRCH);
    ok(kill(pid, SIGKILL));
    dies(pid, SIGKILL);
}

unsafe fn validated_map_flags() {
    let t = Tmp::new();
    let fd = t.open("f");
    ok(ftruncate(fd, PAGE as i64));
    let unknown = 1 << 23;
    let p = ok(mmap(null_mut(), PAGE, RW, MAP_SHARED | unknown, fd, 0));
    ok(munmap(p, PAGE));
    fails(mmap(null_mut(), PAGE, RW, MAP_SHARED_VALIDATE | unknown, fd, 0), EOPNOTSUPP);
}

unsafe fn no_cpuid_faulting() {
    // Where the processor supports it, disabling and querying works too.
    is(syscall(SYS_arch_prctl, 0x1011, 0), 1);
}

unsafe fn processor_of_thread() {
    let (mut cpu, mut node) = (0u32, 0u32);
    let mut same = false;
    for _ in 0..1000 {
        ok(syscall(SYS_getcpu, &mut cpu, &mut node, 0));
        assert_eq!(node, 0);
        // The thread may migrate between the two calls, but not every time.
        same |= cpu as i32 == sched_getcpu();
    }
    assert!(same);
    ok(syscall(SYS_getcpu, 0, 0, 0));
    fails(syscall(SYS_getcpu, 8, 0, 0), EFAULT);
    fails(syscall(SYS_getcpu, 0, u64::MAX, 0), EFAULT);
}
