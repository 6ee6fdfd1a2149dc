//! Searches for data read by a privileged program, from the program that it executes after dropping its rights.

use super::raw::{AREA, SLOT};
use super::*;

/// Slots of the hand-off area to search.
const SLOTS: u64 = 2;

pub unsafe fn residue() {
    let t = Tmp::new();
    let secret = t.file("secret", "CANARY-SHADOW-0123456789abcdef:".repeat(1000).as_bytes());
    ok(chmod(secret.as_ptr(), 0o600));
    let me = c(&std::env::args().next().unwrap());
    for dumpable in [0, 1] {
        let pid = spawn(|| {
            let file = ok(open(secret.as_ptr(), O_RDONLY));
            // More than the program's arguments, which go to the same place.
            let mut buffer = [0u8; 30_000];
            is(read(file, buffer.as_mut_ptr().cast(), buffer.len()), buffer.len() as i64);
            buffer.fill(0);
            zero(close(file));
            ok(setgroups(0, std::ptr::null()));
            ok(setresgid(65534, 65534, 65534));
            ok(setresuid(65534, 65534, 65534));
            ok(prctl(PR_SET_DUMPABLE, dumpable));
            let args = [c"guest-tests".as_ptr(), c"helper".as_ptr(), c"residue".as_ptr(), std::ptr::null()];
            execv(me.as_ptr(), args.as_ptr());
            1
        });
        exits(pid, 0);
    }
}

/// The program that is executed.
pub unsafe fn look() {
    for slot in 0..SLOTS {
        let bytes = std::slice::from_raw_parts((AREA + slot * SLOT) as *const u8, SLOT as usize);
        search(bytes, "the hand-off area");
    }
}
