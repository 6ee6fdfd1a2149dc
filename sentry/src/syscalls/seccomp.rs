//! seccomp(2). The filters are in `kernel::seccomp`.

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, SysResult};
use crate::kernel::cred::CAP_SYS_ADMIN;
use crate::kernel::exec_guard;
use crate::kernel::seccomp::{self, Insn, Program};
use std::sync::atomic::Ordering;

const FLAG_TSYNC: u32 = 1;
const FLAG_LOG: u32 = 2;
const FLAG_SPEC_ALLOW: u32 = 4;
const FLAG_TSYNC_ESRCH: u32 = 16;

/// `SECCOMP_SET_MODE_FILTER`, also through prctl(2). Flags for host features (logging, speculation) have no
/// effect.
pub async fn set_filter(cx: &mut Ctx<'_>, flags: u32, args: u64) -> SysResult {
    if flags & !(FLAG_TSYNC | FLAG_LOG | FLAG_SPEC_ALLOW | FLAG_TSYNC_ESRCH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let [len, at]: [u64; 2] = cx.read(args)?;
    let len = usize::from(len as u16);
    if len == 0 || len > 4096 {
        return Err(Errno::EINVAL.into());
    }
    {
        let c = cx.task.cred.read();
        if !c.no_new_privs && !c.has_own(CAP_SYS_ADMIN) {
            return Err(Errno::EACCES.into());
        }
    }
    let raw: Vec<u64> = cx.mem().read_vec(at, len)?;
    let insns =
        raw.into_iter().map(|w| Insn { code: w as u16, jt: (w >> 16) as u8, jf: (w >> 24) as u8, k: (w >> 32) as u32 });
    let program = Program::check(insns.collect())?;
    let sync = flags & FLAG_TSYNC != 0;
    let _guard = if sync { Some(exec_guard::hold(cx.task).await?) } else { None };
    match seccomp::attach(cx.task, program, sync)? {
        0 => Ok(0),
        _ if flags & FLAG_TSYNC_ESRCH != 0 => Err(Errno::ESRCH.into()),
        tid => Ok(cx.task.sees(tid) as u64),
    }
}

/// `SECCOMP_SET_MODE_STRICT`: only read, write, exit and sigreturn remain.
pub fn set_strict(cx: &mut Ctx<'_>) -> SysResult {
    let a = &cx.task.attrs;
    if a.filtered.load(Ordering::SeqCst) {
        return Err(Errno::EINVAL.into());
    }
    a.strict.store(true, Ordering::SeqCst);
    a.filtered.store(true, Ordering::SeqCst);
    cx.task.refresh_answers();
    Ok(0)
}

pub async fn seccomp(cx: &mut Ctx<'_>, op: u32, flags: u32, args: Addr) -> SysResult {
    const SET_MODE_STRICT: u32 = 0;
    const SET_MODE_FILTER: u32 = 1;
    const GET_ACTION_AVAIL: u32 = 2;
    match op {
        SET_MODE_FILTER => set_filter(cx, flags, args.0).await,
        GET_ACTION_AVAIL => {
            if flags != 0 {
                return Err(Errno::EINVAL.into());
            }
            let action: u32 = cx.read(args.0)?;
            match action {
                seccomp::RET_KILL_PROCESS
                | seccomp::RET_KILL_THREAD
                | seccomp::RET_TRAP
                | seccomp::RET_ERRNO
                | seccomp::RET_LOG
                | seccomp::RET_ALLOW => Ok(0),
                _ => Err(Errno::EOPNOTSUPP.into()),
            }
        }
        SET_MODE_STRICT if flags == 0 && args.is_null() => set_strict(cx),
        // There is no user notification.
        _ => Err(Errno::EINVAL.into()),
    }
}
