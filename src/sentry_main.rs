//! The Sentry's process: takes up its configuration, locks itself in, boots the guest kernel and runs it to its end.
//!
//! The order matters: everything up to [`confine::seccomp::Filter::lock`] is set-up from trusted input; what a guest or the Gofer says is first
//! looked at after it.

use crate::cli::HandOff;
use crate::config::{fd, from_memfd, ContainerConfig, SentryConfig, Verbosity};
use crate::confine::oom::OomScore;
use crate::control::server::Server;
use crate::control::{FromSentry, ToSentry};
use crate::outlet::Outlet;
use crate::stats::Stats;
use crate::{confine, containers, logging, sys};
use anyhow::{anyhow, Context, Result};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use platform::executor::WatchHandle;
use platform::systrap::{self, Systrap};
use platform::{Executor, Platform};
use protocol::Client;
use sentry::kernel::init;
use sentry::kernel::kernel::Options;
use sentry::kernel::Kernel;
use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock};

/// Address spaces that the platform keeps ready.
const POOL: usize = 2;

/// How the sandbox ended, if not by the end of its first process: said once, by whoever notices first.
static TROUBLE: OnceLock<FromSentry> = OnceLock::new();

pub fn main() -> Result<u8> {
    let config = sys::inherited_fd(fd::CONFIG).context("this is an internal subcommand: `runsc-rs run` starts it")?;
    let config: SentryConfig = from_memfd(config)?;
    logging::init("sentry", config.verbosity);
    sys::report_panics("the Sentry");
    let control = Arc::new(sys::inherited_fd(fd::CONTROL)?);
    let Err(e) = run(config, &control);
    let message = failed(&format!("{e:#}"));
    finish(&message, &control).map(|never| match never {})
}

/// Where `--strace` goes: one write, one line.
#[derive(Clone)]
struct Trace(Arc<Mutex<Outlet<OwnedFd>>>);

impl Trace {
    /// Most bytes that wait for a reader.
    const KEPT: usize = 4 << 20;

    fn new(fd: OwnedFd) -> Trace {
        Trace(Arc::new(Mutex::new(Outlet::new(fd, Trace::KEPT))))
    }
}

impl Write for Trace {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Ok(mut out) = self.0.lock() {
            out.put(line);
        }
        Ok(line.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells the command how it ended, and ends.
fn finish(message: &FromSentry, control: &OwnedFd) -> Result<Infallible> {
    logging::finish();
    message.send(control).context("telling the command")?;
    // Nothing is worth running destructors for: the host takes back everything at once.
    sys::exit_now(0)
}

fn run(config: SentryConfig, control: &Arc<OwnedFd>) -> Result<Infallible> {
    let oom_score = OomScore::raise();
    lock_in(&config, control)?;
    let gofer = Arc::new(sys::inherited_fd(fd::GOFER)?);
    let files = config
        .container
        .process
        .files
        .iter()
        .map(|f| (*f)?.checked_add(fd::FILES as u8))
        .map(|f| sys::inherited_fd(f?.into()).ok());
    let files: Vec<_> = files.collect();
    let strace = if config.strace { Some(Trace::new(sys::inherited_fd(fd::STRACE)?)) } else { None };
    // The filter is made while the zygote starts. Besides, glibc sets its signal handlers up with the first thread; afterwards
    // `rt_sigaction` is not needed any more.
    let filter = std::thread::spawn(confine::seccomp::Filter::make);
    let hand_off = match config.hand_off {
        HandOff::Adaptive => platform::HandOff::Adaptive,
        HandOff::Sleep => platform::HandOff::Sleep,
        HandOff::Spin => platform::HandOff::Spin,
    };
    let executor = Executor::new(hand_off, config.workers).context("starting the executor")?;
    let platform = start_platform(&executor, &config)?;
    match oom_score.map(OomScore::restore) {
        Some(Ok(())) => {}
        Some(Err(e)) => log::debug!("going back to the own OOM score: {e}"),
        None => log::debug!("the OOM score of stubs cannot be raised"),
    }
    filter.join().map_err(|_| anyhow!("making the seccomp filter"))??.lock()?;
    log::debug!("the Sentry is locked in");

    let options = Options {
        strace: config.strace,
        debug: config.verbosity == Verbosity::Everything,
        max_tasks: Some(config.max_tasks),
        init: config.container.init,
        stats: config.stats,
        patch: config.patch,
        local_answers: config.patch && !config.strace,
    };
    let kernel = Kernel::new(platform, executor.clone(), options);
    if let Some(strace) = &strace {
        *kernel.strace_out.lock() = Box::new(strace.clone());
    }
    let to_command = control.clone();
    let stopped = move |stopped| {
        let message = if stopped { FromSentry::Stopped } else { FromSentry::Continued };
        if let Err(e) = message.send(&to_command) {
            log::warn!("telling the command of a stop: {e}");
        }
    };
    let _ = kernel.on_first_stopped.set(Box::new(stopped));
    let to_command = control.clone();
    let ask = move || {
        if let Err(e) = FromSentry::AskForeground.send(&to_command) {
            log::warn!("asking the command for the foreground: {e}");
        }
    };
    let _ = kernel.ask_foreground.set(Box::new(ask));
    let server = Server::new(kernel.clone());
    let _watches = (watch_control(&kernel, &server, control), watch_gofer(&executor, &gofer));
    let client = Client::connect(gofer.try_clone()?).map_err(|e| anyhow!("the Gofer does not answer: {e}"))?;
    let bound = platform::budget::descriptor_bound(platform::budget::Use::File);
    client.set_descriptor_bound(i32::try_from(bound).unwrap_or(i32::MAX));
    let stats = config.stats.then(|| Stats::begin(&client));
    boot(&server, &client, config.container, files, control)?;
    let follower = executor.clone();
    std::thread::Builder::new()
        .name("executor".into())
        .spawn(move || follower.run())
        .context("starting a thread of the executor")?;
    let status = executor.run();
    if let Some(stats) = stats {
        // What threads count is added as they end.
        executor.settle();
        stats.print(&kernel);
    }
    if let Some(mut trace) = strace.as_ref().and_then(|s| s.0.lock().ok()) {
        trace.finish();
    }
    let message = match TROUBLE.get() {
        Some(trouble) => trouble.clone(),
        None => FromSentry::Exited(status),
    };
    finish(&message, control)
}

/// Sets the process up, from the outermost confinement inwards.
fn lock_in(config: &SentryConfig, control: &OwnedFd) -> Result<()> {
    if let Some(ids) = config.become_ids {
        confine::become_ids(ids)?;
    }
    confine::die_with_parent()?;
    if parent_is_gone(control) {
        sys::exit_now(0);
    }
    confine::empty_root()?;
    confine::raise_limits()?;
    platform::budget::prepare();
    confine::drop_privileges()
}

/// The command may have died before it was asked to take us along.
fn parent_is_gone(control: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(control.as_fd(), PollFlags::empty())];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
}

/// Ends the sandbox because of something other than its first process's end.
fn give_up(executor: &Executor, trouble: FromSentry) {
    let _ = TROUBLE.set(trouble);
    executor.shutdown(i32::from(crate::OWN_FAILURE));
}

fn failed(text: &str) -> FromSentry {
    FromSentry::Failed { status: crate::OWN_FAILURE, text: text.to_owned() }
}

fn start_platform(executor: &Arc<Executor>, sandbox: &SentryConfig) -> Result<Arc<dyn Platform>> {
    let weak = Arc::downgrade(executor);
    let on_fatal = Arc::new(move |text: &str| {
        if let Some(executor) = weak.upgrade() {
            give_up(&executor, failed(text));
        }
    });
    let config = systrap::Config {
        executor: executor.clone(),
        pool: POOL,
        see_all: sandbox.strace,
        max_host_tasks: host_tasks(sandbox),
        on_fatal,
        survives_kills: sandbox.container.wait_for_start,
    };
    let platform = Systrap::new(config).context("the systrap platform cannot start")?;
    // A trace is to show all calls.
    platform.set_native_futex(!sandbox.strace, sandbox.patch);
    Ok(platform)
}

/// How many processes and threads the host is to let stubs have: those of the guest, stubs kept ready, what is about to
/// end, and the Sentry's threads. Since Linux 5.14 the host counts them for each user namespace, which is the
/// sandbox's own. Before, it counts for each user; one that is not the sandbox's own has other processes as well, and
/// the limit stays as it is.
fn host_tasks(config: &SentryConfig) -> Option<u64> {
    const BESIDE_GUESTS: u64 = 64;
    let release = nix::sys::utsname::uname().ok()?;
    let mut numbers = release.release().to_str()?.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return None };
    let exact = (major, minor) >= (5, 14) || config.become_ids.is_some();
    exact.then_some(config.max_tasks as u64 + BESIDE_GUESTS)
}

/// Takes the command's messages; without a command there is no sandbox.
fn watch_control(kernel: &Arc<Kernel>, server: &Arc<Server>, control: &Arc<OwnedFd>) -> WatchHandle {
    let server = server.clone();
    let (kernel, socket) = (Arc::downgrade(kernel), control.clone());
    let executor = match kernel.upgrade() {
        Some(k) => k.executor.clone(),
        None => unreachable!("the caller holds it"),
    };
    executor.watch(
        control.clone(),
        libc::EPOLLIN as u32,
        Arc::new(move |_| {
            let Some(kernel) = kernel.upgrade() else { return };
            loop {
                match ToSentry::receive(&socket) {
                    Ok(Some(ToSentry::Signal { signal, terminal })) => {
                        from_command(&kernel, signal, terminal);
                        // If the command is gone, the next look tells.
                        let _ = FromSentry::Taken.send(&socket);
                    }
                    Ok(Some(ToSentry::Foreground(yes))) => kernel.ttys.set_foreground(yes),
                    Ok(Some(ToSentry::Client(connection))) => server.connect(connection),
                    Err(Errno::ENFILE) => {}
                    Err(Errno::EAGAIN) => return,
                    Ok(None) | Err(_) => return give_up(&kernel.executor, failed("the command is gone")),
                }
            }
        }),
    )
}

/// A signal that the command was sent.
fn from_command(kernel: &Kernel, signal: i32, terminal: bool) {
    const FATAL: [i32; 6] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];
    if FATAL.contains(&signal) && kernel.group(kernel.first_pid()).is_none() {
        // There is no process yet that could have another mind: it would have died of it.
        give_up(&kernel.executor, FromSentry::Exited(signal));
    } else if signal == libc::SIGCONT {
        init::resume_job(kernel);
    } else if terminal {
        sentry::kernel::tty::signal_foreground(kernel, signal);
    } else {
        init::signal(kernel, signal);
    }
}

/// The connection is only looked at for its end: what comes in is the client's.
fn watch_gofer(executor: &Arc<Executor>, connection: &Arc<OwnedFd>) -> WatchHandle {
    let weak = Arc::downgrade(executor);
    executor.watch(
        connection.clone(),
        libc::EPOLLRDHUP as u32,
        Arc::new(move |ready| {
            if ready & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0 {
                if let Some(executor) = weak.upgrade() {
                    give_up(&executor, FromSentry::LostGofer);
                }
            }
        }),
    )
}

/// Makes the first container and loads its first process, whose end is the sandbox's.
fn boot(
    server: &Arc<Server>,
    client: &Client,
    config: ContainerConfig,
    files: Vec<Option<OwnedFd>>,
    control: &Arc<OwnedFd>,
) -> Result<()> {
    let kernel = server.kernel().clone();
    let container = containers::make(&kernel, client, &config, None)?;
    server.add_container(container.clone());
    let spec = containers::process_spec(config.process, files);
    let spec = spec.map_err(|e| anyhow!("the first process's settings: {}", e.desc()))?;
    let (executor, control) = (kernel.executor.clone(), control.clone());
    let ended = executor.clone();
    kernel.executor.clone().spawn(Box::pin(async move {
        match container.create(&kernel, spec, move |status| ended.shutdown(status)).await {
            Ok(()) => {
                if let Err(e) = FromSentry::Started.send(&control) {
                    log::warn!("telling the command of the start: {e}");
                }
                if !config.wait_for_start {
                    let _ = container.start();
                }
            }
            Err(e) => give_up(&executor, FromSentry::Failed { status: e.status, text: e.text }),
        }
    }));
    Ok(())
}
