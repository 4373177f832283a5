//! A store whose every call can be delayed, lost, refused, damaged on the way, or the last thing that
//! its caller does.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use lastgood_format::{Error, Result};
use lastgood_store::{Env, ObjectMeta, Payload, Put, Store};

use super::coverage::Feature;
use super::scheduler::{Event, Sim, State, Task};
use super::trace::Outcome;

/// What goes wrong, each in so many of a thousand calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// The longest way of a request or an answer, in microseconds.
    pub(super) micros_max: u64,
    /// Ways that take a hundred times as long.
    pub(super) slow: u64,
    /// Calls that the store refuses: nothing happens.
    pub(super) refused: u64,
    /// Settles that the store refuses beside those.
    pub(super) unsettled: u64,
    /// Calls whose answer is lost after they had their effect.
    pub(super) lost: u64,
    /// Puts that arrive after their caller was told that nobody knows.
    pub(super) late: u64,
    /// Puts of ledger entries, beside those two, whose answer is lost, or that arrive late.
    pub(super) stray_entries: u64,
    /// Callers that die on the way to the store or back.
    pub(super) crash: u64,
    /// Callers that die after their put had its effect and before they are told.
    pub(super) crash_after_put: u64,
    /// Objects that are read with a flipped bit or cut short; the next read is right.
    pub(super) damaged: u64,
}

/// One task's way to the store.
#[derive(Clone, Debug)]
pub(super) struct SimStore {
    pub(super) sim: Sim,
    pub(super) task: Task,
    pub(super) faults: Faults,
}

/// What becomes of one call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    Refused,
    Lost,
    Late,
}

impl SimStore {
    /// The way to the store or back; the caller may die on it.
    async fn travel(&self) -> bool {
        let (micros, dies) = {
            let random = &mut self.sim.lock().random;
            let mut micros = 1 + random.below(self.faults.micros_max);
            if random.chance(self.faults.slow) {
                micros *= 100;
            }
            (micros, random.chance(self.faults.crash))
        };
        self.sim.pause(self.task, micros).await;
        dies
    }

    fn fate(&self, is_put: bool, is_entry: bool) -> Fate {
        let random = &mut self.sim.lock().random;
        let Faults { refused, lost, late, stray_entries, .. } = self.faults;
        if is_put && is_entry && random.chance(stray_entries) {
            return if random.chance(600) { Fate::Lost } else { Fate::Late };
        }
        match random.below(1000) {
            n if n < refused => Fate::Refused,
            n if n < refused + lost => Fate::Lost,
            n if is_put && n < refused + lost + late => Fate::Late,
            _ => Fate::Answered,
        }
    }

    fn note(&self, what: &str, key: &str, outcome: &dyn Outcome) {
        let mut state = self.sim.lock();
        let now = state.now;
        state.trace.note(now, self.task, what, key, outcome);
    }

    fn mark_if(&self, feature: Feature, happened: bool) {
        self.sim.lock().features.note_if(feature, happened);
    }

    async fn die(&self, key: &str) {
        self.note("dies", key, &"");
        self.sim.die(self.task).await;
    }

    /// A call that is no put: there, its effect, and back.
    async fn call<T>(
        &self,
        what: &str,
        key: &str,
        effect: impl FnOnce(&mut State) -> T,
        outcome: impl Fn(&T) -> usize,
    ) -> Result<T> {
        if self.travel().await {
            self.die(key).await;
        }
        let fate = self.fate(false, false);
        if fate == Fate::Refused {
            self.note(what, key, &"refused");
            return Err(Error::unavailable("the simulated store refused the call"));
        }
        let done = effect(&mut self.sim.lock());
        self.note(what, key, &outcome(&done));
        if self.travel().await {
            self.die(key).await;
        }
        match fate {
            Fate::Answered => Ok(done),
            _ => Err(Error::unavailable("the simulated answer was lost")),
        }
    }

    /// The request of a dead or impatient caller may still be on its way.
    fn send_late(&self, key: &str, bytes: Bytes) {
        let mut state = self.sim.lock();
        let at = state.now + 1 + state.random.below(self.faults.micros_max * 20);
        state.at(at, Event::LatePut { key: key.to_owned(), bytes });
    }

    fn read(&self, state: &mut State, key: &str) -> Option<Bytes> {
        let bytes = state.objects.get(key)?.clone();
        // Never twice in a row: damage that stays is no fault of the way.
        let read = (self.task, key.to_owned());
        let was_damaged = state.damaged.remove(&read);
        // A damaged head costs reads, nothing else.
        let often = if key.contains("/heads/") { 20 } else { 1 };
        if was_damaged || bytes.is_empty() || !state.random.chance(self.faults.damaged * often) {
            return Some(bytes);
        }
        state.damaged.insert(read);
        state.features.note(Feature::DamagedRead);
        let at = state.random.below(bytes.len() as u64) as usize;
        if state.random.chance(500) {
            return Some(bytes.slice(..at));
        }
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1 << state.random.below(8);
        Some(flipped.into())
    }
}

#[async_trait]
impl Store for SimStore {
    fn location(&self) -> String {
        "simulation:".into()
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        let bytes = payload.to_bytes();
        if self.travel().await {
            if self.sim.lock().random.chance(500) {
                self.send_late(key, bytes);
            }
            self.die(key).await;
            return Err(Error::unavailable("dead"));
        }
        let is_entry = key.contains("/ledger/0");
        let fate = self.fate(true, is_entry);
        match fate {
            Fate::Refused => {
                self.note("put", key, &"refused");
                return Err(Error::unavailable("the simulated store refused the call"));
            }
            Fate::Late => {
                self.send_late(key, bytes);
                self.note("put", key, &"goes astray");
                self.travel().await;
                return Err(Error::unavailable("the simulated put timed out"));
            }
            Fate::Lost | Fate::Answered => {}
        }
        let created = {
            let mut state = self.sim.lock();
            let now = state.now;
            state.objects.create(key, bytes, now)
        };
        self.note("put", key, &created);
        self.mark_if(Feature::TakenSlot, is_entry && !created);
        // Others see the object already; until the answer, nobody has promised that it stays.
        let dies = self.sim.lock().random.chance(self.faults.crash_after_put);
        if self.travel().await || dies {
            self.mark_if(Feature::CrashAfterPut, true);
            self.die(key).await;
        }
        if fate == Fate::Lost {
            self.mark_if(Feature::LostEntry, is_entry);
            self.note("put", key, &"answer lost");
            return Err(Error::unavailable("the simulated answer was lost"));
        }
        self.sim.lock().objects.settle(key);
        Ok(if created { Put::Created } else { Put::Exists })
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        let size = |found: &Option<Bytes>| found.as_ref().map_or(0, Bytes::len);
        let found = self.call("get", key, |state| self.read(state, key), size).await?;
        let bytes = found.ok_or_else(|| Error::not_found("no such object").with_object(key))?;
        if bytes.len() as u64 > bytes_max {
            return Err(Error::corrupt("the object is too large").with_object(key));
        }
        Ok(bytes)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let bytes = self.get(key, u64::MAX).await?;
        if range.start > range.end || range.end > bytes.len() as u64 {
            return Err(Error::corrupt("the object ends before the range").with_object(key));
        }
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        let look = |state: &mut State| state.objects.get(key).map(|bytes| bytes.len() as u64);
        self.call("size", key, look, |found| found.map_or(0, |bytes| bytes as usize)).await
    }

    async fn settle(&self, key: &str) -> Result<()> {
        if self.sim.lock().random.chance(self.faults.unsettled) {
            self.note("settle", key, &"refused");
            self.mark_if(Feature::UnsettledRead, true);
            return Err(Error::unavailable("the simulated store cannot settle"));
        }
        self.call("settle", key, |state| state.objects.settle(key), |()| 0).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        let look = |state: &mut State| {
            let age = state.random.below(self.faults.micros_max * 20 + 1);
            let until = state.now.saturating_sub(age);
            state.objects.list(prefix, until)
        };
        let found = self.call("list", prefix, look, Vec::len).await?;
        let all = found.into_iter().map(|(key, bytes)| ObjectMeta { key, bytes });
        Ok(all.filter(|object| after.is_none_or(|after| object.key.as_str() > after)).collect())
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.mark_if(Feature::Collected, true);
        self.call("delete", key, |state| state.objects.remove(key), |()| 0).await
    }
}

/// One task's clock, which is wrong, and its randomness, which is the seed's.
#[derive(Clone, Debug)]
pub(super) struct SimEnv {
    pub(super) sim: Sim,
    pub(super) task: Task,
    /// How wrong the wall clock is.
    pub(super) skew: Duration,
}

#[async_trait]
impl Env for SimEnv {
    fn now(&self) -> SystemTime {
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        begin + self.skew + Duration::from_micros(self.sim.lock().now)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_micros(self.sim.lock().now)
    }

    fn random(&self) -> u64 {
        self.sim.lock().random.draw()
    }

    async fn sleep(&self, duration: Duration) {
        self.sim.pause(self.task, duration.as_micros() as u64).await;
    }
}
