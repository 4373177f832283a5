use lastgood::ErrorKind;

use super::*;

#[test]
fn lost_ranks_leave_their_places_empty_down_to_the_least() {
    let mut places = Places::new(5, Some(2)).unwrap();
    assert_eq!(places.lose(&[1]), [1]);
    assert_eq!(places.taken, [0, 2, 3, 4]);
    // Rank 1 is at place 2 now.
    assert_eq!((places.ranks(), places.of(1)), (4, 2));
    assert_eq!(places.lose(&[3, 0, 1]), [3, 0], "one of three is replaced");
    assert_eq!(places.taken, [2, 3]);
    assert!(places.lose(&[0]).is_empty());
    assert_eq!(places.ranks(), 2);
}

#[test]
fn without_a_least_number_everybody_is_replaced() {
    let mut places = Places::new(3, None).unwrap();
    assert!(places.lose(&[0, 1, 2]).is_empty());
    assert_eq!(places.taken, [0, 1, 2]);
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    for (ranks, min) in [(0, None), (0, Some(1)), (2, Some(0)), (2, Some(3))] {
        let error = Places::new(ranks, min).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
