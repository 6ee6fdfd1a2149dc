//! Options of the runtime: a TOML file of the host's, what containerd's own configuration or a client says, and
//! defaults.
//!
//! containerd passes on what its configuration has for the runtime as one of two messages:
//! `containerd.runc.v1.Options`, whose `BinaryName`, `Root` and `SystemdCgroup` count here, or
//! `runtimeoptions.v1.Options`, which names or contains a TOML file.

use anyhow::{bail, Context, Result};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message};
use containerd_shim_protos::shim::oci;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Read first, if it is there.
const HOST_FILE: &str = "/etc/containerd/runsc-rs.toml";
/// Directory of the containers' state, below it one for each of containerd's namespaces.
const DEFAULT_ROOT: &str = "/run/containerd/runsc-rs";
/// Longest file of options.
const MAX_FILE: u64 = 1 << 20;
/// Where the shim keeps the options of a container, in its bundle.
const KEPT: &str = "runsc-rs-options.json";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The runtime; without it this binary.
    pub binary_name: Option<PathBuf>,
    /// Directory of the containers' state, in which each of containerd's namespaces has one.
    pub root: Option<PathBuf>,
    pub systemd_cgroup: bool,
    /// Log what the runtime does.
    pub debug: bool,
}

impl Options {
    /// What applies to a container: `given` before the host's file.
    pub fn new(given: Option<&Any>) -> Result<Options> {
        let mut options = match fs::metadata(HOST_FILE) {
            Ok(_) => load(Path::new(HOST_FILE))?,
            Err(_) => Options::default(),
        };
        let Some(given) = given.filter(|any| !any.type_url.is_empty()) else { return Ok(options) };
        match given.type_url.rsplit('/').next().unwrap_or_default() {
            "containerd.runc.v1.Options" => {
                let of_runc = oci::Options::parse_from_bytes(&given.value).context("the runtime's options")?;
                let path = |text: &str| Some(PathBuf::from(text)).filter(|p| !p.as_os_str().is_empty());
                options.binary_name = path(&of_runc.binary_name).or(options.binary_name);
                options.root = path(&of_runc.root).or(options.root);
                options.systemd_cgroup |= of_runc.systemd_cgroup;
            }
            "runtimeoptions.v1.Options" => {
                let (path, body) = generic(&given.value).context("the runtime's options")?;
                if !body.is_empty() {
                    options = parse(&String::from_utf8(body)?).context("the runtime's options")?;
                } else if !path.is_empty() {
                    options = load(Path::new(&path))?;
                }
            }
            other => bail!("options of type {other:?} are not for this runtime"),
        }
        Ok(options)
    }

    /// Directory of the state of containers of a namespace of containerd's.
    pub fn root(&self, namespace: &str) -> PathBuf {
        self.root.as_deref().unwrap_or(Path::new(DEFAULT_ROOT)).join(namespace)
    }

    /// Keeps them in a bundle, for a shim that comes to clean up.
    pub fn keep(&self, bundle: &Path) -> Result<()> {
        let file = bundle.join(KEPT);
        fs::write(&file, serde_json::to_vec(self)?).with_context(|| file.display().to_string())
    }

    /// Those of a bundle whose container was created, or else the host's.
    pub fn of_bundle(bundle: &Path) -> Result<Options> {
        match fs::read(bundle.join(KEPT)) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(_) => Options::new(None),
        }
    }
}

fn load(file: &Path) -> Result<Options> {
    let shown = || file.display().to_string();
    if fs::metadata(file).with_context(shown)?.len() > MAX_FILE {
        bail!("{}: too long for a file of options", file.display());
    }
    parse(&fs::read_to_string(file).with_context(shown)?).with_context(shown)
}

fn parse(text: &str) -> Result<Options> {
    Ok(toml::from_str(text)?)
}

/// `config_path` and `config_body` of a `runtimeoptions.v1.Options`: its fields 2 and 3.
fn generic(message: &[u8]) -> Result<(String, Vec<u8>)> {
    /// Wire type of a field with a length.
    const BYTES: u32 = 2;
    let mut input = CodedInputStream::from_bytes(message);
    let (mut path, mut body) = (String::new(), Vec::new());
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match (tag >> 3, tag & 7) {
            (2, BYTES) => path = input.read_string()?,
            (3, BYTES) => body = input.read_bytes()?,
            (_, BYTES) => drop(input.read_bytes()?),
            (field, _) => bail!("field {field} is unknown"),
        }
    }
    Ok((path, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(name: &str, value: Vec<u8>) -> Any {
        Any { type_url: name.into(), value, ..Default::default() }
    }

    #[test]
    fn options_of_runc() {
        let of_runc = oci::Options { root: "/r".into(), systemd_cgroup: true, ..Default::default() };
        let given = any("containerd.runc.v1.Options", of_runc.write_to_bytes().unwrap());
        let options = Options::new(Some(&given)).unwrap();
        assert_eq!(options.root("ns"), Path::new("/r/ns"));
        assert!(options.systemd_cgroup && options.binary_name.is_none());
        assert_eq!(Options::default().root("k8s.io"), Path::new("/run/containerd/runsc-rs/k8s.io"));
    }

    #[test]
    fn options_in_a_message() {
        let body = b"root = \"/r\"\ndebug = true\n";
        let mut value = vec![3 << 3 | 2, body.len() as u8];
        value.extend_from_slice(body);
        let options = Options::new(Some(&any("runtimeoptions.v1.Options", value))).unwrap();
        assert_eq!((options.root.as_deref(), options.debug), (Some(Path::new("/r")), true));
    }

    #[test]
    fn mistakes() {
        assert!(parse("rooot = \"/r\"").is_err());
        assert!(Options::new(Some(&any("x.Options", vec![]))).is_err());
        assert!(Options::new(Some(&any("runtimeoptions.v1.Options", vec![0xff; 9]))).is_err());
        assert!(Options::new(Some(&any("containerd.runc.v1.Options", vec![0xff; 9]))).is_err());
    }
}
