//! Mount namespaces (mount_namespaces(7)) and all changes of the table of mounts: mount, bind, move, unmount,
//! pivot_root, copies.
//!
//! One lock ([`TABLE`]) for all of them, like Linux's `namespace_sem`; walks do not take it. A change is planned as a
//! whole, with what is passed on to other mounts ([`super::propagation`]), and counted, before anything happens;
//! planning may be given up for a second try (`Rounds::step`), carrying out may not.
//!
//! No reference to a mount that goes is dropped under the lock: the last one can take a namespace along (a bind mount
//! of its file), whose mounts then go as well.

use super::mount::{Home, Mount, MountFlags, MountLocks};
use super::propagation::{self, change, copy, is_shared, is_unbindable, CopyType, PropagationType, Target};
use super::walk::uppermost;
use super::{Dentry, Path};
use crate::error::{later, Errno, Result};
use crate::fs::nsfs;
use crate::kernel::ns::{Maker, Namespace, NsCommon, NsKind};
use crate::kernel::user_ns::UserNs;
use parking_lot::{Mutex, MutexGuard, RwLock};
use platform::executor::{self, Rounds};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Most mounts of the sandbox, in all namespaces and detached trees (`fs.mount-max`).
pub const MAX_MOUNTS: usize = 100_000;

/// How many mounts there are.
struct Table {
    count: usize,
}

static TABLE: Mutex<Table> = Mutex::new(Table { count: 0 });

/// The table's lock. It may be held for long: a thread that must wait gives its other work away first.
fn lock_table() -> MutexGuard<'static, Table> {
    TABLE.try_lock().unwrap_or_else(|| executor::aside(|| TABLE.lock()))
}

/// As [`lock_table`], in what can be made again from its beginning.
fn ask_table() -> Result<MutexGuard<'static, Table>> {
    if let Some(table) = TABLE.try_lock() {
        return Ok(table);
    }
    executor::ask_room().map_err(later)?;
    Ok(executor::aside(|| TABLE.lock()))
}

static NEXT_HOME: AtomicU64 = AtomicU64::new(1);

impl Table {
    /// Whether `n` more would fit.
    fn room(&self, n: usize) -> Result<()> {
        self.count.checked_add(n).filter(|all| *all < MAX_MOUNTS).map(|_| ()).ok_or(Errno::ENOSPC)
    }
}

/// A mount of a tree, parents before children: the index of its parent in the list, its place there, and the mount.
struct Node {
    parent: usize,
    at: Arc<Dentry>,
    mount: Arc<Mount>,
}

/// Which mounts of a tree are copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Select {
    /// All but files of mount namespaces (a copy of a namespace).
    Namespace,
    /// All but those that are unbindable (a bind mount).
    Bindable,
    All,
}

/// The mount of `from` and those below that are on `from`'s part of it, but for `except`.
fn nodes(from: &Path, select: Select, except: Option<&Path>, room: impl Fn(usize) -> Result<()>) -> Result<Vec<Node>> {
    let mut out = vec![Node { parent: 0, at: from.dentry().clone(), mount: from.mount().clone() }];
    let mut rounds = Rounds::new();
    let mut next = 0;
    while let Some(node) = out.get(next) {
        let of = node.mount.clone();
        let root = if next == 0 { from.dentry().clone() } else { of.root_dentry().clone() };
        for (at, m) in of.children_at() {
            rounds.step().map_err(later)?;
            // What is mounted at the place itself is not bound into itself.
            let itself = except.is_some_and(|e| Arc::ptr_eq(&at, e.dentry()) && Arc::ptr_eq(&of, e.mount()));
            if itself || !at.is_within(&root)? {
                continue;
            }
            match select {
                Select::Namespace if is_mnt_ns_file(&m) => continue,
                Select::Bindable if is_unbindable(&m) => {
                    if m.locks().contains(MountLocks::PLACE) {
                        return Err(Errno::EPERM);
                    }
                    continue;
                }
                _ => {}
            }
            room(out.len() + 1)?;
            out.push(Node { parent: next, at, mount: m });
        }
        next += 1;
    }
    Ok(out)
}

fn is_mnt_ns_file(m: &Arc<Mount>) -> bool {
    matches!(nsfs::of(&m.root()), Some(Namespace::Mnt(_)))
}

/// A copy of a tree, attached to nothing, in the same order.
fn copy_nodes(of: &[Node], how: CopyType) -> Vec<Node> {
    let mut out: Vec<Node> = Vec::with_capacity(of.len());
    let mut rounds = Rounds::new();
    for n in of {
        rounds.next();
        let root = if out.is_empty() { n.at.clone() } else { n.mount.root_dentry().clone() };
        let mount = copy(&n.mount, root, how);
        if let Some(parent) = out.get(n.parent) {
            mount.attach(&Path::new(parent.mount.clone(), n.at.clone()));
        }
        out.push(Node { parent: n.parent, at: n.at.clone(), mount });
    }
    out
}

/// Drops mounts, and what goes with them, one after the other: files of namespaces that are mounted in each other can
/// make long chains.
fn let_go(mounts: Vec<Arc<Mount>>) {
    thread_local! {
        static GOING: RefCell<Vec<Arc<Mount>>> = const { RefCell::new(Vec::new()) };
        static BUSY: Cell<bool> = const { Cell::new(false) };
    }
    GOING.with_borrow_mut(|g| g.extend(mounts));
    if BUSY.replace(true) {
        return;
    }
    let mut rounds = Rounds::new();
    while let Some(m) = GOING.with_borrow_mut(Vec::pop) {
        drop(m);
        rounds.next();
    }
    BUSY.set(false);
}

/// Takes mounts, children with their parents, out of the table. What is locked to a mount that goes too stays on it.
fn dissolve(table: &mut Table, gone: &[Arc<Mount>]) {
    let ids: BTreeSet<u64> = gone.iter().map(|m| m.id).collect();
    let mut rounds = Rounds::new();
    for m in gone {
        rounds.next();
        let parent_goes = m.mountpoint().is_some_and(|p| ids.contains(&p.mount().id));
        if !(parent_goes && m.locks().contains(MountLocks::PLACE)) {
            let _ = m.detach();
        }
        change(m, PropagationType::Private);
        m.set_home(None);
    }
    table.count = table.count.saturating_sub(gone.len());
}

/// Puts the tree `source` at `place`, and copies of it where that is passed on to. `there`: how many of the source are
/// counted already.
fn attach_tree(table: &mut Table, source: Vec<Node>, place: &Path, there: usize) -> Result<()> {
    let plan = plan(place)?;
    let copies = plan.len().checked_mul(source.len()).ok_or(Errno::ENOSPC)?;
    let more = copies + (source.len() - there.min(source.len()));
    table.room(more)?;
    let home = place.mount().home().ok_or(Errno::EINVAL)?;
    keeps_no_namespace(&source, place, &plan)?;
    let mut rounds = Rounds::new();
    if is_shared(place.mount()) {
        for n in &source {
            rounds.next();
            change(&n.mount, PropagationType::Shared);
        }
    }
    table.count += more;
    let mut trees = vec![source];
    for t in &plan {
        let Some(of) = trees.get(t.of) else { continue };
        let copy = copy_nodes(of, t.how);
        trees.push(copy);
    }
    let originals = std::iter::once(place.mount()).chain(plan.iter().map(|t| &t.mount));
    for (tree, on) in trees.iter().zip(originals) {
        let target = on.home();
        let foreign = target.as_ref().is_some_and(|t| !Arc::ptr_eq(&t.owner, &home.owner));
        for (i, n) in tree.iter().enumerate() {
            rounds.next();
            n.mount.set_home(target.clone());
            if foreign {
                n.mount.lock_down(i != 0);
            }
        }
        let Some(top) = tree.first() else { continue };
        top.mount.set_locks(top.mount.locks() - MountLocks::PLACE);
        put_under(&top.mount, &Path::new(on.clone(), place.dentry().clone()));
    }
    Ok(())
}

/// The file of a mount namespace is mounted in older ones only, also where it is passed on to, or comes from a detached
/// tree (`ELOOP`): a namespace must not keep itself alive.
fn keeps_no_namespace(source: &[Node], place: &Path, plan: &[Target]) -> Result<()> {
    let file = |n: &Node| match nsfs::of(&n.mount.root()) {
        Some(Namespace::Mnt(ns)) => Some(ns.id),
        _ => None,
    };
    let Some(oldest) = source.iter().filter_map(file).min() else { return Ok(()) };
    let mut on = std::iter::once(place.mount()).chain(plan.iter().map(|t| &t.mount));
    let younger = |m: &Arc<Mount>| m.home().is_some_and(|h| !h.detached && h.id >= oldest);
    if on.any(younger) {
        return Err(Errno::ELOOP);
    }
    Ok(())
}

/// The mounts that get what is mounted at `place`.
fn plan(place: &Path) -> Result<Vec<Target>> {
    let shows = |m: &Arc<Mount>| place.dentry().is_within(m.root_dentry());
    propagation::targets(place.mount(), shows)
}

/// Puts `m` at `place`; what is mounted there moves on top of it.
fn put_under(m: &Arc<Mount>, place: &Path) {
    let over = place.mount().covering(place.dentry());
    if let Some(over) = &over {
        let _ = over.detach();
    }
    m.attach(place);
    if let Some(over) = over {
        over.attach(&uppermost(m.root()));
    }
}

/// The mounts of a container, or of processes that have unshared them.
pub struct MountNamespace {
    common: NsCommon,
    /// Of its home.
    id: u64,
    root: RwLock<Arc<Mount>>,
}

impl MountNamespace {
    /// The first one of a container.
    pub fn new(root: Arc<Mount>) -> Arc<Self> {
        let ns = Self::with(NsCommon::first(NsKind::Mnt), root);
        lock_table().count += ns.settle();
        ns
    }
    fn with(common: NsCommon, root: Arc<Mount>) -> Arc<Self> {
        let id = NEXT_HOME.fetch_add(1, Ordering::Relaxed);
        Arc::new(MountNamespace { common, id, root: RwLock::new(root) })
    }
    /// Its mounts know that they are its own; returns how many there are.
    fn settle(&self) -> usize {
        let home = Home { id: self.id, owner: self.common.owner(), detached: false };
        let all = self.root.read().all();
        for m in &all {
            m.set_home(Some(home.clone()));
        }
        all.len()
    }
    pub fn common(&self) -> &NsCommon {
        &self.common
    }
    pub fn root(&self) -> Path {
        self.root.read().root()
    }
    /// Whether the mount is in this namespace.
    pub fn has(&self, m: &Mount) -> bool {
        m.lives_in(self.id)
    }
    fn own(&self, m: &Mount) -> Result<()> {
        self.has(m).then_some(()).ok_or(Errno::EINVAL)
    }

    /// A copy of all mounts; `moved` then are the same places in the copy.
    pub fn copy(&self, maker: &Maker, moved: &mut [&mut Path]) -> Result<Arc<Self>> {
        let common = maker.common(NsKind::Mnt)?;
        let mut table = ask_table()?;
        let of = nodes(&self.root(), Select::Namespace, None, |n| table.room(n))?;
        table.room(of.len())?;
        let foreign = !Arc::ptr_eq(&maker.owner, &self.common.owner());
        let copies = copy_nodes(&of, if foreign { CopyType::SharedToSlave } else { CopyType::Peer });
        let mut rounds = Rounds::new();
        let mut twins = BTreeMap::new();
        for (i, (old, new)) in of.iter().zip(&copies).enumerate() {
            rounds.next();
            if foreign {
                new.mount.lock_down(i != 0);
            }
            twins.insert(old.mount.id, &new.mount);
        }
        let root = copies.first().ok_or(Errno::EINVAL)?.mount.clone();
        let ns = Self::with(common, root);
        table.count += ns.settle();
        for path in moved {
            if let Some(twin) = twins.get(&path.mount().id) {
                **path = Path::new((*twin).clone(), path.dentry().clone());
            }
        }
        Ok(ns)
    }

    /// Where to mount: the topmost mount at `place`, which must be in this namespace and fit `dir`.
    fn place(&self, place: &Path, dir: bool, mismatch: Errno) -> Result<Path> {
        let place = uppermost(place.clone());
        if place.mount().home().is_none() {
            return Err(Errno::ENOENT);
        }
        self.own(place.mount())?;
        if dir != place.is_dir() {
            return Err(mismatch);
        }
        if place.dentry().is_deleted() {
            return Err(Errno::ENOENT);
        }
        Ok(place)
    }

    /// Mounts `mount`, a new one, on `place`.
    pub fn mount(&self, mount: &Arc<Mount>, place: &Path) -> Result<()> {
        let mut table = ask_table()?;
        let place = self.place(place, mount.root_dentry().is_dir(), Errno::ENOTDIR)?;
        let source = vec![Node { parent: 0, at: mount.root_dentry().clone(), mount: mount.clone() }];
        attach_tree(&mut table, source, &place, 0)
    }

    /// Whether the caller may make copies of the mounts at `from`; `EINVAL` if not.
    fn may_copy(&self, from: &Path, recursive: bool) -> Result<()> {
        let file = nsfs::of(from).is_some();
        let detached = from.mount().home().is_some_and(|h| h.detached);
        if is_unbindable(from.mount()) || !(file || detached || self.has(from.mount())) {
            return Err(Errno::EINVAL);
        }
        if let Some(Namespace::Mnt(ns)) = nsfs::of(from) {
            // Only in an older one: a namespace must not keep itself alive.
            if self.id >= ns.id {
                return Err(Errno::EINVAL);
            }
        }
        if !recursive && has_locked_children(from)? {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// Whether what is at `from`, without the mounts below, may be shown elsewhere, as by a bind mount.
    pub fn may_show(&self, from: &Path) -> Result<()> {
        let _table = ask_table()?;
        self.may_copy(from, false)
    }

    fn clone_tree(table: &Table, from: &Path, except: Option<&Path>, recursive: bool) -> Result<Vec<Node>> {
        let of = match recursive {
            true => nodes(from, Select::Bindable, except, |n| table.room(n))?,
            false => vec![Node { parent: 0, at: from.dentry().clone(), mount: from.mount().clone() }],
        };
        table.room(of.len())?;
        let copies = copy_nodes(&of, CopyType::Peer);
        if let Some(top) = copies.first() {
            top.mount.set_locks(top.mount.locks() - MountLocks::PLACE);
        }
        Ok(copies)
    }

    /// A bind mount of `from` at `place`; with `recursive` also of the mounts below `from`.
    pub fn bind(&self, from: &Path, place: &Path, recursive: bool) -> Result<Arc<Mount>> {
        let mut table = ask_table()?;
        self.may_copy(from, recursive)?;
        let place = self.place(place, from.is_dir(), Errno::ENOTDIR)?;
        let copies = Self::clone_tree(&table, from, Some(&place), recursive)?;
        let top = copies.first().ok_or(Errno::EINVAL)?.mount.clone();
        // What does not fit in the end goes after the lock.
        let keep: Vec<Arc<Mount>> = copies.iter().map(|n| n.mount.clone()).collect();
        let done = attach_tree(&mut table, copies, &place, 0);
        if done.is_err() {
            keep.iter().for_each(|m| change(m, PropagationType::Private));
        }
        drop(table);
        let_go(keep);
        done.map(|()| top)
    }

    /// `open_tree` with `OPEN_TREE_CLONE`: as a bind mount that is nowhere.
    pub fn detached_copy(&self, from: &Path, recursive: bool) -> Result<Arc<DetachedTree>> {
        let mut table = ask_table()?;
        self.may_copy(from, recursive)?;
        let copies = Self::clone_tree(&table, from, None, recursive)?;
        let root = copies.first().ok_or(Errno::EINVAL)?.mount.clone();
        Ok(DetachedTree::settle(&mut table, root, self.common.owner()))
    }

    /// umount2(2) of the mount whose root `at` is.
    pub fn umount(&self, at: Path, lazy: bool) -> Result<()> {
        let mut table = ask_table()?;
        let m = at.mount();
        if !Arc::ptr_eq(m.root_dentry(), at.dentry()) {
            return Err(Errno::EINVAL);
        }
        self.own(m)?;
        if m.locks().contains(MountLocks::PLACE) {
            return Err(Errno::EINVAL);
        }
        let parent = m.mountpoint().ok_or(Errno::EINVAL)?;
        // The parent's list and the caller's path.
        if !lazy && (m.has_children() || Arc::strong_count(m) > 2) {
            return Err(Errno::EBUSY);
        }
        let mut gone = m.all();
        let passed = passed_on(&parent, m, &gone, lazy)?;
        drop(parent);
        let slid = slide(&passed);
        gone.extend(passed);
        dissolve(&mut table, &gone);
        for (over, place) in slid {
            over.attach(&place);
        }
        drop(table);
        let_go(gone);
        Ok(())
    }

    /// Moves the mount whose root `from` is, of this namespace or of a detached tree, to `place`.
    pub fn move_mount(&self, from: &Path, place: &Path) -> Result<()> {
        let mut table = ask_table()?;
        let m = from.mount();
        let home = m.home().ok_or(Errno::EINVAL)?;
        if !Arc::ptr_eq(m.root_dentry(), from.dentry()) {
            return Err(Errno::EINVAL);
        }
        let parent = m.mountpoint();
        match home.detached {
            true if parent.is_some() => return Err(Errno::EINVAL),
            true => {}
            false => self.own(m)?,
        }
        if (!home.detached && parent.is_none()) || m.locks().contains(MountLocks::PLACE) {
            return Err(Errno::EINVAL);
        }
        let place = self.place(place, m.root_dentry().is_dir(), Errno::EINVAL)?;
        if parent.as_ref().is_some_and(|p| is_shared(p.mount())) {
            return Err(Errno::EINVAL);
        }
        let source = nodes(&m.root(), Select::All, None, |_| Ok(()))?;
        if is_shared(place.mount()) && source.iter().any(|n| is_unbindable(&n.mount)) {
            return Err(Errno::EINVAL);
        }
        let mut up = Some(place.clone());
        let mut rounds = Rounds::new();
        while let Some(p) = up {
            rounds.step().map_err(later)?;
            if Arc::ptr_eq(p.mount(), m) {
                return Err(Errno::ELOOP);
            }
            up = p.mount().mountpoint();
        }
        let there = source.len();
        // Planned before the mount leaves its place, since it may fail.
        let targets = plan(&place)?;
        table.room(targets.len().checked_mul(there).ok_or(Errno::ENOSPC)?)?;
        keeps_no_namespace(&source, &place, &targets)?;
        if parent.is_some() {
            m.detach()?;
        }
        attach_tree(&mut table, source, &place, there)
    }

    /// The mount whose root `at` is, of this namespace or the root of a detached tree, and those below it if
    /// `recursive`: what may be changed.
    pub fn changeable(&self, at: &Path, recursive: bool) -> Result<Vec<Arc<Mount>>> {
        let m = at.mount();
        if !Arc::ptr_eq(m.root_dentry(), at.dentry()) {
            return Err(Errno::EINVAL);
        }
        let detached = m.home().is_some_and(|h| h.detached) && m.mountpoint().is_none();
        if !detached {
            self.own(m)?;
        }
        Ok(if recursive { m.all() } else { vec![m.clone()] })
    }

    /// Changes the propagation type of the mount whose root `at` is, and of those below if `recursive`.
    pub fn change_type(&self, at: &Path, to: PropagationType, recursive: bool) -> Result<()> {
        let _table = ask_table()?;
        let mut rounds = Rounds::new();
        for m in self.changeable(at, recursive)? {
            rounds.next();
            change(&m, to);
        }
        Ok(())
    }

    /// pivot_root(2): `new` becomes the root of the namespace in place of `root`'s mount, which moves to `put_old`.
    pub fn pivot_root(&self, new: &Path, put_old: &Path, root: &Path) -> Result<()> {
        let _table = ask_table()?;
        let put_old = self.place(put_old, true, Errno::ENOTDIR)?;
        let (new_m, root_m) = (new.mount(), root.mount());
        let (new_at, root_at) = (new_m.mountpoint(), root_m.mountpoint());
        let shared = |p: &Option<Path>| p.as_ref().is_some_and(|p| is_shared(p.mount()));
        if is_shared(put_old.mount()) || shared(&new_at) || shared(&root_at) {
            return Err(Errno::EINVAL);
        }
        self.own(root_m)?;
        self.own(new_m)?;
        if new_m.locks().contains(MountLocks::PLACE) {
            return Err(Errno::EINVAL);
        }
        if new.dentry().is_deleted() {
            return Err(Errno::ENOENT);
        }
        if Arc::ptr_eq(new_m, root_m) || Arc::ptr_eq(put_old.mount(), root_m) {
            return Err(Errno::EBUSY);
        }
        let is_top = |p: &Path| Arc::ptr_eq(p.dentry(), p.mount().root_dentry());
        if !is_top(root) || !is_top(new) || new_at.is_none() {
            return Err(Errno::EINVAL);
        }
        if root_at.is_none() && !Arc::ptr_eq(&self.root.read(), root_m) {
            return Err(Errno::EINVAL);
        }
        if !is_reachable(&put_old, new)? || !is_reachable(new, root)? {
            return Err(Errno::EINVAL);
        }
        let locks = root_m.locks();
        if locks.contains(MountLocks::PLACE) {
            new_m.set_locks(new_m.locks() | MountLocks::PLACE);
            root_m.set_locks(locks - MountLocks::PLACE);
        }
        new_m.detach()?;
        match root_at {
            Some(at) => {
                root_m.detach()?;
                root_m.attach(&put_old);
                new_m.attach(&at);
            }
            None => {
                root_m.attach(&put_old);
                *self.root.write() = new_m.clone();
            }
        }
        Ok(())
    }

    /// It belongs to the first user namespace.
    pub fn is_first_users(&self) -> bool {
        Arc::ptr_eq(&self.common.owner(), &UserNs::first())
    }
    /// A mount of a file system of this type that hides nothing of it and may have the flags `own`: the locks that
    /// another mount of the type then has.
    pub fn shows_all_of(&self, fstype: &str, own: MountFlags) -> Option<MountLocks> {
        let whole = |m: &Arc<Mount>| m.sb().fstype == fstype && m.root_dentry().parent().is_none();
        let covered = |m: &Arc<Mount>| m.children().iter().any(|c| c.locks().contains(MountLocks::PLACE));
        let found = self.list().into_iter().find(|m| whole(m) && !covered(m) && m.may_become(own))?;
        Some(found.locks() & (MountLocks::RDONLY | MountLocks::ATIME))
    }
    /// All mounts, parents before children, in the order they were made.
    pub fn list(&self) -> Vec<Arc<Mount>> {
        let mut out = self.root.read().all();
        out.sort_by_key(|m| m.id);
        out
    }
}

impl Drop for MountNamespace {
    /// Its mounts go one by one: a process may still be in one of them, which then is alone.
    fn drop(&mut self) {
        let mut table = lock_table();
        let gone: Vec<Arc<Mount>> = self.root.get_mut().all();
        dissolve(&mut table, &gone);
        drop(table);
        let_go(gone);
    }
}

/// Takes away what is mounted on a dentry whose name has gone.
pub(super) fn unmount_all(d: &Arc<Dentry>) {
    let mut table = lock_table();
    let mut gone = Vec::new();
    let all = super::mount::on_dentry(d);
    for m in all.iter().filter(|m| m.home().is_some()) {
        let tree = m.all();
        dissolve(&mut table, &tree);
        gone.extend(tree);
    }
    drop(table);
    gone.extend(all);
    let_go(gone);
}

/// A tree of mounts that is in no namespace yet; it goes with the last reference unless it has been moved into one.
pub struct DetachedTree {
    root: Arc<Mount>,
    id: u64,
}

impl DetachedTree {
    fn settle(table: &mut Table, root: Arc<Mount>, owner: Arc<UserNs>) -> Arc<DetachedTree> {
        let id = NEXT_HOME.fetch_add(1, Ordering::Relaxed);
        let all = root.all();
        for m in &all {
            m.set_home(Some(Home { id, owner: owner.clone(), detached: true }));
        }
        table.count += all.len();
        Arc::new(DetachedTree { root, id })
    }
    /// Of a new mount.
    pub fn new(mount: Arc<Mount>, owner: Arc<UserNs>) -> Result<Arc<DetachedTree>> {
        let mut table = ask_table()?;
        table.room(1)?;
        Ok(Self::settle(&mut table, mount, owner))
    }
    pub fn root(&self) -> Path {
        self.root.root()
    }
}

impl Drop for DetachedTree {
    fn drop(&mut self) {
        if !self.root.lives_in(self.id) {
            return;
        }
        let mut table = lock_table();
        let gone = self.root.all();
        dissolve(&mut table, &gone);
        drop(table);
        let_go(gone);
    }
}

fn has_locked_children(from: &Path) -> Result<bool> {
    let mut rounds = Rounds::new();
    for (at, m) in from.mount().children_at() {
        rounds.step().map_err(later)?;
        if m.locks().contains(MountLocks::PLACE) && at.is_within(from.dentry())? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a walk upwards from `p` comes by `top`.
fn is_reachable(p: &Path, top: &Path) -> Result<bool> {
    let mut at = p.clone();
    let mut rounds = Rounds::new();
    while !Arc::ptr_eq(at.mount(), top.mount()) {
        rounds.step().map_err(later)?;
        match at.mount().mountpoint() {
            Some(up) => at = up,
            None => return Ok(false),
        }
    }
    at.dentry().is_within(top.dentry())
}

/// The mounts that go with those of the tree `gone`, whose top `m` is on `parent`: what is at the same places of mounts
/// that share with their parents, unless something is mounted on it that stays (a cover of its root apart), or it is
/// locked. Not `lazy`: `EBUSY` if one is in use.
fn passed_on(parent: &Path, m: &Arc<Mount>, gone: &[Arc<Mount>], lazy: bool) -> Result<Vec<Arc<Mount>>> {
    let mut going: BTreeSet<u64> = gone.iter().map(|m| m.id).collect();
    let mut found: Vec<Arc<Mount>> = Vec::new();
    let mut rounds = Rounds::new();
    for x in gone {
        rounds.step().map_err(later)?;
        let Some(at) = (if Arc::ptr_eq(x, m) { Some(parent.clone()) } else { x.mountpoint() }) else { continue };
        let has = |t: &Arc<Mount>| Ok(t.covering(at.dentry()).is_some());
        for t in propagation::targets(at.mount(), has)? {
            rounds.step().map_err(later)?;
            let Some(child) = t.mount.covering(at.dentry()) else { continue };
            if going.insert(child.id) {
                found.push(child);
            }
        }
    }
    // Children come after their parents. What stays keeps its parents, and keeps what is locked to it.
    for c in found.iter().rev() {
        rounds.step().map_err(later)?;
        let stays = |(at, k): &(Arc<Dentry>, Arc<Mount>)| !going.contains(&k.id) && !Arc::ptr_eq(at, c.root_dentry());
        if c.children_at().iter().any(stays) {
            going.remove(&c.id);
        }
    }
    for c in &found {
        rounds.step().map_err(later)?;
        let parent_goes = || c.mountpoint().is_some_and(|p| going.contains(&p.mount().id));
        if c.locks().contains(MountLocks::PLACE) && !parent_goes() {
            going.remove(&c.id);
        }
    }
    found.retain(|c| going.contains(&c.id));
    // The list above and the parent's.
    if !lazy && found.iter().any(|c| Arc::strong_count(c) > 2) {
        return Err(Errno::EBUSY);
    }
    Ok(found)
}

/// Takes covers off the mounts that go; they come to where those were.
fn slide(going: &[Arc<Mount>]) -> Vec<(Arc<Mount>, Path)> {
    let ids: BTreeSet<u64> = going.iter().map(|m| m.id).collect();
    let mut out = Vec::new();
    for m in going {
        let Some(cover) = m.covering(m.root_dentry()).filter(|c| !ids.contains(&c.id)) else { continue };
        // Down to the first mount that stays.
        let mut place = m.mountpoint();
        while let Some(p) = place.clone().filter(|p| ids.contains(&p.mount().id)) {
            place = p.mount().mountpoint();
        }
        let Some(place) = place else { continue };
        if cover.detach().is_ok() {
            out.push((cover, place));
        }
    }
    out
}

/// The optional fields of `/proc/PID/mountinfo` for a reader in the namespace.
pub fn describe_sharing(ns: &MountNamespace, m: &Mount, known: &mut propagation::Nearest) -> Result<String> {
    propagation::describe(m, known, |other| ns.has(other))
}
