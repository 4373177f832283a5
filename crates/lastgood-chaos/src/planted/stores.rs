//! Stores with a bug: each is the store below it, used wrongly in one way.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use lastgood::ledger::History;
use lastgood::{Error, ErrorKind, Result, RunName};
use lastgood_format::index::ShardIndex;
use lastgood_format::ledger::Entry;
use lastgood_format::{FORMAT_VERSION, Hash, key, sealed};
use lastgood_store::{ObjectMeta, Payload, Put, Store};
use serde_json::json;

use super::judges::sealed_again;

/// What is done wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misuse {
    /// A taken slot of the ledger is thought to be ours.
    TakenIsOurs,
    /// A lost answer is told as a refusal.
    LostIsRefused,
    /// A lost answer is taken for a success, and the next slot is tried.
    LostIsOurs,
    /// The shard index is put before the packs.
    IndexBeforePacks,
    /// The commit is appended before the manifest is put.
    CommitBeforeManifest,
    /// An object that exists is replaced.
    Overwrite,
    /// What is seen is taken for durable.
    NoSettle,
    /// The shard indexes of other ranks are not waited for.
    NoWaiting,
    /// A step that is saved again is filed under its first generation.
    SameGeneration,
    /// A head is trusted without its seal.
    HeadUnsealed,
    /// The head is put before the entry that it ends with.
    HeadBeforeEntry,
}

/// A store that is misused.
#[derive(Debug)]
pub(super) struct Misused {
    inner: Arc<dyn Store>,
    misuse: Misuse,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Puts that are held back.
    held: Vec<(String, Payload)>,
    /// Puts that are believed in.
    believed: BTreeMap<String, Bytes>,
    /// The shard index that was put last.
    index: Option<Bytes>,
}

impl Misused {
    pub(super) fn over(inner: Arc<dyn Store>, misuse: Misuse) -> Arc<dyn Store> {
        Arc::new(Self { inner, misuse, kept: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn put_held(&self) -> Result<()> {
        let held = std::mem::take(&mut self.lock().held);
        for (key, payload) in held {
            self.inner.put_if_absent(&key, payload).await?;
        }
        Ok(())
    }

    fn key(&self, key: &str) -> String {
        if self.misuse != Misuse::SameGeneration {
            return key.to_owned();
        }
        let first = |part: &str| match part.split_once('.') {
            Some((step, _)) if step.len() == 12 && step.bytes().all(|b| b.is_ascii_digit()) => {
                step.to_owned()
            }
            _ => part.to_owned(),
        };
        key.split('/').map(first).collect::<Vec<_>>().join("/")
    }

    /// A shard index of another rank, made from the one of this rank.
    fn made_up(&self, key: &str) -> Option<Bytes> {
        let own = self.lock().index.clone()?;
        let mut index = ShardIndex::decode(&own).ok()?;
        let rank: u32 = key.rsplit('/').next()?.strip_suffix(".idx")?.parse().ok()?;
        for pack in index.packs.iter_mut().filter(|pack| pack.is_new) {
            pack.object = key::pack_in_run(&index.save, rank, 0);
        }
        for shard in &mut index.shards {
            let bytes = shard.extent.sizes.first().copied()?;
            *shard.extent.offsets.first_mut()? = u64::from(rank) * bytes;
        }
        index.rank = rank;
        index.encode().ok().map(Bytes::from)
    }

    /// The head at the entry that is about to be put, if one is due.
    async fn head(&self, object: &str, payload: &Payload) -> Result<Option<(String, Payload)>> {
        let Some((run, n)) = place(object).filter(|(_, n)| n.is_multiple_of(64)) else {
            return Ok(None);
        };
        let mut history = History::new(run.clone());
        for i in 1..=n {
            let stored = match i == n {
                true => payload.to_bytes(),
                false => self.inner.get(&key::ledger_entry(&run, i), Entry::BYTES_MAX).await?,
            };
            history.apply(&Entry::decode(&stored, &run, i)?, Hash::of(&stored))?;
        }
        let head = json!({"format": FORMAT_VERSION, "kind": "ledger.head", "history": history});
        Ok(Some((key::ledger_head(&run, n), sealed::seal(&head)?.into())))
    }
}

/// The run and the number of a ledger entry.
fn place(object: &str) -> Option<(RunName, u64)> {
    let (run, entry) = object.strip_prefix(key::RUNS)?.split_once("/ledger/")?;
    Some((run.parse().ok()?, entry.strip_suffix(".json")?.parse().ok()?))
}

fn is_entry(object: &str) -> bool {
    place(object).is_some()
}

#[async_trait]
impl Store for Misused {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        let key = &self.key(key);
        match self.misuse {
            Misuse::IndexBeforePacks if key.ends_with(".pack") => {
                self.lock().held.push((key.clone(), payload));
                return Ok(Put::Created);
            }
            Misuse::CommitBeforeManifest if key.contains("/checkpoints/") => {
                self.lock().held.push((key.clone(), payload));
                return Ok(Put::Created);
            }
            Misuse::Overwrite => self.inner.delete(key).await?,
            Misuse::NoWaiting if key.ends_with(".idx") => {
                self.lock().index = Some(payload.to_bytes());
            }
            Misuse::HeadBeforeEntry if is_entry(key) => {
                if let Ok(Some((head, stored))) = self.head(key, &payload).await {
                    // As in the real code, one that cannot be put is done without.
                    let _ = self.inner.put_if_absent(&head, stored).await;
                }
            }
            _ => {}
        }
        let put = self.inner.put_if_absent(key, payload.clone()).await;
        match (self.misuse, &put) {
            (Misuse::IndexBeforePacks, Ok(_)) if key.ends_with(".idx") => self.put_held().await?,
            (Misuse::CommitBeforeManifest, Ok(_)) if is_entry(key) => self.put_held().await?,
            (Misuse::TakenIsOurs, Ok(Put::Exists)) if is_entry(key) => return Ok(Put::Created),
            (Misuse::LostIsRefused, Err(error)) if is_entry(key) && error.is_retryable() => {
                return Err(Error::new(ErrorKind::Denied, "the put did not go through"));
            }
            (Misuse::LostIsOurs, Err(error)) if is_entry(key) && error.is_retryable() => {
                self.lock().believed.insert(key.clone(), payload.to_bytes());
                return Ok(Put::Created);
            }
            _ => {}
        }
        put
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        let key = &self.key(key);
        let mut found = self.inner.get(key, bytes_max).await;
        if self.misuse == Misuse::HeadUnsealed && key.contains("/heads/") {
            found = found.map(|stored| sealed_again(&stored).into());
        }
        if !matches!(&found, Err(error) if error.kind() == ErrorKind::NotFound) {
            return found;
        }
        let own = match self.misuse {
            Misuse::NoWaiting if key.ends_with(".idx") => self.made_up(key),
            _ => self.lock().believed.get(key).cloned(),
        };
        own.map_or(found, Ok)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.inner.get_range(&self.key(key), range).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        let key = &self.key(key);
        let found = self.inner.size(key).await?;
        let own = match self.misuse {
            Misuse::NoWaiting if key.ends_with(".idx") => Some(1),
            _ => self.lock().believed.get(key).map(|bytes| bytes.len() as u64),
        };
        Ok(found.or(own))
    }

    async fn settle(&self, key: &str) -> Result<()> {
        match self.misuse {
            Misuse::NoSettle => Ok(()),
            _ => self.inner.settle(&self.key(key)).await,
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        self.inner.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(&self.key(key)).await
    }
}
