//! The sandbox's first process: its end is the sandbox's.

use super::signal::SigInfo;
use super::Kernel;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// The first process has ended: ends all others.
pub fn kill_others(kernel: &Arc<Kernel>) {
    kernel.ending.store(true, Ordering::SeqCst);
    let groups: Vec<_> = kernel.tree.lock().groups.values().cloned().collect();
    for g in groups.iter().filter(|g| g.pid != kernel.first_pid()) {
        super::exit::kill_group(g, libc::SIGKILL);
    }
}

/// The calling shell continues the sandbox as its job: sends SIGCONT to the first process's process group.
pub fn resume_job(kernel: &Kernel) {
    if let Some(pgid) = kernel.group(kernel.first_pid()).map(|g| g.pgid()) {
        let _ = super::send::to_pgrp(kernel, pgid, SigInfo::kernel(libc::SIGCONT));
    }
}

/// Sends a signal from outside the sandbox to the first process.
pub fn signal(kernel: &Kernel, sig: i32) {
    if let Some(g) = kernel.group(kernel.first_pid()) {
        let _ = super::send::from_outside(&g, SigInfo::user(sig, 0, 0));
    }
}
