//! Overlays that are mounted.

use super::*;
use std::fs::{read_to_string, write};

pub const CASES: &[crate::Case] =
    cases![layers_show, changes, directories, names_move, without_an_upper_layer, refused, nested, stays_after_unmount];

unsafe fn overlay(at: &str, options: &str) -> i32 {
    mount(c("overlay").as_ptr(), c(at).as_ptr(), c("overlay").as_ptr(), 0, c(options).as_ptr().cast())
}

fn names(of: &str) -> Vec<String> {
    let mut v: Vec<String> =
        std::fs::read_dir(of).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    v.sort();
    v
}

const BOTH: &str = "lowerdir=l1:l2,upperdir=u,workdir=w";

/// Two lower layers, an empty upper one, and `m` to mount at.
unsafe fn prepared() {
    for d in ["l1", "l2", "u", "w", "m", "l1/d", "l2/d", "l1/only", "l2/d/deep"] {
        dir(d);
    }
    for (f, text) in
        [("l1/both", "1"), ("l2/both", "2"), ("l2/low", "low"), ("l1/d/x", "x"), ("l2/d/y", "y"), ("l2/d/deep/z", "z")]
    {
        write(f, text).unwrap();
    }
}

unsafe fn layers_show() {
    alone(|| {
        prepared();
        ok(overlay("m", BOTH));
        assert_eq!(names("m"), ["both", "d", "low", "only"]);
        assert_eq!(names("m/d"), ["deep", "x", "y"]);
        assert_eq!(read_to_string("m/both").unwrap(), "1");
        assert_eq!(read_to_string("m/d/deep/z").unwrap(), "z");
        let mut s: statfs = zeroed();
        ok(statfs(c("m").as_ptr(), &mut s));
        assert_eq!(s.f_type, 0x794c7630);
        let text = read_to_string("/proc/self/mounts").unwrap();
        let last = text.lines().last().unwrap();
        assert!(last.contains("lowerdir=l1:l2,upperdir=u,workdir=w"), "{last}");
        // Numbers tell the files of different layers apart.
        let mut seen = std::collections::BTreeSet::new();
        for f in ["m", "m/both", "m/d", "m/low", "m/only", "m/d/x", "m/d/y", "m/d/deep", "m/d/deep/z"] {
            let st = stat_of(&c(f));
            assert!(seen.insert((st.st_dev, st.st_ino)), "{f}");
        }
    });
}

unsafe fn changes() {
    alone(|| {
        prepared();
        ok(overlay("m", BOTH));
        write("m/low", "changed").unwrap();
        assert_eq!(read_to_string("u/low").unwrap(), "changed");
        assert_eq!(read_to_string("l2/low").unwrap(), "low");
        write("m/d/new", "n").unwrap();
        assert_eq!(names("u/d"), ["new"]);
        assert_eq!(names("m/d"), ["deep", "new", "x", "y"]);
        ok(chmod(c("m/d/deep/z").as_ptr(), 0o600));
        assert_eq!(stat_of(&c("u/d/deep/z")).st_mode & 0o777, 0o600);
        assert_eq!(read_to_string("u/d/deep/z").unwrap(), "z");
        // What is taken away leaves a mark.
        ok(unlink(c("m/both").as_ptr()));
        assert!(!exists("m/both"));
        let st = stat_of(&c("u/both"));
        assert_eq!((st.st_mode & S_IFMT, st.st_rdev), (S_IFCHR, 0));
        write("m/both", "again").unwrap();
        assert_eq!(read_to_string("u/both").unwrap(), "again");
        ok(unlink(c("m/d/new").as_ptr()));
        assert_eq!(names("u/d"), ["deep"]);
        // A file that is open sees what is written to its copy.
        let fd = ok(open(c("m/d/x").as_ptr(), O_RDONLY));
        write("m/d/x", "xx").unwrap();
        ok(close(fd));
        assert_eq!(read_to_string("m/d/x").unwrap(), "xx");
    });
}

unsafe fn opaque(at: &str) -> bool {
    let mut b = [0u8; 4];
    let n = getxattr(c(at).as_ptr(), c("trusted.overlay.opaque").as_ptr(), b.as_mut_ptr().cast(), 4);
    n == 1 && b[0] == b'y'
}

unsafe fn directories() {
    alone(|| {
        prepared();
        ok(overlay("m", BOTH));
        fails(rmdir(c("m/d").as_ptr()), ENOTEMPTY);
        for f in ["x", "y", "deep/z"] {
            ok(unlink(c(&format!("m/d/{f}")).as_ptr()));
        }
        ok(rmdir(c("m/d/deep").as_ptr()));
        assert!(names("m/d").is_empty());
        ok(rmdir(c("m/d").as_ptr()));
        assert!(!exists("m/d"));
        // One of the same name shows nothing of the old one.
        dir("m/d");
        assert!(names("m/d").is_empty());
        assert!(opaque("u/d"));
        let mut b = [0u8; 4];
        fails(getxattr(c("m/d").as_ptr(), c("trusted.overlay.opaque").as_ptr(), b.as_mut_ptr().cast(), 4), ENODATA);
        dir("m/new");
        assert!(!opaque("u/new"));
    });
}

unsafe fn names_move() {
    alone(|| {
        prepared();
        ok(overlay("m", BOTH));
        let mv = |a: &str, b: &str| rename(c(a).as_ptr(), c(b).as_ptr());
        ok(mv("m/low", "m/d/low"));
        assert!(!exists("m/low"));
        assert_eq!(read_to_string("m/d/low").unwrap(), "low");
        assert_eq!(read_to_string("u/d/low").unwrap(), "low");
        // A directory of a lower layer is copied by mv(1).
        fails(mv("m/d", "m/e"), EXDEV);
        fails(mv("m/only", "m/e"), EXDEV);
        dir("m/made");
        write("m/made/f", "f").unwrap();
        ok(mv("m/made", "m/moved"));
        assert_eq!(names("m/moved"), ["f"]);
        // Onto the name of an empty lower one.
        ok(rmdir(c("m/only").as_ptr()));
        ok(mv("m/moved", "m/only"));
        assert_eq!(names("m/only"), ["f"]);
        assert!(opaque("u/only"));
        ok(link(c("m/both").as_ptr(), c("m/other").as_ptr()));
        assert_eq!(stat_of(&c("m/both")).st_ino, stat_of(&c("m/other")).st_ino);
    });
}

unsafe fn without_an_upper_layer() {
    alone(|| {
        prepared();
        fails(overlay("m", "lowerdir=l1"), EINVAL);
        ok(overlay("m", "lowerdir=l1:l2"));
        assert_eq!(names("m/d"), ["deep", "x", "y"]);
        fails(open(c("m/both").as_ptr(), O_RDWR), EROFS);
        fails(mkdir(c("m/n").as_ptr(), 0o755), EROFS);
        fails(chmod(c("m/both").as_ptr(), 0o600), EROFS);
        let rw = mount(null(), c("m").as_ptr(), null(), MS_REMOUNT, null());
        assert_eq!(rw, -1);
        fails(mkdir(c("m/n").as_ptr(), 0o755), EROFS);
    });
}

unsafe fn refused() {
    alone(|| {
        prepared();
        file("f");
        dir("u/in");
        let refuses = |options: &str, want: i32| fails(overlay("m", options), want);
        refuses("upperdir=u,workdir=w", EINVAL);
        refuses("lowerdir=l1,upperdir=u", EINVAL);
        refuses("lowerdir=none,upperdir=u,workdir=w", ENOENT);
        refuses("lowerdir=l1,upperdir=none,workdir=w", ENOENT);
        refuses("lowerdir=l1,upperdir=u,workdir=u/in", EINVAL);
        refuses("lowerdir=l1,upperdir=u,workdir=u", EINVAL);
        refuses("lowerdir=l1,upperdir=u,workdir=w,nosuch=1", EINVAL);
        refuses("lowerdir=l1:l2:", EINVAL);
        refuses("lowerdir=u,upperdir=u,workdir=w", ELOOP);
        refuses("lowerdir=u/in,upperdir=u,workdir=w", ELOOP);
        shows(".");
    });
}

unsafe fn nested() {
    alone(|| {
        prepared();
        dir("m2");
        dir("m3");
        dir("e");
        ok(overlay("m", "lowerdir=l1:l2"));
        ok(overlay("m2", "lowerdir=m:e"));
        assert_eq!(names("m2/d"), ["deep", "x", "y"]);
        assert_eq!(read_to_string("m2/d/deep/z").unwrap(), "z");
        fails(overlay("m3", "lowerdir=m2:e"), EINVAL);
        // The layers stay what they are without the place where they were mounted.
        ok(umount2(c("m").as_ptr(), MNT_DETACH));
        assert_eq!(read_to_string("m2/d/x").unwrap(), "x");
    });
}

unsafe fn stays_after_unmount() {
    alone(|| {
        prepared();
        ok(overlay("m", BOTH));
        write("m/low", "changed").unwrap();
        ok(unlink(c("m/both").as_ptr()));
        ok(unlink(c("m/d/x").as_ptr()));
        dir("m/made");
        unmount("m");
        ok(overlay("m", BOTH));
        assert_eq!(names("m"), ["d", "low", "made", "only"]);
        assert_eq!(names("m/d"), ["deep", "y"]);
        assert_eq!(read_to_string("m/low").unwrap(), "changed");
        write("m/d/deep/z", "zz").unwrap();
        assert_eq!(read_to_string("m/d/deep/z").unwrap(), "zz");
        unmount("m");
    });
}
