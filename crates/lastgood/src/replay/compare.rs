//! Where two executions of the same steps part.

use std::collections::BTreeSet;
use std::fmt;

use lastgood_format::Hash;
use lastgood_format::fingerprint::{Change, locate};
use lastgood_format::journal::{Kind, Lane, Value};

use super::state::{State, TensorDigest};
use super::window::Window;

/// What kind of difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// The states differ.
    State,
    /// An event is of another kind than the one in its place.
    Kind,
    /// An event is missing in the second one.
    Missing,
    /// The second one has an event that the first has not.
    Extra,
    /// A step says something else: what went into it, or a number that came out.
    Step,
    /// Other data was read.
    Data,
}

impl Difference {
    const ALL: [Self; 6] =
        [Self::State, Self::Kind, Self::Missing, Self::Extra, Self::Step, Self::Data];

    /// The one with this code.
    #[must_use]
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|difference| difference.code() == code)
    }

    /// The stable code.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::State => "LG-ND-001",
            Self::Kind => "LG-ND-002",
            Self::Missing => "LG-ND-003",
            Self::Extra => "LG-ND-004",
            Self::Step => "LG-ND-005",
            Self::Data => "LG-ND-006",
        }
    }
}

/// One place where two executions differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// What kind of difference.
    pub difference: Difference,
    /// The step.
    pub step: u64,
    /// The logical rank, if it is one rank's.
    pub rank: Option<u32>,
    /// What differs: the member of the step's event, or `component/name` of the tensor.
    pub what: String,
    /// What the first one says.
    pub expected: String,
    /// What the second one says.
    pub actual: String,
    /// The one word of the tensor that differs, if it is one alone.
    pub change: Option<Change>,
}

impl Divergence {
    /// The text of it, where what the second execution says is introduced by `second`.
    #[must_use]
    pub fn told(&self, second: &str) -> String {
        let Self { difference, step, rank, what, expected, actual, change } = self;
        let code = difference.code();
        let rank = rank.map_or_else(String::new, |rank| format!(", rank {rank}"));
        let change = change.map_or_else(String::new, |Change { word, delta }| {
            let bytes = word.saturating_mul(8);
            let (sign, by) = (if delta < 0 { "-" } else { "" }, delta.unsigned_abs());
            format!("; one word alone differs, at byte {bytes}, by {sign}{by:#x}")
        });
        format!("{code}: step {step}{rank}: {what}: recorded {expected}, {second} {actual}{change}")
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told("re-executed"))
    }
}

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Steps of logical ranks that both have.
    pub steps: u64,
    /// The steps whose states both have, in order.
    pub states: Vec<u64>,
    /// Where they differ, in the order of steps.
    pub divergences: Vec<Divergence>,
}

impl Comparison {
    /// The first place where they part.
    #[must_use]
    pub fn first(&self) -> Option<&Divergence> {
        self.divergences.first()
    }
}

/// Members of a step's event that differ between executions without meaning anything.
const INFORMATION: [&str; 2] = ["seconds", "at"];

/// How many divergences are kept: what follows the first ones follows from them.
const KEPT: usize = 64;

/// Compares what is recorded with what was re-executed, step by step: first what each logical rank says, in
/// order, then the state.
#[must_use]
pub fn compare(recorded: &Window, replayed: &Window) -> Comparison {
    let mut comparison = Comparison::default();
    let keys = recorded.steps.keys().chain(replayed.steps.keys()).map(|(step, _)| *step);
    let states = recorded.states.keys().filter(|step| replayed.states.contains_key(step)).copied();
    let steps: BTreeSet<u64> = keys.chain(states).collect();
    let first = steps.first().copied();
    for step in steps {
        compare_step(recorded, replayed, (step, Some(step) == first), &mut comparison);
        if let (Some(a), Some(b)) = (recorded.states.get(&step), replayed.states.get(&step)) {
            comparison.states.push(step);
            comparison.divergences.extend(compare_states(step, a, b));
        }
        if comparison.divergences.len() >= KEPT {
            comparison.divergences.truncate(KEPT);
            break;
        }
    }
    comparison
}

/// Compares one step, the first one that both have if it `is_first`.
pub(super) fn compare_step(
    recorded: &Window,
    replayed: &Window,
    (step, is_first): (u64, bool),
    found: &mut Comparison,
) {
    let of = |window: &Window| -> BTreeSet<Lane> {
        let lanes = window.steps.range((step, Lane::CONTROL)..);
        lanes.take_while(|((at, _), _)| *at == step).map(|((_, lane), _)| *lane).collect()
    };
    let lanes: BTreeSet<Lane> = of(recorded).union(&of(replayed)).copied().collect();
    for lane in lanes {
        let at = (step, lane);
        let here = |difference, what: &str, expected: String, actual: String| Divergence {
            difference,
            step,
            rank: lane.rank(),
            what: what.to_owned(),
            expected,
            actual,
            change: None,
        };
        match (recorded.steps.get(&at), replayed.steps.get(&at)) {
            (Some(a), Some(b)) => {
                found.steps += 1;
                found.divergences.extend(members(a, b).map(|(name, a, b)| {
                    let difference =
                        if name == "data" { Difference::Data } else { Difference::Step };
                    here(difference, &name, a, b)
                }));
            }
            (Some(_), None) => {
                let (a, b) = ("the step".to_owned(), "nothing".to_owned());
                found.divergences.push(here(Difference::Missing, "the step's event", a, b));
            }
            _ => {
                let (a, b) = ("nothing".to_owned(), "the step".to_owned());
                found.divergences.push(here(Difference::Extra, "the step's event", a, b));
            }
        }
        let none = Vec::new();
        let events = |window: &Window| window.events.get(&at).unwrap_or(&none).clone();
        let (a, mut b) = (events(recorded), events(replayed));
        // What a program does when it starts, it does before the first step of its replay too.
        if is_first && b.ends_with(&a) {
            b.clone_from(&a);
        }
        // Events are of a process, which stands in the lane of its first logical rank.
        if recorded.is_of_process(at) == replayed.is_of_process(at) {
            found.divergences.extend(compare_events(&a, &b, &here));
        }
    }
}

/// The members of a step's event that differ.
fn members<'v>(
    a: &'v Value,
    b: &'v Value,
) -> impl Iterator<Item = (String, String, String)> + use<'v> {
    let names = |value: &'v Value| value.as_map().into_iter().flatten().map(|(name, _)| name);
    let all: BTreeSet<&String> = names(a).chain(names(b)).collect();
    all.into_iter().filter(|name| !INFORMATION.contains(&name.as_str())).filter_map(|name| {
        let show = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
        let (of_a, of_b) = (a.get(name), b.get(name));
        (of_a != of_b).then(|| (name.clone(), show(of_a), show(of_b)))
    })
}

fn compare_events(
    a: &[(Kind, Value)],
    b: &[(Kind, Value)],
    here: &impl Fn(Difference, &str, String, String) -> Divergence,
) -> Vec<Divergence> {
    let show = |event: Option<&(Kind, Value)>| {
        event.map_or("nothing".into(), |(kind, value)| format!("{kind} {value}"))
    };
    let differs = |i: usize| {
        let (of_a, of_b) = (a.get(i), b.get(i));
        let difference = match (of_a, of_b) {
            (Some(x), Some(y)) if x == y => return None,
            (Some((x, _)), Some((y, _))) if x != y => Difference::Kind,
            (Some(_), Some(_)) => Difference::Data,
            (Some(_), None) => Difference::Missing,
            _ => Difference::Extra,
        };
        Some(here(difference, "an event", show(of_a), show(of_b)))
    };
    (0..a.len().max(b.len())).find_map(differs).into_iter().collect()
}

/// The digests of two states, of what is compared: what belongs to one rank of another number of ranks is left out.
#[must_use]
pub fn roots(recorded: &State, replayed: &State) -> (Hash, Hash) {
    let alone = Alone::between(recorded, replayed);
    let without = |state: &State, other: &State| {
        let mut state = state.clone();
        state.tensors.retain(|name, _| {
            !alone.has(name) && (!is_of_rank(name) || other.tensors.contains_key(name))
        });
        state.root()
    };
    (without(recorded, replayed), without(replayed, recorded))
}

/// True if a tensor belongs to one rank.
fn is_of_rank((_, name): &(String, String)) -> bool {
    name.contains("@rank")
}

/// What one of two states has for each of several ranks, and the other as a rank alone has it: under its bare name.
struct Alone(BTreeSet<(String, String)>);

impl Alone {
    fn between(one: &State, other: &State) -> Self {
        let bare = |(component, name): &(String, String)| {
            let (bare, _) = name.split_once("@rank")?;
            Some((component.clone(), bare.to_owned()))
        };
        let found = |a: &State, b: &State| -> Vec<(String, String)> {
            let names = a.tensors.keys().filter_map(bare);
            names.filter(|name| b.tensors.contains_key(name)).collect()
        };
        Self(found(one, other).into_iter().chain(found(other, one)).collect())
    }

    /// True of its bare name, and of all that its component has for one rank: the tree names them.
    fn has(&self, name: &(String, String)) -> bool {
        let is_of_component = |(component, _): &(String, String)| *component == name.0;
        self.0.contains(name) || (is_of_rank(name) && self.0.iter().any(is_of_component))
    }
}

/// The tensors that differ. What belongs to one rank of another number of ranks is not compared.
#[must_use]
pub fn compare_states(step: u64, recorded: &State, replayed: &State) -> Vec<Divergence> {
    let names: BTreeSet<_> = recorded.tensors.keys().chain(replayed.tensors.keys()).collect();
    let alone = Alone::between(recorded, replayed);
    let differs = |name: &(String, String)| {
        let (a, b) = (recorded.tensors.get(name), replayed.tensors.get(name));
        if alone.has(name) || (a.is_none() != b.is_none() && is_of_rank(name)) {
            return None;
        }
        let what = |tensor: &TensorDigest| (tensor.dtype, tensor.shape.clone(), tensor.sum);
        if a.map(what) == b.map(what) {
            return None;
        }
        let show = |tensor: Option<&TensorDigest>| {
            tensor.map_or("nothing".into(), |tensor| {
                format!("{} of {:?} with fingerprint {}", tensor.dtype, tensor.shape, tensor.sum)
            })
        };
        let change = match (a, b) {
            (Some(a), Some(b)) if (a.dtype, &a.shape) == (b.dtype, &b.shape) => {
                locate(a.sum - b.sum, a.words())
            }
            _ => None,
        };
        Some(Divergence {
            difference: Difference::State,
            step,
            rank: a.and_then(TensorDigest::odd_replica),
            what: format!("{}/{}", name.0, name.1),
            expected: show(a),
            actual: show(b),
            change,
        })
    };
    names.into_iter().filter_map(differs).collect()
}
