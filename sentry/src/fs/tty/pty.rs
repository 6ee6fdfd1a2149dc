//! A pseudo terminal: the pair and its two ends.

use super::ldisc::{packet, Ldisc, Termios, Termios2, OUT_MAX};
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysResult};
use crate::fs::file::{File, FileOps};
use crate::kernel::cred::CAP_SYS_ADMIN;
use crate::kernel::tty::{self, Line};
use crate::kernel::wait::WaitQueue;
use crate::kernel::{current, Kernel, Task};
use crate::mm::io::{Dst, Src};
use parking_lot::Mutex;
use platform::executor::TimerHandle;
use std::any::Any;
use std::sync::{Arc, Weak};

// Requests of the old `struct termio`.
const TCGETA: u64 = 0x5405;
const TCSETA: u64 = 0x5406;
const TCSETAW: u64 = 0x5407;
const TCSETAF: u64 = 0x5408;
// With `struct termios2` (asm-generic/ioctls.h).
pub(super) const TCGETS2: u64 = 0x802c_542a;
pub(super) const TCSETS2: u64 = 0x402c_542b;
pub(super) const TCSETSW2: u64 = 0x402c_542c;
pub(super) const TCSETSF2: u64 = 0x402c_542d;
const TIOCGLCKTRMIOS: u64 = 0x5456;
const TIOCSLCKTRMIOS: u64 = 0x5457;
const TIOCGEXCL: u64 = 0x8004_5440;
const TIOCGDEV: u64 = 0x8004_5432;

const TIOCGPTN: u32 = 0x8004_5430;
const TIOCSPTLCK: u32 = 0x4004_5431;
const TIOCGPTLCK: u32 = 0x8004_5439;
const TIOCPKT: u32 = 0x5420;
const TIOCGPKT: u32 = 0x8004_5438;
const TIOCGPTPEER: u32 = 0x5441;

pub struct State {
    pub ldisc: Ldisc,
    /// The speeds that the flags have no number for: of input and output.
    speeds: (u32, u32),
    /// Settings that cannot be changed (`TIOCSLCKTRMIOS`).
    kept: Termios,
    /// Nobody may open the other end's name any more (`TIOCEXCL`).
    exclusive: bool,
    /// `TCOOFF` at the master: it writes nothing.
    master_stopped: bool,
    winsize: [u16; 4],
    locked: bool,
    master: bool,
    slaves: usize,
    opened: bool,
    /// Permissions and owner of the node in /dev/pts.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// End of the wait of a read with `VMIN` 0 and `VTIME` (host monotonic ns).
    deadline: Option<u64>,
    /// Rings then.
    alarm: Option<TimerHandle>,
}

pub struct Pty {
    kernel: Weak<Kernel>,
    /// The devpts that it is in, and its number there.
    pub instance: u64,
    pub index: u32,
    pub state: Mutex<State>,
    pub line: Arc<Line>,
    master_queue: WaitQueue,
    slave_queue: Arc<WaitQueue>,
}

/// Wakes readers when their time is over.
struct Alarm(Arc<WaitQueue>);
impl std::task::Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.wake(PollEvents::READABLE);
    }
}

impl Pty {
    pub(super) fn new(
        kernel: &Arc<Kernel>,
        (instance, index): (u64, u32),
        (uid, gid, mode): (u32, u32, u32),
    ) -> Arc<Pty> {
        let state = State {
            ldisc: Ldisc::default(),
            speeds: (0, 0),
            kept: Termios::NONE,
            exclusive: false,
            master_stopped: false,
            winsize: [0; 4],
            locked: true,
            master: true,
            slaves: 0,
            opened: false,
            mode,
            uid,
            gid,
            deadline: None,
            alarm: None,
        };
        Arc::new(Pty {
            kernel: Arc::downgrade(kernel),
            instance,
            index,
            state: Mutex::new(state),
            line: Line::new(super::pts_rdev(index)),
            master_queue: WaitQueue::new(),
            slave_queue: Arc::new(WaitQueue::new()),
        })
    }
    pub fn rdev(&self) -> u64 {
        self.line.rdev
    }
    /// A signal to the foreground process group.
    fn signal(&self, sig: i32) {
        if let Some(k) = self.kernel.upgrade() {
            tty::to_foreground(&k, &self.line, sig);
        }
    }
    fn wake_all(&self) {
        self.master_queue.wake_all();
        self.slave_queue.wake_all();
    }

    /// New settings, as far as they are not locked; `speeds` are those of `BOTHER`.
    fn set(&self, t: Termios, speeds: Option<(u32, u32)>, flush: bool) {
        let mut s = self.state.lock();
        if flush {
            s.ldisc.flush_input();
        }
        let t = t.keeping(&s.ldisc.termios, &s.kept);
        s.ldisc.set(t);
        let now = Termios2::of(t, speeds.unwrap_or(s.speeds));
        s.speeds = (now.ispeed, now.ospeed);
        drop(s);
        self.wake_all();
    }
    /// tcflow(3), at the slave or at the master.
    fn flow(&self, arg: u64, master: bool) -> Result<()> {
        const TCOOFF: u64 = 0;
        const TCOON: u64 = 1;
        const TCIOFF: u64 = 2;
        const TCION: u64 = 3;
        let mut s = self.state.lock();
        let cc = s.ldisc.termios.cc;
        let mut signal = None;
        match arg {
            TCOOFF | TCOON if master => s.master_stopped = arg == TCOOFF,
            TCOOFF | TCOON => s.ldisc.flow(arg == TCOOFF),
            TCIOFF | TCION => match (cc[if arg == TCIOFF { libc::VSTOP } else { libc::VSTART }], master) {
                (0, _) => {}
                (c, true) => signal = s.ldisc.input(c),
                (c, false) => s.ldisc.send(c),
            },
            _ => return Err(Errno::EINVAL),
        }
        drop(s);
        if let Some(sig) = signal {
            self.signal(sig);
        }
        self.wake_all();
        Ok(())
    }

    /// Requests that both ends know.
    fn common(&self, task: &Task, cmd: u32, arg: u64) -> SysResult<u64> {
        let mem = task.mem();
        match u64::from(cmd) {
            libc::TCGETS => {
                let t = self.state.lock().ldisc.termios;
                mem.write(arg, &t)?;
            }
            TCGETS2 => {
                let s = self.state.lock();
                let t = Termios2::of(s.ldisc.termios, s.speeds);
                drop(s);
                mem.write(arg, &t)?;
            }
            libc::TCSETS | libc::TCSETSW => self.set(mem.read(arg)?, None, false),
            libc::TCSETSF => self.set(mem.read(arg)?, None, true),
            TCSETS2 | TCSETSW2 | TCSETSF2 => {
                let t: Termios2 = mem.read(arg)?;
                self.set(t.base, Some((t.ispeed, t.ospeed)), u64::from(cmd) == TCSETSF2);
            }
            TIOCGLCKTRMIOS => {
                let kept = self.state.lock().kept;
                mem.write(arg, &kept)?;
            }
            TIOCSLCKTRMIOS => {
                if !task.cred().has(CAP_SYS_ADMIN) {
                    return Err(Errno::EPERM.into());
                }
                let kept = mem.read(arg)?;
                self.state.lock().kept = kept;
            }
            TCGETA => {
                let t = self.state.lock().ldisc.termios;
                mem.write_bytes(arg, &t.to_termio())?;
            }
            TCSETA | TCSETAW | TCSETAF => {
                let mut b = [0; 18];
                mem.read_bytes(arg, &mut b)?;
                let t = self.state.lock().ldisc.termios.with_termio(&b);
                self.set(t, None, u64::from(cmd) == TCSETAF);
            }
            libc::TCSBRK | libc::TCSBRKP => {}
            libc::TIOCEXCL | libc::TIOCNXCL => self.state.lock().exclusive = u64::from(cmd) == libc::TIOCEXCL,
            TIOCGEXCL => {
                let v = i32::from(self.state.lock().exclusive);
                mem.write(arg, &v)?;
            }
            libc::TCFLSH => {
                let mut s = self.state.lock();
                match arg {
                    0 => s.ldisc.flush_input(),
                    1 => s.ldisc.flush_output(),
                    2 => {
                        s.ldisc.flush_input();
                        s.ldisc.flush_output();
                    }
                    _ => return Err(Errno::EINVAL.into()),
                }
                drop(s);
                self.wake_all();
            }
            libc::TIOCGWINSZ => {
                let w = self.state.lock().winsize;
                mem.write(arg, &w)?;
            }
            libc::TIOCSWINSZ => {
                let w: [u16; 4] = mem.read(arg)?;
                let old = std::mem::replace(&mut self.state.lock().winsize, w);
                if old != w {
                    self.signal(libc::SIGWINCH);
                }
            }
            libc::TIOCGETD => mem.write(arg, &0i32)?,
            libc::TIOCGPGRP => {
                let pgrp = self.line.job.lock().pgrp;
                mem.write(arg, &task.sees(pgrp))?;
            }
            libc::TIOCGSID => {
                let sid = self.line.job.lock().session;
                if sid == 0 {
                    return Err(Errno::ENOTTY.into());
                }
                mem.write(arg, &task.sees(sid))?;
            }
            _ => return Err(Errno::ENOTTY.into()),
        }
        Ok(0)
    }
}

/// The side of the terminal emulator.
pub struct Master(pub Arc<Pty>);

impl FileOps for Master {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _: &File, dst: &mut Dst<'_>, _: u64) -> SysResult<usize> {
        let mut s = self.0.state.lock();
        let mut bytes = Vec::new();
        if s.ldisc.has_status() {
            bytes.push(s.ldisc.take_status());
        } else {
            if s.ldisc.out.is_empty() {
                return Err(if s.opened && s.slaves == 0 { Errno::EIO } else { Errno::EAGAIN }.into());
            }
            if s.ldisc.packet() {
                bytes.push(packet::DATA);
            }
            let n = s.ldisc.out.len().min(dst.remaining().saturating_sub(bytes.len()));
            bytes.extend(s.ldisc.out.drain(..n));
        }
        drop(s);
        let n = dst.put(&bytes)?;
        self.0.slave_queue.wake(PollEvents::WRITABLE);
        Ok(n)
    }
    fn write(&self, _: &File, src: &mut Src<'_>, _: u64) -> SysResult<(usize, u64)> {
        let bytes = src.take_vec(super::ldisc::IN_MAX)?;
        let mut done = 0;
        let mut signals = Vec::new();
        {
            let mut s = self.0.state.lock();
            for &c in &bytes {
                if s.master_stopped || !s.ldisc.room() {
                    break;
                }
                // Each of them once, however often its character is there: it would be pending already.
                signals.extend(s.ldisc.input(c).filter(|sig| !signals.contains(sig)));
                done += 1;
            }
        }
        src.give_back(bytes.len() - done);
        for sig in signals {
            self.0.signal(sig);
        }
        if done == 0 && !bytes.is_empty() {
            // Nothing has changed: a wake-up would be the waiting writer's own.
            return Err(Errno::EAGAIN.into());
        }
        self.0.wake_all();
        Ok((done, 0))
    }
    fn poll(&self, _: &File) -> PollEvents {
        let s = self.0.state.lock();
        let mut r = PollEvents::empty();
        if !s.ldisc.out.is_empty() {
            r |= PollEvents::READABLE;
        }
        if s.ldisc.has_status() {
            r |= PollEvents::READABLE | PollEvents::PRI;
        }
        if s.ldisc.room() && !s.master_stopped {
            r |= PollEvents::WRITABLE;
        }
        if s.opened && s.slaves == 0 {
            r |= PollEvents::HUP;
        }
        r
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.0.master_queue)
    }
    fn ioctl(&self, _: &File, task: &Task, cmd: u32, arg: u64) -> SysResult<u64> {
        let mem = task.mem();
        match cmd {
            TIOCGPTN => mem.write(arg, &self.0.index)?,
            TIOCSPTLCK => {
                let v: i32 = mem.read(arg)?;
                self.0.state.lock().locked = v != 0;
            }
            TIOCGPTLCK => {
                let v = i32::from(self.0.state.lock().locked);
                mem.write(arg, &v)?;
            }
            TIOCGPTPEER => {
                let flags = i32::try_from(arg).map_err(|_| Errno::EINVAL)?;
                let end = Slave::open(&self.0, flags)?;
                let place =
                    super::host::place(task.ns().mnt.root(), &format!("/dev/pts/{}", self.0.index), self.0.rdev());
                let keep = flags & (libc::O_ACCMODE | libc::O_NONBLOCK);
                let fd = task.install_fd(File::new(end, keep, place), flags & libc::O_CLOEXEC != 0)?;
                return Ok(fd as u64);
            }
            TIOCPKT => {
                let on = mem.read::<i32>(arg)? != 0;
                self.0.state.lock().ldisc.set_packet(on);
            }
            TIOCGPKT => {
                let on = i32::from(self.0.state.lock().ldisc.packet());
                mem.write(arg, &on)?;
            }
            c if u64::from(c) == libc::TCXONC => self.0.flow(arg, true)?,
            c if u64::from(c) == TIOCGDEV => mem.write(arg, &(libc::makedev(5, 2) as u32))?,
            c if u64::from(c) == libc::FIONREAD => {
                let n = self.0.state.lock().ldisc.out.len() as i32;
                mem.write(arg, &n)?;
            }
            c if u64::from(c) == libc::TIOCSPGRP => {
                tty::check(&self.0.line, libc::SIGTTOU)?;
                if !tty::controls(&self.0.line, task) {
                    return Err(Errno::ENOTTY.into());
                }
                tty::set_foreground(&self.0.line, task, mem.read(arg)?)?;
            }
            _ => return self.0.common(task, cmd, arg),
        }
        Ok(0)
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.0.state.lock().master = false;
        if let Some(k) = self.0.kernel.upgrade() {
            k.ttys.forget(self.0.instance, self.0.index);
            tty::hang_up(&k, &self.0.line);
        }
        self.0.wake_all();
    }
}

/// The side of the programs.
pub struct Slave(Arc<Pty>);

impl Slave {
    pub fn open(pty: &Arc<Pty>, flags: i32) -> Result<Box<dyn FileOps>> {
        {
            let mut s = pty.state.lock();
            if s.locked || !s.master {
                return Err(Errno::EIO);
            }
            if s.exclusive && !current::get().is_some_and(|t| t.cred().has(CAP_SYS_ADMIN)) {
                return Err(Errno::EBUSY);
            }
            s.slaves += 1;
            s.opened = true;
        }
        let end = Box::new(Slave(pty.clone()));
        // Who may not read it must not get at its input through /dev/tty.
        let readable = matches!(flags & libc::O_ACCMODE, libc::O_RDONLY | libc::O_RDWR);
        if flags & libc::O_NOCTTY == 0 && readable {
            if let Some(task) = current::get() {
                // A session leader without a terminal gets this one, if it is free.
                let _ = tty::acquire(&pty.line, &task, false);
            }
        }
        pty.master_queue.wake_all();
        Ok(end)
    }
}

impl FileOps for Slave {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _: &File, dst: &mut Dst<'_>, _: u64) -> SysResult<usize> {
        tty::check(&self.0.line, libc::SIGTTIN)?;
        let mut s = self.0.state.lock();
        if s.ldisc.readable().is_none() {
            if !s.master {
                return Ok(0);
            }
            let t = s.ldisc.termios;
            let (min, time) = (t.cc[libc::VMIN], t.cc[libc::VTIME]);
            if t.lflag & libc::ICANON == 0 && min == 0 && time != 0 {
                let now = platform::executor::now_ns();
                match s.deadline {
                    Some(d) if now >= d => {
                        s.deadline = None;
                        return Ok(0);
                    }
                    Some(_) => {}
                    None => {
                        let d = now + u64::from(time) * 100_000_000;
                        s.deadline = Some(d);
                        if let Some(k) = self.0.kernel.upgrade() {
                            let waker = std::task::Waker::from(Arc::new(Alarm(self.0.slave_queue.clone())));
                            // In place of the last one's.
                            s.alarm = Some(k.executor.timer(d, waker));
                        }
                    }
                }
            }
            return Err(Errno::EAGAIN.into());
        }
        s.deadline = None;
        let bytes = s.ldisc.take(dst.remaining());
        drop(s);
        let n = dst.put(&bytes)?;
        self.0.master_queue.wake(PollEvents::WRITABLE);
        Ok(n)
    }
    fn write(&self, _: &File, src: &mut Src<'_>, _: u64) -> SysResult<(usize, u64)> {
        if self.0.state.lock().ldisc.termios.lflag & libc::TOSTOP != 0 {
            tty::check(&self.0.line, libc::SIGTTOU)?;
        }
        let bytes = src.take_vec(OUT_MAX)?;
        let mut done = 0;
        {
            let mut s = self.0.state.lock();
            if !s.master {
                return Err(Errno::EIO.into());
            }
            for &c in &bytes {
                if !s.ldisc.writable() {
                    break;
                }
                s.ldisc.output(c);
                done += 1;
            }
        }
        src.give_back(bytes.len() - done);
        if done == 0 && !bytes.is_empty() {
            return Err(Errno::EAGAIN.into());
        }
        self.0.master_queue.wake(PollEvents::READABLE);
        Ok((done, 0))
    }
    fn poll(&self, _: &File) -> PollEvents {
        let s = self.0.state.lock();
        let late = s.deadline.is_some_and(|d| platform::executor::now_ns() >= d);
        let mut r = PollEvents::empty();
        if !s.master {
            r |= PollEvents::READABLE | PollEvents::HUP | PollEvents::ERR;
        }
        if late || s.ldisc.readable().is_some() {
            r |= PollEvents::READABLE;
        }
        if s.ldisc.writable() {
            r |= PollEvents::WRITABLE;
        }
        r
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.0.slave_queue)
    }
    fn ioctl(&self, file: &File, task: &Task, cmd: u32, arg: u64) -> SysResult<u64> {
        match u64::from(cmd) {
            libc::TIOCSCTTY
                if !file.readable() && !task.cred().has(CAP_SYS_ADMIN) && !tty::controls(&self.0.line, task) =>
            {
                return Err(Errno::EPERM.into());
            }
            libc::TCSETS
            | libc::TCSETSW
            | libc::TCSETSF
            | libc::TCFLSH
            | TCSETA
            | TCSETAW
            | TCSETAF
            | TCSETS2
            | TCSETSW2
            | TCSETSF2 => tty::check(&self.0.line, libc::SIGTTOU)?,
            libc::TCXONC => {
                tty::check(&self.0.line, libc::SIGTTOU)?;
                self.0.flow(arg, false)?;
                return Ok(0);
            }
            TIOCGDEV => {
                task.mem().write(arg, &(self.0.rdev() as u32))?;
                return Ok(0);
            }
            libc::FIONREAD => {
                let n = self.0.state.lock().ldisc.queued() as i32;
                task.mem().write(arg, &n)?;
                return Ok(0);
            }
            libc::TIOCOUTQ => {
                let n = self.0.state.lock().ldisc.out.len() as i32;
                task.mem().write(arg, &n)?;
                return Ok(0);
            }
            _ => {
                if let Some(r) = tty::ioctl(&self.0.line, task, cmd, arg) {
                    return r;
                }
            }
        }
        self.0.common(task, cmd, arg)
    }
}

impl Drop for Slave {
    fn drop(&mut self) {
        self.0.state.lock().slaves -= 1;
        self.0.master_queue.wake_all();
    }
}
