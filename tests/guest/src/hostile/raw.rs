//! The stub from the guest's side: the address of its code, how to jump there, and how to come back.

use libc::*;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::sync::OnceLock;

/// Addresses of the stub's parts in every guest process; they are not secret.
pub const IMAGE: u64 = 0x7fff_0000_0000;
pub const TEXT: u64 = 0x7fff_0000_1000;
pub const VDSO: u64 = 0x7fff_1000_0000;
pub const GLOBAL: u64 = 0x7fff_2000_0000;
pub const AREA: u64 = 0x7fff_4000_0000;
pub const SLOT: u64 = 0x2_0000;
pub const ALT: u64 = 0x7fff_8000_0000;
pub const ALT_SIZE: u64 = 0x8000;
pub const GUEST_MAX: u64 = 0x7ffe_0000_0000;

std::arch::global_asm!(
    r#"
    .pushsection .bss
    .balign 16
hostile_sp: .skip 16
    .popsection

    // (address rdi, registers rsi: rax rdi rsi rdx r10 r8 r9, stack rdx) -> rax
    .globl hostile_jump
hostile_jump:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    pushfq
    mov [rip + hostile_sp], rsp
    mov r11, rdi
    mov rsp, rdx
    xor ebp, ebp
    xor ebx, ebx
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
    mov rax, [rsi]
    mov rdi, [rsi + 8]
    mov rdx, [rsi + 24]
    mov r10, [rsi + 32]
    mov r8, [rsi + 40]
    mov r9, [rsi + 48]
    mov rsi, [rsi + 16]
    mov rcx, r11
    jmp r11

    // The target of returns and signals.
    .globl hostile_land
hostile_land:
    mov rsp, [rip + hostile_sp]
    popfq
    cld
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
    "#
);

extern "C" {
    fn hostile_jump(to: u64, regs: *const [u64; 7], stack: *mut u64) -> i64;
    fn hostile_land();
}

/// The address that a jump may return to.
pub fn landing() -> u64 {
    hostile_land as *const () as u64
}

/// The last signal that led to the landing.
pub static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Set while a [`jump`] is in progress.
static JUMPED: AtomicBool = AtomicBool::new(false);

extern "C" fn landed(sig: i32, _: *mut siginfo_t, uc: *mut c_void) {
    SIGNAL.store(sig, SeqCst);
    if !JUMPED.load(SeqCst) {
        // A delayed consequence: this process cannot continue.
        unsafe { _exit(3) }
    }
    let uc: *mut ucontext_t = uc.cast();
    unsafe {
        let g = &mut (*uc).uc_mcontext.gregs;
        g[REG_RIP as usize] = hostile_land as *const () as i64;
        // Clears the trap and direction flags.
        g[REG_EFL as usize] &= !0x500;
        g[REG_CSGSFS as usize] = g[REG_CSGSFS as usize] & !0xffff | 0x33;
    }
}

/// Makes signals of this process return from a [`jump`].
pub unsafe fn arm() {
    let stack = stack_t { ss_sp: crate::t::anon(1 << 17, crate::t::RW).cast(), ss_flags: 0, ss_size: 1 << 17 };
    sigaltstack(&stack, std::ptr::null_mut());
    for sig in [SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS] {
        crate::t::on(sig, landed as *const () as usize, SA_SIGINFO | SA_ONSTACK | SA_NODEFER);
    }
}

const STACK: usize = 1 << 16;
static mut STACK_AT: *mut u64 = std::ptr::null_mut();

/// Jumps to `to`; returns `rax` when the code there returns or raises a signal. `regs`: rax and the six arguments.
/// Single-threaded only.
pub unsafe fn jump(to: u64, regs: [u64; 7]) -> i64 {
    if STACK_AT.is_null() {
        STACK_AT = crate::t::anon(STACK, crate::t::RW).cast();
    }
    let words = std::slice::from_raw_parts_mut(STACK_AT, STACK / 8);
    // From the stack pointer upwards every word is a return address.
    words[STACK / 16..].fill(landing());
    SIGNAL.store(0, SeqCst);
    JUMPED.store(true, SeqCst);
    let r = hostile_jump(to, &regs, STACK_AT.add(STACK / 16));
    JUMPED.store(false, SeqCst);
    r
}

/// Jumps to arbitrary bytes at `to` like [`jump`], without a particular call.
pub unsafe fn wander(to: u64) -> i64 {
    jump(to, [39, 0, 0, 0, 0, 0, 0])
}

/// The stub's current text; empty on bare Linux. The first call needs an [`arm`]ed process.
pub fn text() -> &'static [u8] {
    static LEN: OnceLock<usize> = OnceLock::new();
    let len = *LEN.get_or_init(|| {
        let mut end = TEXT;
        while unsafe { readable(end) } {
            end += 0x1000;
        }
        (end - TEXT) as usize
    });
    // SAFETY: the text is immutable to the guest, which is one of the claims under test.
    unsafe { std::slice::from_raw_parts(TEXT as *const u8, len) }
}

/// Whether a load from an address succeeds; needs an [`arm`]ed process.
pub unsafe fn readable(at: u64) -> bool {
    let code: *const u8 = load_byte();
    jump(code as u64, [0, at, 0, 0, 0, 0, 0]);
    SIGNAL.load(SeqCst) == 0
}

/// Whether a store to an address succeeds.
pub unsafe fn writable(at: u64) -> bool {
    jump(store_byte() as u64, [0, at, 0, 0, 0, 0, 0]);
    SIGNAL.load(SeqCst) == 0
}

std::arch::global_asm!(
    r#"
hostile_load:
    mov al, [rdi]
    ret
hostile_store:
    mov al, [rdi]
    mov [rdi], al
    ret
    .globl hostile_bytes
hostile_bytes:
    lea rax, [rip + hostile_load]
    lea rdx, [rip + hostile_store]
    ret
    "#
);

#[repr(C)]
struct Two(*const u8, *const u8);
extern "C" {
    fn hostile_bytes() -> Two;
}
fn load_byte() -> *const u8 {
    unsafe { hostile_bytes().0 }
}
fn store_byte() -> *const u8 {
    unsafe { hostile_bytes().1 }
}

/// Addresses of `syscall` instructions in the stub, and of bytes that look like one.
pub fn sites() -> Vec<u64> {
    find(&[0x0f, 0x05])
}

pub fn find(bytes: &[u8]) -> Vec<u64> {
    let text = text();
    (0u64..).zip(text.windows(bytes.len())).filter(|(_, w)| *w == bytes).map(|(i, _)| TEXT + i).collect()
}

/// The host's kernel, reached through the stub's `syscall; ret`.
#[derive(Clone, Copy)]
pub struct Gate(u64);

impl Gate {
    pub fn new() -> Gate {
        Gate(*find(&[0x0f, 0x05, 0xc3]).first().expect("the stub has a `syscall; ret`"))
    }

    pub unsafe fn call(self, nr: c_long, a: [u64; 6]) -> i64 {
        let r: i64;
        std::arch::asm!("call {}", in(reg) self.0, inout("rax") nr => r, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _);
        r
    }
}
