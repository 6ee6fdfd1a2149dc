//! The stub: the only code of ours inside a guest's process. It catches the guest's system calls (as SIGSYS) and
//! faults (as their signals), posts them to the Sentry through the cell of its slot, and carries out the answers.
//!
//! Nothing here is trusted: the guest can overwrite this program's memory, or jump to any of its instructions with
//! any registers. The seccomp filter (`src/systrap/filter.rs`) makes it harmless, never a check made in this file.
//!
//! The program begins as the zygote (`boot.rs`); each guest process is a fork of it. After boot all code here runs on
//! a slot's signal stack, in one of two ways. Within a signal handler (a new thread: as if within one) all signals
//! are blocked except SIGSEGV and SIGBUS, which the copy routines may raise on guest memory and `on_signal` fixes up.
//! On the path of a patched call (`enter.rs`) signals are open and there is no signal frame: `uc` is null, and the
//! registers are in the cell.
#![no_std]
#![no_main]
#![no_builtins]

mod abi;
mod asm;
mod boot;
mod enter;
mod fp;
mod handoff;
mod prefetch;
mod sys;

use abi::*;
use asm::*;
use core::ptr::{addr_of, addr_of_mut};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use sys::{syscall, SysResult};

/// The kernel's `struct ucontext`, up to the last field in use.
#[repr(C)]
pub struct UContext {
    flags: u64,
    link: u64,
    stack: [u64; 3],
    /// `REG_R8` … `REG_EFL`, then segments, err, trapno, oldmask, cr2.
    gregs: [u64; 23],
    fpstate: u64,
    reserved: [u64; 8],
    sigmask: u64,
}
const G_R8: usize = 0;
const G_R9: usize = 1;
const G_R10: usize = 2;
const G_RDI: usize = 8;
const G_RDX: usize = 12;
const G_ERR: usize = 19;
const G_TRAPNO: usize = 20;

#[repr(C)]
pub struct SigInfo {
    signo: i32,
    errno: i32,
    code: i32,
    pad: i32,
    /// `si_addr`, or `si_call_addr`.
    addr: u64,
    syscall: i32,
    arch: u32,
}
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

const SIGILL: i32 = 4;
const SIGBUS: i32 = 7;
const SIGSEGV: i32 = 11;
const SIGSYS: i32 = 31;
const EINTR: i64 = 4;
const ERESTARTSYS: i64 = 512;
const EFAULT: i32 = 14;
const EINVAL: i32 = 22;

fn global() -> &'static Global {
    // SAFETY: the page is mapped at boot for good, and all its fields are atomics.
    unsafe { &*(GLOBAL_BASE as *const Global) }
}

fn cell_of(slot: u64) -> *mut Cell {
    (AREA_BASE + slot * SLOT_SIZE) as *mut Cell
}

/// The handler of all signals of the stub.
unsafe extern "C" fn on_signal(sig: i32, info: *const SigInfo, uc: *mut UContext) {
    // SAFETY: the kernel built the frame on this slot's signal stack, and both pointers lie in it.
    unsafe {
        let rip = (*uc).gregs[R_RIP];
        if sig == SIGSEGV || sig == SIGBUS {
            if rip == stub_copy_insn as *const () as u64 {
                (*uc).gregs[R_RIP] = stub_copy_fix as *const () as u64;
                return;
            }
            if rip == stub_copy_str_insn as *const () as u64 {
                (*uc).gregs[R_RIP] = stub_copy_str_fix as *const () as u64;
                return;
            }
            if rip == stub_cmpxchg_insn as *const () as u64 {
                (*uc).gregs[R_RIP] = stub_cmpxchg_fix as *const () as u64;
                return;
            }
            if enter::fixup_check(uc) || fp::fixup(uc) {
                return;
            }
        }
        if sig == SIGILL {
            if let Some(after) = enter::after_patched_site(rip) {
                (*uc).gregs[R_RIP] = after;
                return;
            }
        }
        let ours = rip >> 24 == IMAGE_BASE >> 24;
        let slot = (uc as u64).wrapping_sub(ALT_BASE) / ALT_SIZE % MAX_SLOTS as u64;
        let cell = cell_of(slot);
        let post = addr_of_mut!((*cell).post);
        let report = addr_of_mut!((*cell).report);
        // For a call through a slot's slow path: the address in the slot to return to, and the address that the guest
        // sees.
        let mut slow = None;
        let kind = match sig {
            SIGSYS => {
                let nr = if (*info).arch == AUDIT_ARCH_X86_64 { (*info).syscall as u32 as u64 } else { u64::MAX };
                if ours && nr == FRAME_NR as u64 {
                    on_frame(cell, uc);
                    return;
                }
                (*post).regs[R_ORIG] = nr;
                if nr == HELLO_NR as u64 {
                    fp::learn(uc);
                    kind::BORN
                } else if ours && nr == IRQ_NR as u64 {
                    enter::after_tail(cell, uc);
                    (*post).regs[R_ORIG] = u64::MAX;
                    kind::INTERRUPTED
                } else {
                    if let Some(view) = enter::view_of_slow(rip) {
                        slow = Some((rip, view));
                        (*uc).gregs[R_RIP] = view;
                        (*uc).gregs[R_RCX] = view;
                    }
                    if made_by_stub(cell, nr, (*uc).gregs[R_RSI]) && !reports(cell) {
                        if nr == SCHED_YIELD_NR {
                            (*uc).gregs[R_RAX] = syscall(sys::SCHED_YIELD, [0; 6]).0 as u64;
                            return;
                        }
                        match futex(cell, gprs(uc), false) {
                            Some(kind) => kind,
                            None => return,
                        }
                    } else {
                        prefetch::prefetch(cell, nr, gprs(uc));
                        kind::SYSCALL
                    }
                }
            }
            INT_SIGNAL => {
                if ours {
                    // Within a signal handler all code of the stub but `stub_wait` blocks this signal.
                    if rip >= stub_wait_begin as *const () as u64 && rip <= stub_wait_insn as *const () as u64 {
                        (*uc).gregs[R_RIP] = stub_wait_abort as *const () as u64;
                    }
                    if let enter::Found::Noted = enter::interrupted_here(cell, uc) {
                        return;
                    }
                } else {
                    enter::interrupted_in_guest(uc);
                }
                (*post).regs[R_ORIG] = u64::MAX;
                kind::INTERRUPTED
            }
            _ => {
                // The beginning of a slot is an instruction of the guest's own, which is reported at its own address.
                if !ours && matches!(sig, SIGSEGV | SIGBUS) && rip % TRAMPOLINE_SLOT == 0 {
                    enter::interrupted_in_guest(uc);
                }
                (*post).regs[R_ORIG] = u64::MAX;
                (*report).signal = sig;
                (*report).code = (*info).code;
                (*report).addr = (*info).addr;
                (*report).trapno = (*uc).gregs[G_TRAPNO];
                (*report).error = (*uc).gregs[G_ERR];
                kind::FAULT
            }
        };
        post_context(cell, uc, kind);
        serve(cell, uc);
        if let Some((after, view)) = slow {
            if (*uc).gregs[R_RIP] == view {
                (*uc).gregs[R_RIP] = after;
            }
        }
    }
}

/// Continues a patched call on a signal frame: the answer is in the cell, and none of it has been carried out.
unsafe fn on_frame(cell: *mut Cell, uc: *mut UContext) {
    // SAFETY: `cell` is the cell of this thread, and `uc` points into its signal frame.
    unsafe {
        copy_regs(addr_of_mut!((*uc).gregs).cast(), addr_of!((*cell).post.regs).cast());
        serve_answer(cell, uc);
        while (*cell).irq.swap(0, Relaxed) != 0 {
            (*cell).post.regs[R_ORIG] = u64::MAX;
            post_context(cell, uc, kind::INTERRUPTED);
            serve(cell, uc);
        }
    }
}

/// Copies all registers but the call's number.
pub unsafe fn copy_regs(to: *mut u64, from: *const u64) {
    let mut i = 0;
    while i < R_ORIG {
        // SAFETY: callers pass arrays of at least R_ORIG words.
        unsafe { *to.add(i) = *from.add(i) };
        i += 1;
    }
}

/// The general registers of a context, in the order of `Post::regs`.
unsafe fn gprs<'a>(uc: *mut UContext) -> &'a mut [u64; R_ORIG] {
    // SAFETY: `gregs` has 23 words, the first R_ORIG of which are these.
    unsafe { &mut *addr_of_mut!((*uc).gregs).cast() }
}

/// Whether the stub makes this call (second argument `a1`) itself.
unsafe fn made_by_stub(cell: *mut Cell, nr: u64, a1: u64) -> bool {
    // SAFETY: `cell` is the cell of this thread.
    let filtered = unsafe { (*cell).filtered.load(Relaxed) };
    (nr == FUTEX_NR && is_private_futex(a1) || nr == SCHED_YIELD_NR)
        && filtered == 0
        && global().native_futex.load(Relaxed) != 0
}

/// Whether to report to the Sentry a trapped call that the stub could make itself: the Sentry patches only sites
/// known to trap. (Its answer lets the stub make the call.)
unsafe fn reports(cell: *mut Cell) -> bool {
    // SAFETY: `cell` is the cell of this thread.
    let n = unsafe {
        let n = (*cell).trapped;
        (*cell).trapped = n.wrapping_add(1);
        n
    };
    (n < 32 || n % 8 == 0) && global().native_futex.load(Relaxed) == 2
}

/// Whether a futex operation (`rsi`) concerns this process alone, and the filter allows it: WAIT, WAKE, REQUEUE,
/// CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET with FUTEX_PRIVATE_FLAG.
fn is_private_futex(op: u64) -> bool {
    let op = op as u32;
    op & 0x80 != 0 && op & !0x18f == 0 && (1 << (op & 0xf)) & 0b110_0011_1011 != 0
}

/// Makes the guest's `futex` or `futex_waitv` call here; `open` if our interrupt is not blocked. `None`: done, back
/// to the guest. Otherwise an interrupt came: `orig_rax` still holds the call's number if the call has to be
/// repeated, and -1 if `rax` holds its result.
unsafe fn futex(cell: *mut Cell, g: &mut [u64; R_ORIG], open: bool) -> Option<u32> {
    // SAFETY: `cell` is the cell of this thread; the call is the guest's own, on its own memory.
    unsafe {
        let nr = if (*cell).post.regs[R_ORIG] == FUTEX_WAITV_NR { FUTEX_WAITV_NR } else { FUTEX_NR };
        let args = [g[G_RDI], g[R_RSI], g[G_RDX], g[G_R10], g[G_R8], g[G_R9], nr];
        let waits = nr == FUTEX_WAITV_NR || matches!(args[1] & 0xf, 0 | 9);
        if !waits {
            let [a, b, c, d, e, f, _] = args;
            g[R_RAX] = syscall(sys::FUTEX, [a, b, c, d, e, f]).0 as u64;
            return None;
        }
        let r = if open {
            (*cell).state.store(state::WAITING, Relaxed);
            let r = enter::stub_wait_open(args.as_ptr(), addr_of!((*cell).irq));
            (*cell).state.store(state::RUNNING, Relaxed);
            r
        } else {
            (*cell).irq.store(0, Relaxed);
            (*cell).state.store(state::WAITING, Relaxed);
            let mask = 1u64 << (INT_SIGNAL - 1);
            let r = stub_wait(args.as_ptr(), &mask);
            (*cell).state.store(state::RUNNING, Relaxed);
            r
        };
        let irq = (*cell).irq.load(Relaxed) != 0;
        if r == -ERESTARTSYS || (irq && r == -EINTR) {
            (*cell).irq.store(0, Relaxed);
            return Some(kind::INTERRUPTED);
        }
        g[R_RAX] = r as u64;
        if open || !irq {
            // An interrupt is handled on the way out.
            return None;
        }
        (*cell).irq.store(0, Relaxed);
        (*cell).post.regs[R_ORIG] = u64::MAX;
        Some(kind::INTERRUPTED)
    }
}

/// Copies the registers of the context into the cell and posts it.
unsafe fn post_context(cell: *mut Cell, uc: *mut UContext, kind: u32) {
    // SAFETY: `cell` is the cell of this thread, and `uc` points into its signal frame.
    unsafe {
        let post = addr_of_mut!((*cell).post);
        copy_regs(addr_of_mut!((*post).regs).cast(), addr_of!((*uc).gregs).cast());
        (*post).fs_base = sys::fs_base();
        (*post).gs_base = sys::gs_base();
        post_kind(cell, kind);
    }
}

unsafe fn post_kind(cell: *mut Cell, kind: u32) {
    // SAFETY: `cell` is the cell of this thread.
    unsafe {
        (*cell).post.kind = kind;
        (*cell).rang = 0;
        handoff::post(&(*cell).state, &global().polling, || {
            let core = sys::core();
            (*cell).core.store(core, Relaxed);
            (*cell).rang = 1;
            let which = match global().any_doorbell.load(Relaxed) {
                0 => core % DOORBELLS,
                n => sys::cycles() % n,
            };
            let own = global().workers.load(Relaxed) >> which & 1 != 0;
            let doorbell = if own { DOORBELLS_FD as u32 + which } else { DOORBELL_FD as u32 };
            let one = 1u64;
            syscall(sys::WRITE, [doorbell as u64, addr_of!(one) as u64, 8, 0, 0, 0]);
        });
    }
}

unsafe fn wait_answer(cell: *mut Cell) {
    // SAFETY: `cell` is the cell of this thread.
    let (word, rang) = unsafe { (&(*cell).state, (*cell).rang != 0) };
    // A thread of the Sentry that has just been woken takes too long to spin for. If another one was active at the
    // post, it still is, or it has found the post before its release.
    let spins = if !rang || global().polling.load(Relaxed) != 0 { global().spin.load(Relaxed) } else { 0 };
    handoff::wait(word, spins, core::hint::spin_loop, |seen| {
        syscall(sys::FUTEX, [addr_of!(*word) as u64, 0, seen as u64, 0, 0, 0]);
    });
}

/// Waits for answers and carries them out, until one returns to the guest.
unsafe fn serve(cell: *mut Cell, uc: *mut UContext) {
    // SAFETY: `cell` is the cell of this thread; `uc` is null or points into its signal frame.
    unsafe {
        wait_answer(cell);
        serve_answer(cell, uc)
    }
}

/// Whether the operations need a signal frame.
unsafe fn needs_frame(cell: *mut Cell, nops: usize) -> bool {
    let mut i = 0;
    while i < nops && i < MAX_OPS {
        // SAFETY: in bounds of this thread's own cell.
        let (code, arg) = unsafe { ((*cell).ops[i].code, (*cell).ops[i].args[0]) };
        match code {
            op::SET_GS => return true,
            op::RESTORE_FP if arg != 0 => return true,
            op::SAVE_FP if !fp::learned() => return true,
            _ => {}
        }
        i += 1;
    }
    false
}

/// Like `serve`, with the first answer already in the cell.
unsafe fn serve_answer(cell: *mut Cell, uc: *mut UContext) {
    // SAFETY: `cell` is the cell of this thread; `uc` is null or points into its signal frame.
    unsafe {
        let mut first = true;
        loop {
            if !first {
                wait_answer(cell);
            }
            first = false;
            let mode = (*cell).answer.mode;
            let nops = (*cell).answer.nops as usize;
            if uc.is_null() && needs_frame(cell, nops) {
                enter::make_frame();
            }
            let mut efault = false;
            let mut failed = 0;
            let mut i = 0;
            let mut fds = sys::Fds::none();
            if (*cell).answer.nfds != 0 {
                // Without the descriptors, the operations that need them fail.
                let _ = fds.receive();
            }
            while i < nops && i < MAX_OPS {
                let op = addr_of!((*cell).ops[i]);
                match carry_out(cell, uc, op, &fds) {
                    Ok(false) => i += 1,
                    Ok(true) => {
                        // The forked child: the rest of the answer was the parent's.
                        failed = -1;
                        break;
                    }
                    Err(EFAULT) if (*op).code == op::COPY_OUT && mode == mode::RETURN => {
                        efault = true;
                        i += 1;
                    }
                    Err(e) => {
                        failed = e;
                        break;
                    }
                }
            }
            fds.close();
            if failed == -1 {
                // The child's own answer may be there already.
                continue;
            }
            // A thread that is to exit does so even if an operation failed.
            if failed != 0 && mode != mode::EXIT {
                (*cell).report.op_index = i as u32;
                (*cell).report.op_errno = failed;
                post_kind(cell, kind::OP_FAILED);
                continue;
            }
            (*cell).ops_done.store((*cell).answer.seq, Release);
            match mode {
                mode::RETURN => {
                    let rax = if efault { -(EFAULT as i64) as u64 } else { (*cell).answer.rax };
                    if uc.is_null() {
                        (*cell).post.regs[R_RAX] = rax;
                    } else {
                        (*uc).gregs[R_RAX] = rax;
                    }
                    return;
                }
                mode::FULL => {
                    let regs = addr_of!((*cell).regs);
                    if uc.is_null() {
                        (*cell).ret = (*regs)[R_RIP];
                        copy_regs(addr_of_mut!((*cell).post.regs).cast(), regs.cast());
                    } else {
                        copy_regs(addr_of_mut!((*uc).gregs).cast(), regs.cast());
                    }
                    return;
                }
                mode::NATIVE => {
                    let g: &mut [u64; R_ORIG] = if uc.is_null() {
                        &mut *addr_of_mut!((*cell).post.regs).cast()
                    } else {
                        gprs(uc)
                    };
                    (*cell).native = (*cell).native.wrapping_add(1);
                    match futex(cell, g, uc.is_null()) {
                        Some(kind) => post_any(cell, uc, kind),
                        None => return,
                    }
                }
                mode::EXIT => stub_exit(addr_of!((*cell).gone), (*cell).answer.rax),
                mode::EXIT_GROUP => {
                    syscall(sys::EXIT_GROUP, [0; 6]);
                }
                _ => post_kind(cell, kind::OPS_DONE),
            }
        }
    }
}

/// Posts with the registers of the context, or of the cell if there is none.
unsafe fn post_any(cell: *mut Cell, uc: *mut UContext, kind: u32) {
    // SAFETY: `cell` is the cell of this thread; `uc` is null or points into its signal frame.
    unsafe {
        if uc.is_null() {
            enter::post_cell(cell, kind);
        } else {
            post_context(cell, uc, kind);
        }
    }
}

/// Carries out one operation. `Ok(true)`: this is the child of a fork.
unsafe fn carry_out(cell: *mut Cell, uc: *mut UContext, op: *const OpSlot, fds: &sys::Fds) -> Result<bool, i32> {
    // SAFETY: `cell` is the cell of this thread, `uc` is null or points into its signal frame, `op` lies in the cell.
    // Operations access guest memory only through `stub_copy`, `stub_cmpxchg`, the `fp` routines and the kernel.
    unsafe {
        let a = (*op).args;
        match (*op).code {
            op::SYSCALL => {
                syscall(a[0] as u32, [a[1], a[2], a[3], a[4], a[5], a[6]]).check()?;
            }
            op::MAP_FD => {
                syscall(sys::MMAP, [a[0], a[1], a[2], a[3], fds.get(a[5])?, a[4]]).check()?;
            }
            op::COPY_OUT => {
                let from = cell as u64 + STAGE_OUT + a[2];
                if stub_copy(a[0], from, a[1]) != 0 {
                    return Err(EFAULT);
                }
            }
            op::COMPARE_EXCHANGE => match stub_cmpxchg(a[0], a[1] as u32, a[2] as u32) {
                0 => {}
                e => return Err(e),
            },
            op::SET_FS => sys::set_fs_base(a[0]),
            op::SET_GS => sys::set_gs_base(a[0]),
            op::SAVE_FP if uc.is_null() => fp::save_live(a[0])?,
            op::SAVE_FP => fp::fp_save(uc, a[0])?,
            op::RESTORE_FP if uc.is_null() => fp::fp_init(),
            op::RESTORE_FP => fp::fp_restore(uc, a[0])?,
            op::FORK => {
                // The child has a copy of the stack, but not of the cell.
                let mut regs = [0u64; NREGS];
                copy_regs(regs.as_mut_ptr(), addr_of!((*cell).post.regs).cast());
                let ret = (*cell).ret;
                // The child may be interrupted as soon as it exists, before it has a cell to record that in.
                if uc.is_null() {
                    hold_interrupts(SIG_BLOCK);
                }
                let pid = stub_fork(a[0]);
                if pid == 0 {
                    copy_regs(addr_of_mut!((*cell).post.regs).cast(), regs.as_ptr());
                    (*cell).ret = ret;
                    enter::own_cell((cell as u64 - AREA_BASE) / SLOT_SIZE);
                }
                if uc.is_null() {
                    hold_interrupts(SIG_UNBLOCK);
                }
                if pid == 0 {
                    return Ok(true);
                }
                SysResult(pid).check()?;
                (*cell).post.tid = pid as i32;
            }
            op::THREAD => {
                let tid = spawn_thread(cell, uc, a[0], a[1], a[2])?;
                (*cell).post.tid = tid;
            }
            _ => return Err(EINVAL),
        }
        Ok(false)
    }
}

const SIG_BLOCK: u64 = 0;
const SIG_UNBLOCK: u64 = 1;

/// Blocks or unblocks our interrupt (outside of signal handlers, which block it anyway).
fn hold_interrupts(how: u64) {
    let mask = 1u64 << (INT_SIGNAL - 1);
    syscall(sys::RT_SIGPROCMASK, [how, addr_of!(mask) as u64, 0, 8, 0, 0]);
}

/// Gives a forked child its control socket, through the fork handshake, and its area through that socket. No cell is
/// accessed before.
#[no_mangle]
unsafe extern "C" fn stub_fork_child(token: u64) {
    // PR_SET_PDEATHSIG, SIGKILL
    syscall(sys::PRCTL, [1, 9, 0, 0, 0, 0]);
    let mut fds = sys::Fds::none();
    let given = loop {
        // 0: the Sentry was stopped for a moment during the handshake, and the socket was not given.
        match syscall(FORK_HANDSHAKE_NR, [token, 0, 0, 0, 0, 0]).0 {
            0 => {}
            fd => break fd,
        }
    };
    let born = given == i64::from(CTL_FD)
        && fds.receive().is_ok()
        && fds.get(0).is_ok_and(map_area);
    if !born {
        syscall(sys::EXIT_GROUP, [113, 0, 0, 0, 0, 0]);
    }
    fds.close();
}

/// Maps the hand-off area for good, excluded from forks.
fn map_area(fd: u64) -> bool {
    // MAP_SHARED | MAP_FIXED; MADV_DONTFORK
    syscall(sys::MMAP, [AREA_BASE, AREA_SIZE, 3, 0x11, fd, 0]).0 as u64 == AREA_BASE
        && syscall(sys::MADVISE, [AREA_BASE, AREA_SIZE, 10, 0, 0, 0]).0 == 0
}

/// Makes a host thread whose context is a copy of the caller's, on the signal stack of `slot`.
unsafe fn spawn_thread(cell: *mut Cell, uc: *mut UContext, slot: u64, set_fs: u64, fs: u64) -> Result<i32, i32> {
    if slot >= MAX_SLOTS as u64 {
        return Err(EINVAL);
    }
    // SAFETY: `slot` is in bounds, and the Sentry hands out a slot once at a time, so no other thread uses its stack
    // and cell. The size of the frame is the kernel's, and the copy is checked to lie in the upper half of the stack.
    unsafe {
        let base = ALT_BASE + slot * ALT_SIZE;
        if uc.is_null() {
            // The new thread inherits the vector registers.
            let new = cell_of(slot);
            copy_regs(addr_of_mut!((*new).post.regs).cast(), addr_of!((*cell).post.regs).cast());
            (*new).ret = (*cell).ret;
            let tid = stub_thread(base + ALT_SIZE - 64, slot, 0, set_fs, fs);
            SysResult(tid).check()?;
            return Ok(tid as i32);
        }
        let fp = (*uc).fpstate;
        let fp_len = fp::fp_size(fp);
        let new_fp = (base + ALT_SIZE - fp_len - 64) & !63;
        let new_uc = new_fp - (fp - uc as u64);
        if new_uc < base + ALT_SIZE / 2 || new_uc > new_fp {
            return Err(EINVAL);
        }
        stub_copy(new_uc, uc as u64, fp - uc as u64 + fp_len);
        let copy = new_uc as *mut UContext;
        (*copy).fpstate = new_fp;
        (*copy).stack = [base, 0, ALT_SIZE];
        let stack = (new_uc - 512) & !15;
        let tid = stub_thread(stack, slot, new_uc, set_fs, fs);
        SysResult(tid).check()?;
        Ok(tid as i32)
    }
}

#[no_mangle]
unsafe extern "C" fn stub_thread_main(slot: u64, uc: *mut UContext, set_fs: u64, fs: u64) -> ! {
    // SAFETY: called once, by the new thread, on the stack of its own slot.
    unsafe {
        let stack = [ALT_BASE + slot * ALT_SIZE, 0, ALT_SIZE];
        syscall(sys::SIGALTSTACK, [addr_of!(stack) as u64, 0, 0, 0, 0, 0]);
        if set_fs != 0 {
            sys::set_fs_base(fs);
        }
        enter::own_cell(slot);
        let cell = cell_of(slot);
        serve(cell, uc);
        if uc.is_null() {
            enter::leave();
        }
        stub_resume(uc)
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    syscall(sys::EXIT_GROUP, [112, 0, 0, 0, 0, 0]);
    loop {}
}

/// Called by the compiler for larger copies.
#[no_mangle]
unsafe extern "C" fn memcpy(dst: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the compiler passes valid ranges, which do not overlap.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") n => _, inout("rdi") dst => _, inout("rsi") src => _);
    }
    dst
}

#[no_mangle]
unsafe extern "C" fn memset(dst: *mut u8, c: i32, n: usize) -> *mut u8 {
    // SAFETY: the compiler passes a valid range.
    unsafe {
        core::arch::asm!("rep stosb", inout("rcx") n => _, inout("rdi") dst => _, in("al") c as u8);
    }
    dst
}
