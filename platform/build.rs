//! Builds the stub: a static program for the host target, linked at its fixed address, without std and without vector
//! registers. It goes into this crate with `include_bytes!`.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("stub.elf");
    println!("cargo:rerun-if-changed=stub");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2021", "--crate-name", "stub", "--target", "x86_64-unknown-linux-gnu", "-O"]);
    for option in [
        "panic=abort",
        "relocation-model=pic",
        "target-feature=-sse,-sse2,-avx",
        "strip=symbols",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "link-arg=-no-pie",
        "link-arg=-Wl,-T,stub/stub.ld",
        "link-arg=-Wl,--build-id=none",
    ] {
        command.args(["-C", option]);
    }
    command.arg("-o").arg(&out).arg("stub/stub.rs");
    let output = command.output().expect("rustc could not be started");
    if !output.status.success() {
        panic!("the stub could not be built:\n{}", String::from_utf8_lossy(&output.stderr));
    }
}
