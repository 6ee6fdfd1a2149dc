//! Destinations of `read` and sources of `write`: guest buffers (gathered and scattered) or kernel buffers.
//!
//! Data paths of file contents and their reasons: `docs/decisions/file-data.md`.

use crate::error::{Errno, Result};
use platform::host::SharedFile;
use platform::{AddressSpace, Op, STAGE_MAX};
use std::cell::RefCell;
use std::sync::Arc;

/// Most bytes that pass through a buffer of the Sentry at a time.
const CHUNK: usize = 256 * 1024;

/// One element of an I/O vector.
#[derive(Clone, Copy, Debug, Default)]
pub struct IoVec {
    pub addr: u64,
    pub len: usize,
}

/// Data for guest memory, which the stub stores when the call returns.
#[derive(Default)]
pub struct Staged(Vec<(u64, Piece)>);

enum Piece {
    Bytes(Vec<u8>),
    File(Arc<SharedFile>, u64, usize),
}

impl Staged {
    pub fn push(&mut self, addr: u64, data: Vec<u8>) {
        self.0.push((addr, Piece::Bytes(data)));
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The guest ranges that it covers.
    pub fn ranges(&self) -> Vec<IoVec> {
        let len = |p: &Piece| match p {
            Piece::Bytes(d) => d.len(),
            Piece::File(_, _, n) => *n,
        };
        self.0.iter().map(|(addr, p)| IoVec { addr: *addr, len: len(p) }).collect()
    }
    /// Copies the staged bytes that overlap `buf` at `addr` into `buf`; returns the end of the overlap in
    /// `buf`.
    pub fn overlay(&self, addr: u64, buf: &mut [u8]) -> usize {
        let mut end = 0;
        for (at, piece) in &self.0 {
            let len = match piece {
                Piece::Bytes(d) => d.len(),
                Piece::File(_, _, n) => *n,
            };
            // The overlap of the two ranges.
            let from = addr.max(*at);
            let to = addr.saturating_add(buf.len() as u64).min(at.saturating_add(len as u64));
            if from >= to {
                continue;
            }
            let (src_at, dst_at) = ((from - at) as usize, (from - addr) as usize);
            let Some(part) = buf.get_mut(dst_at..dst_at + (to - from) as usize) else { continue };
            let n = part.len();
            match piece {
                Piece::Bytes(d) => part.copy_from_slice(&d[src_at..src_at + n]),
                Piece::File(f, offset, _) => drop(f.copy_out(offset + src_at as u64, part)),
            }
            end = end.max(dst_at + n);
        }
        end
    }
    /// The operations that store the data.
    pub fn drain(&mut self) -> impl Iterator<Item = Op> + '_ {
        self.0.drain(..).map(|(addr, piece)| match piece {
            Piece::Bytes(data) => Op::CopyOut { addr, data },
            Piece::File(file, offset, len) => Op::CopyFile { addr, file, offset, len },
        })
    }
    /// The bytes that end at `addr`, to be appended to; a new piece has capacity for `room` bytes.
    fn at(&mut self, addr: u64, room: usize) -> &mut Vec<u8> {
        let joins = matches!(self.0.last(), Some((a, Piece::Bytes(d))) if *a + d.len() as u64 == addr);
        if !joins {
            self.push(addr, Vec::with_capacity(room));
        }
        match self.0.last_mut() {
            Some((_, Piece::Bytes(d))) => d,
            // `push` above added a `Bytes` piece.
            _ => unreachable!(),
        }
    }
}

thread_local! {
    /// Buffer for bytes that pass through.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` with a buffer of `len` bytes of unspecified contents.
fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut buf = SCRATCH.take();
    if buf.len() < len {
        buf.resize(len, 0);
    }
    let r = f(&mut buf[..len]);
    if buf.len() <= CHUNK {
        SCRATCH.set(buf);
    }
    r
}

/// A position in a vector.
struct Cursor<'a> {
    iov: &'a [IoVec],
    /// Index of the element, and offset in it.
    at: (usize, usize),
}

impl<'a> Cursor<'a> {
    fn new(iov: &'a [IoVec]) -> Self {
        Cursor { iov, at: (0, 0) }
    }
    /// Address and length of the next part, at most `max` bytes of one element; `None` at the end.
    fn piece(&mut self, max: usize) -> Result<Option<(u64, usize)>> {
        while let Some(v) = self.iov.get(self.at.0) {
            let left = v.len - self.at.1;
            if left > 0 {
                let addr = v.addr.checked_add(self.at.1 as u64).ok_or(Errno::EFAULT)?;
                return Ok(Some((addr, left.min(max))));
            }
            self.at = (self.at.0 + 1, 0);
        }
        Ok(None)
    }
    /// Moves on by `n` bytes of that part.
    fn advance(&mut self, n: usize) {
        self.at.1 += n;
    }
    fn back(&mut self, mut n: usize) {
        while n > 0 {
            if self.at.1 == 0 {
                let Some(prev) = self.at.0.checked_sub(1) else { break };
                self.at = (prev, self.iov[prev].len);
                continue;
            }
            let k = n.min(self.at.1);
            self.at.1 -= k;
            n -= k;
        }
    }
}

enum DstKind<'a> {
    Kernel(&'a mut [u8]),
    User { space: &'a dyn AddressSpace, iov: Cursor<'a>, stage: Option<&'a mut Staged> },
}

/// Destination of a read.
pub struct Dst<'a> {
    kind: DstKind<'a>,
    len: usize,
    done: usize,
}

/// Total length of a vector.
pub fn iov_len(iov: &[IoVec]) -> usize {
    iov.iter().map(|v| v.len).sum()
}

impl<'a> Dst<'a> {
    pub fn kernel(buf: &'a mut [u8]) -> Self {
        let len = buf.len();
        Dst { kind: DstKind::Kernel(buf), len, done: 0 }
    }
    /// Guest memory. With `stage`, which requires writable memory, the stub stores data that fits into one
    /// round.
    pub fn user(space: &'a dyn AddressSpace, iov: &'a [IoVec], stage: Option<&'a mut Staged>) -> Self {
        let len = iov_len(iov);
        Dst { kind: DstKind::User { space, iov: Cursor::new(iov), stage }, len, done: 0 }
    }
    pub fn remaining(&self) -> usize {
        self.len - self.done
    }
    pub fn done(&self) -> usize {
        self.done
    }
    /// Stores as much of `data` as fits; `EFAULT` if there was room but no byte could be stored.
    pub fn put(&mut self, data: &[u8]) -> Result<usize> {
        let want = data.len().min(self.remaining());
        let mut put = 0;
        match &mut self.kind {
            DstKind::Kernel(buf) => {
                buf[self.done..self.done + want].copy_from_slice(&data[..want]);
                put = want;
            }
            DstKind::User { space, iov, stage } => {
                while put < want {
                    let Some((addr, n)) = iov.piece(want - put)? else { break };
                    let chunk = &data[put..put + n];
                    let k = match stage {
                        Some(s) if self.len <= STAGE_MAX => {
                            s.at(addr, n).extend_from_slice(chunk);
                            n
                        }
                        _ => space.write(addr, chunk).map_err(|_| Errno::EFAULT)?,
                    };
                    put += k;
                    iov.advance(k);
                    if k < n {
                        break;
                    }
                }
                if put == 0 && want > 0 {
                    return Err(Errno::EFAULT);
                }
            }
        }
        self.done += put;
        Ok(put)
    }
    /// Lets `f` fill a buffer of up to `max` bytes (it returns the number filled) and stores them. `f` is
    /// called at most once.
    pub fn fill(&mut self, max: usize, f: &mut dyn FnMut(&mut [u8]) -> Result<usize>) -> Result<usize> {
        let want = max.min(self.remaining());
        if let DstKind::Kernel(buf) = &mut self.kind {
            let n = f(&mut buf[self.done..self.done + want])?;
            self.done += n;
            return Ok(n);
        }
        if let (DstKind::User { iov, stage: Some(s), .. }, true) = (&mut self.kind, self.len <= STAGE_MAX) {
            // Fills the staged piece directly if the data stays in one piece.
            if let Ok(Some((addr, n))) = iov.piece(want) {
                if n == want {
                    let out = s.at(addr, want);
                    let before = out.len();
                    out.resize(before + want, 0);
                    let r = f(&mut out[before..]);
                    let n = *r.as_ref().unwrap_or(&0);
                    out.truncate(before + n);
                    iov.advance(n);
                    self.done += n;
                    return r;
                }
            }
        }
        with_scratch(want, |buf| {
            let n = f(buf)?;
            self.put(&buf[..n])
        })
    }
    /// Stores bytes `offset..offset + len` of an in-memory file, which must have them; otherwise as `put`.
    pub fn put_file(&mut self, file: &Arc<SharedFile>, offset: u64, len: usize) -> Result<usize> {
        let want = len.min(self.remaining());
        let mut done = 0;
        if let DstKind::User { space, iov, stage } = &mut self.kind {
            while done < want {
                let Some((addr, n)) = iov.piece(want - done)? else { break };
                let from = offset + done as u64;
                let k = match stage {
                    Some(s) if self.len <= STAGE_MAX || self.len <= space.rounds_pay() => {
                        s.0.push((addr, Piece::File(file.clone(), from, n)));
                        n
                    }
                    _ => space.write_from_file(addr, file, from, n).map_err(|_| Errno::EFAULT)?,
                };
                done += k;
                iov.advance(k);
                if k < n {
                    break;
                }
            }
            self.done += done;
            return if done == 0 && want > 0 { Err(Errno::EFAULT) } else { Ok(done) };
        }
        while done < want {
            let part = (want - done).min(CHUNK);
            match self.fill(part, &mut |buf| Ok(file.copy_out(offset + done as u64, buf))) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
    pub fn put_zeros(&mut self, n: usize) -> Result<usize> {
        static ZEROS: [u8; CHUNK] = [0; CHUNK];
        let mut done = 0;
        while done < n && self.remaining() > 0 {
            let k = self.put(&ZEROS[..(n - done).min(CHUNK)])?;
            done += k;
            if k == 0 {
                break;
            }
        }
        Ok(done)
    }
}

enum SrcKind<'a> {
    Kernel(&'a [u8]),
    User { space: &'a dyn AddressSpace, iov: Cursor<'a>, prefetched: Option<(u64, &'a [u8])> },
}

/// Source of a write.
pub struct Src<'a> {
    /// Whether to write at the end of the file, if the call itself says so (`RWF_APPEND`).
    pub append: Option<bool>,
    kind: SrcKind<'a>,
    len: usize,
    done: usize,
}

impl<'a> Src<'a> {
    pub fn kernel(data: &'a [u8]) -> Self {
        Src { append: None, kind: SrcKind::Kernel(data), len: data.len(), done: 0 }
    }
    /// Guest memory; `prefetched` holds bytes that the stub copied in ahead of time from that address.
    pub fn user(space: &'a dyn AddressSpace, iov: &'a [IoVec], prefetched: Option<(u64, &'a [u8])>) -> Self {
        let kind = SrcKind::User { space, iov: Cursor::new(iov), prefetched };
        Src { append: None, kind, len: iov_len(iov), done: 0 }
    }
    pub fn remaining(&self) -> usize {
        self.len - self.done
    }
    pub fn done(&self) -> usize {
        self.done
    }
    /// Whether to write at the end of a file that is open with these flags.
    pub fn appends(&self, flags: i32) -> bool {
        self.append.unwrap_or(flags & libc::O_APPEND != 0)
    }
    /// Takes up to `buf.len()` bytes; fewer at the end or before unreadable memory, `EFAULT` if none could be
    /// read.
    pub fn take(&mut self, buf: &mut [u8]) -> Result<usize> {
        let want = buf.len().min(self.remaining());
        let mut got = 0;
        match &mut self.kind {
            SrcKind::Kernel(data) => {
                buf[..want].copy_from_slice(&data[self.done..self.done + want]);
                got = want;
            }
            SrcKind::User { space, iov, prefetched } => {
                while got < want {
                    let Some((addr, n)) = iov.piece(want - got)? else { break };
                    let out = &mut buf[got..got + n];
                    let k = match prefetched {
                        Some((base, bytes)) if addr >= *base && addr - *base < bytes.len() as u64 => {
                            let from = (addr - *base) as usize;
                            let k = n.min(bytes.len() - from);
                            out[..k].copy_from_slice(&bytes[from..from + k]);
                            k
                        }
                        _ => match space.read(addr, out) {
                            Ok(k) if k > 0 => k,
                            _ => break,
                        },
                    };
                    got += k;
                    iov.advance(k);
                }
                if got == 0 && want > 0 {
                    return Err(Errno::EFAULT);
                }
            }
        }
        self.done += got;
        Ok(got)
    }
    /// Writes up to `len` bytes at `offset` of an in-memory file, which must already have that length;
    /// otherwise as `take`.
    pub fn take_to_file(&mut self, file: &SharedFile, offset: u64, len: usize) -> Result<usize> {
        let want = len.min(self.remaining());
        let mut got = 0;
        while got < want {
            let at = offset + got as u64;
            let k = match &mut self.kind {
                SrcKind::Kernel(data) => {
                    file.copy_in(at, data.get(self.done..self.done + want - got).unwrap_or(&[]))?
                }
                SrcKind::User { space, iov, prefetched } => {
                    let Some((addr, n)) = iov.piece(want - got)? else { break };
                    let near = prefetched.and_then(|(base, bytes)| {
                        bytes.get(usize::try_from(addr.checked_sub(base)?).ok()?..).filter(|b| !b.is_empty())
                    });
                    let k = match near {
                        Some(bytes) => file.copy_in(at, bytes.get(..n).unwrap_or(bytes))?,
                        None => match space.read_to_file(addr, file, at, n) {
                            Ok(k) if k > 0 => k,
                            _ => break,
                        },
                    };
                    iov.advance(k);
                    k
                }
            };
            got += k;
            self.done += k;
        }
        if got == 0 && want > 0 {
            return Err(Errno::EFAULT);
        }
        Ok(got)
    }
    /// Takes all remaining bytes, at most `max`.
    pub fn take_vec(&mut self, max: usize) -> Result<Vec<u8>> {
        let mut v = vec![0u8; self.remaining().min(max)];
        let n = self.take(&mut v)?;
        v.truncate(n);
        Ok(v)
    }
    /// Returns the last `n` taken bytes after a short write.
    pub fn give_back(&mut self, n: usize) {
        let n = n.min(self.done);
        self.done -= n;
        if let SrcKind::User { iov, .. } = &mut self.kind {
            iov.back(n);
        }
    }
}

/// At most `len` bytes of the vector after its first `at` bytes.
pub fn part(iov: &[IoVec], at: usize, mut len: usize) -> Vec<IoVec> {
    let mut out = skip(iov, at);
    for v in &mut out {
        v.len = v.len.min(len);
        len -= v.len;
    }
    out.retain(|v| v.len > 0);
    out
}

/// The vector without its first `n` bytes.
pub fn skip(iov: &[IoVec], mut n: usize) -> Vec<IoVec> {
    let mut out = Vec::with_capacity(iov.len());
    for v in iov {
        let k = n.min(v.len);
        n -= k;
        if v.len > k || v.len == 0 {
            out.push(IoVec { addr: v.addr.wrapping_add(k as u64), len: v.len - k });
        }
    }
    out
}
