//! A `log` backend that writes to standard error, where the command has put the log: a confined process opens no files.
//! Logging never waits for the reader ([`crate::outlet`]).
//!
//! A guest can cause log lines as fast as it makes calls, so each place in the code logs at most [`MANY`] lines in
//! [`WINDOW`]. Further lines are counted, and the count is logged.

use crate::config::Verbosity;
use crate::outlet::Outlet;
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::io::Stderr;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Limit of the bytes kept for a slow reader.
const KEPT: usize = 64 * 1024;

/// Lines of one place in one window. The last of them announces the suppression; the first line of the next window is
/// preceded by the number of lines suppressed.
const MANY: u64 = 200;
const WINDOW: Duration = Duration::from_secs(10);

struct Logger {
    /// The name of the process in each line.
    who: &'static str,
    out: Mutex<Outlet<Stderr>>,
    /// The places that have logged; bounded by the number of places in the code.
    places: Mutex<Vec<Place>>,
}

/// The count of one place in the code.
struct Place {
    at: (Option<&'static str>, Option<u32>),
    since: Instant,
    lines: u64,
}

/// The decision about a line.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Kept,
    /// It is logged, as the last one of the window.
    Last,
    LeftOut,
    /// It is logged, after a note with the number of lines suppressed before it.
    After(u64),
}

impl Place {
    fn line(&mut self, now: Instant) -> Verdict {
        if now.duration_since(self.since) >= WINDOW {
            let out = self.lines.saturating_sub(MANY);
            (self.since, self.lines) = (now, 1);
            return if out > 0 { Verdict::After(out) } else { Verdict::Kept };
        }
        self.lines += 1;
        match self.lines {
            n if n < MANY => Verdict::Kept,
            MANY => Verdict::Last,
            _ => Verdict::LeftOut,
        }
    }
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Called once.
pub fn init(who: &'static str, verbosity: Verbosity) {
    let out = Outlet::new(std::io::stderr(), KEPT);
    crate::sys::STDERR_NEVER_WAITS.store(out.never_waits(), Ordering::Relaxed);
    let logger = LOGGER.get_or_init(|| Logger { who, out: Mutex::new(out), places: Mutex::default() });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(match verbosity {
            Verbosity::Warnings => LevelFilter::Warn,
            Verbosity::News => LevelFilter::Info,
            Verbosity::Everything => LevelFilter::Debug,
        });
    }
}

fn with_outlet(f: impl FnOnce(&mut Outlet<Stderr>)) {
    let Some(logger) = LOGGER.get() else { return };
    // A thread that panics while it logs holds the lock itself, so the wait is limited.
    let until = Instant::now() + Duration::from_millis(100);
    loop {
        if let Ok(mut out) = logger.out.try_lock() {
            return f(&mut out);
        }
        if Instant::now() > until {
            return;
        }
        std::thread::yield_now();
    }
}

/// Writes lines to the log verbatim, in a process that has called [`init`].
pub fn say(lines: &str) {
    with_outlet(|out| out.put(lines.as_bytes()));
}

/// Called before the process ends.
pub fn finish() {
    with_outlet(Outlet::finish);
}

impl Logger {
    fn verdict(&self, record: &Record<'_>) -> Verdict {
        let (at, now) = ((record.module_path_static(), record.line()), Instant::now());
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.iter_mut().find(|p| p.at == at) {
            return place.line(now);
        }
        places.push(Place { at, since: now, lines: 1 });
        Verdict::Kept
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let verdict = self.verdict(record);
        let (before, after) = match verdict {
            Verdict::LeftOut => return,
            Verdict::Kept => (String::new(), ""),
            Verdict::Last => (String::new(), " (similar lines are suppressed for a while)"),
            Verdict::After(n) => (format!("runsc-rs {}: {n} lines like the next were suppressed\n", self.who), ""),
        };
        let level = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug | Level::Trace => "debug: ",
        };
        let line = format!("{before}runsc-rs {}: {level}{}{after}\n", self.who, record.args());
        say(&line);
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_place_are_suppressed_and_counted() {
        let start = Instant::now();
        let mut place = Place { at: (None, None), since: start, lines: 0 };
        let fates: Vec<_> = (0..MANY + 50).map(|_| place.line(start)).collect();
        assert_eq!(fates.iter().filter(|f| **f == Verdict::Kept).count() as u64, MANY - 1);
        assert_eq!(fates.iter().filter(|f| **f == Verdict::Last).count(), 1);
        assert_eq!(fates.last(), Some(&Verdict::LeftOut));
        assert_eq!(place.line(start + WINDOW), Verdict::After(50));
        assert_eq!(place.line(start + WINDOW), Verdict::Kept);
        assert_eq!(place.line(start + 3 * WINDOW), Verdict::Kept);
    }
}
