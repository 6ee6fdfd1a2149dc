//! Random system calls. Each round is a process with two threads and one descriptor of every kind. It makes calls with
//! mostly plausible arguments, until it has made enough or is killed by one.

use super::Random;
use libc::*;
use std::ptr::null_mut;

const CALLS: usize = 400;
const PAGE: usize = 4096;
/// Pages that calls read and write; an inaccessible page follows.
const SCRATCH: usize = 16;

/// Paths for the calls, stored at the beginning of the scratch pages.
const PATHS: &[&str] = &[
    "",
    ".",
    "..",
    "/",
    "file",
    "dir",
    "dir/new",
    "link",
    "loop",
    "/proc/self/fd/5",
    "/proc/self/mem",
    "/proc/self/maps",
    "/proc/thread-self/status",
    "/proc/sys/kernel/pid_max",
    "/proc/self/exe",
    "/dev/ptmx",
    "/dev/full",
    "/dev/shm/x",
    "/etc/passwd",
    "/nowhere/at/all",
    "user.name",
    "tmpfs",
    "trusted.overlay.opaque",
];
const PATH_SLOT: usize = 64;

/// Calls that would end the fuzzer, or leave the round's confinement.
#[allow(non_upper_case_globals)]
fn left_out(nr: u64, root: bool) -> bool {
    let ends = matches!(nr as i64, SYS_exit | SYS_exit_group | SYS_reboot | SYS_umount2 | SYS_pivot_root | SYS_chroot);
    let reaches = matches!(
        nr as i64,
        SYS_kill
            | SYS_tkill
            | SYS_tgkill
            | SYS_rt_sigqueueinfo
            | SYS_rt_tgsigqueueinfo
            | SYS_pidfd_send_signal
            | SYS_process_vm_writev
            | SYS_prlimit64
            | SYS_mount
            | SYS_move_mount
    );
    ends || root && reaches
}

struct Round {
    random: Random,
    fds: Vec<i32>,
    scratch: u64,
    root: bool,
}

impl Round {
    fn pointer(&mut self) -> u64 {
        let size = (SCRATCH * PAGE) as u64;
        match self.random.below(12) {
            0 => self.scratch + size - self.random.below(64),
            1 => self.scratch + self.random.below(size),
            2 => self.random.of(&[1, 0x1000, 0x7ffe_0000_0000, 0x7ffd_ffff_f000, 0x7fff_0000_1000, 0x7fff_4000_0000]),
            3 => self.random.of(&[1 << 63, u64::MAX, u64::MAX - 4095, 0xffff_8000_0000_0000, 0x8000_0000_0000]),
            4 | 5 => self.scratch + self.random.below(PATHS.len() as u64) * PATH_SLOT as u64,
            _ => self.scratch + self.random.below(size) / 64 * 64,
        }
    }
    fn value(&mut self) -> u64 {
        let r = &mut self.random;
        match r.below(16) {
            0 => 0,
            1..=3 => r.below(20),
            4 | 5 => {
                let fds = std::mem::take(&mut self.fds);
                let fd = self.random.of(&fds);
                self.fds = fds;
                fd as u64
            }
            6..=9 => self.pointer(),
            10 => (1u64 << r.below(64)).wrapping_sub(r.below(2)),
            11 => r.of(&[u64::MAX, -100i64 as u64, i32::MIN as u64, i32::MAX as u64, u32::MAX.into(), i64::MAX as u64]),
            12 => (r.below(SCRATCH as u64) + 1) * PAGE as u64,
            13 => 1 << r.below(32) | 1 << r.below(32) | 1 << r.below(12),
            14 => r.below(70000),
            _ => r.next(),
        }
    }
    fn fill(&mut self) {
        for i in 0..SCRATCH * PAGE / 8 {
            let v = match i % 4 {
                0 => self.value(),
                1 => self.random.below(200),
                2 => self.pointer(),
                _ => 0,
            };
            unsafe { ((self.scratch as usize + i * 8) as *mut u64).write(v) };
        }
        for (i, p) in PATHS.iter().enumerate() {
            unsafe {
                let to = (self.scratch as usize + i * PATH_SLOT) as *mut u8;
                to.copy_from(p.as_ptr(), p.len());
                to.add(p.len()).write(0);
            }
        }
    }
    fn call(&mut self) {
        let nr = match self.random.below(8) {
            0 => self.random.below(470),
            1 => self.random.next(),
            // The older, common calls.
            _ => self.random.below(335),
        };
        if left_out(nr, self.root) {
            return;
        }
        let a: [u64; 6] = std::array::from_fn(|_| self.value());
        let me = unsafe { syscall(SYS_gettid) };
        unsafe {
            syscall(nr as i64, a[0], a[1], a[2], a[3], a[4], a[5]);
            if syscall(SYS_gettid) != me {
                _exit(0);
            }
        }
    }
}

/// One descriptor of each available kind.
unsafe fn descriptors() -> Vec<i32> {
    let mut all = vec![0, 1, 2];
    let mut pair = [0; 2];
    if pipe2(pair.as_mut_ptr(), O_NONBLOCK) == 0 {
        all.extend(pair);
    }
    for kind in [SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET] {
        if socketpair(AF_UNIX, kind, 0, pair.as_mut_ptr()) == 0 {
            all.extend(pair);
        }
    }
    for (domain, kind) in
        [(AF_INET, SOCK_STREAM), (AF_INET, SOCK_DGRAM), (AF_INET6, SOCK_STREAM), (AF_NETLINK, SOCK_RAW)]
    {
        all.push(socket(domain, kind, 0));
    }
    let listener = socket(AF_INET, SOCK_STREAM, 0);
    listen(listener, 4);
    all.push(listener);
    for (path, flags) in [
        (c"file", O_RDWR | O_CREAT),
        (c"file", O_PATH),
        (c".", O_RDONLY | O_DIRECTORY),
        (c"fifo", O_RDWR),
        (c"/proc/self", O_RDONLY | O_DIRECTORY),
        (c"/proc/self/status", O_RDONLY),
        (c"/proc/self/mem", O_RDWR),
        (c"/dev/zero", O_RDWR),
        (c"/dev/ptmx", O_RDWR | O_NOCTTY),
        (c"/usr", O_RDONLY | O_DIRECTORY),
        (c"/etc/passwd", O_RDONLY),
    ] {
        all.push(open(path.as_ptr(), flags, 0o600));
    }
    all.push(memfd_create(c"m".as_ptr(), MFD_ALLOW_SEALING));
    all.push(eventfd(1, EFD_NONBLOCK));
    all.push(epoll_create1(0));
    all.push(timerfd_create(CLOCK_MONOTONIC, 0));
    all.push(inotify_init1(IN_NONBLOCK));
    let mut set = std::mem::zeroed();
    sigemptyset(&mut set);
    sigaddset(&mut set, SIGUSR2);
    all.push(signalfd(-1, &set, SFD_NONBLOCK));
    all.push(syscall(SYS_pidfd_open, getpid(), 0) as i32);
    all.retain(|&fd| fd >= 0);
    all
}

/// Makes the calls of one process; may not return.
pub unsafe fn round(mut random: Random) {
    let root = random.below(2) == 0;
    let dir = std::env::temp_dir().join(format!("fuzz-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("dir")).unwrap();
    std::env::set_current_dir(&dir).unwrap();
    let _ = std::os::unix::fs::symlink("file", "link");
    let _ = std::os::unix::fs::symlink("loop", "loop");
    mkfifo(c"fifo".as_ptr(), 0o600);
    chmod(c".".as_ptr(), 0o777);
    // Limits accidental allocations, and ends waits.
    let limit = rlimit { rlim_cur: 1 << 30, rlim_max: 1 << 30 };
    setrlimit(RLIMIT_AS, &limit);
    setrlimit(RLIMIT_FSIZE, &rlimit { rlim_cur: 16 << 20, rlim_max: 16 << 20 });
    setrlimit(RLIMIT_NPROC, &rlimit { rlim_cur: 60, rlim_max: 60 });
    extern "C" fn nothing(_: i32) {}
    let mut action: sigaction = std::mem::zeroed();
    action.sa_sigaction = nothing as *const () as usize;
    sigaction(SIGALRM, &action, null_mut());
    let tick = timeval { tv_sec: 0, tv_usec: 3000 };
    let timer = itimerval { it_interval: tick, it_value: tick };
    setitimer(ITIMER_REAL, &timer, null_mut());
    let fds = descriptors();
    if !root {
        setgid(65534);
        setuid(65534);
    }
    let start = |seed: u64| {
        let fds = fds.clone();
        move || {
            let whole = mmap(null_mut(), (SCRATCH + 1) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            mprotect(whole, SCRATCH * PAGE, PROT_READ | PROT_WRITE);
            let mut r = Round { random: Random::new(seed), fds, scratch: whole as u64, root };
            for i in 0..CALLS {
                if i % 50 == 0 {
                    r.fill();
                }
                r.call();
            }
        }
    };
    let other = std::thread::Builder::new().spawn(start(random.next()));
    start(random.next())();
    if let Ok(other) = other {
        let _ = other.join();
    }
}
