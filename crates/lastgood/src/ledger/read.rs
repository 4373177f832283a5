//! Reading a ledger: finding its tail, and every entry verified.

use lastgood_format::key;
use lastgood_format::ledger::Entry;
use lastgood_format::{ErrorKind, Hash, Result};

use super::{Ledger, head};

/// How often a damaged read is read again before the object counts as damaged: a flipped bit on the
/// way must not condemn a ledger.
const READS_MAX: u32 = 3;

impl Ledger {
    /// Reads every entry that was appended since the last read.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub async fn refresh(&mut self) -> Result<()> {
        while let Some((entry, hash)) = self.read_entry(self.history.entries() + 1).await? {
            let applied = self.history.apply(&entry, hash);
            applied.map_err(|e| e.with_object(key::ledger_entry(self.run(), entry.n)))?;
        }
        // Whatever is decided or acknowledged from here on stands on these entries. An earlier call
        // may have read some of them and failed before it settled them. Whoever appended the last one
        // settled those before it.
        if self.history.entries() > self.settled {
            let tail = key::ledger_entry(self.run(), self.history.entries());
            self.store.settle(&tail).await.map_err(|e| e.with_object(tail))?;
            self.settled = self.history.entries();
        }
        Ok(())
    }

    /// Entry `n` with the hash of its stored bytes, or `None` if there is none.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub async fn read_entry(&self, n: u64) -> Result<Option<(Entry, Hash)>> {
        let object = key::ledger_entry(self.run(), n);
        let mut reads = 1;
        loop {
            let stored = match self.store.get(&object, Entry::BYTES_MAX).await {
                Ok(stored) => stored,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.with_object(object)),
            };
            match self.rules.decode(&stored, self.run(), n) {
                Ok(entry) => return Ok(Some((entry, Hash::of(&stored)))),
                Err(error) if error.kind() == ErrorKind::Corrupt && reads < READS_MAX => reads += 1,
                Err(error) => {
                    return Err(error.with_object(object).with_remedy(
                        "restore this object from a copy of the repository: every later decision \
                         stands on it",
                    ));
                }
            }
        }
    }

    /// Finds the tail by doubling and halving, takes the newest head at or before it, and reads the
    /// entries after the head. Entries are dense and never deleted, so that the search is exact and
    /// costs a logarithm of requests, and no listing.
    pub(super) async fn seek(&mut self) -> Result<()> {
        let tail = self.find_tail().await?;
        if let Some(history) = head::newest(self, tail).await {
            self.history = history;
        }
        self.refresh().await
    }

    async fn find_tail(&self) -> Result<u64> {
        let (mut present, mut absent) = (0, 1);
        while self.has_entry(absent).await? {
            present = absent;
            absent = absent.saturating_mul(2);
        }
        while absent - present > 1 {
            let middle = present + (absent - present) / 2;
            if self.has_entry(middle).await? {
                present = middle;
            } else {
                absent = middle;
            }
        }
        Ok(present)
    }

    async fn has_entry(&self, n: u64) -> Result<bool> {
        let object = key::ledger_entry(self.run(), n);
        Ok(self.store.size(&object).await.map_err(|e| e.with_object(object))?.is_some())
    }
}
