//! `/proc/[pid]` and `/proc/[pid]/task/[tid]`: the directory, its entries, and who may look at them.

use super::{fd, idmap, memory, misc, mounts, net, ns, status};
use crate::error::{Errno, Result};
use crate::fs::file::FileOps;
use crate::fs::pseudo::{ignore_set_attr, open_dir, Content, List, OpenText, Super, FIRST};
use crate::fs::types::*;
use crate::fs::vfs::Path;
use crate::kernel::cred::{CAP_SYS_PTRACE, NO_ID};
use crate::kernel::user_ns::Id;
use crate::kernel::{current, Cred, Task, ThreadGroup};
use crate::mm::Mm;
use std::any::Any;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// Inode number of entry `index` (0: the directory) of a process or thread.
pub(super) fn ino(id: i32, thread: bool, index: usize) -> u64 {
    1 << 40 | (id as u64) << 16 | u64::from(thread) << 15 | index as u64
}

/// A process or thread that an inode stands for; it may have gone.
#[derive(Clone)]
pub(super) struct TaskRef {
    pub sup: Arc<Super>,
    /// Its global number.
    pub id: i32,
    group: Weak<ThreadGroup>,
    /// The thread, for `task/[tid]`.
    task: Option<Weak<Task>>,
}

/// A [`TaskRef`] that exists now.
pub(super) struct LiveTask {
    pub group: Arc<ThreadGroup>,
    /// The thread, or one that stands for the process; none: a zombie.
    pub task: Option<Arc<Task>>,
    /// The memory that a file was opened on (`None` in it: gone), where it is not that of the task at any time.
    pub opened: Option<Option<Arc<Mm>>>,
    /// A single thread is meant.
    pub thread: bool,
    pub id: i32,
}

impl LiveTask {
    /// The thread; `ENOENT` for a zombie, as links of a task without files or memory answer.
    pub fn live(&self) -> Result<&Arc<Task>> {
        self.task.as_ref().ok_or(Errno::ENOENT)
    }
    /// Its credentials; a zombie keeps those that it had.
    pub fn cred(&self) -> Option<Arc<Cred>> {
        match &self.task {
            Some(t) => Some(t.cred()),
            None => self.group.remains.lock().as_ref().map(|r| r.cred.clone()),
        }
    }
    /// The number that the tree shows.
    pub fn nr(&self, sup: &Super) -> i32 {
        sup.pid_ns.nr_of(self.id)
    }
    /// The memory to show.
    pub fn mm(&self) -> Option<Arc<Mm>> {
        match &self.opened {
            Some(mm) => mm.clone(),
            None => self.task.as_ref().map(|t| t.mm()),
        }
    }
    /// May the caller look into this task as a debugger could (`ptrace_may_access`)?
    pub fn may_access(&self) -> bool {
        let Some(me) = current::get() else { return true };
        if Arc::ptr_eq(&me.group, &self.group) {
            return true;
        }
        match &self.task {
            Some(task) => {
                let mine = me.cred();
                me.may_access(task, mine.fsuid, mine.fsgid)
            }
            None => self.cred().is_some_and(|c| me.cred().capable_in(&c.user_ns, CAP_SYS_PTRACE)),
        }
    }
}

impl TaskRef {
    pub fn get(&self) -> Result<LiveTask> {
        let group = self.group.upgrade().ok_or(Errno::ESRCH)?;
        let Some(task) = &self.task else {
            // A thread's number names its process, and what is asked of one thread then is asked of this one.
            let own = || group.links.lock().threads.iter().find(|t| t.tid() == self.id).cloned();
            let task = match own() {
                None if self.id == group.pid => group.any_thread(),
                None => return Err(Errno::ESRCH),
                one => one,
            };
            return Ok(LiveTask { group, task, opened: None, thread: false, id: self.id });
        };
        let task = task.upgrade().ok_or(Errno::ESRCH)?;
        if !group.links.lock().threads.iter().any(|t| Arc::ptr_eq(t, &task)) {
            return Err(Errno::ESRCH);
        }
        Ok(LiveTask { group, task: Some(task), opened: None, thread: true, id: self.id })
    }
    /// As [`TaskRef::get`], for looking up names.
    pub fn exists(&self) -> Result<LiveTask> {
        self.get().map_err(|_| Errno::ENOENT)
    }
    pub fn attr(&self, index: usize, mode: u32, nlink: u32) -> Result<Attr> {
        let mut a = self.sup.attr(ino(self.id, self.task.is_some(), index), mode, nlink);
        let live = self.exists()?;
        let owned = mode == libc::S_IFDIR | 0o555 || live.group.dumpable.load(Ordering::Relaxed) == 1;
        if let (true, Some(t)) = (owned, &live.task) {
            let c = t.cred.read();
            (a.uid, a.gid) = (c.euid, c.egid);
        } else {
            // What is not its own belongs to root of the namespace that the program was executed in.
            let ns = live.group.dump_ns.read().clone();
            let root = |id: u32| if id == NO_ID { 0 } else { id };
            (a.uid, a.gid) = (root(ns.root()), root(ns.root_group()));
        }
        let k = &self.sup.kernel;
        let age = live.group.start_ns.load(Ordering::Relaxed).saturating_sub(k.boot_monotonic_ns);
        let ns = k.boot_realtime_ns.saturating_add(age);
        let t = Timespec { sec: (ns / 1_000_000_000) as i64, nsec: (ns % 1_000_000_000) as u32 };
        (a.atime, a.mtime, a.ctime, a.btime) = (t, t, t, t);
        Ok(a)
    }
}

pub(super) type Generate = fn(&LiveTask, &Super, &mut Vec<u8>) -> Result<()>;
type Store = fn(&LiveTask, &Super, &[u8]) -> Result<()>;

pub(super) enum Kind {
    Text(Generate),
    /// A text that only those may open and read who may look into the task.
    Guarded(Generate),
    /// A text of the task's memory, for those who may look into the task when they open it. It stays that of the memory of then,
    /// and does not keep it alive.
    OfMemory(Generate),
    Writable(Generate, Store),
    /// A link with a text that is also a place.
    Link(fn(&LiveTask) -> Result<Path>),
    Dir(fn(TaskRef, usize) -> Arc<dyn Inode>),
    /// A file that depends on who opens it.
    Opened(fn(&LiveTask, i32) -> Result<Box<dyn FileOps>>),
    Mem,
}

pub(super) struct Entry {
    pub name: &'static str,
    pub mode: u32,
    pub kind: Kind,
}

const fn e(name: &'static str, mode: u32, kind: Kind) -> Entry {
    Entry { name, mode, kind }
}

use Kind::*;

/// Entries of a process and of a thread.
const COMMON: &[Entry] = &[
    e("fd", 0o500, Dir(fd::fd_dir)),
    e("fdinfo", 0o555, Dir(fd::fdinfo_dir)),
    e("ns", 0o511, Dir(ns::dir)),
    e("net", 0o555, Dir(net::dir)),
    e("environ", 0o400, OfMemory(memory::environ)),
    e("auxv", 0o400, OfMemory(memory::auxv)),
    e("status", 0o444, Text(status::status)),
    e("personality", 0o400, Guarded(misc::personality)),
    e("limits", 0o444, Text(misc::limits)),
    e("sched", 0o644, Writable(misc::sched, misc::ignore)),
    e("comm", 0o644, Writable(misc::comm, misc::set_comm)),
    e("syscall", 0o400, Guarded(misc::syscall)),
    e("cmdline", 0o444, Text(memory::cmdline)),
    e("stat", 0o444, Text(status::stat)),
    e("statm", 0o444, Text(status::statm)),
    e("maps", 0o444, OfMemory(memory::maps)),
    e("mem", 0o600, Mem),
    e("cwd", 0o777, Link(fd::cwd)),
    e("root", 0o777, Link(fd::root)),
    e("exe", 0o777, Link(fd::exe)),
    e("mounts", 0o444, Text(mounts::mounts)),
    e("mountinfo", 0o444, Text(mounts::mountinfo)),
    e("smaps", 0o444, OfMemory(memory::smaps)),
    e("smaps_rollup", 0o444, OfMemory(memory::smaps_rollup)),
    e("pagemap", 0o400, OfMemory(misc::nothing)),
    e("wchan", 0o444, Text(misc::wchan)),
    e("stack", 0o400, Guarded(misc::stack)),
    e("schedstat", 0o444, Text(misc::schedstat)),
    e("cgroup", 0o444, Text(misc::cgroup)),
    e("cpuset", 0o444, Text(misc::cpuset)),
    e("oom_score", 0o444, Text(misc::oom_score)),
    e("oom_adj", 0o644, Writable(misc::oom_adj, misc::set_oom_adj)),
    e("oom_score_adj", 0o644, Writable(misc::oom_score_adj, misc::set_oom_score_adj)),
    e("loginuid", 0o644, Writable(misc::loginuid, misc::refuse)),
    e("sessionid", 0o444, Text(misc::sessionid)),
    e("io", 0o400, Text(misc::io)),
    e("uid_map", 0o644, Kind::Opened(|live, flags| idmap::open(live, flags, Some(Id::User)))),
    e("gid_map", 0o644, Kind::Opened(|live, flags| idmap::open(live, flags, Some(Id::Group)))),
    e("projid_map", 0o644, Kind::Opened(|live, flags| idmap::open(live, flags, Some(Id::Project)))),
    e("setgroups", 0o644, Kind::Opened(|live, flags| idmap::open(live, flags, None))),
];

/// Entries of a process only.
const PROCESS: &[Entry] = &[
    e("task", 0o555, Dir(task_dir)),
    e("autogroup", 0o644, Writable(misc::autogroup, misc::ignore)),
    e("mountstats", 0o400, Text(mounts::mountstats)),
    e("coredump_filter", 0o644, Writable(misc::coredump_filter, misc::ignore)),
    e("timers", 0o444, Text(misc::nothing)),
    e("timerslack_ns", 0o666, Writable(misc::timerslack, misc::set_timerslack)),
    e("clear_refs", 0o200, Writable(misc::nothing, misc::ignore)),
];

const THREAD: &[Entry] = &[e("children", 0o444, Text(misc::children))];

fn entries(thread: bool) -> impl Iterator<Item = &'static Entry> {
    COMMON.iter().chain(if thread { THREAD } else { PROCESS })
}

/// The directory of a process or thread.
pub(super) struct PidDir {
    target: TaskRef,
}

/// The process whose `/proc/[pid]` a description has open, for pidfd_send_signal(2); `ESRCH` if it has gone.
pub fn process_of(file: &crate::fs::File) -> Option<Result<Arc<ThreadGroup>>> {
    let dir = file.path.as_ref()?.inode().as_any().downcast_ref::<PidDir>()?;
    if dir.target.task.is_some() {
        return None;
    }
    Some(dir.target.group.upgrade().ok_or(Errno::ESRCH))
}

impl PidDir {
    /// Of a process, by its own number or that of one of its threads.
    pub fn of_group(sup: &Arc<Super>, id: i32, group: &Arc<ThreadGroup>) -> Arc<dyn Inode> {
        let target = TaskRef { sup: sup.clone(), id, group: Arc::downgrade(group), task: None };
        Arc::new(PidDir { target })
    }
    fn of_task(sup: &Arc<Super>, task: &Arc<Task>) -> Arc<dyn Inode> {
        let group = Arc::downgrade(&task.group);
        let target = TaskRef { sup: sup.clone(), id: task.tid(), group, task: Some(Arc::downgrade(task)) };
        Arc::new(PidDir { target })
    }
    fn node(&self, index: usize, entry: &'static Entry) -> Arc<dyn Inode> {
        let target = self.target.clone();
        match &entry.kind {
            Dir(make) => make(target, index),
            _ => Arc::new(Node { target, index, entry }),
        }
    }
}

impl Inode for PidDir {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        self.target.attr(0, libc::S_IFDIR | 0o555, if self.target.task.is_some() { 7 } else { 9 })
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let thread = self.target.task.is_some();
        let (i, entry) = entries(thread).enumerate().find(|(_, e)| e.name.as_bytes() == name).ok_or(Errno::ENOENT)?;
        if self.target.group.strong_count() == 0 {
            return Err(Errno::ENOENT);
        }
        Ok(self.node(i + 1, entry))
    }
    open_list!();
    of_process!();
}

impl List for PidDir {
    fn list(&self, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let live = self.target.exists()?;
        for (i, entry) in entries(live.thread).enumerate().skip((pos - FIRST) as usize) {
            let kind = match entry.kind {
                Dir(_) => libc::DT_DIR,
                Link(_) => libc::DT_LNK,
                _ => libc::DT_REG,
            };
            let ino = ino(live.id, live.thread, i + 1);
            if !sink(DirEntry { name: entry.name.as_bytes(), ino, kind, next: i as u64 + FIRST + 1 }) {
                break;
            }
        }
        Ok(())
    }
}

/// An entry that is not a directory.
struct Node {
    target: TaskRef,
    index: usize,
    entry: &'static Entry,
}

impl Content for Node {
    fn generate(&self, out: &mut Vec<u8>) -> Result<()> {
        let live = self.target.get()?;
        match self.entry.kind {
            // Who may not look into the program that runs by now shall not.
            Guarded(_) if !live.may_access() => Err(Errno::EPERM),
            Text(f) | Guarded(f) | Writable(f, _) => f(&live, &self.target.sup, out),
            _ => Err(Errno::EINVAL),
        }
    }
    fn store(&self, text: &[u8]) -> Result<()> {
        let live = self.target.get()?;
        match self.entry.kind {
            Writable(_, f) => f(&live, &self.target.sup, text),
            _ => Err(Errno::EINVAL),
        }
    }
    fn size_hint(&self) -> usize {
        match self.entry.name {
            "status" | "limits" | "mountinfo" => 2048,
            "maps" | "smaps" => 8192,
            _ => 512,
        }
    }
}

/// An [`OfMemory`] file that is open.
struct Opened {
    node: Arc<Node>,
    mm: Weak<Mm>,
}

impl Content for Opened {
    fn generate(&self, out: &mut Vec<u8>) -> Result<()> {
        let OfMemory(f) = self.node.entry.kind else { return Err(Errno::EINVAL) };
        let mut live = self.node.target.get()?;
        live.opened = Some(self.mm.upgrade());
        f(&live, &self.node.target.sup, out)
    }
    fn size_hint(&self) -> usize {
        self.node.size_hint()
    }
}

impl Inode for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let kind = if matches!(self.entry.kind, Link(_)) { libc::S_IFLNK } else { libc::S_IFREG };
        self.target.attr(self.index, kind | self.entry.mode, 1)
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        ignore_set_attr(set)
    }
    fn readlink(&self) -> Result<Vec<u8>> {
        let Link(place) = self.entry.kind else { return Err(Errno::EINVAL) };
        let live = self.target.exists()?;
        if !live.may_access() {
            return Err(Errno::EACCES);
        }
        fd::place_name(&place(&live)?)
    }
    fn follow_magic(&self, _cred: &Cred) -> Option<Result<Path>> {
        let Link(place) = self.entry.kind else { return None };
        Some(self.target.exists().and_then(|live| if live.may_access() { place(&live) } else { Err(Errno::EACCES) }))
    }
    fn open(self: Arc<Self>, flags: i32) -> Result<Box<dyn FileOps>> {
        let live = self.target.get()?;
        // The memory first: a program with rights of its own is protected before its memory is there.
        let mm = live.mm().map_or_else(Weak::new, |mm| Arc::downgrade(&mm));
        match self.entry.kind {
            Guarded(_) | OfMemory(_) | Mem if !live.may_access() => Err(Errno::EACCES),
            Kind::Opened(open) => open(&live, flags),
            Mem => memory::open_mem(mm),
            OfMemory(_) => Ok(OpenText::open(Arc::new(Opened { node: self, mm }))),
            Link(_) => Err(Errno::ELOOP),
            _ => Ok(OpenText::open(self)),
        }
    }
    of_process!();
}

/// `/proc/[pid]/task`.
struct TaskDir {
    target: TaskRef,
    index: usize,
}

fn task_dir(target: TaskRef, index: usize) -> Arc<dyn Inode> {
    Arc::new(TaskDir { target, index })
}

impl Inode for TaskDir {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        let threads = self.target.exists()?.group.links.lock().threads.len() as u32;
        self.target.attr(self.index, libc::S_IFDIR | 0o555, 2 + threads)
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let tid = super::parse_pid(name).and_then(|nr| self.target.sup.pid_ns.global(nr)).ok_or(Errno::ENOENT)?;
        let live = self.target.exists()?;
        let r = live.group.links.lock();
        let task = r.threads.iter().find(|t| t.tid() == tid).ok_or(Errno::ENOENT)?;
        Ok(PidDir::of_task(&self.target.sup, task))
    }
    open_list!();
    of_process!();
}

impl List for TaskDir {
    fn list(&self, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let live = self.target.exists()?;
        let ns = &self.target.sup.pid_ns;
        let mut tids: Vec<i32> = live.group.links.lock().threads.iter().map(|t| t.number().nr_in(ns)).collect();
        tids.sort_unstable();
        let from = (pos - FIRST) as i64;
        for tid in tids.into_iter().filter(|&t| i64::from(t) >= from) {
            let next = tid as u64 + FIRST + 1;
            let ino = ino(ns.global(tid).unwrap_or(0), true, 0);
            if !sink(DirEntry { name: tid.to_string().as_bytes(), ino, kind: libc::DT_DIR, next }) {
                break;
            }
        }
        Ok(())
    }
}
