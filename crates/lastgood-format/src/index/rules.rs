//! The rules that a well formed shard index keeps; checked before it is written and after it is read.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Chunk, DIMS_MAX, METADATA_BYTES_MAX, NAME_BYTES_MAX, NAMES_BYTES_MAX, Shard, ShardIndex,
    TENSOR_NAME_BYTES_MAX, Tensor,
};
use crate::chunk::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Codec};
use crate::delta::{DEPTH_MAX, OPERANDS_MAX};
use crate::index::Durability;
use crate::layout::check_disjoint;
use crate::pack::{HEADER_BYTES, TRAILER_BYTES};
use crate::{Dtype, Error, Result, key};

impl ShardIndex {
    /// Checks every rule that one index can break by itself.
    pub(super) fn check(&self) -> Result<()> {
        self.check_save()?;
        self.check_components()?;
        self.check_tensors()?;
        self.check_packs()?;
        self.check_rows()?;
        self.check_deltas()?;
        self.check_shards()
    }

    fn check_save(&self) -> Result<()> {
        if self.rank >= self.world_size {
            return broken(format!("rank {} of {}", self.rank, self.world_size));
        }
        if !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&self.chunk_bytes) {
            return broken(format!("chunks of {} bytes", self.chunk_bytes));
        }
        if !self.reuses.is_sorted_by(|a, b| a < b) {
            return broken("the reused checkpoints are not in order");
        }
        let long = |text: &String| text.len() > METADATA_BYTES_MAX;
        match self.metadata.iter().find(|(key, value)| long(key) || long(value)) {
            Some((key, value)) => broken(format!(
                "a metadata key of {} bytes with a value of {}, at most {METADATA_BYTES_MAX} each",
                key.len(),
                value.len()
            )),
            None => Ok(()),
        }
    }

    fn check_components(&self) -> Result<()> {
        if !self.components.is_sorted_by(|a, b| a.name < b.name) {
            return broken("the components are not in order");
        }
        let usable = |name: &str| (1..=NAME_BYTES_MAX).contains(&name.len());
        match self.components.iter().find(|c| !usable(&c.name) || !usable(&c.owner)) {
            Some(component) => broken(format!("component {:?} or its owner", component.name)),
            None => Ok(()),
        }
    }

    fn check_tensors(&self) -> Result<()> {
        let mut end = 0;
        let names: u64 = self.tensors.iter().map(|tensor| tensor.name.len() as u64).sum();
        if names > NAMES_BYTES_MAX {
            return broken(format!("names of {names} bytes together, at most {NAMES_BYTES_MAX}"));
        }
        for (i, tensor) in self.tensors.iter().enumerate() {
            let component = self.components.get(tensor.component as usize);
            if component.is_none_or(|c| c.durability != Durability::Durable) {
                return broken(format!("tensor {:?} belongs to no durable component", tensor.name));
            }
            if tensor.name.len() > TENSOR_NAME_BYTES_MAX || tensor.shape.len() > DIMS_MAX {
                return broken(format!("tensor {i} has too long a name or too many dimensions"));
            }
            if tensor.dtype == Dtype::Blob && tensor.shape.len() != 1 {
                let dims = tensor.shape.len();
                return broken(format!("{:?} is a BLOB of {dims} dimensions, not 1", tensor.name));
            }
            if tensor.shards.start != end || tensor.shards.end < end {
                return broken(format!("the shards of tensor {:?} are out of order", tensor.name));
            }
            end = tensor.shards.end;
            self.check_tie(i, tensor)?;
        }
        if end as usize != self.shards.len() {
            return broken(format!("{end} shards are named, {} are there", self.shards.len()));
        }
        let rising = |a: &Tensor, b: &Tensor| (a.component, &a.name) < (b.component, &b.name);
        match self.tensors.windows(2).find(|pair| !rising(&pair[0], &pair[1])) {
            Some(pair) => broken(format!("tensor {:?} is out of order", pair[1].name)),
            None => Ok(()),
        }
    }

    fn check_tie(&self, i: usize, tensor: &Tensor) -> Result<()> {
        let Some(other) = tensor.tied_to else { return Ok(()) };
        let fits = (other as usize) < i && tensor.shards.is_empty() && {
            let other = &self.tensors[other as usize];
            let same = (other.component, other.dtype, &other.shape)
                == (tensor.component, tensor.dtype, &tensor.shape);
            same && other.tied_to.is_none()
        };
        if fits { Ok(()) } else { broken(format!("tensor {:?} is tied wrongly", tensor.name)) }
    }

    fn check_packs(&self) -> Result<()> {
        let name = key::pack_in_run(&self.save, self.rank, 0);
        let own = name.strip_suffix("0.pack").unwrap_or(&name);
        let mut names = BTreeSet::new();
        let mut bytes = 0u64;
        for pack in &self.packs {
            if !names.insert(&pack.object) {
                return broken(format!("pack {:?} is named twice", pack.object));
            }
            bytes = match bytes.checked_add(pack.bytes) {
                Some(bytes) => bytes,
                None => return broken("the sizes of the packs overflow"),
            };
            key::in_run(&self.run, &pack.object)?;
            let is_pack = pack.object.starts_with("packs/") && pack.object.ends_with(".pack");
            if !is_pack || pack.is_new != pack.object.starts_with(own) {
                return broken(format!("pack {:?} is filed where it does not belong", pack.object));
            }
            if !pack.is_new && self.reuses.is_empty() {
                return broken(format!("pack {:?} is reused from nowhere", pack.object));
            }
        }
        Ok(())
    }

    fn check_rows(&self) -> Result<()> {
        for (i, chunk) in self.all_chunks().enumerate() {
            let pack = self.packs.get(chunk.pack as usize);
            let end = chunk.offset.checked_add(u64::from(chunk.stored_bytes));
            // Neither the pack's header nor its trailer holds a chunk.
            let end = end.and_then(|end| end.checked_add(TRAILER_BYTES));
            let inside = chunk.offset >= HEADER_BYTES
                && pack.is_some_and(|pack| end.is_some_and(|end| end <= pack.bytes));
            let sized = (1..=self.chunk_bytes).contains(&chunk.decoded_bytes)
                && chunk.codec.may_store(chunk.stored_bytes, chunk.decoded_bytes);
            if !inside || !sized {
                return broken(format!("chunk {i} lies outside of its pack or has a wrong size"));
            }
        }
        Ok(())
    }

    /// Deltas and no others have operands, as large as they are; the way to one that is none is short and no
    /// circle; and every base is an operand.
    fn check_deltas(&self) -> Result<()> {
        let rows = self.chunks.len() + self.bases.len();
        let mut used = vec![false; rows];
        let mut uses: Vec<u32> = vec![0; rows];
        for (row, operands) in &self.operands {
            let chunk = self.row(*row).filter(|chunk| chunk.codec == Codec::Delta);
            let fits = |chunk: &Chunk| {
                let bytes = chunk.decoded_bytes;
                let alike = |i: &u32| self.row(*i).is_some_and(|row| row.decoded_bytes == bytes);
                (1..=OPERANDS_MAX).contains(&operands.len()) && operands.iter().all(alike)
            };
            if !chunk.is_some_and(fits) {
                return broken(format!("chunk {row} is no delta of its operands"));
            }
            for operand in operands {
                used[*operand as usize] = true;
                uses[*operand as usize] += 1;
            }
        }
        let deltas = self.all_chunks().filter(|chunk| chunk.codec == Codec::Delta).count();
        if deltas != self.operands.len() {
            return broken(format!("{deltas} deltas, {} have operands", self.operands.len()));
        }
        if let Some(base) = used[self.chunks.len()..].iter().position(|used| !used) {
            return broken(format!("base {base} is the base of nothing"));
        }
        self.check_depth(uses)
    }

    /// Takes away again and again what nothing is made of: what is left goes round in a circle.
    fn check_depth(&self, mut uses: Vec<u32>) -> Result<()> {
        let rows = (0..uses.len() as u32).filter(|row| uses[*row as usize] == 0);
        let mut layer: Vec<u32> = rows.collect();
        let mut seen = 0;
        for _ in 0..=DEPTH_MAX {
            seen += layer.len();
            let mut next = Vec::new();
            for operand in layer.iter().flat_map(|row| self.operands_of(*row)) {
                let uses = &mut uses[*operand as usize];
                *uses -= 1;
                if *uses == 0 {
                    next.push(*operand);
                }
            }
            layer = next;
        }
        match seen == uses.len() && layer.is_empty() {
            true => Ok(()),
            false => {
                broken(format!("deltas are made of each other, or more than {DEPTH_MAX} deep"))
            }
        }
    }

    /// Every chunk row belongs to exactly one large shard, or is filled without gap by small ones.
    fn check_shards(&self) -> Result<()> {
        let mut owned = vec![false; self.chunks.len()];
        let mut shared: BTreeMap<u32, Vec<(u32, u32)>> = BTreeMap::new();
        for tensor in &self.tensors {
            let shards = &self.shards[tensor.shards.start as usize..tensor.shards.end as usize];
            for shard in shards {
                if !shard.extent.is_inside(&tensor.shape) {
                    return broken(format!("a shard of {:?} sticks out of it", tensor.name));
                }
                let bytes = self.bytes_of(tensor, shard)?;
                let small = bytes > 0 && bytes < u64::from(self.chunk_bytes);
                match (bytes, small) {
                    (0, _) => self.check_empty(tensor, shard)?,
                    (_, true) => {
                        let bytes = bytes as u32;
                        let ranges = shared.entry(shard.first_chunk).or_default();
                        ranges.push((shard.chunk_offset, bytes));
                    }
                    (_, false) => self.check_large(tensor, shard, bytes, &mut owned)?,
                }
            }
            if shards.len() > 1 {
                let boxes: Vec<_> = shards.iter().map(|shard| shard.extent.clone()).collect();
                check_disjoint(&boxes).map_err(|e| e.context(format!("{:?}", tensor.name)))?;
            }
        }
        for (row, ranges) in shared {
            self.check_shared(row, ranges, &mut owned)?;
        }
        match owned.iter().position(|owned| !owned) {
            Some(row) => broken(format!("chunk {row} belongs to no shard")),
            None => Ok(()),
        }
    }

    fn check_empty(&self, tensor: &Tensor, shard: &Shard) -> Result<()> {
        match (shard.first_chunk, shard.chunk_offset) {
            (0, 0) => Ok(()),
            _ => broken(format!("an empty shard of {:?} names a chunk", tensor.name)),
        }
    }

    fn check_large(
        &self,
        tensor: &Tensor,
        shard: &Shard,
        bytes: u64,
        owned: &mut [bool],
    ) -> Result<()> {
        let wrong = || broken(format!("a shard of {:?} does not fit its chunks", tensor.name));
        let full = u64::from(self.chunk_bytes);
        let rows = bytes.div_ceil(full);
        let first = u64::from(shard.first_chunk);
        if shard.chunk_offset != 0 || first + rows > self.chunks.len() as u64 {
            return wrong();
        }
        for i in 0..rows {
            let row = (first + i) as usize;
            let expected = full.min(bytes - i * full);
            if owned[row] || u64::from(self.chunks[row].decoded_bytes) != expected {
                return wrong();
            }
            owned[row] = true;
        }
        Ok(())
    }

    fn check_shared(
        &self,
        row: u32,
        mut ranges: Vec<(u32, u32)>,
        owned: &mut [bool],
    ) -> Result<()> {
        ranges.sort_unstable();
        let mut end = 0u64;
        let whole = ranges.iter().all(|(offset, bytes)| {
            let follows = u64::from(*offset) == end;
            end += u64::from(*bytes);
            follows
        });
        let i = row as usize;
        let decoded = self.chunks.get(i).map(|chunk| u64::from(chunk.decoded_bytes));
        if !whole || decoded != Some(end) || owned[i] {
            return broken(format!("the small shards of chunk {row} do not fill it exactly"));
        }
        owned[i] = true;
        Ok(())
    }
}

fn broken<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::corrupt(what))
}
