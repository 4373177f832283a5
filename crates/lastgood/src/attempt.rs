//! Starting attempts: one incarnation of a run, which fences every earlier one.

use lastgood_format::ledger::Kind;
use lastgood_format::{Error, ErrorKind, Hash, Result};

use crate::ledger::{self, Appended, Attempt, Decision, History, Ledger, Writer};

/// How often an append of unknown outcome is settled before the caller is told.
const SETTLE_MAX: u32 = 8;

/// Creates the run if it does not exist.
///
/// # Errors
/// `Unavailable`, `Denied`, `Corrupt`.
pub async fn create_run(ledger: &mut Ledger, actor: &str) -> Result<()> {
    let writer = Writer { attempt: 0, actor: actor.to_owned() };
    settle(ledger, &writer, |history| {
        Ok(match history.entries() {
            0 => Decision::Append(Kind::RunCreated {}),
            _ => Decision::Nothing,
        })
    })
    .await
}

/// What a new attempt is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAttempt {
    /// The ranks that it runs.
    pub world_size: u32,
    /// The checkpoint that all its ranks restore from; `None` to start fresh.
    pub from: Option<Hash>,
    /// Names the incarnation. Whoever starts the newest attempt under the same name joins it, so that
    /// ranks without a supervisor agree.
    pub incarnation: String,
}

/// Starts an attempt, or joins the newest one if it has this incarnation already.
///
/// # Errors
/// `Fenced` if the incarnation started an attempt that is not the newest any more;
/// `Incompatible` if the attempt to join has another world size; `Unavailable`, `Denied`, `Corrupt`.
pub async fn start(ledger: &mut Ledger, actor: &str, new: &NewAttempt) -> Result<Attempt> {
    create_run(ledger, actor).await?;
    let writer = Writer { attempt: 0, actor: actor.to_owned() };
    settle(ledger, &writer, |history| {
        match history.attempt_of(&new.incarnation) {
            Some(number) if number == history.newest_attempt() => Ok(Decision::Nothing),
            // A late rank of an old incarnation must not fence the new one.
            Some(number) => Err(ledger::fenced(number, history.newest_attempt())),
            None => Ok(Decision::Append(Kind::AttemptStarted {
                number: history.newest_attempt() + 1,
                world_size: new.world_size,
                from: new.from,
                incarnation: new.incarnation.clone(),
            })),
        }
    })
    .await?;
    let attempt = ledger
        .history()
        .attempt()
        .filter(|attempt| attempt.incarnation == new.incarnation)
        .cloned()
        .ok_or_else(|| Error::new(ErrorKind::Conflict, "another attempt started at once"))?;
    if attempt.world_size != new.world_size {
        return Err(Error::incompatible(format!(
            "attempt {} runs {} ranks, this process expects {}",
            attempt.number, attempt.world_size, new.world_size
        )));
    }
    Ok(attempt)
}

/// Says in the ledger what happened, for whoever looks for it, and which class of [failure](crate::policy::failures) it
/// was, if it was one. If it stays unknown whether that is told, it is not told
/// twice.
///
/// # Errors
/// As [`Ledger::append`].
pub async fn tell_incident(
    ledger: &mut Ledger,
    actor: &str,
    reason: &str,
    class: Option<&str>,
) -> Result<()> {
    let writer = Writer { attempt: 0, actor: actor.to_owned() };
    let (reason, class) = (reason.to_owned(), class.map(str::to_owned));
    let kind = Kind::IncidentOpened { reason, class };
    ledger.append(&writer, |_| Ok(Decision::Append(kind.clone()))).await.map(drop)
}

/// Appends until the outcome is known. `decide` must be idempotent.
///
/// # Errors
/// As [`Ledger::append`]; `Unavailable` if the outcome stays unknown.
pub async fn settle(
    ledger: &mut Ledger,
    writer: &Writer,
    mut decide: impl FnMut(&History) -> Result<Decision> + Send,
) -> Result<()> {
    let mut last = None;
    for _ in 0..SETTLE_MAX {
        match ledger.append(writer, &mut decide).await? {
            Appended::Committed(_) | Appended::Nothing => return Ok(()),
            Appended::Unknown(unknown) => last = Some(unknown.error),
        }
    }
    Err(last
        .unwrap_or_else(|| Error::unavailable("the store did not answer"))
        .context("the outcome of a ledger entry stays unknown"))
}
