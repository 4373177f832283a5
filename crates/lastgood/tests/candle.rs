//! Models of candle through a checkpoint and back.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarMap};
use lastgood::candle::{AdamW, Rng};
use lastgood::restore::Selector;
use lastgood::save::Mode;
use lastgood::state::{Component, Durability, Targets, World};
use lastgood::{ErrorKind, Repository, Result, Run, RunOptions};
use lastgood_store::{MemoryStore, SystemEnv};

const CPU: Device = Device::Cpu;

fn repository() -> Repository {
    let store = Arc::new(MemoryStore::default());
    Repository::create(store, Arc::new(SystemEnv::default())).unwrap()
}

fn open(repository: &Repository) -> Run {
    Run::open(repository, &"candle".parse().unwrap(), RunOptions::default()).unwrap()
}

/// Saves `state` as component `c`.
fn save(repository: &Repository, state: &dyn Component) {
    let mut run = open(repository);
    run.save(1, Mode::Sync, |capture| capture.add("c", "test", state)).unwrap();
    run.close().unwrap();
}

fn restore(repository: &Repository, state: &mut dyn Component) -> Result<()> {
    let mut targets = Targets::new(World::ALONE);
    targets.add("c", "test", state)?;
    open(repository).restore_at(&Selector::Latest, targets).map(drop)
}

/// The bytes of a tensor as safetensors has them: candle's own way to say them.
#[expect(clippy::disallowed_methods, reason = "candle says them in a file alone")]
fn bytes(tensor: &Tensor) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    tensor.save_safetensors("t", file.path()).unwrap();
    let stored = std::fs::read(file.path()).unwrap();
    let read = safetensors::SafeTensors::deserialize(&stored).unwrap();
    read.tensor("t").unwrap().data().to_vec()
}

fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut rng = Rng::seeded(seed);
    (0..count).map(|_| rng.bits() as u8).collect()
}

fn random(seed: u64, dtype: DType, shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>() * dtype.size_in_bytes();
    Tensor::from_raw_buffer(&noise(seed, count), dtype, shape, &CPU).unwrap()
}

const OF_VARS: [DType; 10] = [
    DType::U8,
    DType::U32,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::BF16,
    DType::F16,
    DType::F32,
    DType::F64,
    DType::F8E4M3,
];

fn var_map(seed: u64) -> VarMap {
    let vars = VarMap::new();
    for (i, dtype) in (seed..).zip(OF_VARS) {
        let mut data = vars.data().lock().unwrap();
        for (kind, shape) in [("plain", &[3, 50][..]), ("scalar", &[]), ("empty", &[0, 7])] {
            let var = Var::from_tensor(&random(i, dtype, shape)).unwrap();
            data.insert(format!("{kind}.{dtype:?} größe"), var);
        }
    }
    // Several chunks, and a chunk that ends within it.
    let large = Var::from_tensor(&random(seed, DType::BF16, &[1_300_001])).unwrap();
    vars.data().lock().unwrap().insert("large".into(), large);
    vars
}

fn contents(vars: &VarMap) -> BTreeMap<String, Vec<u8>> {
    let data = vars.data().lock().unwrap();
    data.iter().map(|(name, var)| (name.clone(), bytes(var))).collect()
}

#[test]
fn variables_of_every_dtype_come_back_in_place() {
    let (saved, mut other) = (var_map(1), var_map(100));
    assert_ne!(contents(&saved), contents(&other));
    let clone = other.data().lock().unwrap()["large"].clone();
    let repository = repository();
    save(&repository, &saved);
    restore(&repository, &mut other).unwrap();
    assert_eq!(contents(&saved), contents(&other));
    assert_eq!(bytes(&clone), contents(&saved)["large"], "in place: clones see it");
}

#[test]
fn tensors_of_every_dtype_come_back_even_packed_ones() {
    let packed = [(DType::F4, 4), (DType::F6E2M3, 6), (DType::F6E3M2, 6), (DType::F8E8M0, 8)];
    let tensors = |seed: u64| -> BTreeMap<String, Tensor> {
        let plain = OF_VARS.map(|dtype| (format!("{dtype:?}"), random(seed, dtype, &[4, 6])));
        let packed = packed.map(|(dtype, bits)| {
            let data = noise(seed, 24 * bits / 8);
            let tensor = Tensor::from_raw_buffer(&data, dtype, &[4, 6], &CPU).unwrap();
            (format!("{dtype:?}"), tensor)
        });
        plain.into_iter().chain(packed).collect()
    };
    // A view whose elements do not lie one after the other, and one that begins in the middle.
    let views = |mut tensors: BTreeMap<String, Tensor>| {
        let f32 = tensors["F32"].clone();
        tensors.insert("transposed".into(), f32.t().unwrap());
        tensors.insert("row".into(), f32.narrow(0, 2, 1).unwrap());
        tensors
    };
    let (saved, mut other) = (views(tensors(1)), views(tensors(2)));
    let repository = repository();
    save(&repository, &saved);
    restore(&repository, &mut other).unwrap();
    let raw =
        |tensor: &Tensor| format!("{:?}", &*tensor.contiguous().unwrap().storage_and_layout().0);
    for (name, tensor) in &saved {
        match tensor.dtype() {
            DType::F4 | DType::F6E2M3 | DType::F6E3M2 | DType::F8E8M0 => {
                assert_eq!(raw(tensor), raw(&other[name]), "{name}");
            }
            _ => assert_eq!(bytes(tensor), bytes(&other[name]), "{name}"),
        }
    }
}

#[test]
fn a_variable_of_two_names_is_stored_once() {
    let tied = |seed: u64, shared: bool| -> BTreeMap<String, Var> {
        let make = |seed| Var::from_tensor(&random(seed, DType::F32, &[40])).unwrap();
        let embed = make(seed);
        let head = if shared { embed.clone() } else { make(seed + 1) };
        [("embed".to_owned(), embed), ("head".to_owned(), head)].into()
    };
    let at = repository();
    save(&at, &tied(1, true));
    let mut other = tied(2, true);
    restore(&at, &mut other).unwrap();
    assert_eq!(bytes(&other["head"]), bytes(&tied(1, true)["head"]));
    let ledger = at.existing(&"candle".parse().unwrap()).unwrap();
    assert_eq!(ledger.history().checkpoints()[0].bytes, 160);
    let apart = repository();
    save(&apart, &tied(1, false));
    let error = restore(&apart, &mut tied(2, true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.to_string().contains("head is the same variable as embed"), "{error}");
}

#[test]
fn a_model_that_does_not_fit_is_named_and_nothing_changes() {
    let repository = repository();
    type Named = (&'static str, DType, usize);
    let map = |pairs: &[Named], seed| -> BTreeMap<String, Var> {
        let var = |dtype, size| Var::from_tensor(&random(seed, dtype, &[size])).unwrap();
        pairs.iter().map(|(name, dtype, size)| ((*name).to_owned(), var(*dtype, *size))).collect()
    };
    save(&repository, &map(&[("a", DType::F32, 4), ("b", DType::F32, 9)], 1));
    let cases: &[(&[Named], &str)] = &[
        (&[("a", DType::F32, 4), ("b", DType::F32, 8)], "c/b: asked for F32 of [8]"),
        (&[("a", DType::F32, 4), ("b", DType::F64, 9)], "c/b: asked for F64 of [9]"),
        (&[("a", DType::F32, 4), ("x", DType::F32, 9)], "lacks c/x; it holds c/b"),
        (&[("a", DType::F32, 4)], "holds c/b, which nothing asks for"),
    ];
    for (pairs, message) in cases {
        let mut other = map(pairs, 2);
        let before = bytes(&other["a"]);
        let error = restore(&repository, &mut other).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(bytes(&other["a"]), before);
    }
}

/// A loss that depends on two variables of a map, and gradients that differ in each step.
fn loss(vars: &VarMap, rng: &mut Rng) -> Tensor {
    let data = vars.data().lock().unwrap();
    let x = rng.normal(0.0, 1.0, (5, 16), &CPU).unwrap();
    let hidden = x.matmul(&data["a"]).unwrap().tanh().unwrap();
    hidden.matmul(&data["b"]).unwrap().sqr().unwrap().mean_all().unwrap()
}

fn small(seed: u64) -> VarMap {
    let mut rng = Rng::seeded(seed);
    let vars = VarMap::new();
    let mut data = vars.data().lock().unwrap();
    for (name, shape) in [("a", (16, 8)), ("b", (8, 3))] {
        let tensor = rng.normal(0.0, 0.5, shape, &CPU).unwrap();
        data.insert(name.into(), Var::from_tensor(&tensor).unwrap());
    }
    drop(data);
    vars
}

#[test]
fn adamw_is_bit_for_bit_that_of_candle() {
    let (ours, theirs) = (small(3), small(3));
    let params = ParamsAdamW { lr: 0.013, weight_decay: 0.07, ..Default::default() };
    let mut our_adamw = AdamW::of(&ours, params.clone()).unwrap();
    let mut their_adamw = candle_nn::AdamW::new(theirs.all_vars(), params).unwrap();
    let (mut one, mut other) = (Rng::seeded(9), Rng::seeded(9));
    for step in 0..60 {
        if step == 30 {
            our_adamw.set_learning_rate(0.004);
            their_adamw.set_learning_rate(0.004);
        }
        our_adamw.backward_step(&loss(&ours, &mut one)).unwrap();
        their_adamw.backward_step(&loss(&theirs, &mut other)).unwrap();
        assert_eq!(contents(&ours), contents(&theirs), "after step {}", step + 1);
    }
    assert_ne!(contents(&ours), contents(&small(3)));
    assert_eq!(our_adamw.steps(), 60);
    let error = AdamW::new(ours.all_vars(), ParamsAdamW::default()).unwrap_err();
    assert!(error.to_string().contains("AdamW::of"), "{error}");
}

struct Trainer {
    vars: VarMap,
    optimizer: AdamW,
    rng: Rng,
    epoch: u64,
}

impl Trainer {
    fn new(seed: u64) -> Self {
        let vars = small(seed);
        let optimizer = AdamW::of(&vars, ParamsAdamW { lr: 0.02, ..Default::default() }).unwrap();
        Self { vars, optimizer, rng: Rng::seeded(seed), epoch: seed }
    }

    fn train(&mut self, steps: std::ops::Range<u64>) {
        for step in steps {
            let loss = loss(&self.vars, &mut self.rng);
            self.optimizer.set_learning_rate(0.02 / (1.0 + step as f64 / 7.0));
            self.optimizer.backward_step(&loss).unwrap();
            self.epoch += step / 5;
        }
    }

    fn declare<'a>(&'a mut self, targets: &mut Targets<'a>) -> Result<()> {
        targets.add("model", "trainer", &mut self.vars)?;
        targets.add("optimizer", "trainer", &mut self.optimizer)?;
        targets.add("rng", "trainer", &mut self.rng)?;
        targets
            .component("loop", "trainer", Durability::Durable)?
            .value("epoch", &mut self.epoch)?;
        targets.component("cache", "trainer", Durability::Volatile).map(drop)
    }

    fn save(&self, run: &mut Run, step: u64) {
        run.save(step, Mode::Async, |capture| {
            capture.add("model", "trainer", &self.vars)?;
            capture.add("optimizer", "trainer", &self.optimizer)?;
            capture.add("rng", "trainer", &self.rng)?;
            let mut part = capture.component("loop", "trainer", Durability::Durable)?;
            part.value("epoch", &self.epoch)?;
            capture.component("cache", "trainer", Durability::Volatile).map(drop)
        })
        .unwrap();
    }

    /// All that must be the same: a save of it is compared by its tensors' bytes.
    fn state(&self) -> (BTreeMap<String, Vec<u8>>, String, u64) {
        let more = format!("{:?} {} {:?}", self.rng, self.epoch, self.optimizer);
        (contents(&self.vars), more, self.optimizer.steps())
    }
}

#[test]
fn an_abandoned_training_that_is_resumed_ends_with_the_same_bytes() {
    let mut undisturbed = Trainer::new(5);
    undisturbed.train(0..30);
    let repository = repository();
    {
        let mut trainer = Trainer::new(5);
        let mut run = open(&repository);
        trainer.train(0..12);
        trainer.save(&mut run, 12);
        // Goes on while the save is being written, and is lost.
        trainer.train(12..17);
    }
    // Another start: nothing that it begins with may matter.
    let mut trainer = Trainer::new(77);
    let mut run = open(&repository);
    let restored = run.restore(&mut trainer, Trainer::declare).unwrap().unwrap();
    assert_eq!(restored.step, 12);
    trainer.train(12..30);
    run.close().unwrap();
    let (vars, _, steps) = undisturbed.state();
    assert_eq!((&trainer.state().0, trainer.state().2), (&vars, steps));
    assert_eq!((trainer.rng, trainer.epoch), (undisturbed.rng.clone(), undisturbed.epoch));
    // The moments too, by one more step of each.
    let mut again = Trainer::new(1);
    let mut run = open(&repository);
    run.restore(&mut again, Trainer::declare).unwrap();
    again.train(12..31);
    undisturbed.train(30..31);
    assert_eq!(again.state().0, undisturbed.state().0);
}

/// The example, which cargo builds beside this test.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).unwrap();
    folder.join("examples").join("candle")
}

/// Runs the example on the store in `folder`, and kills it when it prints `until`. Gives the last two lines
/// that it printed, and whether it came to its end.
fn run_example(folder: &Path, until: Option<&str>) -> (Vec<String>, bool) {
    let mut command = Command::new(example());
    for name in ["LASTGOOD_STORE", "LASTGOOD_RUN", "LASTGOOD_INCARNATION"] {
        command.env_remove(name);
    }
    let mut child = command.arg(folder).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        lines.push(line.unwrap());
        if until.is_some_and(|until| lines.last().unwrap().starts_with(until)) {
            child.kill().unwrap();
            break;
        }
    }
    let done = child.wait().unwrap().success();
    (lines, done)
}

#[test]
fn the_example_ends_the_same_however_often_it_is_killed() {
    let (calm, stormy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (lines, done) = run_example(calm.path(), None);
    assert!(done, "{lines:?}");
    let expected = &lines[lines.len() - 2..];
    let right: u32 = expected[0].split(' ').next().unwrap().parse().unwrap();
    assert!(right > 500, "it has learned: {expected:?}");
    for until in ["step 7:", "step 45:", "step 113:"] {
        let (lines, done) = run_example(stormy.path(), Some(until));
        assert!(!done, "it was over before it was killed at {until}: {lines:?}");
    }
    let (lines, done) = run_example(stormy.path(), None);
    assert!(done && lines[0] != "from step 0", "{lines:?}");
    assert_eq!(&lines[lines.len() - 2..], expected);
}
