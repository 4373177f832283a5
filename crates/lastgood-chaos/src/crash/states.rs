//! The states that a crash at one point may leave: all of them, or a sample.

use std::sync::Arc;

use super::replay::Replay;
use super::torn;
use super::tree::{File, Node, TOP, Tree};
use crate::random::{Random, hash_bytes, join};

/// A point with no more states than this is tried in all of them.
pub(super) const EXHAUSTIVE_MAX: u64 = 4096;
/// Of a point with more states, so many are tried.
const SAMPLED: u64 = 1024;
/// In so many of a thousand cases a name in the staging folder outlives a crash though it was removed, or
/// does not though it was not.
const LEFT: u64 = 200;

/// One state.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) tree: Tree,
    /// A hash of all that a reader can see.
    pub(super) seen: u64,
    /// A hash of all of it.
    pub(super) all: u64,
}

/// The states of one point.
#[derive(Debug)]
pub(super) struct States<'r> {
    replay: &'r Replay,
    contents: &'r [u64],
    torn: Vec<File>,
    /// For each effect, how many ways there are.
    ways: Vec<u64>,
    /// The number of states; none if it is beyond counting.
    count: Option<u64>,
    seed: u64,
}

impl<'r> States<'r> {
    /// The states of the point that `replay` is at. `contents` are hashes of the files.
    pub(super) fn of(replay: &'r Replay, contents: &'r [u64], seed: u64) -> Self {
        let torn = replay.torn();
        let files = &replay.durable.files;
        let ways: Vec<u64> = std::iter::repeat_n(2, replay.changes.len())
            .chain(torn.iter().map(|file| torn::ways(files[*file].len())))
            .collect();
        let count = ways.iter().try_fold(1_u64, |count, ways| count.checked_mul(*ways));
        Self { replay, contents, torn, ways, count, seed }
    }

    /// True if every state is tried.
    pub(super) fn is_exhaustive(&self) -> bool {
        self.count.is_some_and(|count| count <= EXHAUSTIVE_MAX)
    }

    /// How many are tried.
    pub(super) fn len(&self) -> u64 {
        match self.count {
            Some(count) if self.is_exhaustive() => count,
            _ => SAMPLED,
        }
    }

    /// State number `i`.
    pub(super) fn image(&self, i: u64) -> Image {
        let choice = if self.is_exhaustive() { self.counted(i) } else { self.sampled(i) };
        self.build(&choice, i)
    }

    fn counted(&self, mut i: u64) -> Vec<u64> {
        let digit = |ways: &u64| {
            let digit = i % ways;
            i /= ways;
            digit
        };
        self.ways.iter().map(digit).collect()
    }

    /// First nothing and everything, then each effect alone and all but it, then at random.
    fn sampled(&self, i: u64) -> Vec<u64> {
        let all = |ways: &u64| ways - 1;
        let effects = self.ways.len() as u64;
        if i < 2 * effects + 2 {
            let (effect, is_kept) = (i / 2, i % 2 == 1);
            let way = |(j, ways): (usize, &u64)| match (j as u64 == effect) == is_kept {
                true => all(ways),
                false => 0,
            };
            return self.ways.iter().enumerate().map(way).collect();
        }
        let mut random = Random::new(join(self.seed, i));
        let bias = [0, 0, 500, 900][random.below(4) as usize];
        let draw = |ways: &u64| match random.chance(bias) {
            true => all(ways),
            false => random.below(*ways),
        };
        self.ways.iter().map(draw).collect()
    }

    fn build(&self, choice: &[u64], i: u64) -> Image {
        let mut tree = self.replay.durable.clone();
        let mut torn = 0;
        for (change, way) in self.replay.changes.iter().zip(choice) {
            if *way == 1 {
                tree.set(change.folder, &change.name, change.node);
            }
        }
        for (file, way) in self.torn.iter().zip(&choice[self.replay.changes.len()..]) {
            if way + 1 < torn::ways(tree.files[*file].len()) {
                let left = torn::leave(&tree.files[*file], *way);
                torn = join(torn, join(*file as u64, hash_bytes(&left)));
                Arc::make_mut(&mut tree.files)[*file] = left;
            }
        }
        let seen = join(self.hash(&tree, TOP), torn);
        let left = self.leave(&mut tree, i);
        Image { tree, seen, all: join(seen, left) }
    }

    /// A hash of a folder and what is below; the staging folder counts as empty.
    fn hash(&self, tree: &Tree, folder: usize) -> u64 {
        if self.replay.staging() == Some(folder) {
            return 0;
        }
        tree.folders[folder].iter().fold(1, |hash, (name, node)| {
            let below = match node {
                Node::File(file) => self.contents[*file],
                Node::Folder(below) => self.hash(tree, *below),
            };
            join(join(hash, hash_bytes(name.as_encoded_bytes())), below)
        })
    }

    /// Draws what is left in the staging folder. Gives a hash of it.
    fn leave(&self, tree: &mut Tree, i: u64) -> u64 {
        let Some(staging) = self.replay.staging() else { return 0 };
        let mut random = Random::new(join(self.seed ^ 0x5a, i));
        let mut hash = 0;
        for change in &self.replay.leavings {
            if random.chance(LEFT) == change.node.is_none() {
                continue;
            }
            tree.set(staging, &change.name, change.node);
            if let Some(Node::File(file)) = change.node {
                hash = join(hash, file as u64);
                if !self.replay.is_synced(file) && !self.torn.contains(&file) {
                    let way = random.below(torn::ways(tree.files[file].len()));
                    let left = torn::leave(&tree.files[file], way);
                    hash = join(hash, way);
                    Arc::make_mut(&mut tree.files)[file] = left;
                }
            }
        }
        hash
    }
}
