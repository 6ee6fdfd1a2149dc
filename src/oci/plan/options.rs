//! The options of a bundle's mounts, as mount(8) and runc know them.

use anyhow::{bail, Result};
use std::collections::BTreeSet;

/// Flags without a constant in libc.
const MS_NOSYMFOLLOW: u64 = 256;
const MS_LAZYTIME: u64 = 1 << 25;
const MS_I_VERSION: u64 = 1 << 23;
const MS_POSIXACL: u64 = 1 << 16;

/// Sets and clears flags of mount(2). What is cleared comes first.
#[derive(Clone, Copy)]
struct Change {
    set: u64,
    clear: u64,
}

const fn set(set: u64) -> Change {
    Change { set, clear: 0 }
}

const fn clear(clear: u64) -> Change {
    Change { set: 0, clear }
}

/// One of the access time modes, which exclude each other.
const fn atime(set: u64) -> Change {
    Change { set, clear: libc::MS_RELATIME | libc::MS_NOATIME | libc::MS_STRICTATIME }
}

/// Options that change flags. Each but those of [`ONCE`] has a recursive form too, with an `r` before it.
const FLAGS: &[(&str, Change)] = &[
    ("atime", clear(libc::MS_NOATIME)),
    ("dev", clear(libc::MS_NODEV)),
    ("diratime", clear(libc::MS_NODIRATIME)),
    ("exec", clear(libc::MS_NOEXEC)),
    ("noatime", atime(libc::MS_NOATIME)),
    ("nodev", set(libc::MS_NODEV)),
    ("nodiratime", set(libc::MS_NODIRATIME)),
    ("noexec", set(libc::MS_NOEXEC)),
    ("norelatime", clear(libc::MS_RELATIME)),
    ("nostrictatime", clear(libc::MS_STRICTATIME)),
    ("nosuid", set(libc::MS_NOSUID)),
    ("nosymfollow", set(MS_NOSYMFOLLOW)),
    ("relatime", atime(libc::MS_RELATIME)),
    ("ro", set(libc::MS_RDONLY)),
    ("rw", clear(libc::MS_RDONLY)),
    ("strictatime", atime(libc::MS_STRICTATIME)),
    ("suid", clear(libc::MS_NOSUID)),
    ("symfollow", clear(MS_NOSYMFOLLOW)),
];

/// Options that change flags and have no recursive form.
const ONCE: &[(&str, Change)] = &[
    ("acl", set(MS_POSIXACL)),
    ("async", clear(libc::MS_SYNCHRONOUS)),
    ("defaults", set(0)),
    ("dirsync", set(libc::MS_DIRSYNC)),
    ("iversion", set(MS_I_VERSION)),
    ("lazytime", set(MS_LAZYTIME)),
    ("loud", clear(libc::MS_SILENT)),
    ("mand", set(libc::MS_MANDLOCK)),
    ("noacl", clear(MS_POSIXACL)),
    ("noiversion", clear(MS_I_VERSION)),
    ("nolazytime", clear(MS_LAZYTIME)),
    ("nomand", clear(libc::MS_MANDLOCK)),
    ("silent", set(libc::MS_SILENT)),
    ("sync", set(libc::MS_SYNCHRONOUS)),
];

/// How mounts below it, and copies of it, follow changes. Each has a recursive form.
const PROPAGATION: &[(&str, u64)] = &[
    ("private", libc::MS_PRIVATE),
    ("shared", libc::MS_SHARED),
    ("slave", libc::MS_SLAVE),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// What the options of a mount come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// `MS_*`, without propagation and without `MS_BIND`.
    pub flags: u64,
    /// `MS_SHARED`, …, perhaps with `MS_REC`; 0: not given.
    pub propagation: u64,
    /// `Some(recursive)`: a bind mount.
    pub bind: Option<bool>,
    /// Fill the new tmpfs with what the directory has.
    pub copy_up: bool,
    /// For the file system.
    pub data: Vec<String>,
}

/// Parses the options of the mount at `target`.
pub fn parse(target: &str, options: &[String]) -> Result<Parsed> {
    let mut parsed = Parsed::default();
    for option in options {
        // The recursive form of an attribute reaches the mounts below, and a tree of the Gofer's is one mount of the
        // container's.
        let plain = option.strip_prefix('r').filter(|plain| find(FLAGS, plain).is_some());
        let change = find(ONCE, option).or_else(|| find(FLAGS, option)).or_else(|| find(FLAGS, plain?));
        if let Some(change) = change {
            parsed.flags = parsed.flags & !change.clear | change.set;
        } else if let Some(propagation) = propagation(option) {
            parsed.propagation = propagation;
        } else {
            match option.as_str() {
                "bind" => parsed.bind = Some(parsed.bind.unwrap_or(false)),
                "rbind" => parsed.bind = Some(true),
                "tmpcopyup" => parsed.copy_up = true,
                "idmap" | "ridmap" => bail!("mount {target}: id-mapped mounts are not supported"),
                "remount" => bail!("mount {target}: remount is not supported: give the options to the mount itself"),
                other => parsed.data.push(data(target, other)?),
            }
        }
    }
    Ok(parsed)
}

/// The propagation that an option names: `rshared` is `MS_SHARED | MS_REC`.
pub fn propagation(option: &str) -> Option<u64> {
    let find = |name: &str| PROPAGATION.iter().find(|p| p.0 == name).map(|p| p.1);
    find(option).or_else(|| option.strip_prefix('r').and_then(find).map(|flag| flag | libc::MS_REC))
}

/// The names of all options, in order.
pub fn names() -> BTreeSet<String> {
    let both = |name: &str| [name.to_string(), format!("r{name}")];
    let one = |name: &&str| (*name).to_string();
    let mut names: BTreeSet<String> = FLAGS.iter().flat_map(|f| both(f.0)).collect();
    names.extend(PROPAGATION.iter().flat_map(|p| both(p.0)));
    names.extend(both("bind"));
    names.extend(ONCE.iter().map(|f| one(&f.0)));
    names.insert("tmpcopyup".into());
    names
}

fn find(table: &[(&str, Change)], name: &str) -> Option<Change> {
    table.iter().find(|entry| entry.0 == name).map(|entry| entry.1)
}

/// An option for the file system. They travel in one string, with commas between them.
fn data(target: &str, option: &str) -> Result<String> {
    if option.contains([',', '\0']) {
        bail!("mount {target}: option {option:?}: give each option by itself");
    }
    Ok(option.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Result<Parsed> {
        parse("/t", &options.iter().map(|o| (*o).to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn flags() {
        let flags = |options: &[&str]| of(options).unwrap().flags;
        assert_eq!(flags(&["nosuid", "nodev", "ro"]), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_RDONLY);
        assert_eq!(flags(&["ro", "rw"]), 0);
        assert_eq!(flags(&["rro", "rnoexec"]), libc::MS_RDONLY | libc::MS_NOEXEC);
        assert_eq!(flags(&["rrw", "rro", "rrelatime"]), libc::MS_RDONLY | libc::MS_RELATIME);
        assert_eq!(flags(&["noatime", "relatime"]), libc::MS_RELATIME);
        assert_eq!(flags(&["defaults", "sync", "async"]), 0);
    }

    #[test]
    fn binds_propagation_and_data() {
        assert_eq!(of(&["rbind", "bind"]).unwrap().bind, Some(true));
        assert_eq!(of(&["bind"]).unwrap().bind, Some(false));
        assert_eq!(of(&["rslave"]).unwrap().propagation, libc::MS_SLAVE | libc::MS_REC);
        assert_eq!(of(&["unbindable"]).unwrap().propagation, libc::MS_UNBINDABLE);
        let tmpfs = of(&["mode=755", "tmpcopyup", "size=64k"]).unwrap();
        assert_eq!((tmpfs.data, tmpfs.copy_up), (vec!["mode=755".to_string(), "size=64k".to_string()], true));
        for wrong in ["idmap", "ridmap", "remount", "size=1,mode=2", "a\0b"] {
            assert!(of(&[wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_name_is_known() {
        for name in names() {
            assert_eq!(of(&[&name]).unwrap().data, Vec::<String>::new(), "{name}");
        }
    }
}
