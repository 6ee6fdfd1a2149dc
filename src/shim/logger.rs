//! The shim's log: the FIFO `log` of the bundle, which containerd reads, in the form of containerd's own lines.

use crate::oci::report::level_name;
use crate::oci::time;
use log::{LevelFilter, Log, Metadata, Record};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;
use std::time::SystemTime;

struct Logger {
    file: File,
    namespace: String,
    id: String,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Opens the log of the bundle in the current directory. Without it the shim is silent.
pub fn init(debug: bool, namespace: &str, id: &str) {
    // It has a reader even while containerd is away, and what does not fit is lost.
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("log");
    let Ok(file) = file else { return };
    let logger = LOGGER.get_or_init(|| Logger { file, namespace: namespace.into(), id: id.into() });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level() && metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = level_name(record.level());
        let (now, text) = (time::seconds(SystemTime::now()), record.args().to_string());
        let Logger { namespace, id, .. } = self;
        let line = format!("time={now:?} level={level} msg={text:?} namespace={namespace:?} group={id:?}\n");
        let _ = (&self.file).write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
