//! Measures the costs of the platform: `cargo run --release -p platform --example measure`.

#[path = "../tests/common/mod.rs"]
mod common;
use common::*;
use platform::{Enter, Op, Platform, Trap};
use std::time::{Duration, Instant};

guest_code!(getpid, "2: mov eax, 39", "syscall", "jmp 2b");
guest_code!(works, "2: mov ecx, 1500", "3: dec ecx", "jnz 3b", "mov eax, 39", "syscall", "jmp 2b",);
guest_code!(writes, "2: mov edi, 1", "mov esi, 0x500000", "mov edx, 4096", "mov eax, 1", "syscall", "jmp 2b",);

fn report(what: &str, n: u64, took: Duration) {
    println!("{what:<48} {:>8.0} ns", took.as_nanos() as f64 / n as f64);
}

async fn calls(t: &mut Guest, n: u64) -> Duration {
    for _ in 0..n / 10 {
        answer(t, 0).await;
    }
    let start = Instant::now();
    for _ in 0..n {
        answer(t, 0).await;
    }
    start.elapsed()
}

fn main() {
    sandbox(|platform, executor| async move {
        let (mut t, _) = start(&platform, getpid()).await;
        let n = 200_000;
        report("call", n, calls(&mut t, n).await);
        let (mut t2, _) = start(&platform, writes()).await;
        report("call, 4 KiB copied in", n, calls(&mut t2, n).await);
        let begin = Instant::now();
        for _ in 0..n {
            t.queue(Op::CopyOut { addr: DATA, data: vec![1; 4096] });
            answer(&mut t, 4096).await;
        }
        report("call, 4 KiB copied out", n, begin.elapsed());
        let (mut w, _) = start(&platform, works()).await;
        report("call after about 1 us of work", n, calls(&mut w, n).await);
        drop(w);
        let begin = Instant::now();
        for _ in 0..n {
            let mut b = [0; 64];
            t.address_space().read(DATA, &mut b).unwrap();
        }
        report("process_vm_readv of 64 bytes", n, begin.elapsed());
        let begin = Instant::now();
        for _ in 0..2000 {
            t.queue(anon(0x1000_0000, 0x1000, RW));
            answer(&mut t, 0).await;
        }
        report("call with an mmap", 2000, begin.elapsed());

        // Several guests at once.
        for guests in [2, 3, 4] {
            let n = 20_000u64;
            let left = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(guests));
            let begin = Instant::now();
            let (tx, rx) = std::sync::mpsc::channel();
            for _ in 0..guests {
                let platform = platform.clone();
                let (left, tx) = (left.clone(), tx.clone());
                executor.spawn(Box::pin(async move {
                    let (mut t, _) = start(&platform, works()).await;
                    for _ in 0..n {
                        answer(&mut t, 0).await;
                    }
                    if left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 1 {
                        tx.send(begin.elapsed()).unwrap();
                    }
                }));
            }
            let took = loop {
                if let Ok(took) = rx.try_recv() {
                    break took;
                }
                sleep(&executor, 1_000_000).await;
            };
            report(&format!("a call, {guests} guests with 1 us of work each, all in all"), n * guests, took);
        }
        // The Sentry sleeps, and the guest wakes it.
        let begin = Instant::now();
        for _ in 0..500 {
            t.park();
            sleep(&executor, 200_000).await;
            answer(&mut t, 0).await;
        }
        report("call after both slept (200 us asleep each)", 500, begin.elapsed() - Duration::from_micros(200 * 500));

        // Fork and fresh.
        let n = 500;
        let mut total = Duration::ZERO;
        for _ in 0..n {
            let begin = Instant::now();
            let mut c = fork(&mut t).await;
            c.regs_mut().rax = 0;
            assert_eq!(enter(&mut c, Enter::Return).await, Trap::Syscall);
            total += begin.elapsed();
            drop(c);
        }
        report("fork, to the child's first call", n, total);
        let begin = Instant::now();
        for _ in 0..n {
            let c = thread(&mut t, None).await;
            drop(c);
        }
        report("thread", n, begin.elapsed());
        let begin = Instant::now();
        for _ in 0..n {
            let c = fresh(&platform).await;
            drop(c);
        }
        report("fresh address space, one after the other", n, begin.elapsed());
        for (name, value) in platform.stats() {
            println!("{name:<30} {value}");
        }
    });
}

async fn sleep(executor: &std::sync::Arc<platform::Executor>, ns: u64) {
    let deadline = platform::executor::now_ns() + ns;
    let mut timer = None;
    std::future::poll_fn(|cx| {
        if platform::executor::now_ns() >= deadline {
            return std::task::Poll::Ready(());
        }
        timer = Some(executor.timer(deadline, cx.waker().clone()));
        std::task::Poll::Pending
    })
    .await
}
