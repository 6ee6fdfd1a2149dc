//! A bundle: the directory with `config.json` and the root file system, read with bounds and validated before anything
//! is started.
//!
//! The file is as trusted as its author, who may be less trusted than the caller: it may be huge, nested without end,
//! or name files outside of the bundle by links. It decides what of the host the container gets, as with every OCI
//! runtime, so a path outside of the bundle is no offence by itself; but nothing is opened here other than to be read
//! as configuration.

mod validate;

use anyhow::{anyhow, bail, Context, Result};
use oci_spec::runtime::{Hook, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Name of the configuration in a bundle.
pub const CONFIG: &str = "config.json";
/// Longest configuration, in bytes. A profile of all system calls has about 50 KiB.
const MAX_CONFIG: u64 = 16 << 20;

/// A bundle that has been read and validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    /// The bundle's directory: absolute, symbolic links resolved.
    pub dir: PathBuf,
    /// `config.json` as it stands, unknown capabilities left out.
    pub spec: Spec,
    /// The root file system: an absolute path of a directory, symbolic links resolved.
    pub rootfs: PathBuf,
}

impl Bundle {
    /// Reads and validates the bundle in `dir`. Whatever the runtime can refuse by looking at the configuration alone
    /// is refused here.
    pub fn load(dir: &Path) -> Result<Bundle> {
        let dir = dir.canonicalize().with_context(|| format!("bundle {}", dir.display()))?;
        let config = dir.join(CONFIG);
        let spec = match read_limited(&config) {
            Err(e) if is_missing(&e) => bail!("JSON specification file {CONFIG} not found in {}", dir.display()),
            text => parse_spec(&text?).with_context(|| config.display().to_string())?,
        };
        validate::spec(&spec)?;
        let rootfs = rootfs(&dir, &spec)?;
        Ok(Bundle { dir, spec, rootfs })
    }

    /// The process of the container, which a validated bundle has.
    pub fn process(&self) -> Result<&Process> {
        self.spec.process().as_ref().ok_or_else(|| anyhow!("process property must not be empty"))
    }

    /// The hooks of one kind, in their order.
    pub fn hooks(&self, kind: HookKind) -> &[Hook] {
        let Some(hooks) = self.spec.hooks() else { return &[] };
        #[allow(deprecated)]
        let list = match kind {
            HookKind::Prestart => hooks.prestart(),
            HookKind::CreateRuntime => hooks.create_runtime(),
            HookKind::CreateContainer => hooks.create_container(),
            HookKind::StartContainer => hooks.start_container(),
            HookKind::Poststart => hooks.poststart(),
            HookKind::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl HookKind {
    /// All kinds, in the order in which they run.
    pub const ALL: [HookKind; 6] = [
        HookKind::Prestart,
        HookKind::CreateRuntime,
        HookKind::CreateContainer,
        HookKind::StartContainer,
        HookKind::Poststart,
        HookKind::Poststop,
    ];

    /// Its name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            HookKind::Prestart => "prestart",
            HookKind::CreateRuntime => "createRuntime",
            HookKind::CreateContainer => "createContainer",
            HookKind::StartContainer => "startContainer",
            HookKind::Poststart => "poststart",
            HookKind::Poststop => "poststop",
        }
    }
}

/// Reads a process (`exec --process FILE`) and validates it.
pub fn load_process(file: &Path) -> Result<Process> {
    let process: Process = parse_lenient(&read_limited(file)?, "").with_context(|| file.display().to_string())?;
    validate::process(&process)?;
    Ok(process)
}

/// Validates a process that was put together from the bundle's and from options of `exec`.
pub fn check_process(process: &Process) -> Result<()> {
    validate::process(process)
}

/// Validates a configuration by itself, as [`Bundle::load`] does.
pub fn check_spec(spec: &Spec) -> Result<()> {
    validate::spec(spec)
}

/// Reads a file of JSON with the same bounds as a bundle's (`update --resources FILE`); `-` is standard input.
pub fn load_json<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text =
        if file == Path::new("-") { read_bounded(std::io::stdin(), "standard input")? } else { read_limited(file)? };
    serde_json::from_slice(&text).with_context(|| file.display().to_string())
}

fn parse_spec(text: &[u8]) -> Result<Spec> {
    parse_lenient(text, "/process")
}

/// Parses `text`. Should that fail, once more without the capabilities that nobody knows: a later kernel's are no
/// mistake of the bundle. serde_json bounds the depth, so that nested JSON cannot exhaust the stack.
fn parse_lenient<T: DeserializeOwned>(text: &[u8], process: &str) -> Result<T> {
    let error = match serde_json::from_slice(text) {
        Ok(value) => return Ok(value),
        Err(e) => e,
    };
    let Ok(mut value) = serde_json::from_slice::<Value>(text) else { bail!(error) };
    let unknown = drop_unknown_capabilities(&mut value, process);
    if unknown.is_empty() {
        bail!(error);
    }
    log::warn!("ignoring unknown or unavailable capabilities: [{}]", unknown.join(" "));
    Ok(serde_json::from_value(value)?)
}

fn drop_unknown_capabilities(spec: &mut Value, process: &str) -> Vec<String> {
    let mut unknown = Vec::new();
    let sets = spec.pointer_mut(&format!("{process}/capabilities")).and_then(Value::as_object_mut);
    for list in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(Value::as_array_mut) {
        list.retain(|name| {
            let known = serde_json::from_value::<oci_spec::runtime::Capability>(name.clone()).is_ok();
            if !known {
                // A capability is a word; what else there may be is refused by the second parse.
                let Some(text) = name.as_str() else { return true };
                let shown: String = text.chars().take(64).collect();
                if unknown.len() < 64 && !unknown.contains(&shown) {
                    unknown.push(shown);
                }
            }
            known
        });
    }
    unknown
}

/// Reads a file whole, if it is a regular one of at most [`MAX_CONFIG`] bytes.
fn read_limited(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display().to_string();
    // A FIFO must not hold the runtime up, nor may a terminal become its own.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).with_context(|| shown.clone())?;
    if file.metadata().with_context(|| shown.clone())?.is_dir() {
        bail!("{shown}: is a directory");
    }
    read_bounded(file, &shown)
}

fn read_bounded(from: impl Read, shown: &str) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    from.take(MAX_CONFIG + 1).read_to_end(&mut text).with_context(|| shown.to_string())?;
    if text.len() as u64 > MAX_CONFIG {
        bail!("{shown}: more than {} MiB, which no configuration needs", MAX_CONFIG >> 20);
    }
    Ok(text)
}

fn is_missing(e: &anyhow::Error) -> bool {
    e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

fn rootfs(dir: &Path, spec: &Spec) -> Result<PathBuf> {
    let Some(root) = spec.root() else { bail!("root must be specified") };
    if root.path().as_os_str().is_empty() {
        bail!("root.path must not be empty");
    }
    let path = dir.join(root.path());
    let resolved = path.canonicalize().with_context(|| format!("invalid rootfs: {}", path.display()))?;
    if !resolved.is_dir() {
        bail!("invalid rootfs: {} is not a directory", path.display());
    }
    Ok(resolved)
}
