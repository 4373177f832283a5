//! What one rank does at the end of each step, and what it tells the others by the ledger.

use std::collections::BTreeSet;
use std::time::Duration;

use lastgood_format::ledger::{Kind, SaveOrder};

use super::Policy;
use super::choice::{self, Explanation, Inputs};
use super::failures::{Failures, PREEMPTION};
use super::meter::{Meter, median};
use super::orders::{Orders, Request};
use crate::ledger::History;
use crate::state::World;

/// Until `auto` has measured a save, it saves after so many steps, after twice as many, and so on.
const FIRST_STEPS: u64 = 4;

/// Fewer steps than these tell nothing of how long one takes.
const STEPS_MEASURED: usize = 3;

/// A choice is replaced after so many saves of this attempt: fewer differ by chance.
const SAVES_MEASURED: u64 = 5;

/// A save may take so many times longer than the last ones, and must still fit the grace time.
const GRACE_MARGIN: f64 = 1.25;

/// A rank that was too late asks for a step that is twice as far ahead, at most so many times.
const LATE_MAX: usize = 10;

/// The checkpoints whose bytes count.
const CHECKPOINTS: usize = 9;

/// What is to be done at the end of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing.
    Nothing,
    /// Save the state.
    Save,
    /// Save the state, wait until it is a checkpoint, and end the process.
    SaveAndEnd,
    /// End the process: there is no time for a save.
    End,
}

/// The pace of one rank of an attempt. All times are from some fixed moment.
#[derive(Debug)]
pub struct Pace {
    policy: Policy,
    world: World,
    /// How long it takes, at most and in general, until the others have read what one has written into the ledger.
    lag: Duration,
    meter: Meter,
    /// What the ledger says, as far as it was read.
    orders: Orders,
    failures: Failures,
    bytes: Option<f64>,
    /// The step that the state was restored at.
    base: u64,
    /// The last finished step.
    step: Option<u64>,
    began: Duration,
    saved_at: Duration,
    /// The step that was to be saved last, and since when.
    wanted: Option<(u64, Duration)>,
    /// Until when the process may live, after a notice.
    deadline: Option<Duration>,
    /// Requests that this rank has followed.
    followed: BTreeSet<u64>,
    /// Requests whose step this rank had passed when it read them.
    missed: BTreeSet<u64>,
    /// Where a rank that is alone has followed one without a step: the entry, and the step.
    answer: Option<(u64, u64)>,
    /// The measured saves, and steps, of which the last choice was made.
    judged: Option<(u64, bool)>,
}

impl Pace {
    /// The pace of `policy` for a rank that begins at `now`. Entries of the ledger are read by the others within `lag`.
    #[must_use]
    pub fn new(policy: Policy, world: World, lag: Duration, now: Duration) -> Self {
        Self {
            policy,
            world,
            lag,
            meter: Meter::default(),
            orders: Orders::default(),
            failures: Failures::default(),
            bytes: None,
            base: 0,
            step: None,
            began: now,
            saved_at: now,
            wanted: None,
            deadline: None,
            followed: BTreeSet::new(),
            missed: BTreeSet::new(),
            answer: None,
            judged: None,
        }
    }

    /// What is measured, to add to it.
    pub fn meter(&mut self) -> &mut Meter {
        &mut self.meter
    }

    /// True if somebody must read the ledger meanwhile.
    #[must_use]
    pub fn listens(&self) -> bool {
        let several = self.world.size > 1 && (self.policy.grace.is_some() || self.timed());
        self.policy.demand || self.policy.auto || several
    }

    /// True if the attempt says in the ledger how it ends.
    #[must_use]
    pub fn tells(&self) -> bool {
        self.policy.auto
    }

    /// True if the interval is one that this attempt chooses.
    fn timed(&self) -> bool {
        self.policy.auto || self.policy.seconds.is_some() && self.world.size > 1
    }

    /// What the ledger says now.
    pub fn read(&mut self, history: &History) {
        self.orders.clone_from(history.orders());
        self.failures.clone_from(history.failures());
        let newest = history.checkpoints().iter().rev().take(CHECKPOINTS);
        self.bytes = median(newest.map(|checkpoint| checkpoint.new_bytes as f64));
    }

    /// What the ledger says of steps, as far as it was read.
    #[must_use]
    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// The state is that of `step` since `now`.
    pub fn restored(&mut self, step: u64, now: Duration) {
        if self.step.is_none() {
            self.meter.restore = Some(now.saturating_sub(self.began).as_secs_f64());
        }
        self.base = step;
        self.step = Some(step);
        self.saved_at = now;
        self.meter.skip();
    }

    /// The call of a save of `step` took from `began` to `now`.
    pub fn saved(&mut self, step: u64, began: Duration, now: Duration) {
        // What the program does for a save that was wanted, before it calls, is part of its cost.
        let wanted = self.wanted.take().filter(|(wanted, _)| *wanted == step);
        self.meter.save(step, wanted.map_or(began, |(_, since)| since), now);
        self.saved_at = now;
    }

    /// A notice at `now`: the process will be ended when the grace time is over. False if the policy has none.
    pub fn notice(&mut self, now: Duration) -> bool {
        let Some(grace) = self.policy.grace else { return false };
        self.deadline.get_or_insert(now + grace);
        true
    }

    /// Until when the process may live; `None` before a notice.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// `step` has ended at `now`.
    pub fn step(&mut self, step: u64, now: Duration) -> Want {
        self.meter.step(now);
        self.step = Some(step);
        let request = self.orders.request_at(step);
        self.followed.extend(request.map(|request| request.entry));
        if let Some(ends) = self.end(request.map(|request| request.order), now) {
            return ends;
        }
        // Who is alone needs no step that others know, and would pass one that it names to itself.
        let asked = self.orders.asked().filter(|_| self.world.size == 1);
        let asked = asked.filter(|entry| self.followed.insert(*entry));
        self.answer = asked.map(|entry| (entry, step)).or(self.answer);
        let requested = request.is_some() || asked.is_some();
        let is_due = self.policy.is_fixed(step) || requested || self.is_timed(step, now);
        self.wanted = is_due.then_some((step, now));
        if is_due { Want::Save } else { Want::Nothing }
    }

    /// Whether the process ends here.
    fn end(&mut self, order: Option<SaveOrder>, now: Duration) -> Option<Want> {
        let alone = self.world.size == 1 && self.deadline.is_some();
        let order = if alone { Some(self.order(0, now)) } else { order };
        let want = match order {
            None | Some(SaveOrder::Save) => return None,
            Some(SaveOrder::SaveAndEnd) => Want::SaveAndEnd,
            Some(SaveOrder::End) => Want::End,
        };
        // Who has had no notice has what the others have.
        let grace = self.policy.grace.unwrap_or(Duration::ZERO);
        self.deadline.get_or_insert(now + grace);
        Some(want)
    }

    fn is_timed(&self, step: u64, now: Duration) -> bool {
        if !self.timed() {
            let since = now.saturating_sub(self.saved_at);
            return self.policy.seconds.is_some_and(|seconds| since >= seconds);
        }
        if self.orders.interval_at(step).is_some() {
            return self.orders.is_multiple(step);
        }
        let since = step.saturating_sub(self.base);
        self.policy.auto && since >= FIRST_STEPS && since.is_power_of_two()
    }

    /// What to do with the state if the ranks end so many steps from now.
    fn order(&self, ahead: u64, now: Duration) -> SaveOrder {
        let left = self.deadline.map_or(0.0, |end| end.saturating_sub(now).as_secs_f64());
        let steps = ahead as f64 * self.meter.steps().median().unwrap_or(0.0);
        let save = self.meter.durable().median().unwrap_or(0.0);
        match steps + GRACE_MARGIN * save <= left {
            true => SaveOrder::SaveAndEnd,
            false => SaveOrder::End,
        }
    }

    /// So many steps from now every rank has read what is written into the ledger now. Ranks are a step apart at most
    /// where they exchange gradients; who has passed a step all the same asks for another one.
    fn ahead(&self) -> u64 {
        if self.world.size == 1 {
            return 1;
        }
        let step = self.meter.steps().median().unwrap_or(0.0);
        let lag = 2.0 * self.lag.as_secs_f64();
        let ahead = 2 + if step > 0.0 { (lag / step).ceil().min(1e6) as u64 } else { 2 };
        // Who was too late before looks less often than it should.
        ahead << self.missed.len().min(LATE_MAX)
    }

    /// What is to be written into the ledger at `now`, for all ranks: a request, or another choice. Asked again while it
    /// is not read there, it says the same.
    pub fn tell(&mut self, now: Duration) -> Option<Kind> {
        let missed = self.missed();
        self.missed.extend(missed.map(|missed| missed.entry));
        let (ahead, done) = (self.ahead(), self.step.unwrap_or(self.base));
        let orders = &self.orders;
        let request = |order, reason: String| {
            Some(Kind::SaveRequested { step: Some(done + ahead), order, reason })
        };
        let rank = self.world.rank;
        if self.deadline.is_some() && self.world.size > 1 && !orders.ends_after(self.step) {
            let followed = orders.requests().iter().any(|found| {
                found.order != SaveOrder::Save && self.followed.contains(&found.entry)
            });
            if !followed {
                return request(
                    self.order(ahead, now),
                    format!("rank {rank} was told that it will be ended ({PREEMPTION})"),
                );
            }
        }
        let asked = "asked for from outside";
        if self.world.size == 1 {
            if let Some((_, step)) = self.answer.filter(|(entry, _)| orders.asked() == Some(*entry))
            {
                let (step, order) = (Some(step), SaveOrder::Save);
                return Some(Kind::SaveRequested { step, order, reason: asked.into() });
            }
        } else if let Some(missed) = missed {
            return request(missed.order, format!("rank {rank} had passed the step asked for"));
        } else if rank == 0 && orders.asked().is_some() {
            return request(SaveOrder::Save, asked.into());
        }
        if rank == 0 && self.timed() { self.choose(now) } else { None }
    }

    /// A request whose step this rank had passed when it was read, unless another one followed.
    fn missed(&self) -> Option<Request> {
        let done = self.step?;
        let mut requests = self.orders.requests().iter();
        let missed = requests.rfind(|request| {
            let was_ahead = request.step > self.base;
            request.step <= done && was_ahead && !self.followed.contains(&request.entry)
        })?;
        let mut requests = self.orders.requests().iter();
        let later = requests.any(|request| request.entry > missed.entry);
        (!later).then_some(*missed)
    }

    fn choose(&mut self, now: Duration) -> Option<Kind> {
        let measured = (self.meter.saves(), self.meter.steps().count() >= STEPS_MEASURED);
        let enough = measured.1 && (!self.policy.auto || measured.0 > 0);
        if !enough || self.judged == Some(measured) {
            return None;
        }
        let choice = choice::choose(&self.policy, &self.inputs(now)?);
        // An interval of an earlier attempt, or of the first saves, stands until enough is known that is better.
        let is_known = !self.policy.auto || measured.0 >= SAVES_MEASURED;
        let is_worth = |every| !self.policy.auto || choice.gain(every) >= choice::GAIN;
        let is_better = |every| is_known && choice.replaces(every) && is_worth(every);
        let is_kept = |every| !choice.forbids(every) && !is_better(every);
        if self.orders.newest_interval().is_some_and(|newest| is_kept(newest.every)) {
            self.judged = Some(measured);
            return None;
        }
        let soonest = self.step? + self.ahead();
        let next = self.meter.last_saved().unwrap_or(self.base) + choice.every;
        let why = serde_json::to_value(&choice).ok()?;
        Some(Kind::PolicyChosen { from_step: next.max(soonest), every: choice.every, why })
    }

    /// What is measured, and what the ledger says.
    fn inputs(&self, now: Duration) -> Option<Inputs> {
        let running = now.saturating_sub(self.began).as_secs_f64();
        Some(Inputs {
            step_s: self.meter.steps().median()?,
            steps: self.meter.steps().count(),
            cost_s: self.meter.costs().median().unwrap_or(0.0),
            cost_half_s: self.meter.costs().middle_half().unwrap_or_default(),
            durable_s: self.meter.durable().median().unwrap_or(0.0),
            saves: self.meter.costs().count(),
            restore_s: self.meter.restore,
            bytes: self.bytes,
            failures: self.failures.rates(self.world.size, running),
        })
    }

    /// What a choice would be now, whether it is made or not; `None` while nothing is measured.
    #[must_use]
    pub fn explain(&self, now: Duration) -> Option<Explanation> {
        Some(choice::choose(&self.policy, &self.inputs(now)?))
    }
}
