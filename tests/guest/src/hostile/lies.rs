//! Every word of a stub that the Sentry relies on, as a lie, one after the other (the table is in docs/security.md):
//! each may harm the liar and no other process.

use super::jumps::stray;
use super::raw::*;
use super::*;
use std::sync::atomic::{fence, AtomicBool, AtomicU32, AtomicUsize};

/// Offsets in a cell (`platform/stub/abi.rs`).
const MODE: u64 = 8;
const SEQ: u64 = 16;
const NFDS: u64 = 20;
const CORE: u64 = 32;
const OPS_DONE: u64 = 64;
const GONE: u64 = 68;
const KIND: u64 = 128;
const TID: u64 = 132;
const REGS: u64 = 136;
const PRE_LEN: u64 = 312;

const POSTED: u32 = 1;
const REPLY: u32 = 4;
const STAY: u32 = 3;
const SYSCALL: u32 = 1;
const OPS_DONE_KIND: u32 = 4;

unsafe fn word(at: u64) -> &'static AtomicU32 {
    &*(at as *const AtomicU32)
}

/// Posts a call from a thread that is not in its stub, in its own cell, and reports all requested operations as done.
/// `None`: no answer came. Otherwise `rax`, and the number of descriptors said to wait.
unsafe fn forged(slot: u64, nr: c_long, args: [u64; 6]) -> Option<(i64, u32)> {
    let cell = AREA + slot * SLOT;
    for i in 0..19 {
        let at = [8, 9, 12, 2, 0, 1].iter().position(|r| *r == i);
        let v = match (i, at) {
            (_, Some(arg)) => args[arg],
            (13 | 18, _) => nr as u64,
            (15, _) => &raw const nr as u64,
            (16, _) => 0x40_0000,
            (17, _) => 0x202,
            _ => 0,
        };
        ((REGS + cell + i * 8) as *mut u64).write_volatile(v);
    }
    ((cell + PRE_LEN) as *mut u64).write_volatile(0);
    word(cell + TID).store(0, SeqCst);
    word(cell + KIND).store(SYSCALL, SeqCst);
    let mut files = 0;
    loop {
        fence(SeqCst);
        word(cell).store(POSTED, SeqCst);
        let since = Instant::now();
        while word(cell).load(SeqCst) != REPLY {
            if since.elapsed() > Duration::from_millis(500) {
                return None;
            }
            std::hint::spin_loop();
        }
        files += word(cell + NFDS).load(SeqCst);
        word(cell + OPS_DONE).store(word(cell + SEQ).load(SeqCst), SeqCst);
        if word(cell + MODE).load(SeqCst) != STAY {
            return Some((((cell + 24) as *const i64).read_volatile(), files));
        }
        word(cell + KIND).store(OPS_DONE_KIND, SeqCst);
    }
}

/// Runs `liar` on a second thread while this one makes calls, because forged posts alone do not wake the Sentry.
unsafe fn beside(liar: impl FnOnce() + Send + 'static) {
    static DONE: AtomicBool = AtomicBool::new(false);
    DONE.store(false, SeqCst);
    std::thread::spawn(move || {
        liar();
        DONE.store(true, SeqCst);
        // The thread is not in its stub, so it has no way back.
        loop {
            std::hint::spin_loop();
        }
    });
    let since = Instant::now();
    while !DONE.load(SeqCst) && since.elapsed() < PATIENCE {
        usleep(200);
    }
}

/// Writes the values `0..n` to a word of this thread's cell again and again while `honest` runs.
unsafe fn racing(at: &'static [u64], n: u32, honest: impl FnOnce()) {
    static STOP: AtomicBool = AtomicBool::new(false);
    STOP.store(false, SeqCst);
    let racer = std::thread::spawn(move || {
        let mut x = 0;
        while !STOP.load(SeqCst) {
            x += 1;
            for _ in 0..500 {
                at.iter().for_each(|at| word(AREA + at).store(x % n, SeqCst));
            }
        }
    });
    honest();
    STOP.store(true, SeqCst);
    let _ = racer.join();
}

unsafe fn threads(n: usize) {
    for _ in 0..n {
        let pinned = std::thread::spawn(|| {
            let mut set: cpu_set_t = zeroed();
            CPU_SET(0, &mut set);
            sched_setaffinity(0, size_of::<cpu_set_t>(), &set);
        });
        let _ = pinned.join();
    }
}

unsafe fn forks(n: usize) {
    for _ in 0..n {
        let pid = fork();
        if pid == 0 {
            syscall(SYS_exit_group, 0);
        }
        for _ in 0..50 {
            if pid < 0 || waitpid(pid, std::ptr::null_mut(), WNOHANG) != 0 {
                break;
            }
            usleep(100);
        }
    }
}

pub unsafe fn lies() {
    raw::arm();
    let gate = Gate::new();
    survive_each(5, Duration::from_secs(1), |i| match i {
        // The id of a new thread: those of other processes' threads, and of the Sentry's.
        0 => racing(&[TID], 60, || threads(120)),
        // The id of a forked child.
        1 => racing(&[TID], 60, || forks(60)),
        // That a thread has ended, and its core.
        2 => racing(&[GONE, GONE + SLOT, GONE + 2 * SLOT, CORE, CORE + SLOT], 70, || threads(120)),
        // That operations are done before they are: the other thread's calls are then answered early.
        3 => racing(&[OPS_DONE, OPS_DONE + SLOT], 1000, || {
            for _ in 0..200 {
                let p = mmap(std::ptr::null_mut(), 4 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                munmap(p, 4 * PAGE);
            }
        }),
        // That descriptors for mapping were taken.
        _ => {
            static FILES: AtomicUsize = AtomicUsize::new(0);
            let fd = ok(open(c"/proc/self/exe".as_ptr(), O_RDONLY));
            beside(move || {
                for _ in 0..60 {
                    let args = [0x3_0000_0000, 4096, PROT_READ as u64, (MAP_PRIVATE | MAP_FIXED) as u64, fd as u64, 0];
                    let Some((_, files)) = forged(1, SYS_mmap, args) else { break };
                    FILES.fetch_add(files as usize, SeqCst);
                }
            });
            let files = FILES.load(SeqCst);
            if files > 30 {
                got(&format!("{files} descriptors in flight"));
            }
        }
    });
    // That a child was forked: waiting for it delays others only briefly.
    let pid = spawn(|| {
        static CHILD: AtomicU32 = AtomicU32::new(0);
        beside(|| CHILD.store(forged(1, SYS_fork, [0; 6]).map_or(0, |r| r.0 as u32), SeqCst));
        let path = format!("/proc/{}/cmdline", CHILD.load(SeqCst));
        let since = Instant::now();
        for _ in 0..400 {
            let _ = std::fs::read(&path);
        }
        if since.elapsed() > Duration::from_secs(8) {
            got(&format!("to hold all up for {:?}", since.elapsed()));
        }
        syscall(SYS_exit_group, 0) as i32
    });
    reap(pid);
    // That the first thread is alive: it has ended, and another one continues. Such a process is killed, whatever its
    // parent does.
    let pid = spawn(|| {
        std::thread::spawn(|| {
            let (from, to) = ([1u8; 4096], open(c"/dev/null".as_ptr(), O_WRONLY));
            let iov = [iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: 4096 }; 8];
            usleep(20_000);
            loop {
                writev(to, iov.as_ptr(), 8);
            }
        });
        usleep(1000);
        gate.call(SYS_exit, [0; 6]);
        0
    });
    let since = Instant::now();
    while waitpid(pid, std::ptr::null_mut(), WNOHANG) == 0 {
        if since.elapsed() > 2 * PATIENCE {
            got("a process that lives on without its first thread");
            return end(pid);
        }
        usleep(1000);
    }
}

/// Leaves processes cloned without the Sentry, dead ones and computing ones, then runs until its input ends, forking
/// now and then, for the test to examine from the host.
pub unsafe fn litter() {
    raw::arm();
    let gate = Gate::new();
    for _ in 0..60 {
        // The child returns from the clone as well, and ends with its next call.
        if gate.call(SYS_clone, [0x8000 | 17, 0, 0, 0, 0, 0]) == 0 {
            gate.call(SYS_exit_group, [0; 6]);
        }
    }
    let counter = shared(PAGE).cast::<u64>();
    for _ in 0..8 {
        stray(counter);
    }
    eventually("a stray that runs", || counter.read_volatile() > 0);
    forks(1);
    say("ready\n");
    let mut input = pollfd { fd: 0, events: POLLIN, revents: 0 };
    while poll(&mut input, 1, 100) == 0 {
        forks(1);
    }
}
