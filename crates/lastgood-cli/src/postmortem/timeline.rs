//! The moments of an incident as a drawing.

use maud::{Markup, html};

use super::facts::{Attempt, Facts, Mark};

const WIDTH: f64 = 920.0;
const MARGIN: f64 = 90.0;
const ROW: f64 = 46.0;

/// A line of time for each attempt.
pub(super) fn timeline(facts: &Facts) -> Markup {
    let begin = facts.moments.first().map_or(facts.failed.started, |moment| moment.at);
    let end = facts.moments.last().map_or(facts.next.ended, |moment| moment.at).max(begin + 1);
    let x = |at: u64| {
        let share = at.clamp(begin, end).saturating_sub(begin) as f64 / (end - begin) as f64;
        format!("{:.1}", MARGIN + share * (WIDTH - MARGIN - 20.0))
    };
    let y = |attempt: u64| if attempt == facts.next.number { ROW * 1.5 } else { ROW * 0.5 };
    let bar = |attempt: &Attempt, class: &str| {
        let (from, to) = (x(attempt.started), x(attempt.ended));
        let y = y(attempt.number).to_string();
        html! {
            text x="0" y=(y) dy="4" { "attempt " (attempt.number) }
            line class=(class) x1=(from) y1=(y) x2=(to) y2=(y) {}
        }
    };
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {}", ROW * 2.0)) role="img" aria-label="timeline" {
            (bar(&facts.failed, "failed"))
            (bar(&facts.next, "next"))
            @for moment in &facts.moments {
                @let y = y(moment.attempt.max(facts.failed.number));
                g {
                    title { (super::page::time(moment.at)) " " (moment.what) }
                    circle class=(class(moment.mark)) cx=(x(moment.at)) cy=(y) r="5" {}
                }
            }
        }
    }
}

pub(super) fn class(mark: Mark) -> &'static str {
    match mark {
        Mark::Attempt => "attempt",
        Mark::Checkpoint => "checkpoint",
        Mark::Step => "step",
        Mark::Fault => "fault",
        Mark::Decision => "decision",
    }
}
