//! The platform: guest address spaces and guest threads, carried by host processes and host threads ("stubs").
//!
//! This crate is where the project's `unsafe` lives. The guest kernel (crate `sentry`) forbids it and sees only what
//! this file exports:
//!
//! * [`AddressSpace`]: one host process; its memory *is* the guest's memory.
//! * [`GuestThread`]: one host thread in it. The guest kernel's task owns it, looks at its registers after a trap,
//!   queues memory operations ([`Op`]) that the stub carries out, and lets it run again.
//! * [`Executor`]: runs the guest kernel's futures, polls the hand-off areas of running guests, sleeps when nothing runs.
//! * [`host`]: safe wrappers around the host calls that the guest kernel may make.
//!
//! # Contract of a guest thread
//! A thread is in one of two states: *stopped* (the Sentry owns it; registers are valid) or *running* (the guest owns
//! it). [`GuestThread::enter`] makes it running, [`GuestThread::poll_trap`] returning `Ready` makes it stopped.
//! `queue`, `regs` and `enter` may only be used while it is stopped. A stub is hostile: everything it posts is read
//! once, into Sentry memory, before anything is decided upon it.

pub mod aux;
pub mod budget;
mod cores;
pub mod cpuid;
pub mod executor;
mod functions;
pub mod host;
pub mod patch;
mod policy;
pub mod proof;
mod sweep;
pub mod systrap;

use std::sync::Arc;
use std::task::{Context, Poll};

pub use executor::Executor;
pub use nix::errno::Errno;
pub use policy::HandOff;

/// General registers of a guest thread. `orig_rax` is the system call number after a [`Trap::Syscall`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Regs {
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rsp: u64,
    pub rip: u64,
    pub eflags: u64,
    pub orig_rax: u64,
}

/// Why a guest thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// The guest made a system call: number in `regs.orig_rax`, `rip` points after the instruction.
    Syscall,
    /// A processor exception, as the host kernel reported it.
    Fault(Fault),
    /// [`Interrupter::interrupt`] was called while guest code ran: `regs.orig_rax` is -1. Or while the stub slept in a futex
    /// call that it made itself (see [`systrap::Systrap::set_native_futex`]): `regs.orig_rax` is the number of `futex`, and the
    /// registers are those of a `Trap::Syscall` whose handler was cut short. May come late: after another trap that crossed
    /// the interrupt, it is then reported once the guest has been entered again.
    Interrupted,
    /// The queue was carried out after [`Enter::Stay`].
    OpsDone,
    /// Operation number `index` of the queue failed; those after it were not carried out and the guest was not resumed.
    OpFailed { index: usize, errno: Errno },
    /// The host thread is gone (host signal number, or 0 for an exit). Nothing more can be done with it.
    Dead { signal: i32 },
}

/// A processor exception.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// SIGSEGV, SIGBUS, SIGFPE, SIGILL or SIGTRAP.
    pub signal: i32,
    /// `si_code`.
    pub code: i32,
    /// `si_addr`.
    pub addr: u64,
    /// Hardware trap number and error code, for the guest's signal frame.
    pub trapno: u64,
    pub error: u64,
}

/// An operation that the stub carries out in the guest's address space, in the order queued, before the guest goes on.
/// Ranges must be page-aligned, non-empty, and inside [`GUEST_MIN`]..[`GUEST_MAX`]; the platform checks it.
/// All mappings are made with `MAP_FIXED`: the guest kernel chooses addresses.
#[derive(Clone, Debug)]
pub enum Op {
    /// Anonymous memory. `shared` memory survives `fork` as shared. `prot` is `PROT_*`, `flags` may add
    /// `MAP_NORESERVE`, `MAP_POPULATE`, `MAP_LOCKED` is ignored.
    MapAnon {
        addr: u64,
        len: u64,
        prot: i32,
        shared: bool,
        flags: i32,
    },
    /// A host file (or memfd), at byte `offset`. `writable_fd` files may be mapped shared and writable; others must be mapped private
    /// or read-only.
    MapFile {
        addr: u64,
        len: u64,
        prot: i32,
        shared: bool,
        file: Arc<std::os::fd::OwnedFd>,
        offset: u64,
    },
    Unmap {
        addr: u64,
        len: u64,
    },
    Protect {
        addr: u64,
        len: u64,
        prot: i32,
    },
    /// Moves/resizes a mapping to a fixed new address (`MREMAP_MAYMOVE|MREMAP_FIXED`), or in place when `new_addr == addr`.
    /// `flags` may add `MREMAP_DONTUNMAP` to a move; a `len` of 0 makes a second mapping of shared memory.
    Remap {
        addr: u64,
        len: u64,
        new_addr: u64,
        new_len: u64,
        flags: i32,
    },
    /// `madvise` with advice the guest kernel has checked.
    Advise {
        addr: u64,
        len: u64,
        advice: i32,
    },
    /// `msync` of shared file mappings.
    Sync {
        addr: u64,
        len: u64,
        flags: i32,
    },
    /// Copies `data` into guest memory. If the guest memory is not writable and the queue is for [`Enter::Return`], the guest
    /// is resumed with `rax = -EFAULT` (the rest of the queue is carried out); with `Full` and `Stay` it is an `OpFailed`.
    /// Any length; above [`STAGE_MAX`] bytes per queue it takes several rounds.
    CopyOut {
        addr: u64,
        data: Vec<u8>,
    },
    /// Stores `new` in the aligned 32-bit word at `addr` if it holds `old`, as one atomic step; otherwise it is an `OpFailed`
    /// with `EAGAIN` (`EFAULT` where there is no such memory).
    CompareExchange {
        addr: u64,
        old: u32,
        new: u32,
    },
    /// membarrier(2) with one of its commands GLOBAL, PRIVATE_EXPEDITED and REGISTER_PRIVATE_EXPEDITED.
    Barrier {
        command: i32,
    },
    /// The same from a file in memory, `len` bytes at `offset`, as they are when the stub gets them; zeroes where the file has become shorter.
    /// The bytes move twice, once on each side, and never through a buffer of ours.
    CopyFile {
        addr: u64,
        file: Arc<host::SharedFile>,
        offset: u64,
        len: usize,
    },
    /// getcpu(2): the number of the processor that the thread is on goes to `cpu`, that of its node to `node`; 0 for neither.
    Processor {
        cpu: u64,
        node: u64,
    },
    /// clock_gettime(2) with `CLOCK_THREAD_CPUTIME_ID`: the time that this thread has used goes to `addr`.
    ThreadTime {
        addr: u64,
    },
    /// getrusage(2) of the host process, or of the thread alone; the stub's memory and faults count too.
    Usage {
        thread: bool,
        addr: u64,
    },
    /// Wakes one thread of this address space that waits for the word at `addr` by a futex call of its own (not a private one).
    Wake {
        addr: u64,
    },
    /// rseq(2) for this thread: the host keeps the area at `addr` from then on.
    Rseq {
        addr: u64,
        len: u32,
        flags: i32,
        signature: u32,
    },
    /// Sets the FS / GS base register of this thread.
    SetFs(u64),
    SetGs(u64),
    /// Stores the floating point and vector state (as the kernel puts it into a signal frame, [`fp_state_size`] bytes at most,
    /// 64-byte aligned) at `addr`, then resets the live state to its initial value.
    SaveFp {
        addr: u64,
    },
    /// Loads that state from `addr`; 0 resets it (at once, or upon the return to the guest).
    RestoreFp {
        addr: u64,
    },
}

/// How [`GuestThread::enter`] lets the stub go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enter {
    /// Back to the guest after a system call: only `regs.rax` has changed (`rcx`/`r11` as the `syscall` instruction leaves them).
    Return,
    /// Back to the guest with all of `regs`.
    Full,
    /// Carry out the queue, then stop again with [`Trap::OpsDone`].
    Stay,
    /// Back to the guest, after the stub has made the guest's call itself: one of `futex` on private words (see
    /// [`systrap::Systrap::set_native_futex`]), or `futex_waitv`; no operations may be queued.
    Native,
}

/// Lowest and one past the highest address that a guest may use.
pub const GUEST_MIN: u64 = 0x1_0000;
pub const GUEST_MAX: u64 = 0x7ffe_0000_0000;
pub const PAGE_SIZE: u64 = 4096;
/// Bytes of `CopyOut` data that travel through shared memory in one round.
pub const STAGE_MAX: usize = 64 * 1024;

/// One guest address space: a host process made by cloning the zygote or another address space. Dropping the last
/// reference kills and reaps the host process.
pub trait AddressSpace: Send + Sync {
    /// Copies guest memory into `buf`; returns how many bytes were readable before the first unreadable one
    /// (respects the guest's page protections). Errors: only `ESRCH` when the host process is gone.
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<usize, Errno>;
    /// Copies `data` to guest memory; same rules.
    fn write(&self, addr: u64, data: &[u8]) -> Result<usize, Errno>;
    /// Copies `len` bytes at `offset` of `file`, as far as it has them, to guest memory; same rules.
    fn write_from_file(&self, addr: u64, file: &host::SharedFile, offset: u64, len: usize) -> Result<usize, Errno> {
        let mut buf = vec![0; len];
        let n = file.copy_out(offset, &mut buf);
        self.write(addr, buf.get(..n).unwrap_or(&[]))
    }
    /// Copies `len` bytes of guest memory to `offset` of `file`, which has that length already; same rules.
    fn read_to_file(&self, addr: u64, file: &host::SharedFile, offset: u64, len: usize) -> Result<usize, Errno> {
        let mut buf = vec![0; len];
        let n = self.read(addr, &mut buf)?;
        file.copy_in(offset, buf.get(..n).unwrap_or(&[]))
    }
    /// Up to how many bytes of a file [`Op::CopyFile`] is now likely to be faster than `write_from_file`: to be asked by the
    /// task of a thread of this address space.
    fn rounds_pay(&self) -> usize {
        STAGE_MAX
    }
    /// Host process id in the Sentry's pid namespace (for logs only).
    fn host_pid(&self) -> i32;
    /// Address and length of the vDSO image that every guest has mapped, if the host gives one.
    fn vdso(&self) -> Option<(u64, u64)>;
    /// A trampoline page has been, or is about to be, taken out of the address space: calls that came from its sites do not go back
    /// through it any more.
    fn invalidate_returns(&self);
    /// Kills the host process now; its threads report [`Trap::Dead`].
    fn kill(&self);
    /// Has `hook` called, with no lock held, when the host process is dead: threads that the guest kernel keeps stopped do
    /// not report that. One hook at a time; by default none is ever called.
    fn on_death(&self, _hook: Box<dyn FnOnce() + Send>) {}
    /// Resident memory of the address space in bytes, and processor time used (user, system, in ns), as the host tells.
    fn cpu_time(&self) -> (u64, u64);
}

/// One guest thread. See the crate's contract. Dropping it while its address space lives ends the host thread; if it is the last
/// one, the host process too.
pub trait GuestThread: Send + Sync {
    fn regs(&self) -> &Regs;
    fn regs_mut(&mut self) -> &mut Regs;
    /// Queues an operation for the next `enter`.
    fn queue(&mut self, op: Op);
    /// How many operations are queued, which is the number that the next one gets.
    fn queued(&self) -> usize;
    /// Posts the reply: the stub carries out the queue, then does what `how` says.
    fn enter(&mut self, how: Enter);
    /// Ready when the thread has stopped again.
    fn poll_trap(&mut self, cx: &mut Context<'_>) -> Poll<Trap>;
    /// Tells the stub that no answer will come soon (the guest's call waits), so that it sleeps at once. Optional hint;
    /// called while stopped, when the task's future is about to return `Pending`.
    fn park(&mut self);
    /// Bytes that the stub copied in ahead of time with this trap (a path, a small buffer), if they start at `addr`.
    /// The copy is the Sentry's own. Shorter than asked for is possible.
    fn prefetched(&self, addr: u64) -> Option<&[u8]>;
    /// True when all earlier operations queued through this thread have been carried out by the stub.
    fn ops_settled(&self) -> OpsSettled;
    /// Handle to stop the thread from elsewhere.
    fn interrupter(&self) -> Arc<dyn Interrupter>;
    fn address_space(&self) -> Arc<dyn AddressSpace>;
    /// Whether the last call came by a signal, not from a patched site.
    fn trapped(&self) -> bool;
    /// Handle to what the stub may answer by itself on behalf of this thread.
    fn local_answers(&self) -> Arc<dyn LocalAnswers>;
    /// True if no other host thread is, or is still ending, in the address space. As its stub says.
    fn sole(&self) -> bool;
    /// When the host thread ends, which it does once this is dropped, the host clears the word at `addr` and wakes one thread that
    /// waits for it by a futex call of its own (not a private one). The host thread uses no memory any more then. `false`: this
    /// host thread stays as long as its address space.
    fn clear_at_end(&mut self, addr: u64) -> bool;
    /// What the host thread is to do before it ends (and before that word is cleared), whatever comes of it; one operation without data.
    fn do_at_end(&mut self, op: Op);
    /// GS base as last set by the guest; 0 if it has not set it.
    fn gs_base(&self) -> u64;
    /// FS base as last set or reported.
    fn fs_base(&self) -> u64;
    /// Starts making a copy of the whole address space (`fork`). The new thread is stopped, with the same registers,
    /// floating point state and FS base. Complete it with [`GuestThread::poll_fork`].
    fn start_fork(&mut self);
    fn poll_fork(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn GuestThread>, Errno>>;
    /// Starts a second host thread in this address space (for `clone(CLONE_VM)` and `vfork`), stopped, with the same
    /// registers; complete it with [`GuestThread::poll_thread`]. `fs_base` is what `CLONE_SETTLS` asks for.
    fn start_thread(&mut self, fs_base: Option<u64>);
    fn poll_thread(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn GuestThread>, Errno>>;
}

/// Cheap handle that tells whether a thread's last queue of operations has been carried out: another thread of the same
/// address space must not start a memory operation before that.
#[derive(Clone)]
pub struct OpsSettled(pub Arc<dyn Fn() -> bool + Send + Sync>);

impl OpsSettled {
    pub fn settled(&self) -> bool {
        (self.0)()
    }
}

/// Stops a running guest thread: its next trap is reported at once, [`Trap::Interrupted`] if it was in guest code.
/// Does nothing to a thread that is stopped.
pub trait Interrupter: Send + Sync {
    fn interrupt(&self);
    /// Whether the thread sleeps in a futex call that the stub made itself. As the guest's memory says: for showing only.
    fn sleeps(&self) -> bool;
    /// As [`GuestThread::park`]; does nothing to a thread that runs.
    fn park(&self);
    /// The thread runs on these cores only (a mask of 64-bit words, as the host numbers them) from now on; `None`: on any.
    /// A new thread (of `fork` also) starts without, though it may begin where its maker was.
    fn pin(&self, cores: Option<&[u64]>);
}

/// What a thread's stub answers by itself, without asking. The guest can forge all of it, for itself. Changes hold from its
/// next call on. A new thread (of `fork` also) starts with none of it.
pub trait LocalAnswers: Send + Sync {
    /// The answer to a call of that number with whatever arguments; `None`: ask. Numbers from 192 on are always asked.
    fn answer(&self, nr: u64, value: Option<u32>);
    /// With `on`, the stub asks for every call, private futexes included.
    fn filtered(&self, on: bool);
}

/// A way to make address spaces.
pub trait Platform: Send + Sync {
    fn name(&self) -> &'static str;
    /// An empty address space with one stopped thread in it: nothing mapped below [`GUEST_MAX`] but the vDSO.
    /// Taken from a pool when one is ready.
    fn poll_new(&self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn GuestThread>, Errno>>;
    /// Upper bound of the bytes [`Op::SaveFp`] writes.
    fn fp_state_size(&self) -> usize;
    /// Counters for `--stats`: name and value.
    fn stats(&self) -> Vec<(&'static str, u64)>;
}
