//! Each system call by number: succeeding, failing, and interrupted if it waits. Programs that are older, newer or
//! linked differently use calls that the rest of these tests does not make. `tests/syscalls.rs` checks that every row
//! of the table of system calls is covered.

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
