//! Containers and their processes, as the shim knows them.

use super::events::{timestamp, Publisher};
use super::io::{Held, Prepared, Wanted};
use super::lock;
use super::oom::OomKills;
use super::reaper::Exit;
use super::runtime::{is_plain, Runtime, Started};
use anyhow::{anyhow, Context, Result};
use containerd_shim_protos::events::task::{TaskExecStarted, TaskExit, TaskOOM, TaskStart};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics::{
    TASK_EXEC_STARTED_EVENT_TOPIC, TASK_EXIT_EVENT_TOPIC, TASK_OOM_EVENT_TOPIC, TASK_START_EVENT_TOPIC,
};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// A request that cannot be served, in the kinds that containerd tells apart.
#[derive(Debug)]
pub enum Failure {
    NotFound(String),
    Exists(String),
    Invalid(String),
    /// Not in the state that the process is in.
    Precondition(String),
    Unimplemented(String),
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(e: anyhow::Error) -> Failure {
        Failure::Other(e)
    }
}

pub type Answer<T> = Result<T, Failure>;

/// A container.
pub struct Container {
    pub id: String,
    pub runtime: Runtime,
    /// The shim has mounted its root.
    pub mounted: bool,
    pub init: Arc<Process>,
    pub execs: Mutex<BTreeMap<String, Arc<Process>>>,
    pub paused: AtomicBool,
}

impl Container {
    /// A process: the first, or one that was added.
    pub fn process(&self, exec: &str) -> Answer<Arc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let found = lock(&self.execs).get(exec).cloned();
        found.ok_or_else(|| Failure::NotFound(format!("process {exec:?} does not exist")))
    }

    /// Runs the first process.
    pub fn start(&self, events: &Arc<Publisher>) -> Answer<Pid> {
        let pid = self.init.begin_start()?;
        let started = self.runtime.start(&self.id);
        let event = TaskStart { container_id: self.id.clone(), pid: number(pid), ..Default::default() };
        let told = started.is_ok().then(|| events.publish(TASK_START_EVENT_TOPIC, &event));
        self.init.end_start(told.is_some(), events);
        started.map_err(|e| e.context("OCI runtime start failed"))?;
        Ok(pid)
    }

    /// Adds a process that is started later. `spec`: its description, as in a bundle.
    pub fn add(&self, exec: &str, wanted: Wanted, spec: &[u8]) -> Answer<()> {
        if !is_plain(exec) {
            return Err(Failure::Invalid(format!("exec id {exec:?}")));
        }
        let mut execs = lock(&self.execs);
        if execs.contains_key(exec) {
            return Err(Failure::Exists(format!("process {exec:?} exists")));
        }
        let file = self.runtime.bundle().join(spec_file(exec));
        fs::write(&file, spec).with_context(|| file.display().to_string())?;
        execs.insert(exec.into(), Process::new(&self.id, exec, wanted));
        Ok(())
    }

    /// Runs a process that was added.
    pub fn start_exec(&self, process: &Arc<Process>, events: &Arc<Publisher>) -> Answer<Pid> {
        process.begin_first_start()?;
        let started = self.run_exec(process, events);
        if let Ok(pid) = &started {
            let event = TaskExecStarted {
                container_id: self.id.clone(),
                exec_id: process.exec.clone(),
                pid: number(*pid),
                ..Default::default()
            };
            events.publish(TASK_EXEC_STARTED_EVENT_TOPIC, &event);
        }
        process.end_start(started.is_ok(), events);
        if started.is_err() {
            process.never_ran();
        }
        Ok(started?)
    }

    fn run_exec(&self, process: &Arc<Process>, events: &Arc<Publisher>) -> Result<Pid> {
        let bundle = self.runtime.bundle();
        let name = format!("exec-{}", process.exec);
        let mut prepared = process.wanted.prepare(bundle, &name)?;
        let (console, streams) = (prepared.console(), prepared.take_streams());
        let file = bundle.join(spec_file(&process.exec));
        let started = self.runtime.exec(&self.id, &name, &file, console.as_deref(), streams)?;
        process.runs(&self.runtime, started, prepared, events)?;
        Ok(started.pid)
    }

    /// Forgets a process that has ended, or was never started.
    pub fn remove(&self, process: &Process) {
        lock(&self.execs).remove(&process.exec);
        let bundle = self.runtime.bundle();
        let _ = fs::remove_file(bundle.join(spec_file(&process.exec)));
        let _ = fs::remove_file(bundle.join(format!("exec-{}.pid", process.exec)));
    }
}

fn spec_file(exec: &str) -> String {
    format!("exec-{exec}.json")
}

/// A number of a process, in messages.
pub fn number(pid: Pid) -> u32 {
    u32::try_from(pid.as_raw()).unwrap_or(0)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// For `exec`: there is no process yet.
    Created,
    /// The runtime is being asked; an end that comes meanwhile is reported afterwards.
    Starting,
    Running,
}

/// A process that stands on the host for one in a container: a monitor, or an agent of `exec`.
pub struct Process {
    container: String,
    /// Empty for the first one.
    pub exec: String,
    pub wanted: Wanted,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    phase: Phase,
    pid: Option<Pid>,
    /// For the first process.
    oom: Option<OomKills>,
    exit: Option<Exit>,
    held: Option<Held>,
}

impl Process {
    pub fn new(container: &str, exec: &str, wanted: Wanted) -> Arc<Process> {
        Arc::new(Process {
            container: container.into(),
            exec: exec.into(),
            wanted,
            state: Mutex::new(State { phase: Phase::Created, pid: None, oom: None, exit: None, held: None }),
            changed: Condvar::new(),
        })
    }

    /// It is there: its streams are served, and its end is waited for.
    pub fn runs(
        self: &Arc<Self>,
        runtime: &Runtime,
        started: Started,
        streams: Prepared,
        events: &Arc<Publisher>,
    ) -> Result<()> {
        let held = streams.begin();
        let failed = held.as_ref().err().map(|e| anyhow!("{e:#}"));
        {
            let mut state = lock(&self.state);
            (state.pid, state.held) = (Some(started.pid), held.ok());
            state.oom = self.exec.is_empty().then(|| OomKills::of(started.pid)).flatten();
        }
        self.watch(runtime, started, events);
        match failed {
            None => Ok(()),
            Some(e) => {
                let _ = runtime.reaper().signal(started.pid, libc::SIGKILL);
                Err(e)
            }
        }
    }

    fn watch(self: &Arc<Self>, runtime: &Runtime, started: Started, events: &Arc<Publisher>) {
        let (process, events) = (self.clone(), events.clone());
        runtime.reaper().watch(started.pid, started.since, move |exit| process.ended(exit, &events));
    }

    fn ended(&self, exit: Exit, events: &Publisher) {
        let mut state = lock(&self.state);
        state.exit = Some(exit);
        if let Some(held) = &mut state.held {
            held.end_outputs();
        }
        if state.oom.take().is_some_and(|oom| oom.happened()) {
            let event = TaskOOM { container_id: self.container.clone(), ..Default::default() };
            events.publish(TASK_OOM_EVENT_TOPIC, &event);
        }
        if state.phase != Phase::Starting {
            self.report(exit, state.pid, events);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn report(&self, exit: Exit, pid: Option<Pid>, events: &Publisher) {
        let id = if self.exec.is_empty() { &self.container } else { &self.exec };
        let event = TaskExit {
            container_id: self.container.clone(),
            id: id.clone(),
            pid: pid.map_or(0, number),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        };
        events.publish(TASK_EXIT_EVENT_TOPIC, &event);
    }

    /// For the first process, which is there but waits.
    fn begin_start(&self) -> Answer<Pid> {
        let mut state = lock(&self.state);
        match (state.phase, state.pid, state.exit) {
            (Phase::Created, Some(pid), None) => {
                state.phase = Phase::Starting;
                Ok(pid)
            }
            (Phase::Created, ..) => Err(Failure::Precondition("cannot start a stopped process".into())),
            _ => Err(Failure::Precondition("cannot start a process that has been started".into())),
        }
    }

    fn begin_first_start(&self) -> Answer<()> {
        let mut state = lock(&self.state);
        if state.phase != Phase::Created {
            return Err(Failure::Precondition("cannot start a process that has been started".into()));
        }
        state.phase = Phase::Starting;
        Ok(())
    }

    fn end_start(&self, runs: bool, events: &Publisher) {
        let mut state = lock(&self.state);
        // One that could not be started stays as it was; a client may delete it.
        state.phase = if runs { Phase::Running } else { Phase::Created };
        if let Some(exit) = state.exit.filter(|_| state.pid.is_some()) {
            self.report(exit, state.pid, events);
        }
    }

    /// It could not be started; as if it had ended at once.
    fn never_ran(&self) {
        const STATUS: u32 = 255;
        lock(&self.state).exit.get_or_insert(Exit { status: STATUS, at: SystemTime::now() });
        self.changed.notify_all();
    }

    pub fn pid(&self) -> Option<Pid> {
        lock(&self.state).pid
    }

    pub fn phase(&self) -> Phase {
        lock(&self.state).phase
    }

    pub fn exit(&self) -> Option<Exit> {
        lock(&self.state).exit
    }

    /// Waits for its end.
    pub fn wait(&self) -> Exit {
        let mut state = lock(&self.state);
        loop {
            match state.exit {
                Some(exit) => return exit,
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// The same, for a bounded time.
    pub fn wait_for(&self, patience: Duration) -> Option<Exit> {
        let state = self.changed.wait_timeout_while(lock(&self.state), patience, |s| s.exit.is_none());
        state.unwrap_or_else(PoisonError::into_inner).0.exit
    }

    pub fn close_stdin(&self) {
        if let Some(held) = &mut lock(&self.state).held {
            held.close_stdin();
        }
    }

    pub fn resize(&self, rows: u16, columns: u16) -> Answer<()> {
        match &lock(&self.state).held {
            Some(held) => Ok(held.resize(rows, columns)?),
            None => Err(Failure::Precondition("the process does not run".into())),
        }
    }

    /// Lets go of the streams of a process that has ended.
    pub fn release(&self) {
        let held = lock(&self.state).held.take();
        if let Some(held) = held {
            held.finish();
        }
    }
}
