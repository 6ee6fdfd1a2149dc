//! Births: how a forked stub gets its hand-off area and its control socket, and nobody else does.
//!
//! The child of a fork is made by hostile memory, so nothing in that memory can keep a descriptor for it alone. The child
//! makes the birth call instead, which its filter turns into a user notification; the Sentry looks the token up (random,
//! good for one use) and puts both descriptors into the caller's table, which after a `clone` without `CLONE_FILES` is the
//! child's own.
//!
//! A process of the guest's that makes the call with a token of its own fork, instead of the child, gets what would have
//! been the child's: memory shared with the Sentry for a process that does not exist. It has gained nothing.
//!
//! # Forks that nobody asked for
//! Hostile code can also make the `clone` of a fork and not the birth call. The result is a process with its maker's
//! memory and no area of its own: its first trapped call or fault ends it, and it can reach nothing, but it may compute.
//! It counts against the sandbox's cgroup and ends with the sandbox's pid namespace; until then the Sentry does not know
//! of it. (Asking the Sentry's leave for each `clone` would not help: the child of a fork that was asked for can go
//! astray too.)

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::abi;
use super::space::Space;
use super::watched::Area;
use super::Inner;
use crate::{host, Errno};

/// A birth that is awaited.
pub(super) struct Birth {
    token: u64,
    slot: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the child is to get: area, its memfd, our end and its end of the control socket.
    gifts: Option<(Arc<Area>, OwnedFd, OwnedFd, OwnedFd)>,
    outcome: Option<Result<Arc<Space>, Errno>>,
    waker: Option<Waker>,
}

impl Birth {
    pub(super) fn token(&self) -> u64 {
        self.token
    }
    /// The new address space, once the child has asked for its descriptors.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<Arc<Space>, Errno>> {
        let mut state = self.state.lock();
        match state.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

pub(super) struct Births {
    listener: Arc<OwnedFd>,
    pending: Mutex<HashMap<u64, Arc<Birth>>>,
}

impl Births {
    pub(super) fn new(listener: OwnedFd) -> Self {
        Births { listener: Arc::new(listener), pending: Mutex::default() }
    }
    pub(super) fn listener(&self) -> Arc<OwnedFd> {
        self.listener.clone()
    }
    /// Awaits the child of a fork of the thread in `slot`.
    pub(super) fn expect(&self, slot: usize) -> Result<Arc<Birth>, Errno> {
        let (area, area_fd) = Area::new().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::ENOMEM)))?;
        let (ours, theirs) = super::launch::control_pair()?;
        let state = State { gifts: Some((area, area_fd, ours, theirs)), ..State::default() };
        let birth = Arc::new(Birth { token: host::random_u64(), slot, state: Mutex::new(state) });
        self.pending.lock().insert(birth.token, birth.clone());
        Ok(birth)
    }
    pub(super) fn forget(&self, birth: &Birth) {
        self.pending.lock().remove(&birth.token);
    }

    /// Answers every birth call that waits.
    pub(super) fn serve(&self, inner: &Inner) {
        while host::readable_now(self.listener.as_fd()) {
            // SAFETY: all zeroes is a valid `seccomp_notif`, and the kernel demands it.
            let mut req: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel writes one `seccomp_notif`.
            let r = unsafe { libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &mut req) };
            if r < 0 {
                // The caller was killed meanwhile.
                continue;
            }
            let pid = req.pid as i32;
            let birth = self.pending.lock().remove(&req.data.args[0]);
            // A process that we know already does not get born.
            let birth = birth.filter(|_| !inner.stubs.lock().contains_key(&pid));
            let Some(birth) = birth else {
                log::warn!("stub {pid}: a birth that nobody awaits");
                self.refuse(req.id, pid);
                continue;
            };
            let gifts = birth.state.lock().gifts.take();
            let outcome = match gifts {
                Some((area, area_fd, ours, theirs)) => {
                    self.give(req.id, &theirs, &area_fd).and_then(|()| inner.adopt(pid, area, ours, birth.slot))
                }
                None => Err(Errno::EINVAL),
            };
            if outcome.is_err() {
                self.refuse(req.id, pid);
            }
            let waker = {
                let mut state = birth.state.lock();
                state.outcome = Some(outcome);
                state.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Puts the descriptors into the caller's table and lets its call return.
    fn give(&self, id: u64, control: &OwnedFd, area: &OwnedFd) -> Result<(), Errno> {
        let set = libc::SECCOMP_ADDFD_FLAG_SETFD as u32;
        self.add_fd(id, control, abi::CTL_FD, set)?;
        self.add_fd(id, area, abi::AREA_FD, set | libc::SECCOMP_ADDFD_FLAG_SEND as u32)
    }

    fn add_fd(&self, id: u64, fd: &OwnedFd, number: i32, flags: u32) -> Result<(), Errno> {
        let add =
            libc::seccomp_notif_addfd { id, flags, srcfd: fd.as_raw_fd() as u32, newfd: number as u32, newfd_flags: 0 };
        // SAFETY: the kernel reads one `seccomp_notif_addfd`.
        Errno::result(unsafe { libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &add) })
            .map(drop)
    }

    /// Ends a process that we did not ask for. It is still ours to reap, so the pid is its own.
    fn refuse(&self, id: u64, pid: i32) {
        // SAFETY: the kernel reads one id.
        let valid = unsafe { libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &id) } == 0;
        if valid {
            // SAFETY: no memory is involved.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}
