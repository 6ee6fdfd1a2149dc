//! A `log` backend that writes to standard error, where the command has put the log: a confined process opens no files. It never waits
//! for whoever reads it ([`crate::outlet`]).

use crate::config::Verbosity;
use crate::outlet::Outlet;
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::io::Stderr;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Most bytes that wait for a reader.
const KEPT: usize = 64 * 1024;

struct Logger {
    /// Which process speaks.
    who: &'static str,
    out: Mutex<Outlet<Stderr>>,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// To be called once.
pub fn init(who: &'static str, verbosity: Verbosity) {
    let out = Outlet::new(std::io::stderr(), KEPT);
    crate::sys::STDERR_NEVER_WAITS.store(out.never_waits(), Ordering::Relaxed);
    let logger = LOGGER.get_or_init(|| Logger { who, out: Mutex::new(out) });
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
    // One who panics while it speaks has it, and must not wait for it.
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

/// Writes lines to the log as they are, in a process that has called [`init`].
pub fn say(lines: &str) {
    with_outlet(|out| out.put(lines.as_bytes()));
}

/// Before the process ends.
pub fn finish() {
    with_outlet(Outlet::finish);
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug | Level::Trace => "debug: ",
        };
        let line = format!("runsc-rs {}: {level}{}\n", self.who, record.args());
        say(&line);
    }

    fn flush(&self) {}
}
