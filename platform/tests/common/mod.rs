//! Helpers for tests that take the Sentry's part: a test makes address spaces, puts machine code into them and checks
//! their traps.
#![allow(dead_code)]

use std::future::{poll_fn, Future};
use std::sync::Arc;

use platform::systrap::{Config, Systrap};
use platform::{Enter, Executor, GuestThread, HandOff, Op, Platform, Trap};

pub const CODE: u64 = 0x40_0000;
pub const DATA: u64 = 0x50_0000;
pub const DATA_LEN: u64 = 0x10_0000;
pub const STACK: u64 = 0x70_0000;

pub type Guest = Box<dyn GuestThread>;

/// Runs `test` as a task of an executor with a platform.
pub fn sandbox<F, Fut>(test: F)
where
    F: FnOnce(Arc<Systrap>, Arc<Executor>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    sandbox_with(true, test)
}

/// The same; without `see_all`, the host answers a guest's `sched_yield`.
pub fn sandbox_with<F, Fut>(see_all: bool, test: F)
where
    F: FnOnce(Arc<Systrap>, Arc<Executor>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let executor = Executor::new(HandOff::default(), None).unwrap();
    let on_fatal = Arc::new(|m: &str| eprintln!("fatal: {m}"));
    let config =
        Config { executor: executor.clone(), pool: 2, see_all, max_host_tasks: None, on_fatal, survives_kills: false };
    let platform = Systrap::new(config).unwrap();
    let future = test(platform.clone(), executor.clone());
    let e = executor.clone();
    executor.spawn(Box::pin(async move {
        future.await;
        e.shutdown(7);
    }));
    assert_eq!(executor.run(), 7);
    drop(platform);
}

pub async fn fresh(platform: &Systrap) -> Guest {
    poll_fn(|cx| platform.poll_new(cx)).await.unwrap()
}

pub async fn trap(t: &mut Guest) -> Trap {
    poll_fn(|cx| t.poll_trap(cx)).await
}

pub async fn enter(t: &mut Guest, how: Enter) -> Trap {
    t.enter(how);
    trap(t).await
}

/// Answers the system call that `t` stopped on, and waits for the next trap.
pub async fn answer(t: &mut Guest, rax: u64) -> Trap {
    t.regs_mut().rax = rax;
    enter(t, Enter::Return).await
}

pub async fn fork(t: &mut Guest) -> Guest {
    t.start_fork();
    poll_fn(|cx| t.poll_fork(cx)).await.unwrap()
}

pub async fn thread(t: &mut Guest, fs: Option<u64>) -> Guest {
    t.start_thread(fs);
    poll_fn(|cx| t.poll_thread(cx)).await.unwrap()
}

pub fn anon(addr: u64, len: u64, prot: i32) -> Op {
    Op::MapAnon { addr, len, prot, shared: false, flags: 0 }
}

pub const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
pub const RX: i32 = libc::PROT_READ | libc::PROT_EXEC;

/// An address space with `code` at `CODE`, data and a stack; the thread is ready to run it.
pub async fn load(platform: &Systrap, code: &[u8]) -> Guest {
    let mut t = fresh(platform).await;
    t.queue(anon(CODE, 0x4000, RW));
    t.queue(anon(DATA, DATA_LEN, RW));
    t.queue(anon(STACK, 0x1_0000, RW));
    t.queue(Op::CopyOut { addr: CODE, data: code.to_vec() });
    t.queue(Op::Protect { addr: CODE, len: 0x4000, prot: RX });
    assert_eq!(enter(&mut t, Enter::Stay).await, Trap::OpsDone);
    t.regs_mut().rip = CODE;
    t.regs_mut().rsp = STACK + 0xfff0;
    t
}

/// Loads the code and runs up to the first trap.
pub async fn start(platform: &Systrap, code: &[u8]) -> (Guest, Trap) {
    let mut t = load(platform, code).await;
    let trap = enter(&mut t, Enter::Full).await;
    (t, trap)
}

/// Machine code in the test's own assembly, between two labels.
#[macro_export]
macro_rules! guest_code {
    ($name:ident, $($line:expr),* $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata",
            concat!(".globl guest_", stringify!($name)),
            concat!("guest_", stringify!($name), ":"),
            $($line),*,
            concat!(".globl guest_", stringify!($name), "_end"),
            concat!("guest_", stringify!($name), "_end:"),
            ".popsection",
        );
        fn $name() -> &'static [u8] {
            extern "C" {
                #[link_name = concat!("guest_", stringify!($name))]
                static START: u8;
                #[link_name = concat!("guest_", stringify!($name), "_end")]
                static END: u8;
            }
            // SAFETY: both labels lie in this program's read-only data, the first before the second.
            unsafe {
                let (start, end) = (&raw const START, &raw const END);
                std::slice::from_raw_parts(start, end.offset_from(start) as usize)
            }
        }
    };
}
