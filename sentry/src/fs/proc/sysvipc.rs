//! `/proc/sysvipc`: all System V objects, whoever may use them.

use crate::error::Result;
use crate::fs::pseudo::{Put, StaticDir, Super, TextFile};
use crate::fs::types::Inode;
use crate::kernel::Kernel;
use platform::executor::Rounds;
use std::sync::Arc;

type List = fn(&Kernel, &mut Vec<u8>);

pub(super) fn tree(sup: &Arc<Super>) -> Arc<dyn Inode> {
    let lists: [(&str, &'static str, List); 3] = [
        ("msg", "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime\n", msg),
        ("sem", "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n", sem),
        ("shm", "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n", shm),
    ];
    let files = lists.map(|(name, head, list)| {
        let kernel = sup.kernel.clone();
        let generate = move |out: &mut Vec<u8>| -> Result<()> {
            out.s(head);
            list(&kernel, out);
            Ok(())
        };
        (name.as_bytes().to_vec(), TextFile::make(sup, 0o444, generate))
    });
    StaticDir::make(sup, files.to_vec())
}

/// As the reader sees it.
fn shown(raw: &mut [u8], pids: &[usize]) {
    if let Some(task) = crate::kernel::current::get() {
        crate::ipc::show_to(&task, raw, pids);
    }
}

/// The words of a `*id64_ds` as `IPC_STAT` tells it.
struct Stat<'a>(&'a [u8]);

impl Stat<'_> {
    fn int(&self, at: usize) -> u64 {
        self.0.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, |b| u64::from(u32::from_le_bytes(b)))
    }
    fn long(&self, at: usize) -> u64 {
        self.0.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    }
    /// Key, identifier, mode.
    fn head(&self, out: &mut Vec<u8>, id: i32) {
        let line = format!("{:10} {id:10}  {:4o} ", self.int(0) as i32, self.int(20));
        out.s(&line);
    }
    /// Owner and creator.
    fn owners(&self, out: &mut Vec<u8>) {
        for at in [4, 8, 12, 16] {
            out.s(" ").dw(self.int(at), 5);
        }
    }
    fn longs(&self, out: &mut Vec<u8>, list: &[usize]) {
        for at in list {
            out.s(" ").dw(self.long(*at), 10);
        }
    }
}

fn msg(kernel: &Kernel, out: &mut Vec<u8>) {
    let mut rounds = Rounds::new();
    let Some(ns) = kernel.current_ns() else { return };
    for (id, q) in ns.ipc.msgs.all() {
        rounds.next();
        let mut raw = q.stat();
        shown(&mut raw, &[96, 100]);
        let s = Stat(&raw);
        s.head(out, id);
        s.longs(out, &[72, 80]);
        out.s(" ").dw(s.int(96), 5).s(" ").dw(s.int(100), 5);
        s.owners(out);
        s.longs(out, &[48, 56, 64]);
        out.s("\n");
    }
}

fn sem(kernel: &Kernel, out: &mut Vec<u8>) {
    let mut rounds = Rounds::new();
    let Some(ns) = kernel.current_ns() else { return };
    for (id, set) in ns.ipc.sems.all() {
        rounds.next();
        let mut raw = set.stat();
        shown(&mut raw, &[]);
        let s = Stat(&raw);
        s.head(out, id);
        s.longs(out, &[80]);
        s.owners(out);
        s.longs(out, &[48, 64]);
        out.s("\n");
    }
}

fn shm(kernel: &Kernel, out: &mut Vec<u8>) {
    let mut rounds = Rounds::new();
    let Some(ns) = kernel.current_ns() else { return };
    for (id, segment) in ns.ipc.shms.all() {
        rounds.next();
        let mut raw = segment.stat();
        shown(&mut raw, &[80, 84]);
        let s = Stat(&raw);
        s.head(out, id);
        out.s(" ").dw(s.long(48), 20).s(" ").dw(s.int(80), 5).s(" ").dw(s.int(84), 5).s("  ").dw(s.long(88), 5);
        s.owners(out);
        s.longs(out, &[56, 64, 72]);
        // What is resident is the host's to know; all of it counts, as for SHM_INFO.
        let resident = s.long(48).next_multiple_of(platform::PAGE_SIZE);
        out.s(" ").dw(resident, 21).s(" ").dw(0, 21).s("\n");
    }
}
