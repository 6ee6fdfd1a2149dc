//! Signals whose frame cannot be stored: the handler does not run, and the thread gets a `SIGSEGV` at its current
//! instruction.

use crate::t::*;
use libc::*;
use std::arch::asm;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

pub const CASES: &[crate::Case] = cases![
    stack_without_memory,
    alternate_stack_without_memory,
    file_that_became_shorter,
    without_a_handler_it_kills,
    its_own_frame_kills,
    waiting_call_ends,
    waiting_call_goes_on,
    mask_of_sigsuspend,
    result_without_memory,
    two_at_once,
    protected_meanwhile,
    too_small_alternate_stack,
    stack_grows_for_it,
    alternate_stack_in_context,
];

/// Counts of the other handlers' runs, and of the `SIGSEGV` handler's.
static HITS: AtomicU32 = AtomicU32::new(0);
static SEGVS: AtomicU32 = AtomicU32::new(0);
/// The siginfo of the last `SIGSEGV`.
static CODE: AtomicI32 = AtomicI32::new(0);
static SP: AtomicU64 = AtomicU64::new(0);
static AX: AtomicU64 = AtomicU64::new(0);
static MASK: AtomicU64 = AtomicU64::new(0);

extern "C" fn hit(_: i32) {
    HITS.fetch_add(1, SeqCst);
}

extern "C" fn segv(_: i32, i: *mut siginfo_t, ctx: *mut c_void) {
    unsafe {
        let c = ctx.cast::<ucontext_t>();
        CODE.store((*i).si_code, SeqCst);
        SP.store((*c).uc_mcontext.gregs[REG_RSP as usize] as u64, SeqCst);
        AX.store((*c).uc_mcontext.gregs[REG_RAX as usize] as u64, SeqCst);
        MASK.store((&raw const (*c).uc_sigmask).cast::<u64>().read(), SeqCst);
    }
    SEGVS.fetch_add(1, SeqCst);
}

/// Installs handlers for `SIGUSR1` and `SIGSEGV` with these flags.
unsafe fn handle(usr: i32, seg: i32) {
    on(SIGUSR1, hit as *const () as usize, usr);
    on(SIGSEGV, segv as *const () as usize, seg | SA_SIGINFO);
}

/// The counts since the last call.
fn runs() -> (u32, u32) {
    (HITS.swap(0, SeqCst), SEGVS.swap(0, SeqCst))
}

unsafe fn altstack(at: *mut u8, len: usize) {
    ok(sigaltstack(&stack_t { ss_sp: at.cast(), ss_flags: 0, ss_size: len }, null_mut()));
}

/// Sets a usable alternate stack.
unsafe fn good() {
    altstack(anon(16 * PAGE, RW), 16 * PAGE);
}

/// A file mapping with all pages beyond the end of the file.
unsafe fn behind_the_end(len: usize) -> *mut u8 {
    let fd = ok(memfd_create(c("short").as_ptr(), MFD_CLOEXEC));
    ok(ftruncate(fd, len as i64));
    let p = ok(mmap(null_mut(), len, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    p.write_bytes(1, len);
    ok(ftruncate(fd, 0));
    ok(close(fd));
    p
}

/// Makes a call with the stack pointer `sp`; returns its result.
unsafe fn call_at(sp: u64, nr: i64, a: [u64; 4]) -> i64 {
    let r: i64;
    asm!(
        "mov r12, rsp", "mov rsp, {sp}", "syscall", "mov rsp, r12",
        sp = in(reg) sp, inlateout("rax") nr => r, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3],
        out("rcx") _, out("r11") _, out("r12") _,
    );
    r
}

unsafe fn raise_at(sp: u64, sig: i32) -> i64 {
    call_at(sp, SYS_tgkill, [getpid() as u64, gettid() as u64, sig as u64, 0])
}

/// Stack pointers below which no frame can be stored.
unsafe fn bad_stacks() -> [u64; 9] {
    let top = |p: *mut u8| p.add(16 * PAGE) as u64;
    let gone = anon(16 * PAGE, RW);
    ok(munmap(gone.cast(), 16 * PAGE));
    [
        top(anon(16 * PAGE, PROT_READ)),
        top(anon(16 * PAGE, PROT_NONE)),
        top(gone),
        top(behind_the_end(16 * PAGE)),
        0,
        64,
        1 << 47,
        1 << 63,
        !0,
    ]
}

unsafe fn stack_without_memory() {
    good();
    handle(0, SA_ONSTACK);
    for sp in bad_stacks() {
        // Repeated, because the instruction may be patched meanwhile.
        for _ in 0..20 {
            is(raise_at(sp, SIGUSR1), 0);
            assert_eq!((runs(), CODE.load(SeqCst)), ((0, 1), SI_KERNEL), "{sp:#x}");
            assert_eq!((SP.load(SeqCst), AX.load(SeqCst), MASK.load(SeqCst)), (sp, 0, 0));
        }
    }
    let mut left: sigset_t = zeroed();
    ok(sigpending(&mut left));
    is(sigismember(&left, SIGUSR1), 0);
    ok(raise(SIGUSR1));
    assert_eq!(runs(), (1, 0));
}

unsafe fn alternate_stack_without_memory() {
    let gone = anon(16 * PAGE, RW);
    ok(munmap(gone.cast(), 16 * PAGE));
    for p in [anon(16 * PAGE, PROT_READ), anon(16 * PAGE, PROT_NONE), gone, (1u64 << 63) as *mut u8] {
        altstack(p, 16 * PAGE);
        handle(SA_ONSTACK, 0);
        ok(raise(SIGUSR1));
        assert_eq!((runs(), CODE.load(SeqCst)), ((0, 1), SI_KERNEL));
        // SIGSEGV's handler cannot use the bad alternate stack either.
        handle(SA_ONSTACK, SA_ONSTACK);
        dies(spawn_quiet(|| raise(SIGUSR1)), SIGSEGV);
        handle(0, 0);
        ok(raise(SIGUSR1));
        assert_eq!(runs(), (1, 0));
    }
}

unsafe fn file_that_became_shorter() {
    altstack(behind_the_end(16 * PAGE), 16 * PAGE);
    handle(SA_ONSTACK, 0);
    for _ in 0..20 {
        ok(raise(SIGUSR1));
        assert_eq!((runs(), CODE.load(SeqCst), MASK.load(SeqCst)), ((0, 1), SI_KERNEL, 0));
    }
    dies(
        spawn_quiet(|| {
            handle(SA_ONSTACK, SA_ONSTACK);
            raise(SIGUSR1)
        }),
        SIGSEGV,
    );
}

/// A child that leaves no core dump.
unsafe fn spawn_quiet(f: impl FnOnce() -> i32) -> pid_t {
    spawn(|| {
        ok(setrlimit(RLIMIT_CORE, &rlimit { rlim_cur: 0, rlim_max: 0 }));
        f()
    })
}

unsafe fn without_a_handler_it_kills() {
    good();
    for sp in bad_stacks() {
        dies(
            spawn_quiet(|| {
                handle(0, SA_ONSTACK);
                signal(SIGSEGV, SIG_DFL);
                raise_at(sp, SIGUSR1) as i32
            }),
            SIGSEGV,
        );
    }
    let sp = bad_stacks()[0];
    // Neither ignoring nor blocking SIGSEGV helps.
    dies(
        spawn_quiet(|| {
            handle(0, SA_ONSTACK);
            signal(SIGSEGV, SIG_IGN);
            raise_at(sp, SIGUSR1) as i32
        }),
        SIGSEGV,
    );
    dies(
        spawn_quiet(|| {
            handle(0, SA_ONSTACK);
            block(&[SIGSEGV]);
            raise_at(sp, SIGUSR1) as i32
        }),
        SIGSEGV,
    );
    // All threads end.
    dies(
        spawn_quiet(|| {
            on(SIGUSR1, hit as *const () as usize, 0);
            signal(SIGSEGV, SIG_DFL);
            std::thread::spawn(move || raise_at(sp, SIGUSR1));
            pause()
        }),
        SIGSEGV,
    );
    // The mask of SIGUSR1's action is not applied.
    handle(0, SA_ONSTACK);
    let mut a: sigaction = zeroed();
    a.sa_sigaction = hit as *const () as usize;
    a.sa_mask = set_of(&[SIGSEGV]);
    ok(sigaction(SIGUSR1, &a, null_mut()));
    is(raise_at(sp, SIGUSR1), 0);
    assert_eq!(runs(), (0, 1));
    // The signal has been taken: SA_RESETHAND has reset its action.
    handle(SA_RESETHAND, SA_ONSTACK);
    is(raise_at(sp, SIGUSR1), 0);
    assert_eq!(runs(), (0, 1));
    ok(sigaction(SIGUSR1, std::ptr::null(), &mut a));
    assert_eq!(a.sa_sigaction, SIG_DFL);
}

unsafe fn its_own_frame_kills() {
    for sp in bad_stacks() {
        for sig in [SIGUSR1, SIGSEGV] {
            dies(
                spawn_quiet(|| {
                    handle(0, 0);
                    raise_at(sp, sig) as i32
                }),
                SIGSEGV,
            );
        }
    }
}

/// Sends `SIGUSR1` once this process waits, and a byte or a wake after the `SIGSEGV` handler has run.
unsafe fn later(then: impl FnOnce()) -> pid_t {
    let (me, seen) = (getpid(), shared(PAGE).cast::<u32>());
    SEEN.store(seen as usize, SeqCst);
    spawn(|| {
        asleep(me);
        ok(kill(me, SIGUSR1));
        eventually("a SIGSEGV", || seen.read_volatile() == 1);
        then();
        0
    })
}

/// Shared with the process that sends the signal.
static SEEN: AtomicUsize = AtomicUsize::new(0);

extern "C" fn segv_seen(s: i32, i: *mut siginfo_t, ctx: *mut c_void) {
    segv(s, i, ctx);
    unsafe { (SEEN.load(SeqCst) as *mut u32).write_volatile(1) }
}

unsafe fn waiting_call_ends() {
    let (r, _w) = pipe_pair();
    let (word, mut byte) = (0u32, 0u8);
    let forever = timespec { tv_sec: 1000, tv_nsec: 0 };
    let at = |p: *const timespec| p as u64;
    let calls: [(i64, [u64; 4]); 5] = [
        (SYS_read, [r as u64, &raw mut byte as u64, 1, 0]),
        (SYS_pause, [0; 4]),
        (SYS_nanosleep, [at(&forever), 0, 0, 0]),
        (SYS_futex, [&raw const word as u64, FUTEX_WAIT as u64, 0, 0]),
        (SYS_futex, [&raw const word as u64, (FUTEX_WAIT | FUTEX_PRIVATE_FLAG) as u64, 0, at(&forever)]),
    ];
    good();
    handle(0, SA_ONSTACK);
    on(SIGSEGV, segv_seen as *const () as usize, SA_ONSTACK | SA_SIGINFO);
    let stacks = bad_stacks();
    for (nr, args) in calls {
        // A stack pointer that is known to be bad, and one where storing the frame faults.
        for sp in [stacks[0], stacks[3]] {
            let pid = later(|| ());
            assert_eq!(call_at(sp, nr, args), -EINTR as i64, "call {nr}");
            assert_eq!((runs(), SP.load(SeqCst), AX.load(SeqCst) as i64), ((0, 1), sp, -EINTR as i64), "call {nr}");
            exits(pid, 0);
        }
    }
}

unsafe fn waiting_call_goes_on() {
    // The action of SIGUSR1 decides whether the call is restarted, although its handler does not run.
    let (r, w) = pipe_pair();
    let mut byte = 0u8;
    good();
    handle(SA_RESTART, SA_ONSTACK);
    on(SIGSEGV, segv_seen as *const () as usize, SA_ONSTACK | SA_SIGINFO);
    let stacks = bad_stacks();
    for sp in [stacks[0], stacks[3]] {
        let pid = later(|| put(w, b"x"));
        is(call_at(sp, SYS_read, [r as u64, &raw mut byte as u64, 1, 0]), 1);
        assert_eq!((runs(), SP.load(SeqCst), AX.load(SeqCst)), ((0, 1), sp, SYS_read as u64));
        exits(pid, 0);
    }
}

unsafe fn mask_of_sigsuspend() {
    good();
    handle(0, SA_ONSTACK);
    block(&[SIGUSR1, SIGSEGV, SIGUSR2]);
    let none = 0u64;
    let stacks = bad_stacks();
    for sp in [stacks[0], stacks[3]] {
        // SIGSEGV is not blocked during the call, so its handler runs; then the old mask is restored.
        ok(raise(SIGUSR1));
        is(call_at(sp, SYS_rt_sigsuspend, [&raw const none as u64, 8, 0, 0]), -EINTR as i64);
        let bit = |s: i32| 1u64 << (s - 1);
        let all = bit(SIGUSR1) | bit(SIGSEGV) | bit(SIGUSR2);
        assert_eq!((runs(), MASK.load(SeqCst)), ((0, 1), all));
        let mut now = 0u64;
        is(syscall(SYS_rt_sigprocmask, SIG_BLOCK, 0, &mut now, 8), 0);
        assert_eq!(now, all);
    }
}

unsafe fn result_without_memory() {
    // The call whose result cannot be stored unblocks the signal.
    static AX: AtomicU64 = AtomicU64::new(0);
    extern "C" fn h(_: i32, _: *mut siginfo_t, ctx: *mut c_void) {
        unsafe { AX.store((*ctx.cast::<ucontext_t>()).uc_mcontext.gregs[REG_RAX as usize] as u64, SeqCst) }
        HITS.fetch_add(1, SeqCst);
    }
    handle(0, 0);
    on(SIGUSR1, h as *const () as usize, SA_SIGINFO);
    let none = 0u64;
    for bad in [BAD as u64, behind_the_end(PAGE) as u64] {
        block(&[SIGUSR1]);
        ok(raise(SIGUSR1));
        fails(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, bad, 8), EFAULT);
        assert_eq!((runs(), AX.load(SeqCst) as i64), ((1, 0), -EFAULT as i64));
    }
    // The frame cannot be stored either.
    good();
    handle(0, SA_ONSTACK);
    for sp in bad_stacks() {
        block(&[SIGUSR1]);
        ok(raise(SIGUSR1));
        let r = call_at(sp, SYS_rt_sigprocmask, [SIG_SETMASK as u64, &raw const none as u64, BAD as u64, 8]);
        assert_eq!((r, runs(), self::AX.load(SeqCst) as i64), (-EFAULT as i64, (0, 1), -EFAULT as i64));
    }
}

unsafe fn two_at_once() {
    static OTHER: AtomicU32 = AtomicU32::new(0);
    extern "C" fn other(_: i32) {
        OTHER.fetch_add(1, SeqCst);
    }
    // One goes to a bad alternate stack, the other to the ordinary one.
    for p in [anon(16 * PAGE, PROT_READ), behind_the_end(16 * PAGE)] {
        altstack(p, 16 * PAGE);
        for (bad, fine) in [(SIGUSR1, SIGUSR2), (SIGUSR2, SIGUSR1)] {
            handle(0, 0);
            on(bad, hit as *const () as usize, SA_ONSTACK);
            on(fine, other as *const () as usize, 0);
            block(&[SIGUSR1, SIGUSR2]);
            ok(raise(SIGUSR1));
            ok(raise(SIGUSR2));
            ok(sigprocmask(SIG_SETMASK, &set_of(&[]), null_mut()));
            assert_eq!((runs(), OTHER.swap(0, SeqCst)), ((0, 1), 1));
        }
    }
}

// Like `hit`, without writing to its stack, which may be read-only.
core::arch::global_asm!(
    ".text", ".globl frame_fault_hit", "frame_fault_hit:", "lock inc dword ptr [rip + {hits}]", "ret",
    hits = sym HITS
);
extern "C" {
    fn frame_fault_hit();
}

/// Another thread protects and unprotects the alternate stack all the time.
unsafe fn protected_meanwhile() {
    let p = anon(16 * PAGE, RW);
    altstack(p, 16 * PAGE);
    handle(SA_ONSTACK, 0);
    let (end, at) = (AtomicU32::new(0), p as usize);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut prot = PROT_READ;
            while end.load(SeqCst) == 0 {
                // A frame that is stored already is accessed again: only this thread may fault.
                ok(mprotect(at as *mut c_void, 16 * PAGE, prot));
                prot ^= PROT_WRITE;
            }
        });
        on(SIGUSR1, frame_fault_hit as *const () as usize, SA_ONSTACK);
        let (mut ran, mut not) = (0, 0);
        for _ in 0..2000 {
            is(syscall(SYS_tgkill, getpid(), gettid(), SIGUSR1), 0);
            let (h, s) = runs();
            assert!(h + s >= 1);
            ran += h;
            not += s;
        }
        assert!(ran + not >= 2000);
        end.store(1, SeqCst);
    });
}

unsafe fn too_small_alternate_stack() {
    // The processor's state needs more than the minimum stack size.
    if getauxval(AT_MINSIGSTKSZ) <= 2048 {
        return;
    }
    let p = anon(16 * PAGE, RW).add(8 * PAGE);
    altstack(p, 2048);
    handle(SA_ONSTACK, 0);
    ok(raise(SIGUSR1));
    assert_eq!((runs(), CODE.load(SeqCst)), ((0, 1), SI_KERNEL));
    let below = std::slice::from_raw_parts(p.sub(8 * PAGE), 8 * PAGE);
    assert!(below.iter().all(|b| *b == 0));
}

unsafe fn stack_grows_for_it() {
    // A stack of one page with nothing below it.
    let room = anon(1024 * PAGE, PROT_NONE);
    ok(munmap(room.cast(), 1024 * PAGE));
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED;
    let p = ok(mmap(room.add(1023 * PAGE).cast(), PAGE, RW, flags, -1, 0)).cast::<u8>();
    good();
    handle(0, SA_ONSTACK);
    is(raise_at(p.add(256) as u64, SIGUSR1), 0);
    assert_eq!(runs(), (1, 0));
    // The same for a stack with a mapping below it.
    extern "C" fn far(_: i32) {
        let pad = std::hint::black_box([0u8; 32 * PAGE]);
        HITS.fetch_add(1 + u32::from(pad[7]), SeqCst);
    }
    on(SIGUSR1, far as *const () as usize, 0);
    is(raise_at(p.add(256) as u64, SIGUSR1), 0);
    assert_eq!(runs(), (1, 0));
}

/// The alternate stack in the frame's context is the one set by sigaltstack(2), wherever the thread ran.
unsafe fn alternate_stack_in_context() {
    static FLAGS: AtomicI32 = AtomicI32::new(0);
    static AT: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn h(s: i32, _: *mut siginfo_t, ctx: *mut c_void) {
        unsafe {
            let st = (*ctx.cast::<ucontext_t>()).uc_stack;
            FLAGS.store(st.ss_flags, SeqCst);
            AT.store(st.ss_sp as usize, SeqCst);
            if s == SIGUSR1 {
                ok(raise(SIGUSR2));
            }
        }
        HITS.fetch_add(1, SeqCst);
    }
    let p = anon(16 * PAGE, RW);
    on(SIGUSR1, h as *const () as usize, SA_ONSTACK | SA_SIGINFO);
    on(SIGUSR2, h as *const () as usize, SA_ONSTACK | SA_SIGINFO);
    const AUTODISARM: i32 = 1 << 31;
    for flags in [0, AUTODISARM] {
        ok(sigaltstack(&stack_t { ss_sp: p.cast(), ss_flags: flags, ss_size: 16 * PAGE }, null_mut()));
        let told = || (FLAGS.load(SeqCst), AT.load(SeqCst));
        ok(raise(SIGUSR2));
        assert_eq!(told(), (flags, p as usize));
        // From within a handler that runs on it.
        ok(raise(SIGUSR1));
        assert_eq!(told(), if flags == 0 { (0, p as usize) } else { (SS_DISABLE, 0) });
    }
}
