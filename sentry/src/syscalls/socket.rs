//! socket(2), bind(2), listen(2), accept(2), connect(2), names, options, shutdown.

use super::arg::*;
use super::pipe::{give_pair, install_pair};
use super::Ctx;
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysError, SysResult};
use crate::fs::File;
use crate::kernel::wait::WaitError;
use crate::net::{self, Connect};
use platform::executor::now_ns;
use std::sync::Arc;

const SOCKADDR_MAX: usize = 128;
const TYPE_MASK: i32 = 0xf;
/// Longest option value that is read.
const OPT_MAX: usize = 4096;

/// The open socket of a descriptor.
pub fn sock_file(cx: &Ctx<'_>, fd: Fd) -> Result<Arc<File>> {
    let file = cx.io_file(fd.0)?;
    net::socket::of(&file)?;
    Ok(file)
}

/// A `sockaddr` argument.
pub fn read_addr(cx: &Ctx<'_>, addr: Addr, len: i32) -> Result<Vec<u8>> {
    let len = usize::try_from(len).ok().filter(|&n| n <= SOCKADDR_MAX).ok_or(Errno::EINVAL)?;
    let mut v = vec![0; len];
    cx.read_bytes(addr.0, &mut v)?;
    Ok(v)
}

/// Stores a `sockaddr` result with its value-result length.
pub fn write_addr(cx: &mut Ctx<'_>, addr: Addr, len: Addr, value: &[u8]) -> Result<()> {
    let room: i32 = cx.read(len.0)?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let n = value.len().min(room);
    if n > 0 {
        cx.write_bytes(addr.0, &value[..n])?;
    }
    cx.write(len.0, &(value.len() as i32))
}

/// Splits the type argument into the type and the status flags.
fn split_type(kind: i32) -> Result<(i32, i32, bool)> {
    let flags = kind & !TYPE_MASK;
    if flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    Ok((kind & TYPE_MASK, flags & libc::SOCK_NONBLOCK, flags & libc::SOCK_CLOEXEC != 0))
}

pub fn socket(cx: &mut Ctx<'_>, domain: i32, kind: i32, protocol: i32) -> SysResult {
    let (kind, status, cloexec) = split_type(kind)?;
    let s = net::create(cx.task, domain, kind, protocol)?;
    Ok(cx.task.install_fd(s.file(status), cloexec)? as u64)
}

pub fn socketpair(cx: &mut Ctx<'_>, domain: i32, kind: i32, protocol: i32, fds: Addr) -> SysResult {
    let (kind, status, cloexec) = split_type(kind)?;
    let (a, b) = net::create_pair(cx.task, domain, kind, protocol)?;
    let pair = install_pair(cx, a.file(status), b.file(status), cloexec)?;
    give_pair(cx, fds, pair)
}

pub fn bind(cx: &mut Ctx<'_>, fd: Fd, addr: Addr, len: i32) -> SysResult {
    let file = sock_file(cx, fd)?;
    let addr = read_addr(cx, addr, len)?;
    let s = net::socket::of(&file)?;
    s.proto.bind(s, cx.task, &addr)?;
    Ok(0)
}

pub fn listen(cx: &mut Ctx<'_>, fd: Fd, backlog: i32) -> SysResult {
    let file = sock_file(cx, fd)?;
    let s = net::socket::of(&file)?;
    s.proto.listen(s, cx.task, backlog)?;
    Ok(0)
}

async fn do_accept(cx: &mut Ctx<'_>, fd: Fd, addr: Addr, len: Addr, flags: i32) -> SysResult {
    if flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let file = sock_file(cx, fd)?;
    let s = net::socket::of(&file)?;
    let got = match s.proto.accept(s) {
        Err(Errno::EAGAIN) if !file.nonblocking() => {
            let deadline = s.timeout(false).map(|t| now_ns().saturating_add(t));
            let r = cx
                .task
                .wait_exclusive(s.proto.queue(), PollEvents::IN, deadline, || match s.proto.accept(s) {
                    Err(Errno::EAGAIN) => None,
                    r => Some(r),
                })
                .await;
            match r {
                Ok(r) => r?,
                Err(WaitError::Interrupted) => return Err(SysError::INTR),
                Err(WaitError::TimedOut) => return Err(Errno::EAGAIN.into()),
            }
        }
        r => r?,
    };
    let new = s.accepted(cx.task, got);
    if !addr.is_null() {
        let name = new.proto.accepted_from().unwrap_or_default();
        write_addr(cx, addr, len, &name)?;
    }
    let new = new.file(flags & libc::SOCK_NONBLOCK);
    Ok(cx.task.install_fd(new, flags & libc::SOCK_CLOEXEC != 0)? as u64)
}

pub async fn accept(cx: &mut Ctx<'_>, fd: Fd, addr: Addr, len: Addr) -> SysResult {
    do_accept(cx, fd, addr, len, 0).await
}

pub async fn accept4(cx: &mut Ctx<'_>, fd: Fd, addr: Addr, len: Addr, flags: i32) -> SysResult {
    do_accept(cx, fd, addr, len, flags).await
}

pub async fn connect(cx: &mut Ctx<'_>, fd: Fd, addr: Addr, len: i32) -> SysResult {
    let file = sock_file(cx, fd)?;
    let addr = read_addr(cx, addr, len)?;
    let s = net::socket::of(&file)?;
    let nonblock = file.nonblocking();
    let mut queue = match s.proto.connect(s, cx.task, &addr, nonblock, false)? {
        Connect::Done => return Ok(0),
        Connect::Wait(_) if nonblock => return Err(Errno::EAGAIN.into()),
        Connect::Wait(q) => q,
    };
    let deadline = s.timeout(true).map(|t| now_ns().saturating_add(t));
    loop {
        let task = cx.task;
        let r = task
            .wait(&[(&*queue, PollEvents::all())], deadline, || match s.proto.connect(s, task, &addr, false, true) {
                Ok(Connect::Wait(q)) if Arc::ptr_eq(&q, &queue) => None,
                r => Some(r),
            })
            .await;
        match r {
            Ok(Ok(Connect::Done)) => return Ok(0),
            Ok(Ok(Connect::Wait(q))) => queue = q,
            Ok(Err(e)) => return Err(e.into()),
            Err(WaitError::Interrupted) => return Err(SysError::INTR),
            Err(WaitError::TimedOut) if s.domain == libc::AF_UNIX => return Err(Errno::EAGAIN.into()),
            Err(WaitError::TimedOut) => return Err(Errno::EINPROGRESS.into()),
        }
    }
}

pub fn getsockname(cx: &mut Ctx<'_>, fd: Fd, addr: Addr, len: Addr) -> SysResult {
    let file = sock_file(cx, fd)?;
    let name = net::socket::of(&file)?.proto.local();
    write_addr(cx, addr, len, &name)?;
    Ok(0)
}

pub fn getpeername(cx: &mut Ctx<'_>, fd: Fd, addr: Addr, len: Addr) -> SysResult {
    let file = sock_file(cx, fd)?;
    let name = net::socket::of(&file)?.proto.peer()?;
    write_addr(cx, addr, len, &name)?;
    Ok(0)
}

pub fn shutdown(cx: &mut Ctx<'_>, fd: Fd, how: i32) -> SysResult {
    let file = sock_file(cx, fd)?;
    if !(libc::SHUT_RD..=libc::SHUT_RDWR).contains(&how) {
        return Err(Errno::EINVAL.into());
    }
    net::socket::of(&file)?.proto.shutdown(how)?;
    Ok(0)
}

pub fn setsockopt(cx: &mut Ctx<'_>, fd: Fd, level: i32, name: i32, value: Addr, len: i32) -> SysResult {
    let file = sock_file(cx, fd)?;
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?.min(OPT_MAX);
    let mut v = vec![0; len];
    cx.read_bytes(value.0, &mut v)?;
    net::socket::of(&file)?.set_opt(cx.task, level, name, &v)?;
    Ok(0)
}

pub fn getsockopt(cx: &mut Ctx<'_>, fd: Fd, level: i32, name: i32, value: Addr, len: Addr) -> SysResult {
    let file = sock_file(cx, fd)?;
    let room: i32 = cx.read(len.0)?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let v = net::socket::of(&file)?.get_opt(level, name)?;
    let n = v.len().min(room);
    cx.write_bytes(value.0, &v[..n])?;
    cx.write(len.0, &(n as i32))?;
    Ok(0)
}
