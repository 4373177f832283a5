//! `lastgood prove`: recovers, runs again, compares, signs.

use anyhow::Result;
use lastgood::certificate::{Certificate, DigestPair, PrivateKey, Tail};
use lastgood::journal::audit::Audit;
use lastgood::ledger::Ledger;
use lastgood::replay::Span;
use lastgood::{Error, Hash, Repository};

use super::certificate::{failed, read};
use super::supervise;
use crate::args::Prove;
use crate::exit::Exit;
use crate::replay::{Rerun, Source, read_record};
use crate::{output, session};

pub(super) fn run(args: &Prove, as_json: bool) -> Result<Exit> {
    let named = |error: Error| error.with_object(args.key.display().to_string());
    let key = PrivateKey::from_pem(&read(&args.key)?).map_err(named)?;
    let (repository, ledger) = session::ledger(&args.run)?;
    let audited = read_record(&repository, &ledger, as_json)?;
    if !audited.findings.is_empty() {
        for finding in &audited.findings {
            output::note(format_args!("damage: {finding}"));
        }
        let many = output::count(audited.findings.len(), "finding");
        return Err(Error::corrupt(format!("{many} in the record: nothing can be proven by it"))
            .with_remedy("`lastgood verify` reads everything; heal it from a copy")
            .into());
    }
    let ends = (args.from.as_deref(), &args.to);
    let span = Span::find(&repository, &ledger, ends, args.ranks)?;
    let source = Source {
        repository: &repository,
        ledger: &ledger,
        store: &args.run.store.store,
        command: &args.command,
        control: &*supervise::stop_on_signals()?,
    };
    let Some(rerun) = source.rerun_aside(&span, false)? else {
        output::note("stopped");
        return Ok(Exit::Failed);
    };
    let certificate = certify((&repository, &ledger), &audited, &span, &rerun);
    std::fs::write(&args.certificate, certificate.sign(&key)?)
        .map_err(|error| failed(&args.certificate, &error, "cannot be written"))?;
    show(&certificate, args, as_json)
}

fn certify(
    (repository, ledger): (&Repository, &Ledger),
    audited: &Audit,
    span: &Span,
    rerun: &Rerun,
) -> Certificate {
    let judged = &rerun.judged;
    let (version, kind) = Certificate::kind();
    let pair = |(step, source, recorded, replayed): &(u64, &'static str, Hash, Hash)| DigestPair {
        step: *step,
        source: (*source).to_owned(),
        recorded: *recorded,
        replayed: *replayed,
    };
    let has_diverged = !judged.comparison.divergences.is_empty();
    let (achieved, verdict) = match (has_diverged, judged.states.is_empty()) {
        (true, _) => (Some("D0".to_owned()), "diverged"),
        (false, true) => (None, "unproven"),
        (false, false) => (Some(judged.claimed.to_owned()), "proven"),
    };
    Certificate {
        version,
        kind,
        at: humantime::format_rfc3339_seconds(repository.env().now()).to_string(),
        lastgood: env!("CARGO_PKG_VERSION").to_owned(),
        repository: repository.id().to_owned(),
        run: ledger.run().clone(),
        ledger: Tail { entries: ledger.history().entries(), blake3: ledger.history().tail() },
        events: audited.frames,
        from: span.from,
        from_step: span.from_step,
        to: span.to,
        end: span.end,
        ranks: [span.recorded_ranks, span.ranks],
        world_sizes: judged.world_sizes.clone(),
        steps: judged.comparison.steps,
        states: judged.states.iter().map(pair).collect(),
        environment: judged
            .environment
            .iter()
            .map(|(name, one, other)| [name.clone(), one.clone(), other.clone()])
            .collect(),
        divergences: judged.comparison.divergences.iter().map(ToString::to_string).collect(),
        claimed: judged.claimed.to_owned(),
        achieved,
        verdict: verdict.to_owned(),
    }
}

fn show(certificate: &Certificate, args: &Prove, as_json: bool) -> Result<Exit> {
    let exit = match certificate.verdict.as_str() {
        "proven" => Exit::Done,
        "diverged" => Exit::Diverged,
        _ => Exit::Failed,
    };
    if as_json {
        output::json(certificate)?;
        return Ok(exit);
    }
    for divergence in certificate.divergences.iter().take(5) {
        output::line(format_args!("differs     {divergence}"));
    }
    let Certificate { verdict, achieved, from_step, to, steps, states, .. } = certificate;
    output::line(format_args!(
        "{verdict:<11} steps {} to {to} at level {}: {steps} step records, {}; {}",
        from_step + 1,
        achieved.as_deref().unwrap_or("none"),
        output::count(states.len(), "state"),
        args.certificate.display()
    ));
    Ok(exit)
}
