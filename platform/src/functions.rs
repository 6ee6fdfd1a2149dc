//! Bounds of the functions of an ELF file, from the file's own tables.
//!
//! Three kinds of tables are known, and consulted in this order: the unwind table (`.eh_frame`, through the search
//! table that `PT_GNU_EH_FRAME` points to, or from its first entry to its last if there is no search table), Go's
//! function table (`.gopclntab`), and the symbols (`.symtab`, `.dynsym`). For code in no table only its section is
//! known.
//!
//! The file is hostile: every offset, size and count may be false. All reads are bounded by [`READ_MAX`] for one call
//! of [`find`], nothing is recursive, and a false table can at worst name a wrong range of the file's own code.

use std::collections::HashMap;

/// Reads the file's bytes at an offset into the buffer; returns how many there are.
pub type Read<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> usize;

/// A function, in file offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    pub start: u64,
    pub end: u64,
    /// Start of the next entry of the table; none begins between `end` and here.
    pub next: u64,
}

/// Location of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Function(Function),
    /// In no table, but in this range of code: a section, or a segment if there are no sections.
    Code(u64, u64),
    Nowhere,
}

/// Most bytes read from the tables in one call of [`find`].
const READ_MAX: usize = 2 << 20;
const BLOCK: usize = 4096;
/// The longest `.eh_frame` without a search table that is scanned.
const MAX_FRAMES: u64 = 1 << 20;
/// Exceeds the size of any file and the end of any address space; sums of a few such numbers do not overflow.
const MAX_ADDRESS: u64 = 1 << 48;
const MAX_PHDRS: u64 = 64;
const MAX_SHDRS: u64 = 256;
const PHDR: u64 = 56;
const SHDR: u64 = 64;
const SYM: usize = 24;
const PT_LOAD: u32 = 1;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const PF_X: u32 = 1;
const SHT_PROGBITS: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_DYNSYM: u32 = 11;
const SHT_UNWIND: u32 = 0x7000_0001;
const SHF_EXECINSTR: u64 = 4;
/// `STT_FUNC` and `STT_GNU_IFUNC`; `STT_NOTYPE` only ends a function without a size.
const FUNCTIONS: [u8; 2] = [2, 10];
const NOTYPE: u8 = 0;
/// `DW_EH_PE_*` of the search table: an unsigned count, and pairs of 32-bit offsets from the beginning of the table.
const COUNT: u8 = 0x03;
const PAIRS: u8 = 0x3b;
const PCREL: u8 = 0x10;
const INDIRECT: u8 = 0x80;
/// Header of Go's function table since Go 1.18 and since 1.20: little endian, instructions of one byte, pointers of
/// eight.
const GO: [[u8; 8]; 2] = [[0xf0, 0xff, 0xff, 0xff, 0, 0, 1, 8], [0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8]];

/// The file, with a cache of the blocks read.
struct File<'a> {
    read: Read<'a>,
    blocks: HashMap<u64, Box<[u8]>>,
    left: usize,
}

impl File<'_> {
    /// Reads without the cache; counts against `left`.
    fn fill(&mut self, at: u64, buf: &mut [u8]) -> Option<usize> {
        self.left = self.left.checked_sub(buf.len())?;
        Some((self.read)(at, buf).min(buf.len()))
    }
    fn block(&mut self, n: u64) -> Option<&[u8]> {
        if !self.blocks.contains_key(&n) {
            let mut buf = vec![0; BLOCK];
            let len = self.fill(n.checked_mul(BLOCK as u64)?, &mut buf)?;
            buf.truncate(len);
            self.blocks.insert(n, buf.into());
        }
        self.blocks.get(&n).map(|b| &**b)
    }
    /// Reads N bytes; N is at most the size of a block.
    fn bytes<const N: usize>(&mut self, at: u64) -> Option<[u8; N]> {
        let (n, from) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
        let mut out = [0; N];
        let here = N.min(BLOCK - from);
        out[..here].copy_from_slice(self.block(n)?.get(from..from + here)?);
        if here < N {
            out[here..].copy_from_slice(self.block(n + 1)?.get(..N - here)?);
        }
        Some(out)
    }
    fn u8(&mut self, at: u64) -> Option<u8> {
        self.bytes(at).map(u8::from_le_bytes)
    }
    fn u16(&mut self, at: u64) -> Option<u64> {
        self.bytes(at).map(|b| u64::from(u16::from_le_bytes(b)))
    }
    fn u32(&mut self, at: u64) -> Option<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }
    fn i32(&mut self, at: u64) -> Option<i64> {
        self.bytes(at).map(|b| i64::from(i32::from_le_bytes(b)))
    }
    fn u64(&mut self, at: u64) -> Option<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }
    /// An unsigned LEB128 number, and the offset after it.
    fn leb(&mut self, mut at: u64) -> Option<(u64, u64)> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let b = self.u8(at)?;
            at += 1;
            value |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return Some((value, at));
            }
        }
        None
    }
    /// Number of entries that are at most `key`, by bisection.
    fn bisect(&mut self, count: u64, key: u64, mut entry: impl FnMut(&mut Self, u64) -> Option<u64>) -> Option<u64> {
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            if entry(self, middle)? <= key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(low)
    }
}

/// A loaded part of the file.
#[derive(Clone, Copy)]
struct Segment {
    offset: u64,
    address: u64,
    len: u64,
    code: bool,
}

impl Segment {
    fn address_of(&self, offset: u64) -> Option<u64> {
        let into = offset.checked_sub(self.offset).filter(|i| *i < self.len)?;
        self.address.checked_add(into)
    }
    fn offset_of(&self, address: u64) -> Option<u64> {
        let into = address.checked_sub(self.address).filter(|i| *i <= self.len)?;
        self.offset.checked_add(into)
    }
}

/// A range of addresses.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
    next: u64,
}

impl Range {
    fn has(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// Contents of the section headers.
#[derive(Default)]
struct Sections {
    /// Offset and length of each symbol table.
    symbols: Vec<(u64, u64)>,
    go: Option<u64>,
    /// Offset and length of `.eh_frame`.
    frames: Option<(u64, u64)>,
    /// Ranges of the file that contain code.
    code: Vec<(u64, u64)>,
}

impl Sections {
    /// The range of code around a site that no table covers.
    fn code(&self, segment: &Segment, site: u64) -> Found {
        let (first, last) = (segment.offset, segment.offset + segment.len);
        if self.code.is_empty() {
            return Found::Code(first, last);
        }
        let own = self.code.iter().find(|(start, end)| (*start..*end).contains(&site));
        own.map_or(Found::Nowhere, |(start, end)| Found::Code(first.max(*start), last.min(*end)))
    }
}

struct Elf<'a> {
    file: File<'a>,
    segments: Vec<Segment>,
    unwind: Option<u64>,
}

/// The functions that contain the sites (file offsets).
pub fn find(read: Read<'_>, sites: &[u64]) -> Vec<Found> {
    let file = File { read, blocks: HashMap::new(), left: READ_MAX };
    let Some(mut elf) = Elf::open(file) else { return vec![Found::Nowhere; sites.len()] };
    let code: Vec<_> = sites.iter().map(|s| elf.code(*s)).collect();
    let mut by_unwind = |address: u64| elf.unwind(address).filter(|r| r.has(address));
    let mut ranges: Vec<Option<Range>> = code.iter().map(|c| by_unwind(c.as_ref()?.1)).collect();
    let mut sections = Sections::default();
    if ranges.iter().zip(&code).any(|(r, c)| r.is_none() && c.is_some()) {
        let missing: Vec<(usize, u64)> =
            code.iter().enumerate().filter_map(|(i, c)| c.filter(|_| ranges[i].is_none()).map(|c| (i, c.1))).collect();
        if let Some(s) = elf.sections() {
            elf.by_sections(&s, missing, &mut ranges);
            sections = s;
        }
    }
    let found = |(i, range): (usize, Option<Range>)| {
        let Some((segment, address)) = code[i] else { return Found::Nowhere };
        let function = |r: Range| {
            let next = segment.offset_of(r.next).unwrap_or(u64::MAX);
            Some(Function { start: segment.offset_of(r.start)?, end: segment.offset_of(r.end)?, next })
        };
        match range.filter(|r| r.has(address)) {
            Some(r) => function(r).map_or(Found::Nowhere, Found::Function),
            None => sections.code(&segment, sites[i]),
        }
    };
    ranges.into_iter().enumerate().map(found).collect()
}

impl<'a> Elf<'a> {
    fn open(mut file: File<'a>) -> Option<Elf<'a>> {
        // 64-bit, little endian, x86-64.
        if file.bytes::<6>(0)? != [0x7f, b'E', b'L', b'F', 2, 1] || file.u16(18)? != 62 || file.u16(54)? != PHDR {
            return None;
        }
        let (table, count) = (file.u64(32)?, file.u16(56)?);
        let (mut segments, mut unwind) = (Vec::new(), None);
        for n in 0..count.min(MAX_PHDRS) {
            let at = table.checked_add(n * PHDR)?;
            let (kind, flags) = (file.u32(at)?, file.u32(at + 4)?);
            let (offset, address, len) = (file.u64(at + 8)?, file.u64(at + 16)?, file.u64(at + 32)?);
            match kind {
                PT_LOAD if offset.max(address).max(len) < MAX_ADDRESS => {
                    segments.push(Segment { offset, address, len, code: flags & PF_X != 0 })
                }
                PT_GNU_EH_FRAME => unwind = Some(address),
                _ => {}
            }
        }
        Some(Elf { file, segments, unwind })
    }

    /// The code segment that contains this file offset, and the address there.
    fn code(&self, offset: u64) -> Option<(Segment, u64)> {
        self.segments.iter().filter(|s| s.code).find_map(|s| Some((*s, s.address_of(offset)?)))
    }
    fn offset_of(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|s| s.offset_of(address))
    }

    /// Looks up the unwind table (Linux Standard Base, "Exception Frames").
    fn unwind(&mut self, address: u64) -> Option<Range> {
        let header = self.unwind?;
        let at = self.offset_of(header)?;
        let [version, pointer, count, table] = self.file.bytes(at)?;
        // The pointer before the count has four bytes.
        if version != 1 || !matches!(pointer & 0xf, 3 | 0xb) || count != COUNT || table != PAIRS {
            return None;
        }
        let count = u64::from(self.file.u32(at + 8)?);
        let pair = at.checked_add(12)?;
        let start = |f: &mut File<'_>, n: u64| Some(header.wrapping_add_signed(f.i32(pair.checked_add(n * 8)?)?));
        let after = self.file.bisect(count, address, start)?;
        let first = start(&mut self.file, after.checked_sub(1)?)?;
        let next = if after < count { start(&mut self.file, after)? } else { u64::MAX };
        let entry = header.wrapping_add_signed(self.file.i32(pair.checked_add(after * 8)?.checked_sub(4)?)?);
        let len = self.frame(entry, first)?;
        Some(Range { start: first, end: first.checked_add(len)?.min(next), next })
    }

    /// Length of the code described by the entry (FDE) at `entry`, if that begins at `first`.
    fn frame(&mut self, entry: u64, first: u64) -> Option<u64> {
        let at = self.offset_of(entry)?;
        let f = &mut self.file;
        let back = u64::from(f.u32(at.checked_add(4)?)?);
        if matches!(f.u32(at)?, 0..=8 | u32::MAX) || back == 0 {
            return None;
        }
        let kind = Self::pointers(f, (at + 4).checked_sub(back)?)?;
        let (start, len) = Self::span(kind, f.bytes(at + 8)?, entry.wrapping_add(8))?;
        (start == first).then_some(len)
    }

    /// The range given by the two fields of an FDE, the first of which is at `address`.
    fn span(kind: u8, fields: [u8; 16], address: u64) -> Option<(u64, u64)> {
        let [a, b, c, d] = [0, 4, 8, 12].map(|n| u32::from_le_bytes(std::array::from_fn(|i| fields[n + i])));
        let wide = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let (start, len) = match kind & 0xf {
            3 => (u64::from(a), u64::from(b)),
            0xb => (i64::from(a as i32) as u64, u64::from(b)),
            0 | 4 | 0xc => (wide(a, b), wide(c, d)),
            _ => return None,
        };
        let base = match kind & (0x70 | INDIRECT) {
            0 => 0,
            PCREL => address,
            _ => return None,
        };
        Some((base.wrapping_add(start), len))
    }

    /// Scans all entries of the unwind table, which are adjacent.
    fn frames(&mut self, (offset, size): (u64, u64), search: &mut Search) -> Option<()> {
        if size > MAX_FRAMES {
            return None;
        }
        let table = self.segments.iter().find_map(|s| s.address_of(offset))?;
        let mut frames = vec![0; size as usize];
        let n = self.file.fill(offset, &mut frames)?;
        frames.truncate(n);
        let word =
            |at: usize| Some(u64::from(u32::from_le_bytes(frames.get(at..at.checked_add(4)?)?.try_into().ok()?)));
        let (mut at, mut common) = (0usize, None);
        while let (Some(len @ 1..0xffff_fff0), Some(back)) = (word(at), word(at + 4)) {
            if back != 0 {
                let entry = (at as u64 + 4).checked_sub(back)?;
                if common.is_none_or(|c: (u64, u8)| c.0 != entry) {
                    common = Some((entry, Self::pointers(&mut self.file, offset.checked_add(entry)?)?));
                }
                let mut fields = [0; 16];
                let own = frames.get(at + 8..)?;
                let n = own.len().min(16);
                fields[..n].copy_from_slice(&own[..n]);
                let span = common.and_then(|c| Self::span(c.1, fields, table.checked_add(at as u64 + 8)?));
                if let Some((start, len @ 1..)) = span {
                    search.add(start, len, true);
                }
            }
            at += 4 + len as usize;
        }
        Some(())
    }

    /// The encoding of the addresses in FDEs that refer to the common entry (CIE) at the offset.
    fn pointers(f: &mut File<'_>, at: u64) -> Option<u8> {
        let version = f.u8(at.checked_add(8)?)?;
        if f.u32(at + 4)? != 0 || !matches!(version, 1 | 3) {
            return None;
        }
        let augmentation = f.bytes::<8>(at + 9)?;
        let end = augmentation.iter().position(|b| *b == 0)?;
        if end == 0 {
            return Some(0);
        }
        if augmentation[0] != b'z' {
            return None;
        }
        // Alignment of code and data, the return address register, the length of the augmentation data.
        let mut at = at + 9 + end as u64 + 1;
        for _ in 0..4 {
            at = f.leb(at)?.1;
        }
        for letter in &augmentation[1..end] {
            match letter {
                b'R' => return f.u8(at),
                b'L' => at += 1,
                b'P' => {
                    at += match f.u8(at)? & 0xf {
                        2 | 0xa => 3,
                        3 | 0xb => 5,
                        0 | 4 | 0xc => 9,
                        _ => return None,
                    }
                }
                b'S' | b'B' => {}
                _ => return None,
            }
        }
        Some(0)
    }

    fn sections(&mut self) -> Option<Sections> {
        let f = &mut self.file;
        let (table, count, names) = (f.u64(40)?, f.u16(60)?.min(MAX_SHDRS), f.u16(62)?);
        if f.u16(58)? != SHDR {
            return None;
        }
        let header = |n: u64| table.checked_add(n * SHDR).filter(|at| *at < u64::MAX - SHDR);
        let names = if names < count { f.u64(header(names)? + 24)? } else { return None };
        let mut s = Sections::default();
        for n in 0..count {
            let at = header(n)?;
            let (name, kind, flags) = (f.u32(at)?, f.u32(at + 4)?, f.u64(at + 8)?);
            let (offset, size) = (f.u64(at + 24)?, f.u64(at + 32)?);
            let name = names.checked_add(u64::from(name))?;
            match kind {
                SHT_SYMTAB | SHT_DYNSYM => s.symbols.push((offset, size)),
                SHT_PROGBITS if flags & SHF_EXECINSTR != 0 => s.code.push((offset, offset.saturating_add(size))),
                SHT_PROGBITS if s.go.is_none() && Self::is_go(f, name) => s.go = Some(offset),
                SHT_PROGBITS | SHT_UNWIND if s.frames.is_none() && f.bytes(name) == Some(*b".eh_frame\0") => {
                    s.frames = Some((offset, size))
                }
                _ => {}
            }
        }
        Some(s)
    }

    /// Consults the tables that only section headers lead to. `missing`: index and address of each site.
    fn by_sections(&mut self, s: &Sections, mut missing: Vec<(usize, u64)>, ranges: &mut [Option<Range>]) {
        missing.sort_unstable_by_key(|m| m.1);
        if let Some(frames) = s.frames.filter(|_| self.unwind.is_none()) {
            let mut search = Search::new(missing.clone());
            // The contents of a table that cannot be read to its end may be incomplete.
            if self.frames(frames, &mut search).is_some() {
                search.done(ranges);
            }
        }
        missing.retain(|m| ranges[m.0].is_none());
        if let Some(table) = s.go {
            for (i, address) in &missing {
                ranges[*i] = Self::go(&mut self.file, table, *address).filter(|r| r.has(*address));
            }
        }
        missing.retain(|m| ranges[m.0].is_none());
        if !missing.is_empty() {
            let mut search = Search::new(missing);
            for (offset, size) in &s.symbols {
                search.table(&mut self.file, *offset, *size);
            }
            search.done(ranges);
        }
    }

    fn is_go(f: &mut File<'_>, name: u64) -> bool {
        let plain = f.bytes(name) == Some(*b".gopclntab\0");
        plain || f.bytes(name) == Some(*b".data.rel.ro.gopclntab\0")
    }

    /// Looks up the table of Go's runtime (`runtime/symtab.go`: `pcHeader`, `functab`).
    fn go(f: &mut File<'_>, table: u64, address: u64) -> Option<Range> {
        if !GO.contains(&f.bytes::<8>(table)?) {
            return None;
        }
        let (count, text) = (f.u64(table.checked_add(8)?)?, f.u64(table.checked_add(24)?)?);
        let entries = table.checked_add(f.u64(table.checked_add(64)?)?)?;
        // If the linker leaves it to be relocated, it is unknown.
        if text == 0 || count > u64::from(u32::MAX) {
            return None;
        }
        let start = |f: &mut File<'_>, n: u64| text.checked_add(u64::from(f.u32(entries.checked_add(n * 8)?)?));
        let after = f.bisect(count, address, start)?;
        let (start, end) = (start(f, after.checked_sub(1)?)?, start(f, after)?);
        Some(Range { start, end, next: end })
    }
}

/// The symbols, or entries of the unwind table, nearest to some addresses.
struct Search {
    /// Sorted by address.
    wanted: Vec<(usize, u64)>,
    /// For each: start of the last function before it, its claimed length, and start of the next symbol.
    near: Vec<(u64, u64, u64)>,
}

impl Search {
    fn new(wanted: Vec<(usize, u64)>) -> Search {
        let near = vec![(0, 0, u64::MAX); wanted.len()];
        Search { wanted, near }
    }

    fn table(&mut self, f: &mut File<'_>, mut offset: u64, size: u64) {
        const CHUNK: usize = SYM * 2048;
        let mut buf = vec![0; CHUNK];
        let mut left = size;
        while left >= SYM as u64 {
            let part = left.min(CHUNK as u64) as usize;
            let Some(n) = f.fill(offset, &mut buf[..part]) else { return };
            buf[..n].chunks_exact(SYM).for_each(|s| self.symbol(s));
            if n < part {
                return;
            }
            left -= part as u64;
            offset = offset.saturating_add(part as u64);
        }
    }

    fn symbol(&mut self, s: &[u8]) {
        let word = |at: usize| s.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let (kind, section) = (s[4] & 0xf, u16::from_le_bytes([s[6], s[7]]));
        let function = FUNCTIONS.contains(&kind);
        if section != 0 && (function || kind == NOTYPE) {
            self.add(word(8), word(16), function);
        }
    }

    /// Adds an entry that begins at `start`.
    fn add(&mut self, start: u64, len: u64, function: bool) {
        // It may contain the wanted addresses from `from` on, and ends the function of the one before.
        let from = self.wanted.partition_point(|w| w.1 < start);
        if let Some(before) = from.checked_sub(1) {
            self.near[before].2 = self.near[before].2.min(start);
        }
        if let Some(here) = self.near.get_mut(from).filter(|n| function && n.0 <= start) {
            here.1 = if here.0 == start { here.1.max(len) } else { len };
            here.0 = start;
        }
    }

    fn done(mut self, ranges: &mut [Option<Range>]) {
        // The next symbol of a later address, and the function before an earlier one, also apply to the neighbour,
        // unless it has a nearer one.
        for i in 1..self.near.len() {
            if self.near[i].0 < self.near[i - 1].0 {
                (self.near[i].0, self.near[i].1) = (self.near[i - 1].0, self.near[i - 1].1);
            }
        }
        for i in (1..self.near.len()).rev() {
            self.near[i - 1].2 = self.near[i - 1].2.min(self.near[i].2);
        }
        for ((i, address), (start, len, next)) in self.wanted.iter().zip(self.near) {
            let end = if len == 0 { next } else { start.saturating_add(len) };
            if start != 0 && *address < end {
                ranges[*i] = Some(Range { start, end, next: next.max(end) });
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    pub enum By {
        Unwind,
        /// `.eh_frame` without a search table.
        Frames,
        Symbols,
        /// Symbols without a size.
        Labels,
        Go,
        Nothing,
    }
    pub const ALL: [By; 5] = [By::Unwind, By::Frames, By::Symbols, By::Labels, By::Go];
    const BASE: u64 = 0x40_0000;

    fn put(file: &mut [u8], at: usize, words: &[u64]) {
        for (i, w) in words.iter().enumerate() {
            file[at + i * 8..at + i * 8 + 8].copy_from_slice(&w.to_le_bytes());
        }
    }
    fn put32(file: &mut [u8], at: usize, words: &[u64]) {
        for (i, w) in words.iter().enumerate() {
            file[at + i * 4..at + i * 4 + 4].copy_from_slice(&(*w as u32).to_le_bytes());
        }
    }

    /// Four pages, the first three of which are `page`; the functions (offset, length) are in a table on the last
    /// page.
    pub fn elf(page: &[u8], functions: &[(u64, u64)], by: By) -> Vec<u8> {
        const TABLE: u64 = 0x3000;
        let mut f = vec![0u8; 0x4000];
        f[..page.len()].copy_from_slice(page);
        put(&mut f, 0, &[0x0001_0102_464c_457f, 0, 0x0000_0001_003e_0003, 0, 64, 0x3e00]);
        put(&mut f, 48, &[0x0038_0040_0000_0000, 0x0002_0003_0040_0002]);
        put(&mut f, 64, &[0x5_0000_0001, 0, BASE, BASE, 0x4000, 0x4000, 0x1000]);
        let kind = if by == By::Unwind { PT_GNU_EH_FRAME } else { 4 };
        put(&mut f, 120, &[0x4_0000_0000 | u64::from(kind), TABLE, BASE + TABLE, 0, 0x400, 0x400, 4]);
        // Section headers: none, the table, the names.
        f[0x3f00..0x3f16].copy_from_slice(b"\0.gopclntab\0.eh_frame\0");
        let (section, size) = match by {
            By::Symbols | By::Labels => (2, 24 * (functions.len() as u64 + 1)),
            By::Go => (1, 0x400),
            By::Frames => (1, 0x400),
            _ => (3, 0),
        };
        let (name, at) = if by == By::Frames { (12, TABLE + 0x200) } else { (1, TABLE) };
        put(&mut f, 0x3e40, &[(section << 32) | name, 0, 0, at, size]);
        put(&mut f, 0x3e80, &[3 << 32, 0, 0, 0x3f00, 22]);
        let t = TABLE as usize;
        match by {
            By::Unwind | By::Frames => {
                // The search table, which only `Unwind` refers to; a CIE with "zR" at 0x200, and an FDE for each
                // function.
                put32(&mut f, t, &[0x3b03_1b01, 0, functions.len() as u64]);
                put32(&mut f, t + 0x200, &[28, 0, 0x0052_7a01, 0x011b_0110, 0]);
                f[t + 0x20c..t + 0x211].copy_from_slice(&[1, 0x78, 16, 1, 0x1b]);
                for (i, (at, len)) in functions.iter().enumerate() {
                    let fde = 0x220 + i as u64 * 24;
                    put32(&mut f, t + 12 + i * 8, &[at.wrapping_sub(TABLE), fde]);
                    let from = at.wrapping_sub(TABLE + fde + 8);
                    put32(&mut f, t + fde as usize, &[20, fde + 4 - 0x200, from, *len]);
                }
            }
            By::Symbols | By::Labels => {
                for (i, (at, len)) in functions.iter().enumerate() {
                    let len = if by == By::Symbols { *len } else { 0 };
                    put(&mut f, t + 24 * (i + 1), &[0x0001_0012_0000_0000, BASE + at, len]);
                }
            }
            By::Go => {
                let n = functions.len() as u64;
                put(&mut f, t, &[0x0801_0000_ffff_fff1, n, 0, BASE, 0, 0, 0, 0, 0x80]);
                for (i, (at, _)) in functions.iter().enumerate() {
                    put32(&mut f, t + 0x80 + i * 8, &[*at]);
                }
                let end = functions.last().map_or(0, |(at, len)| at + len);
                put32(&mut f, t + 0x80 + functions.len() * 8, &[end]);
            }
            By::Nothing => {}
        }
        f
    }

    pub fn reader(file: &[u8]) -> impl FnMut(u64, &mut [u8]) -> usize + '_ {
        move |at, buf| {
            let rest = usize::try_from(at).ok().and_then(|at| file.get(at..)).unwrap_or_default();
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            n
        }
    }

    fn functions(file: &[u8], sites: &[u64]) -> Vec<Option<Function>> {
        let function = |f| match f {
            Found::Function(f) => Some(f),
            _ => None,
        };
        find(&mut reader(file), sites).into_iter().map(function).collect()
    }

    #[test]
    fn each_table_yields_functions() {
        let known = [(0x800, 0x40), (0x840, 0x20), (0x900, 0x100)];
        for by in ALL {
            let file = elf(&[], &known, by);
            let found = functions(&file, &[0x7ff, 0x800, 0x85f, 0x9ff, 0x860, 0xa00, 0x83f]);
            let whole = matches!(by, By::Labels | By::Go);
            let f = |start, end, next| Some(Function { start, end, next });
            let second = if whole { f(0x840, 0x900, 0x900) } else { f(0x840, 0x860, 0x900) };
            assert_eq!((found[0], found[1], found[2]), (None, f(0x800, 0x840, 0x840), second), "{by:?}");
            assert_eq!(found[6], found[1], "{by:?}");
            assert_eq!(found[4], if whole { second } else { None }, "{by:?}");
            match by {
                // The end of the last function is unknown.
                By::Labels => assert_eq!(found[3], None),
                _ => assert_eq!(found[3].map(|f| (f.start, f.end)), Some((0x900, 0xa00)), "{by:?}"),
            }
            assert_eq!(found[5], None, "{by:?}");
        }
    }

    #[test]
    fn sites_in_no_table_are_in_a_range_of_code() {
        let find = |file: &[u8], sites: &[u64]| find(&mut reader(file), sites);
        let mut file = elf(&[], &[(0x800, 0x40)], By::Nothing);
        // Without code sections, the segment; with one, that section.
        assert_eq!(find(&file, &[0x800, 0x4000]), [Found::Code(0, 0x4000), Found::Nowhere]);
        put(&mut file, 0x3e40, &[SHT_PROGBITS as u64 * (1 << 32), SHF_EXECINSTR, 0, 0x700, 0x200]);
        let code = Found::Code(0x700, 0x900);
        assert_eq!(find(&file, &[0x6ff, 0x700, 0x8ff, 0x900]), [Found::Nowhere, code, code, Found::Nowhere]);
        // A section beyond the segment.
        put(&mut file, 0x3e58, &[0x3f00, u64::MAX]);
        assert_eq!(find(&file, &[0x3f00, 0x3eff]), [Found::Code(0x3f00, 0x4000), Found::Nowhere]);
        let symbols = elf(&[], &[(0x800, 0x40), (0x900, 0x40)], By::Symbols);
        assert_eq!(find(&symbols, &[0x880]), [Found::Code(0, 0x4000)]);
        // A segment that is not code, and an empty file.
        file[64 + 4] = 4;
        assert_eq!(find(&file, &[0x800]), [Found::Nowhere]);
        assert_eq!(find(&[], &[0, u64::MAX]), [Found::Nowhere; 2]);
    }

    #[test]
    fn own_functions_are_found() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let exe = std::fs::read("/proc/self/exe").unwrap();
        let address = own_functions_are_found as *const () as u64;
        let hex = |s: &str| u64::from_str_radix(s, 16).unwrap();
        let line = maps.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).find(|l| {
            let (s, e) = l[0].split_once('-').unwrap();
            (hex(s)..hex(e)).contains(&address)
        });
        let line = line.unwrap();
        let at = address - hex(line[0].split_once('-').unwrap().0) + hex(line[2]);
        let found = functions(&exe, &[at, at + 1])[1].unwrap();
        assert!(found.start == at && found.end > at + 8 && found.next >= found.end, "{found:x?} {at:x}");
    }

    #[test]
    fn false_tables_are_harmless() {
        // Sets each byte of the headers and tables to extreme values; every answer must be a range around the site.
        for by in ALL {
            let good = elf(&[], &[(0x800, 0x40), (0x840, 0x20), (0x900, 0x100)], by);
            for at in (0..180).chain(0x3000..0x30c0).chain(0x3200..0x3270).chain(0x3e00..0x3f16) {
                for value in [0, 1, 0x7f, 0x80, 0xff, good[at] ^ 4] {
                    let mut file = good.clone();
                    file[at] = value;
                    for (f, site) in functions(&file, &[0x810, 0x850, 0x950]).iter().zip([0x810, 0x850, 0x950]) {
                        assert!(f.is_none_or(|f| f.start <= site && site < f.end && f.end <= f.next), "{by:?} {at:x}");
                    }
                }
            }
        }
        // Reads stay within the bound, whatever lengths the tables claim.
        for (by, size) in [(By::Symbols, u64::MAX / 2), (By::Frames, u64::MAX / 2), (By::Frames, MAX_FRAMES)] {
            let mut file = elf(&[], &[(0x800, 0x40)], by);
            put(&mut file, 0x3e60, &[size]);
            let mut total = 0;
            let mut endless = |at: u64, buf: &mut [u8]| {
                total += buf.len();
                if at < 0x4000 {
                    return reader(&file)(at, buf);
                }
                buf.fill(1);
                buf.len()
            };
            find(&mut endless, &[0x900]);
            assert!(total <= READ_MAX, "{total}");
        }
    }
}
