//! The monitor: the process that stands for a container on the host.
//!
//! It is a clone of `create`, whose child it is, so that the engine's subreaper gets it when `create` ends; its number
//! is the container's for engines, and it ends as the container's first process does. It starts the Gofer and the
//! Sentry, passes on to the container's process what it is sent itself, has the container's terminal as its controlling
//! one, and hands the connections of clients to the Sentry. Gofer and Sentry die with it.

use super::cgroup::Cgroup;
use super::member;
use super::state::{Container, ProcessId};
use super::view::View;
use crate::control::ToSentry;
use crate::launch::options::Plan;
use crate::launch::spawn::{self, Process};
use crate::launch::supervise::{self, End, Signals, Supervisor};
use crate::launch::terminal::Saved;
use crate::sys::{self, Cloned};
use anyhow::{bail, Context, Result};
use nix::fcntl::{openat, renameat, OFlag};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, Pid};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

/// Longest message between `create` and the monitor.
const MAX_WORD: usize = 16 << 10;

/// What the monitor tells `create`.
#[derive(Debug, Serialize, Deserialize)]
pub enum Word {
    /// It is a process of its own, in the container's cgroup.
    Ready,
    /// The Gofer and the Sentry run.
    Spawned(Vec<ProcessId>),
    /// The first process waits to be started.
    Created,
    /// The monitor no longer dies with `create`.
    Free,
    Failed {
        /// As a shell would exit.
        status: u8,
        text: String,
    },
}

/// What `create` tells the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Start the sandbox.
    Go,
    /// Outlive `create`.
    BeFree,
    /// Die with it.
    Stay,
}

/// What the monitor works with.
pub struct Task {
    pub container: Container,
    pub plan: Plan,
    pub terminal: Option<OwnedFd>,
    pub reached: Reached,
    pub cgroup: Option<Cgroup>,
    pub oom_score_adj: Option<i32>,
}

/// Where clients of the container connect.
pub enum Reached {
    /// To a sandbox of its own.
    Here(UnixListener),
    /// To the sandbox that it joins.
    BySandbox,
}

/// The monitor, as its parent sees it. Dropping it kills it, unless it is free.
pub struct Monitor {
    pub process: Process,
    channel: OwnedFd,
}

impl Monitor {
    /// Starts it; its own last words go to `log`, and its container's status to a file of `dir`.
    pub fn start(task: Task, log: File, dir: File) -> Result<Monitor> {
        let (ours, theirs) = protocol::transport::socketpair().context("socketpair")?;
        match sys::clone_process(0).context("starting the monitor")? {
            Cloned::Parent { pid, pidfd } => Ok(Monitor { process: Process { pid, pidfd }, channel: ours }),
            Cloned::Child => main(task, &log, &dir, theirs),
        }
    }

    pub fn order(&self, order: Order) -> Result<()> {
        send(&self.channel, &order).context("the monitor does not listen")
    }

    /// The next word.
    pub fn hear(&self) -> Result<Word> {
        match receive(&self.channel)? {
            Some(word) => Ok(word),
            None => bail!("the container's monitor has ended without a word"),
        }
    }
}

fn send<T: Serialize>(channel: &OwnedFd, message: &T) -> Result<()> {
    let text = serde_json::to_vec(message)?;
    Ok(protocol::transport::send(channel, &text, None, true)?)
}

fn receive<T: for<'a> Deserialize<'a>>(channel: &OwnedFd) -> Result<Option<T>> {
    let mut buf = vec![0u8; MAX_WORD];
    let n = loop {
        match nix::sys::socket::recv(channel.as_raw_fd(), &mut buf, nix::sys::socket::MsgFlags::empty()) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::ECONNRESET) => break 0,
            other => break other?,
        }
    };
    match buf.get(..n) {
        None | Some([]) => Ok(None),
        Some(text) => Ok(Some(serde_json::from_slice(text)?)),
    }
}

/// The clone.
fn main(task: Task, log: &File, dir: &File, channel: OwnedFd) -> ! {
    let say = |text: &str| {
        let mut log = log;
        let _ = writeln!(log, "runsc-rs: monitor: {text}");
    };
    let parent = Pid::parent();
    let status = match watch_over(task, [log, dir], &channel, parent) {
        Ok(End::Exited(status)) => status,
        Ok(End::Failed { status, text }) => {
            say(&text);
            let _ = send(&channel, &Word::Failed { status, text: cut(text) });
            i32::from(status) << 8
        }
        Err(e) => {
            let text = format!("{e:#}");
            say(&text);
            let _ = send(&channel, &Word::Failed { status: 1, text: cut(text) });
            1 << 8
        }
    };
    // A container that has been deleted meanwhile has no place for it. Paths are those of the view.
    let _ = write_exit(dir, status);
    sys::end_like(status)
}

/// Leaves the status for [`Container::exit_status`].
fn write_exit(dir: &File, status: i32) -> Result<()> {
    const NEW: &str = ".exit.new";
    let flags = OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(dir, NEW, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    file.write_all(status.to_string().as_bytes())?;
    Ok(renameat(dir, NEW, dir, "exit")?)
}

fn cut(mut text: String) -> String {
    let mut end = text.len().min(MAX_WORD / 4);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn watch_over(task: Task, files: [&File; 2], channel: &OwnedFd, parent: Pid) -> Result<End> {
    detach(&task, files, channel, parent)?;
    let signals = Signals::take_over_all()?;
    if let Some(cgroup) = &task.cgroup {
        cgroup.join().context("joining the container's cgroup")?;
    }
    send(channel, &Word::Ready)?;
    if receive::<Order>(channel)? != Some(Order::Go) {
        bail!("the command that created the container is gone");
    }
    let Task { container, plan, terminal, reached, cgroup: _, oom_score_adj } = task;
    if let Some(adj) = oom_score_adj {
        if let Err(e) = std::fs::write("/proc/self/oom_score_adj", adj.to_string()) {
            log::warn!("the host does not let the sandbox have an oom_score_adj of {adj}: {e}");
        }
    }
    let listener = match reached {
        Reached::Here(listener) => listener,
        Reached::BySandbox => return watch_member(&container, plan, &signals, channel, parent),
    };
    let view = View::of(&plan);
    let sandbox = spawn::start(plan)?;
    sys::let_go_of_streams().context("/dev/null")?;
    let ids = [&sandbox.gofer, &sandbox.sentry].map(|p| ProcessId::of(p.pid));
    send(channel, &Word::Spawned(ids.into_iter().collect::<Result<_>>()?))?;
    let mut outside =
        Outside { terminal: Saved::of(terminal.as_ref().map(|t| t.as_fd())), listener, channel, parent, view };
    supervise::until_end(sandbox, &signals, &mut outside)
}

/// Hides the host from those who enter the monitor's namespaces.
fn show(view: Option<View>) {
    if let Some(Err(e)) = view.map(View::enter) {
        log::warn!("the monitor stays where the host's files are: {e:#}");
    }
}

/// The same for a container that joins a sandbox.
fn watch_member(container: &Container, plan: Plan, signals: &Signals, channel: &OwnedFd, parent: Pid) -> Result<End> {
    let view = View::of(&plan);
    let (gofer, connection) = spawn::start_gofer(&plan.gofer, &plan.log)?;
    sys::let_go_of_streams().context("/dev/null")?;
    send(channel, &Word::Spawned(vec![ProcessId::of(gofer.pid)?]))?;
    let client = match member::join(container, plan.sentry.container, &connection, &plan.files.unwrap_or_default())? {
        Ok(client) => client,
        Err(end) => return Ok(end),
    };
    // The Sentry has it.
    drop(connection);
    show(view);
    report_created(channel, parent)?;
    Ok(member::wait(client, container, signals))
}

/// Makes the clone a process of its own: session, terminal, descriptors.
fn detach(task: &Task, files: [&File; 2], channel: &OwnedFd, parent: Pid) -> Result<()> {
    crate::confine::die_with_parent()?;
    if Pid::parent() != parent {
        bail!("the command that created the container is gone");
    }
    let plan = &task.plan;
    let mut kept: Vec<RawFd> = plan.files.iter().flatten().map(|f| f.as_raw_fd()).collect();
    kept.extend(task.terminal.iter().chain(&plan.strace).map(|f| f.as_raw_fd()));
    if let Reached::Here(listener) = &task.reached {
        kept.push(listener.as_raw_fd());
    }
    kept.extend([plan.log.as_raw_fd(), channel.as_raw_fd()]);
    kept.extend(files.map(|f| f.as_raw_fd()).into_iter().chain(super::report::descriptor()));
    sys::close_all_but(&kept)?;
    nix::unistd::setsid().context("setsid")?;
    if let Some(terminal) = &task.terminal {
        sys::set_controlling_terminal(terminal.as_fd())
            .context("making the container's terminal the controlling one")?;
    }
    // No directory is held busy.
    std::env::set_current_dir("/").context("/")?;
    let _ = nix::sys::prctl::set_name(c"runsc-rs-mon");
    Ok(())
}

/// The first process waits to be started: the monitor becomes free, or stays with the command.
fn report_created(channel: &OwnedFd, parent: Pid) -> Result<()> {
    send(channel, &Word::Created)?;
    match receive::<Order>(channel)? {
        Some(Order::BeFree) => {
            sys::prctl(libc::PR_SET_PDEATHSIG, 0, 0, 0).context("prctl(PR_SET_PDEATHSIG)")?;
            if Pid::parent() != parent {
                bail!("the command that created the container is gone");
            }
            send(channel, &Word::Free)
        }
        Some(Order::Stay) => Ok(()),
        _ => bail!("the command that created the container is gone"),
    }
}

/// The monitor while the sandbox runs.
struct Outside<'a> {
    terminal: Saved,
    listener: UnixListener,
    channel: &'a OwnedFd,
    parent: Pid,
    view: Option<View>,
}

impl Supervisor for Outside<'_> {
    fn terminal(&self) -> &Saved {
        &self.terminal
    }

    fn started(&mut self) -> Result<()> {
        // The mount points have been made.
        show(self.view.take());
        report_created(self.channel, self.parent)
    }

    fn stops(&self) -> bool {
        // There is no shell to take over.
        false
    }

    fn listener(&self) -> Option<BorrowedFd<'_>> {
        Some(self.listener.as_fd())
    }

    fn ready(&mut self, control: BorrowedFd<'_>) {
        // One at a time: there may be no end of them.
        let Ok((client, _)) = self.listener.accept() else { return };
        let user = getsockopt(&client, PeerCredentials).map(|c| c.uid());
        if !user.is_ok_and(|uid| uid == 0 || uid == geteuid().as_raw()) {
            log::warn!("a client of another user was turned away");
            return;
        }
        // A Sentry that takes up nothing loses it: the client notices.
        if let Err(e) = ToSentry::Client(client.into()).send(control) {
            log::warn!("handing a client to the Sentry: {e}");
        }
    }
}
