//! Reads ELF executables (elf(5)). All contents are hostile: sizes, offsets and counts are checked.

use crate::error::{Errno, Result};
use platform::{GUEST_MAX, PAGE_SIZE};

pub const PT_LOAD: u32 = 1;
pub const PT_INTERP: u32 = 3;
pub const PT_PHDR: u32 = 6;
pub const PT_GNU_STACK: u32 = 0x6474_e551;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
/// Linux's limit: the program headers must fit in 64 KiB.
const MAX_PHDRS: usize = 65536 / 56;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phdr {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub vaddr: u64,
    pub filesz: u64,
    pub memsz: u64,
    pub align: u64,
}

impl Phdr {
    /// `PROT_*` of a segment.
    pub fn prot(&self) -> i32 {
        let mut p = 0;
        if self.flags & 4 != 0 {
            p |= libc::PROT_READ;
        }
        if self.flags & 2 != 0 {
            p |= libc::PROT_WRITE;
        }
        if self.flags & 1 != 0 {
            p |= libc::PROT_EXEC;
        }
        p
    }
}

#[derive(Clone, Debug)]
pub struct Elf {
    /// Position-independent (`ET_DYN`).
    pub pie: bool,
    pub entry: u64,
    pub phoff: u64,
    pub phdrs: Vec<Phdr>,
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?))
}
fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?))
}
fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?))
}

/// True if the bytes begin with the ELF magic number.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

impl Elf {
    /// Parses the header; `read(offset, len)` reads more of the file. `ENOEXEC`: not a 64-bit x86-64
    /// executable that Linux would start.
    pub fn parse(head: &[u8], read: &mut dyn FnMut(u64, usize) -> Result<Vec<u8>>) -> Result<Elf> {
        let bad = || Errno::ENOEXEC;
        if !is_elf(head) || head.len() < 64 || head[4] != 2 || head[5] != 1 {
            return Err(bad());
        }
        let kind = u16_at(head, 16).ok_or_else(bad)?;
        if (kind != ET_EXEC && kind != ET_DYN) || u16_at(head, 18) != Some(EM_X86_64) {
            return Err(bad());
        }
        let entry = u64_at(head, 24).ok_or_else(bad)?;
        let phoff = u64_at(head, 32).ok_or_else(bad)?;
        let phentsize = u16_at(head, 54).ok_or_else(bad)?;
        let phnum = u16_at(head, 56).ok_or_else(bad)? as usize;
        if phentsize != 56 || phnum == 0 || phnum > MAX_PHDRS {
            return Err(bad());
        }
        let size = phnum * 56;
        let table = match usize::try_from(phoff).ok().and_then(|o| head.get(o..o.checked_add(size)?)) {
            Some(t) => t.to_vec(),
            None => read(phoff, size)?,
        };
        if table.len() < size {
            return Err(bad());
        }
        let mut phdrs = Vec::with_capacity(phnum);
        for p in table.chunks_exact(56) {
            let f = |at| u64_at(p, at).unwrap_or(0);
            let h = Phdr {
                kind: u32_at(p, 0).unwrap_or(0),
                flags: u32_at(p, 4).unwrap_or(0),
                offset: f(8),
                vaddr: f(16),
                filesz: f(32),
                memsz: f(40),
                align: f(48),
            };
            if h.kind == PT_LOAD {
                let end = h.vaddr.checked_add(h.memsz).ok_or_else(bad)?;
                if h.filesz > h.memsz
                    || end > GUEST_MAX
                    || h.offset % PAGE_SIZE != h.vaddr % PAGE_SIZE
                    || h.offset.checked_add(h.filesz).is_none()
                {
                    return Err(bad());
                }
            }
            phdrs.push(h);
        }
        if !phdrs.iter().any(|p| p.kind == PT_LOAD && p.memsz > 0) {
            return Err(bad());
        }
        Ok(Elf { pie: kind == ET_DYN, entry, phoff, phdrs })
    }

    pub fn loads(&self) -> impl Iterator<Item = &Phdr> {
        self.phdrs.iter().filter(|p| p.kind == PT_LOAD && p.memsz > 0)
    }
    /// Lowest and highest address of the segments, in whole pages.
    pub fn extent(&self) -> (u64, u64) {
        let lo = self.loads().map(|p| p.vaddr).min().unwrap_or(0) & !(PAGE_SIZE - 1);
        let hi = self.loads().map(|p| p.vaddr + p.memsz).max().unwrap_or(0);
        (lo, hi.div_ceil(PAGE_SIZE) * PAGE_SIZE)
    }
    /// Largest alignment of the segments.
    pub fn align(&self) -> u64 {
        self.loads()
            .map(|p| p.align)
            .filter(|a| a.is_power_of_two())
            .max()
            .unwrap_or(PAGE_SIZE)
            .clamp(PAGE_SIZE, 1 << 30)
    }
    pub fn interp(&self) -> Option<&Phdr> {
        self.phdrs.iter().find(|p| p.kind == PT_INTERP)
    }
    /// The value of AT_PHDR without the load bias.
    pub fn phdr_addr(&self) -> u64 {
        if let Some(p) = self.phdrs.iter().find(|p| p.kind == PT_PHDR) {
            return p.vaddr;
        }
        self.loads()
            .find(|p| p.offset <= self.phoff && self.phoff < p.offset + p.filesz)
            .map_or(0, |p| self.phoff - p.offset + p.vaddr)
    }
    pub fn exec_stack(&self) -> bool {
        self.phdrs.iter().find(|p| p.kind == PT_GNU_STACK).is_none_or(|p| p.flags & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_enoexec() {
        let mut none = |_: u64, _: usize| Ok(Vec::new());
        assert_eq!(Elf::parse(b"\x7fELF", &mut none).err(), Some(Errno::ENOEXEC));
        let mut h = vec![0u8; 64];
        h[..4].copy_from_slice(b"\x7fELF");
        h[4] = 2;
        h[5] = 1;
        h[16] = 2;
        h[18] = 62;
        h[54] = 56;
        h[56] = 0xff;
        h[57] = 0xff;
        assert_eq!(Elf::parse(&h, &mut none).err(), Some(Errno::ENOEXEC));
    }

    #[test]
    fn own_binary_parses() {
        let data = std::fs::read("/proc/self/exe").unwrap();
        let e = Elf::parse(&data[..4096], &mut |_, _| Err(Errno::EIO)).unwrap();
        assert!(e.loads().count() >= 2);
        let (lo, hi) = e.extent();
        assert!(lo < hi);
    }
}
