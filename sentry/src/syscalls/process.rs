//! clone(2), execve(2), exit(2), wait(2), process groups and sessions.

use super::arg::*;
use super::Ctx;
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysError, SysResult};
use crate::fs::vfs::LookupFlags;
use crate::kernel::exit::{self, child_code, exited};
use crate::kernel::fork::{self, CloneArgs};
use crate::kernel::pid_ns::MAX_LEVEL;
use crate::kernel::signal::{SigFields, SigInfo};
use crate::kernel::strings::{self, Room, Strings};
use crate::kernel::wait::{yield_now, WaitError};
use crate::kernel::{exec, Task, ThreadGroup};
use crate::mm::UserMem;
use std::sync::Arc;

pub async fn clone(
    cx: &mut Ctx<'_>,
    flags: u64,
    stack: Addr,
    parent_tid: Addr,
    child_tid: Addr,
    tls: Addr,
) -> SysResult {
    let f = flags & 0xffff_ff00;
    // clone(2) returns the pidfd through parent_tid.
    if f & libc::CLONE_PIDFD as u64 != 0 && f & libc::CLONE_PARENT_SETTID as u64 != 0 {
        return Err(Errno::EINVAL.into());
    }
    let a = CloneArgs {
        flags: f,
        exit_signal: (flags & 0xff) as i32,
        stack: stack.0,
        parent_tid: parent_tid.0,
        child_tid: child_tid.0,
        tls: tls.0,
        pidfd: parent_tid.0,
        set_tid: Vec::new(),
    };
    fork::clone(cx, a).await
}

pub async fn clone3(cx: &mut Ctx<'_>, args: Addr, size: usize) -> SysResult {
    if size < 64 {
        return Err(Errno::EINVAL.into());
    }
    if size > 4096 {
        return Err(Errno::E2BIG.into());
    }
    let mut raw = vec![0u8; size];
    cx.read_bytes(args.0, &mut raw)?;
    let word =
        |i: usize| raw.get(i * 8..i * 8 + 8).map_or(0, |b| b.iter().rev().fold(0u64, |v, &x| v << 8 | u64::from(x)));
    if raw.get(88..).is_some_and(|rest| rest.iter().any(|&b| b != 0)) {
        return Err(Errno::E2BIG.into());
    }
    let (flags, stack, stack_size) = (word(0), word(5), word(6));
    if flags & 0xff != 0
        || (stack == 0) != (stack_size == 0)
        || word(4) > 64
        || stack.checked_add(stack_size).is_none_or(|e| e > platform::GUEST_MAX)
        || (flags & 0x2_0000_0000 != 0)
        || (flags & (libc::CLONE_THREAD | libc::CLONE_PARENT) as u64 != 0 && word(4) != 0)
        || flags & libc::CLONE_DETACHED as u64 != 0
    {
        return Err(Errno::EINVAL.into());
    }
    let a = CloneArgs {
        flags,
        pidfd: word(1),
        child_tid: word(2),
        parent_tid: word(3),
        exit_signal: word(4) as i32,
        stack: if stack == 0 { 0 } else { stack.checked_add(stack_size).ok_or(Errno::EINVAL)? },
        tls: word(7),
        set_tid: read_set_tid(cx, word(8), word(9))?,
    };
    fork::clone(cx, a).await
}

/// The numbers that clone3(2) asks for.
fn read_set_tid(cx: &Ctx<'_>, addr: u64, count: u64) -> Result<Vec<i32>> {
    if count > u64::from(MAX_LEVEL) || (addr == 0) != (count == 0) {
        return Err(Errno::EINVAL);
    }
    if count == 0 {
        return Ok(Vec::new());
    }
    cx.mem().read_vec(addr, count as usize)
}

pub async fn fork(cx: &mut Ctx<'_>) -> SysResult {
    fork::clone(cx, CloneArgs { exit_signal: libc::SIGCHLD, ..Default::default() }).await
}

pub async fn vfork(cx: &mut Ctx<'_>) -> SysResult {
    let flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
    fork::clone(cx, CloneArgs { flags, exit_signal: libc::SIGCHLD, ..Default::default() }).await
}

/// Guest memory read two pages at a time, for data that is close together.
struct Window {
    mem: UserMem,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn new(mem: UserMem) -> Self {
        Window { mem, start: 0, bytes: Vec::new() }
    }
    /// The bytes from `addr` to the end of the window: at least one.
    fn at(&mut self, addr: u64) -> Result<&[u8]> {
        let off = |start: u64, len: usize| addr.checked_sub(start).filter(|o| *o < len as u64).map(|o| o as usize);
        if off(self.start, self.bytes.len()).is_none() {
            self.start = addr & !4095;
            self.bytes.resize(8192, 0);
            let got = self.mem.read_some(self.start, &mut self.bytes);
            self.bytes.truncate(*got.as_ref().unwrap_or(&0));
            got?;
        }
        let off = off(self.start, self.bytes.len()).ok_or(Errno::EFAULT)?;
        Ok(&self.bytes[off..])
    }
    /// Appends a NUL-terminated string shorter than `max`, without the NUL.
    fn cstr(&mut self, addr: u64, max: usize, out: &mut Vec<u8>) -> Result<()> {
        let mut len = 0;
        while len < max {
            let piece = self.at(addr.checked_add(len as u64).ok_or(Errno::EFAULT)?)?;
            let piece = &piece[..piece.len().min(max - len)];
            let end = piece.iter().position(|&b| b == 0);
            let part = &piece[..end.unwrap_or(piece.len())];
            out.extend_from_slice(part);
            len += part.len();
            if end.is_some() {
                return Ok(());
            }
        }
        Err(Errno::E2BIG)
    }
}

/// Strings that are read before others are served.
const STRINGS_AT_ONCE: usize = 1000;

/// Reads a NULL-terminated array of strings; `total` counts the bytes of all so far. `None`: there is no room for them now.
async fn read_strings(
    windows: &mut [Window; 2],
    addr: u64,
    total: &mut usize,
    room: &mut Room,
) -> Result<Option<Strings>> {
    let mut out = Strings::default();
    if addr == 0 {
        return Ok(Some(out));
    }
    let [pointers, strings] = windows;
    let mut at = addr;
    loop {
        let mut word = [0u8; 8];
        // A pointer may cross the end of a window.
        let mut have = 0;
        while have < 8 {
            let piece = pointers.at(at.checked_add(have as u64).ok_or(Errno::EFAULT)?)?;
            let n = piece.len().min(8 - have);
            word[have..have + n].copy_from_slice(&piece[..n]);
            have += n;
        }
        let p = u64::from_le_bytes(word);
        if p == 0 {
            return Ok(Some(out));
        }
        let before = out.bytes().len();
        out.push_by(|bytes| strings.cstr(p, exec::MAX_ARG_STRLEN, bytes))?;
        *total += out.bytes().len() - before + 8;
        if *total > strings::MAX {
            return Err(Errno::E2BIG);
        }
        if !room.holds(*total) {
            return Ok(None);
        }
        if out.len() % STRINGS_AT_ONCE == 0 {
            yield_now().await;
        }
        at = at.checked_add(8).ok_or(Errno::EFAULT)?;
    }
}

/// Arguments and environment of a program whose name has `name_len` bytes; waits if too many others are being started.
async fn arguments(cx: &mut Ctx<'_>, name_len: usize, argv: u64, envp: u64) -> SysResult<(Strings, Strings, Room)> {
    loop {
        let (mut total, mut room) = (name_len, Room::default());
        let mut windows = [Window::new(cx.mem()), Window::new(cx.mem())];
        if let Some(args) = read_strings(&mut windows, argv, &mut total, &mut room).await? {
            if let Some(env) = read_strings(&mut windows, envp, &mut total, &mut room).await? {
                return Ok((args, env, room));
            }
        }
        drop(room);
        Room::wait(cx.task).await.map_err(|_| SysError::from(Errno::EINTR))?;
    }
}

pub async fn execve(cx: &mut Ctx<'_>, path: PathPtr, argv: Addr, envp: Addr) -> SysResult {
    do_exec(cx, libc::AT_FDCWD, path.0, argv.0, envp.0, 0).await
}

pub async fn execveat(cx: &mut Ctx<'_>, dirfd: Fd, path: PathPtr, argv: Addr, envp: Addr, flags: i32) -> SysResult {
    do_exec(cx, dirfd.0, path.0, argv.0, envp.0, flags).await
}

async fn do_exec(cx: &mut Ctx<'_>, dirfd: i32, path: u64, argv: u64, envp: u64, flags: i32) -> SysResult {
    if flags & !(libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let name = cx.read_path(path)?;
    let mut look = LookupFlags::empty();
    if flags & libc::AT_SYMLINK_NOFOLLOW == 0 {
        look |= LookupFlags::FOLLOW;
    }
    if flags & libc::AT_EMPTY_PATH != 0 {
        look |= LookupFlags::EMPTY_PATH;
    }
    let file = exec::open_exec(cx.task, dirfd, &name, look)?;
    let (args, env, _room) = arguments(cx, name.len(), argv, envp).await?;
    // A name that only a descriptor gives shows as /dev/fd/N (execveat(2)).
    let shown = if dirfd != libc::AT_FDCWD && !name.starts_with(b"/") {
        let mut s = format!("/dev/fd/{dirfd}").into_bytes();
        if !name.is_empty() {
            s.push(b'/');
            s.extend_from_slice(&name);
        }
        s
    } else {
        name
    };
    exec::execve(cx, file, shown, args, env).await
}

pub fn exit(cx: &mut Ctx<'_>, code: i32) -> SysResult {
    cx.exit = Some(exited(code));
    Ok(0)
}

pub fn exit_group(cx: &mut Ctx<'_>, code: i32) -> SysResult {
    let status = exited(code);
    exit::start_group_exit(&cx.task.group, status, Some(cx.task.tid()));
    cx.exit = Some(status);
    Ok(0)
}

/// The children that a wait selects.
#[derive(Clone, Copy)]
enum WaitTarget<'a> {
    Any,
    /// A process given by pidfd.
    This(&'a Arc<ThreadGroup>),
    Pid(i32),
    Group(i32),
}

impl WaitTarget<'_> {
    fn matches(self, g: &Arc<ThreadGroup>) -> bool {
        match self {
            WaitTarget::This(t) => Arc::ptr_eq(t, g),
            WaitTarget::Any => true,
            WaitTarget::Pid(p) => g.pid == p,
            WaitTarget::Group(p) => g.links.lock().pgid == p,
        }
    }
}

/// The result of a wait.
struct Found {
    group: Arc<ThreadGroup>,
    /// `wait4` status.
    status: i32,
    uid: u32,
    utime: u64,
    stime: u64,
}

const WNOWAIT: i32 = libc::WNOWAIT;

/// Checks all children once. `Err(ECHILD)`: no child matches.
fn check_children(task: &Arc<Task>, which: WaitTarget<'_>, options: i32) -> Result<Option<Found>> {
    let me = &task.group;
    let kernel = &task.kernel;
    let children = me.links.lock().children.clone();
    let mut any = false;
    for c in children.iter().filter(|c| which.matches(c)) {
        let mut r = c.links.lock();
        // __WCLONE: children whose exit signal is not SIGCHLD; without it (and __WALL) only the others.
        let clone_child = r.exit_signal != libc::SIGCHLD;
        if options & libc::__WALL == 0 && clone_child != (options & libc::__WCLONE != 0) {
            continue;
        }
        if options & libc::__WNOTHREAD != 0 && r.parent_tid != task.tid() {
            continue;
        }
        any = true;
        let found = |status: i32, r: &crate::kernel::process::Links| Found {
            group: c.clone(),
            status,
            uid: match r.threads.first() {
                Some(t) => t.cred.read().uid,
                None => c.remains.lock().as_ref().map_or(0, |z| z.cred.uid),
            },
            utime: r.dead_utime + r.child_utime,
            stime: r.dead_stime + r.child_stime,
        };
        if let Some(st) = r.exit_status {
            if options & libc::WEXITED == 0 {
                continue;
            }
            let f = found(st, &r);
            drop(r);
            if options & WNOWAIT == 0 {
                // Two threads may look at the same time: the one that takes it from its parent has it.
                if !exit::reap(kernel, c) {
                    continue;
                }
            }
            return Ok(Some(f));
        }
        if let Some(sig) = r.stopped {
            if options & libc::WUNTRACED != 0 && !r.stop_reported {
                if options & WNOWAIT == 0 {
                    r.stop_reported = true;
                }
                return Ok(Some(found(sig << 8 | 0x7f, &r)));
            }
        } else if r.continued && options & libc::WCONTINUED != 0 {
            if options & WNOWAIT == 0 {
                r.continued = false;
            }
            return Ok(Some(found(0xffff, &r)));
        }
    }
    if any {
        Ok(None)
    } else {
        Err(Errno::ECHILD)
    }
}

async fn wait_for(cx: &mut Ctx<'_>, which: WaitTarget<'_>, options: i32) -> SysResult<Option<Found>> {
    let task = cx.task.clone();
    let first = check_children(&task, which, options)?;
    if first.is_some() || options & libc::WNOHANG != 0 {
        return Ok(first);
    }
    let r = task
        .wait(&[(&task.group.child_wait, PollEvents::all())], None, || match check_children(&task, which, options) {
            Ok(None) => None,
            Ok(Some(f)) => Some(Ok(f)),
            Err(e) => Some(Err(e)),
        })
        .await;
    match r {
        Ok(f) => Ok(Some(f?)),
        Err(WaitError::Interrupted | WaitError::TimedOut) => Err(SysError::INTR),
    }
}

/// `struct rusage` of a child.
fn rusage(f: &Found) -> [u64; 18] {
    let mut r = [0u64; 18];
    r[0] = f.utime / 1_000_000_000;
    r[1] = f.utime / 1000 % 1_000_000;
    r[2] = f.stime / 1_000_000_000;
    r[3] = f.stime / 1000 % 1_000_000;
    r
}

pub async fn wait4(cx: &mut Ctx<'_>, pid: i32, status: Addr, options: i32, usage: Addr) -> SysResult {
    let known = libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED | libc::__WNOTHREAD | libc::__WCLONE | libc::__WALL;
    if options & !known != 0 {
        return Err(Errno::EINVAL.into());
    }
    let which = match pid {
        i32::MIN => return Err(Errno::ESRCH.into()),
        -1 => WaitTarget::Any,
        0 => WaitTarget::Group(cx.task.group.links.lock().pgid),
        // A number that the caller does not know is no child's.
        p if p < 0 => WaitTarget::Group(cx.task.global_of(-p).unwrap_or(0)),
        p => WaitTarget::Pid(cx.task.global_of(p).unwrap_or(0)),
    };
    let Some(f) = wait_for(cx, which, options | libc::WEXITED).await? else { return Ok(0) };
    if !status.is_null() {
        cx.write(status.0, &f.status)?;
    }
    if !usage.is_null() {
        cx.write(usage.0, &rusage(&f))?;
    }
    Ok(cx.task.nr_of(&f.group.id) as u64)
}

pub async fn waitid(cx: &mut Ctx<'_>, kind: i32, id: i32, info: Addr, options: i32, usage: Addr) -> SysResult {
    let states = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED;
    let known = states | libc::WNOHANG | libc::WNOWAIT | libc::__WNOTHREAD | libc::__WCLONE | libc::__WALL;
    if options & !known != 0 || options & states == 0 {
        return Err(Errno::EINVAL.into());
    }
    let mut nonblocking = false;
    let behind;
    let which = match kind {
        0 => WaitTarget::Any,
        1 if id > 0 => WaitTarget::Pid(cx.task.global_of(id).unwrap_or(0)),
        2 if id > 0 => WaitTarget::Group(cx.task.global_of(id).unwrap_or(0)),
        2 if id == 0 => WaitTarget::Group(cx.task.group.links.lock().pgid),
        3 if id >= 0 => {
            let file = cx.file(id)?;
            behind = crate::kernel::pidfd::group(&file).ok_or(Errno::EBADF)?;
            nonblocking = file.nonblocking() && options & libc::WNOHANG == 0;
            WaitTarget::This(&behind)
        }
        _ => return Err(Errno::EINVAL.into()),
    };
    let found = wait_for(cx, which, if nonblocking { options | libc::WNOHANG } else { options }).await?;
    let mut b = [0u8; 128];
    if let Some(f) = &found {
        let (code, st) = match f.status {
            0xffff => (libc::CLD_CONTINUED, libc::SIGCONT),
            s if s & 0xff == 0x7f => (libc::CLD_STOPPED, s >> 8),
            s => child_code(s),
        };
        let i = SigInfo {
            signo: libc::SIGCHLD,
            errno: 0,
            code,
            fields: SigFields::Child {
                pid: cx.task.nr_of(&f.group.id),
                uid: cx.task.cred().user_ns.uid_out(f.uid),
                status: st,
                utime: 0,
                stime: 0,
            },
        };
        b = i.to_bytes();
        if !usage.is_null() {
            cx.write(usage.0, &rusage(f))?;
        }
    } else if nonblocking {
        return Err(Errno::EAGAIN.into());
    }
    if !info.is_null() {
        // Only the fields that waitid fills (up to si_status).
        cx.write_bytes(info.0, &b[..28])?;
    }
    Ok(0)
}

/// The process of a `pid` argument; 0 is the caller.
fn target(cx: &Ctx<'_>, pid: i32) -> Result<Arc<ThreadGroup>> {
    if pid == 0 {
        return Ok(cx.task.group.clone());
    }
    cx.task.find_group(pid).ok_or(Errno::ESRCH)
}

pub fn getpgid(cx: &mut Ctx<'_>, pid: i32) -> SysResult {
    let g = target(cx, pid)?;
    let r = g.links.lock().pgid;
    Ok(cx.task.sees(r) as u64)
}

pub fn getpgrp(cx: &mut Ctx<'_>) -> SysResult {
    getpgid(cx, 0)
}

pub fn getsid(cx: &mut Ctx<'_>, pid: i32) -> SysResult {
    let g = target(cx, pid)?;
    let r = g.links.lock().sid;
    Ok(cx.task.sees(r) as u64)
}

pub fn setpgid(cx: &mut Ctx<'_>, pid: i32, pgid: i32) -> SysResult {
    let me = cx.task.group.clone();
    if pgid < 0 || (pgid == 0 && pid < 0) {
        return Err(Errno::EINVAL.into());
    }
    let pid = if pid == 0 { me.pid } else { cx.task.global_of(pid).ok_or(Errno::ESRCH)? };
    // A number that the caller does not know is no process group's.
    let pgid = if pgid == 0 { pid } else { cx.task.global_of(pgid).unwrap_or(0) };
    let mut tree = cx.kernel().tree.lock();
    let g = tree.groups.get(&pid).cloned().ok_or(Errno::ESRCH)?;
    let my_sid = me.links.lock().sid;
    if !Arc::ptr_eq(&g, &me) {
        let r = g.links.lock();
        if !r.parent.upgrade().is_some_and(|p| Arc::ptr_eq(&p, &me)) {
            return Err(Errno::ESRCH.into());
        }
        if r.sid != my_sid {
            return Err(Errno::EPERM.into());
        }
        if r.did_exec {
            return Err(Errno::EACCES.into());
        }
    }
    if g.links.lock().sid == pid {
        // A session leader.
        return Err(Errno::EPERM.into());
    }
    if pgid != pid && !tree.members(pgid).any(|x| x.sid() == my_sid) {
        return Err(Errno::EPERM.into());
    }
    let sid = g.sid();
    tree.move_group(&g, pgid, sid);
    Ok(0)
}

pub fn setsid(cx: &mut Ctx<'_>) -> SysResult {
    let me = &cx.task.group;
    let mut tree = cx.kernel().tree.lock();
    if tree.members(me.pid).next().is_some() {
        return Err(Errno::EPERM.into());
    }
    tree.move_group(me, me.pid, me.pid);
    Ok(me.id.own() as u64)
}
