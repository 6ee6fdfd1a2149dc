//! Robust lists (get_robust_list(2)): futexes that a thread still holds when it ends.

use super::futex::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS};
use super::wait::Turn;
use super::Task;
use crate::error::Errno;
use crate::mm::UserMem;
use platform::{Enter, GuestThread, Op, Trap, PAGE_SIZE};
use std::future::poll_fn;
use std::sync::atomic::Ordering;

/// Entries looked at in one robust list (`ROBUST_LIST_LIMIT`).
const ROBUST_LIST_LIMIT: usize = 2048;
/// Words that one round of the stub changes.
const BATCH: usize = 40;
/// How often one word is looked at again because another thread has changed it.
const TRIES: u32 = 16;

/// Reads words of guest memory, a page at a time: the lists of many threads that end together are long. What others change meanwhile may
/// be missed, so a word that is to be changed is compared once more.
#[derive(Default)]
struct Pages {
    at: u64,
    bytes: Vec<u8>,
    reads: usize,
}

impl Pages {
    fn get<const N: usize>(&mut self, addr: u64, read: impl FnOnce(u64, &mut [u8]) -> usize) -> Option<[u8; N]> {
        let page = addr & !(PAGE_SIZE - 1);
        if self.bytes.is_empty() || self.at != page {
            self.bytes.resize(PAGE_SIZE as usize, 0);
            self.at = page;
            self.reads += 1;
            let n = read(page, &mut self.bytes);
            self.bytes.truncate(n);
        }
        let from = (addr - page) as usize;
        self.bytes.get(from..from + N)?.try_into().ok()
    }

    fn of<const N: usize>(&mut self, mem: &UserMem, addr: u64) -> Option<[u8; N]> {
        if addr % N as u64 != 0 {
            // It may go over the end of a page.
            return mem.read::<[u8; N]>(addr).ok();
        }
        self.get(addr, |page, buf| mem.read_some(page, buf).unwrap_or(0))
    }
}

/// Marks the futexes that a dying thread still holds; returns those that somebody waits for. `alive`: the thread is stopped, not dead.
pub async fn exit(task: &Task, thread: &mut dyn GuestThread, alive: bool) -> Vec<u64> {
    let head = task.robust_list.swap(0, Ordering::SeqCst);
    if head == 0 {
        return Vec::new();
    }
    let tid = task.number().own();
    let mem = task.mem();
    let known = thread.prefetched(head).and_then(|b| b.first_chunk::<24>());
    let Ok([first, offset, pending]) =
        known.map_or_else(|| mem.read::<[u64; 3]>(head), |b| Ok(zerocopy::transmute!(*b)))
    else {
        return Vec::new();
    };
    let mut held = Vec::new();
    let (mut entries, mut words, mut turn) = (Pages::default(), Pages::default(), Turn::new());
    let mut look = |entry: u64| {
        let addr = (entry & !1).wrapping_add(offset);
        let word = words.of(&mem, addr).map(u32::from_ne_bytes).filter(|_| addr % 4 == 0);
        held.extend(word.filter(|v| v & FUTEX_TID_MASK == tid as u32).map(|v| (addr, v)));
    };
    let mut at = first;
    for _ in 0..ROBUST_LIST_LIMIT {
        if at & !1 == head || at == 0 {
            break;
        }
        let Some(next) = entries.of(&mem, at & !1).map(u64::from_ne_bytes) else { break };
        if at != pending {
            look(at);
        }
        at = next;
        turn.next().await;
    }
    if pending != 0 {
        look(pending);
    }
    release(tid, &mem, thread, alive, held).await
}

fn died(word: u32) -> u32 {
    (word & FUTEX_WAITERS) | FUTEX_OWNER_DIED
}

/// `held`: addresses, and what was read there. A stub that lives compares and exchanges, so that a waiter that sets `FUTEX_WAITERS` at this
/// moment is seen.
async fn release(
    tid: i32,
    mem: &UserMem,
    thread: &mut dyn GuestThread,
    mut alive: bool,
    held: Vec<(u64, u32)>,
) -> Vec<u64> {
    let (mut waited, mut turn, mut tries) = (Vec::new(), Turn::new(), 0);
    let mut left = held.into_iter().collect::<std::collections::VecDeque<_>>();
    while let Some(&(addr, word)) = left.front() {
        if !alive || tries > TRIES {
            left.pop_front();
            tries = 0;
            if mem.write(addr, &died(word)).is_ok() && word & FUTEX_WAITERS != 0 {
                waited.push(addr);
            }
            turn.next().await;
            continue;
        }
        let batch = left.len().min(BATCH);
        for &(addr, old) in left.range(..batch) {
            thread.queue(Op::CompareExchange { addr, old, new: died(old) });
        }
        thread.enter(Enter::Stay);
        let (done, errno) = match poll_fn(|cx| thread.poll_trap(cx)).await {
            Trap::OpsDone => (batch, None),
            Trap::OpFailed { index, errno } => (index.min(batch), Some(errno)),
            _ => {
                alive = false;
                continue;
            }
        };
        waited.extend(left.drain(..done).filter(|(_, word)| word & FUTEX_WAITERS != 0).map(|(addr, _)| addr));
        tries = if done == 0 { tries + 1 } else { 0 };
        let Some(errno) = errno else { continue };
        let Some((addr, _)) = left.pop_front() else { continue };
        let now = mem.read::<u32>(addr).ok().filter(|_| errno == Errno::EAGAIN);
        if let Some(word) = now.filter(|v| v & FUTEX_TID_MASK == tid as u32) {
            left.push_front((addr, word));
        }
    }
    waited
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of 2048 entries of 16 bytes, with the words beside them, is read in nine pages.
    #[test]
    fn neighbours_are_read_once() {
        let memory: Vec<u8> = (0..16 * 4096_u32).flat_map(|i| i.to_ne_bytes()).collect();
        let mut pages = Pages::default();
        let read = |at: u64, buf: &mut [u8]| {
            let rest = &memory[(at - 0x10000) as usize..];
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            n
        };
        for i in 0..2048_u32 {
            let at = 0x10000 + 24 + u64::from(i) * 16;
            assert_eq!(pages.get(at, read).map(u32::from_ne_bytes), Some(6 + i * 4));
        }
        assert_eq!(pages.reads, 9);
        // A page that ends early has what comes before.
        let short = |_: u64, buf: &mut [u8]| {
            buf[..12].fill(0);
            12
        };
        assert_eq!(pages.get::<8>(0x100000 + 4, short), Some([0; 8]));
        assert_eq!(pages.get::<8>(0x100000 + 8, short), None);
    }
}
