//! A ring of bytes that grows as it fills: the buffer of pipes and stream sockets.
//!
//! Bytes are copied once, directly between guest memory and the ring. When the ring runs empty it starts over at its
//! beginning, so that small messages always use the same warm cache lines.

use crate::error::Result;
use crate::mm::io::{Dst, Src};

#[derive(Default)]
pub struct Ring {
    buf: Vec<u8>,
    head: usize,
    len: usize,
}

impl Ring {
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Bytes of memory allocated.
    pub fn capacity(&self) -> usize {
        self.buf.len()
    }
    /// The byte at `off`.
    pub fn get(&self, off: usize) -> Option<u8> {
        self.slices(off, 1).0.first().copied()
    }
    /// Frees the memory.
    pub fn clear(&mut self) {
        *self = Ring::default();
    }
    /// Allocates room for `more` bytes.
    fn reserve(&mut self, more: usize) {
        let need = self.len + more;
        if need <= self.buf.len() {
            return;
        }
        let mut buf = vec![0u8; need.next_power_of_two().max(4096)];
        let (a, b) = self.slices(0, self.len);
        buf[..a.len()].copy_from_slice(a);
        buf[a.len()..a.len() + b.len()].copy_from_slice(b);
        self.buf = buf;
        self.head = 0;
    }
    /// The `n` bytes from `off` on, as two slices.
    fn slices(&self, off: usize, n: usize) -> (&[u8], &[u8]) {
        let n = n.min(self.len.saturating_sub(off));
        if n == 0 {
            return (&[], &[]);
        }
        let cap = self.buf.len();
        let start = (self.head + off) % cap;
        let first = n.min(cap - start);
        (&self.buf[start..start + first], &self.buf[..n - first])
    }
    /// Appends up to `max` bytes of `src`; fails only if no byte was copied.
    pub fn push(&mut self, src: &mut Src<'_>, max: usize) -> Result<usize> {
        let want = max.min(src.remaining());
        self.reserve(want);
        let mut done = 0;
        while done < want {
            let cap = self.buf.len();
            let tail = (self.head + self.len) % cap;
            let n = (want - done).min(cap - tail);
            let got = match src.take(&mut self.buf[tail..tail + n]) {
                Ok(g) => g,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            };
            self.len += got;
            done += got;
            if got < n {
                break;
            }
        }
        Ok(done)
    }
    /// Copies up to `max` bytes from `off` on to `dst` without removing them.
    pub fn peek(&self, dst: &mut Dst<'_>, off: usize, max: usize) -> Result<usize> {
        let (a, b) = self.slices(off, max.min(dst.remaining()));
        if a.is_empty() {
            return Ok(0);
        }
        let n = dst.put(a)?;
        if n < a.len() || b.is_empty() {
            return Ok(n);
        }
        Ok(n + dst.put(b).unwrap_or(0))
    }
    /// Removes `n` bytes from the front.
    pub fn consume(&mut self, n: usize) {
        let n = n.min(self.len);
        self.len -= n;
        if self.len == 0 {
            self.head = 0;
        } else {
            self.head = (self.head + n) % self.buf.len();
        }
    }
    /// Keeps the first `n` bytes.
    pub fn truncate(&mut self, n: usize) {
        self.len -= n.min(self.len);
    }
    /// Moves up to `max` bytes to `dst`.
    pub fn pop(&mut self, dst: &mut Dst<'_>, max: usize) -> Result<usize> {
        let n = self.peek(dst, 0, max)?;
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_and_grows() {
        let mut r = Ring::default();
        let data: Vec<u8> = (0..6000u32).map(|i| i as u8).collect();
        let mut expect = std::collections::VecDeque::new();
        for round in 0..50 {
            let n = (round * 397) % 6000;
            assert_eq!(r.push(&mut Src::kernel(&data[..n]), usize::MAX).unwrap(), n);
            expect.extend(&data[..n]);
            let m = (round * 311) % 5000;
            let mut out = vec![0u8; m];
            let got = r.pop(&mut Dst::kernel(&mut out), usize::MAX).unwrap();
            assert_eq!(got, m.min(expect.len()));
            for b in &out[..got] {
                assert_eq!(Some(*b), expect.pop_front());
            }
            assert_eq!(r.len(), expect.len());
        }
    }
}
