//! Appending: read to the tail, decide, create the next entry; if it is taken, read it and decide
//! again.

use lastgood_format::key;
use lastgood_format::ledger::{Entry, Kind};
use lastgood_format::{Error, Hash, Result};
use lastgood_store::{Payload, Put};

use super::Ledger;

/// How often one slot is tried before its outcome is called unknown.
const TRIES_MAX: u32 = 5;

/// Who appends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The attempt, or 0 for an operator or a tool, which no attempt fences.
    pub attempt: u64,
    /// For a person: `rank 3`, `supervisor`, `cli`.
    pub actor: String,
}

/// What there is to do at the tail of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Append this.
    Append(Kind),
    /// Nothing: it is decided already.
    Nothing,
}

/// What became of an append. An error beside it means: certainly not appended.
#[derive(Clone, Debug)]
#[must_use]
pub enum Appended {
    /// The entry is in the ledger, under this number.
    Committed(u64),
    /// Nothing was to be done.
    Nothing,
    /// The store did not say. The entry is in the ledger, or will be, or never will.
    Unknown(Unknown),
}

/// An append whose outcome the store did not tell.
///
/// Appending again settles it: the next append competes for the same slot, and its decision sees
/// the entry if it was written.
#[derive(Clone, Debug)]
pub struct Unknown {
    /// The slot.
    pub n: u64,
    /// The write id of the entry that may stand in it.
    pub write_id: u128,
    /// What the store said last.
    pub error: Error,
}

enum Slot {
    /// The entry is there and durable.
    Ours,
    /// Another entry is there, which is durable if the store said that it exists.
    Taken {
        entry: Box<Entry>,
        hash: Hash,
        is_durable: bool,
    },
    Unknown(Error),
}

impl Ledger {
    /// Appends what `decide` says at the tail, and asks it again whenever somebody else was first.
    ///
    /// `decide` must be idempotent: if its decision stands in the history already, it answers
    /// [`Decision::Nothing`].
    ///
    /// # Errors
    /// Certainly nothing was appended: `Fenced`, `Conflict` from the rules or from `decide`;
    /// `Unavailable`, `Denied`, `Corrupt` from reading or from a refused write.
    pub async fn append(
        &mut self,
        writer: &Writer,
        mut decide: impl FnMut(&super::History) -> Result<Decision> + Send,
    ) -> Result<Appended> {
        loop {
            self.refresh().await?;
            let kind = match decide(&self.history)? {
                Decision::Append(kind) => kind,
                Decision::Nothing => return Ok(Appended::Nothing),
            };
            self.rules.admit(&self.history, writer, &kind)?;
            let entry = self.next_entry(writer, kind);
            let stored = entry.encode()?;
            let hash = Hash::of(&stored);
            match self.take_slot(&entry, stored.into()).await? {
                Slot::Ours => {
                    self.history.apply(&entry, hash)?;
                    self.settled = entry.n;
                    // A head that cannot be written costs the next reader time, nothing else.
                    let _ = self.write_head().await;
                    return Ok(Appended::Committed(entry.n));
                }
                Slot::Taken { entry, hash, is_durable } => {
                    self.history.apply(&entry, hash)?;
                    if is_durable {
                        self.settled = entry.n;
                    }
                }
                Slot::Unknown(error) => {
                    let (n, write_id) = (entry.n, entry.write_id);
                    return Ok(Appended::Unknown(Unknown { n, write_id, error }));
                }
            }
        }
    }

    fn next_entry(&self, writer: &Writer, kind: Kind) -> Entry {
        let write_id = u128::from(self.env.random()) << 64 | u128::from(self.env.random());
        Entry {
            run: self.run().clone(),
            n: self.history.entries() + 1,
            prev: self.history.tail(),
            write_id,
            attempt: writer.attempt,
            at: self.env.now(),
            actor: writer.actor.clone(),
            kind,
        }
    }

    /// Puts the same bytes into the same slot until it is certain whose the slot is. Never goes on to
    /// another slot while this one is undecided: a late put could still land in it.
    async fn take_slot(&self, entry: &Entry, payload: Payload) -> Result<Slot> {
        let object = key::ledger_entry(self.run(), entry.n);
        let mut last = Error::unavailable("the store did not answer");
        let (mut may_exist, mut is_durable) = (false, false);
        for _ in 0..TRIES_MAX {
            match self.store.put_if_absent(&object, payload.clone()).await {
                Ok(Put::Created) => return Ok(Slot::Ours),
                Ok(Put::Exists) => (may_exist, is_durable) = (true, true),
                Err(error) if error.is_retryable() => {
                    may_exist = true;
                    last = error;
                }
                Err(error) if !may_exist => return Err(error.with_object(object)),
                Err(error) => last = error,
            }
            match self.read_entry(entry.n).await {
                Ok(Some((found, _))) if found.write_id == entry.write_id => {
                    // A put that failed after it had its effect promises nothing.
                    match if is_durable { Ok(()) } else { self.store.settle(&object).await } {
                        Ok(()) => return Ok(Slot::Ours),
                        Err(error) => last = error,
                    }
                }
                Ok(Some((other, hash))) => {
                    return Ok(Slot::Taken { entry: Box::new(other), hash, is_durable });
                }
                Ok(None) => {}
                Err(error) => last = error,
            }
        }
        Ok(Slot::Unknown(last))
    }
}
