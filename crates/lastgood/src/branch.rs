//! Branches: runs that begin with a state of another run, which was re-executed.

use lastgood_format::ledger::Kind;
use lastgood_format::{Error, ErrorKind, Hash, Result, RunName};
use serde::Serialize;

use crate::attempt::{create_run, settle};
use crate::ledger::{Decision, Ledger, Writer};

/// The entry that says where a run comes from.
const ENTRY: u64 = 2;

/// Where the first state of a branch comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The id of the repository of the other run.
    pub repository: String,
    /// The other run.
    pub run: RunName,
    /// Its checkpoint that the re-execution began with; `None` for a fresh start.
    pub from: Option<Hash>,
    /// The step of that checkpoint; 0 without one.
    pub from_step: u64,
    /// The step whose state the branch begins with.
    pub step: u64,
}

/// What a ledger says of how its run was created as a branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Created {
    /// Where it comes from.
    #[serde(flatten)]
    pub origin: Origin,
    /// When, by the clock of who created it, in RFC 3339.
    pub at: String,
    /// Who created it.
    pub actor: String,
}

/// Creates the run of `ledger` as a branch.
///
/// # Errors
/// `Conflict` if the run exists; `Unavailable`, `Denied`, `Corrupt`.
pub async fn create(ledger: &mut Ledger, actor: &str, origin: &Origin) -> Result<()> {
    create_run(ledger, actor).await?;
    let writer = Writer { attempt: 0, actor: actor.to_owned() };
    let kind = Kind::BranchCreated {
        repository: origin.repository.clone(),
        source: origin.run.clone(),
        from: origin.from,
        from_step: origin.from_step,
        step: origin.step,
    };
    settle(ledger, &writer, |history| {
        Ok(match history.entries() {
            1 => Decision::Append(kind.clone()),
            _ => Decision::Nothing,
        })
    })
    .await?;
    match created(ledger).await? {
        Some(created) if created.origin == *origin && ledger.history().entries() == ENTRY => Ok(()),
        _ => Err(Error::new(ErrorKind::Conflict, format!("run {} exists already", ledger.run()))
            .with_remedy("give the branch a name that no run has")),
    }
}

/// How the run of `ledger` was created, if it is a branch.
///
/// # Errors
/// `Unavailable`, `Denied`; `Corrupt` if the entry that would say so is damaged.
pub async fn created(ledger: &Ledger) -> Result<Option<Created>> {
    if ledger.history().entries() < ENTRY {
        return Ok(None);
    }
    let Some((entry, _)) = ledger.read_entry(ENTRY).await? else { return Ok(None) };
    let (at, actor) = (entry.at_text(), entry.actor);
    let Kind::BranchCreated { repository, source, from, from_step, step } = entry.kind else {
        return Ok(None);
    };
    let origin = Origin { repository, run: source, from, from_step, step };
    Ok(Some(Created { origin, at, actor }))
}
