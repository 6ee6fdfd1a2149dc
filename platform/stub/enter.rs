//! The path of a patched call: from the slot of its site (see `TRAMPOLINE_SLOT`) into the stub and back, without a
//! signal.
//!
//! GS points to the thread's cell, so no register is needed to find it. The guest's registers go straight into
//! `Cell::post.regs`, their only place until the call is over. The code then runs on the slot's signal stack: the
//! guest's stack may be unusable, and has a red zone. No vector register is used; they keep the guest's values. An
//! answer that needs a signal frame (to load vector registers, or to change GS) goes through [`make_frame`].
//!
//! # Interrupts
//! Unlike in a signal handler, our interrupt is not blocked here. Its handler determines how far the call has got:
//!
//! ```text
//!   slot, prefix    stub_enter … tail          stub_call … stub_leave          stub_leave … end      slot, suffix
//!   rewound         rewound | goes by IRQ_NR   `irq` is set, seen at leave     the call is over      the call is over
//! ```
//!
//! "Rewound" means that the guest appears at its `syscall` instruction, with the registers it had there; or at the
//! `mov` before it, if that has not run or may run again.
//!
//! # `sched_yield`
//! Threads that yield to each other take this path thousands of times, each time on a core whose cache another thread
//! has used since. Cells lie at the same offset in their pages, so they compete for few cache sets. The call is
//! therefore made right here, with one line of the cell and no stack. It has no effect that could be seen twice: an
//! interrupt finds it rewound or over.

use crate::abi::*;
use crate::asm::stub_copy;
use crate::{sys, UContext};
use core::mem::offset_of;
use core::ptr::addr_of_mut;
use core::sync::atomic::Ordering::Relaxed;

const REGS: usize = offset_of!(Cell, post) + offset_of!(Post, regs);

core::arch::global_asm!(
    r#"
    // First in the text: ENTER_AT.
    .pushsection .text.enter, "ax"
    // From a slot: rax is the call's number, r11 the slot's code after the call; all other registers are the guest's.
    .balign 64
    .globl stub_enter
stub_enter:
    mov rcx, rax
    lahf
    seto al
    .globl stub_enter_check
stub_enter_check:
    // Faults or differs if the guest has set GS.
    cmp dword ptr gs:[{magic_at}], {magic}
    jne stub_enter_slow
    cmp rcx, {yield_nr}
    je stub_yield
    .globl stub_enter_store
stub_enter_store:
    mov gs:[{regs} + 8*18], rcx
    cmp rcx, {answers}
    jae stub_call
    mov ecx, gs:[{answers_at} + rcx*4]
    test ecx, ecx
    jz stub_call
    inc qword ptr gs:[{answered_at}]
    .globl stub_enter_tail
stub_enter_tail:
    add al, 0x7f
    sahf
    mov eax, ecx
    not eax
    jmp r11

    // Without a cell: through the slot's `syscall`.
    .globl stub_enter_slow
stub_enter_slow:
    add al, 0x7f
    sahf
    mov rax, rcx
    lea r11, [r11 - 2]
    jmp r11

    // An interrupt came while the tail above ran.
    .globl stub_enter_irq
stub_enter_irq:
    mov gs:[{regs} + 8*13], rax
    mov eax, {irq_nr}
    syscall
    .globl stub_enter_irq_end
stub_enter_irq_end:
    hlt

    .globl stub_yield_ask
stub_yield_ask:
    mov ecx, {yield_nr}
    jmp stub_enter_store
stub_yield:
    cmp dword ptr gs:[{filtered_at}], 0
    jne stub_yield_ask
    movabs rcx, {native_allowed}
    cmp dword ptr [rcx], 0
    je stub_yield_ask
    inc qword ptr gs:[{native_at}]
    mov gs:[{ret_at}], r11
    add al, 0x7f
    .globl stub_yield_flags
stub_yield_flags:
    sahf
    .globl stub_yield_call
stub_yield_call:
    mov eax, {yield_nr}
    syscall
    jmp qword ptr gs:[{ret_at}]
    .globl stub_yield_end
stub_yield_end:

    .globl stub_call
stub_call:
    mov gs:[{regs} + 8*15], rsp
    mov rsp, gs:[{stack_at}]
    add al, 0x7f
    sahf
    pushfq
    cld
    mov gs:[{regs} + 8*0], r8
    mov gs:[{regs} + 8*1], r9
    mov gs:[{regs} + 8*2], r10
    mov gs:[{regs} + 8*4], r12
    mov gs:[{regs} + 8*5], r13
    mov gs:[{regs} + 8*6], r14
    mov gs:[{regs} + 8*7], r15
    mov gs:[{regs} + 8*8], rdi
    mov gs:[{regs} + 8*9], rsi
    mov gs:[{regs} + 8*10], rbp
    mov gs:[{regs} + 8*11], rbx
    mov gs:[{regs} + 8*12], rdx
    pop rcx
    mov gs:[{regs} + 8*17], rcx
    mov gs:[{regs} + 8*3], rcx
    mov gs:[{ret_at}], r11
    movsxd rcx, dword ptr [r11 + 3]
    lea rcx, [r11 + rcx + 7]
    mov gs:[{regs} + 8*14], rcx
    mov gs:[{regs} + 8*16], rcx
    mov qword ptr gs:[{regs} + 8*13], -38
    rdgsbase rdi
    call stub_patched

    // Back to the guest, with all registers taken from the cell.
    .globl stub_leave
stub_leave:
    cmp dword ptr gs:[{irq_at}], 0
    jne 2f
    push qword ptr gs:[{regs} + 8*17]
    popfq
    mov r8, gs:[{regs} + 8*0]
    mov r9, gs:[{regs} + 8*1]
    mov r10, gs:[{regs} + 8*2]
    mov r11, gs:[{regs} + 8*3]
    mov r12, gs:[{regs} + 8*4]
    mov r13, gs:[{regs} + 8*5]
    mov r14, gs:[{regs} + 8*6]
    mov r15, gs:[{regs} + 8*7]
    mov rdi, gs:[{regs} + 8*8]
    mov rsi, gs:[{regs} + 8*9]
    mov rbp, gs:[{regs} + 8*10]
    mov rbx, gs:[{regs} + 8*11]
    mov rdx, gs:[{regs} + 8*12]
    mov rax, gs:[{regs} + 8*13]
    mov rcx, gs:[{regs} + 8*14]
    mov rsp, gs:[{regs} + 8*15]
    jmp qword ptr gs:[{ret_at}]
    .globl stub_leave_end
stub_leave_end:
2:  rdgsbase rdi
    call stub_patched_irq
    jmp stub_leave
    .popsection

    // frame(): a call that the filter traps
    .globl stub_frame
stub_frame:
    mov eax, {frame_nr}
    syscall
    hlt

    // wait_open(args rdi, irq rsi) -> the futex call's result, or -ERESTARTSYS if an interrupt came before it began
    .globl stub_wait_open
    .globl stub_wait_open_begin
    .globl stub_wait_open_insn
    .globl stub_wait_open_abort
stub_wait_open:
    mov rcx, rdi
    mov r11, rsi
    mov rdi, [rcx]
    mov rsi, [rcx + 8]
    mov rdx, [rcx + 16]
    mov r10, [rcx + 24]
    mov r8, [rcx + 32]
    mov r9, [rcx + 40]
    mov eax, [rcx + 48]
stub_wait_open_begin:
    cmp dword ptr [r11], 0
    jne stub_wait_open_abort
stub_wait_open_insn:
    syscall
    ret
stub_wait_open_abort:
    mov rax, -512
    ret
    "#,
    regs = const REGS,
    magic_at = const offset_of!(Cell, magic),
    magic = const CELL_MAGIC as i32,
    answers = const ANSWERS,
    answers_at = const offset_of!(Cell, answers),
    answered_at = const offset_of!(Cell, answered),
    native_at = const offset_of!(Cell, native),
    filtered_at = const offset_of!(Cell, filtered),
    native_allowed = const GLOBAL_BASE + offset_of!(Global, native_futex) as u64,
    yield_nr = const SCHED_YIELD_NR as i32,
    stack_at = const offset_of!(Cell, stack_top),
    ret_at = const offset_of!(Cell, ret),
    irq_at = const offset_of!(Cell, irq),
    irq_nr = const IRQ_NR,
    frame_nr = const FRAME_NR,
);

extern "C" {
    fn stub_enter();
    fn stub_enter_check();
    fn stub_enter_store();
    fn stub_enter_tail();
    fn stub_enter_slow();
    fn stub_yield_ask();
    fn stub_yield_flags();
    fn stub_yield_call();
    fn stub_yield_end();
    fn stub_enter_irq();
    fn stub_enter_irq_end();
    fn stub_leave();
    fn stub_leave_end();
    fn stub_frame() -> !;
    pub fn stub_wait_open(args: *const u64, irq: *const core::sync::atomic::AtomicU32) -> i64;
    fn stub_wait_open_begin();
    fn stub_wait_open_insn();
    fn stub_wait_open_abort();
}

fn at(f: unsafe extern "C" fn()) -> u64 {
    f as *const () as u64
}

/// Makes the cell of `slot` the cell of this thread. Leaves GS alone if the guest has set it.
pub unsafe fn own_cell(slot: u64) {
    let cell = crate::cell_of(slot);
    // SAFETY: the area is mapped for good, and the Sentry gives the slot to this thread only.
    unsafe {
        (*cell).stack_top = ALT_BASE + (slot + 1) * ALT_SIZE - 64;
        (*cell).magic = CELL_MAGIC;
    }
    if is_cell(sys::gs_base()) {
        sys::set_gs_base(cell as u64);
    }
}

/// Whether a GS base was set by the stub.
pub fn is_cell(gs: u64) -> bool {
    gs >= AREA_BASE && gs < AREA_BASE + AREA_SIZE
}

/// The guest's address after its `syscall` instruction, given the slot's code after the call.
fn view_of(after: u64) -> Option<u64> {
    if after % TRAMPOLINE_SLOT != SLOT_AFTER {
        return None;
    }
    let mut word = [0u64; 2];
    let to = addr_of_mut!(word) as u64;
    // SAFETY: `stub_copy` handles faults on guest memory; the destination is our own array.
    let failed = unsafe {
        stub_copy(to, after - SLOT_AFTER + SLOT_MARK_AT, 8) + stub_copy(to + 8, after, 8)
    };
    // SAFETY: our own array, initialised; volatile, since assembly has written to it.
    let [mark, code] = unsafe { addr_of_mut!(word).read_volatile() };
    // lea rcx, [rip + d32]
    if failed != 0 || mark != SLOT_MARK || code & 0xff_ffff != 0x0d_8d48 {
        return None;
    }
    Some(after.wrapping_add(7).wrapping_add((code >> 24) as i32 as i64 as u64))
}

/// For a trap whose `rip` lies after the slow `syscall` of a slot: the address that the guest sees.
pub fn view_of_slow(rip: u64) -> Option<u64> {
    view_of(rip)
}

/// For an illegal instruction at `rip`: if that is the address after a `syscall` that a jump to a slot has replaced
/// since, the address in the slot to continue at.
pub fn after_patched_site(rip: u64) -> Option<u64> {
    let mut bytes = 0u64;
    // SAFETY: `stub_copy` handles faults on guest memory; the destination is our own word.
    let failed = unsafe { stub_copy(addr_of_mut!(bytes) as u64, rip.wrapping_sub(2), 5) };
    // SAFETY: our own word, initialised; volatile, since assembly has written to it.
    let bytes = unsafe { addr_of_mut!(bytes).read_volatile() };
    if failed != 0 || bytes & 0xff != 0xe9 {
        return None;
    }
    let slot = rip.wrapping_add(3).wrapping_add((bytes >> 8) as u32 as i32 as i64 as u64);
    let after = slot.wrapping_add(SLOT_AFTER);
    (view_of(after)? == rip).then_some(after)
}

/// Handles a fault of the check for a cell: the call takes the slow path.
pub unsafe fn fixup_check(uc: *mut UContext) -> bool {
    // SAFETY: `uc` points into the signal frame of this thread.
    unsafe {
        let hit = (*uc).gregs[R_RIP] == at(stub_enter_check);
        if hit {
            (*uc).gregs[R_RIP] = at(stub_enter_slow);
        }
        hit
    }
}

/// Result of examining an interrupt in the stub.
pub enum Found {
    /// The context shows guest code.
    Guest,
    /// The interrupted code reports the interrupt by itself.
    Noted,
}

/// Handles an interrupt with `rip` in the stub.
pub unsafe fn interrupted_here(cell: *mut Cell, uc: *mut UContext) -> Found {
    // SAFETY: `cell` is the cell of this thread, and `uc` points into its signal frame.
    unsafe {
        let g = &mut (*uc).gregs;
        let rip = g[R_RIP];
        if rip >= at(stub_enter_tail) && rip < at(stub_enter_slow) {
            if g[R_R11] != at(stub_enter_irq) {
                (*cell).ret = g[R_R11];
                g[R_R11] = at(stub_enter_irq);
            }
            return Found::Noted;
        }
        if rip >= at(stub_enter_slow) && rip <= at(stub_enter_irq_end) {
            // A trap follows immediately.
            return Found::Noted;
        }
        if rip >= at(stub_yield_call) && rip < at(stub_yield_end) {
            let view = view_of((*cell).ret).unwrap_or(0);
            (g[R_RAX], g[R_RCX], g[R_RIP], g[R_R11]) = (0, view, view, g[R_EFL]);
            return Found::Guest;
        }
        if rip >= at(stub_yield_ask) && rip <= at(stub_yield_flags) {
            let Some(view) = view_of(g[R_R11]) else { return Found::Noted };
            if rip == at(stub_yield_flags) {
                g[R_EFL] = g[R_EFL] & !0xd5 | g[R_RAX] >> 8 & 0xd5;
            } else {
                saved_flags(g);
            }
            (g[R_RAX], g[R_RCX]) = (SCHED_YIELD_NR, view);
            rewind(g, g[R_R11] - SLOT_AFTER, view);
            return Found::Guest;
        }
        if rip >= at(stub_enter) && rip < at(stub_enter_tail) {
            let Some(view) = view_of(g[R_R11]) else { return Found::Noted };
            let nr = if rip == at(stub_enter) {
                g[R_RAX]
            } else if rip <= at(stub_enter_store) {
                g[R_RCX]
            } else {
                (*cell).post.regs[R_ORIG]
            };
            if rip > at(stub_enter_check) {
                saved_flags(g);
            }
            g[R_RAX] = nr;
            g[R_RCX] = view;
            rewind(g, g[R_R11] - SLOT_AFTER, view);
            return Found::Guest;
        }
        if rip >= at(stub_leave) && rip < at(stub_leave_end) {
            crate::copy_regs(g.as_mut_ptr(), addr_of_mut!((*cell).post.regs).cast());
            return Found::Guest;
        }
        (*cell).irq.store(1, Relaxed);
        if rip >= at(stub_wait_open_begin) && rip <= at(stub_wait_open_insn) {
            g[R_RIP] = at(stub_wait_open_abort);
        }
        Found::Noted
    }
}

/// Handles an interrupt in guest code: if that is a slot, shows the guest at the address where it believes to be.
pub unsafe fn interrupted_in_guest(uc: *mut UContext) {
    // SAFETY: `uc` points into the signal frame of this thread; `stub_copy` handles faults on guest memory.
    unsafe {
        let g = &mut (*uc).gregs;
        let rip = g[R_RIP];
        let slot = rip & !(TRAMPOLINE_SLOT - 1);
        let Some(view) = view_of(slot + SLOT_AFTER) else { return };
        g[R_RCX] = view;
        if rip < slot + SLOT_AFTER {
            rewind(g, slot, view);
            return;
        }
        let mut jump = 0u64;
        stub_copy(addr_of_mut!(jump) as u64, rip, 5);
        let jump = addr_of_mut!(jump).read_volatile();
        // The jump back: the displaced instructions have run.
        let done = jump & 0xff == 0xe9;
        g[R_RIP] = if done { rip.wrapping_add(5).wrapping_add((jump >> 8) as u32 as i32 as i64 as u64) } else { view };
    }
}

/// Restores the flags that `lahf` and `seto` have put into `rax`.
fn saved_flags(g: &mut [u64; 23]) {
    let (ah, of) = (g[R_RAX] >> 8 & 0xd5, g[R_RAX] & 1);
    g[R_EFL] = g[R_EFL] & !0x8d5 | ah | of << 11;
}

/// Rewinds to the instruction that the slot's jump has replaced: the `mov` of the number (with which the slot begins,
/// too), or the call itself. A displaced `mov` that stores r11 is rewound only if it has not run, since the slot
/// changes r11.
unsafe fn rewind(g: &mut [u64; 23], slot: u64, view: u64) {
    let mut first = 0u64;
    // SAFETY: `stub_copy` handles faults on guest memory; the destination is our own word.
    unsafe { stub_copy(addr_of_mut!(first) as u64, slot, 2) };
    // SAFETY: our own word, initialised; volatile, since assembly has written to it.
    let first = unsafe { addr_of_mut!(first).read_volatile() };
    g[R_RIP] = match (first as u8, first >> 8) {
        (0xb8, _) => view - 7,
        // mov rax, imm32
        (0x48, _) => view - 9,
        (0x4c, 0x89) if g[R_RIP] == slot => view - 7,
        _ => view - 2,
    };
}

/// Handles the trap of `stub_enter_irq`: shows the guest in its state after the call.
pub unsafe fn after_tail(cell: *mut Cell, uc: *mut UContext) {
    // SAFETY: `cell` is the cell of this thread, and `uc` points into its signal frame.
    unsafe {
        let g = &mut (*uc).gregs;
        g[R_RAX] = (*cell).post.regs[R_RAX];
        let view = view_of((*cell).ret).unwrap_or(0);
        g[R_RIP] = view;
        g[R_RCX] = view;
    }
}

#[no_mangle]
unsafe extern "C" fn stub_patched(cell: *mut Cell) {
    // SAFETY: `cell` is the cell of this thread: GS pointed there.
    unsafe {
        // The kernel, too, uses only the low 32 bits.
        let nr = (*cell).post.regs[R_ORIG] & 0xffff_ffff;
        (*cell).post.regs[R_ORIG] = nr;
        let mut kind = kind::CALL;
        if nr == FUTEX_NR && crate::made_by_stub(cell, nr, (*cell).post.regs[R_RSI]) {
            (*cell).native = (*cell).native.wrapping_add(1);
            let regs: *mut u64 = addr_of_mut!((*cell).post.regs).cast();
            match crate::futex(cell, &mut *regs.cast(), true) {
                Some(k) => kind = k,
                None => return,
            }
        } else {
            let regs: *const u64 = addr_of_mut!((*cell).post.regs).cast();
            crate::prefetch::prefetch(cell, nr, &*regs.cast());
        }
        post_cell(cell, kind);
        crate::serve(cell, core::ptr::null_mut());
    }
}

/// Posts the registers that are already in the cell.
pub unsafe fn post_cell(cell: *mut Cell, kind: u32) {
    // SAFETY: `cell` is the cell of this thread.
    unsafe {
        (*cell).post.fs_base = sys::fs_base();
        (*cell).post.gs_base = sys::gs_base();
        crate::post_kind(cell, kind);
    }
}

/// Reports an interrupt that came during a call that is now over.
#[no_mangle]
unsafe extern "C" fn stub_patched_irq(cell: *mut Cell) {
    // SAFETY: `cell` is the cell of this thread: GS pointed there.
    unsafe {
        (*cell).irq.store(0, Relaxed);
        (*cell).post.regs[R_ORIG] = u64::MAX;
        post_cell(cell, kind::INTERRUPTED);
        crate::serve(cell, core::ptr::null_mut());
    }
}

/// Makes the kernel build a signal frame; the answer in the cell is then carried out on that. For answers that need
/// the vector registers in memory, or change GS.
pub fn make_frame() -> ! {
    // SAFETY: the call traps, and the signal handler returns to the guest, never here.
    unsafe { stub_frame() }
}

/// Enters the guest, for a new thread whose maker was in a patched call.
pub unsafe fn leave() -> ! {
    // SAFETY: `own_cell` has set GS to this thread's cell, which holds the guest's registers.
    unsafe { core::arch::asm!("jmp stub_leave", options(noreturn)) }
}
