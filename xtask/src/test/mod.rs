//! `cargo xtask test`: installs what is missing and runs every stage.

mod count;
mod gateway;
mod install;
mod stages;

use std::collections::BTreeSet;
use std::env;
use std::num::NonZero;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use count::{Count, Counter};
use install::{Absent, Installation};
use stages::{BUILD, Need, STAGES, Stage};

use crate::process::{self, End, TOOLS};
use crate::repo;

/// No stage runs longer than this; one that hangs must fail and not hold up what follows.
const STAGE_MAX: Duration = Duration::from_secs(30 * 60);

/// What the command line asks for.
#[derive(Default)]
struct Options {
    list: bool,
    only: Vec<String>,
    skip: Vec<String>,
}

/// A line of the final table.
struct Row {
    name: &'static str,
    seconds: f64,
    count: Count,
    note: String,
}

/// Runs the stages that `args` select.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    let options = parse(args)?;
    if options.list {
        list();
        return Ok(true);
    }
    let stages = select(&options)?;
    let needs: BTreeSet<Need> = stages.iter().flat_map(|stage| stage.needs).copied().collect();
    let start = Instant::now();
    let mut installation = Installation::start(needs);
    let mut rows = Vec::new();
    let mut beside = Vec::new();
    for (i, stage) in stages.iter().enumerate() {
        // What runs beside the others must not fight with a build.
        let builds = stage.is_build() && !beside.is_empty();
        if builds {
            rows.extend(beside.drain(..).map(Beside::join));
        }
        let (absent, runs) = look_for_needs(stage, &mut installation);
        rows.extend(absent);
        match (runs, stage.beside) {
            (false, _) => {}
            (true, true) => beside.push(Beside::start(stage, &installation)),
            (true, false) => rows.push(execute(stage, &installation, process::pass_on)),
        }
        let later = &stages[i + 1..];
        if !later.iter().any(|stage| stage.needs.contains(&Need::Gateway)) {
            installation.stop_gateway();
        }
    }
    rows.extend(beside.into_iter().map(Beside::join));
    Ok(report(&rows, start.elapsed()))
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let names = match arg.as_str() {
            "--list" => {
                options.list = true;
                continue;
            }
            "--only" => &mut options.only,
            "--skip" => &mut options.skip,
            _ => bail!("unknown option {arg:?}; there are --list, --only STAGE and --skip STAGE"),
        };
        let name = args.next().with_context(|| format!("{arg} needs the name of a stage"))?;
        let known = name == BUILD.name || STAGES.iter().any(|stage| stage.name == name);
        ensure!(known, "there is no stage {name:?}; see cargo xtask test --list");
        names.push(name.clone());
    }
    Ok(options)
}

fn list() {
    for stage in STAGES {
        println!("{}: {}\n    {}", stage.name, stage.shows, stage.command);
    }
}

/// The stages to run, with the build of the programs before the first one that uses them.
fn select(options: &Options) -> Result<Vec<Stage>> {
    let wanted = |stage: &&Stage| {
        let named = options.only.iter().any(|name| name == stage.name);
        (options.only.is_empty() || named) && !options.skip.iter().any(|name| name == stage.name)
    };
    let mut stages: Vec<Stage> = STAGES.iter().filter(wanted).cloned().collect();
    if let Some(first) = stages.iter().position(|stage| stage.programs) {
        stages.insert(first, BUILD);
    } else if wanted(&&BUILD) && !options.only.is_empty() {
        stages.push(BUILD);
    }
    ensure!(!stages.is_empty(), "no stage is left to run");
    Ok(stages)
}

/// Waits for what a stage needs; gives the rows of needs that failed or had to be waited for, and whether
/// the stage can run.
fn look_for_needs(stage: &Stage, installation: &mut Installation) -> (Vec<Row>, bool) {
    println!("\n==== {}: {}", stage.name, stage.shows);
    println!("     {}", stage.command);
    let mut rows = Vec::new();
    let waiting = Instant::now();
    for need in stage.needs {
        let Err(absent) = installation.wait(*need) else { continue };
        let (count, note) = match absent {
            Absent::Skip(reason) => (Count::SKIPPED, format!("skipped: {reason}")),
            Absent::Fail(reason) => (Count::FAILED, reason),
        };
        println!("     {note}");
        let row = |name, seconds| Row { name, seconds, count, note: first_line(&note) };
        if *need != Need::Gateway {
            return (vec![row(stage.name, waiting.elapsed().as_secs_f64())], false);
        }
        // Without a gateway everything but its own tests can run.
        rows.push(row("gateway", 0.0));
    }
    let waited = waiting.elapsed().as_secs_f64();
    if waited > 1.0 {
        let note = format!("waited for {:?}", stage.needs);
        rows.push(Row { name: "install", seconds: waited, count: Count::default(), note });
    }
    (rows, true)
}

/// A stage that runs while others do. What it prints is shown when it is waited for.
struct Beside {
    name: &'static str,
    output: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<Row>,
}

impl Beside {
    fn start(stage: &Stage, installation: &Installation) -> Self {
        println!("     runs beside the following stages");
        let output = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&output);
        let keep = move |line: &[u8]| {
            kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(line);
        };
        let (name, command) = (stage.name, command(stage, installation));
        let thread = thread::spawn(move || execute_command(name, command, keep));
        Self { name, output, thread }
    }

    fn join(self) -> Row {
        let row = self.thread.join().unwrap_or_else(|_| Row {
            name: self.name,
            seconds: 0.0,
            count: Count::FAILED,
            note: "the thread that watched it panicked".into(),
        });
        println!("\n==== {} ran beside other stages", self.name);
        process::pass_on(&self.output.lock().unwrap_or_else(PoisonError::into_inner));
        say(&row);
        row
    }
}

fn execute(
    stage: &Stage,
    installation: &Installation,
    show: impl FnMut(&[u8]) + Send + 'static,
) -> Row {
    let row = execute_command(stage.name, command(stage, installation), show);
    say(&row);
    row
}

fn execute_command(
    name: &'static str,
    command: Result<Command>,
    mut show: impl FnMut(&[u8]) + Send + 'static,
) -> Row {
    let start = Instant::now();
    let counter = Arc::new(Mutex::new(Counter::default()));
    let seen = Arc::clone(&counter);
    let end = command.and_then(|command| {
        process::watch(command, STAGE_MAX, move |line| {
            show(line);
            seen.lock().unwrap_or_else(PoisonError::into_inner).line(&process::plain(line));
        })
    });
    let counted = counter.lock().unwrap_or_else(PoisonError::into_inner).total();
    let (succeeded, note) = match end {
        Ok(End::Exited(status)) if status.success() => (true, String::new()),
        Ok(End::Exited(status)) => (false, status.to_string()),
        Ok(End::TimedOut) => (false, format!("ended after {} minutes", STAGE_MAX.as_secs() / 60)),
        Err(error) => (false, format!("{error:#}")),
    };
    let (seconds, count) = (start.elapsed().as_secs_f64(), judge(succeeded, counted));
    Row { name, seconds, count, note }
}

fn say(row: &Row) {
    let verdict = if row.count.failed == 0 { "ok" } else { "FAILED" };
    println!("     {}: {verdict} in {:.1} s", row.name, row.seconds);
    if !row.note.is_empty() {
        println!("     {}", row.note);
    }
}

/// The exit status has the last word: a stage that failed counts at least one failure.
fn judge(succeeded: bool, counted: Option<Count>) -> Count {
    match (succeeded, counted) {
        (true, Some(count)) => count,
        (true, None) => Count::PASSED,
        (false, Some(count)) => Count { failed: count.failed.max(1), ..count },
        (false, None) => Count::FAILED,
    }
}

fn command(stage: &Stage, installation: &Installation) -> Result<Command> {
    let line = stage.long.filter(|_| is_set("LASTGOOD_SLOW")).unwrap_or(stage.command);
    let mut words = line.split_whitespace();
    let program = match words.next().unwrap_or_default() {
        "xtask" => env::current_exe().context("this program's own file")?.display().to_string(),
        "cargo" => process::cargo(),
        program if stage.programs => process::built(program).display().to_string(),
        program => program.to_owned(),
    };
    let mut command = process::command(&program);
    command.args(words).envs(stage.env.iter().copied());
    let tools = repo::root().join(TOOLS).join("bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(env::split_paths(&path).chain([tools])).context("PATH")?;
    command.env("PATH", path);
    if let Some(gateway) = installation.gateway_env() {
        use_gateway(&mut command, stage, gateway);
    }
    if stage.needs.contains(&Need::Nextest) {
        // Many of them wait, for a rank to end or a time to pass.
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        command.env("NEXTEST_TEST_THREADS", (cores * 2).to_string());
        if is_ci() {
            command.env("NEXTEST_PROFILE", "ci");
        }
    }
    Ok(command)
}

/// Lets a stage that needs the gateway use it. Its tests are left out by `.config/nextest.toml`, so that
/// they count as skipped where there is no gateway.
fn use_gateway(command: &mut Command, stage: &Stage, (variable, address): (&str, String)) {
    if !stage.needs.contains(&Need::Gateway) {
        return;
    }
    command.env(variable, address);
    if stage.needs.contains(&Need::Nextest) {
        command.arg("--ignore-default-filter");
    }
}

fn is_ci() -> bool {
    is_set("CI")
}

fn is_set(variable: &str) -> bool {
    env::var(variable).is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}

/// Prints the table and the closing line, and says whether everything is well.
fn report(rows: &[Row], elapsed: Duration) -> bool {
    let mut total = Count::default();
    println!("\n{:<12} {:>8} {:>8} {:>7} {:>8}", "stage", "seconds", "passed", "failed", "skipped");
    for Row { name, seconds, count, note } in rows {
        total.add(*count);
        let Count { passed, failed, skipped } = count;
        let note = first_line(note);
        let line =
            format!("{name:<12} {seconds:>8.1} {passed:>8} {failed:>7} {skipped:>8}  {note}");
        println!("{}", line.trim_end());
    }
    let Count { passed, failed, skipped } = total;
    let seconds = elapsed.as_secs_f64();
    println!("{:<12} {seconds:>8.1} {passed:>8} {failed:>7} {skipped:>8}", "all");
    let refused = is_ci() && skipped > 0;
    if refused {
        println!("CI must skip nothing: {skipped} skipped is a failure here");
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    failed == 0 && passed > 0 && !refused
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
