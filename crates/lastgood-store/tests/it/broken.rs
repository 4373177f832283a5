//! Stores that are broken in one way each: the conformance suite must say so.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lastgood_store::conformance::{self, Options};
use lastgood_store::{
    Error, ErrorKind, MemoryStore, ObjectMeta, Payload, Put, Result, Store, SystemEnv,
};

use crate::clock::block_on;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    OverwritesAndSaysCreated,
    OverwritesAndSaysExists,
    SaysCreatedAlways,
    SaysExistsToItsOwnBytesOnly,
    LooksBeforeItLeaps,
    RefusesLosersOfARace,
    ReversesParts,
    DropsPartsAfterTheFirst1024,
    HasNoEmptyObjects,
    CutsLargeObjects,
    ShowsObjectsInPart,
    IgnoresBytesMax,
    BytesMaxIsExclusive,
    ClampsRanges,
    EmptyRangesOfAnything,
    IncludesTheEndOfRanges,
    ReadsShortIntoMemory,
    AbsentIsEmpty,
    AbsentHasASize,
    AbsentCannotBeDeleted,
    FoldersHaveASize,
    SettlesOnlyWhatExists,
    ListsFoldersOnly,
    ListsWithoutSizes,
    ListsFromAfter,
    IgnoresAfter,
    ListsInNoOrder,
    ListsByParts,
    ListsOnePage,
    ListsTwice,
    IgnoresCase,
    TakesAnyKey,
    CutsLongKeys,
    DeletesNothing,
    DeletesByPrefix,
    ForgetsThatItDeleted,
    SharesNothing,
}

/// Each flaw with the checks that must find it; others may find it, too.
const FOUND_BY: &[(Flaw, &[&str])] = &[
    (Flaw::OverwritesAndSaysCreated, &["created_once", "racing_creators", "shared"]),
    (Flaw::OverwritesAndSaysExists, &["created_once", "racing_creators", "empty_objects"]),
    (Flaw::SaysCreatedAlways, &["created_once", "racing_creators"]),
    (Flaw::SaysExistsToItsOwnBytesOnly, &["created_once"]),
    (Flaw::LooksBeforeItLeaps, &["racing_creators"]),
    (Flaw::RefusesLosersOfARace, &["created_once", "racing_creators"]),
    (Flaw::ReversesParts, &["parts_in_order"]),
    (Flaw::DropsPartsAfterTheFirst1024, &["parts_in_order"]),
    (Flaw::HasNoEmptyObjects, &["empty_objects"]),
    (Flaw::CutsLargeObjects, &["large_objects"]),
    (Flaw::ShowsObjectsInPart, &["never_seen_in_part", "cancelled_puts"]),
    (Flaw::IgnoresBytesMax, &["bytes_max"]),
    (Flaw::BytesMaxIsExclusive, &["bytes_max"]),
    (Flaw::ClampsRanges, &["ranges"]),
    (Flaw::EmptyRangesOfAnything, &["ranges", "absent_objects"]),
    (Flaw::IncludesTheEndOfRanges, &["ranges"]),
    (Flaw::ReadsShortIntoMemory, &["into_memory"]),
    (Flaw::AbsentIsEmpty, &["absent_objects"]),
    (Flaw::AbsentHasASize, &["absent_objects", "deleted"]),
    (Flaw::AbsentCannotBeDeleted, &["absent_objects"]),
    (Flaw::FoldersHaveASize, &["absent_objects"]),
    (Flaw::SettlesOnlyWhatExists, &["settled"]),
    (Flaw::ListsFoldersOnly, &["by_prefix"]),
    (Flaw::ListsWithoutSizes, &["by_prefix"]),
    (Flaw::ListsFromAfter, &["after"]),
    (Flaw::IgnoresAfter, &["after", "many"]),
    (Flaw::ListsInNoOrder, &["sorted"]),
    (Flaw::ListsByParts, &["sorted"]),
    (Flaw::ListsOnePage, &["many"]),
    (Flaw::ListsTwice, &["sorted", "by_prefix", "many"]),
    (Flaw::IgnoresCase, &["of_every_kind"]),
    (Flaw::TakesAnyKey, &["hostile"]),
    (Flaw::CutsLongKeys, &["of_every_kind"]),
    (Flaw::DeletesNothing, &["deleted"]),
    (Flaw::DeletesByPrefix, &["deleted"]),
    (Flaw::ForgetsThatItDeleted, &["deleted"]),
    (Flaw::SharesNothing, &["shared", "racing_creators"]),
];

#[test]
fn every_flaw_is_found() {
    let options = Options {
        race_rounds: 40,
        racers: 8,
        large_bytes: 2 << 20,
        stale_max: Duration::ZERO,
        ..Options::default()
    };
    let mut missed = Vec::new();
    for (flaw, checks) in FOUND_BY {
        for check in *checks {
            let store = Broken::new(*flaw);
            let open = || Ok(store.handle());
            let options = Options { only: Some((*check).into()), ..options.clone() };
            let report = block_on(conformance::run(&open, &SystemEnv::default(), &options));
            if report.broken() != [*check] {
                missed.push(format!("{flaw:?}: {report}"));
            }
        }
    }
    assert!(missed.is_empty(), "not found:\n{}", missed.join("\n"));
}

/// A check that finds no flaw cannot fail.
#[test]
fn every_check_finds_a_flaw() {
    let finds = |name: &str| FOUND_BY.iter().any(|(_, checks)| checks.contains(&name));
    let idle: Vec<&str> = conformance::names().into_iter().filter(|name| !finds(name)).collect();
    assert!(idle.is_empty(), "{idle:?}");
}

#[test]
fn one_check_can_be_run_alone() {
    let store = MemoryStore::default();
    for (only, count) in [("ranges", 1), ("no such check", 0)] {
        let options = Options { only: Some(only.into()), ..Options::default() };
        let open = || Ok(Arc::new(store.clone()) as Arc<dyn Store>);
        let report = block_on(conformance::run(&open, &SystemEnv::default(), &options));
        assert_eq!((report.outcomes.len(), report.passed()), (count, count == 1), "{report}");
    }
}

#[test]
fn a_store_that_cannot_be_opened_is_broken() {
    let open = || Err(Error::invalid("no such place"));
    let options = Options { race_rounds: 1, ..Options::default() };
    let report = block_on(conformance::run(&open, &SystemEnv::default(), &options));
    assert_eq!(report.broken(), conformance::names());
    assert!(report.to_string().contains("no such place"), "{report}");
}

/// A store in memory with a flaw.
#[derive(Clone, Debug)]
struct Broken {
    flaw: Flaw,
    inner: MemoryStore,
    /// What was put before the last put, where the flaw needs it.
    before: Arc<Mutex<BTreeMap<String, Bytes>>>,
}

impl Broken {
    fn new(flaw: Flaw) -> Self {
        Self { flaw, inner: MemoryStore::default(), before: Arc::default() }
    }

    fn handle(&self) -> Arc<dyn Store> {
        match self.flaw {
            Flaw::SharesNothing => Arc::new(Self::new(self.flaw)),
            _ => Arc::new(self.clone()),
        }
    }

    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn key(&self, key: &str) -> String {
        match self.flaw {
            Flaw::IgnoresCase => key.to_lowercase(),
            Flaw::CutsLongKeys => key.chars().take(250).collect(),
            Flaw::TakesAnyKey => {
                let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
                let plain: String = key.chars().map(plain).collect();
                // Plain keys stay what they are.
                let is_plain = key.split('/').all(|part| {
                    !part.is_empty()
                        && !part.starts_with('.')
                        && part.len() < 256
                        && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
                });
                if is_plain && key.len() <= 900 { key.into() } else { format!("x{plain:.200}") }
            }
            _ => key.to_owned(),
        }
    }

    fn payload(&self, payload: Payload) -> Payload {
        let mut parts = payload.parts().to_vec();
        match self.flaw {
            Flaw::ReversesParts => parts.reverse(),
            Flaw::DropsPartsAfterTheFirst1024 => parts.truncate(1024),
            Flaw::CutsLargeObjects => {
                return payload.to_bytes().slice(..payload.to_bytes().len().min(1 << 20)).into();
            }
            _ => {}
        }
        Payload::from_parts(parts)
    }

    /// Lets the others see what is in between.
    async fn give_way(&self) {
        tokio::time::sleep(Duration::from_millis(3)).await;
    }

    async fn put_over(&self, key: &str, payload: Payload) -> Result<Put> {
        let bytes = payload.to_bytes();
        self.inner.size(key).await?;
        self.inner.tamper(key, |stored| *stored = bytes.to_vec());
        Ok(Put::Created)
    }
}

#[async_trait]
impl Store for Broken {
    fn location(&self) -> String {
        format!("broken:{:?}", self.flaw)
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        let (key, payload) = (&self.key(key), self.payload(payload));
        let exists = self.inner.size(key).await?.is_some();
        match self.flaw {
            Flaw::OverwritesAndSaysCreated => return self.put_over(key, payload).await,
            Flaw::OverwritesAndSaysExists => {
                self.put_over(key, payload).await?;
                return Ok(if exists { Put::Exists } else { Put::Created });
            }
            Flaw::SaysCreatedAlways => {
                self.inner.put_if_absent(key, payload).await?;
                return Ok(Put::Created);
            }
            Flaw::SaysExistsToItsOwnBytesOnly if exists => {
                let is_own = self.inner.peek(key) == Some(payload.to_bytes());
                return Ok(if is_own { Put::Created } else { Put::Exists });
            }
            Flaw::LooksBeforeItLeaps if !exists => {
                self.give_way().await;
                return self.put_over(key, payload).await;
            }
            Flaw::RefusesLosersOfARace if exists => {
                return Err(Error::unavailable("somebody else is writing").with_object(key));
            }
            Flaw::HasNoEmptyObjects if payload.is_empty() => return Ok(Put::Created),
            Flaw::ShowsObjectsInPart if !exists && payload.len() > 1 << 20 => {
                let bytes = payload.to_bytes();
                self.put_over(key, bytes.slice(..bytes.len() / 2).into()).await?;
                self.give_way().await;
                return self.put_over(key, payload).await;
            }
            Flaw::ForgetsThatItDeleted => {
                let before = self.before.lock().unwrap().get(key).cloned();
                if let Some(bytes) = before {
                    return self.inner.put_if_absent(key, bytes.into()).await;
                }
            }
            _ => {}
        }
        self.inner.put_if_absent(key, payload).await
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        let bytes_max = match self.flaw {
            Flaw::IgnoresBytesMax => u64::MAX,
            Flaw::BytesMaxIsExclusive => bytes_max.saturating_sub(1),
            _ => bytes_max,
        };
        let found = self.inner.get(&self.key(key), bytes_max).await;
        match found {
            Err(error) if self.is(Flaw::AbsentIsEmpty) && error.kind() == ErrorKind::NotFound => {
                Ok(Bytes::new())
            }
            found => found,
        }
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let key = &self.key(key);
        let bytes = self.inner.size(key).await?;
        match (self.flaw, bytes) {
            (Flaw::EmptyRangesOfAnything, _) if range.is_empty() => Ok(Bytes::new()),
            (Flaw::ClampsRanges, Some(bytes)) => {
                let range = range.start.min(bytes)..range.end.min(bytes);
                self.inner.get_range(key, range).await
            }
            (Flaw::IncludesTheEndOfRanges, Some(bytes)) if range.end < bytes => {
                self.inner.get_range(key, range.start..range.end + 1).await
            }
            _ => self.inner.get_range(key, range).await,
        }
    }

    async fn read_into(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        let key = &self.key(key);
        if self.is(Flaw::ReadsShortIntoMemory) && target.len() > 1 {
            let end = target.len() - 1;
            return self.inner.read_into(key, offset, &mut target[..end]).await;
        }
        self.inner.read_into(key, offset, target).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        let key = &self.key(key);
        let size = self.inner.size(key).await?;
        let is_folder = || self.inner.keys().iter().any(|k| k.starts_with(&format!("{key}/")));
        Ok(match self.flaw {
            Flaw::AbsentHasASize => Some(size.unwrap_or_default()),
            Flaw::FoldersHaveASize if size.is_none() && is_folder() => Some(4096),
            _ => size,
        })
    }

    async fn settle(&self, key: &str) -> Result<()> {
        let size = self.inner.size(&self.key(key)).await?;
        if self.is(Flaw::SettlesOnlyWhatExists) && size.is_none() {
            return Err(Error::not_found("nothing to settle").with_object(key));
        }
        Ok(())
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        let wider = match self.flaw {
            Flaw::TakesAnyKey | Flaw::IgnoresCase | Flaw::CutsLongKeys => &self.key(prefix),
            _ => prefix,
        };
        let narrower = after.filter(|_| !self.is(Flaw::IgnoresAfter));
        let mut found = self.inner.list(wider, narrower).await?;
        match self.flaw {
            Flaw::ListsFoldersOnly => {
                let folder = format!("{}/", prefix.trim_end_matches('/'));
                found.retain(|object| prefix.is_empty() || object.key.starts_with(&folder));
            }
            Flaw::ListsWithoutSizes => found.iter_mut().for_each(|object| object.bytes = 0),
            Flaw::ListsFromAfter => {
                let own = after.filter(|after| after.starts_with(prefix));
                if let Some(after) = own
                    && let Some(bytes) = self.inner.peek(after)
                {
                    let first = ObjectMeta { key: after.into(), bytes: bytes.len() as u64 };
                    found.insert(0, first);
                }
            }
            Flaw::ListsInNoOrder => found.reverse(),
            Flaw::ListsByParts => {
                let parts = |key: &str| key.split('/').map(str::to_owned).collect::<Vec<_>>();
                found.sort_by_key(|object| parts(&object.key));
            }
            Flaw::ListsOnePage => found.truncate(1000),
            Flaw::ListsTwice => {
                found = found.into_iter().flat_map(|object| [object.clone(), object]).collect();
            }
            _ => {}
        }
        Ok(found)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let key = &self.key(key);
        match self.flaw {
            Flaw::DeletesNothing => return self.inner.size(key).await.map(|_| ()),
            Flaw::AbsentCannotBeDeleted if self.inner.size(key).await?.is_none() => {
                return Err(Error::not_found("nothing to delete").with_object(key));
            }
            Flaw::DeletesByPrefix => {
                for object in self.inner.list(key, None).await? {
                    self.inner.delete(&object.key).await?;
                }
            }
            Flaw::ForgetsThatItDeleted => {
                if let Some(bytes) = self.inner.peek(key) {
                    self.before.lock().unwrap().insert(key.clone(), bytes);
                }
            }
            _ => {}
        }
        self.inner.delete(key).await
    }
}
