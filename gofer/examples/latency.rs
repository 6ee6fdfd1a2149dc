//! Measures the latency of requests: `cargo run --release -p gofer --example latency`, after
//! `cargo build --release -p gofer`.
//!
//! Starts a confined Gofer on a temporary tree and prints the median round trip in nanoseconds.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use protocol::{transport, Client, OpenFlags, WalkFids};

fn measure(what: &str, pause: Duration, mut f: impl FnMut()) {
    let n = if pause.is_zero() { 20_000 } else { 1_000 };
    let mut times: Vec<u128> = (0..n)
        .map(|_| {
            std::thread::sleep(pause);
            let start = Instant::now();
            f();
            start.elapsed().as_nanos()
        })
        .collect();
    times.sort_unstable();
    println!("{what:55} {:>8} ns   (p90 {} ns)", times[n / 2], times[n * 9 / 10]);
}

fn main() {
    let dir = std::env::temp_dir().join(format!("gofer-latency-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("usr/lib/python")).unwrap();
    std::fs::write(dir.join("usr/lib/python/os.py"), "x").unwrap();
    let server = std::env::current_exe().unwrap().with_file_name("../gofer-serve");
    let (ours, theirs) = transport::socketpair().unwrap();
    let mut child =
        Command::new(server).arg(format!("root={}", dir.display())).stdin(Stdio::from(theirs)).spawn().unwrap();
    let client = Client::connect(ours).unwrap();
    let root = client.attach("root").unwrap().handle;
    let path: [&[u8]; 4] = [b"usr", b"lib", b"python", b"os.py"];
    for (when, pause) in [("back to back", Duration::ZERO), ("after 1 ms of quiet", Duration::from_millis(1))] {
        println!("{when}:");
        measure("  getattr", pause, || _ = root.getattr().unwrap());
        measure("  walk 1, attributes", pause, || drop(root.walk(&path[..1], WalkFids::None, None).unwrap()));
        measure("  walk 4, attributes, each a fid", pause, || drop(root.walk(&path, WalkFids::Each, None).unwrap()));
        measure("  walk 4, attributes, each a fid, open", pause, || {
            drop(root.walk(&path, WalkFids::Each, Some(OpenFlags::READ)).unwrap().file.unwrap().unwrap())
        });
        measure("  walk 1 of a missing name", pause, || drop(root.walk(&[b"none"], WalkFids::None, None).unwrap()));
    }
    measure("for comparison: the host's open of the same and close", Duration::ZERO, || {
        drop(std::fs::File::open(dir.join("usr/lib/python/os.py")).unwrap())
    });
    drop((root, client));
    child.wait().unwrap();
    std::fs::remove_dir_all(dir).unwrap();
}
