//! `lastgood postmortem`: one incident as a page.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use lastgood::certificate::Certificate;
use lastgood::{Error, ErrorKind};
use serde_json::json;

use super::certificate::{failed, read};
use crate::args::RunArgs;
use crate::exit::Exit;
use crate::postmortem::{Facts, page};
use crate::{output, session};

/// What is asked for.
pub(super) struct Request {
    pub(super) run: RunArgs,
    pub(super) attempt: Option<u64>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) to: PathBuf,
    pub(super) force: bool,
}

pub(super) fn run(request: &Request, as_json: bool) -> Result<Exit> {
    let (repository, ledger) = session::ledger(&request.run)?;
    let certificate = match &request.certificate {
        Some(file) => {
            let named = |error: Error| error.with_object(file.display().to_string());
            let verified = Certificate::verify(&read(file)?).map_err(named)?;
            if verified.0.run != *ledger.run() || verified.0.repository != repository.id() {
                bail!(named(Error::invalid(format!(
                    "the certificate is of run {} of repository {}",
                    verified.0.run, verified.0.repository
                ))));
            }
            Some(verified)
        }
        None => None,
    };
    let facts = Facts::read(&repository, &ledger, request.attempt, certificate)?;
    write(&request.to, &page(&facts), request.force)?;
    if as_json {
        let differs = facts.again.as_ref().map(|again| !again.divergences.is_empty());
        output::json(
            &json!({"to": request.to, "attempt": facts.failed.number, "causes": facts.causes,
            "from": facts.chosen.as_ref().map(|checkpoint| checkpoint.id), "from_step": facts.base_step(),
            "lost": facts.lost(), "done_again": facts.done_again(), "differs": differs,
            "down_ms": facts.down(), "behind_ms": facts.behind()}),
        )?;
    } else {
        let lost = facts.lost().map_or_else(|| "?".to_owned(), |lost| lost.to_string());
        output::line(format_args!(
            "{}: attempt {} ended, {lost} steps lost, {} done again from step {}",
            request.to.display(),
            facts.failed.number,
            facts.done_again(),
            facts.base_step()
        ));
    }
    Ok(Exit::Done)
}

/// Whole or not at all.
fn write(path: &Path, page: &str, force: bool) -> Result<()> {
    if !force && path.exists() {
        bail!(
            Error::new(ErrorKind::Conflict, format!("{} is there already", path.display()))
                .with_remedy("give another file, or --force")
        );
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let cannot = |error: &std::io::Error| failed(path, error, "cannot be written");
    let file = tempfile::NamedTempFile::new_in(folder).map_err(|error| cannot(&error))?;
    fs::write(file.path(), page).map_err(|error| cannot(&error))?;
    file.persist(path).map_err(|error| cannot(&error.error))?;
    Ok(())
}
