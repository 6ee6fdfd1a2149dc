//! What changes the tree: create, link, unlink, rename; and what changes attributes. Each checks what Linux checks, in its order, then
//! asks the inode, then tells the dentry cache.

use super::dentry::Children;
use super::perm::*;
use super::walk::{self, Last, Parent};
use super::{mount, mount_ns, Dentry, Path};
use crate::error::{Errno, Result};
use crate::fs::acl::{self, Acl};
use crate::fs::*;
use crate::kernel::cred::*;
use crate::kernel::current;
use std::sync::atomic::Ordering;
use std::sync::Arc;

const NAME_MAX: usize = 255;

/// Group and mode of a new object: a set-group-ID directory hands its group down.
fn inherit(dir: &Arc<dyn Inode>, kind_dir: bool, mode: u32, cred: &Cred) -> Result<(u32, u32)> {
    let d = dir.perm()?;
    if d.mode & libc::S_ISGID == 0 {
        return Ok((mode, cred.fsgid));
    }
    let mode = if kind_dir {
        mode | libc::S_ISGID
    } else if mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP
        && !cred.in_group(d.gid)
        && !cred.capable_over(d.uid, d.gid, CAP_FSETID)
    {
        mode & !libc::S_ISGID
    } else {
        mode
    };
    Ok((mode, d.gid))
}

/// The mode of a new object, and the umask, which counts unless its directory has a default access control list.
#[derive(Clone, Copy)]
pub struct NewMode {
    pub mode: u32,
    pub umask: u32,
}

impl From<u32> for NewMode {
    fn from(mode: u32) -> Self {
        NewMode { mode, umask: 0 }
    }
}

/// What a new object gets of its directory: mode and group, and access control lists.
struct Inherited {
    mode: u32,
    gid: u32,
    access: Option<Acl>,
    default: Option<Acl>,
}

impl Inherited {
    fn of(dir: &Arc<dyn Inode>, node: &NewNode<'_>, new: NewMode, cred: &Cred) -> Result<Inherited> {
        let is_dir = matches!(node, NewNode::Dir);
        let (mode, gid) = inherit(dir, is_dir, new.mode, cred)?;
        if matches!(node, NewNode::Symlink(_)) {
            return Ok(Inherited { mode, gid, access: None, default: None });
        }
        let Some(default) = dir.default_acl()? else {
            return Ok(Inherited { mode: mode & !new.umask, gid, access: None, default: None });
        };
        let (access, mode) = default.for_new(mode);
        let access = Some(access).filter(Acl::is_extended);
        Ok(Inherited { mode, gid, access, default: Some(default).filter(|_| is_dir) })
    }

    fn give_lists(&self, inode: &Arc<dyn Inode>) -> Result<()> {
        for (name, list) in [(acl::ACCESS, &self.access), (acl::DEFAULT, &self.default)] {
            if let Some(list) = list {
                inode.set_xattr(name, &list.to_bytes(), 0)?;
            }
        }
        Ok(())
    }
}

fn make(
    dir: &Path,
    c: &mut Children,
    name: &[u8],
    node: NewNode<'_>,
    new: NewMode,
    cred: &Cred,
) -> Result<Arc<Dentry>> {
    let own = Inherited::of(dir.inode(), &node, new, cred)?;
    let is_dir = matches!(node, NewNode::Dir);
    let inode = dir.inode().create(name, node, own.mode, cred.fsuid, own.gid)?;
    if let Err(e) = own.give_lists(&inode) {
        let dir = dir.inode();
        let _ = if is_dir { dir.rmdir(name, &inode) } else { dir.unlink(name, &inode) };
        return Err(e);
    }
    let d = dir.dentry().insert(c, name, inode)?;
    inotify::entry(dir.inode(), name, is_dir, libc::IN_CREATE, 0);
    Ok(d)
}

fn may_create(dir: &Path, c: &Children, cred: &Cred) -> Result<()> {
    want_write(dir)?;
    if c.dead {
        return Err(Errno::ENOENT);
    }
    check_inode(dir.inode(), cred, MAY_WRITE | MAY_EXEC)
}

/// Makes a new object. `slash`: the name ended in a slash, which only a directory may.
pub fn create(
    dir: &Path,
    name: &[u8],
    node: NewNode<'_>,
    mode: impl Into<NewMode>,
    cred: &Cred,
    slash: bool,
) -> Result<Path> {
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut c = dir.dentry().lock();
    if dir.dentry().lookup_locked(&mut c, name)?.is_some() {
        return Err(Errno::EEXIST);
    }
    if slash && !matches!(node, NewNode::Dir) {
        return Err(Errno::ENOENT);
    }
    may_create(dir, &c, cred)?;
    if matches!(node, NewNode::Char(_) | NewNode::Block(_)) && !cred.has(CAP_MKNOD) {
        return Err(Errno::EPERM);
    }
    let d = make(dir, &mut c, name, node, mode.into(), cred)?;
    Ok(Path::new(dir.mount().clone(), d))
}

/// For open(2) with `O_CREAT`: a new regular file (second value true), or what someone else made meanwhile.
pub(super) fn create_or_find(dir: &Path, name: &[u8], mode: NewMode, cred: &Cred) -> Result<(Path, bool)> {
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut c = dir.dentry().lock();
    if let Some(d) = dir.dentry().lookup_locked(&mut c, name)? {
        return Ok((walk::topmost(dir, d), false));
    }
    may_create(dir, &c, cred)?;
    let d = make(dir, &mut c, name, NewNode::File, mode, cred)?;
    Ok((Path::new(dir.mount().clone(), d), true))
}

/// A regular file without a name (`O_TMPFILE`); `linkable`: linkat(2) may give it one.
pub(super) fn tmpfile(dir: &Path, mode: NewMode, cred: &Cred, linkable: bool) -> Result<Path> {
    want_write(dir)?;
    let own = Inherited::of(dir.inode(), &NewNode::File, mode, cred)?;
    let inode = dir.inode().tmpfile(own.mode, cred.fsuid, own.gid, linkable)?;
    own.give_lists(&inode)?;
    let name = format!("#{}", inode.attr()?.ino);
    let d = dir.dentry().nameless(inode, name.as_bytes())?;
    Ok(Path::new(dir.mount().clone(), d))
}

/// The kind of object that is to be removed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Remove {
    File,
    Dir,
}

fn may_delete(dir: &Path, victim: &Arc<Dentry>, cred: &Cred, how: Remove) -> Result<()> {
    check_inode(dir.inode(), cred, MAY_WRITE | MAY_EXEC)?;
    sticky(dir.inode().perm()?, victim.inode().perm()?, cred)?;
    match how {
        Remove::Dir if !victim.is_dir() => Err(Errno::ENOTDIR),
        Remove::File if victim.is_dir() => Err(Errno::EISDIR),
        _ => Ok(()),
    }
}

/// `EBUSY` for what something is mounted on in the caller's namespace. Others' mounts hold nothing up: they go with the name.
fn busy(d: &Arc<Dentry>) -> Result<()> {
    if d.mounted.load(Ordering::Acquire) == 0 {
        return Ok(());
    }
    let Some(task) = current::get() else { return Err(Errno::EBUSY) };
    let ns = task.ns().mnt.clone();
    let on = mount::on_dentry(d);
    if on.iter().any(|m| ns.has(m)) {
        return Err(Errno::EBUSY);
    }
    Ok(())
}

/// The name of `d` has gone, and what others have mounted on it goes as well.
fn unmount_all(d: &Arc<Dentry>) {
    if d.mounted.load(Ordering::Acquire) > 0 {
        mount_ns::unmount_all(d);
    }
}

/// unlink(2) and rmdir(2).
pub fn remove(at: &Parent, how: Remove, cred: &Cred) -> Result<()> {
    let name = match (&at.last, how) {
        (Last::Name(n), _) => n,
        (_, Remove::File) => return Err(Errno::EISDIR),
        (Last::Dot, Remove::Dir) => return Err(Errno::EINVAL),
        (Last::DotDot, Remove::Dir) => return Err(Errno::ENOTEMPTY),
        (Last::Root, Remove::Dir) => return Err(Errno::EBUSY),
    };
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let dir = &at.dir;
    want_write(dir)?;
    let mut c = dir.dentry().lock();
    let victim = dir.dentry().lookup_locked(&mut c, name)?.ok_or(Errno::ENOENT)?;
    if at.slash && how == Remove::File {
        return Err(if victim.is_dir() { Errno::EISDIR } else { Errno::ENOTDIR });
    }
    may_delete(dir, &victim, cred, how)?;
    busy(&victim)?;
    match how {
        Remove::File => dir.inode().unlink(name, victim.inode())?,
        Remove::Dir => {
            let mut v = victim.lock();
            dir.inode().rmdir(name, victim.inode())?;
            v.dead = true;
        }
    }
    dir.dentry().removed(&mut c, name, &victim);
    drop(c);
    unmount_all(&victim);
    inotify::entry(dir.inode(), name, victim.is_dir(), libc::IN_DELETE, 0);
    inotify::removed(victim.inode(), victim.is_dir());
    Ok(())
}

/// link(2): another name for `target`.
pub fn link(target: &Path, at: &Parent, cred: &Cred) -> Result<()> {
    let dir = &at.dir;
    let name = at.name(Errno::EEXIST)?;
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut c = dir.dentry().lock();
    if dir.dentry().lookup_locked(&mut c, name)?.is_some() {
        return Err(Errno::EEXIST);
    }
    if at.slash {
        return Err(Errno::ENOENT);
    }
    want_write(dir)?;
    if !Arc::ptr_eq(target.mount(), dir.mount()) {
        return Err(Errno::EXDEV);
    }
    may_link(target.inode(), cred)?;
    may_create(dir, &c, cred)?;
    if target.is_dir() {
        return Err(Errno::EPERM);
    }
    dir.inode().link(name, target.inode())?;
    dir.dentry().insert(&mut c, name, target.inode().clone())?;
    inotify::entry(dir.inode(), name, false, libc::IN_CREATE, 0);
    inotify::itself(target.inode(), libc::IN_ATTRIB);
    Ok(())
}

/// renameat2(2).
pub fn rename(from: &Parent, to: &Parent, flags: RenameFlags, cred: &Cred) -> Result<()> {
    if !Arc::ptr_eq(from.dir.mount(), to.dir.mount()) {
        return Err(Errno::EXDEV);
    }
    let old_name = from.name(Errno::EBUSY)?;
    let new_name = to.name(if flags.contains(RenameFlags::NOREPLACE) { Errno::EEXIST } else { Errno::EBUSY })?;
    if old_name.len() > NAME_MAX || new_name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    want_write(&from.dir)?;
    let sb = from.dir.dentry().sb().clone();
    let moving = sb.rename.write();
    let (old_dir, new_dir) = (from.dir.dentry(), to.dir.dentry());
    let same = Arc::ptr_eq(old_dir, new_dir);
    let (mut a, mut b) = Dentry::lock_both(old_dir, (!same).then_some(new_dir));
    let old = old_dir.lookup_locked(&mut a, old_name)?.ok_or(Errno::ENOENT)?;
    let new = new_dir.lookup_locked(b.as_deref_mut().unwrap_or(&mut a), new_name)?;
    let exchange = flags.contains(RenameFlags::EXCHANGE);
    match &new {
        Some(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(Errno::EEXIST),
        None if exchange => return Err(Errno::ENOENT),
        _ => {}
    }
    if let Some(n) = &new {
        if exchange && !n.is_dir() && to.slash {
            return Err(Errno::ENOTDIR);
        }
    }
    if !old.is_dir() && (from.slash || (!exchange && to.slash)) {
        return Err(Errno::ENOTDIR);
    }
    // Only a directory is above another one, and none above the directory that it lies in.
    if !same && old.is_dir() && new_dir.is_within(&old)? {
        return Err(Errno::EINVAL);
    }
    let into = new.as_ref().filter(|n| !same && n.is_dir());
    if into.map_or(Ok(false), |n| old_dir.is_within(n))? {
        return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
    }
    if new.as_ref().is_some_and(|n| Arc::ptr_eq(n, &old) || Arc::ptr_eq(n.inode(), old.inode())) {
        return Ok(());
    }
    let kind = |d: &Arc<Dentry>| if d.is_dir() { Remove::Dir } else { Remove::File };
    may_delete(&from.dir, &old, cred, kind(&old))?;
    match &new {
        None => may_create(&to.dir, b.as_deref().unwrap_or(&a), cred)?,
        Some(n) => may_delete(&to.dir, n, cred, if exchange { kind(n) } else { kind(&old) })?,
    }
    if !same {
        // `..` of a moved directory changes: that is a write to it.
        let moves_dir = |d: &Arc<Dentry>| -> Result<()> {
            if d.is_dir() {
                check_inode(d.inode(), cred, MAY_WRITE)?;
            }
            Ok(())
        };
        moves_dir(&old)?;
        if let (true, Some(n)) = (exchange, &new) {
            moves_dir(n)?;
        }
    }
    busy(&old)?;
    if let Some(n) = &new {
        busy(n)?;
    }
    // The replaced directory is locked, so that nothing is made in it once found empty.
    let mut victim = new.as_ref().filter(|n| n.is_dir() && !exchange).map(|n| n.lock());
    let target = RenameTarget { dir: new_dir.inode(), name: new_name, replaced: new.as_ref().map(|n| n.inode()) };
    old_dir.inode().rename(old_name, old.inode(), &target, flags)?;
    if let Some(v) = &mut victim {
        v.dead = true;
    }
    drop(victim);
    let cookie = inotify::cookie();
    inotify::entry(old_dir.inode(), old_name, old.is_dir(), libc::IN_MOVED_FROM, cookie);
    inotify::entry(new_dir.inode(), new_name, old.is_dir(), libc::IN_MOVED_TO, cookie);
    if Arc::ptr_eq(old_dir, new_dir) {
        crate::fs::dnotify::renamed(old_dir.inode());
    }
    inotify::itself(old.inode(), libc::IN_MOVE_SELF);
    if let Some(n) = new.as_ref().filter(|_| !exchange) {
        inotify::removed(n.inode(), n.is_dir());
    }
    let replaced = new.clone().filter(|_| !exchange);
    match (new, exchange) {
        (Some(n), true) => {
            n.moved(old_dir, &mut a, old_name);
            old.moved(new_dir, b.as_deref_mut().unwrap_or(&mut a), new_name);
        }
        (n, _) => {
            if let Some(n) = n {
                new_dir.removed(b.as_deref_mut().unwrap_or(&mut a), new_name, &n);
            }
            old_dir.insert_missing(&mut a, old_name);
            if flags.contains(RenameFlags::WHITEOUT) {
                a.remove(old_name, old_dir.sb());
            }
            old.moved(new_dir, b.as_deref_mut().unwrap_or(&mut a), new_name);
        }
    }
    drop((a, b, moving));
    if let Some(n) = replaced {
        unmount_all(&n);
    }
    Ok(())
}

/// The one inode that eventfds, epolls and their like share has no attributes to change.
fn settable(p: &Path) -> Result<()> {
    let anon = p.inode().as_any().downcast_ref::<super::anon::AnonInode>();
    match anon {
        Some(a) if crate::fs::anon::is_shared(&a.attr()?) => Err(Errno::EOPNOTSUPP),
        _ => Ok(()),
    }
}

/// chmod(2).
pub fn chmod(p: &Path, mode: u32, cred: &Cred) -> Result<()> {
    want_write(p)?;
    settable(p)?;
    let now = p.inode().perm()?;
    if !owner_or_capable(now, cred) {
        return Err(Errno::EPERM);
    }
    let mut mode = mode & 0o7777;
    if !cred.in_group(now.gid) && !cred.capable_over(now.uid, now.gid, CAP_FSETID) {
        mode &= !libc::S_ISGID;
    }
    p.inode().set_attr(&SetAttr { mode: Some(mode), ..SetAttr::default() })?;
    inotify::event(p, libc::IN_ATTRIB);
    Ok(())
}

/// Sets an access control list, or takes it away (`value` `None`, or without entries): `name` is [`acl::ACCESS`] or [`acl::DEFAULT`].
pub fn set_acl(p: &Path, name: &[u8], value: Option<&[u8]>, cred: &Cred) -> Result<()> {
    want_write(p)?;
    if p.kind() == libc::S_IFLNK {
        return Err(Errno::EOPNOTSUPP);
    }
    let list = match value {
        Some(v) if !v.is_empty() => Acl::parse(v)?,
        _ => None,
    };
    let access = name == acl::ACCESS;
    if !access && !p.is_dir() {
        return if list.is_some() { Err(Errno::EACCES) } else { Ok(()) };
    }
    let inode = p.inode();
    let now = inode.perm()?;
    if !owner_or_capable(now, cred) {
        return Err(Errno::EPERM);
    }
    match &list {
        // What the mode says as well is not kept.
        Some(list) if !access || list.is_extended() => inode.set_xattr(name, &list.to_bytes(), 0)?,
        _ => match inode.remove_xattr(name) {
            Ok(()) | Err(Errno::ENODATA) => {}
            Err(e) => return Err(e),
        },
    }
    if let Some(list) = list.filter(|_| access) {
        let mut mode = now.mode & 0o7000 | list.mode();
        if !cred.in_group(now.gid) && !cred.capable_over(now.uid, now.gid, CAP_FSETID) {
            mode &= !libc::S_ISGID;
        }
        inode.set_attr(&SetAttr { mode: Some(mode), ..SetAttr::default() })?;
    }
    inotify::event(p, libc::IN_ATTRIB);
    Ok(())
}

/// chown(2); `None` leaves as it is.
pub fn chown(p: &Path, uid: Option<u32>, gid: Option<u32>, cred: &Cred) -> Result<()> {
    want_write(p)?;
    settable(p)?;
    let now = p.inode().perm()?;
    let owner = cred.fsuid == now.uid;
    let capable = cred.capable_over(now.uid, now.gid, CAP_CHOWN);
    let uid_ok = uid.is_none_or(|u| capable || (owner && u == now.uid));
    let gid_ok = gid.is_none_or(|g| capable || (owner && (g == now.gid || cred.in_group(g))));
    if !uid_ok || !gid_ok {
        return Err(Errno::EPERM);
    }
    let mode = without_set_ids(now.mode);
    // Also if neither is to change, which anyone may ask for.
    if mode.is_some() && !owner_or_capable(now, cred) {
        return Err(Errno::EPERM);
    }
    p.inode().set_attr(&SetAttr { uid, gid, mode, ..SetAttr::default() })?;
    p.inode().drop_caps();
    inotify::event(p, libc::IN_ATTRIB);
    Ok(())
}

/// What utimensat(2) does to one timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Omit,
    Now,
    At(Timespec),
}

/// utimensat(2).
pub fn utimes(p: &Path, atime: SetTime, mtime: SetTime, cred: &Cred) -> Result<()> {
    if (atime, mtime) == (SetTime::Omit, SetTime::Omit) {
        return Ok(());
    }
    want_write(p)?;
    let perm = p.inode().perm()?;
    if (atime, mtime) == (SetTime::Now, SetTime::Now) {
        if !owner_or_capable(perm, cred) {
            check_inode(p.inode(), cred, MAY_WRITE)?;
        }
        settable(p)?;
    } else {
        settable(p)?;
        if !owner_or_capable(perm, cred) {
            return Err(Errno::EPERM);
        }
    }
    let now = Timespec::now();
    let value = |t: SetTime| match t {
        SetTime::Omit => None,
        SetTime::Now => Some(now),
        SetTime::At(t) => Some(t),
    };
    p.inode().set_attr(&SetAttr { atime: value(atime), mtime: value(mtime), ..SetAttr::default() })?;
    inotify::event(p, libc::IN_ATTRIB);
    Ok(())
}

/// truncate(2). The caller has looked at `RLIMIT_FSIZE`.
pub fn truncate(p: &Path, size: u64, cred: &Cred) -> Result<()> {
    match p.kind() {
        libc::S_IFREG => {}
        libc::S_IFDIR => return Err(Errno::EISDIR),
        _ => return Err(Errno::EINVAL),
    }
    permission(p, cred, MAY_WRITE)?;
    let _writer = crate::fs::deny::write_access(p)?;
    resize(p, size, cred)
}

/// ftruncate(2) of a file open for writing, and the second half of truncate(2).
pub fn resize(p: &Path, size: u64, cred: &Cred) -> Result<()> {
    let mode = without_set_ids(p.inode().perm()?.mode).filter(|_| !cred.has(CAP_FSETID));
    p.inode().set_attr(&SetAttr { size: Some(size), mode, mtime: Some(Timespec::now()), ..SetAttr::default() })?;
    p.inode().drop_caps();
    inotify::event(p, libc::IN_MODIFY);
    Ok(())
}
