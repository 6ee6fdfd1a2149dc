//! Start of the first process, and the end of the sandbox with it.

use super::attrs::TaskAttrs;
use super::exec::{self, Program};
use super::limits::Limits;
use super::nsproxy::NsProxy;
use super::process::ThreadGroup;
use super::signal::{SigActions, SigInfo};
use super::task::TaskSignals;
use super::{run, Cred, FdTable, Kernel, Task};
use crate::error::{Errno, Result};
use crate::fs::vfs::{FsContext, LookupFlags};
use crate::fs::File;
use crate::mm::space::Map;
use crate::mm::Mm;
use parking_lot::{Mutex, RwLock};
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::Arc;

/// The command to run.
pub struct InitConfig {
    /// `argv[0]` is looked up in `PATH` of `env` if it has no slash.
    pub argv: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>,
    pub cwd: Vec<u8>,
    pub cred: Cred,
    /// Descriptors 0, 1, 2, …
    pub files: Vec<Option<Arc<File>>>,
    pub ns: NsProxy,
    pub umask: u32,
    /// Reported to the guest; the host schedules by it.
    pub nice: i32,
    pub limits: Limits,
}

/// Exit status of a shell for a command that is not found or cannot be executed, and of `env` or `timeout`
/// for a failure of their own.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;
const NOT_STARTED: i32 = 125;

/// The reason why the first process could not be started.
struct StartError {
    status: i32,
    text: String,
}

impl From<Errno> for StartError {
    fn from(e: Errno) -> Self {
        StartError { status: NOT_STARTED, text: format!("starting the first process: {}", e.desc()) }
    }
}

/// Starts the first process. On failure, `report` gets exit code and message, and the executor ends with that
/// code.
pub fn spawn(kernel: &Arc<Kernel>, config: InitConfig, report: Box<dyn FnOnce(i32, String) + Send>) {
    let k = kernel.clone();
    kernel.executor.spawn(Box::pin(async move {
        if let Err(StartError { status, text }) = start(&k, config).await {
            report(status, text);
            k.executor.shutdown(status);
        }
    }));
}

async fn start(kernel: &Arc<Kernel>, c: InitConfig) -> std::result::Result<(), StartError> {
    // The thread that the program is loaded into.
    let first = poll_fn(|cx| kernel.platform.poll_new(cx)).await?;
    let pid = kernel.first_pid();
    let actions = Arc::new(Mutex::new(SigActions::default()));
    let mut group = ThreadGroup::new(pid, actions, c.limits);
    group.init = kernel.options.init;
    let group = Arc::new(group);
    let files = FdTable::new();
    for (i, f) in c.files.into_iter().enumerate() {
        if let Some(f) = f {
            files.replace(i as i32, f, false, super::fdtable::NR_OPEN as u64)?;
        }
    }
    let mut fs = FsContext::new(c.ns.mnt.root());
    fs.umask = c.umask;
    let task = Arc::new(Task {
        kernel: kernel.clone(),
        id: AtomicI32::new(pid),
        group: group.clone(),
        cred: RwLock::new(Arc::new(c.cred)),
        files: RwLock::new(files),
        fs: RwLock::new(Arc::new(Mutex::new(fs))),
        mm: RwLock::new(Mm::new(first.address_space(), Map::default())),
        nsproxy: RwLock::new(Arc::new(c.ns)),
        signals: Mutex::new(TaskSignals::default()),
        comm: Mutex::new(b"init".to_vec()),
        clear_child_tid: AtomicU64::new(0),
        robust_list: AtomicU64::new(0),
        pi: Default::default(),
        rseq: Default::default(),
        restart_block: Mutex::new(None),
        pdeathsig: AtomicI32::new(0),
        signal_flag: AtomicBool::new(false),
        killed: AtomicBool::new(false),
        waker: Mutex::new(None),
        interrupter: RwLock::new(None),
        service: Mutex::new(None),
        in_call: AtomicI32::new(-1),
        framed: AtomicBool::new(false),
        sleeping: AtomicBool::new(false),
        vfork_done: Mutex::new(None),
        exec_kill: Mutex::new(None),
        start_ns: platform::executor::now_ns(),
        attrs: Arc::new(TaskAttrs { nice: AtomicI32::new(c.nice.clamp(-20, 19)), ..TaskAttrs::default() }),
    });
    {
        let mut r = group.links.lock();
        r.pgid = pid;
        r.sid = pid;
        r.exit_signal = libc::SIGCHLD;
        r.threads.push(task.clone());
    }
    {
        let mut tree = kernel.tree.lock();
        tree.last_pid = pid;
        tree.tasks.insert(pid, task.clone());
        tree.insert_group(&group);
    }
    let cwd = crate::fs::vfs::resolve(&task, libc::AT_FDCWD, &c.cwd, LookupFlags::FOLLOW | LookupFlags::DIRECTORY);
    task.fs().lock().cwd = cwd.map_err(|e| StartError {
        status: NOT_STARTED,
        text: format!(
            "working directory {}: {} in the sandbox (choose another with --cwd)",
            String::from_utf8_lossy(&c.cwd),
            e.desc()
        ),
    })?;
    let shown = String::from_utf8_lossy(c.argv.first().map_or(b"".as_slice(), |a| a)).into_owned();
    let found = super::current::scope(task.clone(), async { find(&task, c.argv, c.env) }).await;
    let program = found.map_err(|e| match e {
        Errno::ENOENT | Errno::ENOTDIR => StartError { status: NOT_FOUND, text: format!("{shown}: command not found") },
        e => StartError { status: NOT_EXECUTABLE, text: format!("{shown}: {}", e.desc()) },
    })?;
    let loaded = super::current::scope(task.clone(), exec::load(&task, program, exec::LoadInto::Fresh(first))).await;
    let image = loaded.map_err(|e| match e {
        // The program exists, since it was found: the interpreter is missing.
        Errno::ENOENT => StartError {
            status: NOT_FOUND,
            text: format!("{shown}: the interpreter that it asks for is not in the sandbox"),
        },
        e => StartError { status: NOT_EXECUTABLE, text: format!("{shown}: {}", e.desc()) },
    })?;
    *task.mm.write() = image.mm;
    *task.comm.lock() = image.comm;
    *task.cred.write() = Arc::new(image.cred);
    if let Some(thread) = image.thread {
        run::start(task, thread);
    }
    Ok(())
}

/// Finds the command as execvp(3) does.
fn find(task: &Arc<Task>, argv: Vec<Vec<u8>>, envp: Vec<Vec<u8>>) -> Result<Program> {
    let (file, name) = find_file(task, &argv, &envp)?;
    if !exec::is_bare_script(&file) {
        return Ok(Program { file, name, argv: argv.into_iter().collect(), envp: envp.into_iter().collect() });
    }
    const SHELL: &[u8] = b"/bin/sh";
    let shell = exec::open_exec(task, libc::AT_FDCWD, SHELL, LookupFlags::FOLLOW)?;
    let mut all = vec![SHELL.to_vec(), name];
    all.extend(argv.into_iter().skip(1));
    let (argv, envp) = (all.into_iter().collect(), envp.into_iter().collect());
    Ok(Program { file: shell, name: SHELL.to_vec(), argv, envp })
}

fn find_file(task: &Arc<Task>, argv: &[Vec<u8>], env: &[Vec<u8>]) -> Result<(Arc<File>, Vec<u8>)> {
    let name = argv.first().filter(|a| !a.is_empty()).ok_or(Errno::ENOENT)?;
    if name.contains(&b'/') {
        return Ok((exec::open_exec(task, libc::AT_FDCWD, name, LookupFlags::FOLLOW)?, name.clone()));
    }
    let default: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let path = env.iter().find_map(|e| e.strip_prefix(b"PATH=".as_slice())).unwrap_or(default);
    let mut worst = Errno::ENOENT;
    for dir in path.split(|&b| b == b':') {
        let mut full = if dir.is_empty() { b".".to_vec() } else { dir.to_vec() };
        full.push(b'/');
        full.extend_from_slice(name);
        match exec::open_exec(task, libc::AT_FDCWD, &full, LookupFlags::FOLLOW) {
            Ok(f) => return Ok((f, full)),
            Err(Errno::EACCES) => worst = Errno::EACCES,
            Err(_) => {}
        }
    }
    Err(worst)
}

/// The first process has ended: ends all others.
pub fn kill_others(kernel: &Arc<Kernel>) {
    kernel.ending.store(true, Ordering::SeqCst);
    let groups: Vec<_> = kernel.tree.lock().groups.values().cloned().collect();
    for g in groups.iter().filter(|g| g.pid != kernel.first_pid()) {
        super::exit::kill_group(g, libc::SIGKILL);
    }
}

/// The last step of a task: ends the sandbox if it was the first process's last. Its thread is gone by then, with what it has counted
/// added up.
pub fn task_gone(task: &Task) {
    if task.group.pid != task.kernel.first_pid() {
        return;
    }
    let Some(status) = task.group.links.lock().exit_status else { return };
    let code = if status & 0x7f == 0 { (status >> 8) & 0xff } else { 128 + (status & 0x7f) };
    task.kernel.executor.shutdown(code);
}

/// The calling shell continues the sandbox as its job: sends SIGCONT to the first process's process group.
pub fn resume_job(kernel: &Kernel) {
    if let Some(pgid) = kernel.group(kernel.first_pid()).map(|g| g.pgid()) {
        let _ = super::send::to_pgrp(kernel, pgid, SigInfo::kernel(libc::SIGCONT));
    }
}

/// Sends a signal from outside the sandbox to the first process.
pub fn signal(kernel: &Kernel, sig: i32) {
    if let Some(g) = kernel.group(kernel.first_pid()) {
        let _ = super::send::from_outside(&g, SigInfo::user(sig, 0, 0));
    }
}
