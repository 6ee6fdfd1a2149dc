//! What the Sentry and the stub agree on: the fixed addresses, the hand-off cell and its states. Compiled into both.
//!
//! # The hand-off
//! `Cell::state` is the only word that both sides wait on.
//!
//! ```text
//!   RUNNING --stub: xchg--> POSTED --Sentry: xchg--> REPLY (the stub goes on, and posts the next time)
//!                             |  \
//!          stub, tired of     |   \ Sentry: cmpxchg ("no answer will come soon")
//!          spinning: cmpxchg  v    v
//!                          ASLEEP  PARKED     (the stub waits in futex(2); the Sentry's REPLY wakes it)
//! ```
//!
//! Everything in a cell can be changed by the guest at any moment. The Sentry knows by its own records whether a thread
//! runs; the words here only tell it when to look, and each is read once.
#![allow(dead_code)]

use core::sync::atomic::AtomicU32;

/// The high half of every address that belongs to the stub.
pub const STUB_HI: u32 = 0x7fff;
/// The stub's ELF image (headers); its text begins one page further on.
pub const IMAGE_BASE: u64 = 0x7fff_0000_0000;
/// Where patched calls go to: the first instruction of the text.
pub const ENTER_AT: u64 = IMAGE_BASE + 0x1000;
/// End of the room for the image.
pub const IMAGE_END: u64 = 0x7fff_0100_0000;
/// Where the host's vvar and vDSO pages are moved to.
pub const VDSO_BASE: u64 = 0x7fff_1000_0000;
pub const VDSO_END: u64 = 0x7fff_1010_0000;
/// The page that the Sentry writes and all stubs read.
pub const GLOBAL_BASE: u64 = 0x7fff_2000_0000;
/// Where on that page the second filter is (`struct sock_fprog`), which a process gets when its guest sets one of its own.
pub const STRICT_AT: u64 = GLOBAL_BASE + 256;
/// The hand-off area of this process: `MAX_SLOTS` times `SLOT_SIZE`. The Sentry maps a segment of it when its first slot is needed.
pub const AREA_BASE: u64 = 0x7fff_4000_0000;
pub const AREA_SIZE: u64 = (MAX_SLOTS as u64) * SLOT_SIZE;
/// Signal stacks, one per slot; private memory, so that a forked child goes on upon its copy.
pub const ALT_BASE: u64 = 0x7fff_8000_0000;
pub const ALT_SIZE: u64 = 0x8000;
pub const ALT_END: u64 = ALT_BASE + (MAX_SLOTS as u64) * ALT_SIZE;

/// Guest threads per process, in segments.
pub const MAX_SLOTS: usize = 2 * SEGMENT_SLOTS;
pub const SEGMENT_SLOTS: usize = 2048;
pub const SLOT_SIZE: u64 = 0x2_0000;
/// Bytes copied in by the stub ahead of time.
pub const STAGE_IN: u64 = 0x1_000;
pub const STAGE_IN_MAX: usize = 0x2000;
/// Bytes to be copied out by the stub.
pub const STAGE_OUT: u64 = 0x1_0000;
pub const STAGE_OUT_MAX: usize = 0x1_0000;
pub const MAX_OPS: usize = 40;
/// Descriptors that come with the operations of one answer.
pub const MAX_FDS: usize = 8;

/// Descriptors of every stub.
pub const DOORBELL_FD: i32 = 0;
/// The doorbells of workers: the first of [`DOORBELLS`], each for the cores with that number modulo [`DOORBELLS`].
pub const DOORBELLS_FD: i32 = 1;
pub const DOORBELLS: u32 = 8;
/// The control socket. Not 0, which a birth call gives that was cut short.
pub const CTL_FD: i32 = DOORBELLS_FD + DOORBELLS as i32;
/// Used for a moment at birth.
pub const AREA_FD: i32 = CTL_FD + 1;
/// Only the zygote has it, before its filter is in place.
pub const GLOBAL_FD: i32 = AREA_FD + 1;

/// The system call number that the filter hands to the Sentry by user notification: a child's request for its
/// descriptors, with the token of its birth as argument. No kernel has such a call.
pub const FORK_HANDSHAKE_NR: u32 = 0x4e4f;
/// The one that the stub makes to enter its own SIGSYS handler, when a fresh process has been set up.
pub const HELLO_NR: u32 = 0x4e4e;
/// The one that the stub makes on a patched call's way when it needs a signal frame after all (see `enter.rs`).
pub const FRAME_NR: u32 = 0x4e4d;
/// The one that reports an interrupt which came while the stub was answering by itself.
pub const IRQ_NR: u32 = 0x4e4c;
/// `futex`.
pub const FUTEX_NR: u64 = 202;
/// `futex_waitv`; made by the stub only when the Sentry says so.
pub const FUTEX_WAITV_NR: u64 = 449;
pub const SCHED_YIELD_NR: u64 = 24;

/// Trampoline pages: pages in reach of patched text, divided into slots of code, one for each patched site. The first slot holds
/// the address of `stub_enter` instead. `src/patch.rs` writes them; the stub reads where it was called from.
pub const TRAMPOLINE_SIZE: u64 = 0x1_0000;
pub const TRAMPOLINE_SLOT: u64 = 64;
/// Offset in a slot of the code behind the call, which begins with `lea rcx, [rip + d32]`: the address after the guest's
/// `syscall` instruction. Before it lies a `syscall` instruction for callers without a cell.
pub const SLOT_AFTER: u64 = 24;
/// The last word of each slot in use.
pub const SLOT_MARK_AT: u64 = 56;
pub const SLOT_MARK: u64 = 0x7570_cbd1_9a4e_03f5;

/// The signal that interrupts a guest thread (SIGUSR1).
pub const INT_SIGNAL: i32 = 10;

pub mod state {
    /// As REPLY, but that the stub has said so: after a futex call, and before its first post.
    pub const RUNNING: u32 = 0;
    pub const POSTED: u32 = 1;
    pub const ASLEEP: u32 = 2;
    pub const PARKED: u32 = 3;
    pub const REPLY: u32 = 4;
    /// Running, but asleep in a futex call of the guest's that the stub makes itself.
    pub const WAITING: u32 = 5;
}

/// Why the stub posted.
pub mod kind {
    pub const SYSCALL: u32 = 1;
    pub const FAULT: u32 = 2;
    pub const INTERRUPTED: u32 = 3;
    pub const OPS_DONE: u32 = 4;
    pub const OP_FAILED: u32 = 5;
    /// The zygote is ready.
    pub const BORN: u32 = 6;
    /// A system call from a patched site.
    pub const CALL: u32 = 7;
}

/// What the stub does after the operations.
pub mod mode {
    pub const RETURN: u32 = 1;
    pub const FULL: u32 = 2;
    pub const STAY: u32 = 3;
    /// The thread ends, also if an operation failed; `rax` is the word that the kernel is to clear then, or 0.
    pub const EXIT: u32 = 4;
    /// Back to the guest with the result of its `futex` call, which the stub makes now.
    pub const NATIVE: u32 = 5;
    /// The process ends.
    pub const EXIT_GROUP: u32 = 6;
}

pub mod op {
    /// `args[0]` is a host call number, the rest are its arguments.
    pub const SYSCALL: u64 = 1;
    /// addr, len, prot, flags, offset, which of the answer's descriptors.
    pub const MAP_FD: u64 = 2;
    /// addr, len, offset into the staging buffer.
    pub const COPY_OUT: u64 = 3;
    pub const SET_FS: u64 = 4;
    pub const SET_GS: u64 = 5;
    pub const SAVE_FP: u64 = 6;
    pub const RESTORE_FP: u64 = 7;
    /// args: token. The parent tells the child's number in `post.tid`. The new process waits for an answer in the same slot
    /// of its own area, where the Sentry has set the state to PARKED beforehand, or answered already.
    pub const FORK: u64 = 8;
    /// args: slot, whether to set FS, FS base. The parent tells the new thread's number in `post.tid`; the new thread waits for
    /// an answer in its slot, as a new process does.
    pub const THREAD: u64 = 9;
    /// addr, old, new: `EAGAIN` when the 32-bit word is not `old`.
    pub const COMPARE_EXCHANGE: u64 = 10;
}

/// General registers, in the order of the `ucontext` (`REG_R8` … `REG_EFL`), then the system call number.
pub const NREGS: usize = 19;
pub const R_R11: usize = 3;
pub const R_RSI: usize = 9;
pub const R_RAX: usize = 13;
pub const R_RCX: usize = 14;
pub const R_RSP: usize = 15;
pub const R_RIP: usize = 16;
pub const R_EFL: usize = 17;
pub const R_ORIG: usize = 18;

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct OpSlot {
    pub code: u64,
    pub args: [u64; 7],
}

/// What the stub posts: three cache lines, since each is a transfer between two cores.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Post {
    pub kind: u32,
    pub tid: i32,
    pub regs: [u64; NREGS],
    pub fs_base: u64,
    pub gs_base: u64,
    /// Where the prefetched bytes came from; `pre_len` bytes at `STAGE_IN`.
    pub pre_addr: u64,
    pub pre_len: u64,
}
const _: () = assert!(core::mem::size_of::<Post>() == 192);

/// More of a post, for faults and for operations that failed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub signal: i32,
    pub code: i32,
    pub addr: u64,
    pub trapno: u64,
    pub error: u64,
    pub op_index: u32,
    pub op_errno: i32,
}

/// What the Sentry answers; beside the state word, so that they come together. With [`mode::FULL`], `Cell::regs` too.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub mode: u32,
    pub nops: u32,
    pub seq: u32,
    /// How many descriptors wait in the control socket, in one message. They are closed when the operations are done.
    pub nfds: u32,
    pub rax: u64,
}

#[repr(C, align(64))]
pub struct Cell {
    pub state: AtomicU32,
    pub answer: Answer,
    /// Which core the stub was on when it last rang the doorbell.
    pub core: AtomicU32,
    pub pad: [u32; 7],
    /// The `seq` of the last answer whose operations have all been carried out.
    pub ops_done: AtomicU32,
    /// Set by the last instruction but one of a thread that exits: its signal stack is free.
    pub gone: AtomicU32,
    /// The stub's own: an interrupt came while it was on a patched call's way or in a futex call.
    pub irq: AtomicU32,
    /// `CELL_MAGIC`: by this a patched call knows that GS points to a cell.
    pub magic: u32,
    /// Not 0: the Sentry wants to see every call (the guest has set a seccomp filter).
    pub filtered: AtomicU32,
    /// The stub's own: how many calls that it makes itself came by a signal.
    pub trapped: u16,
    /// The stub's own: it rang for its last post.
    pub rang: u16,
    /// The stub's own: the guest's list of robust futexes, which the Sentry reads when the thread ends.
    pub robust: u64,
    /// Where a patched call goes back to.
    pub ret: u64,
    /// Top of this slot's signal stack.
    pub stack_top: u64,
    /// Counts of calls that the stub answered by itself, and made itself.
    pub answered: u64,
    pub native: u64,
    pub post: Post,
    pub report: Report,
    /// All of the guest's registers, as the answer wants them.
    pub regs: [u64; NREGS],
    pub ops: [OpSlot; MAX_OPS],
    /// Answers known in advance, by system call number, each bit inverted; 0: ask the Sentry.
    pub answers: [AtomicU32; ANSWERS],
}
pub const CELL_MAGIC: u32 = 0x5ce1_1a7e;
/// Numbers below this can have an answer in the cell.
pub const ANSWERS: usize = 192;
const _: () = assert!(core::mem::size_of::<Cell>() <= STAGE_IN as usize);
// What one side writes in a call is not in a line with what the other writes.
const _: () = assert!(core::mem::offset_of!(Cell, ops_done) == 64 && core::mem::offset_of!(Cell, post) == 128);

#[repr(C)]
pub struct Global {
    /// Not 0: some thread of the Sentry looks at the cells; no doorbell is needed.
    pub polling: AtomicU32,
    /// How often a stub looks for its answer before it sleeps.
    pub spin: AtomicU32,
    /// Not 0: stubs make the guest's private futex calls themselves; 2: the Sentry wants to hear of some that are trapped.
    pub native_futex: AtomicU32,
    /// For which cores (modulo [`DOORBELLS`]) a worker of the Sentry's waits at the core's own doorbell.
    pub workers: AtomicU32,
    /// Not 0: stubs take no notice of their core and ring any of the first so many doorbells (for tests of a machine with
    /// many cores).
    pub any_doorbell: AtomicU32,
}

/// `CLONE_PARENT | SIGCHLD`: every stub is a child of the Sentry.
pub const FORK_FLAGS: u32 = 0x8000 | 17;
/// `CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM`.
pub const THREAD_FLAGS: u32 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;
