//! Terminals of containers: console sockets, the foreground, job control, sizes, hang-ups.

use crate::{exit, pid_in, reaped, Host, LIMIT};
use nix::pty::{openpty, Winsize};
use nix::sys::socket::{recvmsg, ControlMessageOwned, MsgFlags};
use serde_json::json;
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;

/// The side of a terminal that a person has.
struct Terminal {
    master: File,
    seen: String,
}

impl Terminal {
    fn new(master: OwnedFd) -> Terminal {
        Terminal { master: master.into(), seen: String::new() }
    }

    fn receive(socket: &UnixListener) -> Terminal {
        let (stream, _) = socket.accept().unwrap();
        let (mut text, mut space) = ([0u8; 64], nix::cmsg_space!([RawFd; 1]));
        let mut into = [IoSliceMut::new(&mut text)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::empty()).unwrap();
        let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else { panic!("no terminal") };
        // SAFETY: it has just been received and belongs to nobody else.
        Terminal::new(unsafe { OwnedFd::from_raw_fd(fds[0]) })
    }

    fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until this is shown, after what was waited for before.
    fn expect(&mut self, text: &str) {
        let end = std::time::Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            assert!(std::time::Instant::now() < end, "{text:?} is not shown, but {:?}", self.seen);
            let mut fds = [nix::poll::PollFd::new(self.master.as_fd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut fds, 100u16).unwrap();
            if fds[0].any() == Some(true) {
                let mut buf = [0u8; 4096];
                let n = self
                    .master
                    .read(&mut buf)
                    .unwrap_or_else(|e| panic!("{text:?} is not shown, but {:?}: {e}", self.seen));
                self.seen.push_str(&String::from_utf8_lossy(&buf[..n]));
            }
        }
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the kernel reads one `winsize`.
        assert_eq!(unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
    }
}

/// A shell that shows no prompt.
const SHELL: &str = "PS1=; export PS1; exec sh";

fn listen(path: &Path) -> UnixListener {
    UnixListener::bind(path).unwrap()
}

#[test]
fn a_console_socket_gets_the_terminal() {
    let host = Host::new("console");
    let bundle = host.bundle("bundle", &["sh"], |spec| {
        spec["process"]["terminal"] = json!(true);
        spec["process"]["consoleSize"] = json!({ "height": 31, "width": 91 });
    });
    let (bundle, path, pid_file) = (bundle.to_str().unwrap(), host.path("console"), host.path("pid"));
    let socket = listen(&path);
    host.bad(&["create", "--bundle", bundle, "box"], 1, "cannot allocate tty if");
    let path = path.to_str().unwrap();
    host.bad(&["run", "--bundle", bundle, "--console-socket", path, "box"], 1, "cannot use console socket if");
    host.good(&[
        "create",
        "--bundle",
        bundle,
        "--console-socket",
        path,
        "--pid-file",
        pid_file.to_str().unwrap(),
        "box",
    ]);
    let mut terminal = Terminal::receive(&socket);
    let pid = pid_in(&pid_file);
    host.good(&["start", "box"]);
    terminal.type_in("tty; stty size\n");
    terminal.expect("/dev/pts/0\r\n31 91\r\n");
    // The foreground process gets ^C, the shell goes on.
    terminal.type_in("sleep 1000\n");
    terminal.expect("sleep 1000\r\n");
    std::thread::sleep(std::time::Duration::from_millis(200));
    terminal.type_in("\x03");
    terminal.expect("^C");
    terminal.resize(11, 22);
    terminal.type_in("stty size\n");
    terminal.expect("11 22\r\n");

    host.bad(&["exec", "-t", "-d", "box", "sh"], 255, "cannot allocate tty if");
    let agent_file = host.path("agent");
    host.good(&["exec", "-t", "-d", "--console-socket", path, "--pid-file", agent_file.to_str().unwrap(), "box", "sh"]);
    let mut second = Terminal::receive(&socket);
    second.type_in("tty; exit 5\n");
    second.expect("/dev/pts/1\r\n");
    assert_eq!(reaped(pid_in(&agent_file)), exit(5));

    // A hang-up ends the shell, and the container with it.
    drop(terminal);
    let status = reaped(pid);
    assert!(status == libc::SIGHUP || status == exit(128 + libc::SIGHUP), "{status:x}");
    host.good(&["delete", "box"]);
}

/// Starts a command on a terminal of its own, as a shell would.
fn on_terminal(host: &Host, args: &[&str]) -> (std::process::Child, Terminal) {
    let size = Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None).unwrap();
    let mut command = host.command(args);
    let stream = || pty.slave.try_clone().unwrap();
    command.stdin(stream()).stdout(stream()).stderr(stream());
    // SAFETY: both calls may be made between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let child = command.spawn().unwrap();
    (child, Terminal::new(pty.master))
}

fn in_the_foreground(host: &Host, args: &[&str]) {
    let (child, mut terminal) = on_terminal(host, args);
    terminal.type_in("tty; stty size\n");
    terminal.expect("40 100\r\n");
    terminal.type_in("sleep 1000\n");
    terminal.expect("sleep 1000\r\n");
    std::thread::sleep(std::time::Duration::from_millis(200));
    terminal.type_in("\x03");
    terminal.expect("^C");
    terminal.resize(12, 34);
    terminal.type_in("stty size; exit 4\n");
    terminal.expect("12 34\r\n");
    assert_eq!(crate::common::end_within(child, LIMIT).status.code(), Some(4));
    // It is as it was found.
    let settings = nix::sys::termios::tcgetattr(&terminal.master).unwrap();
    assert!(settings.local_flags.contains(nix::sys::termios::LocalFlags::ICANON | nix::sys::termios::LocalFlags::ECHO));
}

#[test]
fn the_foreground_copies_between_terminals() {
    let host = Host::new("foreground-terminal");
    let bundle = host.bundle("bundle", &["sh", "-c", SHELL], |spec| spec["process"]["terminal"] = json!(true));
    in_the_foreground(&host, &["run", "--bundle", bundle.to_str().unwrap(), "box"]);
    assert!(!host.state_of("box").exists());
    let bundle = host.bundle("bundle", &["sleep", "1000"], |_| ());
    host.good(&["run", "-d", "--bundle", bundle.to_str().unwrap(), "box"]);
    in_the_foreground(&host, &["exec", "-t", "box", "sh", "-c", SHELL]);
}
