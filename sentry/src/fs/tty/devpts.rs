//! devpts: `/dev/pts`, with `ptmx` and a node for each pseudo terminal.

use super::{HostTerminal, Pty};
use crate::error::{Errno, Result};
use crate::fs::file::FileOps;
use crate::fs::fstype::{id, number};
use crate::fs::pseudo::{open_dir, List, Super, DEVPTS_SUPER_MAGIC, FIRST};
use crate::fs::types::*;
use crate::fs::vfs::{LookupFlags, Path, Resolver, RootRef};
use crate::kernel::cred::CAP_ALL;
use crate::kernel::user_ns::Id;
use crate::kernel::{Cred, Kernel};
use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// The instance that device nodes elsewhere stand for: the first one.
pub const FIRST_INSTANCE: u64 = 1;

/// Mount options.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    uid: Option<u32>,
    gid: Option<u32>,
    mode: u32,
    ptmxmode: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options { uid: None, gid: None, mode: 0o600, ptmxmode: 0 }
    }
}

impl Options {
    pub fn set(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        let text = value.ok_or(Errno::EINVAL);
        match key {
            b"newinstance" if value.is_none() => {}
            b"uid" => self.uid = Some(id(Id::User, text?)?),
            b"gid" => self.gid = Some(id(Id::Group, text?)?),
            b"mode" => self.mode = number(text?, 8)? as u32 & 0o777,
            b"ptmxmode" => self.ptmxmode = number(text?, 8)? as u32 & 0o777,
            // Terminals of one instance; that of all is the bound here.
            b"max" => number(text?, 10).map(|_| ())?,
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }
    /// Owner, group and mode of a terminal that a process with these ids makes.
    pub(super) fn of_new(&self, uid: u32, gid: u32) -> (u32, u32, u32) {
        (self.uid.unwrap_or(uid), self.gid.unwrap_or(gid), self.mode)
    }
    pub fn shown(&self) -> String {
        let id = |name: &str, id: Option<u32>| id.map(|i| format!("{name}={i},")).unwrap_or_default();
        let (uid, gid) = (id("uid", self.uid), id("gid", self.gid));
        format!("{uid}{gid}mode={:03o},ptmxmode={:03o}", self.mode, self.ptmxmode)
    }
}

/// An instance of devpts: what is opened by its `ptmx` is in it.
struct Instance {
    sup: Arc<Super>,
    id: u64,
    options: Options,
}

impl Instance {
    fn pty(&self, index: u32) -> Option<Arc<Pty>> {
        self.sup.kernel.ttys.pty(self.id, index)
    }
    fn host(&self, index: u32) -> Option<Arc<HostTerminal>> {
        self.sup.kernel.ttys.host(self.id, index)
    }
}

/// The instance that is mounted at `/dev/pts` below `root`; without one, the first.
pub fn instance_below(root: &Path) -> u64 {
    let cred = Cred::user(0, 0, Vec::new(), CAP_ALL);
    let walk =
        Resolver::new(&cred, RootRef::Fixed(root.clone()), LookupFlags::FOLLOW).resolve(root.clone(), b"/dev/pts");
    let found = walk.ok().and_then(|p| p.inode().as_any().downcast_ref::<Root>().map(|r| r.0.id));
    found.unwrap_or(FIRST_INSTANCE)
}

struct Root(Arc<Instance>);

/// A new instance.
pub fn new(kernel: &Arc<Kernel>, options: Options) -> Arc<dyn Inode> {
    static NEXT: AtomicU64 = AtomicU64::new(FIRST_INSTANCE);
    let sup = Super::new(kernel, DEVPTS_SUPER_MAGIC, 1024, 3);
    Arc::new(Root(Arc::new(Instance { sup, id: NEXT.fetch_add(1, Ordering::Relaxed), options })))
}

impl Inode for Root {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        Ok(self.0.sup.attr(1, libc::S_IFDIR | 0o755, 2))
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let index = match name {
            b"ptmx" => None,
            n => {
                let text = std::str::from_utf8(n).map_err(|_| Errno::ENOENT)?;
                let i: u32 = text.parse().map_err(|_| Errno::ENOENT)?;
                if i.to_string() != text || (self.0.pty(i).is_none() && self.0.host(i).is_none()) {
                    return Err(Errno::ENOENT);
                }
                Some(i)
            }
        };
        Ok(Arc::new(Node { fs: self.0.clone(), index }))
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        Ok(open_dir(self))
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.0.sup.statfs())
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
        for n in self.0.sup.kernel.ttys.numbers(self.0.id) {
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
    fs: Arc<Instance>,
    index: Option<u32>,
}

impl Inode for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let Some(i) = self.index else {
            let a = self.fs.sup.attr(2, libc::S_IFCHR | self.fs.options.ptmxmode, 1);
            return Ok(Attr { rdev: libc::makedev(5, 2), ..a });
        };
        if let Some(host) = self.fs.host(i) {
            let a = self.fs.sup.attr(3 + u64::from(i), libc::S_IFCHR | 0o620, 1);
            return Ok(Attr { rdev: host.line.rdev, uid: host.uid, gid: super::TTY_GROUP, ..a });
        }
        let pty = self.fs.pty(i).ok_or(Errno::ENOENT)?;
        let s = pty.state.lock();
        let a = self.fs.sup.attr(3 + u64::from(i), libc::S_IFCHR | s.mode, 1);
        Ok(Attr { rdev: pty.rdev(), uid: s.uid, gid: s.gid, ..a })
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        let Some(pty) = self.index.and_then(|i| self.fs.pty(i)) else { return Ok(()) };
        let mut s = pty.state.lock();
        s.mode = set.mode.map_or(s.mode, |m| m & 0o7777);
        s.uid = set.uid.unwrap_or(s.uid);
        s.gid = set.gid.unwrap_or(s.gid);
        Ok(())
    }
    fn open(self: Arc<Self>, flags: i32) -> Result<Box<dyn FileOps>> {
        match self.index {
            None => super::open_ptmx(&self.fs.sup.kernel, self.fs.id, &self.fs.options),
            Some(i) => match self.fs.host(i) {
                Some(host) => Ok(host.end()),
                None => super::Slave::open(&self.fs.pty(i).ok_or(Errno::EIO)?, flags),
            },
        }
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.fs.sup.statfs())
    }
    fn volatile(&self) -> bool {
        true
    }
}
