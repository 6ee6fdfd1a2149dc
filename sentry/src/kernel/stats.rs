//! Counts for `--stats`: calls, failures and time per system call.
//!
//! Kept only with that option; otherwise a call costs one check of it.

use crate::error::SysResult;
use platform::executor::now_ns;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Call numbers that are counted separately.
const CALLS: usize = 512;

#[derive(Default)]
struct Row {
    count: AtomicU64,
    failed: AtomicU64,
    ns: AtomicU64,
}

/// Counts of all calls.
pub struct CallStats {
    rows: Vec<Row>,
}

/// Counts of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallFigures {
    pub nr: u64,
    pub count: u64,
    pub failed: u64,
    /// From the Sentry's receipt of the call to its answer, waiting included.
    pub ns: u64,
}

impl Default for CallStats {
    fn default() -> Self {
        CallStats { rows: (0..CALLS).map(|_| Row::default()).collect() }
    }
}

impl CallStats {
    /// Records a completed call that began at `began_ns`.
    pub fn record(&self, nr: u64, began_ns: u64, result: &SysResult) {
        let Some(row) = usize::try_from(nr).ok().and_then(|n| self.rows.get(n)) else { return };
        row.count.fetch_add(1, Relaxed);
        row.ns.fetch_add(now_ns().saturating_sub(began_ns), Relaxed);
        if result.is_err() {
            row.failed.fetch_add(1, Relaxed);
        }
    }

    /// The calls made, by descending time.
    pub fn figures(&self) -> Vec<CallFigures> {
        let mut all: Vec<CallFigures> = (0u64..)
            .zip(&self.rows)
            .map(|(nr, r)| CallFigures {
                nr,
                count: r.count.load(Relaxed),
                failed: r.failed.load(Relaxed),
                ns: r.ns.load(Relaxed),
            })
            .filter(|f| f.count > 0)
            .collect();
        all.sort_by_key(|f| std::cmp::Reverse(f.ns));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Errno;

    #[test]
    fn counts_by_call() {
        let s = CallStats::default();
        s.record(3, now_ns(), &Ok(0));
        s.record(3, now_ns(), &Err(Errno::EBADF.into()));
        s.record(0, now_ns() - 1_000_000_000, &Ok(7));
        s.record(u64::MAX, 0, &Ok(0));
        let f = s.figures();
        assert_eq!(f.iter().map(|f| (f.nr, f.count, f.failed)).collect::<Vec<_>>(), [(0, 1, 0), (3, 2, 1)]);
        assert!(f[0].ns >= 1_000_000_000);
    }
}
