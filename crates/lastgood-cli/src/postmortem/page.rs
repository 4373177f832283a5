//! The page.

use std::time::{Duration, SystemTime};

use lastgood::certificate::{Certificate, PublicKey};
use lastgood::journal::Lane;
use lastgood::preflight::Report;
use lastgood::replay::compare::Comparison;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::facts::Facts;
use super::timeline::{class, timeline};

const STYLE: &str = include_str!("page.css");

/// How many moments are listed: of a long attempt, those around the incident.
const MOMENTS_MAX: usize = 60;

/// The facts as one HTML file, which needs nothing else.
pub(crate) fn page(facts: &Facts) -> String {
    let title = format!("Run {}: the end of attempt {}", facts.run, facts.failed.number);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                p.of { "Repository " (facts.repository) " at " code { (facts.store) } }
                (summary(facts))
                h2 { "What happened" }
                (timeline(facts))
                (moments(facts))
                h2 { "Which checkpoint, and why" }
                (candidates(facts))
                h2 { "What was lost, and done again" }
                (lost(facts))
                h2 { "Before the restore" }
                (preflights(&facts.preflights))
                h2 { "Certificate" }
                (certificate(facts.certificate.as_ref()))
                footer { "Made by lastgood " (env!("CARGO_PKG_VERSION")) " from the ledger and the journal." }
            }
        }
    };
    page.into_string()
}

/// An instant of the ledger or the journal.
pub(super) fn time(at: u64) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at);
    humantime::format_rfc3339_millis(at).to_string()
}

fn duration(milliseconds: Option<u64>) -> String {
    milliseconds.map_or_else(
        || "not recorded".to_owned(),
        |ms| humantime::format_duration(Duration::from_millis(ms)).to_string(),
    )
}

fn summary(facts: &Facts) -> Markup {
    let lost = facts.lost().map_or_else(|| "not recorded".to_owned(), |steps| steps.to_string());
    html! {
        table.summary {
            tr { th { "Cause" } td {
                @if facts.causes.is_empty() { "not recorded: no supervisor told the ledger" }
                @for cause in &facts.causes { div { (cause) } }
            } }
            tr { th { "Went on from" } td {
                @match &facts.chosen {
                    Some(checkpoint) => { "step " (checkpoint.step) ", checkpoint " code { (checkpoint.id) } }
                    None => { "the beginning" }
                }
            } }
            tr { th { "Ranks" } td { (facts.failed.world_size) " before, " (facts.next.world_size) " after" } }
            tr { th { "Steps lost" } td { (lost) } }
            tr { th { "Done again" } td { (facts.done_again()) } }
            tr { th { "From the last step to the next" } td { (duration(facts.down())) } }
            tr { th { "Until the work was made up for" } td { (duration(facts.behind())) } }
        }
    }
}

fn moments(facts: &Facts) -> Markup {
    let left_out = facts.moments.len().saturating_sub(MOMENTS_MAX);
    // Those around the turn from one attempt to the next.
    let turn = facts.moments.partition_point(|moment| moment.at < facts.next.started);
    let first = turn.saturating_sub(MOMENTS_MAX / 2).min(left_out);
    html! {
        @if left_out > 0 { p { (left_out) " moments further away are in `lastgood log`." } }
        table {
            tr { th { "Time (UTC)" } th { "Attempt" } th { "What" } }
            @for moment in facts.moments.iter().skip(first).take(MOMENTS_MAX) {
                tr {
                    td.time { (time(moment.at)) }
                    td { @if moment.attempt > 0 { (moment.attempt) } }
                    td { span.dot.(class(moment.mark)) {} " " (moment.what) }
                }
            }
        }
    }
}

fn candidates(facts: &Facts) -> Markup {
    html! {
        p { "Recovery takes the newest good checkpoint, else the newest verified one, else the newest that is committed; a \
             bad one never. This is what the ledger said when the next attempt started." }
        table {
            tr { th { "Step" } th { "Checkpoint" } th { "Attempt" } th { "Committed" } th { "Standing then" } }
            @for (checkpoint, why) in &facts.candidates {
                tr.taken[facts.chosen.as_ref().is_some_and(|chosen| chosen.id == checkpoint.id)] {
                    td { (checkpoint.step) }
                    td { code { (checkpoint.id.short()) } }
                    td { (checkpoint.attempt) }
                    td.time { (checkpoint.at) }
                    td { (why) }
                }
            }
        }
        @if facts.candidates.is_empty() { p { "There was no checkpoint." } }
    }
}

fn lost(facts: &Facts) -> Markup {
    let range = |from: u64, to: Option<(u64, u64)>| match to {
        Some((to, _)) if to > from => format!("steps {} to {to}", from + 1),
        _ => "none".to_owned(),
    };
    html! {
        p { "Done when it ended, and not in the checkpoint: " (range(facts.base_step(), facts.failed.last)) ". " }
        @match &facts.again {
            None => p { "Nothing that was recorded of them was recorded again." },
            Some(comparison) => (compared(comparison)),
        }
    }
}

fn compared(comparison: &Comparison) -> Markup {
    html! {
        @if comparison.divergences.is_empty() {
            p.equal { (comparison.steps) " step records of both attempts are equal to the bit." }
        } @else {
            p.differs { "They differ, first here:" }
            ul { @for divergence in comparison.divergences.iter().take(5) { li { (divergence) } } }
        }
    }
}

fn preflights(reports: &[(Lane, Report)]) -> Markup {
    html! {
        @if reports.is_empty() { p { "No rank recorded what it found." } }
        @else {
            table {
                tr { th { "Rank" } th { "Environment" } th { "Verdict" } th { "What differed" } }
                @for (lane, report) in reports {
                    tr {
                        td { (lane) }
                        td { (report.environment.name()) }
                        td { (report.verdict().name()) }
                        td {
                            @for finding in &report.findings { div { (finding)
                                @if let Some(why) = &finding.accepted { "; accepted: " (why) } } }
                            @for problem in &report.problems { div { (problem) } }
                        }
                    }
                }
            }
        }
    }
}

fn certificate(certificate: Option<&(Certificate, PublicKey)>) -> Markup {
    html! {
        @match certificate {
            None => p { "None was given. `lastgood prove` makes one: it recovers, runs the steps again, compares and \
                         signs." },
            Some((certificate, signer)) => {
                p.equal[certificate.verdict == "proven"].differs[certificate.verdict == "diverged"] {
                    (certificate.verdict) ": steps " (certificate.from_step + 1) " to " (certificate.to) " at level "
                    (certificate.achieved.as_deref().unwrap_or("none")) " (" (certificate.claimed) " was claimed)"
                }
                table {
                    tr { th { "Signed by" } td { code { (signer.digits()) } } }
                    tr { th { "Made" } td { (certificate.at) } }
                    tr { th { "At ledger entry" } td { (certificate.ledger.entries) } }
                    @for pair in &certificate.states {
                        tr {
                            th { "State of step " (pair.step) " (" (pair.source) ")" }
                            td { code { (pair.recorded) } br; code { (pair.replayed) } }
                        }
                    }
                }
            }
        }
    }
}
