//! Real programs, each run natively and in sandboxes by the same code: standard output, standard error, status and the
//! files left behind must be identical. The scripts are in `tests/programs/`.
//!
//! Each runs three times: on the host, in a sandbox with an in-memory overlay, and in one with a bound directory. The
//! scripts print nothing that may differ (times, process ids).

mod common;

use common::{run_within, Ended, Scratch, RUNSC};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(300);

/// Prints the contents of the working directory: paths, types, modes, sizes, links, checksums.
const MANIFEST: &str = r#"
find . -mindepth 1 \( -type d -printf '%P/ %m %u\n' \) -o -printf '%P %y %m %n %s %l %u\n' | LC_ALL=C sort
find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum
"#;

#[derive(PartialEq)]
struct Outcome {
    status: String,
    out: Vec<u8>,
    err: Vec<u8>,
    files: String,
}

fn environment(command: &mut Command, dir: &Path) {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    command.env_clear().current_dir(dir).stdin(Stdio::null());
    command.env("PATH", path).env("HOME", dir).env("LC_ALL", "C.UTF-8").env("TZ", "UTC").env("USER", "tester");
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("PROGRAMS", programs());
}

fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs")
}

/// Creates an empty directory of the same name for each run.
fn fresh(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir(dir).unwrap();
}

fn outcome(ended: Ended, files: &[u8]) -> Outcome {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Outcome { status: ended.status.to_string(), out: ended.out, err: ended.err, files: text(files) }
}

fn manifest(dir: &Path) -> Vec<u8> {
    let mut command = Command::new("sh");
    environment(&mut command, dir);
    let ended = run_within(command.args(["-c", MANIFEST]), LIMIT);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.err));
    ended.out
}

/// Runs on the host.
fn natively(program: &[&str], dir: &Path) -> Outcome {
    fresh(dir);
    let mut command = Command::new(program[0]);
    environment(&mut command, dir);
    let ended = run_within(command.args(&program[1..]), LIMIT);
    let files = manifest(dir);
    outcome(ended, &files)
}

/// Runs in a sandbox whose writes stay in memory: a shell runs the program, then lists the files.
fn in_memory(program: &[&str], dir: &Path) -> Outcome {
    fresh(dir);
    let mut command = Command::new(RUNSC);
    environment(&mut command, dir);
    let script = format!("\"$@\"\nstatus=$?\nexec >&2\nprintf '\\n== files\\n'\n{MANIFEST}\nexit $status");
    let mut ended = run_within(command.args(["run", "--", "sh", "-c", &script, "sh"]).args(program), LIMIT);
    const MARK: &[u8] = b"\n== files\n";
    let at = ended.err.windows(MARK.len()).rposition(|w| w == MARK);
    let at = at.unwrap_or_else(|| panic!("{}: {}", ended.status, String::from_utf8_lossy(&ended.err)));
    let files = ended.err.split_off(at).split_off(MARK.len());
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "writes have reached the host");
    outcome(ended, &files)
}

/// Runs in a sandbox that writes to a host directory.
fn bound(program: &[&str], dir: &Path) -> Outcome {
    fresh(dir);
    let mut command = Command::new(RUNSC);
    environment(&mut command, dir);
    command.args(["run", "--bind", &format!("{0}:{0}", dir.display()), "--"]).args(program);
    let ended = run_within(&mut command, LIMIT);
    let files = manifest(dir);
    outcome(ended, &files)
}

/// The differing lines of two texts.
fn difference(what: &str, native: &[u8], boxed: &[u8]) -> String {
    if native == boxed {
        return String::new();
    }
    let (native, boxed) = (String::from_utf8_lossy(native), String::from_utf8_lossy(boxed));
    let (a, b): (Vec<_>, Vec<_>) = (native.lines().collect(), boxed.lines().collect());
    let first = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let last = a[first..].iter().rev().zip(b[first..].iter().rev()).take_while(|(x, y)| x == y).count();
    let show = |lines: &[&str]| {
        let shown: Vec<_> = lines[first..lines.len() - last].iter().take(12).map(|l| format!("    {l:.300}")).collect();
        shown.join("\n")
    };
    format!("{what} from line {}: natively\n{}\n  in the sandbox\n{}\n", first + 1, show(&a), show(&b))
}

fn compare(mode: &str, native: &Outcome, boxed: &Outcome) -> String {
    let parts = [
        difference("status", native.status.as_bytes(), boxed.status.as_bytes()),
        difference("standard output", &native.out, &boxed.out),
        difference("standard error", &native.err, &boxed.err),
        difference("files", native.files.as_bytes(), boxed.files.as_bytes()),
    ];
    let all = parts.concat();
    if all.is_empty() {
        all
    } else {
        format!("--- {mode}\n{all}")
    }
}

/// Runs a script in each way. `needed`: the programs that it starts.
fn check(name: &str, interpreter: &[&str], script: &str, needed: &[&str]) {
    for program in interpreter.iter().chain(needed) {
        let found =
            Command::new("sh").args(["-c", "command -v \"$0\"", program]).stdout(Stdio::null()).status().unwrap();
        assert!(
            found.success(),
            "{program} is not installed, and this test needs it: `./test` installs what the tests need"
        );
    }
    let scratch = Scratch::new(&format!("programs-{name}"));
    let dir = scratch.0.join("work");
    let path = programs().join(script);
    let program = [interpreter, &[path.to_str().unwrap()]].concat();
    let native = natively(&program, &dir);
    assert!(!native.out.is_empty(), "{}", String::from_utf8_lossy(&native.err));
    if std::env::var_os("PROGRAMS_HOST_ONLY").is_some() {
        let again = compare("natively, once more", &native, &natively(&program, &dir));
        assert!(again.is_empty(), "{name} is wrong, it differs from run to run\n{again}");
        return;
    }
    let failed =
        compare("in memory", &native, &in_memory(&program, &dir)) + &compare("bound", &native, &bound(&program, &dir));
    assert!(failed.is_empty(), "{name}\n{failed}");
}

#[test]
fn bash() {
    check("bash", &["bash"], "bash.sh", &["timeout", "flock", "diff"]);
}

#[test]
fn dash() {
    check("dash", &["dash"], "dash.sh", &[]);
}

#[test]
fn coreutils() {
    check("coreutils", &["bash"], "coreutils.sh", &["awk", "sed", "find"]);
}

#[test]
fn find_xargs_grep_sed_awk() {
    check("text", &["bash"], "text.sh", &["find", "xargs", "grep", "sed", "awk", "mawk", "gawk", "zgrep"]);
}

#[test]
fn tar_gzip_xz() {
    check("archive", &["bash"], "archive.sh", &["tar", "gzip", "xz", "lzma"]);
}

#[test]
fn perl() {
    check("perl", &["perl"], "perl.pl", &["seq", "sort"]);
}

/// Runs with Debian's Python, and with the first one in `PATH` if that is another.
fn python(name: &str) {
    let script = format!("python-{name}.py");
    check(&format!("python-{name}"), &["/usr/bin/python3"], &script, &[]);
    check(&format!("python3-{name}"), &["python3"], &script, &[]);
}

#[test]
fn python_subprocess() {
    python("subprocess");
}

#[test]
fn python_threading() {
    python("threading");
}

#[test]
fn python_multiprocessing() {
    python("multiprocessing");
}

#[test]
fn python_asyncio() {
    python("asyncio");
}

#[test]
fn gcc_and_make() {
    check("build", &["bash"], "build.sh", &["gcc", "make", "ar", "as", "nm"]);
}

#[test]
fn git() {
    check("git", &["bash"], "git.sh", &["git", "diff", "tar"]);
}

#[test]
fn sqlite() {
    check("sqlite", &["bash"], "sqlite.sh", &["sqlite3", "awk"]);
}

#[test]
fn go() {
    check("go", &["bash"], "golang.sh", &["go", "gcc"]);
}

#[test]
fn musl() {
    check("musl", &["bash"], "musl.sh", &["musl-gcc"]);
}
