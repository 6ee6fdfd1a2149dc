//! `/dev`: its nodes, and the devices behind them.
//!
//! [`open_char`] is the only place that interprets device numbers: opening a character device of any file system ends
//! here.

mod mem;

use super::file::FileOps;
use crate::error::{Errno, Result};
use crate::kernel::Kernel;
use std::sync::Arc;

/// Opens the character device `rdev` for the calling task. `flags` may have `O_NOCTTY`.
pub fn open_char(kernel: &Arc<Kernel>, rdev: u64, flags: i32) -> Result<Box<dyn FileOps>> {
    match (libc::major(rdev), libc::minor(rdev)) {
        (1, 3) => Ok(Box::new(mem::Null)),
        (1, 5) => Ok(Box::new(mem::Zero)),
        (1, 7) => Ok(Box::new(mem::Full)),
        (1, 8 | 9) => Ok(Box::new(mem::Random)),
        (4 | 5 | 136..=143, _) => super::tty::open_char(kernel, rdev, flags),
        _ => Err(Errno::ENXIO),
    }
}

/// Name, permissions, group, major, minor.
pub const NODES: &[(&str, u32, u32, u32, u32)] = &[
    ("null", 0o666, 0, 1, 3),
    ("zero", 0o666, 0, 1, 5),
    ("full", 0o666, 0, 1, 7),
    ("random", 0o666, 0, 1, 8),
    ("urandom", 0o666, 0, 1, 9),
    ("tty", 0o666, 5, 5, 0),
    // The terminal of the process that started the sandbox; the container's first user owns it.
    ("console", 0o620, 5, 5, 1),
];

pub const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
