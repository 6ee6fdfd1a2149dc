//! Makes stubs the preferred victims of the host's OOM killer, so that a guest process is killed as on Linux, and not
//! the Sentry with all guests.
//!
//! A process inherits its `oom_score_adj` (proc(5)). The Sentry raises its own while it starts the zygote, from which
//! all stubs descend, and lowers it again afterwards. An unprivileged process may lower it as far as its initial value.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};

/// The increment for stubs, in thousandths of the permitted memory.
const STUBS: i32 = 500;
const MAX: i32 = 1000;

pub struct OomScore {
    file: File,
    own: i32,
}

impl OomScore {
    /// Raises the score. `None`: the host does not allow it, and all processes have the same score.
    pub fn raise() -> Option<OomScore> {
        let mut file = OpenOptions::new().read(true).write(true).open("/proc/self/oom_score_adj").ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let own = text.trim().parse().ok()?;
        let mut score = OomScore { file, own };
        score.set((own + STUBS).min(MAX)).ok()?;
        Some(score)
    }

    /// Restores the score; processes started in between keep the raised one.
    pub fn restore(mut self) -> std::io::Result<()> {
        let own = self.own;
        self.set(own)
    }

    fn set(&mut self, score: i32) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(score.to_string().as_bytes())
    }
}
