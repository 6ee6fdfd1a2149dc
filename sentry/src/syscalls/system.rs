//! The system as a whole: uname(2), sysinfo(2), getrandom(2), and calls reserved to the administrator of the
//! machine.

use super::arg::*;
use super::Ctx;
use crate::error::{Errno, Result, SysResult};
use crate::kernel::cred::{CAP_SYSLOG, CAP_SYS_ADMIN, CAP_SYS_BOOT};
use crate::kernel::kernel::{RELEASE, VERSION};
use crate::kernel::wait::Turn;
use crate::kernel::Task;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// `__NEW_UTS_LEN`.
const UTS_LEN: usize = 64;
const PER_LINUX32: u32 = 8;
/// Personality `UNAME26`: uname(2) reports a 2.6 release.
const UNAME26: u32 = 0x002_0000;

pub fn uname(cx: &mut Ctx<'_>, buf: Addr) -> SysResult {
    let uts = cx.task.ns().uts.names.read().clone();
    let personality = cx.task.attrs.personality.load(Ordering::Relaxed);
    let machine = if personality & 0xff == PER_LINUX32 { "i686" } else { "x86_64" };
    let mut raw = [0u8; 6 * (UTS_LEN + 1)];
    // For programs that cannot parse later version numbers.
    let old = format!("2.6.66{}", RELEASE.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.'));
    let release = if personality & UNAME26 != 0 { old.as_str() } else { RELEASE };
    let fields = ["Linux", uts.hostname.as_str(), release, VERSION, machine, uts.domainname.as_str()];
    for (slot, text) in raw.chunks_exact_mut(UTS_LEN + 1).zip(fields) {
        let n = text.len().min(UTS_LEN);
        slot[..n].copy_from_slice(&text.as_bytes()[..n]);
    }
    cx.write_bytes(buf.0, &raw)?;
    Ok(0)
}

fn uts_name(cx: &Ctx<'_>, name: Addr, len: i32) -> Result<String> {
    let owner = cx.task.ns().uts.common.owner();
    if !cx.task.cred().capable_in(&owner, CAP_SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let len = usize::try_from(len).ok().filter(|n| *n <= UTS_LEN).ok_or(Errno::EINVAL)?;
    let mut raw = vec![0u8; len];
    cx.read_bytes(name.0, &mut raw)?;
    if let Some(end) = raw.iter().position(|b| *b == 0) {
        raw.truncate(end);
    }
    Ok(String::from_utf8_lossy(&raw).into_owned())
}

pub fn sethostname(cx: &mut Ctx<'_>, name: Addr, len: i32) -> SysResult {
    let name = uts_name(cx, name, len)?;
    cx.task.ns().uts.names.write().hostname = name;
    Ok(0)
}

pub fn setdomainname(cx: &mut Ctx<'_>, name: Addr, len: i32) -> SysResult {
    let name = uts_name(cx, name, len)?;
    cx.task.ns().uts.names.write().domainname = name;
    Ok(0)
}

/// Only supported personalities are accepted: 32-bit `uname`, and no randomization, which `execve` applies.
pub fn personality(cx: &mut Ctx<'_>, persona: u32) -> SysResult {
    let slot = &cx.task.attrs.personality;
    if persona == u32::MAX {
        return Ok(u64::from(slot.load(Ordering::Relaxed)));
    }
    Ok(u64::from(slot.swap(persona, Ordering::Relaxed)))
}

pub fn sysinfo(cx: &mut Ctx<'_>, info: Addr) -> SysResult {
    let host = rustix::system::sysinfo();
    let k = cx.kernel();
    let uptime = platform::executor::now_ns().saturating_sub(k.boot_monotonic_ns) / 1_000_000_000;
    let procs = k.tree.lock().tasks.len().min(usize::from(u16::MAX)) as u64;
    let words: [u64; 14] = [
        uptime,
        // The load is that of the machine, not of the sandbox; /proc/loadavg shows the same.
        0,
        0,
        0,
        host.totalram,
        host.freeram,
        host.sharedram,
        host.bufferram,
        // Guests have no swap of their own.
        0,
        0,
        procs,
        0,
        0,
        u64::from(host.mem_unit),
    ];
    let raw: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    cx.write_bytes(info.0, &raw)?;
    Ok(0)
}

/// getcpu(2): the stub asks the host on the thread itself.
pub fn getcpu(cx: &mut Ctx<'_>, cpu: Addr, node: Addr) -> SysResult {
    if cpu.0.max(node.0) > platform::GUEST_MAX - 4 {
        return Err(Errno::EFAULT.into());
    }
    cx.thread.queue(platform::Op::Processor { cpu: cpu.0, node: node.0 });
    Ok(0)
}

/// Fills `buf` with the host's random bytes; the host never shortens a request of up to 256 bytes.
pub fn random_bytes(mut buf: &mut [u8]) -> Result<()> {
    while !buf.is_empty() {
        let n = match rustix::rand::getrandom(&mut *buf, rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => n,
            Err(rustix::io::Errno::INTR) => 0,
            Err(e) => return Err(Errno::from_raw(e.raw_os_error())),
        };
        buf = &mut buf[n..];
    }
    Ok(())
}

pub async fn getrandom(cx: &mut Ctx<'_>, buf: Addr, len: usize, flags: Flags) -> SysResult {
    const RANDOM: u32 = libc::GRND_RANDOM;
    const INSECURE: u32 = libc::GRND_INSECURE;
    if flags.0 & !(libc::GRND_NONBLOCK | RANDOM | INSECURE) != 0 || flags.0 & (RANDOM | INSECURE) == RANDOM | INSECURE {
        return Err(Errno::EINVAL.into());
    }
    let len = len.min(i32::MAX as usize);
    if len <= 4096 {
        let mut bytes = [0u8; 4096];
        random_bytes(&mut bytes[..len])?;
        cx.write_bytes(buf.0, &bytes[..len])?;
        return Ok(len as u64);
    }
    let mem = cx.mem();
    // Large requests let other tasks run, and end at a signal as in Linux.
    let mut bytes = vec![0u8; len.min(64 * 1024)];
    let (mut done, mut turn) = (0, Turn::new());
    while done < len && (done == 0 || !cx.task.signal_pending()) {
        let n = (len - done).min(bytes.len());
        random_bytes(&mut bytes[..n])?;
        match mem.write_some(buf.0.checked_add(done as u64).ok_or(Errno::EFAULT)?, &bytes[..n]) {
            Ok(k) => {
                done += k;
                if k < n {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(e) => return Err(e.into()),
        }
        turn.look().await;
    }
    Ok(done as u64)
}

/// The kernel log of a sandbox is empty, and readable only with privilege, as with `dmesg_restrict`.
pub fn syslog(cx: &mut Ctx<'_>, kind: i32, buf: Addr, len: i32) -> SysResult {
    let c = cx.task.cred();
    if !c.has(CAP_SYSLOG) && !c.has(CAP_SYS_ADMIN) {
        return Err(Errno::EPERM.into());
    }
    match kind {
        // CLOSE, OPEN, CLEAR, CONSOLE_OFF, CONSOLE_ON, SIZE_UNREAD.
        0 | 1 | 5 | 6 | 7 | 9 => Ok(0),
        // READ_ALL, READ_CLEAR: the log is empty.
        3 | 4 if buf.is_null() || len < 0 => Err(Errno::EINVAL.into()),
        3 | 4 => Ok(0),
        8 if (1..=8).contains(&len) => Ok(0),
        // SIZE_BUFFER.
        10 => Ok(1 << 17),
        // READ would wait forever for a line.
        _ => Err(Errno::EINVAL.into()),
    }
}

/// Calls reserved to the administrator of the machine: refused to all guests.
pub fn not_permitted(_cx: &mut Ctx<'_>) -> SysResult {
    Err(Errno::EPERM.into())
}

/// Ends process 1 of a child pid namespace; the machine is not the guest's to restart.
pub fn reboot(cx: &mut Ctx<'_>, magic: Flags, magic2: Flags, cmd: Flags, _arg: Addr) -> SysResult {
    const MAGIC: u32 = 0xfee1_dead;
    const MAGIC2: [u32; 4] = [672_274_793, 85_072_278, 369_367_448, 537_993_216];
    let ns = cx.task.pid_ns();
    if !cx.task.cred().capable_in(&ns.owner(), CAP_SYS_BOOT) {
        return Err(Errno::EPERM.into());
    }
    if magic.0 != MAGIC || !MAGIC2.contains(&magic2.0) {
        return Err(Errno::EINVAL.into());
    }
    if ns.is_initial() {
        return Err(Errno::EPERM.into());
    }
    let sig = match cmd.0 {
        // RESTART, RESTART2.
        0x0123_4567 | 0xa1b2_c3d4 => libc::SIGHUP,
        // POWER_OFF, HALT.
        0x4321_fedc | 0xcdef_0123 => libc::SIGINT,
        _ => return Err(Errno::EINVAL.into()),
    };
    ns.reboot(sig);
    cx.exit = Some(0);
    Ok(0)
}

/// Reports whether two kernel objects are the same; their order is not disclosed.
pub fn kcmp(cx: &mut Ctx<'_>, pid1: i32, pid2: i32, kind: i32, idx1: u64, idx2: u64) -> SysResult {
    const DIFFERENT: u64 = 3;
    let find = |pid: i32| cx.task.find_task(pid).ok_or(Errno::ESRCH);
    let (a, b) = (find(pid1)?, find(pid2)?);
    if !a.inspectable_by(cx.task) || !b.inspectable_by(cx.task) {
        return Err(Errno::EPERM.into());
    }
    let same = match kind {
        0 => {
            let file = |t: &Task, i: u64| i32::try_from(i).map_err(|_| Errno::EBADF).and_then(|fd| t.files().get(fd));
            Arc::ptr_eq(&file(&a, idx1)?, &file(&b, idx2)?)
        }
        1 => Arc::ptr_eq(&a.mm(), &b.mm()),
        2 => Arc::ptr_eq(&a.files(), &b.files()),
        3 => Arc::ptr_eq(&a.fs(), &b.fs()),
        4 => {
            let of = |t: &Task| t.group.actions.read().clone();
            Arc::ptr_eq(&of(&a), &of(&b))
        }
        // No task has an I/O context.
        5 => true,
        // Undo lists belong to processes.
        6 => {
            Arc::ptr_eq(&a.group, &b.group)
                || ![&a, &b].iter().any(|t| crate::ipc::sem::has_undo(&t.ns().ipc, t.group.pid))
        }
        _ => return Err(Errno::EINVAL.into()),
    };
    Ok(if same { 0 } else { DIFFERENT })
}
