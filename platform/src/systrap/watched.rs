//! Shared memory as the Sentry sees it: the hand-off area of one guest process, the page that all stubs read, and the
//! record by which the executor finds out that a cell has been posted.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{addr_of, addr_of_mut, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU8, Ordering::*};
use std::sync::Arc;
use std::task::Waker;

use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::memfd::{memfd_create, MFdFlags};
use parking_lot::Mutex;

use crate::budget::{self, AreaRoom, Use};
use crate::cores::CoreSet;

use super::abi::{self, Answer, Cell, Global, OpSlot, Post, Report};
use super::filter::Insn;
use super::handoff::{self, is_posted};

/// A memfd mapped shared and writable here, sealed against resizing.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping lives as long as the value; all access goes through raw pointers and atomics below.
unsafe impl Send for Mapping {}
// SAFETY: the same.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(name: &std::ffi::CStr, len: usize) -> io::Result<(Self, OwnedFd)> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        Self::of(fd, len, SealFlag::empty())
    }
    /// One whose descriptor gives nobody else leave to write, and whose pages may be executed.
    pub(crate) fn only_writer(name: &std::ffi::CStr, len: usize) -> io::Result<(Self, OwnedFd)> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        // As for the stub's image.
        let fd = memfd_create(name, flags | MFdFlags::from_bits_retain(libc::MFD_EXEC))
            .or_else(|_| memfd_create(name, flags))?;
        Self::of(fd, len, SealFlag::from_bits_retain(libc::F_SEAL_FUTURE_WRITE))
    }
    fn of(fd: OwnedFd, len: usize, seals: SealFlag) -> io::Result<(Self, OwnedFd)> {
        nix::unistd::ftruncate(&fd, len as i64)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Mapping { base, len };
        let fixed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(fixed | seals))?;
        Ok((mapping, fd))
    }
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }
    /// Makes the pages of a range at once, to spare a fault for each.
    pub(crate) fn populate(&self, at: usize, len: usize) {
        let start = at / crate::PAGE_SIZE as usize * crate::PAGE_SIZE as usize;
        let end = at.saturating_add(len).min(self.len);
        if start < end {
            // SAFETY: in bounds of the live mapping, whose bytes stay as they are. A kernel that does not know the advice leaves it to the faults.
            unsafe { libc::madvise(self.base.as_ptr().add(start).cast(), end - start, libc::MADV_POPULATE_WRITE) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: ours, and nobody points into it any more: every pointer is made from a borrow of `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The page that the Sentry writes and all stubs read.
pub(crate) struct GlobalPage(Mapping, OwnedFd);

impl GlobalPage {
    pub(crate) fn new() -> io::Result<Self> {
        // The stubs map it read-only before their filter is in place, which then keeps them from changing that.
        let (mapping, fd) = Mapping::new(c"runsc-global", crate::PAGE_SIZE as usize)?;
        Ok(GlobalPage(mapping, fd))
    }
    fn global(&self) -> &Global {
        // SAFETY: the page is mapped, zeroed at first, aligned, and only accessed through atomics.
        unsafe { &*self.0.base.as_ptr().cast::<Global>() }
    }
    pub(crate) fn polling(&self) -> &AtomicU32 {
        &self.global().polling
    }
    pub(crate) fn set_spin(&self, n: u32) {
        self.global().spin.store(n, Relaxed);
    }
    /// See [`Global::workers`].
    pub(crate) fn set_workers(&self, mask: u32) {
        self.global().workers.store(mask, SeqCst);
    }
    /// See [`Global::any_doorbell`].
    pub(crate) fn set_any_doorbell(&self, workers: u32) {
        self.global().any_doorbell.store(workers, SeqCst);
    }
    pub(crate) fn set_native_futex(&self, how: u32) {
        self.global().native_futex.store(how, SeqCst);
    }
    /// What lies at [`abi::STRICT_AT`].
    pub(crate) fn set_strict(&self, program: &[Insn]) {
        let at = (abi::STRICT_AT - abi::GLOBAL_BASE) as usize;
        let count = std::mem::size_of::<u64>();
        assert!(at >= size_of::<Global>() && at + 2 * count + size_of_val(program) <= crate::PAGE_SIZE as usize);
        // SAFETY: in bounds of the live mapping, as just checked, and aligned; no stub reads it yet.
        unsafe {
            let words = self.0.base.as_ptr().add(at).cast::<u64>();
            words.write_volatile(program.len() as u64);
            words.add(1).write_volatile(abi::STRICT_AT + 2 * count as u64);
            let to = words.add(2).cast::<Insn>();
            for (i, insn) in program.iter().enumerate() {
                to.add(i).write_volatile(*insn);
            }
        }
    }
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }
}

/// The hand-off area of one guest process. Its other side is hostile: everything is read once, by copy.
pub(crate) struct Area(Mapping, #[expect(dead_code, reason = "given back when dropped")] AreaRoom);

impl Area {
    /// The descriptor is for the one process that may map it too.
    pub(crate) fn new() -> io::Result<(Arc<Self>, OwnedFd)> {
        let room = AreaRoom::new(abi::AREA_SIZE).ok_or(io::ErrorKind::OutOfMemory)?;
        let (mapping, fd) = Mapping::new(c"runsc-area", abi::AREA_SIZE as usize)?;
        Ok((Arc::new(Area(mapping, room)), budget::admit(fd, Use::Process)?))
    }
    fn slot(&self, slot: usize) -> *mut u8 {
        assert!(slot < abi::MAX_SLOTS);
        // SAFETY: in bounds, as just checked.
        unsafe { self.0.base.as_ptr().add(slot * abi::SLOT_SIZE as usize) }
    }
    fn cell(&self, slot: usize) -> *mut Cell {
        self.slot(slot).cast()
    }
    pub(crate) fn state(&self, slot: usize) -> &AtomicU32 {
        // SAFETY: an aligned word of the live mapping, only accessed as an atomic.
        unsafe { &*addr_of!((*self.cell(slot)).state) }
    }
    pub(crate) fn ops_done(&self, slot: usize) -> u32 {
        // SAFETY: as above.
        unsafe { &*addr_of!((*self.cell(slot)).ops_done) }.load(Acquire)
    }
    fn core(&self, slot: usize) -> u32 {
        // SAFETY: as above.
        unsafe { &*addr_of!((*self.cell(slot)).core) }.load(Relaxed)
    }
    /// The exiting thread's mark.
    pub(crate) fn gone(&self, slot: usize) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { &*addr_of!((*self.cell(slot)).gone) }
    }
    /// A new thread begins in the slot: nothing of an earlier one's is left.
    pub(crate) fn reset(&self, slot: usize) {
        self.set_filtered(slot, false);
        for nr in 0..abi::ANSWERS {
            self.set_answer(slot, nr, None);
        }
        // SAFETY: in the live mapping.
        unsafe { addr_of_mut!((*self.cell(slot)).robust).write_volatile(0) };
    }
    /// What the stub answers to call `nr` by itself.
    pub(crate) fn set_answer(&self, slot: usize, nr: usize, answer: Option<u32>) {
        assert!(nr < abi::ANSWERS);
        // SAFETY: an aligned word of the live mapping, only accessed as an atomic.
        unsafe { &(*addr_of!((*self.cell(slot)).answers))[nr] }.store(answer.map_or(0, |a| !a), Release);
    }
    pub(crate) fn set_filtered(&self, slot: usize, on: bool) {
        // SAFETY: as above.
        unsafe { &*addr_of!((*self.cell(slot)).filtered) }.store(on.into(), SeqCst);
    }
    /// The stub's counts of calls that it answered, and made, by itself. It may say what it likes.
    pub(crate) fn counts(&self, slot: usize) -> (u64, u64) {
        let cell = self.cell(slot);
        // SAFETY: in the live mapping; volatile, because the guest may write meanwhile.
        unsafe { (addr_of!((*cell).answered).read_volatile(), addr_of!((*cell).native).read_volatile()) }
    }
    /// The one read of what the stub posted.
    pub(crate) fn read_post(&self, slot: usize) -> Post {
        // SAFETY: in the live mapping; any bytes are a valid `Post`; volatile, because the guest may write meanwhile.
        unsafe { addr_of!((*self.cell(slot)).post).read_volatile() }
    }
    /// The one read of the rest of it.
    pub(crate) fn read_report(&self, slot: usize) -> Report {
        // SAFETY: as above.
        unsafe { addr_of!((*self.cell(slot)).report).read_volatile() }
    }
    pub(crate) fn write_answer(
        &self,
        slot: usize,
        mode: u32,
        nops: u32,
        nfds: u32,
        seq: u32,
        regs: Option<&[u64; abi::NREGS]>,
        rax: u64,
    ) {
        // SAFETY: in the live mapping; the stub reads it only after the state word says so.
        unsafe {
            if let Some(regs) = regs {
                addr_of_mut!((*self.cell(slot)).regs).write_volatile(*regs);
            }
            let answer: *mut Answer = addr_of_mut!((*self.cell(slot)).answer);
            addr_of_mut!((*answer).mode).write_volatile(mode);
            addr_of_mut!((*answer).nops).write_volatile(nops);
            addr_of_mut!((*answer).nfds).write_volatile(nfds);
            addr_of_mut!((*answer).seq).write_volatile(seq);
            addr_of_mut!((*answer).rax).write_volatile(rax);
        }
    }
    pub(crate) fn write_op(&self, slot: usize, index: usize, op: OpSlot) {
        assert!(index < abi::MAX_OPS);
        // SAFETY: in bounds, in the live mapping.
        unsafe { addr_of_mut!((*self.cell(slot)).ops[index]).write_volatile(op) }
    }
    /// Puts bytes into the slot's staging buffer.
    pub(crate) fn stage_out(&self, slot: usize, at: usize, data: &[u8]) {
        assert!(at <= abi::STAGE_OUT_MAX && data.len() <= abi::STAGE_OUT_MAX - at);
        // SAFETY: in bounds, as just checked; raw pointers, because the guest may read or write meanwhile.
        unsafe {
            let to = self.slot(slot).add(abi::STAGE_OUT as usize + at);
            std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
        }
    }
    /// Puts bytes of a file into the slot's staging buffer; zeroes where it has none.
    pub(crate) fn stage_file(&self, slot: usize, at: usize, file: &crate::host::SharedFile, offset: u64, len: usize) {
        assert!(at <= abi::STAGE_OUT_MAX && len <= abi::STAGE_OUT_MAX - at);
        // SAFETY: in bounds, as just checked; raw pointers, because guests may read or write both sides meanwhile.
        unsafe {
            let to = self.slot(slot).add(abi::STAGE_OUT as usize + at);
            let copy = |from: *mut u8, n: usize| {
                std::ptr::copy_nonoverlapping(from, to, n);
                n
            };
            let n = file.with_bytes(offset, len, copy).unwrap_or(0);
            std::ptr::write_bytes(to.add(n), 0, len - n);
        }
    }
    /// Copies what the stub put into the staging buffer.
    pub(crate) fn stage_in(&self, slot: usize, len: usize, into: &mut Vec<u8>) {
        let len = len.min(abi::STAGE_IN_MAX);
        into.clear();
        into.reserve(len);
        // SAFETY: in bounds; `into` has room; raw pointers, because the guest may write meanwhile.
        unsafe {
            let from = self.slot(slot).add(abi::STAGE_IN as usize);
            std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), len);
            into.set_len(len);
        }
    }
    /// Lets the waiting stub have its answer; `before` is called if it has to be woken for that.
    pub(crate) fn reply(&self, slot: usize, before: impl FnOnce()) {
        let word = self.state(slot);
        handoff::reply(word, || {
            before();
            futex_wake(word);
        });
    }
    /// Tells the stub not to spin.
    pub(crate) fn park(&self, slot: usize) {
        handoff::park(self.state(slot));
    }
}

fn futex_wake(word: &AtomicU32) {
    // SAFETY: a live word; the call reads nothing else.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1, 0, 0, 0) };
}

/// A cell that the executor looks at.
pub(crate) struct Watched {
    pub(crate) area: Arc<Area>,
    pub(crate) slot: usize,
    /// The host's thread, as its maker says (0: not yet), and the process that it must belong to, which the host has told.
    pub(crate) tid: AtomicI32,
    pub(crate) pid: AtomicI32,
    /// Where it has been put (a [`CoreSet`]).
    placed: AtomicU8,
    /// Nobody waits for it: it is the poller's core that it takes, when the poller has nothing to do.
    pub(crate) background: AtomicBool,
    /// The cores that the guest has chosen for it.
    pub(crate) pinned: Mutex<Option<crate::cores::Pinned>>,
    /// The Sentry waits for a post.
    pub(crate) armed: AtomicBool,
    /// In the executor's list.
    pub(crate) listed: AtomicBool,
    pub(crate) waker: Mutex<Option<Waker>>,
}

impl Watched {
    pub(crate) fn new(area: Arc<Area>, slot: usize, tid: i32, placed: CoreSet, background: bool) -> Arc<Self> {
        Arc::new(Watched {
            area,
            slot,
            tid: AtomicI32::new(tid),
            pid: AtomicI32::new(0),
            placed: AtomicU8::new(placed as u8),
            background: AtomicBool::new(background),
            pinned: Mutex::new(None),
            armed: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            waker: Mutex::new(None),
        })
    }
    /// The number of its thread, if the host agrees now that it is one of its process. What a stub says is the number of a thread may
    /// be that of another stub's, or of the Sentry's.
    pub(crate) fn own_tid(&self) -> Option<i32> {
        let (tid, pid) = (self.tid.load(SeqCst), self.pid.load(SeqCst));
        crate::host::is_thread_of(tid, pid).then_some(tid)
    }
    pub(crate) fn placed(&self) -> CoreSet {
        match self.placed.load(Relaxed) {
            p if p == CoreSet::Poller as u8 => CoreSet::Poller,
            p if p == CoreSet::Guests as u8 => CoreSet::Guests,
            _ => CoreSet::Anywhere,
        }
    }
    pub(crate) fn set_placed(&self, place: CoreSet) {
        self.placed.store(place as u8, Relaxed);
    }
    pub(crate) fn posted(&self) -> bool {
        is_posted(self.state())
    }
    pub(crate) fn state(&self) -> u32 {
        self.area.state(self.slot).load(Acquire)
    }
    /// The core that the stub says it was on when it last rang.
    pub(crate) fn core(&self) -> u32 {
        self.area.core(self.slot)
    }
    pub(crate) fn set_waker(&self, waker: &Waker) {
        let mut slot = self.waker.lock();
        if !slot.as_ref().is_some_and(|w| w.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }
    pub(crate) fn wake(&self) {
        if let Some(waker) = self.waker.lock().as_ref() {
            waker.wake_by_ref();
        }
    }
}
