//! Confinement of the Sentry: the privileges that the process gives up before it handles guest input.
//!
//! The steps, in this order; the start fails if one of them fails: identity ([`become_ids`]), file system
//! ([`empty_root`]), limits ([`raise_limits`]), all capabilities ([`drop_privileges`]). Then the zygote of the stubs is
//! started, which inherits all of this. The last step is the seccomp filter ([`seccomp::Filter::lock`]). The command
//! created the namespaces when it cloned the process.

pub mod calls;
pub mod oom;
pub mod seccomp;

use crate::config::HostIds;
use crate::sys;
use anyhow::{bail, Context, Result};
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::unistd::{chdir, pivot_root, setgroups, setresgid, setresuid, Gid, Uid};

/// Asks for SIGKILL when the parent dies. A change of ids resets this, so it is repeated after one.
pub fn die_with_parent() -> Result<()> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0, 0).context("prctl(PR_SET_PDEATHSIG)")?;
    Ok(())
}

/// Changes from the caller's ids to unprivileged ones. Capabilities in the user namespace are kept.
pub fn become_ids(ids: HostIds) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0).context("prctl(PR_SET_KEEPCAPS)")?;
    setgroups(&[]).context("dropping the supplementary groups")?;
    setresgid(gid, gid, gid).with_context(|| format!("changing to group {gid}"))?;
    setresuid(uid, uid, uid).with_context(|| format!("changing to user {uid}"))?;
    let caps = sys::permitted_caps()?;
    sys::set_caps(caps, 0).context("keeping capabilities for the set-up")?;
    Ok(())
}

/// Moves the process to an empty, read-only root without any mount of the host.
pub fn empty_root() -> Result<()> {
    const HINT: &str = "the host permits no mounts in this user namespace (AppArmor or SELinux may restrict it)";
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).context(HINT)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Any existing directory can be the mount point.
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
    // With equal arguments the old root is mounted on top of the new one, where umount2(2) detaches it.
    pivot_root(".", ".").context("pivot_root (it does not work when the host's root is an initramfs)")?;
    umount2(".", MntFlags::MNT_DETACH).context("detaching the host's root")?;
    chdir("/")?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags;
    mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>).context("making the empty root read-only")?;
    Ok(())
}

/// Raises every limit as far as the host allows. The caller's limits are meant for the command, and the guest kernel
/// applies them there. Processor time is unlimited where the caller may have that, because stubs' time is accounted for
/// each guest process. Exceeding the file size limit gives an error instead of SIGXFSZ. Core dumps are off, since they
/// would contain guests' memory.
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
        log::debug!("the host's limit of processor time cannot be raised");
    }
    setrlimit(RLIMIT_CORE, 0, 0).context("switching off core dumps")?;
    Ok(())
}

/// Gives up every capability for good (bounding, ambient, inheritable, permitted, effective), and with `no_new_privs`
/// any way to regain one.
pub fn drop_privileges() -> Result<()> {
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0, 0)
        .context("clearing ambient capabilities")?;
    for cap in 0..64 {
        match sys::prctl(libc::PR_CAPBSET_READ, cap, 0, 0) {
            Ok(0) => {}
            Ok(_) => drop(sys::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0).context("dropping a capability")?),
            Err(_) => break, // beyond the last capability of this kernel
        }
    }
    // NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each locked; KEEP_CAPS off and locked.
    const SECUREBITS: u64 = 0b11 | 0b11 << 2 | 0b10 << 4 | 0b11 << 6;
    sys::prctl(libc::PR_SET_SECUREBITS, SECUREBITS, 0, 0).context("locking the secure bits")?;
    sys::set_caps(0, 0).context("dropping the capabilities")?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0).context("prctl(PR_SET_NO_NEW_PRIVS)")?;
    Ok(())
}
