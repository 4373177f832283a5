//! What the vectors say: one small repository with a run, two checkpoints and a ledger of every kind, and a branch.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use lastgood_format::delta::{Prediction, Rule};
use lastgood_format::descriptor::Descriptor;
use lastgood_format::index::{Durability, ShardIndex};
use lastgood_format::journal::{self, Frame, Lane, Position, Segment};
use lastgood_format::key::{self, SaveKey};
use lastgood_format::layout::NdBox;
use lastgood_format::ledger::{Accepted, Entry, Kind, SaveOrder};
use lastgood_format::manifest::Manifest;
use lastgood_format::{Dtype, Hash, RunName, pack, sealed};
use serde::Serialize;
use serde_json::{Value, json};

use crate::draft::{CHUNK_BYTES, Draft, DraftDelta, DraftTensor, Stored, component};

pub(crate) fn run() -> RunName {
    "demo".parse().unwrap()
}

/// The run that begins with a state of [`run`].
pub(crate) fn branch() -> RunName {
    "demo-at-6".parse().unwrap()
}

pub(crate) fn descriptor() -> Descriptor {
    Descriptor::new(0x0123_4567_89ab_cdef_0011_2233_4455_6677)
}

/// As numbers of like size: the last of four bytes is always the same.
pub(crate) fn alike(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.iter_mut().skip(3).step_by(4).for_each(|byte| *byte = 0x3c);
    bytes
}

/// `count` bytes that follow no pattern that zstd would find.
fn noise(count: usize) -> Vec<u8> {
    crate::seeded::Seeded(7).bytes(count)
}

/// A tensor that this rank holds as a whole.
fn whole(component: u32, name: &str, dtype: Dtype, shape: &[u64], bytes: Vec<u8>) -> DraftTensor {
    part(component, name, dtype, shape, NdBox::whole(shape), bytes)
}

fn part(
    component: u32,
    name: &str,
    dtype: Dtype,
    shape: &[u64],
    extent: NdBox,
    bytes: Vec<u8>,
) -> DraftTensor {
    let shards = vec![(extent, bytes)];
    DraftTensor { component, name: name.into(), dtype, shape: shape.into(), tied_to: None, shards }
}

/// The elements of `model/sharded`, one for each place.
fn numbers(range: std::ops::Range<u16>) -> Vec<u8> {
    range.flat_map(u16::to_le_bytes).collect()
}

/// The first save: step 5 of attempt 1, two ranks.
fn first(rank: u32) -> Draft {
    let extent = NdBox { offsets: vec![2 * u64::from(rank), 0], sizes: vec![2, 3] };
    let half = numbers(6 * rank as u16..6 * rank as u16 + 6);
    let mut tensors = vec![part(1, "sharded", Dtype::U16, &[4, 3], extent, half)];
    if rank == 0 {
        // The names rise as bytes: "a" < "sharded" < "tied" < "zeros" < "\u{1F600}…".
        tensors.insert(0, whole(0, "state", Dtype::Blob, &[5], b"lines".to_vec()));
        tensors.insert(1, whole(1, "a", Dtype::F32, &[], 1.5f32.to_le_bytes().to_vec()));
        tensors.insert(2, whole(1, "a/empty", Dtype::F64, &[0, 4], Vec::new()));
        tensors.insert(3, whole(1, "a/packed", Dtype::F4, &[2, 3], vec![0x12, 0x34, 0x56]));
        let tied_to = Some(tensors.len() as u32 - 1);
        tensors.push(DraftTensor {
            component: 1,
            name: "tied".into(),
            dtype: Dtype::U16,
            shape: vec![4, 3],
            tied_to,
            shards: Vec::new(),
        });
        let zeros = 2 * CHUNK_BYTES + 4;
        tensors.push(whole(1, "zeros", Dtype::F32, &[zeros as u64 / 4], vec![0; zeros]));
        let pattern = (0..CHUNK_BYTES as u32 + 8).map(|i| (i / 512) as u8).collect();
        let dims = [2, CHUNK_BYTES as u64 / 2 + 4];
        tensors.push(whole(1, "\u{1f600} \u{5e9}\u{0}", Dtype::U8, &dims, pattern));
    }
    Draft {
        run: run(),
        save: SaveKey { attempt: 1, step: 5, generation: 0 },
        rank,
        world_size: 2,
        parent: None,
        reuses: Vec::new(),
        components: vec![
            component("loader", Durability::Durable),
            component("model", Durability::Durable),
            component("scratch", Durability::Volatile),
            component("statistics", Durability::Derived),
        ],
        tensors,
        metadata: BTreeMap::from([("note".into(), format!("rank {rank} \u{2713}"))]),
        deltas: BTreeMap::new(),
    }
}

/// The numbers of a chunk, such as an optimizer has: `seed` changes them a little.
fn weights(seed: u32) -> Vec<u8> {
    let number = |i: u32| 0.01 + (i / 999) as f32 * 1e-4 + seed as f32 * 1e-7;
    (0..CHUNK_BYTES as u32 / 4).flat_map(|i| number(i).to_le_bytes()).collect()
}

/// The bfloat16 numbers next to those of two such chunks, but for the last one.
fn rounded() -> Vec<u8> {
    let numbers = [weights(0), weights(2)].concat();
    let nearest = |number: &[u8]| {
        let bits = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
        ((bits + 0x7fff + (bits >> 16) % 2) >> 16) as u16
    };
    let mut all: Vec<u8> =
        numbers.chunks(4).flat_map(|number| nearest(number).to_le_bytes()).collect();
    if let Some(last) = all.last_mut() {
        *last ^= 1;
    }
    all
}

/// The second save: step 7 of attempt 2, generation 1, one rank; most of it is the first save's, or near it.
fn second(base: Hash) -> Draft {
    let pattern: Vec<u8> = (0..CHUNK_BYTES as u32 + 8).map(|i| (i / 512) as u8).collect();
    let dims = [CHUNK_BYTES as u64 + 8];
    let mut near = pattern[..CHUNK_BYTES].to_vec();
    near.iter_mut().step_by(9999).for_each(|byte| *byte ^= 1);
    let near_of = DraftDelta {
        prediction: Prediction::plain(Rule::Xor),
        width: 1,
        operands: vec![pattern[..CHUNK_BYTES].to_vec()],
    };
    let step_of = DraftDelta {
        prediction: Prediction {
            rule: Rule::Adam,
            fused: true,
            constants: vec![1.0, -1e-6, 0.5, 1e-8],
        },
        width: 4,
        operands: vec![weights(0), weights(2), weights(3)],
    };
    let cast_of = DraftDelta {
        prediction: Prediction::plain(Rule::Cast),
        width: 2,
        operands: vec![weights(0), weights(2)],
    };
    let numbers = [CHUNK_BYTES as u64 / 4];
    Draft {
        run: run(),
        save: SaveKey { attempt: 2, step: 7, generation: 1 },
        rank: 0,
        world_size: 1,
        parent: Some(base),
        reuses: vec![base],
        components: vec![component("model", Durability::Durable)],
        tensors: vec![
            whole(0, "alike", Dtype::F32, &[256], alike(noise(1024))),
            whole(0, "near", Dtype::U8, &[CHUNK_BYTES as u64], near),
            whole(0, "noise", Dtype::Bf16, &[8, 8], noise(128)),
            whole(0, "pattern", Dtype::U8, &dims, pattern),
            whole(0, "w", Dtype::F32, &numbers, weights(0)),
            whole(0, "w'", Dtype::F32, &numbers, weights(1)),
            whole(0, "x m'", Dtype::F32, &numbers, weights(2)),
            whole(0, "x v'", Dtype::F32, &numbers, weights(3)),
            whole(0, "y", Dtype::Bf16, &[2, CHUNK_BYTES as u64 / 4], rounded()),
        ],
        metadata: BTreeMap::new(),
        deltas: BTreeMap::from([
            ("near".into(), near_of),
            ("w'".into(), step_of),
            ("y".into(), cast_of),
        ]),
    }
}

/// Everything in the repository.
pub(crate) struct Corpus {
    /// The indexes of the first save, then that of the second.
    pub(crate) indexes: Vec<ShardIndex>,
    /// Each pack, by its name inside the run.
    pub(crate) packs: Vec<(String, Vec<u8>)>,
    pub(crate) manifests: Vec<Manifest>,
    /// Those of the run, then those of the branch.
    pub(crate) entries: Vec<Entry>,
    /// The stored objects by key.
    pub(crate) objects: BTreeMap<String, Vec<u8>>,
}

pub(crate) fn corpus() -> Corpus {
    let mut objects = BTreeMap::new();
    objects.insert(key::DESCRIPTOR.to_owned(), descriptor().encode().unwrap());
    let (mut indexes, mut packs, mut manifests) = (Vec::new(), Vec::new(), Vec::new());
    let mut base = Stored::new();
    for save in 0..2 {
        let drafts = match manifests.first().map(|m: &Manifest| m.encode().unwrap().1) {
            None => vec![first(0), first(1)],
            Some(id) => vec![second(id)],
        };
        let mut built = Vec::new();
        for draft in drafts {
            let (index, name, stored) = draft.build(&base);
            objects.insert(key::in_run(&run(), &name).unwrap(), stored.clone());
            packs.push((name, stored));
            let object = key::index_in_run(&index.save, index.rank);
            let stored = index.encode().unwrap();
            built.push((index, stored.len() as u64, Hash::of(&stored)));
            objects.insert(key::in_run(&run(), &object).unwrap(), stored);
        }
        for (name, stored) in &packs[..if save == 0 { packs.len() } else { 0 }] {
            for chunk in pack::parse(stored).unwrap() {
                base.insert(chunk.hash, (name.clone(), stored.len() as u64, chunk));
            }
        }
        let manifest = Manifest::build(&built).unwrap();
        let (stored, id) = manifest.encode().unwrap();
        objects.insert(key::manifest(&run(), &id), stored);
        manifests.push(manifest);
        indexes.extend(built.into_iter().map(|(index, ..)| index));
    }
    objects.extend(journal());
    let entries = entries(&manifests);
    for entry in &entries {
        objects.insert(key::ledger_entry(&entry.run, entry.n), entry.encode().unwrap());
    }
    Corpus { indexes, packs, manifests, entries, objects }
}

/// One of every value.
pub(crate) fn value() -> journal::Value {
    use journal::Value;
    let numbers = [0, 23, 24, 255, 256, 65_535, 65_536, 1 << 32, u64::MAX].map(Value::from);
    let negative = [-1, -24, -25, -257, i64::MIN].map(Value::from);
    Value::map([
        ("null", Value::Null),
        ("true", true.into()),
        ("numbers", Value::Array(numbers.to_vec())),
        ("negative", Value::Array(negative.to_vec())),
        ("loss", f32::from_bits(0x7fc0_1234).into()),
        ("rate", (-0.0f64).into()),
        ("bytes", vec![0u8, 255].into()),
        ("text \u{2713}", "\u{1f600}".into()),
        ("map", Value::map([("", Value::Array(Vec::new()))])),
    ])
}

/// The frames of one lane of attempt 1: of every kind up to the newest, reserved ones too, and one that none knows.
pub(crate) fn frames(lane: Lane) -> Vec<Frame> {
    let Descriptor { repository, .. } = descriptor();
    let mut prev = journal::genesis(&repository, &run(), 1, lane);
    let newest = journal::Kind::ALL.iter().map(|kind| kind.code()).max().unwrap();
    let kinds = (1..=newest).chain([9_999]).map(journal::Kind::from_code);
    let frame = |(sequence, kind): (u64, journal::Kind)| {
        let frame = Frame {
            kind,
            lane,
            attempt: 1,
            sequence,
            step: sequence / 3,
            clock: (1_700_000_000_000 + sequence) << 16,
            prev,
            payload: value().encode().unwrap(),
        };
        prev = frame.encode(&mut Vec::new()).unwrap();
        frame
    };
    (0..).zip(kinds).map(frame).collect()
}

/// Two segments of a rank's lane, and one of the control lane.
fn journal() -> BTreeMap<String, Vec<u8>> {
    let mut segments = BTreeMap::new();
    let rank = Lane::of_rank(0).unwrap();
    for (lane, piece) in [(Lane::CONTROL, 0..4), (rank, 0..11), (rank, 11..20)] {
        let frames = frames(lane);
        let begin = Position { next: piece.start as u64, head: frames[piece.start].prev };
        let mut bytes = Vec::new();
        for frame in &frames[piece] {
            frame.encode(&mut bytes).unwrap();
        }
        let stored = Segment::encode(1, lane, begin, &bytes).unwrap();
        segments.insert(key::journal_segment(&run(), 1, lane, begin.next), stored);
    }
    segments
}

fn commit(manifest: &Manifest) -> Kind {
    Kind::CheckpointCommitted {
        checkpoint: manifest.encode().unwrap().1,
        step: manifest.step,
        generation: manifest.generation,
        world_size: manifest.world_size,
        parent: manifest.parent,
        reuses: manifest.reuses.clone(),
        bytes: manifest.bytes,
        new_bytes: manifest.new_bytes,
    }
}

fn accepted() -> Kind {
    let of = |key: &str, recorded: Option<&str>, found: Option<&str>| Accepted {
        key: key.into(),
        recorded: recorded.map(Into::into),
        found: found.map(Into::into),
        always: false,
    };
    let differences = vec![
        of("env.OMP_NUM_THREADS", Some("2"), None),
        of("package.torch", Some("2.11.0"), Some("2.12.1")),
        Accepted { always: true, ..of("cpu.", None, None) },
    ];
    Kind::PreflightAccepted { differences, reason: "a new image".into() }
}

fn incident(reason: &str, class: Option<&str>) -> Kind {
    Kind::IncidentOpened { reason: reason.into(), class: class.map(Into::into) }
}

fn requested(step: Option<u64>, order: SaveOrder) -> Kind {
    Kind::SaveRequested { step, order, reason: "a person wants it".into() }
}

fn chosen() -> Kind {
    Kind::PolicyChosen { from_step: 8, every: 4, why: json!({"interval_s": 2.5}) }
}

/// A ledger with every kind but one, and one that no version knows; and the ledger of the branch, with that kind.
fn entries(manifests: &[Manifest]) -> Vec<Entry> {
    let [a, b] = [0, 1].map(|i| manifests[i].encode().unwrap().1);
    let started = |number, world_size, from| Kind::AttemptStarted {
        number,
        world_size,
        from,
        incarnation: format!("job-{number}"),
    };
    let future = json!({"kind": "moon.landed", "crew": 3, "where": {"sea": "tranquillity"}});
    let kinds = vec![
        (0, Kind::RunCreated {}),
        (0, started(1, 2, None)),
        (1, commit(&manifests[0])),
        (1, Kind::CheckpointVerified { checkpoint: a, reason: "read back by rank 0".into() }),
        (1, Kind::CheckpointGood { checkpoint: a, reason: "loss is finite".into() }),
        (0, incident("rank 1 died at step 6 \u{1f480}", None)),
        (0, started(2, 1, Some(a))),
        (0, Kind::SaveAbandoned { saved_by: 1, step: 6, generation: 0, reason: "dead".into() }),
        (2, commit(&manifests[1])),
        (2, Kind::CheckpointBad { checkpoint: b, reason: "loss \"NaN\"".into() }),
        (0, Kind::CheckpointExpired { checkpoint: b, reason: "bad".into() }),
        (0, Kind::Unknown { name: "moon.landed".into(), body: future }),
        (0, accepted()),
        (2, requested(None, SaveOrder::Save)),
        (2, requested(Some(9), SaveOrder::SaveAndEnd)),
        (2, chosen()),
        (2, Kind::AttemptEnded { how: "preemption".into(), reason: "after step 9".into() }),
        (0, incident("rank 0 made no progress for 60 s", Some("stall"))),
    ];
    let created = Kind::BranchCreated {
        repository: descriptor().repository.clone(),
        source: run(),
        from: Some(a),
        from_step: 5,
        step: 6,
    };
    let mut entries = chain(&run(), kinds);
    entries.extend(chain(&branch(), vec![(0, Kind::RunCreated {}), (0, created)]));
    entries
}

/// The ledger of `run`.
fn chain(run: &RunName, kinds: Vec<(u64, Kind)>) -> Vec<Entry> {
    let mut prev = None;
    let mut entries = Vec::new();
    for ((attempt, kind), n) in kinds.into_iter().zip(1u64..) {
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_000 + n);
        let (write_id, actor) = (u128::from(n) << 100 | 0xabcdef, format!("test {n}"));
        let entry = Entry { run: run.clone(), n, prev, write_id, attempt, at, actor, kind };
        prev = Some(Hash::of(&entry.encode().unwrap()));
        entries.push(entry);
    }
    entries
}

#[derive(Serialize)]
struct Head {
    format: u32,
    kind: &'static str,
    history: Value,
}

/// A ledger head. Its type belongs to the library, so this one is written from `FORMAT.md`.
pub(crate) fn head() -> Vec<u8> {
    let hash = Hash::of(b"entry 64").to_string();
    let history = json!({
        "run": "demo", "entries": 64, "tail": hash,
        "attempt": {"number": 2, "world_size": 1, "from": hash, "incarnation": "job-2"},
        "incarnations": {"job-1": 1, "job-2": 2},
        "checkpoints": [{
            "id": hash, "entry": 3, "at": "2023-11-14T22:13:20.000003Z", "attempt": 1, "step": 5,
            "generation": 0, "world_size": 2, "parent": null, "bytes": 196_684, "new_bytes": 700,
            "standing": "good", "reason": "loss is finite", "was_bad": true,
            "expired": false,
        }],
        "abandoned": [[1, 6, 0]],
        "accepted": [{"key": "cpu.", "recorded": null, "found": null, "always": true}],
        "orders": {
            "intervals": [{"entry": 16, "from_step": 8, "every": 4}],
            "requests": [{"entry": 15, "step": 9, "order": "save-and-end"}],
            "asked": 17,
        },
        "failures": {
            "counts": {"process": 1}, "alive_ms": 60_500, "began_ms": 1_700_000_000_500_u64,
            "last_ms": 1_700_000_061_000_u64, "found": "stall", "tells": true,
        },
    });
    sealed::seal(&Head { format: 1, kind: "ledger.head", history }).unwrap()
}
