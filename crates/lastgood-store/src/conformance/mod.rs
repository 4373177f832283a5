//! What every store must do, each as a check with a name.
//!
//! The checks are the sentences of the documentation of [`Store`]; whoever implements it runs them:
//!
//! ```
//! # use std::sync::Arc;
//! # use lastgood_store::{MemoryStore, SystemEnv, conformance};
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
//! # runtime.block_on(async {
//! let store = MemoryStore::default();
//! let options = conformance::Options { race_rounds: 1, ..Default::default() };
//! let report =
//!     conformance::run(&|| Ok(Arc::new(store.clone())), &SystemEnv::default(), &options).await;
//! assert!(report.passed(), "{report}");
//! # });
//! ```
//!
//! What a store does when power is lost is not seen from here; it takes a real power cut.

mod keys;
mod lists;
mod puts;
mod races;
mod reads;
mod site;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use site::{Broken, Site};

use crate::{Env, Result, Store};

/// Opens the namespace under test once more, as another process would.
///
/// The suite calls it from threads that have a tokio runtime each.
pub type Open<'a> = dyn Fn() -> Result<Arc<dyn Store>> + Sync + 'a;

/// How much is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many creators race for one key. Default 20.
    pub racers: usize,
    /// How many keys they race for, one after the other. Default 50.
    pub race_rounds: usize,
    /// How many objects are listed at once. Default 1,100: S3 gives at most 1,000 in one answer.
    pub objects_listed: usize,
    /// The size of the largest object. Default 64 MiB and one byte: somewhat more than a pack.
    pub large_bytes: usize,
    /// How long an object may be missing in listings. Default 10 s.
    pub stale_max: Duration,
    /// The store tries puts again: one that finds its own bytes there may have put them. Default false.
    pub repeats_puts: bool,
    /// The check to run; all if there is none.
    pub only: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            racers: 20,
            race_rounds: 50,
            objects_listed: 1100,
            large_bytes: (64 << 20) + 1,
            stale_max: Duration::from_secs(10),
            repeats_puts: false,
            only: None,
        }
    }
}

/// What a check found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The name of the check.
    pub name: &'static str,
    /// What the store must do.
    pub clause: &'static str,
    /// What it did instead, if it is broken.
    pub broken: Option<String>,
    /// How long the check took.
    pub took: Duration,
}

/// What all checks found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The URL of the store.
    pub location: String,
    /// One for each check, in the order in which they ran.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// True if there were checks, and the store did what each of them says.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.outcomes.is_empty() && self.outcomes.iter().all(|outcome| outcome.broken.is_none())
    }

    /// The names of the checks in which the store did something else.
    #[must_use]
    pub fn broken(&self) -> Vec<&'static str> {
        let broken = self.outcomes.iter().filter(|outcome| outcome.broken.is_some());
        broken.map(|outcome| outcome.name).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passed = self.outcomes.iter().filter(|outcome| outcome.broken.is_none()).count();
        write!(f, "{}: {passed} of {} checks hold", self.location, self.outcomes.len())?;
        for Outcome { name, clause, broken, took } in &self.outcomes {
            let seconds = took.as_secs_f64();
            match broken {
                None => write!(f, "\n  ok      {name} ({seconds:.2} s)")?,
                Some(broken) => write!(f, "\n  BROKEN  {name}: {clause}\n          {broken}")?,
            }
        }
        Ok(())
    }
}

/// A check in progress.
type Checking<'a> = Pin<Box<dyn Future<Output = Result<(), Broken>> + 'a>>;

struct Check {
    name: &'static str,
    clause: &'static str,
    run: for<'a> fn(&'a Site<'a>) -> Checking<'a>,
}

macro_rules! checks {
    ($($module:ident::$name:ident: $clause:literal,)*) => {
        &[$(Check {
            name: stringify!($name),
            clause: $clause,
            run: |site| Box::pin($module::$name(site)),
        },)*]
    };
}

const CHECKS: &[Check] = checks![
    puts::created_once: "a put creates what does not exist, and changes nothing of what does",
    puts::parts_in_order: "an object is the concatenation of the parts",
    puts::empty_objects: "an object may be empty, and exists all the same",
    puts::large_objects: "an object may be as large as a pack",
    puts::never_seen_in_part: "nobody ever sees a part of an object",
    puts::cancelled_puts: "a put that is cancelled leaves all or nothing, and may be repeated",
    reads::bytes_max: "a larger object than expected is Corrupt",
    reads::ranges: "a range is read exactly, and Corrupt if the object ends before it does",
    reads::into_memory: "a reader's memory is filled exactly",
    reads::absent_objects: "what does not exist is NotFound, has no size, and may be deleted",
    reads::settled: "any object may be settled",
    lists::by_prefix: "a listing has the objects whose keys begin with the prefix, and their sizes",
    lists::after: "a listing has the objects whose keys are greater than `after`",
    lists::sorted: "a listing is sorted by key",
    lists::many: "a listing is complete, however many objects there are",
    keys::of_every_kind: "every key of plain parts is possible, and its own",
    keys::hostile: "what is no plain key is Invalid",
    keys::deleted: "a deleted object is gone, it alone, and may be created again",
    keys::shared: "every process that opens the store sees the same objects",
    races::racing_creators: "of racing creators one gets Created, and everybody reads its bytes",
];

/// The names of all checks.
#[must_use]
pub fn names() -> Vec<&'static str> {
    CHECKS.iter().map(|check| check.name).collect()
}

/// Runs the checks on the namespace that `open` opens, which must be empty and is not emptied again;
/// needs a tokio runtime.
pub async fn run(open: &Open<'_>, env: &dyn Env, options: &Options) -> Report {
    let mut report = Report { location: String::new(), outcomes: Vec::new() };
    let wanted = |check: &&Check| options.only.as_ref().is_none_or(|only| only == check.name);
    for check in CHECKS.iter().filter(wanted) {
        let begin = env.elapsed();
        let result = match Site::new(open, env, options, check.name) {
            Ok(site) => {
                report.location = site.store.location();
                (check.run)(&site).await
            }
            Err(error) => Err(error.into()),
        };
        report.outcomes.push(Outcome {
            name: check.name,
            clause: check.clause,
            broken: result.err().map(|broken| broken.0),
            took: env.elapsed().saturating_sub(begin),
        });
    }
    report
}
