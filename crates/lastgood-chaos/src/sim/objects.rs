//! The objects of the simulated store, each settled or not.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::random::Random;

#[derive(Clone, Debug)]
struct Object {
    bytes: Bytes,
    /// It survives the loss of power: its creator was told, or somebody settled it.
    settled: bool,
    created: u64,
}

/// Every object by key.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects(BTreeMap<String, Object>);

impl Objects {
    /// Creates an object unless it exists; it is not settled.
    pub(super) fn create(&mut self, key: &str, bytes: Bytes, now: u64) -> bool {
        if self.0.contains_key(key) {
            return false;
        }
        self.0.insert(key.to_owned(), Object { bytes, settled: false, created: now });
        true
    }

    pub(super) fn settle(&mut self, key: &str) {
        if let Some(object) = self.0.get_mut(key) {
            object.settled = true;
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Bytes> {
        self.0.get(key).map(|object| &object.bytes)
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// What a listing shows that is as old as `until`.
    pub(super) fn list(&self, prefix: &str, until: u64) -> Vec<(String, u64)> {
        self.0
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(_, object)| object.created <= until)
            .map(|(key, object)| (key.clone(), object.bytes.len() as u64))
            .collect()
    }

    /// The power goes: each object that is not settled vanishes or stays. Gives how many vanished.
    pub(super) fn cut_power(&mut self, random: &mut Random, stay_per_mille: u64) -> usize {
        let before = self.0.len();
        self.0.retain(|_, object| object.settled || random.chance(stay_per_mille));
        for object in self.0.values_mut() {
            object.settled = true;
        }
        before - self.0.len()
    }

    /// True if a power cut may take something.
    pub(super) fn is_any_unsettled(&self) -> bool {
        self.0.values().any(|object| !object.settled)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&String, &Bytes)> {
        self.0.iter().map(|(key, object)| (key, &object.bytes))
    }
}
