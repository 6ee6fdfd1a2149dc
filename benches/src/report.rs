//! Prints medians, spreads and ratios, and writes JSON.

use crate::measure::{Results, Row};
use crate::sandboxes::Sandbox;
use anyhow::Result;
use serde_json::{json, Map, Value};

pub fn print(results: &Results, sandboxes: &[Sandbox]) {
    for whole in [true, false] {
        let rows: Vec<&Row> = results.rows.iter().filter(|r| r.whole == whole).collect();
        if rows.is_empty() {
            continue;
        }
        println!("\n{}\n", if whole { "Whole programs (wall clock)" } else { "One operation (micro.c)" });
        println!("Median, (half the range in % of it), ratio to native.\n");
        print_table(&rows, sandboxes);
    }
    for row in &results.rows {
        for (sandbox, why) in &row.failures {
            println!("failed: {} in {sandbox}: {why}", row.name);
        }
    }
}

fn print_table(rows: &[&Row], sandboxes: &[Sandbox]) {
    print!("| {:<22} |", "");
    sandboxes.iter().for_each(|s| print!(" {:<24} |", s.name));
    print!("\n|{:-<24}|", "");
    sandboxes.iter().for_each(|_| print!("{:-<26}|", ""));
    println!();
    for row in rows {
        print!("| {:<22} |", row.name);
        let native = row.times.get("native").map(|t| median(t));
        for s in sandboxes {
            let cell = match row.times.get(&s.name) {
                None => "failed".into(),
                Some(times) => {
                    let m = median(times);
                    let ratio = native.map_or(String::new(), |n| format!(" {:>7.2}x", m / n));
                    format!("{:>9} ({:>2.0}%){ratio}", show(m), spread(times))
                }
            };
            print!(" {cell:<24} |");
        }
        println!();
    }
    print!("| {:<22} |", "geometric mean");
    for s in sandboxes {
        let ratios: Vec<f64> =
            rows.iter().filter_map(|r| Some(median(r.times.get(&s.name)?) / median(r.times.get("native")?))).collect();
        let mean = (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len() as f64).exp();
        print!(
            " {:<24} |",
            if ratios.is_empty() { String::new() } else { format!("{mean:.2}x over {}", ratios.len()) }
        );
    }
    println!();
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

/// Every measurement, in ns.
pub fn json(results: &Results) -> Result<String> {
    let rows: Vec<Value> = results
        .rows
        .iter()
        .map(|r| {
            let mut sandboxes = Map::new();
            for (name, times) in &r.times {
                sandboxes.insert(name.clone(), json!({"median": median(times), "times": times}));
            }
            json!({"name": r.name, "whole": r.whole, "unit": "ns", "sandboxes": sandboxes, "failures": r.failures})
        })
        .collect();
    Ok(serde_json::to_string_pretty(
        &json!({"processors": std::thread::available_parallelism()?.get(), "results": rows}),
    )?)
}
