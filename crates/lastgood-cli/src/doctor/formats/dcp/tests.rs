//! Parts of a tensor.

use super::*;

fn part(offsets: [u64; 2], sizes: [u64; 2]) -> NdBox {
    NdBox { offsets: offsets.to_vec(), sizes: sizes.to_vec() }
}

#[test]
fn an_overlap_among_thousands_of_parts_that_are_cut_both_ways_is_found() {
    let mut parts: Vec<NdBox> = (0..64 * 64).map(|i| part([i / 64, i % 64], [1, 1])).collect();
    assert_eq!(gap(&[64, 64], &parts, &mut PAIRS_MAX.clone()), None);
    parts[70] = parts[200].clone();
    let found = gap(&[64, 64], &parts, &mut PAIRS_MAX.clone());
    assert!(matches!(found, Some(Flaw::Content(_))), "{found:?}");
}

/// Columns that are cut at other places each, so that any two meet along the axis that is swept.
#[test]
fn parts_that_take_forever_to_compare_are_not_compared() {
    let n = 20_000;
    let column = |i| {
        [
            part([0, i], [i, 1]),
            part([i, i], [n / 2, 1]),
            part([i + n / 2, i], [2 * n - i - n / 2, 1]),
        ]
    };
    let parts: Vec<NdBox> = (0..n).flat_map(column).collect();
    let mut pairs = PAIRS_MAX;
    let found = gap(&[2 * n, n], &parts, &mut pairs);
    assert!(matches!(found, Some(Flaw::Limit(_))), "{found:?}");
}
