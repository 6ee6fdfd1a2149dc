//! link(2), symlink, readlink, unlink.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    hard_links,
    link_errors,
    linkat_flags,
    symlink_readlink,
    readlink_errors,
    symlink_errors,
    loops,
    deep_chain,
    trailing_slash,
    links_in_the_middle,
    relative_to_the_link,
    unlink_errors,
    unlink_removes_link_only,
    dangling,
    link_to_symlink,
    open_pipe_by_proc,
];

fn target(p: &std::ffi::CString) -> String {
    std::fs::read_link(p.to_str().unwrap()).unwrap().to_str().unwrap().to_string()
}

unsafe fn hard_links() {
    let t = Tmp::new();
    let f = t.file("f", b"one");
    ok(link(f.as_ptr(), t.p("g").as_ptr()));
    assert_eq!(stat_of(&f).st_nlink, 2);
    std::fs::write(t.s("g"), b"two").unwrap();
    assert_eq!(std::fs::read(t.s("f")).unwrap(), b"two");
    ok(unlink(f.as_ptr()));
    assert_eq!(stat_of(&t.p("g")).st_nlink, 1);
    assert_eq!(std::fs::read(t.s("g")).unwrap(), b"two");
}

unsafe fn link_errors() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    fails(link(t.p("none").as_ptr(), t.p("x").as_ptr()), ENOENT);
    fails(link(f.as_ptr(), f.as_ptr()), EEXIST);
    fails(link(f.as_ptr(), t.p("d").as_ptr()), EEXIST);
    fails(link(t.p("d").as_ptr(), t.p("x").as_ptr()), EPERM);
    fails(link(f.as_ptr(), t.p("none/x").as_ptr()), ENOENT);
    fails(link(f.as_ptr(), t.p("f/x").as_ptr()), ENOTDIR);
    fails(link(f.as_ptr(), BAD.cast()), EFAULT);
}

unsafe fn linkat_flags() {
    let t = Tmp::new();
    t.file("f", b"");
    ok(symlink(c("f").as_ptr(), t.p("l").as_ptr()));
    let d = ok(open(t.p("").as_ptr(), O_RDONLY));
    ok(linkat(d, c("l").as_ptr(), d, c("a").as_ptr(), 0));
    ok(linkat(d, c("l").as_ptr(), d, c("b").as_ptr(), AT_SYMLINK_FOLLOW));
    assert_eq!(target(&t.p("a")), "f");
    assert_eq!(stat_of(&t.p("f")).st_nlink, 2);
    fails(linkat(d, c("f").as_ptr(), d, c("x").as_ptr(), 0x8000), EINVAL);
    fails(linkat(-1, c("f").as_ptr(), d, c("x").as_ptr(), 0), EBADF);
}

unsafe fn symlink_readlink() {
    let t = Tmp::new();
    for s in ["x", "/", "../..", "no such thing", &"long/".repeat(200)] {
        ok(symlink(c(s).as_ptr(), t.p("l").as_ptr()));
        assert_eq!(target(&t.p("l")), s);
        let mut st = zeroed();
        ok(lstat(t.p("l").as_ptr(), &mut st));
        assert_eq!(st.st_size as usize, s.len());
        ok(unlink(t.p("l").as_ptr()));
    }
    // The buffer is filled as far as it goes, without a NUL.
    ok(symlink(c("abcdef").as_ptr(), t.p("l").as_ptr()));
    let mut b = [b'#'; 8];
    is(readlink(t.p("l").as_ptr(), b.as_mut_ptr().cast(), 3), 3);
    assert_eq!(&b, b"abc#####");
    is(readlink(t.p("l").as_ptr(), b.as_mut_ptr().cast(), 8), 6);
    assert_eq!(&b, b"abcdef##");
}

unsafe fn readlink_errors() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(symlink(c("f").as_ptr(), t.p("l").as_ptr()));
    let mut b = [0 as c_char; 8];
    fails(readlink(f.as_ptr(), b.as_mut_ptr(), 8), EINVAL);
    fails(readlink(t.p("").as_ptr(), b.as_mut_ptr(), 8), EINVAL);
    fails(readlink(t.p("none").as_ptr(), b.as_mut_ptr(), 8), ENOENT);
    fails(readlink(c("").as_ptr(), b.as_mut_ptr(), 8), ENOENT);
    fails(readlink(t.p("l").as_ptr(), b.as_mut_ptr(), 0), EINVAL);
    fails(readlink(t.p("l").as_ptr(), BAD.cast(), 8), EFAULT);
    fails(readlink(t.p("l/").as_ptr(), b.as_mut_ptr(), 8), ENOTDIR);
}

unsafe fn symlink_errors() {
    let t = Tmp::new();
    t.file("f", b"");
    fails(symlink(c("x").as_ptr(), t.p("f").as_ptr()), EEXIST);
    fails(symlink(c("").as_ptr(), t.p("l").as_ptr()), ENOENT);
    fails(symlink(c("x").as_ptr(), c("").as_ptr()), ENOENT);
    fails(symlink(c("x").as_ptr(), t.p("none/l").as_ptr()), ENOENT);
    fails(symlink(c(&"x".repeat(4096)).as_ptr(), t.p("l").as_ptr()), ENAMETOOLONG);
    fails(symlink(BAD.cast(), t.p("l").as_ptr()), EFAULT);
    fails(symlink(c("x").as_ptr(), t.p("l/").as_ptr()), ENOENT);
}

unsafe fn loops() {
    let t = Tmp::new();
    ok(symlink(c("b").as_ptr(), t.p("a").as_ptr()));
    ok(symlink(c("a").as_ptr(), t.p("b").as_ptr()));
    ok(symlink(c("self").as_ptr(), t.p("self").as_ptr()));
    let mut st = zeroed();
    for p in ["a", "b", "self", "self/x", "a/../f"] {
        fails(stat(t.p(p).as_ptr(), &mut st), ELOOP);
        fails(open(t.p(p).as_ptr(), O_RDWR | O_CREAT, 0o600), ELOOP);
    }
    ok(lstat(t.p("a").as_ptr(), &mut st));
    fails(mkdir(t.p("a/x").as_ptr(), 0o700), ELOOP);
}

unsafe fn deep_chain() {
    let t = Tmp::new();
    t.file("l0", b"");
    for i in 1..=41 {
        ok(symlink(c(&format!("l{}", i - 1)).as_ptr(), t.p(&format!("l{i}")).as_ptr()));
    }
    ok(access(t.p("l40").as_ptr(), F_OK));
    fails(access(t.p("l41").as_ptr(), F_OK), ELOOP);
}

unsafe fn trailing_slash() {
    let t = Tmp::new();
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    ok(symlink(c("d").as_ptr(), t.p("l").as_ptr()));
    let mut st = zeroed();
    ok(lstat(t.p("l/").as_ptr(), &mut st)); // the slash refers to the directory
    assert_eq!(st.st_mode & S_IFMT, S_IFDIR);
    fails(rmdir(t.p("l/").as_ptr()), ENOTDIR);
    fails(unlink(t.p("l/").as_ptr()), ENOTDIR);
    ok(unlink(t.p("l").as_ptr()));
}

unsafe fn links_in_the_middle() {
    let t = Tmp::new();
    ok(mkdir(t.p("real").as_ptr(), 0o700));
    t.file("real/f", b"x");
    ok(symlink(t.p("real").as_ptr(), t.p("abs").as_ptr()));
    ok(symlink(c("./abs/../abs").as_ptr(), t.p("rel").as_ptr()));
    assert_eq!(std::fs::read(t.s("rel/f")).unwrap(), b"x");
    std::fs::write(t.s("rel/new"), b"y").unwrap();
    assert_eq!(std::fs::read(t.s("real/new")).unwrap(), b"y");
}

unsafe fn relative_to_the_link() {
    let t = Tmp::new();
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    t.file("d/f", b"near");
    t.file("f", b"far");
    ok(symlink(c("f").as_ptr(), t.p("d/l").as_ptr()));
    ok(chdir(t.p("").as_ptr()));
    assert_eq!(std::fs::read("d/l").unwrap(), b"near");
    // `..` after a link is the parent of its target.
    ok(mkdir(t.p("e").as_ptr(), 0o700));
    ok(symlink(c("../d").as_ptr(), t.p("e/to").as_ptr()));
    assert_eq!(std::fs::read("e/to/../f").unwrap(), b"far");
}

unsafe fn unlink_errors() {
    let t = Tmp::new();
    t.file("f", b"");
    fails(unlink(t.p("none").as_ptr()), ENOENT);
    fails(unlink(t.p("f/").as_ptr()), ENOTDIR);
    fails(unlink(t.p("f/x").as_ptr()), ENOTDIR);
    fails(unlink(c("").as_ptr()), ENOENT);
    fails(unlink(c("/").as_ptr()), EISDIR);
    fails(unlink(BAD.cast()), EFAULT);
}

unsafe fn unlink_removes_link_only() {
    let t = Tmp::new();
    t.file("f", b"x");
    ok(symlink(c("f").as_ptr(), t.p("l").as_ptr()));
    ok(unlink(t.p("l").as_ptr()));
    ok(access(t.p("f").as_ptr(), F_OK));
}

unsafe fn dangling() {
    let t = Tmp::new();
    ok(symlink(c("later").as_ptr(), t.p("l").as_ptr()));
    fails(open(t.p("l").as_ptr(), O_RDONLY), ENOENT);
    fails(truncate(t.p("l").as_ptr(), 0), ENOENT);
    fails(chmod(t.p("l").as_ptr(), 0o600), ENOENT);
    t.file("later", b"here");
    assert_eq!(std::fs::read(t.s("l")).unwrap(), b"here");
}

unsafe fn link_to_symlink() {
    let t = Tmp::new();
    ok(symlink(c("none").as_ptr(), t.p("l").as_ptr()));
    ok(link(t.p("l").as_ptr(), t.p("m").as_ptr()));
    let (mut a, mut b): (stat, stat) = (zeroed(), zeroed());
    ok(lstat(t.p("l").as_ptr(), &mut a));
    ok(lstat(t.p("m").as_ptr(), &mut b));
    assert_eq!((a.st_ino, a.st_nlink), (b.st_ino, 2));
}

/// `/dev/stdin` and `/dev/fd/N` reopen a pipe like a FIFO.
unsafe fn open_pipe_by_proc() {
    let (r, w) = pipe_pair();
    let by = |fd: i32| c(&format!("/proc/self/fd/{fd}"));
    let again = ok(open(by(r).as_ptr(), O_RDONLY));
    put(w, b"abc");
    assert_eq!(get(again, 2), b"ab");
    assert_eq!(get(r, 1), b"c");
    let to = ok(open(by(r).as_ptr(), O_WRONLY));
    ok(close(w));
    put(to, b"x");
    assert_eq!(get(again, 1), b"x");
    let (a, b) = (fstat_of(r), fstat_of(again));
    assert_eq!((a.st_dev, a.st_ino, a.st_mode), (b.st_dev, b.st_ino, b.st_mode));
    ok(close(to));
    assert_eq!(get(again, 1), b"");
    // Such an open does not wait for the other end.
    assert_eq!(get(ok(open(by(r).as_ptr(), O_RDONLY)), 1), b"");
    fails(open(by(r).as_ptr(), O_WRONLY | O_DIRECTORY), ENOTDIR);
    let s = ok(socket(AF_UNIX, SOCK_STREAM, 0));
    fails(open(by(s).as_ptr(), O_RDWR), ENXIO);
}
