//! Which mounts get what is mounted and unmounted elsewhere (mount_namespaces(7), "Shared subtrees").

use super::*;

pub const CASES: &[crate::Case] = cases![
    peers,
    slave,
    slave_and_shared,
    chain_of_slaves,
    private_again,
    last_peer_leaves,
    unbindable_is_not_bound,
    recursive_change,
    bind_of_shared,
    bind_on_shared,
    move_on_shared,
    move_refused,
    unmount_is_passed_on,
    unmount_keeps_what_is_used,
    cover_slides_down,
    part_of_a_tree,
    tucked_under,
    copy_is_a_peer,
    change_refused,
    too_many_copies,
];

/// `a`, a tmpfs with the directories `x` and `y`, shared, and its bind mounts at `names`.
unsafe fn shared(names: &[&str]) {
    dir("a");
    tmpfs("a");
    dir("a/x");
    dir("a/y");
    make("a", MS_SHARED);
    for n in names {
        dir(n);
        bind("a", n);
    }
}

unsafe fn peers() {
    alone(|| {
        shared(&["b"]);
        shows(". a=shared:1 b=shared:1".replace(':', "").as_str());
        tmpfs("b/x");
        shows(". a=shared1 a/x=shared2 b=shared1 b/x=shared2");
        tmpfs("a/x");
        file("b/x/f");
        assert!(exists("a/x/f"));
        unmount("a/x");
        shows(". a=shared1 a/x=shared2 b=shared1 b/x=shared2");
        unmount("b/x");
        shows(". a=shared1 b=shared1");
    });
}

unsafe fn slave() {
    alone(|| {
        shared(&["b"]);
        make("b", MS_SLAVE);
        shows(". a=shared1 b=master1");
        tmpfs("a/x");
        shows(". a=shared1 a/x=shared2 b=master1 b/x=master2");
        tmpfs("b/y");
        shows(". a=shared1 a/x=shared2 b=master1 b/x=master2 b/y");
        unmount("b/x");
        shows(". a=shared1 a/x=shared2 b=master1 b/y");
        unmount("a/x");
        shows(". a=shared1 b=master1 b/y");
    });
}

unsafe fn slave_and_shared() {
    alone(|| {
        shared(&["b"]);
        make("b", MS_SLAVE);
        make("b", MS_SHARED);
        dir("c");
        bind("b", "c");
        shows(". a=shared1 b=shared2,master1 c=shared2,master1");
        tmpfs("a/x");
        shows(". a=shared1 a/x=shared2 b=shared3,master1 b/x=shared4,master2 c=shared3,master1 c/x=shared4,master2");
        tmpfs("c/y");
        shows(". a=shared1 a/x=shared2 b=shared3,master1 b/x=shared4,master2 b/y=shared5 c=shared3,master1 c/x=shared4,master2 c/y=shared5");
    });
}

unsafe fn chain_of_slaves() {
    alone(|| {
        shared(&["b"]);
        make("b", MS_SLAVE);
        make("b", MS_SHARED);
        dir("c");
        bind("b", "c");
        make("c", MS_SLAVE);
        make("c", MS_SHARED);
        dir("d");
        bind("c", "d");
        make("d", MS_SLAVE);
        shows(". a=shared1 b=shared2,master1 c=shared3,master2 d=master3");
        tmpfs("a/x");
        shows(". a=shared1 a/x=shared2 b=shared3,master1 b/x=shared4,master2 c=shared5,master3 c/x=shared6,master4 d=master5 d/x=master6");
        unmount("a/x");
        shows(". a=shared1 b=shared2,master1 c=shared3,master2 d=master3");
    });
}

unsafe fn private_again() {
    alone(|| {
        shared(&["b", "c"]);
        make("b", MS_PRIVATE);
        tmpfs("a/x");
        shows(". a=shared1 a/x=shared2 b c=shared1 c/x=shared2");
        make("c", MS_UNBINDABLE);
        shows(". a=shared1 a/x=shared2 b c=unbindable c/x=shared2");
        make("c", MS_SHARED);
        shows(". a=shared1 a/x=shared2 b c=shared3 c/x=shared2");
    });
}

unsafe fn last_peer_leaves() {
    // The slaves of a group whose last member leaves are those of its master.
    alone(|| {
        shared(&["b"]);
        make("b", MS_SLAVE);
        make("b", MS_SHARED);
        dir("c");
        bind("b", "c");
        make("c", MS_SLAVE);
        make("b", MS_PRIVATE);
        shows(". a=shared1 b c=master1");
        tmpfs("a/x");
        shows(". a=shared1 a/x=shared2 b c=master1 c/x=master2");
        // A slave without a master is private.
        make("a", MS_SLAVE);
        shows(". a a/x=shared1 b c c/x=master1");
        unmount("a/x");
        shows(". a b c c/x");
    });
}

unsafe fn unbindable_is_not_bound() {
    alone(|| {
        shared(&["b"]);
        make("a", MS_PRIVATE);
        tmpfs("a/x");
        dir("a/x/z");
        tmpfs("a/x/z");
        tmpfs("a/y");
        make("a/x", MS_UNBINDABLE);
        fails(mount(c("a/x").as_ptr(), c("b").as_ptr(), null(), MS_BIND, null()), EINVAL);
        rbind("a", "b");
        shows(". a a/x=unbindable a/x/z a/y b=shared1 b=shared2 b/y=shared3");
    });
}

unsafe fn recursive_change() {
    alone(|| {
        shared(&[]);
        make("a", MS_PRIVATE);
        tmpfs("a/x");
        tmpfs("a/y");
        make("a", MS_REC | MS_SHARED);
        shows(". a=shared1 a/x=shared2 a/y=shared3");
        make("a", MS_REC | MS_SLAVE);
        shows(". a a/x a/y");
        make("a", MS_REC | MS_UNBINDABLE);
        shows(". a=unbindable a/x=unbindable a/y=unbindable");
        make("a", MS_REC | MS_PRIVATE);
        shows(". a a/x a/y");
    });
}

unsafe fn bind_of_shared() {
    alone(|| {
        shared(&["b"]);
        dir("c");
        dir("d");
        make("b", MS_SLAVE);
        tmpfs("a/x");
        // A copy of a slave is a slave, a copy of what is shared a peer.
        rbind("b", "c");
        rbind("a", "d");
        shows(". a=shared1 a/x=shared2 b=master1 b/x=master2 c=master1 c/x=master2 d=shared1 d/x=shared2");
    });
}

unsafe fn bind_on_shared() {
    alone(|| {
        shared(&["b"]);
        dir("p");
        tmpfs("p");
        dir("p/q");
        tmpfs("p/q");
        rbind("p", "a/x");
        shows(". a=shared1 a/x=shared2 a/x/q=shared3 b=shared1 b/x=shared2 b/x/q=shared3 p p/q");
        file("p/q/f");
        assert!(exists("b/x/q/f"));
    });
}

unsafe fn move_on_shared() {
    alone(|| {
        shared(&["b"]);
        make("b", MS_SLAVE);
        dir("p");
        tmpfs("p");
        dir("p/q");
        tmpfs("p/q");
        ok(mount(c("p").as_ptr(), c("a/x").as_ptr(), null(), MS_MOVE, null()));
        shows(". a=shared1 a/x=shared2 a/x/q=shared3 b=master1 b/x=master2 b/x/q=master3");
    });
}

unsafe fn move_refused() {
    alone(|| {
        shared(&[]);
        tmpfs("a/x");
        dir("p");
        file("f");
        let to = |from: &str, to: &str| mount(c(from).as_ptr(), c(to).as_ptr(), null(), MS_MOVE, null());
        // Out of a shared mount.
        fails(to("a/x", "p"), EINVAL);
        fails(to("p", "a/y"), EINVAL);
        make("a", MS_PRIVATE);
        fails(to("a", "f"), EINVAL);
        fails(to("a", "a/x"), ELOOP);
        fails(to("a", "a/y"), ELOOP);
        ok(to("a/x", "p"));
        shows(". a p=shared1");
        // What is unbindable is not moved to where it would be copied.
        make("a", MS_SHARED);
        make("p", MS_UNBINDABLE);
        fails(to("p", "a/x"), EINVAL);
    });
}

unsafe fn unmount_is_passed_on() {
    alone(|| {
        shared(&["b"]);
        tmpfs("a/x");
        dir("a/x/z");
        tmpfs("a/x/z");
        shows(". a=shared1 a/x=shared2 a/x/z=shared3 b=shared1 b/x=shared2 b/x/z=shared3");
        fails(umount2(c("b/x").as_ptr(), 0), EBUSY);
        ok(umount2(c("b/x").as_ptr(), MNT_DETACH));
        shows(". a=shared1 b=shared1");
    });
}

unsafe fn unmount_keeps_what_is_used() {
    alone(|| {
        shared(&["b"]);
        tmpfs("a/x");
        let fd = ok(open(c("b/x").as_ptr(), O_RDONLY | O_DIRECTORY));
        fails(umount2(c("a/x").as_ptr(), 0), EBUSY);
        ok(close(fd));
        make("b", MS_SLAVE);
        dir("b/x/z");
        make("b/x", MS_PRIVATE);
        tmpfs("b/x/z");
        // Another mount on it keeps that of the slave.
        unmount("a/x");
        shows(". a=shared1 b=master1 b/x b/x/z");
    });
}

unsafe fn cover_slides_down() {
    alone(|| {
        shared(&["b"]);
        make("b", MS_SLAVE);
        tmpfs("a/x");
        tmpfs("b/x");
        file("b/x/over");
        shows(". a=shared1 a/x=shared2 b=master1 b/x b/x=master2");
        unmount("a/x");
        shows(". a=shared1 b=master1 b/x");
        assert!(exists("b/x/over"));
    });
}

unsafe fn part_of_a_tree() {
    // A mount that does not show the place gets nothing.
    alone(|| {
        shared(&[]);
        dir("a/x/in");
        dir("b");
        bind("a/x", "b");
        tmpfs("a/y");
        tmpfs("a/x/in");
        shows(". a=shared1 a/x/in=shared2 a/y=shared3 b=shared1 b/in=shared2");
    });
}

unsafe fn tucked_under() {
    alone(|| {
        shared(&["b"]);
        make("b", MS_SLAVE);
        tmpfs("b/x");
        file("b/x/over");
        tmpfs("a/x");
        shows(". a=shared1 a/x=shared2 b=master1 b/x b/x=master2");
        assert!(exists("b/x/over"));
        unmount("b/x");
        assert!(!exists("b/x/over"));
        shows(". a=shared1 a/x=shared2 b=master1 b/x=master2");
    });
}

unsafe fn copy_is_a_peer() {
    alone(|| {
        shared(&["b"]);
        make("b", MS_SLAVE);
        let (up, down) = (pipe_pair(), pipe_pair());
        let child = spawn(|| {
            ok(unshare(CLONE_NEWNS));
            shows(". a=shared1 b=master1");
            tmpfs("a/x");
            put(up.1, b"x");
            get_all(down.0, 1);
            shows(". a=shared1 b=master1");
            make("a", MS_REC | MS_SLAVE);
            tmpfs("a/y");
            0
        });
        get_all(up.0, 1);
        shows(". a=shared1 a/x=shared2 b=master1 b/x=master2");
        unmount("a/x");
        put(down.1, b"x");
        exits(child, 0);
        shows(". a=shared1 b=master1");
    });
}

unsafe fn change_refused() {
    alone(|| {
        shared(&[]);
        let change = |at: &str, f: c_ulong| mount(null(), c(at).as_ptr(), null(), f, null());
        fails(change("a/x", MS_SHARED), EINVAL);
        fails(change("a", MS_SHARED | MS_PRIVATE), EINVAL);
        fails(change("a", MS_SHARED | MS_RDONLY), EINVAL);
        ok(change("a", MS_SHARED | MS_SILENT));
    });
    in_child(|| {
        if root() {
            ok(setuid(1234));
        }
        fails(mount(null(), c("/").as_ptr(), null(), MS_SHARED, null()), EPERM);
        fails(mount(c("x").as_ptr(), c("/").as_ptr(), c("tmpfs").as_ptr(), 0, null()), EPERM);
        fails(umount2(c("/").as_ptr(), 0), EPERM);
        fails(syscall(SYS_pivot_root, c("/").as_ptr(), c("/").as_ptr()), EPERM);
    });
}

unsafe fn too_many_copies() {
    // Each bind mount doubles what there is, until there may be no more; nothing is left half done.
    alone(|| {
        dir("a");
        tmpfs("a");
        for i in 0..40 {
            dir(&format!("a/{i}"));
        }
        make("a", MS_SHARED);
        let mut failed = false;
        for i in 0..40 {
            let to = format!("a/{i}");
            let before = lines("/proc/self/mountinfo");
            if mount(c("a").as_ptr(), c(&to).as_ptr(), null(), MS_BIND | MS_REC, null()) != 0 {
                assert_eq!(errno(), ENOSPC);
                assert_eq!(lines("/proc/self/mountinfo"), before);
                failed = true;
                break;
            }
        }
        assert!(failed);
        ok(umount2(c("a").as_ptr(), MNT_DETACH));
        shows(".");
    });
}

fn lines(of: &str) -> usize {
    std::fs::read_to_string(of).unwrap().lines().count()
}
