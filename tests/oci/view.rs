//! What those find who enter the namespaces of a container's process on the host.

use crate::common::left_out;
use crate::Host;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn the_monitor_shows_the_containers_files_and_not_the_hosts() {
    if !nix::unistd::geteuid().is_root() {
        return left_out("oci: the monitor's view");
    }
    let host = Host::new("view");
    let tree = host.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "of the tree").unwrap();
    // A link of the container's leads nowhere else.
    std::os::unix::fs::symlink("/tmp", host.path("rootfs/link")).unwrap();
    let bundle = host.bundle("bundle", &["sleep", "1000"], |spec| {
        let bind = json!({ "destination": "/dir", "type": "bind", "source": tree, "options": ["bind", "ro"] });
        spec["mounts"].as_array_mut().unwrap().push(bind);
        spec["root"]["readonly"] = json!(false);
    });
    host.good(&["run", "--detach", "--bundle", bundle.to_str().unwrap(), "box"]);
    let pid = host.json(&["state", "box"])["pid"].as_i64().unwrap();
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    assert!(root.join("bin/busybox").exists() && !root.join("etc/passwd").exists());
    assert!(!root.join(host.dir.0.strip_prefix("/").unwrap()).exists());
    assert_eq!(fs::read_to_string(root.join("dir/file")).unwrap(), "of the tree");
    let refused = fs::write(root.join("dir/new"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    fs::write(root.join("tmp/copied"), "in").unwrap();
    assert_eq!(host.good(&["exec", "box", "cat", "/tmp/copied"]), "in");
    assert!(!Path::new("/tmp/copied").exists());
    // The status is kept all the same.
    host.good(&["kill", "box", "KILL"]);
    host.until("box", "stopped");
    assert_eq!(host.good(&["wait", "box"]), "137\n");
    host.good(&["delete", "box"]);
}
