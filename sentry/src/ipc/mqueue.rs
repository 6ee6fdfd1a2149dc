//! POSIX message queues (mq_overview(7)). They have a name space of their own, which no file system shows.

use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysError, SysResult};
use crate::fs::anon::anon_attr;
use crate::fs::vfs::perm::{check, MAY_READ, MAY_WRITE};
use crate::fs::{Attr, File, FileOps, Perm, SetAttr};
use crate::kernel::cred::{CAP_FOWNER, CAP_SYS_RESOURCE};
use crate::kernel::signal::{SigFields, SigInfo};
use crate::kernel::users::{self, Resource};
use crate::kernel::wait::{WaitError, WaitQueue};
use crate::kernel::{current, send, Cred, Task, ThreadGroup};
use crate::mm::io::Dst;
use parking_lot::Mutex;
use platform::budget::{Budget, Charge};
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Defaults of `/proc/sys/fs/mqueue`.
const QUEUES_MAX: usize = 256;
const MSG_DEFAULT: i64 = 10;
const MSGSIZE_DEFAULT: i64 = 8192;
/// Queues of all namespaces.
const ALL_MAX: u64 = 16 * QUEUES_MAX as u64;
static ALL: Budget = Budget::new(ALL_MAX);
/// Limits of privileged processes.
const HARD_MSG: i64 = 65536;
const HARD_MSGSIZE: i64 = 16 << 20;
/// Linux's accounting overhead of one message.
const OVERHEAD: i64 = 48;
pub const PRIO_MAX: u32 = 32768;

/// The first words of `struct mq_attr`.
#[derive(Clone, Copy, Debug, Default)]
pub struct MqAttr {
    pub flags: i64,
    pub maxmsg: i64,
    pub msgsize: i64,
    pub curmsgs: i64,
}

/// The notification method of mq_notify(2).
#[derive(Clone, Debug)]
pub enum NotifyMethod {
    Nothing,
    Signal {
        signo: i32,
        value: u64,
    },
    /// Sends the cookie to this netlink socket, which a thread of the C library reads. The cookie's last byte
    /// gives the event.
    Thread {
        socket: Weak<File>,
        cookie: [u8; COOKIE_LEN],
    },
}

pub const COOKIE_LEN: usize = 32;
const NOTIFY_WOKENUP: u8 = 1;
const NOTIFY_REMOVED: u8 = 2;

impl NotifyMethod {
    fn notify_thread(self, event: u8) {
        if let NotifyMethod::Thread { socket, mut cookie } = self {
            cookie[COOKIE_LEN - 1] = event;
            if let Some(f) = socket.upgrade() {
                crate::net::netlink::notify(&f, &cookie);
            }
        }
    }
}

struct Notify {
    group: Weak<ThreadGroup>,
    /// How often the process had called `execve`: a signal that one program has asked for is not sent to the next.
    execs: u64,
    how: NotifyMethod,
}

struct State {
    perm: Perm,
    /// Messages by priority, in order of arrival.
    messages: BTreeMap<u32, VecDeque<Vec<u8>>>,
    count: i64,
    bytes: usize,
    notify: Option<Notify>,
    /// Number of threads that wait for a message: a new message goes to one of them, without notification.
    receivers: usize,
}

pub struct Queue {
    maxmsg: i64,
    msgsize: i64,
    /// Charge of the declared bytes.
    _declared: users::Charge,
    _counted: Counted,
    ino: u64,
    state: Mutex<State>,
    wait: WaitQueue,
}

/// All queues by name.
#[derive(Default)]
pub struct Names {
    named: Mutex<BTreeMap<Vec<u8>, Arc<Queue>>>,
    /// How many there are, with those that have no name any more.
    count: Arc<AtomicUsize>,
}

/// One of the count.
struct Counted(Arc<AtomicUsize>, #[allow(dead_code)] Charge);

impl Counted {
    fn new(count: &Arc<AtomicUsize>, cred: &Cred) -> Result<Counted> {
        let room = ALL.take(1).ok_or(Errno::ENOSPC)?;
        let had = count.fetch_add(1, Ordering::Relaxed);
        let one = Counted(count.clone(), room);
        if had >= QUEUES_MAX && (!cred.has(CAP_SYS_RESOURCE) || had >= 16 * QUEUES_MAX) {
            return Err(Errno::ENOSPC);
        }
        Ok(one)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn valid(name: &[u8]) -> Result<()> {
    match name {
        b"" | b"." | b".." => Err(Errno::EACCES),
        n if n.contains(&b'/') => Err(Errno::EACCES),
        n if n.len() > 255 => Err(Errno::ENAMETOOLONG),
        _ => Ok(()),
    }
}

impl Names {
    /// mq_open(2).
    pub fn open(&self, task: &Task, name: &[u8], flags: i32, mode: u32, attr: Option<MqAttr>) -> Result<Arc<File>> {
        valid(name)?;
        let cred = task.cred();
        let mut names = self.named.lock();
        let queue = match names.get(name) {
            Some(_) if flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0 => return Err(Errno::EEXIST),
            Some(q) => {
                let mask = match flags & libc::O_ACCMODE {
                    libc::O_RDONLY => MAY_READ,
                    libc::O_WRONLY => MAY_WRITE,
                    libc::O_RDWR => MAY_READ | MAY_WRITE,
                    _ => return Err(Errno::EINVAL),
                };
                check(q.state.lock().perm, &cred, mask)?;
                q.clone()
            }
            None if flags & libc::O_CREAT == 0 => return Err(Errno::ENOENT),
            None => {
                let counted = Counted::new(&self.count, &cred)?;
                let q = Arc::new(Queue::new(task, &cred, mode, attr, counted)?);
                names.insert(name.to_vec(), q.clone());
                q
            }
        };
        let keep = flags & (libc::O_ACCMODE | libc::O_NONBLOCK);
        Ok(File::new(Box::new(QueueFile(queue)), keep, None))
    }

    /// The queue of that name.
    pub fn find(&self, name: &[u8]) -> Option<Arc<Queue>> {
        self.named.lock().get(name).cloned()
    }
    /// A queue made by open(2) in the file system of queues.
    pub fn create(&self, task: &Task, name: &[u8], mode: u32, uid: u32, gid: u32) -> Result<Arc<Queue>> {
        valid(name)?;
        let cred = task.cred();
        let mut names = self.named.lock();
        if names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let q = Arc::new(Queue::new(task, &cred, mode, None, Counted::new(&self.count, &cred)?)?);
        q.state.lock().perm = Perm { mode: libc::S_IFREG | (mode & 0o7777), uid, gid };
        names.insert(name.to_vec(), q.clone());
        Ok(q)
    }
    /// Takes a name away, whoever may do that.
    pub fn remove(&self, name: &[u8]) -> Result<()> {
        self.named.lock().remove(name).map(|_| ()).ok_or(Errno::ENOENT)
    }
    /// Names with inode numbers.
    pub fn list(&self) -> Vec<(Vec<u8>, u64)> {
        self.named.lock().iter().map(|(n, q)| (n.clone(), q.ino)).collect()
    }

    /// mq_unlink(2), with the rules of a sticky directory.
    pub fn unlink(&self, cred: &Cred, name: &[u8]) -> Result<()> {
        valid(name)?;
        let mut names = self.named.lock();
        let q = names.get(name).ok_or(Errno::ENOENT)?;
        let of = q.state.lock().perm;
        if cred.fsuid != of.uid && cred.fsuid != 0 && !cred.capable_over(of.uid, of.gid, CAP_FOWNER) {
            return Err(Errno::EACCES);
        }
        names.remove(name);
        Ok(())
    }
}

impl Queue {
    fn new(task: &Task, cred: &Cred, mode: u32, attr: Option<MqAttr>, counted: Counted) -> Result<Queue> {
        let (maxmsg, msgsize) = attr.map_or((MSG_DEFAULT, MSGSIZE_DEFAULT), |a| (a.maxmsg, a.msgsize));
        let (most, largest) =
            if cred.has(CAP_SYS_RESOURCE) { (HARD_MSG, HARD_MSGSIZE) } else { (MSG_DEFAULT, MSGSIZE_DEFAULT) };
        if maxmsg <= 0 || msgsize <= 0 || maxmsg > most || msgsize > largest {
            return Err(Errno::EINVAL);
        }
        let declared = (maxmsg * (msgsize + OVERHEAD)) as u64;
        let limit = task.limit(libc::RLIMIT_MSGQUEUE).min(users::all_max(Resource::QueueBytes) / 2);
        let declared = users::of(cred.uid).charge_many(Resource::QueueBytes, declared, limit).ok_or(Errno::EMFILE)?;
        let umask = task.fs().lock().umask;
        Ok(Queue {
            maxmsg,
            msgsize,
            _declared: declared,
            _counted: counted,
            ino: task.kernel.next_ino(),
            state: Mutex::new(State {
                perm: Perm { mode: libc::S_IFREG | (mode & 0o777 & !umask), uid: cred.fsuid, gid: cred.fsgid },
                messages: BTreeMap::new(),
                count: 0,
                bytes: 0,
                notify: None,
                receivers: 0,
            }),
            wait: WaitQueue::new(),
        })
    }

    pub fn stat(&self) -> Attr {
        let p = self.state.lock().perm;
        Attr { mode: p.mode, uid: p.uid, gid: p.gid, ino: self.ino, size: 80, ..anon_attr() }
    }
    pub fn set_stat(&self, set: &SetAttr) {
        let p = &mut self.state.lock().perm;
        p.mode = set.mode.map_or(p.mode, |m| (p.mode & libc::S_IFMT) | (m & 0o7777));
        p.uid = set.uid.unwrap_or(p.uid);
        p.gid = set.gid.unwrap_or(p.gid);
    }

    pub fn msgsize(&self) -> usize {
        self.msgsize as usize
    }

    pub fn attr(&self, file: &File) -> MqAttr {
        MqAttr {
            flags: i64::from(file.flags() & libc::O_NONBLOCK),
            maxmsg: self.maxmsg,
            msgsize: self.msgsize,
            curmsgs: self.state.lock().count,
        }
    }

    fn push(&self, task: &Task, prio: u32, data: &mut Option<Vec<u8>>) -> bool {
        let mut s = self.state.lock();
        if s.count >= self.maxmsg {
            return false;
        }
        let Some(d) = data.take() else { return true };
        let registered = if s.count == 0 && s.receivers == 0 { s.notify.take() } else { None };
        s.count += 1;
        s.bytes += d.len();
        s.messages.entry(prio).or_default().push_back(d);
        drop(s);
        self.wait.wake(PollEvents::READABLE);
        let execs = registered.as_ref().map_or(0, |n| n.execs);
        match registered.and_then(|n| Some((n.how, n.group.upgrade()?))) {
            Some((NotifyMethod::Signal { signo, value }, group)) if group.links.lock().execs == execs => {
                let fields = SigFields::Queue { pid: task.group.pid, uid: task.cred().uid, value };
                // Lost if the signal queue is full, as in Linux.
                let _ = send::to_group(&group, SigInfo { signo, errno: 0, code: libc::SI_MESGQ, fields });
            }
            Some((how, _)) => how.notify_thread(NOTIFY_WOKENUP),
            None => {}
        }
        true
    }

    /// mq_timedsend(2); `until` is host monotonic ns.
    pub async fn send(
        &self,
        task: &Task,
        data: Vec<u8>,
        prio: u32,
        nonblock: bool,
        until: Option<u64>,
    ) -> SysResult<()> {
        let mut data = Some(data);
        if self.push(task, prio, &mut data) {
            return Ok(());
        }
        if nonblock {
            return Err(Errno::EAGAIN.into());
        }
        let r = task
            .wait(&[(&self.wait, PollEvents::WRITABLE)], until, || self.push(task, prio, &mut data).then_some(()))
            .await;
        r.map_err(ended)
    }

    fn pop(&self) -> Option<(u32, Vec<u8>)> {
        let mut s = self.state.lock();
        let mut highest = s.messages.last_entry()?;
        let prio = *highest.key();
        let data = highest.get_mut().pop_front();
        if highest.get().is_empty() {
            highest.remove();
        }
        let data = data?;
        s.count -= 1;
        s.bytes -= data.len();
        drop(s);
        self.wait.wake(PollEvents::WRITABLE);
        Some((prio, data))
    }

    /// mq_timedreceive(2): priority and message.
    pub async fn receive(&self, task: &Task, nonblock: bool, until: Option<u64>) -> SysResult<(u32, Vec<u8>)> {
        if let Some(m) = self.pop() {
            return Ok(m);
        }
        if nonblock {
            return Err(Errno::EAGAIN.into());
        }
        let _here = Receiver::new(self);
        task.wait(&[(&self.wait, PollEvents::READABLE)], until, || self.pop()).await.map_err(ended)
    }

    /// mq_notify(2); `None` removes this process's registration.
    pub fn notify(&self, task: &Task, how: Option<NotifyMethod>) -> Result<()> {
        let execs = task.group.links.lock().execs;
        let mut s = self.state.lock();
        let owner = s.notify.as_ref().and_then(|n| n.group.upgrade());
        match how {
            None => {
                let own = owner.is_some_and(|g| Arc::ptr_eq(&g, &task.group));
                let ended = if own { s.notify.take() } else { None };
                drop(s);
                if let Some(n) = ended {
                    n.how.notify_thread(NOTIFY_REMOVED);
                }
            }
            Some(_) if owner.is_some() => return Err(Errno::EBUSY),
            Some(how) => s.notify = Some(Notify { group: Arc::downgrade(&task.group), execs, how }),
        }
        Ok(())
    }
}

/// A thread that waits for a message.
struct Receiver<'a>(&'a Queue);

impl<'a> Receiver<'a> {
    fn new(q: &'a Queue) -> Self {
        q.state.lock().receivers += 1;
        Receiver(q)
    }
}

impl Drop for Receiver<'_> {
    fn drop(&mut self) {
        self.0.state.lock().receivers -= 1;
    }
}

fn ended(e: WaitError) -> SysError {
    match e {
        WaitError::Interrupted => SysError::INTR,
        WaitError::TimedOut => Errno::ETIMEDOUT.into(),
    }
}

/// An open queue.
pub struct QueueFile(Arc<Queue>);

impl QueueFile {
    pub fn new(queue: Arc<Queue>) -> QueueFile {
        QueueFile(queue)
    }
}

/// The queue behind an open file.
pub fn of(file: &File) -> Result<Arc<Queue>> {
    file.ops.as_any().downcast_ref::<QueueFile>().map(|q| q.0.clone()).ok_or(Errno::EBADF)
}

impl FileOps for QueueFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    /// A status line of the queue.
    fn read(&self, _file: &File, dst: &mut Dst<'_>, offset: u64) -> SysResult<usize> {
        let (bytes, how, pid) = {
            let s = self.0.state.lock();
            let n = s.notify.as_ref();
            let seen = |g: Arc<ThreadGroup>| current::get().map_or(g.pid, |t| t.nr_of(&g.id));
            let pid = n.and_then(|n| n.group.upgrade()).map_or(0, seen);
            (s.bytes, n.map(|n| n.how.clone()), pid)
        };
        let (kind, signo) = match how {
            Some(NotifyMethod::Signal { signo, .. }) => (libc::SIGEV_SIGNAL, signo),
            Some(NotifyMethod::Nothing) => (libc::SIGEV_NONE, 0),
            Some(NotifyMethod::Thread { .. }) => (libc::SIGEV_THREAD, 0),
            None => (0, 0),
        };
        let line = format!("QSIZE:{bytes:<10} NOTIFY:{kind:<5} SIGNO:{signo:<5} NOTIFY_PID:{pid:<6}\n");
        let rest = usize::try_from(offset).ok().and_then(|o| line.as_bytes().get(o..)).unwrap_or_default();
        Ok(dst.put(rest)?)
    }
    fn seekable(&self) -> bool {
        true
    }
    fn poll(&self, _file: &File) -> PollEvents {
        let n = self.0.state.lock().count;
        let mut ev = PollEvents::empty();
        if n > 0 {
            ev |= PollEvents::READABLE;
        }
        if n < self.0.maxmsg {
            ev |= PollEvents::WRITABLE;
        }
        ev
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.0.wait)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(self.0.stat())
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        self.0.set_stat(set);
        Ok(())
    }
    fn reopens(&self) -> bool {
        true
    }
    fn anon_name(&self) -> String {
        "/mqueue".into()
    }
    fn on_close(&self, _file: &File, task: &Task) {
        let own = |n: &Notify| std::ptr::eq(n.group.as_ptr(), Arc::as_ptr(&task.group));
        let ended = {
            let mut s = self.0.state.lock();
            if s.notify.as_ref().is_some_and(own) {
                s.notify.take()
            } else {
                None
            }
        };
        if let Some(n) = ended {
            n.how.notify_thread(NOTIFY_REMOVED);
        }
    }
}
