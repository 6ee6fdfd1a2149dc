//! The file system of POSIX message queues (mq_overview(7)): a directory with a file for each queue of an IPC
//! namespace.

use super::file::FileOps;
use super::pseudo::{open_dir, List, Super, FIRST};
use super::types::*;
use crate::error::{Errno, Result};
use crate::ipc::mqueue::{Queue, QueueFile};
use crate::ipc::IpcNamespace;
use crate::kernel::{current, Kernel};
use std::any::Any;
use std::sync::Arc;

const MQUEUE_MAGIC: u64 = 0x1980_0202;

struct Root {
    sup: Arc<Super>,
    ns: Arc<IpcNamespace>,
}

pub fn new(kernel: &Arc<Kernel>, ns: Arc<IpcNamespace>) -> Arc<dyn Inode> {
    Arc::new(Root { sup: Super::new(kernel, MQUEUE_MAGIC, 4096, 2), ns })
}

impl Root {
    fn node(&self, queue: Arc<Queue>) -> Arc<dyn Inode> {
        Arc::new(Node { sup: self.sup.clone(), queue })
    }
}

impl Inode for Root {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        Ok(self.sup.attr(1, libc::S_IFDIR | 0o1777, 2))
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        self.ns.mqueues.find(name).map(|q| self.node(q)).ok_or(Errno::ENOENT)
    }
    fn create(&self, name: &[u8], node: NewNode<'_>, mode: u32, uid: u32, gid: u32) -> Result<Arc<dyn Inode>> {
        let NewNode::File = node else { return Err(Errno::EPERM) };
        let task = current::get().ok_or(Errno::EPERM)?;
        self.ns.mqueues.create(&task, name, mode, uid, gid).map(|q| self.node(q))
    }
    fn unlink(&self, name: &[u8], _child: &Arc<dyn Inode>) -> Result<()> {
        self.ns.mqueues.remove(name)
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        Ok(open_dir(self))
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.sup.statfs())
    }
    fn volatile(&self) -> bool {
        true
    }
}

impl List for Root {
    fn list(&self, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let all = self.ns.mqueues.list();
        for (i, (name, ino)) in all.iter().enumerate().skip(usize::try_from(pos - FIRST).unwrap_or(usize::MAX)) {
            let e = DirEntry { name, ino: *ino, kind: libc::DT_REG, next: i as u64 + FIRST + 1 };
            if !sink(e) {
                break;
            }
        }
        Ok(())
    }
}

/// A queue.
struct Node {
    sup: Arc<Super>,
    queue: Arc<Queue>,
}

impl Inode for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr { dev: self.sup.dev, ..self.queue.stat() })
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        self.queue.set_stat(set);
        Ok(())
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        Ok(Box::new(QueueFile::new(self.queue.clone())))
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.sup.statfs())
    }
}
