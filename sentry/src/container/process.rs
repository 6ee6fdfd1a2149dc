//! Processes that are started from outside: the first one of a container, and those of `exec`. They have no parent, so
//! nothing in the sandbox waits for them: they are reaped at once, and their end is reported to the runtime.

use super::Container;
use crate::error::{Errno, Result};
use crate::fs::tty::{devpts, host_terminal, Control};
use crate::fs::vfs::{FsContext, LookupFlags, Path};
use crate::fs::{hostfile::HostFile, File};
use crate::kernel::attrs::TaskAttrs;
use crate::kernel::exec::{self, Program};
use crate::kernel::limits::Limits;
use crate::kernel::signal::SigActions;
use crate::kernel::task::{Completion, NewTask};
use crate::kernel::{current, fork, run, seccomp, Cred, FdTable, Kernel, Task, ThreadGroup};
use crate::mm::space::Map;
use crate::mm::Mm;
use parking_lot::Mutex;
use platform::GuestThread;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::Arc;

/// A process to start.
pub struct ProcessSpec {
    /// `argv[0]` is looked up in `PATH` of `env` if it has no slash.
    pub argv: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>,
    pub cwd: Vec<u8>,
    pub cred: Cred,
    /// Descriptors 0, 1, 2, …: open files of the host.
    pub files: Vec<Option<OwnedFd>>,
    /// Descriptor 0 is a terminal of its own, which controls the process's session.
    pub terminal: bool,
    pub umask: u32,
    /// Reported to the guest; the host schedules by it.
    pub nice: i32,
    pub limits: Limits,
    pub oom_score_adj: i32,
    /// In the order in which they are put in force.
    pub seccomp: Vec<seccomp::Program>,
}

/// Exit status of a shell for a command that is not found or cannot be executed, and of `env` or `timeout`
/// for a failure of their own.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
const NOT_STARTED: u8 = 125;

/// The reason why a process could not be started.
#[derive(Debug)]
pub struct StartError {
    pub status: u8,
    pub errno: Errno,
    pub text: String,
}

impl From<Errno> for StartError {
    fn from(e: Errno) -> Self {
        StartError { status: NOT_STARTED, errno: e, text: format!("starting the process: {}", e.desc()) }
    }
}

/// A process that is loaded and does not run yet. Dropping it takes it out of the kernel.
pub(super) struct Prepared {
    task: Arc<Task>,
    thread: Option<Box<dyn GuestThread>>,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.leave();
        }
    }
}

impl Prepared {
    /// Makes a process in the container's namespaces, with the number `pid` if given, and loads the program.
    pub(super) async fn load(
        kernel: &Arc<Kernel>,
        container: &Container,
        spec: ProcessSpec,
        pid: Option<i32>,
    ) -> Result<Prepared, StartError> {
        // The thread that the program is loaded into.
        let first = poll_fn(|cx| kernel.platform.poll_new(cx)).await?;
        let id = fork::reserve_pid(kernel, &container.ns.pid_for_children, pid)?;
        let pid = id.global();
        let root = container.ns.mnt.root();
        let instance = devpts::instance_below(&root);
        let terminal = spec.terminal.then_some(Control::Session { sid: pid, instance });
        let files =
            open_files(kernel, spec.files, terminal, &root).inspect_err(|_| kernel.tree.lock().unreserve(pid))?;
        let mut group = ThreadGroup::new(id.clone(), Arc::new(Mutex::new(SigActions::default())), spec.limits);
        group.init = (kernel.options.init && pid == kernel.first_pid()) || (id.is_nested() && id.own() == 1);
        group.cgroup = container.cgroup.clone();
        *group.pid_charge.get_mut() = Some(container.cgroup.charge_pid_anyway());
        group.oom_score_adj.store(spec.oom_score_adj.clamp(-1000, 1000), Ordering::Relaxed);
        let mut fs = FsContext::new(root);
        fs.umask = spec.umask;
        let group = Arc::new(group);
        let attrs = TaskAttrs { nice: AtomicI32::new(spec.nice.clamp(-20, 19)), ..TaskAttrs::default() };
        let task = Arc::new(Task::new(NewTask {
            kernel: kernel.clone(),
            id,
            group: group.clone(),
            cred: Arc::new(spec.cred),
            files,
            fs: Arc::new(Mutex::new(fs)),
            mm: Mm::new(first.address_space(), Map::default()),
            nsproxy: container.ns.clone(),
            comm: b"init".to_vec(),
            attrs: Arc::new(attrs),
        }));
        insert(&task);
        // From here on its drop undoes that.
        let mut prepared = Prepared { task: task.clone(), thread: Some(first) };
        prepared.enter_directory(&spec.cwd)?;
        prepared.load_program(spec.argv, spec.env).await?;
        for program in spec.seccomp {
            seccomp::attach(&task, program, false)?;
        }
        Ok(prepared)
    }

    fn enter_directory(&self, cwd: &[u8]) -> Result<(), StartError> {
        let flags = LookupFlags::FOLLOW | LookupFlags::DIRECTORY;
        let found = crate::fs::vfs::resolve(&self.task, libc::AT_FDCWD, cwd, flags);
        self.task.fs().lock().cwd = found.map_err(|e| StartError {
            status: NOT_STARTED,
            errno: e,
            text: format!(
                "working directory {}: {} in the sandbox (choose another with --cwd)",
                String::from_utf8_lossy(cwd),
                e.desc()
            ),
        })?;
        Ok(())
    }

    async fn load_program(&mut self, argv: Vec<Vec<u8>>, env: Vec<Vec<u8>>) -> Result<(), StartError> {
        let task = self.task.clone();
        let Some(first) = self.thread.take() else { return Err(Errno::ESRCH.into()) };
        let shown = String::from_utf8_lossy(argv.first().map_or(b"".as_slice(), |a| a)).into_owned();
        let failed = |status, errno, text| StartError { status, errno, text };
        let loaded = current::scope(task.clone(), async {
            let program = find(&task, argv, env).map_err(|e| match e {
                Errno::ENOENT | Errno::ENOTDIR => failed(NOT_FOUND, e, format!("{shown}: command not found")),
                e => failed(NOT_EXECUTABLE, e, format!("{shown}: {}", e.desc())),
            })?;
            exec::load(&task, program, exec::LoadInto::Fresh(first)).await.map_err(|e| match e {
                // The program exists, since it was found: the interpreter is missing.
                Errno::ENOENT => {
                    failed(NOT_FOUND, e, format!("{shown}: the interpreter that it asks for is not in the sandbox"))
                }
                e => failed(NOT_EXECUTABLE, e, format!("{shown}: {}", e.desc())),
            })
        });
        let image = match loaded.await {
            Ok(image) => image,
            Err(e) => {
                self.leave();
                return Err(e);
            }
        };
        *task.mm.write() = image.mm;
        *task.comm.lock() = image.comm;
        *task.cred.write() = Arc::new(image.cred);
        self.thread = image.thread;
        Ok(())
    }

    pub(super) fn group(&self) -> &Arc<ThreadGroup> {
        &self.task.group
    }

    /// Starts it: at once, or when `gate` is completed.
    pub(super) fn run(mut self, gate: Option<Arc<Completion>>) {
        if let Some(thread) = self.thread.take() {
            run::start_after(self.task.clone(), thread, gate);
        }
    }

    /// Takes the process out of the kernel again.
    fn leave(&self) {
        let group = &self.task.group;
        let mut tree = self.task.kernel.tree.lock();
        group.links.lock().threads.clear();
        tree.remove_task(self.task.tid());
        // A process without threads counts as a zombie until it is removed.
        tree.zombies += 1;
        tree.remove_group(group);
        drop(tree);
        crate::kernel::tty::process_exit(&self.task.kernel, group);
    }
}

/// Adds a new process to the kernel: the leader of a session and of a process group, without a parent.
fn insert(task: &Arc<Task>) {
    let (group, pid) = (&task.group, task.group.pid);
    {
        let mut r = group.links.lock();
        r.pgid = pid;
        r.sid = pid;
        r.exit_signal = libc::SIGCHLD;
        r.threads.push(task.clone());
    }
    let mut tree = task.kernel.tree.lock();
    tree.tasks.insert(pid, task.clone());
    tree.insert_group(group);
    tree.unreserve(pid);
    if tree.last_pid == 0 {
        // The first of all has a fixed number.
        tree.last_pid = pid;
    }
    if group.init && group.id.is_nested() {
        group.id.ns().set_init(group);
    }
    // A paused container's new process waits for its thaw, too.
    if group.cgroup.is_held() {
        task.signal_flag.store(true, Ordering::SeqCst);
    }
}

/// Descriptors for a new process. A terminal among them is the guest's own.
fn open_files(
    kernel: &Arc<Kernel>,
    files: Vec<Option<OwnedFd>>,
    terminal: Option<Control>,
    root: &Path,
) -> Result<Arc<FdTable>, StartError> {
    let table = FdTable::new();
    for (i, fd) in files.into_iter().enumerate() {
        let Some(fd) = fd else { continue };
        let file: Arc<File> = match nix::unistd::isatty(&fd).unwrap_or(false) {
            true => host_terminal(kernel, fd, terminal.unwrap_or(Control::Console), root)?,
            false => HostFile::open(&kernel.executor, fd)?,
        };
        table.replace(i as i32, file, false, crate::kernel::fdtable::NR_OPEN as u64)?;
    }
    Ok(table)
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
