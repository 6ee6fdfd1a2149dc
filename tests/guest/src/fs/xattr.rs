//! Extended attributes. Cases are skipped on a file system without them.

use crate::t::*;
use libc::*;
use std::ffi::CString;

pub const CASES: &[crate::Case] =
    cases![set_get_list_remove, sizes, create_replace, names, descriptors_and_links, errors];

unsafe fn set(f: &CString, n: &str, v: &[u8], flags: i32) -> i32 {
    setxattr(f.as_ptr(), c(n).as_ptr(), v.as_ptr().cast(), v.len(), flags)
}

unsafe fn value(f: &CString, n: &str) -> Option<Vec<u8>> {
    let mut b = vec![0u8; 65536];
    let r = getxattr(f.as_ptr(), c(n).as_ptr(), b.as_mut_ptr().cast(), b.len());
    if r < 0 {
        assert_eq!(errno(), ENODATA);
        return None;
    }
    b.truncate(r as usize);
    Some(b)
}

/// A file in a scratch directory, if it supports user attributes.
unsafe fn file(t: &Tmp) -> Option<CString> {
    let f = t.file("f", b"");
    if set(&f, "user.probe", b"", 0) == -1 {
        assert_eq!(errno(), EOPNOTSUPP);
        eprintln!("left out: no extended attributes here");
        return None;
    }
    ok(removexattr(f.as_ptr(), c("user.probe").as_ptr()));
    Some(f)
}

unsafe fn set_get_list_remove() {
    let t = Tmp::new();
    let Some(f) = file(&t) else { return };
    ok(set(&f, "user.one", b"1", 0));
    ok(set(&f, "user.two", b"second value", 0));
    ok(set(&f, "user.one", b"changed", 0));
    ok(set(&f, "user.empty", b"", 0));
    assert_eq!(value(&f, "user.one").unwrap(), b"changed");
    assert_eq!(value(&f, "user.empty").unwrap(), b"");
    let mut b = [0u8; 512];
    let n = ok(listxattr(f.as_ptr(), b.as_mut_ptr().cast(), 512)) as usize;
    let mut l: Vec<_> = b[..n].split_inclusive(|&x| x == 0).filter(|n| n.starts_with(b"user.")).collect();
    l.sort();
    assert_eq!(l, [&b"user.empty\0"[..], b"user.one\0", b"user.two\0"]);
    ok(removexattr(f.as_ptr(), c("user.one").as_ptr()));
    assert_eq!(value(&f, "user.one"), None);
    fails(removexattr(f.as_ptr(), c("user.one").as_ptr()), ENODATA);
    assert_eq!(value(&f, "user.two").unwrap(), b"second value");
}

unsafe fn sizes() {
    let t = Tmp::new();
    let Some(f) = file(&t) else { return };
    ok(set(&f, "user.v", &[7; 1000], 0));
    is(getxattr(f.as_ptr(), c("user.v").as_ptr(), std::ptr::null_mut(), 0), 1000);
    let mut b = [0u8; 10];
    fails(getxattr(f.as_ptr(), c("user.v").as_ptr(), b.as_mut_ptr().cast(), 10), ERANGE);
    assert!(ok(listxattr(f.as_ptr(), std::ptr::null_mut(), 0)) >= 7);
    fails(listxattr(f.as_ptr(), b.as_mut_ptr().cast(), 3), ERANGE);
    fails(set(&f, "user.big", &[0; 65537], 0), E2BIG);
}

unsafe fn create_replace() {
    let t = Tmp::new();
    let Some(f) = file(&t) else { return };
    fails(set(&f, "user.v", b"x", XATTR_REPLACE), ENODATA);
    ok(set(&f, "user.v", b"x", XATTR_CREATE));
    fails(set(&f, "user.v", b"y", XATTR_CREATE), EEXIST);
    ok(set(&f, "user.v", b"z", XATTR_REPLACE));
    assert_eq!(value(&f, "user.v").unwrap(), b"z");
    fails(set(&f, "user.v", b"z", 0x10), EINVAL);
}

unsafe fn names() {
    let t = Tmp::new();
    let Some(f) = file(&t) else { return };
    fails(set(&f, "", b"x", 0), ERANGE);
    fails(set(&f, &format!("user.{}", "n".repeat(251)), b"x", 0), ERANGE);
    ok(set(&f, &format!("user.{}", "n".repeat(250)), b"x", 0));
    fails(set(&f, "nonsense.name", b"x", 0), EOPNOTSUPP);
    fails(set(&f, "noprefix", b"x", 0), EOPNOTSUPP);
}

unsafe fn descriptors_and_links() {
    let t = Tmp::new();
    let Some(f) = file(&t) else { return };
    let fd = ok(open(f.as_ptr(), O_RDONLY));
    ok(fsetxattr(fd, c("user.v").as_ptr(), b"fd".as_ptr().cast(), 2, 0));
    ok(symlink(c("f").as_ptr(), t.p("l").as_ptr()));
    assert_eq!(value(&t.p("l"), "user.v").unwrap(), b"fd");
    let mut b = [0u8; 8];
    is(fgetxattr(fd, c("user.v").as_ptr(), b.as_mut_ptr().cast(), 8), 2);
    fails(lsetxattr(t.p("l").as_ptr(), c("user.v").as_ptr(), b"x".as_ptr().cast(), 1, 0), EPERM);
    fails(lgetxattr(t.p("l").as_ptr(), c("user.v").as_ptr(), b.as_mut_ptr().cast(), 8), ENODATA);
    ok(fremovexattr(fd, c("user.v").as_ptr()));
    assert_eq!(value(&f, "user.v"), None);
    fails(fgetxattr(-1, c("user.v").as_ptr(), b.as_mut_ptr().cast(), 8), EBADF);
}

unsafe fn errors() {
    let t = Tmp::new();
    let Some(f) = file(&t) else { return };
    fails(set(&t.p("none"), "user.v", b"", 0), ENOENT);
    fails(setxattr(f.as_ptr(), BAD.cast(), b"".as_ptr().cast(), 0, 0), EFAULT);
    fails(setxattr(f.as_ptr(), c("user.v").as_ptr(), BAD, 5, 0), EFAULT);
    let mut b = [0u8; 8];
    fails(getxattr(f.as_ptr(), c("user.none").as_ptr(), b.as_mut_ptr().cast(), 8), ENODATA);
}
