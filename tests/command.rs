//! The command from outside: exit statuses, inherited state, destinations of writes, usage errors, signals, and the
//! death of each process.

mod common;

use common::{alive, command_line, descendants, eventually, guest_tests, left_out, Scratch, RUNSC};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

fn runsc(args: &[&str]) -> Command {
    let mut command = Command::new(RUNSC);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Output {
    let output = runsc(&[&["run"], args].concat()).output().unwrap();
    assert_eq!(output.status.signal(), None, "the command itself was killed");
    output
}

/// Standard output of a script, which must succeed.
fn sh(script: &str) -> String {
    out(run(&["--", "/bin/sh", "-c", script]))
}

fn out(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {err}", output.status);
    out.into_owned()
}

#[test]
fn the_commands_status_is_passed_on() {
    assert_eq!(run(&["--", "/bin/true"]).status.code(), Some(0));
    assert_eq!(run(&["--", "/bin/sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(run(&["/bin/sh", "-c", "exit 255"]).status.code(), Some(255));
}

#[test]
fn the_command_is_an_ordinary_process() {
    let ended = run(&["--", "/bin/bash", "-c", "kill -TERM $$; echo alive"]);
    assert_eq!((ended.status.code(), ended.stdout.as_slice()), (Some(143), b"".as_slice()));
    assert_eq!(sh("echo $PPID; kill -0 1 2>/dev/null || echo nobody"), "1\nnobody\n");
}

#[test]
fn not_found_is_127_and_not_executable_126() {
    let dir = Scratch::new("exec");
    let file = dir.0.join("file");
    fs::write(&file, "text").unwrap();
    for (command, status) in
        [("no-such-command", 127), ("/no/such/command", 127), (file.to_str().unwrap(), 126), ("/etc", 126)]
    {
        let output = run(&["--", command]);
        assert_eq!(output.status.code(), Some(status), "{command}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with("runsc-rs: ") && text.contains(command) && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn mistakes_are_125_and_one_clear_line() {
    for (args, expected) in [
        (&["run", "--bind", "/etc", "--", "true"][..], "SRC:DST"),
        (&["run", "--bind", "/no/such:/x", "--", "true"], "/no/such"),
        (&["run", "--bind", "/proc:/x", "--", "true"], "interface of the host's kernel (proc)"),
        (&["run", "--bind", "/proc/version:/x:ro", "--", "true"], "interface of the host's kernel (proc)"),
        (&["run", "--rootfs", "/sys", "--", "true"], "interface of the host's kernel (sysfs)"),
        (&["run", "--rootfs", "/no/such", "--", "true"], "/no/such"),
        (&["run", "--rootfs", "/etc/passwd", "--", "true"], "not a directory"),
        (&["run", "--cwd", "relative", "--", "true"], "absolute"),
        (&["run", "--cwd", "/no/such", "--", "true"], "/no/such"),
        (&["run", "--user", "root", "--", "true"], "UID"),
        (&["run", "--env", "=x", "--", "true"], "name"),
        (&["run", "--network", "host", "--", "true"], "not there yet"),
        (&["run", "--platform", "ptrace", "--", "true"], "not there yet"),
        (&["run", "--log", "/no/such/dir/log", "--", "true"], "/no/such/dir/log"),
        (&["run"], "COMMAND"),
        (&["run", "--no-such-option", "true"], "no-such-option"),
        (&["internal-sentry"], "internal"),
        (&["internal-gofer"], "internal"),
    ] {
        let output = runsc(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{args:?}: {text}");
        assert!(text.contains(expected), "{args:?}: {text}");
    }
}

#[test]
fn help_and_the_table_print() {
    for args in [&["--help"][..], &["run", "--help"], &["--version"], &["syscalls"], &["syscalls", "--json"]] {
        assert!(!out(runsc(args).output().unwrap()).is_empty());
    }
    let json = out(runsc(&["syscalls", "--json"]).output().unwrap());
    assert!(json.contains("\"name\": \"read\""));
}

#[test]
fn environment_carries_over_unless_cleared() {
    let with = |args: &[&str]| out(runsc(args).env("CARRIED", "over").env("OTHER", "1").output().unwrap());
    assert!(with(&["run", "env"]).contains("CARRIED=over\n"));
    assert_eq!(
        with(&["run", "--clear-env", "--env", "CARRIED", "-e", "A=b=c", "/usr/bin/env"]),
        "CARRIED=over\nA=b=c\n"
    );
    assert!(with(&["run", "--env", "CARRIED=anew", "env"]).contains("CARRIED=anew\n"));
}

#[test]
fn working_directory_carries_over() {
    let dir = Scratch::new("cwd");
    assert_eq!(out(runsc(&["run", "/bin/pwd"]).current_dir(&dir.0).output().unwrap()), format!("{}\n", dir.path()));
    assert_eq!(out(run(&["--cwd", "/usr", "/bin/pwd"])), "/usr\n");
}

#[test]
fn user_and_hostname() {
    let own = out(Command::new("id").stderr(Stdio::piped()).output().unwrap());
    assert_eq!(out(run(&["id"])), own);
    assert_eq!(out(run(&["--user", "12:34", "--cwd", "/", "/bin/sh", "-c", "id -u; id -g"])), "12\n34\n");
    assert_eq!(out(run(&["--hostname", "elsewhere", "uname", "-n"])), "elsewhere\n");
}

#[test]
fn streams_carry_over() {
    let mut child = runsc(&["run", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through pipes\n").unwrap();
    assert_eq!(out(child.wait_with_output().unwrap()), "through pipes\n");
    assert_eq!(out(run(&["/bin/sh", "-c", "echo out; echo err >&2"])), "out\n");

    let dir = Scratch::new("streams");
    let file = dir.0.join("file");
    fs::write(&file, "first\nsecond\n").unwrap();
    // Inherited files keep their offset …
    let mut input = fs::File::open(&file).unwrap();
    input.read_exact(&mut [0; 6]).unwrap();
    let output = runsc(&["run", "cat"]).stdin(input.try_clone().unwrap()).output().unwrap();
    assert_eq!(out(output), "second\n");
    assert_eq!(input.read(&mut [0; 8]).unwrap(), 0, "the offset is shared");
    // … and append mode.
    let append = fs::OpenOptions::new().append(true).open(&file).unwrap();
    runsc(&["run", "echo", "third"]).stdout(append).status().unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "first\nsecond\nthird\n");
    // A file reopened by its name in /dev has another offset, as on bare Linux.
    let script = "read a; read b </dev/stdin; read c; read d </proc/self/fd/0; echo $a $b $c $d; \
                  echo out; echo err >/dev/stderr; cat <&3; head -c 5 /dev/fd/3";
    let both = |mut command: Command| {
        let (log, other) = (dir.0.join("log"), fs::File::open(&file).unwrap());
        fs::write(&log, "").unwrap();
        let log_file = fs::OpenOptions::new().write(true).open(&log).unwrap();
        command.args(["/bin/sh", "-c", &format!("exec 3<&0; {script}")]);
        let status = command.stdin(other).stdout(log_file.try_clone().unwrap()).stderr(log_file).status().unwrap();
        (status.code(), fs::read_to_string(&log).unwrap())
    };
    let native = both(Command::new("/usr/bin/env"));
    assert!(native.1.starts_with("err\n") || native.1.contains("first first second first"), "{native:?}");
    assert_eq!(both(runsc(&["run"])), native);
}

#[test]
fn writes_stay_in_memory_or_go_where_they_are_allowed() {
    let dir = Scratch::new("writes");
    let here = dir.path();
    let script = format!("echo x >{here}/a && cat {here}/a && rm -r {here} && test ! -e {here}");
    assert_eq!(sh(&script), "x\n");
    assert!(fs::read_dir(&dir.0).unwrap().next().is_none());

    fs::write(dir.0.join("seen"), "seen").unwrap();
    let bind = format!("{here}:/mnt");
    let output = run(&["--bind", &bind, "/bin/sh", "-c", "cat /mnt/seen; echo w >/mnt/w"]);
    assert_eq!(out(output), "seen");
    assert_eq!(fs::read_to_string(dir.0.join("w")).unwrap(), "w\n");
    let output = run(&["--bind", &format!("{bind}:ro"), "/bin/sh", "-c", "cat /mnt/seen; ! echo w >/mnt/x"]);
    assert_eq!(out(output), "seen");
    assert!(!dir.0.join("x").exists());

    out(run(&["--overlay", "none", "/bin/sh", "-c", &format!("echo y >{here}/y")]));
    assert_eq!(fs::read_to_string(dir.0.join("y")).unwrap(), "y\n");
}

#[test]
fn another_root() {
    let root = Scratch::new("root");
    fs::create_dir(root.0.join("bin")).unwrap();
    fs::write(root.0.join("bin/script"), "text").unwrap();
    let output = run(&["--rootfs", root.path(), "/bin/script"]);
    assert_eq!(output.status.code(), Some(126));
    assert_eq!(run(&["--rootfs", root.path(), "/bin/sh"]).status.code(), Some(127));
    assert_eq!(run(&["--rootfs", root.path(), "/etc/passwd"]).status.code(), Some(127));
}

#[test]
fn log_and_strace_go_to_files() {
    let dir = Scratch::new("log");
    let (log, strace) = (dir.0.join("log"), dir.0.join("strace"));
    let strace_option = format!("--strace={}", strace.display());
    let output =
        run(&["--debug", "--stats", "--log", log.to_str().unwrap(), &strace_option, "--", "/bin/sh", "-c", "exit 3"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read_to_string(log).unwrap().contains("system calls"));
    let strace = fs::read_to_string(strace).unwrap();
    assert!(strace.contains("execve(") || strace.contains("exit_group("), "{strace}");
}

/// A command whose guest sleeps and has started.
fn sleeper() -> (Child, i32) {
    let mut child = runsc(&["run", "/bin/sh", "-c", "echo ready; exec sleep 1000"]).spawn().unwrap();
    let mut byte = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"ready\n");
    let pid = i32::try_from(child.id()).unwrap();
    (child, pid)
}

fn kill(pid: i32, signal: i32) {
    assert!(common::kill(pid, signal), "kill {pid}");
}

fn process_called(among: &[i32], text: &str) -> i32 {
    let found = among.iter().copied().find(|p| command_line(*p).contains(text));
    found.unwrap_or_else(|| panic!("no {text} among {among:?}"))
}

fn assert_gone(pids: &[i32]) {
    eventually(&format!("all of {pids:?} are gone"), Duration::from_secs(5), || Ok(!pids.iter().copied().any(alive)));
}

#[test]
fn a_signal_to_the_command_reaches_the_guest() {
    for (signal, status) in [(15, 143), (2, 130), (1, 129)] {
        let (child, pid) = sleeper();
        let all = descendants(pid);
        kill(pid, signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status), "signal {signal}");
        assert_gone(&all);
    }
    let script = "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done";
    let mut child = runsc(&["run", "/bin/sh", "-c", script]).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    kill(i32::try_from(child.id()).unwrap(), 10);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(5), &b"caught\n"[..]));
}

#[test]
fn nothing_is_left_when_the_command_is_killed() {
    let (mut child, pid) = sleeper();
    let all = descendants(pid);
    assert!(all.len() >= 3, "{all:?}");
    kill(pid, 9);
    child.wait().unwrap();
    assert_gone(&all);
}

#[test]
fn the_sandbox_ends_with_its_sentry() {
    let (child, pid) = sleeper();
    let all = descendants(pid);
    kill(process_called(&all, "internal-sentry"), 9);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("Sentry") && text.contains("SIGKILL") && text.lines().count() == 1, "{text}");
    assert_gone(&all);
}

#[test]
fn the_sandbox_ends_with_its_gofer() {
    let (child, pid) = sleeper();
    let all = descendants(pid);
    kill(process_called(&all, "internal-gofer"), 9);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let text = String::from_utf8(output.stderr).unwrap();
    // The guest's own error may come first.
    assert!(text.lines().last().is_some_and(|l| l.starts_with("runsc-rs: ") && l.contains("Gofer")), "{text}");
    assert_gone(&all);
}

#[test]
fn strace_decodes_calls_signals_and_ends() {
    let dir = Scratch::new("strace");
    let trace = dir.0.join("trace");
    let script = "echo hi >/tmp/f; sleep 0.2 & wait; kill -TERM $$; exit 1";
    let output = run(&[&format!("--strace={}", trace.display()), "--", "/bin/bash", "-c", script]);
    assert_eq!(output.stderr, b"");
    let text = fs::read_to_string(&trace).unwrap();
    for part in [
        "openat(AT_FDCWD, \"/etc/ld.so.cache\", O_RDONLY|O_CLOEXEC) = 3",
        "openat(AT_FDCWD, \"/tmp/f\", O_WRONLY|O_CREAT|O_TRUNC, 0666) = ",
        "write(1, \"hi\\n\", 3) = 3",
        "= -1 ENOENT (No such file or directory)",
        ", PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x",
        "{st_mode=S_IFREG|0",
        "CLONE_CHILD_SETTID|SIGCHLD, ",
        "wait4(-1 <unfinished ...>",
        "<... wait4 resumed>, [{WIFEXITED(s) && WEXITSTATUS(s) == 0}], 0, NULL) = ",
        "execve(\"/usr/bin/sleep\", [\"sleep\", \"0.2\"], 0x",
        "--- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=",
        "exit_group(0) = ?",
        "+++ exited with 0 +++",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let line = text.lines().next().unwrap();
    assert!(line.starts_with('[') && line.ends_with('>') && line.contains("] 0."), "{line}");
}

#[test]
fn strace_shows_calls_answered_by_stubs() {
    let dir = Scratch::new("answered");
    let trace = dir.0.join("trace");
    let script = "import os, threading\nfor i in range(2000): os.getppid(); os.sched_yield()\n\
                  e = threading.Event(); t = threading.Thread(target=e.wait); t.start(); e.set(); t.join()";
    out(run(&[&format!("--strace={}", trace.display()), "--", "/usr/bin/python3", "-c", script]));
    let text = fs::read_to_string(&trace).unwrap();
    for (part, least) in [("getppid() = ", 2000), ("sched_yield() = 0", 2000), ("futex(0x", 2)] {
        let n = text.lines().filter(|l| l.contains(part)).count();
        assert!(n >= least, "{part}: {n}");
    }
}

#[test]
fn stats_list_calls_and_requests() {
    let output = run(&["--stats", "--", "/bin/sh", "-c", "ls /usr >/dev/null; test -e /no/such"]);
    let text = String::from_utf8(output.stderr).unwrap();
    for part in [
        "system calls answered",
        "requests to the Gofer",
        "CALL",
        "  openat\n",
        "sleeps",
        "looks in vain",
        "patched sites",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn sites_of_calls_that_stubs_make_are_patched() {
    // FUTEX_WAKE on a private word without waiters.
    let script = "my $word = pack('Q', 0); syscall(202, $word, 129, 1) for 1..20000";
    let output = run(&["--stats", "--", "/usr/bin/perl", "-e", script]);
    let text = String::from_utf8(output.stderr).unwrap();
    let line = text.lines().find(|l| l.contains("calls made by stubs")).unwrap();
    let made: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    assert!(made > 10_000, "{text}");
}

#[test]
fn closed_streams_stay_closed() {
    let run = format!("{} run --", RUNSC);
    for (script, expected) in [
        (format!("{run} /bin/sh -c 'cat 2>/dev/null || echo closed' <&-"), "closed\n"),
        (format!("{run} /bin/sh -c 'echo x 2>/dev/null || echo closed >&2' 2>&1 >&-"), "closed\n"),
        (format!("{run} /bin/sh -c 'cat && echo open' </dev/null"), "open\n"),
    ] {
        assert_eq!(out(Command::new("bash").args(["-c", &script]).output().unwrap()), expected, "{script}");
    }
}

#[test]
fn a_script_without_an_interpreter_goes_to_the_shell() {
    let dir = Scratch::new("bare");
    let file = dir.0.join("script");
    fs::write(&file, "echo bare $1\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(out(run(&["--", file.to_str().unwrap(), "arg"])), "bare arg\n");
    fs::write(&file, b"\x7fELF\x02broken").unwrap();
    assert_eq!(run(&["--", file.to_str().unwrap()]).status.code(), Some(126));
}

#[test]
fn a_stopped_command_stops_runsc_until_it_is_continued() {
    // With job control, the shell reports that a job has stopped, and continues it.
    let script = format!(
        "set -m; {} run -- /bin/sh -c 'kill -TSTP $$; echo on' & \
         while ! jobs -s | grep -q .; do sleep 0.05; done; fg >/dev/null; echo $?",
        RUNSC
    );
    let output = Command::new("timeout").args(["20", "bash", "-c", &script]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(out(output), "on\n0\n");
}

#[test]
fn a_stopped_command_goes_on_with_its_guest() {
    // Another process of the sandbox continues the first one, or kills it, once the outer shell has noticed the stop.
    let dir = Scratch::new("goes-on");
    for (signal, told) in [("CONT", "on\n0\n"), ("KILL", "137\n")] {
        let go = dir.0.join(signal);
        let guest = dir.0.join("guest");
        let text = "(while ! test -e $1; do sleep 0.05; done; kill -$2 $$) & kill -TSTP $$; echo on";
        fs::write(&guest, text).unwrap();
        let script = format!(
            "set -m; {RUNSC} run --bind {0}:{0} -- sh {0}/guest {go} {signal} & \
             while ! jobs -s | grep -q .; do sleep 0.05; done; touch {go}; \
             while jobs -s | grep -q .; do sleep 0.05; done; wait $!; echo $?",
            dir.0.display(),
            go = go.display(),
        );
        let output = Command::new("timeout").args(["20", "bash", "-c", &script]).stdin(Stdio::null()).output().unwrap();
        assert_eq!(out(output), told);
    }
}

#[test]
fn limits_and_umask_carry_over() {
    let script =
        format!("umask 027; ulimit -Sn 77; ulimit -c 0; {} run -- /bin/sh -c 'umask; ulimit -n; ulimit -c'", RUNSC);
    assert_eq!(out(Command::new("sh").args(["-c", &script]).output().unwrap()), "0027\n77\n0\n");
}

#[test]
fn nice_value_carries_over() {
    for n in ["0", "7", "19"] {
        // `nice` without arguments prints the value.
        let output = runsc(&["run", "--", "sh", "-c", "nice; cut -d' ' -f19 /proc/self/stat"]);
        let args =
            [output.get_program()].into_iter().chain(output.get_args()).map(|a| a.to_owned()).collect::<Vec<_>>();
        let told = |args: &[std::ffi::OsString]| out(Command::new("nice").args(["-n", n]).args(args).output().unwrap());
        let outside = told(&args[3..]);
        assert_eq!(told(&args), outside, "{n}");
    }
}

#[test]
fn the_callers_limits_do_not_hinder_the_runtime() {
    for limit in ["-Sv 200000", "-Sf 1", "-Su 1", "-Sn 20"] {
        let script = format!("ulimit {limit} && {} run -- /bin/echo ok", RUNSC);
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(output.stdout, b"ok\n", "ulimit {limit}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_callers_hard_limit_of_file_sizes_ends_no_sandbox() {
    let dir = Scratch::new("fsize");
    let at = dir.path();
    // Written by the Gofer, by the Sentry, and by the Sentry in a stream. Nothing is written.
    let guest = "ulimit -f unlimited; truncate -s 200G /x/t && echo truncated >&2; \
                 echo x | dd bs=1 seek=200G conv=notrunc of=/x/u && echo written >&2; \
                 echo x | dd bs=1 seek=200G conv=notrunc && echo streamed >&2; echo alive >/x/end";
    let script =
        format!("ulimit -f 100000000 && exec {RUNSC} run --user 0 --bind {at}:/x -- bash -c '{guest}' >{at}/out");
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(fs::read_to_string(dir.0.join("end")).unwrap_or_default(), "alive\n", "{text}");
    assert_eq!((output.status.code(), text.matches("File too large").count()), (Some(0), 3), "{text}");
    for file in ["t", "u", "out"] {
        assert_eq!(fs::metadata(dir.0.join(file)).map_or(0, |m| m.len()), 0, "{file}");
    }
}

#[test]
fn a_log_file_tells_what_is_not_supported() {
    let dir = Scratch::new("log");
    let log = dir.0.join("log");
    let script = "import ctypes; ctypes.CDLL(None).syscall(425, 1, 0)";
    let output = run(&["--log", log.to_str().unwrap(), "--", "python3", "-c", script]);
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
    let text = fs::read_to_string(log).unwrap();
    assert!(text.contains("io_uring_setup"), "{text}");
}

#[test]
fn works_without_root() {
    if !out(Command::new("id").arg("-u").output().unwrap()).starts_with("0\n") {
        return; // all other tests have shown it
    }
    // A copy that the user "nobody" can execute, wherever the build directory is.
    let dir = Scratch::new("rootless");
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o755)).unwrap();
    let copy = dir.0.join("runsc-rs");
    fs::copy(RUNSC, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", "65533", "--regid", "65533", "--clear-groups"])
        .arg(&copy)
        .args(["run", "--cwd", "/", "/bin/sh", "-c", "id -u; ls /root 2>/dev/null || echo denied"])
        .output()
        .unwrap();
    assert_eq!(out(output), "65533\ndenied\n");
}

/// Root of a user namespace without any other mapped ids.
#[test]
fn works_in_a_user_namespace() {
    let script = "id -u; cat /proc/self/comm; echo x > /tmp/there; cat /tmp/there";
    for namespace in [&["-Ur"][..], &["-Urmpf", "--mount-proc"]] {
        let mut command = Command::new("unshare");
        command.args(namespace).args([RUNSC, "run", "--", "/bin/sh", "-c", script]).stdin(Stdio::null());
        let text = out(command.output().unwrap());
        assert_eq!(text, "0\ncat\nx\n", "unshare {namespace:?}");
    }
}

#[test]
fn host_kernel_interfaces_are_hidden() {
    let mut secret = Command::new("sleep").arg0("CANARY_ARG").arg("1000").spawn().unwrap();
    let pid = secret.id().to_string();
    // Files below the guest's own mounts: in the root, in the guest's binds of it, and in the caller's binds.
    let script = "for i in 1 2 3; do umount -l /proc/ 2>/dev/null || break; done; mkdir /tmp/m /tmp/r; \
                  mount --bind / /tmp/m; mount --rbind / /tmp/r; mount --bind /all /tmp/r/mnt; \
                  cat /proc/$1/cmdline /tmp/m/proc/$1/cmdline /all/proc/$1/cmdline /tmp/r/mnt/proc/$1/cmdline; \
                  for d in /proc /tmp/m/proc /tmp/m/sys /tmp/m/dev /all/proc /all/sys /all/dev /tmp/r/proc; do \
                  echo $d $(ls -A $d | wc -l); done; cat /proc/self/status /proc/version /all/proc/cmdline; echo end";
    let command = ["--user", "0", "--bind", "/:/all:ro", "--", "sh", "-c", script, "sh", &pid];
    for overlay in [&[][..], &["--overlay", "none"]] {
        // Mounting does nothing on the host's side; the mount point is a directory that need not work.
        let dir = Scratch::new("kernel");
        let bind = format!("{}:/tmp", dir.path());
        let output = run(&[overlay, &["--bind", &bind], &command].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.ends_with("end\n") && !text.contains("CANARY_ARG"), "{text}");
        for line in text.lines().filter(|l| l.starts_with('/')) {
            assert!(line.ends_with(" 0"), "{text}");
        }
        assert_eq!(text.lines().count(), 9, "{text}");
    }
    secret.kill().unwrap();
    secret.wait().unwrap();
}

#[test]
fn host_access_control_lists_apply() {
    let dir = Scratch::new("acl");
    let at = dir.path();
    let setup = format!(
        "cd {at} && mkdir d && for f in grp neg named d/in; do echo text >$f; done && chown 0:50 grp && \
         chmod 660 grp && chmod 644 neg named d/in && \
         setfacl -m u::rw,u:1001:rw,g::-,o::-,m::rw grp && setfacl -m u:1002:- neg && setfacl -m u:1003:rw named && \
         setfacl -m u:1002:- d && ln -s neg link"
    );
    if !nix::unistd::geteuid().is_root() || !Command::new("sh").args(["-c", &setup]).status().unwrap().success() {
        return left_out("command: the host's access control lists");
    }
    let script = format!(
        "cd / && for f in {at}/grp {at}/neg {at}/link {at}/named {at}/d/in; do \
         cat $f 2>&1 >/dev/null | grep -o 'Permission denied' || echo yes; \
         test -w $f && echo writes; done; echo x 2>/dev/null >>{at}/named && getfacl -cn {at}/named || :"
    );
    let bind = format!("{at}:{at}");
    for user in ["1001:50", "1002:50", "1003:9", "1004:9"] {
        let (uid, gid) = user.split_once(':').unwrap();
        let ids = ["--reuid", uid, "--regid", gid, "--clear-groups", "sh", "-c", &script];
        let native = out(Command::new("setpriv").args(ids).stderr(Stdio::piped()).output().unwrap());
        assert!(user != "1002:50" || native.matches("Permission denied").count() == 4, "{native}");
        for options in [&[][..], &["--bind", &bind], &["--overlay", "none"]] {
            let output = run(&[options, &["--user", user, "--", "sh", "-c", &script]].concat());
            assert_eq!(out(output), native, "{user} {options:?}");
        }
        // A user without root's rights inside, for whom access control lists are fetched instead of announced.
        let boxed = run(&[&["--", "setpriv"], &ids[..]].concat());
        assert_eq!(out(boxed), native, "{user} after root");
    }
}

#[test]
fn sentry_and_gofer_are_confined() {
    let (mut child, pid) = sleeper();
    let all = descendants(pid);
    for who in ["internal-sentry", "internal-gofer"] {
        let p = process_called(&all, who);
        let status = fs::read_to_string(format!("/proc/{p}/status")).unwrap();
        let field =
            |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap_or("").to_owned();
        assert_eq!(field("Seccomp:"), "2", "{who}");
        assert_eq!(field("NoNewPrivs:"), "1", "{who}");
        if who == "internal-sentry" {
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                assert_eq!(field(set), "0000000000000000", "{who} {set}");
            }
        }
        let entries = fs::read_dir(format!("/proc/{p}/root/")).map(|d| d.count());
        assert!(entries.as_ref().is_ok_and(|n| *n == 0) || entries.is_err(), "{who} sees {entries:?} files");
        for kind in ["mnt", "user", "pid", "net", "ipc", "uts"] {
            let ours = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
            let theirs = fs::read_link(format!("/proc/{p}/ns/{kind}"));
            let seen = nix::unistd::geteuid().is_root() || theirs.is_ok() || who == "internal-sentry";
            if !seen {
                left_out("command: the Gofer's namespaces"); // it has capabilities, so only root may look
            } else if who == "internal-sentry" || ["mnt", "user"].contains(&kind) {
                assert!(theirs.is_ok_and(|t| t != ours), "{who} {kind}");
            }
        }
    }
    kill(pid, 9);
    child.wait().unwrap();
    assert_gone(&all);
}

/// `--init`: the command is process 1, with the duties and protections of an init process.
#[test]
fn a_command_can_be_process_1() {
    let init = |script: &str| out(run(&["--init", "--", "/bin/sh", "-c", script]));
    assert_eq!(init("echo $$ $PPID; readlink /proc/1/exe | grep -c sh"), "1 0\n1\n");
    assert_eq!(sh("echo $$ $PPID"), "2 1\n");
    // Orphans become its children, so it can wait for them.
    let orphan = "sh -c '(sleep 0.3; grep PPid /proc/self/status > /tmp/p) & echo $! > /tmp/n'; \
                  while ! test -s /tmp/p; do sleep 0.05; done; cat /tmp/p";
    assert_eq!(init(orphan), "PPid:\t1\n");
    // A signal from inside reaches it only if it has a handler.
    assert_eq!(init("kill -TERM $$; kill -KILL $$; kill -STOP $$; sh -c 'kill -9 1'; echo alive"), "alive\n");
    assert_eq!(init("trap 'echo taken' TERM; kill -TERM $$; echo on"), "taken\non\n");
    // Its end is the end of the namespace.
    let output = run(&["--init", "--", "/bin/sh", "-c", "sleep 1000 & exit 3"]);
    assert_eq!(output.status.code(), Some(3));
}

/// Clock ticks that a process has run for.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// A writer that waits for room sleeps and does not poll.
#[test]
fn waiting_takes_no_processor_time() {
    for what in ["master", "slave", "pipe", "stream", "datagram"] {
        let mut command = runsc(&["run", "--"]);
        command.arg(guest_tests()).args(["helper", "full", what]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        assert_eq!(&line, b"ready\n");
        let all = descendants(child.id() as i32);
        let sentry = all.into_iter().find(|p| command_line(*p).contains("internal-sentry")).unwrap();
        // Until the writer has filled the pipe.
        std::thread::sleep(Duration::from_millis(700));
        let before = ticks(sentry);
        std::thread::sleep(Duration::from_millis(700));
        let took = ticks(sentry) - before;
        assert!(alive(sentry), "{what}: the writer did not wait");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(took < 20, "{what}: the Sentry took {took} ticks");
    }
}
