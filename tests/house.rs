//! Rules for the sources that neither the compiler nor clippy checks. The bounds only become lower.

use std::fs;
use std::path::{Path, PathBuf};

/// Mutable statics of `sentry/`: state that outlives a call belongs to the kernel, a namespace, a user or a container.
const MUTABLE_STATICS: usize = 80;
/// Lines of Rust that are wider than rustfmt's width: comments and literals.
const WIDE_LINES: usize = 256;
/// Names that only this project used; common terms have replaced them.
const REPLACED: [&str; 16] = [
    "gait", "clerk", "midwife", "cradle", "unborn", "glance", "retreat", "breathe", "deadly", "carry_on", "sigmore",
    "heir", "births", "cellar", "island", "and kin",
];

fn sources(dir: &str) -> Vec<PathBuf> {
    fn add(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                add(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests/house.rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    add(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut found);
    found
}

fn lines(dirs: &[&str]) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for path in dirs.iter().flat_map(|d| sources(d)) {
        let text = fs::read_to_string(&path).unwrap();
        all.extend(text.lines().enumerate().map(|(n, l)| (format!("{}:{}", path.display(), n + 1), l.to_owned())));
    }
    all
}

const ALL: [&str; 7] = ["src", "sentry", "platform", "gofer", "protocol", "benches", "tests"];

#[test]
fn mutable_statics_become_fewer() {
    let kinds = ["Atomic", "Mutex", "RwLock", "OnceLock", "LazyLock", "Budget", "RefCell", "Cell<"];
    let mutable = |line: &str| {
        let line = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        line.strip_prefix("static ").is_some_and(|rest| kinds.iter().any(|k| rest.contains(k)))
    };
    let found: Vec<_> = lines(&["sentry/src"]).into_iter().filter(|(_, l)| mutable(l)).collect();
    assert!(found.len() <= MUTABLE_STATICS, "{} statics: {found:#?}", found.len());
}

#[test]
fn lines_fit() {
    let wide: Vec<_> = lines(&ALL).into_iter().filter(|(_, l)| l.chars().count() > 120).map(|(at, _)| at).collect();
    assert!(wide.len() <= WIDE_LINES, "{} lines: {wide:#?}", wide.len());
}

#[test]
fn replaced_names_stay_away() {
    for (at, line) in lines(&ALL) {
        let lower = line.to_lowercase();
        for name in REPLACED {
            for (i, _) in lower.match_indices(name) {
                let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric());
                let (before, after) = (lower[..i].chars().next_back(), lower[i + name.len()..].chars().next());
                assert!(word(before) || word(after), "{name} in {at}");
            }
        }
    }
}
