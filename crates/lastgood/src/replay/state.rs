//! Fingerprints of a whole state: put together from what ranks have recorded, or found in a checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use lastgood_format::journal::{Frame, Lane, Value};
use lastgood_format::layout::NdBox;
use lastgood_format::{Dtype, Error, Fingerprint, Hash, Result};

use crate::repository::Repository;
use crate::restore::Contents;
use crate::state::{Durability, Targets, World};

/// One tensor of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDigest {
    /// The element type.
    pub dtype: Dtype,
    /// The global shape.
    pub shape: Vec<u64>,
    /// The fingerprint of the whole tensor: of the lowest rank that told it, if several told the whole.
    pub sum: Fingerprint,
    /// The fingerprint that each rank has of a tensor that every rank holds, if each told it.
    pub replicas: BTreeMap<u32, Fingerprint>,
}

impl TensorDigest {
    /// The number of words of 8 bytes.
    #[must_use]
    pub fn words(&self) -> u64 {
        let elements = self.shape.iter().try_fold(1u64, |all, size| all.checked_mul(*size));
        let bytes = elements.and_then(|elements| self.dtype.bytes_of(elements));
        bytes.unwrap_or(u64::MAX).div_ceil(8)
    }

    /// A rank whose replica differs from that of most.
    #[must_use]
    pub fn odd_replica(&self) -> Option<u32> {
        let count =
            |sum: &Fingerprint| self.replicas.values().filter(|other| *other == sum).count();
        let most = self.replicas.values().max_by_key(|sum| count(sum))?;
        self.replicas.iter().find(|(_, sum)| *sum != most).map(|(rank, _)| *rank)
    }
}

/// Every tensor and value of a state, by component and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The tensors.
    pub tensors: BTreeMap<(String, String), TensorDigest>,
}

impl State {
    /// One hash of all of it: of names, dtypes, shapes and fingerprints.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut text = String::new();
        for ((component, name), tensor) in &self.tensors {
            let TensorDigest { dtype, shape, sum, .. } = tensor;
            text.push_str(&format!("{component:?} {name:?} {dtype} {shape:?} {sum}\n"));
        }
        Hash::of(text.as_bytes())
    }

    /// That of a checkpoint, from its bytes, each verified.
    ///
    /// # Errors
    /// As [`Repository::restore`].
    pub fn of_checkpoint(repository: &Repository, contents: &Contents) -> Result<Self> {
        let mut state = Self::default();
        let mut targets = Targets::new(World::ALONE);
        targets.partial();
        for (name, info) in contents.tensors().iter().filter(|(_, info)| info.tied_to.is_none()) {
            let digest = TensorDigest {
                dtype: info.dtype,
                shape: info.shape.clone(),
                sum: Fingerprint::ZERO,
                replicas: BTreeMap::new(),
            };
            state.tensors.insert(name.clone(), digest);
        }
        let mut by_component: BTreeMap<&str, Vec<(&str, &mut TensorDigest)>> = BTreeMap::new();
        for ((component, name), digest) in &mut state.tensors {
            by_component.entry(component).or_default().push((name, digest));
        }
        for (component, tensors) in by_component {
            let mut slots = targets.component(component, "replay", Durability::Durable)?;
            for (name, digest) in tensors {
                let (dtype, shape) = (digest.dtype, digest.shape.clone());
                let place = move |bytes: Vec<u8>| {
                    digest.sum = Fingerprint::of(&bytes);
                    Ok(())
                };
                match dtype {
                    Dtype::Blob => slots.blob(name, place)?,
                    _ => slots.apply(name, dtype, &shape, NdBox::whole(&shape), place)?,
                }
            }
        }
        repository.restore(contents, targets)?;
        Ok(state)
    }
}

/// A tensor of a layout.
#[derive(Clone, Debug)]
struct Named {
    name: (String, String),
    dtype: Dtype,
    shape: Vec<u64>,
    is_replicated: bool,
}

/// Parts of digests on their way to whole states.
#[derive(Debug, Default)]
pub(crate) struct Table {
    layouts: BTreeMap<(u64, Lane, Vec<u8>), Vec<Named>>,
    /// How many processes each attempt has.
    worlds: BTreeMap<u64, u64>,
    /// By step and attempt; in parts before whole.
    states: BTreeMap<(u64, u64, bool), Growing>,
    /// The one tensor that is wanted; `None` for all.
    only: Option<(String, String)>,
}

/// A state that is put together.
#[derive(Debug, Default)]
struct Growing {
    state: State,
    /// The parts that each lane has told.
    told: BTreeMap<Lane, BTreeSet<u64>>,
    /// The lanes that have told all their parts.
    done: BTreeSet<Lane>,
}

impl Table {
    /// One that keeps nothing but the digests of `tensor`, so that it stays small whatever the state is.
    pub(crate) fn of(tensor: (String, String)) -> Self {
        Self { only: Some(tensor), ..Self::default() }
    }

    pub(crate) fn begin(&mut self, frame: &Frame, value: &Value) {
        if let Some(world) = value.get("world").and_then(Value::as_u64) {
            self.worlds.insert(frame.attempt, world);
        }
    }

    pub(crate) fn layout(&mut self, frame: &Frame, value: &Value) -> Result<()> {
        let unclear = || Error::corrupt(format!("{} is not understood", frame.place()));
        let layout = value.get("layout").and_then(Value::as_bytes).ok_or_else(unclear)?;
        let tensors = value.get("tensors").and_then(Value::as_array).ok_or_else(unclear)?;
        let of = self.layouts.entry((frame.attempt, frame.lane, layout.to_vec())).or_default();
        for tensor in tensors {
            of.push(named(tensor).ok_or_else(unclear)?);
        }
        Ok(())
    }

    pub(crate) fn digest(&mut self, frame: &Frame, value: &Value, at: u64) -> Result<()> {
        let unclear = || Error::corrupt(format!("{} is not understood", frame.place()));
        let layout = value.get("layout").and_then(Value::as_bytes).ok_or_else(unclear)?;
        let sums = value.get("sums").and_then(Value::as_bytes).ok_or_else(unclear)?;
        let number = |name| value.get(name).and_then(Value::as_u64).ok_or_else(unclear);
        let (part, parts) = (number("part")?, number("parts")?);
        let is_whole = value.get("source").and_then(Value::as_str) == Some("whole");
        let layout = self.layouts.get(&(frame.attempt, frame.lane, layout.to_vec()));
        let layout = layout.ok_or_else(|| {
            Error::corrupt(format!("{} is of tensors that nothing before it names", frame.place()))
        })?;
        let growing = self.states.entry((at, frame.attempt, is_whole)).or_default();
        let of_lane = growing.told.entry(frame.lane).or_default();
        // The step was saved twice: the later one counts.
        if of_lane.contains(&part) {
            return Ok(());
        }
        of_lane.insert(part);
        // Every part but the last is as long as the first.
        let begin = if part == 0 { 0 } else { layout.len().saturating_sub(sums.len() / 16) };
        let begin = if part + 1 == parts { begin } else { part as usize * (sums.len() / 16) };
        let wanted = |named: &Named| self.only.as_ref().is_none_or(|only| *only == named.name);
        let all = layout.iter().skip(begin).zip(sums.chunks_exact(16));
        for (named, sum) in all.filter(|(named, _)| wanted(named)) {
            let sum = <[u8; 16]>::try_from(sum).ok().and_then(Fingerprint::from_bytes);
            add(&mut growing.state, named, sum.ok_or_else(unclear)?, is_whole, frame.lane);
        }
        if of_lane.len() as u64 == parts {
            growing.done.insert(frame.lane);
        }
        Ok(())
    }

    /// The states that every process has told all of; what was told whole before what was told in parts.
    pub(crate) fn finish(self) -> BTreeMap<u64, State> {
        let mut states = BTreeMap::new();
        for ((at, attempt, _), growing) in self.states {
            let told = growing.done.len() as u64;
            if self.worlds.get(&attempt).is_some_and(|world| told >= *world) {
                states.insert(at, growing.state);
            }
        }
        states
    }
}

fn named(tensor: &Value) -> Option<Named> {
    let [component, name, dtype, shape, is_replicated] = tensor.as_array()? else { return None };
    Some(Named {
        name: (component.as_str()?.to_owned(), name.as_str()?.to_owned()),
        dtype: dtype.as_str()?.parse().ok()?,
        shape: shape.as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?,
        is_replicated: *is_replicated == Value::Bool(true),
    })
}

fn add(state: &mut State, named: &Named, sum: Fingerprint, is_whole: bool, lane: Lane) {
    let Named { name, dtype, shape, is_replicated } = named;
    let fresh = || TensorDigest {
        dtype: *dtype,
        shape: shape.clone(),
        sum: Fingerprint::ZERO,
        replicas: BTreeMap::new(),
    };
    let digest = state.tensors.entry(name.clone()).or_insert_with(fresh);
    if !(is_whole && *is_replicated) {
        digest.sum += sum;
        return;
    }
    if digest.replicas.is_empty() {
        digest.sum = sum;
    }
    digest.replicas.insert(lane.rank().unwrap_or_default(), sum);
}
