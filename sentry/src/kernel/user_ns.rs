//! User namespaces (user_namespaces(7)): the ids and the capabilities that a task sees.
//!
//! Inside the kernel all user and group ids are those of the initial namespace ("kernel ids"). An id is mapped where it
//! enters or leaves by a call, a structure or a file of /proc, for the namespace of the task there. The maps of a
//! namespace hold kernel ids on their lower side, are written once, and are read without a lock.
//!
//! In the initial namespace (level 0) all ids map to themselves.

use super::cred::{Cred, CAP_SETFCAP, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, NO_ID};
use super::ns::change::NsSet;
use super::ns::{NsCommon, NsKind};
use super::users::{self, Charge, Resource};
use super::Task;
use crate::error::{Errno, Result};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

/// Deepest level of a parent.
const MAX_LEVEL: u32 = 32;
/// Most lines of a map.
const MAX_EXTENTS: usize = 340;
/// The id that stands for one without a mapping (`/proc/sys/kernel/overflowuid`).
pub const OVERFLOW_ID: u32 = 65534;

/// One line of a map: `count` ids from `first` are those from `lower`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub first: u32,
    pub lower: u32,
    pub count: u32,
}

impl Extent {
    fn up(&self, lower: u32) -> Option<u32> {
        lower.checked_sub(self.lower).filter(|d| *d < self.count).and_then(|d| self.first.checked_add(d))
    }
    fn down(&self, id: u32) -> Option<u32> {
        id.checked_sub(self.first).filter(|d| *d < self.count).and_then(|d| self.lower.checked_add(d))
    }
}

/// A map; the lower side is kernel ids.
#[derive(Debug)]
struct IdMap {
    /// As written.
    lines: Box<[Extent]>,
    /// By `first`, and by `lower`.
    downward: Box<[Extent]>,
    upward: Box<[Extent]>,
    _room: Charge,
}

impl IdMap {
    /// `ENOMEM` if all maps take too much; what they take is counted for the user `owner`.
    fn new(lines: Vec<Extent>, owner: u32) -> Result<IdMap> {
        let bytes = (3 * size_of_val(&*lines)) as u64;
        let most = users::all_max(Resource::IdMaps) / 2;
        let room = users::of(owner).charge_many(Resource::IdMaps, bytes, most).ok_or(Errno::ENOMEM)?;
        let sorted = |key: fn(&Extent) -> u32| {
            let mut list = lines.clone();
            list.sort_unstable_by_key(key);
            list.into_boxed_slice()
        };
        let (downward, upward) = (sorted(|e| e.first), sorted(|e| e.lower));
        Ok(IdMap { downward, upward, lines: lines.into_boxed_slice(), _room: room })
    }
    fn down(&self, id: u32) -> Option<u32> {
        let at = self.downward.partition_point(|e| e.first <= id).checked_sub(1)?;
        self.downward.get(at)?.down(id)
    }
    fn up(&self, kernel_id: u32) -> Option<u32> {
        let at = self.upward.partition_point(|e| e.lower <= kernel_id).checked_sub(1)?;
        self.upward.get(at)?.up(kernel_id)
    }
    /// The kernel id of the first of `count` ids that are all in one line.
    fn range_down(&self, id: u32, count: u32) -> Option<u32> {
        let last = id.checked_add(count.checked_sub(1)?)?;
        let at = self.downward.partition_point(|e| e.first <= id).checked_sub(1)?;
        let e = self.downward.get(at)?;
        e.down(last)?;
        e.down(id)
    }
}

/// The kinds of id that have a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id {
    User,
    Group,
    Project,
}

/// A user namespace.
#[derive(Debug)]
pub struct UserNs {
    /// Its owner there is the parent.
    pub common: NsCommon,
    level: u32,
    /// Kernel ids of the creator (effective).
    owner: u32,
    group: u32,
    maps: [OnceLock<IdMap>; 3],
    /// setgroups(2) is allowed.
    setgroups: AtomicBool,
    /// Serializes the writers of maps and `setgroups`.
    writing: Mutex<()>,
    /// The creator had `CAP_SETFCAP`: it may map id 0 of the parent.
    could_setfcap: bool,
}

impl PartialEq for UserNs {
    fn eq(&self, other: &UserNs) -> bool {
        std::ptr::eq(self, other)
    }
}
impl Eq for UserNs {}

impl UserNs {
    fn make(common: NsCommon, level: u32, owner: (u32, u32), setgroups: bool, could_setfcap: bool) -> Arc<UserNs> {
        let (maps, setgroups, writing) = (Default::default(), AtomicBool::new(setgroups), Mutex::new(()));
        Arc::new(UserNs { common, level, owner: owner.0, group: owner.1, maps, setgroups, writing, could_setfcap })
    }

    /// The initial namespace.
    pub fn first() -> Arc<UserNs> {
        static FIRST: LazyLock<Arc<UserNs>> =
            LazyLock::new(|| UserNs::make(NsCommon::first(NsKind::User), 0, (0, 0), true, true));
        FIRST.clone()
    }

    /// `create_user_ns`: a child of the namespace of `cred`, owned by its effective ids. The caller knows whether the
    /// task is in a chroot (`EPERM`).
    pub fn below(cred: &Cred) -> Result<Arc<UserNs>> {
        let parent = &cred.user_ns;
        if parent.level > MAX_LEVEL {
            return Err(Errno::ENOSPC);
        }
        // Counted before the ids are looked at, as on Linux.
        let common = NsCommon::new(NsKind::User, parent.clone(), cred.euid)?;
        if !parent.maps(Id::User, cred.euid) || !parent.maps(Id::Group, cred.egid) {
            return Err(Errno::EPERM);
        }
        let could_setfcap = cred.effective & CAP_SETFCAP != 0;
        let setgroups = parent.setgroups_allowed();
        Ok(UserNs::make(common, parent.level + 1, (cred.euid, cred.egid), setgroups, could_setfcap))
    }

    pub fn is_initial(&self) -> bool {
        self.level == 0
    }
    pub fn level(&self) -> u32 {
        self.level
    }
    /// `None` for the initial namespace.
    pub fn parent(&self) -> Option<&Arc<UserNs>> {
        self.common.parent()
    }
    /// Kernel id of the owner.
    pub fn owner(&self) -> u32 {
        self.owner
    }
    pub fn owner_group(&self) -> u32 {
        self.group
    }
    /// Whether `other` is this namespace or a descendant of it (`in_userns`).
    pub fn contains(&self, other: &UserNs) -> bool {
        let mut at = other;
        while at.level > self.level {
            match at.parent() {
                Some(p) => at = p,
                None => return false,
            }
        }
        at == self
    }
    /// Its parent, if a task with `cred` may know it; `EPERM` otherwise (`NS_GET_PARENT`).
    pub fn parent_for(&self, cred: &Cred) -> Result<Arc<UserNs>> {
        self.parent().filter(|p| p.visible_to(cred)).cloned().ok_or(Errno::EPERM)
    }
    /// Whether it is the namespace of `cred` or below it (`NS_GET_USERNS`).
    pub fn visible_to(&self, cred: &Cred) -> bool {
        cred.user_ns.contains(self)
    }
    /// The owner's id as `cred` sees it.
    pub fn owner_uid_for(&self, cred: &Cred) -> u32 {
        cred.user_ns.uid_out(self.owner)
    }

    fn map(&self, kind: Id) -> Option<&OnceLock<IdMap>> {
        self.maps.get(kind as usize).filter(|_| self.level > 0)
    }
    /// The kernel id of an id of this namespace.
    pub fn id_in(&self, kind: Id, id: u32) -> Option<u32> {
        match self.map(kind) {
            None => Some(id).filter(|i| *i != NO_ID),
            Some(m) => m.get()?.down(id),
        }
    }
    /// The id in this namespace of a kernel id.
    pub fn id_out(&self, kind: Id, kernel_id: u32) -> Option<u32> {
        match self.map(kind) {
            None => Some(kernel_id).filter(|i| *i != NO_ID),
            Some(m) => m.get()?.up(kernel_id),
        }
    }
    /// Whether the kernel id has a number here.
    pub fn maps(&self, kind: Id, kernel_id: u32) -> bool {
        self.level == 0 || self.id_out(kind, kernel_id).is_some()
    }
    /// A user id argument; `EINVAL` if it has no mapping (as -1 never has).
    pub fn uid_in(&self, uid: u32) -> Result<u32> {
        self.id_in(Id::User, uid).ok_or(Errno::EINVAL)
    }
    pub fn gid_in(&self, gid: u32) -> Result<u32> {
        self.id_in(Id::Group, gid).ok_or(Errno::EINVAL)
    }
    /// A user id argument for which -1 means "none" and stays.
    pub fn uid_or_none_in(&self, uid: u32) -> Result<u32> {
        if uid == NO_ID {
            Ok(NO_ID)
        } else {
            self.uid_in(uid)
        }
    }
    pub fn gid_or_none_in(&self, gid: u32) -> Result<u32> {
        if gid == NO_ID {
            Ok(NO_ID)
        } else {
            self.gid_in(gid)
        }
    }
    /// A user id for the guest; [`OVERFLOW_ID`] if it has no mapping.
    pub fn uid_out(&self, kernel_id: u32) -> u32 {
        if self.level == 0 {
            return kernel_id;
        }
        self.id_out(Id::User, kernel_id).unwrap_or(OVERFLOW_ID)
    }
    pub fn gid_out(&self, kernel_id: u32) -> u32 {
        if self.level == 0 {
            return kernel_id;
        }
        self.id_out(Id::Group, kernel_id).unwrap_or(OVERFLOW_ID)
    }
    /// The kernel id of this namespace's user 0; [`NO_ID`], which is no user's, if it has none.
    pub fn root(&self) -> u32 {
        self.id_in(Id::User, 0).unwrap_or(NO_ID)
    }
    pub fn root_group(&self) -> u32 {
        self.id_in(Id::Group, 0).unwrap_or(NO_ID)
    }

    /// What `/proc/PID/setgroups` says.
    pub fn setgroups_allowed(&self) -> bool {
        self.setgroups.load(Ordering::SeqCst)
    }
    /// Whether setgroups(2) may be called: allowed, and after the group map is there.
    pub fn may_setgroups(&self) -> bool {
        self.map(Id::Group).is_none_or(|m| m.get().is_some()) && self.setgroups_allowed()
    }
    /// A write to `/proc/PID/setgroups`: "deny" only before the group map, "allow" only if it was never denied.
    pub fn set_setgroups(&self, allow: bool) -> Result<()> {
        let _writing = self.writing.lock();
        if allow {
            return if self.setgroups_allowed() { Ok(()) } else { Err(Errno::EPERM) };
        }
        if self.map(Id::Group).is_none_or(|m| m.get().is_some()) {
            return Err(Errno::EPERM);
        }
        self.setgroups.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// The lines of a map, with their lower ids as a reader in `viewer` sees them (`None`: unmapped there).
    pub fn lines(&self, kind: Id, viewer: &UserNs) -> Vec<(u32, Option<u32>, u32)> {
        let Some(map) = self.map(kind) else { return vec![(0, Some(0), u32::MAX)] };
        let lower_ns = match self.parent() {
            Some(parent) if viewer == self => &**parent,
            _ => viewer,
        };
        let lines = map.get().map_or(&[][..], |m| &m.lines);
        lines.iter().map(|e| (e.first, lower_ns.id_out(kind, e.lower), e.count)).collect()
    }

    /// A write to `/proc/PID/{uid_map,gid_map,projid_map}` (`map_write`). `opener` has the file open, `writer` writes.
    pub fn write_map(&self, kind: Id, text: &[u8], opener: &Cred, writer: &Cred) -> Result<()> {
        let (Some(parent), Some(slot)) = (self.parent(), self.map(kind)) else { return Err(Errno::EPERM) };
        if *opener.user_ns != *self && opener.user_ns != *parent {
            return Err(Errno::EPERM);
        }
        let _writing = self.writing.lock();
        let privileged = kind == Id::Project || opener.capable_in(self, CAP_SYS_ADMIN);
        if slot.get().is_some() || !privileged {
            return Err(Errno::EPERM);
        }
        let mut lines = parse_map(text)?;
        if !self.may_map(parent, kind, &lines, opener, writer) {
            return Err(Errno::EPERM);
        }
        for e in &mut lines {
            let lower = match parent.map(kind) {
                None => Some(e.lower),
                Some(m) => m.get().and_then(|m| m.range_down(e.lower, e.count)),
            };
            e.lower = lower.ok_or(Errno::EPERM)?;
        }
        slot.set(IdMap::new(lines, self.owner)?).map_err(|_| Errno::EPERM)
    }

    /// `new_idmap_permitted`: one's own id, or what the capability in the parent namespace allows.
    fn may_map(&self, parent: &UserNs, kind: Id, lines: &[Extent], opener: &Cred, writer: &Cred) -> bool {
        if kind == Id::User && lines.iter().any(|e| e.lower == 0) {
            // A map of the parent's user 0 could make files whose capabilities count there.
            let allowed =
                if *opener.user_ns == *self { self.could_setfcap } else { opener.capable_in(parent, CAP_SETFCAP) };
            if !allowed {
                return false;
            }
        }
        if let ([e], true) = (lines, self.owner == opener.euid) {
            if e.count == 1 {
                let lower = parent.id_in(kind, e.lower);
                match kind {
                    Id::User if lower == Some(opener.euid) => return true,
                    Id::Group if !self.setgroups_allowed() && lower == Some(opener.egid) => return true,
                    _ => {}
                }
            }
        }
        let cap = match kind {
            Id::User => CAP_SETUID,
            Id::Group => CAP_SETGID,
            Id::Project => return true,
        };
        writer.capable_in(parent, cap) && opener.capable_in(parent, cap)
    }
}

impl Cred {
    pub fn user_ns(&self) -> Arc<UserNs> {
        self.user_ns.clone()
    }
}

/// `CLONE_NEWUSER`: the credentials in a new user namespace. `EPERM` in a chroot, which capabilities there would let it
/// leave.
pub fn create(task: &Task, cred: &Cred) -> Result<Cred> {
    let root = task.fs().lock().root.clone();
    let top = crate::fs::vfs::walk::uppermost(task.ns().mnt.root());
    if !Arc::ptr_eq(root.mount(), top.mount()) || !Arc::ptr_eq(root.dentry(), top.dentry()) {
        return Err(Errno::EPERM);
    }
    Ok(cred.in_new_user_ns(UserNs::below(cred)?))
}

/// `setns`: enters `ns`, with all capabilities there.
pub fn enter(task: &Task, set: &mut NsSet, ns: &Arc<UserNs>) -> Result<()> {
    // The reference here is the second one.
    let fs = task.fs();
    let shares = Arc::strong_count(&fs) > 2 || task.group.links.lock().threads.len() > 1;
    if set.cred.user_ns == *ns || shares {
        return Err(Errno::EINVAL);
    }
    if !set.cred.capable_in(ns, CAP_SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    set.cred = Arc::new(set.cred.in_new_user_ns(ns.clone()));
    set.new_cred = true;
    Ok(())
}

/// The lines of a map as they are written: `first lower count`, no two of which overlap.
fn parse_map(text: &[u8]) -> Result<Vec<Extent>> {
    let text = text.split(|&b| b == 0).next().unwrap_or(&[]);
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let mut lines = Vec::new();
    for line in text.split(|&b| b == b'\n') {
        if lines.len() == MAX_EXTENTS {
            return Err(Errno::EINVAL);
        }
        let mut words = line.split(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty());
        let mut number = || -> Result<u32> {
            let word = words.next().ok_or(Errno::EINVAL)?;
            let digit =
                |n: u64, b: &u8| b.is_ascii_digit().then(|| n.wrapping_mul(10).wrapping_add(u64::from(b - b'0')));
            word.iter().try_fold(0u64, digit).map(|n| n as u32).ok_or(Errno::EINVAL)
        };
        let e = Extent { first: number()?, lower: number()?, count: number()? };
        let ends = |from: u32| from.checked_add(e.count).is_some_and(|end| end > from);
        if words.next().is_some() || e.first == NO_ID || e.lower == NO_ID || !ends(e.first) || !ends(e.lower) {
            return Err(Errno::EINVAL);
        }
        lines.push(e);
    }
    for key in [|e: &Extent| e.first, |e: &Extent| e.lower] {
        let mut starts: Vec<_> = lines.iter().map(|e| (key(e), e.count)).collect();
        starts.sort_unstable();
        if starts.windows(2).any(|w| matches!(w, [(a, n), (b, _)] if b - a < *n)) {
            return Err(Errno::EINVAL);
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::cred::CAP_ALL;

    fn child(of: &Cred) -> Cred {
        of.in_new_user_ns(UserNs::below(of).unwrap())
    }

    #[test]
    fn maps_are_parsed_as_linux_does() {
        let parse = |t: &str| parse_map(t.as_bytes());
        assert_eq!(parse("0 1000 1\n"), Ok(vec![Extent { first: 0, lower: 1000, count: 1 }]));
        assert_eq!(parse(" 0\t1000 1 \n10 2000 5").map(|l| l.len()), Ok(2));
        for bad in ["", "\n", "0 0", "0 0 0", "0 0 1 1", "x 0 1", "0 0 1\n\n", "4294967295 0 1", "0 4294967295 1"] {
            assert_eq!(parse(bad), Err(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(parse("1 1 4294967295"), Err(Errno::EINVAL));
        assert_eq!(parse("0 10 5\n4 100 1"), Err(Errno::EINVAL));
        assert_eq!(parse("0 10 5\n5 14 1"), Err(Errno::EINVAL));
        let many = |n: u32| (0..n).map(|i| format!("{i} {} 1\n", i + 1000)).collect::<String>();
        assert_eq!(parse(&many(340)).map(|l| l.len()), Ok(340));
        assert_eq!(parse(&many(341)), Err(Errno::EINVAL));
    }

    #[test]
    fn ids_are_mapped_through_all_levels() {
        let root = Cred::user(0, 0, vec![], CAP_ALL);
        let a = child(&root);
        assert_eq!((a.user_ns.uid_out(0), a.user_ns.uid_in(0)), (OVERFLOW_ID, Err(Errno::EINVAL)));
        a.user_ns.write_map(Id::User, b"0 100000 1000\n1000 5000 1", &root, &root).unwrap();
        assert_eq!(a.user_ns.write_map(Id::User, b"0 100000 1000", &root, &root), Err(Errno::EPERM));
        assert_eq!(
            (a.user_ns.uid_in(7), a.user_ns.uid_in(1000), a.user_ns.uid_in(1001)),
            (Ok(100_007), Ok(5000), Err(Errno::EINVAL))
        );
        assert_eq!(
            (a.user_ns.uid_out(100_999), a.user_ns.uid_out(5000), a.user_ns.uid_out(0)),
            (999, 1000, OVERFLOW_ID)
        );
        // The creator's ids have no number in it yet, so it has no children.
        assert_eq!(UserNs::below(&a).unwrap_err(), Errno::EPERM);
        a.user_ns.write_map(Id::Group, b"0 100000 1000", &root, &root).unwrap();
        let inner = Cred { euid: 100_000, egid: 100_000, ..a.clone() };
        let b = child(&inner);
        // A line of a child's map lies within one of the parent's.
        assert_eq!(b.user_ns.write_map(Id::User, b"0 995 10", &inner, &inner), Err(Errno::EPERM));
        b.user_ns.write_map(Id::User, b"5 10 10", &inner, &inner).unwrap();
        assert_eq!((b.user_ns.uid_in(5), b.user_ns.uid_out(100_012)), (Ok(100_010), 7));
        assert_eq!(b.user_ns.lines(Id::User, &root.user_ns), [(5, Some(100_010), 10)]);
        assert_eq!(b.user_ns.lines(Id::User, &b.user_ns), [(5, Some(10), 10)]);
        assert!(root.user_ns.contains(&b.user_ns) && a.user_ns.contains(&b.user_ns) && !b.user_ns.contains(&a.user_ns));
    }

    #[test]
    fn a_user_without_rights_maps_only_itself() {
        let user = Cred::user(1000, 1000, vec![], 0);
        let mine = child(&user);
        for text in ["0 0 1", "0 1001 1", "0 1000 2", "0 1000 1\n1 1001 1"] {
            assert_eq!(mine.user_ns.write_map(Id::User, text.as_bytes(), &mine, &mine), Err(Errno::EPERM), "{text}");
        }
        assert_eq!(mine.user_ns.write_map(Id::Group, b"0 1000 1", &mine, &mine), Err(Errno::EPERM));
        mine.user_ns.set_setgroups(false).unwrap();
        assert_eq!(mine.user_ns.set_setgroups(true), Err(Errno::EPERM));
        mine.user_ns.write_map(Id::Group, b"0 1000 1", &mine, &mine).unwrap();
        mine.user_ns.write_map(Id::User, b"0 1000 1", &mine, &mine).unwrap();
        assert!(!mine.user_ns.may_setgroups());
        assert_eq!(mine.user_ns.set_setgroups(false), Err(Errno::EPERM));
    }

    #[test]
    fn capabilities_count_in_the_namespace_and_below() {
        let user = Cred::user(1000, 1000, vec![], 0);
        let mine = child(&user);
        assert!(mine.capable_in(&mine.user_ns, CAP_SYS_ADMIN) && !mine.has(CAP_SYS_ADMIN));
        assert!(!mine.capable_in(&UserNs::first(), CAP_SYS_ADMIN));
        // The owner, in the parent, has all of them; another user none.
        assert!(user.capable_in(&mine.user_ns, CAP_SYS_ADMIN));
        assert!(!Cred::user(1001, 1001, vec![], 0).capable_in(&mine.user_ns, CAP_SYS_ADMIN));
        assert!(Cred::user(0, 0, vec![], CAP_ALL).capable_in(&mine.user_ns, CAP_SYS_ADMIN));
        mine.user_ns.write_map(Id::User, b"0 1000 1", &mine, &mine).unwrap();
        assert!(mine.capable_over(1000, 1000, CAP_SYS_ADMIN) == mine.user_ns.maps(Id::Group, 1000));
        assert!(!mine.capable_over(0, 1000, CAP_SYS_ADMIN));
    }

    #[test]
    fn levels_are_bounded() {
        let mut at = Cred::user(0, 0, vec![], CAP_ALL);
        let mut levels = 0;
        while let Ok(ns) = UserNs::below(&at) {
            ns.write_map(Id::User, b"0 0 1", &at, &at).unwrap();
            ns.write_map(Id::Group, b"0 0 1", &at, &at).unwrap();
            at = at.in_new_user_ns(ns);
            levels += 1;
        }
        assert_eq!(levels, MAX_LEVEL + 1);
    }
}
