//! The Sentry: a Linux kernel in user space, in safe Rust.
//!
//! The tree follows Linux's own: [`arch`] (registers, signal frames, ELF), [`kernel`] (tasks, signals,
//! credentials, waiting), [`mm`] (address spaces, guest memory), [`fs`] (VFS and file systems), [`net`]
//! (sockets), [`ipc`], [`time`], and [`syscalls`], the table that defines dispatch, `--strace` and the
//! compatibility page.
//!
//! # Lock order (outermost first)
//! `Kernel::tree` → `ThreadGroup` locks → `Task` locks → `Mm` → `FileText` → VFS rename lock → table of mounts → dentry →
//! inode → file → wait queue. No lock is held over an `.await`.
#![forbid(unsafe_code)]

pub mod abi;
pub mod arch;
pub mod container;
pub mod error;
pub mod fs;
pub mod ipc;
pub mod kernel;
pub mod mm;
pub mod net;
pub mod syscalls;
pub mod time;
