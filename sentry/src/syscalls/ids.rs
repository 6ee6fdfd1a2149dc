//! Identity: getpid(2), getuid(2), setuid(2), setresuid(2), setfsuid(2), setgroups(2). The rules are in
//! `kernel::cred`.

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::cred::CAP_SETGID;
use crate::kernel::user_ns::Id;
use crate::kernel::Cred;

/// `NGROUPS_MAX`.
const NGROUPS_MAX: i32 = 65536;

pub fn getpid(cx: &mut Ctx<'_>) -> SysResult {
    Ok(cx.task.group.id.own() as u64)
}

pub fn gettid(cx: &mut Ctx<'_>) -> SysResult {
    Ok(cx.task.number().own() as u64)
}

pub fn getppid(cx: &mut Ctx<'_>) -> SysResult {
    Ok(cx.task.group.parent_pid() as u64)
}

pub fn getuid(cx: &mut Ctx<'_>) -> SysResult {
    let c = cx.task.cred.read();
    Ok(u64::from(c.user_ns.uid_out(c.uid)))
}

pub fn geteuid(cx: &mut Ctx<'_>) -> SysResult {
    let c = cx.task.cred.read();
    Ok(u64::from(c.user_ns.uid_out(c.euid)))
}

pub fn getgid(cx: &mut Ctx<'_>) -> SysResult {
    let c = cx.task.cred.read();
    Ok(u64::from(c.user_ns.gid_out(c.gid)))
}

pub fn getegid(cx: &mut Ctx<'_>) -> SysResult {
    let c = cx.task.cred.read();
    Ok(u64::from(c.user_ns.gid_out(c.egid)))
}

fn commit(cx: &Ctx<'_>, f: impl FnOnce(&Cred) -> Result<Cred>) -> SysResult {
    cx.task.change_cred(f)?;
    Ok(0)
}

pub fn setuid(cx: &mut Ctx<'_>, uid: u32) -> SysResult {
    commit(cx, |c| c.setuid(c.user_ns.uid_in(uid)?))
}

pub fn setgid(cx: &mut Ctx<'_>, gid: u32) -> SysResult {
    commit(cx, |c| c.setgid(c.user_ns.gid_in(gid)?))
}

pub fn setreuid(cx: &mut Ctx<'_>, ruid: u32, euid: u32) -> SysResult {
    commit(cx, |c| {
        let id = |id| c.user_ns.uid_or_none_in(id);
        c.setreuid(id(ruid)?, id(euid)?)
    })
}

pub fn setregid(cx: &mut Ctx<'_>, rgid: u32, egid: u32) -> SysResult {
    commit(cx, |c| {
        let id = |id| c.user_ns.gid_or_none_in(id);
        c.setregid(id(rgid)?, id(egid)?)
    })
}

pub fn setresuid(cx: &mut Ctx<'_>, ruid: u32, euid: u32, suid: u32) -> SysResult {
    commit(cx, |c| {
        let id = |id| c.user_ns.uid_or_none_in(id);
        c.setresuid(id(ruid)?, id(euid)?, id(suid)?)
    })
}

pub fn setresgid(cx: &mut Ctx<'_>, rgid: u32, egid: u32, sgid: u32) -> SysResult {
    commit(cx, |c| {
        let id = |id| c.user_ns.gid_or_none_in(id);
        c.setresgid(id(rgid)?, id(egid)?, id(sgid)?)
    })
}

pub fn getresuid(cx: &mut Ctx<'_>, ruid: Addr, euid: Addr, suid: Addr) -> SysResult {
    let c = cx.task.cred();
    cx.write(ruid.0, &c.user_ns.uid_out(c.uid))?;
    cx.write(euid.0, &c.user_ns.uid_out(c.euid))?;
    cx.write(suid.0, &c.user_ns.uid_out(c.suid))?;
    Ok(0)
}

pub fn getresgid(cx: &mut Ctx<'_>, rgid: Addr, egid: Addr, sgid: Addr) -> SysResult {
    let c = cx.task.cred();
    cx.write(rgid.0, &c.user_ns.gid_out(c.gid))?;
    cx.write(egid.0, &c.user_ns.gid_out(c.egid))?;
    cx.write(sgid.0, &c.user_ns.gid_out(c.sgid))?;
    Ok(0)
}

pub fn setfsuid(cx: &mut Ctx<'_>, uid: u32) -> SysResult {
    let new = |c: &Cred| c.user_ns.id_in(Id::User, uid).and_then(|uid| c.setfsuid(uid));
    let old = cx.task.change_cred(|c| Ok(new(c).unwrap_or_else(|| c.clone())))?;
    Ok(u64::from(old.user_ns.uid_out(old.fsuid)))
}

pub fn setfsgid(cx: &mut Ctx<'_>, gid: u32) -> SysResult {
    let new = |c: &Cred| c.user_ns.id_in(Id::Group, gid).and_then(|gid| c.setfsgid(gid));
    let old = cx.task.change_cred(|c| Ok(new(c).unwrap_or_else(|| c.clone())))?;
    Ok(u64::from(old.user_ns.gid_out(old.fsgid)))
}

pub fn getgroups(cx: &mut Ctx<'_>, size: i32, list: Addr) -> SysResult {
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    let c = cx.task.cred();
    if size != 0 {
        if c.groups.len() > size {
            return Err(Errno::EINVAL.into());
        }
        let raw: Vec<u8> = c.groups.iter().flat_map(|g| c.user_ns.gid_out(*g).to_le_bytes()).collect();
        cx.write_bytes(list.0, &raw)?;
    }
    Ok(c.groups.len() as u64)
}

pub fn setgroups(cx: &mut Ctx<'_>, size: i32, list: Addr) -> SysResult {
    let cred = cx.task.cred();
    if !cred.has_own(CAP_SETGID) || !cred.user_ns.may_setgroups() {
        return Err(Errno::EPERM.into());
    }
    if !(0..=NGROUPS_MAX).contains(&size) {
        return Err(Errno::EINVAL.into());
    }
    let mut groups: Vec<u32> = cx.mem().read_vec(list.0, size as usize)?;
    for g in &mut groups {
        *g = cred.user_ns.gid_in(*g)?;
    }
    groups.sort_unstable();
    commit(cx, |c| Ok(Cred { groups, ..c.clone() }))
}
