//! Overlays that guests mount (`lowerdir=`, `upperdir=`, `workdir=`).
//!
//! The upper layer is a directory of a tmpfs with the marks that Linux uses: a device 0:0 hides a lower name,
//! `trusted.overlay.opaque` hides the entries of lower directories. Without an upper layer the overlay is read-only.

use super::layers::LayersDir;
use super::{Overlay, OvlInode};
use crate::error::{Errno, Result};
use crate::fs::fstype::Mounter;
use crate::fs::tmpfs::TmpInode;
use crate::fs::vfs::{anonymous_dev, Dentry, Mount, MountFlags, Path};
use crate::fs::*;
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};

const LOWER_MAX: usize = 500;
/// Limit of the overlays on top of each other, not counting a container's root: each lookup goes through all of them.
const DEPTH_MAX: u32 = 2;

/// Options with the values that have no effect here.
const FIXED: [(&[u8], &[&[u8]]); 7] = [
    (b"redirect_dir", &[b"off", b"nofollow"]),
    (b"index", &[b"off"]),
    (b"metacopy", &[b"off"]),
    (b"nfs_export", &[b"off"]),
    (b"xino", &[b"off", b"auto"]),
    (b"uuid", &[b"off", b"null", b"auto"]),
    (b"verity", &[b"off"]),
];

pub fn check_option(key: &[u8], value: Option<&[u8]>) -> Result<()> {
    let known = match (key, value) {
        (b"lowerdir" | b"lowerdir+" | b"upperdir" | b"workdir", Some(v)) => !v.is_empty(),
        (b"volatile", None) => true,
        (key, Some(v)) => FIXED.iter().any(|(k, values)| *k == key && values.contains(&v)),
        _ => false,
    };
    known.then_some(()).ok_or(Errno::EINVAL)
}

/// Splits at `:`; `\` escapes a character.
fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let mut out = vec![Vec::new()];
    let mut chars = text.iter();
    while let Some(&c) = chars.next() {
        let literal = if c == b'\\' { chars.next().copied() } else { None };
        match (c, literal) {
            (b':', None) => out.push(Vec::new()),
            (_, Some(c)) | (c, None) => {
                if let Some(last) = out.last_mut() {
                    last.push(c);
                }
            }
        }
    }
    out
}

/// The paths of the layers.
#[derive(Default)]
struct Paths {
    lower: Vec<Vec<u8>>,
    upper: Option<Vec<u8>>,
    work: Option<Vec<u8>>,
}

impl Paths {
    fn of(options: &[(Vec<u8>, Option<Vec<u8>>)]) -> Result<Paths> {
        let mut p = Paths::default();
        let plain = |v: &[u8]| split(v).join(&b':');
        for (key, value) in options {
            let value = value.as_deref().unwrap_or_default();
            match key.as_slice() {
                b"lowerdir" => p.lower = split(value),
                b"lowerdir+" => p.lower.push(value.to_vec()),
                b"upperdir" => p.upper = Some(plain(value)),
                b"workdir" => p.work = Some(plain(value)),
                _ => {}
            }
        }
        let least = if p.upper.is_some() { 1 } else { 2 };
        if p.lower.len() < least || p.lower.len() > LOWER_MAX || p.lower.iter().any(Vec::is_empty) {
            return Err(Errno::EINVAL);
        }
        if p.upper.is_some() != p.work.is_some() && p.upper.is_some() {
            return Err(Errno::EINVAL);
        }
        Ok(p)
    }
}

fn find_dir(m: &Mounter<'_>, path: &[u8]) -> Result<Path> {
    let p = (m.find)(path)?;
    if !p.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    if let Some(ns) = m.ns {
        // As a bind mount could: what is mounted there must not cover what the maker may not see.
        ns.mnt.may_show(&p)?;
    }
    Ok(p)
}

fn overlap(a: &Path, b: &Path) -> Result<bool> {
    Ok(a.dentry().is_within(b.dentry())? || b.dentry().is_within(a.dentry())?)
}

/// The upper layer's directory, if it is suitable.
fn upper_dir(upper: &Path, work: &Path) -> Result<Arc<TmpInode>> {
    if !Arc::ptr_eq(upper.mount(), work.mount()) || overlap(upper, work)? || upper.mount().read_only() {
        return Err(Errno::EINVAL);
    }
    let dir = tmp(upper).ok_or(Errno::EINVAL)?;
    tmp(work).ok_or(Errno::EINVAL)?;
    if dir.owner.lock().as_ref().is_some_and(|o| o.strong_count() > 0) {
        return Err(Errno::EBUSY);
    }
    dir.handle()
}

fn tmp(p: &Path) -> Option<&TmpInode> {
    p.inode().as_any().downcast_ref()
}

/// The number of overlays on top of each other below `p`.
fn depth(p: &Path) -> u32 {
    p.mount().sb().stacked()
}

/// The root of a new overlay, and its depth.
pub fn make(options: &[(Vec<u8>, Option<Vec<u8>>)], m: &Mounter<'_>) -> Result<(Arc<dyn Inode>, u32)> {
    let paths = Paths::of(options)?;
    let mut lower = Vec::new();
    for p in &paths.lower {
        lower.push(find_dir(m, p)?);
    }
    let stacked = lower.iter().map(depth).max().unwrap_or(0) + 1;
    if stacked > DEPTH_MAX {
        return Err(Errno::EINVAL);
    }
    let mut layers: Vec<Path> = lower.clone();
    let mut upper = None;
    if let (Some(u), Some(w)) = (&paths.upper, &paths.work) {
        let (u, w) = (find_dir(m, u)?, find_dir(m, w)?);
        upper = Some(upper_dir(&u, &w)?);
        for l in &lower {
            if overlap(l, &u)? || overlap(l, &w)? {
                return Err(Errno::ELOOP);
            }
        }
        layers.insert(0, u);
    }
    let mut devices: Vec<u64> = Vec::new();
    for l in &layers {
        let dev = l.inode().attr()?.dev;
        if !devices.contains(&dev) {
            devices.push(dev);
        }
    }
    let keep = |p: &Path| Mount::new(p.dentry().clone(), MountFlags::empty());
    let maker = Arc::new(m.cred.clone());
    let fs = Arc::new(Overlay {
        dev: anonymous_dev(),
        links: Mutex::default(),
        lower: Mutex::default(),
        lower_used: OnceLock::from(0),
        stays: true,
        maker: Some(maker.clone()),
        devices: devices.clone(),
        _layers: layers.iter().map(keep).collect(),
    });
    let dirs: Vec<Arc<Dentry>> = lower.iter().map(|p| p.dentry().clone()).collect();
    let lower: Arc<dyn Inode> = LayersDir::new(dirs, devices.into(), maker);
    let ino = match &upper {
        Some(u) => u.ino(),
        None => fs.number(lower.attr()?.dev, lower.attr()?.ino),
    };
    let below = upper.as_ref().is_none_or(|u| !super::is_opaque(&**u)).then_some(lower);
    Ok((OvlInode::make(&fs, libc::S_IFDIR, ino, below, upper, None), stacked))
}

/// Whether an upper layer is given.
pub fn is_writable(options: &[(Vec<u8>, Option<Vec<u8>>)]) -> bool {
    options.iter().any(|(k, _)| k == b"upperdir")
}
