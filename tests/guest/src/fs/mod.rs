//! Files, directories, and state attached to them.

mod acl;
mod aio;
mod attr;
mod dirs;
mod fasync;
mod files;
mod io;
mod links;
mod locks;
mod mounts;
mod notify;
mod perms;
mod rename;
mod xattr;

pub const GROUPS: &[(&str, &[crate::Case])] = &[
    ("files", files::CASES),
    ("fileio", io::CASES),
    ("fileattr", attr::CASES),
    ("dirs", dirs::CASES),
    ("links", links::CASES),
    ("rename", rename::CASES),
    ("perms", perms::CASES),
    ("mounts", mounts::CASES),
    ("xattr", xattr::CASES),
    ("acl", acl::CASES),
    ("locks", locks::CASES),
    ("inotify", notify::CASES),
    ("fasync", fasync::CASES),
    ("aio", aio::CASES),
];
