//! Tasks, thread groups, signals, credentials, descriptors, waiting.

pub mod attrs;
pub mod cred;
pub mod current;
pub mod fdtable;
pub mod tty_hooks;
pub mod send;
pub mod run;
pub mod init;
pub mod futex;
pub mod fork;
pub mod exit;
pub mod exec;
pub mod deliver;
#[allow(clippy::module_inception)]
pub mod kernel;
pub mod limits;
pub mod pidfd;
pub mod process;
pub mod seccomp;
pub mod signal;
pub mod task;
pub mod wait;

pub use cred::Cred;
pub use fdtable::FdTable;
pub use kernel::Kernel;
pub use process::ThreadGroup;
pub use task::Task;
