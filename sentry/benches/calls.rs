//! Time of file calls in nanoseconds, from trap to result, inside the guest kernel alone. A thread and an
//! address space of plain memory replace the platform; an overlay of two tmpfs replaces the container's root.
//!
//! `cargo bench -p sentry --bench calls -- [FILTER]`

use parking_lot::Mutex;
use platform::{
    AddressSpace, Enter, Errno, Executor, GuestThread, Interrupter, LocalAnswers, Op, OpsSettled, Platform, Regs, Trap,
    GUEST_MIN,
};
use sentry::fs::overlay::Overlay;
use sentry::fs::tmpfs::{TmpFs, TmpOptions};
use sentry::fs::vfs::{FsContext, LookupFlags, Mount, MountFlags, MountNamespace, Path, SuperBlock};
use sentry::fs::{Inode, NewNode};
use sentry::kernel::kernel::Options;
use sentry::kernel::nsproxy::{NsProxy, UtsNs};
use sentry::kernel::signal::SigActions;
use sentry::kernel::task::NewTask;
use sentry::kernel::{cred, current, limits::Limits, Cred, FdTable, Kernel, Task, ThreadGroup};
use sentry::mm::{space::Map, Mm};
use sentry::syscalls::{dispatch, Ctx};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// Guest memory: one flat range.
struct Memory(Mutex<Vec<u8>>);
const BASE: u64 = GUEST_MIN;
const PATH: u64 = BASE;
const PATH2: u64 = BASE + 4096;
const BUF: u64 = BASE + 8192;

impl AddressSpace for Memory {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let m = self.0.lock();
        let from = (addr - BASE) as usize;
        let n = buf.len().min(m.len() - from);
        buf[..n].copy_from_slice(&m[from..from + n]);
        Ok(n)
    }
    fn write(&self, addr: u64, data: &[u8]) -> Result<usize, Errno> {
        let mut m = self.0.lock();
        let from = (addr - BASE) as usize;
        let n = data.len().min(m.len() - from);
        m[from..from + n].copy_from_slice(&data[..n]);
        Ok(n)
    }
    fn host_pid(&self) -> i32 {
        0
    }
    fn vdso(&self) -> Option<(u64, u64)> {
        None
    }
    fn invalidate_returns(&self) {}
    fn kill(&self) {}
    fn cpu_time(&self) -> (u64, u64) {
        (0, 0)
    }
}

struct Thread {
    regs: Regs,
    space: Arc<Memory>,
    queue: Vec<Op>,
    prefetched: (u64, Vec<u8>),
}

struct Nothing;
impl Interrupter for Nothing {
    fn interrupt(&self) {}
    fn sleeps(&self) -> bool {
        false
    }
    fn park(&self) {}
    fn pin(&self, _: Option<&[u64]>) {}
}
impl LocalAnswers for Nothing {
    fn answer(&self, _: u64, _: Option<u32>) {}
    fn filtered(&self, _: bool) {}
}

impl GuestThread for Thread {
    fn sole(&self) -> bool {
        false
    }
    fn regs(&self) -> &Regs {
        &self.regs
    }
    fn regs_mut(&mut self) -> &mut Regs {
        &mut self.regs
    }
    fn queue(&mut self, op: Op) {
        self.queue.push(op);
    }
    fn queued(&self) -> usize {
        self.queue.len()
    }
    fn enter(&mut self, _: Enter) {
        for op in self.queue.drain(..) {
            if let Op::CopyOut { addr, data } = op {
                let _ = self.space.write(addr, &data);
            }
        }
    }
    fn poll_trap(&mut self, _: &mut Context<'_>) -> Poll<Trap> {
        Poll::Ready(Trap::Syscall)
    }
    fn park(&mut self) {}
    fn prefetched(&self, addr: u64) -> Option<&[u8]> {
        (addr == self.prefetched.0 && !self.prefetched.1.is_empty()).then_some(&self.prefetched.1)
    }
    fn ops_settled(&self) -> OpsSettled {
        OpsSettled(Arc::new(|| true))
    }
    fn interrupter(&self) -> Arc<dyn Interrupter> {
        Arc::new(Nothing)
    }
    fn address_space(&self) -> Arc<dyn AddressSpace> {
        self.space.clone()
    }
    fn trapped(&self) -> bool {
        false
    }
    fn local_answers(&self) -> Arc<dyn LocalAnswers> {
        Arc::new(Nothing)
    }
    fn clear_at_end(&mut self, _: u64) -> bool {
        false
    }
    fn do_at_end(&mut self, _: Op) {}
    fn gs_base(&self) -> u64 {
        0
    }
    fn fs_base(&self) -> u64 {
        0
    }
    fn start_fork(&mut self) {}
    fn poll_fork(&mut self, _: &mut Context<'_>) -> Poll<Result<Box<dyn GuestThread>, Errno>> {
        Poll::Ready(Err(Errno::ENOSYS))
    }
    fn start_thread(&mut self, _: Option<u64>) {}
    fn poll_thread(&mut self, _: &mut Context<'_>) -> Poll<Result<Box<dyn GuestThread>, Errno>> {
        Poll::Ready(Err(Errno::ENOSYS))
    }
}

struct NoPlatform;
impl Platform for NoPlatform {
    fn name(&self) -> &'static str {
        "none"
    }
    fn poll_new(&self, _: &mut Context<'_>) -> Poll<Result<Box<dyn GuestThread>, Errno>> {
        Poll::Ready(Err(Errno::ENOSYS))
    }
    fn fp_state_size(&self) -> usize {
        0
    }
    fn stats(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// A root like a container's: an overlay with /usr/bin/env below and an empty /tmp, and /proc.
fn root(kernel: &Arc<Kernel>) -> Path {
    let lower = TmpFs::root(&TmpOptions::default(), None);
    let lower: Arc<dyn Inode> = lower;
    for top in ["tmp", "proc", "dev"] {
        lower.create(top.as_bytes(), NewNode::Dir, 0o755, 0, 0).expect("mkdir");
    }
    let usr = lower.create(b"usr", NewNode::Dir, 0o755, 0, 0).expect("mkdir");
    let bin = usr.create(b"bin", NewNode::Dir, 0o755, 0, 0).expect("mkdir");
    bin.create(b"env", NewNode::File, 0o755, 0, 0).expect("creat");
    let upper = TmpFs::root(&TmpOptions { first_ino: 1 << 40, ..TmpOptions::default() }, None);
    let overlay = Overlay::root(upper, lower).expect("overlay");
    let m = Mount::of(overlay, SuperBlock::new("overlay", b"overlay", String::new()), MountFlags::RELATIME);
    let ns = MountNamespace::new(m.expect("mount"));
    let root = ns.root();
    let find = |p: &str| {
        let cred = Cred::user(0, 0, Vec::new(), cred::CAP_ALL);
        let fixed = sentry::fs::vfs::RootRef::Fixed(root.clone());
        sentry::fs::vfs::Resolver::new(&cred, fixed, LookupFlags::empty()).resolve(root.clone(), p.as_bytes())
    };
    let proc = SuperBlock::new("proc", b"proc", String::new());
    let proc =
        Mount::of(sentry::fs::proc::new(kernel, sentry::kernel::pid_ns::PidNs::first()), proc, MountFlags::empty())
            .expect("proc");
    ns.mount(&proc, &find("/proc").expect("/proc")).expect("mount");
    let names = UtsNs::first("bench".into(), "(none)".into());
    let _ = kernel.first_ns.set(Arc::new(NsProxy::of_container(names, Arc::default(), Arc::default(), ns)));
    root
}

fn task(kernel: &Arc<Kernel>, space: &Arc<Memory>, root: Path) -> Arc<Task> {
    let group = Arc::new(ThreadGroup::new(1, Arc::new(Mutex::new(SigActions::default())), Limits::default()));
    let task = Arc::new(Task::new(NewTask {
        kernel: kernel.clone(),
        id: 1.into(),
        group: group.clone(),
        cred: Arc::new(Cred::user(0, 0, Vec::new(), cred::CAP_ALL)),
        files: FdTable::new(),
        fs: Arc::new(Mutex::new(FsContext::new(root))),
        mm: Mm::new(space.clone(), Map::with_stack(1 << 20, 0)),
        nsproxy: kernel.first_ns.get().expect("set above").clone(),
        comm: b"bench".to_vec(),
        attrs: Default::default(),
    }));
    group.links.lock().threads.push(task.clone());
    let mut tree = kernel.tree.lock();
    tree.tasks.insert(1, task.clone());
    tree.groups.insert(1, group);
    drop(tree);
    task
}

struct Guest {
    task: Arc<Task>,
    thread: Thread,
}

impl Guest {
    /// One call, made as in `kernel::run`.
    fn call(&mut self, nr: i64, args: [u64; 6]) -> i64 {
        let mut cx = Ctx {
            task: &self.task,
            nr: nr as u64,
            args,
            staged: Default::default(),
            full: false,
            exit: None,
            undo: None,
            replace: None,
            reloads: false,
            native: false,
            thread: &mut self.thread,
        };
        let result = {
            let _me = current::enter(&self.task);
            let mut future = pin!(dispatch(&mut cx));
            match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(r) => r,
                Poll::Pending => panic!("call {nr} waits"),
            }
        };
        cx.flush();
        self.thread.enter(Enter::Return);
        match result {
            Ok(v) => v as i64,
            Err(sentry::error::SysError::Errno(e)) => -(e as i64),
            Err(_) => -(libc::EINTR as i64),
        }
    }
    /// Stores a path in guest memory and in the bytes that the stub copies in ahead of time.
    fn path(&mut self, p: &str) {
        let mut bytes = p.as_bytes().to_vec();
        bytes.push(0);
        let _ = self.thread.space.write(PATH, &bytes);
        self.thread.prefetched = (PATH, bytes);
    }
    fn open(&mut self, p: &str, flags: i32) -> u64 {
        self.path(p);
        let fd = self.call(libc::SYS_open, [PATH, flags as u64, 0o644, 0, 0, 0]);
        assert!(fd >= 0, "open {p}: {fd}");
        fd as u64
    }
}

/// Best of several rounds, in ns per call of `f`.
fn time(mut f: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let (start, mut n) = (Instant::now(), 0u32);
        while start.elapsed().as_millis() < 40 {
            for _ in 0..16 {
                f();
            }
            n += 16;
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(n));
    }
    best
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let executor = Executor::new(platform::HandOff::default(), None).expect("executor");
    let kernel = Kernel::new(Arc::new(NoPlatform), executor, Options::default());
    let space = Arc::new(Memory(Mutex::new(vec![0; 4 << 20])));
    let task = task(&kernel, &space, root(&kernel));
    let thread = Thread { regs: Regs::default(), space, queue: Vec::new(), prefetched: (0, Vec::new()) };
    let mut g = Guest { task, thread };
    let row = |name: &str, g: &mut Guest, f: &mut dyn FnMut(&mut Guest)| {
        if filter.as_ref().is_none_or(|x| name.contains(x.as_str())) {
            println!("{name:<20} {:>8.0} ns", time(|| f(g)));
        }
    };
    let (rdonly, create) = (libc::O_RDONLY as u64, libc::O_RDWR | libc::O_CREAT);
    row("getpid", &mut g, &mut |g| assert_eq!(g.call(libc::SYS_getpid, [0; 6]), 1));
    let fd = g.open("/tmp/data", create);
    for i in 0..256 {
        assert_eq!(g.call(libc::SYS_pwrite64, [fd, BUF, 4096, i * 4096, 0, 0]), 4096);
    }
    row("lseek", &mut g, &mut |g| assert_eq!(g.call(libc::SYS_lseek, [fd, 0, 0, 0, 0, 0]), 0));
    row("fstat", &mut g, &mut |g| assert_eq!(g.call(libc::SYS_fstat, [fd, BUF, 0, 0, 0, 0]), 0));
    row("pread_1", &mut g, &mut |g| assert_eq!(g.call(libc::SYS_pread64, [fd, BUF, 1, 0, 0, 0]), 1));
    row("pread_4k", &mut g, &mut |g| assert_eq!(g.call(libc::SYS_pread64, [fd, BUF, 4096, 4096, 0, 0]), 4096));
    row("read_1m", &mut g, &mut |g| assert_eq!(g.call(libc::SYS_pread64, [fd, BUF, 1 << 20, 0, 0, 0]), 1 << 20));
    g.thread.prefetched = (BUF, vec![1; 4096]);
    row("pwrite_4k", &mut g, &mut |g| assert_eq!(g.call(libc::SYS_pwrite64, [fd, BUF, 4096, 4096, 0, 0]), 4096));
    g.path("/tmp");
    assert_eq!(g.call(libc::SYS_chdir, [PATH, 0, 0, 0, 0, 0]), 0);
    row("getcwd", &mut g, &mut |g| assert_eq!(g.call(libc::SYS_getcwd, [BUF, 4096, 0, 0, 0, 0]), 5));
    for (name, path, want) in
        [("stat_tmp", "/tmp/data", 0), ("stat_usr", "/usr/bin/env", 0), ("stat_missing", "/tmp/absent", -2)]
    {
        g.path(path);
        row(name, &mut g, &mut |g| assert_eq!(g.call(libc::SYS_stat, [PATH, BUF, 0, 0, 0, 0]), want));
    }
    for (name, path) in [("open_close_tmp", "/tmp/data"), ("open_close_usr", "/usr/bin/env")] {
        g.path(path);
        row(name, &mut g, &mut |g| {
            let fd = g.call(libc::SYS_open, [PATH, rdonly, 0, 0, 0, 0]);
            assert!(fd >= 0);
            assert_eq!(g.call(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]), 0);
        });
    }
    g.path("/tmp/new");
    row("create_unlink", &mut g, &mut |g| {
        let fd = g.call(libc::SYS_open, [PATH, (create | libc::O_EXCL) as u64, 0o600, 0, 0, 0]);
        assert!(fd >= 0);
        assert_eq!(g.call(libc::SYS_write, [fd as u64, BUF, 1, 0, 0, 0]), 1);
        assert_eq!(g.call(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]), 0);
        assert_eq!(g.call(libc::SYS_unlink, [PATH, 0, 0, 0, 0, 0]), 0);
    });
    row("mkdir_rmdir", &mut g, &mut |g| {
        assert_eq!(g.call(libc::SYS_mkdir, [PATH, 0o700, 0, 0, 0, 0]), 0);
        assert_eq!(g.call(libc::SYS_rmdir, [PATH, 0, 0, 0, 0, 0]), 0);
    });
    let _ = g.thread.space.write(PATH2, b"/tmp/other\0");
    g.path("/tmp/data");
    row("rename", &mut g, &mut |g| {
        assert_eq!(g.call(libc::SYS_rename, [PATH, PATH2, 0, 0, 0, 0]), 0);
        assert_eq!(g.call(libc::SYS_rename, [PATH2, PATH, 0, 0, 0, 0]), 0);
    });
    row("proc_self_status", &mut g, &mut |g| {
        g.path("/proc/self/status");
        let fd = g.call(libc::SYS_open, [PATH, rdonly, 0, 0, 0, 0]);
        assert!(fd >= 0);
        assert!(g.call(libc::SYS_read, [fd as u64, BUF, 4096, 0, 0, 0]) > 0);
        assert_eq!(g.call(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]), 0);
    });
    g.path("/tmp/many");
    assert_eq!(g.call(libc::SYS_mkdir, [PATH, 0o700, 0, 0, 0, 0]), 0);
    for i in 0..500 {
        let fd = g.open(&format!("/tmp/many/file-{i}"), create);
        assert_eq!(g.call(libc::SYS_close, [fd, 0, 0, 0, 0, 0]), 0);
    }
    g.path("/tmp/many");
    row("readdir_500", &mut g, &mut |g| {
        let fd = g.call(libc::SYS_open, [PATH, rdonly, 0, 0, 0, 0]);
        assert!(fd >= 0);
        while g.call(libc::SYS_getdents64, [fd as u64, BUF, 32768, 0, 0, 0]) > 0 {}
        assert_eq!(g.call(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]), 0);
    });
    row("mmap_munmap", &mut g, &mut |g| {
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let at = g.call(libc::SYS_mmap, [0, 65536, 3, flags, u64::MAX, 0]);
        assert!(at > 0);
        assert_eq!(g.call(libc::SYS_munmap, [at as u64, 65536, 0, 0, 0, 0]), 0);
    });
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let at = g.call(libc::SYS_mmap, [0, 1 << 20, 3, flags, u64::MAX, 0]) as u64;
    row("mprotect_x2", &mut g, &mut |g| {
        assert_eq!(g.call(libc::SYS_mprotect, [at, 4096, 1, 0, 0, 0]), 0);
        assert_eq!(g.call(libc::SYS_mprotect, [at, 4096, 3, 0, 0, 0]), 0);
    });
    assert_eq!(g.task.kernel.calls.load(Ordering::Relaxed), 0);
}
