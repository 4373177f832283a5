//! Two runs beside each other, by what both have recorded; nothing is run again.

use std::ops::RangeInclusive;

use anyhow::{Result, bail};
use lastgood::ledger::Ledger;
use lastgood::replay::compare::{Divergence, compare};
use lastgood::replay::judge::environment;
use lastgood::replay::window::Window;
use lastgood::{Error, Repository};

use super::Found;
use crate::args::{Bisect, RunArgs, StoreArgs};
use crate::replay::element::{self, Element};
use crate::replay::read_record;
use crate::session;

/// The run that is compared with.
pub(super) struct Other {
    repository: Repository,
    ledger: Ledger,
}

impl Other {
    /// The one that `args` name, if they name one.
    pub(super) fn open(args: &Bisect) -> Result<Option<Self>> {
        let Some(run) = args.against.clone() else { return Ok(None) };
        let store = args.against_store.clone().unwrap_or_else(|| args.run.store.store.clone());
        if (&store, &run) == (&args.run.store.store, &args.run.run) {
            bail!(
                Error::invalid(format!("run {run} would be compared with itself"))
                    .with_remedy("name another run by --against, or its store by --against-store")
            );
        }
        let (repository, ledger) = session::ledger(&RunArgs { store: StoreArgs { store }, run })?;
        Ok(Some(Self { repository, ledger }))
    }
}

impl Found {
    /// Compares with `other`.
    pub(super) fn against(
        &mut self,
        (repository, ledger): (&Repository, &Ledger),
        other: &Other,
        as_json: bool,
    ) -> Result<()> {
        let name = other.ledger.run();
        self.other = Some(format!("{name} has"));
        let damage = read_record(&other.repository, &other.ledger, as_json)?.findings;
        self.damage.extend(damage.into_iter().map(|error| error.context(format!("run {name}"))));
        if !self.damage.is_empty() {
            return Ok(());
        }
        let one = Window::read(repository, ledger, 1..=u64::MAX, None)?;
        let two = Window::read(&other.repository, &other.ledger, 1..=u64::MAX, None)?;
        let both = both(&one, &two).ok_or_else(|| {
            Error::not_found(format!(
                "runs {} and {name} have recorded no step of the same number",
                ledger.run()
            ))
            .with_remedy("`lastgood log --journal --count` says which steps are recorded of each")
        })?;
        let (one, two) = (cut(one, &both), cut(two, &both));
        let comparison = compare(&one, &two);
        self.compared = (comparison.steps, comparison.states.len());
        if comparison.divergences.is_empty() {
            self.equal_to = *both.end();
            return Ok(());
        }
        self.part(&comparison);
        self.explain(&environment(&one, &two), &one);
        self.compare_element(other)
    }

    /// Looks at the element that differs, if it is one alone and the other run has saved the state that it is in.
    fn compare_element(&mut self, other: &Other) -> Result<()> {
        let saved = other.ledger.history().checkpoints().iter().filter(|c| !c.expired);
        let mut steps = saved.map(|checkpoint| checkpoint.step);
        let single = |tensor: &&Divergence| tensor.change.is_some();
        let Some(tensor) = self.tensor().filter(single).cloned() else { return Ok(()) };
        if steps.any(|step| step == tensor.step) {
            self.element = element::read(&other.repository, other.ledger.run(), &tensor)?;
        }
        if self.element.as_ref().is_some_and(Element::is_flip) {
            let cause = "one bit of one element was flipped in one of the runs: memory or a device";
            self.causes.insert(0, cause.to_owned());
        }
        Ok(())
    }
}

/// The steps that both may have recorded.
fn both(one: &Window, two: &Window) -> Option<RangeInclusive<u64>> {
    let ends = |window: &Window| {
        let steps = window.steps.keys().map(|(step, _)| *step);
        Some((steps.clone().min()?, steps.max()?))
    };
    let (one, two) = (ends(one)?, ends(two)?);
    let both = one.0.max(two.0)..=one.1.min(two.1);
    (!both.is_empty()).then_some(both)
}

fn cut(mut window: Window, to: &RangeInclusive<u64>) -> Window {
    window.steps.retain(|(step, _), _| to.contains(step));
    window.events.retain(|(step, _), _| to.contains(step));
    window.states.retain(|step, _| to.contains(step));
    window
}
