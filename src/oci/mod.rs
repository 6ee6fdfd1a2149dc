//! The OCI runtime: bundles in, containers of a sandbox out.
//!
//! A bundle goes through [`bundle`] (read and validated), [`plan`] (what the Sentry and the Gofer are told; [`seccomp`]
//! makes the filters), [`cgroup`] (limits around the whole sandbox, on the host) and [`hooks`]. [`spec`] writes a
//! bundle to start from, [`features`] says what there is, [`events`] what a container uses.
//!
//! The commands: [`create`] and `run` make a container, whose [`monitor`] stands for it on the host; [`lifecycle`]
//! starts and ends it, [`exec`] runs more processes in it, [`show`] prints what it does, [`update`] changes its limits.
//! They find it by its directory ([`state`]) and talk to its Sentry as [`client`]s.

// Their whole interface is not used yet.
#[allow(dead_code)]
pub mod bundle;
#[allow(dead_code)]
pub mod cgroup;
pub mod cli;
mod client;
mod console;
mod create;
mod descriptors;
#[allow(dead_code)]
pub mod events;
mod exec;
pub mod features;
mod home;
pub mod hooks;
mod lifecycle;
pub mod member;
mod monitor;
mod ordered;
#[allow(dead_code)]
pub mod plan;
pub mod report;
pub mod seccomp;
mod show;
mod signals;
pub mod spec;
mod state;
pub mod time;
mod update;
mod view;

use crate::cli::{Command, RunArgs};
use anyhow::{bail, Context, Result};
use cli::{Globals, SpecArgs};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// Exit status for failures of these commands, as of runc; that of `exec` differs from what most commands exit with.
pub const FAILURE: u8 = 1;
const EXEC_FAILURE: u8 = 255;

/// Runs one of the commands that manage containers; the status to exit with. What went wrong has been said.
pub fn main(globals: &Globals, command: &Command) -> u8 {
    if let Err(e) = report::init(globals) {
        report::error(&format!("{e:#}"));
        return FAILURE;
    }
    let (result, what, failure) = match command {
        Command::Create(args) => (create::create(globals, args), "runsc-rs create failed: ", FAILURE),
        Command::Run(args) => (run(globals, args), "runsc-rs run failed: ", FAILURE),
        Command::Exec(args) => (exec::exec(globals, args), "exec failed: ", EXEC_FAILURE),
        other => (rest(globals, other), "", FAILURE),
    };
    match result {
        Ok(status) => status,
        Err(e) => {
            report::error(&format!("{what}{e:#}"));
            failure
        }
    }
}

fn rest(globals: &Globals, command: &Command) -> Result<u8> {
    match command {
        Command::Start(args) => lifecycle::start(globals, &args.id),
        Command::State(args) => show::state(globals, &args.id),
        Command::Kill(args) => lifecycle::kill(globals, args),
        Command::Delete(args) => lifecycle::delete(globals, args),
        Command::Ps(args) => show::ps(globals, args),
        Command::List(args) => show::list(globals, args),
        Command::Pause(args) => lifecycle::pause(globals, &args.id),
        Command::Resume(args) => lifecycle::resume(globals, &args.id),
        Command::Update(args) => update::update(globals, args),
        Command::Events(args) => show::events(globals, args),
        Command::Wait(args) => lifecycle::wait(globals, &args.id),
        Command::Spec(args) => write_spec(args),
        Command::Features => {
            println!("{}", features::json().trim_end());
            Ok(0)
        }
        Command::Checkpoint(_) | Command::Restore(_) => bail!("checkpoint and restore are not there yet"),
        _ => bail!("not a command that manages containers"),
    }
}

/// Whether `run` means a bundle: an option says so, or its only operand is no command after `--` and there is a bundle
/// in the current directory.
pub fn is_bundle_run(args: &RunArgs) -> bool {
    let b = &args.bundle;
    let options = b.bundle.is_some()
        || b.console_socket.is_some()
        || b.pid_file.is_some()
        || b.preserve_fds > 0
        || b.no_pivot
        || b.no_new_keyring
        || b.no_subreaper
        || args.detach
        || args.keep;
    let dashes = std::env::args_os().any(|a| a == "--");
    options || (args.command.len() == 1 && !dashes && Path::new(bundle::CONFIG).is_file())
}

fn run(globals: &Globals, args: &RunArgs) -> Result<u8> {
    let [id] = args.command.as_slice() else {
        bail!("a bundle's command is in its {}: give the container's name only", bundle::CONFIG)
    };
    if args.rootfs.is_some()
        || !args.bind.is_empty()
        || args.cwd.is_some()
        || !args.env.is_empty()
        || args.user.is_some()
    {
        bail!(
            "--rootfs, --bind, --cwd, --env and --user are for commands; a container has what its {} says",
            bundle::CONFIG
        );
    }
    let Some(id) = id.to_str() else { bail!("invalid container ID format") };
    create::run(globals, id, args)
}

/// `spec`.
fn write_spec(args: &SpecArgs) -> Result<u8> {
    let rootless = args.rootless.then(|| (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
    let path = args.bundle.as_deref().unwrap_or(Path::new(".")).join(bundle::CONFIG);
    let file = OpenOptions::new().create_new(true).write(true).open(&path);
    let mut file = match file {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("File {} exists. Remove it first", path.display())
        }
        other => other.with_context(|| path.display().to_string())?,
    };
    file.write_all(spec::default(rootless).as_bytes()).with_context(|| path.display().to_string())?;
    Ok(0)
}
