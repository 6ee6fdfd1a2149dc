//! One guest address space: a stub's process.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::*};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, RwLock};

use super::abi;
use super::inflight::Control;
use super::watched::{Area, Watched};
use super::Inner;
use crate::{host, AddressSpace, Errno, GUEST_MAX};

/// Whether the process lives, for those who must not keep it alive.
pub(super) struct ExitState {
    signal: AtomicI32,
    /// Its end is our doing.
    pub(super) ours: AtomicBool,
}

impl ExitState {
    const ALIVE: i32 = -1;
    pub(super) fn alive() -> Arc<Self> {
        Arc::new(ExitState { signal: AtomicI32::new(Self::ALIVE), ours: AtomicBool::new(false) })
    }
    /// The signal it died of (0: it exited), if it is dead.
    pub(super) fn dead(&self) -> Option<i32> {
        Some(self.signal.load(Acquire)).filter(|s| *s != Self::ALIVE)
    }
    /// Kills the process, unless somebody else has.
    pub(super) fn kill(&self, pidfd: &OwnedFd) {
        if !host::readable_now(pidfd.as_fd()) {
            self.ours.store(true, SeqCst);
            kill(pidfd);
        }
    }
}

pub(super) struct Space {
    pub(super) inner: Arc<Inner>,
    /// 0 as long as the process has not asked to be born.
    pid: AtomicI32,
    pidfd: OnceLock<Arc<OwnedFd>>,
    token: u64,
    /// The slot of its first thread.
    pub(super) first: usize,
    /// A thread was to be interrupted before the process's number was known.
    early_interrupt: AtomicBool,
    /// It is to end, born or not.
    unwanted: AtomicBool,
    /// It has been found without memory.
    settling: AtomicBool,
    pub(super) area: Arc<Area>,
    control: Arc<Control>,
    pub(super) exit_state: Arc<ExitState>,
    /// Held for reading while the pid is used, for writing while the process is reaped: so the pid is never another's.
    /// Once reaped: the processor time it used.
    life: RwLock<Option<(u64, u64)>>,
    slots: Mutex<Slots>,
    /// `sched_yield` traps in this process like any other call ([`super::filter`]).
    pub(super) strict: AtomicBool,
    /// How often a way back through a trampoline page has been taken away.
    pub(super) return_epoch: AtomicU64,
    /// Answers that its threads did not sleep for; nearly exact.
    answers: AtomicU64,
    /// User and system time as last told.
    told: Mutex<(u64, u64)>,
    /// To be called when it is dead.
    death_hook: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

/// What a call costs that is answered without anybody's sleep: the stub's wait for the answer, which the host takes for user time, is as
/// long as the Sentry works for it. Measured for the plainest ones (docs/performance.md), so it is what there is at least.
const CALL_NS: u64 = 200;

/// How long a process may be without memory, or without its first thread, until it is dead.
const SETTLE_NS: u64 = 1_000_000_000;

struct Slots {
    used: HashMap<usize, Weak<Watched>>,
    /// Given back; to be used again once the area says that the thread is gone.
    free: Vec<usize>,
    next: usize,
}

impl Space {
    /// The address space of a process that is to be registered; its first thread has `slot`.
    pub(super) fn pending(inner: Arc<Inner>, area: Arc<Area>, control: Control, slot: usize, token: u64) -> Arc<Self> {
        let used = HashMap::from([(slot, Weak::new())]);
        let see_all = inner.see_all;
        Arc::new(Space {
            inner,
            pid: AtomicI32::new(0),
            pidfd: OnceLock::new(),
            token,
            first: slot,
            early_interrupt: AtomicBool::new(false),
            unwanted: AtomicBool::new(false),
            settling: AtomicBool::new(false),
            area,
            control: Arc::new(control),
            exit_state: ExitState::alive(),
            life: RwLock::new(None),
            slots: Mutex::new(Slots { used, free: Vec::new(), next: 0 }),
            strict: AtomicBool::new(see_all),
            return_epoch: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            told: Mutex::default(),
            death_hook: Mutex::default(),
        })
    }

    /// The number that the process has if its birth call is answered; 0: it is not.
    pub(super) fn announce(&self, pid: i32) {
        self.pid.store(pid, SeqCst);
    }

    /// The process's number is known now.
    pub(super) fn born(&self, pid: i32, pidfd: Arc<OwnedFd>) {
        let _ = self.pidfd.set(pidfd);
        // It may have made threads meanwhile, whose numbers are known.
        self.pid.store(pid, SeqCst);
        {
            let slots = self.slots.lock();
            if let Some(first) = slots.used.get(&self.first).and_then(Weak::upgrade) {
                first.tid.store(pid, SeqCst);
            }
            slots.used.values().filter_map(Weak::upgrade).for_each(|w| w.pid.store(pid, SeqCst));
        }
        if let Some(first) = self.slots.lock().used.get(&self.first).and_then(Weak::upgrade) {
            self.inner.executor.place(&first);
            if first.background.load(SeqCst) {
                self.inner.executor.yield_core(super::GROWS_UP_NS);
            }
        }
        if self.early_interrupt.swap(false, SeqCst) {
            let all: Vec<_> = self.slots.lock().used.values().filter_map(Weak::upgrade).collect();
            for watched in all {
                self.signal_thread(watched.tid.load(SeqCst));
            }
        }
        // Its end was asked for before there was a number to name it by.
        if self.unwanted.load(SeqCst) {
            if let Some(pidfd) = self.pidfd.get() {
                self.exit_state.kill(pidfd);
            }
        }
    }

    /// The process's number; waits a little for one that is being born. 0: it is not.
    pub(super) fn pid(&self) -> i32 {
        if self.pid_now() == 0 && self.exit_state.dead().is_none() {
            let fork_broker = &self.inner.fork_broker;
            self.inner
                .patience
                .spend(|ns| fork_broker.wait(ns, || self.pid_now() != 0 || self.exit_state.dead().is_some()));
            if self.pid_now() == 0 {
                // Before a call of the guest's fails for it.
                fork_broker.check(&self.inner, Some(self.token));
            }
        }
        self.pid_now()
    }
    /// As [`Space::pid`], without waiting.
    pub(super) fn pid_now(&self) -> i32 {
        self.pid.load(SeqCst)
    }

    /// One of its threads got an answer without having slept.
    pub(super) fn answered(&self) {
        // Not locked: that would cost a fiftieth of the call, and one lost in a handover is no harm.
        self.answers.store(self.answers.load(Relaxed) + 1, Relaxed);
    }

    /// Divides what the host has counted into the guest's user time and ours. Neither part goes back, and their sum is the host's.
    fn divide(&self, (user, system): (u64, u64)) -> (u64, u64) {
        let waited = self.answers.load(Relaxed).saturating_mul(CALL_NS).min(user);
        let mut told = self.told.lock();
        let all = user.saturating_add(system).max(told.0.saturating_add(told.1));
        let system = system.saturating_add(waited).clamp(told.1, all - told.0);
        *told = (all - system, system);
        *told
    }

    pub(super) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// A slot for a new thread.
    pub(super) fn take_slot(&self) -> Option<usize> {
        let mut slots = self.slots.lock();
        if let Some(i) = slots.free.iter().position(|s| self.area.gone(*s).load(Acquire) != 0) {
            let slot = slots.free.swap_remove(i);
            self.area.gone(slot).store(0, Release);
            self.area.state(slot).store(abi::state::RUNNING, Release);
            slots.used.insert(slot, Weak::new());
            return Some(slot);
        }
        while self.area.reach(slots.next) {
            let slot = slots.next;
            slots.next += 1;
            if !slots.used.contains_key(&slot) && !slots.free.contains(&slot) {
                slots.used.insert(slot, Weak::new());
                return Some(slot);
            }
        }
        None
    }

    pub(super) fn has_one_thread(&self) -> bool {
        let slots = self.slots.lock();
        slots.used.len() == 1 && slots.free.iter().all(|s| self.area.gone(*s).load(Acquire) != 0)
    }

    /// The numbers of its threads, as it tells: one for each slot that it was given.
    pub(super) fn told_tids(&self) -> Vec<i32> {
        let slots = self.slots.lock();
        slots.used.values().filter_map(Weak::upgrade).map(|w| w.tid.load(SeqCst)).collect()
    }

    /// All other guest threads have been told to end, or never were.
    pub(super) fn has_one_guest(&self) -> bool {
        self.slots.lock().used.len() == 1
    }

    /// The slot's thread has been told to exit, or never came to be (`gone`).
    pub(super) fn give_slot(&self, slot: usize, gone: bool) {
        if gone {
            self.area.gone(slot).store(1, Release);
        }
        let mut slots = self.slots.lock();
        slots.used.remove(&slot);
        slots.free.push(slot);
    }

    /// Whoever waits for this cell is to hear of the process's death.
    pub(super) fn register(&self, watched: &Arc<Watched>) {
        let mut slots = self.slots.lock();
        slots.used.insert(watched.slot, Arc::downgrade(watched));
        watched.pid.store(self.pid_now(), SeqCst);
    }

    pub(super) fn died(&self, signal: i32) {
        self.exit_state.signal.store(signal, Release);
        let all: Vec<_> = self.slots.lock().used.values().filter_map(Weak::upgrade).collect();
        for watched in all {
            // The number may be another's now.
            watched.pid.store(0, SeqCst);
            watched.wake();
        }
        if let Some(hook) = self.death_hook.lock().take() {
            // Not here: whoever has found that it is dead may hold any lock.
            self.inner.executor.spawn(Box::pin(async move { hook() }));
        }
    }

    /// The host says that the process is gone, or going: waits a little until it is known what it died of, before whatever was to be
    /// done with it fails, and takes the space along.
    ///
    /// A process whose first thread alone has ended looks the same. That is not how ours end: it is killed if it does not die soon.
    pub(super) fn settle(&self) {
        let Some(pidfd) = self.pidfd.get() else { return };
        if !self.settling.swap(true, SeqCst) {
            self.inner.patience.spend(|ns| host::wait_readable(pidfd.as_fd(), (ns / 1_000_000) as i32));
            let (pidfd, exit_state) = (pidfd.clone(), self.exit_state.clone());
            self.inner.executor.after(SETTLE_NS, Box::new(move || exit_state.kill(&pidfd)));
        }
        self.inner.reap(self.pid_now());
    }

    /// It will never be born.
    pub(super) fn lost(&self) {
        self.died(libc::SIGKILL);
    }

    /// Stops a thread that runs.
    pub(super) fn interrupt(&self, watched: &Watched) {
        if watched.tid.load(SeqCst) == 0 || self.pid_now() == 0 {
            self.early_interrupt.store(true, SeqCst);
        }
        self.signal_thread(watched.tid.load(SeqCst));
    }

    /// Sends the interrupt signal to one thread. A tid that the stub made up can only be a thread of its own process.
    fn signal_thread(&self, tid: i32) {
        let life = self.life.read();
        if life.is_none() && tid > 0 {
            // SAFETY: no memory is involved.
            unsafe { libc::syscall(libc::SYS_tgkill, self.pid_now(), tid, abi::INT_SIGNAL) };
        }
    }

    fn transfer(&self, addr: u64, buf: *mut u8, len: usize, write: bool) -> Result<usize, Errno> {
        let vdso = self.inner.vdso.map_or(0..0, |(start, len)| start..start + len);
        let len = match addr {
            a if a < GUEST_MAX => len.min((GUEST_MAX - a) as usize),
            a if vdso.contains(&a) && !write => len.min((vdso.end - a) as usize),
            _ => return Ok(0),
        };
        if len == 0 {
            return Ok(0);
        }
        let pid = self.pid();
        let life = self.life.read();
        if life.is_some() || pid == 0 {
            return Err(Errno::ESRCH);
        }
        let local = libc::iovec { iov_base: buf.cast(), iov_len: len };
        let remote = libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: len };
        let n = self.inner.executor.look(|| {
            // SAFETY: `buf` has `len` bytes, writable if `!write`; the kernel checks the other side.
            let n = unsafe {
                if write {
                    libc::process_vm_writev(pid, &local, 1, &remote, 1, 0)
                } else {
                    libc::process_vm_readv(pid, &local, 1, &remote, 1, 0)
                }
            };
            Errno::result(n)
        });
        match n {
            Ok(n) => Ok(n as usize),
            Err(Errno::ESRCH) => {
                drop(life);
                self.settle();
                Err(Errno::ESRCH)
            }
            Err(Errno::EFAULT) => Ok(0),
            Err(e) => {
                log::error!("guest memory of stub {}: {e}", pid);
                Ok(0)
            }
        }
    }

    /// The kernel transfers whole pages' worth only up to the first bad page of a range, but says nothing of the part of
    /// a page before it; so go on where it stopped, until nothing more comes.
    fn transfer_all(&self, addr: u64, buf: *mut u8, len: usize, write: bool) -> Result<usize, Errno> {
        let mut done = 0;
        while done < len {
            let Some(at) = addr.checked_add(done as u64) else {
                break;
            };
            // SAFETY: done < len.
            let n = self.transfer(at, unsafe { buf.add(done) }, len - done, write)?;
            if n == 0 {
                break;
            }
            done += n;
        }
        Ok(done)
    }
}

/// Reaps `pid` if it is dead; gives the signal it died of (0: an exit) and the processor time it used. `space` learns that.
pub(super) fn wait_for(pid: i32, space: Option<&Space>) -> Option<(i32, u64)> {
    let mut life = space.map(|s| s.life.write());
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: valid places for the answers.
    let r = unsafe { libc::wait4(pid, &mut status, libc::WNOHANG | libc::__WALL, usage.as_mut_ptr()) };
    if r == 0 || (r < 0 && Errno::last() == Errno::EINTR) {
        return None;
    }
    // SAFETY: zeroed at first, perhaps filled in by the kernel.
    let usage = unsafe { usage.assume_init() };
    let ns = |t: libc::timeval| t.tv_sec as u64 * 1_000_000_000 + t.tv_usec as u64 * 1000;
    let (user, system) = (ns(usage.ru_utime), ns(usage.ru_stime));
    if let Some(life) = &mut life {
        **life = Some((user, system));
    }
    Some((if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 }, user.saturating_add(system)))
}

/// What a process that might be a stub we do not know died of (0: not of a signal, or there is none), if it is dead; reaps it then.
pub(super) fn exit_state_of(pid: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: a valid place for the answer.
    let r = unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG | libc::__WALL) };
    if r == pid {
        return Some(if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 });
    }
    (r < 0 && Errno::last() == Errno::ECHILD).then_some(0)
}

/// An exit state in words.
pub(super) fn describe(exit_state: i32) -> String {
    match exit_state {
        0 => "has exited".into(),
        n => format!("was killed by signal {n}"),
    }
}

/// Calls `f`, which is told how much is done, until `len` is done, or less than it tried, or there is nothing to try.
fn in_parts(len: usize, mut f: impl FnMut(usize) -> Option<Result<(usize, usize), Errno>>) -> Result<usize, Errno> {
    let mut done = 0;
    while done < len {
        match f(done) {
            Some(Ok((k, tried))) => {
                done += k;
                if k < tried {
                    break;
                }
            }
            Some(Err(e)) if done == 0 => return Err(e),
            _ => break,
        }
    }
    Ok(done)
}

fn kill(pidfd: &OwnedFd) {
    // SAFETY: no memory is involved.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
}

impl AddressSpace for Space {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        self.inner.counters.vm_reads.fetch_add(1, Relaxed);
        self.transfer_all(addr, buf.as_mut_ptr(), buf.len(), false)
    }
    fn write(&self, addr: u64, data: &[u8]) -> Result<usize, Errno> {
        self.inner.counters.vm_writes.fetch_add(1, Relaxed);
        self.transfer_all(addr, data.as_ptr().cast_mut(), data.len(), true)
    }
    fn write_from_file(&self, addr: u64, file: &host::SharedFile, offset: u64, len: usize) -> Result<usize, Errno> {
        self.inner.counters.vm_writes.fetch_add(1, Relaxed);
        in_parts(len, |done| {
            file.with_bytes(offset + done as u64, len - done, |from, n| {
                self.transfer_all(addr + done as u64, from, n, true).map(|k| (k, n))
            })
        })
    }
    fn read_to_file(&self, addr: u64, file: &host::SharedFile, offset: u64, len: usize) -> Result<usize, Errno> {
        self.inner.counters.vm_reads.fetch_add(1, Relaxed);
        in_parts(len, |done| {
            let mut part = 0;
            let r = file.fill_bytes(offset + done as u64, len - done, |to, n| {
                part = n;
                self.transfer_all(addr + done as u64, to, n, false)
            });
            r.map(|r| r.map(|k| (k, part)))
        })
    }
    fn lineage(&self) -> super::Lineage {
        self.control.lineage()
    }
    fn set_lineage(&self, lineage: super::Lineage) {
        self.control.set_lineage(lineage);
    }
    fn rounds_pay(&self) -> usize {
        // Many more, and what else the guest has mapped may have changed before the last is stored.
        const ROUNDS: usize = 64;
        if self.inner.executor.alone() {
            ROUNDS * crate::STAGE_MAX
        } else {
            crate::STAGE_MAX
        }
    }
    fn host_pid(&self) -> i32 {
        self.pid()
    }
    fn vdso(&self) -> Option<(u64, u64)> {
        self.inner.vdso
    }
    fn invalidate_returns(&self) {
        self.return_epoch.fetch_add(1, SeqCst);
    }
    fn kill(&self) {
        self.unwanted.store(true, SeqCst);
        if self.pid_now() == 0 {
            // Should it come yet, it is refused.
            self.inner.fork_broker.forget(self.token);
            if self.pid_now() == 0 {
                return self.died(libc::SIGKILL);
            }
        }
        if let Some(pidfd) = self.pidfd.get() {
            self.exit_state.kill(pidfd);
        }
    }
    fn on_death(&self, hook: Box<dyn FnOnce() + Send>) {
        *self.death_hook.lock() = Some(hook);
    }
    fn cpu_time(&self) -> (u64, u64) {
        let life = self.life.read();
        if let Some(times) = *life {
            return self.divide(times);
        }
        let pid = self.pid_now();
        if pid == 0 {
            return (0, 0);
        }
        // The kernel's encoding of a process's clocks: PROF (0) counts all, VIRT (1) user time.
        let clock = |which: i32| (!pid) << 3 | which;
        let (all, user) = (host::clock_ns(clock(0)), host::clock_ns(clock(1)));
        self.divide((user, all.saturating_sub(user)))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if self.exit_state.dead().is_some() {
            return;
        }
        // A birth that is awaited stays so: the process is refused when it asks, and heard of if it was killed from outside.
        // Reaped when its pidfd tells. Nobody waits for that: not now, if there is anything else to do.
        if let Some(pidfd) = self.pidfd.get().cloned() {
            let (rest, exit_state) = ((self.area.clone(), self.control.clone()), self.exit_state.clone());
            self.inner.executor.later(Box::new(move || {
                exit_state.kill(&pidfd);
                drop(rest);
            }));
        }
    }
}
