//! What a container's process on the host shows of it to those who enter its namespaces.
//!
//! Engines take the number that they are given for a process of the container's, and enter its mount namespace: `podman
//! cp` writes there what it copies. The monitor's has the container's root, with the trees of the host that are mounted
//! in it, and nothing else of the host.

use crate::config::MountKind;
use crate::launch::options::Plan;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sched::{unshare, CloneFlags};
use nix::unistd::{chdir, pivot_root};
use rustix::fs::CWD;
use rustix::mount::{move_mount, open_tree, MoveMountFlags, OpenTreeFlags};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A root and what is mounted in it.
pub struct View {
    root: PathBuf,
    read_only: bool,
    mounts: Vec<Tree>,
}

struct Tree {
    source: PathBuf,
    target: PathBuf,
    read_only: bool,
}

fn path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

impl View {
    /// That of a container which is started by this plan.
    pub fn of(plan: &Plan) -> Option<View> {
        let (container, trees) = (&plan.sentry.container, &plan.gofer.trees);
        let find = |name: &str| trees.iter().find(|t| t.name == name);
        let mounts = container.mounts.iter().filter_map(|m| {
            let MountKind::Tree(name) = &m.kind else { return None };
            let tree = find(name)?;
            let read_only = tree.read_only || m.flags & libc::MS_RDONLY != 0;
            Some(Tree { source: path(&tree.source), target: path(&m.target), read_only })
        });
        let root = path(&find(&container.root)?.source);
        Some(View { root, read_only: container.root_read_only, mounts: mounts.collect() })
    }

    /// Leaves the host's mount namespace for one of its own. Where the caller may not make one, nobody can enter it
    /// either.
    pub fn enter(self) -> Result<()> {
        match unshare(CloneFlags::CLONE_NEWNS) {
            Err(Errno::EPERM) => return Ok(()),
            other => other.context("unshare(CLONE_NEWNS)")?,
        }
        let none: Option<&str> = None;
        // What the host unmounts is not held.
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).context("making mounts slaves")?;
        let trees: Vec<(Tree, OwnedFd)> = self.mounts.into_iter().filter_map(open).collect();
        mount(Some(&self.root), &self.root, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .context("binding the root")?;
        chdir(&self.root)?;
        pivot_root(".", ".").context("pivot_root")?;
        umount2(".", MntFlags::MNT_DETACH).context("leaving the host's root")?;
        chdir("/")?;
        for (tree, mount) in trees {
            // From here on a link in the container's root leads nowhere else.
            if let Err(e) = move_mount(&mount, "", CWD, &tree.target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH) {
                log::debug!("{} in the monitor's view: {e}", tree.target.display());
            } else if tree.read_only {
                protect(&tree.target)?;
            }
        }
        if self.read_only {
            protect(Path::new("/"))?;
        }
        Ok(())
    }
}

fn protect(target: &Path) -> Result<()> {
    let none: Option<&str> = None;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, target, none, flags, none).with_context(|| format!("making {} read-only", target.display()))
}

fn open(tree: Tree) -> Option<(Tree, OwnedFd)> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    match open_tree(CWD, &tree.source, flags) {
        Ok(mount) => Some((tree, mount)),
        Err(e) => {
            log::debug!("{} in the monitor's view: {e}", tree.source.display());
            None
        }
    }
}
