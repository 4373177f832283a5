//! A judge of the ledger that reads no entry twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use lastgood::ledger::{History, Rules, Writer};
use lastgood::{Result, RunName};
use lastgood_format::ledger::{Entry, Kind};

/// The judge below, which is not asked again to read the bytes that it read once: what it says of an entry is
/// a pure function of them.
#[derive(Debug)]
pub(crate) struct Remembering {
    below: Arc<dyn Rules>,
    /// What was read as entry `n`.
    read: Mutex<BTreeMap<u64, Vec<Read>>>,
}

/// The stored bytes of an entry, and what they say.
type Read = (Vec<u8>, Entry);

impl Remembering {
    pub(crate) fn over(below: Arc<dyn Rules>) -> Arc<dyn Rules> {
        Arc::new(Self { below, read: Mutex::default() })
    }
}

impl Rules for Remembering {
    fn admit(&self, history: &History, writer: &Writer, kind: &Kind) -> Result<()> {
        self.below.admit(history, writer, kind)
    }

    fn decode(&self, stored: &[u8], run: &RunName, n: u64) -> Result<Entry> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let known = read.entry(n).or_default();
        let is_same = |(bytes, entry): &&Read| bytes == stored && entry.run == *run;
        if let Some((_, entry)) = known.iter().find(is_same) {
            return Ok(entry.clone());
        }
        let entry = self.below.decode(stored, run, n)?;
        known.push((stored.to_vec(), entry.clone()));
        Ok(entry)
    }
}
