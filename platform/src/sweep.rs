//! Instruction boundaries in code that no table covers.
//!
//! Decoding that begins in the middle of an instruction synchronises with the true instructions after a few of them.
//! So if decoding begins at *every* byte of a stretch before a place, one of the starts is a true boundary (an
//! instruction has 15 bytes at most), and the others agree with it when they reach the place. The place counts as a
//! boundary if each decoding hits it, or hits invalid bytes; a single one that skips it is a refusal.
//!
//! This can only be wrong about code that begins less than [`NEAREST`] bytes before the place, after data that decodes
//! as instructions up to there.

use iced_x86::{Decoder, DecoderOptions, Instruction};

/// Decoding begins at most and at least this far before the place.
pub const FARTHEST: usize = 128;
const NEAREST: usize = 48;
/// Number of starts that must hit the place.
const MIN_HITS: usize = 24;
/// Code is decoded in parts of this size, extended on either side.
const PART: u64 = 2048;
const MARGIN: u64 = 512;

/// The part of the file to decode for a site, within the range of code that contains the site.
pub fn region(code: (u64, u64), site: u64) -> (u64, u64) {
    let part = site / PART * PART;
    (part.saturating_sub(MARGIN).max(code.0), part.saturating_add(PART + MARGIN).min(code.1))
}

/// Whether an instruction begins at `place`.
pub fn is_boundary(code: &[u8], place: usize) -> bool {
    /// Result of decoding from a byte on.
    #[derive(Clone, Copy, PartialEq)]
    enum End {
        Hits,
        Skips,
        Invalid,
    }
    let mut ends = [End::Hits; FARTHEST + 1];
    let mut decoder = Decoder::new(64, &code[..code.len().min(place + 16)], DecoderOptions::NONE);
    let mut insn = Instruction::default();
    let (mut hits, far) = (0, FARTHEST.min(place));
    for back in 1..=far {
        if decoder.set_position(place - back).is_err() {
            return false;
        }
        decoder.decode_out(&mut insn);
        ends[back] = match back.checked_sub(insn.len()) {
            _ if insn.is_invalid() => End::Invalid,
            Some(rest) => ends[rest],
            None => End::Skips,
        };
        match ends[back] {
            End::Skips if back >= NEAREST => return false,
            End::Hits if back >= NEAREST => hits += 1,
            _ => {}
        }
    }
    hits >= MIN_HITS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::functions::tests::reader;
    use crate::functions::{find, Found};

    /// Uses this program's own code, whose instructions are all known from its tables.
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
