//! The fork handshake: how a forked stub, and no other process, gets its hand-off area and its control socket.
//!
//! The child of a fork starts from hostile memory, so nothing in that memory can reserve a descriptor for it. The
//! child makes the handshake call instead, which its filter turns into a user notification. The Sentry looks up the
//! token (random, valid once) and puts the child's control socket into the caller's table, which after a `clone`
//! without `CLONE_FILES` is the child's own. The area's descriptor is queued in that socket.
//!
//! Handing over a descriptor this way waits until the child takes it, which needs a core. So a thread of its own, the
//! *fork broker*, serves handshakes; where the host supports it, it and the child alternate on the child's core.
//!
//! If another process of the guest makes the call with a token of its own fork, it gets the child's descriptors:
//! memory shared with the Sentry for a process that does not exist. It gains nothing.
//!
//! # Early answers
//! The Sentry does not wait for the child. A fork is complete once the parent has made it; the child's first answer
//! is written to its area, perhaps before the child has mapped that area. Until the handshake the Sentry does not
//! know the process's pid. The pid that the parent reports is not used: it could name a process of another guest. So
//! a reader of the child's memory waits for the handshake for a moment ([`Space::pid`](super::space::Space),
//! `patience.rs`), an interrupt is kept pending, and a kill makes the broker refuse the handshake.
//! [`ForkBroker::check`] finds children that died or never call. A child killed from outside ends the sandbox like
//! any other stub, even if no task waits for the child any more: a call of the guest may have failed because of it.
//!
//! # Forks without a request
//! Hostile code can also make the `clone` of a fork without the handshake. `strays.rs` finds and kills those
//! processes. (Requiring the Sentry's permission for each `clone` would not help: the child of a requested fork can
//! skip the handshake, too.)

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
use super::share::{Lineage, Ticket};
use super::space::Space;
use super::watched::Area;
use super::Inner;
use crate::executor::now_ns;
use crate::{host, Errno};

/// Prepared in advance for a child: its area, the Sentry's end and the child's end of the control socket.
type PreparedChild = (Arc<Area>, Control, OwnedFd);

/// A fork whose handshake is pending.
struct PendingFork {
    space: Weak<Space>,
    control: OwnedFd,
    /// The child's pid as reported by its parent; 0 if not reported yet.
    claimed: i32,
    since: u64,
    /// Like `since`, but not reset if the handshake was cut short.
    made: u64,
}

/// Number of prepared children kept ready.
const PREPARED_CHILDREN: usize = 3;
/// Age at which a pending handshake is checked, and at which it is given up.
const CHECK_NS: u64 = 100_000_000;
const GIVE_UP_NS: u64 = 10_000_000_000;

pub(super) struct ForkBroker {
    listener: Arc<OwnedFd>,
    pending: Mutex<HashMap<u64, PendingFork>>,
    prepared: Mutex<Vec<PreparedChild>>,
    /// Notified after each handshake.
    served: (Mutex<()>, Condvar),
    /// The guard task runs.
    guarded: AtomicBool,
    /// The process whose handshake is being served.
    serving: AtomicI32,
}

impl ForkBroker {
    pub(super) fn new(listener: OwnedFd) -> Self {
        ForkBroker {
            listener: Arc::new(listener),
            pending: Mutex::default(),
            prepared: Mutex::default(),
            served: Default::default(),
            guarded: AtomicBool::new(false),
            serving: AtomicI32::new(0),
        }
    }
    pub(super) fn listener(&self) -> Arc<OwnedFd> {
        self.listener.clone()
    }

    /// Prepares one more child if there are too few.
    pub(super) fn prepare(&self, inner: &Inner) {
        if self.prepared.lock().len() < PREPARED_CHILDREN {
            // An error is reported when a child is needed.
            let root = inner.flights.shares().root();
            let child = inner.flights.shares().calm().then(|| Control::with_area(&inner.flights, root, &mut None));
            if let Some(Ok(child)) = child {
                self.prepared.lock().push(child);
            }
        }
    }

    /// Registers a fork by the thread in `slot` as pending.
    pub(super) fn expect(
        &self,
        inner: &Arc<Inner>,
        slot: usize,
        lineage: Lineage,
        ticket: &mut Option<Ticket>,
    ) -> Result<(u64, Arc<Space>), Errno> {
        // Prepared children are for all processes; where descriptors are short, each process has its share.
        let ready = if inner.flights.shares().calm() { self.prepared.lock().pop() } else { None };
        let (area, ours, theirs) = match ready {
            Some(child) => child,
            None => Control::with_area(&inner.flights, lineage.clone(), ticket)?,
        };
        if !area.reach(slot) {
            return Err(Errno::EAGAIN);
        }
        ours.set_lineage(lineage);
        area.state(slot).store(abi::state::PARKED, Release);
        let token = host::random_u64();
        let space = Space::pending(inner.clone(), area, ours, slot, token);
        inner.flights.list(&space, space.control());
        let now = now_ns();
        let fork = PendingFork { space: Arc::downgrade(&space), control: theirs, claimed: 0, since: now, made: now };
        self.put(inner, token, fork);
        Ok((token, space))
    }

    fn put(&self, inner: &Inner, token: u64, fork: PendingFork) {
        self.pending.lock().insert(token, fork);
        self.watch(inner);
    }

    /// Starts the guard task, which checks pending handshakes, and searches for strays, for a while.
    pub(super) fn watch(&self, inner: &Inner) {
        if !self.guarded.load(Relaxed) && !self.guarded.swap(true, AcqRel) {
            inner.executor.spawn(Box::pin(guard(inner.me.clone())));
        }
    }

    /// Whether child `pid`, first seen at `seen`, may belong to a requested fork.
    pub(super) fn may_be_expected(&self, pid: i32, seen: u64) -> bool {
        self.pending.lock().values().any(|fork| fork.made <= seen) || self.serving.load(SeqCst) == pid
    }

    /// Records the child's pid as reported by its parent; used by [`ForkBroker::check`] only.
    pub(super) fn claim(&self, token: u64, pid: i32) {
        if let Some(fork) = self.pending.lock().get_mut(&token) {
            fork.claimed = pid;
        }
    }
    pub(super) fn forget(&self, token: u64) {
        let fork = self.pending.lock().remove(&token);
        drop(fork);
    }

    /// Checks pending handshakes that are overdue, or the one with token `one`; returns whether any is pending.
    pub(super) fn check(&self, inner: &Inner, one: Option<u64>) -> bool {
        let now = now_ns();
        let mut lost = Vec::new();
        let mut pending = self.pending.lock();
        let patience_ns = if one.is_some() { 0 } else { CHECK_NS };
        pending.retain(|token, fork| {
            if one.is_some_and(|one| one != *token) {
                return true;
            }
            let age = now.saturating_sub(fork.since);
            // The pid of a known stub is a false report, and ignored.
            let claimed = fork.claimed;
            let known = claimed <= 1 || inner.stubs.lock().contains_key(&claimed);
            let exit_state = if age >= patience_ns && !known { super::space::exit_state_of(claimed) } else { None };
            let keep = exit_state.is_none() && age < GIVE_UP_NS;
            if !keep {
                lost.push((fork.space.upgrade(), exit_state));
            }
            keep
        });
        let more = !pending.is_empty();
        drop(pending);
        for (space, exit_state) in lost {
            if exit_state == Some(libc::SIGKILL) {
                let text = "a new process of the sandbox was killed from outside (by hand, or for want of memory)";
                (inner.on_fatal)(text);
            }
            if let Some(space) = space {
                log::debug!("a forked stub died before its handshake");
                space.lost();
            }
        }
        more
    }

    /// Waits for at most `ns` until `born` holds.
    pub(super) fn wait(&self, ns: u64, born: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_nanos(ns);
        let mut served = self.served.0.lock();
        while !born() && !self.served.1.wait_until(&mut served, deadline).timed_out() {}
    }

    /// Serves one handshake, on the thread of the fork broker.
    fn serve(&self, inner: &Arc<Inner>, req: &libc::seccomp_notif) {
        let pid = req.pid as i32;
        self.serving.store(pid, SeqCst);
        self.answer(inner, req, pid);
        self.serving.store(0, SeqCst);
        drop(self.served.0.lock());
        self.served.1.notify_all();
    }

    fn answer(&self, inner: &Arc<Inner>, req: &libc::seccomp_notif, pid: i32) {
        let fork = self.pending.lock().remove(&req.data.args[0]);
        // A registered process cannot make the handshake again.
        let known = inner.stubs.lock().contains_key(&pid);
        let awaited = fork.and_then(|b| b.space.upgrade().map(|s| (b, s))).filter(|_| !known);
        let Some((fork, space)) = awaited else {
            log::debug!("stub {pid}: a fork handshake with an unknown token");
            return self.refuse(inner, req.id, pid, known);
        };
        let pidfd = match super::launch::pidfd_open(pid) {
            Ok(pidfd) => pidfd,
            Err(e) => {
                log::warn!("stub {pid} failed to start: {e}");
                self.refuse(inner, req.id, pid, known);
                return space.lost();
            }
        };
        // The child's first call may come before it is registered, and its answer may need the child's memory.
        space.announce(pid);
        let given = self.give(req.id, &fork.control);
        if given.is_err() {
            space.announce(0);
        }
        if let Err(Errno::ENOENT | Errno::ESRCH | Errno::EINPROGRESS) = given {
            // The call is gone. Either the caller is dead or about to be (the cause shows when it is reaped), or it
            // or the Sentry was stopped for a moment and continued. In the last case the host drops the Sentry's
            // descriptor but lets the call return, and the caller calls again.
            let token = req.data.args[0];
            self.put(inner, token, PendingFork { claimed: pid, since: now_ns(), ..fork });
        } else if let Err(e) = given {
            log::warn!("stub {pid} failed to start: {e}");
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

    /// Kills a process without a pending handshake. It has not been reaped, so the pid is still its own.
    fn refuse(&self, inner: &Inner, id: u64, pid: i32, known: bool) {
        // SAFETY: the kernel reads one id.
        let valid = unsafe { libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &id) } == 0;
        if !valid {
            return;
        }
        if known {
            inner.kill_known(pid);
        } else if !inner.end_orphan(pid) {
            // If it cannot be killed now, the guard finds it later, unless it ends by itself.
            let answer = libc::seccomp_notif_resp { id, val: 0, error: -libc::EPERM, flags: 0 };
            // SAFETY: the kernel reads one `seccomp_notif_resp`.
            unsafe { libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &answer) };
        }
    }
}

/// Starts the fork broker, which answers handshakes as long as there are stubs. Call before the Sentry's filter is in
/// place.
pub(super) fn start(inner: Weak<Inner>, listener: Arc<OwnedFd>) -> io::Result<()> {
    // Both sides wake on the core where the other one has just gone to sleep (Linux 6.6 and later; others ignore it).
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
        // Otherwise the caller was killed meanwhile.
    })?;
    Ok(())
}

/// Checks pending handshakes at intervals, as long as there are any or strays are found.
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
        if !fork_broker.check(&inner, None) && !strays {
            fork_broker.guarded.store(false, SeqCst);
            if fork_broker.pending.lock().is_empty() || fork_broker.guarded.swap(true, SeqCst) {
                return;
            }
        }
    }
}
