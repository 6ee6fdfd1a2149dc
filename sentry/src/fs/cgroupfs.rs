//! cgroup2: the hierarchy of control groups (cgroups(7)). There is its root alone, without controllers, which cannot be
//! changed.

use super::pseudo::{Entries, Put, StaticDir, Super, TextFile};
use super::types::*;
use crate::kernel::Kernel;
use std::sync::Arc;

const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

pub fn new(kernel: &Arc<Kernel>) -> Arc<dyn Inode> {
    let sup = Super::new(kernel, CGROUP2_SUPER_MAGIC, 4096, 1);
    let fixed = |text: &str| TextFile::fixed(&sup, 0o444, text);
    let k = kernel.clone();
    let procs = TextFile::make(&sup, 0o444, move |out| {
        let pids: Vec<i32> = k.tree.lock().groups.keys().copied().collect();
        for pid in pids {
            out.i(i64::from(pid)).s("\n");
        }
        Ok(())
    });
    let k = kernel.clone();
    let threads = TextFile::make(&sup, 0o444, move |out| {
        let tids: Vec<i32> = k.tree.lock().tasks.keys().copied().collect();
        for tid in tids {
            out.i(i64::from(tid)).s("\n");
        }
        Ok(())
    });
    let entries: Entries = vec![
        (b"cgroup.controllers".to_vec(), fixed("\n")),
        (b"cgroup.max.depth".to_vec(), fixed("max\n")),
        (b"cgroup.max.descendants".to_vec(), fixed("max\n")),
        (b"cgroup.procs".to_vec(), procs),
        (b"cgroup.stat".to_vec(), fixed("nr_descendants 0\nnr_dying_descendants 0\n")),
        (b"cgroup.subtree_control".to_vec(), fixed("\n")),
        (b"cgroup.threads".to_vec(), threads),
    ];
    StaticDir::make(&sup, entries)
}
