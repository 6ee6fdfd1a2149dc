//! The shim's children: commands that it runs, and, since it is a subreaper, monitors and agents whose parents have
//! ended.
//!
//! One thread reaps all of them, so that no other may wait for a child. A number is signalled only while it cannot have
//! become another process's: reaping and signalling exclude each other.

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::wait::{waitid, waitpid, Id, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Ends of processes that are remembered for a watch that comes late.
const REMEMBERED: usize = 1024;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// As a shell gives it.
    pub status: u32,
    pub at: SystemTime,
}

/// A moment in the order of reaped processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

type Callback = Box<dyn FnOnce(Exit) + Send>;

#[derive(Default)]
struct State {
    /// Children that were started; so many times there was something new to wait for.
    started: u64,
    reaped: u64,
    ends: VecDeque<(Moment, Pid, Exit)>,
    watched: HashMap<Pid, Callback>,
}

#[derive(Default)]
pub struct Reaper {
    state: Mutex<State>,
    changed: Condvar,
}

impl Reaper {
    /// Starts the thread.
    pub fn start() -> io::Result<Arc<Reaper>> {
        let reaper = Arc::new(Reaper::default());
        let of_thread = reaper.clone();
        std::thread::Builder::new().name("reaper".into()).spawn(move || of_thread.run())?;
        Ok(reaper)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now. A process that is started later ends later.
    pub fn now(&self) -> Moment {
        Moment(self.lock().reaped)
    }

    /// Starts a command.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Pid> {
        // A command that cannot be executed is waited for by `spawn` itself.
        let mut state = self.lock();
        let child = command.spawn()?;
        state.started += 1;
        self.changed.notify_all();
        Ok(Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?))
    }

    /// Waits for the end of a process that ran at `since`.
    pub fn wait(&self, pid: Pid, since: Moment) -> Exit {
        let mut state = self.lock();
        loop {
            if let Some(exit) = state.find(pid, since) {
                return exit;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Calls `callback` at the end of a process that ran at `since`; at once if it has ended.
    pub fn watch(&self, pid: Pid, since: Moment, callback: impl FnOnce(Exit) + Send + 'static) {
        let mut state = self.lock();
        match state.find(pid, since) {
            Some(exit) => {
                drop(state);
                callback(exit);
            }
            None => drop(state.watched.insert(pid, Box::new(callback))),
        }
    }

    /// Signals a process that is watched; `ESRCH` if it has ended.
    pub fn signal(&self, pid: Pid, signal: i32) -> nix::Result<()> {
        let state = self.lock();
        if !state.watched.contains_key(&pid) {
            return Err(Errno::ESRCH);
        }
        // Real-time signals are none of nix's.
        match nix::sys::signal::Signal::try_from(signal) {
            Ok(signal) => kill(pid, signal),
            Err(_) => crate::sys::pidfd(pid.as_raw()).and_then(|fd| crate::sys::pidfd_send(&fd, signal)),
        }
    }

    fn run(&self) {
        loop {
            let started = self.lock().started;
            match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        self.reap(pid);
                    }
                }
                Err(Errno::ECHILD) => {
                    let mut state = self.lock();
                    while state.started == started {
                        state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                }
                Err(_) => {}
            }
        }
    }

    fn reap(&self, pid: Pid) {
        let mut state = self.lock();
        let status = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => code as u32 & 0xff,
            Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as u32,
            // A command that could not be executed was waited for already.
            _ => return,
        };
        let exit = Exit { status, at: SystemTime::now() };
        state.reaped += 1;
        let moment = Moment(state.reaped);
        if state.ends.len() >= REMEMBERED {
            state.ends.pop_front();
        }
        state.ends.push_back((moment, pid, exit));
        let callback = state.watched.remove(&pid);
        drop(state);
        self.changed.notify_all();
        if let Some(callback) = callback {
            callback(exit);
        }
    }
}

impl State {
    fn find(&self, pid: Pid, since: Moment) -> Option<Exit> {
        self.ends.iter().rev().take_while(|e| e.0 > since).find(|e| e.1 == pid).map(|e| e.2)
    }
}
