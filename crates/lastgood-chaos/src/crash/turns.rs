//! Threads that take turns, in an order that a seed decides.
//!
//! A player is one rank, however many threads it has: they do one thing at a time. Nobody is given a turn
//! before every player has asked for one, so that the order depends on the seed alone.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::random::Random;

/// Nobody is in need of as many turns; whoever asks for more is stuck.
const TURNS_MAX: u64 = 60_000;

/// Who has the turn.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<State>,
    /// One for each player.
    given: Vec<Condvar>,
}

#[derive(Debug)]
struct State {
    random: Random,
    /// Turns so far, with those that were slept through.
    now: u64,
    live: usize,
    /// Who waits, and until when at least.
    waiting: BTreeMap<usize, u64>,
    running: Option<usize>,
    /// In so many of a thousand cases the last one goes on.
    sticky: u64,
    last: usize,
}

impl Turns {
    pub(super) fn new(seed: u64, players: usize) -> Self {
        let mut random = Random::new(seed);
        let sticky = [0, 500, 900, 970][random.below(4) as usize];
        let state = State {
            random,
            now: 0,
            live: players,
            waiting: BTreeMap::new(),
            running: None,
            sticky,
            last: 0,
        };
        Self { state: Mutex::new(state), given: (0..players).map(|_| Condvar::new()).collect() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn of `who`, which it does not want before `rest` others have passed. The turn before
    /// it is over.
    pub(super) fn take(&self, who: usize, rest: u64) {
        let mut state = self.lock();
        let until = state.now + rest;
        state.waiting.insert(who, until);
        if state.running == Some(who) {
            state.running = None;
        }
        self.give(&mut state);
        while state.running != Some(who) {
            state = self.given[who].wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The player wants no turn any more.
    pub(super) fn leave(&self, who: usize) {
        let mut state = self.lock();
        state.live -= 1;
        if state.running == Some(who) {
            state.running = None;
        }
        self.give(&mut state);
    }

    /// The time, in turns.
    pub(super) fn now(&self) -> u64 {
        self.lock().now
    }

    /// True if somebody must be stuck.
    pub(super) fn is_over(&self) -> bool {
        self.now() > TURNS_MAX
    }

    fn give(&self, state: &mut State) {
        if state.running.is_some() || state.live == 0 || state.waiting.len() < state.live {
            return;
        }
        let first = state.waiting.values().min().copied().unwrap_or(0);
        state.now = state.now.max(first) + 1;
        let now = state.now;
        let ready: Vec<usize> =
            state.waiting.iter().filter(|(_, until)| **until < now).map(|(who, _)| *who).collect();
        let next = match ready.contains(&state.last) && state.random.chance(state.sticky) {
            true => state.last,
            false => ready[state.random.below(ready.len() as u64) as usize],
        };
        state.waiting.remove(&next);
        state.running = Some(next);
        state.last = next;
        self.given[next].notify_one();
    }
}
