//! Reading sealed segments: lane by lane, and merged in the canonical order. One segment of each lane is in
//! memory at a time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::mem;
use std::ops::RangeInclusive;
use std::sync::Arc;

use lastgood_format::journal::{Frame, Kind, Lane, LaneName, Position, Segment, genesis, segment};
use lastgood_format::{Error, Hash, Result, RunName, key};
use lastgood_store::Store;

use super::history::Part;

/// Where a frame is wanted from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only of these steps.
    pub steps: Option<RangeInclusive<u64>>,
    /// Only of these lanes; empty for all.
    pub lanes: Vec<Lane>,
    /// Only of these kinds; empty for all.
    pub kinds: Vec<Kind>,
}

impl Filter {
    fn wants(&self, frame: &Frame) -> bool {
        self.steps.as_ref().is_none_or(|steps| steps.contains(&frame.step))
            && (self.kinds.is_empty() || self.kinds.contains(&frame.kind))
    }

    fn wants_lane(&self, lane: Lane) -> bool {
        self.lanes.is_empty() || self.lanes.contains(&lane)
    }
}

/// The sealed segments of one lane of one attempt, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneSegments {
    /// The attempt.
    pub attempt: u64,
    /// The lane.
    pub lane: Lane,
    /// The number of the first frame of each.
    pub firsts: Vec<u64>,
    /// Their stored bytes together.
    pub bytes: u64,
}

/// The sealed journal of a run.
#[derive(Clone, Debug)]
pub struct JournalReader {
    store: Arc<dyn Store>,
    repository: String,
    run: RunName,
    lanes: BTreeMap<(u64, Lane), LaneSegments>,
}

impl JournalReader {
    /// Lists the segments of `run`.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    pub async fn open(store: Arc<dyn Store>, repository: &str, run: &RunName) -> Result<Self> {
        let mut lanes: BTreeMap<(u64, Lane), LaneSegments> = BTreeMap::new();
        for object in store.list(&key::journal_folder(run), None).await? {
            let Some((attempt, lane, first)) = key::parse_journal_segment(run, &object.key) else {
                continue;
            };
            let segments = lanes.entry((attempt, lane)).or_insert_with(|| LaneSegments {
                attempt,
                lane,
                firsts: Vec::new(),
                bytes: 0,
            });
            segments.firsts.push(first);
            segments.bytes += object.bytes;
        }
        for segments in lanes.values_mut() {
            segments.firsts.sort_unstable();
        }
        Ok(Self { store, repository: repository.to_owned(), run: run.clone(), lanes })
    }

    /// The run.
    #[must_use]
    pub fn run(&self) -> &RunName {
        &self.run
    }

    /// What is sealed of each lane of each attempt.
    pub fn lanes(&self) -> impl Iterator<Item = &LaneSegments> {
        self.lanes.values()
    }

    /// The frames of one lane from its beginning; none if nothing of it is sealed.
    #[must_use]
    pub fn lane(&self, attempt: u64, lane: Lane) -> LaneReader {
        let store = Arc::clone(&self.store);
        let first = LaneReader::first(store, &self.repository, &self.run, (attempt, lane));
        let firsts = self.lanes.get(&(attempt, lane)).map(|found| found.firsts.clone());
        LaneReader { segments: firsts.unwrap_or_default().into(), ..first }
    }

    /// The frames of one lane from `position` on, which a checkpoint names.
    #[must_use]
    pub(crate) fn lane_from(&self, attempt: u64, lane: Lane, position: Position) -> LaneReader {
        let mut reader = self.lane(attempt, lane);
        let before = reader.segments.iter().take_while(|first| **first < position.next).count();
        // The one that it stands in, or behind: its frames say whether the position is one of this lane.
        reader.segments.drain(..before.saturating_sub(1));
        reader.position = position;
        reader.begins_inside = true;
        reader
    }

    /// The frames of `parts` that `filter` wants, in the canonical order: part by part, and in each by step,
    /// logical rank and sequence, the control lane first.
    #[must_use]
    pub fn merged(&self, parts: &[Part], filter: Filter) -> Merged {
        let parts = parts.iter().cloned().collect();
        let (lanes, order) = (Vec::new(), BinaryHeap::new());
        Merged { reader: self.clone(), parts, filter, lanes, order, bytes_before: 0 }
    }
}

/// Reads one lane, and checks that each frame continues the one before.
#[derive(Debug)]
pub struct LaneReader {
    store: Arc<dyn Store>,
    run: RunName,
    attempt: u64,
    lane: Lane,
    segments: VecDeque<u64>,
    frames: VecDeque<(Frame, Hash)>,
    /// Behind the last frame that was given.
    position: Position,
    /// The position stands in the next segment, and not where it begins.
    begins_inside: bool,
    /// Segments without a frame of these steps are left out.
    steps: Option<RangeInclusive<u64>>,
    /// The rewinds in segments that were left out.
    rewinds_skipped: u64,
    /// The stored bytes of the segments that were read or left out.
    bytes_done: u64,
}

impl LaneReader {
    /// The frames of the first segment of a lane, which nothing is listed for.
    pub(crate) fn first(
        store: Arc<dyn Store>,
        repository: &str,
        run: &RunName,
        (attempt, lane): (u64, Lane),
    ) -> Self {
        let head = genesis(repository, run, attempt, lane);
        Self {
            store,
            run: run.clone(),
            attempt,
            lane,
            segments: VecDeque::from([0]),
            frames: VecDeque::new(),
            position: Position { next: 0, head },
            begins_inside: false,
            steps: None,
            rewinds_skipped: 0,
            bytes_done: 0,
        }
    }

    /// Behind the last frame that was read.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next frame; `None` at the end of what is sealed.
    ///
    /// # Errors
    /// `Corrupt` naming the segment and the frame if one is damaged, missing, or of another journal;
    /// `Incompatible`; `Unavailable`, `Denied`.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some((frame, hash)) = self.frames.pop_front() {
                self.position = Position { next: frame.sequence + 1, head: hash };
                return Ok(Some(frame));
            }
            let Some(first) = self.segments.pop_front() else { return Ok(None) };
            let object = key::journal_segment(&self.run, self.attempt, self.lane, first);
            if !self.skip(&object).await? {
                self.load(&object).await.map_err(|error| error.with_object(object))?;
            }
        }
    }

    /// Goes over a segment whose header says that none of its frames is wanted.
    async fn skip(&mut self, object: &str) -> Result<bool> {
        let Some(steps) = &self.steps else { return Ok(false) };
        let stored = self.store.get_range(object, 0..segment::HEADER_BYTES as u64).await?;
        let header = segment::Header::decode(&stored).map_err(|e| e.with_object(object))?;
        if header.steps.start() <= steps.end() && steps.start() <= header.steps.end() {
            return Ok(false);
        }
        self.check_begin(&header.begin).map_err(|e| e.with_object(object))?;
        self.position = header.end;
        self.rewinds_skipped += header.rewinds;
        self.bytes_done += segment::HEADER_BYTES as u64 + header.frames_bytes;
        Ok(true)
    }

    fn ends_early(&self, until: u64) -> Error {
        let Self { attempt, lane, position, .. } = self;
        Error::corrupt(format!(
            "lane {lane} of attempt {attempt} ends with frame {}, a checkpoint includes {until}: segments \
             are missing",
            position.next
        ))
    }

    async fn load(&mut self, object: &str) -> Result<()> {
        let mut stored = self.store.get(object, segment::BYTES_MAX).await?;
        let mut decoded = Segment::decode(&stored, self.attempt, self.lane);
        if decoded.is_err() {
            // The flip may have been on the way.
            stored = self.store.get(object, segment::BYTES_MAX).await?;
            decoded = Segment::decode(&stored, self.attempt, self.lane);
        }
        let Segment { header, mut frames } = decoded?;
        if mem::take(&mut self.begins_inside) {
            let before = self.position.next.saturating_sub(header.begin.next);
            frames.drain(..(before as usize).min(frames.len()));
        }
        let begin = match frames.first() {
            Some(frame) => Position { next: frame.sequence, head: frame.prev },
            None => header.end,
        };
        self.check_begin(&begin)?;
        let heads = frames.iter().skip(1).map(|frame| frame.prev).chain([header.end.head]);
        let heads: Vec<Hash> = heads.collect();
        self.bytes_done += stored.len() as u64;
        self.frames = frames.into_iter().zip(heads).collect();
        Ok(())
    }

    fn check_begin(&self, begin: &Position) -> Result<()> {
        let Position { next, head } = self.position;
        if begin.next != next {
            return Err(Error::corrupt(format!(
                "lane {} of attempt {}: expected frame {next}, the segment begins with frame {}: \
                 {} events are missing",
                self.lane,
                self.attempt,
                begin.next,
                begin.next.abs_diff(next)
            )));
        }
        if begin.head != head {
            return Err(Error::corrupt(format!(
                "lane {} of attempt {}: frame {next} continues {}, the frame before it is {}: the segment \
                 is of another journal, or the one before it was exchanged",
                self.lane,
                self.attempt,
                begin.head.short(),
                head.short()
            )));
        }
        Ok(())
    }
}

/// One lane on its way into the merge.
#[derive(Debug)]
struct Feeding {
    reader: LaneReader,
    /// It ends before this frame.
    until: Option<u64>,
    /// How often the attempt went back so far: what came before comes first.
    rewinds: u64,
    /// What came before so many rewinds is overtaken.
    from: u64,
    head: Option<Frame>,
}

/// A frame's place in the canonical order of a part, and the lane that it comes from.
type Place = (u64, u64, Lane, u64, usize);

/// Frames of several lanes and attempts in the canonical order.
#[derive(Debug)]
pub struct Merged {
    reader: JournalReader,
    parts: VecDeque<Part>,
    filter: Filter,
    lanes: Vec<Feeding>,
    order: BinaryHeap<Reverse<Place>>,
    /// The stored bytes of the parts before this one.
    bytes_before: u64,
}

impl Merged {
    /// The stored bytes that were read so far, or gone over because no frame in them is wanted.
    #[must_use]
    pub fn bytes_done(&self) -> u64 {
        self.bytes_before + self.lanes.iter().map(|lane| lane.reader.bytes_done).sum::<u64>()
    }

    /// The next frame that is wanted; `None` at the end.
    ///
    /// # Errors
    /// As [`LaneReader::next`]; `Corrupt` if a lane ends before its part does.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            let Some(Reverse((.., lane))) = self.order.pop() else {
                match self.parts.pop_front() {
                    Some(part) => self.begin(&part).await?,
                    None => return Ok(None),
                }
                continue;
            };
            let frame = self.lanes[lane].head.take();
            self.feed(lane).await?;
            if let Some(frame) = frame.filter(|frame| self.filter.wants(frame)) {
                return Ok(Some(frame));
            }
        }
    }

    async fn begin(&mut self, part: &Part) -> Result<()> {
        self.bytes_before = self.bytes_done();
        self.lanes.clear();
        let sealed = self.reader.lanes.range((part.attempt, Lane::CONTROL)..);
        let sealed = sealed.take_while(|((attempt, _), _)| *attempt == part.attempt);
        let mut lanes: Vec<Lane> = sealed.map(|((_, lane), _)| *lane).collect();
        if let Some(cut) = &part.until {
            lanes.extend(cut.lanes.keys().map(|LaneName(lane)| *lane));
            lanes.sort_unstable();
            lanes.dedup();
        }
        lanes.retain(|lane| self.filter.wants_lane(*lane));
        for lane in lanes {
            let until = part
                .until
                .as_ref()
                .map(|cut| cut.lanes.get(&LaneName(lane)).map_or(0, |position| position.next));
            let from = part.rewinds;
            let mut reader = self.reader.lane(part.attempt, lane);
            reader.steps = self.filter.steps.clone();
            self.lanes.push(Feeding { reader, until, rewinds: 0, from, head: None });
            self.feed(self.lanes.len() - 1).await?;
        }
        Ok(())
    }

    /// Reads the next frame of lane `i` that is part of the history.
    async fn feed(&mut self, i: usize) -> Result<()> {
        let Feeding { reader, until, rewinds, from, head } = &mut self.lanes[i];
        loop {
            if until.is_some_and(|until| reader.position.next >= until) {
                return Ok(());
            }
            let skipped = reader.rewinds_skipped;
            let Some(frame) = reader.next().await? else {
                return match *until {
                    Some(until) if reader.position.next < until => Err(reader.ends_early(until)),
                    _ => Ok(()),
                };
            };
            if until.is_some_and(|until| frame.sequence >= until) {
                return Ok(());
            }
            *rewinds += reader.rewinds_skipped - skipped + u64::from(frame.kind == Kind::REWOUND);
            if *rewinds >= *from {
                let place = (*rewinds, frame.step, frame.lane, frame.sequence, i);
                *head = Some(frame);
                self.order.push(Reverse(place));
                return Ok(());
            }
        }
    }
}
