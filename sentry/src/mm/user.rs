//! Typed access to guest memory. All data is copied: it is read once and checked in the copy, never read
//! again.

use crate::error::{Errno, Result};
use platform::AddressSpace;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Longest path name, with its NUL (`PATH_MAX`).
pub const PATH_MAX: usize = 4096;

/// Guest memory of one address space. Cheap to clone.
#[derive(Clone)]
pub struct UserMem {
    pub space: Arc<dyn AddressSpace>,
}

impl UserMem {
    /// Reads all of `buf` or fails with `EFAULT`.
    pub fn read_bytes(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        if self.space.read(addr, buf).map_err(|_| Errno::EFAULT)? == buf.len() {
            Ok(())
        } else {
            Err(Errno::EFAULT)
        }
    }
    /// Reads as many bytes as are readable; `EFAULT` only if none is.
    pub fn read_some(&self, addr: u64, buf: &mut [u8]) -> Result<usize> {
        match self.space.read(addr, buf) {
            Ok(0) if !buf.is_empty() => Err(Errno::EFAULT),
            Ok(n) => Ok(n),
            Err(_) => Err(Errno::EFAULT),
        }
    }
    pub fn write_bytes(&self, addr: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        if self.space.write(addr, data).map_err(|_| Errno::EFAULT)? == data.len() {
            Ok(())
        } else {
            Err(Errno::EFAULT)
        }
    }
    pub fn write_some(&self, addr: u64, data: &[u8]) -> Result<usize> {
        match self.space.write(addr, data) {
            Ok(0) if !data.is_empty() => Err(Errno::EFAULT),
            Ok(n) => Ok(n),
            Err(_) => Err(Errno::EFAULT),
        }
    }
    pub fn read<T: FromBytes + IntoBytes>(&self, addr: u64) -> Result<T> {
        let mut v = T::new_zeroed();
        self.read_bytes(addr, v.as_mut_bytes())?;
        Ok(v)
    }
    pub fn write<T: IntoBytes + Immutable>(&self, addr: u64, v: &T) -> Result<()> {
        self.write_bytes(addr, v.as_bytes())
    }
    /// An array of `n` items; the caller has bounded `n`.
    pub fn read_vec<T: FromBytes + IntoBytes>(&self, addr: u64, n: usize) -> Result<Vec<T>> {
        let mut v: Vec<T> = (0..n).map(|_| T::new_zeroed()).collect();
        for (i, item) in v.iter_mut().enumerate() {
            // Up to four items are read one by one; a longer array is read by one call below.
            if n <= 4 {
                self.read_bytes(addr + (i * size_of::<T>()) as u64, item.as_mut_bytes())?;
            }
        }
        if n > 4 {
            let mut raw = vec![0u8; n * size_of::<T>()];
            self.read_bytes(addr, &mut raw)?;
            for (item, chunk) in v.iter_mut().zip(raw.chunks_exact(size_of::<T>())) {
                item.as_mut_bytes().copy_from_slice(chunk);
            }
        }
        Ok(v)
    }
    /// A NUL-terminated string of at most `max - 1` bytes; `long` is the error for a longer one.
    pub fn read_cstr(&self, addr: u64, max: usize, long: Errno) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut at = addr;
        while out.len() < max {
            // Up to the end of the page: a string may end just before unmapped memory.
            let room = (4096 - (at % 4096) as usize).min(max - out.len()).min(if out.is_empty() { 256 } else { 4096 });
            let mut buf = vec![0u8; room];
            let n = self.read_some(at, &mut buf)?;
            if let Some(end) = buf[..n].iter().position(|&b| b == 0) {
                out.extend_from_slice(&buf[..end]);
                return Ok(out);
            }
            out.extend_from_slice(&buf[..n]);
            at += n as u64;
        }
        Err(long)
    }
    pub fn read_path(&self, addr: u64) -> Result<Vec<u8>> {
        self.read_cstr(addr, PATH_MAX, Errno::ENAMETOOLONG)
    }
}
