//! `create`, and `run` of a bundle: from a bundle to a container whose first process waits for `start`.

use super::bundle::{Bundle, HookKind};
use super::cgroup::Cgroup;
use super::cli::{BundleArgs, CreateArgs, Globals};
use super::client::SOCKET;
use super::console::{self, Foreground, Pty};
use super::lifecycle;
use super::member;
use super::monitor::{Monitor, Order, Reached, Task, Word};
use super::state::{Container, Lock, ProcessId, Root, State, Status};
use super::{descriptors, home, hooks, plan, time};
use crate::cli::RunArgs;
use crate::config::Verbosity;
use crate::launch::options::{self, Manner};
use anyhow::{anyhow, bail, Context, Result};
use nix::sys::wait::WaitStatus;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// `create`.
pub fn create(globals: &Globals, args: &CreateArgs) -> Result<u8> {
    let new = New::make(globals, &args.id, &args.bundle, None, true)?;
    match new.set_free() {
        Ok(()) => new.leave(),
        Err(e) => new.tear_down(e),
    }
}

/// `run` of a bundle.
pub fn run(globals: &Globals, id: &str, args: &RunArgs) -> Result<u8> {
    let mut new = New::make(globals, id, &args.bundle, Some(args), args.detach)?;
    if args.detach {
        // Before it is free the monitor takes no clients.
        match new.set_free().and_then(|()| lifecycle::begin(&new.container, &mut new.state)) {
            Ok(()) => return new.leave(),
            Err(e) => return new.tear_down(e),
        }
    }
    match new.in_foreground() {
        Ok(status) => {
            if !args.keep {
                lifecycle::tear_down(&new.container, &new.state)?;
            }
            Ok(status)
        }
        Err(e) => new.tear_down(e),
    }
}

/// A container on its way to be one.
struct New {
    container: Container,
    state: State,
    monitor: Monitor,
    /// Signals are taken over and the terminal is ours, for `run` in the foreground.
    foreground: Option<Foreground>,
    master: Option<OwnedFd>,
    #[allow(dead_code)] // held
    lock: Lock,
}

impl New {
    /// Makes it. `detached`: the command does not stay.
    fn make(globals: &Globals, id: &str, args: &BundleArgs, run: Option<&RunArgs>, detached: bool) -> Result<New> {
        // First of all: what is opened here must not be taken for what the caller passes on.
        let passed = descriptors::passed_on(args.preserve_fds)?;
        let bundle = Bundle::load(args.bundle.as_deref().unwrap_or(Path::new(".")))?;
        let terminal = bundle.process()?.terminal().unwrap_or(false);
        console_fits(terminal, detached, args.console_socket.as_deref())?;
        let root = Root::new(globals.root.as_deref())?;
        let (container, lock) = root.create(id)?;
        let state = match first_state(&bundle, id) {
            Ok(state) => state,
            Err(e) => {
                let _ = container.remove();
                return Err(e);
            }
        };
        let mut draft = Draft { container, state, monitor: None };
        let made = member::sandbox_of(&bundle, &root, id)
            .and_then(|sandbox| draft.make(globals, args, run, detached, &bundle, passed, sandbox));
        match (made, draft.monitor.take()) {
            (Ok((foreground, master)), Some(monitor)) => {
                Ok(New { container: draft.container, state: draft.state, monitor, foreground, master, lock })
            }
            (made, monitor) => {
                let ran = monitor.is_some();
                drop(monitor);
                if !ran {
                    // No hook has been run.
                    draft.state.poststop_hooks.clear();
                }
                lifecycle::tear_down(&draft.container, &draft.state)?;
                Err(made.err().unwrap_or_else(|| anyhow!("there is no monitor")))
            }
        }
    }

    /// Lets the monitor outlive this process.
    fn set_free(&self) -> Result<()> {
        self.monitor.order(Order::BeFree)?;
        match self.monitor.hear()? {
            Word::Free => Ok(()),
            Word::Failed { text, .. } => bail!(text),
            other => bail!("the monitor says {other:?}"),
        }
    }

    /// The command has done its part.
    fn leave(self) -> Result<u8> {
        // The drop would kill it.
        std::mem::forget(self.monitor);
        Ok(0)
    }

    /// Starts it and waits for its end; the status to exit with.
    fn in_foreground(&mut self) -> Result<u8> {
        self.monitor.order(Order::Stay)?;
        let Some(mut foreground) = self.foreground.take() else { bail!("signals have not been taken over") };
        if let Some(master) = self.master.take() {
            foreground.attach(master)?;
        }
        lifecycle::begin(&self.container, &mut self.state)?;
        Ok(exit_code(foreground.wait(&self.monitor.process)?))
    }

    /// Nothing is left of a container that could not be made.
    fn tear_down(self, why: anyhow::Error) -> Result<u8> {
        let New { container, state, monitor, .. } = self;
        drop(monitor);
        if let Err(e) = lifecycle::tear_down(&container, &state) {
            log::warn!("{e:#}");
        }
        Err(why)
    }
}

/// The status that a shell would give.
pub fn exit_code(status: WaitStatus) -> u8 {
    match status {
        WaitStatus::Exited(_, code) => code as u8,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as u8,
        _ => 1,
    }
}

/// runc's rules for terminals.
pub fn console_fits(terminal: bool, detached: bool, socket: Option<&Path>) -> Result<()> {
    if detached && terminal && socket.is_none() {
        bail!("cannot allocate tty if runsc-rs will detach without setting console socket");
    }
    if (!detached || !terminal) && socket.is_some() {
        bail!("cannot use console socket if runsc-rs will not detach or allocate tty");
    }
    Ok(())
}

fn first_state(bundle: &Bundle, id: &str) -> Result<State> {
    let hooks = |kind| bundle.hooks(kind).to_vec();
    Ok(State {
        oci_version: bundle.spec.version().clone(),
        id: id.into(),
        bundle: bundle.dir.clone(),
        rootfs: bundle.rootfs.clone(),
        created: time::nanoseconds(SystemTime::now()),
        owner: nix::unistd::getuid().as_raw(),
        annotations: bundle.spec.annotations().clone().unwrap_or_default().into_iter().collect(),
        creating: true,
        started: false,
        monitor: ProcessId::me()?,
        sandbox: Vec::new(),
        cgroup: None,
        planned_cgroup: None,
        member_of: None,
        process: bundle.process()?.clone(),
        seccomp: plan::seccomp(bundle)?,
        start_hooks: hooks(HookKind::StartContainer),
        poststart_hooks: hooks(HookKind::Poststart),
        poststop_hooks: hooks(HookKind::Poststop),
    })
}

/// What has been made of a container so far.
struct Draft {
    container: Container,
    state: State,
    monitor: Option<Monitor>,
}

impl Draft {
    fn make(
        &mut self,
        globals: &Globals,
        args: &BundleArgs,
        run: Option<&RunArgs>,
        detached: bool,
        bundle: &Bundle,
        passed: descriptors::Passed,
        sandbox: Option<Container>,
    ) -> Result<(Option<Foreground>, Option<OwnedFd>)> {
        let (container, state) = (&self.container, &mut self.state);
        let options = plan::Options {
            id: container.id.clone(),
            preserve_fds: passed.count()?,
            extra_env: passed.environment(),
            member: sandbox.is_some(),
            ..Default::default()
        };
        state.member_of = sandbox.as_ref().map(|s| s.id.clone());
        let mut plan = plan::container(bundle, &options)?;
        let first = &mut plan.container.process;
        home::provide(&mut first.env, first.user.uid, &bundle.rootfs);
        let linux = bundle.spec.linux().as_ref();
        let resources = member::cgroup_resources(bundle);
        let resources = resources.as_ref();
        let path = linux.and_then(|l| l.cgroups_path().as_deref());
        let systemd = globals.systemd_cgroup || globals.cgroup_manager.as_deref() == Some("systemd");
        container.save(state)?;
        let made = Cgroup::create(&container.id, path, systemd, resources, |planned| {
            state.planned_cgroup = Some(planned.clone());
            container.save(state)
        });
        state.planned_cgroup = None;
        state.cgroup = made?;
        container.save(state)?;

        let process = bundle.process()?;
        let size = process.console_size().map(|s| (s.height() as u16, s.width() as u16));
        let pty = if process.terminal().unwrap_or(false) { Some(Pty::open(size)?) } else { None };
        let files = passed.files(pty.as_ref().map(|p| p.slave.as_fd()))?;
        let manner = manner(globals, run, container)?;
        let log = File::from(manner.log.try_clone()?);
        let task = Task {
            container: container.clone(),
            plan: manner.plan(plan.container, plan.trees, plan.ids, Some(files))?,
            cgroup: state.cgroup.clone(),
            terminal: pty.as_ref().map(|p| p.slave.try_clone()).transpose()?,
            reached: match &sandbox {
                Some(sandbox) => {
                    member::link_socket(container, sandbox)?;
                    Reached::BySandbox
                }
                None => Reached::Here(listen(container)?),
            },
            oom_score_adj: process.oom_score_adj(),
        };
        let foreground = if detached { None } else { Some(Foreground::begin()?) };
        let monitor = self.monitor.insert(Monitor::start(task, log, File::open(&container.path)?)?);
        state.monitor = ProcessId::of(monitor.process.pid)?;
        container.save(state)?;
        match monitor.hear()? {
            Word::Ready => {}
            Word::Failed { text, .. } => bail!(text),
            other => bail!("the monitor says {other:?}"),
        }
        if let (Some(cgroup), Some(resources)) = (&state.cgroup, resources) {
            cgroup.apply(resources)?;
        }
        let master = match (pty, &args.console_socket) {
            (Some(pty), Some(socket)) => {
                console::send_master(socket, pty.master.as_fd())?;
                None
            }
            (pty, _) => pty.map(|p| p.master),
        };
        let told = container.for_hooks(state, Status::Creating);
        for kind in [HookKind::Prestart, HookKind::CreateRuntime, HookKind::CreateContainer] {
            hooks::run(kind.name(), bundle.hooks(kind), &told)?;
        }
        monitor.order(Order::Go)?;
        let argv0 = process.args().iter().flatten().next().cloned().unwrap_or_default();
        await_created(container, state, monitor, &argv0)?;
        if let Some(file) = &args.pid_file {
            write_pid_file(file, state.monitor.pid)?;
        }
        Ok((foreground, master))
    }
}

/// Waits until the first process waits to be started.
fn await_created(container: &Container, state: &mut State, monitor: &Monitor, argv0: &str) -> Result<()> {
    loop {
        match monitor.hear()? {
            Word::Spawned(sandbox) => state.sandbox = sandbox,
            Word::Created => state.creating = false,
            other @ (Word::Ready | Word::Free) => bail!("the monitor says {other:?}"),
            Word::Failed { status, text } => bail!(start_trouble(status, argv0, &text)),
        }
        container.save(state)?;
        if !state.creating {
            return Ok(());
        }
    }
}

/// Why a process could not be started, as runc says it: engines look for these texts.
pub fn start_trouble(status: u8, argv0: &str, text: &str) -> String {
    let exec = match status {
        127 if argv0.contains('/') => format!("exec: {argv0:?}: stat {argv0}: no such file or directory"),
        127 => format!("exec: {argv0:?}: executable file not found in $PATH"),
        126 if text.ends_with("Permission denied") => format!("exec: {argv0:?}: permission denied"),
        _ => text.to_string(),
    };
    format!("unable to start container process: {exec}")
}

/// The control socket.
fn listen(container: &Container) -> Result<UnixListener> {
    let dir = File::open(&container.path)?;
    // The path of the directory may be longer than an address can be.
    let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    let listener = UnixListener::bind(&path).context("making the control socket")?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).context("the control socket")?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// How the sandbox is run; its log is a file beside the state, or with `--debug` the text file of `--log`.
fn manner(globals: &Globals, run: Option<&RunArgs>, container: &Container) -> Result<Manner> {
    let (path, verbosity) = match (&globals.log, globals.debug) {
        (Some(file), true) if globals.log_format == super::cli::LogFormat::Text => {
            (file.clone(), Verbosity::Everything)
        }
        (_, true) => (container.path.join("sandbox.log"), Verbosity::Everything),
        _ => (container.path.join("sandbox.log"), Verbosity::News),
    };
    let log = || -> Result<OwnedFd> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        Ok(file.with_context(|| format!("the sandbox's log {}", path.display()))?.into())
    };
    match run {
        Some(args) => {
            let given = args.log.is_some();
            let mut manner = options::manner(args)?;
            if !given {
                manner.log = log()?;
                manner.verbosity = verbosity;
            }
            Ok(manner)
        }
        None => Ok(Manner::plain(log()?, verbosity)),
    }
}

/// Writes a file that is complete as soon as it is there. Others may write to its directory: nothing of theirs is
/// written to.
pub fn write_pid_file(file: &Path, pid: i32) -> Result<()> {
    let name = file.file_name().ok_or_else(|| anyhow!("--pid-file {}: not a file", file.display()))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let new: PathBuf = file.with_file_name(hidden);
    let write = || {
        let create = || OpenOptions::new().create_new(true).write(true).mode(0o644).open(&new);
        let mut made = match create() {
            // One that was killed has left it.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(&new)?;
                create()?
            }
            other => other?,
        };
        made.write_all(pid.to_string().as_bytes())?;
        std::fs::rename(&new, file)
    };
    write().with_context(|| format!("--pid-file {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_need_a_reader() {
        let socket = Some(Path::new("s"));
        for (terminal, detached, socket, good) in [
            (false, false, None, true),
            (false, true, None, true),
            (true, false, None, true),
            (true, true, None, false),
            (true, true, socket, true),
            (true, false, socket, false),
            (false, true, socket, false),
        ] {
            assert_eq!(console_fits(terminal, detached, socket).is_ok(), good, "{terminal} {detached} {socket:?}");
        }
    }

    #[test]
    fn failures_to_start_have_runcs_words() {
        let text = |status, argv0, text| start_trouble(status, argv0, text);
        assert!(text(127, "x", "x: command not found").ends_with("exec: \"x\": executable file not found in $PATH"));
        assert!(text(127, "/x", "").ends_with("exec: \"/x\": stat /x: no such file or directory"));
        assert!(text(126, "/x", "/x: Permission denied").ends_with("exec: \"/x\": permission denied"));
        assert!(text(125, "/x", "no memory").ends_with("process: no memory"));
    }
}
