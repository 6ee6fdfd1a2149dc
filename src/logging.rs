//! A `log` backend that writes to standard error, where the command has put the log: a confined process opens no files. One line, one write.

use crate::config::Verbosity;
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::io::Write;
use std::sync::OnceLock;

struct Logger {
    /// Which process speaks.
    who: &'static str,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// To be called once.
pub fn init(who: &'static str, verbosity: Verbosity) {
    let logger = LOGGER.get_or_init(|| Logger { who });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(match verbosity {
            Verbosity::Warnings => LevelFilter::Warn,
            Verbosity::News => LevelFilter::Info,
            Verbosity::Everything => LevelFilter::Debug,
        });
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
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
