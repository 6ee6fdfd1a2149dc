//! Propagation: which mounts pass mounting and unmounting on to which others (mount_namespaces(7), "Shared subtrees").
//!
//! Mounts of one peer group ([`Group`]) have the same mounted on them. A group has slaves, which get what its members
//! get and give nothing back; a slave can be in a group of its own. All members of a group have the same master, since
//! a mount that gets another master leaves its group first.
//!
//! Groups change under the lock of the table of mounts; their own locks are leaves. No function here recurses: chains
//! of slaves are as long as guests make them.

use super::dentry::Dentry;
use super::mount::Mount;
use crate::error::Errno;
use crate::error::{later, Result};
use parking_lot::Mutex;
use platform::executor::Rounds;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

static NEXT_GROUP: AtomicU32 = AtomicU32::new(1);

type Mounts = BTreeMap<u64, Weak<Mount>>;

/// A peer group.
pub struct Group {
    /// As `shared:` and `master:` in `/proc/PID/mountinfo`.
    pub id: u32,
    mounts: Mutex<(Mounts, Mounts)>,
}

impl Group {
    fn new() -> Arc<Group> {
        Arc::new(Group { id: NEXT_GROUP.fetch_add(1, Ordering::Relaxed), mounts: Mutex::default() })
    }
    /// Those that are alive: collected first, since a mount that goes with its last reference leaves its group.
    fn live(mounts: &Mounts) -> Vec<Arc<Mount>> {
        mounts.values().filter_map(Weak::upgrade).collect()
    }
    fn members(&self) -> Vec<Arc<Mount>> {
        let found = Self::live(&self.mounts.lock().0);
        found
    }
    fn slaves(&self) -> Vec<Arc<Mount>> {
        let found = Self::live(&self.mounts.lock().1);
        found
    }
}

/// What a mount shares.
#[derive(Default)]
pub struct Sharing {
    pub group: Option<Arc<Group>>,
    pub master: Option<Arc<Group>>,
    pub unbindable: bool,
}

impl Sharing {
    /// The mount `id`, whose this is, goes.
    pub(super) fn leave_all(&mut self, id: u64) {
        let master = self.master.take();
        if let Some(m) = &master {
            m.mounts.lock().1.remove(&id);
        }
        if let Some(g) = self.group.take() {
            hand_over(&g, id, master.as_ref());
        }
    }
}

/// The mount `id` leaves `group`. If it was the last one, its slaves are those of `master` from now on. True if there
/// are others.
fn hand_over(group: &Arc<Group>, id: u64, master: Option<&Arc<Group>>) -> bool {
    let slaves = {
        let mut g = group.mounts.lock();
        g.0.remove(&id);
        if !g.0.is_empty() {
            return true;
        }
        std::mem::take(&mut g.1)
    };
    let mut rounds = Rounds::new();
    for (id, slave) in slaves {
        rounds.next();
        let Some(slave) = slave.upgrade() else { continue };
        slave.sharing.lock().master = master.cloned();
        if let Some(m) = master {
            m.mounts.lock().1.insert(id, Arc::downgrade(&slave));
        }
    }
    false
}

/// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PropagationType {
    Shared,
    Slave,
    Private,
    Unbindable,
}

impl PropagationType {
    /// `MS_SHARED`, `MS_PRIVATE`, `MS_SLAVE` or `MS_UNBINDABLE`; `EINVAL` for another, or several.
    pub fn of_flag(flag: u64) -> Result<PropagationType> {
        match flag {
            libc::MS_SHARED => Ok(PropagationType::Shared),
            libc::MS_PRIVATE => Ok(PropagationType::Private),
            libc::MS_SLAVE => Ok(PropagationType::Slave),
            libc::MS_UNBINDABLE => Ok(PropagationType::Unbindable),
            _ => Err(Errno::EINVAL),
        }
    }
}

pub(super) fn change(m: &Arc<Mount>, to: PropagationType) {
    if to == PropagationType::Shared {
        let mut s = m.sharing.lock();
        s.unbindable = false;
        if s.group.is_none() {
            let group = Group::new();
            group.mounts.lock().0.insert(m.id, Arc::downgrade(m));
            s.group = Some(group);
        }
        return;
    }
    let (group, master) = {
        let mut s = m.sharing.lock();
        (s.group.take(), s.master.clone())
    };
    let mut next = master.clone();
    if let Some(g) = group {
        if hand_over(&g, m.id, master.as_ref()) {
            next = Some(g);
        }
    }
    if to != PropagationType::Slave {
        next = None;
        m.sharing.lock().unbindable = to == PropagationType::Unbindable;
    }
    set_master(m, next);
}

fn set_master(m: &Arc<Mount>, master: Option<Arc<Group>>) {
    if let Some(g) = &master {
        g.mounts.lock().1.insert(m.id, Arc::downgrade(m));
    }
    let old = std::mem::replace(&mut m.sharing.lock().master, master.clone());
    if let Some(old) = old.filter(|o| !master.is_some_and(|m| Arc::ptr_eq(&m, o))) {
        old.mounts.lock().1.remove(&m.id);
    }
}

/// How a copy of a mount shares with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyType {
    /// In its group, under its master.
    Peer,
    /// As `Slave` if it is shared, else as `Peer`.
    SharedToSlave,
    /// Its slave; in a group of its own if so.
    Slave { shared: bool },
}

/// A copy of `of` that shows the tree at `root`.
pub(super) fn copy(of: &Arc<Mount>, root: Arc<Dentry>, how: CopyType) -> Arc<Mount> {
    let m = Mount::new(root, of.flags());
    m.set_locks(of.locks());
    let (group, master, unbindable) = {
        let s = of.sharing.lock();
        (s.group.clone(), s.master.clone(), s.unbindable)
    };
    let slave = matches!(how, CopyType::Slave { .. }) || (how == CopyType::SharedToSlave && group.is_some());
    if slave {
        set_master(&m, group.or(master));
    } else {
        m.sharing.lock().unbindable = unbindable;
        if let Some(g) = group {
            g.mounts.lock().0.insert(m.id, Arc::downgrade(&m));
            m.sharing.lock().group = Some(g);
        }
        set_master(&m, master);
    }
    if how == (CopyType::Slave { shared: true }) {
        change(&m, PropagationType::Shared);
    }
    m
}

pub(super) fn is_shared(m: &Mount) -> bool {
    m.sharing.lock().group.is_some()
}

pub(super) fn is_unbindable(m: &Mount) -> bool {
    m.sharing.lock().unbindable
}

/// A mount that something is passed on to.
pub(super) struct Target {
    pub mount: Arc<Mount>,
    /// What it gets is a copy of what was made for this one: 0 is the original, 1 the first of the targets.
    pub of: usize,
    pub how: CopyType,
}

/// The mounts, beside `origin`, that get what is mounted on `origin`, those for which `shows` holds.
pub(super) fn targets(origin: &Arc<Mount>, mut shows: impl FnMut(&Arc<Mount>) -> Result<bool>) -> Result<Vec<Target>> {
    let mut out: Vec<Target> = Vec::new();
    let Some(first) = origin.sharing.lock().group.clone() else { return Ok(out) };
    let mut rounds = Rounds::new();
    let mut seen = BTreeSet::from([first.id]);
    // Groups with the copy that is the original for them, and whether that belongs to the group already.
    let mut queue = VecDeque::from([(first, 0, true)]);
    while let Some((group, mut of, mut within)) = queue.pop_front() {
        for mount in group.members() {
            rounds.step().map_err(later)?;
            if Arc::ptr_eq(&mount, origin) || !shows(&mount)? {
                continue;
            }
            let how = if within { CopyType::Peer } else { CopyType::Slave { shared: true } };
            out.push(Target { mount, of, how });
            if !within {
                (of, within) = (out.len(), true);
            }
        }
        for mount in group.slaves() {
            rounds.step().map_err(later)?;
            let own = mount.sharing.lock().group.clone();
            match own {
                Some(g) if seen.insert(g.id) => queue.push_back((g, of, false)),
                Some(_) => {}
                None if Arc::ptr_eq(&mount, origin) || !shows(&mount)? => {}
                None => out.push(Target { mount, of, how: CopyType::Slave { shared: false } }),
            }
        }
    }
    Ok(out)
}

/// For groups: the nearest one, from it upwards, that the reader sees a member of.
pub type Nearest = BTreeMap<u32, Option<u32>>;

/// The optional fields of `/proc/PID/mountinfo`: `shared:`, `master:`, `propagate_from:`, `unbindable`. `reaches`:
/// whether a mount is in what the reader sees. `known`: of the mounts before; each group is looked at once.
pub fn describe(m: &Mount, known: &mut Nearest, mut reaches: impl FnMut(&Mount) -> bool) -> Result<String> {
    let (group, master, unbindable) = {
        let s = m.sharing.lock();
        (s.group.clone(), s.master.clone(), s.unbindable)
    };
    let mut out = String::new();
    if let Some(g) = group {
        out += &format!(" shared:{}", g.id);
    }
    if let Some(master) = master {
        out += &format!(" master:{}", master.id);
        let mut up = Some(master.clone());
        let mut passed = Vec::new();
        let mut rounds = Rounds::new();
        let nearest = loop {
            let Some(g) = up else { break None };
            if let Some(found) = known.get(&g.id) {
                break *found;
            }
            rounds.step().map_err(later)?;
            passed.push(g.id);
            let members = g.members();
            if members.iter().any(|m| reaches(m)) {
                break Some(g.id);
            }
            up = members.first().and_then(|m| m.sharing.lock().master.clone());
        };
        known.extend(passed.into_iter().map(|id| (id, nearest)));
        if let Some(id) = nearest.filter(|id| *id != master.id) {
            out += &format!(" propagate_from:{id}");
        }
    }
    if unbindable {
        out += " unbindable";
    }
    Ok(out)
}
