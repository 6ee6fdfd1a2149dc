//! `--stats`: counters of a sandbox's work, logged at its end, for finding out why a program is slow.

use protocol::Client;
use sentry::kernel::Kernel;
use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Calls with a line of their own.
const LISTED: usize = 15;

/// The meaning of the platform's counters for a user who looks for the cause of slowness.
const MEANINGS: &[(&str, &str)] = &[
    ("calls trapped", "by SIGSYS, which is slow; until their sites are patched"),
    ("calls from patched sites", "handed over to the Sentry without a signal"),
    ("calls answered by stubs", "getpid(2) and similar calls, without the Sentry (counted when a thread ends)"),
    ("calls made by stubs", "private futexes, by the host (counted when a thread ends); sched_yield is not counted"),
    ("patched sites", "in the newest copies of code"),
    ("patched copies", "of files' code made"),
    ("moves to patched code", "running processes that switched to such a copy; new ones start with it"),
    ("faults", "processor exceptions that became signals"),
    ("interrupts", "running guest threads stopped for a signal"),
    ("forks", "address spaces created, some in advance"),
    ("threads", "started"),
    ("memory-op rounds", "times a stub carried out mmap, mprotect and the like"),
    ("process_vm_readv", "reads of arguments that did not come with the call: a host call each"),
    ("process_vm_writev", "writes of results that did not fit into the answer: a host call each"),
    ("task polls", "times the Sentry ran the task of a guest thread"),
    ("posts found by looking", "calls found by a spinning Sentry, which is fast"),
    ("sleeps", "times the Sentry went to sleep; the next call wakes it"),
    ("looks in vain", "polls that found no call: the Sentry spins"),
    ("stubs woken", "answers to a sleeping thread: a host call each, and perhaps an idle core to wake"),
    ("stubs killed", "processes that have ended"),
    ("wakes", "wake-ups of the Sentry by its own threads"),
    ("handovers", "times another thread took over during a slow host call"),
];

/// The statistics of a run, from the start of the guest on.
pub struct Stats {
    began: Instant,
    client: Client,
}

impl Stats {
    pub fn begin(client: &Client) -> Stats {
        Stats { began: Instant::now(), client: client.clone() }
    }

    pub fn print(&self, kernel: &Kernel) {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(kernel, &mut out);
        crate::logging::say(&out);
    }

    fn write(&self, kernel: &Kernel, out: &mut String) -> std::fmt::Result {
        let wall = self.began.elapsed().as_secs_f64();
        let calls = kernel.calls.load(Ordering::Relaxed);
        writeln!(out, "runsc-rs: statistics")?;
        writeln!(out, "{wall:>14.3}  seconds")?;
        if let Ok(used) = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF) {
            let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
            let own = seconds(used.user_time()) + seconds(used.system_time());
            writeln!(out, "{own:>14.3}  seconds of processor time taken by the Sentry")?;
        }
        writeln!(
            out,
            "{calls:>14}  system calls answered by the Sentry, {:.0} a second",
            calls as f64 / wall.max(1e-6)
        )?;
        writeln!(out, "{:>14}  requests to the Gofer", self.client.requests())?;
        let texts = &kernel.texts;
        let patching = [
            ("patched sites", texts.patched() as u64),
            ("patched copies", texts.copies.load(Ordering::Relaxed)),
            ("moves to patched code", texts.moves.load(Ordering::Relaxed)),
        ];
        for (name, value) in kernel.platform.stats().into_iter().chain(patching) {
            match MEANINGS.iter().find(|m| m.0 == name) {
                Some((_, meaning)) => writeln!(out, "{value:>14}  {name}: {meaning}")?,
                None => writeln!(out, "{value:>14}  {name}")?,
            }
        }
        let Some(figures) = kernel.stats.as_ref().map(|s| s.figures()) else { return Ok(()) };
        writeln!(
            out,
            "\n{:>14} {:>12} {:>10} {:>10}  CALL (time includes waiting)",
            "SECONDS", "US/CALL", "CALLS", "ERRORS"
        )?;
        for f in figures.iter().take(LISTED) {
            let name = sentry::syscalls::strace::name(f.nr);
            let (seconds, each) = (f.ns as f64 / 1e9, f.ns as f64 / 1e3 / f.count as f64);
            writeln!(out, "{seconds:>14.6} {each:>12.2} {:>10} {:>10}  {name}", f.count, f.failed)?;
        }
        if let Some(rest) = figures.get(LISTED..).filter(|r| !r.is_empty()) {
            let (ns, count): (u64, u64) = rest.iter().fold((0, 0), |(n, c), f| (n + f.ns, c + f.count));
            let each = ns as f64 / 1e3 / count.max(1) as f64;
            writeln!(out, "{:>14.6} {each:>12.2} {count:>10} {:>10}  {} others", ns as f64 / 1e9, "", rest.len())?;
        }
        Ok(())
    }
}
