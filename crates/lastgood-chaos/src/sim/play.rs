//! Playing one seed from its beginning to its judgement.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lastgood::attempt;
use lastgood::ledger::{Decision, Ledger, Rules, Strict, Writer};
use lastgood_format::ledger::Kind;
use lastgood_format::{Result, RunName};
use lastgood_store::{MemoryStore, Store};

use super::bystanders;
use super::check::{self, at_once};
use super::coverage::{Feature, Features};
use super::scheduler::{Event, Scheduler, Task};
use super::store::{Faults, SimEnv, SimStore};
use super::story::{Act, Cut, Story, last_act};
use super::trace::Trace;
use crate::random::Random;
use crate::ranks::{Ended, Order, Rank, Told, Witness, run};
use crate::remembering::Remembering;
use crate::setting::Setting;
use crate::violation::{Invariant, Violation};

/// No story needs as many events.
const EVENTS_MAX: u64 = 200_000;

/// A power cut that waits for the worst moment waits no longer than this.
const MEAN_UNTIL: u64 = 600_000;

/// How long the last attempt may take, in microseconds, once nothing goes wrong any more.
const LAST_ACT_MICROS: u64 = 600_000_000;

/// What became of one seed.
#[derive(Clone, Debug, Default)]
pub struct Played {
    /// Checkpoints in the ledger.
    pub commits: u64,
    /// Ranks and others that died.
    pub crashes: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Objects that vanished in them.
    pub vanished: u64,
    /// Ranks that learnt that they were fenced.
    pub fences: u64,
    /// Saves that the ledger calls abandoned.
    pub abandoned: u64,
    /// Saves that a rank gave up.
    pub given_up: u64,
    /// Looks after a save that was not through yet.
    pub waits: u64,
    /// Events.
    pub events: u64,
    /// What happened that matters together.
    pub features: Features,
    /// A hash of everything that happened.
    pub trace: u64,
    /// Everything that happened, if it was asked for.
    pub text: String,
    /// The first broken promise.
    pub violation: Option<Violation>,
}

struct Play {
    scheduler: Scheduler,
    setting: Setting,
    /// The rules of those who judge.
    honest: Arc<dyn Rules>,
    run: RunName,
    witness: Witness,
    ended: Arc<std::sync::Mutex<Vec<(Task, Ended)>>>,
    ranks: BTreeSet<Task>,
    played: Played,
    next_incarnation: u64,
    mean_cuts: u64,
    told: Vec<Told>,
}

/// Plays one seed.
#[must_use]
pub fn play(seed: u64, setting: &Setting, with_text: bool) -> Played {
    let trace = if with_text { Trace::with_text() } else { Trace::default() };
    let mut random = Random::new(seed);
    let story = Story::of(&mut random, setting.has_past);
    let last = last_act(&mut random);
    let Ok(run) = "run".parse() else {
        let violation = Violation::new(Invariant::LiveRanksGetThrough, "the run has no name");
        return Played { violation: Some(violation), ..Played::default() };
    };
    let rules = Remembering::over(Arc::clone(&setting.rules));
    let mut play = Play {
        scheduler: Scheduler::new(random, trace),
        setting: Setting { rules, ..setting.clone() },
        honest: Remembering::over(Arc::new(Strict)),
        run,
        witness: Witness::default(),
        ended: Arc::default(),
        ranks: BTreeSet::new(),
        played: Played::default(),
        next_incarnation: 0,
        mean_cuts: 0,
        told: Vec::new(),
    };
    let judged = play.all(&story, &last);
    play.played.violation = judged.err();
    play.finish()
}

impl Play {
    fn all(&mut self, story: &Story, last: &Act) -> std::result::Result<(), Violation> {
        self.begin_with(story.old_entries)?;
        self.invite(story);
        self.set_alarms(story);
        let mut open = story.acts.len() + story.power_cuts.len();
        while open > 0 || (self.mean_cuts > 0 && self.scheduler.sim.lock().now < MEAN_UNTIL) {
            let told = self.witness.count();
            match self.turn()? {
                Some(Some(alarm)) => {
                    open -= 1;
                    match story.acts.get(alarm) {
                        Some(act) => drop(self.start(act)),
                        None => self.alarm_cut(story.power_cuts[alarm - story.acts.len()]),
                    }
                }
                Some(None) if self.mean_cuts > 0 && self.witness.count() > told => self.be_mean(),
                Some(None) => {}
                None => break,
            }
        }
        self.end_with(last, story.acts.len())?;
        self.judge(story.acts.len())
    }

    fn turn(&mut self) -> std::result::Result<Option<Option<usize>>, Violation> {
        if self.scheduler.events_done > EVENTS_MAX {
            let detail = format!("{EVENTS_MAX} events were not enough");
            return Err(Violation::new(Invariant::LiveRanksGetThrough, detail));
        }
        Ok(self.scheduler.turn())
    }

    /// A ledger that has a past, so that heads are written and read.
    fn begin_with(&mut self, entries: u64) -> std::result::Result<(), Violation> {
        let broken = |error: lastgood::Error| {
            Violation::new(Invariant::LiveRanksGetThrough, error.to_string())
        };
        let store = MemoryStore::default();
        let work = append_incidents(store.clone(), self.env(usize::MAX), self.run.clone(), entries);
        at_once(work).map_err(broken)?;
        let mut state = self.scheduler.sim.lock();
        for key in store.keys() {
            if let Some(bytes) = store.peek(&key) {
                state.objects.create(&key, bytes, 0);
                state.objects.settle(&key);
            }
        }
        Ok(())
    }

    fn env(&self, task: Task) -> SimEnv {
        let skew = Duration::from_secs(self.scheduler.sim.lock().random.below(100_000));
        SimEnv { sim: self.scheduler.sim.clone(), task, skew }
    }

    fn rank(&self, task: Task, faults: Faults, order: Order) -> Rank {
        let store = SimStore { sim: self.scheduler.sim.clone(), task, faults };
        Rank {
            order,
            store: (self.setting.store)(Arc::new(store)),
            env: (self.setting.env)(Arc::new(self.env(task))),
            rules: Arc::clone(&self.setting.rules),
            witness: self.witness.clone(),
        }
    }

    fn order(&self, rank: u32, act: &Act) -> Order {
        Order {
            run: self.run.clone(),
            rank,
            world_size: act.world_size,
            incarnation: format!("incarnation {}", self.next_incarnation),
            steps: act.steps.clone(),
            commit_wait: Duration::from_micros(act.commit_wait),
            poll: Duration::from_micros(2_000),
        }
    }

    fn invite(&mut self, story: &Story) {
        let idle = Act { steps: Vec::new(), ..story.acts[0].clone() };
        for i in 0..story.operators + story.readers {
            let (seed, count) = {
                let random = &mut self.scheduler.sim.lock().random;
                (random.draw(), random.between(1, 10))
            };
            let task = self.scheduler.next_task();
            let who = self.rank(task, story.faults, self.order(0, &idle));
            let random = Random::new(seed);
            if i < story.operators {
                self.scheduler.spawn(0, bystanders::operate(who, random, count));
            } else {
                self.scheduler.spawn(0, bystanders::look_on(who, random, count));
            }
        }
    }

    fn set_alarms(&self, story: &Story) {
        let mut state = self.scheduler.sim.lock();
        let acts = story.acts.iter().map(|act| act.begin);
        let cuts = story.power_cuts.iter().map(|cut| cut.at);
        for (alarm, at) in acts.chain(cuts).enumerate() {
            state.at(at, Event::Alarm(alarm));
        }
    }

    /// Starts the ranks of an attempt; older ones go on.
    fn start(&mut self, act: &Act) -> Vec<Task> {
        self.next_incarnation += 1;
        let mut tasks = Vec::new();
        for rank in 0..act.world_size {
            let after = self.scheduler.sim.lock().random.below(act.stagger);
            self.scheduler.sim.lock().features.note_if(Feature::LateRank, after > 20_000);
            let task = self.scheduler.next_task();
            let rank = self.rank(task, act.faults, self.order(rank, act));
            let ended = Arc::clone(&self.ended);
            self.scheduler.spawn(after, async move {
                let how = run(&rank).await;
                ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((task, how));
            });
            self.ranks.insert(task);
            tasks.push(task);
        }
        tasks
    }

    fn alarm_cut(&mut self, cut: Cut) {
        if cut.is_mean {
            self.mean_cuts += 1;
        } else {
            self.cut_power(cut.stay);
        }
    }

    /// Cuts the power now if it can take something.
    fn be_mean(&mut self) {
        if self.scheduler.sim.lock().objects.is_any_unsettled() {
            self.mean_cuts -= 1;
            self.cut_power(0);
        }
    }

    /// Everybody dies; what was not settled may vanish.
    fn cut_power(&mut self, stay: u64) {
        self.scheduler.kill_all();
        let mut state = self.scheduler.sim.lock();
        let state = &mut *state;
        let vanished = state.objects.cut_power(&mut state.random, stay);
        state.trace.note(state.now, usize::MAX, "power cut", "", &vanished);
        self.played.power_cuts += 1;
        self.played.vanished += vanished as u64;
        state.features.note_if(Feature::PowerCut, vanished > 0);
    }

    /// The last attempt, on a store that works, must get through, whatever the others still do. An
    /// incarnation that begins later than it fences it, but can do so only once: there is an end.
    fn end_with(&mut self, act: &Act, others: usize) -> std::result::Result<(), Violation> {
        for _ in 0..=others {
            let tasks = self.start(act);
            let deadline = self.scheduler.sim.lock().now + LAST_ACT_MICROS;
            while tasks.iter().any(|task| self.scheduler.is_alive(*task)) {
                if self.turn()?.is_none() || self.scheduler.sim.lock().now > deadline {
                    break;
                }
            }
            if !self.is_fenced(&tasks)? {
                return Ok(());
            }
        }
        let detail = format!("{others} older attempts fenced the last one more often");
        Err(Violation::new(Invariant::LiveRanksGetThrough, detail))
    }

    /// True if a rank of the last attempt was fenced; otherwise all have done what they were told.
    fn is_fenced(&self, tasks: &[Task]) -> std::result::Result<bool, Violation> {
        let ended = self.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut is_fenced = false;
        for task in tasks {
            let how = ended.iter().find(|(other, _)| other == task).map(|(_, how)| how);
            is_fenced |= matches!(how, Some(Ended::Fenced));
        }
        for task in tasks {
            let how = ended.iter().find(|(other, _)| other == task).map(|(_, how)| how);
            let through = matches!(how, Some(Ended::Done { given_up: 0, .. }));
            if !is_fenced && !through && !self.was_disturbed(how) {
                let detail = format!("task {task} of the last attempt ended with {how:?}");
                return Err(Violation::new(Invariant::LiveRanksGetThrough, detail));
            }
        }
        Ok(is_fenced)
    }

    /// An operator may abandon a save of the last attempt, too.
    fn was_disturbed(&self, how: Option<&Ended>) -> bool {
        matches!(how, Some(Ended::Done { .. })) && self.is_any_abandoned()
    }

    fn is_any_abandoned(&self) -> bool {
        let Ok(found) = self.read() else { return false };
        let abandoned = |(entry, _): &(lastgood_format::ledger::Entry, _)| {
            matches!(entry.kind, Kind::SaveAbandoned { .. })
        };
        found.entries.iter().any(abandoned)
    }

    fn read(&self) -> std::result::Result<check::Found, Violation> {
        let store = MemoryStore::default();
        for (key, bytes) in self.scheduler.sim.lock().objects.all() {
            let put = at_once(store.put_if_absent(key, bytes.clone().into()));
            put.map_err(|error| Violation::new(Invariant::OneHistory, error.to_string()))?;
        }
        let (env, rules) = (Arc::new(self.env(usize::MAX)), Arc::clone(&self.honest));
        check::read(Arc::new(store), env, &self.run, rules)
    }

    /// The power goes for the last time and takes all that nobody was told of.
    fn judge(&mut self, acts: usize) -> std::result::Result<(), Violation> {
        self.told = self.witness.take();
        {
            let mut state = self.scheduler.sim.lock();
            let state = &mut *state;
            state.objects.cut_power(&mut state.random, 0);
        }
        let found = self.read()?;
        self.count(&found, acts);
        check::check_entries(&found)?;
        check::check_told(&found, &self.told)?;
        check::check_checkpoints(&found)
    }

    /// Counts what the ledger tells; what the last attempt does, it does in every seed.
    fn count(&mut self, found: &check::Found, acts: usize) {
        let features = &mut self.scheduler.sim.lock().features;
        let mut is_last = false;
        for (entry, _) in &found.entries {
            match &entry.kind {
                Kind::AttemptStarted { incarnation, .. } => {
                    is_last |= (0..=acts).all(|i| *incarnation != format!("incarnation {i}"));
                }
                Kind::CheckpointCommitted { .. } if is_last => self.played.commits += 1,
                Kind::CheckpointCommitted { generation, reuses, .. } => {
                    self.played.commits += 1;
                    features.note_if(Feature::SavedAgain, *generation > 0);
                    features.note_if(Feature::Reuse, !reuses.is_empty());
                }
                Kind::SaveAbandoned { .. } => {
                    self.played.abandoned += 1;
                    features.note(Feature::Abandoned);
                }
                Kind::CheckpointExpired { .. } => features.note(Feature::Expired),
                Kind::CheckpointBad { .. } => features.note(Feature::Bad),
                Kind::CheckpointGood { .. } => features.note(Feature::Good),
                _ => {}
            }
        }
        features.note_if(Feature::Head, found.entries.len() >= 64);
    }

    fn finish(mut self) -> Played {
        for (_, how) in self.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter()
        {
            match how {
                Ended::Done { given_up, .. } => self.played.given_up += u64::from(*given_up),
                Ended::Fenced => self.played.fences += 1,
                Ended::Failed(_) => {}
            }
        }
        self.played.waits = self.witness.waits();
        let mut state = self.scheduler.sim.lock();
        let crashed = state.crashes > 0;
        state.features.note_if(Feature::Crash, crashed);
        state.features.note_if(Feature::Fenced, self.played.fences > 0);
        state.features.note_if(Feature::LostBase, self.witness.lost_bases() > 0);
        self.played.features = state.features;
        self.played.crashes = state.crashes;
        self.played.events = self.scheduler.events_done;
        self.played.trace = state.trace.hash();
        self.played.text = state.trace.take_text();
        drop(state);
        self.played
    }
}

async fn append_incidents(
    store: MemoryStore,
    env: SimEnv,
    run: RunName,
    entries: u64,
) -> Result<()> {
    if entries == 0 {
        return Ok(());
    }
    let mut ledger = Ledger::open(Arc::new(store), Arc::new(env), run).await?;
    let writer = Writer { attempt: 0, actor: "past".into() };
    attempt::create_run(&mut ledger, &writer.actor).await?;
    for i in 1..entries {
        attempt::settle(&mut ledger, &writer, |history| {
            Ok(match history.entries() {
                n if n > i => Decision::Nothing,
                _ => Decision::Append(Kind::IncidentOpened {
                    reason: format!("incident {i}"),
                    class: None,
                }),
            })
        })
        .await?;
    }
    Ok(())
}
