//! The table in `.metadata`, read without unpickling it.

use std::collections::BTreeMap;

use lastgood_format::layout::NdBox;

use super::Items;
use crate::doctor::disk::Span;
use crate::doctor::flaw::Flaw;
use crate::doctor::pickle::{Id, Node, Pickle, STREAM_BYTES_MAX};

/// Chunks of all tensors together, and the bytes of all names: a hostile table may tell of one list of
/// chunks a million times.
const CHUNKS_MAX: usize = 4_000_000;
const NAME_BYTES_MAX: usize = 512 << 20;

/// A tensor and the chunks that it was cut into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// As torch calls it.
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    /// By their offsets.
    pub(crate) chunks: Vec<NdBox>,
}

impl Tensor {
    /// The chunk that begins at `offsets`.
    pub(crate) fn chunk(&self, offsets: &[u64]) -> Option<&NdBox> {
        let found = self.chunks.binary_search_by(|chunk| chunk.offsets.as_slice().cmp(offsets));
        found.ok().map(|number| &self.chunks[number])
    }
}

/// Where a chunk's or an object's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) file: String,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// An extension has changed them on the way.
    pub(crate) transformed: bool,
}

/// What is stored: a name, and where in the tensor it begins; nothing for what is no tensor.
type Key = (String, Option<Vec<u64>>);

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    pub(crate) tensors: Vec<Tensor>,
    by_name: BTreeMap<String, usize>,
    /// What is no tensor.
    pub(crate) objects: Vec<String>,
    items: BTreeMap<Key, Item>,
}

impl Metadata {
    /// Reads the table, and gives the pickle that it is with it.
    pub(crate) fn read(span: &Span) -> Result<(Pickle, Result<Self, Flaw>), Flaw> {
        let pickle = Pickle::read(span.all(STREAM_BYTES_MAX)?, 0);
        let table = Reader { pickle: &pickle, chunks: 0, name_bytes: 0 }.table();
        Ok((pickle, table))
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).map(|number| &self.tensors[*number])
    }

    /// Where the chunk of `name` that begins at `offsets` is.
    pub(crate) fn item(&self, name: &str, offsets: &[u64]) -> Option<&Item> {
        self.items.get(&(name.to_owned(), Some(offsets.to_vec())))
    }

    /// Where the bytes of an object are.
    pub(crate) fn object(&self, name: &str) -> Option<&Item> {
        self.items.get(&(name.to_owned(), None))
    }

    /// Everything that each file should have, in the order of its bytes.
    pub(crate) fn by_file(&self) -> Items<'_> {
        let mut files = Items::new();
        for ((name, offsets), item) in &self.items {
            let place = (name.as_str(), offsets.as_deref(), item);
            files.entry(item.file.as_str()).or_default().push(place);
        }
        for items in files.values_mut() {
            items.sort_by_key(|(_, _, item)| (item.offset, item.len));
        }
        files
    }
}

struct Reader<'p> {
    pickle: &'p Pickle,
    chunks: usize,
    name_bytes: usize,
}

impl Reader<'_> {
    fn table(mut self) -> Result<Metadata, Flaw> {
        let odd = |what: &str| Flaw::content(format!("it is no table of DCP: {what}"));
        let root = match (self.pickle.root(), self.pickle.flaw()) {
            (Some(root), _) => root,
            (None, flaw) if self.pickle.is_too_large() => {
                return Err(Flaw::limit(flaw.unwrap_or("too large")));
            }
            (None, flaw) => return Err(odd(flaw.unwrap_or("no end"))),
        };
        let members = self.pickle.attribute(root, "state_dict_metadata");
        let members = members.and_then(|id| self.pickle.pairs(id));
        let members = members.ok_or_else(|| odd("no state_dict_metadata"))?.to_vec();
        let stored = self.pickle.attribute(root, "storage_data");
        let stored = stored.and_then(|id| self.pickle.pairs(id));
        let stored = stored.ok_or_else(|| odd("no storage_data"))?.to_vec();
        let mut table = Metadata::default();
        for (name, member) in members {
            let name = self.name(name).ok_or_else(|| odd("a tensor without a name"))?;
            self.spend(0, name.len())?;
            let class = self.pickle.called(member).map(|class| class.name.as_str());
            match class {
                Some("TensorStorageMetadata") => {
                    let tensor = self.tensor(&name, member)?;
                    let tensor = tensor.ok_or_else(|| odd("a tensor that is described oddly"))?;
                    table.by_name.insert(name, table.tensors.len());
                    table.tensors.push(tensor);
                }
                Some("BytesStorageMetadata") => table.objects.push(name),
                _ => return Err(odd("something that is neither tensor nor object")),
            }
        }
        for (index, place) in stored {
            let (key, item) =
                self.item(index, place).ok_or_else(|| odd("a place that is described oddly"))?;
            self.spend(0, key.0.len() + item.file.len())?;
            table.items.insert(key, item);
        }
        Ok(table)
    }

    fn name(&self, id: Id) -> Option<String> {
        self.pickle.text(id).map(str::to_owned)
    }

    fn spend(&mut self, chunks: usize, name_bytes: usize) -> Result<(), Flaw> {
        self.chunks += chunks;
        self.name_bytes += name_bytes;
        match self.chunks > CHUNKS_MAX || self.name_bytes > NAME_BYTES_MAX {
            true => Err(Flaw::limit(format!("more than {CHUNKS_MAX} chunks, or endless names"))),
            false => Ok(()),
        }
    }

    fn tensor(&mut self, name: &str, id: Id) -> Result<Option<Tensor>, Flaw> {
        let pickle = self.pickle;
        let parts = pickle.attribute(id, "chunks").and_then(|chunks| pickle.items(chunks));
        self.spend(parts.map_or(0, <[_]>::len), name.len())?;
        let described = || {
            let shape = pickle.sizes(pickle.attribute(id, "size")?)?;
            let dtype = dtype(pickle, pickle.attribute(id, "properties")?)?;
            let chunks: Option<Vec<NdBox>> = parts?
                .iter()
                .map(|chunk| {
                    let offsets = pickle.sizes(pickle.attribute(*chunk, "offsets")?)?;
                    let sizes = pickle.sizes(pickle.attribute(*chunk, "sizes")?)?;
                    (offsets.len() == shape.len() && sizes.len() == shape.len())
                        .then_some(NdBox { offsets, sizes })
                })
                .collect();
            let mut chunks = chunks?;
            chunks.sort();
            Some(Tensor { name: name.to_owned(), dtype, shape, chunks })
        };
        Ok(described())
    }

    fn item(&self, index: Id, place: Id) -> Option<(Key, Item)> {
        let pickle = self.pickle;
        let name = self.name(pickle.attribute(index, "fqn")?)?;
        let offsets = match pickle.attribute(index, "offset") {
            Some(id) if !matches!(pickle.node(id), Node::None) => Some(pickle.sizes(id)?),
            _ => None,
        };
        let item = Item {
            file: self.name(pickle.attribute(place, "relative_path")?)?,
            offset: pickle.size(pickle.attribute(place, "offset")?)?,
            len: pickle.size(pickle.attribute(place, "length")?)?,
            transformed: pickle
                .attribute(place, "transform_descriptors")
                .is_some_and(|id| !matches!(pickle.node(id), Node::None)),
        };
        Some(((name, offsets), item))
    }
}

/// The name of a dtype in `TensorProperties`, whose state is a tuple that begins with it.
fn dtype(pickle: &Pickle, properties: Id) -> Option<String> {
    let Node::Call(call) = pickle.node(properties) else { return None };
    let dtype = match pickle.items(call.state?) {
        Some(items) => *items.first()?,
        None => pickle.attribute(properties, "dtype")?,
    };
    let name = pickle.name(dtype)?;
    (name.module == "torch").then(|| name.name.clone())
}
