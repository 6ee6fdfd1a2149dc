//! Shortage of resources that the host counts. `tests/shortage.rs` also runs these in a sandbox with few descriptors:
//! there a call may fail like on a system whose file table is full, but no process ends and no data is lost.

use crate::t::*;
use crate::Case;
use libc::*;
use std::ptr::null_mut;

pub const CASES: &[Case] = cases![
    cold_files,
    mapped_files,
    file_against_model,
    host_files,
    processes,
    sparse_files,
    pipes_of_a_user,
    links_of_a_tmpfs,
    timed_reads,
    logged_calls,
    kernel_memory
];

/// More than a tmpfs keeps in the heap.
const SIZE: usize = 140_000;

/// Whether the last error is one that a shortage of descriptors or processes permits.
fn short() -> bool {
    matches!(errno(), EMFILE | ENFILE | ENOMEM | EAGAIN)
}

fn content(i: usize) -> Vec<u8> {
    (0..SIZE).map(|k| (k / 7 + i) as u8).collect()
}

/// Creates files with content, and closes them.
fn make(t: &Tmp, n: usize) {
    for i in 0..n {
        std::fs::write(t.s(&i.to_string()), content(i)).unwrap_or_else(|e| panic!("file {i}: {e}"));
    }
}

/// Checks that a program can be started.
unsafe fn can_exec() {
    let done = std::process::Command::new("/bin/true").status();
    assert!(done.is_ok_and(|s| s.success()));
}

unsafe fn cold_files() {
    let t = Tmp::new();
    make(&t, 700);
    for i in (0..700).rev() {
        assert!(std::fs::read(t.s(&i.to_string())).unwrap() == content(i), "file {i}");
    }
    let f = ok(open(c("/etc/passwd").as_ptr(), O_RDONLY));
    ok(close(f));
    can_exec();
}

/// Each file is mapped and unmapped in turn; then as many as possible at once.
unsafe fn mapped_files() {
    let t = Tmp::new();
    make(&t, 400);
    let map = |i: usize| {
        let f = ok(open(t.p(&i.to_string()).as_ptr(), O_RDWR));
        let p = mmap(null_mut(), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
        let e = errno();
        ok(close(f));
        *__errno_location() = e;
        p
    };
    for i in 0..400 {
        let p = ok(map(i)).cast::<u8>();
        assert_eq!(*p.add(5000), content(i)[5000]);
        p.add(SIZE - 1).write(i as u8);
        ok(munmap(p.cast(), SIZE));
    }
    let held: Vec<_> = (0..400).map(|i| (i, map(i))).take_while(|(_, p)| *p != MAP_FAILED).collect();
    assert!(held.len() > 40 && (held.len() == 400 || short()), "{} mapped, then {}", held.len(), name_of(errno()));
    for (i, p) in &held {
        assert_eq!(*p.cast::<u8>().add(SIZE - 1), *i as u8, "file {i}");
        ok(munmap(*p, SIZE));
    }
    for i in 0..400 {
        let data = std::fs::read(t.s(&i.to_string())).unwrap();
        assert!(data.len() == SIZE && data[..SIZE - 1] == content(i)[..SIZE - 1] && data[SIZE - 1] == i as u8, "{i}");
    }
    can_exec();
}

/// Random changes to one file, compared with a plain array.
unsafe fn file_against_model() {
    let t = Tmp::new();
    make(&t, 100);
    let f = t.open("f");
    let mut model: Vec<u8> = Vec::new();
    let mut seed = 1u64;
    let mut dice = |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    for round in 0..600 {
        let (at, len) = (dice(400_000), 1 + dice(20_000));
        match dice(6) {
            0..=2 => {
                let data: Vec<u8> = (0..len).map(|k| (k + round) as u8).collect();
                is(pwrite(f, data.as_ptr().cast(), len, at as i64), len as i64);
                model.resize(model.len().max(at + len), 0);
                model[at..at + len].copy_from_slice(&data);
            }
            3 => {
                ok(ftruncate(f, at as i64));
                model.resize(at, 0);
            }
            4 => {
                ok(fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at as i64, len as i64));
                let end = (at + len).min(model.len());
                model.get_mut(at..end).unwrap_or(&mut []).fill(0);
            }
            _ => {
                ok(fallocate(f, 0, at as i64, len as i64));
                model.resize(model.len().max(at + len), 0);
            }
        }
        let mut b = vec![1; 500_000];
        let n = ok(pread(f, b.as_mut_ptr().cast(), b.len(), 0)) as usize;
        assert!(b[..n] == model[..], "round {round}");
        let data = lseek(f, at as i64, SEEK_DATA);
        let upto = if data < 0 { model.len() } else { data as usize };
        assert!(model.get(at..upto).unwrap_or(&[]).iter().all(|b| *b == 0), "no hole, round {round}");
    }
    // Holes stay holes, whatever their length.
    is(pwrite(f, [7u8; 3].as_ptr().cast(), 3, 1 << 36), 3);
    let mut s: stat = std::mem::zeroed();
    ok(fstat(f, &mut s));
    assert!(s.st_size == (1 << 36) + 3 && s.st_blocks < 4096, "{} blocks", s.st_blocks);
}

/// Opens regular files below `dir`, one in three, until that fails or `fds` has 800.
unsafe fn open_all(dir: &std::path::Path, which: u64, fds: &mut Vec<i32>) -> bool {
    let Ok(list) = std::fs::read_dir(dir) else { return short() };
    for e in list.flatten() {
        let Ok(kind) = e.file_type() else { continue };
        if kind.is_dir() {
            if open_all(&e.path(), which, fds) {
                return true;
            }
        } else if kind.is_file() && e.metadata().is_ok_and(|m| m.len() > 20_000 && m.len() % 3 == which) {
            match open(c(e.path().to_str().unwrap_or("")).as_ptr(), O_RDONLY) {
                -1 if short() => return true,
                -1 => assert!(matches!(errno(), EACCES | ENOENT), "{}", name_of(errno())),
                fd => fds.push(fd),
            }
            if fds.len() == 800 {
                return true;
            }
        }
    }
    false
}

/// Several processes hold all the host files that they can get.
unsafe fn host_files() {
    let (mut up, mut down) = ([0; 2], [0; 2]);
    ok(pipe(up.as_mut_ptr()));
    ok(pipe(down.as_mut_ptr()));
    let mut started = 0;
    for which in 0..3 {
        match fork() {
            0 => {
                ok(close(down[1]));
                let mut fds = Vec::new();
                open_all("/usr/lib".as_ref(), which, &mut fds);
                is(write(up[1], b"x".as_ptr().cast(), 1), 1);
                read(down[0], [0u8; 1].as_mut_ptr().cast(), 1);
                _exit(0)
            }
            -1 => assert!(short(), "{}", name_of(errno())),
            _ => {
                started += 1;
                is(read(up[0], [0u8; 1].as_mut_ptr().cast(), 1), 1);
            }
        }
    }
    assert!(started > 0);
    let f = open(c("/etc/passwd").as_ptr(), O_RDONLY);
    assert!(f >= 0 || short(), "{}", name_of(errno()));
    // Descriptors are reserved for new processes.
    let p = ok(fork());
    if p == 0 {
        _exit(7)
    }
    let mut status = 0;
    is(waitpid(p, &mut status, 0), p as i64);
    assert_eq!(WEXITSTATUS(status), 7);
    ok(close(down[1]));
    while started > 0 {
        ok(waitpid(-1, &mut status, 0));
        assert_eq!(status, 0);
        started -= 1;
    }
    can_exec();
}

unsafe fn processes() {
    let mut all = Vec::new();
    while all.len() < 300 {
        match fork() {
            0 => {
                pause();
                _exit(1)
            }
            -1 => {
                assert_eq!(errno(), EAGAIN);
                break;
            }
            p => all.push(p),
        }
    }
    assert!(all.len() > 10, "{} processes", all.len());
    for p in &all {
        ok(kill(*p, SIGKILL));
    }
    for p in all {
        is(waitpid(p, null_mut(), 0), p as i64);
    }
    // Resources of a process are released shortly after its end.
    eventually("a program starts again", || std::process::Command::new("/bin/true").status().is_ok());
}

/// Sparse in-memory files whose lengths add up to more than an address space.
unsafe fn sparse_files() {
    let mut fds = Vec::new();
    const LEN: i64 = 1 << 40;
    for i in 0..200 {
        let f = memfd_create(c"long".as_ptr(), 0);
        if f < 0 {
            assert!(short(), "file {i}: {}", name_of(errno()));
            break;
        }
        ok(ftruncate(f, LEN));
        is(pwrite(f, [i as u8; 9].as_ptr().cast(), 9, LEN - 9), 9);
        is(pwrite(f, [i as u8; 3].as_ptr().cast(), 3, 70_000), 3);
        fds.push(f);
    }
    assert!(fds.len() > 100, "{} files", fds.len());
    for (i, f) in fds.iter().enumerate() {
        let mut b = [0u8; 12];
        is(pread(*f, b.as_mut_ptr().cast(), 12, LEN - 10), 10);
        assert!(b[0] == 0 && b[1..10] == [i as u8; 9], "file {i}");
        is(pread(*f, b.as_mut_ptr().cast(), 4, 69_999), 4);
        assert!(b[..4] == [0, i as u8, i as u8, i as u8], "file {i}");
        // A large transfer beyond the end.
        let big = vec![i as u8; 1 << 20];
        is(pwrite(*f, big.as_ptr().cast(), big.len(), 1 << 30), 1 << 20);
        let mut back = vec![0; 1 << 20];
        is(pread(*f, back.as_mut_ptr().cast(), back.len(), 1 << 30), 1 << 20);
        assert!(back == big, "file {i}");
        ok(ftruncate(*f, 100));
        ok(close(*f));
    }
    can_exec();
}

/// A user without privileges may have 64 MiB in pipes; after that, new ones are small.
unsafe fn pipes_of_a_user() {
    if root() {
        ok(setresgid(54_321, 54_321, 54_321));
        ok(setresuid(54_321, 54_321, 54_321));
    }
    let mut pipes = Vec::new();
    let mut large = 0;
    for _ in 0..80 {
        let mut p = [0; 2];
        ok(pipe(p.as_mut_ptr()));
        match fcntl(p[1], F_SETPIPE_SZ, 1 << 20) {
            -1 => assert_eq!(errno(), EPERM),
            n => {
                assert_eq!(n, 1 << 20);
                large += 1;
            }
        }
        pipes.push(p);
    }
    assert!(large <= 64, "{large} of 1 MiB");
    let size = ok(fcntl(pipes[79][1], F_GETPIPE_SZ));
    assert!((4096..=65536).contains(&size), "{size}");
    // Small pipes work like others.
    is(write(pipes[79][1], [7u8; 4096].as_ptr().cast(), 4096), 4096);
    let mut b = [0u8; 4096];
    is(read(pipes[79][0], b.as_mut_ptr().cast(), 4096), 4096);
    for p in pipes {
        ok(close(p[0]));
        ok(close(p[1]));
    }
    let mut p = [0; 2];
    ok(pipe(p.as_mut_ptr()));
    is(fcntl(p[1], F_SETPIPE_SZ, 1 << 20), 1 << 20);
}

/// Each name of a file is charged like an inode.
unsafe fn links_of_a_tmpfs() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let dir = t.p("m");
    ok(mkdir(dir.as_ptr(), 0o700));
    // A sandbox has a mount namespace of its own already.
    if unshare(CLONE_NEWNS) == 0 {
        zero(mount(c"none".as_ptr(), c"/".as_ptr(), null_mut(), MS_REC | MS_PRIVATE, null_mut()));
    }
    zero(mount(c"t".as_ptr(), dir.as_ptr(), c"tmpfs".as_ptr(), 0, c"nr_inodes=50".as_ptr().cast()));
    let f = ok(open(t.p("m/f").as_ptr(), O_CREAT | O_RDWR, 0o600));
    let name = |i: usize| t.p(&format!("m/{i}"));
    let n = (0..100).take_while(|i| link(t.p("m/f").as_ptr(), name(*i).as_ptr()) == 0).count();
    assert!(errno() == ENOSPC && (40..50).contains(&n), "{n} links, {}", name_of(errno()));
    fails(open(t.p("m/g").as_ptr(), O_CREAT | O_RDWR, 0o600), ENOSPC);
    // Each unlink releases a charge, the last one with the file.
    for i in 0..n {
        ok(unlink(name(i).as_ptr()));
    }
    ok(unlink(t.p("m/f").as_ptr()));
    ok(close(f));
    for i in 0..n {
        ok(close(ok(open(name(i).as_ptr(), O_CREAT | O_RDWR, 0o600))));
    }
    zero(umount2(dir.as_ptr(), MNT_DETACH));
}

/// Reads with a timeout, each of which succeeds in time. `tests/shortage.rs` checks the Sentry's memory.
unsafe fn timed_reads() {
    let m = ok(open(c"/dev/ptmx".as_ptr(), O_RDWR | O_NOCTTY | O_NONBLOCK));
    let unlocked = 0;
    ok(ioctl(m, TIOCSPTLCK, &unlocked));
    let mut name = [0; 64];
    zero(ptsname_r(m, name.as_mut_ptr(), 64));
    let s = ok(open(name.as_ptr(), O_RDWR | O_NOCTTY | O_NONBLOCK));
    let mut t = std::mem::zeroed();
    ok(tcgetattr(s, &mut t));
    cfmakeraw(&mut t);
    (t.c_cc[VMIN], t.c_cc[VTIME]) = (0, 255);
    ok(tcsetattr(s, TCSANOW, &t));
    let mut b = [0u8; 1];
    for _ in 0..60_000 {
        read(s, b.as_mut_ptr().cast(), 1);
        is(write(m, b"x".as_ptr().cast(), 1), 1);
        // On bare Linux the byte takes a moment to arrive.
        while read(s, b.as_mut_ptr().cast(), 1) != 1 {
            sched_yield();
        }
    }
}

/// Makes calls that a filter logs.
unsafe fn logged_calls() {
    zero(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    let filter = [sock_filter { code: 6, jt: 0, jf: 0, k: SECCOMP_RET_LOG }];
    let program = sock_fprog { len: 1, filter: filter.as_ptr().cast_mut() };
    zero(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) as i32);
    for _ in 0..3000 {
        ok(getppid());
    }
}

/// As much kernel memory as a process can get in sockets, pipes, small files and message queues. With a limit of the
/// address space (`tests/shortage.rs`) the bounds add up to far more than the Sentry has. At each bound a call fails,
/// and after something is released calls succeed again.
unsafe fn kernel_memory() {
    let mut limit: rlimit = zeroed();
    ok(getrlimit(RLIMIT_AS, &mut limit));
    let most: usize = if limit.rlim_cur == RLIM_INFINITY { 16 << 20 } else { 600 << 20 };
    let t = Tmp::new();
    let bytes = vec![7u8; 100_000];

    let (mut held, mut given) = (Vec::new(), 0);
    while given < most {
        let mut pair = [0; 2];
        if socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair.as_mut_ptr()) != 0 {
            assert!(matches!(errno(), EMFILE | ENFILE | ENOBUFS | ENOMEM), "{}", name_of(errno()));
            break;
        }
        held.extend(pair);
        let before = given;
        loop {
            match write(pair[0], bytes.as_ptr().cast(), bytes.len()) {
                -1 if matches!(errno(), EAGAIN | ENOBUFS | ENOMEM) => break,
                n => given += ok(n) as usize,
            }
        }
        if given == before {
            break;
        }
    }
    assert!(given > 8 << 20, "sockets took {given}");

    let mut given = 0;
    while given < most {
        let mut p = [0; 2];
        if pipe2(p.as_mut_ptr(), O_NONBLOCK) != 0 {
            assert!(matches!(errno(), EMFILE | ENFILE | ENOMEM), "{}", name_of(errno()));
            break;
        }
        held.extend(p);
        if fcntl(p[1], F_SETPIPE_SZ, 1 << 20) == -1 {
            assert!(matches!(errno(), EPERM | ENOMEM), "{}", name_of(errno()));
        }
        while write(p[1], bytes.as_ptr().cast(), bytes.len()) > 0 {
            given += bytes.len();
        }
    }

    let mut files = 0;
    while files * bytes.len() < most {
        match std::fs::write(t.s(&files.to_string()), &bytes) {
            Ok(()) => files += 1,
            Err(e) => {
                assert!(matches!(e.raw_os_error(), Some(ENOSPC | EMFILE | ENFILE)), "file {files}: {e}");
                break;
            }
        }
    }
    assert!(files > 100, "{files} files");

    let mut queues = Vec::new();
    let mut sent = 0;
    while sent < most.min(128 << 20) {
        let q = msgget(IPC_PRIVATE, 0o600);
        if q == -1 {
            assert!(matches!(errno(), ENOSPC | ENOMEM), "{}", name_of(errno()));
            break;
        }
        queues.push(q);
        let mut message = [1u64; 1024];
        message[0] = 1;
        let before = sent;
        while msgsnd(q, message.as_ptr().cast(), 8000, IPC_NOWAIT) == 0 {
            sent += 8000;
        }
        if sent == before {
            break;
        }
    }
    for q in queues {
        zero(msgctl(q, IPC_RMID, null_mut()));
    }

    // The content can be read, and released memory can be used again.
    for i in 0..files {
        assert!(std::fs::read(t.s(&i.to_string())).unwrap() == bytes, "file {i}");
        std::fs::remove_file(t.s(&i.to_string())).unwrap();
    }
    for fd in held {
        ok(close(fd));
    }
    let (r, w) = pipe_pair();
    put(w, &bytes[..4096]);
    assert_eq!(get_all(r, 4096), bytes[..4096]);
    std::fs::write(t.s("again"), &bytes).unwrap();
    assert!(std::fs::read(t.s("again")).unwrap() == bytes);
}
