//! Jumps into the stub's code, at each of its `syscall` instructions, with chosen registers.

use super::raw::*;
use super::*;

/// Invented calls that the stub uses for its messages: greeting, fork handshake, frame, interrupt.
const STUBS_OWN: [c_long; 4] = [0x4e4e, 0x4e4f, 0x4e4d, 0x4e4c];

/// Memory for arguments to point to: paths, vectors, structures.
struct Bait {
    secret: u64,
    page: u64,
}

impl Bait {
    /// The page begins with a pointer to 64 bytes of itself, which serves as an I/O vector, a message header, or
    /// whatever it is taken for.
    unsafe fn new() -> Bait {
        let page = anon(4 * PAGE, RW) as u64;
        let path = format!("{}/secret\0", outside());
        std::ptr::copy_nonoverlapping(path.as_ptr(), (page + 2048) as *mut u8, path.len());
        let words = page as *mut u64;
        for i in 0..64 {
            *words.add(i) = if i % 2 == 0 { page + 1024 } else { 64 };
        }
        Bait { secret: page + 2048, page }
    }

    /// The calls and their arguments.
    fn calls(&self, victim: u64) -> Vec<(c_long, [u64; 6])> {
        let (s, p, own) = (self.secret, self.page, self.page + PAGE as u64);
        let all = u64::MAX;
        let mut calls = vec![
            (SYS_open, [s, 0, 0, 0, 0, 0]),
            (SYS_openat, [-100i64 as u64, s, 0, 0, 0, 0]),
            (SYS_openat2, [-100i64 as u64, s, p, 24, 0, 0]),
            (SYS_stat, [s, own, 0, 0, 0, 0]),
            (SYS_read, [0, own, 64, 0, 0, 0]),
            (SYS_read, [1, own, 64, 0, 0, 0]),
            (SYS_write, [9, own, 8, 0, 0, 0]),
            (SYS_write, [1, p + 512, 0, 0, 0, 0]),
            (SYS_sendmsg, [9, p, 0, 0, 0, 0]),
            (SYS_recvmsg, [1, p, 0, 0, 0, 0]),
            (SYS_recvmsg, [9, p, 0x40, 0, 0, 0]),
            (SYS_dup2, [0, 9, 0, 0, 0, 0]),
            (SYS_fcntl, [0, 0, 0, 0, 0, 0]),
            (SYS_ioctl, [0, 0x541b, own, 0, 0, 0]),
            (SYS_close, [9, 0, 0, 0, 0, 0]),
            (SYS_close, [1, 0, 0, 0, 0, 0]),
            (SYS_socket, [1, 1, 0, 0, 0, 0]),
            (SYS_socket, [2, 1, 0, 0, 0, 0]),
            (SYS_execve, [s, 0, 0, 0, 0, 0]),
            (SYS_execveat, [-100i64 as u64, s, 0, 0, 0, 0]),
            (SYS_vfork, [0; 6]),
            (SYS_clone, [0x1000_0000 | 17, 0, 0, 0, 0, 0]),
            (SYS_clone, [0x0001_0000, own, 0, 0, 0, 0]),
            (SYS_clone, [0x50f00 | 0x80_0000, own, 0, 0, 0, 0]),
            (SYS_clone3, [own, 88, 0, 0, 0, 0]),
            (SYS_kill, [victim, 9, 0, 0, 0, 0]),
            (SYS_tkill, [victim, 9, 0, 0, 0, 0]),
            (SYS_tgkill, [victim, victim, 9, 0, 0, 0]),
            (SYS_rt_sigqueueinfo, [victim, 9, p, 0, 0, 0]),
            (SYS_pidfd_open, [victim, 0, 0, 0, 0, 0]),
            (SYS_ptrace, [16, victim, 0, 0, 0, 0]),
            (SYS_ptrace, [0x4206, victim, 0, 0, 0, 0]),
            (SYS_process_vm_readv, [victim, p, 1, p, 1, 0]),
            (SYS_process_vm_writev, [victim, p, 1, p, 1, 0]),
            (SYS_prctl, [4, 1, 0, 0, 0, 0]),
            (SYS_prctl, [59, 0, 0, 0, 0, 0]),
            (SYS_prctl, [1, 0, 0, 0, 0, 0]),
            (SYS_prctl, [35, 1, p, 64, 0, 0]),
            (SYS_seccomp, [0, 0, 0, 0, 0, 0]),
            (SYS_seccomp, [1, 8, p, 0, 0, 0]),
            (SYS_seccomp, [1, 21, p, 0, 0, 0]),
            (SYS_seccomp, [1, 9, 0x7fff_2000_0100, 0, 0, 0]),
            (SYS_arch_prctl, [0x1002, 0, 0, 0, 0, 0]),
            (SYS_rt_sigaction, [31, p, 0, 8, 0, 0]),
            (SYS_rt_sigaction, [10, p, 0, 8, 0, 0]),
            (SYS_mmap, [TEXT, 0x1000, 7, 0x32, all, 0]),
            (SYS_mmap, [TEXT, 0x1000, 7, 0x31, all, 0]),
            (SYS_mmap, [IMAGE - 0x1000, 0x10_0000, 7, 0x32, all, 0]),
            (SYS_mmap, [GUEST_MAX - 0x1000, 0x1_0001_0000, 7, 0x32, all, 0]),
            (SYS_mmap, [GLOBAL, 0x1000, 3, 0x32, all, 0]),
            (SYS_mmap, [AREA, 0x1000, 3, 0x32, all, 0]),
            (SYS_mmap, [0, 0x1000, 7, 0x22, all, 0]),
            (SYS_mmap, [0x1_0000, 0x20_0000, 7, 0x40032, all, 0]),
            (SYS_mprotect, [TEXT, 0x1000, 7, 0, 0, 0]),
            (SYS_mprotect, [GLOBAL, 0x1000, 3, 0, 0, 0]),
            (SYS_mprotect, [VDSO, 0x1000, 7, 0, 0, 0]),
            (SYS_pkey_mprotect, [TEXT, 0x1000, 7, all, 0, 0]),
            (SYS_mremap, [GLOBAL, 0x1000, 0x1000, 3, own, 0]),
            (SYS_mremap, [AREA, 0x1000, 0x1000, 3, own, 0]),
            (SYS_mremap, [own, 0x1000, 0x1000, 3, TEXT, 0]),
            (SYS_mremap, [own, 0x1000, 0x1000, 3, GLOBAL, 0]),
            (SYS_munmap, [TEXT, 0x1000, 0, 0, 0, 0]),
            (SYS_munmap, [GLOBAL, 0x1000, 0, 0, 0, 0]),
            (SYS_munmap, [0x1000, u64::MAX - 0x1fff, 0, 0, 0, 0]),
            (SYS_munmap, [0x7ffd_ffff_f000, 0x7fff_ffff_f000 - 0x7ffd_ffff_f000, 0, 0, 0, 0]),
            (SYS_remap_file_pages, [AREA, 0x1000, 0, 1, 0, 0]),
            (SYS_madvise, [TEXT, 0x1000, 4, 0, 0, 0]),
            (SYS_madvise, [AREA, 0x20000, 11, 0, 0, 0]),
            (SYS_madvise, [own, 0x1000, 12, 0, 0, 0]),
            (SYS_madvise, [own, 0x1000, 100, 0, 0, 0]),
            (SYS_process_madvise, [3, p, 1, 21, 0, 0]),
            (SYS_futex, [own, 6, 0, 0, 0, 0]),
            (SYS_futex, [own, 13, 0, 0, 0, 0]),
            (SYS_io_uring_setup, [1, own, 0, 0, 0, 0]),
            (SYS_bpf, [5, p, 72, 0, 0, 0]),
            (SYS_userfaultfd, [1, 0, 0, 0, 0, 0]),
            (SYS_perf_event_open, [p, 0, all, all, 0, 0]),
            (SYS_memfd_create, [s, 0, 0, 0, 0, 0]),
            (SYS_mount, [s, s, s, 0x1000, 0, 0]),
            (SYS_pivot_root, [s, s, 0, 0, 0, 0]),
            (SYS_chroot, [s, 0, 0, 0, 0, 0]),
            (SYS_unshare, [0x1000_0000, 0, 0, 0, 0, 0]),
            (SYS_setns, [0, 0, 0, 0, 0, 0]),
            (SYS_setuid, [0; 6]),
            (SYS_capset, [p, p, 0, 0, 0, 0]),
            (SYS_prlimit64, [victim, 7, p, p, 0, 0]),
            (SYS_sched_setaffinity, [victim, 8, p, 0, 0, 0]),
            (SYS_membarrier, [4, 0, 0, 0, 0, 0]),
            (SYS_keyctl, [0, -3i64 as u64, 0, 0, 0, 0]),
            (SYS_init_module, [p, 64, s, 0, 0, 0]),
            (SYS_shmget, [0, 0x1000, 0x3b6, 0, 0, 0]),
            (SYS_reboot, [0xfee1_dead, 672_274_793, 0, 0, 0, 0]),
            (STUBS_OWN[0], [0; 6]),
            (STUBS_OWN[1], [1, 0, 0, 0, 0, 0]),
            (STUBS_OWN[1], [0; 6]),
            (STUBS_OWN[2], [0; 6]),
            (STUBS_OWN[3], [0; 6]),
            (-1, [0; 6]),
            (1 << 40, [0; 6]),
        ];
        // The same in the x32 table.
        for nr in [SYS_getpid, SYS_open, SYS_write, SYS_kill, 520, 521, 535] {
            calls.push((nr | 0x4000_0000, [s, 0, 0, 0, 0, 0]));
        }
        calls
    }
}

/// Checks that no attack has changed or obtained anything, in this process's view. There are two copies of the original
/// text, because an attack may well have damaged its own memory. (Whether a store succeeds cannot be tested here:
/// `stub_overwrite` does that.)
unsafe fn check(before: &[Vec<u8>; 2], fds: i32) {
    if before[0] == before[1] && text() != before[0] {
        got("the stub's text changed");
    }
    let mut data = [0u8; 256];
    for fd in 3..fds {
        let n = pread(fd, data.as_mut_ptr().cast(), data.len(), 0);
        search(&data[..n.clamp(0, 256) as usize], &format!("descriptor {fd}"));
    }
}

pub unsafe fn jumps() {
    raw::arm();
    let before = [text().to_vec(), text().to_vec()];
    let sites = sites();
    assert!(sites.len() > 5, "no stub");
    let bait = Bait::new();
    let victims: Vec<u64> = host_pids().iter().map(|p| *p as u64).chain([1]).collect();
    let calls: Vec<_> = victims.iter().flat_map(|v| bait.calls(*v)).collect();
    let n = bait.calls(1).len();
    // All calls at the site that returns, a tenth of them at each other place: most block their process there, whatever
    // they are.
    let gate = Gate::new();
    survive(calls.len(), |i| {
        let (nr, args) = calls[i];
        let r = gate.call(nr, args);
        if STUBS_OWN.contains(&nr) {
            // It may have returned anywhere, with any registers.
            _exit(0);
        }
        // For these, a positive result can only mean success.
        let never = [SYS_socket, SYS_io_uring_setup, SYS_bpf, SYS_userfaultfd, SYS_perf_event_open, SYS_ptrace];
        if nr & 0x4000_0000 != 0 && (r as u64) < (-4095i64) as u64 || never[2..].contains(&nr) && r >= 0 {
            got(&format!("{r} from {nr:#x}"));
        }
        check(&before, 16);
    });
    let some = n / 10;
    survive_each(sites.len() * some, Duration::from_millis(20), |i| {
        let (site, call) = (i / some, i % some);
        let (nr, a) = calls[(10 * call + site) % n];
        jump(sites[site], [nr as u64, a[0], a[1], a[2], a[3], a[4], a[5]]);
        if call == some - 1 {
            check(&before, 16);
        }
    });
    // And at any byte at all.
    survive_each(before[0].len() / 11, Duration::from_millis(20), |i| {
        wander(TEXT + 11 * i as u64);
    });
    check(&before, 16);
}

/// Calls that the filter permits, with permitted arguments: they may affect only this process.
pub unsafe fn allowed() {
    raw::arm();
    let gate = Gate::new();
    let file = ok(open(c("/proc/self/exe").as_ptr(), O_RDONLY));
    let len = 0x1_0000u64;
    survive(25, |i| {
        let page = anon(len as usize, RW) as u64;
        match i {
            // Its memory, without the Sentry: unmapped, or different from the Sentry's view.
            0 => drop(gate.call(SYS_munmap, [page, len, 0, 0, 0, 0])),
            1 => drop(gate.call(SYS_mprotect, [page, len, 0, 0, 0, 0])),
            2 => drop(gate.call(SYS_mprotect, [page, len, 7, 0, 0, 0])),
            3 => drop(gate.call(SYS_mremap, [page, 0x1000, 0x1000, 3, 0x4000_0000_0000, 0])),
            4 => drop(gate.call(SYS_mmap, [0x4000_0000_0000, len, 7, 0x32, u64::MAX, 0])),
            5 => drop(gate.call(SYS_madvise, [page, len, MADV_DONTNEED as u64, 0, 0, 0])),
            6 => drop(gate.call(SYS_munmap, [0x10000, GUEST_MAX - 0x10000, 0, 0, 0, 0])),
            7 => drop(gate.call(SYS_munmap, [0, GUEST_MAX - 1, 0, 0, 0, 0])),
            // Every possible descriptor, for mapping.
            8 => {
                for fd in 0..64 {
                    for prot in [1, 3, 7] {
                        let r = gate.call(SYS_mmap, [page, 0x1000, prot, 0x11, fd, 0]);
                        if r == page as i64 {
                            got(&format!("a file mapped by descriptor {fd}"));
                        }
                    }
                }
            }
            9 => (2..64).for_each(|fd| drop(gate.call(SYS_close, [fd, 0, 0, 0, 0, 0]))),
            10 => drop(gate.call(SYS_close, [0xffff_ffff_0000_0002, 0, 0, 0, 0, 0])),
            // The doorbell, without a post.
            11 => (0..2000).for_each(|_| drop(gate.call(SYS_write, [1, page, 8, 0, 0, 0]))),
            12 => drop(gate.call(SYS_write, [1, 0x10, 8, 0, 0, 0])),
            // No signals, no signal stack, an arbitrary one, the guest's one.
            13 => {
                *(page as *mut u64) = u64::MAX;
                gate.call(SYS_rt_sigprocmask, [2, page, 0, 8, 0, 0]);
            }
            14..=17 => {
                let at = [0u64, page, ALT + ALT_SIZE, ALT + 100 * ALT_SIZE][i - 14];
                let stack = [at, if at == 0 { 2 } else { 0 }, 0x8000];
                gate.call(SYS_sigaltstack, [stack.as_ptr() as u64, 0, 0, 0, 0, 0]);
            }
            18 => drop(gate.call(SYS_futex, [AREA, 1, 1000, 0, 0, 0])),
            19 => (0..1000).for_each(|t| drop(gate.call(0x4e4f, [t * 0x1357_9bdf_0246_8ace, 0, 0, 0, 0, 0]))),
            20 => drop(gate.call(SYS_membarrier, [1, 0, 0, 0, 0, 0])),
            21 => drop(gate.call(SYS_prctl, [1, 9, 0, 0, 0, 0])),
            // Descriptors sent to it for mapping are never received.
            22 => (0..300).for_each(|_| {
                let p = mmap(std::ptr::null_mut(), PAGE, PROT_READ, MAP_PRIVATE, file, 0);
                *(AREA as *mut u32) = 1;
                munmap(p, PAGE);
            }),
            // The second filter, as often as the host permits.
            23 => (0..200).for_each(|_| drop(gate.call(SYS_seccomp, [1, 21, 0x7fff_2000_0100, 0, 0, 0]))),
            _ => drop(gate.call(SYS_exit_group, [0; 6])),
        }
        // The next actions of this process show the consequences.
        let _ = std::fs::read("/proc/self/status");
        exits_or_not(fork());
        let q = mmap(std::ptr::null_mut(), 0x4000, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        munmap(q, 0x4000);
        syscall(SYS_getpid);
    });
    // As a thread: it gets no signals, and still ends with its process.
    for how in [SIGKILL, 0] {
        let pid = spawn(|| {
            let t = std::thread::spawn(move || {
                let all = u64::MAX;
                gate.call(SYS_rt_sigprocmask, [2, &raw const all as u64, 0, 8, 0, 0]);
                loop {
                    std::hint::spin_loop();
                }
            });
            usleep(20_000);
            if how == 0 {
                _exit(0);
            }
            drop(t.join());
            0
        });
        usleep(40_000);
        end_with(pid, how);
    }
}

unsafe fn end_with(pid: pid_t, how: i32) {
    if how != 0 {
        return end(pid);
    }
    let since = Instant::now();
    while waitpid(pid, std::ptr::null_mut(), WNOHANG) != pid {
        if since.elapsed() > 2 * PATIENCE {
            got("a process that does not end with its first thread's exit_group");
            return end(pid);
        }
        usleep(300);
    }
}

unsafe fn exits_or_not(pid: pid_t) {
    match pid {
        0 => _exit(0),
        -1 => {}
        _ => drop(waitpid(pid, std::ptr::null_mut(), 0)),
    }
}

std::arch::global_asm!(
    r#"
    // (site rdi, flags rsi, stack rdx): makes the clone; the new one increments the word at rcx for ever.
    .globl hostile_clone
hostile_clone:
    push rbx
    push r12
    mov rbx, rcx
    mov r12, rdi
    mov rdi, rsi
    mov rsi, rdx
    xor edx, edx
    xor r10d, r10d
    xor r8d, r8d
    mov eax, 56
    // A `syscall; ret` returns through the new stack, with this address on top.
    call r12
    .globl hostile_born
hostile_born:
    test rax, rax
    jz 2f
    pop r12
    pop rbx
    ret
2:  inc qword ptr [rbx]
    pause
    jmp 2b
    // Sleeps for ever, in the stub's `syscall; ret`.
    .globl hostile_asleep
hostile_asleep:
    lea rdi, [rip + 3f]
    mov esi, 128
    xor edx, edx
    xor r10d, r10d
    mov eax, 202
    call r12
    jmp hostile_asleep
    .balign 4
3:  .long 0
    "#
);
extern "C" {
    fn hostile_clone(site: u64, flags: u64, stack: u64, counter: *mut u64) -> i64;
    fn hostile_born();
    fn hostile_asleep();
}

/// A process cloned without the Sentry; it increments a counter.
pub unsafe fn stray(counter: *mut u64) {
    hostile_clone(find(&[0x0f, 0x05, 0xc3])[0], 0x8000 | 17, 0, counter);
}

/// Processes and threads cloned without the Sentry: they compute until the sandbox's end, and not longer.
pub unsafe fn strays() {
    raw::arm();
    let site = find(&[0x0f, 0x05, 0xc3])[0];
    for flags in [0x8000 | 17, 0x5_0f00u64] {
        for _ in 0..3 {
            let counter = shared(PAGE).cast::<u64>();
            let pid = spawn(|| {
                let stack = anon(0x1_0000, RW).add(0xf000).cast::<u64>();
                *stack = hostile_born as *const () as u64;
                let own = if flags == 0x5_0f00 { stack as u64 } else { 0 };
                hostile_clone(site, flags, own, counter);
                eventually("a stray that runs", || counter.read_volatile() > 0);
                // It is not a child of any process here.
                fails(waitpid(-1, std::ptr::null_mut(), WNOHANG), ECHILD);
                0
            });
            let status = reap(pid);
            if status != 0 {
                got(&format!("an odd end of a stray's maker: {status:#x}"));
            }
        }
    }
    // A process that executes another program. If the program gains no rights, the strays left behind are its own
    // problem, and may end it; a program that gains rights never has a stray in its memory.
    let exe = format!("/tmp/set-user-id-{}", getpid());
    std::fs::copy("/proc/self/exe", &exe).unwrap();
    ok(chmod(c(&exe).as_ptr(), 0o4755));
    for gains in [false, true] {
        let counter = shared(PAGE).cast::<u64>();
        let pid = spawn(|| {
            if gains {
                become_nobody();
            }
            let stack = anon(0x1_0000, RW).add(0xf000).cast::<u64>();
            *stack = hostile_born as *const () as u64;
            hostile_clone(site, 0x5_0f00, stack as u64, counter);
            eventually("a stray thread", || counter.read_volatile() > 0);
            let path = if gains { c(&exe) } else { c("/proc/self/exe") };
            let args = [c("guest-tests"), c("helper"), c("exit"), c("7")];
            let argv: Vec<_> = args.iter().map(|a| a.as_ptr()).chain([std::ptr::null()]).collect();
            ok(execv(path.as_ptr(), argv.as_ptr()))
        });
        let status = reap(pid);
        if gains && !(WIFEXITED(status) && WEXITSTATUS(status) == 7) {
            got(&format!("to disturb a program with more rights: {status:#x}"));
        }
        let mut last = counter.read_volatile();
        eventually("the stray thread's end", || {
            usleep(50_000);
            let now = counter.read_volatile();
            std::mem::replace(&mut last, now) == now
        });
    }
}

/// As many threads cloned without the Sentry as the host permits: other processes can still fork, and the process with
/// the threads is killed.
pub unsafe fn crowd() {
    raw::arm();
    const WANTED: usize = 1000;
    let site = find(&[0x0f, 0x05, 0xc3])[0];
    let words = shared(PAGE).cast::<u64>();
    let pid = spawn(|| {
        become_nobody();
        let stacks = anon(WANTED * PAGE, RW);
        let mut made = 0;
        while made < WANTED {
            let stack = stacks.add(made * PAGE + PAGE / 2).cast::<u64>();
            *stack = hostile_asleep as *const () as u64;
            if hostile_clone(site, 0x5_0f00, stack as u64, words) < 0 {
                break;
            }
            made += 1;
        }
        words.add(1).write_volatile(made as u64 + 1);
        loop {
            pause();
        }
    });
    while words.add(1).read_volatile() == 0 {
        usleep(1000);
    }
    say(&format!("made {}\n", words.add(1).read_volatile() - 1));
    let since = Instant::now();
    loop {
        match fork() {
            0 => _exit(0),
            -1 if errno() == EAGAIN && since.elapsed() < 12 * PATIENCE => drop(usleep(50_000)),
            -1 => return got(&format!("all threads of the sandbox for itself: {}", name_of(errno()))),
            other => {
                reap(other);
                break;
            }
        }
    }
    let status = reap(pid);
    say(&format!("ended {status}\n"));
}

/// Threads that block all signals and compute: stops and kills by other processes of the sandbox still work.
pub unsafe fn unstoppable() {
    raw::arm();
    let gate = Gate::new();
    for round in 0..4 {
        let counter = shared(PAGE).cast::<u64>();
        let pid = spawn(|| {
            let all = u64::MAX;
            let mut threads = Vec::new();
            for _ in 0..2 {
                threads.push(std::thread::spawn(move || {
                    gate.call(SYS_rt_sigprocmask, [2, &raw const all as u64, 0, 8, 0, 0]);
                    // A call of its own ends it: the filter's signal is blocked.
                    usleep(if round % 2 == 0 { 0 } else { 100 });
                }));
            }
            gate.call(SYS_rt_sigprocmask, [2, &raw const all as u64, 0, 8, 0, 0]);
            loop {
                counter.write_volatile(counter.read_volatile() + 1);
            }
        });
        usleep(20_000);
        kill(pid, if round < 2 { SIGSTOP } else { SIGUSR1 });
        usleep(5_000);
        end(pid);
    }
}
