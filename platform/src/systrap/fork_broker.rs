//! The fork handshake: how a forked stub gets its hand-off area and its control socket, and nobody else does.
//!
//! The child of a fork is made by hostile memory, so nothing in that memory can keep a descriptor for it alone. The child
//! makes the birth call instead, which its filter turns into a user notification; the Sentry looks the token up (random,
//! good for one use) and puts the child's control socket into the caller's table, which after a `clone` without `CLONE_FILES`
//! is the child's own. The area's descriptor waits in that socket.
//!
//! Giving a descriptor that way waits for the child to take it, which wants a core for that. So a thread of its own serves
//! births, the *fork broker*; where the host knows how, it and the child take turns on the child's core.
//!
//! A process of the guest's that makes the call with a token of its own fork, instead of the child, gets what would have
//! been the child's: memory shared with the Sentry for a process that does not exist. It has gained nothing.
//!
//! # Early answers
//! The Sentry does not wait for the child: the fork is done once its parent has made it, and the child's first answer is put
//! into its area, perhaps before the child has that area. Until the birth call comes, the Sentry does not know the
//! process's number (what the parent says counts for nothing: it would let a guest name another's process). So whoever wants
//! to reach into its memory waits for the call for a moment ([`Space::pid`](super::space::Space), `patience.rs`), an interrupt is kept for it, and a
//! kill has it refused. [`ForkBroker::check`] finds those that died, or never call. A child that was killed, by nobody here, ends the
//! sandbox as the death of any other stub does, also if nobody cares for the child any more: a call of the guest's may have failed for
//! it already.
//!
//! # Forks that nobody asked for
//! Hostile code can also make the `clone` of a fork and not the birth call. Those processes are found and ended by `strays.rs`.
//! (Asking the Sentry's leave for each `clone` would not help: the child of a fork that was asked for can go astray too.)

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::*};
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::abi;
use super::inflight::Control;
use super::space::Space;
use super::watched::Area;
use super::Inner;
use crate::executor::now_ns;
use crate::{host, Errno};

/// What a child is to get, made beforehand: its area, our end and its end of the control socket.
type PreparedChild = (Arc<Area>, Control, OwnedFd);

/// A birth that is awaited.
struct PendingFork {
    space: Weak<Space>,
    control: OwnedFd,
    /// The child's number as its parent tells it; 0 if it has not.
    claimed: i32,
    since: u64,
    /// As `since`, but also for one whose call was cut short.
    made: u64,
}

/// How many prepared are kept ready.
const PREPARED_CHILDREN: usize = 3;
/// When a birth that has not come is looked after, and when it is given up.
const CHECK_NS: u64 = 100_000_000;
const GIVE_UP_NS: u64 = 10_000_000_000;

pub(super) struct ForkBroker {
    listener: Arc<OwnedFd>,
    pending: Mutex<HashMap<u64, PendingFork>>,
    prepared: Mutex<Vec<PreparedChild>>,
    /// Told of each birth, for those who wait for one.
    doorbell: (Mutex<()>, Condvar),
    /// The guard runs.
    guarded: AtomicBool,
    /// The process whose call is being answered.
    serving: AtomicI32,
}

impl ForkBroker {
    pub(super) fn new(listener: OwnedFd) -> Self {
        ForkBroker {
            listener: Arc::new(listener),
            pending: Mutex::default(),
            prepared: Mutex::default(),
            doorbell: Default::default(),
            guarded: AtomicBool::new(false),
            serving: AtomicI32::new(0),
        }
    }
    pub(super) fn listener(&self) -> Arc<OwnedFd> {
        self.listener.clone()
    }

    /// Makes one more child if there are few.
    pub(super) fn prepare(&self, inner: &Inner) {
        if self.prepared.lock().len() < PREPARED_CHILDREN {
            // A failure shows when one is needed.
            if let Ok(child) = Control::with_area(&inner.flights) {
                self.prepared.lock().push(child);
            }
        }
    }

    /// Awaits the child of a fork of the thread in `slot`.
    pub(super) fn expect(&self, inner: &Arc<Inner>, slot: usize) -> Result<(u64, Arc<Space>), Errno> {
        let ready = self.prepared.lock().pop();
        let (area, ours, theirs) = match ready {
            Some(child) => child,
            None => Control::with_area(&inner.flights)?,
        };
        area.state(slot).store(abi::state::PARKED, Release);
        let token = host::random_u64();
        let space = Space::pending(inner.clone(), area, ours, slot, token);
        inner.flights.list(&space, space.control());
        let now = now_ns();
        let birth = PendingFork { space: Arc::downgrade(&space), control: theirs, claimed: 0, since: now, made: now };
        self.put(inner, token, birth);
        Ok((token, space))
    }

    fn put(&self, inner: &Inner, token: u64, birth: PendingFork) {
        self.pending.lock().insert(token, birth);
        self.watch(inner);
    }

    /// Has the guard look after births, and for strays, for a while.
    pub(super) fn watch(&self, inner: &Inner) {
        if !self.guarded.load(Relaxed) && !self.guarded.swap(true, AcqRel) {
            inner.executor.spawn(Box::pin(guard(inner.me.clone())));
        }
    }

    /// Whether child `pid`, which was there at `seen`, may be one that was asked for.
    pub(super) fn may_be(&self, pid: i32, seen: u64) -> bool {
        self.pending.lock().values().any(|birth| birth.made <= seen) || self.serving.load(SeqCst) == pid
    }

    /// What the parent says is the number of the child; for [`ForkBroker::check`] alone.
    pub(super) fn claim(&self, token: u64, pid: i32) {
        if let Some(birth) = self.pending.lock().get_mut(&token) {
            birth.claimed = pid;
        }
    }
    pub(super) fn forget(&self, token: u64) {
        let birth = self.pending.lock().remove(&token);
        drop(birth);
    }

    /// Looks after the births that should have come by now, or after `one` of them; returns whether any is awaited.
    pub(super) fn check(&self, inner: &Inner, one: Option<u64>) -> bool {
        let now = now_ns();
        let mut lost = Vec::new();
        let mut pending = self.pending.lock();
        let patience_ns = if one.is_some() { 0 } else { CHECK_NS };
        pending.retain(|token, birth| {
            if one.is_some_and(|one| one != *token) {
                return true;
            }
            let age = now.saturating_sub(birth.since);
            // A number of a stub that we know is a lie, and nothing to act on.
            let claimed = birth.claimed;
            let known = claimed <= 1 || inner.stubs.lock().contains_key(&claimed);
            let exit_state = if age >= patience_ns && !known { super::space::exit_state_of(claimed) } else { None };
            let keep = exit_state.is_none() && age < GIVE_UP_NS;
            if !keep {
                lost.push((birth.space.upgrade(), exit_state));
            }
            keep
        });
        let more = !pending.is_empty();
        drop(pending);
        for (space, exit_state) in lost {
            if exit_state == Some(libc::SIGKILL) {
                let text = "a process of the sandbox was killed from outside while it was being born (by hand, or for want of memory)";
                (inner.on_fatal)(text);
            }
            if let Some(space) = space {
                log::debug!("a forked stub is dead before it was born");
                space.lost();
            }
        }
        more
    }

    /// Waits until `born` says so, but not for longer than `ns`.
    pub(super) fn wait(&self, ns: u64, born: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_nanos(ns);
        let mut doorbell = self.doorbell.0.lock();
        while !born() && !self.doorbell.1.wait_until(&mut doorbell, deadline).timed_out() {}
    }

    /// The fork broker's call.
    fn serve(&self, inner: &Arc<Inner>, req: &libc::seccomp_notif) {
        let pid = req.pid as i32;
        self.serving.store(pid, SeqCst);
        self.answer(inner, req, pid);
        self.serving.store(0, SeqCst);
        drop(self.doorbell.0.lock());
        self.doorbell.1.notify_all();
    }

    fn answer(&self, inner: &Arc<Inner>, req: &libc::seccomp_notif, pid: i32) {
        let birth = self.pending.lock().remove(&req.data.args[0]);
        // A process that we know already does not get born.
        let known = inner.stubs.lock().contains_key(&pid);
        let awaited = birth.and_then(|b| b.space.upgrade().map(|s| (b, s))).filter(|_| !known);
        let Some((birth, space)) = awaited else {
            log::debug!("stub {pid}: a birth that nobody awaits");
            return self.refuse(inner, req.id, pid, known);
        };
        let pidfd = match super::launch::pidfd_open(pid) {
            Ok(pidfd) => pidfd,
            Err(e) => {
                log::warn!("stub {pid} could not be born: {e}");
                self.refuse(inner, req.id, pid, known);
                return space.lost();
            }
        };
        // Its first call may come before it is registered, and be answered by looking into its memory.
        space.announce(pid);
        let given = self.give(req.id, &birth.control);
        if given.is_err() {
            space.announce(0);
        }
        if let Err(Errno::ENOENT | Errno::ESRCH | Errno::EINPROGRESS) = given {
            // The call is not there any more: the caller is dead or about to be (how, shows when it is), or it or we were stopped for a
            // moment and continued. Of us the host then forgets the descriptor, but lets the call return, and the caller calls again.
            let token = req.data.args[0];
            self.put(inner, token, PendingFork { claimed: pid, since: now_ns(), ..birth });
        } else if let Err(e) = given {
            log::warn!("stub {pid} could not be born: {e}");
            self.refuse(inner, req.id, pid, known);
            space.lost();
        } else {
            inner.register(&space, pid, pidfd);
        }
    }

    /// Puts the descriptor into the caller's table and lets its call return.
    fn give(&self, id: u64, control: &OwnedFd) -> Result<(), Errno> {
        let flags = (libc::SECCOMP_ADDFD_FLAG_SETFD | libc::SECCOMP_ADDFD_FLAG_SEND) as u32;
        let (srcfd, newfd) = (control.as_raw_fd() as u32, abi::CTL_FD as u32);
        let add = libc::seccomp_notif_addfd { id, flags, srcfd, newfd, newfd_flags: 0 };
        // SAFETY: the kernel reads one `seccomp_notif_addfd`.
        Errno::result(unsafe { libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &add) })
            .map(drop)
    }

    /// Ends a process that we did not ask for. It is still ours to reap, so the pid is its own.
    fn refuse(&self, inner: &Inner, id: u64, pid: i32, known: bool) {
        // SAFETY: the kernel reads one id.
        let valid = unsafe { libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &id) } == 0;
        if !valid {
            return;
        }
        if known {
            inner.kill_known(pid);
        } else if !inner.end_orphan(pid) {
            // Its end is its own business then, or the guard's.
            let answer = libc::seccomp_notif_resp { id, val: 0, error: -libc::EPERM, flags: 0 };
            // SAFETY: the kernel reads one `seccomp_notif_resp`.
            unsafe { libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &answer) };
        }
    }
}

/// The fork broker: answers birth calls as long as there are stubs. To be started before the Sentry's filter is in place.
pub(super) fn attend(inner: Weak<Inner>, listener: Arc<OwnedFd>) -> io::Result<()> {
    // Both sides are woken on the core where the other one has just gone to sleep (Linux 6.6; others do without).
    const SET_FLAGS: libc::Ioctl = 0x4008_2104;
    const SYNC_WAKE_UP: u64 = 1;
    // SAFETY: the argument is a plain number.
    unsafe { libc::ioctl(listener.as_raw_fd(), SET_FLAGS, SYNC_WAKE_UP) };
    std::thread::Builder::new().name("fork broker".into()).spawn(move || loop {
        // SAFETY: all zeroes is a valid `seccomp_notif`, and the kernel demands it.
        let mut req: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one `seccomp_notif`.
        let r = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &mut req) };
        let Some(inner) = inner.upgrade() else { return };
        if r == 0 {
            inner.fork_broker.serve(&inner, &req);
        } else if host::poll_now(listener.as_fd(), libc::POLLIN) & libc::POLLHUP != 0 {
            return;
        }
        // Else the caller was killed meanwhile.
    })?;
    Ok(())
}

/// Looks after the births that are awaited, and for strays and rogues, as long as there is reason to.
async fn guard(inner: Weak<Inner>) {
    loop {
        let deadline = now_ns() + CHECK_NS;
        let mut timer = None;
        std::future::poll_fn(|cx| {
            if now_ns() >= deadline {
                return Poll::Ready(());
            }
            let waker: &Waker = cx.waker();
            timer = inner.upgrade().map(|i| i.executor.timer(deadline, waker.clone()));
            if timer.is_some() {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
        drop(timer);
        let Some(inner) = inner.upgrade() else { return };
        let fork_broker = &inner.fork_broker;
        let strays = inner.strays.search(&inner);
        let rogues = inner.rogues.search(&inner);
        if !fork_broker.check(&inner, None) && !strays && !rogues {
            fork_broker.guarded.store(false, SeqCst);
            let idle = fork_broker.pending.lock().is_empty() && !inner.rogues.wanted();
            if idle || fork_broker.guarded.swap(true, SeqCst) {
                return;
            }
        }
    }
}
