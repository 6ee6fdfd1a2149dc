//! The process of a container.

use crate::config::{Capabilities, Identity, ProcessConfig};
use crate::sys;
use anyhow::Result;
use oci_spec::runtime::{Capabilities as Set, LinuxCapabilities, PosixRlimitType as Limit, Process};
use std::os::unix::ffi::OsStrExt;

/// Names of the capabilities, by number, without `CAP_`.
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// As runc: files of a container's first process are not to be writable for others unless the bundle says so.
const UMASK: u32 = 0o022;

/// Plans a process: the container's first one, or one more (`exec`). Descriptors 0, 1 and 2 are those that come along
/// as such; resources without a limit have the caller's own.
pub fn process(process: &Process) -> Result<ProcessConfig> {
    super::labels::check(process)?;
    let bytes = |texts: &Option<Vec<String>>| -> Vec<Vec<u8>> {
        texts.iter().flatten().map(|text| text.clone().into_bytes()).collect()
    };
    let user = process.user();
    Ok(ProcessConfig {
        argv: bytes(process.args()),
        env: bytes(process.env()),
        cwd: process.cwd().as_os_str().as_bytes().to_vec(),
        user: Identity { uid: user.uid(), gid: user.gid(), groups: user.additional_gids().clone().unwrap_or_default() },
        umask: user.umask().unwrap_or(UMASK),
        nice: process.scheduler().as_ref().and_then(|s| *s.nice()).map_or_else(sys::nice, |nice| nice.clamp(-20, 19)),
        limits: limits(process, sys::limits()),
        capabilities: Some(process.capabilities().as_ref().map(capabilities).unwrap_or_default()),
        no_new_privs: process.no_new_privileges().unwrap_or(false),
        seccomp: Vec::new(),
        oom_score_adj: process.oom_score_adj().unwrap_or(0),
        files: (0..3).map(Some).collect(),
        terminal: process.terminal().unwrap_or(false),
    })
}

fn limits(process: &Process, mut limits: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    for limit in process.rlimits().iter().flatten() {
        if let Some(place) = limits.get_mut(resource(limit.typ()) as usize) {
            *place = (limit.soft(), limit.hard());
        }
    }
    limits
}

fn resource(limit: Limit) -> u32 {
    match limit {
        Limit::RlimitCpu => libc::RLIMIT_CPU,
        Limit::RlimitFsize => libc::RLIMIT_FSIZE,
        Limit::RlimitData => libc::RLIMIT_DATA,
        Limit::RlimitStack => libc::RLIMIT_STACK,
        Limit::RlimitCore => libc::RLIMIT_CORE,
        Limit::RlimitRss => libc::RLIMIT_RSS,
        Limit::RlimitNproc => libc::RLIMIT_NPROC,
        Limit::RlimitNofile => libc::RLIMIT_NOFILE,
        Limit::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        Limit::RlimitAs => libc::RLIMIT_AS,
        Limit::RlimitLocks => libc::RLIMIT_LOCKS,
        Limit::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        Limit::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        Limit::RlimitNice => libc::RLIMIT_NICE,
        Limit::RlimitRtprio => libc::RLIMIT_RTPRIO,
        Limit::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// The sets, within what a kernel allows: a permitted capability need not be in the bounding set, but an effective one
/// is permitted, and an ambient one permitted and inheritable.
pub fn capabilities(sets: &LinuxCapabilities) -> Capabilities {
    let permitted = bits(sets.permitted());
    let inheritable = bits(sets.inheritable());
    Capabilities {
        bounding: bits(sets.bounding()),
        effective: bits(sets.effective()) & permitted,
        permitted,
        inheritable,
        ambient: bits(sets.ambient()) & permitted & inheritable,
    }
}

fn bits(set: &Option<Set>) -> u64 {
    set.iter().flatten().filter_map(|c| bit(&c.to_string())).fold(0, |all, bit| all | bit)
}

/// The bit of a capability's name, with or without `CAP_`, in any case.
fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    CAPABILITIES.iter().position(|c| *c == plain).map(|number| 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(extra: serde_json::Value) -> ProcessConfig {
        let mut text = json!({ "args": ["a", "b"], "cwd": "/c", "user": { "uid": 5, "gid": 6 } });
        for (key, value) in extra.as_object().unwrap() {
            text[key] = value.clone();
        }
        process(&serde_json::from_value(text).unwrap()).unwrap()
    }

    #[test]
    fn defaults() {
        let p = of(json!({}));
        assert_eq!((p.argv, p.cwd, p.umask), (vec![b"a".to_vec(), b"b".to_vec()], b"/c".to_vec(), 0o022));
        assert_eq!((p.user.uid, p.user.gid, p.user.groups.len()), (5, 6, 0));
        assert_eq!(p.capabilities, Some(Capabilities::default()));
        assert_eq!((p.no_new_privs, p.oom_score_adj, p.terminal), (false, 0, false));
        assert_eq!((p.limits, p.files), (sys::limits(), vec![Some(0), Some(1), Some(2)]));
    }

    #[test]
    fn what_is_given() {
        let p = of(json!({
            "user": { "uid": 1, "gid": 2, "umask": 63, "additionalGids": [7, 8] },
            "noNewPrivileges": true, "oomScoreAdj": -5, "terminal": true, "env": ["A=1"],
            "scheduler": { "policy": "SCHED_BATCH", "nice": 7 },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 10, "hard": 20 },
                { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }],
        }));
        assert_eq!((p.user.groups, p.umask), (vec![7, 8], 63));
        assert_eq!((p.no_new_privs, p.oom_score_adj, p.terminal, p.nice), (true, -5, true, 7));
        assert_eq!(p.env, vec![b"A=1".to_vec()]);
        assert_eq!((p.limits[7], p.limits[4], p.limits[3]), ((10, 20), (0, 0), sys::limits()[3]));
    }

    #[test]
    fn capability_sets() {
        let p = of(json!({ "capabilities": {
            "bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_BPF"],
            "effective": ["CAP_CHOWN", "CAP_SYS_ADMIN"], "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL", "CAP_CHOWN"],
        }}));
        let want =
            Capabilities { bounding: 0x21, permitted: 0x21 | 1 << 39, effective: 1, inheritable: 0x20, ambient: 0x20 };
        assert_eq!(p.capabilities, Some(want));
        assert_eq!((bit("cap_checkpoint_restore"), bit("SYSLOG"), bit("CAP_X")), (Some(1 << 40), Some(1 << 34), None));
    }
}
