//! Identity: getpid(2), getuid(2), setuid(2), setresuid(2), setfsuid(2), setgroups(2). The rules are in
//! `kernel::cred`.

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::cred::{CAP_SETGID, NO_ID};
use crate::kernel::Cred;

/// `NGROUPS_MAX`.
const NGROUPS_MAX: i32 = 65536;

pub fn getpid(cx: &mut Ctx<'_>) -> SysResult {
    Ok(cx.task.group.pid as u64)
}

pub fn gettid(cx: &mut Ctx<'_>) -> SysResult {
    Ok(cx.task.tid() as u64)
}

pub fn getppid(cx: &mut Ctx<'_>) -> SysResult {
    Ok(cx.task.group.parent_pid() as u64)
}

pub fn getuid(cx: &mut Ctx<'_>) -> SysResult {
    Ok(u64::from(cx.task.cred.read().uid))
}

pub fn geteuid(cx: &mut Ctx<'_>) -> SysResult {
    Ok(u64::from(cx.task.cred.read().euid))
}

pub fn getgid(cx: &mut Ctx<'_>) -> SysResult {
    Ok(u64::from(cx.task.cred.read().gid))
}

pub fn getegid(cx: &mut Ctx<'_>) -> SysResult {
    Ok(u64::from(cx.task.cred.read().egid))
}

fn commit(cx: &Ctx<'_>, f: impl FnOnce(&Cred) -> Result<Cred>) -> SysResult {
    cx.task.change_cred(f)?;
    Ok(0)
}

pub fn setuid(cx: &mut Ctx<'_>, uid: u32) -> SysResult {
    commit(cx, |c| c.setuid(uid))
}

pub fn setgid(cx: &mut Ctx<'_>, gid: u32) -> SysResult {
    commit(cx, |c| c.setgid(gid))
}

pub fn setreuid(cx: &mut Ctx<'_>, ruid: u32, euid: u32) -> SysResult {
    commit(cx, |c| c.setreuid(ruid, euid))
}

pub fn setregid(cx: &mut Ctx<'_>, rgid: u32, egid: u32) -> SysResult {
    commit(cx, |c| c.setregid(rgid, egid))
}

pub fn setresuid(cx: &mut Ctx<'_>, ruid: u32, euid: u32, suid: u32) -> SysResult {
    commit(cx, |c| c.setresuid(ruid, euid, suid))
}

pub fn setresgid(cx: &mut Ctx<'_>, rgid: u32, egid: u32, sgid: u32) -> SysResult {
    commit(cx, |c| c.setresgid(rgid, egid, sgid))
}

pub fn getresuid(cx: &mut Ctx<'_>, ruid: Addr, euid: Addr, suid: Addr) -> SysResult {
    let c = cx.task.cred();
    cx.write(ruid.0, &c.uid)?;
    cx.write(euid.0, &c.euid)?;
    cx.write(suid.0, &c.suid)?;
    Ok(0)
}

pub fn getresgid(cx: &mut Ctx<'_>, rgid: Addr, egid: Addr, sgid: Addr) -> SysResult {
    let c = cx.task.cred();
    cx.write(rgid.0, &c.gid)?;
    cx.write(egid.0, &c.egid)?;
    cx.write(sgid.0, &c.sgid)?;
    Ok(0)
}

pub fn setfsuid(cx: &mut Ctx<'_>, uid: u32) -> SysResult {
    let old = cx.task.change_cred(|c| Ok(c.setfsuid(uid).unwrap_or_else(|| c.clone())))?;
    Ok(u64::from(old.fsuid))
}

pub fn setfsgid(cx: &mut Ctx<'_>, gid: u32) -> SysResult {
    let old = cx.task.change_cred(|c| Ok(c.setfsgid(gid).unwrap_or_else(|| c.clone())))?;
    Ok(u64::from(old.fsgid))
}

pub fn getgroups(cx: &mut Ctx<'_>, size: i32, list: Addr) -> SysResult {
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    let c = cx.task.cred();
    if size != 0 {
        if c.groups.len() > size {
            return Err(Errno::EINVAL.into());
        }
        let raw: Vec<u8> = c.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
        cx.write_bytes(list.0, &raw)?;
    }
    Ok(c.groups.len() as u64)
}

pub fn setgroups(cx: &mut Ctx<'_>, size: i32, list: Addr) -> SysResult {
    if !cx.task.cred().has(CAP_SETGID) {
        return Err(Errno::EPERM.into());
    }
    if !(0..=NGROUPS_MAX).contains(&size) {
        return Err(Errno::EINVAL.into());
    }
    let mut groups: Vec<u32> = cx.mem().read_vec(list.0, size as usize)?;
    if groups.contains(&NO_ID) {
        return Err(Errno::EINVAL.into());
    }
    groups.sort_unstable();
    commit(cx, |c| Ok(Cred { groups, ..c.clone() }))
}
