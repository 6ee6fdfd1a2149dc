//! What each request does.

use super::{lock, Connection, Server};
use crate::config::ProcessConfig;
use crate::control::protocol::{Limits, ProcessInfo, Reply, Request, Stats, Status, Target};
use nix::errno::Errno;
use sentry::container::process::{ProcessSpec, StartError};
use sentry::container::{self, Container};
use sentry::kernel::kernel::PID_MAX;
use sentry::kernel::{tty, ThreadGroup};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

type Answer = Result<Reply, Reply>;

fn failed(errno: Errno, text: impl Into<String>) -> Reply {
    Reply::Failed { errno: errno as i32, exit: None, text: text.into() }
}

fn find(server: &Server, id: &str) -> Result<Arc<Container>, Reply> {
    server.container(id).ok_or_else(|| failed(Errno::ENOENT, format!("container {id:?} does not exist")))
}

/// Carries a request out and replies, now or later.
pub fn carry_out(server: &Arc<Server>, to: &Arc<Connection>, request: Request, descriptors: Vec<OwnedFd>) {
    let waits = matches!(request, Request::Exec { .. } | Request::Wait { .. } | Request::Pause { .. });
    if waits && !to.begin() {
        return to.reply(&failed(Errno::EAGAIN, "too many requests wait on this connection"));
    }
    let now = match request {
        Request::Exec { container, process } => {
            return match find(server, &container) {
                Ok(c) => exec(server, to, c, *process, descriptors),
                Err(e) => to.finish(&e),
            }
        }
        Request::Wait { container } => {
            return match find(server, &container) {
                Ok(c) => {
                    let to = to.clone();
                    c.when_exited(move |status| to.finish(&Reply::Exited { status }));
                }
                Err(e) => to.finish(&e),
            }
        }
        Request::Pause { container } => {
            return match find(server, &container).and_then(running) {
                Ok(c) => pause(server, to, c),
                Err(e) => to.finish(&e),
            }
        }
        other => at_once(server, to, other),
    };
    to.reply(&now.unwrap_or_else(|refused| refused));
}

fn running(c: Arc<Container>) -> Result<Arc<Container>, Reply> {
    match c.status() {
        container::Status::Running => Ok(c),
        other => Err(failed(Errno::EINVAL, format!("the container is {}", name(other)))),
    }
}

fn name(status: container::Status) -> &'static str {
    match status {
        container::Status::Created => "created",
        container::Status::Running => "running",
        container::Status::Paused => "paused",
        container::Status::Stopped => "stopped",
    }
}

/// The requests that do not wait.
fn at_once(server: &Arc<Server>, from: &Arc<Connection>, request: Request) -> Answer {
    match request {
        Request::State { container } => {
            let c = find(server, &container)?;
            let status = match c.status() {
                container::Status::Created => Status::Created,
                container::Status::Running => Status::Running,
                container::Status::Paused => Status::Paused,
                container::Status::Stopped => Status::Stopped,
            };
            Ok(Reply::State { status, init: c.init_pid() })
        }
        Request::Start { container } => match find(server, &container)?.start() {
            Ok(()) => Ok(Reply::Done),
            Err(Errno::EBUSY) => Err(failed(Errno::EBUSY, "cannot start a container that has started already")),
            Err(e) => Err(failed(e, "cannot start a container that has stopped")),
        },
        Request::Signal { container, to, signal } => {
            signal_to(server, from, &*find(server, &container)?, to, signal)?;
            Ok(Reply::Done)
        }
        Request::Resume { container } => {
            let c = find(server, &container)?;
            match c.status() {
                container::Status::Paused => c.cgroup.thaw(),
                other => return Err(failed(Errno::EINVAL, format!("the container is {}, not paused", name(other)))),
            }
            Ok(Reply::Done)
        }
        Request::Processes { container } => {
            Ok(Reply::Processes { processes: processes(server, &*find(server, &container)?) })
        }
        Request::Stats { container } => {
            let usage = find(server, &container)?.usage(&server.kernel);
            Ok(Reply::Stats {
                stats: Box::new(Stats {
                    cpu_user_ns: usage.user_ns,
                    cpu_system_ns: usage.system_ns,
                    memory: 0,
                    memory_limit: None,
                    pids: usage.pids,
                    pids_limit: usage.pids_max,
                }),
            })
        }
        Request::Update { container, limits } => {
            set_limits(&*find(server, &container)?, &limits);
            Ok(Reply::Done)
        }
        Request::Hello { .. } | Request::Exec { .. } | Request::Wait { .. } | Request::Pause { .. } => {
            Err(failed(Errno::EPROTO, "out of order"))
        }
    }
}

/// Sets the limits that the Sentry enforces; the host's cgroup has the others.
pub fn set_limits(container: &Container, limits: &Limits) {
    if let Some(pids) = limits.pids {
        container.cgroup.set_pids_max(u64::try_from(pids).ok());
    }
}

fn signal_to(server: &Server, from: &Connection, container: &Container, to: Target, signal: i32) -> Result<(), Reply> {
    if !(0..=64).contains(&signal) {
        return Err(failed(Errno::EINVAL, format!("there is no signal {signal}")));
    }
    let own = lock(&from.state).own.clone();
    let sent = match (to, own) {
        (Target::Init, _) | (Target::Own, None) => container.signal(signal),
        (Target::Own, Some(group)) => container.signal_process(&server.kernel, group.pid, signal),
        (Target::Process(pid), _) if (1..=PID_MAX).contains(&pid) => {
            container.signal_process(&server.kernel, pid, signal)
        }
        (Target::Process(_), _) => Err(Errno::ESRCH),
        (Target::Foreground, own) => {
            foreground(server, container, own, signal);
            Ok(())
        }
        (Target::All, _) => {
            container.signal_all(&server.kernel, signal);
            Ok(())
        }
    };
    sent.map_err(|e| match e {
        Errno::ESRCH => failed(e, "process already finished"),
        e => failed(e, e.desc()),
    })
}

/// A signal that a terminal makes: for the foreground process group of the session's terminal, or else for the process.
fn foreground(server: &Server, container: &Container, own: Option<Arc<ThreadGroup>>, signal: i32) {
    let Some(group) = own.or_else(|| container.init()) else { return };
    tty::signal_session(&server.kernel, &group, signal);
}

fn processes(server: &Server, container: &Container) -> Vec<ProcessInfo> {
    container
        .processes(&server.kernel)
        .into_iter()
        .map(|p| ProcessInfo {
            pid: p.pid,
            ppid: p.ppid,
            uid: p.uid,
            threads: p.threads,
            started_ns: p.started_ns,
            cpu_ns: p.cpu_ns,
            rss: p.rss,
            tty: p.tty,
            command: p.command.iter().map(|a| String::from_utf8_lossy(a).into_owned()).collect(),
        })
        .collect()
}

/// What is to be started, with the descriptors that came along.
pub fn spec(process: ProcessConfig, descriptors: Vec<OwnedFd>) -> Result<ProcessSpec, Errno> {
    crate::sentry_main::process_spec(process, descriptors.into_iter().map(Some).collect())
}

fn exec(server: &Arc<Server>, to: &Arc<Connection>, c: Arc<Container>, process: ProcessConfig, fds: Vec<OwnedFd>) {
    let spec = match spec(process, fds) {
        Ok(spec) => spec,
        Err(e) => return to.finish(&failed(e, format!("the process's settings: {}", e.desc()))),
    };
    let (kernel, to) = (server.kernel.clone(), to.clone());
    let report = to.clone();
    server.kernel.executor.spawn(Box::pin(async move {
        let began = to.clone();
        let started = c.exec(
            &kernel,
            spec,
            move |status| report.finish(&Reply::Exited { status }),
            move |group| {
                lock(&began.state).own = Some(group.clone());
                began.reply(&Reply::Started { pid: group.pid });
            },
        );
        if let Err(StartError { status, errno, text }) = started.await {
            to.finish(&Reply::Failed { errno: errno as i32, exit: Some(status), text });
        }
    }));
}

/// For how long a pause waits for tasks that do not stop.
const PAUSE_PATIENCE: Duration = Duration::from_secs(2);

fn pause(server: &Arc<Server>, to: &Arc<Connection>, c: Arc<Container>) {
    let (kernel, to) = (server.kernel.clone(), to.clone());
    server.kernel.executor.spawn(Box::pin(async move {
        let reply = match c.pause(&kernel, PAUSE_PATIENCE).await {
            Ok(()) => Reply::Done,
            Err(e) => failed(e, "not all processes stopped in time"),
        };
        to.finish(&reply);
    }));
}
