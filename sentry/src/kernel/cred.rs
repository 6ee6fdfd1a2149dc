//! Credentials of a task (credentials(7), capabilities(7)). Immutable once made; a change makes a new one.

/// Bits of the capability sets, `1 << CAP_*`.
pub const CAP_CHOWN: u64 = 1 << 0;
pub const CAP_DAC_OVERRIDE: u64 = 1 << 1;
pub const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
pub const CAP_FOWNER: u64 = 1 << 3;
pub const CAP_FSETID: u64 = 1 << 4;
pub const CAP_KILL: u64 = 1 << 5;
pub const CAP_SETGID: u64 = 1 << 6;
pub const CAP_SETUID: u64 = 1 << 7;
pub const CAP_SETPCAP: u64 = 1 << 8;
pub const CAP_NET_BIND_SERVICE: u64 = 1 << 10;
pub const CAP_NET_ADMIN: u64 = 1 << 12;
pub const CAP_NET_RAW: u64 = 1 << 13;
pub const CAP_IPC_LOCK: u64 = 1 << 14;
pub const CAP_IPC_OWNER: u64 = 1 << 15;
pub const CAP_SYS_CHROOT: u64 = 1 << 18;
pub const CAP_SYS_PTRACE: u64 = 1 << 19;
pub const CAP_SYS_ADMIN: u64 = 1 << 21;
pub const CAP_SYS_NICE: u64 = 1 << 23;
pub const CAP_SYS_RESOURCE: u64 = 1 << 24;
pub const CAP_SYS_TIME: u64 = 1 << 25;
pub const CAP_SYS_TTY_CONFIG: u64 = 1 << 26;
pub const CAP_MKNOD: u64 = 1 << 27;
pub const CAP_SETFCAP: u64 = 1 << 31;
/// All capabilities that Linux 6.x defines (0..=CAP_CHECKPOINT_RESTORE).
pub const CAP_ALL: u64 = (1 << 41) - 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cred {
    pub uid: u32,
    pub gid: u32,
    pub euid: u32,
    pub egid: u32,
    pub suid: u32,
    pub sgid: u32,
    pub fsuid: u32,
    pub fsgid: u32,
    pub groups: Vec<u32>,
    pub permitted: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub bounding: u64,
    pub ambient: u64,
    /// `SECBIT_*`.
    pub securebits: u32,
    pub no_new_privs: bool,
}

impl Cred {
    /// Credentials of a user; root gets all of `caps`, others none.
    pub fn user(uid: u32, gid: u32, groups: Vec<u32>, caps: u64) -> Self {
        let held = if uid == 0 { caps } else { 0 };
        Cred {
            uid,
            gid,
            euid: uid,
            egid: gid,
            suid: uid,
            sgid: gid,
            fsuid: uid,
            fsgid: gid,
            groups,
            permitted: held,
            effective: held,
            inheritable: 0,
            bounding: caps,
            ambient: 0,
            securebits: 0,
            no_new_privs: false,
        }
    }
    pub fn has(&self, cap: u64) -> bool {
        self.effective & cap == cap
    }
    pub fn in_group(&self, gid: u32) -> bool {
        self.fsgid == gid || self.groups.contains(&gid)
    }
}
