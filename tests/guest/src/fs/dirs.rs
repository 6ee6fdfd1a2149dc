//! Directories: mkdir, rmdir, getdents64, the working directory, chroot.

use crate::t::*;
use libc::*;
use std::collections::BTreeSet;

pub const CASES: &[crate::Case] = cases![
    mkdir_mode,
    mkdir_errors,
    rmdir_errors,
    listing,
    listing_many,
    small_buffer,
    rewind,
    listing_while_removing,
    link_counts,
    working_directory,
    chdir_errors,
    getcwd_errors,
    removed_working_directory,
    removed_directory_is_dead,
    cwd_is_inherited,
    dot_and_dotdot,
    long_paths,
    setgid_directory,
    chroot_call,
    mkdirat_unlinkat,
    getdents_errors,
    repeated_slashes,
];

#[derive(Debug)]
struct Ent {
    ino: u64,
    off: i64,
    kind: u8,
    name: String,
}

unsafe fn dents(fd: i32, size: usize) -> Vec<Ent> {
    let mut b = vec![0u8; size];
    let n = ok(syscall(SYS_getdents64, fd, b.as_mut_ptr(), size)) as usize;
    let (mut out, mut at) = (Vec::new(), 0);
    while at < n {
        let e = &b[at..n];
        let len = u16::from_ne_bytes(e[16..18].try_into().unwrap()) as usize;
        assert!(len % 8 == 0 && len >= 24 && len <= e.len());
        let name = e[19..len].split(|&c| c == 0).next().unwrap();
        out.push(Ent {
            ino: u64::from_ne_bytes(e[..8].try_into().unwrap()),
            off: i64::from_ne_bytes(e[8..16].try_into().unwrap()),
            kind: e[18],
            name: String::from_utf8(name.to_vec()).unwrap(),
        });
        at += len;
    }
    out
}

unsafe fn all(fd: i32, size: usize) -> Vec<Ent> {
    let mut v = Vec::new();
    loop {
        let d = dents(fd, size);
        if d.is_empty() {
            return v;
        }
        v.extend(d);
    }
}

unsafe fn mkdir_mode() {
    let t = Tmp::new();
    umask(0o027);
    ok(mkdir(t.p("d").as_ptr(), 0o777));
    assert_eq!(stat_of(&t.p("d")).st_mode, S_IFDIR | 0o750);
    umask(0);
    ok(mkdir(t.p("e").as_ptr(), 0o1777));
    assert_eq!(stat_of(&t.p("e")).st_mode, S_IFDIR | 0o1777);
    ok(mkdir(t.p("f/").as_ptr(), 0o700));
    assert_eq!(stat_of(&t.p("f")).st_mode, S_IFDIR | 0o700);
}

unsafe fn mkdir_errors() {
    let t = Tmp::new();
    t.file("f", b"");
    ok(symlink(c("nowhere").as_ptr(), t.p("l").as_ptr()));
    fails(mkdir(t.p("f").as_ptr(), 0o700), EEXIST);
    fails(mkdir(t.p("l").as_ptr(), 0o700), EEXIST);
    fails(mkdir(t.p("").as_ptr(), 0o700), EEXIST);
    fails(mkdir(t.p("a/b").as_ptr(), 0o700), ENOENT);
    fails(mkdir(t.p("f/b").as_ptr(), 0o700), ENOTDIR);
    fails(mkdir(t.p(&"x".repeat(256)).as_ptr(), 0o700), ENAMETOOLONG);
    fails(mkdir(c("").as_ptr(), 0o700), ENOENT);
    fails(mkdir(c("/").as_ptr(), 0o700), EEXIST);
    fails(mkdir(BAD.cast(), 0o700), EFAULT);
}

unsafe fn rmdir_errors() {
    let t = Tmp::new();
    t.file("f", b"");
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    ok(mkdir(t.p("d/e").as_ptr(), 0o700));
    ok(symlink(c("d").as_ptr(), t.p("l").as_ptr()));
    fails(rmdir(t.p("d").as_ptr()), ENOTEMPTY);
    fails(rmdir(t.p("f").as_ptr()), ENOTDIR);
    fails(rmdir(t.p("l").as_ptr()), ENOTDIR);
    fails(rmdir(t.p("none").as_ptr()), ENOENT);
    fails(rmdir(t.p("d/e/.").as_ptr()), EINVAL);
    fails(rmdir(t.p("d/e/..").as_ptr()), ENOTEMPTY);
    fails(rmdir(c("/").as_ptr()), EBUSY);
    fails(unlink(t.p("d").as_ptr()), EISDIR);
    ok(rmdir(t.p("d/e").as_ptr()));
    ok(rmdir(t.p("d/").as_ptr()));
}

unsafe fn listing() {
    let t = Tmp::new();
    let f = t.file("file", b"");
    ok(mkdir(t.p("dir").as_ptr(), 0o700));
    ok(symlink(c("x").as_ptr(), t.p("link").as_ptr()));
    ok(mkfifo(t.p("fifo").as_ptr(), 0o600));
    let fd = ok(open(t.p("").as_ptr(), O_RDONLY | O_DIRECTORY));
    let v = all(fd, 4096);
    let names: BTreeSet<_> = v.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names.len(), v.len());
    assert_eq!(names, BTreeSet::from([".", "..", "file", "dir", "link", "fifo"]));
    for e in &v {
        let want = match e.name.as_str() {
            "file" => DT_REG,
            "link" => DT_LNK,
            "fifo" => DT_FIFO,
            _ => DT_DIR,
        };
        assert_eq!(e.kind, want, "{}", e.name);
        if e.name == "file" {
            assert_eq!(e.ino, stat_of(&f).st_ino);
        }
        if e.name == "." {
            assert_eq!(e.ino, fstat_of(fd).st_ino);
        }
    }
}

unsafe fn listing_many() {
    let t = Tmp::new();
    let want: BTreeSet<String> = (0..2000).map(|i| format!("entry-number-{i}")).collect();
    for n in &want {
        ok(close(t.open(n)));
    }
    let fd = ok(open(t.p("").as_ptr(), O_RDONLY | O_DIRECTORY));
    let v = all(fd, 1024);
    let mut got: BTreeSet<String> = v.iter().map(|e| e.name.clone()).collect();
    assert_eq!(got.len(), v.len(), "no name twice");
    assert!(got.remove(".") && got.remove(".."));
    assert_eq!(got, want);
    // From any reported offset, the listing continues after that entry.
    let at = 1000;
    ok(lseek(fd, v[at].off, SEEK_SET));
    let rest = all(fd, 4096);
    assert_eq!(rest.len(), v.len() - at - 1);
    assert_eq!(rest[0].name, v[at + 1].name);
}

unsafe fn small_buffer() {
    let t = Tmp::new();
    t.file(&"n".repeat(100), b"");
    let fd = ok(open(t.p("").as_ptr(), O_RDONLY | O_DIRECTORY));
    let mut b = [0u8; 16];
    fails(syscall(SYS_getdents64, fd, b.as_mut_ptr(), 16), EINVAL);
    let mut n = 0;
    loop {
        let mut b = [0u8; 128];
        let r = ok(syscall(SYS_getdents64, fd, b.as_mut_ptr(), 128));
        if r == 0 {
            break;
        }
        n += 1;
    }
    assert!(n >= 2);
}

unsafe fn rewind() {
    let t = Tmp::new();
    t.file("a", b"");
    let fd = ok(open(t.p("").as_ptr(), O_RDONLY | O_DIRECTORY));
    assert_eq!(all(fd, 4096).len(), 3);
    assert_eq!(all(fd, 4096).len(), 0);
    t.file("b", b"");
    is(lseek(fd, 0, SEEK_SET), 0);
    assert_eq!(all(fd, 4096).len(), 4);
    ok(unlink(t.p("a").as_ptr()));
    ok(lseek(fd, 0, SEEK_SET));
    assert_eq!(all(fd, 4096).len(), 3);
}

unsafe fn listing_while_removing() {
    let t = Tmp::new();
    for i in 0..300 {
        t.file(&format!("f{i}"), b"");
    }
    let fd = ok(open(t.p("").as_ptr(), O_RDONLY | O_DIRECTORY));
    let mut removed = 0;
    loop {
        let v = dents(fd, 512);
        if v.is_empty() {
            break;
        }
        for e in v.iter().filter(|e| e.name.starts_with('f')) {
            ok(unlinkat(fd, c(&e.name).as_ptr(), 0));
            removed += 1;
        }
    }
    assert_eq!(removed, 300);
    assert_eq!(std::fs::read_dir(&t.0).unwrap().count(), 0);
}

unsafe fn link_counts() {
    let t = Tmp::new();
    let before = stat_of(&t.p("")).st_nlink;
    ok(mkdir(t.p("a").as_ptr(), 0o700));
    ok(mkdir(t.p("b").as_ptr(), 0o700));
    let after = stat_of(&t.p("")).st_nlink;
    // Some file systems always report 1.
    assert!(after == before + 2 || after == 1, "{before} {after}");
    let fd = ok(open(t.p("a").as_ptr(), O_RDONLY));
    ok(rmdir(t.p("a").as_ptr()));
    assert_eq!(fstat_of(fd).st_nlink, 0);
}

fn cwd() -> Result<String, i32> {
    let mut b = [0 as c_char; 4096];
    let p = unsafe { getcwd(b.as_mut_ptr(), b.len()) };
    if p.is_null() {
        return Err(errno());
    }
    Ok(unsafe { std::ffi::CStr::from_ptr(p) }.to_str().unwrap().to_string())
}

unsafe fn working_directory() {
    let t = Tmp::new();
    ok(mkdir(t.p("a").as_ptr(), 0o700));
    ok(mkdir(t.p("a/b").as_ptr(), 0o700));
    ok(symlink(c("a/b").as_ptr(), t.p("l").as_ptr()));
    ok(chdir(t.p("").as_ptr()));
    let base = cwd().unwrap();
    ok(chdir(c("l").as_ptr()));
    assert_eq!(cwd().unwrap(), format!("{base}/a/b"));
    ok(chdir(c("..").as_ptr()));
    assert_eq!(cwd().unwrap(), format!("{base}/a"));
    ok(rename(t.p("a").as_ptr(), t.p("c").as_ptr()));
    assert_eq!(cwd().unwrap(), format!("{base}/c"));
    let fd = ok(open(c("b").as_ptr(), O_RDONLY));
    ok(fchdir(fd));
    assert_eq!(cwd().unwrap(), format!("{base}/c/b"));
    ok(chdir(c("/").as_ptr()));
    ok(chdir(c("..").as_ptr()));
    assert_eq!(cwd().unwrap(), "/");
}

unsafe fn chdir_errors() {
    let t = Tmp::new();
    t.file("f", b"");
    fails(chdir(t.p("f").as_ptr()), ENOTDIR);
    fails(chdir(t.p("none").as_ptr()), ENOENT);
    fails(chdir(c("").as_ptr()), ENOENT);
    fails(chdir(BAD.cast()), EFAULT);
    let fd = ok(open(t.p("f").as_ptr(), O_RDONLY));
    fails(fchdir(fd), ENOTDIR);
    fails(fchdir(-1), EBADF);
}

unsafe fn getcwd_errors() {
    ok(chdir(c("/tmp").as_ptr()));
    let mut b = [0u8; 8];
    fails(syscall(SYS_getcwd, b.as_mut_ptr(), 4), ERANGE);
    fails(syscall(SYS_getcwd, BAD, 100), EFAULT);
    is(syscall(SYS_getcwd, b.as_mut_ptr(), 5), 5); // the length includes the NUL
    assert_eq!(&b[..5], b"/tmp\0");
}

unsafe fn removed_working_directory() {
    let t = Tmp::new();
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    ok(chdir(t.p("d").as_ptr()));
    ok(rmdir(t.p("d").as_ptr()));
    assert_eq!(cwd(), Err(ENOENT));
    fails(open(c("x").as_ptr(), O_CREAT | O_RDWR, 0o600), ENOENT);
    fails(mkdir(c("x").as_ptr(), 0o700), ENOENT);
    ok(open(c(".").as_ptr(), O_RDONLY));
    ok(chdir(c("..").as_ptr()));
    assert!(cwd().is_ok());
}

unsafe fn removed_directory_is_dead() {
    let t = Tmp::new();
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    let fd = ok(open(t.p("d").as_ptr(), O_RDONLY));
    ok(rmdir(t.p("d").as_ptr()));
    fails(openat(fd, c("x").as_ptr(), O_CREAT | O_RDWR, 0o600), ENOENT);
    fails(symlinkat(c("a").as_ptr(), fd, c("x").as_ptr()), ENOENT);
    // The name can be reused for another directory.
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    assert_ne!(stat_of(&t.p("d")).st_ino, fstat_of(fd).st_ino);
}

unsafe fn cwd_is_inherited() {
    let t = Tmp::new();
    t.file("f", b"");
    ok(chdir(t.p("").as_ptr()));
    in_child(|| {
        ok(access(c("f").as_ptr(), F_OK));
        ok(chdir(c("/").as_ptr()));
    });
    ok(access(c("f").as_ptr(), F_OK));
}

unsafe fn dot_and_dotdot() {
    let t = Tmp::new();
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    t.file("f", b"");
    let ino = stat_of(&t.p("f")).st_ino;
    for p in ["./f", "d/../f", "d/./../f", "d/.././d/../f", "./././f"] {
        assert_eq!(stat_of(&t.p(p)).st_ino, ino, "{p}");
    }
    assert_eq!(stat_of(&t.p("d/..")).st_ino, stat_of(&t.p("")).st_ino);
    fails(mkdir(t.p("d/.").as_ptr(), 0o700), EEXIST);
    fails(mkdir(t.p("d/..").as_ptr(), 0o700), EEXIST);
    fails(unlink(t.p("d/..").as_ptr()), EISDIR);
}

unsafe fn long_paths() {
    let t = Tmp::new();
    ok(chdir(t.p("").as_ptr()));
    let name = c(&"d".repeat(200));
    for _ in 0..25 {
        ok(mkdir(name.as_ptr(), 0o700));
        ok(chdir(name.as_ptr()));
    }
    // The path is now longer than PATH_MAX.
    let mut b = vec![0u8; 10_000];
    fails(syscall(SYS_getcwd, b.as_mut_ptr(), b.len()), ENAMETOOLONG);
    t.file("x", b"");
    for _ in 0..25 {
        ok(chdir(c("..").as_ptr()));
    }
    ok(access(c("x").as_ptr(), F_OK));
}

unsafe fn setgid_directory() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let d = t.p("d");
    ok(mkdir(d.as_ptr(), 0o777));
    ok(chown(d.as_ptr(), 0, 1234));
    ok(chmod(d.as_ptr(), 0o2777));
    t.file("d/f", b"");
    ok(mkdir(t.p("d/e").as_ptr(), 0o755));
    assert_eq!(stat_of(&t.p("d/f")).st_gid, 1234);
    let e = stat_of(&t.p("d/e"));
    assert_eq!((e.st_gid, e.st_mode & 0o7777), (1234, 0o2755));
}

unsafe fn chroot_call() {
    let t = Tmp::new();
    ok(mkdir(t.p("d").as_ptr(), 0o755));
    t.file("d/f", b"inside");
    t.file("out", b"");
    ok(symlink(c("/f").as_ptr(), t.p("d/l").as_ptr()));
    if geteuid() != 0 {
        fails(chroot(t.p("d").as_ptr()), EPERM);
        return;
    }
    fails(chroot(t.p("d/f").as_ptr()), ENOTDIR);
    fails(chroot(t.p("none").as_ptr()), ENOENT);
    in_child(|| {
        ok(chroot(t.p("d").as_ptr()));
        ok(chdir(c("/").as_ptr()));
        assert_eq!(cwd().unwrap(), "/");
        assert_eq!(std::fs::read("/f").unwrap(), b"inside");
        assert_eq!(std::fs::read("/l").unwrap(), b"inside");
        fails(access(c("/../out").as_ptr(), F_OK), ENOENT);
        fails(access(c("/etc").as_ptr(), F_OK), ENOENT);
    });
    in_child(|| {
        ok(chdir(t.p("").as_ptr()));
        ok(chroot(t.p("d").as_ptr()));
        // The working directory is outside the new root now, and getcwd reports that.
        assert!(cwd().is_err() || cwd().unwrap().starts_with("(unreachable)"));
        ok(access(c("out").as_ptr(), F_OK));
    });
}

unsafe fn mkdirat_unlinkat() {
    let t = Tmp::new();
    let d = ok(open(t.p("").as_ptr(), O_RDONLY));
    ok(mkdirat(d, c("x").as_ptr(), 0o700));
    ok(mknodat(d, c("f").as_ptr(), S_IFREG | 0o600, 0));
    fails(unlinkat(d, c("x").as_ptr(), 0), EISDIR);
    fails(unlinkat(d, c("f").as_ptr(), AT_REMOVEDIR), ENOTDIR);
    fails(unlinkat(d, c("f").as_ptr(), 0x1), EINVAL);
    ok(unlinkat(d, c("x").as_ptr(), AT_REMOVEDIR));
    ok(unlinkat(d, c("f").as_ptr(), 0));
    fails(unlinkat(d, c("f").as_ptr(), 0), ENOENT);
    fails(mkdirat(-1, c("x").as_ptr(), 0o700), EBADF);
}

unsafe fn getdents_errors() {
    let t = Tmp::new();
    let f = t.open("f");
    let d = ok(open(t.p("").as_ptr(), O_RDONLY));
    let mut b = [0u8; 512];
    fails(syscall(SYS_getdents64, f, b.as_mut_ptr(), 512), ENOTDIR);
    fails(syscall(SYS_getdents64, -1, b.as_mut_ptr(), 512), EBADF);
    fails(syscall(SYS_getdents64, d, BAD, 512), EFAULT);
    assert!(ok(syscall(SYS_getdents, d, b.as_mut_ptr(), 512)) > 0);
}

unsafe fn repeated_slashes() {
    let t = Tmp::new();
    ok(mkdir(t.p("d").as_ptr(), 0o700));
    t.file("d/f", b"");
    ok(access(t.p("d////f").as_ptr(), F_OK));
    ok(access(c(&format!("//{}", t.s("d//.//f"))).as_ptr(), F_OK));
    ok(access(t.p("d///").as_ptr(), F_OK));
}
