//! The Gofer: serves trees of host files to the Sentry over a socket.
//!
//! One process per container. At its start the launcher gives it the trees (the container's root, and one for each bind mount); afterwards it takes
//! requests from the one client at the other end of the connection, until that closes. The client is the Sentry, which is to be taken for hostile.
//!
//! # What holds whatever the client sends
//! * Every lookup is of one name in one directory, with `openat2` beneath that directory and without following symlinks; the protocol cannot
//!   express a path. Nothing outside the trees can be reached, whoever changes them meanwhile.
//! * Only regular files are opened for the client and their descriptors given away. Directories are opened for listing and syncing, by the Gofer alone; devices,
//!   fifos and sockets never. A node's kind is taken from the descriptor that is then opened, so it cannot change in between. Only small files that are
//!   read ahead are looked at first and opened by name then: who can change a tree from outside might, in that instant, have a fifo of its own opened and
//!   closed again, without a wait and without a byte read.
//! * No tree shows an interface of the host's kernel (`/proc`, `/sys` and the like), wherever it is mounted: see `kernel_fs`.
//! * Nothing in a read-only tree changes: each operation that writes asks first, and once confined the mount refuses too.
//! * A request that is not well-formed ends the connection, and with it the process. A well-formed one costs at most one packet of memory, and
//!   the number of files held is limited; there is no recursion and no wait but for the host's file system.
//!
//! # The way through
//! [`Gofer`] opens the trees; `server` reads requests and hands them to `ops`, `dir` and `xattr`; `fids` is the table of files held; `sys` is every
//! host call, and the only place with `unsafe`; [`confine()`] locks the process in.
#![deny(unsafe_code)]
#![warn(missing_docs)]

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use protocol::wire::DecodeError;
use protocol::FileKind;
use rustix::fs::Mode;
use rustix::io::Errno;

mod confine;
mod dir;
mod fids;
mod kernel_fs;
mod mounts;
mod ops;
mod parallel;
mod seccomp;
mod server;
mod sys;
mod xattr;

pub use confine::confine;
pub use kernel_fs::kernel_file_system;
pub use seccomp::{Arg, Rule, SECCOMP};

/// Files held for a client unless the configuration says otherwise, as far as `RLIMIT_NOFILE` allows.
pub const DEFAULT_MAX_FIDS: u32 = 1 << 16;

/// Descriptors kept back for everything but fids: connection, trees, directory streams, the file being opened.
const SPARE_DESCRIPTORS: u64 = 128;

/// A tree of host files to serve. A single file that is no directory will do as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// What the client attaches to.
    pub name: String,
    /// Where it is on the host. Symlinks in this path are followed: it comes from the launcher.
    pub host_path: PathBuf,
    /// Whether it may not be changed.
    pub read_only: bool,
}

/// What to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The trees, each under a name of its own.
    pub trees: Vec<Tree>,
    /// Most files held for the client at a time.
    pub max_fids: u32,
    /// Whether attributes tell if there is an ACL (once confined). It costs a host call a file, and a client that checks no permissions has no use for it.
    pub tell_acls: bool,
}

impl Config {
    /// Serves `trees` with the usual limits.
    pub fn new(trees: Vec<Tree>) -> Self {
        Self { trees, max_fids: DEFAULT_MAX_FIDS, tell_acls: false }
    }
}

/// Why the Gofer could not start or go on.
#[derive(Debug)]
pub enum Error {
    /// A step of getting ready failed.
    Setup(String, Errno),
    /// The connection failed.
    Connection(Errno),
    /// The client broke the protocol.
    Protocol(DecodeError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup(what, e) => write!(f, "{what}: {e}"),
            Self::Connection(e) => write!(f, "connection to the Sentry: {e}"),
            Self::Protocol(e) => write!(f, "the Sentry broke the protocol: {e}"),
        }
    }
}

impl std::error::Error for Error {}

/// A tree that is open.
#[derive(Debug)]
struct OpenTree {
    name: String,
    root: OwnedFd,
    kind: FileKind,
    read_only: bool,
}

/// Open trees, ready to be served.
#[derive(Debug)]
pub struct Gofer {
    trees: Vec<OpenTree>,
    descriptors: sys::Descriptors,
    max_fids: u32,
    second: Option<parallel::Second>,
}

impl Gofer {
    /// Opens the trees where they are, without confining the process.
    ///
    /// Opens `/proc/self/fd` too, so it must run in the process that will serve. Sets that process's umask to 0 and its soft limit of descriptors to
    /// the hard one.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let descriptors = sys::Descriptors::open().map_err(setup("open /proc/self/fd"))?;
        let mut gofer = Self::with_roots(config, descriptors, open_roots(config)?)?;
        gofer.second = parallel::Second::start()?;
        Ok(gofer)
    }

    fn with_roots(config: &Config, descriptors: sys::Descriptors, roots: Vec<OwnedFd>) -> Result<Self, Error> {
        rustix::process::umask(Mode::empty());
        sys::keep_capabilities();
        let limit = sys::raise_descriptor_limit().map_err(setup("raise the limit of descriptors"))?;
        let limit = u32::try_from(limit.saturating_sub(SPARE_DESCRIPTORS)).unwrap_or(u32::MAX);
        let mut trees = Vec::with_capacity(config.trees.len());
        for (tree, root) in config.trees.iter().zip(roots) {
            let kind = sys::stat(&root).map_err(setup(&tree.host_path.display().to_string()))?.kind();
            trees.push(OpenTree { name: tree.name.clone(), root, kind, read_only: tree.read_only });
        }
        Ok(Self { trees, descriptors, max_fids: config.max_fids.min(limit).max(16), second: None })
    }

    /// Serves the client at the other end of `conn` until it closes the connection (`Ok`) or has to be given up.
    pub fn serve(self, conn: OwnedFd) -> Result<(), Error> {
        server::Server::new(self, conn)?.run()
    }
}

/// Opens the trees and serves them, without confining the process: [`Gofer::open`] and [`Gofer::serve`] in one.
pub fn serve(conn: OwnedFd, config: &Config) -> Result<(), Error> {
    Gofer::open(config)?.serve(conn)
}

/// Holds the trees where they are.
fn open_roots(config: &Config) -> Result<Vec<OwnedFd>, Error> {
    let open = |tree: &Tree| {
        sys::open_host_path(&tree.host_path).map_err(setup(&format!("open {}", tree.host_path.display())))
    };
    config.trees.iter().map(open).collect()
}

fn setup(what: &str) -> impl FnOnce(Errno) -> Error + '_ {
    move |e| Error::Setup(what.to_owned(), e)
}
