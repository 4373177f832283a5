//! What goes to the terminal: data to stdout, everything else to stderr.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use lastgood::Error;
use serde::Serialize;
use serde_json::json;

/// Writes a line of data. A reader that closed the pipe has seen enough: that is no error.
pub(crate) fn line(text: impl std::fmt::Display) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}");
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
        let body = match known {
            Some(e) => json!({"error": {"code": e.code(), "kind": e.kind().name(),
                "message": e.message(), "object": e.object(), "remedy": e.remedy(),
                "causes": e.causes().iter().map(ToString::to_string).collect::<Vec<_>>()}}),
            None => json!({"error": {"message": format!("{error:#}")}}),
        };
        note(body);
        return;
    }
    match known {
        Some(e) => note(format!("error[{}]: {e}", e.code())),
        None => note(format!("error: {error:#}")),
    }
}

/// A bar with a time left on stderr; nothing when stderr is no terminal.
pub(crate) fn bar(what: &str, quiet: bool) -> ProgressBar {
    if quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Columns as wide as their widest cell.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    let widths: Vec<usize> = (0..head.len())
        .map(|i| {
            let cells = rows.iter().map(|row| row[i].chars().count());
            cells.chain([head[i].len()]).max().unwrap_or(0)
        })
        .collect();
    let show = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line(padded.join("  ").trim_end());
    };
    show(head.to_vec());
    for row in rows {
        show(row.iter().map(String::as_str).collect());
    }
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
