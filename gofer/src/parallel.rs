//! Examines the files of one request with two threads.
//!
//! While the Gofer works, the Sentry waits, and so does the guest: one core is idle. So the files of a request are
//! split into chunks, which the server's thread and a second one take in turn. The second thread runs on another core
//! and sleeps between requests. Within a request it spins for a moment for more work, since waking it costs as much
//! as ten files. If it comes late or not at all, the first thread does all the work.

use std::cell::Cell;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{mpsc, Arc, Condvar, Mutex, MutexGuard, PoisonError};

use protocol::reply::{DirEntry, FileContent};
use protocol::wire::Writer;
use protocol::{Attr, Detail, FileKind, MAX_MESSAGE};
use rustix::io::Errno;
use rustix::thread::{sched_getaffinity, sched_getcpu, sched_setaffinity, CpuSet};

use crate::{setup, sys, Error};

/// Files taken at a time.
const CHUNK: usize = 2;
/// Fewest files to read, or to stat, for which waking the second thread pays; and fewest of either once it is awake.
const MIN_FILES_TO_READ: usize = 12;
const MIN_FILES_TO_STAT: usize = 64;
const MIN_FILES_AWAKE: usize = 8;
/// How often the second thread polls for more files of a request before it sleeps: about 100 µs.
const SPINS: u32 = 4000;
/// The same for the first thread at the end, while the second still has a chunk.
const SPINS_AT_END: u32 = 4000;

/// A file to examine.
struct Item {
    ino: u64,
    cookie: u64,
    /// Its kind, according to the directory.
    kind: FileKind,
    /// Range of its name in `names`.
    name: Range<usize>,
}

/// Files of one directory to examine. All their names are in one allocation: if one thread allocates and the other
/// frees, both contend for the allocator's lock.
#[derive(Default)]
pub struct Items {
    list: Vec<Item>,
    names: Vec<u8>,
}

impl Items {
    pub fn push(&mut self, ino: u64, cookie: u64, kind: FileKind, name: &[u8]) {
        let start = self.names.len();
        self.names.extend_from_slice(name);
        self.list.push(Item { ino, cookie, kind, name: start..self.names.len() });
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn clear(&mut self) {
        self.list.clear();
        self.names.clear();
    }

    fn name(&self, item: &Item) -> &[u8] {
        self.names.get(item.name.clone()).unwrap_or(&[])
    }
}

/// Requested information on each file.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// An entry of a listing.
    Entry(Detail),
    /// The content of a file of at most this size.
    Content(u32),
}

/// Buffers for file contents and for answers.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Also for symlink targets and values of attributes.
    pub scratch: Vec<u8>,
    answers: Vec<u8>,
}

impl Scratch {
    pub fn new() -> Self {
        Self { scratch: vec![0; MAX_MESSAGE], answers: Vec::new() }
    }
}

/// Location of the answers for the files of a chunk.
#[derive(Default, Clone, Copy)]
struct Span {
    /// They are in the second thread's buffer.
    second: bool,
    start: usize,
    /// End of each; 0: no answer.
    ends: [usize; CHUNK],
}

/// Files of one directory.
struct Batch {
    dir: OwnedFd,
    form: Form,
    items: Items,
    /// Bytes of answers that there is room for, and bytes produced.
    room: usize,
    produced: AtomicUsize,
    /// Chunks taken (or more), and chunks done.
    next: AtomicUsize,
    done: AtomicUsize,
    spans: Box<[Mutex<Span>]>,
}

#[derive(Default)]
struct Shared {
    batch: Mutex<Option<Arc<Batch>>>,
    /// Signalled when there is a batch, or the end.
    wake: Condvar,
    /// Incremented then, for polling without the lock.
    posted: AtomicUsize,
    asleep: AtomicBool,
    /// The request may have more files.
    more: AtomicBool,
    end: AtomicBool,
    /// Signalled when a chunk is done, if the first thread waits.
    done: Condvar,
    waits: AtomicBool,
    at_end: Mutex<()>,
    /// Buffers of the second thread. Locked while it works, and while its answers are read.
    room: Mutex<Scratch>,
}

/// One candidate for the second thread, and the cores it runs on.
struct Thread {
    cores: CpuSet,
    shared: Arc<Shared>,
}

/// The second thread. There are two candidates, one for each half of the cores; the one on the other half than the
/// first thread works. A single unbound thread would often run on the first one's core, since it is woken there.
pub struct Second {
    threads: Vec<Thread>,
    /// The candidate chosen for this request.
    chosen: Cell<Option<usize>>,
}

impl std::fmt::Debug for Second {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Second")
    }
}

/// No thread can panic while it holds one of these locks and continue.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Second {
    /// Starts the threads and waits until they run, so that they can be confined along with the first. `None` if
    /// there is only one core.
    pub fn start() -> Result<Option<Self>, Error> {
        let all = sched_getaffinity(None).map_err(setup("read the cores to run on"))?;
        let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|c| all.is_set(*c)).collect();
        let (low, high) = cores.split_at(cores.len() / 2);
        if low.is_empty() {
            return Ok(None);
        }
        // Does its one-time setup now; it would not be allowed later.
        sched_getcpu();
        let threads = [low, high].into_iter().map(Thread::start).collect::<Result<_, _>>()?;
        Ok(Some(Self { threads, chosen: Cell::new(None) }))
    }

    /// Wakes the second thread early, since there will probably be files to examine.
    pub fn get_ready(&self) {
        if let Some(shared) = self.choose() {
            shared.more.store(true, Ordering::Relaxed);
            shared.post(None);
            shared.notify();
        }
    }

    /// Marks the end of a request: the second thread need not poll for more.
    pub fn rest(&self) {
        if let Some(shared) = self.chosen() {
            shared.more.store(false, Ordering::Relaxed);
        }
        self.chosen.set(None);
    }

    fn chosen(&self) -> Option<&Shared> {
        self.chosen.get().and_then(|i| self.threads.get(i)).map(|t| &*t.shared)
    }

    /// The candidate for this request.
    fn choose(&self) -> Option<&Shared> {
        if self.chosen.get().is_none() {
            let here = sched_getcpu();
            self.chosen.set(self.threads.iter().position(|t| !t.cores.is_set(here)));
        }
        self.chosen()
    }
}

impl Thread {
    fn start(cores: &[usize]) -> Result<Self, Error> {
        let mut set = CpuSet::new();
        cores.iter().for_each(|c| set.set(*c));
        let shared = Arc::new(Shared::default());
        let (up, wait) = mpsc::channel();
        let theirs = shared.clone();
        let run = move || {
            // Not essential: an error is ignored.
            let _ = sched_setaffinity(None, &set);
            if up.send(()).is_ok() {
                theirs.run();
            }
        };
        let started = std::thread::Builder::new().stack_size(128 * 1024).spawn(run);
        started.map_err(|e| setup("start a thread")(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        wait.recv().map_err(|_| setup("start a thread")(Errno::IO))?;
        Ok(Self { cores: set, shared })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        let batch = lock(&self.shared.batch);
        self.shared.end.store(true, Ordering::Relaxed);
        self.shared.posted.fetch_add(1, Ordering::Release);
        drop(batch);
        self.shared.wake.notify_one();
    }
}

/// Examines `items` in `dir`, with the help of `second`, and passes the answers to `each` in order, until it returns
/// false. About `most` bytes of answers are wanted.
pub fn look(
    second: Option<&Second>,
    dir: BorrowedFd<'_>,
    form: Form,
    items: &mut Items,
    most: usize,
    room: &mut Scratch,
    mut each: impl FnMut(&[u8]) -> bool,
) {
    let worth = match form {
        Form::Entry(Detail::Names) => usize::MAX,
        _ if second.and_then(Second::chosen).is_some_and(|s| s.more.load(Ordering::Relaxed)) => MIN_FILES_AWAKE,
        Form::Entry(Detail::Attr) => MIN_FILES_TO_STAT,
        _ => MIN_FILES_TO_READ,
    };
    // Without another descriptor, the first thread works alone.
    let work = second.filter(|_| items.len() >= worth).and_then(Second::choose);
    let work = work.and_then(|shared| Some((shared, dir.try_clone_to_owned().ok()?)));
    let Some((shared, dir)) = work else {
        let mut examiner = Examiner { form, large: false };
        for item in &items.list {
            room.answers.clear();
            examiner.look(dir, item, items.name(item), room);
            if !each(&room.answers) {
                return;
            }
        }
        return;
    };
    let chunks = items.len().div_ceil(CHUNK);
    let batch = Arc::new(Batch {
        dir,
        form,
        items: std::mem::take(items),
        room: most,
        produced: AtomicUsize::new(0),
        next: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        spans: (0..chunks).map(|_| Mutex::default()).collect(),
    });
    shared.more.store(true, Ordering::Relaxed);
    shared.post(Some(batch.clone()));
    shared.notify();
    batch.work(false, room, shared);
    shared.post(None);
    shared.wait_for(&batch);
    let theirs = lock(&shared.room);
    for span in &batch.spans {
        let Span { second, mut start, ends } = *lock(span);
        let answers = if second { &theirs.answers } else { &room.answers };
        if ends[0] == 0 {
            return;
        }
        for end in ends {
            if end > 0 && !answers.get(start..end).is_some_and(&mut each) {
                return;
            }
            start = end;
        }
    }
}

impl Shared {
    fn post(&self, batch: Option<Arc<Batch>>) {
        let mut b = lock(&self.batch);
        *b = batch;
        self.posted.fetch_add(1, Ordering::SeqCst);
    }

    fn notify(&self) {
        if self.asleep.load(Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    fn wait_for(&self, batch: &Batch) {
        for _ in 0..SPINS_AT_END {
            if batch.is_done() {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.at_end);
        self.waits.store(true, Ordering::SeqCst);
        while !batch.is_done() {
            guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.waits.store(false, Ordering::SeqCst);
    }

    /// Main loop of the second thread.
    fn run(&self) {
        let mut seen = 0;
        let mut spins = 0;
        while !self.end.load(Ordering::Relaxed) {
            let posted = self.posted.load(Ordering::Acquire);
            if posted != seen {
                seen = posted;
                let batch = lock(&self.batch).clone();
                if let Some(batch) = batch {
                    let mut room = lock(&self.room);
                    // Allocated on first use, since most sandboxes never get here.
                    room.scratch.resize(MAX_MESSAGE, 0);
                    batch.work(true, &mut room, self);
                }
                spins = 0;
            } else if spins < SPINS && self.more.load(Ordering::Relaxed) {
                spins += 1;
                std::hint::spin_loop();
            } else {
                spins = 0;
                let mut batch = lock(&self.batch);
                self.asleep.store(true, Ordering::SeqCst);
                while self.posted.load(Ordering::SeqCst) == seen {
                    batch = self.wake.wait(batch).unwrap_or_else(PoisonError::into_inner);
                }
                self.asleep.store(false, Ordering::SeqCst);
                drop(batch);
            }
        }
    }
}

impl Batch {
    /// Whether all chunks taken are done.
    fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst) >= self.next.load(Ordering::SeqCst).min(self.spans.len())
    }

    /// Takes chunks until none are left, or enough is done. Every chunk taken is completed, so the completed ones are
    /// always the first.
    fn work(&self, second: bool, room: &mut Scratch, shared: &Shared) {
        let mut examiner = Examiner { form: self.form, large: false };
        room.answers.clear();
        while self.produced.load(Ordering::Relaxed) < self.room {
            let n = self.next.fetch_add(1, Ordering::SeqCst);
            let (Some(span), Some(items)) = (self.spans.get(n), self.items.list.chunks(CHUNK).nth(n)) else { return };
            let start = room.answers.len();
            let mut ends = [0; CHUNK];
            for (item, end) in items.iter().zip(&mut ends) {
                examiner.look(self.dir.as_fd(), item, self.items.name(item), room);
                *end = room.answers.len();
            }
            *lock(span) = Span { second, start, ends };
            self.produced.fetch_add(room.answers.len() - start, Ordering::Relaxed);
            self.done.fetch_add(1, Ordering::SeqCst);
            if shared.waits.load(Ordering::SeqCst) {
                // The first thread may be about to sleep.
                drop(lock(&shared.at_end));
                shared.done.notify_one();
            }
        }
    }
}

/// Examines files one by one.
struct Examiner {
    form: Form,
    /// The last regular file was too large. The next one may be, too, so its size is checked before it is opened.
    large: bool,
}

impl Examiner {
    /// Appends the answer for one file.
    fn look(&mut self, dir: BorrowedFd<'_>, item: &Item, name: &[u8], room: &mut Scratch) {
        let mut w = Writer::new(&mut room.answers);
        let buf = &mut room.scratch[..];
        match self.form {
            Form::Entry(detail) => {
                let (attr, size) = self.entry(dir, (name, item.kind), detail, buf);
                let content = size.and_then(|n| buf.get(..n));
                DirEntry { ino: item.ino, cookie: item.cookie, kind: item.kind, name, attr, content }.encode(&mut w);
            }
            Form::Content(max_size) => {
                // A process that waits for a reader of a fifo would notice an open.
                let regular = sys::stat_child(dir, name).is_ok_and(|attr| suits(&attr, max_size));
                let file = match regular.then(|| read_small(dir, name, max_size, buf)) {
                    Some(Ok((attr, Some(n)))) => buf.get(..n).map(|content| (attr, content)),
                    _ => None,
                };
                FileContent { file }.encode(&mut w);
            }
        }
    }

    /// Attributes and, if requested, content: that many bytes of `buf`.
    fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        (name, kind): (&[u8], FileKind),
        detail: Detail,
        buf: &mut [u8],
    ) -> (Option<Attr>, Option<usize>) {
        let attr = || sys::look_at_child(dir, name).ok();
        let max_size = match detail {
            Detail::Names => return (None, None),
            Detail::Content(max_size) if kind == FileKind::Regular => max_size,
            _ => return (attr(), None),
        };
        if self.large {
            let attr = attr();
            self.large = attr.is_none_or(|a| a.size > max_size.into());
            if self.large {
                return (attr, None);
            }
        }
        match read_small(dir, name, max_size, buf) {
            Ok((attr, size)) => {
                self.large = size.is_none();
                (Some(attr), size)
            }
            Err(_) => (attr(), None),
        }
    }
}

fn suits(attr: &Attr, max_size: u32) -> bool {
    attr.kind() == FileKind::Regular && attr.size <= u64::from(max_size)
}

/// Attributes of a file that was regular a moment ago and, if it still is and has at most `max_size` bytes, its whole
/// content: that many bytes of `buf`. Saves two calls compared with an `O_PATH` open and a reopen.
fn read_small(dir: BorrowedFd<'_>, name: &[u8], max_size: u32, buf: &mut [u8]) -> Result<(Attr, Option<usize>), Errno> {
    let file = sys::open_file(dir, name)?;
    let attr = sys::look(&file)?;
    let size = usize::try_from(attr.size).unwrap_or(usize::MAX);
    // One byte more, to detect a file that has grown.
    let Some(room) = buf.get_mut(..=size).filter(|_| suits(&attr, max_size)) else { return Ok((attr, None)) };
    let whole = rustix::io::read(&file, room).is_ok_and(|n| n == size);
    Ok((attr, whole.then_some(size)))
}
