//! File content in heap pages, with holes: it needs no descriptor, and cannot be mapped.

use super::PAGE;
use crate::error::{Errno, Result};
use crate::mm::io::Dst;
use std::collections::BTreeMap;

/// Bytes moved at a time.
const PART: usize = 64 * 1024;

type Page = Box<[u8; PAGE as usize]>;

fn zeros() -> Page {
    Box::new([0; PAGE as usize])
}

#[derive(Default)]
pub struct Pages {
    /// Pages by number. A missing page reads as zeroes; the last page is zero beyond the end.
    map: BTreeMap<u64, Page>,
    len: u64,
}

impl Pages {
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Bytes in use.
    pub fn taken(&self) -> u64 {
        self.map.len() as u64 * PAGE
    }
    /// Additional bytes that writing `start..end` would allocate.
    pub fn missing(&self, start: u64, end: u64) -> u64 {
        let (first, last) = (start / PAGE, end.div_ceil(PAGE).max(start / PAGE));
        (last - first - self.map.range(first..last).count() as u64) * PAGE
    }

    /// Copies the content at `offset` into `buf`; returns the count.
    pub fn copy_out(&self, offset: u64, buf: &mut [u8]) -> usize {
        let n = buf.len().min(usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX));
        let buf = &mut buf[..n];
        buf.fill(0);
        let end = offset + n as u64;
        for (number, page) in self.map.range(offset / PAGE..end.div_ceil(PAGE).max(offset / PAGE)) {
            // The overlap of the page and the requested range.
            let (from, to) = ((number * PAGE).max(offset), ((number + 1) * PAGE).min(end));
            let source = page.get((from - number * PAGE) as usize..(to - number * PAGE) as usize);
            let target = buf.get_mut((from - offset) as usize..(to - offset) as usize);
            if let (Some(source), Some(target)) = (source, target) {
                target.copy_from_slice(source);
            }
        }
        n
    }
    pub fn read(&self, dst: &mut Dst<'_>, offset: u64) -> Result<usize> {
        let mut done = 0;
        while dst.remaining() > 0 {
            match dst.fill(PART, &mut |buf| Ok(self.copy_out(offset + done as u64, buf))) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Writes, and grows the file.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|r| !r.is_empty()) {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let n = rest.len().min(PAGE as usize - within);
            let page = self.map.entry(at / PAGE).or_insert_with(zeros);
            page[within..within + n].copy_from_slice(&rest[..n]);
            done += n;
        }
        self.len = self.len.max(offset + data.len() as u64);
    }

    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            drop(self.map.split_off(&len.div_ceil(PAGE)));
            self.clear(len, len.next_multiple_of(PAGE));
        }
        self.len = len;
    }

    /// Frees the whole pages of a range and clears the rest.
    pub fn punch(&mut self, start: u64, end: u64) {
        let (first, last) = (start.div_ceil(PAGE), end / PAGE);
        if first >= last {
            let middle = (start / PAGE + 1) * PAGE;
            self.clear(start, end.min(middle));
            return self.clear(middle, end);
        }
        self.clear(start, first * PAGE);
        self.clear(last * PAGE, end);
        let mut behind = self.map.split_off(&first);
        let mut behind = behind.split_off(&last);
        self.map.append(&mut behind);
    }
    /// Fills a range that lies in one page with zeroes.
    fn clear(&mut self, start: u64, end: u64) {
        let base = start / PAGE * PAGE;
        if let Some(page) = self.map.get_mut(&(start / PAGE)).filter(|_| start < end) {
            if let Some(part) = page.get_mut((start - base) as usize..(end - base) as usize) {
                part.fill(0);
            }
        }
    }
    /// Allocates every page of a range.
    pub fn allocate(&mut self, start: u64, end: u64) {
        for number in start / PAGE..end.div_ceil(PAGE) {
            self.map.entry(number).or_insert_with(zeros);
        }
    }

    /// `SEEK_DATA` and `SEEK_HOLE`; `offset` is before the end.
    pub fn seek(&self, offset: u64, whence: i32) -> Result<u64> {
        let first = offset / PAGE;
        if whence == libc::SEEK_DATA {
            let found = self.map.range(first..).next().map(|(n, _)| (n * PAGE).max(offset)).filter(|at| *at < self.len);
            return found.ok_or(Errno::ENXIO);
        }
        let mut next = first;
        for (n, _) in self.map.range(first..) {
            if *n != next {
                break;
            }
            next += 1;
        }
        Ok((next * PAGE).max(offset).min(self.len))
    }

    /// The pieces that have pages, with their offsets.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.map.iter().filter_map(|(number, page)| {
            let at = number * PAGE;
            let n = PAGE.min(self.len.saturating_sub(at)) as usize;
            page.get(..n).filter(|p| !p.is_empty()).map(|p| (at, p))
        })
    }
}
