//! Containers: what a runtime creates, starts, signals and deletes as one (OCI runtime-spec). A container is a set of
//! namespaces with a root, a cgroup, and a first process, whose end is the container's.
//!
//! This module stands above [`kernel`](crate::kernel), which knows processes and cgroups only. [`process`] starts a
//! container's processes from outside.

mod bandwidth;
pub mod process;

use crate::error::{Errno, Result};
use crate::kernel::cgroup::{Cgroup, CpuMax};
use crate::kernel::nsproxy::NsProxy;
use crate::kernel::pid_ns::PidNs;
use crate::kernel::signal::SigInfo;
use crate::kernel::task::Completion;
use crate::kernel::{exit, send, Kernel, Task, ThreadGroup};
use crate::mm::usage;
use crate::time::cpu;
use parking_lot::Mutex;
use platform::executor::{now_ns, Rounds};
use process::{Prepared, ProcessSpec, StartError};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// State of a container, as the OCI runtime-spec names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The first process is loaded and waits for [`Container::start`].
    Created,
    Running,
    Paused,
    Stopped,
}

pub struct Container {
    pub id: String,
    pub ns: Arc<NsProxy>,
    pub cgroup: Arc<Cgroup>,
    init: Mutex<Weak<ThreadGroup>>,
    init_pid: AtomicI32,
    /// Completed when the first process may begin.
    gate: Arc<Completion>,
    exit: Mutex<Exit>,
}

/// The end of the first process.
#[derive(Default)]
struct Exit {
    /// Its wait(2) status.
    status: Option<i32>,
    /// Called with it.
    hooks: Vec<ExitHook>,
}

type ExitHook = Box<dyn FnOnce(i32) + Send>;

/// Times and counts of a container's processes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Nanoseconds, ended processes included.
    pub user_ns: u64,
    pub system_ns: u64,
    pub pids: u64,
    pub pids_max: Option<u64>,
}

/// Most bytes of a command line that are listed.
const MAX_COMMAND: usize = 4096;

/// Most bytes of all command lines of a list; of further processes the name is listed.
const MAX_COMMANDS: usize = 512 << 10;

/// A process in a list.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: i32,
    /// 0: none in the sandbox.
    pub ppid: i32,
    pub uid: u32,
    pub threads: u32,
    /// Nanoseconds since the start of the sandbox.
    pub started_ns: u64,
    pub cpu_ns: u64,
    /// Resident memory in bytes, estimated from the mappings.
    pub rss: u64,
    /// Name of the controlling terminal below `/dev`.
    pub tty: Option<String>,
    pub command: Vec<Vec<u8>>,
}

impl Process {
    /// `None`: it ends.
    fn of(kernel: &Kernel, group: &Arc<ThreadGroup>, ns: &PidNs, room: &mut usize) -> Option<Process> {
        let task = group.any_thread()?;
        let (threads, ppid, sid) = {
            let r = group.links.lock();
            (r.threads.len(), r.parent.upgrade().map_or(0, |p| ns.nr_of(p.pid)), r.sid)
        };
        let mut line = Vec::new();
        if *room > 0 {
            usage::arguments(&task.mm(), &mut line);
            line.truncate(MAX_COMMAND.min(*room));
            *room -= line.len();
        }
        let mut command: Vec<Vec<u8>> = line.split(|c| *c == 0).map(<[u8]>::to_vec).collect();
        if command.last().is_some_and(Vec::is_empty) {
            command.pop();
        }
        if command.is_empty() {
            command.push([b"[", task.comm.lock().as_slice(), b"]"].concat());
        }
        let (user, system) = cpu::group_time(group);
        Some(Process {
            pid: ns.nr_of(group.pid),
            ppid,
            uid: task.cred().uid,
            threads: u32::try_from(threads).unwrap_or(u32::MAX),
            started_ns: group.start_ns.load(Ordering::Relaxed).saturating_sub(kernel.boot_monotonic_ns),
            cpu_ns: user.saturating_add(system),
            rss: usage::sizes(&task.mm()).rss(),
            tty: kernel.ttys.of_session(sid).map(|line| line.name()),
            command,
        })
    }
}

/// Sends a signal as from an ancestor's pid namespace (pid_namespaces(7)): process 1 ends by SIGKILL, and by others
/// only if it has handlers for them. 0 only checks.
fn deliver(group: &Arc<ThreadGroup>, sig: i32) -> Result<()> {
    match sig {
        0 => Ok(()),
        libc::SIGKILL | libc::SIGSTOP => send::from_outside(group, SigInfo::user(sig, 0, 0)),
        _ => send::to_group(group, SigInfo::user(sig, 0, 0)),
    }
}

impl Container {
    pub fn new(id: String, ns: NsProxy, cgroup: Arc<Cgroup>) -> Arc<Container> {
        Arc::new(Container {
            id,
            ns: Arc::new(ns),
            cgroup,
            init: Mutex::default(),
            init_pid: AtomicI32::new(0),
            gate: Arc::default(),
            exit: Mutex::default(),
        })
    }

    /// Loads the first process; it waits for [`Container::start`]. When it has ended and all others of the container
    /// have been told to end, `on_exit` gets its wait(2) status.
    pub async fn create(
        self: &Arc<Self>,
        kernel: &Arc<Kernel>,
        spec: ProcessSpec,
        on_exit: impl FnOnce(i32) + Send + 'static,
    ) -> Result<(), StartError> {
        // The sandbox's first process has a fixed number.
        let pid = kernel.group(kernel.first_pid()).is_none().then_some(kernel.first_pid());
        let prepared = Prepared::load(kernel, self, spec, pid).await?;
        let group = prepared.group().clone();
        *self.init.lock() = Arc::downgrade(&group);
        self.init_pid.store(group.pid, Ordering::SeqCst);
        let container = self.clone();
        group.on_exit(move |status| {
            let hooks = {
                let mut exit = container.exit.lock();
                exit.status = Some(status);
                std::mem::take(&mut exit.hooks)
            };
            hooks.into_iter().for_each(|hook| hook(status));
            on_exit(status);
        });
        prepared.run(Some(self.gate.clone()));
        Ok(())
    }

    /// Lets the first process run; `EBUSY` if it does already, `ESRCH` if it has ended.
    pub fn start(&self) -> Result<()> {
        match self.status() {
            Status::Created => self.gate.complete(),
            Status::Stopped => return Err(Errno::ESRCH),
            _ => return Err(Errno::EBUSY),
        }
        Ok(())
    }

    /// Starts one more process. Before it runs, `begins` is called; its end is reported to `on_exit` (wait(2) status).
    pub async fn exec(
        self: &Arc<Self>,
        kernel: &Arc<Kernel>,
        spec: ProcessSpec,
        on_exit: impl FnOnce(i32) + Send + 'static,
        begins: impl FnOnce(&Arc<ThreadGroup>) + Send,
    ) -> Result<(), StartError> {
        if self.status() == Status::Stopped {
            return Err(Errno::ESRCH.into());
        }
        let prepared = Prepared::load(kernel, self, spec, None).await?;
        prepared.group().on_exit(on_exit);
        begins(prepared.group());
        prepared.run(None);
        Ok(())
    }

    pub fn status(&self) -> Status {
        if self.exit_status().is_some() {
            Status::Stopped
        } else if !self.gate.is_done() {
            Status::Created
        } else if self.cgroup.is_frozen() {
            Status::Paused
        } else {
            Status::Running
        }
    }

    /// Sets the processor time that all its processes together may use; `None`: no limit.
    pub fn set_cpu_max(&self, kernel: &Arc<Kernel>, max: Option<CpuMax>) {
        self.cgroup.set_cpu_max(max);
        if max.is_some() && self.cgroup.begin_enforcement() {
            let enforce = bandwidth::enforce(kernel.clone(), Arc::downgrade(&self.cgroup));
            kernel.executor.spawn(Box::pin(enforce));
        }
    }

    /// Process id of the first process; 0 before it is loaded.
    pub fn init_pid(&self) -> i32 {
        self.ns.pid_for_children.nr_of(self.init_pid.load(Ordering::SeqCst))
    }
    pub fn init(&self) -> Option<Arc<ThreadGroup>> {
        self.init.lock().upgrade()
    }
    /// wait(2) status of the first process, once it has ended.
    pub fn exit_status(&self) -> Option<i32> {
        self.exit.lock().status
    }
    /// Calls `hook` with the wait(2) status of the first process when it has ended; at once if it has.
    pub fn when_exited(&self, hook: impl FnOnce(i32) + Send + 'static) {
        let mut exit = self.exit.lock();
        match exit.status {
            None => exit.hooks.push(Box::new(hook)),
            Some(status) => {
                drop(exit);
                hook(status);
            }
        }
    }

    /// Sends a signal to the first process, as from an ancestor's pid namespace; 0 only checks that there is one.
    pub fn signal(&self, sig: i32) -> Result<()> {
        let init = self.init().filter(|_| self.exit_status().is_none()).ok_or(Errno::ESRCH)?;
        deliver(&init, sig)
    }

    /// Sends a signal to a process of the container.
    pub fn signal_process(&self, kernel: &Kernel, pid: i32, sig: i32) -> Result<()> {
        let global = self.ns.pid_for_children.global(pid).ok_or(Errno::ESRCH)?;
        let group = kernel.group(global).filter(|g| g.cgroup.is_within(&self.cgroup)).ok_or(Errno::ESRCH)?;
        deliver(&group, sig)
    }

    /// As [`Container::signal_process`], of a process that is known.
    pub fn signal_group(&self, group: &Arc<ThreadGroup>, sig: i32) -> Result<()> {
        match group.cgroup.is_within(&self.cgroup) && group.links.lock().exit_status.is_none() {
            true => deliver(group, sig),
            false => Err(Errno::ESRCH),
        }
    }

    /// The number of a process in the container's pid namespace; 0 if it has none.
    pub fn number_of(&self, group: &ThreadGroup) -> i32 {
        self.ns.pid_for_children.nr_of(group.pid)
    }

    /// Sends a signal to all processes of the container.
    pub fn signal_all(&self, kernel: &Kernel, sig: i32) {
        for group in self.cgroup.processes(kernel) {
            let _ = deliver(&group, sig);
        }
    }

    /// Stops all processes, and waits until no task of them runs; `ETIMEDOUT` (and nothing is stopped) if some do after
    /// `patience`.
    pub async fn pause(&self, kernel: &Arc<Kernel>, patience: Duration) -> Result<()> {
        self.cgroup.freeze(kernel);
        let deadline = now_ns().saturating_add(u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX));
        while !self.all_stopped(kernel) {
            if now_ns() >= deadline {
                self.cgroup.thaw();
                return Err(Errno::ETIMEDOUT);
            }
            bandwidth::sleep_until(kernel, now_ns().saturating_add(1_000_000)).await;
        }
        Ok(())
    }

    /// Whether each task of the container is in the Sentry: it waits there for something, frozen or not.
    fn all_stopped(&self, kernel: &Kernel) -> bool {
        // A task in a call looks at its cgroup before it returns to the guest.
        let in_sentry = |t: &Arc<Task>| t.parked.load(Ordering::SeqCst) || t.in_call.load(Ordering::SeqCst) >= 0;
        let stopped = |g: &Arc<ThreadGroup>| {
            let r = g.links.lock();
            r.stopped.is_some() || r.threads.iter().all(in_sentry)
        };
        self.cgroup.processes(kernel).iter().all(stopped)
    }

    /// The processes, by their numbers.
    pub fn processes(&self, kernel: &Kernel) -> Vec<Process> {
        let (mut room, mut rounds) = (MAX_COMMANDS, Rounds::new());
        let mut list = |g: &Arc<ThreadGroup>| {
            rounds.next();
            Process::of(kernel, g, &self.ns.pid_for_children, &mut room)
        };
        self.cgroup.processes(kernel).iter().filter_map(&mut list).collect()
    }

    /// Ends all processes but the first: the end of a pid namespace.
    pub fn kill_others(&self, kernel: &Kernel) {
        let first = self.init_pid.load(Ordering::SeqCst);
        for group in self.cgroup.processes(kernel).iter().filter(|g| g.pid != first) {
            exit::kill_group(group, libc::SIGKILL);
        }
    }

    pub fn usage(&self, kernel: &Kernel) -> Usage {
        let (user_ns, system_ns) = self.cgroup.cpu_time(kernel);
        Usage { user_ns, system_ns, pids: self.cgroup.pids(), pids_max: self.cgroup.pids_max() }
    }
}
