//! What of a job is saved and restored.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Job, JobConfig};
use crate::demo::loader::LoaderState;
use crate::demo::network::Parameter;
use crate::demo::optimizer::Schedule;
use crate::demo::shares::part;

/// Where the job is. The same on every rank.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Control {
    /// The finished steps.
    pub(crate) step: u64,
    /// The samples that come next.
    pub(crate) loader: LoaderState,
    /// The learning rates that come next.
    pub(crate) schedule: Schedule,
}

/// The rows of a tensor that a rank holds: row-major, in the machine's byte order.
#[derive(Debug)]
pub(crate) struct Tensor<D> {
    /// Unique in the job.
    pub(crate) name: String,
    /// The shape of the whole tensor, over all ranks.
    pub(crate) shape: Vec<u64>,
    /// The rows that `data` holds.
    pub(crate) rows: Range<u64>,
    /// The elements of these rows.
    pub(crate) data: D,
}

/// Everything that a job needs to go on to the same bytes, to be saved between two steps.
#[derive(Debug)]
pub(crate) struct JobState<'a> {
    /// The parameters, whole and the same on every rank.
    pub(crate) parameters: Vec<Tensor<&'a [f32]>>,
    /// The moments of the optimizer, `m.<parameter>` and `v.<parameter>`: own rows.
    pub(crate) moments: Vec<Tensor<&'a [f32]>>,
    /// The state of the generator of each logical rank, a row of four words: own rows.
    pub(crate) generators: Tensor<&'a [u64]>,
    /// Where the job is, the same on every rank.
    pub(crate) control: &'a Control,
}

/// The memory behind [`JobState`], all of it at once, to be restored in place. The job needs nothing
/// else: it goes on from whatever stands here.
#[derive(Debug)]
pub(crate) struct JobStateMut<'a> {
    /// As in [`JobState`].
    pub(crate) parameters: Vec<Tensor<&'a mut [f32]>>,
    /// As in [`JobState`].
    pub(crate) moments: Vec<Tensor<&'a mut [f32]>>,
    /// As in [`JobState`].
    pub(crate) generators: Tensor<&'a mut [u64]>,
    /// As in [`JobState`].
    pub(crate) control: &'a mut Control,
}

impl Job {
    /// What is to be saved.
    pub(crate) fn state(&self) -> JobState<'_> {
        let parameters = self.network.parameters();
        let (whole, own) = (&rows(parameters, 0, 1), &self.own_rows);
        let mut weights = &self.weights[..];
        let (mut m, mut v) = (&self.optimizer.m[..], &self.optimizer.v[..]);
        let mut moments = tensors("m.", parameters, own, |count| m.split_off(..count));
        moments.extend(tensors("v.", parameters, own, |count| v.split_off(..count)));
        JobState {
            parameters: tensors("", parameters, whole, |count| weights.split_off(..count)),
            moments,
            generators: generators(&self.config, &self.logical, self.generators.as_flattened()),
            control: &self.control,
        }
    }

    /// What is to be restored.
    pub(crate) fn state_mut(&mut self) -> JobStateMut<'_> {
        let parameters = self.network.parameters();
        let (whole, own) = (&rows(parameters, 0, 1), &self.own_rows);
        let mut weights = &mut self.weights[..];
        let (mut m, mut v) = (&mut self.optimizer.m[..], &mut self.optimizer.v[..]);
        let mut moments = tensors("m.", parameters, own, |count| m.split_off_mut(..count));
        moments.extend(tensors("v.", parameters, own, |count| v.split_off_mut(..count)));
        let words = self.generators.as_flattened_mut();
        JobStateMut {
            parameters: tensors("", parameters, whole, |count| weights.split_off_mut(..count)),
            moments,
            generators: generators(&self.config, &self.logical, words),
            control: &mut self.control,
        }
    }
}

/// The rows of each parameter that fall to `rank`.
pub(super) fn rows(parameters: &[Parameter], rank: u32, world_size: u32) -> Vec<Range<usize>> {
    let rows = |parameter: &Parameter| part(parameter.rows(), rank as usize, world_size as usize);
    parameters.iter().map(rows).collect()
}

/// Names the parts of a flat vector that holds some rows of each parameter; `take` gives its next
/// elements, of which there are enough by construction.
fn tensors<D: Default>(
    prefix: &str,
    parameters: &[Parameter],
    rows: &[Range<usize>],
    mut take: impl FnMut(usize) -> Option<D>,
) -> Vec<Tensor<D>> {
    let tensor = |(parameter, rows): (&Parameter, &Range<usize>)| Tensor {
        name: format!("{prefix}{}", parameter.name),
        shape: parameter.shape.clone(),
        rows: rows.start as u64..rows.end as u64,
        data: take(parameter.rows_range(rows).len()).unwrap_or_default(),
    };
    parameters.iter().zip(rows).map(tensor).collect()
}

fn generators<D>(config: &JobConfig, logical: &Range<usize>, data: D) -> Tensor<D> {
    Tensor {
        name: "noise".into(),
        shape: vec![config.logical_ranks as u64, 4],
        rows: logical.start as u64..logical.end as u64,
        data,
    }
}
