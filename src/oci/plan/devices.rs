//! Device nodes that a bundle asks for.

use crate::config::DeviceNode;
use anyhow::{anyhow, bail, Result};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType as Type};
use std::os::unix::ffi::OsStrExt;

/// Largest numbers of a device, as the kernel's `dev_t` holds them.
const MAX_MAJOR: u32 = 0xfff;
const MAX_MINOR: u32 = 0xf_ffff;

/// The nodes, in their order. Those of devices that the Sentry does not have are made too, and answer ENXIO when they
/// are opened.
pub fn plan(linux: &Linux) -> Result<Vec<DeviceNode>> {
    linux.devices().iter().flatten().map(node).collect()
}

fn node(device: &LinuxDevice) -> Result<DeviceNode> {
    let shown = device.path().display();
    if !device.path().is_absolute() || device.path().as_os_str().as_bytes().contains(&0) {
        bail!("device {shown}: the path must be absolute");
    }
    let number = |n: i64, most: u32| {
        u32::try_from(n).ok().filter(|n| *n <= most).ok_or_else(|| anyhow!("device {shown}: there is no number {n}"))
    };
    let kind = match device.typ() {
        Type::C | Type::U => libc::S_IFCHR,
        Type::B => libc::S_IFBLK,
        Type::P => libc::S_IFIFO,
        Type::A => bail!("device {shown}: type \"a\" is for rules, not for nodes"),
    };
    let (major, minor) = match device.typ() {
        Type::P => (0, 0),
        _ => (number(device.major(), MAX_MAJOR)?, number(device.minor(), MAX_MINOR)?),
    };
    let known = kind == libc::S_IFIFO
        || kind == libc::S_IFCHR && sentry::fs::dev::NODES.iter().any(|node| (node.3, node.4) == (major, minor));
    if !known {
        log::warn!("device {shown}: a sandbox has no device {major}:{minor}; its node cannot be opened");
    }
    Ok(DeviceNode {
        path: device.path().as_os_str().as_bytes().to_vec(),
        mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
        major,
        minor,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(device: serde_json::Value) -> Result<Vec<DeviceNode>> {
        plan(&serde_json::from_value(json!({ "devices": [device] })).unwrap())
    }

    #[test]
    fn nodes() {
        let null =
            of(json!({ "path": "/dev/n", "type": "c", "major": 1, "minor": 3, "fileMode": 384, "uid": 4 })).unwrap();
        let want =
            DeviceNode { path: b"/dev/n".to_vec(), mode: libc::S_IFCHR | 0o600, major: 1, minor: 3, uid: 4, gid: 0 };
        assert_eq!(null, vec![want]);
        assert_eq!(of(json!({ "path": "/p", "type": "p" })).unwrap()[0].mode, libc::S_IFIFO | 0o666);
        for wrong in [
            json!({ "path": "n", "type": "c" }),
            json!({ "path": "/n", "type": "a" }),
            json!({ "path": "/n", "type": "b", "major": -1, "minor": 0 }),
            json!({ "path": "/n", "type": "b", "major": 0, "minor": 1 << 20 }),
        ] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
