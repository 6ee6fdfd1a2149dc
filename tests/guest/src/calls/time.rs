//! Clocks, timers, and the privileged calls on them.

use crate::t::*;
use libc::*;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

pub const CASES: &[crate::Case] = cases![
    clocks,
    interval_timers,
    profiled_threads,
    posix_timers,
    timer_of_an_ignored_signal,
    overruns,
    setting_clocks,
    accounting,
    parts_of_used_time,
    time_of_a_thread,
    memory_used
];

unsafe fn clocks() {
    let mut t: timespec = zeroed();
    for id in [CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_PROCESS_CPUTIME_ID, CLOCK_MONOTONIC_RAW] {
        zero(syscall(SYS_clock_gettime, id, &mut t) as i32);
        zero(syscall(SYS_clock_getres, id, &mut t) as i32);
        assert!(t.tv_sec == 0 && t.tv_nsec > 0);
    }
    for nr in [SYS_clock_gettime, SYS_clock_getres] {
        fails(syscall(nr, 99, &mut t), EINVAL);
    }
    fails(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, BAD), EFAULT);
    zero(syscall(SYS_clock_getres, CLOCK_MONOTONIC, 0) as i32);
}

unsafe fn interval_timers() {
    let mut t: itimerval = zeroed();
    for which in [ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF] {
        zero(syscall(SYS_getitimer, which, &mut t) as i32);
        assert_eq!(t.it_value.tv_sec, 0);
        t.it_value.tv_sec = 1000;
        zero(syscall(SYS_setitimer, which, &t, 0) as i32);
        zero(syscall(SYS_getitimer, which, &mut t) as i32);
        assert!(t.it_value.tv_sec >= 900);
        zero(syscall(SYS_setitimer, which, &zeroed::<itimerval>(), &mut t) as i32);
        assert!(t.it_value.tv_sec >= 900);
        t = zeroed();
    }
    fails(syscall(SYS_getitimer, 9, &mut t), EINVAL);
    fails(syscall(SYS_getitimer, ITIMER_REAL, BAD), EFAULT);
    t.it_value.tv_usec = 1_000_000;
    fails(syscall(SYS_setitimer, ITIMER_REAL, &t, 0), EINVAL);
}

/// A profiling timer signals all threads that use processor time.
unsafe fn profiled_threads() {
    const THREADS: usize = 3;
    static SEEN: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
    thread_local! { static ME: std::cell::Cell<usize> = const { std::cell::Cell::new(THREADS) } }
    extern "C" fn tick(_: i32) {
        if let Some(n) = SEEN.get(ME.get()) {
            n.fetch_add(1, SeqCst);
        }
    }
    on(SIGPROF, tick as *const () as usize, SA_RESTART);
    let each = timeval { tv_sec: 0, tv_usec: 2000 };
    zero(syscall(SYS_setitimer, ITIMER_PROF, &itimerval { it_interval: each, it_value: each }, 0) as i32);
    let all = || SEEN.iter().all(|n| n.load(SeqCst) > 1);
    let threads = (0..THREADS).map(|n| {
        std::thread::spawn(move || {
            ME.set(n);
            let begun = std::time::Instant::now();
            while !all() && begun.elapsed().as_secs() < 8 {}
        })
    });
    for t in threads.collect::<Vec<_>>() {
        t.join().unwrap();
    }
    zero(syscall(SYS_setitimer, ITIMER_PROF, &zeroed::<itimerval>(), 0) as i32);
    assert!(all(), "{SEEN:?}");
}

/// A timer whose signal was ignored for a while continues when a handler is set.
unsafe fn timer_of_an_ignored_signal() {
    static TICKS: AtomicU64 = AtomicU64::new(0);
    extern "C" fn tick(_: i32) {
        TICKS.fetch_add(1, SeqCst);
    }
    let mut event: sigevent = zeroed();
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR2;
    let mut timer = std::ptr::null_mut();
    zero(timer_create(CLOCK_MONOTONIC, &mut event, &mut timer));
    let each = timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let often = itimerspec { it_interval: each, it_value: each };
    on(SIGUSR2, SIG_IGN, 0);
    zero(timer_settime(timer, 0, &often, std::ptr::null_mut()));
    for _ in 0..2 {
        usleep(20_000);
        on(SIGUSR2, tick as *const () as usize, SA_RESTART);
        let seen = TICKS.load(SeqCst);
        eventually("the timer goes on", || TICKS.load(SeqCst) > seen + 2);
        // A signal queued now is dropped.
        block(&[SIGUSR2]);
        usleep(5000);
        on(SIGUSR2, SIG_IGN, 0);
        let set = set_of(&[SIGUSR2]);
        zero(sigprocmask(SIG_UNBLOCK, &set, std::ptr::null_mut()));
    }
    zero(timer_delete(timer));
}

static RUNG: AtomicU64 = AtomicU64::new(0);
extern "C" fn ring(_: i32, info: *mut siginfo_t, _: *mut c_void) {
    unsafe {
        if (*info).si_code == SI_TIMER && (*info).si_value().sival_ptr as usize == 77 {
            RUNG.fetch_add(1, SeqCst);
        }
    }
}

unsafe fn posix_timers() {
    on(SIGUSR1, ring as *const () as usize, SA_SIGINFO);
    let mut event: sigevent = zeroed();
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR1;
    event.sigev_value.sival_ptr = 77 as *mut c_void;
    let mut id = -1i32;
    zero(syscall(SYS_timer_create, CLOCK_MONOTONIC, &mut event, &mut id) as i32);
    let mut t: itimerspec = zeroed();
    t.it_value.tv_nsec = 1_000_000;
    zero(syscall(SYS_timer_settime, id, 0, &t, 0) as i32);
    eventually("the timer", || RUNG.load(SeqCst) == 1);
    t.it_value.tv_sec = 1000;
    zero(syscall(SYS_timer_settime, id, 0, &t, &mut zeroed::<itimerspec>()) as i32);
    zero(syscall(SYS_timer_gettime, id, &mut t) as i32);
    assert!(t.it_value.tv_sec >= 900);
    is(syscall(SYS_timer_getoverrun, id), 0);
    t.it_value.tv_nsec = -1;
    fails(syscall(SYS_timer_settime, id, 0, &t, 0), EINVAL);
    zero(syscall(SYS_timer_delete, id) as i32);
    for nr in [SYS_timer_delete, SYS_timer_getoverrun] {
        fails(syscall(nr, id), EINVAL);
    }
    fails(syscall(SYS_timer_gettime, id, &mut t), EINVAL);
    fails(syscall(SYS_timer_create, 99, &mut event, &mut id), EINVAL);
    event.sigev_signo = 99;
    fails(syscall(SYS_timer_create, CLOCK_MONOTONIC, &mut event, &mut id), EINVAL);
    fails(syscall(SYS_timer_create, CLOCK_MONOTONIC, BAD, &mut id), EFAULT);
}

/// A blocked signal counts its timer's further expirations.
unsafe fn overruns() {
    block(&[SIGUSR1]);
    let mut event: sigevent = zeroed();
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR1;
    let mut id = -1i32;
    zero(syscall(SYS_timer_create, CLOCK_MONOTONIC, &mut event, &mut id) as i32);
    let often = timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let t = itimerspec { it_interval: often, it_value: often };
    zero(syscall(SYS_timer_settime, id, 0, &t, 0) as i32);
    usleep(20_000);
    let mut info: siginfo_t = zeroed();
    is(sigwaitinfo(&set_of(&[SIGUSR1]), &mut info), SIGUSR1 as i64);
    assert!(syscall(SYS_timer_getoverrun, id) > 0);
    zero(syscall(SYS_timer_delete, id) as i32);
}

unsafe fn setting_clocks() {
    let mut x: timex = zeroed();
    assert!((0..=5).contains(&ok(syscall(SYS_adjtimex, &mut x))));
    assert!((0..=5).contains(&ok(syscall(SYS_clock_adjtime, CLOCK_REALTIME, &mut x))));
    fails(syscall(SYS_adjtimex, BAD), EFAULT);
    fails(syscall(SYS_clock_adjtime, 99, &mut x), EINVAL);
    let now = timespec { tv_sec: 1, tv_nsec: -1 };
    let tv = timeval { tv_sec: 1, tv_usec: -1 };
    fails(syscall(SYS_clock_settime, 99, &now), EINVAL);
    if root() {
        in_child(|| {
            become_nobody();
            let (now, tv) = (timespec { tv_sec: 1, tv_nsec: 0 }, timeval { tv_sec: 1, tv_usec: 0 });
            fails(syscall(SYS_clock_settime, CLOCK_REALTIME, &now), EPERM);
            fails(syscall(SYS_settimeofday, &tv, 0), EPERM);
            x.modes = 1;
            fails(syscall(SYS_adjtimex, &mut x), EPERM);
        });
    }
    let _ = tv;
}

unsafe fn accounting() {
    let mut u: rusage = zeroed();
    zero(getrusage(RUSAGE_SELF, &mut u));
    fails(getrusage(99, &mut u), EINVAL);
    let mut t: tms = zeroed();
    ok(times(&mut t));
    fails(syscall(SYS_times, BAD), EFAULT);
    let mut s: sysinfo = zeroed();
    zero(sysinfo(&mut s));
    assert!(s.totalram > 0 && s.mem_unit > 0);
    fails(syscall(SYS_sysinfo, BAD), EFAULT);
    let (mut cpu, mut node) = (u32::MAX, u32::MAX);
    zero(syscall(SYS_getcpu, &mut cpu, &mut node, 0) as i32);
    assert!(cpu < 4096 && node < 4096);
    zero(syscall(SYS_getcpu, 0, 0, 0) as i32);
    fails(syscall(SYS_getcpu, BAD, 0, 0), EFAULT);
}

/// System time is counted, reported times never decrease, and the parts add up to the process's clock.
unsafe fn parts_of_used_time() {
    let micros = |t: timeval| t.tv_sec * 1_000_000 + t.tv_usec;
    let clock = || {
        let mut t: timespec = zeroed();
        ok(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &mut t));
        t.tv_sec * 1_000_000 + t.tv_nsec / 1000
    };
    let (mut user, mut system) = (0, 0);
    eventually("20 ms in the kernel", || {
        for _ in 0..200 {
            let mut u: rusage = zeroed();
            let before = clock();
            ok(getrusage(RUSAGE_SELF, &mut u));
            let after = clock();
            let (u, s) = (micros(u.ru_utime), micros(u.ru_stime));
            assert!(u >= user && s >= system, "{user}+{system}, then {u}+{s}");
            // Each part is truncated to whole microseconds.
            assert!((before - 2..=after).contains(&(u + s)), "{u}+{s}, not from {before} to {after}");
            (user, system) = (u, s);
        }
        system > 20_000
    });
}

/// The time of one thread does not count for another.
unsafe fn time_of_a_thread() {
    let used = || {
        let (mut t, mut u): (timespec, rusage) = (zeroed(), zeroed());
        ok(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut t));
        let mut own: clockid_t = 0;
        is(pthread_getcpuclockid(pthread_self(), &mut own), 0);
        let mut same: timespec = zeroed();
        ok(clock_gettime(own, &mut same));
        ok(getrusage(RUSAGE_THREAD, &mut u));
        let ns = |t: &timespec| t.tv_sec * 1_000_000_000 + t.tv_nsec;
        assert!(ns(&same) >= ns(&t));
        let both = (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1_000_000 + u.ru_utime.tv_usec + u.ru_stime.tv_usec;
        assert!(both >= ns(&t) / 1000 - 2);
        ns(&t) / 1_000_000
    };
    let before = used();
    let other = std::thread::spawn(move || {
        let start = std::time::Instant::now();
        while start.elapsed() < PATIENCE && used() < 300 {
            std::hint::black_box((0..10_000).sum::<u64>());
        }
        used()
    });
    assert!(other.join().unwrap() >= 300);
    let after = used();
    assert!(after - before < 150, "{before} ms, then {after} ms");
    fails(syscall(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, BAD), EFAULT);
    fails(syscall(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, 8), EFAULT);
}

unsafe fn memory_used() {
    let mut u: rusage = zeroed();
    ok(getrusage(RUSAGE_SELF, &mut u));
    let (before, faults) = (u.ru_maxrss, u.ru_minflt);
    const LEN: usize = 64 << 20;
    let p = anon(LEN, PROT_READ | PROT_WRITE);
    std::ptr::write_bytes(p, 1, LEN);
    zero(munmap(p.cast(), LEN));
    ok(getrusage(RUSAGE_SELF, &mut u));
    assert!(u.ru_maxrss >= before.max(LEN as i64 / 1024) && u.ru_maxrss < before + 2 * LEN as i64 / 1024);
    assert!(u.ru_minflt > faults);
    for who in [RUSAGE_SELF, RUSAGE_THREAD, RUSAGE_CHILDREN] {
        fails(syscall(SYS_getrusage, who, BAD), EFAULT);
        fails(syscall(SYS_getrusage, who, 8), EFAULT);
    }
}
