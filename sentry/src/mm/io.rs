//! Where `read` puts bytes and `write` takes them from: guest buffers (gathered and scattered) or the kernel's own.

use crate::error::{Errno, Result};
use platform::{AddressSpace, STAGE_MAX};

/// One element of an I/O vector.
#[derive(Clone, Copy, Debug, Default)]
pub struct IoVec {
    pub addr: u64,
    pub len: usize,
}

/// Data on its way to guest memory, to be carried out by the stub when the call returns.
pub type Staged = Vec<(u64, Vec<u8>)>;

enum DstKind<'a> {
    Kernel(&'a mut [u8]),
    User { space: &'a dyn AddressSpace, iov: &'a [IoVec], stage: Option<&'a mut Staged> },
}

/// Destination of a read.
pub struct Dst<'a> {
    kind: DstKind<'a>,
    len: usize,
    done: usize,
    /// Position in the vector: element and offset in it.
    at: (usize, usize),
}

/// Total length of a vector.
pub fn iov_len(iov: &[IoVec]) -> usize {
    iov.iter().map(|v| v.len).sum()
}

impl<'a> Dst<'a> {
    pub fn kernel(buf: &'a mut [u8]) -> Self {
        let len = buf.len();
        Dst { kind: DstKind::Kernel(buf), len, done: 0, at: (0, 0) }
    }
    /// Guest memory. With `stage`, small amounts are left to the stub; a fault then shows as `EFAULT` of the call.
    pub fn user(space: &'a dyn AddressSpace, iov: &'a [IoVec], stage: Option<&'a mut Staged>) -> Self {
        let len = iov_len(iov);
        let stage = if len <= STAGE_MAX { stage } else { None };
        Dst { kind: DstKind::User { space, iov, stage }, len, done: 0, at: (0, 0) }
    }
    pub fn remaining(&self) -> usize {
        self.len - self.done
    }
    pub fn done(&self) -> usize {
        self.done
    }
    /// Stores as much of `data` as fits; `EFAULT` if not a byte could be stored though there was room.
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
                    let Some(v) = iov.get(self.at.0) else { break };
                    if self.at.1 == v.len {
                        self.at = (self.at.0 + 1, 0);
                        continue;
                    }
                    let n = (v.len - self.at.1).min(want - put);
                    let addr = v.addr.checked_add(self.at.1 as u64).ok_or(Errno::EFAULT)?;
                    let chunk = &data[put..put + n];
                    let k = match stage {
                        Some(s) => {
                            match s.last_mut() {
                                Some((a, d)) if *a + d.len() as u64 == addr => d.extend_from_slice(chunk),
                                _ => s.push((addr, chunk.to_vec())),
                            }
                            n
                        }
                        None => space.write(addr, chunk).map_err(|_| Errno::EFAULT)?,
                    };
                    put += k;
                    self.at.1 += k;
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
    /// Lets `f` fill a buffer of up to `max` bytes (it says how many it filled) and stores them. `f` is called at most once.
    pub fn fill(&mut self, max: usize, f: &mut dyn FnMut(&mut [u8]) -> Result<usize>) -> Result<usize> {
        let want = max.min(self.remaining());
        if let DstKind::Kernel(buf) = &mut self.kind {
            let n = f(&mut buf[self.done..self.done + want])?;
            self.done += n;
            return Ok(n);
        }
        let mut buf = vec![0u8; want];
        let n = f(&mut buf)?;
        self.put(&buf[..n])
    }
    pub fn put_zeros(&mut self, n: usize) -> Result<usize> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < n && self.remaining() > 0 {
            let k = self.put(&ZEROS[..(n - done).min(4096)])?;
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
    User { space: &'a dyn AddressSpace, iov: &'a [IoVec], prefetched: Option<(u64, &'a [u8])> },
}

/// Source of a write.
pub struct Src<'a> {
    kind: SrcKind<'a>,
    len: usize,
    done: usize,
    at: (usize, usize),
}

impl<'a> Src<'a> {
    pub fn kernel(data: &'a [u8]) -> Self {
        Src { kind: SrcKind::Kernel(data), len: data.len(), done: 0, at: (0, 0) }
    }
    /// Guest memory; `prefetched` holds bytes that the stub copied in ahead of time from that address.
    pub fn user(space: &'a dyn AddressSpace, iov: &'a [IoVec], prefetched: Option<(u64, &'a [u8])>) -> Self {
        Src { kind: SrcKind::User { space, iov, prefetched }, len: iov_len(iov), done: 0, at: (0, 0) }
    }
    pub fn remaining(&self) -> usize {
        self.len - self.done
    }
    pub fn done(&self) -> usize {
        self.done
    }
    /// Takes up to `buf.len()` bytes; fewer at the end or before unreadable memory, `EFAULT` if none could be read.
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
                    let Some(v) = iov.get(self.at.0) else { break };
                    if self.at.1 == v.len {
                        self.at = (self.at.0 + 1, 0);
                        continue;
                    }
                    let n = (v.len - self.at.1).min(want - got);
                    let addr = v.addr.checked_add(self.at.1 as u64).ok_or(Errno::EFAULT)?;
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
                    self.at.1 += k;
                }
                if got == 0 && want > 0 {
                    return Err(Errno::EFAULT);
                }
            }
        }
        self.done += got;
        Ok(got)
    }
    /// All that is left, at most `max` bytes.
    pub fn take_vec(&mut self, max: usize) -> Result<Vec<u8>> {
        let mut v = vec![0u8; self.remaining().min(max)];
        let n = self.take(&mut v)?;
        v.truncate(n);
        Ok(v)
    }
    /// Puts the last `n` taken bytes back (a write that was short).
    pub fn give_back(&mut self, n: usize) {
        let n = n.min(self.done);
        self.done -= n;
        let mut left = n;
        if let SrcKind::User { iov, .. } = &self.kind {
            while left > 0 {
                if self.at.1 == 0 {
                    let Some(prev) = self.at.0.checked_sub(1) else { break };
                    self.at = (prev, iov[prev].len);
                    continue;
                }
                let k = left.min(self.at.1);
                self.at.1 -= k;
                left -= k;
            }
        }
    }
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
