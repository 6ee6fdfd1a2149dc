//! open(2) and related calls, close, dup, fcntl.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    creates_with_mode_and_umask,
    excl,
    trunc,
    append,
    open_errors,
    directory_flag,
    nofollow,
    o_path,
    tmpfile,
    openat_base,
    openat2_resolve,
    openat2_args,
    lowest_descriptor,
    close_errors,
    dup_shares_offset,
    dup2_dup3,
    dupfd,
    getfl_setfl,
    cloexec_flag,
    close_range_works,
    unlinked_file_lives,
    many_open_files,
    nofile_limit,
    creat_call,
    open_twice_has_two_offsets,
    memfd,
    memfd_seals,
    umask_call,
    fcntl_errors,
    opened_again,
];

unsafe fn creates_with_mode_and_umask() {
    let t = Tmp::new();
    for (mask, mode, want) in [(0o022, 0o666, 0o644), (0o077, 0o777, 0o700), (0, 0o6751, 0o6751), (0o777, 0o777, 0)] {
        umask(mask);
        let name = t.p(&format!("f{mask:o}"));
        let fd = ok(open(name.as_ptr(), O_CREAT | O_RDWR, mode as c_uint));
        assert_eq!(fstat_of(fd).st_mode, S_IFREG | want);
        // The mode does not restrict the descriptor that created the file.
        put(fd, b"x");
        assert_eq!(fstat_of(fd).st_size, 1);
        ok(close(fd));
    }
}

unsafe fn excl() {
    let t = Tmp::new();
    let f = t.file("f", b"1");
    fails(open(f.as_ptr(), O_CREAT | O_EXCL | O_RDWR, 0o600), EEXIST);
    ok(symlink(c("nowhere").as_ptr(), t.p("l").as_ptr()));
    fails(open(t.p("l").as_ptr(), O_CREAT | O_EXCL | O_RDWR, 0o600), EEXIST);
    ok(open(t.p("new").as_ptr(), O_CREAT | O_EXCL | O_RDWR, 0o600));
    // Without O_EXCL a dangling link is followed and its target created.
    ok(open(t.p("l").as_ptr(), O_CREAT | O_RDWR, 0o600));
    assert_eq!(stat_of(&t.p("nowhere")).st_size, 0);
}

unsafe fn trunc() {
    let t = Tmp::new();
    let f = t.file("f", b"0123456789");
    let fd = ok(open(f.as_ptr(), O_WRONLY | O_TRUNC));
    assert_eq!(fstat_of(fd).st_size, 0);
    put(fd, b"ab");
    assert_eq!(std::fs::read(t.s("f")).unwrap(), b"ab");
}

unsafe fn append() {
    let t = Tmp::new();
    let f = t.file("f", b"base");
    let a = ok(open(f.as_ptr(), O_RDWR | O_APPEND));
    let b = ok(open(f.as_ptr(), O_RDWR | O_APPEND));
    put(a, b"1");
    put(b, b"2");
    ok(lseek(a, 0, SEEK_SET));
    put(a, b"3");
    assert_eq!(lseek(a, 0, SEEK_CUR), 7);
    // On Linux pwrite with O_APPEND appends, whatever the offset.
    is(pwrite(b, b"4".as_ptr().cast(), 1, 0), 1);
    assert_eq!(std::fs::read(t.s("f")).unwrap(), b"base1234");
}

unsafe fn open_errors() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    fails(open(t.p("none").as_ptr(), O_RDONLY), ENOENT);
    fails(open(t.p("none/x").as_ptr(), O_CREAT | O_RDWR, 0o600), ENOENT);
    fails(open(t.p("f/x").as_ptr(), O_RDONLY), ENOTDIR);
    fails(open(t.p("f/").as_ptr(), O_RDONLY), ENOTDIR);
    fails(open(t.p("new/").as_ptr(), O_CREAT | O_RDWR, 0o600), EISDIR);
    fails(open(t.p("").as_ptr(), O_RDWR), EISDIR);
    fails(open(t.p("").as_ptr(), O_WRONLY), EISDIR);
    fails(open(t.p("").as_ptr(), O_CREAT, 0o600), EISDIR);
    fails(open(c("").as_ptr(), O_RDONLY), ENOENT);
    fails(open(t.p(&"n".repeat(256)).as_ptr(), O_RDONLY), ENAMETOOLONG);
    ok(open(t.p(&"n".repeat(255)).as_ptr(), O_RDWR | O_CREAT, 0o600));
    fails(open(c(&"/x".repeat(2048)).as_ptr(), O_RDONLY), ENAMETOOLONG);
    fails(open(BAD.cast(), O_RDONLY), EFAULT);
    fails(open(std::ptr::null(), O_RDONLY), EFAULT);
    fails(open(f.as_ptr(), O_RDONLY | O_DIRECTORY), ENOTDIR);
    // O_TMPFILE without O_DIRECTORY's bit or without write access is refused.
    fails(open(t.p("").as_ptr(), O_TMPFILE), EINVAL);
    fails(open(t.p("").as_ptr(), O_DIRECTORY | O_CREAT, 0o600), EINVAL);
}

unsafe fn directory_flag() {
    let t = Tmp::new();
    let fd = ok(open(t.p("").as_ptr(), O_RDONLY | O_DIRECTORY));
    let mut b = [0u8; 8];
    fails(read(fd, b.as_mut_ptr().cast(), 8), EISDIR);
    fails(write(fd, b.as_ptr().cast(), 8), EBADF);
    fails(ftruncate(fd, 0), EINVAL);
}

unsafe fn nofollow() {
    let t = Tmp::new();
    t.file("f", b"x");
    ok(symlink(c("f").as_ptr(), t.p("l").as_ptr()));
    ok(symlink(t.p("").as_ptr(), t.p("d").as_ptr()));
    fails(open(t.p("l").as_ptr(), O_RDONLY | O_NOFOLLOW), ELOOP);
    ok(open(t.p("f").as_ptr(), O_RDONLY | O_NOFOLLOW));
    // O_NOFOLLOW applies only to the last component.
    ok(open(t.p("d/f").as_ptr(), O_RDONLY | O_NOFOLLOW));
    fails(open(t.p("d").as_ptr(), O_RDONLY | O_NOFOLLOW | O_DIRECTORY), ENOTDIR);
    // With O_PATH the link itself is opened.
    let fd = ok(open(t.p("l").as_ptr(), O_PATH | O_NOFOLLOW));
    assert_eq!(fstat_of(fd).st_mode & S_IFMT, S_IFLNK);
    let mut b = [0 as c_char; 8];
    is(readlinkat(fd, c("").as_ptr(), b.as_mut_ptr(), 8), 1);
}

unsafe fn o_path() {
    let t = Tmp::new();
    let f = t.file("f", b"abc");
    let fd = ok(open(f.as_ptr(), O_PATH));
    let mut b = [0u8; 4];
    fails(read(fd, b.as_mut_ptr().cast(), 4), EBADF);
    fails(write(fd, b.as_ptr().cast(), 4), EBADF);
    fails(lseek(fd, 0, SEEK_SET), EBADF);
    fails(fchmod(fd, 0o600), EBADF);
    fails(ftruncate(fd, 0), EBADF);
    fails(ioctl(fd, FIONREAD, b.as_mut_ptr()), EBADF);
    fails(mmap(std::ptr::null_mut(), PAGE, PROT_READ, MAP_PRIVATE, fd, 0), EBADF);
    assert_eq!(fstat_of(fd).st_size, 3);
    assert_eq!(ok(fcntl(fd, F_GETFL)) & O_PATH, O_PATH);
    ok(dup(fd));
    // Reopening through /proc gives a usable descriptor.
    let real = ok(open(c(&format!("/proc/self/fd/{fd}")).as_ptr(), O_RDONLY));
    assert_eq!(get(real, 9), b"abc");
    let dir = ok(open(t.p("").as_ptr(), O_PATH | O_DIRECTORY));
    ok(openat(dir, c("f").as_ptr(), O_RDONLY));
    in_child(|| {
        ok(fchdir(dir));
        ok(open(c("f").as_ptr(), O_RDONLY));
    });
}

unsafe fn tmpfile() {
    let t = Tmp::new();
    let fd = open(t.p("").as_ptr(), O_TMPFILE | O_RDWR, 0o640);
    if fd == -1 && errno() == EOPNOTSUPP {
        return; // not supported by the file system
    }
    ok(fd);
    assert_eq!(fstat_of(fd).st_nlink, 0);
    assert_eq!(std::fs::read_dir(&t.0).unwrap().count(), 0);
    put(fd, b"hidden");
    let me = c(&format!("/proc/self/fd/{fd}"));
    ok(linkat(AT_FDCWD, me.as_ptr(), AT_FDCWD, t.p("seen").as_ptr(), AT_SYMLINK_FOLLOW));
    assert_eq!(fstat_of(fd).st_nlink, 1);
    assert_eq!(std::fs::read(t.s("seen")).unwrap(), b"hidden");
    let ex = ok(open(t.p("").as_ptr(), O_TMPFILE | O_RDWR | O_EXCL, 0o640));
    let me = c(&format!("/proc/self/fd/{ex}"));
    fails(linkat(AT_FDCWD, me.as_ptr(), AT_FDCWD, t.p("no").as_ptr(), AT_SYMLINK_FOLLOW), ENOENT);
}

unsafe fn openat_base() {
    let t = Tmp::new();
    let f = t.file("f", b"x");
    let dir = ok(open(t.p("").as_ptr(), O_RDONLY | O_DIRECTORY));
    let fd = ok(open(f.as_ptr(), O_RDONLY));
    ok(openat(dir, c("f").as_ptr(), O_RDONLY));
    ok(openat(-77, f.as_ptr(), O_RDONLY)); // an absolute path ignores the descriptor
    fails(openat(-77, c("f").as_ptr(), O_RDONLY), EBADF);
    fails(openat(fd, c("f").as_ptr(), O_RDONLY), ENOTDIR);
    in_child(|| {
        ok(chdir(t.p("").as_ptr()));
        ok(openat(AT_FDCWD, c("f").as_ptr(), O_RDONLY));
    });
}

#[repr(C)]
struct How {
    flags: u64,
    mode: u64,
    resolve: u64,
}

unsafe fn openat2(dir: i32, path: &str, flags: i32, mode: u64, resolve: u64) -> i64 {
    let how = How { flags: flags as u64, mode, resolve };
    syscall(SYS_openat2, dir, c(path).as_ptr(), &how, 24usize)
}

unsafe fn openat2_resolve() {
    let t = Tmp::new();
    t.file("f", b"x");
    ok(mkdir(t.p("d").as_ptr(), 0o755));
    ok(symlink(c("../f").as_ptr(), t.p("d/up").as_ptr()));
    ok(symlink(c("/etc").as_ptr(), t.p("abs").as_ptr()));
    ok(symlink(c("d").as_ptr(), t.p("ld").as_ptr()));
    let root = ok(open(t.p("").as_ptr(), O_PATH));
    let d = ok(open(t.p("d").as_ptr(), O_PATH));
    let (no_magic, no_links, beneath, in_root) =
        (RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT);
    ok(openat2(root, "f", O_RDONLY, 0, 0));
    ok(openat2(root, "d/up", O_RDONLY, 0, beneath));
    fails(openat2(d, "up", O_RDONLY, 0, beneath), EXDEV);
    fails(openat2(d, "../f", O_RDONLY, 0, beneath), EXDEV);
    fails(openat2(root, "/etc", O_RDONLY, 0, beneath), EXDEV);
    fails(openat2(root, "abs", O_RDONLY, 0, beneath), EXDEV);
    fails(openat2(root, "d/up", O_RDONLY, 0, no_links), ELOOP);
    fails(openat2(root, "ld/x", O_RDONLY, 0, no_links), ELOOP);
    fails(openat2(root, "abs", O_RDONLY, 0, in_root), ENOENT);
    ok(openat2(root, "/f", O_RDONLY, 0, in_root));
    ok(openat2(root, "../../f", O_RDONLY, 0, in_root));
    fails(openat2(-1, "/proc/self/fd/0", O_RDONLY, 0, no_magic), ELOOP);
}

unsafe fn openat2_args() {
    let t = Tmp::new();
    t.file("f", b"x");
    let f = t.s("f");
    fails(openat2(AT_FDCWD, &f, O_RDONLY, 0o600, 0), EINVAL); // a mode without O_CREAT
    fails(openat2(AT_FDCWD, &f, O_RDONLY, 0, 1 << 60), EINVAL);
    fails(openat2(AT_FDCWD, &f, 1 << 30, 0, 0), EINVAL);
    fails(openat2(AT_FDCWD, &f, O_RDONLY | O_CREAT, 0o600 | 1 << 40, 0), EINVAL);
    let mut big = [0u64; 8];
    fails(syscall(SYS_openat2, AT_FDCWD, c(&f).as_ptr(), big.as_ptr(), 8usize), EINVAL);
    ok(syscall(SYS_openat2, AT_FDCWD, c(&f).as_ptr(), big.as_ptr(), 64usize));
    big[7] = 1;
    fails(syscall(SYS_openat2, AT_FDCWD, c(&f).as_ptr(), big.as_ptr(), 64usize), E2BIG);
}

unsafe fn lowest_descriptor() {
    let t = Tmp::new();
    let f = t.file("f", b"x");
    let a = ok(open(f.as_ptr(), O_RDONLY));
    let b = ok(open(f.as_ptr(), O_RDONLY));
    let d = ok(open(f.as_ptr(), O_RDONLY));
    ok(close(a));
    ok(close(b));
    is(dup(d), a.into());
    is(open(f.as_ptr(), O_RDONLY), b.into());
}

unsafe fn close_errors() {
    fails(close(-1), EBADF);
    fails(close(987), EBADF);
    let (r, _) = pipe_pair();
    ok(close(r));
    fails(close(r), EBADF);
    let mut b = 0u8;
    fails(read(r, (&raw mut b).cast(), 1), EBADF);
}

unsafe fn dup_shares_offset() {
    let t = Tmp::new();
    let f = t.file("f", b"abcdef");
    let a = ok(open(f.as_ptr(), O_RDONLY));
    let b = ok(dup(a));
    assert_eq!(get(a, 2), b"ab");
    assert_eq!(get(b, 2), b"cd");
    ok(lseek(b, 1, SEEK_SET));
    assert_eq!(get(a, 1), b"b");
    ok(close(a));
    assert_eq!(get(b, 9), b"cdef");
    // Status flags are shared too; the close-on-exec flag is not.
    let d = ok(dup(b));
    ok(fcntl(b, F_SETFL, O_NONBLOCK));
    assert_ne!(ok(fcntl(d, F_GETFL)) & O_NONBLOCK, 0);
    ok(fcntl(b, F_SETFD, FD_CLOEXEC));
    is(fcntl(d, F_GETFD), 0);
}

unsafe fn dup2_dup3() {
    let (r, w) = pipe_pair();
    is(dup2(w, 200), 200);
    put(200, b"x");
    assert_eq!(get(r, 4), b"x");
    is(dup2(w, w), w.into());
    fails(dup2(999, 999), EBADF);
    fails(dup2(999, 5), EBADF);
    fails(dup2(w, -1), EBADF);
    fails(dup3(w, w, 0), EINVAL);
    fails(dup3(w, 201, O_NONBLOCK), EINVAL);
    is(dup3(w, 201, O_CLOEXEC), 201);
    is(fcntl(201, F_GETFD), FD_CLOEXEC.into());
    is(fcntl(200, F_GETFD), 0);
    // dup2 closes the replaced descriptor: the pipe ends with its last writer.
    ok(close(w));
    ok(close(201));
    ok(dup2(0, 200));
    assert_eq!(get(r, 1), b"");
}

unsafe fn dupfd() {
    let (r, _w) = pipe_pair();
    let a = ok(fcntl(r, F_DUPFD, 100));
    assert!(a >= 100);
    let b = ok(fcntl(r, F_DUPFD_CLOEXEC, a));
    assert!(b > a);
    is(fcntl(a, F_GETFD), 0);
    is(fcntl(b, F_GETFD), 1);
    fails(fcntl(r, F_DUPFD, -1), EINVAL);
    fails(fcntl(r, F_DUPFD, 1 << 30), EINVAL);
    fails(fcntl(-1, F_DUPFD, 0), EBADF);
}

unsafe fn getfl_setfl() {
    let t = Tmp::new();
    let f = t.file("f", b"abc");
    let fd = ok(open(f.as_ptr(), O_WRONLY | O_APPEND | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600));
    let fl = ok(fcntl(fd, F_GETFL));
    assert_eq!(fl & !O_LARGEFILE & !0o100000, O_WRONLY | O_APPEND, "creation flags are not kept: {fl:#o}");
    // The access mode cannot be changed; O_APPEND and O_NONBLOCK can.
    ok(fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK));
    let fl = ok(fcntl(fd, F_GETFL));
    assert_eq!(fl & !O_LARGEFILE & !0o100000, O_WRONLY | O_NONBLOCK);
    let mut b = 0u8;
    fails(read(fd, (&raw mut b).cast(), 1), EBADF);
    let rd = ok(open(f.as_ptr(), O_RDONLY));
    fails(write(rd, b"x".as_ptr().cast(), 1), EBADF);
}

unsafe fn cloexec_flag() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    let fd = ok(open(f.as_ptr(), O_RDONLY | O_CLOEXEC));
    is(fcntl(fd, F_GETFD), 1);
    ok(fcntl(fd, F_SETFD, 0));
    is(fcntl(fd, F_GETFD), 0);
    ok(ioctl(fd, FIOCLEX));
    is(fcntl(fd, F_GETFD), 1);
    ok(ioctl(fd, FIONCLEX));
    is(fcntl(fd, F_GETFD), 0);
}

unsafe fn close_range_works() {
    let (r, w) = pipe_pair();
    for n in 300..310 {
        ok(dup2(r, n));
    }
    ok(syscall(SYS_close_range, 302, 305, 0));
    for n in 300..310 {
        let open = fcntl(n, F_GETFD) != -1;
        assert_eq!(open, !(302..=305).contains(&n), "descriptor {n}");
    }
    ok(syscall(SYS_close_range, 306, c_uint::MAX, CLOSE_RANGE_CLOEXEC));
    is(fcntl(309, F_GETFD), 1);
    is(fcntl(301, F_GETFD), 0);
    fails(syscall(SYS_close_range, 10, 9, 0), EINVAL);
    fails(syscall(SYS_close_range, 10, 11, 0x100), EINVAL);
    ok(syscall(SYS_close_range, 300, c_uint::MAX, CLOSE_RANGE_UNSHARE));
    fails(fcntl(300, F_GETFD), EBADF);
    put(w, b"x");
    assert_eq!(get(r, 1), b"x");
}

unsafe fn unlinked_file_lives() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, b"before");
    ok(unlink(t.p("f").as_ptr()));
    assert_eq!(fstat_of(fd).st_nlink, 0);
    put(fd, b" after");
    let mut b = [0u8; 32];
    is(pread(fd, b.as_mut_ptr().cast(), 32, 0), 12);
    assert_eq!(&b[..12], b"before after");
    // A new file of that name is a different one.
    let other = t.open("f");
    assert_ne!(fstat_of(other).st_ino, fstat_of(fd).st_ino);
    assert_eq!(fstat_of(other).st_size, 0);
    let mut b = [0 as c_char; 256];
    let n = ok(readlink(c(&format!("/proc/self/fd/{fd}")).as_ptr(), b.as_mut_ptr(), 256)) as usize;
    let s: Vec<u8> = b[..n].iter().map(|&x| x as u8).collect();
    assert!(s.ends_with(b"/f (deleted)"), "{}", String::from_utf8_lossy(&s));
}

unsafe fn many_open_files() {
    let t = Tmp::new();
    let f = t.file("f", b"x");
    let mut lim: rlimit = zeroed();
    ok(getrlimit(RLIMIT_NOFILE, &mut lim));
    let n = 900.min(lim.rlim_cur as usize - 64);
    let fds: Vec<i32> = (0..n).map(|_| ok(open(f.as_ptr(), O_RDONLY))).collect();
    for fd in fds {
        assert_eq!(get(fd, 2), b"x");
        ok(close(fd));
    }
}

unsafe fn nofile_limit() {
    let t = Tmp::new();
    let f = t.file("f", b"x");
    let lim = rlimit { rlim_cur: 20, rlim_max: 20 };
    ok(setrlimit(RLIMIT_NOFILE, &lim));
    let mut last = 0;
    loop {
        let fd = open(f.as_ptr(), O_RDONLY);
        if fd == -1 {
            break;
        }
        last = fd;
    }
    assert_eq!(errno(), EMFILE);
    assert_eq!(last, 19);
    fails(dup(0), EMFILE);
    fails(dup2(0, 20), EBADF);
    fails(fcntl(0, F_DUPFD, 20), EINVAL);
    let mut p = [0; 2];
    fails(pipe(p.as_mut_ptr()), EMFILE);
    fails(socket(AF_UNIX, SOCK_STREAM, 0), EMFILE);
    ok(close(19));
    fails(pipe(p.as_mut_ptr()), EMFILE); // one is not enough
    is(dup(0), 19);
}

unsafe fn creat_call() {
    let t = Tmp::new();
    let f = t.file("f", b"old");
    let fd = ok(creat(f.as_ptr(), 0o600));
    assert_eq!(fstat_of(fd).st_size, 0);
    assert_eq!(ok(fcntl(fd, F_GETFL)) & O_ACCMODE, O_WRONLY);
    assert_eq!(fstat_of(fd).st_mode & 0o777, 0o644);
}

unsafe fn open_twice_has_two_offsets() {
    let t = Tmp::new();
    let f = t.file("f", b"abcdef");
    let a = ok(open(f.as_ptr(), O_RDWR));
    let b = ok(open(f.as_ptr(), O_RDONLY));
    assert_eq!(get(a, 3), b"abc");
    assert_eq!(get(b, 3), b"abc");
    put(a, b"XYZ");
    assert_eq!(get(b, 3), b"XYZ");
}

unsafe fn memfd() {
    let fd = ok(memfd_create(c("thing").as_ptr(), MFD_CLOEXEC));
    put(fd, b"hello");
    let p = ok(mmap(std::ptr::null_mut(), PAGE, RW, MAP_SHARED, fd, 0)).cast::<u8>();
    assert_eq!(*p, b'h');
    *p = b'j';
    let mut b = [0u8; 5];
    is(pread(fd, b.as_mut_ptr().cast(), 5, 0), 5);
    assert_eq!(&b, b"jello");
    assert_eq!(fstat_of(fd).st_mode & S_IFMT, S_IFREG);
    let l = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    assert_eq!(l.to_str().unwrap(), "/memfd:thing (deleted)");
    fails(memfd_create(c(&"x".repeat(250)).as_ptr(), 0), EINVAL);
    fails(memfd_create(c("x").as_ptr(), 0x8000), EINVAL);
    fails(memfd_create(BAD.cast(), 0), EFAULT);
    fails(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EPERM);
}

unsafe fn memfd_seals() {
    let fd = ok(memfd_create(c("s").as_ptr(), MFD_ALLOW_SEALING));
    is(fcntl(fd, F_GET_SEALS), 0);
    ok(ftruncate(fd, 100));
    ok(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
    fails(ftruncate(fd, 50), EPERM);
    ok(ftruncate(fd, 200));
    ok(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW));
    fails(ftruncate(fd, 300), EPERM);
    put(fd, b"x");
    // A writable shared mapping in any process prevents F_SEAL_WRITE; private ones do not.
    let map = |kind| mmap(std::ptr::null_mut(), PAGE, RW, kind, fd, 0);
    let (shared, private) = (map(MAP_SHARED), map(MAP_PRIVATE));
    ok(shared);
    ok(private);
    fails(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EBUSY);
    let (r, w) = pipe_pair();
    let child = spawn(|| {
        close(w);
        get(r, 1);
        0
    });
    ok(munmap(shared, PAGE));
    fails(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EBUSY);
    put(w, b"x");
    exits(child, 0);
    ok(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    fails(write(fd, b"x".as_ptr().cast(), 1), EPERM);
    fails(mmap(std::ptr::null_mut(), PAGE, RW, MAP_SHARED, fd, 0), EPERM);
    ok(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL));
    fails(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EPERM);
    is(fcntl(fd, F_GET_SEALS), (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL).into());
    fails(fcntl(0, F_GET_SEALS), EINVAL);
    // Objects other than regular files have no seals, on any file system.
    for (path, flags, error) in [(c"/dev/null", O_RDWR, EINVAL), (c"/dev/shm", O_RDONLY, EPERM)] {
        let fd = ok(open(path.as_ptr(), flags));
        fails(fcntl(fd, F_GET_SEALS), EINVAL);
        fails(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL), error);
    }
}

unsafe fn umask_call() {
    umask(0o27);
    assert_eq!(umask(0o7777), 0o27);
    assert_eq!(umask(0), 0o777);
    in_child(|| assert_eq!(umask(0), 0));
}

unsafe fn fcntl_errors() {
    fails(fcntl(-1, F_GETFD), EBADF);
    fails(fcntl(777, F_GETFL), EBADF);
    let t = Tmp::new();
    let fd = t.open("f");
    fails(fcntl(fd, 9999), EINVAL);
    fails(fcntl(fd, F_GETLK, BAD), EFAULT);
}

unsafe fn opened_again() {
    let again = |fd: i32, flags: i32| open(c(&format!("/proc/self/fd/{}", ok(fd))).as_ptr(), flags | O_CLOEXEC);
    // Two descriptions of such an object would hide items from each other.
    let none = set_of(&[SIGUSR2]);
    let objects = [
        ("epoll", epoll_create1(0)),
        ("eventfd", eventfd(0, 0)),
        ("timerfd", timerfd_create(CLOCK_MONOTONIC, 0)),
        ("signalfd", signalfd(-1, &none, 0)),
        ("inotify", inotify_init1(0)),
        ("socket", socket(AF_UNIX, SOCK_STREAM, 0)),
    ];
    for (name, fd) in objects {
        for flags in [O_RDONLY, O_WRONLY, O_RDWR, O_RDONLY | O_NONBLOCK] {
            let r = again(fd, flags);
            assert!(r == -1 && errno() == ENXIO, "{name} {flags:#o}: {r} {}", name_of(errno()));
        }
        fails(again(fd, O_RDONLY | O_DIRECTORY), ENOTDIR);
        ok(again(fd, O_PATH));
    }
    let (r, w) = pipe_pair();
    put(ok(again(w, O_WRONLY)), b"through the link");
    assert_eq!(get(ok(again(r, O_RDONLY)), 99), b"through the link");
    let mem = ok(memfd_create(c("probe").as_ptr(), 0));
    put(mem, b"memory");
    assert_eq!(get(ok(again(mem, O_RDONLY)), 99), b"memory");
}
