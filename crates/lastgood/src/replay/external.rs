//! What a run read from outside, as its journal has it.

use std::collections::VecDeque;

use lastgood_format::Result;
use lastgood_format::journal::{Frame, Value};

/// What was read under one key.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// What was read last before the steps that are done again: a program that starts may read it again.
    pub(super) before: Option<Value>,
    /// What was read on the way, in order.
    pub(super) next: VecDeque<Value>,
}

/// The key and the value of a read; `None` if the frame says no such thing.
pub(super) fn read_of(frame: &Frame) -> Result<Option<(String, Value)>> {
    let value = frame.value()?;
    let key = value.get("key").and_then(Value::as_str).map(str::to_owned);
    Ok(key.zip(value.get("value").cloned()))
}
