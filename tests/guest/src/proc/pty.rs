//! Pseudoterminals, the line discipline, controlling terminals.

use crate::t::*;
use libc::*;
use std::ffi::CString;

pub const CASES: &[crate::Case] = cases![
    pair_and_names,
    canonical_lines,
    erase_and_kill,
    end_of_file,
    echo,
    output_processing,
    input_processing,
    raw_mode,
    min_and_time,
    attributes,
    window_size,
    window_change_signal,
    interrupt_character,
    quit_and_suspend,
    controlling_terminal,
    no_controlling_terminal,
    foreground_group,
    background_read,
    background_write,
    hangup_on_master_close,
    slave_close_gives_eio,
    hangup_on_leader_exit,
    poll_both_ends,
    nonblocking,
    flush_queues,
    packet_of_bytes,
    lock,
    bytes_available,
    isatty_elsewhere,
    flow_by_characters,
    flow_by_request,
    packet_mode,
    numbered_speeds,
    locked_attributes,
    exclusive_use,
];

struct Pty {
    m: i32,
    s: i32,
    name: CString,
}

unsafe fn pty() -> Pty {
    let m = ok(open(c("/dev/ptmx").as_ptr(), O_RDWR | O_NOCTTY | O_CLOEXEC));
    let (mut n, zero) = (0, 0);
    ok(ioctl(m, TIOCGPTN, &mut n));
    ok(ioctl(m, TIOCSPTLCK, &zero));
    let name = c(&format!("/dev/pts/{n}"));
    let s = ok(open(name.as_ptr(), O_RDWR | O_NOCTTY | O_CLOEXEC));
    Pty { m, s, name }
}

unsafe fn set(p: &Pty, f: impl Fn(&mut termios)) {
    let mut t = zeroed();
    ok(tcgetattr(p.s, &mut t));
    f(&mut t);
    ok(tcsetattr(p.s, TCSANOW, &t));
}

unsafe fn quiet(p: &Pty) {
    set(p, |t| {
        t.c_lflag &= !ECHO;
        t.c_oflag &= !OPOST;
    });
}

unsafe fn no_input(fd: i32) {
    let mut p = pollfd { fd, events: POLLIN, revents: 0 };
    is(poll(&mut p, 1, 10), 0);
}

unsafe fn pair_and_names() {
    let p = pty();
    assert_eq!((isatty(p.m), isatty(p.s)), (1, 1));
    let st = fstat_of(p.s);
    assert_eq!((st.st_mode & S_IFMT, major(st.st_rdev)), (S_IFCHR, 136));
    assert_eq!(st.st_uid, geteuid());
    let q = pty();
    assert_ne!(p.name, q.name);
    let l = std::fs::read_link(format!("/proc/self/fd/{}", p.s)).unwrap();
    assert_eq!(l.to_str().unwrap(), p.name.to_str().unwrap());
    ok(close(p.m));
    eventually("the name goes with the master", || open(p.name.as_ptr(), O_RDWR | O_NOCTTY) == -1);
}

unsafe fn canonical_lines() {
    let p = pty();
    quiet(&p);
    put(p.m, b"one\ntwo\nthr");
    assert_eq!(get(p.s, 100), b"one\n"); // a line at a time
    assert_eq!(get(p.s, 2), b"tw");
    assert_eq!(get(p.s, 100), b"o\n");
    no_input(p.s); // no line end yet
    put(p.m, b"ee\n");
    assert_eq!(get(p.s, 100), b"three\n");
    put(p.s, b"answer");
    assert_eq!(get(p.m, 100), b"answer");
}

unsafe fn erase_and_kill() {
    let p = pty();
    quiet(&p);
    put(p.m, b"abx\x7fc\n");
    assert_eq!(get(p.s, 100), b"abc\n");
    put(p.m, b"wrong\x15right\n");
    assert_eq!(get(p.s, 100), b"right\n");
    put(p.m, b"two words\x17w\n");
    assert_eq!(get(p.s, 100), b"two w\n");
    put(p.m, b"\x16\x03q\n"); // quoted: not an interrupt
    assert_eq!(get(p.s, 100), b"\x03q\n");
}

unsafe fn end_of_file() {
    let p = pty();
    quiet(&p);
    put(p.m, b"\x04");
    assert_eq!(get(p.s, 100), b"");
    put(p.m, b"abc\x04");
    assert_eq!(get(p.s, 100), b"abc"); // the pending input, without a line end
    put(p.m, b"x\n");
    assert_eq!(get(p.s, 100), b"x\n");
}

unsafe fn echo() {
    let p = pty();
    put(p.m, b"hi\n");
    assert_eq!(get_all(p.m, 4), b"hi\r\n");
    assert_eq!(get(p.s, 10), b"hi\n");
    put(p.m, b"\x01\x7f\n"); // shown as ^A; erasing removes both characters
    let got = get_all(p.m, 2 + 6 + 2);
    assert_eq!(got, b"^A\x08 \x08\x08 \x08\r\n");
    get(p.s, 10);
    set(&p, |t| t.c_lflag &= !ECHO);
    put(p.m, b"silent\n");
    no_input(p.m);
}

unsafe fn output_processing() {
    let p = pty();
    put(p.s, b"a\nb\n");
    assert_eq!(get_all(p.m, 6), b"a\r\nb\r\n");
    set(&p, |t| t.c_oflag &= !ONLCR);
    put(p.s, b"a\n");
    assert_eq!(get(p.m, 10), b"a\n");
    set(&p, |t| t.c_oflag |= OCRNL);
    put(p.s, b"a\r");
    assert_eq!(get(p.m, 10), b"a\n");
}

unsafe fn input_processing() {
    let p = pty();
    quiet(&p);
    put(p.m, b"cr\r"); // ICRNL
    assert_eq!(get(p.s, 10), b"cr\n");
    set(&p, |t| {
        t.c_iflag &= !ICRNL;
        t.c_iflag |= IGNCR | ISTRIP;
    });
    put(p.m, b"a\rb\xc1\n");
    assert_eq!(get(p.s, 10), b"abA\n");
}

unsafe fn raw_mode() {
    let p = pty();
    set(&p, |t| cfmakeraw(t));
    put(p.m, b"\x03\x04\r\n\x7f");
    assert_eq!(get(p.s, 10), b"\x03\x04\r\n\x7f");
    put(p.s, b"\n");
    assert_eq!(get(p.m, 10), b"\n");
    no_input(p.m);
    put(p.m, b"a");
    assert_eq!(get(p.s, 10), b"a"); // byte by byte
}

unsafe fn min_and_time() {
    let p = pty();
    set(&p, |t| {
        cfmakeraw(t);
        t.c_cc[VMIN] = 3;
        t.c_cc[VTIME] = 0;
    });
    put(p.m, b"ab");
    no_input(p.s);
    put(p.m, b"c");
    assert_eq!(get(p.s, 10), b"abc");
    set(&p, |t| {
        t.c_cc[VMIN] = 0;
        t.c_cc[VTIME] = 0;
    });
    assert_eq!(get(p.s, 10), b""); // returns at once
    set(&p, |t| t.c_cc[VTIME] = 1);
    assert_eq!(get(p.s, 10), b""); // after a tenth of a second
}

unsafe fn attributes() {
    let p = pty();
    let mut t: termios = zeroed();
    ok(tcgetattr(p.s, &mut t));
    assert_eq!(t.c_iflag & (ICRNL | IXON), ICRNL | IXON);
    assert_eq!(t.c_oflag & (OPOST | ONLCR), OPOST | ONLCR);
    assert_eq!(t.c_lflag & (ISIG | ICANON | ECHO | IEXTEN), ISIG | ICANON | ECHO | IEXTEN);
    assert_eq!((t.c_cc[VINTR], t.c_cc[VEOF], t.c_cc[VERASE], t.c_cc[VMIN]), (3, 4, 127, 1));
    set(&p, |t| t.c_cc[VINTR] = 7);
    ok(tcgetattr(p.m, &mut t)); // the same terminal through either end
    assert_eq!(t.c_cc[VINTR], 7);
    ok(tcsetattr(p.s, TCSADRAIN, &t));
    ok(tcsetattr(p.s, TCSAFLUSH, &t));
    let (r, _w) = pipe_pair();
    fails(tcgetattr(r, &mut t), ENOTTY);
}

unsafe fn window_size() {
    let p = pty();
    let mut w: winsize = zeroed();
    ok(ioctl(p.s, TIOCGWINSZ, &mut w));
    assert_eq!((w.ws_row, w.ws_col), (0, 0));
    w.ws_row = 33;
    w.ws_col = 101;
    ok(ioctl(p.m, TIOCSWINSZ, &w));
    let mut g: winsize = zeroed();
    ok(ioctl(p.s, TIOCGWINSZ, &mut g));
    assert_eq!((g.ws_row, g.ws_col), (33, 101));
}

/// A child that leads a session with the pty as its controlling terminal; `f` runs in it.
unsafe fn on_terminal(p: &Pty, f: impl FnOnce() -> i32) -> pid_t {
    spawn(|| {
        ok(setsid());
        ok(ioctl(p.s, TIOCSCTTY, 0));
        ok(close(p.m));
        f()
    })
}

unsafe fn window_change_signal() {
    let p = pty();
    quiet(&p);
    let pid = on_terminal(&p, || {
        block(&[SIGWINCH]);
        put(p.s, b"r");
        is(sigwaitinfo(&set_of(&[SIGWINCH]), std::ptr::null_mut()), SIGWINCH.into());
        0
    });
    assert_eq!(get(p.m, 1), b"r");
    let w = winsize { ws_row: 5, ws_col: 6, ws_xpixel: 0, ws_ypixel: 0 };
    ok(ioctl(p.m, TIOCSWINSZ, &w));
    exits(pid, 0);
}

unsafe fn interrupt_character() {
    let p = pty();
    quiet(&p);
    let pid = on_terminal(&p, || {
        put(p.s, b"r");
        loop {
            pause();
        }
    });
    assert_eq!(get(p.m, 1), b"r");
    put(p.m, b"\x03");
    dies(pid, SIGINT);
    // An interrupt wakes the reader, and discards the input before it.
    let p = pty();
    quiet(&p);
    let pid = on_terminal(&p, || {
        on(SIGINT, nothing as *const () as usize, 0);
        put(p.s, b"r");
        let mut b = [0u8; 16];
        fails(read(p.s, b.as_mut_ptr().cast(), 16), EINTR);
        put(p.s, b"i");
        i32::from(get(p.s, 16) != b"new\n")
    });
    assert_eq!(get(p.m, 1), b"r");
    asleep(pid);
    put(p.m, b"old\x03");
    assert_eq!(get(p.m, 1), b"i");
    put(p.m, b"new\n");
    exits(pid, 0);
}

unsafe fn quit_and_suspend() {
    let p = pty();
    quiet(&p);
    let pid = on_terminal(&p, || {
        ok(setrlimit(RLIMIT_CORE, &rlimit { rlim_cur: 0, rlim_max: 0 }));
        let g = spawn(|| {
            ok(setpgid(0, 0));
            signal(SIGTTOU, SIG_IGN);
            ok(tcsetpgrp(p.s, getpid()));
            put(p.s, b"r");
            loop {
                pause();
            }
        });
        let mut st = 0;
        ok(waitpid(g, &mut st, WUNTRACED));
        assert!(WIFSTOPPED(st) && WSTOPSIG(st) == SIGTSTP);
        ok(kill(g, SIGCONT));
        put(p.s, b"s");
        dies(g, SIGQUIT);
        0
    });
    assert_eq!(get(p.m, 1), b"r");
    put(p.m, b"\x1a");
    assert_eq!(get(p.m, 1), b"s");
    put(p.m, b"\x1c");
    exits(pid, 0);
}

unsafe fn controlling_terminal() {
    let p = pty();
    quiet(&p);
    let pid = on_terminal(&p, || {
        let t = ok(open(c("/dev/tty").as_ptr(), O_RDWR));
        put(t, b"through tty");
        let mut sid = 0;
        ok(ioctl(t, TIOCGSID, &mut sid));
        assert_eq!(sid, getpid());
        assert_eq!(ok(tcgetpgrp(t)), getpid());
        ok(ioctl(t, TIOCNOTTY)); // gives it up (the group gets SIGHUP)
        0
    });
    assert_eq!(get(p.m, 100), b"through tty");
    let st = reap(pid);
    assert!(WIFSIGNALED(st) && WTERMSIG(st) == SIGHUP || WIFEXITED(st), "{st:#x}");
    // A session leader without a controlling terminal gets the one it opens without O_NOCTTY.
    let p = pty();
    in_child(|| {
        ok(setsid());
        let s = ok(open(p.name.as_ptr(), O_RDWR));
        ok(open(c("/dev/tty").as_ptr(), O_RDWR));
        assert_eq!(ok(tcgetsid(s)), getpid());
        let q = pty();
        fails(ioctl(q.s, TIOCSCTTY, 0), EPERM); // has one already
    });
}

unsafe fn no_controlling_terminal() {
    in_child(|| {
        ok(setsid());
        fails(open(c("/dev/tty").as_ptr(), O_RDWR), ENXIO);
        let p = pty();
        fails(tcgetpgrp(p.s), ENOTTY);
        in_child(|| fails(ioctl(p.s, TIOCSCTTY, 0), EPERM)); // not a leader
    });
}

unsafe fn foreground_group() {
    let p = pty();
    let pid = on_terminal(&p, || {
        signal(SIGTTOU, SIG_IGN);
        let g = spawn(|| loop {
            pause();
        });
        ok(setpgid(g, g));
        ok(tcsetpgrp(p.s, g));
        assert_eq!(ok(tcgetpgrp(p.s)), g);
        fails(tcsetpgrp(p.s, 0x3fff_ffff), ESRCH);
        fails(tcsetpgrp(p.s, -1), EINVAL);
        ok(kill(g, SIGKILL));
        dies(g, SIGKILL);
        ok(tcsetpgrp(p.s, getpgrp()));
        0
    });
    exits(pid, 0);
}

unsafe fn background_read() {
    let p = pty();
    quiet(&p);
    let pid = on_terminal(&p, || {
        let g = spawn(|| {
            ok(setpgid(0, 0));
            get(p.s, 1);
            0
        });
        let mut st = 0;
        ok(waitpid(g, &mut st, WUNTRACED));
        assert!(WIFSTOPPED(st) && WSTOPSIG(st) == SIGTTIN, "{st:#x}");
        ok(kill(g, SIGKILL));
        dies(g, SIGKILL);
        // A process that ignores the signal gets an error.
        let g = spawn(|| {
            ok(setpgid(0, 0));
            signal(SIGTTIN, SIG_IGN);
            fails(read(p.s, [0u8; 1].as_mut_ptr().cast(), 1), EIO);
            0
        });
        exits(g, 0);
        0
    });
    exits(pid, 0);
}

unsafe fn background_write() {
    let p = pty();
    quiet(&p);
    let pid = on_terminal(&p, || {
        let g = spawn(|| {
            ok(setpgid(0, 0));
            put(p.s, b"ok"); // allowed without TOSTOP
            let mut t: termios = zeroed();
            ok(tcgetattr(p.s, &mut t));
            t.c_lflag |= TOSTOP;
            tcsetattr(p.s, TCSANOW, &t); // changing settings is not
            0
        });
        let mut st = 0;
        ok(waitpid(g, &mut st, WUNTRACED));
        assert!(WIFSTOPPED(st) && WSTOPSIG(st) == SIGTTOU, "{st:#x}");
        ok(kill(g, SIGKILL));
        dies(g, SIGKILL);
        0
    });
    assert_eq!(get_all(p.m, 2), b"ok");
    exits(pid, 0);
}

unsafe fn hangup_on_master_close() {
    let p = pty();
    quiet(&p);
    let pid = on_terminal(&p, || {
        on(SIGHUP, nothing as *const () as usize, 0);
        put(p.s, b"r");
        let mut b = [0u8; 4];
        let r = read(p.s, b.as_mut_ptr().cast(), 4);
        assert!(r == 0 || (r == -1 && (errno() == EINTR || errno() == EIO)), "{r} {}", name_of(errno()));
        is(read(p.s, b.as_mut_ptr().cast(), 4), 0);
        fails(write(p.s, b"x".as_ptr().cast(), 1), EIO);
        0
    });
    assert_eq!(get(p.m, 1), b"r");
    asleep(pid);
    ok(close(p.m));
    exits(pid, 0);
}

unsafe fn slave_close_gives_eio() {
    let p = pty();
    quiet(&p);
    put(p.s, b"last words");
    ok(close(p.s));
    assert_eq!(get(p.m, 100), b"last words");
    fails(read(p.m, [0u8; 1].as_mut_ptr().cast(), 1), EIO);
    let mut f = pollfd { fd: p.m, events: POLLIN, revents: 0 };
    is(poll(&mut f, 1, 0), 1);
    assert_ne!(f.revents & POLLHUP, 0);
    // After a reopen the terminal works again.
    let s = ok(open(p.name.as_ptr(), O_RDWR | O_NOCTTY));
    put(s, b"back");
    assert_eq!(get(p.m, 100), b"back");
}

unsafe fn hangup_on_leader_exit() {
    let p = pty();
    let s = shared(PAGE).cast::<pid_t>();
    let (r, w) = pipe_pair();
    let pid = on_terminal(&p, || {
        let f = spawn(|| {
            ok(close(r));
            put(w, b"x");
            loop {
                pause();
            }
        });
        *s = f;
        get(r, 1);
        0
    });
    exits(pid, 0);
    ok(close(w));
    assert_eq!(get(r, 1), b""); // SIGHUP killed the foreground group
}

unsafe fn poll_both_ends() {
    let p = pty();
    quiet(&p);
    let mut f = [
        pollfd { fd: p.m, events: POLLIN | POLLOUT, revents: 0 },
        pollfd { fd: p.s, events: POLLIN | POLLOUT, revents: 0 },
    ];
    is(poll(f.as_mut_ptr(), 2, 0), 2);
    assert_eq!((f[0].revents, f[1].revents), (POLLOUT, POLLOUT));
    put(p.m, b"x\n");
    is(poll(f.as_mut_ptr(), 2, 1000), 2);
    eventually("line arrives", || poll(f.as_mut_ptr(), 2, 0) == 2 && f[1].revents == POLLIN | POLLOUT);
    get(p.s, 5);
    put(p.s, b"y");
    eventually("answer arrives", || poll(f.as_mut_ptr(), 2, 0) == 2 && f[0].revents == POLLIN | POLLOUT);
}

unsafe fn nonblocking() {
    let p = pty();
    quiet(&p);
    let mut b = [0u8; 4];
    ok(fcntl(p.m, F_SETFL, O_NONBLOCK));
    ok(fcntl(p.s, F_SETFL, O_NONBLOCK));
    fails(read(p.m, b.as_mut_ptr().cast(), 4), EAGAIN);
    fails(read(p.s, b.as_mut_ptr().cast(), 4), EAGAIN);
    // Without a reader the output queue fills.
    let mut n = 0;
    let x = [b'x'; 1000];
    loop {
        let r = write(p.s, x.as_ptr().cast(), 1000);
        if r == -1 {
            assert_eq!(errno(), EAGAIN);
            break;
        }
        n += r;
        assert!(n < 10_000_000);
    }
    let mut got = 0;
    while got < n {
        let mut b = [0u8; 4096];
        let r = ok(read(p.m, b.as_mut_ptr().cast(), 4096));
        assert!(b[..r as usize].iter().all(|&c| c == b'x'));
        got += r;
    }
}

unsafe fn flush_queues() {
    let p = pty();
    quiet(&p);
    put(p.m, b"thrown away\n");
    eventually("arrived", || {
        let mut n = 0;
        ioctl(p.s, FIONREAD, &mut n) == 0 && n > 0
    });
    ok(tcflush(p.s, TCIFLUSH));
    no_input(p.s);
    put(p.m, b"kept\n");
    assert_eq!(get(p.s, 20), b"kept\n");
    fails(tcflush(p.s, 77), EINVAL);
}

unsafe fn packet_of_bytes() {
    // A few hundred kilobytes arrive complete and in order through a raw terminal.
    let p = pty();
    set(&p, |t| cfmakeraw(t));
    let n = 200_000;
    let pid = spawn(|| {
        let v: Vec<u8> = (0..n).map(|i| (i % 251) as u8).collect();
        put(p.s, &v);
        0
    });
    let v = get_all(p.m, n);
    assert!(v.iter().enumerate().all(|(i, &x)| x == (i % 251) as u8));
    exits(pid, 0);
}

unsafe fn lock() {
    let m = ok(open(c("/dev/ptmx").as_ptr(), O_RDWR | O_NOCTTY));
    let mut n = 0;
    ok(ioctl(m, TIOCGPTN, &mut n));
    fails(open(c(&format!("/dev/pts/{n}")).as_ptr(), O_RDWR | O_NOCTTY), EIO); // locked at first
    let zero = 0;
    ok(ioctl(m, TIOCSPTLCK, &zero));
    ok(open(c(&format!("/dev/pts/{n}")).as_ptr(), O_RDWR | O_NOCTTY));
    let s = ok(ioctl(m, TIOCGPTPEER, O_RDWR | O_NOCTTY));
    assert_eq!(isatty(s), 1);
}

unsafe fn bytes_available() {
    let p = pty();
    quiet(&p);
    let mut n = 7;
    ok(ioctl(p.s, FIONREAD, &mut n));
    assert_eq!(n, 0);
    put(p.m, b"hello\n");
    eventually("six bytes", || ioctl(p.s, FIONREAD, &mut n) == 0 && n == 6);
    put(p.s, b"abc");
    eventually("three bytes", || ioctl(p.m, FIONREAD, &mut n) == 0 && n == 3);
}

unsafe fn isatty_elsewhere() {
    let (r, _w) = pipe_pair();
    assert_eq!(isatty(r), 0);
    assert_eq!(errno(), ENOTTY);
    let n = ok(open(c("/dev/null").as_ptr(), O_RDWR));
    assert_eq!(isatty(n), 0);
    assert_eq!(isatty(-1), 0);
    assert_eq!(errno(), EBADF);
}

/// Whether a program can write at the terminal now.
unsafe fn writable(p: &Pty) -> bool {
    let mut f = pollfd { fd: p.s, events: POLLOUT, revents: 0 };
    poll(&mut f, 1, 0) == 1
}

unsafe fn flow_by_characters() {
    let p = pty();
    set(&p, |t| t.c_oflag &= !OPOST);
    // S: not shown until output restarts
    put(p.m, b"\x13x");
    eventually("output stops", || !writable(&p));
    no_input(p.m);
    ok(fcntl(p.s, F_SETFL, O_NONBLOCK));
    fails(write(p.s, b"no".as_ptr().cast(), 2), EAGAIN);
    put(p.m, b"\x11");
    eventually("output goes on", || writable(&p));
    assert_eq!(get(p.m, 9), b"x");
    put(p.s, b"on");
    assert_eq!(get(p.m, 9), b"on");
    put(p.m, b"\x13");
    eventually("output stops", || !writable(&p));
    set(&p, |t| t.c_iflag &= !IXON); // otherwise nothing could restart it
    assert!(writable(&p));
    put(p.m, b"\x13\n"); // an ordinary character
    eventually("a line", || {
        let mut n = 0;
        ioctl(p.s, FIONREAD, &mut n) == 0 && n == 3
    });
    set(&p, |t| t.c_iflag |= IXON | IXANY);
    put(p.m, b"\x13");
    eventually("output stops", || !writable(&p));
    put(p.m, b"y");
    eventually("any character starts it", || writable(&p));
}

unsafe fn flow_by_request() {
    let p = pty();
    quiet(&p);
    ok(tcflow(p.s, TCOOFF));
    assert!(!writable(&p));
    put(p.m, b"\x11"); // not enough
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(!writable(&p));
    ok(tcflow(p.s, TCOON));
    assert!(writable(&p));
    ok(tcflow(p.s, TCIOFF));
    assert_eq!(get(p.m, 9), b"\x13");
    ok(tcflow(p.s, TCION));
    assert_eq!(get(p.m, 9), b"\x11");
    fails(tcflow(p.s, 4), EINVAL);
}

unsafe fn packet_mode() {
    const TIOCGPKT: c_ulong = 0x8004_5438;
    let p = pty();
    quiet(&p);
    let (on, off, mut now) = (1, 0, 7);
    fails(ioctl(p.s, TIOCPKT, &on), ENOTTY);
    ok(ioctl(p.m, TIOCGPKT, &mut now));
    assert_eq!(now, 0);
    ok(ioctl(p.m, TIOCPKT, &on));
    ok(ioctl(p.m, TIOCGPKT, &mut now));
    assert_eq!(now, 1);
    put(p.s, b"data");
    assert_eq!(get(p.m, 9), b"\0data");
    put(p.s, b"parts");
    assert_eq!(get(p.m, 3), b"\0pa");
    assert_eq!(get(p.m, 9), b"\0rts");
    ok(tcflow(p.s, TCOOFF));
    let mut f = pollfd { fd: p.m, events: POLLIN | POLLPRI, revents: 0 };
    is(poll(&mut f, 1, 1000), 1);
    assert_eq!(f.revents & (POLLIN | POLLPRI), POLLIN | POLLPRI);
    assert_eq!(get(p.m, 9), [4]); // TIOCPKT_STOP
    ok(tcflow(p.s, TCOON));
    assert_eq!(get(p.m, 9), [8]); // TIOCPKT_START
    ok(tcflush(p.s, TCIFLUSH));
    assert_eq!(get(p.m, 9)[0] & 1, 1); // TIOCPKT_FLUSHREAD
    set(&p, |t| t.c_iflag &= !IXON);
    assert_eq!(get(p.m, 9), [16]); // TIOCPKT_NOSTOP
    set(&p, |t| t.c_iflag |= IXON);
    assert_eq!(get(p.m, 9), [32]); // TIOCPKT_DOSTOP
    ok(ioctl(p.m, TIOCPKT, &off));
    put(p.s, b"plain");
    assert_eq!(get(p.m, 9), b"plain");
}

/// `struct termios2`, which newer C libraries use.
unsafe fn numbered_speeds() {
    let p = pty();
    let mut t: termios2 = zeroed();
    ok(ioctl(p.s, TCGETS2, &mut t));
    assert_eq!((t.c_ispeed, t.c_ospeed), (38400, 38400));
    t.c_cflag = (t.c_cflag & !(CBAUD | CBAUD << 16)) | BOTHER | BOTHER << 16;
    (t.c_ispeed, t.c_ospeed) = (31250, 250000);
    t.c_lflag &= !ECHO;
    ok(ioctl(p.s, TCSETS2, &t));
    let mut u: termios2 = zeroed();
    ok(ioctl(p.m, TCGETS2, &mut u));
    assert_eq!((u.c_ispeed, u.c_ospeed, u.c_lflag & ECHO), (31250, 250000, 0));
    t.c_cflag = (t.c_cflag & !(CBAUD | CBAUD << 16)) | B115200;
    ok(ioctl(p.s, TCSETSF2, &t));
    ok(ioctl(p.s, TCGETS2, &mut u));
    assert_eq!((u.c_ispeed, u.c_ospeed), (115200, 115200));
    fails(ioctl(p.s, TCGETS2, 8), EFAULT);
}

unsafe fn locked_attributes() {
    const TIOCGLCKTRMIOS: c_ulong = 0x5456;
    const TIOCSLCKTRMIOS: c_ulong = 0x5457;
    let p = pty();
    let mut kept: termios = std::mem::MaybeUninit::zeroed().assume_init();
    ok(ioctl(p.s, TIOCGLCKTRMIOS, &mut kept));
    assert_eq!((kept.c_lflag, kept.c_iflag), (0, 0));
    kept.c_lflag = ECHO;
    if geteuid() != 0 {
        fails(ioctl(p.s, TIOCSLCKTRMIOS, &kept), EPERM);
        return;
    }
    ok(ioctl(p.s, TIOCSLCKTRMIOS, &kept));
    set(&p, |t| t.c_lflag &= !(ECHO | ICANON));
    let mut t: termios = std::mem::MaybeUninit::zeroed().assume_init();
    ok(tcgetattr(p.s, &mut t));
    assert_eq!(t.c_lflag & (ECHO | ICANON), ECHO);
}

unsafe fn exclusive_use() {
    const TIOCGEXCL: c_ulong = 0x8004_5440;
    let p = pty();
    let mut on = 7;
    ok(ioctl(p.s, TIOCGEXCL, &mut on));
    assert_eq!(on, 0);
    ok(ioctl(p.s, TIOCEXCL));
    ok(ioctl(p.s, TIOCGEXCL, &mut on));
    assert_eq!(on, 1);
    let again = || open(p.name.as_ptr(), O_RDWR | O_NOCTTY);
    match geteuid() {
        0 => _ = ok(again()),
        _ => fails(again(), EBUSY),
    }
    ok(ioctl(p.s, TIOCNXCL));
    ok(again());
}
