//! Prints medians, spreads and ratios, and writes and reads JSON.

use crate::measure::{Results, Row};
use crate::sandboxes::Sandbox;
use crate::targets;
use anyhow::{Context, Result};
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// The sandbox to which the targets apply.
const OURS: &str = "runsc-rs";

pub fn print(results: &Results, sandboxes: &[Sandbox]) {
    println!("{}", machine());
    for s in sandboxes.iter().filter(|s| !s.version.is_empty()) {
        println!("{}: {}", s.name, s.version);
    }
    for whole in [true, false] {
        let rows: Vec<&Row> = results.rows.iter().filter(|r| r.whole == whole && !r.times.is_empty()).collect();
        if rows.is_empty() {
            continue;
        }
        println!("\n{}\n", if whole { "Whole programs (wall clock)" } else { "One operation (micro.c)" });
        println!(
            "Median, (half the range in % of it), median of the rounds' ratios to native; `!`: over the target.\n"
        );
        print_table(&rows, whole, sandboxes);
    }
    for row in &results.rows {
        for (sandbox, why) in &row.failures {
            println!("failed: {} in {sandbox}: {why}", row.name);
        }
    }
}

fn print_table(rows: &[&Row], whole: bool, sandboxes: &[Sandbox]) {
    print!("| {:<24} | target |", "");
    sandboxes.iter().for_each(|s| print!(" {:<26} |", s.name));
    print!("\n|{:-<26}|{:-<8}|", "", "");
    sandboxes.iter().for_each(|_| print!("{:-<28}|", ""));
    println!();
    for row in rows {
        let target = targets::of(&row.name, whole);
        print!("| {:<24} | {:<6} |", row.name, target.map_or(String::new(), |t| t.to_string()));
        for s in sandboxes {
            let cell = match row.times.get(&s.name) {
                None if row.failures.contains_key(&s.name) => "failed".into(),
                None => String::new(),
                Some(times) => {
                    let ratio = ratio(row, &s.name).map_or(String::new(), |r| {
                        let over = s.name == OURS && target.is_some_and(|t| r > t);
                        format!(" {r:>7.2}x{}", if over { " !" } else { "" })
                    });
                    format!("{:>9} ({:>2.0}%){ratio}", show(median(times)), spread(times))
                }
            };
            print!(" {cell:<26} |");
        }
        println!();
    }
    print!("| {:<24} | {:<6} |", "geometric mean", if whole { String::new() } else { targets::MEAN.to_string() });
    for s in sandboxes {
        let ratios: Vec<f64> = rows.iter().filter_map(|r| ratio(r, &s.name)).collect();
        let mean = (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len() as f64).exp();
        let cell = if ratios.is_empty() { String::new() } else { format!("{mean:.2}x over {}", ratios.len()) };
        print!(" {cell:<26} |");
    }
    println!();
}

/// The median of the rounds' ratios; if a round is missing on one side, the ratio of the medians.
fn ratio(row: &Row, sandbox: &str) -> Option<f64> {
    let (native, times) = (row.times.get("native")?, row.times.get(sandbox)?);
    if native.len() == times.len() {
        let each: Vec<f64> = times.iter().zip(native).map(|(t, n)| t / n).collect();
        return Some(median(&each));
    }
    Some(median(times) / median(native))
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => sorted[n / 2],
        _ => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Half the range, in percent of the median.
fn spread(times: &[f64]) -> f64 {
    let low = times.iter().copied().fold(f64::INFINITY, f64::min);
    let high = times.iter().copied().fold(0.0, f64::max);
    (high - low) / 2.0 / median(times) * 100.0
}

fn show(ns: f64) -> String {
    match ns {
        _ if ns < 1e4 => format!("{ns:.0} ns"),
        _ if ns < 1e7 => format!("{:.1} us", ns / 1e3),
        _ if ns < 1e10 => format!("{:.1} ms", ns / 1e6),
        _ => format!("{:.2} s", ns / 1e9),
    }
}

/// Model and number of processors.
fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split_once(':'));
    let n = std::thread::available_parallelism().map_or(1, |n| n.get());
    format!("machine: {n} x {}", model.map_or("?", |m| m.1.trim()))
}

/// Every measurement, in ns.
pub fn json(results: &Results, sandboxes: &[Sandbox]) -> Result<String> {
    let versions: Map<String, Value> = sandboxes.iter().map(|s| (s.name.clone(), json!(s.version))).collect();
    let rows: Vec<Value> = results
        .rows
        .iter()
        .map(|r| {
            let mut of = Map::new();
            for (name, times) in &r.times {
                let figures = json!({
                    "median": median(times), "spread_percent": spread(times), "ratio": ratio(r, name), "times": times,
                });
                of.insert(name.clone(), figures);
            }
            let target = targets::of(&r.name, r.whole);
            json!({
                "name": r.name, "whole": r.whole, "unit": "ns", "target": target, "sandboxes": of,
                "failures": r.failures,
            })
        })
        .collect();
    Ok(serde_json::to_string_pretty(&json!({"machine": machine(), "versions": versions, "results": rows}))?)
}

/// Reads the measurements of an earlier run.
pub fn read(path: &Path) -> Result<Results> {
    let wrong = || format!("{}: not written by this program", path.display());
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let value: Value = serde_json::from_str(&text).with_context(wrong)?;
    let mut results = Results::default();
    for row in value["results"].as_array().with_context(wrong)? {
        let mut times = BTreeMap::new();
        for (name, figures) in row["sandboxes"].as_object().with_context(wrong)? {
            let all = figures["times"].as_array().with_context(wrong)?;
            times.insert(name.clone(), all.iter().filter_map(Value::as_f64).collect());
        }
        let failures = serde_json::from_value(row["failures"].clone()).with_context(wrong)?;
        results.rows.push(Row {
            name: row["name"].as_str().with_context(wrong)?.into(),
            whole: row["whole"].as_bool().with_context(wrong)?,
            times,
            failures,
        });
    }
    Ok(results)
}
