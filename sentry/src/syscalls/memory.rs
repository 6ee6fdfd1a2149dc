//! mmap(2), munmap(2), mprotect(2), brk(2), madvise(2), msync(2). Each handler changes the tree and queues
//! the operation; the stub carries it out when the call returns.

use super::arg::*;
use super::{Ctx, Undo};
use crate::error::{Errno, Result, SysResult};
use crate::fs::MapSource;
use crate::mm::space::Map;
use crate::mm::text::{self, Images};
use crate::mm::vma::{page_aligned, page_up, valid_range, Backing, Vma};
use platform::executor::ask_room;
use platform::{Op, GUEST_MAX, GUEST_MIN, PAGE_SIZE};
use std::sync::atomic::{AtomicU64, Ordering};

/// Most mappings of one address space (`vm.max_map_count`).
pub const MAX_MAP_COUNT: usize = 65530;
/// Address range of `MAP_32BIT`.
const LOW: std::ops::Range<u64> = 0x4000_0000..0x8000_0000;
/// Flags that `MAP_SHARED_VALIDATE` accepts: `LEGACY_MAP_MASK`, later flags, and `MAP_SYNC`, which is checked
/// separately.
const KNOWN_FLAGS: i32 = libc::MAP_TYPE
    | libc::MAP_FIXED
    | libc::MAP_ANONYMOUS
    | libc::MAP_DENYWRITE
    | libc::MAP_EXECUTABLE
    | libc::MAP_GROWSDOWN
    | libc::MAP_LOCKED
    | libc::MAP_NORESERVE
    | libc::MAP_POPULATE
    | libc::MAP_NONBLOCK
    | libc::MAP_STACK
    | libc::MAP_HUGETLB
    | libc::MAP_FIXED_NOREPLACE
    | libc::MAP_SYNC
    | 0x3f << 26;
const PROT_ALL: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
/// Bits that mprotect(2) accepts without effect here.
const PROT_GROWS: i32 = 0x0300_0000;

/// The number of a new shared anonymous object.
fn next_object() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Waits until this thread may change the address space.
pub(super) async fn begin(cx: &mut Ctx<'_>) {
    let task = cx.task.clone();
    task.mm().begin(&task).await;
}

pub(super) fn finish(cx: &mut Ctx<'_>) {
    let mm = cx.task.mm();
    mm.started(cx.task.tid(), &*cx.thread);
}

/// Where patched code is mapped, queues operations that restore the file's own pages in a range about to
/// change.
pub(super) fn retire_text(cx: &mut Ctx<'_>, map: &mut Map, range: (u64, u64), gone: bool) {
    let space = cx.task.mm().space();
    for op in Images::retire(map, &*space, range, gone) {
        cx.thread.queue(op);
    }
}

/// The process is no longer inspectable: stops sharing its code with other processes.
pub(super) async fn closed(cx: &mut Ctx<'_>) {
    begin(cx).await;
    let mm = cx.task.mm();
    let ops = Images::give_up(&mut mm.map());
    if !ops.is_empty() {
        ops.into_iter().for_each(|op| cx.thread.queue(op));
        finish(cx);
    }
}

pub(super) fn check_as(cx: &Ctx<'_>, map: &Map, more: u64) -> Result<()> {
    if map.vmas.total.saturating_add(more) > cx.task.limit(libc::RLIMIT_AS) {
        return Err(Errno::ENOMEM);
    }
    Ok(())
}

/// With the personality `READ_IMPLIES_EXEC`, readable memory is executable.
fn implied(cx: &Ctx<'_>, prot: i32) -> i32 {
    const READ_IMPLIES_EXEC: u32 = 0x040_0000;
    let on = cx.task.attrs.personality.load(Ordering::Relaxed) & READ_IMPLIES_EXEC != 0;
    if on && prot & libc::PROT_READ != 0 {
        prot | libc::PROT_EXEC
    } else {
        prot
    }
}

pub async fn mmap(cx: &mut Ctx<'_>, addr: Addr, len: u64, prot: i32, flags: i32, fd: Fd, offset: u64) -> SysResult {
    if !page_aligned(offset) {
        return Err(Errno::EINVAL.into());
    }
    let anonymous = flags & libc::MAP_ANONYMOUS != 0;
    let file = if anonymous { None } else { Some(cx.io_file(fd.0)?) };
    let len = page_up(len).filter(|&l| l > 0 && l <= GUEST_MAX).ok_or(if len == 0 {
        Errno::EINVAL
    } else {
        Errno::ENOMEM
    })?;
    let kind = flags & libc::MAP_TYPE;
    let shared = match kind {
        libc::MAP_PRIVATE => false,
        libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE => true,
        _ => return Err(Errno::EINVAL.into()),
    };
    let asked = prot;
    if kind == libc::MAP_SHARED_VALIDATE && flags & !KNOWN_FLAGS != 0 {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let mut prot = implied(cx, prot & PROT_ALL);
    if flags & libc::MAP_HUGETLB != 0 {
        // There is no huge page pool in the guest.
        return Err(Errno::ENOMEM.into());
    }
    if kind == libc::MAP_SHARED_VALIDATE && flags & libc::MAP_SYNC != 0 {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let (mut backing, mut max_prot) = (Backing::Anon, PROT_ALL);
    let mut code = None;
    let mut copied = None;
    if let Some(file) = file {
        if offset.checked_add(len).is_none_or(|e| i64::try_from(e).is_err()) {
            return Err(Errno::EOVERFLOW.into());
        }
        if !file.readable() || (shared && prot & libc::PROT_WRITE != 0 && !file.writable()) {
            return Err(Errno::EACCES.into());
        }
        if shared && !file.writable() {
            max_prot &= !libc::PROT_WRITE;
        }
        if let Some(p) = &file.path {
            if p.forbids(crate::fs::vfs::MountFlags::NOEXEC) {
                if asked & libc::PROT_EXEC != 0 {
                    return Err(Errno::EPERM.into());
                }
                max_prot &= !libc::PROT_EXEC;
                prot &= !libc::PROT_EXEC;
            }
        }
        if !shared && asked & libc::PROT_EXEC == 0 {
            copied = file.ops.copied(offset, len);
        }
        let source = if copied.is_some() { None } else { Some(file.ops.map(&file, shared && file.writable())?) };
        match source {
            None => backing = Backing::Copied { file },
            Some(MapSource::Anon) if shared => backing = Backing::SharedAnon(next_object()),
            Some(MapSource::Anon) => {}
            Some(MapSource::Host(fd)) => {
                if text::is_code(prot, shared) {
                    code = cx.kernel().texts.of(&file);
                }
                backing = Backing::File { file, fd };
            }
        }
    } else if shared {
        backing = Backing::SharedAnon(next_object());
    }
    begin(cx).await;
    let mm = cx.task.mm();
    let mut map = mm.map();
    let fixed = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) != 0;
    let mut gap = false;
    let start = if fixed {
        let (s, e) = valid_range(addr.0, len).ok_or(if page_aligned(addr.0) {
            if addr.0 < GUEST_MIN {
                Errno::EPERM
            } else {
                Errno::ENOMEM
            }
        } else {
            Errno::EINVAL
        })?;
        if flags & libc::MAP_FIXED_NOREPLACE != 0 && map.vmas.range(s, e).next().is_some() {
            return Err(Errno::EEXIST.into());
        }
        s
    } else {
        let hint = addr.0 & !(PAGE_SIZE - 1);
        match valid_range(hint, len) {
            Some((s, e))
                if hint != 0
                    && (flags & libc::MAP_32BIT == 0 || e <= LOW.end)
                    && map.vmas.range(s, e).next().is_none()
                    && map.images.trampoline_in(s, e).is_none() =>
            {
                s
            }
            _ if flags & libc::MAP_32BIT != 0 => map.find_low_room(len, LOW)?,
            // A dynamic loader first maps the whole length of a library.
            _ if matches!(backing, Backing::File { .. }) && !shared && offset == 0 => {
                let (s, room) = map.find_room_for_text(len)?;
                gap = room;
                s
            }
            _ => map.find_room(len)?,
        }
    };
    let end = start + len;
    check_as(cx, &map, len.saturating_sub(map.vmas.mapped_in(start, end)))?;
    if map.vmas.count() >= MAX_MAP_COUNT {
        return Err(Errno::ENOMEM.into());
    }
    let op = match &backing {
        Backing::Anon | Backing::SharedAnon(_) => {
            Op::MapAnon { addr: start, len, prot, shared, flags: flags & (libc::MAP_NORESERVE | libc::MAP_POPULATE) }
        }
        Backing::Copied { .. } => {
            Op::MapAnon { addr: start, len, prot: libc::PROT_READ | libc::PROT_WRITE, shared: false, flags: 0 }
        }
        Backing::File { fd, .. } => Op::MapFile { addr: start, len, prot, shared, file: fd.clone(), offset },
    };
    let file_offset = if matches!(backing, Backing::File { .. } | Backing::Copied { .. }) { offset } else { 0 };
    retire_text(cx, &mut map, (start, end), true);
    map.vmas.remove(start, end);
    let domain = code.as_ref().and_then(|_| text::Domain::now(cx.task));
    let locked = map.locked_future || flags & libc::MAP_LOCKED != 0;
    map.vmas.insert(Vma {
        max_prot,
        shared,
        backing,
        offset: file_offset,
        locked,
        grows_down: flags & libc::MAP_GROWSDOWN != 0,
        text: code,
        gap,
        ..Map::anon(start, end, prot, "")
    });
    let mut op = Some(op);
    let patched = Images::mapped(&mut map, start, &mut op, domain);
    drop(map);
    for op in op.into_iter().chain(patched) {
        cx.thread.queue(op);
    }
    if let Some(data) = copied {
        cx.thread.queue(Op::CopyOut { addr: start, data });
        if prot != libc::PROT_READ | libc::PROT_WRITE {
            cx.thread.queue(Op::Protect { addr: start, len, prot });
        }
    }
    cx.undo = Some(Undo { start, end, brk: None });
    finish(cx);
    Ok(start)
}

/// Before a call that changes many mappings.
pub(super) fn ask_for(cx: &Ctx<'_>, start: u64, end: u64) -> SysResult<()> {
    if cx.task.mm.read().map().vmas.are_many(start, end) {
        ask_room()?;
    }
    Ok(())
}

pub async fn munmap(cx: &mut Ctx<'_>, addr: Addr, len: u64) -> SysResult {
    let (start, end) = range_arg(addr.0, len, Errno::EINVAL)?;
    ask_for(cx, start, end)?;
    begin(cx).await;
    {
        let mm = cx.task.mm();
        let mut map = mm.map();
        if map.vmas.range(start, end).next().is_none() {
            return Ok(0);
        }
        retire_text(cx, &mut map, (start, end), true);
        map.vmas.remove(start, end);
    }
    cx.thread.queue(Op::Unmap { addr: start, len: end - start });
    finish(cx);
    Ok(0)
}

/// A range argument: `EINVAL` for an unaligned start or zero length, `outside` for a range beyond the guest's
/// addresses.
pub(super) fn range_arg(addr: u64, len: u64, outside: Errno) -> Result<(u64, u64)> {
    if !page_aligned(addr) || len == 0 {
        return Err(Errno::EINVAL);
    }
    let len = page_up(len).ok_or(outside)?;
    let end = addr.checked_add(len).ok_or(outside)?;
    if end > GUEST_MAX {
        return Err(outside);
    }
    Ok((addr.max(GUEST_MIN).min(end), end))
}

pub async fn mprotect(cx: &mut Ctx<'_>, addr: Addr, len: u64, prot: i32) -> SysResult {
    if prot & !(PROT_ALL | PROT_GROWS | 0x8) != 0 || !page_aligned(addr.0) {
        return Err(Errno::EINVAL.into());
    }
    if len == 0 {
        return Ok(0);
    }
    let (start, end) = range_arg(addr.0, len, Errno::ENOMEM)?;
    let prot = implied(cx, prot & PROT_ALL);
    ask_for(cx, start, end)?;
    begin(cx).await;
    // Mapping by mapping, as in Linux: the part before a hole or a mapping that denies the protection is
    // changed.
    let (mut done, mut result) = (start, Ok(0));
    {
        let mm = cx.task.mm();
        let mut map = mm.map();
        if addr.0 < GUEST_MIN || map.vmas.count() + 2 > MAX_MAP_COUNT {
            return Err(Errno::ENOMEM.into());
        }
        for v in map.vmas.range(start, end) {
            if v.start > done {
                break;
            }
            if prot & !v.max_prot != 0 {
                result = Err(Errno::EACCES.into());
                break;
            }
            done = v.end.min(end);
        }
        if done < end && result.is_ok() {
            result = Err(Errno::ENOMEM.into());
        }
        if done > start {
            let writable = prot & libc::PROT_WRITE != 0;
            if writable {
                retire_text(cx, &mut map, (start, done), false);
            }
            map.vmas.update(start, done, |v| {
                v.prot = prot;
                if writable {
                    v.text = None;
                }
            });
        }
    }
    if done > start {
        cx.thread.queue(Op::Protect { addr: start, len: done - start, prot });
        finish(cx);
    }
    result
}

pub async fn brk(cx: &mut Ctx<'_>, want: Addr) -> SysResult {
    begin(cx).await;
    let mm = cx.task.mm();
    let mut map = mm.map();
    let now = map.brk;
    let Some(new_end) = page_up(want.0) else { return Ok(now) };
    if want.0 < map.brk_start || new_end > GUEST_MAX {
        return Ok(now);
    }
    let data = map.data.1 - map.data.0;
    if (want.0 - map.brk_start).saturating_add(data) > cx.task.limit(libc::RLIMIT_DATA) {
        return Ok(now);
    }
    let old_end = map.brk_end();
    let op = if new_end > old_end {
        // Keeps one page free below the next mapping, as Linux does.
        if map.vmas.range(old_end, new_end + PAGE_SIZE).next().is_some()
            || map.images.trampoline_in(old_end, new_end).is_some()
            || check_as(cx, &map, new_end - old_end).is_err()
        {
            return Ok(now);
        }
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        map.vmas.insert(Map::anon(old_end, new_end, prot, "[heap]"));
        cx.undo = Some(Undo { start: old_end, end: new_end, brk: Some(now) });
        Some(Op::MapAnon { addr: old_end, len: new_end - old_end, prot, shared: false, flags: 0 })
    } else if new_end < old_end {
        map.vmas.remove(new_end, old_end);
        Some(Op::Unmap { addr: new_end, len: old_end - new_end })
    } else {
        None
    };
    map.brk = want.0;
    drop(map);
    if let Some(op) = op {
        cx.thread.queue(op);
        finish(cx);
    }
    Ok(want.0)
}

pub async fn madvise(cx: &mut Ctx<'_>, addr: Addr, len: u64, advice: i32) -> SysResult {
    if !page_aligned(addr.0) {
        return Err(Errno::EINVAL.into());
    }
    // Page merging is a side channel between the owners of the pages: behaves as a kernel without it.
    let known = matches!(
        advice,
        libc::MADV_NORMAL
            | libc::MADV_RANDOM
            | libc::MADV_SEQUENTIAL
            | libc::MADV_WILLNEED
            | libc::MADV_DONTNEED
            | libc::MADV_FREE
            | libc::MADV_REMOVE
            | libc::MADV_DONTFORK
            | libc::MADV_DOFORK
            | libc::MADV_HUGEPAGE
            | libc::MADV_NOHUGEPAGE
            | libc::MADV_DONTDUMP
            | libc::MADV_DODUMP
            | 18 // MADV_WIPEONFORK
            | 19 // MADV_KEEPONFORK
            | 20 // MADV_COLD
            | 21 // MADV_PAGEOUT
            | 22 // MADV_POPULATE_READ
            | 23 // MADV_POPULATE_WRITE
    );
    if !known {
        return Err(Errno::EINVAL.into());
    }
    if len == 0 {
        return Ok(0);
    }
    let (start, end) = range_arg(addr.0, len, Errno::EINVAL)?;
    ask_for(cx, start, end)?;
    begin(cx).await;
    let (holes, ranges) = {
        let mm = cx.task.mm();
        let mut map = mm.map();
        if advice == libc::MADV_DONTFORK || advice == libc::MADV_DOFORK {
            map.vmas.update(start, end, |v| v.dont_fork = advice == libc::MADV_DONTFORK);
        }
        let mut ranges = Vec::new();
        for v in map.vmas.range(start, end) {
            // MADV_REMOVE is limited to shared anonymous memory (holes in a file are its owner's task),
            // MADV_FREE and MADV_WIPEONFORK to private anonymous memory.
            let private_anon = matches!(v.backing, Backing::Anon) && !v.shared;
            match advice {
                libc::MADV_REMOVE if !matches!(v.backing, Backing::SharedAnon(_)) => return Err(Errno::EINVAL.into()),
                libc::MADV_REMOVE | libc::MADV_DONTNEED | libc::MADV_FREE if v.locked => {
                    return Err(Errno::EINVAL.into())
                }
                libc::MADV_FREE | 18 if !private_anon => return Err(Errno::EINVAL.into()),
                _ => {}
            }
            let (from, to) = (v.start.max(start), v.end.min(end));
            let again = match (&v.backing, advice) {
                // The file's bytes must reappear. Memory that is not writable still shows them.
                (Backing::Copied { .. }, libc::MADV_DONTNEED) if v.prot & libc::PROT_WRITE == 0 => continue,
                (Backing::Copied { file }, libc::MADV_DONTNEED) => {
                    file.ops.copied(v.offset + (from - v.start), to - from)
                }
                _ => None,
            };
            ranges.push((from, to, again));
        }
        (!map.vmas.covers(start, end), ranges)
    };
    // Paging out would affect file pages that other processes use.
    let no_effect = [libc::MADV_DONTDUMP, libc::MADV_DODUMP, libc::MADV_COLD, libc::MADV_PAGEOUT];
    if !no_effect.contains(&advice) {
        for (s, e, again) in ranges {
            cx.thread.queue(Op::Advise { addr: s, len: e - s, advice });
            if let Some(data) = again {
                cx.thread.queue(Op::CopyOut { addr: s, data });
            }
        }
        finish(cx);
    }
    if holes {
        return Err(Errno::ENOMEM.into());
    }
    Ok(0)
}

pub async fn msync(cx: &mut Ctx<'_>, addr: Addr, len: u64, flags: i32) -> SysResult {
    let known = libc::MS_ASYNC | libc::MS_INVALIDATE | libc::MS_SYNC;
    if flags & !known != 0
        || !page_aligned(addr.0)
        || flags & (libc::MS_ASYNC | libc::MS_SYNC) == libc::MS_ASYNC | libc::MS_SYNC
    {
        return Err(Errno::EINVAL.into());
    }
    if len == 0 {
        return Ok(0);
    }
    let (start, end) = range_arg(addr.0, len, Errno::ENOMEM)?;
    begin(cx).await;
    let (holes, busy, ranges) = {
        let mm = cx.task.mm();
        let map = mm.map();
        let list: Vec<(u64, u64)> = map
            .vmas
            .range(start, end)
            .filter(|v| v.shared && matches!(v.backing, Backing::File { .. }))
            .map(|v| (v.start.max(start), v.end.min(end)))
            .collect();
        let busy = flags & libc::MS_INVALIDATE != 0 && map.vmas.range(start, end).any(|v| v.locked);
        (!map.vmas.covers(start, end), busy, list)
    };
    if busy {
        return Err(Errno::EBUSY.into());
    }
    for (s, e) in ranges {
        cx.thread.queue(Op::Sync { addr: s, len: e - s, flags });
    }
    finish(cx);
    if holes {
        return Err(Errno::ENOMEM.into());
    }
    Ok(0)
}
