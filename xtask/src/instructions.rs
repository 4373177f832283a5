//! `cargo xtask instructions`: how many instructions each hot loop takes, against what it took before.
//!
//! valgrind counts them, and comes to the same number on a busy machine as on a quiet one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{process, repo};

const HELP: &str = "\
cargo xtask instructions [--accept]

Counts the instructions of the loops in crates/lastgood-format/benches/instructions.rs, and fails if one takes more
than before. --accept writes what it found as what is expected from now on.";

/// What each case took when it was last accepted, and with which compiler.
const EXPECTED: &str = "crates/lastgood-format/benches/instructions.json";

/// Where the numbers stand among those of the compiler.
const COMPILER: &str = "rustc";

/// The function within which instructions are counted.
const MEASURED: &str = "instructions::measured";

/// By how many hundredths a case may grow: with the compiler of the expectation, and with another one.
const MORE_MAX: (u64, u64) = (2, 15);

pub(crate) fn run(args: &[String]) -> Result<bool> {
    let accepts = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => false,
        ["--accept"] => true,
        _ => {
            println!("{HELP}");
            return Ok(args == ["--help"]);
        }
    };
    let (program, compiler) = (build()?, compiler()?);
    let found = count(&program)?;
    let path = repo::root().join(EXPECTED);
    if accepts {
        let mut text = serde_json::Map::new();
        text.insert(COMPILER.into(), compiler.into());
        text.insert(
            "instructions".into(),
            serde_json::to_value(found.iter().cloned().collect::<BTreeMap<_, _>>())?,
        );
        fs::write(&path, format!("{}\n", serde_json::to_string_pretty(&text)?))
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{} cases accepted", found.len());
        return Ok(true);
    }
    let expected: Value = serde_json::from_str(&repo::read(EXPECTED)?).context(EXPECTED)?;
    let same = expected[COMPILER] == compiler.as_str();
    let more = if same { MORE_MAX.0 } else { MORE_MAX.1 };
    if !same {
        println!(
            "expected with {}, counted with {compiler}: {more} % more are allowed",
            expected[COMPILER]
        );
    }
    Ok(judge(&found, &expected["instructions"], more))
}

/// Prints a row for each case; false if one grew or is not known.
fn judge(found: &[(String, u64)], expected: &Value, more: u64) -> bool {
    let mut failed = 0;
    println!("{:20} {:>12} {:>12}  change", "instructions", "expected", "found");
    for (name, count) in found {
        let Some(before) = expected[name].as_u64() else {
            println!("{name:20} {:>12} {count:>12}  FAILED: not known; see --accept", "");
            failed += 1;
            continue;
        };
        let change = 100.0 * (*count as f64 / before.max(1) as f64 - 1.0);
        let grew = *count * 100 > before * (100 + more);
        let verdict = if grew { format!("  FAILED: more than {more} %") } else { String::new() };
        println!("{name:20} {before:>12} {count:>12}  {change:+.1} %{verdict}");
        failed += usize::from(grew);
    }
    println!("{} passed, {failed} failed", found.len() - failed);
    failed == 0
}

fn compiler() -> Result<String> {
    let output = process::command("rustc").arg("--version").output().context("cannot run rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The program with the loops, optimised as the tests are.
fn build() -> Result<PathBuf> {
    let output = process::command(&process::cargo())
        .args(["bench", "--profile", "dev", "-p", "lastgood-format", "--bench", "instructions"])
        .args(["--locked", "--no-run", "--message-format", "json-render-diagnostics"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot run cargo bench")?;
    ensure!(output.status.success(), "cargo bench ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let mut built = text.lines().rev().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == "instructions";
        message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
    });
    built.next().context("cargo bench says of no program that it built it")
}

/// The cases in their order, with their instructions.
fn count(program: &Path) -> Result<Vec<(String, u64)>> {
    let valgrind = process::find("valgrind")
        .context("there is no valgrind; install the package of that name")?;
    let folder = repo::root().join("target/instructions");
    fs::remove_dir_all(&folder).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    fs::create_dir_all(&folder)?;
    let counts = folder.join("counts");
    let output = process::command(&valgrind.display().to_string())
        .args(["--tool=callgrind", &format!("--callgrind-out-file={}", counts.display())])
        .args([format!("--toggle-collect={MEASURED}"), format!("--dump-after={MEASURED}")])
        .arg(program)
        .output()
        .context("cannot run valgrind")?;
    if !output.status.success() {
        bail!(
            "valgrind ended with {}:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let names = String::from_utf8_lossy(&output.stdout);
    let case = |(i, name): (usize, &str)| {
        let text = fs::read_to_string(folder.join(format!("counts.{}", i + 1)))
            .with_context(|| format!("nothing was counted of {name}"))?;
        let total =
            text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
        Ok((name.to_owned(), total.with_context(|| format!("no total of {name}"))?))
    };
    let found: Vec<_> = names.lines().enumerate().map(case).collect::<Result<_>>()?;
    ensure!(!found.is_empty(), "the program ran no case");
    ensure!(found.iter().all(|(_, count)| *count > 0), "no instruction was counted: {found:?}");
    Ok(found)
}

#[cfg(test)]
mod tests;
