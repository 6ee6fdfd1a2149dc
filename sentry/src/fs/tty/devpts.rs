//! devpts: `/dev/pts`, with `ptmx` and a node for each pseudo terminal.

use crate::error::{Errno, Result};
use crate::fs::file::FileOps;
use crate::fs::pseudo::{open_dir, List, Super, DEVPTS_SUPER_MAGIC, FIRST};
use crate::fs::types::*;
use crate::kernel::Kernel;
use std::any::Any;
use std::sync::Arc;

struct Root(Arc<Super>);

/// The devpts of a sandbox.
pub fn new(kernel: &Arc<Kernel>) -> Arc<dyn Inode> {
    Arc::new(Root(Super::new(kernel, DEVPTS_SUPER_MAGIC, 1024, 3)))
}

impl Inode for Root {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        Ok(self.0.attr(1, libc::S_IFDIR | 0o755, 2))
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let index = match name {
            b"ptmx" => None,
            n => {
                let text = std::str::from_utf8(n).map_err(|_| Errno::ENOENT)?;
                let i: u32 = text.parse().map_err(|_| Errno::ENOENT)?;
                let ttys = &self.0.kernel.ttys;
                if i.to_string() != text || (ttys.pty(i).is_none() && ttys.host(i).is_none()) {
                    return Err(Errno::ENOENT);
                }
                Some(i)
            }
        };
        Ok(Arc::new(Node { sup: self.0.clone(), index }))
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        Ok(open_dir(self))
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.0.statfs())
    }
    fn volatile(&self) -> bool {
        true
    }
}

impl List for Root {
    fn list(&self, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let kind = libc::DT_CHR;
        if pos <= FIRST && !sink(DirEntry { name: b"ptmx", ino: 2, kind, next: FIRST + 1 }) {
            return Ok(());
        }
        for n in self.0.kernel.ttys.numbers() {
            let at = FIRST + 1 + u64::from(n);
            if at < pos {
                continue;
            }
            let name = n.to_string();
            if !sink(DirEntry { name: name.as_bytes(), ino: 3 + u64::from(n), kind, next: at + 1 }) {
                break;
            }
        }
        Ok(())
    }
}

/// `ptmx` (no index) or a terminal.
struct Node {
    sup: Arc<Super>,
    index: Option<u32>,
}

impl Inode for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let Some(i) = self.index else {
            let a = self.sup.attr(2, libc::S_IFCHR | 0o666, 1);
            return Ok(Attr { rdev: libc::makedev(5, 2), ..a });
        };
        if let Some(host) = self.sup.kernel.ttys.host(i) {
            let a = self.sup.attr(3 + u64::from(i), libc::S_IFCHR | 0o620, 1);
            return Ok(Attr { rdev: host.line.rdev, uid: host.uid, gid: super::TTY_GROUP, ..a });
        }
        let pty = self.sup.kernel.ttys.pty(i).ok_or(Errno::ENOENT)?;
        let s = pty.state.lock();
        let a = self.sup.attr(3 + u64::from(i), libc::S_IFCHR | s.mode, 1);
        Ok(Attr { rdev: pty.rdev(), uid: s.uid, gid: s.gid, ..a })
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        let Some(pty) = self.index.and_then(|i| self.sup.kernel.ttys.pty(i)) else { return Ok(()) };
        let mut s = pty.state.lock();
        s.mode = set.mode.map_or(s.mode, |m| m & 0o7777);
        s.uid = set.uid.unwrap_or(s.uid);
        s.gid = set.gid.unwrap_or(s.gid);
        Ok(())
    }
    fn open(self: Arc<Self>, flags: i32) -> Result<Box<dyn FileOps>> {
        match self.index {
            None => super::open_ptmx(&self.sup.kernel),
            Some(i) if self.sup.kernel.ttys.host(i).is_some() => {
                super::open_char(&self.sup.kernel, super::pts_rdev(i), flags)
            }
            Some(i) => super::Slave::open(&self.sup.kernel.ttys.pty(i).ok_or(Errno::EIO)?, flags),
        }
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.sup.statfs())
    }
    fn volatile(&self) -> bool {
        true
    }
}
