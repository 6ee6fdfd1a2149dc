//! The code generator.

use super::{Rule, Verdict, ARCH, X32};
use crate::config::BpfProgram;
use anyhow::{bail, Result};
use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator as Operator};

/// `BPF_MAXINSNS`.
pub const MAX_INSNS: usize = 4096;

/// Loads a word of `struct seccomp_data`.
const LD: u16 = 0x20;
const AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const DATA_ARCH: u32 = 4;
const ARGS: u32 = 16;

type Insn = (u16, u8, u8, u32);

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The first that holds decides.
    pub rules: Vec<Rule>,
    /// If none does.
    pub verdict: Verdict,
}

/// From `first` to the next range's first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub first: u32,
    pub leaf: Leaf,
}

/// The program: other architectures and x32 calls first, then a search for the call's range. `ranges` are in order, the
/// first begins at 0.
pub fn program(ranges: &[Range], x32: Verdict) -> Result<BpfProgram> {
    let mut code = vec![(LD, 0, 0, DATA_ARCH), (JEQ, 1, 0, ARCH), (RET, 0, 0, super::verdict_kill())];
    code.extend([(LD, 0, 0, NR), (JGE, 0, 1, X32), (RET, 0, 0, x32)]);
    code.extend(search(ranges)?);
    if code.len() > MAX_INSNS {
        bail!("seccomp: the profile makes a program of {} instructions; the kernel takes {MAX_INSNS}", code.len());
    }
    Ok(code)
}

/// A binary search, whose depth is the logarithm of the ranges' number. The number of the call is loaded.
fn search(ranges: &[Range]) -> Result<Vec<Insn>> {
    match ranges {
        [] => bail!("seccomp: no ranges"),
        [only] => leaf(&only.leaf),
        _ => {
            let (left, right) = ranges.split_at(ranges.len() / 2);
            let pivot = right.first().map_or(0, |r| r.first);
            let (left, right) = (search(left)?, search(right)?);
            // A conditional jump reaches 255 instructions.
            let mut code = match u8::try_from(left.len()) {
                Ok(skip) => vec![(JGE, skip, 0, pivot)],
                Err(_) => vec![(JGE, 0, 1, pivot), (JA, 0, 0, u32::try_from(left.len())?)],
            };
            code.extend(left);
            code.extend(right);
            // What cannot fit any more need not be put together.
            if code.len() > MAX_INSNS {
                bail!("seccomp: the profile makes a program of more than {MAX_INSNS} instructions");
            }
            Ok(code)
        }
    }
}

fn leaf(leaf: &Leaf) -> Result<Vec<Insn>> {
    let mut code = Vec::new();
    for rule in &leaf.rules {
        // At most 6 comparisons of at most 6 instructions, so that every jump is short.
        let mut body = Vec::new();
        for condition in rule.conditions.iter().rev() {
            let mut next = comparison(condition, u8::try_from(body.len() + 1)?);
            next.append(&mut body);
            body = next;
        }
        body.push((RET, 0, 0, rule.verdict));
        code.append(&mut body);
        if code.len() > MAX_INSNS {
            bail!("seccomp: one call has more rules than the kernel takes");
        }
    }
    code.push((RET, 0, 0, leaf.verdict));
    Ok(code)
}

/// One comparison: goes on behind itself if it holds, otherwise `rest` instructions further.
fn comparison(arg: &LinuxSeccompArg, rest: u8) -> Vec<Insn> {
    let low = ARGS + 8 * arg.index() as u32;
    let high = low + 4;
    let halves = |v: u64| ((v >> 32) as u32, v as u32);
    let (vh, vl) = halves(arg.value());
    // Comparisons of two words: the high ones decide unless they are equal. `more` and `less`: where to go if they
    // differ, relative to the end of the comparison.
    let ordered = |more: u8, less: u8, op: u16, yes: u8, no: u8| {
        vec![(LD, 0, 0, high), (JGT, more + 3, 0, vh), (JEQ, 0, less + 2, vh), (LD, 0, 0, low), (op, yes, no, vl)]
    };
    match arg.op() {
        Operator::ScmpCmpEq => equal(low, (vh, vl), None, rest),
        Operator::ScmpCmpMaskedEq => equal(low, halves(arg.value_two().unwrap_or(0)), Some((vh, vl)), rest),
        Operator::ScmpCmpNe => {
            vec![(LD, 0, 0, high), (JEQ, 0, 2, vh), (LD, 0, 0, low), (JEQ, rest, 0, vl)]
        }
        Operator::ScmpCmpGt => ordered(0, rest, JGT, 0, rest),
        Operator::ScmpCmpGe => ordered(0, rest, JGE, 0, rest),
        Operator::ScmpCmpLe => ordered(rest, 0, JGT, rest, 0),
        Operator::ScmpCmpLt => ordered(rest, 0, JGE, rest, 0),
    }
}

/// Both words, after `mask`, are those of `wanted`.
fn equal(low: u32, wanted: (u32, u32), mask: Option<(u32, u32)>, rest: u8) -> Vec<Insn> {
    let mut code = vec![(LD, 0, 0, low + 4)];
    code.extend(mask.map(|m| (AND, 0, 0, m.0)));
    let second = if mask.is_some() { 3 } else { 2 };
    code.push((JEQ, 0, rest + second, wanted.0));
    code.push((LD, 0, 0, low));
    code.extend(mask.map(|m| (AND, 0, 0, m.1)));
    code.push((JEQ, 0, rest, wanted.1));
    code
}
