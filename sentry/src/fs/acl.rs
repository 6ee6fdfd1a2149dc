//! POSIX access control lists (acl(5)), in the form in which extended attributes hold them.
//!
//! An [`Acl`] is valid: its entries are in order, each kind that must be there is there once. The file systems keep the bytes; permission checks
//! (`vfs/perm.rs`) get a list by [`Inode::acl`](super::Inode::acl). The group bits of a mode are the list's mask, if it has one.

use super::Perm;
use crate::error::{Errno, Result};
use crate::kernel::Cred;

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
pub struct Acl(Vec<Entry>);

impl Acl {
    /// Decodes the value of an attribute; `None` if it has no entries.
    pub fn parse(bytes: &[u8]) -> Result<Option<Acl>> {
        match Acl::parse_of_host(bytes)? {
            Some(acl) if acl.0.iter().any(|e| matches!(e.tag, USER | GROUP) && e.id == UNDEFINED) => Err(Errno::EINVAL),
            acl => Ok(acl),
        }
    }

    /// As `parse`, for what the Gofer has read. Ids that its user namespace does not know have no number there, and are nobody's here.
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
        let acl = Acl(rest.chunks(8).map(entry).collect::<Result<_>>()?);
        if acl.valid() {
            Ok(Some(acl))
        } else {
            Err(Errno::EINVAL)
        }
    }

    fn valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|e| e.tag == tag).count();
        let named = count(USER) + count(GROUP);
        self.0.is_sorted_by_key(|e| e.tag)
            && self.0.iter().all(|e| e.perm <= 7)
            && [USER_OBJ, GROUP_OBJ, OTHER].map(count) == [1; 3]
            && count(MASK) <= 1
            && (named == 0 || count(MASK) == 1)
            && named + count(MASK) + 3 == self.0.len()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for e in &self.0 {
            out.extend_from_slice(&e.tag.to_le_bytes());
            out.extend_from_slice(&e.perm.to_le_bytes());
            out.extend_from_slice(&e.id.to_le_bytes());
        }
        out
    }

    fn perm(&self, tag: u16) -> Option<u32> {
        self.0.iter().find(|e| e.tag == tag).map(|e| e.perm.into())
    }
    fn set(&mut self, tag: u16, perm: u32) {
        if let Some(e) = self.0.iter_mut().find(|e| e.tag == tag) {
            e.perm = (perm & 7) as u16;
        }
    }
    /// The entry that the group bits of the mode stand for.
    fn group_class(&self) -> u16 {
        if self.perm(MASK).is_some() {
            MASK
        } else {
            GROUP_OBJ
        }
    }

    /// Whether it says more than a mode can.
    pub fn is_extended(&self) -> bool {
        self.0.len() > 3
    }

    /// The permission bits that stand for it.
    pub fn mode(&self) -> u32 {
        let perm = |tag| self.perm(tag).unwrap_or(0);
        perm(USER_OBJ) << 6 | perm(self.group_class()) << 3 | perm(OTHER)
    }

    /// chmod(2) of an object that has it.
    pub fn chmod(&mut self, mode: u32) {
        self.set(USER_OBJ, mode >> 6);
        self.set(self.group_class(), mode >> 3);
        self.set(OTHER, mode);
    }

    /// The list and the mode of an object that is made with `mode` in a directory of which this is the default list.
    pub fn for_new(&self, mode: u32) -> (Acl, u32) {
        let mut acl = self.clone();
        acl.chmod(self.mode() & mode);
        let mode = mode & !0o777 | acl.mode();
        (acl, mode)
    }

    /// Whether `cred`, which does not own it, may do `mask` (`MAY_*`) to an object of this list.
    pub fn permits(&self, p: Perm, cred: &Cred, mask: u32) -> bool {
        let has = |perm: u16| u32::from(perm) & mask == mask;
        let masked = |perm: u16| has(perm) && self.perm(MASK).is_none_or(|m| m & mask == mask);
        if let Some(e) = self.0.iter().find(|e| e.tag == USER && e.id == cred.fsuid) {
            return masked(e.perm);
        }
        let mut found = false;
        for e in &self.0 {
            let applies = match e.tag {
                GROUP_OBJ => cred.in_group(p.gid),
                GROUP => cred.in_group(e.id),
                _ => false,
            };
            if applies && has(e.perm) {
                return masked(e.perm);
            }
            found |= applies;
        }
        !found && self.perm(OTHER).is_some_and(|o| o & mask == mask)
    }
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
    fn who_may_what() {
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
