//! The task service: what containerd asks of a container.

use super::events::{timestamp, to_any, Publisher};
use super::io::Wanted;
use super::mounts::{self, Mount};
use super::options::Options;
use super::reaper::Reaper;
use super::runtime::{is_plain, Runtime};
use super::stats;
use super::task::{number, Answer, Container, Failure, Phase, Process};
use super::{lock, Ending};
use anyhow::{anyhow, Context, Result};
use containerd_shim_protos::api;
use containerd_shim_protos::events::task as event;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::topics;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a container that is deleted may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Service {
    namespace: String,
    /// The group, a pod's as a rule.
    id: String,
    reaper: Arc<Reaper>,
    events: Arc<Publisher>,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    /// Ids of containers that are being created.
    creating: Mutex<Vec<String>>,
    ending: Arc<Ending>,
}

impl Service {
    pub fn new(namespace: &str, id: &str, reaper: Arc<Reaper>, events: Arc<Publisher>, ending: Arc<Ending>) -> Service {
        Service {
            namespace: namespace.into(),
            id: id.into(),
            reaper,
            events,
            containers: Mutex::default(),
            creating: Mutex::default(),
            ending,
        }
    }

    fn container(&self, id: &str) -> Answer<Arc<Container>> {
        let found = lock(&self.containers).get(id).cloned();
        found.ok_or_else(|| Failure::NotFound(format!("container {id:?} does not exist")))
    }

    pub fn state(&self, id: &str, exec: &str) -> Answer<api::StateResponse> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        let status = match (process.exit(), process.phase()) {
            (Some(_), _) => api::Status::STOPPED,
            (None, Phase::Created | Phase::Starting) => api::Status::CREATED,
            _ if exec.is_empty() && container.paused.load(Ordering::SeqCst) => api::Status::PAUSED,
            _ => api::Status::RUNNING,
        };
        let exit = process.exit();
        let wanted = &process.wanted;
        Ok(api::StateResponse {
            id: id.into(),
            bundle: container.runtime.bundle().display().to_string(),
            pid: process.pid().map_or(0, number),
            status: EnumOrUnknown::new(status),
            stdin: wanted.stdin.clone(),
            stdout: wanted.stdout.clone(),
            stderr: wanted.stderr.clone(),
            terminal: wanted.terminal,
            exit_status: exit.map_or(0, |e| e.status),
            exited_at: exit.map(|e| timestamp(e.at)).into(),
            exec_id: exec.into(),
            ..Default::default()
        })
    }

    pub fn create(&self, r: api::CreateTaskRequest) -> Answer<api::CreateTaskResponse> {
        if !is_plain(&r.id) {
            return Err(Failure::Invalid(format!("id {:?}", r.id)));
        }
        if !r.checkpoint.is_empty() || !r.parent_checkpoint.is_empty() {
            return Err(Failure::Unimplemented("restore of a checkpoint is not there yet".into()));
        }
        {
            let mut creating = lock(&self.creating);
            if creating.contains(&r.id) || lock(&self.containers).contains_key(&r.id) {
                return Err(Failure::Exists(format!("container {:?} exists", r.id)));
            }
            creating.push(r.id.clone());
        }
        let made = self.make(&r);
        if let Ok(container) = &made {
            lock(&self.containers).insert(r.id.clone(), container.clone());
        }
        lock(&self.creating).retain(|id| *id != r.id);
        let pid = made?.init.pid().map_or(0, number);
        Ok(api::CreateTaskResponse { pid, ..Default::default() })
    }

    fn make(&self, r: &api::CreateTaskRequest) -> Result<Arc<Container>> {
        let bundle = Path::new(&r.bundle);
        let options = Options::new(r.options.as_ref())?;
        options.keep(bundle)?;
        let rootfs = bundle.join("rootfs");
        let list: Vec<Mount> = r.rootfs.iter().map(mount).collect();
        let mounted = !list.is_empty();
        if mounted {
            fs::create_dir_all(&rootfs).with_context(|| rootfs.display().to_string())?;
            mounts::mount_all(&list, &rootfs)?;
        }
        let runtime = Runtime::new(options, &self.namespace, bundle, &self.reaper);
        let made = self.make_process(r, &runtime);
        let init = match made {
            Ok(init) => init,
            Err(e) => {
                if mounted {
                    mounts::unmount_all(&rootfs);
                }
                return Err(e);
            }
        };
        let mut created = event::TaskCreate {
            container_id: r.id.clone(),
            bundle: r.bundle.clone(),
            io: MessageField::some(event::TaskIO {
                stdin: r.stdin.clone(),
                stdout: r.stdout.clone(),
                stderr: r.stderr.clone(),
                terminal: r.terminal,
                ..Default::default()
            }),
            pid: init.pid().map_or(0, number),
            ..Default::default()
        };
        tell_mounts(&r.rootfs, &mut created);
        self.events.publish(topics::TASK_CREATE_EVENT_TOPIC, &created);
        Ok(Arc::new(Container {
            id: r.id.clone(),
            runtime,
            mounted,
            init,
            execs: Mutex::default(),
            paused: AtomicBool::new(false),
        }))
    }

    fn make_process(&self, r: &api::CreateTaskRequest, runtime: &Runtime) -> Result<Arc<Process>> {
        let wanted =
            Wanted { stdin: r.stdin.clone(), stdout: r.stdout.clone(), stderr: r.stderr.clone(), terminal: r.terminal };
        let mut prepared = wanted.prepare(runtime.bundle(), "init")?;
        let (console, streams) = (prepared.console(), prepared.take_streams());
        let started = runtime.create(&r.id, console.as_deref(), streams)?;
        let init = Process::new(&r.id, "", wanted);
        match init.runs(runtime, started, prepared, &self.events) {
            Ok(()) => Ok(init),
            Err(e) => {
                let _ = runtime.delete(&r.id, true);
                Err(e)
            }
        }
    }

    pub fn start(&self, id: &str, exec: &str) -> Answer<api::StartResponse> {
        let container = self.container(id)?;
        let pid = match exec {
            "" => container.start(&self.events)?,
            _ => container.start_exec(&container.process(exec)?, &self.events)?,
        };
        Ok(api::StartResponse { pid: number(pid), ..Default::default() })
    }

    pub fn delete(&self, id: &str, exec: &str) -> Answer<api::DeleteResponse> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        match exec {
            "" => self.delete_container(&container)?,
            _ if process.exit().is_none() && process.phase() != Phase::Created => {
                return Err(Failure::Precondition("cannot delete a running process".into()))
            }
            _ => container.remove(&process),
        }
        process.release();
        let exit = process.exit();
        let response = api::DeleteResponse {
            pid: process.pid().map_or(0, number),
            exit_status: exit.map_or(0, |e| e.status),
            exited_at: exit.map(|e| timestamp(e.at)).into(),
            ..Default::default()
        };
        if exec.is_empty() {
            self.events.publish(
                topics::TASK_DELETE_EVENT_TOPIC,
                &event::TaskDelete {
                    container_id: id.into(),
                    pid: response.pid,
                    exit_status: response.exit_status,
                    exited_at: response.exited_at.clone(),
                    ..Default::default()
                },
            );
        }
        Ok(response)
    }

    fn delete_container(&self, container: &Arc<Container>) -> Answer<()> {
        let init = &container.init;
        if init.exit().is_none() && init.phase() != Phase::Created {
            return Err(Failure::Precondition("cannot delete a running process".into()));
        }
        match container.runtime.delete(&container.id, false) {
            Ok(()) => {}
            // A former attempt, or another command, has done it.
            Err(e) if says(&e, "does not exist") => {}
            Err(e) => return Err(e.context("OCI runtime delete failed").into()),
        }
        init.wait_for(PATIENCE);
        if container.mounted {
            mounts::unmount_all(&container.runtime.bundle().join("rootfs"));
        }
        lock(&self.containers).remove(&container.id);
        Ok(())
    }

    /// The processes on the host that stand for those in the container: clients take the numbers for the host's.
    pub fn pids(&self, id: &str) -> Answer<api::PidsResponse> {
        let container = self.container(id)?;
        let execs: Vec<_> = lock(&container.execs).values().cloned().collect();
        let mut processes = Vec::new();
        for process in std::iter::once(&container.init).chain(&execs).filter(|p| p.exit().is_none()) {
            let Some(pid) = process.pid() else { continue };
            let details = ProcessDetails { exec_id: process.exec.clone(), ..Default::default() };
            let info = (!process.exec.is_empty()).then(|| to_any(&details));
            processes.push(api::ProcessInfo { pid: number(pid), info: info.into(), ..Default::default() });
        }
        Ok(api::PidsResponse { processes, ..Default::default() })
    }

    pub fn pause(&self, id: &str, pause: bool) -> Answer<Empty> {
        let container = self.container(id)?;
        match pause {
            true => container.runtime.pause(id)?,
            false => container.runtime.resume(id)?,
        }
        container.paused.store(pause, Ordering::SeqCst);
        let container_id = id.to_owned();
        match pause {
            true => {
                let paused = event::TaskPaused { container_id, ..Default::default() };
                self.events.publish(topics::TASK_PAUSED_EVENT_TOPIC, &paused);
            }
            false => {
                let resumed = event::TaskResumed { container_id, ..Default::default() };
                self.events.publish(topics::TASK_RESUMED_EVENT_TOPIC, &resumed);
            }
        }
        Ok(Empty::default())
    }

    pub fn kill(&self, r: &api::KillRequest) -> Answer<Empty> {
        const FINISHED: &str = "process already finished";
        let container = self.container(&r.id)?;
        let process = container.process(&r.exec_id)?;
        let Some(pid) = process.pid() else {
            return Err(Failure::Precondition("process not created".into()));
        };
        if process.exit().is_some() && !r.all {
            return Err(Failure::NotFound(FINISHED.into()));
        }
        let result = match r.exec_id.as_str() {
            "" => container.runtime.kill(&r.id, r.signal, r.all),
            _ => {
                let signal = i32::try_from(r.signal).map_err(|_| Failure::Invalid("signal".into()))?;
                self.reaper.signal(pid, signal).map_err(|e| match e {
                    nix::errno::Errno::ESRCH => anyhow!("container not running"),
                    e => e.into(),
                })
            }
        };
        match result {
            Ok(()) => Ok(Empty::default()),
            Err(e) if says(&e, "not running") || says(&e, "does not exist") => Err(Failure::NotFound(FINISHED.into())),
            Err(e) => Err(e.into()),
        }
    }

    pub fn exec(&self, r: api::ExecProcessRequest) -> Answer<Empty> {
        let container = self.container(&r.id)?;
        if container.init.exit().is_some() {
            return Err(Failure::Precondition("cannot exec in a stopped container".into()));
        }
        let wanted = Wanted { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr, terminal: r.terminal };
        container.add(&r.exec_id, wanted, &with_terminal(&r.spec, r.terminal)?)?;
        let added =
            event::TaskExecAdded { container_id: r.id.clone(), exec_id: r.exec_id.clone(), ..Default::default() };
        self.events.publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &added);
        Ok(Empty::default())
    }

    pub fn resize(&self, r: &api::ResizePtyRequest) -> Answer<Empty> {
        let size = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        self.container(&r.id)?.process(&r.exec_id)?.resize(size(r.height), size(r.width))?;
        Ok(Empty::default())
    }

    pub fn close_io(&self, r: &api::CloseIORequest) -> Answer<Empty> {
        let process = self.container(&r.id)?.process(&r.exec_id)?;
        if r.stdin {
            process.close_stdin();
        }
        Ok(Empty::default())
    }

    pub fn update(&self, r: &api::UpdateTaskRequest) -> Answer<Empty> {
        let container = self.container(&r.id)?;
        let Some(resources) = r.resources.as_ref() else {
            return Err(Failure::Invalid("resources are missing".into()));
        };
        let file = container.runtime.bundle().join("update.json");
        fs::write(&file, &resources.value).with_context(|| file.display().to_string())?;
        let updated = container.runtime.update(&r.id, &file);
        let _ = fs::remove_file(&file);
        updated?;
        Ok(Empty::default())
    }

    pub fn wait(&self, id: &str, exec: &str) -> Answer<api::WaitResponse> {
        let process = self.container(id)?.process(exec)?;
        let exit = process.wait();
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        })
    }

    pub fn stats(&self, id: &str) -> Answer<api::StatsResponse> {
        let container = self.container(id)?;
        if container.init.exit().is_some() {
            return Err(Failure::NotFound("the container has ended".into()));
        }
        let metrics = stats::metrics(&container.runtime.stats(id)?);
        Ok(api::StatsResponse { stats: MessageField::some(to_any(&metrics)), ..Default::default() })
    }

    pub fn connect(&self, id: &str) -> api::ConnectResponse {
        let task = self.container(id).ok().and_then(|c| c.init.pid());
        api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: task.map_or(0, number),
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        }
    }

    /// The shim ends when no container is left, or at once.
    pub fn shutdown(&self, r: &api::ShutdownRequest) -> Empty {
        let creating = lock(&self.creating);
        if r.now || (creating.is_empty() && lock(&self.containers).is_empty()) {
            log::debug!("the shim of {} ends", self.id);
            self.ending.set();
        }
        Empty::default()
    }
}

fn says(e: &anyhow::Error, text: &str) -> bool {
    format!("{e:#}").contains(text)
}

fn mount(m: &api::Mount) -> Mount {
    Mount { kind: m.type_.clone(), source: m.source.clone(), target: m.target.clone(), options: m.options.clone() }
}

/// The events have a message of their own for the same.
fn tell_mounts(mounts: &[api::Mount], event: &mut event::TaskCreate) {
    event.rootfs.resize_with(mounts.len(), Default::default);
    for (to, m) in event.rootfs.iter_mut().zip(mounts) {
        to.type_ = m.type_.clone();
        to.source = m.source.clone();
        to.target = m.target.clone();
        to.options = m.options.clone();
    }
}

/// A process's description, whose terminal is that of the request.
fn with_terminal(spec: &MessageField<Any>, terminal: bool) -> Answer<Vec<u8>> {
    let Some(spec) = spec.as_ref() else { return Err(Failure::Invalid("the process is not described".into())) };
    let wrong = |e: serde_json::Error| Failure::Invalid(format!("the process's description: {e}"));
    let mut process: serde_json::Value = serde_json::from_slice(&spec.value).map_err(wrong)?;
    let Some(fields) = process.as_object_mut() else {
        return Err(Failure::Invalid("the process's description".into()));
    };
    fields.insert("terminal".into(), terminal.into());
    serde_json::to_vec(&process).map_err(wrong)
}
