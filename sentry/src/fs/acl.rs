//! POSIX access control lists (acl(5)), in the encoding of the extended attributes.
//!
//! An [`Acl`] is always valid: its entries are in order, and each mandatory kind occurs exactly once. File systems
//! store the bytes; permission checks (`vfs/perm.rs`) get a list from [`Inode::acl`](super::Inode::acl). The group bits
//! of a mode are the list's mask, if it has one.

use super::Perm;
use crate::error::{Errno, Result};
use crate::kernel::user_ns::Id;
use crate::kernel::Cred;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const UNDEFINED: u32 = u32::MAX;

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    /// In the order given: by tag, entries of one tag in any order.
    entries: Vec<Entry>,
    /// Id and permissions of the user and the group entries, sorted by id: there may be thousands, and every step of a
    /// walk searches them.
    users: Vec<(u32, u16)>,
    groups: Vec<(u32, u16)>,
}

/// The most recently used lists, so that a walk does not decode one at each step.
static KEPT: Mutex<VecDeque<Arc<Acl>>> = Mutex::new(VecDeque::new());
const KEPT_MAX: usize = 64;

/// Keeps a decoded list alive for a while for the caches that hold only a weak reference.
pub fn keep(list: &Arc<Acl>) {
    let oldest = {
        let mut kept = KEPT.lock();
        kept.push_back(list.clone());
        if kept.len() > KEPT_MAX {
            kept.pop_front()
        } else {
            None
        }
    };
    drop(oldest);
}

/// Maps the ids of the user and group entries of an encoded list. Whether the list is valid is not checked.
pub fn map_ids(bytes: &mut [u8], map: impl Fn(Id, u32) -> Result<u32>) -> Result<()> {
    let Some((_, entries)) = bytes.split_first_chunk_mut::<4>() else { return Ok(()) };
    for e in entries.chunks_exact_mut(8) {
        let (Some(tag), Some(id)) = (e.first_chunk::<2>().copied(), e.last_chunk_mut::<4>()) else { continue };
        let kind = match u16::from_le_bytes(tag) {
            USER => Id::User,
            GROUP => Id::Group,
            _ => continue,
        };
        *id = map(kind, u32::from_le_bytes(*id))?.to_le_bytes();
    }
    Ok(())
}

impl Acl {
    /// Decodes the value of an attribute; `None` if it has no entries.
    pub fn parse(bytes: &[u8]) -> Result<Option<Acl>> {
        match Acl::parse_of_host(bytes)? {
            Some(acl) if acl.entries.iter().any(|e| matches!(e.tag, USER | GROUP) && e.id == UNDEFINED) => {
                Err(Errno::EINVAL)
            }
            acl => Ok(acl),
        }
    }

    /// Like `parse`, for an attribute read by the Gofer. An id without a mapping in the Gofer's user namespace matches
    /// no user or group here.
    pub fn parse_of_host(bytes: &[u8]) -> Result<Option<Acl>> {
        let (version, rest) = bytes.split_first_chunk::<4>().ok_or(Errno::EINVAL)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Errno::EOPNOTSUPP);
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let entry = |bytes: &[u8]| {
            let [t0, t1, p0, p1, a, b, c, d] = *<&[u8; 8]>::try_from(bytes).map_err(|_| Errno::EINVAL)?;
            let tag = u16::from_le_bytes([t0, t1]);
            let id = if matches!(tag, USER | GROUP) { u32::from_le_bytes([a, b, c, d]) } else { UNDEFINED };
            Ok(Entry { tag, perm: u16::from_le_bytes([p0, p1]), id })
        };
        let mut acl = Acl { entries: rest.chunks(8).map(entry).collect::<Result<_>>()?, users: vec![], groups: vec![] };
        if !acl.valid() {
            return Err(Errno::EINVAL);
        }
        let named = |tag| {
            let mut list: Vec<_> = acl.entries.iter().filter(|e| e.tag == tag).map(|e| (e.id, e.perm)).collect();
            // Of several entries for one user the first counts; the sort is stable.
            list.sort_by_key(|(id, _)| *id);
            list
        };
        (acl.users, acl.groups) = (named(USER), named(GROUP));
        Ok(Some(acl))
    }

    fn valid(&self) -> bool {
        let count = |tag| self.entries.iter().filter(|e| e.tag == tag).count();
        let named = count(USER) + count(GROUP);
        self.entries.is_sorted_by_key(|e| e.tag)
            && self.entries.iter().all(|e| e.perm <= 7)
            && [USER_OBJ, GROUP_OBJ, OTHER].map(count) == [1; 3]
            && count(MASK) <= 1
            && (named == 0 || count(MASK) == 1)
            && named + count(MASK) + 3 == self.entries.len()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for e in &self.entries {
            out.extend_from_slice(&e.tag.to_le_bytes());
            out.extend_from_slice(&e.perm.to_le_bytes());
            out.extend_from_slice(&e.id.to_le_bytes());
        }
        out
    }

    /// The index of the first entry of a tag.
    fn first(&self, tag: u16) -> usize {
        self.entries.partition_point(|e| e.tag < tag)
    }
    fn perm(&self, tag: u16) -> Option<u32> {
        self.entries.get(self.first(tag)).filter(|e| e.tag == tag).map(|e| e.perm.into())
    }
    fn set(&mut self, tag: u16, perm: u32) {
        let at = self.first(tag);
        if let Some(e) = self.entries.get_mut(at).filter(|e| e.tag == tag) {
            e.perm = (perm & 7) as u16;
        }
    }
    /// The entry that the group bits of the mode stand for: the mask, or else the owning group's.
    fn group_class(&self) -> u16 {
        if self.perm(MASK).is_some() {
            MASK
        } else {
            GROUP_OBJ
        }
    }

    /// Whether the list has more than the three entries that a mode expresses.
    pub fn is_extended(&self) -> bool {
        self.entries.len() > 3
    }

    /// The permission bits equivalent to the list.
    pub fn mode(&self) -> u32 {
        let perm = |tag| self.perm(tag).unwrap_or(0);
        perm(USER_OBJ) << 6 | perm(self.group_class()) << 3 | perm(OTHER)
    }

    /// Updates the list for chmod(2).
    pub fn chmod(&mut self, mode: u32) {
        self.set(USER_OBJ, mode >> 6);
        self.set(self.group_class(), mode >> 3);
        self.set(OTHER, mode);
    }

    /// The list and the mode of an object created with `mode` in a directory whose default list this is.
    pub fn for_new(&self, mode: u32) -> (Acl, u32) {
        let mut acl = self.clone();
        acl.chmod(self.mode() & mode);
        let mode = mode & !0o777 | acl.mode();
        (acl, mode)
    }

    /// The permissions of the entries for groups of `cred`. Iterates over the shorter of the two lists.
    fn of_groups<'a>(&'a self, cred: &'a Cred) -> Box<dyn Iterator<Item = u16> + 'a> {
        if self.groups.len() <= cred.groups.len() {
            return Box::new(self.groups.iter().filter(|(id, _)| cred.in_group(*id)).map(|e| e.1));
        }
        let ids = std::iter::once(&cred.fsgid).chain(&cred.groups);
        Box::new(ids.flat_map(|id| of_id(&self.groups, *id)))
    }

    /// Whether `cred`, which is not the owner, has the access `mask` (`MAY_*`).
    pub fn permits(&self, p: Perm, cred: &Cred, mask: u32) -> bool {
        let has = |perm: u16| u32::from(perm) & mask == mask;
        let masked = |perm: u16| has(perm) && self.perm(MASK).is_none_or(|m| m & mask == mask);
        if let Some(perm) = of_id(&self.users, cred.fsuid).next() {
            return masked(perm);
        }
        let own = cred.in_group(p.gid).then(|| self.perm(GROUP_OBJ)).flatten().map(|perm| perm as u16);
        let mut found = false;
        for perm in own.into_iter().chain(self.of_groups(cred)) {
            if has(perm) {
                return masked(perm);
            }
            found = true;
        }
        !found && self.perm(OTHER).is_some_and(|o| o & mask == mask)
    }
}

/// The permissions of the entries for one id.
fn of_id(list: &[(u32, u16)], id: u32) -> impl Iterator<Item = u16> + '_ {
    let from = list.partition_point(|e| e.0 < id);
    list.get(from..).unwrap_or_default().iter().take_while(move |e| e.0 == id).map(|e| e.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            out.extend([&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat());
        }
        out
    }
    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl::parse(&bytes(entries)).unwrap().unwrap()
    }

    #[test]
    fn only_valid_lists_are_taken() {
        let base = [(1, 6, 0), (4, 4, 0), (0x20, 4, 0)];
        assert!(!acl(&base).is_extended());
        assert_eq!(acl(&base).mode(), 0o644);
        assert_eq!(Acl::parse(&bytes(&[])), Ok(None));
        assert_eq!(Acl::parse(&[1, 0, 0, 0]), Err(Errno::EOPNOTSUPP));
        for wrong in [
            &[(1u16, 6u16, 0u32), (4, 4, 0)][..],
            &[(4, 4, 0), (1, 6, 0), (0x20, 4, 0)],
            &[(1, 8, 0), (4, 4, 0), (0x20, 4, 0)],
            &[(1, 6, 0), (1, 6, 0), (4, 4, 0), (0x20, 4, 0)],
            &[(1, 6, 0), (2, 6, 7), (4, 4, 0), (0x20, 4, 0)],
            &[(1, 6, 0), (2, 6, u32::MAX), (4, 4, 0), (0x10, 7, 0), (0x20, 4, 0)],
            &[(1, 6, 0), (4, 4, 0), (0x20, 4, 0), (0x40, 4, 0)],
        ] {
            assert_eq!(Acl::parse(&bytes(wrong)), Err(Errno::EINVAL), "{wrong:?}");
        }
        for cut in 1..bytes(&base).len() {
            assert!(cut % 8 == 4 || Acl::parse(&bytes(&base)[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn permissions() {
        let list = acl(&[(1, 7, 0), (2, 6, 1001), (2, 0, 1002), (4, 4, 0), (8, 7, 60), (0x10, 6, 0), (0x20, 1, 0)]);
        assert_eq!(list.mode(), 0o761);
        let p = Perm { mode: 0o100_761, uid: 1000, gid: 50 };
        let may = |uid, groups: &[u32], mask| list.permits(p, &Cred::user(uid, 9, groups.to_vec(), 0), mask);
        assert!(may(1001, &[], 6) && !may(1001, &[], 1), "the mask has no x");
        assert!(!may(1002, &[50], 4), "a named user's entry counts, whatever groups say");
        assert!(may(1003, &[50], 4) && !may(1003, &[50], 2));
        assert!(may(1003, &[60], 6) && !may(1003, &[60], 7));
        assert!(may(1003, &[50, 60], 6), "any group's entry that has it");
        assert!(!may(1003, &[50], 1), "in a group: others' bits do not count");
        assert!(may(1003, &[], 1) && !may(1003, &[], 4));
    }

    #[test]
    fn named_entries_in_any_order() {
        let mut entries = vec![(1, 7, u32::MAX)];
        entries.extend((0..4000).rev().map(|id| (2, if id % 2 == 0 { 7 } else { 0 }, id)));
        // A second entry for a user does not count; for a group each entry does.
        entries.push((2, 7, 5));
        entries.push((4, 0, u32::MAX));
        entries.extend((0..4000).rev().map(|id| (8, if id % 2 == 0 { 7 } else { 0 }, id)));
        entries.push((8, 7, 5));
        entries.extend([(0x10, 7, u32::MAX), (0x20, 0, u32::MAX)]);
        let list = acl(&entries);
        assert_eq!(list.to_bytes(), bytes(&entries));
        let p = Perm { mode: 0o040_070, uid: 100_000, gid: 100_000 };
        let may = |uid, groups: Vec<u32>| list.permits(p, &Cred::user(uid, 9, groups, 0), 1);
        assert!(may(2000, vec![]) && !may(2001, vec![2000]) && !may(5, vec![2000]));
        // Both cases: more groups than entries, and fewer.
        let many = |odd: u32| (0..5000).map(|n| 10_001 + n * 2 + odd).collect::<Vec<u32>>();
        assert!(may(9000, vec![7, 5]) && !may(9000, vec![7, 9]) && !may(9000, vec![70_000]));
        assert!(may(9000, [many(0), vec![2000]].concat()) && !may(9000, [many(1), vec![2001]].concat()));
    }

    #[test]
    fn modes_and_masks() {
        let list = acl(&[(1, 7, 0), (2, 7, 1001), (4, 5, 0), (0x10, 7, 0), (0x20, 5, 0)]);
        let (new, mode) = list.for_new(0o100_640);
        assert_eq!((mode, new.mode()), (0o100_640, 0o640));
        assert_eq!(new.perm(GROUP_OBJ), Some(5), "the mask takes it away, not the entry");
        let mut changed = list.clone();
        changed.chmod(0o4710);
        assert_eq!((changed.mode(), changed.perm(GROUP_OBJ), changed.perm(MASK)), (0o710, Some(5), Some(1)));
        let small = acl(&[(1, 7, 0), (4, 5, 0), (0x20, 5, 0)]);
        assert_eq!(small.for_new(0o666).1, 0o644);
        assert_eq!(Acl::parse(&list.to_bytes()), Ok(Some(list)));
    }
}
