//! Attacks from inside (`guest-tests hostile …`) on a real sandbox: the host must not notice any of them. Each runs in
//! every mode: with and without patched calls, with hand-off by sleeping and by spinning.
//!
//! The host has secrets (in files, in a process's environment and arguments, in an inherited descriptor), a process
//! that waits for signals, listening sockets, and files that must not change. The guest reports what it obtained; the
//! test checks the rest.

mod common;

use common::{alive, command_line, descendants, end_within, eventually, guest_tests, Scratch, RUNSC};
use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{symlink, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// Serializes the tests if they run as threads of one process.
static ALONE: Mutex<()> = Mutex::new(());
/// Much longer than an attack takes.
const LIMIT: Duration = Duration::from_secs(120);

const MODES: [&[&str]; 4] = [&[], &["--patch", "off"], &["--hand-off", "sleep"], &["--hand-off", "spin"]];

/// Settings of the host's kernel that an attack tries to change.
const SETTINGS: [&str; 6] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/domainname",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/panic",
    "/proc/sys/net/ipv4/ip_forward",
];

/// The host's assets.
struct Host {
    scratch: Scratch,
    /// A process that waits for signals, with all of them blocked, and has secrets in its arguments and environment.
    waiting: Child,
    tcp: TcpListener,
    udp: UdpSocket,
    sockets: Vec<UnixListener>,
    abstract_name: String,
    /// A descriptor that the command inherits.
    inherited: OwnedFd,
    trees: BTreeMap<PathBuf, String>,
    settings: Vec<String>,
    mounts: String,
}

fn secret(kind: &str) -> String {
    let mut bytes = [0; 8];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    format!("CANARY-{kind}-{:016x}", u64::from_ne_bytes(bytes))
}

impl Host {
    fn new() -> Host {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let scratch = Scratch::new("escape");
        let dir = |name: &str| {
            let path = scratch.0.join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let outside = dir("outside");
        dir("outside/dir");
        for name in ["secret", "kept", "dir/inner"] {
            fs::write(outside.join(name), secret("FILE")).unwrap();
        }
        // A small root file system: the C library and the guest program.
        for name in ["proc", "sys", "dev", "tmp", "usr", "ro", "rw"] {
            dir(&format!("root/{name}"));
        }
        let root = scratch.0.join("root");
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        for name in ["lib", "lib64"] {
            symlink(format!("usr/{name}"), root.join(name)).unwrap();
        }
        fs::copy(guest_tests(), root.join("guest-tests")).unwrap();
        dir("ro/dir");
        dir("rw/dir");
        let mut sockets = vec![UnixListener::bind(outside.join("socket")).unwrap()];
        for tree in ["root", "ro", "rw"] {
            let tree = scratch.0.join(tree);
            fs::write(tree.join("kept"), vec![b'k'; 4096]).unwrap();
            fs::write(tree.join("data"), vec![b'd'; 4096]).unwrap();
            fs::write(tree.join("owned"), vec![b'o'; 4096]).unwrap();
            sockets.push(UnixListener::bind(tree.join("socket")).unwrap());
            let links = tree.join("links");
            fs::create_dir(&links).unwrap();
            let up = "../".repeat(40);
            for (name, target) in [
                ("absolute", format!("{}/secret", outside.display())),
                ("relative", "../../outside/secret".into()),
                ("up", format!("{up}{}/secret", outside.display())),
                ("loop", "loop".into()),
                ("long", format!("{}{}", "./".repeat(1900), outside.join("secret").display())),
                ("dirlink", outside.display().to_string()),
                ("proc", "/proc/self/root".into()),
            ] {
                symlink(target, links.join(name)).unwrap();
            }
        }
        for name in ["ro/dir/inner", "rw/dir/inner"] {
            fs::write(scratch.0.join(name), vec![b'i'; 4096]).unwrap();
        }
        let abstract_name = format!("runsc-rs-escape-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        sockets.push(UnixListener::bind_addr(&address).unwrap());
        sockets.iter().for_each(|s| s.set_nonblocking(true).unwrap());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        let udp = UdpSocket::bind(tcp.local_addr().unwrap()).unwrap();
        udp.set_nonblocking(true).unwrap();
        let mut waiting = Command::new("/bin/sh");
        waiting.args(["-c", "exec sleep 10000", &secret("ARG")]).env("ESCAPE_SECRET", secret("ENV"));
        waiting.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: only an async-signal-safe call is made between fork and exec.
        unsafe {
            waiting.pre_exec(|| {
                nix::sys::signal::SigSet::all().thread_block()?;
                Ok(())
            })
        };
        let waiting = waiting.spawn().unwrap();
        let file = fs::File::open(outside.join("secret")).unwrap();
        // F_DUPFD does not set close-on-exec.
        let inherited = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_DUPFD(50)).unwrap();
        // SAFETY: the descriptor is new, so no other object owns it.
        let inherited = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(inherited) };
        let settings = settings();
        let trees = trees(&scratch);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        Host { scratch, waiting, tcp, udp, sockets, abstract_name, inherited, trees, settings, mounts }
    }

    /// A sandbox that runs an attack.
    fn command(&self, mode: &[&str], attack: &str) -> Command {
        let at = |name: &str| self.scratch.0.join(name).display().to_string();
        let mut command = Command::new(RUNSC);
        command.arg("run").args(mode).args(["--rootfs", &at("root"), "--clear-env", "--bind", "/usr:/usr:ro"]);
        command.args(["--bind", &format!("{}:/ro:ro", at("ro")), "--bind", &format!("{}:/rw", at("rw"))]);
        for (name, value) in [
            ("ESCAPE_OUTSIDE", at("outside")),
            ("ESCAPE_PIDS", format!("{} {}", self.waiting.id(), std::process::id())),
            ("ESCAPE_PORT", self.tcp.local_addr().unwrap().port().to_string()),
            ("ESCAPE_ABSTRACT", self.abstract_name.clone()),
        ] {
            command.args(["--env", &format!("{name}={value}")]);
        }
        command.args(["--", "/guest-tests", "hostile", attack]);
        command.env("ESCAPE_SECRET", secret("ENV")).env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The changes to the host, and what reached it from the guest.
    fn harm(&self) -> Vec<String> {
        let mut harm = Vec::new();
        let pid = self.waiting.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap_or("gone");
        if !field("State:").starts_with('S') {
            harm.push(format!("the waiting process is {}", field("State:")));
        }
        for pending in ["SigPnd:", "ShdPnd:"] {
            if !field(pending).trim_start_matches('0').is_empty() {
                harm.push(format!("the waiting process got signals: {pending} {}", field(pending)));
            }
        }
        let nobody = |e: std::io::Error| e.kind() == ErrorKind::WouldBlock;
        if !self.tcp.accept().is_err_and(nobody) {
            harm.push("a connection by TCP".into());
        }
        if !self.udp.recv(&mut [0; 16]).is_err_and(nobody) {
            harm.push("a datagram by UDP".into());
        }
        for s in &self.sockets {
            if !s.accept().is_err_and(nobody) {
                harm.push(format!("a connection to {:?}", s.local_addr()));
            }
        }
        let now = trees(&self.scratch);
        for (path, was) in &self.trees {
            let is = now.get(path).map_or("gone", String::as_str);
            if is != was {
                harm.push(format!("{} was {was} and is {is}", path.display()));
            }
        }
        harm.extend(now.keys().filter(|p| !self.trees.contains_key(*p)).map(|p| format!("{} is new", p.display())));
        harm.extend(devices(&self.scratch.0.join("rw")).iter().map(|p| format!("{} is a device", p.display())));
        if settings() != self.settings {
            harm.push(format!("settings of the host: {:?}", settings()));
        }
        if fs::read_to_string("/proc/self/mountinfo").unwrap() != self.mounts {
            harm.push("mounts of the host".into());
        }
        harm
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.waiting.kill();
        let _ = self.waiting.wait();
    }
}

fn settings() -> Vec<String> {
    SETTINGS.iter().map(|s| fs::read_to_string(s).unwrap_or_default()).collect()
}

/// The state of every file that must not change.
fn trees(scratch: &Scratch) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut todo: Vec<PathBuf> = ["outside", "root", "ro", "rw/owned", "rw/links"].map(|d| scratch.0.join(d)).into();
    while let Some(path) = todo.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        let content = if m.is_file() {
            fs::read(&path)
                .unwrap()
                .iter()
                .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
        } else {
            0
        };
        if m.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let link = fs::read_link(&path).unwrap_or_default();
        let what = (m.mode(), m.uid(), m.gid(), m.nlink(), m.mtime(), m.mtime_nsec(), content, link);
        all.insert(path, format!("{what:?}"));
    }
    all
}

/// Devices below a directory.
fn devices(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for e in fs::read_dir(dir).into_iter().flatten().flatten() {
        let kind = e.file_type().unwrap();
        if kind.is_char_device() || kind.is_block_device() {
            found.push(e.path());
        }
        if kind.is_dir() {
            found.extend(devices(&e.path()));
        }
    }
    found
}

/// Runs one attack in each mode.
fn attack(name: &str) {
    let _alone = ALONE.lock();
    let host = Host::new();
    let only = std::env::var("ESCAPE_MODE").ok();
    let mut failures = Vec::new();
    for mode in MODES.iter().filter(|m| only.as_ref().is_none_or(|o| m.join(" ") == *o)) {
        let ended = end_within(host.command(mode, name).spawn().unwrap(), LIMIT);
        let (out, err) = (String::from_utf8_lossy(&ended.out), String::from_utf8_lossy(&ended.err));
        let mut wrong = host.harm();
        if out != "done\n" {
            wrong.push(format!("it said {out:?}"));
        }
        // An attack that ended its first process would have tested nothing.
        if ended.status.code() != Some(0) {
            wrong.push(format!("it ended with {}", ended.status));
        }
        for sign in ["the Sentry ", "the Gofer ", "RUST_BACKTRACE", "host call", "host system call"] {
            if err.contains(sign) {
                wrong.push(format!("there is {sign:?} in what it said"));
            }
        }
        // The guest program reports its own panics without a thread's name.
        if err.lines().any(|l| l.starts_with("thread '") && l.contains("panicked at")) {
            wrong.push("a process of the sandbox panicked".into());
        }
        if out.contains("CANARY") || err.contains("CANARY") {
            wrong.push("a secret came out".into());
        }
        if !wrong.is_empty() {
            failures.push(format!("{name} {mode:?}:\n  {}\n  it said: {err:.3000}", wrong.join("\n  ")));
        }
        nothing_is_left(&host, name);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The test adopts processes that lost their parent, so it sees them.
fn nothing_is_left(host: &Host, name: &str) {
    let waiting = i32::try_from(host.waiting.id()).unwrap();
    let me = i32::try_from(std::process::id()).unwrap();
    eventually(&format!("{name}: no process is left"), LIMIT, || {
        use nix::sys::wait::{waitpid, WaitPidFlag};
        for pid in common::children(me).into_iter().filter(|p| *p != waiting && !alive(*p)) {
            let _ = waitpid(nix::unistd::Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
        Ok(!descendants(me).into_iter().any(|p| p != waiting && alive(p)))
    });
}

/// Attacks that other tests run.
const ELSEWHERE: [&str; 5] = ["hold", "litter", "crowd", "insistent", "untaken"];

macro_rules! attacks {
    ($($name:ident)*) => {
        $(#[test] fn $name() { attack(stringify!($name)) })*
        /// The attacks of the guest program are those that tests run.
        #[test]
        fn all_attacks_are_made() {
            let list = Command::new(guest_tests()).arg("hostile").output().unwrap();
            let list = String::from_utf8(list.stdout).unwrap();
            assert_eq!(list.lines().filter(|l| !ELSEWHERE.contains(l)).collect::<Vec<_>>(), [$(stringify!($name)),*]);
        }
    };
}

attacks! {
    jumps allowed strays unstoppable cells answers lies stub_overwrite stub_overwrite_threads entries frames sites
    forged walks rights residue host signals network descriptors stalls
}

/// Processes cloned by hostile code are killed and reaped.
#[test]
fn strays_are_ended_and_reaped() {
    let _alone = ALONE.lock();
    let host = Host::new();
    for mode in MODES {
        let mut child = host.command(mode, "litter").stdin(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        assert_eq!(&line, b"ready\n");
        let all = descendants(i32::try_from(child.id()).unwrap());
        let sentry = all.into_iter().find(|p| command_line(*p).contains("internal-sentry")).unwrap();
        // The zygote, the prepared stubs, the guest's first process, its bystander and a child.
        eventually("few processes are left", LIMIT, || Ok(common::children(sentry).len() < 16));
        drop(child.stdin.take());
        let ended = end_within(child, LIMIT);
        assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.out)), (Some(0), "done\n".into()));
        nothing_is_left(&host, "litter");
    }
}

/// Threads cloned by hostile code count against the sandbox's limit, and cost the process that made them.
#[test]
fn a_crowd_of_threads_leaves_others_alone() {
    let _alone = ALONE.lock();
    let host = Host::new();
    let plain = host.command(&[], "crowd");
    let mut command = Command::new("/bin/bash");
    command.args(["-c", "ulimit -u 400 && exec \"$0\" \"$@\"", RUNSC]).args(plain.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ended = end_within(command.spawn().unwrap(), LIMIT);
    let (out, err) = (String::from_utf8_lossy(&ended.out), String::from_utf8_lossy(&ended.err));
    let made = out.lines().find_map(|l| l.strip_prefix("made ")).and_then(|n| n.parse::<u32>().ok());
    // The guest may use half of the 400.
    assert!(made.is_some_and(|n| (100..300).contains(&n)), "{out} {err}");
    assert!(out.ends_with("ended 9\ndone\n"), "{out} {err}");
    nothing_is_left(&host, "crowd");
}

fn status_field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap_or("").to_owned()
}

/// The descriptors of a process: number, link and open flags.
fn held_by(pid: i32) -> Vec<(i32, String, u32)> {
    let mut all = Vec::new();
    for e in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let number: i32 = e.file_name().to_str().unwrap().parse().unwrap();
        let Ok(link) = fs::read_link(e.path()) else { continue };
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).map_or("0", str::trim);
        all.push((number, link.display().to_string(), u32::from_str_radix(flags, 8).unwrap_or(0)));
    }
    all
}

/// Checks what each process of a sandbox holds, from the host, while the guest runs.
#[test]
fn processes_hold_no_more_than_they_need() {
    let _alone = ALONE.lock();
    let host = Host::new();
    for mode in MODES {
        let mut child = host.command(mode, "hold").stdin(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        assert_eq!(&line, b"ready\n");
        let all = descendants(i32::try_from(child.id()).unwrap());
        let role = |p: i32| {
            let line = command_line(p);
            ["internal-sentry", "internal-gofer"].into_iter().find(|r| line.contains(r)).unwrap_or("stub")
        };
        let stubs = all.iter().filter(|p| role(**p) == "stub").count();
        assert!(stubs >= 5, "{stubs} stubs of {all:?}");
        let secret_file = host.scratch.0.join("outside/secret").display().to_string();
        for &p in &all {
            let who = role(p);
            for (name, wanted) in [("NoNewPrivs:", "1"), ("Seccomp:", "2")] {
                assert_eq!(status_field(p, name), wanted, "{who} {name}");
            }
            let caps = |set: &str| u64::from_str_radix(&status_field(p, set), 16).unwrap();
            // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID: the Sentry checks permissions. SETGID, SETUID: the
            // Gofer creates files with the guest's ids.
            let allowed = if who == "internal-gofer" { 0b1101_1111 } else { 0 };
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(caps(set) & !allowed, 0, "{who} {set}");
            }
            for kind in ["mnt", "user", "pid", "net", "ipc", "uts"] {
                let ours = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
                let theirs = fs::read_link(format!("/proc/{p}/ns/{kind}")).unwrap();
                if who != "internal-gofer" || ["mnt", "user"].contains(&kind) {
                    assert_ne!(ours, theirs, "{who} {kind}");
                }
            }
            let entries = fs::read_dir(format!("/proc/{p}/root/")).map_or(0, Iterator::count);
            assert_eq!(entries, 0, "{who} sees files in its root");
            let held = held_by(p);
            assert!(held.iter().all(|(_, what, _)| *what != secret_file), "{who} holds what it inherited: {held:?}");
            let environment = fs::read_to_string(format!("/proc/{p}/environ")).unwrap_or_default();
            assert!(!environment.contains("CANARY"), "{who} has the caller's environment");
            if who == "stub" {
                // A stub holds the Sentry's doorbells (the poller's and each worker's) and its control socket.
                let bells = held.iter().filter(|(_, what, _)| what == "anon_inode:[eventfd]").count();
                assert!(held[9].1.starts_with("socket:") && held.len() == 9 + 1 && bells == 9, "{who} {held:?}");
                // Only guest memory, files and the parts of the stub are mapped, and no host file is writable.
                for line in fs::read_to_string(format!("/proc/{p}/maps")).unwrap().lines() {
                    let path = line.splitn(6, ' ').nth(5).map_or("", str::trim);
                    let memory = path.is_empty()
                        || path.starts_with('[')
                        || ["/memfd:", "/dev/zero (deleted)", "/anon_hugepage"].iter().any(|m| path.starts_with(m));
                    // Paths are relative to the Gofer's detached mounts.
                    let file = host.scratch.0.join("root").join(path.trim_start_matches('/')).exists()
                        || Path::new("/usr").join(path.trim_start_matches('/')).exists();
                    assert!(memory || file, "{who} maps {line}");
                    let rights = line.split(' ').nth(1).unwrap();
                    assert!(memory || !rights.contains('w') || rights.contains('p'), "{who} writes to {line}");
                }
            }
            if who == "internal-sentry" {
                for (number, what, flags) in &held {
                    let file = what.starts_with('/') && !what.starts_with("/memfd:") && !what.starts_with("/dev/null");
                    assert!(!file || flags & 3 == 0, "{who} may write to {number}, {what}");
                }
                assert!(held.iter().all(|(_, what, _)| what != "/" && !Path::new(what).is_dir()), "{who}: {held:?}");
            }
        }
        drop(child.stdin.take());
        let ended = end_within(child, LIMIT);
        assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.out)), (Some(0), "done\n".into()));
        nothing_is_left(&host, "hold");
        assert_eq!(host.harm(), Vec::<String>::new());
    }
    assert!(host.inherited.as_raw_fd() >= 50);
}
