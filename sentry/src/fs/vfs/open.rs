//! open(2): from a name or a place to an open file description.

use super::ops::{self, NewMode};
use super::perm::*;
use super::walk::{self, Last, LookupFlags, Resolver, RootRef};
use super::{MountFlags, Path};
use crate::error::{Errno, Result};
use crate::fs::{deny, inotify, lease, File, Noop, SetAttr, Timespec};
use crate::kernel::{Cred, Task};
use std::sync::Arc;

/// Flags that do not stay with the open file.
const CREATION: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_NOCTTY | libc::O_TRUNC | libc::O_CLOEXEC;
const TMPFILE: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// What open(2) found to open.
pub enum Opened {
    File(Arc<File>),
    /// A FIFO that `flags` may be applied to: opening it can wait for the other end.
    Fifo(Path, i32),
    /// Someone's lease stands in the way (of writing, if so): open again once it does not.
    Leased(Arc<lease::Leases>, bool),
}

impl Opened {
    /// The file, where a FIFO is out of place.
    pub fn file(self) -> Result<Arc<File>> {
        match self {
            Opened::File(f) => Ok(f),
            Opened::Fifo(..) => Err(Errno::ENXIO),
            Opened::Leased(..) => Err(Errno::EAGAIN),
        }
    }
}

/// Opens (or creates) what `path` names for `task`. A FIFO answers `ENXIO`: only the system call can wait for its other end.
pub fn open(task: &Task, dirfd: i32, path: &[u8], flags: i32, mode: u32) -> Result<Arc<File>> {
    open_how(task, dirfd, path, flags, mode, LookupFlags::empty())?.file()
}

/// As [`open`], with restrictions of openat2(2).
pub fn open_how(task: &Task, dirfd: i32, path: &[u8], flags: i32, mode: u32, resolve: LookupFlags) -> Result<Opened> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    let cred = task.cred.read().clone();
    let fs = task.fs.read().clone();
    let from = walk::start(task, dirfd, path, resolve)?;
    open_from(&cred, RootRef::Task(&fs), from, path, flags, mode, resolve, || fs.lock().umask)
}

/// The work of [`open_how`], free of a task.
pub fn open_from(
    cred: &Cred,
    root: RootRef<'_>,
    from: Path,
    path: &[u8],
    flags: i32,
    mode: u32,
    resolve: LookupFlags,
    umask: impl Fn() -> u32,
) -> Result<Opened> {
    let mut lookup = resolve;
    if flags & libc::O_NOFOLLOW == 0 {
        lookup |= LookupFlags::FOLLOW;
    }
    if flags & libc::O_PATH != 0 {
        if flags & libc::O_DIRECTORY != 0 {
            lookup |= LookupFlags::DIRECTORY;
        }
        let place = Resolver::new(cred, root, lookup).resolve(from, path)?;
        let keep = flags & (libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW);
        return Ok(Opened::File(File::new(Box::new(Noop), keep, Some(place))));
    }
    if flags & TMPFILE != 0 {
        return open_tmpfile(cred, root, from, path, flags, NewMode { mode: mode & 0o7777, umask: umask() }, lookup);
    }
    if flags & libc::O_CREAT == 0 {
        if flags & (libc::O_ACCMODE | libc::O_DIRECTORY) == libc::O_RDONLY {
            lookup |= LookupFlags::WILL_OPEN;
        }
        let place = Resolver::new(cred, root, lookup).resolve(from, path)?;
        return open_existing(place, flags, cred, false);
    }
    if flags & libc::O_DIRECTORY != 0 {
        return Err(Errno::EINVAL);
    }
    let mut r = Resolver::new(cred, root, lookup);
    let mut from = from;
    let mut path = std::borrow::Cow::Borrowed(path);
    loop {
        let parent = r.parent(from, &path)?;
        let name = match &parent.last {
            Last::Name(n) => n,
            _ if flags & libc::O_EXCL != 0 => return Err(Errno::EEXIST),
            _ => return Err(Errno::EISDIR),
        };
        if parent.slash {
            return Err(Errno::EISDIR);
        }
        let found = match walk::child(&parent.dir, name)? {
            Some(p) => p,
            None => {
                let node =
                    ops::create_or_find(&parent.dir, name, NewMode { mode: mode & 0o7777, umask: umask() }, cred)?;
                match node {
                    (p, true) => return open_existing(p, flags, cred, true),
                    (p, false) => p,
                }
            }
        };
        if flags & libc::O_EXCL != 0 {
            return Err(Errno::EEXIST);
        }
        if lookup.contains(LookupFlags::NO_XDEV) && !Arc::ptr_eq(found.mount(), parent.dir.mount()) {
            return Err(Errno::EXDEV);
        }
        if !found.dentry().is_symlink() || flags & libc::O_NOFOLLOW != 0 {
            may_create_over(parent.dir.inode(), found.inode(), cred)?;
            return open_existing(found, flags, cred, false);
        }
        match r.follow_last(&parent.dir, &found)? {
            Ok(place) => return open_existing(place, flags, cred, false),
            Err(text) => {
                from = parent.dir;
                path = std::borrow::Cow::Owned(text);
            }
        }
    }
}

fn open_tmpfile(
    cred: &Cred,
    root: RootRef<'_>,
    from: Path,
    path: &[u8],
    flags: i32,
    mode: NewMode,
    lookup: LookupFlags,
) -> Result<Opened> {
    if flags & libc::O_DIRECTORY == 0 || flags & libc::O_ACCMODE == libc::O_RDONLY {
        return Err(Errno::EINVAL);
    }
    let dir = Resolver::new(cred, root, lookup | LookupFlags::DIRECTORY).resolve(from, path)?;
    permission(&dir, cred, MAY_WRITE | MAY_EXEC)?;
    let place = ops::tmpfile(&dir, mode, cred, flags & libc::O_EXCL == 0)?;
    open_existing(place, flags & !libc::O_DIRECTORY, cred, true)
}

/// Opens the object at a place for a task, as if by `/proc/self/fd/N`.
pub fn open_place(place: Path, flags: i32, cred: &Cred) -> Result<Arc<File>> {
    open_existing(place, flags, cred, false)?.file()
}

/// Opens what stands at `place`; no permission is asked for when `created` just now.
fn open_existing(place: Path, flags: i32, cred: &Cred, created: bool) -> Result<Opened> {
    let access = flags & libc::O_ACCMODE;
    let truncate = flags & libc::O_TRUNC != 0 && !created;
    if flags & libc::O_DIRECTORY != 0 && !place.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    match place.kind() {
        libc::S_IFLNK => return Err(Errno::ELOOP),
        libc::S_IFDIR if access != libc::O_RDONLY || flags & libc::O_CREAT != 0 || truncate => {
            return Err(Errno::EISDIR)
        }
        libc::S_IFCHR | libc::S_IFBLK
            if place.mount().flags().contains(MountFlags::NODEV) || place.mount().sb().hides_devices() =>
        {
            return Err(Errno::EACCES)
        }
        _ => {}
    }
    let mut judged = None;
    if !created {
        let mut mask = match access {
            libc::O_RDONLY => MAY_READ,
            libc::O_WRONLY => MAY_WRITE,
            _ => MAY_READ | MAY_WRITE,
        };
        if truncate {
            mask |= MAY_WRITE;
        }
        permission(&place, cred, mask)?;
        judged = Some(mask);
    }
    if flags & libc::O_NOATIME != 0 && !owner_or_capable(place.inode().perm()?, cred) {
        return Err(Errno::EPERM);
    }
    let keep = flags & !CREATION;
    match place.kind() {
        libc::S_IFSOCK => return Err(Errno::ENXIO),
        libc::S_IFIFO => return Ok(Opened::Fifo(place, keep)),
        _ => {}
    }
    let writes = access != libc::O_RDONLY || truncate;
    if let Some(leases) = lease::stop(place.inode(), writes).filter(|_| !created) {
        if flags & libc::O_NONBLOCK != 0 {
            return Err(Errno::EAGAIN);
        }
        return Ok(Opened::Leased(leases, writes));
    }
    let writer = if writes && place.kind() == libc::S_IFREG { deny::write_access(&place)? } else { None };
    // Truncation is ours to do; the flag says to a file system that the content is not worth copying.
    let hint = keep | (flags & libc::O_NOCTTY) | if truncate { libc::O_TRUNC } else { 0 };
    let ops = place.inode().clone().open(hint)?;
    if let Some(mask) = judged.filter(|_| !place.inode().volatile()) {
        // By what the file system knows now: it may have learned more in opening it.
        permission(&place, cred, mask)?;
    }
    if truncate && place.kind() == libc::S_IFREG {
        let mode = without_set_ids(place.inode().perm()?.mode).filter(|_| !cred.has(crate::kernel::cred::CAP_FSETID));
        let mtime = Some(Timespec::now());
        place.inode().set_attr(&SetAttr { size: Some(0), mode, mtime, ..SetAttr::default() })?;
        place.inode().drop_caps();
    }
    if truncate {
        inotify::event(&place, libc::IN_MODIFY);
    }
    inotify::event(&place, libc::IN_OPEN);
    let writer = writer.filter(|_| access != libc::O_RDONLY);
    Ok(Opened::File(File::with_writer(ops, keep, Some(place), writer)))
}
