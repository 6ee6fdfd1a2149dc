//! The caller's terminal, and readers of the log that take nothing: neither may hold up the sandbox or the command.

mod common;

use common::{end_within, eventually, guest_tests, Ended, Scratch, RUNSC};
use nix::pty::{openpty, OpenptyResult};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// Runs the helper `stopped` in a sandbox that logs everything to the same terminal, which the helper stops; returns
/// once it reports that its child waits.
fn start(terminal: &OpenptyResult, on: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let program = guest_tests();
    let mut child = Command::new(RUNSC)
        .args(["run", "--debug", "--", program.to_str().unwrap(), "helper", "stopped", on])
        .stdin(terminal.slave.try_clone().unwrap())
        .stderr(terminal.slave.try_clone().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = out.read_line(&mut line);
        let _ = tell.send((line, out));
    });
    match told.recv_timeout(LIMIT) {
        Ok((line, out)) => {
            assert_eq!(line, "waits\n");
            (child, out)
        }
        Err(_) => {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the sandbox hangs");
        }
    }
}

/// The output available at the terminal now.
fn shown(terminal: &OpenptyResult) -> String {
    use nix::poll::{poll, PollFd, PollFlags};
    let mut text = Vec::new();
    let mut master = File::from(terminal.master.try_clone().unwrap());
    while poll(&mut [PollFd::new(terminal.master.as_fd(), PollFlags::POLLIN)], 0u8).unwrap() > 0 {
        let mut buf = [0; 4096];
        let n = master.read(&mut buf).unwrap();
        text.extend_from_slice(&buf[..n]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads the terminal until the sandbox ends, since the log alone may fill it; returns the output too.
fn end_shown(child: Child, terminal: &OpenptyResult) -> (Ended, String) {
    let ending = std::thread::spawn(move || end_within(child, LIMIT));
    let mut text = String::new();
    loop {
        let over = ending.is_finished();
        text += &shown(terminal);
        if over {
            return (ending.join().unwrap(), text);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Checks that another program can still write to the terminal.
fn goes_on(terminal: &OpenptyResult) {
    use nix::poll::{poll, PollFd, PollFlags};
    // The sandbox's output may have filled it.
    shown(terminal);
    let mut out = [PollFd::new(terminal.slave.as_fd(), PollFlags::POLLOUT)];
    assert_eq!(poll(&mut out, 0u8), Ok(1), "the terminal stays stopped");
    File::from(terminal.slave.try_clone().unwrap()).write_all(b"afterwards").unwrap();
    eventually("output of the next program", LIMIT, || Ok(shown(terminal).contains("afterwards")));
}

#[test]
fn a_stopped_terminal_blocks_only_its_writers() {
    let terminal = openpty(None, None).unwrap();
    let (child, _out) = start(&terminal, "on");
    let (ended, text) = end_shown(child, &terminal);
    assert_eq!(ended.status.code(), Some(0), "{text}");
    assert!(text.contains("held") && text.contains("(4000) is not supported"), "{text}");
    goes_on(&terminal);
}

#[test]
fn a_signal_ends_a_sandbox_that_waits_for_its_terminal() {
    let terminal = openpty(None, None).unwrap();
    let (child, _out) = start(&terminal, "off");
    assert!(common::kill(child.id() as i32, libc::SIGINT));
    let ended = end_within(child, LIMIT);
    assert!(ended.status.code() == Some(130) || ended.status.signal() == Some(libc::SIGINT), "{:?}", ended.status);
    goes_on(&terminal);
}

#[test]
fn an_unread_log_blocks_nothing() {
    let (read, mut write) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    while write.write(&[b'.'; 4096]).is_ok() {}
    nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
    for option in ["--debug", "--stats", "--strace"] {
        let command = Command::new(RUNSC)
            .args(["run", option, "--", "/bin/sh", "-c", "echo done"])
            .stdout(Stdio::piped())
            .stderr(write.try_clone().unwrap())
            .spawn()
            .unwrap();
        let ended = end_within(command, LIMIT);
        assert_eq!((ended.status.code(), ended.out.as_slice()), (Some(0), b"done\n".as_slice()), "{option}");
    }
    drop(read);
}

/// An interactive shell on a pseudo terminal.
struct Shell {
    child: Child,
    terminal: OpenptyResult,
    shown: String,
}

impl Shell {
    fn start() -> Shell {
        let terminal = openpty(None, None).unwrap();
        let end = || terminal.slave.try_clone().unwrap();
        let mut shell = Command::new("setsid");
        shell.args(["-c", "bash", "--norc", "--noprofile", "-i"]).env("PS1", "ready> ").env("HISTFILE", "/dev/null");
        let child = shell.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let mut shell = Shell { child, terminal, shown: String::new() };
        shell.expect("ready> ");
        shell
    }

    fn send(&mut self, text: &str) {
        File::from(self.terminal.master.try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the terminal shows `text`, and discards the output before it.
    fn expect(&mut self, text: &str) {
        eventually(text, LIMIT, || {
            self.shown += &shown(&self.terminal);
            match self.shown.find(text) {
                Some(at) => {
                    self.shown.drain(..at + text.len());
                    Ok(true)
                }
                None => Ok(false),
            }
        });
    }

    fn settings(&self) -> nix::sys::termios::Termios {
        nix::sys::termios::tcgetattr(&self.terminal.slave).unwrap()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Like any background program that reads the terminal: it is stopped, and continues reading in the foreground.
#[test]
fn a_background_sandbox_does_not_read_the_terminal() {
    let dir = Scratch::new("terminal");
    for program in ["cat".to_string(), format!("{RUNSC} run -- cat")] {
        let mut shell = Shell::start();
        let file = format!("{}/read", dir.path());
        shell.send(&format!("{program} >{file} &\n"));
        shell.expect("ready> ");
        for _ in 0..3 {
            shell.send("read -p 'name? ' NAME; echo \"is=$NAME\"\n");
            shell.expect("name? ");
            std::thread::sleep(Duration::from_millis(200));
            shell.send("secret\n");
            shell.expect("is=secret");
            shell.expect("ready> ");
        }
        shell.send("jobs\n");
        shell.expect("Stopped");
        shell.expect("ready> ");
        shell.send("fg\n");
        shell.expect("cat");
        shell.send("for the job\n\x04");
        shell.expect("ready> ");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "for the job\n", "{program}");
    }
}

/// A terminal that belongs to another job is changed neither by the guest nor by the command's restoring at its end.
#[test]
fn a_background_sandbox_does_not_change_the_terminal() {
    let mut shell = Shell::start();
    shell.send(&format!("{RUNSC} run -- sh -c 'trap \"\" TTOU; stty raw -echo; echo \"ended=$?\"' &\n"));
    shell.expect("ready> ");
    shell.send("read -p 'ask: ' NAME; echo \"is=$NAME\"\n");
    shell.expect("ask: ");
    shell.expect("ended=1");
    eventually("the end of the job", LIMIT, || {
        let jobs = Command::new("pgrep").args(["-P", &shell.child.id().to_string()]).output().unwrap();
        Ok(jobs.stdout.is_empty())
    });
    let settings = shell.settings();
    use nix::sys::termios::LocalFlags;
    assert!(settings.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO), "{settings:?}");
    shell.send("x\n");
    shell.expect("is=x");
}
