//! Mappings that grow down (`MAP_GROWSDOWN`): a fault below one extends it.

use super::space::Map;
use super::vma::{Backing, Vma};
use crate::kernel::Task;
use platform::{Fault, GuestThread, Op, PAGE_SIZE};

/// `stack_guard_gap`: space kept free between such a mapping and the next lower one.
const GUARD_GAP: u64 = 256 * PAGE_SIZE;
/// `SEGV_MAPERR`.
pub const MAPERR: i32 = 1;

/// The extension of the mapping above `addr` that contains `addr`.
fn grown(map: &Map, addr: u64, limit: u64) -> Option<Vma> {
    let start = addr & !(PAGE_SIZE - 1);
    let v = map.vmas.range(start, platform::GUEST_MAX).next()?;
    if !v.grows_down || v.shared || !matches!(v.backing, Backing::Anon) {
        return None;
    }
    if v.start <= addr || v.label == "[stack]" || v.end - start > limit {
        return None;
    }
    let free = start.checked_sub(GUARD_GAP).filter(|f| *f >= platform::GUEST_MIN)?;
    // The guard gap may contain only mappings that grow down or are inaccessible.
    let near = map.vmas.range(free, start).any(|x| !x.grows_down && x.prot != libc::PROT_NONE);
    let taken = map.vmas.range(start, v.start).next().is_some() || map.images.trampoline_in(start, v.start).is_some();
    (!near && !taken).then(|| Vma { start, end: v.start, ..v.clone() })
}

/// Extends the mapping if the fault allows it; true: the guest continues where it was.
pub async fn grows(task: &Task, thread: &mut dyn GuestThread, f: Fault) -> bool {
    if f.signal != libc::SIGSEGV || f.code != MAPERR {
        return false;
    }
    let mm = task.mm();
    let limit = task.limit(libc::RLIMIT_STACK);
    if grown(&mm.map(), f.addr, limit).is_none() {
        return false;
    }
    mm.begin(task).await;
    let mut map = mm.map();
    let Some(v) = grown(&map, f.addr, limit) else { return false };
    let (addr, len) = (v.start, v.len());
    if map.vmas.total.saturating_add(len) > task.limit(libc::RLIMIT_AS) {
        return false;
    }
    let op = Op::MapAnon { addr, len, prot: v.prot, shared: false, flags: 0 };
    map.vmas.insert(v);
    drop(map);
    thread.queue(op);
    mm.started(task.tid(), thread);
    true
}
