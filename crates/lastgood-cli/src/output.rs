//! What goes to the terminal: data to stdout, everything else to stderr.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use lastgood::Error;
use lastgood::branch::Origin;
use serde::Serialize;
use serde_json::json;

use crate::exit::{Exit, code_of};

/// Set when a line of data did not come out.
static LOST: AtomicBool = AtomicBool::new(false);

/// Writes a line of data. A reader that closed the pipe has seen enough: that is no error. Whatever else
/// keeps a line from coming out ends the command with a failure, see [`lost`].
pub(crate) fn line(text: impl std::fmt::Display) {
    bytes(format!("{text}\n").as_bytes());
}

/// As [`line()`], for bytes that end a line themselves.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_all(bytes).and_then(|()| out.flush())
        && error.kind() != ErrorKind::BrokenPipe
    {
        LOST.store(true, Ordering::Relaxed);
    }
}

/// True if a line of data did not come out.
pub(crate) fn lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// Writes a note for the person at the terminal.
pub(crate) fn note(text: impl std::fmt::Display) {
    let mut err = io::stderr().lock();
    let _ = writeln!(err, "{text}");
}

/// Writes data as one line of JSON.
///
/// # Errors
/// If the data cannot be written as JSON.
pub(crate) fn json(data: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string(data)?);
    Ok(())
}

/// Writes an error to stderr: for a person, or as JSON.
pub(crate) fn report(error: &anyhow::Error, as_json: bool) {
    let known = error.downcast_ref::<Error>();
    if as_json {
        let exit = code_of(error) as u8;
        return note(match known {
            Some(e) => json!({"error": {"exit": exit, "code": e.code(), "kind": e.kind().name(),
                "message": e.message(), "object": e.object(), "remedy": e.remedy(),
                "causes": e.causes().iter().map(ToString::to_string).collect::<Vec<_>>()}}),
            None => plain("failed", Exit::Failed, &format!("{error:#}")),
        });
    }
    match known {
        Some(e) => note(format!("error[{}]: {e}", e.code())),
        None => note(format!("error: {error:#}")),
    }
}

/// Writes what is wrong with the arguments to stderr as JSON.
pub(crate) fn report_usage(message: &str) {
    note(plain("usage", Exit::Usage, message));
}

/// An error that none of lastgood's codes names.
fn plain(kind: &str, exit: Exit, message: &str) -> serde_json::Value {
    json!({"error": {"exit": exit as u8, "code": null, "kind": kind, "message": message,
        "object": null, "remedy": null, "causes": []}})
}

/// A bar with a time left on stderr for work on so many bytes; nothing when stderr is no terminal.
pub(crate) fn bar(what: &str, bytes: u64, quiet: bool) -> ProgressBar {
    let template = "{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, {eta} left";
    bar_of(what, bytes, template, quiet)
}

/// As [`bar()`], for so many steps.
pub(crate) fn step_bar(what: &str, steps: u64) -> ProgressBar {
    bar_of(what, steps, "{msg} [{bar:30}] {pos}/{len} steps, {eta} left", false)
}

fn bar_of(what: &str, count: u64, template: &str, quiet: bool) -> ProgressBar {
    if quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(count);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A sign of life on stderr for work of which nobody knows how long it takes.
pub(crate) fn spinner(what: &str, quiet: bool) -> ProgressBar {
    if quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{msg} {spinner} {elapsed}") {
        spinner.set_style(style);
    }
    spinner.set_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}

/// Columns as wide as their widest cell.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    let mut table =
        Rows { held_max: usize::MAX, ..Rows::new(head.iter().map(ToString::to_string)) };
    rows.iter().for_each(|row| table.push(row.clone()));
    table.finish();
}

/// A table whose rows are printed as they come. The first ones are held back until it is known how wide columns are; a
/// later cell that is wider shifts its line.
#[derive(Debug)]
pub(crate) struct Rows {
    held: Vec<Vec<String>>,
    held_max: usize,
    /// Empty until rows are printed.
    widths: Vec<usize>,
}

impl Rows {
    /// So many rows say how wide columns are.
    const HELD_MAX: usize = 1000;

    pub(crate) fn new(head: impl IntoIterator<Item = String>) -> Self {
        let head = head.into_iter().map(|name| cell(&name)).collect();
        Self { held: vec![head], held_max: Self::HELD_MAX, widths: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: Vec<String>) {
        let row: Vec<String> = row.iter().map(|text| cell(text)).collect();
        if !self.widths.is_empty() {
            return self.show(&row);
        }
        self.held.push(row);
        if self.held.len() > self.held_max {
            self.finish();
        }
    }

    /// Prints what is held back.
    pub(crate) fn finish(&mut self) {
        let held = std::mem::take(&mut self.held);
        for row in &held {
            self.widths.resize(row.len(), 0);
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        held.iter().for_each(|row| self.show(row));
    }

    fn show(&self, row: &[String]) {
        let padded: Vec<String> =
            row.iter().zip(&self.widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line(padded.join("  ").trim_end());
    }
}

/// A name may hold line feeds and what a terminal obeys, and be as long as a book.
fn cell(text: &str) -> String {
    const SHOWN: usize = 100;
    let mut shown = String::new();
    for c in text.chars().take(SHOWN) {
        match c.is_control() {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// `1 rank`, `2 ranks` and the like.
pub(crate) fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Where a branch comes from.
pub(crate) fn origin(origin: &Origin) -> String {
    let Origin { run, from, from_step, step, .. } = origin;
    let from = match from {
        Some(id) => format!("from step {from_step} ({})", id.short()),
        None => "from the beginning".to_owned(),
    };
    format!("step {step} of run {run}, re-executed {from}")
}

/// `1.5 GB` and the like, in powers of ten.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}
