//! Content of a regular file of a tmpfs. Small files are in the heap. Large or mapped ones are in a memfd, which guests
//! can map and which may be sparse. A memfd takes a descriptor of the Sentry: when too many are in use, an unmapped
//! file is stored in heap [`Pages`], which may have holes too.
//!
//! A write is charged before it is carried out, so that all files together never hold more than is charged. Without
//! holes the length determines the exact charge; with holes every byte written counts as new until the host is asked
//! (`settle`). Content in the heap also counts against the heap budget of all files ([`Heap`]); content beyond that
//! budget goes to a memfd.

use super::pages::Pages;
use super::{TmpFs, HEAP, PAGE};
use crate::error::{later, Errno, Result};
use crate::mm::io::{Dst, Src};
use platform::budget::{Charge, Use};
use platform::executor::{aside, ask_room, drop_aside};
use platform::host::SharedFile;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Largest content kept in the heap.
const HEAP_MAX: u64 = 128 * 1024;
/// Bytes moved at a time between a memfd and a guest.
const CHUNK: usize = 1 << 20;
/// A larger file in pages is moved to a memfd if any descriptor is left.
const PAGES_MAX: u64 = 4 << 20;
/// Bytes moved at a time between pages and a guest.
const PART: usize = 64 * 1024;
/// Limit of the overestimated charge of a sparse memfd before the host is asked.
const RECOUNT: u64 = 128 * 1024;

/// Freeing more than this takes the host milliseconds.
const LONG: u64 = 16 << 20;

/// A file's charge against [`HEAP`]: what its store holds, or is about to hold.
struct Heap(Charge);

impl Default for Heap {
    fn default() -> Self {
        Heap(HEAP.nothing())
    }
}

#[derive(Default)]
pub struct Data {
    store: Store,
    heap: Heap,
    /// Bytes counted against the file system's limit.
    charged: u64,
    /// The part of `charged` that may have been charged twice: pages that may have existed before.
    unsettled: u64,
    /// The cached result of `blocks` plus one; 0 if it may have changed.
    blocks: AtomicU64,
    /// The file is mapped shared and writable: guests may change it without a call.
    mapped: bool,
    /// A guest process has received a writable descriptor and may keep it or an unknown mapping.
    given: bool,
    /// There may be holes. Reading one through a mapping would allocate it.
    sparse: bool,
}

enum Store {
    Heap(Vec<u8>),
    Pages(Pages),
    Shared(Arc<SharedFile>),
}

impl Default for Store {
    fn default() -> Self {
        Store::Heap(Vec::new())
    }
}

fn pages(n: u64) -> u64 {
    n.div_ceil(PAGE) * PAGE
}

/// Releases capacity after a truncation: only the length is charged.
fn trim(v: &mut Vec<u8>) {
    let keep = pages(v.len() as u64) as usize;
    if v.capacity() > 2 * keep {
        v.shrink_to(keep);
    }
}

impl Data {
    pub fn len(&self) -> u64 {
        match &self.store {
            Store::Heap(v) => v.len() as u64,
            Store::Pages(p) => p.len(),
            Store::Shared(f) => f.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// 512-byte blocks in use.
    pub fn blocks(&self) -> u64 {
        match &self.store {
            Store::Heap(v) => pages(v.len() as u64) / 512,
            Store::Pages(p) => p.taken() / 512,
            Store::Shared(f) => {
                if let Some(known) = self.blocks.load(Ordering::Relaxed).checked_sub(1) {
                    return known;
                }
                let now = f.blocks();
                if !self.mapped {
                    self.blocks.store(now.wrapping_add(1), Ordering::Relaxed);
                }
                now
            }
        }
    }
    /// Records that the file is about to be mapped shared and writable.
    pub fn set_mapped(&mut self) {
        self.mapped = true;
        *self.blocks.get_mut() = 0;
    }

    /// Records that a guest process gets the memfd's own descriptor.
    pub fn set_given(&mut self) {
        self.given = true;
    }

    pub fn read(&self, dst: &mut Dst<'_>, offset: u64) -> Result<usize> {
        let Some(left) = self.len().checked_sub(offset) else { return Ok(0) };
        match &self.store {
            Store::Heap(v) => {
                let from = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
                dst.put(v.get(from..).unwrap_or(&[]))
            }
            Store::Pages(p) => p.read(dst, offset),
            Store::Shared(f) if self.sparse && self.blocks() * 512 < self.len() => {
                crate::fs::gofer::read_fd(&f.fd(), dst, offset)
            }
            Store::Shared(f) => dst.put_file(f, offset, usize::try_from(left).unwrap_or(usize::MAX)),
        }
    }

    /// Lowers the charge to what the heap holds now.
    fn recount(&mut self) {
        let now = match &self.store {
            Store::Heap(v) => pages(v.len() as u64),
            Store::Pages(p) => p.taken(),
            Store::Shared(_) => 0,
        };
        self.heap.0.set(now);
    }

    /// Charges `bytes` of heap; if the budget is used up, moves the content to a memfd.
    fn have_heap(&mut self, fs: &TmpFs, bytes: u64) -> Result<()> {
        if self.heap.0.set(bytes) {
            return Ok(());
        }
        self.evacuate(fs)
    }

    fn evacuate(&mut self, fs: &TmpFs) -> Result<()> {
        let f = SharedFile::new(Use::Mapped).map_err(|_| Errno::ENOSPC)?;
        self.move_to(fs, f)
    }

    /// Writes at `offset` and grows the file as needed.
    pub fn write(&mut self, fs: &TmpFs, src: &mut Src<'_>, offset: u64) -> Result<usize> {
        let r = self.write_counted(fs, src, offset);
        self.recount();
        r
    }

    fn write_counted(&mut self, fs: &TmpFs, src: &mut Src<'_>, offset: u64) -> Result<usize> {
        *self.blocks.get_mut() = 0;
        let want = src.remaining();
        if want == 0 {
            return Ok(0);
        }
        let end = offset.checked_add(want as u64).filter(|e| *e <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
        // Content in the heap vector has no holes.
        self.sparse |= offset > pages(self.len());
        if end > HEAP_MAX || offset > pages(self.len()) {
            self.outgrow(fs)?;
        }
        if matches!(self.store, Store::Heap(_)) {
            self.have_heap(fs, pages(end.max(self.len())))?;
        }
        match &mut self.store {
            Store::Heap(v) => {
                let (from, end) = (offset as usize, end as usize);
                let len = v.len();
                let after = pages((end as u64).max(len as u64));
                fs.charge(self.charged, after)?;
                self.charged = after;
                if v.len() < end {
                    v.resize(end, 0);
                }
                let r = src.take(&mut v[from..end]);
                let n = *r.as_ref().unwrap_or(&0);
                if n < want {
                    // A partial write extends the file only by what was written.
                    let keep = if n == 0 { len } else { (from + n).max(len) };
                    v.truncate(keep);
                    trim(v);
                    self.charged = pages(keep as u64);
                    fs.recharge(after, self.charged);
                }
                r
            }
            Store::Pages(_) => self.write_pages(fs, src, offset, want),
            Store::Shared(_) => self.write_shared(fs, src, offset, want),
        }
    }

    fn write_pages(&mut self, fs: &TmpFs, src: &mut Src<'_>, offset: u64, want: usize) -> Result<usize> {
        let mut buf = vec![0; want.min(PART)];
        let mut done = 0;
        while let (Store::Pages(p), true) = (&mut self.store, done < want) {
            let at = offset + done as u64;
            let mut n = buf.len().min(want - done);
            let mut more = p.missing(at, at + n as u64);
            if more > fs.room() {
                // There may be room for one more page.
                n = n.min((PAGE - at % PAGE) as usize);
                more = p.missing(at, at + n as u64);
            }
            match fs.charge(self.charged, self.charged + more) {
                Ok(()) => {}
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
            if !self.heap.0.set(p.taken() + more) {
                fs.recharge(self.charged + more, self.charged);
                if done > 0 {
                    break;
                }
                self.evacuate(fs)?;
                return self.write_shared(fs, src, offset, want);
            }
            let r = src.take(&mut buf[..n]);
            let k = *r.as_ref().unwrap_or(&0);
            if k > 0 {
                p.write(at, &buf[..k]);
            }
            fs.recharge(self.charged + more, p.taken());
            self.charged = p.taken();
            done += k;
            match r {
                Err(e) if done == 0 => return Err(e),
                Ok(_) if k == n => {}
                _ => break,
            }
        }
        Ok(done)
    }

    fn write_shared(&mut self, fs: &TmpFs, src: &mut Src<'_>, offset: u64, want: usize) -> Result<usize> {
        let mut done = 0usize;
        while done < want {
            let at = offset + done as u64;
            let part = match self.reserve(fs, at, CHUNK.min(want - done)) {
                Ok(part) => part,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            };
            let Store::Shared(f) = &self.store else { break };
            let len = f.len();
            if at + part as u64 > len {
                if let Err(e) = f.set_len(at + part as u64) {
                    self.settle(fs);
                    return if done > 0 { Ok(done) } else { Err(e) };
                }
            }
            let r = src.take_to_file(f, at, part);
            let n = *r.as_ref().unwrap_or(&0);
            if n < part {
                if f.len() > len {
                    // A partial write extends the file only by what was written.
                    f.set_len((at + n as u64).max(len))?;
                }
                self.settle(fs);
            }
            done += n;
            match r {
                Err(e) if done == 0 => return Err(e),
                Ok(_) if n == part => {}
                _ => break,
            }
        }
        Ok(done)
    }

    /// Charges a write of up to `want` bytes at `at` of the memfd; returns how many bytes there is room for.
    fn reserve(&mut self, fs: &TmpFs, at: u64, want: usize) -> Result<usize> {
        if self.unsettled >= RECOUNT {
            self.settle(fs);
        }
        if self.claim(fs, at, want).is_ok() {
            return Ok(want);
        }
        self.settle(fs);
        // The room left in whole pages, plus the rest of the last page, which is charged already.
        let first = if self.sparse { at / PAGE * PAGE } else { pages(self.len()).max(at / PAGE * PAGE) };
        let end = first.saturating_add(fs.room() / PAGE * PAGE);
        let want = want.min(usize::try_from(end.saturating_sub(at)).unwrap_or(want));
        if want == 0 {
            return Err(Errno::ENOSPC);
        }
        self.claim(fs, at, want)?;
        Ok(want)
    }

    fn claim(&mut self, fs: &TmpFs, at: u64, n: usize) -> Result<()> {
        let end = pages(at + n as u64);
        let more =
            if self.sparse { end - at / PAGE * PAGE } else { end.max(pages(self.len())).saturating_sub(self.charged) };
        if more > 0 {
            fs.charge(self.charged, self.charged + more)?;
            self.charged += more;
            if self.sparse {
                self.unsettled += more;
            }
        }
        Ok(())
    }

    pub fn set_len(&mut self, fs: &TmpFs, len: u64) -> Result<()> {
        let r = self.set_len_counted(fs, len);
        self.recount();
        r
    }

    fn set_len_counted(&mut self, fs: &TmpFs, len: u64) -> Result<()> {
        *self.blocks.get_mut() = 0;
        if len > i64::MAX as u64 {
            return Err(Errno::EFBIG);
        }
        self.sparse |= len > pages(self.len());
        if len > self.len() && (len > HEAP_MAX || len > pages(self.len())) {
            self.outgrow(fs)?;
        }
        if matches!(self.store, Store::Heap(_)) {
            self.have_heap(fs, pages(len))?;
        }
        match &mut self.store {
            Store::Heap(v) => {
                let after = pages(len);
                fs.charge(self.charged, after)?;
                self.charged = after;
                v.resize(len as usize, 0);
                trim(v);
                Ok(())
            }
            Store::Pages(p) => {
                if len > platform::host::SHARED_FILE_MAX {
                    return Err(Errno::EFBIG);
                }
                if p.taken() > LONG && p.len() > len {
                    ask_room().map_err(later)?;
                    aside(|| p.set_len(len));
                } else {
                    p.set_len(len);
                }
                self.settle(fs);
                Ok(())
            }
            Store::Shared(f) => {
                if f.len().saturating_sub(len) > LONG && f.blocks().saturating_mul(512) > LONG {
                    ask_room().map_err(later)?;
                    aside(|| f.set_len(len))?;
                } else {
                    f.set_len(len)?;
                }
                self.settle(fs);
                Ok(())
            }
        }
    }

    /// Sets the charge to the memory in use; for a memfd the host tells it.
    fn settle(&mut self, fs: &TmpFs) {
        let now = match &self.store {
            Store::Heap(_) => return,
            Store::Pages(p) => p.taken(),
            Store::Shared(f) => f.blocks() * 512,
        };
        fs.recharge(self.charged, now);
        (self.charged, self.unsettled) = (now, 0);
    }

    /// Switches to a store that may be large and sparse.
    fn outgrow(&mut self, fs: &TmpFs) -> Result<()> {
        let what = match &self.store {
            Store::Heap(_) => Use::Content,
            Store::Pages(p) if p.taken() > PAGES_MAX => Use::Mapped,
            _ => return Ok(()),
        };
        match (SharedFile::new(what), &self.store) {
            (Ok(f), _) => self.move_to(fs, f),
            (Err(Errno::EMFILE | Errno::ENFILE), Store::Heap(v)) => {
                // This memory is charged already.
                let mut p = Pages::default();
                p.write(0, v);
                self.store = Store::Pages(p);
                self.settle(fs);
                Ok(())
            }
            (Err(Errno::EMFILE | Errno::ENFILE), _) => Ok(()),
            (Err(e), _) => Err(e),
        }
    }

    /// Moves the content to a memfd unless it is in one. `ENFILE` if no descriptor is left.
    pub fn share(&mut self, fs: &TmpFs) -> Result<&SharedFile> {
        *self.blocks.get_mut() = 0;
        if !matches!(self.store, Store::Shared(_)) {
            self.move_to(fs, SharedFile::new(Use::Mapped)?)?;
        }
        match &self.store {
            Store::Shared(f) => Ok(f),
            _ => Err(Errno::EIO),
        }
    }
    fn move_to(&mut self, fs: &TmpFs, f: SharedFile) -> Result<()> {
        match &self.store {
            Store::Heap(v) => drop(f.copy_in(0, v)?),
            Store::Pages(p) => {
                f.set_len(p.len())?;
                for (at, piece) in p.pieces() {
                    f.copy_in(at, piece)?;
                }
                // Pages beyond the end exist only after fallocate(2); they are not moved.
                self.sparse = true;
            }
            Store::Shared(_) => return Ok(()),
        }
        // The content is charged already.
        self.store = Store::Shared(Arc::new(f));
        self.recount();
        self.settle(fs);
        Ok(())
    }

    /// Moves the content out of a memfd that has no other user, which frees its descriptor. True if it did.
    pub fn unshare(&mut self, fs: &TmpFs) -> bool {
        let done = self.unshare_counted(fs);
        self.recount();
        done
    }

    fn unshare_counted(&mut self, fs: &TmpFs) -> bool {
        let Store::Shared(f) = &self.store else { return false };
        // The size is read from the host: mappings that are gone may have changed it since it was charged.
        if f.fd_is_used() || self.charged > PAGES_MAX || !self.heap.0.set((f.blocks() * 512).min(pages(f.len()))) {
            return false;
        }
        let mut p = Pages::default();
        let mut buf = [0; PAGE as usize];
        let mut at = 0;
        // Only data is copied; holes stay holes.
        while let Some(from) = self.seek(at, libc::SEEK_DATA).ok().map(|d| d / PAGE * PAGE) {
            let n = f.copy_out(from, &mut buf);
            if n == 0 {
                return false;
            }
            p.write(from, &buf[..n]);
            at = from + n as u64;
        }
        p.set_len(f.len());
        self.store = Store::Pages(p);
        (self.mapped, self.given, self.sparse) = (false, false, true);
        *self.blocks.get_mut() = 0;
        self.settle(fs);
        true
    }

    /// Moves the content to a new memfd if a guest may still be able to write to the current one.
    pub fn renew(&mut self, fs: &TmpFs) -> Result<()> {
        let Store::Shared(old) = &self.store else { return Ok(()) };
        if !self.given {
            return Ok(());
        }
        let (old, new) = (old.clone(), SharedFile::new(Use::Mapped)?);
        platform::executor::aside(|| self.copy_to(&new, old.len()))?;
        self.store = Store::Shared(Arc::new(new));
        (self.mapped, self.given) = (false, false);
        *self.blocks.get_mut() = 0;
        self.settle(fs);
        Ok(())
    }

    /// Copies `len` bytes of content; holes stay holes.
    fn copy_to(&self, to: &SharedFile, len: u64) -> Result<()> {
        let Store::Shared(from) = &self.store else { return Ok(()) };
        let mut buf = vec![0; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
        if self.sparse {
            to.set_len(len)?;
        }
        let mut at = 0;
        while at < len {
            let (data, hole) = if self.sparse {
                match self.seek(at, libc::SEEK_DATA) {
                    Err(Errno::ENXIO) => break,
                    data => (data?, self.seek(data?, libc::SEEK_HOLE)?.min(len)),
                }
            } else {
                (at, len)
            };
            at = data;
            while at < hole {
                let part = usize::try_from(hole - at).unwrap_or(CHUNK).min(CHUNK);
                let n = from.copy_out(at, &mut buf[..part]);
                if n == 0 || to.copy_in(at, &buf[..n])? < n {
                    return Err(Errno::EIO);
                }
                at += n as u64;
            }
        }
        Ok(())
    }

    /// fallocate(2); the caller has checked `offset + len`.
    pub fn fallocate(&mut self, fs: &TmpFs, mode: i32, offset: u64, len: u64) -> Result<()> {
        *self.blocks.get_mut() = 0;
        let end = offset.checked_add(len).filter(|e| *e <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
        let keep = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => {
                if len > fs.room() {
                    return Err(Errno::ENOSPC);
                }
                let was = self.len();
                // Pages beyond the end: the length does not determine the charge any more.
                self.sparse |= keep && end > pages(was);
                if !keep && end > self.len() {
                    self.set_len(fs, end)?;
                }
                if matches!(self.store, Store::Heap(_)) {
                    return Ok(());
                }
                if let Store::Pages(p) = &self.store {
                    let all = p.taken() + p.missing(offset, pages(end));
                    if let Err(e) = self.have_heap(fs, all) {
                        self.set_len(fs, was)?;
                        return Err(e);
                    }
                }
                // Charges the maximum first; `settle` corrects it afterwards.
                let most = self.charged + (pages(end) - offset / PAGE * PAGE);
                if let Err(e) = fs.charge(self.charged, most) {
                    self.set_len(fs, was)?;
                    return Err(e);
                }
                self.charged = most;
                let r = match &mut self.store {
                    Store::Shared(f) => {
                        let fd = f.fd();
                        platform::host::fallocate(std::os::fd::AsFd::as_fd(&*fd), mode, offset as i64, len as i64)
                    }
                    Store::Pages(p) => {
                        p.allocate(offset, end);
                        Ok(())
                    }
                    Store::Heap(_) => Ok(()),
                };
                self.settle(fs);
                self.recount();
                Ok(r?)
            }
            libc::FALLOC_FL_PUNCH_HOLE if keep => self.punch(fs, offset, end),
            libc::FALLOC_FL_ZERO_RANGE => {
                if !keep && end > self.len() {
                    self.set_len(fs, end)?;
                }
                self.punch(fs, offset, end)
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn punch(&mut self, fs: &TmpFs, offset: u64, end: u64) -> Result<()> {
        *self.blocks.get_mut() = 0;
        let end = end.min(self.len());
        if offset >= end {
            return Ok(());
        }
        match &mut self.store {
            Store::Heap(v) => {
                if let Some(part) = v.get_mut(offset as usize..end as usize) {
                    part.fill(0);
                }
            }
            Store::Pages(p) => {
                p.punch(offset, end);
                self.settle(fs);
                self.recount();
            }
            Store::Shared(f) => {
                self.sparse = true;
                f.punch_hole(offset, end - offset)?;
                self.settle(fs);
            }
        }
        Ok(())
    }

    /// `SEEK_DATA` and `SEEK_HOLE`.
    pub fn seek(&self, offset: u64, whence: i32) -> Result<u64> {
        if offset >= self.len() {
            return Err(Errno::ENXIO);
        }
        match &self.store {
            Store::Heap(_) if whence == libc::SEEK_DATA => Ok(offset),
            Store::Heap(v) => Ok(v.len() as u64),
            Store::Pages(p) => p.seek(offset, whence),
            Store::Shared(f) => {
                let how = if whence == libc::SEEK_DATA {
                    nix::unistd::Whence::SeekData
                } else {
                    nix::unistd::Whence::SeekHole
                };
                // The host scans every page.
                let find = || nix::unistd::lseek(&*f.fd(), offset as i64, how);
                let at = if f.len() - offset > 16 * LONG { platform::executor::aside(find) } else { find() }?;
                Ok(at as u64)
            }
        }
    }

    /// Returns the charge, and frees the memory (a large content in the background).
    pub fn release(&mut self, fs: &TmpFs) {
        fs.recharge(self.charged, 0);
        self.charged = 0;
        self.heap = Heap::default();
        match std::mem::take(&mut self.store) {
            Store::Shared(f) if f.len() > LONG => drop_aside(f),
            Store::Pages(p) if p.taken() > LONG => drop_aside(p),
            _ => {}
        }
    }
}
