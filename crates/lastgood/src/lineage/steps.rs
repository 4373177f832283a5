//! The steps that led to a state: who did them, what went into them, and what a recovery has overtaken.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use lastgood_format::Result;
use lastgood_format::journal::LaneName;

use super::attempts::Attempt;
use crate::journal::history::{Part, everything};
use crate::journal::read::{Filter, JournalReader, Merged};
use crate::journal::{Frame, Kind, Lane, Value};

/// So many ranges of numbers are kept of a rank's samples, so many events, and so many values of a rate of a rank; more
/// are counted.
const KEPT_MAX: usize = 4096;

/// What became of steps that were done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// They led to the state.
    Led,
    /// Their attempt itself went back to a checkpoint before them.
    Rewound,
    /// A later attempt went on from a checkpoint before them.
    Overtaken,
    /// As overtaken; and by its clock, the attempt wrote them when a later one had already begun.
    Fenced,
    /// A later attempt did them again, on a way that does not lead to the state.
    Later,
}

impl Fate {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Led => "led",
            Self::Rewound => "rewound",
            Self::Overtaken => "overtaken",
            Self::Fenced => "fenced",
            Self::Later => "later",
        }
    }
}

/// Steps that one attempt did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// The attempt.
    pub attempt: u64,
    /// What became of them.
    pub fate: Fate,
    /// Which, in order; one that stands in two ranges was done twice.
    pub steps: Vec<RangeInclusive<u64>>,
}

/// What one logical rank learned from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// The place in its data before the first step, if it records places.
    pub from: Option<Value>,
    /// The place after the last step.
    pub to: Option<Value>,
    /// The numbers of its samples, if it records those.
    pub samples: Option<Samples>,
}

/// Numbers of samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples {
    /// How many, those that came twice counted twice.
    pub count: u64,
    /// The least.
    pub least: u64,
    /// The greatest.
    pub greatest: u64,
    /// All of them as ranges, by their first number; `None` if these are too many to keep.
    pub ranges: Option<BTreeMap<u64, u64>>,
}

/// A value that one logical rank had in some steps that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The steps.
    pub steps: RangeInclusive<u64>,
    /// The value.
    pub value: Value,
}

/// Something that happened on the way to a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// The step that it led to.
    pub step: u64,
    /// In which lane.
    pub lane: Lane,
    /// Of which kind.
    pub kind: Kind,
    /// What it says.
    pub value: Value,
}

/// The digests of the generators of one logical rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generators {
    /// Before the first step.
    pub from: Option<Value>,
    /// After the last step.
    pub to: Option<Value>,
}

/// The steps after a checkpoint up to a state, as the journal tells of them.
#[derive(Clone, Debug)]
pub struct Steps {
    /// Which.
    pub steps: RangeInclusive<u64>,
    /// Who did them; those that led to the state first.
    pub executed: Vec<Executed>,
    /// What each logical rank learned from; empty if nothing is recorded.
    pub inputs: BTreeMap<u32, Input>,
    /// The learning rates of each logical rank.
    pub rates: BTreeMap<u32, Vec<Held>>,
    /// The generators of each logical rank.
    pub generators: BTreeMap<u32, Generators>,
    /// What was read from outside, changed by hand, went wrong or was noted by the program.
    pub events: Vec<Happened>,
    /// How many more events there are than are kept.
    pub more_events: u64,
    /// How many more values of learning rates there are than are kept.
    pub more_rates: u64,
    /// True if the control lane is read, which says of restores what every lane says.
    has_control: bool,
}

impl Steps {
    /// Reads what is recorded of `steps` in the `lanes`, or in all if these are none.
    pub(super) async fn read(
        reader: &JournalReader,
        parts: &[Part],
        steps: RangeInclusive<u64>,
        (lanes, begun): (Vec<Lane>, &BTreeMap<u64, Attempt>),
    ) -> Result<Self> {
        let mut this = Self {
            steps: steps.clone(),
            executed: Vec::new(),
            inputs: BTreeMap::new(),
            rates: BTreeMap::new(),
            generators: BTreeMap::new(),
            events: Vec::new(),
            more_events: 0,
            more_rates: 0,
            has_control: lanes.is_empty(),
        };
        // What led to the first step stands behind the one before.
        let range = Some(steps.start().saturating_sub(1)..=*steps.end());
        let filter = Filter { steps: range, lanes, kinds: Vec::new() };
        let mut led = reader.merged(parts, filter.clone());
        while let Some(frame) = led.next().await? {
            this.add(&frame)?;
        }
        let mut attempts: Vec<u64> = reader.lanes().map(|lane| lane.attempt).collect();
        attempts.dedup();
        let filter = Filter { steps: Some(steps), kinds: vec![Kind::STEP], ..filter };
        let led = reader.merged(parts, filter.clone());
        let all = reader.merged(&everything(attempts), filter);
        this.executed = executed(led, all, (parts, begun)).await?;
        Ok(this)
    }

    /// True if the journal has the step.
    #[must_use]
    pub fn has(&self, step: u64) -> bool {
        let led = self.executed.iter().filter(|executed| executed.fate == Fate::Led);
        led.flat_map(|executed| &executed.steps).any(|steps| steps.contains(&step))
    }

    fn add(&mut self, frame: &Frame) -> Result<()> {
        match frame.kind {
            Kind::STEP => self.step(frame, &frame.value()?),
            Kind::ATTEMPT_BEGUN
            | Kind::ENVIRONMENT
            | Kind::STATE_LAYOUT
            | Kind::STATE_DIGEST
            | Kind::SAVE_CAPTURED
            | Kind::CHECKPOINT_SEEN => {}
            Kind::RESTORED | Kind::REWOUND if self.has_control && frame.lane != Lane::CONTROL => {}
            _ if frame.step >= *self.steps.end() => {}
            _ if self.events.len() >= KEPT_MAX => self.more_events += 1,
            _ => self.events.push(Happened {
                step: frame.step + 1,
                lane: frame.lane,
                kind: frame.kind,
                value: frame.value()?,
            }),
        }
        Ok(())
    }

    fn step(&mut self, frame: &Frame, value: &Value) {
        let Some(rank) = frame.lane.rank() else { return };
        let is_before = frame.step < *self.steps.start();
        if let Some(rng) = value.get("rng") {
            let generators = self.generators.entry(rank).or_default();
            let place = if is_before { &mut generators.from } else { &mut generators.to };
            *place = Some(rng.clone());
        }
        if let Some(data) = value.get("data") {
            self.inputs.entry(rank).or_default().add(data, is_before);
        }
        let Some(rate) = value.get("lr").filter(|_| !is_before) else { return };
        let rates = self.rates.entry(rank).or_default();
        let is_full = rates.len() >= KEPT_MAX;
        match rates.last_mut() {
            Some(last) if last.value == *rate => {
                last.steps = *last.steps.start()..=frame.step;
            }
            _ if is_full => self.more_rates += 1,
            _ => rates.push(Held { steps: frame.step..=frame.step, value: rate.clone() }),
        }
    }
}

impl Input {
    fn add(&mut self, data: &Value, is_before: bool) {
        let numbers = data.as_array().map(|all| all.iter().map(Value::as_u64));
        let numbers = numbers.and_then(|all| all.collect::<Option<Vec<u64>>>());
        match numbers {
            Some(_) if is_before => {}
            Some(numbers) => {
                for number in numbers {
                    let fresh = Samples::new(number);
                    self.samples.get_or_insert(fresh).add(number);
                }
            }
            None if is_before => self.from = Some(data.clone()),
            None => self.to = Some(data.clone()),
        }
    }
}

impl Samples {
    fn new(first: u64) -> Self {
        Self { count: 0, least: first, greatest: first, ranges: Some(BTreeMap::new()) }
    }

    fn add(&mut self, number: u64) {
        self.count += 1;
        (self.least, self.greatest) = (self.least.min(number), self.greatest.max(number));
        let Some(ranges) = &mut self.ranges else { return };
        let before = ranges.range(..=number).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| last >= number) {
            return;
        }
        let first = match before {
            Some((first, last)) if last + 1 == number => first,
            _ => number,
        };
        let behind = number.checked_add(1).and_then(|next| ranges.remove(&next));
        ranges.insert(first, behind.unwrap_or(number));
        if ranges.len() > KEPT_MAX {
            self.ranges = None;
        }
    }
}

/// Who did the steps of `all`; `led` are those of them that led to the state, in the same order.
async fn executed(
    mut led: Merged,
    mut all: Merged,
    (parts, begun): (&[Part], &BTreeMap<u64, Attempt>),
) -> Result<Vec<Executed>> {
    let mut found: BTreeMap<(Fate, u64), Vec<RangeInclusive<u64>>> = BTreeMap::new();
    let mut next = led.next().await?;
    while let Some(frame) = all.next().await? {
        let place = |frame: &Frame| (frame.attempt, frame.lane, frame.sequence);
        let fate = if next.as_ref().is_some_and(|next| place(next) == place(&frame)) {
            next = led.next().await?;
            Fate::Led
        } else {
            fate_of(&frame, parts, begun)
        };
        let ranges = found.entry((fate, frame.attempt)).or_default();
        match ranges.last_mut() {
            Some(last) if last.contains(&frame.step) => {}
            Some(last) if *last.end() + 1 == frame.step => *last = *last.start()..=frame.step,
            _ => ranges.push(frame.step..=frame.step),
        }
    }
    let executed = found.into_iter();
    Ok(executed.map(|((fate, attempt), steps)| Executed { attempt, fate, steps }).collect())
}

/// Why a frame is no part of the history.
fn fate_of(frame: &Frame, parts: &[Part], begun: &BTreeMap<u64, Attempt>) -> Fate {
    let before_the_end = |part: &Part| match &part.until {
        None => true,
        Some(cut) => {
            cut.lanes.get(&LaneName(frame.lane)).is_some_and(|end| frame.sequence < end.next)
        }
    };
    if parts.iter().any(|part| part.attempt == frame.attempt && before_the_end(part)) {
        return Fate::Rewound;
    }
    if parts.last().is_some_and(|last| frame.attempt > last.attempt) {
        return Fate::Later;
    }
    let written = SystemTime::UNIX_EPOCH + Duration::from_millis(frame.clock >> 16);
    let later = begun.get(&(frame.attempt + 1));
    match later {
        Some(later) if later.at <= written => Fate::Fenced,
        _ => Fate::Overtaken,
    }
}

#[cfg(test)]
mod tests;
