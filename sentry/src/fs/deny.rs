//! Mutual exclusion of writing and executing a file (`ETXTBSY`, open(2) and execve(2)).
//!
//! The count is attached to the inode, like Linux's `i_writecount`. Files without [`InodeExtra`](super::InodeExtra) are
//! not counted.

use super::vfs::Path;
use crate::error::{Errno, Result};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::Arc;

/// Positive: the number of descriptions open for writing. Negative: the number of address spaces that execute the file.
#[derive(Default)]
struct Count(AtomicI64);

/// Held by a description that is open for writing.
pub struct WriteAccess(Arc<Count>);

/// Held by an address space that executes the file, and while it is loaded.
pub struct DenyWrite(Arc<Count>);

fn count(p: &Path) -> Option<Arc<Count>> {
    Some(p.inode().extra()?.get_or_insert(Count::default))
}

/// Adds `step` unless the count has the other sign.
fn enter(c: &Count, step: i64) -> Result<()> {
    let f = |v: i64| (v * step >= 0).then_some(v + step);
    match c.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, f) {
        Ok(_) => Ok(()),
        Err(_) => Err(Errno::ETXTBSY),
    }
}

/// Counts a description open for writing; `ETXTBSY` if the file is being executed.
pub fn write_access(p: &Path) -> Result<Option<WriteAccess>> {
    let Some(c) = count(p) else { return Ok(None) };
    enter(&c, 1)?;
    Ok(Some(WriteAccess(c)))
}

/// Counts an execution; `ETXTBSY` if the file is open for writing.
pub fn deny_write(p: &Path) -> Result<Option<DenyWrite>> {
    let Some(c) = count(p) else { return Ok(None) };
    enter(&c, -1)?;
    Ok(Some(DenyWrite(c)))
}

impl Drop for WriteAccess {
    fn drop(&mut self) {
        self.0 .0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for DenyWrite {
    fn drop(&mut self) {
        self.0 .0.fetch_add(1, Ordering::SeqCst);
    }
}
