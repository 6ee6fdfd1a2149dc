//! The lower layers of an overlay as one directory tree that never changes.
//!
//! Layers are accessed through their dentries, so that the VFS's caches serve here too. No lookup crosses mounts.
//!
//! Directories are searched and listed with the rights of who made the overlay, as on Linux: a directory of another layer
//! on top, with a mode of its own, must not open one that its maker may not enter.

use super::{is_opaque, Overlay};
use crate::error::{later, Errno, Result};
use crate::fs::acl::Acl;
use crate::fs::dir::{self, Dir, DirFile, Snapshot};
use crate::fs::vfs::dentry::NameMap;
use crate::fs::vfs::perm::{check_inode, search, MAY_READ};
use crate::fs::vfs::Dentry;
use crate::fs::*;
use crate::kernel::Cred;
use platform::budget::Charge;
use platform::executor::Rounds;
use std::any::Any;
use std::sync::Arc;

/// A directory in one or more layers, the topmost first; never empty.
pub(super) struct LayersDir {
    dirs: Arc<[Arc<Dentry>]>,
    /// Like [`Overlay::devices`].
    devices: Arc<[u64]>,
    /// Of who made the overlay.
    maker: Arc<Cred>,
}

impl LayersDir {
    pub fn new(dirs: Vec<Arc<Dentry>>, devices: Arc<[u64]>, maker: Arc<Cred>) -> Arc<LayersDir> {
        Arc::new(LayersDir { dirs: dirs.into(), devices, maker })
    }
    fn top(&self) -> Result<&Arc<dyn Inode>> {
        self.dirs.first().map(|d| d.inode()).ok_or(Errno::ESTALE)
    }
}

fn is_whiteout(inode: &Arc<dyn Inode>, kind: u32) -> bool {
    kind == libc::S_IFCHR && inode.attr().is_ok_and(|a| a.rdev == 0)
}

impl Inode for LayersDir {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        self.top()?.attr()
    }
    fn perm(&self) -> Result<Perm> {
        self.top()?.perm()
    }
    fn acl(&self) -> Result<Option<Arc<Acl>>> {
        self.top()?.acl()
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let mut found = Vec::new();
        for d in self.dirs.iter() {
            search(d.inode(), &self.maker)?;
            let Some(child) = d.lookup(name)? else { continue };
            if is_whiteout(child.inode(), child.kind()) {
                break;
            }
            if !child.is_dir() {
                if found.is_empty() {
                    return Ok(child.inode().clone());
                }
                break;
            }
            let last = is_opaque(&**child.inode());
            found.push(child);
            if last {
                break;
            }
        }
        if found.is_empty() {
            return Err(Errno::ENOENT);
        }
        Ok(LayersDir::new(found, self.devices.clone(), self.maker.clone()))
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        Ok(Box::new(DirFile(Open { dir: self, listing: Snapshot::default() })))
    }
    fn statfs(&self) -> Result<StatFs> {
        self.top()?.statfs()
    }
    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.top()?.get_xattr(name)
    }
    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        self.top()?.list_xattr()
    }
    fn limits(&self) -> vfs::MountFlags {
        self.top().map_or(vfs::MountFlags::empty(), |t| t.limits())
    }
}

/// The merged entries of all layers.
#[derive(Default)]
struct Listing {
    list: Vec<(Box<[u8]>, u64, u8)>,
    _room: Option<Charge>,
}

struct Open {
    dir: Arc<LayersDir>,
    listing: Snapshot<Listing>,
}

/// Memory of an entry in addition to its name.
const ENTRY_COST: u64 = 96;

impl LayersDir {
    fn entries(&self) -> Result<Listing> {
        let mut room = dir::listing_room();
        let mut list: Vec<(Box<[u8]>, u64, u8)> = Vec::new();
        let mut seen = NameMap::<()>::default();
        let mut rounds = Rounds::new();
        for d in self.dirs.iter() {
            check_inode(d.inode(), &self.maker, MAY_READ)?;
            let dev = d.inode().attr()?.dev;
            let file = File::new(d.inode().clone().open(libc::O_RDONLY | libc::O_DIRECTORY)?, libc::O_RDONLY, None);
            let mut batch: Vec<(Box<[u8]>, u64, u8)> = Vec::new();
            let mut pos = 0;
            loop {
                let before = pos;
                let mut trouble = Ok(());
                file.ops.readdir(&file, pos, &mut |e| {
                    trouble = rounds.step().map_err(later);
                    let size = room.amount() + ENTRY_COST + e.name.len() as u64;
                    if trouble.is_ok() && !room.set(size) {
                        trouble = Err(Errno::ENOMEM);
                    }
                    pos = e.next;
                    if trouble.is_ok() && !matches!(e.name, b"." | b"..") {
                        batch.push((e.name.into(), Overlay::number_in(&self.devices, dev, e.ino), e.kind));
                    }
                    trouble.is_ok()
                })?;
                trouble?;
                if pos == before {
                    break;
                }
            }
            for (name, ino, kind) in batch {
                rounds.step().map_err(later)?;
                if seen.insert(Arc::from(&*name), ()).is_some() {
                    continue;
                }
                let hidden = kind == libc::DT_CHR && d.lookup(&name)?.is_some_and(|c| is_whiteout(c.inode(), c.kind()));
                if !hidden {
                    list.push((name, ino, kind));
                }
            }
        }
        Ok(Listing { list, _room: Some(room) })
    }
}

impl Dir for Open {
    fn attr(&self) -> Result<Attr> {
        self.dir.attr()
    }
    fn rewind(&self) -> Result<()> {
        self.listing.forget();
        Ok(())
    }
    fn list(&self, _: &File, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let all = self.listing.get(|| self.dir.entries().map(Arc::new))?;
        let from = usize::try_from(pos.saturating_sub(2)).unwrap_or(usize::MAX);
        for (i, (name, ino, kind)) in all.list.iter().enumerate().skip(from) {
            if !sink(DirEntry { name, ino: *ino, kind: *kind, next: i as u64 + 3 }) {
                break;
            }
        }
        Ok(())
    }
}
