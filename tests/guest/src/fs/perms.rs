//! chmod(2), chown, and the enforcement of permissions.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    chmod_bits,
    chmod_errors,
    chmod_not_owner,
    chown_call,
    chown_not_root,
    chown_clears_setuid,
    read_write_denied,
    search_denied,
    directory_write_denied,
    sticky_directory,
    group_permissions,
    supplementary_groups,
    open_keeps_access,
    write_clears_setuid,
    changes_clear_rights,
    owner_class_first,
    utimes_not_owner,
    root_overrides,
    hard_links_to_others,
    symlinks_in_sticky_directories,
    creating_opens_in_sticky_directories,
];

/// Runs `f` as an unprivileged user in a scratch directory that all may enter.
unsafe fn as_nobody(t: &Tmp, f: impl FnOnce()) {
    ok(chmod(t.p("").as_ptr(), 0o755));
    in_child(|| {
        become_nobody();
        f()
    });
}

unsafe fn chmod_bits() {
    let t = Tmp::new();
    let f = t.file("f", b"");
    for m in [0, 0o644, 0o7777, 0o4755, 0o1000] {
        ok(chmod(f.as_ptr(), m));
        assert_eq!(stat_of(&f).st_mode, S_IFREG | m);
    }
    ok(chmod(f.as_ptr(), 0o600));
    let fd = ok(open(f.as_ptr(), O_RDONLY));
    ok(fchmod(fd, 0o640));
    assert_eq!(fstat_of(fd).st_mode & 0o7777, 0o640);
    let d = ok(open(t.p("").as_ptr(), O_RDONLY));
    ok(fchmodat(d, c("f").as_ptr(), 0o604, 0));
    assert_eq!(fstat_of(fd).st_mode & 0o7777, 0o604);
    ok(symlink(c("f").as_ptr(), t.p("l").as_ptr()));
    ok(chmod(t.p("l").as_ptr(), 0o611)); // follows
    assert_eq!(stat_of(&f).st_mode & 0o7777, 0o611);
}

unsafe fn chmod_errors() {
    let t = Tmp::new();
    fails(chmod(t.p("none").as_ptr(), 0o600), ENOENT);
    fails(fchmod(-1, 0o600), EBADF);
    fails(chmod(BAD.cast(), 0o600), EFAULT);
    t.file("f", b"");
    fails(chmod(t.p("f/x").as_ptr(), 0o600), ENOTDIR);
}

unsafe fn chmod_not_owner() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(chmod(f.as_ptr(), 0o666));
    as_nobody(&t, || {
        fails(chmod(f.as_ptr(), 0o600), EPERM);
        let fd = ok(open(f.as_ptr(), O_RDWR));
        fails(fchmod(fd, 0o600), EPERM);
    });
}

unsafe fn chown_call() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let f = t.file("f", b"");
    let ids = || {
        let s = stat_of(&f);
        (s.st_uid, s.st_gid)
    };
    ok(chown(f.as_ptr(), 11, 22));
    assert_eq!(ids(), (11, 22));
    ok(chown(f.as_ptr(), u32::MAX, 33));
    assert_eq!(ids(), (11, 33));
    ok(chown(f.as_ptr(), 44, u32::MAX));
    assert_eq!(ids(), (44, 33));
    let fd = ok(open(f.as_ptr(), O_RDONLY));
    ok(fchown(fd, 1, 2));
    assert_eq!(ids(), (1, 2));
    ok(symlink(c("f").as_ptr(), t.p("l").as_ptr()));
    ok(lchown(t.p("l").as_ptr(), 7, 8));
    assert_eq!(ids(), (1, 2));
    let mut st = zeroed();
    ok(lstat(t.p("l").as_ptr(), &mut st));
    assert_eq!((st.st_uid, st.st_gid), (7, 8));
    ok(fchownat(AT_FDCWD, t.p("l").as_ptr(), 9, 9, 0));
    assert_eq!(ids(), (9, 9));
    ok(fchownat(fd, c("").as_ptr(), 3, 3, AT_EMPTY_PATH));
    assert_eq!(ids(), (3, 3));
    fails(fchownat(AT_FDCWD, f.as_ptr(), 9, 9, 0x8000), EINVAL);
    fails(chown(t.p("none").as_ptr(), 1, 1), ENOENT);
    fails(fchown(-1, 1, 1), EBADF);
}

unsafe fn chown_not_root() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    ok(chmod(t.p("").as_ptr(), 0o777));
    in_child(|| {
        ok(setgroups(1, [77].as_ptr()));
        ok(setresgid(65534, 65534, 65534));
        ok(setresuid(65534, 65534, 65534));
        let f = t.file("f", b"");
        fails(chown(f.as_ptr(), 0, u32::MAX), EPERM);
        fails(chown(f.as_ptr(), u32::MAX, 0), EPERM);
        ok(chown(f.as_ptr(), u32::MAX, 77)); // to one of the caller's groups
        ok(chown(f.as_ptr(), 65534, 65534));
        assert_eq!(stat_of(&f).st_gid, 65534);
    });
}

unsafe fn chown_clears_setuid() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(chmod(f.as_ptr(), 0o6755));
    ok(chown(f.as_ptr(), 5, 5));
    assert_eq!(stat_of(&f).st_mode & 0o7777, 0o755);
    ok(chmod(f.as_ptr(), 0o6745));
    ok(chown(f.as_ptr(), 6, 6)); // set-group-ID without group execution is kept
    assert_eq!(stat_of(&f).st_mode & 0o7777, 0o2745);
    let d = t.p("d");
    ok(mkdir(d.as_ptr(), 0o755));
    ok(chmod(d.as_ptr(), 0o6755));
    ok(chown(d.as_ptr(), 5, 5));
    assert_eq!(stat_of(&d).st_mode & 0o7777, 0o6755);
}

unsafe fn read_write_denied() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let f = t.file("f", b"");
    for (mode, flags, allowed) in [
        (0o600, O_RDONLY, false),
        (0o604, O_RDONLY, true),
        (0o604, O_WRONLY, false),
        (0o604, O_RDWR, false),
        (0o602, O_WRONLY, true),
        (0o602, O_RDONLY, false),
        (0o606, O_RDWR, true),
        (0o604, O_RDONLY | O_TRUNC, false),
        (0o600, O_PATH, true),
    ] {
        ok(chmod(f.as_ptr(), mode));
        as_nobody(&t, || {
            let r = open(f.as_ptr(), flags);
            if allowed {
                ok(r);
            } else {
                fails(r, EACCES);
            }
        });
    }
    as_nobody(&t, || fails(truncate(f.as_ptr(), 0), EACCES));
}

unsafe fn search_denied() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let d = t.p("d");
    ok(mkdir(d.as_ptr(), 0o755));
    t.file("d/f", b"");
    let mut st = zeroed();
    ok(chmod(d.as_ptr(), 0o744)); // can be listed, not searched
    as_nobody(&t, || {
        fails(stat(t.p("d/f").as_ptr(), &mut zeroed()), EACCES);
        fails(open(t.p("d/f").as_ptr(), O_RDONLY), EACCES);
        fails(stat(t.p("d/none").as_ptr(), &mut zeroed()), EACCES);
        fails(chdir(t.p("d").as_ptr()), EACCES);
        ok(open(t.p("d").as_ptr(), O_RDONLY));
        ok(stat(t.p("d").as_ptr(), &mut zeroed()));
    });
    ok(chmod(d.as_ptr(), 0o711)); // can be searched, not listed
    as_nobody(&t, || {
        ok(stat(t.p("d/f").as_ptr(), &mut zeroed()));
        fails(open(t.p("d").as_ptr(), O_RDONLY), EACCES);
        ok(chdir(t.p("d").as_ptr()));
    });
    ok(stat(t.p("d/f").as_ptr(), &mut st));
}

unsafe fn directory_write_denied() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(chmod(f.as_ptr(), 0o666));
    ok(mkdir(t.p("mine").as_ptr(), 0o777));
    ok(chmod(t.p("mine").as_ptr(), 0o777));
    as_nobody(&t, || {
        fails(open(t.p("new").as_ptr(), O_CREAT | O_RDWR, 0o600), EACCES);
        ok(open(f.as_ptr(), O_CREAT | O_RDWR, 0o600)); // it exists already
        fails(mkdir(t.p("d").as_ptr(), 0o700), EACCES);
        fails(symlink(c("a").as_ptr(), t.p("l").as_ptr()), EACCES);
        fails(link(f.as_ptr(), t.p("g").as_ptr()), EACCES);
        fails(unlink(f.as_ptr()), EACCES);
        fails(rmdir(t.p("mine").as_ptr()), EACCES);
        fails(rename(f.as_ptr(), t.p("mine/f").as_ptr()), EACCES);
        fails(mkdir(f.as_ptr(), 0o700), EEXIST);
    });
}

unsafe fn sticky_directory() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let d = t.p("d");
    ok(mkdir(d.as_ptr(), 0o777));
    ok(chmod(d.as_ptr(), 0o1777));
    t.file("d/roots", b"");
    ok(chmod(t.p("d/roots").as_ptr(), 0o666));
    as_nobody(&t, || {
        t.file("d/mine", b"");
        fails(unlink(t.p("d/roots").as_ptr()), EPERM);
        fails(rename(t.p("d/roots").as_ptr(), t.p("d/x").as_ptr()), EPERM);
        fails(rename(t.p("d/mine").as_ptr(), t.p("d/roots").as_ptr()), EPERM);
        ok(rename(t.p("d/mine").as_ptr(), t.p("d/own").as_ptr()));
        ok(unlink(t.p("d/own").as_ptr()));
    });
}

unsafe fn group_permissions() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(chown(f.as_ptr(), 0, 65534));
    ok(chmod(f.as_ptr(), 0o640));
    as_nobody(&t, || {
        ok(open(f.as_ptr(), O_RDONLY));
        fails(open(f.as_ptr(), O_WRONLY), EACCES);
    });
    ok(chmod(f.as_ptr(), 0o606)); // the group's bits apply, although others may
    as_nobody(&t, || fails(open(f.as_ptr(), O_RDONLY), EACCES));
}

unsafe fn supplementary_groups() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(chown(f.as_ptr(), 0, 4321));
    ok(chmod(f.as_ptr(), 0o640));
    ok(chmod(t.p("").as_ptr(), 0o755));
    for (groups, allowed) in [(&[1u32, 4321, 7][..], true), (&[1, 2][..], false)] {
        in_child(|| {
            ok(setgroups(groups.len(), groups.as_ptr()));
            ok(setresgid(65534, 65534, 65534));
            ok(setresuid(65534, 65534, 65534));
            assert_eq!(open(f.as_ptr(), O_RDONLY) != -1, allowed);
        });
    }
}

unsafe fn open_keeps_access() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let f = t.file("f", b"secret");
    let fd = ok(open(f.as_ptr(), O_RDWR));
    ok(chmod(f.as_ptr(), 0));
    as_nobody(&t, || {
        assert_eq!(get(fd, 6), b"secret");
        put(fd, b"x");
    });
}

unsafe fn write_clears_setuid() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(chmod(f.as_ptr(), 0o6777));
    as_nobody(&t, || {
        let fd = ok(open(f.as_ptr(), O_RDWR));
        put(fd, b"x");
        assert_eq!(fstat_of(fd).st_mode & 0o7777, 0o777);
    });
}

unsafe fn owner_class_first() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(chown(f.as_ptr(), 65534, 0));
    ok(chmod(f.as_ptr(), 0o066));
    as_nobody(&t, || {
        fails(open(f.as_ptr(), O_RDONLY), EACCES);
        ok(chmod(f.as_ptr(), 0o400)); // but the owner may change it
        ok(open(f.as_ptr(), O_RDONLY));
    });
}

unsafe fn utimes_not_owner() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(chmod(f.as_ptr(), 0o666));
    let ts = timespec { tv_sec: 1, tv_nsec: 0 };
    as_nobody(&t, || {
        ok(utimensat(AT_FDCWD, f.as_ptr(), std::ptr::null(), 0)); // "now" needs only write access
        fails(utimensat(AT_FDCWD, f.as_ptr(), [ts, ts].as_ptr(), 0), EPERM);
    });
    ok(chmod(f.as_ptr(), 0o644));
    as_nobody(&t, || fails(utimensat(AT_FDCWD, f.as_ptr(), std::ptr::null(), 0), EACCES));
}

unsafe fn root_overrides() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let f = t.file("f", b"x");
    ok(chmod(f.as_ptr(), 0));
    ok(chmod(t.p("").as_ptr(), 0));
    let fd = ok(open(f.as_ptr(), O_RDWR));
    assert_eq!(get(fd, 1), b"x");
    fails(access(f.as_ptr(), X_OK), EACCES);
    fails(execv(f.as_ptr(), [f.as_ptr(), std::ptr::null()].as_ptr()), EACCES);
}

/// Every way to change a file's content or owner: each clears its capabilities, and for an unprivileged caller its
/// set-id bits too.
unsafe fn changes_clear_rights() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let caps: [u32; 5] = [0x0200_0001, 1 << 7, 0, 0, 0];
    let name = c("security.capability");
    let f = t.p("f");
    let source = ok(open(t.file("source", b"some bytes").as_ptr(), O_RDONLY));
    let opened = |flags: i32| ok(open(f.as_ptr(), O_WRONLY | flags));
    let none = std::ptr::null_mut;
    type Change<'a> = (&'a str, &'a dyn Fn());
    let nothing_to_do: Change = ("utimensat", &|| zero_time(&f));
    let changes: [Change; 10] = [
        ("write", &|| put(opened(0), b"x")),
        ("pwrite", &|| is(pwrite(opened(0), b"x".as_ptr().cast(), 1, 3), 1)),
        ("append", &|| put(opened(O_APPEND), b"x")),
        ("truncate", &|| zero_size(&f)),
        ("ftruncate", &|| zero(ftruncate(opened(0), 100))),
        ("O_TRUNC", &|| drop(opened(O_TRUNC))),
        ("fallocate", &|| zero(fallocate(opened(0), 0, 0, 100))),
        ("copy_file_range", &|| is(copy_file_range(source, &mut 0, opened(0), none(), 4, 0), 4)),
        ("sendfile", &|| is(sendfile(opened(0), source, &mut 0, 4), 4)),
        ("splice", &|| {
            let (r, w) = pipe_pair();
            put(w, b"abc");
            is(splice(r, none(), opened(0), none(), 3, 0), 3);
        }),
    ];
    let fresh = || {
        t.file("f", b"program");
        if setxattr(f.as_ptr(), name.as_ptr(), caps.as_ptr().cast(), 20, 0) == -1 {
            assert!([EOPNOTSUPP, EPERM].contains(&errno()));
            return false;
        }
        ok(chmod(f.as_ptr(), 0o6777));
        true
    };
    let has = || getxattr(f.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) == 20;
    let mode = || stat_of(&f).st_mode & 0o7777;
    if !fresh() {
        return; // not supported by the file system
    }
    nothing_to_do.1();
    assert!(has() && mode() == 0o6777);
    for (what, change) in changes {
        assert!(fresh() && has());
        in_child(change);
        assert!(!has(), "capabilities are left after {what}");
        assert_eq!(mode(), 0o6777, "{what} by root");
        fresh();
        as_nobody(&t, change);
        assert!(!has(), "capabilities are left after {what} by another");
        assert_eq!(mode(), 0o777, "{what} by another");
    }
    fresh();
    ok(chown(f.as_ptr(), 5, u32::MAX));
    assert!(!has() && mode() == 0o777);
}

unsafe fn zero_size(f: &std::ffi::CString) {
    zero(truncate(f.as_ptr(), 0));
}

unsafe fn zero_time(f: &std::ffi::CString) {
    zero(utimensat(AT_FDCWD, f.as_ptr(), std::ptr::null(), 0));
}

/// Sets `/proc/sys/fs/protected_NAME`, runs `f` and puts the setting back.
unsafe fn with_protected(name: &str, value: &str, f: impl FnOnce()) {
    let file = format!("/proc/sys/fs/protected_{name}");
    let Ok(before) = std::fs::read_to_string(&file) else { return };
    if !root() {
        eprintln!("left out: needs root");
        return;
    }
    match std::fs::write(&file, value) {
        // Read-only in a container, perhaps.
        Err(e) if e.raw_os_error() == Some(EROFS) => return,
        done => done.unwrap(),
    }
    let done = spawn(|| {
        f();
        0
    });
    let status = reap(done);
    std::fs::write(&file, before).unwrap();
    assert!(WIFEXITED(status) && WEXITSTATUS(status) == 0, "with {name} {value}");
}

unsafe fn hard_links_to_others() {
    for (value, wanted) in [("1", EPERM), ("0", 0)] {
        let t = Tmp::new();
        for (name, mode) in [("plain", 0o644), ("shared", 0o666), ("suid", 0o4777), ("sgid", 0o2777), ("mark", 0o2666)]
        {
            let f = t.file(name, b"");
            ok(chown(f.as_ptr(), 0, 0));
            ok(chmod(f.as_ptr(), mode));
        }
        ok(mkfifo(t.p("fifo").as_ptr(), 0o666));
        ok(symlink(c("plain").as_ptr(), t.p("link").as_ptr()));
        ok(mkdir(t.p("to").as_ptr(), 0o777));
        ok(chmod(t.p("to").as_ptr(), 0o777));
        with_protected("hardlinks", value, || {
            as_nobody(&t, || {
                let give =
                    |name: &str| linkat(AT_FDCWD, t.p(name).as_ptr(), AT_FDCWD, t.p(&format!("to/{name}")).as_ptr(), 0);
                for name in ["plain", "suid", "sgid", "fifo", "link"] {
                    let r = give(name);
                    assert_eq!(if r == 0 { 0 } else { errno() }, wanted, "{name}");
                }
                for name in ["shared", "mark"] {
                    ok(give(name));
                }
                // A file of the caller, whatever its mode.
                ok(close(ok(open(t.p("to/own").as_ptr(), O_CREAT | O_RDWR, 0))));
                ok(link(t.p("to/own").as_ptr(), t.p("to/own2").as_ptr()));
            });
            ok(link(t.p("plain").as_ptr(), t.p("to/by-root").as_ptr()));
        });
    }
}

unsafe fn symlinks_in_sticky_directories() {
    for (value, wanted) in [("1", EACCES), ("0", 0)] {
        let t = Tmp::new();
        ok(mkdir(t.p("d").as_ptr(), 0o777));
        ok(chmod(t.p("d").as_ptr(), 0o1777));
        ok(chmod(t.file("f", b"x").as_ptr(), 0o644));
        ok(mkdir(t.p("d/dir").as_ptr(), 0o755));
        for (name, to, owner) in [("theirs", "../f", 1), ("mine", "../f", 0), ("dirlink", "dir", 1)] {
            ok(symlink(c(to).as_ptr(), t.p(&format!("d/{name}")).as_ptr()));
            ok(lchown(t.p(&format!("d/{name}")).as_ptr(), owner, owner));
        }
        ok(symlink(c("d/theirs").as_ptr(), t.p("chain").as_ptr()));
        ok(close(ok(open(t.p("d/dir/in").as_ptr(), O_CREAT | O_RDWR, 0o644))));
        with_protected("symlinks", value, || {
            let check = || {
                for name in ["d/theirs", "chain"] {
                    for flags in [O_RDONLY, O_RDONLY | O_CREAT] {
                        let r = open(t.p(name).as_ptr(), flags, 0o600);
                        assert_eq!(if r >= 0 { 0 } else { errno() }, wanted, "{name} {flags:o}");
                    }
                }
                ok(access(t.p("d/mine").as_ptr(), R_OK)); // owned by the directory's owner
                ok(access(t.p("d/dirlink/in").as_ptr(), R_OK)); // on the way to a file, not at the end
                ok(readlink(t.p("d/theirs").as_ptr(), [0 as c_char; 64].as_mut_ptr(), 64));
            };
            check();
            as_nobody(&t, check);
        });
    }
}

unsafe fn creating_opens_in_sticky_directories() {
    for (kind, mode, value, wanted) in [
        ("regular", 0o1777, "1", EACCES),
        ("regular", 0o1775, "1", 0),
        ("regular", 0o1775, "2", EACCES),
        ("regular", 0o777, "2", 0),
        ("regular", 0o1777, "0", 0),
        ("fifos", 0o1777, "1", EACCES),
        ("fifos", 0o1775, "1", 0),
        ("fifos", 0o1777, "0", 0),
    ] {
        let t = Tmp::new();
        ok(mkdir(t.p("d").as_ptr(), 0o777));
        ok(chmod(t.p("d").as_ptr(), mode));
        let f = t.p("d/f");
        if kind == "fifos" {
            ok(mkfifo(f.as_ptr(), 0o666));
        } else {
            t.file("d/f", b"x");
        }
        ok(chmod(f.as_ptr(), 0o666));
        ok(chown(f.as_ptr(), 1, 1));
        with_protected(kind, value, || {
            let r = open(f.as_ptr(), O_RDWR | O_CREAT | O_NONBLOCK, 0o600);
            assert_eq!(if r >= 0 { 0 } else { errno() }, wanted, "{kind} {mode:o} {value}");
            ok(open(f.as_ptr(), O_RDWR | O_NONBLOCK)); // allowed without O_CREAT
            ok(chown(f.as_ptr(), 0, 0)); // ... and also a file of the directory's owner
            ok(open(f.as_ptr(), O_RDWR | O_CREAT | O_NONBLOCK, 0o600));
        });
    }
}
