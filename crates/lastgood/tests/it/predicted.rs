//! Saves of what an optimizer changed are predicted from the save before: smaller still, and to the bit.

use lastgood::save::{Compression, Mode, SaveOptions};
use lastgood::state::{Capture, Durability, Optimizer, Targets, Update, World};
use lastgood::{Dtype, Hash, Repository, Result, Run, RunOptions};
use lastgood_format::delta::{self, Rule};
use lastgood_format::index::ShardIndex;
use lastgood_store::MemoryStore;

use crate::fixture::{bytes, in_memory, options, quick, run_name};

/// Elements of each weight: some fill chunks of their own, some share one.
const SIZES: [usize; 6] = [40_000, 16_384, 77, 1000, 5000, 30_001];

/// Weights with what an optimizer keeps for each: three numbers for each element.
type State = Vec<[Vec<f32>; 3]>;

fn noise(seed: u64, count: usize) -> Vec<f32> {
    let bytes = bytes(seed, count * 4);
    let number = |four: &[u8; 4]| (u32::from_le_bytes(*four) >> 8) as f32 / (1 << 24) as f32 - 0.5;
    bytes.as_chunks::<4>().0.iter().map(number).collect()
}

fn start() -> State {
    let weight = |(i, count): (usize, &usize)| {
        [noise(1 + i as u64, *count), vec![0.0; *count], vec![0.0; *count]]
    };
    SIZES.iter().enumerate().map(weight).collect()
}

const ADAM: Optimizer = Optimizer::Adam { lr: 3e-4, betas: (0.9, 0.999), eps: 1e-8, decay: 0.1 };
const MOMENTUM: Optimizer = Optimizer::Momentum { lr: 0.01, momentum: 0.9, nesterov: false };
const NESTEROV: Optimizer = Optimizer::Momentum { lr: 0.01, momentum: 0.9, nesterov: true };
const LION: Optimizer = Optimizer::Lion { lr: 1e-4, betas: (0.9, 0.99), decay: 0.1 };

/// One step with numbers of binary32, as a library takes it.
fn step([w, m, v]: [&mut f32; 3], g: f32, optimizer: Optimizer, steps: i32) {
    match optimizer {
        Optimizer::Adam { lr, betas, eps, decay } => {
            *w *= (1.0 - lr * decay) as f32;
            *m += (g - *m) * (1.0 - betas.0) as f32;
            *v = *v * betas.1 as f32 + ((1.0 - betas.1) as f32 * g) * g;
            let root = (1.0 - betas.1.powi(steps)).sqrt() as f32;
            let size = (-lr / (1.0 - betas.0.powi(steps))) as f32;
            *w += (size * *m) / (v.sqrt() / root + eps as f32);
        }
        Optimizer::Momentum { lr, momentum, nesterov } => {
            *m = *m * momentum as f32 + g;
            let direction = if nesterov { g + momentum as f32 * *m } else { *m };
            *w += -(lr as f32) * direction;
        }
        Optimizer::Lion { lr, betas, decay } => {
            let toward = betas.0 as f32 * *m + (1.0 - betas.0) as f32 * g;
            *w *= (1.0 - lr * decay) as f32;
            *w += -(lr as f32) * if toward == 0.0 { 0.0 } else { toward.signum() };
            *m = *m * betas.1 as f32 + (1.0 - betas.1) as f32 * g;
        }
        _ => unreachable!("no other optimizer is tried"),
    }
}

fn advance(state: &mut State, optimizer: Optimizer, steps: u64) {
    for (i, [w, m, v]) in state.iter_mut().enumerate() {
        let gradients = noise(1000 * steps + i as u64, w.len());
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(gradients) {
            step([w, m, v], g * 0.1, optimizer, steps as i32);
        }
    }
}

fn has_second(optimizer: Optimizer) -> bool {
    matches!(optimizer, Optimizer::Adam { .. })
}

/// The parts as bytes, by component and name.
fn tensors(state: &State, optimizer: Optimizer) -> Vec<(&'static str, String, Vec<u8>)> {
    let of = |numbers: &Vec<f32>| numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let mut tensors = Vec::new();
    for (i, [w, m, v]) in state.iter().enumerate() {
        tensors.push(("model", format!("w{i}"), of(w)));
        tensors.push(("optimizer", format!("{i}.m"), of(m)));
        if has_second(optimizer) {
            tensors.push(("optimizer", format!("{i}.v"), of(v)));
        }
    }
    tensors.sort_by_key(|tensor| tensor.0);
    tensors
}

/// What is told of each weight: the truth, unless a test lies.
fn updates(optimizer: Optimizer, steps: u64) -> Vec<Update> {
    let name = |component: &str, name: String| (component.to_owned(), name);
    let update = |i: usize| Update {
        optimizer,
        steps,
        weight: name("model", format!("w{i}")),
        first: name("optimizer", format!("{i}.m")),
        second: has_second(optimizer).then(|| name("optimizer", format!("{i}.v"))),
    };
    (0..SIZES.len()).map(update).collect()
}

fn declare<'a>(
    capture: &mut Capture<'a>,
    tensors: &'a [(&'static str, String, Vec<u8>)],
    updates: &[Update],
) -> Result<()> {
    for component in ["model", "optimizer"] {
        let mut part = capture.component(component, "t", Durability::Durable)?;
        for (_, name, data) in tensors.iter().filter(|tensor| tensor.0 == component) {
            part.tensor(name, Dtype::F32, &[data.len() as u64 / 4], data)?;
        }
    }
    updates.iter().for_each(|update| capture.update(update.clone()));
    Ok(())
}

fn check(repository: &Repository, id: &Hash, tensors: &[(&'static str, String, Vec<u8>)]) {
    let ledger = repository.existing(&run_name()).unwrap();
    let contents = repository.contents(&ledger, id).unwrap();
    let mut found: Vec<Vec<u8>> = tensors.iter().map(|(.., data)| vec![0xee; data.len()]).collect();
    let mut targets = Targets::new(World::ALONE);
    let mut rest = found.as_mut_slice();
    for component in ["model", "optimizer"] {
        let mut slots = targets.component(component, "t", Durability::Durable).unwrap();
        for (_, name, data) in tensors.iter().filter(|tensor| tensor.0 == component) {
            let (place, behind) = rest.split_first_mut().unwrap();
            rest = behind;
            slots.tensor(name, Dtype::F32, &[data.len() as u64 / 4], place).unwrap();
        }
    }
    repository.restore(&contents, targets).unwrap();
    for ((component, name, data), found) in tensors.iter().zip(&found) {
        assert!(data == found, "{component}/{name}");
    }
    repository.verify(&ledger, id, &|_, _| {}).unwrap();
}

/// The rules of the deltas of a rank of a checkpoint, each as often as it is.
pub(crate) fn rules(
    store: &MemoryStore,
    repository: &Repository,
    id: &Hash,
    rank: usize,
) -> Vec<Rule> {
    let ledger = repository.existing(&run_name()).unwrap();
    let contents = repository.contents(&ledger, id).unwrap();
    let index: &ShardIndex = &contents.indexes()[rank];
    let own = index.operands.keys().filter(|row| (**row as usize) < index.chunks.len());
    let rule = |row: &u32| {
        let chunk = index.row(*row).unwrap();
        let pack = &index.packs[chunk.pack as usize].object;
        let pack = store.peek(&format!("runs/test/{pack}")).unwrap();
        let begin = chunk.offset as usize;
        delta::rule(&pack[begin..begin + chunk.stored_bytes as usize]).unwrap()
    };
    own.map(rule).collect()
}

/// Trains `count` steps, saving each; gives how much each save put for each of its bytes, and the rules of the last.
fn trained(optimizer: Optimizer, tell: impl Fn(u64) -> Vec<Update>) -> (f64, Vec<Rule>) {
    let (store, repository) = in_memory();
    let save = SaveOptions { compression: Compression::Delta { chain: 64 }, ..quick() };
    let options = RunOptions { save, ..options(World::ALONE, "a") };
    let mut run = Run::open(&repository, &run_name(), options).unwrap();
    let mut state = start();
    (1..=20).for_each(|steps| advance(&mut state, optimizer, steps));
    let mut last = None;
    let (mut put, mut raw) = (0, 0);
    for steps in 21..27 {
        advance(&mut state, optimizer, steps);
        let tensors = tensors(&state, optimizer);
        let told = tell(steps);
        let handle =
            run.save(steps, Mode::Sync, |capture| declare(capture, &tensors, &told)).unwrap();
        let id = handle.wait().unwrap();
        check(&repository, &id, &tensors);
        let ledger = repository.existing(&run_name()).unwrap();
        let checkpoint = ledger.history().checkpoint(&id).unwrap();
        if last.is_some() {
            put += checkpoint.new_bytes;
            raw += checkpoint.bytes;
        }
        last = Some(id);
    }
    run.close().unwrap();
    (put as f64 / raw as f64, rules(&store, &repository, &last.unwrap(), 0))
}

#[test]
fn steps_of_every_optimizer_are_predicted_to_the_bit() {
    for (optimizer, rule, bound) in [
        (ADAM, Rule::Adam, 0.31),
        (MOMENTUM, Rule::Momentum, 0.45),
        (NESTEROV, Rule::Nesterov, 0.45),
        (LION, Rule::Sign, 0.45),
    ] {
        let (ratio, rules) = trained(optimizer, |steps| updates(optimizer, steps));
        assert!(rules.contains(&rule), "{optimizer:?} {rules:?}");
        let (without, _) = trained(optimizer, |_| Vec::new());
        println!("{optimizer:?}: {ratio:.3} of raw, {without:.3} without being told");
        assert!(ratio < bound && ratio * 1.2 < without, "{optimizer:?}: {ratio} {without}");
    }
}

/// Two ranks that hold all alike: what an optimizer keeps for a weight is written with it, by whichever rank.
#[test]
fn ranks_that_hold_all_alike_predict_too() {
    let (store, repository) = in_memory();
    let mut state = start();
    (1..=20).for_each(|steps| advance(&mut state, ADAM, steps));
    let mut runs: Vec<Run> = (0..2)
        .map(|rank| {
            let save = SaveOptions { compression: Compression::Delta { chain: 64 }, ..quick() };
            let options = RunOptions { save, ..options(World { rank, size: 2 }, "a") };
            Run::open(&repository, &run_name(), options).unwrap()
        })
        .collect();
    let of = |numbers: &Vec<f32>| -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    };
    let mut last = None;
    for steps in 21..25 {
        advance(&mut state, ADAM, steps);
        let parts: Vec<[Vec<u8>; 3]> =
            state.iter().map(|[w, m, v]| [of(w), of(m), of(v)]).collect();
        let id = crate::fixture::save_all(&mut runs, steps, |capture| {
            // Ranks need not name them in one order.
            let mut order = ["model", "optimizer"];
            order.rotate_left(capture.world().rank as usize);
            for component in order {
                let mut part = capture.component(component, "t", Durability::Durable)?;
                for (i, [w, m, v]) in parts.iter().enumerate() {
                    let shape = [w.len() as u64 / 4];
                    if component == "model" {
                        part.replicated(&format!("w{i}"), Dtype::F32, &shape, w.clone())?;
                        continue;
                    }
                    for (key, data) in [("m", m), ("v", v)] {
                        let name = format!("state.w{i}.{key}");
                        part.replicated(&name, Dtype::F32, &shape, data.clone())?;
                    }
                }
            }
            for (i, update) in updates(ADAM, steps).into_iter().enumerate() {
                let of = |key: &str| ("optimizer".to_owned(), format!("state.w{i}.{key}"));
                capture.update(Update { first: of("m"), second: Some(of("v")), ..update });
            }
            Ok(())
        });
        last = Some(id.unwrap());
    }
    for run in runs {
        run.close().unwrap();
    }
    let id = last.unwrap();
    let ledger = repository.existing(&run_name()).unwrap();
    repository.verify(&ledger, &id, &|_, _| {}).unwrap();
    for rank in 0..2 {
        let rules = rules(&store, &repository, &id, rank);
        assert!(rules.contains(&Rule::Adam) && rules.contains(&Rule::Squares), "{rank}: {rules:?}");
    }
}

#[test]
fn a_lie_costs_bytes_and_nothing_else() {
    let (without, _) = trained(ADAM, |_| Vec::new());
    type Lie = fn(&mut Update);
    let lies: [(&str, Lie); 6] = [
        ("another rate", |update| {
            update.optimizer =
                Optimizer::Adam { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-8, decay: 0.0 };
        }),
        ("no number", |update| {
            update.optimizer = Optimizer::Adam {
                lr: f64::NAN,
                betas: (f64::INFINITY, -1.0),
                eps: 0.0,
                decay: 9e99,
            };
        }),
        ("another optimizer", |update| update.optimizer = LION),
        ("mixed up", |update| std::mem::swap(&mut update.weight, &mut update.first)),
        ("itself", |update| update.second = Some(update.weight.clone())),
        ("of another", |update| update.first.1 = "0.m".into()),
    ];
    for (what, lie) in lies {
        let (ratio, _) = trained(ADAM, |steps| {
            let mut told = updates(ADAM, steps);
            told.iter_mut().for_each(lie);
            told
        });
        assert!(ratio < without * 1.1, "{what}: {ratio} {without}");
    }
    // Two steps in one save: what was a step before is not there.
    let (_, rules) = trained(ADAM, |steps| updates(ADAM, 2 * steps));
    assert!(!rules.contains(&Rule::Adam), "{rules:?}");
}
