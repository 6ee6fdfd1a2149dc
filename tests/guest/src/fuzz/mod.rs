//! `guest-tests fuzz NAME SEED SECONDS`: random hostile input, for the sandbox only. Each round is a process with its
//! own seed; two run at a time, and each is killed after two seconds. The results do not matter: the kernel must
//! survive, which `tests/fuzz.rs` checks from outside.

mod calls;
mod programs;
mod sockets;
mod terminals;

use crate::hostile;
use libc::*;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const ROUND_MS: u64 = 2000;

type Round = unsafe fn(Random);

const ALL: &[(&str, Round)] = &[
    ("calls", calls::round),
    ("cells", cells),
    ("programs", programs::round),
    ("sockets", sockets::round),
    ("terminals", terminals::round),
];

/// Threads of the process forge the hand-off area while it makes calls.
unsafe fn cells(mut random: Random) {
    hostile::cells::fuzz_cells(random.next())
}

/// Pseudo-random numbers determined by the seed (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
    /// A number typical of hostile programs: small, near a power of two, an end of a type's range, or any.
    pub fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(64),
            1 => (1u64 << self.below(64)).wrapping_sub(self.below(3)),
            2 => self.of(&[u64::MAX, i32::MIN as u64, i32::MAX as u64, u32::MAX.into(), i64::MAX as u64, 1 << 63]),
            3 => self.below(70_000),
            4 => 0,
            _ => self.next(),
        }
    }
    /// Random bytes, many of them from `favourites`.
    pub fn bytes(&mut self, len: usize, favourites: &[u8]) -> Vec<u8> {
        let one = |r: &mut Random| if r.below(3) > 0 { r.of(favourites) } else { r.next() as u8 };
        (0..len).map(|_| one(self)).collect()
    }
}

/// Limits the resources of a round.
pub unsafe fn limits() {
    for (resource, limit) in [(RLIMIT_AS, 1 << 30), (RLIMIT_FSIZE, 16 << 20), (RLIMIT_NPROC, 60)] {
        setrlimit(resource, &rlimit { rlim_cur: limit, rlim_max: limit });
    }
}

/// Kills the rest of a round's process group, and waits for the remaining time.
unsafe fn finish(pid: i32) {
    for _ in 0..ROUND_MS / 2 {
        let mut status = 0;
        match waitpid(pid, &mut status, WNOHANG) {
            0 => usleep(2000),
            _ => break,
        };
    }
    kill(-pid, SIGKILL);
    kill(pid, SIGKILL);
    waitpid(pid, null_mut(), 0);
}

unsafe fn start(round: Round, seed: u64) -> i32 {
    let pid = fork();
    if pid == 0 {
        // The output of a round is discarded.
        let null = open(c"/dev/null".as_ptr(), O_RDWR);
        for fd in 0..3 {
            dup2(null, fd);
        }
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        round(Random::new(seed));
        _exit(0);
    }
    pid
}

pub fn main(args: &[String]) -> i32 {
    let number = |i: usize| args.get(i).and_then(|a| a.parse::<u64>().ok());
    let round = args.first().and_then(|name| ALL.iter().find(|f| f.0 == name)).map(|f| f.1);
    let (Some(round), Some(seed), Some(seconds)) = (round, number(1), number(2)) else {
        eprintln!("usage: guest-tests fuzz {} SEED SECONDS", ALL.iter().map(|f| f.0).collect::<Vec<_>>().join("|"));
        return 2;
    };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if !release.contains("runsc-rs") {
        eprintln!("fuzzers are for the sandbox: they would break this machine");
        return 2;
    }
    static ROUND: AtomicU64 = AtomicU64::new(0);
    let end = Instant::now() + Duration::from_secs(seconds);
    let workers: Vec<_> = (0..2)
        .map(|_| {
            std::thread::spawn(move || {
                while Instant::now() < end {
                    let n = ROUND.fetch_add(1, Relaxed);
                    // SAFETY: see the crate's note.
                    unsafe {
                        let pid = start(round, seed.wrapping_mul(1_000_003).wrapping_add(n));
                        if pid > 0 {
                            finish(pid);
                        }
                    }
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|w| w.join().unwrap());
    // Removes the files that the rounds wrote.
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("fuzz-") {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    println!("{} rounds", ROUND.load(Relaxed));
    0
}
