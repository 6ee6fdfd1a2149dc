//! Hooks: programs of the host that a bundle has run at points of the life cycle, with the container's state on
//! standard input.

use crate::sys;
use anyhow::{anyhow, bail, Context, Result};
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::Pid;
use oci_spec::runtime::Hook;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What is kept of a hook's standard output and of its standard error, in bytes.
const KEPT: usize = 32 << 10;

/// Runs the hooks one after the other. Each gets `state` (JSON) on its standard input, the arguments and the
/// environment that are configured and nothing else, and is killed when its timeout has passed. The first that fails
/// ends the list: `error running hook #0: …`, with what it wrote to standard output and standard error.
///
/// `kind` is for the log.
pub fn run(kind: &str, hooks: &[Hook], state: &str) -> Result<()> {
    for (i, hook) in hooks.iter().enumerate() {
        log::debug!("running {kind} hook #{i}: {}", hook.path().display());
        run_one(hook, state).with_context(|| format!("error running hook #{i}"))?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &str) -> Result<()> {
    let deadline = deadline(hook)?;
    let mut running = Running::start(hook, state)?;
    let Some(status) = running.until(deadline)? else {
        // Signals and waits concern one process, which has not been waited for yet.
        running.child.kill().context("killing the hook")?;
        running.child.wait().context("waiting for the hook")?;
        bail!("hook ran past specified timeout of {:.1}s", hook.timeout().unwrap_or(0) as f64);
    };
    if !status.success() {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&running.output[0].kept), text(&running.output[1].kept));
        bail!("error running hook: {}, stdout: {out}, stderr: {err}", described(status));
    }
    Ok(())
}

/// `None`: it may run for ever. A timeout that is not positive is a mistake, which runc refuses only by running out of
/// it at once.
fn deadline(hook: &Hook) -> Result<Option<Instant>> {
    let Some(seconds) = hook.timeout() else { return Ok(None) };
    let seconds = u64::try_from(seconds).ok().filter(|s| *s > 0);
    let seconds = seconds.ok_or_else(|| anyhow!("timeout of a hook must be greater than zero"))?;
    Ok(Instant::now().checked_add(Duration::from_secs(seconds)))
}

fn described(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("signal: {signal}"),
        _ => "unknown status".into(),
    }
}

/// A stream that the hook writes to; its beginning is kept, the rest is read and dropped.
struct Output {
    from: Option<std::fs::File>,
    kept: Vec<u8>,
}

struct Running<'a> {
    child: Child,
    ended: OwnedFd,
    stdin: Option<ChildStdin>,
    state: &'a [u8],
    output: [Output; 2],
}

impl Running<'_> {
    fn start<'a>(hook: &Hook, state: &'a str) -> Result<Running<'a>> {
        let mut command = Command::new(hook.path());
        let (name, args) = match hook.args().as_deref() {
            Some([name, args @ ..]) => (Some(name), args),
            _ => (None, &[][..]),
        };
        // The name is an argument of its own, which need not be the path.
        if let Some(name) = name {
            command.arg0(name);
        }
        command.args(args).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for line in hook.env().iter().flatten() {
            if let Some((key, value)) = line.split_once('=') {
                command.env(key, value);
            }
        }
        let mut child = command.spawn().map_err(|e| anyhow!("fork/exec {}: {e}", hook.path().display()))?;
        let pid = i32::try_from(child.id()).context("the hook's process number")?;
        let ended = sys::pidfd_open(Pid::from_raw(pid)).context("pidfd_open")?;
        let stdin = child.stdin.take();
        let streams = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
        for fd in streams.iter().flatten().map(AsFd::as_fd).chain(stdin.iter().map(AsFd::as_fd)) {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("the hook's pipes")?;
        }
        let output = streams.map(|fd| Output { from: fd.map(std::fs::File::from), kept: Vec::new() });
        Ok(Running { child, ended, stdin, state: state.as_bytes(), output })
    }

    /// Feeds and drains the hook until it has ended; `None`: time ran out. A background process of the hook's may keep
    /// its streams open, so that their end says nothing.
    fn until(&mut self, deadline: Option<Instant>) -> Result<Option<ExitStatus>> {
        loop {
            self.feed();
            self.output.iter_mut().for_each(Output::drain);
            if let Some(status) = self.child.try_wait().context("waiting for the hook")? {
                // What it wrote just before.
                self.output.iter_mut().for_each(Output::drain);
                return Ok(Some(status));
            }
            let left = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Ok(None),
                Some(left) => PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
                None => PollTimeout::NONE,
            };
            let mut fds = vec![PollFd::new(self.ended.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.stdin.as_ref().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLOUT)));
            let open = self.output.iter().filter_map(|o| o.from.as_ref());
            fds.extend(open.map(|f| PollFd::new(f.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, left) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e).context("poll"),
            }
        }
    }

    /// Writes what the pipe takes of the state, and closes it after the last byte. A hook need not read it.
    fn feed(&mut self) {
        while let Some(pipe) = &mut self.stdin {
            if self.state.is_empty() {
                self.stdin = None;
                return;
            }
            match pipe.write(self.state) {
                Ok(n) => self.state = self.state.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.stdin = None,
            }
        }
    }
}

/// A hook that is no longer waited for must not go on.
impl Drop for Running<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Output {
    /// Reads what there is, in one go at most as much as a pipe holds by default: a hook that never stops writing does
    /// not hold up its own timeout.
    fn drain(&mut self) {
        let mut block = [0; 8192];
        for _ in 0..8 {
            let Some(from) = &mut self.from else { return };
            match from.read(&mut block) {
                Ok(0) => self.from = None,
                Ok(n) => {
                    let room = KEPT.saturating_sub(self.kept.len());
                    self.kept.extend(block.iter().take(n.min(room)));
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.from = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shell(script: &str, timeout: Option<i64>) -> Hook {
        let args = ["hook-name", "-c", script];
        let mut hook = json!({ "path": "/bin/sh", "args": args, "env": ["A=b=c", "PATH=/bin:/usr/bin"] });
        if let Some(seconds) = timeout {
            hook["timeout"] = seconds.into();
        }
        serde_json::from_value(hook).unwrap()
    }

    fn message(hooks: &[Hook], state: &str) -> String {
        format!("{:#}", run("prestart", hooks, state).unwrap_err())
    }

    #[test]
    fn state_arguments_and_environment() {
        let dir = std::env::temp_dir().join(format!("runsc-rs-hooks-{}", std::process::id()));
        let script = format!("{{ cat; echo \"$0\"; env | grep -v -e ^PWD -e ^SHLVL -e ^_=; }} >{}", dir.display());
        let state = format!("{{\"id\":\"{}\"}}", "x".repeat(200_000));
        run("prestart", &[shell(&script, Some(60))], &state).unwrap();
        let seen = std::fs::read_to_string(&dir).unwrap();
        std::fs::remove_file(&dir).unwrap();
        let (text, rest) = seen.split_at(state.len());
        assert_eq!(text, state);
        let mut lines: Vec<&str> = rest.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["A=b=c", "PATH=/bin:/usr/bin", "hook-name"]);
    }

    #[test]
    fn failures() {
        let text = message(&[shell("true", None), shell("echo out; echo err >&2; exit 3", None)], "{}");
        assert_eq!(text, "error running hook #1: error running hook: exit status 3, stdout: out\n, stderr: err\n");
        assert!(message(&[shell("kill -9 $$", None)], "{}").contains("signal: 9"));
        let missing: Hook = serde_json::from_value(json!({ "path": "/no/such/hook" })).unwrap();
        assert!(message(&[missing], "{}").starts_with("error running hook #0: fork/exec /no/such/hook: "));
    }

    #[test]
    fn timeouts() {
        let text = message(&[shell("yes; sleep 1000", Some(1))], "{}");
        assert_eq!(text, "error running hook #0: hook ran past specified timeout of 1.0s");
        assert!(message(&[shell("true", Some(0))], "{}").contains("greater than zero"));
        assert!(message(&[shell("true", Some(-1))], "{}").contains("greater than zero"));
    }

    #[test]
    fn what_a_hook_need_not_do() {
        // Read its input, or close its streams in the background; and it may write more than a pipe holds.
        run("poststop", &[shell("sleep 20 & exec head -c 1000000 /dev/zero", Some(10))], &"y".repeat(1 << 20)).unwrap();
    }
}
