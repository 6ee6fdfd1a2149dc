//! Semaphore sets (semop(2), semctl(2)).
//!
//! The operations of one call take effect together or not at all; a waiting caller tries again after each
//! change of the set. The set keeps the `SEM_UNDO` adjustments, by process.

use super::{now, IpcNamespace, Object, Perm, SetPerm};
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysError, SysResult};
use crate::kernel::wait::{WaitError, WaitQueue};
use crate::kernel::{Cred, Task};
use parking_lot::Mutex;
use platform::budget::{of_heap, Budget, Charge};
use platform::executor::Rounds;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Weak};

pub const SEMMNI: usize = 32000;
pub const SEMMSL: usize = 32000;
/// Number of semaphores in all sets, which bounds the Sentry's memory (Linux's default is 1,024,000,000).
pub const SEMMNS: usize = 1 << 20;
static TOTAL: Budget = Budget::new(SEMMNS as u64);
pub const SEMOPM: usize = 500;
pub const SEMVMX: i32 = 32767;

pub const SEM_UNDO: i16 = 0x1000;

/// `struct sembuf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    pub num: u16,
    pub op: i16,
    pub flags: i16,
}

#[derive(Clone, Copy, Default)]
struct Sem {
    value: i32,
    /// The process that changed it last.
    pid: i32,
}

/// Adjustments in all sets, of all processes.
static UNDO: LazyLock<Budget> = LazyLock::new(|| Budget::new(of_heap(UNDO_COST << 20, 2) / UNDO_COST));
/// Approximate bytes of one adjustment.
const UNDO_COST: u64 = 64;

struct State {
    perm: Perm,
    sems: Vec<Sem>,
    otime: i64,
    ctime: i64,
    removed: bool,
    /// Adjustments at exit, by process id.
    undo: BTreeMap<i32, (BTreeMap<u16, i32>, Charge)>,
    /// Waiters: the semaphore each waits for; true: waits for zero.
    waiting: BTreeMap<u64, (u16, bool)>,
    next_waiter: u64,
}

pub struct Set {
    state: Mutex<State>,
    queue: WaitQueue,
    undoers: Arc<Undoers>,
    _room: Charge,
}

/// The sets in which a process has adjustments, by process id and address: so that its end need not look into all.
#[derive(Default)]
pub struct Undoers(Mutex<BTreeMap<(i32, usize), Weak<Set>>>);

impl Undoers {
    fn has(&self, pid: i32) -> bool {
        self.0.lock().range((pid, 0)..=(pid, usize::MAX)).next().is_some()
    }
    fn take(&self, pid: i32) -> Vec<Weak<Set>> {
        let mut all = self.0.lock();
        let keys: Vec<_> = all.range((pid, 0)..=(pid, usize::MAX)).map(|(k, _)| *k).collect();
        keys.iter().filter_map(|k| all.remove(k)).collect()
    }
    fn forget(&self, pid: i32, set: &Set) {
        self.0.lock().remove(&(pid, std::ptr::from_ref(set) as usize));
    }
}

impl Object for Set {
    fn perm(&self) -> Perm {
        self.state.lock().perm
    }
}

/// Why a call cannot proceed now.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// This operation must wait.
    At(Op),
    Fail(Errno),
}

/// Tries all operations; reverts them if one fails. Adjustments go to `undo`, a copy of the process's.
fn attempt(sems: &mut [Sem], undo: &mut BTreeMap<u16, i32>, ops: &[Op], pid: i32) -> std::result::Result<(), Stop> {
    let mut before: Vec<(u16, Sem)> = Vec::with_capacity(ops.len());
    let mut one = |o: &Op| {
        let sem = sems.get_mut(usize::from(o.num)).ok_or(Stop::Fail(Errno::EFBIG))?;
        let value = sem.value + i32::from(o.op);
        if value < 0 || (o.op == 0 && value != 0) {
            return Err(Stop::At(*o));
        }
        if value > SEMVMX {
            return Err(Stop::Fail(Errno::ERANGE));
        }
        if o.op != 0 && o.flags & SEM_UNDO != 0 {
            let adj = undo.entry(o.num).or_default();
            *adj -= i32::from(o.op);
            if !(-SEMVMX - 1..=SEMVMX).contains(adj) {
                return Err(Stop::Fail(Errno::ERANGE));
            }
        }
        before.push((o.num, *sem));
        *sem = Sem { value, pid };
        Ok(())
    };
    let r = ops.iter().try_for_each(&mut one);
    if r.is_err() {
        for (num, old) in before.into_iter().rev() {
            if let Some(sem) = sems.get_mut(usize::from(num)) {
                *sem = old;
            }
        }
    }
    r
}

impl Set {
    /// `ENOSPC`: there would be too many semaphores.
    pub fn new(perm: Perm, n: usize, undoers: &Arc<Undoers>) -> Result<Self> {
        let room = TOTAL.take(n as u64).ok_or(Errno::ENOSPC)?;
        Ok(Set {
            state: Mutex::new(State {
                perm,
                sems: vec![Sem::default(); n],
                otime: 0,
                ctime: now(),
                removed: false,
                undo: BTreeMap::new(),
                waiting: BTreeMap::new(),
                next_waiter: 0,
            }),
            queue: WaitQueue::new(),
            undoers: undoers.clone(),
            _room: room,
        })
    }

    pub fn len(&self) -> usize {
        self.state.lock().sems.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tries once. `Ok(false)`: the caller must wait; `waiter` is registered for the operation that blocks.
    fn try_ops(self: &Arc<Self>, ops: &[Op], pid: i32, waiter: &mut Option<u64>) -> Result<bool> {
        let mut s = self.state.lock();
        if s.removed {
            return Err(Errno::EIDRM);
        }
        let undoes = ops.iter().any(|o| o.flags & SEM_UNDO != 0);
        let mut undo = match s.undo.get(&pid) {
            Some((u, _)) if undoes => u.clone(),
            _ => BTreeMap::new(),
        };
        // The maximum number of adjustments afterwards. Existing ones are counted twice until the old charge
        // is dropped.
        let mut charge = UNDO.take(if undoes { (undo.len() + ops.len()) as u64 } else { 0 }).ok_or(Errno::ENOMEM)?;
        match attempt(&mut s.sems, &mut undo, ops, pid) {
            Ok(()) => {
                if undoes {
                    undo.retain(|_, a| *a != 0);
                    if undo.is_empty() {
                        s.undo.remove(&pid);
                        self.undoers.forget(pid, self);
                    } else {
                        charge.set(undo.len() as u64);
                        if s.undo.insert(pid, (undo, charge)).is_none() {
                            let key = (pid, Arc::as_ptr(self) as usize);
                            self.undoers.0.lock().insert(key, Arc::downgrade(self));
                        }
                    }
                }
                s.otime = now();
                if let Some(w) = waiter.take() {
                    s.waiting.remove(&w);
                }
                drop(s);
                if ops.iter().any(|o| o.op != 0) {
                    self.queue.wake_all();
                }
                Ok(true)
            }
            Err(Stop::Fail(e)) => Err(e),
            Err(Stop::At(o)) if o.flags & libc::IPC_NOWAIT as i16 != 0 => Err(Errno::EAGAIN),
            Err(Stop::At(o)) => {
                let id = *waiter.get_or_insert_with(|| {
                    s.next_waiter += 1;
                    s.next_waiter
                });
                s.waiting.insert(id, (o.num, o.op == 0));
                Ok(false)
            }
        }
    }

    /// semtimedop(2), with checked arguments.
    pub async fn operate(self: &Arc<Self>, task: &Task, ops: &[Op], deadline_ns: Option<u64>) -> SysResult {
        let want = if ops.iter().any(|o| o.op != 0) { 0o222 } else { 0o444 };
        {
            let s = self.state.lock();
            if ops.iter().any(|o| usize::from(o.num) >= s.sems.len()) {
                return Err(Errno::EFBIG.into());
            }
            s.perm.check(&task.ipc_cred(), want)?;
        }
        let pid = task.group.pid;
        let mut waiter = None;
        let r = task
            .wait(&[(&self.queue, PollEvents::all())], deadline_ns, || match self.try_ops(ops, pid, &mut waiter) {
                Ok(true) => Some(Ok(0)),
                Ok(false) => None,
                Err(e) => Some(Err(SysError::from(e))),
            })
            .await;
        if let Some(w) = waiter {
            self.state.lock().waiting.remove(&w);
        }
        match r {
            Ok(r) => r,
            Err(WaitError::TimedOut) => Err(Errno::EAGAIN.into()),
            // Never restarted (signal(7)).
            Err(WaitError::Interrupted) => Err(Errno::EINTR.into()),
        }
    }

    fn read<R>(&self, cred: &Cred, f: impl FnOnce(&State) -> Result<R>) -> Result<R> {
        let s = self.state.lock();
        s.perm.check(cred, 0o444)?;
        f(&s)
    }

    pub fn value(&self, cred: &Cred, num: usize) -> Result<i32> {
        self.read(cred, |s| s.sems.get(num).map(|s| s.value).ok_or(Errno::EINVAL))
    }

    pub fn last_pid(&self, cred: &Cred, num: usize) -> Result<i32> {
        self.read(cred, |s| s.sems.get(num).map(|s| s.pid).ok_or(Errno::EINVAL))
    }

    /// Number of waiters for a larger value, or for zero.
    pub fn waiters(&self, cred: &Cred, num: usize, zero: bool) -> Result<u64> {
        self.read(cred, |s| {
            if num >= s.sems.len() {
                return Err(Errno::EINVAL);
            }
            Ok(s.waiting.values().filter(|(n, z)| usize::from(*n) == num && *z == zero).count() as u64)
        })
    }

    pub fn values(&self, cred: &Cred) -> Result<Vec<u16>> {
        self.read(cred, |s| Ok(s.sems.iter().map(|s| s.value as u16).collect()))
    }

    /// Sets values from `first` on and drops the adjustments of those semaphores.
    pub fn set_values(&self, task: &Task, first: usize, values: &[i32]) -> Result<()> {
        {
            let mut s = self.state.lock();
            s.perm.check(&task.ipc_cred(), 0o222)?;
            if s.removed {
                return Err(Errno::EIDRM);
            }
            if values.iter().any(|v| !(0..=SEMVMX).contains(v)) {
                return Err(Errno::ERANGE);
            }
            let end = first.checked_add(values.len()).ok_or(Errno::EINVAL)?;
            let pid = task.group.pid;
            let slots = s.sems.get_mut(first..end).ok_or(Errno::EINVAL)?;
            for (slot, v) in slots.iter_mut().zip(values) {
                *slot = Sem { value: *v, pid };
            }
            for (u, charge) in s.undo.values_mut() {
                u.retain(|n, _| !(first..end).contains(&usize::from(*n)));
                charge.set(u.len() as u64);
            }
            s.undo.retain(|pid, (u, _)| {
                if u.is_empty() {
                    self.undoers.forget(*pid, self);
                }
                !u.is_empty()
            });
            s.ctime = now();
        }
        self.queue.wake_all();
        Ok(())
    }

    pub fn set_perm(&self, cred: &Cred, new: SetPerm) -> Result<()> {
        let mut s = self.state.lock();
        s.perm.check_owner(cred)?;
        s.perm.set(new)?;
        s.ctime = now();
        Ok(())
    }

    /// `IPC_RMID`: all waiters get `EIDRM`.
    pub fn remove(&self, ns: &IpcNamespace, cred: &Cred, id: i32) -> Result<()> {
        {
            let mut s = self.state.lock();
            s.perm.check_owner(cred)?;
            if std::mem::replace(&mut s.removed, true) {
                return Err(Errno::EIDRM);
            }
            for pid in std::mem::take(&mut s.undo).into_keys() {
                self.undoers.forget(pid, self);
            }
        }
        ns.sems.remove(id);
        self.queue.wake_all();
        Ok(())
    }

    /// `struct semid64_ds`.
    pub fn stat(&self) -> [u8; 104] {
        let s = self.state.lock();
        let mut b = [0u8; 104];
        b[..48].copy_from_slice(&s.perm.to_bytes());
        b[48..56].copy_from_slice(&s.otime.to_le_bytes());
        b[64..72].copy_from_slice(&s.ctime.to_le_bytes());
        b[80..88].copy_from_slice(&(s.sems.len() as u64).to_le_bytes());
        b
    }

    fn undo(&self, pid: i32) {
        let mut s = self.state.lock();
        let Some((adjustments, _)) = s.undo.remove(&pid) else { return };
        for (num, adj) in adjustments {
            if let Some(sem) = s.sems.get_mut(usize::from(num)) {
                sem.value = (sem.value + adj).clamp(0, SEMVMX);
                sem.pid = pid;
            }
        }
        s.otime = now();
        drop(s);
        self.queue.wake_all();
    }
}

/// Whether a process has adjustments to be applied at exit.
pub fn has_undo(ns: &IpcNamespace, pid: i32) -> bool {
    ns.sem_undoers.has(pid)
}

/// Exit of a process: applies its `SEM_UNDO` adjustments.
pub fn process_gone(ns: &IpcNamespace, pid: i32) {
    let mut rounds = Rounds::new();
    for set in ns.sem_undoers.take(pid).iter().filter_map(Weak::upgrade) {
        set.undo(pid);
        rounds.next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: &[i32]) -> Arc<Set> {
        let perm = Perm { key: 0, uid: 0, gid: 0, cuid: 0, cgid: 0, mode: 0o600, seq: 0 };
        let s = Arc::new(Set::new(perm, values.len(), &Arc::default()).unwrap());
        for (sem, v) in s.state.lock().sems.iter_mut().zip(values) {
            sem.value = *v;
        }
        s
    }
    fn op(num: u16, op: i16, flags: i16) -> Op {
        Op { num, op, flags }
    }
    fn values(s: &Set) -> Vec<i32> {
        s.state.lock().sems.iter().map(|s| s.value).collect()
    }

    #[test]
    fn operations_apply_together_or_not_at_all() {
        let s = set(&[1, 0]);
        let mut w = None;
        assert_eq!(s.try_ops(&[op(0, -1, 0), op(1, -1, 0)], 9, &mut w), Ok(false));
        assert_eq!(values(&s), [1, 0]);
        assert_eq!(s.state.lock().waiting.len(), 1);
        assert_eq!(s.try_ops(&[op(1, 2, 0)], 8, &mut None), Ok(true));
        assert_eq!(s.try_ops(&[op(0, -1, 0), op(1, -1, 0)], 9, &mut w), Ok(true));
        assert_eq!(values(&s), [0, 1]);
        assert!(s.state.lock().waiting.is_empty());
    }

    #[test]
    fn nowait_and_ranges() {
        let s = set(&[0]);
        let nowait = libc::IPC_NOWAIT as i16;
        assert_eq!(s.try_ops(&[op(0, -1, nowait)], 9, &mut None), Err(Errno::EAGAIN));
        assert_eq!(s.try_ops(&[op(0, 32767, 0), op(0, 1, 0)], 9, &mut None), Err(Errno::ERANGE));
        assert_eq!(s.try_ops(&[op(1, 1, 0)], 9, &mut None), Err(Errno::EFBIG));
        assert_eq!(s.try_ops(&[op(0, 0, 0)], 9, &mut None), Ok(true));
    }

    /// The number of adjustments is bounded, and they are released.
    #[test]
    fn adjustments_are_bounded() {
        let s = set(&vec![0; 32_000]);
        let fill = |pid: i32| {
            for first in (0..32_000u16).step_by(500) {
                let ops: Vec<_> = (first..first + 500).map(|n| op(n, 1, SEM_UNDO)).collect();
                match s.try_ops(&ops, pid, &mut None) {
                    Ok(done) => assert!(done),
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        };
        let full = (1..100).find(|pid| fill(*pid).is_err()).expect("no bound");
        assert!(full > 10);
        assert_eq!(fill(full), Err(Errno::ENOMEM));
        assert_eq!(s.try_ops(&[op(0, 1, 0)], 500, &mut None), Ok(true));
        s.undo(1);
        assert_eq!(s.try_ops(&[op(0, 1, SEM_UNDO)], 500, &mut None), Ok(true));
        drop(s);
        assert_eq!(UNDO.left(), 1 << 20);
    }

    #[test]
    fn a_process_knows_the_sets_that_it_has_adjusted() {
        let undoers = Arc::<Undoers>::default();
        let perm = Perm { key: 0, uid: 0, gid: 0, cuid: 0, cgid: 0, mode: 0o600, seq: 0 };
        let [a, b] = [1, 1].map(|n| Arc::new(Set::new(perm, n, &undoers).unwrap()));
        for set in [&a, &b] {
            assert_eq!(set.try_ops(&[op(0, 2, SEM_UNDO)], 9, &mut None), Ok(true));
        }
        assert_eq!([8, 9, 10].map(|pid| undoers.has(pid)), [false, true, false]);
        assert_eq!(a.try_ops(&[op(0, -2, SEM_UNDO)], 9, &mut None), Ok(true));
        let taken: Vec<_> = undoers.take(9).iter().filter_map(Weak::upgrade).collect();
        assert!(taken.len() == 1 && Arc::ptr_eq(&taken[0], &b));
        assert!(!undoers.has(9));
    }

    #[test]
    fn undo_restores_the_value() {
        let s = set(&[5]);
        assert_eq!(s.try_ops(&[op(0, -3, SEM_UNDO)], 9, &mut None), Ok(true));
        assert_eq!(s.try_ops(&[op(0, -1, SEM_UNDO)], 9, &mut None), Ok(true));
        assert_eq!(values(&s), [1]);
        s.undo(9);
        assert_eq!(values(&s), [5]);
        s.undo(9);
        assert_eq!(values(&s), [5]);
    }
}
