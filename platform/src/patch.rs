//! Patched text: copies of files' code in which `syscall` instructions are replaced by jumps into the stub.
//!
//! A [`Text`] represents one file. It is a memory file: first a *trampoline page* of code slots, then the file's
//! pages (those filled in so far; the rest is empty). The guest kernel makes its processes map such pages privately
//! in place of the file's own, and the trampoline page at a fixed distance from them. So a single store patches a
//! site in every process at once, and a new process starts with all sites patched at no extra cost. The descriptor is
//! sealed: only the mapping in the Sentry is writable.
//!
//! # Replaced instructions
//! The jump takes five bytes, `syscall` two.
//!
//! * *Prefix patch*: `mov eax, imm32; syscall`, where the jump replaces the `mov`; or musl's
//!   `mov [rsp + 8], r11; syscall`. The `syscall` stays: a jump to it still traps.
//! * *Suffix patch*: `syscall` and the first bytes of the next instruction, which must be plain arithmetic on
//!   registers (usually `cmp rax, -4095`), or a `ret` before padding. A thread that was in the call when the patch
//!   was made continues at the third byte of the jump. The slot is chosen such that this byte is an instruction that
//!   is undefined on every processor; the stub recognises the fault and continues in the slot.
//!
//! A proof from the file shows that these are instructions, and that no branch leads into their middle
//! ([`crate::proof`]). Claims by a stub are not used: a hostile one reports calls at places where there are none.
//!
//! # Threads that run meanwhile
//! Once a text may be mapped, a site is patched only if its five bytes lie in one aligned word, with one store. Other
//! sites wait for the next copy of the file ([`Outcome::Later`]): mapping that is atomic for each process.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Release};
use std::sync::Arc;

use iced_x86::{Decoder, DecoderOptions};
use parking_lot::Mutex;

use crate::budget::{self, Use};
use crate::proof::{Proof, Shape, JMP_LEN, SYSCALL};
use crate::systrap::abi::{ENTER_AT, SLOT_AFTER, SLOT_MARK, SLOT_MARK_AT, TRAMPOLINE_SIZE, TRAMPOLINE_SLOT};
use crate::systrap::watched::Mapping;
use crate::PAGE_SIZE;

/// Address space taken by a trampoline page, in bytes.
pub const TRAMPOLINE: u64 = TRAMPOLINE_SIZE;
/// Longer files are not patched: jumps would not reach.
pub const MAX_LEN: u64 = 1 << 30;

/// Makes the decoder build its tables, which takes most of a millisecond.
pub fn prepare() {
    std::hint::black_box(Decoder::new(64, &SYSCALL, DecoderOptions::NONE).decode());
}

/// State of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Patched, now or earlier.
    Done,
    /// Cannot be changed while the text is in use.
    Later,
    /// Cannot be proven safe, or no slot is free.
    Never,
}

/// A file's patched text.
pub struct Text {
    mapping: Mapping,
    fd: Arc<OwnedFd>,
    /// Length of the file's part.
    len: u64,
    /// Address of the trampoline page in a process, relative to the first byte of the file.
    trampoline: i64,
    state: Mutex<State>,
}

struct State {
    sites: HashMap<u64, Outcome>,
    /// Whether each slot is in use.
    slots: Vec<bool>,
}

/// One-byte instructions that are undefined in 64-bit mode on every processor.
const UNDEFINED: [u8; 17] =
    [0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0x82, 0x9a, 0xce, 0xea];

impl Text {
    /// For a file of `len` bytes. Its processes will have the trampoline page `trampoline` bytes after (before, if
    /// negative) the address that the file's first byte has or would have.
    pub fn new(len: u64, trampoline: i64) -> io::Result<Text> {
        if len == 0
            || len > MAX_LEN
            || trampoline.unsigned_abs() > MAX_LEN
            || trampoline.unsigned_abs() % PAGE_SIZE != 0
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = len.next_multiple_of(PAGE_SIZE);
        let (mapping, fd) = Mapping::only_writer(c"runsc-text", (TRAMPOLINE + len) as usize)?;
        let fd = budget::admit(fd, Use::Mapped)?;
        let mut slots = vec![false; (TRAMPOLINE_SIZE / TRAMPOLINE_SLOT) as usize];
        slots[0] = true;
        let text = Text {
            mapping,
            fd: Arc::new(fd),
            len,
            trampoline,
            state: Mutex::new(State { sites: HashMap::new(), slots }),
        };
        text.bytes(0, 8, |b| b.copy_from_slice(&ENTER_AT.to_le_bytes()));
        Ok(text)
    }

    /// A new text with the contents of this one, not in use yet: sites that had to wait can be patched in it. Slots
    /// are the same, so it can be mapped over this one while threads run through the trampoline page. `filled`: the
    /// ranges of the file that have been filled in.
    pub fn successor(&self, filled: &[(u64, u64)]) -> io::Result<Text> {
        let next = Text::new(self.len, self.trampoline)?;
        let state = self.state.lock();
        let copy = |at: u64, len: u64| {
            self.bytes(at, len as usize, |from| next.bytes(at, len as usize, |to| to.copy_from_slice(from)))
        };
        copy(0, TRAMPOLINE);
        for (start, end) in filled {
            copy(TRAMPOLINE + start, end.min(&self.len).saturating_sub(*start));
        }
        *next.state.lock() = State { sites: state.sites.clone(), slots: state.slots.clone() };
        drop(state);
        Ok(next)
    }

    /// The file to map: the trampoline page at 0, byte N of the file at [`TRAMPOLINE`]` + N`.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }
    pub fn trampoline(&self) -> i64 {
        self.trampoline
    }

    fn bytes<R>(&self, at: u64, len: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(at + len as u64 <= TRAMPOLINE + self.len);
        // SAFETY: in bounds of the live mapping, as asserted above. No other process can write to it, and in this one
        // the caller holds `self.state` or the value is new.
        f(unsafe { std::slice::from_raw_parts_mut(self.mapping.base().add(at as usize), len) })
    }

    /// Lets `read` write up to `len` of the file's bytes from `offset` on in place, which saves the cost of a buffer.
    /// Only before the pages are mapped, or with the same bytes.
    pub fn fill<R>(&self, offset: u64, len: u64, read: impl FnOnce(&mut [u8]) -> R) -> R {
        let _state = self.state.lock();
        let offset = offset.min(self.len);
        let n = len.min(self.len - offset) as usize;
        self.mapping.populate((TRAMPOLINE + offset) as usize, n);
        self.bytes(TRAMPOLINE + offset, n, read)
    }

    /// Number of patched sites.
    pub fn patched(&self) -> usize {
        self.state.lock().sites.values().filter(|o| **o == Outcome::Done).count()
    }

    /// Whether the site is patched.
    pub fn is_patched(&self, site: u64) -> bool {
        self.known(site) == Some(Outcome::Done)
    }

    /// State of the site, if it was examined.
    pub fn known(&self, site: u64) -> Option<Outcome> {
        self.state.lock().sites.get(&site).copied()
    }

    /// Patches the `syscall` instruction at `site` in one of the safe shapes. `live`: the text may be mapped by now.
    pub fn patch(&self, site: u64, proof: &Proof, live: bool) -> Outcome {
        let mut state = self.state.lock();
        match state.sites.get(&site) {
            Some(Outcome::Later) if !live => {}
            Some(known) => return *known,
            None => {}
        }
        let outcome = match proof {
            Proof::Open => Outcome::Later,
            Proof::Shapes(shapes) => self.try_patch(&mut state, site, shapes, live),
        };
        state.sites.insert(site, outcome);
        outcome
    }

    fn try_patch(&self, state: &mut State, site: u64, shapes: &[Shape], live: bool) -> Outcome {
        let mut outcome = Outcome::Never;
        for shape in shapes.iter().filter(|s| self.has(s, site)) {
            if live && shape.start % 8 > 8 - JMP_LEN {
                outcome = Outcome::Later;
                continue;
            }
            let Some(slot) = self.free_slot(state, shape, site) else { continue };
            state.slots[slot] = true;
            self.write_slot(slot, shape, site);
            self.write_jump(slot, shape.start);
            return Outcome::Done;
        }
        outcome
    }

    /// Whether the copy has the bytes of the proof.
    fn has(&self, shape: &Shape, site: u64) -> bool {
        let bytes: Vec<u8> = shape.prefix.iter().chain(&SYSCALL).chain(&shape.suffix).copied().collect();
        let inside = shape.start.checked_add(shape.prefix.len() as u64) == Some(site)
            && site.checked_add(32).is_some_and(|end| end <= self.len);
        inside && self.bytes(TRAMPOLINE + shape.start, bytes.len(), |b| *b == bytes[..])
    }

    /// Distance from the end of the jump to the slot.
    fn reach(&self, slot: usize, start: u64) -> i32 {
        // All terms are at most about 2^30.
        (self.trampoline + (slot as u64 * TRAMPOLINE_SLOT) as i64 - (start + JMP_LEN) as i64) as i32
    }

    fn free_slot(&self, state: &State, shape: &Shape, site: u64) -> Option<usize> {
        let any = shape.start != site;
        (0..state.slots.len())
            .find(|s| !state.slots[*s] && (any || UNDEFINED.contains(&self.reach(*s, shape.start).to_le_bytes()[1])))
    }

    fn write_slot(&self, slot: usize, shape: &Shape, site: u64) {
        let at = slot as u64 * TRAMPOLINE_SLOT;
        // In the guest's address space, relative to the file's first byte.
        let here = self.trampoline + at as i64;
        let rel = |end: usize, target: i64| ((target - here - end as i64) as i32).to_le_bytes();
        let mut code = Vec::with_capacity(TRAMPOLINE_SLOT as usize);
        code.extend(&shape.prefix);
        // lea r11, [rip + code after the call]
        code.extend([0x4c, 0x8d, 0x1d]);
        code.extend(rel(code.len() + 4, here + SLOT_AFTER as i64));
        // jmp [rip + the trampoline page's first word]
        code.extend([0xff, 0x25]);
        code.extend(rel(code.len() + 4, self.trampoline));
        code.resize(SLOT_AFTER as usize - 2, 0x90);
        code.extend(SYSCALL);
        // lea rcx, [rip + the address after the guest's own instruction]
        code.extend([0x48, 0x8d, 0x0d]);
        code.extend(rel(code.len() + 4, site as i64 + 2));
        code.extend(&shape.suffix);
        if let Some(back) = shape.back {
            code.push(0xe9);
            code.extend(rel(code.len() + 4, back as i64));
        }
        code.resize(SLOT_MARK_AT as usize, 0xcc);
        code.extend(SLOT_MARK.to_le_bytes());
        self.bytes(at, code.len(), |b| b.copy_from_slice(&code));
    }

    /// Writes the jump, the only change that running threads may see; if the text may be mapped, it is a single
    /// store.
    fn write_jump(&self, slot: usize, start: u64) {
        let rel = self.reach(slot, start).to_le_bytes();
        let jump = [0xe9, rel[0], rel[1], rel[2], rel[3]];
        let (word, shift) = (start & !7, (start % 8) as usize);
        if shift + jump.len() > 8 {
            self.bytes(TRAMPOLINE + start, jump.len(), |b| b.copy_from_slice(&jump));
            return;
        }
        let value = self.bytes(TRAMPOLINE + word, 8, |b| {
            let mut v = [0u8; 8];
            v.copy_from_slice(b);
            v[shift..shift + jump.len()].copy_from_slice(&jump);
            u64::from_le_bytes(v)
        });
        // SAFETY: an aligned word of the live mapping (the base is page-aligned); concurrent readers in other
        // processes see it whole.
        unsafe { &*self.mapping.base().add((TRAMPOLINE + word) as usize).cast::<AtomicU64>() }.store(value, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::functions::tests::{elf, reader, By, ALL};
    use crate::proof::prove;
    use iced_x86::Mnemonic;

    /// A file with one function, which is `code` after nops, and the first `syscall` in it.
    struct Sample {
        text: Text,
        site: u64,
        file: Vec<u8>,
    }

    /// Where the function begins. `align` bytes of nops come before `code`, and some after it that are not the
    /// function's.
    const AT: u64 = 0x800;
    fn sample_by(by: By, code: &[u8], align: u64) -> Sample {
        let mut page = vec![0x90u8; 0x2000];
        let at = (AT + align) as usize;
        page[at..at + code.len()].copy_from_slice(code);
        let next = (at + code.len()) as u64 + 64;
        let file = elf(&page, &[(AT, align + code.len() as u64), (next, 1)], by);
        let text = Text::new(file.len() as u64, -(TRAMPOLINE as i64)).unwrap();
        text.fill(0, file.len() as u64, |b| b.copy_from_slice(&file));
        let site = code.windows(2).position(|w| w == SYSCALL).unwrap_or(0) as u64;
        Sample { text, site: AT + align + site, file }
    }
    fn sample(code: &[u8], align: u64) -> Sample {
        sample_by(By::Unwind, code, align)
    }
    impl Sample {
        fn patch_at(&self, site: u64, live: bool) -> Outcome {
            self.text.patch(site, &prove(&mut reader(&self.file), &[site])[0], live)
        }
        fn patch(&self, live: bool) -> Outcome {
            self.patch_at(self.site, live)
        }
        fn unchanged(&self) -> bool {
            peek(&self.text, TRAMPOLINE, self.file.len()) == self.file
        }
    }
    fn peek(t: &Text, at: u64, n: usize) -> Vec<u8> {
        t.bytes(at, n, |b| b.to_vec())
    }
    const GETPID: [u8; 7] = [0xb8, 39, 0, 0, 0, 0x0f, 0x05];
    /// mov eax, edx; syscall; cmp rax, -4095; ret
    const READ: [u8; 11] = [0x89, 0xd0, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0xc3];

    #[test]
    fn a_prefix_patch_displaces_the_number() {
        let s = sample(&GETPID, 0);
        let (t, site) = (&s.text, s.site);
        assert_eq!(s.patch(true), Outcome::Done);
        let jump = peek(t, TRAMPOLINE + site - 5, 7);
        assert_eq!((jump[0], &jump[5..]), (0xe9, &SYSCALL[..]));
        let rel = i32::from_le_bytes(jump[1..5].try_into().unwrap());
        // The second slot of the trampoline page, which precedes the file.
        assert_eq!(site as i64 + i64::from(rel), -(TRAMPOLINE as i64) + 64);
        let slot = peek(t, 64, 64);
        assert!(slot.starts_with(&GETPID[..5]));
        assert_eq!(slot[22..24], SYSCALL);
        let mut d = Decoder::with_ip(64, &slot[24..], 64 + 24, 0);
        assert_eq!(d.decode().ip_rel_memory_address(), TRAMPOLINE + site + 2);
        assert_eq!(d.decode().near_branch_target(), TRAMPOLINE + site + 2);
        assert!(t.is_patched(site));
    }

    #[test]
    fn a_suffix_patch_displaces_the_comparison() {
        let s = sample(&READ, 6);
        let (t, site) = (&s.text, s.site);
        assert_eq!(site % 8, 0);
        assert_eq!(s.patch(true), Outcome::Done);
        let jump = peek(t, TRAMPOLINE + site, 8);
        assert_eq!(jump[0], 0xe9);
        assert!(UNDEFINED.contains(&jump[2]), "{jump:x?}");
        let slot = site as i64 + 5 + i64::from(i32::from_le_bytes(jump[1..5].try_into().unwrap())) + TRAMPOLINE as i64;
        let slot = peek(t, slot as u64, 64);
        assert_eq!(slot[31..37], [0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff]);
        let mut d = Decoder::new(64, &slot[SLOT_AFTER as usize + 13..], 0);
        assert_eq!(d.decode().mnemonic(), Mnemonic::Jmp);
    }

    #[test]
    fn a_prefix_patch_displaces_the_store() {
        // mov %r11, 8(%rsp); syscall; ret; jmp
        let code = [0x4c, 0x89, 0x5c, 0x24, 8, 0x0f, 0x05, 0xc3, 0xe9, 0, 0, 0, 0];
        let s = sample(&code, 0);
        assert_eq!(s.patch(true), Outcome::Done);
        let jump = peek(&s.text, TRAMPOLINE + s.site - 5, 8);
        assert_eq!((jump[0], &jump[5..]), (0xe9, &code[5..8]));
        assert!(peek(&s.text, 64, 64).starts_with(&code[..5]));
        // With another address or another register it is not proven.
        for (at, with) in [(0, 0x48), (0, 0x4d), (2, 0x53), (3, 0x14), (1, 0x8b)] {
            let mut other = code;
            other[at] = with;
            assert_eq!(sample(&other, 0).patch(true), Outcome::Never, "{at} {with:x}");
        }
    }

    #[test]
    fn no_store_is_torn() {
        for align in 0..8 {
            let s = sample(&GETPID, align);
            assert_eq!(s.patch(true), if align <= 3 { Outcome::Done } else { Outcome::Later }, "{align}");
            assert_eq!(s.patch(false), Outcome::Done);
        }
    }

    #[test]
    fn unproven_sites_stay() {
        // A REX prefix that makes it `mov r8d`; no `syscall`; a branch, a memory operand after the call.
        let s = sample(&GETPID, 0);
        assert_eq!(s.patch_at(s.site + 1, false), Outcome::Never);
        for code in [
            &[0x41, 0xb8, 39, 0, 0, 0, 0x0f, 0x05][..],
            &[0x0f, 0x05, 0xe9, 0, 0, 0, 0],
            &[0x0f, 0x05, 0x48, 0x89, 0x47, 0x08],
            &[0x0f, 0x05, 0x89, 0xc3, 0xc3],
            &[0x0f, 0x05, 0x48, 0x8d, 0x05, 0, 0, 0, 0],
            &[0x0f, 0x05, 0xc3, 0x55, 0x53],
            // No byte after the call belongs to the function.
            &[0x0f, 0x05],
            // The call that unwinders recognise, in both forms, followed by an instruction that could be displaced.
            &[0xb8, 15, 0, 0, 0, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff],
            &[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff],
        ] {
            let s = sample(code, 0);
            assert_eq!(s.patch(false), Outcome::Never, "{code:x?}");
            assert!(s.unchanged(), "{code:x?}");
        }
    }

    /// Places that look like replaceable instructions, in the middle of other instructions, whatever a stub claims.
    #[test]
    fn forged_sites_stay() {
        for code in [
            // movb $5, 15(%rsp); mov $5, %eax; ret
            &[0xc6, 0x44, 0x24, 0x0f, 0x05, 0xb8, 5, 0, 0, 0, 0xc3][..],
            // mov $0x4800050f, %ecx; cmp $1, %eax; ret
            &[0xb9, 0xd0, 0x0f, 0x05, 0x48, 0x3d, 1, 0, 0, 0, 0xc3],
            // movabs $0xfff0_013d48_050f.., %rcx: `syscall; cmp`; ret
            &[0x48, 0xb9, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0xc3],
            // movabs with `mov $39, %eax; syscall` in it
            &[0x48, 0xb9, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0, 0xc3],
            // The `mov` is the end of another instruction: mov $39, %r8d; lea 0x27b8(%rax), with a true `syscall`
            &[0x41, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3, 0x55],
        ] {
            for by in ALL.into_iter().chain([By::Nothing]) {
                for align in 0..8 {
                    let s = sample_by(by, code, align);
                    for _ in 0..3 {
                        assert_eq!(s.patch(align % 2 == 0), Outcome::Never, "{by:?} {code:x?}");
                    }
                    assert!(s.unchanged(), "{by:?} {code:x?}");
                }
            }
        }
    }

    #[test]
    fn every_kind_of_table_is_enough() {
        for code in [&GETPID[..], &READ] {
            for by in ALL {
                assert_eq!(sample_by(by, code, 6).patch(false), Outcome::Done, "{by:?}");
            }
            // Invalid bytes anywhere in the function.
            for (n, with) in [[&[0x06][..], code].concat(), [code, &[0xeb, 0, 0x06]].concat()].iter().enumerate() {
                assert_eq!(sample(with, 6).patch(false), Outcome::Never, "{n}");
            }
        }
    }

    #[test]
    fn code_in_no_table_is_swept() {
        for code in [&GETPID[..], &READ] {
            assert_eq!(sample_by(By::Nothing, code, 6).patch(false), Outcome::Done);
            // Data, and an invalid instruction, before the code.
            let data: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(0x3b)).chain([0x06; 4]).collect();
            for (far, outcome) in [(200, Outcome::Done), (20, Outcome::Never)] {
                let with = [&data[..], &vec![0x90; far], code].concat();
                assert_eq!(sample_by(By::Nothing, &with, 0).patch(false), outcome, "{far}");
            }
            // Near the beginning of the code there are too few starts to compare.
            let mut s = sample_by(By::Nothing, code, 6);
            s.file[64 + 8..64 + 16].copy_from_slice(&(AT - 4).to_le_bytes());
            assert_eq!(s.patch(false), Outcome::Never);
        }
        // A jump into the middle from another place.
        let before = [&GETPID[..], &[0x90; 99], &[0xc3, 0xeb, (1 - 7 - 99 - 3i8) as u8]].concat();
        assert_eq!(sample_by(By::Nothing, &before, 6).patch(false), Outcome::Never);
        // After a `ret` there must be padding up to the next possible beginning of a function.
        let padding = [&[0x0f, 0x05, 0xc3][..], &[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0], &[0xcc]].concat();
        for (align, outcome) in [(0, Outcome::Done), (3, Outcome::Done), (11, Outcome::Never), (12, Outcome::Never)] {
            assert_eq!(sample_by(By::Nothing, &padding, align).patch(false), outcome, "{align}");
        }
        let next = [&padding[..12], &[0x55]].concat();
        assert_eq!(sample_by(By::Nothing, &next, 0).patch(false), Outcome::Never);
        // Code that runs in two ways: a jump over the first byte of the `mov`, which otherwise is `mov $39, %r8d`.
        let twice = [&[0xeb, 1, 0x41][..], &GETPID].concat();
        assert_eq!(sample_by(By::Nothing, &twice, 6).patch(false), Outcome::Never);
    }

    #[test]
    fn jump_targets_are_not_displaced() {
        // A jmp to the instruction after the call; a lea of it; the same for the middle of the number before the
        // call.
        let behind = [&READ[..], &[0xeb, (4 - 11 - 2i8) as u8]].concat();
        assert_eq!(sample(&behind, 6).patch(false), Outcome::Never);
        let lea = [&READ[..], &[0x48, 0x8d, 0x05, (4 - 11 - 7i8) as u8, 0xff, 0xff, 0xff]].concat();
        assert_eq!(sample(&lea, 6).patch(false), Outcome::Never);
        let before = [&GETPID[..], &[0xc3, 0xeb, (1 - 8 - 2i8) as u8]].concat();
        assert_eq!(sample(&before, 6).patch(false), Outcome::Never);
        // Jumps to the call itself and to the number are allowed.
        for to in [5i8, 0] {
            let good = [&GETPID[..], &[0xc3, 0xeb, (to - 8 - 2) as u8]].concat();
            assert_eq!(sample(&good, 6).patch(false), Outcome::Done);
        }
    }

    #[test]
    fn a_copy_that_differs_from_the_file_stays() {
        let s = sample(&READ, 6);
        s.text.fill(s.site + 4, 1, |b| b[0] ^= 1);
        assert_eq!(s.patch(false), Outcome::Never);
    }

    #[test]
    fn decoding_is_bounded() {
        // Functions of 40 KiB, a thousand sites: some stay open, for a later call.
        let code = [&GETPID[..], &[0x90; 9]].concat().repeat(2560);
        let mut file = elf(&[], &[(0x4000, code.len() as u64)], By::Unwind);
        file.extend(&code);
        let len = file.len() as u64;
        file[96..104].copy_from_slice(&len.to_le_bytes());
        let sites: Vec<u64> = (0..1000).map(|i| 0x4005 + i * 16).collect();
        let proofs = prove(&mut reader(&file), &sites);
        let open = proofs.iter().filter(|p| **p == Proof::Open).count();
        assert!(open > 0 && open < 1000, "{open}");
        assert!(proofs.iter().all(|p| !matches!(p, Proof::Shapes(s) if s.is_empty())));
    }

    #[test]
    fn trampoline_pages_get_full() {
        let text = Text::new(0x1_0000, 0x2_0000).unwrap();
        let page: Vec<u8> = [0x90; 25].iter().chain(&GETPID).copied().cycle().take(0x1_0000).collect();
        text.fill(0, page.len() as u64, |b| b.copy_from_slice(&page));
        let (mut done, mut never) = (0, 0);
        for i in 4..2040 {
            let site = i * 32 + 30;
            let prefix = GETPID[..5].to_vec();
            let shape = Shape { start: site - 5, prefix, suffix: Vec::new(), back: Some(site + 2) };
            match text.patch(site, &Proof::Shapes(vec![shape]), false) {
                Outcome::Done => done += 1,
                _ => never += 1,
            }
        }
        assert_eq!((done, never), (1023, 2036 - 1023));
    }
}
