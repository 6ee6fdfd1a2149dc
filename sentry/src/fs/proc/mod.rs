//! procfs (proc(5)): what the guest kernel tells about itself and its tasks.
//!
//! * this file: the root directory, `self`, `thread-self`;
//! * [`pid`]: the directory of a process or thread, its table of entries, who may look;
//! * [`status`], [`memory`], [`fd`], [`misc`]: what is behind these entries;
//! * [`system`], [`cpu`], [`sysctl`], [`net`], [`mounts`]: the rest of the tree.
//!
//! Nothing is cached: names and texts are made from the kernel's own state when they are asked for. A process that has
//! gone meanwhile answers `ENOENT` for names and `ESRCH` for what was opened before.

/// The part of `Inode` that everything which belongs to a process (`self.target`) has in common.
macro_rules! of_process {
    () => {
        fn statfs(&self) -> Result<StatFs> {
            Ok(self.target.sup.statfs())
        }
        fn volatile(&self) -> bool {
            true
        }
    };
}

/// `Inode::open` of a directory that anyone may list.
macro_rules! open_list {
    () => {
        fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
            Ok(open_dir(self))
        }
    };
}

pub mod cpu;
mod fd;
mod idmap;
mod inet;
mod memory;
mod misc;
mod mounts;
mod net;
mod ns;
mod pid;
mod status;
mod sysctl;
mod system;
mod sysvipc;

use super::file::FileOps;
use super::pseudo::{dir_kind, open_dir, List, Super, FIRST, PROC_SUPER_MAGIC};
use super::types::*;
use crate::error::{Errno, Result};
use crate::kernel::pid_ns::PidNs;
use crate::kernel::{current, Kernel};
pub use pid::process_of;
use pid::PidDir;
use std::any::Any;
use std::sync::Arc;
pub use system::FILESYSTEMS;

/// Inode numbers of entries that live as long as the tree start here, as on Linux.
const STATIC_INO: u64 = 0xf000_0000;
const ROOT_INO: u64 = 1;
const SELF_INO: u64 = STATIC_INO - 2;
const THREAD_SELF_INO: u64 = STATIC_INO - 1;

/// Directory positions of processes: number plus this.
const PID_POS: u64 = 256;

/// The procfs of a sandbox.
pub fn new(kernel: &Arc<Kernel>, pid_ns: Arc<PidNs>) -> Arc<dyn Inode> {
    let sup = Super::with_pids(kernel, PROC_SUPER_MAGIC, 1024, STATIC_INO, pid_ns);
    let mut entries: Vec<(Vec<u8>, Arc<dyn Inode>)> = vec![
        (b"self".to_vec(), Arc::new(SelfLink { sup: sup.clone(), thread: false })),
        (b"thread-self".to_vec(), Arc::new(SelfLink { sup: sup.clone(), thread: true })),
    ];
    entries.extend(system::entries(&sup));
    entries.push((b"sys".to_vec(), sysctl::tree(&sup)));
    Arc::new(Root { sup, entries })
}

struct Root {
    sup: Arc<Super>,
    entries: Vec<(Vec<u8>, Arc<dyn Inode>)>,
}

/// A process or thread number as it stands in a name: decimal without leading zeros.
fn parse_pid(name: &[u8]) -> Option<i32> {
    if name.is_empty() || name.len() > 9 || name[0] == b'0' {
        return None;
    }
    name.iter().try_fold(0i32, |n, c| c.is_ascii_digit().then(|| n * 10 + i32::from(c - b'0')))
}

impl Inode for Root {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let ns = &self.sup.pid_ns;
        let groups = match ns.is_initial() {
            true => self.sup.kernel.tree.lock().groups.len(),
            false => ns.numbers(0).len(),
        } as u32;
        Ok(self.sup.attr(ROOT_INO, libc::S_IFDIR | 0o555, groups.saturating_add(4)))
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        if let Some(pid) = parse_pid(name) {
            let pid = self.sup.pid_ns.global(pid).ok_or(Errno::ENOENT)?;
            let tree = self.sup.kernel.tree.lock();
            // The number of a thread that is not a leader works too, though it is not listed.
            let group = match tree.groups.get(&pid) {
                Some(g) => g.clone(),
                None => tree.tasks.get(&pid).ok_or(Errno::ENOENT)?.group.clone(),
            };
            return Ok(PidDir::of_group(&self.sup, pid, &group));
        }
        self.entries.iter().find(|(n, _)| n == name).map(|(_, e)| e.clone()).ok_or(Errno::ENOENT)
    }
    open_list!();
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.sup.statfs())
    }
    fn volatile(&self) -> bool {
        true
    }
}

impl Root {
    /// The numbers of the processes that it shows, from `from` on.
    fn pids(&self, from: i32) -> Vec<i32> {
        let ns = &self.sup.pid_ns;
        let tree = self.sup.kernel.tree.lock();
        if ns.is_initial() {
            return tree.groups.range(from..).map(|(p, _)| *p).collect();
        }
        ns.numbers(from).into_iter().filter(|(_, global)| tree.groups.contains_key(global)).map(|(nr, _)| nr).collect()
    }
}

impl List for Root {
    fn list(&self, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        for (i, (name, e)) in self.entries.iter().enumerate().skip((pos - FIRST) as usize) {
            let a = e.attr()?;
            if !sink(DirEntry { name, ino: a.ino, kind: dir_kind(a.mode), next: i as u64 + FIRST + 1 }) {
                return Ok(());
            }
        }
        let from = i32::try_from(pos.saturating_sub(PID_POS)).unwrap_or(i32::MAX);
        for pid in self.pids(from) {
            let next = pid as u64 + PID_POS + 1;
            let ino = pid::ino(self.sup.pid_ns.global(pid).unwrap_or(0), false, 0);
            if !sink(DirEntry { name: pid.to_string().as_bytes(), ino, kind: libc::DT_DIR, next }) {
                break;
            }
        }
        Ok(())
    }
}

/// `/proc/self` and `/proc/thread-self`.
struct SelfLink {
    sup: Arc<Super>,
    thread: bool,
}

impl Inode for SelfLink {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let ino = if self.thread { THREAD_SELF_INO } else { SELF_INO };
        Ok(self.sup.attr(ino, libc::S_IFLNK | 0o777, 1))
    }
    fn readlink(&self) -> Result<Vec<u8>> {
        let task = current::get().ok_or(Errno::ENOENT)?;
        let ns = &self.sup.pid_ns;
        // A task that the mount's namespace does not have is nothing there.
        let pid = Some(task.group.id.nr_in(ns)).filter(|p| *p > 0).ok_or(Errno::ENOENT)?;
        Ok(if self.thread { format!("{pid}/task/{}", task.number().nr_in(ns)) } else { pid.to_string() }.into_bytes())
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Box<dyn FileOps>> {
        Err(Errno::ELOOP)
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.sup.statfs())
    }
    fn volatile(&self) -> bool {
        true
    }
}
