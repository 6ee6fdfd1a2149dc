//! Standard streams of containers and of processes in them.
//!
//! containerd names FIFOs. An output goes from the container to its FIFO directly: the shim only keeps it open while
//! the process lives, so that nothing is lost, and no process killed, while containerd is away. Input is copied, since
//! containerd closes it by a request. With a terminal all is copied, between its master and the FIFOs.

use super::lock;
use super::runtime::Streams;
use crate::sys;
use anyhow::{anyhow, bail, Context, Result};
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::{read, write};
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What containerd says of a process's streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// What the shim holds for a process.
pub struct Held {
    /// Closed to end the input.
    stdin: Option<OwnedFd>,
    outputs: Vec<OwnedFd>,
    terminal: Option<Terminal>,
}

/// A process's streams before it is started.
pub struct Prepared {
    pub streams: Streams,
    held: Held,
    console: Option<Console>,
    wanted: Wanted,
}

impl Wanted {
    /// Opens what the process gets. `name` is unique in the bundle.
    pub fn prepare(&self, bundle: &Path, name: &str) -> Result<Prepared> {
        let mut held = Held { stdin: None, outputs: Vec::new(), terminal: None };
        if self.terminal {
            let console = Console::listen(bundle, name)?;
            let streams = [Stdio::null(), Stdio::null(), Stdio::null()];
            return Ok(Prepared { streams, held, console: Some(console), wanted: self.clone() });
        }
        let stdin = match self.stdin.as_str() {
            "" => Stdio::null(),
            path => {
                let (guest, ours) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
                held.stdin = Some(copy_input(path, ours)?);
                guest.into()
            }
        };
        let mut output = |path: &str| -> Result<Stdio> {
            if path.is_empty() {
                return Ok(Stdio::null());
            }
            let (stream, kept) = open_output(path).with_context(|| format!("output {path}"))?;
            held.outputs.extend(kept);
            Ok(stream.into())
        };
        let streams = [stdin, output(&self.stdout)?, output(&self.stderr)?];
        Ok(Prepared { streams, held, console: None, wanted: self.clone() })
    }
}

impl Prepared {
    /// Where the runtime sends the terminal's master.
    pub fn console(&self) -> Option<PathBuf> {
        self.console.as_ref().map(|c| c.path.clone())
    }

    /// Takes the streams for the command.
    pub fn take_streams(&mut self) -> Streams {
        std::mem::replace(&mut self.streams, [Stdio::null(), Stdio::null(), Stdio::null()])
    }

    /// When the process is there: begins to copy.
    pub fn begin(self) -> Result<Held> {
        let mut held = self.held;
        if let Some(console) = self.console {
            let master = Arc::new(console.receive()?);
            if !self.wanted.stdin.is_empty() {
                held.stdin = Some(copy_input(&self.wanted.stdin, master.try_clone()?)?);
            }
            let output = match self.wanted.stdout.as_str() {
                "" => (OpenOptions::new().write(true).open("/dev/null")?.into(), None),
                path => open_output(path).with_context(|| format!("output {path}"))?,
            };
            held.terminal = Some(Terminal::begin(master, output)?);
        }
        Ok(held)
    }
}

impl Held {
    /// Ends the input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let Some(terminal) = &self.terminal else { bail!("the process has no terminal") };
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(sys::set_window_size(terminal.master.as_fd(), &size)?)
    }

    /// After the process's end: its outputs end once no other process has them.
    pub fn end_outputs(&mut self) {
        self.outputs.clear();
    }

    /// After the process's end: waits a little until what its terminal has printed is with containerd, and lets go of
    /// all.
    pub fn finish(self) {
        if let Some(terminal) = &self.terminal {
            terminal.done.wait(Duration::from_secs(2));
        }
    }
}

/// Opens an output, and for a FIFO once more, so that it has a reader as long as that is held.
fn open_output(path: &str) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let path = match path.split_once("://") {
        None => path,
        Some(("fifo" | "file", path)) => path,
        Some((scheme, _)) => bail!("output of kind {scheme:?} is not supported: give a FIFO or a file"),
    };
    let is_fifo = fs::metadata(path).is_ok_and(|m| m.file_type().is_fifo());
    if !is_fifo {
        let file = OpenOptions::new().create(true).append(true).mode(0o640).custom_flags(libc::O_NOCTTY).open(path)?;
        return Ok((file.into(), None));
    }
    let kept = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    // It has a reader, so this does not wait for one.
    let stream = OpenOptions::new().write(true).open(path)?;
    Ok((stream.into(), Some(kept.into())))
}

/// Copies from a FIFO to `to`, in a thread of its own. The input ends with the FIFO's, or when the result is dropped,
/// after what has arrived by then.
fn copy_input(path: &str, to: OwnedFd) -> Result<OwnedFd> {
    let path = path.strip_prefix("fifo://").unwrap_or(path);
    let (ended, end) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // It does not wait for a writer, and poll(2) says nothing before one has come.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let from = opened.with_context(|| format!("input {path}"))?;
    let copy = move || {
        let _ = relay_input(&from, &to, &ended);
    };
    std::thread::Builder::new().name("input".into()).spawn(copy)?;
    Ok(end)
}

fn relay_input(from: &File, to: &OwnedFd, ended: &OwnedFd) -> Result<()> {
    while wait_for_input(from.as_fd(), to.as_fd(), ended.as_fd())? {
        if !copy_some(from.as_fd(), to)? {
            return Ok(());
        }
    }
    // What is there already.
    while copy_some(from.as_fd(), to)? {}
    Ok(())
}

/// False: it is to be closed, or the other side is gone.
fn wait_for_input(from: BorrowedFd<'_>, to: BorrowedFd<'_>, ended: BorrowedFd<'_>) -> Result<bool> {
    loop {
        let mut fds = [
            PollFd::new(from, PollFlags::POLLIN),
            PollFd::new(to, PollFlags::empty()),
            PollFd::new(ended, PollFlags::empty()),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let [from, to, ended] = fds.map(|f| f.any().unwrap_or(false));
        if to || ended {
            return Ok(false);
        }
        if from {
            return Ok(true);
        }
    }
}

/// Copies once; false at the end, or when there is nothing.
fn copy_some(from: BorrowedFd<'_>, to: &OwnedFd) -> Result<bool> {
    let mut buffer = vec![0u8; 16 << 10];
    let n = match read(from, &mut buffer) {
        Ok(0) | Err(Errno::EAGAIN) => return Ok(false),
        Ok(n) => n,
        Err(Errno::EINTR) => return Ok(true),
        Err(e) => return Err(e.into()),
    };
    write_all(to, buffer.get(..n).unwrap_or_default())?;
    Ok(true)
}

fn write_all(to: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// A socket that the runtime sends a terminal's master to.
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Console {
    fn listen(bundle: &Path, name: &str) -> Result<Console> {
        let file = format!("{name}-console.sock");
        let path = bundle.join(&file);
        let _ = fs::remove_file(&path);
        let dir = File::open(bundle)?;
        // The path of the bundle may be longer than an address can be.
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{file}", dir.as_raw_fd()));
        let listener = listener.context("the socket for the terminal")?;
        listener.set_nonblocking(true)?;
        Ok(Console { path, listener })
    }

    /// What the runtime has sent before it ended.
    fn receive(self) -> Result<OwnedFd> {
        let (stream, _) = self.listener.accept().context("the runtime has sent no terminal")?;
        let mut name = [0u8; 64];
        let received = protocol::transport::receive(&stream, &mut name, true)?;
        received.descriptor.ok_or_else(|| anyhow!("the runtime has sent no terminal"))
    }
}

/// A terminal whose output is copied.
struct Terminal {
    master: Arc<OwnedFd>,
    done: Arc<Done>,
}

#[derive(Default)]
struct Done {
    done: Mutex<bool>,
    changed: Condvar,
}

impl Done {
    fn set(&self) {
        *lock(&self.done) = true;
        self.changed.notify_all();
    }

    fn wait(&self, patience: Duration) {
        let done = self.changed.wait_timeout_while(lock(&self.done), patience, |d| !*d);
        drop(done.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Terminal {
    /// `output`: with what keeps it open.
    fn begin(master: Arc<OwnedFd>, output: (OwnedFd, Option<OwnedFd>)) -> Result<Terminal> {
        let flags = OFlag::from_bits_retain(fcntl(&*master, FcntlArg::F_GETFL)?);
        fcntl(&*master, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK))?;
        let done = Arc::new(Done::default());
        let (from, told) = (master.clone(), done.clone());
        let copy = move || {
            // It ends with EIO, when no process has the terminal any more.
            while let Ok(true) = copy_some(from.as_fd(), &output.0) {}
            drop(output);
            told.set();
        };
        std::thread::Builder::new().name("terminal".into()).spawn(copy)?;
        Ok(Terminal { master, done })
    }
}
