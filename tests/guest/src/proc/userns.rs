//! User namespaces (user_namespaces(7)): maps, capabilities that count inside only, ids at the border.

use crate::t::*;
use libc::*;
use std::ffi::CString;

pub const CASES: &[crate::Case] = cases![
    ids_before_and_after_the_maps,
    rules_of_maps,
    rules_of_setgroups,
    maps_as_others_see_them,
    maps_by_a_parent,
    who_may_write_a_map,
    a_user_of_its_own,
    ids_that_have_no_number,
    capabilities_count_inside,
    capabilities_over_files,
    files_of_others,
    owners_and_modes,
    levels,
    flags_and_threads,
    not_in_a_chroot,
    entering,
    signals_and_ids,
    others_processes,
    looking_into_others,
    dumpable,
    set_id_programs,
    file_capabilities,
    access_lists,
    credentials_in_messages,
    ids_of_ipc_objects,
    supplementary_groups,
    namespaces_of_a_user,
    priorities,
    securebits_are_fresh,
    no_new_privs_stays,
    owner_from_outside,
    limits_of_processes,
];

const NEWUSER: i32 = CLONE_NEWUSER;
/// A user without any right.
const USER: u32 = 1234;
const OTHER: u32 = 1235;

fn file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Words of a text.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// One write to a file: 0, or the error.
fn write_to(path: &str, text: &str) -> i32 {
    unsafe {
        let fd = open(c(path).as_ptr(), O_WRONLY | O_CLOEXEC);
        if fd == -1 {
            return errno();
        }
        let r = write(fd, text.as_ptr().cast(), text.len());
        let e = if r == text.len() as isize { 0 } else { errno() };
        close(fd);
        e
    }
}

unsafe fn become_user(id: u32) {
    ok(setgroups(0, std::ptr::null()));
    ok(setresgid(id, id, id));
    ok(setresuid(id, id, id));
    // The files of /proc are its own again.
    ok(prctl(PR_SET_DUMPABLE, 1));
}

/// Enters a namespace of its own in which it is `inside`.
#[track_caller]
unsafe fn enter_as(inside: u32) {
    let (u, g) = (geteuid(), getegid());
    ok(unshare(NEWUSER));
    assert_eq!(write_to("/proc/self/setgroups", "deny"), 0);
    assert_eq!(write_to("/proc/self/uid_map", &format!("{inside} {u} 1")), 0);
    assert_eq!(write_to("/proc/self/gid_map", &format!("{inside} {g} 1")), 0);
}

/// A child in a namespace that its parent maps; it goes on when that is done.
struct Mapped {
    pid: pid_t,
    go: i32,
}

impl Mapped {
    unsafe fn new(flags: i32, f: impl FnOnce() -> i32) -> Mapped {
        let (r, w) = pipe_pair();
        let pid = ok(syscall(SYS_clone, NEWUSER | flags | SIGCHLD, 0, 0, 0, 0)) as pid_t;
        if pid == 0 {
            close(w);
            get_all(r, 1);
            let r = f();
            _exit(r);
        }
        close(r);
        Mapped { pid, go: w }
    }
    fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.pid)
    }
    #[track_caller]
    unsafe fn map(&self, users: &str, groups: &str) {
        assert_eq!(write_to(&self.path("uid_map"), users), 0);
        assert_eq!(write_to(&self.path("gid_map"), groups), 0);
    }
    #[track_caller]
    unsafe fn ends(self) {
        put(self.go, b"x");
        close(self.go);
        exits(self.pid, 0);
    }
}

/// Maps of several lines, as newuidmap(1) makes them: root and a range.
const LINES: &str = "0 100000 1000\n1000 5000 10\n2000 1234 1\n";

unsafe fn ids_before_and_after_the_maps() {
    if !root() {
        return;
    }
    in_child(|| {
        ok(unshare(NEWUSER));
        assert_eq!((getuid(), geteuid(), getgid(), getegid()), (65534, 65534, 65534, 65534));
        assert_eq!(file("/proc/self/uid_map"), "");
        assert_eq!(file("/proc/self/setgroups"), "allow\n");
        fails(setuid(0), EINVAL);
        fails(setgroups(0, std::ptr::null()), EPERM);
        assert_eq!(write_to("/proc/self/uid_map", "0 0 1\n"), 0);
        assert_eq!((getuid(), getgid()), (0, 65534));
        assert_eq!(file("/proc/self/uid_map"), "         0          0          1\n");
        // One's own group, but only if groups cannot be dropped.
        assert_eq!(write_to("/proc/self/gid_map", "5 0 1"), EPERM);
        assert_eq!(write_to("/proc/self/setgroups", "deny"), 0);
        assert_eq!(write_to("/proc/self/gid_map", "5 0 1"), 0);
        assert_eq!((getuid(), getegid()), (0, 5));
        fails(setgroups(0, std::ptr::null()), EPERM);
        fails(setgid(0), EINVAL);
        ok(setgid(5));
    });
}

unsafe fn rules_of_maps() {
    if !root() {
        return;
    }
    in_child(|| {
        ok(unshare(NEWUSER));
        let map = "/proc/self/uid_map";
        for bad in [
            "",
            "\n",
            "0",
            "0 0",
            "0 0 0",
            "0 0 1 1",
            "x 0 1",
            "0 0 1\n\n",
            "0 0 1x",
            "-1 0 1",
            "4294967295 0 1",
            "0 4294967295 1",
            "0 0 4294967296",
            "5 0 4294967295",
            "0 10 5\n4 100 1",
            "0 10 5\n10 12 1",
        ] {
            let want = if bad.is_empty() { 0 } else { EINVAL };
            let got = write_to(map, bad);
            assert!(got == want || (bad.is_empty() && got == EINVAL), "{bad:?}: {}", name_of(got));
        }
        let many = |n: u32| (0..n).map(|i| format!("{} {} 1\n", i * 2, i + 1000)).collect::<String>();
        assert_eq!(write_to(map, &many(341)), EINVAL);
        // Only at the beginning.
        let fd = ok(open(c(map).as_ptr(), O_RDWR));
        ok(lseek(fd, 1, SEEK_SET));
        fails(write(fd, b"0 0 1".as_ptr().cast(), 5), EINVAL);
        let long = [b' '; 4096];
        ok(lseek(fd, 0, SEEK_SET));
        fails(write(fd, long.as_ptr().cast(), 4096), EINVAL);
        assert_eq!(file(map), "");
    });
    // 340 lines.
    let child = Mapped::new(0, || {
        assert_eq!((getuid(), setuid(678)), (65534, 0));
        let mut st = 0;
        fails(setuid(677), EINVAL);
        st |= i32::from(getuid() != 678);
        st
    });
    let many = (0..340).map(|i| format!("{} {} 1\n", i * 2, i + 1000)).collect::<String>();
    child.map(&many, "0 0 1");
    let shown = file(&child.path("uid_map"));
    assert_eq!(shown.lines().count(), 340);
    assert_eq!(words(shown.lines().last().unwrap()), "678 1339 1");
    // Once only.
    assert_eq!(write_to(&child.path("uid_map"), "0 0 1"), EPERM);
    child.ends();
}

unsafe fn rules_of_setgroups() {
    if !root() {
        return;
    }
    in_child(|| {
        // Of the initial namespace.
        assert_eq!(write_to("/proc/self/setgroups", "nonsense"), EINVAL);
        ok(unshare(NEWUSER));
        let at = "/proc/self/setgroups";
        for bad in ["x", "denyx", "allow deny", "allowed!!", ""] {
            let r = write_to(at, bad);
            assert!(r == EINVAL || (bad.is_empty() && r == 0), "{bad:?}");
        }
        assert_eq!(write_to(at, "allow\n"), 0);
        assert_eq!(write_to(at, "deny\n"), 0);
        assert_eq!(file(at), "deny\n");
        assert_eq!(write_to(at, "allow"), EPERM);
        assert_eq!(write_to(at, "deny"), 0);
        assert_eq!(write_to("/proc/self/uid_map", "0 0 1"), 0);
        assert_eq!(write_to("/proc/self/gid_map", "0 0 1"), 0);
        assert_eq!(write_to(at, "deny"), EPERM);
        fails(setgroups(0, std::ptr::null()), EPERM);
        // A namespace below inherits it.
        ok(unshare(NEWUSER));
        assert_eq!(file(at), "deny\n");
    });
    let child = Mapped::new(0, || 0);
    child.map("0 0 1", "0 0 1");
    assert_eq!(write_to(&child.path("setgroups"), "deny"), EPERM);
    assert_eq!(write_to(&child.path("setgroups"), "allow"), 0);
    child.ends();
}

unsafe fn maps_as_others_see_them() {
    if !root() {
        return;
    }
    let outer = Mapped::new(0, || {
        ok(setgid(0));
        ok(setuid(0));
        ok(prctl(PR_SET_DUMPABLE, 1));
        let inner = Mapped::new(0, || {
            // Its own lower ids are those of the parent.
            assert_eq!(words(&file("/proc/self/uid_map")), "7 500 10");
            0
        });
        // A line must lie within one of the parent's.
        assert_eq!(write_to(&inner.path("uid_map"), "0 995 10"), EPERM);
        assert_eq!(write_to(&inner.path("uid_map"), "0 1500 1"), EPERM);
        inner.map("7 500 10", "7 500 10");
        assert_eq!(words(&file(&inner.path("uid_map"))), "7 500 10");
        assert_eq!(words(&file("/proc/self/uid_map")), "0 100000 1000");
        inner.ends();
        0
    });
    outer.map("0 100000 1000", "0 100000 1000");
    assert_eq!(words(&file(&outer.path("uid_map"))), "0 100000 1000");
    assert_eq!(words(&file(&outer.path("projid_map"))), "");
    assert_eq!(write_to(&outer.path("projid_map"), "0 0 5"), 0);
    assert_eq!(words(&file(&outer.path("projid_map"))), "0 0 5");
    outer.ends();
}

unsafe fn maps_by_a_parent() {
    if !root() {
        return;
    }
    let tmp = Tmp::new();
    ok(chmod(c(&tmp.0.display().to_string()).as_ptr(), 0o777));
    let child = Mapped::new(0, || {
        assert_eq!((getuid(), getgid()), (65534, 65534));
        ok(setresgid(0, 0, 0));
        ok(setresuid(0, 0, 0));
        assert_eq!((getuid(), geteuid()), (0, 0));
        let f = tmp.open("made");
        let st = fstat_of(f);
        assert_eq!((st.st_uid, st.st_gid), (0, 0));
        ok(fchown(f, 1003, 1004));
        let st = fstat_of(f);
        assert_eq!((st.st_uid, st.st_gid), (1003, 1004));
        fails(fchown(f, 1010, -1i32 as u32), EINVAL);
        fails(fchown(f, 5003, -1i32 as u32), EINVAL);
        ok(fchown(f, -1i32 as u32, -1i32 as u32));
        let mut x: statx = zeroed();
        ok(statx(f, c("").as_ptr(), AT_EMPTY_PATH, STATX_BASIC_STATS, &mut x));
        assert_eq!((x.stx_uid, x.stx_gid), (1003, 1004));
        ok(setresuid(7, 8, 9));
        let (mut a, mut b, mut d) = (0, 0, 0);
        ok(getresuid(&mut a, &mut b, &mut d));
        assert_eq!((a, b, d), (7, 8, 9));
        assert_eq!(
            words(&file("/proc/self/status")).split(" Uid: ").nth(1).unwrap().split(" Gid").next().unwrap(),
            "7 8 9 8"
        );
        fails(setresuid(7, 8, 3000), EINVAL);
        is(syscall(SYS_setfsuid, 9), 8);
        is(syscall(SYS_setfsuid, 77777), 9);
        0
    });
    child.map(LINES, LINES);
    assert_eq!(
        file(&child.path("uid_map")).lines().map(words).collect::<Vec<_>>(),
        ["0 100000 1000", "1000 5000 10", "2000 1234 1"]
    );
    child.ends();
    let st = stat_of(&tmp.p("made"));
    assert_eq!((st.st_uid, st.st_gid), (5003, 5004));
}

unsafe fn who_may_write_a_map() {
    if !root() {
        return;
    }
    // A user: its own id, no range, nothing of others.
    in_child(|| {
        become_user(USER);
        ok(unshare(NEWUSER));
        let map = "/proc/self/uid_map";
        for text in ["0 0 1", "0 1235 1", "0 1234 2", "0 1234 1\n1 1235 1"] {
            assert_eq!(write_to(map, text), EPERM, "{text}");
        }
        assert_eq!(write_to("/proc/self/gid_map", "0 1234 1"), EPERM);
        assert_eq!(write_to("/proc/self/setgroups", "deny"), 0);
        assert_eq!(write_to("/proc/self/gid_map", "0 1235 1"), EPERM);
        assert_eq!(write_to("/proc/self/gid_map", "0 1234 1"), 0);
        assert_eq!(write_to(map, "0 1234 1"), 0);
    });
    // Its child's, from outside: as owner of the namespace.
    in_child(|| {
        become_user(USER);
        let child = Mapped::new(0, || i32::from(getuid() != 3));
        assert_eq!(write_to(&child.path("uid_map"), "3 1235 1"), EPERM);
        assert_eq!(write_to(&child.path("uid_map"), "3 1234 1"), 0);
        child.ends();
    });
    // Another user may not even open it.
    let child = Mapped::new(0, || 0);
    in_child(|| {
        become_user(OTHER);
        assert_eq!(write_to(&child.path("uid_map"), "0 1235 1"), EACCES);
    });
    let fd = ok(open(c(&child.path("uid_map")).as_ptr(), O_WRONLY));
    in_child(|| {
        become_user(OTHER);
        // The opener was root; the writer must have the capability as well.
        fails(write(fd, b"0 0 2".as_ptr().cast(), 5), EPERM);
    });
    ok(write(fd, b"0 0 2".as_ptr().cast(), 5));
    child.ends();
    // One who is two levels above is neither in it nor in its parent.
    let (r, w) = pipe_pair();
    let (go, gone) = pipe_pair();
    let outer = Mapped::new(0, || {
        let inner = Mapped::new(0, || 0);
        put(w, &inner.pid.to_ne_bytes());
        get_all(go, 1);
        inner.map("0 0 1", "0 0 1");
        inner.ends();
        0
    });
    outer.map("0 0 1", "0 0 1");
    put(outer.go, b"x");
    let inner = i32::from_ne_bytes(get_all(r, 4).try_into().unwrap());
    assert_eq!(write_to(&format!("/proc/{inner}/uid_map"), "0 0 1"), EPERM);
    put(gone, b"x");
    exits(outer.pid, 0);
}

unsafe fn a_user_of_its_own() {
    if !root() {
        return;
    }
    in_child(|| {
        become_user(USER);
        enter_as(0);
        assert_eq!((getuid(), geteuid(), getgid()), (0, 0, 0));
        ok(setuid(0));
        fails(setuid(1234), EINVAL);
        fails(setuid(1), EINVAL);
        // What others own shows as nobody's.
        let st = stat_of(&c("/"));
        assert_eq!((st.st_uid, st.st_gid), (65534, 65534));
        let pid = spawn(|| i32::from(getuid() != 0));
        exits(pid, 0);
    });
}

unsafe fn ids_that_have_no_number() {
    if !root() {
        return;
    }
    in_child(|| {
        ok(setgroups(3, [0, 10, 11].as_ptr()));
        in_child(|| {
            ok(unshare(NEWUSER));
            let mut g = [0; 8];
            is(getgroups(8, g.as_mut_ptr()), 3);
            assert_eq!(g[..3], [65534; 3]);
        });
        let child = Mapped::new(0, || {
            let mut g = [0; 8];
            is(getgroups(8, g.as_mut_ptr()), 3);
            let mut seen = g[..3].to_vec();
            seen.sort();
            assert_eq!(seen, [3, 65534, 65534]);
            ok(setgroups(1, [3].as_ptr()));
            fails(setgroups(1, [0].as_ptr()), EINVAL);
            is(getgroups(8, g.as_mut_ptr()), 1);
            assert_eq!(g[0], 3);
            0
        });
        child.map("0 0 1", "3 10 1");
        child.ends();
    });
}

fn caps() -> [u64; 5] {
    let text = file("/proc/self/status");
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|n| {
        let line = text.lines().find_map(|l| l.strip_prefix(n)?.strip_prefix(':')).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    })
}

unsafe fn capabilities_count_inside() {
    if !root() {
        return;
    }
    in_child(|| {
        become_user(USER);
        assert_eq!(caps()[2], 0);
        ok(unshare(NEWUSER));
        let [inh, prm, eff, bnd, amb] = caps();
        assert!(prm == eff && prm == bnd && prm & (prm + 1) == 0 && prm >= (1 << 41) - 1, "{prm:x}");
        assert_eq!((inh, amb), (0, 0));
        // Names of a namespace of the initial one.
        fails(sethostname(c("x").as_ptr(), 1), EPERM);
        ok(unshare(CLONE_NEWUTS));
        ok(sethostname(c("inside").as_ptr(), 6));
        fails(syscall(SYS_settimeofday, &[0i64; 2], 0), EPERM);
        fails(mknod(c("/tmp/guest-userns-dev").as_ptr(), S_IFCHR | 0o600, makedev(1, 3)), EPERM);
        fails(syscall(SYS_syslog, 3, anon(4096, RW), 10), EPERM);
        let mut l: rlimit = zeroed();
        ok(getrlimit(RLIMIT_NICE, &mut l));
        if l.rlim_max != RLIM_INFINITY {
            l.rlim_max += 1;
            fails(setrlimit(RLIMIT_NICE, &l), EPERM);
        }
        fails(setpriority(PRIO_PROCESS, 0, -5), EACCES);
        // Its own namespace's.
        ok(prctl(PR_CAPBSET_DROP, 20));
        ok(chroot(c("/").as_ptr()));
        fails(syscall(SYS_reboot, 0xfee1_deadu32, 672_274_793, 0x1234, 0), EPERM);
        // Without a map it owns nothing.
        fails(open(c("/etc/shadow").as_ptr(), O_RDONLY), EACCES);
    });
}

unsafe fn capabilities_over_files() {
    if !root() {
        return;
    }
    let tmp = Tmp::new();
    ok(chmod(c(&tmp.0.display().to_string()).as_ptr(), 0o777));
    let secret = tmp.file("secret", b"s");
    ok(chmod(secret.as_ptr(), 0o600));
    let theirs = tmp.file("theirs", b"t");
    ok(chown(theirs.as_ptr(), OTHER, OTHER));
    ok(chmod(theirs.as_ptr(), 0o600));
    let mixed = tmp.file("mixed", b"m");
    ok(chown(mixed.as_ptr(), USER, OTHER));
    ok(chmod(mixed.as_ptr(), 0));
    let own = tmp.file("own", b"o");
    ok(chown(own.as_ptr(), USER, USER));
    ok(chmod(own.as_ptr(), 0));
    let dir = tmp.p("dir");
    ok(mkdir(dir.as_ptr(), 0o700));
    in_child(|| {
        become_user(USER);
        enter_as(0);
        fails(open(secret.as_ptr(), O_RDONLY), EACCES);
        fails(open(theirs.as_ptr(), O_RDONLY), EACCES);
        fails(chmod(secret.as_ptr(), 0o644), EPERM);
        fails(chown(secret.as_ptr(), 0, 0), EPERM);
        fails(open(tmp.p("dir/x").as_ptr(), O_CREAT | O_WRONLY, 0o600), EACCES);
        fails(rmdir(tmp.p("dir/none").as_ptr()), EACCES);
        // Both ids must have a number: the group of this one has none.
        fails(open(mixed.as_ptr(), O_RDONLY), EACCES);
        ok(chmod(mixed.as_ptr(), 0o200));
        // Of its own all of them count.
        ok(open(own.as_ptr(), O_RDWR));
        ok(chown(own.as_ptr(), 0, 0));
        fails(utimensat(AT_FDCWD, secret.as_ptr(), [zeroed::<timespec>(); 2].as_ptr(), 0), EPERM);
        fails(setxattr(secret.as_ptr(), c("trusted.x").as_ptr(), b"1".as_ptr().cast(), 1, 0), EPERM);
        fails(setxattr(own.as_ptr(), c("trusted.x").as_ptr(), b"1".as_ptr().cast(), 1, 0), EPERM);
    });
    // Even if it is made by root, which maps itself to another.
    let child = Mapped::new(0, || {
        fails(open(theirs.as_ptr(), O_RDONLY), EACCES);
        fails(chown(secret.as_ptr(), 4, 4), EPERM);
        0
    });
    child.map("0 100000 10", "0 100000 10");
    child.ends();
}

unsafe fn files_of_others() {
    if !root() {
        return;
    }
    let tmp = Tmp::new();
    let sticky = tmp.p("sticky");
    ok(chmod(c(&tmp.0.display().to_string()).as_ptr(), 0o755));
    ok(mkdir(sticky.as_ptr(), 0o700));
    ok(chmod(sticky.as_ptr(), 0o1777));
    let theirs = tmp.file("sticky/theirs", b"t");
    ok(chown(theirs.as_ptr(), OTHER, OTHER));
    in_child(|| {
        become_user(USER);
        enter_as(0);
        fails(unlink(theirs.as_ptr()), EPERM);
        fails(rename(theirs.as_ptr(), tmp.p("sticky/mine").as_ptr()), EPERM);
        let f = ok(open(tmp.p("sticky/own").as_ptr(), O_CREAT | O_RDWR, 0o644));
        assert_eq!(fstat_of(f).st_uid, 0);
        ok(fchmod(f, 0o4755));
    });
    let st = stat_of(&tmp.p("sticky/own"));
    // Whatever it is inside, outside it is the user's.
    assert_eq!((st.st_uid, st.st_gid, st.st_mode & 0o7777), (USER, USER, 0o4755));
}

unsafe fn owners_and_modes() {
    if !root() {
        return;
    }
    let tmp = Tmp::new();
    ok(chmod(c(&tmp.0.display().to_string()).as_ptr(), 0o777));
    let child = Mapped::new(0, || {
        ok(setresgid(0, 0, 0));
        ok(setresuid(0, 0, 0));
        let f = tmp.file("f", b"f");
        ok(chmod(f.as_ptr(), 0o2755));
        assert_eq!(stat_of(&f).st_mode & 0o7777, 0o2755);
        // Its group is one that it is not in, but has a number: the capability keeps the bit.
        ok(chown(f.as_ptr(), 0, 5));
        ok(chmod(f.as_ptr(), 0o2755));
        assert_eq!(stat_of(&f).st_mode & 0o7777, 0o2755);
        fails(chown(f.as_ptr(), 2000, 0), EINVAL);
        0
    });
    child.map("0 100000 1000", "0 100000 1000");
    child.ends();
    assert_eq!(stat_of(&tmp.p("f")).st_gid, 100_005);
}

unsafe fn levels() {
    if !root() {
        return;
    }
    in_child(|| {
        let mut n = 0;
        loop {
            if unshare(NEWUSER) != 0 {
                assert_eq!(errno(), ENOSPC);
                break;
            }
            assert_eq!(write_to("/proc/self/uid_map", "0 0 1"), 0);
            // Denied below where it is denied once.
            assert_eq!(write_to("/proc/self/setgroups", "deny"), 0);
            assert_eq!(write_to("/proc/self/gid_map", "0 0 1"), 0);
            n += 1;
        }
        assert!((30..=33).contains(&n), "{n}");
        assert_eq!(getuid(), 0);
    });
    // The creator must have numbers in its own namespace.
    in_child(|| {
        ok(unshare(NEWUSER));
        fails(unshare(NEWUSER), EPERM);
    });
}

unsafe fn flags_and_threads() {
    if !root() {
        return;
    }
    fails(syscall(SYS_clone, NEWUSER | CLONE_FS | SIGCHLD, 0, 0, 0, 0), EINVAL);
    fails(syscall(SYS_clone, NEWUSER | CLONE_THREAD | CLONE_VM | CLONE_SIGHAND, 0, 0, 0, 0), EINVAL);
    in_child(|| {
        let t = std::thread::spawn(|| loop {
            pause();
        });
        fails(unshare(NEWUSER), EINVAL);
        let fd = ok(open(c("/proc/self/ns/user").as_ptr(), O_RDONLY));
        fails(setns(fd, NEWUSER), EINVAL);
        drop(t);
    });
}

unsafe fn not_in_a_chroot() {
    if !root() {
        return;
    }
    let tmp = Tmp::new();
    in_child(|| {
        ok(chroot(c(&tmp.0.display().to_string()).as_ptr()));
        fails(unshare(NEWUSER), EPERM);
        fails(syscall(SYS_clone, NEWUSER | SIGCHLD, 0, 0, 0, 0), EPERM);
    });
}

unsafe fn entering() {
    if !root() {
        return;
    }
    let (r, w) = pipe_pair();
    let holder = spawn(|| {
        become_user(USER);
        enter_as(0);
        put(w, b"x");
        loop {
            pause();
        }
    });
    get_all(r, 1);
    let path = c(&format!("/proc/{holder}/ns/user"));
    in_child(|| {
        let own = ok(open(c("/proc/self/ns/user").as_ptr(), O_RDONLY));
        fails(setns(own, 0), EINVAL);
        let fd = ok(open(path.as_ptr(), O_RDONLY));
        fails(setns(fd, CLONE_NEWNS), EINVAL);
        ok(setns(fd, NEWUSER));
        assert_eq!(getuid(), 65534);
        assert_eq!(caps()[2], caps()[3]);
        // Not up again: it has no capability there.
        fails(setns(own, NEWUSER), EPERM);
        fails(setns(fd, NEWUSER), EINVAL);
        ok(setuid(0));
    });
    in_child(|| {
        let fd = ok(open(path.as_ptr(), O_RDONLY));
        become_user(OTHER);
        fails(setns(fd, NEWUSER), EPERM);
    });
    in_child(|| {
        // The owner has all capabilities in it.
        let fd = ok(open(path.as_ptr(), O_RDONLY));
        become_user(USER);
        ok(setns(fd, NEWUSER));
        assert_eq!((getuid(), caps()[2]), (0, caps()[3]));
    });
    ok(kill(holder, SIGKILL));
    dies(holder, SIGKILL);
}

unsafe fn wait_info(sig: i32) -> siginfo_t {
    let mut info: siginfo_t = zeroed();
    let t = timespec { tv_sec: 5, tv_nsec: 0 };
    is(sigtimedwait(&set_of(&[sig]), &mut info, &t), sig.into());
    info
}

unsafe fn signals_and_ids() {
    if !root() {
        return;
    }
    block(&[SIGUSR1, SIGUSR2, SIGCHLD]);
    let me = getpid();
    let (r, w) = pipe_pair();
    let child = Mapped::new(0, || {
        put(w, b"x");
        assert_eq!(wait_info(SIGUSR1).si_uid(), 65534);
        // Its own id is the one of the map.
        ok(kill(getpid(), SIGUSR1));
        assert_eq!(wait_info(SIGUSR1).si_uid(), 8);
        ok(setresuid(0, 0, 0));
        0
    });
    child.map("8 0 1\n0 7000 1", "0 0 1");
    in_child(|| {
        // A sender without a number there.
        ok(setresuid(9999, 0, 0));
        ok(kill(child.pid, SIGUSR1));
    });
    wait_info(SIGCHLD);
    let pid = child.pid;
    put(child.go, b"x");
    get_all(r, 1);
    let died = wait_info(SIGCHLD);
    // A child that had the id 0 inside.
    assert_eq!((died.si_pid(), died.si_uid()), (pid, 7000));
    exits(pid, 0);
    // To outside: as it is known there.
    let child = Mapped::new(0, || {
        ok(setresuid(5, 0, 0));
        let r = kill(me, SIGUSR2);
        i32::from(r != -1 || errno() != EPERM)
    });
    child.map("0 7000 10", "0 7000 10");
    child.ends();
}

unsafe fn others_processes() {
    if !root() {
        return;
    }
    let victim = |id: u32| {
        let (r, w) = pipe_pair();
        let pid = spawn(|| {
            if id != 0 {
                become_user(id);
            }
            put(w, b"x");
            loop {
                pause();
            }
        });
        get_all(r, 1);
        pid
    };
    let (of_root, of_other, of_user) = (victim(0), victim(OTHER), victim(USER));
    in_child(|| {
        become_user(USER);
        enter_as(0);
        for pid in [of_root, of_other] {
            fails(kill(pid, SIGTERM), EPERM);
            fails(kill(pid, 0), EPERM);
            fails(syscall(SYS_sched_setaffinity, pid, 8, &1u64), EPERM);
            fails(setpriority(PRIO_PROCESS, pid as u32, 10), EPERM);
            let mut l: rlimit = zeroed();
            fails(prlimit(pid, RLIMIT_NOFILE, std::ptr::null(), &mut l), EPERM);
        }
        // The same user's, as ever.
        ok(kill(of_user, 0));
    });
    // The capability counts over those of the namespace, not above.
    let child = Mapped::new(0, || {
        ok(setresuid(0, 0, 0));
        fails(kill(of_other, 0), EPERM);
        let inside = spawn(|| {
            ok(setresuid(5, 5, 5));
            loop {
                pause();
            }
        });
        eventually("another user", || file(&format!("/proc/{inside}/status")).contains("Uid:\t5"));
        ok(kill(inside, SIGKILL));
        dies(inside, SIGKILL);
        0
    });
    child.map("0 100000 10", "0 100000 10");
    child.ends();
    for pid in [of_root, of_other, of_user] {
        ok(kill(pid, SIGKILL));
        dies(pid, SIGKILL);
    }
}

unsafe fn looking_into_others() {
    if !root() {
        return;
    }
    let (r, w) = pipe_pair();
    let secret = spawn(|| {
        become_user(USER);
        put(w, b"x");
        loop {
            pause();
        }
    });
    get_all(r, 1);
    let maps = format!("/proc/{secret}/maps");
    let root_of = c(&format!("/proc/{}/root", getpid()));
    in_child(|| {
        become_user(USER);
        ok(open(c(&maps).as_ptr(), O_RDONLY));
        enter_as(0);
        // A process of the same user in the namespace above has not fewer rights.
        fails(open(c(&maps).as_ptr(), O_RDONLY), EACCES);
        fails(open(c(&format!("/proc/{secret}/environ")).as_ptr(), O_RDONLY), EACCES);
        let mut b = [0u8; 8];
        let local = iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 8 };
        fails(process_vm_readv(secret, &local, 1, &local, 1, 0), EPERM);
        fails(open(root_of.as_ptr(), O_PATH), EACCES);
        let fd = ok(syscall(SYS_pidfd_open, secret, 0)) as i32;
        fails(syscall(SYS_pidfd_getfd, fd, 0, 0), EPERM);
    });
    ok(kill(secret, SIGKILL));
    dies(secret, SIGKILL);
    // Downwards it works.
    in_child(|| {
        become_user(USER);
        let child = Mapped::new(0, || 0);
        ok(open(c(&child.path("maps")).as_ptr(), O_RDONLY));
        child.ends();
    });
}

unsafe fn dumpable() {
    if !root() {
        return;
    }
    in_child(|| {
        become_user(USER);
        is(prctl(PR_GET_DUMPABLE), 1);
        // All capabilities in a namespace of its own are no gain.
        ok(unshare(NEWUSER));
        is(prctl(PR_GET_DUMPABLE), 1);
        assert_eq!(stat_of(&c("/proc/self/uid_map")).st_uid, 65534);
        assert_eq!(write_to("/proc/self/uid_map", "0 1234 1"), 0);
        assert_eq!(stat_of(&c("/proc/self/uid_map")).st_uid, 0);
    });
}

unsafe fn run_helper(exe: &CString, what: &[&str], out: i32) -> i32 {
    let pid = spawn(|| {
        dup2(out, 1);
        let args: Vec<_> = [exe.clone(), c("helper")].into_iter().chain(what.iter().map(|s| c(s))).collect();
        let ptrs: Vec<_> = args.iter().map(|a| a.as_ptr()).chain([std::ptr::null()]).collect();
        execv(exe.as_ptr(), ptrs.as_ptr());
        errno()
    });
    WEXITSTATUS(reap(pid))
}

/// A copy of this program.
unsafe fn program(tmp: &Tmp, name: &str, owner: u32, mode: u32) -> CString {
    std::fs::copy(std::env::current_exe().unwrap(), tmp.s(name)).unwrap();
    ok(chown(tmp.p(name).as_ptr(), owner, owner));
    ok(chmod(tmp.p(name).as_ptr(), mode));
    tmp.p(name)
}

unsafe fn set_id_programs() {
    if !root() {
        return;
    }
    let tmp = Tmp::new();
    ok(chmod(c(&tmp.0.display().to_string()).as_ptr(), 0o755));
    let of_root = program(&tmp, "root", 0, 0o4755);
    let of_other = program(&tmp, "other", 100_005, 0o4755);
    let (r, w) = pipe_pair();
    let ids = |exe: &CString| {
        assert_eq!(run_helper(exe, &["ids"], w), 0);
        let text = String::from_utf8(get(r, 100)).unwrap();
        text.split(" pid").next().unwrap().to_owned()
    };
    in_child(|| {
        become_user(USER);
        enter_as(0);
        // The owner has no number here: the bit does not count.
        assert_eq!(ids(&of_root), "0 0 0");
        assert_eq!(ids(&of_other), "0 0 0");
    });
    let child = Mapped::new(0, || {
        ok(setresgid(3, 3, 3));
        ok(setresuid(3, 3, 3));
        assert_eq!(ids(&of_other), "3 5 5");
        assert_eq!(ids(&of_root), "3 3 3");
        0
    });
    child.map("0 100000 10", "0 100000 10");
    child.ends();
    // And the group must have a number as well.
    ok(chown(of_other.as_ptr(), 100_005, 0));
    ok(chmod(of_other.as_ptr(), 0o4755));
    let child = Mapped::new(0, || {
        ok(setresuid(3, 3, 3));
        assert_eq!(ids(&of_other), "3 3 3");
        0
    });
    child.map("0 100000 10", "0 100000 10");
    child.ends();
}

/// `struct vfs_cap_data` with CAP_NET_RAW, permitted and effective.
fn cap_bytes(version: u32, rootid: Option<u32>) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [version << 24 | 1, 1 << 13, 0, 0, 0].into_iter().chain(rootid) {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out
}

unsafe fn read_caps(path: &CString) -> Result<Vec<u8>, i32> {
    let mut b = [0u8; 64];
    let n = getxattr(path.as_ptr(), c("security.capability").as_ptr(), b.as_mut_ptr().cast(), b.len());
    if n < 0 {
        Err(errno())
    } else {
        Ok(b[..n as usize].to_vec())
    }
}

unsafe fn write_caps(path: &CString, v: &[u8]) -> i32 {
    setxattr(path.as_ptr(), c("security.capability").as_ptr(), v.as_ptr().cast(), v.len(), 0)
}

unsafe fn file_capabilities() {
    if !root() {
        return;
    }
    let tmp = Tmp::new();
    ok(chmod(c(&tmp.0.display().to_string()).as_ptr(), 0o755));
    let exe = program(&tmp, "exe", 100_000, 0o755);
    let of_root = program(&tmp, "of_root", 0, 0o755);
    let child = Mapped::new(0, || {
        ok(setresgid(0, 0, 0));
        ok(setresuid(0, 0, 0));
        // Not on a file of others.
        fails(write_caps(&of_root, &cap_bytes(2, None)), EPERM);
        fails(write_caps(&exe, &cap_bytes(2, None)[..12]), EINVAL);
        ok(write_caps(&exe, &cap_bytes(2, None)));
        // Inside it looks as it was written.
        assert_eq!(read_caps(&exe), Ok(cap_bytes(2, None)));
        // And counts: a user of the namespace gets it, in the namespace.
        ok(setresuid(5, 5, 5));
        let (r, w) = pipe_pair();
        let pid = spawn(|| {
            dup2(w, 1);
            execl(
                exe.as_ptr(),
                c("exe").as_ptr(),
                c("helper").as_ptr(),
                c("caps").as_ptr(),
                std::ptr::null::<c_char>(),
            );
            errno()
        });
        exits(pid, 0);
        assert_eq!(String::from_utf8(get(r, 200)).unwrap().trim(), "2000");
        0
    });
    child.map("0 100000 10", "0 100000 10");
    child.ends();
    // Outside it belongs to user 100000.
    assert_eq!(read_caps(&exe), Ok(cap_bytes(3, Some(100_000))));
    in_child(|| {
        become_user(USER);
        let (r, w) = pipe_pair();
        let pid = spawn(|| {
            dup2(w, 1);
            execl(
                exe.as_ptr(),
                c("exe").as_ptr(),
                c("helper").as_ptr(),
                c("caps").as_ptr(),
                std::ptr::null::<c_char>(),
            );
            errno()
        });
        exits(pid, 0);
        assert_eq!(String::from_utf8(get(r, 200)).unwrap().trim(), "0");
    });
    // Another namespace does not see what is not its own.
    let child = Mapped::new(0, || {
        assert_eq!(read_caps(&exe), Err(EOVERFLOW));
        0
    });
    child.map("0 200000 10", "0 200000 10");
    child.ends();
}

unsafe fn access_lists() {
    if !root() {
        return;
    }
    let tmp = Tmp::new();
    ok(chmod(c(&tmp.0.display().to_string()).as_ptr(), 0o777));
    let list = |user: u32| {
        let mut b = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in
            [(1u16, 6u16, u32::MAX), (2, 4, user), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
        {
            b.extend_from_slice(&tag.to_le_bytes());
            b.extend_from_slice(&perm.to_le_bytes());
            b.extend_from_slice(&id.to_le_bytes());
        }
        b
    };
    let name = c("system.posix_acl_access");
    let read_list = |f: &CString| {
        let mut b = [0u8; 64];
        let n = ok(getxattr(f.as_ptr(), name.as_ptr(), b.as_mut_ptr().cast(), 64));
        b[..n as usize].to_vec()
    };
    let child = Mapped::new(0, || {
        ok(setresgid(0, 0, 0));
        ok(setresuid(0, 0, 0));
        let f = tmp.file("f", b"x");
        let v = list(5);
        if setxattr(f.as_ptr(), name.as_ptr(), v.as_ptr().cast(), v.len(), 0) != 0 {
            // A file system without lists.
            assert_eq!(errno(), EOPNOTSUPP);
            return 0;
        }
        assert_eq!(read_list(&f), v);
        let v = list(77);
        fails(setxattr(f.as_ptr(), name.as_ptr(), v.as_ptr().cast(), v.len(), 0), EINVAL);
        0
    });
    child.map("0 100000 10", "0 100000 10");
    child.ends();
    let mut b = [0u8; 64];
    if getxattr(tmp.p("f").as_ptr(), name.as_ptr(), b.as_mut_ptr().cast(), 64) > 0 {
        assert_eq!(read_list(&tmp.p("f")), list(100_005));
    }
}

unsafe fn cred_of_message(fd: i32) -> ucred {
    let (mut b, mut control) = ([0u8; 16], [0u64; 16]);
    let mut iov = iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() };
    let mut m: msghdr = zeroed();
    (m.msg_iov, m.msg_iovlen) = (&mut iov, 1);
    (m.msg_control, m.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    ok(recvmsg(fd, &mut m, 0));
    let h = CMSG_FIRSTHDR(&m);
    assert!(!h.is_null() && (*h).cmsg_type == SCM_CREDENTIALS);
    std::ptr::read_unaligned(CMSG_DATA(h).cast())
}

unsafe fn send_as(fd: i32, uid: u32, gid: u32) -> isize {
    let (mut b, mut control) = ([b'm'], [0u64; 8]);
    let mut iov = iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 1 };
    let mut m: msghdr = zeroed();
    (m.msg_iov, m.msg_iovlen) = (&mut iov, 1);
    m.msg_control = control.as_mut_ptr().cast();
    m.msg_controllen = CMSG_SPACE(size_of::<ucred>() as u32) as usize;
    let h = CMSG_FIRSTHDR(&m);
    ((*h).cmsg_level, (*h).cmsg_type) = (SOL_SOCKET, SCM_CREDENTIALS);
    (*h).cmsg_len = CMSG_LEN(size_of::<ucred>() as u32) as usize;
    std::ptr::write_unaligned(CMSG_DATA(h).cast(), ucred { pid: getpid(), uid, gid });
    sendmsg(fd, &m, 0)
}

unsafe fn credentials_in_messages() {
    if !root() {
        return;
    }
    let on = 1i32;
    let mut s = [0; 2];
    ok(socketpair(AF_UNIX, SOCK_DGRAM, 0, s.as_mut_ptr()));
    for fd in s {
        ok(setsockopt(fd, SOL_SOCKET, SO_PASSCRED, (&raw const on).cast(), 4));
    }
    put(s[0], b"x");
    ok(send_as(s[0], 100_004, 100_005));
    let child = Mapped::new(0, || {
        ok(setresgid(0, 0, 0));
        ok(setresuid(0, 0, 0));
        // Root of outside, and one that has a number here.
        let u = cred_of_message(s[1]);
        assert_eq!((u.uid, u.gid), (65534, 65534));
        let u = cred_of_message(s[1]);
        assert_eq!((u.uid, u.gid), (4, 5));
        put(s[1], b"y");
        ok(send_as(s[1], 6, 7));
        fails(send_as(s[1], 1234, 0), EINVAL);
        let mut u: ucred = zeroed();
        let mut len = size_of::<ucred>() as u32;
        ok(getsockopt(s[1], SOL_SOCKET, SO_PEERCRED, (&raw mut u).cast(), &mut len));
        assert_eq!((u.uid, u.gid), (65534, 65534));
        ok(setresuid(3, 3, 3));
        fails(send_as(s[1], 0, 0), EPERM);
        0
    });
    child.map("0 100000 10", "0 100000 10");
    child.ends();
    let u = cred_of_message(s[0]);
    assert_eq!((u.uid, u.gid), (100_000, 100_000));
    let u = cred_of_message(s[0]);
    assert_eq!((u.uid, u.gid), (100_006, 100_007));
}

unsafe fn ids_of_ipc_objects() {
    if !root() {
        return;
    }
    let theirs = ok(msgget(IPC_PRIVATE, 0o600));
    let child = Mapped::new(0, || {
        ok(setresgid(0, 0, 0));
        ok(setresuid(0, 0, 0));
        let mut q: msqid_ds = zeroed();
        // Root here is not root of the namespace of the objects.
        fails(msgctl(theirs, IPC_STAT, &mut q), EACCES);
        fails(msgctl(theirs, IPC_RMID, &mut q), EPERM);
        let id = ok(msgget(IPC_PRIVATE, 0o600));
        ok(msgctl(id, IPC_STAT, &mut q));
        assert_eq!((q.msg_perm.uid, q.msg_perm.cgid), (0, 0));
        q.msg_perm.uid = 4;
        ok(msgctl(id, IPC_SET, &mut q));
        ok(msgctl(id, IPC_STAT, &mut q));
        assert_eq!((q.msg_perm.uid, q.msg_perm.cuid), (4, 0));
        q.msg_perm.uid = 4000;
        fails(msgctl(id, IPC_SET, &mut q), EINVAL);
        ok(msgctl(id, IPC_RMID, &mut q));
        // In a namespace of its own it is.
        ok(unshare(CLONE_NEWIPC));
        let id = ok(msgget(IPC_PRIVATE, 0));
        ok(setresuid(0, 5, 0));
        fails(msgctl(id, IPC_STAT, &mut q), EACCES);
        ok(setresuid(0, 0, 0));
        ok(msgctl(id, IPC_STAT, &mut q));
        0
    });
    child.map("0 100000 10", "0 100000 10");
    child.ends();
    ok(msgctl(theirs, IPC_RMID, std::ptr::null_mut()));
}

unsafe fn supplementary_groups() {
    if !root() {
        return;
    }
    let tmp = Tmp::new();
    ok(chmod(c(&tmp.0.display().to_string()).as_ptr(), 0o755));
    let f = tmp.file("f", b"x");
    ok(chown(f.as_ptr(), 0, 77));
    ok(chmod(f.as_ptr(), 0o604));
    in_child(|| {
        // Membership may take a right away: it cannot be given up in a namespace of one's own.
        ok(setgroups(1, [77].as_ptr()));
        ok(setresgid(USER, USER, USER));
        ok(setresuid(USER, USER, USER));
        ok(prctl(PR_SET_DUMPABLE, 1));
        fails(open(f.as_ptr(), O_RDONLY), EACCES);
        enter_as(0);
        fails(setgroups(0, std::ptr::null()), EPERM);
        fails(open(f.as_ptr(), O_RDONLY), EACCES);
    });
}

unsafe fn namespaces_of_a_user() {
    if !root() {
        return;
    }
    in_child(|| {
        become_user(USER);
        // What needs a capability in the initial namespace, and what one in a new one.
        for flag in [CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWCGROUP] {
            fails(unshare(flag), EPERM);
        }
        in_child(|| {
            ok(unshare(NEWUSER | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID));
            ok(sethostname(c("a").as_ptr(), 1));
            exits(spawn(|| getpid()), 1);
            fails(
                mount(c("x").as_ptr(), c("/proc").as_ptr(), c("tmpfs").as_ptr(), MS_REMOUNT, std::ptr::null()),
                EPERM,
            );
        });
        let pid = syscall(SYS_clone, NEWUSER | CLONE_NEWPID | CLONE_NEWNET | SIGCHLD, 0, 0, 0, 0) as pid_t;
        if pid == 0 {
            _exit(i32::from(getpid() != 1 || getuid() != 65534));
        }
        exits(pid, 0);
    });
}

unsafe fn priorities() {
    if !root() {
        return;
    }
    in_child(|| {
        become_user(USER);
        enter_as(0);
        ok(setpriority(PRIO_PROCESS, 0, 5));
        fails(setpriority(PRIO_PROCESS, 0, 1), EACCES);
        // The ids of PRIO_USER are those of here.
        is(getpriority(PRIO_USER, 0), 5);
        fails(getpriority(PRIO_USER, 1234), ESRCH);
    });
}

unsafe fn securebits_are_fresh() {
    if !root() {
        return;
    }
    in_child(|| {
        const NOROOT: c_ulong = 1;
        ok(prctl(PR_SET_SECUREBITS, NOROOT));
        ok(unshare(NEWUSER));
        is(prctl(PR_GET_SECUREBITS), 0);
        ok(prctl(PR_SET_SECUREBITS, NOROOT));
        is(prctl(PR_GET_SECUREBITS), 1);
        ok(prctl(PR_SET_KEEPCAPS, 1));
    });
}

unsafe fn no_new_privs_stays() {
    if !root() {
        return;
    }
    let tmp = Tmp::new();
    ok(chmod(c(&tmp.0.display().to_string()).as_ptr(), 0o755));
    let exe = program(&tmp, "exe", 100_005, 0o4755);
    let child = Mapped::new(0, || {
        ok(setresgid(3, 3, 3));
        ok(setresuid(3, 3, 3));
        ok(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        let (r, w) = pipe_pair();
        assert_eq!(run_helper(&exe, &["ids"], w), 0);
        let text = String::from_utf8(get(r, 100)).unwrap();
        i32::from(!text.starts_with("3 3 3 "))
    });
    child.map("0 100000 10", "0 100000 10");
    child.ends();
}

unsafe fn owner_from_outside() {
    if !root() {
        return;
    }
    // Processes of other ids in a namespace that a user owns are that user's to end.
    in_child(|| {
        let (r, w) = pipe_pair();
        let (go, gone) = pipe_pair();
        let root_pid = getpid();
        let owner = spawn(|| {
            become_user(USER);
            let child = Mapped::new(0, || {
                ok(setresgid(4, 4, 4));
                ok(setresuid(4, 4, 4));
                put(w, b"x");
                loop {
                    pause();
                }
            });
            put(w, &child.pid.to_ne_bytes());
            get_all(go, 1);
            put(child.go, b"x");
            get_all(go, 1);
            ok(kill(child.pid, SIGTERM));
            dies(child.pid, SIGTERM);
            fails(kill(root_pid, 0), EPERM);
            0
        });
        let child = i32::from_ne_bytes(get_all(r, 4).try_into().unwrap());
        assert_eq!(write_to(&format!("/proc/{child}/uid_map"), "0 100000 10"), 0);
        assert_eq!(write_to(&format!("/proc/{child}/gid_map"), "0 100000 10"), 0);
        put(gone, b"x");
        get_all(r, 1);
        put(gone, b"x");
        exits(owner, 0);
    });
}

unsafe fn limits_of_processes() {
    if !root() {
        return;
    }
    in_child(|| {
        become_user(USER);
        enter_as(0);
        // Root inside is not free of it: what counts is the user.
        let l = rlimit { rlim_cur: 1, rlim_max: 1 };
        ok(setrlimit(RLIMIT_NPROC, &l));
        fails(fork(), EAGAIN);
    });
}
