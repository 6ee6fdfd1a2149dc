//! rename(2), renameat2.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    moves,
    replaces,
    errors,
    directory_rules,
    into_itself,
    same_file,
    noreplace,
    exchange,
    flags_errors,
    open_files_follow,
    deep_directory_moves,
    of_symlinks,
    across_file_systems,
    renameat_bases,
    replaced_file_lives_while_open,
];

unsafe fn rename2(a: &std::ffi::CString, b: &std::ffi::CString, flags: c_uint) -> i64 {
    syscall(SYS_renameat2, AT_FDCWD, a.as_ptr(), AT_FDCWD, b.as_ptr(), flags)
}

unsafe fn moves() {
    let t = Tmp::new();
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    let f = t.file("f", b"x");
    let ino = stat_of(&f).st_ino;
    ok(rename(f.as_ptr(), t.p("d/g").as_ptr()));
    fails(access(f.as_ptr(), F_OK), ENOENT);
    assert_eq!(stat_of(&t.p("d/g")).st_ino, ino);
    ok(rename(t.p("d").as_ptr(), t.p("e").as_ptr()));
    assert_eq!(std::fs::read(t.s("e/g")).unwrap(), b"x");
    fails(access(t.p("d/g").as_ptr(), F_OK), ENOENT);
}

unsafe fn replaces() {
    let t = Tmp::new();
    t.file("a", b"new");
    t.file("b", b"old");
    ok(rename(t.p("a").as_ptr(), t.p("b").as_ptr()));
    assert_eq!(std::fs::read(t.s("b")).unwrap(), b"new");
    assert_eq!(std::fs::read_dir(&t.0).unwrap().count(), 1);
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    ok(mkdir(t.p("e").as_ptr(), 0o700));
    t.file("d/x", b"");
    ok(rename(t.p("d").as_ptr(), t.p("e").as_ptr())); // an empty directory may be replaced
    ok(access(t.p("e/x").as_ptr(), F_OK));
}

unsafe fn errors() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    fails(rename(t.p("none").as_ptr(), t.p("x").as_ptr()), ENOENT);
    fails(rename(f.as_ptr(), t.p("none/x").as_ptr()), ENOENT);
    fails(rename(f.as_ptr(), t.p("f/x").as_ptr()), ENOTDIR);
    fails(rename(f.as_ptr(), t.p("x/").as_ptr()), ENOTDIR);
    fails(rename(t.p("f/").as_ptr(), t.p("x").as_ptr()), ENOTDIR);
    fails(rename(f.as_ptr(), t.p(&"x".repeat(256)).as_ptr()), ENAMETOOLONG);
    fails(rename(f.as_ptr(), c("").as_ptr()), ENOENT);
    fails(rename(BAD.cast(), f.as_ptr()), EFAULT);
    fails(rename(t.p(".").as_ptr(), t.p("x").as_ptr()), EBUSY);
    fails(rename(f.as_ptr(), t.p("..").as_ptr()), EBUSY);
}

unsafe fn directory_rules() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    for d in ["d", "e", "e/sub"] {
        ok(mkdir(t.p(d).as_ptr(), 0o700));
    }
    fails(rename(t.p("d").as_ptr(), f.as_ptr()), ENOTDIR);
    fails(rename(f.as_ptr(), t.p("d").as_ptr()), EISDIR);
    fails(rename(t.p("d").as_ptr(), t.p("e").as_ptr()), ENOTEMPTY);
    ok(rename(t.p("d/").as_ptr(), t.p("g/").as_ptr()));
}

unsafe fn into_itself() {
    let t = Tmp::new();
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    ok(mkdir(t.p("d/e").as_ptr(), 0o700));
    fails(rename(t.p("d").as_ptr(), t.p("d/e/x").as_ptr()), EINVAL);
    fails(rename(t.p("d").as_ptr(), t.p("d/x").as_ptr()), EINVAL);
    fails(rename(t.p("d/e").as_ptr(), t.p("d").as_ptr()), ENOTEMPTY);
    ok(rename(t.p("d").as_ptr(), t.p("d").as_ptr()));
}

unsafe fn same_file() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(link(f.as_ptr(), t.p("g").as_ptr()));
    ok(rename(f.as_ptr(), t.p("g").as_ptr())); // both names stay
    ok(access(f.as_ptr(), F_OK));
    ok(access(t.p("g").as_ptr(), F_OK));
}

unsafe fn noreplace() {
    let t = Tmp::new();
    t.file("a", b"a");
    t.file("b", b"b");
    fails(rename2(&t.p("a"), &t.p("b"), RENAME_NOREPLACE), EEXIST);
    assert_eq!(std::fs::read(t.s("b")).unwrap(), b"b");
    ok(rename2(&t.p("a"), &t.p("c"), RENAME_NOREPLACE));
}

unsafe fn exchange() {
    let t = Tmp::new();
    t.file("a", b"a");
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    t.file("d/x", b"x");
    ok(rename2(&t.p("a"), &t.p("d"), RENAME_EXCHANGE));
    assert_eq!(std::fs::read(t.s("d")).unwrap(), b"a");
    assert_eq!(std::fs::read(t.s("a/x")).unwrap(), b"x");
    fails(rename2(&t.p("a"), &t.p("none"), RENAME_EXCHANGE), ENOENT);
    fails(rename2(&t.p("a"), &t.p("a/x"), RENAME_EXCHANGE), EINVAL);
    fails(rename2(&t.p("a/x"), &t.p("a"), RENAME_EXCHANGE), EINVAL);
}

unsafe fn flags_errors() {
    let t = Tmp::new();
    t.file("a", b"a");
    t.file("b", b"a");
    fails(rename2(&t.p("a"), &t.p("b"), RENAME_NOREPLACE | RENAME_EXCHANGE), EINVAL);
    fails(rename2(&t.p("a"), &t.p("b"), 0x80), EINVAL);
}

unsafe fn open_files_follow() {
    let t = Tmp::new();
    let fd = t.open("a");
    ok(rename(t.p("a").as_ptr(), t.p("b").as_ptr()));
    put(fd, b"x");
    assert_eq!(std::fs::read(t.s("b")).unwrap(), b"x");
    let l = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    assert!(l.ends_with("b"), "{l:?}");
}

unsafe fn deep_directory_moves() {
    let t = Tmp::new();
    std::fs::create_dir_all(t.s("a/b/c/d")).unwrap();
    t.file("a/b/c/d/f", b"deep");
    let d = ok(open(t.p("a/b/c/d").as_ptr(), O_RDONLY));
    ok(mkdir(t.p("z").as_ptr(), 0o700));
    ok(rename(t.p("a/b").as_ptr(), t.p("z/b").as_ptr()));
    assert_eq!(std::fs::read(t.s("z/b/c/d/f")).unwrap(), b"deep");
    let fd = ok(openat(d, c("../../../../z/b/c/d/f").as_ptr(), O_RDONLY));
    assert_eq!(get(fd, 9), b"deep");
    fails(access(t.p("a/b").as_ptr(), F_OK), ENOENT);
    ok(rmdir(t.p("a").as_ptr()));
}

unsafe fn of_symlinks() {
    let t = Tmp::new();
    t.file("f", b"f");
    ok(symlink(c("f").as_ptr(), t.p("l").as_ptr()));
    ok(rename(t.p("l").as_ptr(), t.p("m").as_ptr()));
    assert_eq!(std::fs::read_link(t.s("m")).unwrap().to_str(), Some("f"));
    t.file("g", b"g");
    ok(rename(t.p("g").as_ptr(), t.p("m").as_ptr())); // the link is replaced, not its target
    assert_eq!(std::fs::read(t.s("f")).unwrap(), b"f");
    assert_eq!(std::fs::read(t.s("m")).unwrap(), b"g");
}

unsafe fn across_file_systems() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    fails(rename(f.as_ptr(), c("/proc/f").as_ptr()), EXDEV);
}

unsafe fn renameat_bases() {
    let t = Tmp::new();
    t.file("f", b"");
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    let (a, d) = (ok(open(t.p("").as_ptr(), O_RDONLY)), ok(open(t.p("d").as_ptr(), O_RDONLY)));
    ok(renameat(a, c("f").as_ptr(), d, c("g").as_ptr()));
    ok(access(t.p("d/g").as_ptr(), F_OK));
    fails(renameat(-1, c("f").as_ptr(), d, c("g").as_ptr()), EBADF);
    let f = ok(open(t.p("d/g").as_ptr(), O_RDONLY));
    fails(renameat(f, c("f").as_ptr(), d, c("h").as_ptr()), ENOTDIR);
}

unsafe fn replaced_file_lives_while_open() {
    let t = Tmp::new();
    t.file("old", b"old");
    t.file("new", b"new");
    let fd = ok(open(t.p("old").as_ptr(), O_RDONLY));
    ok(rename(t.p("new").as_ptr(), t.p("old").as_ptr()));
    assert_eq!(get(fd, 9), b"old");
    assert_eq!(fstat_of(fd).st_nlink, 0);
    assert_eq!(std::fs::read(t.s("old")).unwrap(), b"new");
}
