//! prctl(2) and arch_prctl(2).

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::cred::{CAP_COUNT, CAP_SETPCAP, CAP_SYS_RESOURCE, SECBIT_KEEP_CAPS};
use crate::kernel::Cred;
use platform::{Op, GUEST_MAX};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

const PR_SET_TIMING: i32 = 14;
const PR_GET_TIMING: i32 = 13;
const PR_SET_VMA: i32 = 0x5356_4d41;
const PR_GET_AUXV: i32 = 0x4155_5856;

fn cap_bit(cap: u64) -> Result<u64> {
    if cap < CAP_COUNT {
        Ok(1 << cap)
    } else {
        Err(Errno::EINVAL)
    }
}

fn commit(cx: &Ctx<'_>, f: impl FnOnce(&Cred) -> Result<Cred>) -> SysResult {
    cx.task.change_cred(f)?;
    Ok(0)
}

/// Arguments that must be zero.
fn unused(rest: &[u64]) -> Result<()> {
    if rest.iter().all(|a| *a == 0) {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

pub async fn prctl(cx: &mut Ctx<'_>, option: i32, a2: u64, a3: u64, a4: u64, a5: u64) -> SysResult {
    if option == libc::PR_SET_DUMPABLE && a2 == 0 {
        super::memory::closed(cx).await;
    }
    if option == libc::PR_SET_SECCOMP && a2 == 2 {
        return super::seccomp::set_filter(cx, 0, a3).await;
    }
    prctl_now(cx, option, a2, a3, a4, a5)
}

fn prctl_now(cx: &mut Ctx<'_>, option: i32, a2: u64, a3: u64, a4: u64, a5: u64) -> SysResult {
    let task = cx.task;
    match option {
        libc::PR_SET_PDEATHSIG => {
            let sig = i32::try_from(a2).ok().filter(|s| *s <= crate::kernel::signal::NSIG).ok_or(Errno::EINVAL)?;
            task.pdeathsig.store(sig, SeqCst);
            Ok(0)
        }
        libc::PR_GET_PDEATHSIG => {
            cx.write(a2, &task.pdeathsig.load(SeqCst))?;
            Ok(0)
        }
        libc::PR_GET_DUMPABLE => Ok(task.group.dumpable.load(SeqCst) as u64),
        libc::PR_SET_DUMPABLE => {
            if a2 > 1 {
                return Err(Errno::EINVAL.into());
            }
            task.group.dumpable.store(a2 as i32, SeqCst);
            Ok(0)
        }
        libc::PR_SET_NAME => {
            let name = match cx.read_cstr(a2, 16, Errno::ENAMETOOLONG) {
                Err(Errno::ENAMETOOLONG) => {
                    let mut b = vec![0u8; 15];
                    cx.read_bytes(a2, &mut b)?;
                    b
                }
                r => r?,
            };
            *task.comm.lock() = name;
            Ok(0)
        }
        libc::PR_GET_NAME => {
            let mut b = [0u8; 16];
            let name = task.comm.lock().clone();
            let n = name.len().min(15);
            b[..n].copy_from_slice(&name[..n]);
            cx.write(a2, &b)?;
            Ok(0)
        }
        libc::PR_GET_KEEPCAPS => Ok(u64::from(task.cred.read().securebits & SECBIT_KEEP_CAPS != 0)),
        libc::PR_SET_KEEPCAPS => {
            if a2 > 1 {
                return Err(Errno::EINVAL.into());
            }
            commit(cx, |c| c.set_keepcaps(a2 == 1))
        }
        libc::PR_GET_SECUREBITS => Ok(u64::from(task.cred.read().securebits)),
        libc::PR_SET_SECUREBITS => commit(cx, |c| c.set_securebits(a2)),
        libc::PR_CAPBSET_READ => Ok(u64::from(task.cred.read().bounding & cap_bit(a2)? != 0)),
        libc::PR_CAPBSET_DROP => commit(cx, |c| {
            if !c.has_own(CAP_SETPCAP) {
                return Err(Errno::EPERM);
            }
            Ok(Cred { bounding: c.bounding & !cap_bit(a2)?, ..c.clone() })
        }),
        libc::PR_CAP_AMBIENT => ambient(cx, a2, a3, a4, a5),
        libc::PR_SET_NO_NEW_PRIVS => {
            unused(&[a3, a4, a5])?;
            if a2 != 1 {
                return Err(Errno::EINVAL.into());
            }
            commit(cx, |c| Ok(Cred { no_new_privs: true, ..c.clone() }))
        }
        libc::PR_GET_NO_NEW_PRIVS => {
            unused(&[a2, a3, a4, a5])?;
            Ok(u64::from(task.cred.read().no_new_privs))
        }
        libc::PR_SET_CHILD_SUBREAPER => {
            task.group.links.lock().subreaper = a2 != 0;
            Ok(0)
        }
        libc::PR_GET_CHILD_SUBREAPER => {
            let v = i32::from(task.group.links.lock().subreaper);
            cx.write(a2, &v)?;
            Ok(0)
        }
        libc::PR_GET_TIMERSLACK => Ok(task.attrs.timer_slack_ns.load(Relaxed)),
        libc::PR_SET_TIMERSLACK => {
            let default = task.attrs.default_timer_slack_ns.load(Relaxed).max(1);
            task.attrs.timer_slack_ns.store(if (a2 as i64) <= 0 { default } else { a2 }, Relaxed);
            Ok(0)
        }
        // Statistical timing is the only kind.
        PR_GET_TIMING => Ok(0),
        PR_SET_TIMING if a2 == 0 => Ok(0),
        libc::PR_GET_TSC => {
            cx.write(a2, &libc::PR_TSC_ENABLE)?;
            Ok(0)
        }
        // A faulting rdtsc would be a property of the host process.
        libc::PR_SET_TSC if a2 == libc::PR_TSC_ENABLE as u64 => Ok(0),
        libc::PR_SET_THP_DISABLE => {
            unused(&[a3, a4, a5])?;
            task.attrs.thp_disable.store(a2 != 0, Relaxed);
            Ok(0)
        }
        libc::PR_GET_THP_DISABLE => {
            unused(&[a2, a3, a4, a5])?;
            Ok(u64::from(task.attrs.thp_disable.load(Relaxed)))
        }
        libc::PR_MCE_KILL_GET => {
            unused(&[a2, a3, a4, a5])?;
            Ok(libc::PR_MCE_KILL_DEFAULT as u64)
        }
        libc::PR_GET_TID_ADDRESS => {
            cx.write(a2, &task.clear_child_tid.load(SeqCst))?;
            Ok(0)
        }
        libc::PR_SET_MM => {
            let allowed = task.cred.read().has(CAP_SYS_RESOURCE);
            Err(if allowed { Errno::EINVAL } else { Errno::EPERM }.into())
        }
        libc::PR_SET_SECCOMP if a2 == 1 => super::seccomp::set_strict(cx),
        libc::PR_GET_SECCOMP => Ok(u64::from(task.attrs.filtered.load(SeqCst)) * 2),
        // Names of anonymous memory: behaves as a kernel without CONFIG_ANON_VMA_NAME.
        PR_SET_VMA | PR_GET_AUXV => Err(Errno::EINVAL.into()),
        _ => Err(Errno::EINVAL.into()),
    }
}

fn ambient(cx: &mut Ctx<'_>, op: u64, cap: u64, a4: u64, a5: u64) -> SysResult {
    const IS_SET: u64 = libc::PR_CAP_AMBIENT_IS_SET as u64;
    const RAISE: u64 = libc::PR_CAP_AMBIENT_RAISE as u64;
    const LOWER: u64 = libc::PR_CAP_AMBIENT_LOWER as u64;
    const CLEAR_ALL: u64 = libc::PR_CAP_AMBIENT_CLEAR_ALL as u64;
    unused(&[a4, a5])?;
    if op == CLEAR_ALL {
        unused(&[cap])?;
        return commit(cx, |c| Ok(Cred { ambient: 0, ..c.clone() }));
    }
    let bit = cap_bit(cap)?;
    match op {
        IS_SET => Ok(u64::from(cx.task.cred.read().ambient & bit != 0)),
        RAISE => commit(cx, |c| c.raise_ambient(bit)),
        LOWER => commit(cx, |c| Ok(Cred { ambient: c.ambient & !bit, ..c.clone() })),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// arch_prctl(2).
pub fn arch_prctl(cx: &mut Ctx<'_>, code: i32, addr: Addr) -> SysResult {
    const SET_GS: i32 = 0x1001;
    const SET_FS: i32 = 0x1002;
    const GET_FS: i32 = 0x1003;
    const GET_GS: i32 = 0x1004;
    const GET_CPUID: i32 = 0x1011;
    const SET_CPUID: i32 = 0x1012;
    match code {
        SET_FS | SET_GS if addr.0 >= GUEST_MAX => Err(Errno::EPERM.into()),
        SET_FS => {
            cx.thread.queue(Op::SetFs(addr.0));
            Ok(0)
        }
        SET_GS => {
            cx.thread.queue(Op::SetGs(addr.0));
            Ok(0)
        }
        GET_FS => {
            let v = cx.thread.fs_base();
            cx.write(addr.0, &v)?;
            Ok(0)
        }
        GET_GS => {
            let v = cx.thread.gs_base();
            cx.write(addr.0, &v)?;
            Ok(0)
        }
        // cpuid does not fault, and no call can change that.
        GET_CPUID => Ok(1),
        SET_CPUID => Err(Errno::ENODEV.into()),
        _ => Err(Errno::EINVAL.into()),
    }
}
