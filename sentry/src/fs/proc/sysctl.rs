//! `/proc/sys`: settings. What the guest kernel acts upon is read from and written to where it is kept; what describes a policy of the
//! guest kernel that cannot change is read-only (writing answers `EACCES`... as for a setting without a handler); what only tunes a Linux
//! mechanism that does not exist here is remembered, so that a program that sets it and reads it back goes on.

use crate::error::{Errno, Result};
use crate::fs::file;
use crate::fs::lease::BREAK_TIME;
use crate::fs::pseudo::{parse_int, Put, StaticDir, Super, TextFile};
use crate::fs::types::Inode;
use crate::fs::vfs::perm;
use crate::ipc::IpcNamespace;
use crate::kernel::cred::{CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN};
use crate::kernel::kernel::{PID_MAX, RELEASE, VERSION};
use crate::kernel::ns::NsKind;
use crate::kernel::{current, fdtable, users, Kernel};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// A node of the table.
enum Node {
    /// Read-only text.
    Text(&'static str),
    /// Read-only, generated.
    Gen(fn(&Kernel, &mut Vec<u8>)),
    /// Remembered number with its bounds.
    Int(i64, i64, i64),
    /// A limit that is acted upon.
    Count(&'static AtomicU64),
    /// A level up to this one, which is acted upon.
    Level(&'static AtomicU64, i64),
    /// Remembered text.
    Keep(&'static str),
    /// Kept elsewhere.
    Live(fn(&Kernel, &mut Vec<u8>), fn(&Kernel, &[u8]) -> Result<()>),
}

use Node::*;

const MAX: i64 = i32::MAX as i64;

/// Path below `/proc/sys`, and what is there.
const TABLE: &[(&str, Node)] = &[
    ("abi/vsyscall32", Int(1, 0, MAX)),
    ("debug/exception-trace", Int(1, 0, MAX)),
    ("fs/aio-max-nr", Text("65536")),
    ("fs/aio-nr", Gen(aio_nr)),
    ("fs/dentry-state", Text("0\t0\t45\t0\t0\t0")),
    ("fs/epoll/max_user_watches", Count(&users::MAX_EPOLL_WATCHES)),
    ("fs/file-max", Gen(file_max)),
    ("fs/file-nr", Gen(file_nr)),
    ("fs/inode-nr", Text("0\t0")),
    ("fs/inode-state", Text("0\t0\t0\t0\t0\t0\t0")),
    ("fs/inotify/max_queued_events", Int(16384, 0, MAX)),
    ("fs/inotify/max_user_instances", Count(&users::MAX_INOTIFY_INSTANCES)),
    ("fs/inotify/max_user_watches", Count(&users::MAX_INOTIFY_WATCHES)),
    ("fs/lease-break-time", Live(lease_time, set_lease_time)),
    ("fs/leases-enable", Int(1, 0, MAX)),
    ("fs/mount-max", Text("100000")),
    ("fs/mqueue/msg_default", Int(10, 1, 65536)),
    ("fs/mqueue/msg_max", Int(10, 1, 65536)),
    ("fs/mqueue/msgsize_default", Int(8192, 128, 16 << 20)),
    ("fs/mqueue/msgsize_max", Int(8192, 128, 16 << 20)),
    ("fs/mqueue/queues_max", Int(256, 0, MAX)),
    ("fs/nr_open", Gen(nr_open)),
    ("fs/overflowgid", Text("65534")),
    ("fs/overflowuid", Text("65534")),
    ("fs/pipe-max-size", Int(1_048_576, 4096, MAX)),
    ("fs/pipe-user-pages-hard", Int(0, 0, i64::MAX)),
    ("fs/pipe-user-pages-soft", Count(&users::PIPE_USER_PAGES)),
    ("fs/protected_fifos", Level(&perm::PROTECTED_FIFOS, 2)),
    ("fs/protected_hardlinks", Level(&perm::PROTECTED_HARDLINKS, 1)),
    ("fs/protected_regular", Level(&perm::PROTECTED_REGULAR, 2)),
    ("fs/protected_symlinks", Level(&perm::PROTECTED_SYMLINKS, 1)),
    ("fs/suid_dumpable", Int(0, 0, 2)),
    ("kernel/arch", Text("x86_64")),
    ("kernel/auto_msgmni", Text("0")),
    ("kernel/cap_last_cap", Text("40")),
    ("kernel/core_pattern", Keep("core")),
    ("kernel/core_pipe_limit", Int(0, 0, MAX)),
    ("kernel/core_uses_pid", Int(0, 0, 1)),
    ("kernel/ctrl-alt-del", Int(0, 0, 1)),
    ("kernel/dmesg_restrict", Int(0, 0, 1)),
    ("kernel/domainname", Live(domainname, set_domainname)),
    ("kernel/hostname", Live(hostname, set_hostname)),
    ("kernel/kptr_restrict", Int(0, 0, 2)),
    ("kernel/msg_next_id", Text("-1")),
    ("kernel/msgmax", Int(8192, 0, MAX)),
    ("kernel/msgmnb", Int(16384, 0, MAX)),
    ("kernel/msgmni", Live(msgmni, set_msgmni)),
    ("kernel/ngroups_max", Text("65536")),
    ("kernel/ns_last_pid", Live(last_pid, set_last_pid)),
    ("kernel/osrelease", Text(RELEASE)),
    ("kernel/ostype", Text("Linux")),
    ("kernel/overflowgid", Text("65534")),
    ("kernel/overflowuid", Text("65534")),
    ("kernel/panic", Int(0, -MAX, MAX)),
    ("kernel/panic_on_oops", Int(0, 0, MAX)),
    ("kernel/pid_max", Gen(pid_max)),
    ("kernel/poweroff_cmd", Keep("/sbin/poweroff")),
    ("kernel/print-fatal-signals", Int(0, 0, MAX)),
    ("kernel/printk", Keep("4\t4\t1\t7")),
    ("kernel/pty/max", Text("4096")),
    ("kernel/pty/nr", Gen(pty_nr)),
    ("kernel/pty/reserve", Int(1024, 0, MAX)),
    ("kernel/random/boot_id", Gen(boot_id)),
    ("kernel/random/entropy_avail", Text("256")),
    ("kernel/random/poolsize", Text("256")),
    ("kernel/random/urandom_min_reseed_secs", Int(60, 0, MAX)),
    ("kernel/random/uuid", Gen(uuid)),
    ("kernel/random/write_wakeup_threshold", Int(256, 0, MAX)),
    ("kernel/randomize_va_space", Int(2, 0, 2)),
    ("kernel/sched_autogroup_enabled", Int(0, 0, 1)),
    ("kernel/sched_rr_timeslice_ms", Int(100, -MAX, MAX)),
    ("kernel/sched_rt_period_us", Int(1_000_000, 1, MAX)),
    ("kernel/sched_rt_runtime_us", Int(950_000, -1, MAX)),
    ("kernel/seccomp/actions_avail", Text("kill_process kill_thread trap errno user_notif trace log allow")),
    ("kernel/sem", Keep("32000\t1024000000\t500\t32000")),
    ("kernel/sem_next_id", Text("-1")),
    ("kernel/shm_next_id", Text("-1")),
    ("kernel/shm_rmid_forced", Int(0, 0, 1)),
    ("kernel/shmall", Keep("18446744073692774399")),
    ("kernel/shmmax", Live(shmmax, set_shmmax)),
    ("kernel/shmmni", Live(shmmni, set_shmmni)),
    ("kernel/sysctl_writes_strict", Int(1, -1, 1)),
    ("kernel/sysrq", Text("0")),
    ("kernel/tainted", Text("0")),
    ("kernel/threads-max", Text("192730")),
    ("kernel/version", Text(VERSION)),
    ("kernel/watchdog", Text("0")),
    ("net/core/default_qdisc", Text("pfifo_fast")),
    ("net/core/netdev_max_backlog", Int(1000, 0, MAX)),
    ("net/core/optmem_max", Int(131_072, 0, MAX)),
    ("net/core/rmem_default", Int(212_992, 2304, MAX)),
    ("net/core/rmem_max", Int(4_194_304, 2304, MAX)),
    ("net/core/somaxconn", Int(4096, 0, MAX)),
    ("net/core/wmem_default", Int(212_992, 4608, MAX)),
    ("net/core/wmem_max", Int(4_194_304, 4608, MAX)),
    ("net/ipv4/conf/all/forwarding", Int(0, 0, 1)),
    ("net/ipv4/conf/default/forwarding", Int(0, 0, 1)),
    ("net/ipv4/conf/lo/forwarding", Int(0, 0, 1)),
    ("net/ipv4/icmp_echo_ignore_all", Int(0, 0, 1)),
    ("net/ipv4/ip_default_ttl", Int(64, 1, 255)),
    ("net/ipv4/ip_forward", Int(0, 0, 1)),
    ("net/ipv4/ip_local_port_range", Keep("32768\t60999")),
    ("net/ipv4/ip_local_reserved_ports", Keep("")),
    ("net/ipv4/ip_nonlocal_bind", Int(0, 0, 1)),
    ("net/ipv4/ip_unprivileged_port_start", Int(1024, 0, 65535)),
    ("net/ipv4/ping_group_range", Keep("1\t0")),
    ("net/ipv4/tcp_allowed_congestion_control", Text("reno cubic")),
    ("net/ipv4/tcp_available_congestion_control", Text("reno cubic")),
    ("net/ipv4/tcp_congestion_control", Text("cubic")),
    ("net/ipv4/tcp_fin_timeout", Int(60, 0, MAX)),
    ("net/ipv4/tcp_keepalive_intvl", Int(75, 0, MAX)),
    ("net/ipv4/tcp_keepalive_probes", Int(9, 0, 255)),
    ("net/ipv4/tcp_keepalive_time", Int(7200, 0, MAX)),
    ("net/ipv4/tcp_max_syn_backlog", Int(2048, 0, MAX)),
    ("net/ipv4/tcp_mem", Keep("287901\t383868\t575802")),
    ("net/ipv4/tcp_rmem", Keep("4096\t131072\t6291456")),
    ("net/ipv4/tcp_sack", Int(1, 0, 1)),
    ("net/ipv4/tcp_syn_retries", Int(6, 1, 127)),
    ("net/ipv4/tcp_timestamps", Int(1, 0, 2)),
    ("net/ipv4/tcp_tw_reuse", Int(2, 0, 2)),
    ("net/ipv4/tcp_window_scaling", Int(1, 0, 1)),
    ("net/ipv4/tcp_wmem", Keep("4096\t16384\t4194304")),
    ("net/ipv6/conf/all/disable_ipv6", Int(0, 0, 1)),
    ("net/ipv6/conf/default/disable_ipv6", Int(0, 0, 1)),
    ("net/ipv6/conf/lo/disable_ipv6", Int(0, 0, 1)),
    ("net/ipv6/bindv6only", Int(0, 0, 1)),
    ("net/unix/max_dgram_qlen", Int(10, 0, MAX)),
    ("user/max_cgroup_namespaces", Count(NsKind::Cgroup.limit())),
    ("user/max_ipc_namespaces", Count(NsKind::Ipc.limit())),
    ("user/max_mnt_namespaces", Count(NsKind::Mnt.limit())),
    ("user/max_net_namespaces", Count(NsKind::Net.limit())),
    ("user/max_pid_namespaces", Count(NsKind::Pid.limit())),
    ("user/max_time_namespaces", Count(NsKind::Time.limit())),
    ("user/max_user_namespaces", Count(NsKind::User.limit())),
    ("user/max_uts_namespaces", Count(NsKind::Uts.limit())),
    ("vm/dirty_background_ratio", Int(10, 0, 100)),
    ("vm/dirty_bytes", Int(0, 0, i64::MAX)),
    ("vm/dirty_expire_centisecs", Int(3000, 0, MAX)),
    ("vm/dirty_ratio", Int(20, 0, 100)),
    ("vm/dirty_writeback_centisecs", Int(500, 0, MAX)),
    ("vm/drop_caches", Int(0, 0, 4)),
    ("vm/legacy_va_layout", Int(0, 0, 1)),
    ("vm/max_map_count", Int(65530, 0, MAX)),
    ("vm/memfd_noexec", Text("0")),
    ("vm/min_free_kbytes", Int(67584, 0, MAX)),
    ("vm/mmap_min_addr", Gen(mmap_min_addr)),
    ("vm/mmap_rnd_bits", Int(28, 28, 32)),
    ("vm/oom_dump_tasks", Int(1, 0, 1)),
    ("vm/oom_kill_allocating_task", Int(0, 0, 1)),
    ("vm/overcommit_kbytes", Int(0, 0, i64::MAX)),
    ("vm/overcommit_memory", Int(0, 0, 2)),
    ("vm/overcommit_ratio", Int(50, 0, MAX)),
    ("vm/page-cluster", Int(3, 0, 31)),
    ("vm/panic_on_oom", Int(0, 0, 2)),
    ("vm/swappiness", Int(60, 0, 200)),
    ("vm/user_reserve_kbytes", Int(131_072, 0, i64::MAX)),
    ("vm/vfs_cache_pressure", Int(100, 0, MAX)),
    ("vm/zone_reclaim_mode", Int(0, 0, MAX)),
];

fn lease_time(_: &Kernel, out: &mut Vec<u8>) {
    out.d(u64::from(BREAK_TIME.load(Ordering::Relaxed)));
}

fn set_lease_time(_: &Kernel, data: &[u8]) -> Result<()> {
    let n = parse_int(data).and_then(|n| u32::try_from(n).map_err(|_| Errno::EINVAL))?;
    BREAK_TIME.store(n, Ordering::Relaxed);
    Ok(())
}

fn file_max(_: &Kernel, out: &mut Vec<u8>) {
    out.d(file::FILE_MAX);
}
fn file_nr(_: &Kernel, out: &mut Vec<u8>) {
    out.d(file::count());
    out.s("\t0\t");
    out.d(file::FILE_MAX);
}
/// Looks at the caller's IPC namespace.
fn ipc<T: Default>(k: &Kernel, look: impl FnOnce(&IpcNamespace) -> T) -> T {
    k.current_ns().map(|ns| look(&ns.ipc)).unwrap_or_default()
}

fn msgmni(k: &Kernel, out: &mut Vec<u8>) {
    out.d(ipc(k, |i| i.msgs.limit() as u64));
}
fn set_msgmni(k: &Kernel, text: &[u8]) -> Result<()> {
    let n = parse_int(text)?;
    k.current_ns().ok_or(Errno::ESRCH)?.ipc.msgs.set_limit(n)
}
fn shmmax(k: &Kernel, out: &mut Vec<u8>) {
    out.d(ipc(k, |i| i.shmmax.load(Ordering::Relaxed)));
}
fn set_shmmax(k: &Kernel, text: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    let n: u64 = text.trim_end_matches('\0').trim().parse().map_err(|_| Errno::EINVAL)?;
    ipc(k, |i| i.shmmax.store(n, Ordering::Relaxed));
    Ok(())
}
fn shmmni(k: &Kernel, out: &mut Vec<u8>) {
    out.d(ipc(k, |i| i.shms.limit() as u64));
}
fn set_shmmni(k: &Kernel, text: &[u8]) -> Result<()> {
    let n = parse_int(text)?;
    k.current_ns().ok_or(Errno::ESRCH)?.ipc.shms.set_limit(n)
}
fn aio_nr(k: &Kernel, out: &mut Vec<u8>) {
    out.d(k.aio_nr.load(std::sync::atomic::Ordering::Relaxed) as u64);
}
fn nr_open(_: &Kernel, out: &mut Vec<u8>) {
    out.d(fdtable::NR_OPEN as u64);
}
fn last_pid(k: &Kernel, out: &mut Vec<u8>) {
    let ns = current::get().map(|t| t.pid_ns()).filter(|ns| !ns.is_initial());
    let last = ns.map_or_else(|| k.tree.lock().last_pid, |ns| ns.last());
    out.d(last as u64);
}
/// For checkpoint and restore: the next task of the caller's namespace gets the number after this one.
fn set_last_pid(k: &Kernel, text: &[u8]) -> Result<()> {
    let task = current::get().ok_or(Errno::EPERM)?;
    let (cred, ns) = (task.cred(), task.pid_ns());
    if !cred.capable_in(&ns.owner(), CAP_SYS_ADMIN) && !cred.capable_in(&ns.owner(), CAP_CHECKPOINT_RESTORE) {
        return Err(Errno::EPERM);
    }
    let last = i32::try_from(parse_int(text)?).ok().filter(|n| (0..PID_MAX).contains(n)).ok_or(Errno::EINVAL)?;
    if ns.is_initial() {
        k.tree.lock().last_pid = last;
    } else {
        ns.set_last(last);
    }
    Ok(())
}
fn pid_max(_: &Kernel, out: &mut Vec<u8>) {
    out.d(PID_MAX as u64);
}
fn pty_nr(k: &Kernel, out: &mut Vec<u8>) {
    out.d(k.ttys.pty_count() as u64);
}
fn mmap_min_addr(_: &Kernel, out: &mut Vec<u8>) {
    out.d(platform::GUEST_MIN);
}

/// A random (version 4) UUID.
fn format_uuid(mut b: [u8; 16], out: &mut Vec<u8>) {
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    for (i, byte) in b.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.s("-");
        }
        out.x(u64::from(*byte), 2);
    }
}
fn uuid(_: &Kernel, out: &mut Vec<u8>) {
    let mut b = [0u8; 16];
    platform::host::getrandom(&mut b);
    format_uuid(b, out);
}
fn boot_id(k: &Kernel, out: &mut Vec<u8>) {
    format_uuid(k.boot_id, out);
}

fn hostname(k: &Kernel, out: &mut Vec<u8>) {
    if let Some(ns) = k.current_ns() {
        out.s(&ns.uts.names.read().hostname);
    }
}
fn domainname(k: &Kernel, out: &mut Vec<u8>) {
    if let Some(ns) = k.current_ns() {
        out.s(&ns.uts.names.read().domainname);
    }
}
/// A name as `echo` writes it, at most `__NEW_UTS_LEN` bytes.
fn uts_name(text: &[u8]) -> Result<String> {
    if current::get().is_some_and(|t| !t.cred().capable_in(&t.ns().uts.common.owner(), CAP_SYS_ADMIN)) {
        return Err(Errno::EPERM);
    }
    let end = text.iter().position(|&c| c == b'\n' || c == 0).unwrap_or(text.len()).min(64);
    Ok(String::from_utf8_lossy(&text[..end]).into_owned())
}
fn set_hostname(k: &Kernel, text: &[u8]) -> Result<()> {
    let ns = k.current_ns().ok_or(Errno::ESRCH)?;
    ns.uts.names.write().hostname = uts_name(text)?;
    Ok(())
}
fn set_domainname(k: &Kernel, text: &[u8]) -> Result<()> {
    let ns = k.current_ns().ok_or(Errno::ESRCH)?;
    ns.uts.names.write().domainname = uts_name(text)?;
    Ok(())
}

fn file(sup: &Arc<Super>, node: &'static Node) -> Arc<dyn Inode> {
    let kernel = sup.kernel.clone();
    match node {
        Text(t) => TextFile::make(sup, 0o444, move |out| {
            out.s(t).s("\n");
            Ok(())
        }),
        Gen(f) => TextFile::make(sup, 0o444, move |out| {
            f(&kernel, out);
            out.s("\n");
            Ok(())
        }),
        Live(get, set) => {
            let k = kernel.clone();
            TextFile::writable(
                sup,
                0o644,
                move |out| {
                    get(&kernel, out);
                    out.s("\n");
                    Ok(())
                },
                move |text| set(&k, text),
            )
        }
        &Count(n) => number(sup, n, MAX),
        &Level(n, max) => number(sup, n, max),
        &Int(start, min, max) => {
            let value = Arc::new(Mutex::new(start));
            let v = value.clone();
            TextFile::writable(
                sup,
                0o644,
                move |out| {
                    out.i(*value.lock()).s("\n");
                    Ok(())
                },
                move |text| {
                    let n = parse_int(text)?;
                    if !(min..=max).contains(&n) {
                        return Err(Errno::EINVAL);
                    }
                    *v.lock() = n;
                    Ok(())
                },
            )
        }
        Keep(start) => {
            let value = Arc::new(Mutex::new(start.as_bytes().to_vec()));
            let v = value.clone();
            TextFile::writable(
                sup,
                0o644,
                move |out| {
                    out.b(&value.lock()).s("\n");
                    Ok(())
                },
                move |text| {
                    let end = text.iter().position(|&c| c == b'\n' || c == 0).unwrap_or(text.len());
                    *v.lock() = text[..end].to_vec();
                    Ok(())
                },
            )
        }
    }
}

fn number(sup: &Arc<Super>, n: &'static AtomicU64, max: i64) -> Arc<dyn Inode> {
    TextFile::writable(
        sup,
        0o644,
        move |out| {
            out.d(n.load(Ordering::Relaxed)).s("\n");
            Ok(())
        },
        move |text| {
            let new = parse_int(text)?;
            if !(0..=max).contains(&new) {
                return Err(Errno::EINVAL);
            }
            n.store(new as u64, Ordering::Relaxed);
            Ok(())
        },
    )
}

/// Directories of the table, from the bottom up.
fn dir(sup: &Arc<Super>, rows: &[(&'static str, &'static Node)]) -> Arc<dyn Inode> {
    let mut below: BTreeMap<&'static str, Vec<(&'static str, &'static Node)>> = BTreeMap::new();
    let mut entries: BTreeMap<Vec<u8>, Arc<dyn Inode>> = BTreeMap::new();
    for &(path, node) in rows {
        match path.split_once('/') {
            Some((name, rest)) => below.entry(name).or_default().push((rest, node)),
            None => {
                entries.insert(path.into(), file(sup, node));
            }
        }
    }
    for (name, rows) in below {
        entries.insert(name.into(), dir(sup, &rows));
    }
    StaticDir::make(sup, entries.into_iter().collect())
}

pub(super) fn tree(sup: &Arc<Super>) -> Arc<dyn Inode> {
    let rows: Vec<(&'static str, &'static Node)> = TABLE.iter().map(|(p, n)| (*p, n)).collect();
    dir(sup, &rows)
}
