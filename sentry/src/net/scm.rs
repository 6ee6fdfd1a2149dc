//! Ancillary data of a message: open files and credentials (unix(7), cmsg(3)).
//!
//! Files in flight are charged to the sending user and bounded by [`MAX_IN_FLIGHT`]; one user gets at most half of it.
//! Sockets in flight that are referenced only from each other's queues are garbage-collected ([`gc`]).

use super::unix::gc;
use crate::error::{Errno, Result};
use crate::fs::File;
use crate::kernel::cred::{CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, CAP_SYS_RESOURCE, NO_ID};
use crate::kernel::pid_ns::Pid;
use crate::kernel::user_ns::{Id, OVERFLOW_ID};
use crate::kernel::users::{self, Charge, Resource, MAX_IN_FLIGHT};
use crate::kernel::Task;
use platform::executor::Rounds;
use std::cell::RefCell;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Most descriptors in one message (`SCM_MAX_FD`).
const MAX_FDS: usize = 253;
/// Limit of the files that one user may have in flight.
const MAX_OF_USER: u64 = MAX_IN_FLIGHT / 2;
/// Longest control data (`net.core.optmem_max`).
pub const MAX_CONTROL: usize = 20480;
const HDR: usize = 16;

/// `struct ucred`, in the view of one task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct WireCred {
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

/// The sender of a message or the peer of a connection: its pid in all namespaces, and kernel ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ucred {
    pub pid: Pid,
    pub uid: u32,
    pub gid: u32,
}

impl Ucred {
    /// The credentials of a sender for `SCM_CREDENTIALS`.
    pub fn real(task: &Task) -> Self {
        let c = task.cred();
        Ucred { pid: task.group.id.clone(), uid: c.uid, gid: c.gid }
    }
    /// The credentials of a peer for `SO_PEERCRED`.
    pub fn effective(task: &Task) -> Self {
        let c = task.cred();
        Ucred { pid: task.group.id.clone(), uid: c.euid, gid: c.egid }
    }
    /// Unknown credentials.
    pub fn none() -> Self {
        Ucred { pid: Pid::default(), uid: NO_ID, gid: NO_ID }
    }
    /// The view of `task`; unknown and unmapped ids are [`OVERFLOW_ID`](crate::kernel::user_ns::OVERFLOW_ID).
    pub fn seen_by(&self, task: &Task) -> WireCred {
        let ns = &task.cred().user_ns;
        WireCred {
            pid: task.nr_of(&self.pid),
            uid: ns.id_out(Id::User, self.uid).unwrap_or(OVERFLOW_ID),
            gid: ns.id_out(Id::Group, self.gid).unwrap_or(OVERFLOW_ID),
        }
    }
}

/// Handles a control message of another level: level, type, data.
pub type Other<'a> = dyn FnMut(i32, i32, &[u8]) -> Result<()> + 'a;

/// A file in flight. A peek returns a copy that is not charged.
pub struct InFlight {
    file: Option<Arc<File>>,
    _charge: Option<Charge>,
    /// It is in a queue and counted by [`gc`].
    queued: bool,
}

impl InFlight {
    fn new(file: Arc<File>, charge: Option<Charge>) -> InFlight {
        InFlight { file: Some(file), _charge: charge, queued: false }
    }
    pub fn file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }
    pub fn into_file(mut self) -> Option<Arc<File>> {
        self.unqueued();
        self.file.take()
    }
    fn queued(&mut self) {
        if let (false, Some(file)) = (self.queued, &self.file) {
            gc::queued(file);
            self.queued = true;
        }
    }
    fn unqueued(&mut self) {
        if let (true, Some(file)) = (self.queued, &self.file) {
            gc::unqueued(file);
            self.queued = false;
        }
    }
}

thread_local! {
    /// Files that this thread is dropping. A file may be a socket whose queue holds files, and so on: the list replaces
    /// unbounded recursion.
    static DROPPING: RefCell<Option<Vec<Arc<File>>>> = const { RefCell::new(None) };
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.unqueued();
        let Some(file) = self.file.take() else { return };
        let outermost = DROPPING.with(|d| match &mut *d.borrow_mut() {
            Some(list) => {
                list.push(file);
                false
            }
            none => {
                *none = Some(vec![file]);
                true
            }
        });
        if !outermost {
            return;
        }
        let mut rounds = Rounds::new();
        loop {
            rounds.next();
            let next = DROPPING.with(|d| {
                let mut d = d.borrow_mut();
                let next = d.as_mut().and_then(|l| l.pop());
                if next.is_none() {
                    *d = None;
                }
                next
            });
            match next {
                Some(f) => drop(f),
                None => return,
            }
        }
    }
}

/// The IP header fields of a datagram that a receiver may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub to: std::net::IpAddr,
    /// The remaining hop limit.
    pub hops: u8,
    /// Type of service, traffic class.
    pub class: u8,
}

#[derive(Default)]
pub struct Scm {
    pub files: Vec<InFlight>,
    pub cred: Option<Ucred>,
    /// Control data from the header of a datagram (`IP_PKTINFO`, `IP_TTL`, `IP_TOS`).
    pub header: Option<Header>,
}

impl Scm {
    /// Marks the files as queued. The caller holds the queue's lock.
    pub fn queued(&mut self) {
        self.files.iter_mut().for_each(InFlight::queued);
    }
    /// Marks the files as taken out of a queue. The caller holds its lock.
    pub fn unqueued(&mut self) {
        self.files.iter_mut().for_each(InFlight::unqueued);
    }
    /// The copy for `MSG_PEEK`. The caller holds the queue's lock.
    pub fn peek(&self) -> Box<Scm> {
        Box::new(Scm {
            files: self
                .files
                .iter()
                .filter_map(|f| f.file.clone())
                .inspect(gc::peeked)
                .map(|f| InFlight::new(f, None))
                .collect(),
            cred: self.cred.clone(),
            header: self.header,
        })
    }
    /// The part that stays with the rest of a partly read stretch.
    pub fn rest(&self) -> Option<Box<Scm>> {
        self.cred.clone().map(|c| Box::new(Scm { cred: Some(c), ..Scm::default() }))
    }

    /// Parses the control data of a sendmsg(2). Messages of other levels go to `other`.
    pub fn parse(task: &Task, control: &[u8], other: &mut Other<'_>) -> Result<Option<Box<Scm>>> {
        let mut scm: Option<Box<Scm>> = None;
        let mut at = 0usize;
        while control.len().saturating_sub(at) >= HDR {
            let h = &control[at..];
            let word = |i: usize| i32::from_ne_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
            let len = u64::from_ne_bytes([h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]]);
            let (level, kind) = (word(8), word(12));
            let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
            if len < HDR || len > h.len() {
                return Err(Errno::EINVAL);
            }
            let data = &h[HDR..len];
            match (level, kind) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    scm.get_or_insert_default().add_files(task, data)?;
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                    let c = WireCred::read_from_bytes(data).map_err(|_| Errno::EINVAL)?;
                    scm.get_or_insert_default().cred = Some(claimed(task, c)?);
                }
                (libc::SOL_SOCKET, _) => return Err(Errno::EINVAL),
                _ => other(level, kind, data)?,
            }
            at += len.next_multiple_of(8);
        }
        Ok(scm)
    }

    fn add_files(&mut self, task: &Task, data: &[u8]) -> Result<()> {
        let fds = data.chunks_exact(4).map(|c| i32::from_ne_bytes([c[0], c[1], c[2], c[3]]));
        if self.files.len() + fds.len() > MAX_FDS {
            return Err(Errno::EINVAL);
        }
        let cred = task.cred();
        let privileged = cred.has(CAP_SYS_RESOURCE) || cred.has(CAP_SYS_ADMIN);
        if !privileged && users::count(cred.uid, Resource::InFlight) > task.limit(libc::RLIMIT_NOFILE) {
            gc::ask();
            return Err(Errno::ETOOMANYREFS);
        }
        let user = users::of(cred.uid);
        let table = task.files();
        for fd in fds {
            let file = table.get(fd)?;
            let charge = user.charge(Resource::InFlight, MAX_OF_USER).ok_or_else(|| {
                gc::ask();
                Errno::ETOOMANYREFS
            })?;
            self.files.push(InFlight::new(file, Some(charge)));
        }
        Ok(())
    }
}

/// The credentials that `task` sends as `c`, if it may.
fn claimed(task: &Task, c: WireCred) -> Result<Ucred> {
    let own = task.cred();
    let (uid, gid) = (own.user_ns.uid_in(c.uid)?, own.user_ns.gid_in(c.gid)?);
    let itself = c.pid == task.group.id.own();
    let pid_ok = itself || own.capable_in(&task.pid_ns().owner(), CAP_SYS_ADMIN);
    let uid_ok = [own.uid, own.euid, own.suid].contains(&uid) || own.has_own(CAP_SETUID);
    let gid_ok = [own.gid, own.egid, own.sgid].contains(&gid) || own.has_own(CAP_SETGID);
    if !(pid_ok && uid_ok && gid_ok) {
        return Err(Errno::EPERM);
    }
    let pid = if itself { task.group.id.clone() } else { task.find_group(c.pid).ok_or(Errno::ESRCH)?.id.clone() };
    Ok(Ucred { pid, uid, gid })
}

/// Control data for the guest, limited to its buffer.
pub struct Control {
    pub data: Vec<u8>,
    room: usize,
    pub truncated: bool,
}

impl Control {
    pub fn new(room: usize) -> Self {
        Control { data: Vec::new(), room, truncated: false }
    }
    /// Adds one message, truncated to the room left.
    pub fn put(&mut self, level: i32, kind: i32, data: &[u8]) {
        let left = self.room.saturating_sub(self.data.len());
        if left < HDR {
            self.truncated = true;
            return;
        }
        let n = data.len().min(left - HDR);
        if n < data.len() {
            self.truncated = true;
        }
        self.data.extend_from_slice(&((HDR + n) as u64).to_ne_bytes());
        self.data.extend_from_slice(&level.to_ne_bytes());
        self.data.extend_from_slice(&kind.to_ne_bytes());
        self.data.extend_from_slice(&data[..n]);
        // Padding counts as far as there is room for it.
        let padded = self.data.len().next_multiple_of(8).min(self.room);
        self.data.resize(padded, 0);
    }
    /// How many descriptors still fit.
    fn fds_that_fit(&self) -> usize {
        self.room.saturating_sub(self.data.len()).saturating_sub(HDR) / 4
    }
    /// Installs the files of a message as descriptors of `task`; files that do not fit are dropped.
    pub fn put_files(&mut self, task: &Task, files: Vec<InFlight>, cloexec: bool) {
        let fit = self.fds_that_fit();
        let mut fds = Vec::new();
        for f in files {
            if fds.len() / 4 >= fit {
                self.truncated = true;
                break;
            }
            let Some(fd) = f.into_file().and_then(|f| task.install_fd(f, cloexec).ok()) else {
                self.truncated = true;
                break;
            };
            fds.extend_from_slice(&fd.to_ne_bytes());
        }
        if !fds.is_empty() {
            self.put(libc::SOL_SOCKET, libc::SCM_RIGHTS, &fds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_is_cut_to_its_room() {
        let mut c = Control::new(40);
        c.put(1, 2, &[1; 12]);
        assert_eq!((c.data.len(), c.truncated), (32, false));
        c.put(1, 2, &[1; 12]);
        assert_eq!((c.data.len(), c.truncated), (32, true));
        let mut c = Control::new(20);
        c.put(1, 2, &[1; 12]);
        assert_eq!((c.data.len(), c.truncated), (20, true));
    }
}
