//! unshare(2), setns(2), clone(2) with namespaces of the kinds mount, UTS, IPC, network and cgroup; their files
//! (ioctl_ns(2)).

use super::*;
use std::fs::read_link;
use std::os::unix::fs::MetadataExt;

pub const CASES: &[crate::Case] = cases![
    links,
    unshared,
    cloned,
    entered,
    entered_by_pidfd,
    flags,
    not_allowed,
    uts,
    ipc_objects,
    ipc_queues,
    network,
    unix_names,
    mount_copy,
    mount_entered,
    kept_by_a_file,
    kept_by_a_mount,
    no_loops,
    requests,
    ends_with_its_mounts,
    set_id_of_another,
    others_mounts_hold_nothing_up,
    no_way_out_of_a_part,
];

const KINDS: [(&str, c_int); 5] = [
    ("mnt", CLONE_NEWNS),
    ("uts", CLONE_NEWUTS),
    ("ipc", CLONE_NEWIPC),
    ("net", CLONE_NEWNET),
    ("cgroup", CLONE_NEWCGROUP),
];

fn own(kind: &str) -> String {
    read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

unsafe fn ns_fd(of: &str, kind: &str) -> i32 {
    ok(open(c(&format!("/proc/{of}/ns/{kind}")).as_ptr(), O_RDONLY | O_CLOEXEC))
}

unsafe fn setns_fd(fd: i32, flags: c_int) -> i32 {
    syscall(SYS_setns, fd, flags) as i32
}

/// Runs `f` as root in a child.
unsafe fn as_root(f: impl FnOnce()) {
    if root() {
        in_child(f);
    }
}

unsafe fn links() {
    let names: Vec<String> =
        std::fs::read_dir("/proc/self/ns").unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    for (kind, _) in KINDS {
        assert!(names.iter().any(|n| n == kind), "{kind}");
        let text = own(kind);
        let number: u64 = text.strip_prefix(&format!("{kind}:[")).unwrap().strip_suffix(']').unwrap().parse().unwrap();
        let meta = std::fs::metadata(format!("/proc/self/ns/{kind}")).unwrap();
        assert_eq!(meta.ino(), number);
        assert_eq!(meta.mode(), S_IFREG | 0o444);
        let fd = ns_fd("self", kind);
        assert_eq!(fstat_of(fd).st_ino, number);
        assert_eq!(fstat_of(fd).st_dev, meta.dev());
        let shown = read_link(format!("/proc/self/fd/{fd}")).unwrap();
        assert_eq!(shown.display().to_string(), text);
        let mut fs: statfs = zeroed();
        ok(fstatfs(fd, &mut fs));
        assert_eq!(fs.f_type, 0x6e736673);
        let mut b = [0u8; 8];
        fails(read(fd, b.as_mut_ptr().cast(), 8), EINVAL);
    }
}

unsafe fn unshared() {
    as_root(|| {
        for (kind, flag) in KINDS {
            let before = own(kind);
            let others: Vec<String> = KINDS.iter().filter(|k| k.0 != kind).map(|k| own(k.0)).collect();
            ok(unshare(flag));
            assert_ne!(own(kind), before, "{kind}");
            let now: Vec<String> = KINDS.iter().filter(|k| k.0 != kind).map(|k| own(k.0)).collect();
            assert_eq!(now, others);
        }
        // Children are in the same ones.
        let mine: Vec<String> = KINDS.iter().map(|k| own(k.0)).collect();
        in_child(|| assert_eq!(KINDS.iter().map(|k| own(k.0)).collect::<Vec<_>>(), mine));
        ok(unshare(KINDS.iter().fold(0, |f, k| f | k.1)));
        assert!(KINDS.iter().zip(&mine).all(|(k, was)| own(k.0) != *was));
    });
}

unsafe fn cloned() {
    as_root(|| {
        for (kind, flag) in KINDS {
            let before = own(kind);
            let child = ok(syscall(SYS_clone, flag | SIGCHLD, 0, 0, 0, 0)) as i32;
            if child == 0 {
                _exit(i32::from(own(kind) == before));
            }
            exits(child, 0);
            assert_eq!(own(kind), before);
        }
        fails(syscall(SYS_clone, CLONE_NEWNS | CLONE_FS | SIGCHLD, 0, 0, 0, 0), EINVAL);
        fails(syscall(SYS_clone, CLONE_NEWIPC | CLONE_SYSVSEM | SIGCHLD, 0, 0, 0, 0), EINVAL);
    });
}

unsafe fn entered() {
    as_root(|| {
        for (kind, flag) in KINDS {
            let home = ns_fd("self", kind);
            let text = own(kind);
            ok(unshare(flag));
            let other = own(kind);
            let fd = ns_fd("self", kind);
            ok(setns_fd(home, flag));
            assert_eq!(own(kind), text);
            ok(setns_fd(fd, 0));
            assert_eq!(own(kind), other);
            fails(setns_fd(fd, if flag == CLONE_NEWUTS { CLONE_NEWIPC } else { CLONE_NEWUTS }), EINVAL);
            fails(setns_fd(fd, flag | CLONE_NEWUSER), EINVAL);
            ok(setns_fd(home, 0));
            ok(close(fd));
            ok(close(home));
        }
        fails(setns_fd(-1, 0), EBADF);
        fails(setns_fd(ok(open(c("/").as_ptr(), O_RDONLY)), 0), EINVAL);
        fails(setns_fd(ok(open(c("/proc/self/ns/uts").as_ptr(), O_PATH)), 0), EBADF);
    });
}

unsafe fn entered_by_pidfd() {
    as_root(|| {
        let (up, down) = (pipe_pair(), pipe_pair());
        let child = spawn(|| {
            ok(unshare(CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNS));
            ok(sethostname(c("inside").as_ptr(), 6));
            put(up.1, b"x");
            get_all(down.0, 1);
            0
        });
        get_all(up.0, 1);
        let fd = ok(syscall(SYS_pidfd_open, child, 0)) as i32;
        fails(setns_fd(fd, 0), EINVAL);
        fails(setns_fd(fd, CLONE_FS), EINVAL);
        ok(setns_fd(fd, CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNS | CLONE_NEWNET));
        for kind in ["uts", "ipc", "mnt", "net"] {
            let its = read_link(format!("/proc/{child}/ns/{kind}")).unwrap().display().to_string();
            assert_eq!(own(kind), its);
        }
        assert_eq!(hostname(), "inside");
        put(down.1, b"x");
        exits(child, 0);
        fails(setns_fd(fd, CLONE_NEWUTS), ESRCH);
    });
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

unsafe fn flags() {
    fails(unshare(1), EINVAL);
    fails(syscall(SYS_unshare, 1u64 << 40), EINVAL);
    ok(unshare(0));
    as_root(|| {
        // Root and working directory of a task with new mounts are its own.
        let fs = own("mnt");
        std::thread::spawn(move || unsafe {
            ok(unshare(CLONE_NEWNS));
            let mine = read_link("/proc/thread-self/ns/mnt").unwrap().display().to_string();
            assert_ne!(mine, fs);
            ok(chdir(c("/proc").as_ptr()));
        })
        .join()
        .unwrap();
        assert_ne!(std::env::current_dir().unwrap().display().to_string(), "/proc");
    });
}

unsafe fn not_allowed() {
    as_root(|| {
        let fds: Vec<i32> = KINDS.iter().map(|k| ns_fd("self", k.0)).collect();
        ok(setuid(1234));
        for ((_, flag), fd) in KINDS.iter().zip(fds) {
            fails(unshare(*flag), EPERM);
            fails(setns_fd(fd, 0), EPERM);
            fails(syscall(SYS_clone, flag | SIGCHLD, 0, 0, 0, 0), EPERM);
        }
    });
}

unsafe fn uts() {
    as_root(|| {
        let before = hostname();
        in_child(|| {
            ok(unshare(CLONE_NEWUTS));
            assert_eq!(hostname(), before);
            ok(sethostname(c("other").as_ptr(), 5));
            ok(setdomainname(c("domain").as_ptr(), 6));
            let mut u: utsname = zeroed();
            ok(uname(&mut u));
            assert_eq!(std::ffi::CStr::from_ptr(u.nodename.as_ptr()).to_bytes(), b"other");
            assert_eq!(std::ffi::CStr::from_ptr(u.domainname.as_ptr()).to_bytes(), b"domain");
            std::fs::write("/proc/sys/kernel/hostname", "third\n").unwrap();
            assert_eq!(hostname(), "third");
        });
        assert_eq!(hostname(), before);
    });
}

unsafe fn ipc_objects() {
    as_root(|| {
        const KEY: key_t = 0x5eed_0001;
        ok(unshare(CLONE_NEWIPC));
        let q = ok(msgget(KEY, IPC_CREAT | 0o600));
        let s = ok(semget(KEY, 1, IPC_CREAT | 0o600));
        let m = ok(shmget(KEY, 4096, IPC_CREAT | 0o600));
        let at = shmat(m, null(), 0);
        ok(at);
        in_child(|| {
            ok(unshare(CLONE_NEWIPC));
            fails(msgget(KEY, 0), ENOENT);
            fails(semget(KEY, 1, 0), ENOENT);
            fails(shmget(KEY, 4096, 0), ENOENT);
            is(ok(msgget(KEY, IPC_CREAT | 0o600)), 0);
            assert_eq!(std::fs::read_to_string("/proc/sysvipc/msg").unwrap().lines().count(), 2);
            // A segment that is attached is there all the same.
            fails(shmctl(m, IPC_STAT, std::ptr::null_mut()), EINVAL);
            std::fs::write("/proc/sys/kernel/shmmax", "4000").unwrap();
        });
        assert_ne!(std::fs::read_to_string("/proc/sys/kernel/shmmax").unwrap().trim(), "4000");
        is(ok(msgget(KEY, 0)), q.into());
        is(ok(semget(KEY, 1, 0)), s.into());
        // Adjustments are made when the process leaves.
        let mut op = sembuf { sem_num: 0, sem_op: 3, sem_flg: SEM_UNDO as i16 };
        in_child(|| {
            ok(semop(s, &mut op, 1));
            is(semctl(s, 0, GETVAL), 3);
            ok(unshare(CLONE_NEWIPC));
            put(1, b"");
        });
        is(semctl(s, 0, GETVAL), 0);
    });
}

unsafe fn ipc_queues() {
    as_root(|| {
        let name = c("guest-tests-ns");
        ok(unshare(CLONE_NEWIPC));
        let open_q = |f: c_int| syscall(SYS_mq_open, name.as_ptr(), f, 0o600, 0);
        ok(open_q(O_CREAT | O_RDWR));
        in_child(|| {
            ok(unshare(CLONE_NEWIPC));
            fails(open_q(O_RDWR), ENOENT);
        });
        ok(open_q(O_RDWR));
        alone(|| {
            dir("q");
            ok(mount(c("none").as_ptr(), c("q").as_ptr(), c("mqueue").as_ptr(), 0, null()));
            assert_eq!(stat_of(&c("q")).st_mode, S_IFDIR | 0o1777);
            let text = std::fs::read_to_string("q/guest-tests-ns").unwrap();
            assert_eq!(text.split_whitespace().next(), Some("QSIZE:0"));
            file("q/made");
            ok(syscall(SYS_mq_open, c("made").as_ptr(), O_RDWR, 0, 0));
            ok(unlink(c("q/made").as_ptr()));
            fails(syscall(SYS_mq_open, c("made").as_ptr(), O_RDWR, 0, 0), ENOENT);
            fails(mkdir(c("q/d").as_ptr(), 0o700), EPERM);
        });
        ok(syscall(SYS_mq_unlink, name.as_ptr()));
    });
}

unsafe fn flags_of_lo(s: i32) -> u32 {
    let mut req: ifreq = zeroed();
    req.ifr_name[0] = b'l' as c_char;
    req.ifr_name[1] = b'o' as c_char;
    ok(ioctl(s, SIOCGIFFLAGS, &mut req));
    req.ifr_ifru.ifru_flags as u16 as u32
}

unsafe fn network() {
    as_root(|| {
        let first = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        ok(unshare(CLONE_NEWNET));
        let s = ok(socket(AF_INET, SOCK_DGRAM, 0));
        assert_eq!(flags_of_lo(s) & (IFF_UP | IFF_RUNNING) as u32, 0);
        let e = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(ENETUNREACH));
        let mut req: ifreq = zeroed();
        req.ifr_name[0] = b'l' as c_char;
        req.ifr_name[1] = b'o' as c_char;
        req.ifr_ifru.ifru_flags = IFF_UP as i16;
        ok(ioctl(s, SIOCSIFFLAGS, &mut req));
        assert_ne!(flags_of_lo(s) & IFF_UP as u32, 0);
        // Up, and with ports of its own.
        let e = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(ECONNREFUSED));
        let own = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        own.accept().unwrap();
        drop((first, own));
        let dev = std::fs::read_to_string("/proc/net/dev").unwrap();
        assert_eq!(dev.lines().skip(2).map(|l| l.split(':').next().unwrap().trim()).collect::<Vec<_>>(), ["lo"]);
        // A socket stays where it was made.
        in_child(|| {
            let s = ok(socket(AF_INET, SOCK_DGRAM, 0));
            ok(unshare(CLONE_NEWNET));
            assert_ne!(flags_of_lo(s) & IFF_UP as u32, 0);
            ok(setuid(1234));
            let s = ok(socket(AF_INET, SOCK_DGRAM, 0));
            fails(ioctl(s, SIOCSIFFLAGS, &mut req), EPERM);
        });
    });
}

unsafe fn unix_names() {
    as_root(|| {
        let name = |kind: c_int| {
            let s = ok(socket(AF_UNIX, kind, 0));
            let mut a: sockaddr_un = zeroed();
            a.sun_family = AF_UNIX as u16;
            for (to, from) in a.sun_path.iter_mut().skip(1).zip(b"guest-tests-ns") {
                *to = *from as c_char;
            }
            (s, a)
        };
        let len = 2 + 1 + 14;
        let (s, a) = name(SOCK_STREAM);
        ok(bind_to(s, &a, len));
        ok(listen(s, 1));
        in_child(|| {
            ok(unshare(CLONE_NEWNET));
            let (t, a) = name(SOCK_STREAM);
            fails(connect(t, (&raw const a).cast(), len), ECONNREFUSED);
            ok(bind_to(t, &a, len));
        });
        let (t, a) = name(SOCK_STREAM);
        ok(connect(t, (&raw const a).cast(), len));
    });
}

unsafe fn bind_to(s: i32, a: &sockaddr_un, len: u32) -> i32 {
    libc::bind(s, (a as *const sockaddr_un).cast(), len)
}

unsafe fn mount_copy() {
    alone(|| {
        dir("a");
        let (up, down) = (pipe_pair(), pipe_pair());
        let child = spawn(|| {
            ok(unshare(CLONE_NEWNS));
            // The working directory is the same place.
            assert!(exists("a"));
            tmpfs("a");
            file("a/inner");
            shows(". a");
            put(up.1, b"x");
            get_all(down.0, 1);
            0
        });
        get_all(up.0, 1);
        assert!(!exists("a/inner"));
        shows(".");
        assert!(exists(&format!("/proc/{child}/cwd/a/inner")));
        put(down.1, b"x");
        exits(child, 0);
    });
}

unsafe fn mount_entered() {
    alone(|| {
        let here = std::env::current_dir().unwrap();
        let home = ns_fd("self", "mnt");
        ok(unshare(CLONE_NEWNS));
        dir("a");
        tmpfs("a");
        let fd = ns_fd("self", "mnt");
        ok(setns_fd(home, CLONE_NEWNS));
        assert_eq!(std::env::current_dir().unwrap().display().to_string(), "/");
        ok(chdir(c(here.to_str().unwrap()).as_ptr()));
        shows(".");
        ok(setns_fd(fd, CLONE_NEWNS));
        ok(chdir(c(here.to_str().unwrap()).as_ptr()));
        shows(". a");
        // Not while others have the same root and working directory.
        std::thread::spawn(move || unsafe { fails(setns_fd(home, CLONE_NEWNS), EINVAL) }).join().unwrap();
    });
}

unsafe fn kept_by_a_file() {
    as_root(|| {
        let (up, down) = (pipe_pair(), pipe_pair());
        let child = spawn(|| {
            ok(unshare(CLONE_NEWUTS));
            ok(sethostname(c("kept").as_ptr(), 4));
            put(up.1, b"x");
            get_all(down.0, 1);
            0
        });
        get_all(up.0, 1);
        let fd = ns_fd(&child.to_string(), "uts");
        put(down.1, b"x");
        exits(child, 0);
        ok(setns_fd(fd, 0));
        assert_eq!(hostname(), "kept");
    });
}

unsafe fn kept_by_a_mount() {
    alone(|| {
        file("f");
        let first = own("uts");
        let (up, down) = (pipe_pair(), pipe_pair());
        let child = spawn(|| {
            ok(unshare(CLONE_NEWUTS));
            ok(sethostname(c("kept").as_ptr(), 4));
            put(up.1, b"x");
            get_all(down.0, 1);
            0
        });
        get_all(up.0, 1);
        bind(&format!("/proc/{child}/ns/uts"), "f");
        put(down.1, b"x");
        exits(child, 0);
        let line = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = line.lines().last().unwrap().split(' ').collect::<Vec<_>>();
        assert!(line[3].starts_with("uts:["), "{line:?}");
        assert_eq!(line[line.len() - 3..line.len() - 1], ["nsfs", "nsfs"]);
        let fd = ok(open(c("f").as_ptr(), O_RDONLY));
        ok(setns_fd(fd, CLONE_NEWUTS));
        assert_ne!(own("uts"), first);
        assert_eq!(hostname(), "kept");
        ok(close(fd));
        unmount("f");
        assert_eq!(stat_of(&c("f")).st_size, 0);
    });
}

unsafe fn no_loops() {
    // A namespace of mounts cannot be kept by one of its own mounts. (Which of two namespaces is the older one differs
    // between kernels: since Linux 6.18 their numbers are given out for each processor.)
    alone(|| {
        file("f");
        let at = |from: &str| mount(c(from).as_ptr(), c("f").as_ptr(), null(), MS_BIND, null());
        fails(at("/proc/self/ns/mnt"), EINVAL);
        shows(".");
        // Those of other kinds may, and are in copies of the mounts.
        ok(at("/proc/self/ns/uts"));
        in_child(|| {
            ok(unshare(CLONE_NEWNS));
            shows(". f");
        });
    });
}

unsafe fn requests() {
    const NS_GET_USERNS: c_ulong = 0xb701;
    const NS_GET_PARENT: c_ulong = 0xb702;
    const NS_GET_NSTYPE: c_ulong = 0xb703;
    const NS_GET_OWNER_UID: c_ulong = 0xb704;
    as_root(|| {
        for (kind, flag) in KINDS {
            let fd = ns_fd("self", kind);
            is(ioctl(fd, NS_GET_NSTYPE), flag.into());
            fails(ioctl(fd, NS_GET_PARENT), EINVAL);
            let mut uid = 7u32;
            fails(ioctl(fd, NS_GET_OWNER_UID, &mut uid), EINVAL);
            let user = ok(ioctl(fd, NS_GET_USERNS));
            is(ioctl(user, NS_GET_NSTYPE), CLONE_NEWUSER.into());
            assert_eq!(fstat_of(user).st_ino, stat_of(&c("/proc/self/ns/user")).st_ino);
            ok(ioctl(user, NS_GET_OWNER_UID, &mut uid));
            assert_eq!(uid, 0);
            fails(ioctl(user, NS_GET_PARENT), EPERM);
            fails(ioctl(fd, 0xb7ff), ENOTTY);
        }
    });
}

unsafe fn ends_with_its_mounts() {
    // A process that stays in a mount of a namespace that has gone still sees that one mount.
    alone(|| {
        dir("a");
        let (up, down) = (pipe_pair(), pipe_pair());
        let child = spawn(|| {
            ok(unshare(CLONE_NEWNS));
            tmpfs("a");
            dir("a/b");
            tmpfs("a/b");
            file("a/b/f");
            file("a/g");
            put(up.1, b"x");
            get_all(down.0, 1);
            0
        });
        get_all(up.0, 1);
        let fd = ok(open(c(&format!("/proc/{child}/cwd/a")).as_ptr(), O_RDONLY | O_DIRECTORY));
        put(down.1, b"x");
        exits(child, 0);
        ok(faccessat(fd, c("g").as_ptr(), F_OK, 0));
        eventually("the mounts have gone", || faccessat(fd, c("b/f").as_ptr(), F_OK, 0) != 0);
        fails(
            mount(c("none").as_ptr(), c(&format!("/proc/self/fd/{fd}/b")).as_ptr(), c("tmpfs").as_ptr(), 0, null()),
            ENOENT,
        );
    });
}

unsafe fn others_mounts_hold_nothing_up() {
    alone(|| {
        for d in ["a", "b", "c", "c2"] {
            dir(d);
        }
        file("f");
        let (up, down) = (pipe_pair(), pipe_pair());
        let child = spawn(|| {
            ok(unshare(CLONE_NEWNS));
            for d in ["a", "b", "c2"] {
                tmpfs(d);
            }
            bind("f", "f");
            fails(rmdir(c("a").as_ptr()), EBUSY);
            fails(unlink(c("f").as_ptr()), EBUSY);
            fails(rename(c("b").as_ptr(), c("d").as_ptr()), EBUSY);
            put(up.1, b"x");
            get_all(down.0, 1);
            // What was mounted has gone with the name, or come along.
            shows(". d");
            0
        });
        get_all(up.0, 1);
        ok(rmdir(c("a").as_ptr()));
        ok(unlink(c("f").as_ptr()));
        ok(rename(c("b").as_ptr(), c("d").as_ptr()));
        ok(rename(c("c").as_ptr(), c("c2").as_ptr()));
        put(down.1, b"x");
        exits(child, 0);
    });
}

unsafe fn no_way_out_of_a_part() {
    // A directory that is moved out of the part of a file system that a mount shows does not lead to the rest.
    alone(|| {
        for d in ["a", "a/b", "a/b/c", "m"] {
            dir(d);
        }
        bind("a/b", "m");
        let fd = ok(open(c("m/c").as_ptr(), O_PATH | O_DIRECTORY));
        ok(rename(c("a/b/c").as_ptr(), c("a/c").as_ptr()));
        fails(openat(fd, c("..").as_ptr(), O_PATH), ENOENT);
        ok(rename(c("a/c").as_ptr(), c("a/b/c").as_ptr()));
        ok(openat(fd, c("..").as_ptr(), O_PATH));
    });
}

unsafe fn set_id_of_another() {
    // A set-user-ID program on a mount of another namespace is an ordinary program.
    alone(|| {
        dir("big");
        let size = c("size=256m");
        ok(mount(c("none").as_ptr(), c("big").as_ptr(), c("tmpfs").as_ptr(), 0, size.as_ptr().cast()));
        ok(chdir(c("big").as_ptr()));
        std::fs::copy("/proc/self/exe", "prog").unwrap();
        ok(chown(c("prog").as_ptr(), 4321, 4321));
        ok(chmod(c("prog").as_ptr(), 0o6755));
        let fd = ok(open(c("prog").as_ptr(), O_PATH));
        let run = |want: u32| {
            in_child(|| {
                let path = c(&format!("/proc/self/fd/{fd}"));
                let args = [c("prog"), c("helper"), c("euid"), c(&want.to_string())];
                let argv: Vec<*const c_char> = args.iter().map(|a| a.as_ptr()).chain([null()]).collect();
                execv(path.as_ptr(), argv.as_ptr());
                panic!("execv: {}", name_of(errno()));
            });
        };
        run(4321);
        ok(unshare(CLONE_NEWNS));
        run(0);
    });
}
