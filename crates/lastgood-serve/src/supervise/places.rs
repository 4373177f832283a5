//! Which places of a job have a rank.

use lastgood::{Error, Result};

/// The places that ranks are started at, in the order of ranks: at first the place of each is its number.
///
/// Ranks are numbered anew when one is lost and not replaced; its place stays empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Places {
    taken: Vec<u32>,
    /// How many there are at least; `None` if whoever is lost is replaced.
    min: Option<u32>,
}

impl Places {
    pub(super) fn new(ranks: u32, min: Option<u32>) -> Result<Self> {
        if ranks == 0 {
            return Err(Error::invalid("a job needs at least one rank"));
        }
        if let Some(min) = min
            && !(1..=ranks).contains(&min)
        {
            return Err(Error::invalid(format!(
                "a job of {ranks} ranks cannot keep {min} of them"
            ))
            .with_remedy("keep at least 1 rank, and at most as many as it begins with"));
        }
        Ok(Self { taken: (0..ranks).collect(), min })
    }

    /// The number of ranks.
    pub(super) fn ranks(&self) -> u32 {
        self.taken.len() as u32
    }

    /// The place of `rank`.
    pub(super) fn of(&self, rank: u32) -> u32 {
        self.taken.get(rank as usize).copied().unwrap_or(rank)
    }

    /// Empties the places of the ranks `lost`, the first ones first, as far as they need no replacement. Gives the
    /// ranks that have none.
    pub(super) fn lose(&mut self, lost: &[u32]) -> Vec<u32> {
        let Some(min) = self.min else { return Vec::new() };
        let room = self.ranks().saturating_sub(min) as usize;
        let gone: Vec<u32> = lost.iter().copied().take(room).collect();
        let kept = (0..).zip(&self.taken).filter(|(rank, _)| !gone.contains(rank));
        self.taken = kept.map(|(_, place)| *place).collect();
        gone
    }
}

#[cfg(test)]
mod tests;
