//! What came of attempts that went on by a replay.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use lastgood_format::journal::{Frame, Kind, Value};
use lastgood_format::{Error, Result};

use crate::journal::history::everything;
use crate::journal::read::{Filter, JournalReader};
use crate::ledger::Ledger;
use crate::replay::compare::{Difference, Divergence, compare_states};
use crate::replay::window::Window;
use crate::repository::Repository;

/// What came of the steps that one attempt did again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// The attempt.
    pub attempt: u64,
    /// The attempt that had recorded them; if ranks went by several, the newest.
    pub recorded_by: u64,
    /// The step before the first one that was done again.
    pub from_step: u64,
    /// The last one: behind it the attempt was live, unless it came apart.
    pub to: u64,
    /// The steps whose states both attempts have recorded, and which were compared.
    pub states: Vec<u64>,
    /// Where they came to something else, in the order of steps.
    pub divergences: Vec<Divergence>,
}

/// What came of those of `attempts` that went on by a replay and had something to do again.
///
/// # Errors
/// `Corrupt` if an event is damaged or says what none says; `Unavailable`, `Denied`.
pub fn resumed(
    repository: &Repository,
    ledger: &Ledger,
    attempts: RangeInclusive<u64>,
) -> Result<Vec<Resumed>> {
    let reader = repository.journal(ledger.run())?;
    let mut found = repository.block_on(told(&reader, attempts))?;
    for one in found.iter_mut().filter(|one| one.divergences.is_empty()) {
        let steps = one.from_step + 1..=one.to;
        let of = |attempt| Window::of_attempt(repository, &reader, attempt, steps.clone());
        let (recorded, again) = (of(one.recorded_by)?, of(one.attempt)?);
        for (step, state) in &recorded.states {
            if let Some(here) = again.states.get(step) {
                one.states.push(*step);
                one.divergences.extend(compare_states(*step, state, here));
            }
        }
    }
    Ok(found)
}

async fn told(reader: &JournalReader, attempts: RangeInclusive<u64>) -> Result<Vec<Resumed>> {
    let kinds = vec![Kind::RESUMED, Kind::DIVERGED];
    let mut events = reader.merged(&everything(attempts), Filter { kinds, ..Filter::default() });
    let mut found: BTreeMap<u64, Resumed> = BTreeMap::new();
    while let Some(frame) = events.next().await? {
        let value = frame.value()?;
        let unclear = || Error::corrupt(format!("{} is not understood", frame.place()));
        let number = |name| value.get(name).and_then(Value::as_u64).ok_or_else(unclear);
        let recorded_by = number("attempt")?;
        let (from_step, to, divergence) = match frame.kind {
            Kind::RESUMED => (number("from_step")?, number("to")?, None),
            _ => {
                let divergence = divergence(&frame, &value).ok_or_else(unclear)?;
                (divergence.step.saturating_sub(1), divergence.step, Some(divergence))
            }
        };
        let one = found.entry(frame.attempt).or_insert_with(|| Resumed {
            attempt: frame.attempt,
            recorded_by,
            from_step,
            to,
            states: Vec::new(),
            divergences: Vec::new(),
        });
        one.recorded_by = one.recorded_by.max(recorded_by);
        one.from_step = one.from_step.min(from_step);
        one.to = one.to.max(to);
        one.divergences.extend(divergence);
    }
    Ok(found.into_values().collect())
}

fn divergence(frame: &Frame, value: &Value) -> Option<Divergence> {
    let text = |name| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let rank = value.get("rank").and_then(Value::as_u64);
    Some(Divergence {
        difference: Difference::from_code(&text("code")?)?,
        step: value.get("at").and_then(Value::as_u64).unwrap_or(frame.step),
        rank: rank.and_then(|rank| rank.try_into().ok()),
        what: text("what")?,
        expected: text("recorded")?,
        actual: text("found")?,
        change: None,
    })
}
