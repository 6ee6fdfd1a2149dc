//! Descriptors in flight: sent to a stub, and not yet taken out of its control socket.
//!
//! The host counts them for all processes of a user together and refuses more than that user may have open (`ETOOMANYREFS`, unix(7)).
//! A stub that takes none must not use up what others need, so:
//!
//! * a stub has at most [`UNASKED`] and those of one more round: then its socket is asked, from our end, whether it is empty;
//! * the sandbox has at most [`LIMIT`] in all, areas of processes that are being born included: then all sockets are asked;
//! * what is beyond that waits, and fails after [`PATIENCE_NS`]; while the sandbox is at its limit, a stub that has left the same
//!   messages where they are for [`STUCK_NS`] is killed.
//!
//! Nothing that a stub says counts here.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::space::Space;
use super::watched::Area;
use crate::budget::{self, Use};
use crate::executor::now_ns;
use crate::{host, AddressSpace, Errno};

/// Of a stub, before its socket is asked.
const UNASKED: usize = super::abi::MAX_FDS;
/// Of a sandbox; programs of its user outside count with it, of which each may have 1,024 open as a rule.
const LIMIT: usize = 256;
/// The least time between two rounds of asking all.
const SWEEP_NS: u64 = 1_000_000;
const STUCK_NS: u64 = 1_000_000_000;
/// How long one who wants to send waits, and how often it tries meanwhile.
pub(super) const PATIENCE_NS: u64 = 10_000_000_000;
pub(super) const RETRY_NS: u64 = 1_000_000;

/// Of all control sockets of a sandbox.
#[derive(Default)]
pub(super) struct Flights {
    total: AtomicUsize,
    /// Those whose `given` is not 0, and perhaps some more.
    holders: Mutex<Vec<Weak<Space>>>,
    swept_at: AtomicU64,
}

/// Our end of a stub's control socket.
pub(super) struct Control {
    socket: OwnedFd,
    flights: Arc<Flights>,
    /// Descriptors sent since the socket was last seen empty.
    given: AtomicUsize,
    listed: AtomicBool,
    /// A `given` with which it was not empty, and when that was first seen.
    stuck: Mutex<(usize, u64)>,
}

impl Control {
    pub(super) fn new(socket: OwnedFd, flights: Arc<Flights>) -> Self {
        Control { socket, flights, given: AtomicUsize::new(0), listed: AtomicBool::new(false), stuck: Mutex::default() }
    }

    /// Both ends of a new one, ours and the stub's, in which the descriptor of its area waits. `EAGAIN`, as fork(2) has it, if there
    /// is no room for one more process.
    pub(super) fn with_area(flights: &Arc<Flights>) -> Result<(Arc<Area>, Self, OwnedFd), Errno> {
        let short =
            |e: Errno| if matches!(e, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) { Errno::EAGAIN } else { e };
        let (area, area_fd) =
            Area::new().map_err(|e| short(Errno::from_raw(e.raw_os_error().unwrap_or(libc::ENOMEM))))?;
        let (ours, theirs) = super::launch::control_pair().map_err(short)?;
        // The child's end makes room for its pidfd when it is born.
        let ours = budget::admit(ours, Use::Process).map_err(short)?;
        let theirs = budget::admit(theirs, Use::Process).map_err(short)?;
        let control = Control::new(ours, flights.clone());
        control.send(b"a", &[area_fd.as_fd()])?;
        Ok((area, control, theirs))
    }

    /// Sends descriptors. `ETOOMANYREFS`: later perhaps.
    pub(super) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        if self.given.load(Relaxed) >= UNASKED && !self.is_empty() || !self.flights.admit(fds.len()) {
            return Err(Errno::ETOOMANYREFS);
        }
        match host::send_with_fds(self.socket.as_fd(), &[IoSlice::new(bytes)], fds, libc::MSG_DONTWAIT) {
            Ok(_) => {
                self.given.fetch_add(fds.len(), SeqCst);
                Ok(())
            }
            Err(e) => {
                self.flights.total.fetch_sub(fds.len(), Relaxed);
                // Others of the same user can bring the host to its limit as well.
                Err(if matches!(e, Errno::EAGAIN | Errno::ENOBUFS) { Errno::ETOOMANYREFS } else { e })
            }
        }
    }

    /// As [`Control::send`], for the process of `space`, whose control socket this is.
    pub(super) fn send_to(&self, space: &Arc<Space>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        self.send(bytes, fds)?;
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
        self.given.fetch_sub(given, SeqCst);
        self.flights.total.fetch_sub(given, Relaxed);
        *stuck = (0, 0);
        true
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
        self.flights.total.fetch_sub(self.given.load(SeqCst), Relaxed);
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

    /// Counts `n` more, if there may be so many.
    fn admit(&self, n: usize) -> bool {
        let fits = |before: usize| before + n <= LIMIT;
        if fits(self.total.fetch_add(n, SeqCst)) {
            return true;
        }
        let now = now_ns();
        let last = self.swept_at.load(Relaxed);
        let mine =
            now.saturating_sub(last) >= SWEEP_NS && self.swept_at.compare_exchange(last, now, AcqRel, Relaxed).is_ok();
        if mine {
            self.sweep(now);
        }
        let fits = self.total.load(SeqCst) <= LIMIT;
        if !fits {
            self.total.fetch_sub(n, SeqCst);
        }
        fits
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
