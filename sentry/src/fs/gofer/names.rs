//! Names in a directory: what is known without asking, what is asked for along with others, listings.

use super::*;

impl GoferInode {
    /// The entries, for a reader.
    pub(super) fn entries(&self) -> Result<Arc<Listing>> {
        let left = self.fs.looked_up.load(Ordering::Relaxed);
        if left > 0 {
            self.fs.looked_up.store(left - 1, Ordering::Relaxed);
        }
        Ok(self.list(self.fs.exclusive && left > 0)?.0)
    }

    /// The entries, `full`: with attributes, unless there are very many; and whether they can be kept.
    pub(super) fn list(&self, full: bool) -> Result<(Arc<Listing>, bool)> {
        let full = full && !self.fs.changed.load(Ordering::Acquire);
        if self.fs.exclusive {
            if let Some(l) = self.listing.lock().as_ref().filter(|l| l.full || !full || l.len() > FULL_MAX) {
                return Ok((l.clone(), true));
            }
        }
        let mut out = Listing::new(full);
        let (mut handle, mut page) = match self.held() {
            Some(h) => (None, h.read_dir(0, full)?),
            None => {
                let (start, names) = self.way()?;
                match start.list(&names, full) {
                    Err(Errno::EMFILE) => {
                        self.fs.let_go();
                        start.list(&names, full)?
                    }
                    r => r?,
                }
            }
        };
        while let (Some(cookie), false) = (out.push(&page)?, page.eof) {
            let full = full && out.len() < FULL_MAX;
            out.full &= full;
            page = match &handle {
                Some(h) => h.read_dir(cookie, full)?,
                None => self.handle()?.read_dir(cookie, full)?,
            };
        }
        drop(handle.take());
        out.finish();
        let keep = self.fs.exclusive && out.size() < LISTED_MAX / 4;
        let l = Arc::new(out);
        if keep {
            let old = self.listing.lock().replace(l.clone());
            let sizes = (old.map_or(0, |o| o.size()), l.size());
            Kept::add(&self.fs.listed, self, sizes, LISTED_MAX, |i| i.listing.lock().take().map_or(0, |l| l.size()));
        }
        Ok((l, keep))
    }

    /// Whether a name that is not listed is missing: file systems that make up names on demand are not on a disk.
    pub(super) fn lists_all(&self) -> bool {
        libc::major(self.key.0) != 0 || self.fs.devs.lock().first() == Some(&self.key.0)
    }

    /// What is known about a name. Takes it out of `ahead`.
    pub(super) fn known(self: &Arc<Self>, name: &[u8]) -> Known {
        {
            let mut ahead = self.ahead.lock();
            match ahead.get(name) {
                // What does not exist is kept: the overlay asks again for names it has made itself.
                Some(None) => return Known::Missing,
                Some(Some(_)) => {
                    if let Some(Some(i)) = ahead.remove(name) {
                        return Known::Node(i);
                    }
                }
                None => {}
            }
        }
        let listing = self.listing.lock().clone();
        let Some(listing) = listing else { return Known::Unknown };
        match listing.find(name) {
            None if self.lists_all() => Known::Missing,
            Some(protocol::client::DirEntry { attr: Some(a), .. }) if !self.fs.changed.load(Ordering::Acquire) => {
                self.fs.looked_up.store(LOOKED_UP, Ordering::Relaxed);
                Known::Node(self.fs.inode(&a, Some((self, name)), None, None))
            }
            _ => Known::Unknown,
        }
    }

    /// Notes what was found, for a lookup to come.
    pub(super) fn expect(&self, name: &[u8], found: Option<Arc<GoferInode>>) {
        let mut ahead = self.ahead.lock();
        let old = if ahead.len() >= AHEAD_MAX { std::mem::take(&mut *ahead) } else { NameMap::default() };
        ahead.insert(name.into(), found);
        drop(ahead);
        // Inodes go with nothing locked.
        drop(old);
    }

    /// The Gofer is about to be asked for one more name: is it better asked for all? An entry of a listing costs it about a sixteenth of
    /// a request, so this waits until the single requests have cost as much; but listing and then looking up is a habit.
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
                misses >= 4 && u64::from(misses) * 16 > guess && guess < FULL_MAX as u64
            }
        }
    }

    /// As `known`, after fetching the listing if that is worth it.
    pub(super) fn find_out(self: &Arc<Self>, name: &[u8]) -> Result<Known> {
        let known = self.known(name);
        if !matches!(known, Known::Unknown) || !self.worth_listing() {
            return Ok(known);
        }
        self.list(true)?;
        Ok(self.known(name))
    }
}
