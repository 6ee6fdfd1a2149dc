//! What the host's mounts forbid: running programs at all, or with the rights of their owner.
//!
//! The trees are clones of the host's mounts, each of which forbids the latter whatever the host's did ([`sys::detach`]). What those said is learned before,
//! and told with the attributes of each file: the Sentry does what the host's kernel would have done.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use protocol::Limits;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::path::DecInt;

use crate::{kernel_fs, setup, sys, Error};

/// What each mount of the trees forbids, by its number. Nothing is known unless the trees are clones.
static KNOWN: OnceLock<HashMap<u64, Limits>> = OnceLock::new();

/// What the mount of this number forbids. One that could not be told when the trees were cloned may have forbidden to give rights.
pub fn limits(mount: u64) -> Limits {
    match KNOWN.get() {
        None => Limits::empty(),
        Some(known) => known.get(&mount).copied().unwrap_or(Limits::NOSUID),
    }
}

/// What `roots`, which are still the host's, and all that is mounted below them forbid: the limits of each root, and of places below it.
#[derive(Debug)]
pub struct Below {
    root: Limits,
    mounts: Vec<(Vec<u8>, Limits)>,
}

/// Learns it.
pub fn look(roots: &[OwnedFd]) -> Result<Vec<Below>, Error> {
    let all = kernel_fs::mounts().map_err(setup("read /proc/self/mountinfo"))?;
    let one = |root: &OwnedFd| -> Result<Below, Errno> {
        let flags = sys::statfs(root)?.flags;
        let mut limits = Limits::empty();
        limits.set(Limits::NOSUID, flags & libc::ST_NOSUID != 0);
        limits.set(Limits::NOEXEC, flags & libc::ST_NOEXEC != 0);
        let path = rustix::fs::readlink([b"/proc/self/fd/", DecInt::from_fd(root).as_bytes()].concat(), Vec::new())?;
        let path = path.to_bytes();
        let below = |m: &kernel_fs::Mount| {
            let rest = m.path.as_os_str().as_bytes().strip_prefix(path)?;
            // `/` is the only path that ends in a slash.
            let name = if path == b"/" { rest } else { rest.strip_prefix(b"/")? };
            (!name.is_empty()).then(|| (name.to_vec(), m.limits))
        };
        Ok(Below { root: limits, mounts: all.iter().filter_map(below).collect() })
    };
    roots.iter().map(one).collect::<Result<_, _>>().map_err(setup("look at the mounts of a tree"))
}

/// From now on the mounts of `trees`, which are the clones of the roots, are known. Where several are on one another, what any of them forbids is forbidden.
pub fn learn(trees: &[OwnedFd], before: &[Below]) {
    let mut known: HashMap<u64, Limits> = HashMap::new();
    for (tree, below) in trees.iter().zip(before) {
        if let Some((id, _)) = mount_of(tree) {
            *known.entry(id).or_default() |= below.root;
        }
        for (path, limits) in &below.mounts {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let place = rustix::fs::openat2(tree, &path[..], flags, Mode::empty(), resolve);
            // What is below another mount's root now is hidden, and not to be reached.
            if let Some((id, true)) = place.ok().as_ref().and_then(mount_of) {
                *known.entry(id).or_default() |= *limits;
            }
        }
    }
    let _ = KNOWN.set(known);
}

/// The number of the mount that `fd` is in, and whether it is its root.
fn mount_of(fd: impl AsFd) -> Option<(u64, bool)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let st = rustix::fs::statx(fd, c"", flags, StatxFlags::MNT_ID).ok()?;
    Some((st.stx_mnt_id, st.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)))
}
