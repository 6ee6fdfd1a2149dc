//! open_tree(2), move_mount(2), fsopen(2), fsconfig(2), fsmount(2), fspick(2), mount_setattr(2); options and flags of
//! mount(2).

use super::*;

pub const CASES: &[crate::Case] = cases![
    trees,
    trees_refused,
    moves,
    makes_a_file_system,
    config_refused,
    fsmount_refused,
    picks,
    attributes,
    attributes_recursive,
    attributes_refused,
    remounts,
    flags_of_a_bind,
    expires,
    no_links,
    terminals,
    types,
];

const OPEN_TREE_CLONE: c_uint = 1;
const AT_RECURSIVE: c_uint = 0x8000;
const F_EMPTY: c_uint = 4;
const T_EMPTY: c_uint = 0x40;

unsafe fn tree(at: &str, flags: c_uint) -> i32 {
    syscall(SYS_open_tree, AT_FDCWD, c(at).as_ptr(), flags) as i32
}

unsafe fn move_mnt(from: i32, from_path: &str, to: i32, to_path: &str, flags: c_uint) -> c_long {
    syscall(SYS_move_mount, from, c(from_path).as_ptr(), to, c(to_path).as_ptr(), flags)
}

unsafe fn fs_open(kind: &str) -> i32 {
    syscall(SYS_fsopen, c(kind).as_ptr(), 1) as i32
}

unsafe fn set(fd: i32, key: &str, value: &str) -> c_long {
    syscall(SYS_fsconfig, fd, 1, c(key).as_ptr(), c(value).as_ptr(), 0)
}

unsafe fn flag(fd: i32, key: &str) -> c_long {
    syscall(SYS_fsconfig, fd, 0, c(key).as_ptr(), 0, 0)
}

unsafe fn command(fd: i32, cmd: c_uint) -> c_long {
    syscall(SYS_fsconfig, fd, cmd, 0, 0, 0)
}

unsafe fn fs_mount(fd: i32, attrs: c_uint) -> i32 {
    syscall(SYS_fsmount, fd, 1, attrs) as i32
}

unsafe fn set_attr(dirfd: i32, at: &str, flags: c_uint, set: u64, clear: u64, propagation: u64) -> c_long {
    let attr = [set, clear, propagation, 0u64];
    syscall(SYS_mount_setattr, dirfd, c(at).as_ptr(), flags, &attr, 32)
}

/// The options of the mount at a place below the working directory, as `/proc/self/mountinfo` has them.
fn options(at: &str) -> (String, String) {
    let top = std::env::current_dir().unwrap().join(at).display().to_string();
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = text.lines().rfind(|l| l.split(' ').nth(4) == Some(top.as_str())).unwrap();
    let (own, fs) = line.split_once(" - ").unwrap();
    let own = own.split(' ').nth(5).unwrap().to_owned();
    (own, fs.split(' ').nth(2).unwrap().to_owned())
}

unsafe fn trees() {
    alone(|| {
        dir("a");
        tmpfs("a");
        dir("a/in");
        tmpfs("a/in");
        file("a/in/f");
        dir("b");
        // Not a copy: a descriptor of the place.
        let fd = ok(tree("a", 0x80000));
        is(fcntl(fd, F_GETFD), FD_CLOEXEC.into());
        is(fcntl(fd, F_GETFL) & O_PATH, O_PATH.into());
        ok(close(fd));
        let one = ok(tree("a", OPEN_TREE_CLONE));
        ok(faccessat(one, c("in").as_ptr(), F_OK, 0));
        fails(faccessat(one, c("in/f").as_ptr(), F_OK, 0), ENOENT);
        let all = ok(tree("a", OPEN_TREE_CLONE | AT_RECURSIVE));
        ok(faccessat(all, c("in/f").as_ptr(), F_OK, 0));
        shows(". a a/in");
        ok(move_mnt(all, "", AT_FDCWD, "b", F_EMPTY));
        shows(". a a/in b b/in");
        ok(close(all));
        shows(". a a/in b b/in");
        // What was not moved goes with its descriptor.
        ok(close(one));
        unmount("a/in");
        unmount("a");
        // A part of a file system.
        let part = ok(tree("b/in/f", OPEN_TREE_CLONE));
        file("g");
        ok(move_mnt(part, "", AT_FDCWD, "g", F_EMPTY));
        shows(". b b/in g");
    });
}

unsafe fn trees_refused() {
    alone(|| {
        dir("a");
        tmpfs("a");
        fails(tree("a", AT_RECURSIVE), EINVAL);
        fails(tree("a", 0x10), EINVAL);
        fails(tree("none", OPEN_TREE_CLONE), ENOENT);
        fails(syscall(SYS_open_tree, -1, c("a").as_ptr(), 0), EBADF);
        make("a", MS_UNBINDABLE);
        fails(tree("a", OPEN_TREE_CLONE), EINVAL);
        ok(setuid(1234));
        fails(tree("a", OPEN_TREE_CLONE), EPERM);
        ok(tree("a", 0));
    });
}

unsafe fn moves() {
    alone(|| {
        dir("a");
        tmpfs("a");
        dir("b");
        file("f");
        fails(move_mnt(AT_FDCWD, "a", AT_FDCWD, "f", 0), EINVAL);
        fails(move_mnt(AT_FDCWD, "b", AT_FDCWD, "a", 0), EINVAL);
        fails(move_mnt(AT_FDCWD, "a", AT_FDCWD, "b", 0x1000), EINVAL);
        fails(move_mnt(AT_FDCWD, "", AT_FDCWD, "b", 0), ENOENT);
        fails(move_mnt(AT_FDCWD, "a", AT_FDCWD, "none", 0), ENOENT);
        ok(move_mnt(AT_FDCWD, "a", AT_FDCWD, "b", 0));
        shows(". b");
        let to = ok(open(c("a").as_ptr(), O_PATH));
        let from = ok(open(c("b").as_ptr(), O_PATH));
        ok(move_mnt(from, "", to, "", F_EMPTY | T_EMPTY));
        shows(". a");
    });
}

unsafe fn makes_a_file_system() {
    alone(|| {
        dir("a");
        let fs = ok(fs_open("tmpfs"));
        let mut b = [0u8; 64];
        fails(read(fs, b.as_mut_ptr().cast(), 64), ENODATA);
        assert_eq!(
            std::fs::read_link(format!("/proc/self/fd/{fs}")).unwrap().display().to_string(),
            "anon_inode:[fscontext]"
        );
        ok(set(fs, "source", "some"));
        ok(set(fs, "size", "64k"));
        ok(set(fs, "mode", "0711"));
        ok(flag(fs, "ro"));
        ok(flag(fs, "rw"));
        ok(command(fs, 6));
        let m = ok(fs_mount(fs, 2 | 8 | 0x10));
        is(fcntl(m, F_GETFL) & O_PATH, O_PATH.into());
        assert_eq!(fstat_of(m).st_mode, S_IFDIR | 0o711);
        shows(".");
        // It can be used before it is anywhere.
        ok(mkdirat(m, c("d").as_ptr(), 0o700));
        ok(move_mnt(m, "", AT_FDCWD, "a", F_EMPTY));
        shows(". a");
        assert!(exists("a/d"));
        let (own, sb) = options("a");
        assert_eq!(own, "rw,nosuid,noexec,noatime");
        assert!(sb.starts_with("rw,size=64k,mode=711"), "{sb}");
    });
}

unsafe fn config_refused() {
    alone(|| {
        fails(fs_open("nosuchfs"), ENODEV);
        fails(syscall(SYS_fsopen, c("tmpfs").as_ptr(), 2), EINVAL);
        fails(syscall(SYS_fsopen, 1, 0), EFAULT);
        let fs = ok(fs_open("tmpfs"));
        fails(set(fs, "nosuchoption", "x"), EINVAL);
        fails(set(fs, "mode", "9"), EINVAL);
        fails(flag(fs, "mode"), EINVAL);
        fails(set(-1, "mode", "700"), EINVAL);
        fails(set(77, "mode", "700"), EBADF);
        fails(set(0, "mode", "700"), EINVAL);
        let config = |cmd: i32, key: i32, value: i32, aux: i32| {
            let key = if key != 0 { c("mode").into_raw() as usize } else { 0 };
            let value = if value != 0 { c("700").into_raw() as usize } else { 0 };
            syscall(SYS_fsconfig, fs, cmd, key, value, aux)
        };
        for (cmd, key, value, aux) in [
            (0, 0, 0, 0),
            (0, 1, 1, 0),
            (0, 1, 0, 1),
            (1, 1, 0, 0),
            (1, 0, 1, 0),
            (1, 1, 1, 1),
            (2, 1, 1, 0),
            (3, 1, 1, -1),
            (5, 1, 1, 0),
            (5, 1, 0, -1),
            (6, 1, 0, 0),
            (6, 0, 0, 1),
            (7, 0, 1, 0),
        ] {
            fails(config(cmd, key, value, aux), EINVAL);
        }
        fails(config(77, 0, 0, 0), EOPNOTSUPP);
        fails(command(fs, 7), EBUSY);
        ok(command(fs, 6));
        fails(command(fs, 6), EBUSY);
        fails(set(fs, "mode", "700"), EBUSY);
        ok(setuid(1234));
        fails(fs_open("tmpfs"), EPERM);
    });
}

unsafe fn fsmount_refused() {
    alone(|| {
        let fs = ok(fs_open("tmpfs"));
        fails(fs_mount(fs, 0), EINVAL);
        ok(command(fs, 6));
        fails(fs_mount(fs, 0x30), EINVAL);
        fails(fs_mount(fs, 0x4000_0000), EINVAL);
        fails(syscall(SYS_fsmount, fs, 2, 0), EINVAL);
        fails(fs_mount(0, 0), EINVAL);
        fails(fs_mount(77, 0), EBADF);
        ok(fs_mount(fs, 0));
        fails(fs_mount(fs, 0), EBUSY);
    });
}

unsafe fn picks() {
    alone(|| {
        dir("a");
        tmpfs("a");
        dir("a/d");
        let pick = |at: &str, flags: c_uint| syscall(SYS_fspick, AT_FDCWD, c(at).as_ptr(), flags) as i32;
        fails(pick("a", 0x100), EINVAL);
        fails(pick("a/d", 0), EINVAL);
        fails(pick("none", 0), ENOENT);
        let fs = ok(pick("a", 1));
        ok(flag(fs, "ro"));
        ok(command(fs, 7));
        fails(mkdir(c("a/e").as_ptr(), 0o700), EROFS);
        assert_eq!(options("a").0, "rw,relatime");
        assert!(options("a").1.starts_with("ro"));
        ok(flag(fs, "rw"));
        ok(command(fs, 7));
        ok(mkdir(c("a/e").as_ptr(), 0o700));
        fails(command(fs, 6), EBUSY);
    });
}

unsafe fn attributes() {
    alone(|| {
        dir("a");
        tmpfs("a");
        file("a/f");
        ok(set_attr(AT_FDCWD, "a", 0, 1 | 2 | 4 | 8 | 0x80, 0, 0));
        assert_eq!(options("a").0, "ro,nosuid,nodev,noexec,nodiratime,relatime");
        fails(open(c("a/f").as_ptr(), O_RDWR), EROFS);
        ok(set_attr(AT_FDCWD, "a", 0, 0, 1 | 8 | 0x80, 0));
        assert_eq!(options("a").0, "rw,nosuid,nodev,relatime");
        ok(set_attr(AT_FDCWD, "a", 0, 0x10, 0x70, 0));
        assert_eq!(options("a").0, "rw,nosuid,nodev,noatime");
        ok(set_attr(AT_FDCWD, "a", 0, 0x20, 0x70, 0));
        assert_eq!(options("a").0, "rw,nosuid,nodev");
        ok(set_attr(AT_FDCWD, "a", 0, 0, 6, MS_SHARED));
        assert_eq!(options("a").0, "rw");
        shows(". a=shared1");
        ok(set_attr(AT_FDCWD, "a", 0, 0, 0, MS_PRIVATE));
        shows(". a");
        // Of a tree that is nowhere yet.
        let fd = ok(tree("a", OPEN_TREE_CLONE));
        ok(set_attr(fd, "", 0x1000, 1, 0, 0));
        dir("b");
        ok(move_mnt(fd, "", AT_FDCWD, "b", F_EMPTY));
        assert_eq!(options("b").0, "ro");
        assert_eq!(options("a").0, "rw");
    });
}

unsafe fn attributes_recursive() {
    alone(|| {
        dir("a");
        tmpfs("a");
        dir("a/in");
        tmpfs("a/in");
        ok(set_attr(AT_FDCWD, "a", 0, 1, 0, 0));
        assert_eq!(options("a/in").0, "rw,relatime");
        ok(set_attr(AT_FDCWD, "a", AT_RECURSIVE, 8, 1, MS_SHARED));
        assert_eq!((options("a").0, options("a/in").0), ("rw,noexec,relatime".into(), "rw,noexec,relatime".into()));
        shows(". a=shared1 a/in=shared2");
    });
}

unsafe fn attributes_refused() {
    alone(|| {
        dir("a");
        tmpfs("a");
        dir("a/d");
        fails(set_attr(AT_FDCWD, "a", 1, 1, 0, 0), EINVAL);
        fails(set_attr(AT_FDCWD, "a/d", 0, 1, 0, 0), EINVAL);
        fails(set_attr(AT_FDCWD, "none", 0, 1, 0, 0), ENOENT);
        fails(set_attr(AT_FDCWD, "a", 0, 0x10, 0, 0), EINVAL);
        fails(set_attr(AT_FDCWD, "a", 0, 0, 0x10, 0), EINVAL);
        fails(set_attr(AT_FDCWD, "a", 0, 0x30, 0x70, 0), EINVAL);
        fails(set_attr(AT_FDCWD, "a", 0, 1 << 40, 0, 0), EINVAL);
        fails(set_attr(AT_FDCWD, "a", 0, 0, 0, MS_SHARED | MS_PRIVATE), EINVAL);
        fails(set_attr(AT_FDCWD, "a", 0, 0, 0, MS_RDONLY), EINVAL);
        let raw =
            |attr: &[u64], size: usize| syscall(SYS_mount_setattr, AT_FDCWD, c("a").as_ptr(), 0, attr.as_ptr(), size);
        fails(raw(&[1, 0, 0, 0], 31), EINVAL);
        fails(raw(&[1, 0, 0, 0], 5000), E2BIG);
        fails(raw(&[1, 0, 0, 0, 1], 40), E2BIG);
        ok(raw(&[0, 0, 0, 0, 0], 40));
        ok(setuid(1234));
        fails(set_attr(AT_FDCWD, "a", 0, 1, 0, 0), EPERM);
    });
}

unsafe fn remount(at: &str, flags: c_ulong, data: &str) -> i32 {
    mount(null(), c(at).as_ptr(), null(), MS_REMOUNT | flags, c(data).as_ptr().cast())
}

unsafe fn remounts() {
    alone(|| {
        dir("a");
        tmpfs("a");
        dir("a/d");
        dir("b");
        bind("a", "b");
        fails(remount("a/d", MS_RDONLY, ""), EINVAL);
        // The file system: wherever it is mounted.
        ok(remount("a", MS_RDONLY, ""));
        fails(mkdir(c("b/e").as_ptr(), 0o700), EROFS);
        assert_eq!(options("a").0, "ro,relatime");
        assert_eq!(options("b").0, "rw,relatime");
        assert!(options("b").1.starts_with("ro,"));
        ok(remount("b", MS_NOATIME, ""));
        assert_eq!(options("b").0, "rw,noatime");
        fails(mkdir(c("a/e").as_ptr(), 0o700), EROFS);
        ok(mkdir(c("b/e").as_ptr(), 0o700));
        // One mount of it.
        ok(remount("b", MS_BIND | MS_RDONLY | MS_NOSUID, ""));
        assert_eq!(options("b").0, "ro,nosuid,noatime");
        ok(remount("a", 0, ""));
        ok(mkdir(c("a/g").as_ptr(), 0o700));
        fails(mkdir(c("b/h").as_ptr(), 0o700), EROFS);
        fails(remount("a", 0, "nosuchoption=1"), EINVAL);
    });
}

unsafe fn flags_of_a_bind() {
    alone(|| {
        dir("a");
        ok(mount(
            c("none").as_ptr(),
            c("a").as_ptr(),
            c("tmpfs").as_ptr(),
            MS_NOSUID | MS_NODEV | MS_STRICTATIME,
            null(),
        ));
        assert_eq!(options("a").0, "rw,nosuid,nodev");
        dir("b");
        ok(mount(c("a").as_ptr(), c("b").as_ptr(), null(), MS_BIND | MS_RDONLY, null()));
        assert_eq!(options("b").0, "rw,nosuid,nodev");
        fails(mount(null(), c("b").as_ptr(), null(), MS_BIND, null()), EINVAL);
        fails(mount(c("").as_ptr(), c("b").as_ptr(), null(), MS_BIND, null()), EINVAL);
        fails(mount(c("none").as_ptr(), c("b").as_ptr(), null(), 0, null()), EINVAL);
        fails(mount(c("none").as_ptr(), c("b").as_ptr(), c("nosuchfs").as_ptr(), 0, null()), ENODEV);
    });
}

unsafe fn expires() {
    alone(|| {
        dir("a");
        tmpfs("a");
        file("a/f");
        fails(umount2(c("a").as_ptr(), MNT_EXPIRE | MNT_DETACH), EINVAL);
        fails(umount2(c("a").as_ptr(), MNT_EXPIRE), EAGAIN);
        assert!(exists("a/f"));
        fails(umount2(c("a").as_ptr(), MNT_EXPIRE), EAGAIN);
        ok(umount2(c("a").as_ptr(), MNT_EXPIRE));
        shows(".");
    });
}

unsafe fn no_links() {
    alone(|| {
        dir("a");
        ok(mount(c("none").as_ptr(), c("a").as_ptr(), c("tmpfs").as_ptr(), 256, null()));
        file("a/f");
        ok(symlink(c("f").as_ptr(), c("a/l").as_ptr()));
        assert!(options("a").0.contains("nosymfollow"));
        fails(open(c("a/l").as_ptr(), O_RDONLY), ELOOP);
        fails(open(c("a/l").as_ptr(), O_RDWR | O_CREAT, 0o600), ELOOP);
        let mut b = [0 as c_char; 8];
        is(readlink(c("a/l").as_ptr(), b.as_mut_ptr(), 8), 1);
        ok(open(c("a/f").as_ptr(), O_RDONLY));
    });
}

unsafe fn terminals() {
    alone(|| {
        dir("p");
        let opts = c("newinstance,ptmxmode=0620,mode=0640,gid=7");
        ok(mount(c("none").as_ptr(), c("p").as_ptr(), c("devpts").as_ptr(), 0, opts.as_ptr().cast()));
        assert_eq!(stat_of(&c("p/ptmx")).st_mode, S_IFCHR | 0o620);
        assert!(options("p").1.contains("gid=7,mode=640,ptmxmode=620"));
        let m = ok(open(c("p/ptmx").as_ptr(), O_RDWR | O_NOCTTY));
        let mut n = 99u32;
        ok(ioctl(m, TIOCGPTN, &mut n));
        assert_eq!(n, 0);
        let st = stat_of(&c("p/0"));
        assert_eq!((st.st_mode, st.st_gid, st.st_rdev), (S_IFCHR | 0o640, 7, makedev(136, 0)));
        // Another instance has terminals of its own.
        dir("q");
        ok(mount(c("none").as_ptr(), c("q").as_ptr(), c("devpts").as_ptr(), 0, null()));
        assert!(!exists("q/0"));
        assert_eq!(stat_of(&c("q/ptmx")).st_mode, S_IFCHR);
        let fails_with =
            mount(c("none").as_ptr(), c("q").as_ptr(), c("devpts").as_ptr(), 0, c("mode=9").as_ptr().cast());
        fails(fails_with, EINVAL);
        let zero = 0i32;
        ok(ioctl(m, TIOCSPTLCK, &zero));
        let s = ok(open(c("p/0").as_ptr(), O_RDWR | O_NOCTTY));
        put(s, b"x");
        assert_eq!(get(m, 8), b"x");
    });
}

unsafe fn types() {
    alone(|| {
        dir("a");
        for (kind, magic) in
            [("proc", 0x9fa0), ("sysfs", 0x62656572), ("tmpfs", 0x01021994), ("mqueue", 0x19800202), ("devpts", 0x1cd1)]
        {
            ok(mount(c("src").as_ptr(), c("a").as_ptr(), c(kind).as_ptr(), MS_NOSUID, null()));
            let mut s: statfs = zeroed();
            ok(statfs(c("a").as_ptr(), &mut s));
            assert_eq!(s.f_type, magic, "{kind}");
            let text = std::fs::read_to_string("/proc/self/mounts").unwrap();
            let last = text.lines().last().unwrap().split(' ').collect::<Vec<_>>();
            assert_eq!((last[0], last[2]), ("src", kind));
            unmount("a");
            fails(
                mount(c("src").as_ptr(), c("a").as_ptr(), c(kind).as_ptr(), 0, c("nosuch=1").as_ptr().cast()),
                EINVAL,
            );
        }
    });
}
