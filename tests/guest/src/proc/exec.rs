//! execve(2), and the state that survives it.

use crate::t::*;
use libc::*;
use std::ffi::CString;
use std::ptr::null;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

pub const CASES: &[crate::Case] = cases![
    arguments,
    environment,
    no_arguments,
    errors,
    permission,
    scripts,
    script_chain,
    script_errors,
    not_a_program,
    broken_elf,
    too_long,
    many_arguments,
    close_on_exec,
    signals_over_exec,
    pid_stays,
    from_other_thread,
    from_several_threads,
    other_threads_end,
    by_descriptor,
    execveat_flags,
    relative_path,
    own_interpreter,
    through_symlink,
    own_path,
    auxiliary_vector,
    name_of_process,
    replaced_while_running,
    vfork_then_exec,
    setuid_program,
    memory_is_new,
    state_is_new,
    text_busy,
];

fn me() -> String {
    std::fs::read_link("/proc/self/exe").unwrap().to_str().unwrap().to_string()
}

struct Out {
    status: i32,
    text: String,
}

/// Runs `f` in a child and captures its output; `f` executes a program.
unsafe fn run(f: impl FnOnce()) -> Out {
    let (r, w) = pipe_pair();
    let pid = spawn(|| {
        ok(dup2(w, 1));
        f();
        99
    });
    ok(close(w));
    let mut text = Vec::new();
    loop {
        let b = get(r, 65536);
        if b.is_empty() {
            break;
        }
        text.extend(b);
    }
    ok(close(r));
    Out { status: reap(pid), text: String::from_utf8(text).unwrap() }
}

fn ptrs(v: &[CString]) -> Vec<*const c_char> {
    v.iter().map(|s| s.as_ptr()).chain([null()]).collect()
}

unsafe fn exec(path: &str, args: &[&str], env: &[&str]) -> i32 {
    let a: Vec<CString> = args.iter().map(|s| c(s)).collect();
    let e: Vec<CString> = env.iter().map(|s| c(s)).collect();
    execve(c(path).as_ptr(), ptrs(&a).as_ptr(), ptrs(&e).as_ptr())
}

unsafe fn helper(args: &[&str]) -> Out {
    let m = me();
    run(|| {
        let all = [&["guest-tests", "helper"], args].concat();
        exec(&m, &all, &[]);
    })
}

fn exited(o: &Out, code: i32, text: &str) {
    assert!(WIFEXITED(o.status) && WEXITSTATUS(o.status) == code, "status {:#x}, {:?}", o.status, o.text);
    assert_eq!(o.text, text);
}

unsafe fn arguments() {
    let long = "x".repeat(10_000);
    let o = helper(&["echo", "a", "", "with space", "\n", &long]);
    exited(&o, 0, &format!("a||with space|\n|{long}\n"));
    exited(&helper(&["exit", "17"]), 17, "");
}

unsafe fn environment() {
    let m = me();
    let o = run(|| {
        exec(&m, &["g", "helper", "env"], &["A=1", "B=two words", "C="]);
    });
    exited(&o, 0, "A=1\nB=two words\nC=\n");
}

unsafe fn no_arguments() {
    let m = me();
    // An empty argument list becomes one empty argument.
    let o = run(|| {
        execve(c(&m).as_ptr(), [null()].as_ptr(), [null()].as_ptr());
    });
    assert!(WIFEXITED(o.status) && WEXITSTATUS(o.status) == 2);
}

unsafe fn errors() {
    let t = Tmp::new();
    let f = t.file("f", b"#!/bin/sh\n");
    ok(chmod(f.as_ptr(), 0o755));
    fails(exec(&t.s("none"), &["x"], &[]), ENOENT);
    fails(exec("", &["x"], &[]), ENOENT);
    fails(exec(&t.s("f/x"), &["x"], &[]), ENOTDIR);
    fails(exec(&t.s(""), &["x"], &[]), EACCES);
    fails(exec("/dev/null", &["x"], &[]), EACCES);
    fails(exec(&t.s(&"n".repeat(300)), &["x"], &[]), ENAMETOOLONG);
    fails(execve(BAD.cast(), [null()].as_ptr(), [null()].as_ptr()), EFAULT);
    fails(execve(c(&me()).as_ptr(), BAD.cast(), [null()].as_ptr()), EFAULT);
    fails(execve(c(&me()).as_ptr(), [BAD.cast(), null()].as_ptr(), [null()].as_ptr()), EFAULT);
    ok(symlink(c("l").as_ptr(), t.p("l").as_ptr()));
    fails(exec(&t.s("l"), &["x"], &[]), ELOOP);
}

unsafe fn permission() {
    let t = Tmp::new();
    std::fs::copy(me(), t.s("g")).unwrap();
    ok(chmod(t.p("g").as_ptr(), 0o644));
    fails(exec(&t.s("g"), &["x"], &[]), EACCES);
    ok(chmod(t.p("g").as_ptr(), 0o711));
    let p = t.s("g");
    let o = run(|| {
        exec(&p, &["g", "helper", "exit", "3"], &[]);
    });
    exited(&o, 3, "");
    if geteuid() == 0 {
        ok(chmod(t.p("").as_ptr(), 0o755));
        ok(chmod(t.p("g").as_ptr(), 0o744));
        in_child(|| {
            become_nobody();
            fails(exec(&t.s("g"), &["x"], &[]), EACCES);
        });
    }
}

unsafe fn script(t: &Tmp, name: &str, text: &str) -> String {
    let f = t.file(name, text.as_bytes());
    ok(chmod(f.as_ptr(), 0o755));
    t.s(name)
}

unsafe fn scripts() {
    let t = Tmp::new();
    let m = me();
    let s = script(&t, "s", &format!("#! {m} helper \nrest\n"));
    // The interpreter gets the rest of the line as one argument, then the script's path, then the arguments.
    let o = run(|| {
        exec(&s, &["ignored", "echo"], &[]);
    });
    assert!(WEXITSTATUS(o.status) == 2, "helper got the script's path as its name: {:?}", o.text);
    let l = t.s("l");
    ok(symlink(c(&m).as_ptr(), c(&l).as_ptr()));
    let s = script(&t, "s2", &format!("#!{l} a b  c\t \n"));
    let o = run(|| {
        exec(&s, &["zero", "one"], &[]);
    });
    assert!(WIFEXITED(o.status) && WEXITSTATUS(o.status) == 2);
    let s = script(&t, "s3", "#!/bin/sh\necho \"$0|$1|$2\"; exit 9\n");
    let o = run(|| {
        exec(&s, &["zero", "one", "two words"], &[]);
    });
    exited(&o, 9, &format!("{s}|one|two words\n"));
    let s = script(&t, "s4", "#!/bin/echo  -e  x \n");
    let o = run(|| {
        exec(&s, &["zero", "one"], &[]);
    });
    assert!(o.text.ends_with(&format!("{s} one\n")), "{:?}", o.text);
}

unsafe fn script_chain() {
    let t = Tmp::new();
    let mut s = script(&t, "s0", "#!/bin/sh\necho end \"$@\"\n");
    for i in 1..=3 {
        s = script(&t, &format!("s{i}"), &format!("#!{s} arg{i}\n"));
    }
    let o = run(|| {
        exec(&s, &["x", "last"], &[]);
    });
    let (s1, s2, s3) = (t.s("s1"), t.s("s2"), t.s("s3"));
    exited(&o, 0, &format!("end arg1 {s1} arg2 {s2} arg3 {s3} last\n"));
    for i in 4..=7 {
        s = script(&t, &format!("s{i}"), &format!("#!{s}\n"));
    }
    fails(exec(&s, &["x"], &[]), ELOOP);
}

unsafe fn script_errors() {
    let t = Tmp::new();
    let s = script(&t, "none", "#!/no/such/interpreter\n");
    fails(exec(&s, &["x"], &[]), ENOENT);
    let s = script(&t, "dir", "#!/\n");
    fails(exec(&s, &["x"], &[]), EACCES);
    let s = script(&t, "empty", "#!\n");
    fails(exec(&s, &["x"], &[]), ENOEXEC);
    let s = script(&t, "blank", "#!   \n");
    fails(exec(&s, &["x"], &[]), ENOEXEC);
}

unsafe fn not_a_program() {
    let t = Tmp::new();
    for (n, text) in [("a", ""), ("b", "echo hi\n"), ("c", "\x7fEL"), ("d", "\0\0\0\0")] {
        let s = script(&t, n, text);
        fails(exec(&s, &["x"], &[]), ENOEXEC);
    }
}

/// Damaged headers must be refused or kill the program, without other effects.
unsafe fn broken_elf() {
    let t = Tmp::new();
    let good = std::fs::read(me()).unwrap();
    for (off, val) in [
        (16usize, 1u8), // relocatable
        (18, 3),        // another machine
        (54, 1),        // size of a program header
        (56, 0),        // no program headers
    ] {
        let mut b = good[..good.len().min(4096)].to_vec();
        b[off] = val;
        if off == 56 {
            b[57] = 0;
        }
        std::fs::write(t.s("g"), &b).unwrap();
        ok(chmod(t.p("g").as_ptr(), 0o755));
        fails(exec(&t.s("g"), &["x"], &[]), ENOEXEC);
        ok(unlink(t.p("g").as_ptr()));
    }
    // Sizes and addresses far out of bounds in each program header.
    let n = u16::from_le_bytes([good[56], good[57]]) as usize;
    for i in 0..n {
        for field in [8, 16, 32, 40, 48] {
            let mut b = good[..4096].to_vec();
            let at = 64 + 56 * i + field;
            b[at..at + 8].copy_from_slice(&0x7fff_ffff_ffff_f123u64.to_le_bytes());
            std::fs::write(t.s("g"), &b).unwrap();
            ok(chmod(t.p("g").as_ptr(), 0o755));
            let p = t.s("g");
            let pid = spawn(|| {
                let null = ok(open(c("/dev/null").as_ptr(), O_RDWR));
                dup2(null, 1);
                dup2(null, 2);
                exec(&p, &["x"], &[]);
                0
            });
            reap(pid);
            ok(unlink(t.p("g").as_ptr()));
        }
    }
}

unsafe fn too_long() {
    let one = "x".repeat(131_072);
    fails(exec("/bin/true", &["x", &one], &[]), E2BIG);
    let fits = "x".repeat(131_071);
    let o = helper(&["echo", &fits]);
    assert_eq!(o.text.len(), 131_072);
    ok(setrlimit(RLIMIT_STACK, &rlimit { rlim_cur: 1 << 20, rlim_max: RLIM_INFINITY }));
    let big = vec![fits.as_str(); 5];
    fails(exec("/bin/true", &big, &[]), E2BIG); // more than a quarter of the stack
}

unsafe fn many_arguments() {
    let v: Vec<String> = (0..20_000).map(|i| i.to_string()).collect();
    let r: Vec<&str> = ["echo"].into_iter().chain(v.iter().map(String::as_str)).collect();
    let o = helper(&r);
    exited(&o, 0, &(v.join("|") + "\n"));
}

unsafe fn close_on_exec() {
    let (r, w) = pipe_pair();
    let _ = w;
    ok(fcntl(r, F_SETFD, 0));
    exited(&helper(&["isopen", &r.to_string()]), 1, "");
    exited(&helper(&["isopen", &w.to_string()]), 0, "");
}

unsafe fn signals_over_exec() {
    on(SIGUSR1, nothing as *const () as usize, 0);
    signal(SIGUSR2, SIG_IGN);
    block(&[SIGTERM]);
    let o = helper(&["signals", &SIGUSR1.to_string(), &SIGUSR2.to_string(), &SIGTERM.to_string()]);
    exited(&o, 0, &format!("{SIGUSR1} default open\n{SIGUSR2} ignored open\n{SIGTERM} default blocked\n"));
    // A pending signal stays pending.
    let m = me();
    let pid = spawn(|| {
        ok(kill(getpid(), SIGTERM));
        exec(&m, &["g", "helper", "exit", "4"], &[]);
        1
    });
    exits(pid, 4);
}

unsafe fn pid_stays() {
    let m = me();
    let s = shared(PAGE).cast::<pid_t>();
    let o = run(|| {
        *s = getpid();
        exec(&m, &["g", "helper", "ids"], &[]);
    });
    assert!(o.text.ends_with(&format!("pid {0} tid {0}\n", *s)), "{:?}", o.text);
}

unsafe fn from_other_thread() {
    let m = me();
    let s = shared(PAGE).cast::<pid_t>();
    let o = run(|| {
        *s = getpid();
        let sp = s as usize;
        std::thread::spawn(move || unsafe {
            assert_ne!(gettid(), getpid());
            let _ = sp;
            exec(&m, &["g", "helper", "ids"], &[]);
        })
        .join()
        .unwrap();
    });
    // The thread takes over the leader's id.
    assert!(o.text.ends_with(&format!("pid {0} tid {0}\n", *s)), "{:?}", o.text);
}

/// The first of them wins, whatever the others do: execve as well, or creating threads.
unsafe fn from_several_threads() {
    for _ in 0..20 {
        let pid = spawn(|| {
            static GO: AtomicBool = AtomicBool::new(false);
            for n in 0..6 {
                std::thread::spawn(move || {
                    while !GO.load(SeqCst) {
                        std::hint::spin_loop();
                    }
                    if n < 4 {
                        exec("/proc/self/exe", &["guest-tests", "helper", "exit", "7"], &[]);
                    }
                    loop {
                        let _ = std::thread::Builder::new().spawn(|| ());
                    }
                });
            }
            GO.store(true, SeqCst);
            loop {
                pause();
            }
        });
        exits(pid, 7);
    }
}

unsafe fn other_threads_end() {
    let m = me();
    let o = run(|| {
        for _ in 0..8 {
            std::thread::spawn(|| loop {
                std::hint::spin_loop();
            });
            std::thread::spawn(|| unsafe { pause() });
        }
        exec(&m, &["g", "helper", "echo", "alone"], &[]);
    });
    exited(&o, 0, "alone\n");
}

unsafe fn by_descriptor() {
    let fd = ok(open(c(&me()).as_ptr(), O_RDONLY | O_CLOEXEC));
    let a = [c("g"), c("helper"), c("exit"), c("21")];
    let o = run(|| {
        fexecve(fd, ptrs(&a).as_ptr(), [null()].as_ptr());
    });
    exited(&o, 21, "");
    let path = ok(open(c(&me()).as_ptr(), O_PATH));
    let o = run(|| {
        fexecve(path, ptrs(&a).as_ptr(), [null()].as_ptr());
    });
    exited(&o, 21, "");
    // A program that exists only in a memfd.
    let mem = ok(memfd_create(c("prog").as_ptr(), MFD_CLOEXEC));
    put(mem, &std::fs::read(me()).unwrap());
    let o = run(|| {
        fexecve(mem, ptrs(&a).as_ptr(), [null()].as_ptr());
    });
    exited(&o, 21, "");
}

unsafe fn execveat_flags() {
    let t = Tmp::new();
    ok(symlink(c(&me()).as_ptr(), t.p("l").as_ptr()));
    let d = ok(open(t.p("").as_ptr(), O_RDONLY));
    let a = [c("g"), c("helper"), c("exit"), c("5")];
    let call = |dir: i32, p: &str, fl: i32| unsafe {
        syscall(SYS_execveat, dir, c(p).as_ptr(), ptrs(&a).as_ptr(), [null::<c_char>()].as_ptr(), fl)
    };
    let o = run(|| {
        call(d, "l", 0);
    });
    exited(&o, 5, "");
    fails(call(d, "l", AT_SYMLINK_NOFOLLOW), ELOOP);
    fails(call(d, "l", 0x8000), EINVAL);
    fails(call(-1, "l", 0), EBADF);
    fails(call(d, "", 0), ENOENT);
    fails(call(d, "", AT_EMPTY_PATH), EACCES);
}

unsafe fn relative_path() {
    let m = me();
    let (dir, name) = m.rsplit_once('/').unwrap();
    ok(chdir(c(dir).as_ptr()));
    let p = format!("./{name}");
    let o = run(|| {
        exec(&p, &["g", "helper", "exit", "8"], &[]);
    });
    exited(&o, 8, "");
}

/// A dynamic linker executed as a program lies where other programs have their mappings, and there is still room below
/// it.
unsafe fn own_interpreter() {
    let m = me();
    let o = run(|| {
        exec("/lib64/ld-linux-x86-64.so.2", &["ld.so", &m, "run", "mmap/big_reservation"], &[]);
    });
    exited(&o, 0, "");
}

unsafe fn through_symlink() {
    let t = Tmp::new();
    ok(symlink(c(&me()).as_ptr(), t.p("link").as_ptr()));
    let p = t.s("link");
    let o = run(|| {
        exec(&p, &["g", "helper", "comm"], &[]);
    });
    exited(&o, 0, "link\n"); // the name is that of the path, not of its target
}

unsafe fn own_path() {
    let l = std::fs::read_link("/proc/self/exe").unwrap();
    assert!(l.is_absolute());
    let st = stat_of(&c("/proc/self/exe"));
    assert_eq!(st.st_ino, stat_of(&c(l.to_str().unwrap())).st_ino);
}

unsafe fn auxiliary_vector() {
    assert_eq!(getauxval(AT_PAGESZ), PAGE as u64);
    assert_eq!(getauxval(AT_UID), getuid().into());
    assert_eq!(getauxval(AT_EUID), geteuid().into());
    assert_eq!(getauxval(AT_SECURE), 0);
    assert_eq!(getauxval(AT_CLKTCK), 100);
    assert_eq!(getauxval(AT_PHENT), 56);
    let r = std::slice::from_raw_parts(getauxval(AT_RANDOM) as *const u8, 16);
    assert!(r.iter().any(|&x| x != 0));
    let name = std::ffi::CStr::from_ptr(getauxval(AT_EXECFN) as *const c_char);
    assert!(name.to_str().unwrap().contains('/'));
    let f = std::fs::read("/proc/self/auxv").unwrap();
    let words: Vec<u64> = f.chunks(8).map(|w| u64::from_ne_bytes(w.try_into().unwrap())).collect();
    assert!(words.chunks(2).any(|p| p == [AT_ENTRY, getauxval(AT_ENTRY)]));
    assert_eq!(words[words.len() - 2], AT_NULL);
}

unsafe fn name_of_process() {
    let t = Tmp::new();
    let p = t.s("a-name-longer-than-fifteen");
    ok(symlink(c(&me()).as_ptr(), c(&p).as_ptr()));
    let o = run(|| {
        exec(&p, &["argv0", "helper", "comm"], &[]);
    });
    exited(&o, 0, "a-name-longer-t\n");
}

unsafe fn replaced_while_running() {
    let t = Tmp::new();
    let p = t.s("prog");
    std::fs::copy(me(), &p).unwrap();
    ok(chmod(c(&p).as_ptr(), 0o755));
    // A running program may be unlinked and replaced.
    let (r, w) = pipe_pair();
    let pid = spawn(|| {
        ok(dup2(r, 0));
        exec(&p, &["g", "helper", "exit", "0"], &[]);
        1
    });
    ok(unlink(c(&p).as_ptr()).max(0));
    let _ = w;
    let st = reap(pid);
    assert!(WIFEXITED(st));
}

unsafe fn vfork_then_exec() {
    for i in 0..10 {
        let st = std::process::Command::new(me()).args(["helper", "exit", &i.to_string()]).status().unwrap();
        assert_eq!(st.code(), Some(i));
    }
}

unsafe fn setuid_program() {
    if !root() {
        return;
    }
    let t = Tmp::new();
    let p = t.s("suid");
    std::fs::copy(me(), &p).unwrap();
    ok(chmod(t.p("").as_ptr(), 0o755));
    ok(chown(c(&p).as_ptr(), 1234, 1234));
    ok(chmod(c(&p).as_ptr(), 0o4755));
    let mut s: statvfs = zeroed();
    ok(statvfs(c(&p).as_ptr(), &mut s));
    if s.f_flag & ST_NOSUID != 0 {
        return;
    }
    let o = run(|| {
        become_nobody();
        exec(&p, &["g", "helper", "ids"], &[]);
    });
    assert!(o.text.starts_with("65534 1234 1234 "), "{:?}", o.text);
    // Set-user-ID has no effect with no_new_privs.
    let o = run(|| {
        become_nobody();
        ok(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        exec(&p, &["g", "helper", "ids"], &[]);
    });
    assert!(o.text.starts_with("65534 65534 65534 "), "{:?}", o.text);
}

unsafe fn state_is_new() {
    // Twice: the second time the program is in the caches.
    for _ in 0..2 {
        let o = run(|| {
            let at = 0x2000_0000_0000usize as *mut c_void;
            assert_eq!(mmap(at, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), at);
            let (mxcsr, fcw, mark) = (0x7f80u32, 0x27fu16, 0x1234_5678_9abcu64);
            std::arch::asm!("ldmxcsr [{m}]", "fldcw [{f}]", "movq xmm15, {x}",
                m = in(reg) &mxcsr, f = in(reg) &fcw, x = in(reg) mark, out("xmm15") _);
            exec(&me(), &["guest-tests", "helper", "state", &(at as usize).to_string()], &[]);
        });
        exited(&o, 0, "1f80 37f false false\n");
    }
}

unsafe fn memory_is_new() {
    // Mappings are gone after an exec; a failed one leaves everything in place.
    let p = anon(PAGE, RW);
    *p = 5;
    fails(exec("/none", &["x"], &[]), ENOENT);
    assert_eq!(*p, 5);
    let o = helper(&["exit", "0"]);
    exited(&o, 0, "");
}

unsafe fn text_busy() {
    let t = Tmp::new();
    let p = t.s("prog");
    std::fs::copy(me(), &p).unwrap();
    ok(chmod(c(&p).as_ptr(), 0o755));
    let fd = ok(open(c(&p).as_ptr(), O_WRONLY));
    fails(exec(&p, &["g"], &[]), ETXTBSY);
    ok(close(fd));
}
