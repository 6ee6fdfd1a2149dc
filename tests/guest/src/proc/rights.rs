//! Programs with more rights than their starter: how the starter's influence on them ends.

use crate::t::*;
use libc::*;
use std::ptr::null;

pub const CASES: &[crate::Case] = cases![
    timer_slack_of_others,
    exit_signal_of_children,
    exit_signal_of_itself,
    shared_directory,
    opened_before,
    opened_before_plain_exec
];

/// A copy of this program that runs as user 1234, if set-user-ID works here; needs root.
pub unsafe fn set_user_id(t: &Tmp) -> Option<String> {
    if !root() {
        return None;
    }
    let p = t.s("suid");
    std::fs::copy("/proc/self/exe", &p).unwrap();
    ok(chmod(t.p("").as_ptr(), 0o755));
    ok(chown(c(&p).as_ptr(), 1234, 1234));
    ok(chmod(c(&p).as_ptr(), 0o4755));
    let mut s: statvfs = zeroed();
    ok(statvfs(c(&p).as_ptr(), &mut s));
    (s.f_flag & ST_NOSUID == 0).then_some(p)
}

pub unsafe fn exec(path: &str, args: &[&str]) -> ! {
    let args: Vec<_> = ["guest-tests", "helper"].iter().chain(args).map(|a| c(a)).collect();
    let mut argv: Vec<_> = args.iter().map(|a| a.as_ptr()).collect();
    argv.push(null());
    ok(execv(c(path).as_ptr(), argv.as_ptr()));
    unreachable!()
}

/// A child with this exit signal, created without libc.
unsafe fn cloned(flags: i32, f: impl FnOnce() -> i32) -> pid_t {
    let pid = ok(syscall(SYS_clone, flags, 0, 0, 0, 0)) as pid_t;
    if pid == 0 {
        let r = f();
        _exit(r);
    }
    pid
}

unsafe fn exit_signal_of_children() {
    // The child ends when the `execve` closes the pipe; its exit signal must not reach the new program.
    let pid = spawn(|| {
        let (r, w) = pipe_pair();
        cloned(SIGKILL, || {
            ok(close(w));
            get(r, 1);
            0
        });
        exec("/proc/self/exe", &["reap"]);
    });
    exits(pid, 0);
    // Without an execve the signal is sent.
    let pid = spawn(|| {
        cloned(SIGUSR2, || 0);
        loop {
            pause();
        }
    });
    dies(pid, SIGUSR2);
}

unsafe fn exit_signal_of_itself() {
    block(&[SIGUSR2, SIGCHLD]);
    let pid = cloned(SIGUSR2, || exec("/proc/self/exe", &["exit", "3"]));
    let mut info: siginfo_t = zeroed();
    is(sigwaitinfo(&set_of(&[SIGUSR2, SIGCHLD]), &mut info), SIGCHLD.into());
    assert_eq!(info.si_pid(), pid);
    exits(pid, 3);
    let pid = cloned(SIGUSR2, || 3);
    is(sigwaitinfo(&set_of(&[SIGUSR2, SIGCHLD]), &mut info), SIGUSR2.into());
    fails(waitpid(pid, std::ptr::null_mut(), WNOHANG), ECHILD);
    is(waitpid(pid, std::ptr::null_mut(), __WALL), pid.into());
}

unsafe fn shared_directory() {
    let t = Tmp::new();
    let Some(p) = set_user_id(&t) else { return };
    let says = |flags: i32, user: bool| {
        let (r, w) = pipe_pair();
        let pid = spawn(|| {
            if user {
                become_nobody();
            }
            let pid = cloned(flags | SIGCHLD, || {
                ok(dup2(w, 1));
                exec(&p, &["ids"])
            });
            exits(pid, 0);
            0
        });
        exits(pid, 0);
        let text = String::from_utf8(get(r, 99)).unwrap();
        text.split(" pid").next().unwrap().to_owned()
    };
    assert_eq!(says(0, true), "65534 1234 1234");
    // A process that shares the working directory could change it for the program.
    assert_eq!(says(CLONE_FS, true), "65534 65534 65534");
    // A privileged process is allowed to share it.
    assert_eq!(says(CLONE_FS, false), "0 1234 1234");
}

const OF_MEMORY: [&str; 4] = ["maps", "smaps", "environ", "mem"];

unsafe fn at(pid: pid_t, name: &str, flags: i32) -> i32 {
    open(c(&format!("/proc/{pid}/{name}")).as_ptr(), flags | O_CLOEXEC)
}

unsafe fn opened_before() {
    let t = Tmp::new();
    let Some(p) = set_user_id(&t) else { return };
    in_child(|| {
        become_nobody();
        ok(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
        let (r, w) = pipe_pair();
        let pid = spawn(|| {
            ok(close(w));
            let (held, end) = (ok(dup(r)), r);
            get(end, 1);
            ok(dup2(held, 0));
            exec(&p, &["idle"])
        });
        let files: Vec<_> = OF_MEMORY.iter().map(|n| (n, ok(at(pid, n, O_RDONLY)))).collect();
        let calls = ["syscall", "personality"].map(|n| (n, ok(at(pid, n, O_RDONLY))));
        for (name, fd) in &calls {
            let mut b = [0u8; 300];
            assert!(pread(*fd, b.as_mut_ptr().cast(), 300, 0) > 0, "{name}");
        }
        put(w, b"g");
        eventually("the program runs", || at(pid, "maps", O_RDONLY) == -1 && errno() == EACCES);
        for (name, fd) in files {
            let mut b = [0u8; 300];
            let n = pread(fd, b.as_mut_ptr().cast(), 300, 4096 * i64::from(*name == "mem"));
            assert_eq!(n, 0, "{name} shows the other program");
        }
        for (name, fd) in calls {
            let mut b = [0u8; 300];
            let n = pread(fd, b.as_mut_ptr().cast(), 300, 0);
            assert!(n == -1 && errno() == EPERM, "{name} shows the other program");
        }
        ok(close(w));
        reap(pid);
    });
}

unsafe fn opened_before_plain_exec() {
    // The memory goes away with its program, even while /proc shows it.
    let (r, w) = pipe_pair();
    let pid = spawn(|| {
        ok(close(w));
        get(r, 1);
        ok(dup2(r, 0));
        exec("/proc/self/exe", &["idle"])
    });
    let files = ["maps", "smaps", "environ"].map(|n| (n, ok(at(pid, n, O_RDONLY))));
    put(w, b"g");
    let line = || std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    eventually("the program runs", || line().ends_with(b"idle\0"));
    for (name, fd) in files {
        let mut b = [0u8; 300];
        is(read(fd, b.as_mut_ptr().cast(), 300), 0);
        let now = get(ok(at(pid, name, O_RDONLY)), 300);
        assert!(!now.is_empty() || name == "environ", "{name}");
    }
    ok(close(w));
    exits(pid, 0);
}

unsafe fn timer_slack_of_others() {
    if !root() {
        eprintln!("left out: needs root");
        return;
    }
    let other = spawn(|| {
        pause();
        0
    });
    let (theirs, mine) = (format!("/proc/{other}/timerslack_ns"), "/proc/self/timerslack_ns");
    std::fs::write(&theirs, "60000").unwrap();
    in_child(|| {
        become_nobody();
        assert_eq!(std::fs::write(&theirs, "1").unwrap_err().raw_os_error(), Some(EPERM));
        assert_eq!(std::fs::read(&theirs).unwrap_err().raw_os_error(), Some(EPERM));
        std::fs::write(mine, "70000").unwrap();
        assert_eq!(std::fs::read_to_string(mine).unwrap(), "70000\n");
    });
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "60000\n");
    kill(other, SIGKILL);
    reap(other);
}
