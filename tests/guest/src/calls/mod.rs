//! Each system call by its own number, once as it succeeds, once as it fails, and once cut short where it waits: what programs
//! that are older, newer or linked differently than the rest of these tests use. `tests/syscalls.rs` checks that no row of the
//! table of system calls goes without.

mod files;
mod ipc;
mod legacy;
mod many;
mod procs;
mod time;
mod waits;

pub const GROUPS: &[(&str, &[crate::Case])] = &[
    ("legacy", legacy::CASES),
    ("filecalls", files::CASES),
    ("proccalls", procs::CASES),
    ("timecalls", time::CASES),
    ("ipccalls", ipc::CASES),
    ("polls", many::CASES),
    ("interrupts", waits::CASES),
];
