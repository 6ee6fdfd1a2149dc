//! Credentials: user and group ids, capabilities.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    getters_agree,
    setuid_drops_all,
    setresuid_rules,
    setreuid_rules,
    gids,
    groups,
    fsuid,
    seteuid_and_back,
    capabilities_drop,
    capability_calls,
    capset_rules,
    bounding_set,
    keep_caps,
    securebits,
    no_new_privs,
    ids_are_per_thread_in_the_kernel,
    fork_inherits,
    errors,
];

unsafe fn uids() -> (u32, u32, u32) {
    let (mut r, mut e, mut s) = (0, 0, 0);
    ok(getresuid(&mut r, &mut e, &mut s));
    (r, e, s)
}

unsafe fn gids_now() -> (u32, u32, u32) {
    let (mut r, mut e, mut s) = (0, 0, 0);
    ok(getresgid(&mut r, &mut e, &mut s));
    (r, e, s)
}

#[repr(C)]
struct Hdr {
    version: u32,
    pid: i32,
}

unsafe fn caps() -> [[u32; 3]; 2] {
    let mut d = [[0u32; 3]; 2];
    ok(syscall(SYS_capget, &Hdr { version: 0x2008_0522, pid: 0 }, d.as_mut_ptr()));
    d
}

unsafe fn getters_agree() {
    let (r, e, s) = uids();
    assert_eq!((r, e), (getuid(), geteuid()));
    let _ = s;
    let (r, e, _) = gids_now();
    assert_eq!((r, e), (getgid(), getegid()));
    let st = std::fs::read_to_string("/proc/self/status").unwrap();
    assert!(st.contains(&format!("\nUid:\t{}\t{}\t", getuid(), geteuid())), "{st}");
}

unsafe fn setuid_drops_all() {
    if !root() {
        return;
    }
    in_child(|| {
        ok(setgid(1000));
        ok(setuid(1000));
        assert_eq!((uids(), gids_now()), ((1000, 1000, 1000), (1000, 1000, 1000)));
        fails(setuid(0), EPERM);
        fails(setgid(0), EPERM);
        ok(setuid(1000));
        fails(setgroups(0, std::ptr::null()), EPERM);
    });
}

unsafe fn setresuid_rules() {
    if !root() {
        return;
    }
    in_child(|| {
        ok(setresuid(1, 2, 3));
        assert_eq!(uids(), (1, 2, 3));
        ok(setresuid(3, 1, 2)); // any of the three ids, in any place
        assert_eq!(uids(), (3, 1, 2));
        fails(setresuid(4, u32::MAX, u32::MAX), EPERM);
        ok(setresuid(u32::MAX, u32::MAX, 3));
        assert_eq!(uids(), (3, 1, 3));
    });
}

unsafe fn setreuid_rules() {
    if !root() {
        return;
    }
    in_child(|| {
        ok(setreuid(1000, 2000));
        assert_eq!(uids(), (1000, 2000, 2000));
        ok(setreuid(2000, 1000));
        assert_eq!(uids(), (2000, 1000, 1000));
        fails(setreuid(5, u32::MAX), EPERM);
    });
    in_child(|| {
        ok(setreuid(u32::MAX, 1000)); // differs from the real id, so the saved id is set too
        assert_eq!(uids(), (0, 1000, 1000));
        ok(setresuid(u32::MAX, 0, u32::MAX));
    });
}

unsafe fn gids() {
    if !root() {
        return;
    }
    in_child(|| {
        ok(setresgid(1, 2, 3));
        assert_eq!(gids_now(), (1, 2, 3));
        ok(setegid(5));
        assert_eq!(gids_now(), (1, 5, 3));
        ok(setregid(7, 8));
        assert_eq!(gids_now(), (7, 8, 8));
        ok(setgid(9));
        assert_eq!(gids_now(), (9, 9, 9));
        ok(setuid(1000));
        fails(setgid(1), EPERM);
        ok(setgid(9));
    });
}

unsafe fn groups() {
    if !root() {
        return;
    }
    in_child(|| {
        ok(setgroups(3, [5, 1, 3].as_ptr()));
        let mut g = [0; 8];
        is(getgroups(8, g.as_mut_ptr()), 3);
        let mut v = g[..3].to_vec();
        v.sort();
        assert_eq!(v, [1, 3, 5]);
        is(getgroups(0, std::ptr::null_mut()), 3);
        fails(getgroups(2, g.as_mut_ptr()), EINVAL);
        fails(getgroups(-1, g.as_mut_ptr()), EINVAL);
        fails(syscall(SYS_setgroups, 65537, g.as_ptr()), EINVAL);
        fails(syscall(SYS_setgroups, 3, BAD), EFAULT);
        ok(setgroups(0, std::ptr::null()));
        is(getgroups(8, g.as_mut_ptr()), 0);
    });
}

unsafe fn fsuid() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    ok(chmod(t.p("").as_ptr(), 0o777));
    in_child(|| {
        is(setfsuid(1234), 0);
        is(setfsuid(u32::MAX), 1234); // queries without setting
        is(setfsgid(4321), getegid().into());
        t.file("f", b"");
        let st = stat_of(&t.p("f"));
        assert_eq!((st.st_uid, st.st_gid), (1234, 4321));
        assert_eq!(geteuid(), 0);
        ok(seteuid(0)); // restores it
        is(setfsuid(u32::MAX), 0);
    });
}

unsafe fn seteuid_and_back() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(chmod(f.as_ptr(), 0o600));
    in_child(|| {
        ok(seteuid(65534));
        fails(open(f.as_ptr(), O_RDONLY), EACCES);
        ok(seteuid(0));
        ok(open(f.as_ptr(), O_RDONLY));
    });
}

unsafe fn capabilities_drop() {
    if !root() {
        return;
    }
    in_child(|| {
        assert_ne!(caps()[0][0], 0);
        ok(seteuid(1000));
        assert_eq!(caps()[0][0], 0); // none effective
        assert_ne!(caps()[0][1], 0); // but still permitted
        ok(seteuid(0));
        assert_ne!(caps()[0][0], 0);
        ok(setresuid(1000, 1000, 1000));
        assert_eq!(caps(), [[0; 3]; 2]);
    });
}

unsafe fn capability_calls() {
    let mut d = [[0u32; 3]; 2];
    let mut h = Hdr { version: 0, pid: 0 };
    // For an unknown version the kernel returns its preferred one.
    ok(syscall(SYS_capget, &mut h, 0));
    assert_eq!(h.version, 0x2008_0522);
    h.version = 1;
    fails(syscall(SYS_capget, &mut h, d.as_mut_ptr()), EINVAL);
    fails(syscall(SYS_capget, &Hdr { version: 0x2008_0522, pid: 0x3fff_ffff }, d.as_mut_ptr()), ESRCH);
    fails(syscall(SYS_capget, &Hdr { version: 0x2008_0522, pid: -1 }, d.as_mut_ptr()), EINVAL);
    let me = getpid();
    in_child(|| {
        ok(syscall(SYS_capget, &Hdr { version: 0x2008_0522, pid: me }, d.as_mut_ptr()));
    });
}

unsafe fn capset_rules() {
    if !root() {
        return;
    }
    in_child(|| {
        let h = Hdr { version: 0x2008_0522, pid: 0 };
        let mut d = caps();
        let full = d;
        d[0][0] &= !(1 << 1); // CAP_DAC_OVERRIDE no longer effective
        ok(syscall(SYS_capset, &h, d.as_ptr()));
        assert_eq!(caps(), d);
        ok(syscall(SYS_capset, &h, full.as_ptr()));
        d[0][1] &= !(1 << 1);
        ok(syscall(SYS_capset, &h, d.as_ptr()));
        fails(syscall(SYS_capset, &h, full.as_ptr()), EPERM); // a dropped capability cannot be regained
        fails(syscall(SYS_capset, &Hdr { version: 0x2008_0522, pid: 1 }, d.as_ptr()), EPERM);
    });
    // Without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH root is an ordinary user.
    let t = Tmp::new();
    let f = t.file("f", b"");
    ok(chown(f.as_ptr(), 1000, 1000));
    ok(chmod(f.as_ptr(), 0o600));
    in_child(|| {
        let h = Hdr { version: 0x2008_0522, pid: 0 };
        ok(syscall(SYS_capset, &h, [[0u32; 3]; 2].as_ptr()));
        fails(open(f.as_ptr(), O_RDONLY), EACCES);
        fails(chroot(c("/").as_ptr()), EPERM);
        fails(setuid(5), EPERM);
    });
}

unsafe fn bounding_set() {
    ok(prctl(PR_CAPBSET_READ, 0, 0, 0, 0));
    fails(prctl(PR_CAPBSET_READ, 99, 0, 0, 0), EINVAL);
    if !root() {
        fails(prctl(PR_CAPBSET_DROP, 0, 0, 0, 0), EPERM);
        return;
    }
    in_child(|| {
        ok(prctl(PR_CAPBSET_DROP, 5, 0, 0, 0));
        is(prctl(PR_CAPBSET_READ, 5, 0, 0, 0), 0);
        fails(prctl(PR_CAPBSET_DROP, 99, 0, 0, 0), EINVAL);
    });
}

unsafe fn keep_caps() {
    if !root() {
        return;
    }
    in_child(|| {
        is(prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0), 0);
        ok(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
        is(prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0), 1);
        ok(setresuid(1000, 1000, 1000));
        assert_eq!(caps()[0][0], 0);
        assert_ne!(caps()[0][1], 0);
        fails(prctl(PR_SET_KEEPCAPS, 2, 0, 0, 0), EINVAL);
    });
}

unsafe fn securebits() {
    is(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0), 0);
    in_child(|| {
        if geteuid() == 0 {
            ok(prctl(PR_SET_SECUREBITS, 1 << 2, 0, 0, 0)); // no capability changes on a change of ids
            ok(setresuid(1000, 1000, 1000));
            assert_ne!(caps()[0][0], 0);
        } else {
            fails(prctl(PR_SET_SECUREBITS, 1, 0, 0, 0), EPERM);
        }
    });
}

unsafe fn no_new_privs() {
    in_child(|| {
        is(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 0);
        fails(prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0), EINVAL);
        fails(prctl(PR_SET_NO_NEW_PRIVS, 1, 1, 0, 0), EINVAL);
        ok(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        is(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
        in_child(|| is(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1));
    });
}

unsafe fn ids_are_per_thread_in_the_kernel() {
    if !root() {
        return;
    }
    std::thread::spawn(|| unsafe {
        ok(syscall(SYS_setresuid, 1000, 1000, 1000));
        assert_eq!(geteuid(), 1000);
    })
    .join()
    .unwrap();
    assert_eq!(geteuid(), 0);
}

unsafe fn fork_inherits() {
    if !root() {
        return;
    }
    in_child(|| {
        ok(setgroups(2, [7, 8].as_ptr()));
        ok(setresgid(1, 2, 3));
        ok(setresuid(1, 2, 3));
        in_child(|| {
            assert_eq!((uids(), gids_now()), ((1, 2, 3), (1, 2, 3)));
            is(getgroups(0, std::ptr::null_mut()), 2);
        });
    });
}

unsafe fn errors() {
    fails(syscall(SYS_setuid, u32::MAX), EINVAL);
    fails(syscall(SYS_setgid, u32::MAX), EINVAL);
    fails(syscall(SYS_getresuid, BAD, BAD, BAD), EFAULT);
}
