//! What procfs shows of an address space: maps, smaps, mem, cmdline, environ, auxv.

use super::pid::LiveTask;
use crate::error::{Errno, Result, SysResult};
use crate::fs::file::{File, FileOps};
use crate::fs::pseudo::{check_length, Put, Super};
use crate::mm::io::{Dst, Src};
use crate::mm::usage::{self, resident, sizes};
use crate::mm::vma::Vma;
use crate::mm::Mm;
use platform::executor::Rounds;
use std::any::Any;
use std::sync::Weak;

/// Most that one access to `mem` moves at a time.
const CHUNK: usize = 64 * 1024;

pub(super) fn cmdline(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    if let Some(task) = &live.task {
        usage::arguments(&task.mm(), out);
    }
    Ok(())
}

pub(super) fn environ(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    let Some(mm) = live.mm() else { return Ok(()) };
    let env = mm.map().env;
    usage::copy(&mm.for_others(), env.0, env.1, out);
    Ok(())
}

pub(super) fn auxv(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    let Some(mm) = live.mm() else { return Ok(()) };
    for word in &mm.map().auxv {
        out.b(&word.to_le_bytes());
    }
    Ok(())
}

/// The line of one mapping in `maps`.
fn head(v: &Vma, out: &mut Vec<u8>) {
    let start = out.len();
    let bit = |on: bool, c: u8| if on { c } else { b'-' };
    out.x(v.start, 8).s("-").x(v.end, 8).s(" ");
    out.push(bit(v.prot & libc::PROT_READ != 0, b'r'));
    out.push(bit(v.prot & libc::PROT_WRITE != 0, b'w'));
    out.push(bit(v.prot & libc::PROT_EXEC != 0, b'x'));
    out.push(if v.shared { b's' } else { b'p' });
    let path = v.path();
    let attr = path.and_then(|p| p.inode().attr().ok());
    let (dev, ino) = attr.map_or((0, 0), |a| (a.dev, a.ino));
    let offset = if path.is_some() { v.offset } else { 0 };
    let (major, minor) = (u64::from(libc::major(dev)), u64::from(libc::minor(dev)));
    out.s(" ").x(offset, 8).s(" ").x(major, 2).s(":").x(minor, 2).s(" ").d(ino).s(" ");
    let pad = |out: &mut Vec<u8>| {
        let n = 73usize.saturating_sub(out.len() - start);
        out.sp(n);
    };
    if let Some(p) = path {
        pad(out);
        if let Ok(name) = super::fd::place_name(p) {
            out.esc(&name, b"\n");
        }
    } else if !v.label.is_empty() {
        pad(out);
        out.s(v.label);
    } else if v.shared {
        pad(out);
        out.s("/dev/zero (deleted)");
    }
    out.s("\n");
}

/// Mappings of a task in order, copied so that names are made without the lock on the map; some at a time.
fn mappings(live: &LiveTask) -> impl Iterator<Item = Vma> {
    const SOME: usize = 256;
    let (mm, mut at, mut some) = (live.mm(), 0, Vec::new().into_iter());
    std::iter::from_fn(move || {
        if some.len() == 0 {
            let copied: Vec<Vma> = mm.as_ref()?.map().vmas.range(at, u64::MAX).take(SOME).cloned().collect();
            at = copied.last()?.end;
            some = copied.into_iter();
        }
        some.next()
    })
}

pub(super) fn maps(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    let mut rounds = Rounds::new();
    for v in mappings(live) {
        head(&v, out);
        check_length(out, &mut rounds)?;
    }
    Ok(())
}

/// The lines that `smaps` and `smaps_rollup` share.
fn usage(out: &mut Vec<u8>, rss: u64, dirty: u64, anon: u64, locked: u64) {
    let clean = rss - dirty;
    let rows: [(&str, u64); 19] = [
        ("Rss", rss),
        ("Pss", rss),
        ("Pss_Dirty", dirty),
        ("Shared_Clean", 0),
        ("Shared_Dirty", 0),
        ("Private_Clean", clean),
        ("Private_Dirty", dirty),
        ("Referenced", rss),
        ("Anonymous", anon),
        ("KSM", 0),
        ("LazyFree", 0),
        ("AnonHugePages", 0),
        ("ShmemPmdMapped", 0),
        ("FilePmdMapped", 0),
        ("Shared_Hugetlb", 0),
        ("Private_Hugetlb", 0),
        ("Swap", 0),
        ("SwapPss", 0),
        ("Locked", locked),
    ];
    for (name, bytes) in rows {
        row(out, name, bytes);
    }
}

fn row(out: &mut Vec<u8>, name: &str, bytes: u64) {
    let start = out.len();
    out.s(name).s(":");
    let n = 16usize.saturating_sub(out.len() - start);
    out.sp(n).dw(bytes >> 10, 8).s(" kB\n");
}

pub(super) fn smaps(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    let mut rounds = Rounds::new();
    for v in mappings(live) {
        head(&v, out);
        check_length(out, &mut rounds)?;
        row(out, "Size", v.len());
        row(out, "KernelPageSize", 4096);
        row(out, "MMUPageSize", 4096);
        let rss = resident(&v);
        let anon = if v.path().is_none() { rss } else { 0 };
        let dirty = if v.prot & libc::PROT_WRITE != 0 { rss } else { 0 };
        usage(out, rss, dirty, anon, if v.locked { rss } else { 0 });
        out.s("THPeligible:           0\nVmFlags:");
        let all = [
            (v.prot & libc::PROT_READ != 0, "rd"),
            (v.prot & libc::PROT_WRITE != 0, "wr"),
            (v.prot & libc::PROT_EXEC != 0, "ex"),
            (v.shared, "sh"),
            (v.max_prot & libc::PROT_READ != 0, "mr"),
            (v.max_prot & libc::PROT_WRITE != 0, "mw"),
            (v.max_prot & libc::PROT_EXEC != 0, "me"),
            (v.grows_down, "gd"),
            (v.locked, "lo"),
            (v.dont_fork, "dc"),
        ];
        for (_, name) in all.iter().filter(|(on, _)| *on) {
            out.s(" ").s(name);
        }
        out.s(" \n");
    }
    Ok(())
}

pub(super) fn smaps_rollup(live: &LiveTask, _: &Super, out: &mut Vec<u8>) -> Result<()> {
    let Some(mm) = live.mm() else { return Err(Errno::ESRCH) };
    let Some((from, to)) = mm.map().vmas.ends() else { return Ok(()) };
    let start = out.len();
    out.x(from, 8).s("-").x(to, 8).s(" ---p 00000000 00:00 0 ");
    let n = 73usize.saturating_sub(out.len() - start);
    out.sp(n).s("[rollup]\n");
    let z = sizes(&mm);
    usage(out, z.rss(), z.rss_anon, z.rss_anon, z.locked);
    Ok(())
}

/// `/proc/[pid]/mem`: the memory at its addresses. It stays that of the image it was opened on, and does not keep it alive.
struct Mem {
    mm: Weak<Mm>,
}

pub(super) fn open_mem(mm: Weak<Mm>) -> Result<Box<dyn FileOps>> {
    Ok(Box::new(Mem { mm }))
}

impl FileOps for Mem {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _: &File, dst: &mut Dst<'_>, offset: u64) -> SysResult<usize> {
        let Some(mm) = self.mm.upgrade() else { return Ok(0) };
        let mem = mm.for_others();
        let mut done = 0usize;
        while dst.remaining() > 0 {
            let Some(at) = offset.checked_add(done as u64) else { break };
            let n = dst.fill(CHUNK, &mut |buf| mem.read_some(at, buf).map_err(|_| Errno::EIO));
            match n {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(done)
    }
    fn write(&self, _: &File, src: &mut Src<'_>, offset: u64) -> SysResult<(usize, u64)> {
        let Some(mm) = self.mm.upgrade() else { return Ok((0, offset)) };
        let mem = mm.for_others();
        let mut at = offset;
        let mut buf = vec![0u8; src.remaining().min(CHUNK)];
        while src.remaining() > 0 {
            let n = src.take(&mut buf)?;
            match mem.write_some(at, &buf[..n]) {
                Ok(k) => {
                    at = at.saturating_add(k as u64);
                    if k < n {
                        break;
                    }
                }
                Err(_) if at > offset => break,
                Err(_) => return Err(Errno::EIO.into()),
            }
        }
        Ok(((at - offset) as usize, at))
    }
    fn seekable(&self) -> bool {
        true
    }
    fn seek(&self, _: &File, offset: i64, whence: i32, current: u64) -> Result<u64> {
        // Addresses of the upper half are valid positions here; there is no end.
        match whence {
            libc::SEEK_SET => Ok(offset as u64),
            libc::SEEK_CUR => Ok(current.wrapping_add(offset as u64)),
            _ => Err(Errno::EINVAL),
        }
    }
}
