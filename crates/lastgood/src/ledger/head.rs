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

/// A head tells of the checkpoints since an earlier head, so that heads grow no faster than the history: the number of
/// the earlier one is its own with the last digit that is not 0 made 0, in this base. A reader needs a head for each digit.
const BASE: u64 = 8;

/// How many heads are tried before the ledger is read from its beginning.
const HEADS_TRIED: u32 = 3;

const BYTES_MAX: u64 = 256 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: u32,
    kind: String,
    /// The entry of the head that it goes on from; 0 if it tells of everything.
    #[serde(default, skip_serializing_if = "is_zero")]
    since: u64,
    history: History,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The entry of the head that the one at entry `n` goes on from; 0 for none.
fn since(n: u64) -> u64 {
    let (mut number, mut unit) = (n / HEAD_EVERY, HEAD_EVERY);
    while number > 0 && number.is_multiple_of(BASE) {
        (number, unit) = (number / BASE, unit * BASE);
    }
    (number - number % BASE) * unit
}

/// The history at the newest head at or before entry `tail` that can be read.
pub(super) async fn newest(ledger: &Ledger, tail: u64) -> Option<History> {
    let mut best: Option<History> = None;
    let mut n = tail / HEAD_EVERY * HEAD_EVERY;
    for _ in 0..HEADS_TRIED {
        if n == 0 {
            break;
        }
        let (history, lacks) = read(ledger, n).await;
        // Those before one that is damaged say what is true, and save reads.
        let entries = |history: &Option<History>| history.as_ref().map_or(0, History::entries);
        if entries(&history) > entries(&best) {
            best = history;
        }
        match lacks {
            Some((damaged, _)) => n = damaged - HEAD_EVERY,
            None => break,
        }
    }
    best
}

/// What the head at entry `n` and those that it goes on from say, up to the first that cannot be read, and which that is.
async fn read(ledger: &Ledger, n: u64) -> (Option<History>, Option<(u64, Error)>) {
    let mut chain = vec![n];
    while let Some(earlier) = chain.last().map(|n| since(*n)).filter(|n| *n > 0) {
        chain.push(earlier);
    }
    let mut history: Option<History> = None;
    for n in chain.into_iter().rev() {
        let known = history.as_ref().map_or(0, History::entries);
        match read_one(ledger, n, known).await {
            Ok(next) => history = Some(next.after(history)),
            Err(error) => return (history, Some((n, error))),
        }
    }
    (history, None)
}

/// What the head at entry `n` says, which goes on from the one at entry `known`, or tells of everything.
async fn read_one(ledger: &Ledger, n: u64, known: u64) -> Result<History> {
    let object = key::ledger_head(ledger.run(), n);
    let stored = ledger.store().get(&object, BYTES_MAX).await;
    let head = stored.and_then(|stored| decode(&stored, ledger, n));
    let (history, since) =
        head.map_err(|error| error.context("ledger head").with_object(object.clone()))?;
    if ![0, known].contains(&since) {
        let error = Error::corrupt(format!("it goes on from entry {since}, expected {known}"));
        return Err(error.context("ledger head").with_object(object));
    }
    Ok(history)
}

/// The history of a head, and the entry of the head that it goes on from.
pub(crate) fn decode(stored: &[u8], ledger: &Ledger, n: u64) -> Result<(History, u64)> {
    let head: Head = sealed::unseal(stored)?;
    lastgood_format::descriptor::check_version(head.format)?;
    let history = head.history;
    if head.kind != "ledger.head" || history.run() != ledger.run() || history.entries() != n {
        return Err(Error::corrupt(format!("expected the head at entry {n} of {}", ledger.run())));
    }
    Ok((history, head.since))
}

impl Ledger {
    /// Writes the head of the current history if one is due. Losing it costs reads, nothing else.
    pub(super) async fn write_head(&self) -> Result<()> {
        if !self.history.entries().is_multiple_of(HEAD_EVERY) {
            return Ok(());
        }
        let object = key::ledger_head(self.run(), self.history.entries());
        let since = since(self.history.entries());
        let head = Head {
            format: FORMAT_VERSION,
            kind: "ledger.head".into(),
            since,
            history: self.history.since(since),
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
        let (found, lacks) = read(self, history.entries()).await;
        if let Some((_, error)) = lacks {
            return Err(error);
        }
        let found = found.ok_or_else(|| Error::internal("a head was read and is not there"))?;
        if found.facts() != history.facts() {
            return Err(Error::corrupt("a ledger head disagrees with the entries before it")
                .with_object(object));
        }
        Ok(true)
    }
}
