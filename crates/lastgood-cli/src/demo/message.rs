//! What a rank of the demo tells the demo: lines of its standard output.

use lastgood::Hash;
use serde::{Deserialize, Serialize};

use crate::output;

/// Begins a line that is a message.
const MARK: &str = "@demo ";

/// One message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Message {
    /// The rank stands inside a save and waits to be killed.
    Paused {
        /// The step that is saved.
        step: u64,
        /// The object that the rank is about to put.
        object: String,
    },
    /// A save is a checkpoint.
    Saved {
        /// Its step.
        step: u64,
        /// Its id.
        id: Hash,
    },
    /// A save failed, and the training goes on.
    SaveFailed {
        /// Its step.
        step: u64,
        /// Why.
        error: String,
    },
    /// The training is over.
    Done(Report),
}

/// What a finished training came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The finished steps.
    pub(crate) step: u64,
    /// The hash of the whole state over all ranks, in hexadecimal.
    pub(crate) digest: String,
    /// The share of test images that are recognised.
    pub(crate) accuracy: f64,
    /// The mean loss of the last step; none if this attempt had no step left to do.
    pub(crate) loss: Option<f32>,
}

impl Message {
    /// Prints it for the demo.
    pub(crate) fn send(&self) -> anyhow::Result<()> {
        output::line(format_args!("{MARK}{}", serde_json::to_string(self)?));
        Ok(())
    }

    /// The message in a line, if it is one.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line.strip_prefix(MARK.as_bytes())?).ok()
    }
}
