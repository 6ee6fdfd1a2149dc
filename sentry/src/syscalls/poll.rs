//! poll(2), ppoll(2), select(2), pselect6(2).

use super::arg::*;
use super::epoll::deadline_ms;
use super::Ctx;
use crate::abi::PollEvents;
use crate::error::{Errno, Restart, Result, SysError, SysResult};
use crate::fs::File;
use crate::kernel::signal::SigSet;
use crate::kernel::task::RestartBlock;
use crate::kernel::wait::{Turn, WaitError, WaitQueue, Waiter};
use crate::time::clock::{UserTimespec, UserTimeval};
use platform::budget::{Budget, Charge};
use platform::executor::now_ns;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Replaces the caller's signal mask for the length of the call, if one is given (`ppoll`, `pselect6`, `epoll_pwait`).
pub fn swap_mask(cx: &Ctx<'_>, mask: Addr, size: usize) -> Result<()> {
    if mask.is_null() {
        return Ok(());
    }
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let new = SigSet(cx.read::<u64>(mask.0)?).minus(SigSet::UNBLOCKABLE);
    cx.task.change_mask(|s| s.saved_mask = Some(std::mem::replace(&mut s.mask, new)));
    Ok(())
}

/// Puts the mask back, unless a signal ended the call: then its delivery does.
pub fn unswap_mask(cx: &Ctx<'_>, r: &SysResult) {
    if matches!(r, Err(SysError::Restart(_) | SysError::Errno(Errno::EINTR))) {
        return;
    }
    cx.task.restore_mask();
}

/// One file that is asked, and for what.
struct Asked {
    file: Option<Arc<File>>,
    events: PollEvents,
    got: PollEvents,
}

/// Files that are asked while all others wait.
const FEW: usize = 4096;

/// Files that all calls with more than [`FEW`] ask together.
const MOST: usize = 4 << 20;
static MANY: Budget = Budget::new(MOST as u64);

/// The part of [`MANY`] of a call that asks `n` files.
fn share(n: usize) -> Result<Charge> {
    MANY.take(if n <= FEW { 0 } else { n as u64 }).ok_or(Errno::ENOMEM)
}

/// Fills in what is ready; true if anything is.
fn scan(asked: &mut [Asked]) -> bool {
    let mut any = false;
    for a in asked {
        if let Some(f) = &a.file {
            a.got = f.poll() & (a.events | PollEvents::ALWAYS);
        }
        any |= !a.got.is_empty();
    }
    any
}

/// As `scan`, of any number.
async fn scan_all(cx: &Ctx<'_>, asked: &mut [Asked]) -> std::result::Result<bool, WaitError> {
    let (mut any, mut turn) = (false, Turn::new());
    for part in asked.chunks_mut(FEW / 64) {
        any |= scan(part);
        turn.look().await;
        if cx.task.is_killed() {
            return Err(WaitError::Interrupted);
        }
    }
    Ok(any)
}

/// So often one call may be in one queue.
const DOUBLES: usize = 8;

/// Makes one of several registrations with one queue, so that it gets no longer for them.
fn join_doubles(queues: &mut Vec<(&WaitQueue, PollEvents)>) {
    queues.sort_unstable_by_key(|(q, _)| std::ptr::from_ref::<WaitQueue>(q));
    queues.dedup_by(|(b, events), (a, all)| {
        let same = std::ptr::eq::<WaitQueue>(*a, *b);
        if same {
            *all |= *events;
        }
        same
    });
}

/// Waits until something is ready. `Some(0)`: looks only.
async fn wait_any(cx: &Ctx<'_>, asked: &mut [Asked], deadline_ns: Option<u64>) -> std::result::Result<(), WaitError> {
    if asked.len() > FEW {
        return wait_many(cx, asked, deadline_ns).await;
    }
    if scan(asked) || deadline_ns == Some(0) {
        return Ok(());
    }
    let files: Vec<(Arc<File>, PollEvents)> =
        asked.iter().filter_map(|a| a.file.clone().map(|f| (f, a.events | PollEvents::ALWAYS))).collect();
    let mut queues: Vec<(&WaitQueue, PollEvents)> =
        files.iter().filter_map(|(f, ev)| f.ops.wait_queue().map(|q| (q, *ev))).collect();
    if queues.len() > DOUBLES {
        join_doubles(&mut queues);
    }
    match cx.task.wait(&queues, deadline_ns, || scan(asked).then_some(())).await {
        Err(WaitError::Interrupted) => Err(WaitError::Interrupted),
        Ok(()) | Err(WaitError::TimedOut) => Ok(()),
    }
}

/// Something has happened to one of many files.
#[derive(Default)]
struct Stirred {
    yes: AtomicBool,
    queue: WaitQueue,
}

impl Waiter for Stirred {
    fn wake(&self, events: PollEvents) {
        if !self.yes.swap(true, Ordering::SeqCst) {
            self.queue.wake(events);
        }
    }
}

/// Registrations with the queues of many files; they end in parts, unless the call is given up.
struct Many {
    files: Vec<(Arc<File>, u64)>,
}

impl Many {
    fn end_some(&mut self, n: usize) {
        let from = self.files.len().saturating_sub(n);
        for (f, id) in self.files.drain(from..) {
            if let Some(q) = f.ops.wait_queue() {
                q.remove(id);
            }
        }
    }
}

impl Drop for Many {
    fn drop(&mut self) {
        self.end_some(usize::MAX);
    }
}

/// As `wait_any`, with all others in between.
async fn wait_many(cx: &Ctx<'_>, asked: &mut [Asked], deadline_ns: Option<u64>) -> std::result::Result<(), WaitError> {
    if scan_all(cx, asked).await? || deadline_ns == Some(0) {
        return Ok(());
    }
    let stirred = Arc::new(Stirred::default());
    let mut many = Many { files: Vec::new() };
    let mut turn = Turn::new();
    // A file that is asked several times is registered once, so that its queue gets no longer for it.
    let mut files: BTreeMap<usize, (Arc<File>, PollEvents)> = BTreeMap::new();
    for a in asked.iter() {
        if let Some(f) = &a.file {
            files.entry(Arc::as_ptr(f) as usize).or_insert_with(|| (f.clone(), PollEvents::empty())).1 |=
                a.events | PollEvents::ALWAYS;
        }
        turn.next().await;
    }
    for (f, events) in files.into_values() {
        if let Some(id) = f.ops.wait_queue().map(|q| q.add(events, stirred.clone())) {
            many.files.push((f, id));
        }
        turn.next().await;
    }
    let r = loop {
        stirred.yes.store(false, Ordering::SeqCst);
        match scan_all(cx, asked).await {
            Ok(false) => {}
            Ok(true) => break Ok(()),
            Err(e) => break Err(e),
        }
        let stir = || stirred.yes.load(Ordering::SeqCst).then_some(());
        match cx.task.wait(&[(&stirred.queue, PollEvents::all())], deadline_ns, stir).await {
            Ok(()) => {}
            Err(WaitError::TimedOut) => break Ok(()),
            Err(e) => break Err(e),
        }
    };
    while !many.files.is_empty() {
        many.end_some(FEW / 16);
        turn.look().await;
    }
    r
}

/// poll(2) with the deadline already made: also what `restart_syscall` goes on with.
pub async fn do_poll(cx: &mut Ctx<'_>, fds: u64, nfds: u64, deadline_ns: Option<u64>) -> SysResult {
    let n = usize::try_from(nfds).map_err(|_| Errno::EINVAL)?;
    if nfds > cx.task.limit(libc::RLIMIT_NOFILE).min(crate::kernel::fdtable::NR_OPEN as u64) {
        return Err(Errno::EINVAL.into());
    }
    let _share = share(n)?;
    let mut raw = vec![0u8; n * 8];
    cx.read_bytes(fds, &mut raw)?;
    let mut asked = Vec::with_capacity(n);
    {
        let table = cx.task.files();
        let mut turn = Turn::new();
        for r in raw.chunks_exact(8) {
            turn.next().await;
            let fd = i32::from_ne_bytes([r[0], r[1], r[2], r[3]]);
            let events = PollEvents::from_raw(u16::from_ne_bytes([r[4], r[5]]).into());
            let file = if fd < 0 { None } else { table.get_io(fd).ok() };
            let got = if fd >= 0 && file.is_none() { PollEvents::NVAL } else { PollEvents::empty() };
            asked.push(Asked { file, events, got });
        }
    }
    wait_any(cx, &mut asked, deadline_ns).await.map_err(|_| SysError::Restart(Restart::Block))?;
    let mut count = 0;
    let mut turn = Turn::new();
    for (a, r) in asked.iter_mut().zip(raw.chunks_exact_mut(8)) {
        count += u64::from(!a.got.is_empty());
        r[6..8].copy_from_slice(&(a.got.bits() as u16).to_ne_bytes());
        a.file = None;
        turn.next().await;
    }
    cx.write_bytes(fds, &raw)?;
    Ok(count)
}

pub async fn poll(cx: &mut Ctx<'_>, fds: Addr, nfds: u32, timeout: i32) -> SysResult {
    let deadline_ns = deadline_ms(timeout);
    let r = do_poll(cx, fds.0, nfds.into(), deadline_ns).await;
    if r == Err(SysError::Restart(Restart::Block)) {
        *cx.task.restart_block.lock() = Some(RestartBlock::Poll { fds: fds.0, nfds: nfds.into(), deadline_ns });
    }
    r
}

/// A relative timeout and its deadline (`Some(0)`: do not wait).
fn deadline_of(ns: u64) -> u64 {
    if ns == 0 {
        0
    } else {
        now_ns().saturating_add(ns)
    }
}

fn left_of(deadline_ns: u64) -> u64 {
    if deadline_ns == 0 {
        0
    } else {
        deadline_ns.saturating_sub(now_ns())
    }
}

/// With the personality `STICKY_TIMEOUTS`, the rest of the time is not stored.
fn sticky(cx: &Ctx<'_>) -> bool {
    const STICKY_TIMEOUTS: u32 = 0x400_0000;
    cx.task.attrs.personality.load(Ordering::Relaxed) & STICKY_TIMEOUTS != 0
}

pub async fn ppoll(cx: &mut Ctx<'_>, fds: Addr, nfds: u32, timeout: Addr, mask: Addr, size: usize) -> SysResult {
    let deadline = match timeout.is_null() {
        true => None,
        false => Some(deadline_of(cx.read::<UserTimespec>(timeout.0)?.to_ns()?)),
    };
    swap_mask(cx, mask, size)?;
    let mut r = do_poll(cx, fds.0, nfds.into(), deadline).await;
    if r == Err(SysError::Restart(Restart::Block)) {
        r = Err(SysError::Restart(Restart::NoHand));
    }
    unswap_mask(cx, &r);
    if let Some(d) = deadline.filter(|_| !sticky(cx)) {
        // The rest is written on success only as a courtesy; a fault there is not the call's.
        let _ = cx.write_now(timeout.0, &UserTimespec::from_ns(left_of(d)));
    }
    r
}

const SEL_IN: PollEvents = PollEvents::READABLE.union(PollEvents::RDBAND).union(PollEvents::ALWAYS);
const SEL_OUT: PollEvents = PollEvents::SOCKET_WRITABLE.union(PollEvents::ERR);
const SEL_EX: PollEvents = PollEvents::PRI;

async fn do_select(cx: &mut Ctx<'_>, n: i32, sets: [Addr; 3], deadline_ns: Option<u64>) -> SysResult {
    let n = usize::try_from(n).map_err(|_| Errno::EINVAL)?.min(crate::kernel::fdtable::NR_OPEN);
    let bytes = n.div_ceil(64) * 8;
    let mut want: [Vec<u8>; 3] = Default::default();
    for (w, at) in want.iter_mut().zip(sets) {
        if !at.is_null() {
            *w = vec![0; bytes];
            cx.read_bytes(at.0, w)?;
        }
    }
    let bit = |set: &[u8], i: usize| set.get(i / 8).is_some_and(|b| b & (1 << (i % 8)) != 0);
    let mut asked = Vec::new();
    let mut which = Vec::new();
    {
        let table = cx.task.files();
        let mut turn = Turn::new();
        for i in 0..n {
            turn.next().await;
            if i % 8 == 0 && want.iter().all(|w| w.get(i / 8).is_none_or(|b| *b == 0)) {
                continue;
            }
            let on = [bit(&want[0], i), bit(&want[1], i), bit(&want[2], i)];
            if on == [false; 3] {
                continue;
            }
            let file = table.get_io(i as i32)?;
            let mut events = PollEvents::empty();
            for (on, ev) in on.iter().zip([SEL_IN, SEL_OUT, SEL_EX]) {
                if *on {
                    events |= ev;
                }
            }
            asked.push(Asked { file: Some(file), events, got: PollEvents::empty() });
            which.push((i, on));
        }
    }
    let _share = share(asked.len())?;
    // POLLHUP and POLLERR count only for the sets that name them.
    let relevant = |asked: &mut [Asked]| {
        for a in asked.iter_mut() {
            a.got &= a.events;
        }
        asked.iter().any(|a| !a.got.is_empty())
    };
    let mut turn = Turn::new();
    loop {
        wait_any(cx, &mut asked, deadline_ns).await.map_err(|_| SysError::Restart(Restart::NoHand))?;
        let timed_out = deadline_ns.is_some_and(|d| d == 0 || now_ns() >= d);
        if relevant(&mut asked) || timed_out {
            break;
        }
        // Only an unasked POLLHUP: drop that file from the wait, it can tell nothing else.
        for a in &mut asked {
            turn.next().await;
            if a.file.as_ref().is_some_and(|f| !(f.poll() & PollEvents::ALWAYS & !a.events).is_empty()) {
                a.file = None;
            }
        }
    }
    let mut out: [Vec<u8>; 3] = [vec![0; want[0].len()], vec![0; want[1].len()], vec![0; want[2].len()]];
    let mut count = 0;
    for (a, (i, on)) in asked.iter_mut().zip(which) {
        a.file = None;
        turn.next().await;
        for (k, ev) in [SEL_IN, SEL_OUT, SEL_EX].into_iter().enumerate() {
            if on[k] && a.got.intersects(ev) {
                if let Some(b) = out[k].get_mut(i / 8) {
                    *b |= 1 << (i % 8);
                    count += 1;
                }
            }
        }
    }
    for (o, at) in out.iter().zip(sets) {
        if !at.is_null() {
            cx.write_bytes(at.0, o)?;
        }
    }
    Ok(count)
}

pub async fn select(cx: &mut Ctx<'_>, n: i32, r: Addr, w: Addr, e: Addr, timeout: Addr) -> SysResult {
    let deadline = match timeout.is_null() {
        true => None,
        false => {
            // Linux normalizes the microseconds here instead of refusing more than a second of them.
            let t: UserTimeval = cx.read(timeout.0)?;
            let sec = t.sec.saturating_add(t.usec / 1_000_000);
            Some(deadline_of(UserTimeval { sec, usec: t.usec % 1_000_000 }.to_ns()?))
        }
    };
    let res = do_select(cx, n, [r, w, e], deadline).await;
    if let Some(d) = deadline.filter(|_| !sticky(cx)) {
        let _ = cx.write_now(timeout.0, &UserTimeval::from_ns(left_of(d)));
    }
    res
}

pub async fn pselect6(cx: &mut Ctx<'_>, n: i32, r: Addr, w: Addr, e: Addr, timeout: Addr, sig: Addr) -> SysResult {
    let deadline = match timeout.is_null() {
        true => None,
        false => Some(deadline_of(cx.read::<UserTimespec>(timeout.0)?.to_ns()?)),
    };
    if !sig.is_null() {
        let [mask, size]: [u64; 2] = cx.read(sig.0)?;
        swap_mask(cx, Addr(mask), usize::try_from(size).map_err(|_| Errno::EINVAL)?)?;
    }
    let res = do_select(cx, n, [r, w, e], deadline).await;
    unswap_mask(cx, &res);
    if let Some(d) = deadline.filter(|_| !sticky(cx)) {
        let _ = cx.write_now(timeout.0, &UserTimespec::from_ns(left_of(d)));
    }
    res
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_ask_has_a_bound() {
        let shares: Vec<Charge> = std::iter::from_fn(|| share(FEW + 1).ok()).collect();
        assert_eq!(shares.len(), MOST / (FEW + 1));
        assert_eq!(share(MOST).unwrap_err(), Errno::ENOMEM);
        assert!(share(FEW).is_ok());
        drop(shares);
        assert!(share(MOST).is_ok());
        assert!(share(usize::MAX).is_err());
    }
}
