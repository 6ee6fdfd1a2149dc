//! Instruction boundaries in code that no table tells of.
//!
//! Decoding that begins in the middle of an instruction falls into step with the true instructions after a few of them. So if
//! decoding is begun at *every* byte of a stretch before a place, one of the beginnings is a true one (an instruction has 15
//! bytes at most), and the others agree with it by the time they get there. A place is taken for a boundary if each of
//! them comes upon it, or upon bytes that are no instruction; one that passes over it is enough to refuse.
//!
//! Wrong this can be only about code that begins less than [`NEAR`] bytes before the place, behind data that is decoded as
//! instructions up to there.

use iced_x86::{Decoder, DecoderOptions, Instruction};

/// Where decoding begins: this far before the place, at most and at least.
pub const FAR: usize = 128;
const NEAR: usize = 48;
/// How many of the beginnings must come upon the place.
const ENOUGH: usize = 24;
/// What is decoded at once for the sites in a part of the code: the part, and so much on either side.
const PART: u64 = 2048;
const BESIDE: u64 = 512;

/// The part of the code, a range of the file that the site is in, to be decoded for the site.
pub fn region(code: (u64, u64), site: u64) -> (u64, u64) {
    let part = site / PART * PART;
    (part.saturating_sub(BESIDE).max(code.0), part.saturating_add(PART + BESIDE).min(code.1))
}

/// Whether the place in the code is the beginning of an instruction.
pub fn is_boundary(code: &[u8], place: usize) -> bool {
    /// What becomes of decoding from a byte on.
    #[derive(Clone, Copy, PartialEq)]
    enum End {
        Meets,
        Passes,
        Invalid,
    }
    let mut ends = [End::Meets; FAR + 1];
    let mut decoder = Decoder::new(64, &code[..code.len().min(place + 16)], DecoderOptions::NONE);
    let mut insn = Instruction::default();
    let (mut met, far) = (0, FAR.min(place));
    for back in 1..=far {
        if decoder.set_position(place - back).is_err() {
            return false;
        }
        decoder.decode_out(&mut insn);
        ends[back] = match back.checked_sub(insn.len()) {
            _ if insn.is_invalid() => End::Invalid,
            Some(rest) => ends[rest],
            None => End::Passes,
        };
        match ends[back] {
            End::Passes if back >= NEAR => return false,
            End::Meets if back >= NEAR => met += 1,
            _ => {}
        }
    }
    met >= ENOUGH
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::functions::tests::reader;
    use crate::functions::{find, Found};

    /// In this program's own code, of which the tables tell all instructions.
    #[test]
    fn no_middle_of_an_instruction_is_taken_for_a_boundary() {
        let exe = std::fs::read("/proc/self/exe").unwrap();
        let (mut taken, mut left, mut middles) = (0, 0, 0);
        let sites: Vec<u64> = (0..exe.len() as u64).step_by(1 << 15).collect();
        for part in sites.chunks(256) {
            for found in find(&mut reader(&exe), part) {
                let Found::Function(f) = found else { continue };
                let (start, end) = (f.start as usize, (f.end as usize).min(f.start as usize + 2048));
                let mut decoder = Decoder::new(64, &exe[start..end], DecoderOptions::NONE);
                let mut at = start;
                while decoder.can_decode() && at + 16 < end {
                    let len = decoder.decode().len();
                    match is_boundary(&exe, at) {
                        true => taken += 1,
                        false => left += 1,
                    }
                    for middle in at + 1..at + len {
                        assert!(!is_boundary(&exe, middle), "{middle:x} of the instruction at {at:x}");
                        middles += 1;
                    }
                    at += len;
                }
            }
        }
        assert!(middles > 10_000 && left * 50 < taken, "{middles} {left} {taken}");
    }
}
