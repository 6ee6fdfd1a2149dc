//! The stub's pages as the target of the guest's own calls: mapped over, unmapped, moved, written by the kernel.

use super::raw::*;
use super::*;

/// A page of each part, the edges, and addresses that no process can have.
const TARGETS: [u64; 14] = [
    GUEST_MAX - PAGE as u64,
    GUEST_MAX,
    IMAGE - PAGE as u64,
    IMAGE,
    TEXT,
    VDSO,
    GLOBAL,
    AREA,
    AREA + SLOT,
    ALT,
    ALT + ALT_SIZE - 4096,
    0x7fff_ffff_e000,
    0x8000_0000_0000,
    0xffff_ffff_ff60_0000,
];

const KINDS: usize = 40;

/// Attack number `kind` on the page at `at`; [`check`] examines the result.
unsafe fn attack(kind: usize, at: u64) {
    let page = PAGE as u64;
    let own = anon(4 * PAGE, RW);
    let zero = c"/dev/zero".as_ptr();
    let data = [0x5au8; 64];
    let call = |nr, a: u64, b: u64, c: u64, d: u64, e: u64, f: u64| syscall(nr, a, b, c, d, e, f);
    let own64 = own as u64;
    let iov = [at, 64u64];
    let here = [data.as_ptr() as u64, 64u64];
    let write_by = |nr: c_long, args: &dyn Fn(u64) -> [u64; 5]| {
        let fd = open(zero, O_RDWR) as u64;
        let [a, b, c, d, e] = args(fd);
        syscall(nr, a, b, c, d, e, 0);
        close(fd as i32);
    };
    let fixed = (MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED) as u64;
    match kind {
        0 => drop(call(SYS_mmap, at, page, 7, fixed, u64::MAX, 0)),
        1 => drop(call(SYS_mmap, at, page, 3, fixed | MAP_GROWSDOWN as u64, u64::MAX, 0)),
        2 => drop(call(SYS_mmap, at, 1 << 32, 7, fixed, u64::MAX, 0)),
        3 => drop(call(SYS_mmap, at, page, 3, (MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE) as u64, u64::MAX, 0)),
        4 => {
            let fd = open(c"/proc/self/exe".as_ptr(), O_RDONLY) as u64;
            call(SYS_mmap, at, page, 5, (MAP_PRIVATE | MAP_FIXED) as u64, fd, 0);
        }
        5 => drop(call(SYS_munmap, at, page, 0, 0, 0, 0)),
        6 => drop(call(SYS_munmap, at - 0x10000, 0x40000, 0, 0, 0, 0)),
        7 => drop(call(SYS_mprotect, at, page, 7, 0, 0, 0)),
        8 => drop(call(SYS_mprotect, at, page, 0, 0, 0, 0)),
        9 => drop(call(SYS_pkey_mprotect, at, page, 7, u64::MAX, 0, 0)),
        10 => drop(call(SYS_mremap, at, page, page, 3, own64, 0)),
        11 => drop(call(SYS_mremap, own64, page, page, 3, at, 0)),
        12 => drop(call(SYS_mremap, at, page, 2 * page, 1, 0, 0)),
        13 => drop(call(SYS_mremap, own64, page, page, 7, at, 0)),
        14 => (0..26).for_each(|advice| drop(call(SYS_madvise, at, page, advice, 0, 0, 0))),
        15 => drop(call(SYS_msync, at, page, 2, 0, 0, 0)),
        16 => drop(call(SYS_mlock, at, page, 0, 0, 0, 0)),
        17 => drop(call(SYS_munlock, at, page, 0, 0, 0, 0)),
        18 => drop(call(SYS_remap_file_pages, at, page, 0, 0, 0, 0)),
        19 => drop(call(SYS_brk, at, 0, 0, 0, 0, 0)),
        20 => write_by(SYS_read, &|fd| [fd, at, 64, 0, 0]),
        21 => write_by(SYS_pread64, &|fd| [fd, at, 64, 0, 0]),
        22 => write_by(SYS_readv, &|fd| [fd, iov.as_ptr() as u64, 1, 0, 0]),
        23 => write_by(SYS_read, &|fd| [fd, at - 32, 64, 0, 0]),
        24 => write_by(SYS_read, &|fd| [fd, at, 0x2_0000, 0, 0]),
        25 => drop(call(SYS_process_vm_writev, getpid() as u64, here.as_ptr() as u64, 1, iov.as_ptr() as u64, 1, 0)),
        26 => drop(call(SYS_process_vm_writev, getppid() as u64, here.as_ptr() as u64, 1, iov.as_ptr() as u64, 1, 0)),
        27 => {
            let fd = open(c"/proc/self/mem".as_ptr(), O_RDWR);
            if pwrite(fd, data.as_ptr().cast(), 64, at as i64) > 0 && at >= GUEST_MAX {
                got(&format!("/proc/self/mem to write at {at:#x}"));
            }
            let mut seen = [0u8; 64];
            if pread(fd, seen.as_mut_ptr().cast(), 64, at as i64) > 0 && at >= GUEST_MAX {
                got(&format!("/proc/self/mem to read at {at:#x}"));
            }
        }
        28 => drop(call(SYS_getcwd, at, 4096, 0, 0, 0, 0)),
        29 => drop(call(SYS_uname, at, 0, 0, 0, 0, 0)),
        30 => drop(call(SYS_getrandom, at, 64, 0, 0, 0, 0)),
        31 => {
            // A large buffer, which is copied differently; and times, sets and lists.
            call(SYS_getrandom, at, 0x1_0000, 0, 0, 0, 0);
            call(SYS_clock_gettime, 1, at, 0, 0, 0, 0);
            call(SYS_rt_sigprocmask, 0, 0, at, 8, 0, 0);
            call(SYS_rt_sigaction, SIGUSR2 as u64, 0, at, 8, 0, 0);
            call(SYS_stat, c"/".as_ptr() as u64, at, 0, 0, 0, 0);
            call(SYS_pipe2, at, 0, 0, 0, 0, 0);
        }
        32 => drop(call(SYS_set_tid_address, at, 0, 0, 0, 0, 0)),
        33 => {
            // The kernel writes there as the thread ends.
            call(SYS_set_robust_list, at, 24, 0, 0, 0, 0);
            in_thread(move || {
                syscall(SYS_set_tid_address, at);
                syscall(SYS_set_robust_list, at, 24);
                syscall(SYS_exit, 0);
            });
        }
        34 => {
            // Stacks for signals and threads there.
            let stack = stack_t { ss_sp: at as *mut c_void, ss_flags: 0, ss_size: 0x4000 };
            if sigaltstack(&stack, std::ptr::null_mut()) == 0 {
                raise(SIGSEGV);
            }
        }
        35 => drop(call(SYS_arch_prctl, 0x1001, at, 0, 0, 0, 0)),
        36 => drop(call(SYS_futex, at, (FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG) as u64, 1, 1, at, 0x0100_1000)),
        37 => {
            for op in [FUTEX_LOCK_PI, FUTEX_UNLOCK_PI, FUTEX_TRYLOCK_PI] {
                call(SYS_futex, at, op as u64, 1, 1, at, 0);
            }
        }
        38 => {
            let id = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0o600);
            shmat(id, at as *const c_void, SHM_REMAP);
            shmctl(id, IPC_RMID, std::ptr::null_mut());
        }
        _ => {
            // The id of a new thread is stored there; its thread area is there.
            let top = own.add(4 * PAGE - 64) as u64;
            *(top as *mut u64) = 0;
            let flags =
                (CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | CLONE_SETTLS | SIGCHLD) as u64;
            if syscall(SYS_clone, flags, 0u64, at, at, at) == 0 {
                std::arch::asm!("mov edi, 0", "mov eax, 231", "syscall", options(noreturn));
            }
        }
    }
    munmap(own.cast(), 4 * PAGE);
}

unsafe fn in_thread(f: impl FnOnce() + Send + 'static) {
    // Such a thread cannot be joined as usual: the word cleared at its end is elsewhere.
    let h = std::thread::spawn(f);
    usleep(2000);
    drop(h);
}

unsafe fn check(before: &[u8], what: &str) {
    if text() != before {
        got(&format!("the stub's text changed by {what}"));
    }
    for at in [TEXT, GLOBAL, VDSO, IMAGE] {
        if writable(at) {
            got(&format!("to write at {at:#x} by {what}"));
        }
    }
    // The process continues as if nothing had happened.
    if syscall(SYS_getpid) != std::process::id() as i64 || std::fs::read("/proc/self/stat").is_err() {
        got(&format!("a process out of order by {what}"));
    }
}

pub unsafe fn stub_overwrite() {
    raw::arm();
    let before = text().to_vec();
    assert!(!before.is_empty(), "no stub");
    survive(KINDS * TARGETS.len(), |i| {
        let (kind, at) = (i / TARGETS.len(), TARGETS[i % TARGETS.len()]);
        attack(kind, at);
        check(&before, &format!("attack {kind} at {at:#x}"));
    });
    check(&before, "others");
}

/// The same from several threads, while others make calls.
pub unsafe fn stub_overwrite_threads() {
    raw::arm();
    let before = text().to_vec();
    survive(6, |i| {
        for t in 0..3usize {
            std::thread::spawn(move || {
                for n in 0..400usize {
                    let kind = [0, 2, 5, 6, 7, 8, 10, 11, 13, 14, 20, 24, 25, 31][(n + i + t) % 14];
                    attack(kind, TARGETS[1..][(n / 14 + t) % (TARGETS.len() - 1)]);
                }
            });
        }
        for _ in 0..200 {
            if syscall(SYS_getpid) != std::process::id() as i64 || getpgid(0) != getpgid(getpid()) {
                got("wrong answers");
            }
            let p = anon(PAGE, RW);
            *p = 1;
            munmap(p.cast(), PAGE);
        }
        check(&before, "threads");
        _exit(0);
    });
}
