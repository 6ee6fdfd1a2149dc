//! Copy-up: copying an object of the lower layer to the upper one when it is first changed.

use super::OvlInode;
use crate::error::{later, Errno, Result};
use crate::fs::tmpfs::TmpInode;
use crate::fs::*;
use crate::kernel::user_ns::Id;
use crate::mm::io::{Dst, Src};
use platform::executor::{self, ask_room};
use std::sync::atomic::Ordering;
use std::sync::Arc;

const CHUNK: usize = 256 * 1024;
/// A larger file is copied by a background worker.
const MAX_INLINE_COPY: u64 = 4 << 20;

impl OvlInode {
    /// The upper inode; creates it and those of its ancestors if needed. Without `content` a file stays empty, because
    /// the caller truncates it.
    pub(super) fn copy_up(&self, content: bool) -> Result<&Arc<TmpInode>> {
        if let Some(u) = self.upper.get() {
            return Ok(u);
        }
        let mut missing = Vec::new();
        let mut up = self.place.as_ref().map(|(p, _)| p.clone());
        while let Some(p) = up {
            if p.upper.get().is_some() {
                break;
            }
            up = p.place.as_ref().map(|(p, _)| p.clone());
            missing.push(p);
        }
        for dir in missing.iter().rev() {
            // `ESTALE` means that cached attributes were outdated: they are fresh on the second attempt.
            dir.copy_one(true).or_else(|e| if e == Errno::ESTALE { dir.copy_one(true) } else { Err(e) })?;
        }
        self.copy_one(content)?;
        self.upper.get().ok_or(Errno::EIO)
    }

    /// Like `copy_up`; the parent must have an upper inode.
    fn copy_one(&self, content: bool) -> Result<()> {
        let none = if self.fs.stays { Errno::EROFS } else { Errno::ESTALE };
        let (parent, name) = self.place.as_ref().ok_or(none)?;
        let lower = self.lower.as_ref().ok_or(Errno::ESTALE)?;
        let _one = match self.copying.try_lock() {
            Some(guard) => guard,
            // Another task copies this inode; waiting for it must not hold up the executor.
            None => {
                ask_room().map_err(later)?;
                executor::aside(|| self.copying.lock())
            }
        };
        if self.upper.get().is_some() {
            return Ok(());
        }
        let into = parent.upper.get().ok_or(Errno::EIO)?;
        let a = lower.attr()?;
        if let Some(maker) = &self.fs.maker {
            // The copy is the maker's work: of owners that its namespace knows, and of what it may read.
            if !maker.user_ns.maps(Id::User, a.uid) || !maker.user_ns.maps(Id::Group, a.gid) {
                return Err(Errno::EOVERFLOW);
            }
            if self.kind == libc::S_IFREG {
                vfs::perm::check_inode(lower, maker, vfs::perm::MAY_READ)?;
            }
        }
        if self.kind == libc::S_IFREG && content && a.size > MAX_INLINE_COPY {
            ask_room().map_err(later)?;
        }
        let target;
        let node = match self.kind {
            libc::S_IFREG => NewNode::File,
            libc::S_IFDIR => NewNode::Dir,
            libc::S_IFLNK => {
                target = lower.readlink()?;
                NewNode::Symlink(&target)
            }
            libc::S_IFIFO => NewNode::Fifo,
            libc::S_IFSOCK => NewNode::Socket,
            libc::S_IFCHR => NewNode::Char(a.rdev),
            libc::S_IFBLK => NewNode::Block(a.rdev),
            _ => return Err(Errno::EIO),
        };
        let new = into.node(&node, a.mode & 0o7777, a.uid, a.gid, (!self.fs.stays).then_some(self.ino))?;
        new.limit(lower.limits());
        if self.kind == libc::S_IFREG && content && a.size > 0 {
            if a.size > MAX_INLINE_COPY {
                executor::aside(|| copy_content(lower, &new, &a))?;
            } else {
                copy_content(lower, &new, &a)?;
            }
        }
        copy_xattrs(lower, &new)?;
        // Reading the file may have refreshed the lower layer's attributes.
        let now = lower.perm()?;
        if (now.mode, now.uid, now.gid) != (a.mode, a.uid, a.gid) {
            return Err(Errno::ESTALE);
        }
        new.copy_times(&a);
        if self.fs.stays {
            new.used_by_overlay();
            // The copy is found by its name; the file's other names refer to different files from now on.
        } else if self.kind == libc::S_IFDIR {
            *new.below.lock() = Some(lower.clone());
        } else {
            new.set_nlink(a.nlink);
        }
        let _dir = parent.dir_lock.lock();
        *new.owner.lock() = Some(self.me.clone());
        if self.gone.load(Ordering::Acquire) {
            new.forget_name();
        } else if into.get(name).is_some() {
            // The name was removed or replaced in the meantime; the file has other names.
            new.unlinked();
        } else {
            into.put_quietly(name, new.clone())?;
        }
        let _ = self.upper.set(new);
        if !self.fs.stays && self.kind != libc::S_IFDIR && a.nlink > 1 {
            // The other names exist only in the lower layer; lookups of them must find this inode.
            if let Some(entry) = self.fs.links.lock().get_mut(&(a.dev, a.ino, a.btime)) {
                entry.1 = self.me.upgrade();
            }
        }
        Ok(())
    }

    /// Ensures that the upper directory has the entry `name` for `child`, which has an upper inode: of a file with
    /// several lower names, only the name by which it was copied up has one.
    pub(super) fn own_name(&self, up: &TmpInode, name: &[u8], child: &OvlInode) -> Result<()> {
        let _dir = self.dir_lock.lock();
        if up.get(name).is_none() {
            let node = child.upper.get().ok_or(Errno::EIO)?;
            up.put_quietly(name, node.clone())?;
        }
        Ok(())
    }
}

/// Copies the extended attributes. An attribute that cannot be stored is skipped. An access control list must be
/// stored, since without it the mode has another meaning.
pub(super) fn copy_xattrs(lower: &Arc<dyn Inode>, to: &Arc<TmpInode>) -> Result<()> {
    let keys = match lower.list_xattr() {
        Err(Errno::ESTALE) => return Err(Errno::ESTALE),
        keys => keys.unwrap_or_default(),
    };
    for key in keys.into_iter().filter(|k| !k.starts_with(super::PRIVATE)) {
        let copied = lower.get_xattr(&key).and_then(|value| to.set_xattr(&key, &value, 0));
        if matches!(&*key, acl::ACCESS | acl::DEFAULT) {
            copied?;
        }
    }
    match lower.acl()? {
        Some(list) if to.acl()?.is_none() => to.set_xattr(acl::ACCESS, &list.to_bytes(), 0),
        _ => Ok(()),
    }
}

/// Copies the data and keeps holes.
pub(super) fn copy_content(lower: &Arc<dyn Inode>, to: &Arc<TmpInode>, a: &Attr) -> Result<()> {
    let from = File::new(lower.clone().open(libc::O_RDONLY)?, libc::O_RDONLY, None);
    if a.blocks.saturating_mul(512) >= a.size {
        return copy_range(&from, to, 0, a.size);
    }
    let seek = |at: u64, whence| from.ops.seek(&from, i64::try_from(at).unwrap_or(i64::MAX), whence, 0);
    let mut at = 0;
    while at < a.size {
        let data = match seek(at, libc::SEEK_DATA) {
            Err(Errno::ENXIO) => break,
            found => found.unwrap_or(at),
        };
        // The lower file may have grown since `a` was read.
        if data >= a.size {
            break;
        }
        let hole = seek(data, libc::SEEK_HOLE).unwrap_or(a.size).clamp(data, a.size);
        if hole == data {
            break;
        }
        copy_range(&from, to, data, hole)?;
        at = hole;
    }
    if to.size() < a.size {
        to.set_attr(&SetAttr { size: Some(a.size), ..SetAttr::default() })?;
    }
    Ok(())
}

fn copy_range(from: &File, to: &TmpInode, mut at: u64, end: u64) -> Result<()> {
    let len = |left: u64| usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
    let mut buf = vec![0u8; len(end - at)];
    while at < end {
        let part = buf.get_mut(..len(end - at)).ok_or(Errno::EIO)?;
        let n = match from.ops.read(from, &mut Dst::kernel(part), at) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(crate::error::SysError::Errno(e)) => return Err(e),
            Err(_) => return Err(Errno::EIO),
        };
        let mut left = part.get(..n).ok_or(Errno::EIO)?;
        while !left.is_empty() {
            let (k, _) = to.write_at(&mut Src::kernel(left), at, false)?;
            left = left.get(k..).filter(|_| k > 0).ok_or(Errno::EIO)?;
            at += k as u64;
        }
    }
    Ok(())
}
