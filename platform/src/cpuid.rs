//! Processor identification: `cpuid` and the time-stamp counter.

#![allow(unused_unsafe)]

use std::arch::x86_64::{__cpuid_count, _rdtsc};

/// `eax`, `ebx`, `ecx`, `edx` of a leaf and sub-leaf.
pub fn cpuid(leaf: u32, sub: u32) -> [u32; 4] {
    // SAFETY: every x86-64 processor has the instruction; it has no effect but its four results.
    let r = unsafe { __cpuid_count(leaf, sub) };
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: the instruction has no effect but its result; Linux leaves it enabled for user space.
    unsafe { _rdtsc() }
}
