//! Read-ahead of small files: when the files of a listed directory are opened one after the other, one request fetches
//! the contents of many.
//!
//! Only in exclusive trees, and only on file systems whose files can be read without side effects. The order of the
//! listing, which most programs follow, decides which files are fetched; the hit rate of earlier read-ahead decides how
//! many.

use super::*;
use protocol::client::DirEntry;
use protocol::MAX_FILES;

/// Largest file that is read ahead.
const FILE_MAX: u32 = 16 * 1024;
/// Limit of the contents kept, in bytes.
const READ_MAX: usize = 8 << 20;
/// Files in the first request of a directory, and in later ones. Reading [`FIRST`] files costs about as much as the
/// request itself.
const FIRST: usize = 32;
const MANY: usize = MAX_FILES - WAY_MAX;
/// Once the files of this many sibling directories have been read, the other siblings' files are expected to be read
/// too.
const HABIT: u32 = 4;
/// Longest path to the directory that fits into the same request.
const WAY_MAX: usize = 16;

/// Bytes of one directory's listing that are fetched together with contents.
const LISTED_WITH: usize = 1 << 20;

/// The whole content of a small file.
pub(super) struct Content {
    pub(super) bytes: Box<[u8]>,
}

/// The state of read-ahead in a directory.
#[derive(Default)]
pub(super) struct Reading {
    /// Files opened whose content was not cached.
    opened: u32,
    /// One flag for each entry of the listing, set once its content has been requested.
    asked: Vec<bool>,
    /// The files get mapped, which needs descriptors: read-ahead is disabled.
    off: bool,
    /// The listing has been fetched again to get the contents with it.
    listed_again: bool,
    /// The parent directory has counted this one in `read_below`.
    counted: bool,
}

impl Reading {
    /// No content has been requested outside a listing.
    pub(super) fn is_unread(&self) -> bool {
        self.asked.is_empty()
    }
}

impl GoferInode {
    /// The whole content of this file, if it is cached or read-ahead fetches it now.
    pub(super) fn content(&self) -> Option<Arc<Content>> {
        let mut content = self.content.lock().clone();
        if content.is_none() {
            if self.fds.get(RO).is_some_and(|fd| fd.lock().strong_count() > 0) {
                return None;
            }
            let (dir, name) = self.origin.as_ref()?;
            let a = self.attr.read();
            if a.size > u64::from(FILE_MAX) || self.held().is_some() {
                return None;
            }
            drop(a);
            content = dir.listed_content(name, self);
            if content.is_none() && dir.starts_reading() {
                dir.list_contents();
                content = dir.listed_content(name, self);
            }
            if content.is_none() {
                dir.read_ahead(name);
                content = self.content.lock().clone();
            }
        }
        let c = content?;
        if !self.used.swap(true, Ordering::Relaxed) {
            self.fs.trust.used();
        }
        Some(c)
    }

    /// The content of `name` (the inode `file`) in this directory, if it came with the listing. The result is a copy,
    /// so that an open file does not keep the whole listing alive. It is used only if its ctime equals that of the
    /// cached attributes.
    fn listed_content(&self, name: &[u8], file: &GoferInode) -> Option<Arc<Content>> {
        let listing = self.listing.lock().clone()?;
        let entry = listing.find(name)?;
        let ctime = file.attr.read().ctime;
        let bytes = entry.content.filter(|_| entry.attr.is_some_and(|a| file.is(&a) && time(a.ctime) == ctime))?;
        let mut r = self.reading.lock();
        if r.off || self.fs.changed.load(Ordering::Acquire) {
            return None;
        }
        self.is_read(&mut r);
        drop(r);
        Some(Arc::new(Content { bytes: bytes.into() }))
    }

    /// Records that files of this directory are read.
    fn is_read(&self, r: &mut Reading) {
        if let (false, Some((dir, _))) = (r.counted, &self.origin) {
            r.counted = true;
            dir.read_below.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether files are read in at least [`HABIT`] subdirectories and in a quarter of those listed. A quarter is
    /// enough because a program may visit them in another order than the listing's.
    fn reads_below(&self) -> bool {
        let (listed, read) = (self.listed_below.load(Ordering::Relaxed), self.read_below.load(Ordering::Relaxed));
        read >= HABIT && read.saturating_mul(4) >= listed
    }

    /// Whether this is the first file read in this directory while its siblings' files are read too.
    fn starts_reading(&self) -> bool {
        if !self.origin.as_ref().is_some_and(|(dir, _)| dir.reads_below()) || self.fs.changed.load(Ordering::Acquire) {
            return false;
        }
        let bare = self.listing.lock().as_ref().is_some_and(|l| !l.with_contents);
        let mut r = self.reading.lock();
        bare && r.is_unread() && !r.off && !std::mem::replace(&mut r.listed_again, true)
    }

    /// The detail to request with listings of subdirectories: contents, if listed files are usually read.
    pub(super) fn detail_below(&self, full: bool) -> Detail {
        match full {
            true if (self.fs.trust.proven() || self.reads_below()) && self.lists_all() => Detail::Content(FILE_MAX),
            true => Detail::Attr,
            false => Detail::Names,
        }
    }

    /// The detail to request with this directory's own listing, of which `before` bytes have been fetched.
    pub(super) fn detail(&self, full: bool, before: usize) -> Detail {
        let most = if self.fs.trust.proven() { LISTED_WITH } else { 0 };
        match &self.origin {
            Some((dir, _)) if before <= most => dir.detail_below(full),
            _ if full => Detail::Attr,
            _ => Detail::Names,
        }
    }

    /// Counts the contents that came with a listing.
    pub(super) fn came_with(&self, listing: &mut Listing) {
        let n = listing.iter(0).filter(|e| e.content.is_some()).count();
        listing.with_contents = n > 0;
        if n > 0 {
            self.fs.trust.read(u32::try_from(n).unwrap_or(u32::MAX));
        }
    }

    /// The file has been mapped, so a descriptor would have served better than its content; the same is expected of its
    /// siblings.
    pub(super) fn is_mapped(&self) {
        if let Some((dir, _)) = &self.origin {
            dir.reading.lock().off = true;
        }
    }

    /// Called when `name` is opened: reads it and some of the files listed after it, if that is likely to pay.
    fn read_ahead(self: &Arc<Self>, name: &[u8]) {
        if !self.lists_all() || self.fs.changed.load(Ordering::Acquire) {
            return;
        }
        let Some(listing) = self.listing.lock().clone() else { return };
        let Some(first) = listing.index(name) else { return };
        let above = self.origin.as_ref().map(|(d, _)| &d.read_below);
        let habit = above.is_some_and(|n| n.load(Ordering::Relaxed) >= HABIT);
        let pays = !self.fs.trust.disproven();
        let mut names: Vec<&[u8]> = Vec::new();
        let mut asked = Vec::new();
        {
            let mut r = self.reading.lock();
            r.opened = r.opened.saturating_add(1);
            let most = match r.opened {
                _ if r.off => return,
                _ if self.fs.trust.proven() => MANY,
                _ if habit && pays => MANY,
                1 if habit => FIRST,
                1 => return,
                2 => FIRST,
                _ => MANY,
            };
            r.asked.resize(listing.len(), false);
            if r.asked.get(first) != Some(&false) {
                return;
            }
            let small = |e: &DirEntry<'_>| {
                e.kind == protocol::FileKind::Regular
                    && e.attr.is_none_or(|a| (1..=u64::from(FILE_MAX)).contains(&a.size))
            };
            let order = listing.iter(first).zip(first..).chain(listing.iter(0).zip(0..).take(first));
            for (e, i) in order.take(4 * most) {
                if names.len() == most {
                    break;
                }
                if let Some(bit) = r.asked.get_mut(i).filter(|bit| !**bit && (i == first || small(&e))) {
                    *bit = true;
                    asked.push(i);
                    names.push(e.name);
                }
            }
        }
        let Some(files) = self.read_files(&names) else { return };
        if let Some(left) = asked.get(files.len()..).filter(|l| !l.is_empty()) {
            // The reply was full, so the last files are still to be requested.
            let mut r = self.reading.lock();
            for i in left {
                if let Some(bit) = r.asked.get_mut(*i) {
                    *bit = false;
                }
            }
        }
        self.is_read(&mut self.reading.lock());
        let mut came = 0;
        for (name, file) in names.into_iter().zip(files) {
            let Some((attr, bytes)) = file else { continue };
            came += 1;
            let (inode, new) = self.fs.inode_or_new(&attr, Some((self, name)), None, None);
            inode.keep_content(bytes);
            if new {
                self.expect(name, Some(inode));
            }
        }
        self.fs.trust.read(came);
    }

    fn read_files(&self, names: &[&[u8]]) -> Option<Vec<protocol::client::SmallFile>> {
        let way = self.way().ok()?;
        if way.names.len() > WAY_MAX {
            return self.handle().ok()?.read_files(&[], names, FILE_MAX).ok();
        }
        let (found, files) = way.start.read_files_below(&way.names, names, FILE_MAX).ok()?;
        way.check(&found).ok()?;
        Some(files)
    }

    pub(super) fn forget_content(&self) {
        let old = self.content.lock().take();
        if let Some(c) = old {
            Kept::less(&self.fs.read, c.bytes.len());
        }
    }

    fn keep_content(&self, bytes: Box<[u8]>) {
        let new = bytes.len();
        self.used.store(false, Ordering::Relaxed);
        let old = self.content.lock().replace(Arc::new(Content { bytes }));
        let sizes = (old.map_or(0, |c| c.bytes.len()), new);
        Kept::add(&self.fs.read, self, sizes, READ_MAX, |i| i.content.lock().take().map_or(0, |c| c.bytes.len()));
    }
}
