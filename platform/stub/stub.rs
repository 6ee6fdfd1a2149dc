//! The stub: the only code of ours inside a guest's process. It catches what the guest does (system calls as SIGSYS,
//! faults as their signals), posts it to the Sentry through the cell of its slot, and carries out the answer.
//!
//! Nothing here is trusted: the guest can overwrite this program's memory or jump to any instruction of it with any
//! registers. What keeps it harmless is the seccomp filter (`src/filter.rs`), never a check made in this file.
//!
//! The program begins as the zygote (`boot.rs`); each guest process is a fork of it. After boot all code here runs on a
//! slot's signal stack, within a signal handler or (a new thread) as if within one, with all signals blocked but
//! SIGSEGV and SIGBUS, which the two copy routines may raise on guest memory and `on_signal` mends.
#![no_std]
#![no_main]
#![no_builtins]

mod abi;
mod boot;
mod prefetch;
mod sys;

use abi::*;
use core::ptr::{addr_of, addr_of_mut};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use sys::{syscall, SysResult};

core::arch::global_asm!(
    r#"
    .globl stub_restorer
stub_restorer:
    mov eax, 15
    syscall
    hlt

    // resume(uc): leaves for good to the context at rdi
    .globl stub_resume
stub_resume:
    mov rsp, rdi
    mov eax, 15
    syscall
    hlt

    // copy(dst rdi, src rsi, len rdx) -> bytes not copied
    .globl stub_copy
    .globl stub_copy_insn
    .globl stub_copy_fix
stub_copy:
    mov rcx, rdx
stub_copy_insn:
    rep movsb
stub_copy_fix:
    mov rax, rcx
    ret

    // copy_str(dst rdi, src rsi, max rdx) -> bytes copied, the NUL included when there was one
    .globl stub_copy_str
    .globl stub_copy_str_insn
    .globl stub_copy_str_fix
stub_copy_str:
    xor eax, eax
2:  cmp rax, rdx
    jae stub_copy_str_fix
stub_copy_str_insn:
    movzx ecx, byte ptr [rsi + rax]
    mov byte ptr [rdi + rax], cl
    inc rax
    test cl, cl
    jnz 2b
stub_copy_str_fix:
    ret

    // compare_exchange(word rdi, old esi, new edx) -> 0, EAGAIN or EFAULT
    .globl stub_cmpxchg
    .globl stub_cmpxchg_insn
    .globl stub_cmpxchg_fix
stub_cmpxchg:
    mov eax, esi
stub_cmpxchg_insn:
    lock cmpxchg dword ptr [rdi], edx
    mov eax, 0
    mov ecx, 11
    cmovne eax, ecx
    ret
stub_cmpxchg_fix:
    mov eax, 14
    ret

    // fork(token rdi) -> child's pid, or 0 in the child with the area mapped, or a negative errno (in the child: it exits).
    // The child's area is not mapped before the Sentry has given it, and the stack is private: registers only.
    .globl stub_fork
stub_fork:
    push rbx
    mov rbx, rdi
    mov edi, {fork_flags}
    xor esi, esi
    xor edx, edx
    xor r10d, r10d
    xor r8d, r8d
    mov eax, 56
    syscall
    test rax, rax
    jnz 3f
    // prctl(PR_SET_PDEATHSIG, SIGKILL)
    mov eax, 157
    mov edi, 1
    mov esi, 9
    syscall
    mov eax, {birth_nr}
    mov rdi, rbx
    syscall
    cmp rax, {area_fd}
    jne 4f
    mov eax, 9
    movabs rdi, {area_base}
    mov esi, {area_size}
    mov edx, 3
    mov r10d, 0x11
    mov r8d, {area_fd}
    xor r9d, r9d
    syscall
    cmp rax, rdi
    jne 4f
    mov eax, 28
    mov edx, 10
    syscall
    test rax, rax
    jnz 4f
    mov eax, 3
    mov edi, {area_fd}
    syscall
    xor eax, eax
3:  pop rbx
    ret
4:  mov eax, 231
    mov edi, 113
    syscall
    hlt

    // thread(stack rdi, slot rsi, uc rdx, set_fs rcx, fs r8) -> tid or negative errno; the new thread goes to thread_main
    .globl stub_thread
stub_thread:
    push r12
    push r13
    push r14
    push r15
    mov r12, rsi
    mov r13, rdx
    mov r14, rcx
    mov r15, r8
    mov rsi, rdi
    mov edi, {thread_flags}
    xor edx, edx
    xor r10d, r10d
    xor r8d, r8d
    mov eax, 56
    syscall
    test rax, rax
    jz 5f
    pop r15
    pop r14
    pop r13
    pop r12
    ret
5:  mov rdi, r12
    mov rsi, r13
    mov rdx, r14
    mov rcx, r15
    xor ebp, ebp
    call stub_thread_main
    hlt

    // wait(args rdi, mask rsi) -> the futex call's result, or -ERESTARTSYS if it was not made.
    // Our interrupt is let in by the first call and kept out again by the last. An interrupt between the two is noted in
    // the cell by `on_signal`; one before the futex call has begun also sends us to stub_wait_abort, one within it makes it
    // return EINTR. So none is slept through.
    .globl stub_wait
    .globl stub_wait_begin
    .globl stub_wait_insn
    .globl stub_wait_abort
stub_wait:
    push rbx
    push r12
    push r13
    mov rbx, rdi
    mov r12, rsi
    mov eax, 14
    mov edi, 1
    xor edx, edx
    mov r10d, 8
stub_wait_begin:
    syscall
    mov rdi, [rbx]
    mov rsi, [rbx + 8]
    mov rdx, [rbx + 16]
    mov r10, [rbx + 24]
    mov r8, [rbx + 32]
    mov r9, [rbx + 40]
    mov eax, 202
stub_wait_insn:
    syscall
6:  mov r13, rax
    mov eax, 14
    xor edi, edi
    mov rsi, r12
    xor edx, edx
    mov r10d, 8
    syscall
    mov rax, r13
    pop r13
    pop r12
    pop rbx
    ret
stub_wait_abort:
    mov rax, -512
    jmp 6b

    // exit(gone rdi): after the store this thread uses no memory
    .globl stub_exit
stub_exit:
    mov dword ptr [rdi], 1
    xor edi, edi
    mov eax, 60
    syscall
    hlt
    "#,
    fork_flags = const FORK_FLAGS,
    thread_flags = const THREAD_FLAGS,
    birth_nr = const BIRTH_NR,
    area_fd = const AREA_FD,
    area_base = const AREA_BASE,
    area_size = const AREA_SIZE,
);

extern "C" {
    fn stub_resume(uc: *mut UContext) -> !;
    fn stub_copy(dst: u64, src: u64, len: u64) -> u64;
    fn stub_copy_insn();
    fn stub_copy_fix();
    fn stub_copy_str(dst: u64, src: u64, max: u64) -> u64;
    fn stub_copy_str_insn();
    fn stub_copy_str_fix();
    fn stub_cmpxchg(word: u64, old: u32, new: u32) -> i32;
    fn stub_cmpxchg_insn();
    fn stub_cmpxchg_fix();
    fn stub_fork(token: u64) -> i64;
    fn stub_thread(stack: u64, slot: u64, uc: u64, set_fs: u64, fs: u64) -> i64;
    fn stub_wait(args: *const u64, mask: *const u64) -> i64;
    fn stub_wait_begin();
    fn stub_wait_insn();
    fn stub_wait_abort();
    fn stub_exit(gone: *const core::sync::atomic::AtomicU32) -> !;
}

/// The kernel's `struct ucontext` up to what we use.
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
const G_RSI: usize = 9;
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

const SIGBUS: i32 = 7;
const SIGSEGV: i32 = 11;
const SIGSYS: i32 = 31;
const EINTR: i64 = 4;
const ERESTARTSYS: i64 = 512;
const EFAULT: i32 = 14;
const EINVAL: i32 = 22;

fn global() -> &'static Global {
    // SAFETY: mapped at boot, for good.
    unsafe { &*(GLOBAL_BASE as *const Global) }
}

fn cell_of(slot: u64) -> *mut Cell {
    (AREA_BASE + slot * SLOT_SIZE) as *mut Cell
}

/// The handler of all our signals.
unsafe extern "C" fn on_signal(sig: i32, info: *const SigInfo, uc: *mut UContext) {
    // SAFETY: the kernel made the frame on this slot's signal stack; both pointers lie in it.
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
        }
        let slot = (uc as u64).wrapping_sub(ALT_BASE) / ALT_SIZE % MAX_SLOTS as u64;
        let cell = cell_of(slot);
        let post = addr_of_mut!((*cell).post);
        let kind = match sig {
            SIGSYS => {
                let nr = if (*info).arch == AUDIT_ARCH_X86_64 { (*info).syscall as u32 as u64 } else { u64::MAX };
                (*post).regs[R_ORIG] = nr;
                if nr == HELLO_NR as u64 {
                    kind::BORN
                } else if nr == FUTEX_NR && global().native_futex.load(Relaxed) != 0 && is_private_futex((*uc).gregs[G_RSI]) {
                    match futex(cell, uc) {
                        Some(kind) => kind,
                        None => return,
                    }
                } else {
                    prefetch::prefetch(cell, nr, &(*uc).gregs);
                    kind::SYSCALL
                }
            }
            INT_SIGNAL => {
                if rip >> 24 == IMAGE_BASE >> 24 {
                    // All of our code keeps this signal out but `stub_wait`.
                    (*cell).irq.store(1, Relaxed);
                    if rip >= stub_wait_begin as *const () as u64 && rip <= stub_wait_insn as *const () as u64 {
                        (*uc).gregs[R_RIP] = stub_wait_abort as *const () as u64;
                    }
                    return;
                }
                (*post).regs[R_ORIG] = u64::MAX;
                kind::INTERRUPTED
            }
            _ => {
                (*post).regs[R_ORIG] = u64::MAX;
                (*post).signal = sig;
                (*post).code = (*info).code;
                (*post).addr = (*info).addr;
                (*post).trapno = (*uc).gregs[G_TRAPNO];
                (*post).error = (*uc).gregs[G_ERR];
                kind::FAULT
            }
        };
        post_context(cell, uc, kind);
        serve(cell, uc);
    }
}

/// Whether a futex operation (`rsi`) concerns this process alone, and is one that the filter lets through: WAIT, WAKE,
/// REQUEUE, CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET with FUTEX_PRIVATE_FLAG.
fn is_private_futex(op: u64) -> bool {
    let op = op as u32;
    op & 0x80 != 0 && op & !0x18f == 0 && (1 << (op & 0xf)) & 0b110_0011_1011 != 0
}

/// Makes the guest's futex call here. `None`: done, back to the guest. Else an interrupt came: with the call's number still
/// in `orig_rax` if the call has to be made again, with -1 there if its result is in `rax`.
unsafe fn futex(cell: *mut Cell, uc: *mut UContext) -> Option<u32> {
    // SAFETY: `cell` and `uc` are this thread's own; the call itself is the guest's, on its own memory.
    unsafe {
        let g = &mut (*uc).gregs;
        let args = [g[G_RDI], g[G_RSI], g[G_RDX], g[G_R10], g[G_R8], g[G_R9]];
        let waits = matches!(args[1] & 0xf, 0 | 9);
        if !waits {
            g[R_RAX] = syscall(sys::FUTEX, args).0 as u64;
            return None;
        }
        (*cell).irq.store(0, Relaxed);
        (*cell).state.store(state::WAITING, Relaxed);
        let mask = 1u64 << (INT_SIGNAL - 1);
        let r = stub_wait(args.as_ptr(), &mask);
        (*cell).state.store(state::RUNNING, Relaxed);
        let irq = (*cell).irq.load(Relaxed) != 0;
        if r == -ERESTARTSYS || (irq && r == -EINTR) {
            return Some(kind::INTERRUPTED);
        }
        g[R_RAX] = r as u64;
        if !irq {
            return None;
        }
        (*cell).post.regs[R_ORIG] = u64::MAX;
        Some(kind::INTERRUPTED)
    }
}

/// Copies the registers of the context into the cell and posts it.
unsafe fn post_context(cell: *mut Cell, uc: *mut UContext, kind: u32) {
    // SAFETY: `cell` and `uc` are this thread's own.
    unsafe {
        let post = addr_of_mut!((*cell).post);
        let mut i = 0;
        while i < R_ORIG {
            (*post).regs[i] = (*uc).gregs[i];
            i += 1;
        }
        (*post).fs_base = sys::fs_base();
        (*post).gs_base = sys::gs_base();
        post_kind(cell, kind);
    }
}

unsafe fn post_kind(cell: *mut Cell, kind: u32) {
    // SAFETY: `cell` is this thread's own.
    unsafe {
        (*cell).post.kind = kind;
        // A full barrier: the Sentry says "not polling" and then looks at the state once more.
        (*cell).state.swap(state::POSTED, SeqCst);
    }
    if global().polling.load(SeqCst) == 0 {
        let one = 1u64;
        syscall(sys::WRITE, [BELL_FD as u64, addr_of!(one) as u64, 8, 0, 0, 0]);
    }
}

unsafe fn wait_answer(cell: *mut Cell) {
    // SAFETY: `cell` is this thread's own.
    let word = unsafe { &(*cell).state };
    // Somebody who has just been woken takes too long to be waited for.
    let mut spins = if global().polling.load(Relaxed) != 0 { global().spin.load(Relaxed) } else { 0 };
    loop {
        let s = word.load(Acquire);
        if s == state::REPLY {
            break;
        }
        if s == state::POSTED {
            if spins > 0 {
                spins -= 1;
                core::hint::spin_loop();
                continue;
            }
            if word.compare_exchange(state::POSTED, state::ASLEEP, AcqRel, Relaxed).is_err() {
                continue;
            }
            syscall(sys::FUTEX, [addr_of!(*word) as u64, 0, state::ASLEEP as u64, 0, 0, 0]);
        } else {
            syscall(sys::FUTEX, [addr_of!(*word) as u64, 0, s as u64, 0, 0, 0]);
        }
    }
    word.store(state::RUNNING, Relaxed);
}

/// Waits for answers and carries them out until one says to go back to the guest.
unsafe fn serve(cell: *mut Cell, uc: *mut UContext) {
    // SAFETY: `cell` and `uc` are this thread's own.
    unsafe {
        loop {
            wait_answer(cell);
            let mode = (*cell).answer.mode;
            let nops = (*cell).answer.nops as usize;
            (*cell).post.efault = 0;
            let mut failed = 0;
            let mut i = 0;
            while i < nops && i < MAX_OPS {
                let op = addr_of!((*cell).ops[i]);
                match carry_out(cell, uc, op) {
                    Ok(false) => i += 1,
                    Ok(true) => {
                        // The forked child: nothing is left of the parent's answer.
                        failed = -1;
                        break;
                    }
                    Err(EFAULT) if (*op).code == op::COPY_OUT && mode == mode::RETURN => {
                        (*cell).post.efault = 1;
                        i += 1;
                    }
                    Err(e) => {
                        failed = e;
                        break;
                    }
                }
            }
            if failed == -1 {
                (*cell).post.tid = 0;
                post_context(cell, uc, kind::BORN);
                continue;
            }
            if failed != 0 {
                (*cell).post.op_index = i as u32;
                (*cell).post.op_errno = failed;
                post_kind(cell, kind::OP_FAILED);
                continue;
            }
            (*cell).ops_done.store((*cell).answer.seq, Release);
            match mode {
                mode::RETURN => {
                    let efault = (*cell).post.efault != 0;
                    (*uc).gregs[R_RAX] = if efault { -(EFAULT as i64) as u64 } else { (*cell).answer.regs[R_RAX] };
                    return;
                }
                mode::FULL => {
                    let mut r = 0;
                    while r < R_ORIG {
                        (*uc).gregs[r] = (*cell).answer.regs[r];
                        r += 1;
                    }
                    return;
                }
                mode::EXIT => stub_exit(addr_of!((*cell).gone)),
                _ => post_kind(cell, kind::OPS_DONE),
            }
        }
    }
}

/// Carries out one operation. `Ok(true)`: this is the child of a fork.
unsafe fn carry_out(cell: *mut Cell, uc: *mut UContext, op: *const OpSlot) -> Result<bool, i32> {
    // SAFETY: `cell` and `uc` are this thread's own, `op` lies in the cell. The operations themselves touch guest memory
    // only through `stub_copy` and through the kernel.
    unsafe {
        let a = (*op).args;
        match (*op).code {
            op::SYSCALL => {
                syscall(a[0] as u32, [a[1], a[2], a[3], a[4], a[5], a[6]]).check()?;
            }
            op::MAP_FD => {
                let fd = sys::receive_fd()?;
                let r = syscall(sys::MMAP, [a[0], a[1], a[2], a[3], fd, a[4]]).check();
                syscall(sys::CLOSE, [fd, 0, 0, 0, 0, 0]);
                r?;
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
            op::SAVE_FP => fp_save(uc, a[0])?,
            op::RESTORE_FP => fp_restore(uc, a[0])?,
            op::FORK => {
                let pid = stub_fork(a[0]);
                if pid == 0 {
                    return Ok(true);
                }
                SysResult(pid).check()?;
            }
            op::THREAD => {
                let tid = spawn_thread(uc, a[0], a[1], a[2])?;
                (*cell).post.tid = tid;
            }
            _ => return Err(EINVAL),
        }
        Ok(false)
    }
}

const FP_LEGACY: u64 = 512;
const FP_SW: u64 = 464;
const FP_MAGIC1: u32 = 0x4650_5853;
const XSTATE_HEADER: u64 = 64;

/// Bytes of the frame's floating point state, all included.
unsafe fn fp_size(fp: u64) -> u64 {
    // SAFETY: the kernel put at least the legacy area there.
    unsafe {
        if *((fp + FP_SW) as *const u32) != FP_MAGIC1 {
            return FP_LEGACY;
        }
        (*((fp + FP_SW + 4) as *const u32) as u64).clamp(FP_LEGACY, ALT_SIZE / 4)
    }
}

/// Makes the state that the frame will load the initial one.
unsafe fn fp_reset(fp: u64) {
    // SAFETY: as in `fp_size`.
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

unsafe fn fp_save(uc: *mut UContext, to: u64) -> Result<(), i32> {
    // SAFETY: the frame is this thread's own.
    unsafe {
        let fp = (*uc).fpstate;
        if stub_copy(to, fp, fp_size(fp)) != 0 {
            return Err(EFAULT);
        }
        fp_reset(fp);
        Ok(())
    }
}

/// Loads state from guest memory. The kernel's own marks in the frame stay; what the guest may choose is the legacy
/// area, which components are present (of those this host has), and their contents.
unsafe fn fp_restore(uc: *mut UContext, from: u64) -> Result<(), i32> {
    // SAFETY: the frame is this thread's own; copies from guest memory go through `stub_copy`.
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

/// Makes a host thread whose context is a copy of this one's, on the signal stack of `slot`.
unsafe fn spawn_thread(uc: *mut UContext, slot: u64, set_fs: u64, fs: u64) -> Result<i32, i32> {
    if slot >= MAX_SLOTS as u64 {
        return Err(EINVAL);
    }
    // SAFETY: the Sentry gives out a slot once at a time, so nothing else runs on that stack.
    unsafe {
        let base = ALT_BASE + slot * ALT_SIZE;
        let fp = (*uc).fpstate;
        let fp_len = fp_size(fp);
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
    // SAFETY: called once, by the new thread, on its own stack.
    unsafe {
        let stack = [ALT_BASE + slot * ALT_SIZE, 0, ALT_SIZE];
        syscall(sys::SIGALTSTACK, [addr_of!(stack) as u64, 0, 0, 0, 0, 0]);
        if set_fs != 0 {
            sys::set_fs_base(fs);
        }
        let cell = cell_of(slot);
        post_context(cell, uc, kind::BORN);
        serve(cell, uc);
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
    // SAFETY: the compiler passes valid ranges.
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
