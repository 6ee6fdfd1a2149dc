//! Programs that are almost well-formed: ELF files with changed headers and segments, scripts with odd first lines.

use super::Random;
use libc::*;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Offsets and sizes of the header fields that an x86-64 loader reads.
const HEADER: u64 = 64;
const SEGMENT: u64 = 56;

unsafe fn run(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let pid = fork();
    if pid == 0 {
        alarm(1);
        let argv = [path.as_ptr(), c"argument".as_ptr(), std::ptr::null()];
        execve(path.as_ptr(), argv.as_ptr(), argv[2..].as_ptr());
        _exit(1);
    }
    for _ in 0..150 {
        if waitpid(pid, std::ptr::null_mut(), WNOHANG) != 0 {
            return;
        }
        usleep(1000);
    }
    kill(pid, SIGKILL);
    waitpid(pid, std::ptr::null_mut(), 0);
}

/// Changes bytes and fields, mostly in the headers.
fn mutate(program: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(6) {
        let at = match random.below(8) {
            0 => random.below(HEADER),
            1..=5 => HEADER + random.below(12) * SEGMENT + random.below(7) * 8,
            _ => random.below(program.len() as u64),
        } as usize;
        let (size, value) = (random.of(&[1, 2, 4, 8]), random.value().to_le_bytes());
        if let Some(to) = program.get_mut(at..at + size) {
            to.copy_from_slice(&value[..size]);
        }
    }
    if random.below(8) == 0 {
        program.truncate(random.below(program.len() as u64) as usize);
    }
}

fn script(random: &mut Random, dir: &Path) -> Vec<u8> {
    let interpreters = ["/bin/sh", "/bin/true", "./other", "other", "/nowhere", "", " ", "/proc/self/exe", "/dev/null"];
    let mut text = b"#!".to_vec();
    match random.below(4) {
        0 => text.extend(dir.join(random.of(&["program", "other"])).as_os_str().as_bytes()),
        1 => text.extend(random.bytes(300, b" \t/\0a#!\n")),
        _ => text.extend(random.of(&interpreters).as_bytes()),
    }
    if random.below(2) == 0 {
        let len = random.below(400) as usize;
        text.extend(random.bytes(len, b" \ta"));
    }
    text.push(random.of(&[b'\n', 0, b' ']));
    text
}

pub unsafe fn round(mut random: Random) {
    super::limits();
    let dir = std::env::temp_dir().join(format!("fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::env::set_current_dir(&dir).unwrap();
    let originals = ["/bin/true", "/bin/dash", "/lib64/ld-linux-x86-64.so.2"];
    let other = dir.join("other");
    for i in 0..16 {
        let path = dir.join("program");
        let mut bytes = match random.below(4) {
            0 => script(&mut random, &dir),
            _ => std::fs::read(random.of(&originals)).unwrap_or_default(),
        };
        if bytes.starts_with(b"\x7fELF") {
            mutate(&mut bytes, &mut random);
        }
        let to = if i % 4 == 0 { &other } else { &path };
        let _ = std::fs::remove_file(to);
        std::fs::write(to, bytes).unwrap();
        std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o755)).unwrap();
        run(to);
    }
    let _ = std::fs::remove_dir_all(&dir);
}
