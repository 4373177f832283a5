//! Pickles, read without running them.
//!
//! A pickle is a program for a small stack machine, and some of its instructions import and call whatever
//! they name. [`Pickle::read`] walks every instruction with bounds and builds plain data: a name stays a
//! name, a call stays a node that says what would be called with what. Nothing is imported, nothing is
//! called. The instructions are those of CPython's `pickletools`.

mod machine;
pub(crate) mod names;
mod node;

pub(crate) use node::{Id, Node};

/// The longest stream that is read. The metadata of a million shards has about this size.
pub(crate) const STREAM_BYTES_MAX: u64 = 256 << 20;
/// The most nodes, so that a stream needs less than half a gigabyte.
const NODES_MAX: usize = 8_000_000;
/// The longest text that is taken for a name of something.
pub(crate) const TEXT_BYTES_MAX: usize = 4096;
/// The most sizes or offsets of one tensor.
const DIMS_MAX: usize = 64;
/// The most attributes of one object that is looked at.
const ATTRIBUTES_MAX: usize = 64;

/// A name that a stream would import.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) module: String,
    pub(crate) name: String,
}

impl Name {
    pub(crate) fn full(&self) -> String {
        format!("{}.{}", self.module, self.name)
    }

    /// Python's `getattr`, which protocols below 3 call by its old name.
    pub(crate) fn is_getattr(&self) -> bool {
        self.name == "getattr" && matches!(self.module.as_str(), "builtins" | "__builtin__")
    }
}

/// A stream as plain data.
#[derive(Debug)]
pub(crate) struct Pickle {
    bytes: Vec<u8>,
    nodes: Vec<Node>,
    names: Vec<Name>,
    /// What the stream is, if it came to its end.
    root: Option<Id>,
    /// Where the stream ends.
    end: usize,
    /// Why it could not be read to its end.
    flaw: Option<String>,
    /// It imports or calls what only running it could tell.
    opaque: Vec<&'static str>,
    too_large: bool,
}

impl Pickle {
    /// Reads the stream that begins at `begin` of `bytes`. It always gives what it saw, since a stream that
    /// is damaged further on has run when the damage is noticed.
    pub(crate) fn read(bytes: Vec<u8>, begin: usize) -> Self {
        machine::run(bytes, begin)
    }

    pub(crate) fn root(&self) -> Option<Id> {
        self.root
    }

    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// The bytes again, for the stream behind this one.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn flaw(&self) -> Option<&str> {
        self.flaw.as_deref()
    }

    pub(crate) fn is_too_large(&self) -> bool {
        self.too_large
    }

    pub(crate) fn opaque(&self) -> &[&'static str] {
        &self.opaque
    }

    /// Every name that the stream would import, each once.
    pub(crate) fn names(&self) -> &[Name] {
        &self.names
    }

    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of a number below the number of nodes.
    pub(crate) fn id(&self, number: usize) -> Id {
        Id(number as u32)
    }

    /// True if `name` is called or is a part of something: whoever gets it can call it.
    pub(crate) fn is_used(&self, name: &Name) -> bool {
        let is = |id: &Id| self.name(*id) == Some(name);
        let among = |pairs: &[(Id, Id)]| pairs.iter().any(|(key, value)| is(key) || is(value));
        let inside = |node: &Node| match node {
            Node::Tuple(items) | Node::List(items) | Node::Set(items) => items.iter().any(is),
            Node::Dict(pairs) => among(pairs),
            Node::Persistent(of) => is(of),
            Node::Call(call) => {
                is(&call.callee)
                    || is(&call.args)
                    || call.state.as_ref().is_some_and(is)
                    || call.items.iter().any(is)
                    || among(&call.pairs)
            }
            _ => false,
        };
        self.root.as_ref().is_some_and(is) || self.nodes.iter().any(inside)
    }

    pub(crate) fn name(&self, id: Id) -> Option<&Name> {
        match self.node(id) {
            Node::Name(number) => self.names.get(*number as usize),
            _ => None,
        }
    }

    /// The name that a node calls, if it is a call of a name.
    pub(crate) fn called(&self, id: Id) -> Option<&Name> {
        match self.node(id) {
            Node::Call(call) => self.name(call.callee),
            _ => None,
        }
    }

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            // Millions of nodes may share one text of many megabytes.
            Node::Text(range) if range.len() <= TEXT_BYTES_MAX => {
                std::str::from_utf8(&self.bytes[range.clone()]).ok()
            }
            _ => None,
        }
    }

    /// Opaque bytes.
    pub(crate) fn blob(&self, id: Id) -> Option<&[u8]> {
        match self.node(id) {
            Node::Bytes(range) => Some(&self.bytes[range.clone()]),
            _ => None,
        }
    }

    pub(crate) fn int(&self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Int(int) => Some(*int),
            Node::Bool(bool) => Some(i64::from(*bool)),
            _ => None,
        }
    }

    /// A number that is no less than 0.
    pub(crate) fn size(&self, id: Id) -> Option<u64> {
        self.int(id).and_then(|int| int.try_into().ok())
    }

    /// The members of a tuple or list, or of `torch.Size` of one.
    pub(crate) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            Node::Call(call) if self.called(id)?.name == "Size" => match self.node(call.args) {
                Node::Tuple(args) => match self.node(*args.first()?) {
                    Node::Tuple(items) | Node::List(items) => Some(items),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        }
    }

    /// Sizes, as of a tensor's shape.
    pub(crate) fn sizes(&self, id: Id) -> Option<Vec<u64>> {
        let items = self.items(id).filter(|items| items.len() <= DIMS_MAX)?;
        items.iter().map(|item| self.size(*item)).collect()
    }

    /// The pairs of a dictionary, or of an object that got some, such as an `OrderedDict`.
    pub(crate) fn pairs(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(pairs) => Some(pairs),
            Node::Call(call) => Some(&call.pairs),
            _ => None,
        }
    }

    /// The value of a text key. The last one counts, as it does in Python.
    pub(crate) fn get(&self, id: Id, key: &str) -> Option<Id> {
        let pairs = self.pairs(id)?;
        pairs.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, value)| *value)
    }

    /// The attribute of an object whose state was set.
    pub(crate) fn attribute(&self, id: Id, name: &str) -> Option<Id> {
        match self.node(id) {
            Node::Call(call) => {
                let state = call.state?;
                self.pairs(state).filter(|pairs| pairs.len() <= ATTRIBUTES_MAX)?;
                self.get(state, name)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
