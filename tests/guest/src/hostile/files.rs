//! Attempts to leave the tree by names, and to gain access to a file beyond the caller's permission.

use super::raw::*;
use super::*;

/// Opens a name in every way and searches the content for secrets.
unsafe fn try_name(dir: i32, name: &str) {
    let path = c(name);
    let flags = [O_RDONLY, O_RDONLY | O_NONBLOCK, O_PATH, O_RDWR, O_WRONLY | O_APPEND, O_RDONLY | O_DIRECTORY];
    for f in flags {
        let fd = openat(dir, path.as_ptr(), f | O_CLOEXEC | O_NOCTTY);
        if fd >= 0 {
            try_fd(fd, name, f & O_ACCMODE != O_RDONLY);
            close(fd);
        }
    }
}

/// Uses a descriptor in every way.
unsafe fn try_fd(fd: i32, name: &str, writable: bool) {
    let mut data = vec![0u8; 4096];
    let n = pread(fd, data.as_mut_ptr().cast(), data.len(), 0);
    search(&data[..n.clamp(0, 4096) as usize], name);
    if writable && n > 7 && data.starts_with(b"CANARY-") {
        write(fd, c"changed".as_ptr().cast(), 7);
    }
    let again = openat(-1, c(&format!("/proc/self/fd/{fd}")).as_ptr(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if again >= 0 {
        let n = pread(again, data.as_mut_ptr().cast(), data.len(), 0);
        search(&data[..n.clamp(0, 4096) as usize], &format!("{name}, opened again"));
        close(again);
    }
    let p = mmap(std::ptr::null_mut(), PAGE, PROT_READ, MAP_SHARED, fd, 0);
    if p != MAP_FAILED {
        if n > 0 {
            search(std::slice::from_raw_parts(p.cast(), n.min(4096) as usize), &format!("{name}, mapped"));
        }
        munmap(p, PAGE);
    }
    let n = readlinkat(fd, c"".as_ptr(), data.as_mut_ptr().cast(), data.len());
    search(&data[..n.clamp(0, 4096) as usize], &format!("{name}, as a link"));
    for up in ["..", "../..", "../outside/secret", "../../../../../../../../../../../../etc/hostname"] {
        let next = openat(fd, c(up).as_ptr(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if next >= 0 {
            let n = pread(next, data.as_mut_ptr().cast(), data.len(), 0);
            search(&data[..n.clamp(0, 4096) as usize], &format!("{name}/{up}"));
            close(next);
        }
    }
}

const UP: &str = "../../../../../../../../../../../../../../../../../../../..";

pub unsafe fn walks() {
    let outside = outside();
    let mut names = Vec::new();
    for prefix in [
        "",
        "/ro",
        "/rw",
        "/rw/dir",
        "/proc/self/root",
        "/proc/self/cwd",
        "/proc/1/root",
        "/proc/2/root",
        "/dev/fd",
        "/tmp",
    ] {
        for target in ["secret", "kept", "socket", "dir/inner", ""] {
            names.push(format!("{prefix}{outside}/{target}"));
            names.push(format!("{prefix}/{UP}{outside}/{target}"));
            names.push(format!("{prefix}/../outside/{target}"));
            names.push(format!("{prefix}/{UP}/proc/self/root{outside}/{target}"));
            names.push(format!("{prefix}/./..//.././{outside}/{target}"));
        }
    }
    // Links that exist in the trees, made by the host: absolute, relative, to directories, chains, loops.
    for dir in ["/ro", "/rw", ""] {
        for link in
            ["absolute", "relative", "up", "loop", "long", "dirlink/secret", "dirlink/../outside/secret", "proc"]
        {
            names.push(format!("{dir}/links/{link}"));
            names.push(format!("{dir}/links/{link}/secret"));
            names.push(format!("{dir}/links/{link}{outside}/secret"));
        }
    }
    for pid in ["self", "thread-self", "1", "2", "3"] {
        for what in [
            "root",
            "cwd",
            "exe",
            "fd/0",
            "fd/1",
            "fd/2",
            "fd/3",
            "ns/mnt",
            "map_files",
            "task/1/root",
            "mem",
            "environ",
        ] {
            names.push(format!("/proc/{pid}/{what}"));
            names.push(format!("/proc/{pid}/{what}{outside}/secret"));
            names.push(format!("/proc/{pid}/{what}/{UP}{outside}/secret"));
        }
    }
    for pid in host_pids() {
        for what in ["root", "cwd", "exe", "fd/0", "environ", "cmdline", "maps", "mem", "root/etc/hostname"] {
            names.push(format!("/proc/{pid}/{what}"));
        }
    }
    for name in &names {
        try_name(AT_FDCWD, name);
    }
    // Links and names made by the guest, in each writable tree.
    for tree in ["/tmp", "/rw", "/rw/dir", "/dev/shm"] {
        if chdir(c(tree).as_ptr()) != 0 {
            continue;
        }
        for (i, target) in [
            format!("{outside}/secret"),
            format!("{UP}{outside}/secret"),
            "../outside/secret".into(),
            outside.clone(),
            UP.into(),
        ]
        .iter()
        .enumerate()
        {
            let link = format!("made{i}");
            symlink(c(target).as_ptr(), c(&link).as_ptr());
            try_name(AT_FDCWD, &link);
            try_name(AT_FDCWD, &format!("{link}/secret"));
            try_name(AT_FDCWD, &format!("{link}{outside}/secret"));
            // Names with slashes, NUL-like and odd bytes.
            linkat(AT_FDCWD, c(&link).as_ptr(), AT_FDCWD, c(&format!("hard{i}")).as_ptr(), AT_SYMLINK_FOLLOW);
            try_name(AT_FDCWD, &format!("hard{i}"));
            let how = [O_RDONLY as u64, 0, [0u64, 1, 2, 4, 8, 16][i]];
            let fd = syscall(SYS_openat2, AT_FDCWD, c(&format!("{link}/secret")).as_ptr(), how.as_ptr(), 24);
            if fd >= 0 {
                try_fd(fd as i32, "openat2", false);
            }
        }
        for source in [format!("{outside}/secret"), "/proc/self/root/ro/data".into(), "/ro/data".into()] {
            for fd in [open(c(&source).as_ptr(), O_PATH), open(c(&source).as_ptr(), O_RDONLY)] {
                linkat(fd, c"".as_ptr(), AT_FDCWD, c"linked".as_ptr(), AT_EMPTY_PATH);
                try_name(AT_FDCWD, "linked");
            }
        }
        // As a bind mount of another tree.
        mount(c(&outside).as_ptr(), c".".as_ptr(), c"none".as_ptr(), MS_BIND, std::ptr::null());
        try_name(AT_FDCWD, "secret");
        for kind in
            [c"ext4", c"overlay", c"9p", c"fuse", c"nfs", c"devtmpfs", c"debugfs", c"cgroup2", c"proc", c"tmpfs"]
        {
            ok(mkdir(c"on".as_ptr(), 0o755).max(0));
            let data = format!("lowerdir={outside},trans=fd,fd=0");
            if mount(c"none".as_ptr(), c"on".as_ptr(), kind.as_ptr(), 0, c(&data).as_ptr().cast()) == 0 {
                try_name(AT_FDCWD, "on/secret");
                try_name(AT_FDCWD, "on/kmsg");
                umount2(c"on".as_ptr(), MNT_DETACH);
            }
        }
    }
    // The classic escape from chroot(2).
    let pid = spawn(|| {
        mkdir(c"/tmp/jail".as_ptr(), 0o755);
        let above = open(c"/".as_ptr(), O_RDONLY | O_DIRECTORY);
        chroot(c"/tmp/jail".as_ptr());
        fchdir(above);
        for _ in 0..40 {
            chdir(c"..".as_ptr());
        }
        chroot(c".".as_ptr());
        try_name(AT_FDCWD, &format!("{}/secret", super::outside()));
        try_name(AT_FDCWD, "../outside/secret");
        0
    });
    reap(pid);
    races(&outside);
    // Read-only trees are unchanged: on the host (the test checks that), and in the guest's view.
    for name in ["/ro/data", "/ro/dir/inner"] {
        for f in [O_WRONLY, O_RDWR, O_WRONLY | O_TRUNC, O_RDONLY | O_TRUNC] {
            let fd = open(c(name).as_ptr(), f);
            if fd >= 0 && f & O_ACCMODE != O_RDONLY {
                got(&format!("{name} open for writing"));
                write(fd, c"changed".as_ptr().cast(), 7);
            }
        }
        let n = c(name);
        truncate(n.as_ptr(), 0);
        chmod(n.as_ptr(), 0o777);
        chown(n.as_ptr(), 1, 1);
        rename(n.as_ptr(), c"/ro/gone".as_ptr());
        rename(c"/tmp/made0".as_ptr(), n.as_ptr());
        unlink(n.as_ptr());
        utimes(n.as_ptr(), std::ptr::null());
        setxattr(n.as_ptr(), c"user.x".as_ptr(), c"y".as_ptr().cast(), 1, 0);
        mount(std::ptr::null(), c"/ro".as_ptr(), std::ptr::null(), MS_REMOUNT | MS_BIND, std::ptr::null());
        truncate(n.as_ptr(), 0);
        link(n.as_ptr(), c"/ro/second".as_ptr());
        link(n.as_ptr(), c"/rw/second".as_ptr());
        mkdir(c"/ro/new".as_ptr(), 0o755);
        mknod(c"/ro/node".as_ptr(), S_IFREG | 0o644, 0);
    }
    // Device nodes that would work on the host.
    for (dir, kind, dev) in [
        ("/rw", S_IFBLK, makedev(8, 0)),
        ("/rw", S_IFCHR, makedev(1, 1)),
        ("/tmp", S_IFCHR, makedev(1, 1)),
        ("/dev", S_IFBLK, makedev(254, 0)),
        ("/dev", S_IFCHR, makedev(1, 11)),
    ] {
        let name = c(&format!("{dir}/device-{dev}"));
        if mknod(name.as_ptr(), kind | 0o666, dev) == 0 {
            let fd = open(name.as_ptr(), O_RDONLY | O_NONBLOCK);
            if fd >= 0 {
                got(&format!("a device open, {name:?}"));
            }
            unlink(name.as_ptr());
        }
    }
    // A set-user-ID program gets rights inside the sandbox only, and its file never has the bit on the host.
    let program = ok(open(c"/rw/setuid".as_ptr(), O_CREAT | O_RDWR, 0o755));
    fchmod(program, 0o6777);
}

/// Components that change between check and use.
unsafe fn races(outside: &str) {
    for tree in ["/tmp", "/rw"] {
        let name = |n: &str| c(&format!("{tree}/{n}"));
        // Remains of an earlier run.
        for old in ["real", "evil", "deep", "er"] {
            let _ = std::fs::remove_file(format!("{tree}/{old}"));
            let _ = std::fs::remove_dir_all(format!("{tree}/{old}"));
        }
        mkdir(name("real").as_ptr(), 0o755);
        std::fs::write(format!("{tree}/real/secret"), b"mine").unwrap();
        symlink(c(outside).as_ptr(), name("evil").as_ptr());
        mkdir(name("deep").as_ptr(), 0o755);
        mkdir(name("deep/er").as_ptr(), 0o755);
        let stop = &*shared(PAGE).cast::<AtomicU64>();
        let swapper = spawn(|| {
            while stop.load(SeqCst) == 0 {
                syscall(SYS_renameat2, AT_FDCWD, name("real").as_ptr(), AT_FDCWD, name("evil").as_ptr(), 2);
                // A directory is moved away under processes that walk up from it.
                rename(name("deep/er").as_ptr(), name("er").as_ptr());
                rename(name("er").as_ptr(), name("deep/er").as_ptr());
            }
            0
        });
        let mut data = [0u8; 256];
        for _ in 0..600 {
            for path in [
                name("real/secret"),
                name("evil/secret"),
                name("deep/er/../../../../outside/secret"),
                name("deep/er/../../../kept"),
            ] {
                let fd = open(path.as_ptr(), O_RDWR);
                if fd >= 0 {
                    let n = pread(fd, data.as_mut_ptr().cast(), 256, 0);
                    search(&data[..n.clamp(0, 256) as usize], "a race");
                    close(fd);
                }
            }
            let fd = open(name("real/new").as_ptr(), O_CREAT | O_RDWR, 0o644);
            close(fd);
            unlink(name("real/new").as_ptr());
        }
        stop.store(1, SeqCst);
        reap(swapper);
    }
}

/// Access beyond a descriptor's mode, through the descriptor that the stub was given for mapping.
pub unsafe fn rights() {
    raw::arm();
    let gate = Gate::new();
    // Files of another user with read permission only, on each kind of file system. Then the same as an unprivileged
    // user.
    let t = Tmp::new();
    chmod(c(t.0.to_str().unwrap()).as_ptr(), 0o755);
    let mut names = vec!["/ro/data".to_owned(), "/rw/owned".into(), "/kept".into(), "/usr/bin/env".into()];
    std::fs::write(t.s("mine"), vec![b'm'; PAGE]).unwrap();
    std::fs::write("/dev/shm/mine", vec![b'm'; PAGE]).unwrap();
    names.extend([t.s("mine"), "/dev/shm/mine".into()]);
    for n in &names[4..] {
        chmod(c(n).as_ptr(), 0o644);
    }
    let sealed = ok(memfd_create(c"sealed".as_ptr(), MFD_ALLOW_SEALING));
    put(sealed, &[b'm'; PAGE]);
    ok(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
    let before: Vec<Vec<u8>> = names.iter().map(|n| std::fs::read(n).unwrap()).collect();
    let len = PAGE as u64;
    let kinds = 4;
    survive((names.len() + 1) * kinds, |i| {
        let (file, kind) = (i / kinds, i % kinds);
        let fd = match names.get(file) {
            Some(name) => {
                setgroups(0, std::ptr::null());
                setresgid(65534, 65534, 65534);
                setresuid(65534, 65534, 65534);
                ok(open(c(name).as_ptr(), O_RDONLY))
            }
            None => sealed,
        };
        let prot = if kind == 3 { PROT_READ | PROT_EXEC } else { PROT_READ };
        match kind {
            // Mapped for reading, then made writable without the Sentry, or mapped again at another address.
            0 | 3 => {
                for how in [MAP_SHARED, MAP_PRIVATE] {
                    let p = mmap(std::ptr::null_mut(), PAGE, prot, how, fd, 0);
                    if p != MAP_FAILED {
                        gate.call(SYS_mprotect, [p as u64, len, 7, 0, 0, 0]);
                        scribble(p as u64);
                    }
                }
            }
            1 => {
                let p = mmap(std::ptr::null_mut(), PAGE, prot, MAP_SHARED, fd, 0);
                if p != MAP_FAILED {
                    gate.call(SYS_mremap, [p as u64, 0, len, 3, 0x4000_0000_0000, 0]);
                    gate.call(SYS_mprotect, [0x4000_0000_0000, len, 3, 0, 0, 0]);
                    scribble(0x4000_0000_0000);
                    mprotect(p, PAGE, RW);
                    scribble(p as u64);
                }
            }
            // The descriptor itself: a thread takes it from the control socket before the stub does, and keeps it.
            _ => {
                let thief = std::thread::spawn(move || {
                    let mut byte = 0u64;
                    let mut control = [0u64; 8];
                    let iov = [&raw mut byte as u64, 8];
                    let msg = [0u64, 0, iov.as_ptr() as u64, 1, control.as_mut_ptr() as u64, 64, 0];
                    let r = gate.call(SYS_recvmsg, [9, msg.as_ptr() as u64, 0, 0, 0, 0]);
                    let stolen = control[2] & 0xffff_ffff;
                    if r > 0 {
                        for prot in [3u64, 7] {
                            for how in [MAP_SHARED, MAP_PRIVATE] {
                                gate.call(SYS_mmap, [0x4000_0000_0000, len, prot, how as u64 | 0x10, stolen, 0]);
                                scribble(0x4000_0000_0000);
                            }
                        }
                    }
                    _exit(0);
                });
                usleep(10_000);
                mmap(std::ptr::null_mut(), PAGE, prot, MAP_SHARED, fd, 0);
                drop(thief.join());
            }
        }
    });
    hidden(gate);
    for (name, was) in names.iter().zip(&before) {
        if std::fs::read(name).unwrap() != *was {
            got(&format!("{name} changed without the right to"));
        }
    }
    let mut now = vec![0u8; PAGE];
    is(pread(sealed, now.as_mut_ptr().cast(), PAGE, 0), PAGE as i64);
    if now.iter().any(|b| *b != b'm') {
        got("a sealed file changed");
    }
}

/// A file is sealed after its creator mapped it a second time without the Sentry's knowledge.
unsafe fn hidden(gate: Gate) {
    const AT: u64 = 0x4000_0000_0000;
    let file = ok(memfd_create(c"sealed".as_ptr(), MFD_ALLOW_SEALING));
    put(file, &[b'm'; PAGE]);
    let pid = spawn(|| {
        let p = mmap(std::ptr::null_mut(), PAGE, RW, MAP_SHARED, file, 0);
        assert_ne!(p, MAP_FAILED);
        gate.call(SYS_mremap, [p as u64, 0, PAGE as u64, 3, AT, 0]);
        zero(munmap(p, PAGE));
        ok(fcntl(file, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
        std::ptr::copy_nonoverlapping(b"HACKED".as_ptr(), AT as *mut u8, 6);
        0
    });
    reap(pid);
    is(fcntl(file, F_GET_SEALS), (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) as i64);
    let mut now = vec![0u8; PAGE];
    is(pread(file, now.as_mut_ptr().cast(), PAGE, 0), PAGE as i64);
    if now.iter().any(|b| *b != b'm') {
        got("a sealed file changed by a hidden mapping");
    }
}

/// Stores at an address; a fault counts as a failure.
unsafe fn scribble(at: u64) {
    if let Some(vma) = std::fs::read_to_string("/proc/self/stat").ok().map(|_| at) {
        let pid = fork();
        if pid == 0 {
            signal(SIGSEGV, SIG_DFL);
            signal(SIGBUS, SIG_DFL);
            std::ptr::copy_nonoverlapping(b"HACKED".as_ptr(), vma as *mut u8, 6);
            _exit(0);
        }
        waitpid(pid, std::ptr::null_mut(), 0);
    }
}
