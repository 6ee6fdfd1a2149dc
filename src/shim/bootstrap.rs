//! The `start` action: containerd wants the address of a shim for a container. The containers of a pod have one
//! together.
//!
//! How it is asked and answered depends on containerd's version: since 2.3 messages on standard input and output;
//! before, flags and the environment, answered by JSON (from 1.7 on, which sets `MAX_SHIM_VERSION`) or by the address
//! alone (1.6).

use super::args::Args;
use super::{NAME, TTRPC_ADDRESS};
use crate::oci::bundle;
use crate::oci::member;
use anyhow::{bail, Context, Result};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, LogLevel};
use containerd_shim_protos::protobuf::{Enum, Message};
use containerd_shim_protos::TASK_API_VERSION;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the sockets are, unless containerd says otherwise: paths of bundles are too long.
const SOCKETS: &str = "/run/containerd/s";
/// The file of a bundle that containerd 1.6 finds the shim by after a restart.
const ADDRESS_FILE: &str = "address";
/// Longest message on standard input.
const MAX_INPUT: u64 = 10 << 20;
/// The version of the task API that a containerd without messages asks for.
const JSON_VERSION: i32 = 2;

/// What containerd says.
struct Request {
    id: String,
    namespace: String,
    address: String,
    ttrpc_address: String,
    sockets: PathBuf,
    debug: bool,
    form: Form,
}

/// How it wants to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Address,
    Json,
    Message,
}

pub fn start(args: &Args) -> Result<()> {
    let request = Request::read(args)?;
    let group = group(Path::new(bundle::CONFIG)).unwrap_or_else(|| request.id.clone());
    let socket = request.socket(&group);
    let address = format!("unix://{}", socket.display());
    if let Some(listener) = listen(&socket)? {
        let started = serve(&request, &group, &socket, listener);
        if started.is_err() {
            let _ = fs::remove_file(&socket);
        }
        started?;
    }
    fs::write(ADDRESS_FILE, &address).context(ADDRESS_FILE)?;
    let mut out = std::io::stdout().lock();
    out.write_all(&request.form.answer(&address)?)?;
    Ok(out.flush()?)
}

impl Request {
    fn read(args: &Args) -> Result<Request> {
        let mut input = Vec::new();
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            stdin.lock().take(MAX_INPUT).read_to_end(&mut input).context("standard input")?;
        }
        let environment = |name: &str| std::env::var(name).unwrap_or_default();
        let request = match message(&input, args) {
            Some(m) => Request {
                id: m.instance_id,
                namespace: m.namespace,
                address: m.containerd_grpc_address,
                ttrpc_address: m.containerd_ttrpc_address,
                sockets: PathBuf::from(m.socket_dir.as_deref().filter(|d| !d.is_empty()).unwrap_or(SOCKETS)),
                debug: args.debug || m.log_level.value() <= LogLevel::LOG_LEVEL_DEBUG.value(),
                form: Form::Message,
            },
            None => Request {
                id: args.id.clone(),
                namespace: args.namespace.clone(),
                address: args.address.clone(),
                ttrpc_address: environment(TTRPC_ADDRESS),
                sockets: SOCKETS.into(),
                debug: args.debug,
                form: if environment("MAX_SHIM_VERSION").is_empty() { Form::Address } else { Form::Json },
            },
        };
        if request.id.is_empty() || request.namespace.is_empty() {
            bail!("shim id and namespace cannot be empty");
        }
        if request.ttrpc_address.is_empty() {
            bail!("containerd has not said where it takes events ({TTRPC_ADDRESS})");
        }
        Ok(request)
    }

    /// The group's socket: whatever the names are, they make a short and unambiguous one.
    fn socket(&self, group: &str) -> PathBuf {
        let mut hash = Sha256::new();
        hash.update(Path::new(&self.address).join(&self.namespace).join(group).as_os_str().as_encoded_bytes());
        let name = hash.finalize().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        self.sockets.join(name)
    }
}

/// The message of containerd 2.3, if it is one: the options of older versions look alike, but name no container.
fn message(input: &[u8], args: &Args) -> Option<BootstrapParams> {
    let message = BootstrapParams::parse_from_bytes(input).ok()?;
    let meant = !input.is_empty() && message.instance_id == args.id && message.namespace == args.namespace;
    meant.then_some(message)
}

impl Form {
    fn answer(self, address: &str) -> Result<Vec<u8>> {
        Ok(match self {
            Form::Address => address.as_bytes().to_vec(),
            Form::Json => serde_json::to_vec(&serde_json::json!({
                "version": JSON_VERSION,
                "address": address,
                "protocol": "ttrpc",
            }))?,
            Form::Message => BootstrapResult {
                version: TASK_API_VERSION,
                address: address.into(),
                protocol: "ttrpc".into(),
                ..Default::default()
            }
            .write_to_bytes()?,
        })
    }
}

/// The pod that the bundle's container belongs to; its annotations say.
fn group(config: &Path) -> Option<String> {
    let spec: serde_json::Value = serde_json::from_slice(&fs::read(config).ok()?).ok()?;
    let annotations = spec["annotations"].as_object()?;
    let text = |name: &str| annotations.get(name)?.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    text("io.containerd.runc.v2.group").or_else(|| member::SANDBOX_IDS.iter().find_map(|name| text(name)))
}

/// A new socket; `None` if a shim listens on it already. A socket that a dead shim has left is replaced.
fn listen(socket: &Path) -> Result<Option<UnixListener>> {
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let shown = || format!("socket {}", socket.display());
    match UnixListener::bind(socket) {
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {}
        other => return Ok(Some(other.with_context(shown)?)),
    }
    if UnixStream::connect(socket).is_ok() {
        return Ok(None);
    }
    fs::remove_file(socket).with_context(shown)?;
    Ok(Some(UnixListener::bind(socket).with_context(shown)?))
}

/// Starts the shim that serves. Its standard input is the socket, on which connections wait already.
fn serve(request: &Request, group: &str, socket: &Path, listener: UnixListener) -> Result<()> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME);
    command.args(["-namespace", &request.namespace, "-id", group, "-address", &request.address]);
    command.arg("-socket").arg(socket);
    if request.debug {
        command.arg("-debug");
    }
    command.env(TTRPC_ADDRESS, &request.ttrpc_address);
    command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("starting the shim")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> Args {
        Args { id: "c".into(), namespace: "n".into(), ..Args::default() }
    }

    #[test]
    fn messages_are_told_from_options() {
        let m = BootstrapParams { instance_id: "c".into(), namespace: "n".into(), ..Default::default() };
        assert!(message(&m.write_to_bytes().unwrap(), &args()).is_some());
        let options = BootstrapParams {
            instance_id: "containerd.runc.v1.Options".into(),
            namespace: "x".into(),
            ..Default::default()
        };
        assert!(message(&options.write_to_bytes().unwrap(), &args()).is_none());
        assert!(message(b"", &args()).is_none());
        assert!(message(b"\xff\xff", &args()).is_none());
    }

    #[test]
    fn answers() {
        let text = |form: Form| String::from_utf8(form.answer("unix:///s").unwrap()).unwrap();
        assert_eq!(text(Form::Address), "unix:///s");
        let json: serde_json::Value = serde_json::from_str(&text(Form::Json)).unwrap();
        assert_eq!((json["version"].as_i64(), json["address"].as_str()), (Some(2), Some("unix:///s")));
        let message = BootstrapResult::parse_from_bytes(&Form::Message.answer("unix:///s").unwrap()).unwrap();
        assert_eq!((message.version, message.address.as_str()), (3, "unix:///s"));
    }

    #[test]
    fn pods() {
        let dir = std::env::temp_dir().join(format!("runsc-rs-shim-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let config = dir.join("config.json");
        let of = |text: &str| {
            fs::write(&config, text).unwrap();
            group(&config)
        };
        assert_eq!(of(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#).as_deref(), Some("pod"));
        assert_eq!(of(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":1}}"#), None);
        assert_eq!(of("{}"), None);
        assert_eq!(of("nonsense"), None);
        fs::remove_dir_all(dir).unwrap();
    }
}
