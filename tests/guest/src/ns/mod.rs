//! Namespaces: kinds, files, mounts that are passed on, the mount calls that work on descriptors.

mod kinds;
mod newmounts;
mod overlays;
mod pivot;
mod propagation;

use crate::t::*;
use libc::*;
use std::ptr::null;

pub const GROUPS: &[(&str, &[crate::Case])] = &[
    ("namespaces", kinds::CASES),
    ("propagation", propagation::CASES),
    ("pivot", pivot::CASES),
    ("newmounts", newmounts::CASES),
    ("overlays", overlays::CASES),
];

unsafe fn tmpfs(at: &str) {
    ok(mount(c("none").as_ptr(), c(at).as_ptr(), c("tmpfs").as_ptr(), 0, c("size=64k").as_ptr().cast()));
}

unsafe fn bind(from: &str, to: &str) {
    ok(mount(c(from).as_ptr(), c(to).as_ptr(), null(), MS_BIND, null()));
}

unsafe fn rbind(from: &str, to: &str) {
    ok(mount(c(from).as_ptr(), c(to).as_ptr(), null(), MS_BIND | MS_REC, null()));
}

unsafe fn make(at: &str, flags: c_ulong) {
    ok(mount(null(), c(at).as_ptr(), null(), flags, null()));
}

unsafe fn dir(at: &str) {
    ok(mkdir(c(at).as_ptr(), 0o755));
}

unsafe fn file(at: &str) {
    ok(close(ok(open(c(at).as_ptr(), O_CREAT | O_WRONLY, 0o644))));
}

fn exists(at: &str) -> bool {
    std::path::Path::new(at).exists()
}

unsafe fn unmount(at: &str) {
    ok(umount2(c(at).as_ptr(), 0));
}

/// Runs `f` as root in a child with a mount namespace of its own, whose working directory is an empty private tmpfs.
unsafe fn alone(f: impl FnOnce()) {
    if !root() {
        return;
    }
    let t = Tmp::new();
    in_child(|| {
        ok(unshare(CLONE_NEWNS));
        make("/", MS_REC | MS_PRIVATE);
        tmpfs(&t.s(""));
        ok(chdir(t.p("").as_ptr()));
        f();
    });
}

/// The mounts at the working directory and below, one after the other, with what they share: `place`, or
/// `place=shared1,master2`. Groups are numbered in the order in which they appear.
fn mounts() -> String {
    let top = std::env::current_dir().unwrap().display().to_string();
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut groups: Vec<String> = Vec::new();
    let mut number = |id: &str| {
        let known = groups.iter().position(|g| g == id).unwrap_or_else(|| {
            groups.push(id.to_owned());
            groups.len() - 1
        });
        known + 1
    };
    let mut rows: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(place) = fields[4].strip_prefix(&top) else { continue };
        let place = if place.is_empty() { "." } else { place.trim_start_matches('/') };
        let shares = fields[6..].iter().take_while(|f| **f != "-");
        rows.push((place.to_owned(), shares.copied().collect::<Vec<_>>().join(",")));
    }
    rows.sort();
    let mut show = |(place, shares): (String, String)| {
        let shares: Vec<String> = shares
            .split(',')
            .filter(|s| !s.is_empty())
            .map(|s| match s.split_once(':') {
                Some((kind, id)) => format!("{kind}{}", number(id)),
                None => s.to_owned(),
            })
            .collect();
        if shares.is_empty() {
            place
        } else {
            format!("{place}={}", shares.join(","))
        }
    };
    let mut out = Vec::new();
    for r in rows {
        out.push(show(r));
    }
    out.join(" ")
}

#[track_caller]
fn shows(want: &str) {
    assert_eq!(mounts(), want);
}
