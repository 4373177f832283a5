//! One life of a journal: a writer, its end, the attempts that recover, and the judge.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use lastgood::journal::lanes::{self, Event, Lanes};
use lastgood::journal::read::JournalReader;
use lastgood::journal::recover::{Recovered, recover};
use lastgood::journal::tail::Tail;
use lastgood::journal::{Kind, Lane, Value};
use lastgood_format::RunName;
use lastgood_format::journal::tail::Owner;
use lastgood_store::{Disk, MemoryStore, Store};

use super::disk::{Platter, PlatterDisk};
use super::fate::{Fate, Way};
use crate::random::{Random, join};
use crate::setting::Setting;

const REPOSITORY: &str = "00112233445566778899aabbccddeeff";
const FOLDER: &str = "/state/journal/run";
const LANES: u32 = 3;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// What it had written stays.
    Kill,
    /// What it had not synced may be torn or gone.
    PowerCut,
    /// It did not end, but does not know that a newer attempt has begun.
    Fenced,
}

/// What was played.
#[derive(Clone, Debug)]
pub struct Played {
    /// The operations of the first process.
    pub operations: u64,
    /// How it ended.
    pub ending: Ending,
    /// Recoveries that were cut off.
    pub second_crashes: u64,
    /// Frames that had been acknowledged.
    pub acknowledged: u64,
    /// Frames that were found at the end.
    pub found: u64,
    /// What recoveries had to tell.
    pub notices: u64,
    /// The promise that was broken.
    pub broken: Option<String>,
}

/// What a process has appended, by lane, and what of it was acknowledged.
#[derive(Clone, Debug, Default)]
struct Told {
    appended: BTreeMap<Lane, Vec<Vec<u8>>>,
    acknowledged: BTreeMap<Lane, u64>,
}

/// One process that writes.
struct Process<'s> {
    owner: Owner,
    lanes: Lanes,
    tail: Tail,
    way: Way,
    pending: Vec<u8>,
    told: Told,
    random: Random,
    setting: &'s Setting,
}

fn run() -> RunName {
    // The name is one; a run without it would not be found by the judge either.
    "run".parse().unwrap_or_else(|_| unreachable!("it is a name"))
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        // Nothing here ever waits for anything.
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
}

impl<'s> Process<'s> {
    fn new(attempt: u64, platter: &Platter, way: Way, seed: u64, setting: &'s Setting) -> Self {
        let owner = Owner { repository: REPOSITORY.into(), run: run(), attempt };
        let fate = way.fate.clone();
        let disk: Arc<dyn Disk> = Arc::new(PlatterDisk { platter: platter.clone(), fate });
        let tail = Tail::new((setting.disk)(disk), PathBuf::from(FOLDER), owner.clone(), "p");
        let lanes = Lanes::new(owner.clone(), (0..LANES).map(Lane::from_number));
        let (told, random) = (Told::default(), Random::new(seed));
        Self { owner, lanes, tail, way, pending: Vec::new(), told, random, setting }
    }

    /// Does `rounds` things, or fewer if it ends before.
    fn live(&mut self, rounds: u64) {
        for _ in 0..rounds {
            let goes_on = match self.random.below(10) {
                0..5 => self.append(),
                5..8 => self.flush(),
                8 => self.seal(),
                _ => {
                    self.tail.begin_another();
                    true
                }
            };
            if !goes_on || self.way.fate.is_over() {
                return;
            }
        }
    }

    fn append(&mut self) -> bool {
        for _ in 0..self.random.between(1, 3) {
            let lane = Lane::from_number(self.random.below(LANES.into()) as u32);
            let bytes_max = if self.random.chance(100) { 900 } else { 60 };
            let bytes = self.random.below(bytes_max);
            let value = Value::Bytes((0..bytes).map(|_| self.random.draw() as u8).collect());
            let event = Event { lane, kind: Kind::STEP, step: 1, value };
            let now = SystemTime::UNIX_EPOCH + Duration::from_millis(self.random.below(1000));
            let Ok(frame) = self.lanes.append(&event, now) else { return false };
            self.pending.extend_from_slice(frame);
            self.told.appended.entry(lane).or_default().push(frame.to_vec());
        }
        true
    }

    fn flush(&mut self) -> bool {
        if self.pending.is_empty() {
            return true;
        }
        let counts = self.lanes.counts();
        match self.tail.append(&self.pending, &counts) {
            Ok(()) => {
                self.pending.clear();
                self.acknowledge(&counts);
                true
            }
            // The disk fails now and then: the frames wait.
            Err(_) => !self.way.fate.is_over(),
        }
    }

    fn acknowledge(&mut self, counts: &BTreeMap<Lane, u64>) {
        for (lane, count) in counts {
            let told = self.told.acknowledged.entry(*lane).or_default();
            *told = (*told).max(*count);
        }
    }

    fn seal(&mut self) -> bool {
        let store = (self.setting.store)(Arc::new(self.way.clone()) as Arc<dyn Store>);
        for piece in self.lanes.to_seal(&self.lanes.cut()) {
            if wait(lanes::seal(store.as_ref(), &self.owner, &piece)).is_err() {
                return false;
            }
            self.lanes.sealed(piece.lane, piece.end);
            self.acknowledge(&[(piece.lane, piece.end.next)].into());
        }
        if self.lanes.open_bytes() == 0 {
            self.pending.clear();
        }
        self.tail.release(&self.lanes.sealed_counts());
        true
    }
}

/// Plays seed `seed`; the first process ends with operation `ends_at`, or after its last one.
pub fn play(seed: u64, ends_at: Option<u64>, setting: &Setting) -> Played {
    let mut random = Random::new(join(seed, ends_at.unwrap_or(u64::MAX)));
    let store = MemoryStore::default();
    let refused = [0, 0, 0, 60][Random::new(seed).below(4) as usize];
    let platter = Platter::new(refused);
    let fate = Fate::new(random.draw(), ends_at);
    let way = Way { store: store.clone(), fate: fate.clone() };
    let mut first = Process::new(1, &platter, way, seed, setting);
    let rounds = Random::new(seed ^ 1).between(5, 40);
    first.live(rounds);
    let operations = fate.operations();
    let is_over = fate.is_over();
    let ending = match random.below(5) {
        0..2 => Ending::Kill,
        _ if is_over => Ending::PowerCut,
        2 => Ending::Kill,
        _ => Ending::Fenced,
    };
    if ending == Ending::PowerCut {
        platter.cut_power(&mut random);
    }
    platter.heal();
    let before = first.told.clone();
    let mut played = Played {
        operations,
        ending,
        second_crashes: 0,
        acknowledged: before.acknowledged.values().sum(),
        found: 0,
        notices: 0,
        broken: None,
    };
    recover_all(2, &platter, &store, &mut random, &mut played, setting);
    let way = Way { store: store.clone(), fate: Fate::new(random.draw(), None) };
    let mut second = Process::new(2, &platter, way, random.draw(), setting);
    second.live(10);
    if ending == Ending::Fenced {
        first.live(10);
    }
    recover_all(3, &platter, &store, &mut random, &mut played, setting);
    let lives = [(1, &first.told.appended, &before), (2, &second.told.appended, &second.told)];
    for (attempt, appended, told) in lives {
        if played.broken.is_none() {
            match judge(&store, attempt, appended, told) {
                Ok(found) => played.found += found,
                Err(broken) => played.broken = Some(broken),
            }
        }
    }
    played
}

/// Recovers as attempt `attempt`, however often that is cut off.
fn recover_all(
    attempt: u64,
    platter: &Platter,
    store: &MemoryStore,
    random: &mut Random,
    played: &mut Played,
    setting: &Setting,
) {
    let owner = Owner { repository: REPOSITORY.into(), run: run(), attempt };
    loop {
        let ends_at = random.chance(400).then(|| random.below(20));
        let fate = Fate::new(random.draw(), ends_at);
        let disk = PlatterDisk { platter: platter.clone(), fate: fate.clone() };
        let disk = (setting.disk)(Arc::new(disk));
        let way = Way { store: store.clone(), fate: fate.clone() };
        let mut found = Recovered::default();
        let recovered = wait(recover(disk.as_ref(), FOLDER.as_ref(), &way, &owner, &mut found));
        if fate.is_over() {
            played.second_crashes += 1;
            if random.chance(500) {
                platter.cut_power(random);
            }
            continue;
        }
        match recovered {
            Ok(()) => played.notices += found.notices.len() as u64,
            Err(error) => played.broken = Some(format!("the recovery failed: {error}")),
        }
        return;
    }
}

/// What was acknowledged is sealed, and nothing is that was not appended. Gives how many frames are.
fn judge(
    store: &MemoryStore,
    attempt: u64,
    appended: &BTreeMap<Lane, Vec<Vec<u8>>>,
    told: &Told,
) -> Result<u64, String> {
    let run = run();
    let reader = JournalReader::open(Arc::new(store.clone()), REPOSITORY, &run);
    let reader = wait(reader).map_err(|error| error.to_string())?;
    let mut found = 0;
    for number in 0..LANES {
        let lane = Lane::from_number(number);
        let appended = appended.get(&lane).map_or(&[][..], Vec::as_slice);
        let mut frames = reader.lane(attempt, lane);
        let mut count = 0;
        while let Some(frame) = wait(frames.next()).map_err(|error| error.to_string())? {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes).map_err(|error| error.to_string())?;
            if appended.get(count) != Some(&bytes) {
                return Err(format!("{} was never appended", frame.place()));
            }
            count += 1;
        }
        let acknowledged = told.acknowledged.get(&lane).copied().unwrap_or(0);
        if (count as u64) < acknowledged {
            return Err(format!(
                "lane {lane} of attempt {attempt}: {acknowledged} frames were acknowledged, {count} are there"
            ));
        }
        found += count as u64;
    }
    Ok(found)
}
