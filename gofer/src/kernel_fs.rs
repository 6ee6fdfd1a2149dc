//! File systems that are views of the host's kernel. They are not served.
//!
//! A process that reads `/proc`, `/sys` or a control group's files learns about the host, and one that writes there
//! changes it, whatever tree they are reached through. So before the trees are cloned, [`cover`] mounts an empty
//! read-only directory over each of them in the Gofer's mount namespace. That also works for locked mounts (inherited
//! by a user namespace, and not unmountable), and does not reveal the directory below. Mounts that appear later, and
//! those on files, are refused by [`check`] when a lookup crosses into them.
//!
//! An overlay with a lower layer in such a file system counts as one. autofs does not: the real file systems are
//! mounted below it.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use protocol::Limits;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, CWD};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use crate::{setup, sys, Error};

/// Names of the types, and their numbers in `statfs`. devtmpfs has the number of a tmpfs, and can be recognised by
/// its name only.
const TYPES: &[(&str, Option<u64>)] = &[
    ("proc", Some(0x9fa0)),
    ("sysfs", Some(0x6265_6572)),
    ("cgroup", Some(0x0027_e0eb)),
    ("cgroup2", Some(0x6367_7270)),
    ("cpuset", Some(0x0027_e0eb)),
    ("devtmpfs", None),
    ("devpts", Some(0x1cd1)),
    ("mqueue", Some(0x1980_0202)),
    ("hugetlbfs", Some(0x9584_58f6)),
    ("debugfs", Some(0x6462_6720)),
    ("tracefs", Some(0x7472_6163)),
    ("securityfs", Some(0x7363_6673)),
    ("selinuxfs", Some(0xf97c_ff8c)),
    ("smackfs", Some(0x4341_5d53)),
    ("apparmorfs", Some(0x5a3c_69f0)),
    ("bpf", Some(0xcafe_4a11)),
    ("configfs", Some(0x6265_6570)),
    ("efivarfs", Some(0xde5e_81e4)),
    ("pstore", Some(0x6165_676c)),
    ("binfmt_misc", Some(0x4249_4e4d)),
    ("fusectl", Some(0x6573_5543)),
    ("nsfs", Some(0x6e73_6673)),
    ("pidfs", Some(0x5049_4446)),
    ("rpc_pipefs", Some(0x6759_6969)),
    ("nfsd", Some(0x6e66_7364)),
    ("resctrl", Some(0x0765_5821)),
    ("binder", Some(0x6c6f_6f70)),
    ("xenfs", Some(0xabba_1974)),
    ("ocfs2_dlmfs", Some(0x76a9_f425)),
    ("usbdevfs", Some(0x9fa2)),
    ("usbfs", Some(0x9fa2)),
    ("functionfs", Some(0x0a64_7361)),
    ("gadgetfs", Some(0xaee7_1ee7)),
];

fn by_name(name: &[u8]) -> Option<&'static str> {
    TYPES.iter().find(|(n, _)| n.as_bytes() == name).map(|(n, _)| *n)
}

fn by_number(fd: impl AsFd) -> Result<Option<&'static str>, Errno> {
    // Some architectures sign-extend the 32 bits.
    let number = sys::statfs(fd)?.kind & u64::from(u32::MAX);
    Ok(TYPES.iter().find(|(_, n)| *n == Some(number)).map(|(name, _)| *name))
}

/// Devices of the covered file systems, for types that can be recognised by name only.
static DEVICES: OnceLock<Vec<u64>> = OnceLock::new();

/// `ENOENT` if the file behind `fd` is in such a file system.
pub fn check(fd: impl AsFd) -> Result<(), Errno> {
    if by_number(&fd)?.is_some() {
        return Err(Errno::NOENT);
    }
    match DEVICES.get() {
        Some(devices) if devices.contains(&sys::stat(fd)?.dev) => Err(Errno::NOENT),
        _ => Ok(()),
    }
}

/// A mount, as in `mountinfo`.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    id: u64,
    parent: u64,
    device: u64,
    /// Where it is.
    pub path: PathBuf,
    /// What it forbids.
    pub limits: Limits,
    /// The name of its type, if that is in the table; of an overlay, that of a layer.
    kernel: Option<&'static str>,
}

/// The mounts of this process's namespace.
pub fn mounts() -> Result<Vec<Mount>, Errno> {
    let text = std::fs::read("/proc/self/mountinfo").map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let lines = || text.split(|&b| b == b'\n');
    let mut mounts: Vec<Mount> = lines().filter_map(parse).collect();
    // An overlay shows the contents of its layers.
    for (layers, id) in lines().filter_map(|line| Some((layers(line)?, parse(line)?.id))) {
        let shows = layers.iter().find_map(|layer| type_of_layer(layer, &mounts));
        if let (Some(kind), Some(mount)) = (shows, mounts.iter_mut().find(|m| m.id == id)) {
            mount.kernel = Some(kind);
        }
    }
    Ok(mounts)
}

/// The lower layers named in an overlay's line of `mountinfo`.
fn layers(line: &[u8]) -> Option<Vec<PathBuf>> {
    let mut fields = line.split(|&b| b == b' ').skip_while(|f| *f != b"-").skip(1);
    fields.next().filter(|kind| *kind == b"overlay")?;
    let mut layers = Vec::new();
    for option in fields.nth(1)?.split(|&b| b == b',') {
        let value = [&b"lowerdir="[..], b"lowerdir+=", b"datadir+="].iter().find_map(|o| option.strip_prefix(*o));
        let Some(value) = value.map(unescape) else { continue };
        layers.extend(value.split(|&b| b == b':').map(|layer| PathBuf::from(OsString::from_vec(layer.to_vec()))));
    }
    Some(layers)
}

/// The type of the file system that contains an overlay's layer, if that is not served. The path is from the mount
/// namespace in which the overlay was mounted, perhaps another one: here it must lead to such a file system, or to a
/// place that the caller may not search.
fn type_of_layer(layer: &Path, mounts: &[Mount]) -> Option<&'static str> {
    let path = layer.as_os_str().as_bytes();
    // Most layers are outside all of these mounts, and there may be very many.
    let near = |m: &&Mount| path.starts_with(m.path.as_os_str().as_bytes());
    let kernel = mounts.iter().filter(|m| m.kernel.is_some()).find(near)?;
    match sys::open_host_path(layer).and_then(|fd| type_of(&fd, mounts)) {
        Err(Errno::ACCESS) => kernel.kernel,
        result => result.ok().flatten(),
    }
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
    let path = fields.nth(1)?;
    let mut limits = Limits::empty();
    for option in fields.next()?.split(|&b| b == b',') {
        limits.set(Limits::NOSUID, limits.contains(Limits::NOSUID) || option == b"nosuid");
        limits.set(Limits::NOEXEC, limits.contains(Limits::NOEXEC) || option == b"noexec");
    }
    // Any number of fields may come before the dash.
    let kind = fields.skip_while(|f| *f != b"-").nth(1)?;
    Some(Mount { id, parent, device, path: OsString::from_vec(unescape(path)).into(), limits, kernel: by_name(kind) })
}

/// Decodes the octal escapes of blanks and backslashes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match code.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = after.get(3..).unwrap_or(&[]);
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    out
}

/// The type of the file system that contains `path`, if that is not served.
pub fn kernel_file_system(path: &Path) -> Result<Option<&'static str>, Errno> {
    let fd = sys::open_host_path(path)?;
    type_of(&fd, &mounts()?)
}

fn type_of(fd: &OwnedFd, mounts: &[Mount]) -> Result<Option<&'static str>, Errno> {
    let st = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    match mounts.iter().find(|m| m.id == st.stx_mnt_id).and_then(|m| m.kernel) {
        Some(name) => Ok(Some(name)),
        None => by_number(fd),
    }
}

/// Covers each visible file system of these types, in the mount namespace of the calling process, whose mounts must
/// be private. `roots` are the trees to serve, none of which may be in one.
pub fn cover(roots: &[OwnedFd]) -> Result<(), Error> {
    let mounts = mounts().map_err(setup("read /proc/self/mountinfo"))?;
    for root in roots {
        if let Some(kind) = type_of(root, &mounts).map_err(setup("look at a tree"))? {
            return Err(Error::Setup(format!("serve {kind}, an interface of the host's kernel"), Errno::PERM));
        }
    }
    let devices = mounts.iter().filter(|m| m.kernel.is_some()).map(|m| m.device);
    DEVICES.get_or_init(|| devices.collect());
    // Mounts on top of a covered one disappear with it.
    let inside = |mount: &Mount| mounts.iter().any(|m| m.id == mount.parent && m.id != mount.id && m.kernel.is_some());
    // All are opened first: a covered mount may be on the path to the next.
    let mut found: Vec<(&Path, OwnedFd)> = Vec::new();
    for mount in mounts.iter().filter(|m| m.kernel.is_some() && !inside(m)) {
        let path = mount.path.as_path();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
            Ok(fd) => found.push((path, fd)),
            // A file: lookups refuse it.
            Err(Errno::NOTDIR) => {}
            // The path leads elsewhere now, since a mount covers part of it; or nowhere; or the caller may not search
            // it. A lookup that gets there all the same is refused.
            Err(Errno::NOENT | Errno::LOOP | Errno::ACCESS | Errno::NAMETOOLONG) => {}
            Err(Errno::STALE | Errno::NOTCONN | Errno::IO) => {}
            Err(e) => return Err(Error::Setup(format!("look at {}", path.display()), e)),
        }
    }
    for (path, fd) in found {
        // Only if it is still on top.
        if type_of(&fd, &mounts).map_err(setup("look at a mount"))?.is_some() {
            cover_one(&fd).map_err(setup(&format!("cover {}", path.display())))?;
        }
    }
    Ok(())
}

fn cover_one(place: &OwnedFd) -> Result<(), Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("mode", "555"), ("size", "4k"), ("nr_inodes", "1")] {
        rustix::mount::fsconfig_set_string(&context, key, value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", place, "", flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo() {
        let line = b"22 27 0:21 / /a\\040b\\134c rw,relatime shared:7 master:2 - proc proc rw";
        let limits = Limits::empty();
        let mount = Mount { id: 22, parent: 27, device: 21, path: "/a b\\c".into(), limits, kernel: Some("proc") };
        assert_eq!(parse(line), Some(mount));
        let line = b"1 1 0:1 / / rw,nosuid,noexec,relatime - ext4 /dev/vda rw";
        let limits = Limits::all();
        assert_eq!(parse(line), Some(Mount { id: 1, parent: 1, device: 1, path: "/".into(), limits, kernel: None }));
        for broken in [
            &b""[..],
            b"1",
            b"1 2 3 4",
            b"1 2 3 4 5 6 7",
            b"1 2 3 / / rw - proc proc rw",
            b"x y 0:1 / / rw - proc proc rw",
            b"1 2 0:1 / / rw -",
        ] {
            assert_eq!(parse(broken), None);
        }
        assert_eq!(unescape(b"\\"), b"\\");
        assert_eq!(unescape(b"\\1"), b"\\1");
        assert_eq!(unescape(b"\\999\\040"), b"\\999 ");
    }

    #[test]
    fn the_layers_of_an_overlay() {
        let line = b"9 1 0:50 / /o rw shared:1 - overlay none rw,lowerdir=/sys/a\\040b:/l,upperdir=/u,lowerdir+=/m";
        assert_eq!(layers(line), Some(vec!["/sys/a b".into(), "/l".into(), "/m".into()]));
        assert_eq!(layers(b"9 1 0:50 / /o rw - ext4 none rw,lowerdir=/sys"), None);
        assert_eq!(layers(b"9 1 0:50 / /o rw"), None);
        let mounts = mounts().unwrap();
        assert_eq!(type_of_layer(Path::new("/sys/kernel"), &mounts), Some("sysfs"));
        assert_eq!(type_of_layer(Path::new("/sysfs"), &mounts), None);
        assert_eq!(type_of_layer(Path::new("/proc/no/such"), &mounts), None);
    }

    #[test]
    fn kernel_file_systems_are_recognised() {
        assert_eq!(kernel_file_system(Path::new("/proc/self/status")), Ok(Some("proc")));
        assert_eq!(kernel_file_system(Path::new("/sys")), Ok(Some("sysfs")));
        assert_eq!(kernel_file_system(&std::env::temp_dir()), Ok(None));
        assert_eq!(check(sys::open_host_path(Path::new("/proc/self")).unwrap()), Err(Errno::NOENT));
        assert_eq!(check(sys::open_host_path(&std::env::temp_dir()).unwrap()), Ok(()));
    }
}
