//! The shim that serves: a ttrpc server on the socket that it was given, until containerd shuts it down.

use super::args::Args;
use super::events::Publisher;
use super::logger;
use super::reaper::Reaper;
use super::service::Service;
use super::task::{Answer, Failure};
use super::{Ending, TTRPC_ADDRESS};
use crate::sys;
use anyhow::{Context, Result};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::ttrpc::{self, Code, Server, TtrpcContext};
use containerd_shim_protos::{create_task, Task};
use nix::sys::signal::{SigSet, Signal};
use std::fs;
use std::os::fd::{AsFd, IntoRawFd};
use std::path::Path;
use std::sync::Arc;

/// The names of the service: that of containerd 2 and that of 1.x have the same methods and messages.
const V3: &str = "/containerd.task.v3.Task/";
const V2: &str = "/containerd.task.v2.Task/";

pub fn serve(args: &Args) -> Result<()> {
    let listener = std::io::stdin().as_fd().try_clone_to_owned().context("the socket")?;
    sys::let_go_of_streams().context("/dev/null")?;
    nix::unistd::setsid().context("setsid")?;
    // In the bundle's directory.
    logger::init(args.debug, &args.namespace, &args.id);
    std::env::set_current_dir("/").context("/")?;
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0).context("prctl(PR_SET_CHILD_SUBREAPER)")?;
    // It ends when containerd says so: a signal for the whole system's end, say, must not come before its containers'.
    let ignored: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE].into_iter().collect();
    ignored.thread_block().context("blocking signals")?;

    let ending = Arc::new(Ending::default());
    let address = std::env::var(TTRPC_ADDRESS).context(TTRPC_ADDRESS)?;
    let events = Arc::new(Publisher::start(&address, &args.namespace)?);
    let reaper = Reaper::start()?;
    let service = Service::new(&args.namespace, &args.id, reaper, events.clone(), ending.clone());
    let task: Arc<dyn Task + Send + Sync> = Arc::new(TaskService(service));
    let of_v3 = create_task(task.clone());
    let of_v2 = create_task(task).into_iter().map(|(path, method)| (path.replacen(V3, V2, 1), method)).collect();
    let mut server = Server::new()
        .add_listener(listener.into_raw_fd())
        .context("the socket")?
        .register_service(of_v3)
        .register_service(of_v2);
    server.start().context("starting the server")?;
    log::info!("the shim of {} serves", args.id);
    ending.wait();
    events.finish();
    let _ = fs::remove_file(Path::new(&args.socket));
    // The answer to the request is on its way.
    server.shutdown();
    Ok(())
}

/// The service as ttrpc calls it.
struct TaskService(Service);

fn reply<T>(what: &str, answer: Answer<T>) -> ttrpc::Result<T> {
    answer.map_err(|failure| {
        let (code, text) = match failure {
            Failure::NotFound(text) => (Code::NOT_FOUND, text),
            Failure::Exists(text) => (Code::ALREADY_EXISTS, text),
            Failure::Invalid(text) => (Code::INVALID_ARGUMENT, text),
            Failure::Precondition(text) => (Code::FAILED_PRECONDITION, text),
            Failure::Unimplemented(text) => (Code::UNIMPLEMENTED, text),
            Failure::Other(e) => (Code::UNKNOWN, format!("{e:#}")),
        };
        log::debug!("{what}: {text}");
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, text))
    })
}

impl Task for TaskService {
    fn state(&self, _: &TtrpcContext, r: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        reply("state", self.0.state(&r.id, &r.exec_id))
    }

    fn create(&self, _: &TtrpcContext, r: api::CreateTaskRequest) -> ttrpc::Result<api::CreateTaskResponse> {
        log::debug!("create {}", r.id);
        reply("create", self.0.create(r))
    }

    fn start(&self, _: &TtrpcContext, r: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        reply("start", self.0.start(&r.id, &r.exec_id))
    }

    fn delete(&self, _: &TtrpcContext, r: api::DeleteRequest) -> ttrpc::Result<api::DeleteResponse> {
        log::debug!("delete {} {}", r.id, r.exec_id);
        reply("delete", self.0.delete(&r.id, &r.exec_id))
    }

    fn pids(&self, _: &TtrpcContext, r: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        reply("pids", self.0.pids(&r.id))
    }

    fn pause(&self, _: &TtrpcContext, r: api::PauseRequest) -> ttrpc::Result<Empty> {
        reply("pause", self.0.pause(&r.id, true))
    }

    fn resume(&self, _: &TtrpcContext, r: api::ResumeRequest) -> ttrpc::Result<Empty> {
        reply("resume", self.0.pause(&r.id, false))
    }

    fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        reply("checkpoint", Err(Failure::Unimplemented("checkpoint is not there yet".into())))
    }

    fn kill(&self, _: &TtrpcContext, r: api::KillRequest) -> ttrpc::Result<Empty> {
        reply("kill", self.0.kill(&r))
    }

    fn exec(&self, _: &TtrpcContext, r: api::ExecProcessRequest) -> ttrpc::Result<Empty> {
        reply("exec", self.0.exec(r))
    }

    fn resize_pty(&self, _: &TtrpcContext, r: api::ResizePtyRequest) -> ttrpc::Result<Empty> {
        reply("resize", self.0.resize(&r))
    }

    fn close_io(&self, _: &TtrpcContext, r: api::CloseIORequest) -> ttrpc::Result<Empty> {
        reply("close_io", self.0.close_io(&r))
    }

    fn update(&self, _: &TtrpcContext, r: api::UpdateTaskRequest) -> ttrpc::Result<Empty> {
        reply("update", self.0.update(&r))
    }

    fn wait(&self, _: &TtrpcContext, r: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        reply("wait", self.0.wait(&r.id, &r.exec_id))
    }

    fn stats(&self, _: &TtrpcContext, r: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        reply("stats", self.0.stats(&r.id))
    }

    fn connect(&self, _: &TtrpcContext, r: api::ConnectRequest) -> ttrpc::Result<api::ConnectResponse> {
        Ok(self.0.connect(&r.id))
    }

    fn shutdown(&self, _: &TtrpcContext, r: api::ShutdownRequest) -> ttrpc::Result<Empty> {
        Ok(self.0.shutdown(&r))
    }
}
