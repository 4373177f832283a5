//! Chunks that an optimizer makes of each other: laid out alike, so that one predicts the other element by element.

use std::collections::BTreeMap;

use lastgood_format::Dtype;
use lastgood_format::layout::NdBox;

use crate::state::{Capture, Name, Optimizer, Piece, Role, Update};

/// The tensor of a weight and those that the optimizer keeps for it, as numbers of pieces, or of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Members {
    pub(crate) weight: usize,
    pub(crate) first: usize,
    pub(crate) second: Option<usize>,
}

impl Members {
    pub(crate) fn of(&self, role: Role) -> Option<usize> {
        match role {
            Role::Weight => Some(self.weight),
            Role::First => Some(self.first),
            Role::Second => self.second,
        }
    }

    pub(crate) fn each_mut(&mut self) -> impl Iterator<Item = (Role, &mut usize)> {
        let Self { weight, first, second } = self;
        [(Role::Weight, Some(weight)), (Role::First, Some(first)), (Role::Second, second.as_mut())]
            .into_iter()
            .filter_map(|(role, number)| Some((role, number?)))
    }

    /// Each with its role.
    pub(crate) fn each(&self) -> impl Iterator<Item = (Role, usize)> {
        [Role::Weight, Role::First, Role::Second]
            .into_iter()
            .filter_map(|role| Some((role, self.of(role)?)))
    }
}

/// An optimizer with the numbers of a step, and how many it has taken.
pub(crate) type Step = (Optimizer, u64);

/// Members that were changed with the same numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Linked {
    pub(crate) step: Step,
    pub(crate) members: Members,
}

/// What a row is for the optimizer that changed it, and with which others.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RowRole {
    pub(crate) role: Role,
    pub(crate) step: Step,
    pub(crate) rows: Members,
}

/// The parts of the state that optimizers changed, as pieces of a capture.
#[derive(Debug, Default)]
pub(crate) struct Updates {
    /// Those that fill chunks of their own.
    pub(crate) large: Vec<Linked>,
    /// Those that share chunks: each group one chunk for the weights, and one for each of what the optimizer keeps. Which do
    /// must not depend on how many steps each has taken, which changes.
    pub(crate) groups: Vec<Vec<Linked>>,
}

impl Updates {
    /// Those updates of which this rank stores every part, in pieces of the same place.
    pub(crate) fn new(capture: &Capture<'_>, stores: &[bool], chunk_bytes: usize) -> Self {
        let mut updates = Self::default();
        if capture.updates.is_empty() {
            return updates;
        }
        let mut pieces: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
        for (i, piece) in capture.pieces.iter().enumerate().filter(|(i, _)| stores[*i]) {
            let component = capture.components[piece.component].name.as_str();
            pieces.entry((component, &piece.name)).or_default().push(i);
        }
        let mut taken = vec![false; capture.pieces.len()];
        for update in &capture.updates {
            for members in members(capture, update, &pieces) {
                // Each is predicted in one way.
                if members.each().any(|(_, piece)| taken[piece]) {
                    continue;
                }
                members.each().for_each(|(_, piece)| taken[piece] = true);
                let step = (update.optimizer, update.steps);
                updates.add(capture, Linked { step, members }, chunk_bytes);
            }
        }
        updates
    }

    fn add(&mut self, capture: &Capture<'_>, linked: Linked, chunk_bytes: usize) {
        let bytes = |linked: &Linked| capture.pieces[linked.members.weight].data.len();
        if bytes(&linked) >= chunk_bytes {
            self.large.push(linked);
            return;
        }
        let components = |linked: &Linked| -> Vec<usize> {
            linked.members.each().map(|(_, piece)| capture.pieces[piece].component).collect()
        };
        if let Some(group) = self.groups.last_mut()
            && let Some(last) = group.last()
            && last.step.0 == linked.step.0
            && components(last) == components(&linked)
            && group.iter().map(bytes).sum::<usize>() + bytes(&linked) <= chunk_bytes
        {
            group.push(linked);
            return;
        }
        self.groups.push(vec![linked]);
    }
}

/// The pieces of `update`: one for each shard, where all its tensors have the same.
fn members(
    capture: &Capture<'_>,
    update: &Update,
    pieces: &BTreeMap<(&str, &str), Vec<usize>>,
) -> Vec<Members> {
    let of = |name: &Name| -> BTreeMap<&NdBox, usize> {
        let pieces = pieces.get(&(name.0.as_str(), name.1.as_str())).into_iter().flatten();
        let usable = |piece: &Piece<'_>| piece.dtype == Dtype::F32 && piece.data.len() > 0;
        let pieces = pieces.map(|i| (*i, &capture.pieces[*i])).filter(|(_, piece)| usable(piece));
        pieces.map(|(i, piece)| (&piece.extent, i)).collect()
    };
    let (first, second) = (of(&update.first), update.second.as_ref().map(of));
    let weights = of(&update.weight).into_iter();
    let members = weights.filter_map(|(extent, weight)| {
        let first = *first.get(extent)?;
        let second = match &second {
            Some(second) => Some(*second.get(extent)?),
            None => None,
        };
        Some(Members { weight, first, second })
    });
    members
        .filter(|m| m.weight != m.first && Some(m.weight) != m.second && Some(m.first) != m.second)
        .collect()
}
