//! Serves trees on the socket that is standard input, in a process of its own, for tests and measurements.
//! (`runsc-rs` starts its Gofer itself.)
//!
//! `gofer-serve [--open] [--acls] [--max-fids=N] NAME=PATH[:ro]…`; `--open` leaves the process unconfined, `--acls`
//! reports the presence of ACLs.

use std::os::fd::AsFd;
use std::process::ExitCode;

use gofer::{Config, Gofer, Tree};

fn run() -> Result<(), String> {
    let mut config = Config::new(Vec::new());
    let mut confined = true;
    for arg in std::env::args().skip(1) {
        if arg == "--open" {
            confined = false;
        } else if arg == "--acls" {
            config.tell_acls = true;
        } else if let Some(n) = arg.strip_prefix("--max-fids=") {
            config.max_fids = n.parse().map_err(|e| format!("{arg}: {e}"))?;
        } else {
            let (name, path) = arg.split_once('=').ok_or_else(|| format!("{arg}: neither option nor NAME=PATH"))?;
            let (path, read_only) = path.strip_suffix(":ro").map_or((path, false), |path| (path, true));
            config.trees.push(Tree { name: name.into(), host_path: path.into(), read_only });
        }
    }
    let conn = std::io::stdin().as_fd().try_clone_to_owned().map_err(|e| format!("standard input: {e}"))?;
    let gofer = if confined { gofer::confine(&config) } else { Gofer::open(&config) };
    gofer.and_then(|gofer| gofer.serve(conn)).map_err(|e| e.to_string())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("gofer-serve: {e}");
            ExitCode::FAILURE
        }
    }
}
