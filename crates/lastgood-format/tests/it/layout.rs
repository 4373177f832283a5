//! Arithmetic of boxes, compared with counting every element.

use std::collections::BTreeMap;

use lastgood_format::layout::{NdBox, Run, check_cover, check_disjoint};
use lastgood_format::{Dtype, ErrorKind};
use proptest::prelude::*;

use crate::seeded::{Seeded, seed};

/// Every element of a box, in row-major order.
fn elements(b: &NdBox) -> Vec<Vec<u64>> {
    let mut all = vec![Vec::new()];
    for (offset, size) in b.offsets.iter().zip(&b.sizes) {
        let longer = |head: &Vec<u64>| {
            let head = head.clone();
            (*offset..offset + size).map(move |i| [&head[..], &[i]].concat())
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// Every box inside a tensor of `shape`, empty ones included.
fn boxes(shape: &[u64]) -> Vec<NdBox> {
    let mut all = vec![NdBox { offsets: Vec::new(), sizes: Vec::new() }];
    for dim in shape {
        let mut longer = Vec::new();
        for b in &all {
            for offset in 0..=*dim {
                for size in 0..=dim - offset {
                    let mut next = b.clone();
                    next.offsets.push(offset);
                    next.sizes.push(size);
                    longer.push(next);
                }
            }
        }
        all = longer;
    }
    all
}

const SHAPES: [&[u64]; 6] = [&[], &[5], &[4, 3], &[2, 3, 2], &[2, 2, 2, 2], &[1, 3, 1]];

/// Pairs of boxes: all of them, or of the largest spaces a part that the seed chooses.
fn pairs(shape: &[u64]) -> Vec<(NdBox, NdBox)> {
    let all = boxes(shape);
    let keep = (all.len() * all.len()) as u64 / 40_000 + 1;
    let mut seeded = Seeded(seed(8));
    let both = |a: &NdBox| all.iter().map(|b| (a.clone(), b.clone())).collect::<Vec<_>>();
    all.iter().flat_map(both).filter(|_| seeded.one_in(keep)).collect()
}

#[test]
fn elements_insides_and_intersections() {
    for shape in SHAPES {
        for b in boxes(shape) {
            assert_eq!(b.elements(), Some(elements(&b).len() as u64), "{b}");
            assert!(b.is_inside(shape), "{b}");
            let mut out = b.clone();
            if let Some(size) = out.sizes.last_mut() {
                *size += 1 + shape.last().unwrap() - b.offsets.last().unwrap();
                assert!(!out.is_inside(shape), "{out}");
            }
            let longer = [shape, &[1]].concat();
            assert!(!b.is_inside(&longer) && b.intersection(&NdBox::whole(&longer)).is_none());
        }
        for (a, b) in pairs(shape) {
            let inside = |element: &Vec<u64>| {
                let of = |d: usize| b.offsets[d]..b.offsets[d] + b.sizes[d];
                (0..element.len()).all(|d| of(d).contains(&element[d]))
            };
            let expected: Vec<_> = elements(&a).into_iter().filter(inside).collect();
            let found = a.intersection(&b);
            assert_eq!(found, b.intersection(&a), "{a} and {b}");
            let found = found.map_or(Vec::new(), |shared| elements(&shared));
            assert_eq!(found, expected, "{a} and {b}");
        }
    }
}

/// Runs as they should be: for every shared element, where its bytes are in both.
fn expected_bytes(source: &NdBox, target: &NdBox, bytes: u64) -> BTreeMap<u64, u64> {
    let places: BTreeMap<Vec<u64>, u64> = elements(source).into_iter().zip(0..).collect();
    let mut expected = BTreeMap::new();
    for (element, at) in elements(target).into_iter().zip(0u64..) {
        if let Some(from) = places.get(&element) {
            expected.extend((0..bytes).map(|i| (at * bytes + i, from * bytes + i)));
        }
    }
    expected
}

fn check_runs(source: &NdBox, target: &NdBox, runs: &[Run], expected: &BTreeMap<u64, u64>) {
    let found: BTreeMap<u64, u64> = runs
        .iter()
        .flat_map(|run| (0..run.bytes).map(|i| (run.target + i, run.source + i)))
        .collect();
    let what = format!("{source} into {target}: {runs:?}");
    assert_eq!(found, *expected, "{what}");
    assert_eq!(runs.iter().map(|run| run.bytes).sum::<u64>(), found.len() as u64, "{what}");
    assert!(runs.iter().all(|run| run.bytes > 0), "{what}");
    for pair in runs.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        assert!(a.target + a.bytes <= b.target, "rising: {what}");
        let follows = (a.source + a.bytes, a.target + a.bytes) == (b.source, b.target);
        assert!(!follows, "not coalesced: {what}");
    }
}

#[test]
fn runs_copy_every_shared_element_once() {
    for shape in SHAPES {
        for (source, target) in pairs(shape) {
            for dtype in [Dtype::U8, Dtype::F32] {
                let runs = source.runs_into(&target, dtype).unwrap();
                let expected = expected_bytes(&source, &target, dtype.bits() / 8);
                check_runs(&source, &target, &runs, &expected);
            }
        }
    }
}

/// Packed elements: right where runs are whole bytes, refused where they are not.
#[test]
fn runs_of_packed_elements() {
    let (mut right, mut refused) = (0, 0);
    for (source, target) in pairs(&[3, 8]) {
        match source.runs_into(&target, Dtype::F4) {
            Ok(runs) => {
                let nibbles: Vec<Run> = runs
                    .iter()
                    .map(|run| Run {
                        source: 2 * run.source,
                        target: 2 * run.target,
                        bytes: 2 * run.bytes,
                    })
                    .collect();
                let expected = expected_bytes(&source, &target, 1);
                check_runs(&source, &target, &nibbles, &expected);
                right += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Incompatible);
                assert!(source.intersection(&target).is_some());
                refused += 1;
            }
        }
    }
    assert!(right > 1000 && refused > 1000, "{right} right, {refused} refused");
    let whole = NdBox::whole(&[3, 8]);
    for dtype in [Dtype::F4, Dtype::F6E2M3, Dtype::F6E3M2] {
        let bytes = 24 * dtype.bits() / 8;
        let run = Run { source: 0, target: 0, bytes };
        assert_eq!(whole.runs_into(&whole, dtype).unwrap(), [run]);
        let odd = NdBox::whole(&[1]);
        assert!(odd.runs_into(&odd, dtype).is_err());
    }
}

/// How often each element of `target` is covered, if no part sticks out.
fn counts(target: &NdBox, parts: &[NdBox]) -> Option<Vec<u32>> {
    let mut counts: BTreeMap<Vec<u64>, u32> =
        elements(target).into_iter().map(|element| (element, 0)).collect();
    for element in parts.iter().flat_map(elements) {
        *counts.get_mut(&element)? += 1;
    }
    Some(counts.into_values().collect())
}

fn check_both(target: &NdBox, parts: &[NdBox]) -> bool {
    let counts = counts(target, parts);
    let exact = counts.as_ref().is_some_and(|counts| counts.iter().all(|count| *count == 1));
    let found = check_cover(target, parts);
    assert_eq!(found.is_ok(), exact, "{target} of {parts:?}: {found:?}");
    let mut seen: Vec<Vec<u64>> = parts.iter().flat_map(elements).collect();
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    let found = check_disjoint(parts);
    assert_eq!(found.is_ok(), seen.len() == all, "{parts:?}: {found:?}");
    exact
}

#[test]
fn covers_of_up_to_three_boxes() {
    let mut exact = 0;
    for shape in [&[][..], &[3], &[2, 2]] {
        let all = boxes(shape);
        for target in [NdBox::whole(shape), all[all.len() / 2].clone()] {
            exact += u32::from(check_both(&target, &[]));
            for a in &all {
                exact += u32::from(check_both(&target, std::slice::from_ref(a)));
                for b in &all {
                    exact += u32::from(check_both(&target, &[a.clone(), b.clone()]));
                    for c in all.iter().step_by(1 + all.len() / 12) {
                        let parts = [a.clone(), b.clone(), c.clone()];
                        exact += u32::from(check_both(&target, &parts));
                    }
                }
            }
        }
    }
    assert!(exact > 100, "{exact} covers were exact");
}

/// Cuts `whole` into parts again and again.
fn partition(seeded: &mut Seeded, whole: NdBox, depth: u32) -> Vec<NdBox> {
    let dims = whole.sizes.len() as u64;
    if depth == 0 || dims == 0 || seeded.one_in(6) {
        return vec![whole];
    }
    let d = seeded.below(dims) as usize;
    let cut = seeded.below(whole.sizes[d] + 1);
    let (mut low, mut high) = (whole.clone(), whole);
    low.sizes[d] = cut;
    high.offsets[d] += cut;
    high.sizes[d] -= cut;
    let mut parts = partition(seeded, low, depth - 1);
    parts.extend(partition(seeded, high, depth - 1));
    parts
}

#[test]
fn partitions_cover_and_damaged_ones_do_not() {
    let mut seeded = Seeded(seed(9));
    for round in 0..3_000 {
        let dims = 1 + seeded.below(4) as usize;
        let target = NdBox {
            offsets: (0..dims).map(|_| seeded.below(3)).collect(),
            sizes: (0..dims).map(|_| seeded.below(5)).collect(),
        };
        let mut parts = partition(&mut seeded, target.clone(), 4);
        for i in (1..parts.len()).rev() {
            parts.swap(i, seeded.below(i as u64 + 1) as usize);
        }
        assert!(check_both(&target, &parts), "seed {}, round {round}", seeded.0);
        let i = seeded.below(parts.len() as u64) as usize;
        let d = seeded.below(dims as u64) as usize;
        match seeded.below(5) {
            0 => drop(parts.remove(i)),
            1 => parts.push(parts[i].clone()),
            2 => parts[i].sizes[d] += 1,
            3 => parts[i].sizes[d] = parts[i].sizes[d].saturating_sub(1),
            _ => parts[i].offsets[d] += 1,
        }
        check_both(&target, &parts);
    }
}

/// Boxes of different dimensions share nothing, in whatever order they come.
#[test]
fn boxes_of_different_dimensions() {
    let kinds = [
        NdBox { offsets: vec![0, 0, 0], sizes: vec![1, 0, 1] },
        NdBox::whole(&[2, 2, 2]),
        NdBox::whole(&[3]),
        NdBox::whole(&[]),
        NdBox { offsets: vec![9], sizes: vec![0] },
        NdBox { offsets: vec![3], sizes: vec![1] },
    ];
    for a in &kinds {
        for b in &kinds {
            for c in &kinds {
                let parts = [a.clone(), b.clone(), c.clone()];
                let full = |x: &NdBox| x.elements() != Some(0);
                let same = (full(a) && (a == b || a == c)) || (full(b) && b == c);
                assert_eq!(check_disjoint(&parts).is_err(), same, "{parts:?}");
            }
        }
    }
}

#[test]
fn huge_numbers() {
    const MAX: u64 = u64::MAX;
    const LARGE: u64 = 1 << 40;
    let at =
        |offsets: &[u64], sizes: &[u64]| NdBox { offsets: offsets.into(), sizes: sizes.into() };
    assert_eq!(NdBox::whole(&[LARGE, LARGE]).elements(), None);
    assert_eq!(NdBox::whole(&[MAX, MAX, 0]).elements(), Some(0));
    assert_eq!(NdBox::whole(&[MAX]).elements(), Some(MAX));
    assert!(!at(&[MAX], &[1]).is_inside(&[MAX]));
    assert!(!at(&[1], &[MAX]).is_inside(&[MAX]));
    assert!(at(&[MAX], &[0]).is_inside(&[MAX]));
    let corrupt = |source: &NdBox, target: &NdBox, dtype| {
        let error = source.runs_into(target, dtype).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{source} into {target}: {error}");
        assert!(error.message().contains("overflows"), "{error}");
    };
    let square = NdBox::whole(&[LARGE, LARGE]);
    corrupt(&square, &square, Dtype::U8);
    corrupt(&NdBox::whole(&[MAX]), &NdBox::whole(&[MAX]), Dtype::U16);
    corrupt(&NdBox::whole(&[MAX]), &at(&[MAX - 1], &[1]), Dtype::F64);
    corrupt(&square, &at(&[LARGE - 1, LARGE - 1], &[1, 1]), Dtype::U8);
    let (edge, last) = (NdBox::whole(&[LARGE, 4]), at(&[LARGE - 1, 2], &[1, 2]));
    let run = Run { source: (4 * LARGE - 2) * 4, target: 0, bytes: 8 };
    assert_eq!(edge.runs_into(&last, Dtype::F32).unwrap(), [run]);
    assert_eq!(at(&[MAX, MAX], &[MAX, MAX]).intersection(&at(&[0, 0], &[MAX, MAX])), None);
    assert!(check_cover(&square, std::slice::from_ref(&square)).is_err());
    assert!(check_cover(&NdBox::whole(&[4]), &[at(&[MAX], &[MAX])]).is_err());
    assert!(check_cover(&NdBox::whole(&[MAX]), &[NdBox::whole(&[MAX]), at(&[0], &[1])]).is_err());
    let half = |offset| at(&[offset], &[1 << 63]);
    assert!(check_cover(&NdBox::whole(&[MAX]), &[half(0), half(1 << 63)]).is_err());
    check_cover(&NdBox::whole(&[MAX]), &[half(0), at(&[1 << 63], &[(1 << 63) - 1])]).unwrap();
    for dtype in Dtype::ALL {
        assert_eq!(dtype.bytes_of(MAX), None, "{dtype}");
        assert_eq!(dtype.bytes_of(0), Some(0), "{dtype}");
        assert_eq!(dtype.bytes_of(8), Some(dtype.bits()), "{dtype}");
    }
}

fn extreme() -> impl Strategy<Value = u64> {
    let edges = vec![0, 1, 2, 3, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX - 1, u64::MAX];
    prop_oneof![proptest::sample::select(edges), any::<u64>()]
}

fn extreme_box(dims: usize) -> impl Strategy<Value = NdBox> {
    let numbers = || proptest::collection::vec(extreme(), dims);
    (numbers(), numbers()).prop_map(|(offsets, sizes)| NdBox { offsets, sizes })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// No arithmetic overflows, whatever the numbers (debug builds panic where it does).
    #[test]
    fn extreme_boxes_do_not_overflow(
        all in (0usize..5).prop_flat_map(|dims| proptest::collection::vec(extreme_box(dims), 1..6)),
        shape in proptest::collection::vec(extreme(), 0..5),
    ) {
        let _ = check_disjoint(&all);
        for a in &all {
            let _ = (a.elements(), a.is_inside(&shape), check_cover(a, &all));
            for b in &all {
                let Some(shared) = a.intersection(b) else { continue };
                prop_assert!(shared.sizes.iter().all(|size| *size > 0));
                // A run for each row: only where the rows are few.
                let rows = shared.sizes.iter().rev().skip(1).try_fold(1u64, |n, s| n.checked_mul(*s));
                if rows.is_some_and(|rows| rows < 1_000) {
                    let _ = a.runs_into(b, Dtype::F32);
                }
            }
        }
    }
}
