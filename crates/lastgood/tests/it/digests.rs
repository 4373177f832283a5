//! Fingerprints of the state in the journal: the same on any number of ranks, and different where a bit is.

use std::collections::BTreeMap;

use lastgood::journal::read::Filter;
use lastgood::journal::{Frame, JournalOptions, Kind, StepRecord, Value, history};
use lastgood::save::Mode;
use lastgood::state::{Capture, Durability, World};
use lastgood::{Dtype, Repository, Result, Run, RunOptions};
use lastgood_format::Fingerprint;
use lastgood_format::layout::NdBox;

use crate::fixture::{bytes, in_memory, options, run_name};

const ROWS: u64 = 10;
const COLUMNS: u64 = 33_000;

/// A replicated tensor, one that is sharded by rows, and small ones.
fn state(flipped: Option<usize>) -> (Vec<u8>, Vec<u8>) {
    let (whole, mut sharded) = (bytes(1, 300_000), bytes(2, (ROWS * COLUMNS * 4) as usize));
    if let Some(bit) = flipped {
        sharded[bit / 8] ^= 1 << (bit % 8);
    }
    (whole, sharded)
}

fn capture<'a>(
    capture: &mut Capture<'a>,
    world: World,
    (whole, sharded): &'a (Vec<u8>, Vec<u8>),
) -> Result<()> {
    let mut model = capture.component("model", "test", Durability::Durable)?;
    model.replicated("whole", Dtype::F32, &[whole.len() as u64 / 4], whole.as_slice())?;
    model.replicated("small", Dtype::U8, &[5], &whole[..5])?;
    model.replicated("none", Dtype::F32, &[0], &whole[..0])?;
    let at = |rank: u32| ROWS * u64::from(rank) / u64::from(world.size);
    let (begin, end) = (at(world.rank), at(world.rank + 1));
    let extent = NdBox { offsets: vec![begin, 0], sizes: vec![end - begin, COLUMNS] };
    let row = COLUMNS as usize * 4;
    let own = &sharded[begin as usize * row..end as usize * row];
    model.shard("sharded", Dtype::F32, &[ROWS, COLUMNS], extent, own)
}

fn open(repository: &Repository, size: u32, options_of: JournalOptions) -> Vec<Run> {
    let open = |rank| {
        // In memory there is no folder beside the store.
        let folder = std::env::temp_dir().join(format!("lastgood-digests-{}", std::process::id()));
        let journal = Some(JournalOptions { folder: Some(folder), ..options_of.clone() });
        let options = RunOptions { journal, ..options(World { rank, size }, "a") };
        Run::open(repository, &run_name(), options).unwrap()
    };
    (0..size).map(open).collect()
}

fn close(runs: Vec<Run>) {
    runs.into_iter().for_each(|run| run.close().unwrap());
}

fn frames(repository: &Repository) -> Vec<Frame> {
    let reader = repository.journal(&run_name()).unwrap();
    let filter =
        Filter { kinds: vec![Kind::STATE_LAYOUT, Kind::STATE_DIGEST], ..Filter::default() };
    repository
        .block_on(async {
            let mut merged = reader.merged(&history::everything([1]), filter);
            let mut frames = Vec::new();
            while let Some(frame) = merged.next().await? {
                frames.push(frame);
            }
            Ok(frames)
        })
        .unwrap()
}

/// The fingerprint of each tensor at each step, the ranks' parts added up; of what is recorded whole, that of
/// each rank.
fn sums(repository: &Repository) -> BTreeMap<(u64, String), Vec<Fingerprint>> {
    let mut layouts = BTreeMap::new();
    let mut found: BTreeMap<(u64, String), Vec<Fingerprint>> = BTreeMap::new();
    for frame in frames(repository) {
        let value = frame.value().unwrap();
        let layout = value.get("layout").and_then(Value::as_bytes).unwrap().to_vec();
        if frame.kind == Kind::STATE_LAYOUT {
            let tensors = value.get("tensors").and_then(Value::as_array).unwrap().to_vec();
            layouts.insert((frame.lane, layout), tensors);
            continue;
        }
        let is_whole = value.get("source").and_then(Value::as_str) == Some("whole");
        let at = value.get("at").and_then(Value::as_u64).unwrap();
        let sums = value.get("sums").and_then(Value::as_bytes).unwrap();
        for (sum, tensor) in sums.chunks(16).zip(&layouts[&(frame.lane, layout)]) {
            let tensor = tensor.as_array().unwrap();
            let name = tensor[1].as_str().unwrap().to_owned();
            let sum = Fingerprint::from_bytes(sum.try_into().unwrap()).unwrap();
            let of_tensor = found.entry((at, name)).or_default();
            match of_tensor.last_mut() {
                Some(last) if !is_whole || tensor[4] == Value::Bool(false) => *last += sum,
                _ => of_tensor.push(sum),
            }
        }
    }
    found
}

fn save(runs: &mut [Run], step: u64, state: &(Vec<u8>, Vec<u8>)) {
    let handles: Vec<_> = runs
        .iter_mut()
        .map(|run| {
            run.step(StepRecord::new(step));
            let world = run.world();
            run.save(step, Mode::Async, |c| capture(c, world, state)).unwrap()
        })
        .collect();
    for handle in handles {
        handle.wait().unwrap();
    }
}

#[test]
fn the_same_state_has_the_same_fingerprints_on_any_number_of_ranks() {
    let (whole, sharded) = state(None);
    let expected: BTreeMap<(u64, String), Vec<Fingerprint>> = [
        ("none", Fingerprint::ZERO),
        ("sharded", Fingerprint::of(&sharded)),
        ("small", Fingerprint::of(&whole[..5])),
        ("whole", Fingerprint::of(&whole)),
    ]
    .map(|(name, sum)| ((3, name.to_owned()), vec![sum]))
    .into();
    for size in [1, 2, 3] {
        let (_store, repository) = in_memory();
        let mut runs = open(&repository, size, JournalOptions::default());
        save(&mut runs, 3, &state(None));
        close(runs);
        assert_eq!(sums(&repository), expected, "{size} ranks");
    }
}

/// Rows that did not change are not looked at again; those that did are.
#[test]
fn a_flipped_bit_changes_the_fingerprint_of_its_tensor_alone() {
    let (_store, repository) = in_memory();
    let mut runs = open(&repository, 2, JournalOptions::default());
    let flipped = 8 * 700_003 + 3;
    for (step, flip) in [(1, None), (2, None), (3, Some(flipped)), (4, None)] {
        save(&mut runs, step, &state(flip));
    }
    close(runs);
    let sums = sums(&repository);
    let of = |step: u64, name: &str| sums[&(step, name.to_owned())].clone();
    for name in ["whole", "small", "none"] {
        assert!((2..=4).all(|step| of(step, name) == of(1, name)), "{name}");
    }
    assert_eq!((of(2, "sharded"), of(4, "sharded")), (of(1, "sharded"), of(1, "sharded")));
    assert_eq!(of(3, "sharded"), [Fingerprint::of(&state(Some(flipped)).1)]);
    assert_ne!(of(3, "sharded"), of(1, "sharded"));
    // And which word it was.
    let difference = of(3, "sharded")[0] - of(1, "sharded")[0];
    let change = lastgood_format::fingerprint::locate(difference, ROWS * COLUMNS / 2).unwrap();
    assert_eq!((change.word, change.delta.unsigned_abs()), (87_500, 1 << (3 * 8 + 3)));
}

/// Between saves each rank tells of everything that it holds.
#[test]
fn a_digest_without_a_save_tells_of_every_replica() {
    let (_store, repository) = in_memory();
    let mut runs = open(&repository, 2, JournalOptions::default());
    let states = [state(None), (vec![9; 300_000], state(None).1)];
    for (run, state) in runs.iter_mut().zip(&states) {
        let world = run.world();
        run.step(StepRecord::new(7));
        run.digest(7, |c| capture(c, world, state)).unwrap();
    }
    close(runs);
    let sums = sums(&repository);
    let of = |name: &str| sums[&(7, name.to_owned())].clone();
    let whole = states.each_ref().map(|(whole, _)| Fingerprint::of(whole));
    assert_eq!(of("whole"), whole);
    assert_eq!(of("sharded"), [Fingerprint::of(&states[0].1)]);
    let keys: Vec<String> = repository
        .block_on(repository.store().list("runs/", None))
        .unwrap()
        .into_iter()
        .map(|object| object.key)
        .filter(|key| !key.contains("/journal/") && !key.contains("/ledger/"))
        .collect();
    assert!(keys.is_empty(), "a digest writes no checkpoint: {keys:?}");
}

#[test]
fn digests_can_be_left_out() {
    let (_store, repository) = in_memory();
    let options = JournalOptions { digests: false, ..JournalOptions::default() };
    let mut runs = open(&repository, 1, options);
    save(&mut runs, 1, &state(None));
    close(runs);
    assert!(frames(&repository).is_empty());
}
