//! Host trees that host processes change at the same time: the guest's view and its permissions follow the current
//! files.

mod common;

use common::{left_out, Scratch, RUNSC};
use std::fs;
use std::os::unix::fs::{chown, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The guest's user, who owns the bound directory and could change it on the host too.
const GUEST: u32 = 1000;

fn run(options: &[&str], script: &str, args: &[&str]) -> Output {
    let mut command = Command::new(RUNSC);
    command.arg("run").args(options).args(["--", "python3", "-c", script]).args(args);
    command.stdin(Stdio::null()).output().unwrap()
}

fn out(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    out.into_owned()
}

fn file(path: &Path, text: &str, mode: u32, owner: u32) {
    fs::write(path, text).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn dir(path: &Path, mode: u32, owner: u32) {
    fs::create_dir(path).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A directory owned by the guest's user; `None` without root.
fn scratch(name: &str) -> Option<Scratch> {
    if !nix::unistd::geteuid().is_root() {
        left_out(&format!("trees: {name}"));
        return None;
    }
    let dir = Scratch::new(name);
    chown(&dir.0, Some(GUEST), Some(GUEST)).unwrap();
    Some(dir)
}

/// The beginning of the scripts: the same directory in the root (`L`) and as a bind (`B`), and a function that prints a
/// file.
const HEAD: &str = "
import os, sys
L, B = sys.argv[1], '/mnt'
def tell(what, path):
    try: print(what, open(path).read().strip())
    except OSError as e: print(what, e.strerror)
";

#[test]
fn an_open_checks_the_current_attributes() {
    let Some(at) = scratch("judged") else { return };
    for (name, text, mode, owner) in [
        ("secret", "secret", 0o600, 0),
        ("mine", "mine", 0o644, GUEST),
        ("other", "other", 0o644, GUEST),
        ("third", "third", 0o644, GUEST),
        ("closing", "closing", 0o644, GUEST),
    ] {
        // Too long for read-ahead: content read ahead before the change may be outdated.
        file(&at.0.join(name), &format!("{text}{}", " ".repeat(32 << 10)), mode, owner);
    }
    dir(&at.0.join("d"), 0o755, GUEST);
    file(&at.0.join("d/f"), "of d", 0o644, GUEST);
    dir(&at.0.join("priv"), 0o700, 0);
    file(&at.0.join("priv/f"), "of priv", 0o644, 0);
    chown(at.0.join("priv"), Some(0), Some(0)).unwrap();
    let script = "
for name in ('secret', 'mine', 'third', 'closing'): tell('before:', L + '/' + name)
for name in ('mine', 'third', 'd/f'): os.stat(L + '/' + name)
os.rename(B + '/secret', B + '/mine'); tell('a private one:', L + '/mine')
os.rename(B + '/other', B + '/third'); tell('another one:', L + '/third')
os.rename(B + '/d', B + '/old'); os.rename(B + '/priv', B + '/d'); tell('a private directory:', L + '/d/f')
fd = os.open(L + '/closing', os.O_RDONLY)
os.chmod(B + '/closing', 0o200); tell('not any more:', L + '/closing')
";
    let bind = format!("{}:/mnt", at.path());
    let output = run(&["--user", "1000:1000", "--bind", &bind], &[HEAD, script].concat(), &[at.path()]);
    let expected = "before: Permission denied\nbefore: mine\nbefore: third\nbefore: closing\n\
                    a private one: Permission denied\nanother one: other\na private directory: Permission denied\n\
                    not any more: Permission denied\n";
    assert_eq!(out(output), expected);
}

#[test]
fn one_file_is_not_run_with_the_rights_of_another() {
    let Some(at) = scratch("rights") else { return };
    for name in ["bin", "evil"] {
        dir(&at.0.join(name), 0o755, GUEST);
    }
    let (su, evil) = (at.0.join("bin/su"), at.0.join("evil/su"));
    fs::copy("/bin/cat", &su).unwrap();
    fs::set_permissions(&su, fs::Permissions::from_mode(0o4755)).unwrap();
    fs::copy("/usr/bin/id", &evil).unwrap();
    chown(&evil, Some(GUEST), Some(GUEST)).unwrap();
    let script = "
def swap(a, b): os.rename(B + '/bin', B + '/' + a); os.rename(B + '/' + b, B + '/bin')
swap('real', 'evil')
fd = os.open(L + '/bin/su', os.O_RDONLY)
swap('evil', 'real')
try: os.getxattr(L + '/bin/su', 'user.x')
except OSError as e: print(e.strerror, flush=True)
os.execv(L + '/bin/su', ['su', '-u'])
";
    let bind = format!("{}:/mnt", at.path());
    let output = run(&["--user", "1000:1000", "--bind", &bind], &[HEAD, script].concat(), &[at.path()]);
    // The program in place now is `cat`, which copies an empty standard input.
    assert_eq!(out(output), "No data available\n");
}

#[test]
fn copy_up_copies_the_file_that_was_checked() {
    let Some(at) = scratch("copied") else { return };
    file(&at.0.join("secret"), "secret", 0o600, 0);
    file(&at.0.join("mine"), "mine", 0o644, GUEST);
    let script = "
os.stat(L + '/mine'); os.rename(B + '/secret', B + '/mine')
for what, do in (('chmod:', lambda p: os.chmod(p, 0o644)), ('open:', lambda p: open(p, 'r+')),
                 ('rename:', lambda p: os.rename(p, L + '/new'))):
    try: do(L + '/mine'); print(what, 'done')
    except OSError as e: print(what, e.strerror)
tell('', L + '/new')
";
    let bind = format!("{}:/mnt", at.path());
    let output = run(&["--user", "1000:1000", "--bind", &bind], &[HEAD, script].concat(), &[at.path()]);
    let expected = "chmod: Operation not permitted\nopen: Permission denied\nrename: done\n Permission denied\n";
    assert_eq!(out(output), expected);
}

#[test]
fn asking_for_no_change_of_owner_takes_no_rights_away() {
    let Some(at) = scratch("strip") else { return };
    for (name, mode) in [("rights", 0o4755), ("none", 0o755)] {
        file(&at.0.join(name), "", mode, 0);
    }
    let script = "
for path in (B, L):
    for name in ('rights', 'none'):
        try: os.chown(path + '/' + name, -1, -1); print('done')
        except OSError as e: print(e.strerror)
    print('%o' % (os.stat(path + '/rights').st_mode & 0o7777))
";
    let bind = format!("{}:/mnt", at.path());
    let output = run(&["--user", "1000:1000", "--bind", &bind], &[HEAD, script].concat(), &[at.path()]);
    assert_eq!(out(output), "Operation not permitted\ndone\n4755\n".repeat(2));
}

#[test]
fn no_user_uses_up_the_files_that_the_gofer_can_hold() {
    let Some(at) = scratch("fids") else { return };
    for i in 0..1800 {
        fs::write(at.0.join(format!("f{i}")), "text").unwrap();
    }
    fs::create_dir(at.0.join("d")).unwrap();
    let script = "
(r, w), (back, go) = os.pipe(), os.pipe()
if os.fork() == 0:
    os.setgroups([]); os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
    held, why = [], ''
    for i in range(1800):
        try: held.append(os.open('%s/f%d' % (B, i), os.O_PATH))
        except OSError as e: why = e.strerror; break
    print(len(held) > 500, why, flush=True)
    os.write(w, b'x'); os.read(back, 1); os._exit(0)
os.read(r, 1)
tell('bind:', B + '/f1799'); print(os.listdir(B + '/d')); tell('root:', L + '/f1798')
os.mkdir(B + '/new'); print(len(os.listdir('/usr')) > 3)
os.write(go, b'x')
";
    let (bind, whole) = (format!("{}:/mnt", at.path()), [HEAD, script].concat());
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 1600 && exec \"$@\"", "sh", RUNSC, "run", "--bind", &bind, "--", "python3", "-c"]);
    let output = command.args([&whole, at.path()]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(out(output), "True Too many open files in system\nbind: text\n[]\nroot: text\nTrue\n");
}

#[test]
fn restrictions_of_host_mounts_hold() {
    let Some(at) = scratch("nosuid") else { return };
    // A mount namespace of its own, in which the mount ends.
    let script = "set -e; cd $1; mkdir suid exec; mount -t tmpfs -o nosuid none suid; \
                  mount -t tmpfs -o noexec none exec; \
                  for d in . suid exec; do cp /usr/bin/id $d/id; chmod 4755 $d/id; done; chown 1000 suid; \
                  guest='for d in . suid exec; do $d/id -u 2>/dev/null || echo no; done; \
                  mv suid/id suid/moved; suid/moved -u'; \
                  for with in --overlay=memory --bind=$1:$1; do $2 run --user 1000 $with --cwd $1 -- sh -c \"$guest\"; \
                  test -e suid/id || mv suid/moved suid/id; done; \
                  setpriv --reuid 1000 --clear-groups sh -c \"$guest\"";
    let args = ["-m", "sh", "-c", script, "sh", at.path(), RUNSC];
    let output = Command::new("unshare").args(args).stdin(Stdio::null()).output().unwrap();
    // The script ends with a run on the host; all results must be the same.
    assert_eq!(out(output), "0\n1000\nno\n1000\n".repeat(3));
}

#[test]
fn a_running_program_is_not_truncated() {
    let script = "
import shutil, subprocess
p = '/tmp/running'
shutil.copy('/bin/sleep', p)
with open(p, 'ab') as f: f.write(os.urandom(24 << 20))
size = os.stat(p).st_size
sleep = subprocess.Popen([p, '1000'])
while os.readlink('/proc/%d/exe' % sleep.pid) != p: pass
try: os.truncate(p, 0)
except OSError as e: print(e.strerror)
print(os.stat(p).st_size == size)
sleep.kill()
";
    assert_eq!(out(run(&[], &["import os", script].concat(), &[])), "Text file busy\nTrue\n");
}

#[test]
fn foreign_ids_in_an_ordinary_callers_bind() {
    let Some(at) = scratch("ordinary") else { return };
    let copy = at.0.join("runsc-rs");
    fs::copy(RUNSC, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    dir(&at.0.join("tree"), 0o777, GUEST);
    let script = "
import os
os.umask(0)
os.mkdir('/mnt/d', 0o755); os.symlink('x', '/mnt/l'); os.mkfifo('/mnt/p', 0o644)
os.close(os.open('/mnt/f', os.O_CREAT | os.O_WRONLY, 0o6755))
for n in 'dlpf': st = os.lstat('/mnt/' + n); print(n, st.st_uid, '%o' % st.st_mode)
";
    let bind = format!("{}:/mnt", at.0.join("tree").display());
    let output = Command::new("setpriv")
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups"])
        .arg(&copy)
        .args(["run", "--user", "2000:2000", "--cwd", "/", "--bind", &bind, "--", "python3", "-c", script])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(out(output), "d 1000 40755\nl 1000 120777\np 1000 10644\nf 1000 100755\n");
}

#[test]
fn appends_from_both_sides_are_all_there() {
    let at = Scratch::new("append");
    const LINES: usize = 3000;
    let script = "
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for i in range(int(sys.argv[2])):
    assert os.write(fd, (sys.argv[3] * 63 + '\\n').encode()) == 64
assert os.lseek(fd, 0, os.SEEK_CUR) % 64 == 0
";
    let path = at.0.join("log");
    fs::write(&path, "").unwrap();
    let (path, lines) = (path.to_str().unwrap(), LINES.to_string());
    let host = Command::new("python3").args(["-c", script, path, &lines, "h"]).spawn().unwrap();
    let bind = format!("{}:/mnt", at.path());
    out(run(&["--bind", &bind], script, &["/mnt/log", &lines, "g"]));
    assert!(host.wait_with_output().unwrap().status.success());
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().filter(|l| l.len() == 63).count(), 2 * LINES);
}
