//! Tasks, thread groups, signals, credentials, descriptors, waiting.

pub mod aio;
pub mod attrs;
pub mod cached_ids;
pub mod cgroup;
pub mod cred;
pub mod current;
pub mod deliver;
pub mod exec;
pub mod exec_guard;
pub mod exit;
pub mod fdtable;
pub mod fork;
pub mod futex;
pub mod futex_pi;
pub mod init;
#[allow(clippy::module_inception)]
pub mod kernel;
pub mod limits;
pub mod ns;
pub mod nsproxy;
pub mod pgrp;
pub mod pid_ns;
pub mod pidfd;
pub mod process;
pub mod robust;
pub mod run;
pub mod sched;
pub mod seccomp;
pub mod send;
pub mod signal;
pub mod stats;
pub mod strings;
pub mod task;
pub mod tty;
pub mod user_ns;
pub mod users;
pub mod wait;

pub use cred::Cred;
pub use fdtable::FdTable;
pub use kernel::Kernel;
pub use process::ThreadGroup;
pub use task::Task;
