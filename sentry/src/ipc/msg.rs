//! Message queues (msgsnd(2), msgrcv(2), msgctl(2)).

use super::{now, IpcNamespace, Object, Perm, SetPerm};
use crate::abi::PollEvents;
use crate::error::{Errno, Restart, Result, SysError, SysResult};
use crate::kernel::cred::CAP_SYS_RESOURCE;
use crate::kernel::wait::{WaitError, WaitQueue};
use crate::kernel::{Cred, Task};
use parking_lot::Mutex;
use platform::budget::{of_heap, Budget, Charge};
use std::collections::VecDeque;
use std::sync::LazyLock;

/// Linux's limit is 32000; this one is lower since the messages use the Sentry's memory.
pub const MSGMNI: usize = 2000;
pub const MSGMAX: usize = 8192;
pub const MSGMNB: u64 = 16384;

pub const MSG_NOERROR: i32 = 0o10000;
pub const MSG_EXCEPT: i32 = 0o20000;
pub const MSG_COPY: i32 = 0o40000;

/// Memory of a message besides its bytes.
const OVERHEAD: u64 = 48;
/// Memory limit of the messages in all queues of the sandbox.
const ALL_MAX: u64 = 64 << 20;
static ALL: LazyLock<Budget> = LazyLock::new(|| Budget::new(of_heap(ALL_MAX, 2)));

pub struct Message {
    pub kind: i64,
    pub data: Vec<u8>,
}

impl Message {
    fn cost(&self) -> u64 {
        self.data.len() as u64 + OVERHEAD
    }
}

struct State {
    perm: Perm,
    messages: VecDeque<Message>,
    /// Charge of the queued messages.
    room: Charge,
    bytes: u64,
    qbytes: u64,
    stime: i64,
    rtime: i64,
    ctime: i64,
    lspid: i32,
    lrpid: i32,
    removed: bool,
}

impl State {
    fn clear(&mut self) {
        self.room.set(0);
        self.messages = VecDeque::new();
        self.bytes = 0;
    }
    /// Charges a message that is to be queued.
    fn reserve(&mut self, m: &Message) -> Result<()> {
        let more = self.room.amount() + m.cost();
        self.room.set(more).then_some(()).ok_or(Errno::ENOMEM)
    }
    /// Removes message `i`.
    fn take(&mut self, i: usize) -> Option<Message> {
        let m = self.messages.remove(i)?;
        self.bytes -= m.data.len() as u64;
        self.room.set(self.room.amount().saturating_sub(m.cost()));
        if self.messages.capacity() > 64 && self.messages.len() * 4 < self.messages.capacity() {
            self.messages.shrink_to(self.messages.len() * 2);
        }
        Some(m)
    }
}

pub struct Queue {
    state: Mutex<State>,
    /// Senders wait for room, receivers for messages.
    room: WaitQueue,
    arrivals: WaitQueue,
}

impl Object for Queue {
    fn perm(&self) -> Perm {
        self.state.lock().perm
    }
}

/// Position of the message that a receiver selects.
fn select(messages: &VecDeque<Message>, kind: i64, flags: i32) -> Option<usize> {
    if flags & MSG_COPY != 0 {
        return usize::try_from(kind).ok().filter(|i| *i < messages.len());
    }
    match kind {
        0 => (!messages.is_empty()).then_some(0),
        1.. if flags & MSG_EXCEPT != 0 => messages.iter().position(|m| m.kind != kind),
        1.. => messages.iter().position(|m| m.kind == kind),
        // The first message of the lowest type up to the limit.
        _ => {
            let limit = kind.checked_neg().unwrap_or(i64::MAX);
            let lowest = messages.iter().map(|m| m.kind).filter(|k| *k <= limit).min()?;
            messages.iter().position(|m| m.kind == lowest)
        }
    }
}

fn interrupted(e: WaitError) -> SysError {
    match e {
        WaitError::Interrupted => SysError::Restart(Restart::NoHand),
        WaitError::TimedOut => Errno::EAGAIN.into(),
    }
}

impl Queue {
    pub fn new(perm: Perm) -> Self {
        Queue {
            state: Mutex::new(State {
                perm,
                messages: VecDeque::new(),
                room: ALL.nothing(),
                bytes: 0,
                qbytes: MSGMNB,
                stime: 0,
                rtime: 0,
                ctime: now(),
                lspid: 0,
                lrpid: 0,
                removed: false,
            }),
            room: WaitQueue::new(),
            arrivals: WaitQueue::new(),
        }
    }

    pub async fn send(&self, task: &Task, message: Message, flags: i32) -> SysResult {
        let len = message.data.len() as u64;
        let mut message = Some(message);
        let mut attempt = || -> SysResult<bool> {
            let mut s = self.state.lock();
            if s.removed {
                return Err(Errno::EIDRM.into());
            }
            s.perm.check(&task.ipc_cred(), 0o222)?;
            if s.bytes + len > s.qbytes || s.messages.len() as u64 + 1 > s.qbytes {
                return Ok(false);
            }
            if let Some(m) = message.take() {
                s.reserve(&m)?;
                s.bytes += len;
                s.messages.push_back(m);
            }
            s.lspid = task.group.pid;
            s.stime = now();
            Ok(true)
        };
        let mut step = || match attempt() {
            Ok(true) => Some(Ok(0)),
            Ok(false) if flags & libc::IPC_NOWAIT != 0 => Some(Err(Errno::EAGAIN.into())),
            Ok(false) => None,
            Err(e) => Some(Err(e)),
        };
        let r = task.wait(&[(&self.room, PollEvents::all())], None, &mut step).await.map_err(interrupted)?;
        if r.is_ok() {
            self.arrivals.wake_all();
        }
        r
    }

    pub async fn receive(&self, task: &Task, max: usize, kind: i64, flags: i32) -> SysResult<Message> {
        let attempt = || -> SysResult<Option<Message>> {
            let mut s = self.state.lock();
            if s.removed {
                return Err(Errno::EIDRM.into());
            }
            s.perm.check(&task.ipc_cred(), 0o444)?;
            let Some(i) = select(&s.messages, kind, flags) else { return Ok(None) };
            let found = s.messages.get(i).ok_or(Errno::ENOMSG)?;
            if found.data.len() > max && flags & MSG_NOERROR == 0 {
                return Err(Errno::E2BIG.into());
            }
            if flags & MSG_COPY != 0 {
                return Ok(Some(Message { kind: found.kind, data: found.data.clone() }));
            }
            let m = s.take(i).ok_or(Errno::ENOMSG)?;
            s.lrpid = task.group.pid;
            s.rtime = now();
            Ok(Some(m))
        };
        let mut step = || match attempt() {
            Ok(Some(m)) => Some(Ok(m)),
            Ok(None) if flags & libc::IPC_NOWAIT != 0 => Some(Err(Errno::ENOMSG.into())),
            Ok(None) => None,
            Err(e) => Some(Err(e)),
        };
        let mut m = task.wait(&[(&self.arrivals, PollEvents::all())], None, &mut step).await.map_err(interrupted)??;
        self.room.wake_all();
        m.data.truncate(max);
        Ok(m)
    }

    /// `IPC_SET`; a size above the default needs privilege.
    pub fn set(&self, cred: &Cred, new: SetPerm, qbytes: u64) -> Result<()> {
        {
            let mut s = self.state.lock();
            s.perm.check_owner(cred)?;
            if qbytes > MSGMNB && !cred.has(CAP_SYS_RESOURCE) {
                return Err(Errno::EPERM);
            }
            s.perm.set(new)?;
            s.qbytes = qbytes.min(1 << 24);
            s.ctime = now();
        }
        self.room.wake_all();
        Ok(())
    }

    pub fn remove(&self, ns: &IpcNamespace, cred: &Cred, id: i32) -> Result<()> {
        {
            let mut s = self.state.lock();
            s.perm.check_owner(cred)?;
            s.removed = true;
            s.clear();
        }
        ns.msgs.remove(id);
        self.room.wake_all();
        self.arrivals.wake_all();
        Ok(())
    }

    /// Number of messages and bytes in the queue.
    pub fn usage(&self) -> (usize, u64) {
        let s = self.state.lock();
        (s.messages.len(), s.bytes)
    }

    /// `struct msqid64_ds`.
    pub fn stat(&self) -> [u8; 120] {
        let s = self.state.lock();
        let mut b = [0u8; 120];
        b[..48].copy_from_slice(&s.perm.to_bytes());
        let words = [s.stime as u64, s.rtime as u64, s.ctime as u64, s.bytes, s.messages.len() as u64, s.qbytes];
        for (slot, w) in b[48..96].chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&w.to_le_bytes());
        }
        b[96..100].copy_from_slice(&s.lspid.to_le_bytes());
        b[100..104].copy_from_slice(&s.lrpid.to_le_bytes());
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_queues_together_have_a_bound() {
        let perm = Perm { key: 0, uid: 0, gid: 0, cuid: 0, cgid: 0, mode: 0, seq: 0 };
        let fill = |q: &Queue| -> usize {
            let mut s = q.state.lock();
            for n in 0..1 << 16 {
                let m = Message { kind: 1, data: vec![0; MSGMAX] };
                if s.reserve(&m).is_err() {
                    return n;
                }
                s.bytes += MSGMAX as u64;
                s.messages.push_back(m);
            }
            usize::MAX
        };
        let (a, b) = (Queue::new(perm), Queue::new(perm));
        let most = (ALL_MAX / (MSGMAX as u64 + OVERHEAD)) as usize;
        assert_eq!((fill(&a), fill(&b)), (most, 0));
        assert!(a.state.lock().take(5).is_some());
        assert_eq!(fill(&b), 1);
        a.state.lock().clear();
        drop(b);
        assert_eq!(ALL.left(), ALL_MAX);
    }

    #[test]
    fn receivers_choose_by_kind() {
        let q: VecDeque<Message> = [5, 3, 4, 3].map(|kind| Message { kind, data: vec![] }).into();
        assert_eq!(select(&q, 0, 0), Some(0));
        assert_eq!(select(&q, 3, 0), Some(1));
        assert_eq!(select(&q, 9, 0), None);
        assert_eq!(select(&q, 5, MSG_EXCEPT), Some(1));
        assert_eq!(select(&q, -4, 0), Some(1));
        assert_eq!(select(&q, -2, 0), None);
        assert_eq!(select(&q, i64::MIN, 0), Some(1));
        assert_eq!(select(&q, 2, MSG_COPY), Some(2));
        assert_eq!(select(&q, 4, MSG_COPY), None);
    }
}
