//! `start`, `kill`, `delete`, `pause`, `resume`, `wait`: what happens to a container that exists.

use super::cli::{DeleteArgs, Globals, KillArgs};
use super::client::{Client, Refused};
use super::state::{Container, ProcessId, Root, State, Status, NOT_THERE};
use super::{exec, hooks, signals};
use crate::control::protocol::{Reply, Request, Target};
use crate::sys;
use anyhow::{bail, Context, Result};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long a Sentry may take to do what needs no waiting.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for a kill, which can be done without the Sentry.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// A connection for a request that is answered at once.
pub fn client(container: &Container) -> Result<Client> {
    Client::connect(container, Some(PATIENCE))
}

/// `start`.
pub fn start(globals: &Globals, id: &str) -> Result<u8> {
    let container = Root::new(globals.root.as_deref())?.open(id)?;
    let _lock = container.lock()?;
    let mut state = container.load()?;
    match container.status(&state) {
        Status::Created => {}
        Status::Stopped => bail!("cannot start a container that has stopped"),
        Status::Running | Status::Paused => bail!("cannot start an already running container"),
        Status::Creating => bail!("cannot start a container that is being created"),
    }
    begin(&container, &mut state)?;
    Ok(0)
}

/// Runs the first process of a created container. If a hook fails, the container is killed.
pub fn begin(container: &Container, state: &mut State) -> Result<()> {
    let mut client = client(container)?;
    if !state.start_hooks.is_empty() {
        let told = container.for_hooks(state, Status::Created);
        if let Err(e) = exec::run_hooks(container, state, &told) {
            kill_monitor(state);
            return Err(e);
        }
    }
    client.do_it(&Request::Start { container: container.id.clone() })?;
    state.started = true;
    container.save(state)?;
    let told = container.for_hooks(state, Status::Running);
    if let Err(e) = hooks::run("poststart", &state.poststart_hooks, &told) {
        kill_monitor(state);
        return Err(e);
    }
    Ok(())
}

/// `kill`.
pub fn kill(globals: &Globals, args: &KillArgs) -> Result<u8> {
    let container = Root::new(globals.root.as_deref())?.open(&args.id)?;
    let state = container.load()?;
    let signal = signals::parse(&args.signal)?;
    if !(0..=signals::LAST).contains(&signal) {
        bail!("unable to signal init: invalid argument");
    }
    if !state.monitor.alive() {
        // There is nothing left of it, so all of it has got the signal.
        if args.all {
            return Ok(0);
        }
        bail!("container not running");
    }
    let to = if args.all { Target::All } else { Target::Init };
    let request = Request::Signal { container: container.id.clone(), to, signal };
    let sent = Client::connect(&container, Some(KILL_PATIENCE)).and_then(|mut c| c.do_it(&request));
    match sent {
        Ok(()) => Ok(0),
        Err(_) if !state.monitor.alive() => bail!("container not running"),
        Err(e) => match e.downcast_ref::<Refused>() {
            Some(r) if r.errno == libc::ESRCH && args.all => Ok(0),
            Some(r) if r.errno == libc::ESRCH => bail!("container not running"),
            Some(r) if r.errno == libc::EINVAL => bail!("unable to signal init: invalid argument"),
            // A Sentry that does not listen is killed with all that it has.
            None if signal == libc::SIGKILL => {
                if let Some(pidfd) = state.monitor.open() {
                    sys::pidfd_send(&pidfd, libc::SIGKILL).context("unable to signal init")?;
                }
                Ok(0)
            }
            _ => Err(e).context("unable to signal init"),
        },
    }
}

/// `delete`.
pub fn delete(globals: &Globals, args: &DeleteArgs) -> Result<u8> {
    match remove(globals, args) {
        Err(e) if args.force && e.to_string() == NOT_THERE => Ok(0),
        other => other,
    }
}

fn remove(globals: &Globals, args: &DeleteArgs) -> Result<u8> {
    let container = Root::new(globals.root.as_deref())?.open(&args.id)?;
    let _lock = container.lock()?;
    let state = match container.load() {
        // Nothing has been started before there was a state.
        Err(_) if args.force => {
            container.remove()?;
            return Ok(0);
        }
        other => other?,
    };
    let status = container.status(&state);
    match status {
        // With the lock in our hands, no command is creating it any more.
        Status::Stopped | Status::Created | Status::Creating => {}
        _ if args.force => {}
        _ => bail!("cannot delete container {} that is not stopped: {}", container.id, status.name()),
    }
    tear_down(&container, &state)?;
    Ok(0)
}

/// Ends what runs of the container, and removes what there is of it.
pub fn tear_down(container: &Container, state: &State) -> Result<()> {
    // The command itself stands in for the monitor until there is one.
    if state.monitor.pid != nix::unistd::getpid().as_raw() {
        kill_monitor(state);
    }
    for process in &state.sandbox {
        end(process);
    }
    if let Some(cgroup) = &state.cgroup {
        cgroup.kill()?;
        cgroup.remove()?;
    }
    if let Some(planned) = &state.planned_cgroup {
        // It is in use if it is that of others.
        if let Err(e) = planned.remove() {
            log::debug!("{e:#}");
        }
    }
    container.remove()?;
    let told = container.for_hooks(state, Status::Stopped);
    for hook in &state.poststop_hooks {
        if let Err(e) = hooks::run("poststop", std::slice::from_ref(hook), &told) {
            log::warn!("{e:#}");
        }
    }
    Ok(())
}

fn kill_monitor(state: &State) {
    end(&state.monitor);
}

/// Kills a process and waits until it is gone.
fn end(process: &ProcessId) {
    let Some(pidfd) = process.open() else { return };
    if let Err(e) = sys::pidfd_send(&pidfd, libc::SIGKILL) {
        if e != Errno::ESRCH {
            log::warn!("killing process {}: {}", process.pid, e.desc());
            return;
        }
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
            Err(Errno::EINTR) => {}
            Ok(0) => {
                log::warn!("process {} does not end after a SIGKILL", process.pid);
                return;
            }
            _ => return,
        }
    }
}

/// `pause`.
pub fn pause(globals: &Globals, id: &str) -> Result<u8> {
    let (container, status) = status_of(globals, id)?;
    match status {
        Status::Running | Status::Created => {
            client(&container)?.do_it(&Request::Pause { container: container.id.clone() })?;
            Ok(0)
        }
        _ => bail!("container not running"),
    }
}

/// `resume`.
pub fn resume(globals: &Globals, id: &str) -> Result<u8> {
    let (container, status) = status_of(globals, id)?;
    match status {
        Status::Paused => {
            client(&container)?.do_it(&Request::Resume { container: container.id.clone() })?;
            Ok(0)
        }
        _ => bail!("container not paused"),
    }
}

fn status_of(globals: &Globals, id: &str) -> Result<(Container, Status)> {
    let container = Root::new(globals.root.as_deref())?.open(id)?;
    let state = container.load()?;
    let status = container.status(&state);
    Ok((container, status))
}

/// `wait`: prints the exit status of the first process once it has ended.
pub fn wait(globals: &Globals, id: &str) -> Result<u8> {
    let container = Root::new(globals.root.as_deref())?.open(id)?;
    let state = container.load()?;
    let told = match Client::connect(&container, None) {
        Ok(mut client) => match client.call(&Request::Wait { container: container.id.clone() }, &[]) {
            Ok(Reply::Exited { status }) => Some(status),
            _ => None,
        },
        Err(_) => None,
    };
    if let Some(pidfd) = state.monitor.open() {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
    }
    // Without a word of either, the monitor was killed, and the container with it.
    let status = told.or_else(|| container.exit_status()).unwrap_or(libc::SIGKILL);
    println!("{}", sys::shell_code(status));
    Ok(0)
}
