//! Attacks, for `tests/escape.rs`: `guest-tests hostile NAME` does its worst to get out of the sandbox, prints a line `GOT …` for
//! each thing that it should not have got, and `done` when it has tried everything. What it knows of the host is in its environment.
//!
//! Attacks run in children of the first process, which watches over them ([`survive`]): most kill or wedge their own process, and that
//! is their own affair. What counts is that the first process, the bystander and the host do not notice.

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

/// A line to the test, whatever state this process is in.
pub fn say(text: &str) {
    // SAFETY: a plain buffer.
    unsafe { write(1, text.as_ptr().cast(), text.len()) };
}

/// Something that must not be had.
pub fn got(what: &str) {
    say(&format!("GOT {}\n", what.replace('\n', " ")));
}

/// What the test told about the host.
pub fn told(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// Directory of the host that nothing in the sandbox leads to.
pub fn outside() -> String {
    told("ESCAPE_OUTSIDE")
}

/// Processes of the host.
pub fn host_pids() -> Vec<pid_t> {
    told("ESCAPE_PIDS").split_whitespace().map(|p| p.parse().unwrap()).collect()
}

/// Looks for one of the host's secrets: `CANARY-`, a word in capitals, `-`, sixteen hexadecimal digits.
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

/// Runs attacks `0..n` in a child. One that dies or gets stuck is replaced by another that goes on with the next attack.
pub unsafe fn survive(n: usize, attack: impl Fn(usize)) {
    survive_each(n, Duration::from_millis(100), attack);
}

/// The same with another time after which an attack counts as stuck. It has been made then: nothing is left out on a slow machine.
pub unsafe fn survive_each(n: usize, patience: Duration, attack: impl Fn(usize)) {
    // A word for each child: one that has been killed may not have noticed yet.
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

/// What a child's word holds before its first attack.
const NOT_BEGUN: u64 = u64::MAX;

/// Waits for a child, or (true) until nothing has gone on for some time.
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

/// SIGKILL ends a child, whatever it does.
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

/// A process that minds its own business until the word is set, and ends with 0 if all that it was told was right.
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
