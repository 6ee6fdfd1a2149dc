//! Who may do what: discretionary access control with capabilities (path_resolution(7), capabilities(7), inode(7)).

use super::Path;
use crate::error::{Errno, Result};
use crate::fs::{Inode, Perm, SetAttr};
use crate::kernel::cred::*;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

pub const MAY_EXEC: u32 = 1;
pub const MAY_WRITE: u32 = 2;
pub const MAY_READ: u32 = 4;

/// Whether `cred` may do `mask` (`MAY_*`) to an object of these attributes.
pub fn check(p: Perm, cred: &Cred, mask: u32) -> Result<()> {
    let bits = if cred.fsuid == p.uid {
        p.mode >> 6
    } else if cred.in_group(p.gid) {
        p.mode >> 3
    } else {
        p.mode
    };
    if mask & !bits & 7 == 0 || by_cap(p, cred, mask) {
        Ok(())
    } else {
        Err(Errno::EACCES)
    }
}

/// Whether capabilities allow it, whatever the mode says.
fn by_cap(p: Perm, cred: &Cred, mask: u32) -> bool {
    let has = |cap| cred.capable_over(p.uid, p.gid, cap);
    if p.mode & libc::S_IFMT == libc::S_IFDIR {
        has(CAP_DAC_OVERRIDE) || (mask & MAY_WRITE == 0 && has(CAP_DAC_READ_SEARCH))
    } else {
        (mask == MAY_READ && has(CAP_DAC_READ_SEARCH))
            || ((mask & MAY_EXEC == 0 || p.mode & 0o111 != 0) && has(CAP_DAC_OVERRIDE))
    }
}

/// Whether `cred` may do `mask` to this object: by its access control list if it has one, or else by its mode.
pub fn check_inode(inode: &Arc<dyn Inode>, cred: &Cred, mask: u32) -> Result<()> {
    check_list(inode, cred, mask).map(|_| ())
}

/// As `check_inode`; tells whether a list was looked at, which may be long.
fn check_list(inode: &Arc<dyn Inode>, cred: &Cred, mask: u32) -> Result<bool> {
    let p = inode.perm()?;
    // A list counts for all but the owner, and (as on Linux) only if the group bits, its mask, allow anything.
    if cred.fsuid == p.uid || p.mode & libc::S_IRWXG == 0 || by_cap(p, cred, mask) {
        return check(p, cred, mask).map(|()| false);
    }
    match inode.acl()? {
        None => check(p, cred, mask).map(|()| false),
        Some(acl) if acl.permits(p, cred, mask & 7) => Ok(true),
        Some(_) => Err(Errno::EACCES),
    }
}

/// May the directory be searched? The check that every step of a walk makes. Tells whether an access control list was looked at.
#[inline]
pub fn search(dir: &Arc<dyn Inode>, cred: &Cred) -> Result<bool> {
    if cred.effective & (CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH) != 0
        && (cred.user_ns.is_initial() || by_cap(dir.perm()?, cred, MAY_EXEC))
    {
        return Ok(false);
    }
    check_list(dir, cred, MAY_EXEC)
}

/// As `check` for a place: also `EROFS` for writing to a file or directory of a read-only mount.
pub fn permission(path: &Path, cred: &Cred, mask: u32) -> Result<()> {
    if mask & MAY_WRITE != 0
        && path.mount().read_only()
        && matches!(path.kind(), libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK)
    {
        return Err(Errno::EROFS);
    }
    check_inode(path.inode(), cred, mask)
}

/// `EROFS` on a read-only mount.
pub fn want_write(path: &Path) -> Result<()> {
    if path.mount().read_only() {
        return Err(Errno::EROFS);
    }
    Ok(())
}

/// Owner of the object, or allowed to act as it.
pub fn owner_or_capable(p: Perm, cred: &Cred) -> bool {
    cred.fsuid == p.uid || cred.capable_over_user(p.uid, CAP_FOWNER)
}

/// May `cred` remove or rename `victim` in the directory `dir`, on which it may write? (sticky bit)
pub fn sticky(dir: Perm, victim: Perm, cred: &Cred) -> Result<()> {
    let owns = cred.fsuid == victim.uid || cred.fsuid == dir.uid;
    if dir.mode & libc::S_ISVTX == 0 || owns || cred.capable_over(victim.uid, victim.gid, CAP_FOWNER) {
        return Ok(());
    }
    Err(Errno::EPERM)
}

/// `fs.protected_hardlinks`, `_symlinks`, `_fifos` and `_regular` (proc_sys_fs(5)).
pub static PROTECTED_HARDLINKS: AtomicU64 = AtomicU64::new(1);
pub static PROTECTED_SYMLINKS: AtomicU64 = AtomicU64::new(0);
pub static PROTECTED_FIFOS: AtomicU64 = AtomicU64::new(0);
pub static PROTECTED_REGULAR: AtomicU64 = AtomicU64::new(0);

/// May `cred` give the object another name? With `protected_hardlinks` only what it owns, or may read and write and is no program that gives rights.
pub fn may_link(inode: &Arc<dyn Inode>, cred: &Cred) -> Result<()> {
    if PROTECTED_HARDLINKS.load(Relaxed) == 0 {
        return Ok(());
    }
    let p = inode.perm()?;
    let safe = p.mode & libc::S_IFMT == libc::S_IFREG
        && without_set_ids(p.mode).is_none()
        && check_inode(inode, cred, MAY_READ | MAY_WRITE).is_ok();
    if safe || owner_or_capable(p, cred) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// May `cred` follow the symbolic link, the last of a path, that is in `dir`? With `protected_symlinks` not in a sticky directory that all may write to,
/// unless the link is its own or the directory's owner's.
pub fn may_follow(dir: &Arc<dyn Inode>, link: &Arc<dyn Inode>, cred: &Cred) -> Result<()> {
    const STICKY: u32 = libc::S_ISVTX | libc::S_IWOTH;
    if PROTECTED_SYMLINKS.load(Relaxed) == 0 {
        return Ok(());
    }
    let (d, l) = (dir.perm()?, link.perm()?);
    if d.mode & STICKY != STICKY || l.uid == cred.fsuid || l.uid == d.uid {
        Ok(())
    } else {
        Err(Errno::EACCES)
    }
}

/// May an open with `O_CREAT` take what is there already in `dir`? With `protected_fifos` and `protected_regular` not the FIFO or file of another user in a
/// sticky directory that all (with 2: or the group) may write to, unless the directory's owner has made it.
pub fn may_create_over(dir: &Arc<dyn Inode>, there: &Arc<dyn Inode>, cred: &Cred) -> Result<()> {
    let (fifos, regular) = (PROTECTED_FIFOS.load(Relaxed), PROTECTED_REGULAR.load(Relaxed));
    if (fifos, regular) == (0, 0) {
        return Ok(());
    }
    let (d, p) = (dir.perm()?, there.perm()?);
    let level = match p.mode & libc::S_IFMT {
        libc::S_IFIFO => fifos,
        libc::S_IFREG => regular,
        _ => 0,
    };
    let shared = d.mode & libc::S_IWOTH != 0 || (level >= 2 && d.mode & libc::S_IWGRP != 0);
    if level == 0 || d.mode & libc::S_ISVTX == 0 || p.uid == d.uid || p.uid == cred.fsuid || !shared {
        Ok(())
    } else {
        Err(Errno::EACCES)
    }
}

/// What a program could do beyond its caller's rights goes when its content is written (`file_remove_privs`): file capabilities
/// always, set-id bits unless the writer may keep them (`CAP_FSETID`).
pub fn remove_privs(inode: &Arc<dyn Inode>, cred: impl FnOnce() -> Arc<Cred>) {
    inode.drop_caps();
    let Ok(perm) = inode.perm() else { return };
    if perm.mode & (libc::S_ISUID | libc::S_ISGID) == 0 {
        return;
    }
    if let Some(mode) = without_set_ids(perm.mode).filter(|_| !cred().has(CAP_FSETID)) {
        // The data is written; a file system that cannot change the mode has no set-id program either.
        let _ = inode.set_attr(&SetAttr { mode: Some(mode), ..SetAttr::default() });
    }
}

/// The mode without set-id bits, as after a write or a change of owner by someone without `CAP_FSETID`: set-group-ID
/// without group execution stays (mandatory locking mark). `None` if nothing changes.
pub fn without_set_ids(mode: u32) -> Option<u32> {
    let mut kill = mode & libc::S_ISUID;
    if mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP {
        kill |= libc::S_ISGID;
    }
    (kill != 0 && mode & libc::S_IFMT == libc::S_IFREG).then_some(mode & 0o7777 & !kill)
}
