//! The terminal that the sandbox was started at: the first session's controlling terminal. Its line discipline is the host's; who is in its
//! foreground is decided here, and what it signals comes through the command ([`crate::kernel::tty::signal_foreground`]). So is what
//! `TCXONC` stops: the guest's output. The host's terminal itself stays started, for the log and for what is printed after the sandbox.

use super::ldisc::{Termios, Termios2};
use super::pty::{TCGETS2, TCSETS2, TCSETSF2, TCSETSW2};
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysResult};
use crate::fs::file::{File, FileOps};
use crate::fs::hostfile::HostFile;
use crate::fs::types::Attr;
use crate::fs::vfs::{LookupFlags, Path, Resolver, RootRef};
use crate::kernel::cred::{CAP_ALL, CAP_SYS_ADMIN};
use crate::kernel::tty::{self, Job, Line};
use crate::kernel::wait::WaitQueue;
use crate::kernel::{current, Cred, Kernel, Task};
use crate::mm::io::{Dst, Src};
use parking_lot::Mutex;
use platform::executor::{ask_room, now_ns};
use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use zerocopy::IntoBytes;

/// For how long the command's answer holds, in ns.
const ANSWER_HOLDS_NS: u64 = 50_000_000;

/// Whether the caller's job, the whole sandbox, is in the foreground of the host's terminal. Only the command can see that: the
/// Sentry is in a session of its own.
#[derive(Clone, Copy)]
enum Foreground {
    Unknown,
    /// The command has been asked.
    Asked,
    Answered {
        yes: bool,
        at: u64,
    },
}

pub struct HostTerminal {
    pub line: Arc<Line>,
    pub(super) uid: u32,
    /// The first descriptor of it that was passed: what `/dev/tty` stands for.
    first: Arc<HostFile>,
    /// `TCOOFF`: the guest writes nothing.
    stopped: AtomicBool,
    /// All descriptors of it: their writers wait for `TCOON`.
    files: Mutex<Vec<Weak<HostFile>>>,
    foreground: Mutex<Foreground>,
    /// Other programs of the caller's use it, too: whether the sandbox has it must be asked.
    shared: bool,
    /// Held by the one request that waits for the output to drain.
    draining: Mutex<()>,
}

impl HostTerminal {
    /// A description for `/dev/tty` and `/dev/console`.
    pub fn end(self: &Arc<Self>) -> Box<dyn FileOps> {
        Box::new(End { terminal: self.clone(), file: self.first.clone() })
    }

    /// Wakes the readers, writers and requests of all its descriptors.
    fn wake(&self, events: PollEvents) {
        for file in self.files.lock().iter().filter_map(Weak::upgrade) {
            file.queue().wake(events);
        }
    }

    /// Whether the caller's job has the terminal; `EAGAIN` while the command is being asked.
    fn in_foreground(&self, kernel: &Kernel) -> Result<bool> {
        let Some(ask) = kernel.ask_foreground.get().filter(|_| self.shared) else { return Ok(true) };
        let mut foreground = self.foreground.lock();
        match *foreground {
            Foreground::Answered { yes, at } if now_ns().saturating_sub(at) < ANSWER_HOLDS_NS => {
                if !yes {
                    // Asked anew by the next attempt, after the stop.
                    *foreground = Foreground::Unknown;
                }
                return Ok(yes);
            }
            Foreground::Asked => return Err(Errno::EAGAIN),
            _ => *foreground = Foreground::Asked,
        }
        drop(foreground);
        ask();
        Err(Errno::EAGAIN)
    }

    pub(super) fn set_foreground(&self, yes: bool) {
        *self.foreground.lock() = Foreground::Answered { yes, at: now_ns() };
        self.wake(PollEvents::all());
    }

    pub(super) fn forget_foreground(&self) {
        let mut foreground = self.foreground.lock();
        if !matches!(*foreground, Foreground::Asked) {
            *foreground = Foreground::Unknown;
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// `TCXONC` at one of its descriptors.
    fn flow(&self, file: &HostFile, arg: u64) -> Result<()> {
        const TCOOFF: u64 = 0;
        const TCOON: u64 = 1;
        const TCIOFF: u64 = 2;
        const TCION: u64 = 3;
        match arg {
            TCOOFF => self.stopped.store(true, Ordering::SeqCst),
            TCOON => {
                self.stopped.store(false, Ordering::SeqCst);
                self.wake(PollEvents::WRITABLE);
            }
            TCIOFF | TCION => {
                let mut t = Termios::NONE;
                platform::host::ioctl(file.fd().as_fd(), libc::TCGETS, t.as_mut_bytes())?;
                let c = t.cc[if arg == TCIOFF { libc::VSTOP } else { libc::VSTART }];
                // One that the terminal does not take now is lost, as on a line.
                if c != 0 && file.ready().intersects(PollEvents::WRITABLE) {
                    let _ = platform::host::write_nowait(file.fd().as_fd(), &[c]);
                }
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }
}

/// What a terminal of the host's is for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// The console: the terminal that the sandbox was started at, which controls the first process's session.
    Console,
    /// A terminal with a number in an instance of devpts, which controls session `sid`.
    Session { sid: i32, instance: u64 },
}

impl HostTerminal {
    fn new(rdev: u64, session: i32, first: Arc<HostFile>, outside: bool) -> Arc<HostTerminal> {
        let line = Line::new(rdev);
        // The process leads the session and is in the foreground.
        *line.job.lock() = Job { session, pgrp: session };
        Arc::new(HostTerminal {
            line,
            uid: current::get().map_or(0, |t| t.cred().fsuid),
            first,
            stopped: AtomicBool::new(false),
            files: Mutex::default(),
            foreground: Mutex::new(Foreground::Unknown),
            shared: outside,
            draining: Mutex::new(()),
        })
    }

    fn name(&self) -> String {
        format!("/dev/{}", self.line.name())
    }
}

/// The description of a host descriptor that is a terminal. All descriptors of a session's are one terminal.
/// `root`: where its name is looked up.
pub fn host_terminal(kernel: &Arc<Kernel>, fd: OwnedFd, control: Control, root: &Path) -> Result<Arc<File>> {
    let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL)? & libc::O_ACCMODE;
    let file = Arc::new(HostFile::new(&kernel.executor, fd)?);
    let terminal = match control {
        Control::Console => {
            let mut console = kernel.ttys.console.lock();
            let new = || HostTerminal::new(libc::makedev(5, 1), kernel.first_pid(), file.clone(), true);
            console.get_or_insert_with(new).clone()
        }
        Control::Session { sid, instance } => match kernel.ttys.host_of_session(sid) {
            Some(terminal) => terminal,
            None => kernel.ttys.add_host(instance, |rdev| HostTerminal::new(rdev, sid, file.clone(), false))?,
        },
    };
    terminal.files.lock().push(Arc::downgrade(&file));
    let place = place(root.clone(), &terminal.name(), terminal.line.rdev);
    Ok(File::new(Box::new(End { terminal, file }), flags, place))
}

/// The node `name`, if it is that of the device `rdev`: what ttyname(3) finds the terminal to be.
pub(super) fn place(root: Path, name: &str, rdev: u64) -> Option<Path> {
    let cred = Cred::user(0, 0, Vec::new(), CAP_ALL);
    let walk = Resolver::new(&cred, RootRef::Fixed(root.clone()), LookupFlags::FOLLOW).resolve(root, name.as_bytes());
    walk.ok().filter(|p| p.inode().attr().is_ok_and(|a| a.rdev == rdev))
}

struct End {
    terminal: Arc<HostTerminal>,
    file: Arc<HostFile>,
}

impl End {
    fn host(&self, cmd: u32, buf: &mut [u8]) -> Result<()> {
        platform::host::ioctl(self.file.fd().as_fd(), u64::from(cmd), buf).map(|_| ())
    }

    /// Job control: that of the guest's own sessions, then that of the caller's.
    fn check(&self, kernel: &Kernel, sig: i32) -> SysResult<()> {
        tty::check(&self.terminal.line, sig)?;
        match self.terminal.in_foreground(kernel)? {
            true => Ok(()),
            false => Err(tty::check_outside(&self.terminal.line, sig)),
        }
    }

    /// A request that may wait for the output to drain, for as long as the terminal wants: one at a time, on a thread of its own.
    fn drain<T>(&self, kernel: &Kernel, request: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(turn) = self.terminal.draining.try_lock() else { return Err(Errno::EAGAIN) };
        let r = kernel.executor.block_in_place(request);
        drop(turn);
        self.terminal.wake(PollEvents::all());
        r
    }
}

impl FileOps for End {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, file: &File, dst: &mut Dst<'_>, offset: u64) -> SysResult<usize> {
        if let Some(task) = current::get() {
            self.check(&task.kernel, libc::SIGTTIN)?;
        }
        self.file.read(file, dst, offset)
    }
    fn write(&self, file: &File, src: &mut Src<'_>, offset: u64) -> SysResult<(usize, u64)> {
        if self.terminal.is_stopped() {
            return Err(Errno::EAGAIN.into());
        }
        self.file.write(file, src, offset)
    }
    fn own_offset(&self) -> bool {
        true
    }
    fn poll(&self, file: &File) -> PollEvents {
        let ready = self.file.poll(file);
        if self.terminal.is_stopped() {
            return ready & !PollEvents::WRITABLE;
        }
        ready
    }
    fn wait_queue(&self) -> Option<&WaitQueue> {
        self.file.wait_queue()
    }
    fn ioctl_waits(&self) -> bool {
        true
    }
    fn ioctl(&self, file: &File, task: &Task, cmd: u32, arg: u64) -> SysResult<u64> {
        let acquires = u64::from(cmd) == libc::TIOCSCTTY && !tty::controls(&self.terminal.line, task);
        if acquires && !file.readable() && !task.cred().has(CAP_SYS_ADMIN) {
            return Err(Errno::EPERM.into());
        }
        if let Some(r) = tty::ioctl(&self.terminal.line, task, cmd, arg) {
            return r;
        }
        let mem = task.mem();
        match u64::from(cmd) {
            libc::TCGETS => {
                let mut b = [0u8; size_of::<Termios>()];
                self.host(cmd, &mut b)?;
                mem.write_bytes(arg, &b)?;
            }
            TCGETS2 => {
                let mut t = Termios::NONE;
                self.host(libc::TCGETS as u32, t.as_mut_bytes())?;
                mem.write(arg, &Termios2::of(t, (0, 0)))?;
            }
            libc::TCSETS | libc::TCSETSW | libc::TCSETSF | TCSETS2 | TCSETSW2 | TCSETSF2 => {
                self.check(&task.kernel, libc::SIGTTOU)?;
                // Speeds without a number mean nothing to a terminal that is not a line.
                let cmd = match u64::from(cmd) {
                    TCSETS2 => libc::TCSETS,
                    TCSETSW2 => libc::TCSETSW,
                    TCSETSF2 => libc::TCSETSF,
                    same => same,
                };
                let mut b = [0u8; size_of::<Termios>()];
                mem.read_bytes(arg, &mut b)?;
                ask_room()?;
                self.drain(&task.kernel, || self.host(cmd as u32, &mut b))?;
            }
            libc::TIOCGWINSZ => {
                let mut b = [0u8; 8];
                self.host(cmd, &mut b)?;
                mem.write_bytes(arg, &b)?;
            }
            libc::TIOCSWINSZ => {
                self.check(&task.kernel, libc::SIGTTOU)?;
                let mut b = [0u8; 8];
                mem.read_bytes(arg, &mut b)?;
                self.host(cmd, &mut b)?;
            }
            libc::FIONREAD | libc::TIOCOUTQ => {
                let mut b = [0u8; 4];
                self.host(cmd, &mut b)?;
                mem.write_bytes(arg, &b)?;
            }
            libc::TCXONC => {
                self.check(&task.kernel, libc::SIGTTOU)?;
                self.terminal.flow(&self.file, arg)?;
            }
            libc::TCFLSH | libc::TCSBRK => {
                self.check(&task.kernel, libc::SIGTTOU)?;
                let v = i32::try_from(arg).map_err(|_| Errno::EINVAL)?;
                let host = || platform::host::ioctl_value(self.file.fd().as_fd(), u64::from(cmd), v);
                ask_room()?;
                self.drain(&task.kernel, host)?;
            }
            libc::TIOCGETD => mem.write(arg, &0i32)?,
            _ => return Err(Errno::ENOTTY.into()),
        }
        Ok(0)
    }
    fn attr(&self) -> Result<Attr> {
        let a = self.file.attr()?;
        Ok(Attr { rdev: self.terminal.line.rdev, ..a })
    }
    fn reopens(&self) -> bool {
        true
    }
    fn anon_name(&self) -> String {
        self.terminal.name()
    }
}
