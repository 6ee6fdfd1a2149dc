//! mremap(2) and remap_file_pages(2).

use super::arg::*;
use super::memory::{begin, check_as, finish, retire_text, MAX_MAP_COUNT};
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::fs::MapSource;
use crate::mm::vma::{page_aligned, page_up, valid_range, Backing, Vma};
use platform::{Op, GUEST_MAX, PAGE_SIZE};

pub async fn mremap(cx: &mut Ctx<'_>, addr: Addr, old_len: u64, new_len: u64, flags: i32, new_addr: Addr) -> SysResult {
    const MAYMOVE: i32 = libc::MREMAP_MAYMOVE;
    const FIXED: i32 = libc::MREMAP_FIXED;
    const DONTUNMAP: i32 = libc::MREMAP_DONTUNMAP;
    if flags & !(MAYMOVE | FIXED | DONTUNMAP) != 0
        || (flags & (FIXED | DONTUNMAP) != 0 && flags & MAYMOVE == 0)
        || !page_aligned(addr.0)
    {
        return Err(Errno::EINVAL.into());
    }
    let old_len = page_up(old_len).ok_or(Errno::EINVAL)?;
    let new_len = page_up(new_len).filter(|&l| l > 0 && l <= GUEST_MAX).ok_or(Errno::EINVAL)?;
    if flags & DONTUNMAP != 0 && old_len != new_len {
        return Err(Errno::EINVAL.into());
    }
    begin(cx).await;
    let mm = cx.task.mm();
    let mut map = mm.map();
    let first = map.vmas.find(addr.0).cloned().ok_or(Errno::EFAULT)?;
    // A second mapping of the same shared memory.
    let copy = old_len == 0;
    if copy && (!first.shared || flags & MAYMOVE == 0) {
        return Err(Errno::EINVAL.into());
    }
    let old_end = addr.0.checked_add(old_len).filter(|&e| e <= GUEST_MAX).ok_or(Errno::EINVAL)?;
    if old_end > first.end {
        return Err(Errno::EFAULT.into());
    }
    if flags & FIXED != 0 {
        let (s, e) = valid_range(new_addr.0, new_len).ok_or(Errno::EINVAL)?;
        if s < old_end && addr.0 < e {
            return Err(Errno::EINVAL.into());
        }
    }
    // Shrinking (or no change) in place.
    if flags & (FIXED | DONTUNMAP) == 0 && new_len <= old_len {
        if new_len < old_len {
            retire_text(cx, &mut map, (addr.0 + new_len, old_end), true);
            map.vmas.remove(addr.0 + new_len, old_end);
            drop(map);
            cx.thread.queue(Op::Unmap { addr: addr.0 + new_len, len: old_len - new_len });
            finish(cx);
        }
        return Ok(addr.0);
    }
    let grow = new_len.saturating_sub(old_len);
    check_as(cx, &map, grow)?;
    let new_end = addr.0.checked_add(new_len);
    // Growing in place if the range above is free.
    if flags & (FIXED | DONTUNMAP) == 0
        && !copy
        && old_end == first.end
        && new_end.is_some_and(|e| {
            e <= GUEST_MAX
                && map.vmas.range(old_end, e).next().is_none()
                && map.images.trampoline_in(old_end, e).is_none()
        })
    {
        let end = addr.0 + new_len;
        let more = more_of(&first, (old_end, end), old_end)?;
        retire_text(cx, &mut map, (addr.0, old_end), false);
        let mut v = first.clone();
        v.offset += old_end - v.start;
        v.start = old_end;
        v.end = end;
        if let Some((backing, _)) = &more {
            v.backing = backing.clone();
        }
        map.vmas.insert(v);
        drop(map);
        cx.thread.queue(match more {
            Some((_, op)) => op,
            None => Op::Remap { addr: addr.0, len: old_len, new_addr: addr.0, new_len, flags: 0 },
        });
        finish(cx);
        return Ok(addr.0);
    }
    if flags & MAYMOVE == 0 {
        return Err(Errno::ENOMEM.into());
    }
    let to = if flags & FIXED != 0 { new_addr.0 } else { map.find_room(new_len)? };
    let mut v = first.clone();
    v.offset += addr.0 - v.start;
    v.start = to;
    v.end = to + new_len;
    let more = match new_len > old_len && !copy {
        true => more_of(&first, (to + old_len, v.end), old_end)?,
        false => None,
    };
    let moved_len = if more.is_some() { old_len } else { new_len };
    // The host moves at most the new length, so the rest is unmapped first.
    let mut ops = Vec::new();
    if new_len < old_len {
        ops.push(Op::Unmap { addr: addr.0 + new_len, len: old_len - new_len });
    }
    ops.push(Op::Remap {
        addr: addr.0,
        len: old_len.min(new_len),
        new_addr: to,
        new_len: moved_len,
        flags: flags & DONTUNMAP,
    });
    retire_text(cx, &mut map, (addr.0, old_end), false);
    retire_text(cx, &mut map, (to, to + new_len), true);
    map.vmas.remove(to, to + new_len);
    if flags & DONTUNMAP == 0 && !copy {
        map.vmas.remove(addr.0, old_end);
    }
    if let Some((backing, op)) = more {
        let rest = Vma { start: to + old_len, offset: v.offset + old_len, backing, ..v.clone() };
        v.end = rest.start;
        map.vmas.insert(rest);
        ops.push(op);
    }
    map.vmas.insert(v);
    drop(map);
    for op in ops {
        cx.thread.queue(op);
    }
    finish(cx);
    Ok(to)
}

/// For a mapping with a copy of the file's bytes: the extension, from address `from` of the mapping, maps the
/// file itself at `to`, so that accesses beyond the end of the file fault.
fn more_of(v: &Vma, to: (u64, u64), from: u64) -> Result<Option<(Backing, Op)>> {
    let Backing::Copied { file } = &v.backing else { return Ok(None) };
    let MapSource::Host(fd) = file.ops.map(file, false)? else { return Ok(None) };
    let op = Op::MapFile {
        addr: to.0,
        len: to.1 - to.0,
        prot: v.prot,
        shared: false,
        file: fd.clone(),
        offset: v.offset + (from - v.start),
    };
    Ok(Some((Backing::File { file: file.clone(), fd }, op)))
}

/// remap_file_pages(2), as in current Linux: maps another part of the file in place of the old mapping.
pub async fn remap_file_pages(cx: &mut Ctx<'_>, addr: Addr, size: u64, prot: i32, page: u64, _flags: i32) -> SysResult {
    let (start, len) = (addr.0 & !(PAGE_SIZE - 1), size & !(PAGE_SIZE - 1));
    let end = start.checked_add(len).filter(|e| *e > start && *e <= GUEST_MAX).ok_or(Errno::EINVAL)?;
    let fits = |o: &u64| o.checked_add(len).is_some_and(|e| i64::try_from(e).is_ok());
    let offset = page.checked_mul(PAGE_SIZE).filter(fits).ok_or(Errno::EINVAL)?;
    if prot != 0 {
        return Err(Errno::EINVAL.into());
    }
    begin(cx).await;
    let mm = cx.task.mm();
    let mut map = mm.map();
    let first = map.vmas.find(start).cloned().ok_or(Errno::EINVAL)?;
    let Backing::File { file, fd } = &first.backing else { return Err(Errno::EINVAL.into()) };
    let mut at = start;
    for v in map.vmas.range(start, end) {
        let same = matches!(&v.backing, Backing::File { file: f, .. } if std::sync::Arc::ptr_eq(f, file));
        if v.start > at || !same || !v.shared || v.prot != first.prot {
            return Err(Errno::EINVAL.into());
        }
        at = v.end;
    }
    if at < end || map.vmas.count() + 2 > MAX_MAP_COUNT {
        return Err(Errno::EINVAL.into());
    }
    let op = Op::MapFile { addr: start, len, prot: first.prot, shared: true, file: fd.clone(), offset };
    map.vmas.remove(start, end);
    map.vmas.insert(Vma { start, end, offset, ..first.clone() });
    drop(map);
    cx.thread.queue(op);
    finish(cx);
    Ok(0)
}
