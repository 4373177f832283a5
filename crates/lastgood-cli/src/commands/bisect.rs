//! `lastgood bisect`: the first step where two executions part, the tensor, and why.

use anyhow::{Result, bail};
use lastgood::ledger::Ledger;
use lastgood::replay::compare::{Comparison, Difference, Divergence, compare};
use lastgood::replay::window::Window;
use lastgood::{Error, Repository, RunName};
use serde_json::json;

use super::supervise;
use crate::args::Bisect;
use crate::exit::Exit;
use crate::replay::element::{self, Element};
use crate::replay::{Source, Span, divergence_json, environment, led_to, read_record};
use crate::{output, session};

/// Each execution goes over so many times as many checkpoints as the one before.
const GROWTH: usize = 4;

pub(super) fn run(args: &Bisect, as_json: bool) -> Result<Exit> {
    let (repository, ledger) = session::ledger(&args.run)?;
    let damage = read_record(&repository, &ledger, as_json)?.findings;
    let mut found = Found { damage, ..Found::default() };
    if !found.damage.is_empty() {
        return found.show(as_json);
    }
    if let Some(other) = &args.against {
        found.against(&repository, &ledger, other)?;
        return found.show(as_json);
    }
    if args.command.is_empty() {
        bail!(Error::invalid("no command is given to run again").with_remedy(
            "give that of the job after `--`, as in `-- python train.py`, or another run by --against"
        ));
    }
    let ends = (Some(args.from.as_str()), &args.to);
    let whole = Span::find(&repository, &ledger, ends, args.ranks)?;
    let source = Source {
        repository: &repository,
        ledger: &ledger,
        store: &args.run.store.store,
        command: &args.command,
        control: &*supervise::stop_on_signals()?,
    };
    if !found.search(&source, &whole, as_json)? {
        output::note("stopped");
        return Ok(Exit::Failed);
    }
    found.show(as_json)
}

/// What was found.
#[derive(Debug, Default)]
struct Found {
    /// What is wrong with the record.
    damage: Vec<Error>,
    executions: u32,
    /// Steps that were run again.
    steps: u64,
    /// The last step of which everything is equal.
    equal_to: u64,
    divergences: Vec<Divergence>,
    element: Option<Element>,
    causes: Vec<String>,
}

impl Found {
    /// Runs the steps of `whole` again, to more checkpoints each time, until something differs; false if it was told
    /// to stop.
    fn search(&mut self, source: &Source<'_>, whole: &Span, as_json: bool) -> Result<bool> {
        let mut ends: Vec<_> = led_to(source.repository, source.ledger, whole.to)?
            .into_iter()
            .filter(|checkpoint| checkpoint.step > whole.from_step)
            .map(|checkpoint| (checkpoint.step, Some(checkpoint.id)))
            .collect();
        if ends.last().is_none_or(|(step, _)| *step < whole.to) {
            ends.push((whole.to, None));
        }
        let mut span = Span { to: whole.from_step, end: whole.from, ..whole.clone() };
        let (mut next, mut count) = (0, 1);
        while next < ends.len() {
            let last = ends.len().min(next + count) - 1;
            let (to, end) = ends[last];
            span = Span { from: span.end, from_step: span.to, to, end, ..span };
            let Some(rerun) = source.rerun_aside(&span, false)? else { return Ok(false) };
            self.executions += 1;
            self.steps += span.to - span.from_step;
            let comparison = &rerun.judged.comparison;
            let is_equal = comparison.divergences.is_empty();
            if !as_json {
                let what = if is_equal { "equal" } else { "they part" };
                let (n, first) = (self.executions, span.from_step + 1);
                output::note(format_args!(
                    "lastgood: execution {n}, steps {first} to {to}: {what}"
                ));
            }
            if !is_equal {
                self.part(comparison);
                let environment = &rerun.judged.environment;
                self.explain(environment, &rerun.recorded);
                return self.look(source, &span);
            }
            self.equal_to = span.to;
            (next, count) = (last + 1, count * GROWTH);
        }
        Ok(true)
    }

    /// Compares with another run, by what both have recorded.
    fn against(&mut self, repository: &Repository, ledger: &Ledger, other: &RunName) -> Result<()> {
        let others = repository.existing(other)?;
        let one = Window::read(repository, ledger, 1..=u64::MAX, None)?;
        let two = Window::read(repository, &others, 1..=u64::MAX, None)?;
        let last = |window: &Window| window.steps.keys().map(|(step, _)| *step).max();
        let both = last(&one).min(last(&two)).unwrap_or(0);
        let cut = |mut window: Window| {
            window.steps.retain(|(step, _), _| *step <= both);
            window.events.retain(|(step, _), _| *step <= both);
            window.states.retain(|step, _| *step <= both);
            window
        };
        let (one, two) = (cut(one), cut(two));
        let comparison = compare(&one, &two);
        if comparison.divergences.is_empty() {
            self.equal_to = both;
        } else {
            self.part(&comparison);
            self.explain(&environment(&one, &two), &one);
        }
        Ok(())
    }

    fn part(&mut self, comparison: &Comparison) {
        self.divergences.clone_from(&comparison.divergences);
        let Some(first) = comparison.first() else { return };
        let equal = comparison.states.iter().copied().filter(|step| *step < first.step).max();
        self.equal_to = self.equal_to.max(equal.unwrap_or(0));
    }

    /// The first tensor that differs.
    fn tensor(&self) -> Option<&Divergence> {
        self.divergences.iter().find(|d| d.difference == Difference::State)
    }

    /// Finds the element that differs, if it is one alone: its step is run again, and its bytes are looked at.
    fn look(&mut self, source: &Source<'_>, span: &Span) -> Result<bool> {
        let Some(tensor) = self.tensor().filter(|tensor| tensor.change.is_some()).cloned() else {
            return Ok(true);
        };
        let at = Span { to: tensor.step, end: None, ..span.clone() };
        let Some(rerun) = source.rerun_aside(&at, true)? else { return Ok(false) };
        self.executions += 1;
        self.steps += at.to - at.from_step;
        self.element = element::read(&rerun.target, source.ledger.run(), &tensor)?;
        if let Some(element) = &self.element
            && element.bits == 1
        {
            let rank = tensor.rank.map_or_else(String::new, |rank| format!(" of rank {rank}"));
            self.causes.insert(
                0,
                format!(
                    "one bit of one element was flipped: memory or a device{rank}, not the program"
                ),
            );
        }
        Ok(true)
    }

    /// What may have caused it.
    fn explain(&mut self, environment: &[(String, String, String)], recorded: &Window) {
        let Some(first) = self.divergences.first() else { return };
        let attempt = recorded.attempts.get(&first.step);
        if let Some(attempt) = attempt {
            self.causes.push(format!("it is a step of attempt {attempt}"));
        }
        for (name, one, other) in environment {
            self.causes.push(format!("the environment: {name} was {one}, and is {other}"));
        }
        let events = recorded.events.iter().filter(|((step, _), _)| *step == first.step);
        for (kind, value) in events.flat_map(|(_, events)| events).take(5) {
            self.causes.push(format!("recorded at that step: {kind} {value}"));
        }
        let hint = match (first.difference, first.what.as_str()) {
            (Difference::Step, "lr") => "the learning rate: a schedule or a hand",
            (Difference::Step, "rng") => "a random number was drawn more, less or elsewhere",
            (Difference::Data, _) => "other data, or the same at another place",
            (Difference::Missing | Difference::Extra | Difference::Kind, _) => {
                "the program takes another way there"
            }
            (Difference::Step, _) if environment.is_empty() => {
                "rates, generators and places of data are equal: the data itself, or the arithmetic"
            }
            _ => return,
        };
        self.causes.push(hint.to_owned());
    }

    fn show(&self, as_json: bool) -> Result<Exit> {
        let exit = match (self.damage.is_empty(), self.divergences.is_empty()) {
            (false, _) => Exit::Damage,
            (true, false) => Exit::Diverged,
            (true, true) => Exit::Done,
        };
        let first = self.divergences.first();
        if as_json {
            output::json(&json!({
                "damage": self.damage.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "executions": self.executions, "steps": self.steps, "equal_to": self.equal_to,
                "step": first.map(|first| first.step),
                "first": first.map(divergence_json),
                "tensor": self.tensor().map(divergence_json),
                "element": self.element.as_ref().map(Element::json),
                "causes": self.causes}))?;
            return Ok(exit);
        }
        for error in &self.damage {
            output::line(format_args!("record      {error}"));
        }
        let executions = output::count(self.executions as usize, "execution");
        match first {
            _ if !self.damage.is_empty() => output::line(format_args!(
                "DAMAGE      {} in the record: what follows from it is not looked at",
                self.damage.len()
            )),
            None => output::line(format_args!(
                "equal       to step {}, in {executions} of {} steps",
                self.equal_to, self.steps
            )),
            Some(first) => {
                output::line(format_args!("differs     {first}"));
                if let Some(tensor) = self.tensor().filter(|tensor| *tensor != first) {
                    output::line(format_args!("tensor      {tensor}"));
                }
                if let Some(element) = &self.element {
                    output::line(format_args!("element     {element}"));
                }
                for cause in &self.causes {
                    output::line(format_args!("cause       {cause}"));
                }
                output::line(format_args!(
                    "DIVERGED    first at step {}: {}; the state is equal to step {} ({executions} of {} steps)",
                    first.step, first.what, self.equal_to, self.steps
                ));
            }
        }
        Ok(exit)
    }
}
