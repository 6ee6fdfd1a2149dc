//! Asynchronous I/O: io_setup(2), io_submit(2), io_cancel(2), io_getevents(2), io_destroy(2). The state is in
//! [`crate::kernel::aio`].

use super::arg::*;
use super::io::{blocking, deadline, was_read, write_iov_as};
use super::memory::{begin, check_as, finish, MAX_MAP_COUNT};
use super::poll::{swap_mask, unswap_mask};
use super::{Ctx, MAX_RW_COUNT};
use crate::abi::PollEvents;
use crate::error::{Errno, Restart, Result, SysError, SysResult};
use crate::fs::{eventfd::EventFd, File, NO_OFFSET};
use crate::kernel::aio::{Context, Event};
use crate::kernel::wait::{Turn, WaitError};
use crate::mm::io::{iov_len, Dst, IoVec};
use crate::mm::space::Map;
use crate::time::clock::UserTimespec;
use platform::executor::now_ns;
use platform::{Op, PAGE_SIZE};
use std::sync::Arc;

/// Name of the ring in `/proc/pid/maps`.
const LABEL: &str = "/[aio] (deleted)";
/// Most events that can be requested: half of what fits into a ring (`ioctx_alloc`).
const EVENTS_MAX: u32 = 0x1000_0000 / 32 / 2;
const IOCB_SIZE: usize = 64;
const FLAG_RESFD: u32 = 1;
const FLAG_IOPRIO: u32 = 2;
const RWF_DSYNC: i32 = 2;
const RWF_SYNC: i32 = 4;
const RWF_NOWAIT: i32 = 8;
const RWF_APPEND: i32 = 0x10;
/// `RWF_HIPRI` and the flags above.
const RWF_KNOWN: i32 = 1 | RWF_NOWAIT | RWF_DSYNC | RWF_SYNC | RWF_APPEND;

const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const FSYNC: u16 = 2;
const FDSYNC: u16 = 3;
const POLL: u16 = 5;
const PREADV: u16 = 7;
const PWRITEV: u16 = 8;

/// `struct iocb`.
struct Iocb {
    data: u64,
    rw_flags: i32,
    opcode: u16,
    fd: i32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: i32,
}

impl Iocb {
    fn read(cx: &Ctx<'_>, at: u64) -> Result<Self> {
        let w: [u64; IOCB_SIZE / 8] = cx.read(at)?;
        Ok(Iocb {
            data: w[0],
            rw_flags: (w[1] >> 32) as i32,
            opcode: w[2] as u16,
            fd: (w[2] >> 32) as i32,
            buf: w[3],
            nbytes: w[4],
            offset: w[5] as i64,
            reserved: w[6],
            flags: w[7] as u32,
            resfd: (w[7] >> 32) as i32,
        })
    }
}

fn find(cx: &Ctx<'_>, id: u64) -> Result<Arc<Context>> {
    cx.task.mm().aio.lock().get(&id).cloned().ok_or(Errno::EINVAL)
}

pub async fn io_setup(cx: &mut Ctx<'_>, events: u32, idp: Addr) -> SysResult {
    let old: u64 = cx.read(idp.0)?;
    if old != 0 || events == 0 || events > EVENTS_MAX {
        return Err(Errno::EINVAL.into());
    }
    let context = Context::new(cx.kernel(), events as usize)?;
    begin(cx).await;
    let mm = cx.task.mm();
    // The id is an address, at which libraries look for a ring of events that they could read without a call.
    // This page never has the ring's magic number, so they make the call.
    let at = {
        let mut map = mm.map();
        check_as(cx, &map, PAGE_SIZE)?;
        if map.vmas.count() >= MAX_MAP_COUNT {
            return Err(Errno::ENOMEM.into());
        }
        let at = map.find_room(PAGE_SIZE)?;
        map.vmas.insert(Map::anon(at, at + PAGE_SIZE, libc::PROT_READ | libc::PROT_WRITE, LABEL));
        at
    };
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    cx.thread.queue(Op::MapAnon { addr: at, len: PAGE_SIZE, prot, shared: false, flags: 0 });
    cx.undo = Some(super::Undo { start: at, end: at + PAGE_SIZE, brk: None });
    finish(cx);
    mm.aio.lock().insert(at, context);
    cx.write(idp.0, &at)?;
    Ok(0)
}

pub async fn io_destroy(cx: &mut Ctx<'_>, id: u64) -> SysResult {
    let mm = cx.task.mm();
    let context = mm.aio.lock().remove(&id).ok_or(Errno::EINVAL)?;
    context.destroy();
    begin(cx).await;
    let mut map = mm.map();
    if map.vmas.find(id).is_some_and(|v| v.start == id && v.label == LABEL) {
        map.vmas.remove(id, id + PAGE_SIZE);
        cx.thread.queue(Op::Unmap { addr: id, len: PAGE_SIZE });
        drop(map);
        finish(cx);
    }
    Ok(0)
}

/// A read directly into memory: another thread may fetch the event before this call returns.
async fn read(cx: &mut Ctx<'_>, file: Arc<File>, iov: &[IoVec], at: u64, flags: i32) -> SysResult {
    let once = |cx: &mut Ctx<'_>, at| {
        let space = cx.space();
        file.ops.read(&file, &mut Dst::user(&*space, iov, None), at)
    };
    let nonblock = flags & RWF_NOWAIT != 0 || file.nonblocking();
    let n = if file.ops.seekable() {
        cx.in_chunk(iov_len(iov), |cx| once(cx, at)).await?
    } else {
        blocking(cx, &file, PollEvents::READ_WAIT, deadline(&file, false), nonblock, |cx| once(cx, NO_OFFSET)).await?
    };
    was_read(&file, n);
    Ok(n as u64)
}

async fn write(cx: &mut Ctx<'_>, file: Arc<File>, iov: &[IoVec], at: u64, flags: i32) -> SysResult {
    let append = (flags & RWF_APPEND != 0).then_some(true);
    let n = if file.ops.seekable() {
        super::fs_rw::write_file_at(cx, &file, iov, at, append).await?
    } else {
        write_iov_as(cx, file.clone(), iov, append).await?
    };
    if flags & (RWF_DSYNC | RWF_SYNC) != 0 {
        file.ops.fsync(flags & RWF_SYNC == 0)?;
    }
    Ok(n)
}

/// Carries out a request. The outer result is the submission's, the inner one the request's; `None`: still in
/// progress.
async fn carry_out(
    cx: &mut Ctx<'_>,
    context: &Arc<Context>,
    cb: &Iocb,
    obj: u64,
    eventfd: &Option<Arc<File>>,
) -> Result<Option<SysResult>> {
    let file = cx.io_file(cb.fd)?;
    cx.write_now(obj + 8, &0u32)?;
    let vector = matches!(cb.opcode, PREADV | PWRITEV);
    match cb.opcode {
        PREAD | PREADV | PWRITE | PWRITEV => {
            let writes = matches!(cb.opcode, PWRITE | PWRITEV);
            if cb.rw_flags & !RWF_KNOWN != 0 || cb.rw_flags & RWF_APPEND != 0 && !writes {
                return Err(Errno::EOPNOTSUPP);
            }
            if !if writes { file.writable() } else { file.readable() } {
                return Err(Errno::EBADF);
            }
            let iov = if vector {
                cx.read_iov(cb.buf, usize::try_from(cb.nbytes).map_err(|_| Errno::EINVAL)?)?
            } else {
                vec![IoVec { addr: cb.buf, len: cb.nbytes.min(MAX_RW_COUNT) as usize }]
            };
            let seeks = file.ops.seekable();
            let at = if seeks { u64::try_from(cb.offset).map_err(|_| Errno::EINVAL)? } else { NO_OFFSET };
            let r = match writes {
                true => write(cx, file, &iov, at, cb.rw_flags).await,
                false => read(cx, file, &iov, at, cb.rw_flags).await,
            };
            Ok(Some(r))
        }
        FSYNC | FDSYNC => {
            if cb.buf != 0 || cb.offset != 0 || cb.nbytes != 0 || cb.rw_flags != 0 {
                return Err(Errno::EINVAL);
            }
            match file.ops.fsync(cb.opcode == FDSYNC) {
                // If the file cannot be synced at all, the submission fails.
                Err(Errno::EINVAL) => Err(Errno::EINVAL),
                r => Ok(Some(r.map(|()| 0).map_err(SysError::from))),
            }
        }
        POLL => {
            let events = u16::try_from(cb.buf).map_err(|_| Errno::EINVAL)?;
            if cb.offset != 0 || cb.nbytes != 0 || cb.rw_flags != 0 {
                return Err(Errno::EINVAL);
            }
            let event = Event { data: cb.data, obj, res: 0 };
            context.poll(cx.kernel(), file, PollEvents::from_raw(events.into()), event, eventfd.clone());
            Ok(None)
        }
        _ => Err(Errno::EINVAL),
    }
}

async fn submit_one(cx: &mut Ctx<'_>, context: &Arc<Context>, obj: u64) -> Result<()> {
    let cb = Iocb::read(cx, obj)?;
    if cb.reserved != 0 || cb.nbytes > i64::MAX as u64 || cb.flags & !(FLAG_RESFD | FLAG_IOPRIO) != 0 {
        return Err(Errno::EINVAL);
    }
    // The notified descriptor must be an eventfd; an invalid descriptor of the file itself is reported first.
    cx.io_file(cb.fd)?;
    let eventfd = if cb.flags & FLAG_RESFD != 0 {
        let f = cx.io_file(cb.resfd)?;
        if !f.ops.as_any().is::<EventFd>() {
            return Err(Errno::EINVAL);
        }
        Some(f)
    } else {
        None
    };
    context.reserve()?;
    match carry_out(cx, context, &cb, obj, &eventfd).await {
        Ok(Some(r)) => {
            let res = match r {
                Ok(n) => n as i64,
                Err(SysError::Errno(e)) => -(e as i32 as i64),
                // Such a call cannot be restarted.
                Err(SysError::Restart(_)) => -(Errno::EINTR as i32 as i64),
            };
            context.complete(Event { data: cb.data, obj, res }, eventfd.as_deref());
            Ok(())
        }
        Ok(None) => Ok(()),
        Err(e) => {
            context.release();
            Err(e)
        }
    }
}

pub async fn io_submit(cx: &mut Ctx<'_>, id: u64, n: i64, list: Addr) -> SysResult {
    if n < 0 {
        return Err(Errno::EINVAL.into());
    }
    let context = find(cx, id)?;
    let mut turn = Turn::new();
    for i in 0..n as u64 {
        let one = async {
            let at = list.0.checked_add(i.checked_mul(8).ok_or(Errno::EFAULT)?).ok_or(Errno::EFAULT)?;
            let obj: u64 = cx.read(at)?;
            submit_one(cx, &context, obj).await
        };
        match one.await {
            Ok(()) => {}
            Err(_) if i > 0 => return Ok(i),
            Err(e) => return Err(e.into()),
        }
        if cx.task.signal_pending() {
            // The rest can be submitted again.
            return Ok(i + 1);
        }
        turn.look().await;
    }
    Ok(n as u64)
}

pub fn io_cancel(cx: &mut Ctx<'_>, id: u64, iocb: Addr, _result: Addr) -> SysResult {
    let key: u32 = cx.read(iocb.0.checked_add(8).ok_or(Errno::EFAULT)?)?;
    if key != 0 {
        return Err(Errno::EINVAL.into());
    }
    // The event is fetched like any other.
    Err(if find(cx, id)?.cancel(iocb.0) { Errno::EINPROGRESS } else { Errno::EINVAL }.into())
}

fn read_timeout(cx: &Ctx<'_>, timeout: Addr) -> Result<Option<u64>> {
    if timeout.is_null() {
        return Ok(None);
    }
    let ns = cx.read::<UserTimespec>(timeout.0)?.to_ns()?;
    Ok(Some(now_ns().saturating_add(ns)))
}

async fn fetch(cx: &mut Ctx<'_>, id: u64, min: i64, max: i64, events: Addr, deadline: Option<u64>) -> SysResult {
    let context = find(cx, id)?;
    let (min, max) = match (usize::try_from(min), usize::try_from(max)) {
        (Ok(min), Ok(max)) if min <= max => (min, max),
        _ => return Err(Errno::EINVAL.into()),
    };
    let task = cx.task.clone();
    let mut interrupted = false;
    if !context.has(min) {
        let r = task.wait(&[(&context.queue, PollEvents::all())], deadline, || context.has(min).then_some(())).await;
        interrupted = r == Err(WaitError::Interrupted);
    }
    let got = context.take(max);
    let raw: Vec<u64> = got.iter().flat_map(|e| [e.data, e.obj, e.res as u64, 0]).collect();
    let bytes: Vec<u8> = raw.iter().flat_map(|w| w.to_le_bytes()).collect();
    if let Err(e) = cx.mem().write_bytes(events.0, &bytes) {
        context.put_back(got);
        return Err(e.into());
    }
    if got.is_empty() && interrupted {
        return Err(Errno::EINTR.into());
    }
    Ok(got.len() as u64)
}

pub async fn io_getevents(cx: &mut Ctx<'_>, id: u64, min: i64, max: i64, events: Addr, timeout: Addr) -> SysResult {
    let deadline = read_timeout(cx, timeout)?;
    fetch(cx, id, min, max, events, deadline).await
}

pub async fn io_pgetevents(
    cx: &mut Ctx<'_>,
    id: u64,
    min: i64,
    max: i64,
    events: Addr,
    timeout: Addr,
    sig: Addr,
) -> SysResult {
    let deadline = read_timeout(cx, timeout)?;
    if !sig.is_null() {
        let [mask, size]: [u64; 2] = cx.read(sig.0)?;
        swap_mask(cx, Addr(mask), usize::try_from(size).map_err(|_| Errno::EINVAL)?)?;
    }
    let r = match fetch(cx, id, min, max, events, deadline).await {
        // The signal handler runs under the mask of the call.
        Err(SysError::Errno(Errno::EINTR)) => Err(SysError::Restart(Restart::NoHand)),
        r => r,
    };
    unswap_mask(cx, &r);
    r
}
