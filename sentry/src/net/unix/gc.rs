//! Sockets that are under way in nothing but each other's queues: nothing can ever receive them, so they are taken
//! out (unix(7)).
//!
//! For each unix socket that lies in some queue it is counted in how many places. One that has as many references as
//! that is held by nothing else: a *candidate*. If all places of a candidate are in queues of candidates, and so for
//! those, they are garbage. The others can be received by somebody, and with them all that lies in their queues.
//!
//! The queues are looked at one after the other while guests go on. That is sound if meanwhile no socket has left a
//! queue or was shown by `MSG_PEEK` ([`MOVES`]): then nothing has got hold of a candidate, and what is put into
//! queues are others. Garbage stays garbage. If one has moved, another round is made.
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

/// Files in messages, by address: how often each is.
type UnderWay = HashMap<usize, (Weak<File>, usize)>;

/// Unix sockets that lie in queues, by address, and in how many places.
static UNDER_WAY: Mutex<Option<UnderWay>> = Mutex::new(None);
/// How many they are.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// How often one has left a queue or was peeked at.
static MOVES: AtomicU64 = AtomicU64::new(0);
/// A collection has been asked for and has not begun.
static ASKED: AtomicBool = AtomicBool::new(false);
/// When the next one may begin: a ninth of the time at most is spent on it.
static NOT_BEFORE: AtomicU64 = AtomicU64::new(0);
/// Rounds in one collection; the next socket that is closed asks for more.
const ROUNDS: usize = 3;

fn unix(file: &File) -> Option<&Socket> {
    socket::of(file).ok().filter(|s| s.domain == libc::AF_UNIX)
}

/// `file` has been put into a queue, whose lock is held.
pub fn queued(file: &Arc<File>) {
    if unix(file).is_some() {
        let mut list = UNDER_WAY.lock();
        let list = list.get_or_insert_default();
        list.entry(Arc::as_ptr(file).addr()).or_insert_with(|| (Arc::downgrade(file), 0)).1 += 1;
        COUNT.store(list.len(), SeqCst);
    }
}

/// It leaves a queue: in the lock of the queue, or else to be dropped.
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

/// A copy of it is taken out of a queue, whose lock is held.
pub fn peeked(file: &Arc<File>) {
    if unix(file).is_some() {
        MOVES.fetch_add(1, SeqCst);
    }
}

/// A unix socket has been closed, or there is no room for more under way: has a collection made soon, if there is
/// anything to collect.
pub fn ask() {
    if COUNT.load(SeqCst) == 0 {
        return;
    }
    // At the end of everything there is no task, and nothing to be collected for.
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

/// The queues that are read by way of this socket.
fn queues(file: &File, look: &mut dyn FnMut(&Queue)) {
    let Some(socket) = unix(file) else { return };
    let proto = socket.proto.as_any();
    if let Some(conn) = proto.downcast_ref::<Conn>() {
        conn.queues(look);
    } else if let Some(dgram) = proto.downcast_ref::<Dgram>() {
        look(dgram.queue());
    }
}

/// Takes garbage out of its queues, as far as it is found.
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
    /// Of those, in queues of candidates.
    inner: usize,
    reachable: bool,
}

/// The sockets that nothing can receive, if none has moved meanwhile.
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
        // One that is gone has moved.
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
