//! What happened, as a hash, and as text if somebody wants to read it.

use std::fmt::{Debug, Write};

use crate::random::{hash_bytes, join};

/// Notes every event.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    hash: u64,
    text: Option<String>,
}

impl Trace {
    /// A trace that keeps its lines.
    pub(super) fn with_text() -> Self {
        Self { hash: 0, text: Some(String::new()) }
    }

    pub(super) fn note(
        &mut self,
        now: u64,
        task: usize,
        what: &str,
        key: &str,
        outcome: &dyn Outcome,
    ) {
        for part in [now, task as u64, hash_bytes(what.as_bytes()), hash_bytes(key.as_bytes())] {
            self.hash = join(self.hash, part);
        }
        self.hash = join(self.hash, outcome.number());
        if let Some(text) = &mut self.text {
            let who = if task == usize::MAX { "-".to_owned() } else { format!("task {task}") };
            let time = now as f64 / 1000.0;
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{time:10.3} ms  {who:8} {what:10} {key} {outcome:?}");
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn take_text(&mut self) -> String {
        self.text.take().unwrap_or_default()
    }
}

/// How an event ended: a number for the hash, a text for a person.
pub(super) trait Outcome: Debug {
    fn number(&self) -> u64;
}

impl Outcome for bool {
    fn number(&self) -> u64 {
        u64::from(*self)
    }
}

impl Outcome for usize {
    fn number(&self) -> u64 {
        *self as u64
    }
}

impl Outcome for &str {
    fn number(&self) -> u64 {
        hash_bytes(self.as_bytes())
    }
}

impl Outcome for String {
    fn number(&self) -> u64 {
        hash_bytes(self.as_bytes())
    }
}
