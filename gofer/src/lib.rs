//! The Gofer: serves trees of host files to the Sentry over a socket.
//!
//! One process per container. The launcher passes it the trees at start (the container's root, and one for each bind
//! mount). It then takes requests from the one client at the other end of the connection, until that closes. The
//! client is the Sentry, and counts as hostile.
//!
//! # Guarantees, whatever the client sends
//! * Every lookup is of one name in one directory, with `openat2` beneath that directory and without following
//!   symlinks; the protocol cannot express a path. Nothing outside the trees can be reached, even if other processes
//!   change them meanwhile.
//! * Only regular files are opened for the client and their descriptors passed on. The Gofer opens directories
//!   itself, for listing and syncing; devices, fifos and sockets never. A node's kind is taken from the descriptor
//!   that is then reopened, so it cannot change in between. The exception are small files that are read ahead: they
//!   are checked first and then opened by name. In that instant a process that can change the tree could get a fifo
//!   of its own opened and closed again, without a wait and without a byte read.
//! * No tree shows an interface of the host's kernel (`/proc`, `/sys` and the like), wherever it is mounted: see
//!   `kernel_fs`.
//! * Nothing in a read-only tree changes: each modifying operation checks that first, and once confined the mount
//!   refuses, too.
//! * A malformed request ends the connection, and with it the process. A well-formed one costs at most one packet of
//!   memory, and the number of files held is limited. There is no recursion, and no wait except for the host's file
//!   system.
//!
//! # Structure
//! [`Gofer`] opens the trees. `server` reads requests and passes them to `ops`, `dir` and `xattr`; `fids` is the
//! table of files held; `sys` contains every host call, and the only `unsafe` code; [`confine()`] confines the
//! process.
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

/// Default limit of files held for a client, subject to `RLIMIT_NOFILE`.
pub const DEFAULT_MAX_FIDS: u32 = 1 << 16;

/// Descriptors reserved for everything but fids: connection, trees, directory streams, the file being opened.
const SPARE_DESCRIPTORS: u64 = 128;

/// A tree of host files to serve. May also be a single file that is no directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The name by which the client attaches to it.
    pub name: String,
    /// Its path on the host. Symlinks in this path are followed: it comes from the launcher.
    pub host_path: PathBuf,
    /// Whether changes are refused.
    pub read_only: bool,
}

/// Configuration of a Gofer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The trees, each with a unique name.
    pub trees: Vec<Tree>,
    /// Most files held for the client at a time.
    pub max_fids: u32,
    /// Whether attributes report the presence of an ACL (once confined). That costs a host call per file, and is
    /// useless to a client that checks no permissions.
    pub tell_acls: bool,
    /// User and group to become once the trees are open: those of the user namespace that the process was started in, which maps some ids
    /// of the host only. Files of other ids are then those of others.
    pub become_ids: Option<(u32, u32)>,
}

impl Config {
    /// Serves `trees` with the default limits.
    pub fn new(trees: Vec<Tree>) -> Self {
        Self { trees, max_fids: DEFAULT_MAX_FIDS, tell_acls: false, become_ids: None }
    }
}

/// Why the Gofer could not start or continue.
#[derive(Debug)]
pub enum Error {
    /// A step of the setup failed.
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

/// An open tree.
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
    /// Opens the trees in place, without confining the process.
    ///
    /// Opens `/proc/self/fd`, too, so it must run in the process that will serve. Sets the umask of that process to
    /// 0, and its soft limit of descriptors to the hard one.
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

    /// Serves the client at the other end of `conn` until it closes the connection (`Ok`) or an error ends it.
    pub fn serve(self, conn: OwnedFd) -> Result<(), Error> {
        server::Server::new(self, conn)?.run()
    }
}

/// Opens the trees and serves them, without confining the process: [`Gofer::open`] and [`Gofer::serve`] in one.
pub fn serve(conn: OwnedFd, config: &Config) -> Result<(), Error> {
    Gofer::open(config)?.serve(conn)
}

/// Opens the roots of the trees with `O_PATH`.
fn open_roots(config: &Config) -> Result<Vec<OwnedFd>, Error> {
    let open = |tree: &Tree| {
        sys::open_host_path(&tree.host_path).map_err(setup(&format!("open {}", tree.host_path.display())))
    };
    config.trees.iter().map(open).collect()
}

fn setup(what: &str) -> impl FnOnce(Errno) -> Error + '_ {
    move |e| Error::Setup(what.to_owned(), e)
}
