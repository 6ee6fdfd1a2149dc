//! Credentials of a task (credentials(7), capabilities(7)), immutable: a change makes a new value.
//!
//! The rules are functions from old to new credentials; system calls commit the result with
//! [`Task::change_cred`]. All ids are kernel ids, those of the initial user namespace ([`user_ns`](super::user_ns));
//! the capability sets count in the namespace of the credentials and in those below it.

use super::user_ns::{Id, UserNs};
use super::Task;
use crate::error::{Errno, Result};
use std::sync::atomic::Ordering;
use std::sync::Arc;

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
pub const CAP_LINUX_IMMUTABLE: u64 = 1 << 9;
pub const CAP_NET_BIND_SERVICE: u64 = 1 << 10;
pub const CAP_NET_ADMIN: u64 = 1 << 12;
pub const CAP_NET_RAW: u64 = 1 << 13;
pub const CAP_IPC_LOCK: u64 = 1 << 14;
pub const CAP_IPC_OWNER: u64 = 1 << 15;
pub const CAP_SYS_CHROOT: u64 = 1 << 18;
pub const CAP_SYS_PTRACE: u64 = 1 << 19;
pub const CAP_SYS_ADMIN: u64 = 1 << 21;
pub const CAP_SYS_BOOT: u64 = 1 << 22;
pub const CAP_SYS_NICE: u64 = 1 << 23;
pub const CAP_SYS_RESOURCE: u64 = 1 << 24;
pub const CAP_SYS_TIME: u64 = 1 << 25;
pub const CAP_SYS_TTY_CONFIG: u64 = 1 << 26;
pub const CAP_MKNOD: u64 = 1 << 27;
pub const CAP_LEASE: u64 = 1 << 28;
pub const CAP_SETFCAP: u64 = 1 << 31;
pub const CAP_MAC_OVERRIDE: u64 = 1 << 32;
pub const CAP_SYSLOG: u64 = 1 << 34;
pub const CAP_WAKE_ALARM: u64 = 1 << 35;
pub const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;
/// All capabilities that Linux 6.x defines (0..=CAP_CHECKPOINT_RESTORE).
pub const CAP_ALL: u64 = (1 << 41) - 1;

/// Number of capabilities.
pub const CAP_COUNT: u64 = 41;
/// The capabilities that follow the file-system user id.
const CAP_FS_SET: u64 = CAP_CHOWN
    | CAP_DAC_OVERRIDE
    | CAP_DAC_READ_SEARCH
    | CAP_FOWNER
    | CAP_FSETID
    | CAP_LINUX_IMMUTABLE
    | CAP_MKNOD
    | CAP_MAC_OVERRIDE;

/// `SECBIT_*`; the lock bit of each is the next higher bit.
pub const SECBIT_NOROOT: u32 = 1 << 0;
pub const SECBIT_NO_SETUID_FIXUP: u32 = 1 << 2;
pub const SECBIT_KEEP_CAPS: u32 = 1 << 4;
pub const SECBIT_KEEP_CAPS_LOCKED: u32 = 1 << 5;
pub const SECBIT_NO_CAP_AMBIENT_RAISE: u32 = 1 << 6;
const SECBITS: u32 = SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS | SECBIT_NO_CAP_AMBIENT_RAISE;
const SECBIT_LOCKS: u32 = SECBITS << 1;

/// The id argument that means "unchanged"; not a valid user or group.
pub const NO_ID: u32 = u32::MAX;

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
    /// In order.
    pub groups: Vec<u32>,
    pub permitted: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub bounding: u64,
    pub ambient: u64,
    /// `SECBIT_*`.
    pub securebits: u32,
    pub no_new_privs: bool,
    pub user_ns: Arc<UserNs>,
}

impl Cred {
    /// Credentials of a user; root gets all of `caps`, other users none.
    pub fn user(uid: u32, gid: u32, mut groups: Vec<u32>, caps: u64) -> Self {
        groups.sort_unstable();
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
            user_ns: UserNs::first(),
        }
    }
    /// Whether it has the capability in the initial user namespace: over what belongs to no other.
    pub fn has(&self, cap: u64) -> bool {
        self.effective & cap == cap && self.user_ns.is_initial()
    }
    /// Whether it has the capability in its own user namespace.
    pub fn has_own(&self, cap: u64) -> bool {
        self.effective & cap == cap
    }
    /// `ns_capable`: whether it has the capability in `ns`. The owner of a child of its namespace has all of them
    /// there.
    pub fn capable_in(&self, ns: &UserNs, cap: u64) -> bool {
        let mut at = ns;
        loop {
            if *at == *self.user_ns {
                return self.has_own(cap);
            }
            if at.level() <= self.user_ns.level() {
                return false;
            }
            let Some(parent) = at.parent() else { return false };
            if *parent == self.user_ns && at.owner() == self.euid {
                return true;
            }
            at = parent;
        }
    }
    /// The same ids with the capabilities that count for what belongs to `ns`, as a task of `ns` has them.
    pub fn over(self: &Arc<Cred>, ns: &Arc<UserNs>) -> Arc<Cred> {
        if self.user_ns == *ns {
            return self.clone();
        }
        // Whoever is above has either its own or, as the owner, all of them.
        let effective = (0..CAP_COUNT).map(|n| 1 << n).filter(|cap| self.capable_in(ns, *cap)).sum();
        Arc::new(Cred { effective, user_ns: ns.clone(), ..(**self).clone() })
    }
    /// `capable_wrt_inode_uidgid`: whether the capability counts over an object of these (kernel) ids, which it does
    /// if both have numbers in its user namespace.
    pub fn capable_over(&self, uid: u32, gid: u32, cap: u64) -> bool {
        self.has_own(cap) && self.user_ns.maps(Id::User, uid) && self.user_ns.maps(Id::Group, gid)
    }
    /// As [`Cred::capable_over`], where the user id alone counts.
    pub fn capable_over_user(&self, uid: u32, cap: u64) -> bool {
        self.has_own(cap) && self.user_ns.maps(Id::User, uid)
    }
    /// Whether its permitted capabilities, where they count, are among those of `old` (`cred_cap_issubset`).
    pub fn gains_nothing_over(&self, old: &Cred) -> bool {
        if self.user_ns == old.user_ns {
            return self.permitted & !old.permitted == 0;
        }
        // Of a namespace of its own below, it has had all of them before.
        let mut at = &*self.user_ns;
        while at.level() > old.user_ns.level() {
            match at.parent() {
                Some(p) if *p == old.user_ns && at.owner() == old.euid => return true,
                Some(p) => at = p,
                None => return false,
            }
        }
        false
    }
    /// The credentials of a task that enters `ns`, its own or one that it may set up: all capabilities, and no others'
    /// traces.
    pub fn in_new_user_ns(&self, ns: Arc<UserNs>) -> Cred {
        Cred {
            permitted: CAP_ALL,
            effective: CAP_ALL,
            inheritable: 0,
            bounding: CAP_ALL,
            ambient: 0,
            securebits: 0,
            user_ns: ns,
            ..self.clone()
        }
    }
    pub fn in_group(&self, gid: u32) -> bool {
        self.fsgid == gid || self.has_group(gid)
    }
    /// Whether it is one of the supplementary groups.
    pub fn has_group(&self, gid: u32) -> bool {
        self.groups.binary_search(&gid).is_ok()
    }

    fn sec(&self, bit: u32) -> bool {
        self.securebits & bit != 0
    }

    /// Effect of user ID changes on capabilities (capabilities(7)).
    fn fixup_uids(&mut self, old: &Cred) {
        if self.sec(SECBIT_NO_SETUID_FIXUP) {
            return;
        }
        let root = old.user_ns.root();
        let had_root = old.uid == root || old.euid == root || old.suid == root;
        let no_root = self.uid != root && self.euid != root && self.suid != root;
        if had_root && no_root {
            if !self.sec(SECBIT_KEEP_CAPS) {
                self.permitted = 0;
                self.effective = 0;
            }
            self.ambient = 0;
        }
        if old.euid == root && self.euid != root {
            self.effective = 0;
        }
        if old.euid != root && self.euid == root {
            self.effective = self.permitted;
        }
    }

    pub fn setuid(&self, uid: u32) -> Result<Cred> {
        if uid == NO_ID {
            return Err(Errno::EINVAL);
        }
        let mut new = self.clone();
        if self.has_own(CAP_SETUID) {
            new.uid = uid;
            new.suid = uid;
        } else if uid != self.uid && uid != self.suid {
            return Err(Errno::EPERM);
        }
        new.euid = uid;
        new.fsuid = uid;
        new.fixup_uids(self);
        Ok(new)
    }

    pub fn setreuid(&self, ruid: u32, euid: u32) -> Result<Cred> {
        let mut new = self.clone();
        let privileged = self.has_own(CAP_SETUID);
        if ruid != NO_ID {
            new.uid = ruid;
            if ruid != self.uid && ruid != self.euid && !privileged {
                return Err(Errno::EPERM);
            }
        }
        if euid != NO_ID {
            new.euid = euid;
            if euid != self.uid && euid != self.euid && euid != self.suid && !privileged {
                return Err(Errno::EPERM);
            }
        }
        if ruid != NO_ID || (euid != NO_ID && euid != self.uid) {
            new.suid = new.euid;
        }
        new.fsuid = new.euid;
        new.fixup_uids(self);
        Ok(new)
    }

    pub fn setresuid(&self, ruid: u32, euid: u32, suid: u32) -> Result<Cred> {
        if !self.has_own(CAP_SETUID) {
            let own = [NO_ID, self.uid, self.euid, self.suid];
            if [ruid, euid, suid].iter().any(|id| !own.contains(id)) {
                return Err(Errno::EPERM);
            }
        }
        let pick = |id: u32, old: u32| if id == NO_ID { old } else { id };
        let mut new = self.clone();
        new.uid = pick(ruid, self.uid);
        new.euid = pick(euid, self.euid);
        new.suid = pick(suid, self.suid);
        new.fsuid = new.euid;
        new.fixup_uids(self);
        Ok(new)
    }

    /// `None`: no change (setfsuid(2) reports no error).
    pub fn setfsuid(&self, uid: u32) -> Option<Cred> {
        let own = [self.uid, self.euid, self.suid, self.fsuid].contains(&uid);
        if uid == NO_ID || uid == self.fsuid || !(own || self.has_own(CAP_SETUID)) {
            return None;
        }
        let mut new = self.clone();
        new.fsuid = uid;
        if !new.sec(SECBIT_NO_SETUID_FIXUP) {
            let root = self.user_ns.root();
            if self.fsuid == root {
                new.effective &= !CAP_FS_SET;
            } else if uid == root {
                new.effective |= CAP_FS_SET & new.permitted;
            }
        }
        Some(new)
    }

    pub fn setgid(&self, gid: u32) -> Result<Cred> {
        if gid == NO_ID {
            return Err(Errno::EINVAL);
        }
        let mut new = self.clone();
        if self.has_own(CAP_SETGID) {
            new.gid = gid;
            new.sgid = gid;
        } else if gid != self.gid && gid != self.sgid {
            return Err(Errno::EPERM);
        }
        new.egid = gid;
        new.fsgid = gid;
        Ok(new)
    }

    pub fn setregid(&self, rgid: u32, egid: u32) -> Result<Cred> {
        let mut new = self.clone();
        let privileged = self.has_own(CAP_SETGID);
        if rgid != NO_ID {
            new.gid = rgid;
            if rgid != self.gid && rgid != self.egid && !privileged {
                return Err(Errno::EPERM);
            }
        }
        if egid != NO_ID {
            new.egid = egid;
            if egid != self.gid && egid != self.egid && egid != self.sgid && !privileged {
                return Err(Errno::EPERM);
            }
        }
        if rgid != NO_ID || (egid != NO_ID && egid != self.gid) {
            new.sgid = new.egid;
        }
        new.fsgid = new.egid;
        Ok(new)
    }

    pub fn setresgid(&self, rgid: u32, egid: u32, sgid: u32) -> Result<Cred> {
        if !self.has_own(CAP_SETGID) {
            let own = [NO_ID, self.gid, self.egid, self.sgid];
            if [rgid, egid, sgid].iter().any(|id| !own.contains(id)) {
                return Err(Errno::EPERM);
            }
        }
        let pick = |id: u32, old: u32| if id == NO_ID { old } else { id };
        let mut new = self.clone();
        new.gid = pick(rgid, self.gid);
        new.egid = pick(egid, self.egid);
        new.sgid = pick(sgid, self.sgid);
        new.fsgid = new.egid;
        Ok(new)
    }

    pub fn setfsgid(&self, gid: u32) -> Option<Cred> {
        let own = [self.gid, self.egid, self.sgid, self.fsgid].contains(&gid);
        if gid == NO_ID || gid == self.fsgid || !(own || self.has_own(CAP_SETGID)) {
            return None;
        }
        Some(Cred { fsgid: gid, ..self.clone() })
    }

    /// capset(2).
    pub fn capset(&self, effective: u64, permitted: u64, inheritable: u64) -> Result<Cred> {
        let within = |a: u64, b: u64| a & !b == 0;
        let (effective, permitted, inheritable) = (effective & CAP_ALL, permitted & CAP_ALL, inheritable & CAP_ALL);
        let allowed = (self.has_own(CAP_SETPCAP) || within(inheritable, self.inheritable | self.permitted))
            && within(inheritable, self.inheritable | self.bounding)
            && within(permitted, self.permitted)
            && within(effective, permitted);
        if !allowed {
            return Err(Errno::EPERM);
        }
        let ambient = self.ambient & permitted & inheritable;
        Ok(Cred { effective, permitted, inheritable, ambient, ..self.clone() })
    }

    /// `PR_SET_SECUREBITS`.
    pub fn set_securebits(&self, bits: u64) -> Result<Cred> {
        let old = u64::from(self.securebits);
        let locks = u64::from(SECBIT_LOCKS);
        let known = u64::from(SECBITS) | locks;
        if ((old & locks) >> 1) & (old ^ bits) != 0
            || old & locks & !bits != 0
            || bits & !known != 0
            || !self.has_own(CAP_SETPCAP)
        {
            return Err(Errno::EPERM);
        }
        Ok(Cred { securebits: bits as u32, ..self.clone() })
    }

    /// `PR_SET_KEEPCAPS`.
    pub fn set_keepcaps(&self, on: bool) -> Result<Cred> {
        if self.sec(SECBIT_KEEP_CAPS_LOCKED) {
            return Err(Errno::EPERM);
        }
        let mut new = self.clone();
        if on {
            new.securebits |= SECBIT_KEEP_CAPS;
        } else {
            new.securebits &= !SECBIT_KEEP_CAPS;
        }
        Ok(new)
    }

    /// `PR_CAP_AMBIENT_RAISE`.
    pub fn raise_ambient(&self, cap: u64) -> Result<Cred> {
        if self.permitted & cap == 0 || self.inheritable & cap == 0 || self.sec(SECBIT_NO_CAP_AMBIENT_RAISE) {
            return Err(Errno::EPERM);
        }
        Ok(Cred { ambient: self.ambient | cap, ..self.clone() })
    }

    /// Whether this caller may change the scheduling of `target` (sched_setscheduler(2),
    /// setpriority(2)).
    pub fn may_set_scheduling(&self, target: &Cred) -> bool {
        let same_user = self.euid == target.uid || self.euid == target.euid;
        self.capable_in(&target.user_ns, CAP_SYS_NICE) || (same_user && self.has_all_of(target))
    }

    /// Has `target` no capability that this caller lacks?
    pub fn has_all_of(&self, target: &Cred) -> bool {
        target.permitted & !self.permitted == 0
    }
}

/// The `security.capability` attribute of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileCaps {
    pub permitted: u64,
    pub inheritable: u64,
    pub effective: bool,
    /// They count in user namespaces whose user 0 is this kernel id, and below.
    pub root: u32,
}

impl FileCaps {
    /// Parses the attribute's bytes (versions 1 to 3); `None` if they are invalid.
    pub fn parse(raw: &[u8]) -> Option<FileCaps> {
        let word = |i: usize| -> Option<u64> {
            let b: [u8; 4] = raw.get(i * 4..i * 4 + 4)?.try_into().ok()?;
            Some(u64::from(u32::from_le_bytes(b)))
        };
        let magic = word(0)?;
        let words = match (magic & 0xff00_0000, raw.len()) {
            (0x0100_0000, 12) => 1,
            (0x0200_0000, 20) => 2,
            (0x0300_0000, 24) => 2,
            _ => return None,
        };
        let root = if raw.len() == 24 { word(5)? as u32 } else { 0 };
        let mut caps = FileCaps { permitted: word(1)?, inheritable: word(2)?, effective: magic & 1 != 0, root };
        if words == 2 {
            caps.permitted |= word(3)? << 32;
            caps.inheritable |= word(4)? << 32;
        }
        caps.permitted &= CAP_ALL;
        caps.inheritable &= CAP_ALL;
        Some(caps)
    }
    /// Whether they count in `ns`: its user 0, or that of a namespace above it, is their root.
    pub fn count_in(&self, ns: &UserNs) -> bool {
        std::iter::successors(Some(ns), |n| n.parent().map(|p| &**p)).any(|n| n.id_out(Id::User, self.root) == Some(0))
    }
}

/// The value of `security.capability` with the user id that its capabilities belong to (version 3), or without one.
fn caps_value(raw: &[u8], root: Option<u32>) -> Option<Vec<u8>> {
    let magic = u32::from_le_bytes(raw.first_chunk::<4>().copied()?) & 0x00ff_ffff;
    let version = if root.is_some() { 0x0300_0000 } else { 0x0200_0000 };
    let mut out = (magic | version).to_le_bytes().to_vec();
    out.extend_from_slice(raw.get(4..20)?);
    out.extend(root.into_iter().flat_map(u32::to_le_bytes));
    Some(out)
}

/// `cap_convert_nscap`: what is stored when a task sets `security.capability` of a file of these ids. Capabilities
/// given in a user namespace carry the kernel id of its user 0.
pub fn caps_to_store(cred: &Cred, raw: &[u8], uid: u32, gid: u32) -> Result<Vec<u8>> {
    let version = raw.first_chunk::<4>().map(|m| u32::from_le_bytes(*m) & 0xff00_0000);
    if !matches!((version, raw.len()), (Some(0x0200_0000), 20) | (Some(0x0300_0000), 24)) {
        return Err(Errno::EINVAL);
    }
    if !cred.capable_over(uid, gid, CAP_SETFCAP) {
        return Err(Errno::EPERM);
    }
    if raw.len() == 20 && cred.has(CAP_SETFCAP) {
        return Ok(raw.to_vec());
    }
    let root = raw.get(20..24).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    let root = cred.user_ns.uid_in(root)?;
    caps_value(raw, Some(root)).ok_or(Errno::EINVAL)
}

/// What a task in `ns` reads of a stored `security.capability` (`cap_inode_getsecurity`).
pub fn caps_to_show(ns: &UserNs, raw: Vec<u8>) -> Result<Vec<u8>> {
    let Some(caps) = FileCaps::parse(&raw).filter(|_| raw.len() >= 20) else { return Ok(raw) };
    match ns.id_out(Id::User, caps.root) {
        Some(root) if root != 0 => caps_value(&raw, Some(root)).ok_or(Errno::EINVAL),
        _ if caps.count_in(ns) => caps_value(&raw, None).ok_or(Errno::EINVAL),
        _ => Err(Errno::EOVERFLOW),
    }
}

/// Attributes of the program file that `execve` depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExecFile {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub caps: Option<FileCaps>,
    /// The mount is `nosuid`: set-id bits and file capabilities are ignored.
    pub nosuid: bool,
    /// Tasks outside the process share the caller's root and working directory (`CLONE_FS`): a program with
    /// additional rights must not run in a directory context that they can change.
    pub shared: bool,
}

/// Whether the result of [`exec_cred`] for a file of this mode depends on the file's capabilities. It does
/// not if the caller is root in all ids with a full bounding set. Reading file capabilities can be slow.
pub fn depends_on_file_caps(old: &Cred, mode: u32) -> bool {
    let zero = old.user_ns.root();
    let root = old.uid == zero && old.euid == zero && old.bounding & CAP_ALL == CAP_ALL;
    !root || old.ambient != 0 || old.sec(SECBIT_NOROOT) || mode & (libc::S_ISUID | libc::S_ISGID) != 0
}

/// Credentials after `execve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecCred {
    pub cred: Cred,
    /// `AT_SECURE`; the process is then not dumpable and its parent-death signal is cleared.
    pub secure: bool,
}

/// Transformation of credentials by `execve` (capabilities(7), "Transformation of capabilities during
/// execve()"). `EPERM`: the file's capabilities cannot be granted in full and the program relies on them
/// (effective bit).
pub fn exec_cred(old: &Cred, file: &ExecFile) -> Result<ExecCred> {
    let mut new = old.clone();
    let root = old.user_ns.root();
    // Set-id bits count only if both ids of the file have numbers in the caller's namespace.
    let mapped = old.user_ns.maps(Id::User, file.uid) && old.user_ns.maps(Id::Group, file.gid);
    let set_ids = !file.nosuid && !old.no_new_privs && mapped;
    if set_ids && file.mode & libc::S_ISUID != 0 {
        new.euid = file.uid;
    }
    // Set-group-ID without group execute marks mandatory locking.
    if set_ids && file.mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP {
        new.egid = file.gid;
    }

    // Capabilities of the file.
    let caps = file.caps.filter(|c| !file.nosuid && c.count_in(&old.user_ns));
    let mut effective = false;
    new.permitted = 0;
    if let Some(c) = caps {
        new.permitted = (new.bounding & c.permitted) | (new.inheritable & c.inheritable);
        effective = c.effective;
        if effective && c.permitted & !new.permitted != 0 {
            return Err(Errno::EPERM);
        }
    }
    // Root gets all capabilities, unless a set-user-ID root file carries capabilities of its own.
    let suid_root = new.uid != root && new.euid == root;
    if !new.sec(SECBIT_NOROOT) && (caps.is_none() || !suid_root) {
        if new.uid == root || new.euid == root {
            new.permitted = new.bounding | new.inheritable;
        }
        if new.euid == root {
            effective = true;
        }
    }

    let set_id = new.euid != old.uid || new.egid != old.gid;
    if (set_id || new.permitted & !old.permitted != 0) && (old.no_new_privs || file.shared) {
        if old.no_new_privs || !old.has_own(CAP_SETUID) {
            new.euid = new.uid;
            new.egid = new.gid;
        }
        new.permitted &= old.permitted;
    }
    new.suid = new.euid;
    new.fsuid = new.euid;
    new.sgid = new.egid;
    new.fsgid = new.egid;
    if caps.is_some() || set_id {
        new.ambient = 0;
    }
    new.permitted |= new.ambient;
    new.effective = if effective { new.permitted } else { new.ambient };
    new.securebits &= !SECBIT_KEEP_CAPS;
    let secure = set_id || (new.uid != root && (effective || new.permitted & !new.ambient != 0));
    Ok(ExecCred { cred: new, secure })
}

impl Cred {
    /// Whether both can reach the same: whatever has been read with the one could be read with the other.
    pub fn same_rights(&self, other: &Cred) -> bool {
        let ids = |c: &Cred| [c.uid, c.euid, c.suid, c.fsuid, c.gid, c.egid, c.sgid, c.fsgid];
        ids(self) == ids(other)
            && self.permitted == other.permitted
            && self.groups == other.groups
            && self.user_ns == other.user_ns
    }
}

impl Task {
    /// Changes the credentials in one step and returns the old ones. A change of identity or a gain of
    /// capabilities clears dumpable and the parent-death signal (prctl(2)).
    pub fn change_cred(&self, change: impl FnOnce(&Cred) -> Result<Cred>) -> Result<Arc<Cred>> {
        let mut slot = self.cred.write();
        let old = slot.clone();
        let new = change(&old)?;
        if old.euid != new.euid
            || old.egid != new.egid
            || old.fsuid != new.fsuid
            || old.fsgid != new.fsgid
            || !new.gains_nothing_over(&old)
        {
            self.group.dumpable.store(0, Ordering::SeqCst);
            self.pdeathsig.store(0, Ordering::SeqCst);
        }
        if !new.user_ns.is_initial() {
            self.group.maps_ids.store(true, Ordering::SeqCst);
        }
        *slot = Arc::new(new);
        drop(slot);
        self.refresh_answers();
        Ok(old)
    }
}

#[cfg(test)]
#[path = "cred_tests.rs"]
mod tests;
