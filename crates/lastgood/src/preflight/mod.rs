//! What can be known before a restore: whether everything is there and fits, and whether the process that restores
//! computes as the one that saved did.
//!
//! A restore that would put state where it does not belong, or go on with other arithmetic than before, is refused,
//! unless a person accepts the difference, with a reason, in the ledger.
//!
//! | module | what it does |
//! |---|---|
//! | [`environment`] | what differs between two processes, and what that means |
//! | `look` | what one process finds |
//! | `recorded` | the environment that a checkpoint was saved in |
//! | [`objects`] | whether every object is there; samples; how long reading takes |
//! | [`machine`] | memory and space that are left |
//! | [`Report`] | what was found, as the journal keeps it |

pub mod environment;
pub(crate) mod look;
pub mod machine;
pub mod objects;
pub(crate) mod recorded;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

pub use environment::Effect;
use lastgood_format::ledger::{Accepted, Kind};
use lastgood_format::{Error, Result, RunName};
pub use look::Asker;
pub use report::{Compared, Finding, Report, Verdict};
use serde::{Deserialize, Serialize};

use crate::attempt;
use crate::ledger::{Decision, Ledger, Writer};

/// How many of the differences are named.
const SHOWN_MAX: usize = 20;

/// What a preflight does with what it finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Refuses what breaks bit-exactness or safety.
    #[default]
    Refuse,
    /// Tells of it and goes on.
    Warn,
    /// Looks for nothing.
    Off,
}

impl FromStr for Mode {
    type Err = Error;

    /// Reads `refuse`, `warn` or `off`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "refuse" => Ok(Self::Refuse),
            "warn" => Ok(Self::Warn),
            "off" => Ok(Self::Off),
            _ => Err(Error::invalid(format!("{text:?} is no way to treat a preflight"))
                .with_remedy("use refuse, warn or off")),
        }
    }
}

/// What a person accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// Keys of what may differ; with a dot at its end, all keys that begin so.
    pub keys: BTreeSet<String>,
    /// Why.
    pub reason: String,
    /// Whatever the values are, and from now on; otherwise the two values that are found now.
    #[serde(default)]
    pub always: bool,
}

impl Acceptance {
    /// As a process is given it.
    ///
    /// # Errors
    /// `Internal` if it cannot be written as JSON.
    pub fn encode(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|e| Error::internal(format!("cannot write what is accepted: {e}")))
    }

    /// Reads what a process was given.
    ///
    /// # Errors
    /// `Invalid` if it is no acceptance, or gives no reason.
    pub fn decode(text: &str) -> Result<Self> {
        let this: Self = serde_json::from_str(text).map_err(|e| {
            Error::invalid(format!("what is accepted is not understood: {e}"))
                .with_remedy(r#"give {"keys": ["code."], "reason": "…"}"#)
        })?;
        this.check()?;
        Ok(this)
    }

    /// What is written into the ledger for it if a restore has these `findings`; nothing for keys that no finding has.
    #[must_use]
    pub fn of(&self, findings: &[Finding]) -> Vec<Accepted> {
        let named = |finding: &&Finding| {
            finding.effect != Effect::Information
                && self.keys.iter().any(|key| covers(key, &finding.key))
        };
        let found = findings.iter().filter(named);
        if self.always {
            let keys = self
                .keys
                .iter()
                .filter(|key| found.clone().any(|finding| covers(key, &finding.key)));
            return keys
                .map(|key| Accepted { key: key.clone(), recorded: None, found: None, always: true })
                .collect();
        }
        found.map(Finding::as_accepted).collect()
    }

    /// The keys that none of `findings` has.
    #[must_use]
    pub fn unused(&self, findings: &[Finding]) -> Vec<&str> {
        let stands = |key: &str| {
            findings.iter().any(|f| f.effect != Effect::Information && covers(key, &f.key))
        };
        self.keys.iter().map(String::as_str).filter(|key| !stands(key)).collect()
    }

    /// Notes which of `findings` it lets go.
    pub fn note(&self, findings: &mut [Finding]) {
        let given = self.of(findings);
        for finding in findings.iter_mut().filter(|finding| finding.is_refused()) {
            if given.iter().any(|accepted| lets_go(accepted, finding)) {
                finding.accepted = Some(self.reason.clone());
            }
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.reason.trim().is_empty() && !self.keys.is_empty() {
            return Err(Error::invalid("what is accepted is accepted for a reason")
                .with_remedy("say why, for those who will look for the cause of a difference"));
        }
        Ok(())
    }
}

/// True if what is said of `key` holds for `other`.
fn covers(key: &str, other: &str) -> bool {
    key == other || (key.ends_with('.') && other.starts_with(key))
}

/// True if `accepted` lets `finding` go.
pub(crate) fn lets_go(accepted: &Accepted, finding: &Finding) -> bool {
    if !covers(&accepted.key, &finding.key) {
        return false;
    }
    accepted.always
        || finding.is_of_the_moment()
        || (&accepted.recorded, &accepted.found) == (&finding.recorded, &finding.found)
}

/// How a run's restores are looked into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreflightOptions {
    /// What is done with what is found.
    pub mode: Mode,
    /// What may differ nevertheless; it is written into the ledger when it does.
    pub accept: Acceptance,
}

/// The environment and numerics fingerprint of a process: text by dotted keys.
pub type Environment = BTreeMap<String, String>;

/// What a restore needs beside the checkpoint's bytes: what only the caller can know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The bytes that it reads.
    pub bytes: u64,
    /// The bytes of memory that it takes.
    pub memory: u64,
    /// What does not fit: components, tensors, shapes, dtypes.
    pub problems: Vec<String>,
    /// True if the caller reads every byte of the checkpoint and goes on by itself from what is missing or damaged: the
    /// objects are not asked for beforehand.
    pub verifies: bool,
}

/// Writes into the ledger that restores may differ so, unless it says so already.
///
/// # Errors
/// `Fenced`; `Unavailable`, `Denied`.
pub async fn record(
    ledger: &mut Ledger,
    writer: &Writer,
    differences: Vec<Accepted>,
    reason: String,
) -> Result<()> {
    attempt::settle(ledger, writer, |history| {
        let is_new = |difference: &&Accepted| !history.accepted().contains(*difference);
        let differences: Vec<Accepted> = differences.iter().filter(is_new).cloned().collect();
        if differences.is_empty() {
            return Ok(Decision::Nothing);
        }
        let reason = reason.clone();
        Ok(Decision::Append(Kind::PreflightAccepted { differences, reason }))
    })
    .await
}

/// Why the report stands against the restore of `run`, which lies in `store`; `None` if nothing does.
pub(crate) fn refusal(report: &Report, store: &str, run: &RunName) -> Option<Error> {
    let refused: Vec<&Finding> = report.refused().collect();
    if refused.is_empty() {
        return None;
    }
    let shown: Vec<String> = refused.iter().take(SHOWN_MAX).map(|f| format!("\n  {f}")).collect();
    let more = match refused.len().saturating_sub(SHOWN_MAX) {
        0 => String::new(),
        more => format!("\n  and {more} more"),
    };
    let mut keys: Vec<&str> = refused.iter().map(|finding| family(&finding.key)).collect();
    keys.sort_unstable();
    keys.dedup();
    let accept: Vec<String> = keys.iter().map(|key| format!("--accept {}", word(key))).collect();
    // A location is no secret: a URL with a password or a query opens no store. A folder is named as such, since
    // its name may have what means something else in a URL.
    let store = word(store.strip_prefix("file://").unwrap_or(store));
    Some(
        Error::incompatible(format!(
            "checkpoint {} of step {} was saved by a process that computes otherwise; nothing was \
             changed:{}{more}",
            report.checkpoint.short(),
            report.step,
            shown.concat()
        ))
        .with_remedy(format!(
            "make it as it was; or record that it may go on with `lastgood preflight --store {store} --run {run} \
             {} --reason TEXT`, and start again",
            accept.join(" ")
        )),
    )
}

/// `text` as one word of a shell.
fn word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:@%+=,".contains(&byte);
    match !text.is_empty() && text.bytes().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// The key, or if many are alike all that begin as it does.
fn family(key: &str) -> &str {
    match key.find('.') {
        Some(dot) if !key.starts_with("env.") => &key[..=dot],
        _ => key,
    }
}
