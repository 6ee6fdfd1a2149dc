//! Programs that the cases execute.

use libc::*;

pub fn main(args: &[String]) -> i32 {
    match args.first().map(String::as_str) {
        Some("exit") => args[1].parse().unwrap(),
        Some("echo") => {
            println!("{}", args[1..].join("|"));
            0
        }
        // Waits for room in a file without a reader: a pseudo terminal's master or slave, a pipe, sockets.
        Some("full") => unsafe {
            let mut ends = [0; 2];
            match args[1].as_str() {
                "pipe" => pipe(ends.as_mut_ptr()),
                "stream" => socketpair(AF_UNIX, SOCK_STREAM, 0, ends.as_mut_ptr()),
                "datagram" => socketpair(AF_UNIX, SOCK_DGRAM, 0, ends.as_mut_ptr()),
                side => {
                    ends[0] = posix_openpt(O_RDWR | O_NOCTTY);
                    grantpt(ends[0]);
                    unlockpt(ends[0]);
                    ends[1] = open(ptsname(ends[0]), O_RDWR | O_NOCTTY);
                    let mut t: termios = std::mem::zeroed();
                    tcgetattr(ends[1], &mut t);
                    cfmakeraw(&mut t);
                    tcsetattr(ends[1], TCSANOW, &t);
                    if side == "master" {
                        ends.swap(0, 1);
                    }
                    0
                }
            };
            println!("ready");
            while write(ends[1], [b'x'; 100].as_ptr().cast(), 100) > 0 {}
            1
        },
        Some("env") => {
            for (k, v) in std::env::vars() {
                println!("{k}={v}");
            }
            0
        }
        // Exits with 0 if the descriptor is closed, 1 if it is open.
        Some("isopen") => i32::from(unsafe { fcntl(args[1].parse().unwrap(), F_GETFD) } != -1),
        // Prints the action of each named signal and whether it is blocked.
        Some("signals") => {
            for a in &args[1..] {
                let sig: i32 = a.parse().unwrap();
                unsafe {
                    let mut act: sigaction = std::mem::zeroed();
                    sigaction(sig, std::ptr::null(), &mut act);
                    let mut m: sigset_t = std::mem::zeroed();
                    sigprocmask(SIG_BLOCK, std::ptr::null(), &mut m);
                    let how = match act.sa_sigaction {
                        SIG_DFL => "default",
                        SIG_IGN => "ignored",
                        _ => "handled",
                    };
                    println!("{sig} {how} {}", if sigismember(&m, sig) == 1 { "blocked" } else { "open" });
                }
            }
            0
        }
        // Looks for memory of a program that this process executed before.
        Some("residue") => unsafe {
            crate::hostile::residue::look();
            0
        },
        // Prints the effective capabilities in hexadecimal.
        Some("caps") => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap();
            println!("{:x}", u64::from_str_radix(line.trim(), 16).unwrap());
            0
        }
        Some("ids") => unsafe {
            let (mut r, mut e, mut s) = (0, 0, 0);
            getresuid(&mut r, &mut e, &mut s);
            println!("{r} {e} {s} pid {} tid {}", getpid(), gettid());
            0
        },
        Some("euid") => i32::from(unsafe { geteuid() } != args[1].parse().unwrap()),
        Some("state") => unsafe {
            // The vector state and the page at the given address.
            let (mut mxcsr, mut fcw, mut xmm) = (0u32, 0u16, 0u64);
            std::arch::asm!(
                "stmxcsr [{m}]", "fnstcw [{f}]", "movq {x}, xmm15",
                m = in(reg) &mut mxcsr, f = in(reg) &mut fcw, x = out(reg) xmm
            );
            let page = args[1].parse::<usize>().unwrap() as *mut c_void;
            let mapped = msync(page, 4096, MS_ASYNC) == 0;
            println!("{mxcsr:x} {fcw:x} {} {mapped}", xmm == 0x1234_5678_9abc);
            0
        },
        Some("stopped") => stopped_terminal(args[1] == "on"),
        // The error of `sched_yield`, or 0.
        Some("yield") => unsafe {
            if sched_yield() == 0 {
                0
            } else {
                crate::t::errno()
            }
        },
        // Reaps all children.
        Some("reap") => unsafe {
            while waitpid(-1, std::ptr::null_mut(), __WALL) > 0 {}
            0
        },
        // Waits until the other end of standard input is closed.
        Some("idle") => unsafe {
            let mut b = [0u8; 8];
            while read(0, b.as_mut_ptr().cast(), 8) > 0 {}
            0
        },
        // Bits: the user ids differ; a seccomp filter is in force.
        Some("confined") => unsafe {
            let gained = geteuid() != getuid();
            i32::from(gained) | i32::from(prctl(PR_GET_SECCOMP) != 0) << 1
        },
        // The personality, in decimal.
        Some("personality") => {
            println!("{}", unsafe { personality(0xffff_ffff) });
            0
        }
        // Reports that it runs, and waits for the end of standard input.
        Some("ready") => unsafe {
            println!("ready");
            let mut b = [0u8; 8];
            while read(0, b.as_mut_ptr().cast(), 8) > 0 {}
            0
        },
        Some("comm") => {
            print!("{}", std::fs::read_to_string("/proc/self/comm").unwrap());
            0
        }
        _ => {
            eprintln!("no such helper: {args:?}");
            2
        }
    }
}

/// Standard error is the terminal; standard output reports progress. Stops the terminal's output and has a child write
/// there. `on`: restarts the output once the child certainly waits; otherwise waits for the child.
fn stopped_terminal(on: bool) -> i32 {
    unsafe {
        assert_eq!(tcflow(2, TCOOFF), 0);
        // Calls that do not exist are logged, on the same terminal.
        for nr in 4000..4200 {
            assert_eq!(syscall(nr), -1);
        }
        let child = fork();
        if child == 0 {
            assert_eq!(write(2, b"held\n".as_ptr().cast(), 5), 5);
            _exit(3);
        }
        usleep(100_000);
        let mut status = 0;
        assert_eq!(waitpid(child, &mut status, WNOHANG), 0, "it wrote to a stopped terminal");
        let mut p = pollfd { fd: 2, events: POLLOUT, revents: 0 };
        assert_eq!(poll(&mut p, 1, 0), 0, "a stopped terminal can be written to");
        println!("waits");
        if on {
            assert_eq!(tcflow(2, TCOON), 0);
        }
        assert_eq!(waitpid(child, &mut status, 0), child);
        assert!(WIFEXITED(status) && WEXITSTATUS(status) == 3, "{status:x}");
        assert_eq!(poll(&mut p, 1, 0), 1);
        0
    }
}
