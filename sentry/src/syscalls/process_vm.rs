//! process_vm_readv(2), process_vm_writev(2): copying between the memory of two processes.

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::wait::Turn;
use crate::mm::io::{Dst, IoVec, Src};
use crate::mm::UserMem;

/// Bytes copied at a time.
const CHUNK: usize = 64 * 1024;

struct Sides {
    local: Vec<IoVec>,
    remote: Vec<IoVec>,
    /// The other process's memory.
    mem: UserMem,
}

fn sides(
    cx: &Ctx<'_>,
    pid: i32,
    liov: Addr,
    liovcnt: u64,
    riov: Addr,
    riovcnt: u64,
    flags: u64,
) -> Result<Option<Sides>> {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let count = |n: u64| usize::try_from(n).map_err(|_| Errno::EINVAL);
    let local = cx.read_iov(liov.0, count(liovcnt)?)?;
    if local.iter().all(|v| v.len == 0) {
        return Ok(None);
    }
    let remote = cx.read_iov(riov.0, count(riovcnt)?)?;
    if remote.iter().all(|v| v.len == 0) {
        return Ok(None);
    }
    let target = cx.task.find_task(pid).ok_or(Errno::ESRCH)?;
    // Before it is asked whose it is: the memory of a program that it execs meanwhile is not what the answer is about.
    let mm = target.mm();
    let mine = cx.task.cred();
    if !cx.task.may_access(&target, mine.uid, mine.gid) {
        return Err(Errno::EPERM);
    }
    Ok(Some(Sides { local, remote, mem: mm.for_others() }))
}

/// Copies until either side ends or faults. Returns the number of bytes, or an error if there were none.
async fn copy(cx: &Ctx<'_>, src: &mut Src<'_>, dst: &mut Dst<'_>) -> SysResult {
    let (mut done, mut turn) = (0u64, Turn::new());
    while src.remaining() > 0 && dst.remaining() > 0 && !cx.task.is_killed() {
        let step = src.take_vec(CHUNK.min(dst.remaining())).and_then(|data| Ok((dst.put(&data)?, data.len())));
        match step {
            Ok((0, _)) => break,
            Ok((n, wanted)) => {
                done += n as u64;
                if n < wanted {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(e) => return Err(e.into()),
        }
        turn.look().await;
    }
    Ok(done)
}

pub async fn readv(
    cx: &mut Ctx<'_>,
    pid: i32,
    liov: Addr,
    liovcnt: u64,
    riov: Addr,
    riovcnt: u64,
    flags: u64,
) -> SysResult {
    let Some(s) = sides(cx, pid, liov, liovcnt, riov, riovcnt, flags)? else { return Ok(0) };
    let own = cx.mem();
    copy(cx, &mut Src::user(&*s.mem.space, &s.remote, None), &mut Dst::user(&*own.space, &s.local, None)).await
}

pub async fn writev(
    cx: &mut Ctx<'_>,
    pid: i32,
    liov: Addr,
    liovcnt: u64,
    riov: Addr,
    riovcnt: u64,
    flags: u64,
) -> SysResult {
    let Some(s) = sides(cx, pid, liov, liovcnt, riov, riovcnt, flags)? else { return Ok(0) };
    let own = cx.mem();
    copy(cx, &mut Src::user(&*own.space, &s.local, None), &mut Dst::user(&*s.mem.space, &s.remote, None)).await
}
