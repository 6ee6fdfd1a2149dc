//! Floating point and vector state: in the kernel's signal frame, or in the registers if there is no frame.

use crate::abi::{ALT_SIZE, R_RIP};
use crate::asm::stub_copy;
use crate::{UContext, EFAULT};
use core::ptr::{addr_of, addr_of_mut};

core::arch::global_asm!(
    r#"
    // xsave(to rdi, components rsi) -> 0, or 1 after a fault
    .globl stub_xsave
    .globl stub_xsave_insn
    .globl stub_xsave_fix
stub_xsave:
    mov rax, rsi
    mov rdx, rsi
    shr rdx, 32
stub_xsave_insn:
    xsave64 [rdi]
    xor eax, eax
    ret
stub_xsave_fix:
    mov eax, 1
    ret

    // xrstor(from rdi, components rsi)
    .globl stub_xrstor
stub_xrstor:
    mov rax, rsi
    mov rdx, rsi
    shr rdx, 32
    xrstor64 [rdi]
    ret
    "#
);

extern "C" {
    fn stub_xsave(to: u64, components: u64) -> u64;
    fn stub_xsave_insn();
    fn stub_xsave_fix();
    fn stub_xrstor(from: u64, components: u64);
}

/// The kernel's description of the state in each of its frames (`struct _fpx_sw_bytes`), copied from the first one by
/// the zygote. All zero if the kernel provides none.
static mut SW: [u64; 6] = [0; 6];

/// The initial state: no component present, except for the two control words that are loaded anyway.
#[repr(C, align(64))]
struct Initial([u32; 144]);
static INITIAL: Initial = {
    let mut words = [0; 144];
    words[0] = 0x37f;
    words[6] = 0x1f80;
    Initial(words)
};

/// Rights of protection keys, which stay unchanged.
const PKRU: u64 = 1 << 9;
/// x87 and SSE: always marked as present, so that changes made by a signal handler take effect.
const FPSSE: u64 = 3;

/// Saves the kernel's description from a frame.
pub unsafe fn learn(uc: *mut UContext) {
    // SAFETY: the frame is this thread's own, and no other thread exists.
    unsafe {
        let fp = (*uc).fpstate;
        if *((fp + FP_SW) as *const u32) == FP_MAGIC1 {
            stub_copy(addr_of_mut!(SW) as u64, fp + FP_SW, 48);
        }
    }
}

/// Whether [`save_live`] can be used, that is, whether [`learn`] found a description.
pub fn learned() -> bool {
    // SAFETY: written once, by the zygote while it had a single thread; only read since.
    unsafe { addr_of!(SW[0]).read() != 0 }
}

/// Stores the live state in the format of the kernel's frames, and resets the live state.
pub unsafe fn save_live(to: u64) -> Result<(), i32> {
    let zero = [0u64; 14];
    // SAFETY: guest memory is accessed only by `stub_copy` and by the instruction at `stub_xsave_insn`, whose faults
    // `fixup` handles. `SW` is not written any more.
    unsafe {
        let sw = addr_of!(SW).read();
        let (components, size) = (sw[1], sw[2] as u32 as u64);
        // The software-reserved bytes and the header: of the header the instruction writes only the first word.
        let failed = stub_copy(to + FP_SW, addr_of!(zero) as u64, 112) | stub_xsave(to, components);
        let mut present = 0u64;
        if failed | stub_copy(addr_of_mut!(present) as u64, to + FP_LEGACY, 8) != 0 {
            return Err(EFAULT);
        }
        let present = addr_of!(present).read_volatile() | FPSSE;
        let failed = stub_copy(to + FP_LEGACY, addr_of!(present) as u64, 8)
            | stub_copy(to + FP_SW, addr_of!(SW) as u64, 48)
            | stub_copy(to + size, addr_of!(FP_MAGIC2) as u64, 4);
        if failed != 0 {
            return Err(EFAULT);
        }
        stub_xrstor(addr_of!(INITIAL) as u64, components & !PKRU);
        Ok(())
    }
}

/// Handles a fault of the storing instruction: the store fails.
pub unsafe fn fixup(uc: *mut UContext) -> bool {
    // SAFETY: `uc` is this thread's own.
    unsafe {
        let hit = (*uc).gregs[R_RIP] == stub_xsave_insn as *const () as u64;
        if hit {
            (*uc).gregs[R_RIP] = stub_xsave_fix as *const () as u64;
        }
        hit
    }
}

const FP_LEGACY: u64 = 512;
const FP_SW: u64 = 464;
const FP_MAGIC1: u32 = 0x4650_5853;
static FP_MAGIC2: u32 = 0x4650_5845;
const XSTATE_HEADER: u64 = 64;

/// Size of the frame's floating point state, with all its parts.
pub unsafe fn fp_size(fp: u64) -> u64 {
    // SAFETY: `fp` is the kernel's `fpstate` pointer; the kernel stores at least the legacy area there.
    unsafe {
        if *((fp + FP_SW) as *const u32) != FP_MAGIC1 {
            return FP_LEGACY;
        }
        (*((fp + FP_SW + 4) as *const u32) as u64).clamp(FP_LEGACY, ALT_SIZE / 4)
    }
}

/// Resets the state that will be loaded from the frame.
unsafe fn fp_reset(fp: u64) {
    // SAFETY: `fp` is the kernel's `fpstate` pointer; all offsets are below `FP_LEGACY`, or the size that the kernel
    // gave covers the header.
    unsafe {
        let size = fp_size(fp);
        let mut at = 0;
        while at < 416 {
            *((fp + at) as *mut u64) = 0;
            at += 8;
        }
        *(fp as *mut u16) = 0x37f;
        *((fp + 24) as *mut u32) = 0x1f80;
        if size >= FP_LEGACY + XSTATE_HEADER {
            *((fp + FP_LEGACY) as *mut u64) = 0;
        }
    }
}

/// Resets the live state.
pub fn fp_init() {
    // SAFETY: loads from a static, aligned for it; the guest's vector registers are meant to be overwritten, and the
    // stub uses none.
    unsafe { stub_xrstor(addr_of!(INITIAL) as u64, !PKRU) };
}

pub unsafe fn fp_save(uc: *mut UContext, to: u64) -> Result<(), i32> {
    // SAFETY: the frame belongs to this thread; guest memory is accessed only by `stub_copy`.
    unsafe {
        let fp = (*uc).fpstate;
        if stub_copy(to, fp, fp_size(fp)) != 0 {
            return Err(EFAULT);
        }
        fp_reset(fp);
        Ok(())
    }
}

/// Loads state from guest memory. The kernel's own marks in the frame stay. The guest chooses the legacy area, the
/// set of components (among those of this host), and their contents.
pub unsafe fn fp_restore(uc: *mut UContext, from: u64) -> Result<(), i32> {
    // SAFETY: the frame belongs to this thread, and its size is the kernel's; guest memory is accessed only by
    // `stub_copy`.
    unsafe {
        let fp = (*uc).fpstate;
        if from == 0 {
            fp_reset(fp);
            return Ok(());
        }
        let size = fp_size(fp);
        if stub_copy(fp, from, FP_SW) != 0 {
            fp_reset(fp);
            return Err(EFAULT);
        }
        let mxcsr = (fp + 24) as *mut u32;
        *mxcsr &= 0xffff;
        if size < FP_LEGACY + XSTATE_HEADER + 4 {
            return Ok(());
        }
        let header = (fp + FP_LEGACY) as *mut u64;
        let mut sw = [0u32; 4];
        let short = stub_copy(addr_of_mut!(sw) as u64, from + FP_SW, 16);
        let mut guest_header = [0u64; 1];
        if short != 0 || sw[0] != FP_MAGIC1 || stub_copy(addr_of_mut!(guest_header) as u64, from + FP_LEGACY, 8) != 0 {
            // Only x87 and SSE.
            *header = 3;
            return Ok(());
        }
        let have = *((fp + FP_SW + 8) as *const u64);
        let rest = size - FP_LEGACY - XSTATE_HEADER - 4;
        if stub_copy(fp + FP_LEGACY + XSTATE_HEADER, from + FP_LEGACY + XSTATE_HEADER, rest) != 0 {
            fp_reset(fp);
            return Err(EFAULT);
        }
        *header = guest_header[0] & have;
        Ok(())
    }
}
