//! Processor-dependent code: signal frames and ELF. The only architecture is x86-64.

pub mod elf;
pub mod frame;
