//! What a pickle of nested containers holds, each thing by the path that leads to it.

use std::collections::BTreeSet;

use lastgood::{Error, Result};
use serde_json::{Number, Value};

use crate::doctor::pickle::{Id, Node, Pickle};
use crate::doctor::tensors::{View, dtype_of_name, view};
use crate::doctor::torch::TorchFile;

/// Things of one file, steps to them, and bytes of paths: one container may be in many others.
const LEAVES_MAX: usize = 2_000_000;
const STEPS_MAX: usize = 8_000_000;
const PATH_BYTES_MAX: usize = 256 << 20;
/// The longest list of plain values that is one value.
const LIST_MAX: usize = 10_000;

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    pub(super) tensors: Vec<(String, View)>,
    /// Numbers, texts and lists of them.
    pub(super) values: Vec<(String, Value)>,
    pub(super) blobs: Vec<(String, Vec<u8>)>,
    /// What is none of these, and why.
    pub(super) left_out: Vec<String>,
    paths: BTreeSet<String>,
    path_bytes: usize,
    steps: usize,
}

impl Leaves {
    /// Everything in `file`; paths begin with `prefix`.
    ///
    /// # Errors
    /// `Incompatible` if two things have one path or there are more than can be told; `Corrupt` if the
    /// pickle or a tensor is.
    pub(super) fn of(file: &TorchFile, prefix: &str) -> Result<Self> {
        let pickle = &file.pickle;
        let root = pickle.root().ok_or_else(|| {
            Error::corrupt(format!("its pickle, {}", pickle.flaw().unwrap_or("which has no end")))
        })?;
        let mut leaves = Self::default();
        let mut open = vec![(prefix.to_owned(), root)];
        while let Some((path, id)) = open.pop() {
            leaves.steps += 1;
            leaves.path_bytes += path.len();
            if leaves.steps > STEPS_MAX
                || leaves.paths.len() > LEAVES_MAX
                || leaves.path_bytes > PATH_BYTES_MAX
                || open.len() > STEPS_MAX
            {
                return Err(Error::incompatible("it holds more than an import can name"));
            }
            leaves.visit(file, path, id, &mut open)?;
        }
        Ok(leaves)
    }

    fn visit(
        &mut self,
        file: &TorchFile,
        path: String,
        id: Id,
        open: &mut Vec<(String, Id)>,
    ) -> Result<()> {
        let pickle = &file.pickle;
        if let Some(found) = view(pickle, id) {
            let found = found.map_err(super::error_of)?;
            return self.tensor(file, path, found);
        }
        if let Some(value) = plain(pickle, id) {
            self.claim(&path)?;
            self.values.push((path, value));
            return Ok(());
        }
        match pickle.node(id) {
            Node::Bytes(_) => {
                self.claim(&path)?;
                self.blobs.push((path, pickle.blob(id).unwrap_or_default().to_vec()));
            }
            Node::Tuple(items) | Node::List(items) => {
                let inner = items.iter().enumerate().rev();
                open.extend(inner.map(|(number, item)| (join(&path, &number.to_string()), *item)));
            }
            Node::Dict(pairs) => self.pairs(pickle, &path, pairs, open),
            Node::Call(call) if is_dictionary(pickle, id) => {
                if call.state.is_some() {
                    let path = if path.is_empty() { "the outermost container" } else { &path };
                    self.left_out.push(format!("{path} (attributes of an OrderedDict)"));
                }
                self.pairs(pickle, &path, &call.pairs, open);
            }
            other => {
                let what = match (pickle.called(id), pickle.name(id), other) {
                    (Some(class), _, _) => format!("an object of {}", class.full()),
                    (_, Some(name), _) => format!("the name {}", name.full()),
                    (_, _, Node::Float(_)) => "a number that is infinite or none".to_owned(),
                    (_, _, Node::Large) => "an integer of more than 64 bits".to_owned(),
                    (_, _, Node::Set(_)) => "a set".to_owned(),
                    _ => "something that only Python can read".to_owned(),
                };
                self.left_out.push(format!("{path} ({what})"));
            }
        }
        Ok(())
    }

    fn pairs(
        &mut self,
        pickle: &Pickle,
        path: &str,
        pairs: &[(Id, Id)],
        open: &mut Vec<(String, Id)>,
    ) {
        for (key, value) in pairs.iter().rev() {
            let name = match (pickle.text(*key), pickle.int(*key)) {
                (Some(text), _) => text.to_owned(),
                (None, Some(number)) => number.to_string(),
                (None, None) => {
                    self.left_out.push(format!("{path} (a key that is neither text nor number)"));
                    continue;
                }
            };
            open.push((join(path, &name), *value));
        }
    }

    fn tensor(&mut self, file: &TorchFile, path: String, view: View) -> Result<()> {
        if dtype_of_name(&view.dtype).is_none() {
            self.left_out
                .push(format!("{path} (a tensor of {}, which has no dtype here)", view.dtype));
        } else if view.lazy {
            self.left_out
                .push(format!("{path} (a tensor that is conjugated or negated when it is read)"));
        } else if file.is_big_endian() {
            self.left_out.push(format!("{path} (a tensor of a big-endian machine)"));
        } else {
            self.claim(&path)?;
            self.tensors.push((path, view));
        }
        Ok(())
    }

    fn claim(&mut self, path: &str) -> Result<()> {
        match self.paths.insert(path.to_owned()) {
            true => Ok(()),
            false => Err(Error::incompatible(format!("two things in it are called {path:?}"))),
        }
    }
}

fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    }
}

fn is_dictionary(pickle: &Pickle, id: Id) -> bool {
    let usual = |name: &str| matches!(name, "OrderedDict" | "defaultdict" | "Counter");
    pickle.called(id).is_some_and(|class| class.module == "collections" && usual(&class.name))
}

/// A plain value, or a list of some, as JSON. An empty container is one too, so that it is not lost.
fn plain(pickle: &Pickle, id: Id) -> Option<Value> {
    match pickle.node(id) {
        Node::Dict(pairs) if pairs.is_empty() => Some(Value::Object(serde_json::Map::new())),
        Node::Tuple(_) | Node::List(_) | Node::Call(_) => {
            let items = pickle.items(id).filter(|items| items.len() <= LIST_MAX)?;
            items
                .iter()
                .map(|item| scalar(pickle, *item))
                .collect::<Option<Vec<_>>>()
                .map(Value::Array)
        }
        _ => scalar(pickle, id),
    }
}

fn scalar(pickle: &Pickle, id: Id) -> Option<Value> {
    Some(match pickle.node(id) {
        Node::None => Value::Null,
        Node::Bool(bool) => Value::Bool(*bool),
        Node::Int(int) => Value::Number((*int).into()),
        Node::Float(float) => Value::Number(Number::from_f64(*float)?),
        Node::Text(_) => Value::String(pickle.text(id)?.to_owned()),
        _ => return None,
    })
}
