//! Life cycles of containers: `create`, `start` and `delete` of a program that ends at once, `exec` into a running container, and the
//! memory of an idle one, for each OCI runtime that is installed. The runtimes take turns within a round.

use anyhow::{bail, Context, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The program in the containers: ends at once, or with an argument sleeps.
const PROGRAM: &str =
    "#include <unistd.h>\nint main(int n, char **v) { (void)v; if (n > 1) for (;;) pause(); return 0; }\n";
/// How long a container may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

struct Runtime {
    name: String,
    /// Program and global options.
    words: Vec<String>,
}

impl Runtime {
    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(&self.words[0]);
        c.args(&self.words[1..]).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        c
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let status = self.command(args).status().with_context(|| self.name.clone())?;
        if !status.success() {
            bail!("{} {}: {status}", self.name, args.join(" "));
        }
        Ok(())
    }

    /// Waits until the container's first process has ended.
    fn wait_until_stopped(&self, id: &str) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let out = self.command(&["state", id]).stdout(Stdio::piped()).output()?;
            if String::from_utf8_lossy(&out.stdout).contains("\"stopped\"") {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("{}: the container does not end", self.name)
    }
}

fn runtimes(runsc_rs: &Path, dir: &Path) -> Vec<Runtime> {
    let state = |name: &str| format!("--root={}", dir.join(format!("state-{name}")).display());
    let mut all =
        vec![Runtime { name: "runsc-rs".into(), words: vec![runsc_rs.display().to_string(), state("runsc-rs")] }];
    for (name, extra) in [("crun", "--cgroup-manager=disabled"), ("runc", ""), ("runsc", "--ignore-cgroups")] {
        let mut words = vec![name.to_string(), state(name)];
        words.extend([extra.to_string()].into_iter().filter(|e| !e.is_empty()));
        if name == "runsc" {
            words.push("--network=none".into());
        }
        let there = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if there.is_ok_and(|s| s.success()) {
            all.push(Runtime { name: name.into(), words });
        }
    }
    all
}

fn make_bundle(dir: &Path, args: &[&str]) -> Result<PathBuf> {
    let root = dir.join("root");
    for below in ["bin", "proc", "dev", "sys"] {
        fs::create_dir_all(root.join(below))?;
    }
    let source = dir.join("true.c");
    fs::write(&source, PROGRAM)?;
    let built = Command::new("cc").args(["-O2", "-static", "-o"]).arg(root.join("bin/true")).arg(&source).status()?;
    if !built.success() {
        bail!("cc: {built}");
    }
    let namespaces: Vec<_> =
        ["pid", "ipc", "uts", "mount", "network"].iter().map(|kind| json!({ "type": kind })).collect();
    let config = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "root", "readonly": true},
        "process": {"terminal": false, "cwd": "/", "args": args, "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {"namespaces": namespaces},
    });
    fs::write(dir.join("config.json"), config.to_string())?;
    Ok(dir.to_owned())
}

/// Proportional set size of a process and its descendants, in bytes.
fn pss(pid: i32) -> u64 {
    let of = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("Pss:"));
        line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let mut sum = of(pid);
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        sum += children.split_whitespace().filter_map(|c| c.parse().ok()).map(pss).sum::<u64>();
    }
    sum
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Milliseconds that `f` takes.
fn timed(f: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    f()?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

pub fn compare(runsc_rs: &Path, dir: &Path, rounds: usize) -> Result<()> {
    let short = make_bundle(&dir.join("short"), &["/bin/true"])?;
    let long = make_bundle(&dir.join("long"), &["/bin/true", "pause"])?;
    let runtimes = runtimes(runsc_rs, dir);
    let mut rows: BTreeMap<(usize, &str), Vec<f64>> = BTreeMap::new();
    let id = |what: &str| format!("compare-{what}-{}", std::process::id());
    let (short_id, long_id) = (id("short"), id("long"));
    let bundle = |b: &Path| b.display().to_string();
    let mut idle = Vec::new();
    for r in &runtimes {
        let pid_file = dir.join("pid");
        let started = r
            .run(&["create", "--bundle", &bundle(&long), "--pid-file", &pid_file.display().to_string(), &long_id])
            .and_then(|()| r.run(&["start", &long_id]));
        if let Err(e) = started {
            eprintln!("left out: {e:#}");
            let _ = r.run(&["delete", "--force", &long_id]);
            continue;
        }
        std::thread::sleep(Duration::from_millis(500));
        let pid = fs::read_to_string(&pid_file)?.trim().parse()?;
        idle.push((r, pss(pid)));
    }
    for _ in 0..rounds {
        for (n, (r, _)) in idle.iter().enumerate() {
            let cycle = || {
                let begin = timed(|| r.run(&["create", "--bundle", &bundle(&short), &short_id]))?;
                let start = timed(|| r.run(&["start", &short_id]))?;
                r.wait_until_stopped(&short_id)?;
                let end = timed(|| r.run(&["delete", &short_id]))?;
                Ok::<_, anyhow::Error>((begin, start, end))
            };
            match cycle() {
                Ok((begin, start, end)) => {
                    for (row, time) in
                        [("create", begin), ("start", start), ("delete", end), ("all three", begin + start + end)]
                    {
                        rows.entry((n, row)).or_default().push(time);
                    }
                }
                Err(e) => {
                    eprintln!("{e:#}");
                    let _ = r.run(&["delete", "--force", &short_id]);
                }
            }
            match timed(|| r.run(&["exec", &long_id, "/bin/true"])) {
                Ok(time) => rows.entry((n, "exec")).or_default().push(time),
                Err(e) => eprintln!("{e:#}"),
            }
        }
    }
    println!("Life cycle of a container, medians of {rounds} rounds (ms), and idle memory (PSS, MiB)\n");
    print!("| {:<10} |", "");
    idle.iter().for_each(|(r, _)| print!(" {:>9} |", r.name));
    println!("\n|------------|{}", "-----------|".repeat(idle.len()));
    for row in ["create", "start", "delete", "all three", "exec"] {
        print!("| {row:<10} |");
        for n in 0..idle.len() {
            print!(" {:>9.1} |", median(rows.entry((n, row)).or_default()));
        }
        println!();
    }
    print!("| {:<10} |", "idle");
    idle.iter().for_each(|(_, bytes)| print!(" {:>9.1} |", *bytes as f64 / (1 << 20) as f64));
    println!();
    for (r, _) in &idle {
        let _ = r.run(&["delete", "--force", &long_id]);
    }
    Ok(())
}
