//! Hooks: their order, what they are told, and what their failure means.

use crate::Host;
use serde_json::{json, Value};
use std::fs;

const OUTSIDE: [&str; 5] = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];

#[test]
fn hooks_run_in_their_order() {
    let host = Host::new("hooks");
    let dir = host.dir.path().to_owned();
    let hook = |kind: &str| {
        let script = format!("echo {kind} $X >> {dir}/order; cat > {dir}/{kind}");
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["X=1", "PATH=/usr/bin:/bin"] }])
    };
    let bundle = host.bundle("bundle", &["sh", "-c", "cat /tmp/inside; sleep 1000"], |spec| {
        spec["hooks"] =
            OUTSIDE.iter().map(|kind| (kind.to_string(), hook(kind))).collect::<serde_json::Map<_, _>>().into();
        // In the container, before its process begins.
        let script = "cat > /tmp/inside";
        spec["hooks"]["startContainer"] = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
        spec["root"]["readonly"] = json!(false);
        spec["annotations"] = json!({ "a": "b" });
    });
    host.good(&["create", "--bundle", bundle.to_str().unwrap(), "box"]);
    let order = || fs::read_to_string(host.path("order")).unwrap();
    assert_eq!(order(), "prestart 1\ncreateRuntime 1\ncreateContainer 1\n");
    let pid = host.json(&["state", "box"])["pid"].clone();
    host.good(&["start", "box"]);
    let inside: Value = serde_json::from_str(&host.good(&["exec", "box", "cat", "/tmp/inside"])).unwrap();
    assert_eq!((&inside["status"], &inside["pid"]), (&json!("created"), &pid));
    host.good(&["delete", "--force", "box"]);
    assert_eq!(order(), "prestart 1\ncreateRuntime 1\ncreateContainer 1\npoststart 1\npoststop 1\n");
    for (kind, status) in OUTSIDE.iter().zip(["creating", "creating", "creating", "running", "stopped"]) {
        let told: Value = serde_json::from_slice(&fs::read(host.path(kind)).unwrap()).unwrap();
        assert_eq!((&told["id"], &told["status"]), (&json!("box"), &json!(status)), "{kind}");
        assert_eq!((told["pid"] == pid, &told["annotations"]["a"]), (status != "stopped", &json!("b")), "{kind}");
    }
}

#[test]
fn a_hook_that_fails() {
    let host = Host::new("failing");
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        let bundle = host.bundle("bundle", &["sleep", "1000"], |spec| {
            spec["hooks"] = json!({ kind: [{ "path": "/bin/sh", "args": ["sh", "-c", "echo bad >&2; exit 3"] }] });
        });
        let create = ["create", "--bundle", bundle.to_str().unwrap(), "box"];
        match kind {
            "startContainer" | "poststart" => {
                host.good(&create);
                host.bad(&["start", "box"], 1, "hook");
                assert_eq!(host.status("box"), "stopped", "{kind}");
                host.good(&["delete", "box"]);
            }
            "poststop" => {
                host.good(&create);
                let done = host.run(&["delete", "--force", "box"]);
                assert!(done.status.success() && done.err.contains("bad"), "{}", done.err);
            }
            _ => {
                host.bad(&create, 1, "error running hook #0");
                host.bad(&["state", "box"], 1, "container does not exist");
            }
        }
        assert!(!host.state_of("box").exists());
    }
}
