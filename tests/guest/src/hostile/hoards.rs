//! Attempts to make the Sentry accumulate state without bound; `tests/shortage.rs` watches its memory meanwhile.

use super::raw::*;
use super::*;
use std::sync::atomic::AtomicUsize;

/// Sends SIGKILL again and again to a process that blocks the Sentry's interrupts and shares its memory with a live
/// one.
pub unsafe fn insistent() {
    const KILLS: usize = 200_000;
    static KEPT_OUT: AtomicU64 = AtomicU64::new(0);
    extern "C" fn deaf(gate: *mut c_void) -> i32 {
        unsafe {
            let gate = *gate.cast::<Gate>();
            let all = u64::MAX;
            gate.call(SYS_rt_sigprocmask, [0, &raw const all as u64, 0, 8, 0, 0]);
            KEPT_OUT.store(1, SeqCst);
            asleep(gate)
        }
    }
    raw::arm();
    let gate = Gate::new();
    let maker = spawn(|| {
        let top = anon(16 * PAGE, RW).add(16 * PAGE).cast();
        let pid = ok(clone(deaf, top, CLONE_VM | SIGCHLD, (&raw const gate).cast_mut().cast()));
        while KEPT_OUT.load(SeqCst) == 0 {
            usleep(1000);
        }
        for _ in 0..KILLS {
            ok(kill(pid, SIGKILL));
        }
        0
    });
    reap(maker);
}

/// Waits in the host for ever, unknown to the Sentry.
unsafe fn asleep(gate: Gate) -> ! {
    let word = 0u32;
    loop {
        gate.call(SYS_futex, [&raw const word as u64, 128, 0, 0, 0, 0]);
    }
}

/// Threads for which many reads are posted, and which never take the answers.
pub unsafe fn untaken() {
    const THREADS: usize = 400;
    const MUCH: usize = 64 << 10;
    /// Offsets in a cell (`platform/stub/abi.rs`).
    const POST: u64 = 128;
    const REGS: u64 = POST + 8;
    const PRE_LEN: u64 = 312;
    const ANSWERED: u32 = 4;
    static CELLS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
    static UP: AtomicUsize = AtomicUsize::new(0);
    raw::arm();
    let gate = Gate::new();
    let pid = spawn(|| {
        for cell in &CELLS {
            let thread = move || {
                let gs: u64;
                std::arch::asm!("rdgsbase {}", out(reg) gs);
                cell.store(gs, SeqCst);
                UP.fetch_add(1, SeqCst);
                asleep(gate)
            };
            drop(std::thread::Builder::new().stack_size(1 << 16).spawn(thread).unwrap());
        }
        eventually("all threads", || UP.load(SeqCst) == THREADS);
        usleep(200_000);
        let zeros = ok(open(c"/dev/zero".as_ptr(), O_RDONLY));
        let buffer = anon(MUCH, RW) as u64;
        let word = |at: u64, value: u64| (at as *mut u64).write_volatile(value);
        for cell in &CELLS {
            let cell = cell.load(SeqCst);
            // r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags, orig_rax.
            let mut regs = [0u64; 19];
            (regs[8], regs[9], regs[12]) = (zeros as u64, buffer, MUCH as u64);
            (regs[15], regs[16], regs[18]) = (buffer, buffer, SYS_read as u64);
            regs.iter().enumerate().for_each(|(i, r)| word(cell + REGS + 8 * i as u64, *r));
            word(cell + PRE_LEN, 0);
            ((cell + POST) as *mut u32).write_volatile(1);
            (*(cell as *const std::sync::atomic::AtomicU32)).swap(1, SeqCst);
            let ring = 1u64;
            gate.call(SYS_write, [0, &raw const ring as u64, 8, 0, 0, 0]);
        }
        let answered = |cell: &&AtomicU64| (cell.load(SeqCst) as *const u32).read_volatile() == ANSWERED;
        eventually("answers", || CELLS.iter().filter(answered).count() == THREADS);
        usleep(300_000);
        0
    });
    exits(pid, 0);
}
