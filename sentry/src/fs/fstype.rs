//! The types of file systems that mount(2) knows (filesystems(5)), and their options.

use super::tmpfs::{TmpFs, TmpOptions};
use super::vfs::{Mount, MountFlags, SuperBlock};
use super::Inode;
use crate::error::{Errno, Result};
use crate::kernel::Kernel;
use std::sync::Arc;

fn number(text: &[u8], radix: u32) -> Result<u64> {
    let text = std::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    u64::from_str_radix(text, radix).map_err(|_| Errno::EINVAL)
}

/// `size=`, `nr_inodes=`, `mode=`, `uid=`, `gid=` of tmpfs(5).
fn tmpfs_options(data: &[u8], o: &mut TmpOptions) -> Result<()> {
    let most = o.size;
    for opt in data.split(|&b| b == b',').filter(|o| !o.is_empty()) {
        let (key, value) = match opt.iter().position(|&b| b == b'=') {
            Some(i) => (&opt[..i], &opt[i + 1..]),
            None => (opt, &b""[..]),
        };
        let scaled = || -> Result<u64> {
            let (digits, unit) = match value.split_last() {
                Some((b'k' | b'K', d)) => (d, 1 << 10),
                Some((b'm' | b'M', d)) => (d, 1 << 20),
                Some((b'g' | b'G', d)) => (d, 1 << 30),
                Some((b'%', d)) => (d, (most / 50).max(1)),
                _ => (value, 1),
            };
            number(digits, 10)?.checked_mul(unit).ok_or(Errno::EINVAL)
        };
        match key {
            // 0 means "no limit" on Linux; here the host's share remains the limit.
            b"size" => o.size = Some(scaled()?).filter(|s| *s > 0).unwrap_or(most).min(most),
            b"nr_inodes" => o.inodes = Some(scaled()?).filter(|n| *n > 0).unwrap_or(o.inodes).min(o.inodes),
            b"nr_blocks" => o.size = scaled()?.saturating_mul(4096).min(most),
            b"mode" => o.mode = number(value, 8)? as u32 & 0o7777,
            b"uid" => o.uid = u32::try_from(number(value, 10)?).map_err(|_| Errno::EINVAL)?,
            b"gid" => o.gid = u32::try_from(number(value, 10)?).map_err(|_| Errno::EINVAL)?,
            b"huge" | b"mpol" | b"inode64" | b"inode32" | b"noswap" => {}
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok(())
}

/// A mount of a new file system of type `kind`; `ENODEV` if there is no such type.
pub fn mount(kernel: &Arc<Kernel>, kind: &[u8], source: &[u8], flags: MountFlags, data: &[u8]) -> Result<Arc<Mount>> {
    let (name, root): (&'static str, Arc<dyn Inode>) = match kind {
        b"tmpfs" | b"ramfs" => {
            let mut o = TmpOptions::default();
            tmpfs_options(data, &mut o)?;
            let shown = format!("size={}k,mode={:o}", o.size / 1024, o.mode);
            let root = TmpFs::root(&o, kernel.reopen.get().cloned());
            return Mount::of(root, SuperBlock::new("tmpfs", source, shown), flags);
        }
        b"proc" => ("proc", super::proc::new(kernel)),
        b"sysfs" => ("sysfs", super::sys::new(kernel)),
        b"devpts" => ("devpts", super::tty::devpts::new(kernel)),
        _ => return Err(Errno::ENODEV),
    };
    Mount::of(root, SuperBlock::new(name, source, String::new()), flags)
}
