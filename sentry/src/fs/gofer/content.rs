//! Small files read ahead: when the files of a listed directory are opened one after the other, one request brings the contents of many.
//!
//! Only in trees that nobody changes, and on file systems that hold what they list (reading a file of another kind may do something). Which files come
//! along is told by the order of the listing, in which most programs go. How many is told by what has become of those read before.

use super::*;
use protocol::client::DirEntry;
use protocol::MAX_FILES;

/// Largest file that is read ahead.
const FILE_MAX: u32 = 16 * 1024;
/// Bytes of contents that are kept.
const READ_MAX: usize = 8 << 20;
/// Files in the first request of a directory, and in the later ones. The first are about as much work as the request itself.
const FIRST: usize = 32;
const MANY: usize = MAX_FILES - WAY_MAX;
/// Directories side by side whose files are read that make it likely that the others' will be.
const HABIT: u32 = 4;
/// Longest way to their directory that is told in the same request.
const WAY_MAX: usize = 16;

/// Bytes of the listing of one directory with which contents are fetched.
const LISTED_WITH: usize = 1 << 20;

/// All of a small file.
pub(super) struct Content {
    pub(super) bytes: Box<[u8]>,
}

/// How far a directory's files have been read ahead.
#[derive(Default)]
pub(super) struct Reading {
    /// Files in it that were opened and not there.
    opened: u32,
    /// A bit for each entry of the listing, set once it has been asked for.
    asked: Vec<bool>,
    /// The files are mapped, which needs descriptors.
    off: bool,
    /// It was tried to have them come with the listing after all.
    listed_again: bool,
    /// The directory above has counted this one.
    counted: bool,
}

impl Reading {
    /// No file has been read ahead by itself.
    pub(super) fn is_unread(&self) -> bool {
        self.asked.is_empty()
    }
}

impl GoferInode {
    /// All of this file, if it was read ahead or is now, along with others.
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

    /// The content of the file `name` in here, which is `file`, if it came along with the listing. A copy: who has it open shall not keep all of the
    /// listing. It is that of the time at which the file had the attributes that are known.
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

    /// Files of this directory are read.
    fn is_read(&self, r: &mut Reading) {
        if let (false, Some((dir, _))) = (r.counted, &self.origin) {
            r.counted = true;
            dir.read_below.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether files are read in directories of this one, and in a quarter of those that were listed. Some do so in another order than the
    /// listing's, and come to the others later.
    fn reads_below(&self) -> bool {
        let (listed, read) = (self.listed_below.load(Ordering::Relaxed), self.read_below.load(Ordering::Relaxed));
        read >= HABIT && read.saturating_mul(4) >= listed
    }

    /// Whether this is the first file in here to be read, and there are others to be read beside this directory.
    fn starts_reading(&self) -> bool {
        if !self.origin.as_ref().is_some_and(|(dir, _)| dir.reads_below()) || self.fs.changed.load(Ordering::Acquire) {
            return false;
        }
        let bare = self.listing.lock().as_ref().is_some_and(|l| !l.with_contents);
        let mut r = self.reading.lock();
        bare && r.is_unread() && !r.off && !std::mem::replace(&mut r.listed_again, true)
    }

    /// What to ask of listings of directories in this one: contents too, where what is listed is read.
    pub(super) fn detail_below(&self, full: bool) -> Detail {
        match full {
            true if (self.fs.trust.proven() || self.reads_below()) && self.lists_all() => Detail::Content(FILE_MAX),
            true => Detail::Attr,
            false => Detail::Names,
        }
    }

    /// The same for this directory's own listing, of which there are `before` bytes.
    pub(super) fn detail(&self, full: bool, before: usize) -> Detail {
        let most = if self.fs.trust.proven() { LISTED_WITH } else { 0 };
        match &self.origin {
            Some((dir, _)) if before <= most => dir.detail_below(full),
            _ if full => Detail::Attr,
            _ => Detail::Names,
        }
    }

    /// A listing has come: how many contents there are with it.
    pub(super) fn came_with(&self, listing: &mut Listing) {
        let n = listing.iter(0).filter(|e| e.content.is_some()).count();
        listing.with_contents = n > 0;
        if n > 0 {
            self.fs.trust.read(u32::try_from(n).unwrap_or(u32::MAX));
        }
    }

    /// The content of this file would have better been a descriptor; and so would that of its neighbours.
    pub(super) fn is_mapped(&self) {
        if let Some((dir, _)) = &self.origin {
            dir.reading.lock().off = true;
        }
    }

    /// The file `name` is being opened: reads it and some of those listed after it, if that is likely to pay.
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
            // The reply was full.
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
