//! Confines the process, so that a client that takes over the Gofer reaches nothing but the trees.
//!
//! The order matters, since each step takes away a right that the one before needed:
//!
//! 1. A private mount namespace of its own; without `CAP_SYS_ADMIN` also a user namespace, in which the process keeps
//!    its user and group, and all others are `nobody`. (A caller with more rights starts the process in a user
//!    namespace that maps all users.)
//! 2. Interfaces of the host's kernel are covered ([`crate::kernel_fs`]).
//! 3. Each tree, once it is known what the host's mounts in it forbid ([`crate::mounts`]), becomes a detached mount,
//!    private and without symlinks, devices and set-user-id, read-only where it is to be. So does `/proc/self/fd`.
//! 4. The root becomes an empty read-only tmpfs, and the host's is unmounted. What is left of the host is reachable by
//!    those descriptors alone.
//! 5. In a user namespace that maps some ids only (a container's own), the process becomes one of those: then files of
//!    all others are others' to it.
//! 6. All capabilities go but those that [`keep`] names; none comes back (`no_new_privs`). The process cannot be traced
//!    or dumped.
//! 7. The threads of [`crate::parallel`] start, with nothing more than the first has left, and the seccomp filter of
//!    [`crate::seccomp`] is put on all.

use std::os::fd::OwnedFd;

use nix::sched::CloneFlags;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::{kernel_fs, mounts, open_roots, parallel, seccomp, setup, sys, Config, Error, Gofer, Tree};

/// Opens the trees and confines the calling process for good.
///
/// Call in the Gofer's own process, while it has one thread and no descriptors but the standard ones and the
/// connection: they stay open. Afterwards messages can be written to standard error only.
pub fn confine(config: &Config) -> Result<Gofer, Error> {
    enter_namespaces()?;
    let descriptors = sys::Descriptors::open_detached().map_err(setup("hold /proc/self/fd"))?;
    let roots = open_roots(config)?;
    let limits = mounts::look(&roots)?;
    kernel_fs::cover(&roots)?;
    let detach = |(tree, root): (&Tree, OwnedFd)| {
        sys::detach(root, tree.read_only).map_err(setup(&format!("detach {}", tree.host_path.display())))
    };
    let roots = config.trees.iter().zip(roots).map(detach).collect::<Result<Vec<_>, _>>()?;
    mounts::learn(&roots, &limits);
    let mut gofer = Gofer::with_roots(config, descriptors, roots)?;
    unmount_host()?;
    sys::enter_descriptors(&gofer.descriptors, config.tell_acls).map_err(setup("enter /proc/self/fd"))?;
    if let Some(ids) = config.become_ids {
        become_ids(ids).map_err(setup("become a user of the guest's"))?;
    }
    let writes = config.trees.iter().any(|tree| !tree.read_only);
    drop_privileges(writes).map_err(setup("drop privileges"))?;
    gofer.second = parallel::Second::start()?;
    seccomp::apply(gofer.descriptors.number(), writes)?;
    Ok(gofer)
}

fn enter_namespaces() -> Result<(), Error> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let privileged = rustix::thread::capabilities(None)
        .map_err(setup("read capabilities"))?
        .effective
        .contains(CapabilitySet::SYS_ADMIN);
    if privileged {
        unshare(CloneFlags::CLONE_NEWNS)?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
        // Otherwise only root may map a group.
        write_proc("setgroups", "deny")?;
        write_proc("uid_map", &format!("{uid} {uid} 1"))?;
        write_proc("gid_map", &format!("{gid} {gid} 1"))?;
    }
    // Mounts made here do not reach the host, and new mounts of the host do not appear here.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(setup("make mounts private"))
}

fn unshare(flags: CloneFlags) -> Result<(), Error> {
    nix::sched::unshare(flags)
        .map_err(|e| Error::Setup(format!("enter namespaces {flags:?}"), Errno::from_raw_os_error(e as i32)))
}

fn write_proc(file: &str, content: &str) -> Result<(), Error> {
    let path = format!("/proc/self/{file}");
    std::fs::write(&path, content)
        .map_err(|e| Error::Setup(format!("write {path}"), Errno::from_io_error(&e).unwrap_or(Errno::IO)))
}

/// Replaces the host's root by an empty file system.
fn unmount_host() -> Result<(), Error> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Any directory could be the mount point; this one is certain to exist.
    rustix::mount::mount("none", "/proc", "tmpfs", flags, c"mode=555,size=4k,nr_inodes=1")
        .map_err(setup("mount tmpfs"))?;
    rustix::process::chdir("/proc").map_err(setup("enter tmpfs"))?;
    // With both arguments the same, the old root ends up on top of the new one, and is then unmounted.
    rustix::process::pivot_root(".", ".").map_err(setup("pivot into tmpfs"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(setup("unmount the host"))?;
    rustix::process::chdir("/").map_err(setup("enter the empty root"))?;
    // Not `access`, which uses the real user: without capabilities it could not search this root.
    match rustix::fs::statat(CWD, "/proc", rustix::fs::AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        _ => Err(Error::Setup("the host is still there".into(), Errno::NOTEMPTY)),
    }
}

/// Capabilities that the Gofer needs.
fn keep(writes: bool) -> CapabilitySet {
    // The Sentry checks permissions, for the guest's users; the Gofer must reach every file of its trees.
    let reads = CapabilitySet::DAC_READ_SEARCH;
    if writes {
        // Likewise for writing, for owners (`chown`, `chmod`, times), and for the set-group-id bit on files of other
        // groups; and to make files as a guest's user. No call lets it become that user in any other way.
        let writes = CapabilitySet::DAC_OVERRIDE | CapabilitySet::CHOWN | CapabilitySet::FOWNER | CapabilitySet::FSETID;
        reads | writes | CapabilitySet::SETUID | CapabilitySet::SETGID
    } else {
        reads
    }
}

/// Becomes this user and group of the user namespace that the process was started in; until here, it was whoever
/// started it. Capabilities stay ([`sys::keep_capabilities`]).
fn become_ids((uid, gid): (u32, u32)) -> Result<(), Errno> {
    let gid = rustix::process::Gid::from_raw(gid);
    let uid = rustix::process::Uid::from_raw(uid);
    // A caller without privileges cannot give its groups up.
    let _ = rustix::thread::set_thread_groups(&[]);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // The kernel forgets this when ids change.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
}

fn drop_privileges(writes: bool) -> Result<(), Errno> {
    rustix::thread::set_no_new_privs(true)?;
    let kept = rustix::thread::capabilities(None)?.permitted & keep(writes);
    // An empty inheritable set implies an empty ambient set.
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}
