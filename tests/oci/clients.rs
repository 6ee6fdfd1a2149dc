//! Clients of the control socket that do not keep to the protocol, and those of other users.

use crate::common::left_out;
use crate::Host;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

fn connect(host: &Host) -> UnixStream {
    // The path may be longer than an address.
    let dir = std::fs::File::open(host.state_of("box")).unwrap();
    let path = format!("/proc/self/fd/{}/control.sock", std::os::fd::AsRawFd::as_raw_fd(&dir));
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Whether the other side closes the connection.
fn is_closed(mut stream: UnixStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], body].concat()
}

#[test]
fn mistakes_end_their_own_connection_only() {
    let host = Host::new("clients");
    let bundle = host.bundle("bundle", &["sleep", "1000"], |_| ());
    host.good(&["run", "-d", "--bundle", bundle.to_str().unwrap(), "box"]);
    let patient = connect(&host);
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let no_hello = br#"{"request":"state","container":"box"}"#;
    let version = br#"{"request":"hello","version":99}"#;
    for body in [&b"{"[..], b"", b"null", b"\xff\xff", &deep, no_hello, version] {
        let mut stream = connect(&host);
        let _ = stream.write_all(&frame(body));
        assert!(is_closed(stream), "{:?}", String::from_utf8_lossy(&body[..body.len().min(40)]));
        assert_eq!(host.status("box"), "running");
    }
    let mut long = connect(&host);
    let _ = long.write_all(&u32::MAX.to_le_bytes());
    assert!(is_closed(long));
    // Half a frame, and then nothing more.
    let mut half = connect(&host);
    half.write_all(&frame(no_hello)[..9]).unwrap();
    drop(half);
    let many: Vec<UnixStream> = (0..100).map(|_| connect(&host)).collect();
    assert_eq!(host.status("box"), "running");
    drop((many, patient));
    host.good(&["exec", "box", "true"]);
}

#[test]
fn other_users_are_turned_away() {
    if !nix::unistd::geteuid().is_root() {
        return left_out("oci::clients::other_users_are_turned_away: a change of users");
    }
    let host = Host::new("others");
    let bundle = host.bundle("bundle", &["sleep", "1000"], |_| ());
    host.good(&["run", "-d", "--bundle", bundle.to_str().unwrap(), "box"]);
    // Its directory and the socket are closed to others; should those be opened, the monitor still looks at who comes.
    use std::os::unix::fs::PermissionsExt;
    for (path, mode) in
        [("state", 0o755), ("state/box", 0o755), ("state/box/control.sock", 0o777), ("state/box/state.json", 0o644)]
    {
        std::fs::set_permissions(host.path(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut kill = host.command(&["kill", "box", "KILL"]);
    std::os::unix::process::CommandExt::uid(&mut kill, 65534);
    assert!(!host.finish(kill, "kill of another user").status.success());
    assert_eq!(host.status("box"), "running");
    assert!(Path::new(&host.state_of("box")).exists());
}
