//! The `delete` action: containerd has lost a shim, or starts anew, and wants nothing of a container left.

use super::args::Args;
use super::events::timestamp;
use super::mounts;
use super::options::Options;
use super::reaper::Reaper;
use super::runtime::Runtime;
use anyhow::{bail, Context, Result};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message, MessageField};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The status of a container that was killed.
const KILLED: u32 = 128 + 9;

pub fn delete(args: &Args) -> Result<()> {
    if args.id.is_empty() || args.namespace.is_empty() {
        bail!("shim id and namespace cannot be empty");
    }
    let bundle = match args.bundle.as_str() {
        "" => std::env::current_dir().context("the bundle")?,
        path => PathBuf::from(path),
    };
    let options = Options::of_bundle(&bundle)?;
    let pid = std::fs::read_to_string(bundle.join("init.pid")).ok().and_then(|t| t.trim().parse().ok());
    let runtime = Runtime::new(options, &args.namespace, &bundle, &Reaper::start()?);
    let deleted = runtime.delete(&args.id, true);
    // Without a runtime the root can be unmounted all the same.
    mounts::unmount_all(&bundle.join("rootfs"));
    remove_leftovers(&bundle);
    deleted.context("OCI runtime delete failed")?;
    let response = DeleteResponse {
        pid: pid.unwrap_or(0),
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..Default::default()
    };
    let mut out = std::io::stdout().lock();
    out.write_all(&response.write_to_bytes()?)?;
    Ok(out.flush()?)
}

/// The socket of a shim that is gone; that of one which lives, for other containers of a pod, stays.
fn remove_leftovers(bundle: &Path) {
    let Ok(address) = std::fs::read_to_string(bundle.join("address")) else { return };
    let Some(path) = address.trim().strip_prefix("unix://") else { return };
    if std::os::unix::net::UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
}
