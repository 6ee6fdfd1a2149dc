//! Host calls, and instructions that Rust does not offer.

use crate::abi::{AREA_FD, CTL_FD, MAX_FDS};
use core::arch::asm;
use core::ptr::{addr_of, addr_of_mut};

pub const WRITE: u32 = 1;
pub const CLOSE: u32 = 3;
pub const MMAP: u32 = 9;
pub const MUNMAP: u32 = 11;
pub const RT_SIGACTION: u32 = 13;
pub const RT_SIGPROCMASK: u32 = 14;
pub const SCHED_YIELD: u32 = 24;
pub const MREMAP: u32 = 25;
pub const MSYNC: u32 = 26;
pub const MADVISE: u32 = 28;
pub const RECVMSG: u32 = 47;
pub const CAPSET: u32 = 126;
pub const SIGALTSTACK: u32 = 131;
pub const PRCTL: u32 = 157;
pub const SETRLIMIT: u32 = 160;
pub const FUTEX: u32 = 202;
pub const EXIT_GROUP: u32 = 231;
pub const SECCOMP: u32 = 317;
pub const CLOSE_RANGE: u32 = 436;

pub struct SysResult(pub i64);

impl SysResult {
    pub fn check(self) -> Result<u64, i32> {
        if self.0 < 0 && self.0 > -4096 {
            Err(-self.0 as i32)
        } else {
            Ok(self.0 as u64)
        }
    }
}

pub fn syscall(nr: u32, a: [u64; 6]) -> SysResult {
    let r: i64;
    // SAFETY: `syscall` clobbers rax, rcx and r11, all declared. The effect of the call on this process's memory is
    // the responsibility of the caller; the filter bounds the effect on the rest of the host.
    unsafe {
        asm!("syscall", inout("rax") nr as u64 => r, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3],
             in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _);
    }
    SysResult(r)
}

/// The FS base. The stub requires FSGSBASE; `Systrap::new` checks for it.
pub fn fs_base() -> u64 {
    let v;
    // SAFETY: reads a register.
    unsafe { asm!("rdfsbase {}", out(reg) v, options(nomem, nostack)) };
    v
}

/// The core that this thread runs on. Linux stores its number in a segment limit, for the vDSO.
pub fn core() -> u32 {
    const CPU_NODE: u32 = 0x7b;
    const NUMBER: u32 = 0xfff;
    let limit: u32;
    // SAFETY: reads a descriptor's limit.
    unsafe { asm!("lsl {0:e}, {1:e}", out(reg) limit, in(reg) CPU_NODE, options(nomem, nostack)) };
    limit & NUMBER
}

/// A number that varies: low bits of the time stamp counter.
pub fn cycles() -> u32 {
    let low: u32;
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") _, options(nomem, nostack)) };
    low >> 6
}

pub fn gs_base() -> u64 {
    let v;
    // SAFETY: reads a register.
    unsafe { asm!("rdgsbase {}", out(reg) v, options(nomem, nostack)) };
    v
}

/// The Sentry checks that the value is a user address; a non-canonical one would only kill this process.
pub fn set_fs_base(v: u64) {
    // SAFETY: the stub itself uses no FS-relative memory.
    unsafe { asm!("wrfsbase {}", in(reg) v, options(nomem, nostack)) };
}

pub fn set_gs_base(v: u64) {
    // SAFETY: the stub itself uses no GS-relative memory.
    unsafe { asm!("wrgsbase {}", in(reg) v, options(nomem, nostack)) };
}

#[repr(C)]
struct MsgHdr {
    name: u64,
    namelen: u64,
    iov: *const [u64; 2],
    iovlen: u64,
    control: *mut Control,
    controllen: u64,
    flags: u64,
}

/// A `cmsghdr` (len u64, level i32, type i32) and its descriptors.
type Control = [u64; 2 + MAX_FDS / 2];

/// Descriptors received with a control message.
pub struct Fds {
    control: Control,
}

impl Fds {
    pub const fn none() -> Self {
        Fds { control: [0; 2 + MAX_FDS / 2] }
    }

    /// Takes the next message from the control socket.
    pub fn receive(&mut self) -> Result<(), i32> {
        let mut byte = 0u64;
        let iov = [addr_of_mut!(byte) as u64, 8];
        let mut msg = MsgHdr {
            name: 0,
            namelen: 0,
            iov: addr_of!(iov),
            iovlen: 1,
            control: addr_of_mut!(self.control),
            controllen: core::mem::size_of::<Control>() as u64,
            flags: 0,
        };
        syscall(RECVMSG, [CTL_FD as u64, addr_of_mut!(msg) as u64, 0, 0, 0, 0]).check().map(drop)
    }

    pub fn get(&self, i: u64) -> Result<u64, i32> {
        // SAFETY: an element of our own array; volatile, since the kernel has written to it.
        let len = unsafe { addr_of!(self.control[0]).read_volatile() };
        if i >= MAX_FDS as u64 || len < 16 + 4 * (i + 1) {
            return Err(EBADF);
        }
        // SAFETY: `i` is below MAX_FDS, so the descriptor lies in our own array; volatile, since the kernel has
        // written to it.
        let fd = unsafe { addr_of!(self.control[2]).cast::<i32>().add(i as usize).read_volatile() };
        if fd < AREA_FD {
            return Err(EBADF);
        }
        Ok(fd as u64)
    }

    pub fn close(&mut self) {
        let mut i = 0;
        while let Ok(fd) = self.get(i) {
            syscall(CLOSE, [fd, 0, 0, 0, 0, 0]);
            i += 1;
        }
        self.control[0] = 0;
    }
}

const EBADF: i32 = 9;
