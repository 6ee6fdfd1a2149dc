//! Signal sets, actions, queues (signal(7)).

use super::users::{self, Charge, Resource};
use std::collections::VecDeque;

pub const NSIG: i32 = 64;
pub const SIGRTMIN: i32 = 32;

/// A set of signals, bit `n - 1` for signal `n`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SigSet(pub u64);

impl SigSet {
    pub const fn of(sig: i32) -> Self {
        SigSet(1 << (sig - 1))
    }
    /// Signals that no mask can block.
    pub const UNBLOCKABLE: SigSet = SigSet(SigSet::of(libc::SIGKILL).0 | SigSet::of(libc::SIGSTOP).0);
    pub fn has(self, sig: i32) -> bool {
        (1..=NSIG).contains(&sig) && self.0 & (1 << (sig - 1)) != 0
    }
    pub fn add(&mut self, sig: i32) {
        self.0 |= Self::of(sig).0;
    }
    pub fn remove(&mut self, sig: i32) {
        self.0 &= !Self::of(sig).0;
    }
    pub fn union(self, o: SigSet) -> SigSet {
        SigSet(self.0 | o.0)
    }
    pub fn minus(self, o: SigSet) -> SigSet {
        SigSet(self.0 & !o.0)
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// `siginfo_t`, as the kernel lays it out: signal, errno, code, then the union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigInfo {
    pub signo: i32,
    pub errno: i32,
    pub code: i32,
    /// Bytes 16.. of `siginfo_t` (the union on 64-bit).
    pub fields: SigFields,
}

/// The parts of the union that Linux fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigFields {
    None,
    /// `kill`, `tgkill`, `SI_USER`.
    Kill {
        pid: i32,
        uid: u32,
    },
    /// `sigqueue`, message queues.
    Queue {
        pid: i32,
        uid: u32,
        value: u64,
    },
    /// POSIX timers.
    Timer {
        id: i32,
        overrun: i32,
        value: u64,
    },
    Child {
        pid: i32,
        uid: u32,
        status: i32,
        utime: i64,
        stime: i64,
    },
    Fault {
        addr: u64,
    },
    Poll {
        band: i64,
        fd: i32,
    },
    Sys {
        addr: u64,
        nr: i32,
    },
    /// `rt_sigqueueinfo`: the sender's bytes, unchanged.
    Raw([u8; 112]),
}

impl SigInfo {
    pub fn kernel(signo: i32) -> Self {
        SigInfo { signo, errno: 0, code: 0x80, fields: SigFields::Kill { pid: 0, uid: 0 } }
    }
    pub fn user(signo: i32, pid: i32, uid: u32) -> Self {
        SigInfo { signo, errno: 0, code: 0, fields: SigFields::Kill { pid, uid } }
    }
    /// The 128 bytes that the guest reads.
    pub fn to_bytes(&self) -> [u8; 128] {
        let mut b = [0u8; 128];
        b[0..4].copy_from_slice(&self.signo.to_le_bytes());
        b[4..8].copy_from_slice(&self.errno.to_le_bytes());
        b[8..12].copy_from_slice(&self.code.to_le_bytes());
        let mut put = |at: usize, v: &[u8]| b[at..at + v.len()].copy_from_slice(v);
        match self.fields {
            SigFields::None => {}
            SigFields::Kill { pid, uid } => {
                put(16, &pid.to_le_bytes());
                put(20, &uid.to_le_bytes());
            }
            SigFields::Queue { pid, uid, value } => {
                put(16, &pid.to_le_bytes());
                put(20, &uid.to_le_bytes());
                put(24, &value.to_le_bytes());
            }
            SigFields::Timer { id, overrun, value } => {
                put(16, &id.to_le_bytes());
                put(20, &overrun.to_le_bytes());
                put(24, &value.to_le_bytes());
            }
            SigFields::Child { pid, uid, status, utime, stime } => {
                put(16, &pid.to_le_bytes());
                put(20, &uid.to_le_bytes());
                put(24, &status.to_le_bytes());
                put(32, &utime.to_le_bytes());
                put(40, &stime.to_le_bytes());
            }
            SigFields::Fault { addr } => put(16, &addr.to_le_bytes()),
            SigFields::Poll { band, fd } => {
                put(16, &band.to_le_bytes());
                put(24, &fd.to_le_bytes());
            }
            SigFields::Sys { addr, nr } => {
                put(16, &addr.to_le_bytes());
                put(24, &nr.to_le_bytes());
                put(28, &0xc000_003eu32.to_le_bytes());
            }
            SigFields::Raw(raw) => put(16, &raw),
        }
        b
    }
    pub fn from_bytes(b: &[u8; 128]) -> Self {
        let i = |at: usize| i32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let mut raw = [0u8; 112];
        raw.copy_from_slice(&b[16..128]);
        SigInfo { signo: i(0), errno: i(4), code: i(8), fields: SigFields::Raw(raw) }
    }
}

pub const SIG_DFL: u64 = 0;
pub const SIG_IGN: u64 = 1;

/// `struct sigaction` of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SigAction {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: SigSet,
}

/// Actions of a thread group; shared by `CLONE_SIGHAND`.
#[derive(Clone, Debug)]
pub struct SigActions(pub [SigAction; NSIG as usize]);

impl Default for SigActions {
    fn default() -> Self {
        SigActions([SigAction::default(); NSIG as usize])
    }
}

impl SigActions {
    pub fn get(&self, sig: i32) -> SigAction {
        self.0[(sig - 1) as usize]
    }
    pub fn set(&mut self, sig: i32, a: SigAction) {
        self.0[(sig - 1) as usize] = a;
    }
    /// True if sending the signal has no effect, by `SIG_IGN` or by default.
    pub fn ignored(&self, sig: i32) -> bool {
        match self.get(sig).handler {
            SIG_IGN => true,
            SIG_DFL => default_action(sig) == Default_::Ignore,
            _ => false,
        }
    }
    /// `execve`: handlers are reset to default, ignored signals stay ignored.
    pub fn reset_for_exec(&mut self) {
        for a in &mut self.0 {
            if a.handler != SIG_IGN {
                *a = SigAction::default();
            } else {
                *a = SigAction { handler: SIG_IGN, ..SigAction::default() };
            }
        }
    }
}

/// Default actions (signal(7), "Standard signals").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default_ {
    Terminate,
    Core,
    Ignore,
    Stop,
    Continue,
}

pub fn default_action(sig: i32) -> Default_ {
    match sig {
        libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH => Default_::Ignore,
        libc::SIGCONT => Default_::Continue,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => Default_::Stop,
        libc::SIGQUIT
        | libc::SIGILL
        | libc::SIGABRT
        | libc::SIGFPE
        | libc::SIGSEGV
        | libc::SIGBUS
        | libc::SIGSYS
        | libc::SIGTRAP
        | libc::SIGXCPU
        | libc::SIGXFSZ => Default_::Core,
        _ => Default_::Terminate,
    }
}

/// Pending signals of a task or of a thread group.
#[derive(Debug, Default)]
pub struct Pending {
    pub set: SigSet,
    queue: VecDeque<Queued>,
}

#[derive(Debug)]
struct Queued {
    info: SigInfo,
    _charge: Option<Charge>,
}

/// The user that a queued signal is charged to (the receiver's real user id) and that user's limit.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    pub uid: u32,
    pub limit: u64,
}

impl Pending {
    /// Adds a signal. A standard signal that is already pending is dropped; a real-time signal is queued
    /// within its user's limit (`RLIMIT_SIGPENDING`). Returns false if the limit is reached.
    pub fn push(&mut self, info: SigInfo, quota: Option<Quota>) -> bool {
        // A POSIX timer has an entry of its own, which no other signal replaces.
        let timer = matches!(info.fields, SigFields::Timer { .. });
        if info.signo < SIGRTMIN && self.set.has(info.signo) && !timer {
            return true;
        }
        self.set.add(info.signo);
        let mut charge = None;
        if let Some(q) = quota.filter(|_| info.signo >= SIGRTMIN && !timer) {
            charge = users::of(q.uid).charge(Resource::Signals, q.limit);
            if charge.is_none() {
                return false;
            }
        }
        self.queue.push_back(Queued { info, _charge: charge });
        true
    }
    /// Takes the next signal of `allowed`: synchronous faults first, then the lowest number.
    pub fn take(&mut self, allowed: SigSet) -> Option<SigInfo> {
        let ready = self.set.0 & allowed.0;
        if ready == 0 {
            return None;
        }
        const SYNC: u64 = SigSet::of(libc::SIGSEGV).0
            | SigSet::of(libc::SIGBUS).0
            | SigSet::of(libc::SIGILL).0
            | SigSet::of(libc::SIGTRAP).0
            | SigSet::of(libc::SIGFPE).0
            | SigSet::of(libc::SIGSYS).0;
        let pick = if ready & SYNC != 0 { ready & SYNC } else { ready };
        let sig = pick.trailing_zeros() as i32 + 1;
        let at = self.queue.iter().position(|q| q.info.signo == sig);
        let info = at.and_then(|i| self.queue.remove(i)).map(|q| q.info).unwrap_or(SigInfo {
            signo: sig,
            errno: 0,
            code: 0,
            fields: SigFields::Kill { pid: 0, uid: 0 },
        });
        if !self.queue.iter().any(|q| q.info.signo == sig) {
            self.set.remove(sig);
        }
        if self.queue.capacity() > 64 && self.queue.len() * 4 < self.queue.capacity() {
            self.queue.shrink_to(self.queue.len() * 2);
        }
        Some(info)
    }
    /// Reverts `take`.
    pub fn put_back(&mut self, info: SigInfo) {
        self.set.add(info.signo);
        self.queue.push_front(Queued { info, _charge: None });
    }
    pub fn discard(&mut self, doomed: SigSet) {
        self.set = self.set.minus(doomed);
        self.queue.retain(|q| !doomed.has(q.info.signo));
    }
}

/// `sigaltstack`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AltStack {
    pub sp: u64,
    pub size: u64,
    /// `SS_DISABLE`, `SS_AUTODISARM`.
    pub flags: i32,
}
