//! The lanes of one process in one attempt: numbers and chains their frames, and keeps them until they are
//! sealed. But for [`seal`] it is pure: no disk, no store, no clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use lastgood_format::journal::tail::Owner;
use lastgood_format::journal::{
    Cut, Frame, Kind, Lane, LaneName, Position, Segment, Value, genesis, segment,
};
use lastgood_format::{Error, ErrorKind, Result, key};
use lastgood_store::Store;

use crate::objects;

/// A process keeps at most so many bytes of frames that are not sealed: those of a store that does not answer
/// for a very long time.
pub const OPEN_BYTES_MAX: usize = 256 << 20;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// In which lane.
    pub lane: Lane,
    /// What kind of event.
    pub kind: Kind,
    /// The steps that were finished; as many as in the lane's event before if these are less, unless the event
    /// says that the state went back.
    pub step: u64,
    /// What it says.
    pub value: Value,
}

/// Frames of one lane that are to become one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealable {
    /// The lane.
    pub lane: Lane,
    /// Where its first frame stands.
    pub begin: Position,
    /// Where its last frame ends.
    pub end: Position,
    /// Its frames, one after the other.
    pub frames: Vec<u8>,
}

/// Puts a piece into the repository, as a segment.
///
/// # Errors
/// `Conflict` if another process wrote as `owner`; `Unavailable`, `Overloaded`, `Denied`; `Internal` if the
/// piece is not as it was appended.
pub async fn seal(store: &dyn Store, owner: &Owner, piece: &Sealable) -> Result<()> {
    let object = key::journal_segment(&owner.run, owner.attempt, piece.lane, piece.begin.next);
    let stored = Segment::encode(owner.attempt, piece.lane, piece.begin, &piece.frames)?;
    objects::put_same(store, &object, stored.into()).await
}

#[derive(Debug)]
struct Open {
    /// Everything before is sealed.
    sealed: Position,
    end: Position,
    step: u64,
    frames: VecDeque<(Vec<u8>, Position)>,
}

/// The lanes of one process.
#[derive(Debug)]
pub struct Lanes {
    owner: Owner,
    lanes: BTreeMap<Lane, Open>,
    clock: u64,
    open_bytes: usize,
}

impl Lanes {
    /// These lanes of a new attempt, empty.
    pub fn new(owner: Owner, lanes: impl IntoIterator<Item = Lane>) -> Self {
        let lanes = lanes.into_iter().map(|lane| {
            let head = genesis(&owner.repository, &owner.run, owner.attempt, lane);
            let begin = Position { next: 0, head };
            (lane, Open { sealed: begin, end: begin, step: 0, frames: VecDeque::new() })
        });
        Self { lanes: lanes.collect(), owner, clock: 0, open_bytes: 0 }
    }

    /// Whose lanes they are.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Appends an event to its lane, and gives the encoded frame. `now` is information only.
    ///
    /// # Errors
    /// `Invalid` if the lane is not of this process, or the event too large; `Overloaded` if more than
    /// [`OPEN_BYTES_MAX`] bytes wait to be sealed.
    pub fn append(&mut self, event: &Event, now: SystemTime) -> Result<&[u8]> {
        if self.open_bytes > OPEN_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::Overloaded,
                format!("{OPEN_BYTES_MAX} bytes of events wait for the store to answer"),
            )
            .with_remedy("see why the store does not answer; events are lost from here on"));
        }
        let clock = self.tick(now);
        let open = self.lanes.get_mut(&event.lane).ok_or_else(|| {
            Error::invalid(format!("lane {} is not one of this process", event.lane))
        })?;
        let goes_back = matches!(event.kind, Kind::RESTORED | Kind::REWOUND);
        let frame = Frame {
            kind: event.kind,
            lane: event.lane,
            attempt: self.owner.attempt,
            sequence: open.end.next,
            step: if goes_back { event.step } else { event.step.max(open.step) },
            clock,
            prev: open.end.head,
            payload: event.value.encode()?,
        };
        let mut bytes = Vec::new();
        let head = frame.encode(&mut bytes)?;
        open.end = Position { next: frame.sequence + 1, head };
        open.step = frame.step;
        self.open_bytes += bytes.len();
        open.frames.push_back((bytes, open.end));
        Ok(open.frames.back().map_or(&[], |(bytes, _)| bytes))
    }

    /// The next value of the hybrid logical clock: that of `now`, or one more than the last.
    fn tick(&mut self, now: SystemTime) -> u64 {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let wall = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).min(u64::MAX >> 16) << 16;
        self.clock = wall.max(self.clock.saturating_add(1));
        self.clock
    }

    /// Where all lanes end.
    #[must_use]
    pub fn cut(&self) -> Cut {
        let lanes = self.lanes.iter().map(|(lane, open)| (LaneName(*lane), open.end));
        Cut { attempt: self.owner.attempt, lanes: lanes.collect() }
    }

    /// The frames before `upto` that are not sealed, in pieces of the size of a segment, in the order of
    /// their lanes.
    #[must_use]
    pub fn to_seal(&self, upto: &Cut) -> Vec<Sealable> {
        let mut pieces: Vec<Sealable> = Vec::new();
        for (lane, open) in &self.lanes {
            let Some(until) = upto.lanes.get(&LaneName(*lane)) else { continue };
            let mut begin = open.sealed;
            let mut piece = Sealable { lane: *lane, begin, end: begin, frames: Vec::new() };
            for (bytes, end) in open.frames.iter().take_while(|(_, end)| end.next <= until.next) {
                if !piece.frames.is_empty()
                    && piece.frames.len() + bytes.len() > segment::FRAMES_BYTES
                {
                    begin = piece.end;
                    let next = Sealable { lane: *lane, begin, end: begin, frames: Vec::new() };
                    pieces.push(std::mem::replace(&mut piece, next));
                }
                piece.frames.extend_from_slice(bytes);
                piece.end = *end;
            }
            if !piece.frames.is_empty() {
                pieces.push(piece);
            }
        }
        pieces
    }

    /// Forgets the frames of `lane` before `end`, which are sealed.
    pub fn sealed(&mut self, lane: Lane, end: Position) {
        let Some(open) = self.lanes.get_mut(&lane) else { return };
        while let Some((bytes, at)) = open.frames.front()
            && at.next <= end.next
        {
            self.open_bytes -= bytes.len();
            open.sealed = *at;
            open.frames.pop_front();
        }
    }

    /// For each lane the number of frames that are sealed.
    #[must_use]
    pub fn sealed_counts(&self) -> BTreeMap<Lane, u64> {
        self.lanes.iter().map(|(lane, open)| (*lane, open.sealed.next)).collect()
    }

    /// For each lane the number of all frames.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Lane, u64> {
        self.lanes.iter().map(|(lane, open)| (*lane, open.end.next)).collect()
    }

    /// The bytes of the lane with the most bytes that are not sealed.
    #[must_use]
    pub fn open_bytes_max(&self) -> usize {
        let bytes = |open: &Open| open.frames.iter().map(|(bytes, _)| bytes.len()).sum();
        self.lanes.values().map(bytes).max().unwrap_or(0)
    }

    /// The bytes of all frames that are not sealed.
    #[must_use]
    pub fn open_bytes(&self) -> usize {
        self.open_bytes
    }
}
