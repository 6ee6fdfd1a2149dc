//! Tasks, thread groups, signals, credentials, descriptors, waiting.

pub mod attrs;
pub mod cred;
pub mod current;
pub mod fdtable;
#[allow(clippy::module_inception)]
pub mod kernel;
pub mod limits;
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
