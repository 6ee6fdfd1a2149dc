//! Makes the input files of the workloads, the same every time.

use crate::sandboxes::PATH;
use crate::workloads::Workload;
use anyhow::{bail, Context, Result};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Inputs {
    pub dir: PathBuf,
    /// The micro-benchmark, compiled.
    pub micro: Option<PathBuf>,
}

/// Whether a program is in the workloads' PATH.
pub fn installed(tool: &str) -> bool {
    PATH.split(':').any(|dir| Path::new(dir).join(tool).exists())
}

pub fn make(dir: &Path, micro: Option<&Path>, workloads: &[Workload]) -> Result<Inputs> {
    if dir.exists() {
        if !dir.join(".compare").exists() && fs::read_dir(dir)?.next().is_some() {
            bail!("{}: not a scratch directory of this program; remove it or choose another with --dir", dir.display());
        }
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    fs::write(dir.join(".compare"), "")?;
    let dir = dir.canonicalize()?;
    let wanted = |names: &[&str]| workloads.iter().any(|w| names.contains(&w.name));
    if wanted(&["c-build"]) {
        c_sources(&dir.join("c"))?;
    }
    if wanted(&["git-status", "git-log", "tar"]) {
        repository(&dir.join("repo"))?;
    }
    if wanted(&["compress"]) {
        fs::write(dir.join("data"), data(24 << 20))?;
    }
    if wanted(&["threads"]) && installed("gcc") {
        fs::write(dir.join("threads.c"), THREADS)?;
        compile(&dir.join("threads.c"), &dir.join("threads"))?;
    }
    fs::write(dir.join("tests.py"), TESTS)?;
    fs::write(dir.join("sqlite.py"), SQLITE)?;
    let micro = match micro {
        Some(source) if source.exists() => {
            let program = dir.join("micro");
            compile(source, &program)?;
            Some(program)
        }
        Some(source) => {
            eprintln!("micro: left out, {} is not there (see --micro)", source.display());
            None
        }
        None => None,
    };
    Ok(Inputs { dir, micro })
}

fn compile(source: &Path, program: &Path) -> Result<()> {
    let status = Command::new("gcc").args(["-O2", "-w", "-static", "-pthread", "-o"]).arg(program).arg(source).status();
    if !status.context("gcc")?.success() {
        bail!("{} could not be compiled", source.display());
    }
    Ok(())
}

fn c_sources(dir: &Path) -> Result<()> {
    const FILES: usize = 40;
    fs::create_dir_all(dir)?;
    let mut main = String::from("#include <stdio.h>\n");
    let mut calls = String::new();
    for i in 0..FILES {
        let mut text =
            String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n");
        for f in 0..30 {
            writeln!(text, "int f{i}_{f}(int a, char *s) {{ char b[64]; for (int k = 0; k < a % 9; k++) {{ snprintf(b, sizeof b, \"%d %s\", k * {f}, s); a += (int)strlen(b); }} return a; }}")?;
        }
        fs::write(dir.join(format!("f{i}.c")), text)?;
        writeln!(main, "int f{i}_7(int, char *);")?;
        writeln!(calls, "  s += f{i}_7({i}, \"x\");")?;
    }
    writeln!(main, "int main(void) {{ int s = 0;\n{calls}  return s == 0; }}")?;
    fs::write(dir.join("main.c"), main)?;
    let objects: String = (0..FILES).map(|i| format!(" f{i}.o")).collect();
    fs::write(dir.join("Makefile"), format!("CFLAGS=-O1\nprog: main.o{objects}\n\t$(CC) -o $@ $^\n"))?;
    Ok(())
}

fn repository(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    for d in 0..8 {
        for e in 0..10 {
            let sub = dir.join(format!("d{d}/e{e}"));
            fs::create_dir_all(&sub)?;
            for f in 0..100 {
                fs::write(
                    sub.join(format!("file{f}.txt")),
                    format!("directory {d} {e}, file {f}\n").repeat(1 + f % 40),
                )?;
            }
        }
    }
    if !installed("git") {
        return Ok(());
    }
    let git = |args: &[&str]| -> Result<()> {
        let identity = ["-c", "user.name=compare", "-c", "user.email=compare@localhost", "-c", "gc.auto=0"];
        let status = Command::new("git").args(identity).args(args).env("PATH", PATH).current_dir(dir).status()?;
        if !status.success() {
            bail!("git {} failed", args.join(" "));
        }
        Ok(())
    };
    git(&["init", "-q"])?;
    git(&["add", "-A"])?;
    git(&["commit", "-q", "-m", "all"])?;
    for commit in 0..60 {
        fs::write(
            dir.join(format!("d{}/e{}/file1.txt", commit % 8, commit % 10)),
            format!("change {commit}\n").repeat(50),
        )?;
        git(&["commit", "-q", "-a", "-m", &format!("change {commit}")])?;
    }
    Ok(())
}

/// Bytes that compress about as well as text.
fn data(len: usize) -> Vec<u8> {
    let words = ["sandbox ", "kernel ", "the ", "of ", "gofer ", "and ", "call ", "0x", "memory\n", "file "];
    let mut out = Vec::with_capacity(len + 16);
    let mut x = 12345u64;
    while out.len() < len {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let r = (x >> 33) as usize;
        out.extend_from_slice(words[r % words.len()].as_bytes());
        if r % 7 == 0 {
            out.extend_from_slice(format!("{r:x}").as_bytes());
        }
    }
    out
}

const THREADS: &str = r#"
#include <pthread.h>
#include <sched.h>
static pthread_barrier_t barrier;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long counter;
static void *work(void *arg) {
  for (int i = 0; i < 300; i++) {
    pthread_barrier_wait(&barrier);
    for (int k = 0; k < 20; k++) {
      pthread_mutex_lock(&lock);
      counter++;
      pthread_mutex_unlock(&lock);
      sched_yield();
    }
  }
  return arg;
}
int main(void) {
  pthread_t t[16];
  pthread_barrier_init(&barrier, 0, 16);
  for (int i = 0; i < 16; i++)
    pthread_create(&t[i], 0, work, 0);
  for (int i = 0; i < 16; i++)
    pthread_join(t[i], 0);
  return counter != 16L * 300 * 20;
}
"#;

const TESTS: &str = r#"
import json, os, re, subprocess, tempfile, threading, unittest

class Files(unittest.TestCase):
    def test_many_small(self):
        with tempfile.TemporaryDirectory() as d:
            for i in range(500):
                with open(os.path.join(d, f"f{i}"), "w") as f:
                    f.write("x" * i)
            self.assertEqual(sum(os.stat(os.path.join(d, n)).st_size for n in os.listdir(d)), sum(range(500)))
            for i in range(500):
                os.rename(os.path.join(d, f"f{i}"), os.path.join(d, f"g{i}"))

class Text(unittest.TestCase):
    def test_json_and_re(self):
        for i in range(300):
            s = json.dumps({"k": list(range(100)), "i": i})
            self.assertEqual(json.loads(s)["i"], i)
            self.assertTrue(re.search(r'"i": (\d+)', s))

class Processes(unittest.TestCase):
    def test_subprocesses(self):
        for i in range(30):
            self.assertEqual(subprocess.run(["/bin/echo", str(i)], capture_output=True).stdout, b"%d\n" % i)

class Threads(unittest.TestCase):
    def test_events(self):
        for _ in range(200):
            e = threading.Event()
            t = threading.Thread(target=e.set)
            t.start()
            self.assertTrue(e.wait(10))
            t.join()

unittest.main()
"#;

const SQLITE: &str = r#"
import sqlite3
c = sqlite3.connect("t.db", isolation_level=None)
c.execute("create table t(a integer primary key, b text)")
for i in range(300):
    c.execute("insert into t(b) values (?)", (f"row {i}",))
c.execute("begin")
for i in range(100000):
    c.execute("insert into t(b) values (?)", (f"row {i}",))
c.execute("commit")
assert c.execute("select count(*) from t").fetchone()[0] == 100300
"#;
