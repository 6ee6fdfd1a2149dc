//! The control protocol: how a process outside of a sandbox manages its containers.
//!
//! A client connects to the Unix stream socket `control.sock` of the container's state directory. The monitor accepts
//! the connection, checks the peer's user (`SO_PEERCRED`), and hands the connection over to the Sentry, which answers
//! on it from then on.
//!
//! Each side sends frames: four bytes with the length of the body (little endian, at most [`MAX_BODY`]), then the body,
//! one JSON value: a [`Request`] from the client, a [`Reply`] from the Sentry. The descriptors of a request travel with
//! the frame's first byte (`SCM_RIGHTS`). Requests of a connection are answered in their order; [`Request::Create`],
//! [`Request::Wait`] and [`Request::Exec`] keep their connection for themselves. The first request is
//! [`Request::Hello`]. A frame that is too long, malformed, or out of order ends its connection, and nothing else.

use crate::config::{ContainerConfig, ProcessConfig};
use serde::{Deserialize, Serialize};

/// Version of the protocol. The Sentry refuses any other: both sides are the same binary as a rule, but a container may
/// outlive an upgrade.
pub const VERSION: u32 = 1;
/// Longest body of a frame, in bytes.
pub const MAX_BODY: usize = 4 << 20;
/// Most descriptors that one frame carries.
pub const MAX_DESCRIPTORS: usize = 32;

/// From a client to the Sentry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The first request of a connection. Answered by [`Reply::Hello`].
    Hello {
        version: u32,
    },
    /// What the container does at the moment. Answered by [`Reply::State`].
    State {
        container: String,
    },
    /// Runs the process that `create` has prepared. Answered by [`Reply::Done`].
    Start {
        container: String,
    },
    /// Makes one more container in the sandbox. The first descriptor is the connection to its Gofer, the others are
    /// those of its first process. Answered by [`Reply::Done`] when that is loaded, and by [`Reply::Exited`] when it
    /// has ended. The container ends with this connection.
    Create {
        container: Box<ContainerConfig>,
    },
    /// Runs one more process in the container. Its descriptors 0, 1, 2, … come along: `process.files` says which.
    /// Answered by [`Reply::Started`] or [`Reply::Failed`], and when the process has ended by [`Reply::Exited`].
    /// Meanwhile the client may send [`Request::Signal`] for it. A client that goes away takes nothing with it, but for
    /// a process that is `tied` to it, which is killed then.
    Exec {
        container: String,
        process: Box<ProcessConfig>,
        #[serde(default)]
        tied: bool,
    },
    /// Sends a signal to a process of the container, as one from outside of its pid namespace.
    Signal {
        container: String,
        to: Target,
        signal: i32,
    },
    /// Waits until the container's first process has ended. Answered by [`Reply::Exited`], also when it ended long ago.
    Wait {
        container: String,
    },
    /// Stops all processes of the container until [`Request::Resume`]. Answered by [`Reply::Done`] once they have
    /// stopped.
    Pause {
        container: String,
    },
    Resume {
        container: String,
    },
    /// Lists the container's processes. Answered by [`Reply::Processes`].
    Processes {
        container: String,
    },
    /// Answered by [`Reply::Stats`].
    Stats {
        container: String,
    },
    /// Changes limits of the container; those that are `None` stay. Answered by [`Reply::Done`].
    Update {
        container: String,
        limits: Limits,
    },
}

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The container's first process.
    Init,
    /// One process, by its number in the container's pid namespace.
    Process(i32),
    /// The process that this connection's [`Request::Exec`] has started.
    Own,
    /// The foreground process group of the terminal that [`Target::Own`] or else the first process was given.
    Foreground,
    /// All processes of the container.
    All,
}

/// From the Sentry to a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Hello {
        version: u32,
    },
    Done,
    State {
        status: Status,
        init: i32,
    },
    /// A process runs; its number in the container's pid namespace.
    Started {
        pid: i32,
    },
    /// A process has ended: its wait(2) status.
    Exited {
        status: i32,
    },
    Processes {
        processes: Vec<ProcessInfo>,
    },
    Stats {
        stats: Box<Stats>,
    },
    /// The request could not be carried out; the connection goes on. `exit`: the exit status that a shell would give
    /// (126, 127) for a process that could not be started.
    Failed {
        errno: i32,
        exit: Option<u8>,
        text: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The first process waits for [`Request::Start`].
    Created,
    Running,
    Paused,
    Stopped,
}

/// A process of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its number, and its parent's, in the container's pid namespace.
    pub pid: i32,
    pub ppid: i32,
    pub uid: u32,
    pub threads: u32,
    /// Since the sandbox's start, in nanoseconds.
    pub started_ns: u64,
    /// User and system time, in nanoseconds.
    pub cpu_ns: u64,
    /// Resident memory, in bytes.
    pub rss: u64,
    /// Name of its terminal (`pts/0`), if it has one.
    pub tty: Option<String>,
    /// The command line; in brackets the name, of one that has none.
    pub command: Vec<String>,
}

/// What a container uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// User and system time of all its processes, ended ones included, in nanoseconds.
    pub cpu_user_ns: u64,
    pub cpu_system_ns: u64,
    /// Memory in bytes: of its processes and of its file systems in memory.
    pub memory: u64,
    pub memory_limit: Option<u64>,
    pub pids: u64,
    pub pids_limit: Option<u64>,
}

/// Limits that can change while a container runs; `None` leaves one as it is, -1 lifts it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<i64>,
    pub pids: Option<i64>,
    /// Processor time in microseconds for each period of [`Limits::cpu_period`] microseconds.
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
}
