//! Who else is at work on a run: an operator who marks, expires, collects and abandons, and a reader.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lastgood::attempt;
use lastgood::ledger::{Appended, Decision, History, Ledger, Standing, Writer};
use lastgood::restore::{self, Contents};
use lastgood_format::ledger::Kind;
use lastgood_format::{Hash, Result};

use crate::random::Random;
use crate::ranks::{Rank, Told, content};

/// Opens the run a few times and decides something about it.
pub(super) async fn operate(who: Rank, mut random: Random, acts: u64) {
    for _ in 0..acts {
        who.env.sleep(Duration::from_micros(random.between(1_000, 40_000))).await;
        // What fails is tried another time.
        let _ = act(&who, &mut random).await;
    }
}

async fn open(who: &Rank) -> Result<Ledger> {
    let (store, env) = (Arc::clone(&who.store), Arc::clone(&who.env));
    Ledger::open_with(store, env, who.order.run.clone(), Arc::clone(&who.rules)).await
}

async fn act(who: &Rank, random: &mut Random) -> Result<()> {
    let mut ledger = open(who).await?;
    let writer = Writer { attempt: 0, actor: "operator".into() };
    let checkpoints = ledger.history().checkpoints();
    let picked = match checkpoints.len() as u64 {
        0 => None,
        count => checkpoints.get(random.below(count) as usize).map(|found| found.id),
    };
    match (random.below(14), picked) {
        (10..=13, _) => {
            append(&mut ledger, &writer, who, random).await;
            Ok(())
        }
        (0..=2, Some(id)) => {
            expire(&mut ledger, &writer, id).await?;
            if random.chance(700) {
                who.env.sleep(Duration::from_micros(random.below(20_000))).await;
                collect(&ledger).await?;
            }
            Ok(())
        }
        (3..=7, Some(id)) => {
            let standing = match random.below(5) {
                0 | 1 => Standing::Good,
                2 => Standing::Verified,
                _ => Standing::Bad,
            };
            lastgood::mark(&mut ledger, &writer, &id, standing, "simulated").await
        }
        _ => abandon(&mut ledger, &writer, random).await,
    }
}

/// Appends an entry that nothing else looks like, and notes what it is told about it.
async fn append(ledger: &mut Ledger, writer: &Writer, who: &Rank, random: &mut Random) {
    let reason = format!("incident {:016x}", random.draw());
    let decide = |_: &History| {
        Ok(Decision::Append(Kind::IncidentOpened { reason: reason.clone(), class: None }))
    };
    let appended = ledger.append(writer, decide).await;
    match appended {
        Ok(Appended::Committed(n)) => who.witness.note(Told::Appended { n, reason }),
        Ok(_) => {}
        Err(_) => who.witness.note(Told::NotAppended { reason }),
    }
}

async fn expire(ledger: &mut Ledger, writer: &Writer, id: Hash) -> Result<()> {
    attempt::settle(ledger, writer, |history| {
        Ok(match history.checkpoint(&id) {
            Some(found) if !found.expired => Decision::Append(Kind::CheckpointExpired {
                checkpoint: id,
                reason: "simulated".into(),
            }),
            _ => Decision::Nothing,
        })
    })
    .await
}

/// Deletes what only expired checkpoints stand on. A commit either comes before the expiry that this
/// ledger ends with, and is seen here, or after it, and sees the expiry.
async fn collect(ledger: &Ledger) -> Result<()> {
    let mut live = BTreeSet::new();
    let mut dead = BTreeSet::new();
    for checkpoint in ledger.history().checkpoints() {
        match Contents::load(ledger, &checkpoint.id).await {
            Ok(contents) if checkpoint.expired => dead.extend(content::objects_of(&contents)?),
            Ok(contents) => live.extend(content::objects_of(&contents)?),
            // Collected before.
            Err(_) if checkpoint.expired => {}
            Err(error) => return Err(error),
        }
    }
    for object in dead.difference(&live) {
        ledger.store().delete(object).await?;
    }
    Ok(())
}

/// Gives up a save of the newest attempt that is not committed yet.
async fn abandon(ledger: &mut Ledger, writer: &Writer, random: &mut Random) -> Result<()> {
    let saved_by = ledger.history().newest_attempt();
    let step = random.between(1, 4);
    attempt::settle(ledger, writer, |history| {
        let done = history.committed(saved_by, step, 0).is_some();
        if saved_by == 0 || done || history.is_abandoned(saved_by, step, 0) {
            return Ok(Decision::Nothing);
        }
        let reason = "simulated".into();
        Ok(Decision::Append(Kind::SaveAbandoned { saved_by, step, generation: 0, reason }))
    })
    .await
}

/// Opens the run now and then and reads the checkpoint that recovery would take.
pub(super) async fn look_on(who: Rank, mut random: Random, looks: u64) {
    for _ in 0..looks {
        who.env.sleep(Duration::from_micros(random.between(1_000, 80_000))).await;
        let _ = look(&who).await;
    }
}

async fn look(who: &Rank) -> Result<()> {
    let told_before = who.witness.count();
    let ledger = open(who).await?;
    let history = ledger.history();
    let checkpoints = history.checkpoints().iter().map(|found| found.id).collect();
    who.witness.note(Told::Opened { told_before, checkpoints });
    who.witness.note(Told::Tail { entries: history.entries(), tail: history.tail() });
    let Some(id) = restore::choose(history).map(|found| found.id) else { return Ok(()) };
    let read = match Contents::load(&ledger, &id).await {
        Ok(contents) => content::verify(who.store.as_ref(), &contents).await,
        Err(error) => Err(error),
    };
    if let Err(error) = read
        && !error.is_retryable()
    {
        who.witness.note(Told::Unreadable { id, error });
    }
    Ok(())
}
