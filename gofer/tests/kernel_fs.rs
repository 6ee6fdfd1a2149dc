//! Mounts of the host below a tree: interfaces of its kernel are hidden, wherever they are mounted, and no mount is
//! removed or moved.
//!
//! The server runs in a mount namespace of its own, in which every type known to this host is mounted below the tree.

mod common;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use protocol::reply::WalkEnd;
use protocol::{transport, Client, Detail, Handle, OpenFlags, RenameFlags, WalkFids};

/// Types that can be mounted without a device and without harm, with their options.
const KERNEL: &[(&str, &str)] = &[
    ("proc", "rw"),
    ("sysfs", "ro"),
    ("devtmpfs", "ro"),
    ("devpts", "ro"),
    ("cgroup2", "ro"),
    ("cgroup", "none,name=gofer-test"),
    ("mqueue", "ro"),
    ("hugetlbfs", "rw"),
    ("debugfs", "ro"),
    ("tracefs", "ro"),
    ("securityfs", "ro"),
    ("bpf", "ro"),
    ("configfs", "ro"),
    ("binfmt_misc", "ro"),
    ("pstore", "ro"),
    ("efivarfs", "ro"),
    ("fusectl", "ro"),
];

struct Running {
    child: Child,
    dir: PathBuf,
}

impl Running {
    /// Lets the script continue until it creates the file `done`.
    fn resume(&self) {
        fs::write(self.dir.join("go"), "").unwrap();
        let start = Instant::now();
        while !self.dir.join("done").exists() {
            assert!(start.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Runs `script` in a mount namespace of its own, with `$dir`, and the server as `serve TREE…`; `user` may make it
/// that of a caller without rights.
fn start(name: &str, script: &str, user: &str) -> (Client, Running) {
    let dir = std::env::temp_dir().join(format!("gofer-kernel-{name}-{}", std::process::id()));
    fs::create_dir_all(dir.join("tree")).unwrap();
    let (ours, theirs): (OwnedFd, OwnedFd) = transport::socketpair().unwrap();
    let prelude = format!(
        "set -e; dir={}/tree; exec 3<&0; mount --bind $dir $dir; mount --make-shared $dir; \
         cp {} $dir/serve; chmod -R go+rX $dir/..; serve() {{ {user} $dir/serve \"$@\" <&3; }}",
        dir.display(),
        env!("CARGO_BIN_EXE_gofer-serve"),
    );
    let child = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", &format!("{prelude}; {script}")])
        .stdin(Stdio::from(theirs))
        .spawn()
        .unwrap();
    (Client::connect(ours).unwrap(), Running { child, dir })
}

fn walk(root: &Handle, path: &str) -> (WalkEnd, Option<Handle>) {
    let names: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
    let walk = root.walk(&names, WalkFids::Last, Some(OpenFlags::READ)).unwrap();
    (walk.end, walk.nodes.into_iter().last().and_then(|n| n.handle))
}

fn names(dir: &Handle) -> Vec<String> {
    let page = dir.read_dir(0, Detail::Content(4096)).unwrap();
    page.iter().map(|e| String::from_utf8_lossy(e.name).into_owned()).filter(|n| n != "." && n != "..").collect()
}

/// Mounts each type at `$dir/TYPE`, and binds it recursively at `$dir/bound/TYPE`.
fn mount_all() -> String {
    let mut script = String::from("mkdir $dir/bound; ");
    for (kind, options) in KERNEL {
        script += &format!(
            "mkdir $dir/{kind}; mount -t {kind} -o {options} none $dir/{kind} 2>/dev/null \
             && echo >$dir/../{kind} || :; "
        );
    }
    script
        + "mkdir $dir/tmpfs; mount -t tmpfs none $dir/tmpfs; echo seen >$dir/tmpfs/file; mkdir $dir/tmpfs/proc; \
              mount -t proc proc $dir/tmpfs/proc; touch $dir/version $dir/ns; mount --bind /proc/version $dir/version; \
              mount --bind /proc/self/ns/net $dir/ns; mkdir -p $dir/sub/sys; mount --bind /proc/sys $dir/sub/sys; \
              mount --rbind $dir $dir/bound; "
}

fn assert_hidden(root: &Handle, running: &Running, who: &str) {
    for below in ["", "bound/"] {
        let mut tried = 0;
        for (kind, _) in KERNEL {
            if !running.dir.join(kind).exists() {
                eprintln!("left out: {kind} cannot be mounted here");
                continue;
            }
            tried += 1;
            let (end, dir) = walk(root, &format!("{below}{kind}"));
            assert_eq!(end, WalkEnd::Complete, "{who} {below}{kind}");
            assert_eq!(names(&dir.unwrap()), [""; 0], "{who} {below}{kind}");
        }
        assert!(tried >= 3, "{tried} types could be mounted");
        for path in ["tmpfs/proc", "sub/sys"] {
            assert_eq!(names(&walk(root, &format!("{below}{path}")).1.unwrap()), [""; 0], "{who} {below}{path}");
        }
        for file in ["version", "ns"] {
            assert_eq!(walk(root, &format!("{below}{file}")).0, WalkEnd::Missing, "{who} {below}{file}");
        }
        let (end, file) = walk(root, &format!("{below}tmpfs/file"));
        assert_eq!(
            (end, file.unwrap().getattr().unwrap().size),
            (WalkEnd::Complete, 5),
            "{who} {below}tmpfs is served"
        );
    }
    let page = root.read_dir(0, Detail::Content(4096)).unwrap();
    for entry in page.iter().filter(|e| e.name == b"version" || e.name == b"ns") {
        assert_eq!((entry.content, entry.attr), (None, None));
    }
    let page = root.read_dir(0, Detail::Attr).unwrap();
    for entry in page.iter() {
        let refused = entry.name == b"version" || entry.name == b"ns";
        assert_eq!(entry.attr.is_none(), refused, "{}", String::from_utf8_lossy(entry.name));
    }
    let files = root.read_files(&[], &[b"version"], 4096).unwrap();
    assert!(files.iter().all(|f| f.is_none()), "{files:?}");
}

#[test]
fn kernel_file_systems_are_not_served() {
    if !common::root_for("kernel_file_systems_are_not_served") {
        return;
    }
    for (who, user) in [("root", ""), ("nobody", "setpriv --reuid 65534 --regid 65534 --clear-groups")] {
        let (client, running) = start(who, &format!("{} serve root=$dir:ro shm=$dir/tmpfs:ro", mount_all()), user);
        let root = client.attach("root").unwrap().handle;
        assert_hidden(&root, &running, who);
        // A tree of its own within one shows no more.
        let shm = client.attach("shm").unwrap().handle;
        assert_eq!(names(&walk(&shm, "proc").1.unwrap()), [""; 0], "{who}");
        assert_eq!(walk(&shm, "file").0, WalkEnd::Complete, "{who}");
    }
}

#[test]
fn lookups_refuse_kernel_file_systems() {
    if !common::root_for("lookups_refuse_kernel_file_systems") {
        return;
    }
    // Without confinement nothing is covered, so only the lookups can refuse.
    let (client, running) = start("open", &format!("{} serve --open root=$dir:ro", mount_all()), "");
    let root = client.attach("root").unwrap().handle;
    for below in ["", "bound/"] {
        for (kind, _) in KERNEL.iter().filter(|(k, _)| *k != "devtmpfs" && running.dir.join(k).exists()) {
            assert_eq!(walk(&root, &format!("{below}{kind}")).0, WalkEnd::Missing, "{below}{kind}");
            assert_eq!(root.list(&[kind.as_bytes()], Detail::Names).unwrap_err(), Errno::ENOENT, "{kind}");
        }
        for path in ["version", "ns", "tmpfs/proc", "sub/sys"] {
            assert_eq!(walk(&root, &format!("{below}{path}")).0, WalkEnd::Missing, "{below}{path}");
        }
        assert_eq!(walk(&root, &format!("{below}tmpfs/file")).0, WalkEnd::Complete);
    }
    let files = root.read_files(&[], &[b"version"], 4096).unwrap();
    assert!(files.iter().all(|f| f.is_none()), "{files:?}");
}

#[test]
fn later_mounts_are_hidden() {
    if !common::root_for("later_mounts_are_hidden") {
        return;
    }
    for (who, user) in [("root", ""), ("nobody", "setpriv --reuid 65534 --regid 65534 --clear-groups")] {
        let script = "mkdir $dir/later; echo below >$dir/later/file; serve root=$dir:ro & \
                      while ! test -e $dir/../go; do sleep 0.01; done; \
                      mount -t proc proc $dir/later; touch $dir/../done; wait";
        let (client, running) = start(&format!("later-{who}"), script, user);
        let root = client.attach("root").unwrap().handle;
        running.resume();
        let (end, later) = walk(&root, "later");
        assert_eq!((end, names(&later.unwrap())), (WalkEnd::Complete, vec!["file".to_owned()]), "{who}");
    }
}

#[test]
fn an_overlay_of_one_is_hidden() {
    if !common::root_for("an_overlay_of_one_is_hidden") {
        return;
    }
    let script = "mkdir $dir/over $dir/plain $dir/empty $dir/lower; echo x >$dir/lower/file; \
                  mount -t overlay none -o lowerdir=$dir/lower:$dir/empty $dir/plain; \
                  mount -t overlay none -o lowerdir=/sys/kernel:$dir/empty $dir/over || echo none >$dir/over/none; \
                  serve root=$dir:ro";
    let (client, _running) = start("overlay", script, "");
    let root = client.attach("root").unwrap().handle;
    let list = |name: &[u8]| names(root.walk(&[name], WalkFids::Last, None).unwrap().nodes[0].handle.as_ref().unwrap());
    if list(b"over") == ["none"] {
        return eprintln!("left out: sysfs cannot be a layer here");
    }
    assert_eq!((list(b"over"), list(b"plain")), (vec![], vec!["file".to_owned()]));
}

#[test]
fn kernel_file_systems_cannot_be_trees() {
    if !common::root_for("kernel_file_systems_cannot_be_trees") {
        return;
    }
    for path in ["/proc", "/proc/sys/kernel", "/proc/version", "/sys"] {
        let done = Command::new(env!("CARGO_BIN_EXE_gofer-serve")).arg(format!("root={path}:ro")).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && said.contains("interface of the host's kernel"), "{path}: {said}");
    }
}

#[test]
fn mounts_of_the_host_are_not_moved_or_removed() {
    if !common::root_for("mounts_of_the_host_are_not_moved_or_removed") {
        return;
    }
    for mode in ["", "--open"] {
        let script = format!(
            "mkdir $dir/m $dir/n $dir/plain $dir/proc; echo source >$dir/source; touch $dir/bound $dir/file; \
             mount -t tmpfs none $dir/m; mount --bind $dir/plain $dir/n; mount --bind $dir/source $dir/bound; \
             mount -t proc proc $dir/proc; grep $dir /proc/self/mountinfo >$dir/../before; serve {mode} root=$dir & \
             while ! test -e $dir/../go; do sleep 0.01; done; \
             grep $dir /proc/self/mountinfo >$dir/../after; touch $dir/../done; wait"
        );
        let (client, running) = start(&format!("stay{mode}"), &script, "");
        let root = client.attach("root").unwrap().handle;
        let (any, exchange) = (RenameFlags::default(), RenameFlags::EXCHANGE);
        for name in [&b"m"[..], b"n", b"proc"] {
            assert_eq!(root.unlink(name, true), Err(Errno::EBUSY), "{mode} {name:?}");
            assert_eq!(root.rename(name, &root, b"other", any), Err(Errno::EBUSY), "{mode} {name:?}");
            assert_eq!(root.rename(b"plain", &root, name, any), Err(Errno::EBUSY), "{mode} {name:?}");
            assert_eq!(root.rename(b"plain", &root, name, RenameFlags::NOREPLACE), Err(Errno::EEXIST), "{mode}");
            assert_eq!(root.rename(name, &root, b"plain", exchange), Err(Errno::EBUSY), "{mode} {name:?}");
            assert_eq!(root.rename(b"plain", &root, name, exchange), Err(Errno::EBUSY), "{mode} {name:?}");
        }
        assert_eq!(root.unlink(b"bound", false), Err(Errno::EBUSY), "{mode}");
        assert_eq!(root.rename(b"bound", &root, b"other", any), Err(Errno::EBUSY), "{mode}");
        assert_eq!(root.rename(b"file", &root, b"bound", any), Err(Errno::EBUSY), "{mode}");
        // Names without a mount can be moved and removed, also within a mount.
        root.rename(b"plain", &root, b"moved", any).unwrap();
        root.unlink(b"moved", true).unwrap();
        root.rename(b"file", &root, b"source", any).unwrap();
        running.resume();
        let mounts = |file| fs::read_to_string(running.dir.join(file)).unwrap().lines().count();
        assert_eq!((mounts("before"), mounts("after")), (5, 5), "{mode}");
    }
}

#[test]
fn unreachable_mounts_do_not_prevent_a_start() {
    if !common::root_for("unreachable_mounts_do_not_prevent_a_start") {
        return;
    }
    let script = "mkdir -m 700 $dir/private; mkdir $dir/private/proc $dir/private/dev; touch $dir/private/ns; \
                  mount -t proc proc $dir/private/proc; mount -t devtmpfs -o ro none $dir/private/dev; \
                  mount --bind /proc/self/ns/net $dir/private/ns; serve root=$dir:ro";
    let (client, running) = start("private", script, "setpriv --reuid 65534 --regid 65534 --clear-groups");
    let root = client.attach("root").unwrap().handle;
    assert_eq!(walk(&root, "private/proc").0, WalkEnd::Failed(Errno::EACCES as u32));
    fs::set_permissions(running.dir.join("tree/private"), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["proc", "dev", "ns"] {
        assert_eq!(walk(&root, &format!("private/{name}")).0, WalkEnd::Missing, "{name}");
    }
}
