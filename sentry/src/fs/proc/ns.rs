//! `/proc/[pid]/ns`: links to the namespaces of a task.

use super::pid::{ino, LiveTask, TaskRef};
use crate::error::{Errno, Result};
use crate::fs::file::FileOps;
use crate::fs::nsfs;
use crate::fs::pseudo::{open_dir, List, FIRST};
use crate::fs::types::*;
use crate::fs::vfs::Path;
use crate::kernel::ns::{Namespace, NsKind};
use crate::kernel::Cred;
use std::any::Any;
use std::sync::Arc;

/// Name, kind, and whether it is the one of children to come.
const LINKS: [(&str, NsKind, bool); 10] = [
    ("net", NsKind::Net, false),
    ("uts", NsKind::Uts, false),
    ("ipc", NsKind::Ipc, false),
    ("pid", NsKind::Pid, false),
    ("pid_for_children", NsKind::Pid, true),
    ("user", NsKind::User, false),
    ("mnt", NsKind::Mnt, false),
    ("cgroup", NsKind::Cgroup, false),
    ("time", NsKind::Time, false),
    ("time_for_children", NsKind::Time, true),
];

struct NsLink {
    target: TaskRef,
    index: usize,
    kind: NsKind,
    for_children: bool,
}

impl NsLink {
    fn namespace(&self) -> Result<Namespace> {
        let live = self.target.exists()?;
        if !live.may_access() {
            return Err(Errno::EACCES);
        }
        let task = live.live()?;
        // Children have no namespace before the first of them is there.
        if self.for_children && self.kind == NsKind::Pid && !task.ns().pid_for_children.has_init() {
            return Err(Errno::ENOENT);
        }
        Ok(if self.for_children { Namespace::for_children(task, self.kind) } else { Namespace::of(task, self.kind) })
    }
}

impl Inode for NsLink {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let a = self.target.attr(0, libc::S_IFLNK | 0o777, 1)?;
        Ok(Attr { ino: ino(self.target.id, true, 64 + self.index), ..a })
    }
    fn readlink(&self) -> Result<Vec<u8>> {
        Ok(self.namespace()?.name().into_bytes())
    }
    fn follow_magic(&self, _cred: &Cred) -> Option<Result<Path>> {
        Some(self.namespace().and_then(nsfs::path))
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        Err(Errno::ELOOP)
    }
    of_process!();
}

struct NsDir {
    target: TaskRef,
    index: usize,
}

pub(super) fn dir(target: TaskRef, index: usize) -> Arc<dyn Inode> {
    Arc::new(NsDir { target, index })
}

fn may_look(live: &LiveTask) -> Result<()> {
    live.may_access().then_some(()).ok_or(Errno::EACCES)
}

impl Inode for NsDir {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        self.target.attr(self.index, libc::S_IFDIR | 0o511, 2)
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let live = self.target.exists()?;
        let found = LINKS.iter().enumerate().find(|(_, (n, _, _))| n.as_bytes() == name);
        let (index, &(_, kind, for_children)) = found.ok_or(Errno::ENOENT)?;
        may_look(&live)?;
        Ok(Arc::new(NsLink { target: self.target.clone(), index, kind, for_children }))
    }
    open_list!();
    of_process!();
}

impl List for NsDir {
    fn list(&self, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        for (i, (name, _, _)) in LINKS.iter().enumerate().skip((pos - FIRST) as usize) {
            let e = DirEntry {
                name: name.as_bytes(),
                ino: ino(self.target.id, true, 64 + i),
                kind: libc::DT_LNK,
                next: i as u64 + FIRST + 1,
            };
            if !sink(e) {
                break;
            }
        }
        Ok(())
    }
}
