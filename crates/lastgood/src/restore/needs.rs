//! What a restore would read and take, and what of it does not fit: found without reading a byte.

use lastgood_format::Error;
use lastgood_format::layout::check_cover;

use super::contents::Contents;
use super::plan::{check_request, names_apart, order};
use crate::preflight::Needs;
use crate::state::{Sink, Targets, show};

/// A restore takes so much memory of its own, whatever is restored.
const SCRATCH_BYTES: u64 = 64 << 20;

/// What it would be to restore `contents` into `targets`.
pub(crate) fn needs(contents: &Contents, targets: &Targets<'_>) -> Needs {
    let (missing, extra) = names_apart(contents, targets, &order(&targets.requests));
    let missing = missing.iter().map(|name| format!("{name} is not in the checkpoint"));
    let extra = extra.iter().map(|name| format!("{name} is only in the checkpoint"));
    let problems = missing.chain(extra).collect();
    let mut needs = Needs { memory: SCRATCH_BYTES, problems, ..Needs::default() };
    for request in &targets.requests {
        // What is not there is told by its name.
        let Some(info) = contents.data_of(&request.component, &request.name) else { continue };
        let here = || show(&request.component, &request.name);
        let fits = check_request(&here, &request.want, info).and_then(|extent| {
            let shards = info.shards.iter().map(|at| &contents.shard(*at).1.extent);
            let covered: Vec<_> = shards.filter_map(|shard| shard.intersection(&extent)).collect();
            check_cover(&extent, &covered).map_err(|error| error.context(here()))?;
            let bytes = extent.elements().and_then(|elements| info.dtype.bytes_of(elements));
            bytes.ok_or_else(|| Error::corrupt(format!("{} is larger than memory", here())))
        });
        match fits {
            Ok(bytes) => {
                needs.bytes = needs.bytes.saturating_add(bytes);
                // Memory of the caller's is there already.
                if matches!(request.sink, Sink::Apply(_)) {
                    needs.memory = needs.memory.saturating_add(bytes);
                }
            }
            Err(error) => needs.problems.push(error.message().to_owned()),
        }
    }
    needs
}
