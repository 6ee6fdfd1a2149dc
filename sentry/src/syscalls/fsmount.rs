//! The mount calls that work on descriptors: open_tree(2), move_mount(2), fsopen(2), fsconfig(2), fsmount(2),
//! fspick(2), mount_setattr(2).

use super::arg::*;
use super::mount::{is_root, may_mount, with_mounter};
use super::Ctx;
use crate::error::{Errno, Result, SysResult, LATER};
use crate::fs::fscontext::{DetachedFile, FsContextFile, Phase};
use crate::fs::fstype::{Config, Type};
use crate::fs::vfs::{resolve, DetachedTree, LookupFlags, Mount, MountFlags, MountNamespace, Path, PropagationType};
use crate::fs::{File, Noop};
use crate::kernel::cred::CAP_SYS_ADMIN;
use platform::executor::Rounds;

const AT_RECURSIVE: u32 = 0x8000;
const AT_EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;
const AT_NO_AUTOMOUNT: u32 = libc::AT_NO_AUTOMOUNT as u32;
const AT_SYMLINK_NOFOLLOW: u32 = libc::AT_SYMLINK_NOFOLLOW as u32;

fn find(cx: &Ctx<'_>, dirfd: i32, path: u64, follow: bool, empty: bool) -> Result<Path> {
    let path = cx.read_path(path)?;
    let mut flags = LookupFlags::empty();
    flags.set(LookupFlags::FOLLOW, follow);
    flags.set(LookupFlags::EMPTY_PATH, empty);
    resolve(cx.task, dirfd, &path, flags)
}

pub fn open_tree(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, flags: u32) -> SysResult {
    const CLONE: u32 = 1;
    const CLOEXEC: u32 = libc::O_CLOEXEC as u32;
    let known = AT_EMPTY_PATH | AT_NO_AUTOMOUNT | AT_RECURSIVE | AT_SYMLINK_NOFOLLOW | CLONE | CLOEXEC;
    if flags & !known != 0 || flags & (AT_RECURSIVE | CLONE) == AT_RECURSIVE {
        return Err(Errno::EINVAL.into());
    }
    let ns = (flags & CLONE != 0).then(|| may_mount(cx)).transpose()?;
    let place = find(cx, dirfd.0, path.0, flags & AT_SYMLINK_NOFOLLOW == 0, flags & AT_EMPTY_PATH != 0)?;
    let file = match ns {
        Some(ns) => DetachedFile::open(ns.detached_copy(&place, flags & AT_RECURSIVE != 0)?),
        None => File::new(Box::new(Noop), libc::O_PATH, Some(place)),
    };
    Ok(cx.task.install_fd(file, flags & CLOEXEC != 0)? as u64)
}

pub fn move_mount(cx: &mut Ctx<'_>, from_fd: Fd, from: PathPtr, to_fd: Fd, to: PathPtr, flags: u32) -> SysResult {
    const F_SYMLINKS: u32 = 1;
    const F_EMPTY_PATH: u32 = 4;
    const T_SYMLINKS: u32 = 0x10;
    const T_EMPTY_PATH: u32 = 0x40;
    const SET_GROUP: u32 = 0x100;
    const BENEATH: u32 = 0x200;
    const KNOWN: u32 = 0x377;
    let ns = may_mount(cx)?;
    // A group cannot be joined, and nothing put beneath a mount: as before Linux 5.15 and 6.5.
    if flags & !KNOWN != 0 || flags & (SET_GROUP | BENEATH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let has = |b: u32| flags & b != 0;
    let from = find(cx, from_fd.0, from.0, has(F_SYMLINKS), has(F_EMPTY_PATH))?;
    let to = find(cx, to_fd.0, to.0, has(T_SYMLINKS), has(T_EMPTY_PATH))?;
    ns.move_mount(&from, &to)?;
    Ok(0)
}

pub fn fsopen(cx: &mut Ctx<'_>, name: Addr, flags: u32) -> SysResult {
    const CLOEXEC: u32 = 1;
    may_mount(cx)?;
    if flags & !CLOEXEC != 0 {
        return Err(Errno::EINVAL.into());
    }
    let name = cx.read_cstr(name.0, 4096, Errno::EINVAL)?;
    let file = FsContextFile::open(Config::new(Type::find(&name)?), Phase::Options);
    Ok(cx.task.install_fd(file, flags & CLOEXEC != 0)? as u64)
}

pub fn fspick(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, flags: u32) -> SysResult {
    const CLOEXEC: u32 = 1;
    const NOFOLLOW: u32 = 2;
    const NO_AUTOMOUNT: u32 = 4;
    const EMPTY_PATH: u32 = 8;
    may_mount(cx)?;
    if flags & !(CLOEXEC | NOFOLLOW | NO_AUTOMOUNT | EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let place = find(cx, dirfd.0, path.0, flags & NOFOLLOW == 0, flags & EMPTY_PATH != 0)?;
    if !is_root(&place) {
        return Err(Errno::EINVAL.into());
    }
    let sb = place.mount().sb().clone();
    let kind = Type::find(sb.fstype.as_bytes()).map_err(|_| Errno::EOPNOTSUPP)?;
    let mut config = Config::new(kind);
    config.read_only = sb.read_only();
    let file = FsContextFile::open(config, Phase::Change(sb));
    Ok(cx.task.install_fd(file, flags & CLOEXEC != 0)? as u64)
}

const SET_FLAG: u32 = 0;
const SET_STRING: u32 = 1;
const SET_BINARY: u32 = 2;
const SET_PATH: u32 = 3;
const SET_PATH_EMPTY: u32 = 4;
const SET_FD: u32 = 5;
const CMD_CREATE: u32 = 6;
const CMD_RECONFIGURE: u32 = 7;
const CMD_CREATE_EXCL: u32 = 8;

/// Whether the arguments fit the request.
fn check_fsconfig(cmd: u32, key: bool, value: bool, aux: i32) -> Result<()> {
    let fits = match cmd {
        SET_FLAG => key && !value && aux == 0,
        SET_STRING => key && value && aux == 0,
        SET_BINARY => key && value && (1..=1 << 20).contains(&aux),
        SET_PATH | SET_PATH_EMPTY => key && value && (aux == libc::AT_FDCWD || aux >= 0),
        SET_FD => key && !value && aux >= 0,
        CMD_CREATE | CMD_RECONFIGURE | CMD_CREATE_EXCL => !key && !value && aux == 0,
        _ => return Err(Errno::EOPNOTSUPP),
    };
    fits.then_some(()).ok_or(Errno::EINVAL)
}

pub fn fsconfig(cx: &mut Ctx<'_>, fd: Fd, cmd: u32, key: Addr, value: Addr, aux: i32) -> SysResult {
    if fd.0 < 0 {
        return Err(Errno::EINVAL.into());
    }
    check_fsconfig(cmd, !key.is_null(), !value.is_null(), aux)?;
    let file = cx.io_file(fd.0)?;
    let context = FsContextFile::of(&file)?;
    let text = |cx: &Ctx<'_>, a: Addr, most: usize| -> Result<Option<Vec<u8>>> {
        (!a.is_null()).then(|| cx.read_cstr(a.0, most, Errno::EINVAL)).transpose()
    };
    let key = text(cx, key, 256)?;
    match cmd {
        CMD_CREATE | CMD_CREATE_EXCL => create(cx, context)?,
        CMD_RECONFIGURE => reconfigure(cx, context)?,
        SET_FLAG | SET_STRING => {
            let value = text(cx, value, 4096)?;
            let mut s = context.state.lock();
            if !matches!(s.phase, Phase::Options | Phase::Change(_)) {
                return Err(Errno::EBUSY.into());
            }
            s.config.set(&key.unwrap_or_default(), value.as_deref())?;
        }
        // No type has an option whose value is a blob, a path or a descriptor.
        _ => return Err(Errno::EINVAL.into()),
    }
    Ok(0)
}

fn create(cx: &Ctx<'_>, context: &FsContextFile) -> Result<()> {
    let config = {
        let mut s = context.state.lock();
        if !matches!(s.phase, Phase::Options) {
            return Err(Errno::EBUSY);
        }
        s.phase = Phase::Failed;
        s.config.clone()
    };
    let made = with_mounter(cx, |m| {
        config.permit(m)?;
        config.create(m)
    });
    match made {
        Ok(root) => {
            context.state.lock().phase = Phase::Made(root);
            Ok(())
        }
        // The dispatcher repeats the call after `LATER`.
        Err(e @ (Errno::EPERM | LATER)) => {
            context.state.lock().phase = Phase::Options;
            Err(e)
        }
        Err(e) => Err(e),
    }
}

fn reconfigure(cx: &Ctx<'_>, context: &FsContextFile) -> Result<()> {
    let s = context.state.lock();
    let Phase::Change(sb) = &s.phase else { return Err(Errno::EBUSY) };
    if !cx.task.cred().capable_in(&sb.owner(), CAP_SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    sb.set_read_only(s.config.read_only)
}

/// `MOUNT_ATTR_*`.
const ATTR_RDONLY: u64 = 1;
const ATTR_NOSUID: u64 = 2;
const ATTR_NODEV: u64 = 4;
const ATTR_NOEXEC: u64 = 8;
const ATTR_ATIME: u64 = 0x70;
const ATTR_NOATIME: u64 = 0x10;
const ATTR_STRICTATIME: u64 = 0x20;
const ATTR_NODIRATIME: u64 = 0x80;
const ATTR_IDMAP: u64 = 0x10_0000;
const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;
const ATTR_PLAIN: u64 = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | ATTR_NODIRATIME | ATTR_NOSYMFOLLOW;

/// The flags that stand for attributes, those of access times apart.
fn plain_flags(attrs: u64) -> MountFlags {
    let all = [
        (ATTR_RDONLY, MountFlags::RDONLY),
        (ATTR_NOSUID, MountFlags::NOSUID),
        (ATTR_NODEV, MountFlags::NODEV),
        (ATTR_NOEXEC, MountFlags::NOEXEC),
        (ATTR_NODIRATIME, MountFlags::NODIRATIME),
        (ATTR_NOSYMFOLLOW, MountFlags::NOSYMFOLLOW),
    ];
    all.iter().filter(|(a, _)| attrs & a != 0).fold(MountFlags::empty(), |f, (_, flag)| f | *flag)
}

fn atime_flags(attrs: u64) -> Result<MountFlags> {
    match attrs & ATTR_ATIME {
        0 => Ok(MountFlags::RELATIME),
        ATTR_NOATIME => Ok(MountFlags::NOATIME),
        ATTR_STRICTATIME => Ok(MountFlags::empty()),
        _ => Err(Errno::EINVAL),
    }
}

pub fn fsmount(cx: &mut Ctx<'_>, fd: Fd, flags: u32, attrs: u32) -> SysResult {
    const CLOEXEC: u32 = 1;
    let ns = may_mount(cx)?;
    let attrs = u64::from(attrs);
    if flags & !CLOEXEC != 0 || attrs & !(ATTR_PLAIN | ATTR_ATIME) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let own = plain_flags(attrs) | atime_flags(attrs)?;
    let file = cx.io_file(fd.0)?;
    let context = FsContextFile::of(&file)?;
    let (root, config) = {
        let s = context.state.lock();
        match &s.phase {
            Phase::Made(root) => (root.clone(), s.config.clone()),
            Phase::Change(_) => return Err(Errno::EBUSY.into()),
            Phase::Options | Phase::Failed => return Err(Errno::EINVAL.into()),
        }
    };
    let tree = DetachedTree::new(config.mount(root.clone(), own, &ns)?, ns.common().owner())?;
    let fd = cx.task.install_fd(DetachedFile::open(tree), flags & CLOEXEC != 0)?;
    context.state.lock().phase = Phase::Change(root.sb().clone());
    Ok(fd as u64)
}

/// A checked `struct mount_attr`.
struct Change {
    set: MountFlags,
    clear: MountFlags,
    propagation: Option<PropagationType>,
}

impl Change {
    /// `None`: nothing is to change.
    fn of(set: u64, clear: u64, propagation: u64) -> Result<Option<Change>> {
        if set == 0 && clear == 0 && propagation == 0 {
            return Ok(None);
        }
        let propagation = if propagation == 0 { None } else { Some(PropagationType::of_flag(propagation)?) };
        // No file system here can be mounted with other ids.
        if (set | clear) & !(ATTR_PLAIN | ATTR_ATIME) != 0 || set & ATTR_IDMAP != 0 {
            return Err(Errno::EINVAL);
        }
        let mut change = Change { set: plain_flags(set), clear: plain_flags(clear), propagation };
        match clear & ATTR_ATIME {
            0 if set & ATTR_ATIME != 0 => return Err(Errno::EINVAL),
            0 => {}
            ATTR_ATIME => {
                change.clear |= MountFlags::NOATIME | MountFlags::RELATIME;
                change.set |= atime_flags(set)?;
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(Some(change))
    }
    fn apply(&self, ns: &MountNamespace, place: &Path, recursive: bool) -> Result<()> {
        let all = ns.changeable(place, recursive)?;
        let next = |m: &Mount| (m.flags() - self.clear) | self.set;
        let mut rounds = Rounds::new();
        if all.iter().any(|m| !m.may_become(next(m))) {
            return Err(Errno::EPERM);
        }
        for m in &all {
            rounds.next();
            m.set_flags(next(m));
        }
        match self.propagation {
            Some(to) => ns.change_type(place, to, recursive),
            None => Ok(()),
        }
    }
}

pub fn mount_setattr(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, flags: u32, attr: Addr, size: usize) -> SysResult {
    const SIZE: usize = 32;
    if flags & !(AT_EMPTY_PATH | AT_RECURSIVE | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) != 0 {
        return Err(Errno::EINVAL.into());
    }
    if size > 4096 {
        return Err(Errno::E2BIG.into());
    }
    if size < SIZE {
        return Err(Errno::EINVAL.into());
    }
    let ns = may_mount(cx)?;
    let mut raw = vec![0u8; size];
    cx.read_bytes(attr.0, &mut raw)?;
    if raw.iter().skip(SIZE).any(|&b| b != 0) {
        return Err(Errno::E2BIG.into());
    }
    let word =
        |i: usize| raw.chunks_exact(8).nth(i).and_then(|c| c.first_chunk()).map_or(0, |c| u64::from_le_bytes(*c));
    let Some(change) = Change::of(word(0), word(1), word(2))? else { return Ok(0) };
    let place = find(cx, dirfd.0, path.0, flags & AT_SYMLINK_NOFOLLOW == 0, flags & AT_EMPTY_PATH != 0)?;
    change.apply(&ns, &place, flags & AT_RECURSIVE != 0)?;
    Ok(0)
}
