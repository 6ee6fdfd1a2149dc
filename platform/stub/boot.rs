//! From exec to zygote: strips this process of everything that a guest's process must not have, installs the handlers
//! and the filter, and enters the SIGSYS handler for good.
//!
//! The Sentry started this process with its descriptors (abi.rs) and with the filter program in the first slot's
//! staging buffer. If a step fails, the process exits with the number of the step as its status.

use crate::abi::*;
use crate::sys::{self, syscall, SysResult};
use crate::on_signal;
use core::arch::global_asm;
use core::ptr::addr_of;

global_asm!(
    r#"
    .globl _start
_start:
    mov rdi, rsp
    lea rsp, [rip + boot_stack + 16384]
    xor ebp, ebp
    call stub_boot
    hlt

    .pushsection .bss
    .balign 16
boot_stack:
    .skip 16384
    .popsection

    // hello(vdso rdi, len rsi, listener rdx): a call that the filter traps
    .globl stub_hello
stub_hello:
    mov eax, {hello}
    syscall
    hlt
    "#,
    hello = const HELLO_NR,
);

extern "C" {
    fn stub_restorer();
    fn stub_hello(vdso: u64, len: u64, listener: u64) -> !;
}

fn must(step: u64, r: SysResult) -> u64 {
    match r.check() {
        Ok(v) => v,
        Err(_) => {
            syscall(sys::EXIT_GROUP, [step, 0, 0, 0, 0, 0]);
            loop {}
        }
    }
}

const PAGE: u64 = 4096;
const TASK_END: u64 = 0x7fff_ffff_f000;

#[no_mangle]
unsafe extern "C" fn stub_boot(sp: *const u64) -> ! {
    // SAFETY: called once by `_start`, on the only thread, before any guest code exists; `sp` is the initial stack
    // pointer, below which exec has laid out argc, argv, the environment and auxv. The unmapped ranges exclude the
    // image.
    unsafe {
        let vdso = auxv_vdso(sp);
        // MAP_SHARED | MAP_FIXED
        must(1, syscall(sys::MMAP, [AREA_BASE, AREA_SIZE, 3, 0x11, AREA_FD as u64, 0]));
        must(2, syscall(sys::MADVISE, [AREA_BASE, AREA_SIZE, 10, 0, 0, 0]));
        must(3, syscall(sys::MMAP, [GLOBAL_BASE, PAGE, 1, 0x11, GLOBAL_FD as u64, 0]));
        // MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE
        must(4, syscall(sys::MMAP, [ALT_BASE, ALT_END - ALT_BASE, 3, 0x4032, u64::MAX, 0]));
        must(5, syscall(sys::CLOSE_RANGE, [AREA_FD as u64, u32::MAX as u64, 0, 0, 0, 0]));

        // From here on the initial stack, argv and the environment are gone.
        let stack_page = sp as u64 & !(PAGE - 1);
        unmap_run(stack_page);
        let (vdso, vdso_len) = move_vdso(vdso);
        let keep =
            [(IMAGE_BASE, IMAGE_END), (VDSO_BASE, VDSO_END), (GLOBAL_BASE, GLOBAL_BASE + PAGE),
             (AREA_BASE, AREA_BASE + AREA_SIZE), (ALT_BASE, ALT_END)];
        let mut at = 0;
        let mut i = 0;
        while i < keep.len() {
            must(6, syscall(sys::MUNMAP, [at, keep[i].0 - at, 0, 0, 0, 0]));
            at = keep[i].1;
            i += 1;
        }
        must(7, syscall(sys::MUNMAP, [at, TASK_END - at, 0, 0, 0, 0]));

        // RLIMIT_CORE
        let zero = [0u64; 2];
        must(8, syscall(sys::SETRLIMIT, [4, addr_of!(zero) as u64, 0, 0, 0, 0]));
        // capset: none (_LINUX_CAPABILITY_VERSION_3)
        let header = [0x2008_0522u32, 0];
        let caps = [0u32; 6];
        must(9, syscall(sys::CAPSET, [addr_of!(header) as u64, addr_of!(caps) as u64, 0, 0, 0, 0]));
        // PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG
        must(10, syscall(sys::PRCTL, [38, 1, 0, 0, 0, 0]));
        must(11, syscall(sys::PRCTL, [1, 9, 0, 0, 0, 0]));

        signals();
        let stack = [ALT_BASE, 0, ALT_SIZE];
        must(14, syscall(sys::SIGALTSTACK, [addr_of!(stack) as u64, 0, 0, 0, 0, 0]));

        // The filter: a count of instructions, then the instructions.
        let stage = AREA_BASE + STAGE_OUT;
        let count = *(stage as *const u64);
        let prog = [count & 0xffff, stage + 8];
        // SECCOMP_SET_MODE_FILTER, SPEC_ALLOW | NEW_LISTENER
        sys::set_gs_base(AREA_BASE);
        crate::enter::own_cell(0);
        let listener = must(15, syscall(sys::SECCOMP, [1, 12, addr_of!(prog) as u64, 0, 0, 0]));
        stub_hello(vdso, vdso_len, listener)
    }
}

/// Installs one handler for all signals. While it runs, all signals are blocked but SIGSEGV and SIGBUS. Outside of it
/// only the stub's signals are open, so that no signal from outside the sandbox (a terminal's SIGINT) reaches a
/// guest's process.
unsafe fn signals() {
    const SIGNALS: [u64; 7] = [4, 5, 7, 8, 10, 11, 31];
    let soft: u64 = (1 << (11 - 1)) | (1 << (7 - 1));
    // SA_SIGINFO | SA_ONSTACK | SA_RESTORER
    let flags = 4 | 0x0800_0000 | 0x0400_0000u64;
    let action = [on_signal as *const () as u64, flags, stub_restorer as *const () as u64, !soft];
    let mut open = 0;
    let mut i = 0;
    while i < SIGNALS.len() {
        // SA_NODEFER for the two that may nest.
        let mut action = action;
        if SIGNALS[i] == 11 || SIGNALS[i] == 7 {
            action[1] |= 0x4000_0000;
        }
        must(12, syscall(sys::RT_SIGACTION, [SIGNALS[i], addr_of!(action) as u64, 0, 8, 0, 0]));
        open |= 1 << (SIGNALS[i] - 1);
        i += 1;
    }
    let mask: u64 = !open;
    must(13, syscall(sys::RT_SIGPROCMASK, [2, addr_of!(mask) as u64, 0, 8, 0, 0]));
}

/// Returns AT_SYSINFO_EHDR.
unsafe fn auxv_vdso(sp: *const u64) -> u64 {
    // SAFETY: `sp` is the initial stack pointer; exec lays out argc, argv, NULL, envp, NULL, auxv (with an end mark).
    unsafe {
        let mut p = sp.add(1 + *sp as usize + 1);
        while *p != 0 {
            p = p.add(1);
        }
        p = p.add(1);
        while *p != 0 {
            if *p == 33 {
                return *p.add(1);
            }
            p = p.add(2);
        }
        0
    }
}

/// Whether a page is mapped, according to `msync`; needs no file of /proc.
fn mapped(page: u64) -> bool {
    page < TASK_END && syscall(sys::MSYNC, [page, PAGE, 1, 0, 0, 0]).0 == 0
}

/// Unmaps the run of mapped pages around `page`. If the vDSO is adjacent, it is unmapped, too, and the guest has
/// none.
fn unmap_run(page: u64) {
    let mut end = page;
    while mapped(end) {
        end += PAGE;
    }
    let mut start = page;
    while mapped(start - PAGE) {
        start -= PAGE;
    }
    must(16, syscall(sys::MUNMAP, [start, end - start, 0, 0, 0, 0]));
}

/// Moves vvar and vDSO to their fixed place; returns the vDSO's new address (0: there is none).
///
/// The kernel moves such a mapping only as a whole, and the boundaries between them are unknown. So this tries all
/// lengths, the longest first; only the right one succeeds.
fn move_vdso(vdso: u64) -> (u64, u64) {
    if vdso == 0 || !mapped(vdso) {
        return (0, 0);
    }
    let mut start = vdso;
    while mapped(start - PAGE) {
        start -= PAGE;
    }
    let mut end = vdso;
    while mapped(end) {
        end += PAGE;
    }
    if end - start > VDSO_END - VDSO_BASE {
        return (0, 0);
    }
    let mut at = start;
    while at < end {
        let mut len = end - at;
        loop {
            // MREMAP_MAYMOVE | MREMAP_FIXED
            let to = VDSO_BASE + (at - start);
            if syscall(sys::MREMAP, [at, len, len, 3, to, 0]).0 as u64 == to {
                break;
            }
            len -= PAGE;
            if len == 0 {
                // Undo the moves so far: without its data pages the code is useless.
                syscall(sys::MUNMAP, [VDSO_BASE, VDSO_END - VDSO_BASE, 0, 0, 0, 0]);
                return (0, 0);
            }
        }
        at += len;
    }
    (VDSO_BASE + (vdso - start), end - vdso)
}
