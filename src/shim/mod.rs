//! The containerd shim: this binary by the name `containerd-shim-runsc-rs-v1` (runtime `io.containerd.runsc-rs.v1`).
//!
//! containerd calls it with the action `start` ([`bootstrap`]) for each container; the first of a pod leaves a shim
//! behind that serves ([`server`]) until containerd shuts it down. What containerd asks ([`service`]) is done by the
//! OCI commands of this same binary ([`runtime`]), so that a shim that dies leaves nothing behind that they do not know
//! of: the action `delete` ([`delete`]) cleans up. The shim has the streams of the containers' processes ([`io`]),
//! mounts their roots ([`mounts`]), and, as a subreaper ([`reaper`]), hears of the ends of the monitors and agents that
//! stand for them ([`task`]), which it tells containerd ([`events`]).
//!
//! The crate `containerd-shim` is not used, only its messages (`containerd-shim-protos`): it serves the task API under
//! the name of containerd 2 alone, and its reaper takes the ends of the commands that a shim runs.

mod args;
mod bootstrap;
mod delete;
mod events;
mod io;
mod logger;
mod mounts;
mod oom;
mod options;
mod reaper;
mod runtime;
mod server;
mod service;
mod stats;
mod task;

use anyhow::Result;
use args::Args;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The name that makes this binary the shim.
const NAME: &str = "containerd-shim-runsc-rs-v1";
const RUNTIME: &str = "io.containerd.runsc-rs.v1";
/// The variable with containerd's socket for events.
const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// Whether the program was called by the shim's name.
pub fn is_called() -> bool {
    let name = std::env::args_os().next();
    let name = name.as_deref().map(Path::new).and_then(Path::file_name);
    name.is_some_and(|n| n.as_encoded_bytes().starts_with(b"containerd-shim-")) && name != Some(OsStr::new(""))
}

/// Runs the shim; the status to exit with.
pub fn main() -> u8 {
    let words = std::env::args_os().skip(1).map(|w| w.to_string_lossy().into_owned());
    match Args::parse(words).and_then(|args| act(&args)) {
        Ok(()) => 0,
        Err(e) => {
            log::error!("{e:#}");
            let _ = writeln!(std::io::stderr(), "{NAME}: {e:#}");
            1
        }
    }
}

fn act(args: &Args) -> Result<()> {
    match args.action.as_str() {
        _ if args.version => {
            println!("{NAME}:\n  Version: {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ if args.info => info(),
        "start" => bootstrap::start(args),
        "delete" => delete::delete(args),
        "" if !args.socket.is_empty() => server::serve(args),
        "" => anyhow::bail!("this is containerd's shim; containerd starts it (see `{NAME} -info`)"),
        other => anyhow::bail!("unknown action {other:?}"),
    }
}

/// What the runtime is.
fn info() -> Result<()> {
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    let info = RuntimeInfo { name: RUNTIME.into(), version: Some(version).into(), ..Default::default() };
    Ok(std::io::stdout().write_all(&info.write_to_bytes()?)?)
}

/// No panic can have left these in between: release builds abort.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Set once, when the shim is to end.
#[derive(Default)]
pub struct Ending {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Ending {
    fn set(&self) {
        *lock(&self.set) = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        drop(self.changed.wait_while(lock(&self.set), |set| !*set).unwrap_or_else(PoisonError::into_inner));
    }
}
