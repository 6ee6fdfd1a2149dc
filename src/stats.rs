//! `--stats`: what a sandbox did, so that one can see why a program in it is slow. To the log, at the end.

use protocol::Client;
use sentry::kernel::Kernel;
use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Calls that get a line of their own.
const LISTED: usize = 15;

/// What the platform's counters mean to somebody who looks for the reason of slowness.
const MEANINGS: &[(&str, &str)] = &[
    ("calls trapped", "by a signal: the slow way, until their sites are patched"),
    ("calls from patched sites", "handed over to the Sentry without a signal"),
    ("calls answered by stubs", "getpid(2) and similar calls, without the Sentry (counted as threads end)"),
    ("calls made by stubs", "private futexes: the host's own (counted as threads end); sched_yield is not seen at all"),
    ("patched sites", "in the newest copies of code"),
    ("patched copies", "of files' code made"),
    ("moves to patched code", "running processes that got such a copy; new ones start with it"),
    ("faults", "exceptions that became signals"),
    ("interrupts", "running guest threads stopped for a signal"),
    ("forks", "address spaces made, some ahead of need"),
    ("threads", "started"),
    ("memory-op rounds", "times a stub carried out mmap, mprotect and such"),
    ("process_vm_readv", "arguments that did not come with the call: a host call each"),
    ("process_vm_writev", "results that could not go with the answer: a host call each"),
    ("task polls", "times the Sentry took up a guest thread"),
    ("posts found by looking", "calls that met a Sentry awake: the fast way"),
    ("sleeps", "times the Sentry went to sleep; the next call has to wake it"),
    ("looks in vain", "times the Sentry looked for calls and there were none: it spins"),
    ("stubs woken", "answers whose thread had gone to sleep: a host call each, and perhaps an idle core"),
    ("stubs killed", "processes that have ended"),
    ("wakes", "wake-ups of the Sentry by itself"),
    ("handovers", "times another thread took over while one was in a slow host call"),
];

/// From the start of the guest on.
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
        // Writing to a string does not fail.
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
