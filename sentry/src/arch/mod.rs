//! What depends on the processor: signal frames and ELF. One architecture: x86-64.

pub mod elf;
pub mod frame;
