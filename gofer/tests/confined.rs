//! The rights left to a confined process.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use gofer::{Arg, SECCOMP};
use protocol::{transport, Client, MknodKind, NewNode, OpenFlags, SetAttr, WalkFids};

const NOBODY: u32 = 65534;

struct Running {
    child: Child,
    dir: std::path::PathBuf,
}

/// Starts a Gofer on a tree of its own, as this user or as nobody.
fn start(name: &str, rootless: bool, suffix: &str) -> (Client, Running) {
    let dir = std::env::temp_dir().join(format!("gofer-confined-{name}-{}", std::process::id()));
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("file"), "hello").unwrap();
    let (ours, theirs): (OwnedFd, OwnedFd) = transport::socketpair().unwrap();
    let mut program = std::path::PathBuf::from(env!("CARGO_BIN_EXE_gofer-serve"));
    if rootless {
        // A copy that "nobody" can execute, wherever the build is.
        program = dir.with_extension("program");
        fs::copy(env!("CARGO_BIN_EXE_gofer-serve"), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(&program);
    command.arg(format!("root={}{suffix}", dir.display())).stdin(Stdio::from(theirs));
    if rootless {
        for path in ["", "sub", "file"] {
            std::os::unix::fs::chown(dir.join(path), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        command.uid(NOBODY).gid(NOBODY);
    }
    let child = loop {
        match command.spawn() {
            // A child of another test has the copy's descriptor until it executes.
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
            child => break child.unwrap(),
        }
    };
    if rootless {
        let _ = fs::remove_file(program);
    }
    (Client::connect(ours).unwrap(), Running { child, dir })
}

impl Running {
    fn status(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.into(), v.trim().into())).collect()
    }

    fn finish(mut self) {
        assert!(self.child.wait().unwrap().success());
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

#[test]
fn a_confined_process_has_few_rights() {
    if !common::root_for("a_confined_process_has_few_rights") {
        return; // other users may not inspect a process that is not dumpable
    }
    let threads = if std::thread::available_parallelism().unwrap().get() > 1 { "3" } else { "1" };
    let (rw, ro) = ("00000000000000df", "0000000000000004");
    for (name, rootless, suffix, caps) in [("root", false, "", rw), ("ro", false, ":ro", ro), ("nobody", true, "", rw)]
    {
        let (client, running) = start(name, rootless, suffix);
        client.attach("root").unwrap();
        let status = running.status();
        for (field, value) in [
            ("CapEff", caps),
            ("CapPrm", caps),
            ("CapInh", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("Threads", threads),
        ] {
            assert_eq!(status[field], value, "{name}: {field}");
        }
        let pid = running.child.id();
        assert_eq!(fs::read_dir(format!("/proc/{pid}/root/")).unwrap().count(), 0, "{name}: the root is empty");
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        assert_eq!(mounts.lines().count(), 1, "{name}: {mounts}");
        assert!(mounts.contains(" / ro,"), "{name}: {mounts}");
        drop(client);
        running.finish();
    }
}

#[test]
fn it_works_without_root() {
    if !nix::unistd::geteuid().is_root() {
        return; // then every other test is this one
    }
    let (client, running) = start("rootless", true, "");
    let root = client.attach("root").unwrap();
    assert_eq!((root.attr.uid, root.attr.gid), (NOBODY, NOBODY));
    let root = root.handle;
    let new = NewNode::with_mode(0o640);
    let walk = root.walk(&[b"file"], WalkFids::Last, Some(OpenFlags::READ_WRITE)).unwrap();
    assert!(walk.file.unwrap().is_ok());
    let (node, _) = root.create(b"new", new, OpenFlags::READ_WRITE).unwrap();
    assert_eq!((node.attr.mode, node.attr.uid), (0o100640, NOBODY));
    root.mkdir(b"dir", new).unwrap();
    root.symlink(b"link", b"x", new).unwrap();
    root.mknod(b"fifo", MknodKind::Fifo, new).unwrap();
    root.link(b"second", &node.handle).unwrap();
    let closed = SetAttr { mode: Some(0), ..SetAttr::default() };
    node.handle.setattr(closed).unwrap();
    node.handle.open(OpenFlags::READ).unwrap();
    let given_away = NewNode { mode: 0o600, uid: Some(0), gid: None };
    assert!(root.create(b"roots", given_away, OpenFlags::READ).is_err());
    assert!(!running.dir.join("roots").exists(), "what could not be finished is removed");
    let memfd = nix::sys::memfd::memfd_create(c"x", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    assert!(client.reopen_read_only(std::os::fd::AsFd::as_fd(&memfd)).is_ok());
    drop((root, walk.nodes, node, client));
    running.finish();
}

#[test]
fn a_full_table_fits_through_the_filter() {
    let (client, running) = start("many", false, "");
    // The table grows with memory that the allocator requests from the kernel, and shrinks by descriptors only.
    let wanted = client.max_handles().min(20_000);
    let held: Vec<_> = (0..wanted).map_while(|_| client.attach("root").ok()).collect();
    assert_eq!(held.len(), usize::try_from(wanted).unwrap());
    let page = held[0].handle.read_dir(0, protocol::Detail::Attr).unwrap();
    assert_eq!(page.len(), 2);
    drop(held);
    client.flush();
    client.attach("root").unwrap();
    assert!(!client.is_dead());
    drop(client);
    running.finish();
}

#[test]
fn the_table_of_calls_is_in_order() {
    let mut seen = BTreeMap::new();
    for rule in SECCOMP {
        assert!(seen.insert(rule.call, rule.args).is_none(), "call {} is there twice", rule.call);
        assert!(!rule.why.is_empty());
        for arg in rule.args {
            let (Arg::OneOf(index, _) | Arg::Descriptors(index) | Arg::Without(index, _)) = arg;
            assert!(*index < 6);
        }
    }
    // Calls that would lead out of the trees, or start a program.
    for call in [
        libc::SYS_open,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_fork,
        libc::SYS_ptrace,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_open_by_handle_at,
        libc::SYS_mount,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_ioctl,
        libc::SYS_fchdir,
        libc::SYS_io_uring_setup,
        libc::SYS_bpf,
    ] {
        assert!(!seen.contains_key(&call), "call {call}");
    }
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        assert!(matches!(seen[&call], [Arg::Without(2, libc::PROT_EXEC)]), "call {call}");
    }
}
