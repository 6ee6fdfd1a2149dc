//! Garbage collection of sockets that are referenced only from each other's queues: no task can receive them any more
//! (unix(7)).
//!
//! For each unix socket in flight, the number of queue entries that refer to it is counted. A socket with exactly that
//! many references is a *candidate*: nothing outside queues holds it. A candidate is garbage if all its entries are in
//! queues of candidates that are garbage too. Any other candidate can be received, and with it everything in its
//! queues.
//!
//! The queues are scanned one after the other while guests run. The result is valid if no socket left a queue or was
//! returned by `MSG_PEEK` during the scan ([`MOVES`]): then no task obtained a candidate, and only other sockets were
//! queued. Garbage stays garbage. If a socket moved, the scan is repeated.
//!
//! Lock order: the listener's list, a queue, [`UNDER_WAY`].

use super::conn::Conn;
use super::dgram::Dgram;
use crate::fs::File;
use crate::kernel::current;
use crate::net::queue::Queue;
use crate::net::scm::InFlight;
use crate::net::socket::{self, Socket};
use parking_lot::Mutex;
use platform::executor::{now_ns, Executor, Rounds};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::task::Poll;

/// Files in queued messages, by address, with the number of entries.
type UnderWay = HashMap<usize, (Weak<File>, usize)>;

/// The unix sockets among them.
static UNDER_WAY: Mutex<Option<UnderWay>> = Mutex::new(None);
/// The number of sockets in [`UNDER_WAY`].
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Counts the times a socket left a queue or was peeked at.
static MOVES: AtomicU64 = AtomicU64::new(0);
/// A collection is scheduled and has not begun.
static ASKED: AtomicBool = AtomicBool::new(false);
/// The earliest start of the next collection: at most a ninth of the time is spent collecting.
static NOT_BEFORE: AtomicU64 = AtomicU64::new(0);
/// Attempts in one collection; the next close of a socket schedules another.
const ROUNDS: usize = 3;

fn unix(file: &File) -> Option<&Socket> {
    socket::of(file).ok().filter(|s| s.domain == libc::AF_UNIX)
}

/// `file` has been queued. The caller holds the queue's lock.
pub fn queued(file: &Arc<File>) {
    if unix(file).is_some() {
        let mut list = UNDER_WAY.lock();
        let list = list.get_or_insert_default();
        list.entry(Arc::as_ptr(file).addr()).or_insert_with(|| (Arc::downgrade(file), 0)).1 += 1;
        COUNT.store(list.len(), SeqCst);
    }
}

/// `file` has left a queue. The caller holds the queue's lock, or is about to drop the file.
pub fn unqueued(file: &Arc<File>) {
    if unix(file).is_some() {
        let mut list = UNDER_WAY.lock();
        MOVES.fetch_add(1, SeqCst);
        let Some(list) = list.as_mut() else { return };
        if let Some((_, places)) = list.get_mut(&Arc::as_ptr(file).addr()) {
            *places -= 1;
            if *places == 0 {
                list.remove(&Arc::as_ptr(file).addr());
            }
        }
        COUNT.store(list.len(), SeqCst);
    }
}

/// A copy of `file` was taken from a queue by a peek. The caller holds the queue's lock.
pub fn peeked(file: &Arc<File>) {
    if unix(file).is_some() {
        MOVES.fetch_add(1, SeqCst);
    }
}

/// Schedules a collection if unix sockets are in flight. Called when a unix socket is closed or the limit of files in
/// flight is reached.
pub fn ask() {
    if COUNT.load(SeqCst) == 0 {
        return;
    }
    // When the kernel is torn down there is no current task, and collecting is pointless.
    let Some(task) = current::get() else { return };
    if !ASKED.swap(true, SeqCst) {
        let executor = task.kernel.executor.clone();
        task.kernel.executor.spawn(Box::pin(later(executor)));
    }
}

async fn later(executor: Arc<Executor>) {
    let mut timer = None;
    std::future::poll_fn(|cx| {
        let at = NOT_BEFORE.load(SeqCst);
        if now_ns() >= at {
            return Poll::Ready(());
        }
        timer = Some(executor.timer(at, cx.waker().clone()));
        Poll::Pending
    })
    .await;
    drop(timer);
    ASKED.store(false, SeqCst);
    let begun = now_ns();
    collect();
    let end = now_ns();
    NOT_BEFORE.store(end + 8 * (end - begun), SeqCst);
}

/// Calls `look` for the queues reachable through this socket.
fn queues(file: &File, look: &mut dyn FnMut(&Queue)) {
    let Some(socket) = unix(file) else { return };
    let proto = socket.proto.as_any();
    if let Some(conn) = proto.downcast_ref::<Conn>() {
        conn.queues(look);
    } else if let Some(dgram) = proto.downcast_ref::<Dgram>() {
        look(dgram.queue());
    }
}

/// Empties the queues of the garbage it finds.
pub fn collect() {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    for _ in 0..ROUNDS {
        let before = MOVES.load(SeqCst);
        let found = garbage();
        if MOVES.load(SeqCst) != before {
            continue;
        }
        let mut taken: Vec<InFlight> = Vec::new();
        let mut rounds = Rounds::new();
        for file in &found {
            queues(file, &mut |q| q.take_files(&mut taken));
            rounds.next();
        }
        for dropped in taken {
            drop(dropped);
            rounds.next();
        }
        return;
    }
}

struct Candidate {
    file: Arc<File>,
    places: usize,
    /// How many of the places are in queues of candidates.
    inner: usize,
    reachable: bool,
}

/// The garbage sockets; valid if no socket moved during the scan.
fn garbage() -> Vec<Arc<File>> {
    let mut rounds = Rounds::new();
    let candidates: Vec<_> = {
        let list = UNDER_WAY.lock();
        let held_by_queues = |e: &&(Weak<File>, usize)| e.0.strong_count() == e.1;
        list.iter().flat_map(|l| l.values()).filter(held_by_queues).cloned().collect()
    };
    let mut all = Vec::with_capacity(candidates.len());
    let mut number = HashMap::with_capacity(candidates.len());
    for (file, places) in candidates {
        rounds.next();
        // The socket is gone, so one has moved and the scan is invalid.
        let Some(file) = file.upgrade() else { return Vec::new() };
        number.insert(Arc::as_ptr(&file).addr(), all.len());
        all.push(Candidate { file, places, inner: 0, reachable: false });
    }
    let mut below = |file: &File, found: &mut Vec<usize>| {
        queues(file, &mut |q| {
            q.each_file(&mut |f| {
                rounds.next();
                found.extend(number.get(&Arc::as_ptr(f).addr()));
            });
        });
    };
    let mut found = Vec::new();
    for i in 0..all.len() {
        below(&all[i].file, &mut found);
        for f in found.drain(..) {
            all[f].inner += 1;
        }
    }
    let mut todo: Vec<usize> = (0..all.len()).filter(|i| all[*i].inner < all[*i].places).collect();
    todo.iter().for_each(|i| all[*i].reachable = true);
    while let Some(i) = todo.pop() {
        below(&all[i].file, &mut found);
        for f in found.drain(..) {
            if !std::mem::replace(&mut all[f].reachable, true) {
                todo.push(f);
            }
        }
    }
    all.into_iter().filter(|c| !c.reachable).map(|c| c.file).collect()
}
