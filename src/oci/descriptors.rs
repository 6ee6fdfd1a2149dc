//! Descriptors that a command passes on to the process in the container: the standard streams or a terminal, those of
//! socket activation (`LISTEN_FDS`, sd_listen_fds(3)), and those of `--preserve-fds`.

use crate::sys;
use anyhow::{anyhow, bail, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

/// Most that a process gets beside its standard streams: a frame of the control protocol has no room for more.
const MOST: usize = crate::control::protocol::MAX_DESCRIPTORS - 3;

/// Descriptors from 3 on.
pub struct Passed {
    activation: usize,
    files: Vec<OwnedFd>,
}

/// Takes over those of socket activation, and `preserve` more. To be called once, before anything is opened.
pub fn passed_on(preserve: u8) -> Result<Passed> {
    let activation = listen_fds();
    let count = activation + usize::from(preserve);
    if count > MOST {
        bail!("LISTEN_FDS and --preserve-fds: no more than {MOST} descriptors can be passed on");
    }
    let take = |i: usize| {
        let number = 3 + i as RawFd;
        sys::inherited_fd(number)
            .map_err(|_| anyhow!("unable to pass on descriptor {number}: please check that it is open"))
    };
    Ok(Passed { activation, files: (0..count).map(take).collect::<Result<_>>()? })
}

/// How many there are of socket activation, if they are meant for this process.
fn listen_fds() -> usize {
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    match number("LISTEN_PID") {
        Some(pid) if pid == std::process::id() as usize => number("LISTEN_FDS").unwrap_or(0),
        _ => 0,
    }
}

impl Passed {
    pub fn count(&self) -> Result<u8> {
        Ok(u8::try_from(self.files.len())?)
    }

    /// The variables that tell the process in the container of socket activation.
    pub fn environment(&self) -> Vec<String> {
        match self.activation {
            0 => Vec::new(),
            n => vec![format!("LISTEN_FDS={n}"), "LISTEN_PID=1".into()],
        }
    }

    /// All that the process gets, in the order of its numbers there: with a terminal, this as its standard streams.
    pub fn files(self, terminal: Option<BorrowedFd<'_>>) -> Result<Vec<OwnedFd>> {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let streams = match terminal {
            Some(t) => [t, t, t],
            None => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        };
        let mut all = Vec::new();
        for stream in streams {
            all.push(stream.try_clone_to_owned()?);
        }
        all.extend(self.files);
        Ok(all)
    }
}
