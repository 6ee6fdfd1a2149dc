//! The death of any process ends the sandbox: the Sentry, the Gofer, a stub or the command is killed, or the command is
//! signalled, at varying moments of a sandbox's life. The sandbox must end by itself with a clear message and a nonzero
//! status, and leave nothing behind.
//!
//! The test is a subreaper, so that a process left behind shows as its child.

mod common;

use common::{alive, children, command_line, descendants, end_within, eventually, Scratch, RUNSC};
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Serializes the tests if they run as threads of one process.
static ALONE: Mutex<()> = Mutex::new(());
/// Much longer than an end takes (a second), since machines can be slow.
const LIMIT: Duration = Duration::from_secs(20);

/// The guest's activity at the time.
const LIVES: [(&str, &str); 5] = [
    ("starting", "exec sleep 1000"),
    ("idle", "echo ready; exec sleep 1000"),
    ("computing", "echo ready; while :; do :; done"),
    ("forking", "echo ready; while :; do /bin/true; (:); done"),
    ("piping", "echo ready; while :; do yes | cat | head -c 10000000 | wc -c >/dev/null; done"),
];

/// Pseudo-random numbers, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Mounts, cgroups and temporary files that a sandbox might leave.
fn traces(tmp: &Scratch) -> Vec<String> {
    let mut all: Vec<String> = fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter(|l| l.contains("runsc"))
        .map(str::to_owned)
        .collect();
    for dir in [tmp.0.as_path(), "/dev/shm".as_ref(), "/sys/fs/cgroup".as_ref()] {
        let ours = |name: &str| dir == tmp.0 || name.contains("runsc");
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        all.extend(entries.map(|e| e.path().display().to_string()).filter(|p| ours(p)));
    }
    all
}

fn start(script: &str, tmp: &Scratch) -> Child {
    let mut command = Command::new(RUNSC);
    command.args(["run", "--", "/bin/sh", "-c", script]).env("TMPDIR", &tmp.0).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

/// Waits for the guest's first output.
fn ready(child: &mut Child) {
    let mut line = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    assert_eq!(&line, b"ready\n");
}

fn kill(pid: i32, signal: i32) -> bool {
    common::kill(pid, signal)
}

/// The next stub to appear, found at once or up to two milliseconds later: while it is created, during the fork
/// handshake, or at its first instructions. `None` if none appears.
fn newborn(command: i32, dice: &mut Dice) -> Option<i32> {
    let sentry = children(command).into_iter().find(|p| command_line(*p).contains("internal-sentry"))?;
    // All stubs are children of the Sentry's first thread.
    let list = format!("/proc/{sentry}/task/{sentry}/children");
    let stubs = || -> Vec<i32> {
        let text = fs::read_to_string(&list).unwrap_or_default();
        text.split_whitespace().filter_map(|p| p.parse().ok()).collect()
    };
    let mut known = stubs();
    // Varies the choice: the zygote, the prepared stubs and the first program's are among the first.
    let mut skip = dice.below(4);
    let delay = Duration::from_micros([0, dice.below(300), dice.below(2000)][dice.below(3) as usize]);
    let end = Instant::now() + Duration::from_millis(100);
    while Instant::now() < end {
        for stub in stubs() {
            if known.contains(&stub) {
                continue;
            }
            if skip == 0 {
                let then = Instant::now() + delay;
                while Instant::now() < then {
                    std::hint::spin_loop();
                }
                return Some(stub);
            }
            skip -= 1;
            known.push(stub);
        }
    }
    None
}

/// A process of the sandbox by its role; `None` if there is none (yet).
fn find(command: i32, who: &str, dice: &mut Dice) -> Option<i32> {
    let direct = |text: &str| children(command).into_iter().find(|p| command_line(*p).contains(text));
    match who {
        "Sentry" => direct("internal-sentry"),
        "Gofer" => direct("internal-gofer"),
        // If no new stub appears, one that exists.
        "newborn" => newborn(command, dice).or_else(|| find(command, "stub", dice)),
        "stub" => {
            let stubs = descendants(direct("internal-sentry")?);
            let n = stubs.len() as u64;
            (n > 0).then(|| stubs[dice.below(n) as usize])
        }
        _ => Some(command),
    }
}

/// The description of a failure.
type Failure = Option<String>;

/// Runs one sandbox and kills one of its processes.
fn once(life: (&str, &str), who: &str, signal: i32, dice: &mut Dice) -> Failure {
    let tmp = Scratch::new("death");
    let before = traces(&tmp);
    let mut child = start(life.1, &tmp);
    let command = pid(&child);
    if life.0 == "starting" {
        sleep(Duration::from_micros(dice.below(25_000)));
    } else {
        ready(&mut child);
        sleep(Duration::from_micros(dice.below(20_000)));
    }
    let a_stub = matches!(who, "stub" | "newborn");
    let mut victim = None;
    for _ in 0..2000 {
        victim = find(command, who, dice);
        if child.try_wait().unwrap().is_some() {
            break;
        }
        if victim.is_some_and(|v| kill(v, signal)) {
            if !a_stub {
                break;
            }
            // A stub that was ending anyway (an old program's) does not end the sandbox; then another one is killed.
            let end = Instant::now() + Duration::from_millis(400);
            while child.try_wait().unwrap().is_none() && Instant::now() < end {
                sleep(Duration::from_millis(2));
            }
        }
        sleep(Duration::from_millis(1));
    }
    let what = format!("{who} {victim:?}, signal {signal}, while {}", life.0);
    let ended = match std::panic::catch_unwind(|| end_within(child, LIMIT)) {
        Ok(ended) => ended,
        Err(_) => return Some(format!("{what}: it did not end")),
    };
    let text = String::from_utf8_lossy(&ended.err).into_owned();
    let mut failure = None;
    let mut fail = |why: String| failure.get_or_insert(format!("{what}: {why}; it said: {text:?}")).truncate(2000);
    match (who, signal) {
        ("command", 9) => {}
        // Signals go to the guest, or end the command if there is no guest yet.
        ("command", n) => {
            use std::os::unix::process::ExitStatusExt;
            if ended.status.code() != Some(128 + n) && ended.status.signal() != Some(n) {
                fail(format!("{}", ended.status));
            }
        }
        _ => {
            if ended.status.code() != Some(125) {
                fail(format!("{}", ended.status));
            }
            // The guest's own output may come before.
            let last = text.rfind("runsc-rs: ").map_or("", |at| &text[at..]);
            let named =
                last.contains(who) || (a_stub && (last.contains("process of the sandbox") || last.contains("zygote")));
            if !named || last.lines().count() != 1 {
                fail("no clear message".into());
            }
        }
    }
    let me = std::process::id() as i32;
    eventually(&format!("{what}: no process is left"), LIMIT, || {
        use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|s| s != WaitStatus::StillAlive) {}
        Ok(!descendants(me).into_iter().any(alive))
    });
    let after = traces(&tmp);
    if after != before {
        fail(format!("left {after:?}"));
    }
    failure
}

/// Runs `times` sandboxes for each activity.
fn deaths(who: &str, signals: &[i32], times: usize) {
    let _alone = ALONE.lock();
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ who.len() as u64);
    let mut failures = Vec::new();
    let lives: Vec<_> =
        LIVES.into_iter().filter(|(name, _)| who != "newborn" || matches!(*name, "starting" | "forking")).collect();
    for i in 0..times {
        for &life in &lives {
            failures.extend(once(life, who, signals[i % signals.len()], &mut dice));
        }
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), times * lives.len(), failures.join("\n"));
}

#[test]
fn of_the_sentry() {
    deaths("Sentry", &[9], 5);
}

#[test]
fn of_the_gofer() {
    deaths("Gofer", &[9], 5);
}

#[test]
fn of_a_stub() {
    deaths("stub", &[9], 8);
}

#[test]
fn of_a_stub_during_its_fork() {
    deaths("newborn", &[9], 60);
}

#[test]
fn of_a_stuck_sentry_by_a_second_signal() {
    let _alone = ALONE.lock();
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    for (first, second) in [(15, 15), (2, 2), (2, 15), (1, 3)] {
        let tmp = Scratch::new("death");
        let before = traces(&tmp);
        let mut child = start(LIVES[1].1, &tmp);
        ready(&mut child);
        let command = pid(&child);
        let sentry = find(command, "Sentry", &mut Dice(1)).unwrap();
        assert!(kill(sentry, 19));
        // A Sentry that is not stopped yet might handle the first signal.
        eventually("the Sentry has stopped", LIMIT, || {
            for task in fs::read_dir(format!("/proc/{sentry}/task"))? {
                let stat = fs::read_to_string(task?.path().join("stat"))?;
                if !stat.rsplit(')').next().unwrap_or("").starts_with(" T") {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        assert!(kill(command, first));
        // The first signal may be meant for the guest, which may take its time to end.
        sleep(Duration::from_millis(800));
        assert!(child.try_wait().unwrap().is_none());
        // Signals that do not ask for an end do not count.
        assert!(kill(command, 28) && kill(command, 10));
        sleep(Duration::from_millis(100));
        assert!(child.try_wait().unwrap().is_none());
        assert!(kill(command, second));
        let ended = end_within(child, LIMIT);
        let text = String::from_utf8_lossy(&ended.err);
        assert_eq!(ended.status.code(), Some(128 + second), "{text}");
        assert!(text.starts_with("runsc-rs: ") && text.contains("Sentry") && text.lines().count() == 1, "{text}");
        let me = std::process::id() as i32;
        eventually("no process is left", LIMIT, || Ok(!descendants(me).into_iter().any(alive)));
        assert_eq!(traces(&tmp), before);
    }
}

#[test]
fn not_of_many_signals_that_the_guest_ignores() {
    let _alone = ALONE.lock();
    let tmp = Scratch::new("death");
    let mut child =
        start("trap '' INT TERM; echo ready; while test $((n += 1)) -lt 200; do sleep 0.01; done; exit 7", &tmp);
    ready(&mut child);
    for i in 0..100 {
        kill(pid(&child), [2, 15][i % 2]);
        sleep(Duration::from_millis(5));
    }
    let ended = end_within(child, LIMIT);
    assert_eq!((ended.status.code(), ended.err), (Some(7), Vec::new()));
}

/// Like a cgroup freezer: every host call that the Sentry waits in is interrupted.
#[test]
fn not_of_being_stopped_and_continued() {
    let _alone = ALONE.lock();
    let tmp = Scratch::new("stopped");
    let script = "echo ready; for i in $(seq 300); do (exit 3); [ $? = 3 ] || exit 1; done; echo done";
    let mut child = start(script, &tmp);
    ready(&mut child);
    let sentry = find(pid(&child), "Sentry", &mut Dice(7)).unwrap();
    while child.try_wait().unwrap().is_none() {
        kill(sentry, libc::SIGSTOP);
        kill(sentry, libc::SIGCONT);
        sleep(Duration::from_micros(300));
    }
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), out.stdout, out.stderr), (Some(0), b"done\n".to_vec(), Vec::new()));
}

#[test]
fn of_the_command() {
    deaths("command", &[9], 4);
}

#[test]
fn by_a_signal_to_the_command() {
    // SIGINT is left out: a shell that waits for a child does not die of it.
    deaths("command", &[15, 1, 10], 6);
}
