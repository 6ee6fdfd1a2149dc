//! Terminals: pseudo terminals (pts(4)), `/dev/tty`, `/dev/pts`, and the requests that concern sessions (tty_ioctl(4)).
//!
//! * [`Pty`]: a pair; [`Master`] and [`Slave`] are its open ends. [`ldisc`] is what lies between them.
//! * [`Table`]: the pairs of the sandbox. [`devpts`] shows them as files.
//! * Job control (who is in the foreground, SIGTTIN, SIGTTOU) is [`crate::kernel::tty`].

pub mod devpts;
mod host;
pub mod ldisc;
mod pty;

use super::file::FileOps;
use crate::error::{Errno, Result};
use crate::kernel::tty::Line;
use crate::kernel::{current, Kernel};
pub use host::{host_terminal, Control, HostTerminal};
use parking_lot::Mutex;
pub use pty::{Master, Pty, Slave};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// Most pseudo terminals (`/proc/sys/kernel/pty/max`).
const PTY_MAX: u32 = 4096;

/// Group of terminals (`tty` in Debian and most others).
const TTY_GROUP: u32 = 5;

/// The terminals of a sandbox.
#[derive(Default)]
pub struct Table {
    /// By the devpts that they are in, and their number.
    ptys: Mutex<BTreeMap<(u64, u32), Arc<Pty>>>,
    /// The host's terminal, if the sandbox was started at one.
    console: Mutex<Option<Arc<HostTerminal>>>,
    /// The host's terminals that control sessions of processes started from outside. Their numbers are none of `ptys`.
    hosts: Mutex<BTreeMap<(u64, u32), Weak<HostTerminal>>>,
}

impl Table {
    /// Pseudo terminals in use.
    pub fn pty_count(&self) -> usize {
        self.ptys.lock().len()
    }
    pub fn pty(&self, instance: u64, index: u32) -> Option<Arc<Pty>> {
        self.ptys.lock().get(&(instance, index)).cloned()
    }
    /// A terminal of the host's that has a number.
    pub fn host(&self, instance: u64, index: u32) -> Option<Arc<HostTerminal>> {
        self.hosts.lock().get(&(instance, index))?.upgrade()
    }
    /// The numbers of an instance, in order.
    pub fn numbers(&self, instance: u64) -> Vec<u32> {
        let range = (instance, 0)..=(instance, u32::MAX);
        let mut all: Vec<u32> = self.ptys.lock().range(range.clone()).map(|((_, n), _)| *n).collect();
        all.extend(self.hosts.lock().range(range).filter(|(_, h)| h.strong_count() > 0).map(|((_, n), _)| *n));
        all.sort_unstable();
        all
    }
    /// The terminal of the host's that controls session `sid`.
    pub fn host_of_session(&self, sid: i32) -> Option<Arc<HostTerminal>> {
        let controls = |h: &Arc<HostTerminal>| sid != 0 && h.line.job.lock().session == sid;
        let numbered = self.hosts.lock().values().filter_map(Weak::upgrade).find(controls);
        numbered.or_else(|| self.console().filter(controls))
    }
    /// The terminal that controls session `sid`.
    pub fn of_session(&self, sid: i32) -> Option<Arc<Line>> {
        if sid == 0 {
            return None;
        }
        if let Some(h) = self.host_of_session(sid) {
            return Some(h.line.clone());
        }
        self.pty_of_session(sid).map(|p| p.line.clone())
    }
    /// The host's terminal.
    pub fn console(&self) -> Option<Arc<HostTerminal>> {
        self.console.lock().clone()
    }
    /// The command's answer to [`Kernel::ask_foreground`].
    pub fn set_foreground(&self, yes: bool) {
        if let Some(c) = self.console() {
            c.set_foreground(yes);
        }
    }
    /// The caller's job has stopped or been continued: the terminal may be another job's now.
    pub fn forget_foreground(&self) {
        if let Some(c) = self.console() {
            c.forget_foreground();
        }
    }
    /// Adds a terminal of the host's to an instance, with the lowest free number.
    fn add_host(&self, instance: u64, make: impl FnOnce(u64) -> Arc<HostTerminal>) -> Result<Arc<HostTerminal>> {
        let ptys = self.ptys.lock();
        let mut hosts = self.hosts.lock();
        hosts.retain(|_, h| h.strong_count() > 0);
        if ptys.len() + hosts.len() >= PTY_MAX as usize {
            return Err(Errno::ENOSPC);
        }
        let free = |n: &u32| !ptys.contains_key(&(instance, *n)) && !hosts.contains_key(&(instance, *n));
        let index = (0..PTY_MAX).find(free).ok_or(Errno::ENOSPC)?;
        let terminal = make(pts_rdev(index));
        hosts.insert((instance, index), Arc::downgrade(&terminal));
        Ok(terminal)
    }
    fn forget(&self, instance: u64, index: u32) {
        self.ptys.lock().remove(&(instance, index));
    }
    /// The pseudo terminal that controls session `sid`.
    fn pty_of_session(&self, sid: i32) -> Option<Arc<Pty>> {
        self.ptys.lock().values().find(|p| p.line.job.lock().session == sid).cloned()
    }
}

/// Device number of `/dev/pts/INDEX`.
fn pts_rdev(index: u32) -> u64 {
    libc::makedev(136 + index / 256, index % 256)
}

/// Opens the `ptmx` of a devpts: a new pair in it.
pub fn open_ptmx(kernel: &Arc<Kernel>, instance: u64, options: &devpts::Options) -> Result<Box<dyn FileOps>> {
    let (uid, gid) = current::get().map_or((0, 0), |t| (t.cred().fsuid, t.cred().fsgid));
    let mut ptys = kernel.ttys.ptys.lock();
    let hosts = kernel.ttys.hosts.lock();
    if ptys.len() + hosts.len() >= PTY_MAX as usize {
        return Err(Errno::ENOSPC);
    }
    let free = |n: &u32| !ptys.contains_key(&(instance, *n)) && !hosts.contains_key(&(instance, *n));
    let index = (0..PTY_MAX).find(free).ok_or(Errno::ENOSPC)?;
    drop(hosts);
    let pty = Pty::new(kernel, (instance, index), options.of_new(uid, gid));
    ptys.insert((instance, index), pty.clone());
    Ok(Box::new(Master(pty)))
}

/// Opens a terminal device (majors 4, 5 and 136–143).
pub fn open_char(kernel: &Arc<Kernel>, rdev: u64, flags: i32) -> Result<Box<dyn FileOps>> {
    match (libc::major(rdev), libc::minor(rdev)) {
        // In whatever instance it is.
        (5, 0) => {
            let task = current::get().ok_or(Errno::ENXIO)?;
            let sid = task.group.links.lock().sid;
            if sid == 0 {
                return Err(Errno::ENXIO);
            }
            match kernel.ttys.host_of_session(sid) {
                Some(host) => Ok(host.end()),
                None => Slave::open(&kernel.ttys.pty_of_session(sid).ok_or(Errno::ENXIO)?, flags | libc::O_NOCTTY),
            }
        }
        (5, 1) => Ok(kernel.ttys.console().ok_or(Errno::EIO)?.end()),
        (5, 2) => open_ptmx(kernel, devpts::FIRST_INSTANCE, &devpts::Options::default()),
        (136..=143, _) => {
            let index = (libc::major(rdev) - 136) * 256 + libc::minor(rdev);
            if let Some(host) = kernel.ttys.host(devpts::FIRST_INSTANCE, index) {
                return Ok(host.end());
            }
            Slave::open(&kernel.ttys.pty(devpts::FIRST_INSTANCE, index).ok_or(Errno::EIO)?, flags)
        }
        _ => Err(Errno::ENXIO),
    }
}
