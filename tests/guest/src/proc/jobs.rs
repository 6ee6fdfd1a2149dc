//! Sessions and process groups.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] = cases![
    getters,
    setsid_rules,
    setpgid_rules,
    setpgid_after_exec,
    groups_over_fork,
    orphaned_group_is_hung_up,
    many_groups_orphaned_at_once,
    stop_signals_of_orphans,
    session_leader_exit,
];

unsafe fn getters() {
    assert_eq!(getpgrp(), ok(getpgid(0)));
    assert_eq!(ok(getsid(0)), ok(getsid(getpid())));
    fails(getpgid(0x3fff_ffff), ESRCH);
    fails(getsid(0x3fff_ffff), ESRCH);
    fails(getpgid(-1), ESRCH);
}

unsafe fn setsid_rules() {
    in_child(|| {
        let sid = ok(setsid());
        assert_eq!((sid, getpgrp(), ok(getsid(0))), (getpid(), getpid(), getpid()));
        fails(setsid(), EPERM); // leads a process group already
        fails(setpgid(0, 0), EPERM); // and a session
        in_child(|| {
            assert_eq!(ok(getsid(0)), sid);
            ok(setsid());
        });
    });
}

unsafe fn setpgid_rules() {
    fails(setpgid(0, -1), EINVAL);
    fails(setpgid(-1, 0), EINVAL);
    fails(setpgid(0x3fff_ffff, 0), ESRCH);
    let me = getpid();
    in_child(|| fails(setpgid(me, 0), ESRCH)); // not a child
    let pid = spawn(|| loop {
        pause();
    });
    ok(setpgid(pid, pid));
    is(getpgid(pid), pid.into());
    let b = spawn(|| loop {
        pause();
    });
    ok(setpgid(b, pid));
    is(getpgid(b), pid.into());
    fails(setpgid(b, 0x3fff_ffff), EPERM); // no such group
    ok(kill(-pid, SIGKILL));
    dies(pid, SIGKILL);
    dies(b, SIGKILL);
    // A child in another session.
    let (r, w) = pipe_pair();
    let pid = spawn(|| {
        ok(setsid());
        put(w, b"x");
        loop {
            pause();
        }
    });
    get(r, 1);
    fails(setpgid(pid, 0), EPERM);
    ok(kill(pid, SIGKILL));
    dies(pid, SIGKILL);
}

unsafe fn setpgid_after_exec() {
    let mut child = std::process::Command::new("/proc/self/exe")
        .args(["helper", "env"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // `spawn` has returned, so the exec has happened.
    fails(setpgid(child.id() as i32, 0), EACCES);
    child.wait().unwrap();
}

unsafe fn groups_over_fork() {
    in_child(|| {
        ok(setpgid(0, 0));
        let g = getpgrp();
        in_child(|| assert_eq!(getpgrp(), g));
    });
}

unsafe fn orphaned_group_is_hung_up() {
    // When the parent of a stopped group in the same session ends, the group gets SIGHUP and SIGCONT.
    let (r, w) = pipe_pair();
    let pid = spawn(|| {
        ok(setsid());
        let mid = spawn(|| {
            let g = spawn(|| {
                ok(setpgid(0, 0));
                static mut OUT: i32 = 0;
                OUT = w;
                extern "C" fn hup(_: i32) {
                    unsafe { put(OUT, b"h") };
                }
                on(SIGHUP, hup as *const () as usize, 0);
                ok(kill(getpid(), SIGSTOP));
                put(w, b"c");
                0
            });
            let mut st = 0;
            ok(waitpid(g, &mut st, WUNTRACED));
            assert!(WIFSTOPPED(st));
            0
        });
        exits(mid, 0);
        0
    });
    exits(pid, 0);
    assert_eq!(get_all(r, 2), b"hc");
}

unsafe fn many_groups_orphaned_at_once() {
    const GROUPS: usize = 4;
    const MEMBERS: usize = 3;
    let (r, w) = pipe_pair();
    static mut OUT: i32 = 0;
    OUT = w;
    extern "C" fn hup(_: i32) {
        unsafe {
            put(OUT, b"h");
            _exit(0)
        }
    }
    let pid = spawn(|| {
        ok(setsid());
        let mid = spawn(|| {
            on(SIGHUP, hup as *const () as usize, 0);
            for _ in 0..GROUPS {
                let mut first = 0;
                for n in 0..MEMBERS {
                    let member = spawn(|| loop {
                        pause();
                    });
                    first = if n == 0 { member } else { first };
                    ok(setpgid(member, first));
                    if n + 1 == MEMBERS {
                        // One stopped member is enough to signal the whole group.
                        ok(kill(member, SIGSTOP));
                        let mut st = 0;
                        is(waitpid(member, &mut st, WUNTRACED), member.into());
                    }
                }
            }
            // A group without a stopped member gets no signal.
            let left = spawn(|| {
                sleep(1);
                0
            });
            ok(setpgid(left, left));
            // A zombie gets none either.
            let dead = spawn(|| 0);
            let mut info: siginfo_t = zeroed();
            ok(waitid(P_PID, dead as id_t, &mut info, WEXITED | WNOWAIT));
            0
        });
        exits(mid, 0);
        0
    });
    exits(pid, 0);
    ok(close(w));
    assert_eq!(get_all(r, GROUPS * MEMBERS), [b'h'; GROUPS * MEMBERS]);
    assert_eq!(get(r, 1), b"");
}

unsafe fn stop_signals_of_orphans() {
    // Terminal stop signals do not stop an orphaned group.
    let pid = spawn(|| {
        ok(setsid());
        for s in [SIGTSTP, SIGTTIN, SIGTTOU] {
            ok(kill(getpid(), s));
        }
        5
    });
    exits(pid, 5);
}

unsafe fn session_leader_exit() {
    let s = shared(PAGE).cast::<pid_t>();
    let (r, w) = pipe_pair();
    let pid = spawn(|| {
        let sid = ok(setsid());
        if ok(fork()) == 0 {
            eventually("the leader is gone", || getppid() != sid);
            *s = getsid(0);
            put(w, b"x");
            _exit(0);
        }
        0
    });
    exits(pid, 0);
    get(r, 1);
    assert_eq!(*s, pid); // the session outlives its leader
}
