//! mq_open(2), mq_unlink(2), mq_timedsend(2), mq_timedreceive(2), mq_notify(2).

use super::arg::*;
use super::futex::{read_timespec, realtime_to_monotonic};
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::fs::File;
use crate::ipc::mqueue::{self, MqAttr, NotifyMethod, Queue, COOKIE_LEN, PRIO_MAX};
use crate::kernel::signal::NSIG;
use crate::mm::io::IoVec;
use std::sync::Arc;

fn read_attr(cx: &Ctx<'_>, addr: Addr) -> Result<Option<MqAttr>> {
    if addr.is_null() {
        return Ok(None);
    }
    let [flags, maxmsg, msgsize, curmsgs, ..]: [i64; 8] = cx.read(addr.0)?;
    Ok(Some(MqAttr { flags, maxmsg, msgsize, curmsgs }))
}

pub fn mq_open(cx: &mut Ctx<'_>, name: PathPtr, flags: i32, mode: Mode, attr: Addr) -> SysResult {
    let attr = read_attr(cx, attr)?;
    let name = cx.read_path(name.0)?;
    if name.is_empty() {
        return Err(Errno::ENOENT.into());
    }
    let file = cx.task.ns().ipc.mqueues.open(cx.task, &name, flags, mode.0, attr)?;
    Ok(cx.task.install_fd(file, true)? as u64)
}

pub fn mq_unlink(cx: &mut Ctx<'_>, name: PathPtr) -> SysResult {
    let name = cx.read_path(name.0)?;
    if name.is_empty() {
        return Err(Errno::ENOENT.into());
    }
    cx.task.ns().ipc.mqueues.unlink(&cx.task.cred(), &name)?;
    Ok(0)
}

/// The open queue, and the deadline (host monotonic ns).
fn begin(cx: &Ctx<'_>, fd: Fd, timeout: Addr, prio: u32) -> Result<(Arc<File>, Arc<Queue>, Option<u64>)> {
    let until = match timeout.is_null() {
        true => None,
        false => Some(realtime_to_monotonic(read_timespec(cx, timeout.0)?)),
    };
    if prio >= PRIO_MAX {
        return Err(Errno::EINVAL);
    }
    let file = cx.io_file(fd.0)?;
    let queue = mqueue::of(&file)?;
    Ok((file, queue, until))
}

pub async fn mq_timedsend(cx: &mut Ctx<'_>, fd: Fd, msg: Addr, len: usize, prio: u32, timeout: Addr) -> SysResult {
    let (file, queue, until) = begin(cx, fd, timeout, prio)?;
    if !file.writable() {
        return Err(Errno::EBADF.into());
    }
    if len > queue.msgsize() {
        return Err(Errno::EMSGSIZE.into());
    }
    let mut data = vec![0; len];
    cx.read_bytes(msg.0, &mut data)?;
    queue.send(cx.task, data, prio, file.nonblocking(), until).await?;
    Ok(0)
}

pub async fn mq_timedreceive(cx: &mut Ctx<'_>, fd: Fd, buf: Addr, len: usize, prio: Addr, timeout: Addr) -> SysResult {
    let (file, queue, until) = begin(cx, fd, timeout, 0)?;
    if !file.readable() {
        return Err(Errno::EBADF.into());
    }
    if len < queue.msgsize() {
        return Err(Errno::EMSGSIZE.into());
    }
    let (p, data) = queue.receive(cx.task, file.nonblocking(), until).await?;
    if !prio.is_null() {
        cx.write(prio.0, &p)?;
    }
    let iov = [IoVec { addr: buf.0, len: data.len() }];
    Ok(cx.with_dst(&iov, |dst| dst.put(&data))? as u64)
}

pub fn mq_notify(cx: &mut Ctx<'_>, fd: Fd, event: Addr) -> SysResult {
    let how = if event.is_null() {
        None
    } else {
        let [value, word, ..]: [u64; 8] = cx.read(event.0)?;
        let (signo, kind) = (word as i32, (word >> 32) as i32);
        Some(match kind {
            libc::SIGEV_NONE => NotifyMethod::Nothing,
            libc::SIGEV_SIGNAL if (1..=NSIG).contains(&signo) => NotifyMethod::Signal { signo, value },
            // The kernel notifies a thread through a socket that the C library made for it.
            libc::SIGEV_THREAD => {
                let mut cookie = [0; COOKIE_LEN];
                cx.read_bytes(value, &mut cookie)?;
                let socket = cx.io_file(signo)?;
                if crate::net::socket::of(&socket)?.domain != libc::AF_NETLINK {
                    return Err(Errno::EINVAL.into());
                }
                NotifyMethod::Thread { socket: Arc::downgrade(&socket), cookie }
            }
            _ => return Err(Errno::EINVAL.into()),
        })
    };
    let file = cx.io_file(fd.0)?;
    mqueue::of(&file)?.notify(cx.task, how)?;
    Ok(0)
}

pub fn mq_getsetattr(cx: &mut Ctx<'_>, fd: Fd, new: Addr, old: Addr) -> SysResult {
    let nonblock = i64::from(libc::O_NONBLOCK);
    let set = read_attr(cx, new)?;
    if set.is_some_and(|a| a.flags & !nonblock != 0) {
        return Err(Errno::EINVAL.into());
    }
    let file = cx.io_file(fd.0)?;
    let now = mqueue::of(&file)?.attr(&file);
    if let Some(a) = set {
        file.set_flags((file.flags() & !libc::O_NONBLOCK) | a.flags as i32);
    }
    if !old.is_null() {
        cx.write(old.0, &[now.flags, now.maxmsg, now.msgsize, now.curmsgs, 0, 0, 0, 0])?;
    }
    Ok(0)
}
