//! The hand-off area, written by its own process while the Sentry uses it.

use super::raw::*;
use super::*;

/// Offsets in a slot (`platform/stub/abi.rs`): the attacker has read the source.
const STATE: u64 = 0;
const OPS_DONE: u64 = 64;
const GONE: u64 = 68;
const IRQ: u64 = 72;
const MAGIC: u64 = 76;
const FILTERED: u64 = 80;
const RET: u64 = 88;
const STACK_TOP: u64 = 96;
const POST: u64 = 120;
const CELL: u64 = 0x1000;

/// Pseudo-random numbers, the same in each run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn store32(at: u64, v: u32) {
    unsafe { (at as *mut u32).write_volatile(v) }
}
fn store64(at: u64, v: u64) {
    unsafe { (at as *mut u64).write_volatile(v) }
}

/// The address of the prepared answers in a cell, recognised by the process's own pid, which is stored inverted.
unsafe fn answers_at(slot: u64) -> Option<u64> {
    let cell = AREA + slot * SLOT;
    let (pid, ppid) = (!(getpid() as u32), !(getppid() as u32));
    (0..CELL / 4 - 192)
        .map(|i| cell + i * 4)
        .find(|at| *((at + 39 * 4) as *const u32) == pid && *((at + 110 * 4) as *const u32) == ppid)
}

/// One random forgery.
unsafe fn forge(kind: usize, slot: u64, d: &mut Dice) {
    let cell = AREA + slot * SLOT;
    let x = d.next();
    match kind {
        // States in random order.
        0 => store32(cell + STATE, (x % 7) as u32),
        // Posts: expected and unexpected kinds, registers, errors of operations, lengths of copied-in data.
        1 => {
            store32(cell + POST, (x >> 8) as u32 % 10);
            store32(cell + STATE, 1);
        }
        2 => store64(cell + POST + x % 0x120 / 8 * 8, d.next()),
        3 => {
            let addresses = [0, 0x10, TEXT, AREA, GUEST_MAX - 1, GUEST_MAX, u64::MAX, 1 << 63, 0xffff_8000_0000_0000];
            store64(cell + POST + x % 0x120 / 8 * 8, addresses[(x >> 32) as usize % addresses.len()]);
        }
        // Call numbers, with the arguments that happen to be there.
        4 => {
            for at in (0..0x120).step_by(8) {
                store64(cell + POST + at, if at == 8 + 18 * 8 { x % 460 } else { d.next() % 0x1000 });
            }
            store32(cell + POST, if x & 1 == 0 { 1 } else { 7 });
            store32(cell + STATE, 1 + (x >> 20) as u32 % 2);
        }
        // The rest of the cell: answers, operations, sequence numbers, flags, return address.
        5 => store64(cell + x % CELL / 8 * 8, d.next()),
        6 => {
            for at in [OPS_DONE, GONE, IRQ, MAGIC, FILTERED] {
                store32(cell + at, d.next() as u32 % 3);
            }
            store64(cell + RET, d.next());
            store64(cell + STACK_TOP, d.next());
        }
        // Copied-in data, which may have been checked already, and data to copy out.
        7 => {
            for i in 0..64 {
                store64(cell + 0x1000 + i * 8, d.next());
                store64(cell + 0x1_0000 + i * 8, d.next());
            }
        }
        _ => {
            for i in 0..CELL / 8 {
                store64(cell + i * 8, d.next());
            }
        }
    }
}

/// Makes calls like a program; ignores the results.
unsafe fn work(round: u64) {
    let p = mmap(std::ptr::null_mut(), 4 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    let mut st: stat = zeroed();
    stat(c"/etc/../proc/self/status".as_ptr(), &mut st);
    let fd = open(c"/proc/self/status".as_ptr(), O_RDONLY);
    let mut data = [0u8; 512];
    let n = read(fd, data.as_mut_ptr().cast(), 512);
    search(&data[..n.clamp(0, 512) as usize], "a read under forgery");
    close(fd);
    munmap(p, 4 * PAGE);
    if round % 8 == 0 {
        let pid = syscall(SYS_fork);
        if pid == 0 {
            syscall(SYS_exit_group, 0);
        }
        // The pid may have been reused: only a child is waited for, and only for a while.
        for _ in 0..20 {
            if waitpid(-1, std::ptr::null_mut(), WNOHANG) != 0 {
                break;
            }
            usleep(100);
        }
    }
    sched_yield();
}

/// A round of the fuzzer: every kind of forgery while calls are made.
pub unsafe fn fuzz_cells(seed: u64) {
    raw::arm();
    for f in 0..3u64 {
        std::thread::spawn(move || {
            let mut d = Dice(seed ^ (f + 1) << 60 | 1);
            for _ in 0..100_000u32 {
                let (kind, slot) = (d.next() % 9, d.next() % 5);
                forge(kind as usize, slot, &mut d);
            }
        });
    }
    for round in 0..100 {
        work(round);
    }
}

pub unsafe fn cells() {
    raw::arm();
    const KINDS: usize = 9;
    const WHO: usize = 3;
    // Forgers: one thread on another's cell, several on several, one that also forges its own.
    survive(KINDS * WHO, |i| {
        let (kind, who) = (i % KINDS, i / KINDS);
        let forgers = [1, 3, 2][who];
        for f in 0..forgers {
            std::thread::spawn(move || {
                let mut d = Dice(0x9e37_79b9_7f4a_7c15 ^ (i as u64 + 1) << (f * 8));
                for _ in 0..60_000u32 {
                    let slot = match who {
                        0 => 0,
                        1 => d.next() % 5,
                        _ => f,
                    };
                    forge(kind, slot, &mut d);
                    if d.next() % 64 == 0 {
                        std::hint::spin_loop();
                    }
                }
            });
        }
        for round in 0..40 {
            work(round);
        }
        // Most do not get here.
        _exit(0);
    });
}

/// Forged local answers of the stub affect only the forger.
pub unsafe fn answers() {
    raw::arm();
    survive(3, |i| {
        let Some(at) = answers_at(0) else { return };
        let (me, parent) = (getpid(), getppid());
        let forged = [parent as u32, 1, 0x7fff_ffff][i];
        for nr in [SYS_getpid, SYS_gettid, SYS_getppid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid] {
            store32(at + nr as u64 * 4, !forged);
        }
        // Answers to calls that never have a local one.
        for nr in [SYS_read, SYS_open, SYS_mmap, SYS_clone, SYS_fork, SYS_execve, SYS_kill, SYS_ptrace] {
            store32(at + nr as u64 * 4, !7);
        }
        // The Sentry's own state is unaffected: /proc, credentials, the target of a signal, the children's view.
        let status = std::process::Command::new("/proc/self/exe").args(["hostile-none"]).output();
        drop(status);
        for nr in [SYS_read, SYS_open, SYS_mmap, SYS_clone, SYS_fork, SYS_execve, SYS_kill, SYS_ptrace] {
            store32(at + nr as u64 * 4, 0);
        }
        let text = std::fs::read_to_string("/proc/self/stat").unwrap();
        let number: i32 = text.split(' ').next().unwrap().parse().unwrap();
        if number != me {
            got(&format!("to be process {number} instead of {me}"));
        }
        let (r, w) = pipe_pair();
        let child = ok(fork());
        if child == 0 {
            let seen = [syscall(SYS_getpid), syscall(SYS_getppid), syscall(SYS_getuid)];
            put(w, std::slice::from_raw_parts(seen.as_ptr().cast(), 24));
            _exit(0);
        }
        let seen = get_all(r, 24);
        let word = |i: usize| i64::from_ne_bytes(seen[i * 8..][..8].try_into().unwrap());
        let uid = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap();
        if word(0) != child as i64 || word(1) != me as i64 || word(2) != uid as i64 {
            got(&format!("a child that sees {} {} {} and is {child} of {me}, user {uid}", word(0), word(1), word(2)));
        }
        waitpid(child, std::ptr::null_mut(), 0);
    });
}
