//! Forged signal frames, for the guest's `rt_sigreturn` and for the host's.

use super::raw::*;
use super::*;

extern "C" fn nothing_much(_: i32, _: *mut siginfo_t, uc: *mut c_void) {
    unsafe {
        let uc: *const ucontext_t = uc.cast();
        std::ptr::copy_nonoverlapping(uc.cast::<u8>(), (*TAKEN).as_mut_ptr(), FRAME);
        *TAKEN_FP = (*uc).uc_mcontext.fpregs as u64;
        std::ptr::copy_nonoverlapping((*TAKEN_FP) as *const u8, (*TAKEN_FPSTATE).as_mut_ptr(), FPSTATE);
    }
}
/// The kernel's `struct ucontext` on x86-64: flags, link, stack, registers, mask.
const FRAME: usize = 304;
const FPSTATE: usize = 4096;
static mut TAKEN_BYTES: [u8; FRAME] = [0; FRAME];
static mut FP_BYTES: [u8; FPSTATE] = [0; FPSTATE];
static mut FP_AT: u64 = 0;
const TAKEN: *mut [u8; FRAME] = &raw mut TAKEN_BYTES;
const TAKEN_FPSTATE: *mut [u8; FPSTATE] = &raw mut FP_BYTES;
const TAKEN_FP: *mut u64 = &raw mut FP_AT;

/// Offsets in the kernel's context.
const STACK_SP: usize = 16;
const GREGS: usize = 40;
const RSP: usize = GREGS + 15 * 8;
const RIP: usize = GREGS + 16 * 8;
const EFL: usize = GREGS + 17 * 8;
const CSGSFS: usize = GREGS + 18 * 8;
const FPREGS: usize = GREGS + 23 * 8;
const MASK: usize = 296;

const ADDRESSES: [u64; 12] = [
    0,
    1,
    0x10,
    TEXT,
    AREA,
    ALT,
    0x7fff_ffff_f000,
    0x8000_0000_0000,
    0xffff_8000_0000_0000,
    0xffff_ffff_8000_0000,
    0xffff_ffff_ff60_0000,
    u64::MAX,
];

/// The forgeries: (offset, value).
fn changes() -> Vec<(usize, u64)> {
    let mut all = Vec::new();
    for a in ADDRESSES {
        all.extend([(RIP, a), (RSP, a), (FPREGS, a), (STACK_SP, a)]);
    }
    for cs in [0u64, 3, 8, 0x10, 0x1b, 0x23, 0x2b, 0x33, 0x30, 0x43, 0xffff] {
        all.push((CSGSFS, cs | 0x2b << 48));
        all.push((CSGSFS, 0x33 | cs << 48));
        all.push((CSGSFS, 0x33 | cs << 16 | cs << 32 | 0x2b << 48));
    }
    // Flags: trap, interrupt, direction, I/O privilege, nested task, resume, virtual-8086, alignment, identification.
    for bit in [8, 9, 10, 12, 13, 14, 16, 17, 18, 19, 20, 21, 32, 63] {
        all.push((EFL, 0x246 ^ 1 << bit));
    }
    all.extend([(EFL, 0), (EFL, u64::MAX), (MASK, u64::MAX), (0, u64::MAX), (0, 0), (8, u64::MAX)]);
    // The vector state: (offset from FRAME) control words, the header's magic and size, features, compaction.
    for (at, v) in [
        (24, u64::MAX),
        (464, u64::MAX),
        (464, 0),
        (472, u64::MAX),
        (464 + 4, 0xffff_ffff),
        (480, u64::MAX),
        (512, u64::MAX),
        (512, 0),
        (520, 1 << 63),
        (528, u64::MAX),
        (0, u64::MAX),
    ] {
        all.push((FRAME + at, v));
    }
    all
}

/// Takes a valid frame, changes it and returns through it by `how`.
unsafe fn forge(change: (usize, u64), how: u64) {
    on(SIGUSR2, nothing_much as *const () as usize, SA_SIGINFO);
    raise(SIGUSR2);
    let frame = anon(4 * PAGE, RW);
    std::ptr::copy_nonoverlapping((*TAKEN).as_ptr(), frame, FRAME);
    let fp = frame.add(PAGE);
    std::ptr::copy_nonoverlapping((*TAKEN_FPSTATE).as_ptr(), fp, FPSTATE);
    let word = |at: usize| frame.add(at).cast::<u64>();
    *word(FPREGS) = fp as u64;
    // Back by a `ret` into the landing, like after any jump.
    let ret: [u8; 1] = [0xc3];
    let code = ok(mmap(std::ptr::null_mut(), PAGE, RW | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)).cast::<u8>();
    *code = ret[0];
    *word(RIP) = code as u64;
    let stack = frame.add(3 * PAGE).cast::<u64>();
    *stack = landing();
    *word(RSP) = stack as u64;
    if how != 0 {
        // The host restores the signal stack too: with any other than the stub's, this process gets no answers any
        // more.
        for (i, v) in [ALT, 0, ALT_SIZE].iter().enumerate() {
            *word(STACK_SP + 8 * i) = *v;
        }
    }
    let (at, value) = change;
    if at < FRAME {
        *word(at) = value;
    } else {
        fp.add(at - FRAME).cast::<u64>().write_unaligned(value);
    }
    // mov rsp, rdi; jmp rsi: the frame is the stack, at a `syscall` with number 15
    let go: [u8; 5] = [0x48, 0x89, 0xfc, 0xff, 0xe6];
    std::ptr::copy_nonoverlapping(go.as_ptr(), code.add(64), go.len());
    let own: [u8; 3] = [0x0f, 0x05, 0xf4];
    std::ptr::copy_nonoverlapping(own.as_ptr(), code.add(128), own.len());
    let to = if how == 0 { code as u64 + 128 } else { how };
    jump(code as u64 + 64, [15, frame as u64, to, 0, 0, 0, 0]);
    // Whatever its state is now, it is an ordinary process that makes calls.
    syscall(SYS_getppid);
    let mut vectors = [0u8; 64];
    std::arch::asm!("movups [{}], xmm0", in(reg) vectors.as_mut_ptr());
    std::hint::black_box(vectors);
    munmap(frame.cast(), 4 * PAGE);
}

pub unsafe fn frames() {
    raw::arm();
    let all = changes();
    let host = find(&[0x0f, 0x05, 0xc3])[0];
    // By the guest's own call, and by the stub's instruction, for which the host takes the frame.
    survive(2 * all.len(), |i| {
        forge(all[i / 2], if i % 2 == 0 { 0 } else { host });
    });
    // An invalid stack pointer.
    survive(ADDRESSES.len() * 2, |i| {
        let own = [0x0fu8, 0x05, 0xf4];
        let code =
            ok(mmap(std::ptr::null_mut(), PAGE, RW | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)).cast::<u8>();
        std::ptr::copy_nonoverlapping(own.as_ptr(), code, 3);
        let go: [u8; 5] = [0x48, 0x89, 0xfc, 0xff, 0xe6];
        std::ptr::copy_nonoverlapping(go.as_ptr(), code.add(64), go.len());
        let to = if i % 2 == 0 { code as u64 } else { host };
        jump(code as u64 + 64, [15, ADDRESSES[i / 2], to, 0, 0, 0, 0]);
    });
    // Signals that arrive while the stack pointer is invalid, or in the stub's memory.
    survive(ADDRESSES.len(), |i| {
        on(SIGUSR2, nothing_much as *const () as usize, SA_SIGINFO);
        let code =
            ok(mmap(std::ptr::null_mut(), PAGE, RW | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)).cast::<u8>();
        // mov rsp, r8; syscall (kill); hlt
        let bytes: [u8; 6] = [0x4c, 0x89, 0xc4, 0x0f, 0x05, 0xf4];
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), code, bytes.len());
        jump(code as u64, [SYS_kill as u64, getpid() as u64, SIGUSR2 as u64, 0, 0, ADDRESSES[i], 0]);
    });
}
