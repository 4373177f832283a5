//! What goes wrong, and when: a function of the seed and of the calls, and of nothing else.

use std::time::Duration;

/// What a call asks a store to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// [`put_if_absent`](crate::Store::put_if_absent).
    Put,
    /// [`get`](crate::Store::get), [`get_range`](crate::Store::get_range) and
    /// [`read_into`](crate::Store::read_into).
    Read,
    /// [`size`](crate::Store::size).
    Size,
    /// [`settle`](crate::Store::settle).
    Settle,
    /// [`list`](crate::Store::list), whose key is the prefix.
    List,
    /// [`delete`](crate::Store::delete).
    Delete,
}

/// What goes wrong in one call.
///
/// A fault that has no meaning for an operation, such as a torn read, does nothing to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with `Unavailable`, and nothing happened.
    Refused,
    /// The call has its effect, and fails with `Unavailable`.
    LostAnswer,
    /// The call takes so much longer.
    Delay(Duration),
    /// A put creates an object that is cut short, and fails with `Unavailable`: a store that breaks its
    /// promise.
    TornWrite,
    /// A put fails with `Overloaded`, and nothing happened.
    FullDisk,
    /// A listing lacks so many of the newest objects.
    StaleList(usize),
    /// A read gives the bytes with one flipped bit.
    FlippedBit,
    /// A read gives only the first of the bytes.
    CutAnswer,
}

/// How often calls go wrong that nothing else is planned for: each rate is so many of a thousand calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// Calls that fail without an effect.
    pub refused: u64,
    /// Calls that have their effect and fail.
    pub lost: u64,
    /// Calls that are delayed, by up to [`Self::delay_max`]; beside whatever else goes wrong.
    pub delayed: u64,
    /// The longest delay.
    pub delay_max: Duration,
    /// Puts that create an object that is cut short.
    pub torn: u64,
    /// Listings that lack one to three of the newest objects.
    pub stale: u64,
    /// Reads that are flipped or cut. The same object is never damaged by two reads in a row: what
    /// stays is no damage of the way.
    pub damaged: u64,
}

/// The faults of a store, decided by a seed and by call.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    pub(super) seed: u64,
    pub(super) rates: FaultRates,
    pub(super) calls: Vec<Call>,
    pub(super) bytes_left: Option<u64>,
}

/// A fault that waits for its call.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) operation: Operation,
    pub(super) prefix: String,
    /// How many calls are still before it; `None` when it is over.
    pub(super) before: Option<u64>,
    pub(super) fault: Fault,
}

impl FaultPlan {
    /// Faults at `rates`, decided by `seed`.
    #[must_use]
    pub fn seeded(seed: u64, rates: FaultRates) -> Self {
        Self { seed, rates, ..Self::default() }
    }

    /// Adds `fault` to call `number`, counted from 1, of those of `operation` whose key begins with
    /// `prefix`.
    #[must_use]
    pub fn at(mut self, operation: Operation, prefix: &str, number: u64, fault: Fault) -> Self {
        self.calls.push(Call::new(operation, prefix, number, fault));
        self
    }

    /// Gives the store room for `bytes` more bytes; what does not fit fails with `Overloaded`.
    #[must_use]
    pub fn bytes_left(mut self, bytes: u64) -> Self {
        self.bytes_left = Some(bytes);
        self
    }
}

impl Call {
    pub(super) fn new(operation: Operation, prefix: &str, number: u64, fault: Fault) -> Self {
        let before = number.checked_sub(1);
        Self { operation, prefix: prefix.to_owned(), before, fault }
    }

    /// Counts a call, and gives the fault if this is the one.
    pub(super) fn meets(&mut self, operation: Operation, key: &str) -> Option<Fault> {
        if operation != self.operation || !key.starts_with(&self.prefix) {
            return None;
        }
        let before = self.before?;
        self.before = before.checked_sub(1);
        (before == 0).then_some(self.fault)
    }
}

/// What the seed decides for one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drawn {
    pub(super) delay: Option<Duration>,
    pub(super) fault: Option<Fault>,
    /// For whatever the fault has to choose.
    pub(super) bits: u64,
}

/// What the seed decides for call `number` of `operation` on `key`: the order of calls on other keys
/// does not matter to it, so that racing threads meet the same faults in every run.
pub(super) fn draw(
    seed: u64,
    rates: &FaultRates,
    operation: Operation,
    key: &str,
    number: u64,
) -> Drawn {
    let mut draw = raw(seed, rates, operation, key, number);
    let before = || raw(seed, rates, operation, key, number - 1).fault;
    if draw.fault.is_some_and(Fault::is_damage) && before().is_some_and(Fault::is_damage) {
        draw.fault = None;
    }
    draw
}

impl Fault {
    fn is_damage(self) -> bool {
        matches!(self, Self::FlippedBit | Self::CutAnswer)
    }
}

fn raw(seed: u64, rates: &FaultRates, operation: Operation, key: &str, number: u64) -> Drawn {
    let mut random = Random(seed ^ fnv(key) ^ (operation as u64 + 1).rotate_right(8));
    random.0 = random.next() ^ number;
    let delay = (random.next() % 1000 < rates.delayed).then(|| {
        let micros = u64::try_from(rates.delay_max.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(random.next() % micros.saturating_add(1).max(1))
    });
    let roll = random.next() % 1000;
    let bits = random.next();
    let special = match operation {
        Operation::Put => Some((rates.torn, Fault::TornWrite)),
        Operation::List => Some((rates.stale, Fault::StaleList(1 + bits as usize % 3))),
        Operation::Read if bits >> 63 == 0 => Some((rates.damaged, Fault::FlippedBit)),
        Operation::Read => Some((rates.damaged, Fault::CutAnswer)),
        Operation::Size | Operation::Settle | Operation::Delete => None,
    };
    let refused_or_lost = rates.refused + rates.lost;
    let fault = match roll {
        roll if roll < rates.refused => Some(Fault::Refused),
        roll if roll < refused_or_lost => Some(Fault::LostAnswer),
        roll => special
            .filter(|(rate, _)| roll < refused_or_lost.saturating_add(*rate))
            .map(|(_, fault)| fault),
    };
    Drawn { delay, fault, bits }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// FNV-1a of 64 bits.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
