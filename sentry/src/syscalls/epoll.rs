//! epoll_create(2), epoll_ctl(2), epoll_wait(2).

use super::arg::*;
use super::poll::{swap_mask, unswap_mask};
use super::Ctx;
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysResult};
use crate::fs::epoll::{self, Epoll, Event, Round};
use crate::kernel::wait::{yield_now, WaitError};
use crate::time::clock::UserTimespec;
use platform::executor::now_ns;

/// `struct epoll_event` is packed on x86-64.
const EVENT_SIZE: usize = 12;

pub fn epoll_create(cx: &mut Ctx<'_>, size: i32) -> SysResult {
    if size <= 0 {
        return Err(Errno::EINVAL.into());
    }
    epoll_create1(cx, 0)
}

pub fn epoll_create1(cx: &mut Ctx<'_>, flags: i32) -> SysResult {
    if flags & !libc::EPOLL_CLOEXEC != 0 {
        return Err(Errno::EINVAL.into());
    }
    Ok(cx.task.install_fd(epoll::new(), flags & libc::EPOLL_CLOEXEC != 0)? as u64)
}

pub fn epoll_ctl(cx: &mut Ctx<'_>, epfd: Fd, op: i32, fd: Fd, event: Addr) -> SysResult {
    let mut ev = (0, 0);
    if op != libc::EPOLL_CTL_DEL {
        let raw: [u8; EVENT_SIZE] = cx.read(event.0)?;
        let [a, b, c, d, data @ ..] = raw;
        ev = (u32::from_ne_bytes([a, b, c, d]), u64::from_ne_bytes(data));
    }
    let epfile = cx.io_file(epfd.0)?;
    let file = cx.io_file(fd.0)?;
    if file.ops.wait_queue().is_none() {
        return Err(Errno::EPERM.into());
    }
    let Some(ep) = epoll::of(&epfile) else { return Err(Errno::EINVAL.into()) };
    if std::sync::Arc::ptr_eq(&epfile, &file) {
        return Err(Errno::EINVAL.into());
    }
    match op {
        libc::EPOLL_CTL_ADD => ep.add(&file, fd.0, ev)?,
        libc::EPOLL_CTL_MOD => ep.modify(&file, fd.0, ev)?,
        libc::EPOLL_CTL_DEL => ep.delete(&file, fd.0)?,
        _ => return Err(Errno::EINVAL.into()),
    }
    Ok(0)
}

/// Goes through the rest of a round, with all others in between.
async fn harvest(cx: &Ctx<'_>, ep: &Epoll, mut round: Round) -> Result<Vec<Event>> {
    while !ep.harvest(&mut round) {
        if cx.task.is_killed() {
            return Err(Errno::EINTR);
        }
        yield_now().await;
    }
    Ok(round.events)
}

async fn do_wait(cx: &mut Ctx<'_>, epfd: Fd, events: Addr, max: i32, deadline_ns: Option<u64>) -> SysResult {
    let max =
        usize::try_from(max).ok().filter(|&m| m > 0 && m <= i32::MAX as usize / EVENT_SIZE).ok_or(Errno::EINVAL)?;
    let file = cx.io_file(epfd.0)?;
    let ep = epoll::of(&file).ok_or(Errno::EINVAL)?;
    let mut got = harvest(cx, ep, ep.begin(max)).await?;
    while got.is_empty() && deadline_ns != Some(0) {
        let r = cx
            .task
            .wait_exclusive(ep.queue(), PollEvents::IN, deadline_ns, || {
                let mut round = ep.begin(max);
                let done = ep.harvest(&mut round);
                (!done || !round.events.is_empty()).then_some(round)
            })
            .await;
        got = match r {
            Ok(round) => harvest(cx, ep, round).await?,
            Err(WaitError::TimedOut) => return Ok(0),
            Err(WaitError::Interrupted) => return Err(Errno::EINTR.into()),
        };
    }
    let mut raw = Vec::with_capacity(got.len() * EVENT_SIZE);
    for (events, data) in &got {
        raw.extend_from_slice(&events.to_ne_bytes());
        raw.extend_from_slice(&data.to_ne_bytes());
    }
    cx.write_bytes(events.0, &raw)?;
    Ok(got.len() as u64)
}

/// Deadline of a timeout in milliseconds; `Some(0)`: no wait.
pub fn deadline_ms(timeout: i32) -> Option<u64> {
    match timeout {
        0 => Some(0),
        t => u64::try_from(t).ok().map(|t| now_ns().saturating_add(t * 1_000_000)),
    }
}

pub async fn epoll_wait(cx: &mut Ctx<'_>, epfd: Fd, events: Addr, max: i32, timeout: i32) -> SysResult {
    do_wait(cx, epfd, events, max, deadline_ms(timeout)).await
}

pub async fn epoll_pwait(
    cx: &mut Ctx<'_>,
    epfd: Fd,
    events: Addr,
    max: i32,
    timeout: i32,
    mask: Addr,
    size: usize,
) -> SysResult {
    swap_mask(cx, mask, size)?;
    let r = do_wait(cx, epfd, events, max, deadline_ms(timeout)).await;
    unswap_mask(cx, &r);
    r
}

pub async fn epoll_pwait2(
    cx: &mut Ctx<'_>,
    epfd: Fd,
    events: Addr,
    max: i32,
    timeout: Addr,
    mask: Addr,
    size: usize,
) -> SysResult {
    let deadline = if timeout.is_null() {
        None
    } else {
        match cx.read::<UserTimespec>(timeout.0)?.to_ns()? {
            0 => Some(0),
            ns => Some(now_ns().saturating_add(ns)),
        }
    };
    swap_mask(cx, mask, size)?;
    let r = do_wait(cx, epfd, events, max, deadline).await;
    unswap_mask(cx, &r);
    r
}
