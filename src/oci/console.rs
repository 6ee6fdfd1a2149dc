//! Terminals of containers: a pseudo-terminal is made here; its slave goes to the guest, its master to an engine's
//! socket, or to the foreground command, which copies between it and the caller's terminal.

use crate::launch::supervise::Signals;
use crate::launch::terminal::Saved;
use crate::sys;
use anyhow::{bail, Context, Result};
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, FdFlag, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::pty::{openpty, Winsize};
use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};
use nix::sys::termios::{cfmakeraw, tcgetattr, tcsetattr, SetArg};
use nix::sys::wait::{waitid, Id, WaitPidFlag, WaitStatus};
use nix::unistd::{read, write};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSlice, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A pseudo-terminal.
pub struct Pty {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

impl Pty {
    /// Makes one; `size`: rows and columns.
    pub fn open(size: Option<(u16, u16)>) -> Result<Pty> {
        let size = size.map(|(rows, columns)| Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 });
        let pty = openpty(&size, None).context("making a terminal (is /dev/pts mounted?)")?;
        for fd in [&pty.master, &pty.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        Ok(Pty { master: pty.master, slave: pty.slave })
    }
}

/// Sends the master to an engine, which listens on a socket for it.
pub fn send_master(socket: &Path, master: BorrowedFd<'_>) -> Result<()> {
    let what = || format!("console socket {}", socket.display());
    // A path may be longer than an address: it goes through the directory's descriptor then.
    let stream = match UnixStream::connect(socket) {
        Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => {
            let dir = File::open(socket.parent().unwrap_or(Path::new("."))).with_context(what)?;
            let Some(name) = socket.file_name() else { bail!("{}: not a socket", what()) };
            UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))
        }
        other => other,
    };
    let stream = stream.with_context(what)?;
    let fds = [master.as_raw_fd()];
    let name = [IoSlice::new(b"/dev/ptmx")];
    sendmsg::<()>(stream.as_raw_fd(), &name, &[ControlMessage::ScmRights(&fds)], MsgFlags::MSG_NOSIGNAL, None)
        .with_context(what)?;
    Ok(())
}

/// The foreground command: it waits for the process that stands for the container's (a monitor, or an agent of `exec`),
/// passes signals on to it, and copies between the caller's terminal and the container's, if that has one.
pub struct Foreground {
    signals: Signals,
    relay: Option<Relay>,
}

impl Foreground {
    /// From here on no signal is lost.
    pub fn begin() -> Result<Foreground> {
        Ok(Foreground { signals: Signals::take_over_all()?, relay: None })
    }

    /// Begins to copy; the caller's terminal is in raw mode until `self` is dropped.
    pub fn attach(&mut self, master: OwnedFd) -> Result<()> {
        self.relay = Some(Relay::new(master)?);
        Ok(())
    }

    /// Waits until the child has ended; its status.
    pub fn wait(&mut self, child: &crate::launch::spawn::Process) -> Result<WaitStatus> {
        loop {
            let mut fds = vec![
                PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            if let Some(relay) = &self.relay {
                relay.poll_for(&mut fds);
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e).context("poll"),
            }
            let ended = fds.first().and_then(PollFd::any).unwrap_or(false);
            while let Some((signal, _)) = self.signals.next() {
                match &self.relay {
                    Some(relay) if signal == libc::SIGWINCH => relay.resize(),
                    _ if signal == libc::SIGWINCH => {}
                    _ => drop(sys::pidfd_send(&child.pidfd, signal)),
                }
            }
            if let Some(relay) = &mut self.relay {
                relay.copy();
            }
            if ended {
                if let Some(relay) = &mut self.relay {
                    relay.finish();
                }
                return waitid(Id::Pid(child.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).context("waitid");
            }
        }
    }
}

/// Copies between two terminals.
struct Relay {
    master: OwnedFd,
    /// The caller's terminal; raw, if it was one and is in the foreground.
    terminal: Saved,
    /// From standard input to the master.
    typed: VecDeque<u8>,
    /// From the master to standard output.
    shown: VecDeque<u8>,
    input_ended: bool,
    /// Every slave is closed.
    hung_up: bool,
}

/// Most bytes on their way.
const KEPT: usize = 16 << 10;
/// Most bytes of one read or write.
const CHUNK: usize = 4096;

impl Relay {
    fn new(master: OwnedFd) -> Result<Relay> {
        let flags = OFlag::from_bits_truncate(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let relay = Relay {
            master,
            terminal: Saved::take(),
            typed: VecDeque::new(),
            shown: VecDeque::new(),
            input_ended: false,
            hung_up: false,
        };
        let stdin = std::io::stdin();
        if stdin.is_terminal() && relay.terminal.in_foreground() {
            let mut raw = tcgetattr(&stdin).context("the settings of the terminal")?;
            cfmakeraw(&mut raw);
            tcsetattr(&stdin, SetArg::TCSANOW, &raw).context("setting the terminal to raw mode")?;
        }
        relay.resize();
        Ok(relay)
    }

    /// Passes the size of the caller's terminal on.
    fn resize(&self) {
        if let Ok(size) = sys::window_size(std::io::stdin().as_fd()) {
            let _ = sys::set_window_size(self.master.as_fd(), &size);
        }
    }

    fn poll_for<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        let (stdin, stdout) = (sys::stdin(), sys::stdout());
        if !self.hung_up {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, self.shown.len() < KEPT);
            events.set(PollFlags::POLLOUT, !self.typed.is_empty());
            if !events.is_empty() {
                fds.push(PollFd::new(self.master.as_fd(), events));
            }
            if !self.input_ended && self.typed.len() < KEPT {
                fds.push(PollFd::new(stdin, PollFlags::POLLIN));
            }
        }
        if !self.shown.is_empty() {
            fds.push(PollFd::new(stdout, PollFlags::POLLOUT));
        }
    }

    /// Copies what can be copied without waiting.
    fn copy(&mut self) {
        self.read_master();
        let mut buf = [0u8; CHUNK];
        if !self.input_ended && self.typed.len() < KEPT && is_ready(sys::stdin(), PollFlags::POLLIN) {
            match read(sys::stdin(), &mut buf) {
                Ok(0) => self.input_ended = true,
                Ok(n) => self.typed.extend(buf.iter().take(n)),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => self.input_ended = true,
            }
        }
        if !self.typed.is_empty() && !self.hung_up {
            match write(&self.master, self.typed.make_contiguous()) {
                Ok(n) => drop(self.typed.drain(..n)),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => self.typed.clear(),
            }
        }
        if !self.shown.is_empty() && is_ready(sys::stdout(), PollFlags::POLLOUT) {
            self.show();
        }
    }

    fn read_master(&mut self) {
        let mut buf = [0u8; CHUNK];
        while !self.hung_up && self.shown.len() < KEPT {
            match read(&self.master, &mut buf) {
                Ok(0) => self.hung_up = true,
                Ok(n) => self.shown.extend(buf.iter().take(n)),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                // EIO: there is no slave any more.
                Err(_) => self.hung_up = true,
            }
        }
    }

    fn show(&mut self) {
        let all = self.shown.make_contiguous();
        match write(sys::stdout(), all.get(..CHUNK).unwrap_or(all)) {
            Ok(n) => drop(self.shown.drain(..n)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // There is no reader any more.
            Err(_) => self.shown.clear(),
        }
    }

    /// Shows what is left when the container's process has ended.
    fn finish(&mut self) {
        loop {
            self.read_master();
            if self.shown.is_empty() {
                return;
            }
            let mut fds = [PollFd::new(sys::stdout(), PollFlags::POLLOUT)];
            // A terminal that is held (^S) is not waited for.
            match poll(&mut fds, PollTimeout::from(1000u16)) {
                Ok(0) => return,
                Ok(_) => self.show(),
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

fn is_ready(fd: BorrowedFd<'_>, events: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, events)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{recvmsg, ControlMessageOwned};
    use std::io::{IoSliceMut, Read, Write};
    use std::os::fd::FromRawFd;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_master_arrives() {
        let dir = std::env::temp_dir().join(format!("runsc-rs-console-{}", std::process::id()));
        // Longer than an address.
        let deep = dir.join("x".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let at = File::open(&deep).unwrap();
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/s", at.as_raw_fd())).unwrap();
        let pty = Pty::open(Some((33, 99))).unwrap();
        send_master(&deep.join("s"), pty.master.as_fd()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let (mut text, mut space) = ([0u8; 64], nix::cmsg_space!([std::os::fd::RawFd; 1]));
        let mut into = [IoSliceMut::new(&mut text)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::empty()).unwrap();
        let got = match message.cmsgs().unwrap().next() {
            Some(ControlMessageOwned::ScmRights(fds)) => fds[0],
            other => panic!("{other:?}"),
        };
        // SAFETY: it has just been received and belongs to nobody else.
        let mut master = File::from(unsafe { OwnedFd::from_raw_fd(got) });
        File::from(pty.slave.try_clone().unwrap()).write_all(b"hello\n").unwrap();
        let mut line = [0u8; 7];
        master.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"hello\r\n");
        assert_eq!(sys::window_size(pty.slave.as_fd()).unwrap().ws_row, 33);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
