//! A client of a container's Sentry: connects to the control socket of the state directory and makes requests.

use super::state::Container;
use crate::control::frames;
use crate::control::protocol::{Reply, Request, VERSION};
use anyhow::{anyhow, bail, Context, Result};
use nix::errno::Errno;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Name of the socket in the container's directory.
pub const SOCKET: &str = "control.sock";

/// A request that the Sentry could not carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub errno: i32,
    /// For a process that could not be started: the exit status that a shell would give.
    pub exit: Option<u8>,
    pub text: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refused {}

pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects and says hello. `patience`: how long each answer may take; `None`: as long as it does.
    pub fn connect(container: &Container, patience: Option<Duration>) -> Result<Client> {
        let dir = File::open(&container.path).context("opening the container's directory")?;
        // The path of the directory may be longer than an address can be.
        let stream = match UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())) {
            Err(e) if [Some(libc::ECONNREFUSED), Some(libc::ENOENT)].contains(&e.raw_os_error()) => {
                bail!("container not running")
            }
            other => other.context("connecting to the container's control socket")?,
        };
        // A Sentry that lives says hello at once.
        stream.set_read_timeout(Some(patience.unwrap_or(Duration::from_secs(10))))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        let mut client = Client { stream };
        match client.call(&Request::Hello { version: VERSION }, &[])? {
            Reply::Hello { .. } => {}
            other => bail!("the Sentry answers {other:?} to a hello"),
        }
        client.stream.set_read_timeout(patience)?;
        Ok(client)
    }

    pub fn send(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        frames::send(&self.stream, request, descriptors).map_err(lost)
    }

    /// The next answer; one that says that something failed is an error, [`Refused`] if the connection goes on.
    pub fn receive(&mut self) -> Result<Reply> {
        match frames::receive(&self.stream).map_err(lost)? {
            Some(Reply::Failed { errno, exit, text }) => Err(Refused { errno, exit, text }.into()),
            Some(reply) => Ok(reply),
            None => bail!("the connection to the container has ended"),
        }
    }

    pub fn call(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Reply> {
        self.send(request, descriptors)?;
        self.receive()
    }

    /// A request that is answered by [`Reply::Done`].
    pub fn do_it(&mut self, request: &Request) -> Result<()> {
        match self.call(request, &[])? {
            Reply::Done => Ok(()),
            other => bail!("the Sentry answers {other:?} to {request:?}"),
        }
    }

    /// To poll for an answer.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn lost(e: std::io::Error) -> anyhow::Error {
    match e.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EAGAIN) => anyhow!("the Sentry does not answer"),
        Some(Errno::EPIPE | Errno::ECONNRESET) => anyhow!("the connection to the container has ended"),
        _ => anyhow!("the connection to the container failed: {e}"),
    }
}
