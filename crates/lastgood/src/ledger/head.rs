//! Heads: summaries of a ledger's beginning, so that opening a run costs the same after a hundred
//! entries as after a million.
//!
//! A head only saves reads. It is sealed, names the hash of the entry that it ends with, and is
//! ignored when it is missing or damaged.

use lastgood_format::{Error, FORMAT_VERSION, Result, key, sealed};
use serde::{Deserialize, Serialize};

use super::{History, Ledger};

/// A head stands at every multiple of this number.
pub(super) const HEAD_EVERY: u64 = 64;

/// How many heads are tried before the ledger is read from its beginning.
const HEADS_TRIED: u64 = 2;

const BYTES_MAX: u64 = 256 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: u32,
    kind: String,
    history: History,
}

/// The newest readable head at or before entry `tail`.
pub(super) async fn newest(ledger: &Ledger, tail: u64) -> Option<History> {
    let newest = tail / HEAD_EVERY;
    for i in (newest.saturating_sub(HEADS_TRIED - 1)..=newest).rev().take_while(|i| *i > 0) {
        if let Ok(history) = read(ledger, i * HEAD_EVERY).await {
            return Some(history);
        }
    }
    None
}

async fn read(ledger: &Ledger, n: u64) -> Result<History> {
    let object = key::ledger_head(ledger.run(), n);
    let stored = ledger.store().get(&object, BYTES_MAX).await?;
    decode(&stored, ledger, n)
}

pub(crate) fn decode(stored: &[u8], ledger: &Ledger, n: u64) -> Result<History> {
    let head: Head = sealed::unseal(stored)?;
    lastgood_format::descriptor::check_version(head.format)?;
    let history = head.history;
    if head.kind != "ledger.head" || history.run() != ledger.run() || history.entries() != n {
        return Err(Error::corrupt(format!("expected the head at entry {n} of {}", ledger.run())));
    }
    Ok(history)
}

impl Ledger {
    /// Writes the head of the current history if one is due. Losing it costs reads, nothing else.
    pub(super) async fn write_head(&self) -> Result<()> {
        if !self.history.entries().is_multiple_of(HEAD_EVERY) {
            return Ok(());
        }
        let object = key::ledger_head(self.run(), self.history.entries());
        let head = Head {
            format: FORMAT_VERSION,
            kind: "ledger.head".into(),
            history: self.history.clone(),
        };
        let stored = sealed::seal(&head)?;
        self.store.put_if_absent(&object, stored.into()).await.map(|_| ())
    }

    /// Reads every entry from the first and every head, and compares each head with the entries.
    /// Gives the number of heads.
    ///
    /// # Errors
    /// `Corrupt` naming the first entry or head that is damaged; `Unavailable`.
    pub async fn audit(&self) -> Result<u64> {
        let mut heads = 0;
        let mut history = History::new(self.run().clone());
        while history.entries() < self.history.entries() {
            let n = history.entries() + 1;
            let object = key::ledger_entry(self.run(), n);
            let (entry, hash) = self.read_entry(n).await?.ok_or_else(|| {
                Error::corrupt(format!("ledger entry {n} is missing")).with_object(object.clone())
            })?;
            history.apply(&entry, hash).map_err(|error| error.with_object(object))?;
            if n.is_multiple_of(HEAD_EVERY) {
                heads += u64::from(self.audit_head(&history).await?);
            }
        }
        if history.facts() != self.history.facts() {
            return Err(Error::corrupt("the entries and the head that was read disagree")
                .with_object(format!("ledger of {}", self.run())));
        }
        Ok(heads)
    }

    async fn audit_head(&self, history: &History) -> Result<bool> {
        let object = key::ledger_head(self.run(), history.entries());
        if self.store.size(&object).await?.is_none() {
            return Ok(false);
        }
        let found = read(self, history.entries())
            .await
            .map_err(|error| error.context("ledger head").with_object(object.clone()))?;
        if found.facts() != history.facts() {
            return Err(Error::corrupt("a ledger head disagrees with the entries before it")
                .with_object(object));
        }
        Ok(true)
    }
}
