//! What seeds make happen, and what they make happen together: a generator that never brings two things
//! together is blind to what they do to each other.

use std::fmt;

/// One thing that may happen in a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feature {
    Crash,
    CrashAfterPut,
    PowerCut,
    LostEntry,
    LateEntry,
    TakenSlot,
    DamagedRead,
    UnsettledRead,
    Fenced,
    LateRank,
    SavedAgain,
    Reuse,
    LostBase,
    Expired,
    Collected,
    Abandoned,
    Bad,
    Good,
    Head,
}

const COUNT: usize = 19;

const NAMES: [&str; COUNT] = [
    "a crash",
    "a crash after a put",
    "a power cut that took something",
    "a lost answer on a ledger slot",
    "a late put into a ledger slot",
    "a race for a ledger slot",
    "a damaged read",
    "a settle that failed",
    "a fenced rank",
    "a late rank",
    "a step saved again",
    "a commit that reuses chunks",
    "a save that lost its base",
    "an expiry",
    "a collection",
    "an abandoned save",
    "a bad mark",
    "a good mark",
    "a head",
];

/// What happened in one seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    pub(super) fn note(&mut self, feature: Feature) {
        self.0 |= 1 << feature as u32;
    }

    pub(super) fn note_if(&mut self, feature: Feature, happened: bool) {
        if happened {
            self.note(feature);
        }
    }

    fn has(self, i: usize) -> bool {
        self.0 >> i & 1 == 1
    }
}

/// In how many seeds each thing happened, alone and with each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    pairs: [[u64; COUNT]; COUNT],
    /// Crashes after a put, power cuts, lost answers and operators, all in one seed.
    crowded: u64,
}

impl Coverage {
    pub(super) fn count(&mut self, features: Features) {
        for i in (0..COUNT).filter(|i| features.has(*i)) {
            for j in (0..COUNT).filter(|j| features.has(*j)) {
                self.pairs[i][j] += 1;
            }
        }
        let all = |wanted: &[Feature]| wanted.iter().all(|f| features.has(*f as usize));
        let operated = [Feature::Expired, Feature::Bad, Feature::Abandoned];
        self.crowded += u64::from(
            all(&[Feature::CrashAfterPut, Feature::PowerCut, Feature::LostEntry])
                && all(&[Feature::TakenSlot])
                && operated.iter().any(|f| features.has(*f as usize)),
        );
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (row, others) in self.pairs.iter_mut().zip(&other.pairs) {
            for (count, other) in row.iter_mut().zip(others) {
                *count += other;
            }
        }
        self.crowded += other.crowded;
    }

    /// The pairs that no seed brought together.
    #[must_use]
    pub fn missing(&self) -> Vec<(&'static str, &'static str)> {
        self.all().filter(|(_, _, count)| *count == 0).map(|(a, b, _)| (a, b)).collect()
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let pairs = (0..COUNT).flat_map(|i| (0..i).map(move |j| (i, j)));
        pairs.map(|(i, j)| (NAMES[j], NAMES[i], self.pairs[i][j]))
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in NAMES.iter().enumerate() {
            writeln!(f, "  {:7} seeds with {name}", self.pairs[i][i])?;
        }
        let pairs = COUNT * (COUNT - 1) / 2;
        write!(f, "  {} of {pairs} pairs of these", pairs - self.missing().len())?;
        if let Some((a, b, count)) = self.all().min_by_key(|(_, _, count)| *count) {
            write!(f, ", the rarest {a} with {b}: {count} seeds")?;
        }
        write!(
            f,
            "; {} seeds with a crash after a put, a power cut, a lost answer, a race for a slot and an \
             operator's decision at once",
            self.crowded
        )
    }
}
