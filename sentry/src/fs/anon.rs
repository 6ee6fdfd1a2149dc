//! Inodes without a name: pipes, sockets, and the shared inode of `anon_inode:[…]` descriptors.

use super::types::{Attr, SetAttr, Timespec};
use crate::error::{Errno, Result};
use crate::kernel::Task;
use parking_lot::Mutex;

/// Device numbers that `st_dev` shows for the kernel's internal mounts.
const PIPEFS_DEV: u64 = 0xe;
const SOCKFS_DEV: u64 = 0x8;
const ANON_DEV: u64 = 0xf;
const SHARED_INO: u64 = 1;

/// Attributes of a nameless object; its creator owns it.
#[derive(Debug)]
pub struct AnonInode {
    attr: Mutex<Attr>,
}

impl AnonInode {
    fn new(dev: u64, ino: u64, mode: u32, uid: u32, gid: u32) -> Self {
        let now = Timespec::now();
        AnonInode {
            attr: Mutex::new(Attr {
                dev,
                ino,
                mode,
                nlink: 1,
                uid,
                gid,
                blksize: 4096,
                atime: now,
                mtime: now,
                ctime: now,
                btime: now,
                ..Attr::default()
            }),
        }
    }
    pub fn pipe(task: &Task) -> Self {
        let c = task.cred();
        Self::new(PIPEFS_DEV, task.kernel.next_ino(), libc::S_IFIFO | 0o600, c.fsuid, c.fsgid)
    }
    pub fn socket(task: &Task) -> Self {
        let c = task.cred();
        Self::new(SOCKFS_DEV, task.kernel.next_ino(), libc::S_IFSOCK | 0o777, c.fsuid, c.fsgid)
    }
    pub fn ino(&self) -> u64 {
        self.attr.lock().ino
    }
    pub fn attr(&self) -> Attr {
        *self.attr.lock()
    }
    pub fn set_attr(&self, set: &SetAttr) -> Result<()> {
        if set.size.is_some() {
            return Err(Errno::EINVAL);
        }
        let mut a = self.attr.lock();
        if let Some(m) = set.mode {
            a.mode = (a.mode & libc::S_IFMT) | (m & 0o7777);
        }
        a.uid = set.uid.unwrap_or(a.uid);
        a.gid = set.gid.unwrap_or(a.gid);
        a.atime = set.atime.unwrap_or(a.atime);
        a.mtime = set.mtime.unwrap_or(a.mtime);
        a.ctime = Timespec::now();
        Ok(())
    }
}

/// Attributes of eventfd, epoll, timerfd, signalfd and inotify files: they share one inode without a type.
pub fn anon_attr() -> Attr {
    Attr { dev: ANON_DEV, ino: SHARED_INO, mode: 0o600, nlink: 1, blksize: 4096, ..Attr::default() }
}

/// Whether these are the attributes of the shared inode.
pub fn is_shared(attr: &Attr) -> bool {
    (attr.dev, attr.ino) == (ANON_DEV, SHARED_INO)
}
