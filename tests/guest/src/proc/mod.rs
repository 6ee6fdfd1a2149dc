//! Processes, threads and signals.

mod clone;
mod exec;
mod fork;
mod futex;
mod ids;
mod jobs;
mod noroom;
mod pidfd;
mod pty;
mod rights;
mod rseq;
mod sigmore;
mod signals;
mod sigproc;
mod threads;
mod wait;

pub const GROUPS: &[(&str, &[crate::Case])] = &[
    ("fork", fork::CASES),
    ("wait", wait::CASES),
    ("clone", clone::CASES),
    ("exec", exec::CASES),
    ("signals", signals::CASES),
    ("sigframe", sigmore::CASES),
    ("noroom", noroom::CASES),
    ("sigproc", sigproc::CASES),
    ("threads", threads::CASES),
    ("rights", rights::CASES),
    ("rseq", rseq::CASES),
    ("futex", futex::CASES),
    ("pidfd", pidfd::CASES),
    ("jobs", jobs::CASES),
    ("pty", pty::CASES),
    ("ids", ids::CASES),
];
