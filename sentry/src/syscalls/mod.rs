//! System calls: the table ([`table`]), argument types ([`arg`]), and the handlers, grouped as in the man
//! pages.
//!
//! A handler is a function `fn name(cx: &mut Ctx<'_>, args…) -> SysResult`. Only handlers that *wait* are
//! `async` (listed in the table's `wait` part). A handler reads guest memory through `cx` and returns the
//! value for `rax`.

pub mod aio;
pub mod arg;
pub mod cred;
pub mod epoll;
pub mod fs_attr;
pub mod fs_dir;
pub mod fs_fd;
pub mod fs_notify;
pub mod fs_open;
pub mod fs_rw;
pub mod fs_stat;
pub mod fsmount;
pub mod ids;
pub mod io;
pub mod limits;
pub mod mqueue;
pub mod mremap;
pub mod pidfd;
pub mod prctl;
pub mod sched;
pub mod seccomp;
pub mod system;
pub mod sysv;
pub mod time;
pub mod timers;
pub mod unshare;
#[macro_use]
mod macros;
pub mod futex;
pub mod memory;
pub mod message;
pub mod mlock;
pub mod mount;
pub mod pipe;
pub mod poll;
pub mod process;
pub mod process_vm;
pub mod signal;
pub mod socket;
pub mod splice;
pub mod strace;
pub mod table;

use crate::error::{Errno, Result, SysError, SysResult, LATER};
use crate::kernel::{Kernel, Task};
use crate::mm::io::{iov_len, Dst, IoVec, Src, Staged};
use crate::mm::UserMem;
use platform::executor::{may_ask, was_refused};
use platform::{AddressSpace, GuestThread, STAGE_MAX};
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Context of a handler: the calling task and its stopped thread.
pub struct Ctx<'a> {
    pub task: &'a Arc<Task>,
    pub thread: &'a mut dyn GuestThread,
    pub nr: u64,
    pub args: [u64; 6],
    /// Results for guest memory; the stub stores them when the call returns.
    pub staged: Staged,
    /// Enter the guest with all registers (sigreturn).
    pub full: bool,
    /// The task ends with this `wait4` status.
    pub exit: Option<i32>,
    /// The change to revert if the host refuses a mapping of this call.
    pub undo: Option<Undo>,
    /// execve: the thread that continues.
    pub replace: Option<Box<dyn GuestThread>>,
    /// execve: the thread loads the new program itself.
    pub reloads: bool,
    /// The stub makes this (futex) call itself; the handler's result is ignored.
    pub native: bool,
}

/// A range that a call has added to the map.
#[derive(Clone, Copy, Debug)]
pub struct Undo {
    pub start: u64,
    pub end: u64,
    /// `brk`: the old end of the heap, which is the result if the host refuses.
    pub brk: Option<u64>,
}

impl<'a> Ctx<'a> {
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.task.kernel
    }
    pub fn mem(&self) -> UserMem {
        UserMem { space: self.thread.address_space() }
    }
    /// Reads a value, from the bytes that the stub copied in ahead of time if they include it.
    pub fn read<T: FromBytes + IntoBytes>(&self, addr: u64) -> Result<T> {
        let mut v = T::new_zeroed();
        self.read_bytes(addr, v.as_mut_bytes())?;
        Ok(v)
    }
    pub fn read_bytes(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
        if let Some(p) = self.thread.prefetched(addr) {
            if p.len() >= buf.len() {
                buf.copy_from_slice(&p[..buf.len()]);
                return Ok(());
            }
        }
        self.mem().read_bytes(addr, buf)
    }
    /// Stores a result. Small results are staged: a fault makes the call fail with `EFAULT`.
    pub fn write<T: IntoBytes + Immutable>(&mut self, addr: u64, v: &T) -> Result<()> {
        self.write_bytes(addr, v.as_bytes())
    }
    pub fn write_bytes(&mut self, addr: u64, data: &[u8]) -> Result<()> {
        if addr.checked_add(data.len() as u64).is_none_or(|e| e > platform::GUEST_MAX) {
            return Err(Errno::EFAULT);
        }
        if data.len() <= 4096 {
            self.staged.push(addr, data.to_vec());
            Ok(())
        } else {
            self.mem().write_bytes(addr, data)
        }
    }
    /// Stores at once, for memory that another thread may read before this call returns.
    pub fn write_now<T: IntoBytes + Immutable>(&self, addr: u64, v: &T) -> Result<()> {
        self.mem().write(addr, v)
    }
    /// A path argument (`ENAMETOOLONG` if longer than PATH_MAX - 1; an empty path is returned as it is).
    pub fn read_path(&self, addr: u64) -> Result<Vec<u8>> {
        if let Some(p) = self.thread.prefetched(addr) {
            if let Some(end) = p.iter().position(|&b| b == 0) {
                return Ok(p[..end].to_vec());
            }
        }
        self.mem().read_path(addr)
    }
    pub fn read_cstr(&self, addr: u64, max: usize, long: Errno) -> Result<Vec<u8>> {
        self.mem().read_cstr(addr, max, long)
    }
    /// An I/O vector argument (readv(2): at most 1024 elements, total at most SSIZE_MAX, shortened to
    /// MAX_RW_COUNT).
    pub fn read_iov(&self, addr: u64, n: usize) -> Result<Vec<IoVec>> {
        if n > 1024 {
            return Err(Errno::EINVAL);
        }
        let raw: Vec<[u64; 2]> = self.mem().read_vec(addr, n)?;
        let mut total = 0u64;
        let mut out = Vec::with_capacity(n);
        for [a, l] in raw {
            if l > i64::MAX as u64 || total + l > i64::MAX as u64 {
                return Err(Errno::EINVAL);
            }
            let l = l.min(MAX_RW_COUNT - total.min(MAX_RW_COUNT));
            total += l;
            out.push(IoVec { addr: a, len: l as usize });
        }
        Ok(out)
    }
    /// Whether all of a buffer is writable. A store by the stub must not fail later, after a file position
    /// has moved.
    pub fn can_store(&self, iov: &[IoVec]) -> bool {
        let mm = self.task.mm.read();
        let map = mm.map();
        iov.iter().all(|v| v.addr.checked_add(v.len as u64).is_some_and(|end| map.vmas.writable(v.addr, end)))
    }
    /// Runs `f` with a destination over guest memory.
    pub fn with_dst<R>(&mut self, iov: &[IoVec], f: impl FnOnce(&mut Dst<'_>) -> R) -> R {
        let space = self.thread.address_space();
        // What is longer is never left to the stub, and might lie in very many mappings.
        let stage = iov_len(iov) <= STAGE_MAX.max(space.rounds_pay()) && self.can_store(iov);
        let mut dst = Dst::user(&*space, iov, stage.then_some(&mut self.staged));
        f(&mut dst)
    }
    /// Runs `f` with a source over guest memory.
    pub fn with_src<R>(&mut self, iov: &[IoVec], f: impl FnOnce(&mut Src<'_>) -> R) -> R {
        let space = self.thread.address_space();
        let prefetched = iov.first().and_then(|v| self.thread.prefetched(v.addr).map(|p| (v.addr, p)));
        let mut src = Src::user(&*space, iov, prefetched);
        f(&mut src)
    }
    /// Runs `f`, which moves `len` bytes: for a large `len`, other tasks run meanwhile.
    pub async fn in_chunk<R>(&mut self, len: usize, f: impl FnOnce(&mut Self) -> R) -> R {
        if len <= INLINE {
            return f(self);
        }
        let executor = self.kernel().executor.clone();
        executor.room().await;
        executor.block_in_place(|| f(self))
    }
    pub fn file(&self, fd: i32) -> Result<Arc<crate::fs::File>> {
        self.task.files.read().get(fd)
    }
    /// As `file`, but refuses `O_PATH` descriptors.
    pub fn io_file(&self, fd: i32) -> Result<Arc<crate::fs::File>> {
        self.task.files.read().get_io(fd)
    }
    /// Queues the staged results for the stub.
    pub fn flush(&mut self) {
        if !self.staged.is_empty() {
            for op in self.staged.drain() {
                self.thread.queue(op);
            }
        }
    }
    pub fn space(&self) -> Arc<dyn AddressSpace> {
        self.thread.address_space()
    }
}

/// Most bytes that one read or write moves (`MAX_RW_COUNT`).
pub const MAX_RW_COUNT: u64 = 0x7fff_f000;

/// Bytes that an interruptible call moves between yields to other tasks. The slowest source, the host's
/// random numbers, takes some milliseconds for them.
pub const MAX_INLINE_COPY: usize = 1 << 20;

/// Bytes that an uninterruptible call moves on this thread: some milliseconds.
const INLINE: usize = 4 << 20;

/// Support levels of the published table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    Full,
    /// Works except as the note says.
    Partial,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub nr: u64,
    pub name: &'static str,
    pub args: &'static [(&'static str, arg::Show)],
    pub support: Support,
    pub note: &'static str,
}

/// The row of a supported call.
pub fn entry(nr: u64) -> Option<&'static Entry> {
    table::TABLE.iter().find(|e| e.nr == nr)
}

/// Handles a system call.
pub async fn dispatch(cx: &mut Ctx<'_>) -> SysResult {
    if cx.task.attrs.filtered.load(std::sync::atomic::Ordering::Relaxed) {
        if let Some(r) = crate::kernel::seccomp::check(cx) {
            return Ok(r);
        }
    }
    may_ask(true);
    let mut result = answer(cx).await;
    // A file that is not the one whose attributes were judged: the call is made again with fresh ones, as Linux does. A few
    // times, since a moved file is missed at its old place before it is found at its new one.
    let mut stale = 0;
    loop {
        if result == Err(LATER.into()) && was_refused() {
            result = make_again(cx).await;
        } else if result == Err(Errno::ESTALE.into()) && stale < 4 {
            stale += 1;
            cx.staged = Staged::default();
            result = answer(cx).await;
        } else {
            break;
        }
    }
    may_ask(false);
    result
}

async fn answer(cx: &mut Ctx<'_>) -> SysResult {
    if let Some(r) = table::call_now(cx) {
        return r;
    }
    table::call_wait(cx).await
}

/// Makes a call that takes long, once there is a thread for others meanwhile.
async fn make_again(cx: &mut Ctx<'_>) -> SysResult {
    cx.staged = Staged::default();
    let executor = cx.kernel().executor.clone();
    executor.calm().await;
    if cx.task.is_killed() {
        return Err(SysError::INTR);
    }
    may_ask(false);
    Box::pin(answer(cx)).await
}

/// Numbers of calls that are not there that are remembered.
pub const UNKNOWN_MAX: usize = 1024;

/// A call that is not in the table: `ENOSYS`, logged once per number, for up to [`UNKNOWN_MAX`] numbers.
pub fn unknown(cx: &mut Ctx<'_>) -> SysResult {
    let first = {
        let mut logged = cx.kernel().logged_unknown.lock();
        logged.len() < UNKNOWN_MAX && logged.insert(cx.nr)
    };
    if first {
        log::info!("system call {} ({}) is not supported (ENOSYS)", strace::name(cx.nr), cx.nr);
    }
    Err(Errno::ENOSYS.into())
}
