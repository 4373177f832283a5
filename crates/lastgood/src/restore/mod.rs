//! Restoring: `choose → plan → fetch → verify → place`.
//!
//! Not a byte is handed out that was not verified, and not a byte of a target is left unwritten.

mod choose;
mod contents;
mod costs;
mod fetch;
mod held;
mod kept;
mod linked;
mod needs;
mod plan;
mod verify;

pub(crate) use choose::choose_id;
pub use choose::{Selector, choose, resolve};
pub use contents::{Contents, TensorInfo};
pub use costs::{Cost, Costs, Way, costs};
use lastgood_format::{Hash, Result};
use lastgood_store::Hedges;
pub(crate) use needs::needs;
pub use verify::VerifiedPacks;
pub(crate) use verify::{check_sizes, verify_all, verify_one};

use crate::io::{Io, Shared};
use crate::state::Targets;
use crate::tier::Tier;

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The checkpoint that the targets hold now.
    pub checkpoint: Hash,
    /// Its step.
    pub step: u64,
    /// The number of ranks that saved it.
    pub world_size: u32,
    /// The bytes that were placed.
    pub bytes: u64,
    /// The bytes that were read from packs for it.
    pub bytes_read: u64,
    /// What a person should know: checkpoints that were skipped, and why.
    pub notices: Vec<String>,
}

/// Restores what `contents` tells of into `targets`. If it fails, the content of the targets' memory
/// is unspecified, and no function of theirs was called.
pub(crate) fn restore_from(
    io: &dyn Io,
    contents: &Contents,
    targets: Targets<'_>,
    tier: Option<&Tier>,
) -> Result<Restored> {
    let size = u64::from(targets.world.size);
    let plan = plan::Plan::new(contents, targets)?;
    let held = tier.map(Tier::held).unwrap_or_default();
    // Ranks that would together read the checkpoint more than once read the same bytes.
    let is_shared = size > 1 && plan.bytes.saturating_mul(size) > contents.bytes() / 2 * 3;
    let before = io.hedges();
    let (bytes, bytes_read) = match is_shared {
        true => fetch::run(&Shared(io), contents, plan, &held)?,
        false => fetch::run(io, contents, plan, &held)?,
    };
    let notices = late(before, io.hedges()).into_iter().collect();
    Ok(Restored { bytes, bytes_read, notices, ..untouched(contents) })
}

/// What is told of a store that was slow to answer some reads.
fn late(before: Hedges, after: Hedges) -> Option<String> {
    let (asked, won) = (after.asked - before.asked, after.won - before.won);
    (asked > 0).then(|| {
        format!(
            "the store was slow to answer {asked} reads and was asked for them again; {won} of the \
             second answers came first"
        )
    })
}

/// What a restore of `contents` has done that has not touched its targets.
pub(crate) fn untouched(contents: &Contents) -> Restored {
    Restored {
        checkpoint: contents.id(),
        step: contents.manifest().step,
        world_size: contents.manifest().world_size,
        bytes: 0,
        bytes_read: 0,
        notices: Vec::new(),
    }
}
