//! `/proc/[pid]/{uid_map,gid_map,projid_map,setgroups}`: the user namespace that a task is in (user_namespaces(7)).
//!
//! What counts is the namespace at the time of the open, and the credentials of the opener.

use super::pid::LiveTask;
use crate::error::{Errno, Result, SysResult};
use crate::fs::file::{File, FileOps};
use crate::fs::pseudo::{Content, OpenText, Put};
use crate::kernel::cred::CAP_SYS_ADMIN;
use crate::kernel::user_ns::{Id, UserNs};
use crate::kernel::{current, Cred};
use crate::mm::io::{Dst, Src};
use std::any::Any;
use std::sync::Arc;

/// Longest text that a write may carry: less than a page.
const MAX_WRITE: usize = 4095;
/// Longest write to `setgroups`.
const MAX_WORD: usize = 7;

struct IdMap {
    ns: Arc<UserNs>,
    opener: Arc<Cred>,
    /// `None`: `setgroups`.
    kind: Option<Id>,
}

/// Opens a map, or `setgroups` (`kind` `None`), of the task's namespace.
pub(super) fn open(live: &LiveTask, flags: i32, kind: Option<Id>) -> Result<Box<dyn FileOps>> {
    let ns = live.cred().ok_or(Errno::ESRCH)?.user_ns.clone();
    let opener = current::get().ok_or(Errno::EINVAL)?.cred();
    if kind.is_none() && flags & libc::O_ACCMODE != libc::O_RDONLY && !opener.capable_in(&ns, CAP_SYS_ADMIN) {
        return Err(Errno::EACCES);
    }
    let map = Arc::new(IdMap { ns, opener, kind });
    Ok(Box::new(OpenMap { text: OpenText::open(map.clone()), map }))
}

impl Content for IdMap {
    fn generate(&self, out: &mut Vec<u8>) -> Result<()> {
        let Some(kind) = self.kind else {
            out.s(if self.ns.setgroups_allowed() { "allow\n" } else { "deny\n" });
            return Ok(());
        };
        for (first, lower, count) in self.ns.lines(kind, &self.opener.user_ns) {
            let lower = lower.unwrap_or(u32::MAX);
            out.dw(first.into(), 10).s(" ").dw(lower.into(), 10).s(" ").dw(count.into(), 10).s("\n");
        }
        Ok(())
    }
}

impl IdMap {
    fn store(&self, text: &[u8]) -> Result<()> {
        let writer = current::get().ok_or(Errno::EINVAL)?.cred();
        if let Some(kind) = self.kind {
            return self.ns.write_map(kind, text, &self.opener, &writer);
        }
        let text = text.split(|b| *b == 0).next().unwrap_or(&[]);
        let word = text.trim_ascii_end();
        match word {
            b"allow" => self.ns.set_setgroups(true),
            b"deny" => self.ns.set_setgroups(false),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// Reads as any text does; is written at its beginning only.
struct OpenMap {
    text: Box<dyn FileOps>,
    map: Arc<IdMap>,
}

impl FileOps for OpenMap {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, file: &File, dst: &mut Dst<'_>, offset: u64) -> SysResult<usize> {
        self.text.read(file, dst, offset)
    }
    fn write(&self, _: &File, src: &mut Src<'_>, offset: u64) -> SysResult<(usize, u64)> {
        let n = src.remaining();
        let most = if self.map.kind.is_some() { MAX_WRITE } else { MAX_WORD };
        if n > most || offset != 0 {
            return Err(Errno::EINVAL.into());
        }
        let text = src.take_vec(most)?;
        if text.len() < n {
            return Err(Errno::EFAULT.into());
        }
        self.map.store(&text)?;
        Ok((n, n as u64))
    }
    fn seekable(&self) -> bool {
        true
    }
    fn seek(&self, file: &File, offset: i64, whence: i32, current: u64) -> Result<u64> {
        self.text.seek(file, offset, whence, current)
    }
}
