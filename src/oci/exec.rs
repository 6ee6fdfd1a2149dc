//! `exec`: one more process in a container.
//!
//! An *agent* stands for the process on the host: it has asked the Sentry for it, passes on signals, and ends as the
//! process does. Without a terminal in the foreground the command itself is the agent; otherwise it is a clone of it,
//! with the terminal as its controlling one.

use super::cli::{ExecArgs, Globals};
use super::client::{Client, Refused};
use super::console::{self, Foreground, Pty};
use super::create::{console_fits, exit_code, start_trouble, write_pid_file};
use super::state::{Container, ProcessId, Root, State};
use super::{bundle, descriptors, home, plan};
use crate::config::ProcessConfig;
use crate::control::protocol::{Reply, Request, Status as Told, Target};
use crate::launch::spawn;
use crate::launch::supervise::Signals;
use crate::sys::{self, Cloned};
use anyhow::{anyhow, bail, Context, Result};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use oci_spec::runtime::{Hook, Process};
use serde_json::{json, Value};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// `exec`.
pub fn exec(globals: &Globals, args: &ExecArgs) -> Result<u8> {
    // First of all: what is opened here must not be taken for what the caller passes on.
    let passed = descriptors::passed_on(args.preserve_fds)?;
    let container = Root::new(globals.root.as_deref())?.open(&args.id)?;
    let state = container.load()?;
    let mut client = running(&container, &state, args.ignore_paused)?;
    let process = wanted(&state, args)?;
    let terminal = process.terminal().unwrap_or(false);
    console_fits(terminal, args.detach, args.console_socket.as_deref())?;
    let argv0 = process.args().iter().flatten().next().cloned().unwrap_or_default();
    let mut config = plan::process(&process)?;
    config.seccomp = state.seccomp.clone();
    home::provide(&mut config.env, config.user.uid, &state.rootfs);
    config.env.extend(passed.environment().into_iter().map(String::into_bytes));
    config.terminal = terminal;
    let size = process.console_size().map(|s| (s.height() as u16, s.width() as u16));
    let pty = if terminal { Some(Pty::open(size)?) } else { None };
    let files = passed.files(pty.as_ref().map(|p| p.slave.as_fd()))?;
    config.files = (0..files.len()).map(|i| u8::try_from(i).ok()).collect();

    if !terminal && !args.detach {
        let signals = Signals::take_over_all()?;
        begin(&mut client, &container, config, &files, &argv0, false)?;
        drop(files);
        if let Some(file) = &args.pid_file {
            write_pid_file(file, std::process::id() as i32)?;
        }
        return Ok(sys::shell_code(serve(&mut client, &container, &signals)));
    }
    let foreground = if args.detach { None } else { Some(Foreground::begin()?) };
    let (slave, master) = pty.map(|p| (p.slave, p.master)).unzip();
    let agent = Agent::start(client, &container, config, files, slave, &argv0)?;
    if let (Some(socket), Some(master)) = (&args.console_socket, &master) {
        console::send_master(socket, master.as_fd())?;
    }
    agent.begin()?;
    if let Some(file) = &args.pid_file {
        write_pid_file(file, agent.process.pid.as_raw())?;
    }
    match foreground {
        Some(mut foreground) => {
            if let Some(master) = master {
                foreground.attach(master)?;
            }
            Ok(exit_code(foreground.wait(&agent.process)?))
        }
        None => {
            // It is not to be killed by the drop.
            std::mem::forget(agent);
            Ok(0)
        }
    }
}

/// A connection to the Sentry of a container that can have one more process.
fn running(container: &Container, state: &State, ignore_paused: bool) -> Result<Client> {
    const STOPPED: &str = "cannot exec in a stopped container";
    if !state.monitor.alive() {
        bail!(STOPPED);
    }
    if state.creating {
        bail!("cannot exec in a container that is being created");
    }
    let mut client = Client::connect(container, None)?;
    match client.call(&Request::State { container: container.id.clone() }, &[])? {
        Reply::State { status: Told::Stopped, .. } => bail!(STOPPED),
        Reply::State { status: Told::Paused, .. } if !ignore_paused => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        Reply::State { .. } => Ok(client),
        other => bail!("the Sentry answers {other:?} to a question for the state"),
    }
}

/// The process that the options ask for: that of a file, or the container's own with changes.
fn wanted(state: &State, args: &ExecArgs) -> Result<Process> {
    if let Some(file) = &args.process {
        return bundle::load_process(file);
    }
    if args.command.is_empty() {
        bail!("process args cannot be empty");
    }
    let mut process = serde_json::to_value(&state.process)?;
    let text = |s: &std::ffi::OsString| s.to_str().map(str::to_owned).ok_or_else(|| anyhow!("arguments must be UTF-8"));
    process["args"] = args.command.iter().map(text).collect::<Result<Vec<_>>>()?.into();
    process["terminal"] = args.tty.into();
    if !args.tty {
        process["consoleSize"] = Value::Null;
    }
    if let Some(cwd) = &args.cwd {
        process["cwd"] = cwd.as_str().into();
    }
    if args.no_new_privs {
        process["noNewPrivileges"] = true.into();
    }
    extend(&mut process["env"], args.env.iter().map(|e| e.as_str().into()));
    if let Some(user) = &args.user {
        let number = |t: &str| t.parse::<u32>().ok().filter(|n| *n != u32::MAX);
        let (uid, gid) = user.split_once(':').map_or((user.as_str(), None), |(u, g)| (u, Some(g)));
        let mistake = || anyhow!("--user {user}: write UID or UID:GID, as numbers");
        process["user"]["uid"] = number(uid).ok_or_else(mistake)?.into();
        if let Some(gid) = gid {
            process["user"]["gid"] = number(gid).ok_or_else(mistake)?.into();
        }
    }
    extend(&mut process["user"]["additionalGids"], args.additional_gids.iter().map(|g| (*g).into()));
    if !args.cap.is_empty() {
        if process["capabilities"].is_null() {
            process["capabilities"] = json!({});
        }
        for set in ["bounding", "effective", "permitted"] {
            extend(&mut process["capabilities"][set], args.cap.iter().map(|c| c.as_str().into()));
        }
    }
    let process: Process = serde_json::from_value(process).context("the options of exec")?;
    bundle::check_process(&process)?;
    Ok(process)
}

/// Appends to a list of JSON, which may be missing.
fn extend(list: &mut Value, more: impl Iterator<Item = Value>) {
    let mut all: Vec<Value> = more.collect();
    if !all.is_empty() {
        let mut whole = list.as_array().cloned().unwrap_or_default();
        whole.append(&mut all);
        *list = whole.into();
    }
}

/// Asks the Sentry for the process, and waits until it runs. `tied`: it does not outlive this process.
fn begin(
    client: &mut Client,
    container: &Container,
    config: ProcessConfig,
    files: &[OwnedFd],
    argv0: &str,
    tied: bool,
) -> Result<()> {
    let request = Request::Exec { container: container.id.clone(), process: Box::new(config), tied };
    let files: Vec<_> = files.iter().map(|f| f.as_fd()).collect();
    match client.call(&request, &files) {
        Ok(Reply::Started { .. }) => Ok(()),
        Ok(other) => bail!("the Sentry answers {other:?} to an exec"),
        Err(e) => match e.downcast::<Refused>() {
            Ok(Refused { exit: Some(status), text, .. }) => bail!(start_trouble(status, argv0, &text)),
            Ok(refused) => Err(refused.into()),
            Err(e) => Err(e),
        },
    }
}

/// Passes signals on until the process has ended; its wait(2) status. If the sandbox ends, it was killed.
pub fn serve(client: &mut Client, container: &Container, signals: &Signals) -> i32 {
    loop {
        let mut fds = [PollFd::new(client.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return libc::SIGKILL,
        }
        let told = fds.first().and_then(PollFd::any).unwrap_or(false);
        while let Some((signal, terminal)) = signals.next() {
            let to = if terminal || signal == libc::SIGWINCH { Target::Foreground } else { Target::Own };
            // If the connection has ended, that is seen next.
            let _ = client.send(&Request::Signal { container: container.id.clone(), to, signal }, &[]);
        }
        if told {
            match client.receive() {
                Ok(Reply::Exited { status }) => return status,
                Ok(_) => {}
                // A signal that it could not have.
                Err(e) if e.is::<Refused>() => {}
                Err(_) => return libc::SIGKILL,
            }
        }
    }
}

/// A clone that is the agent.
struct Agent {
    process: spawn::Process,
    /// It begins when a byte comes, and says why it could not; closed when it could.
    channel: OwnedFd,
}

impl Agent {
    fn start(
        client: Client,
        container: &Container,
        config: ProcessConfig,
        files: Vec<OwnedFd>,
        terminal: Option<OwnedFd>,
        argv0: &str,
    ) -> Result<Agent> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().context("socketpair")?;
        match sys::clone_process(0).context("starting the agent")? {
            Cloned::Parent { pid, pidfd } => Ok(Agent { process: spawn::Process { pid, pidfd }, channel: ours.into() }),
            Cloned::Child => {
                let mut channel = theirs;
                let run = |channel: &mut std::os::unix::net::UnixStream| -> Result<(Client, Signals)> {
                    let mut kept: Vec<_> = files.iter().chain(&terminal).map(|f| f.as_raw_fd()).collect();
                    kept.extend([client.as_fd().as_raw_fd(), channel.as_raw_fd()]);
                    kept.extend(super::report::descriptor());
                    sys::close_all_but(&kept)?;
                    nix::unistd::setsid().context("setsid")?;
                    if let Some(terminal) = &terminal {
                        sys::set_controlling_terminal(terminal.as_fd()).context("the controlling terminal")?;
                    }
                    let signals = Signals::take_over_all()?;
                    channel.read_exact(&mut [0u8]).context("the command is gone")?;
                    let mut client = client;
                    begin(&mut client, container, config, &files, argv0, true)?;
                    drop(files);
                    sys::let_go_of_streams().context("/dev/null")?;
                    std::env::set_current_dir("/").context("/")?;
                    Ok((client, signals))
                };
                match run(&mut channel) {
                    Ok((mut client, signals)) => {
                        drop(channel);
                        sys::end_like(serve(&mut client, container, &signals))
                    }
                    Err(e) => {
                        let _ = channel.write_all(format!("{e:#}").as_bytes());
                        sys::exit_now(255)
                    }
                }
            }
        }
    }

    /// Has it ask for the process, and waits until that runs.
    fn begin(&self) -> Result<()> {
        let mut channel = File::from(self.channel.try_clone()?);
        channel.write_all(&[1]).context("the agent is gone")?;
        let mut text = String::new();
        channel.read_to_string(&mut text)?;
        if !text.is_empty() {
            bail!(text);
        }
        // One that was killed says nothing.
        if !ProcessId::of(self.process.pid).is_ok_and(|p| p.alive()) && !self.has_ended() {
            bail!("the agent has ended without a word");
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.process.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }
}

/// Runs the hooks of a created container that belong into it, one after the other.
pub fn run_hooks(container: &Container, state: &State, told: &str) -> Result<()> {
    for (i, hook) in state.start_hooks.iter().enumerate() {
        run_hook(container, state, hook, told).with_context(|| format!("error running startContainer hook #{i}"))?;
    }
    Ok(())
}

/// Longest time of a hook without a timeout.
const NO_TIMEOUT: Duration = Duration::from_secs(86_400);

fn run_hook(container: &Container, state: &State, hook: &Hook, told: &str) -> Result<()> {
    let mut config = plan::process(&state.process)?;
    let mut argv = vec![hook.path().as_os_str().as_bytes().to_vec()];
    argv.extend(hook.args().iter().flatten().skip(1).map(|a| a.clone().into_bytes()));
    config.argv = argv;
    config.env = hook.env().iter().flatten().map(|e| e.clone().into_bytes()).collect();
    config.cwd = b"/".to_vec();
    config.files = vec![Some(0), Some(1), Some(2)];
    config.terminal = false;
    let (stdin, state_end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let mut state_end = File::from(state_end);
    let null: OwnedFd = File::options().read(true).write(true).open("/dev/null")?.into();
    let files = [stdin, null.try_clone()?, null];
    let mut client = Client::connect(container, None)?;
    let path = hook.path().display().to_string();
    begin(&mut client, container, config, &files, &path, true)?;
    drop(files);
    // It fits into the pipe, or it is cut: a hook need not read it.
    nix::fcntl::fcntl(&state_end, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    let _ = state_end.write_all(told.as_bytes());
    drop(state_end);
    let timeout = hook.timeout().and_then(|t| u64::try_from(t).ok()).map_or(NO_TIMEOUT, Duration::from_secs);
    let until = Instant::now() + timeout;
    let mut late = false;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let wait = if late { PollTimeout::NONE } else { PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX) };
        let mut fds = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, wait) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
            Ok(0) => {
                late = true;
                let signal = libc::SIGKILL;
                client.send(&Request::Signal { container: container.id.clone(), to: Target::Own, signal }, &[])?;
            }
            Ok(_) => match client.receive()? {
                Reply::Exited { .. } if late => bail!("{path} ran past its timeout of {}s", timeout.as_secs()),
                Reply::Exited { status: 0 } => return Ok(()),
                Reply::Exited { status } => bail!("{path}: exit status {}", sys::shell_code(status)),
                _ => {}
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ExecArgs,
    }

    fn parse(words: &[&str]) -> ExecArgs {
        Line::try_parse_from(std::iter::once(&"exec").chain(words)).map_err(|e| panic!("{e}")).unwrap().args
    }

    #[test]
    fn what_follows_the_id_is_the_command() {
        let args = parse(&["-e", "A=1", "-u", "5:6", "box", "ls", "-e", "--", "-x"]);
        assert_eq!(args.command, ["ls", "-e", "--", "-x"]);
        assert_eq!((args.id.as_str(), args.env.len()), ("box", 1));
        assert_eq!(parse(&["-t", "box", "sh"]).command, ["sh"]);
        assert_eq!(parse(&["box", "--", "sh", "-c"]).command, ["sh", "-c"]);
        assert!(parse(&["--process", "f", "box"]).command.is_empty());
        assert!(parse(&["--process", "f", "box", "-d"]).detach || !parse(&["box", "-d"]).command.is_empty());
    }
}
