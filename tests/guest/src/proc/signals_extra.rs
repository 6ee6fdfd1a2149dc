//! Signal frames: registers, alternate stacks, faults, non-local exits.

use crate::t::*;
use libc::*;
use std::arch::asm;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

pub const CASES: &[crate::Case] = cases![
    alternate_stack,
    alternate_stack_errors,
    alternate_stack_state,
    overflow_on_alternate_stack,
    fault_signals,
    registers_survive,
    vector_registers_survive,
    context_can_be_changed,
    mask_from_context,
    interrupted_call_in_context,
    nested_handlers,
    nested_many_times,
    nested_beyond_the_stack,
    frame_is_aligned,
    red_zone_survives,
    fresh_vector_state_in_handler,
    jump_out_of_handler,
    bad_stack_kills,
    bad_frame_kills,
    timer_hits_loop,
    breakpoint_and_step,
    exit_in_handler,
];

static HITS: AtomicU32 = AtomicU32::new(0);
static SP: AtomicUsize = AtomicUsize::new(0);

extern "C" fn note_sp(_: i32) {
    let x = 0u8;
    SP.store(&raw const x as usize, SeqCst);
    HITS.fetch_add(1, SeqCst);
}

unsafe fn alt(len: usize) -> stack_t {
    stack_t { ss_sp: anon(len, RW).cast(), ss_flags: 0, ss_size: len }
}

unsafe fn alternate_stack() {
    let s = alt(64 * 1024);
    ok(sigaltstack(&s, null_mut()));
    on(SIGUSR1, note_sp as *const () as usize, SA_ONSTACK);
    on(SIGUSR2, note_sp as *const () as usize, 0);
    let inside = || (s.ss_sp as usize..s.ss_sp as usize + s.ss_size).contains(&SP.load(SeqCst));
    ok(raise(SIGUSR1));
    assert!(inside());
    ok(raise(SIGUSR2));
    assert!(!inside());
    ok(raise(SIGUSR1));
    assert!(inside());
}

unsafe fn alternate_stack_errors() {
    let mut s = alt(64 * 1024);
    s.ss_size = 100;
    fails(sigaltstack(&s, null_mut()), ENOMEM);
    s.ss_size = 64 * 1024;
    s.ss_flags = 77;
    fails(sigaltstack(&s, null_mut()), EINVAL);
    fails(sigaltstack(BAD.cast(), null_mut()), EFAULT);
    fails(sigaltstack(std::ptr::null(), BAD.cast()), EFAULT);
}

unsafe fn alternate_stack_state() {
    let mut old: stack_t = zeroed();
    let off = stack_t { ss_sp: null_mut(), ss_flags: SS_DISABLE, ss_size: 0 };
    ok(sigaltstack(&off, null_mut()));
    ok(sigaltstack(std::ptr::null(), &mut old));
    assert_eq!(old.ss_flags, SS_DISABLE);
    let s = alt(64 * 1024);
    ok(sigaltstack(&s, &mut old));
    ok(sigaltstack(std::ptr::null(), &mut old));
    assert_eq!((old.ss_sp, old.ss_size, old.ss_flags), (s.ss_sp, s.ss_size, 0));
    extern "C" fn h(_: i32) {
        unsafe {
            let mut old: stack_t = zeroed();
            ok(sigaltstack(std::ptr::null(), &mut old));
            assert_eq!(old.ss_flags, SS_ONSTACK);
            fails(sigaltstack(&old, null_mut()), EPERM); // while running on it
            HITS.fetch_add(1, SeqCst);
        }
    }
    on(SIGUSR1, h as *const () as usize, SA_ONSTACK);
    ok(raise(SIGUSR1));
    assert_eq!(HITS.load(SeqCst), 1);
    in_child(|| {
        let mut c: stack_t = zeroed();
        ok(sigaltstack(std::ptr::null(), &mut c));
        assert_eq!(c.ss_sp, s.ss_sp); // fork keeps the setting
    });
    std::thread::spawn(|| unsafe {
        // A new thread has its own setting, or none: Rust's runtime decides, but it is not this one.
        let mut c: stack_t = zeroed();
        ok(sigaltstack(std::ptr::null(), &mut c));
    })
    .join()
    .unwrap();
}

#[inline(never)]
fn forever(n: usize) -> usize {
    let pad = std::hint::black_box([n; 256]);
    forever(n + 1) + pad[n % 256]
}

unsafe fn overflow_on_alternate_stack() {
    extern "C" fn h(_: i32) {
        unsafe { _exit(44) }
    }
    let pid = spawn(|| {
        ok(setrlimit(RLIMIT_STACK, &rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 }));
        ok(sigaltstack(&alt(64 * 1024), null_mut()));
        on(SIGSEGV, h as *const () as usize, SA_ONSTACK);
        forever(0) as i32
    });
    exits(pid, 44);
    // Without an alternate stack the process is killed.
    let pid = spawn(|| {
        ok(setrlimit(RLIMIT_STACK, &rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 }));
        on(SIGSEGV, h as *const () as usize, 0);
        forever(0) as i32
    });
    dies(pid, SIGSEGV);
}

static CODE: AtomicI32 = AtomicI32::new(0);

extern "C" fn leave(s: i32, i: *mut siginfo_t, _: *mut c_void) {
    unsafe {
        CODE.store((*i).si_code, SeqCst);
        _exit(s * 4 + ((*i).si_code & 3));
    }
}

unsafe fn fault_signals() {
    type F = unsafe fn();
    let kinds: [(i32, i32, F); 5] = [
        (SIGFPE, 1, || asm!("xor ecx, ecx", "mov eax, 1", "cdq", "idiv ecx", out("rax") _, out("rcx") _, out("rdx") _)),
        (SIGILL, 2, || asm!("ud2")),
        (SIGTRAP, 0x80, || asm!("int3")),
        (SIGSEGV, 1, || asm!("mov byte ptr [8], 1")),
        (SIGSEGV, 0x80, || asm!("hlt")),
    ];
    for (sig, code, f) in kinds {
        let pid = spawn(|| {
            on(sig, leave as *const () as usize, SA_SIGINFO);
            f();
            0
        });
        exits(pid, sig * 4 + (code & 3));
        let pid = spawn(|| {
            ok(setrlimit(RLIMIT_CORE, &rlimit { rlim_cur: 0, rlim_max: 0 }));
            f();
            0
        });
        dies(pid, sig);
    }
}

extern "C" fn clobber(_: i32) {
    HITS.fetch_add(1, SeqCst);
    unsafe {
        asm!(
            "mov r8, 1", "mov r9, 1", "mov r10, 1", "mov r11, 1", "mov rsi, 1", "mov rdi, 1",
            "mov rcx, 1", "mov rdx, 1",
            "pcmpeqb xmm0, xmm0", "pcmpeqb xmm7, xmm7", "pcmpeqb xmm15, xmm15",
            out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("rsi") _, out("rdi") _,
            out("rcx") _, out("rdx") _,
            out("xmm0") _, out("xmm7") _, out("xmm15") _,
        );
    }
}

/// Every general register and the flags survive a signal that a system call raises.
unsafe fn registers_survive() {
    on(SIGUSR1, clobber as *const () as usize, 0);
    let (pid, tid) = (getpid() as u64, gettid() as u64);
    for _ in 0..50 {
        let mut r = [0u64; 8];
        asm!(
            "push rbx", "push rbp",
            "mov rbx, 0x1111", "mov rbp, 0x2222", "mov r8, 0x3333", "mov r9, 0x4444", "mov r10, 0x5555",
            "mov r12, 0x6666", "mov r13, 0x7777", "mov r14, 0x8888",
            "stc", "mov eax, 234", "syscall",
            "setc al", "movzx eax, al",
            "mov [r15], rbx", "mov [r15+8], rbp", "mov [r15+16], r8", "mov [r15+24], r9", "mov [r15+32], r10",
            "mov [r15+40], r12", "mov [r15+48], r13", "mov [r15+56], r14",
            "pop rbp", "pop rbx",
            in("r15") r.as_mut_ptr(), in("rdi") pid, in("rsi") tid, in("rdx") SIGUSR1 as u64,
            out("rax") _, out("rcx") _, out("r11") _, out("r8") _, out("r9") _, out("r10") _,
            out("r12") _, out("r13") _, out("r14") _,
        );
        assert_eq!(r, [0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x6666, 0x7777, 0x8888]);
    }
    assert_eq!(HITS.load(SeqCst), 50);
}

unsafe fn vector_registers_survive() {
    on(SIGUSR1, clobber as *const () as usize, 0);
    let pat: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfeed_f00d_dead_beef];
    let mut out = [[0u64; 2]; 3];
    asm!(
        "movdqu xmm0, [{p}]", "movdqu xmm7, [{p}]", "movdqu xmm15, [{p}]",
        "mov eax, 234", "syscall",
        "movdqu [{o}], xmm0", "movdqu [{o}+16], xmm7", "movdqu [{o}+32], xmm15",
        p = in(reg) pat.as_ptr(), o = in(reg) out.as_mut_ptr(),
        in("rdi") getpid(), in("rsi") gettid(), in("rdx") SIGUSR1, out("rax") _, out("rcx") _, out("r11") _,
        out("xmm0") _, out("xmm7") _, out("xmm15") _,
    );
    assert_eq!(out, [pat; 3]);
    if std::is_x86_feature_detected!("avx") {
        #[target_feature(enable = "avx")]
        unsafe fn avx() {
            let pat = [1u64, 2, 3, 4];
            let mut out = [0u64; 4];
            asm!(
                "vmovdqu ymm9, [{p}]", "mov eax, 234", "syscall", "vmovdqu [{o}], ymm9",
                p = in(reg) pat.as_ptr(), o = in(reg) out.as_mut_ptr(),
                in("rdi") getpid(), in("rsi") gettid(), in("rdx") SIGUSR1, out("rax") _, out("rcx") _, out("r11") _,
                out("ymm9") _,
            );
            assert_eq!(out, pat);
        }
        avx();
    }
    assert!(HITS.load(SeqCst) >= 1);
}

unsafe fn context_can_be_changed() {
    // The handler skips the faulting instruction and sets a register.
    extern "C" fn h(_: i32, _: *mut siginfo_t, ctx: *mut c_void) {
        unsafe {
            let g = &mut (*ctx.cast::<ucontext_t>()).uc_mcontext.gregs;
            g[REG_RIP as usize] += 2; // the length of ud2
            g[REG_RBX as usize] = 0x5eed;
            g[REG_R12 as usize] = 0xbeef;
            g[REG_EFL as usize] |= 1;
        }
    }
    on(SIGILL, h as *const () as usize, SA_SIGINFO);
    let (b, c, f): (u64, u64, u8);
    asm!("push rbx", "xor ebx, ebx", "clc", "ud2", "setc {2}", "mov {0}, rbx", "pop rbx", "mov {1}, r12",
        out(reg) b, out(reg) c, out(reg_byte) f, out("r12") _);
    assert_eq!((b, c, f), (0x5eed, 0xbeef, 1));
}

unsafe fn mask_from_context() {
    extern "C" fn h(_: i32, _: *mut siginfo_t, ctx: *mut c_void) {
        unsafe {
            sigaddset(&mut (*ctx.cast::<ucontext_t>()).uc_sigmask, SIGTERM);
        }
    }
    on(SIGUSR1, h as *const () as usize, SA_SIGINFO);
    ok(raise(SIGUSR1));
    let mut m = zeroed();
    ok(sigprocmask(SIG_BLOCK, std::ptr::null(), &mut m));
    assert_eq!((sigismember(&m, SIGTERM), sigismember(&m, SIGUSR1)), (1, 0));
}

unsafe fn interrupted_call_in_context() {
    static RAX: AtomicU64 = AtomicU64::new(0);
    extern "C" fn h(_: i32, _: *mut siginfo_t, ctx: *mut c_void) {
        unsafe { RAX.store((*ctx.cast::<ucontext_t>()).uc_mcontext.gregs[REG_RAX as usize] as u64, SeqCst) }
    }
    on(SIGUSR1, h as *const () as usize, SA_SIGINFO);
    let k = interrupt_me(SIGUSR1);
    fails(pause(), EINTR);
    exits(k, 0);
    assert_eq!(RAX.load(SeqCst) as i64, -i64::from(EINTR));
}

unsafe fn nested_handlers() {
    static DEPTH: AtomicU32 = AtomicU32::new(0);
    extern "C" fn h(s: i32) {
        DEPTH.fetch_add(1, SeqCst);
        if s < 60 {
            unsafe { ok(raise(s + 1)) };
        }
    }
    (34..=60).for_each(|s| on(s, h as *const () as usize, 0));
    ok(raise(34));
    assert_eq!(DEPTH.load(SeqCst), 27);
}

const NESTED: usize = 300;
static VALUES: [AtomicUsize; NESTED] = [const { AtomicUsize::new(0) }; NESTED];

extern "C" fn note_value(_: i32, info: *mut siginfo_t, _: *mut c_void) {
    let n = HITS.fetch_add(1, SeqCst) as usize;
    VALUES[n].store(unsafe { (*info).si_value().sival_ptr as usize }, SeqCst);
}

/// Queues signals, and unblocks them on an alternate stack of `room` bytes.
unsafe fn nest(room: usize) {
    let stack = stack_t { ss_sp: anon(room, RW).cast(), ss_flags: 0, ss_size: room };
    ok(sigaltstack(&stack, null_mut()));
    on(SIGRTMIN(), note_value as *const () as usize, SA_SIGINFO | SA_NODEFER | SA_ONSTACK);
    block(&[SIGRTMIN()]);
    for n in 0..NESTED {
        ok(sigqueue(getpid(), SIGRTMIN(), sigval { sival_ptr: n as *mut c_void }));
    }
    ok(sigprocmask(SIG_UNBLOCK, &set_of(&[SIGRTMIN()]), null_mut()));
}

/// All handlers are entered, each on top of the last, before the innermost one runs.
unsafe fn nested_many_times() {
    nest(NESTED * 16384);
    assert_eq!(HITS.load(SeqCst) as usize, NESTED);
    for (n, value) in VALUES.iter().enumerate() {
        assert_eq!(value.load(SeqCst), NESTED - 1 - n);
    }
}

unsafe fn nested_beyond_the_stack() {
    dies(
        spawn(|| {
            nest(1 << 16);
            0
        }),
        SIGSEGV,
    );
}

unsafe fn frame_is_aligned() {
    static BAD_ALIGN: AtomicU32 = AtomicU32::new(0);
    extern "C" fn h(_: i32, i: *mut siginfo_t, u: *mut c_void) {
        // The compiler relies on the stack's alignment here.
        let v = std::hint::black_box(unsafe { std::arch::x86_64::_mm_setzero_si128() });
        if &raw const v as usize % 16 != 0 || i as usize % 8 != 0 || u as usize % 8 != 0 {
            BAD_ALIGN.fetch_add(1, SeqCst);
        }
        HITS.fetch_add(1, SeqCst);
    }
    on(SIGUSR1, h as *const () as usize, SA_SIGINFO);
    for off in [0usize, 8, 16, 24, 32, 40, 48, 56, 5] {
        asm!("mov r12, rsp", "sub rsp, 4096", "sub rsp, {0}", "mov eax, 234", "syscall", "mov rsp, r12",
            in(reg) off, in("rdi") getpid(), in("rsi") gettid(), in("rdx") SIGUSR1,
            out("rax") _, out("rcx") _, out("r11") _, out("r12") _);
    }
    assert_eq!((HITS.load(SeqCst), BAD_ALIGN.load(SeqCst)), (9, 0));
}

/// The 128 bytes below the stack pointer survive calls and signals.
unsafe fn red_zone_survives() {
    on(SIGUSR1, clobber as *const () as usize, 0);
    let bad: u64;
    asm!(
        "mov r12, rsp", "and rsp, -16",
        "mov ecx, 16",
        "2:", "mov [rsp+rcx*8-136], rcx", "dec ecx", "jnz 2b",
        "mov eax, 234", "syscall",
        "mov eax, 39", "syscall",
        "xor eax, eax", "mov ecx, 16",
        "3:", "cmp [rsp+rcx*8-136], rcx", "je 4f", "inc eax", "4:", "dec ecx", "jnz 3b",
        "mov rsp, r12",
        in("rdi") getpid(), in("rsi") gettid(), in("rdx") SIGUSR1,
        out("rax") bad, out("rcx") _, out("r11") _, out("r12") _,
    );
    assert_eq!((bad, HITS.load(SeqCst)), (0, 1));
}

unsafe fn fresh_vector_state_in_handler() {
    static MXCSR: AtomicU32 = AtomicU32::new(0);
    extern "C" fn h(_: i32) {
        let mut v = 0u32;
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut v) };
        MXCSR.store(v, SeqCst);
    }
    on(SIGUSR1, h as *const () as usize, 0);
    let flush = 0x1f80u32 | 0x8000;
    asm!("ldmxcsr [{}]", in(reg) &raw const flush);
    ok(raise(SIGUSR1));
    let mut v = 0u32;
    asm!("stmxcsr [{}]", in(reg) &raw mut v);
    let normal = 0x1f80u32;
    asm!("ldmxcsr [{}]", in(reg) &raw const normal);
    assert_eq!(v & !0x3f, flush); // kept across the handler
    let _ = MXCSR.load(SeqCst);
}

extern "C" {
    fn __sigsetjmp(env: *mut u64, save: i32) -> i32;
    fn siglongjmp(env: *mut u64, val: i32) -> !;
}
static mut ENV: [u64; 64] = [0; 64];

unsafe fn jump_out_of_handler() {
    extern "C" fn h(_: i32) {
        unsafe { siglongjmp((&raw mut ENV).cast(), 7) }
    }
    on(SIGSEGV, h as *const () as usize, 0);
    static ROUNDS: AtomicU32 = AtomicU32::new(0);
    let r = __sigsetjmp((&raw mut ENV).cast(), 1);
    if r != 0 {
        assert_eq!(r, 7);
    }
    if ROUNDS.fetch_add(1, SeqCst) < 20 {
        BAD.cast::<u8>().write_volatile(1);
    }
    assert_eq!(ROUNDS.load(SeqCst), 21);
}

unsafe fn bad_stack_kills() {
    // Without room for the frame the process dies of SIGSEGV, with or without a handler.
    let pid = spawn(|| {
        ok(setrlimit(RLIMIT_CORE, &rlimit { rlim_cur: 0, rlim_max: 0 }));
        on(SIGUSR1, note_sp as *const () as usize, 0);
        on(SIGSEGV, note_sp as *const () as usize, 0);
        asm!("mov rsp, 64", "mov eax, 234", "syscall", "ud2",
            in("rdi") getpid(), in("rsi") gettid(), in("rdx") SIGUSR1, options(noreturn));
    });
    dies(pid, SIGSEGV);
}

unsafe fn bad_frame_kills() {
    let pid = spawn(|| {
        ok(setrlimit(RLIMIT_CORE, &rlimit { rlim_cur: 0, rlim_max: 0 }));
        asm!("mov rsp, 64", "mov eax, 15", "syscall", "ud2", options(noreturn));
    });
    dies(pid, SIGSEGV);
    // A garbage frame: any end is correct, as long as it is the program's own.
    for fill in [0u8, 0x41, 0xff] {
        let pid = spawn(|| {
            ok(setrlimit(RLIMIT_CORE, &rlimit { rlim_cur: 0, rlim_max: 0 }));
            let p = anon(4 * PAGE, RW);
            p.write_bytes(fill, 4 * PAGE);
            asm!("mov rsp, {}", "mov eax, 15", "syscall", "ud2", in(reg) p.add(PAGE), options(noreturn));
        });
        let st = reap(pid);
        assert!(WIFSIGNALED(st), "{st:#x}");
    }
}

unsafe fn timer_hits_loop() {
    on(SIGALRM, clobber as *const () as usize, 0);
    let iv = timeval { tv_sec: 0, tv_usec: 1000 };
    ok(setitimer(ITIMER_REAL, &itimerval { it_interval: iv, it_value: iv }, null_mut()));
    // Floating point and integer sums survive every interruption.
    let mut rounds = 0;
    while HITS.load(SeqCst) < 30 {
        let (mut f, mut n) = (0f64, 0u64);
        for i in 0..10_000u64 {
            f += std::hint::black_box(i as f64) * 0.5;
            n = n.wrapping_mul(31).wrapping_add(std::hint::black_box(i));
        }
        assert_eq!(f, 24_997_500.0);
        let want = (0..10_000u64).fold(0u64, |a, i| a.wrapping_mul(31).wrapping_add(i));
        assert_eq!(n, want);
        rounds += 1;
        assert!(rounds < 1_000_000);
    }
}

unsafe fn breakpoint_and_step() {
    static AT: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn h(_: i32, _: *mut siginfo_t, ctx: *mut c_void) {
        unsafe { AT.store((*ctx.cast::<ucontext_t>()).uc_mcontext.gregs[REG_RIP as usize] as usize, SeqCst) }
        HITS.fetch_add(1, SeqCst);
    }
    on(SIGTRAP, h as *const () as usize, SA_SIGINFO);
    let after: usize;
    asm!("int3", "2: lea {}, [rip + 2b]", out(reg) after);
    assert_eq!(AT.load(SeqCst), after); // after the instruction
                                        // With the trap flag, each following instruction raises a signal.
    asm!(
        "pushfq",
        "or qword ptr [rsp], 0x100",
        "popfq",
        "nop",
        "nop",
        "nop",
        "pushfq",
        "and qword ptr [rsp], -0x101",
        "popfq"
    );
    assert!(HITS.load(SeqCst) >= 4, "{}", HITS.load(SeqCst));
}

unsafe fn exit_in_handler() {
    extern "C" fn h(_: i32) {
        unsafe { _exit(31) }
    }
    let pid = spawn(|| {
        on(SIGALRM, h as *const () as usize, 0);
        ok(setitimer(
            ITIMER_REAL,
            &itimerval { it_interval: zeroed(), it_value: timeval { tv_sec: 0, tv_usec: 1000 } },
            null_mut(),
        ));
        loop {
            std::hint::spin_loop();
        }
    });
    exits(pid, 31);
}
