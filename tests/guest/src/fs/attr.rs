//! stat(2), statx, access, utimensat, statfs, mknod.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    stat_kinds,
    stat_errors,
    fstatat_flags,
    statx_basic,
    statx_errors,
    identity,
    access_modes,
    access_errors,
    faccessat2_flags,
    times_change,
    utimensat_values,
    utimensat_errors,
    utimes_calls,
    statfs_call,
    mknod_regular_and_fifo,
    mknod_device,
    blocks_and_size,
    special_files,
];

unsafe fn stat_kinds() {
    let t = Tmp::new();
    let f = t.file("f", b"12345");
    ok(symlink(f.as_ptr(), t.p("l").as_ptr()));
    ok(mkfifo(t.p("p").as_ptr(), 0o600));
    let st = stat_of(&f);
    assert_eq!((st.st_mode, st.st_size, st.st_nlink), (S_IFREG | 0o644, 5, 1));
    assert_eq!((st.st_uid, st.st_gid), (geteuid(), getegid()));
    assert!(st.st_blksize > 0 && st.st_ino > 0);
    assert_eq!(stat_of(&t.p("")).st_mode & S_IFMT, S_IFDIR);
    assert_eq!(stat_of(&t.p("l")).st_ino, st.st_ino);
    let mut l = zeroed();
    ok(lstat(t.p("l").as_ptr(), &mut l));
    assert_eq!((l.st_mode, l.st_size as usize), (S_IFLNK | 0o777, f.as_bytes().len()));
    assert_eq!(stat_of(&t.p("p")).st_mode, S_IFIFO | 0o600);
    let fd = ok(open(f.as_ptr(), O_RDONLY));
    let g = fstat_of(fd);
    assert_eq!(
        (g.st_ino, g.st_dev, g.st_mtime, g.st_mtime_nsec),
        (st.st_ino, st.st_dev, st.st_mtime, st.st_mtime_nsec)
    );
    let (r, _w) = pipe_pair();
    assert_eq!(fstat_of(r).st_mode & S_IFMT, S_IFIFO);
    let s = ok(socket(AF_UNIX, SOCK_STREAM, 0));
    assert_eq!(fstat_of(s).st_mode & S_IFMT, S_IFSOCK);
}

unsafe fn stat_errors() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    let mut st = zeroed();
    fails(stat(t.p("none").as_ptr(), &mut st), ENOENT);
    fails(stat(c("").as_ptr(), &mut st), ENOENT);
    fails(stat(t.p("f/x").as_ptr(), &mut st), ENOTDIR);
    fails(stat(t.p("f/").as_ptr(), &mut st), ENOTDIR);
    fails(stat(t.p("f/.").as_ptr(), &mut st), ENOTDIR);
    fails(stat(t.p("none/..").as_ptr(), &mut st), ENOENT);
    fails(syscall(SYS_stat, f.as_ptr(), BAD), EFAULT);
    fails(syscall(SYS_stat, BAD, &mut st), EFAULT);
    fails(fstat(-1, &mut st), EBADF);
    // A path at the end of mapped memory.
    let p = anon(2 * PAGE, RW);
    ok(mprotect(p.add(PAGE).cast(), PAGE, PROT_NONE));
    let b = f.as_bytes_with_nul();
    let at = p.add(PAGE - b.len());
    std::ptr::copy_nonoverlapping(b.as_ptr(), at, b.len());
    ok(stat(at.cast(), &mut st));
    *p.add(PAGE - 1) = b'x';
    fails(stat(at.cast(), &mut st), EFAULT);
}

unsafe fn fstatat_flags() {
    let t = Tmp::new();
    t.file("f", b"1");
    ok(symlink(c("f").as_ptr(), t.p("l").as_ptr()));
    let d = ok(open(t.p("").as_ptr(), O_RDONLY));
    let fd = ok(open(t.p("f").as_ptr(), O_RDONLY));
    let mut st = zeroed();
    ok(fstatat(d, c("l").as_ptr(), &mut st, 0));
    assert_eq!(st.st_mode & S_IFMT, S_IFREG);
    ok(fstatat(d, c("l").as_ptr(), &mut st, AT_SYMLINK_NOFOLLOW));
    assert_eq!(st.st_mode & S_IFMT, S_IFLNK);
    ok(fstatat(fd, c("").as_ptr(), &mut st, AT_EMPTY_PATH));
    assert_eq!(st.st_size, 1);
    fails(fstatat(fd, c("").as_ptr(), &mut st, 0), ENOENT);
    fails(fstatat(fd, c("f").as_ptr(), &mut st, 0), ENOTDIR);
    fails(syscall(SYS_newfstatat, d, c("f").as_ptr(), &mut st, 0x8000_0000u32), EINVAL);
    fails(fstatat(-1, c("f").as_ptr(), &mut st, 0), EBADF);
}

unsafe fn statx_basic() {
    let t = Tmp::new();
    let f = t.file("f", b"123");
    let mut x: statx = zeroed();
    ok(statx(AT_FDCWD, f.as_ptr(), 0, STATX_BASIC_STATS, &mut x));
    let st = stat_of(&f);
    assert_eq!(x.stx_mask & STATX_BASIC_STATS, STATX_BASIC_STATS);
    assert_eq!((u32::from(x.stx_mode), x.stx_size, x.stx_ino, x.stx_nlink), (st.st_mode, 3, st.st_ino, 1));
    assert_eq!(makedev(x.stx_dev_major, x.stx_dev_minor), st.st_dev);
    assert_eq!((x.stx_mtime.tv_sec, i64::from(x.stx_mtime.tv_nsec)), (st.st_mtime, st.st_mtime_nsec));
    let fd = ok(open(f.as_ptr(), O_RDONLY));
    ok(statx(fd, c("").as_ptr(), AT_EMPTY_PATH, STATX_SIZE, &mut x));
    assert_eq!(x.stx_size, 3);
}

unsafe fn statx_errors() {
    let t = Tmp::new();
    let f = t.file("f", b"123");
    let mut x: statx = zeroed();
    fails(statx(AT_FDCWD, t.p("no").as_ptr(), 0, STATX_ALL, &mut x), ENOENT);
    fails(statx(AT_FDCWD, f.as_ptr(), 0, 0x8000_0000, &mut x), EINVAL);
    fails(statx(AT_FDCWD, f.as_ptr(), 0x8000, STATX_ALL, &mut x), EINVAL);
    fails(statx(AT_FDCWD, f.as_ptr(), AT_STATX_SYNC_TYPE, STATX_ALL, &mut x), EINVAL);
    fails(statx(AT_FDCWD, f.as_ptr(), 0, STATX_ALL, BAD.cast()), EFAULT);
    fails(statx(-1, c("f").as_ptr(), 0, STATX_ALL, &mut x), EBADF);
}

/// Device and inode number identify a file and stay the same.
unsafe fn identity() {
    let t = Tmp::new();
    let (a, b) = (t.file("a", b""), t.file("b", b""));
    ok(link(a.as_ptr(), t.p("c").as_ptr()));
    let (sa, sb, sc) = (stat_of(&a), stat_of(&b), stat_of(&t.p("c")));
    assert_eq!((sa.st_dev, sa.st_ino), (sc.st_dev, sc.st_ino));
    assert_ne!(sa.st_ino, sb.st_ino);
    ok(rename(a.as_ptr(), t.p("d").as_ptr()));
    assert_eq!(stat_of(&t.p("d")).st_ino, sa.st_ino);
}

unsafe fn access_modes() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(chmod(f.as_ptr(), 0o400));
    ok(access(f.as_ptr(), F_OK));
    ok(access(f.as_ptr(), R_OK));
    fails(access(f.as_ptr(), X_OK), EACCES); // for root too: no execute bit is set
    ok(chmod(f.as_ptr(), 0o500));
    ok(access(f.as_ptr(), R_OK | X_OK));
    if geteuid() == 0 {
        ok(access(f.as_ptr(), W_OK));
        // access(2) uses the real ids, not the effective ones.
        in_child(|| {
            ok(chmod(t.p("").as_ptr(), 0o755));
            ok(setresuid(65534, 0, 0));
            fails(access(f.as_ptr(), R_OK), EACCES);
            ok(faccessat(AT_FDCWD, f.as_ptr(), R_OK, AT_EACCESS));
        });
    } else {
        fails(access(f.as_ptr(), W_OK), EACCES);
    }
}

unsafe fn access_errors() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    fails(access(t.p("none").as_ptr(), F_OK), ENOENT);
    fails(access(t.p("f/x").as_ptr(), F_OK), ENOTDIR);
    fails(access(f.as_ptr(), 8), EINVAL);
    fails(access(BAD.cast(), F_OK), EFAULT);
    ok(symlink(c("l2").as_ptr(), t.p("l1").as_ptr()));
    ok(symlink(c("l1").as_ptr(), t.p("l2").as_ptr()));
    fails(access(t.p("l1").as_ptr(), F_OK), ELOOP);
}

unsafe fn faccessat2_flags() {
    let t = Tmp::new();
    t.file("f", b"");
    ok(symlink(c("none").as_ptr(), t.p("l").as_ptr()));
    let d = ok(open(t.p("").as_ptr(), O_RDONLY));
    let call = |n: &str, mode: i32, flags: i32| syscall(SYS_faccessat2, d, c(n).as_ptr(), mode, flags);
    ok(call("f", R_OK, 0));
    fails(call("l", F_OK, 0), ENOENT);
    ok(call("l", F_OK, AT_SYMLINK_NOFOLLOW));
    ok(call("", F_OK, AT_EMPTY_PATH));
    fails(call("f", R_OK, 0x4000), EINVAL);
    fails(call("f", 0x10, 0), EINVAL);
}

unsafe fn times_change() {
    let t = Tmp::new();
    let fd = t.open("f");
    let old = timespec { tv_sec: 1_000_000, tv_nsec: 5 };
    let reset = || {
        ok(futimens(fd, [old, old].as_ptr()));
        let s = fstat_of(fd);
        assert_eq!((s.st_atime, s.st_mtime, s.st_mtime_nsec), (1_000_000, 1_000_000, 5));
    };
    reset();
    assert!(fstat_of(fd).st_ctime > 1_500_000_000);
    put(fd, b"x");
    assert!(fstat_of(fd).st_mtime > 1_500_000_000, "write sets mtime");
    reset();
    ok(ftruncate(fd, 7));
    assert!(fstat_of(fd).st_mtime > 1_500_000_000, "truncate sets mtime");
    reset();
    ok(fchmod(fd, 0o600));
    assert_eq!(fstat_of(fd).st_mtime, 1_000_000, "chmod does not");
    let d = t.p("");
    ok(utimensat(AT_FDCWD, d.as_ptr(), [old, old].as_ptr(), 0));
    t.file("new", b"");
    assert!(stat_of(&d).st_mtime > 1_500_000_000, "a new entry sets the directory's mtime");
    ok(utimensat(AT_FDCWD, d.as_ptr(), [old, old].as_ptr(), 0));
    ok(unlink(t.p("new").as_ptr()));
    assert!(stat_of(&d).st_mtime > 1_500_000_000, "and so does a removal");
}

unsafe fn utimensat_values() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    let ts = |s, n| timespec { tv_sec: s, tv_nsec: n };
    let set = |a, m| ok(utimensat(AT_FDCWD, f.as_ptr(), [a, m].as_ptr(), 0));
    set(ts(100, 200), ts(300, 400));
    let s = stat_of(&f);
    assert_eq!((s.st_atime, s.st_atime_nsec, s.st_mtime, s.st_mtime_nsec), (100, 200, 300, 400));
    set(ts(0, UTIME_OMIT), ts(500, 600));
    let s = stat_of(&f);
    assert_eq!((s.st_atime, s.st_mtime), (100, 500));
    set(ts(0, UTIME_NOW), ts(0, UTIME_OMIT));
    let s = stat_of(&f);
    assert!(s.st_atime > 1_500_000_000 && s.st_mtime == 500);
    ok(utimensat(AT_FDCWD, f.as_ptr(), std::ptr::null(), 0));
    assert!(stat_of(&f).st_mtime > 1_500_000_000);
    ok(symlink(f.as_ptr(), t.p("l").as_ptr()));
    ok(utimensat(AT_FDCWD, t.p("l").as_ptr(), [ts(7, 0), ts(8, 0)].as_ptr(), AT_SYMLINK_NOFOLLOW));
    let mut l = zeroed();
    ok(lstat(t.p("l").as_ptr(), &mut l));
    assert_eq!(l.st_mtime, 8);
    assert!(stat_of(&f).st_mtime > 1_500_000_000);
}

unsafe fn utimensat_errors() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    let bad = timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
    fails(utimensat(AT_FDCWD, f.as_ptr(), [bad, bad].as_ptr(), 0), EINVAL);
    fails(utimensat(AT_FDCWD, t.p("no").as_ptr(), std::ptr::null(), 0), ENOENT);
    fails(utimensat(AT_FDCWD, f.as_ptr(), BAD.cast(), 0), EFAULT);
    fails(utimensat(AT_FDCWD, f.as_ptr(), std::ptr::null(), 0x8000), EINVAL);
    fails(futimens(-1, std::ptr::null()), EBADF);
}

unsafe fn utimes_calls() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    let tv = |s| timeval { tv_sec: s, tv_usec: 5 };
    ok(syscall(SYS_utimes, f.as_ptr(), [tv(11), tv(22)].as_ptr()));
    let s = stat_of(&f);
    assert_eq!((s.st_atime, s.st_mtime, s.st_mtime_nsec), (11, 22, 5000));
    ok(syscall(SYS_utime, f.as_ptr(), &utimbuf { actime: 33, modtime: 44 }));
    let s = stat_of(&f);
    assert_eq!((s.st_atime, s.st_mtime, s.st_mtime_nsec), (33, 44, 0));
    ok(syscall(SYS_futimesat, AT_FDCWD, f.as_ptr(), [tv(55), tv(66)].as_ptr()));
    assert_eq!(stat_of(&f).st_mtime, 66);
    let bad = timeval { tv_sec: 0, tv_usec: 1_000_000 };
    fails(syscall(SYS_utimes, f.as_ptr(), [bad, bad].as_ptr()), EINVAL);
}

unsafe fn statfs_call() {
    let t = Tmp::new();
    let mut s: statfs = zeroed();
    ok(statfs(t.p("").as_ptr(), &mut s));
    assert!(s.f_bsize > 0 && s.f_namelen >= 143);
    let fd = t.open("f");
    let mut g: statfs = zeroed();
    ok(fstatfs(fd, &mut g));
    assert_eq!(g.f_type, s.f_type);
    ok(statfs(c("/proc").as_ptr(), &mut s));
    assert_eq!(s.f_type, 0x9fa0);
    ok(statfs(c("/").as_ptr(), &mut s));
    assert!(s.f_bfree < s.f_blocks && s.f_bavail <= s.f_bfree, "something is in use");
    fails(statfs(t.p("none").as_ptr(), &mut s), ENOENT);
    fails(fstatfs(-1, &mut s), EBADF);
    fails(statfs(t.p("").as_ptr(), BAD.cast()), EFAULT);
}

unsafe fn mknod_regular_and_fifo() {
    let t = Tmp::new();
    ok(mknod(t.p("f").as_ptr(), S_IFREG | 0o640, 0));
    assert_eq!(stat_of(&t.p("f")).st_mode, S_IFREG | 0o640);
    ok(mknod(t.p("g").as_ptr(), 0o600, 0));
    assert_eq!(stat_of(&t.p("g")).st_mode, S_IFREG | 0o600);
    ok(mknod(t.p("p").as_ptr(), S_IFIFO | 0o666, 0));
    assert_eq!(stat_of(&t.p("p")).st_mode, S_IFIFO | 0o644);
    ok(mknod(t.p("s").as_ptr(), S_IFSOCK | 0o600, 0));
    assert_eq!(stat_of(&t.p("s")).st_mode & S_IFMT, S_IFSOCK);
    fails(open(t.p("s").as_ptr(), O_RDONLY), ENXIO);
    fails(mknod(t.p("f").as_ptr(), S_IFREG | 0o640, 0), EEXIST);
    fails(mknod(t.p("x").as_ptr(), S_IFDIR | 0o640, 0), EPERM);
    fails(mknod(t.p("x").as_ptr(), S_IFLNK | 0o640, 0), EINVAL);
    fails(mknod(t.p("no/x").as_ptr(), S_IFREG, 0), ENOENT);
}

unsafe fn mknod_device() {
    let t = Tmp::new();
    in_child(|| {
        if geteuid() == 0 {
            ok(chmod(t.p("").as_ptr(), 0o777));
            become_nobody();
        }
        fails(mknod(t.p("d").as_ptr(), S_IFCHR | 0o666, makedev(1, 3)), EPERM);
    });
}

unsafe fn blocks_and_size() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, &[1; 100_000]);
    ok(fsync(fd));
    let s = fstat_of(fd);
    assert_eq!(s.st_size, 100_000);
    assert!(s.st_blocks * 512 >= 100_000, "{} blocks", s.st_blocks);
}

unsafe fn special_files() {
    let st = stat_of(&c("/dev/null"));
    assert_eq!(st.st_mode & S_IFMT, S_IFCHR);
    assert_eq!(st.st_rdev, makedev(1, 3));
    assert_eq!(stat_of(&c("/dev/zero")).st_rdev, makedev(1, 5));
    let st = stat_of(&c("/"));
    assert_eq!(st.st_mode & S_IFMT, S_IFDIR);
    assert_eq!(stat_of(&c("/..")).st_ino, st.st_ino);
}
