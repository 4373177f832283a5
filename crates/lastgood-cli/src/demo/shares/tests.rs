use super::*;

#[test]
fn parts_are_even_and_leave_nothing_out() {
    for (count, parts) in [(96, 4), (10, 4), (3, 4), (0, 2), (7, 1)] {
        let ranges: Vec<Range<usize>> = (0..parts).map(|i| part(count, i, parts)).collect();
        let together: Vec<usize> = ranges.iter().cloned().flatten().collect();
        assert_eq!(together, (0..count).collect::<Vec<_>>());
        let (least, most) = (count / parts, count.div_ceil(parts));
        assert!(ranges.iter().all(|range| (least..=most).contains(&range.len())), "{ranges:?}");
    }
}

#[test]
fn a_packed_share_finds_its_places_again() {
    let ranges = [vec![0..2, 5..6], vec![2..5, 6..9]];
    let shares = Shares::new(2, |rank| ranges[rank as usize].clone());
    let flat: Vec<usize> = (0..9).collect();
    assert_eq!(shares.pack(0, &flat), [0, 1, 5]);
    assert_eq!(shares.pack(1, &flat), [2, 3, 4, 6, 7, 8]);

    let mut back = vec![0; 9];
    for rank in 0..2 {
        assert!(shares.unpack(rank, &shares.pack(rank, &flat), &mut back));
    }
    assert_eq!(back, flat);
    assert!(!shares.unpack(0, &[1, 2], &mut back), "too short");
    assert!(!shares.unpack(0, &[1, 2, 3, 4], &mut back), "too long");
}

#[test]
fn a_common_range_belongs_to_every_share() {
    let own = |rank| vec![2 * rank as usize..2 * rank as usize + 1, 4..4];
    let shares = Shares::new(2, own).with_common(4..5);
    assert_eq!(shares.pack(0, &[5, 6, 7, 8, 9]), [5, 9]);
    assert_eq!(shares.pack(1, &[5, 6, 7, 8, 9]), [7, 9]);
}
