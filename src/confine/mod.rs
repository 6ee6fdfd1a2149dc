//! Confinement of the Sentry: what is taken from the process before it meets anything that a guest has touched.
//!
//! In this order, each step failing the start if it fails: identity ([`become_ids`]), file system ([`empty_root`]), limits ([`raise_limits`]), all
//! capabilities ([`drop_privileges`]); then the zygote of the stubs is started (it inherits all of this); last, the seccomp
//! list ([`seccomp::Filter::lock`]). The namespaces themselves were made by the command when it cloned the process.

pub mod calls;
pub mod oom;
pub mod seccomp;

use crate::config::HostIds;
use crate::sys;
use anyhow::{bail, Context, Result};
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::unistd::{chdir, pivot_root, setgroups, setresgid, setresuid, Gid, Uid};

/// Asks for SIGKILL when the parent dies. A change of ids resets it, so it is asked for again after that.
pub fn die_with_parent() -> Result<()> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0, 0).context("prctl(PR_SET_PDEATHSIG)")?;
    Ok(())
}

/// Gives up the caller's ids for unprivileged ones. Capabilities in the user namespace stay.
pub fn become_ids(ids: HostIds) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0).context("prctl(PR_SET_KEEPCAPS)")?;
    setgroups(&[]).context("giving up the supplementary groups")?;
    setresgid(gid, gid, gid).with_context(|| format!("changing to group {gid}"))?;
    setresuid(uid, uid, uid).with_context(|| format!("changing to user {uid}"))?;
    let caps = sys::permitted_caps()?;
    sys::set_caps(caps, 0).context("keeping capabilities for the set-up")?;
    Ok(())
}

/// Leaves the process in an empty, read-only root with nothing of the host's tree mounted.
pub fn empty_root() -> Result<()> {
    const HINT: &str = "the host lets this user namespace mount nothing (AppArmor or SELinux may restrict it)";
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).context(HINT)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Any directory does to put it on; no system lacks all of these.
    let mut at = None;
    for dir in ["/tmp", "/proc", "/dev", "/usr", "/etc"] {
        match mount(Some("runsc-rs"), dir, Some("tmpfs"), flags, Some("size=4k,nr_inodes=8,mode=0")) {
            Ok(()) => {
                at = Some(dir);
                break;
            }
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => {}
            Err(e) => return Err(e).context(HINT),
        }
    }
    let Some(dir) = at else { bail!("found no directory to mount the empty root on") };
    chdir(dir)?;
    // With both names the same, the old root ends up on top of the new one, from where it is taken off.
    pivot_root(".", ".").context("pivot_root (it does not work when the host's root is an initramfs)")?;
    umount2(".", MntFlags::MNT_DETACH).context("detaching the host's root")?;
    chdir("/")?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags;
    mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>).context("making the empty root read-only")?;
    Ok(())
}

/// As much of everything as the host allows: the caller's limits are meant for the command, and the guest kernel applies them there.
/// Of processor time, none where the caller may have that: what stubs use is counted for each guest process.
/// Going beyond what a file may grow to is an error, not the end. And no core dumps (they would hold guests' memory).
pub fn raise_limits() -> Result<()> {
    use Resource::*;
    sys::ignore_sigxfsz().context("ignoring SIGXFSZ")?;
    for resource in [RLIMIT_NOFILE, RLIMIT_AS, RLIMIT_DATA, RLIMIT_FSIZE, RLIMIT_CPU, RLIMIT_MEMLOCK, RLIMIT_NPROC] {
        let (soft, hard) = getrlimit(resource)?;
        if soft != hard {
            setrlimit(resource, hard, hard).with_context(|| format!("raising {resource:?}"))?;
        }
    }
    let without = (libc::RLIM_INFINITY, libc::RLIM_INFINITY);
    if getrlimit(RLIMIT_CPU)? != without && setrlimit(RLIMIT_CPU, without.0, without.1).is_err() {
        log::debug!("the host's limit of processor time stays");
    }
    setrlimit(RLIMIT_CORE, 0, 0).context("switching off core dumps")?;
    Ok(())
}

/// Gives up every capability for good: bounding, ambient, inheritable, permitted and effective; and with `no_new_privs` any way to others.
pub fn drop_privileges() -> Result<()> {
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0, 0)
        .context("clearing ambient capabilities")?;
    for cap in 0..64 {
        match sys::prctl(libc::PR_CAPBSET_READ, cap, 0, 0) {
            Ok(0) => {}
            Ok(_) => drop(sys::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0).context("dropping a capability")?),
            Err(_) => break, // one past the last that this kernel knows
        }
    }
    // NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each locked; KEEP_CAPS off and locked.
    const SECUREBITS: u64 = 0b11 | 0b11 << 2 | 0b10 << 4 | 0b11 << 6;
    sys::prctl(libc::PR_SET_SECUREBITS, SECUREBITS, 0, 0).context("locking the secure bits")?;
    sys::set_caps(0, 0).context("giving up the capabilities")?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0).context("prctl(PR_SET_NO_NEW_PRIVS)")?;
    Ok(())
}
