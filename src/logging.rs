//! A `log` backend that writes to one descriptor, opened before the process is confined. One line, one write.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

struct Logger {
    out: File,
    /// Which process speaks.
    who: &'static str,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Sends log lines to `out`: warnings and errors, or with `debug` everything down to debug level.
pub fn init(out: OwnedFd, who: &'static str, debug: bool) {
    let logger = LOGGER.get_or_init(|| Logger { out: File::from(out), who });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Warn });
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
        let level = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug | Level::Trace => "debug: ",
        };
        let line = format!("runsc-rs {}: {level}{}\n", self.who, record.args());
        // There is nobody to tell if this fails.
        let _ = (&self.out).write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
