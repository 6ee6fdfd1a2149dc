//! Starts the Gofer and the Sentry, side by side: clones this process into their namespaces, maps their users, and
//! re-executes this binary in both, with nothing inherited but the descriptors of [`crate::config::fd`].

use super::options::Plan;
use super::terminal::opened_anew;
use crate::config::{fd, to_memfd, GoferConfig, HostIds, IdMaps, IdRange};
use crate::sys::{self, Cloned};
use anyhow::{anyhow, bail, Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::{pipe2, Pid};
use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

/// A process of the sandbox. Dropping it kills it and waits until it is gone.
pub struct Process {
    pub pid: Pid,
    pub pidfd: OwnedFd,
}

/// A sandbox that has been started.
pub struct Sandbox {
    pub sentry: Process,
    pub gofer: Process,
    pub control: OwnedFd,
}

impl Process {
    /// Ends it, if it has not ended yet.
    fn kill(&self) {
        use nix::sys::wait::{waitid, Id, WaitPidFlag};
        // Until it has been waited for, the number cannot belong to another process.
        if waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG).is_ok() {
            let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = nix::sys::wait::waitpid(self.pid, None);
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Both die at the same time; the fields' own drops wait.
        self.sentry.kill();
        self.gofer.kill();
    }
}

/// The ids in a new user namespace.
#[derive(Clone, PartialEq, Eq)]
enum Users {
    /// There is no new user namespace.
    Same,
    /// One user and one group: these, or without them the caller's own.
    One(Option<HostIds>),
    /// All that the caller has, each under its own number.
    All,
    /// Those that are mapped.
    Mapped(IdMaps),
}

const SENTRY_NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

pub fn start(plan: Plan) -> Result<Sandbox> {
    let (gofer_end, sentry_end) = protocol::transport::socketpair().context("socketpair")?;
    let (control, sentry_control) = protocol::transport::socketpair().context("socketpair")?;
    let null: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/null").context("/dev/null")?.into();
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let files: Vec<(usize, BorrowedFd<'_>)> = match &plan.files {
        Some(files) => files.iter().map(|f| f.as_fd()).enumerate().collect(),
        None => streams.into_iter().enumerate().filter(|(i, _)| sys::was_open(*i)).collect(),
    };
    // No process of the sandbox is to wait in the host for a terminal.
    let anew: Vec<Option<OwnedFd>> = files.iter().map(|(_, f)| opened_anew(*f)).collect();
    let (log_anew, strace_anew) =
        (opened_anew(plan.log.as_fd()), plan.strace.as_ref().and_then(|s| opened_anew(s.as_fd())));
    let log = log_anew.as_ref().unwrap_or(&plan.log);

    // Its clone is cheap, and while the Sentry's namespaces are made it starts on another core; neither waits for the
    // other's exec.
    let gofer = spawn_gofer(&plan.gofer, null.as_fd(), log.as_fd(), gofer_end.as_fd())?;

    let sentry_config = to_memfd(&plan.sentry)?;
    let mut fds = vec![
        (null.as_fd(), 0),
        (null.as_fd(), 1),
        (log.as_fd(), 2),
        (sentry_config.as_fd(), fd::CONFIG),
        (sentry_end.as_fd(), fd::GOFER),
        (sentry_control.as_fd(), fd::CONTROL),
    ];
    for ((i, file), anew) in files.iter().zip(&anew) {
        fds.push((anew.as_ref().map_or(*file, |a| a.as_fd()), fd::FILES + *i as RawFd));
    }
    if let Some(strace) = strace_anew.as_ref().or(plan.strace.as_ref()) {
        fds.push((strace.as_fd(), fd::STRACE));
    }
    let sentry = spawn("Sentry", SENTRY_NAMESPACES, Users::One(plan.sentry.become_ids), c"internal-sentry", &fds)?;

    Ok(Sandbox { sentry: sentry.executed()?, gofer: gofer.executed()?, control })
}

/// Starts a Gofer alone, for a container that joins a sandbox; with it comes the Sentry's end of its connection.
pub fn start_gofer(config: &GoferConfig, log: &OwnedFd) -> Result<(Process, OwnedFd)> {
    let (gofer_end, sentry_end) = protocol::transport::socketpair().context("socketpair")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("/dev/null")?;
    let anew = opened_anew(log.as_fd());
    let log = anew.as_ref().unwrap_or(log);
    let gofer = spawn_gofer(config, null.as_fd(), log.as_fd(), gofer_end.as_fd())?;
    Ok((gofer.executed()?, sentry_end))
}

fn spawn_gofer(
    config: &GoferConfig,
    null: BorrowedFd<'_>,
    log: BorrowedFd<'_>,
    connection: BorrowedFd<'_>,
) -> Result<Starting> {
    let settings = to_memfd(config)?;
    // Capabilities over files are all the same within a user namespace of its own, and none over the host. Without rights it
    // makes one by itself.
    let (namespaces, users) = match (&config.ids, may_map_all()?) {
        (ids, _) if *ids != IdMaps::default() => (libc::CLONE_NEWUSER, Users::Mapped(ids.clone())),
        (_, true) => (libc::CLONE_NEWUSER, Users::All),
        (_, false) => (0, Users::Same),
    };
    let fds = [(null, 0), (null, 1), (log, 2), (settings.as_fd(), fd::CONFIG), (connection, fd::GOFER)];
    spawn("Gofer", namespaces, users, c"internal-gofer", &fds)
}

/// A process on its way to exec.
struct Starting {
    who: &'static str,
    process: Process,
    /// Where it tells why it could not; closed when it could.
    trouble: OwnedFd,
}

impl Starting {
    /// Waits until it has executed.
    fn executed(self) -> Result<Process> {
        let mut text = String::new();
        File::from(self.trouble).read_to_string(&mut text)?;
        if !text.is_empty() {
            bail!("starting the {}: {text}", self.who);
        }
        Ok(self.process)
    }
}

/// Starts one process; `who` is for messages. `ids` are those that it has if its namespaces include one of users;
/// `None`: the caller's.
fn spawn(
    who: &'static str,
    namespaces: libc::c_int,
    users: Users,
    subcommand: &CStr,
    fds: &[(BorrowedFd<'_>, RawFd)],
) -> Result<Starting> {
    // The child waits for `go`.
    let (go_read, go_write) = pipe2(OFlag::O_CLOEXEC).context("pipe")?;
    let (trouble_read, trouble_write) = pipe2(OFlag::O_CLOEXEC).context("pipe")?;
    match sys::clone_process(namespaces) {
        Ok(Cloned::Child) => {
            drop(go_write);
            let e = match prepare_child(go_read, namespaces, fds) {
                Ok(()) => anyhow!("re-executing this binary through /proc/self/exe: {}", sys::exec_self(subcommand)),
                Err(e) => e,
            };
            let _ = File::from(trouble_write).write_all(format!("{e:#}").as_bytes());
            sys::exit_now(125)
        }
        Ok(Cloned::Parent { pid, pidfd }) => {
            let process = Process { pid, pidfd };
            drop((go_read, trouble_write));
            map_users(pid, users).with_context(|| format!("giving the {who}'s user namespace its users"))?;
            File::from(go_write).write_all(&[1]).with_context(|| format!("starting the {who}"))?;
            Ok(Starting { who, process, trouble: trouble_read })
        }
        Err(e) => Err(anyhow!("starting the {who}: {}", clone_trouble(e))),
    }
}

/// In the child: whatever must be done before exec.
fn prepare_child(go: OwnedFd, namespaces: libc::c_int, fds: &[(BorrowedFd<'_>, RawFd)]) -> Result<()> {
    crate::confine::die_with_parent()?;
    let mut byte = [0u8];
    if File::from(go).read(&mut byte)? == 0 {
        bail!("the command has ended");
    }
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    // Out of the terminal's reach: ^C is for the guest, through the command.
    nix::unistd::setsid().context("setsid")?;
    if namespaces & libc::CLONE_NEWUSER != 0 {
        // The capabilities in the new user namespace are needed for the set-up after exec.
        let caps = sys::permitted_caps()?;
        sys::set_caps(caps, caps)?;
        for cap in (0..64).filter(|c| caps >> c & 1 != 0) {
            sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, cap, 0)
                .context("raising ambient capabilities")?;
        }
    }
    sys::place_fds(fds)?;
    Ok(())
}

/// Whether the caller may make a user namespace in which everybody is who they are.
fn may_map_all() -> Result<bool> {
    // CAP_SETGID, CAP_SETUID and CAP_SYS_ADMIN.
    let needed = 1 << 6 | 1 << 7 | 1 << 21;
    Ok(sys::permitted_caps().context("capget")? & needed == needed)
}

fn map_users(pid: Pid, users: Users) -> Result<()> {
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/{pid}/{file}"), text).with_context(|| format!("/proc/PID/{file}"))
    };
    match users {
        Users::Same => Ok(()),
        Users::One(ids) => {
            if ids.is_none() {
                // Without privileges a group may be mapped only once groups cannot be given up any more.
                write("setgroups", "deny".into())?;
            }
            let own = || HostIds { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
            let HostIds { uid, gid } = ids.unwrap_or_else(own);
            write("gid_map", format!("{gid} {gid} 1"))?;
            write("uid_map", format!("{uid} {uid} 1"))
        }
        Users::All => {
            write("gid_map", same_ids(&fs::read_to_string("/proc/self/gid_map")?))?;
            write("uid_map", same_ids(&fs::read_to_string("/proc/self/uid_map")?))
        }
        Users::Mapped(IdMaps { uids, gids }) => {
            // A caller without rights may map one user and one group, its own.
            let may_others = may_map_all()?;
            if !may_others {
                write("setgroups", "deny".into())?;
            }
            let hint = || {
                match may_others {
                true => "the bundle's mappings of ids: the caller's user namespace must have those of the host",
                false => "the bundle's mappings of ids: without privileges one user and one group can be mapped, the caller's own",
            }
            };
            write("gid_map", lines(&gids)).with_context(hint)?;
            write("uid_map", lines(&uids)).with_context(hint)
        }
    }
}

/// A map as the kernel reads it.
fn lines(map: &[IdRange]) -> String {
    map.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count)).collect()
}

/// The map of a child namespace in which all ids that this map has are themselves.
fn same_ids(own: &str) -> String {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace();
        let (first, count) = (numbers.next()?, numbers.nth(1)?);
        Some(format!("{first} {first} {count}\n"))
    };
    own.lines().filter_map(line).collect()
}

/// What it means that the host refuses to clone into new namespaces, and what can be done about it.
fn clone_trouble(e: Errno) -> String {
    match e {
        Errno::EPERM => {
            "the host does not allow user namespaces here. Look at `sysctl kernel.unprivileged_userns_clone` (must be 1) and \
             `kernel.apparmor_restrict_unprivileged_userns` (must be 0); in a container, its seccomp profile must allow \
             clone(CLONE_NEWUSER) (docker: --security-opt seccomp=unconfined); in a chroot, the kernel never does (pivot_root is fine)"
                .into()
        }
        Errno::ENOSPC | Errno::EUSERS => {
            "no more namespaces are allowed: raise `sysctl user.max_user_namespaces` (and the other user.max_*_namespaces)".into()
        }
        Errno::EINVAL => "the host's kernel lacks a kind of namespace (CONFIG_USER_NS, PID_NS, NET_NS, IPC_NS, UTS_NS, CGROUPS)".into(),
        Errno::EAGAIN => "too many processes: raise `ulimit -u` or the cgroup's pids.max".into(),
        Errno::ENOMEM => "the host has no memory left".into(),
        Errno::EMFILE | Errno::ENFILE => "too many open files: raise `ulimit -n`".into(),
        Errno::EBUSY => "this process has more than one thread".into(),
        e => e.to_string(),
    }
}
