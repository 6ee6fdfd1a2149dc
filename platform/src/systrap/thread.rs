//! One guest thread: a slot of a stub's hand-off area, and the Sentry's record of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use super::abi::{self, kind, mode, op, OpSlot};
use super::filter::STRICT_FLAGS;
use super::space::{ExitState, Space};
use super::watched::{Area, Watched};
use crate::cores::CoreSet;
use crate::{
    AddressSpace, Enter, Errno, Fault, GuestThread, Interrupter, LocalAnswers, Op, OpsSettled, Regs, Trap, GUEST_MAX,
    GUEST_MIN, PAGE_SIZE,
};

mod end;
mod handles;
mod held;

use super::share::Ticket;
use handles::{settled, CellAnswers, Interrupt};
use held::Held;

impl Regs {
    pub(crate) fn to_array(self) -> [u64; abi::NREGS] {
        let r = self;
        [
            r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx,
            r.rsp, r.rip, r.eflags, r.orig_rax,
        ]
    }
    pub(crate) fn from_array(a: [u64; abi::NREGS]) -> Self {
        let [r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags, orig_rax] = a;
        Regs { r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags, orig_rax }
    }
}

/// The request in the last answer, which determines the posts to expect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    /// No request: the Sentry owns the thread.
    Stopped,
    /// To run the guest.
    Guest,
    /// To carry out operations and report.
    Round,
    /// No request yet: a round is delayed.
    Held,
}

/// State shared by a thread and its handles.
#[derive(Default)]
struct Shared {
    running: AtomicBool,
    /// `seq` of the last answer.
    seq: AtomicU32,
    /// The Sentry must see each call.
    filtered: AtomicBool,
}

pub(super) struct Thread {
    space: Arc<Space>,
    slot: usize,
    watched: Arc<Watched>,
    shared: Arc<Shared>,
    regs: Regs,
    fs_base: u64,
    expect: Expect,
    queue: Vec<Queued>,
    /// Operations of the current `enter` already sent to the stub.
    sent: usize,
    /// Bytes already sent of the operation after those.
    copied: usize,
    /// Continuation after the queue has been carried out.
    then: Enter,
    /// For each operation of the round in the cell, its index in the queue.
    round: Vec<usize>,
    /// A copy-out failed in an earlier round of this `enter`.
    efault: bool,
    /// The last operation of this `enter` makes the process strict.
    stricter: bool,
    prefetched: Vec<u8>,
    prefetched_at: u64,
    gs_base: u64,
    /// If the last call came from a patched site: the space's `return_epoch` at that time.
    patched: Option<u64>,
    counted: (u64, u64),
    /// The word that the host clears when the thread exits, and an operation that the stub carries out before.
    tid_word: u64,
    last: Option<OpSlot>,
    forking: Option<Result<Forking, Errno>>,
    starting: Option<Result<Starting, Errno>>,
    held: Option<Held>,
    /// Its place among those that wait to send descriptors.
    ticket: Option<Ticket>,
}

enum Queued {
    Op(Op),
    /// An operation of the platform itself.
    Raw(OpSlot),
    Bad(Errno),
}

struct Forking {
    token: u64,
    child: Box<Thread>,
}

struct Starting {
    slot: usize,
    watched: Arc<Watched>,
    fs_base: u64,
}

/// Usage of a round so far.
struct Stage {
    ops: usize,
    bytes: usize,
    /// Files that the operations map.
    files: Vec<Arc<OwnedFd>>,
}

impl Thread {
    /// A thread whose stub waits for its first answer.
    pub(super) fn waiting(space: Arc<Space>, slot: usize, tid: i32, placed: CoreSet, background: bool) -> Self {
        let watched = Watched::new(space.area.clone(), slot, tid, placed, background);
        Self::with(space, watched)
    }

    fn with(space: Arc<Space>, watched: Arc<Watched>) -> Self {
        space.register(&watched);
        let slot = watched.slot;
        space.area.reset(slot);
        let counted = space.area.counts(slot);
        Thread {
            space,
            slot,
            watched,
            shared: Arc::default(),
            regs: Regs::default(),
            fs_base: 0,
            expect: Expect::Stopped,
            queue: Vec::new(),
            sent: 0,
            copied: 0,
            then: Enter::Stay,
            round: Vec::new(),
            efault: false,
            stricter: false,
            prefetched: Vec::new(),
            prefetched_at: 0,
            gs_base: 0,
            patched: None,
            counted,
            tid_word: 0,
            last: None,
            forking: None,
            starting: None,
            held: None,
            ticket: None,
        }
    }

    /// Makes the stub close one of its descriptors, and waits for that. Used for the zygote, before any guest runs.
    pub(super) fn close_in_stub(&mut self, number: i32) -> io::Result<()> {
        self.queue.push(Queued::Raw(raw(libc::SYS_close, [number as u64, 0, 0, 0, 0, 0])));
        self.enter(Enter::Stay);
        let mut cx = Context::from_waker(Waker::noop());
        let deadline = std::time::Instant::now() + super::launch::STARTS_WITHIN;
        while std::time::Instant::now() < deadline {
            super::launch::lives(self.space.pid_now())?;
            match self.poll_trap(&mut cx) {
                Poll::Ready(Trap::OpsDone) => return Ok(()),
                Poll::Ready(other) => return Err(io::Error::other(format!("the zygote: {other:?}"))),
                Poll::Pending => std::thread::sleep(std::time::Duration::from_micros(100)),
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Sets whether no task waits for this thread: then it uses the poller's core instead of the guests'.
    pub(super) fn set_background(&self, background: bool) {
        self.watched.background.store(background, SeqCst);
        self.space.inner.executor.place(&self.watched);
    }

    fn area(&self) -> &Area {
        &self.space.area
    }

    /// Puts as much of the queue into the cell as fits, and posts the answer.
    fn post_round(&mut self) {
        self.prefetched.clear();
        self.round.clear();
        let mut stage = Stage { ops: 0, bytes: 0, files: Vec::new() };
        let (first, copied) = (self.sent, self.copied);
        while self.sent < self.queue.len() && self.put(self.sent, &mut stage) {
            self.sent += 1;
        }
        let given = self.give_files(&stage);
        if given == Err(Errno::ETOOMANYREFS) && self.hold_round(first, copied) {
            return;
        }
        self.held = None;
        self.ticket = None;
        if let Err(e) = given {
            // No operation of this round has been carried out.
            self.queue[first] = Queued::Bad(if e == Errno::ETOOMANYREFS { Errno::ENFILE } else { e });
            self.copied = copied;
            self.sent = first;
            self.round.clear();
            stage = Stage { ops: 0, bytes: 0, files: Vec::new() };
        }
        let last = self.sent == self.queue.len();
        let mut how = if last { self.then } else { Enter::Stay };
        if self.patched.is_some_and(|p| how == Enter::Return && p != self.space.return_epoch.load(Relaxed)) {
            // The return path through the trampoline page may be gone.
            how = Enter::Full;
            if self.efault {
                self.regs.rax = -libc::EFAULT as i64 as u64;
            }
        }
        // Written by this thread alone.
        let seq = self.shared.seq.load(Relaxed).wrapping_add(1);
        self.shared.seq.store(seq, Relaxed);
        if stage.ops > 0 {
            self.space.inner.counters.rounds.fetch_add(1, Relaxed);
        }
        let regs = (how == Enter::Full).then(|| self.regs.to_array());
        let rax = if self.efault { -libc::EFAULT as i64 as u64 } else { self.regs.rax };
        let code = match how {
            Enter::Return => mode::RETURN,
            Enter::Full => mode::FULL,
            Enter::Stay => mode::STAY,
            Enter::Native => mode::NATIVE,
        };
        let nfds = stage.files.len() as u32;
        self.area().write_answer(self.slot, code, stage.ops as u32, nfds, seq, regs.as_ref(), rax);
        self.expect = if how == Enter::Stay { Expect::Round } else { Expect::Guest };
        // Before the guest runs: the swap in `reply` is a full barrier.
        self.shared.running.store(true, Release);
        let inner = &self.space.inner;
        let mut slept = false;
        self.area().reply(self.slot, || {
            slept = true;
            inner.counters.woken.fetch_add(1, Relaxed);
            inner.executor.place(&self.watched);
        });
        if !slept {
            self.space.answered();
        }
    }

    /// Sends the files that the round maps.
    fn give_files(&mut self, stage: &Stage) -> Result<(), Errno> {
        if stage.files.is_empty() {
            return Ok(());
        }
        let fds: Vec<_> = stage.files.iter().map(|f| f.as_fd()).collect();
        let sent = self.space.control().send_to(&self.space, b"f", &fds, &mut self.ticket);
        if matches!(sent, Err(Errno::EPIPE | Errno::ECONNRESET)) {
            self.space.settle();
        }
        sent
    }

    /// Adds one operation to the round. `false` if it does not fit (then nothing of it has been added, except perhaps
    /// the head of a large copy-out), or if it cannot be carried out.
    fn put(&mut self, index: usize, stage: &mut Stage) -> bool {
        let slot = self.slot;
        if stage.ops >= abi::MAX_OPS {
            return false;
        }
        let made = match &mut self.queue[index] {
            Queued::Bad(_) => return false,
            Queued::Raw(op) => *op,
            Queued::Op(Op::CopyOut { addr, data }) => {
                let rest = data.get(self.copied..).unwrap_or(&[]);
                let n = rest.len().min(abi::STAGE_OUT_MAX - stage.bytes);
                self.space.area.stage_out(slot, stage.bytes, &rest[..n]);
                let (to, done) = (addr.wrapping_add(self.copied as u64), n == rest.len());
                return self.put_copy(index, stage, to, n, done);
            }
            Queued::Op(Op::CopyFile { addr, file, offset, len }) => {
                let rest = len.saturating_sub(self.copied);
                let n = rest.min(abi::STAGE_OUT_MAX - stage.bytes);
                self.space.area.stage_file(slot, stage.bytes, file, offset.wrapping_add(self.copied as u64), n);
                let (to, done) = (addr.wrapping_add(self.copied as u64), n == rest);
                return self.put_copy(index, stage, to, n, done);
            }
            Queued::Op(Op::MapFile { addr, len, prot, shared, file, offset }) => {
                let flags = libc::MAP_FIXED | if *shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
                let known = stage.files.iter().position(|f| Arc::ptr_eq(f, file));
                let which = known.unwrap_or(stage.files.len());
                if which == abi::MAX_FDS {
                    return false;
                }
                if known.is_none() {
                    stage.files.push(file.clone());
                }
                OpSlot { code: op::MAP_FD, args: [*addr, *len, *prot as u64, flags as u64, *offset, which as u64, 0] }
            }
            Queued::Op(op) => plain(op),
        };
        self.space.area.write_op(slot, stage.ops, made);
        stage.ops += 1;
        self.round.push(index);
        true
    }

    /// Adds a copy of `n` staged bytes to the round; returns whether that completes operation `index`.
    fn put_copy(&mut self, index: usize, stage: &mut Stage, addr: u64, n: usize, done: bool) -> bool {
        if n > 0 || done {
            let op = OpSlot { code: op::COPY_OUT, args: [addr, n as u64, stage.bytes as u64, 0, 0, 0, 0] };
            self.space.area.write_op(self.slot, stage.ops, op);
            stage.ops += 1;
            stage.bytes += n;
            self.round.push(index);
        }
        self.copied = if done { 0 } else { self.copied + n };
        done
    }

    /// Kills a stub that does what no honest stub does.
    fn violation(&mut self, what: &str, kind: u32) -> Poll<Trap> {
        log::warn!("stub {}: {what} (kind {kind}); killed", self.space.pid_now());
        self.space.kill();
        self.expect = Expect::Stopped;
        Poll::Ready(Trap::Dead { signal: libc::SIGKILL })
    }

    fn take_post(&mut self) -> Poll<Option<Trap>> {
        let post = self.area().read_post(self.slot);
        let expect = self.expect;
        match (expect, post.kind) {
            (Expect::Round, kind::OPS_DONE) => {
                if let Some(Queued::Bad(e)) = self.queue.get(self.sent) {
                    let errno = *e;
                    return Poll::Ready(Some(self.op_failed(self.sent, errno)));
                }
                if self.sent < self.queue.len() || self.then != Enter::Stay {
                    self.post_round();
                    return Poll::Ready(None);
                }
                self.stop();
                Poll::Ready(Some(Trap::OpsDone))
            }
            (_, kind::OP_FAILED) => {
                let report = self.area().read_report(self.slot);
                match self.round.get(report.op_index as usize).copied() {
                    Some(index) if self.stricter && index + 1 == self.queue.len() => {
                        self.violation("its calls cannot all be trapped", post.kind).map(Some)
                    }
                    Some(index) => {
                        let errno = Errno::from_raw(report.op_errno);
                        let errno = if errno == Errno::UnknownErrno { Errno::EINVAL } else { errno };
                        // A copy-out that fails only changes the result of the call.
                        if errno == Errno::EFAULT
                            && expect == Expect::Round
                            && self.then == Enter::Return
                            && matches!(
                                self.queue.get(index),
                                Some(Queued::Op(Op::CopyOut { .. } | Op::CopyFile { .. }))
                            )
                        {
                            self.efault = true;
                            self.sent = index + 1;
                            self.copied = 0;
                            self.post_round();
                            return Poll::Ready(None);
                        }
                        Poll::Ready(Some(self.op_failed(index, errno)))
                    }
                    None => self.violation("an operation failed that it was not given", post.kind).map(Some),
                }
            }
            (Expect::Guest, kind::SYSCALL | kind::CALL | kind::FAULT | kind::INTERRUPTED | kind::BORN) => {
                self.stop();
                if self.stricter {
                    self.stricter = false;
                    self.space.strict.store(true, Release);
                }
                self.regs = Regs::from_array(post.regs);
                self.fs_base = post.fs_base;
                self.gs_base = post.gs_base;
                self.patched = (post.kind == kind::CALL).then(|| self.space.return_epoch.load(Relaxed));
                let counters = &self.space.inner.counters;
                Poll::Ready(Some(match post.kind {
                    kind::FAULT => {
                        counters.faults.fetch_add(1, Relaxed);
                        let report = self.area().read_report(self.slot);
                        let signal = match report.signal {
                            s @ (libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGTRAP) => s,
                            _ => libc::SIGSEGV,
                        };
                        Trap::Fault(Fault {
                            signal,
                            code: report.code,
                            addr: report.addr,
                            trapno: report.trapno,
                            error: report.error,
                        })
                    }
                    kind::INTERRUPTED => {
                        counters.interrupts.fetch_add(1, Relaxed);
                        Trap::Interrupted
                    }
                    // HELLO_NR from guest code: a call that does not exist.
                    _ => {
                        if post.kind == kind::CALL {
                            // Not an atomic increment, which would cost a fiftieth of the call; an update lost during
                            // a handover is harmless.
                            counters.patched.store(counters.patched.load(Relaxed) + 1, Relaxed);
                        } else {
                            counters.syscalls.fetch_add(1, Relaxed);
                        }
                        let len = usize::try_from(post.pre_len).unwrap_or(usize::MAX);
                        if post.kind != kind::BORN && len > 0 && post.pre_addr < GUEST_MAX {
                            let room = GUEST_MAX - post.pre_addr;
                            let len = len.min(usize::try_from(room).unwrap_or(usize::MAX));
                            self.space.area.stage_in(self.slot, len, &mut self.prefetched);
                            self.prefetched_at = post.pre_addr;
                        }
                        Trap::Syscall
                    }
                }))
            }
            (_, k) => self.violation("posted out of turn", k).map(Some),
        }
    }

    fn stop(&mut self) {
        // A post found outside a scan would leave the cell armed; the executor would count the guest as running.
        if self.watched.armed.load(Relaxed) {
            self.watched.armed.store(false, Relaxed);
        }
        // An interrupter that still sees it set sends a needless interrupt.
        self.shared.running.store(false, Release);
        self.expect = Expect::Stopped;
        self.queue.clear();
        self.sent = 0;
        self.copied = 0;
        self.efault = false;
    }

    fn op_failed(&mut self, index: usize, errno: Errno) -> Trap {
        self.stop();
        Trap::OpFailed { index, errno }
    }

    fn dead(&self) -> Option<Trap> {
        self.space.exit_state.dead().map(|signal| Trap::Dead { signal })
    }

    /// `poll_fork` without the cast to a trait object.
    pub(super) fn poll_fork_typed(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<Thread>, Errno>> {
        let forking = match self.poll_begun(cx) {
            Poll::Ready(Ok(forking)) => forking,
            Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
            Poll::Pending => return Poll::Pending,
        };
        match self.poll_trap(cx) {
            Poll::Ready(Trap::OpsDone) => {
                let inner = &self.space.inner;
                inner.fork_broker.claim(forking.token, self.area().read_post(self.slot).tid);
                inner.counters.forks.fetch_add(1, Relaxed);
                Poll::Ready(Ok(forking.child))
            }
            Poll::Ready(other) => Poll::Ready(Err(match other {
                Trap::OpFailed { errno, .. } => errno,
                _ => Errno::ESRCH,
            })),
            Poll::Pending => {
                self.forking = Some(Ok(forking));
                Poll::Pending
            }
        }
    }

    fn begin_fork(&mut self) -> Result<Forking, Errno> {
        let inner = &self.space.inner;
        let own = self.space.control().lineage();
        // What the zygote makes is none of its own; who takes it says whose it is.
        let lineage = if self.space.pid_now() == inner.zygote_pid { own } else { own.child() };
        let (token, space) = inner.fork_broker.expect(inner, self.slot, lineage, &mut self.ticket)?;
        let background = self.watched.background.load(SeqCst);
        let mut child = Box::new(Thread::waiting(space, self.slot, 0, self.watched.placed(), background));
        // The strict filter is inherited through the host's `clone`.
        child.space.strict.store(self.space.strict.load(Acquire), Release);
        child.regs = self.regs;
        child.fs_base = self.fs_base;
        let weak = inner.me.clone();
        inner.executor.later(Box::new(move || {
            if let Some(inner) = weak.upgrade() {
                inner.fork_broker.prepare(&inner);
            }
        }));
        self.queue.push(Queued::Raw(OpSlot { code: op::FORK, args: [token, 0, 0, 0, 0, 0, 0] }));
        self.enter(Enter::Stay);
        Ok(Forking { token, child })
    }

    fn begin_thread(&mut self, fs_base: Option<u64>) -> Result<Starting, Errno> {
        if fs_base.is_some_and(|fs| fs >= 1 << 47) {
            return Err(Errno::EPERM);
        }
        let slot = self.space.take_slot().ok_or(Errno::EAGAIN)?;
        let watched = Watched::new(self.space.area.clone(), slot, 0, self.watched.placed(), false);
        self.space.register(&watched);
        self.area().state(slot).store(abi::state::PARKED, Release);
        let args = [slot as u64, fs_base.is_some().into(), fs_base.unwrap_or(0), 0, 0, 0, 0];
        self.queue.push(Queued::Raw(OpSlot { code: op::THREAD, args }));
        self.enter(Enter::Stay);
        Ok(Starting { slot, watched, fs_base: fs_base.unwrap_or(self.fs_base) })
    }

    fn poll_thread_typed(&mut self, cx: &mut Context<'_>) -> Poll<Result<Thread, Errno>> {
        let Some(starting) = self.starting.take() else {
            return Poll::Ready(Err(Errno::EINVAL));
        };
        let starting = match starting {
            Ok(starting) => starting,
            Err(e) => return Poll::Ready(Err(e)),
        };
        match self.poll_trap(cx) {
            Poll::Ready(Trap::OpsDone) => {
                self.space.inner.counters.threads.fetch_add(1, Relaxed);
                starting.watched.tid.store(self.area().read_post(self.slot).tid, SeqCst);
                let mut thread = Thread::with(self.space.clone(), starting.watched);
                thread.regs = self.regs;
                thread.fs_base = starting.fs_base;
                Poll::Ready(Ok(thread))
            }
            Poll::Ready(other) => {
                self.space.give_slot(starting.slot, true);
                Poll::Ready(Err(match other {
                    Trap::OpFailed { errno, .. } => errno,
                    _ => Errno::ESRCH,
                }))
            }
            Poll::Pending => {
                self.starting = Some(Ok(starting));
                Poll::Pending
            }
        }
    }
}

fn raw(nr: libc::c_long, a: [u64; 6]) -> OpSlot {
    OpSlot { code: op::SYSCALL, args: [nr as u64, a[0], a[1], a[2], a[3], a[4], a[5]] }
}

/// Operations that are a single instruction or host call.
fn plain(op: &Op) -> OpSlot {
    match *op {
        Op::MapAnon { addr, len, prot, shared, flags } => {
            let allowed = flags & (libc::MAP_NORESERVE | libc::MAP_POPULATE);
            let sharing = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
            let flags = allowed | libc::MAP_FIXED | libc::MAP_ANONYMOUS | sharing;
            raw(libc::SYS_mmap, [addr, len, prot as u64, flags as u64, u64::MAX, 0])
        }
        Op::Unmap { addr, len } => raw(libc::SYS_munmap, [addr, len, 0, 0, 0, 0]),
        Op::Protect { addr, len, prot } => raw(libc::SYS_mprotect, [addr, len, prot as u64, 0, 0, 0]),
        Op::Remap { addr, len, new_addr, new_len, flags } => {
            let moving = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | flags & libc::MREMAP_DONTUNMAP;
            let flags = if new_addr == addr { 0 } else { moving as u64 };
            raw(libc::SYS_mremap, [addr, len, new_len, flags, new_addr, 0])
        }
        Op::Advise { addr, len, advice } => raw(libc::SYS_madvise, [addr, len, advice as u64, 0, 0, 0]),
        Op::Sync { addr, len, flags } => raw(libc::SYS_msync, [addr, len, flags as u64, 0, 0, 0]),
        Op::CompareExchange { addr, old, new } => {
            OpSlot { code: op::COMPARE_EXCHANGE, args: [addr, old.into(), new.into(), 0, 0, 0, 0] }
        }
        Op::Wake { addr } => raw(libc::SYS_futex, [addr, libc::FUTEX_WAKE as u64, 1, 0, 0, 0]),
        Op::Barrier { command } => raw(libc::SYS_membarrier, [command as u64, 0, 0, 0, 0, 0]),
        Op::Processor { cpu, node } => raw(libc::SYS_getcpu, [cpu, node, 0, 0, 0, 0]),
        Op::ThreadTime { addr } => {
            raw(libc::SYS_clock_gettime, [libc::CLOCK_THREAD_CPUTIME_ID as u64, addr, 0, 0, 0, 0])
        }
        Op::Usage { thread, addr } => {
            let who = if thread { libc::RUSAGE_THREAD } else { libc::RUSAGE_SELF };
            raw(libc::SYS_getrusage, [who as u64, addr, 0, 0, 0, 0])
        }
        Op::Rseq { addr, len, flags, signature } => {
            raw(libc::SYS_rseq, [addr, len.into(), flags as u64, signature.into(), 0, 0])
        }
        Op::SetFs(v) => one(op::SET_FS, v),
        Op::SetGs(v) => one(op::SET_GS, v),
        Op::SaveFp { addr } => one(op::SAVE_FP, addr),
        Op::RestoreFp { addr } => one(op::RESTORE_FP, addr),
        // Handled in `put`; never here.
        Op::MapFile { .. } | Op::CopyOut { .. } | Op::CopyFile { .. } => OpSlot::default(),
    }
}

fn one(code: u64, arg: u64) -> OpSlot {
    OpSlot { code, args: [arg, 0, 0, 0, 0, 0, 0] }
}

/// Checks what the platform promises to check.
fn check(op: &Op, fp_size: usize) -> Result<(), Errno> {
    let pages = |addr: u64, len: u64| {
        let ok = addr % PAGE_SIZE == 0
            && len > 0
            && len % PAGE_SIZE == 0
            && addr >= GUEST_MIN
            && len <= GUEST_MAX
            && addr <= GUEST_MAX - len;
        ok.then_some(()).ok_or(Errno::EINVAL)
    };
    let base = |v: u64| (v < 1 << 47).then_some(()).ok_or(Errno::EPERM);
    match *op {
        Op::MapAnon { addr, len, .. } | Op::MapFile { addr, len, .. } | Op::Unmap { addr, len } => pages(addr, len),
        Op::Protect { addr, len, .. } | Op::Advise { addr, len, .. } | Op::Sync { addr, len, .. } => pages(addr, len),
        Op::Remap { addr, len, new_addr, new_len, .. } => {
            // A length of 0 (a second mapping of shared memory) is checked as one page.
            pages(addr, len.max(PAGE_SIZE))?;
            pages(new_addr, new_len)
        }
        Op::CopyOut { addr, ref data } => {
            let ok = addr <= GUEST_MAX && data.len() as u64 <= GUEST_MAX - addr;
            ok.then_some(()).ok_or(Errno::EFAULT)
        }
        Op::CompareExchange { addr, .. } | Op::Wake { addr } => {
            (addr % 4 == 0 && addr < GUEST_MAX).then_some(()).ok_or(Errno::EFAULT)
        }
        Op::Barrier { command } => matches!(command, 1 | 8 | 16).then_some(()).ok_or(Errno::EINVAL),
        Op::Processor { cpu, node } => {
            (cpu <= GUEST_MAX - 4 && node <= GUEST_MAX - 4).then_some(()).ok_or(Errno::EFAULT)
        }
        Op::ThreadTime { addr } | Op::Usage { addr, .. } => {
            (addr <= GUEST_MAX - size_of::<libc::rusage>() as u64).then_some(()).ok_or(Errno::EFAULT)
        }
        Op::Rseq { addr, len, .. } => {
            let ok = addr <= GUEST_MAX && u64::from(len) <= GUEST_MAX - addr;
            ok.then_some(()).ok_or(Errno::EFAULT)
        }
        Op::CopyFile { addr, len, .. } => {
            let ok = addr <= GUEST_MAX && len as u64 <= GUEST_MAX - addr;
            ok.then_some(()).ok_or(Errno::EFAULT)
        }
        Op::SetFs(v) | Op::SetGs(v) => base(v),
        Op::SaveFp { addr } => (addr <= GUEST_MAX - fp_size as u64).then_some(()).ok_or(Errno::EFAULT),
        // The size is stored in the guest's memory; a part beyond the guest's range faults in the stub.
        Op::RestoreFp { addr } => (addr < GUEST_MAX).then_some(()).ok_or(Errno::EFAULT),
    }
}

impl GuestThread for Thread {
    fn regs(&self) -> &Regs {
        &self.regs
    }
    fn regs_mut(&mut self) -> &mut Regs {
        &mut self.regs
    }
    fn queue(&mut self, op: Op) {
        self.queue.push(match check(&op, self.space.inner.fp_size) {
            Ok(()) => Queued::Op(op),
            // A copy to an impossible address fails as the stub's copy would.
            Err(Errno::EFAULT) if matches!(op, Op::CopyOut { .. } | Op::CopyFile { .. }) => {
                Queued::Op(Op::CopyOut { addr: 0, data: vec![0] })
            }
            Err(e) => {
                log::debug!("bad memory operation {op:?}");
                Queued::Bad(e)
            }
        });
        if let Some(Queued::Op(Op::SetFs(v))) = self.queue.last() {
            self.fs_base = *v;
        }
    }
    fn queued(&self) -> usize {
        self.queue.len()
    }
    fn enter(&mut self, how: Enter) {
        if self.expect != Expect::Stopped {
            log::error!("enter: the thread runs already");
            return;
        }
        self.then = how;
        let goes = matches!(how, Enter::Return | Enter::Full);
        if goes && self.shared.filtered.load(Relaxed) && !self.space.strict.load(Acquire) {
            let args = [libc::SECCOMP_SET_MODE_FILTER.into(), STRICT_FLAGS.into(), abi::STRICT_AT, 0, 0, 0];
            self.queue.push(Queued::Raw(raw(libc::SYS_seccomp, args)));
            self.stricter = true;
        }
        self.post_round();
    }
    fn poll_trap(&mut self, cx: &mut Context<'_>) -> Poll<Trap> {
        loop {
            if self.poll_held(cx).is_pending() {
                return Poll::Pending;
            }
            if !matches!(self.expect, Expect::Stopped | Expect::Held) && self.watched.posted() {
                match self.take_post() {
                    Poll::Ready(Some(trap)) => return Poll::Ready(trap),
                    Poll::Ready(None) => continue,
                    Poll::Pending => {}
                }
            }
            if let Some(dead) = self.dead() {
                self.stop();
                return Poll::Ready(dead);
            }
            if self.expect != Expect::Stopped && self.space.inner.executor.spin_on(&self.watched) {
                continue;
            }
            self.watched.set_waker(cx.waker());
            if self.expect == Expect::Stopped {
                // Only death is left to wait for.
                return self.dead().map_or(Poll::Pending, Poll::Ready);
            }
            self.space.inner.executor.arm(&self.watched);
            if !self.watched.posted() && self.dead().is_none() {
                return Poll::Pending;
            }
        }
    }
    fn park(&mut self) {
        if self.expect == Expect::Stopped {
            self.area().park(self.slot);
        }
    }
    fn prefetched(&self, addr: u64) -> Option<&[u8]> {
        (addr == self.prefetched_at && !self.prefetched.is_empty()).then_some(&self.prefetched)
    }
    fn ops_settled(&self) -> OpsSettled {
        let (shared, area, exit_state, slot) =
            (self.shared.clone(), self.space.area.clone(), self.space.exit_state.clone(), self.slot);
        OpsSettled(Arc::new(move || settled(&shared, &area, &exit_state, slot)))
    }
    fn interrupter(&self) -> Arc<dyn Interrupter> {
        Arc::new(Interrupt {
            space: Arc::downgrade(&self.space),
            watched: self.watched.clone(),
            shared: self.shared.clone(),
        })
    }
    fn trapped(&self) -> bool {
        self.patched.is_none()
    }
    fn sole(&self) -> bool {
        self.space.has_one_thread()
    }
    fn clear_at_end(&mut self, addr: u64) -> bool {
        let ends = self.slot != self.space.first;
        if ends {
            self.tid_word = addr;
        }
        ends
    }
    fn do_at_end(&mut self, op: Op) {
        self.last = check(&op, self.space.inner.fp_size).is_ok().then(|| plain(&op));
    }
    fn gs_base(&self) -> u64 {
        let ours = abi::AREA_BASE..abi::AREA_BASE + abi::AREA_SIZE;
        if ours.contains(&self.gs_base) {
            0
        } else {
            self.gs_base
        }
    }
    fn local_answers(&self) -> Arc<dyn LocalAnswers> {
        Arc::new(CellAnswers { area: self.space.area.clone(), slot: self.slot, shared: self.shared.clone() })
    }
    fn address_space(&self) -> Arc<dyn AddressSpace> {
        self.space.clone()
    }
    fn fs_base(&self) -> u64 {
        self.fs_base
    }
    fn start_fork(&mut self) {
        let forking = self.begin_fork();
        self.forking = Some(forking);
    }
    fn poll_fork(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn GuestThread>, Errno>> {
        self.poll_fork_typed(cx).map_ok(|t| t as Box<dyn GuestThread>)
    }
    fn start_thread(&mut self, fs_base: Option<u64>) {
        let starting = self.begin_thread(fs_base);
        self.starting = Some(starting);
    }
    fn poll_thread(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn GuestThread>, Errno>> {
        self.poll_thread_typed(cx).map_ok(|t| Box::new(t) as Box<dyn GuestThread>)
    }
}
