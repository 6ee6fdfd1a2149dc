//! System V IPC (sysvipc(7)): message queues, semaphore sets, shared memory; and POSIX message queues
//! ([`mqueue`]).
//!
//! Each IPC namespace has its own; what they take is bounded for all of them together. This module holds the common parts: identifiers, keys, permissions.

pub mod mqueue;
pub mod msg;
pub mod sem;
pub mod shm;

use crate::error::{Errno, Result};
use crate::fs::Timespec;
use crate::kernel::cred::{CAP_IPC_OWNER, CAP_SYS_ADMIN};
use crate::kernel::ns::{Maker, NsCommon, NsKind};
use crate::kernel::{Cred, Task};
use parking_lot::Mutex;
use platform::budget::{Budget, Charge};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;

/// Identifiers are `sequence << 15 | index`, so the id of a removed object differs from that of its
/// successor.
const INDEX_BITS: u32 = 15;
const SEQ_MAX: u32 = i32::MAX as u32 >> INDEX_BITS;
const MODE_BITS: u32 = 0o777;
/// Number of indices used in turn before one is reused (`ipc_min_cycle`).
const MIN_CYCLE: usize = 64;

/// Owner and mode of an object (`struct ipc64_perm`).
#[derive(Clone, Copy, Debug)]
pub struct Perm {
    pub key: i32,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
    pub mode: u32,
    pub seq: u32,
}

/// The fields that `IPC_SET` changes.
#[derive(Clone, Copy, Debug)]
pub struct SetPerm {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

impl Perm {
    fn new(key: i32, flags: i32, cred: &Cred, id: i32) -> Self {
        Perm {
            key,
            uid: cred.euid,
            gid: cred.egid,
            cuid: cred.euid,
            cgid: cred.egid,
            mode: flags as u32 & MODE_BITS,
            seq: id as u32 >> INDEX_BITS,
        }
    }

    /// Whether `cred` ([`Task::ipc_cred`]) may do what the mode bits `want` say (`ipcperms`). Bits of all three classes
    /// count.
    pub fn check(&self, cred: &Cred, want: u32) -> Result<()> {
        let want = (want >> 6) | (want >> 3) | want;
        let in_group = |gid| cred.egid == gid || cred.has_group(gid);
        let mut granted = self.mode;
        if cred.euid == self.cuid || cred.euid == self.uid {
            granted >>= 6;
        } else if in_group(self.cgid) || in_group(self.gid) {
            granted >>= 3;
        }
        if want & !granted & 0o7 != 0 && !cred.has_own(CAP_IPC_OWNER) {
            return Err(Errno::EACCES);
        }
        Ok(())
    }

    /// Whether `cred` may change or remove the object.
    pub fn check_owner(&self, cred: &Cred) -> Result<()> {
        if cred.euid == self.cuid || cred.euid == self.uid || cred.has_own(CAP_SYS_ADMIN) {
            Ok(())
        } else {
            Err(Errno::EPERM)
        }
    }

    pub fn set(&mut self, new: SetPerm) -> Result<()> {
        if new.uid == u32::MAX || new.gid == u32::MAX {
            return Err(Errno::EINVAL);
        }
        self.uid = new.uid;
        self.gid = new.gid;
        self.mode = (self.mode & !MODE_BITS) | (new.mode & MODE_BITS);
        Ok(())
    }

    /// The 48 bytes of `struct ipc64_perm`.
    pub fn to_bytes(self) -> [u8; 48] {
        let mut b = [0u8; 48];
        let words = [self.key as u32, self.uid, self.gid, self.cuid, self.cgid, self.mode, self.seq & 0xffff];
        for (slot, w) in b.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&w.to_le_bytes());
        }
        b
    }
}

impl Task {
    /// Its credentials with the capabilities that count in its IPC namespace.
    pub fn ipc_cred(&self) -> Arc<Cred> {
        self.cred().over(&self.ns().ipc.common.owner())
    }
}

/// Maps what a `*id64_ds` has of ids, and the process numbers at `pids`, to what `task` sees.
pub fn show_to(task: &Task, raw: &mut [u8], pids: &[usize]) {
    let cred = task.cred();
    let mut map = |at: usize, f: &dyn Fn(u32) -> u32| {
        if let Some(word) = raw.get_mut(at..at + 4).and_then(|b| b.first_chunk_mut::<4>()) {
            *word = f(u32::from_le_bytes(*word)).to_le_bytes();
        }
    };
    for (uid, gid) in [(4, 8), (12, 16)] {
        map(uid, &|id| cred.user_ns.uid_out(id));
        map(gid, &|id| cred.user_ns.gid_out(id));
    }
    for at in pids {
        map(*at, &|pid| task.sees(pid as i32) as u32);
    }
}

/// An object in a [`Registry`].
pub trait Object: Send + Sync {
    fn perm(&self) -> Perm;
    /// Whether objects can be `gone` before they are removed.
    const VANISHES: bool = false;
    /// The object is no longer visible, though not removed yet.
    fn gone(&self) -> bool {
        false
    }
}

struct Slots<T> {
    objects: BTreeMap<u32, (i32, Arc<T>, Charge)>,
    /// Index by key; may contain stale entries.
    keys: BTreeMap<i32, u32>,
    seq: u32,
    /// The index assigned last.
    last: Option<u32>,
}

/// All objects of one kind.
pub struct Registry<T> {
    slots: Mutex<Slots<T>>,
    /// Number of objects allowed: current setting and upper bound.
    limit: AtomicUsize,
    max: usize,
    /// Objects of the kind in all namespaces together.
    all: &'static Budget,
}

impl<T: Object> Registry<T> {
    fn new(all: &'static Budget) -> Self {
        let max = usize::try_from(all.most()).unwrap_or(usize::MAX);
        Registry {
            slots: Mutex::new(Slots { objects: BTreeMap::new(), keys: BTreeMap::new(), seq: 0, last: None }),
            limit: AtomicUsize::new(max),
            max,
            all,
        }
    }

    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }
    /// Sets the sysctls `msgmni` and `shmmni`; `EINVAL` beyond the Sentry's bound.
    pub fn set_limit(&self, n: i64) -> Result<()> {
        let n = usize::try_from(n).ok().filter(|n| *n <= self.max).ok_or(Errno::EINVAL)?;
        self.limit.store(n, Ordering::Relaxed);
        Ok(())
    }

    fn purge(s: &mut Slots<T>) {
        if T::VANISHES {
            s.objects.retain(|_, (_, o, _)| !o.gone());
        }
    }

    /// The `*get` calls: finds by key or creates. `fits` checks an existing object, `make` creates one from
    /// its `Perm`.
    pub fn get_or_create(
        &self,
        key: i32,
        flags: i32,
        cred: &Cred,
        fits: impl FnOnce(&T) -> Result<()>,
        make: impl FnOnce(Perm) -> Result<T>,
    ) -> Result<i32> {
        let mut s = self.slots.lock();
        Self::purge(&mut s);
        let found = s.keys.get(&key).and_then(|i| s.objects.get(i)).filter(|(_, o, _)| o.perm().key == key);
        if let Some((id, o, _)) = found.filter(|_| key != libc::IPC_PRIVATE) {
            if flags & libc::IPC_CREAT != 0 && flags & libc::IPC_EXCL != 0 {
                return Err(Errno::EEXIST);
            }
            fits(o)?;
            o.perm().check(cred, flags as u32 & MODE_BITS)?;
            return Ok(*id);
        }
        if key != libc::IPC_PRIVATE && flags & libc::IPC_CREAT == 0 {
            return Err(Errno::ENOENT);
        }
        if s.objects.len() >= self.limit() {
            return Err(Errno::ENOSPC);
        }
        // The next free index in turn, within a bound that keeps indices small (`ipc_idr_alloc`).
        let free = |i: &u32| !s.objects.contains_key(i);
        let bound = (s.objects.len() * 3 / 2).clamp(MIN_CYCLE, 1 << INDEX_BITS) as u32;
        let next = s.last.map_or(0, |l| (l + 1) % bound);
        let index = (next..bound).chain(0..next).find(free).ok_or(Errno::ENOSPC)?;
        let seq = if s.last.is_some_and(|l| index <= l) { (s.seq + 1) & SEQ_MAX } else { s.seq };
        let id = (seq << INDEX_BITS | index) as i32;
        let counted = self.all.take(1).ok_or(Errno::ENOSPC)?;
        let object = make(Perm::new(key, flags, cred, id))?;
        s.seq = seq;
        s.last = Some(index);
        s.objects.insert(index, (id, Arc::new(object), counted));
        if key != libc::IPC_PRIVATE {
            s.keys.insert(key, index);
        }
        Ok(id)
    }

    /// Finds by identifier; `EINVAL` if there is none.
    pub fn get(&self, id: i32) -> Result<Arc<T>> {
        let id = u32::try_from(id).map_err(|_| Errno::EINVAL)?;
        let mut s = self.slots.lock();
        Self::purge(&mut s);
        match s.objects.get(&(id & ((1 << INDEX_BITS) - 1))) {
            Some((i, o, _)) if *i == id as i32 => Ok(o.clone()),
            // The index was reused: the caller's object has been removed.
            Some(_) => Err(Errno::EIDRM),
            None => Err(Errno::EINVAL),
        }
    }

    /// Finds by index (the `*_STAT` calls): the object and its identifier.
    pub fn at(&self, index: i32) -> Result<(i32, Arc<T>)> {
        let index = u32::try_from(index).map_err(|_| Errno::EINVAL)?;
        let mut s = self.slots.lock();
        Self::purge(&mut s);
        let found = s.objects.get(&(index & ((1 << INDEX_BITS) - 1))).ok_or(Errno::EINVAL)?;
        Ok((found.0, found.1.clone()))
    }

    pub fn remove(&self, id: i32) {
        let mut s = self.slots.lock();
        let index = id as u32 & ((1 << INDEX_BITS) - 1);
        if s.objects.get(&index).is_some_and(|(i, ..)| *i == id) {
            s.objects.remove(&index);
        }
        let Slots { objects, keys, .. } = &mut *s;
        if keys.len() > 2 * objects.len() + MIN_CYCLE {
            keys.retain(|_, i| objects.contains_key(i));
        }
    }

    /// All objects with their identifiers.
    pub fn all(&self) -> Vec<(i32, Arc<T>)> {
        let mut s = self.slots.lock();
        Self::purge(&mut s);
        s.objects.values().map(|(id, o, _)| (*id, o.clone())).collect()
    }

    /// Highest index in use (the result of the `*_INFO` calls); 0 if none.
    pub fn max_index(&self) -> u64 {
        u64::from(self.slots.lock().objects.keys().next_back().copied().unwrap_or(0))
    }
}

/// Objects of each kind in the sandbox: namespaces share them.
static MSGS: Budget = Budget::new(msg::MSGMNI as u64);
static SEMS: Budget = Budget::new(sem::SEMMNI as u64);
static SHMS: Budget = Budget::new(shm::SHMMNI as u64);

/// An IPC namespace: System V objects and POSIX message queues.
pub struct IpcNamespace {
    pub common: NsCommon,
    pub msgs: Registry<msg::Queue>,
    pub sems: Registry<sem::Set>,
    pub sem_undoers: Arc<sem::Undoers>,
    pub shms: Registry<shm::Segment>,
    /// Largest segment (`kernel.shmmax`).
    pub shmmax: AtomicU64,
    pub mqueues: mqueue::Names,
}

impl Default for IpcNamespace {
    /// The first one.
    fn default() -> Self {
        Self::with(NsCommon::first(NsKind::Ipc))
    }
}

impl IpcNamespace {
    /// An empty one.
    pub fn new(maker: &Maker) -> Result<Arc<Self>> {
        Ok(Arc::new(Self::with(maker.common(NsKind::Ipc)?)))
    }
    fn with(common: NsCommon) -> Self {
        IpcNamespace {
            common,
            msgs: Registry::new(&MSGS),
            sems: Registry::new(&SEMS),
            sem_undoers: Arc::default(),
            shms: Registry::new(&SHMS),
            shmmax: AtomicU64::new(shm::SHMMAX),
            mqueues: mqueue::Names::default(),
        }
    }
}

/// Seconds since the epoch.
fn now() -> i64 {
    Timespec::now().sec
}

#[cfg(test)]
mod tests {
    use super::*;

    static THREE: Budget = Budget::new(3);

    struct Dummy(Perm);
    impl Object for Dummy {
        fn perm(&self) -> Perm {
            self.0
        }
    }

    fn user(uid: u32) -> Cred {
        Cred::user(uid, uid, vec![], 0)
    }

    #[test]
    fn keys_find_objects_and_identifiers_are_not_reused() {
        let r: Registry<Dummy> = Registry::new(&THREE);
        let get = |key, flags| r.get_or_create(key, flags, &user(5), |_| Ok(()), |p| Ok(Dummy(p)));
        assert_eq!(get(7, 0o600), Err(Errno::ENOENT));
        let a = get(7, 0o600 | libc::IPC_CREAT).unwrap();
        assert_eq!(get(7, 0o600), Ok(a));
        assert_eq!(get(7, 0o600 | libc::IPC_CREAT | libc::IPC_EXCL), Err(Errno::EEXIST));
        assert_ne!(get(0, 0o600).unwrap(), get(0, 0o600).unwrap());
        assert_eq!(get(0, 0o600), Err(Errno::ENOSPC));
        r.remove(a);
        assert_eq!(r.get(a).err(), Some(Errno::EINVAL));
        let b = get(7, 0o600 | libc::IPC_CREAT).unwrap();
        assert_ne!(a, b);
        assert_eq!(r.get(a).err(), Some(Errno::EINVAL));
        assert_eq!(r.get(-1).err(), Some(Errno::EINVAL));
    }

    #[test]
    fn a_reused_index_gets_another_sequence_number() {
        let r: Registry<Dummy> = Registry::new(&THREE);
        let get = || r.get_or_create(9, 0o600 | libc::IPC_CREAT, &user(5), |_| Ok(()), |p| Ok(Dummy(p))).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3 * MIN_CYCLE {
            let id = get();
            assert!(seen.insert(id));
            assert_eq!(get(), id);
            r.remove(id);
        }
        assert_eq!(seen.first(), Some(&0));
        let last = get();
        assert_eq!(r.get(last & 63).err(), Some(Errno::EIDRM));
    }

    #[test]
    fn permissions_by_class() {
        let p = Perm { key: 1, uid: 5, gid: 5, cuid: 6, cgid: 6, mode: 0o640, seq: 0 };
        assert_eq!(p.check(&user(5), 0o600), Ok(()));
        assert_eq!(p.check(&user(6), 0o222), Ok(()));
        let member = Cred { groups: vec![6], ..user(9) };
        assert_eq!(p.check(&member, 0o444), Ok(()));
        assert_eq!(p.check(&member, 0o222), Err(Errno::EACCES));
        assert_eq!(p.check(&user(9), 0o444), Err(Errno::EACCES));
        assert_eq!(p.check_owner(&user(9)), Err(Errno::EPERM));
    }
}
