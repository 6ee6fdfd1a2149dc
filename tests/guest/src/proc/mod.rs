//! Processes, threads and signals.

mod clone;
mod exec;
mod fork;
mod futex;
mod ids;
mod jobs;
mod pidfd;
mod pidns;
mod privilege;
mod pty;
mod rights;
mod rseq;
mod sigframe_fault;
mod signals;
mod signals_extra;
mod sigproc;
mod threads;
mod userns;
mod wait;

pub const GROUPS: &[(&str, &[crate::Case])] = &[
    ("fork", fork::CASES),
    ("wait", wait::CASES),
    ("clone", clone::CASES),
    ("exec", exec::CASES),
    ("signals", signals::CASES),
    ("signals_extra", signals_extra::CASES),
    ("sigframe_fault", sigframe_fault::CASES),
    ("sigproc", sigproc::CASES),
    ("threads", threads::CASES),
    ("rights", rights::CASES),
    ("privilege", privilege::CASES),
    ("rseq", rseq::CASES),
    ("futex", futex::CASES),
    ("pidfd", pidfd::CASES),
    ("pidns", pidns::CASES),
    ("userns", userns::CASES),
    ("jobs", jobs::CASES),
    ("pty", pty::CASES),
    ("ids", ids::CASES),
];
