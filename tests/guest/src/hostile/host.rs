//! Searches for the host: in /proc, /sys and /dev, by signals, by the network.

use super::*;
use std::os::unix::ffi::OsStrExt;

/// Reads every file below a directory, down to `depth`, and searches for secrets.
unsafe fn read_all(dir: &std::path::Path, depth: usize, left: &mut usize) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for e in entries.flatten() {
        let path = e.path();
        search(path.as_os_str().as_bytes(), "a name");
        if let Ok(target) = std::fs::read_link(&path) {
            search(target.as_os_str().as_bytes(), &format!("the link {}", path.display()));
            continue;
        }
        let Ok(kind) = e.file_type() else { continue };
        if kind.is_dir() {
            if depth > 0 {
                read_all(&path, depth - 1, left);
            }
            continue;
        }
        if *left == 0 {
            return;
        }
        *left -= 1;
        let name = c(path.to_str().unwrap_or(""));
        let fd = open(name.as_ptr(), O_RDONLY | O_NONBLOCK | O_NOCTTY);
        if fd >= 0 {
            let mut data = vec![0u8; 1 << 16];
            let n = read(fd, data.as_mut_ptr().cast(), data.len());
            search(&data[..n.clamp(0, 1 << 16) as usize], &path.display().to_string());
            close(fd);
        }
    }
}

pub unsafe fn look() {
    let mut left = 20_000;
    for dir in ["/proc", "/sys", "/dev"] {
        read_all(std::path::Path::new(dir), 6, &mut left);
    }
    for e in std::env::vars() {
        search(e.1.as_bytes(), &format!("the variable {}", e.0));
    }
    // Only processes of the sandbox are visible.
    let pids: Vec<i32> =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for pid in pids {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if !line.windows(11).any(|w| w == b"guest-tests") {
            got(&format!("a foreign process, {pid}: {}", String::from_utf8_lossy(&line)));
        }
    }
    for pid in host_pids() {
        if std::path::Path::new(&format!("/proc/{pid}/stat")).exists() {
            got(&format!("/proc/{pid} of the host"));
        }
        if kill(pid, 0) == 0 || errno() != ESRCH {
            got(&format!("an answer about process {pid} of the host"));
        }
        if getpgid(pid) != -1 || getsid(pid) != -1 || sched_getscheduler(pid) != -1 {
            got(&format!("news of process {pid} of the host"));
        }
        if syscall(SYS_pidfd_open, pid, 0) != -1 {
            got(&format!("a pidfd of process {pid} of the host"));
        }
    }
    // No mounts of the host are visible.
    for file in ["/proc/self/mounts", "/proc/self/mountinfo", "/proc/mounts", "/proc/1/mountinfo"] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        for strange in [outside().as_str(), "ext4", "/sys/fs/cgroup", "/boot", "9p"] {
            if text.contains(strange) {
                got(&format!("{strange} in {file}"));
            }
        }
    }
    // Files that would change the host, or show its memory.
    for name in [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/panic",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/kcore",
        "/proc/kmem",
        "/proc/kmsg",
        "/proc/kallsyms",
        "/proc/kpageflags",
        "/proc/1/mem",
        "/proc/1/environ",
        "/proc/1/maps",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/sched_debug",
        "/proc/config.gz",
        "/proc/acpi/wakeup",
        "/proc/bus/pci/devices",
        "/proc/scsi/scsi",
        "/proc/irq/0/smp_affinity",
        "/proc/self/pagemap",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/release_agent",
        "/sys/power/state",
        "/sys/kernel/debug",
        "/sys/firmware/efi/efivars",
        "/dev/mem",
        "/dev/kmsg",
        "/dev/port",
        "/dev/sda",
        "/dev/vda",
        "/dev/loop-control",
        "/dev/fuse",
        "/dev/kvm",
        "/dev/net/tun",
        "/dev/input/event0",
        "/dev/dri/card0",
        "/dev/console",
        "/dev/tty1",
        "/dev/cpu/0/msr",
        "/dev/userfaultfd",
    ] {
        let path = c(name);
        for flags in [O_WRONLY, O_RDWR, O_WRONLY | O_TRUNC] {
            let fd = open(path.as_ptr(), flags | O_NONBLOCK | O_NOCTTY);
            if fd >= 0 {
                // A writable one is the sandbox's own; the test checks the host's.
                write(fd, c"|/tmp/x".as_ptr().cast(), 7);
                close(fd);
            }
        }
        let fd = open(path.as_ptr(), O_RDONLY | O_NONBLOCK | O_NOCTTY);
        let shows = [
            "/proc/kcore",
            "/proc/kmem",
            "/dev/mem",
            "/dev/port",
            "/dev/sda",
            "/dev/vda",
            "/dev/kvm",
            "/dev/cpu/0/msr",
            "/dev/fuse",
        ];
        if fd >= 0 && shows.contains(&name) {
            got(&format!("{name} open"));
        }
        if fd >= 0 && name == "/proc/self/pagemap" {
            let mut entry = 0u64;
            let local = 0u64;
            pread(fd, (&raw mut entry).cast(), 8, (&raw const local as i64) / PAGE as i64 * 8);
            if entry & ((1 << 55) - 1) != 0 {
                got("the number of a page of the host's memory");
            }
        }
        close(fd);
    }
    let mut name: utsname = zeroed();
    ok(uname(&mut name));
    sethostname(c"captured".as_ptr(), 8);
    setdomainname(c"captured".as_ptr(), 8);
    let now = time(std::ptr::null_mut());
    let past = timespec { tv_sec: 1, tv_nsec: 0 };
    clock_settime(CLOCK_REALTIME, &past);
    if time(std::ptr::null_mut()) < now {
        got("the clock set");
    }
    syscall(SYS_reboot, 0xfee1_dead_u32, 672_274_793, 0x0123_4567, 0);
    syscall(SYS_kexec_load, 0, 0, 0, 0);
    syscall(SYS_swapoff, c"/".as_ptr());
    syscall(SYS_delete_module, c"ext4".as_ptr(), 0);
    syscall(SYS_iopl, 3);
    syscall(SYS_ioperm, 0, 0x3ff, 1);
    syscall(SYS_acct, c"/tmp/x".as_ptr());
    for nr in
        [SYS_kexec_load, SYS_iopl, SYS_ioperm, SYS_init_module, SYS_swapon, SYS_bpf, SYS_perf_event_open, SYS_add_key]
    {
        if syscall(nr, 0, 0, 0, 0, 0) == 0 {
            got(&format!("call {nr}"));
        }
    }
}

/// Signals every visible process, and every possible number.
pub unsafe fn signals() {
    let nothing = SIG_IGN;
    for s in 1..65 {
        if s != SIGCHLD {
            signal(s, nothing);
        }
    }
    let me = getpid();
    // This process may be killed as well; the first process continues.
    let pid = spawn(|| {
        for s in [SIGUSR1, SIGHUP, SIGTERM, SIGRTMIN(), SIGSTOP, SIGCONT, SIGKILL] {
            let value = sigval { sival_ptr: std::ptr::null_mut() };
            let targets = (1..600).chain((600..70_000).step_by(97)).chain(host_pids()).chain([1 << 22, i32::MAX]);
            for p in targets.filter(|p| *p != me && *p != getpid()) {
                kill(p, s);
                if p < 100 || host_pids().contains(&p) {
                    // A fatal signal is not sent to all at once (-1), because the first process has to report.
                    if p != 1 || ![SIGSTOP, SIGKILL].contains(&s) {
                        kill(-p, s);
                    }
                    syscall(SYS_tkill, p, s);
                    syscall(SYS_tgkill, p, p, s);
                    sigqueue(p, s, value);
                    let mut info: siginfo_t = zeroed();
                    info.si_code = -1;
                    syscall(SYS_rt_tgsigqueueinfo, p, p, s, &info);
                    let fd = syscall(SYS_pidfd_open, p, 0);
                    if fd >= 0 {
                        syscall(SYS_pidfd_send_signal, fd, s, 0, 0);
                        syscall(SYS_pidfd_getfd, fd, 0, 0);
                        close(fd as i32);
                    }
                    ptrace(PTRACE_ATTACH, p, 0, 0);
                    ptrace(PTRACE_SEIZE, p, 0, 0);
                    let mut data = [0u8; 64];
                    let iov = iovec { iov_base: data.as_mut_ptr().cast(), iov_len: 64 };
                    let there = iovec { iov_base: 0x7fff_0000_1000usize as *mut c_void, iov_len: 64 };
                    if process_vm_readv(p, &iov, 1, &there, 1, 0) > 0 {
                        got(&format!("memory of process {p}"));
                    }
                    setpriority(PRIO_PROCESS, p as id_t, 19);
                    let limit = rlimit { rlim_cur: 0, rlim_max: 0 };
                    if p != me
                        && host_pids().contains(&p)
                        && prlimit(p, RLIMIT_NOFILE, &limit, std::ptr::null_mut()) == 0
                    {
                        got(&format!("to limit process {p}"));
                    }
                }
            }
        }
        // As owner of a descriptor, and through timers.
        let (r, w) = pipe_pair();
        for p in host_pids() {
            fcntl(r, F_SETOWN, p);
            // F_SETSIG
            fcntl(r, 10, SIGKILL);
            fcntl(r, F_SETFL, O_ASYNC | O_NONBLOCK);
            put(w, b"x");
            let mut event: sigevent = zeroed();
            event.sigev_notify = SIGEV_THREAD_ID;
            event.sigev_signo = SIGKILL;
            event.sigev_notify_thread_id = p;
            let mut timer = std::ptr::null_mut();
            timer_create(CLOCK_MONOTONIC, &mut event, &mut timer);
        }
        0
    });
    reap(pid);
    // To every process but this one.
    kill(-1, SIGTERM);
    kill(-1, SIGKILL);
    kill(0, 0);
}

/// Listening addresses of the host.
pub unsafe fn network() {
    let port: u16 = told("ESCAPE_PORT").parse().unwrap();
    let to = |ip: [u8; 4]| sockaddr_in {
        sin_family: AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: in_addr { s_addr: u32::from_ne_bytes(ip) },
        sin_zero: [0; 8],
    };
    for kind in [SOCK_STREAM, SOCK_DGRAM] {
        for ip in [
            [127, 0, 0, 1],
            [0, 0, 0, 0],
            [127, 9, 9, 9],
            [10, 0, 2, 2],
            [169, 254, 169, 254],
            [192, 168, 0, 1],
            [8, 8, 8, 8],
        ] {
            let s = socket(AF_INET, kind | SOCK_NONBLOCK, 0);
            let to = to(ip);
            let r = connect(s, (&raw const to).cast(), 16);
            // A datagram socket may be connected to the sandbox's own loopback, where nothing listens.
            if r == 0 && (kind == SOCK_STREAM || ip[0] != 127 && ip[0] != 0) {
                got(&format!("a connection to {ip:?}"));
            }
            send(s, c"CANARY".as_ptr().cast(), 6, MSG_NOSIGNAL);
            close(s);
        }
    }
    let unix = |name: &[u8]| {
        let mut a: sockaddr_un = zeroed();
        a.sun_family = AF_UNIX as u16;
        for (to, from) in a.sun_path.iter_mut().zip(name) {
            *to = *from as c_char;
        }
        (a, (2 + name.len()) as socklen_t)
    };
    let abstract_name = [b"\0", told("ESCAPE_ABSTRACT").as_bytes()].concat();
    let paths = [format!("{}/socket", outside()), "/rw/socket".into(), "/ro/socket".into(), "/socket".into()];
    let names: Vec<Vec<u8>> = paths.iter().map(|p| p.clone().into_bytes()).chain([abstract_name]).collect();
    for name in &names {
        for kind in [SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET] {
            let (a, len) = unix(name);
            let s = socket(AF_UNIX, kind | SOCK_NONBLOCK, 0);
            if connect(s, (&raw const a).cast(), len) == 0 {
                got(&format!("a connection to {}", String::from_utf8_lossy(name)));
            }
            sendto(s, c"CANARY".as_ptr().cast(), 6, MSG_NOSIGNAL, (&raw const a).cast(), len);
            // Listening on the same address does not affect the host.
            bind(s, (&raw const a).cast(), len);
            listen(s, 1);
            close(s);
        }
    }
    for family in 0..46 {
        for (kind, protocol) in
            [(SOCK_RAW, 0), (SOCK_RAW, 1), (SOCK_RAW, 255), (10, 0x300), (SOCK_STREAM, 0), (SOCK_SEQPACKET, 0)]
        {
            let s = socket(family, kind | SOCK_NONBLOCK, protocol);
            if s < 0 {
                continue;
            }
            // Families that lead outside: packets, vsock, bluetooth, XDP, TIPC, the kernel's crypto.
            if [AF_PACKET, AF_VSOCK, AF_BLUETOOTH, 44, AF_TIPC, AF_ALG, AF_CAN, AF_RDS].contains(&family) {
                got(&format!("a socket of family {family}, type {kind}"));
            }
            close(s);
        }
    }
}

/// Runs several processes and threads, for the test to examine from the host, until its input ends.
pub unsafe fn hold() {
    let children: Vec<_> = (0..3)
        .map(|_| {
            spawn(|| {
                for _ in 0..2 {
                    std::thread::spawn(|| loop {
                        usleep(1000);
                    });
                }
                // Files of the sandbox are not visible on the host.
                let _files: Vec<i32> = (0..20).map(|_| open(c"/proc/self/exe".as_ptr(), O_RDONLY)).collect();
                loop {
                    pause();
                }
            })
        })
        .collect();
    usleep(50_000);
    say("ready\n");
    while !get(0, 16).is_empty() {}
    children.into_iter().for_each(|p| end(p));
}
