//! Overlay: one in-memory upper layer over one lower layer that never changes. [`Overlay::root`] creates that of a
//! container's root. [`mount`] creates those that guests mount: their upper layer is a directory of a tmpfs that
//! outlives the overlay ([`Overlay::stays`]), and their lower layer may consist of several directories ([`layers`]).
//!
//! An [`OvlInode`] starts with the lower layer's inode and gets an upper one when it is first changed ([`copy_up`]);
//! from then on the upper one is authoritative. An object created here has only an upper inode. A directory with both
//! shows the entries of both layers; an upper entry hides a lower one of the same name, and a *whiteout* (character
//! device 0:0) in the upper directory removes a lower name. The upper inode of a copied directory refers to the lower
//! one (`below`), so that a directory can be renamed without copying its contents.
//!
//! Inode numbers are the lower layer's and survive a copy-up; several lower names of one file are one inode here,
//! before and after.
//!
//! Locks: `copying`, then `dir_lock` of the parent, then the upper layer's own. `copying` may be held for long.

mod copy_up;
mod file;
mod layers;
pub mod mount;
#[cfg(test)]
mod tests;

use super::acl::Acl;
use super::tmpfs::TmpInode;
use super::vfs::{anonymous_dev, Mount};
use super::*;
use crate::error::{later, Errno, Result};
use crate::kernel::Cred;
use parking_lot::Mutex;
use platform::budget::Charge;
use platform::executor::{drop_aside, Rounds};
use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

const OVERLAYFS_MAGIC: u64 = 0x794c_7630;

pub struct Overlay {
    dev: u64,
    /// Inodes of lower files with several names, by device, inode number and birth time (numbers are reused). An inode
    /// stays alive once copied up.
    links: Mutex<HashMap<(u64, u64, Timespec), Shared>>,
    /// The lower layer's root, until `lower_used` has been computed.
    lower: Mutex<Option<Arc<dyn Inode>>>,
    /// Blocks in use in the lower layer, which does not change.
    lower_used: OnceLock<u64>,
    /// The upper layer exists before and after the overlay: all state is in the layer itself, and `below` is not used.
    stays: bool,
    /// Who made it, if a guest did.
    maker: Option<Arc<Cred>>,
    /// The devices of the layers, the upper one first, if there are several: they make inode numbers unique.
    devices: Vec<u64>,
    /// Keeps the layers' file systems mounted.
    _layers: Vec<Arc<Mount>>,
}

/// The inode of a lower file with several names, and a strong reference once it is copied up.
type Shared = (Weak<OvlInode>, Option<Arc<OvlInode>>);
/// The merged entries of a directory with both layers.
struct Listing {
    /// Name, inode number, `DT_*`.
    list: Vec<(Box<[u8]>, u64, u8)>,
    room: Charge,
}

/// The position of the layer's index in an inode number.
const LAYER_SHIFT: u32 = 56;
/// The attribute of an upper directory that hides the entries of lower ones.
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const PRIVATE: &[u8] = b"trusted.overlay.";

fn is_opaque(dir: &dyn Inode) -> bool {
    dir.get_xattr(OPAQUE).is_ok_and(|v| v == b"y")
}

/// Memory of an entry in addition to its name, including the list's spare capacity.
const LISTED_COST: u64 = 96;
/// Dropping a longer listing takes milliseconds.
const LONG_LISTING: usize = 1 << 14;

pub struct OvlInode {
    me: Weak<OvlInode>,
    fs: Arc<Overlay>,
    kind: u32,
    ino: u64,
    lower: Option<Arc<dyn Inode>>,
    upper: OnceLock<Arc<TmpInode>>,
    /// Parent and name for a copy-up; `None` if the inode had an upper one from the start.
    place: Option<(Arc<OvlInode>, Box<[u8]>)>,
    /// The name was removed before the copy-up.
    gone: AtomicBool,
    copying: Mutex<()>,
    /// Held while an entry of this directory changes.
    dir_lock: Mutex<()>,
    extra: InodeExtra,
}

impl Overlay {
    /// The root directory of a new overlay.
    pub fn root(upper: Arc<TmpInode>, lower: Arc<dyn Inode>) -> Result<Arc<OvlInode>> {
        let fs = Arc::new(Overlay {
            dev: anonymous_dev(),
            links: Mutex::default(),
            lower: Mutex::default(),
            lower_used: OnceLock::new(),
            stays: false,
            maker: None,
            devices: Vec::new(),
            _layers: Vec::new(),
        });
        let a = lower.attr()?;
        if !a.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        upper.set_attr(&SetAttr {
            mode: Some(a.mode & 0o7777),
            uid: Some(a.uid),
            gid: Some(a.gid),
            ..SetAttr::default()
        })?;
        copy_up::copy_xattrs(&lower, &upper)?;
        upper.copy_times(&a);
        *upper.below.lock() = Some(lower.clone());
        *fs.lower.lock() = Some(lower.clone());
        Ok(OvlInode::make(&fs, a.file_type(), a.ino, Some(lower), Some(upper), None))
    }

    /// The overlay's number for an inode of a layer.
    fn number(&self, dev: u64, ino: u64) -> u64 {
        Self::number_in(&self.devices, dev, ino)
    }
    fn number_in(devices: &[u64], dev: u64, ino: u64) -> u64 {
        let layer = devices.iter().position(|d| *d == dev).unwrap_or(0);
        ino ^ ((layer as u64) << LAYER_SHIFT)
    }

    /// Blocks of `bsize` bytes in use in the lower layer's file system.
    fn lower_used(&self, bsize: u64) -> u64 {
        *self.lower_used.get_or_init(|| {
            let lower = self.lower.lock().take();
            let used = lower
                .and_then(|l| l.statfs().ok())
                .map_or(0, |s| s.blocks.saturating_sub(s.bfree).saturating_mul(s.bsize));
            used / bsize.max(1)
        })
    }
}

fn ovl(inode: &Arc<dyn Inode>) -> Result<&OvlInode> {
    inode.as_any().downcast_ref().ok_or(Errno::EXDEV)
}

impl OvlInode {
    fn make(
        fs: &Arc<Overlay>,
        kind: u32,
        ino: u64,
        lower: Option<Arc<dyn Inode>>,
        upper: Option<Arc<TmpInode>>,
        place: Option<(Arc<OvlInode>, Box<[u8]>)>,
    ) -> Arc<OvlInode> {
        let i = Arc::new_cyclic(|me| OvlInode {
            me: me.clone(),
            fs: fs.clone(),
            kind,
            ino,
            lower,
            upper: OnceLock::new(),
            place,
            gone: AtomicBool::new(false),
            copying: Mutex::new(()),
            dir_lock: Mutex::new(()),
            extra: InodeExtra::default(),
        });
        if let Some(u) = upper {
            *u.owner.lock() = Some(i.me.clone());
            if fs.stays {
                u.used_by_overlay();
            }
            let _ = i.upper.set(u);
        }
        i
    }

    /// The overlay inode of an upper inode; creates it if there is none.
    fn over(&self, upper: Arc<TmpInode>) -> Arc<OvlInode> {
        if let Some(i) = self.known(&upper) {
            return i;
        }
        let below = if self.fs.stays { None } else { upper.below.lock().clone() };
        OvlInode::make(&self.fs, upper.kind(), upper.ino(), below, Some(upper), None)
    }
    /// The overlay inode of an upper inode, if it belongs to this overlay rather than an earlier one.
    fn known(&self, upper: &TmpInode) -> Option<Arc<OvlInode>> {
        let i = upper.owner.lock().as_ref().and_then(Weak::upgrade)?;
        Arc::ptr_eq(&i.fs, &self.fs).then_some(i)
    }
    /// Like `over`, for the entry `name` of this directory.
    fn over_entry(&self, upper: Arc<TmpInode>, name: &[u8]) -> Result<Arc<OvlInode>> {
        if !self.fs.stays || !upper.is_dir() {
            return Ok(self.over(upper));
        }
        if let Some(i) = self.known(&upper) {
            return Ok(i);
        }
        let lower = match self.lower.as_ref().filter(|_| !is_opaque(&*upper)).map(|l| l.lookup(name)) {
            Some(Ok(l)) if l.attr()?.is_dir() => Some(l),
            None | Some(Ok(_) | Err(Errno::ENOENT)) => None,
            Some(Err(e)) => return Err(e),
        };
        Ok(OvlInode::make(&self.fs, upper.kind(), upper.ino(), lower, Some(upper), None))
    }

    fn arc(&self) -> Result<Arc<OvlInode>> {
        self.me.upgrade().ok_or(Errno::ESTALE)
    }

    fn lower_has(&self, name: &[u8]) -> Result<bool> {
        match self.lower.as_ref().map(|l| l.lookup(name)) {
            None | Some(Err(Errno::ENOENT)) => Ok(false),
            Some(Ok(_)) => Ok(true),
            Some(Err(e)) => Err(e),
        }
    }

    /// Hides the lower entry `name`, if there is one. The upper directory must not have such an entry.
    fn whiteout(&self, upper: &TmpInode, name: &[u8]) -> Result<()> {
        if self.lower_has(name)? {
            let w = upper.node(&NewNode::Char(0), 0, 0, 0, None)?;
            upper.put(name, w)?;
        }
        Ok(())
    }

    /// Marks a directory of the upper layer as opaque if the lower layer has an entry of the same name.
    fn hide_lower(&self, dir: &TmpInode, name: &[u8]) -> Result<()> {
        if self.fs.stays && dir.is_dir() && self.lower_has(name)? {
            dir.set_xattr(OPAQUE, b"y", 0)?;
        }
        Ok(())
    }

    fn find(&self, name: &[u8]) -> Result<Arc<OvlInode>> {
        if let Some(x) = self.upper.get().and_then(|u| u.get(name)) {
            return if x.is_whiteout() { Err(Errno::ENOENT) } else { self.over_entry(x, name) };
        }
        let lower = self.lower.as_ref().ok_or(Errno::ENOENT)?.lookup(name)?;
        let a = lower.attr()?;
        let place = Some((self.arc()?, name.into()));
        let ino = self.fs.number(a.dev, a.ino);
        if a.is_dir() || a.nlink < 2 {
            return Ok(OvlInode::make(&self.fs, a.file_type(), ino, Some(lower), None, place));
        }
        let mut links = self.fs.links.lock();
        if let Some(i) = links.get(&(a.dev, a.ino, a.btime)).and_then(|(w, _)| w.upgrade()).filter(|i| !i.gone()) {
            return Ok(i);
        }
        if links.len().is_power_of_two() && links.len() > 1000 {
            links.retain(|_, (w, _)| w.strong_count() > 0);
        }
        let i = OvlInode::make(&self.fs, a.file_type(), ino, Some(lower), None, place);
        links.insert((a.dev, a.ino, a.btime), (i.me.clone(), None));
        Ok(i)
    }

    /// Whether a directory shows no entries.
    fn is_empty(&self) -> Result<bool> {
        let mut hidden = vfs::dentry::NameMap::<()>::default();
        let mut rounds = Rounds::new();
        for (name, i) in self.upper.get().into_iter().flat_map(|u| batches(u)) {
            rounds.next();
            if !i.is_whiteout() {
                return Ok(false);
            }
            hidden.insert(name, ());
        }
        let mut empty = true;
        self.each_lower(&mut |e| {
            empty = hidden.contains_key(e.name);
            empty
        })?;
        Ok(empty)
    }

    /// The visible entries.
    fn entries(&self) -> Result<Listing> {
        let mut out = Listing { list: Vec::new(), room: dir::listing_room() };
        let mut rounds = Rounds::new();
        let mut hidden = vfs::dentry::NameMap::<()>::default();
        for (name, i) in self.upper.get().into_iter().flat_map(|u| batches(u)) {
            rounds.step().map_err(later)?;
            if !i.is_whiteout() {
                out.push(&name, i.ino(), (i.kind() >> 12) as u8)?;
            }
            hidden.insert(name, ());
        }
        let mut full = Ok(());
        self.each_lower(&mut |e| {
            if !hidden.contains_key(e.name) {
                full = out.push(e.name, e.ino, e.kind);
            }
            full.is_ok()
        })?;
        full.map(|()| out)
    }

    /// Calls `see` for the entries of the lower layer until it returns false.
    fn each_lower(&self, see: &mut dyn FnMut(&DirEntry<'_>) -> bool) -> Result<()> {
        let Some(lower) = &self.lower else { return Ok(()) };
        let dir = File::new(lower.clone().open(libc::O_RDONLY | libc::O_DIRECTORY)?, libc::O_RDONLY, None);
        let mut rounds = Rounds::new();
        let (mut pos, mut more) = (0, true);
        loop {
            let before = pos;
            let mut refused = Ok(());
            dir.ops.readdir(&dir, pos, &mut |e| {
                pos = e.next;
                refused = rounds.step();
                more = refused.is_ok() && (matches!(e.name, b"." | b"..") || see(&e));
                more
            })?;
            refused.map_err(later)?;
            if pos == before || !more {
                return Ok(());
            }
        }
    }
}

/// The entries of an upper directory, fetched in small batches.
fn batches(dir: &TmpInode) -> impl Iterator<Item = (Arc<[u8]>, Arc<TmpInode>)> + '_ {
    let mut pos = 0;
    std::iter::from_fn(move || {
        let batch = dir.entries(pos, 64);
        pos = batch.last()?.0;
        Some(batch)
    })
    .flatten()
    .map(|(_, name, inode)| (name, inode))
}

impl Drop for Listing {
    fn drop(&mut self) {
        if self.list.len() > LONG_LISTING {
            let room = std::mem::replace(&mut self.room, dir::listing_room());
            drop_aside((std::mem::take(&mut self.list), room));
        }
    }
}

impl Listing {
    fn push(&mut self, name: &[u8], ino: u64, kind: u8) -> Result<()> {
        let size = self.room.amount() + LISTED_COST + name.len() as u64;
        if !self.room.set(size) {
            return Err(Errno::ENOMEM);
        }
        self.list.push((name.into(), ino, kind));
        Ok(())
    }
}

impl Inode for OvlInode {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn perm(&self) -> Result<Perm> {
        match (self.upper.get(), &self.lower) {
            (Some(u), _) => u.perm(),
            (None, Some(l)) => l.perm(),
            (None, None) => Err(Errno::ESTALE),
        }
    }
    fn acl(&self) -> Result<Option<Arc<Acl>>> {
        match (self.upper.get(), &self.lower) {
            (Some(u), _) => u.acl(),
            (None, Some(l)) => l.acl(),
            (None, None) => Err(Errno::ESTALE),
        }
    }
    fn default_acl(&self) -> Result<Option<Acl>> {
        self.copy_up(true)?.default_acl()
    }
    fn attr(&self) -> Result<Attr> {
        let mut a = match (self.upper.get(), &self.lower) {
            (Some(u), _) => u.attr()?,
            (None, Some(l)) => l.attr()?,
            (None, None) => return Err(Errno::ESTALE),
        };
        (a.dev, a.ino) = (self.fs.dev, self.ino);
        if self.kind == libc::S_IFDIR && self.lower.is_some() {
            // The number of subdirectories is not known; a link count of 1 says so, as on other file systems.
            a.nlink = a.nlink.min(1);
        }
        Ok(a)
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        self.copy_up(set.size != Some(0))?.set_attr(set)
    }
    fn prefetch(&self, names: &[&[u8]], open: bool) {
        let Some(l) = &self.lower else { return };
        let in_upper = match (self.upper.get(), names.first()) {
            (Some(u), Some(n)) => u.get(n).is_some(),
            _ => false,
        };
        if !in_upper {
            l.prefetch(names, open);
        }
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        Ok(self.find(name)?)
    }
    fn create(&self, name: &[u8], node: NewNode<'_>, mode: u32, uid: u32, gid: u32) -> Result<Arc<dyn Inode>> {
        let up = self.copy_up(true)?;
        let _dir = self.dir_lock.lock();
        if up.get(name).is_some_and(|x| !x.is_whiteout()) {
            return Err(Errno::EEXIST);
        }
        if matches!(node, NewNode::Char(0)) {
            // The node would be a whiteout.
            return Err(Errno::EPERM);
        }
        let x = up.node(&node, mode, uid, gid, None)?;
        self.hide_lower(&x, name)?;
        up.put(name, x.clone())?;
        Ok(self.over(x))
    }
    fn tmpfile(&self, mode: u32, uid: u32, gid: u32, linkable: bool) -> Result<Arc<dyn Inode>> {
        let up = self.copy_up(true)?;
        Ok(self.over(up.nameless_file(mode, uid, gid, linkable)?))
    }
    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let t = ovl(target)?.copy_up(true)?;
        let up = self.copy_up(true)?;
        let _dir = self.dir_lock.lock();
        up.link_node(name, t)
    }
    fn unlink(&self, name: &[u8], child: &Arc<dyn Inode>) -> Result<()> {
        let child = ovl(child)?;
        let up = self.copy_up(true)?;
        let _dir = self.dir_lock.lock();
        if up.get(name).is_some() {
            up.take(name)?;
        } else {
            // The name exists only in the lower layer: the file is unchanged, or was copied up by another name.
            match child.upper.get() {
                Some(u) => u.unlinked(),
                // A concurrent copy-up checks `gone` under this lock before it adds the name.
                None if child.attr()?.nlink < 2 => child.gone.store(true, Ordering::Release),
                None => {}
            }
        }
        self.whiteout(up, name)
    }
    fn rmdir(&self, name: &[u8], child: &Arc<dyn Inode>) -> Result<()> {
        let child = ovl(child)?;
        let up = self.copy_up(true)?;
        let _dir = self.dir_lock.lock();
        if !child.is_empty()? {
            return Err(Errno::ENOTEMPTY);
        }
        child.gone.store(true, Ordering::Release);
        if up.get(name).is_some() {
            up.take(name)?;
        }
        self.whiteout(up, name)
    }
    fn rename(&self, name: &[u8], moved: &Arc<dyn Inode>, target: &RenameTarget<'_>, flags: RenameFlags) -> Result<()> {
        let to = ovl(target.dir)?;
        let new_name = target.name;
        let old = ovl(moved)?;
        let victim = target.replaced.map(ovl).transpose()?;
        if self.fs.stays {
            // As on Linux without `redirect_dir`: a directory with lower entries cannot be moved.
            let merged = |i: &OvlInode| i.kind == libc::S_IFDIR && i.lower.is_some();
            if merged(old) || (flags.contains(RenameFlags::EXCHANGE) && victim.is_some_and(merged)) {
                return Err(Errno::EXDEV);
            }
            if flags.contains(RenameFlags::WHITEOUT) {
                return Err(Errno::EINVAL);
            }
        }
        let moved_up = old.copy_up(true)?;
        to.hide_lower(moved_up, new_name)?;
        let (from_up, to_up) = (self.copy_up(true)?, to.copy_up(true)?);
        self.own_name(from_up, name, old)?;
        if flags.contains(RenameFlags::EXCHANGE) {
            let v = victim.ok_or(Errno::ENOENT)?;
            self.hide_lower(v.copy_up(true)?, name)?;
            to.own_name(to_up, new_name, v)?;
            return from_up.rename_between(name, to_up, new_name, RenameFlags::EXCHANGE);
        }
        if let Some(v) = &victim {
            if v.kind == libc::S_IFDIR && !v.is_empty()? {
                return Err(Errno::ENOTEMPTY);
            }
            let _dir = to.dir_lock.lock();
            // A lower file may have other names.
            let last = v.upper.get().is_none() && (v.kind == libc::S_IFDIR || v.attr()?.nlink < 2);
            v.gone.store(last, Ordering::Release);
            if to_up.get(new_name).is_some() {
                // An upper directory that shows no entries may hold whiteouts.
                to_up.take(new_name)?;
            } else if let Some(u) = v.upper.get() {
                u.unlinked();
            }
        }
        from_up.rename_between(name, to_up, new_name, RenameFlags::empty())?;
        if flags.contains(RenameFlags::WHITEOUT) {
            let w = from_up.node(&NewNode::Char(0), 0, 0, 0, None)?;
            return from_up.put(name, w);
        }
        self.whiteout(from_up, name)
    }
    fn readlink(&self) -> Result<Vec<u8>> {
        match (self.upper.get(), &self.lower) {
            (Some(u), _) => u.readlink(),
            (None, Some(l)) => l.readlink(),
            (None, None) => Err(Errno::ESTALE),
        }
    }
    fn open(self: Arc<Self>, flags: i32) -> Result<Box<dyn FileOps>> {
        file::open(self, flags)
    }
    fn statfs(&self) -> Result<StatFs> {
        match (self.upper.get(), &self.lower) {
            (Some(u), _) => {
                let mut s = StatFs { kind: OVERLAYFS_MAGIC, ..u.statfs()? };
                // The lower layer's blocks count as used, and no task can free them.
                s.blocks = s.blocks.saturating_add(self.fs.lower_used(s.bsize));
                Ok(s)
            }
            (None, Some(l)) => match &self.place {
                Some((p, _)) => p.statfs(),
                // The overlay has no upper layer.
                None if self.fs.stays => Ok(StatFs { kind: OVERLAYFS_MAGIC, ..l.statfs()? }),
                None => Err(Errno::ESTALE),
            },
            (None, None) => Err(Errno::ESTALE),
        }
    }
    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        if self.fs.stays && name.starts_with(PRIVATE) {
            return Err(Errno::ENODATA);
        }
        match (self.upper.get(), &self.lower) {
            (Some(u), _) => u.get_xattr(name),
            (None, Some(l)) => l.get_xattr(name),
            (None, None) => Err(Errno::ESTALE),
        }
    }
    fn set_xattr(&self, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        if self.fs.stays && name.starts_with(PRIVATE) {
            return Err(Errno::EPERM);
        }
        self.copy_up(true)?.set_xattr(name, value, flags)
    }
    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        let mut all = match (self.upper.get(), &self.lower) {
            (Some(u), _) => u.list_xattr()?,
            (None, Some(l)) => l.list_xattr()?,
            (None, None) => return Err(Errno::ESTALE),
        };
        all.retain(|name| !(self.fs.stays && name.starts_with(PRIVATE)));
        Ok(all)
    }
    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.get_xattr(name)?;
        self.copy_up(true)?.remove_xattr(name)
    }
    fn limits(&self) -> vfs::MountFlags {
        match (self.upper.get(), &self.lower) {
            (Some(u), _) => u.limits(),
            (None, Some(l)) => l.limits(),
            (None, None) => vfs::MountFlags::empty(),
        }
    }
    fn gone(&self) -> bool {
        self.upper.get().is_none() && self.lower.as_ref().is_some_and(|l| l.gone())
    }
    fn drop_caps(&self) {
        // Only a copied-up file can have been written to.
        if let Some(u) = self.upper.get() {
            u.drop_caps();
        }
    }
    fn extra(&self) -> Option<&InodeExtra> {
        Some(&self.extra)
    }
}

impl Drop for OvlInode {
    /// Releases the ancestors in a loop: a tree can be deeper than the stack allows recursion.
    fn drop(&mut self) {
        let mut up = self.place.take();
        while let Some((p, _)) = up {
            up = Arc::into_inner(p).and_then(|mut i| i.place.take());
        }
    }
}
