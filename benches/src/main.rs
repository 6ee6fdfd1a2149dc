//! Compares programs run natively, in runsc-rs and in other installed sandboxes.
//!
//! `cargo run --release -p compare` builds runsc-rs first and makes its input in a scratch directory. Then it runs,
//! in several rounds, each workload once in each sandbox, one after the other, so that changes of the machine's speed
//! affect all of them. It prints medians, spreads and ratios to native; `--json FILE` also writes every single
//! measurement. `docs/performance.md` explains how to read them.
//!
//! [`sandboxes`] runs a command in each sandbox, [`workloads`] lists the programs, [`inputs`] makes their files,
//! [`report`] prints. [`oci`] compares container runtimes.

mod inputs;
mod measure;
mod oci;
mod report;
mod sandboxes;
mod targets;
mod workloads;

use anyhow::{bail, Context, Result};
use clap::Parser;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(about = "Compares programs run natively, in runsc-rs and in other sandboxes")]
struct Options {
    /// Source of the micro-benchmark [default: the first shared/bench/micro.c beside the source tree or above it];
    /// without it that part is left out
    #[arg(long)]
    micro: Option<PathBuf>,
    /// One round, natively and in runsc-rs only
    #[arg(long)]
    quick: bool,
    /// How often each workload is run in each sandbox
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only workloads whose names contain one of these (comma-separated); `micro` is one, `micro:NAME` a part of it
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these sandboxes (comma-separated): native, runsc-rs, runsc, bwrap, crun
    #[arg(long, value_delimiter = ',')]
    sandbox: Vec<String>,
    /// A runsc-rs to use instead of building one
    #[arg(long)]
    runsc_rs: Option<PathBuf>,
    /// A runsc (gVisor) to use instead of the one in PATH; it is run with the systrap platform
    #[arg(long)]
    runsc: Option<PathBuf>,
    /// Give up on a single run after this many seconds
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// Write every measurement to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Begin with the measurements in the file of --json, so that rounds can be taken at several times
    #[arg(long, requires = "json")]
    add: bool,
    /// Scratch directory; it is recreated
    #[arg(long, default_value = "/tmp/runsc-rs-compare")]
    dir: PathBuf,
    /// Compare the life cycles of containers of OCI runtimes instead: create, start, delete, exec, idle memory
    #[arg(long)]
    oci: bool,
    /// List workloads and sandboxes, and stop
    #[arg(long)]
    list: bool,
}

fn main() -> Result<()> {
    let mut options = Options::parse();
    if options.quick {
        options.rounds = 1;
        options.sandbox = vec!["native".into(), "runsc-rs".into()];
    }
    measure::adopt_orphans();
    let runsc_rs = match (&options.runsc_rs, options.list) {
        (Some(path), _) => path.canonicalize().with_context(|| path.display().to_string())?,
        (None, true) => "runsc-rs".into(),
        (None, false) => build()?,
    };
    if options.oci {
        return oci::compare(&runsc_rs, &options.dir, options.rounds);
    }
    let mut sandboxes = sandboxes::find(&runsc_rs, options.runsc.as_deref(), &options.dir);
    sandboxes.retain(|s| options.sandbox.is_empty() || options.sandbox.contains(&s.name));
    let mut workloads = workloads::all();
    let micro_filters: Vec<&str> = options.only.iter().filter_map(|o| o.strip_prefix("micro:")).collect();
    workloads.retain(|w| options.only.is_empty() || options.only.iter().any(|o| w.name.contains(o.as_str())));
    let micro = options.only.is_empty() || !micro_filters.is_empty() || options.only.iter().any(|o| o == "micro");
    if options.list {
        for s in &sandboxes {
            println!("sandbox   {}", s.name);
        }
        for w in &workloads {
            println!("workload  {:<14} {}", w.name, w.about);
        }
        return Ok(());
    }
    if sandboxes.is_empty() || options.rounds == 0 {
        bail!("nothing to run: no sandbox left, or --rounds 0");
    }
    let mut results = match &options.json {
        Some(path) if options.add && path.exists() => report::read(path)?,
        _ => measure::Results::default(),
    };
    let source = options.micro.clone().unwrap_or_else(find_micro);
    let inputs = inputs::make(&options.dir, micro.then_some(source.as_path()), &workloads)?;
    workloads.retain(|w| match &w.needs.iter().find(|tool| !inputs::installed(tool)) {
        Some(tool) => {
            eprintln!("{}: left out, {tool} is not installed", w.name);
            false
        }
        None => true,
    });
    let timeout = Duration::from_secs(options.timeout);
    for round in 1..=options.rounds {
        for workload in &workloads {
            for sandbox in &sandboxes {
                eprint!("\rround {round}/{}: {} in {}\x1b[K", options.rounds, workload.name, sandbox.name);
                measure::whole(&mut results, workload, sandbox, &inputs, timeout);
            }
        }
        if let Some(micro) = &inputs.micro {
            let filters: Vec<Option<&str>> =
                if micro_filters.is_empty() { vec![None] } else { micro_filters.iter().map(|f| Some(*f)).collect() };
            for sandbox in &sandboxes {
                eprint!("\rround {round}/{}: micro in {}\x1b[K", options.rounds, sandbox.name);
                for filter in &filters {
                    measure::micro(&mut results, micro, *filter, sandbox, timeout);
                }
            }
        }
    }
    eprintln!("\r\x1b[K");
    report::print(&results, &sandboxes);
    if let Some(path) = &options.json {
        std::fs::write(path, report::json(&results, &sandboxes)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Usual location of the micro-benchmark's source.
fn find_micro() -> PathBuf {
    let name = "shared/bench/micro.c";
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.ancestors().map(|dir| dir.join(name)).find(|path| path.exists()).unwrap_or_else(|| name.into())
}

/// Builds runsc-rs in release mode; returns the program.
fn build() -> Result<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let status = Command::new("cargo").args(["build", "--release", "-p", "runsc-rs"]).current_dir(&root).status()?;
    if !status.success() {
        bail!("runsc-rs could not be built");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("release/runsc-rs").canonicalize()?)
}
