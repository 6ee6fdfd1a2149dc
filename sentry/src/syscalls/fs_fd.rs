//! dup(2), fcntl(2), flock(2), ioctl(2).

use super::arg::*;
use super::fs_open::O_LARGEFILE;
use super::Ctx;
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysResult};
use crate::fs::fasync::{self, Recipient};
use crate::fs::lock::{self, Range};
use crate::fs::tmpfs::TmpInode;
use crate::fs::{dnotify, lease, pipe, File};
use crate::kernel::Task;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// To be called when a descriptor of `file` was closed in the table of `task`.
pub fn closed(task: &Task, file: &Arc<File>) {
    let files = task.files();
    if files.has_locks.load(Ordering::Relaxed) {
        lock::release_posix(&files, file);
    }
    file.ops.on_close(file, task);
}

pub fn dup(cx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    let f = cx.file(fd.0)?;
    Ok(cx.task.install_fd(f, false)? as u64)
}

fn do_dup(cx: &mut Ctx<'_>, old: i32, new: i32, cloexec: bool) -> SysResult {
    let f = cx.file(old)?;
    let limit = cx.task.limit(libc::RLIMIT_NOFILE);
    if let Some(gone) = cx.task.files().replace(new, f, cloexec, limit)? {
        closed(cx.task, &gone);
    }
    Ok(new as u64)
}

pub fn dup2(cx: &mut Ctx<'_>, old: Fd, new: Fd) -> SysResult {
    if old.0 == new.0 {
        cx.file(old.0)?;
        return Ok(new.0 as u64);
    }
    do_dup(cx, old.0, new.0, false)
}

pub fn dup3(cx: &mut Ctx<'_>, old: Fd, new: Fd, flags: i32) -> SysResult {
    if flags & !libc::O_CLOEXEC != 0 || old.0 == new.0 {
        return Err(Errno::EINVAL.into());
    }
    do_dup(cx, old.0, new.0, flags & libc::O_CLOEXEC != 0)
}

/// Flags that `F_SETFL` can change.
const SETFL: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME | libc::O_ASYNC;

// Not in the libc crate.
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;

#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Flock {
    kind: i16,
    whence: i16,
    pad: u32,
    start: i64,
    len: i64,
    pid: i32,
    pad2: u32,
}

/// The byte range of a `struct flock`.
fn range(file: &File, fl: &Flock) -> Result<Range> {
    let base = match i32::from(fl.whence) {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => *file.offset.lock() as i64,
        libc::SEEK_END => i64::try_from(file.attr()?.size).map_err(|_| Errno::EOVERFLOW)?,
        _ => return Err(Errno::EINVAL),
    };
    let at = base.checked_add(fl.start).ok_or(Errno::EOVERFLOW)?;
    let (start, end) = match fl.len {
        0 => (at, i64::MAX),
        n if n > 0 => (at, at.checked_add(n - 1).ok_or(Errno::EOVERFLOW)?),
        n => (at.checked_add(n).ok_or(Errno::EINVAL)?, at - 1),
    };
    if start < 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Range { start: start as u64, end: end as u64 })
}

/// The global number of what the caller calls `nr`.
fn known(cx: &Ctx<'_>, nr: i32) -> Result<i32> {
    cx.task.global_of(nr).ok_or(Errno::ESRCH)
}

async fn record_lock(cx: &mut Ctx<'_>, file: Arc<File>, cmd: i32, arg: u64) -> SysResult {
    let mut fl: Flock = cx.read(arg)?;
    let ofd = matches!(cmd, libc::F_OFD_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW);
    if ofd && fl.pid != 0 {
        return Err(Errno::EINVAL.into());
    }
    let range = range(&file, &fl)?;
    let files = cx.task.files();
    let owner = if ofd { lock::Owner::ofd(&file) } else { lock::Owner::posix(&files, cx.task.group.pid) };
    if matches!(cmd, libc::F_GETLK | libc::F_OFD_GETLK) {
        let write = match i32::from(fl.kind) {
            libc::F_RDLCK => false,
            libc::F_WRLCK => true,
            libc::F_UNLCK if ofd => false,
            _ => return Err(Errno::EINVAL.into()),
        };
        match lock::of(&file)?.conflict(&owner, range, write) {
            None => fl.kind = libc::F_UNLCK as i16,
            Some(l) => {
                fl.kind = if l.write { libc::F_WRLCK } else { libc::F_RDLCK } as i16;
                fl.whence = libc::SEEK_SET as i16;
                fl.start = l.range.start as i64;
                fl.len = if l.range.end == i64::MAX as u64 { 0 } else { (l.range.end - l.range.start + 1) as i64 };
                fl.pid = if l.owner.pid() > 0 { cx.task.sees(l.owner.pid()) } else { l.owner.pid() };
            }
        }
        cx.write(arg, &fl)?;
        return Ok(0);
    }
    let locks = lock::of(&file)?;
    let write = match i32::from(fl.kind) {
        libc::F_UNLCK => {
            locks.unlock(&owner, range);
            return Ok(0);
        }
        libc::F_RDLCK if file.readable() => false,
        libc::F_WRLCK if file.writable() => true,
        libc::F_RDLCK | libc::F_WRLCK => return Err(Errno::EBADF.into()),
        _ => return Err(Errno::EINVAL.into()),
    };
    if ofd {
        file.has_locks.store(true, Ordering::Relaxed);
    } else {
        files.has_locks.store(true, Ordering::Relaxed);
    }
    let wait = matches!(cmd, libc::F_SETLKW | libc::F_OFD_SETLKW);
    locks.lock(cx.task, owner, range, write, wait).await?;
    // If another thread closed the descriptor during the wait, no later close would release the lock.
    if !ofd && !cx.task.files().holds(&file) {
        locks.unlock(&owner, Range { start: 0, end: u64::MAX });
    }
    Ok(0)
}

/// The inode of a file that can have seals: a regular file of a tmpfs, memfds included.
fn sealable(file: &File) -> Result<&TmpInode> {
    file.tmp().filter(|t| t.kind() == libc::S_IFREG).ok_or(Errno::EINVAL)
}

pub async fn fcntl(cx: &mut Ctx<'_>, fd: Fd, cmd: i32, arg: u64) -> SysResult {
    let files = cx.task.files();
    let entry = files.entry(fd.0)?;
    let file = entry.file;
    if file.flags() & libc::O_PATH != 0
        && !matches!(cmd, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC | libc::F_GETFD | libc::F_SETFD | libc::F_GETFL)
    {
        return Err(Errno::EBADF.into());
    }
    match cmd {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => {
            let limit = cx.task.limit(libc::RLIMIT_NOFILE);
            let min = usize::try_from(arg as u32).map_err(|_| Errno::EINVAL)?;
            if min as u64 >= limit {
                return Err(Errno::EINVAL.into());
            }
            Ok(files.install(file, cmd == libc::F_DUPFD_CLOEXEC, min, limit)? as u64)
        }
        libc::F_GETFD => Ok(u64::from(entry.cloexec)),
        libc::F_SETFD => {
            files.set_cloexec(fd.0, arg & libc::FD_CLOEXEC as u64 != 0)?;
            Ok(0)
        }
        libc::F_GETFL => {
            let mut f = file.flags();
            if file.path.is_some() && f & libc::O_PATH == 0 {
                f |= O_LARGEFILE;
            }
            Ok(f as u64)
        }
        libc::F_SETFL => {
            let old = file.flags();
            let new = (old & !SETFL) | (arg as i32 & SETFL);
            let sealed_append = file.tmp().is_some_and(|t| t.seals() & libc::F_SEAL_WRITE != 0);
            if sealed_append && new & libc::O_APPEND != old & libc::O_APPEND {
                return Err(Errno::EPERM.into());
            }
            if new & !old & libc::O_NOATIME != 0 {
                if let Some(p) = &file.path {
                    if !crate::fs::vfs::perm::owner_or_capable(p.inode().perm()?, &cx.task.cred()) {
                        return Err(Errno::EPERM.into());
                    }
                }
            }
            file.ops.set_flags(new)?;
            file.set_flags(new);
            if (new ^ old) & libc::O_ASYNC != 0 {
                fasync::set_async(cx.task, &file, fd.0, new & libc::O_ASYNC != 0);
            }
            Ok(0)
        }
        libc::F_GETLK | libc::F_SETLK | libc::F_SETLKW | libc::F_OFD_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW => {
            record_lock(cx, file, cmd, arg).await
        }
        libc::F_SETOWN => {
            let who = match arg as i32 {
                0 => Recipient::Nobody,
                i32::MIN => return Err(Errno::EINVAL.into()),
                p if p > 0 => Recipient::Process(known(cx, p)?),
                p => Recipient::Group(known(cx, -p)?),
            };
            file.owner.lock().set(cx.task, who)?;
            Ok(0)
        }
        libc::F_GETOWN => Ok(match file.owner.lock().who() {
            Recipient::Nobody => 0,
            Recipient::Thread(p) | Recipient::Process(p) => cx.task.sees(p) as u64,
            Recipient::Group(p) => -i64::from(cx.task.sees(p)) as u64,
        }),
        F_SETOWN_EX => {
            let [kind, id]: [i32; 2] = cx.read(arg)?;
            let who = match kind {
                _ if !(0..=2).contains(&kind) => return Err(Errno::EINVAL.into()),
                _ if id == 0 => Recipient::Nobody,
                _ if id < 0 => return Err(Errno::ESRCH.into()),
                0 => Recipient::Thread(known(cx, id)?),
                1 => Recipient::Process(known(cx, id)?),
                _ => Recipient::Group(known(cx, id)?),
            };
            file.owner.lock().set(cx.task, who)?;
            Ok(0)
        }
        F_GETOWN_EX => {
            let who: [i32; 2] = match file.owner.lock().who() {
                Recipient::Nobody => [1, 0],
                Recipient::Thread(t) => [0, cx.task.sees(t)],
                Recipient::Process(p) => [1, cx.task.sees(p)],
                Recipient::Group(p) => [2, cx.task.sees(p)],
            };
            cx.write(arg, &who)?;
            Ok(0)
        }
        F_SETSIG => {
            file.owner.lock().set_signal(arg)?;
            Ok(0)
        }
        F_GETSIG => Ok(file.owner.lock().signal() as u64),
        libc::F_SETLEASE => {
            lease::set(cx.task, &file, fd.0, arg as i32)?;
            Ok(0)
        }
        libc::F_GETLEASE => Ok(lease::get(&file) as u64),
        libc::F_NOTIFY => {
            dnotify::set(cx.task, &file, fd.0, arg as u32)?;
            Ok(0)
        }
        libc::F_SETPIPE_SZ => pipe::fcntl_size(&file, Some(arg)),
        libc::F_GETPIPE_SZ => pipe::fcntl_size(&file, None),
        libc::F_GET_SEALS => Ok(sealable(&file)?.seals() as u64),
        libc::F_ADD_SEALS => {
            if !file.writable() {
                return Err(Errno::EPERM.into());
            }
            let t = sealable(&file)?;
            t.add_seals(arg as i32)?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL.into()),
    }
}

pub async fn flock(cx: &mut Ctx<'_>, fd: Fd, op: i32) -> SysResult {
    let file = cx.io_file(fd.0)?;
    let nonblock = op & libc::LOCK_NB != 0;
    let exclusive = match op & !libc::LOCK_NB {
        libc::LOCK_UN => {
            lock::of(&file)?.flock_release(&file);
            return Ok(0);
        }
        libc::LOCK_SH => false,
        libc::LOCK_EX => true,
        _ => return Err(Errno::EINVAL.into()),
    };
    file.has_locks.store(true, Ordering::Relaxed);
    lock::of(&file)?.flock(cx.task, &file, exclusive, !nonblock).await?;
    Ok(0)
}

const FIOCLEX: u32 = 0x5451;
const FIONCLEX: u32 = 0x5450;
const FIOASYNC: u32 = 0x5452;
const FIONBIO: u32 = 0x5421;
const FIONREAD: u32 = 0x541b;
const FIGETBSZ: u32 = 2;

pub async fn ioctl(cx: &mut Ctx<'_>, fd: Fd, cmd: u32, arg: u64) -> SysResult {
    let file = cx.io_file(fd.0)?;
    match cmd {
        FIOCLEX | FIONCLEX => {
            cx.task.files().set_cloexec(fd.0, cmd == FIOCLEX)?;
            Ok(0)
        }
        FIONBIO | FIOASYNC => {
            let on: i32 = cx.read(arg)?;
            let bit = if cmd == FIONBIO { libc::O_NONBLOCK } else { libc::O_ASYNC };
            let flags = if on != 0 { file.flags() | bit } else { file.flags() & !bit };
            file.ops.set_flags(flags)?;
            file.set_flags(flags);
            if cmd == FIOASYNC {
                fasync::set_async(cx.task, &file, fd.0, on != 0);
            }
            Ok(0)
        }
        FIONREAD | FIGETBSZ if file.path.as_ref().is_some_and(|p| p.kind() == libc::S_IFREG) => {
            let a = file.attr()?;
            let n = if cmd == FIGETBSZ {
                a.blksize as i32
            } else {
                let left = a.size.saturating_sub(*file.offset.lock());
                i32::try_from(left).unwrap_or(i32::MAX)
            };
            cx.write(arg, &n)?;
            Ok(0)
        }
        _ if file.ops.ioctl_waits() => {
            cx.kernel().executor.room().await;
            let request = |cx: &mut Ctx<'_>| file.ops.ioctl(&file, cx.task, cmd, arg);
            super::io::blocking(cx, &file, PollEvents::all(), None, false, request).await
        }
        _ => file.ops.ioctl(&file, cx.task, cmd, arg),
    }
}
