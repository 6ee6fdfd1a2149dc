//! Assembly routines for: copies whose faults `on_signal` fixes up at a named instruction (`*_insn` to `*_fix`), the
//! start and exit of threads around the change or loss of the stack, and a wait that an interrupt must find at exact
//! addresses. All follow the C calling convention; the comment above each label lists its arguments.

use crate::abi::{FORK_FLAGS, THREAD_FLAGS};
use crate::UContext;

core::arch::global_asm!(
    r#"
    .globl stub_restorer
stub_restorer:
    mov eax, 15
    syscall
    hlt

    // resume(uc rdi): continues in that context, never returns
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

    // copy_str(dst rdi, src rsi, max rdx) -> bytes copied, including the NUL if there is one
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

    // fork(token rdi) -> child's pid, 0 in the child with its area mapped, or negative errno (the child exits instead).
    // The child has no area until the Sentry provides one; its stack is private.
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
    mov rdi, rbx
    call stub_fork_child
    xor eax, eax
3:  pop rbx
    ret

    // thread(stack rdi, slot rsi, uc rdx, set_fs rcx, fs r8) -> tid or negative errno; the thread runs stub_thread_main
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
    // The first call unblocks our interrupt, the last one blocks it again. For an interrupt between the two,
    // `on_signal` records it in the cell. If it comes before the futex call has begun, it also continues at
    // stub_wait_abort; if it comes within the call, that returns EINTR. So no interrupt is missed.
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
    mov eax, [rbx + 48]
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

    // exit(gone rdi, tid_word rsi): after the store this thread uses no memory. The kernel clears the word (0: none)
    // and wakes a waiter on it once the thread has left the address space.
    .globl stub_exit
stub_exit:
    mov r12, rdi
    mov rdi, rsi
    mov eax, 218
    syscall
    mov dword ptr [r12], 1
    xor edi, edi
    mov eax, 60
    syscall
    hlt
    "#,
    fork_flags = const FORK_FLAGS,
    thread_flags = const THREAD_FLAGS,
);

extern "C" {
    pub fn stub_resume(uc: *mut UContext) -> !;
    pub fn stub_copy(dst: u64, src: u64, len: u64) -> u64;
    pub fn stub_copy_insn();
    pub fn stub_copy_fix();
    pub fn stub_copy_str(dst: u64, src: u64, max: u64) -> u64;
    pub fn stub_copy_str_insn();
    pub fn stub_copy_str_fix();
    pub fn stub_cmpxchg(word: u64, old: u32, new: u32) -> i32;
    pub fn stub_cmpxchg_insn();
    pub fn stub_cmpxchg_fix();
    pub fn stub_fork(token: u64) -> i64;
    pub fn stub_thread(stack: u64, slot: u64, uc: u64, set_fs: u64, fs: u64) -> i64;
    pub fn stub_wait(args: *const u64, mask: *const u64) -> i64;
    pub fn stub_wait_begin();
    pub fn stub_wait_insn();
    pub fn stub_wait_abort();
    pub fn stub_exit(gone: *const core::sync::atomic::AtomicU32, tid_word: u64) -> !;
}
