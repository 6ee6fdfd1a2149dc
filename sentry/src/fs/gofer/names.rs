//! Name lookups in a directory: the cached names, names fetched together with others, and listings.

use super::handles::full;
use super::*;
use platform::executor::Rounds;
use protocol::client::{DirEntry, DirPage, List};
use protocol::{FileKind, MAX_DIR_BYTES};

/// Bytes of listings to fetch ahead before the hit rate is known.
const FIRST_TREE: u32 = 16 * 1024;
/// Subdirectories listed after which the next ones are expected to be listed.
const HABIT: u32 = 2;
/// Largest directory that is listed at once while programs look up what they list.
const FEW: u64 = 256;

impl GoferInode {
    /// The entries, for readdir.
    pub(super) fn entries(&self) -> Result<Arc<Listing>> {
        let left = self.fs.looked_up.load(Ordering::Relaxed);
        if left > 0 {
            self.fs.looked_up.store(left - 1, Ordering::Relaxed);
        }
        Ok(self.list(self.fs.exclusive && left > 0)?.0)
    }

    /// The entries, and whether they can be cached. `full`: with attributes, unless there are too many.
    pub(super) fn list(&self, full: bool) -> Result<(Arc<Listing>, bool)> {
        let full = full && !self.fs.changed.load(Ordering::Acquire);
        if self.fs.exclusive {
            if let Some(l) = self.listed_before(full).or_else(|| self.list_ahead(full)) {
                return Ok((l, true));
            }
        }
        let (mut out, mut handle, mut page) = match self.begun(full) {
            Some((out, cookie)) => {
                let detail = self.detail(full, out.size());
                (out, None, self.handle()?.read_dir(cookie, detail)?)
            }
            None => {
                let (handle, page) = self.first_page(self.detail(full, 0))?;
                (Listing::new(full), handle, page)
            }
        };
        let mut rounds = Rounds::new();
        loop {
            (0..page.len()).for_each(|_| rounds.next());
            let eof = page.eof;
            let Some(cookie) = out.push(page)?.filter(|_| !eof) else { break };
            let full = full && out.len() < FULL_MAX;
            out.full &= full;
            let detail = self.detail(full, out.size());
            page = match &handle {
                Some(h) => h.read_dir(cookie, detail)?,
                None => self.handle()?.read_dir(cookie, detail)?,
            };
        }
        drop(handle.take());
        out.finish();
        self.came_with(&mut out);
        let keep = self.fs.exclusive && out.size() < LISTED_MAX / 4;
        let l = Arc::new(out);
        if let (Some((dir, _)), true) = (&self.origin, keep) {
            l.used.store(true, Ordering::Relaxed);
            dir.listed_below.fetch_add(1, Ordering::Relaxed);
            dir.used_below.fetch_add(1, Ordering::Relaxed);
        }
        if keep {
            self.keep_listing(l.clone());
        }
        Ok((l, keep))
    }

    /// The first part of the listing, if a listing ahead ended early in this directory.
    fn begun(&self, full: bool) -> Option<(Listing, u64)> {
        let mut begun = self.fs.begun.lock();
        let (_, l, cookie) = begun.take_if(|(i, l, _)| Weak::ptr_eq(i, &self.me) && (l.full || !full))?;
        // This counts as a use of the listing fetched ahead.
        self.fs.trees.used();
        Some((l, cookie))
    }

    fn first_page(&self, detail: Detail) -> Result<(Option<Handle>, DirPage)> {
        if let Some(h) = self.held() {
            return Ok((None, h.read_dir(0, detail)?));
        }
        let way = self.way()?;
        let list = match way.start.list(&way.names, detail) {
            Err(Errno::EMFILE) => {
                self.fs.let_go();
                way.start.list(&way.names, detail)
            }
            // A walk tells which name of the path is gone.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {
                return Ok((None, self.handle()?.read_dir(0, detail)?));
            }
            r => r,
        };
        let List { rest, way: found, page } = list.map_err(full)?;
        way.check(&found)?;
        Ok((rest, page))
    }

    fn keep_listing(&self, l: Arc<Listing>) {
        let new = l.size();
        let old = self.listing.lock().replace(l);
        let sizes = (old.map_or(0, |o| o.size()), new);
        Kept::add(&self.fs.listed, self, sizes, LISTED_MAX, |i| i.listing.lock().take().map_or(0, |l| l.size()));
    }

    /// The entries, if the parent directory was listed. That looks like a walk down a tree, so the listings that the
    /// walk will need next are fetched too.
    fn list_ahead(&self, full: bool) -> Option<Arc<Listing>> {
        let (dir, name) = self.origin.as_ref()?;
        let above = dir.listing.lock().clone()?;
        // Sibling directories tend to be used alike, so the parent's own counts take precedence over the tree's.
        let most = match (dir.lists_below(), &self.fs.trees) {
            (true, _) => MAX_DIR_BYTES,
            (_, trees) if trees.proven() => MAX_DIR_BYTES,
            (_, trees) if trees.disproven() => return None,
            _ => FIRST_TREE,
        };
        dir.fetch_below(&above, name, most, dir.detail_below(full), |i| i.listing.lock().is_none())?;
        self.listed_before(full)
    }

    /// Fetches the listings of this directory and its siblings again, with contents: files of the siblings are read,
    /// and now the first file of this one.
    pub(super) fn list_contents(&self) -> Option<()> {
        let (dir, name) = self.origin.as_ref()?;
        let above = dir.listing.lock().clone()?;
        let detail = dir.detail_below(true);
        let Detail::Content(_) = detail else { return None };
        dir.fetch_below(&above, name, MAX_DIR_BYTES, detail, |i| {
            let bare = i.listing.lock().as_ref().is_none_or(|l| !l.with_contents);
            bare && i.reading.lock().is_unread()
        })
    }

    /// Fetches the listing of the directory `name` in this one, those of its `wanted` siblings in the listing `above`,
    /// and those of their subdirectories.
    fn fetch_below(
        self: &Arc<Self>,
        above: &Listing,
        name: &[u8],
        most: u32,
        detail: Detail,
        wanted: impl Fn(&GoferInode) -> bool,
    ) -> Option<()> {
        let first = above.index(name)?;
        // A program that looks up what it lists uses another order, so the entries before this one are still to come.
        let before = if above.full { first } else { 0 };
        let order = above.iter(first).chain(above.iter(0).take(before)).take(4 * MAX_WALK);
        let wanted = |e: &DirEntry<'_>| {
            let known = || e.attr.and_then(|a| self.fs.nodes.lock().get(&key(&a)).and_then(Weak::upgrade));
            e.kind == FileKind::Directory && (e.name == name || known().is_none_or(|i| wanted(&i)))
        };
        let names: Vec<&[u8]> = order.filter(wanted).take(MAX_WALK).map(|e| e.name).collect();
        let pages = self.handle().ok()?.list_tree(&names, most, detail).ok()?;
        self.fs.trees.read(u32::try_from(pages.len()).unwrap_or(0));
        let full = detail.has_attr();
        let mut inodes = vec![self.clone()];
        for p in pages {
            let parent = inodes.get(p.parent)?.clone();
            let (inode, new) = self.fs.inode_or_new(&p.attr, Some((&parent, &p.name)), None, None);
            if new {
                parent.expect(&p.name, Some(inode.clone()));
            }
            let mut l = Listing::new(full);
            let eof = p.page.eof;
            let last = l.push(p.page).ok()?;
            if let (false, Some(cookie)) = (eof, last) {
                *self.fs.begun.lock() = Some((Arc::downgrade(&inode), l, cookie));
                break;
            }
            l.finish();
            inode.came_with(&mut l);
            let old = inode.listing.lock().clone();
            match old {
                None if p.parent == 0 => {
                    self.listed_below.fetch_add(1, Ordering::Relaxed);
                }
                Some(old) => l.used.store(old.used.load(Ordering::Relaxed), Ordering::Relaxed),
                None => {}
            }
            inode.keep_listing(Arc::new(l));
            inodes.push(inode);
        }
        Some(())
    }

    /// The cached listing, if it has the detail asked for.
    fn listed_before(&self, full: bool) -> Option<Arc<Listing>> {
        let l = self.listing.lock().as_ref().filter(|l| l.full || !full || l.len() > FULL_MAX)?.clone();
        self.uses(&l);
        Some(l)
    }

    /// Records the first use of this directory's listing.
    fn uses(&self, l: &Listing) {
        if !l.used.load(Ordering::Relaxed) && !l.used.swap(true, Ordering::Relaxed) {
            self.fs.trees.used();
            if let Some((dir, _)) = &self.origin {
                dir.used_below.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether at least [`HABIT`] subdirectories were listed by programs, and a quarter of those fetched. A quarter is
    /// enough because a program may visit them in another order than the listing's.
    fn lists_below(&self) -> bool {
        let (came, used) = (self.listed_below.load(Ordering::Relaxed), self.used_below.load(Ordering::Relaxed));
        used >= HABIT && used.saturating_mul(4) >= came
    }

    /// Whether an unlisted name does not exist. File systems that create names on lookup (autofs) have no block device.
    pub(super) fn lists_all(&self) -> bool {
        libc::major(self.key.0) != 0 || self.fs.devs.lock().first() == Some(&self.key.0)
    }

    /// The cached answer for a name. A node is taken out of `ahead`.
    pub(super) fn known(self: &Arc<Self>, name: &[u8]) -> CachedName {
        {
            let mut ahead = self.ahead.lock();
            match ahead.get(name) {
                // A missing name stays cached: the overlay asks again for names that exist in its upper layer.
                Some(None) => return CachedName::Missing,
                Some(Some(_)) => {
                    if let Some(Some(i)) = ahead.remove(name) {
                        return CachedName::Node(i);
                    }
                }
                None => {}
            }
        }
        let listing = self.listing.lock().clone();
        let Some(listing) = listing else { return CachedName::Unknown };
        self.uses(&listing);
        match listing.find(name) {
            None if self.lists_all() => CachedName::Missing,
            Some(DirEntry { attr: Some(a), .. }) if !self.fs.changed.load(Ordering::Acquire) => {
                // The root is listed without a program's request, so its use says nothing.
                if self.origin.is_some() {
                    self.fs.looked_up.store(LOOKED_UP, Ordering::Relaxed);
                }
                CachedName::Node(self.fs.inode(&a, Some((self, name)), None, None))
            }
            _ => CachedName::Unknown,
        }
    }

    /// Caches an answer for a coming lookup.
    pub(super) fn expect(&self, name: &[u8], found: Option<Arc<GoferInode>>) {
        let mut ahead = self.ahead.lock();
        let old = if ahead.len() >= AHEAD_MAX { std::mem::take(&mut *ahead) } else { NameMap::default() };
        ahead.insert(name.into(), found);
        drop(ahead);
        // Inodes must not be dropped while `ahead` is locked.
        drop(old);
    }

    /// Whether to fetch the whole listing rather than one more name. An entry of a listing costs the Gofer about a
    /// sixteenth of a request, so this waits until single requests have cost as much, unless programs look up what they
    /// list.
    pub(super) fn worth_listing(&self) -> bool {
        let misses = self.misses.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if self.fs.changed.load(Ordering::Acquire) {
            return false;
        }
        let listed = self.listing.lock().as_ref().map(|l| (l.full, l.len()));
        match listed {
            Some((full, n)) => !full && misses >= 2 && n <= FULL_MAX,
            None => {
                let guess = self.attr.read().size / 48;
                if self.fs.looked_up.load(Ordering::Relaxed) > 0 && guess <= FEW {
                    // Programs look up what they list, and this directory is next.
                    return misses >= 2 || self.origin.as_ref().is_some_and(|(d, _)| d.lists_below());
                }
                misses >= 4 && u64::from(misses) * 16 > guess && guess < FULL_MAX as u64
            }
        }
    }

    /// Like `known`, after fetching the listing if that pays.
    pub(super) fn find_out(self: &Arc<Self>, name: &[u8]) -> Result<CachedName> {
        let known = self.known(name);
        if !matches!(known, CachedName::Unknown) || !self.worth_listing() {
            return Ok(known);
        }
        self.list(true)?;
        Ok(self.known(name))
    }
}
