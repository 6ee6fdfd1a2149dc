//! What the end of a session leader does to its terminal; the terminal code registers here.

use super::{Kernel, ThreadGroup};
use std::sync::{Arc, OnceLock};

type Hook = fn(&Arc<Kernel>, &Arc<ThreadGroup>);
static LEADER_EXIT: OnceLock<Hook> = OnceLock::new();

/// Sets the function that is told of each process that ends.
pub fn on_leader_exit(hook: Hook) {
    let _ = LEADER_EXIT.set(hook);
}

pub fn leader_exit(kernel: &Arc<Kernel>, group: &Arc<ThreadGroup>) {
    if let Some(h) = LEADER_EXIT.get() {
        h(kernel, group);
    }
}
