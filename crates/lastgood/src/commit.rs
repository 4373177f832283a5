//! Committing a save without a coordinator and without a barrier.
//!
//! Each rank writes its packs, then its shard index. Whoever sees the shard indexes of all ranks
//! builds the manifest, which is a pure function of them, puts it, and appends
//! `checkpoint.committed`. Racing ranks build the same bytes and agree; a dead rank leaves an
//! uncommitted save and holds up nobody.

use lastgood_format::index::{ShardIndex, check_complete};
use lastgood_format::key::{self, SaveKey};
use lastgood_format::ledger::Kind;
use lastgood_format::manifest::Manifest;
use lastgood_format::{Error, ErrorKind, Hash, Result};

use crate::ledger::{Appended, Checkpoint, Decision, Ledger, Writer};
use crate::objects;
use crate::save::check_alike;

/// How far a save is on its way to a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is a checkpoint.
    Committed(Hash),
    /// The shard index of this rank is not there yet.
    Waiting(u32),
    /// It reuses chunks of this checkpoint, which expired or was found bad: every rank must write its
    /// part again, without reuse, as the next generation.
    LostBase(Hash),
}

/// Puts the shard index of one rank. From here on the rank's part of the save is durable; its packs
/// must be before.
///
/// # Errors
/// `Conflict` if another index of this rank exists for the save; `Unavailable`, `Overloaded`,
/// `Denied`; `Internal` if the index is not well formed.
pub async fn publish(ledger: &Ledger, index: &ShardIndex) -> Result<Hash> {
    let stored = index.encode()?;
    let hash = Hash::of(&stored);
    let object = key::in_run(ledger.run(), &key::index_in_run(&index.save, index.rank))?;
    objects::put_same(ledger.store().as_ref(), &object, stored.into()).await?;
    Ok(hash)
}

/// Commits `save` if the shard indexes of all its ranks are there, and says how far it is.
///
/// `first_to_ask` is the rank whose index is looked for first: the answer of the last call, or one
/// after the caller's own rank, so that a waiting rank asks for one object a turn.
///
/// # Errors
/// `Fenced` if a newer attempt exists; `Conflict` if the save can never be committed (abandoned, or it
/// reuses what is expired or bad); `Invalid` if the ranks contradict each other; `Corrupt` if a shard
/// index is damaged; `Unavailable` if the store does not answer or does not tell the outcome: ask
/// again.
pub async fn advance(
    ledger: &mut Ledger,
    writer: &Writer,
    save: &SaveKey,
    world_size: u32,
    first_to_ask: u32,
) -> Result<Progress> {
    ledger.refresh().await?;
    if let Some(done) = ledger.history().committed(save.attempt, save.step, save.generation) {
        return Ok(Progress::Committed(done.id));
    }
    if let Some(missing) = first_missing(ledger, save, world_size, first_to_ask).await? {
        refuse_hopeless(ledger, writer, save)?;
        return Ok(Progress::Waiting(missing));
    }
    let manifest = gather(ledger, save, world_size).await?;
    if let Some(base) = lost_base(ledger, &manifest) {
        return Ok(Progress::LostBase(base));
    }
    let id = put_manifest(ledger, &manifest).await?;
    append(ledger, writer, &manifest, id).await.map(Progress::Committed)
}

fn lost_base(ledger: &Ledger, manifest: &Manifest) -> Option<Hash> {
    let history = ledger.history();
    let lost = |base: &&Hash| !history.checkpoint(base).is_some_and(Checkpoint::is_reusable);
    manifest.reuses.iter().find(lost).copied()
}

/// A save that waits for a rank still learns at once that it waits in vain.
fn refuse_hopeless(ledger: &Ledger, writer: &Writer, save: &SaveKey) -> Result<()> {
    let newest = ledger.history().newest_attempt();
    if writer.attempt < newest {
        return Err(crate::ledger::fenced(writer.attempt, newest));
    }
    if ledger.history().is_abandoned(save.attempt, save.step, save.generation) {
        return Err(Error::new(ErrorKind::Conflict, format!("the save of {save} was abandoned")));
    }
    Ok(())
}

async fn first_missing(
    ledger: &Ledger,
    save: &SaveKey,
    world_size: u32,
    first_to_ask: u32,
) -> Result<Option<u32>> {
    for i in 0..world_size {
        let rank = (first_to_ask + i) % world_size;
        let object = key::in_run(ledger.run(), &key::index_in_run(save, rank))?;
        if ledger.store().size(&object).await?.is_none() {
            return Ok(Some(rank));
        }
    }
    Ok(None)
}

async fn gather(ledger: &Ledger, save: &SaveKey, world_size: u32) -> Result<Manifest> {
    let mut indexes = Vec::new();
    for rank in 0..world_size {
        let object = key::in_run(ledger.run(), &key::index_in_run(save, rank))?;
        let (index, bytes, hash) = read_index(ledger, &object).await?;
        if index.save != *save || index.rank != rank || index.world_size != world_size {
            return Err(Error::corrupt(format!(
                "expected rank {rank} of {world_size} of {save}, found rank {} of {} of {}",
                index.rank, index.world_size, index.save
            ))
            .with_object(object));
        }
        // Its rank may have created it and not yet synced it.
        ledger.store().settle(&object).await?;
        indexes.push((index, bytes, hash));
    }
    check_alike(indexes.iter().map(|(index, ..)| index))?;
    // Each index is whole, so that a contradiction is what the ranks said and no damage.
    let built = Manifest::build(&indexes).and_then(|manifest| {
        check_complete(indexes.iter().map(|(index, ..)| index)).map(|()| manifest)
    });
    built.map_err(|error| {
        Error::invalid(error.message()).with_remedy(
            "every rank names the same tensors, of the same dtype and shape, and shards that do not \
             overlap and leave nothing out",
        )
    })
}

/// Reads an index that no manifest names yet; its own trailing hash verifies it.
async fn read_index(ledger: &Ledger, object: &str) -> Result<(ShardIndex, u64, Hash)> {
    let mut reads = 1;
    loop {
        let stored = ledger.store().get(object, ShardIndex::BYTES_MAX).await?;
        match ShardIndex::decode(&stored) {
            Ok(index) => return Ok((index, stored.len() as u64, Hash::of(&stored))),
            Err(error) if error.kind() == ErrorKind::Corrupt && reads < 3 => reads += 1,
            Err(error) => return Err(error.with_object(object)),
        }
    }
}

async fn put_manifest(ledger: &Ledger, manifest: &Manifest) -> Result<Hash> {
    let (stored, id) = manifest.encode()?;
    let object = key::manifest(ledger.run(), &id);
    objects::put_same(ledger.store().as_ref(), &object, stored.into()).await?;
    Ok(id)
}

async fn append(
    ledger: &mut Ledger,
    writer: &Writer,
    manifest: &Manifest,
    id: Hash,
) -> Result<Hash> {
    let mut found = id;
    let appended = ledger
        .append(writer, |history| {
            let save = manifest.save();
            if let Some(done) = history.committed(save.attempt, save.step, save.generation) {
                found = done.id;
                return Ok(Decision::Nothing);
            }
            Ok(Decision::Append(Kind::CheckpointCommitted {
                checkpoint: id,
                step: manifest.step,
                generation: manifest.generation,
                world_size: manifest.world_size,
                parent: manifest.parent,
                reuses: manifest.reuses.clone(),
                bytes: manifest.bytes,
                new_bytes: manifest.new_bytes,
            }))
        })
        .await?;
    match appended {
        Appended::Committed(_) | Appended::Nothing => Ok(found),
        Appended::Unknown(unknown) => Err(unknown
            .error
            .context(format!("the outcome of ledger entry {} is unknown", unknown.n))
            .with_remedy("ask again: the next answer settles it")),
    }
}
