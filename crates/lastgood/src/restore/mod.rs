//! Restoring: `choose → plan → fetch → verify → place`.
//!
//! Not a byte is handed out that was not verified, and not a byte of a target is left unwritten.

mod choose;
mod contents;
mod costs;
mod fetch;
mod held;
mod linked;
mod needs;
mod plan;
mod verify;

pub(crate) use choose::choose_id;
pub use choose::{Selector, choose, resolve};
pub use contents::{Contents, TensorInfo};
pub use costs::{Cost, Costs, Way, costs};
use lastgood_format::{Hash, Result};
pub(crate) use needs::needs;
pub use verify::VerifiedPacks;
pub(crate) use verify::{check_sizes, verify_all, verify_one};

use crate::io::Io;
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
    let plan = plan::Plan::new(contents, targets)?;
    let held = tier.map(Tier::held).unwrap_or_default();
    let (bytes, bytes_read) = fetch::run(io, contents, plan, &held)?;
    Ok(Restored { bytes, bytes_read, ..untouched(contents) })
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
