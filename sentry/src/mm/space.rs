//! The mappings of one guest address space: the Sentry decides about them, the stub carries out the
//! operations.
//!
//! # Order of operations
//! A memory operation changes the tree first and reaches the host when its thread's reply is posted. With
//! several threads in one address space, a second operation must not start before the first has been carried
//! out by *its* stub thread, or the host could see them in the other order. [`Mm::begin`] waits for that;
//! single-threaded processes never wait.

use super::vma::{page_up, Backing, Vma, VmaTree};
use crate::error::{Errno, Result};
use crate::kernel::Task;
use parking_lot::{Mutex, MutexGuard};
use platform::{AddressSpace, GuestThread, OpsSettled, GUEST_MAX, PAGE_SIZE};
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::task::Poll;

/// Space kept free between the mapping area and the stack.
const STACK_GAP: u64 = 16 << 20;

/// All state under the lock of [`Mm::map`].
#[derive(Clone, Default)]
pub struct Map {
    pub vmas: VmaTree,
    /// Start of the heap, and its current end (not page-aligned).
    pub brk_start: u64,
    pub brk: u64,
    /// `mmap` places mappings below this address.
    pub mmap_base: u64,
    pub stack: (u64, u64),
    /// Address ranges of the argv and envp strings, for /proc/pid/{cmdline,environ}.
    pub args: (u64, u64),
    pub env: (u64, u64),
    pub auxv: Vec<u64>,
    pub code: (u64, u64),
    pub data: (u64, u64),
    pub start_stack: u64,
    pub exe: Option<crate::fs::vfs::Path>,
    /// Denies writes to the running program.
    pub runs: Option<Arc<crate::fs::deny::DenyWrite>>,
    pub locked_future: bool,
    /// Patched texts.
    pub images: super::text::Images,
}

pub struct Mm {
    space: Arc<dyn AddressSpace>,
    map: Mutex<Map>,
    /// Contexts of asynchronous I/O.
    pub aio: crate::kernel::aio::Contexts,
    /// Number of tasks that use it.
    users: AtomicUsize,
    /// The last operation, if its stub may still be carrying it out: thread and handle.
    inflight: Mutex<Option<(i32, OpsSettled)>>,
    /// Handle of the operations by which the stub may still be loading the program.
    loading: Mutex<Option<OpsSettled>>,
}

impl Mm {
    pub fn new(space: Arc<dyn AddressSpace>, map: Map) -> Arc<Self> {
        Arc::new(Mm {
            space,
            map: Mutex::new(map),
            aio: Default::default(),
            users: AtomicUsize::new(1),
            inflight: Mutex::default(),
            loading: Mutex::default(),
        })
    }
    pub fn space(&self) -> Arc<dyn AddressSpace> {
        self.space.clone()
    }
    pub fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock()
    }
    pub fn user_count(&self) -> usize {
        self.users.load(Ordering::SeqCst)
    }
    pub fn user_added(&self) {
        self.users.fetch_add(1, Ordering::SeqCst);
    }
    pub fn user_gone(&self) {
        self.users.fetch_sub(1, Ordering::SeqCst);
    }
    /// Waits until no other thread's memory operation is in progress. The stub that carries it out cannot
    /// signal its end, so this polls: a few times at once, then after short sleeps, which leave the core to
    /// the stub.
    pub async fn begin(&self, task: &Task) {
        if self.user_count() <= 1 {
            return;
        }
        let mut looks = 0u32;
        let mut timer = None;
        poll_fn(|cx| {
            let mut f = self.inflight.lock();
            match &*f {
                Some((t, s)) if *t != task.tid() && !s.settled() => {
                    looks += 1;
                    if looks < 50 {
                        cx.waker().wake_by_ref();
                    } else {
                        let at = platform::executor::now_ns() + 20_000;
                        timer = Some(task.kernel.executor.timer(at, cx.waker().clone()));
                    }
                    Poll::Pending
                }
                _ => {
                    *f = None;
                    Poll::Ready(())
                }
            }
        })
        .await
    }
    /// Marks that `thread` is about to carry out operations.
    pub fn started(&self, tid: i32, thread: &dyn GuestThread) {
        if self.user_count() > 1 {
            *self.inflight.lock() = Some((tid, thread.ops_settled()));
        }
    }
    /// The thread is stopped or gone: its operations are done.
    pub fn settled(&self, tid: i32) {
        let mut f = self.inflight.lock();
        if f.as_ref().is_some_and(|(t, _)| *t == tid) {
            *f = None;
        }
    }
    /// The stub has been given the operations that load a program, and has been started.
    pub fn loads(&self, thread: &dyn GuestThread) {
        *self.loading.lock() = Some(thread.ops_settled());
    }
    /// Access to the memory for other tasks than its own. The program is loaded in it, unless the stub does
    /// not load it; the one wait for that is bounded.
    pub fn for_others(&self) -> crate::mm::UserMem {
        if let Some(loading) = self.loading.lock().take() {
            for _ in 0..100 {
                if loading.settled() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_micros(20));
            }
        }
        crate::mm::UserMem { space: self.space() }
    }
    /// For futexes and similar: the object and offset at an address.
    pub fn key(&self, addr: u64) -> Option<Key> {
        let m = self.map.lock();
        let v = m.vmas.find(addr)?;
        Some(match &v.backing {
            Backing::SharedAnon(id) => Key::Object(*id, v.offset + (addr - v.start)),
            Backing::File { file, .. } if v.shared => {
                let a = file.attr().ok()?;
                Key::File(a.dev, a.ino, v.offset + (addr - v.start))
            }
            _ => Key::Private(Arc::as_ptr(&self.space) as *const () as usize, addr),
        })
    }
}

/// Identity of a word of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    Private(usize, u64),
    Object(u64, u64),
    File(u64, u64, u64),
}

impl Map {
    /// A map with a stack area of `stack_len` bytes below a random top, and the mapping area below that.
    pub fn with_stack(stack_len: u64, random: u64) -> Map {
        let top = GUEST_MAX - PAGE_SIZE - ((random & 0x3ffff) << 12);
        let bottom = top - stack_len;
        Map {
            stack: (bottom, top),
            mmap_base: bottom - STACK_GAP - (((random >> 20) & 0xfffff) << 12),
            start_stack: top,
            ..Map::default()
        }
    }
    /// Finds a free range for a mapping, from the top of the mapping area down.
    pub fn find_room(&self, len: u64) -> Result<u64> {
        let mut top = self.mmap_base;
        while let Some(a) = self.vmas.find_gap(len, top).filter(|&a| a >= self.brk.max(platform::GUEST_MIN)) {
            match self.images.trampoline_in(a, a + len) {
                None => return Ok(a),
                Some(trampoline) => top = trampoline,
            }
        }
        let up =
            self.vmas.find_gap_up(len, self.mmap_base).filter(|&a| self.images.trampoline_in(a, a + len).is_none());
        up.ok_or(Errno::ENOMEM)
    }
    /// Finds a free range, from the bottom of `within` up (`MAP_32BIT`).
    pub fn find_low_room(&self, len: u64, within: std::ops::Range<u64>) -> Result<u64> {
        let fits = |at: u64| at.checked_add(len).is_some_and(|end| end <= within.end);
        let mut from = within.start;
        while let Some(a) = self.vmas.find_gap_up(len, from).filter(|&a| fits(a)) {
            match self.images.trampoline_in(a, a + len) {
                None => return Ok(a),
                Some(trampoline) => from = trampoline + platform::patch::TRAMPOLINE,
            }
        }
        Err(Errno::ENOMEM)
    }
    /// Finds a free range for a file mapping that may hold code, with space for a trampoline page below. The
    /// second value: that space is there.
    pub fn find_room_for_text(&self, len: u64) -> Result<(u64, bool)> {
        let trampoline = platform::patch::TRAMPOLINE;
        match self.find_room(len.saturating_add(trampoline)) {
            Ok(a) => Ok((a + trampoline, true)),
            Err(_) => Ok((self.find_room(len)?, false)),
        }
    }
    pub fn anon(start: u64, end: u64, prot: i32, label: &'static str) -> Vma {
        Vma {
            start,
            end,
            prot,
            max_prot: 7,
            shared: false,
            backing: Backing::Anon,
            offset: 0,
            locked: false,
            label,
            grows_down: label == "[stack]",
            dont_fork: false,
            text: None,
            gap: false,
        }
    }
    /// The page-aligned end of the heap.
    pub fn brk_end(&self) -> u64 {
        page_up(self.brk).unwrap_or(self.brk)
    }
}

/// One line of /proc/pid/maps.
#[derive(Clone)]
pub struct VmaInfo {
    pub start: u64,
    pub end: u64,
    pub prot: i32,
    pub shared: bool,
    pub offset: u64,
    pub path: Option<crate::fs::vfs::Path>,
    /// `[heap]`, `[stack]`, `[vdso]`, or empty.
    pub label: &'static str,
}

impl Mm {
    /// All mappings in order.
    pub fn vma_infos(&self) -> Vec<VmaInfo> {
        let m = self.map.lock();
        m.vmas
            .iter()
            .map(|v| VmaInfo {
                start: v.start,
                end: v.end,
                prot: v.prot,
                shared: v.shared,
                offset: if matches!(v.backing, Backing::Anon) { 0 } else { v.offset },
                path: v.path().cloned(),
                label: v.label,
            })
            .collect()
    }
}
