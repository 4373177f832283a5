//! What a rank of a run writes into its journal.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use lastgood_format::journal::tail::Owner;
use lastgood_format::journal::{CUT, Cut, ENVIRONMENT, Kind, Lane, Value};
use lastgood_format::key::SaveKey;
use lastgood_format::{Error, Hash, Result, RunName};

use super::JournalOptions;
use super::lanes::Event;
use super::record::StepRecord;
use super::writer::{Journal, Ticket, fault};
use crate::ledger::Attempt;
use crate::preflight::{Environment, Report, environment};
use crate::repository::Repository;
use crate::state::World;

/// The journal of one rank of an attempt.
#[derive(Debug)]
pub(crate) struct RankJournal {
    journal: Journal,
    /// The lanes of its logical ranks.
    lanes: Vec<Lane>,
    /// True if it writes the control lane too.
    leads: bool,
    wait: bool,
    /// The hash of the environment of this process, if it was given.
    environment: Option<Hash>,
    /// How often the state was restored or a step recorded.
    happened: AtomicU64,
}

impl RankJournal {
    /// Begins the lanes of a rank, and says in each with what.
    pub(crate) fn open(
        repository: &Repository,
        run: &RunName,
        (world, attempt): (World, &Attempt),
        options: &JournalOptions,
        environment: &Environment,
    ) -> Result<Self> {
        let logical = options.logical(world)?;
        let folder = options.folder(repository, run.as_str())?;
        let lanes: Vec<Lane> = logical.clone().filter_map(Lane::of_rank).collect();
        let own = own(&lanes);
        let leads = world.rank == 0;
        let owner = Owner {
            repository: repository.id().to_owned(),
            run: run.clone(),
            attempt: attempt.number,
        };
        let begun = Value::map([
            ("world", world.size.into()),
            ("rank", world.rank.into()),
            ("logical", Value::Array(vec![logical.start.into(), logical.end.into()])),
            ("from", attempt.from.map_or(Value::Null, |id| hash(&id))),
        ]);
        let mut first = everywhere(leads, &lanes, Kind::ATTEMPT_BEGUN, 0, &begun);
        let value = environment::value(environment);
        first.push(Event { lane: own, kind: Kind::ENVIRONMENT, step: 0, value });
        let io = repository.io().clone();
        let journal = Journal::start(io, owner, (&first, own), folder, options.seal_after)?;
        let given = (!environment.is_empty()).then(|| environment::digest(environment));
        Ok(Self {
            journal,
            lanes,
            leads,
            wait: options.wait,
            environment: given.transpose()?,
            happened: AtomicU64::new(0),
        })
    }

    /// The journal below it.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The lanes of its logical ranks.
    pub(crate) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// The lane of the first logical rank.
    pub(crate) fn own(&self) -> Lane {
        own(&self.lanes)
    }

    fn append(&self, lane: Lane, kind: Kind, value: Value) -> Result<Ticket> {
        self.journal.append(&Event { lane, kind, step: 0, value })
    }

    /// The same event in every lane of this process.
    fn everywhere(&self, kind: Kind, step: u64, value: &Value) -> Result<()> {
        let events = everywhere(self.leads, &self.lanes, kind, step, value);
        events.iter().try_for_each(|event| self.journal.append(event).map(drop))
    }

    /// The state is that of a checkpoint now.
    pub(crate) fn restored(&self, checkpoint: &Hash, step: u64) -> Result<()> {
        let again = self.happened.fetch_add(1, Ordering::Relaxed) > 0;
        let kind = if again { Kind::REWOUND } else { Kind::RESTORED };
        let value = Value::map([("checkpoint", hash(checkpoint)), ("step", step.into())]);
        self.everywhere(kind, step, &value)
    }

    /// A step is done.
    pub(crate) fn step(&self, record: &StepRecord) -> Result<()> {
        self.happened.fetch_add(1, Ordering::Relaxed);
        let step = record.step();
        let mut last = None;
        for lane in &self.lanes {
            let value = record.value(lane.rank().unwrap_or_default());
            let event = Event { lane: *lane, kind: Kind::STEP, step, value };
            last = Some(self.journal.append(&event)?);
        }
        match last {
            Some(ticket) if self.wait => self.journal.wait(ticket),
            _ => Ok(()),
        }
    }

    /// Something of a kind that the caller names. Gives what the event says.
    pub(crate) fn event(&self, name: &str, data: Value) -> Result<Value> {
        let value = Value::map([("kind", name.into()), ("data", data)]);
        self.append(self.own(), Kind::EVENT, value.clone())?;
        Ok(value)
    }

    /// Something that was read from outside of the run. Gives what the event says.
    pub(crate) fn external(&self, name: &str, value: Value) -> Result<Value> {
        let value = Value::map([("key", name.into()), ("value", value)]);
        self.append(self.own(), Kind::EXTERNAL_READ, value.clone())?;
        Ok(value)
    }

    /// What came of the steps that were to be done again: an event of [`Kind::RESUMED`] or [`Kind::DIVERGED`].
    pub(crate) fn resume(&self, kind: Kind, value: Value) -> Result<()> {
        self.append(self.own(), kind, value).map(drop)
    }

    /// What a preflight found.
    pub(crate) fn preflight(&self, report: &Report) -> Result<()> {
        self.append(self.own(), Kind::PREFLIGHT, report.to_value()).map(drop)
    }

    /// The cut that a save includes, and the hash of the environment that it is made in, as the metadata of its
    /// shard index.
    pub(crate) fn captured(&self, save: &SaveKey) -> Result<BTreeMap<String, String>> {
        let cut = self.journal.cut();
        let value =
            Value::map([("step", save.step.into()), ("generation", save.generation.into())]);
        self.append(self.own(), Kind::SAVE_CAPTURED, value)?;
        let environment = self.environment.map(|hash| (ENVIRONMENT.to_owned(), hash.to_string()));
        Ok([(CUT.to_owned(), cut.encode()?)].into_iter().chain(environment).collect())
    }
}

impl Drop for RankJournal {
    /// Nobody is left to be told: what is not sealed stays in the open segment.
    fn drop(&mut self) {
        let _ = self.journal.close();
    }
}

fn own(lanes: &[Lane]) -> Lane {
    lanes.first().copied().unwrap_or(Lane::CONTROL)
}

/// The same event in every lane of a process.
fn everywhere(leads: bool, lanes: &[Lane], kind: Kind, step: u64, value: &Value) -> Vec<Event> {
    let control = leads.then_some(Lane::CONTROL);
    let lanes = control.into_iter().chain(lanes.iter().copied());
    lanes.map(|lane| Event { lane, kind, step, value: value.clone() }).collect()
}

/// Seals what a save includes, before its shard index says so.
pub(crate) fn seal(journal: &Journal, metadata: &BTreeMap<String, String>) -> Result<()> {
    match metadata.get(CUT) {
        Some(cut) => journal.seal(&Cut::decode(cut)?),
        None => Ok(()),
    }
}

/// Says that a save of this rank is a checkpoint.
pub(crate) fn seen(journal: &Journal, lane: Lane, save: &SaveKey, checkpoint: &Hash) {
    let value = Value::map([("checkpoint", hash(checkpoint)), ("step", save.step.into())]);
    let event = Event { lane, kind: Kind::CHECKPOINT_SEEN, step: 0, value };
    // The ledger says so too.
    let _ = journal.append(&event);
}

/// Says that a save of this rank has failed.
pub(crate) fn failed(journal: &Journal, lane: Lane, step: u64, error: &Error) {
    let value = fault("save", Some(step), error);
    // Whoever saves is told of the failure itself.
    let _ = journal.append(&Event { lane, kind: Kind::FAULT, step: 0, value });
}

fn hash(hash: &Hash) -> Value {
    Value::Bytes(hash.as_bytes().to_vec())
}

/// An error that ends nothing: it is told with the failures of saves.
pub(crate) fn tell(journal: &RankJournal, result: Result<()>) {
    if let Err(error) = result {
        journal.journal().tell(error);
    }
}

/// What a run without a journal says of a call that needs one.
pub(crate) fn missing() -> Error {
    Error::invalid("the run has no journal").with_remedy("open it with one")
}
