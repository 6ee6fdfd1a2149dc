//! Shared memory segments (shmget(2), shmctl(2)); attaching is in `syscalls::sysv`.
//!
//! A segment is a host memfd behind one open [`File`]. Each mapping holds that file, so the number of holders
//! is the number of attaches. A removed segment lives until its last mapping is gone.

use super::{now, IpcNamespace, Object, Perm, SetPerm};
use crate::error::{Errno, Result};
use crate::fs::{Attr, File, FileOps, MapSource};
use crate::kernel::{Cred, Task};
use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::memfd::{memfd_create, MFdFlags};
use parking_lot::Mutex;
use platform::budget::{Budget, Charge};
use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

pub const SHMMNI: usize = 4096;
/// Reported limits of a segment and of all segments: Linux's defaults, which mean "no limit".
pub const SHMMAX: u64 = u64::MAX - (1 << 24);
pub const SHMALL: u64 = u64::MAX - (1 << 24);
/// Enforced limit of bytes in all segments together.
const SHMALL_BYTES: u64 = 1 << 42;
static TOTAL: Budget = Budget::new(SHMALL_BYTES);

const SHM_DEST: u32 = 0o1000;
const SHM_LOCKED: u32 = 0o2000;
/// `st_dev` of the kernel's internal tmpfs.
const SHM_DEV: u64 = 0x1;

/// The file behind the mappings of a segment.
pub struct ShmFile {
    fd: Arc<OwnedFd>,
    ino: u64,
    size: u64,
    segment: Weak<Mutex<State>>,
    _room: Charge,
}

impl FileOps for ShmFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn map(&self, _file: &File, _write_shared: bool) -> Result<MapSource> {
        Ok(MapSource::Host(self.fd.clone()))
    }
    fn attr(&self) -> Result<Attr> {
        let mode = libc::S_IFREG | 0o600;
        Ok(Attr { dev: SHM_DEV, ino: self.ino, mode, nlink: 1, size: self.size, blksize: 4096, ..Attr::default() })
    }
    fn anon_name(&self) -> String {
        String::from("/SYSV (deleted)")
    }
}

impl ShmFile {
    pub fn fd(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }
    pub fn size(&self) -> u64 {
        self.size
    }
    /// Records that `shmdt` has removed a mapping.
    pub fn detached(&self, pid: i32) {
        if let Some(s) = self.segment.upgrade() {
            let mut s = s.lock();
            s.dtime = now();
            s.lpid = pid;
        }
    }
}

pub struct State {
    perm: Perm,
    /// Dropped when the segment is removed; mappings keep the file.
    file: Option<Arc<File>>,
    weak: Weak<File>,
    size: u64,
    atime: i64,
    dtime: i64,
    ctime: i64,
    cpid: i32,
    lpid: i32,
}

impl State {
    fn attaches(&self) -> u64 {
        (self.weak.strong_count() - usize::from(self.file.is_some())) as u64
    }
}

pub struct Segment {
    state: Arc<Mutex<State>>,
}

impl Object for Segment {
    fn perm(&self) -> Perm {
        self.state.lock().perm
    }
    const VANISHES: bool = true;
    fn gone(&self) -> bool {
        let s = self.state.lock();
        s.file.is_none() && s.weak.strong_count() == 0
    }
}

impl Segment {
    pub fn new(task: &Task, perm: Perm, size: u64) -> Result<Self> {
        let pages = size.checked_next_multiple_of(platform::PAGE_SIZE).ok_or(Errno::EINVAL)?;
        let room = TOTAL.take(pages).ok_or(Errno::ENOSPC)?;
        let fd = memfd_create(c"SYSV", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let fd = platform::budget::admit(fd, platform::budget::Use::Mapped)?;
        nix::unistd::ftruncate(&fd, i64::try_from(pages).map_err(|_| Errno::EINVAL)?)?;
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        let ino = task.kernel.next_ino();
        let state = Arc::new_cyclic(|segment: &Weak<Mutex<State>>| {
            let ops = ShmFile { fd: Arc::new(fd), ino, size: pages, segment: segment.clone(), _room: room };
            let file = File::new(Box::new(ops), libc::O_RDWR, None);
            Mutex::new(State {
                perm,
                weak: Arc::downgrade(&file),
                file: Some(file),
                size,
                atime: 0,
                dtime: 0,
                ctime: now(),
                cpid: task.group.pid,
                lpid: 0,
            })
        });
        Ok(Segment { state })
    }

    pub fn size(&self) -> u64 {
        self.state.lock().size
    }

    /// The file to map, for a caller with the access `want`; records the attach.
    pub fn attach(&self, task: &Task, want: u32) -> Result<Arc<File>> {
        let mut s = self.state.lock();
        s.perm.check(&task.ipc_cred(), want)?;
        let file = s.weak.upgrade().ok_or(Errno::EIDRM)?;
        s.atime = now();
        s.lpid = task.group.pid;
        Ok(file)
    }

    /// `IPC_RMID`: the key is free at once; the memory is freed with the last mapping.
    pub fn remove(&self, ns: &IpcNamespace, cred: &Cred, id: i32) -> Result<()> {
        let (file, last) = {
            let mut s = self.state.lock();
            s.perm.check_owner(cred)?;
            s.perm.key = libc::IPC_PRIVATE;
            s.perm.mode |= SHM_DEST;
            let file = s.file.take();
            (file, s.weak.strong_count() <= 1)
        };
        drop(file);
        if last {
            ns.shms.remove(id);
        }
        Ok(())
    }

    pub fn set(&self, cred: &Cred, new: SetPerm) -> Result<()> {
        let mut s = self.state.lock();
        s.perm.check_owner(cred)?;
        s.perm.set(new)?;
        s.ctime = now();
        Ok(())
    }

    /// `SHM_LOCK`, `SHM_UNLOCK`: shown by `IPC_STAT`; paging is the host's.
    pub fn lock(&self, cred: &Cred, on: bool, limit: u64) -> Result<()> {
        let mut s = self.state.lock();
        if !cred.has_own(crate::kernel::cred::CAP_IPC_LOCK) {
            if cred.euid != s.perm.uid && cred.euid != s.perm.cuid {
                return Err(Errno::EPERM);
            }
            if on && limit == 0 {
                return Err(Errno::EPERM);
            }
            if on && s.size > limit {
                return Err(Errno::ENOMEM);
            }
        }
        if on {
            s.perm.mode |= SHM_LOCKED;
        } else {
            s.perm.mode &= !SHM_LOCKED;
        }
        Ok(())
    }

    /// `struct shmid64_ds`.
    pub fn stat(&self) -> [u8; 112] {
        let s = self.state.lock();
        let mut b = [0u8; 112];
        b[..48].copy_from_slice(&s.perm.to_bytes());
        for (slot, w) in b[48..80].chunks_exact_mut(8).zip([s.size, s.atime as u64, s.dtime as u64, s.ctime as u64]) {
            slot.copy_from_slice(&w.to_le_bytes());
        }
        b[80..84].copy_from_slice(&s.cpid.to_le_bytes());
        b[84..88].copy_from_slice(&s.lpid.to_le_bytes());
        b[88..96].copy_from_slice(&s.attaches().to_le_bytes());
        b
    }
}
