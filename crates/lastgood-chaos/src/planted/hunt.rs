//! Looking for planted bugs.

use std::sync::{Mutex, PoisonError};
use std::thread;

use super::bugs::{Bug, Finder, all};
use crate::crash::{self, Found};
use crate::failure::{Result, bail};
use crate::journal::{self, Broken};
use crate::sim::{self, Failed};

/// How far a bug is looked for.
const SEEDS: u64 = 8_000;
const RECORDINGS: u64 = 64;
const CRASHES: u64 = 10_000;

/// What became of one planted bug.
#[derive(Clone, Debug)]
pub struct Hunted {
    /// The bug.
    pub bug: Bug,
    /// The seed that the simulation found it at.
    pub simulation: Option<Failed>,
    /// The state that the enumerator found it at.
    pub enumerator: Option<Found>,
    /// The crash of the journal's writer that it was found at.
    pub journal: Option<Broken>,
}

impl Hunted {
    /// True if everybody found it who was to find it.
    #[must_use]
    pub fn is_found(&self) -> bool {
        match self.bug.finder {
            Finder::Simulation => self.simulation.is_some(),
            Finder::Enumerator => self.enumerator.is_some(),
            Finder::Both => self.simulation.is_some() && self.enumerator.is_some(),
            Finder::Journal => self.journal.is_some(),
        }
    }
}

/// Looks for every planted bug, several at a time; each from the first seed on, so that it is found at the
/// same one every time.
///
/// # Errors
/// If a recording cannot be made.
pub fn hunt() -> Result<Vec<Hunted>> {
    let queue = Mutex::new(all().into_iter().enumerate());
    let done = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let hunters: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some((i, bug)) = next else { return Ok(()) };
                        let hunted = look_for(bug)?;
                        done.lock().unwrap_or_else(PoisonError::into_inner).push((i, hunted));
                    }
                })
            })
            .collect();
        hunters.into_iter().try_for_each(|hunter| {
            hunter.join().unwrap_or_else(|_| bail!("looking for a planted bug panicked"))
        })
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, hunted)| hunted).collect())
}

fn look_for(bug: Bug) -> Result<Hunted> {
    let simulation = match bug.finder {
        Finder::Enumerator | Finder::Journal => None,
        _ => (0..SEEDS).find_map(|seed| {
            let violation = sim::play(seed, &bug.setting, false).violation?;
            Some(Failed { seed, violation })
        }),
    };
    let mut enumerator = None;
    let recordings = match bug.finder {
        Finder::Simulation | Finder::Journal => 0,
        _ => RECORDINGS,
    };
    for number in 0..recordings {
        enumerator = crash::recording(number, &bug.setting)?.1;
        if enumerator.is_some() {
            break;
        }
    }
    let journal = match bug.finder {
        Finder::Journal => journal::simulate(0, CRASHES, &bug.setting).failed.into_iter().next(),
        _ => None,
    };
    Ok(Hunted { bug, simulation, enumerator, journal })
}
