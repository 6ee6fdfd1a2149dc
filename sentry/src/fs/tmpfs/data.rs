//! Content of a regular file of a tmpfs: small ones in the heap, grown or mapped ones in a memfd, which guests can map and which may be sparse.
//! A memfd takes a descriptor of the Sentry's, which are few: where too many are in use already, a file that is not mapped
//! has [`Pages`] of the heap, with holes too.
//!
//! What a write may take is counted before it is written, so that files together never hold more than is counted.
//! Where there are no holes the length says exactly what that is; where there are, every byte counts as new until the
//! host is asked (`settle`). What is in the heap counts against what all files together may have of that ([`Heap`]),
//! too: what finds no more room goes to a memfd.

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
/// A file that has more than this in pages gets a memfd if there is one to be had at all.
const PAGES_MAX: u64 = 4 << 20;
/// Bytes moved at a time between pages and a guest.
const PART: usize = 64 * 1024;
/// Bytes that a memfd with holes may have counted too much before the host is asked.
const RECOUNT: u64 = 128 * 1024;

/// Bytes that the host takes milliseconds to give back.
const LONG: u64 = 16 << 20;

/// What a content has of [`HEAP`]: what its store holds, or is about to.
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
    /// Of those, what was counted without a look at whether it was there before.
    unsettled: u64,
    /// What `blocks` said, plus one; 0 when that may have changed.
    blocks: AtomicU64,
    /// Guests may change it behind our back.
    mapped: bool,
    /// There may be holes in it. To look at one through a mapping would fill it.
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

/// Gives back what a content that became shorter does not need any more: only its length is counted.
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
    /// It is about to be mapped writable and shared.
    pub fn set_mapped(&mut self) {
        self.mapped = true;
        *self.blocks.get_mut() = 0;
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

    /// Counts what is in the heap now: no more than was counted before it was put there.
    fn recount(&mut self) {
        let now = match &self.store {
            Store::Heap(v) => pages(v.len() as u64),
            Store::Pages(p) => p.taken(),
            Store::Shared(_) => 0,
        };
        self.heap.0.set(now);
    }

    /// Counts `bytes` of heap; if there is no more, has the content in a memfd.
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

    /// Writes at `offset` and grows as needed.
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
        // On the heap there are no holes.
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
                    // What was not written does not make the file longer.
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
                // There may be room for this page.
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
                    // What was not written does not make the file longer.
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

    /// Counts what writing up to `want` bytes at `at` of the memfd may take; gives how many of them there is room for.
    fn reserve(&mut self, fs: &TmpFs, at: u64, want: usize) -> Result<usize> {
        if self.unsettled >= RECOUNT {
            self.settle(fs);
        }
        if self.claim(fs, at, want).is_ok() {
            return Ok(want);
        }
        self.settle(fs);
        // Whole pages of what is left, and what the last page has anyway.
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

    /// Finds out what there is (of a memfd, from the host), and counts that.
    fn settle(&mut self, fs: &TmpFs) {
        let now = match &self.store {
            Store::Heap(_) => return,
            Store::Pages(p) => p.taken(),
            Store::Shared(f) => f.blocks() * 512,
        };
        fs.recharge(self.charged, now);
        (self.charged, self.unsettled) = (now, 0);
    }

    /// Has a store that may be long and have holes.
    fn outgrow(&mut self, fs: &TmpFs) -> Result<()> {
        let what = match &self.store {
            Store::Heap(_) => Use::Content,
            Store::Pages(p) if p.taken() > PAGES_MAX => Use::Mapped,
            _ => return Ok(()),
        };
        match (SharedFile::new(what), &self.store) {
            (Ok(f), _) => self.move_to(fs, f),
            (Err(Errno::EMFILE | Errno::ENFILE), Store::Heap(v)) => {
                // What is there is counted.
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

    /// Moves the content to a memfd, if it is not there. `ENFILE` if there is none to be had.
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
                // Pages behind the end come with fallocate(2) only, and are not kept.
                self.sparse = true;
            }
            Store::Shared(_) => return Ok(()),
        }
        // It is counted already.
        self.store = Store::Shared(Arc::new(f));
        self.recount();
        self.settle(fs);
        Ok(())
    }

    /// Moves the content out of a memfd that nothing but this refers to, so that its descriptor is free again. Says whether it did.
    pub fn unshare(&mut self, fs: &TmpFs) -> bool {
        let done = self.unshare_counted(fs);
        self.recount();
        done
    }

    fn unshare_counted(&mut self, fs: &TmpFs) -> bool {
        let Store::Shared(f) = &self.store else { return false };
        // It may have changed since it was counted, through mappings that are gone.
        if f.fd_is_used() || self.charged > PAGES_MAX || !self.heap.0.set((f.blocks() * 512).min(pages(f.len()))) {
            return false;
        }
        let mut p = Pages::default();
        let mut buf = [0; PAGE as usize];
        let mut at = 0;
        // Of a sparse file, what has data.
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
        (self.mapped, self.sparse) = (false, true);
        *self.blocks.get_mut() = 0;
        self.settle(fs);
        true
    }

    /// fallocate(2): `offset + len` has been checked.
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
                // Pages behind the end: the length does not tell any more what there is.
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
                // Counted first; what was there before is found out afterwards.
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
                let at = nix::unistd::lseek(&*f.fd(), offset as i64, how)?;
                Ok(at as u64)
            }
        }
    }

    /// Gives the memory back to the limit, and at once or soon to the host.
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
