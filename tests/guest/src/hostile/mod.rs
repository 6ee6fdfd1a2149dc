//! The attacks of `tests/escape.rs`: `guest-tests hostile NAME` tries to get out of the sandbox, prints a line `GOT …`
//! for each thing that it should not have obtained, and `done` when it has tried everything. Its knowledge of the host
//! comes from its environment.
//!
//! Attacks run in children of the first process, which watches them ([`survive`]), because most of them kill or block
//! their own process. What counts is that the first process, the bystander and the host do not notice.

pub mod cells;
mod descriptors;
mod entries;
mod files;
mod forged;
mod frames;
mod hoards;
mod host;
mod jumps;
mod lies;
mod raw;
pub mod residue;
mod sites;
mod stalls;
mod stub_overwrite;

use crate::t::*;
use libc::*;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

const ATTACKS: &[(&str, unsafe fn())] = &[
    ("jumps", jumps::jumps),
    ("allowed", jumps::allowed),
    ("strays", jumps::strays),
    ("unstoppable", jumps::unstoppable),
    ("cells", cells::cells),
    ("answers", cells::answers),
    ("lies", lies::lies),
    ("stub_overwrite", stub_overwrite::stub_overwrite),
    ("stub_overwrite_threads", stub_overwrite::stub_overwrite_threads),
    ("entries", entries::entries),
    ("frames", frames::frames),
    ("sites", sites::sites),
    ("forged", forged::forged),
    ("walks", files::walks),
    ("rights", files::rights),
    ("residue", residue::residue),
    ("host", host::look),
    ("signals", host::signals),
    ("network", host::network),
    ("descriptors", descriptors::descriptors),
    ("stalls", stalls::stalls),
    ("hold", host::hold),
    ("litter", lies::litter),
    ("crowd", jumps::crowd),
    ("insistent", hoards::insistent),
    ("untaken", hoards::untaken),
];

pub fn main(args: &[String]) -> i32 {
    let found = args.first().and_then(|name| ATTACKS.iter().find(|(n, _)| n == name));
    let Some((_, attack)) = found else {
        for (name, _) in ATTACKS {
            println!("{name}");
        }
        return if args.is_empty() { 0 } else { 2 };
    };
    prepare();
    // SAFETY: see the crate's note.
    unsafe {
        let (bystander, stop) = bystander();
        attack();
        if args[0] != "signals" {
            stop.store(1, SeqCst);
            let status = reap(bystander);
            if status != 0 {
                got(&format!("a bystander's peace: it ended with {status:#x}"));
            }
        }
        say("done\n");
    }
    0
}

/// Writes a line to the test; works in any state of the process.
pub fn say(text: &str) {
    // SAFETY: a plain buffer.
    unsafe { write(1, text.as_ptr().cast(), text.len()) };
}

/// Reports something that an attack must not obtain.
pub fn got(what: &str) {
    say(&format!("GOT {}\n", what.replace('\n', " ")));
}

/// A value that the test provided about the host.
pub fn told(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// A directory of the host that is not part of the sandbox.
pub fn outside() -> String {
    told("ESCAPE_OUTSIDE")
}

/// Process ids of the host.
pub fn host_pids() -> Vec<pid_t> {
    told("ESCAPE_PIDS").split_whitespace().map(|p| p.parse().unwrap()).collect()
}

/// Searches for a secret of the host: `CANARY-`, a word in capitals, `-`, sixteen hexadecimal digits.
pub fn search(data: &[u8], from: &str) {
    let mark = b"CANARY-";
    for at in 0..data.len().saturating_sub(mark.len()) {
        if !data[at..].starts_with(mark) {
            continue;
        }
        let rest = &data[at + mark.len()..];
        let word = rest.iter().take_while(|c| c.is_ascii_uppercase()).count();
        let digits = rest.iter().skip(word + 1).take_while(|c| c.is_ascii_hexdigit()).count();
        if word > 0 && rest.get(word) == Some(&b'-') && digits >= 16 {
            got(&format!("{} from {from}", String::from_utf8_lossy(&data[at..at + mark.len() + word + 17])));
        }
    }
}

/// Runs the attacks `0..n` in children. A child that dies or blocks is replaced by another one, which continues with
/// the next attack.
pub unsafe fn survive(n: usize, attack: impl Fn(usize)) {
    survive_each(n, Duration::from_millis(100), attack);
}

/// Like [`survive`], with another time after which an attack counts as blocked. The attack has been made by then, so a
/// slow machine skips none.
pub unsafe fn survive_each(n: usize, patience: Duration, attack: impl Fn(usize)) {
    // One word for each child, because a killed one may still be running for a moment.
    const WORDS: usize = PAGE / 8;
    let words = &*shared(PAGE).cast::<[AtomicU64; WORDS]>();
    let (mut next, mut killed) = (0, Vec::new());
    for child in 0.. {
        if next >= n {
            break;
        }
        let word = &words[child % WORDS];
        word.store(NOT_BEGUN, SeqCst);
        let pid = spawn(|| {
            raw::arm();
            for i in next..n {
                word.store(i as u64, SeqCst);
                attack(i);
            }
            word.store(n as u64, SeqCst);
            0
        });
        if std::env::var_os("HOSTILE_VERBOSE").is_some() {
            say(&format!("{pid} begins at {next} of {n}\n"));
        }
        if watch(pid, word, patience) {
            ok(kill(pid, SIGKILL));
            killed.push(pid);
        }
        next = match word.load(SeqCst) {
            NOT_BEGUN => next + 1,
            at => at as usize + 1,
        };
    }
    killed.into_iter().for_each(|pid| end(pid));
    ok(munmap(std::ptr::from_ref(words).cast_mut().cast(), PAGE));
}

/// The value of a child's word before its first attack.
const NOT_BEGUN: u64 = u64::MAX;

/// Waits for a child; true if it made no progress for `patience` instead of ending.
unsafe fn watch(pid: pid_t, progress: &AtomicU64, patience: Duration) -> bool {
    let (mut seen, mut since) = (NOT_BEGUN, Instant::now());
    loop {
        let r = waitpid(pid, std::ptr::null_mut(), WNOHANG);
        if r == pid {
            return false;
        }
        if r == -1 && errno() != EINTR {
            got(&format!("away from its parent: {}", name_of(errno())));
            return false;
        }
        let now = progress.load(SeqCst);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        if since.elapsed() > if now == NOT_BEGUN { 2 * PATIENCE } else { patience } {
            return true;
        }
        usleep(300);
    }
}

/// Kills a child; SIGKILL must work in any state.
pub unsafe fn end(pid: pid_t) {
    ok(kill(pid, SIGKILL));
    let since = Instant::now();
    while waitpid(pid, std::ptr::null_mut(), WNOHANG) != pid {
        if since.elapsed() > 2 * PATIENCE {
            return got("a process that SIGKILL does not end");
        }
        usleep(300);
    }
}

/// A process that makes ordinary calls until the word is set, and exits with 0 if all results were right.
unsafe fn bystander() -> (pid_t, &'static AtomicU64) {
    let stop = &*shared(PAGE).cast::<AtomicU64>();
    let pid = spawn(|| {
        let (me, parent, uid) = (getpid(), getppid(), getuid());
        let (pr, pw) = pipe_pair();
        let mine = anon(16 * PAGE, RW);
        let mut n = 0u64;
        loop {
            n += 1;
            let memory = std::slice::from_raw_parts_mut(mine.cast::<u64>(), 16 * PAGE / 8);
            let right = syscall(SYS_getpid) == me as i64
                && syscall(SYS_gettid) == me as i64
                && getpgid(0) == getpgid(me)
                && syscall(SYS_getppid) == parent as i64
                && syscall(SYS_getuid) == uid as i64
                && write(pw, (&raw const n).cast(), 8) == 8
                && get(pr, 8) == n.to_ne_bytes()
                && memory.iter().all(|w| *w == n - 1);
            memory.fill(n);
            if !right {
                return 1;
            }
            if stop.load(SeqCst) != 0 {
                return 0;
            }
            usleep(500);
        }
    });
    (pid, stop)
}
