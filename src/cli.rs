//! What the command line says: options, their help, and the first checks of their form. Nothing here touches the host.

use crate::oci::cli::{
    BundleArgs, CreateArgs, DeleteArgs, EventsArgs, ExecArgs, Globals, IdArgs, KillArgs, ListArgs, PsArgs, RefusedArgs,
    SpecArgs, UpdateArgs,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Runs unmodified Linux programs under a guest kernel of its own.
#[derive(Debug, Parser)]
#[command(name = "runsc-rs", version, about, long_about = LONG_ABOUT, after_help = "Try `runsc-rs run --help` for examples.")]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,

    #[command(subcommand)]
    pub command: Command,
}

/// The exit status for a mistake in the command line: that of `run`, or for the commands that manage containers that
/// of runc.
pub fn usage_failure() -> u8 {
    const MANAGING: [&str; 16] = [
        "create",
        "start",
        "state",
        "kill",
        "delete",
        "exec",
        "ps",
        "list",
        "pause",
        "resume",
        "update",
        "events",
        "wait",
        "spec",
        "features",
        "checkpoint",
    ];
    // What follows `run` is the caller's.
    let mut words = std::env::args_os().skip(1).take_while(|w| w != "run" && w != "do");
    if words.any(|w| MANAGING.iter().any(|m| w == *m)) {
        crate::oci::FAILURE
    } else {
        crate::OWN_FAILURE
    }
}

const LONG_ABOUT: &str = "\
Runs unmodified Linux programs under a guest kernel of its own.

The program's system calls do not reach the host: each one is answered by the Sentry, a Linux kernel written in Rust that \
runs as an unprivileged process, and files come from the Gofer, a second process that can reach nothing but the trees it \
was given. No daemon, no image and no root is needed.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a new sandbox and wait for it; or with --bundle, create and start a container
    #[command(alias = "do", override_usage = RUN_USAGE, after_help = EXAMPLES)]
    Run(Box<RunArgs>),
    /// Create a container: all is set up, and its process waits for `start`
    #[command(after_help = CREATE_HELP)]
    Create(CreateArgs),
    /// Have the process of a created container begin
    Start(IdArgs),
    /// Print what a container does, as JSON
    State(IdArgs),
    /// Send a signal to a container's first process, or to all of them
    #[command(after_help = "Example: runsc-rs kill web KILL")]
    Kill(KillArgs),
    /// Remove what is left of a container that has stopped
    Delete(DeleteArgs),
    /// Run one more process in a container
    #[command(after_help = EXEC_HELP)]
    Exec(ExecArgs),
    /// List the processes of a container, by their numbers in it
    Ps(PsArgs),
    /// List containers
    List(ListArgs),
    /// Stop all processes of a container until `resume`
    Pause(IdArgs),
    /// Let the processes of a paused container go on
    Resume(IdArgs),
    /// Change limits of a container
    Update(UpdateArgs),
    /// Print what a container uses, a line of JSON every few seconds
    Events(EventsArgs),
    /// Wait for a container's end and print its exit status
    Wait(IdArgs),
    /// Write a `config.json` to start from
    Spec(SpecArgs),
    /// Print what of the OCI runtime specification there is, as JSON
    Features,
    #[command(hide = true)]
    Checkpoint(RefusedArgs),
    #[command(hide = true)]
    Restore(RefusedArgs),
    /// Print the table of supported system calls
    Syscalls(SyscallsArgs),
    /// The Gofer's process (started by `run`)
    #[command(hide = true)]
    InternalGofer,
    /// The Sentry's process (started by `run`)
    #[command(hide = true)]
    InternalSentry,
}

const RUN_USAGE: &str = "\
runsc-rs run [OPTIONS] -- COMMAND...
       runsc-rs run --bundle DIR [OPTIONS] ID";

const CREATE_HELP: &str = "\
Example, with a root file system in ./bundle/rootfs:
      runsc-rs spec --bundle bundle
      runsc-rs create --bundle bundle web
      runsc-rs start web
      runsc-rs exec web ls /
      runsc-rs kill web
      runsc-rs delete web";

const EXEC_HELP: &str = "\
Examples:
      runsc-rs exec web ls -l /
      runsc-rs exec -t -u 1000 -e TERM=xterm web sh

Exit status: the command's own, 128+N if signal N ended it, 255 if it could not be started.";

const EXAMPLES: &str = "\
Examples:
  Try something out; what it writes stays in memory and is gone afterwards:
      runsc-rs run -- make test
  Keep the results: let it write to one directory of the host:
      runsc-rs run --bind $PWD/out:$PWD/out -- make install DESTDIR=$PWD/out
  Another root file system:
      runsc-rs run --rootfs ./debian --cwd /root --clear-env --env PATH=/usr/bin:/bin -- bash
  As another user, with a read-only tree of data:
      runsc-rs run --user 1000:1000 --bind /srv/data:/data:ro -- ./analyse /data
  See every system call:
      runsc-rs run --strace=calls.txt -- ls -l
  Create and start a container of an OCI bundle, wait for it, and delete it (`run ID` alone means the bundle in the \
current directory, if there is a ./config.json):
      runsc-rs run --bundle ./bundle web
  The same in the background; the other commands (state, exec, kill, delete, ...) find it by its name:
      runsc-rs run --bundle ./bundle --detach web

Signals: SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGTSTP and SIGCONT are passed on to the command, which may \
handle or ignore them. Should the sandbox itself be stuck, so that nothing in it takes them, a second SIGINT, SIGTERM, SIGHUP or SIGQUIT \
ends it, at the latest half a second after the first, with status 128+N. SIGKILL ends a sandbox in any state.

Exit status: the command's own, 128+N if signal N ended it, 127 if it was not found, 126 if it could not be executed, \
125 if runsc-rs itself failed.";

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Directory to be the sandbox's root [default: the host's root]
    #[arg(long, value_name = "DIR")]
    pub rootfs: Option<PathBuf>,

    /// Where writes to the root go
    #[arg(long, value_enum, default_value_t = Overlay::Memory)]
    pub overlay: Overlay,

    /// Show a host file or directory at DST; writes go to the host unless `ro` (repeatable)
    #[arg(long, value_name = "SRC:DST[:ro|rw]")]
    pub bind: Vec<OsString>,

    /// Working directory in the sandbox [default: the current one; with --rootfs, /]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,

    /// Set a variable, or with `--env K` keep the caller's in spite of --clear-env (repeatable)
    #[arg(long, short = 'e', value_name = "K=V")]
    pub env: Vec<OsString>,

    /// Start with an empty environment instead of the caller's
    #[arg(long)]
    pub clear_env: bool,

    /// User (and group) to be inside; GID is UID's number if left out [default: the caller's]
    #[arg(long, value_name = "UID[:GID]")]
    pub user: Option<String>,

    /// Name that the sandbox sees as the host's [default: the host's]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,

    /// Make the command process 1: orphans become its children, and of signals from inside it gets those that it has handlers for
    /// (pid_namespaces(7)). For programs that are an init, or want to be one; others may never be told to end
    #[arg(long)]
    pub init: bool,

    /// Network of the sandbox
    #[arg(long, value_enum, default_value_t = Network::None)]
    pub network: Network,

    /// How system calls are trapped
    #[arg(long, value_enum, default_value_t = PlatformKind::Systrap)]
    pub platform: PlatformKind,

    /// How the Sentry and the guests' threads wait for each other (for tests and to find out why something is slow)
    #[arg(long, value_enum, default_value_t = HandOff::Adaptive)]
    pub hand_off: HandOff,

    /// Start this many workers at once and have guests wake any of them, as on a machine with so many processors (for tests)
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub workers: Option<u32>,

    /// Whether call sites that trap often are patched to enter the sandbox's kernel without a trap (`off` to compare)
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Switch::On)]
    pub patch: Switch,

    /// Print every system call of the sandbox, to FILE if given, else to standard error
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    pub strace: Option<Option<PathBuf>>,

    /// Append the runtime's own messages to FILE instead of standard error, and there be less terse: say which system calls were asked
    /// for that do not exist, for instance
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// Log what the runtime does, not only warnings
    #[arg(long)]
    pub debug: bool,

    /// At the end, tell in the log what the sandbox did: its system calls with their times, wake-ups, requests to the Gofer
    #[arg(long)]
    pub stats: bool,

    #[command(
        flatten,
        next_help_heading = "Containers of OCI bundles (options that come from config.json otherwise are not allowed)"
    )]
    pub bundle: BundleArgs,

    /// Return when the container runs
    #[arg(long, short = 'd')]
    pub detach: bool,

    /// Keep the container when it has ended
    #[arg(long)]
    pub keep: bool,

    /// The command and its arguments; with --bundle, the name of the container
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = false, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Overlay {
    /// The root is read-only; changes are kept in memory and lost at the end
    Memory,
    /// Changes go straight to the host's files
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// Loopback only
    None,
    /// A TCP/IP stack of the sandbox's own (not yet)
    Sandbox,
    /// The host's network (not yet)
    Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlatformKind {
    /// seccomp and shared memory
    Systrap,
    /// ptrace (not yet)
    Ptrace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
pub enum HandOff {
    /// Spin as long as it pays, then sleep
    Adaptive,
    /// Always sleep at once
    Sleep,
    /// Always spin, as long as anything runs in the sandbox
    Spin,
}

#[derive(Debug, Args)]
pub struct SyscallsArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}
