//! pivot_root(2).

use super::*;

pub const CASES: &[crate::Case] = cases![pivots, onto_itself, refused, others_come_along];

unsafe fn pivot(new: &str, old: &str) -> c_long {
    syscall(SYS_pivot_root, c(new).as_ptr(), c(old).as_ptr())
}

unsafe fn pivots() {
    alone(|| {
        dir("new");
        tmpfs("new");
        dir("new/old");
        file("new/mark");
        ok(pivot("new", "new/old"));
        // Root and working directory were not the old root itself, or are moved along.
        assert!(exists("/mark"));
        assert!(exists("/old/proc"));
        ok(chdir(c("/").as_ptr()));
        ok(umount2(c("/old").as_ptr(), MNT_DETACH));
        assert!(!exists("/old/proc"));
        ok(rmdir(c("/old").as_ptr()));
    });
}

unsafe fn onto_itself() {
    alone(|| {
        dir("new");
        tmpfs("new");
        file("new/mark");
        ok(chdir(c("new").as_ptr()));
        ok(pivot(".", "."));
        ok(umount2(c(".").as_ptr(), MNT_DETACH));
        ok(chdir(c("/").as_ptr()));
        assert!(exists("mark"));
        assert!(!exists("/proc"));
    });
}

unsafe fn refused() {
    alone(|| {
        dir("new");
        tmpfs("new");
        dir("new/old");
        dir("new/sub");
        dir("other");
        file("new/f");
        fails(pivot("none", "new/old"), ENOENT);
        fails(pivot("new/f", "new/old"), ENOTDIR);
        fails(pivot("new", "new/f"), ENOTDIR);
        // Not a mount, not below the new root, the old root itself.
        fails(pivot("new/sub", "new/sub"), EINVAL);
        fails(pivot("new", "other"), EINVAL);
        fails(pivot("/", "/"), EBUSY);
        make("new", MS_SHARED);
        fails(pivot("new", "new/old"), EINVAL);
        make("new", MS_PRIVATE);
        make(".", MS_SHARED);
        fails(pivot("new", "new/old"), EINVAL);
        make(".", MS_PRIVATE);
        // The root is a directory that is not the root of a mount.
        in_child(|| {
            dir("sub");
            dir("sub/in");
            tmpfs("sub/in");
            dir("sub/in/old");
            ok(chroot(c("sub").as_ptr()));
            fails(pivot("/in", "/in/old"), EINVAL);
        });
    });
}

unsafe fn others_come_along() {
    alone(|| {
        dir("new");
        tmpfs("new");
        dir("new/old");
        file("new/mark");
        let (up, down) = (pipe_pair(), pipe_pair());
        let child = spawn(|| {
            ok(chdir(c("/").as_ptr()));
            put(up.1, b"x");
            get_all(down.0, 1);
            i32::from(!(exists("mark") && exists("/mark")))
        });
        get_all(up.0, 1);
        ok(pivot("new", "new/old"));
        put(down.1, b"x");
        exits(child, 0);
    });
}
