//! `HOME` of a process that has none: from the container's own `/etc/passwd`, as runc does it. Images rely on that.

use nix::fcntl::{openat2, OFlag, OpenHow, ResolveFlag};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Longest file that is looked through.
const MAX_PASSWD: u64 = 1 << 20;

/// Adds `HOME` to the environment if it is missing.
pub fn provide(env: &mut Vec<Vec<u8>>, uid: u32, rootfs: &Path) {
    if env.iter().any(|line| line.starts_with(b"HOME=")) {
        return;
    }
    let home = passwd(rootfs).and_then(|text| home_of(&text, uid)).unwrap_or_else(|| b"/".to_vec());
    env.push([b"HOME=", home.as_slice()].concat());
}

/// The file belongs to the image, which may have links in its place: they lead nowhere out of it. Only a regular file
/// is opened: to open a device has effects already.
fn passwd(rootfs: &Path) -> Option<Vec<u8>> {
    let root = File::open(rootfs).ok()?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let found = File::from(openat2(&root, "etc/passwd", how).ok()?);
    if !found.metadata().ok()?.is_file() {
        return None;
    }
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
    let mut text = Vec::new();
    file.take(MAX_PASSWD).read_to_end(&mut text).ok()?;
    Some(text)
}

/// The sixth field of the user's line.
fn home_of(passwd: &[u8], uid: u32) -> Option<Vec<u8>> {
    let number = uid.to_string();
    passwd.split(|b| *b == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
        match fields[..] {
            [_, _, id, _, _, home, ..] if id == number.as_bytes() && !home.is_empty() && !home.contains(&0) => {
                Some(home.to_vec())
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes() {
        let text = b"root:x:0:0:root:/root:/bin/sh\nbroken\nx:x:5::::\na:b:7:7:c:/home/a:/bin/sh\n";
        for (uid, home) in [(0, Some(&b"/root"[..])), (7, Some(b"/home/a")), (5, None), (1, None)] {
            assert_eq!(home_of(text, uid).as_deref(), home, "{uid}");
        }
    }

    #[test]
    fn links_do_not_lead_out_of_the_image() {
        let dir = std::env::temp_dir().join(format!("runsc-rs-home-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("root/etc")).unwrap();
        std::fs::write(dir.join("passwd"), "a:b:7:7:c:/outside:/bin/sh\n").unwrap();
        std::os::unix::fs::symlink("../../passwd", dir.join("root/etc/passwd")).unwrap();
        let mut env = vec![b"A=1".to_vec()];
        provide(&mut env, 7, &dir.join("root"));
        assert_eq!(env, [b"A=1".to_vec(), b"HOME=/".to_vec()]);
        provide(&mut env, 7, &dir.join("root"));
        assert_eq!(env.len(), 2);
        std::fs::write(dir.join("root/passwd"), "a:b:7:7:c:/inside:/bin/sh\n").unwrap();
        let mut env = Vec::new();
        provide(&mut env, 7, &dir.join("root"));
        assert_eq!(env, [b"HOME=/inside".to_vec()]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
