//! Giving checkpoints a standing.

use lastgood_format::ledger::Kind;
use lastgood_format::{Error, ErrorKind, Hash, Result};

use crate::attempt;
use crate::ledger::{Checkpoint, Decision, Ledger, Standing, Writer};

/// Gives a checkpoint a standing, with the reason, in the ledger.
///
/// # Errors
/// `NotFound` if there is no such checkpoint; `Invalid` for [`Standing::Committed`]; `Conflict` if it is
/// bad and is to become merely verified; `Fenced`; `Unavailable`, `Denied`.
pub async fn mark(
    ledger: &mut Ledger,
    writer: &Writer,
    id: &Hash,
    standing: Standing,
    reason: &str,
) -> Result<()> {
    let (checkpoint, reason) = (*id, reason.to_owned());
    attempt::settle(ledger, writer, |history| {
        let found: &Checkpoint = history
            .checkpoint(&checkpoint)
            .ok_or_else(|| Error::not_found(format!("there is no checkpoint {checkpoint}")))?;
        if found.standing == standing && found.reason.as_deref() == Some(reason.as_str()) {
            return Ok(Decision::Nothing);
        }
        let reason = reason.clone();
        Ok(Decision::Append(match standing {
            Standing::Good => Kind::CheckpointGood { checkpoint, reason },
            Standing::Bad => Kind::CheckpointBad { checkpoint, reason },
            Standing::Verified if found.standing == Standing::Good => return Ok(Decision::Nothing),
            Standing::Verified if found.standing == Standing::Bad => {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("checkpoint {checkpoint} is bad; mark it good to overrule that"),
                ));
            }
            Standing::Verified => Kind::CheckpointVerified { checkpoint, reason },
            Standing::Committed => {
                return Err(Error::invalid("a checkpoint is committed by saving it"));
            }
        }))
    })
    .await
}
