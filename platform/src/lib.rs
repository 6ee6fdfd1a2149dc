//! The platform: guest address spaces and guest threads, carried by host processes and host threads ("stubs").
//!
//! This crate contains the project's `unsafe` code. The guest kernel (crate `sentry`) forbids it and uses only the
//! exports of this file:
//!
//! * [`AddressSpace`]: one host process; its memory *is* the guest's memory.
//! * [`GuestThread`]: one host thread in it. The guest kernel's task owns it, reads its registers after a trap,
//!   queues memory operations ([`Op`]) that the stub carries out, and resumes it.
//! * [`Executor`]: runs the guest kernel's futures, scans the hand-off areas of running guests, sleeps when nothing
//!   runs.
//! * [`host`]: safe wrappers around the host calls that the guest kernel may make.
//!
//! # Contract of a guest thread
//! A thread is in one of two states: *stopped* (the Sentry owns it; registers are valid) or *running* (the guest owns
//! it). [`GuestThread::enter`] makes it running; when [`GuestThread::poll_trap`] returns `Ready`, it is stopped.
//! `queue`, `regs` and `enter` may only be used while it is stopped. A stub is hostile: everything it posts is copied
//! once to the Sentry's memory, and checked there.

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
pub use systrap::Lineage;

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

/// The reason why a guest thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// The guest made a system call: number in `regs.orig_rax`, `rip` points after the instruction.
    Syscall,
    /// A processor exception, as the host kernel reported it.
    Fault(Fault),
    /// [`Interrupter::interrupt`] was called. In guest code, `regs.orig_rax` is -1. In a futex call that the stub
    /// made itself (see [`systrap::Systrap::set_native_futex`]), `regs.orig_rax` is the number of `futex`, and the
    /// registers are those of a `Trap::Syscall` whose handler was cut short. May come late: if another trap crosses
    /// the interrupt, the interrupt is reported after the next `enter`.
    Interrupted,
    /// The queue was carried out after [`Enter::Stay`].
    OpsDone,
    /// Operation `index` of the queue failed. Later operations were not carried out, and the guest was not resumed.
    OpFailed { index: usize, errno: Errno },
    /// The host thread is gone (host signal number, or 0 for an exit). All further operations on it fail.
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

/// An operation that the stub carries out in the guest's address space, in queue order, before the guest continues.
/// Ranges must be page-aligned, non-empty, and inside [`GUEST_MIN`]..[`GUEST_MAX`]; the platform checks it. All
/// mappings are made with `MAP_FIXED`: the guest kernel chooses addresses.
#[derive(Clone, Debug)]
pub enum Op {
    /// Anonymous memory. `shared` memory stays shared across `fork`. `prot` is `PROT_*`; `flags` may add
    /// `MAP_NORESERVE` and `MAP_POPULATE`, other flags are ignored.
    MapAnon {
        addr: u64,
        len: u64,
        prot: i32,
        shared: bool,
        flags: i32,
    },
    /// A host file (or memfd), at byte `offset`. The access mode of the descriptor limits shared mappings, as in
    /// mmap(2).
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
    /// Moves or resizes a mapping to a fixed new address (`MREMAP_MAYMOVE|MREMAP_FIXED`), or in place if
    /// `new_addr == addr`. `flags` may add `MREMAP_DONTUNMAP` to a move; a `len` of 0 makes a second mapping of
    /// shared memory.
    Remap {
        addr: u64,
        len: u64,
        new_addr: u64,
        new_len: u64,
        flags: i32,
    },
    /// `madvise`, with advice that the guest kernel has checked.
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
    /// Copies `data` into guest memory. If that memory is not writable, the result depends on [`GuestThread::enter`]:
    /// with [`Enter::Return`] the guest resumes with `rax = -EFAULT` (the rest of the queue is carried out); with
    /// `Full` and `Stay` it is an `OpFailed`. Any length is allowed; more than [`STAGE_MAX`] bytes per queue take
    /// several rounds.
    CopyOut {
        addr: u64,
        data: Vec<u8>,
    },
    /// Atomically stores `new` in the aligned 32-bit word at `addr` if it holds `old`. Otherwise an `OpFailed` with
    /// `EAGAIN` (`EFAULT` if that memory is not mapped).
    CompareExchange {
        addr: u64,
        old: u32,
        new: u32,
    },
    /// membarrier(2) with one of its commands GLOBAL, PRIVATE_EXPEDITED and REGISTER_PRIVATE_EXPEDITED.
    Barrier {
        command: i32,
    },
    /// Like `CopyOut`, from a file in memory: `len` bytes at `offset`, with their contents when the round is sent;
    /// zeroes beyond the end of the file. The bytes are copied once on each side, without a buffer in between.
    CopyFile {
        addr: u64,
        file: Arc<host::SharedFile>,
        offset: u64,
        len: usize,
    },
    /// getcpu(2): stores the number of the thread's processor at `cpu`, that of its node at `node`; 0 skips one.
    Processor {
        cpu: u64,
        node: u64,
    },
    /// clock_gettime(2) with `CLOCK_THREAD_CPUTIME_ID`: stores the thread's processor time at `addr`.
    ThreadTime {
        addr: u64,
    },
    /// getrusage(2) of the host process, or of the thread alone; includes the stub's memory and faults.
    Usage {
        thread: bool,
        addr: u64,
    },
    /// Wakes one thread of this address space that waits on the word at `addr` in a futex call of its own (not a
    /// private one).
    Wake {
        addr: u64,
    },
    /// rseq(2) for this thread: registers the area at `addr` with the host.
    Rseq {
        addr: u64,
        len: u32,
        flags: i32,
        signature: u32,
    },
    /// Sets the FS / GS base register of this thread.
    SetFs(u64),
    SetGs(u64),
    /// Stores the floating point and vector state at `addr` (in the format of the kernel's signal frame,
    /// [`Platform::fp_state_size`] bytes at most, 64-byte aligned), then resets the live state.
    SaveFp {
        addr: u64,
    },
    /// Loads that state from `addr`; 0 resets it (immediately, or on return to the guest).
    RestoreFp {
        addr: u64,
    },
}

/// How [`GuestThread::enter`] continues after the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enter {
    /// To the guest after a system call: only `regs.rax` has changed (`rcx`/`r11` as the `syscall` instruction leaves
    /// them).
    Return,
    /// To the guest with all of `regs`.
    Full,
    /// Stops again with [`Trap::OpsDone`].
    Stay,
    /// To the guest, after the stub has made the guest's call itself: a private `futex` operation (see
    /// [`systrap::Systrap::set_native_futex`]), or `futex_waitv`. No operations may be queued.
    Native,
}

/// Lowest address that a guest may use, and the end of its range.
pub const GUEST_MIN: u64 = 0x1_0000;
pub const GUEST_MAX: u64 = 0x7ffe_0000_0000;
pub const PAGE_SIZE: u64 = 4096;
/// Bytes of `CopyOut` data that travel through shared memory in one round.
pub const STAGE_MAX: usize = 64 * 1024;

/// One guest address space: a host process, cloned from the zygote or another address space. Dropping the last
/// reference kills and reaps the host process.
pub trait AddressSpace: Send + Sync {
    /// Copies guest memory into `buf`; returns the number of bytes before the first unreadable one (respects the
    /// guest's page protections). The only error is `ESRCH`: the host process is gone.
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<usize, Errno>;
    /// Copies `data` to guest memory; same rules.
    fn write(&self, addr: u64, data: &[u8]) -> Result<usize, Errno>;
    /// Copies `len` bytes at `offset` of `file`, or fewer if it is shorter, to guest memory; same rules.
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
    /// Largest length for which [`Op::CopyFile`] is now likely to be faster than `write_from_file`. Call from the
    /// task of a thread of this address space.
    fn rounds_pay(&self) -> usize {
        STAGE_MAX
    }
    /// Whose descendant it is. A fork's is a child of the one that it was forked from.
    fn lineage(&self) -> Lineage {
        Lineage::default()
    }
    /// For one from [`Platform::poll_new`], which is no process's yet.
    fn set_lineage(&self, _lineage: Lineage) {}
    /// Host process id in the Sentry's pid namespace (for logs only).
    fn host_pid(&self) -> i32;
    /// Address and length of the vDSO image mapped in every guest, if the host provides one.
    fn vdso(&self) -> Option<(u64, u64)>;
    /// Call when a trampoline page is removed from the address space, or about to be: calls from its sites no longer
    /// return through it.
    fn invalidate_returns(&self);
    /// Kills the host process now; its threads report [`Trap::Dead`].
    fn kill(&self);
    /// Processor time used by the address space (user, system, in ns), as reported by the host.
    fn cpu_time(&self) -> (u64, u64);
}

/// One guest thread. See the crate's contract. Dropping it while its address space lives ends the host thread, and
/// with the last one the host process.
pub trait GuestThread: Send + Sync {
    fn regs(&self) -> &Regs;
    fn regs_mut(&mut self) -> &mut Regs;
    /// Queues an operation for the next `enter`.
    fn queue(&mut self, op: Op);
    /// Number of queued operations, which is also the index of the next one.
    fn queued(&self) -> usize;
    /// Posts the reply: the stub carries out the queue, then continues according to `how`.
    fn enter(&mut self, how: Enter);
    /// Ready once the thread has stopped again.
    fn poll_trap(&mut self, cx: &mut Context<'_>) -> Poll<Trap>;
    /// Lets the stub sleep instead of spinning, since no answer will come soon (the guest's call waits). Optional
    /// hint; called while stopped, when the task's future is about to return `Pending`.
    fn park(&mut self);
    /// Bytes that the stub has copied in along with this trap (a path, a small buffer), if they start at `addr`. The
    /// copy is in the Sentry's memory. It may be shorter than the caller needs.
    fn prefetched(&self, addr: u64) -> Option<&[u8]>;
    /// A handle that reports whether the stub has carried out all operations queued through this thread.
    fn ops_settled(&self) -> OpsSettled;
    /// A handle to stop the thread from other threads.
    fn interrupter(&self) -> Arc<dyn Interrupter>;
    fn address_space(&self) -> Arc<dyn AddressSpace>;
    /// Whether the last call arrived by a signal, not from a patched site.
    fn trapped(&self) -> bool;
    /// A handle to set the stub's own answers for this thread.
    fn local_answers(&self) -> Arc<dyn LocalAnswers>;
    /// Whether no other host thread is, or is still exiting, in the address space. As reported by its stub.
    fn sole(&self) -> bool;
    /// When the host thread exits (after this value is dropped), the host clears the word at `addr` and wakes one
    /// thread that waits on it in a futex call of its own (not a private one). By then the host thread no longer uses
    /// memory. `false`: this host thread stays as long as its address space.
    fn clear_at_end(&mut self, addr: u64) -> bool;
    /// Sets one operation, without data, that the host thread carries out before it exits (and before that word is
    /// cleared). Its result is ignored.
    fn do_at_end(&mut self, op: Op);
    /// GS base last set by the guest; 0 if it has not set it.
    fn gs_base(&self) -> u64;
    /// FS base last set or reported.
    fn fs_base(&self) -> u64;
    /// Starts a copy of the whole address space (`fork`). The new thread is stopped, with the same registers,
    /// floating point state and FS base. Complete it with [`GuestThread::poll_fork`].
    fn start_fork(&mut self);
    fn poll_fork(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn GuestThread>, Errno>>;
    /// Starts a second host thread in this address space (for `clone(CLONE_VM)` and `vfork`), stopped, with the same
    /// registers. Complete it with [`GuestThread::poll_thread`]. `fs_base` is the argument of `CLONE_SETTLS`.
    fn start_thread(&mut self, fs_base: Option<u64>);
    fn poll_thread(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn GuestThread>, Errno>>;
}

/// Cheap handle that reports whether a thread's last queue of operations has been carried out. Another thread of the
/// same address space must not start a memory operation before that.
#[derive(Clone)]
pub struct OpsSettled(pub Arc<dyn Fn() -> bool + Send + Sync>);

impl OpsSettled {
    pub fn settled(&self) -> bool {
        (self.0)()
    }
}

/// Stops a running guest thread: its next trap is reported promptly, [`Trap::Interrupted`] if it was in guest code.
/// Has no effect on a stopped thread.
pub trait Interrupter: Send + Sync {
    fn interrupt(&self);
    /// Whether the thread sleeps in a futex call that the stub made itself. Read from guest memory: for display only.
    fn sleeps(&self) -> bool;
    /// Like [`GuestThread::park`]; has no effect on a running thread.
    fn park(&self);
    /// Restricts the thread to these cores (a mask of 64-bit words, in the host's numbering); `None`: no restriction.
    /// A new thread (of `fork` also) starts without a restriction, though it may begin on its maker's core.
    fn pin(&self, cores: Option<&[u64]>);
}

/// Answers that a thread's stub gives without the Sentry. The guest can forge all of them, for itself. Changes apply
/// from its next call on. A new thread (of `fork` also) starts without any.
pub trait LocalAnswers: Send + Sync {
    /// The answer to a call of that number, whatever its arguments; `None`: the call goes to the Sentry, as do all
    /// numbers from 192 on.
    fn answer(&self, nr: u64, value: Option<u32>);
    /// With `on`, every call goes to the Sentry, private futexes included.
    fn filtered(&self, on: bool);
}

/// Creates address spaces.
pub trait Platform: Send + Sync {
    fn name(&self) -> &'static str;
    /// An empty address space with one stopped thread in it: nothing is mapped below [`GUEST_MAX`] but the vDSO.
    /// Taken from a pool if one is ready.
    fn poll_new(&self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn GuestThread>, Errno>>;
    /// Upper bound of the bytes that [`Op::SaveFp`] writes.
    fn fp_state_size(&self) -> usize;
    /// Counters for `--stats`: name and value.
    fn stats(&self) -> Vec<(&'static str, u64)>;
}
