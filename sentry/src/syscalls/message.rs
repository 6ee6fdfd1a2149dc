//! sendto(2), sendmsg(2), sendmmsg(2), recvfrom(2), recvmsg(2), recvmmsg(2).

use super::arg::*;
use super::io::{blocking, deadline, sigpipe};
use super::socket::{read_addr, sock_file, write_addr};
use super::{Ctx, MAX_RW_COUNT};
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysError, SysResult};
use crate::fs::File;
use crate::kernel::wait::Turn;
use crate::mm::io::{iov_len, skip, IoVec};
use crate::net::scm::{Control, Scm, MAX_CONTROL};
use crate::net::{socket, RecvMsg, SendMsg};
use crate::time::clock::UserTimespec;
use platform::executor::now_ns;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `struct user_msghdr`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct MsgHdr {
    name: u64,
    namelen: i32,
    _pad: u32,
    iov: u64,
    iovlen: u64,
    control: u64,
    controllen: u64,
    flags: i32,
    _pad2: u32,
}

const NAMELEN_AT: u64 = 8;
const CONTROLLEN_AT: u64 = 40;
const FLAGS_AT: u64 = 48;
/// `struct mmsghdr`: the header, the length, padding.
const MMSG_SIZE: u64 = 64;
const MMSG_LEN_AT: u64 = 56;
const SOCKADDR_MAX: i32 = 128;
const UIO_MAXIOV: u64 = 1024;

impl MsgHdr {
    fn read(cx: &Ctx<'_>, at: Addr) -> Result<(MsgHdr, Vec<IoVec>)> {
        let mut h: MsgHdr = cx.read(at.0)?;
        if h.name == 0 {
            h.namelen = 0;
        }
        if h.namelen < 0 {
            return Err(Errno::EINVAL);
        }
        h.namelen = h.namelen.min(SOCKADDR_MAX);
        if h.iovlen > UIO_MAXIOV {
            return Err(Errno::EMSGSIZE);
        }
        let iov = cx.read_iov(h.iov, h.iovlen as usize)?;
        Ok((h, iov))
    }
}

/// Sends one message, or all bytes of a stream.
async fn do_send(cx: &mut Ctx<'_>, file: &Arc<File>, iov: &[IoVec], mut msg: SendMsg) -> SysResult {
    let s = socket::of(file)?;
    let nonblock = file.nonblocking() || msg.flags & libc::MSG_DONTWAIT != 0;
    let deadline = deadline(file, true);
    let total = iov_len(iov);
    let mut done = 0;
    let mut rest = None;
    loop {
        let part = rest.as_deref().unwrap_or(iov);
        let m = &mut msg;
        let r = blocking(cx, file, PollEvents::WRITE_WAIT, deadline, nonblock, |cx| {
            Ok(cx.with_src(part, |src| s.proto.send(s, src, m))?)
        })
        .await;
        match r {
            Ok(n) => {
                done += n;
                if done >= total || n == 0 || nonblock || !s.is_stream() {
                    return Ok(done as u64);
                }
                rest = Some(skip(iov, done));
            }
            Err(e) => {
                if e == SysError::Errno(Errno::EPIPE) && s.is_stream() && msg.flags & libc::MSG_NOSIGNAL == 0 {
                    sigpipe(cx.task);
                }
                return if done > 0 { Ok(done as u64) } else { Err(e) };
            }
        }
    }
}

/// Receives one message, or the available bytes of a stream (all requested ones with `MSG_WAITALL`).
async fn do_recv(cx: &mut Ctx<'_>, file: &Arc<File>, iov: &[IoVec], msg: &mut RecvMsg) -> SysResult<usize> {
    let s = socket::of(file)?;
    let nonblock = file.nonblocking() || msg.flags & (libc::MSG_DONTWAIT | libc::MSG_ERRQUEUE) != 0;
    let deadline = deadline(file, false);
    let total = iov_len(iov);
    msg.discard = s.is_stream() && s.domain != libc::AF_UNIX && msg.flags & libc::MSG_TRUNC != 0;
    let all = s.is_stream() && msg.flags & libc::MSG_WAITALL != 0 && msg.flags & libc::MSG_PEEK == 0;
    let mut done = 0;
    let mut rest = None;
    loop {
        let part = rest.as_deref().unwrap_or(iov);
        let m = &mut *msg;
        let r = blocking(cx, file, PollEvents::READ_WAIT, deadline, nonblock, |cx| {
            Ok(cx.with_dst(part, |dst| s.proto.recv(s, dst, m))?)
        })
        .await;
        match r {
            Ok(n) => {
                done += n;
                if !all || n == 0 || done >= total || nonblock || msg.marked {
                    return Ok(done);
                }
                rest = Some(skip(iov, done));
            }
            Err(_) if done > 0 => return Ok(done),
            Err(e) => return Err(e),
        }
    }
}

/// The return value of a receive: with `MSG_TRUNC`, the full length of a truncated message.
fn recv_value(flags: i32, msg: &RecvMsg, n: usize) -> u64 {
    if flags & libc::MSG_TRUNC != 0 {
        msg.real_len.max(n) as u64
    } else {
        n as u64
    }
}

pub async fn sendto(
    cx: &mut Ctx<'_>,
    fd: Fd,
    buf: Addr,
    len: usize,
    flags: i32,
    addr: Addr,
    addrlen: i32,
) -> SysResult {
    let file = sock_file(cx, fd)?;
    let addr = if addr.is_null() { None } else { Some(read_addr(cx, addr, addrlen)?) };
    let iov = [IoVec { addr: buf.0, len: len.min(MAX_RW_COUNT as usize) }];
    do_send(cx, &file, &iov, SendMsg { flags, addr, ..SendMsg::default() }).await
}

async fn sendmsg_one(cx: &mut Ctx<'_>, file: &Arc<File>, at: Addr, flags: i32) -> SysResult {
    let (h, iov) = MsgHdr::read(cx, at)?;
    let addr = if h.namelen > 0 { Some(read_addr(cx, Addr(h.name), h.namelen)?) } else { None };
    let mut scm = None;
    let mut control = Vec::new();
    if h.control != 0 && h.controllen > 0 {
        let n = usize::try_from(h.controllen).ok().filter(|&n| n <= MAX_CONTROL).ok_or(Errno::ENOBUFS)?;
        let mut raw = vec![0; n];
        cx.read_bytes(h.control, &mut raw)?;
        scm = Scm::parse(cx.task, &raw, &mut |level, kind, data| {
            control.push((level, kind, data.to_vec()));
            Ok(())
        })?;
    }
    do_send(cx, file, &iov, SendMsg { flags, addr, scm, control }).await
}

pub async fn sendmsg(cx: &mut Ctx<'_>, fd: Fd, msg: Addr, flags: i32) -> SysResult {
    let file = sock_file(cx, fd)?;
    sendmsg_one(cx, &file, msg, flags).await
}

/// Address of the `i`th header of a vector.
fn nth(vec: Addr, i: u64) -> Result<u64> {
    vec.0.checked_add(i * MMSG_SIZE).ok_or(Errno::EFAULT)
}

pub async fn sendmmsg(cx: &mut Ctx<'_>, fd: Fd, vec: Addr, n: u32, flags: i32) -> SysResult {
    let file = sock_file(cx, fd)?;
    let n = u64::from(n).min(UIO_MAXIOV);
    let mut turn = Turn::new();
    for i in 0..n {
        turn.next().await;
        let r: SysResult = async {
            let at = nth(vec, i)?;
            let sent = sendmsg_one(cx, &file, Addr(at), flags).await?;
            cx.write(at + MMSG_LEN_AT, &(sent as u32))?;
            Ok(0)
        }
        .await;
        match r {
            Ok(_) => {}
            Err(_) if i > 0 => return Ok(i),
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

pub async fn recvfrom(
    cx: &mut Ctx<'_>,
    fd: Fd,
    buf: Addr,
    len: usize,
    flags: i32,
    addr: Addr,
    addrlen: Addr,
) -> SysResult {
    let file = sock_file(cx, fd)?;
    let iov = [IoVec { addr: buf.0, len: len.min(MAX_RW_COUNT as usize) }];
    let mut msg = RecvMsg::new(flags);
    let n = do_recv(cx, &file, &iov, &mut msg).await?;
    if !addr.is_null() {
        write_addr(cx, addr, addrlen, msg.from.as_deref().unwrap_or(&[]))?;
    }
    Ok(recv_value(flags, &msg, n))
}

async fn recvmsg_one(cx: &mut Ctx<'_>, file: &Arc<File>, at: Addr, flags: i32) -> SysResult {
    let (h, iov) = MsgHdr::read(cx, at)?;
    let mut msg = RecvMsg::new(flags);
    let n = do_recv(cx, file, &iov, &mut msg).await?;
    if h.name != 0 {
        let from = msg.from.as_deref().unwrap_or(&[]);
        let room = (h.namelen as usize).min(from.len());
        cx.write_bytes(h.name, &from[..room])?;
        cx.write(at.0 + NAMELEN_AT, &(from.len() as i32))?;
    }
    let room = if h.control == 0 { 0 } else { usize::try_from(h.controllen).unwrap_or(usize::MAX).min(MAX_CONTROL) };
    let mut control = Control::new(room);
    let s = socket::of(file)?;
    if !s.is_stream() && msg.flags & libc::MSG_ERRQUEUE == 0 {
        timestamps(s, &mut control);
    }
    for (level, kind, data) in &msg.control {
        control.put(*level, *kind, data);
    }
    if let Some(scm) = msg.scm.take() {
        if let Some(c) = scm.cred {
            control.put(libc::SOL_SOCKET, libc::SCM_CREDENTIALS, c.seen_by(cx.task).as_bytes());
        }
        if !scm.files.is_empty() {
            control.put_files(cx.task, scm.files, flags & libc::MSG_CMSG_CLOEXEC != 0);
        }
    }
    let mut out = msg.out_flags | (flags & libc::MSG_CMSG_CLOEXEC);
    if control.truncated {
        out |= libc::MSG_CTRUNC;
    }
    if h.control != 0 {
        cx.write_bytes(h.control, &control.data)?;
    }
    cx.write(at.0 + CONTROLLEN_AT, &(control.data.len() as u64))?;
    cx.write(at.0 + FLAGS_AT, &out)?;
    Ok(recv_value(flags, &msg, n))
}

/// `SO_TIMESTAMP`, `SO_TIMESTAMPNS`: the time of the receive call.
fn timestamps(s: &socket::Socket, control: &mut Control) {
    use std::sync::atomic::Ordering::Relaxed;
    let ns = s.opts.timestamp_ns.load(Relaxed);
    if !ns && !s.opts.timestamp.load(Relaxed) {
        return;
    }
    let now = crate::fs::Timespec::now();
    let part = if ns { i64::from(now.nsec) } else { i64::from(now.nsec / 1000) };
    let mut v = now.sec.to_ne_bytes().to_vec();
    v.extend_from_slice(&part.to_ne_bytes());
    control.put(libc::SOL_SOCKET, if ns { libc::SO_TIMESTAMPNS } else { libc::SO_TIMESTAMP }, &v);
}

pub async fn recvmsg(cx: &mut Ctx<'_>, fd: Fd, msg: Addr, flags: i32) -> SysResult {
    let file = sock_file(cx, fd)?;
    recvmsg_one(cx, &file, msg, flags).await
}

pub async fn recvmmsg(cx: &mut Ctx<'_>, fd: Fd, vec: Addr, n: u32, flags: i32, timeout: Addr) -> SysResult {
    let file = sock_file(cx, fd)?;
    let deadline = match timeout.is_null() {
        true => None,
        false => Some(now_ns().saturating_add(cx.read::<UserTimespec>(timeout.0)?.to_ns()?)),
    };
    let n = u64::from(n).min(UIO_MAXIOV);
    let mut each = flags & !libc::MSG_WAITFORONE;
    let mut turn = Turn::new();
    for i in 0..n {
        turn.next().await;
        let r: SysResult = async {
            let at = nth(vec, i)?;
            let got = recvmsg_one(cx, &file, Addr(at), each).await?;
            cx.write(at + MMSG_LEN_AT, &(got as u32))?;
            Ok(0)
        }
        .await;
        match r {
            Ok(_) => {}
            Err(_) if i > 0 => return Ok(i),
            Err(e) => return Err(e),
        }
        if flags & libc::MSG_WAITFORONE != 0 {
            each |= libc::MSG_DONTWAIT;
        }
        // The deadline is checked only after a message (recvmmsg(2), BUGS).
        if deadline.is_some_and(|d| now_ns() >= d) {
            return Ok(i + 1);
        }
    }
    Ok(n)
}
