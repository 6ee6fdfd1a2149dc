//! mount(2) and umount2(2), with many mounts.

use crate::t::*;
use libc::*;
use std::ptr::null;

pub const CASES: &[crate::Case] = cases![stacked, deep_chain, chain_left_behind, detached_tree, too_many];

unsafe fn tmpfs(at: &str) {
    ok(mount(c("none").as_ptr(), c(at).as_ptr(), c("tmpfs").as_ptr(), 0, c("size=64k").as_ptr().cast()));
}

/// Runs `f` as root in a child whose working directory is a new tmpfs, in its own mount namespace where that is
/// possible.
unsafe fn alone(f: impl FnOnce()) {
    if !root() {
        return;
    }
    let t = Tmp::new();
    in_child(|| {
        if unshare(CLONE_NEWNS) == 0 {
            ok(mount(null(), c("/").as_ptr(), null(), MS_REC | MS_PRIVATE, null()));
        }
        tmpfs(&t.s(""));
        ok(chdir(t.p("").as_ptr()));
        f();
        ok(chdir(c("/").as_ptr()));
        ok(umount2(t.p("").as_ptr(), MNT_DETACH));
    });
}

/// Mounts `n` file systems, each inside the previous one.
unsafe fn nest(n: usize) {
    for _ in 0..n {
        ok(mkdir(c("d").as_ptr(), 0o755));
        tmpfs("d");
        ok(chdir(c("d").as_ptr()));
    }
}

unsafe fn stacked() {
    alone(|| {
        ok(mkdir(c("d").as_ptr(), 0o755));
        ok(chdir(c("d").as_ptr()));
        let up = ok(open(c("..").as_ptr(), O_PATH | O_DIRECTORY));
        for _ in 0..3 {
            // Each on top of the previous one; the working directory stays below all of them.
            tmpfs(".");
        }
        ok(close(ok(open(c("below").as_ptr(), O_CREAT | O_RDWR, 0o600))));
        let top = || access(c("../d/below").as_ptr(), F_OK);
        for _ in 0..3 {
            fails(top(), ENOENT);
            ok(umount2(c(".").as_ptr(), MNT_DETACH));
        }
        ok(top());
        fails(umount2(c(".").as_ptr(), MNT_DETACH), EINVAL);
        ok(fchdir(up));
    });
}

unsafe fn deep_chain() {
    alone(|| {
        let top = ok(open(c(".").as_ptr(), O_PATH | O_DIRECTORY));
        nest(12_000);
        ok(fchdir(top));
        ok(umount2(c("d").as_ptr(), MNT_DETACH));
        fails(umount2(c("d").as_ptr(), MNT_DETACH), EINVAL);
    });
}

unsafe fn chain_left_behind() {
    // A copy of a chain, and a chain that goes away with the mount that it is attached to.
    alone(|| {
        let top = ok(open(c(".").as_ptr(), O_PATH | O_DIRECTORY));
        ok(mkdir(c("copy").as_ptr(), 0o755));
        nest(4_000);
        ok(fchdir(top));
        ok(mount(c("d").as_ptr(), c("copy").as_ptr(), null(), MS_BIND | MS_REC, null()));
        ok(chdir(c("copy/d/d/d/d").as_ptr()));
        ok(fchdir(top));
    });
}

unsafe fn detached_tree() {
    // A lazily unmounted tree comes apart: a process in a part of it sees only that part.
    alone(|| {
        let top = ok(open(c(".").as_ptr(), O_PATH | O_DIRECTORY));
        nest(2);
        ok(close(ok(creat(c("mark").as_ptr(), 0o644))));
        ok(fchdir(top));
        ok(chdir(c("d").as_ptr()));
        ok(umount2(c("../d").as_ptr(), MNT_DETACH));
        ok(access(c("d").as_ptr(), F_OK));
        fails(access(c("d/mark").as_ptr(), F_OK), ENOENT);
        ok(fchdir(top));
    });
}

unsafe fn too_many() {
    alone(|| {
        let all = std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
        let max = std::fs::read_to_string("/proc/sys/fs/mount-max").map_or(100_000, |s| s.trim().parse().unwrap());
        // Each bind of the tree into itself doubles it.
        let mut mine = 1;
        for i in 0..40 {
            ok(mkdir(c(&format!("x{i}")).as_ptr(), 0o755));
            let r = mount(c(".").as_ptr(), c(&format!("x{i}")).as_ptr(), null(), MS_BIND | MS_REC, null());
            if r == -1 {
                assert_eq!(errno(), ENOSPC);
                assert!(all - 1 + 2 * mine > max, "{mine} mounts and no more");
                // A single mount still fits; nothing is left of the failed copy.
                ok(mount(c(".").as_ptr(), c(&format!("x{i}")).as_ptr(), null(), MS_BIND, null()));
                return;
            }
            mine *= 2;
            assert!(all - 1 + mine <= max, "{mine} mounts");
        }
    });
}
