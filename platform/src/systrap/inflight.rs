//! Descriptors in flight: sent to a stub, and not yet taken out of its control socket.
//!
//! The host counts them for all processes of a user together and refuses more than that user may have open (`ETOOMANYREFS`, unix(7)).
//! A stub that takes none must not use up what others need, so:
//!
//! * a stub has at most [`UNASKED`] and those of one more round: then its socket is asked, from our end, whether it is empty;
//! * the sandbox has at most [`LIMIT`] in all, areas of processes that are being born included. Up to [`CALM`] all
//!   may have what they ask for; beyond, all sockets are asked, and each process and its descendants together have a
//!   [`share`];
//! * what is beyond that waits, and fails after [`PATIENCE_NS`]; the first that waits is the first that is served.
//!   While some wait, a stub that has left the same messages where they are for [`STUCK_NS`] is killed.
//!
//! Nothing that a stub says counts here.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::share::{Lineage, Shares, Ticket};
use super::space::Space;
use super::watched::Area;
use crate::budget::{self, Use};
use crate::executor::now_ns;
use crate::{host, AddressSpace, Errno};

/// Of a stub, before its socket is asked.
const UNASKED: usize = super::abi::MAX_FDS;
/// Of a sandbox; programs of its user outside count with it, of which each may have 1,024 open as a rule.
pub(super) const LIMIT: usize = 256;
/// Of a sandbox, before anything is asked.
pub(super) const CALM: usize = LIMIT / 2;
/// The least time between two rounds of asking all, and how many times as long as a round it is.
const SWEEP_NS: u64 = 200_000;
const SWEEP_PART: u64 = 8;
const STUCK_NS: u64 = 1_000_000_000;
/// How long one who wants to send waits, and how often it tries meanwhile.
pub(super) const PATIENCE_NS: u64 = 10_000_000_000;
pub(super) const RETRY_NS: u64 = 1_000_000;

/// Of all control sockets of a sandbox.
#[derive(Default)]
pub(super) struct Flights {
    shares: Arc<Shares>,
    /// Those whose `given` is not 0, and perhaps some more.
    holders: Mutex<Vec<Weak<Space>>>,
    /// When all may be asked again.
    sweep_at: AtomicU64,
}

/// Our end of a stub's control socket.
pub(super) struct Control {
    socket: OwnedFd,
    flights: Arc<Flights>,
    /// Descriptors sent since the socket was last seen empty.
    given: AtomicUsize,
    /// The same, by whom they are counted for; the oldest first.
    parts: Mutex<VecDeque<(Lineage, usize)>>,
    /// For whom they are counted from now on.
    lineage: Mutex<Lineage>,
    listed: AtomicBool,
    /// A `given` with which it was not empty, and when that was first seen.
    stuck: Mutex<(usize, u64)>,
}

impl Control {
    pub(super) fn new(socket: OwnedFd, flights: Arc<Flights>) -> Self {
        Control {
            socket,
            given: AtomicUsize::new(0),
            parts: Mutex::default(),
            lineage: Mutex::new(flights.shares.root()),
            listed: AtomicBool::new(false),
            stuck: Mutex::default(),
            flights,
        }
    }

    pub(super) fn lineage(&self) -> Lineage {
        self.lineage.lock().clone()
    }
    pub(super) fn set_lineage(&self, lineage: Lineage) {
        *self.lineage.lock() = lineage;
    }

    /// Both ends of a new one, ours and the stub's, in which the descriptor of its area waits. `EAGAIN`, as fork(2) has it, if there
    /// is no room for one more process.
    pub(super) fn with_area(
        flights: &Arc<Flights>,
        lineage: Lineage,
        ticket: &mut Option<Ticket>,
    ) -> Result<(Arc<Area>, Self, OwnedFd), Errno> {
        let short =
            |e: Errno| if matches!(e, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) { Errno::EAGAIN } else { e };
        let (area, area_fd) =
            Area::new().map_err(|e| short(Errno::from_raw(e.raw_os_error().unwrap_or(libc::ENOMEM))))?;
        let (ours, theirs) = super::launch::control_pair().map_err(short)?;
        // The child's end makes room for its pidfd when it is born.
        let ours = budget::admit(ours, Use::Process).map_err(short)?;
        let theirs = budget::admit(theirs, Use::Process).map_err(short)?;
        let control = Control::new(ours, flights.clone());
        control.set_lineage(lineage);
        control.send(b"a", &[area_fd.as_fd()], ticket)?;
        Ok((area, control, theirs))
    }

    /// Sends descriptors. `ETOOMANYREFS`: later perhaps, with the ticket, which keeps its place among those that
    /// wait.
    pub(super) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], ticket: &mut Option<Ticket>) -> Result<(), Errno> {
        if self.given.load(Relaxed) >= UNASKED && !self.is_empty() {
            // It waits for nobody but itself.
            *ticket = None;
            return Err(Errno::ETOOMANYREFS);
        }
        let lineage = self.lineage();
        if !self.flights.admit(self, &lineage, fds.len(), ticket) {
            return Err(Errno::ETOOMANYREFS);
        }
        match host::send_with_fds(self.socket.as_fd(), &[IoSlice::new(bytes)], fds, libc::MSG_DONTWAIT) {
            Ok(_) => {
                let mut parts = self.parts.lock();
                match parts.back_mut().filter(|p| p.0 == lineage) {
                    Some(last) => last.1 += fds.len(),
                    None => parts.push_back((lineage, fds.len())),
                }
                self.given.fetch_add(fds.len(), SeqCst);
                Ok(())
            }
            Err(e) => {
                lineage.give_back(fds.len());
                // Others of the same user can bring the host to its limit as well.
                Err(if matches!(e, Errno::EAGAIN | Errno::ENOBUFS) { Errno::ETOOMANYREFS } else { e })
            }
        }
    }

    /// As [`Control::send`], for the process of `space`, whose control socket this is.
    pub(super) fn send_to(
        &self,
        space: &Arc<Space>,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        ticket: &mut Option<Ticket>,
    ) -> Result<(), Errno> {
        self.send(bytes, fds, ticket)?;
        self.flights.list(space, self);
        Ok(())
    }

    /// Whether all that was counted has been taken.
    fn is_empty(&self) -> bool {
        // Held until the count is less: two that ask at once would both take it off.
        let mut stuck = self.stuck.lock();
        // What is counted has been sent; what is sent from now on is not meant.
        let given = self.given.load(SeqCst);
        if host::unread(self.socket.as_fd()) > 0 {
            return false;
        }
        self.settle(given);
        *stuck = (0, 0);
        true
    }

    /// The first `n` that were sent have been taken.
    fn settle(&self, mut n: usize) {
        let mut parts = self.parts.lock();
        self.given.fetch_sub(n, SeqCst);
        while let Some((lineage, has)) = parts.front_mut().filter(|_| n > 0) {
            let taken = n.min(*has);
            lineage.give_back(taken);
            n -= taken;
            *has -= taken;
            if *has == 0 {
                parts.pop_front();
            }
        }
    }

    /// It is not empty: whether it has been the same for too long.
    fn is_stuck(&self, now: u64) -> bool {
        let given = self.given.load(SeqCst);
        let mut stuck = self.stuck.lock();
        if stuck.0 != given {
            *stuck = (given, now);
        }
        now.saturating_sub(stuck.1) >= STUCK_NS
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.settle(self.given.load(SeqCst));
    }
}

impl Flights {
    /// What `space` has been given is to be looked at when the sandbox has too many.
    pub(super) fn list(&self, space: &Arc<Space>, control: &Control) {
        if !control.listed.swap(true, SeqCst) {
            let mut holders = self.holders.lock();
            if holders.len() >= 2 * LIMIT {
                holders.retain(|h| h.strong_count() > 0);
            }
            holders.push(Arc::downgrade(space));
        }
    }

    pub(super) fn shares(&self) -> &Arc<Shares> {
        &self.shares
    }

    /// Counts `n` more, if there may be so many; else there is a ticket afterwards.
    fn admit(&self, control: &Control, lineage: &Lineage, n: usize, ticket: &mut Option<Ticket>) -> bool {
        let redeemed = |ticket: &mut Option<Ticket>| ticket.as_mut().is_some_and(|t| t.redeem(lineage, n));
        let admitted = redeemed(ticket)
            || self.shares.take(lineage, n)
            || control.given.load(Relaxed) > 0 && control.is_empty() && self.shares.take(lineage, n)
            || self.sweep_if_due() && (redeemed(ticket) || self.shares.take(lineage, n));
        if admitted {
            *ticket = None;
        } else if !ticket.as_ref().is_some_and(|t| t.is_for(lineage, n)) {
            *ticket = Some(self.shares.wait(lineage, n));
        }
        admitted
    }

    /// Asks all sockets, unless that was done just now.
    fn sweep_if_due(&self) -> bool {
        let now = now_ns();
        let at = self.sweep_at.load(Relaxed);
        if now < at || self.sweep_at.compare_exchange(at, u64::MAX, AcqRel, Relaxed).is_err() {
            return false;
        }
        self.sweep(now);
        let end = now_ns();
        self.sweep_at.store(end + SWEEP_NS.max((end - now) * SWEEP_PART), Release);
        self.shares.serve();
        true
    }

    fn sweep(&self, now: u64) {
        let mut stuck = Vec::new();
        // Dropped without the lock.
        let mut seen = Vec::new();
        self.holders.lock().retain(|holder| {
            let Some(space) = holder.upgrade() else { return false };
            let control = space.control().clone();
            let empty = control.is_empty();
            let keep = if empty {
                control.listed.store(false, SeqCst);
                // One that sent meanwhile found it listed.
                control.given.load(SeqCst) > 0 && !control.listed.swap(true, SeqCst)
            } else {
                if control.is_stuck(now) {
                    stuck.push(space.clone());
                }
                true
            };
            seen.push(space);
            keep
        });
        for space in stuck {
            log::warn!("stub {}: does not take its descriptors; killed", space.pid_now());
            space.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::systrap::launch::control_pair;
    use std::io::IoSliceMut;

    struct Stub {
        control: Control,
        theirs: OwnedFd,
        ticket: Option<Ticket>,
    }

    impl Stub {
        fn new(flights: &Arc<Flights>, lineage: Lineage) -> Stub {
            let (ours, theirs) = control_pair().unwrap();
            let control = Control::new(ours, flights.clone());
            control.set_lineage(lineage);
            Stub { control, theirs, ticket: None }
        }
        fn send(&mut self, n: usize) -> bool {
            let fds = vec![self.theirs.as_fd(); n];
            match self.control.send(b"f", &fds, &mut self.ticket) {
                Ok(()) => true,
                Err(e) => {
                    assert_eq!(e, Errno::ETOOMANYREFS);
                    false
                }
            }
        }
        fn take(&self) {
            let mut byte = [0];
            while host::recv_with_fds(self.theirs.as_fd(), &mut [IoSliceMut::new(&mut byte)], libc::MSG_DONTWAIT)
                .is_ok_and(|(n, _)| n > 0)
            {}
        }
    }

    #[test]
    fn those_that_take_theirs_do_not_wait_for_others() {
        let flights = Arc::<Flights>::default();
        let root = flights.shares.root();
        // A process, its children and theirs, none of which takes what it is sent.
        let family = root.child();
        let mut hoarders: Vec<_> = (0..300)
            .map(|i| {
                let lineage = if i % 2 == 0 { family.child() } else { family.child().child() };
                Stub::new(&flights, lineage)
            })
            .collect();
        for n in [1, 2, 16, 5, 1] {
            let given = hoarders.iter_mut().filter_map(|h| h.send(n).then_some(n)).sum::<usize>();
            assert!(given <= LIMIT, "{given}");
        }
        assert!(root.used() >= CALM / 2 && root.used() <= LIMIT * 5 / 8, "{} under way", root.used());
        // Others, with whatever number of ancestors.
        let mut lineage = root.child();
        for depth in 0..20 {
            let mut stub = Stub::new(&flights, lineage.clone());
            for n in (1..=UNASKED).chain(1..=UNASKED) {
                assert!(stub.send(n), "{n} at depth {depth}");
                stub.take();
                hoarders.iter_mut().for_each(|h| {
                    h.send(1);
                });
            }
            lineage = lineage.child();
        }
        assert!(root.used() <= LIMIT);
        drop(hoarders);
        assert_eq!((root.used(), family.used()), (0, 0));
    }

    #[test]
    fn the_first_that_waits_is_the_first_that_is_served() {
        let flights = Arc::<Flights>::default();
        let root = flights.shares.root();
        let mut hoarders: Vec<_> = (0..40).map(|_| Stub::new(&flights, root.child())).collect();
        while hoarders.iter_mut().map(|h| usize::from(h.send(8))).sum::<usize>() > 0 {}
        hoarders.iter_mut().for_each(|h| h.ticket = None);
        let mut waiting: Vec<_> = (0..4).map(|_| Stub::new(&flights, root.child())).collect();
        assert!(waiting.iter_mut().all(|w| !w.send(8)));
        // Room for some: those that came first have it, whichever asks first.
        hoarders.drain(..2);
        let before = root.used();
        flights.shares.serve();
        let served = (root.used() - before) / 8;
        assert!((1..4).contains(&served), "{served} served");
        for (i, w) in waiting.iter_mut().enumerate().rev() {
            flights.sweep_at.store(u64::MAX, SeqCst);
            assert_eq!(w.send(8), i < served, "number {i}");
        }
        drop((hoarders, waiting));
        assert_eq!(root.used(), 0);
    }
}
