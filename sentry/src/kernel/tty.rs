//! Job control: which terminal controls which session, and the signals that come from it.

use super::{Kernel, ThreadGroup};

/// Device number of the controlling terminal (0: none) and its foreground process group (-1: none), for /proc/pid/stat.
pub fn stat_of(_kernel: &Kernel, _group: &ThreadGroup) -> (u64, i32) {
    (0, -1)
}
