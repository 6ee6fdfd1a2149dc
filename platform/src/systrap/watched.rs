//! Shared memory as seen by the Sentry: the hand-off area of each guest process, the page that all stubs read, and
//! the executor's record of a cell.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{addr_of, addr_of_mut, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU8, Ordering::*};
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::memfd::{memfd_create, MFdFlags};
use parking_lot::Mutex;

use crate::budget::{self, AreaRoom, Use};
use crate::cores::CoreSet;

use super::abi::{self, Answer, Cell, Global, OpSlot, Post, Report};
use super::filter::Insn;
use super::handoff::{self, is_posted};

/// A memfd mapped here shared and writable, sealed against resizing.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is not bound to a thread and lives as long as the value; its memory is only accessed through
// raw pointers and atomics.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` gives out raw pointers only; all code below accesses the memory by volatile or atomic operations
// or by raw copies, which tolerate concurrent writers.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(name: &std::ffi::CStr, len: usize) -> io::Result<(Self, OwnedFd)> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        Self::of(fd, len, SealFlag::empty())
    }
    /// A mapping whose descriptor permits no further writable mappings, and whose pages may be executed.
    pub(crate) fn only_writer(name: &std::ffi::CStr, len: usize) -> io::Result<(Self, OwnedFd)> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        // MFD_EXEC as for the stub's image.
        let fd = memfd_create(name, flags | MFdFlags::from_bits_retain(libc::MFD_EXEC))
            .or_else(|_| memfd_create(name, flags))?;
        Self::of(fd, len, SealFlag::from_bits_retain(libc::F_SEAL_FUTURE_WRITE))
    }
    /// The first part of one that is so long in all.
    fn first(name: &std::ffi::CStr, whole: usize, len: usize) -> io::Result<(Self, OwnedFd)> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&fd, whole as i64)?;
        Self::sealed(fd, len, SealFlag::empty())
    }
    /// Of the same file, of which this maps the beginning, so many bytes from `at` on. No descriptor is needed for that.
    fn further(&self, at: usize, len: usize) -> io::Result<Self> {
        let end = at + len;
        // SAFETY: with an old length of 0 a shared mapping stays as it is and there is a second one, at an address of the
        // kernel's choice, of the same file from the same place on.
        let base = unsafe { libc::mremap(self.base.as_ptr().cast(), 0, end, libc::MREMAP_MAYMOVE) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the new mapping's first part, into which nothing points.
        unsafe { libc::munmap(base, at) };
        // SAFETY: within the new mapping.
        let base = NonNull::new(unsafe { base.cast::<u8>().add(at) }).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { base, len })
    }
    fn of(fd: OwnedFd, len: usize, seals: SealFlag) -> io::Result<(Self, OwnedFd)> {
        nix::unistd::ftruncate(&fd, len as i64)?;
        Self::sealed(fd, len, seals)
    }
    fn sealed(fd: OwnedFd, len: usize, seals: SealFlag) -> io::Result<(Self, OwnedFd)> {
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
    /// Populates the pages of a range, which saves a fault for each.
    pub(crate) fn populate(&self, at: usize, len: usize) {
        let start = at / crate::PAGE_SIZE as usize * crate::PAGE_SIZE as usize;
        let end = at.saturating_add(len).min(self.len);
        if start < end {
            // SAFETY: the range lies in the live mapping, and its bytes do not change. A kernel without this advice
            // returns an error, and the pages fault in later.
            unsafe { libc::madvise(self.base.as_ptr().add(start).cast(), end - start, libc::MADV_POPULATE_WRITE) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this value, and every pointer into it was made from a borrow of `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The page that the Sentry writes and all stubs read.
pub(crate) struct GlobalPage(Mapping, OwnedFd);

impl GlobalPage {
    pub(crate) fn new() -> io::Result<Self> {
        // Stubs map it read-only before their filter is in place; the filter then prevents them from changing that.
        let (mapping, fd) = Mapping::new(c"runsc-global", crate::PAGE_SIZE as usize)?;
        Ok(GlobalPage(mapping, fd))
    }
    fn global(&self) -> &Global {
        // SAFETY: the page is mapped as long as `self`, page-aligned and zeroed at first; all fields are atomics.
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
    /// Writes the program to [`abi::STRICT_AT`].
    pub(crate) fn set_strict(&self, program: &[Insn]) {
        let at = (abi::STRICT_AT - abi::GLOBAL_BASE) as usize;
        let count = std::mem::size_of::<u64>();
        assert!(at >= size_of::<Global>() && at + 2 * count + size_of_val(program) <= crate::PAGE_SIZE as usize);
        // SAFETY: in bounds of the live mapping, as asserted above, and aligned; no stub reads it yet.
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

/// The hand-off area of one guest process. The other side is hostile: each value is read once, by copy.
///
/// Few processes have more than one segment of threads; the address space of the others' is not taken.
pub(crate) struct Area {
    first: Segment,
    more: [OnceLock<Segment>; abi::MAX_SLOTS / abi::SEGMENT_SLOTS - 1],
}

struct Segment(Mapping, #[expect(dead_code, reason = "given back when dropped")] AreaRoom);

const SEGMENT_SIZE: usize = abi::SEGMENT_SLOTS * abi::SLOT_SIZE as usize;

impl Area {
    /// The descriptor is for the one other process that may map the area.
    pub(crate) fn new() -> io::Result<(Arc<Self>, OwnedFd)> {
        let room = AreaRoom::new(SEGMENT_SIZE as u64).ok_or(io::ErrorKind::OutOfMemory)?;
        let (mapping, fd) = Mapping::first(c"runsc-area", abi::AREA_SIZE as usize, SEGMENT_SIZE)?;
        let first = Segment(mapping, room);
        Ok((Arc::new(Area { first, more: Default::default() }), budget::admit(fd, Use::Process)?))
    }
    /// Makes sure that the slot can be used; false if there is no such slot, or no room for its segment.
    pub(crate) fn reach(&self, slot: usize) -> bool {
        let Some(which) = (slot / abi::SEGMENT_SLOTS).checked_sub(1) else { return true };
        let Some(segment) = self.more.get(which) else { return false };
        if segment.get().is_some() {
            return true;
        }
        let Some(room) = AreaRoom::new(SEGMENT_SIZE as u64) else { return false };
        match self.first.0.further((which + 1) * SEGMENT_SIZE, SEGMENT_SIZE) {
            Ok(mapping) => {
                // Another thread may have been faster.
                let _ = segment.set(Segment(mapping, room));
                true
            }
            Err(e) => {
                log::warn!("no further segment of a hand-off area: {e}");
                false
            }
        }
    }
    /// Of a slot that has been reached.
    fn slot(&self, slot: usize) -> *mut u8 {
        let segment = match slot / abi::SEGMENT_SLOTS {
            0 => Some(&self.first),
            n => self.more[n - 1].get(),
        };
        let Some(Segment(mapping, _)) = segment else {
            unreachable!("slot {slot} was given out before it was reached")
        };
        // SAFETY: in bounds, since a segment has as many slots.
        unsafe { mapping.base.as_ptr().add(slot % abi::SEGMENT_SLOTS * abi::SLOT_SIZE as usize) }
    }
    fn cell(&self, slot: usize) -> *mut Cell {
        self.slot(slot).cast()
    }
    pub(crate) fn state(&self, slot: usize) -> &AtomicU32 {
        // SAFETY: an aligned word of the live mapping, only accessed as an atomic.
        unsafe { &*addr_of!((*self.cell(slot)).state) }
    }
    pub(crate) fn ops_done(&self, slot: usize) -> u32 {
        // SAFETY: an aligned word of the live mapping, only accessed as an atomic.
        unsafe { &*addr_of!((*self.cell(slot)).ops_done) }.load(Acquire)
    }
    fn core(&self, slot: usize) -> u32 {
        // SAFETY: an aligned word of the live mapping, only accessed as an atomic.
        unsafe { &*addr_of!((*self.cell(slot)).core) }.load(Relaxed)
    }
    /// Mark of an exited thread: its signal stack is free.
    pub(crate) fn gone(&self, slot: usize) -> &AtomicU32 {
        // SAFETY: an aligned word of the live mapping, only accessed as an atomic.
        unsafe { &*addr_of!((*self.cell(slot)).gone) }
    }
    /// Clears the slot for a new thread.
    pub(crate) fn reset(&self, slot: usize) {
        self.set_filtered(slot, false);
        for nr in 0..abi::ANSWERS {
            self.set_answer(slot, nr, None);
        }
        // SAFETY: an aligned word in the live mapping.
        unsafe { addr_of_mut!((*self.cell(slot)).robust).write_volatile(0) };
    }
    /// Sets or clears the stub's own answer to call `nr`.
    pub(crate) fn set_answer(&self, slot: usize, nr: usize, answer: Option<u32>) {
        assert!(nr < abi::ANSWERS);
        // SAFETY: an aligned word of the live mapping, only accessed as an atomic.
        unsafe { &(*addr_of!((*self.cell(slot)).answers))[nr] }.store(answer.map_or(0, |a| !a), Release);
    }
    pub(crate) fn set_filtered(&self, slot: usize, on: bool) {
        // SAFETY: an aligned word of the live mapping, only accessed as an atomic.
        unsafe { &*addr_of!((*self.cell(slot)).filtered) }.store(on.into(), SeqCst);
    }
    /// The stub's counts of calls that it answered and made by itself. Not trustworthy.
    pub(crate) fn counts(&self, slot: usize) -> (u64, u64) {
        let cell = self.cell(slot);
        // SAFETY: in the live mapping; any bytes are valid; volatile, because the guest may write meanwhile.
        unsafe { (addr_of!((*cell).answered).read_volatile(), addr_of!((*cell).native).read_volatile()) }
    }
    /// Reads the stub's post; call once per post.
    pub(crate) fn read_post(&self, slot: usize) -> Post {
        // SAFETY: in the live mapping; any bytes are a valid `Post`; volatile, because the guest may write meanwhile.
        unsafe { addr_of!((*self.cell(slot)).post).read_volatile() }
    }
    /// Reads the rest of the post; call once per post.
    pub(crate) fn read_report(&self, slot: usize) -> Report {
        // SAFETY: in the live mapping; any bytes are a valid `Report`; volatile, because the guest may write
        // meanwhile.
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
        // SAFETY: all fields are in the live mapping and aligned; volatile, because the guest may read or write
        // meanwhile. An honest stub reads them only after the state word changes.
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
        // SAFETY: `index` is below MAX_OPS, so the slot lies in the cell, in the live mapping.
        unsafe { addr_of_mut!((*self.cell(slot)).ops[index]).write_volatile(op) }
    }
    /// Copies bytes to the slot's staging buffer.
    pub(crate) fn stage_out(&self, slot: usize, at: usize, data: &[u8]) {
        assert!(at <= abi::STAGE_OUT_MAX && data.len() <= abi::STAGE_OUT_MAX - at);
        // SAFETY: in bounds, as asserted above; raw pointers, because the guest may read or write meanwhile.
        unsafe {
            let to = self.slot(slot).add(abi::STAGE_OUT as usize + at);
            std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
        }
    }
    /// Copies bytes of a file to the slot's staging buffer; zeroes beyond its end.
    pub(crate) fn stage_file(&self, slot: usize, at: usize, file: &crate::host::SharedFile, offset: u64, len: usize) {
        assert!(at <= abi::STAGE_OUT_MAX && len <= abi::STAGE_OUT_MAX - at);
        // SAFETY: in bounds, as asserted above; raw pointers, because guests may access both sides meanwhile.
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
    /// Copies the bytes that the stub put into the staging buffer.
    pub(crate) fn stage_in(&self, slot: usize, len: usize, into: &mut Vec<u8>) {
        let len = len.min(abi::STAGE_IN_MAX);
        into.clear();
        into.reserve(len);
        // SAFETY: `len` is at most STAGE_IN_MAX, which fits into the slot; `into` has capacity for it, and all of it
        // is written; raw pointers, because the guest may write meanwhile.
        unsafe {
            let from = self.slot(slot).add(abi::STAGE_IN as usize);
            std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), len);
            into.set_len(len);
        }
    }
    /// Publishes the answer to the waiting stub; `before` is called if the stub has to be woken.
    pub(crate) fn reply(&self, slot: usize, before: impl FnOnce()) {
        let word = self.state(slot);
        handoff::reply(word, || {
            before();
            futex_wake(word);
        });
    }
    /// Lets the stub stop spinning.
    pub(crate) fn park(&self, slot: usize) {
        handoff::park(self.state(slot));
    }
}

fn futex_wake(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE uses only the address of the word, which is live.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1, 0, 0, 0) };
}

/// A cell that the executor scans.
pub(crate) struct Watched {
    pub(crate) area: Arc<Area>,
    pub(crate) slot: usize,
    /// The host thread as its maker reports it (0: not yet), and the process that it must belong to, as the host
    /// reports it.
    pub(crate) tid: AtomicI32,
    pub(crate) pid: AtomicI32,
    /// The cores to which it has been moved (a [`CoreSet`]).
    placed: AtomicU8,
    /// Background work: no task waits for it, so it uses the poller's core while the poller is idle.
    pub(crate) background: AtomicBool,
    /// The affinity mask that the guest has set.
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
    /// The tid of its thread, if the host confirms now that it belongs to the process. A tid reported by a stub may
    /// be that of another stub's thread, or of a thread of the Sentry.
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
    /// The core that the stub reported with its last notification.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The stub sees one area, whose further segments are mapped here when they are needed.
    #[test]
    fn segments_of_one_file() {
        let (area, fd) = Area::new().unwrap();
        let (last, slots) = (abi::MAX_SLOTS - 1, [0, abi::SEGMENT_SLOTS - 1, abi::SEGMENT_SLOTS, abi::MAX_SLOTS - 1]);
        assert!(area.reach(0) && area.more.iter().all(|s| s.get().is_none()));
        assert!(area.reach(last) && !area.reach(last + 1) && slots.iter().all(|slot| area.reach(*slot)));
        for (i, slot) in slots.into_iter().enumerate() {
            area.state(slot).store(100 + i as u32, SeqCst);
        }
        for (i, slot) in slots.into_iter().enumerate() {
            let offset = std::mem::offset_of!(Cell, state) as u64 + slot as u64 * abi::SLOT_SIZE;
            let mut seen = [0; 4];
            assert_eq!(nix::sys::uio::pread(&fd, &mut seen, offset as i64), Ok(4));
            assert_eq!(u32::from_ne_bytes(seen), 100 + i as u32);
        }
    }
}
