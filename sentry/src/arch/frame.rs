//! `struct rt_sigframe` of x86-64: entering a signal handler and returning from it (sigreturn(2)).

use crate::kernel::signal::{AltStack, SigInfo, SigSet};
use platform::{Fault, Regs};

/// Bytes of `struct ucontext` as the kernel writes it (with a 64-bit signal mask).
const UCONTEXT: usize = 304;
/// `pretcode` + `ucontext` + `siginfo`.
const FRAME: usize = 8 + UCONTEXT + 128;
const SIGCONTEXT: usize = 8 + 8 + 24;

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;

/// Flags that a guest may set by sigreturn: AC OF DF TF SF ZF AF PF CF RF.
const EFLAGS_USER: u64 = 0x50dd5;
/// DF, RF and TF are clear when a handler starts.
const EFLAGS_CLEAR: u64 = 0x400 | 0x10000 | 0x100;

/// A frame ready to be stored.
pub struct Frame {
    pub addr: u64,
    pub bytes: Vec<u8>,
    /// Address of the floating-point state (64-byte aligned), above the frame.
    pub fp_addr: u64,
    /// Registers at the handler's first instruction.
    pub regs: Regs,
}

/// Contents of a frame.
pub struct Delivery<'a> {
    pub info: &'a SigInfo,
    pub handler: u64,
    pub restorer: u64,
    /// Mask that sigreturn restores.
    pub mask: SigSet,
    pub alt: AltStack,
    /// The frame is built below this address (the alternate stack's top, or the guest's stack pointer minus
    /// the red zone).
    pub stack: u64,
    pub fault: Option<Fault>,
    pub fp_size: usize,
}

/// Builds the frame for a handler; sigreturn restores `regs`. `None`: the stack pointer leaves no room.
pub fn build(regs: &Regs, d: &Delivery<'_>) -> Option<Frame> {
    let fp_addr = d.stack.checked_sub(d.fp_size as u64)? & !63;
    let addr = (fp_addr.checked_sub(FRAME as u64)? & !15).checked_sub(8)?;
    let mut b = vec![0u8; FRAME];
    let mut put = |at: usize, v: u64| b[at..at + 8].copy_from_slice(&v.to_le_bytes());
    put(0, d.restorer);
    let uc = 8;
    put(uc, UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS);
    put(uc + 16, d.alt.sp);
    put(uc + 24, d.alt.flags as u32 as u64);
    put(uc + 32, d.alt.size);
    let sc = uc + SIGCONTEXT;
    let r = regs;
    let list = [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx, r.rsp,
        r.rip, r.eflags,
    ];
    for (i, v) in list.iter().enumerate() {
        put(sc + i * 8, *v);
    }
    // cs, gs, fs, ss
    put(sc + 144, 0x33 | (0x2b << 48));
    let f = d.fault.unwrap_or_default();
    put(sc + 152, f.error);
    put(sc + 160, f.trapno);
    put(sc + 168, d.mask.0);
    put(sc + 176, if f.signal == libc::SIGSEGV || f.signal == libc::SIGBUS { f.addr } else { 0 });
    put(sc + 184, fp_addr);
    put(uc + 296, d.mask.0);
    b[8 + UCONTEXT..].copy_from_slice(&d.info.to_bytes());
    let regs = Regs {
        rdi: d.info.signo as u64,
        rsi: addr + 8 + UCONTEXT as u64,
        rdx: addr + 8,
        rax: 0,
        rip: d.handler,
        rsp: addr,
        eflags: regs.eflags & !EFLAGS_CLEAR,
        orig_rax: u64::MAX,
        ..*regs
    };
    Some(Frame { addr, bytes: b, fp_addr, regs })
}

/// State read from a frame by sigreturn.
pub struct Restored {
    pub regs: Regs,
    pub mask: SigSet,
    pub alt: AltStack,
    pub fp_addr: u64,
}

/// Bytes that [`restore`] needs, from the stack pointer of the `rt_sigreturn` call.
pub const RESTORE_SIZE: usize = UCONTEXT;

/// Decodes a `ucontext`. `old` supplies the bits that a guest may not change.
pub fn restore(b: &[u8; RESTORE_SIZE], old: &Regs) -> Restored {
    let get = |at: usize| {
        let mut v = [0u8; 8];
        v.copy_from_slice(&b[at..at + 8]);
        u64::from_le_bytes(v)
    };
    let sc = SIGCONTEXT;
    let g = |i: usize| get(sc + i * 8);
    let regs = Regs {
        r8: g(0),
        r9: g(1),
        r10: g(2),
        r11: g(3),
        r12: g(4),
        r13: g(5),
        r14: g(6),
        r15: g(7),
        rdi: g(8),
        rsi: g(9),
        rbp: g(10),
        rbx: g(11),
        rdx: g(12),
        rax: g(13),
        rcx: g(14),
        rsp: g(15),
        rip: g(16),
        eflags: (old.eflags & !EFLAGS_USER) | (g(17) & EFLAGS_USER),
        orig_rax: u64::MAX,
    };
    Restored {
        regs,
        mask: SigSet(get(296)),
        alt: AltStack { sp: get(16), flags: get(24) as u32 as i32, size: get(32) },
        fp_addr: get(sc + 184),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_round_trips() {
        let regs = Regs { r8: 1, r15: 2, rax: 3, rip: 0x4000, rsp: 0x7000_0000, eflags: 0x246, ..Regs::default() };
        let info = SigInfo::user(10, 5, 6);
        let f = build(
            &regs,
            &Delivery {
                info: &info,
                handler: 0x1234,
                restorer: 0x5678,
                mask: SigSet(7),
                alt: AltStack { sp: 9, size: 10, flags: 2 },
                stack: 0x7000_0000 - 128,
                fault: None,
                fp_size: 2696,
            },
        )
        .unwrap();
        assert_eq!(f.regs.rsp % 16, 8);
        assert_eq!(f.fp_addr % 64, 0);
        let mut b = [0u8; RESTORE_SIZE];
        b.copy_from_slice(&f.bytes[8..8 + RESTORE_SIZE]);
        let r = restore(&b, &regs);
        assert_eq!(r.mask, SigSet(7));
        assert_eq!(r.alt, AltStack { sp: 9, size: 10, flags: 2 });
        assert_eq!(Regs { orig_rax: 0, ..r.regs }, Regs { orig_rax: 0, ..regs });
    }
}
