//! Memory: mappings, protection, advice, the break.

mod map;
mod patched;
mod protect;
mod remap;
mod share;

pub const GROUPS: &[(&str, &[crate::Case])] = &[
    ("mmap", map::CASES),
    ("mprotect", protect::CASES),
    ("mremap", remap::CASES),
    ("memshare", share::CASES),
    ("patched", patched::CASES),
];
