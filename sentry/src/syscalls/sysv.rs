//! System V IPC: msgget(2), msgsnd(2), msgctl(2), semget(2), semop(2), semctl(2), shmget(2), shmat(2),
//! shmctl(2). The implementation is in `ipc`; attaching segments is here, since it changes mappings as `mmap`
//! does.

use super::arg::*;
use super::memory::{begin, check_as, finish, MAX_MAP_COUNT};
use super::Ctx;
use crate::error::{Errno, SysResult};
use crate::fs::File;
use crate::ipc::msg::{self, Message};
use crate::ipc::sem::{self, Op as SemOp};
use crate::ipc::shm::{self, Segment, ShmFile};
use crate::ipc::IpcNamespace;
use crate::ipc::SetPerm;
use crate::kernel::cred::NO_ID;
use crate::kernel::user_ns::Id;
use crate::mm::space::Map;
use crate::mm::vma::{page_aligned, valid_range, Backing, Vma};
use crate::time::clock::{timeout, UserTimespec};
use platform::{Op, PAGE_SIZE};
use std::sync::atomic::Ordering;
use std::sync::Arc;

const IPC_RMID: i32 = 0;
const IPC_SET: i32 = 1;
const IPC_STAT: i32 = 2;
const IPC_INFO: i32 = 3;

/// The fields of `struct ipc64_perm` that `IPC_SET` reads.
fn read_perm(cx: &Ctx<'_>, raw: &[u8]) -> SetPerm {
    let word = |at: usize| raw.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map_or(0, u32::from_le_bytes);
    let ns = cx.task.cred().user_ns.clone();
    // An id without a mapping is refused as -1 is.
    let [uid, gid] = [(Id::User, 4), (Id::Group, 8)].map(|(kind, at)| ns.id_in(kind, word(at)).unwrap_or(NO_ID));
    SetPerm { uid, gid, mode: word(20) }
}

/// A `*id64_ds` as the caller sees it; `pids`: where it has process numbers.
fn seen<const N: usize>(cx: &Ctx<'_>, mut raw: [u8; N], pids: &[usize]) -> [u8; N] {
    crate::ipc::show_to(cx.task, &mut raw, pids);
    raw
}

fn ints(list: &[i32]) -> Vec<u8> {
    list.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn longs(list: &[u64]) -> Vec<u8> {
    list.iter().flat_map(|v| v.to_le_bytes()).collect()
}

// Message queues.

fn ipc(cx: &Ctx<'_>) -> Arc<IpcNamespace> {
    cx.task.ns().ipc.clone()
}

pub fn msgget(cx: &mut Ctx<'_>, key: i32, flags: i32) -> SysResult {
    let cred = cx.task.ipc_cred();
    let id = ipc(cx).msgs.get_or_create(key, flags, &cred, |_| Ok(()), |p| Ok(msg::Queue::new(p)))?;
    Ok(id as u64)
}

pub async fn msgsnd(cx: &mut Ctx<'_>, id: i32, msgp: Addr, size: usize, flags: i32) -> SysResult {
    let kind: i64 = cx.read(msgp.0)?;
    if size > msg::MSGMAX || id < 0 || kind < 1 {
        return Err(Errno::EINVAL.into());
    }
    let mut data = vec![0u8; size];
    cx.mem().read_bytes(msgp.0.checked_add(8).ok_or(Errno::EFAULT)?, &mut data)?;
    let queue = ipc(cx).msgs.get(id)?;
    queue.send(cx.task, Message { kind, data }, flags).await
}

pub async fn msgrcv(cx: &mut Ctx<'_>, id: i32, msgp: Addr, size: i64, kind: i64, flags: i32) -> SysResult {
    let max = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    if id < 0 {
        return Err(Errno::EINVAL.into());
    }
    if flags & msg::MSG_COPY != 0 && (flags & msg::MSG_EXCEPT != 0 || flags & libc::IPC_NOWAIT == 0) {
        return Err(Errno::EINVAL.into());
    }
    let queue = ipc(cx).msgs.get(id)?;
    let m = queue.receive(cx.task, max, kind, flags).await?;
    cx.write(msgp.0, &m.kind)?;
    cx.write_bytes(msgp.0.checked_add(8).ok_or(Errno::EFAULT)?, &m.data)?;
    Ok(m.data.len() as u64)
}

pub fn msgctl(cx: &mut Ctx<'_>, id: i32, cmd: i32, buf: Addr) -> SysResult {
    const MSG_STAT: i32 = 11;
    const MSG_INFO: i32 = 12;
    const MSG_STAT_ANY: i32 = 13;
    if id < 0 || cmd < 0 {
        return Err(Errno::EINVAL.into());
    }
    let ns = ipc(cx);
    let all = &ns.msgs;
    let cred = cx.task.ipc_cred();
    match cmd {
        IPC_INFO | MSG_INFO => {
            let (mut pool, mut map, mut tql) =
                (msg::MSGMNI as i32 * msg::MSGMNB as i32 / 1024, msg::MSGMNB as i32, msg::MSGMNB as i32);
            if cmd == MSG_INFO {
                let queues = all.all();
                pool = queues.len() as i32;
                let used = queues.iter().map(|(_, q)| q.usage()).fold((0, 0), |a, u| (a.0 + u.0, a.1 + u.1));
                map = used.0 as i32;
                tql = used.1 as i32;
            }
            let mni = all.limit() as i32;
            let info = [pool, map, msg::MSGMAX as i32, msg::MSGMNB as i32, mni, 16, tql, 0xffff];
            cx.write_bytes(buf.0, &ints(&info))?;
            Ok(all.max_index())
        }
        IPC_STAT => {
            let q = all.get(id)?;
            crate::ipc::Object::perm(&*q).check(&cred, 0o444)?;
            let shown = seen(cx, q.stat(), &[96, 100]);
            cx.write_bytes(buf.0, &shown)?;
            Ok(0)
        }
        MSG_STAT | MSG_STAT_ANY => {
            let (id, q) = all.at(id)?;
            if cmd == MSG_STAT {
                crate::ipc::Object::perm(&*q).check(&cred, 0o444)?;
            }
            let shown = seen(cx, q.stat(), &[96, 100]);
            cx.write_bytes(buf.0, &shown)?;
            Ok(id as u64)
        }
        IPC_SET => {
            let raw: [u8; 120] = cx.read(buf.0)?;
            let qbytes: u64 = cx.read(buf.0.checked_add(88).ok_or(Errno::EFAULT)?)?;
            all.get(id)?.set(&cred, read_perm(cx, &raw), qbytes)?;
            Ok(0)
        }
        IPC_RMID => {
            all.get(id)?.remove(&ns, &cred, id)?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL.into()),
    }
}

// Semaphores.

pub fn semget(cx: &mut Ctx<'_>, key: i32, nsems: i32, flags: i32) -> SysResult {
    let n = usize::try_from(nsems).ok().filter(|n| *n <= sem::SEMMSL).ok_or(Errno::EINVAL)?;
    let cred = cx.task.ipc_cred();
    let ns = ipc(cx);
    let all = &ns.sems;
    let fits = |s: &sem::Set| if n > s.len() { Err(Errno::EINVAL) } else { Ok(()) };
    let id = all.get_or_create(key, flags, &cred, fits, |p| {
        if n == 0 {
            return Err(Errno::EINVAL);
        }
        sem::Set::new(p, n, &ns.sem_undoers)
    })?;
    Ok(id as u64)
}

async fn do_semop(cx: &mut Ctx<'_>, id: i32, sops: Addr, nsops: usize, deadline: Option<u64>) -> SysResult {
    if nsops < 1 || id < 0 {
        return Err(Errno::EINVAL.into());
    }
    if nsops > sem::SEMOPM {
        return Err(Errno::E2BIG.into());
    }
    let raw: Vec<[i16; 3]> = cx.mem().read_vec(sops.0, nsops)?;
    let ops: Vec<SemOp> = raw.iter().map(|[n, op, flags]| SemOp { num: *n as u16, op: *op, flags: *flags }).collect();
    let set = ipc(cx).sems.get(id)?;
    set.operate(cx.task, &ops, deadline).await
}

pub async fn semop(cx: &mut Ctx<'_>, id: i32, sops: Addr, nsops: usize) -> SysResult {
    do_semop(cx, id, sops, nsops, None).await
}

pub async fn semtimedop(cx: &mut Ctx<'_>, id: i32, sops: Addr, nsops: usize, limit: Addr) -> SysResult {
    let t: Option<UserTimespec> = if limit.is_null() { None } else { Some(cx.read(limit.0)?) };
    let deadline = timeout(t)?;
    do_semop(cx, id, sops, nsops, deadline).await
}

pub fn semctl(cx: &mut Ctx<'_>, id: i32, num: i32, cmd: i32, arg: u64) -> SysResult {
    const GETPID: i32 = 11;
    const GETVAL: i32 = 12;
    const GETALL: i32 = 13;
    const GETNCNT: i32 = 14;
    const GETZCNT: i32 = 15;
    const SETVAL: i32 = 16;
    const SETALL: i32 = 17;
    const SEM_STAT: i32 = 18;
    const SEM_INFO: i32 = 19;
    const SEM_STAT_ANY: i32 = 20;
    if id < 0 {
        return Err(Errno::EINVAL.into());
    }
    let ns = ipc(cx);
    let all = &ns.sems;
    let cred = cx.task.ipc_cred();
    let index = || usize::try_from(num).map_err(|_| Errno::EINVAL);
    match cmd {
        IPC_INFO | SEM_INFO => {
            let sets = all.all();
            let (mut usz, mut aem) = (20, sem::SEMVMX);
            if cmd == SEM_INFO {
                usz = sets.len() as i32;
                aem = sets.iter().map(|(_, s)| s.len()).sum::<usize>() as i32;
            }
            let (mns, msl, opm) = (sem::SEMMNS as i32, sem::SEMMSL as i32, sem::SEMOPM as i32);
            let info = [mns, sem::SEMMNI as i32, mns, mns, msl, opm, opm, usz, sem::SEMVMX, aem];
            cx.write_bytes(arg, &ints(&info))?;
            Ok(all.max_index())
        }
        IPC_STAT => {
            let s = all.get(id)?;
            crate::ipc::Object::perm(&*s).check(&cred, 0o444)?;
            let shown = seen(cx, s.stat(), &[]);
            cx.write_bytes(arg, &shown)?;
            Ok(0)
        }
        SEM_STAT | SEM_STAT_ANY => {
            let (id, s) = all.at(id)?;
            if cmd == SEM_STAT {
                crate::ipc::Object::perm(&*s).check(&cred, 0o444)?;
            }
            let shown = seen(cx, s.stat(), &[]);
            cx.write_bytes(arg, &shown)?;
            Ok(id as u64)
        }
        IPC_SET => {
            let raw: [u8; 48] = cx.read(arg)?;
            all.get(id)?.set_perm(&cred, read_perm(cx, &raw))?;
            Ok(0)
        }
        IPC_RMID => {
            all.get(id)?.remove(&ns, &cred, id)?;
            Ok(0)
        }
        GETVAL => Ok(all.get(id)?.value(&cred, index()?)? as u64),
        GETPID => Ok(cx.task.sees(all.get(id)?.last_pid(&cred, index()?)?) as u64),
        GETNCNT => Ok(all.get(id)?.waiters(&cred, index()?, false)?),
        GETZCNT => Ok(all.get(id)?.waiters(&cred, index()?, true)?),
        GETALL => {
            let values = all.get(id)?.values(&cred)?;
            let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            cx.write_bytes(arg, &raw)?;
            Ok(0)
        }
        SETVAL => {
            let value = arg as i32;
            if !(0..=sem::SEMVMX).contains(&value) {
                return Err(Errno::ERANGE.into());
            }
            all.get(id)?.set_values(cx.task, index()?, &[value])?;
            Ok(0)
        }
        SETALL => {
            let set = all.get(id)?;
            let raw: Vec<u16> = cx.mem().read_vec(arg, set.len())?;
            let values: Vec<i32> = raw.into_iter().map(i32::from).collect();
            set.set_values(cx.task, 0, &values)?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL.into()),
    }
}

// Shared memory.

pub fn shmget(cx: &mut Ctx<'_>, key: i32, size: u64, flags: i32) -> SysResult {
    let cred = cx.task.ipc_cred();
    let shmmax = ipc(cx).shmmax.load(Ordering::Relaxed);
    let fits = |s: &Segment| if s.size() < size { Err(Errno::EINVAL) } else { Ok(()) };
    let id = ipc(cx).shms.get_or_create(key, flags, &cred, fits, |p| {
        if size == 0 || size > shmmax {
            return Err(Errno::EINVAL);
        }
        if flags & libc::SHM_HUGETLB != 0 {
            // There is no huge page pool in the guest.
            return Err(Errno::ENOMEM);
        }
        Segment::new(cx.task, p, size)
    })?;
    Ok(id as u64)
}

fn shm_file(v: &Vma) -> Option<(&Arc<File>, &ShmFile)> {
    match &v.backing {
        Backing::File { file, .. } => file.ops.as_any().downcast_ref::<ShmFile>().map(|s| (file, s)),
        _ => None,
    }
}

pub async fn shmat(cx: &mut Ctx<'_>, id: i32, addr: Addr, flags: i32) -> SysResult {
    const LBA: u64 = PAGE_SIZE;
    if id < 0 {
        return Err(Errno::EINVAL.into());
    }
    let remap = flags & libc::SHM_REMAP != 0;
    let mut at = addr.0;
    if at == 0 {
        if remap {
            return Err(Errno::EINVAL.into());
        }
    } else if !page_aligned(at) {
        if flags & libc::SHM_RND == 0 {
            return Err(Errno::EINVAL.into());
        }
        at &= !(LBA - 1);
        if at == 0 && remap {
            return Err(Errno::EINVAL.into());
        }
    }
    let (mut prot, mut max_prot, mut want) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_EXEC, 0o444);
    if flags & libc::SHM_RDONLY == 0 {
        prot |= libc::PROT_WRITE;
        max_prot |= libc::PROT_WRITE;
        want |= 0o222;
    }
    if flags & libc::SHM_EXEC != 0 {
        prot |= libc::PROT_EXEC;
        want |= 0o111;
    }
    let segment = ipc(cx).shms.get(id)?;
    begin(cx).await;
    let file = segment.attach(cx.task, want)?;
    let (fd, len) = match file.ops.as_any().downcast_ref::<ShmFile>() {
        Some(s) => (s.fd(), s.size()),
        None => return Err(Errno::EINVAL.into()),
    };
    let mm = cx.task.mm();
    {
        let mut map = mm.map();
        if at == 0 {
            at = map.find_room(len)?;
        } else {
            let (s, e) = valid_range(at, len).ok_or(Errno::EINVAL)?;
            if !remap && map.vmas.range(s, e).next().is_some() {
                return Err(Errno::EINVAL.into());
            }
        }
        let end = at + len;
        check_as(cx, &map, len.saturating_sub(map.vmas.mapped_in(at, end)))?;
        if map.vmas.count() >= MAX_MAP_COUNT {
            return Err(Errno::ENOMEM.into());
        }
        super::memory::retire_text(cx, &mut map, (at, end), true);
        map.vmas.remove(at, end);
        map.vmas.insert(Vma {
            max_prot,
            shared: true,
            backing: Backing::File { file, fd: fd.clone() },
            ..Map::anon(at, end, prot, "")
        });
    }
    cx.thread.queue(Op::MapFile { addr: at, len, prot, shared: true, file: fd, offset: 0 });
    cx.undo = Some(super::Undo { start: at, end: at + len, brk: None });
    finish(cx);
    Ok(at)
}

/// Detaches all of the segment attached at exactly `addr`; the mapping may have been split or partly unmapped
/// since.
pub async fn shmdt(cx: &mut Ctx<'_>, addr: Addr) -> SysResult {
    if !page_aligned(addr.0) {
        return Err(Errno::EINVAL.into());
    }
    begin(cx).await;
    let mm = cx.task.mm();
    let (parts, file) = {
        let mut map = mm.map();
        let mut found: Option<(Arc<File>, u64)> = None;
        let mut parts = Vec::new();
        for v in map.vmas.range(addr.0, platform::GUEST_MAX) {
            if let Some((_, size)) = &found {
                if v.start - addr.0 >= *size {
                    break;
                }
            }
            let Some((file, shm)) = shm_file(v) else { continue };
            if v.start < addr.0 || v.start - addr.0 != v.offset {
                continue;
            }
            match &found {
                None => found = Some((file.clone(), shm.size())),
                Some((f, _)) if !Arc::ptr_eq(f, file) => continue,
                Some(_) => {}
            }
            parts.push((v.start, v.end));
        }
        let (file, _) = found.ok_or(Errno::EINVAL)?;
        for (s, e) in &parts {
            map.vmas.remove(*s, *e);
        }
        (parts, file)
    };
    for (s, e) in parts {
        cx.thread.queue(Op::Unmap { addr: s, len: e - s });
    }
    if let Some(s) = file.ops.as_any().downcast_ref::<ShmFile>() {
        s.detached(cx.task.group.pid);
    }
    finish(cx);
    Ok(0)
}

pub fn shmctl(cx: &mut Ctx<'_>, id: i32, cmd: i32, buf: Addr) -> SysResult {
    const SHM_LOCK: i32 = 11;
    const SHM_UNLOCK: i32 = 12;
    const SHM_STAT: i32 = 13;
    const SHM_INFO: i32 = 14;
    const SHM_STAT_ANY: i32 = 15;
    if id < 0 || cmd < 0 {
        return Err(Errno::EINVAL.into());
    }
    let ns = ipc(cx);
    let all = &ns.shms;
    let cred = cx.task.ipc_cred();
    match cmd {
        IPC_INFO => {
            let mni = all.limit() as u64;
            let max = ns.shmmax.load(Ordering::Relaxed);
            let info = [max, 1, mni, mni, shm::SHMALL, 0, 0, 0, 0];
            cx.write_bytes(buf.0, &longs(&info))?;
            Ok(all.max_index())
        }
        SHM_INFO => {
            let segments = all.all();
            let pages: u64 = segments.iter().map(|(_, s)| s.size().div_ceil(PAGE_SIZE)).sum();
            // Only the host knows the resident pages; all pages count.
            cx.write_bytes(buf.0, &longs(&[segments.len() as u64, pages, pages, 0, 0, 0]))?;
            Ok(all.max_index())
        }
        IPC_STAT => {
            let s = all.get(id)?;
            crate::ipc::Object::perm(&*s).check(&cred, 0o444)?;
            let shown = seen(cx, s.stat(), &[80, 84]);
            cx.write_bytes(buf.0, &shown)?;
            Ok(0)
        }
        SHM_STAT | SHM_STAT_ANY => {
            let (id, s) = all.at(id)?;
            if cmd == SHM_STAT {
                crate::ipc::Object::perm(&*s).check(&cred, 0o444)?;
            }
            let shown = seen(cx, s.stat(), &[80, 84]);
            cx.write_bytes(buf.0, &shown)?;
            Ok(id as u64)
        }
        IPC_SET => {
            let raw: [u8; 48] = cx.read(buf.0)?;
            all.get(id)?.set(&cred, read_perm(cx, &raw))?;
            Ok(0)
        }
        IPC_RMID => {
            all.get(id)?.remove(&ns, &cred, id)?;
            Ok(0)
        }
        SHM_LOCK | SHM_UNLOCK => {
            all.get(id)?.lock(&cred, cmd == SHM_LOCK, cx.task.limit(libc::RLIMIT_MEMLOCK))?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL.into()),
    }
}
