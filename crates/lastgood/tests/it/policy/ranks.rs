//! Several ranks that read one ledger late, each at its own time: they save the same steps.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use lastgood::Hash;
use lastgood::ledger::History;
use lastgood::policy::pace::{Pace, Want};
use lastgood::policy::{Policy, failures};
use lastgood::state::World;
use lastgood_format::ledger::{Entry, Kind, SaveOrder};

use crate::fixture::run_name;

pub(super) const LAG: Duration = Duration::from_millis(100);

/// A ledger without a store.
pub(super) struct Book(pub(super) History);

impl Book {
    pub(super) fn new() -> Self {
        Self(History::new(run_name()))
    }

    /// Appends what the newest attempt says, at so many seconds.
    pub(super) fn append(&mut self, at: f64, kind: Kind) {
        let entry = Entry {
            run: run_name(),
            n: self.0.entries() + 1,
            prev: self.0.tail(),
            write_id: 1,
            attempt: self.0.newest_attempt(),
            at: SystemTime::UNIX_EPOCH + Duration::from_secs_f64(1e9 + at),
            actor: "test".into(),
            kind,
        };
        let hash = Hash::of(&entry.encode().unwrap());
        self.0.apply(&entry, hash).unwrap();
    }

    pub(super) fn start(&mut self, at: f64, world_size: u32) {
        let number = self.0.newest_attempt() + 1;
        let incarnation = number.to_string();
        self.append(at, Kind::AttemptStarted { number, world_size, from: None, incarnation });
    }
}

struct Rank {
    pace: Pace,
    /// When it looks into the ledger next, and how late it is.
    looks: f64,
    done: u64,
    now: f64,
    saved: Vec<u64>,
    ended: Option<(u64, Want)>,
}

struct Job {
    book: Book,
    ranks: Vec<Rank>,
    chance: u64,
    step_s: f64,
    /// From one look to the next.
    look_s: f64,
}

impl Job {
    fn new(size: u32, policy: &Policy, seed: u64) -> Self {
        let mut book = Book::new();
        book.append(0.0, Kind::RunCreated {});
        book.start(0.0, size);
        let rank = |rank| Rank {
            pace: Pace::new(policy.clone(), World { rank, size }, LAG, Duration::ZERO),
            looks: 0.0,
            done: 0,
            now: 0.0,
            saved: Vec::new(),
            ended: None,
        };
        let ranks = (0..size).map(rank).collect();
        Self { book, ranks, chance: seed | 1, step_s: 0.05, look_s: 0.1 }
    }

    fn by_chance(&mut self) -> f64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        (self.chance >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Every rank does one more step; ranks that exchange gradients are not apart by more.
    fn step(&mut self) {
        let all: Vec<usize> = (0..self.ranks.len()).collect();
        for i in all {
            let took = self.step_s * (0.7 + 0.6 * self.by_chance());
            let again = self.look_s * (0.2 + 0.8 * self.by_chance());
            let rank = &mut self.ranks[i];
            if rank.ended.is_some() {
                continue;
            }
            // Looks come while the step goes on.
            let end = rank.now + took;
            while rank.looks < end {
                rank.pace.read(&self.book.0);
                if let Some(kind) = rank.pace.tell(Duration::from_secs_f64(rank.looks)) {
                    self.book.append(rank.looks, kind);
                    rank.pace.read(&self.book.0);
                }
                rank.looks += again;
            }
            (rank.now, rank.done) = (end, rank.done + 1);
            let now = Duration::from_secs_f64(end);
            match rank.pace.step(rank.done, now) {
                Want::Nothing => {}
                Want::Save => {
                    rank.saved.push(rank.done);
                    let durable = Duration::from_secs_f64(end + 0.02);
                    rank.pace.saved(rank.done, now, now);
                    rank.pace.meter().saved(rank.done, Some(durable));
                }
                ends => rank.ended = Some((rank.done, ends)),
            }
        }
    }

    fn ask(&mut self) {
        let (order, reason) = (SaveOrder::Save, "test".into());
        self.book.append(0.0, Kind::SaveRequested { step: None, order, reason });
    }

    /// The steps that all ranks saved, and those that only some did.
    fn saved(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let sets: Vec<BTreeSet<u64>> =
            self.ranks.iter().map(|rank| rank.saved.iter().copied().collect()).collect();
        let all = sets.iter().skip(1).fold(sets[0].clone(), |a, b| &a & b);
        let any = sets.iter().fold(BTreeSet::new(), |a, b| &a | b);
        (all.clone(), &any - &all)
    }
}

fn demand() -> Policy {
    Policy::every(1_000_000)
}

#[test]
fn all_ranks_save_the_step_that_is_asked_for() {
    for seed in 1..200 {
        let mut job = Job::new(4, &demand(), seed);
        for round in 0..60 {
            if round % 20 == 5 {
                job.ask();
            }
            job.step();
        }
        let (all, some) = job.saved();
        assert_eq!((all.len(), some.len()), (3, 0), "seed {seed}: {all:?}, {some:?}");
    }
}

#[test]
fn a_rank_that_has_passed_the_step_asks_for_another_one() {
    let mut missed = 0;
    for seed in 1..200 {
        let mut job = Job::new(4, &demand(), seed);
        // Far slower to look than they said.
        job.look_s = 1.5;
        for round in 0..300 {
            if round == 5 {
                job.ask();
            }
            job.step();
        }
        let (all, some) = job.saved();
        assert!(!all.is_empty(), "seed {seed}: {some:?}");
        missed += some.len();
    }
    assert!(missed > 0, "no rank was late");
}

#[test]
fn a_notice_to_one_rank_ends_all_at_the_same_step() {
    for seed in 1..200 {
        let policy = Policy { grace: Some(Duration::from_secs(5)), ..Policy::every(10) };
        let mut job = Job::new(4, &policy, seed);
        for round in 0..60 {
            if round == 25 {
                let now = Duration::from_secs_f64(job.ranks[2].now);
                assert!(job.ranks[2].pace.notice(now));
            }
            job.step();
        }
        let ends: BTreeSet<_> = job.ranks.iter().map(|r| r.ended.map(|(step, _)| step)).collect();
        assert_eq!(ends.len(), 1, "seed {seed}: {ends:?}");
        let first = job.ranks[0].ended.unwrap();
        assert!(first.1 == Want::SaveAndEnd && first.0 < 40, "seed {seed}: {first:?}");
    }
}

#[test]
fn without_time_for_a_save_they_end_and_say_so() {
    for size in [1, 3] {
        let policy = Policy { grace: Some(Duration::from_millis(400)), ..Policy::every(10) };
        let mut job = Job::new(size, &policy, 7);
        for round in 0..40 {
            if round == 25 {
                for rank in &mut job.ranks {
                    // Saves took 2 s.
                    for step in 0..20 {
                        rank.pace.meter().save(step, Duration::ZERO, Duration::ZERO);
                        rank.pace.meter().saved(step, Some(Duration::from_secs(2)));
                    }
                    let now = Duration::from_secs_f64(rank.now);
                    rank.pace.notice(now);
                }
            }
            job.step();
        }
        let ends: BTreeSet<_> = job.ranks.iter().map(|rank| rank.ended.unwrap().0).collect();
        assert_eq!(ends.len(), 1, "{size} ranks: {ends:?}");
        assert!(job.ranks.iter().all(|rank| rank.ended.unwrap().1 == Want::End), "{size} ranks");
    }
}

#[test]
fn auto_comes_to_one_interval_for_all_and_keeps_it_under_noise() {
    for seed in 1..30 {
        let policy = Policy { auto: true, ..Policy::default() };
        let mut job = Job::new(3, &policy, seed);
        for _ in 0..3000 {
            job.step();
        }
        let (all, some) = job.saved();
        assert!(some.is_empty(), "seed {seed}: {some:?}");
        assert!(all.len() > 5, "seed {seed}: {all:?}");
        let first: Vec<u64> = all.iter().copied().take(2).collect();
        assert_eq!(first, [4, 8], "until it is measured it doubles");
        let chosen = job.book.0.orders().newest_interval().unwrap();
        let last: Vec<u64> = all.into_iter().rev().take(2).collect();
        assert_eq!(last[0] - last[1], chosen.every);
        // The mean time between failures grows while nothing fails, so that it is changed, but rarely.
        assert!(job.book.0.entries() < 30, "seed {seed}: {} entries", job.book.0.entries());
    }
}

#[test]
fn seconds_are_as_many_steps_for_several_ranks() {
    let policy = Policy { seconds: Some(Duration::from_secs(3)), ..Policy::default() };
    let mut job = Job::new(3, &policy, 5);
    for _ in 0..600 {
        job.step();
    }
    let (all, some) = job.saved();
    assert!(some.is_empty(), "{some:?}");
    // 30 s of steps of 50 ms.
    assert!((8..=11).contains(&all.len()), "{all:?}");
}

#[test]
fn a_new_attempt_does_not_follow_requests_to_the_one_before() {
    let mut book = Book::new();
    book.append(0.0, Kind::RunCreated {});
    book.start(0.0, 2);
    let (order, reason) = (SaveOrder::SaveAndEnd, "test".to_owned());
    book.append(1.0, Kind::SaveRequested { step: Some(7), order, reason });
    book.append(1.0, Kind::PolicyChosen { from_step: 4, every: 3, why: serde_json::json!({}) });
    assert!(book.0.orders().request_at(7).is_some());
    book.start(2.0, 2);
    assert!(book.0.orders().request_at(7).is_none());
    assert!(book.0.orders().is_multiple(10) && !book.0.orders().is_multiple(11));
}

#[test]
fn failures_are_counted_by_class_and_only_where_they_are_known() {
    let mut book = Book::new();
    book.append(0.0, Kind::RunCreated {});
    let chosen = || Kind::PolicyChosen { from_step: 4, every: 3, why: serde_json::json!({}) };
    let incident = |class: Option<&str>| Kind::IncidentOpened {
        reason: "test".into(),
        class: class.map(Into::into),
    };
    let ended = |how: &str| Kind::AttemptEnded { how: how.into(), reason: "test".into() };
    // Nothing is known of the first; the third ends by itself, and the fourth without a word, though it tells.
    let attempts = [
        vec![],
        vec![incident(Some("stall"))],
        vec![chosen(), ended(failures::CLOSED)],
        vec![chosen()],
        vec![chosen(), ended("preemption"), incident(Some("process"))],
        vec![incident(None)],
    ];
    for (i, kinds) in attempts.into_iter().enumerate() {
        let at = 1000.0 * i as f64;
        book.start(at, 1);
        for kind in kinds {
            book.append(at + 100.0, kind);
        }
    }
    let rates = book.0.failures().rates_at_rest(1);
    let seen = |class: &str| rates.iter().find(|rate| rate.class == class).unwrap().seen;
    assert_eq!(["stall", "process", "preemption", "host"].map(seen), [1, 1, 1, 0]);
    // 400 s are known, of four attempts; a third of an assumed hour counts with them.
    let process = rates.iter().find(|rate| rate.class == "process").unwrap().mean_s;
    assert!((process - (400.0 + 1200.0) / (1.0 + 1.0 / 3.0)).abs() < 1.0, "{process}");
}
