//! Path resolution (path_resolution(7), openat2(2)).

use super::perm::{may_follow, search};
use super::{Dentry, FsContext, MountFlags, Path};
use crate::error::{Errno, Result};
use crate::kernel::{Cred, Task};
use parking_lot::Mutex;
use platform::executor::Rounds;
use std::borrow::Cow;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::Arc;

/// Symbolic links that one resolution follows.
const MAX_LINKS: u32 = 40;
const NAME_MAX: usize = 255;
/// Components that one prefetch asks for.
const PREFETCH_MAX: usize = 32;

bitflags::bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct LookupFlags: u32 {
        /// Follow a symbolic link in the last component.
        const FOLLOW = 1;
        /// The result must be a directory.
        const DIRECTORY = 2;
        /// An empty path means the start (`AT_EMPTY_PATH`).
        const EMPTY_PATH = 4;
        /// A regular file at the end will be opened for reading (a hint).
        const WILL_OPEN = 8;
        /// `RESOLVE_*` of openat2(2).
        const NO_XDEV = 0x100;
        const NO_MAGICLINKS = 0x200;
        const NO_SYMLINKS = 0x400;
        const BENEATH = 0x800;
        const IN_ROOT = 0x1000;
        /// Going through a mount does not count as a use of it (`MNT_EXPIRE`).
        const KEEP_MARK = 0x2000;
    }
}

/// Where a resolution gets the root from: only absolute paths and `..` need it.
pub enum RootRef<'a> {
    Task(&'a Mutex<FsContext>),
    Fixed(Path),
}

/// The last component of a path whose parent was resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Last {
    Name(Vec<u8>),
    Dot,
    DotDot,
    /// The path was "/".
    Root,
}

/// What [`Resolver::parent`] finds.
pub struct Parent {
    pub dir: Path,
    pub last: Last,
    /// Slashes follow the last component: it must be (or become) a directory.
    pub slash: bool,
}

impl Parent {
    /// The last name; `or` for `.`, `..` and `/`.
    pub fn name(&self, or: Errno) -> Result<&[u8]> {
        match &self.last {
            Last::Name(n) => Ok(n),
            _ => Err(or),
        }
    }
}

/// One resolution. Its result depends on the credentials, the root and the flags.
pub struct Resolver<'a> {
    pub cred: &'a Cred,
    pub root: RootRef<'a>,
    pub flags: LookupFlags,
    links: u32,
    /// With `BENEATH` or `IN_ROOT`: where the resolution began.
    top: Option<Path>,
    rounds: Rounds,
}

enum Step {
    To(Path),
    /// A symbolic link with this text.
    Link(Vec<u8>),
    Missing,
}

impl<'a> Resolver<'a> {
    pub fn new(cred: &'a Cred, root: RootRef<'a>, flags: LookupFlags) -> Self {
        Resolver { cred, root, flags, links: 0, top: None, rounds: Rounds::new() }
    }

    fn root(&self) -> Path {
        match &self.root {
            RootRef::Task(fs) => fs.lock().root.clone(),
            RootRef::Fixed(p) => p.clone(),
        }
    }

    /// The existing object that `path` names, starting at `start` if it is relative.
    pub fn resolve(&mut self, start: Path, path: &[u8]) -> Result<Path> {
        if path.is_empty() {
            return if self.flags.contains(LookupFlags::EMPTY_PATH) { Ok(start) } else { Err(Errno::ENOENT) };
        }
        let p = self.walk(start, path, false)?;
        if (p.slash || self.flags.contains(LookupFlags::DIRECTORY)) && !p.dir.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        Ok(p.dir)
    }

    /// The directory in which the last component of `path` is, and that component, which is not looked up.
    pub fn parent(&mut self, start: Path, path: &[u8]) -> Result<Parent> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        self.walk(start, path, true)
    }

    fn walk(&mut self, start: Path, path: &[u8], want_parent: bool) -> Result<Parent> {
        if self.top.is_none() && self.flags.intersects(LookupFlags::BENEATH | LookupFlags::IN_ROOT) {
            self.top = Some(start.clone());
        }
        let mut cur = start;
        let mut path: Cow<'_, [u8]> = Cow::Borrowed(path);
        let mut i = 0;
        if path.first() == Some(&b'/') {
            cur = self.absolute(&cur)?;
        }
        let mut prefetched = false;
        let mut last_slash = false;
        loop {
            // A component is what stands between slashes.
            while path.get(i) == Some(&b'/') {
                i += 1;
                last_slash = true;
            }
            if i >= path.len() {
                let last = if path.iter().all(|&b| b == b'/') { Last::Root } else { Last::Dot };
                return Ok(Parent { dir: cur, last, slash: last_slash });
            }
            let end = path[i..].iter().position(|&b| b == b'/').map_or(path.len(), |n| i + n);
            let slash = end < path.len();
            let rest = path[end..].iter().position(|&b| b != b'/').map(|n| end + n);
            let last = rest.is_none();
            if !cur.is_dir() {
                return Err(Errno::ENOTDIR);
            }
            // A path and the links on it are 64,000 steps at most.
            match search(cur.inode(), self.cred)? {
                true => self.rounds.look(),
                false => self.rounds.next(),
            }
            let name = &path[i..end];
            let next_at = rest.unwrap_or(path.len());
            last_slash = slash;
            match name {
                b"." => {
                    if last && want_parent {
                        return Ok(Parent { dir: cur, last: Last::Dot, slash });
                    }
                    i = next_at;
                    continue;
                }
                b".." => {
                    if last && want_parent {
                        return Ok(Parent { dir: cur, last: Last::DotDot, slash });
                    }
                    cur = self.up(cur)?;
                    i = next_at;
                    continue;
                }
                _ => {}
            }
            if last && want_parent {
                return Ok(Parent { dir: cur, last: Last::Name(name.to_vec()), slash });
            }
            if name.len() > NAME_MAX {
                return Err(Errno::ENAMETOOLONG);
            }
            if !prefetched && cur.dentry().cached(name).is_none() {
                prefetched = true;
                self.prefetch(&cur, &path[i..], want_parent);
            }
            let follow = !last || slash || self.flags.contains(LookupFlags::FOLLOW);
            match self.step(&cur, name, follow, last)? {
                Step::To(p) => {
                    cur = p;
                    i = next_at;
                    if last {
                        return Ok(Parent { dir: cur, last: Last::Dot, slash });
                    }
                }
                Step::Missing => return Err(Errno::ENOENT),
                Step::Link(text) => {
                    if text.is_empty() {
                        return Err(Errno::ENOENT);
                    }
                    if text.first() == Some(&b'/') {
                        cur = self.absolute(&cur)?;
                    }
                    let mut joined = text;
                    joined.extend_from_slice(&path[end..]);
                    path = Cow::Owned(joined);
                    i = 0;
                    prefetched = false;
                    last_slash = false;
                }
            }
        }
    }

    /// One name in one directory: through mounts, and to the text of a symbolic link if `follow`.
    fn step(&mut self, dir: &Path, name: &[u8], follow: bool, last: bool) -> Result<Step> {
        let Some(dentry) = dir.dentry().lookup(name)? else { return Ok(Step::Missing) };
        let next = self.cross(Path::new(dir.mount().clone(), dentry))?;
        if !follow || !next.dentry().is_symlink() {
            return Ok(Step::To(next));
        }
        self.links += 1;
        if self.links > MAX_LINKS || self.flags.contains(LookupFlags::NO_SYMLINKS) {
            return Err(Errno::ELOOP);
        }
        if next.mount().flags().contains(MountFlags::NOSYMFOLLOW) {
            return Err(Errno::ELOOP);
        }
        if last {
            may_follow(dir.inode(), next.inode(), self.cred)?;
        }
        if let Some(magic) = next.inode().follow_magic(self.cred) {
            if self.flags.contains(LookupFlags::NO_MAGICLINKS) {
                return Err(Errno::ELOOP);
            }
            let to = magic?;
            if self.flags.intersects(LookupFlags::BENEATH | LookupFlags::IN_ROOT)
                || (self.flags.contains(LookupFlags::NO_XDEV) && !Arc::ptr_eq(to.mount(), dir.mount()))
            {
                return Err(Errno::EXDEV);
            }
            return Ok(Step::To(to));
        }
        next.inode().readlink().map(Step::Link)
    }

    /// The topmost mount at a place.
    fn cross(&self, mut p: Path) -> Result<Path> {
        while p.dentry().mounted.load(Acquire) > 0 {
            let Some(m) = p.mount().covering(p.dentry()) else { break };
            if self.flags.contains(LookupFlags::NO_XDEV) {
                return Err(Errno::EXDEV);
            }
            if m.expiring.load(Relaxed) && !self.flags.contains(LookupFlags::KEEP_MARK) {
                m.expiring.store(false, Relaxed);
            }
            p = m.root();
        }
        Ok(p)
    }

    fn absolute(&self, cur: &Path) -> Result<Path> {
        if self.flags.contains(LookupFlags::BENEATH) {
            return Err(Errno::EXDEV);
        }
        if let Some(top) = &self.top {
            return Ok(top.clone());
        }
        let root = self.root();
        if self.flags.contains(LookupFlags::NO_XDEV) && !Arc::ptr_eq(root.mount(), cur.mount()) {
            return Err(Errno::EXDEV);
        }
        Ok(root)
    }

    /// `..`
    fn up(&self, cur: Path) -> Result<Path> {
        let root = self.top.clone().unwrap_or_else(|| self.root());
        let mut at = cur;
        loop {
            if at == root {
                return if self.flags.contains(LookupFlags::BENEATH) { Err(Errno::EXDEV) } else { Ok(at) };
            }
            if !Arc::ptr_eq(at.dentry(), at.mount().root_dentry()) {
                break;
            }
            match at.mount().mountpoint() {
                Some(p) => {
                    if self.flags.contains(LookupFlags::NO_XDEV) {
                        return Err(Errno::EXDEV);
                    }
                    at = p;
                }
                None => return Ok(at),
            }
        }
        match at.dentry().parent() {
            Some(p) if !at.mount().shows(&p)? => Err(Errno::ENOENT),
            Some(p) => self.cross(Path::new(at.mount().clone(), p)),
            None => Ok(at),
        }
    }

    /// Tells the file system the names to come, up to the first that is not plain.
    fn prefetch(&self, dir: &Path, rest: &[u8], want_parent: bool) {
        let all = rest.split(|&b| b == b'/').filter(|c| !c.is_empty());
        let plain = |c: &&[u8]| *c != b"." && *c != b".." && c.len() <= NAME_MAX;
        let names: Vec<&[u8]> = all.take_while(plain).take(PREFETCH_MAX).collect();
        let open = self.flags.contains(LookupFlags::WILL_OPEN) && !want_parent;
        if names.len() > 1 || open {
            dir.inode().prefetch(&names, open);
        }
    }
}

/// The directory where a relative path starts.
pub fn start(task: &Task, dirfd: i32, path: &[u8], flags: LookupFlags) -> Result<Path> {
    if path.first() == Some(&b'/') && !flags.intersects(LookupFlags::BENEATH | LookupFlags::IN_ROOT) {
        return Ok(task.fs.read().lock().root.clone());
    }
    if dirfd == libc::AT_FDCWD {
        return Ok(task.fs.read().lock().cwd.clone());
    }
    let file = task.files.read().get(dirfd)?;
    match &file.path {
        Some(p) => Ok(p.clone()),
        None if path.is_empty() && flags.contains(LookupFlags::EMPTY_PATH) => super::anon_path(&file),
        None if path.is_empty() => Err(Errno::ENOENT),
        None => Err(Errno::ENOTDIR),
    }
}

/// The existing object that `path` names for `task`. Without [`LookupFlags::FOLLOW`], a symbolic link itself.
pub fn resolve(task: &Task, dirfd: i32, path: &[u8], flags: LookupFlags) -> Result<Path> {
    if path.is_empty() && !flags.contains(LookupFlags::EMPTY_PATH) {
        return Err(Errno::ENOENT);
    }
    let from = start(task, dirfd, path, flags)?;
    let cred = task.cred.read().clone();
    let fs = task.fs.read().clone();
    Resolver::new(&cred, RootRef::Task(&fs), flags).resolve(from, path)
}

/// The parent directory and last component of `path` for `task`.
pub fn resolve_parent(task: &Task, dirfd: i32, path: &[u8], flags: LookupFlags) -> Result<Parent> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    let from = start(task, dirfd, path, flags)?;
    let cred = task.cred.read().clone();
    let fs = task.fs.read().clone();
    Resolver::new(&cred, RootRef::Task(&fs), flags).parent(from, path)
}

/// Looks `name` up in `dir` as the last step of a creating call does: through mounts, symbolic links as they are.
pub(super) fn child(dir: &Path, name: &[u8]) -> Result<Option<Path>> {
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let Some(d) = dir.dentry().lookup(name)? else { return Ok(None) };
    Ok(Some(topmost(dir, d)))
}

/// The topmost mount over a dentry found in `dir`.
pub(super) fn topmost(dir: &Path, d: Arc<Dentry>) -> Path {
    uppermost(Path::new(dir.mount().clone(), d))
}

/// The topmost mount at a place. What a walk has found is that already, unless the path was `.`, or a descriptor's.
pub fn uppermost(mut p: Path) -> Path {
    while p.dentry().mounted.load(Acquire) > 0 {
        let Some(m) = p.mount().covering(p.dentry()) else { break };
        p = m.root();
    }
    p
}

impl Resolver<'_> {
    /// Follows the symbolic link `link` found in `dir` for a creating open: counts it, and gives its text or its magic place.
    pub(super) fn follow_last(&mut self, dir: &Path, link: &Path) -> Result<std::result::Result<Path, Vec<u8>>> {
        self.links += 1;
        if self.links > MAX_LINKS || self.flags.contains(LookupFlags::NO_SYMLINKS) {
            return Err(Errno::ELOOP);
        }
        if link.mount().flags().contains(MountFlags::NOSYMFOLLOW) {
            return Err(Errno::ELOOP);
        }
        may_follow(dir.inode(), link.inode(), self.cred)?;
        if let Some(magic) = link.inode().follow_magic(self.cred) {
            if self.flags.intersects(LookupFlags::NO_MAGICLINKS) {
                return Err(Errno::ELOOP);
            }
            let to = magic?;
            if self.flags.intersects(LookupFlags::BENEATH | LookupFlags::IN_ROOT)
                || (self.flags.contains(LookupFlags::NO_XDEV) && !Arc::ptr_eq(to.mount(), dir.mount()))
            {
                return Err(Errno::EXDEV);
            }
            return Ok(Ok(to));
        }
        link.inode().readlink().map(Err)
    }
}
