//! Proves from the file that contains a `syscall` instruction how the instruction may be replaced by a jump.
//!
//! No claim by the guest about the place is used. The function that contains it is found in the file's own tables
//! ([`crate::functions`]) and decoded from its first byte to its last. A jump is allowed only if
//!
//! * every instruction of the function is valid, and the last one ends at the end of the function,
//! * the displaced bytes are whole instructions of that decoding, within the function (or within unreachable padding
//!   after it), and
//! * no direct branch of the function, and no address that it computes relative to `rip`, leads into the middle of
//!   them.
//!
//! For code in no table, the neighbourhood of the place is decoded instead. The displaced bytes must be whole
//! instructions of that decoding, must begin at an instruction boundary whatever byte decoding starts from
//! ([`crate::sweep`]), and must have no invalid bytes nearby; and no branch of the neighbourhood may lead into their
//! middle.
//!
//! The work per call of [`prove`] is bounded; sites beyond the bound are [`Proof::Open`].

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use crate::functions::{self, Found, Function, Read};
use crate::sweep;

pub const SYSCALL: [u8; 2] = [0x0f, 0x05];
pub const JMP_LEN: u64 = 5;
/// `rt_sigreturn`: unwinders recognise its call by its bytes.
const SIGRETURN: u64 = 15;
/// Limits per call of [`prove`]: sites, decoded bytes of functions; and the longest function.
const MAX_SITES: usize = 256;
const MAX_BYTES: u64 = 192 << 10;
const MAX_FUNCTION: u64 = 48 << 10;

/// One way to replace a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Offset of the jump in the file.
    pub start: u64,
    /// Displaced instructions, executed in the slot before the call (`prefix`) and after it (`suffix`).
    pub prefix: Vec<u8>,
    pub suffix: Vec<u8>,
    /// Where the slot returns to; `None` if `suffix` ends with a `ret`.
    pub back: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The safe shapes, better ones first; if empty, the site must not be patched.
    Shapes(Vec<Shape>),
    /// Not examined yet.
    Open,
}

/// Proves the shapes of sites: offsets in the file, claimed to be those of `syscall` instructions.
pub fn prove(read: Read<'_>, sites: &[u64]) -> Vec<Proof> {
    let mut proofs = vec![Proof::Open; sites.len()];
    let asked = &sites[..sites.len().min(MAX_SITES)];
    let found = functions::find(read, asked);
    let extents: Vec<_> = found.iter().zip(asked).map(|(f, site)| Extent::of(f, *site)).collect();
    let mut order: Vec<usize> = (0..asked.len()).collect();
    // Sites of one function in a row, so that it is decoded once.
    order.sort_unstable_by_key(|i| extents[*i].map_or((0, 0), |e| (e.function.start, e.function.end)));
    let (mut left, mut last) = (MAX_BYTES, None);
    for i in order {
        let good = |e: &Extent| e.function.end > e.function.start && e.function.end - e.function.start <= MAX_FUNCTION;
        let Some(extent) = extents[i].filter(good) else {
            proofs[i] = Proof::Shapes(Vec::new());
            continue;
        };
        if last.as_ref().is_none_or(|d: &Decoded| d.extent != extent) {
            let Some(l) = left.checked_sub(extent.function.end - extent.function.start) else { continue };
            left = l;
            last = Some(Decoded::new(read, extent));
        }
        proofs[i] = Proof::Shapes(last.as_ref().map_or_else(Vec::new, |d| d.shapes(asked[i])));
    }
    proofs
}

/// The part of the file to decode for a site.
#[derive(Clone, Copy, PartialEq)]
struct Extent {
    function: Function,
    /// Not a function, but a part of code that no table covers.
    swept: bool,
}

impl Extent {
    fn of(found: &Found, site: u64) -> Option<Extent> {
        match *found {
            Found::Function(function) => Some(Extent { function, swept: false }),
            Found::Code(start, end) => {
                let (start, end) = sweep::region((start, end), site);
                // The beginning of the next function is unknown.
                Some(Extent { function: Function { start, end, next: 0 }, swept: true })
            }
            Found::Nowhere => None,
        }
    }
}

/// A function, or a part of the code, decoded.
struct Decoded {
    extent: Extent,
    function: Function,
    /// Its bytes, and some after its end.
    code: Vec<u8>,
    /// Addresses of invalid instructions, if `swept`.
    gaps: Vec<u64>,
    /// Each `syscall` instruction, with the preceding one.
    calls: Vec<(Option<Instruction>, u64)>,
    /// Targets of the function's own instructions.
    targets: Vec<u64>,
}

impl Decoded {
    /// Has no calls if the function cannot be decoded.
    fn new(read: Read<'_>, extent: Extent) -> Decoded {
        let function = extent.function;
        const TAIL: u64 = 16;
        let len = (function.end - function.start) as usize;
        let mut code = vec![0; len + TAIL as usize];
        let n = read(function.start, &mut code).min(code.len());
        code.truncate(n);
        let mut d = Decoded { extent, function, code, gaps: Vec::new(), calls: Vec::new(), targets: Vec::new() };
        if !d.decode(len) {
            d.calls.clear();
        }
        d
    }

    fn decode(&mut self, len: usize) -> bool {
        let Some(code) = self.code.get(..len) else { return false };
        let mut decoder = Decoder::with_ip(64, code, self.function.start, DecoderOptions::NONE);
        let (mut insn, mut previous) = (Instruction::default(), None);
        while decoder.can_decode() {
            decoder.decode_out(&mut insn);
            if insn.is_invalid() {
                if !self.extent.swept {
                    return false;
                }
                // Perhaps data, or the tail of an instruction from before the part.
                self.gaps.push(insn.ip());
                previous = None;
                let next = (insn.ip() + 1 - self.function.start) as usize;
                if decoder.set_position(next).is_err() {
                    return false;
                }
                decoder.set_ip(self.function.start + next as u64);
                continue;
            }
            if insn.code() == Code::Syscall && insn.len() == SYSCALL.len() {
                self.calls.push((previous, insn.ip()));
            }
            if insn.is_ip_rel_memory_operand() {
                self.targets.push(insn.ip_rel_memory_address());
            }
            self.targets.extend(near_target(&insn));
            previous = Some(insn);
        }
        self.targets.retain(|t| (self.function.start..=self.function.end).contains(t));
        self.targets.sort_unstable();
        true
    }

    /// Whether the bytes from `start` to `end` may be displaced: no target lies within them (the first byte may be
    /// one), and `start` is an instruction boundary.
    fn movable(&self, start: u64, end: u64) -> bool {
        let next = self.targets.partition_point(|t| *t <= start);
        if self.targets.get(next).is_some_and(|t| *t < end) {
            return false;
        }
        if !self.extent.swept {
            return true;
        }
        let gap = self.gaps.partition_point(|g| *g < start.saturating_sub(sweep::FARTHEST as u64));
        let whole = self.gaps.get(gap).is_none_or(|g| *g >= end);
        whole && sweep::is_boundary(&self.code, (start - self.function.start) as usize)
    }

    fn shapes(&self, site: u64) -> Vec<Shape> {
        let Ok(i) = self.calls.binary_search_by_key(&site, |c| c.1) else { return Vec::new() };
        let mut found = Vec::new();
        if let Some(mov) = self.calls[i].0.filter(|i| is_number(i) || is_saved(i)) {
            if is_number(&mov) && mov.immediate(1) == SIGRETURN {
                return Vec::new();
            }
            let start = mov.ip();
            let prefix = self.bytes(start, site);
            if mov.next_ip() == site && !prefix.is_empty() && self.movable(start, site) {
                found.push(Shape { start, prefix, suffix: Vec::new(), back: Some(site + 2) });
            }
        }
        let next = (site + 2 - self.function.start) as usize;
        let (own, all) = (self.code.get(next..).unwrap_or_default(), self.function.end - site - 2);
        let room = if self.extent.swept {
            3 + padding(&own[1.min(own.len())..], site + 3)
        } else {
            self.function.next.saturating_sub(site)
        };
        if let Some(shape) = suffix_shape(own, all as usize, room, site) {
            let end = site + (2 + shape.suffix.len() as u64).max(JMP_LEN);
            if self.movable(site, end) {
                found.push(shape);
            }
        }
        found
    }

    fn bytes(&self, start: u64, end: u64) -> Vec<u8> {
        let at = |o: u64| (o - self.function.start) as usize;
        self.code.get(at(start)..at(end)).unwrap_or_default().to_vec()
    }
}

fn near_target(insn: &Instruction) -> Option<u64> {
    (0..insn.op_count())
        .any(|i| matches!(insn.op_kind(i), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64))
        .then(|| insn.near_branch_target())
}

/// `mov $number, %eax` in the forms of five and seven bytes.
fn is_number(insn: &Instruction) -> bool {
    match insn.code() {
        Code::Mov_r32_imm32 => insn.op_register(0) == Register::EAX && insn.len() == 5,
        Code::Mov_rm64_imm32 => insn.op_register(0) == Register::RAX && insn.len() == 7,
        _ => false,
    }
}

/// `mov %r11, 8(%rsp)`: musl's instruction before a call at which a thread may be cancelled. It may run twice; the
/// stub relies on that (`rewind` in `stub/enter.rs`).
fn is_saved(insn: &Instruction) -> bool {
    insn.code() == Code::Mov_rm64_r64
        && insn.op_register(1) == Register::R11
        && insn.memory_base() == Register::RSP
        && insn.memory_index() == Register::None
        && insn.segment_prefix() == Register::None
        && insn.len() == 5
}

/// Length of the padding between the apparent end of a function and the next multiple of 16; 0 if that is not
/// padding.
fn padding(code: &[u8], at: u64) -> u64 {
    let len = at.next_multiple_of(16) - at;
    let Some(code) = code.get(..len as usize) else { return 0 };
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let nothing = |i: Instruction| matches!(i.mnemonic(), Mnemonic::Nop | Mnemonic::Int3);
    if decoder.iter().all(nothing) {
        len
    } else {
        0
    }
}

/// The shape that displaces the instruction after the call. `rest`: bytes from there on, `own` of which belong to the
/// function; `room`: bytes from the site to the next function.
fn suffix_shape(rest: &[u8], own: usize, room: u64, site: u64) -> Option<Shape> {
    let mut decoder = Decoder::new(64, rest, DecoderOptions::NONE);
    let insn = decoder.decode();
    let len = insn.len();
    if insn.is_invalid() || len > own {
        return None;
    }
    let shape = |len: usize, back| Shape { start: site, prefix: Vec::new(), suffix: rest[..len].to_vec(), back };
    if insn.mnemonic() == Mnemonic::Ret && len == 1 {
        // The following bytes must be padding between functions, which is unreachable.
        let padding = |b: &[u8]| {
            b.starts_with(&[0xcc; 2]) || {
                let mut d = Decoder::new(64, b, DecoderOptions::NONE);
                let nop = d.decode();
                nop.mnemonic() == Mnemonic::Nop && (nop.len() >= 2 || d.decode().mnemonic() == Mnemonic::Nop)
            }
        };
        // The next function must not begin there.
        let aligned = (site + 3) % 16 == 0 || (site + 4) % 16 == 0;
        return (padding(&rest[1..]) && !aligned && room >= JMP_LEN).then(|| shape(1, None));
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
