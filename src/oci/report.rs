//! Where the commands that manage containers say what went wrong: standard error, and the file of `--log`, in the forms
//! that engines read.

use super::cli::{Globals, LogFormat};
use super::time;
use anyhow::{Context, Result};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;
use std::time::SystemTime;

struct Report {
    file: Option<File>,
    format: LogFormat,
}

static REPORT: OnceLock<Report> = OnceLock::new();

/// Opens the log. To be called once.
pub fn init(globals: &Globals) -> Result<()> {
    let file = match &globals.log {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).mode(0o644).open(path);
            Some(file.with_context(|| format!("--log {}", path.display()))?)
        }
        None => None,
    };
    let report = REPORT.get_or_init(|| Report { file, format: globals.log_format });
    if log::set_logger(report).is_ok() {
        log::set_max_level(if globals.debug { LevelFilter::Debug } else { LevelFilter::Warn });
    }
    Ok(())
}

/// Descriptor of the log, for a clone that closes others.
pub fn descriptor() -> Option<RawFd> {
    Some(REPORT.get()?.file.as_ref()?.as_raw_fd())
}

/// Says why the command failed.
pub fn error(text: &str) {
    let report = REPORT.get();
    let file = report.and_then(|r| r.file.as_ref());
    let format = report.map(|r| r.format).unwrap_or_default();
    if let Some(mut file) = file {
        let _ = file.write_all(line(format, "error", text).as_bytes());
    }
    let mut stderr = std::io::stderr();
    // With a log, standard error is for people.
    let _ = match file.is_some() || (format == LogFormat::Text && stderr.is_terminal()) {
        true => writeln!(stderr, "runsc-rs: {text}"),
        false => stderr.write_all(line(format, "error", text).as_bytes()),
    };
}

/// One line, as logrus writes it.
fn line(format: LogFormat, level: &str, text: &str) -> String {
    let now = time::seconds(SystemTime::now());
    match format {
        LogFormat::Json => format!("{}\n", serde_json::json!({ "level": level, "msg": text, "time": now })),
        LogFormat::Text => format!("time={now:?} level={level} msg={text:?}\n"),
    }
}

/// The name of a level, as engines know it from runc's log.
pub fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    }
}

impl Log for Report {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other crates' own business is for debugging.
        metadata.level() <= log::max_level()
            && (metadata.target().starts_with(env!("CARGO_CRATE_NAME")) || log::max_level() == LevelFilter::Debug)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = level_name(record.level());
        let line = line(self.format, level, &record.args().to_string());
        let _ = match &self.file {
            Some(file) => (&mut &*file).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_quoted() {
        let text = line(LogFormat::Text, "error", "a \"b\"\n\u{1b}[1m");
        assert!(text.contains(r#"level=error msg="a \"b\"\n\u{1b}[1m""#), "{text}");
        let json: serde_json::Value = serde_json::from_str(&line(LogFormat::Json, "warning", "a \"b\"\n")).unwrap();
        assert_eq!((json["level"].as_str(), json["msg"].as_str()), (Some("warning"), Some("a \"b\"\n")));
    }
}
