//! A server with trees of its own, and a client.
#![allow(dead_code)] // not every test binary uses all of it

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use gofer::{Config, Error, Tree};
use nix::errno::Errno;
use protocol::client::{Node, Walk};
use protocol::{transport, Client, Handle, WalkFids};

/// How the server runs.
#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    /// In a thread of the test, so that its result can be checked.
    Thread,
    /// In a confined process of its own.
    Confined,
}

enum Server {
    Thread(Option<JoinHandle<Result<(), Error>>>),
    Process(Child),
}

/// Whether the test runs as root; if not, reports to `./test` that `test` was skipped.
pub fn root_for(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("left out: {test} needs root");
        if let Some(list) = std::env::var_os("RUNSC_RS_LEFT_OUT") {
            use std::io::Write;
            let _ = fs::OpenOptions::new().append(true).open(list).and_then(|mut f| writeln!(f, "gofer: {test}"));
        }
    }
    root
}

/// A temporary directory with these trees: `root` (writable), `ro` (read-only) and `file` (a single file, writable).
/// Next to them is `secret`.
pub struct Fixture {
    pub dir: PathBuf,
    server: Server,
}

impl Fixture {
    /// A server and the other end of its connection.
    pub fn start(mode: Mode, max_fids: u32) -> (Self, OwnedFd) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("gofer-test-{}-{n}", std::process::id()));
        for sub in ["root/dir/deep", "ro/dir"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        fs::write(dir.join("secret"), "secret").unwrap();
        fs::write(dir.join("single"), "single").unwrap();
        for root in ["root", "ro"] {
            fs::write(dir.join(root).join("file"), "hello").unwrap();
            fs::write(dir.join(root).join("dir/inner"), "inner").unwrap();
            for (name, target) in
                [("to_file", "file"), ("to_dir", "dir"), ("up", ".."), ("secret", "../secret"), ("abs", "/etc/passwd")]
            {
                std::os::unix::fs::symlink(target, dir.join(root).join(name)).unwrap();
            }
        }
        let trees = [("root", "root", false), ("ro", "ro", true), ("file", "single", false)];
        let (ours, theirs) = transport::socketpair().unwrap();
        let server = match mode {
            Mode::Thread => {
                let trees = trees
                    .map(|(name, path, read_only)| Tree { name: name.into(), host_path: dir.join(path), read_only })
                    .to_vec();
                let config = Config { trees, max_fids, tell_acls: false, become_ids: None };
                Server::Thread(Some(std::thread::spawn(move || gofer::serve(theirs, &config))))
            }
            Mode::Confined => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_gofer-serve"));
                command.arg(format!("--max-fids={max_fids}"));
                for (name, path, read_only) in trees {
                    command.arg(format!("{name}={}{}", dir.join(path).display(), if read_only { ":ro" } else { "" }));
                }
                Server::Process(command.stdin(Stdio::from(theirs)).spawn().unwrap())
            }
        };
        (Self { dir, server }, ours)
    }

    /// A server and its client.
    pub fn client(mode: Mode) -> (Self, Client) {
        let (fixture, socket) = Self::start(mode, 1000);
        (fixture, Client::connect(socket).unwrap())
    }

    /// A path in the tree `root`, on the host.
    pub fn host(&self, path: &str) -> PathBuf {
        self.dir.join("root").join(path)
    }

    /// The server's process.
    pub fn pid(&self) -> i32 {
        match &self.server {
            Server::Thread(_) => panic!("only for a server in a process"),
            Server::Process(child) => child.id().try_into().unwrap(),
        }
    }

    /// Waits for the server's thread, which ends once the connection is closed.
    pub fn join(mut self) -> Result<(), Error> {
        match &mut self.server {
            Server::Thread(thread) => thread.take().unwrap().join().expect("the server panicked"),
            Server::Process(_) => panic!("only for a server in a thread"),
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Server::Process(child) = &mut self.server {
            let status = child.wait().unwrap();
            if !std::thread::panicking() {
                assert!(status.success(), "the server ended with {status}");
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Walks a path with slashes.
pub fn walk(dir: &Handle, path: &str) -> Result<Walk, Errno> {
    let names: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
    dir.walk(&names, WalkFids::Last, None)
}

/// The node at a path that exists.
pub fn find(dir: &Handle, path: &str) -> Node {
    let mut walk = walk(dir, path).unwrap();
    assert_eq!(walk.end, protocol::client::WalkEnd::Complete, "{path}");
    let node = walk.nodes.pop().unwrap();
    Node { handle: node.handle.unwrap(), attr: node.attr }
}

/// The content of a file on the host.
pub fn content(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}
