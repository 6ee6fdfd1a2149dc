//! open(2), creat(2), openat2(2), memfd_create(2), umask(2), close_range(2).

use super::arg::*;
use super::Ctx;
use crate::error::{later, Errno, Result, SysResult};
use crate::fs::vfs::open::{open_how, Opened};
use crate::fs::vfs::{LookupFlags, Path};
use crate::fs::{pipe, File, FileOps};
use crate::kernel::wait::Turn;
use crate::kernel::Task;
use platform::executor::ask_room;
use std::sync::Arc;

const KNOWN: i32 = libc::O_ACCMODE
    | libc::O_CREAT
    | libc::O_EXCL
    | libc::O_NOCTTY
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_ASYNC
    | libc::O_DIRECT
    | O_LARGEFILE
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_NOATIME
    | libc::O_CLOEXEC
    | libc::O_PATH
    | libc::O_TMPFILE;
/// The kernel's value; libc defines 0 on 64-bit systems.
pub const O_LARGEFILE: i32 = 0o100_000;

async fn fifo(cx: &mut Ctx<'_>, place: Path, flags: i32) -> SysResult<Arc<File>> {
    let inode = place.inode().clone();
    if let Some(anon) = inode.as_any().downcast_ref::<crate::fs::vfs::anon::AnonInode>() {
        // An unnamed pipe, opened through its link in /proc.
        let ops = match pipe::end_of(anon.file()) {
            Some(end) => end.again(cx.task, flags).await?,
            None => inode.clone().open(flags)?,
        };
        return Ok(File::new(ops, flags, None));
    }
    let extra = inode.extra().ok_or(Errno::ENXIO)?;
    let ops: Box<dyn FileOps> = pipe::open_fifo(cx.task, extra, flags).await?;
    Ok(File::new(ops, flags, Some(place)))
}

async fn do_open(cx: &mut Ctx<'_>, dirfd: i32, path: u64, flags: i32, mode: u32, resolve: LookupFlags) -> SysResult {
    let path = cx.read_path(path)?;
    let file = loop {
        match open_how(cx.task, dirfd, &path, flags & !O_LARGEFILE, mode, resolve)? {
            Opened::File(f) => break f,
            Opened::Fifo(place, flags) => break fifo(cx, place, flags).await?,
            Opened::Leased(leases, write) => leases.wait(cx.task, write).await?,
        }
    };
    let fd = cx.task.install_fd(file, flags & libc::O_CLOEXEC != 0)?;
    Ok(fd as u64)
}

pub async fn open(cx: &mut Ctx<'_>, path: PathPtr, flags: i32, mode: Mode) -> SysResult {
    do_open(cx, libc::AT_FDCWD, path.0, flags & KNOWN, mode.0 & 0o7777, LookupFlags::empty()).await
}

pub async fn openat(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, flags: i32, mode: Mode) -> SysResult {
    do_open(cx, dirfd.0, path.0, flags & KNOWN, mode.0 & 0o7777, LookupFlags::empty()).await
}

pub async fn creat(cx: &mut Ctx<'_>, path: PathPtr, mode: Mode) -> SysResult {
    let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
    do_open(cx, libc::AT_FDCWD, path.0, flags, mode.0 & 0o7777, LookupFlags::empty()).await
}

pub async fn openat2(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, how: Addr, size: usize) -> SysResult {
    if size < 24 {
        return Err(Errno::EINVAL.into());
    }
    if size > 4096 {
        return Err(Errno::E2BIG.into());
    }
    let mut raw = vec![0u8; size];
    cx.read_bytes(how.0, &mut raw)?;
    if raw.iter().skip(24).any(|b| *b != 0) {
        return Err(Errno::E2BIG.into());
    }
    let word = |i: usize| raw.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (flags, mode, resolve) = (word(0), word(1), word(2));
    let flags = i32::try_from(flags).map_err(|_| Errno::EINVAL)?;
    let creates = flags & libc::O_CREAT != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE;
    if flags & !KNOWN != 0 || mode & !0o7777 != 0 || (mode != 0 && !creates) {
        return Err(Errno::EINVAL.into());
    }
    if flags & libc::O_PATH != 0
        && flags & !(libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC) != 0
    {
        return Err(Errno::EINVAL.into());
    }
    let mut r = LookupFlags::empty();
    for (bit, flag) in [
        (1, LookupFlags::NO_XDEV),
        (2, LookupFlags::NO_MAGICLINKS),
        (4, LookupFlags::NO_SYMLINKS | LookupFlags::NO_MAGICLINKS),
        (8, LookupFlags::BENEATH),
        (16, LookupFlags::IN_ROOT),
    ] {
        if resolve & bit != 0 {
            r |= flag;
        }
    }
    if resolve & !0x3f != 0 || r.contains(LookupFlags::BENEATH | LookupFlags::IN_ROOT) {
        return Err(Errno::EINVAL.into());
    }
    if resolve & 0x20 != 0 {
        // RESOLVE_CACHED may always report that the call would have to wait.
        return Err(Errno::EAGAIN.into());
    }
    do_open(cx, dirfd.0, path.0, flags, mode as u32, r).await
}

pub fn umask(cx: &mut Ctx<'_>, mask: Mode) -> SysResult {
    let fs = cx.task.fs();
    let mut fs = fs.lock();
    Ok(u64::from(std::mem::replace(&mut fs.umask, mask.0 & 0o777)))
}

pub async fn close_range(cx: &mut Ctx<'_>, first: u32, last: u32, flags: u32) -> SysResult {
    const UNSHARE: u32 = 2;
    const CLOEXEC: u32 = 4;
    if flags & !(UNSHARE | CLOEXEC) != 0 || first > last {
        return Err(Errno::EINVAL.into());
    }
    if flags & UNSHARE != 0 {
        own_files(cx.task)?;
    }
    let files = cx.task.files();
    let (first, last) = (first as usize, last as usize);
    let (mut from, mut turn) = (Some(first), Turn::new());
    while let Some(at) = from {
        if flags & CLOEXEC != 0 {
            from = files.mark_some(at, last);
        } else {
            let (gone, next) = files.remove_some(at, |i, _| i <= last);
            for file in gone {
                super::fs_fd::closed(cx.task, &file);
                drop(file);
                turn.next().await;
            }
            from = next.filter(|i| *i <= last);
        }
        turn.look().await;
    }
    Ok(0)
}

/// Gives the task a table of descriptors of its own.
pub fn own_files(task: &Task) -> Result<()> {
    let mut files = task.files.write();
    if Arc::strong_count(&files) > 1 {
        if files.is_large() {
            ask_room().map_err(later)?;
        }
        let own = files.duplicate();
        *files = own;
    }
    Ok(())
}

pub fn memfd_create(cx: &mut Ctx<'_>, name: Addr, flags: u32) -> SysResult {
    let huge = libc::MFD_HUGETLB | (libc::MFD_HUGE_MASK << libc::MFD_HUGE_SHIFT);
    if flags & libc::MFD_HUGETLB != 0 && flags & !(huge | libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | MFD_EXEC) == 0 {
        // There are no huge pages of any size.
        return Err(Errno::ENODEV.into());
    }
    let allowed = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC;
    if flags & !allowed != 0 || flags & (MFD_NOEXEC_SEAL | MFD_EXEC) == MFD_NOEXEC_SEAL | MFD_EXEC {
        return Err(Errno::EINVAL.into());
    }
    let name = cx.read_cstr(name.0, 250, Errno::EINVAL)?;
    let file = memfd(cx, &name, flags)?;
    Ok(cx.task.install_fd(file, flags & libc::MFD_CLOEXEC != 0)? as u64)
}

const MFD_NOEXEC_SEAL: u32 = 8;
const MFD_EXEC: u32 = 16;

fn memfd(cx: &Ctx<'_>, name: &[u8], flags: u32) -> Result<Arc<File>> {
    let cred = cx.task.cred();
    let mode = if flags & MFD_NOEXEC_SEAL != 0 { 0o666 } else { 0o777 };
    let sealing = flags & (libc::MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL) != 0;
    crate::fs::setup::memfd(cx.kernel(), name, mode, sealing, &cred)
}
