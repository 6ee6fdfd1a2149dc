//! Files of the root of procfs: what concerns the whole system.

use super::cpu;
use super::status::TICK;
use crate::error::Result;
use crate::fs::pseudo::{Put, StaticDir, Super, Symlink, TextFile};
use crate::fs::types::Inode;
use crate::kernel::kernel::{RELEASE, VERSION};
use crate::kernel::Kernel;
use crate::time::cpu::group_time;
use platform::executor::Rounds;
use std::sync::Arc;

type Generate = fn(&Kernel, &mut Vec<u8>) -> Result<()>;

/// The entries of the root but for processes, `self` and `sys`.
pub(super) fn entries(sup: &Arc<Super>) -> Vec<(Vec<u8>, Arc<dyn Inode>)> {
    // The counter's rate is measured from now on.
    cpu::tsc_khz();
    let files: &[(&str, Generate)] = &[
        ("cgroups", cgroups),
        ("consoles", empty),
        ("cpuinfo", cpu::cpuinfo),
        ("crypto", empty),
        ("devices", devices),
        ("diskstats", empty),
        ("filesystems", filesystems),
        ("interrupts", interrupts),
        ("loadavg", loadavg),
        ("locks", empty),
        ("meminfo", meminfo),
        ("misc", empty),
        ("modules", empty),
        ("partitions", partitions),
        ("softirqs", softirqs),
        ("stat", stat),
        ("swaps", swaps),
        ("uptime", uptime),
        ("version", version),
        ("vmstat", vmstat),
        ("zoneinfo", empty),
    ];
    let mut out: Vec<(Vec<u8>, Arc<dyn Inode>)> = Vec::new();
    let node = |generate: Generate| {
        let kernel = sup.kernel.clone();
        TextFile::make(sup, 0o444, move |out| generate(&kernel, out))
    };
    for &(name, generate) in files {
        out.push((name.into(), node(generate)));
    }
    out.push((b"cmdline".to_vec(), TextFile::fixed(sup, 0o444, "BOOT_IMAGE=/vmlinuz-runsc-rs quiet\n")));
    out.push((b"mounts".to_vec(), Symlink::make(sup, "self/mounts")));
    out.push((b"net".to_vec(), Symlink::make(sup, "self/net")));
    let pressure =
        ["cpu", "io", "memory"].map(|n| (n.as_bytes().to_vec(), TextFile::fixed(sup, 0o444, PRESSURE))).to_vec();
    out.push((b"pressure".to_vec(), StaticDir::make(sup, pressure)));
    out.push((b"sysvipc".to_vec(), super::sysvipc::tree(sup)));
    let tty = vec![(b"drivers".to_vec(), TextFile::fixed(sup, 0o444, TTY_DRIVERS))];
    out.push((b"tty".to_vec(), StaticDir::make(sup, tty)));
    for name in ["bus", "driver", "fs", "irq"] {
        out.push((name.into(), StaticDir::make(sup, Vec::new())));
    }
    out
}

const PRESSURE: &str =
    "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";

const TTY_DRIVERS: &str = "/dev/tty             /dev/tty        5       0 system:/dev/tty
/dev/console         /dev/console    5       1 system:console
/dev/ptmx            /dev/ptmx       5       2 system
pty_slave            /dev/pts      136 0-1048575 pty:slave
pty_master           /dev/ptm      128 0-1048575 pty:master
";

fn empty(_: &Kernel, _: &mut Vec<u8>) -> Result<()> {
    Ok(())
}

/// ns since the sandbox started.
pub(super) fn uptime_ns(kernel: &Kernel) -> u64 {
    platform::executor::now_ns().saturating_sub(kernel.boot_monotonic_ns)
}

/// Processor time of all processes, alive or gone: user, system (ns).
fn busy(kernel: &Kernel) -> (u64, u64) {
    let groups: Vec<_> = kernel.tree.lock().groups.values().cloned().collect();
    let (mut user, mut system) = (0u64, 0u64);
    let mut rounds = Rounds::new();
    for g in groups {
        rounds.next();
        let (u, s) = group_time(&g);
        // What init has reaped counts with init; others count their children's until they are reaped themselves.
        let r = g.links.lock();
        user += u + r.child_utime;
        system += s + r.child_stime;
    }
    (user, system)
}

fn uptime(kernel: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    let up = uptime_ns(kernel);
    let (u, s) = busy(kernel);
    let idle = (up * cpu::count(kernel) as u64).saturating_sub(u + s);
    let centi = |out: &mut Vec<u8>, ns: u64| {
        out.d(ns / 1_000_000_000).s(".").d(ns / 100_000_000 % 10).d(ns / 10_000_000 % 10);
    };
    centi(out, up);
    out.s(" ");
    centi(out, idle);
    out.s("\n");
    Ok(())
}

fn stat(kernel: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    let cpus = cpu::count(kernel) as u64;
    let up = uptime_ns(kernel);
    let (user, system) = busy(kernel);
    let idle = (up * cpus).saturating_sub(user + system);
    let line = |out: &mut Vec<u8>, parts: u64| {
        out.d(user / parts / TICK).s(" 0 ").d(system / parts / TICK).s(" ").d(idle / parts / TICK).s(" 0 0 0 0 0 0\n");
    };
    out.s("cpu  ");
    line(out, 1);
    for n in 0..cpus {
        out.s("cpu").d(n).s(" ");
        line(out, cpus);
    }
    let (mut running, mut last) = (0u64, 0);
    {
        let tree = kernel.tree.lock();
        for t in tree.tasks.values() {
            running += u64::from(!t.asleep());
        }
        last = tree.last_pid.max(last);
    }
    out.s("intr 0\nctxt 0\nbtime ").d(kernel.boot_realtime_ns / 1_000_000_000);
    out.s("\nprocesses ").d(last as u64).s("\nprocs_running ").d(running.max(1));
    out.s("\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n");
    Ok(())
}

fn loadavg(kernel: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    let tree = kernel.tree.lock();
    let running = tree.tasks.values().filter(|t| !t.asleep()).count();
    out.s("0.00 0.00 0.00 ").d(running.max(1) as u64).s("/").d(tree.tasks.len() as u64);
    out.s(" ").d(tree.last_pid as u64).s("\n");
    Ok(())
}

fn version(_: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    out.s("Linux version ").s(RELEASE).s(" (runsc-rs@sandbox) ").s(VERSION).s("\n");
    Ok(())
}

/// Memory of the machine: total, free, and what files take up and could give back (bytes).
pub(super) fn memory() -> (u64, u64, u64) {
    match nix::sys::sysinfo::sysinfo() {
        Ok(s) => (s.ram_total(), s.ram_unused(), 0),
        Err(_) => (1 << 30, 1 << 29, 0),
    }
}

fn meminfo(_: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    let (total, free, cached) = memory();
    let used = total.saturating_sub(free);
    let rows: &[(&str, u64)] = &[
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", free + cached),
        ("Buffers", 0),
        ("Cached", cached),
        ("SwapCached", 0),
        ("Active", used),
        ("Inactive", cached),
        ("Active(anon)", used),
        ("Inactive(anon)", 0),
        ("Active(file)", 0),
        ("Inactive(file)", cached),
        ("Unevictable", 0),
        ("Mlocked", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Zswap", 0),
        ("Zswapped", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", used),
        ("Mapped", 0),
        ("Shmem", 0),
        ("KReclaimable", 0),
        ("Slab", 0),
        ("SReclaimable", 0),
        ("SUnreclaim", 0),
        ("KernelStack", 0),
        ("PageTables", 0),
        ("SecPageTables", 0),
        ("NFS_Unstable", 0),
        ("Bounce", 0),
        ("WritebackTmp", 0),
        ("CommitLimit", total / 2),
        ("Committed_AS", used),
        ("VmallocTotal", 34_359_738_367 << 10),
        ("VmallocUsed", 0),
        ("VmallocChunk", 0),
        ("Percpu", 0),
        ("AnonHugePages", 0),
        ("ShmemHugePages", 0),
        ("ShmemPmdMapped", 0),
        ("FileHugePages", 0),
        ("FilePmdMapped", 0),
    ];
    let label = |out: &mut Vec<u8>, name: &str, width: usize, n: u64| {
        let start = out.len();
        out.s(name).s(":");
        let pad = 16usize.saturating_sub(out.len() - start);
        out.sp(pad).dw(n, width);
    };
    for &(name, bytes) in rows {
        label(out, name, 8, bytes >> 10);
        out.s(" kB\n");
    }
    for name in ["HugePages_Total", "HugePages_Free", "HugePages_Rsvd", "HugePages_Surp"] {
        label(out, name, 8, 0);
        out.s("\n");
    }
    for (name, kb) in [("Hugepagesize", 2048), ("Hugetlb", 0), ("DirectMap4k", 0), ("DirectMap2M", total >> 10)] {
        label(out, name, 8, kb);
        out.s(" kB\n");
    }
    Ok(())
}

fn vmstat(_: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    let (total, free, cached) = memory();
    let used = (total - free.min(total)) >> 12;
    let rows = [
        ("nr_free_pages", free >> 12),
        ("nr_inactive_anon", 0),
        ("nr_active_anon", used),
        ("nr_inactive_file", cached >> 12),
        ("nr_active_file", 0),
        ("nr_unevictable", 0),
        ("nr_anon_pages", used),
        ("nr_mapped", 0),
        ("nr_file_pages", cached >> 12),
        ("nr_dirty", 0),
        ("nr_writeback", 0),
        ("nr_shmem", 0),
        ("pgpgin", 0),
        ("pgpgout", 0),
        ("pswpin", 0),
        ("pswpout", 0),
        ("pgfault", 0),
        ("pgmajfault", 0),
        ("oom_kill", 0),
    ];
    for (name, n) in rows {
        out.s(name).s(" ").d(n).s("\n");
    }
    Ok(())
}

/// Kinds of file systems, in the order of sysfs(2).
pub const FILESYSTEMS: [&str; 12] =
    ["sysfs", "tmpfs", "proc", "devtmpfs", "cgroup2", "sockfs", "pipefs", "ramfs", "devpts", "mqueue", "overlay", "9p"];

fn filesystems(_: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    for name in FILESYSTEMS {
        out.s("nodev\t").s(name).s("\n");
    }
    Ok(())
}

fn devices(_: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    out.s("Character devices:\n  1 mem\n  4 tty\n  5 /dev/tty\n  5 /dev/console\n  5 /dev/ptmx\n128 ptm\n136 pts\n\n");
    out.s("Block devices:\n");
    Ok(())
}

fn partitions(_: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    out.s("major minor  #blocks  name\n\n");
    Ok(())
}

fn swaps(_: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    out.s("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n");
    Ok(())
}

fn cgroups(_: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    out.s("#subsys_name\thierarchy\tnum_cgroups\tenabled\n");
    Ok(())
}

fn interrupts(kernel: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    out.sp(11);
    for n in 0..cpu::count(kernel) as u64 {
        let at = out.len();
        out.s("CPU").d(n);
        let pad = 11usize.saturating_sub(out.len() - at);
        out.sp(pad);
    }
    out.s("\n");
    Ok(())
}

fn softirqs(kernel: &Kernel, out: &mut Vec<u8>) -> Result<()> {
    out.sp(20);
    for n in 0..cpu::count(kernel) as u64 {
        out.s("CPU").d(n).sp(7);
    }
    out.s("\n");
    for name in ["HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"] {
        out.sp(12usize.saturating_sub(name.len())).s(name).s(":");
        for _ in 0..cpu::count(kernel) {
            out.dw(0, 11);
        }
        out.s("\n");
    }
    Ok(())
}
