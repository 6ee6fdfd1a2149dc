//! Patched text: copies of files' code in which `syscall` instructions are replaced by jumps into the stub.
//!
//! A [`Text`] stands for one file. It is a memory file: first an *island* of code slots, then the file's pages (those that
//! were filled in; the rest is empty). The guest kernel has its processes map such pages privately in place of the file's
//! own, and the island at a fixed distance from them, so one store here patches a site in every process at once, and
//! a process starts with all sites patched at no cost of its own. The descriptor is sealed: only the mapping in the Sentry
//! can write.
//!
//! # What is replaced
//! The jump takes five bytes, `syscall` two.
//!
//! * *Before*: `mov eax, imm32; syscall`, where the jump takes the place of the `mov`. The `syscall` stays: whoever jumps
//!   to it is trapped as ever.
//! * *Behind*: `syscall` and the first bytes of the instruction after it, which must be plain arithmetic on registers
//!   (`cmp rax, -4095` as a rule), or a `ret` before padding. A thread that was in the call when the patch was made
//!   goes on at the third byte of the jump, so that byte is chosen (by the place of the slot) to be an instruction that
//!   no processor has; the stub recognises the fault and goes on in the slot.
//!
//! *Behind* needs no proof beyond the trap itself: the instruction after a `syscall` that was executed begins
//! two bytes on. *Before* needs one that the five bytes are an instruction: the number is the one that trapped, and decoding from
//! many places before meets at its beginning. Nothing else in the displaced bytes is the beginning of an instruction.
//!
//! # Threads that run meanwhile
//! Once a text may be mapped, a site is patched only if its five bytes lie in one aligned word, with one store. Others
//! wait for the next copy of the file ([`Outcome::Later`]): mapping that is atomic for each process.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Release};
use std::sync::Arc;

use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};
use parking_lot::Mutex;

use crate::budget::{self, Use};
use crate::systrap::abi::{ENTER_AT, ISLAND_SIZE, ISLAND_SLOT, SLOT_AFTER, SLOT_MARK, SLOT_MARK_AT};
use crate::systrap::watched::Mapping;
use crate::PAGE_SIZE;

/// Bytes of address space that an island takes.
pub const ISLAND: u64 = ISLAND_SIZE;
/// Files longer than this are not patched: jumps would not reach.
pub const MAX_LEN: u64 = 1 << 30;

/// Has the decoder make its tables, which takes the better part of a millisecond.
pub fn prepare() {
    std::hint::black_box(Decoder::new(64, &SYSCALL, DecoderOptions::NONE).decode());
}

/// What became of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Patched, now or before.
    Done,
    /// It cannot be changed while the text is in use.
    Later,
    /// It cannot be proven safe, or there is no room.
    Never,
}

/// A file's patched text.
pub struct Text {
    mapping: Mapping,
    fd: Arc<OwnedFd>,
    /// Length of the file's part.
    len: u64,
    /// Where the island lies in a process, seen from the first byte of the file.
    island: i64,
    state: Mutex<State>,
}

struct State {
    sites: HashMap<u64, Outcome>,
    /// A bit for each slot in use.
    slots: Vec<bool>,
}

/// One-byte instructions that are undefined in 64-bit mode on every processor.
const UNDEFINED: [u8; 17] =
    [0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0x82, 0x9a, 0xce, 0xea];
const JMP_LEN: u64 = 5;
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// `rt_sigreturn`: unwinders know its call by its bytes.
const SIGRETURN: u32 = 15;
/// How far back decoding begins to prove an instruction.
const LOOK_BACK: usize = 64;

/// How a site is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    /// Offset of the jump in the file.
    start: u64,
    /// Executed in the slot before the call, and after it.
    before: Vec<u8>,
    behind: Vec<u8>,
    /// Where the slot goes back to; `None` if `behind` ends with a `ret`.
    back: Option<u64>,
}

impl Text {
    /// For a file of `len` bytes, whose processes will have the island `island` bytes after (before, if negative) the
    /// address that the file's first byte has or would have.
    pub fn new(len: u64, island: i64) -> io::Result<Text> {
        if len == 0 || len > MAX_LEN || island.unsigned_abs() > MAX_LEN || island.unsigned_abs() % PAGE_SIZE != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = len.next_multiple_of(PAGE_SIZE);
        let (mapping, fd) = Mapping::only_writer(c"runsc-text", (ISLAND + len) as usize)?;
        let fd = budget::admit(fd, Use::Mapped)?;
        let mut slots = vec![false; (ISLAND_SIZE / ISLAND_SLOT) as usize];
        slots[0] = true;
        let text =
            Text { mapping, fd: Arc::new(fd), len, island, state: Mutex::new(State { sites: HashMap::new(), slots }) };
        text.bytes(0, 8, |b| b.copy_from_slice(&ENTER_AT.to_le_bytes()));
        Ok(text)
    }

    /// Another text with all that this one has, not in use yet: sites that had to wait can be patched there. Slots are the
    /// same, so that it can be mapped over this one while threads are on their way through the island. `filled`: the
    /// ranges of the file that have been filled in.
    pub fn successor(&self, filled: &[(u64, u64)]) -> io::Result<Text> {
        let next = Text::new(self.len, self.island)?;
        let state = self.state.lock();
        let copy = |at: u64, len: u64| {
            self.bytes(at, len as usize, |from| next.bytes(at, len as usize, |to| to.copy_from_slice(from)))
        };
        copy(0, ISLAND);
        for (start, end) in filled {
            copy(ISLAND + start, end.min(&self.len).saturating_sub(*start));
        }
        *next.state.lock() = State { sites: state.sites.clone(), slots: state.slots.clone() };
        drop(state);
        Ok(next)
    }

    /// What is to be mapped: the island at 0, the file's byte N at [`ISLAND`]` + N`.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }
    pub fn island(&self) -> i64 {
        self.island
    }

    fn bytes<R>(&self, at: u64, len: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(at + len as u64 <= ISLAND + self.len);
        // SAFETY: in bounds of the live mapping; nobody else can write to it, and `self.state` is held or the value is new.
        f(unsafe { std::slice::from_raw_parts_mut(self.mapping.base().add(at as usize), len) })
    }

    /// Has `read` put up to `len` of the file's bytes from `offset` on where they belong: a buffer in between would cost as much as reading
    /// them. Before they are mapped, or over the same bytes.
    pub fn fill<R>(&self, offset: u64, len: u64, read: impl FnOnce(&mut [u8]) -> R) -> R {
        let _state = self.state.lock();
        let offset = offset.min(self.len);
        let n = len.min(self.len - offset) as usize;
        self.mapping.populate((ISLAND + offset) as usize, n);
        self.bytes(ISLAND + offset, n, read)
    }

    /// How many sites are patched.
    pub fn patched(&self) -> usize {
        self.state.lock().sites.values().filter(|o| **o == Outcome::Done).count()
    }

    /// Whether the site is patched.
    pub fn is_patched(&self, site: u64) -> bool {
        self.state.lock().sites.get(&site) == Some(&Outcome::Done)
    }

    /// Patches the `syscall` instruction at `site`, from which call `nr` has come. `live`: the text may be mapped by now.
    pub fn patch(&self, site: u64, nr: u32, live: bool) -> Outcome {
        let mut state = self.state.lock();
        match state.sites.get(&site) {
            Some(Outcome::Later) if !live => {}
            Some(known) => return *known,
            None => {}
        }
        let outcome = self.try_patch(&mut state, site, nr, live);
        state.sites.insert(site, outcome);
        outcome
    }

    fn try_patch(&self, state: &mut State, site: u64, nr: u32, live: bool) -> Outcome {
        if nr == SIGRETURN || site < 16 || site + 32 > self.len {
            return Outcome::Never;
        }
        let from = site.saturating_sub(LOOK_BACK as u64 + 8);
        let window = (site + 32 - from) as usize;
        let shapes = self.bytes(ISLAND + from, window, |b| shapes(b, (site - from) as usize, site, nr));
        let mut outcome = Outcome::Never;
        for shape in shapes {
            if live && shape.start % 8 > 8 - JMP_LEN {
                outcome = Outcome::Later;
                continue;
            }
            let Some(slot) = self.free_slot(state, &shape, site) else { continue };
            state.slots[slot] = true;
            self.write_slot(slot, &shape, site);
            self.write_jump(slot, shape.start);
            return Outcome::Done;
        }
        outcome
    }

    /// The distance from the end of the jump to the slot.
    fn reach(&self, slot: usize, start: u64) -> i32 {
        // All are below 2^30.
        (self.island + (slot as u64 * ISLAND_SLOT) as i64 - (start + JMP_LEN) as i64) as i32
    }

    fn free_slot(&self, state: &State, shape: &Shape, site: u64) -> Option<usize> {
        let any = shape.start != site;
        (0..state.slots.len())
            .find(|s| !state.slots[*s] && (any || UNDEFINED.contains(&self.reach(*s, shape.start).to_le_bytes()[1])))
    }

    fn write_slot(&self, slot: usize, shape: &Shape, site: u64) {
        let at = slot as u64 * ISLAND_SLOT;
        // As the guest sees it, relative to the file's first byte.
        let here = self.island + at as i64;
        let rel = |end: usize, target: i64| ((target - here - end as i64) as i32).to_le_bytes();
        let mut code = Vec::with_capacity(ISLAND_SLOT as usize);
        code.extend(&shape.before);
        // lea r11, [rip + behind the call]
        code.extend([0x4c, 0x8d, 0x1d]);
        code.extend(rel(code.len() + 4, here + SLOT_AFTER as i64));
        // jmp [rip + the island's first word]
        code.extend([0xff, 0x25]);
        code.extend(rel(code.len() + 4, self.island));
        code.resize(SLOT_AFTER as usize - 2, 0x90);
        code.extend(SYSCALL);
        // lea rcx, [rip + the address after the guest's own instruction]
        code.extend([0x48, 0x8d, 0x0d]);
        code.extend(rel(code.len() + 4, site as i64 + 2));
        code.extend(&shape.behind);
        if let Some(back) = shape.back {
            code.push(0xe9);
            code.extend(rel(code.len() + 4, back as i64));
        }
        code.resize(SLOT_MARK_AT as usize, 0xcc);
        code.extend(SLOT_MARK.to_le_bytes());
        self.bytes(at, code.len(), |b| b.copy_from_slice(&code));
    }

    /// The one change that running threads may see; if they can, it is one store.
    fn write_jump(&self, slot: usize, start: u64) {
        let rel = self.reach(slot, start).to_le_bytes();
        let jump = [0xe9, rel[0], rel[1], rel[2], rel[3]];
        let (word, shift) = (start & !7, (start % 8) as usize);
        if shift + jump.len() > 8 {
            self.bytes(ISLAND + start, jump.len(), |b| b.copy_from_slice(&jump));
            return;
        }
        let value = self.bytes(ISLAND + word, 8, |b| {
            let mut v = [0u8; 8];
            v.copy_from_slice(b);
            v[shift..shift + jump.len()].copy_from_slice(&jump);
            u64::from_le_bytes(v)
        });
        // SAFETY: an aligned word of the live mapping.
        unsafe { &*self.mapping.base().add((ISLAND + word) as usize).cast::<AtomicU64>() }.store(value, Release);
    }
}

/// The ways to patch the site at `at` in `code`, the better first. `site` is its offset in the file.
fn shapes(code: &[u8], at: usize, site: u64, nr: u32) -> Vec<Shape> {
    let mut found = Vec::new();
    if code.get(at..at + 2) != Some(&SYSCALL) {
        return found;
    }
    for (len, head) in [(5, &[0xb8][..]), (7, &[0x48, 0xc7, 0xc0][..])] {
        let Some(start) = at.checked_sub(len) else { continue };
        let insn = &code[start..at];
        if insn.starts_with(head) && insn.ends_with(&nr.to_le_bytes()) && begins_instruction(code, start) {
            found.push(Shape {
                start: site - len as u64,
                before: insn.to_vec(),
                behind: Vec::new(),
                back: Some(site + 2),
            });
        }
    }
    found.extend(behind(&code[at + 2..], site));
    found
}

/// Whether decoding meets at `start` from nearly everywhere before.
fn begins_instruction(code: &[u8], start: usize) -> bool {
    let (mut met, mut missed) = (0, 0);
    for from in start.saturating_sub(LOOK_BACK)..start.saturating_sub(8) {
        let mut decoder = Decoder::new(64, &code[from..start + 8], DecoderOptions::NONE);
        let mut sane = true;
        while decoder.position() < start - from {
            let insn = decoder.decode();
            sane &= !insn.is_invalid();
        }
        if decoder.position() == start - from {
            met += 1;
        } else if sane {
            missed += 1;
        }
    }
    met >= 8 && missed * 8 <= met
}

fn behind(rest: &[u8], site: u64) -> Option<Shape> {
    let mut decoder = Decoder::new(64, rest, DecoderOptions::NONE);
    let insn = decoder.decode();
    let len = insn.len();
    let shape = |len: usize, back| Shape { start: site, before: Vec::new(), behind: rest[..len].to_vec(), back };
    if insn.mnemonic() == Mnemonic::Ret && len == 1 {
        // What follows must be the room between functions, which nothing reaches.
        let padding = |b: &[u8]| {
            b.starts_with(&[0xcc; 2]) || {
                let mut d = Decoder::new(64, b, DecoderOptions::NONE);
                let nop = d.decode();
                nop.mnemonic() == Mnemonic::Nop && (nop.len() >= 2 || d.decode().mnemonic() == Mnemonic::Nop)
            }
        };
        // Not the next function's beginning, either.
        let aligned = (site + 3) % 16 == 0 || (site + 4) % 16 == 0;
        return (padding(&rest[1..]) && !aligned).then(|| shape(1, None));
    }
    let plain = matches!(
        insn.mnemonic(),
        Mnemonic::Cmp
            | Mnemonic::Test
            | Mnemonic::Mov
            | Mnemonic::Movsxd
            | Mnemonic::Add
            | Mnemonic::Sub
            | Mnemonic::And
            | Mnemonic::Or
            | Mnemonic::Xor
            | Mnemonic::Neg
    );
    let operands = (0..insn.op_count()).all(|i| match insn.op_kind(i) {
        OpKind::Register => (Register::AL..=Register::R15).contains(&insn.op_register(i)),
        OpKind::Memory => false,
        kind => !matches!(
            kind,
            OpKind::NearBranch16
                | OpKind::NearBranch32
                | OpKind::NearBranch64
                | OpKind::FarBranch16
                | OpKind::FarBranch32
        ),
    });
    (plain && operands && !insn.has_lock_prefix() && len as u64 >= JMP_LEN - 2 && len <= 15)
        .then(|| shape(len, Some(site + 2 + len as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `code` in the middle of nops; the site is at the first `syscall`.
    fn text(code: &[u8], align: u64) -> (Text, u64) {
        let text = Text::new(0x2000, -(ISLAND as i64)).unwrap();
        let mut page = vec![0x90u8; 0x2000];
        let at = 0x800 + align as usize;
        page[at..at + code.len()].copy_from_slice(code);
        text.fill(0, page.len() as u64, |b| b.copy_from_slice(&page));
        let site = code.windows(2).position(|w| w == SYSCALL).unwrap() as u64;
        (text, 0x800 + align + site)
    }
    fn peek(t: &Text, at: u64, n: usize) -> Vec<u8> {
        t.bytes(at, n, |b| b.to_vec())
    }
    const GETPID: [u8; 7] = [0xb8, 39, 0, 0, 0, 0x0f, 0x05];

    #[test]
    fn the_number_before_is_used() {
        let (t, site) = text(&GETPID, 0);
        assert_eq!(t.patch(site, 39, true), Outcome::Done);
        let jump = peek(&t, ISLAND + site - 5, 7);
        assert_eq!((jump[0], &jump[5..]), (0xe9, &SYSCALL[..]));
        let rel = i32::from_le_bytes(jump[1..5].try_into().unwrap());
        // The second slot of the island, which lies right before the file.
        assert_eq!(site as i64 + i64::from(rel), -(ISLAND as i64) + 64);
        let slot = peek(&t, 64, 64);
        assert!(slot.starts_with(&GETPID[..5]));
        assert_eq!(slot[22..24], SYSCALL);
        let mut d = Decoder::with_ip(64, &slot[24..], 64 + 24, 0);
        assert_eq!(d.decode().ip_rel_memory_address(), ISLAND + site + 2);
        assert_eq!(d.decode().near_branch_target(), ISLAND + site + 2);
        assert!(t.is_patched(site));
    }

    #[test]
    fn the_comparison_behind_is_used() {
        // mov eax, edx; syscall; cmp rax, -4095
        let (t, site) = text(&[0x89, 0xd0, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff], 6);
        assert_eq!(site % 8, 0);
        assert_eq!(t.patch(site, 0, true), Outcome::Done);
        let jump = peek(&t, ISLAND + site, 8);
        assert_eq!(jump[0], 0xe9);
        assert!(UNDEFINED.contains(&jump[2]), "{jump:x?}");
        let slot = site as i64 + 5 + i64::from(i32::from_le_bytes(jump[1..5].try_into().unwrap())) + ISLAND as i64;
        let slot = peek(&t, slot as u64, 64);
        assert_eq!(slot[31..37], [0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff]);
        let mut d = Decoder::new(64, &slot[SLOT_AFTER as usize + 13..], 0);
        assert_eq!(d.decode().mnemonic(), Mnemonic::Jmp);
    }

    #[test]
    fn no_store_is_torn() {
        for align in 0..8 {
            let (t, site) = text(&GETPID, align);
            let first = t.patch(site, 39, true);
            assert_eq!(first, if align <= 3 { Outcome::Done } else { Outcome::Later }, "{align}");
            assert_eq!(t.patch(site, 39, false), Outcome::Done);
        }
    }

    #[test]
    fn what_is_not_proven_stays() {
        // Another number; a REX prefix that makes it `mov r8d`; no `syscall`; a branch, a memory operand behind.
        let (t, site) = text(&GETPID, 0);
        assert_eq!(t.patch(site, 40, false), Outcome::Never);
        let (t, site) = text(&[0x41, 0xb8, 39, 0, 0, 0, 0x0f, 0x05], 0);
        assert_eq!(t.patch(site, 39, false), Outcome::Never);
        let (t, site) = text(&GETPID, 0);
        assert_eq!(t.patch(site + 1, 39, false), Outcome::Never);
        for code in [
            &[0x0f, 0x05, 0xe9, 0, 0, 0, 0][..],
            &[0x0f, 0x05, 0x48, 0x89, 0x47, 0x08],
            &[0x0f, 0x05, 0x89, 0xc3, 0xc3],
            &[0x0f, 0x05, 0x48, 0x8d, 0x05, 0, 0, 0, 0],
            &[0x0f, 0x05, 0xc3, 0x55, 0x53],
        ] {
            let (t, site) = text(code, 0);
            assert_eq!(t.patch(site, 1, false), Outcome::Never, "{code:x?}");
        }
        // The call that unwinders look for.
        let (t, site) = text(&[0xb8, 15, 0, 0, 0, 0x0f, 0x05], 0);
        assert_eq!(t.patch(site, 15, false), Outcome::Never);
    }

    #[test]
    fn islands_get_full() {
        let text = Text::new(0x1_0000, 0x2_0000).unwrap();
        let page: Vec<u8> = [0x90; 25].iter().chain(&GETPID).copied().cycle().take(0x1_0000).collect();
        text.fill(0, page.len() as u64, |b| b.copy_from_slice(&page));
        let (mut done, mut never) = (0, 0);
        for i in 4..2040 {
            match text.patch(i * 32 + 30, 39, false) {
                Outcome::Done => done += 1,
                _ => never += 1,
            }
        }
        assert_eq!((done, never), (1023, 2036 - 1023));
    }
}
