//! Files: errors and variants that the other groups do not cover.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] =
    cases![vectors, attributes, at_links, syncs, mounts, tmpfs_size, handles, modes, file_advice];

unsafe fn vectors() {
    let t = Tmp::new();
    let fd = t.open("f");
    let mut b = [1u8; 8];
    let iov = iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 8 };
    is(writev(fd, &iov, 1), 8);
    is(pwritev(fd, &iov, 1, 8), 8);
    is(preadv(fd, &iov, 1, 4), 8);
    is(syscall(SYS_pwritev2, fd, &iov, 1, 0, 0, 0), 8);
    is(syscall(SYS_preadv2, fd, &iov, 1, 0, 0, 0), 8);
    for nr in [SYS_readv, SYS_writev, SYS_preadv, SYS_pwritev, SYS_preadv2, SYS_pwritev2] {
        fails(syscall(nr, -1, &iov, 1, 0, 0, 0), EBADF);
        fails(syscall(nr, fd, &iov, 1025, 0, 0, 0), EINVAL);
        fails(syscall(nr, fd, BAD, 1, 0, 0, 0), EFAULT);
    }
    fails(preadv(fd, &iov, 1, -1), EINVAL);
    fails(syscall(SYS_preadv2, fd, &iov, 1, 0, 0, 0x8000), EOPNOTSUPP);
    fails(syscall(SYS_pwritev2, fd, &iov, 1, 0, 0, 0x8000), EOPNOTSUPP);
}

unsafe fn attributes() {
    let t = Tmp::new();
    let p = t.file("f", b"");
    let fd = ok(open(p.as_ptr(), O_RDWR));
    let (name, value) = (c("user.a"), b"value");
    let v = value.as_ptr().cast::<c_void>();
    if lsetxattr(p.as_ptr(), name.as_ptr(), v, 5, 0) == -1 && errno() == EOPNOTSUPP {
        return;
    }
    let mut b = [0u8; 32];
    let out = b.as_mut_ptr().cast::<c_void>();
    is(lgetxattr(p.as_ptr(), name.as_ptr(), out, 32), 5);
    is(llistxattr(p.as_ptr(), b.as_mut_ptr().cast(), 32), 7);
    is(flistxattr(fd, b.as_mut_ptr().cast(), 32), 7);
    assert_eq!(&b[..7], b"user.a\0");
    fails(flistxattr(fd, b.as_mut_ptr().cast(), 3), ERANGE);
    zero(lremovexattr(p.as_ptr(), name.as_ptr()));
    fails(lremovexattr(p.as_ptr(), name.as_ptr()), ENODATA);
    fails(lgetxattr(p.as_ptr(), name.as_ptr(), out, 32), ENODATA);
    zero(fsetxattr(fd, name.as_ptr(), v, 5, 0));
    fails(fsetxattr(fd, name.as_ptr(), v, 5, XATTR_CREATE), EEXIST);
    fails(fsetxattr(-1, name.as_ptr(), v, 5, 0), EBADF);
    zero(fremovexattr(fd, name.as_ptr()));
    fails(fremovexattr(fd, name.as_ptr()), ENODATA);
    fails(flistxattr(-1, b.as_mut_ptr().cast(), 32), EBADF);
    let none = t.p("none");
    fails(llistxattr(none.as_ptr(), b.as_mut_ptr().cast(), 32), ENOENT);
    fails(lsetxattr(none.as_ptr(), name.as_ptr(), v, 5, 0), ENOENT);
}

unsafe fn at_links() {
    let t = Tmp::new();
    let d = ok(open(c(t.0.to_str().unwrap()).as_ptr(), O_PATH));
    zero(symlinkat(c("target").as_ptr(), d, c("l").as_ptr()));
    fails(symlinkat(c("target").as_ptr(), d, c("l").as_ptr()), EEXIST);
    let mut b = [0u8; 16];
    is(readlinkat(d, c("l").as_ptr(), b.as_mut_ptr().cast(), 16), 6);
    fails(readlinkat(d, c("none").as_ptr(), b.as_mut_ptr().cast(), 16), ENOENT);
    fails(readlinkat(d, c("l").as_ptr(), b.as_mut_ptr().cast(), 0), EINVAL);
}

unsafe fn syncs() {
    let t = Tmp::new();
    let fd = t.open("f");
    sync();
    zero(syncfs(fd));
    fails(syncfs(-1), EBADF);
    zero(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE));
    fails(sync_file_range(fd, -1, 0, SYNC_FILE_RANGE_WRITE), EINVAL);
    fails(sync_file_range(fd, 0, 0, 0x100), EINVAL);
    fails(sync_file_range(-1, 0, 0, 0), EBADF);
}

/// A mount namespace, where the caller may create one.
unsafe fn own_mounts() {
    if unshare(CLONE_NEWNS) == 0 {
        ok(mount(c("none").as_ptr(), c("/").as_ptr(), std::ptr::null(), MS_REC | MS_PRIVATE, std::ptr::null()));
    }
}

/// A tmpfs holds its size limit and no more, in any number of files; long symbolic links count too.
unsafe fn tmpfs_size() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    in_child(|| {
        own_mounts();
        let (d, kind, size) = (t.p("d"), c("tmpfs"), c("size=2m"));
        ok(mkdir(d.as_ptr(), 0o755));
        zero(mount(c("x").as_ptr(), d.as_ptr(), kind.as_ptr(), 0, size.as_ptr().cast()));
        let data = vec![1u8; 150_000];
        let mut whole = 0;
        loop {
            let fd = t.open(&format!("d/{whole}"));
            let n = write(fd, data.as_ptr().cast(), data.len());
            if n < 0 {
                fails(n, ENOSPC);
                break;
            }
            ok(close(fd));
            if (n as usize) < data.len() {
                break;
            }
            whole += 1;
        }
        assert_eq!(whole, (2 << 20) / (37 * 4096));
        for i in 0..whole {
            // Existing content can be overwritten.
            let fd = ok(open(t.p(&format!("d/{i}")).as_ptr(), O_WRONLY));
            is(write(fd, data.as_ptr().cast(), data.len()), data.len() as i64);
            ok(close(fd));
            ok(unlink(t.p(&format!("d/{i}")).as_ptr()));
        }
        let _ = unlink(t.p(&format!("d/{whole}")).as_ptr());
        let text = c(&"a".repeat(4000));
        let mut made = 0;
        while symlink(text.as_ptr(), t.p(&format!("d/l{made}")).as_ptr()) == 0 {
            made += 1;
            assert!(made <= 512);
        }
        fails(-1, ENOSPC);
        assert!(made >= 500, "{made}");
        zero(umount2(d.as_ptr(), MNT_DETACH));
    });
}

/// Runs in a child with its own mount namespace, where that is possible.
unsafe fn mounts() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    in_child(|| {
        own_mounts();
        let (d, kind) = (t.p("d"), c("tmpfs"));
        ok(mkdir(d.as_ptr(), 0o755));
        let before = stat_of(&d).st_dev;
        zero(mount(c("x").as_ptr(), d.as_ptr(), kind.as_ptr(), 0, std::ptr::null()));
        assert_ne!(stat_of(&d).st_dev, before);
        std::fs::write(t.s("d/f"), b"in it").unwrap();
        let open_one = ok(open(t.p("d/f").as_ptr(), O_RDONLY));
        fails(umount2(d.as_ptr(), 0), EBUSY);
        ok(close(open_one));
        zero(umount2(d.as_ptr(), 0));
        assert_eq!(stat_of(&d).st_dev, before);
        fails(umount2(d.as_ptr(), 0), EINVAL);
        fails(umount2(d.as_ptr(), 0x100), EINVAL);
        fails(mount(c("x").as_ptr(), d.as_ptr(), c("nosuchfs").as_ptr(), 0, std::ptr::null()), ENODEV);
        fails(mount(c("x").as_ptr(), t.p("none").as_ptr(), kind.as_ptr(), 0, std::ptr::null()), ENOENT);
        become_nobody();
        fails(mount(c("x").as_ptr(), c("/").as_ptr(), kind.as_ptr(), 0, std::ptr::null()), EPERM);
        fails(umount2(c("/").as_ptr(), 0), EPERM);
    });
}

unsafe fn handles() {
    let t = Tmp::new();
    let p = t.file("f", b"");
    let mut handle = [0u32; 40];
    let mut mount = 0i32;
    // Not every file system supports handles; wrong arguments fail on each.
    handle[0] = 128;
    let r = syscall(SYS_name_to_handle_at, AT_FDCWD, p.as_ptr(), handle.as_mut_ptr(), &mut mount, 0);
    assert!(r == 0 || errno() == EOPNOTSUPP, "{}", name_of(errno()));
    handle[0] = 128;
    fails(syscall(SYS_name_to_handle_at, AT_FDCWD, p.as_ptr(), handle.as_mut_ptr(), &mut mount, 0x4000_0000), EINVAL);
    fails(syscall(SYS_name_to_handle_at, AT_FDCWD, t.p("none").as_ptr(), handle.as_mut_ptr(), &mut mount, 0), ENOENT);
    if root() {
        handle[0] = 129;
        fails(syscall(SYS_open_by_handle_at, AT_FDCWD, handle.as_ptr(), O_RDONLY), EINVAL);
        fails(syscall(SYS_open_by_handle_at, AT_FDCWD, BAD, O_RDONLY), EFAULT);
        in_child(|| {
            handle[0] = 8;
            become_nobody();
            fails(syscall(SYS_open_by_handle_at, AT_FDCWD, handle.as_ptr(), O_RDONLY), EPERM);
        });
    }
}

unsafe fn modes() {
    let t = Tmp::new();
    let p = t.file("f", b"");
    zero(syscall(SYS_fchmodat, AT_FDCWD, p.as_ptr(), 0o600) as i32);
    fails(syscall(SYS_fchmodat, AT_FDCWD, t.p("none").as_ptr(), 0o600), ENOENT);
    const SYS_FCHMODAT2: c_long = 452;
    if syscall(SYS_FCHMODAT2, AT_FDCWD, p.as_ptr(), 0o640, 0) == -1 && errno() == ENOSYS {
        return;
    }
    assert_eq!(stat_of(&p).st_mode & 0o777, 0o640);
    let fd = ok(open(p.as_ptr(), O_RDONLY));
    zero(syscall(SYS_FCHMODAT2, fd, c("").as_ptr(), 0o604, AT_EMPTY_PATH) as i32);
    assert_eq!(stat_of(&p).st_mode & 0o777, 0o604);
    fails(syscall(SYS_FCHMODAT2, AT_FDCWD, p.as_ptr(), 0o640, 1), EINVAL);
    ok(symlink(p.as_ptr(), t.p("l").as_ptr()));
    fails(syscall(SYS_FCHMODAT2, AT_FDCWD, t.p("l").as_ptr(), 0o640, AT_SYMLINK_NOFOLLOW), EOPNOTSUPP);
}

/// Advice and requests about files.
unsafe fn file_advice() {
    let t = Tmp::new();
    let fd = t.open("f");
    put(fd, &[0; 4096]);
    let mut n = 0i32;
    zero(ioctl(fd, FIONREAD, &mut n));
    fails(ioctl(fd, TCGETS, &mut [0u8; 64]), ENOTTY);
    fails(ioctl(-1, FIONREAD, &mut n), EBADF);
    zero(posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED));
}
