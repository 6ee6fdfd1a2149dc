//! What each request does.

use super::{lock, Connection, Created, Server};
use crate::config::{ContainerConfig, ProcessConfig};
use crate::containers;
use crate::control::protocol::{ProcessInfo, Reply, Request, Stats, Status, Target};
use nix::errno::Errno;
use platform::executor::WatchHandle;
use sentry::container::process::StartError;
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
    let waits =
        matches!(request, Request::Create { .. } | Request::Exec { .. } | Request::Wait { .. } | Request::Pause { .. });
    if waits && !to.begin() {
        return to.reply(&failed(Errno::EAGAIN, "too many requests wait on this connection"));
    }
    let now = match request {
        Request::Create { container } => return create(server, to, *container, descriptors),
        Request::Exec { container, process, tied } => {
            return match find(server, &container) {
                Ok(c) => {
                    if tied {
                        lock(&to.state).tied = Some(c.clone());
                    }
                    exec(server, to, c, *process, descriptors)
                }
                Err(e) => to.finish(&e),
            }
        }
        Request::Wait { container } => {
            return match find(server, &container) {
                Ok(c) => {
                    // A connection that ends meanwhile takes its descriptor with it.
                    let to = Arc::downgrade(to);
                    c.when_exited(move |status| {
                        if let Some(to) = to.upgrade() {
                            to.finish(&Reply::Exited { status });
                        }
                    });
                }
                Err(e) => to.finish(&e),
            };
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
            containers::set_limits(&server.kernel, &*find(server, &container)?, &limits);
            Ok(Reply::Done)
        }
        Request::Hello { .. }
        | Request::Create { .. }
        | Request::Exec { .. }
        | Request::Wait { .. }
        | Request::Pause { .. } => Err(failed(Errno::EPROTO, "out of order")),
    }
}

fn signal_to(server: &Server, from: &Connection, container: &Container, to: Target, signal: i32) -> Result<(), Reply> {
    if !(0..=64).contains(&signal) {
        return Err(failed(Errno::EINVAL, format!("there is no signal {signal}")));
    }
    let own = lock(&from.state).own.clone();
    let sent = match (to, own) {
        (Target::Init, _) | (Target::Own, None) => container.signal(signal),
        (Target::Own, Some(group)) => container.signal_group(&group, signal),
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

/// Makes one more container. The first descriptor is the connection to its Gofer, the others are its first process's.
fn create(server: &Arc<Server>, to: &Arc<Connection>, config: ContainerConfig, mut fds: Vec<OwnedFd>) {
    if fds.is_empty() {
        return to.finish(&failed(Errno::EINVAL, "the connection to the Gofer is missing"));
    }
    let gofer = Arc::new(fds.remove(0));
    let (server, to) = (server.clone(), to.clone());
    server.kernel.executor.clone().spawn(Box::pin(async move {
        let reply = match try_create(&server, &to, config, gofer, fds).await {
            Ok(()) => return to.reply(&Reply::Done),
            Err(reply) => reply,
        };
        to.finish(&reply);
    }));
}

async fn try_create(
    server: &Arc<Server>,
    to: &Arc<Connection>,
    config: ContainerConfig,
    gofer: Arc<OwnedFd>,
    fds: Vec<OwnedFd>,
) -> Result<(), Reply> {
    let host = |e: nix::Error| failed(e, e.desc());
    let kernel = server.kernel.clone();
    let Some(first) = server.first.get() else { return Err(failed(Errno::ESRCH, "there is no sandbox yet")) };
    if config.id.is_empty() || server.container(&config.id).is_some() {
        return Err(failed(Errno::EEXIST, format!("container {:?} exists", config.id)));
    }
    let copy = gofer.try_clone().map_err(|e| failed(Errno::EMFILE, e.to_string()))?;
    // The Gofer has just been started by the client; what it is asked for here takes milliseconds.
    let made = kernel.executor.block_in_place(|| {
        let client =
            ::protocol::Client::connect(copy).map_err(|e| anyhow::anyhow!("the Gofer does not answer: {e}"))?;
        let bound = platform::budget::descriptor_bound(platform::budget::Use::File);
        client.set_descriptor_bound(i32::try_from(bound).unwrap_or(i32::MAX));
        containers::make(&kernel, &client, &config, Some(first))
    });
    let container = made.map_err(|e| failed(Errno::EINVAL, format!("{e:#}")))?;
    let wait_for_start = config.wait_for_start;
    let spec = containers::process_spec(config.process, fds.into_iter().map(Some).collect()).map_err(host)?;
    let watch = watch_gofer(server, &container, gofer);
    server.add_container(container.clone());
    let (report, rest) = (to.clone(), (kernel.clone(), container.clone()));
    let on_exit = move |status| {
        rest.1.kill_others(&rest.0);
        report.finish(&Reply::Exited { status });
    };
    match container.create(&kernel, spec, on_exit).await {
        Ok(()) => {
            lock(&to.state).created = Some(Created { container: container.clone(), _gofer: watch });
            if !wait_for_start {
                let _ = container.start();
            }
            Ok(())
        }
        Err(StartError { status, errno, text }) => {
            server.remove_container(&container);
            Err(Reply::Failed { errno: errno as i32, exit: Some(status), text })
        }
    }
}

/// A container whose Gofer is gone has no files any more: its processes end.
fn watch_gofer(server: &Arc<Server>, container: &Arc<Container>, gofer: Arc<OwnedFd>) -> WatchHandle {
    let executor = server.kernel.executor.clone();
    let (server, container) = (Arc::downgrade(server), Arc::downgrade(container));
    let ended = move |ready: u32| {
        let ends = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;
        if let (true, Some(s), Some(c)) = (ready & ends != 0, server.upgrade(), container.upgrade()) {
            log::warn!("the Gofer of container {:?} is gone", c.id);
            c.signal_all(&s.kernel, libc::SIGKILL);
        }
    };
    executor.watch(gofer, libc::EPOLLRDHUP as u32, Arc::new(ended))
}

fn exec(server: &Arc<Server>, to: &Arc<Connection>, c: Arc<Container>, process: ProcessConfig, fds: Vec<OwnedFd>) {
    let spec = match containers::process_spec(process, fds.into_iter().map(Some).collect()) {
        Ok(spec) => spec,
        Err(e) => return to.finish(&failed(e, format!("the process's settings: {}", e.desc()))),
    };
    let (kernel, to) = (server.kernel.clone(), to.clone());
    let report = to.clone();
    server.kernel.executor.spawn(Box::pin(async move {
        let (began, within) = (to.clone(), c.clone());
        let started = c.exec(
            &kernel,
            spec,
            move |status| {
                // The number is another's soon.
                lock(&report.state).tied = None;
                report.finish(&Reply::Exited { status });
            },
            move |group| {
                lock(&began.state).own = Some(group.clone());
                began.reply(&Reply::Started { pid: within.number_of(group) });
                began.kill_tied();
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
