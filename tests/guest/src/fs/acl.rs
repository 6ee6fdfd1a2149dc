//! POSIX access control lists (acl(5)): set and read as `system.posix_acl_*`, kept consistent with the mode, inherited,
//! enforced.

use crate::t::*;
use libc::*;
use std::ffi::CString;

pub const CASES: &[crate::Case] = cases![
    lists_are_enforced,
    directories_are_searched_by_their_list,
    the_owner_and_capabilities_come_first,
    a_list_sets_the_mode,
    chmod_changes_the_mask,
    default_lists_are_inherited,
    small_default_lists_replace_the_umask,
    wrong_lists,
    rights_to_set,
];

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const NOBODY: u32 = u32::MAX;

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

type Entry = (u16, u16, u32);

fn bytes(list: &[Entry]) -> Vec<u8> {
    let mut all = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in list {
        all.extend([&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    all
}

unsafe fn set(f: &CString, name: &str, list: &[Entry]) -> i32 {
    let b = bytes(list);
    setxattr(f.as_ptr(), c(name).as_ptr(), b.as_ptr().cast(), b.len(), 0)
}

unsafe fn list(f: &CString, name: &str) -> Vec<Entry> {
    let mut b = [0u8; 4096];
    let r = getxattr(f.as_ptr(), c(name).as_ptr(), b.as_mut_ptr().cast(), b.len());
    if r < 0 {
        assert_eq!(errno(), ENODATA);
        return Vec::new();
    }
    assert_eq!(b[..4], 2u32.to_le_bytes());
    let half = |b: &[u8], at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    b[4..r as usize].chunks(8).map(|e| (half(e, 0), half(e, 2), u32::from_le_bytes([e[4], e[5], e[6], e[7]]))).collect()
}

/// A scratch directory that every user may enter; `None` without root.
unsafe fn place() -> Option<Tmp> {
    if !root() {
        eprintln!("left out: needs root");
        return None;
    }
    let t = Tmp::new();
    ok(chmod(t.p("").as_ptr(), 0o755));
    let f = t.file("probe", b"");
    ok(set(&f, ACCESS, &[(USER_OBJ, 6, 0), (USER, 4, 7), (GROUP_OBJ, 4, 0), (MASK, 4, 0), (OTHER, 0, 0)]));
    Some(t)
}

/// The permission bits that access(2) grants to a user in these groups.
unsafe fn allowed(f: &CString, uid: u32, groups: &[u32]) -> u16 {
    let file = stat_of(f).st_mode & S_IFMT == S_IFREG;
    let pid = spawn(|| {
        ok(setgroups(groups.len() - 1, groups[1..].as_ptr()));
        ok(setresgid(groups[0], groups[0], groups[0]));
        ok(setresuid(uid, uid, uid));
        let mut bits = 0;
        for bit in [R_OK, W_OK, X_OK] {
            if access(f.as_ptr(), bit) == 0 {
                bits |= bit;
            }
            // open(2) must agree.
            if bit != X_OK && file {
                let fd = open(f.as_ptr(), if bit == R_OK { O_RDONLY } else { O_WRONLY });
                assert_eq!(fd >= 0, bits & bit != 0, "open for {bit}");
            }
        }
        bits
    });
    let mut status = 0;
    ok(waitpid(pid, &mut status, 0));
    assert!(WIFEXITED(status));
    WEXITSTATUS(status) as u16
}

unsafe fn lists_are_enforced() {
    let Some(t) = place() else { return };
    let f = t.file("f", b"secret");
    ok(chown(f.as_ptr(), 1000, 50));
    let entries = [
        (USER_OBJ, 6, NOBODY),
        (USER, 7, 1001),
        (USER, 0, 1002),
        (GROUP_OBJ, 4, NOBODY),
        (GROUP, 6, 60),
        (GROUP, 0, 70),
        (MASK, 6, NOBODY),
        (OTHER, 4, NOBODY),
    ];
    ok(set(&f, ACCESS, &entries));
    assert_eq!(list(&f, ACCESS), entries);
    for (uid, groups, wanted) in [
        (1000, &[9][..], 6),
        (1001, &[9], 6),      // limited by the mask
        (1002, &[9], 0),      // although others may read
        (1002, &[50, 60], 0), // a user's entry precedes groups'
        (1003, &[50], 4),
        (1003, &[9, 60], 6),
        (1003, &[50, 60], 6), // any matching group that grants it
        (1003, &[70], 0),     // a group's entry, although others may
        (1003, &[9], 4),
    ] {
        assert_eq!(allowed(&f, uid, groups), wanted, "{uid} {groups:?}");
    }
    // A list with an empty group class is not checked.
    ok(set(&f, ACCESS, &[(1, 6, 0), (USER, 6, 1001), (4, 0, 0), (MASK, 0, 0), (OTHER, 4, 0)]));
    assert_eq!(allowed(&f, 1001, &[9]), 4);
    // Removed with the list.
    ok(removexattr(f.as_ptr(), c(ACCESS).as_ptr()));
    ok(chmod(f.as_ptr(), 0o640));
    assert_eq!((allowed(&f, 1001, &[9]), allowed(&f, 1002, &[50])), (0, 4));
}

unsafe fn directories_are_searched_by_their_list() {
    let Some(t) = place() else { return };
    ok(mkdir(t.p("d").as_ptr(), 0o755));
    let f = t.file("d/f", b"x");
    ok(chmod(f.as_ptr(), 0o644));
    let d = t.p("d");
    ok(set(&d, ACCESS, &[(1, 7, 0), (USER, 0, 1002), (USER, 7, 1003), (4, 5, 0), (MASK, 7, 0), (OTHER, 5, 0)]));
    assert_eq!((allowed(&f, 1001, &[9]), allowed(&f, 1002, &[9])), (4, 0));
    in_child(|| {
        ok(setgroups(0, std::ptr::null()));
        ok(setresgid(9, 9, 9));
        ok(setresuid(1003, 1003, 1003));
        ok(mkdir(t.p("d/by-1003").as_ptr(), 0o700));
        ok(unlink(f.as_ptr()));
    });
    in_child(|| {
        ok(setgroups(0, std::ptr::null()));
        ok(setresgid(9, 9, 9));
        ok(setresuid(1001, 1001, 1001));
        fails(mkdir(t.p("d/by-1001").as_ptr(), 0o700), EACCES);
        fails(rmdir(t.p("d/by-1003").as_ptr()), EACCES);
    });
}

unsafe fn the_owner_and_capabilities_come_first() {
    let Some(t) = place() else { return };
    let f = t.file("f", b"x");
    ok(chown(f.as_ptr(), 1000, 50));
    ok(set(&f, ACCESS, &[(1, 4, 0), (USER, 7, 1000), (USER, 0, 0), (4, 7, 0), (MASK, 7, 0), (OTHER, 7, 0)]));
    assert_eq!(allowed(&f, 1000, &[50]), 4);
    ok(access(f.as_ptr(), R_OK | W_OK | X_OK));
}

unsafe fn a_list_sets_the_mode() {
    let Some(t) = place() else { return };
    let f = t.file("f", b"x");
    ok(chmod(f.as_ptr(), 0o4755));
    ok(set(&f, ACCESS, &[(1, 6, 0), (USER, 7, 1001), (4, 1, 0), (MASK, 5, 0), (OTHER, 2, 0)]));
    assert_eq!(stat_of(&f).st_mode & 0o7777, 0o4652);
    let mut b = [0u8; 256];
    let n = ok(listxattr(f.as_ptr(), b.as_mut_ptr().cast(), 256)) as usize;
    assert!(b[..n].split(|&x| x == 0).any(|n| n == ACCESS.as_bytes()));
    // A list equivalent to a mode becomes the mode.
    ok(set(&f, ACCESS, &[(1, 7, 0), (4, 5, 0), (OTHER, 0, 0)]));
    assert_eq!((stat_of(&f).st_mode & 0o7777, list(&f, ACCESS)), (0o4750, vec![]));
    // Setting a list without entries removes it, and the mode stays. Neither call needs a list to exist.
    ok(set(&f, ACCESS, &[(1, 6, 0), (USER, 7, 1001), (4, 1, 0), (MASK, 5, 0), (OTHER, 2, 0)]));
    ok(set(&f, ACCESS, &[]));
    assert_eq!((stat_of(&f).st_mode & 0o7777, list(&f, ACCESS)), (0o4652, vec![]));
    ok(removexattr(f.as_ptr(), c(ACCESS).as_ptr()));
}

unsafe fn chmod_changes_the_mask() {
    let Some(t) = place() else { return };
    let f = t.file("f", b"x");
    ok(set(&f, ACCESS, &[(1, 6, 0), (USER, 7, 1001), (4, 5, 0), (MASK, 7, 0), (OTHER, 4, 0)]));
    ok(chmod(f.as_ptr(), 0o710));
    let none = NOBODY;
    assert_eq!(list(&f, ACCESS), [(1, 7, none), (USER, 7, 1001), (4, 5, none), (MASK, 1, none), (OTHER, 0, none)]);
    assert_eq!(allowed(&f, 1001, &[9]), 1);
    ok(chmod(f.as_ptr(), 0o770));
    assert_eq!(allowed(&f, 1001, &[9]), 7);
}

unsafe fn default_lists_are_inherited() {
    let Some(t) = place() else { return };
    ok(mkdir(t.p("d").as_ptr(), 0o777));
    let default = [(1, 7, NOBODY), (USER, 6, 1001), (4, 5, NOBODY), (MASK, 7, NOBODY), (OTHER, 5, NOBODY)];
    ok(set(&t.p("d"), DEFAULT, &default));
    assert_eq!((list(&t.p("d"), DEFAULT), list(&t.p("d"), ACCESS)), (default.to_vec(), vec![]));
    umask(0o077);
    // The umask is ignored, the mode is not.
    let fd = ok(open(t.p("d/f").as_ptr(), O_CREAT | O_RDWR, 0o664));
    let own = [(1, 6, NOBODY), (USER, 6, 1001), (4, 5, NOBODY), (MASK, 6, NOBODY), (OTHER, 4, NOBODY)];
    assert_eq!((fstat_of(fd).st_mode & 0o7777, list(&t.p("d/f"), ACCESS)), (0o664, own.to_vec()));
    fails(getxattr(t.p("d/f").as_ptr(), c(DEFAULT).as_ptr(), std::ptr::null_mut(), 0), ENODATA);
    ok(mkdir(t.p("d/sub").as_ptr(), 0o750));
    let own = [(1, 7, NOBODY), (USER, 6, 1001), (4, 5, NOBODY), (MASK, 5, NOBODY), (OTHER, 0, NOBODY)];
    assert_eq!(stat_of(&t.p("d/sub")).st_mode & 0o7777, 0o750);
    assert_eq!((list(&t.p("d/sub"), ACCESS), list(&t.p("d/sub"), DEFAULT)), (own.to_vec(), default.to_vec()));
    ok(mkfifo(t.p("d/sub/fifo").as_ptr(), 0o666));
    assert_eq!(stat_of(&t.p("d/sub/fifo")).st_mode & 0o7777, 0o664);
    ok(symlink(c("f").as_ptr(), t.p("d/l").as_ptr()));
    fails(lgetxattr(t.p("d/l").as_ptr(), c(ACCESS).as_ptr(), std::ptr::null_mut(), 0), EOPNOTSUPP);
    let fd = open(t.p("d").as_ptr(), O_TMPFILE | O_RDWR, 0o666);
    if fd >= 0 {
        assert_eq!(fstat_of(fd).st_mode & 0o7777, 0o664);
    }
    // A file moved or linked into the directory inherits nothing.
    let f = t.file("outside", b"");
    ok(chmod(f.as_ptr(), 0o600));
    ok(rename(f.as_ptr(), t.p("d/inside").as_ptr()));
    assert_eq!((stat_of(&t.p("d/inside")).st_mode & 0o7777, list(&t.p("d/inside"), ACCESS)), (0o600, vec![]));
    ok(removexattr(t.p("d").as_ptr(), c(DEFAULT).as_ptr()));
    ok(close(ok(open(t.p("d/plain").as_ptr(), O_CREAT | O_RDWR, 0o664))));
    assert_eq!(stat_of(&t.p("d/plain")).st_mode & 0o7777, 0o600);
}

unsafe fn small_default_lists_replace_the_umask() {
    let Some(t) = place() else { return };
    ok(mkdir(t.p("d").as_ptr(), 0o777));
    ok(set(&t.p("d"), DEFAULT, &[(1, 7, 0), (4, 6, 0), (OTHER, 1, 0)]));
    umask(0o777);
    let fd = ok(open(t.p("d/f").as_ptr(), O_CREAT | O_RDWR, 0o656));
    assert_eq!((fstat_of(fd).st_mode & 0o7777, list(&t.p("d/f"), ACCESS)), (0o640, vec![]));
}

unsafe fn wrong_lists() {
    let Some(t) = place() else { return };
    let f = t.file("f", b"x");
    ok(chmod(f.as_ptr(), 0o644));
    for wrong in [
        &[(1u16, 6u16, 0u32), (4, 4, 0)][..],
        &[(4, 4, 0), (1, 6, 0), (OTHER, 4, 0)],
        &[(1, 8, 0), (4, 4, 0), (OTHER, 4, 0)],
        &[(1, 6, 0), (USER, 6, 7), (4, 4, 0), (OTHER, 4, 0)],
        &[(1, 6, 0), (USER, 6, NOBODY), (4, 4, 0), (MASK, 7, 0), (OTHER, 4, 0)],
        &[(1, 6, 0), (4, 4, 0), (OTHER, 4, 0), (0x40, 0, 0)],
    ] {
        fails(set(&f, ACCESS, wrong), EINVAL);
    }
    let name = c(ACCESS);
    fails(setxattr(f.as_ptr(), name.as_ptr(), [1u8, 0, 0, 0].as_ptr().cast(), 4, 0), EOPNOTSUPP);
    fails(setxattr(f.as_ptr(), name.as_ptr(), [2u8, 0].as_ptr().cast(), 2, 0), EINVAL);
    fails(setxattr(f.as_ptr(), name.as_ptr(), [2u8, 0, 0, 0, 1].as_ptr().cast(), 5, 0), EINVAL);
    assert_eq!(stat_of(&f).st_mode & 0o7777, 0o644);
    fails(set(&f, DEFAULT, &[(1, 7, 0), (4, 5, 0), (OTHER, 0, 0)]), EACCES);
    ok(set(&f, DEFAULT, &[]));
    fails(getxattr(f.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0), ENODATA);
    fails(set(&c("/proc/self/status"), ACCESS, &[(1, 6, 0), (4, 4, 0), (OTHER, 4, 0)]), EOPNOTSUPP);
    ok(set(&f, ACCESS, &[(1, 6, 0), (USER, 7, 1001), (4, 1, 0), (MASK, 5, 0), (OTHER, 2, 0)]));
    assert_eq!(ok(getxattr(f.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0)), 4 + 5 * 8);
    let mut b = [0u8; 8];
    fails(getxattr(f.as_ptr(), name.as_ptr(), b.as_mut_ptr().cast(), 8), ERANGE);
}

unsafe fn rights_to_set() {
    let Some(t) = place() else { return };
    let (mine, other) = (t.file("mine", b""), t.file("other", b""));
    ok(chown(mine.as_ptr(), 1000, 50));
    ok(chmod(mine.as_ptr(), 0o2755));
    ok(chmod(other.as_ptr(), 0o666));
    let entries = [(1, 6, 0), (USER, 7, 1001), (4, 1, 0), (MASK, 7, 0), (OTHER, 2, 0)];
    in_child(|| {
        ok(setgroups(0, std::ptr::null()));
        ok(setresgid(9, 9, 9));
        ok(setresuid(1000, 1000, 1000));
        fails(set(&other, ACCESS, &entries), EPERM);
        fails(removexattr(other.as_ptr(), c(ACCESS).as_ptr()), EPERM);
        ok(set(&mine, ACCESS, &entries));
        // Outside the file's group: set-group-ID is cleared, as by chmod(2).
        assert_eq!(stat_of(&mine).st_mode & 0o7777, 0o672);
    });
}
